//! Memory of a device that processes share: made in one, and mapped in others by a descriptor.
//!
//! Owns: [`Window`], one process's mapping of such memory, and how a device gets one as a region.
//! Absent: how a descriptor goes from one process to another (`driven`), and what a window is for
//! (`remote`).
//!
//! The drivers' documentation says of such memory (`cuMemRelease`, `hipMemRelease`) that it lives
//! as long as any process has a mapping or a handle of it, exported ones included. So nobody has to
//! let go before somebody else, and the end of a process takes nothing from the others. That is why
//! it is used, and neither of the older ways. Memory handles for `cuMemAlloc` (`cuIpcGetMemHandle`)
//! forbid to free what another process has open, and know no pools. A whole pool that is made for
//! export never gives freed memory back to the system, which the server's accounts say is free,
//! wants a free in the importing process before that in the exporting one, and would show all of a
//! session's memory to the other.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use super::device::{GpuDevice, Stop};
use super::driver::{DevicePointer, MemoryHandle, Ordinal};
use super::handles::{Context, Done};
use super::memory::{Access, Allocation};
use super::queue::Lane;
use crate::device::budget::Charge;
use crate::device::{DeviceError, Memory, Region};

/// Memory behind a handle, mapped in this process. Dropping it undoes what was done.
pub(super) struct Window {
    context: Arc<Context>,
    handle: MemoryHandle,
    bytes: u64,
    /// Addresses, once they are reserved.
    at: Option<DevicePointer>,
    is_mapped: bool,
}

impl Window {
    /// Memory of the context's device. `bytes` is a multiple of the driver's granularity.
    fn create(context: &Arc<Context>, bytes: u64) -> Done<Window> {
        Window::make(context, bytes, "memory to share", false)
    }

    /// The same, of which network cards can be told.
    pub(super) fn create_for_cards(context: &Arc<Context>, bytes: u64) -> Done<Window> {
        Window::make(context, bytes, "allocation", true)
    }

    fn make(
        context: &Arc<Context>,
        bytes: u64,
        what: &'static str,
        for_cards: bool,
    ) -> Done<Window> {
        let device = context.device();
        let handle = context.call(what, |driver| driver.handle_create(device, bytes, for_cards))?;
        Window::map(context, handle, bytes)
    }

    /// Memory of another process, by its descriptor.
    fn import(context: &Arc<Context>, from: BorrowedFd<'_>, bytes: u64) -> Done<Window> {
        let what = "shared memory";
        let handle = context.call(what, |driver| driver.handle_import(from))?;
        Window::map(context, handle, bytes)
    }

    fn map(context: &Arc<Context>, handle: MemoryHandle, bytes: u64) -> Done<Window> {
        let context = Arc::clone(context);
        let mut window = Window { context, handle, bytes, at: None, is_mapped: false };
        let what = "mapping";
        let at = window.context.call(what, |driver| driver.addresses_reserve(bytes))?;
        window.at = Some(at);
        // SAFETY: the handle is alive, and the addresses were just reserved.
        window.context.call(what, |driver| unsafe { driver.handle_map(at, bytes, handle) })?;
        window.is_mapped = true;
        window.allow(window.context.device())?;
        Ok(window)
    }

    /// Lets a device's work reach it.
    pub(super) fn allow(&self, device: Ordinal) -> Done<()> {
        let (at, bytes) = (self.at(), self.bytes);
        // SAFETY: a whole window is mapped.
        self.context.call("mapping", |driver| unsafe { driver.mapping_allow(at, bytes, device) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn at(&self) -> DevicePointer {
        self.at.expect("a whole window has addresses")
    }

    /// What another process gets it by.
    fn export(&self) -> Done<OwnedFd> {
        let handle = self.handle;
        // SAFETY: alive as long as `self`.
        self.context.call("descriptor", |driver| unsafe { driver.handle_export(handle) })
    }
}

impl Drop for Window {
    /// None of this is the context's, and all of it is there when the context is lost.
    fn drop(&mut self) {
        let driver = self.context.driver();
        let undone = |what, outcome: Result<(), _>| {
            if let Err(code) = outcome {
                tracing::debug!(what, why = driver.describe(code), "not given back");
            }
        };
        if let Some(at) = self.at {
            if self.is_mapped {
                // SAFETY: mapped by `map`; the owner has waited for the work that uses it.
                undone("mapping", unsafe { driver.handle_unmap(at, self.bytes) });
            }
            // SAFETY: reserved by `map`, and nothing is mapped there any more.
            undone("addresses", unsafe { driver.addresses_free(at, self.bytes) });
        }
        // SAFETY: the handle came from this driver and is released here only.
        undone("memory handle", unsafe { driver.handle_release(self.handle) });
    }
}

/// What a window that cannot be had means. It loses no session: no work is asked for, and what
/// else may be wrong is found by the next look at the streams.
pub(super) fn refusal(context: &Context, trouble: super::handles::Trouble) -> DeviceError {
    let why = format!("{}: {}", trouble.what, context.driver().describe(trouble.code));
    DeviceError::Failed { what: "shared memory", why }
}

impl GpuDevice {
    /// Memory that reads as zero behind the work so far, and its descriptor for other processes,
    /// who may have it from then on and not before: what was there may be another session's.
    pub(super) fn make_window(&mut self, bytes: u64) -> Result<(Region, OwnedFd), Stop> {
        let context = Arc::clone(self.queue.context());
        let made = Window::create(&context, bytes).and_then(|window| {
            let descriptor = window.export()?;
            Ok((window, descriptor))
        });
        let (window, descriptor) = made.map_err(|trouble| refusal(&context, trouble))?;
        let region = self.keep_window(window);
        let allocation = Rc::clone(region.gpu()?);
        self.queue.begin(Lane::Compute)?;
        self.queue.stream(Lane::Compute).zero(allocation.at, bytes)?;
        let number = self.queue.push(Lane::Compute, 1);
        allocation.uses.note(Lane::Compute, Access::Write, number);
        Ok((region, descriptor))
    }

    /// Memory of another process's device.
    pub(super) fn open_window(
        &mut self,
        from: BorrowedFd<'_>,
        bytes: u64,
    ) -> Result<Region, DeviceError> {
        let context = Arc::clone(self.queue.context());
        let window = Window::import(&context, from, bytes);
        Ok(self.keep_window(window.map_err(|trouble| refusal(&context, trouble))?))
    }

    /// The region of a window, which the device has until the work that uses it is done.
    fn keep_window(&mut self, window: Window) -> Region {
        let (at, bytes) = (window.at(), window.bytes);
        self.windows.insert(at, window);
        // The server keeps the account of it, for both ends.
        let charge = Charge::none(self.budget());
        let allocation = Allocation::new(at, bytes, &self.site, charge);
        Region(Memory::Gpu(Rc::new(allocation)))
    }
}

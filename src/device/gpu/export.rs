//! Device memory as network cards get it: a descriptor (`dmabuf`) of the pages of a buffer.
//!
//! Owns: how such a descriptor is had, whether a machine's devices can give any, and how a device
//! gets to see what a card has written. Absent: where the memory comes from (`arena`), and the
//! network card (`rdma`).
//!
//! The kernel keeps the memory behind a descriptor as long as the descriptor, or a card's
//! registration that was made from it. So no order of ends, of buffers, sessions or processes, has
//! a card write to memory that is somebody else's by then.

use std::sync::{Arc, OnceLock};

use super::clerk::Shared;
use super::device::{GpuDevice, Stop};
use super::driver::{CardAccess, DeviceInfo, DevicePointer, Driver, Ordinal};
use super::handles::{Context, Done, Trouble};
use super::transfer::place;
use super::window::{Window, refusal};
use crate::config::GpuLimits;
use crate::device::export::CardMemory;
use crate::device::shared::to_u64;
use crate::device::{DeviceError, Span};

/// A descriptor of the pages that hold so many bytes at `at`, which are mapped by a handle.
fn export(context: &Context, at: DevicePointer, bytes: u64) -> Done<CardMemory> {
    let page = to_u64(rustix::param::page_size());
    let first = at.0 & !(page - 1);
    let length = (at.0 + bytes).next_multiple_of(page) - first;
    let descriptor = context.call("descriptor for network cards", |driver| {
        // SAFETY: pieces of memory begin and end at multiples of pages, so all of these pages are
        // of the piece in which the caller says that the bytes are.
        unsafe { driver.range_export(DevicePointer(first), length) }
    })?;
    Ok(CardMemory::new(descriptor, at.0 - first, bytes))
}

/// Memory of a device that is there for a try: some bytes in a context of its own, which ends here.
/// The descriptor keeps the memory.
///
/// # Errors
///
/// Why network cards cannot reach it.
pub(super) fn sample(driver: &'static dyn Driver, ordinal: i32) -> Result<CardMemory, String> {
    let ordinal = Ordinal(ordinal);
    let info = driver.device_info(ordinal).map_err(|code| driver.describe(code))?;
    if info.card_access.is_none() {
        return Err(format!(
            "{}: its driver has no descriptors (dmabuf) for its memory",
            info.name
        ));
    }
    let made = Context::create(driver, ordinal).and_then(|context| {
        let memory = Window::create_for_cards(&context, GpuLimits::HANDLE_GRAIN_BYTES)?;
        export(&context, memory.at(), GpuLimits::HANDLE_GRAIN_BYTES)
    });
    let why = |trouble: Trouble| format!("{}: {}", trouble.what, driver.describe(trouble.code));
    made.map_err(|trouble| format!("{}: {}", info.name, why(trouble)))
}

/// The same device, whose memory network cards are to reach.
pub(super) fn exporting(shared: &Shared) -> Arc<Shared> {
    let Shared { driver, ordinal, ref info, .. } = *shared;
    Arc::new(Shared { driver, ordinal, info: info.clone(), budget: OnceLock::new(), exports: true })
}

/// Whether a device has to be told to look for what cards have written.
pub(super) fn is_flushed(info: &DeviceInfo) -> bool {
    info.card_access == Some(CardAccess::Flushed)
}

impl GpuDevice {
    /// A descriptor of the pages that a span lies in. `None` where memory is not had in a way that
    /// has any.
    pub(super) fn export_span(&mut self, of: &Span<'_>) -> Result<Option<CardMemory>, Stop> {
        let allocation = self.own(of)?;
        let at = place(allocation, of);
        let is_exported = self.site.reach(|reach| reach.store.arena().is_some());
        if is_exported != Some(true) || self.windows.contains_key(&allocation.at) {
            return Ok(None);
        }
        let context = Arc::clone(self.queue.context());
        let made = export(&context, at, of.bytes());
        Ok(Some(made.map_err(|trouble| refusal(&context, trouble))?))
    }

    /// Has whatever is queued later see what network cards have written so far.
    pub(super) fn flush_writes(&mut self) -> Result<(), DeviceError> {
        if !is_flushed(self.info()) {
            return Ok(());
        }
        let context = Arc::clone(self.queue.context());
        let flushed = context.call("what network cards wrote", |driver| driver.writes_flush());
        self.settle(flushed.map_err(Stop::from))
    }
}

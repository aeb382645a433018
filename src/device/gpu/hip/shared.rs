//! HIP's handles of memory that other processes may have too.
//!
//! Owns: from which version on they are used, and how a descriptor is handed over, to processes and
//! to network cards.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use hip_sys::hiprt as hip;

use super::{Hip, check, handle, length, location, place, raw};
use crate::device::gpu::driver::{CardAccess, Code, DevicePointer, MemoryHandle, Ordinal, Outcome};

/// HIP 7.2. The runtime's own tests hand a descriptor over as a number, as CUDA has it, from here
/// on. Some runtimes before take its address, and one that takes the other for it crashes.
const VERSION_MIN: c_int = 70_200_000;

const SHARED_BY: hip::hipMemAllocationHandleType = hip::hipMemHandleTypePosixFileDescriptor;

impl Hip {
    pub(super) fn shares_memory(&self, device: Ordinal) -> Outcome<bool> {
        let attribute = hip::hipDeviceAttributeVirtualMemoryManagementSupported;
        Ok(self.version >= VERSION_MIN && self.attribute(device, attribute)? != 0)
    }

    pub(super) fn card_access(&self, device: Ordinal) -> Outcome<Option<CardAccess>> {
        let exports = self.calls.hipMemGetHandleForAddressRange.is_some();
        let can = exports && self.shares_memory(device)?;
        Ok(can.then_some(CardAccess::Ordered))
    }

    pub(super) fn create_handle(
        &self,
        device: Ordinal,
        bytes: u64,
        for_cards: bool,
    ) -> Outcome<MemoryHandle> {
        let flags = hip::hipMemAllocationFlags {
            compressionType: 0,
            gpuDirectRDMACapable: u8::from(for_cards),
            usage: 0,
        };
        let props = hip::hipMemAllocationProp {
            type_: hip::hipMemAllocationTypePinned,
            requestedHandleType: SHARED_BY,
            location: location(device),
            win32HandleMetaData: ptr::null_mut(),
            allocFlags: flags,
        };
        let (mut made, bytes) = (ptr::null_mut(), length(bytes)?);
        // SAFETY: `made` takes one handle; the properties are read during the call.
        check(unsafe { (self.calls.hipMemCreate)(&mut made, bytes, &props, 0) })?;
        handle(made).map(MemoryHandle)
    }

    /// The handle is alive.
    pub(super) fn export_handle(&self, of: MemoryHandle) -> Outcome<OwnedFd> {
        let mut descriptor: c_int = -1;
        let (to, call) = (ptr::from_mut(&mut descriptor), self.calls.hipMemExportToShareableHandle);
        // SAFETY: the caller says that the handle is alive; what it becomes is an integer here.
        check(unsafe { call(to.cast(), raw(of.0), SHARED_BY, 0) })?;
        if descriptor < 0 {
            return Err(Code(hip::hipErrorUnknown));
        }
        // SAFETY: the runtime has just opened it, for the caller to close.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// # Safety
    ///
    /// The range is mapped as a whole.
    pub(super) unsafe fn export_range(&self, at: DevicePointer, bytes: u64) -> Outcome<OwnedFd> {
        let call = self.calls.hipMemGetHandleForAddressRange;
        let call = call.ok_or(Code(hip::hipErrorNotSupported))?;
        let mut descriptor: c_int = -1;
        let (to, at, bytes) = (ptr::from_mut(&mut descriptor), place(at)?, length(bytes)?);
        // SAFETY: the caller says that the range is mapped; what it becomes is an integer here.
        check(unsafe { call(to.cast(), at, bytes, hip::hipMemRangeHandleTypeDmaBufFd, 0) })?;
        if descriptor < 0 {
            return Err(Code(hip::hipErrorUnknown));
        }
        // SAFETY: the runtime has just opened it, for the caller to close.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    pub(super) fn import_handle(&self, from: BorrowedFd<'_>) -> Outcome<MemoryHandle> {
        // The descriptor itself in the place of a pointer.
        let from = usize::try_from(from.as_raw_fd()).unwrap_or(usize::MAX);
        let (mut made, from) = (ptr::null_mut(), ptr::without_provenance_mut(from));
        let call = self.calls.hipMemImportFromShareableHandle;
        // SAFETY: `made` takes one handle; what the descriptor is the runtime looks at itself.
        check(unsafe { call(&mut made, from, SHARED_BY) })?;
        handle(made).map(MemoryHandle)
    }
}

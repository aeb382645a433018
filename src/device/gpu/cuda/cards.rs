//! What network cards reach of a CUDA device's memory.
//!
//! Owns: whether they do, the descriptors (`dmabuf`) by which, and when their writes are seen.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use cudarc::driver::sys;
use sys::CUresult::*;

use super::{Cuda, check, length};
use crate::device::gpu::driver::{CardAccess, Code, DevicePointer, Outcome};

const DMABUF: sys::CUmemRangeHandleType =
    sys::CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;

impl Cuda {
    /// A device that neither orders the writes of others by itself nor has a call for it is as good
    /// as one without descriptors.
    pub(super) fn card_access(&self, device: sys::CUdevice) -> Outcome<Option<CardAccess>> {
        use sys::CUdevice_attribute::*;
        let needed = [
            CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED,
            CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
            CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
            CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED,
        ];
        for attribute in needed {
            // What an older driver does not know it does not have.
            if self.attribute(device, attribute).unwrap_or(0) == 0 {
                return Ok(None);
            }
        }
        let ordering =
            self.attribute(device, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING)?;
        let by_owner = sys::CUGPUDirectRDMAWritesOrdering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER;
        if ordering >= by_owner as u32 {
            return Ok(Some(CardAccess::Ordered));
        }
        let options = CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS;
        let by_host =
            sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST;
        let is_flushed = self.attribute(device, options)? & by_host as u32 != 0;
        Ok(is_flushed.then_some(CardAccess::Flushed))
    }

    /// # Safety
    ///
    /// The range is mapped as a whole.
    pub(super) unsafe fn export_range(&self, at: DevicePointer, bytes: u64) -> Outcome<OwnedFd> {
        let mut descriptor: c_int = -1;
        let (to, bytes) = (ptr::from_mut(&mut descriptor), length(bytes)?);
        let call = self.calls.cuMemGetHandleForAddressRange;
        // SAFETY: the caller says that the range is mapped; what it becomes is an integer here.
        check(unsafe { call(to.cast(), at.0, bytes, DMABUF, 0) })?;
        if descriptor < 0 {
            return Err(Code(CUDA_ERROR_UNKNOWN as c_int));
        }
        // SAFETY: the driver has just opened it, for the caller to close.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    pub(super) fn flush_writes(&self) -> Outcome<()> {
        use sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER as SCOPE;
        use sys::CUflushGPUDirectRDMAWritesTarget as Target;
        let target = Target::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        // SAFETY: takes two constants.
        check(unsafe { (self.calls.cuFlushGPUDirectRDMAWrites)(target, SCOPE) })
    }
}

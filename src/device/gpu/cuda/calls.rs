//! The calls of CUDA's driver that are used, and what their results mean.
//!
//! Owns: [`Calls`], the functions looked up in an opened library; [`kind`].
//!
//! Absent: cudarc's functions. Structures, constants and prototypes are cudarc's, but its functions
//! return an enum, for which a code that a newer driver added would be undefined behaviour; they
//! take `libcuda.so`, which may be a toolkit's stub, before `libcuda.so.1`; and they panic where
//! one is missing. So each call is declared here once more with an integer for its result, and the
//! compiler holds its arguments against cudarc's.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ops::RangeInclusive;

use cudarc::driver::sys;
use sys::CUresult::*;

use crate::device::gpu::driver::{Code, Kind};
use crate::device::gpu::loading::Opened;

/// The codes that mean something to the server. Those of a kernel's doing lose the context, as the
/// driver's documentation says of each.
const KINDS: &[(sys::CUresult, Kind)] = &[
    (CUDA_ERROR_NOT_READY, Kind::NotReady),
    (CUDA_ERROR_OUT_OF_MEMORY, Kind::OutOfMemory),
    (CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, Kind::PeerEnabled),
    (CUDA_ERROR_INVALID_IMAGE, Kind::BadProgram),
    (CUDA_ERROR_NO_BINARY_FOR_GPU, Kind::BadProgram),
    (CUDA_ERROR_INVALID_PTX, Kind::BadProgram),
    (CUDA_ERROR_UNSUPPORTED_PTX_VERSION, Kind::BadProgram),
    (CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC, Kind::BadProgram),
    (CUDA_ERROR_INVALID_SOURCE, Kind::BadProgram),
    (CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, Kind::BadProgram),
    (CUDA_ERROR_NOT_FOUND, Kind::BadProgram),
    (CUDA_ERROR_ILLEGAL_ADDRESS, Kind::Fault("illegal address")),
    (CUDA_ERROR_LAUNCH_TIMEOUT, Kind::Fault("ran too long for the driver")),
    (CUDA_ERROR_ASSERT, Kind::Fault("failed assertion")),
    (CUDA_ERROR_HARDWARE_STACK_ERROR, Kind::Fault("stack overflow")),
    (CUDA_ERROR_ILLEGAL_INSTRUCTION, Kind::Fault("illegal instruction")),
    (CUDA_ERROR_MISALIGNED_ADDRESS, Kind::Fault("misaligned address")),
    (CUDA_ERROR_INVALID_ADDRESS_SPACE, Kind::Fault("address of the wrong space")),
    (CUDA_ERROR_INVALID_PC, Kind::Fault("invalid program counter")),
    (CUDA_ERROR_LAUNCH_FAILED, Kind::Fault("exception in a kernel")),
    (CUDA_ERROR_TENSOR_MEMORY_LEAK, Kind::Fault("tensor memory not given back")),
    (CUDA_ERROR_DEINITIALIZED, Kind::Lost("the driver is shutting down")),
    (CUDA_ERROR_DEVICE_UNAVAILABLE, Kind::Lost("the device is not available")),
    (CUDA_ERROR_ECC_UNCORRECTABLE, Kind::Lost("memory error that ECC cannot correct")),
    (CUDA_ERROR_NVLINK_UNCORRECTABLE, Kind::Lost("NVLink error that cannot be corrected")),
    (CUDA_ERROR_CONTAINED, Kind::Lost("error that the device contained")),
    (CUDA_ERROR_CONTEXT_IS_DESTROYED, Kind::Lost("the context was destroyed")),
    (CUDA_ERROR_MPS_CLIENT_TERMINATED, Kind::Lost("the MPS server ended this process's use")),
    (CUDA_ERROR_EXTERNAL_DEVICE, Kind::Lost("error in a device outside of CUDA")),
    (CUDA_ERROR_UNKNOWN, Kind::Lost("the driver does not know what is wrong")),
    (CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, Kind::Unsupported),
    (CUDA_ERROR_JIT_COMPILER_NOT_FOUND, Kind::Unsupported),
    (CUDA_ERROR_JIT_COMPILATION_DISABLED, Kind::Unsupported),
    (CUDA_ERROR_NOT_SUPPORTED, Kind::Unsupported),
];

/// All other codes that version 13 documents: they say why a call was refused.
const REFUSALS: [RangeInclusive<i32>; 9] =
    [1..=8, 34..=36, 47..=47, 100..=102, 200..=227, 300..=304, 400..=402, 701..=720, 800..=919];

/// What a code means.
pub(super) fn kind(code: Code) -> Kind {
    let known = KINDS.iter().find(|(result, _)| *result as c_int == code.0);
    known.map_or_else(|| Kind::of_unlisted(code, &REFUSALS), |(_, kind)| *kind)
}

/// Fails to compile where cudarc's prototype has other arguments.
macro_rules! same_as {
    ($name:ident($($argument:ty),*)) => {
        const _: unsafe fn($($argument),*) -> sys::CUresult = sys::$name;
    };
    ($name:ident as $prototype:ident($($argument:ty),*)) => {
        same_as!($prototype($($argument),*));
    };
}

macro_rules! calls {
    (
        like cudarc {$($name:ident $(as $prototype:ident)? ($($argument:ty),* $(,)?);)*}
        unlike cudarc {$($alone:ident ($($alone_argument:ty),* $(,)?);)*}
    ) => {
        $(same_as!($name $(as $prototype)? ($($argument),*));)*

        #[expect(non_snake_case, reason = "the names are those of the driver's documentation")]
        pub(super) struct Calls {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            $(pub(super) $alone: unsafe extern "C" fn($($alone_argument),*) -> c_int,)*
        }

        impl Calls {
            /// Looks every call up, or names the first that is missing.
            pub(super) fn look_up(opened: &Opened) -> Result<Calls, &'static str> {
                Ok(Calls {
                    // SAFETY: the types are those of the driver's documentation, and cudarc's.
                    $($name: unsafe { opened.call(stringify!($name)) }
                        .ok_or(stringify!($name))?,)*
                    // SAFETY: the types are those of the driver's documentation.
                    $($alone: unsafe { opened.call(stringify!($alone)) }
                        .ok_or(stringify!($alone))?,)*
                })
            }
        }
    };
}

calls! {
    like cudarc {
        cuCtxDestroy_v2(sys::CUcontext);
        cuCtxEnablePeerAccess(sys::CUcontext, c_uint);
        cuCtxGetCurrent(*mut sys::CUcontext);
        cuCtxPopCurrent_v2(*mut sys::CUcontext);
        cuCtxSetCurrent(sys::CUcontext);
        cuDeviceCanAccessPeer(*mut c_int, sys::CUdevice, sys::CUdevice);
        cuDeviceGet(*mut sys::CUdevice, c_int);
        cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
        cuDeviceGetPCIBusId(*mut c_char, c_int, sys::CUdevice);
        cuDeviceTotalMem_v2(*mut usize, sys::CUdevice);
        cuEventCreate(*mut sys::CUevent, c_uint);
        cuEventDestroy_v2(sys::CUevent);
        // Every driver has this one; its second version came with CUDA 12.8.
        cuEventElapsedTime as cuEventElapsedTime_v2(*mut f32, sys::CUevent, sys::CUevent);
        cuEventQuery(sys::CUevent);
        cuEventRecord(sys::CUevent, sys::CUstream);
        cuFlushGPUDirectRDMAWrites(
            sys::CUflushGPUDirectRDMAWritesTarget,
            sys::CUflushGPUDirectRDMAWritesScope,
        );
        cuFuncGetAttribute(*mut c_int, sys::CUfunction_attribute, sys::CUfunction);
            cuGraphAddKernelNode_v2(
            *mut sys::CUgraphNode,
            sys::CUgraph,
            *const sys::CUgraphNode,
            usize,
            *const sys::CUDA_KERNEL_NODE_PARAMS,
        );
        cuGraphAddMemcpyNode(
            *mut sys::CUgraphNode,
            sys::CUgraph,
            *const sys::CUgraphNode,
            usize,
            *const sys::CUDA_MEMCPY3D,
            sys::CUcontext,
        );
        cuGraphCreate(*mut sys::CUgraph, c_uint);
        cuGraphDestroy(sys::CUgraph);
        cuGraphExecDestroy(sys::CUgraphExec);
        cuGraphExecKernelNodeSetParams_v2(
            sys::CUgraphExec,
            sys::CUgraphNode,
            *const sys::CUDA_KERNEL_NODE_PARAMS,
        );
        cuGraphExecMemcpyNodeSetParams(
            sys::CUgraphExec,
            sys::CUgraphNode,
            *const sys::CUDA_MEMCPY3D,
            sys::CUcontext,
        );
        cuGraphInstantiateWithFlags(*mut sys::CUgraphExec, sys::CUgraph, c_ulonglong);
        cuGraphLaunch(sys::CUgraphExec, sys::CUstream);
        cuInit(c_uint);
        cuLaunchHostFunc(sys::CUstream, sys::CUhostFn, *mut c_void);
        cuLaunchKernel(
            sys::CUfunction,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            sys::CUstream,
            *mut *mut c_void,
            *mut *mut c_void,
        );
        cuMemAddressFree(sys::CUdeviceptr, usize);
        cuMemAddressReserve(*mut sys::CUdeviceptr, usize, usize, sys::CUdeviceptr, c_ulonglong);
        cuMemAllocFromPoolAsync(*mut sys::CUdeviceptr, usize, sys::CUmemoryPool, sys::CUstream);
        cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
        cuMemCreate(
            *mut sys::CUmemGenericAllocationHandle,
            usize,
            *const sys::CUmemAllocationProp,
            c_ulonglong,
        );
        cuMemExportToShareableHandle(
            *mut c_void,
            sys::CUmemGenericAllocationHandle,
            sys::CUmemAllocationHandleType,
            c_ulonglong,
        );
        cuMemFreeAsync(sys::CUdeviceptr, sys::CUstream);
        cuMemFree_v2(sys::CUdeviceptr);
        cuMemGetHandleForAddressRange(
            *mut c_void,
            sys::CUdeviceptr,
            usize,
            sys::CUmemRangeHandleType,
            c_ulonglong,
        );
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemHostRegister_v2(*mut c_void, usize, c_uint);
        cuMemHostUnregister(*mut c_void);
        cuMemImportFromShareableHandle(
            *mut sys::CUmemGenericAllocationHandle,
            *mut c_void,
            sys::CUmemAllocationHandleType,
        );
        cuMemMap(
            sys::CUdeviceptr,
            usize,
            usize,
            sys::CUmemGenericAllocationHandle,
            c_ulonglong,
        );
        cuMemPoolCreate(*mut sys::CUmemoryPool, *const sys::CUmemPoolProps);
        cuMemPoolDestroy(sys::CUmemoryPool);
        cuMemPoolSetAccess(sys::CUmemoryPool, *const sys::CUmemAccessDesc, usize);
        cuMemPoolSetAttribute(sys::CUmemoryPool, sys::CUmemPool_attribute, *mut c_void);
        cuMemRelease(sys::CUmemGenericAllocationHandle);
        cuMemSetAccess(sys::CUdeviceptr, usize, *const sys::CUmemAccessDesc, usize);
        cuMemUnmap(sys::CUdeviceptr, usize);
        cuMemcpyDtoDAsync_v2(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
        cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
        cuMemcpyPeerAsync(
            sys::CUdeviceptr,
            sys::CUcontext,
            sys::CUdeviceptr,
            sys::CUcontext,
            usize,
            sys::CUstream,
        );
        cuMemsetD8Async(sys::CUdeviceptr, u8, usize, sys::CUstream);
        cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
        cuModuleLoadDataEx(
            *mut sys::CUmodule,
            *const c_void,
            c_uint,
            *mut sys::CUjit_option,
            *mut *mut c_void,
        );
        cuModuleUnload(sys::CUmodule);
        cuStreamCreate(*mut sys::CUstream, c_uint);
        cuStreamDestroy_v2(sys::CUstream);
        cuStreamQuery(sys::CUstream);
        cuStreamSynchronize(sys::CUstream);
        cuStreamWaitEvent(sys::CUstream, sys::CUevent, c_uint);
    }
    unlike cudarc {
        // Not among version 13's declarations, and in every driver.
        cuCtxCreate_v2(*mut sys::CUcontext, c_uint, sys::CUdevice);
        // With the code as an integer.
        cuGetErrorName(c_int, *mut *const c_char);
        cuGetErrorString(c_int, *mut *const c_char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_kernels_and_of_hardware_are_told_apart() {
        let of = |result: sys::CUresult| kind(Code(result as c_int));
        assert_eq!(of(CUDA_ERROR_NOT_READY), Kind::NotReady);
        assert_eq!(of(CUDA_ERROR_ILLEGAL_ADDRESS), Kind::Fault("illegal address"));
        assert!(matches!(of(CUDA_ERROR_ECC_UNCORRECTABLE), Kind::Lost(_)));
        assert_eq!(of(CUDA_ERROR_NOT_FOUND), Kind::BadProgram);
        assert_eq!(of(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES), Kind::Other);
        assert_eq!(of(CUDA_ERROR_INVALID_VALUE), Kind::Other);
    }

    #[test]
    fn codes_that_nobody_knows_lose_the_context_and_those_that_refuse_do_not() {
        for code in [-1, 37, 228, 722, 799, 920, 1000, i32::MAX, i32::MIN] {
            assert!(matches!(kind(Code(code)), Kind::Lost(_)), "{code}");
        }
        for code in [1, 3, 36, 100, 201, 227, 304, 400, 800, 808, 909, 918, 919] {
            assert_eq!(kind(Code(code)), Kind::Other, "{code}");
        }
        assert!(matches!(kind(Code(CUDA_ERROR_UNKNOWN as c_int)), Kind::Lost(_)));
    }

    #[test]
    fn every_fault_of_the_700s_loses_the_context() {
        // Those that the documentation says leave the process in an inconsistent state.
        for code in [700, 702, 710, 714, 715, 716, 717, 718, 719, 721] {
            assert!(matches!(kind(Code(code)), Kind::Fault(_)), "{code}");
        }
        // Those that only refuse.
        for code in [701, 703, 705, 708, 711, 712, 713, 720] {
            assert_eq!(kind(Code(code)), Kind::Other, "{code}");
        }
    }

    #[test]
    fn no_code_has_two_meanings() {
        for (at, (code, _)) in KINDS.iter().enumerate() {
            assert!(!KINDS[..at].iter().any(|(before, _)| before == code), "{code:?}");
        }
    }
}

//! The part of the HIP runtime's interface that outboard uses, declared by hand and looked up in a
//! library that is opened at run time, so that a build needs no ROCm and a binary starts without.
//!
//! Owns: the types ([`hipError_t`] and the structures that cross the interface), the constants, and
//! [`Runtime`], the table of calls. Names are those of HIP's headers.
//!
//! Absent: `hipDeviceProp_t`, whose layout changed from one major version to the next; only the
//! place of the one field that nothing else tells is here. Errors are integers: a newer runtime has
//! codes that no enum of today has. What is here was the same in all versions from 5.4 to 7.14; the
//! tests hold it against generated bindings.

#![expect(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    reason = "the names are those of HIP's headers"
)]

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};

use libloading::Library;

/// The names under which the runtime may be found, newest first.
pub const LIBRARIES: [&str; 4] =
    ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];

pub type hipDevice_t = c_int;
pub type hipDeviceAttribute_t = c_uint;
pub type hipDeviceptr_t = *mut c_void;
pub type hipError_t = c_int;
pub type hipFunction_attribute = c_uint;
pub type hipHostFn_t = Option<unsafe extern "C" fn(userData: *mut c_void)>;
pub type hipMemcpyKind = c_uint;
pub type hipMemAccessFlags = c_uint;
pub type hipMemAllocationHandleType = c_uint;
pub type hipMemAllocationType = c_uint;
pub type hipMemLocationType = c_uint;
pub type hipMemPoolAttr = c_uint;
pub type hipMemRangeHandleType = c_uint;

macro_rules! opaque {
    ($($handle:ident = $object:ident),* $(,)?) => {$(
        #[repr(C)]
        #[derive(Debug)]
        pub struct $object {
            _opaque: [u8; 0],
        }
        pub type $handle = *mut $object;
    )*};
}

opaque! {
    hipEvent_t = ihipEvent_t,
    hipFunction_t = ihipModuleSymbol_t,
    hipGraphExec_t = hipGraphExec,
    hipGraphNode_t = hipGraphNode,
    hipGraph_t = ihipGraph,
    hipMemGenericAllocationHandle_t = ihipMemGenericAllocationHandle,
    hipMemPool_t = ihipMemPoolHandle_t,
    hipModule_t = ihipModule_t,
    hipStream_t = ihipStream_t,
}

pub const hipSuccess: hipError_t = 0;
pub const hipErrorInvalidValue: hipError_t = 1;
pub const hipErrorOutOfMemory: hipError_t = 2;
pub const hipErrorNotInitialized: hipError_t = 3;
pub const hipErrorDeinitialized: hipError_t = 4;
pub const hipErrorInsufficientDriver: hipError_t = 35;
pub const hipErrorInvalidDeviceFunction: hipError_t = 98;
pub const hipErrorNoDevice: hipError_t = 100;
pub const hipErrorInvalidDevice: hipError_t = 101;
pub const hipErrorInvalidImage: hipError_t = 200;
pub const hipErrorNoBinaryForGpu: hipError_t = 209;
pub const hipErrorECCNotCorrectable: hipError_t = 214;
pub const hipErrorPeerAccessUnsupported: hipError_t = 217;
pub const hipErrorInvalidKernelFile: hipError_t = 218;
pub const hipErrorInvalidSource: hipError_t = 300;
pub const hipErrorFileNotFound: hipError_t = 301;
pub const hipErrorSharedObjectSymbolNotFound: hipError_t = 302;
pub const hipErrorSharedObjectInitFailed: hipError_t = 303;
pub const hipErrorNotFound: hipError_t = 500;
pub const hipErrorNotReady: hipError_t = 600;
pub const hipErrorIllegalAddress: hipError_t = 700;
pub const hipErrorLaunchTimeOut: hipError_t = 702;
pub const hipErrorPeerAccessAlreadyEnabled: hipError_t = 704;
pub const hipErrorContextIsDestroyed: hipError_t = 709;
pub const hipErrorAssert: hipError_t = 710;
pub const hipErrorLaunchFailure: hipError_t = 719;
pub const hipErrorNotSupported: hipError_t = 801;
pub const hipErrorUnknown: hipError_t = 999;

pub const hipDeviceAttributeIntegrated: hipDeviceAttribute_t = 16;
pub const hipDeviceAttributeMaxBlockDimX: hipDeviceAttribute_t = 26;
pub const hipDeviceAttributeMaxBlockDimY: hipDeviceAttribute_t = 27;
pub const hipDeviceAttributeMaxBlockDimZ: hipDeviceAttribute_t = 28;
pub const hipDeviceAttributeMaxGridDimX: hipDeviceAttribute_t = 29;
pub const hipDeviceAttributeMaxGridDimY: hipDeviceAttribute_t = 30;
pub const hipDeviceAttributeMaxGridDimZ: hipDeviceAttribute_t = 31;
pub const hipDeviceAttributeMaxThreadsPerBlock: hipDeviceAttribute_t = 56;
pub const hipDeviceAttributeMaxSharedMemoryPerBlock: hipDeviceAttribute_t = 74;
pub const hipDeviceAttributeMemoryPoolsSupported: hipDeviceAttribute_t = 88;
pub const hipDeviceAttributeVirtualMemoryManagementSupported: hipDeviceAttribute_t = 89;

pub const hipEventDefault: c_uint = 0;
pub const hipEventDisableTiming: c_uint = 2;
pub const hipHostRegisterPortable: c_uint = 1;
pub const hipHostRegisterReadOnly: c_uint = 8;
pub const hipStreamNonBlocking: c_uint = 1;

pub const HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: hipFunction_attribute = 0;
pub const HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: hipFunction_attribute = 1;

pub const hipMemAccessFlagsProtReadWrite: hipMemAccessFlags = 3;
pub const hipMemAllocationTypePinned: hipMemAllocationType = 1;
pub const hipMemHandleTypeNone: hipMemAllocationHandleType = 0;
pub const hipMemHandleTypePosixFileDescriptor: hipMemAllocationHandleType = 1;
pub const hipMemLocationTypeDevice: hipMemLocationType = 1;
pub const hipMemPoolAttrReleaseThreshold: hipMemPoolAttr = 4;
pub const hipMemRangeHandleTypeDmaBufFd: hipMemRangeHandleType = 1;
pub const hipMemcpyDeviceToDevice: hipMemcpyKind = 3;

/// Marks, in a launch's `extra`, that the packed arguments follow, their size, and the end. In the
/// headers these are macros that cast to a pointer.
pub const HIP_LAUNCH_PARAM_BUFFER_POINTER: usize = 1;
pub const HIP_LAUNCH_PARAM_BUFFER_SIZE: usize = 2;
pub const HIP_LAUNCH_PARAM_END: usize = 3;

/// Where `gcnArchName`, a text of 256 bytes, is in what the call writes that a runtime has.
pub const GCN_ARCH_NAME_BYTES: usize = 256;
/// In `hipDeviceProp_tR0600`, from 6.0 on.
pub const GCN_ARCH_NAME_OFFSET_R0600: usize = 1160;
/// In the structure of `hipGetDeviceProperties`, to 5.7.
pub const GCN_ARCH_NAME_OFFSET: usize = 396;

/// Room for the device properties of any version (1472 bytes at most, so far).
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct PropertiesRoom(pub [u8; 8192]);

impl PropertiesRoom {
    pub const EMPTY: PropertiesRoom = PropertiesRoom([0; 8192]);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct dim3 {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipKernelNodeParams {
    pub blockDim: dim3,
    pub extra: *mut *mut c_void,
    pub func: *mut c_void,
    pub gridDim: dim3,
    pub kernelParams: *mut *mut c_void,
    pub sharedMemBytes: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipMemLocation {
    pub type_: hipMemLocationType,
    pub id: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipMemAccessDesc {
    pub location: hipMemLocation,
    pub flags: hipMemAccessFlags,
}

/// What the headers have as a structure in a structure.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipMemAllocationFlags {
    pub compressionType: c_uchar,
    pub gpuDirectRDMACapable: c_uchar,
    pub usage: c_ushort,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipMemAllocationProp {
    pub type_: hipMemAllocationType,
    /// From 7.0 on under a second name, in the plural.
    pub requestedHandleType: hipMemAllocationHandleType,
    pub location: hipMemLocation,
    pub win32HandleMetaData: *mut c_void,
    pub allocFlags: hipMemAllocationFlags,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipMemPoolProps {
    pub allocType: hipMemAllocationType,
    pub handleTypes: hipMemAllocationHandleType,
    pub location: hipMemLocation,
    pub win32SecurityAttributes: *mut c_void,
    /// Before 6.2 the beginning of what is reserved; zero means the same in both.
    pub maxSize: usize,
    pub reserved: [u8; 56],
}

/// Writes the device properties of its version to the first argument.
pub type DeviceProperties = unsafe extern "C" fn(*mut PropertiesRoom, c_int) -> hipError_t;

/// Writes a handle, for descriptors an integer, to where the first argument points.
pub type HandleForAddressRange = unsafe extern "C" fn(
    *mut c_void,
    hipDeviceptr_t,
    usize,
    hipMemRangeHandleType,
    c_ulonglong,
) -> hipError_t;

/// A call that a library lacks: it is too old, or another library altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

macro_rules! calls {
    ($($name:ident($($argument:ty),* $(,)?) -> $result:ty;)*) => {
        /// The calls, looked up.
        #[derive(Clone, Copy, Debug)]
        pub struct Runtime {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// The call that writes device properties and the place of `gcnArchName` in them.
            pub properties: (DeviceProperties, usize),
            /// Runtimes from 7.0 on have it.
            pub hipMemGetHandleForAddressRange: Option<HandleForAddressRange>,
        }

        impl Runtime {
            /// The names of all that is looked up, but for the call that writes properties.
            pub const CALLS: &[&str] = &[$(stringify!($name)),*];

            /// Looks every call up.
            ///
            /// # Errors
            ///
            /// Names the first that is missing.
            ///
            /// # Safety
            ///
            /// The library is the HIP runtime, and is never closed.
            pub unsafe fn look_up(library: &Library) -> Result<Runtime, Missing> {
                Ok(Runtime {
                    // SAFETY: the caller says that this is the HIP runtime, whose headers the types
                    // of the fields follow.
                    $($name: unsafe { symbol(library, stringify!($name)) }?,)*
                    // SAFETY: as above.
                    properties: unsafe { properties(library) }?,
                    // SAFETY: as above.
                    hipMemGetHandleForAddressRange: unsafe {
                        symbol(library, "hipMemGetHandleForAddressRange")
                    }
                    .ok(),
                })
            }
        }
    };
}

calls! {
    hipDeviceCanAccessPeer(*mut c_int, c_int, c_int) -> hipError_t;
    hipDeviceEnablePeerAccess(c_int, c_uint) -> hipError_t;
    hipDeviceGetAttribute(*mut c_int, hipDeviceAttribute_t, c_int) -> hipError_t;
    hipDeviceGetName(*mut c_char, c_int, hipDevice_t) -> hipError_t;
    hipDeviceGetPCIBusId(*mut c_char, c_int, c_int) -> hipError_t;
    hipDeviceTotalMem(*mut usize, hipDevice_t) -> hipError_t;
    hipEventCreateWithFlags(*mut hipEvent_t, c_uint) -> hipError_t;
    hipEventDestroy(hipEvent_t) -> hipError_t;
    hipEventElapsedTime(*mut f32, hipEvent_t, hipEvent_t) -> hipError_t;
    hipEventQuery(hipEvent_t) -> hipError_t;
    hipEventRecord(hipEvent_t, hipStream_t) -> hipError_t;
    hipFree(*mut c_void) -> hipError_t;
    hipFreeAsync(*mut c_void, hipStream_t) -> hipError_t;
    hipFuncGetAttribute(*mut c_int, hipFunction_attribute, hipFunction_t) -> hipError_t;
    hipGetDeviceCount(*mut c_int) -> hipError_t;
    hipGetErrorName(hipError_t) -> *const c_char;
    hipGetErrorString(hipError_t) -> *const c_char;
    hipGraphAddKernelNode(
        *mut hipGraphNode_t,
        hipGraph_t,
        *const hipGraphNode_t,
        usize,
        *const hipKernelNodeParams,
    ) -> hipError_t;
    hipGraphAddMemcpyNode1D(
        *mut hipGraphNode_t,
        hipGraph_t,
        *const hipGraphNode_t,
        usize,
        *mut c_void,
        *const c_void,
        usize,
        hipMemcpyKind,
    ) -> hipError_t;
    hipGraphCreate(*mut hipGraph_t, c_uint) -> hipError_t;
    hipGraphDestroy(hipGraph_t) -> hipError_t;
    hipGraphExecDestroy(hipGraphExec_t) -> hipError_t;
    hipGraphExecKernelNodeSetParams(
        hipGraphExec_t,
        hipGraphNode_t,
        *const hipKernelNodeParams,
    ) -> hipError_t;
    hipGraphExecMemcpyNodeSetParams1D(
        hipGraphExec_t,
        hipGraphNode_t,
        *mut c_void,
        *const c_void,
        usize,
        hipMemcpyKind,
    ) -> hipError_t;
    hipGraphInstantiateWithFlags(*mut hipGraphExec_t, hipGraph_t, c_ulonglong) -> hipError_t;
    hipGraphLaunch(hipGraphExec_t, hipStream_t) -> hipError_t;
    hipHostRegister(*mut c_void, usize, c_uint) -> hipError_t;
    hipHostUnregister(*mut c_void) -> hipError_t;
    hipInit(c_uint) -> hipError_t;
    hipLaunchHostFunc(hipStream_t, hipHostFn_t, *mut c_void) -> hipError_t;
    hipMalloc(*mut *mut c_void, usize) -> hipError_t;
    hipMallocFromPoolAsync(*mut *mut c_void, usize, hipMemPool_t, hipStream_t) -> hipError_t;
    hipMemAddressFree(*mut c_void, usize) -> hipError_t;
    hipMemAddressReserve(
        *mut *mut c_void,
        usize,
        usize,
        *mut c_void,
        c_ulonglong,
    ) -> hipError_t;
    hipMemCreate(
        *mut hipMemGenericAllocationHandle_t,
        usize,
        *const hipMemAllocationProp,
        c_ulonglong,
    ) -> hipError_t;
    hipMemExportToShareableHandle(
        *mut c_void,
        hipMemGenericAllocationHandle_t,
        hipMemAllocationHandleType,
        c_ulonglong,
    ) -> hipError_t;
    hipMemGetInfo(*mut usize, *mut usize) -> hipError_t;
    hipMemImportFromShareableHandle(
        *mut hipMemGenericAllocationHandle_t,
        *mut c_void,
        hipMemAllocationHandleType,
    ) -> hipError_t;
    hipMemMap(
        *mut c_void,
        usize,
        usize,
        hipMemGenericAllocationHandle_t,
        c_ulonglong,
    ) -> hipError_t;
    hipMemPoolCreate(*mut hipMemPool_t, *const hipMemPoolProps) -> hipError_t;
    hipMemPoolDestroy(hipMemPool_t) -> hipError_t;
    hipMemPoolSetAccess(hipMemPool_t, *const hipMemAccessDesc, usize) -> hipError_t;
    hipMemPoolSetAttribute(hipMemPool_t, hipMemPoolAttr, *mut c_void) -> hipError_t;
    hipMemRelease(hipMemGenericAllocationHandle_t) -> hipError_t;
    hipMemSetAccess(*mut c_void, usize, *const hipMemAccessDesc, usize) -> hipError_t;
    hipMemUnmap(*mut c_void, usize) -> hipError_t;
    hipMemcpyDtoDAsync(hipDeviceptr_t, hipDeviceptr_t, usize, hipStream_t) -> hipError_t;
    hipMemcpyDtoHAsync(*mut c_void, hipDeviceptr_t, usize, hipStream_t) -> hipError_t;
    hipMemcpyHtoDAsync(hipDeviceptr_t, *const c_void, usize, hipStream_t) -> hipError_t;
    hipMemcpyPeerAsync(
        *mut c_void,
        c_int,
        *const c_void,
        c_int,
        usize,
        hipStream_t,
    ) -> hipError_t;
    hipMemsetAsync(*mut c_void, c_int, usize, hipStream_t) -> hipError_t;
    hipModuleGetFunction(*mut hipFunction_t, hipModule_t, *const c_char) -> hipError_t;
    hipModuleLaunchKernel(
        hipFunction_t,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        hipStream_t,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> hipError_t;
    hipModuleLoadData(*mut hipModule_t, *const c_void) -> hipError_t;
    hipModuleUnload(hipModule_t) -> hipError_t;
    hipRuntimeGetVersion(*mut c_int) -> hipError_t;
    hipSetDevice(c_int) -> hipError_t;
    hipStreamCreateWithFlags(*mut hipStream_t, c_uint) -> hipError_t;
    hipStreamDestroy(hipStream_t) -> hipError_t;
    hipStreamQuery(hipStream_t) -> hipError_t;
    hipStreamSynchronize(hipStream_t) -> hipError_t;
    hipStreamWaitEvent(hipStream_t, hipEvent_t, c_uint) -> hipError_t;
}

/// Looks one call up.
///
/// # Safety
///
/// `F` is the type of the function of that name, and the library is never closed.
unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, Missing> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<F>(name) };
    symbol.map(|symbol| *symbol).map_err(|_| Missing(name))
}

/// The newest call that writes device properties. Runtimes from 6.0 on have the older one too, with
/// its old structure, which knows less.
///
/// # Safety
///
/// The library is the HIP runtime, and is never closed.
unsafe fn properties(library: &Library) -> Result<(DeviceProperties, usize), Missing> {
    // SAFETY: the caller says that this is the HIP runtime; what is written fits into the room.
    let newer = unsafe { symbol(library, "hipGetDevicePropertiesR0600") };
    if let Ok(newer) = newer {
        return Ok((newer, GCN_ARCH_NAME_OFFSET_R0600));
    }
    // SAFETY: as above.
    let older = unsafe { symbol(library, "hipGetDeviceProperties") }?;
    Ok((older, GCN_ARCH_NAME_OFFSET))
}

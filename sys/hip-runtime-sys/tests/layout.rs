//! Holds the declarations against those that cubecl generated from ROCm's headers: sizes, places of
//! fields, constants, and the types of the calls.
//!
//! Absent: any call. No ROCm is needed: without one, cubecl-hip-sys takes the newest headers it
//! knows; beside one, those of its version, and it does not build if it knows none of that version.

use std::any::{type_name, type_name_of_val};
use std::mem::{align_of, offset_of, size_of};

use cubecl_hip_sys as generated;
use hip_runtime_sys as ours;

macro_rules! same_constants {
    ($($ours:ident = $generated:ident),* $(,)?) => {$(
        assert_eq!(
            i64::from(ours::$ours),
            i64::from(generated::$generated),
            "{}",
            stringify!($ours),
        );
    )*};
}

/// Without paths, and with one name for the type of errors, which is unsigned in the headers.
fn plain(type_name: &str) -> String {
    let mut plain = String::new();
    for part in type_name.split_inclusive([' ', '(', ')', ',', '<', '>']) {
        plain.push_str(part.rsplit("::").next().unwrap_or_default());
    }
    plain.replace("-> u32", "-> i32").replace("(u32) -> *const", "(i32) -> *const")
}

macro_rules! same_calls {
    ($($name:ident($($argument:tt),*)),* $(,)?) => {{
        fn ours_of<F>(_: fn(&ours::Runtime) -> F) -> &'static str {
            type_name::<F>()
        }
        $(
            let theirs: unsafe extern "C" fn($($argument),*) -> _ = generated::$name;
            assert_eq!(
                plain(ours_of(|runtime| runtime.$name)),
                plain(type_name_of_val(&theirs)),
                "{}",
                stringify!($name),
            );
        )*
        [$(stringify!($name)),*]
    }};
}

macro_rules! same_layout {
    ($name:ident { $($field:ident),* $(,)? }) => {
        assert_eq!(size_of::<ours::$name>(), size_of::<generated::$name>());
        assert_eq!(align_of::<ours::$name>(), align_of::<generated::$name>());
        $(assert_eq!(
            offset_of!(ours::$name, $field),
            offset_of!(generated::$name, $field),
            "{}",
            stringify!($field),
        );)*
    };
}

#[test]
fn structures_have_the_layout_of_the_headers() {
    same_layout!(dim3 { x, y, z });
    same_layout!(hipMemLocation { type_, id });
    same_layout!(hipMemAccessDesc { location, flags });
    same_layout!(hipMemAllocationProp { type_, location, win32HandleMetaData, allocFlags });
    same_layout!(hipMemPoolProps {
        allocType,
        handleTypes,
        location,
        win32SecurityAttributes,
        maxSize,
        reserved,
    });
    same_layout!(hipKernelNodeParams {
        blockDim,
        extra,
        func,
        gridDim,
        kernelParams,
        sharedMemBytes,
    });
}

#[test]
fn device_properties_fit_and_name_the_architecture_where_it_is() {
    type Properties = generated::hipDeviceProp_tR0600;
    assert!(size_of::<Properties>() <= size_of::<ours::PropertiesRoom>());
    assert!(align_of::<Properties>() <= align_of::<ours::PropertiesRoom>());
    assert_eq!(offset_of!(Properties, gcnArchName), ours::GCN_ARCH_NAME_OFFSET_R0600);
    let of = |properties: &Properties| size_of_val(&properties.gcnArchName);
    // SAFETY: all bytes of the structure may be zero.
    let properties = unsafe { std::mem::zeroed::<Properties>() };
    assert_eq!(of(&properties), ours::GCN_ARCH_NAME_BYTES);
}

#[test]
fn constants_are_those_of_the_headers() {
    same_constants!(
        hipSuccess = hipError_t_hipSuccess,
        hipErrorInvalidValue = hipError_t_hipErrorInvalidValue,
        hipErrorOutOfMemory = hipError_t_hipErrorOutOfMemory,
        hipErrorNotInitialized = hipError_t_hipErrorNotInitialized,
        hipErrorDeinitialized = hipError_t_hipErrorDeinitialized,
        hipErrorInsufficientDriver = hipError_t_hipErrorInsufficientDriver,
        hipErrorInvalidDeviceFunction = hipError_t_hipErrorInvalidDeviceFunction,
        hipErrorNoDevice = hipError_t_hipErrorNoDevice,
        hipErrorInvalidDevice = hipError_t_hipErrorInvalidDevice,
        hipErrorInvalidImage = hipError_t_hipErrorInvalidImage,
        hipErrorNoBinaryForGpu = hipError_t_hipErrorNoBinaryForGpu,
        hipErrorECCNotCorrectable = hipError_t_hipErrorECCNotCorrectable,
        hipErrorPeerAccessUnsupported = hipError_t_hipErrorPeerAccessUnsupported,
        hipErrorInvalidKernelFile = hipError_t_hipErrorInvalidKernelFile,
        hipErrorInvalidSource = hipError_t_hipErrorInvalidSource,
        hipErrorFileNotFound = hipError_t_hipErrorFileNotFound,
        hipErrorSharedObjectSymbolNotFound = hipError_t_hipErrorSharedObjectSymbolNotFound,
        hipErrorSharedObjectInitFailed = hipError_t_hipErrorSharedObjectInitFailed,
        hipErrorNotFound = hipError_t_hipErrorNotFound,
        hipErrorNotReady = hipError_t_hipErrorNotReady,
        hipErrorIllegalAddress = hipError_t_hipErrorIllegalAddress,
        hipErrorLaunchTimeOut = hipError_t_hipErrorLaunchTimeOut,
        hipErrorPeerAccessAlreadyEnabled = hipError_t_hipErrorPeerAccessAlreadyEnabled,
        hipErrorContextIsDestroyed = hipError_t_hipErrorContextIsDestroyed,
        hipErrorAssert = hipError_t_hipErrorAssert,
        hipErrorLaunchFailure = hipError_t_hipErrorLaunchFailure,
        hipErrorNotSupported = hipError_t_hipErrorNotSupported,
        hipErrorUnknown = hipError_t_hipErrorUnknown,
        hipDeviceAttributeIntegrated = hipDeviceAttribute_t_hipDeviceAttributeIntegrated,
        hipDeviceAttributeMaxBlockDimX = hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimX,
        hipDeviceAttributeMaxBlockDimY = hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimY,
        hipDeviceAttributeMaxBlockDimZ = hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimZ,
        hipDeviceAttributeMaxGridDimX = hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimX,
        hipDeviceAttributeMaxGridDimY = hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimY,
        hipDeviceAttributeMaxGridDimZ = hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimZ,
        hipDeviceAttributeMaxThreadsPerBlock =
            hipDeviceAttribute_t_hipDeviceAttributeMaxThreadsPerBlock,
        hipDeviceAttributeMaxSharedMemoryPerBlock =
            hipDeviceAttribute_t_hipDeviceAttributeMaxSharedMemoryPerBlock,
        hipDeviceAttributeVirtualMemoryManagementSupported =
            hipDeviceAttribute_t_hipDeviceAttributeVirtualMemoryManagementSupported,
        hipDeviceAttributeMemoryPoolsSupported =
            hipDeviceAttribute_t_hipDeviceAttributeMemoryPoolsSupported,
        hipEventDefault = hipEventDefault,
        hipEventDisableTiming = hipEventDisableTiming,
        hipHostRegisterPortable = hipHostRegisterPortable,
        hipStreamNonBlocking = hipStreamNonBlocking,
        HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK =
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
        HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES =
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        hipMemAccessFlagsProtReadWrite = hipMemAccessFlags_hipMemAccessFlagsProtReadWrite,
        hipMemAllocationTypePinned = hipMemAllocationType_hipMemAllocationTypePinned,
        hipMemHandleTypePosixFileDescriptor =
            hipMemAllocationHandleType_hipMemHandleTypePosixFileDescriptor,
        hipMemHandleTypeNone = hipMemAllocationHandleType_hipMemHandleTypeNone,
        hipMemLocationTypeDevice = hipMemLocationType_hipMemLocationTypeDevice,
        hipMemPoolAttrReleaseThreshold = hipMemPoolAttr_hipMemPoolAttrReleaseThreshold,
        hipMemRangeHandleTypeDmaBufFd = hipMemRangeHandleType_hipMemRangeHandleTypeDmaBufFd,
        hipMemcpyDeviceToDevice = hipMemcpyKind_hipMemcpyDeviceToDevice,
    );
}

fn memory_calls() -> Vec<&'static str> {
    let compared = same_calls!(
        hipMemAddressFree(_, _),
        hipMemAddressReserve(_, _, _, _, _),
        hipMemCreate(_, _, _, _),
        hipMemExportToShareableHandle(_, _, _, _),
        hipMemGetInfo(_, _),
        hipMemImportFromShareableHandle(_, _, _),
        hipMemMap(_, _, _, _, _),
        hipMemPoolCreate(_, _),
        hipMemPoolDestroy(_),
        hipMemPoolSetAccess(_, _, _),
        hipMemPoolSetAttribute(_, _, _),
        hipMemRelease(_),
        hipMemSetAccess(_, _, _, _),
        hipMemUnmap(_, _),
        hipMemcpyDtoDAsync(_, _, _, _),
        hipMemcpyDtoHAsync(_, _, _, _),
        hipMemcpyHtoDAsync(_, _, _, _),
        hipMemcpyPeerAsync(_, _, _, _, _, _),
        hipMemsetAsync(_, _, _, _),
    );
    compared.to_vec()
}

#[test]
fn calls_have_the_types_of_the_headers() {
    let compared = same_calls!(
        hipDeviceCanAccessPeer(_, _, _),
        hipDeviceEnablePeerAccess(_, _),
        hipDeviceGetAttribute(_, _, _),
        hipDeviceGetName(_, _, _),
        hipDeviceGetPCIBusId(_, _, _),
        hipDeviceTotalMem(_, _),
        hipEventCreateWithFlags(_, _),
        hipEventDestroy(_),
        hipEventElapsedTime(_, _, _),
        hipEventQuery(_),
        hipEventRecord(_, _),
        hipFree(_),
        hipFreeAsync(_, _),
        hipFuncGetAttribute(_, _, _),
        hipGetDeviceCount(_),
        hipGetErrorName(_),
        hipGetErrorString(_),
        hipGraphAddKernelNode(_, _, _, _, _),
        hipGraphAddMemcpyNode1D(_, _, _, _, _, _, _, _),
        hipGraphCreate(_, _),
        hipGraphDestroy(_),
        hipGraphExecDestroy(_),
        hipGraphExecKernelNodeSetParams(_, _, _),
        hipGraphExecMemcpyNodeSetParams1D(_, _, _, _, _, _),
        hipGraphInstantiateWithFlags(_, _, _),
        hipGraphLaunch(_, _),
        hipHostRegister(_, _, _),
        hipHostUnregister(_),
        hipInit(_),
        hipLaunchHostFunc(_, _, _),
        hipMalloc(_, _),
        hipMallocFromPoolAsync(_, _, _, _),
        hipModuleGetFunction(_, _, _),
        hipModuleLaunchKernel(_, _, _, _, _, _, _, _, _, _, _),
        hipModuleLoadData(_, _),
        hipModuleUnload(_),
        hipRuntimeGetVersion(_),
        hipSetDevice(_),
        hipStreamCreateWithFlags(_, _),
        hipStreamDestroy(_),
        hipStreamQuery(_),
        hipStreamSynchronize(_),
        hipStreamWaitEvent(_, _, _),
    );
    let memory = memory_calls();
    let is_of_memory = |name: &&str| name.starts_with("hipMem");
    let (of_memory, others): (Vec<&str>, Vec<&str>) =
        ours::Runtime::CALLS.iter().partition(|name| is_of_memory(name));
    assert_eq!((&compared[..], &memory[..]), (&others[..], &of_memory[..]));
    let properties: unsafe extern "C" fn(_, _) -> _ = generated::hipGetDevicePropertiesR0600;
    let theirs = plain(type_name_of_val(&properties)).replace("hipDeviceProp_tR0600", "Room");
    let ours = plain(type_name::<ours::DeviceProperties>()).replace("PropertiesRoom", "Room");
    assert_eq!(ours, theirs);
    let export: unsafe extern "C" fn(_, _, _, _, _) -> _ =
        generated::hipMemGetHandleForAddressRange;
    let ours = plain(type_name::<ours::HandleForAddressRange>());
    assert_eq!(ours, plain(type_name_of_val(&export)));
}

#[test]
fn types_are_compared_without_their_paths() {
    assert_eq!(plain("unsafe extern \"C\" fn(*mut a::b::C, i32) -> u32"), {
        "unsafe extern \"C\" fn(*mut C, i32) -> i32"
    });
    assert_eq!(plain("fn(*mut a::C) -> i32"), plain("fn(*mut b::C) -> u32"));
    assert_ne!(plain("fn(*mut a::C) -> i32"), plain("fn(*mut a::D) -> i32"));
    assert_ne!(plain("fn(*mut a::C) -> i32"), plain("fn(*const a::C) -> i32"));
}

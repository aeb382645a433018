//! Names and sentences of the errors, for the drivers' own calls that tell them.

use std::ffi::CStr;

const ERRORS: &[(i32, &CStr, &CStr, &CStr)] = &[
    (0, c"CUDA_SUCCESS", c"hipSuccess", c"no error"),
    (1, c"CUDA_ERROR_INVALID_VALUE", c"hipErrorInvalidValue", c"invalid argument"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"hipErrorOutOfMemory", c"out of memory"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED", c"hipErrorNotInitialized", c"initialization error"),
    (34, c"CUDA_ERROR_STUB_LIBRARY", c"hipErrorStub", c"the library is a stub"),
    (100, c"CUDA_ERROR_NO_DEVICE", c"hipErrorNoDevice", c"no device is detected"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"hipErrorInvalidDevice", c"invalid device ordinal"),
    (200, c"CUDA_ERROR_INVALID_IMAGE", c"hipErrorInvalidImage", c"invalid kernel image"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT", c"hipErrorInvalidContext", c"invalid device context"),
    (209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"hipErrorNoBinaryForGpu", c"no binary for the device"),
    (
        214,
        c"CUDA_ERROR_ECC_UNCORRECTABLE",
        c"hipErrorECCNotCorrectable",
        c"uncorrectable ECC error",
    ),
    (
        217,
        c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        c"hipErrorPeerAccessUnsupported",
        c"no peer access",
    ),
    (218, c"CUDA_ERROR_INVALID_PTX", c"hipErrorInvalidKernelFile", c"PTX compilation failed"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"hipErrorUnknown", c"unsupported PTX version"),
    (400, c"CUDA_ERROR_INVALID_HANDLE", c"hipErrorInvalidHandle", c"invalid resource handle"),
    (500, c"CUDA_ERROR_NOT_FOUND", c"hipErrorNotFound", c"named symbol not found"),
    (600, c"CUDA_ERROR_NOT_READY", c"hipErrorNotReady", c"device not ready"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"hipErrorIllegalAddress", c"illegal memory access"),
    (
        701,
        c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        c"hipErrorLaunchOutOfResources",
        c"too many resources",
    ),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT", c"hipErrorLaunchTimeOut", c"the launch timed out"),
    (
        704,
        c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
        c"hipErrorPeerAccessAlreadyEnabled",
        c"enabled",
    ),
    (710, c"CUDA_ERROR_ASSERT", c"hipErrorAssert", c"device-side assert triggered"),
    (
        712,
        c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        c"hipErrorHostMemoryAlreadyRegistered",
        c"registered",
    ),
    (
        713,
        c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        c"hipErrorHostMemoryNotRegistered",
        c"not registered",
    ),
    (715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"hipErrorUnknown", c"illegal instruction"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"hipErrorUnknown", c"misaligned address"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED", c"hipErrorLaunchFailure", c"unspecified launch failure"),
    (800, c"CUDA_ERROR_NOT_PERMITTED", c"hipErrorNotPermitted", c"operation not permitted"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED", c"hipErrorNotSupported", c"operation not supported"),
    (999, c"CUDA_ERROR_UNKNOWN", c"hipErrorUnknown", c"unknown error"),
];

fn find(code: i32) -> Option<&'static (i32, &'static CStr, &'static CStr, &'static CStr)> {
    ERRORS.iter().find(|error| error.0 == code)
}

pub(crate) fn name(code: i32) -> Option<&'static CStr> {
    find(code).map(|error| if crate::FACE.has_contexts { error.1 } else { error.2 })
}

pub(crate) fn sentence(code: i32) -> Option<&'static CStr> {
    find(code).map(|error| error.3)
}

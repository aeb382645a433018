//! Holds the declarations against those that cubecl generated from ROCm's headers: sizes, places of
//! fields, constants, and the types of the calls.
//!
//! Absent: any call. No ROCm is needed: without it cubecl-hip-sys takes the newest headers it knows,
//! and with one those of its version.

#![expect(clippy::cast_possible_wrap, reason = "C's enums are unsigned there and codes signed here")]

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

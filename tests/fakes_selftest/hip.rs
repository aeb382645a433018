//! The HIP fake: the same machine without contexts.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use super::driver::{Handle, Library, call, ok, packed};
use super::scenario;

/// A binary of the compilers' form, with one kernel.
fn image(arch: &str, name: &str, parameters: &str) -> CString {
    let text =
        format!("\x7fELF fake device code\narch {arch}\nkernel {name} 0 0 {parameters}\nend\n");
    CString::new(text).expect("no zero bytes")
}

fn stream(hip: Library) -> Handle {
    let mut stream = ptr::null_mut();
    ok(call!(hip, hipStreamCreateWithFlags(&raw mut stream => *mut Handle, 1 => c_uint)));
    stream
}

fn load(hip: Library, image: &CStr) -> (c_int, Handle) {
    let mut module = ptr::null_mut();
    let at = image.as_ptr().cast();
    let code = call!(hip, hipModuleLoadData(&raw mut module => *mut Handle, at => *const c_void));
    (code, module)
}

fn launch(hip: Library, function: Handle, arguments: &[u8], stream: Handle, end: usize) -> c_int {
    let mut bytes = arguments.len();
    let mut extra: [Handle; 5] = [
        ptr::without_provenance_mut(1),
        arguments.as_ptr().cast_mut().cast(),
        ptr::without_provenance_mut(2),
        (&raw mut bytes).cast(),
        ptr::without_provenance_mut(end),
    ];
    call!(hip, hipModuleLaunchKernel(
        function => Handle, 1 => c_uint, 1 => c_uint, 1 => c_uint, 4 => c_uint, 1 => c_uint,
        1 => c_uint, 0 => c_uint, stream => Handle, ptr::null_mut() => *mut Handle,
        extra.as_mut_ptr() => *mut Handle))
}

fn function(hip: Library, module: Handle, name: &CStr) -> Handle {
    let mut function = ptr::null_mut();
    ok(call!(hip, hipModuleGetFunction(
        &raw mut function => *mut Handle, module => Handle, name.as_ptr() => *const c_char)));
    function
}

fn fill_and_read_back() {
    let hip = Library::open("libamdhip64.so.6");
    ok(call!(hip, hipInit(0 => c_uint)));
    ok(call!(hip, hipSetDevice(1 => c_int)));
    let mut properties = [0_u8; 1472];
    let place: *mut u8 = properties.as_mut_ptr();
    ok(call!(hip, hipGetDevicePropertiesR0600(place => *mut u8, 1 => c_int)));
    let arch = CStr::from_bytes_until_nul(&properties[1160..]).expect("text");
    assert_eq!(arch, c"gfx90a:sramecc+:xnack-");
    let stream = stream(hip);
    let mut pool_properties = [0_i32; 22];
    (pool_properties[0], pool_properties[2], pool_properties[3]) = (1, 1, 1);
    let (mut pool, mut at, mut down) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    ok(call!(hip, hipMemPoolCreate(
        &raw mut pool => *mut Handle, pool_properties.as_ptr() => *const i32)));
    ok(call!(hip, hipMallocFromPoolAsync(
        &raw mut at => *mut Handle, 16 => usize, pool => Handle, stream => Handle)));
    ok(call!(hip, hipHostMalloc(&raw mut down => *mut Handle, 16 => usize, 1 => c_uint)));
    let (code, module) = load(hip, &image("gfx90a:sramecc+:xnack-", "fill_", "pi"));
    ok(code);
    let fill = function(hip, module, c"fill_");
    ok(launch(hip, fill, &packed(&[at.addr() as u64], &[9]), stream, 3));
    ok(call!(hip, hipMemcpyDtoHAsync(
        down => Handle, at => Handle, 16 => usize, stream => Handle)));
    ok(call!(hip, hipFreeAsync(at => Handle, stream => Handle)));
    ok(call!(hip, hipStreamSynchronize(stream => Handle)));
    // SAFETY: the fake gave as many bytes, which the copy has filled.
    assert_eq!(unsafe { std::slice::from_raw_parts(down.cast::<i32>(), 4) }, [9; 4]);
    ok(call!(hip, hipHostFree(down => Handle)));
    ok(call!(hip, hipMemPoolDestroy(pool => Handle)));
    ok(call!(hip, hipModuleUnload(module => Handle)));
    ok(call!(hip, hipStreamDestroy(stream => Handle)));
}

#[test]
fn kernel_on_the_second_device_computes() {
    let devices = [("FAKE_HIP_DEVICES", "2")];
    let Some(watch) = scenario(&["hip"], &devices, || {
        fill_and_read_back();
    }) else {
        return;
    };
    watch.assert_clean();
    assert!(watch.ledger().contains("exit libamdhip64.so.6"), "{}", watch.ledger());
}

#[test]
fn stream_left_behind_leaks_at_exit() {
    let Some(watch) = scenario(&["hip"], &[], || {
        stream(Library::open("libamdhip64.so.6"));
    }) else {
        return;
    };
    assert!(watch.report().contains("the process exits with contexts=0 streams=1"));
}

#[test]
fn launch_options_with_the_end_of_cuda_are_reported() {
    let Some(watch) = scenario(&["hip"], &[], || {
        let hip = Library::open("libamdhip64.so.6");
        let (_, module) = load(hip, &image("gfx90a", "fill_", "pi"));
        let fill = function(hip, module, c"fill_");
        assert_eq!(launch(hip, fill, &[0; 12], stream(hip), 0), 1);
    }) else {
        return;
    };
    assert!(watch.report().contains("0 in the list of extra launch options"));
}

#[test]
fn code_for_another_device_is_refused() {
    let Some(watch) = scenario(&["hip"], &[], || {
        let hip = Library::open("libamdhip64.so.6");
        for (arch, expected) in [("gfx90a", 0), ("gfx942", 209), ("gfx90a:xnack+", 209)] {
            let (code, module) = load(hip, &image(arch, "fill_", "pi"));
            assert_eq!(code, expected, "{arch}");
            if code == 0 {
                ok(call!(hip, hipModuleUnload(module => Handle)));
            }
        }
        assert_eq!(load(hip, c"\x7fELF something else").0, 200);
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn machine_without_a_device_says_so() {
    let Some(watch) = scenario(&["hip"], &[("FAKE_HIP_DEVICES", "0")], || {
        let hip = Library::open("libamdhip64.so.6");
        let mut count = 0;
        assert_eq!(call!(hip, hipInit(0 => c_uint)), 101);
        assert_eq!(call!(hip, hipGetDeviceCount(&raw mut count => *mut c_int)), 100);
    }) else {
        return;
    };
    watch.assert_clean();
}

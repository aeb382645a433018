//! The fake compilers, and that the drivers load what they make.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;

use super::driver::{Cuda, Handle, Library, call, ok, packed};
use super::support::fakes::{self, Watch};
use super::support::skip::skip;
use super::{run, scenario};

const FILL: &str = "#include <cuda_fp16.h>\nextern \"C\" __global__ void __launch_bounds__(32) \
                    fill_32(int* a, const int n) {\n  __shared__ float memory[8];\n}";

fn text(text: &str) -> CString {
    CString::new(text).expect("no zero bytes")
}

/// Compiles with NVRTC: code, binary or PTX, log.
fn nvrtc(source: &str, headers: &[&str], arch: &str) -> (c_int, Vec<u8>, String) {
    let library = Library::open("libnvrtc.so.13");
    let (source, option) = (text(source), text(&format!("--gpu-architecture={arch}")));
    let names: Vec<CString> = headers.iter().map(|name| text(name)).collect();
    let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let (mut program, count) = (ptr::null_mut(), c_int::try_from(names.len()).expect("few"));
    ok(call!(library, nvrtcCreateProgram(
        &raw mut program => *mut Handle, source.as_ptr() => *const c_char,
        c"kernel.cu".as_ptr() => *const c_char, count => c_int,
        names.as_ptr() => *const *const c_char, names.as_ptr() => *const *const c_char)));
    let options = [option.as_ptr()];
    let code = call!(library, nvrtcCompileProgram(
        program => Handle, 1 => c_int, options.as_ptr() => *const *const c_char));
    let mut size = 0;
    ok(call!(library, nvrtcGetCUBINSize(program => Handle, &raw mut size => *mut usize)));
    let mut binary = vec![0_u8; size];
    if size > 0 {
        ok(call!(library, nvrtcGetCUBIN(program => Handle, binary.as_mut_ptr() => *mut u8)));
    } else if code == 0 {
        ok(call!(library, nvrtcGetPTXSize(program => Handle, &raw mut size => *mut usize)));
        binary.resize(size, 0);
        ok(call!(library, nvrtcGetPTX(program => Handle, binary.as_mut_ptr() => *mut u8)));
    }
    ok(call!(library, nvrtcGetProgramLogSize(program => Handle, &raw mut size => *mut usize)));
    let mut log = vec![0_u8; size];
    ok(call!(library, nvrtcGetProgramLog(program => Handle, log.as_mut_ptr() => *mut u8)));
    assert_eq!(log.pop(), Some(0));
    ok(call!(library, nvrtcDestroyProgram(&raw mut program => *mut Handle)));
    assert!(program.is_null());
    (code, binary, String::from_utf8(log).expect("text"))
}

#[test]
fn source_through_nvrtc_runs_on_the_device() {
    let Some(watch) = scenario(&["cuda", "nvrtc"], &[], || {
        for arch in ["sm_90", "compute_90"] {
            let (code, binary, log) = nvrtc(FILL, &["cuda_fp16.h"], arch);
            assert_eq!((code, log.as_str()), (0, ""));
            let cuda = Cuda::start();
            let (stream, at, down) = (cuda.stream(), cuda.alloc(128), cuda.pinned(32));
            let image = CString::from_vec_with_nul(binary).expect("a zero byte at its end");
            let (code, module) = cuda.load(&image);
            ok(code);
            let fill = cuda.function(module, "fill_32");
            for (attribute, expected) in [(0, 32), (1, 32)] {
                let mut value = 0;
                ok(call!(cuda.library, cuFuncGetAttribute(
                    &raw mut value => *mut c_int, attribute => c_int, fill => Handle)));
                assert_eq!(value, expected);
            }
            ok(cuda.launch(fill, (1, 32), &packed(&[at], &[3]), stream));
            ok(cuda.copy_out(down, at, stream));
            ok(cuda.synchronize(stream));
            assert_eq!(down, [3; 32]);
            ok(cuda.free(at));
            ok(cuda.unpin(down));
            cuda.unload(module);
            cuda.drop_stream(stream);
            cuda.end();
        }
    }) else {
        return;
    };
    watch.assert_clean();
    assert!(watch.ledger().contains("exit libnvrtc.so.13"), "{}", watch.ledger());
}

#[test]
fn source_that_is_wrong_gets_a_log_with_the_line() {
    let Some(watch) = scenario(&["nvrtc"], &[], || {
        let cases = [
            ("int a;\n#error no luck\n", "kernel.cu(2): error: #error directive: no luck"),
            ("void f() {\n", "kernel.cu(2): error: expected a \"}\""),
            ("}\n", "kernel.cu(1): error: expected a declaration"),
            ("#include \"/etc/passwd\"\n", "cannot open source file \"/etc/passwd\""),
        ];
        for (source, expected) in cases {
            let (code, binary, log) = nvrtc(source, &[], "sm_90");
            assert_eq!(code, 6);
            assert!(log.contains(expected) && binary.is_empty(), "{log}");
        }
        assert_eq!(nvrtc("", &[], "sm_20").0, 5);
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn binary_for_another_device_is_refused() {
    let Some(watch) = scenario(&["cuda", "nvrtc"], &[], || {
        let (code, binary, _) = nvrtc(FILL, &["cuda_fp16.h"], "sm_80");
        ok(code);
        let cuda = Cuda::start();
        let image = CString::from_vec_with_nul(binary).expect("a zero byte at its end");
        assert_eq!(cuda.load(&image).0, 209);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn program_left_behind_leaks() {
    let Some(watch) = scenario(&["nvrtc"], &[], || {
        let library = Library::open("libnvrtc.so.13");
        let (mut program, none) = (ptr::null_mut(), ptr::null());
        ok(call!(library, nvrtcCreateProgram(
            &raw mut program => *mut Handle, c"".as_ptr() => *const c_char,
            ptr::null() => *const c_char, 0 => c_int, none => *const *const c_char,
            none => *const *const c_char)));
    }) else {
        return;
    };
    assert!(watch.report().contains("programs=1"), "{}", watch.report());
}

const HIP_FILL: &str = "extern \"C\" __attribute__((global)) void \
                        __attribute__((amdgpu_flat_work_group_size(1, 64)))\
                        fill_64(int* a, int n) {}";

/// The numbers of a version: language, and the three actions.
type Numbers = (c_int, [c_int; 3]);

/// Compiles with comgr: binary, or log.
fn comgr(source: &str, (language, actions): Numbers) -> Result<Vec<u8>, Vec<u8>> {
    let library = Library::open("libamd_comgr.so.2");
    let (mut data, mut info) = (0_u64, 0_u64);
    ok(call!(library, amd_comgr_create_data(1 => c_int, &raw mut data => *mut u64)));
    ok(call!(library, amd_comgr_set_data(
        data => u64, source.len() => usize, source.as_ptr() => *const u8)));
    ok(call!(library, amd_comgr_set_data_name(
        data => u64, c"kernel.hip".as_ptr() => *const c_char)));
    ok(call!(library, amd_comgr_create_action_info(&raw mut info => *mut u64)));
    ok(call!(library, amd_comgr_action_info_set_language(info => u64, language => c_int)));
    let isa = c"amdgcn-amd-amdhsa--gfx90a:sramecc+:xnack-";
    ok(call!(library, amd_comgr_action_info_set_isa_name(
        info => u64, isa.as_ptr() => *const c_char)));
    ok(call!(library, amd_comgr_action_info_set_logging(info => u64, true => bool)));
    let mut sets = [0_u64; 4];
    for set in &mut sets {
        ok(call!(library, amd_comgr_create_data_set(&raw mut *set => *mut u64)));
    }
    ok(call!(library, amd_comgr_data_set_add(sets[0] => u64, data => u64)));
    ok(call!(library, amd_comgr_release_data(data => u64)));
    let mut result = (0, 8);
    for (step, action) in actions.into_iter().enumerate() {
        let (from, to) = (sets[step], sets[step + 1]);
        let code = call!(library, amd_comgr_do_action(
            action => c_int, info => u64, from => u64, to => u64));
        result.0 = to;
        if code != 0 {
            result.1 = 5;
            break;
        }
    }
    let (mut made, mut size) = (0_u64, 0_usize);
    ok(call!(library, amd_comgr_action_data_get_data(
        result.0 => u64, result.1 => c_int, 0 => usize, &raw mut made => *mut u64)));
    let none: *mut c_void = ptr::null_mut();
    ok(call!(library, amd_comgr_get_data(
        made => u64, &raw mut size => *mut usize, none => *mut c_void)));
    let mut bytes = vec![0_u8; size];
    ok(call!(library, amd_comgr_get_data(
        made => u64, &raw mut size => *mut usize, bytes.as_mut_ptr() => *mut u8)));
    ok(call!(library, amd_comgr_release_data(made => u64)));
    ok(call!(library, amd_comgr_destroy_action_info(info => u64)));
    for set in sets {
        ok(call!(library, amd_comgr_destroy_data_set(set => u64)));
    }
    if result.1 == 8 { Ok(bytes) } else { Err(bytes) }
}

fn compile_for_hip(numbers: Numbers) {
    let binary = comgr(HIP_FILL, numbers).expect("it compiles");
    let hip = Library::open("libamdhip64.so.6");
    let mut module: Handle = ptr::null_mut();
    ok(call!(hip, hipModuleLoadData(
        &raw mut module => *mut Handle, binary.as_ptr().cast() => *const c_void)));
    ok(call!(hip, hipModuleUnload(module => Handle)));
    let log = comgr("#error no luck", numbers).expect_err("it does not");
    let log = String::from_utf8(log).expect("text");
    assert!(log.contains("kernel.hip:1:1: error: no luck"), "{log}");
}

#[test]
fn source_through_comgr_is_loaded_by_hip() {
    let Some(watch) = scenario(&["hip", "comgr"], &[], || compile_for_hip((4, [15, 6, 9]))) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn third_version_of_comgr_counts_differently() {
    let version = [("FAKE_COMGR_VERSION", "3000")];
    let Some(watch) = scenario(&["hip", "comgr"], &version, || compile_for_hip((3, [12, 4, 7])))
    else {
        return;
    };
    watch.assert_clean();
}

/// Sums of four, through shared memory, and the same in half precision.
const REAL: &str = "#include <cuda_fp16.h>\n#define INFINITY (__int_as_float(0x7f800000))\n\
    extern \"C\" __global__ void __launch_bounds__(4) \
    r_4(float* data0, float* data1, const int n) {\n\
      __shared__ __align__(16) float temp[4];\n\
      int lidx0 = threadIdx.x;\n\
      *(temp+lidx0) = (float)((half)(*(data1+(blockIdx.x*4+lidx0))))*n;\n\
      __syncthreads();\n\
      if (lidx0 == 0) {\n\
        float4 all = *((float4*)(temp));\n\
        *(data0+blockIdx.x) = (all.x+all.y)+(all.z+all.w);\n\
      }\n\
    }";

fn run_real_kernel() {
    let (code, binary, log) = nvrtc(REAL, &["cuda_fp16.h"], "sm_90");
    assert_eq!((code, log.as_str()), (0, ""));
    let cuda = Cuda::start();
    let (stream, to, from) = (cuda.stream(), cuda.alloc(8), cuda.alloc(32));
    let (up, down) = (cuda.pinned(8), cuda.pinned(2));
    for (word, value) in up.iter_mut().zip([0.5_f32, 1.0, 2.0, 4.0, 8.0, 16.0, 0.1, 65504.0]) {
        *word = value.to_bits().cast_signed();
    }
    let image = CString::from_vec_with_nul(binary).expect("a zero byte at its end");
    let (code, module) = cuda.load(&image);
    ok(code);
    let sum = cuda.function(module, "r_4");
    ok(cuda.copy_in(from, up, stream));
    let event = cuda.event();
    ok(call!(cuda.library, cuEventRecord(event => Handle, stream => Handle)));
    ok(call!(cuda.library, cuEventDestroy_v2(event => Handle)));
    ok(cuda.launch(sum, (2, 4), &packed(&[to, from], &[2]), stream));
    ok(cuda.copy_out(down, to, stream));
    ok(cuda.synchronize(stream));
    let sums = [down[0], down[1]].map(|bits| f32::from_bits(bits.cast_unsigned()));
    // A tenth is 0.0999755859375 in half precision.
    assert_eq!(sums, [15.0, 2.0 * (24.0 + (0.099_975_586 + 65504.0))]);
    for at in [to, from] {
        ok(cuda.free(at));
    }
    ok(cuda.unpin(up));
    ok(cuda.unpin(down));
    cuda.unload(module);
    cuda.drop_stream(stream);
    cuda.end();
}

#[test]
fn real_kernel_with_a_barrier_computes_where_there_is_a_compiler() {
    if std::process::Command::new("g++").arg("--version").output().is_err() {
        skip("real kernels", "there is no g++");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_string_lossy().into_owned();
    let variables = [("FAKE_GPU_NATIVE", path.as_str())];
    let Some(watch) = scenario(&["cuda", "nvrtc"], &variables, || {
        run_real_kernel();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn library_that_carries_settings_needs_no_environment() {
    let folder = tempfile::tempdir().expect("a folder");
    fakes::with_settings("nvrtc", "VERSION=12040;ARCHS=20", folder.path());
    let watch = Watch::at(vec![folder.path().to_owned()]);
    let Some(watch) = run(watch, &[], || {
        let library = Library::open("libnvrtc.so.13");
        let (mut major, mut minor) = (0, 0);
        let places = (&raw mut major, &raw mut minor);
        ok(call!(library, nvrtcVersion(places.0 => *mut c_int, places.1 => *mut c_int)));
        assert_eq!((major, minor), (12, 4));
        assert_eq!(nvrtc("", &[], "sm_20").0, 0);
    }) else {
        return;
    };
    watch.assert_clean();
}

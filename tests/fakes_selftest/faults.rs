//! Faults of kernels, injected errors, and machines that lack something.

use std::ffi::{c_int, c_uint};
use std::ptr;

use super::driver::{Cuda, Handle, Library, call, ok, packed};
use super::scenario;

#[test]
fn fault_of_a_kernel_sticks_to_its_context_alone() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let codes = [
            ("illegal_address", 700),
            ("misaligned", 716),
            ("assert_fails", 710),
            ("illegal_instruction", 715),
            ("ecc_error", 214),
            ("launch_timeout", 702),
        ];
        let sound = Cuda::start();
        let stream = sound.stream();
        for (name, expected) in codes {
            let lost = Cuda::start();
            let own = lost.stream();
            let (module, function) = lost.kernel(name, "");
            ok(lost.launch(function, (1, 1), &[], own));
            assert_eq!(lost.synchronize(own), expected, "{name}");
            assert_eq!(lost.synchronize(own), expected, "{name} again");
            let code = call!(lost.library, cuModuleUnload(module => Handle));
            assert_eq!(code, expected);
            lost.end();
            sound.make_current();
            ok(sound.synchronize(stream));
        }
        sound.drop_stream(stream);
        sound.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn access_beyond_the_allocation_by_a_kernel_is_a_fault() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        for (offset, threads, expected) in [(0, 5, 700), (2, 1, 716)] {
            let cuda = Cuda::start();
            let (stream, at) = (cuda.stream(), cuda.alloc(16));
            let (_, fill) = cuda.kernel("fill_", "p");
            ok(cuda.launch(fill, (1, threads), &packed(&[at + offset], &[]), stream));
            assert_eq!(cuda.synchronize(stream), expected);
            cuda.end();
        }
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn fault_of_the_whole_process_takes_the_other_context() {
    let variables = [("FAKE_GPU_FAULT", "process")];
    let Some(watch) = scenario(&["cuda"], &variables, || {
        let other = Cuda::start();
        let stream = other.stream();
        let lost = Cuda::start();
        let own = lost.stream();
        let (_, function) = lost.kernel("illegal_address", "");
        ok(lost.launch(function, (1, 1), &[], own));
        assert_eq!(lost.synchronize(own), 700);
        lost.end();
        other.make_current();
        assert_eq!(other.synchronize(stream), 700);
        other.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn kernel_that_hangs_ends_with_its_context() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let [hanging, free] = [cuda.stream(), cuda.stream()];
        let (_, hang) = cuda.kernel("hang", "");
        ok(cuda.launch(hang, (1, 1), &[], hanging));
        ok(cuda.synchronize(free));
        assert_eq!(call!(cuda.library, cuStreamQuery(hanging => Handle)), 600);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean_but(&["leak"]);
}

#[test]
fn errors_are_injected_where_the_environment_says() {
    let list = "cuStreamCreate:2:nth=2,cuMemHostAlloc:999:from=2,cuEventCreate:801:every,\
                cuStreamDestroy_v2:999,cuMemcpyHtoDAsync_v2@run:719";
    let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_FAIL", list)], || {
        let cuda = Cuda::start();
        let mut handle = ptr::null_mut();
        let mut stream = || {
            call!(cuda.library,
            cuStreamCreate(&raw mut handle => *mut Handle, 1 => c_uint))
        };
        assert_eq!([stream(), stream(), stream()], [0, 2, 0]);
        // The stream is gone although the call says that it failed.
        let destroy = |stream| call!(cuda.library, cuStreamDestroy_v2(stream => Handle));
        assert_eq!(destroy(handle), 999);
        let (stream, at) = (cuda.stream(), cuda.alloc(16));
        let up = cuda.pinned(4);
        let mut more = ptr::null_mut();
        for _ in 0..2 {
            let code = call!(cuda.library,
                cuMemHostAlloc(&raw mut more => *mut Handle, 16 => usize, 1 => c_uint));
            assert_eq!(code, 999);
            let code = call!(cuda.library,
                cuEventCreate(&raw mut more => *mut Handle, 0 => c_uint));
            assert_eq!(code, 801);
        }
        ok(cuda.copy_in(at, up, stream));
        assert_eq!(cuda.synchronize(stream), 719);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn injected_error_that_sticks_loses_the_context() {
    let list = "cuMemAlloc_v2:700:sticky";
    let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_FAIL", list)], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let mut at = 0;
        let code = call!(cuda.library, cuMemAlloc_v2(&raw mut at => *mut u64, 16 => usize));
        assert_eq!(code, 700);
        assert_eq!(cuda.synchronize(stream), 700);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn memory_that_is_used_up_is_refused_until_some_is_freed() {
    let variables = [("FAKE_GPU_MEMORY", "4096")];
    let Some(watch) = scenario(&["cuda"], &variables, || {
        let cuda = Cuda::start();
        let at = cuda.alloc(4096);
        let mut more = 0;
        let mut alloc =
            || call!(cuda.library, cuMemAlloc_v2(&raw mut more => *mut u64, 1 => usize));
        assert_eq!(alloc(), 2);
        ok(cuda.free(at));
        ok(alloc());
        ok(cuda.free(more));
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

/// What `cuInit` answers, and the version that the driver gives.
fn init_as_expected() {
    let library = Library::open("libcuda.so.1");
    let mut version = 0;
    let told = call!(library, cuDriverGetVersion(&raw mut version => *mut c_int));
    let answer = (call!(library, cuInit(0 => c_uint)), told, version);
    assert_eq!(format!("{answer:?}"), std::env::var("EXPECTED").expect("the parent's"));
}

#[test]
fn machine_without_a_device_or_with_a_stub_says_so() {
    let cases: [(&[(&str, &str)], _); 4] = [
        (&[], (0, 0, 13_000)),
        (&[("FAKE_GPU_DEVICES", "0")], (100, 0, 13_000)),
        (&[("FAKE_GPU_STUB", "1")], (34, 34, 0)),
        (&[("FAKE_CUDA_VERSION", "10020")], (0, 0, 10_020)),
    ];
    for (variables, expected) in cases {
        let expected: (c_int, c_int, c_int) = expected;
        let expected = format!("{expected:?}");
        let variables = [variables, &[("EXPECTED", expected.as_str())]].concat();
        let Some(watch) = scenario(&["cuda"], &variables, || {
            init_as_expected();
        }) else {
            return;
        };
        watch.assert_clean();
    }
}

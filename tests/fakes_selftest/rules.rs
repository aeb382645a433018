//! Each broken rule, seen by the CUDA fake.

use std::ffi::{c_int, c_uint};
use std::ptr;

use super::driver::{Cuda, Handle, Library, SHARED_BYTES, call, ok, packed};
use super::scenario;

/// Declares a test that breaks a rule and finds it in the report: class, and some of the words.
macro_rules! broken {
    ($($name:ident: $class:literal, $what:literal, $body:expr;)*) => {$(
        #[test]
        fn $name() {
            let devices = [("FAKE_GPU_DEVICES", "2")];
            let Some(watch) = scenario(&["cuda"], &devices, $body) else { return };
            let report = watch.report();
            let is_it = |line: &str| line.starts_with($class) && line.contains($what);
            assert!(report.lines().any(is_it), "{report}");
        }
    )*};
}

broken! {
    shared_memory_used_by_a_device_that_may_not_is_found: "protocol", "may not use it", || {
        let cuda = Cuda::start();
        let (stream, up) = (cuda.stream(), cuda.pinned(4));
        let (at, _) = cuda.mapped(0, false);
        assert_eq!(cuda.copy_in(at, up, stream), 1);
    };
    shared_memory_unmapped_under_its_work_is_found: "protocol", "unmapped before its work", || {
        let cuda = Cuda::start();
        let (stream, up) = (cuda.stream(), cuda.pinned(4));
        let (_, spin) = cuda.kernel("spin_us_", "i");
        let (at, _) = cuda.mapped(0, true);
        ok(cuda.launch(spin, (1, 1), &packed(&[], &[200_000]), stream));
        ok(cuda.copy_in(at, up, stream));
        cuda.unmap(at);
    };
    shared_memory_unmapped_twice_is_found: "protocol", "which are not mapped", || {
        let cuda = Cuda::start();
        let (at, _) = cuda.mapped(0, true);
        ok(cuda.unmap(at));
        assert_eq!(cuda.unmap(at), 1);
    };
    addresses_freed_while_something_is_mapped_are_found: "protocol", "freed that are mapped", || {
        let cuda = Cuda::start();
        let (at, _) = cuda.mapped(0, true);
        ok(call!(cuda.library, cuMemAddressFree(at => u64, SHARED_BYTES => usize)));
    };
    shared_memory_whose_handle_is_kept_is_a_leak: "leak", "handles=1 reserved=1", || {
        let cuda = Cuda::start();
        cuda.mapped(0, true);
        cuda.end();
    };
    copy_without_an_event_before_it_races: "race", "nothing orders the two", || {
        let cuda = Cuda::start();
        let [one, two] = [cuda.stream(), cuda.stream()];
        let (_, fill) = cuda.kernel("fill_64", "pi");
        let (at, down) = (cuda.alloc(256), cuda.pinned(64));
        ok(cuda.launch(fill, (1, 64), &packed(&[at], &[7]), one));
        ok(cuda.copy_out(down, at, two));
    };
    staging_used_by_two_streams_races: "race", "nothing orders the two", || {
        let cuda = Cuda::start();
        let [one, two] = [cuda.stream(), cuda.stream()];
        let (a, b, staging) = (cuda.alloc(256), cuda.alloc(256), cuda.pinned(64));
        ok(cuda.copy_out(staging, a, one));
        ok(cuda.copy_in(b, staging, two));
    };
    memory_used_on_another_stream_than_its_allocation_races: "race", "cuMemAllocFromPool", || {
        let cuda = Cuda::start();
        let ([one, two], pool, up) = ([cuda.stream(), cuda.stream()], cuda.pool(0), cuda.pinned(4));
        let at = cuda.pool_alloc(pool, 16, one);
        ok(cuda.copy_in(at, up, two));
    };
    memory_freed_on_another_stream_than_its_use_races: "race", "cuMemFreeAsync: writes", || {
        let cuda = Cuda::start();
        let ([one, two], pool, up) = ([cuda.stream(), cuda.stream()], cuda.pool(0), cuda.pinned(4));
        let at = cuda.pool_alloc(pool, 16, one);
        ok(cuda.copy_in(at, up, one));
        ok(cuda.pool_free(at, two));
    };
    memory_used_after_its_free_is_reported: "protocol", "was freed before", || {
        let cuda = Cuda::start();
        let (stream, pool, up) = (cuda.stream(), cuda.pool(0), cuda.pinned(4));
        let at = cuda.pool_alloc(pool, 16, stream);
        ok(cuda.pool_free(at, stream));
        assert_eq!(cuda.copy_in(at, up, stream), 1);
    };
    memory_freed_long_ago_is_reported: "protocol", "was freed before", || {
        let cuda = Cuda::start();
        let (stream, at, up) = (cuda.stream(), cuda.alloc(16), cuda.pinned(4));
        ok(cuda.free(at));
        assert_eq!(cuda.copy_in(at, up, stream), 1);
    };
    memory_freed_twice_is_reported: "protocol", "no live allocation", || {
        let cuda = Cuda::start();
        let at = cuda.alloc(16);
        ok(cuda.free(at));
        assert_eq!(cuda.free(at), 1);
    };
    memory_freed_at_once_while_in_use_is_reported: "protocol", "before the work that uses it", || {
        let cuda = Cuda::start();
        let (stream, at, up) = (cuda.stream(), cuda.alloc(16), cuda.pinned(4));
        let (_, spin) = cuda.kernel("spin_us_1", "i");
        ok(cuda.launch(spin, (1, 1), &packed(&[], &[10_000]), stream));
        ok(cuda.copy_in(at, up, stream));
        ok(cuda.free(at));
    };
    copy_beyond_the_allocation_is_reported: "protocol", "is not inside one allocation", || {
        let cuda = Cuda::start();
        let (stream, at, up) = (cuda.stream(), cuda.alloc(12), cuda.pinned(4));
        assert_eq!(cuda.copy_in(at, up, stream), 1);
    };
    host_address_as_device_memory_is_reported: "protocol", "is no device memory", || {
        let cuda = Cuda::start();
        let (stream, up) = (cuda.stream(), cuda.pinned(4));
        let at = up.as_ptr().expose_provenance() as u64;
        assert_eq!(cuda.copy_in(at, up, stream), 1);
    };
    device_address_as_host_memory_is_reported: "protocol", "is not pinned memory", || {
        let cuda = Cuda::start();
        let (stream, at) = (cuda.stream(), cuda.alloc(16));
        let host = ptr::without_provenance_mut(usize::try_from(at).expect("64 bits"));
        let code = call!(cuda.library, cuMemcpyDtoHAsync_v2(
            host => Handle, at => u64, 16 => usize, stream => Handle));
        assert_eq!(code, 1);
    };
    copy_from_memory_that_is_not_pinned_is_reported: "protocol", "is not pinned memory", || {
        let cuda = Cuda::start();
        let (stream, at) = (cuda.stream(), cuda.alloc(16));
        assert_eq!(cuda.copy_in(at, &[1, 2, 3, 4], stream), 1);
    };
    pinned_memory_freed_while_in_use_is_reported: "protocol", "is unpinned before the work", || {
        let cuda = Cuda::start();
        let (stream, at, up) = (cuda.stream(), cuda.alloc(16), cuda.pinned(4));
        let (_, hang) = cuda.kernel("hang", "");
        ok(cuda.launch(hang, (1, 1), &[], stream));
        ok(cuda.copy_in(at, up, stream));
        ok(cuda.unpin(up));
    };
    memory_registered_twice_is_reported: "protocol", "is registered or pinned already", || {
        let cuda = Cuda::start();
        let up = cuda.pinned(4);
        let code = call!(cuda.library, cuMemHostRegister_v2(
            up.as_mut_ptr().cast() => Handle, 16 => usize, 1 => c_uint));
        assert_eq!(code, 712);
    };
    stream_destroyed_twice_is_reported: "protocol", "was destroyed before", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        cuda.drop_stream(stream);
        assert_eq!(call!(cuda.library, cuStreamDestroy_v2(stream => Handle)), 400);
    };
    stream_given_as_an_event_is_reported: "protocol", "given as a event", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        assert_eq!(call!(cuda.library, cuEventQuery(stream => Handle)), 400);
    };
    default_stream_is_reported: "protocol", "the stream is null", || {
        let cuda = Cuda::start();
        assert_eq!(cuda.synchronize(ptr::null_mut()), 400);
    };
    call_before_the_initialisation_is_reported: "protocol", "before the library was init", || {
        let library = Library::open("libcuda.so.1");
        let mut count = 0;
        assert_eq!(call!(library, cuDeviceGetCount(&raw mut count => *mut c_int)), 3);
    };
    thread_without_a_context_is_reported: "protocol", "no context is current", || {
        let cuda = Cuda::start();
        let (library, stream) = (cuda.library.0.expose_provenance(), cuda.stream().addr());
        let other = std::thread::spawn(move || {
            let library = Library(ptr::with_exposed_provenance_mut(library));
            let stream = ptr::without_provenance_mut(stream);
            call!(library, cuStreamQuery(stream => Handle))
        });
        assert_eq!(other.join().expect("no panic"), 201);
    };
    stream_of_another_context_is_reported: "protocol", "is of context", || {
        let one = Cuda::start();
        let stream = one.stream();
        let _two = Cuda::on(1);
        assert_eq!(one.synchronize(stream), 201);
    };
    module_unloaded_before_its_kernel_ran_is_reported: "protocol", "before its kernels ran", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (module, hang) = cuda.kernel("hang", "");
        ok(cuda.launch(hang, (1, 1), &[], stream));
        cuda.unload(module);
    };
    function_of_an_unloaded_module_is_reported: "protocol", "function 0x", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (module, fill) = cuda.kernel("fill_", "");
        cuda.unload(module);
        assert_eq!(cuda.launch(fill, (1, 1), &[], stream), 400);
    };
    arguments_too_short_are_reported: "arguments", "takes 12 bytes, and 8 are given", || {
        let cuda = Cuda::start();
        let (stream, at) = (cuda.stream(), cuda.alloc(16));
        let (_, fill) = cuda.kernel("fill_", "pi");
        assert_eq!(cuda.launch(fill, (1, 1), &packed(&[at], &[]), stream), 1);
    };
    argument_that_is_no_device_memory_is_reported: "protocol", "argument", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, fill) = cuda.kernel("fill_", "p");
        assert_eq!(cuda.launch(fill, (1, 1), &packed(&[0x1000], &[]), stream), 1);
    };
    grid_of_nothing_is_reported: "limits", "grid [0, 1, 1]", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, fill) = cuda.kernel("fill_", "");
        assert_eq!(cuda.launch(fill, (0, 1), &[], stream), 1);
    };
    block_beyond_the_limit_is_reported: "limits", "block [1025, 1, 1]", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, fill) = cuda.kernel("fill_", "");
        assert_eq!(cuda.launch(fill, (1, 1025), &[], stream), 1);
    };
    launch_options_without_an_end_are_reported: "protocol", "extra launch options", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, fill) = cuda.kernel("fill_", "p");
        let mut bytes = 0_usize;
        let mut extra: [Handle; 5] = [
            ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            ptr::without_provenance_mut(3),
            ptr::null_mut(),
            ptr::null_mut(),
        ];
        let code = call!(cuda.library, cuLaunchKernel(
            fill => Handle, 1 => c_uint, 1 => c_uint, 1 => c_uint, 1 => c_uint, 1 => c_uint,
            1 => c_uint, 0 => c_uint, stream => Handle, ptr::null_mut() => *mut Handle,
            extra.as_mut_ptr() => *mut Handle));
        assert_eq!(code, 1);
    };
    host_function_that_calls_the_driver_is_reported: "protocol", "within a host function", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        ok(cuda.call_later(stream, calls_the_driver, cuda.library.0));
        ok(cuda.synchronize(stream));
    };
    memory_of_a_device_out_of_reach_is_reported: "protocol", "out of reach", || {
        let one = Cuda::start();
        let at = one.alloc(16);
        let two = Cuda::on(1);
        let stream = two.stream();
        let (_, fill) = two.kernel("fill_", "p");
        assert_eq!(two.launch(fill, (1, 4), &packed(&[at], &[]), stream), 1);
    };
    context_destroyed_with_a_stream_leaks: "leak", "streams=1 events=0", || {
        let cuda = Cuda::start();
        cuda.stream();
        cuda.end();
    };
    process_that_ends_with_a_context_leaks: "leak", "the process exits with contexts=1", || {
        let cuda = Cuda::start();
        cuda.alloc(16);
    };
    pool_left_behind_leaks: "leak", "pools=1", || {
        let cuda = Cuda::start();
        cuda.pool(0);
        cuda.end();
    };
    process_that_forked_is_reported: "protocol", "has forked", || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        // SAFETY: the child makes one call and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = call!(cuda.library, cuStreamQuery(stream => Handle));
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(code != 3)) };
        }
        let mut status = -1;
        // SAFETY: the status is a place for a number.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    };
}

unsafe extern "C" fn calls_the_driver(library: Handle) {
    let library = Library(library);
    let mut count = 0;
    let code = call!(library, cuDeviceGetCount(&raw mut count => *mut c_int));
    assert_eq!(code, 800);
}

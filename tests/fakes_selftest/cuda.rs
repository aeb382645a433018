//! What the CUDA fake does when everything is right.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::driver::{Cuda, Handle, Library, call, ok, packed};
use super::support::fakes::{self, Watch};
use super::{run, scenario};

const WORDS: usize = 64;

/// `a = b + c`, each on a stream of its own.
fn add_over_three_streams() {
    let cuda = Cuda::start();
    let [copy_in, compute, copy_out] = [cuda.stream(), cuda.stream(), cuda.stream()];
    let (module, add) = cuda.kernel("add_i32_64", "ppp");
    let [a, b, c] = [cuda.alloc(4 * WORDS), cuda.alloc(4 * WORDS), cuda.alloc(4 * WORDS)];
    let (up, down) = (cuda.pinned(2 * WORDS), cuda.pinned(WORDS));
    for (index, word) in up.iter_mut().enumerate() {
        *word = i32::try_from(index * index).expect("small");
    }
    ok(cuda.copy_in(b, &up[..WORDS], copy_in));
    ok(cuda.copy_in(c, &up[WORDS..], copy_in));
    cuda.join(compute, copy_in);
    ok(cuda.launch(add, (4, 16), &packed(&[a, b, c], &[]), compute));
    cuda.join(copy_out, compute);
    ok(cuda.copy_out(down, a, copy_out));
    ok(cuda.synchronize(copy_out));
    for (index, &word) in down.iter().enumerate() {
        assert_eq!(word, up[index] + up[index + WORDS]);
    }
    for at in [a, b, c] {
        ok(cuda.free(at));
    }
    ok(cuda.unpin(up));
    ok(cuda.unpin(down));
    cuda.unload(module);
    for stream in [copy_in, compute, copy_out] {
        cuda.drop_stream(stream);
    }
    cuda.end();
}

#[test]
fn kernel_between_streams_with_events_computes_whatever_the_seed() {
    for seed in ["1", "2", "3", "4"] {
        let variables = [("FAKE_GPU_SEED", seed)];
        let Some(watch) = scenario(&["cuda"], &variables, || {
            add_over_three_streams();
        }) else {
            return;
        };
        watch.assert_clean();
        assert_eq!(watch.calls("cuLaunchKernel"), 1);
        assert!(watch.ledger().contains("exit libcuda.so.1"), "{}", watch.ledger());
    }
}

#[test]
fn pool_memory_in_stream_order_is_fresh_and_freed() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let (stream, pool, down) = (cuda.stream(), cuda.pool(0), cuda.pinned(WORDS));
        let at = cuda.pool_alloc(pool, 4 * WORDS, stream);
        ok(cuda.copy_out(down, at, stream));
        ok(cuda.pool_free(at, stream));
        ok(cuda.synchronize(stream));
        assert!(down.iter().all(|word| word.to_le_bytes() == [0xA5; 4]), "{down:x?}");
        ok(cuda.unpin(down));
        cuda.drop_pool(pool);
        cuda.drop_stream(stream);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
    assert!(watch.ledger().contains("allocations=0 device_bytes=0"), "{}", watch.ledger());
}

#[test]
fn host_memory_of_a_copy_is_read_when_the_stream_is_there() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, spin) = cuda.kernel("spin_us_1", "i");
        let (at, up, down) = (cuda.alloc(4), cuda.pinned(1), cuda.pinned(1));
        up[0] = 1;
        ok(cuda.launch(spin, (1, 1), &packed(&[], &[20_000]), stream));
        ok(cuda.copy_in(at, up, stream));
        ok(cuda.copy_out(down, at, stream));
        up[0] = 2;
        ok(cuda.synchronize(stream));
        assert_eq!(down[0], 2);
    }) else {
        return;
    };
    assert_eq!(watch.calls("cuMemcpyHtoDAsync_v2"), 1);
}

#[test]
fn streams_without_an_order_run_in_many() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in ["1", "2", "3", "4", "5", "6"] {
        let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_SEED", seed)], || {
            let cuda = Cuda::start();
            let streams = [(); 3].map(|()| cuda.stream());
            for stream in streams {
                let event = cuda.event();
                ok(call!(cuda.library,
                    cuEventRecord(event => Handle, stream => Handle)));
            }
            for stream in streams {
                ok(cuda.synchronize(stream));
            }
        }) else {
            return;
        };
        let trace = watch.trace();
        let ran = trace.lines().filter(|line| line.starts_with("# ran"));
        orders.insert(ran.collect::<Vec<_>>().join("\n"));
    }
    assert!(orders.len() > 1, "{orders:?}");
}

unsafe extern "C" fn send(sender: Handle) {
    // SAFETY: the scenario hands over a sender that outlives the call.
    let sender = unsafe { sender.cast::<Sender<()>>().as_ref() }.expect("not null");
    sender.send(()).expect("the scenario waits");
}

#[test]
fn host_function_is_called_behind_the_work_before_it() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (module, fill) = cuda.kernel("fill_1", "pi");
        let (at, down) = (cuda.alloc(4), cuda.pinned(1));
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        ok(cuda.launch(fill, (1, 1), &packed(&[at], &[77]), stream));
        ok(cuda.copy_out(down, at, stream));
        ok(cuda.call_later(stream, send, (&raw const sender).cast_mut().cast()));
        receiver.recv_timeout(Duration::from_secs(10)).expect("the function is called");
        assert_eq!(down[0], 77);
        ok(cuda.free(at));
        ok(cuda.unpin(down));
        cuda.unload(module);
        cuda.drop_stream(stream);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn every_kernel_does_what_its_name_says() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let [a, b, c] = [cuda.alloc(16), cuda.alloc(16), cuda.alloc(16)];
        let down = cuda.pinned(4);
        let floats = [0.5_f32, 1.5, -2.0, 3.0].map(|float| float.to_bits().cast_signed());
        let cases: &[Case] = &[
            ("fill_", &[b], &[10], [10; 4]),
            ("iota_", &[c], &[], [0, 1, 2, 3]),
            ("add_", &[a, b, c], &[], [10, 11, 12, 13]),
            ("copy_", &[a, c], &[], [0, 1, 2, 3]),
            ("increment_", &[a], &[], [1, 2, 3, 4]),
            ("increment_", &[a], &[5], [6, 7, 8, 9]),
            ("gather_", &[a, b, c], &[100, 1000], [1110, 1111, 1112, 1113]),
            ("ints_", &[a], &floats, floats),
            ("add_f32_", &[b, a, a], &[], floats.map(doubled)),
            ("spin_us_", &[a], &[30], [30; 4]),
        ];
        for (name, pointers, ints, expected) in cases {
            let parameters = "p".repeat(pointers.len()) + &"i".repeat(ints.len());
            let (module, function) = cuda.kernel(name, &parameters);
            ok(cuda.launch(function, (2, 2), &packed(pointers, ints), stream));
            ok(cuda.copy_out(down, pointers[0], stream));
            ok(cuda.synchronize(stream));
            assert_eq!(down, expected, "{name}");
            cuda.unload(module);
        }
        for at in [a, b, c] {
            ok(cuda.free(at));
        }
        ok(cuda.unpin(down));
        cuda.drop_stream(stream);
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

/// A kernel's name, pointers and ints, and what it makes of four elements.
type Case<'a> = (&'a str, &'a [u64], &'a [i32], [i32; 4]);

fn doubled(bits: i32) -> i32 {
    (f32::from_bits(bits.cast_unsigned()) * 2.0).to_bits().cast_signed()
}

#[test]
fn events_tell_the_time_that_a_kernel_took() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, spin) = cuda.kernel("spin_us_1", "i");
        let [from, to] = [cuda.event(), cuda.event()];
        ok(call!(cuda.library, cuEventRecord(from => Handle, stream => Handle)));
        ok(cuda.launch(spin, (1, 1), &packed(&[], &[5_000]), stream));
        ok(call!(cuda.library, cuEventRecord(to => Handle, stream => Handle)));
        assert_eq!(call!(cuda.library, cuEventQuery(to => Handle)), 600);
        ok(cuda.synchronize(stream));
        ok(call!(cuda.library, cuEventQuery(to => Handle)));
        let mut ms = 0.0_f32;
        ok(call!(cuda.library, cuEventElapsedTime(
            &raw mut ms => *mut f32, from => Handle, to => Handle)));
        assert!((5.0..5_000.0).contains(&ms), "{ms}");
    }) else {
        return;
    };
    assert_eq!(watch.calls("cuEventElapsedTime"), 1);
}

#[test]
fn device_tells_its_limits_and_place() {
    let variables = [("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_MEMORY", "1048576")];
    let Some(watch) = scenario(&["cuda"], &variables, || {
        let library = Library::open("libcuda.so.1");
        ok(call!(library, cuInit(0 => c_uint)));
        let (mut count, mut text, mut bytes) = (0, [0 as c_char; 64], 0_usize);
        ok(call!(library, cuDeviceGetCount(&raw mut count => *mut c_int)));
        assert_eq!(count, 2);
        ok(call!(library, cuDeviceGetPCIBusId(
            text.as_mut_ptr() => *mut c_char, 64 => c_int, 1 => c_int)));
        // SAFETY: the fake has written a zero byte.
        assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }, c"0000:3c:00.0");
        ok(call!(library, cuDeviceTotalMem_v2(&raw mut bytes => *mut usize, 0 => c_int)));
        assert_eq!(bytes, 1 << 20);
        for (attribute, expected) in [(1, 1024), (7, 65535), (75, 9), (76, 0), (115, 1)] {
            let mut value = 0;
            ok(call!(library, cuDeviceGetAttribute(
                &raw mut value => *mut c_int, attribute => c_int, 0 => c_int)));
            assert_eq!(value, expected, "attribute {attribute}");
        }
        let mut device = 0;
        let code = call!(library, cuDeviceGet(&raw mut device => *mut c_int, 2 => c_int));
        assert_eq!(code, 101);
        let mut name: *const c_char = ptr::null();
        ok(call!(library, cuGetErrorName(101 => c_int, &raw mut name => *mut *const c_char)));
        // SAFETY: the fake's names are constants.
        assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_INVALID_DEVICE");
    }) else {
        return;
    };
    watch.assert_clean();
}

#[test]
fn library_without_a_symbol_has_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    fakes::without("cuda", "cuMemPoolCreate", folder.path());
    let watch = Watch::at(vec![folder.path().to_owned()]);
    let Some(_watch) = run(watch, &[], || {
        let library = Library::open("libcuda.so.1");
        assert!(library.find("cuMemPoolCreate").is_null());
        assert!(!library.find("cuMemPoolDestroy").is_null());
        ok(call!(library, cuInit(0 => c_uint)));
    }) else {
        return;
    };
}

#[test]
fn module_from_text_fails_with_the_compilers_words() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let text = c".version 8.0\n.target TARGET\n.visible .entry x() { ret; }";
        let (mut module, mut log) = (ptr::null_mut(), [0 as c_char; 256]);
        let mut options = [5, 6];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), ptr::without_provenance_mut(256)];
        let code = call!(cuda.library, cuModuleLoadDataEx(
            &raw mut module => *mut Handle, text.as_ptr().cast() => *const c_void, 2 => c_uint,
            options.as_mut_ptr() => *mut c_int, values.as_mut_ptr() => *mut Handle));
        assert_eq!(code, 218);
        // SAFETY: the fake has written a zero byte, or nothing.
        let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
        assert!(log.contains("line 2") && log.contains("'TARGET'"), "{log}");
        let codes = [
            (c".version 8.0\n.target sm_100\n", 209),
            (c".version 10.0\n.target sm_90\n", 222),
            (c".version 8.0\n.target sm_90\n.visible .entry x() {", 218),
            (c"nothing", 218),
        ];
        for (text, expected) in codes {
            assert_eq!(cuda.load(&text.to_owned()).0, expected, "{text:?}");
        }
        cuda.end();
    }) else {
        return;
    };
    watch.assert_clean();
}

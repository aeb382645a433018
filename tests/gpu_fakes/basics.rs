//! Memory, copies, programs, launches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::device::gpu::Vendor;
use outboard::device::shared::Budget;
use outboard::device::{Device, DeviceError, Launch, Platform, Quota, Source, Span, Whose};

use crate::rig::*;

#[test]
fn fresh_memory_reads_as_zero() {
    clean_on_fakes("basics::fresh_memory_reads_as_zero", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        for bytes in [1, 100, 5 << 20] {
            let region = device.alloc(bytes).unwrap();
            assert!(read(&mut *device, &region).iter().all(|byte| *byte == 0), "{bytes}");
        }
    });
}

#[test]
fn bytes_of_any_length_come_back_as_they_went() {
    clean_on_fakes("basics::bytes_of_any_length_come_back_as_they_went", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        for bytes in [1, 7, 4096, 64 << 10, 100_003, 256 << 10, (4 << 20) + 1, 9_000_001] {
            let sent = pattern(bytes);
            let region = region(&mut *device, &sent);
            assert!(read(&mut *device, &region) == sent, "{bytes} bytes");
            let (offset, rest) = (bytes as u64 / 3, bytes as u64 - bytes as u64 / 3);
            let part = read_span(&mut *device, &region, offset, rest);
            assert!(part == sent[bytes / 3..], "the end of {bytes} bytes");
        }
    });
}

#[test]
fn staged_bytes_of_any_length_come_back_as_they_went() {
    clean_on_fakes("basics::staged_bytes_of_any_length_come_back_as_they_went", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        for bytes in [1, 4096, 256 << 10, (256 << 10) + 1, (4 << 20) - 1, 40_000_007] {
            let sent = pattern(bytes);
            let staged = rig.staged(&sent);
            let region = device.alloc(bytes as u64).unwrap();
            let fence = device.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
            wait(&mut *device, fence);
            drop(staged);
            assert!(read(&mut *device, &region) == sent, "{bytes} bytes");
        }
    });
}

#[test]
fn device_that_opens_or_uploads_asks_to_wait() {
    clean_on_fakes("basics::device_that_opens_or_uploads_asks_to_wait", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        while let Some(fence) = device.backlog() {
            wait(&mut *device, fence);
        }
        let region = device.alloc(20 << 20).unwrap();
        let staged = rig.staged(&pattern(20 << 20));
        let fence = device.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
        assert!(device.backlog().is_none_or(|until| until == fence));
        wait(&mut *device, fence);
        assert_eq!(device.backlog(), None);
    });
}

#[test]
fn queued_work_runs_in_order_whatever_stream_it_takes() {
    clean_on_fakes("basics::queued_work_runs_in_order_whatever_stream_it_takes", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let increment = load(device, vendor, "increment_i32", "pi");
        // Long enough for streams of their own, and touched by short work too.
        let count = 100_000_usize;
        let (a, b) = (region(device, &bytes_of(&vec![1; count])), device.alloc(400_000).unwrap());
        let staged = rig.staged(&bytes_of(&vec![10; count]));
        device.copy_in(whole(&b), Source::Staged(&staged)).unwrap();
        launch(device, &add, &[&a, &a, &b], &[]);
        device.copy(whole(&b), whole(&a)).unwrap();
        launch(device, &increment, &[&b], &[100]);
        device.copy_in(Span::new(&a, 0, 4).unwrap(), Source::Bytes(&7_i32.to_ne_bytes())).unwrap();
        let before = read(device, &b);
        device.copy_in(whole(&b), Source::Bytes(&bytes_of(&vec![3; count]))).unwrap();
        launch(device, &add, &[&a, &a, &b], &[]);
        let (a, b) = (ints(&read(device, &a)), ints(&before));
        assert_eq!((a[0], a[1], a[THREADS], a[count - 1]), (10, 14, 1, 1));
        assert_eq!((b[0], b[THREADS - 1], b[THREADS], b[count - 1]), (111, 111, 1, 1));
    });
}

#[test]
fn download_runs_beside_kernels_that_do_not_touch_it() {
    let name = "basics::download_runs_beside_kernels_that_do_not_touch_it";
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let spin = load(device, vendor, "spin_us_", "pi");
        let (kept, busy) = (region(device, &pattern(1 << 20)), device.alloc(256).unwrap());
        wait_for_all(device);
        launch(device, &spin, &[&busy], &[500_000]);
        assert!(read(device, &kept) == pattern(1 << 20));
    };
    on_fakes(name, &[], body, |ran| {
        ran.watch.assert_clean();
        let trace = ran.watch.trace();
        let ended = |what: &str| trace.lines().position(|line| line.starts_with(what)).unwrap();
        let copied = match ran.vendor {
            Vendor::Nvidia => "# ran cuMemcpyDtoHAsync",
            Vendor::Amd => "# ran hipMemcpyDtoHAsync",
        };
        let launched = match ran.vendor {
            Vendor::Nvidia => "# ran cuLaunchKernel",
            Vendor::Amd => "# ran hipModuleLaunchKernel",
        };
        assert!(ended(copied) < ended(launched), "{trace}");
    });
}

#[test]
fn timed_launch_takes_what_the_device_says() {
    clean_on_fakes("basics::timed_launch_takes_what_the_device_says", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let spin = load(device, vendor, "spin_us_", "i");
        let mut fences = Vec::new();
        for micros in [20_000, 1000] {
            let (program, global, local) = (&spin, GRID, BLOCK);
            let (buffers, values) = (&[], &[micros]);
            let launch = Launch { program, buffers, values, global, local, timed: true };
            fences.push(device.launch(&launch).unwrap());
        }
        wait_for_all(device);
        let [long, short] = [fences[0], fences[1]].map(|fence| device.elapsed(fence).unwrap());
        assert!(long >= Duration::from_millis(20) && long > short, "{long:?} {short:?}");
        assert!(short >= Duration::from_millis(1));
        assert_eq!(device.elapsed(fences[0]).unwrap(), Duration::ZERO, "once");
    });
}

#[test]
fn launches_beyond_the_queue_wait_for_room() {
    clean_on_fakes("basics::launches_beyond_the_queue_wait_for_room", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "p");
        let count = region(device, &[0; 4 * THREADS]);
        let mut waits = 0;
        for _ in 0..5000 {
            if let Some(fence) = device.backlog() {
                wait(device, fence);
                assert_eq!(device.backlog(), None, "there is room after the fence");
                waits += 1;
            }
            launch(device, &increment, &[&count], &[]);
        }
        assert_eq!(ints(&read(device, &count)), [5000; THREADS]);
        eprintln!("waited {waits} times");
    });
}

#[test]
fn launch_that_the_device_cannot_do_is_refused_and_nothing_is_lost() {
    let name = "basics::launch_that_the_device_cannot_do_is_refused_and_nothing_is_lost";
    clean_on_fakes(name, &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "p");
        let count = region(device, &[0; 4 * THREADS]);
        for (global, local, why) in [
            (None, BLOCK, "global size is missing"),
            (GRID, None, "local size is missing"),
            (Some([1, 1, 1 << 20]), BLOCK, "global size 1048576 in dimension 2"),
            (GRID, Some([1 << 20, 1, 1]), "local size 1048576 in dimension 0"),
            (GRID, Some([1024, 2, 1]), "2048 threads in a block"),
        ] {
            let (program, buffers, values) = (&increment, &[whole(&count)][..], &[][..]);
            let launch = Launch { program, buffers, values, global, local, timed: false };
            let error = device.launch(&launch).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let (program, global, local) = (&increment, GRID, BLOCK);
        let values = vec![0; 100_000];
        let launch = Launch { program, buffers: &[], values: &values, global, local, timed: false };
        let error = device.launch(&launch).unwrap_err().to_string();
        assert!(error.contains("400000 bytes of arguments"), "{error}");
        launch_and_check(device, &increment, &count);
    });
}

fn launch_and_check(
    device: &mut dyn Device,
    increment: &outboard::device::Program,
    count: &outboard::device::Region,
) {
    launch(device, increment, &[count], &[]);
    assert_eq!(ints(&read(device, count)), [1; THREADS]);
}

#[test]
fn program_that_cannot_be_loaded_says_why() {
    clean_on_fakes("basics::program_that_cannot_be_loaded_says_why", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let mut why = |name: &str, image: &[u8]| {
            let program = device.load(name, image).unwrap();
            wait_for_all(device);
            device.loaded(&program).unwrap_err()
        };
        assert!(matches!(why("f", b"no program"), DeviceError::Load { .. }));
        let other = image_with(vendor, "other", "0 0", "p");
        let error = why("f", &other).to_string();
        assert!(error.contains("NOT_FOUND") || error.contains("NotFound"), "{error}");
        let greedy = image_with(vendor, "greedy", "0 1000000", "p");
        let error = why("greedy", &greedy).to_string();
        assert!(error.contains("1000000 bytes of shared memory"), "{error}");
        assert!(device.load("a\0b", &other).is_err());
        let few = device.load("few", &image_with(vendor, "few", "8 0", "p")).unwrap();
        wait_for_all(device);
        let (program, global, local) = (&few, GRID, BLOCK);
        let launch = Launch { program, buffers: &[], values: &[], global, local, timed: false };
        let error = device.launch(&launch).unwrap_err().to_string();
        assert!(error.contains("16 threads in a block: this kernel"), "{error}");
    });
}

#[test]
fn memory_beyond_the_device_is_refused_and_comes_back() {
    let environment = &[("FAKE_GPU_MEMORY", "100000000")];
    let name = "basics::memory_beyond_the_device_is_refused_and_comes_back";
    clean_on_fakes(name, environment, |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut device, mut other) = (rig.open(), rig.open());
        let error = device.alloc(200 << 20).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
        let first = device.alloc(60_000_000).unwrap();
        assert!(matches!(other.alloc(60_000_000), Err(DeviceError::OutOfMemory { .. })));
        drop(first);
        wait_for_all(&mut *device);
        device.poll(Instant::now());
        wait_for_all(&mut *device);
        let second = other.alloc(60_000_000).unwrap();
        assert!(read(&mut *other, &second).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn memory_of_one_identity_is_counted_over_its_sessions() {
    let name = "basics::memory_of_one_identity_is_counted_over_its_sessions";
    clean_on_fakes(name, &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let identity = Arc::new(Budget::of_identity(8 << 20));
        let quota = Quota::new(6 << 20, Arc::clone(&identity));
        let mut open = || rig.platform.open_within(0, &quota).unwrap();
        let (mut device, mut other) = (open(), open());
        let whose = |error| match error {
            DeviceError::OverQuota { whose, .. } => whose,
            error => panic!("{error}"),
        };
        let first = device.alloc(5 << 20).unwrap();
        assert_eq!(whose(device.alloc(2 << 20).unwrap_err()), Whose::Session);
        assert_eq!(whose(other.alloc(4 << 20).unwrap_err()), Whose::Identity);
        drop(first);
        wait_for_all(&mut *device);
        device.poll(Instant::now());
        wait_for_all(&mut *device);
        let second = other.alloc(6 << 20).unwrap();
        assert_eq!(identity.used(), 6 << 20);
        drop((second, other, device));
        assert_eq!(identity.used(), 0);
    });
}

#[test]
fn resources_may_outlive_their_device() {
    clean_on_fakes("basics::resources_may_outlive_their_device", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let increment = load(&mut *device, vendor, "increment_i32", "p");
        let region = region(&mut *device, &pattern(1000));
        let (fence, piece) = device.read(whole(&region)).unwrap();
        wait(&mut *device, fence);
        let buffers = [outboard::device::GraphBuffer::Fixed(whole(&region))];
        let graph = device.build_graph(&[step(&increment, &buffers, &[])]).unwrap();
        let point = device.signal().unwrap();
        drop(device);
        let mut other = rig.open();
        other.wait(&point).unwrap();
        wait_for_all(&mut *other);
        assert!(piece.slice() == pattern(1000));
        assert!(other.read(whole(&region)).is_err());
        drop((graph, region, increment, piece, point));
    });
}

#[test]
fn device_dropped_with_work_under_way_leaves_nothing() {
    clean_on_fakes("basics::device_dropped_with_work_under_way_leaves_nothing", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let increment = load(&mut *device, vendor, "increment_i32", "p");
        let region = region(&mut *device, &pattern(5 << 20));
        launch(&mut *device, &increment, &[&region], &[]);
        let (_, piece) = device.read(whole(&region)).unwrap();
        let late = device.load("late", b"nothing").unwrap();
        let start = Instant::now();
        drop((piece, device));
        assert!(start.elapsed() < Duration::from_secs(1));
        drop((late, region, increment));
        drop(rig.open());
    });
}

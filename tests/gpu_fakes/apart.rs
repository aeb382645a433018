//! Sessions with processes of their own: the server's process knows the devices, and each worker
//! drives one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::compile;
use outboard::config::{CacheDir, CompileConfig};
use outboard::device::gpu::{CudaSource, GpuConfig, GpuPlatform, Vendor, WorkersConfig};
use outboard::device::shared::{Budget, Heap};
use outboard::device::{
    Device, DeviceError, GraphBuffer, GraphInt, GraphRun, Launch, Platform, Source, Span,
};

use crate::rig::*;
use crate::support::fakes::Watch;
use crate::uploads;

/// The platform in the server's process, and what it must leave as it was.
pub(crate) struct Server {
    pub(crate) platform: GpuPlatform,
    pub(crate) staging: Heap,
    passages: Arc<Budget>,
    descriptors: usize,
}

impl Server {
    pub(crate) fn new(vendor: Vendor) -> Server {
        Server::with(vendor, DEADLINE, &[])
    }

    pub(crate) fn with(vendor: Vendor, kernel_time_max: Duration, more: &[(&str, &str)]) -> Server {
        let config = CompileConfig { cache_dir: CacheDir::Off, ..CompileConfig::default() };
        let compile = Arc::new(compile::Service::new(config));
        let found = GpuConfig::find(vendor, kernel_time_max, CudaSource::Cuda, compile).unwrap();
        let found = if exports() { found.exporting() } else { found };
        let fakes = |(name, _): &(OsString, OsString)| name.to_string_lossy().starts_with("FAKE_");
        let more = more.iter().map(|(name, value)| (name.into(), value.into()));
        let passages = Arc::new(Budget::new(1 << 40));
        let workers = WorkersConfig {
            exe: PathBuf::from(env!("CARGO_BIN_EXE_outboard")),
            budget: Arc::clone(&passages),
            environment: std::env::vars_os().filter(fakes).chain(more).collect(),
        };
        let mut platform = GpuPlatform::new(found.apart(&workers));
        let staging = Heap::new(Arc::new(Budget::new(1 << 40)));
        // The thread of the processes starts with the first, and stays.
        drop(platform.open(0).unwrap());
        until("the first worker is gone", || children() == 0);
        let descriptors = descriptors();
        Server { platform, staging, passages, descriptors }
    }

    pub(crate) fn open(&mut self) -> Box<dyn Device> {
        self.platform.open(0).unwrap()
    }

    /// Everything that the devices had is back.
    pub(crate) fn finish(mut self) {
        drop(self.staging);
        until("workers, descriptors and memory are back", || {
            children() == 0 && descriptors() <= self.descriptors && self.passages.used() == 0
        });
        // All of the device's memory is there for the next session.
        let mut device = self.platform.open(0).unwrap();
        assert!(device.alloc((1 << 30) - (32 << 20)).is_ok());
    }
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Child processes of this one, zombies included. One thread starts all workers, and the kernel
/// lists a thread's in their order.
pub(crate) fn child_processes() -> Vec<i32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(task) = task else { continue };
        let Ok(list) = std::fs::read_to_string(task.path().join("children")) else { continue };
        children.extend(list.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    children
}

fn children() -> usize {
    child_processes().len()
}

/// As [`on_fakes`], for workers that may write nothing but what `/dev` has.
pub(crate) fn apart_on_fakes(
    test: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce(Vendor),
    check: impl Fn(&Ran),
) {
    if is_child() {
        return on_fakes(test, environment, body, check);
    }
    for (vendor, library) in [(Vendor::Nvidia, "cuda"), (Vendor::Amd, "hip")] {
        let watch = Watch::of_confined(&[library]);
        run(test, library, environment, &watch);
        check(&Ran { vendor, watch });
    }
}

pub(crate) fn clean(test: &str, environment: &[(&str, &str)], body: impl FnOnce(Vendor)) {
    apart_on_fakes(test, environment, body, |ran| ran.watch.assert_clean());
}

#[test]
fn bytes_of_any_length_come_back_as_they_went() {
    clean("apart::bytes_of_any_length_come_back_as_they_went", &[], |vendor| {
        let mut server = Server::new(vendor);
        let mut device = server.open();
        let device_ = &mut *device;
        for bytes in [1, 4096, 100_003, (256 << 10) + 1, 9_000_001] {
            let sent = pattern(bytes);
            let short = region(device_, &sent);
            assert!(read(device_, &short) == sent, "{bytes} bytes");
            let mut staged = server.staging.alloc(bytes as u64).unwrap();
            staged.slice_mut().copy_from_slice(&sent);
            let long = device_.alloc(bytes as u64).unwrap();
            device_.copy_in(whole(&long), Source::Staged(&staged)).unwrap();
            assert!(read(device_, &long) == sent, "{bytes} bytes staged");
            let zero = device_.alloc(bytes as u64).unwrap();
            assert!(read(device_, &zero).iter().all(|byte| *byte == 0), "{bytes} fresh bytes");
        }
        drop(device);
        server.finish();
    });
}

#[test]
fn segment_that_comes_back_is_registered_by_its_worker_which_cannot_write_it() {
    let name = "apart::segment_that_comes_back_is_registered_by_its_worker_which_cannot_write_it";
    let body = |vendor| {
        let mut server = Server::new(vendor);
        let mut device = server.open();
        uploads::loop_of_uploads(&mut *device, &server.staging);
        drop(device);
        server.finish();
    };
    apart_on_fakes(name, &[], body, |ran| {
        ran.watch.assert_clean();
        // The first and the last session only open.
        assert_eq!(ran.calls("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"), 3 + 4);
    });
}

#[test]
fn kernels_and_graphs_run_in_order() {
    clean("apart::kernels_and_graphs_run_in_order", &[], |vendor| {
        let mut server = Server::new(vendor);
        let mut device = server.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let increment = load(device, vendor, "increment_i32", "pi");
        let (a, b) = (region(device, &bytes_of(&[1; THREADS])), region(device, &[0; 4 * THREADS]));
        for _ in 0..100 {
            if let Some(fence) = device.backlog() {
                wait(device, fence);
            }
            launch(device, &add, &[&b, &b, &a], &[]);
            launch(device, &increment, &[&b], &[9]);
        }
        assert_eq!(ints(&read(device, &b)), [1000; THREADS]);
        let buffers = [GraphBuffer::Input(0), GraphBuffer::Input(0), GraphBuffer::Fixed(whole(&a))];
        let (to, ints_) = ([GraphBuffer::Input(0)], [GraphInt::Variable(0)]);
        let steps = [step(&add, &buffers, &[]), step(&increment, &to, &ints_)];
        let graph = device.build_graph(&steps).unwrap();
        for (input, n) in [(&b, 5), (&a, 7)] {
            let run = GraphRun { inputs: &[whole(input)], ints: &[n], timed: true };
            let fence = device.run_graph(&graph, &run).unwrap();
            wait(device, fence);
            assert!(device.elapsed(fence).unwrap() < DEADLINE);
        }
        assert_eq!(ints(&read(device, &b)), [1006; THREADS]);
        assert_eq!(ints(&read(device, &a)), [9; THREADS]);
    });
}

#[test]
fn copies_between_devices_wait_for_both() {
    let name = "apart::copies_between_devices_wait_for_both";
    clean(name, &[("FAKE_GPU_DEVICES", "2")], |vendor| {
        let mut server = Server::new(vendor);
        let (mut first, mut second) = (server.open(), server.platform.open(1).unwrap());
        let increment = load(&mut *first, vendor, "increment_i32", "pi");
        for count in [THREADS, 3_000_000] {
            let sent = bytes_of(&vec![3; count]);
            let a = region(&mut *first, &sent);
            let b = second.alloc(sent.len() as u64).unwrap();
            launch(&mut *first, &increment, &[&a], &[1]);
            let written = first.signal().unwrap();
            second.wait(&written).unwrap();
            second.copy(whole(&b), whole(&a)).unwrap();
            let copied = second.signal().unwrap();
            first.wait(&copied).unwrap();
            launch(&mut *first, &increment, &[&a], &[10]);
            let (a, b) = (ints(&read(&mut *first, &a)), ints(&read(&mut *second, &b)));
            assert_eq!(
                (a[0], b[0], b[THREADS - 1], b[count - 1]),
                (14, 4, 4, 3 + i32::from(count == THREADS))
            );
        }
        drop((first, second, increment));
        server.finish();
    });
}

/// The file that is mapped at an address, as the kernel numbers it.
fn mapped_file(process: &str, is_it: impl Fn(std::ops::Range<usize>) -> bool) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let file = |line: &str| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).unwrap());
        is_it(from..to).then(|| words.nth(3)?.parse().ok()).flatten()
    };
    maps.lines().filter_map(file).filter(|inode| *inode > 0).collect()
}

#[test]
fn bytes_on_their_way_to_a_client_are_in_no_other_sessions_process() {
    let name = "apart::bytes_on_their_way_to_a_client_are_in_no_other_sessions_process";
    clean(name, &[("FAKE_GPU_DEVICES", "2")], |vendor| {
        let mut server = Server::new(vendor);
        let mut first = server.open();
        let a = region(&mut *first, b"theirs");
        wait_for_all(&mut *first);
        let theirs = child_processes().pop().unwrap().to_string();
        let mut second = server.platform.open(1).unwrap();
        let b = second.alloc(6).unwrap();
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        second.copy(whole(&b), whole(&a)).unwrap();
        until("the copy is there", || {
            let now = Instant::now();
            first.poll(now);
            second.poll(now).completed >= second.last()
        });
        let (fence, bytes) = second.read(whole(&b)).unwrap();
        wait(&mut *second, fence);
        assert_eq!(bytes.slice(), b"theirs");
        let at = bytes.slice().as_ptr().addr();
        let ours = mapped_file("self", |mapped| mapped.contains(&at));
        assert_eq!(ours.len(), 1);
        assert!(!mapped_file(&theirs, |_| true).contains(&ours[0]), "{vendor:?}");
        drop((first, second, a, b, bytes, written));
        server.finish();
    });
}

/// Ends a session by a kernel while another lives, and says how it ended.
fn end_by(kernel: &str, vendor: Vendor, limit: Duration) -> String {
    let mut server = Server::with(vendor, limit, &[]);
    let (mut other, mut device) = (server.open(), server.open());
    let mine = region(&mut *other, b"mine");
    let program = load(&mut *device, vendor, kernel, "p");
    let a = region(&mut *device, &[0; 4 * THREADS]);
    launch(&mut *device, &program, &[&a], &[]);
    let why = lost(&mut *device).to_string();
    assert!(device.alloc(1).is_err() && device.signal().is_err());
    assert_eq!(read(&mut *other, &mine), b"mine");
    drop((device, other, mine, a, program));
    server.finish();
    why
}

#[test]
fn fault_costs_its_session_with_the_drivers_words() {
    let name = "apart::fault_costs_its_session_with_the_drivers_words";
    let body = |vendor| {
        for (kernel, words) in [
            ("illegal_address", "kernel fault: "),
            ("assert_fails", "kernel fault: "),
            ("ecc_error", "device lost: "),
        ] {
            let why = end_by(kernel, vendor, DEADLINE);
            assert!(why.starts_with(words), "{kernel}: {why}");
        }
    };
    clean(name, &[("FAKE_GPU_FAULT", "process")], body);
}

#[test]
fn driver_that_aborts_its_process_costs_that_session() {
    let name = "apart::driver_that_aborts_its_process_costs_that_session";
    clean(name, &[("FAKE_GPU_FAULT", "abort")], |vendor| {
        let why = end_by("illegal_address", vendor, DEADLINE);
        assert!(why.starts_with("device lost: the worker was ended by signal 6"), "{why}");
    });
}

#[test]
fn endless_kernel_is_ended_by_the_watchdog() {
    clean("apart::endless_kernel_is_ended_by_the_watchdog", &[], |vendor| {
        let why = end_by("hang", vendor, Duration::from_secs(3));
        assert!(why.starts_with("kernel ran past the limit of 3s"), "{why}");
    });
}

#[test]
fn launch_beyond_the_devices_limits_fails_for_who_waits_for_it() {
    let name = "apart::launch_beyond_the_devices_limits_fails_for_who_waits_for_it";
    clean(name, &[], |vendor| {
        let mut server = Server::new(vendor);
        let mut device = server.open();
        let device_ = &mut *device;
        let increment = load(device_, vendor, "increment_i32", "pi");
        let a = region(device_, &[0; 4 * THREADS]);
        let launch_ = Launch {
            program: &increment,
            buffers: &[whole(&a)],
            values: &[1],
            global: GRID,
            local: Some([1 << 20, 1, 1]),
            timed: true,
        };
        let fence = device_.launch(&launch_).unwrap();
        wait(device_, fence);
        let refused = device_.elapsed(fence).unwrap_err();
        assert!(matches!(refused, DeviceError::Failed { .. }), "{refused}");
        eprintln!("{refused}");
        launch(device_, &increment, &[&a], &[2]);
        assert_eq!(ints(&read(device_, &a)), [2; THREADS]);
        drop((a, increment, device));
        server.finish();
    });
}

fn refused_load_costs_no_session(vendor: Vendor, name: &str, image: &[u8]) {
    let mut server = Server::new(vendor);
    let mut device = server.open();
    let program = device.load(name, image).unwrap();
    wait_for_all(&mut *device);
    let error = device.loaded(&program).unwrap_err();
    assert!(matches!(error, DeviceError::Load { .. }), "{error}");
    let a = region(&mut *device, b"alive");
    assert_eq!(read(&mut *device, &a), b"alive");
    drop((device, program, a));
    server.finish();
}

#[test]
fn program_that_cannot_be_loaded_says_why() {
    clean("apart::program_that_cannot_be_loaded_says_why", &[], |vendor| {
        refused_load_costs_no_session(vendor, "f", b"no binary at all");
    });
}

#[test]
fn program_dropped_while_it_is_loaded_leaves_its_number_to_the_next() {
    let name = "apart::program_dropped_while_it_is_loaded_leaves_its_number_to_the_next";
    clean(name, &[], |vendor| {
        let mut server = Server::new(vendor);
        let mut device = server.open();
        let a = region(&mut *device, &[0; 4 * THREADS]);
        let image = image_with(vendor, "increment_i32", "0 0", "pi");
        for count in 1..=50 {
            // What comes of the first is known while the second is on its way.
            drop(device.load("increment_i32", &image).unwrap());
            let program = device.load("increment_i32", &image).unwrap();
            wait_for_all(&mut *device);
            device.loaded(&program).unwrap();
            launch(&mut *device, &program, &[&a], &[1]);
            assert_eq!(ints(&read(&mut *device, &a)), [count; THREADS]);
        }
        drop((a, device));
        server.finish();
    });
}

#[test]
fn program_whose_name_no_driver_takes_costs_no_session() {
    clean("apart::program_whose_name_no_driver_takes_costs_no_session", &[], |vendor| {
        let image = image_with(vendor, "increment_i32", "0 0", "pi");
        refused_load_costs_no_session(vendor, "increment\0i32", &image);
    });
}

#[test]
fn memory_that_others_took_ends_the_session_with_its_reason() {
    let name = "apart::memory_that_others_took_ends_the_session_with_its_reason";
    let fail = "cuMemAllocFromPoolAsync:2,hipMallocFromPoolAsync:2";
    let body = |vendor| {
        let mut server = Server::with(vendor, DEADLINE, &[("FAKE_GPU_FAIL", fail)]);
        let mut device = server.open();
        let a = device.alloc(1 << 20).unwrap();
        let why = lost(&mut *device).to_string();
        assert!(why.starts_with("device lost: the device has no memory left"), "{why}");
        drop((device, a));
        // What the budget refuses costs nothing.
        let mut device = server.open();
        let error = device.alloc(2 << 30).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    };
    apart_on_fakes(name, &[], body, |ran| ran.watch.assert_clean());
}

#[test]
fn driver_that_a_worker_does_not_find_is_named() {
    clean("apart::driver_that_a_worker_does_not_find_is_named", &[], |vendor| {
        let none = [("LD_LIBRARY_PATH", "/nonexistent")];
        let mut server = Server::with(vendor, DEADLINE, &none);
        let mut device = server.open();
        let why = lost(&mut *device).to_string();
        assert!(why.starts_with("device lost: no driver: the loader finds none of"), "{why}");
    });
}

#[test]
fn many_sessions_at_once_are_kept_apart() {
    let environment = [("FAKE_GPU_MEMORY", "17179869184"), ("FAKE_GPU_LAG_US", "0")];
    clean("apart::many_sessions_at_once_are_kept_apart", &environment, |vendor| {
        let mut server = Server::new(vendor);
        let mut devices: Vec<_> = (0..16).map(|_| server.open()).collect();
        let mut regions = Vec::new();
        for (n, device) in (0..).zip(&mut devices) {
            regions.push(region(&mut **device, &[n; 1000]));
        }
        for (n, (device, region)) in (0..).zip(devices.iter_mut().zip(&regions)) {
            assert_eq!(read(&mut **device, region), [n; 1000]);
        }
        let half = Span::new(&regions[0], 0, 10).unwrap();
        assert!(devices[1].read(half).is_err());
    });
}

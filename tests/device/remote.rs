//! Devices that only a worker reaches. What the worker drives is a null device: real processes,
//! real shared memory, no hardware.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::device::null::NullPlatform;
use outboard::device::remote::Remote;
use outboard::device::shared::{Budget, Heap};
use outboard::device::{
    Device, DeviceError, GraphBuffer, GraphInt, GraphRun, GraphStep, Launch, Platform, Program,
    Region, Source, Span, worker,
};

use crate::late::Late;
use crate::rig::*;

/// Set in workers: what they drive.
pub(crate) const KIND: &str = "OUTBOARD_TEST_DEVICE";

/// Not a test: the workers of the tests below.
#[test]
#[ignore = "the life of a worker process; started by other tests"]
fn worker() {
    let Ok(kind) = std::env::var(KIND) else { return };
    worker::drive(move || match kind.as_str() {
        "late" => Ok(Box::new(Late::open(300_000)?)),
        "null" => NullPlatform::new(1, Arc::new(Budget::new(64 << 30))).open(0),
        "small" => NullPlatform::new(1, Arc::new(Budget::new(1 << 20))).open(0),
        _ => Err(DeviceError::Failed { what: "driver", why: "there is none".to_owned() }),
    })
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

fn run(device: &mut dyn Device, program: &Program, on: &Region) -> outboard::device::Fence {
    launch(device, program, &[on], &[])
}

#[test]
fn bytes_of_any_length_come_back_as_they_went() {
    for kind in ["null", "late"] {
        let rig = Rig::new();
        let mut device = rig.remote(kind);
        let staging = Heap::new(Arc::clone(&rig.config.budget));
        for bytes in [1_usize, 8, 4096, 16 << 10, 100_003, 9 << 20] {
            let sent = pattern(bytes);
            let small = region(&mut device, &sent);
            assert_eq!(read(&mut device, &small), sent, "{bytes} bytes");
            let mut staged = staging.alloc(sent.len() as u64).unwrap();
            staged.slice_mut().copy_from_slice(&sent);
            let large = device.alloc(sent.len() as u64).unwrap();
            device.copy_in(whole(&large), Source::Staged(&staged)).unwrap();
            assert!(device.adopt(&large, &staged).is_none());
            assert!(read(&mut device, &large) == sent, "{bytes} bytes staged");
            let part = Span::new(&large, sent.len() as u64 / 2, 1).unwrap();
            device.copy(part, Span::new(&small, 0, 1).unwrap()).unwrap();
            assert_eq!(read(&mut device, &large)[bytes / 2], sent[0]);
        }
        drop((device, staging));
        rig.finish();
    }
}

#[test]
fn work_is_queued_before_the_device_is_open_and_runs_in_order() {
    for kind in ["null", "late"] {
        let rig = Rig::new();
        let mut device = rig.remote(kind);
        let program = device.load("f", b"add1").unwrap();
        let a = region(&mut device, &[1; 100]);
        let b = region(&mut device, &[0; 100]);
        for _ in 0..100 {
            run(&mut device, &program, &a);
        }
        device.copy(whole(&b), whole(&a)).unwrap();
        run(&mut device, &program, &a);
        assert_eq!(read(&mut device, &b), [101; 100]);
        assert_eq!(read(&mut device, &a), [102; 100]);
        assert!(device.loaded(&program).is_ok());
        drop((device, program, a, b));
        rig.finish();
    }
}

#[test]
fn launches_beyond_the_ring_wait_for_room() {
    let rig = Rig::new();
    let mut device = rig.remote("null");
    let program = load(&mut device, b"add1");
    let a = region(&mut device, &[0; 4]);
    for _ in 0..20_000 {
        if let Some(fence) = device.backlog() {
            wait(&mut device, fence);
        }
        run(&mut device, &program, &a);
    }
    assert_eq!(read(&mut device, &a), [u8::try_from(20_000 % 256).unwrap(); 4]);
    drop((device, program, a));
    rig.finish();
}

#[test]
fn graph_runs_with_what_each_run_gives_it() {
    for kind in ["null", "late"] {
        let rig = Rig::new();
        let mut device = rig.remote(kind);
        let program = load(&mut device, b"add1");
        let fixed = region(&mut device, &[0; 4]);
        let inputs = [region(&mut device, &[10; 4]), region(&mut device, &[20; 4])];
        let (buffers, values) = ([GraphBuffer::Input(0)], [GraphInt::Variable(0)]);
        let (program_, global) = (&program, Some([GraphInt::Variable(0); 3]));
        let step = GraphStep::Launch {
            program: program_,
            buffers: &buffers,
            outputs: &[0],
            values: &values,
            global,
            local: None,
        };
        let (to, from) = (GraphBuffer::Fixed(whole(&fixed)), GraphBuffer::Input(0));
        let copy = GraphStep::Copy { to, from, bytes: 4 };
        let graph = device.build_graph(&[step, step, copy]).unwrap();
        for (input, expected) in inputs.iter().zip([12, 22]) {
            let run = GraphRun { inputs: &[whole(input)], ints: &[7], timed: true };
            let fence = device.run_graph(&graph, &run).unwrap();
            wait(&mut device, fence);
            assert_eq!(device.elapsed(fence).unwrap(), Duration::from_micros(1));
            assert_eq!(read(&mut device, &fixed), [expected; 4]);
        }
        drop((device, program, graph, fixed, inputs));
        rig.finish();
    }
}

#[test]
fn copies_between_devices_wait_for_both() {
    for kinds in [["null", "late"], ["late", "null"], ["late", "late"]] {
        let rig = Rig::new();
        let [mut first, mut second] = kinds.map(|kind| rig.remote(kind));
        let program = load(&mut first, b"add1");
        for bytes in [5_usize, 4 << 20, (13 << 20) + 5] {
            let sent = pattern(bytes);
            let a = region(&mut first, &sent);
            let b = second.alloc(sent.len() as u64).unwrap();
            assert!(!second.reaches(&a) && second.reaches(&b));
            let written = first.signal().unwrap();
            second.wait(&written).unwrap();
            second.copy(whole(&b), whole(&a)).unwrap();
            let copied = second.signal().unwrap();
            // What comes next on the first device must not be seen by the copy.
            first.wait(&copied).unwrap();
            run(&mut first, &program, &a);
            assert!(read(&mut second, &b) == sent, "{kinds:?}, {bytes} bytes");
            let added: Vec<u8> = sent.iter().map(|byte| byte + 1).collect();
            assert!(read(&mut first, &a) == added, "{kinds:?}, {bytes} bytes");
        }
        drop((first, second, program));
        rig.finish();
    }
}

#[test]
fn copy_from_a_device_that_ends_does_not_hold_the_other() {
    let rig = Rig::new();
    let [mut first, mut second] = ["null", "null"].map(|kind| rig.remote(kind));
    let hang = load(&mut first, b"hang");
    let a = region(&mut first, &[1; 4]);
    let b = region(&mut second, &[2; 4]);
    run(&mut first, &hang, &a);
    second.copy(whole(&b), whole(&a)).unwrap();
    first.poll(Instant::now());
    let fence = second.last();
    drop(first);
    wait(&mut second, fence);
    let c = region(&mut second, &[3; 4]);
    assert_eq!(read(&mut second, &c), [3; 4]);
    drop((second, hang, a, b, c));
    rig.finish();
}

#[test]
fn load_that_fails_says_why_and_its_launches_do_nothing() {
    let rig = Rig::new();
    let mut device = rig.remote("late");
    let program = device.load("f", b"fail").unwrap();
    let a = region(&mut device, &[5; 16]);
    run(&mut device, &program, &a);
    assert_eq!(read(&mut device, &a), [5; 16]);
    let error = device.loaded(&program).unwrap_err();
    assert_eq!(error.to_string(), "cannot load program: named so");
    drop((device, program, a));
    rig.finish();
}

#[test]
fn launch_that_the_device_refuses_fails_for_who_waits_for_it() {
    let rig = Rig::new();
    let mut device = rig.remote("null");
    let (refuse, add1) = (load(&mut device, b"refuse"), load(&mut device, b"add1"));
    let a = region(&mut device, &[5; 16]);
    let (buffers, values, global, local) = (&[whole(&a)][..], &[][..], Some([9; 3]), None);
    let launch = Launch { program: &refuse, buffers, values, global, local, timed: true };
    let fence = device.launch(&launch).unwrap();
    wait(&mut device, fence);
    assert_eq!(device.elapsed(fence).unwrap_err().to_string(), "launch: the program says so");
    run(&mut device, &add1, &a);
    assert_eq!(read(&mut device, &a), [6; 16]);
    // Where nobody waits, nobody would know that the results are wrong.
    run(&mut device, &refuse, &a);
    let why = lost(&mut device).to_string();
    assert!(why.starts_with("device lost: launch: the program says so"), "{why}");
    drop((device, refuse, add1, a));
    rig.finish();
}

/// Ends one device while another lives, and says how it ended.
fn end(rig: Rig, kind: &str, end: impl FnOnce(&mut Remote)) -> String {
    let (mut other, mut device) = (rig.remote("late"), rig.remote(kind));
    end(&mut device);
    let why = lost(&mut device).to_string();
    assert!(device.alloc(1).is_err() && device.signal().is_err() && device.backlog().is_none());
    // Its memory is back before the session ends.
    let own = region(&mut other, b"alive");
    assert_eq!(read(&mut other, &own), b"alive");
    until("the lost device's memory is back", || rig.memory.used() == (1 << 20) + 512);
    drop((device, other, own));
    rig.finish();
    why
}

#[test]
fn fault_costs_its_session_with_the_drivers_words() {
    for kind in ["null", "late"] {
        let why = end(Rig::new(), kind, |device| {
            let program = device.load("f", b"fault").unwrap();
            let a = region(device, &[1; 4]);
            run(device, &program, &a);
            run(device, &program, &a);
        });
        assert!(why.starts_with("kernel fault: the program says so; everything"), "{why}");
    }
}

#[test]
fn endless_kernel_is_ended_by_the_watchdog() {
    for kind in ["null", "late"] {
        let why = end(Rig::with_limit(Duration::from_secs(2)), kind, |device| {
            let program = device.load("f", b"hang").unwrap();
            let a = region(device, &[1; 4]);
            run(device, &program, &a);
        });
        assert!(why.starts_with("kernel ran past the limit of 2s"), "{why}");
    }
}

#[test]
fn memory_that_the_budget_has_and_the_device_has_not_ends_the_session() {
    let why = end(Rig::new(), "small", |device| drop(device.alloc(2 << 20).unwrap()));
    let expected = "device lost: the device has no memory left, which others may use too: 2097152 \
                    bytes asked, 1048576 free";
    assert!(why.starts_with(expected), "{why}");
}

#[test]
fn driver_that_cannot_be_opened_is_lost_with_its_reason() {
    let why = end(Rig::new(), "none", |device| drop(device.alloc(1).unwrap()));
    assert!(why.starts_with("device lost: driver: there is none;"), "{why}");
}

#[test]
fn descriptors_that_the_server_inherited_are_none_of_a_workers() {
    let rig = Rig::new();
    let file = tempfile::tempfile().unwrap();
    // As one that the server's own parent has left open.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let inode = rustix::fs::fstat(&file).unwrap().st_ino;
    let mut device = rig.remote("null");
    let a = region(&mut device, b"alive");
    assert_eq!(read(&mut device, &a), b"alive");
    let [worker] = children()[..] else { panic!("there is one worker") };
    let opened = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let inodes = opened.filter_map(|entry| {
        use std::os::unix::fs::MetadataExt;
        Some(std::fs::metadata(entry.ok()?.path()).ok()?.ino())
    });
    assert!(!inodes.collect::<Vec<_>>().contains(&inode));
    drop((file, a, device));
    rig.finish();
}

#[test]
fn worker_killed_from_outside_is_lost_with_its_reason() {
    let why = end(Rig::new(), "null", |device| {
        let fence = device.signal().map(|_| device.last()).unwrap();
        wait(device, fence);
        kill(*children().iter().max().unwrap());
    });
    assert!(why.starts_with("device lost: the worker was killed"), "{why}");
}

#[test]
fn allocation_past_the_devices_memory_is_refused_and_freed_memory_comes_back() {
    let rig = Rig::new();
    let mut device = rig.remote("null");
    let context = rig.memory.used();
    assert_eq!(context, 1 << 20);
    let some = device.alloc(63 << 30).unwrap();
    let error = device.alloc(1 << 30).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { asked, .. } if asked == 1 << 30));
    assert!(device.alloc(u64::MAX).is_err());
    let config = rig.remote_config("null");
    let more = device.alloc((1 << 30) - (1 << 20)).unwrap();
    assert!(matches!(Remote::open(&config), Err(DeviceError::OutOfMemory { .. })));
    drop((some, more));
    until("the worker has freed it", || {
        device.poll(Instant::now());
        rig.memory.used() == context
    });
    drop(device);
    rig.finish();
}

#[test]
fn device_dropped_in_the_middle_of_work_leaves_nothing() {
    let rig = Rig::new();
    let mut device = rig.remote("late");
    let program = device.load("f", b"add1").unwrap();
    let a = region(&mut device, &vec![0; 33 << 20]);
    for _ in 0..1000 {
        run(&mut device, &program, &a);
    }
    let (_, piece) = device.read(whole(&a)).unwrap();
    drop(device);
    drop((program, a, piece));
    // And one whose worker has had no time to start.
    drop(rig.remote("late"));
    rig.finish();
}

#[test]
fn memory_of_another_device_is_refused() {
    let rig = Rig::new();
    let (mut first, mut second) = (rig.remote("null"), rig.remote("null"));
    let program = load(&mut second, b"add1");
    let (a, b) = (region(&mut first, b"mine"), region(&mut second, b"...."));
    assert!(second.copy_in(whole(&a), Source::Bytes(b"past")).is_err());
    assert!(second.copy(whole(&a), whole(&b)).is_err());
    assert!(second.read(whole(&a)).is_err());
    let (buffers, values, global, local) = (&[whole(&a)][..], &[][..], None, None);
    let launch = Launch { program: &program, buffers, values, global, local, timed: false };
    assert!(second.launch(&launch).is_err());
    assert_eq!(read(&mut first, &a), b"mine");
    drop((first, second, program, a, b));
    rig.finish();
}

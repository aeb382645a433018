//! Several devices: copies between them, signals, what reaches what; and devices without pools.

use outboard::device::gpu::Vendor;
use outboard::device::{Device, GraphBuffer, GraphRun, GraphStep, Platform, Region};

use crate::rig::*;

/// As the engine transfers: the destination waits for the source, and the source for the copy.
fn transfer(
    (to_device, to): (&mut dyn Device, &Region),
    (from_device, from): (&mut dyn Device, &Region),
) {
    let written = from_device.signal().unwrap();
    to_device.wait(&written).unwrap();
    to_device.copy(whole(to), whole(from)).unwrap();
    let read = to_device.signal().unwrap();
    from_device.wait(&read).unwrap();
}

pub(crate) fn there_and_back(vendor: Vendor) {
    let mut rig = Rig::new(vendor);
    assert_eq!(rig.platform.device_count(), 2);
    let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
    let (first, second) = (&mut *first, &mut *second);
    let increment = load(second, vendor, "increment_i32", "p");
    let iota = load(first, vendor, "iota_", "p");
    for bytes in [256, 5_000_000] {
        let (a, b) = (first.alloc(bytes).unwrap(), second.alloc(bytes).unwrap());
        launch(first, &iota, &[&a], &[]);
        transfer((&mut *second, &b), (&mut *first, &a));
        // Overwrites what is copied, so has to wait for the copy.
        launch(first, &iota, &[&a], &[]);
        launch(second, &increment, &[&b], &[]);
        transfer((&mut *first, &a), (&mut *second, &b));
        launch(second, &increment, &[&b], &[]);
        let expected: Vec<i32> = (1..).take(THREADS).collect();
        assert_eq!(ints(&read(first, &a))[..THREADS], expected);
    }
}

#[test]
fn copies_between_devices_that_reach_each_other_arrive_in_order() {
    let name = "several::copies_between_devices_that_reach_each_other_arrive_in_order";
    let environment = &[("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "all")];
    on_fakes(name, environment, there_and_back, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuCtxEnablePeerAccess", "hipDeviceEnablePeerAccess"), 2);
    });
}

#[test]
fn copies_between_devices_that_do_not_reach_each_other_arrive_in_order() {
    let name = "several::copies_between_devices_that_do_not_reach_each_other_arrive_in_order";
    let environment = &[("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "none")];
    on_fakes(name, environment, there_and_back, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuCtxEnablePeerAccess", "hipDeviceEnablePeerAccess"), 0);
        // The server's own way (`relay`), not the driver's.
        assert_eq!(ran.calls("cuMemcpyPeerAsync", "hipMemcpyPeerAsync"), 0);
    });
}

pub(crate) fn graph_that_copies(vendor: Vendor) {
    let mut rig = Rig::new(vendor);
    let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
    let (first, second) = (&mut *first, &mut *second);
    let increment = load(second, vendor, "increment_i32", "p");
    let from = region(first, &bytes_of(&[7; THREADS]));
    let (to, bytes) = (second.alloc(from.bytes()).unwrap(), from.bytes());
    let fixed = |region| GraphBuffer::Fixed(whole(region));
    let buffers = [fixed(&to)];
    let copy = GraphStep::Copy { to: fixed(&to), from: GraphBuffer::Input(0), bytes };
    let graph = second.build_graph(&[copy, step(&increment, &buffers, &[])]).unwrap();
    for _ in 0..2 {
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        let run = GraphRun { inputs: &[whole(&from)], ints: &[], timed: false };
        second.run_graph(&graph, &run).unwrap();
        let read = second.signal().unwrap();
        first.wait(&read).unwrap();
    }
    assert_eq!(ints(&read(second, &to)), [8; THREADS]);
}

#[test]
fn graph_copies_from_a_device_within_reach() {
    let environment = &[("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "all")];
    on_fakes("several::graph_copies_from_a_device_within_reach", environment, graph_that_copies, {
        |ran| {
            ran.watch.assert_clean();
            assert_eq!(ran.calls("cuGraphLaunch", "hipGraphLaunch"), 2);
        }
    });
}

#[test]
fn graph_copies_from_a_device_out_of_reach_step_by_step() {
    let name = "several::graph_copies_from_a_device_out_of_reach_step_by_step";
    let environment = &[("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "none")];
    on_fakes(name, environment, graph_that_copies, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuGraphLaunch", "hipGraphLaunch"), 0);
        assert_eq!(ran.calls("cuMemcpyPeerAsync", "hipMemcpyPeerAsync"), 2);
    });
}

#[test]
fn sessions_of_one_device_copy_from_each_other() {
    clean_on_fakes("several::sessions_of_one_device_copy_from_each_other", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open(), rig.open());
        let from = region(&mut *first, &pattern(100_000));
        let to = second.alloc(100_000).unwrap();
        transfer((&mut *second, &to), (&mut *first, &from));
        assert!(read(&mut *second, &to) == pattern(100_000));
    });
}

#[test]
fn source_that_is_gone_fails_the_copy_alone() {
    clean_on_fakes("several::source_that_is_gone_fails_the_copy_alone", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open(), rig.open());
        let from = region(&mut *first, &pattern(1000));
        let to = region(&mut *second, &[5; 1000]);
        let point = first.signal().unwrap();
        drop(first);
        second.wait(&point).unwrap();
        assert!(second.copy(whole(&to), whole(&from)).is_err());
        assert!(read(&mut *second, &to) == [5; 1000]);
    });
}

#[test]
fn memory_of_another_device_is_refused() {
    clean_on_fakes("several::memory_of_another_device_is_refused", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open(), rig.open());
        let theirs = region(&mut *first, &pattern(256));
        let program = load(&mut *first, vendor, "increment_i32", "p");
        let own = load(&mut *second, vendor, "increment_i32", "p");
        let buffers = [whole(&theirs)];
        for program in [&own, &program] {
            let (global, local, values) = (GRID, BLOCK, &[][..]);
            let launch = outboard::device::Launch {
                program,
                buffers: &buffers,
                values,
                global,
                local,
                timed: false,
            };
            let error = second.launch(&launch).unwrap_err().to_string();
            assert!(error.contains("belongs to another device"), "{error}");
        }
        assert!(second.read(whole(&theirs)).is_err());
        let inputs = [GraphBuffer::Input(0)];
        let graph = second.build_graph(&[step(&own, &inputs, &[])]).unwrap();
        let run = GraphRun { inputs: &[whole(&theirs)], ints: &[], timed: false };
        assert!(second.run_graph(&graph, &run).is_err());
    });
}

#[test]
fn device_without_pools_does_the_same() {
    let environment = &[("FAKE_GPU_POOLS", "0")];
    clean_on_fakes("several::device_without_pools_does_the_same", environment, |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "p");
        for _ in 0..20 {
            let region = region(device, &bytes_of(&[1; 50_000]));
            launch(device, &increment, &[&region], &[]);
            assert_eq!(ints(&read(device, &region))[..=THREADS], {
                let mut expected = [2; THREADS + 1];
                expected[THREADS] = 1;
                expected
            });
        }
        let region = region(device, &pattern(1000));
        let span = |at| outboard::device::Span::new(&region, at, 800).unwrap();
        device.copy(span(100), span(0)).unwrap();
        let mut expected = pattern(1000);
        expected.copy_within(0..800, 100);
        assert!(read(device, &region) == expected);
    });
}

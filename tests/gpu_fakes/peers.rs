//! Copies straight out of another device's memory, whose session ends before they are over.

use std::time::Duration;

use outboard::device::gpu::Vendor;
use outboard::device::{Device, DeviceError, GraphBuffer, GraphRun, GraphStep, Region};

use crate::rig::*;

const WITHIN_REACH: [(&str, &str); 2] = [("FAKE_GPU_DEVICES", "2"), ("FAKE_GPU_PEERS", "all")];

/// How long the reader is busy with other things first.
const BUSY_US: i32 = 300_000;

fn graph_copy(device: &mut dyn Device, to: &Region, from: &Region) {
    let (to, input) = (GraphBuffer::Fixed(whole(to)), GraphBuffer::Input(0));
    let copy = GraphStep::Copy { to, from: input, bytes: from.bytes() };
    let graph = device.build_graph(&[copy]).unwrap();
    let run = GraphRun { inputs: &[whole(from)], ints: &[], timed: false };
    device.run_graph(&graph, &run).unwrap();
}

fn plain_copy(device: &mut dyn Device, to: &Region, from: &Region) {
    device.copy(whole(to), whole(from)).unwrap();
}

type Copy = fn(&mut dyn Device, &Region, &Region);

/// The source's session ends though nobody has told it to wait for what reads its memory.
fn end_of_a_source(vendor: Vendor, copy: Copy) {
    let mut rig = Rig::new(vendor);
    let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
    let second = &mut *second;
    let spin = load(second, vendor, "spin_us_", "pi");
    let bytes = pattern(100_000);
    let from = region(&mut *first, &bytes);
    let (busy, to) = (second.alloc(4 * THREADS as u64).unwrap(), region(second, &[9; 100_000]));
    let written = first.signal().unwrap();
    second.wait(&written).unwrap();
    launch(second, &spin, &[&busy], &[BUSY_US]);
    copy(second, &to, &from);
    drop(first);
    assert!(read(second, &to) == bytes);
    // Its thread ends, so it has given everything back.
    drop((from, written));
    settle_but(1);
}

#[test]
fn source_that_ends_is_kept_until_a_graph_has_copied_from_it() {
    let name = "peers::source_that_ends_is_kept_until_a_graph_has_copied_from_it";
    clean_on_fakes(name, &WITHIN_REACH, |vendor| end_of_a_source(vendor, graph_copy));
    let without_pools = [WITHIN_REACH[0], WITHIN_REACH[1], ("FAKE_GPU_POOLS", "0")];
    clean_on_fakes(name, &without_pools, |vendor| end_of_a_source(vendor, graph_copy));
}

#[test]
fn source_that_ends_is_kept_until_a_copy_from_it_is_made() {
    let name = "peers::source_that_ends_is_kept_until_a_copy_from_it_is_made";
    clean_on_fakes(name, &WITHIN_REACH, |vendor| end_of_a_source(vendor, plain_copy));
}

#[test]
fn source_that_ends_is_kept_until_a_reader_that_is_gone_has_copied_from_it() {
    let name = "peers::source_that_ends_is_kept_until_a_reader_that_is_gone_has_copied_from_it";
    clean_on_fakes(name, &WITHIN_REACH, |vendor| {
        let mut rig = Rig::new(vendor);
        let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
        let spin = load(&mut *second, vendor, "spin_us_", "pi");
        let from = region(&mut *first, &pattern(100_000));
        let (busy, to) =
            (second.alloc(4 * THREADS as u64).unwrap(), second.alloc(100_000).unwrap());
        launch(&mut *second, &spin, &[&busy], &[BUSY_US]);
        let written = first.signal().unwrap();
        second.wait(&written).unwrap();
        graph_copy(&mut *second, &to, &from);
        drop(second);
        drop(first);
    });
}

/// Two devices that copy from each other, where a kernel of the first does not end and the second
/// waits for it. With the memory that is copied, which the copies' caller keeps.
fn stuck_at_each_other(rig: &mut Rig, vendor: Vendor) -> ([Box<dyn Device>; 2], [Region; 2]) {
    let (mut first, mut second) = (rig.open_at(0), rig.open_at(1));
    let hang = load(&mut *first, vendor, "hang", "p");
    let ours = region(&mut *first, &pattern(5 << 20));
    let theirs = region(&mut *second, &pattern(7 << 20));
    let (here, there) = (first.alloc(theirs.bytes()).unwrap(), second.alloc(ours.bytes()).unwrap());
    let written = second.signal().unwrap();
    // It is reached, and so not what the first is stuck at.
    assert_eq!(read_span(&mut *second, &theirs, 0, 8), pattern(8));
    launch(&mut *first, &hang, &[&ours], &[]);
    first.wait(&written).unwrap();
    graph_copy(&mut *first, &here, &theirs);
    let written = first.signal().unwrap();
    second.wait(&written).unwrap();
    graph_copy(&mut *second, &there, &ours);
    ([first, second], [ours, theirs])
}

/// Nothing ends a kernel on AMD's devices but the process.
fn assert_both_ended(ran: &Ran) {
    ran.watch.assert_clean_but(&["leak"]);
    let ledger = ran.watch.ledger();
    let ended = ledger.lines().filter(|line| line.contains("destroyed:")).count();
    assert_eq!(ended, if ran.vendor == Vendor::Amd { 0 } else { 2 }, "{ledger}");
}

#[test]
fn source_that_hangs_is_ended_after_those_who_wait_for_it() {
    let name = "peers::source_that_hangs_is_ended_after_those_who_wait_for_it";
    let body = |vendor| {
        if vendor == Vendor::Amd {
            return;
        }
        let mut rig = Rig::with_limit(vendor, Duration::from_millis(600));
        let ([mut first, mut second], _kept) = stuck_at_each_other(&mut rig, vendor);
        let why = lost(&mut *first);
        assert!(matches!(why, DeviceError::Timeout { .. }), "{why}");
        // Of its own, or because the other can be ended only then.
        let why = lost(&mut *second);
        let is_told = why.to_string().contains("from which it copies");
        assert!(is_told || matches!(why, DeviceError::Timeout { .. }), "{why}");
    };
    on_fakes(name, &WITHIN_REACH, body, assert_both_ended);
}

#[test]
fn devices_that_wait_for_each_other_end_together() {
    let name = "peers::devices_that_wait_for_each_other_end_together";
    let body = |vendor| {
        if vendor == Vendor::Amd {
            return;
        }
        let mut rig = Rig::with_limit(vendor, Duration::from_millis(600));
        // As where a client is gone.
        let ([first, second], _kept) = stuck_at_each_other(&mut rig, vendor);
        match std::env::var("TEST_ORDER").unwrap().as_str() {
            "first" => drop((first, second)),
            _ => drop((second, first)),
        }
    };
    for order in ["first", "second"] {
        let environment = [WITHIN_REACH[0], WITHIN_REACH[1], ("TEST_ORDER", order)];
        on_fakes(name, &environment, body, assert_both_ended);
        if is_child() {
            return;
        }
    }
}

//! The CPU's devices from outside: real worker processes, real kernels.
//!
//! Each test has the process to itself, so that it can compare descriptors, mappings and children
//! with what there was before. Kernels are compiled here by gcc; without it, tests that need one
//! say so and pass.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod adopt;
#[path = "../support/device.rs"]
mod common;
mod faults;
mod figures;
mod late;
mod remote;
mod rig;
#[path = "../support/skip.rs"]
mod skip;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::device::shared::Heap;
use outboard::device::{
    Device, DeviceError, GraphBuffer, GraphInt, GraphRun, GraphStep, Region, Source, Span,
};

use rig::*;

#[test]
fn bytes_of_any_length_come_back_as_they_went() {
    let rig = Rig::new();
    let mut device = rig.open();
    for bytes in [1_usize, 7, 8, 4096, 16 << 10, 100_003, 3 << 20] {
        let sent: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        let region = region(&mut device, &sent);
        assert_eq!(read(&mut device, &region), sent, "{bytes} bytes");
    }
    drop(device);
    rig.finish();
}

#[test]
fn bytes_are_taken_before_the_call_returns_however_long_they_wait() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    let rig = Rig::new();
    let (mut first, mut second) = (rig.open(), rig.open());
    let program = load(&mut first, &forever);
    let go = region(&mut first, &[0; 4]);
    launch(&mut first, &program, &[&go], &[]);
    let point = first.signal().unwrap();
    second.wait(&point).unwrap();
    let regions: Vec<Region> = (0..50).map(|n| region(&mut second, &[n; 50_000])).collect();
    drop(first);
    for (n, region) in (0..).zip(&regions) {
        assert_eq!(read(&mut second, region), [n; 50_000]);
    }
    drop((second, regions, go, program, point));
    rig.finish();
}

#[test]
fn staged_bytes_of_any_length_come_back_as_they_went() {
    let rig = Rig::new();
    let mut device = rig.open();
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    for bytes in [1_u64, 4096, 1 << 20, 40 << 20] {
        let mut staged = staging.alloc(bytes).unwrap();
        staged.slice_mut().iter_mut().zip((0..=250).cycle()).for_each(|(to, from)| *to = from);
        let region = device.alloc(bytes).unwrap();
        let fence = device.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
        wait(&mut device, fence);
        assert!(device.read(whole(&region)).unwrap().1.slice() == staged.slice());
    }
    drop((device, staging));
    rig.finish();
}

#[test]
fn queued_work_runs_in_order() {
    let Some(add) = object(ADD) else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = device.load("add", &add).unwrap();
    let a = region(&mut device, &[0; 256]);
    let b = region(&mut device, &1_i32.to_ne_bytes().repeat(64));
    launch(&mut device, &program, &[&a, &b], &[2]);
    device.copy(whole(&b), whole(&a)).unwrap();
    launch(&mut device, &program, &[&a, &b], &[-1]);
    let part = Span::new(&a, 4, 4).unwrap();
    device.copy_in(part, Source::Bytes(&7_i32.to_ne_bytes())).unwrap();
    let sums = ints(&read(&mut device, &a));
    assert_eq!(sums[..3], [5, 7, 5]);
    assert!(device.loaded(&program).is_ok());
    drop((device, program, a, b));
    rig.finish();
}

#[test]
fn launches_beyond_the_ring_wait_for_room() {
    let Some(count) = object("void count(long* n) { ++*n; }") else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &count);
    let n = region(&mut device, &[0; 8]);
    let mut waits = 0;
    for _ in 0..100_000 {
        if let Some(fence) = device.backlog() {
            wait(&mut device, fence);
            assert_eq!(device.backlog(), None, "there is room after the fence");
            waits += 1;
        }
        launch(&mut device, &program, &[&n], &[]);
    }
    assert_eq!(read(&mut device, &n), 100_000_u64.to_ne_bytes());
    eprintln!("waited {waits} times");
    drop((device, program, n));
    rig.finish();
}

#[test]
fn graph_runs_with_what_each_run_gives_it() {
    let Some(add) = object(ADD) else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &add);
    let sum = region(&mut device, &[0; 256]);
    let copy = region(&mut device, &[0; 256]);
    let ones = region(&mut device, &1_i32.to_ne_bytes().repeat(64));
    let twos = region(&mut device, &2_i32.to_ne_bytes().repeat(64));
    let buffers = [GraphBuffer::Fixed(whole(&sum)), GraphBuffer::Input(0)];
    let values = [GraphInt::Variable(1)];
    let fixed = [GraphInt::Fixed(-100)];
    let step = |values| {
        let (program, global, local) = (&program, None, None);
        GraphStep::Launch { program, buffers: &buffers, outputs: &[], values, global, local }
    };
    let (to, from) = (GraphBuffer::Input(1), GraphBuffer::Fixed(whole(&sum)));
    let steps = [step(&values), step(&fixed), GraphStep::Copy { to, from, bytes: 256 }];
    let graph = device.build_graph(&steps).unwrap();
    for (input, n) in [(&ones, 10), (&twos, 1000)] {
        let inputs = [whole(input), whole(&copy)];
        let run = GraphRun { inputs: &inputs, ints: &[0, n], timed: true };
        let fence = device.run_graph(&graph, &run).unwrap();
        wait(&mut device, fence);
        assert!(device.elapsed(fence).unwrap() > Duration::ZERO);
    }
    assert_eq!(ints(&read(&mut device, &copy)), [1 + 10 + 1 - 100 + 2 + 1000 + 2 - 100; 64]);
    drop((device, program, graph, sum, copy, ones, twos));
    rig.finish();
}

#[test]
fn graph_of_many_kernels_is_one_submission() {
    let Some(count) = object("void count(long* n) { ++*n; }") else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &count);
    let n = region(&mut device, &[0; 8]);
    let (buffers, global, local) = ([GraphBuffer::Fixed(whole(&n))], None, None);
    let (program, values): (_, &[_]) = (&program, &[]);
    let step =
        GraphStep::Launch { program, buffers: &buffers, outputs: &[], values, global, local };
    let graph = device.build_graph(&[step; 10_000]).unwrap();
    let before = device.last();
    let run = GraphRun { inputs: &[], ints: &[], timed: false };
    let fence = device.run_graph(&graph, &run).unwrap();
    assert_eq!(fence.0, before.0 + 1);
    assert_eq!(read(&mut device, &n), 10_000_u64.to_ne_bytes());
    drop((device, graph, n));
}

#[test]
fn wait_holds_work_until_the_other_device_has_signalled() {
    let Some(add) = object(ADD) else { return };
    let rig = Rig::new();
    let (mut first, mut second) = (rig.open(), rig.open());
    let a = region(&mut first, &3_i32.to_ne_bytes().repeat(64));
    let b = region(&mut second, &[0; 256]);
    let one = region(&mut first, &[0; 256]);
    let program = load(&mut first, &add);
    for n in 1..100 {
        launch(&mut first, &program, &[&a, &one], &[n]);
        let point = first.signal().unwrap();
        second.wait(&point).unwrap();
        second.copy(whole(&b), whole(&a)).unwrap();
        // What comes next on the first device must not be seen by the copy.
        let copied = second.signal().unwrap();
        first.wait(&copied).unwrap();
        if n % 10 == 0 {
            assert_eq!(ints(&read(&mut second, &b))[0], 3 + n * (n + 1) / 2);
        }
    }
    drop((first, second, program, a, b, one));
    rig.finish();
}

#[test]
fn linger_gives_up_on_a_kernel_that_takes_long() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    let rig = Rig::new();
    let mut device = rig.open();
    let program = load(&mut device, &forever);
    let p = region(&mut device, &[0; 4]);
    let fence = launch(&mut device, &program, &[&p], &[]);
    for _ in 0..1000 {
        device.linger(fence);
    }
    assert!(device.poll(Instant::now()).completed < fence);
    drop((device, program, p));
    rig.finish();
}

#[test]
fn load_that_fails_says_why_and_its_launches_do_nothing() {
    let rig = Rig::new();
    let mut device = rig.open();
    let program = device.load("none", b"no object at all").unwrap();
    let a = region(&mut device, &[5; 256]);
    launch(&mut device, &program, &[&a, &a], &[]);
    assert_eq!(read(&mut device, &a), [5; 256]);
    let error = device.loaded(&program).unwrap_err();
    assert!(matches!(&error, DeviceError::Load { why } if !why.is_empty()), "{error}");
    assert_eq!(device.loaded(&program).unwrap_err().to_string(), error.to_string());
    drop((device, program, a));
    rig.finish();
}

#[test]
fn freed_memory_goes_back_and_reads_as_zero() {
    let rig = Rig::new();
    let mut device = rig.open();
    let before = memory_bytes();
    let regions: Vec<Region> = (0..8).map(|_| region(&mut device, &vec![9; 4 << 20])).collect();
    let large = region(&mut device, &vec![9; 40 << 20]);
    let fence = device.last();
    wait(&mut device, fence);
    assert!(memory_bytes() > before + (70 << 20));
    assert!(mapped_bytes(children()[0]) > 70 << 20);
    drop((regions, large));
    // Scratch keeps its last empty segment; the regions' memory goes.
    until("the memory is given back", || {
        device.poll(Instant::now());
        memory_bytes() < before + (50 << 20) && mapped_bytes(children()[0]) < 50 << 20
    });
    let again = device.alloc(4 << 20).unwrap();
    assert!(read(&mut device, &again).iter().all(|byte| *byte == 0));
    drop((device, again));
    rig.finish();
}

#[test]
fn memory_of_a_new_device_is_zero_whatever_an_old_one_left() {
    let rig = Rig::new();
    let mut device = rig.open();
    let old = [1000_usize, 1 << 20, 40 << 20].map(|bytes| region(&mut device, &vec![7; bytes]));
    let fence = device.last();
    wait(&mut device, fence);
    drop((device, old));
    let mut device = rig.open();
    for bytes in [1000, 1 << 20, 40 << 20] {
        let new = device.alloc(bytes).unwrap();
        assert!(read(&mut device, &new).iter().all(|byte| *byte == 0), "{bytes}");
    }
    drop(device);
    rig.finish();
}

#[test]
fn more_segments_than_the_socket_takes_arrive_in_the_end() {
    let Some(forever) = object("void f(volatile int* p) { while (!*p) {} }") else { return };
    let rig = Rig::new();
    let (mut first, mut second) = (rig.open(), rig.open());
    let go = first.alloc(1).unwrap();
    // Nothing runs on the second device until the first one says so.
    let program = load(&mut first, &forever);
    launch(&mut first, &program, &[&go], &[]);
    let point = first.signal().unwrap();
    second.wait(&point).unwrap();
    let regions: Vec<Region> = (0..700).map(|_| second.alloc(32 << 20).unwrap()).collect();
    for (n, region) in (0_u32..).zip(&regions) {
        let part = Span::new(region, 4096, 4).unwrap();
        second.copy_in(part, Source::Bytes(&n.to_ne_bytes())).unwrap();
    }
    drop(first);
    let fence = second.last();
    wait(&mut second, fence);
    for (n, region) in (0_u32..).zip(&regions) {
        let part = Span::new(region, 4096, 4).unwrap();
        assert_eq!(second.read(part).unwrap().1.slice(), n.to_ne_bytes());
    }
    drop((second, regions, go, program, point));
    rig.finish();
}

#[test]
fn memory_of_another_device_can_be_read_and_not_written() {
    let Some(write) = object("void f(int* p) { *p = 1; }") else { return };
    let rig = Rig::new();
    let (mut first, mut second) = (rig.open(), rig.open());
    let a = region(&mut first, b"mine");
    let b = region(&mut second, b"....");
    let point = first.signal().unwrap();
    second.wait(&point).unwrap();
    second.copy(whole(&b), whole(&a)).unwrap();
    assert_eq!(read(&mut second, &b), b"mine");
    assert!(second.copy_in(whole(&a), Source::Bytes(b"past")).is_err());
    assert!(second.copy(whole(&a), whole(&b)).is_err());
    // A graph's input is given by address; its writes meet a wall all the same.
    let program = load(&mut second, &write);
    let (buffers, values) = ([GraphBuffer::Input(0)], []);
    let (program, global, local) = (&program, None, None);
    let step = GraphStep::Launch {
        program,
        buffers: &buffers,
        outputs: &[],
        values: &values,
        global,
        local,
    };
    let graph = second.build_graph(&[step]).unwrap();
    let run = GraphRun { inputs: &[whole(&a)], ints: &[], timed: false };
    second.run_graph(&graph, &run).unwrap();
    assert!(matches!(lost(&mut second), DeviceError::Fault { .. }));
    assert_eq!(read(&mut first, &a), b"mine");
    drop((first, second, graph));
}

#[test]
fn thousands_of_freed_regions_do_not_overrun_the_queue() {
    let rig = Rig::new();
    let mut device = rig.open();
    for _ in 0..3 {
        let regions: Vec<Region> = (0..20_000).map(|_| device.alloc(256 << 10).unwrap()).collect();
        for region in regions.iter().step_by(1000) {
            device.copy_in(whole(region), Source::Bytes(&[1; 100])).unwrap();
        }
        drop(regions);
        until("all is freed", || {
            device.poll(Instant::now());
            rig.config.budget.used() < 1 << 20
        });
    }
    let region = region(&mut device, b"alive");
    assert_eq!(read(&mut device, &region), b"alive");
    drop((device, region));
    rig.finish();
}

#[test]
fn allocation_past_the_budget_is_refused_and_costs_nothing() {
    let rig = Rig::new();
    let mut device = rig.open();
    let some = device.alloc(1 << 30).unwrap();
    for bytes in [64 << 30, u64::MAX, 1 << 62] {
        let error = device.alloc(bytes).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { limit, .. } if limit == 64 << 30));
    }
    assert_eq!(rig.config.budget.used(), 1 << 30);
    drop((device, some));
    rig.finish();
}

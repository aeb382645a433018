//! What devices cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::device::isolated::Isolated;
use outboard::device::shared::Heap;
use outboard::device::{
    Device, Fence, GraphBuffer, GraphInt, GraphRun, GraphStep, Launch, Program, Source,
};

use crate::rig::*;

/// Figures for people, of a release build: `cargo test --release --test device figures --
/// --ignored --nocapture`.
#[test]
#[ignore = "prints figures, which only a quiet machine and a release build make worth reading"]
fn figures() {
    let Some(empty) = object("void empty(void) {}") else { return };
    pin();
    let rig = Rig::new();
    opening(&rig);
    let mut device = rig.open();
    let program = load(&mut device, &empty);
    round_trips(&mut device, &program);
    submissions(&mut device, &program);
    graphs(&mut device, &program);
    copies(&rig, &mut device);
    drop(device);
    eprintln!("through a worker that drives a null device:");
    let mut device = rig.remote("null");
    let program = load(&mut device, b"nothing");
    round_trips(&mut device, &program);
    let region = device.alloc(256 << 20).unwrap();
    for name in ["read of 256 MiB, GB/s", "again"] {
        let start = Instant::now();
        assert_eq!(read(&mut device, &region).len(), 256 << 20);
        eprintln!("{name:40} {:>12.2}", 0.268_435_456 / start.elapsed().as_secs_f64());
    }
}

/// Keeps this thread on one core, as a shard's is.
fn pin() {
    let first = *outboard::cores::allowed().unwrap().first().unwrap();
    let mut core = rustix::thread::CpuSet::new();
    core.set(first);
    rustix::thread::sched_setaffinity(None, &core).unwrap();
}

fn figure(name: &str, times: u32, start: Instant) {
    eprintln!("{name:40} {:>12.3?}", start.elapsed() / times);
}

fn opening(rig: &Rig) {
    let start = Instant::now();
    (0..50).for_each(|_| drop(rig.open()));
    figure("open and drop, as the server sees it", 50, start);
    until("the workers are gone", || children().is_empty());
    let start = Instant::now();
    for _ in 0..50 {
        let mut device = rig.open();
        let fence = device.signal().map(|_| device.last()).unwrap();
        wait(&mut device, fence);
    }
    figure("open to first work done", 50, start);
}

fn round_trips(device: &mut dyn Device, program: &Program) {
    let each = |name: &str, device: &mut dyn Device, wait: fn(&mut dyn Device, Fence)| {
        let mut times: Vec<Duration> = (0..2_000)
            .map(|_| {
                let start = Instant::now();
                let fence = launch(device, program, &[], &[]);
                wait(device, fence);
                start.elapsed()
            })
            .collect();
        times.sort();
        let mean = times.iter().sum::<Duration>() / 2_000;
        let (middle, late) = (times[1_000], times[1_980]);
        eprintln!("{name:40} {middle:>12.3?}, mean {mean:.3?}, of a hundred the last {late:.3?}");
    };
    each("launch and doorbell, round trip", device, |device, fence| wait(device, fence));
    each("launch, linger and doorbell, round trip", device, |device, fence| {
        device.linger(fence);
        wait(device, fence);
    });
    each("launch, watch and doorbell, round trip", device, |device, fence| {
        device.linger(fence);
        while device.watch(fence, Instant::now()) && device.poll(Instant::now()).completed < fence {
        }
        wait(device, fence);
    });
    each("launch and spin, round trip", device, |device, fence| {
        while device.poll(Instant::now()).completed < fence {
            std::hint::spin_loop();
        }
    });
}

fn submissions(device: &mut Isolated, program: &Program) {
    let buffer = device.alloc(4096).unwrap();
    let buffers = [whole(&buffer); 3];
    let (values, global, local, timed) = (&[1][..], None, None, false);
    let work = Launch { program, buffers: &buffers, values, global, local, timed };
    let mut submitting = Duration::ZERO;
    let start = Instant::now();
    for _ in 0..400 {
        if let Some(fence) = device.backlog() {
            wait(device, fence);
        }
        let start = Instant::now();
        for _ in 0..1000 {
            device.launch(&work).unwrap();
        }
        submitting += start.elapsed();
    }
    let fence = device.last();
    wait(device, fence);
    figure("launch with 3 buffers, to completion", 400_000, start);
    eprintln!("{:40} {:>12.3?}", "launch with 3 buffers, submission", submitting / 400_000);
}

fn graphs(device: &mut Isolated, program: &Program) {
    let buffer = device.alloc(4096).unwrap();
    let buffers = [GraphBuffer::Fixed(whole(&buffer)); 3];
    let (values, global, local) = ([GraphInt::Fixed(1)], None, None);
    let step = GraphStep::Launch {
        program,
        buffers: &buffers,
        outputs: &[],
        values: &values,
        global,
        local,
    };
    let start = Instant::now();
    let graph = device.build_graph(&vec![step; 10_000]).unwrap();
    let fence = device.last();
    wait(device, fence);
    figure("graph of 10,000 kernels, build, a kernel", 10_000, start);
    let run = GraphRun { inputs: &[], ints: &[], timed: true };
    let mut ran = Duration::MAX;
    for _ in 0..100 {
        let fence = device.run_graph(&graph, &run).unwrap();
        wait(device, fence);
        ran = ran.min(device.elapsed(fence).unwrap());
    }
    eprintln!("{:40} {:>12.3?}", "graph of 10,000 kernels, run, a kernel", ran / 10_000);
}

fn copies(rig: &Rig, device: &mut Isolated) {
    let bytes = 256 << 20;
    let staging = Heap::new(Arc::clone(&rig.config.budget));
    let mut staged = staging.alloc(bytes).unwrap();
    staged.slice_mut().fill(1);
    let region = device.alloc(bytes).unwrap();
    let gigabytes = |start: Instant| 0.268_435_456 / start.elapsed().as_secs_f64();
    for name in ["copy of 256 MiB into fresh memory, GB/s", "again", "again"] {
        let start = Instant::now();
        let fence = device.copy_in(whole(&region), Source::Staged(&staged)).unwrap();
        wait(device, fence);
        eprintln!("{name:40} {:>12.2}", gigabytes(start));
    }
    let mut other = vec![0; 256 << 20];
    for name in ["memcpy into fresh memory, GB/s", "again", "again"] {
        let start = Instant::now();
        other.copy_from_slice(std::hint::black_box(staged.slice()));
        eprintln!("{name:40} {:>12.2}", gigabytes(start));
        std::hint::black_box(&other);
    }
}

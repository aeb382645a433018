//! Random work on a device and on a model of it, with everything under way at once: whatever is
//! read has to be what the model says, and the fakes must see no race.

use outboard::device::{Device, GraphBuffer, GraphRun, Program, Region, Source};

use crate::rig::*;

/// Numbers that look random, the same ones for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A buffer, and what is in it.
struct Buffer {
    region: Region,
    ints: Vec<i32>,
}

impl Buffer {
    /// One that reads as zero.
    fn new(device: &mut dyn Device, length: usize) -> Buffer {
        Buffer { region: device.alloc(4 * length as u64).unwrap(), ints: vec![0; length] }
    }
}

/// What the kernel `add` does.
fn sum(buffers: &mut [Buffer], to: usize, from: [usize; 2]) {
    for at in 0..THREADS {
        let [left, right] = from.map(|from| buffers[from].ints[at]);
        buffers[to].ints[at] = left.wrapping_add(right);
    }
}

const BUFFERS: usize = 6;
/// Lengths of which copies take the computing stream, streams of their own, the device's thread.
const LENGTHS: [usize; 3] = [THREADS, 30_000, 100_000];

pub(crate) fn play(vendor: outboard::device::gpu::Vendor, seed: u64) {
    let mut rig = Rig::new(vendor);
    let mut device = rig.open();
    let device = &mut *device;
    let mut random = Random(seed);
    let add = load(device, vendor, "add_i32", "ppp");
    let increment: Program = load(device, vendor, "increment_i32", "pi");
    let lengths = (0..BUFFERS).map(|at| LENGTHS[at % LENGTHS.len()]);
    let mut buffers: Vec<Buffer> = lengths.map(|length| Buffer::new(device, length)).collect();
    let inputs = [GraphBuffer::Input(0), GraphBuffer::Input(1), GraphBuffer::Input(2)];
    let again = [GraphBuffer::Input(3), GraphBuffer::Input(1), GraphBuffer::Input(2)];
    let graph = device.build_graph(&[step(&add, &inputs, &[]), step(&add, &again, &[])]).unwrap();
    let mut staged = Vec::new();
    for turn in 0..400 {
        if let Some(fence) = device.backlog() {
            wait(device, fence);
        }
        let (a, b, c, d) = {
            let mut any = || random.below(BUFFERS);
            (any(), any(), any(), any())
        };
        match random.below(7) {
            0 => {
                let buffer = &mut buffers[a];
                buffer.ints.fill(turn);
                let bytes = bytes_of(&buffer.ints);
                device.copy_in(whole(&buffer.region), Source::Bytes(&bytes)).unwrap();
            }
            1 => {
                let buffer = &mut buffers[a];
                buffer.ints.fill(-turn);
                let range = rig.staged(&bytes_of(&buffer.ints));
                device.copy_in(whole(&buffer.region), Source::Staged(&range)).unwrap();
                staged.push(range);
            }
            2 if a != b && buffers[a].ints.len() == buffers[b].ints.len() => {
                device.copy(whole(&buffers[a].region), whole(&buffers[b].region)).unwrap();
                buffers[a].ints = buffers[b].ints.clone();
            }
            3 => {
                launch(device, &increment, &[&buffers[a].region], &[turn]);
                buffers[a].ints[..THREADS].iter_mut().for_each(|int| *int = int.wrapping_add(turn));
            }
            4 => {
                let spans = [a, b, c, d].map(|at| whole(&buffers[at].region));
                let run = GraphRun { inputs: &spans, ints: &[], timed: turn % 2 == 0 };
                device.run_graph(&graph, &run).unwrap();
                sum(&mut buffers, a, [b, c]);
                sum(&mut buffers, d, [b, c]);
            }
            5 => {
                buffers[a] = Buffer::new(device, buffers[a].ints.len());
            }
            _ => {
                let read = ints(&read(device, &buffers[a].region));
                assert!(read == buffers[a].ints, "turn {turn} of seed {seed}, buffer {a}");
            }
        }
    }
    for buffer in &buffers {
        assert!(ints(&read(device, &buffer.region)) == buffer.ints, "the end of seed {seed}");
    }
}

#[test]
fn random_work_does_what_the_model_says() {
    let name = "model::random_work_does_what_the_model_says";
    for seed in ["1", "2", "3", "4"] {
        let environment = [("FAKE_GPU_SEED", seed), ("TEST_SEED", seed)];
        clean_on_fakes(name, &environment, |vendor| {
            play(vendor, std::env::var("TEST_SEED").unwrap().parse().unwrap());
        });
        if is_child() {
            return;
        }
    }
}

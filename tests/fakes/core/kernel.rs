//! What work does to memory: copies, fills and the known kernels.

use std::sync::Arc;
use std::time::Duration;

use super::clock::Touch;
use super::files::report;
use super::memory::Memory;
use super::native::Entry;
use super::{Code, Outcome, code, size};

/// A kernel's name and what it was given.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) name: Arc<str>,
    pub(super) module: u64,
    pub(super) pointers: Vec<u64>,
    pub(super) ints: Vec<i32>,
    pub(super) threads: u64,
    pub(super) native: Option<Native>,
}

/// A real kernel with its sizes and arguments.
#[derive(Clone, Debug)]
pub(super) struct Native {
    pub(super) entry: Entry,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) arguments: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    Copy { to: u64, from: u64, bytes: u64 },
    Set { to: u64, value: u8, bytes: u64 },
    Kernel(Launch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Fill,
    Iota,
    Copy,
    Add,
    AddFloat,
    Gather,
    Increment,
    Ints,
    Spin,
    Hang,
    Fault(Code),
    Unknown,
}

/// The first that the name begins with counts.
const BEHAVIOURS: &[(&str, Behaviour)] = &[
    ("fill_", Behaviour::Fill),
    ("iota_", Behaviour::Iota),
    ("copy_", Behaviour::Copy),
    ("add_f32_", Behaviour::AddFloat),
    ("add_", Behaviour::Add),
    ("gather_", Behaviour::Gather),
    ("increment_", Behaviour::Increment),
    ("ints_", Behaviour::Ints),
    ("spin_us_", Behaviour::Spin),
    ("hang", Behaviour::Hang),
    ("illegal_address", Behaviour::Fault(code::ILLEGAL_ADDRESS)),
    ("misaligned", Behaviour::Fault(code::MISALIGNED_ADDRESS)),
    ("assert_fails", Behaviour::Fault(code::ASSERT)),
    ("illegal_instruction", Behaviour::Fault(code::ILLEGAL_INSTRUCTION)),
    ("ecc_error", Behaviour::Fault(code::ECC_UNCORRECTABLE)),
    ("launch_timeout", Behaviour::Fault(code::LAUNCH_TIMEOUT)),
];

impl Launch {
    fn behaviour(&self) -> Behaviour {
        BEHAVIOURS
            .iter()
            .find(|(prefix, _)| self.name.starts_with(prefix))
            .map_or(Behaviour::Unknown, |&(_, behaviour)| behaviour)
    }

    /// How many pointers the kernel goes through, its output included.
    fn pointers_used(&self) -> usize {
        match self.behaviour() {
            Behaviour::Fill | Behaviour::Iota | Behaviour::Increment | Behaviour::Ints => 1,
            Behaviour::Copy => 2,
            Behaviour::Add | Behaviour::AddFloat => 3,
            Behaviour::Gather | Behaviour::Unknown => self.pointers.len(),
            Behaviour::Spin => 1.min(self.pointers.len()),
            Behaviour::Hang | Behaviour::Fault(_) => 0,
        }
    }

    fn touch(&self, memory: &Memory, number: usize) -> Touch {
        let at = self.pointers[number];
        let wanted = match self.behaviour() {
            Behaviour::Unknown => 1,
            _ => self.threads.saturating_mul(4),
        };
        // What lies beyond the allocation faults when the kernel runs.
        let bytes = memory
            .find(at, 1)
            .map_or(0, |(start, allocation)| wanted.min(allocation.bytes - (at - start)));
        Touch { at, bytes, writes: number == 0 }
    }
}

impl Work {
    /// Which bytes it reads and writes.
    pub(super) fn touches(&self, memory: &Memory) -> Vec<Touch> {
        match self {
            &Work::Copy { to, from, bytes } => vec![
                Touch { at: from, bytes, writes: false },
                Touch { at: to, bytes, writes: true },
            ],
            &Work::Set { to, bytes, .. } => vec![Touch { at: to, bytes, writes: true }],
            Work::Kernel(launch) => (0..launch.pointers_used().min(launch.pointers.len()))
                .map(|number| launch.touch(memory, number))
                .collect(),
        }
    }

    /// How long it takes; `None` for ever.
    pub(super) fn duration(&self) -> Option<Duration> {
        let Work::Kernel(launch) = self else { return Some(Duration::ZERO) };
        match launch.behaviour() {
            Behaviour::Hang => None,
            Behaviour::Spin => {
                let micros = launch.ints.first().copied().unwrap_or(0);
                Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
            }
            _ => Some(Duration::ZERO),
        }
    }

    /// Does it.
    pub(super) fn perform(&self, memory: &mut Memory) -> Outcome<()> {
        match self {
            &Work::Copy { to, from, bytes } => {
                let source = reached(memory, from, bytes)?;
                let target = reached(memory, to, bytes)?;
                // SAFETY: both are `bytes` long: the machine's own memory, or pinned memory of the
                // host, which the caller of the driver keeps in place until the stream is past.
                unsafe { std::ptr::copy(source, target, size(bytes)) };
                Ok(())
            }
            &Work::Set { to, value, bytes } => {
                let target = reached(memory, to, bytes)?;
                // SAFETY: it is `bytes` long, as above.
                unsafe { target.write_bytes(value, size(bytes)) };
                Ok(())
            }
            Work::Kernel(launch) => run(launch, memory),
        }
    }
}

fn reached(memory: &Memory, at: u64, bytes: u64) -> Outcome<*mut u8> {
    memory.reach(at, bytes).ok_or_else(|| {
        report("protocol", &format!("{at:#x} with {bytes} bytes is gone when its stream is there"));
        code::ILLEGAL_ADDRESS
    })
}

fn run(launch: &Launch, memory: &mut Memory) -> Outcome<()> {
    let behaviour = launch.behaviour();
    let pointers = &launch.pointers;
    let used = launch.pointers_used();
    if let Behaviour::Fault(code) = behaviour {
        return Err(code);
    }
    if pointers.len() < used {
        return Err(code::ILLEGAL_ADDRESS);
    }
    let count = launch.threads;
    let int = |default: i32| launch.ints.first().copied().unwrap_or(default);
    let reads = |from: usize| {
        pointers[from..used].iter().map(|&at| words(memory, at, count)).collect::<Outcome<Vec<_>>>()
    };
    let indices = 0..i32::try_from(count).unwrap_or(i32::MAX);
    // Before a list as long as that is made.
    if used > 0 && behaviour != Behaviour::Unknown {
        place(memory, pointers[0], count)?;
    }
    let zipped = |add: fn(i32, i32) -> i32, inputs: &[Vec<i32>]| {
        inputs[0].iter().zip(&inputs[1]).map(|(&b, &c)| add(b, c)).collect()
    };
    let result: Vec<i32> = match behaviour {
        Behaviour::Fill => vec![int(0); size(count)],
        Behaviour::Spin if used == 0 => return Ok(()),
        Behaviour::Spin => vec![int(0); size(count)],
        Behaviour::Iota => indices.collect(),
        Behaviour::Copy => reads(1)?.remove(0),
        Behaviour::Add => zipped(i32::wrapping_add, &reads(1)?),
        Behaviour::AddFloat => zipped(add_floats, &reads(1)?),
        Behaviour::Gather => {
            let ints = launch.ints.iter().fold(0_i32, |sum, &int| sum.wrapping_add(int));
            let mut sums = vec![ints; size(count)];
            for input in reads(1)? {
                sums.iter_mut().zip(input).for_each(|(sum, x)| *sum = sum.wrapping_add(x));
            }
            sums
        }
        Behaviour::Increment => reads(0)?[0].iter().map(|x| x.wrapping_add(int(1))).collect(),
        Behaviour::Ints if launch.ints.is_empty() => vec![0; size(count)],
        Behaviour::Ints => launch.ints.iter().copied().cycle().take(size(count)).collect(),
        Behaviour::Unknown => {
            for &at in pointers {
                memory.reach(at, 1).ok_or(code::ILLEGAL_ADDRESS)?;
            }
            if let Some(native) = &launch.native {
                let Native { entry, grid, block, arguments } = native;
                // SAFETY: the arguments were checked against the kernel's parameters, and devices'
                // memory is where its addresses say. That the kernel stays inside of it is up to
                // the test.
                unsafe { entry(arguments.as_ptr(), grid.as_ptr(), block.as_ptr()) };
            }
            return Ok(());
        }
        Behaviour::Hang | Behaviour::Fault(_) => return Ok(()),
    };
    let target = place(memory, pointers[0], count)?;
    // SAFETY: `place` says that there are `count` aligned words, as many as the result has.
    unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), target, result.len()) };
    Ok(())
}

fn add_floats(b: i32, c: i32) -> i32 {
    let float = |bits: i32| f32::from_bits(bits.cast_unsigned());
    (float(b) + float(c)).to_bits().cast_signed()
}

/// Where `count` words of device memory are.
fn place(memory: &Memory, at: u64, count: u64) -> Outcome<*mut i32> {
    if !at.is_multiple_of(4) {
        return Err(code::MISALIGNED_ADDRESS);
    }
    let bytes = count.checked_mul(4).ok_or(code::ILLEGAL_ADDRESS)?;
    memory.device_of(at).ok_or(code::ILLEGAL_ADDRESS)?;
    Ok(memory.reach(at, bytes).ok_or(code::ILLEGAL_ADDRESS)?.cast())
}

fn words(memory: &Memory, at: u64, count: u64) -> Outcome<Vec<i32>> {
    let from = place(memory, at, count)?;
    // SAFETY: `place` says that there are `count` aligned words; the lock keeps others away.
    Ok(unsafe { std::slice::from_raw_parts(from, size(count)) }.to_vec())
}

//! A recorded graph in the worker, ready to run.
//!
//! Owns: the steps with all that can be known beforehand worked out: kernels looked up, addresses
//! computed, arguments in place. A run puts in what changes and then does nothing but call.
//!
//! Absent: where memory is mapped (`worker::Memory`), validation (the engine's).

use std::rc::Rc;

use super::cpu::Kernel;
use super::packet::{Address, Step, VARIABLE};
use super::ring::Ring;
use super::shared::to_usize;
use super::worker::{Failure, Memory};
use crate::config::DeviceLimits;

pub(super) struct Graph {
    steps: Vec<Ready>,
    /// Arguments of all steps, one after the other: addresses as the process knows them, integers.
    args: Vec<u64>,
    inputs: Vec<Patch>,
    ints: Vec<Patch>,
}

/// An argument that each run supplies.
struct Patch {
    arg: usize,
    position: usize,
    /// How much of an input is used, where that is known.
    bytes: u64,
}

enum Ready {
    /// Two arguments from `first`: to and from.
    Copy {
        first: usize,
        bytes: u64,
    },
    Launch {
        kernel: Rc<Kernel>,
        first: usize,
        count: usize,
    },
}

/// What one run is given.
pub(super) struct Run<'a> {
    pub(super) inputs: &'a [u64],
    pub(super) ints: &'a [u64],
}

impl Graph {
    /// Steps of programs that are not loaded are left out.
    pub(super) fn build(
        mut words: &[u64],
        memory: &Memory,
        programs: &[Option<Rc<Kernel>>],
    ) -> Result<Graph, Failure> {
        let (steps, args, inputs, ints) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut graph = Graph { steps, args, inputs, ints };
        while !words.is_empty() {
            let (step, rest) = Step::decode(words).ok_or(Failure::Packet)?;
            graph.add(step, memory, programs)?;
            words = rest;
        }
        Ok(graph)
    }

    fn add(
        &mut self,
        step: Step<'_>,
        memory: &Memory,
        programs: &[Option<Rc<Kernel>>],
    ) -> Result<(), Failure> {
        let first = self.args.len();
        match step {
            Step::Copy { to, from, bytes } => {
                self.add_buffer(to, bytes, memory)?;
                self.add_buffer(from, bytes, memory)?;
                self.steps.push(Ready::Copy { first, bytes });
            }
            Step::Launch { program, buffers, values, .. } => {
                let kernel = programs.get(to_usize(u64::from(program))).ok_or(Failure::Packet)?;
                let Some(kernel) = kernel else { return Ok(()) };
                for buffer in buffers {
                    self.add_buffer(*buffer, 0, memory)?;
                }
                values.iter().for_each(|value| self.add_int(*value));
                let (kernel, count) = (Rc::clone(kernel), self.args.len() - first);
                self.steps.push(Ready::Launch { kernel, first, count });
            }
        }
        Ok(())
    }

    fn add_buffer(&mut self, word: u64, bytes: u64, memory: &Memory) -> Result<(), Failure> {
        let arg = self.args.len();
        if word & VARIABLE == 0 {
            self.args.push(memory.address(Address::from_word(word), bytes)?);
        } else {
            self.args.push(0);
            self.inputs.push(Patch { arg, position: to_usize(word & !VARIABLE), bytes });
        }
        Ok(())
    }

    fn add_int(&mut self, word: u64) {
        let arg = self.args.len();
        self.args.push(word);
        if word & VARIABLE != 0 {
            self.ints.push(Patch { arg, position: to_usize(word & !VARIABLE), bytes: 0 });
        }
    }

    /// Runs all steps. Allocates nothing.
    pub(super) fn run(
        &mut self,
        run: &Run<'_>,
        memory: &Memory,
        ring: &Ring,
    ) -> Result<(), Failure> {
        for patch in &self.inputs {
            let input = *run.inputs.get(patch.position).ok_or(Failure::Packet)?;
            self.args[patch.arg] = memory.address(Address::from_word(input), patch.bytes)?;
        }
        for patch in &self.ints {
            self.args[patch.arg] = *run.ints.get(patch.position).ok_or(Failure::Packet)?;
        }
        for step in &self.steps {
            match step {
                Ready::Launch { kernel, first, count } => {
                    ring.begin();
                    // SAFETY: foreign code, for which the process is locked down. It was compiled
                    // for this calling convention, and the engine has checked its arguments.
                    let called = unsafe { kernel.call(&self.args[*first..*first + *count]) };
                    called.map_err(|_| Failure::Packet)?;
                }
                Ready::Copy { first, bytes } => {
                    // SAFETY: both were resolved for `bytes` bytes, by `build` or above.
                    unsafe { memory.copy(self.args[*first], self.args[*first + 1], *bytes, ring) };
                }
            }
        }
        Ok(())
    }
}

/// How many units of work a copy is, for the server's count and for the worker's.
pub(super) fn copy_units(bytes: u64) -> u64 {
    bytes.div_ceil(DeviceLimits::COPY_PIECE_BYTES)
}

//! A device whose kernels run in a worker process, on memory that the server sees.
//!
//! Owns: [`Isolated`], the [`Device`] of one session on the CPU: its memory, and what of a call
//! depends on where memory is. Absent: the queue, programs, graphs and the worker's end (`link`),
//! what becomes of packets (`worker`).
//!
//! Only queued work touches regions, so that freed memory can be handed out again at once for work
//! that is queued later.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cpu;
use super::link::{self, GraphUnits, Kind, Link};
use super::packet::{self, Address, Packet, Step, VARIABLE, int_word};
use super::replay::copy_units;
use super::shared::{Block, Freed, Heap, Range, to_u64};
use super::slot::Dead;
use super::{
    Device, DeviceError, Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, HostBytes,
    Launch, Memory, Point, Program, Region, Source, Span, Status,
};
use crate::config::DeviceLimits;

pub use super::link::WorkerConfig;

/// One session's worker process.
pub struct Isolated {
    link: Link,
    heap: Heap,
    /// Segments that go to the client's staging once the worker is past a packet.
    retiring: VecDeque<(u64, Freed)>,
    args: Vec<u64>,
}

impl Isolated {
    /// A device whose worker starts some time soon.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Failed`] where the system gives no memory, descriptors or threads.
    pub fn open(config: &WorkerConfig) -> Result<Isolated, DeviceError> {
        let link = Link::open(config, Kind::Kernels, None)?;
        let heap = Heap::of_device(Arc::clone(&config.budget), Rc::clone(&link.grave));
        Ok(Isolated { link, heap, retiring: VecDeque::new(), args: Vec::new() })
    }

    /// Comes first in each call: refuses where all is lost, and queues the end of what was dropped.
    fn ready(&mut self) -> Result<(), DeviceError> {
        self.bury();
        self.link.alive()
    }

    /// Queues the end of what was dropped, as far as the queue has room beyond one call.
    fn bury(&mut self) {
        let is_lost = self.link.lost().is_some();
        while let Some(dead) = self.link.next_dead() {
            match dead {
                Dead::Block(freed) if freed.is_segment() && !is_lost => {
                    self.retiring.push_back((self.link.last().0, freed));
                }
                // What a lost worker may still write is nobody's to use again.
                Dead::Block(freed) if freed.is_segment() => drop(freed),
                Dead::Block(freed) => {
                    if let Some(segment) = self.link.imports.find(freed.segment.id()) {
                        let at = Address::new(segment, freed.offset);
                        self.link.tell(&Packet::Discard { at, bytes: freed.whole });
                    }
                    self.heap.free(freed);
                }
                other => self.link.bury(&other),
            }
        }
        self.retire();
    }

    /// Gives segments that the worker is past to their client's staging.
    fn retire(&mut self) {
        if self.link.lost().is_some() {
            self.retiring.clear();
        }
        while self.retiring.front().is_some_and(|(packet, _)| *packet <= self.link.completed()) {
            if let Some((_, freed)) = self.retiring.pop_front() {
                self.heap.free(freed);
            }
        }
    }

    /// The worker's address of shared memory. It can write only what belongs to its session.
    fn address(&mut self, block: &Block, offset: u64) -> Result<Address, DeviceError> {
        let writable = self.heap.owns(block) || self.link.is_scratch(block);
        self.link.address(block, offset, writable)
    }

    /// The address of a part of this device's memory, or of another's to be read.
    fn any(&mut self, span: &Span<'_>) -> Result<Address, DeviceError> {
        self.address(span.region.shared()?.block(), span.offset)
    }

    /// The address of a part of this device's own memory.
    fn own(&mut self, span: &Span<'_>) -> Result<Address, DeviceError> {
        if self.heap.owns(span.region.shared()?.block()) {
            self.any(span)
        } else {
            Err(link::foreign("buffer"))
        }
    }

    /// The worker's kernels take only so many.
    fn check_count(buffers: usize, values: usize) -> Result<(), DeviceError> {
        let too_many = cpu::TooManyArguments { count: buffers + values };
        let failed = || DeviceError::Failed { what: "launch", why: too_many.to_string() };
        if too_many.count > cpu::ARGUMENTS_MAX { Err(failed()) } else { Ok(()) }
    }

    fn encode_step(
        &mut self,
        step: &GraphStep<'_>,
        words: &mut Vec<u64>,
        units: &mut GraphUnits,
    ) -> Result<(), DeviceError> {
        match step {
            GraphStep::Copy { to, from, bytes } => {
                let (to, from) = (self.graph_buffer(to)?, self.graph_source(from)?);
                Step::Copy { to, from, bytes: *bytes }.encode(words);
                units.0 += copy_units(*bytes);
            }
            GraphStep::Launch { program, buffers, values, .. } => {
                let program = self.link.program(program)?.index();
                Self::check_count(buffers.len(), values.len())?;
                let mut args = std::mem::take(&mut self.args);
                args.clear();
                for buffer in *buffers {
                    args.push(self.graph_buffer(buffer)?);
                }
                args.extend(values.iter().map(graph_int));
                let (buffers, values) = args.split_at(buffers.len());
                let (outputs, sizes) = (&[], &[]);
                Step::Launch { program, outputs, sizes, buffers, values }.encode(words);
                self.args = args;
                units.0 += 1;
            }
        }
        Ok(())
    }

    fn graph_buffer(&mut self, buffer: &GraphBuffer<'_>) -> Result<u64, DeviceError> {
        match buffer {
            GraphBuffer::Fixed(span) => Ok(self.own(span)?.word()),
            GraphBuffer::Input(position) => Ok(to_u64(*position) | VARIABLE),
        }
    }

    /// A copy may read another device's memory.
    fn graph_source(&mut self, buffer: &GraphBuffer<'_>) -> Result<u64, DeviceError> {
        match buffer {
            GraphBuffer::Fixed(span) => Ok(self.any(span)?.word()),
            GraphBuffer::Input(_) => self.graph_buffer(buffer),
        }
    }
}

/// An integer of a graph's step, as a word.
pub(super) fn graph_int(int: &GraphInt) -> u64 {
    match int {
        GraphInt::Fixed(value) => int_word(*value),
        GraphInt::Variable(position) => to_u64(*position) | VARIABLE,
    }
}

impl Device for Isolated {
    fn backlog(&mut self) -> Option<Fence> {
        self.bury();
        self.link.backlog()
    }

    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError> {
        self.ready()?;
        self.heap.alloc(bytes).map(|range| Region(Memory::Shared(range)))
    }

    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let at = self.own(&to)?;
        match from {
            Source::Bytes(bytes) => {
                let mut data = std::mem::take(&mut self.args);
                data.clear();
                packet::push_bytes(&mut data, bytes);
                let bytes = to_u64(bytes.len());
                let fence = self.link.enqueue(&Packet::Write { to: at, bytes, data: &data }, 0);
                data.shrink_to(DeviceLimits::PACKET_BYTES_MAX);
                self.args = data;
                fence
            }
            Source::Staged(range) => {
                let bytes = to.bytes();
                let from = self.address(range.block(), 0)?;
                self.link.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
            }
        }
    }

    fn adopt(&mut self, region: &Region, staged: &Range) -> Option<Region> {
        self.ready().ok()?;
        let adopted = self.heap.adopt(region.shared().ok()?.block(), staged)?;
        // The worker may have it as the source of an earlier copy. It is mapped anew when it is
        // named next. Where the queue has no room for the word the worker is lost anyway.
        let segment = adopted.block().segment().id();
        if self.link.imports.is_read_only(segment)
            && let Some(slot) = self.link.imports.remove(segment)
            && let Err(error) = self.link.enqueue(&Packet::Forget { segment: slot }, 0)
        {
            self.link.lose(error);
        }
        Some(Region(Memory::Shared(adopted)))
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let at = self.own(&to)?;
        let from = self.any(&from)?;
        let bytes = to.bytes();
        self.link.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.ready()?;
        let memory = Rc::clone(of.region.shared()?.block());
        Ok((self.last(), HostBytes { memory, offset: of.offset, bytes: of.bytes }))
    }

    fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        self.ready()?;
        self.link.load(name, binary)
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        self.link.loaded(program)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let program = self.link.program(launch.program)?.index();
        Self::check_count(launch.buffers.len(), launch.values.len())?;
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        for buffer in launch.buffers {
            args.push(self.own(buffer)?.word());
        }
        args.extend(launch.values.iter().copied().map(int_word));
        let fence = self.link.launch(program, launch.timed, &args, [0, launch.buffers.len()]);
        self.args = args;
        fence
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.ready()?;
        let (mut words, mut units) = (Vec::new(), GraphUnits::default());
        for step in steps {
            self.encode_step(step, &mut words, &mut units)?;
        }
        self.link.record(&words, units)
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        for input in run.inputs {
            args.push(self.any(input)?.word());
        }
        args.extend(run.ints.iter().copied().map(int_word));
        let fence = self.link.replay(graph, run.timed, &args, run.inputs.len());
        self.args = args;
        fence
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.ready()?;
        self.link.signal()
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.ready()?;
        self.link.wait(point)
    }

    fn last(&self) -> Fence {
        self.link.last()
    }

    fn poll(&mut self, now: Instant) -> Status {
        self.link.poll(now);
        self.bury();
        self.link.status()
    }

    fn linger(&mut self, fence: Fence) {
        self.link.linger(fence);
    }

    fn arm(&mut self, fence: Fence) {
        self.link.arm(fence);
    }

    fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        self.link.elapsed(fence)
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.doorbell())
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.link.lose(DeviceError::Lost { why: "closed".to_owned() });
        self.bury();
    }
}

//! A worker that drives a device: it does what packets say by calling the device.
//!
//! Owns: `Driven`, the other side of `remote`. The device queues work and says how far it has
//! come; a packet is done when the device has reached the fence of its work. Packets are done in
//! their order.
//!
//! Three things end a worker's sleep: packets, which the server announces in the ring; the device,
//! whose doorbell a thread of its own listens to; and another device's timeline, where the next
//! packet waits for one. No code of clients runs in this process: their kernels run on the device.
//!
//! Absent: memory that others share (`driven/sharing.rs`), the driver (`gpu`), starting and the
//! sandbox (`worker`, `sandbox`).

mod sharing;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::backoff::Watch;
use super::imports;
use super::packet::{self, Address, Packet, Step, VARIABLE};
use super::remote::SIZES;
use super::ring::{Patience, Place, Ring};
use super::segment::Segment;
use super::shared::{Budget, Heap, to_u64, to_usize};
use super::timeline::{PAGE_BYTES, Words};
use super::worker::{self, Clock, Failure};
use super::{
    Device, DeviceError, Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, HostBytes,
    Launch, LaunchSize, Program, Region, Source, Span,
};
use crate::config::DeviceLimits;
use crate::cores;

/// Why a driven worker ends.
#[derive(Debug)]
pub(super) enum End {
    Failed(Failure),
    Lost(DeviceError),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

impl From<DeviceError> for End {
    fn from(error: DeviceError) -> End {
        End::Lost(error)
    }
}

/// What one segment is.
enum Memory {
    Region(Region),
    Shared(Rc<Segment>),
    /// It was to be shared, and could not be.
    Unshared,
}

/// What happens when the device has reached a fence.
enum Then {
    /// Bytes for the server are there.
    Deliver { bytes: HostBytes, to: Address },
    /// Shared memory has been read.
    Keep { _memory: super::shared::Range },
    /// A program is loaded, or not. Its number may be another's by then.
    Loaded { index: u32, program: Rc<Program>, status: Address },
    /// All work of a packet is done.
    Packet,
    /// Another worker may have memory of this device's from now on.
    Share { channel: OwnedFd, memory: OwnedFd },
    /// This device's timeline advances.
    Signal,
    /// Timed work has ended.
    Timer(u32),
}

/// Something that waits for the device.
struct Waiting {
    fence: Fence,
    /// The packet that it belongs to.
    packet: u64,
    then: Then,
}

/// Why the next packet is not looked at.
enum Stall {
    /// The device's queue is full.
    Room(Fence),
    /// Bytes on their way to the server: as many pieces as can be are under way.
    Delivery { from: Address, to: Address, bytes: u64 },
    /// Another device has not come so far.
    Timeline { page: Rc<Segment>, value: u64 },
}

/// A worker with its device open.
pub(super) struct Driven<'d> {
    socket: BorrowedFd<'d>,
    ring: &'d Ring,
    place: Place,
    clock: Clock,
    device: &'d mut dyn Device,
    /// Packets taken from the ring.
    taken: u64,
    waiting: VecDeque<Waiting>,
    /// How far the device was at the last look.
    completed: Fence,
    stall: Option<Stall>,
    segments: Vec<Option<Memory>>,
    /// `None` where a program could not be loaded.
    programs: Vec<Option<Rc<Program>>>,
    graphs: Vec<Option<Graph>>,
    /// For parts of shared memory.
    heap: Heap,
    /// How long it looks for packets.
    patience: Patience,
    /// Whether it looks at the device, which has work, before it asks to be told.
    watch: Watch,
}

/// Packets that are taken before the device is looked at, which takes as long as one of them.
const PACKETS_AT_ONCE: usize = 32;

/// Pieces on their way to the server at a time.
const DELIVERIES_MAX: usize = 2;

impl<'d> Driven<'d> {
    pub(super) fn new(
        socket: BorrowedFd<'d>,
        ring: &'d Ring,
        clock: Clock,
        device: &'d mut dyn Device,
    ) -> Driven<'d> {
        Driven {
            socket,
            ring,
            place: Place::default(),
            clock,
            device,
            taken: 0,
            waiting: VecDeque::new(),
            completed: Fence::default(),
            stall: None,
            segments: Vec::new(),
            programs: Vec::new(),
            graphs: Vec::new(),
            heap: Heap::scratch(Arc::new(Budget::new(0))),
            patience: Patience::new(cores::are_several()),
            watch: Watch::default(),
        }
    }

    /// Waits until the device has done something, then does what packets say for as long as the
    /// device lives and `is_over` is not set.
    pub(super) fn run(&mut self, is_over: &AtomicBool) -> Result<(), End> {
        self.device.signal()?;
        let opened = self.device.last();
        let mut idle: Option<Instant> = None;
        let mut is_ready = false;
        while !is_over.load(Ordering::Relaxed) {
            let mut progress = self.settle()?;
            if is_ready {
                progress |= self.take()?;
            } else if self.completed >= opened {
                self.ring.set_ready();
                (is_ready, progress) = (true, true);
            }
            if progress {
                if let Some(since) = idle.take() {
                    self.patience.found(since.elapsed());
                }
                continue;
            }
            let opened = (!is_ready).then_some(opened);
            let now = Instant::now();
            let since = *idle.get_or_insert(now);
            let looked = now - since;
            if looked < self.patience.limit() || self.watches(opened, now) {
                if looked >= DeviceLimits::WORKER_SPIN {
                    rustix::thread::sched_yield();
                }
                (0..16).for_each(|_| std::hint::spin_loop());
                continue;
            }
            self.sleep(opened)?;
            self.patience.slept(since.elapsed());
            idle = None;
        }
        Ok(())
    }

    /// Whether the device has work that is likely to be done soon.
    fn watches(&mut self, opened: Option<Fence>, now: Instant) -> bool {
        let fence = opened.or_else(|| self.next_fence());
        fence.is_some_and(|fence| self.watch.goes_on(fence, self.completed, now))
    }

    /// Takes a few packets, as far as there are any and the next has not to wait. Whether there was
    /// any.
    fn take(&mut self) -> Result<bool, End> {
        let mut progress = false;
        for _ in 0..PACKETS_AT_ONCE {
            if self.is_stalled()? {
                break;
            }
            if let Some(fence) = self.device.backlog() {
                self.stall = Some(Stall::Room(fence));
                break;
            }
            let Some(words) = self.ring.next(&self.place) else { break };
            self.taken += 1;
            self.execute(words)?;
            let len = words.len();
            self.ring.take(&mut self.place, len);
            if self.stall.is_none() {
                self.end_packet();
            }
            progress = true;
        }
        Ok(progress)
    }

    /// Whether the next packet has to wait. Goes on with what it waits for.
    fn is_stalled(&mut self) -> Result<bool, End> {
        match self.stall.take() {
            None => return Ok(false),
            Some(Stall::Room(fence)) => {
                if self.device.poll(Instant::now()).completed < fence {
                    self.stall = Some(Stall::Room(fence));
                }
            }
            Some(Stall::Delivery { from, to, bytes }) => {
                self.deliver(from, to, bytes)?;
                if self.stall.is_none() {
                    self.end_packet();
                }
            }
            Some(Stall::Timeline { page, value }) => {
                if Words::of(page.mapping()).value() < value {
                    self.stall = Some(Stall::Timeline { page, value });
                } else {
                    self.ring.set_waiting(false);
                    self.end_packet();
                }
            }
        }
        Ok(self.stall.is_some())
    }

    /// The last packet that was taken is done once all work up to here is.
    fn end_packet(&mut self) {
        self.after(self.device.last(), Then::Packet);
    }

    fn after(&mut self, fence: Fence, then: Then) {
        self.waiting.push_back(Waiting { fence, packet: self.taken, then });
    }

    /// Does what had to wait for the device, as far as the device has come. Whether there was any.
    fn settle(&mut self) -> Result<bool, End> {
        let status = self.device.poll(Instant::now());
        self.completed = status.completed;
        let mut progress = false;
        while self.waiting.front().is_some_and(|next| next.fence <= status.completed)
            && let Some(next) = self.waiting.pop_front()
        {
            progress = true;
            match next.then {
                Then::Deliver { bytes, to } => {
                    let bytes = bytes.slice();
                    let range = self.shared(to, to_u64(bytes.len()))?;
                    range.block().write(0, bytes);
                }
                Then::Keep { .. } => {}
                Then::Loaded { index, program, status } => {
                    self.report(index, &program, status)?;
                }
                Then::Packet => {
                    if self.ring.complete(&mut self.place) {
                        worker::ring_doorbell(self.socket);
                    }
                }
                Then::Share { channel, memory } => {
                    // Where it cannot be sent, the other end sees the channel's end.
                    let _ = imports::send(&channel, b"\0", &[memory.as_fd()]);
                }
                Then::Signal => self.clock.signal(),
                Then::Timer(timer) => match self.device.elapsed(next.fence) {
                    Ok(elapsed) => self.ring.set_timer(timer, elapsed),
                    Err(error) => self.ring.refuse(timer, &error.to_string()),
                },
            }
        }
        match status.lost {
            Some(lost) => Err(End::Lost(lost)),
            None => Ok(progress),
        }
    }

    /// Sleeps until there may be something to do. `opened` is waited for before all else.
    fn sleep(&mut self, opened: Option<Fence>) -> Result<(), End> {
        let completed = self.device.poll(Instant::now()).completed;
        let fence = opened.or_else(|| self.next_fence());
        if let Some(fence) = fence.filter(|fence| *fence > completed) {
            self.device.arm(fence);
        }
        let first = opened.or_else(|| self.waiting.front().map(|waiting| waiting.fence));
        let room = match &self.stall {
            Some(Stall::Room(fence)) => Some(*fence),
            _ => None,
        };
        let timeline = match &self.stall {
            Some(Stall::Timeline { page, value }) => {
                let words = Words::of(page.mapping());
                let changes = words.changes();
                if words.value() >= *value {
                    return Ok(());
                }
                Some(changes)
            }
            _ => None,
        };
        let takes_packets = self.stall.is_none() && opened.is_none();
        // A fault does not ring.
        let is_busy = !self.waiting.is_empty() || opened.is_some();
        let most = is_busy.then_some(DeviceLimits::DRIVER_TICK);
        let Driven { ring, place, device, .. } = self;
        ring.doze(takes_packets.then_some(place), timeline, most, || {
            // The fence may have been reached just before the doorbell was asked for it.
            let status = device.poll(Instant::now());
            let reached = |fence: Option<Fence>| fence.is_some_and(|f| f <= status.completed);
            status.lost.is_some() || reached(first) || reached(room)
        });
        Ok(())
    }

    /// The fence that somebody waits for: the server, or else this worker itself.
    fn next_fence(&self) -> Option<Fence> {
        if let Some(Stall::Room(_) | Stall::Delivery { .. }) = self.stall {
            return self.waiting.front().map(|waiting| waiting.fence);
        }
        let wanted = self.ring.wanted().and_then(|packet| {
            let at = self.waiting.partition_point(|waiting| waiting.packet <= packet);
            at.checked_sub(1).and_then(|last| self.waiting.get(last))
        });
        wanted.or(self.waiting.back()).map(|waiting| waiting.fence)
    }

    fn execute(&mut self, words: &[u64]) -> Result<(), End> {
        match Packet::decode(words).ok_or(Failure::Packet)? {
            Packet::Indirect { at, words } => {
                let bytes = words.checked_mul(8).ok_or(Failure::Packet)?;
                let range = self.shared(at, bytes)?;
                let (words, _) = range.slice().as_chunks::<8>();
                let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
                match Packet::decode(&words).ok_or(Failure::Packet)? {
                    Packet::Indirect { .. } => Err(Failure::Packet.into()),
                    packet => self.perform(packet),
                }
            }
            packet => self.perform(packet),
        }
    }

    fn perform(&mut self, packet: Packet<'_>) -> Result<(), End> {
        match packet {
            Packet::Alloc { segment, bytes } => {
                let region = self.device.alloc(bytes).map_err(no_memory)?;
                worker::put(&mut self.segments, segment, Some(Memory::Region(region)));
            }
            Packet::Copy { to, from, bytes } => self.copy(to, from, bytes)?,
            Packet::Export { at, bytes } => self.export(at, bytes)?,
            Packet::Flush => self.device.flush()?,
            Packet::Forget { segment } => drop(worker::take(&mut self.segments, segment)?),
            Packet::GraphBuild { graph, steps } => {
                let built = self.record(steps)?;
                worker::put(&mut self.graphs, graph, Some(built));
            }
            Packet::GraphDrop { graph } => drop(worker::take(&mut self.graphs, graph)?),
            Packet::GraphRun { graph, timer, inputs, ints } => {
                self.replay(graph, timer, inputs, ints)?;
            }
            Packet::Import { segment, bytes, writable } => {
                let fd = worker::receive_segment(self.socket)?;
                let opened = Segment::open(fd, bytes, writable).map_err(|_| Failure::Import)?;
                worker::put(&mut self.segments, segment, Some(Memory::Shared(opened)));
            }
            Packet::Launch { program, timer, sizes, buffers, values } => {
                self.launch(program, timer, sizes, [buffers, values])?;
            }
            Packet::Load { program, status, bytes: (name_bytes, bytes), name, object } => {
                let name = bytes_of(name, u64::from(name_bytes))?;
                let name = std::str::from_utf8(&name).map_err(|_| Failure::Packet)?;
                self.load(program, status, name, &bytes_of(object, bytes)?)?;
            }
            Packet::OpenShared { segment, bytes, status } => {
                self.open_shared(segment, bytes, status)?;
            }
            Packet::Share { segment, bytes } => self.share(segment, bytes)?,
            Packet::Signal => self.after(self.device.last(), Then::Signal),
            Packet::Unload { program } => drop(worker::take(&mut self.programs, program)?),
            Packet::Wait { timeline, value } => {
                let page = self.segment(timeline)?;
                page.mapping().at(0, PAGE_BYTES).ok_or(Failure::Packet)?;
                self.ring.set_waiting(true);
                self.stall = Some(Stall::Timeline { page, value });
            }
            Packet::Write { to, bytes, data } => {
                let data = bytes_of(data, bytes)?;
                let region = region(&self.segments, to)?;
                let to = span(region, to.offset(), bytes)?;
                self.device.copy_in(to, Source::Bytes(&data))?;
            }
            Packet::Discard { .. } | Packet::Indirect { .. } => return Err(Failure::Packet.into()),
        }
        Ok(())
    }

    fn segment(&self, segment: u32) -> Result<Rc<Segment>, Failure> {
        match self.segments.get(to_usize(u64::from(segment))) {
            Some(Some(Memory::Shared(segment))) => Ok(Rc::clone(segment)),
            _ => Err(Failure::Packet),
        }
    }

    /// A part of shared memory.
    fn shared(&self, at: Address, bytes: u64) -> Result<super::shared::Range, Failure> {
        let segment = self.segment(at.segment())?;
        self.heap.borrow(&segment, at.offset(), bytes).ok_or(Failure::Packet)
    }

    fn copy(&mut self, to: Address, from: Address, bytes: u64) -> Result<(), End> {
        let target = self.segments.get(to_usize(u64::from(to.segment())));
        if let Some(Some(Memory::Unshared)) = target {
            // The other worker says that it has this memory, which is its own session's loss.
            return Ok(());
        }
        let Ok(to_region) = region(&self.segments, to) else {
            return self.deliver(from, to, bytes);
        };
        let to = span(to_region, to.offset(), bytes)?;
        if let Ok(from_region) = region(&self.segments, from) {
            self.device.copy(to, span(from_region, from.offset(), bytes)?)?;
        } else {
            let memory = self.shared(from, bytes)?;
            let fence = self.device.copy_in(to, Source::Staged(&memory))?;
            self.after(fence, Then::Keep { _memory: memory });
        }
        Ok(())
    }

    /// Goes on copying to shared memory, as many pieces at a time as the device allows.
    fn deliver(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), End> {
        let (mut from, mut to, mut left) = (from, to, bytes);
        let is_delivery = |waiting: &&Waiting| matches!(waiting.then, Then::Deliver { .. });
        let mut under_way = self.waiting.iter().filter(is_delivery).count();
        while left > 0 {
            if under_way == DELIVERIES_MAX {
                self.stall = Some(Stall::Delivery { from, to, bytes: left });
                return Ok(());
            }
            let source = span(region(&self.segments, from)?, from.offset(), left)?;
            let (fence, bytes) = self.device.read(source)?;
            let read = to_u64(bytes.slice().len());
            self.after(fence, Then::Deliver { bytes, to });
            from = Address::new(from.segment(), from.offset() + read);
            to = Address::new(to.segment(), to.offset() + read);
            left = left.checked_sub(read).ok_or(Failure::Packet)?;
            under_way += 1;
        }
        Ok(())
    }

    fn launch(
        &mut self,
        program: u32,
        timer: Option<u32>,
        sizes: &[u64],
        [buffers, values]: [&[u64]; 2],
    ) -> Result<(), End> {
        let program = self.programs.get(to_usize(u64::from(program))).ok_or(Failure::Packet)?;
        // A program that could not be loaded: its failure is reported elsewhere.
        let Some(program) = program else { return Ok(()) };
        let buffers = spans(&self.segments, buffers)?;
        let values = ints(values)?;
        let [global, local] = launch_sizes(sizes)?;
        let (buffers, values, timed) = (&buffers[..], &values[..], timer.is_some());
        let launch = Launch { program, buffers, values, global, local, timed };
        match (self.device.launch(&launch), timer) {
            (Ok(fence), Some(timer)) => self.after(fence, Then::Timer(timer)),
            (Ok(_), None) => {}
            // Sizes that the kernel cannot have: whoever waits for it hears of it.
            (Err(DeviceError::Failed { why, .. }), Some(timer)) => self.ring.refuse(timer, &why),
            (Err(error), _) => return Err(error.into()),
        }
        Ok(())
    }

    fn replay(
        &mut self,
        graph: u32,
        timer: Option<u32>,
        inputs: &[u64],
        values: &[u64],
    ) -> Result<(), End> {
        let graph = self.graphs.get(to_usize(u64::from(graph))).and_then(Option::as_ref);
        let graph = graph.ok_or(Failure::Packet)?;
        let (inputs, ints) = (spans(&self.segments, inputs)?, ints(values)?);
        let run = GraphRun { inputs: &inputs, ints: &ints, timed: timer.is_some() };
        let fence = self.device.run_graph(graph, &run)?;
        if let Some(timer) = timer {
            self.after(fence, Then::Timer(timer));
        }
        Ok(())
    }

    fn load(&mut self, index: u32, status: Address, name: &str, object: &[u8]) -> Result<(), End> {
        match self.device.load(name, object) {
            Ok(program) => {
                let program = Rc::new(program);
                worker::put(&mut self.programs, index, Some(Rc::clone(&program)));
                self.after(self.device.last(), Then::Loaded { index, program, status });
            }
            Err(DeviceError::Load { why }) => {
                worker::put(&mut self.programs, index, None);
                self.say(status, Some(&why))?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Says what became of a load.
    fn report(&mut self, index: u32, program: &Rc<Program>, at: Address) -> Result<(), Failure> {
        let why = match self.device.loaded(program) {
            Ok(()) => None,
            Err(DeviceError::Load { why }) => Some(why),
            Err(error) => Some(error.to_string()),
        };
        let place = self.programs.get_mut(to_usize(u64::from(index)));
        let is_it = |held: &Option<Rc<Program>>| {
            held.as_ref().is_some_and(|held| Rc::ptr_eq(held, program))
        };
        if why.is_some()
            && let Some(place) = place.filter(|place| is_it(place))
        {
            *place = None;
        }
        self.say(at, why.as_deref())
    }

    /// Writes what came of a packet to where the server looks once it is done.
    fn say(&self, status: Address, why: Option<&str>) -> Result<(), Failure> {
        let words = worker::outcome(why);
        let range = self.shared(status, to_u64(words.len() * 8))?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // The word that says so comes last, though nobody looks before the packet is done.
        range.block().write(8, &bytes[8..]);
        range.block().write(0, &bytes[..8]);
        Ok(())
    }

    fn record(&mut self, words: &[u64]) -> Result<Graph, End> {
        let mut rest = words;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = Step::decode(rest).ok_or(Failure::Packet)?;
            // A launch of what could not be loaded does nothing.
            if let Some(step) = DecodedStep::of(&step, &self.segments, &self.programs)? {
                steps.push(step);
            }
            rest = after;
        }
        let steps: Vec<GraphStep<'_>> = steps.iter().map(DecodedStep::step).collect();
        Ok(self.device.build_graph(&steps)?)
    }
}

/// A step of a graph, decoded.
enum DecodedStep<'s> {
    Copy {
        to: GraphBuffer<'s>,
        from: GraphBuffer<'s>,
        bytes: u64,
    },
    Launch {
        program: &'s Program,
        buffers: Vec<GraphBuffer<'s>>,
        outputs: Vec<usize>,
        values: Vec<GraphInt>,
        sizes: [Option<[GraphInt; 3]>; 2],
    },
}

impl<'s> DecodedStep<'s> {
    fn of(
        step: &Step<'_>,
        segments: &'s [Option<Memory>],
        programs: &'s [Option<Rc<Program>>],
    ) -> Result<Option<DecodedStep<'s>>, Failure> {
        Ok(Some(match *step {
            Step::Copy { to, from, bytes } => DecodedStep::Copy {
                to: graph_buffer(segments, to, bytes)?,
                from: graph_buffer(segments, from, bytes)?,
                bytes,
            },
            Step::Launch { program, outputs, sizes, buffers, values } => {
                let program = programs.get(to_usize(u64::from(program))).ok_or(Failure::Packet)?;
                let Some(program) = program else { return Ok(None) };
                let pairs = buffers.as_chunks::<2>().0.iter();
                let buffers = pairs
                    .map(|[buffer, bytes]| graph_buffer(segments, *buffer, *bytes))
                    .collect::<Result<_, _>>()?;
                let values = values.iter().map(|value| graph_int(*value));
                let values = values.collect::<Result<_, _>>()?;
                let sizes = [graph_sizes(sizes, 0)?, graph_sizes(sizes, 3)?];
                let outputs = outputs.iter().copied().map(to_usize).collect();
                DecodedStep::Launch { program, buffers, outputs, values, sizes }
            }
        }))
    }

    fn step(&self) -> GraphStep<'_> {
        match self {
            DecodedStep::Copy { to, from, bytes } => {
                GraphStep::Copy { to: *to, from: *from, bytes: *bytes }
            }
            DecodedStep::Launch { program, buffers, outputs, values, sizes } => {
                let [global, local] = *sizes;
                GraphStep::Launch { program, buffers, outputs, values, global, local }
            }
        }
    }
}

/// What an allocation that the device refuses means: the budget had room for it.
fn no_memory(error: DeviceError) -> DeviceError {
    match error {
        DeviceError::OutOfMemory { asked, free, .. } => DeviceError::Lost {
            why: format!(
                "the device has no memory left, which others may use too: {asked} bytes asked, \
                 {free} free"
            ),
        },
        other => other,
    }
}

fn region(segments: &[Option<Memory>], at: Address) -> Result<&Region, Failure> {
    match segments.get(to_usize(u64::from(at.segment()))) {
        Some(Some(Memory::Region(region))) => Ok(region),
        _ => Err(Failure::Packet),
    }
}

fn span(region: &Region, offset: u64, bytes: u64) -> Result<Span<'_>, Failure> {
    Span::new(region, offset, bytes).ok_or(Failure::Packet)
}

/// Buffers, from their addresses and lengths.
fn spans<'s>(segments: &'s [Option<Memory>], words: &[u64]) -> Result<Vec<Span<'s>>, Failure> {
    let (pairs, rest) = words.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Failure::Packet);
    }
    let one = |[at, bytes]: &[u64; 2]| {
        let at = Address::from_word(*at);
        span(region(segments, at)?, at.offset(), *bytes)
    };
    pairs.iter().map(one).collect()
}

fn graph_buffer(
    segments: &[Option<Memory>],
    word: u64,
    bytes: u64,
) -> Result<GraphBuffer<'_>, Failure> {
    if word & VARIABLE != 0 {
        return Ok(GraphBuffer::Input(to_usize(word & !VARIABLE)));
    }
    let at = Address::from_word(word);
    Ok(GraphBuffer::Fixed(span(region(segments, at)?, at.offset(), bytes)?))
}

/// The converse of [`packet::int_word`].
fn int(word: u64) -> Result<i32, Failure> {
    u32::try_from(word).map(u32::cast_signed).map_err(|_| Failure::Packet)
}

fn ints(words: &[u64]) -> Result<Vec<i32>, Failure> {
    words.iter().map(|word| int(*word)).collect()
}

fn graph_int(word: u64) -> Result<GraphInt, Failure> {
    if word & VARIABLE != 0 {
        return Ok(GraphInt::Variable(to_usize(word & !VARIABLE)));
    }
    int(word).map(GraphInt::Fixed)
}

/// Three sizes of six, from the first one's place. Zeros stand for none.
fn graph_sizes(words: &[u64], first: usize) -> Result<Option<[GraphInt; 3]>, Failure> {
    let words = words.get(first..).and_then(|words| words.first_chunk::<3>());
    let words = *words.ok_or(Failure::Packet)?;
    if words == [packet::int_word(0); 3] {
        return Ok(None);
    }
    let [x, y, z] = words.map(graph_int);
    Ok(Some([x?, y?, z?]))
}

fn launch_sizes(words: &[u64]) -> Result<[Option<LaunchSize>; 2], Failure> {
    let [x, y, z, a, b, c] = *words.first_chunk::<SIZES>().ok_or(Failure::Packet)?;
    let three = |words: [u64; 3]| {
        let [x, y, z] = words.map(int);
        let sizes = [x?, y?, z?];
        Ok::<_, Failure>((sizes != [0; 3]).then_some(sizes))
    };
    Ok([three([x, y, z])?, three([a, b, c])?])
}

/// The first bytes of some words.
fn bytes_of(words: &[u64], bytes: u64) -> Result<Vec<u8>, Failure> {
    let mut all: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let bytes = to_usize(bytes);
    if bytes > all.len() {
        return Err(Failure::Packet);
    }
    all.truncate(bytes);
    Ok(all)
}

/// Listens to a device's doorbell, on a thread that ends with the bell or the process, and rouses
/// the worker.
pub(super) fn listen(doorbell: OwnedFd, ring: OwnedFd) -> io::Result<()> {
    let ring = move || Ring::open(&ring);
    std::thread::Builder::new().name("outboard-doorbell".to_owned()).spawn(move || {
        let Ok(ring) = ring() else { return };
        loop {
            let mut fds = [PollFd::new(&doorbell, PollFlags::IN)];
            if rustix::event::poll(&mut fds, None).is_err() {
                continue;
            }
            // Both kinds of bell, sockets and counters, give what they have to one read.
            let heard = rustix::io::read(&doorbell, &mut [0; 64]);
            ring.rouse();
            if matches!(heard, Ok(0)) {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;

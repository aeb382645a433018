//! The server's side of a worker process.
//!
//! Owns: [`Isolated`], the [`Device`] of one session: it turns calls into packets, keeps what the
//! worker may still use, and notices the worker's end. Absent: what packets look like (`packet`),
//! what becomes of them (`worker`), starting and reaping (`process`).
//!
//! Two heaps: regions, which only queued work touches, so that freed memory can be handed out again
//! at once for work that is queued later; and scratch, which the server writes by itself, so that a
//! piece of it is kept until the worker is past the packet that reads it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::backoff::Backoff;
use super::cpu;
use super::imports::{self, Imports};
use super::packet::{self, Address, Packet, Step, VARIABLE, int_word};
use super::process::{Exit, Process, Start};
use super::replay::copy_units;
use super::ring::{Producer, Ring};
use super::shared::{Block, Budget, Freed, Heap, Range, Segment, to_u64};
use super::slot::{Dead, Graveyard, Slot, Slots};
use super::timeline::Timeline;
use super::worker::Failure;
use super::{
    Code, Device, DeviceError, Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, HostBytes,
    Launch, Memory, Point, Program, Recording, Region, Source, Span, Status,
};
use crate::config::DeviceLimits;
use crate::cores;

/// What all workers of a server have in common.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The program that is started with the argument `worker`: this one, unless it is a test's.
    pub exe: PathBuf,
    /// See [`DeviceLimits::kernel_time_max`].
    pub kernel_time_max: Duration,
    /// The memory of all sessions.
    pub budget: Arc<Budget>,
}

/// One session's worker process.
pub struct Isolated {
    process: Process,
    socket: OwnedFd,
    ring: Producer,
    timeline: Rc<Timeline>,
    /// Signals queued.
    signals: u64,
    grave: Rc<Graveyard>,
    heap: Heap,
    scratch: Heap,
    /// Scratch in use, until the worker is past a packet.
    held: VecDeque<(u64, Rc<Block>)>,
    /// Segments that go to the client's staging once the worker is past a packet.
    retiring: VecDeque<(u64, Freed)>,
    imports: Imports,
    programs: Slots,
    graphs: Slots,
    timers: Timers,
    /// The packet for which the doorbell was asked.
    armed: Option<u64>,
    /// Nothing is done on the only core while somebody looks.
    can_linger: bool,
    lingering: Backoff,
    watchdog: Watchdog,
    lost: Option<DeviceError>,
    words: Vec<u64>,
    args: Vec<u64>,
}

/// What the server knows of a program.
pub(super) struct ProgramState {
    /// Where the worker reports the load.
    pub(super) status: Range,
}

/// What the server knows of a graph: how many kernels and pieces of copies it has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GraphUnits(u64);

impl Isolated {
    /// A device whose worker starts some time soon.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Failed`] where the system gives no memory, descriptors or threads.
    pub fn open(config: &WorkerConfig) -> Result<Isolated, DeviceError> {
        let failed = |e: io::Error| DeviceError::Failed { what: "worker", why: e.to_string() };
        let (ring, ring_fd) = Ring::create().map_err(failed)?;
        let timeline = Timeline::create()?;
        let (socket, theirs) = socket_pair().map_err(failed)?;
        let page = Arc::clone(timeline.segment().file());
        let parent = rustix::process::getpid().as_raw_nonzero().get().to_ne_bytes();
        imports::send(&socket, &parent, &[ring_fd.as_fd(), page.as_fd()])
            .map_err(|e| failed(e.into()))?;
        let exe = config.exe.clone();
        let process = Process::start(Start { exe, socket: theirs, timeline: page })?;
        let grave = Rc::<Graveyard>::default();
        Ok(Isolated {
            process,
            socket,
            ring: Producer::new(ring),
            timeline,
            signals: 0,
            heap: Heap::of_device(Arc::clone(&config.budget), Rc::clone(&grave)),
            grave,
            scratch: Heap::scratch(Arc::clone(&config.budget)),
            held: VecDeque::new(),
            retiring: VecDeque::new(),
            imports: Imports::default(),
            programs: Slots::default(),
            graphs: Slots::default(),
            timers: Timers::default(),
            armed: None,
            can_linger: cores::are_several(),
            lingering: Backoff::default(),
            watchdog: Watchdog::new(config.kernel_time_max),
            lost: None,
            words: Vec::new(),
            args: Vec::new(),
        })
    }

    /// Comes first in each call: refuses where all is lost, and queues the end of what was dropped.
    fn ready(&mut self) -> Result<(), DeviceError> {
        self.bury();
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// Queues the end of what was dropped, as far as the queue has room beyond one call.
    fn bury(&mut self) {
        const ROOM: usize = DeviceLimits::RING_CALL_BYTES + 64;
        while self.lost.is_some() || self.ring.ensure(ROOM) {
            let Some(dead) = self.grave.pop() else { break };
            let packet = self.end_of(&dead);
            if let Some(packet) = packet.filter(|_| self.lost.is_none()) {
                // There is room, as the loop has checked.
                drop(self.enqueue(&packet, 0));
            }
            match dead {
                Dead::Block(freed) if freed.is_segment() && self.lost.is_none() => {
                    self.retiring.push_back((self.ring.submitted(), freed));
                }
                // What a lost worker may still write is nobody's to use again.
                Dead::Block(freed) if freed.is_segment() => drop(freed),
                Dead::Block(freed) => self.heap.free(freed),
                Dead::Graph(_) | Dead::Program(_) | Dead::Segment(_) => {}
            }
        }
        self.retire();
    }

    /// What the worker hears of a dropped resource, if it knows of it at all.
    fn end_of(&mut self, dead: &Dead) -> Option<Packet<'static>> {
        Some(match dead {
            Dead::Block(freed) if freed.is_segment() => return None,
            Dead::Block(freed) => {
                let segment = self.imports.find(freed.segment.id())?;
                let at = Address::new(segment, freed.offset);
                Packet::Discard { at, bytes: freed.whole }
            }
            Dead::Graph(graph) => {
                self.graphs.give(*graph);
                Packet::GraphDrop { graph: *graph }
            }
            Dead::Program(program) => {
                self.programs.give(*program);
                Packet::Unload { program: *program }
            }
            Dead::Segment(segment) => Packet::Forget { segment: self.imports.remove(*segment)? },
        })
    }

    /// Queues a packet. One that is too long for the queue goes through scratch memory.
    fn enqueue(&mut self, packet: &Packet<'_>, units: u64) -> Result<Fence, DeviceError> {
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        packet.encode(&mut words);
        let fence = if size_of_val(words.as_slice()) <= DeviceLimits::PACKET_BYTES_MAX {
            self.push(&[&words], units)
        } else {
            self.enqueue_elsewhere(&words, units)
        };
        words.shrink_to(DeviceLimits::PACKET_BYTES_MAX);
        self.words = words;
        fence
    }

    fn enqueue_elsewhere(&mut self, words: &[u64], units: u64) -> Result<Fence, DeviceError> {
        let mut range = self.scratch.alloc(to_u64(size_of_val(words)))?;
        let to = range.slice_mut().as_chunks_mut::<8>().0;
        for (to, word) in to.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        let at = self.address(range.block(), 0)?;
        let mut indirect = Vec::with_capacity(4);
        Packet::Indirect { at, words: to_u64(words.len()) }.encode(&mut indirect);
        let fence = self.push(&[&indirect], units)?;
        self.hold(fence, &range);
        Ok(fence)
    }

    fn push(&mut self, parts: &[&[u64]], units: u64) -> Result<Fence, DeviceError> {
        let full = || DeviceError::Failed { what: "queue", why: "no room for a call".to_owned() };
        let packet = self.ring.push_parts(parts, units).ok_or_else(full)?;
        self.ring.publish();
        Ok(Fence(packet))
    }

    /// Keeps scratch memory until the worker is past `fence`.
    fn hold(&mut self, fence: Fence, range: &Range) {
        self.held.push_back((fence.0, Rc::clone(range.block())));
    }

    /// The worker's number of a segment, which it imports first if it has to.
    fn import(&mut self, segment: &Rc<Segment>, writable: bool) -> Result<u32, DeviceError> {
        if let Some(slot) = self.imports.find(segment.id()) {
            return Ok(slot);
        }
        let full =
            || DeviceError::Failed { what: "queue", why: "no room to map memory".to_owned() };
        if !self.ring.ensure(64) {
            return Err(full());
        }
        let slot = self.imports.add(segment, writable, &self.grave).ok_or_else(full)?;
        let bytes = to_u64(segment.mapping().bytes());
        let mut words = Vec::with_capacity(4);
        Packet::Import { segment: slot, bytes, writable }.encode(&mut words);
        self.push(&[&words], 0)?;
        self.send_imports();
        Ok(slot)
    }

    fn send_imports(&mut self) {
        if let Err(error) = self.imports.flush(&self.socket) {
            self.lose(DeviceError::Lost { why: format!("cannot share memory: {error}") });
        }
    }

    /// The worker's address of shared memory. It can write only what belongs to its session.
    fn address(&mut self, block: &Block, offset: u64) -> Result<Address, DeviceError> {
        let writable = self.heap.owns(block) || self.scratch.owns(block);
        let segment = self.import(block.segment(), writable)?;
        Ok(Address::new(segment, block.offset() + offset))
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
            Err(foreign("buffer"))
        }
    }

    /// The worker's kernels take only so many.
    fn check_count(buffers: usize, values: usize) -> Result<(), DeviceError> {
        let too_many = cpu::TooManyArguments { count: buffers + values };
        let failed = || DeviceError::Failed { what: "launch", why: too_many.to_string() };
        if too_many.count > cpu::ARGUMENTS_MAX { Err(failed()) } else { Ok(()) }
    }

    fn check<T>(&self, slot: &Slot<T>, what: &'static str) -> Result<(), DeviceError> {
        if slot.belongs_to(&self.grave) { Ok(()) } else { Err(foreign(what)) }
    }

    /// Queues timed work: `packet` is told the timer.
    fn enqueue_timed<'p>(
        &mut self,
        timed: bool,
        units: u64,
        packet: impl FnOnce(Option<u32>) -> Packet<'p>,
    ) -> Result<Fence, DeviceError> {
        let timer = timed.then(|| self.timers.next());
        let fence = self.enqueue(&packet(timer), units)?;
        if let Some(timer) = timer {
            self.timers.started(fence, timer);
        }
        Ok(fence)
    }

    /// The end of this device, for `why`. Nothing is queued any more.
    fn lose(&mut self, why: DeviceError) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.process.kill();
            self.held.clear();
            self.retiring.clear();
            self.bury();
        }
    }

    /// Gives segments that the worker is past to their client's staging.
    fn retire(&mut self) {
        while self.retiring.front().is_some_and(|(packet, _)| *packet <= self.ring.completed()) {
            if let Some((_, freed)) = self.retiring.pop_front() {
                self.heap.free(freed);
            }
        }
    }

    /// Looks at the worker: what it has done, whether it lives, whether it takes too long.
    fn look(&mut self, now: Instant) {
        // The exit first: what the queue says after it is final.
        let exit = self.process.exit().cloned();
        if self.ring.look().is_err() {
            self.lose(DeviceError::Lost { why: "the worker spoiled its queue".to_owned() });
            return;
        }
        while self.held.front().is_some_and(|held| held.0 <= self.ring.completed()) {
            self.held.pop_front();
        }
        if let Some(exit) = exit {
            self.lose(reason(&exit));
        } else if self.watchdog.is_late(&self.ring, now) {
            self.lose(DeviceError::Timeout { limit: self.watchdog.limit });
        }
    }
}

/// A socket pair; the server's end does not block.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn foreign(what: &'static str) -> DeviceError {
    DeviceError::Failed { what, why: "it belongs to another device".to_owned() }
}

/// What a worker's end means.
fn reason(exit: &Exit) -> DeviceError {
    let fault = |what: &str| DeviceError::Fault { what: what.to_owned() };
    let lost = |why| DeviceError::Lost { why };
    let status = match exit {
        Exit::Ended(status) => *status,
        Exit::Unknown(why) => return lost(why.clone()),
    };
    match status.signal() {
        Some(libc::SIGBUS | libc::SIGSEGV) => fault("memory access outside its buffers"),
        Some(libc::SIGFPE) => fault("arithmetic fault"),
        Some(libc::SIGILL | libc::SIGTRAP) => fault("illegal instruction"),
        Some(libc::SIGSYS) => fault("forbidden system call"),
        Some(libc::SIGXCPU) => fault("processor time used up"),
        Some(libc::SIGKILL) => lost("the worker was killed; is memory short?".to_owned()),
        Some(signal) => lost(format!("the worker was ended by signal {signal}")),
        None => lost(exit_words(status)),
    }
}

fn exit_words(status: ExitStatus) -> String {
    let code = status.code().unwrap_or_default();
    match Failure::from_code(code) {
        Some(why) => format!("the worker ended: {why}"),
        None => format!("the worker ended with code {code}"),
    }
}

impl Device for Isolated {
    fn backlog(&mut self) -> Option<Fence> {
        self.bury();
        if self.lost.is_some() || self.ring.ensure(DeviceLimits::RING_BYTES / 2) {
            return None;
        }
        self.ring.room(DeviceLimits::RING_BYTES / 2).map(Fence)
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
                let fence = self.enqueue(&Packet::Write { to: at, bytes, data: &data }, 0);
                data.shrink_to(DeviceLimits::PACKET_BYTES_MAX);
                self.args = data;
                fence
            }
            Source::Staged(range) => {
                let bytes = to.bytes();
                let from = self.address(range.block(), 0)?;
                self.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
            }
        }
    }

    fn adopt(&mut self, region: &Region, staged: &Range) -> Option<Region> {
        self.ready().ok()?;
        let adopted = self.heap.adopt(region.shared().ok()?.block(), staged)?;
        // The worker may have it as the source of an earlier copy. It is mapped anew when it is
        // named next. Where the queue has no room for the word the worker is lost anyway.
        let segment = adopted.block().segment().id();
        if self.imports.is_read_only(segment)
            && let Some(slot) = self.imports.remove(segment)
            && let Err(error) = self.enqueue(&Packet::Forget { segment: slot }, 0)
        {
            self.lose(error);
        }
        Some(Region(Memory::Shared(adopted)))
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let at = self.own(&to)?;
        let from = self.any(&from)?;
        let bytes = to.bytes();
        self.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.ready()?;
        let memory = Rc::clone(of.region.shared()?.block());
        Ok((self.last(), HostBytes { memory, offset: of.offset, bytes: of.bytes }))
    }

    fn load(&mut self, binary: &[u8]) -> Result<Program, DeviceError> {
        self.ready()?;
        let mut status = self.scratch.alloc(DeviceLimits::LOAD_STATUS_BYTES)?;
        status.slice_mut()[..8].fill(0);
        let at = self.address(status.block(), 0)?;
        let mut object = Vec::with_capacity(binary.len() / 8 + 1);
        packet::push_bytes(&mut object, binary);
        let (program, bytes) = (self.programs.take(), to_u64(binary.len()));
        let load = Packet::Load { program, status: at, bytes, object: &object };
        match self.enqueue(&load, 0) {
            Ok(fence) => {
                self.hold(fence, &status);
                let state = ProgramState { status };
                Ok(Program(Code::Slot(Slot::new(program, Dead::Program, &self.grave, state))))
            }
            Err(error) => {
                self.programs.give(program);
                Err(error)
            }
        }
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        let slot = program.slot()?;
        self.check(slot, "program")?;
        let (state, message) = slot.state.status.slice().split_at(8);
        let word = u64::from_ne_bytes(state.try_into().expect("split at 8"));
        match (word & u64::from(u32::MAX), usize::try_from(word >> 32)) {
            (1, _) => Ok(()),
            (2, Ok(bytes)) => {
                let message = &message[..bytes.min(message.len())];
                Err(DeviceError::Load { why: String::from_utf8_lossy(message).into_owned() })
            }
            _ => Err(self.lost.clone().unwrap_or(DeviceError::Failed {
                what: "program",
                why: "its load has no outcome yet".to_owned(),
            })),
        }
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let slot = launch.program.slot()?;
        self.check(slot, "program")?;
        Self::check_count(launch.buffers.len(), launch.values.len())?;
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        for buffer in launch.buffers {
            args.push(self.own(buffer)?.word());
        }
        args.extend(launch.values.iter().copied().map(int_word));
        let (buffers, values) = args.split_at(launch.buffers.len());
        let program = slot.index();
        let timer = launch.timed.then(|| self.timers.next());
        let fence = match packet::launch_head(program, timer, buffers, values) {
            head if size_of_val(&head) + size_of_val(&*args) <= DeviceLimits::PACKET_BYTES_MAX => {
                self.push(&[&head, &args], 1)
            }
            _ => self.enqueue(&Packet::Launch { program, timer, buffers, values }, 1),
        };
        self.args = args;
        if let (Some(timer), Ok(fence)) = (timer, &fence) {
            self.timers.started(*fence, timer);
        }
        fence
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.ready()?;
        let (mut words, mut units) = (Vec::new(), GraphUnits::default());
        for step in steps {
            self.encode_step(step, &mut words, &mut units)?;
        }
        let graph = self.graphs.take();
        match self.enqueue(&Packet::GraphBuild { graph, steps: &words }, 0) {
            Ok(_) => Ok(Graph(Recording::Slot(Slot::new(graph, Dead::Graph, &self.grave, units)))),
            Err(error) => {
                self.graphs.give(graph);
                Err(error)
            }
        }
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let slot = graph.slot()?;
        self.check(slot, "graph")?;
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        for input in run.inputs {
            args.push(self.any(input)?.word());
        }
        args.extend(run.ints.iter().copied().map(int_word));
        let (inputs, ints) = args.split_at(run.inputs.len());
        let (graph, units) = (slot.index(), slot.state.0);
        let packet = |timer| Packet::GraphRun { graph, timer, inputs, ints };
        let fence = self.enqueue_timed(run.timed, units, packet);
        self.args = args;
        fence
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.ready()?;
        self.enqueue(&Packet::Signal, 0)?;
        self.signals += 1;
        Ok(Point { timeline: Rc::clone(&self.timeline), value: self.signals })
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.ready()?;
        if Rc::ptr_eq(&point.timeline, &self.timeline) {
            return Ok(self.last());
        }
        let timeline = self.watch(point)?;
        let fence = self.enqueue(&Packet::Wait { timeline, value: point.value }, 0)?;
        self.watchdog.may_wait(fence);
        Ok(fence)
    }

    fn last(&self) -> Fence {
        Fence(self.ring.submitted())
    }

    fn poll(&mut self, now: Instant) -> Status {
        if self.lost.is_none() {
            self.look(now);
        }
        if self.lost.is_none() {
            self.send_imports();
        }
        self.bury();
        Status { completed: Fence(self.ring.completed()), lost: self.lost.clone() }
    }

    fn linger(&mut self, fence: Fence) {
        // What is impossible is left to the next poll.
        let is_there = |ring: &mut Producer| ring.look().is_err() || ring.completed() >= fence.0;
        if self.lost.is_some() || is_there(&mut self.ring) || self.ring.is_waking() {
            return;
        }
        if !self.can_linger || !self.lingering.is_due() {
            return;
        }
        let start = Instant::now();
        while !is_there(&mut self.ring) {
            if start.elapsed() >= DeviceLimits::LINGER {
                return self.lingering.failed();
            }
            (0..16).for_each(|_| std::hint::spin_loop());
        }
        self.lingering.succeeded();
    }

    fn arm(&mut self, fence: Fence) {
        let completed = self.ring.completed();
        let earlier = |armed: u64| armed > completed && armed <= fence.0;
        if fence.0 > completed && !self.armed.is_some_and(earlier) {
            self.armed = Some(fence.0);
            self.ring.arm(fence.0);
        }
    }

    fn elapsed(&mut self, fence: Fence) -> Duration {
        self.timers.take(fence).map_or(Duration::ZERO, |timer| self.ring.timer(timer))
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

impl Isolated {
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
                let slot = program.slot()?;
                self.check(slot, "program")?;
                Self::check_count(buffers.len(), values.len())?;
                let mut args = std::mem::take(&mut self.args);
                args.clear();
                for buffer in *buffers {
                    args.push(self.graph_buffer(buffer)?);
                }
                args.extend(values.iter().map(graph_int));
                let (buffers, values) = args.split_at(buffers.len());
                Step::Launch { program: slot.index(), buffers, values }.encode(words);
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

    /// The worker's number of another device's timeline.
    fn watch(&mut self, point: &Point) -> Result<u32, DeviceError> {
        point.timeline.watch();
        self.import(point.timeline.segment(), false)
    }
}

fn graph_int(int: &GraphInt) -> u64 {
    match int {
        GraphInt::Fixed(value) => int_word(*value),
        GraphInt::Variable(position) => to_u64(*position) | VARIABLE,
    }
}

impl Drop for Isolated {
    /// The process is killed by its own drop. Regions may outlive the device; nobody will look into
    /// the graveyard for them.
    fn drop(&mut self) {
        self.lose(DeviceError::Lost { why: "closed".to_owned() });
        self.grave.close();
    }
}

/// Which timer measures which work.
#[derive(Default)]
struct Timers {
    next: u32,
    running: VecDeque<(Fence, u32)>,
}

impl Timers {
    fn next(&mut self) -> u32 {
        let timers = u32::try_from(DeviceLimits::TIMERS).expect("few timers");
        self.next = (self.next + 1) % timers;
        self.next
    }

    fn started(&mut self, fence: Fence, timer: u32) {
        if self.running.len() == DeviceLimits::TIMERS {
            self.running.pop_front();
        }
        self.running.push_back((fence, timer));
    }

    fn take(&mut self, fence: Fence) -> Option<u32> {
        let at = self.running.iter().position(|(running, _)| *running == fence)?;
        self.running.remove(at).map(|(_, timer)| timer)
    }
}

/// Notices work that does not move.
struct Watchdog {
    limit: Duration,
    /// What was seen when the work last moved, and when that was.
    seen: Option<(u64, u64, Instant)>,
    /// Packets that may wait for other devices, which is no fault of theirs.
    waits: VecDeque<u64>,
}

impl Watchdog {
    fn new(limit: Duration) -> Watchdog {
        Watchdog { limit, seen: None, waits: VecDeque::new() }
    }

    fn may_wait(&mut self, fence: Fence) {
        self.waits.push_back(fence.0);
    }

    fn is_late(&mut self, ring: &Producer, now: Instant) -> bool {
        let (completed, progress) = (ring.completed(), ring.progress());
        while self.waits.front().is_some_and(|wait| *wait <= completed) {
            self.waits.pop_front();
        }
        let is_waiting = self.waits.front() == Some(&(completed + 1)) && ring.is_waiting();
        if completed == ring.submitted() || is_waiting {
            self.seen = None;
            return false;
        }
        match self.seen {
            Some((seen, begun, since)) if (seen, begun) == (completed, progress) => {
                now.saturating_duration_since(since) > self.limit
            }
            _ => {
                self.seen = Some((completed, progress, now));
                false
            }
        }
    }
}

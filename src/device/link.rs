//! The server's end of a worker process, whatever the worker does.
//!
//! Owns: [`Link`]: the queue of packets and its fences, shared memory for what the server has to
//! say, the numbers of segments, programs and graphs, and the worker's end. Absent: where buffers
//! are (`isolated`, `remote`), what packets look like (`packet`), starting and reaping (`process`).
//!
//! Scratch memory is written by the server, so that a piece of it is kept until the worker is past
//! the packet that reads it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::backoff::{Backoff, Watch};
use super::budget::Account;
use super::imports::{self, Imports};
use super::packet::{self, Address, Packet};
use super::process::{Exit, Process, Start};
use super::ring::{Producer, REFUSED, Ring};
use super::shared::{Block, Budget, Heap, Range, Segment, to_u64};
use super::slot::{Dead, Graveyard, Slot, Slots};
use super::timeline::Timeline;
use super::watchdog::{Timers, Watchdog};
use super::worker::Failure;
use super::{Code, DeviceError, Fence, Graph, Point, Program, Quota, Recording, Status};
use crate::config::DeviceLimits;
use crate::cores;

/// What all workers of a kind have in common.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The program that is started: this one, unless it is a test's.
    pub exe: PathBuf,
    /// What makes it a worker: `worker`, and what the worker drives.
    pub arguments: Vec<OsString>,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// See [`DeviceLimits::kernel_time_max`].
    pub kernel_time_max: Duration,
    /// The shared memory of all sessions.
    pub budget: Arc<Budget>,
}

impl WorkerConfig {
    /// Workers that run kernels themselves.
    #[must_use]
    pub fn of_kernels(exe: PathBuf, kernel_time_max: Duration, budget: Arc<Budget>) -> Self {
        let (arguments, environment) = (vec!["worker".into()], Vec::new());
        WorkerConfig { exe, arguments, environment, kernel_time_max, budget }
    }

    /// The same for a session that may have so much memory.
    pub(super) fn within(&self, quota: &Quota) -> Self {
        WorkerConfig { budget: quota.of(&self.budget), ..self.clone() }
    }
}

/// Who may say how a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It drives a device, and runs no code of clients: it takes time to start, and says itself why
    /// it ends.
    Driver,
    /// It runs kernels, and what they write says nothing: only the system is believed.
    Kernels,
}

/// What the server knows of a program.
pub(super) struct ProgramState {
    /// Where the worker reports the load.
    pub(super) status: Range,
}

/// What the server knows of a graph: how many kernels and pieces of copies it has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GraphUnits(pub(super) u64);

/// One worker process.
pub(super) struct Link {
    kind: Kind,
    process: Process,
    socket: OwnedFd,
    ring: Producer,
    timeline: Rc<Timeline>,
    pub(super) grave: Rc<Graveyard>,
    scratch: Heap,
    /// Shared memory in use, until the worker is past a packet.
    held: VecDeque<(u64, Rc<Block>)>,
    pub(super) imports: Imports,
    programs: Slots,
    graphs: Slots,
    timers: Timers,
    /// The packet for which the doorbell was asked.
    armed: Option<u64>,
    /// Nothing is done on the only core while somebody looks.
    can_linger: bool,
    lingering: Backoff,
    watch: Watch,
    watchdog: Watchdog,
    lost: Option<DeviceError>,
    words: Vec<u64>,
}

impl Link {
    /// A worker that starts some time soon. At its end it lets go of `account`.
    pub(super) fn open(
        config: &WorkerConfig,
        kind: Kind,
        account: Option<Arc<Account>>,
    ) -> Result<Link, DeviceError> {
        let failed = |e: io::Error| DeviceError::Failed { what: "worker", why: e.to_string() };
        let (ring, ring_fd) = Ring::create().map_err(failed)?;
        let timeline = Timeline::create()?;
        let (socket, theirs) = socket_pair().map_err(failed)?;
        let page = Arc::clone(timeline.segment().file());
        let parent = rustix::process::getpid().as_raw_nonzero().get().to_ne_bytes();
        imports::send(&socket, &parent, &[ring_fd.as_fd(), page.as_fd()])
            .map_err(|e| failed(e.into()))?;
        let WorkerConfig { exe, arguments, environment, .. } = config.clone();
        let process = Process::start(Start {
            exe,
            arguments,
            environment,
            socket: theirs,
            timeline: page,
            account,
        })?;
        Ok(Link {
            kind,
            process,
            socket,
            ring: Producer::new(ring),
            timeline,
            grave: Rc::default(),
            scratch: Heap::scratch(Arc::clone(&config.budget)),
            held: VecDeque::new(),
            imports: Imports::default(),
            programs: Slots::default(),
            graphs: Slots::default(),
            timers: Timers::default(),
            armed: None,
            can_linger: cores::are_several(),
            lingering: Backoff::default(),
            watch: Watch::default(),
            watchdog: Watchdog::new(config.kernel_time_max),
            lost: None,
            words: Vec::new(),
        })
    }

    pub(super) fn lost(&self) -> Option<&DeviceError> {
        self.lost.as_ref()
    }

    /// Refuses where all is lost.
    pub(super) fn alive(&self) -> Result<(), DeviceError> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// The next thing that was dropped, as far as the queue has room beyond one call.
    pub(super) fn next_dead(&mut self) -> Option<Dead> {
        if self.lost.is_some() || self.has_room() { self.grave.pop() } else { None }
    }

    /// Whether there is room for a packet or two beyond one call.
    pub(super) fn has_room(&mut self) -> bool {
        self.ring.ensure(DeviceLimits::RING_CALL_BYTES + 128)
    }

    /// Queues the end of something. There is room, as [`Self::next_dead`] has checked.
    pub(super) fn tell(&mut self, packet: &Packet<'_>) {
        if self.lost.is_none() {
            drop(self.enqueue(packet, 0));
        }
    }

    /// The end of what every device has.
    pub(super) fn bury(&mut self, dead: &Dead) {
        let packet = match dead {
            Dead::Block(_) | Dead::Region(_) => return,
            Dead::Graph(graph) => {
                self.graphs.give(*graph);
                Packet::GraphDrop { graph: *graph }
            }
            Dead::Program(program) => {
                self.programs.give(*program);
                Packet::Unload { program: *program }
            }
            Dead::Segment(segment) => match self.imports.remove(*segment) {
                Some(segment) => Packet::Forget { segment },
                None => return,
            },
        };
        self.tell(&packet);
    }

    /// Queues a packet. One that is too long for the queue goes through scratch memory.
    pub(super) fn enqueue(
        &mut self,
        packet: &Packet<'_>,
        units: u64,
    ) -> Result<Fence, DeviceError> {
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

    /// Queues a packet that takes the end of a channel.
    pub(super) fn enqueue_with(
        &mut self,
        packet: &Packet<'_>,
        channel: OwnedFd,
    ) -> Result<Fence, DeviceError> {
        let fence = self.enqueue(packet, 0)?;
        self.imports.pass(channel);
        self.send_imports();
        Ok(fence)
    }

    fn enqueue_elsewhere(&mut self, words: &[u64], units: u64) -> Result<Fence, DeviceError> {
        let mut range = self.scratch.alloc(to_u64(size_of_val(words)))?;
        let to = range.slice_mut().as_chunks_mut::<8>().0;
        for (to, word) in to.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        let at = self.scratch_address(&range)?;
        let mut indirect = Vec::with_capacity(4);
        Packet::Indirect { at, words: to_u64(words.len()) }.encode(&mut indirect);
        let fence = self.push(&[&indirect], units)?;
        self.hold(fence, range.block());
        Ok(fence)
    }

    fn push(&mut self, parts: &[&[u64]], units: u64) -> Result<Fence, DeviceError> {
        let full = || DeviceError::Failed { what: "queue", why: "no room for a call".to_owned() };
        let packet = self.ring.push_parts(parts, units).ok_or_else(full)?;
        self.ring.publish();
        Ok(Fence(packet))
    }

    /// Keeps shared memory until the worker is past `fence`.
    pub(super) fn hold(&mut self, fence: Fence, block: &Rc<Block>) {
        self.held.push_back((fence.0, Rc::clone(block)));
    }

    /// The worker's number of a segment, which it imports first if it has to.
    pub(super) fn import(
        &mut self,
        segment: &Rc<Segment>,
        writable: bool,
    ) -> Result<u32, DeviceError> {
        if let Some(slot) = self.imports.find(segment.id()) {
            return Ok(slot);
        }
        if !self.ring.ensure(64) {
            return Err(no_room_to_map());
        }
        let slot = self.imports.add(segment, writable, &self.grave).ok_or_else(no_room_to_map)?;
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

    /// The worker's address of shared memory.
    pub(super) fn address(
        &mut self,
        block: &Block,
        offset: u64,
        writable: bool,
    ) -> Result<Address, DeviceError> {
        let segment = self.import(block.segment(), writable)?;
        Ok(Address::new(segment, block.offset() + offset))
    }

    fn scratch_address(&mut self, range: &Range) -> Result<Address, DeviceError> {
        self.address(range.block(), 0, true)
    }

    /// Whether it is scratch memory of this worker's.
    pub(super) fn is_scratch(&self, block: &Block) -> bool {
        self.scratch.owns(block)
    }

    pub(super) fn program<'p>(
        &self,
        program: &'p Program,
    ) -> Result<&'p Slot<ProgramState>, DeviceError> {
        self.check(program.slot()?, "program")
    }

    fn check<'s, T>(
        &self,
        slot: &'s Slot<T>,
        what: &'static str,
    ) -> Result<&'s Slot<T>, DeviceError> {
        if slot.belongs_to(&self.grave) { Ok(slot) } else { Err(foreign(what)) }
    }

    /// Room for the worker to say what came of a packet, and its address there.
    pub(super) fn room_for_outcome(&mut self) -> Result<(Range, Address), DeviceError> {
        let mut status = self.scratch.alloc(DeviceLimits::LOAD_STATUS_BYTES)?;
        status.slice_mut()[..8].fill(0);
        let at = self.scratch_address(&status)?;
        Ok((status, at))
    }

    pub(super) fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        let (status, at) = self.room_for_outcome()?;
        let mut object = Vec::with_capacity(binary.len() / 8 + 1);
        packet::push_bytes(&mut object, binary);
        let mut words = Vec::new();
        packet::push_bytes(&mut words, name.as_bytes());
        let name_bytes = u32::try_from(name.len())
            .map_err(|_| DeviceError::Load { why: "its name is too long".to_owned() })?;
        let (program, bytes) = (self.programs.take(), (name_bytes, to_u64(binary.len())));
        let load = Packet::Load { program, status: at, bytes, name: &words, object: &object };
        match self.enqueue(&load, 0) {
            Ok(fence) => {
                self.hold(fence, status.block());
                let state = ProgramState { status };
                Ok(Program(Code::Slot(Slot::new(program, Dead::Program, &self.grave, state))))
            }
            Err(error) => {
                self.programs.give(program);
                Err(error)
            }
        }
    }

    pub(super) fn loaded(&self, program: &Program) -> Result<(), DeviceError> {
        match outcome(&self.program(program)?.state.status) {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(DeviceError::Load { why }),
            None => Err(self.lost.clone().unwrap_or(DeviceError::Failed {
                what: "program",
                why: "its load has no outcome yet".to_owned(),
            })),
        }
    }

    /// Queues a launch. `args` are the sizes, the buffers and the values, of which there are
    /// `sizes`, `buffers` and the rest.
    pub(super) fn launch(
        &mut self,
        program: u32,
        timed: bool,
        args: &[u64],
        [sizes, buffers]: [usize; 2],
    ) -> Result<Fence, DeviceError> {
        let (sizes, rest) = args.split_at(sizes);
        let (buffers, values) = rest.split_at(buffers);
        let timer = timed.then(|| self.timers.next());
        let fence = match packet::launch_head(program, timer, [sizes, buffers, values]) {
            head if size_of_val(&head) + size_of_val(args) <= DeviceLimits::PACKET_BYTES_MAX => {
                self.push(&[&head, args], 1)
            }
            _ => self.enqueue(&Packet::Launch { program, timer, sizes, buffers, values }, 1),
        };
        if let (Some(timer), Ok(fence)) = (timer, &fence) {
            self.timers.started(*fence, timer);
        }
        fence
    }

    /// Queues the recording of a graph from its encoded steps.
    pub(super) fn record(
        &mut self,
        steps: &[u64],
        units: GraphUnits,
    ) -> Result<Graph, DeviceError> {
        let graph = self.graphs.take();
        match self.enqueue(&Packet::GraphBuild { graph, steps }, 0) {
            Ok(_) => Ok(Graph(Recording::Slot(Slot::new(graph, Dead::Graph, &self.grave, units)))),
            Err(error) => {
                self.graphs.give(graph);
                Err(error)
            }
        }
    }

    /// Queues a run of a graph. `args` are the inputs, of which there are so many words, and the
    /// integers.
    pub(super) fn replay(
        &mut self,
        graph: &Graph,
        timed: bool,
        args: &[u64],
        inputs: usize,
    ) -> Result<Fence, DeviceError> {
        let slot = self.check(graph.slot()?, "graph")?;
        let (inputs, ints) = args.split_at(inputs);
        let (graph, GraphUnits(units)) = (slot.index(), slot.state);
        let timer = timed.then(|| self.timers.next());
        let fence = self.enqueue(&Packet::GraphRun { graph, timer, inputs, ints }, units)?;
        if let Some(timer) = timer {
            self.timers.started(fence, timer);
        }
        Ok(fence)
    }

    pub(super) fn timeline(&self) -> &Rc<Timeline> {
        &self.timeline
    }

    pub(super) fn signal(&mut self) -> Result<Point, DeviceError> {
        self.enqueue(&Packet::Signal, 0)?;
        Ok(self.timeline.next())
    }

    pub(super) fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        let (theirs, value) = point.value()?;
        if Rc::ptr_eq(theirs, &self.timeline) {
            return Ok(self.last());
        }
        theirs.watch();
        let timeline = self.import(theirs.segment(), false)?;
        let fence = self.enqueue(&Packet::Wait { timeline, value }, 0)?;
        self.watchdog.may_wait(fence);
        Ok(fence)
    }

    pub(super) fn last(&self) -> Fence {
        Fence(self.ring.submitted())
    }

    /// What the worker is past.
    pub(super) fn completed(&self) -> u64 {
        self.ring.completed()
    }

    /// The fence after which there is room for a call.
    pub(super) fn backlog(&mut self) -> Option<Fence> {
        if self.lost.is_some() || self.ring.ensure(DeviceLimits::RING_BYTES / 2) {
            return None;
        }
        self.ring.room(DeviceLimits::RING_BYTES / 2).map(Fence)
    }

    /// Looks at the worker.
    pub(super) fn poll(&mut self, now: Instant) {
        if self.lost.is_none() {
            self.look(now);
        }
        if self.lost.is_none() {
            self.send_imports();
        }
    }

    pub(super) fn status(&self) -> Status {
        Status { completed: Fence(self.ring.completed()), lost: self.lost.clone() }
    }

    /// The end of this worker, for `why`. Nothing is queued any more.
    pub(super) fn lose(&mut self, why: DeviceError) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.process.kill();
            self.held.clear();
        }
    }

    /// What the worker has done, whether it lives, whether it takes too long.
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
            let why = match self.kind {
                Kind::Driver => self.ring.last_words().unwrap_or_else(|| drivers_end(&exit)),
                Kind::Kernels => reason(&exit),
            };
            self.lose(why);
        } else if let Some(late) = self.late(now) {
            self.lose(late);
        }
    }

    /// Whether something takes too long.
    fn late(&mut self, now: Instant) -> Option<DeviceError> {
        if self.kind == Kind::Driver && !self.ring.is_ready() {
            let limit = DeviceLimits::DRIVER_START_TIME_MAX;
            let why = || format!("its driver did not start within {limit:?}");
            return self
                .watchdog
                .is_starting_late(limit, now)
                .then(|| DeviceError::Lost { why: why() });
        }
        let is_late = self.watchdog.is_late(&self.ring, now);
        is_late.then_some(DeviceError::Timeout { limit: self.watchdog.limit })
    }

    pub(super) fn linger(&mut self, fence: Fence) {
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

    /// Whether to look again at once. A worker that runs kernels itself may need the very core.
    pub(super) fn watch(&mut self, fence: Fence, now: Instant) -> bool {
        let is_near = self.kind == Kind::Driver && self.lost.is_none();
        is_near && self.watch.goes_on(fence, Fence(self.ring.completed()), now)
    }

    pub(super) fn arm(&mut self, fence: Fence) {
        let completed = self.ring.completed();
        let earlier = |armed: u64| armed > completed && armed <= fence.0;
        if fence.0 > completed && !self.armed.is_some_and(earlier) {
            self.armed = Some(fence.0);
            self.ring.arm(fence.0);
            if self.kind == Kind::Driver {
                // It has to ask its device for the fence.
                self.ring.wake();
            }
        }
    }

    pub(super) fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        let Some(timer) = self.timers.take(fence) else { return Ok(Duration::ZERO) };
        match self.ring.timer(timer) {
            REFUSED if self.kind == Kind::Driver => {
                Err(DeviceError::Failed { what: "launch", why: self.ring.text() })
            }
            elapsed => Ok(elapsed),
        }
    }

    pub(super) fn doorbell(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Link {
    /// The process is killed by its own drop. Regions may outlive the device; nobody will look into
    /// the graveyard for them.
    fn drop(&mut self) {
        self.grave.close();
    }
}

/// What the worker says came of a packet, as [`super::worker::outcome`] writes it. `None` where it
/// has said nothing that makes sense.
pub(super) fn outcome(status: &Range) -> Option<Result<(), String>> {
    let (state, message) = status.slice().split_at(8);
    let word = u64::from_ne_bytes(state.try_into().expect("split at 8"));
    match (word & u64::from(u32::MAX), usize::try_from(word >> 32)) {
        (1, _) => Some(Ok(())),
        (2, Ok(bytes)) => {
            // A worker that runs kernels may change it while it is looked at.
            let message = message[..bytes.min(message.len())].to_vec();
            Some(Err(String::from_utf8_lossy(&message).into_owned()))
        }
        _ => None,
    }
}

/// A socket pair; the server's end does not block.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

pub(super) fn foreign(what: &'static str) -> DeviceError {
    DeviceError::Failed { what, why: "it belongs to another device".to_owned() }
}

pub(super) fn no_channel(error: io::Error) -> DeviceError {
    DeviceError::Failed { what: "channel", why: error.to_string() }
}

pub(super) fn no_room_to_map() -> DeviceError {
    DeviceError::Failed { what: "queue", why: "no room to map memory".to_owned() }
}

/// What the end of a worker means that runs kernels.
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
        _ => lost(end_words(status)),
    }
}

/// What the end of a worker means that runs a driver, and has said nothing.
fn drivers_end(exit: &Exit) -> DeviceError {
    let why = match exit {
        Exit::Ended(status) => end_words(*status),
        Exit::Unknown(why) => why.clone(),
    };
    DeviceError::Lost { why }
}

fn end_words(status: ExitStatus) -> String {
    match (status.signal(), status.code().unwrap_or_default()) {
        (Some(libc::SIGKILL), _) => "the worker was killed; is memory short?".to_owned(),
        (Some(signal), _) => format!("the worker was ended by signal {signal}"),
        (None, code) => match Failure::from_code(code) {
            Some(why) => format!("the worker ended: {why}"),
            None => format!("the worker ended with code {code}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

    use super::*;

    #[test]
    fn words_of_a_worker_are_text_even_where_it_changes_them_meanwhile() {
        let heap = Heap::scratch(Arc::new(Budget::new(1 << 20)));
        let mut status = heap.alloc(DeviceLimits::LOAD_STATUS_BYTES).unwrap();
        let words = crate::device::worker::outcome(Some(&"\u{e9}".repeat(500)));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        status.slice_mut()[..bytes.len()].copy_from_slice(&bytes);
        let file = Arc::clone(status.block().segment().file());
        let (at, is_over) = (status.block().offset() + 8, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let first = file.mapping().at(at, 1).unwrap();
                // SAFETY: mapped as long as the file, and any byte is an atomic one.
                let first = unsafe { first.cast::<AtomicU8>().as_ref() };
                while !is_over.load(Ordering::Relaxed) {
                    first.store(b'e', Ordering::Relaxed);
                    first.store(0xC3, Ordering::Relaxed);
                }
            });
            let is_text = (0..200_000).all(|_| {
                let Some(Err(why)) = outcome(&status) else { panic!("it has failed") };
                str::from_utf8(why.as_bytes()).is_ok()
            });
            is_over.store(true, Ordering::Relaxed);
            assert!(is_text);
        });
    }
}

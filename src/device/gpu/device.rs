//! One session's use of one GPU, in the process that this runs in.
//!
//! Owns: [`GpuDevice`]: what is open of a device, its tables, what becomes of dropped resources,
//! and its end. Reading order: this file, then what it does with its memory (`transfer`), `graph`.
//! Absent: the order of work (`queue`), what may block (`clerk`).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clerk::{Bell, Clerk, Job, Loaded, Opened, Report, Shared};
use super::closing::Remains;
use super::driver::{DeviceInfo, DevicePointer, EventUse, Kind, LaunchLimits};
use super::graph::Recorded;
use super::handles::{Done, Event, Function, Module, Trouble, meaning};
use super::launch;
use super::memory::{Allocation, Dead, Entry, Site, Table};
use super::queue::{Lane, Queue};
use super::reading::Readings;
use super::registered::Registered;
use super::relay::{Relay, Stage};
use super::signal::{Signal, Signals};
use super::staging::{Inbox, Outbox};
use super::watch::{Timers, Watchdog};
use super::window::Window;
use crate::config::{DeviceLimits, GpuLimits};
use crate::cores;
use crate::device::backoff::{Backoff, Watch};
use crate::device::budget::Budget;
use crate::device::export::Export;
use crate::device::shared::Range;
use crate::device::{
    Code, Device, DeviceError, Fence, Graph, GraphRun, GraphStep, HostBytes, Launch, Moment, Point,
    Program, Quota, Recording, Region, Source, Span, Status,
};

/// Why a call did not succeed.
pub(super) enum Stop {
    Error(DeviceError),
    Trouble(Trouble),
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Stop {
        Stop::Error(error)
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        Stop::Trouble(trouble)
    }
}

/// What a device has while it is open.
pub(super) struct Parts {
    pub(super) limits: LaunchLimits,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    budget: Arc<Budget>,
    /// All memory that has not been freed.
    pub(super) live: BTreeSet<DevicePointer>,
}

/// What is known of a program.
pub(super) enum Loading {
    Done(Kernel),
    /// With the number of the work that loads it.
    Pending(u64),
    Refused(String),
}

/// A program on the device.
#[derive(Clone)]
pub(super) struct Kernel {
    /// Kept by whatever launches it.
    pub(super) module: Arc<Module>,
    pub(super) function: Function,
}

/// One session's use of one GPU.
pub struct GpuDevice {
    shared: Arc<Shared>,
    /// What the session may have of the device's memory.
    quota: Quota,
    pub(super) clerk: Clerk,
    bell: Arc<Bell>,
    socket: OwnedFd,
    pub(super) queue: Queue,
    pub(super) site: Rc<Site>,
    pub(super) parts: Option<Parts>,
    /// Work of the device's thread before whose end nothing else can be queued.
    pub(super) gate: Option<u64>,
    programs: Table<Loading>,
    pub(super) graphs: Table<Recorded>,
    pub(super) registered: Registered,
    pub(super) stage: Stage,
    pub(super) readings: Readings,
    pub(super) signals: Signals,
    /// What other processes share, by its address.
    pub(super) windows: BTreeMap<DevicePointer, Window>,
    /// What goes to the thread once work is done.
    pub(super) retired: VecDeque<(u64, Box<dyn Any + Send>)>,
    /// Memory of devices without pools, to be freed once work is done.
    pub(super) retired_memory: VecDeque<(u64, DevicePointer)>,
    pub(super) timers: Timers,
    /// The work for which the doorbell was asked.
    armed: Option<u64>,
    can_linger: bool,
    lingering: Backoff,
    watch: Watch,
    pub(super) watchdog: Watchdog,
    /// With how far the work had come.
    lost: Option<(DeviceError, u64)>,
    /// Memory of the last launch's arguments.
    pub(super) arguments: Vec<u8>,
}

impl GpuDevice {
    /// A device that is about to open its context.
    pub(super) fn open(
        shared: &Arc<Shared>,
        time_max: Duration,
        quota: &Quota,
    ) -> io::Result<GpuDevice> {
        let (bell, socket) = Bell::create()?;
        let clerk = Clerk::start(shared, &bell)?;
        let mut queue = Queue::default();
        let gate = Some(queue.push(Lane::Clerk, 1));
        Ok(GpuDevice {
            shared: Arc::clone(shared),
            quota: quota.clone(),
            clerk,
            bell,
            socket,
            queue,
            site: Rc::default(),
            parts: None,
            gate,
            programs: Table::default(),
            graphs: Table::default(),
            registered: Registered::default(),
            stage: Stage::default(),
            readings: Readings::default(),
            signals: Signals::default(),
            windows: BTreeMap::new(),
            retired: VecDeque::new(),
            retired_memory: VecDeque::new(),
            timers: Timers::default(),
            armed: None,
            can_linger: cores::are_several(),
            lingering: Backoff::default(),
            watch: Watch::default(),
            watchdog: Watchdog::new(time_max),
            lost: None,
            arguments: Vec::new(),
        })
    }

    /// Comes first in each call that queues: refuses where all is lost, and waits where the caller
    /// did not ask [`Device::backlog`] whether there is room.
    pub(super) fn ready(&mut self) -> Result<(), DeviceError> {
        self.listen();
        while self.gate.is_some() && self.lost.is_none() {
            match self.clerk.wait() {
                Some(report) => self.hear(report),
                None => self.lose(DeviceError::Lost { why: "its thread has ended".to_owned() }),
            }
        }
        self.bury();
        self.lost.as_ref().map_or(Ok(()), |(why, _)| Err(why.clone()))
    }

    /// What a call comes to. A fault is the end of the device.
    pub(super) fn settle<T>(&mut self, outcome: Result<T, Stop>) -> Result<T, DeviceError> {
        let error = match outcome {
            Ok(value) => return Ok(value),
            Err(Stop::Error(error)) => error,
            Err(Stop::Trouble(trouble)) => self.meaning(trouble),
        };
        if matches!(error, DeviceError::Fault { .. } | DeviceError::Lost { .. }) {
            self.lose(error.clone());
        }
        Err(error)
    }

    fn meaning(&self, trouble: Trouble) -> DeviceError {
        meaning(self.shared.driver, trouble)
    }

    pub(super) fn is_unsupported(&self, trouble: Trouble) -> bool {
        self.shared.driver.kind(trouble.code) == Kind::Unsupported
    }

    /// Whether a change to a graph leaves launches alone that are under way. CUDA's manual says so.
    pub(super) fn changes_are_for_later(&self) -> bool {
        self.shared.driver.name() == "CUDA"
    }

    pub(super) fn is_out_of_memory(&self, trouble: Trouble) -> bool {
        self.shared.driver.kind(trouble.code) == Kind::OutOfMemory
    }

    pub(super) fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    pub(super) fn parts(&mut self) -> &mut Parts {
        self.parts.as_mut().expect("calls come after `ready`")
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.parts.as_ref().expect("calls come after `ready`").budget
    }

    /// Takes what the device's thread has to say.
    fn listen(&mut self) {
        while let Some(report) = self.clerk.report() {
            self.hear(report);
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Loaded { number, outcome } => {
                self.queue.clerk_did(number);
                self.loaded_as(number, outcome);
            }
            Report::Opened(Ok(opened)) => self.opened(*opened),
            Report::Opened(Err(stop)) => {
                let error = self.explain(stop);
                let why = format!("it cannot be opened: {error}");
                self.lose(DeviceError::Lost { why });
            }
            Report::Uploaded { number, outcome, registration } => {
                self.gate = None;
                self.registered.heard(number, registration);
                match outcome {
                    Ok(()) => self.queue.clerk_did(number),
                    Err(trouble) => {
                        let why = match self.meaning(trouble) {
                            DeviceError::Failed { what, why } => {
                                DeviceError::Lost { why: format!("{what}: {why}") }
                            }
                            error => error,
                        };
                        self.lose(why);
                    }
                }
            }
        }
    }

    fn explain(&self, stop: Stop) -> DeviceError {
        match stop {
            Stop::Error(error) => error,
            Stop::Trouble(trouble) => self.meaning(trouble),
        }
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { context, streams, bell, store, inbox, outbox, limits, budget } = opened;
        self.site.open(Arc::clone(&context), store);
        self.queue.open(context, streams, bell);
        let (inbox, outbox) = (Inbox::new(inbox), Outbox::new(outbox));
        let budget = self.quota.of(&budget);
        self.parts = Some(Parts { limits, inbox, outbox, budget, live: BTreeSet::new() });
        self.gate = None;
        self.queue.clerk_did(1);
    }

    fn loaded_as(&mut self, number: u64, outcome: Result<Loaded, super::clerk::Refused>) {
        let is_it = |loading: &Loading| matches!(loading, Loading::Pending(of) if *of == number);
        let loading = match outcome {
            Ok(Loaded { module, function }) => {
                let module = Arc::new(module);
                let limits = self.parts.as_ref().map(|parts| parts.limits);
                match limits.map_or(Ok(()), |limits| launch::check_shared(&function, &limits)) {
                    Ok(()) => Loading::Done(Kernel { module, function }),
                    Err(why) => {
                        self.clerk.send(Job::Drop(Box::new(module)));
                        Loading::Refused(why)
                    }
                }
            }
            Err(refused) => {
                let error = self.meaning(refused.trouble);
                if matches!(error, DeviceError::Fault { .. } | DeviceError::Lost { .. }) {
                    return self.lose(error);
                }
                let words = refused.words.trim();
                let driver = self.shared.driver.describe(refused.trouble.code);
                Loading::Refused(match words {
                    "" => format!("{}: {driver}", refused.trouble.what),
                    words => format!("{driver}: {words}"),
                })
            }
        };
        match self.programs.find_mut(is_it) {
            Some(place) => *place = loading,
            // It was dropped meanwhile.
            None => self.clerk.send(Job::Drop(Box::new(match loading {
                Loading::Done(kernel) => Some(kernel.module),
                Loading::Pending(_) | Loading::Refused(_) => None,
            }))),
        }
    }

    /// Gives back what was dropped.
    fn bury(&mut self) {
        if self.lost.is_some() || self.gate.is_some() {
            return;
        }
        while let Some(dead) = self.site.exhume() {
            let last = self.queue.last();
            let buried = match dead {
                Dead::Graph(index) => {
                    let left = self.graphs.remove(index).map(Recorded::into_left);
                    self.retired.extend(left.map(|left| (last, left)));
                    Ok(())
                }
                Dead::Memory { at, uses, .. } => self.free(at, &uses),
                Dead::Program(index) => {
                    if let Some(Loading::Done(kernel)) = self.programs.remove(index) {
                        self.retired.push_back((last, Box::new(kernel.module)));
                    }
                    Ok(())
                }
            };
            if let Err(error) = self.settle(buried) {
                tracing::warn!(%error, "memory not freed: it goes with its context");
            }
            if self.lost.is_some() {
                return;
            }
        }
        self.retire();
    }

    /// Lets go of what the queue is past.
    fn retire(&mut self) {
        let completed = self.queue.completed();
        while self.retired.front().is_some_and(|(number, _)| *number <= completed) {
            if let Some((_, left)) = self.retired.pop_front() {
                self.clerk.send(Job::Drop(left));
            }
        }
        while self.retired_memory.front().is_some_and(|(number, _)| *number <= completed) {
            let Some((_, at)) = self.retired_memory.pop_front() else { break };
            let freed = self.queue.context().free(at).map_err(Stop::from);
            self.parts().live.remove(&at);
            if let Err(error) = self.settle(freed) {
                tracing::warn!(%error, "memory not freed: it goes with its context");
            }
            if self.lost.is_some() {
                return;
            }
        }
        self.trim();
        let Some(parts) = &mut self.parts else { return };
        for memory in parts.inbox.look(&self.queue) {
            self.clerk.send(Job::Drop(Box::new(memory)));
        }
        parts.outbox.look(&self.queue);
        self.stage.look(&self.queue);
        self.readings.look(&self.queue);
        self.site.reach(|reach| reach.relays.iter_mut().for_each(Relay::tidy));
    }

    /// The end of this device, for `why`. Nothing is queued any more; what is left is given back by
    /// the device's thread.
    pub(super) fn lose(&mut self, why: DeviceError) {
        if self.lost.is_some() {
            return;
        }
        // Work that is stuck is not waited for.
        let patience = match why {
            DeviceError::Timeout { .. } => Duration::ZERO,
            _ if self.readings.are_abandoned() => Duration::ZERO,
            _ => self.watchdog.limit(),
        };
        self.lost = Some((why, self.queue.completed()));
        let (is_waiting, reading) = self.leave_others();
        let reach = self.site.close();
        let (streams, mut events) = self.queue.close();
        events.extend(self.timers.close());
        let graphs: Vec<_> = self.graphs.drain().map(Recorded::into_left).collect();
        let retired = self.retired.drain(..).map(|(_, left)| left);
        let modules = self.programs.drain().filter_map(|loading| match loading {
            Loading::Done(kernel) => Some(Box::new(kernel.module) as Box<dyn Any + Send>),
            Loading::Pending(_) | Loading::Refused(_) => None,
        });
        let windows = std::mem::take(&mut self.windows).into_values();
        let windows = windows.map(|window| Box::new(window) as Box<dyn Any + Send>);
        let mut remains = Remains {
            left: graphs.into_iter().chain(retired).chain(modules).chain(windows).collect(),
            events,
            lent: Vec::new(),
            pinned: Vec::new(),
            registered: self.registered.close(),
            memory: Vec::new(),
            store: None,
            streams,
            relayed: Vec::new(),
            writers: Vec::new(),
            reading,
            readers: Vec::new(),
            is_waiting,
            patience,
            patience_with_others: self.watchdog.limit(),
        };
        if let Some(reach) = reach {
            remains.events.extend(reach.events);
            remains.store = Some(reach.store);
            remains.take_relays(reach.relays);
            remains.readers = reach.readers;
        }
        if let Some(Parts { inbox, outbox, live, .. }) = self.parts.take() {
            let (lent, pinned) = outbox.close();
            remains.lent.extend(lent);
            remains.pinned.extend(pinned);
            remains.pinned.extend(inbox.into_memory());
            remains.memory = live.into_iter().collect();
        }
        remains.writers = self.stage.leave(&self.site);
        let (pieces, events) = self.stage.close();
        remains.relayed = pieces;
        remains.events.extend(events);
        self.retired_memory.clear();
        self.clerk.send(Job::Close(Box::new(remains)));
        self.clerk.deafen();
        self.bell.end();
    }

    /// A region of this device's own.
    pub(super) fn own<'r>(&self, span: &Span<'r>) -> Result<&'r Rc<Allocation>, DeviceError> {
        let allocation = span.region.gpu()?;
        if Rc::ptr_eq(&allocation.site, &self.site) {
            Ok(allocation)
        } else {
            Err(foreign("buffer"))
        }
    }

    pub(super) fn kernel(&self, program: &Program) -> Result<&Kernel, DeviceError> {
        let entry = program.gpu()?;
        if !Rc::ptr_eq(&entry.site, &self.site) {
            return Err(foreign("program"));
        }
        match self.programs.get(entry.index) {
            Some(Loading::Done(kernel)) => Ok(kernel),
            _ => Err(DeviceError::Failed { what: "program", why: "it is not loaded".to_owned() }),
        }
    }

    /// Queues work between two events, where it is to be timed.
    pub(super) fn timed(
        &mut self,
        timed: bool,
        units: u64,
        work: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<Fence, Stop> {
        if !timed {
            work(self)?;
            return Ok(Fence(self.queue.push(Lane::Compute, units)));
        }
        let (from, to) = (self.timer()?, self.timer()?);
        self.queue.stream(Lane::Compute).record(&from)?;
        work(self)?;
        let ended = self.queue.stream(Lane::Compute).record(&to);
        let fence = Fence(self.queue.push(Lane::Compute, units));
        ended?;
        self.timers.started(fence, from, to);
        Ok(fence)
    }

    fn timer(&mut self) -> Done<Event> {
        match self.timers.take_event() {
            Some(event) => Ok(event),
            None => Event::create(self.queue.context(), EventUse::Time),
        }
    }

    fn look(&mut self, now: Instant) {
        if self.parts.is_none() || self.lost.is_some() {
            return;
        }
        let looked = self.queue.look().map_err(Stop::from);
        if let Err(error) = self.settle(looked) {
            // Without its events nobody knows any more how far the device has come.
            self.lose(DeviceError::Lost { why: error.to_string() });
        }
        self.readings.look(&self.queue);
        if self.readings.are_abandoned() {
            let why = "the device from which it copies is lost".to_owned();
            self.lose(DeviceError::Lost { why });
        }
        let stuck = self.watchdog.is_late(&self.queue, now);
        if stuck {
            self.lose(DeviceError::Timeout { limit: self.watchdog.limit() });
        }
    }
}

pub(super) fn foreign(what: &'static str) -> DeviceError {
    DeviceError::Failed { what, why: "it belongs to another device".to_owned() }
}

impl Device for GpuDevice {
    fn backlog(&mut self) -> Option<Fence> {
        self.listen();
        if self.lost.is_some() {
            return None;
        }
        if let Some(gate) = self.gate {
            return Some(Fence(gate));
        }
        let is_full = |device: &GpuDevice| {
            let parts = device.parts.as_ref();
            let inbox = parts.map(|parts| &parts.inbox);
            let narrow = inbox.filter(|inbox| !inbox.has_room(GpuLimits::COPIED_HERE_BYTES_MAX));
            match narrow {
                Some(inbox) => inbox.halfway(),
                None if device.queue.pending() > GpuLimits::IN_FLIGHT_MAX => {
                    Some(device.queue.halfway())
                }
                None => device.stage.backlog(&device.queue),
            }
        };
        is_full(self)?;
        self.look(Instant::now());
        self.bury();
        if self.lost.is_some() {
            return None;
        }
        is_full(self).map(Fence)
    }

    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError> {
        self.ready()?;
        let region = self.allocate(bytes);
        self.settle(region)
    }

    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let fence = match from {
            Source::Bytes(bytes) => self.upload_short(&to, bytes),
            Source::Staged(range) => self.upload(&to, range),
        };
        self.settle(fence)
    }

    fn adopt(&mut self, _region: &Region, _staged: &Range) -> Option<Region> {
        None
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let fence = self.copy_between(&to, &from);
        self.settle(fence)
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.ready()?;
        let read = self.download(&of);
        self.settle(read)
    }

    fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        self.ready()?;
        let no_name = |_| DeviceError::Load { why: "its name has a zero byte".to_owned() };
        let name = CString::new(name).map_err(no_name)?;
        let number = self.queue.push(Lane::Clerk, 1);
        self.clerk.send(Job::Load { number, image: binary.to_vec(), name });
        let index = self.programs.insert(Loading::Pending(number));
        Ok(Program(Code::Gpu(Entry::of_program(index, &self.site))))
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        self.listen();
        if let Some((why, _)) = &self.lost {
            return Err(why.clone());
        }
        match self.programs.get(program.gpu()?.index) {
            Some(Loading::Refused(why)) => Err(DeviceError::Load { why: why.clone() }),
            Some(Loading::Pending(_)) => {
                let why = "its load has no outcome yet".to_owned();
                Err(DeviceError::Failed { what: "program", why })
            }
            _ => self.kernel(program).map(drop),
        }
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let fence = self.launch_one(launch);
        self.settle(fence)
    }

    fn export(&mut self, of: Span<'_>) -> Result<Option<Export>, DeviceError> {
        self.ready()?;
        let memory = self.export_span(&of);
        let memory = self.settle(memory)?;
        Ok(memory.map(|memory| Export::here(Fence(0), memory)))
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        self.ready()?;
        self.flush_writes()
    }

    fn share(&mut self, bytes: u64) -> Result<(Region, OwnedFd), DeviceError> {
        self.ready()?;
        let made = self.make_window(bytes);
        self.settle(made)
    }

    fn open_shared(&mut self, from: BorrowedFd<'_>, bytes: u64) -> Result<Region, DeviceError> {
        self.ready()?;
        self.open_window(from, bytes)
    }

    fn copy_bytes_max(&self, from: &Region) -> u64 {
        if self.reaches(from) { u64::MAX } else { GpuLimits::RELAYED_BYTES_MAX }
    }

    fn reaches(&self, from: &Region) -> bool {
        // What is wrong is left to the copy itself.
        from.gpu().is_ok_and(|source| self.is_within_reach(source).unwrap_or(true))
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.ready()?;
        let recorded = Recorded::new(self, steps)?;
        let index = self.graphs.insert(recorded);
        Ok(Graph(Recording::Gpu(Entry::of_graph(index, &self.site))))
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let entry = graph.gpu()?;
        if !Rc::ptr_eq(&entry.site, &self.site) {
            return Err(foreign("graph"));
        }
        let fence = self.run_recorded(entry.index, run);
        self.settle(fence)
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.ready()?;
        let signal = Signal::record(self);
        let signal = Rc::new(self.settle(signal)?);
        self.signals.add(&signal);
        Ok(Point(Moment::Recorded(signal)))
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.ready()?;
        let Moment::Recorded(signal) = &point.0 else { return Err(foreign("signal")) };
        if signal.is_over() {
            return Ok(self.last());
        }
        let waited = self.queue.stream(Lane::Compute).wait(signal.event()).map_err(Stop::from);
        self.settle(waited)?;
        let number = self.queue.push(Lane::Compute, 0);
        self.queue.set_barrier();
        self.watchdog.may_wait(number, Rc::clone(signal));
        Ok(Fence(number))
    }

    fn last(&self) -> Fence {
        Fence(self.queue.last())
    }

    fn poll(&mut self, now: Instant) -> Status {
        self.listen();
        self.look(now);
        self.bury();
        let (lost, completed) = match &self.lost {
            Some((why, completed)) => (Some(why.clone()), *completed),
            None => (None, self.queue.completed()),
        };
        Status { completed: Fence(completed), lost }
    }

    fn linger(&mut self, fence: Fence) {
        if self.lost.is_some() || self.parts.is_none() || self.queue.completed() >= fence.0 {
            return;
        }
        if !self.can_linger || !self.lingering.is_due() {
            return;
        }
        let start = Instant::now();
        let marked = self.queue.mark_up_to(fence.0).map_err(Stop::from);
        if self.settle(marked).is_err() {
            return;
        }
        loop {
            self.listen();
            let looked = self.queue.look();
            // What is wrong is left to the next poll.
            if looked.is_err() || self.lost.is_some() || self.queue.completed() >= fence.0 {
                return self.lingering.succeeded();
            }
            if start.elapsed() >= DeviceLimits::LINGER {
                return self.lingering.failed();
            }
            std::hint::spin_loop();
        }
    }

    fn watch(&mut self, fence: Fence, now: Instant) -> bool {
        let is_open = self.lost.is_none() && self.parts.is_some();
        is_open && self.watch.goes_on(fence, Fence(self.queue.completed()), now)
    }

    fn arm(&mut self, fence: Fence) {
        let completed = self.queue.completed();
        let earlier = |armed: u64| armed > completed && armed <= fence.0;
        if self.lost.is_some() || fence.0 <= completed || self.armed.is_some_and(earlier) {
            return;
        }
        self.armed = Some(fence.0);
        if self.parts.is_some() {
            let rings = self.queue.ring_at(fence.0, &self.bell).map_err(Stop::from);
            if let Err(error) = self.settle(rings) {
                tracing::debug!(%error, "the doorbell will not ring: ticks have to do");
            }
        }
    }

    fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        if self.lost.is_some() {
            return Ok(Duration::ZERO);
        }
        let elapsed = self.timers.elapsed(fence).map_err(Stop::from);
        self.settle(elapsed)
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

impl Drop for GpuDevice {
    /// What is under way is waited for by the device's thread, not here.
    fn drop(&mut self) {
        self.lose(DeviceError::Lost { why: "closed".to_owned() });
    }
}

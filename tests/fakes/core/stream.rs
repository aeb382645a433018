//! Streams: what is enqueued, and the one thread that runs it.
//!
//! Enqueueing checks what can be known then: order against other streams, memory, contexts. The
//! executor picks any stream whose next operation may run, by a seeded dice, and holds streams back
//! for a while, so that an order that nothing asks for is not kept by chance.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::clock::{Access, Clock, Touch};
use super::files::{CALL, report, trace};
use super::graph::Run;
use super::kernel::Work;
use super::{CHANGED, Gpu, IN_HOST_FUNCTION, Outcome, State, code};

pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// A place in a stream that an event was recorded at.
#[derive(Debug, Default)]
pub(super) struct Point {
    is_done: AtomicBool,
    at: OnceLock<Instant>,
    pub(super) clock: Clock,
}

impl Point {
    pub(super) fn new(clock: Clock) -> Point {
        Point { clock, ..Point::default() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Relaxed)
    }

    pub(super) fn finish(&self, now: Instant) {
        self.at.get_or_init(|| now);
        self.is_done.store(true, Ordering::Relaxed);
    }

    pub(super) fn time(&self) -> Option<Instant> {
        self.at.get().copied()
    }
}

/// How far a piece of work is that takes time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    #[default]
    Waiting,
    Until(Instant),
    ForEver,
}

impl Progress {
    /// Begins a piece of work; false if it takes no time.
    pub(super) fn begin(&mut self, work: &Work, now: Instant) -> bool {
        *self = match work.duration() {
            Some(Duration::ZERO) => return false,
            Some(duration) => Progress::Until(now + duration),
            None => Progress::ForEver,
        };
        true
    }
}

/// When something may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Now,
    At(Instant),
    Blocked,
}

impl Readiness {
    pub(super) fn of(progress: Progress, now: Instant) -> Readiness {
        match progress {
            Progress::Until(end) if end > now => Readiness::At(end),
            Progress::Waiting | Progress::Until(_) => Readiness::Now,
            Progress::ForEver => Readiness::Blocked,
        }
    }
}

#[derive(Debug)]
pub(super) enum Action {
    Work(Work, Progress),
    Record(Arc<Point>),
    Wait(Arc<Point>),
    Host(HostFunction, usize),
    Alloc(u64),
    Free(u64),
    Graph(Run),
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) action: Action,
    pub(super) touches: Vec<Touch>,
    clock: Clock,
    call: &'static str,
    /// The error that is injected here.
    failure: Option<i32>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) context: u64,
    pub(super) queue: VecDeque<Operation>,
    /// What has happened once everything that is enqueued has.
    pub(super) clock: Clock,
    count: u64,
    held_until: Instant,
    /// A host function of this stream runs.
    in_host_function: bool,
    /// Destroyed, and gone once it is empty.
    pub(super) is_dying: bool,
}

impl Stream {
    pub(super) fn new(context: u64, host: &Clock) -> Stream {
        Stream {
            context,
            queue: VecDeque::new(),
            clock: host.clone(),
            count: 0,
            held_until: Instant::now(),
            in_host_function: false,
            is_dying: false,
        }
    }

    /// Whether a host function of the stream runs now.
    pub(super) fn is_calling(&self) -> bool {
        self.in_host_function
    }

    fn readiness(&self, now: Instant) -> Readiness {
        if self.in_host_function {
            return Readiness::Blocked;
        }
        let Some(next) = self.queue.front() else { return Readiness::Blocked };
        if self.held_until > now {
            return Readiness::At(self.held_until);
        }
        match &next.action {
            Action::Work(_, progress) => Readiness::of(*progress, now),
            Action::Wait(point) if !point.is_done() => Readiness::Blocked,
            Action::Graph(run) => run.readiness(now),
            _ => Readiness::Now,
        }
    }
}

impl State {
    /// Puts work at the end of a stream. The caller has checked the stream.
    pub(super) fn enqueue(
        &mut self,
        handle: u64,
        action: Action,
        touches: Vec<Touch>,
    ) -> Outcome<()> {
        let call = CALL.get();
        let failure = self.config.injected(call, true).map(|failure| failure.code());
        let lag = u64::try_from(self.config.lag.as_nanos()).unwrap_or(u64::MAX);
        let hold = self.random(lag.saturating_add(1));
        let State { streams, host, .. } = self;
        let stream = streams.get_mut(handle)?;
        stream.clock.merge(host);
        match &action {
            Action::Wait(point) => stream.clock.merge(&point.clock),
            Action::Graph(run) => stream.clock.merge(&run.before),
            _ => {}
        }
        stream.count += 1;
        stream.clock.set(handle, stream.count);
        let (clock, index) = (stream.clock.clone(), stream.count);
        if stream.queue.is_empty() {
            stream.held_until = Instant::now() + Duration::from_nanos(hold);
        }
        let operation = Operation { action, touches, clock, call, failure };
        self.note_accesses(handle, index, &operation);
        let stream = self.streams.get_mut(handle)?;
        stream.queue.push_back(operation);
        CHANGED.notify_all();
        Ok(())
    }

    /// Adds the operation's accesses to the histories and reports those that race.
    fn note_accesses(&mut self, stream: u64, index: u64, operation: &Operation) {
        let State { streams, memory, config, .. } = self;
        if !config.races {
            return;
        }
        for touch in operation.touches.iter().filter(|touch| touch.bytes > 0) {
            let Some(history) = memory.history(touch) else { continue };
            let access = Access { touch: *touch, stream, index, call: operation.call };
            let is_gone = |stream| streams.find(stream).is_none();
            if let Some(other) = history.add(access, &operation.clock, is_gone) {
                let Touch { at, bytes, writes } = *touch;
                let does = |writes| if writes { "writes" } else { "reads" };
                let what = format!(
                    "{} {bytes} bytes at {at:#x} on stream {stream:#x}, while {} on stream {:#x} \
                     {} {} bytes at {:#x} and nothing orders the two",
                    does(writes),
                    other.call,
                    other.stream,
                    does(other.touch.writes),
                    other.touch.bytes,
                    other.touch.at,
                );
                report("race", &what);
            }
        }
    }

    /// A stream of which work may go on now, or when that may be.
    fn pick(&mut self, now: Instant) -> Next {
        let mut ready = Vec::new();
        let mut next: Option<Instant> = None;
        for (handle, stream) in self.streams.iter() {
            match stream.readiness(now) {
                Readiness::Now => ready.push(handle),
                Readiness::At(time) => next = Some(next.map_or(time, |next| next.min(time))),
                Readiness::Blocked => {}
            }
        }
        if ready.is_empty() {
            return next.map_or(Next::Never, Next::At);
        }
        let chosen = self.random(ready.len() as u64);
        Next::Stream(ready[super::size(chosen)])
    }

    /// Runs or goes on with the stream's next operation. Returns a host function to be called.
    fn step(&mut self, handle: u64, now: Instant) -> Option<(HostFunction, usize)> {
        let dice = self.random(16);
        let State { streams, memory, config, .. } = self;
        let stream = streams.find_mut(handle)?;
        let context = stream.context;
        let operation = stream.queue.front_mut()?;
        if let Some(failure) = operation.failure {
            self.lose(context, failure);
            return None;
        }
        let outcome = match &mut operation.action {
            Action::Work(work, progress) => {
                if *progress == Progress::Waiting && progress.begin(work, now) {
                    return None;
                }
                work.perform(memory)
            }
            Action::Graph(run) => match run.step(memory, dice, now) {
                Ok(false) => return None,
                other => other.map(|_| ()),
            },
            Action::Record(point) => {
                point.finish(now);
                Ok(())
            }
            Action::Wait(_) => Ok(()),
            &mut Action::Host(function, argument) => {
                stream.in_host_function = true;
                let clock = operation.clock.clone();
                self.host.merge(&clock);
                return Some((function, argument));
            }
            Action::Alloc(at) => {
                if let Some(allocation) = memory.live.get_mut(at) {
                    allocation.is_live = true;
                }
                Ok(())
            }
            Action::Free(at) => {
                memory.drop_allocation(*at);
                Ok(())
            }
        };
        if dice == 0 {
            stream.held_until = now + config.lag;
        }
        trace(|| format!("# ran {} on {handle:#x}", operation.call));
        match outcome {
            Ok(()) => self.finish_operation(handle),
            Err(fault) => self.lose(context, fault),
        }
        None
    }

    fn finish_operation(&mut self, handle: u64) {
        let Some(stream) = self.streams.find_mut(handle) else { return };
        stream.in_host_function = false;
        stream.queue.pop_front();
        if stream.is_dying && stream.queue.is_empty() {
            self.remove_stream(handle);
        }
    }

    /// Removes a stream that has no work left.
    pub(super) fn remove_stream(&mut self, handle: u64) {
        if self.streams.find(handle).is_some() {
            let _ = self.streams.take(handle);
        }
        self.host.forget(handle);
        for (_, stream) in self.streams.iter_mut() {
            stream.clock.forget(handle);
        }
    }

    /// Drops all work of a context, as a fault or its end does. Frees still take effect, and who
    /// waits from another context waits no longer.
    pub(super) fn drop_work(&mut self, context: u64, now: Instant) {
        let mut dying = Vec::new();
        for (handle, stream) in self.streams.iter_mut() {
            if stream.context != context {
                continue;
            }
            for operation in stream.queue.drain(..) {
                match operation.action {
                    Action::Record(point) => point.finish(now),
                    Action::Graph(run) => run.after.finish(now),
                    Action::Free(at) => self.memory.drop_allocation(at),
                    _ => {}
                }
            }
            if stream.is_dying {
                dying.push(handle);
            }
        }
        for handle in dying {
            self.remove_stream(handle);
        }
    }

    /// Whether work that is still enqueued uses any of the bytes.
    pub(super) fn is_in_use(&self, at: u64, bytes: u64) -> bool {
        let piece = Touch { at, bytes, writes: true };
        let uses = |operation: &Operation| {
            operation.touches.iter().any(|touch| touch.bytes > 0 && touch.overlaps(&piece))
        };
        self.streams.iter().any(|(_, stream)| stream.queue.iter().any(uses))
    }

    /// What a synchronisation waits for: `None` while there is work left.
    pub(super) fn drained(&mut self, handle: u64) -> Option<Outcome<()>> {
        let Some(stream) = self.streams.find(handle) else {
            return Some(Err(code::INVALID_HANDLE));
        };
        let error = self.contexts.find(stream.context).map(|context| context.error);
        match error {
            Some(Some(fault)) => Some(Err(fault)),
            None => Some(Err(code::INVALID_CONTEXT)),
            Some(None) if !stream.queue.is_empty() => None,
            Some(None) => {
                let clock = stream.clock.clone();
                self.host.merge(&clock);
                Some(Ok(()))
            }
        }
    }
}

/// What the executor does next.
enum Next {
    Stream(u64),
    At(Instant),
    Never,
}

/// The executor: runs until the process ends.
pub(super) fn execute() {
    let mut gpu = Gpu::lock();
    loop {
        let now = Instant::now();
        match gpu.pick(now) {
            Next::Stream(stream) => {
                if let Some((function, argument)) = gpu.step(stream, now) {
                    IN_HOST_FUNCTION.set(true);
                    let argument = std::ptr::with_exposed_provenance_mut(argument);
                    // SAFETY: whoever enqueued the function promised that it can be called with
                    // this argument once, on any thread.
                    gpu.unlocked(|| unsafe { function(argument) });
                    IN_HOST_FUNCTION.set(false);
                    gpu.finish_operation(stream);
                }
                CHANGED.notify_all();
            }
            Next::At(time) => gpu.wait(Some(time.saturating_duration_since(now))),
            Next::Never => gpu.wait(None),
        }
    }
}

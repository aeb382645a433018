//! Contexts, streams, events and modules, and the ledger of what is alive.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::files::{CALL, ledger, report};
use super::image::{Image, Kernel};
use super::native::{Entry, Library};
use super::stream::{Action, Point, Stream};
use super::{CHANGED, CURRENT, Code, Gpu, Outcome, STATE, State, code};

#[derive(Debug)]
pub(super) struct Context {
    pub(super) device: usize,
    /// The fault after which it answers nothing else.
    pub(super) error: Option<Code>,
    /// Devices whose memory it may reach.
    pub(super) peers: HashSet<usize>,
}

impl Context {
    pub(super) fn new(device: usize) -> Context {
        Context { device, error: None, peers: HashSet::new() }
    }
}

#[derive(Debug)]
pub(super) struct Event {
    context: u64,
    has_time: bool,
    last: Option<Arc<Point>>,
}

#[derive(Debug)]
pub(super) struct Module {
    pub(super) context: u64,
    pub(super) image: Image,
    pub(super) library: Option<Library>,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) context: u64,
    pub(super) module: u64,
    pub(super) kernel: Arc<Kernel>,
    /// What really runs.
    pub(super) entry: Option<Entry>,
    /// Dynamic shared memory that was opted in to.
    pub(super) shared_bytes_max: u32,
}

/// What is alive, of one context or of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holdings {
    contexts: usize,
    streams: usize,
    events: usize,
    pools: usize,
    handles: usize,
    reserved: usize,
    modules: usize,
    graphs: usize,
    execs: usize,
    allocations: usize,
    device_bytes: u64,
    pinned: usize,
    pinned_bytes: u64,
}

impl std::fmt::Display for Holdings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Holdings { contexts, streams, events, pools, modules, graphs, execs, .. } = self;
        let Holdings { handles, reserved, .. } = self;
        let Holdings { allocations, device_bytes, pinned, pinned_bytes, .. } = self;
        write!(
            f,
            "contexts={contexts} streams={streams} events={events} pools={pools} \
             modules={modules} graphs={graphs} graph_execs={execs} allocations={allocations} \
             device_bytes={device_bytes} pinned={pinned} pinned_bytes={pinned_bytes} \
             handles={handles} reserved={reserved}"
        )
    }
}

// Contexts and what is current.
impl State {
    /// The current context, even one that is lost.
    pub(super) fn current(&self) -> Outcome<u64> {
        let context = CURRENT.with_borrow(|stack| stack.last().copied());
        let Some(context) = context.or_else(|| self.implicit.first().copied()) else {
            report("protocol", "no context is current on the calling thread");
            return Err(code::INVALID_CONTEXT);
        };
        self.contexts.get(context).map_err(|_| code::INVALID_CONTEXT)?;
        Ok(context)
    }

    /// The current context, which is not lost.
    pub(crate) fn context(&self) -> Outcome<u64> {
        let context = self.current()?;
        match self.contexts.get(context)?.error {
            Some(fault) => Err(fault),
            None => Ok(context),
        }
    }

    pub(super) fn current_device(&self) -> Outcome<usize> {
        let context = self.context()?;
        Ok(self.contexts.get(context)?.device)
    }

    /// Whether a handle is of the current context.
    pub(super) fn right_context(&self, what: &str, handle: u64, owner: u64) -> Outcome<()> {
        let current = self.current()?;
        if owner != current {
            let what = format!("{what} {handle:#x} is of context {owner:#x}, not of {current:#x}");
            report("protocol", &what);
            return Err(code::INVALID_CONTEXT);
        }
        Ok(())
    }

    pub(crate) fn context_create(&mut self, device: i32) -> Outcome<u64> {
        let device = self.device(device)?;
        let context = self.contexts.add(Context::new(device));
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(context)
    }

    pub(crate) fn set_current(&mut self, context: u64) -> Outcome<()> {
        if context != 0 {
            self.contexts.get(context)?;
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    /// Takes the current context off the calling thread's stack.
    pub(crate) fn pop_current(&mut self) -> Outcome<u64> {
        CURRENT.with_borrow_mut(Vec::pop).ok_or_else(|| {
            report("protocol", "no context is current on the calling thread");
            code::INVALID_CONTEXT
        })
    }

    /// What is current, or 0.
    pub(crate) fn get_current(&self) -> u64 {
        CURRENT.with_borrow(|stack| stack.last().copied()).unwrap_or(0)
    }

    /// For a library without contexts: chooses the device of the calling thread.
    pub(crate) fn set_device(&mut self, device: i32) -> Outcome<()> {
        let device = self.device(device)?;
        let context = self.implicit[device];
        CURRENT.with_borrow_mut(|stack| {
            stack.clear();
            stack.push(context);
        });
        Ok(())
    }

    /// The device of an ordinal.
    pub(crate) fn device(&self, ordinal: i32) -> Outcome<usize> {
        let device = usize::try_from(ordinal).ok().filter(|&device| device < self.config.devices);
        device.ok_or(code::INVALID_DEVICE)
    }

    pub(crate) fn can_access_peer(&self, device: i32, peer: i32) -> Outcome<bool> {
        let (device, peer) = (self.device(device)?, self.device(peer)?);
        Ok(device != peer && self.config.reach_each_other(device, peer))
    }

    /// Lets the current context reach the memory of a device.
    pub(super) fn peer_enable(&mut self, peer: usize) -> Outcome<()> {
        let context = self.context()?;
        let device = self.current_device()?;
        if device == peer || !self.config.reach_each_other(device, peer) {
            return Err(code::PEER_ACCESS_UNSUPPORTED);
        }
        if !self.contexts.get_mut(context)?.peers.insert(peer) {
            return Err(code::PEER_ENABLED);
        }
        Ok(())
    }

    pub(crate) fn peer_enable_context(&mut self, peer: u64) -> Outcome<()> {
        let device = self.contexts.get(peer)?.device;
        self.peer_enable(device)
    }

    pub(crate) fn peer_enable_device(&mut self, peer: i32) -> Outcome<()> {
        let device = self.device(peer)?;
        self.peer_enable(device)
    }

    /// Ends everything that a context still has. A leak is only what was left in a sound one.
    fn end_context(&mut self, context: u64) -> Outcome<()> {
        let error = self.contexts.get(context)?.error;
        let left = self.holdings(Some(context));
        ledger(&format!("context {context:#x} destroyed: {left}"));
        if error.is_none() && left != Holdings::default() {
            report("leak", &format!("context {context:#x} is destroyed with {left}"));
        }
        self.drop_work(context, Instant::now());
        let streams: Vec<u64> = self.streams_of(context);
        for stream in streams {
            self.remove_stream(stream);
        }
        self.events.remove_where(|event| event.context == context);
        self.functions.remove_where(|function| function.context == context);
        self.modules.remove_where(|module| module.context == context);
        self.execs.remove_where(|exec| exec.context == context);
        let graphs: Vec<u64> = {
            let own = self.graphs.iter().filter(|(_, graph)| graph.context == context);
            own.map(|(handle, _)| handle).collect()
        };
        for graph in graphs {
            let _ = self.graph_destroy(graph);
        }
        let of_context = |(&at, allocation): (&u64, &super::memory::Allocation)| {
            (allocation.context == context).then_some(at)
        };
        let allocations: Vec<u64> = self.memory.live.iter().filter_map(of_context).collect();
        for at in allocations {
            self.memory.drop_allocation(at);
        }
        self.memory.pins.retain(|_, pin| pin.context != context);
        self.contexts.take(context)?;
        CHANGED.notify_all();
        Ok(())
    }

    fn streams_of(&self, context: u64) -> Vec<u64> {
        let own = self.streams.iter().filter(|(_, stream)| stream.context == context);
        own.map(|(handle, _)| handle).collect()
    }
}

impl Gpu {
    pub(crate) fn context_destroy(&mut self, context: u64) -> Outcome<()> {
        self.contexts.get(context)?;
        if self.config.hang_blocks {
            // As if the driver waited for kernels that never end.
            self.wait_until(|state| {
                let idle = |stream: &u64| {
                    state.streams.find(*stream).is_none_or(|stream| stream.queue.is_empty())
                };
                state.streams_of(context).iter().all(idle).then_some(())
            });
        }
        // What a host function uses is there until it returns.
        self.wait_until(|state| {
            let calls = |stream: &u64| state.streams.find(*stream).is_some_and(Stream::is_calling);
            (!state.streams_of(context).iter().any(calls)).then_some(())
        });
        self.end_context(context)?;
        CURRENT.with_borrow_mut(|stack| stack.retain(|&current| current != context));
        Ok(())
    }

    pub(crate) fn stream_synchronize(&mut self, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.wait_until(|state| state.drained(stream))
    }

    pub(crate) fn context_synchronize(&mut self) -> Outcome<()> {
        let context = self.context()?;
        for stream in self.streams_of(context) {
            self.wait_until(|state| state.drained(stream))?;
        }
        Ok(())
    }

    pub(crate) fn event_synchronize(&mut self, event: u64) -> Outcome<()> {
        self.events.get(event)?;
        self.wait_until(|state| match state.event_query(event) {
            Err(code::NOT_READY) => None,
            other => Some(other),
        })
    }
}

// Streams and events.
impl State {
    /// Checks that the stream is of the current context, which is not lost.
    pub(super) fn own_stream(&self, stream: u64) -> Outcome<u64> {
        let context = self.context()?;
        let owner = self.streams.get(stream)?;
        if owner.is_dying {
            report("protocol", &format!("stream {stream:#x} was destroyed before"));
            return Err(code::INVALID_HANDLE);
        }
        self.right_context("stream", stream, owner.context)?;
        Ok(context)
    }

    pub(crate) fn stream_create(&mut self, flags: u32) -> Outcome<u64> {
        let context = self.context()?;
        if flags != 1 {
            report("protocol", &format!("stream with flags {flags}: it waits for the default one"));
        }
        let stream = Stream::new(context, &self.host);
        Ok(self.streams.add(stream))
    }

    /// Work that is enqueued still runs.
    pub(crate) fn stream_destroy(&mut self, handle: u64) -> Outcome<()> {
        let stream = self.streams.get_mut(handle)?;
        if std::mem::replace(&mut stream.is_dying, true) {
            report("protocol", &format!("stream {handle:#x} was destroyed before"));
            return Err(code::INVALID_HANDLE);
        }
        let (owner, is_empty) = (stream.context, stream.queue.is_empty());
        self.right_context("stream", handle, owner)?;
        if is_empty {
            self.remove_stream(handle);
        }
        self.contexts.get(owner)?.error.map_or(Ok(()), Err)
    }

    pub(crate) fn stream_query(&mut self, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        self.drained(stream).unwrap_or(Err(code::NOT_READY))
    }

    pub(crate) fn stream_wait(&mut self, stream: u64, event: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        // An event that was never recorded is no event to wait for.
        let Some(point) = self.events.get(event)?.last.clone() else { return Ok(()) };
        self.enqueue(stream, Action::Wait(point), Vec::new())
    }

    pub(crate) fn event_create(&mut self, flags: u32) -> Outcome<u64> {
        let context = self.context()?;
        Ok(self.events.add(Event { context, has_time: flags & 2 == 0, last: None }))
    }

    pub(crate) fn event_destroy(&mut self, event: u64) -> Outcome<()> {
        let owner = self.events.get(event)?.context;
        self.right_context("event", event, owner)?;
        self.events.take(event)?;
        self.contexts.get(owner)?.error.map_or(Ok(()), Err)
    }

    pub(crate) fn event_record(&mut self, event: u64, stream: u64) -> Outcome<()> {
        let context = self.own_stream(stream)?;
        let owner = self.events.get(event)?.context;
        if owner != context {
            report(
                "protocol",
                &format!("event {event:#x} and stream {stream:#x} share no context"),
            );
            return Err(code::INVALID_HANDLE);
        }
        let mut clock = self.host.clone();
        clock.merge(&self.streams.get(stream)?.clock);
        let point = Arc::new(Point::new(clock));
        self.events.get_mut(event)?.last = Some(Arc::clone(&point));
        self.enqueue(stream, Action::Record(point), Vec::new())
    }

    pub(crate) fn event_query(&mut self, event: u64) -> Outcome<()> {
        let Event { context, last, .. } = self.events.get(event)?;
        if let Some(fault) = self.contexts.get(*context)?.error {
            return Err(fault);
        }
        let Some(point) = last.clone() else { return Ok(()) };
        if !point.is_done() {
            return Err(code::NOT_READY);
        }
        self.host.merge(&point.clock);
        Ok(())
    }

    pub(crate) fn elapsed(&mut self, from: u64, to: u64) -> Outcome<Duration> {
        let mut times = [Instant::now(); 2];
        for (time, event) in times.iter_mut().zip([from, to]) {
            self.event_query(event)?;
            let Event { has_time, last, .. } = self.events.get(event)?;
            let point = last.as_ref().filter(|_| *has_time).ok_or_else(|| {
                report("protocol", &format!("event {event:#x} has no time"));
                code::INVALID_HANDLE
            })?;
            *time = point.time().ok_or(code::NOT_READY)?;
        }
        Ok(times[1].saturating_duration_since(times[0]))
    }
}

// Modules.
impl State {
    pub(super) fn module_add(&mut self, image: Image, library: Option<Library>) -> Outcome<u64> {
        let context = self.context()?;
        Ok(self.modules.add(Module { context, image, library }))
    }

    pub(crate) fn module_unload(&mut self, module: u64) -> Outcome<()> {
        let owner = self.modules.get(module)?.context;
        self.right_context("module", module, owner)?;
        if self.is_launched(module) {
            report("protocol", &format!("module {module:#x} is unloaded before its kernels ran"));
        }
        self.modules.take(module)?;
        self.functions.remove_where(|function| function.module == module);
        self.contexts.get(owner)?.error.map_or(Ok(()), Err)
    }

    pub(crate) fn module_function(&mut self, module: u64, name: &str) -> Outcome<u64> {
        let context = self.context()?;
        let Module { context: owner, image, library } = self.modules.get(module)?;
        let entry = library.and_then(|library| library.entry(name));
        let kernel = image.kernels.iter().find(|kernel| kernel.name == name).cloned();
        self.right_context("module", module, *owner)?;
        let kernel = Arc::new(kernel.ok_or(code::NOT_FOUND)?);
        Ok(self.functions.add(Function {
            context,
            module,
            kernel,
            entry,
            shared_bytes_max: 48 << 10,
        }))
    }
}

// The ledger.
impl State {
    fn holdings(&self, of: Option<u64>) -> Holdings {
        let is_own = |context: u64| of.is_none_or(|of| of == context);
        let mut held = Holdings::default();
        if of.is_none() {
            held.contexts = self.contexts.len() - self.implicit.len();
            held.pools = self.pools.len();
            held.handles = self.handles.len();
            held.reserved = self.reserved.len();
        }
        let alive = |stream: &Stream| is_own(stream.context) && !stream.is_dying;
        held.streams = self.streams.iter().filter(|(_, stream)| alive(stream)).count();
        held.events = self.events.iter().filter(|(_, event)| is_own(event.context)).count();
        held.modules = self.modules.iter().filter(|(_, module)| is_own(module.context)).count();
        held.graphs = self.graphs.iter().filter(|(_, graph)| is_own(graph.context)).count();
        held.execs = self.execs.iter().filter(|(_, exec)| is_own(exec.context)).count();
        let live = self.memory.live.values();
        for allocation in live.filter(|piece| is_own(piece.context) && !piece.is_freed) {
            held.allocations += 1;
            held.device_bytes += allocation.bytes;
        }
        for pin in self.memory.pins.values().filter(|pin| is_own(pin.context)) {
            held.pinned += 1;
            held.pinned_bytes += pin.bytes;
        }
        held
    }

    /// Writes down what is alive in the process.
    pub(crate) fn write_ledger(&self, when: &str) {
        let held = self.holdings(None);
        let compiler: Vec<String> =
            self.compiler.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let (library, process) = (crate::FACE.library, std::process::id());
        let compiler = compiler.join(" ");
        ledger(&format!("{when} {library} process={process} {held} {compiler}"));
        let leaks = held != Holdings::default() || self.compiler.values().any(|&count| count > 0);
        let is_lost = self.implicit.iter().any(|&context| {
            self.contexts.find(context).is_some_and(|context| context.error.is_some())
        });
        if leaks && when == "exit" && !is_lost {
            report("leak", &format!("the process exits with {held} {compiler}"));
        }
    }
}

extern "C" fn at_exit() {
    CALL.set("exit");
    // A process that ends in the middle of a call has more to say than this.
    let state = STATE.try_lock().or_else(|error| match error {
        std::sync::TryLockError::Poisoned(poisoned) => Ok(PoisonError::into_inner(poisoned)),
        std::sync::TryLockError::WouldBlock => Err(()),
    });
    if let Ok(state) = state
        && (state.is_initialised || !state.compiler.is_empty())
    {
        state.write_ledger("exit");
    }
}

#[used]
// SAFETY: the section holds functions without parameters, which are called once at exit, before
// the C library itself is shut down.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

//! What a driver hands out, owned: dropping a value gives it back.
//!
//! Owns: every call of [`Driver`] that takes a handle, and so nearly all of its unsafe ones. Each
//! value keeps the context that it was made in, and makes that context the current one before a
//! call; which one is current is remembered for each thread, so as a rule that costs a comparison.
//!
//! Absent: when something may be given back. The owner waits for the work that uses it (`queue`),
//! and lets a thread that may block do it (`clerk`).
//!
//! What the calls do to the device's memory is not for Rust to check: a pointer into it is never
//! followed here. What they do to this process's memory is; those calls are unsafe, and their
//! callers say who keeps the memory.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};

use super::driver::{
    self, Code, DevicePointer, Driver, EventUse, FunctionInfo, HostFunction, Kind, Node, Ordinal,
    Outcome,
};
use crate::device::DeviceError;

/// A call that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    /// What was wanted.
    pub(super) what: &'static str,
    pub(super) code: Code,
}

pub(super) type Done<T> = Result<T, Trouble>;

/// What a call that failed means for a device.
pub(super) fn meaning(driver: &dyn Driver, trouble: Trouble) -> DeviceError {
    let words = driver.describe(trouble.code);
    match driver.kind(trouble.code) {
        Kind::Fault(what) => DeviceError::Fault { what: format!("{what} ({words})") },
        Kind::Lost(what) => DeviceError::Lost { why: format!("{what} ({words})") },
        _ => DeviceError::Failed { what: trouble.what, why: words },
    }
}

thread_local! {
    /// The serial of the context that is current on this thread; 0 is none's.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A context, and the driver that made it.
pub(super) struct Context {
    driver: &'static dyn Driver,
    raw: driver::Context,
    device: Ordinal,
    /// No two contexts of this process have the same; a driver may use its handles again.
    serial: u64,
    /// Set once it has ended, and with it all that was made in it.
    has_ended: AtomicBool,
}

impl Context {
    pub(super) fn create(driver: &'static dyn Driver, device: Ordinal) -> Done<Arc<Context>> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let what = "context";
        let raw = driver.context_create(device).map_err(|code| Trouble { what, code })?;
        let serial = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        CURRENT.set(serial);
        Ok(Arc::new(Context { driver, raw, device, serial, has_ended: AtomicBool::new(false) }))
    }

    pub(super) fn driver(&self) -> &'static dyn Driver {
        self.driver
    }

    pub(super) fn device(&self) -> Ordinal {
        self.device
    }

    /// Whether it is one of several, which end each by itself.
    pub(super) fn can_end(&self) -> bool {
        !self.is_of_all()
    }

    /// Whether all contexts of the device are this one.
    fn is_of_all(&self) -> bool {
        usize::try_from(self.device.0).is_ok_and(|ordinal| self.raw.0.get() == ordinal + 1)
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// What a call that failed means for a device.
    pub(super) fn meaning(&self, trouble: Trouble) -> DeviceError {
        meaning(self.driver, trouble)
    }

    /// Makes it current.
    fn enter(&self) -> Done<()> {
        if CURRENT.get() == self.serial {
            return Ok(());
        }
        // SAFETY: the handle came from this driver. It has not been destroyed: only `end` does
        // that, and nobody but what is dropped then, which looks first, has business here later.
        let outcome = unsafe { self.driver.context_set_current(self.raw) };
        outcome.map_err(|code| Trouble { what: "context", code })?;
        CURRENT.set(self.serial);
        Ok(())
    }

    /// A call in this context.
    pub(super) fn call<T>(
        &self,
        what: &'static str,
        call: impl FnOnce(&'static dyn Driver) -> Outcome<T>,
    ) -> Done<T> {
        self.enter()?;
        call(self.driver).map_err(|code| Trouble { what, code })
    }

    /// Gives something back. What a lost context answers does not matter any more.
    fn give_back(&self, what: &'static str, call: impl FnOnce(&'static dyn Driver) -> Outcome<()>) {
        if self.has_ended.load(Ordering::Acquire) {
            return;
        }
        if let Err(trouble) = self.call(what, call) {
            tracing::debug!(what, why = self.driver.describe(trouble.code), "not given back");
        }
    }

    /// Ends the context with all that is left in it, even if work is under way. False where all
    /// contexts of the device are one, which does not end. May block.
    pub(super) fn end(&self) -> bool {
        if self.is_of_all() {
            return false;
        }
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            // SAFETY: the handle came from this driver and is destroyed here only, once.
            if let Err(code) = unsafe { self.driver.context_destroy(self.raw) } {
                tracing::debug!(why = self.driver.describe(code), "context not destroyed");
            }
            CURRENT.set(0);
        }
        true
    }

    /// Whether it has ended, or is about to.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Free and total bytes of the device's memory.
    pub(super) fn memory_info(&self) -> Done<(u64, u64)> {
        self.call("memory information", |driver| driver.memory_info())
    }

    /// Lets this context reach the memory of another.
    pub(super) fn enable_peer(&self, peer: &Context) -> Done<()> {
        let enabled = self.call("peer access", |driver| {
            // SAFETY: the handle came from this driver, and `peer` has not ended: it is borrowed
            // from a device that is open.
            unsafe { driver.peer_enable(peer.raw) }
        });
        match enabled {
            Err(trouble) if self.driver.kind(trouble.code) == Kind::PeerEnabled => Ok(()),
            enabled => enabled,
        }
    }

    /// Whether this context's device reaches the memory of another's.
    pub(super) fn can_access(&self, peer: &Context) -> Done<bool> {
        let (device, peer) = (self.device, peer.device);
        self.call("peer access", |driver| driver.can_access_peer(device, peer))
    }

    /// Memory of devices without pools. Waits for the device.
    pub(super) fn alloc(&self, bytes: u64) -> Done<DevicePointer> {
        self.call("allocation", |driver| driver.memory_alloc(bytes))
    }

    /// Frees what [`Self::alloc`] gave, behind the work that uses it.
    pub(super) fn free(&self, at: DevicePointer) -> Done<()> {
        // SAFETY: `memory` frees each pointer once, after the work that uses it.
        self.call("free", |driver| unsafe { driver.memory_free(at) })
    }

    /// Pins memory that is there already. What this process cannot write is `read_only`.
    ///
    /// # Safety
    ///
    /// It stays mapped until it is unpinned.
    pub(super) unsafe fn pin(&self, at: *mut u8, bytes: usize, read_only: bool) -> Done<()> {
        // SAFETY: the caller keeps the memory.
        self.call("pinning", |driver| unsafe { driver.host_register(at, bytes, read_only) })
    }

    /// Unpins what [`Self::pin`] has pinned, behind the work that uses it.
    pub(super) fn unpin(&self, at: *mut u8) {
        // SAFETY: pinned once by the caller, who unpins it once.
        self.give_back("pinned memory", |driver| unsafe { driver.host_unregister(at) });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.end() {
            // SAFETY: the handle came from this driver. Where all contexts of a device are one
            // this ends nothing.
            let _ = unsafe { self.driver.context_destroy(self.raw) };
        }
    }
}

/// Declares an owned handle: its context, the raw handle, and how it is given back.
macro_rules! owned {
    ($($(#[$doc:meta])* $name:ident($raw:ty) = $what:literal, $destroy:ident;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name {
            context: Arc<Context>,
            raw: $raw,
        }

        impl Drop for $name {
            fn drop(&mut self) {
                let raw = self.raw;
                // SAFETY: the handle came from this context's driver and is destroyed here only.
                self.context.give_back($what, |driver| unsafe { driver.$destroy(raw) });
            }
        }
    )*};
}

owned! {
    /// A queue of the device's.
    Stream(driver::Stream) = "stream", stream_destroy;
    /// A mark in a stream.
    Event(driver::Event) = "event", event_destroy;
    /// Loaded code.
    Module(driver::Module) = "module", module_unload;
    /// What a graph is made from.
    Template(driver::GraphTemplate) = "graph", graph_destroy;
    /// A graph that can be launched.
    Exec(driver::GraphExec) = "instantiated graph", graph_exec_destroy;
}

/// A pool of device memory. It is the device's, and outlives the context that it was made in.
pub(super) struct Pool {
    context: Arc<Context>,
    raw: driver::Pool,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.context.has_ended.load(Ordering::Acquire)
            && let Err(trouble) = self.context.enter()
        {
            tracing::debug!(why = self.context.driver.describe(trouble.code), "no context");
        }
        // SAFETY: the handle came from this context's driver and is destroyed here only.
        if let Err(code) = unsafe { self.context.driver.pool_destroy(self.raw) } {
            tracing::debug!(why = self.context.driver.describe(code), "pool not destroyed");
        }
    }
}

/// One side of a copy between two contexts.
#[derive(Clone, Copy)]
pub(super) struct Far<'c> {
    pub(super) context: &'c Context,
    pub(super) at: DevicePointer,
}

impl Stream {
    pub(super) fn create(context: &Arc<Context>) -> Done<Stream> {
        let raw = context.call("stream", |driver| driver.stream_create())?;
        Ok(Stream { context: Arc::clone(context), raw })
    }

    /// Whether all of its work is done.
    pub(super) fn is_done(&self) -> Done<bool> {
        let raw = self.raw;
        // SAFETY: alive as long as `self`.
        let outcome = self.context.call("stream", |driver| unsafe { driver.stream_query(raw) });
        self.context.is_ready(outcome)
    }

    /// Waits for all of its work. Blocks.
    pub(super) fn synchronize(&self) -> Done<()> {
        let raw = self.raw;
        // SAFETY: alive as long as `self`.
        self.context.call("stream", |driver| unsafe { driver.stream_synchronize(raw) })
    }

    /// Lets what comes later wait for the event, which may be another device's.
    pub(super) fn wait(&self, event: &Event) -> Done<()> {
        let (raw, event) = (self.raw, event.raw);
        // SAFETY: both are alive as long as they are borrowed; the driver keeps what it needs of
        // an event that is destroyed later.
        self.context.call("wait", |driver| unsafe { driver.stream_wait(raw, event) })
    }

    pub(super) fn record(&self, event: &Event) -> Done<()> {
        let (raw, event) = (self.raw, event.raw);
        // SAFETY: both are alive; streams and events of one queue are made in one context.
        self.context.call("event", |driver| unsafe { driver.event_record(event, raw) })
    }

    pub(super) fn zero(&self, at: DevicePointer, bytes: u64) -> Done<()> {
        let raw = self.raw;
        // SAFETY: the range is an allocation of this context that is freed behind this stream.
        self.context.call("zeroing", |driver| unsafe { driver.memory_zero(at, bytes, raw) })
    }

    /// Copies from pinned memory to the device.
    ///
    /// # Safety
    ///
    /// `from` is readable for `bytes` bytes, and stays as it is until the stream is past the copy.
    pub(super) unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: NonNull<u8>,
        bytes: u64,
    ) -> Done<()> {
        let raw = self.raw;
        // SAFETY: the caller keeps `from`; `to` is an allocation that is freed behind the copy.
        self.context.call("copy to the device", |driver| unsafe {
            driver.copy_in(to, from.as_ptr(), bytes, raw)
        })
    }

    /// Copies from the device to pinned memory.
    ///
    /// # Safety
    ///
    /// `to` is writable for `bytes` bytes and nobody else looks there until the stream is past the
    /// copy.
    pub(super) unsafe fn copy_out(
        &self,
        to: NonNull<u8>,
        from: DevicePointer,
        bytes: u64,
    ) -> Done<()> {
        let raw = self.raw;
        // SAFETY: the caller keeps `to`; `from` is an allocation that is freed behind the copy.
        self.context.call("copy from the device", |driver| unsafe {
            driver.copy_out(to.as_ptr(), from, bytes, raw)
        })
    }

    /// Copies inside the context's device.
    pub(super) fn copy(&self, to: DevicePointer, from: DevicePointer, bytes: u64) -> Done<()> {
        let raw = self.raw;
        // SAFETY: both are allocations that are freed behind the copy.
        self.context.call("copy", |driver| unsafe { driver.copy(to, from, bytes, raw) })
    }

    /// Copies between two devices, of which this stream's is one.
    pub(super) fn copy_peer(&self, to: Far<'_>, from: Far<'_>, bytes: u64) -> Done<()> {
        let raw = self.raw;
        let (to, from) = ((to.context.raw, to.at), (from.context.raw, from.at));
        // SAFETY: both contexts are borrowed from devices that are open, and both places are
        // allocations that are freed behind the copy.
        self.context.call("copy between devices", |driver| unsafe {
            driver.copy_peer(to, from, bytes, raw)
        })
    }

    pub(super) fn launch(&self, kernel: &driver::Kernel<'_>) -> Done<()> {
        let raw = self.raw;
        // SAFETY: the function is of a module that is unloaded behind this launch; arguments are
        // copied before the call returns.
        self.context.call("launch", |driver| unsafe { driver.launch(kernel, raw) })
    }

    pub(super) fn launch_graph(&self, exec: &Exec) -> Done<()> {
        let (raw, exec) = (self.raw, exec.raw);
        // SAFETY: alive; what its nodes use is kept until the stream is past it.
        self.context.call("graph launch", |driver| unsafe { driver.graph_launch(exec, raw) })
    }

    /// Has a function called once the stream is here.
    ///
    /// # Safety
    ///
    /// `argument` is what `function` expects, until it is called or the context has ended. The
    /// function does not call the driver.
    pub(super) unsafe fn call_back(
        &self,
        function: HostFunction,
        argument: *mut c_void,
    ) -> Done<()> {
        let raw = self.raw;
        self.context.call("doorbell", |driver| {
            // SAFETY: as the caller says.
            unsafe { driver.launch_host(raw, function, argument) }
        })
    }
}

impl Context {
    /// What a query's answer means.
    fn is_ready(&self, outcome: Done<()>) -> Done<bool> {
        match outcome {
            Ok(()) => Ok(true),
            Err(trouble) if self.driver.kind(trouble.code) == Kind::NotReady => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }
}

impl Event {
    pub(super) fn create(context: &Arc<Context>, for_: EventUse) -> Done<Event> {
        let raw = context.call("event", |driver| driver.event_create(for_))?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Whether it has been reached.
    pub(super) fn is_reached(&self) -> Done<bool> {
        let raw = self.raw;
        // SAFETY: alive as long as `self`.
        let outcome = self.context.call("event", |driver| unsafe { driver.event_query(raw) });
        self.context.is_ready(outcome)
    }

    /// From this event to a later one; both have been reached.
    pub(super) fn until(&self, later: &Event) -> Done<Duration> {
        let (from, to) = (self.raw, later.raw);
        // SAFETY: both are alive.
        self.context.call("timer", |driver| unsafe { driver.elapsed(from, to) })
    }
}

impl Pool {
    pub(super) fn create(context: &Arc<Context>, keep_bytes: u64) -> Done<Pool> {
        let device = context.device;
        let raw = context.call("memory pool", |driver| driver.pool_create(device, keep_bytes))?;
        Ok(Pool { context: Arc::clone(context), raw })
    }

    /// Lets another device's copies reach what comes from the pool.
    pub(super) fn allow(&self, device: Ordinal) -> Done<()> {
        let raw = self.raw;
        // SAFETY: alive as long as `self`.
        self.context.call("peer access", |driver| unsafe { driver.pool_allow(raw, device) })
    }

    /// Memory that what comes later in the stream may use.
    pub(super) fn alloc(&self, bytes: u64, stream: &Stream) -> Done<DevicePointer> {
        let (raw, stream) = (self.raw, stream.raw);
        // SAFETY: both are alive.
        self.context.call("allocation", |driver| unsafe { driver.pool_alloc(raw, bytes, stream) })
    }

    /// Frees memory behind what is in the stream.
    pub(super) fn free(&self, at: DevicePointer, stream: &Stream) -> Done<()> {
        let stream = stream.raw;
        // SAFETY: `memory` frees each pointer once, behind the work that uses it.
        self.context.call("free", |driver| unsafe { driver.pool_free(at, stream) })
    }
}

/// Pinned memory of this process, reachable by all contexts.
///
/// It is this process's own and only registered with the driver. What a driver allocates ends with
/// the context, which may be while a reply is sent from it.
pub(super) struct Pinned {
    context: Arc<Context>,
    at: NonNull<u8>,
    bytes: usize,
    is_pinned: bool,
}

// SAFETY: plain memory that belongs to no thread; this value hands out its address only.
unsafe impl Send for Pinned {}
// SAFETY: as for `Send`.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Memory that reads as zero.
    pub(super) fn create(context: &Arc<Context>, bytes: usize) -> Result<Pinned, DeviceError> {
        let failed = |why: String| DeviceError::Failed { what: "pinned memory", why };
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let anywhere = std::ptr::null_mut();
        // SAFETY: the kernel chooses a free address range; nothing here lies in it.
        let mapped = unsafe { rustix::mm::mmap_anonymous(anywhere, bytes, access, flags) };
        let at = mapped.map_err(|error| failed(error.to_string()))?;
        let at = NonNull::new(at.cast()).ok_or_else(|| failed("no address".to_owned()))?;
        let mut memory = Pinned { context: Arc::clone(context), at, bytes, is_pinned: false };
        // SAFETY: unmapped by the drop only, after it was unpinned.
        let pinned = unsafe { context.pin(at.as_ptr(), bytes, false) };
        pinned.map_err(|trouble| context.meaning(trouble))?;
        memory.is_pinned = true;
        Ok(memory)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of a part.
    pub(super) fn part(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "bytes outside of their pinned memory");
        // SAFETY: at most the end of the memory, as checked above.
        unsafe { self.at.add(offset) }
    }

    /// Copies bytes to `offset`, where no copy of the device's is under way.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.part(offset, bytes.len());
        // SAFETY: room for as many bytes, checked by `part`; pinned memory overlaps nothing else.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.is_pinned {
            self.context.unpin(self.at.as_ptr());
        }
        // SAFETY: mapped by `create`, and unmapped here only. No copy of the device's is under way:
        // the owner has waited for it, or the context has ended with it.
        let unmapped = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped");
    }
}

/// One kernel of a module.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) raw: driver::Function,
    pub(super) info: FunctionInfo,
}

impl Module {
    /// Loads code. The message is the driver's compiler's.
    pub(super) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Module, (Trouble, String)> {
        let what = "program";
        context.enter().map_err(|trouble| (trouble, String::new()))?;
        match context.driver.module_load(image) {
            Ok(raw) => Ok(Module { context: Arc::clone(context), raw }),
            Err((code, words)) => Err((Trouble { what, code }, words)),
        }
    }

    pub(super) fn function(&self, name: &CStr) -> Done<Function> {
        let module = self.raw;
        let what = "kernel";
        // SAFETY: alive as long as `self`.
        let raw =
            self.context.call(what, |driver| unsafe { driver.module_function(module, name) })?;
        // SAFETY: just found in a module that is alive.
        let info = self.context.call(what, |driver| unsafe { driver.function_info(raw) })?;
        Ok(Function { raw, info })
    }
}

impl Template {
    pub(super) fn create(context: &Arc<Context>) -> Done<Template> {
        let raw = context.call("graph", |driver| driver.graph_create())?;
        Ok(Template { context: Arc::clone(context), raw })
    }

    pub(super) fn add_kernel(&self, after: &[Node], kernel: &driver::Kernel<'_>) -> Done<Node> {
        let raw = self.raw;
        // SAFETY: alive; the nodes are of this template, whose owner keeps them with it, and the
        // function is of a module that is unloaded behind the graph.
        self.context.call("graph", |driver| unsafe { driver.graph_add_kernel(raw, after, kernel) })
    }

    pub(super) fn add_copy(
        &self,
        after: &[Node],
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Done<Node> {
        let raw = self.raw;
        // SAFETY: as for `add_kernel`; both places are kept with the graph or given by each run.
        self.context
            .call("graph", |driver| unsafe { driver.graph_add_copy(raw, after, to, from, bytes) })
    }

    pub(super) fn instantiate(&self) -> Done<Exec> {
        let raw = self.raw;
        // SAFETY: alive.
        let raw = self.context.call("graph", |driver| unsafe { driver.graph_instantiate(raw) })?;
        Ok(Exec { context: Arc::clone(&self.context), raw })
    }
}

impl Exec {
    /// Changes a kernel for later launches. `node` is of the template that this was made from.
    pub(super) fn set_kernel(&self, node: Node, kernel: &driver::Kernel<'_>) -> Done<()> {
        let raw = self.raw;
        // SAFETY: alive, and template and exec have one owner.
        self.context.call("graph", |driver| unsafe { driver.graph_set_kernel(raw, node, kernel) })
    }

    /// Changes a copy for later launches.
    pub(super) fn set_copy(
        &self,
        node: Node,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Done<()> {
        let raw = self.raw;
        // SAFETY: as for `set_kernel`.
        self.context
            .call("graph", |driver| unsafe { driver.graph_set_copy(raw, node, to, from, bytes) })
    }
}

//! The table of driver calls that `gpu` is written against.
//!
//! Owns: [`Driver`], one method for each call of the driver that is used, and the raw handles that
//! travel through it. `cuda` and `hip` fill the table: they load the library, translate codes and
//! structures, and add nothing else.
//!
//! Absent: any policy. Who owns a handle, what is current where, and in which order calls are made
//! is the business of `gpu`. Handles are numbers here: they are not freed by a drop.
//!
//! Every call works on the context that is current on the calling thread unless it names a device
//! or a context.

use std::ffi::{CStr, c_void};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// A driver's own number for what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) i32);

/// What a code means to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The binary or text is not for this device, or is damaged.
    BadProgram,
    /// Work is under way: the answer of a query, not an error.
    NotReady,
    /// No memory on the device, or no pinned memory on the host.
    OutOfMemory,
    /// Peer access is on already, which is as good as turning it on.
    PeerEnabled,
    /// A kernel did this, and the context with all that is in it is lost: illegal address,
    /// misaligned access, illegal instruction, assert, stack overflow, launch timeout.
    Fault(&'static str),
    /// The hardware or the driver did this, and the context is lost: an ECC error, a link that
    /// broke, a driver that was unloaded.
    Lost(&'static str),
    /// The call or what it asked for does not exist here.
    Unsupported,
    Other,
}

impl Kind {
    /// What a code means that has no meaning of its own. Where the documentation has it, among
    /// `refusals`, a call was refused and nothing else happened. Of any other nobody knows what is
    /// left of the context, so nobody relies on it.
    pub(super) fn of_unlisted(code: Code, refusals: &[RangeInclusive<i32>]) -> Kind {
        match refusals.iter().any(|codes| codes.contains(&code.0)) {
            true => Kind::Other,
            false => Kind::Lost("an error that this server does not know"),
        }
    }
}

pub(super) type Outcome<T> = Result<T, Code>;

/// Declares an opaque handle of the driver's. Never null: a null handle is `None`.
macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) struct $name(pub(super) NonZeroUsize);
    )*};
}

handles! {
    /// `CUcontext`. HIP has one context a device, and the handle holds the ordinal plus one.
    Context,
    /// `CUevent`, `hipEvent_t`.
    Event,
    /// `CUfunction`, `hipFunction_t`.
    Function,
    /// `CUgraphExec`, `hipGraphExec_t`.
    GraphExec,
    /// `CUgraph`, `hipGraph_t`.
    GraphTemplate,
    /// `CUmodule`, `hipModule_t`.
    Module,
    /// `CUmemGenericAllocationHandle`, `hipMemGenericAllocationHandle_t`: memory that has no
    /// address.
    MemoryHandle,
    /// `CUgraphNode`, `hipGraphNode_t`.
    Node,
    /// `CUmemoryPool`, `hipMemPool_t`.
    Pool,
    /// `CUstream`, `hipStream_t`.
    Stream,
}

/// A place in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct DevicePointer(pub(super) u64);

/// The driver's ordinal of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ordinal(pub(super) i32);

/// What of a device does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceInfo {
    pub(super) name: String,
    /// `sm_90`, `gfx90a:sramecc+:xnack-`: what code has to be compiled for.
    pub(super) arch: String,
    /// `0000:3b:00.0`, as the kernel names it in `/sys/bus/pci/devices`.
    pub(super) pci: String,
    pub(super) memory_bytes: u64,
    pub(super) limits: LaunchLimits,
    /// Whether the device has stream-ordered memory pools.
    pub(super) has_pools: bool,
    /// Whether its memory can be made reachable for other processes by file descriptors.
    pub(super) has_shareable_memory: bool,
    /// Whether and how network cards can reach its memory.
    pub(super) card_access: Option<CardAccess>,
    /// Whether the device is a host-visible one whose memory is the host's (an APU).
    pub(super) is_integrated: bool,
}

/// How network cards reach a device's memory by descriptors (`dmabuf`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CardAccess {
    /// Work of the device that begins after a card's write sees what was written.
    Ordered,
    /// It does after [`Driver::writes_flush`].
    Flushed,
}

/// What a launch may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaunchLimits {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) block_threads: u32,
    /// Shared memory of a block, static and dynamic together, that a kernel may opt in to.
    pub(super) shared_bytes: u32,
    /// Bytes of all arguments together.
    pub(super) argument_bytes: u32,
}

/// What one kernel may ask for, from its binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FunctionInfo {
    pub(super) block_threads: u32,
    pub(super) static_shared_bytes: u32,
}

/// A launch's sizes and packed arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel<'a> {
    pub(super) function: Function,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared_bytes: u32,
    /// As the kernel's parameters lie in memory: pointers of 8 bytes, then integers of 4.
    pub(super) arguments: &'a [u8],
}

/// What an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventUse {
    /// Only its order counts; cheaper.
    Order,
    /// [`Driver::elapsed`] will be asked.
    Time,
}

/// A function that the driver calls on a thread of its own. It must not call the driver.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// The calls.
///
/// # Safety
///
/// All methods marked so hand handles or addresses to the driver as they are. The caller
/// guarantees that every handle came from this table and has not been destroyed; that the context
/// in which it was made is current (where a driver has contexts); that host memory stays where it
/// is, unmoved and not written to otherwise, until the stream is past the call; and that device
/// memory is freed only behind the work that uses it.
pub(super) trait Driver: Send + Sync {
    /// `CUDA` or `HIP`: the name that clients see.
    fn name(&self) -> &'static str;
    /// What a code means.
    fn kind(&self, code: Code) -> Kind;
    /// The driver's own words: name, number and sentence.
    fn describe(&self, code: Code) -> String;

    fn device_count(&self) -> Outcome<i32>;
    fn device_info(&self, device: Ordinal) -> Outcome<DeviceInfo>;

    /// Makes a context and makes it current. With HIP, makes the device current.
    fn context_create(&self, device: Ordinal) -> Outcome<Context>;
    /// Ends a context and all that is left in it. With HIP, nothing.
    unsafe fn context_destroy(&self, context: Context) -> Outcome<()>;
    unsafe fn context_set_current(&self, context: Context) -> Outcome<()>;
    /// Free and total memory of the current context's device, in bytes.
    fn memory_info(&self) -> Outcome<(u64, u64)>;

    /// A stream that does not wait for the default stream.
    fn stream_create(&self) -> Outcome<Stream>;
    unsafe fn stream_destroy(&self, stream: Stream) -> Outcome<()>;
    /// Whether all work is done: `Kind::NotReady` if not, and a fault's code once there was one.
    unsafe fn stream_query(&self, stream: Stream) -> Outcome<()>;
    unsafe fn stream_synchronize(&self, stream: Stream) -> Outcome<()>;
    unsafe fn stream_wait(&self, stream: Stream, event: Event) -> Outcome<()>;

    fn event_create(&self, for_: EventUse) -> Outcome<Event>;
    unsafe fn event_destroy(&self, event: Event) -> Outcome<()>;
    unsafe fn event_record(&self, event: Event, stream: Stream) -> Outcome<()>;
    /// Whether the event has been reached: `Kind::NotReady` if not.
    unsafe fn event_query(&self, event: Event) -> Outcome<()>;
    /// Between two events that have been reached, with a resolution of about a microsecond.
    unsafe fn elapsed(&self, from: Event, to: Event) -> Outcome<Duration>;

    /// A pool on a device that keeps what is freed, up to `keep_bytes`, instead of giving it back.
    fn pool_create(&self, device: Ordinal, keep_bytes: u64) -> Outcome<Pool>;
    unsafe fn pool_destroy(&self, pool: Pool) -> Outcome<()>;
    /// Lets another device's kernels and copies reach what comes from the pool.
    unsafe fn pool_allow(&self, pool: Pool, device: Ordinal) -> Outcome<()>;
    unsafe fn pool_alloc(&self, pool: Pool, bytes: u64, stream: Stream) -> Outcome<DevicePointer>;
    unsafe fn pool_free(&self, pointer: DevicePointer, stream: Stream) -> Outcome<()>;
    /// Memory without a pool, for devices that have none. Waits for the device.
    fn memory_alloc(&self, bytes: u64) -> Outcome<DevicePointer>;
    unsafe fn memory_free(&self, pointer: DevicePointer) -> Outcome<()>;
    unsafe fn memory_zero(&self, at: DevicePointer, bytes: u64, stream: Stream) -> Outcome<()>;

    /// Memory of a device without an address, for which other processes may have handles too. It
    /// lives as long as any process has a handle or a mapping of it. `bytes` is a multiple of the
    /// driver's granularity. Of memory `for_cards` network cards can be told.
    fn handle_create(&self, device: Ordinal, bytes: u64, for_cards: bool) -> Outcome<MemoryHandle>;
    /// Gives up a handle. What is mapped stays.
    unsafe fn handle_release(&self, handle: MemoryHandle) -> Outcome<()>;
    /// A descriptor by which another process can import the memory.
    unsafe fn handle_export(&self, handle: MemoryHandle) -> Outcome<OwnedFd>;
    /// The memory behind a descriptor of another process's.
    fn handle_import(&self, from: BorrowedFd<'_>) -> Outcome<MemoryHandle>;
    /// Addresses that nothing else has.
    fn addresses_reserve(&self, bytes: u64) -> Outcome<DevicePointer>;
    /// Gives addresses back at which nothing is mapped.
    unsafe fn addresses_free(&self, at: DevicePointer, bytes: u64) -> Outcome<()>;
    /// Maps the first bytes of a memory at addresses that are reserved. Nobody may use it yet.
    unsafe fn handle_map(&self, at: DevicePointer, bytes: u64, of: MemoryHandle) -> Outcome<()>;
    /// Undoes [`Self::handle_map`].
    unsafe fn handle_unmap(&self, at: DevicePointer, bytes: u64) -> Outcome<()>;
    /// Lets a device read and write what is mapped.
    unsafe fn mapping_allow(&self, at: DevicePointer, bytes: u64, device: Ordinal) -> Outcome<()>;

    /// A descriptor of mapped memory for network cards, which keeps that memory. Both numbers are
    /// multiples of the host's page.
    unsafe fn range_export(&self, at: DevicePointer, bytes: u64) -> Outcome<OwnedFd>;
    /// Has the current context's work see what network cards have written. Waits for that.
    fn writes_flush(&self) -> Outcome<()>;

    /// Pins memory that is there already, for all contexts. What the process cannot write is
    /// `read_only`.
    unsafe fn host_register(&self, at: *mut u8, bytes: usize, read_only: bool) -> Outcome<()>;
    unsafe fn host_unregister(&self, at: *mut u8) -> Outcome<()>;

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: *const u8,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()>;
    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()>;
    /// Inside one device.
    unsafe fn copy(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()>;
    /// From one device's memory to another's. The driver goes through the host where it must.
    unsafe fn copy_peer(
        &self,
        to: (Context, DevicePointer),
        from: (Context, DevicePointer),
        bytes: u64,
        stream: Stream,
    ) -> Outcome<()>;
    fn can_access_peer(&self, device: Ordinal, peer: Ordinal) -> Outcome<bool>;
    /// Lets the current context reach another's memory. `Kind::PeerEnabled` if it can already.
    unsafe fn peer_enable(&self, peer: Context) -> Outcome<()>;

    /// Loads a binary (or, with CUDA, PTX text, which ends in a zero byte). The message is the
    /// driver's compiler's, where it has one.
    fn module_load(&self, image: &[u8]) -> Result<Module, (Code, String)>;
    unsafe fn module_unload(&self, module: Module) -> Outcome<()>;
    unsafe fn module_function(&self, module: Module, name: &CStr) -> Outcome<Function>;
    unsafe fn function_info(&self, function: Function) -> Outcome<FunctionInfo>;
    unsafe fn launch(&self, kernel: &Kernel<'_>, stream: Stream) -> Outcome<()>;
    /// Calls `function` on a thread of the driver's once the stream is there. Not called where the
    /// context is lost before.
    unsafe fn launch_host(
        &self,
        stream: Stream,
        function: HostFunction,
        argument: *mut c_void,
    ) -> Outcome<()>;

    fn graph_create(&self) -> Outcome<GraphTemplate>;
    unsafe fn graph_destroy(&self, graph: GraphTemplate) -> Outcome<()>;
    unsafe fn graph_add_kernel(
        &self,
        graph: GraphTemplate,
        after: &[Node],
        kernel: &Kernel<'_>,
    ) -> Outcome<Node>;
    /// A copy inside the current context, or between two that can reach each other.
    unsafe fn graph_add_copy(
        &self,
        graph: GraphTemplate,
        after: &[Node],
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Outcome<Node>;
    unsafe fn graph_instantiate(&self, graph: GraphTemplate) -> Outcome<GraphExec>;
    unsafe fn graph_exec_destroy(&self, exec: GraphExec) -> Outcome<()>;
    /// `node` is of the template from which `exec` was made, which still exists.
    unsafe fn graph_set_kernel(
        &self,
        exec: GraphExec,
        node: Node,
        kernel: &Kernel<'_>,
    ) -> Outcome<()>;
    unsafe fn graph_set_copy(
        &self,
        exec: GraphExec,
        node: Node,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Outcome<()>;
    unsafe fn graph_launch(&self, exec: GraphExec, stream: Stream) -> Outcome<()>;
}

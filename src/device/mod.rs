//! What the engine asks of an accelerator.
//!
//! Owns: the trait [`Device`] (one session's use of one accelerator: a queue of work, memory,
//! programs, graphs), the trait [`Platform`] (the accelerators of one kind on this machine), and
//! the opaque resources they hand out.
//!
//! Absent: commands, sessions and their names, validation. The engine has checked bounds, sizes and
//! numbers before it calls; a device's errors are only those that a caller cannot foresee.
//!
//! Every method enqueues and returns. A [`Fence`] names a place in the queue; work is done when
//! [`Device::poll`] reports a fence at or past it. Resources free themselves: dropping a
//! [`Region`], [`Program`] or [`Graph`] takes effect after the work that is already in the queue.
//!
//! Reading order: this file; memory: `budget`, `segment`, `shared` (what two processes see), `slot`
//! (what dies with a drop), `timeline` (what devices wait for), `export` (what network cards
//! reach); the queue: `packet`, `ring`, `backoff`; the server's side of a worker process: `link`,
//! `imports`, `watchdog`, `process`, and the devices made of it: `isolated` (kernels on memory that
//! both see), `remote` and `passage` (a device that only the worker reaches); `platform`; the
//! worker's side: `worker`, `sandbox`, and what it does: `replay` and `cpu` (loading and calling
//! kernels), `pace` (letting others have the core), `driven` (driving a device). `gpu` is GPUs, in
//! the process that drives them. `null` stands in for all of it in tests, `hostile` for a worker in
//! fuzzers.

mod backoff;
mod budget;
pub mod cpu;
pub mod driven;
pub mod export;
pub mod gpu;
#[cfg(fuzzing)]
pub mod hostile;
mod imports;
pub mod isolated;
mod link;
pub mod null;
mod pace;
mod packet;
mod passage;
pub mod platform;
mod process;
pub mod remote;
mod replay;
mod ring;
mod sandbox;
mod segment;
pub mod shared;
mod slot;
mod timeline;
mod watchdog;
pub mod worker;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use budget::{Quota, Whose};

use crate::compile;
use export::Export;
use slot::Slot;

/// A place in one device's queue. Fences of one device are ordered; of two devices they have
/// nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// What a caller of [`Device`] cannot foresee.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The worker or driver could not do what it was asked, and says why.
    #[error("{what}: {why}")]
    Failed { what: &'static str, why: String },
    /// A kernel did something that ended this session's use of the device.
    #[error("kernel fault: {what}; everything on this device is lost, start a new session")]
    Fault { what: String },
    /// A binary could not be loaded.
    #[error("cannot load program: {why}")]
    Load { why: String },
    /// The device is gone for a reason that is no kernel's fault.
    #[error("device lost: {why}; everything on this device is lost, start a new session")]
    Lost { why: String },
    /// No room for an allocation.
    #[error("out of memory: {asked} bytes asked, {free} free of {limit}")]
    OutOfMemory { asked: u64, free: u64, limit: u64 },
    /// No room for an allocation in what its client may have.
    #[error("out of memory: {asked} bytes asked, {used} used of the {limit} that {whose}")]
    OverQuota { whose: Whose, asked: u64, used: u64, limit: u64 },
    /// A kernel ran past the limit.
    #[error(
        "kernel ran past the limit of {limit:?}; everything on this device is lost, start a new \
         session"
    )]
    Timeout { limit: Duration },
}

impl DeviceError {
    /// Whether there is too little memory now, which may be otherwise later.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        matches!(self, DeviceError::OutOfMemory { .. } | DeviceError::OverQuota { .. })
    }
}

impl fmt::Display for Whose {
    /// As the end of a sentence, with what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Whose::All => "all clients have together",
            Whose::Bodies => {
                "bodies of one identity may hold at this moment while they arrive: send fewer at \
                 once, or start the server with more --staging-memory"
            }
            Whose::Identity => {
                "one identity may have, in all its sessions: free buffers, end sessions with \
                 SessionFree, or start the server with a higher --identity-memory"
            }
            Whose::Session => {
                "one session may have: free buffers, or start the server with a higher \
                 --session-memory"
            }
        })
    }
}

/// Memory of a device. Freed when dropped, after the work that is already queued.
#[derive(Debug)]
pub struct Region(Memory);

/// Where a region is.
#[derive(Debug)]
enum Memory {
    /// On a GPU.
    Gpu(Rc<gpu::Allocation>),
    /// Where only a worker reaches it.
    Remote(Slot<remote::Place>),
    /// Where the server sees it.
    Shared(shared::Range),
}

impl Region {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Memory::Gpu(allocation) => allocation.bytes(),
            Memory::Remote(slot) => slot.state.bytes,
            Memory::Shared(range) => range.bytes(),
        }
    }

    /// A part of the region's own memory, where the server has it: what is written there from
    /// elsewhere is in the region. `None` where the server does not have it, and for what lies
    /// outside of the region.
    #[must_use]
    pub fn shared_bytes(&self, offset: u64, bytes: u64) -> Option<SharedBytes> {
        let range = self.shared().ok()?;
        if offset.checked_add(bytes)? > range.bytes() {
            return None;
        }
        let all = SharedBytes::of(range);
        Some(SharedBytes { offset: all.offset + offset, bytes, ..all })
    }

    /// The memory of a region on a GPU.
    fn gpu(&self) -> Result<&Rc<gpu::Allocation>, DeviceError> {
        match &self.0 {
            Memory::Gpu(allocation) => Ok(allocation),
            Memory::Remote(_) | Memory::Shared(_) => Err(of_another_kind("buffer")),
        }
    }

    /// The memory of a region that the server sees.
    fn shared(&self) -> Result<&shared::Range, DeviceError> {
        match &self.0 {
            Memory::Gpu(_) | Memory::Remote(_) => Err(of_another_kind("buffer")),
            Memory::Shared(range) => Ok(range),
        }
    }
}

fn cannot_share() -> DeviceError {
    let why = "this kind of device cannot share any".to_owned();
    DeviceError::Failed { what: "shared memory", why }
}

fn of_another_kind(what: &'static str) -> DeviceError {
    DeviceError::Failed { what, why: "it belongs to another kind of device".to_owned() }
}

/// A part of a region.
#[derive(Clone, Copy, Debug)]
pub struct Span<'r> {
    region: &'r Region,
    offset: u64,
    bytes: u64,
}

impl<'r> Span<'r> {
    /// The part of `region` at `offset`, if it lies inside.
    #[must_use]
    pub fn new(region: &'r Region, offset: u64, bytes: u64) -> Option<Self> {
        (offset.checked_add(bytes)? <= region.bytes()).then_some(Span { region, offset, bytes })
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Where the bytes of a copy to the device come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Few bytes, taken before the call returns.
    Bytes(&'a [u8]),
    /// Bytes that arrived in staging memory; the caller keeps them until the fence.
    Staged(&'a shared::Range),
}

/// A loaded program. Unloaded when dropped, after the work that is already queued.
#[derive(Debug)]
pub struct Program(Code);

/// Where a program is.
#[derive(Debug)]
enum Code {
    /// On a GPU.
    Gpu(gpu::Entry),
    /// In a worker's table.
    Slot(Slot<link::ProgramState>),
}

impl Program {
    fn slot(&self) -> Result<&Slot<link::ProgramState>, DeviceError> {
        match &self.0 {
            Code::Slot(slot) => Ok(slot),
            Code::Gpu(_) => Err(of_another_kind("program")),
        }
    }

    fn gpu(&self) -> Result<&gpu::Entry, DeviceError> {
        match &self.0 {
            Code::Gpu(entry) => Ok(entry),
            Code::Slot(_) => Err(of_another_kind("program")),
        }
    }
}

/// A recorded graph. Forgotten when dropped, after the work that is already queued.
#[derive(Debug)]
pub struct Graph(Recording);

/// Where a graph is.
#[derive(Debug)]
enum Recording {
    /// On a GPU.
    Gpu(gpu::Entry),
    /// In a worker's table.
    Slot(Slot<link::GraphUnits>),
}

impl Graph {
    fn slot(&self) -> Result<&Slot<link::GraphUnits>, DeviceError> {
        match &self.0 {
            Recording::Slot(slot) => Ok(slot),
            Recording::Gpu(_) => Err(of_another_kind("graph")),
        }
    }

    fn gpu(&self) -> Result<&gpu::Entry, DeviceError> {
        match &self.0 {
            Recording::Gpu(entry) => Ok(entry),
            Recording::Slot(_) => Err(of_another_kind("graph")),
        }
    }
}

/// Number of work groups, or of work items in a group, by dimension.
pub type LaunchSize = [i32; 3];

/// One run of a program. Arguments are the buffers' addresses, then the values.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub program: &'a Program,
    pub buffers: &'a [Span<'a>],
    pub values: &'a [i32],
    pub global: Option<LaunchSize>,
    pub local: Option<LaunchSize>,
    /// Whether [`Device::elapsed`] will be asked.
    pub timed: bool,
}

/// A buffer of a graph's step.
#[derive(Clone, Copy, Debug)]
pub enum GraphBuffer<'a> {
    Fixed(Span<'a>),
    /// Position in [`GraphRun::inputs`].
    Input(usize),
}

/// An integer of a graph's step: a kernel's value or one of its sizes.
#[derive(Clone, Copy, Debug)]
pub enum GraphInt {
    Fixed(i32),
    /// Position in [`GraphRun::ints`].
    Variable(usize),
}

/// One step of a graph. Steps run in order, as far as anybody can tell.
#[derive(Clone, Copy, Debug)]
pub enum GraphStep<'a> {
    /// `bytes` is the length of both sides, which inputs have only once there is a run. `from` may
    /// belong to another device of the same platform.
    Copy { to: GraphBuffer<'a>, from: GraphBuffer<'a>, bytes: u64 },
    Launch {
        program: &'a Program,
        buffers: &'a [GraphBuffer<'a>],
        /// Positions of the buffers that the program writes, where the client says so. A device may
        /// run steps side by side that have nothing to do with each other by this.
        outputs: &'a [usize],
        values: &'a [GraphInt],
        global: Option<[GraphInt; 3]>,
        local: Option<[GraphInt; 3]>,
    },
}

/// What one run of a graph is given.
#[derive(Clone, Copy, Debug)]
pub struct GraphRun<'a> {
    pub inputs: &'a [Span<'a>],
    pub ints: &'a [i32],
    /// Whether [`Device::elapsed`] will be asked.
    pub timed: bool,
}

/// A value that a device's timeline will reach. The timeline counts the signals of its queue.
#[derive(Clone, Debug)]
pub struct Point(Moment);

/// How a point is told.
#[derive(Clone, Debug)]
enum Moment {
    /// By the driver, to devices of this process.
    Recorded(Rc<gpu::Signal>),
    /// By a value in shared memory, to all.
    Shared { timeline: Rc<timeline::Timeline>, value: u64 },
}

impl Point {
    fn shared(timeline: &Rc<timeline::Timeline>, value: u64) -> Point {
        Point(Moment::Shared { timeline: Rc::clone(timeline), value })
    }

    /// The timeline and its value.
    fn value(&self) -> Result<(&Rc<timeline::Timeline>, u64), DeviceError> {
        match &self.0 {
            Moment::Shared { timeline, value } => Ok((timeline, *value)),
            Moment::Recorded(_) => Err(of_another_kind("signal")),
        }
    }
}

/// How far a device has come.
#[derive(Clone, Debug)]
pub struct Status {
    /// All work up to here is done.
    pub completed: Fence,
    /// Set once the device is lost. Nothing more will complete, and waiting for it ends here.
    pub lost: Option<DeviceError>,
}

/// Bytes of a region as the server sees them, kept alive by this value.
///
/// They are stable only once the device has passed the work that writes them. A kernel that writes
/// later changes what is read here, never where it is.
#[derive(Debug)]
pub struct HostBytes {
    memory: Rc<dyn Visible>,
    offset: u64,
    bytes: u64,
}

impl HostBytes {
    /// The bytes. What [`shared::Range::slice`] says about them holds here too.
    #[must_use]
    pub fn slice(&self) -> &[u8] {
        self.memory.slice(self.offset, self.bytes)
    }
}

/// Bytes of a region as any thread may hold them. They stay where they are as long as this value
/// lives; that they still belong to the region is up to the owner, who lets go of this first.
#[derive(Clone)]
pub struct SharedBytes {
    file: Arc<shared::SharedFile>,
    offset: u64,
    bytes: u64,
}

impl SharedBytes {
    /// All bytes of a range.
    #[must_use]
    pub fn of(range: &shared::Range) -> SharedBytes {
        let (block, bytes) = (range.block(), range.bytes());
        let file = Arc::clone(block.segment().file());
        SharedBytes { file, offset: block.offset(), bytes }
    }

    /// Where they begin: mapped for reading and writing.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        let address = self.file.mapping().at(self.offset, self.bytes);
        address.expect("a block is in its segment")
    }

    /// How many they are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} at {})", self.bytes, self.offset)
    }
}

/// Memory that the server sees.
trait Visible: fmt::Debug {
    /// A part of it, which the caller has checked to lie inside.
    fn slice(&self, offset: u64, bytes: u64) -> &[u8];
}

impl Visible for shared::Block {
    fn slice(&self, offset: u64, bytes: u64) -> &[u8] {
        shared::Block::slice(self, offset, bytes)
    }
}

/// One session's use of one accelerator.
pub trait Device {
    /// Where the queue has too little room for the largest call, the fence to wait for before the
    /// next one. `None` promises room for one call of any of the methods below.
    fn backlog(&mut self) -> Option<Fence>;

    /// Memory, at least 128-byte aligned. Fresh memory reads as zero or as this session's own
    /// earlier bytes, never as another session's.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`] past the platform's limit, [`DeviceError::OverQuota`] past that
    /// of the session.
    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError>;

    /// Copies into memory of this device.
    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError>;

    /// Makes memory in which bytes arrived this device's own, to take the place of `region`, which
    /// has the same length and which nobody else refers to. Work that is queued already goes on
    /// with `region`. The caller uses the staged memory no more, and names only memory of the
    /// client that owns this device. `None` where the bytes have to be copied, which is always
    /// possible.
    fn adopt(&mut self, region: &Region, staged: &shared::Range) -> Option<Region>;

    /// Copies between two regions, of which `from` may belong to another device of the same
    /// platform. The two have equal lengths and do not overlap.
    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError>;

    /// Memory that other processes may share, and the descriptor by which they get it. It reads as
    /// zero once the work so far is done, and is handed on then at the earliest. May take some
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Failed`] where that cannot be had: nothing else is lost by it.
    fn share(&mut self, _bytes: u64) -> Result<(Region, OwnedFd), DeviceError> {
        Err(cannot_share())
    }

    /// Memory that another process shares. What lies behind the descriptor is not trusted to be
    /// anything. May take some milliseconds.
    ///
    /// # Errors
    ///
    /// As for [`Self::share`].
    fn open_shared(&mut self, _from: BorrowedFd<'_>, _bytes: u64) -> Result<Region, DeviceError> {
        Err(cannot_share())
    }

    /// Begins to make a part of this device's memory known to network cards. `None` where it never
    /// can be.
    ///
    /// # Errors
    ///
    /// As for [`Self::share`].
    fn export(&mut self, _of: Span<'_>) -> Result<Option<Export>, DeviceError> {
        Ok(None)
    }

    /// Has all that is queued later see what network cards have written so far.
    fn flush(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// How long a copy from that memory may be in one call. A longer one takes several, before each
    /// of which the caller asks [`Self::backlog`].
    fn copy_bytes_max(&self, _from: &Region) -> u64 {
        u64::MAX
    }

    /// The bytes of a region where the server sees them, once the fence is reached: all of them
    /// where it sees the region itself, else the first ones, at least one, in memory that is made
    /// for the passage. The caller reads on from there, and lets go of a piece before it has more
    /// than two.
    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError>;

    /// Loads the program called `name` from what [`Platform::compile`] made. Whether it worked is
    /// known after [`Self::last`]: ask [`Self::loaded`].
    fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError>;

    /// The outcome of [`Self::load`].
    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError>;

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError>;

    /// Whether a graph of this device may copy from that memory. Where it may not, a copy is a call
    /// of [`Self::copy`], between two graphs.
    fn reaches(&self, _from: &Region) -> bool {
        true
    }

    /// Records a graph of this device. What other devices have to do with it is up to the caller,
    /// who signals and waits between runs. Runs nothing.
    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError>;

    /// Runs a graph, as one submission.
    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError>;

    /// Queues an advance of the timeline and names the value it will have.
    fn signal(&mut self) -> Result<Point, DeviceError>;

    /// Queues a wait: what comes later starts after another device's timeline has reached `point`.
    /// If that device is lost first, the wait ends too.
    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError>;

    /// The fence of everything queued so far.
    fn last(&self) -> Fence;

    /// Looks how far the device has come; kills what has run past the time limit. Never blocks.
    fn poll(&mut self, now: Instant) -> Status;

    /// Waits for `fence` where that is likely to be a matter of microseconds. Holds the core
    /// meanwhile, for [`crate::config::DeviceLimits::LINGER`] at most.
    fn linger(&mut self, fence: Fence);

    /// Whether to look again at once for `fence`, if it has not been reached, instead of asking for
    /// the doorbell: for [`crate::config::DeviceLimits::WATCH`] at most. The caller lets others
    /// have their turn between two looks.
    fn watch(&mut self, _fence: Fence, _now: Instant) -> bool {
        false
    }

    /// Asks for the doorbell to ring when `fence` is reached. The caller polls once more after this
    /// call, since the fence may have been reached just before it. Of several fences asked for, the
    /// earliest that has not been reached counts, and it rings once; the others are asked for again
    /// then.
    fn arm(&mut self, fence: Fence);

    /// How long the timed work at `fence` ran, or why it did not run, where the device finds out
    /// that late. Only after the fence, once, and before
    /// [`crate::config::DeviceLimits::TIMERS`] further timed works are queued; zero otherwise.
    fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError>;

    /// A socket that becomes readable when an armed fence is reached or the device wants to be
    /// polled, and reads as ended when the device is lost, which the next poll reports. The owner
    /// reads it empty, then polls. `None` where fences complete at once.
    fn doorbell(&self) -> Option<BorrowedFd<'_>>;
}

/// Which of the client's renderers makes source for a device: a class of tinygrad's and the
/// arguments of its constructor, as a Python literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renderer {
    pub module: &'static str,
    pub class: &'static str,
    pub arguments: String,
}

/// The accelerators of one kind on this machine, as one shard sees them.
pub trait Platform {
    /// The name that clients see: `CPU`, `CUDA`, `HIP`.
    fn name(&self) -> &'static str;

    /// How many devices there are. A session's index is below it.
    fn device_count(&self) -> u64;

    fn renderer(&self, index: u64) -> Renderer;

    /// The memory node next to a device, where that is known and the machine has several.
    fn numa_node(&self, _index: u64) -> Option<usize> {
        None
    }

    /// A device for one session, which may have as much memory as `quota` says. The queue takes
    /// work at once; what it takes to get ready happens elsewhere.
    fn open_within(&mut self, index: u64, quota: &Quota) -> Result<Box<dyn Device>, DeviceError>;

    /// A device for a session that may have all memory.
    fn open(&mut self, index: u64) -> Result<Box<dyn Device>, DeviceError> {
        self.open_within(index, &Quota::NONE)
    }

    /// Starts to compile source text for a device, in its turn among those who ask. The ticket
    /// completes on another thread.
    fn compile(&mut self, asker: compile::Asker, index: u64, source: Arc<[u8]>) -> compile::Ticket;
}

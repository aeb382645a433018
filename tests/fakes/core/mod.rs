//! The machine behind the fake driver libraries: devices that are host memory, streams that run
//! whenever they like, and a strict eye on how it is all used.
//!
//! Each face (`cuda.rs`, `hip.rs`, `nvrtc.rs`, `comgr.rs`) declares the C names of one library and
//! calls in here. Reading order: [`files`] and [`config`] (what comes from the environment),
//! [`table`] (handles), [`memory`], [`share`] (what processes share), [`clock`] (what races),
//! [`stream`] (enqueueing and the executor), [`kernel`] and [`image`] (what kernels do and how they
//! are found), [`graph`], [`objects`] (contexts, streams, events, ledger), [`calls`] (what faces
//! have in common), [`source`] (the compilers).
//!
//! # What is checked
//!
//! A broken rule is a line in `FAKE_GPU_REPORT`, of one of the classes `protocol` (handles,
//! contexts, addresses, host functions), `race` (accesses that nothing orders), `leak` (what is
//! alive when its context is destroyed or the process exits), `limits` (launches that the device
//! cannot do) and `arguments` (their length). A test asserts that the file is empty.
//!
//! # Kernels
//!
//! What a kernel does follows from the beginning of its name; pointers are called a, b, c and ints
//! m, n in the order of the parameters. Each thread does one element of four bytes, as many as the
//! grid times the block.
//!
//! | name | does |
//! |---|---|
//! | `fill_` | a\[i\] = m, or 0 |
//! | `iota_` | a\[i\] = i |
//! | `copy_` | a\[i\] = b\[i\] |
//! | `add_` | a\[i\] = b\[i\] + c\[i\] of 32-bit integers, wrapping |
//! | `add_f32_` | the same of floats |
//! | `gather_` | a\[i\] = the sum of all other pointers' element i and of all ints |
//! | `increment_` | a\[i\] += m, or 1 |
//! | `ints_` | a\[i\] = int number i of the parameters, round and round |
//! | `spin_us_` | takes m microseconds, then fills a, if there is one, with m |
//! | `hang` | never ends; the destruction of its context ends it |
//! | `illegal_address`, `misaligned`, `assert_fails` | that fault |
//! | `illegal_instruction`, `ecc_error`, `launch_timeout` | that fault |
//! | any other | what its source says, if [`native`] is on; else a look at each pointer's byte |

pub(crate) mod calls;
mod clock;
mod config;
pub(crate) mod errors;
pub(crate) mod face;
pub(crate) mod files;
mod graph;
pub(crate) mod image;
mod kernel;
mod map;
mod memory;
mod module;
mod native;
mod objects;
pub(crate) mod share;
pub(crate) mod source;
mod stream;
pub(crate) mod table;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clock::Clock;
use config::{Config, FaultReach};
use files::{CALL, report};
use memory::Memory;
use objects::{Context, Event, Function, Module};
use stream::Stream;
use table::{Kind, Table};

/// A driver's number for an error. CUDA and HIP agree on nearly all; the faces mend the rest.
pub(crate) type Code = i32;
pub(crate) type Outcome<T> = Result<T, Code>;

/// The numbers.
pub(crate) mod code {
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const NOT_INITIALIZED: i32 = 3;
    pub(crate) const STUB_LIBRARY: i32 = 34;
    pub(crate) const NO_DEVICE: i32 = 100;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_IMAGE: i32 = 200;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const NO_BINARY_FOR_GPU: i32 = 209;
    pub(crate) const ECC_UNCORRECTABLE: i32 = 214;
    pub(crate) const PEER_ACCESS_UNSUPPORTED: i32 = 217;
    pub(crate) const INVALID_PTX: i32 = 218;
    pub(crate) const UNSUPPORTED_PTX_VERSION: i32 = 222;
    pub(crate) const INVALID_HANDLE: i32 = 400;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const NOT_READY: i32 = 600;
    pub(crate) const ILLEGAL_ADDRESS: i32 = 700;
    pub(crate) const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
    pub(crate) const LAUNCH_TIMEOUT: i32 = 702;
    pub(crate) const PEER_ENABLED: i32 = 704;
    pub(crate) const ASSERT: i32 = 710;
    pub(crate) const HOST_REGISTERED: i32 = 712;
    pub(crate) const HOST_NOT_REGISTERED: i32 = 713;
    pub(crate) const ILLEGAL_INSTRUCTION: i32 = 715;
    pub(crate) const MISALIGNED_ADDRESS: i32 = 716;
    pub(crate) const LAUNCH_FAILED: i32 = 719;
    pub(crate) const NOT_PERMITTED: i32 = 800;
    pub(crate) const NOT_SUPPORTED: i32 = 801;
}

/// What sets one library apart from another.
pub(crate) struct Face {
    pub(crate) library: &'static str,
    /// Which variables of the environment are for it alone: `FAKE_CUDA_...`.
    pub(crate) variables: &'static str,
    /// A compiler if not.
    pub(crate) is_driver: bool,
    pub(crate) arch: &'static str,
    /// What the library says its version is, unless `FAKE_GPU_VERSION` says otherwise.
    pub(crate) version: u64,
    /// Where the first device's addresses begin.
    pub(crate) addresses: u64,
    /// Contexts are made and destroyed, and the library has to be initialised.
    pub(crate) has_contexts: bool,
    /// What ends the list of extra launch options.
    pub(crate) extra_end: usize,
    /// Block times grid must stay below 2^32 in each dimension.
    pub(crate) total_threads_32_bits: bool,
}

impl Face {
    /// An error as this library numbers it.
    fn code(&self, code: Code) -> Code {
        // HIP has no codes of their own for some.
        let is_hip = self.is_driver && !self.has_contexts;
        let lacks = [code::ILLEGAL_INSTRUCTION, code::MISALIGNED_ADDRESS].contains(&code);
        if is_hip && lacks { code::LAUNCH_FAILED } else { code }
    }
}

thread_local! {
    /// The contexts that were made current on this thread, the current one last.
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// This thread is inside a host function.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Everything, under one lock.
pub(crate) struct State {
    config: Config,
    is_initialised: bool,
    random: u64,
    /// What the host knows to have happened.
    host: Clock,
    memory: Memory,
    contexts: Table<Context>,
    streams: Table<Stream>,
    events: Table<Event>,
    pools: Table<memory::Pool>,
    /// Memory without an address.
    handles: Table<share::Physical>,
    /// Addresses for it, with their number.
    reserved: BTreeMap<u64, u64>,
    modules: Table<Module>,
    functions: Table<Function>,
    graphs: Table<graph::Graph>,
    nodes: Table<graph::NodePlace>,
    execs: Table<graph::Exec>,
    /// Contexts that nobody made, by device, for a library without contexts.
    implicit: Vec<u64>,
    /// What a compiler's face keeps alive, by kind.
    pub(crate) compiler: BTreeMap<&'static str, usize>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::new()));
/// Anything has changed: work was enqueued, has run, or will not run any more.
static CHANGED: Condvar = Condvar::new();
/// The process that initialised the library: another one has its memory by a fork.
static OWNER: AtomicU32 = AtomicU32::new(0);

impl State {
    fn new() -> State {
        let config = Config::from_environment();
        let mut state = State {
            is_initialised: false,
            random: config.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            host: Clock::default(),
            memory: Memory::new(config.devices, config.memory_bytes, config.native.is_some()),
            contexts: Table::new(Kind::Context),
            streams: Table::new(Kind::Stream),
            events: Table::new(Kind::Event),
            pools: Table::new(Kind::Pool),
            handles: Table::new(Kind::Memory),
            reserved: BTreeMap::new(),
            modules: Table::new(Kind::Module),
            functions: Table::new(Kind::Function),
            graphs: Table::new(Kind::Graph),
            nodes: Table::new(Kind::Node),
            execs: Table::new(Kind::GraphExec),
            implicit: Vec::new(),
            compiler: BTreeMap::new(),
            config,
        };
        if !crate::FACE.has_contexts {
            state.implicit = (0..state.config.devices)
                .map(|device| state.contexts.add(Context::new(device)))
                .collect();
        }
        state
    }

    /// A number below `limit`: xorshift, the same run after run for one seed.
    fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit.max(1)
    }

    pub(crate) fn config_version(&self) -> i32 {
        self.config.version
    }
}

/// The machine, locked for one call.
pub(crate) struct Gpu {
    state: Option<MutexGuard<'static, State>>,
}

impl Deref for Gpu {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("locked but inside a wait")
    }
}

impl DerefMut for Gpu {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("locked but inside a wait")
    }
}

impl Gpu {
    pub(crate) fn lock() -> Gpu {
        Gpu { state: Some(STATE.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Waits until something has changed, or for `limit`.
    fn wait(&mut self, limit: Option<Duration>) {
        let state = self.state.take().expect("nobody waits twice");
        let state = match limit {
            None => CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                CHANGED.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        self.state = Some(state);
    }

    /// Waits until the condition gives a value.
    fn wait_until<T>(&mut self, mut condition: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            if let Some(value) = condition(self) {
                return value;
            }
            self.wait(None);
        }
    }

    /// Runs something without the lock.
    fn unlocked(&mut self, run: impl FnOnce()) {
        self.state = None;
        run();
        *self = Gpu::lock();
    }
}

/// What a call is, as to what must come before it and when an injected error strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Allowed before the library is initialised.
    Early,
    Plain,
    /// Takes effect even if it returns an injected error, so that nothing leaks by the injection.
    Release,
}

/// Makes a call of a face: traces it, injects errors, checks that it may be made at all.
pub(crate) fn call(
    name: &'static str,
    role: Role,
    detail: impl FnOnce() -> String,
    body: impl FnOnce(&mut Gpu) -> Outcome<()>,
) -> Code {
    let before = CALL.replace(name);
    let outcome = enter(name, role, body);
    let code = crate::FACE.code(outcome.err().unwrap_or(0));
    files::trace(|| format!("{name}{} -> {code}", detail()));
    CALL.set(before);
    code
}

fn enter(name: &str, role: Role, body: impl FnOnce(&mut Gpu) -> Outcome<()>) -> Outcome<()> {
    if IN_HOST_FUNCTION.get() {
        report("protocol", "called from within a host function");
        return Err(code::NOT_PERMITTED);
    }
    let owner = OWNER.load(Ordering::Relaxed);
    if owner != 0 && owner != std::process::id() {
        report("protocol", &format!("process {owner} initialised the library and has forked"));
        return Err(code::NOT_INITIALIZED);
    }
    let mut gpu = Gpu::lock();
    if role != Role::Early && !gpu.is_initialised {
        if crate::FACE.has_contexts {
            report("protocol", "called before the library was initialised");
            return Err(code::NOT_INITIALIZED);
        }
        gpu.initialise()?;
    }
    let injected = gpu.config.injected(name, false);
    if role == Role::Release || injected.is_none() {
        body(&mut gpu)?;
    }
    let Some(injected) = injected else { return Ok(()) };
    if injected.sticky
        && let Ok(context) = gpu.current()
    {
        gpu.lose(context, injected.code());
    }
    Err(injected.code())
}

impl State {
    /// What `cuInit` and `hipInit` do.
    pub(crate) fn initialise(&mut self) -> Outcome<()> {
        if self.config.stub {
            return Err(code::STUB_LIBRARY);
        }
        if self.config.devices == 0 {
            let is_cuda = crate::FACE.has_contexts;
            return Err(if is_cuda { code::NO_DEVICE } else { code::INVALID_DEVICE });
        }
        if !self.is_initialised {
            self.is_initialised = true;
            // Runs the streams' work until the process ends.
            let executor = thread::Builder::new().name("fake-gpu".into());
            executor.spawn(stream::execute).expect("a process can have one thread more");
        }
        OWNER.store(std::process::id(), Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_no_stub(&self) -> Outcome<()> {
        if self.config.stub { Err(code::STUB_LIBRARY) } else { Ok(()) }
    }

    /// A fault has happened in `context`: it answers nothing else from now on, and its work is
    /// dropped.
    fn lose(&mut self, context: u64, fault: Code) {
        files::trace(|| format!("# fault {fault} in context {context:#x}"));
        match self.config.fault {
            FaultReach::Context => self.lose_one(context, fault),
            FaultReach::Process => {
                let all: Vec<u64> = self.contexts.iter().map(|(handle, _)| handle).collect();
                for context in all {
                    self.lose_one(context, fault);
                }
            }
            FaultReach::Abort => {
                eprintln!("fake driver: fault {fault}, the process is aborted");
                std::process::abort();
            }
        }
        CHANGED.notify_all();
    }

    fn lose_one(&mut self, context: u64, fault: Code) {
        if let Some(context) = self.contexts.find_mut(context) {
            context.error.get_or_insert(fault);
        }
        self.drop_work(context, Instant::now());
    }
}

/// A setting from the environment or from the library itself.
pub(crate) fn setting(name: &str) -> Option<String> {
    config::text(name)
}

/// A size of the host's, which has 64 bits.
pub(crate) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}

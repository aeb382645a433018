//! Source text to binaries: in a sandboxed child, cached by hash, off the calling thread.
//!
//! Owns: [`Service`], which any number of shards share, and [`Ticket`], the promise of one object.
//! A source is refused before a compiler sees it if it asks for files or assembly; what passes is
//! compiled in a process without rights, by clang or gcc for the CPU, by NVRTC or comgr for GPUs;
//! the object is kept in memory and on disk. PTX needs no compiler here and is passed on.
//!
//! Absent: devices and commands. What an object means is the business of the device that asked.
//!
//! Reading order: this file, `pool` (jobs and threads), `turns` (whose job is next), `source` and
//! `ptx` (what is refused), `cc` (the C compilers), `library` (those for GPUs) and `worker` (the
//! process they run in) with `nvrtc`, `comgr` and `dynamic`; `messages` (what a client may read),
//! `sandbox` and `spawn` (processes without rights), `cache`.

mod cache;
mod cc;
mod comgr;
mod dynamic;
mod library;
mod messages;
mod nvrtc;
mod pool;
mod ptx;
mod sandbox;
mod source;
mod spawn;
mod turns;
pub mod worker;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::config::CompileConfig;
use crate::cores::crowd::Crowds;
use cache::{Disk, Key};
pub use cc::{Family, NoToolchain, Toolchain};
pub use library::{Kind, Library, NoLibrary, Report};
use pool::{Job, Pool};
pub use sandbox::Status as SandboxStatus;
use source::Dialect;
pub use turns::Asker;

/// Why there is no object. None of these tells anything about the server's files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Too many sources wait already.
    #[error("too many kernels wait to be compiled (limit {queue_max}): try again")]
    Busy { queue_max: usize },
    /// The service ended before the source's turn came.
    #[error("the server is shutting down")]
    Closed,
    #[error("the compiler crashed (signal {signal})")]
    Crashed { signal: i32 },
    #[error("no C compiler works on the server: install clang 17 or later, or gcc 12 or later")]
    NoCompiler,
    /// The library that compiles for this kind of GPU is missing.
    #[error("the server has no {library}: {remedy}")]
    NoLibrary { library: &'static str, remedy: &'static str },
    #[error("the compiled kernel exceeds {bytes_max} bytes")]
    ObjectTooLong { bytes_max: u64 },
    /// The source holds something that no kernel needs.
    #[error("line {line}, column {column}: {what} is not allowed in a kernel")]
    Refused { line: usize, column: usize, what: String },
    /// The compiler's own words, cleaned and cut.
    #[error("{message}")]
    Rejected { message: String },
    /// What took the library's place is none, or is being installed.
    #[error("the server's {library} was replaced by one that does not load: {remedy}")]
    Replaced { library: &'static str, remedy: &'static str },
    /// The sandboxed process could not be started; the server's log says why.
    #[error("the server could not start its compiler")]
    Sandbox,
    #[error("the source has {bytes} bytes, the limit is {bytes_max}")]
    SourceTooLong { bytes: usize, bytes_max: usize },
    #[error("compiling took longer than {limit:?}")]
    Timeout { limit: Duration },
    /// The source needs a type that this compiler lacks.
    #[error("the server's compiler ({compiler}) has no {what} arithmetic: install {remedy} there")]
    Unsupported { what: &'static str, compiler: String, remedy: &'static str },
}

/// What a source is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// C for this machine's CPU, to an object that can be linked.
    Cpu,
    /// CUDA C++ or PTX for an architecture such as `sm_90`: to machine code, or to PTX for the
    /// driver to compile, which ends in a zero byte.
    Cuda { arch: Arc<str> },
    /// HIP C++ for an architecture such as `gfx90a:sramecc+:xnack-`, to machine code.
    Hip { arch: Arc<str> },
}

impl Target {
    /// Names a source for this target while the server runs.
    fn key(&self, source: &[u8]) -> Key {
        let (kind, arch) = match self {
            Target::Cpu => return *blake3::hash(source).as_bytes(),
            Target::Cuda { arch } => ("cuda ", arch),
            Target::Hip { arch } => ("hip ", arch),
        };
        let target = blake3::hash([kind, arch].concat().as_bytes());
        *blake3::keyed_hash(target.as_bytes(), source).as_bytes()
    }
}

/// What a compile comes to.
pub type CompileResult = Result<Arc<[u8]>, CompileError>;

/// Compiles. Cheap to clone; all clones share one pool, one compiler and one cache.
///
/// Threads start when there is work. Once the last clone is gone, sources that still wait complete
/// with [`CompileError::Closed`].
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
}

/// What the threads of the pool share.
#[derive(Debug)]
struct Backend {
    config: CompileConfig,
    toolchain: Place<Toolchain, NoToolchain>,
    comgr: Place<Library, NoLibrary>,
    nvrtc: Place<Library, NoLibrary>,
    disk: OnceLock<Option<Disk>>,
}

#[derive(Debug)]
struct Found<C> {
    compiler: C,
    fingerprint: [u8; 32],
}

/// A compiler, which may be replaced by another while the server runs.
#[derive(Debug)]
struct Place<C, E> {
    /// Found by the first thread that needs it.
    first: OnceLock<Result<Arc<Found<C>>, E>>,
    /// The last that took its place.
    later: Mutex<Option<Arc<Found<C>>>>,
}

impl<C, E> Default for Place<C, E> {
    fn default() -> Self {
        Place { first: OnceLock::new(), later: Mutex::default() }
    }
}

impl<C, E> Place<C, E> {
    /// The compiler as it is now. Which files it may read and start was decided when it was found,
    /// file by file; so one that is not what it was is found anew.
    fn now(
        &self,
        first: &Arc<Found<C>>,
        is_as_found: impl FnOnce(&Found<C>) -> bool,
        find: impl FnOnce() -> Result<Arc<Found<C>>, E>,
    ) -> Result<Arc<Found<C>>, E> {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        let known = later.as_ref().unwrap_or(first);
        if is_as_found(known) {
            return Ok(Arc::clone(known));
        }
        tracing::info!("a compiler was replaced: looked for again");
        let found = find()?;
        *later = Some(Arc::clone(&found));
        Ok(found)
    }
}

impl From<Toolchain> for Found<Toolchain> {
    fn from(compiler: Toolchain) -> Self {
        Found { fingerprint: compiler.fingerprint(), compiler }
    }
}

impl From<Library> for Found<Library> {
    fn from(compiler: Library) -> Self {
        Found { fingerprint: compiler.fingerprint(), compiler }
    }
}

impl Service {
    /// A service that has not looked for its compiler yet.
    #[must_use]
    pub fn new(config: CompileConfig) -> Service {
        Service::beside(Crowds::new(&[]), config)
    }

    /// A service that leaves cores to those who are served there.
    #[must_use]
    pub fn beside(crowds: Crowds, config: CompileConfig) -> Service {
        let backend = Backend {
            config,
            toolchain: Place::default(),
            comgr: Place::default(),
            nvrtc: Place::default(),
            disk: OnceLock::new(),
        };
        Service(Arc::new(Inner { pool: Arc::new(Pool::new(backend, crowds)) }))
    }

    /// Starts to compile a source, or finds that it was compiled before. Does not block, and takes
    /// the time to hash the source. The same source asked for twice is compiled once.
    pub fn compile(&self, target: &Target, source: Arc<[u8]>) -> Ticket {
        self.compile_for(Asker::default(), target, source)
    }

    /// As [`Self::compile`], in its turn among those who ask.
    pub fn compile_for(&self, asker: Asker, target: &Target, source: Arc<[u8]>) -> Ticket {
        Ticket(Pool::submit(&self.0.pool, asker, target, source))
    }

    /// The C compiler. Blocks for some tenths of a second when asked first, so that a server may do
    /// this before it takes clients.
    ///
    /// # Errors
    ///
    /// What was tried, if nothing works.
    pub fn toolchain(&self) -> Result<&Toolchain, &NoToolchain> {
        self.0.pool.backend.toolchain().map(|found| &found.compiler)
    }

    /// A GPU compiler. Blocks for some hundredths of a second when asked first.
    ///
    /// # Errors
    ///
    /// What was tried, if none can be loaded.
    pub fn library(&self, kind: Kind) -> Result<&Library, &NoLibrary> {
        self.0.pool.backend.library(kind).map(|found| &found.compiler)
    }

    /// Which walls this kernel gives to the compiler's sandbox.
    #[must_use]
    pub fn sandbox_status(&self) -> SandboxStatus {
        SandboxStatus::of_this_kernel()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pool.close();
    }
}

impl Backend {
    fn find_toolchain(&self) -> Result<Arc<Found<Toolchain>>, NoToolchain> {
        let found = Toolchain::find(&self.config);
        match &found {
            Ok(t) => tracing::info!(compiler = %t.path.display(), version = t.version, "found"),
            Err(error) => tracing::warn!(%error),
        }
        found.map(|toolchain| Arc::new(toolchain.into()))
    }

    fn toolchain(&self) -> Result<&Arc<Found<Toolchain>>, &NoToolchain> {
        self.toolchain.first.get_or_init(|| self.find_toolchain()).as_ref()
    }

    fn toolchain_now(&self) -> Result<Arc<Found<Toolchain>>, CompileError> {
        let first = self.toolchain().map_err(|_| CompileError::NoCompiler)?;
        let is_as_found = |known: &Found<Toolchain>| known.compiler.is_as_found();
        let now = self.toolchain.now(first, is_as_found, || self.find_toolchain());
        now.map_err(|_| CompileError::NoCompiler)
    }

    fn place(&self, kind: Kind) -> &Place<Library, NoLibrary> {
        match kind {
            Kind::Comgr => &self.comgr,
            Kind::Nvrtc => &self.nvrtc,
        }
    }

    fn find_library(&self, kind: Kind) -> Result<Arc<Found<Library>>, NoLibrary> {
        let found = Library::find(kind, &self.config);
        match &found {
            Ok(l) => tracing::info!(compiler = %l.path.display(), version = l.version, "found"),
            Err(error) => tracing::warn!(%error),
        }
        found.map(|library| Arc::new(library.into()))
    }

    fn library(&self, kind: Kind) -> Result<&Arc<Found<Library>>, &NoLibrary> {
        self.place(kind).first.get_or_init(|| self.find_library(kind)).as_ref()
    }

    /// What a library makes is kept under its fingerprint, which names its files as they are.
    fn library_now(&self, kind: Kind) -> Result<Arc<Found<Library>>, CompileError> {
        let (library, remedy) = (kind.name(), kind.remedy());
        let missing = |_: &_| CompileError::NoLibrary { library, remedy };
        let first = self.library(kind).map_err(missing)?;
        let is_as_found =
            |known: &Found<Library>| known.compiler.fingerprint() == known.fingerprint;
        let now = self.place(kind).now(first, is_as_found, || self.find_library(kind));
        now.map_err(|_| CompileError::Replaced { library, remedy })
    }

    fn disk(&self) -> Option<&Disk> {
        let open = || {
            let CompileConfig { cache_dir, cache_bytes_max, object_bytes_max, .. } = &self.config;
            Disk::open(cache_dir, *cache_bytes_max, *object_bytes_max)
        };
        self.disk.get_or_init(open).as_ref()
    }

    /// Looks on disk, else compiles. Blocks.
    fn compile(&self, target: &Target, source: &[u8]) -> CompileResult {
        match target {
            Target::Cpu => self.compile_c(source),
            Target::Cuda { arch } if ptx::is_ptx(source) => {
                Ok(ptx::finish(source, arch, self.config.source_bytes_max)?.into())
            }
            Target::Cuda { arch } => self.compile_gpu(Kind::Nvrtc, arch, source),
            Target::Hip { arch } => self.compile_gpu(Kind::Comgr, arch, source),
        }
    }

    fn compile_c(&self, source: &[u8]) -> CompileResult {
        // A source is refused for what it is, whether or not some compiler works here.
        source::check(Dialect::C, source, self.config.source_bytes_max)?;
        let found = self.toolchain_now()?;
        let key: Key = *blake3::keyed_hash(&found.fingerprint, source).as_bytes();
        self.kept(&key, || found.compiler.compile(source))
    }

    fn compile_gpu(&self, kind: Kind, arch: &str, source: &[u8]) -> CompileResult {
        source::check(kind.dialect(), source, self.config.source_bytes_max)?;
        let found = self.library_now(kind)?;
        let compiler = blake3::keyed_hash(&found.fingerprint, arch.as_bytes());
        let key: Key = *blake3::keyed_hash(compiler.as_bytes(), source).as_bytes();
        self.kept(&key, || found.compiler.compile(arch, source))
    }

    /// The object from disk, else a new one, which is then kept there.
    fn kept(
        &self,
        key: &Key,
        compile: impl FnOnce() -> Result<Vec<u8>, CompileError>,
    ) -> CompileResult {
        if let Some(object) = self.disk().and_then(|disk| disk.get(key)) {
            return Ok(object.into());
        }
        let begun = Instant::now();
        let object = compile()?;
        tracing::debug!(bytes = object.len(), took = ?begun.elapsed(), "compiled");
        if let Some(disk) = self.disk() {
            disk.put(key, &object);
        }
        Ok(object.into())
    }
}

/// What becomes of a source before a compiler sees it, for the fuzzers: refused, or let through,
/// or, if it is PTX, made ready for the driver.
///
/// # Errors
///
/// What may not be in it.
#[cfg(fuzzing)]
pub fn admit(
    target: &Target,
    source: &[u8],
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, CompileError> {
    let dialect = match target {
        Target::Cuda { arch } if ptx::is_ptx(source) => {
            return ptx::finish(source, arch, bytes_max).map(Some);
        }
        Target::Cpu => Dialect::C,
        Target::Cuda { .. } => Kind::Nvrtc.dialect(),
        Target::Hip { .. } => Kind::Comgr.dialect(),
    };
    source::check(dialect, source, bytes_max).map(|()| None)
}

/// The promise of an object. Cheap to clone; when the last clone is dropped before a compiler has
/// begun, the source is forgotten.
#[derive(Clone, Debug)]
pub struct Ticket(Arc<Job>);

impl Ticket {
    /// A promise that is already kept, for devices whose programs need no compiler.
    #[must_use]
    pub fn ready(result: CompileResult) -> Ticket {
        Ticket(Arc::new(Job::done(result)))
    }

    /// The result, once there is one.
    #[must_use]
    pub fn poll(&self) -> Option<CompileResult> {
        self.0.result()
    }

    /// Wakes a task, once, when there is a result: at once if there is one already.
    pub fn wake_on_done(&self, waker: &Waker) {
        self.0.wake_on_done(waker);
    }

    /// Blocks until there is a result. Never on a shard.
    pub fn wait(&self) -> CompileResult {
        self.0.wait()
    }
}

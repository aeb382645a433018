//! Finding a GPU compiler and having it compile.
//!
//! Owns: where NVRTC and comgr are looked for, what identifies one, and the child process that each
//! compile runs in. Neither is ever loaded into this process.
//!
//! A library is found by the dynamic loader in a process that does nothing else, and which says of
//! which files it consists. Those are all that a compiling process can read.
//!
//! Absent: what the child does (`worker`), and the walls around it (`sandbox`).

use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::cc::{DYNAMIC_LINKERS, c_string};
use super::messages::{self, Limits};
use super::sandbox::{End, Finished, Processes, Rights, Sandbox};
use super::source::{self, Dialect};
use super::{CompileError, comgr, nvrtc, worker};
use crate::config::CompileConfig;

const TRIAL_CUDA: &[u8] = b"extern \"C\" __global__ void f(float* a) { *a = 1.0f; }\n";
const TRIAL_HALF: &[u8] = b"#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n\
    extern \"C\" __global__ void f(half* a, nv_bfloat16* b) { *a = hexp2(*a); *b = hexp2(*b); }\n";
const TRIAL_HIP: &[u8] =
    b"extern \"C\" __attribute__((device, const)) unsigned long __ockl_get_group_id(unsigned);\n\
    extern \"C\" __attribute__((global)) void f(float* a) { a[__ockl_get_group_id(0)] = 1.0f; }\n";

/// A compiler that is a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AMD's code object manager: HIP C++ for AMD's GPUs.
    Comgr,
    /// NVIDIA's run-time compiler: CUDA C++ for NVIDIA's GPUs.
    Nvrtc,
}

impl Kind {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Comgr => "comgr",
            Kind::Nvrtc => "NVRTC",
        }
    }

    /// What to do where it is missing.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Kind::Comgr => "install ROCm's comgr (libamd_comgr.so.2 or .so.3)",
            Kind::Nvrtc => {
                "install the CUDA toolkit's NVRTC (libnvrtc.so.13 or .so.12), or serve PTX: \
                 --renderer ptx"
            }
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Kind::Comgr => worker::COMGR,
            Kind::Nvrtc => worker::NVRTC,
        }
    }

    pub(super) fn dialect(self) -> Dialect {
        match self {
            Kind::Comgr => Dialect::Hip,
            Kind::Nvrtc => Dialect::Cuda,
        }
    }

    /// How it begins a message about the source, up to the line's number.
    fn place(self) -> String {
        let (name, mark) = match self {
            Kind::Comgr => (comgr::SOURCE_NAME, ':'),
            Kind::Nvrtc => (nvrtc::SOURCE_NAME, '('),
        };
        format!("{}{mark}", name.to_string_lossy())
    }

    /// The newest first: names with a version, which are what programs load, before the one that
    /// programs are built with.
    fn names(self) -> &'static [&'static str] {
        match self {
            Kind::Comgr => &["libamd_comgr.so.3", "libamd_comgr.so.2", "libamd_comgr.so"],
            Kind::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
        }
    }

    /// Where a toolkit lies that the loader was not told about.
    fn dirs(self) -> Vec<PathBuf> {
        let (variables, roots, inside): (&[&str], &[&str], &[&str]) = match self {
            Kind::Comgr => (&["ROCM_PATH"], &["/opt/rocm"], &["lib", "lib64"]),
            Kind::Nvrtc => (
                &["CUDA_HOME", "CUDA_PATH"],
                &["/usr/local/cuda", "/opt/cuda"],
                &["lib64", "lib", "targets/x86_64-linux/lib"],
            ),
        };
        let told = variables.iter().filter_map(std::env::var_os).map(PathBuf::from);
        let roots: Vec<PathBuf> = told.chain(roots.iter().map(PathBuf::from)).collect();
        roots.iter().flat_map(|root| inside.iter().map(|dir| root.join(dir))).collect()
    }
}

/// A GPU compiler that could be loaded.
#[derive(Debug)]
pub struct Library {
    pub kind: Kind,
    /// For the operator, never for a client.
    pub path: PathBuf,
    pub version: String,
    /// Where NVRTC's headers for half and bfloat16 are, if they are anywhere.
    pub include_dir: Option<PathBuf>,
    /// All files of a process that has it loaded.
    files: Vec<PathBuf>,
    exe: PathBuf,
    sandbox: Option<Sandbox>,
    config: CompileConfig,
}

/// The library is missing or cannot be loaded. For the operator: it names paths.
#[derive(Clone, Debug, thiserror::Error)]
pub struct NoLibrary {
    pub kind: Kind,
    /// Each name that was tried, and what came of it.
    pub tried: Vec<(PathBuf, String)>,
}

impl fmt::Display for NoLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} can be loaded: {}", self.kind.name(), self.kind.remedy())?;
        self.tried.iter().try_for_each(|(path, why)| write!(f, "; {}: {why}", path.display()))
    }
}

impl Library {
    /// Finds the library that the configuration names, or the newest. Blocks for some hundredths of
    /// a second.
    ///
    /// # Errors
    ///
    /// What was tried, where nothing can be loaded.
    pub fn find(kind: Kind, config: &CompileConfig) -> Result<Library, NoLibrary> {
        let configured = match kind {
            Kind::Comgr => &config.comgr,
            Kind::Nvrtc => &config.nvrtc,
        };
        let mut tried = Vec::new();
        for name in candidates(kind, configured.as_deref()) {
            match Library::ask(kind, &name, config) {
                Ok(library) => return Ok(library),
                Err(why) => tried.push((name, why)),
            }
        }
        Err(NoLibrary { kind, tried })
    }

    /// Has a process load the library and say what it is.
    fn ask(kind: Kind, name: &Path, config: &CompileConfig) -> Result<Library, String> {
        let rights = rights(config, vec![PathBuf::from("/")], Vec::new());
        let sandbox = Sandbox::new(&rights).map_err(|error| error.to_string())?;
        let arguments = [worker::FIND.as_ref(), kind.argument().as_ref(), name.as_os_str()];
        let Finished { end, output, messages } =
            run(&sandbox, &config.worker_exe, &arguments, None, b"")?;
        if end != End::Exit(0) {
            let messages = String::from_utf8_lossy(&messages).trim_end().to_owned();
            return Err(if messages.is_empty() { format!("ended with {end:?}") } else { messages });
        }
        let mut lines = output.split(|&byte| byte == b'\n');
        let mut line = || lines.next().filter(|line| !line.is_empty());
        let version = line().and_then(|line| str::from_utf8(line).ok());
        let path = line().map(path_of);
        let (Some(version), Some(path)) = (version, path) else {
            return Err("the program that looks for it is not this server's".to_owned());
        };
        let include_dir = match kind {
            Kind::Comgr => None,
            Kind::Nvrtc => nvrtc::include_dir(&path),
        };
        let mut library = Library {
            kind,
            path,
            version: version.to_owned(),
            include_dir,
            files: lines.map(path_of).collect(),
            exe: config.worker_exe.clone(),
            sandbox: None,
            config: config.clone(),
        };
        if kind == Kind::Nvrtc {
            let sandbox = library.sandbox(Vec::new()).map_err(|error| error.to_string())?;
            library.sandbox = Some(sandbox);
        }
        Ok(library)
    }

    /// The walls for one compile, or for all where there is nothing to write.
    fn sandbox(&self, write: Vec<PathBuf>) -> Result<Sandbox, super::sandbox::SandboxError> {
        let mut read = self.files.clone();
        read.push(PathBuf::from("/etc/ld.so.cache"));
        read.extend(self.header_files());
        Sandbox::new(&rights(&self.config, read, write))
    }

    fn header_files(&self) -> impl Iterator<Item = PathBuf> {
        let name = |name: &CStr| PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        let dir = self.include_dir.as_ref();
        nvrtc::HEADER_FILES.into_iter().filter_map(move |file| Some(dir?.join(name(file))))
    }

    /// A hash of all that, besides the source and the architecture, decides what comes out: this
    /// program, whose options may change, and the library with its parts, by path, length and
    /// time of change.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hash.update(&bytes.len().to_le_bytes());
            hash.update(bytes);
        };
        field(self.kind.argument().as_bytes());
        field(self.path.as_os_str().as_bytes());
        field(self.version.as_bytes());
        for file in self.files.iter().cloned().chain(self.header_files()) {
            field(file.as_os_str().as_bytes());
            let Ok(metadata) = fs::metadata(&file) else { continue };
            field(&metadata.len().to_le_bytes());
            field(&metadata.mtime().to_le_bytes());
            field(&metadata.mtime_nsec().to_le_bytes());
        }
        *hash.finalize().as_bytes()
    }

    /// Compiles, in a process of its own, a source that has passed [`source::check`]. Blocks for as
    /// long as the library takes.
    pub(super) fn compile(&self, arch: &str, source: &[u8]) -> Result<Vec<u8>, CompileError> {
        if self.kind == Kind::Nvrtc && self.include_dir.is_none() && source::includes(source) {
            return Err(CompileError::Unsupported {
                what: "half or bfloat16",
                compiler: format!("NVRTC {}", self.version),
                remedy: "the toolkit's headers cuda_fp16.h and cuda_bf16.h beside it",
            });
        }
        let finished = self.run(arch, source).map_err(|error| {
            tracing::warn!(%error, library = %self.path.display(), "cannot run the compiler");
            CompileError::Sandbox
        })?;
        if finished.end == End::Exit(worker::EXIT_BROKEN.into()) {
            let error = String::from_utf8_lossy(&finished.messages);
            tracing::warn!(%error, library = %self.path.display(), "the compiler does not work");
            return Err(CompileError::Sandbox);
        }
        messages::outcome(finished, &self.kind.place(), &Limits::of(&self.config))
    }

    fn run(&self, arch: &str, source: &[u8]) -> Result<Finished, String> {
        let arguments = |dir: &Path| -> [OsString; 5] {
            let kind = self.kind.argument().into();
            let path = self.path.clone().into_os_string();
            [worker::COMPILE.into(), kind, path, arch.into(), dir.into()]
        };
        if let Some(sandbox) = &self.sandbox {
            let headers = self.include_dir.as_deref().unwrap_or(Path::new(""));
            let arguments = arguments(headers);
            let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
            return run(sandbox, &self.exe, &arguments, None, source);
        }
        let scratch = Scratch::new().map_err(|error| format!("a directory: {error}"))?;
        let sandbox = self.sandbox(vec![scratch.0.clone()]).map_err(|error| error.to_string())?;
        let arguments = arguments(&scratch.0);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        run(&sandbox, &self.exe, &arguments, Some(&scratch.0), source)
    }
}

/// What `outboard check` says about a GPU compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub found: String,
    /// What to do, unless all is well.
    pub remedy: Option<String>,
}

impl Report {
    /// Looks for a library and compiles something with it, in the sandbox it always runs in.
    #[must_use]
    pub fn of(kind: Kind, config: &CompileConfig) -> Report {
        let library = match Library::find(kind, config) {
            Ok(library) => library,
            Err(error) => {
                // Names that nothing has are no news; a part that is missing has another name.
                let is_news = |(path, why): &&(PathBuf, String)| {
                    let is_absent = why.contains("No such file");
                    !is_absent || !why.starts_with(&*path.to_string_lossy())
                };
                let news = error.tried.iter().filter(is_news);
                let mut found = format!("no {} can be loaded", kind.name());
                for (path, why) in news {
                    found += &format!("; {}: {why}", path.display());
                }
                return Report { found, remedy: Some(kind.remedy().to_owned()) };
            }
        };
        let found = format!("{} at {}", library.version, library.path.display());
        let (arch, plain, half) = match kind {
            Kind::Comgr => ("gfx90a", TRIAL_HIP, None),
            Kind::Nvrtc => ("sm_90", TRIAL_CUDA, Some(TRIAL_HALF)),
        };
        if let Err(error) = library.compile(arch, plain) {
            let found = format!("{found}, but it does not compile: {error}");
            return Report { found, remedy: Some(kind.remedy().to_owned()) };
        }
        match half.map_or(Ok(Vec::new()), |source| library.compile(arch, source)) {
            Ok(_) => Report { found: format!("{found} compiles"), remedy: None },
            Err(error) => {
                let found = format!("{found} compiles, but not half and bfloat16: {error}");
                let remedy = "install the CUDA toolkit's headers cuda_fp16.h and cuda_bf16.h";
                Report { found, remedy: Some(remedy.to_owned()) }
            }
        }
    }
}

/// What is handed to the loader, one after the other.
fn candidates(kind: Kind, configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = configured {
        // A name alone is for the loader to find; the process that asks it works elsewhere.
        let is_name = path.components().count() == 1;
        let absolute = if is_name { None } else { std::path::absolute(path).ok() };
        return vec![absolute.unwrap_or_else(|| path.to_owned())];
    }
    let names = || kind.names().iter().map(PathBuf::from);
    let files = kind.dirs().into_iter().flat_map(|dir| names().map(move |name| dir.join(name)));
    names().chain(files.filter(|file| file.is_file())).collect()
}

fn rights(config: &CompileConfig, read: Vec<PathBuf>, write: Vec<PathBuf>) -> Rights {
    let linkers = DYNAMIC_LINKERS.iter().map(PathBuf::from);
    Rights {
        read,
        execute: linkers.chain([config.worker_exe.clone()]).collect(),
        write,
        processes: Processes::Threads,
        memory_bytes_max: config.memory_bytes_max,
        cpu_seconds_max: config.cpu_seconds_max,
        output_bytes_max: config.object_bytes_max,
        time_max: config.time_max,
    }
}

/// Runs this program again. It finds libraries where this process finds them.
fn run(
    sandbox: &Sandbox,
    exe: &Path,
    arguments: &[&OsStr],
    scratch: Option<&Path>,
    source: &[u8],
) -> Result<Finished, String> {
    let program = c_string(exe.as_os_str().as_bytes())?;
    let arguments = [OsStr::new(worker::ARGUMENT)]
        .iter()
        .chain(arguments)
        .map(|argument| c_string(argument.as_bytes()))
        .collect::<Result<Vec<CString>, String>>()?;
    let mut env = vec![c"LC_ALL=C".to_owned()];
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        env.push(c_string(&[b"LD_LIBRARY_PATH=", paths.as_bytes()].concat())?);
    }
    if let Some(dir) = scratch {
        env.push(c_string(&[b"TMPDIR=", dir.as_os_str().as_bytes()].concat())?);
    }
    let env: Vec<&CStr> = env.iter().map(|variable| &**variable).collect();
    sandbox.run(&program, &arguments, &env, source).map_err(|error| error.to_string())
}

fn path_of(line: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(line))
}

/// A directory for one compile, which goes with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Scratch> {
        // The standard library's random numbers: nobody else can take the name beforehand.
        let random = RandomState::new().build_hasher().finish();
        let path = std::path::absolute(std::env::temp_dir())?;
        let path = path.join(format!("outboard-{random:016x}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "a compiler's directory stays behind");
        }
    }
}

//! Finding a C compiler and running it.
//!
//! Owns: the choice of the compiler and its flags. A compiler counts only once it has compiled
//! something inside the sandbox it will always run in.
//!
//! The flags ask for what tinygrad's own CPU device asks of clang, so that results agree with it to
//! rounding; the comments at them say where gcc needs more to behave the same.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CompileError;
use super::messages::{self, Limits};
use super::sandbox::{End, Processes, Rights, Sandbox};
use super::source::{self, Dialect};
use crate::config::{CompileConfig, CompilerChoice};

/// Flags for both families: code for this very CPU that can lie anywhere and needs no library,
/// without what tells about the compiler.
const FLAGS: [&str; 12] = [
    "-x",
    "c",
    "-march=native",
    "-O2",
    "-fPIC",
    "-ffreestanding",
    // A square root is an instruction, not a call that may set `errno`.
    "-fno-math-errno",
    "-nostdlib",
    "-nostdinc",
    "-fno-ident",
    // Warnings would be paid for and thrown away.
    "-w",
    "-c",
];

const FLAGS_CLANG: [&str; 8] = [
    "--target=x86_64-none-unknown-elf",
    "-fno-gnu-inline-asm",
    "-fno-crash-diagnostics",
    "-fno-color-diagnostics",
    "-fno-caret-diagnostics",
    "-ferror-limit=8",
    "-o",
    "-",
];

const FLAGS_GCC: [&str; 15] = [
    // clang's name of the half type. Both compute in float where the CPU has no half arithmetic.
    "-D__fp16=_Float16",
    // tinygrad's bitcasts read one type through a pointer to another. clang takes it as it is
    // meant; gcc may reorder it.
    "-fno-strict-aliasing",
    // clang's default. gcc's keeps branches, and calls `truncf`, where a select would do.
    "-fno-trapping-math",
    "-fno-asynchronous-unwind-tables",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fplt",
    "-fdiagnostics-color=never",
    "-fno-diagnostics-show-caret",
    "-fmax-errors=8",
    // No temporary files, and so no directory to write to. The object goes to memory: the assembler
    // has to seek in it, which a pipe cannot do. `/dev/stdout` is a link to this that not every
    // system makes.
    "-pipe",
    "-o",
    "/proc/self/fd/1",
    "-c",
    "-",
];

/// Where programs are looked for, besides `PATH`.
const PROGRAM_DIRS: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// What every dynamically linked program reads. Landlock grants them to look, not to start.
const LIBRARY_DIRS: [&str; 5] = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"];

/// The dynamic linkers of glibc and musl: the kernel starts one for each program.
pub(super) const DYNAMIC_LINKERS: [&str; 2] =
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];

/// The newest clang whose name is tried with its version. Others are found as `clang`.
const CLANG_VERSION_MAX: u32 = 23;
/// The oldest clang that knows `-march=native` well and what tinygrad writes.
const CLANG_VERSION_MIN: u32 = 14;

const TRIAL: &[u8] = b"void f(float* restrict a, const int n) {\n\
    for (int i = 0; i < n; i++) { a[i] = a[i]*2.0f; }\n}\n";
const TRIAL_HALF: &[u8] = b"void f(__fp16* restrict a) { *a = *a + (__fp16)1.0f; }\n";
const TRIAL_BFLOAT16: &[u8] = b"void f(__bf16* restrict a) { *a = *a + (__bf16)1.0f; }\n";

/// How both begin a message about what they read from standard input.
const PLACE: &str = "<stdin>:";

/// A kind of command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Clang,
    Gcc,
}

/// A compiler that works in its sandbox.
#[derive(Debug)]
pub struct Toolchain {
    /// The program itself, not a link to it. For the operator, never for a client.
    pub path: PathBuf,
    pub family: Family,
    /// First line of what it answers to `--version`.
    pub version: String,
    /// Whether it computes with `_Float16`: gcc 12, any clang.
    pub half: bool,
    /// Whether it computes with `__bf16`: clang 17, gcc 13.
    pub bfloat16: bool,
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    sandbox: Sandbox,
    /// The programs that it consists of, as they were when the sandbox was made: that may start
    /// those very files.
    parts: Vec<(PathBuf, Option<Stamp>)>,
    source_bytes_max: usize,
    limits: Limits,
}

/// What tells a file from one that takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Nothing where there is no such file.
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = std::fs::metadata(path).ok()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Some(Stamp { inode: metadata.ino(), bytes: metadata.len(), modified })
    }
}

/// No compiler works. For the operator: it names paths.
#[derive(Clone, Debug, thiserror::Error)]
pub struct NoToolchain {
    /// Each program that was tried, and what it did.
    pub tried: Vec<(PathBuf, String)>,
}

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no C compiler works here: install clang 17 or later, or gcc 12 or later")?;
        self.tried.iter().try_for_each(|(path, why)| write!(f, "; {}: {why}", path.display()))
    }
}

/// A program that says it is a compiler.
struct Candidate {
    path: PathBuf,
    family: Family,
    version: String,
    major: u32,
}

impl Toolchain {
    /// Finds the compiler that the configuration asks for and tries it out. Blocks for some tenths
    /// of a second.
    ///
    /// # Errors
    ///
    /// What was tried, where nothing works.
    pub fn find(config: &CompileConfig) -> Result<Toolchain, NoToolchain> {
        let mut tried = Vec::new();
        let (clang, gcc) = match &config.compiler {
            CompilerChoice::Any => (clang_paths(), gcc_paths()),
            CompilerChoice::Clang => (clang_paths(), BTreeSet::new()),
            CompilerChoice::Gcc => (BTreeSet::new(), gcc_paths()),
            CompilerChoice::Path(path) => {
                (path.canonicalize().into_iter().collect(), BTreeSet::new())
            }
        };
        for paths in [clang, gcc] {
            let mut candidates = Vec::new();
            for path in paths {
                match Candidate::ask(&path, config) {
                    Ok(candidate) => candidates.push(candidate),
                    Err(why) => tried.push((path, why)),
                }
            }
            candidates.sort_by_key(|c| std::cmp::Reverse(c.major));
            for candidate in candidates {
                let path = candidate.path.clone();
                match Toolchain::try_out(candidate, config) {
                    Ok(toolchain) => return Ok(toolchain),
                    Err(why) => tried.push((path, why)),
                }
            }
        }
        Err(NoToolchain { tried })
    }

    fn try_out(candidate: Candidate, config: &CompileConfig) -> Result<Toolchain, String> {
        let Candidate { path, family, version, .. } = candidate;
        let mut execute = vec![path.clone()];
        let mut env = vec![c"LC_ALL=C".to_owned()];
        let mut args: Vec<&str> = FLAGS.to_vec();
        match family {
            Family::Clang => args.extend(FLAGS_CLANG.iter().chain(&["-"])),
            Family::Gcc => {
                args.extend(FLAGS_GCC);
                for part in ["cc1", "as"] {
                    execute.push(gcc_part(&path, part, config)?);
                }
                // gcc finds its assembler as the shell would.
                let as_dir = execute.last().and_then(|p| p.parent()).unwrap_or(Path::new("/"));
                env.push(c_string(&[b"PATH=", as_dir.as_os_str().as_bytes()].concat())?);
            }
        }
        let args = args.iter().map(|a| c_string(a.as_bytes())).collect::<Result<_, _>>()?;
        let processes = match family {
            Family::Clang => Processes::None,
            Family::Gcc => Processes::Children,
        };
        let stamped = |part: &PathBuf| (part.clone(), Stamp::of(part));
        let parts = execute.iter().map(stamped).collect();
        let rights = rights(&path, execute, processes, config);
        let mut toolchain = Toolchain {
            program: c_string(path.as_os_str().as_bytes())?,
            path,
            family,
            version,
            half: true,
            bfloat16: true,
            args,
            env,
            sandbox: Sandbox::new(&rights).map_err(|e| e.to_string())?,
            parts,
            source_bytes_max: config.source_bytes_max,
            limits: Limits::of(config),
        };
        toolchain.compile(TRIAL).map_err(|e| e.to_string())?;
        toolchain.half = toolchain.compile(TRIAL_HALF).is_ok();
        toolchain.bfloat16 = toolchain.compile(TRIAL_BFLOAT16).is_ok();
        Ok(toolchain)
    }

    /// Whether its programs are still the files that they were.
    pub(super) fn is_as_found(&self) -> bool {
        self.parts.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
    }

    /// A hash of all that, besides the source, decides what comes out.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hash.update(&bytes.len().to_le_bytes());
            hash.update(bytes);
        };
        field(self.path.as_os_str().as_bytes());
        field(self.version.as_bytes());
        self.args.iter().for_each(|arg| field(arg.as_bytes()));
        field(&cpu_features());
        *hash.finalize().as_bytes()
    }

    /// Compiles in the sandbox. Blocks for as long as the compiler takes.
    pub(super) fn compile(&self, source: &[u8]) -> Result<Vec<u8>, CompileError> {
        source::check(Dialect::C, source, self.source_bytes_max)?;
        self.check_types(source)?;
        let env: Vec<&CStr> = self.env.iter().map(|e| &**e).collect();
        let run = self.sandbox.run(&self.program, &self.args, &env, source);
        let finished = run.map_err(|error| {
            tracing::warn!(%error, "cannot run the compiler");
            CompileError::Sandbox
        })?;
        messages::outcome(finished, PLACE, &self.limits)
    }

    /// Refuses types that this compiler does not know, with a better reason than it would give.
    fn check_types(&self, source: &[u8]) -> Result<(), CompileError> {
        let unsupported = |what, remedy| {
            let compiler = self.version.clone();
            Err(CompileError::Unsupported { what, compiler, remedy })
        };
        let holds = |word: &[u8]| source.windows(word.len()).any(|w| w == word);
        if !self.bfloat16 && holds(b"__bf16") {
            return unsupported("bfloat16", "clang 17 or later");
        }
        if !self.half && holds(b"__fp16") {
            return unsupported("half", "clang 17 or later, or gcc 12 or later");
        }
        Ok(())
    }
}

impl Candidate {
    /// Asks a program which compiler it is.
    fn ask(path: &Path, config: &CompileConfig) -> Result<Candidate, String> {
        let answer = answer(path, "--version", config)?;
        let version = answer.lines().next().unwrap_or_default().to_owned();
        let family = if version.contains("clang version") {
            Family::Clang
        } else if answer.contains("Free Software Foundation") {
            Family::Gcc
        } else {
            return Err("not a clang or gcc".to_owned());
        };
        // `Debian clang version 19.1.7 (3)`, `gcc (Debian 12.2.0-14) 12.2.0`
        let mut numbers = version.split(' ').filter_map(|w| w.split_once('.')?.0.parse().ok());
        let major = numbers.next_back().unwrap_or(0);
        Ok(Candidate { path: path.to_owned(), family, version, major })
    }
}

/// What a program prints when it is run with one argument, in a sandbox of its own.
fn answer(path: &Path, arg: &str, config: &CompileConfig) -> Result<String, String> {
    let rights = rights(path, vec![path.to_owned()], Processes::None, config);
    let sandbox = Sandbox::new(&rights).map_err(|e| e.to_string())?;
    let program = c_string(path.as_os_str().as_bytes())?;
    let args = [c_string(arg.as_bytes())?];
    let finished =
        sandbox.run(&program, &args, &[c"LC_ALL=C"], b"").map_err(|error| error.to_string())?;
    match finished.end {
        End::Exit(0) => Ok(String::from_utf8_lossy(&finished.output).into_owned()),
        end => Err(format!("`{arg}` ended with {end:?}")),
    }
}

/// The file of a program that gcc starts.
fn gcc_part(gcc: &Path, part: &str, config: &CompileConfig) -> Result<PathBuf, String> {
    let name = answer(gcc, &format!("-print-prog-name={part}"), config)?;
    let name = Path::new(name.trim_end());
    let found = if name.is_absolute() { Some(name.to_owned()) } else { program_paths(part).next() };
    found
        .and_then(|path| path.canonicalize().ok())
        .ok_or_else(|| format!("its `{part}` is missing"))
}

fn rights(
    path: &Path,
    mut execute: Vec<PathBuf>,
    processes: Processes,
    config: &CompileConfig,
) -> Rights {
    let mut read: Vec<PathBuf> = LIBRARY_DIRS.iter().map(PathBuf::from).collect();
    // A compiler outside /usr has its libraries beside it.
    if let Some(prefix) = path.parent().and_then(Path::parent) {
        read.extend([prefix.join("lib"), prefix.join("lib64")]);
    }
    execute.extend(DYNAMIC_LINKERS.iter().map(PathBuf::from));
    Rights {
        read,
        execute,
        write: Vec::new(),
        processes,
        memory_bytes_max: config.memory_bytes_max,
        cpu_seconds_max: config.cpu_seconds_max,
        output_bytes_max: config.object_bytes_max,
        time_max: config.time_max,
    }
}

/// Every file that `name` may mean, in the order of the search.
fn program_paths(name: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&dirs)
        .filter(|dir| dir.is_absolute())
        .chain(PROGRAM_DIRS.iter().map(PathBuf::from))
        .collect();
    let name = name.to_owned();
    dirs.into_iter().map(move |dir| dir.join(&name)).filter(|path| path.is_file())
}

fn clang_paths() -> BTreeSet<PathBuf> {
    let names = (CLANG_VERSION_MIN..=CLANG_VERSION_MAX).map(|version| format!("clang-{version}"));
    let named = names.chain(["clang".to_owned()]).flat_map(|name| program_paths(&name));
    let packaged = (CLANG_VERSION_MIN..=CLANG_VERSION_MAX)
        .map(|version| PathBuf::from(format!("/usr/lib/llvm-{version}/bin/clang")));
    named.chain(packaged).filter_map(|path| path.canonicalize().ok()).collect()
}

fn gcc_paths() -> BTreeSet<PathBuf> {
    program_paths("gcc").filter_map(|path| path.canonicalize().ok()).collect()
}

pub(super) fn c_string(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| "a NUL byte in a path".to_owned())
}

/// What `-march=native` looks at, as far as the kernel tells: the first CPU's kind, caches and
/// features.
fn cpu_features() -> Vec<u8> {
    const LINES: [&str; 6] =
        ["cache size", "cpu family", "flags", "model", "stepping", "vendor_id"];
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first
        .lines()
        .filter(|line| line.split_once(':').is_some_and(|(name, _)| LINES.contains(&name.trim())));
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

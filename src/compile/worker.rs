//! The child process that a compiler library runs in.
//!
//! NVRTC and comgr are libraries that read a stranger's source, so they are never loaded into the
//! server. This program is started again instead, in the sandbox of the C compilers, with the
//! hidden argument `compile-worker`. It loads the library and the headers, gives up what that took,
//! and only then reads the source: standard input to standard output, with messages on standard
//! error, as a compiler does. It compiles one source and ends.
//!
//! From then on it has no file but those three, and starts no program. (comgr works in files, and
//! has a directory of its own for them.) A library that looks for more does not find it: NVRTC
//! would load the driver.
//!
//! Absent: the other side (`library`), and the walls that are there from the start (`sandbox`).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::fd::OwnedFd;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::comgr::Comgr;
use super::nvrtc::{self, Nvrtc};
use super::sandbox::{self, Status};

/// What a compile makes.
pub(super) type Code = Vec<u8>;

/// Why there is none.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library or this process, in words for the operator.
    Broken(String),
    /// The source, in the compiler's words.
    Rejected(Vec<u8>),
}

/// Exit code of a process whose library rejected the source.
pub(super) const EXIT_REJECTED: u8 = 1;
/// Exit code of a process that could not compile anything.
pub(super) const EXIT_BROKEN: u8 = 3;

/// The first argument of such a process.
pub const ARGUMENT: &str = "compile-worker";

/// What a process is to do: its second argument.
pub(super) const FIND: &str = "find";
pub(super) const COMPILE: &str = "compile";

/// Which library: its third argument.
pub(super) const NVRTC: &str = "nvrtc";
pub(super) const COMGR: &str = "comgr";

/// Calls that name a file. All are answered with "no such file".
const CALLS_OF_FILES: [libc::c_long; 23] = [
    libc::SYS_access,
    libc::SYS_chdir,
    libc::SYS_creat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

const CALLS_OF_PROGRAMS: [libc::c_long; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// The whole life of such a process. `arguments` are those behind [`ARGUMENT`].
pub fn main(arguments: &[OsString]) -> ! {
    let output = match own_output() {
        Ok(output) => output,
        Err(_) => end(EXIT_BROKEN),
    };
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let result = match words.as_slice() {
        [verb, library, name] if *verb == FIND => find(library, name),
        [verb, library, path, arch, dir] if *verb == COMPILE => {
            compile(library, path, arch, Path::new(dir))
        }
        _ => Err(Failure::Broken("not started by a server".to_owned())),
    };
    let code = match result {
        Ok(code) => write(&output, &code).map_or(EXIT_BROKEN, |()| 0),
        Err(Failure::Broken(why)) => {
            say(why.as_bytes());
            EXIT_BROKEN
        }
        Err(Failure::Rejected(log)) => {
            say(&log);
            EXIT_REJECTED
        }
    };
    end(code)
}

/// Ends at once: exit handlers of a library that has seen a stranger's source have nothing to do.
fn end(code: u8) -> ! {
    // SAFETY: ends the process, as any process may end at any time.
    unsafe { libc::_exit(code.into()) }
}

/// Standard output, kept apart from what a library may print there, which becomes messages.
fn own_output() -> rustix::io::Result<OwnedFd> {
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(output)
}

fn write(output: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(output, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Adds to the messages. What does not fit is not missed.
fn say(bytes: &[u8]) {
    let stderr: BorrowedFd<'_> = rustix::stdio::stderr();
    let _ = rustix::io::write(stderr, bytes);
}

/// Loads a library and says what it is and of which files it and this process consist.
fn find(library: &OsStr, name: &OsStr) -> Result<Code, Failure> {
    let (version, path) = if library == NVRTC {
        let nvrtc = Nvrtc::load(name).map_err(Failure::Broken)?;
        (nvrtc.version(), nvrtc.path())
    } else {
        let comgr = Comgr::load(name).map_err(Failure::Broken)?;
        (comgr.version(), comgr.path())
    };
    let path = path.ok_or_else(|| Failure::Broken("it does not say where it is".to_owned()))?;
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let mut report = format!("{version}\n").into_bytes();
    report.extend_from_slice(path.as_os_str().as_bytes());
    let files: std::collections::BTreeSet<&str> =
        maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
    for file in files {
        report.push(b'\n');
        report.extend_from_slice(file.as_bytes());
    }
    Ok(report)
}

/// Compiles standard input. `dir` holds NVRTC's headers, if there are any, or is comgr's own.
fn compile(library: &OsStr, path: &OsStr, arch: &OsStr, dir: &Path) -> Result<Code, Failure> {
    let broken = |error: &dyn std::fmt::Display| Failure::Broken(error.to_string());
    let arch = arch.to_str().ok_or_else(|| broken(&"an architecture is not text"))?;
    if library == NVRTC {
        let nvrtc = Nvrtc::load(path).map_err(Failure::Broken)?;
        let headers = headers(dir).map_err(|e| broken(&e))?;
        give_up_rights(None)?;
        let source = CString::new(source()?).map_err(|e| broken(&e))?;
        nvrtc.compile(&source, arch, &headers)
    } else {
        let comgr = Comgr::load(path).map_err(Failure::Broken)?;
        give_up_rights(Some(dir))?;
        comgr.compile(&source()?, arch)
    }
}

/// Names and contents of the headers; none where the server has found no headers.
fn headers(dir: &Path) -> io::Result<Vec<(&'static CStr, CString)>> {
    if dir.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let read = |name: &'static CStr| {
        let path = dir.join(OsStr::from_bytes(name.to_bytes()));
        Ok((name, CString::new(std::fs::read(path)?)?))
    };
    let empty = nvrtc::HEADERS_EMPTY.into_iter().map(|name| Ok((name, CString::default())));
    nvrtc::HEADER_FILES.into_iter().map(read).chain(empty).collect()
}

fn source() -> Result<Vec<u8>, Failure> {
    let mut source = Vec::new();
    io::stdin().lock().read_to_end(&mut source).map_err(|e| Failure::Broken(e.to_string()))?;
    Ok(source)
}

/// Gives up files and programs for good, but for a directory of this run's own. What the kernel
/// cannot do is left out, as in the sandbox around this process.
fn give_up_rights(own_dir: Option<&Path>) -> Result<(), Failure> {
    let status = Status::of_this_kernel();
    if status.landlock_abi.is_some() {
        landlock(own_dir).map_err(|e| Failure::Broken(format!("landlock: {e}")))?;
    }
    if status.seccomp {
        let filter = filter(own_dir.is_none()).map_err(|e| Failure::Broken(e.to_string()))?;
        seccompiler::apply_filter(&filter).map_err(|e| Failure::Broken(format!("seccomp: {e}")))?;
    }
    Ok(())
}

fn landlock(own_dir: Option<&Path>) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V7;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    if let Some(target) = own_dir.and_then(|dir| PathFd::new(dir).ok()) {
        rules = rules.add_rule(PathBeneath::new(target, sandbox::files_of_its_own()))?;
    }
    rules.restrict_self().map(drop)
}

/// On top of the filter that this process was started with.
fn filter(without_files: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS_OF_PROGRAMS.iter().map(|&call| (call, Vec::new())).collect();
    if without_files {
        rules.extend(CALLS_OF_FILES.iter().map(|&call| (call, Vec::new())));
        // The C library asks about open files with this call and an empty path.
        let flag = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
        let by_path =
            SeccompCondition::new(3, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), 0)?;
        rules.insert(libc::SYS_newfstatat, vec![SeccompRule::new(vec![by_path])?]);
    }
    let denied = SeccompAction::Errno(libc::ENOENT.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)?.try_into()
}

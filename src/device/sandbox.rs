//! What a worker gives up before it runs foreign code.
//!
//! Owns: the list of what remains. A kernel is machine code that a client chose; it can call
//! anything in its process and make any system call. So the process keeps nothing worth having:
//! no files, no network, no other process, a bounded amount of memory of its own, and the few
//! system calls that the worker's loop is made of. Everything else kills it.
//!
//! A worker that drives a device gives up less; see [`enter_driver`].
//!
//! Landlock refuses what seccomp already kills; it stays for the day one of the two has a hole.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::config::DeviceLimits;

/// What could not be given up, so that the worker must not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("the server is gone")]
    Orphan,
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    #[error("seccomp filter: {0}")]
    SeccompFilter(#[from] seccompiler::BackendError),
    #[error("cannot give up {what}: {error}")]
    System { what: &'static str, error: io::Error },
}

/// Locks this process down, for good. `parent` is the server, without which the worker has no
/// reason to live.
pub(super) fn enter(parent: Pid) -> Result<(), SandboxError> {
    let system = |what| move |error| SandboxError::System { what, error: io::Error::from(error) };
    die_with(parent)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(system("being traced"))?;
    rustix::thread::set_no_new_privs(true).map_err(system("new privileges"))?;
    default_signals();
    limit_resources().map_err(system("resources"))?;
    deny_files_and_network()?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(())
}

/// Gives up what a process does not need that drives a device, for good.
///
/// No code of clients runs in it: their kernels run on the device, whose driver keeps them inside
/// their own context. The driver's libraries start threads, map devices and files, and make system
/// calls that no list of ours could foresee. So what is given up here is little, and meant for
/// the driver's own mistakes: new privileges, writing any file outside of `/dev` and of what the
/// system says of this process, the network, core dumps, and life after the server. The process
/// may be traced, since drivers read of themselves in `/proc`.
pub(super) fn enter_driver(parent: Pid) -> Result<(), SandboxError> {
    die_with(parent)?;
    let system = |what| move |error| SandboxError::System { what, error: io::Error::from(error) };
    rustix::thread::set_no_new_privs(true).map_err(system("new privileges"))?;
    default_signals();
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(system("resources"))?;
    // Each segment of shared memory keeps its descriptor here.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    let files = Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(Resource::Nofile, files).map_err(system("resources"))?;
    deny_writing_and_network()?;
    Ok(())
}

/// As far as the kernel knows how to.
fn deny_writing_and_network() -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(ABI::V5);
    // Drivers keep semaphores in `/dev/shm`, and name their threads in `/proc`.
    let writable = ["/dev", "/proc/self"];
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(landlock::path_beneath_rules(["/"], AccessFs::from_read(ABI::V5)))?
        .add_rules(landlock::path_beneath_rules(writable, all))?
        .restrict_self()?;
    Ok(())
}

/// Ends this process with the server, which may have ended already.
fn die_with(parent: Pid) -> Result<(), SandboxError> {
    let system = |what| move |error| SandboxError::System { what, error: io::Error::from(error) };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(system("life after the server"))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(SandboxError::Orphan);
    }
    Ok(())
}

/// Faults end the process with their own signal, so that the server can say what happened. The
/// runtime's handlers would turn a stack overflow into an abort.
fn default_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default action runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn limit_resources() -> rustix::io::Result<()> {
    // What the process has at its start, its allocator's reserve above all, is not the kernels'.
    let data = DeviceLimits::WORKER_DATA_BYTES + private_bytes();
    let limits = [
        (Resource::Core, 0),
        (Resource::Data, data),
        (Resource::Fsize, 0),
        (Resource::Nofile, 16),
        (Resource::Nproc, 0),
        (Resource::Stack, DeviceLimits::WORKER_STACK_BYTES),
    ];
    for (resource, limit) in limits {
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX).min(limit);
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Private writable memory of this process. Zero where it cannot be known, which makes the limit
/// tighter.
fn private_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(5).and_then(|pages| pages.parse::<u64>().ok());
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    pages.unwrap_or(0).saturating_mul(page)
}

/// As far as the kernel knows how to.
fn deny_files_and_network() -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// The system calls that remain. The socket is descriptor 0.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let socket = || one(vec![equals(0, 0)?]);
    let shared_file = masked(3, libc::MAP_TYPE | libc::MAP_ANONYMOUS, libc::MAP_SHARED)?;
    let private_memory =
        masked(3, libc::MAP_TYPE | libc::MAP_ANONYMOUS, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)?;
    let operation = |op: i32| SeccompRule::new(vec![masked(1, !libc::FUTEX_PRIVATE_FLAG, op)?]);
    let rules = BTreeMap::from([
        (libc::SYS_brk, vec![]),
        (libc::SYS_clock_gettime, vec![]),
        (libc::SYS_close, vec![]),
        (libc::SYS_exit_group, vec![]),
        // The standard library checks in debug builds that what it closes is open.
        (libc::SYS_fcntl, vec![SeccompRule::new(vec![equals(1, GETFD)?])?]),
        (libc::SYS_futex, vec![operation(libc::FUTEX_WAIT)?, operation(libc::FUTEX_WAKE)?]),
        // Hash tables seed themselves with it.
        (libc::SYS_getrandom, vec![]),
        (libc::SYS_madvise, vec![]),
        // Anonymous shared memory is left out: no limit counts it.
        (
            libc::SYS_mmap,
            vec![SeccompRule::new(vec![shared_file])?, SeccompRule::new(vec![private_memory])?],
        ),
        (libc::SYS_mprotect, vec![]),
        (libc::SYS_mremap, vec![]),
        (libc::SYS_munmap, vec![]),
        (libc::SYS_recvmsg, socket()?),
        (libc::SYS_restart_syscall, vec![]),
        (libc::SYS_sched_yield, vec![]),
        (libc::SYS_sendto, socket()?),
    ]);
    let (others, these) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, others, these, ARCH)?.try_into()
}

const GETFD: u64 = libc::F_GETFD as u64;

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

fn one(conditions: Vec<SeccompCondition>) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    Ok(vec![SeccompRule::new(conditions)?])
}

fn equals(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Where the bits of `mask` in an argument are those of `value`. Flags are 32 bits.
fn masked(
    argument: u8,
    mask: i32,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let operator = SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

//! Starting a process that gives up its rights before it becomes another program.
//!
//! The child is made with `CLONE_VM | CLONE_VFORK`, as `posix_spawn` does it: it borrows the
//! server's memory and the calling thread sleeps until it has become the program. A `fork` would
//! copy the page tables of a server that holds gigabytes, and mark its pinned pages copy-on-write.
//! So everything is prepared before, and the child makes system calls only: it allocates nothing,
//! takes no lock and cannot panic.
//!
//! Absent: what the rights are (`sandbox`).

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Pid;
use seccompiler::sock_filter;

/// Stack of the child, in units of 16 bytes: 64 KiB. It calls a dozen system calls, nothing deep.
const STACK_UNITS: usize = 4096;

/// One resource limit, soft and hard alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) resource: libc::__rlimit_resource_t,
    pub(super) value: u64,
}

/// What the child is to become, and with which rights.
pub(super) struct Spec<'a> {
    pub(super) program: &'a CStr,
    pub(super) args: &'a [&'a CStr],
    pub(super) env: &'a [&'a CStr],
    /// Standard input, output and error. Their numbers are above 2, so that putting one in place
    /// does not overwrite another.
    pub(super) files: [BorrowedFd<'a>; 3],
    pub(super) limits: &'a [Limit],
    pub(super) landlock: Option<BorrowedFd<'a>>,
    pub(super) seccomp: Option<&'a [sock_filter]>,
}

/// A started process, which leads a process group of its own.
pub(super) struct Child {
    pub(super) pid: Pid,
    /// Readable when the process has ended.
    pub(super) pidfd: OwnedFd,
}

/// A step on the way to the program that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(super) struct SpawnError {
    pub(super) step: &'static str,
    pub(super) source: io::Error,
}

/// `Spec` as system calls take it. Lives on the parent's stack while the parent sleeps.
struct Plan<'a> {
    program: *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    files: [c_int; 3],
    limits: &'a [Limit],
    /// -1 for none.
    landlock: c_int,
    /// No instructions for none.
    seccomp: libc::sock_fprog,
    signals: libc::sigset_t,
    failure: Option<(&'static str, c_int)>,
}

/// Starts the process.
///
/// # Errors
///
/// The first step that failed, also where the child took it.
pub(super) fn spawn(spec: &Spec<'_>) -> Result<Child, SpawnError> {
    let pointers = |texts: &[&CStr]| -> Vec<*const c_char> {
        texts.iter().map(|t| t.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(spec.args), pointers(spec.env));
    let filter = spec.seccomp.unwrap_or_default();
    let filter_count = u16::try_from(filter.len())
        .map_err(|_| SpawnError { step: "filter", source: io::ErrorKind::InvalidInput.into() })?;
    let mut plan = Plan {
        program: spec.program.as_ptr(),
        args: args.as_ptr(),
        env: env.as_ptr(),
        files: spec.files.map(|f| f.as_raw_fd()),
        limits: spec.limits,
        landlock: spec.landlock.map_or(-1, |f| f.as_raw_fd()),
        // The two structures have the kernel's layout (`struct sock_filter`, linux/filter.h); the
        // kernel only reads.
        seccomp: libc::sock_fprog {
            len: filter_count,
            filter: filter.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        },
        signals: all_signals(),
        failure: None,
    };
    let child = clone_vfork(&mut plan)?;
    match plan.failure {
        None => Ok(child),
        Some((step, errno)) => {
            reap(&child);
            Err(SpawnError { step, source: io::Error::from_raw_os_error(errno) })
        }
    }
}

/// Collects a process that has ended or is about to.
pub(super) fn reap(child: &Child) -> Option<rustix::process::WaitIdStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED))
        .ok()
        .flatten()
}

fn all_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is writable; `sigfillset` writes all of it and cannot fail for a valid pointer.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: the call above has written it.
    unsafe { set.assume_init() }
}

/// Makes the child and sleeps until it has become the program or has failed.
fn clone_vfork(plan: &mut Plan<'_>) -> Result<Child, SpawnError> {
    let mut stack: Vec<MaybeUninit<u128>> = vec![MaybeUninit::uninit(); STACK_UNITS];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // A handler of the server must not run in the child: it would run in the server's memory.
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both pointers are valid for their sets.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &plan.signals, before.as_mut_ptr()) };
    // SAFETY: `stack` outlives the child's use of it, since this thread sleeps until the child has
    // left it; `top` is 16-byte aligned because units are; `plan` is valid and used by nobody else
    // meanwhile; `pidfd` is where CLONE_PIDFD stores a descriptor. `enter` keeps the rules of a
    // child that borrows memory: system calls only.
    let pid = unsafe {
        libc::clone(enter, top, flags, ptr::from_mut(plan).cast(), ptr::from_mut(&mut pidfd))
    };
    let error = io::Error::last_os_error();
    // SAFETY: the first call stored the mask, and cannot have failed with a valid `how`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    drop(stack);
    match Pid::from_raw(pid) {
        Some(pid) if pid.as_raw_nonzero().get() > 0 => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
        _ => Err(SpawnError { step: "clone", source: error }),
    }
}

/// The child's first and, if all goes well, only function.
extern "C" fn enter(plan: *mut c_void) -> c_int {
    // SAFETY: `clone_vfork` passes a valid `Plan` that nobody else uses while its thread sleeps.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.failure = become_program(plan).err();
    127
}

type Step = Result<(), (&'static str, c_int)>;

fn step(name: &'static str, result: c_long) -> Step {
    if result == -1 {
        // Reads `errno` and keeps the number: no allocation.
        return Err((name, io::Error::last_os_error().raw_os_error().unwrap_or(0)));
    }
    Ok(())
}

fn become_program(plan: &Plan<'_>) -> Step {
    // SAFETY: (0, 0) makes this process the leader of a new group; no pointers.
    step("process group", unsafe { libc::setpgid(0, 0) }.into())?;
    let kill = libc::c_ulong::from(libc::SIGKILL.unsigned_abs());
    // SAFETY: no pointers.
    step("death signal", unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill) }.into())?;
    // SAFETY: a literal path.
    step("directory", unsafe { libc::chdir(c"/".as_ptr()) }.into())?;
    default_signals(plan)?;
    for (target, &file) in (0..).zip(&plan.files) {
        // SAFETY: both are plain numbers; `target` is one of 0, 1, 2.
        step("standard files", unsafe { libc::dup2(file, target) }.into())?;
    }
    // All descriptors of the server close on exec by themselves; this is for those that a library
    // opened carelessly. Kernels before 5.11 have no such call.
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for limit in plan.limits {
        let value = libc::rlimit { rlim_cur: limit.value, rlim_max: limit.value };
        // SAFETY: `value` is valid.
        step("resource limit", unsafe { libc::setrlimit(limit.resource, &value) }.into())?;
    }
    give_up_rights(plan)?;
    // SAFETY: three null-terminated arrays and strings of the parent, made by `spawn`.
    step("start program", unsafe { libc::execve(plan.program, plan.args, plan.env) }.into())
}

/// Undoes what the server's runtime set: SIGPIPE ignored, and the mask of `clone_vfork`.
fn default_signals(plan: &Plan<'_>) -> Step {
    // SAFETY: the default action needs no handler. The child has its own table of actions.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: the set is valid. Handlers of the server cannot run here in the few calls left: only
    // a signal sent to this very process could start one, and nobody knows its number yet.
    let result = unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &plan.signals, ptr::null_mut()) };
    step("signal mask", result.into())
}

fn give_up_rights(plan: &Plan<'_>) -> Step {
    // If the server runs as root, so does the program, but with root's powers out of its reach. The
    // first failure ends it: either the server has no powers, or there are no more of them.
    for capability in 0..64_u64 {
        // SAFETY: no pointers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) } == -1 {
            break;
        }
    }
    // SAFETY: no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) };
    step("no new privileges", result.into())?;
    if plan.landlock >= 0 {
        // SAFETY: no pointers.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, plan.landlock, 0) };
        step("landlock", result)?;
    }
    if plan.seccomp.len > 0 {
        // SAFETY: the program is valid for its length and outlives the call.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &plan.seccomp)
        };
        step("seccomp", result)?;
    }
    Ok(())
}

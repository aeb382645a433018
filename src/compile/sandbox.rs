//! Running a compiler that must be assumed to work for an attacker.
//!
//! What the process can do: read libraries, read its source, write its object and its messages into
//! memory that has no name, and use bounded memory and time. It has no directory to write to, no
//! network, no environment, no other process to signal or trace, and can start no program but the
//! ones it is made of. Only a GPU compiler that cannot do without gets a directory, of its own and
//! for one run.
//!
//! What is not kept from it: whether a path exists (landlock tells "denied" from "missing"), which
//! is why `source` refuses what could ask.
//!
//! The number of processes is not limited: the kernel counts them by user, the server's own threads
//! among them. All that a program starts ends with it, at the latest at the time limit.
//!
//! Landlock and seccomp are used where the kernel has them. [`Status`] says whether it does. The
//! limits of resources and time, the empty environment and the loss of root's powers always hold.

use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::process::{Signal, kill_process_group};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::spawn::{self, Child, Limit, SpawnError, Spec};

/// Descriptors of one compiler process. gcc's assembler needs the most: about ten.
const FILES_MAX: u64 = 64;

/// Calls that compiling never needs: the network, other processes, namespaces, the machine's own
/// settings, and what landlock lets pass (owners, modes and times of files). Without signals a
/// program still aborts: the C library then runs into a forbidden instruction.
const CALLS_DENIED: [libc::c_long; 94] = [
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bind,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_clone3,
    libc::SYS_connect,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_finit_module,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_futimesat,
    libc::SYS_init_module,
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_kill,
    libc::SYS_lchown,
    libc::SYS_listen,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_mq_open,
    libc::SYS_msgget,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_removexattr,
    libc::SYS_request_key,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_semget,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_settimeofday,
    libc::SYS_setxattr,
    libc::SYS_shmget,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_utime,
    libc::SYS_utimensat,
    libc::SYS_utimes,
    libc::SYS_vmsplice,
];

/// Calls that make processes. clang compiles in one process and is denied them too.
const CALLS_OF_PROCESSES: [libc::c_long; 3] = [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork];

/// Flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: [c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The bit that marks a call of the x32 interface. Those have numbers of their own, which a list of
/// numbers would miss.
const X32_BIT: u32 = 0x4000_0000;

/// Which walls of the sandbox this kernel provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Version of landlock's interface; `None` where the kernel has no landlock or it is disabled.
    pub landlock_abi: Option<i32>,
    pub seccomp: bool,
}

impl Status {
    /// Asks the kernel.
    #[must_use]
    pub fn of_this_kernel() -> Status {
        /// `LANDLOCK_CREATE_RULESET_VERSION` of the kernel's headers.
        const RULESET_VERSION: c_int = 1;
        // SAFETY: with this flag the call takes no attributes and only returns a number.
        let abi = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, 0_usize, 0_usize, RULESET_VERSION)
        };
        let action = libc::SECCOMP_RET_ERRNO;
        // SAFETY: `action` is a valid 32-bit number that the kernel reads.
        let seccomp = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
        };
        Status {
            landlock_abi: i32::try_from(abi).ok().filter(|&abi| abi > 0),
            seccomp: seccomp == 0,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock_abi {
            Some(abi) => write!(f, "landlock (ABI {abi}), ")?,
            None => f.write_str("NO landlock (kernel 5.13 or later, `lsm=landlock,..`), ")?,
        }
        f.write_str(if self.seccomp { "seccomp" } else { "NO seccomp" })?;
        f.write_str(", resource limits")
    }
}

/// What a sandboxed program may make besides its first thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processes {
    None,
    Threads,
    /// Processes too.
    Children,
}

/// What a sandboxed program may use.
pub(super) struct Rights {
    /// Directories and files it may read.
    pub(super) read: Vec<PathBuf>,
    /// Programs it may start, the first one included.
    pub(super) execute: Vec<PathBuf>,
    /// Directories in which it may make files.
    pub(super) write: Vec<PathBuf>,
    pub(super) processes: Processes,
    pub(super) memory_bytes_max: u64,
    pub(super) cpu_seconds_max: u64,
    /// Bytes of its output, and of its messages.
    pub(super) output_bytes_max: u64,
    pub(super) time_max: Duration,
}

/// Prepared walls, for any number of runs.
#[derive(Debug)]
pub(super) struct Sandbox {
    landlock: Option<OwnedFd>,
    seccomp: Option<BpfProgram>,
    limits: Vec<Limit>,
    output_bytes_max: u64,
    time_max: Duration,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exit(i32),
    Signal(i32),
    /// Killed for running past the time limit.
    Timeout,
}

/// A program that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) end: End,
    pub(super) output: Vec<u8>,
    pub(super) messages: Vec<u8>,
}

/// What kept a program from being run.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("memory for input and output: {0}")]
    File(#[from] rustix::io::Errno),
    #[error("input and output: {0}")]
    Io(#[from] io::Error),
    #[error("landlock rules: {0}")]
    Landlock(#[from] RulesetError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl Sandbox {
    pub(super) fn new(rights: &Rights) -> Result<Sandbox, SandboxError> {
        let status = Status::of_this_kernel();
        let limits = [
            (libc::RLIMIT_AS, rights.memory_bytes_max),
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_CPU, rights.cpu_seconds_max),
            (libc::RLIMIT_FSIZE, rights.output_bytes_max),
            (libc::RLIMIT_MEMLOCK, 0),
            (libc::RLIMIT_NOFILE, FILES_MAX),
        ];
        Ok(Sandbox {
            landlock: status.landlock_abi.map(|_| ruleset(rights)).transpose()?.flatten(),
            seccomp: status.seccomp.then(|| filter(rights.processes)),
            limits: limits.map(|(resource, value)| clamped(resource, value)).to_vec(),
            output_bytes_max: rights.output_bytes_max,
            time_max: rights.time_max,
        })
    }

    /// Runs a program with `input` as its standard input, to its end or the time limit. Blocks.
    pub(super) fn run(
        &self,
        program: &CStr,
        args: &[CString],
        env: &[&CStr],
        input: &[u8],
    ) -> Result<Finished, SandboxError> {
        let files = [memory_file(c"input")?, memory_file(c"output")?, memory_file(c"messages")?];
        (&files[0]).write_all(input)?;
        rustix::fs::seek(&files[0], SeekFrom::Start(0))?;
        let args: Vec<&CStr> = [program].into_iter().chain(args.iter().map(|a| &**a)).collect();
        let started = Instant::now();
        let child = spawn::spawn(&Spec {
            program,
            args: &args,
            env,
            files: [files[0].as_fd(), files[1].as_fd(), files[2].as_fd()],
            limits: &self.limits,
            landlock: self.landlock.as_ref().map(AsFd::as_fd),
            seccomp: self.seccomp.as_deref(),
        })?;
        let end = wait(&child, started, self.time_max);
        Ok(Finished {
            end,
            output: read_back(&files[1], self.output_bytes_max)?,
            messages: read_back(&files[2], self.output_bytes_max)?,
        })
    }
}

/// The limit, or the stricter one that this process already has.
fn clamped(resource: libc::__rlimit_resource_t, value: u64) -> Limit {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `now` is valid; if the call fails it keeps the value above.
    unsafe { libc::getrlimit(resource, &raw mut now) };
    Limit { resource, value: value.min(now.rlim_max) }
}

/// Memory with a descriptor and no name, whose number is above the standard three.
fn memory_file(name: &CStr) -> rustix::io::Result<File> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, 3)?.into())
}

fn read_back(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len().min(bytes_max);
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut content = vec![0; bytes];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Waits for the end, and sees to it that nothing of the process's group lives on.
fn wait(child: &Child, started: Instant, time_max: Duration) -> End {
    let timed_out = loop {
        let left = time_max.saturating_sub(started.elapsed());
        if left.is_zero() {
            break true;
        }
        let timeout = Timespec::try_from(left).ok();
        let ended = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], timeout.as_ref());
        if ended.is_ok_and(|count| count > 0) {
            break false;
        }
    };
    // The leader is not reaped yet, so its number still names this group and no other. A failure
    // means that the group is empty.
    let _ = kill_process_group(child.pid, Signal::KILL);
    let status = spawn::reap(child);
    match status.map(|s| (s.exit_status(), s.terminating_signal())) {
        _ if timed_out => End::Timeout,
        Some((Some(code), _)) => End::Exit(code),
        Some((None, Some(signal))) => End::Signal(signal),
        // Somebody else reaped it, or the status is of an unknown kind: no way to call it success.
        Some((None, None)) | None => End::Exit(-1),
    }
}

/// The landlock rules; `None` where the kernel turns out to have no landlock.
fn ruleset(rights: &Rights) -> Result<Option<OwnedFd>, RulesetError> {
    let abi = ABI::V7;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    let read = rights.read.iter().map(|path| (path, AccessFs::ReadFile | AccessFs::ReadDir));
    let execute = rights.execute.iter().map(|path| (path, AccessFs::ReadFile | AccessFs::Execute));
    let write = rights.write.iter().map(|path| (path, files_of_its_own()));
    for (path, access) in read.chain(execute).chain(write) {
        // What is missing needs no rule: not every system has `/lib64`.
        let Ok(target) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(abi) };
        rules = rules.add_rule(PathBeneath::new(target, access))?;
    }
    Ok(rules.into())
}

/// What a program may do in a directory that is its own: files and directories, nothing special.
pub(super) fn files_of_its_own() -> BitFlags<AccessFs> {
    AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::ReadDir
        | AccessFs::ReadFile
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::Truncate
        | AccessFs::WriteFile
}

/// The seccomp filter. Denied calls answer "no such call", which programs know how to live with.
fn filter(processes: Processes) -> BpfProgram {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        CALLS_DENIED.iter().map(|&call| (call, Vec::new())).collect();
    if processes != Processes::Children {
        rules.extend(CALLS_OF_PROCESSES.iter().map(|&call| (call, Vec::new())));
    }
    if processes != Processes::None {
        let mut denied: Vec<_> = NAMESPACE_FLAGS.iter().map(|&flag| flag_is(flag, true)).collect();
        if processes == Processes::Threads {
            denied.push(flag_is(libc::CLONE_THREAD, false));
        }
        rules.insert(libc::SYS_clone, denied);
    }
    let denied = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, denied.clone(), TargetArch::x86_64);
    let filter = filter.and_then(BpfProgram::try_from).expect("a fixed list of rules is valid");
    // Denies x32 calls first: load the number; if it is at or above the bit, answer; else go on.
    let instruction = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    [
        instruction(0x20, 0, 0),       // BPF_LD | BPF_W | BPF_ABS, offset of `nr`
        instruction(0x35, 1, X32_BIT), // BPF_JMP | BPF_JGE | BPF_K
        instruction(0x06, 0, u32::from(denied)), // BPF_RET | BPF_K
    ]
    .into_iter()
    .chain(filter)
    .collect()
}

/// Matches a first argument that has this bit, or one that has it not.
fn flag_is(flag: c_int, set: bool) -> SeccompRule {
    let flag = u64::from(flag.unsigned_abs());
    let value = if set { flag } else { 0 };
    let condition =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), value);
    let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
    rule.expect("argument 0 exists, and one condition is enough")
}

#[cfg(test)]
mod tests;

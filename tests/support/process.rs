//! A child process with a time limit, which takes its own children with it.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// A child that leads its own process group.
pub(crate) struct Process {
    child: Child,
    handle: OwnedFd,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` in a process group of its own.
    pub(crate) fn spawn(command: &mut Command) -> Process {
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let handle = handle.expect("a child that was not waited for has a handle");
        Process { child, handle, ended: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The reading end, if standard output was piped and not yet taken.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Signals the process itself; one that has ended is left alone.
    pub(crate) fn signal(&self, signal: Signal) {
        // The only failure left is that it has ended.
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// How it ended, or `None` if it still runs after `limit`. Ends what it has left behind in its
    /// group.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let limit = Timespec::try_from(limit).expect("limits are minutes");
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        let ready = poll(&mut ended, Some(&limit)).expect("a process handle can be polled");
        (ready == 1).then(|| self.kill())
    }

    /// Kills it with its group and returns how it ended; one that has ended keeps its own status.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        // Not yet waited for, so the number still names this group; it fails if nobody is left.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let status = self.child.wait().expect("a child can be waited for");
        self.ended = Some(status);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

//! Worker processes: started, killed and reaped.
//!
//! Owns: one thread for the whole server, started with the first worker, which does what could
//! make a shard wait: it starts processes and sees them end. Worker processes die with their
//! parent *thread*, so that this thread lives as long as the server is part of the design.
//!
//! Absent: what workers do (`worker`), what their end means for a session (`link`).
//!
//! The order at a worker's end is fixed: it is reaped, its exit becomes known, its timeline ends,
//! and then the last copy of its end of the socket closes. So whoever reads the end of the socket
//! finds the reason known, and nobody who waits for its timeline sees it move again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, epoll};
use rustix::net::{RecvFlags, Shutdown};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::DeviceError;
use super::budget::Account;
use super::shared::SharedFile;
use super::timeline::{ENDED, Words};
use crate::config::CoreLimits;
use crate::cores;

/// What to start, and what to do at its end.
pub(super) struct Start {
    pub(super) exe: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// The worker's end of the socket, which becomes its standard input.
    pub(super) socket: OwnedFd,
    /// The timeline that ends with the worker.
    pub(super) timeline: Arc<SharedFile>,
    /// What the worker has of a device's memory, until its end.
    pub(super) account: Option<Arc<Account>>,
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) enum Exit {
    Ended(ExitStatus),
    /// It was never started, or somebody else reaped it.
    Unknown(String),
}

fn unknown(what: &str, error: &io::Error) -> Exit {
    Exit::Unknown(format!("cannot {what} worker: {error}"))
}

/// A worker process. Killed when dropped.
pub(super) struct Process {
    id: u64,
    exit: Arc<OnceLock<Exit>>,
    supervisor: &'static Supervisor,
}

impl Process {
    /// Starts a worker some time soon.
    pub(super) fn start(start: Start) -> Result<Process, DeviceError> {
        static LAST: AtomicU64 = AtomicU64::new(WAKE);
        let supervisor = supervisor()?;
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let exit = Arc::new(OnceLock::new());
        let known = Arc::clone(&exit);
        supervisor.order(Order::Start { id, start: Box::new(start), exit: known });
        Ok(Process { id, exit, supervisor })
    }

    pub(super) fn kill(&self) {
        self.supervisor.order(Order::Kill(self.id));
    }

    /// How the process ended, once it has been reaped.
    pub(super) fn exit(&self) -> Option<&Exit> {
        self.exit.get()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.get().is_none() {
            self.kill();
        }
    }
}

enum Order {
    Kill(u64),
    Start { id: u64, start: Box<Start>, exit: Arc<OnceLock<Exit>> },
}

/// The way to the thread.
struct Supervisor {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Supervisor {
    fn order(&self, order: Order) {
        self.orders.send(order).expect("the thread of the processes runs as long as the server");
        // A full counter means that the thread has yet to wake for earlier orders.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

fn supervisor() -> Result<&'static Supervisor, DeviceError> {
    static SUPERVISOR: OnceLock<Result<Supervisor, String>> = OnceLock::new();
    let started = SUPERVISOR.get_or_init(|| start_supervisor().map_err(|e| e.to_string()));
    let failed = |why: &String| DeviceError::Failed { what: "processes", why: why.clone() };
    started.as_ref().map_err(failed)
}

fn start_supervisor() -> io::Result<Supervisor> {
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&events, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
    let wake = Arc::new(wake);
    let (orders, receiver) = mpsc::channel();
    let workers =
        Workers { events, wake: Arc::clone(&wake), orders: receiver, alive: HashMap::new() };
    let name = "outboard-processes".to_owned();
    let run = move || {
        // Workers inherit the cores of this thread, its turns, and that it steps back.
        cores::spread();
        cores::step_back(CoreLimits::WORKER_NICE);
        cores::take_turns(CoreLimits::WORKER_TURN);
        workers.run();
    };
    std::thread::Builder::new().name(name).spawn(run)?;
    Ok(Supervisor { orders, wake })
}

/// The number of the wake-up descriptor among the events; workers' numbers are above.
const WAKE: u64 = 0;

/// The thread's state.
struct Workers {
    events: OwnedFd,
    wake: Arc<OwnedFd>,
    orders: Receiver<Order>,
    alive: HashMap<u64, Worker>,
}

/// A worker that has not been reaped.
struct Worker {
    child: Child,
    pidfd: OwnedFd,
    ending: Ending,
}

/// What happens when a worker is gone.
struct Ending {
    exit: Arc<OnceLock<Exit>>,
    timeline: Arc<SharedFile>,
    socket: OwnedFd,
    account: Option<Arc<Account>>,
}

impl Ending {
    fn announce(self, exit: Exit) {
        // Whoever knows of the end finds the memory free.
        if let Some(account) = &self.account {
            account.close();
        }
        drop(self.exit.set(exit));
        Words::of(self.timeline.mapping()).set(ENDED);
        // Emptied first: closing a socket with unread bytes resets the other end, which would read
        // an error instead of the end. After the shutdown nothing more comes in.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        while matches!(
            rustix::net::recv(&self.socket, &mut [0; 64], RecvFlags::DONTWAIT),
            Ok((1.., _))
        ) {}
    }
}

impl Workers {
    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.events, buffer, None).is_err() {
                continue;
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => self.obey(),
                    id => self.reap(id),
                }
            }
        }
    }

    fn obey(&mut self) {
        // Emptied before the orders are taken: an order after that wakes the thread once more.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Kill(id) => self.kill(id),
                Order::Start { id, start, exit } => self.start(id, *start, exit),
            }
        }
    }

    fn start(&mut self, id: u64, start: Start, exit: Arc<OnceLock<Exit>>) {
        let Start { exe, arguments, environment, socket, timeline, account } = start;
        let ending = Ending { exit, timeline, socket, account };
        let mut command = Command::new(exe);
        command.args(arguments).env_clear().envs(environment);
        match self.spawn(id, command, &ending.socket) {
            Ok((child, pidfd)) => drop(self.alive.insert(id, Worker { child, pidfd, ending })),
            Err(error) => ending.announce(unknown("start", &error)),
        }
    }

    fn spawn(
        &self,
        id: u64,
        mut command: Command,
        socket: &OwnedFd,
    ) -> io::Result<(Child, OwnedFd)> {
        let mut child = command
            .arg0("outboard-worker")
            .current_dir("/")
            .stdin(socket.try_clone()?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match self.watch(id, &child) {
            Ok(pidfd) => Ok((child, pidfd)),
            Err(error) => {
                // It cannot be watched, so it is ended here; it has had no time to do anything.
                drop(child.kill());
                drop(child.wait());
                Err(error)
            }
        }
    }

    fn watch(&self, id: u64, child: &Child) -> io::Result<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let id = epoll::EventData::new_u64(id);
        epoll::add(&self.events, &pidfd, id, epoll::EventFlags::IN)?;
        Ok(pidfd)
    }

    fn kill(&self, id: u64) {
        if let Some(worker) = self.alive.get(&id) {
            // It fails only where the process has ended by itself.
            let _ = rustix::process::pidfd_send_signal(&worker.pidfd, Signal::KILL);
        }
    }

    fn reap(&mut self, id: u64) {
        let Some(worker) = self.alive.get_mut(&id) else { return };
        let exit = match worker.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => Exit::Ended(status),
            Err(error) => unknown("reap", &error),
        };
        let worker = self.alive.remove(&id).expect("looked up above");
        drop(worker.pidfd);
        worker.ending.announce(exit);
    }
}

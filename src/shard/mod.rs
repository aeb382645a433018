//! Shards: a thread for each core, its sockets, timers and tasks.
//!
//! The only folder that knows glommio. Owns: listeners, connections, waiting, the mesh between
//! shards, start and drain. Absent: what bytes mean (`http`, `wire`) and what commands mean
//! (`engine`).
//!
//! Reading order: this file, `accept`, `connection` (the main path: socket to reply), `input`,
//! `body`, `memory`, `output` (what is sent), `completion` (all waiting), `mesh`,
//! `moving`, `peer` (other servers), `io` (the seam to the sockets), `tls`, `driver` (when the
//! kernel is entered), `fair` (who goes on first), `ring` (how).
//!
//! One shard's state is borrowed in one synchronous call at a time; no borrow lives across an
//! `await`.

mod accept;
mod body;
mod completion;
mod connection;
mod driver;
mod fair;
mod input;
mod io;
mod memory;
mod mesh;
mod moving;
mod output;
mod peer;
mod ring;
#[cfg(test)]
mod tests;
mod tls;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use tracing::info;

use crate::config::{
    CoreLimits, EngineLimits, EnvelopeLimits, HashPolicy, HttpLimits, PeerLimits, RingLimits,
    ShardLimits, WireLimits,
};
use crate::cores::{self, crowd::Crowds};
use crate::device::Platform;
use crate::device::shared::Budget;
use crate::engine::{Directory, Engine, Home, Owner};
use crate::identity::{Access, Peers};
use crate::rdma::DeviceFabric;
use completion::Waits;
use connection::ConnectionEntry;
use driver::Reactor;
use io::{Doorbell, Listener};
use mesh::{Forwarded, Mesh, Message};
use moving::{Nodes, Places};

/// Entries of each of an executor's own rings, which do nothing here. Larger ones cost locked
/// memory; see the README about `LimitMEMLOCK`.
const RING_DEPTH: usize = 128;

/// What a shard is started with; the same for all.
#[derive(Clone)]
pub struct Config {
    pub engine: EngineLimits,
    pub envelope: EnvelopeLimits,
    pub hash: HashPolicy,
    pub http: HttpLimits,
    pub peer: PeerLimits,
    pub ring: RingLimits,
    pub shard: ShardLimits,
    pub wire: WireLimits,
    /// The memory node of each shard's core, as far as it is known.
    pub nodes: Vec<Option<usize>>,
    /// Account of the memory that bodies are received into.
    pub staging: Arc<Budget>,
    /// Where each shard says whom it serves, if others want to know.
    pub crowds: Option<Crowds>,
    /// Who may come, until [`Admission::replace`].
    pub access: Arc<Access>,
    /// The other servers that this one connects to, until [`Admission::replace_peers`].
    pub peers: Arc<Peers>,
    /// Addresses where TLS is not spoken; on the others it is, where `access` has it.
    pub plain: Vec<SocketAddr>,
    /// RDMA, where there is any.
    pub fabric: Option<DeviceFabric>,
    /// Connections by RDMA to one peer.
    pub rdma_queue_pairs: usize,
}

impl Config {
    /// The defaults, for clients of this machine alone.
    #[must_use]
    pub fn new(staging: Arc<Budget>) -> Config {
        Config {
            engine: EngineLimits::default(),
            envelope: EnvelopeLimits::default(),
            hash: HashPolicy::default(),
            http: HttpLimits::default(),
            peer: PeerLimits::default(),
            peers: Arc::new(Peers::of_loopback()),
            ring: RingLimits::default(),
            shard: ShardLimits::default(),
            wire: WireLimits::default(),
            nodes: Vec::new(),
            crowds: None,
            staging,
            access: Arc::default(),
            plain: Vec::new(),
            fabric: None,
            rdma_queue_pairs: 1,
        }
    }
}

/// Makes a shard's view of the accelerators, on the shard's own thread.
pub type PlatformMaker = Arc<dyn Fn() -> Box<dyn Platform> + Send + Sync>;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{address}: {cause}")]
    Address { address: SocketAddr, cause: std::io::Error },
    #[error("cannot make the queues between shards: {0}")]
    Mesh(std::io::Error),
    #[error("cannot start the executor of core {core}: {why}; {remedy}")]
    Executor { core: usize, why: String, remedy: String },
}

/// The state of one shard. Methods are in the files beside this one.
struct Shard {
    /// Who may come.
    access: RefCell<Arc<Access>>,
    /// Wakes this shard from other threads.
    bell: Waker,
    config: Config,
    connections: RefCell<HashMap<Owner, Rc<ConnectionEntry>>>,
    crowds: Crowds,
    draining: Cell<bool>,
    drained: RefCell<Option<Waker>>,
    engine: RefCell<Engine>,
    forwarded: Forwarded,
    home: Home,
    links: peer::Links,
    /// The other servers that this one connects to.
    peers: RefCell<Arc<Peers>>,
    writers: writer::Writers,
    /// Whether a task ends what goes to other servers and was not used for a while.
    has_sweeper: Cell<bool>,
    memory: memory::Queue,
    mesh: Mesh,
    nodes: Nodes,
    places: Places,
    owner_next: Cell<u64>,
    reactor: Rc<Reactor>,
    /// Connections that are being told that there are too many.
    turned_away: Cell<usize>,
    waits: Waits,
}

/// The running shards.
pub struct Server {
    addresses: Vec<SocketAddr>,
    executors: Vec<ExecutorJoinHandle<()>>,
    mesh: Mesh,
}

/// Tells a running server who may come from now on, and where it goes itself. May be used from any
/// thread.
#[derive(Clone)]
pub struct Admission(Mesh);

/// Asks a running server to stop. May be used from any thread.
#[derive(Clone)]
pub struct Drain(Mesh);

impl Server {
    /// Starts a shard on each of `cores`, listening on `addresses`.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound or an executor cannot be made; nothing runs then.
    pub fn start(
        addresses: &[SocketAddr],
        cores: &[usize],
        config: &Config,
        platform: &PlatformMaker,
    ) -> Result<Server, StartError> {
        let (mesh, bells) = Mesh::new(cores.len()).map_err(StartError::Mesh)?;
        let places = Places::new(cores.len(), config.shard.connections_max);
        let is_tls = config.access.tls().is_some();
        let all = addresses.iter().map(|address| (*address, is_tls));
        let all: Vec<_> = all.chain(config.plain.iter().map(|plain| (*plain, false))).collect();
        let (addresses, mut listeners) = listen_all(&all, cores.len())?;
        let directory = Arc::new(Directory::default());
        let crowds = config.crowds.clone().unwrap_or_else(|| Crowds::new(cores));
        let (started, all_started) = mpsc::channel();
        let mut executors = Vec::new();
        for (home, (core, bell)) in cores.iter().zip(bells).enumerate() {
            let start = Start {
                bell,
                config: config.clone(),
                crowds: crowds.clone(),
                directory: Arc::clone(&directory),
                home: Home(home),
                listeners: listeners.pop().unwrap_or_default(),
                mesh: mesh.clone(),
                places: places.clone(),
                platform: Arc::clone(platform),
                started: started.clone(),
            };
            let executor = executor(Placement::Fixed(*core))
                .name(&format!("shard-{home}"))
                .spawn(move || start.run())
                .map_err(|error| refuse(*core, cores.len(), &error.to_string()))?;
            executors.push(executor);
        }
        drop(started);
        for core in cores {
            let started = all_started.recv().unwrap_or_else(|_| Err("it ended at once".to_owned()));
            started.map_err(|why| refuse(*core, cores.len(), &why))?;
        }
        Ok(Server { addresses, executors, mesh })
    }

    /// The addresses that the server listens on, with their real ports.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The way to stop this server.
    #[must_use]
    pub fn drain(&self) -> Drain {
        Drain(self.mesh.clone())
    }

    /// The way to change who may come.
    #[must_use]
    pub fn admission(&self) -> Admission {
        Admission(self.mesh.clone())
    }

    /// Waits until the server has drained.
    pub fn join(self) {
        for executor in self.executors {
            if let Err(error) = executor.join() {
                tracing::error!(%error, "a shard ended badly");
            }
        }
    }
}

impl Drain {
    /// Stops accepting, lets running batches finish, frees everything.
    pub fn begin(&self) {
        self.0.send_to_all(|| Message::Drain);
    }
}

impl Admission {
    /// Decides about all requests from now on, those of connections that are open included.
    pub fn replace(&self, access: &Arc<Access>) {
        self.0.send_to_all(|| Message::Access(Arc::clone(access)));
    }

    /// Decides about what is sent to other servers from now on.
    pub fn replace_peers(&self, peers: &Arc<Peers>) {
        self.0.send_to_all(|| Message::Peers(Arc::clone(peers)));
    }
}

/// An executor as all shards have it. It never parks, since the driver is always runnable, and it
/// never leaves the tasks for its own rings, which nobody uses. If the time for that is over before
/// it comes to the tasks, because its thread had no core for so long, it takes them for none and
/// parks for good: by default that are 100 milliseconds, which happens on a machine that has many
/// other things to do.
fn executor(placement: Placement) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement).ring_depth(RING_DEPTH).preempt_timer(NEVER)
}

/// A time that no server runs.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Whether this machine lets an executor start: what is in the way, and the remedy.
///
/// # Errors
///
/// The kernel's refusal in words, with what to do about it.
pub fn probe() -> Result<(), StartError> {
    let failed = |why: String| refuse(0, 1, &why);
    let executor = executor(Placement::Unbound)
        .spawn(|| async {
            let reactor = Reactor::start(RingLimits::default())?;
            reactor.counted(async { reactor.stop() }).await;
            std::io::Result::Ok(())
        })
        .map_err(|error| failed(error.to_string()))?;
    let ended = executor.join().map_err(|error| failed(error.to_string()))?;
    ended.map_err(|error| failed(error.to_string()))
}

/// A listening socket, and whether TLS is spoken there.
struct Bound {
    listener: OwnedFd,
    is_tls: bool,
}

/// A listening socket for each shard and address. Port 0 is resolved by the first.
fn listen_all(
    addresses: &[(SocketAddr, bool)],
    shards: usize,
) -> Result<(Vec<SocketAddr>, Vec<Vec<Bound>>), StartError> {
    let mut listeners: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut real = Vec::new();
    for (address, is_tls) in addresses {
        let (mut address, is_tls) = (*address, *is_tls);
        io::check_free(address).map_err(|cause| StartError::Address { address, cause })?;
        for listeners in &mut listeners {
            let failed = |cause| StartError::Address { address, cause };
            let listener = io::listen(address).map_err(failed)?;
            address = io::local_address(&listener).map_err(failed)?;
            listeners.push(Bound { listener, is_tls });
        }
        real.push(address);
    }
    Ok((real, listeners))
}

/// Locked memory below which executors were seen to fail: the first needs 512 KiB, and 64 of them
/// started within 8 MiB.
fn memlock_bytes_min(shards: usize) -> u64 {
    (shards as u64 * (128 << 10)).max(512 << 10)
}

/// A refusal by the kernel, with its likely reason.
fn refuse(core: usize, shards: usize, why: &str) -> StartError {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let memlock = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let remedy = if disabled.is_ok_and(|text| text.trim() != "0") {
        "io_uring is switched off: sysctl kernel.io_uring_disabled=0".to_owned()
    } else if let Some(bytes) = memlock.filter(|bytes| *bytes < memlock_bytes_min(shards)) {
        format!(
            "locked memory is limited to {} KiB, too little for {shards} shards: ulimit -l \
             unlimited, LimitMEMLOCK=infinity in the systemd unit, or fewer --shards",
            bytes >> 10
        )
    } else {
        "io_uring may be forbidden by a seccomp filter (containers: allow io_uring_setup, \
         io_uring_enter and io_uring_register), or the core is not in this process's CPU set"
            .to_owned()
    };
    StartError::Executor { core, why: why.to_owned(), remedy }
}

/// What travels to a shard's thread.
struct Start {
    bell: OwnedFd,
    config: Config,
    crowds: Crowds,
    directory: Arc<Directory>,
    home: Home,
    listeners: Vec<Bound>,
    mesh: Mesh,
    places: Places,
    platform: PlatformMaker,
    started: mpsc::Sender<Result<(), String>>,
}

impl Start {
    async fn run(self) {
        cores::take_turns(CoreLimits::SHARD_TURN);
        match Reactor::start(self.config.ring) {
            Ok(reactor) => reactor.counted(self.serve(Rc::clone(&reactor))).await,
            // The starter may have given up already.
            Err(error) => drop(self.started.send(Err(error.to_string()))),
        }
    }

    async fn serve(self, reactor: Rc<Reactor>) {
        let engine = Engine::new((self.platform)(), self.config.engine, self.directory, self.home);
        let engine = match &self.config.fabric {
            Some(fabric) => engine.with_fabric(Box::new(fabric.clone())),
            None => engine,
        };
        let shard = Rc::new(Shard {
            access: RefCell::new(Arc::clone(&self.config.access)),
            bell: self.mesh.waker(self.home),
            connections: RefCell::default(),
            crowds: self.crowds,
            draining: Cell::new(false),
            drained: RefCell::default(),
            engine: RefCell::new(engine),
            forwarded: Forwarded::default(),
            home: self.home,
            links: peer::Links::default(),
            peers: RefCell::new(Arc::clone(&self.config.peers)),
            writers: writer::Writers::default(),
            has_sweeper: Cell::new(false),
            memory: memory::Queue::default(),
            mesh: self.mesh,
            nodes: Nodes::new(&self.config.nodes),
            places: self.places,
            owner_next: Cell::new(0),
            reactor: Rc::clone(&reactor),
            turned_away: Cell::new(0),
            waits: Waits::default(),
            config: self.config,
        });
        let _ticker = reactor.spawn(Rc::clone(&shard).tick_for_ever());
        let bell = Doorbell::new(&reactor, self.bell);
        let _messages = reactor.spawn(Rc::clone(&shard).take_messages(bell));
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|Bound { listener, is_tls }| {
                let listener = Listener::new(&reactor, listener);
                reactor.spawn(Rc::clone(&shard).accept(listener, is_tls))
            })
            .collect();
        // The starter may have given up already; then this shard ends with the process.
        let _ = self.started.send(Ok(()));
        shard.drain_begun().await;
        drop(accepting);
        let patience = reactor.sleep(shard.config.shard.drain_time_max);
        futures_lite::future::or(shard.all_ended(), patience).await;
        let left = shard.connections.borrow().len();
        info!(home = self.home.0, left, "drained");
        reactor.stop();
    }
}

impl Shard {
    fn next_owner(&self) -> Owner {
        let next = self.owner_next.get();
        self.owner_next.set(next + 1);
        Owner::Connection(next)
    }

    /// Notes that there is a request of somebody's.
    fn note_crowd(&self, owner: Owner) {
        self.crowds.note(self.home.0, owner.number(), Instant::now());
    }

    /// Whether somebody else has sent a request just now.
    fn has_crowd(&self, owner: Owner) -> bool {
        let time = self.config.shard.crowd_time;
        self.crowds.has_others(self.home.0, owner.number(), Instant::now(), time)
    }

    fn begin_drain(&self) {
        self.draining.set(true);
        for connection in self.connections.borrow().values() {
            if connection.idle.get() {
                connection.handle.stop_receiving();
            }
        }
        self.wake_drain();
    }

    fn connection_ended(&self) {
        if self.draining.get() {
            self.wake_drain();
        }
    }

    fn wake_drain(&self) {
        if let Some(waker) = self.drained.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn drain_begun(&self) {
        self.until(|| self.draining.get()).await;
    }

    async fn all_ended(&self) {
        self.until(|| self.connections.borrow().is_empty()).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| {
            if condition() {
                return Poll::Ready(());
            }
            *self.drained.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

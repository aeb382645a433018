//! What the engine asks of RDMA.
//!
//! Owns: the traits [`Fabric`] and [`Reach`], the fabric of a real device, with a domain for each
//! identity, and the one of tests, which reaches nothing and counts what is there.
//!
//! An identity has one domain on all shards: a peer has one queue pair for all memory that it may
//! write, wherever the sessions live. Two identities never share one, so no key of one is of any
//! use to a peer that was let in by the other.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use tracing::warn;

use super::promise::{FINDER, Keeper, Promise, REGISTRAR};
use super::{Address, Device, Domain, QueuePair, QueuePairNumber, RdmaError, Registration, Target};
use crate::device::SharedBytes;
use crate::device::export::CardMemory;
use crate::identity::Identity;

/// RDMA, as one shard sees it.
pub trait Fabric {
    /// The address of this machine's end, which clients tell each other's servers.
    fn gid(&self) -> [u8; 16];

    /// Whether the card reaches buffers; else it reaches memory of the server's own alone.
    fn reaches_buffers(&self) -> bool;

    /// What the peers of an identity may reach, which is nothing at first.
    ///
    /// # Errors
    ///
    /// Where the device has no more.
    fn reach(&self, of: Identity) -> Result<Rc<dyn Reach>, RdmaError>;
}

/// What the peers of one identity may reach.
pub trait Reach {
    /// The end of a connection through which the peer can write. Where it cannot be reached, or
    /// the device has no more, the promise says so.
    fn accept(&self, peer: Address) -> Promise<Box<dyn Accepted>>;

    /// Lets peers read and write memory, as long as the promise lives. Where it cannot be pinned
    /// the promise says so.
    fn register(&self, memory: SharedBytes) -> Promise;

    /// The same for memory of an accelerator.
    fn register_device(&self, memory: CardMemory) -> Promise;
}

/// The end of a peer's connection; dropping it ends the connection.
pub trait Accepted: fmt::Debug + Send {
    fn address(&self) -> Address;
}

/// Memory that peers may read and write; dropping it ends that.
pub trait Registered: fmt::Debug + Send {
    fn target(&self) -> Target;

    /// The key by which this side's requests read it.
    fn local_key(&self) -> u32;
}

impl Accepted for QueuePair {
    fn address(&self) -> Address {
        QueuePair::address(self)
    }
}

impl<M: fmt::Debug + Send> Registered for Registration<M> {
    fn target(&self) -> Target {
        Registration::target(self)
    }

    fn local_key(&self) -> u32 {
        Registration::local_key(self)
    }
}

/// A device of this machine, for all shards.
#[derive(Clone, Debug)]
pub struct DeviceFabric {
    device: Arc<Device>,
    /// Domains that something belongs to.
    domains: Arc<Mutex<HashMap<Identity, Weak<Domain>>>>,
    reaches_buffers: bool,
}

impl DeviceFabric {
    #[must_use]
    pub fn new(device: Arc<Device>) -> DeviceFabric {
        DeviceFabric { device, domains: Arc::default(), reaches_buffers: true }
    }

    /// Says that the card does not reach buffers.
    pub fn reach_no_buffers(&mut self) {
        self.reaches_buffers = false;
    }

    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tries whether the card can be told of an accelerator's memory.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    pub fn try_device_memory(&self, sample: &CardMemory) -> Result<(), RdmaError> {
        Domain::new(&self.device)?.register_device(sample).map(drop)
    }

    /// What belongs to an identity, on all shards.
    ///
    /// # Errors
    ///
    /// Where the device has no more.
    pub fn domain(&self, of: Identity) -> Result<Arc<Domain>, RdmaError> {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = domains.get(&of).and_then(Weak::upgrade) {
            return Ok(domain);
        }
        let domain = Domain::new(&self.device)?;
        domains.retain(|_, domain| domain.strong_count() > 0);
        domains.insert(of, Arc::downgrade(&domain));
        Ok(domain)
    }
}

impl Fabric for DeviceFabric {
    fn gid(&self) -> [u8; 16] {
        self.device.chosen().gid.raw
    }

    fn reaches_buffers(&self) -> bool {
        self.reaches_buffers
    }

    fn reach(&self, of: Identity) -> Result<Rc<dyn Reach>, RdmaError> {
        Ok(Rc::new(self.domain(of)?))
    }
}

impl Reach for Arc<Domain> {
    fn accept(&self, peer: Address) -> Promise<Box<dyn Accepted>> {
        let domain = Arc::clone(self);
        FINDER.promise(move || {
            let mut pair = QueuePair::passive(&domain)?;
            pair.connect(peer)?;
            Ok(Box::new(pair) as Box<dyn Accepted>)
        })
    }

    fn register(&self, memory: SharedBytes) -> Promise {
        let domain = Arc::clone(self);
        REGISTRAR.promise(move || Ok(Box::new(domain.register(memory)?) as Box<dyn Registered>))
    }

    fn register_device(&self, memory: CardMemory) -> Promise {
        /// The first that is refused is said aloud: what is done instead is slower.
        static REFUSED: Once = Once::new();
        let domain = Arc::clone(self);
        REGISTRAR.promise(move || match domain.register_device(&memory) {
            Ok(registered) => Ok(Box::new(registered) as Box<dyn Registered>),
            Err(error) => {
                REFUSED.call_once(
                    || warn!(%error, "such memory is copied by way of the server's own"),
                );
                Err(error)
            }
        })
    }
}

/// Peers that are to be let in.
type Peers = Vec<Keeper<Box<dyn Accepted>>>;

/// A fabric that reaches nothing, for tests: it counts what is there.
#[derive(Clone, Debug, Default)]
pub struct NullFabric(Rc<NullState>);

#[derive(Debug, Default)]
struct NullState {
    accepted: Arc<AtomicU32>,
    made: Cell<u32>,
    refuses: Cell<bool>,
    reaches_no_buffers: Cell<bool>,
    registered: Arc<AtomicU32>,
    /// Promises that are not kept yet, while they are held.
    held: RefCell<Option<VecDeque<(Keeper, SharedBytes)>>>,
    held_peers: RefCell<Option<Peers>>,
}

impl NullFabric {
    /// Connections of peers that are there.
    #[must_use]
    pub fn accepted(&self) -> u32 {
        self.0.accepted.load(Ordering::Relaxed)
    }

    /// Registrations that are there.
    #[must_use]
    pub fn registered(&self) -> u32 {
        self.0.registered.load(Ordering::Relaxed)
    }

    /// Has it refuse to pin memory and to let peers in from now on.
    pub fn refuse(&self) {
        self.0.refuses.set(true);
    }

    /// Has it reach memory of the server's own alone.
    pub fn reach_no_buffers(&self) {
        self.0.reaches_no_buffers.set(true);
    }

    /// Has registrations and peers wait from now on, until [`Self::release`].
    pub fn hold(&self) {
        self.0.held.replace(Some(VecDeque::new()));
        self.0.held_peers.replace(Some(Vec::new()));
    }

    /// Keeps all promises that wait.
    pub fn release(&self) {
        for (keeper, memory) in self.0.held.take().into_iter().flatten() {
            keeper.keep(self.registration(memory.bytes()));
        }
        for keeper in self.0.held_peers.take().into_iter().flatten() {
            keeper.keep(self.accepted_end());
        }
    }

    fn accepted_end(&self) -> Result<Box<dyn Accepted>, RdmaError> {
        if self.0.refuses.get() {
            let why = "this fabric was told to".to_owned();
            return Err(RdmaError::Call { call: "accept", why });
        }
        let queue_pair = QueuePairNumber::new(u64::from(self.number()))?;
        let address = Address { gid: self.gid(), queue_pair };
        Ok(Box::new(NullAccepted { address, _counted: Counted::new(&self.0.accepted) }))
    }

    fn registration(&self, bytes: u64) -> Result<Box<dyn Registered>, RdmaError> {
        if self.0.refuses.get() {
            return Err(RdmaError::Locked { bytes, why: "this fabric was told to".to_owned() });
        }
        let key = self.number();
        let target = Target { iova: u64::from(key) << 32, key, bytes };
        let counted = Counted::new(&self.0.registered);
        Ok(Box::new(NullRegistered { target, _counted: counted }))
    }

    /// A number that was not used before.
    fn number(&self) -> u32 {
        self.0.made.set(self.0.made.get() + 1);
        self.0.made.get()
    }
}

impl Fabric for NullFabric {
    fn gid(&self) -> [u8; 16] {
        *b"nowhere in a net"
    }

    fn reaches_buffers(&self) -> bool {
        !self.0.reaches_no_buffers.get()
    }

    fn reach(&self, _of: Identity) -> Result<Rc<dyn Reach>, RdmaError> {
        Ok(Rc::new(self.clone()))
    }
}

impl Reach for NullFabric {
    fn accept(&self, _peer: Address) -> Promise<Box<dyn Accepted>> {
        let (promise, keeper) = Promise::new();
        match &mut *self.0.held_peers.borrow_mut() {
            Some(held) => held.push(keeper),
            None => keeper.keep(self.accepted_end()),
        }
        promise
    }

    fn register_device(&self, memory: CardMemory) -> Promise {
        let (promise, keeper) = Promise::new();
        keeper.keep(self.registration(memory.bytes()));
        promise
    }

    fn register(&self, memory: SharedBytes) -> Promise {
        let (promise, keeper) = Promise::new();
        match &mut *self.0.held.borrow_mut() {
            Some(held) => held.push_back((keeper, memory)),
            None => keeper.keep(self.registration(memory.bytes())),
        }
        promise
    }
}

#[derive(Debug)]
struct NullAccepted {
    address: Address,
    _counted: Counted,
}

impl Accepted for NullAccepted {
    fn address(&self) -> Address {
        self.address
    }
}

#[derive(Debug)]
struct NullRegistered {
    target: Target,
    _counted: Counted,
}

impl Registered for NullRegistered {
    fn target(&self) -> Target {
        self.target
    }

    fn local_key(&self) -> u32 {
        self.target.key
    }
}

/// One more of something, as long as it lives.
#[derive(Debug)]
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(count: &Arc<AtomicU32>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

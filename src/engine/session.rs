//! The table of sessions: their names, homes, and what each owns.
//!
//! Owns: [`Directory`] (which shard is a session's home, and what each identity has; the one
//! thing that shards share, touched when a session or a connection begins or ends), the sessions of
//! this shard, and what a session remembers of commands that failed.
//!
//! Each identity has a name space of its own. So a key that was guessed or has leaked names nothing
//! for another identity: what it hears is what it would hear of a key that nobody uses.
//!
//! What clients name is found in a [`Map`]: hashed fast, with a key that no client knows, since
//! clients choose the names and share a shard's time.

use std::collections::VecDeque;
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::event::EventState;
use super::graph::GraphState;
use super::program::{ProgramEntry, ProgramKey};
use super::reachable::Reachable;
use super::tenant::Tenant;
use super::{Cause, Engine, Stop, WaitFor};
use crate::config::EngineLimits;
use crate::device::{Device, DeviceError, Fence, Point, Region, shared};
use crate::identity::Identity;
use crate::wire::Stored;
use crate::wire::command::{BufferNumber, Command, EventNumber, GraphNumber, SessionKey};

/// A table of what clients name.
pub(super) type Map<K, V> = hashbrown::HashMap<K, V, ahash::RandomState>;

/// A shard, as the home of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Home(pub usize);

/// Who sends commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A connection of this shard. It owns the sessions that it opens.
    Connection(u64),
    /// Another shard, for one of its connections. It opens none.
    Shard,
}

impl Owner {
    /// As a number that no other connection of this shard has.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Owner::Connection(connection) => connection,
            Owner::Shard => u64::MAX,
        }
    }
}

/// A session of this shard. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Place in the table, which later sessions use again.
    slot: usize,
    /// Counts the sessions of the shard.
    serial: u64,
}

/// A session's whole name.
type Name = (Identity, SessionKey<'static>);

/// The same, borrowed, to look for one.
#[derive(Clone, Copy, Hash)]
struct Wanted<'n, 'k>(Identity, &'n SessionKey<'k>);

impl hashbrown::Equivalent<Name> for Wanted<'_, '_> {
    fn equivalent(&self, (identity, key): &Name) -> bool {
        // A key may be compared with keys of a shorter life.
        let key: &SessionKey<'_> = key;
        self.0 == *identity && self.1 == key
    }
}

/// A key alone, borrowed.
#[derive(Hash)]
struct WantedKey<'n, 'k>(&'n SessionKey<'k>);

impl hashbrown::Equivalent<SessionKey<'static>> for WantedKey<'_, '_> {
    fn equivalent(&self, key: &SessionKey<'static>) -> bool {
        let key: &SessionKey<'_> = key;
        self.0 == key
    }
}

/// What [`Directory::claim`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The session is new, and its identity has as many as it may have.
    Full,
    /// The session is new, and its home is the shard that asked.
    Ours,
    /// The session lives on this shard.
    Theirs(Home),
}

/// Which shard is a session's home, and what the shards know together of each identity.
#[derive(Debug, Default)]
pub struct Directory(Mutex<Homes>);

#[derive(Debug, Default)]
struct Homes {
    homes: Map<Name, Home>,
    /// How many sessions each identity has that has any.
    counts: Map<Identity, usize>,
    tenants: Map<Identity, Arc<Tenant>>,
    /// Whose sessions have a key: one identity's, unless somebody knows another's key.
    owners: Map<SessionKey<'static>, Vec<Identity>>,
}

impl Directory {
    /// Makes `home` the home of the session unless it has one, or its identity has `limit` others.
    fn claim(&self, name: &Name, home: Home, limit: usize) -> Claim {
        let Homes { homes, counts, owners, .. } = &mut *self.lock();
        match homes.get(name) {
            Some(theirs) if *theirs != home => return Claim::Theirs(*theirs),
            Some(_) => return Claim::Ours,
            None if counts.get(&name.0).is_some_and(|count| *count >= limit) => return Claim::Full,
            None => {}
        }
        *counts.entry(name.0).or_default() += 1;
        owners.entry(name.1.clone()).or_default().push(name.0);
        homes.insert(name.clone(), home);
        Claim::Ours
    }

    /// How many sessions there are, on all shards.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.lock().homes.len()
    }

    /// The accounts of an identity, which may have so much memory on all devices.
    fn tenant(&self, identity: Identity, memory_bytes_max: u64) -> Arc<Tenant> {
        let tenants = &mut self.lock().tenants;
        if let Some(tenant) = tenants.get(&identity) {
            return Arc::clone(tenant);
        }
        tenants.retain(|_, tenant| Arc::strong_count(tenant) > 1 || !tenant.is_idle());
        let tenant = Arc::new(Tenant::new(memory_bytes_max));
        tenants.insert(identity, Arc::clone(&tenant));
        tenant
    }

    /// The session's home, if it exists.
    fn find(&self, wanted: Wanted<'_, '_>) -> Option<Home> {
        self.lock().homes.get(&wanted).copied()
    }

    /// Whose session this is, if there is but one of that key.
    fn identity_of(&self, key: &SessionKey<'_>) -> Option<Identity> {
        match self.lock().owners.get(&WantedKey(key))?[..] {
            [identity] => Some(identity),
            _ => None,
        }
    }

    fn forget(&self, name: &Name) {
        let Homes { homes, counts, owners, .. } = &mut *self.lock();
        if homes.remove(name).is_none() {
            return;
        }
        if let Some(identities) = owners.get_mut(&name.1) {
            identities.retain(|identity| *identity != name.0);
            if identities.is_empty() {
                owners.remove(&name.1);
            }
        }
        if let Some(count) = counts.get_mut(&name.0) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&name.0);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Homes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that a failed command should have made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    Buffer(BufferNumber),
    Graph(GraphNumber),
    Program(ProgramKey),
}

/// One session. Fields are dropped in this order: what refers to memory before the device.
pub(super) struct Session {
    id: SessionId,
    name: Name,
    /// The device's ordinal.
    pub(super) index: u64,
    owner: Owner,
    /// Buffers that peers may write by RDMA.
    pub(super) registrations: Map<BufferNumber, Reachable>,
    /// Whether peers may write memory of its device, which has to look for it then.
    pub(super) is_exposed: bool,
    /// The turn in which it was last told to.
    looked: u64,
    pub(super) buffers: Map<BufferNumber, Buffer>,
    pub(super) events: Map<EventNumber, EventState>,
    pub(super) graphs: Map<GraphNumber, Rc<GraphState>>,
    pub(super) programs: Map<ProgramKey, ProgramEntry>,
    /// What failed commands should have made, and why they failed.
    missing: Map<Thing, Rc<Cause>>,
    /// Staging memory that queued copies still read.
    staged: VecDeque<(Fence, Rc<shared::Range>)>,
    /// Up to here other sessions' queues have to do with this one's.
    awaited: Fence,
    completed: Fence,
    lost: Option<DeviceError>,
    device: Option<Box<dyn Device>>,
}

/// What a session's commands name. Borrowed apart from the device, which is changed meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Names<'s> {
    buffers: &'s Map<BufferNumber, Buffer>,
    pub(super) programs: &'s Map<ProgramKey, ProgramEntry>,
    missing: &'s Map<Thing, Rc<Cause>>,
}

impl<'s> Names<'s> {
    pub(super) fn buffer(self, number: BufferNumber) -> Result<&'s Buffer, Cause> {
        match self.buffers.get(&number) {
            Some(buffer) => Ok(buffer),
            None => Err(self.missing_or(&Thing::Buffer(number), "the buffer", || {
                Cause::BufferUnknown { buffer: number.0 }
            })),
        }
    }

    /// The cause why `thing` was not made, if a command failed to make it.
    pub(super) fn missing_or(
        self,
        thing: &Thing,
        what: &'static str,
        unknown: impl FnOnce() -> Cause,
    ) -> Cause {
        match self.missing.get(thing) {
            Some(cause) => Cause::Missing { what, cause: Rc::clone(cause) },
            None => unknown(),
        }
    }
}

impl Session {
    /// Whether `owner` opened it.
    pub(super) fn belongs_to(&self, owner: Owner) -> bool {
        self.owner == owner
    }

    /// Whose it is.
    pub(super) fn identity(&self) -> Identity {
        self.name.0
    }

    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    /// What its device has been given so far, if that is anything.
    pub(super) fn last(&self) -> Option<(SessionId, Fence)> {
        Some((self.id, self.device.as_ref()?.last()))
    }

    /// How the client reaches this server.
    pub(super) fn host(&self) -> &str {
        &self.name.1.host
    }

    pub(super) fn lost(&self) -> Option<&DeviceError> {
        self.lost.as_ref()
    }

    pub(super) fn completed(&self, fence: Fence) -> bool {
        self.completed >= fence
    }

    /// Whether nothing more is to be expected of the work at `fence`.
    pub(super) fn reached(&mut self, fence: Fence, now: Instant) -> bool {
        self.completed(fence) || {
            self.poll(now);
            self.completed(fence) || self.lost.is_some()
        }
    }

    /// Whether to look again at once for `fence`, if it has not been reached.
    pub(super) fn watch(&mut self, fence: Fence, now: Instant) -> bool {
        self.device.as_mut().is_some_and(|device| device.watch(fence, now))
    }

    pub(super) fn arm(&mut self, fence: Fence) {
        if let Some(device) = &mut self.device {
            device.arm(fence);
        }
    }

    /// Looks at the device, frees what it is done with. Returns whether it has work left.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        let Some(device) = &mut self.device else { return false };
        let status = device.poll(now);
        self.completed = status.completed;
        self.lost = status.lost;
        while self.staged.front().is_some_and(|(fence, _)| *fence <= self.completed) {
            self.staged.pop_front();
        }
        if self.lost.is_some() {
            self.staged.clear();
            // A network card would keep memory that nobody accounts for any more.
            self.registrations.clear();
            return false;
        }
        device.last() > self.completed
    }

    /// Whether a graph of this session may copy from that memory.
    pub(super) fn reaches(&self, from: &Region) -> bool {
        self.device.as_ref().is_none_or(|device| device.reaches(from))
    }

    pub(super) fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        self.device.as_mut().map_or(Ok(Duration::ZERO), |device| device.elapsed(fence))
    }

    /// What has to be done before this session can end without another one missing something.
    pub(super) fn awaited(&self) -> Fence {
        self.awaited
    }

    /// A point in the queue for another session's to wait for.
    pub(super) fn signal(&mut self) -> Result<Point, Cause> {
        let device = self.open_device()?;
        let (point, last) = (device.signal()?, device.last());
        self.awaited = last;
        Ok(point)
    }

    /// Has the queue wait for another session's that uses this one's memory. A device whose memory
    /// others do not reach has its part in that.
    pub(super) fn wait_for_reader(&mut self, point: &Point) -> Result<(), Cause> {
        self.awaited = self.open_device()?.wait(point)?;
        Ok(())
    }

    /// Keeps staging memory until the device is past `fence`.
    pub(super) fn keep_staged(&mut self, fence: Fence, range: Rc<shared::Range>) {
        self.staged.push_back((fence, range));
    }

    pub(super) fn doorbell(&self) -> Option<OwnedFd> {
        self.device.as_ref()?.doorbell()?.try_clone_to_owned().ok()
    }

    /// The device, where it is open. For calls that follow a successful [`Engine::device`].
    pub(super) fn open_device(&mut self) -> Result<&mut Box<dyn Device>, Cause> {
        self.device.as_mut().ok_or(Cause::SessionEnded)
    }

    pub(super) fn names(&self) -> Names<'_> {
        let Session { buffers, programs, missing, .. } = self;
        Names { buffers, programs, missing }
    }

    /// The names and the device, where it is open. For calls that follow a successful
    /// [`Engine::device`].
    pub(super) fn split(&mut self) -> Result<(Names<'_>, &mut dyn Device), Cause> {
        let Session { buffers, programs, missing, device, .. } = self;
        let Some(device) = device else { return Err(Cause::SessionEnded) };
        Ok((Names { buffers, programs, missing }, device.as_mut()))
    }

    pub(super) fn buffer(&self, number: BufferNumber) -> Result<&Buffer, Cause> {
        self.names().buffer(number)
    }

    /// See [`Names::missing_or`].
    pub(super) fn missing_or(
        &self,
        thing: &Thing,
        what: &'static str,
        unknown: impl FnOnce() -> Cause,
    ) -> Cause {
        self.names().missing_or(thing, what, unknown)
    }

    /// Forgets that `thing` was not made; whether it was remembered.
    pub(super) fn forget_missing(&mut self, thing: &Thing) -> bool {
        !self.missing.is_empty() && self.missing.remove(thing).is_some()
    }
}

/// The sessions of one shard.
pub(super) struct Sessions {
    directory: Arc<Directory>,
    home: Home,
    ids: Map<Name, SessionId>,
    slots: Vec<Option<Session>>,
    free: Vec<usize>,
    begun: u64,
    opened: Vec<SessionId>,
}

impl Sessions {
    pub(super) fn new(directory: Arc<Directory>, home: Home) -> Sessions {
        Sessions {
            directory,
            home,
            ids: Map::default(),
            slots: Vec::new(),
            free: Vec::new(),
            begun: 0,
            opened: Vec::new(),
        }
    }

    /// The shard on which they live.
    pub(super) fn home(&self) -> Home {
        self.home
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn tenant(&self, identity: Identity, limits: &EngineLimits) -> Arc<Tenant> {
        self.directory.tenant(identity, limits.memory_per_identity_bytes_max)
    }

    fn find(&self, wanted: Wanted<'_, '_>) -> Option<SessionId> {
        self.ids.get(&wanted).copied()
    }

    #[inline]
    pub(super) fn by_id(&self, id: SessionId) -> Option<&Session> {
        self.slots.get(id.slot)?.as_ref().filter(|session| session.id == id)
    }

    #[inline]
    pub(super) fn by_id_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slots.get_mut(id.slot)?.as_mut().filter(|session| session.id == id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slots.iter_mut().flatten()
    }

    pub(super) fn take_opened(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.opened)
    }

    /// Whether there is no such session, on any shard.
    pub(super) fn is_unknown(&self, identity: Identity, key: &SessionKey<'_>) -> bool {
        self.directory.find(Wanted(identity, key)).is_none()
    }

    /// Whose session this is, on whichever shard, if there is but one of that key.
    pub(super) fn identity_of(&self, key: &SessionKey<'_>) -> Option<Identity> {
        self.directory.identity_of(key)
    }

    /// The other shard on which a session lives.
    fn elsewhere(&self, wanted: Wanted<'_, '_>) -> Option<Home> {
        self.directory.find(wanted).filter(|home| *home != self.home)
    }

    fn begin(
        &mut self,
        Wanted(identity, key): Wanted<'_, '_>,
        owner: Owner,
        limit: usize,
    ) -> Result<SessionId, Stop> {
        let name = (identity, key.clone().into_owned());
        match self.directory.claim(&name, self.home, limit) {
            Claim::Full => return Err(Cause::SessionsOfIdentity { limit }.into()),
            Claim::Ours => {}
            Claim::Theirs(home) => return Err(Stop::Forward(home)),
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.begun += 1;
        let id = SessionId { slot, serial: self.begun };
        self.slots[slot] = Some(Session {
            id,
            index: name.1.idx,
            name: name.clone(),
            owner,
            registrations: Map::default(),
            is_exposed: false,
            looked: 0,
            buffers: Map::default(),
            events: Map::default(),
            graphs: Map::default(),
            programs: Map::default(),
            missing: Map::default(),
            staged: VecDeque::new(),
            awaited: Fence::default(),
            completed: Fence::default(),
            lost: None,
            device: None,
        });
        self.ids.insert(name, id);
        Ok(id)
    }

    /// Ends a session and frees all it owns.
    pub(super) fn end(&mut self, id: SessionId) {
        let Some(slot) = self.slots.get_mut(id.slot) else { return };
        if let Some(session) = slot.take_if(|session| session.id == id) {
            self.free.push(id.slot);
            self.ids.remove(&session.name);
            self.directory.forget(&session.name);
        }
    }

    pub(super) fn end_of_owner(&mut self, owner: Owner) {
        let ended = self.slots.iter().flatten().filter(|session| session.owner == owner);
        let ended: Vec<_> = ended.map(|session| session.id).collect();
        ended.into_iter().for_each(|id| self.end(id));
    }

    /// Whether a device is at `fence` already, or within a moment that it is given.
    pub(super) fn linger(&mut self, id: SessionId, fence: Fence, now: Instant) -> bool {
        let Some(session) = self.by_id_mut(id) else { return true };
        if let Some(device) = &mut session.device {
            device.linger(fence);
        }
        session.reached(fence, now)
    }

    pub(super) fn count_of(&self, owner: Owner) -> usize {
        self.slots.iter().flatten().filter(|session| session.owner == owner).count()
    }
}

impl Engine {
    /// The session that a command names. Sessions come into being on first use.
    pub(super) fn session(
        &mut self,
        identity: Identity,
        key: &SessionKey<'_>,
        owner: Owner,
    ) -> Result<SessionId, Stop> {
        let wanted = Wanted(identity, key);
        if let Some(id) = self.sessions.find(wanted) {
            return Ok(id);
        }
        let count = self.platform.device_count();
        if key.idx >= count {
            let name = self.platform.name();
            return Err(Cause::DeviceIndex { index: key.idx, count, name }.into());
        }
        if owner == Owner::Shard {
            return Err(Cause::SessionEnded.into());
        }
        // What lives elsewhere is not opened here, and counts for whoever opened it.
        if let Some(home) = self.sessions.elsewhere(wanted) {
            return Err(Stop::Forward(home));
        }
        let limit = self.limits.sessions_per_connection_max;
        if self.sessions.count_of(owner) >= limit {
            return Err(Cause::Limit { what: "sessions", limit }.into());
        }
        self.sessions.begin(wanted, owner, self.limits.sessions_per_identity_max)
    }

    /// The session that another server names, which opens none: one that `client` has opened, if
    /// that is said.
    pub(super) fn session_for_peer(
        &self,
        identity: Identity,
        key: &SessionKey<'_>,
        client: Option<Owner>,
    ) -> Result<SessionId, Stop> {
        let wanted = Wanted(identity, key);
        let is_clients = |id: &SessionId| {
            client.is_none_or(|client| self.get(*id).is_ok_and(|found| found.owner == client))
        };
        let unknown = Cause::SessionUnknown { index: key.idx };
        match self.sessions.find(wanted) {
            Some(id) => Some(id).filter(is_clients).ok_or(unknown.into()),
            None => match self.sessions.elsewhere(wanted).filter(|_| client.is_none()) {
                Some(home) => Err(Stop::Forward(home)),
                None => Err(unknown.into()),
            },
        }
    }

    /// A session that a command names beside its own, which is `at`: it has to exist, on this
    /// shard, and belongs to the same identity.
    pub(super) fn other_session(
        &self,
        at: SessionId,
        key: &SessionKey<'_>,
    ) -> Result<SessionId, Cause> {
        let wanted = Wanted(self.get(at)?.name.0, key);
        if let Some(id) = self.sessions.find(wanted) {
            return Ok(id);
        }
        match self.sessions.directory.find(wanted) {
            Some(_) => Err(Cause::SessionsApart),
            None => Err(Cause::SessionUnknown { index: key.idx }),
        }
    }

    pub(super) fn get(&self, id: SessionId) -> Result<&Session, Cause> {
        match self.sessions.by_id(id) {
            Some(session) => Ok(session),
            None => Err(Cause::SessionEnded),
        }
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Result<&mut Session, Cause> {
        match self.sessions.by_id_mut(id) {
            Some(session) => Ok(session),
            None => Err(Cause::SessionEnded),
        }
    }

    /// The session with its device open, not lost, and with room in its queue for one call of
    /// each kind. Called before a command has any effect.
    pub(super) fn device(&mut self, id: SessionId) -> Result<&mut Session, Stop> {
        let Sessions { directory, slots, opened, .. } = &mut self.sessions;
        let session = slots.get_mut(id.slot).and_then(Option::as_mut);
        let Some(session) = session.filter(|session| session.id == id) else {
            return Err(Cause::SessionEnded.into());
        };
        if let Some(lost) = &session.lost {
            return Err(lost.clone().into());
        }
        if session.device.is_none() {
            let memory_bytes_max = self.limits.memory_per_identity_bytes_max;
            let tenant = directory.tenant(session.name.0, memory_bytes_max);
            let quota = tenant.quota(self.limits.memory_per_session_bytes_max);
            session.device = Some(self.platform.open_within(session.index, &quota)?);
            opened.push(id);
        }
        if let Some(device) = &mut session.device
            && let Some(fence) = device.backlog()
        {
            return Err(Stop::Retry(WaitFor::Device { session: id, fence }));
        }
        if session.is_exposed && std::mem::replace(&mut session.looked, self.turn) != self.turn {
            session.open_device()?.flush()?;
        }
        Ok(session)
    }

    /// After a failed command: what it should have made is remembered, with the cause, for the
    /// commands that will name it.
    pub(super) fn remember_missing(
        &mut self,
        identity: Identity,
        key: &SessionKey<'_>,
        command: &Stored<'_, '_>,
        cause: &Cause,
    ) {
        let thing = match command {
            Stored::Other(Command::BufferAlloc(c)) => Thing::Buffer(c.buffer),
            Stored::Other(Command::BufferOffset(c)) => Thing::Buffer(c.buffer),
            Stored::Other(Command::GraphAlloc(c)) => Thing::Graph(c.graph),
            Stored::Other(Command::ProgramAlloc(c)) => {
                Thing::Program(ProgramKey { name: (*c.name).into(), source: c.source })
            }
            _ => return,
        };
        let limit = self.limits.missing_max;
        let Some(session) = self.sessions.find(Wanted(identity, key)) else { return };
        let Some(session) = self.sessions.by_id_mut(session) else { return };
        let exists = match &thing {
            Thing::Buffer(number) => session.buffers.contains_key(number),
            Thing::Graph(number) => session.graphs.contains_key(number),
            Thing::Program(key) => session.programs.contains_key(key),
        };
        if !exists && session.missing.len() < limit {
            let cause = match cause {
                Cause::Missing { cause, .. } => Rc::clone(cause),
                other => Rc::new(other.clone()),
            };
            session.missing.insert(thing, cause);
        }
    }
}

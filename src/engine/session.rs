//! The table of sessions: their names, homes, and what each owns.
//!
//! Owns: [`Directory`] (which shard is a session's home; the one thing that shards share, touched
//! when a session begins or ends), the sessions of this shard, and what a session remembers of
//! commands that failed.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::event::EventState;
use super::graph::GraphState;
use super::program::{ProgramEntry, ProgramKey};
use super::{Cause, Engine, Stop, WaitFor};
use crate::device::{Device, DeviceError, Fence, shared};
use crate::wire::command::{BufferNumber, Command, EventNumber, GraphNumber, Request, SessionKey};

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

/// A session of this shard. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

/// What [`Directory::claim`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The session is new, and its home is the shard that asked.
    Ours,
    /// The session lives on this shard.
    Theirs(Home),
}

/// Which shard is a session's home.
#[derive(Debug, Default)]
pub struct Directory(Mutex<HashMap<SessionKey<'static>, Home>>);

impl Directory {
    /// Makes `home` the home of the session unless it has one.
    pub fn claim(&self, key: &SessionKey<'static>, home: Home) -> Claim {
        let mut homes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match homes.get(key) {
            Some(theirs) if *theirs != home => Claim::Theirs(*theirs),
            _ => {
                homes.insert(key.clone(), home);
                Claim::Ours
            }
        }
    }

    /// The session's home, if it exists.
    #[must_use]
    pub fn find(&self, key: &SessionKey<'_>) -> Option<Home> {
        let homes: &HashMap<SessionKey<'_>, Home> =
            &self.0.lock().unwrap_or_else(PoisonError::into_inner);
        homes.get(key).copied()
    }

    fn forget(&self, key: &SessionKey<'static>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
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
    key: SessionKey<'static>,
    /// The device's ordinal.
    pub(super) index: u64,
    owner: Owner,
    pub(super) buffers: HashMap<BufferNumber, Buffer>,
    pub(super) events: HashMap<EventNumber, EventState>,
    pub(super) graphs: HashMap<GraphNumber, Rc<GraphState>>,
    pub(super) programs: HashMap<ProgramKey, ProgramEntry>,
    /// What failed commands should have made, and why they failed.
    missing: HashMap<Thing, Rc<Cause>>,
    /// Staging memory that queued copies still read.
    staged: VecDeque<(Fence, Rc<shared::Range>)>,
    completed: Fence,
    lost: Option<DeviceError>,
    device: Option<Box<dyn Device>>,
}

impl Session {
    /// Whether `owner` opened it.
    pub(super) fn belongs_to(&self, owner: Owner) -> bool {
        self.owner == owner
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
            return false;
        }
        device.last() > self.completed
    }

    pub(super) fn elapsed(&mut self, fence: Fence) -> Duration {
        self.device.as_mut().map_or(Duration::ZERO, |device| device.elapsed(fence))
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

    pub(super) fn buffer(&self, number: BufferNumber) -> Result<&Buffer, Cause> {
        self.buffers.get(&number).ok_or_else(|| {
            self.missing_or(&Thing::Buffer(number), "the buffer", || Cause::BufferUnknown {
                buffer: number.0,
            })
        })
    }

    /// The cause why `thing` was not made, if a command failed to make it.
    pub(super) fn missing_or(
        &self,
        thing: &Thing,
        what: &'static str,
        unknown: impl FnOnce() -> Cause,
    ) -> Cause {
        match self.missing.get(thing) {
            Some(cause) => Cause::Missing { what, cause: Rc::clone(cause) },
            None => unknown(),
        }
    }

    /// Forgets that `thing` was not made; whether it was remembered.
    pub(super) fn forget_missing(&mut self, thing: &Thing) -> bool {
        self.missing.remove(thing).is_some()
    }
}

/// The sessions of one shard.
pub(super) struct Sessions {
    directory: Arc<Directory>,
    home: Home,
    ids: HashMap<SessionKey<'static>, SessionId>,
    sessions: HashMap<SessionId, Session>,
    id_next: u64,
    opened: Vec<SessionId>,
}

impl Sessions {
    pub(super) fn new(directory: Arc<Directory>, home: Home) -> Sessions {
        Sessions {
            directory,
            home,
            ids: HashMap::new(),
            sessions: HashMap::new(),
            id_next: 0,
            opened: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn find(&self, key: &SessionKey<'_>) -> Option<SessionId> {
        // A shared reference to the map may be used with keys of a shorter life.
        let ids: &HashMap<SessionKey<'_>, SessionId> = &self.ids;
        ids.get(key).copied()
    }

    pub(super) fn by_id(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub(super) fn by_id_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.sessions.values_mut()
    }

    pub(super) fn take_opened(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.opened)
    }

    fn begin(&mut self, key: &SessionKey<'_>, owner: Owner) -> Result<SessionId, Home> {
        let key = key.clone().into_owned();
        if let Claim::Theirs(home) = self.directory.claim(&key, self.home) {
            return Err(home);
        }
        let id = SessionId(self.id_next);
        self.id_next += 1;
        let session = Session {
            key: key.clone(),
            index: key.idx,
            owner,
            buffers: HashMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            programs: HashMap::new(),
            missing: HashMap::new(),
            staged: VecDeque::new(),
            completed: Fence::default(),
            lost: None,
            device: None,
        };
        self.sessions.insert(id, session);
        self.ids.insert(key, id);
        Ok(id)
    }

    /// Ends a session and frees all it owns.
    pub(super) fn end(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            self.ids.remove(&session.key);
            self.directory.forget(&session.key);
        }
    }

    pub(super) fn end_of_owner(&mut self, owner: Owner) {
        let ids: Vec<_> =
            self.sessions.iter().filter(|(_, s)| s.owner == owner).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.end(id));
    }

    fn count_of(&self, owner: Owner) -> usize {
        self.sessions.values().filter(|s| s.owner == owner).count()
    }
}

impl Engine {
    /// The session that a command names. Sessions come into being on first use.
    pub(super) fn session(
        &mut self,
        key: &SessionKey<'_>,
        owner: Owner,
    ) -> Result<SessionId, Stop> {
        if let Some(id) = self.sessions.find(key) {
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
        let limit = self.limits.sessions_per_connection_max;
        if self.sessions.count_of(owner) >= limit {
            return Err(Cause::Limit { what: "sessions", limit }.into());
        }
        self.sessions.begin(key, owner).map_err(Stop::Forward)
    }

    /// A session that a command names beside its own: it has to exist, on this shard.
    pub(super) fn other_session(&self, key: &SessionKey<'_>) -> Result<SessionId, Cause> {
        if let Some(id) = self.sessions.find(key) {
            return Ok(id);
        }
        match self.sessions.directory.find(key) {
            Some(_) => Err(Cause::SessionsApart),
            None => Err(Cause::SessionUnknown { index: key.idx }),
        }
    }

    pub(super) fn get(&self, id: SessionId) -> Result<&Session, Cause> {
        self.sessions.by_id(id).ok_or(Cause::SessionEnded)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Result<&mut Session, Cause> {
        self.sessions.by_id_mut(id).ok_or(Cause::SessionEnded)
    }

    /// The session with its device open, not lost, and with room in its queue for one call of
    /// each kind. Called before a command has any effect.
    pub(super) fn device(&mut self, id: SessionId) -> Result<&mut Session, Stop> {
        let session = self.sessions.sessions.get_mut(&id).ok_or(Cause::SessionEnded)?;
        if let Some(lost) = &session.lost {
            return Err(lost.clone().into());
        }
        if session.device.is_none() {
            session.device = Some(self.platform.open(session.index)?);
            self.sessions.opened.push(id);
        }
        if let Some(device) = &mut session.device
            && let Some(fence) = device.backlog()
        {
            return Err(Stop::Retry(WaitFor::Device { session: id, fence }));
        }
        Ok(session)
    }

    /// After a failed command: what it should have made is remembered, with the cause, for the
    /// commands that will name it.
    pub(super) fn remember_missing(&mut self, request: &Request<'_>, cause: &Cause) {
        let thing = match &request.command {
            Command::BufferAlloc(c) => Thing::Buffer(c.buffer),
            Command::BufferOffset(c) => Thing::Buffer(c.buffer),
            Command::GraphAlloc(c) => Thing::Graph(c.graph),
            Command::ProgramAlloc(c) => {
                Thing::Program(ProgramKey { name: (*c.name).into(), source: c.source })
            }
            _ => return,
        };
        let limit = self.limits.missing_max;
        let Some(session) = self.sessions.find(&request.session) else { return };
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

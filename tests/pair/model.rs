//! What commands should mean: the reference that the engine is compared with.
//!
//! Owns: sessions with their buffers as plain bytes, programs by count, graphs, events, and what
//! failed to come into being. Knows nothing of queues: a command has its whole effect at once. What
//! depends on work that a lost device never did is marked [`ANY`], so it is not compared.
//!
//! [`Model::begin`] is told that an engine takes up a command, [`Model::finish`] that it is done
//! with it. In between other connections may do something, and devices may be lost.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Instant;

use super::command::{Act, Command, DEVICES, Key, ProgramName};
use super::ledger::Output;

/// The limits that the engines are given: low enough to be met.
pub mod limits {
    use std::time::Duration;

    pub const BUFFERS: usize = 7;
    pub const EVENTS: usize = 4;
    pub const GRAPHS: usize = 3;
    pub const MISSING: usize = 4;
    pub const NODES: usize = 5;
    pub const PROGRAMS: usize = 3;
    pub const SESSIONS: usize = 3;
    pub const SOURCE_BYTES: usize = 64;
    pub const WAIT: Duration = Duration::from_secs(10);
}

/// Fresh memory: zero, or a byte that the session has had.
pub const FRESH: u16 = 256;
/// Nobody can know.
pub const ANY: u16 = 257;

/// A rule that a model has wrong on purpose, to see whether the difference is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    CauseOfMissing,
    EventStays,
    FailureCount,
    FreeReachesViews,
    GraphInput,
    LostDeviceWorks,
    OutputOfEarlier,
    ProgramReferences,
    SessionStays,
    ViewEnd,
    ViewOfView,
}

pub const MISTAKES: [Mistake; 11] = [
    Mistake::CauseOfMissing,
    Mistake::EventStays,
    Mistake::FailureCount,
    Mistake::FreeReachesViews,
    Mistake::GraphInput,
    Mistake::LostDeviceWorks,
    Mistake::OutputOfEarlier,
    Mistake::ProgramReferences,
    Mistake::SessionStays,
    Mistake::ViewEnd,
    Mistake::ViewOfView,
];

/// A session, never used again for another one.
pub type Uid = u64;

/// Parts of causes, any of which may be given.
pub type Causes = Vec<String>;

/// Which bytes somebody has had, [`FRESH`] and [`ANY`] among them.
#[derive(Clone, Debug)]
pub struct Letters([bool; 258]);

impl Default for Letters {
    fn default() -> Letters {
        Letters([false; 258])
    }
}

impl Letters {
    pub fn contains(&self, byte: u16) -> bool {
        self.0[usize::from(byte)]
    }

    fn add(&mut self, bytes: &[u16]) {
        bytes.iter().for_each(|byte| self.0[usize::from(*byte)] = true);
    }

    fn add_all(&mut self, other: &Letters) {
        self.0.iter_mut().zip(other.0).for_each(|(has, had)| *has |= had);
    }
}

pub type Alphabet = Rc<RefCell<Letters>>;

/// Memory.
#[derive(Debug)]
pub struct Region {
    pub owner: Uid,
    pub bytes: Vec<u16>,
    /// Sessions whose unfinished work the bytes may depend on.
    pub depends: BTreeSet<Uid>,
    /// How often each connection has written.
    pub writes: BTreeMap<usize, u32>,
    /// A device without order to the owner's has written or will.
    pub is_racy: bool,
    /// What the owner has ever had.
    pub alphabet: Alphabet,
}

#[derive(Clone, Debug)]
pub struct View {
    pub region: Rc<RefCell<Region>>,
    pub offset: usize,
    pub bytes: usize,
}

impl View {
    pub fn read(&self) -> Vec<u16> {
        let region = self.region.borrow();
        let bytes = region.bytes[self.offset..self.offset + self.bytes].to_vec();
        if region.is_racy { vec![ANY; bytes.len()] } else { bytes }
    }

    pub fn write(&self, bytes: &[u16], connection: usize) {
        let mut region = self.region.borrow_mut();
        region.bytes[self.offset..self.offset + bytes.len()].copy_from_slice(bytes);
        region.alphabet.borrow_mut().add(bytes);
        *region.writes.entry(connection).or_default() += 1;
    }

    pub fn spoil(&self, connection: usize) {
        self.write(&vec![ANY; self.bytes], connection);
    }

    pub fn owner(&self) -> Uid {
        self.region.borrow().owner
    }

    /// `bytes` bytes of `from`, which `by` copies.
    pub fn copy(&self, from: &View, bytes: usize, by: Uid, connection: usize) {
        let read = from.read();
        if from.owner() != self.owner() || from.owner() != by {
            let mut depends = from.region.borrow().depends.clone();
            depends.insert(from.owner());
            self.region.borrow_mut().depends.extend(depends);
            // Fresh memory of another session takes its bytes along.
            let fresh = from.region.borrow().alphabet.borrow().clone();
            self.region.borrow().alphabet.borrow_mut().add_all(&fresh);
        }
        self.write(&read[..bytes], connection);
    }

    pub fn add1(&self, connection: usize) {
        let added = |byte: u16| if byte < 256 { (byte + 1) % 256 } else { ANY };
        let bytes: Vec<u16> = self.read().into_iter().map(added).collect();
        self.write(&bytes, connection);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    Buffer(u64),
    Graph(u64),
    Program(ProgramName),
}

/// A set event, or what became of it.
#[derive(Clone, Debug)]
pub enum Flag {
    /// By the session itself.
    Own,
    /// By another session, whose queue is waited for.
    Other,
    /// By nobody, since that session's device was lost.
    Failed(Causes),
}

#[derive(Debug)]
pub struct Session {
    pub uid: Uid,
    pub home: usize,
    pub owner: usize,
    pub buffers: BTreeMap<u64, View>,
    pub programs: BTreeMap<ProgramName, u32>,
    pub graphs: BTreeMap<u64, Rc<Graph>>,
    pub events: BTreeMap<u64, Flag>,
    pub missing: BTreeMap<Thing, Causes>,
    pub alphabet: Alphabet,
    /// Copies from elsewhere that were queued so far.
    pub copies_in: u32,
}

#[derive(Debug)]
pub struct Graph {
    pub parts: BTreeSet<Uid>,
    /// Bytes that are copied of each input, and whose it was.
    pub inputs: Vec<(usize, Uid)>,
    pub steps: Vec<GraphStep>,
    pub integers: Vec<BoundInteger>,
}

#[derive(Debug)]
pub enum GraphStep {
    Add1(Uid, Target),
    Copy { by: Uid, to: Target, from: Target, bytes: usize },
}

#[derive(Clone, Debug)]
pub enum Target {
    Fixed(View),
    Input(usize),
}

/// The variable `i`, as a kernel's argument or its size.
#[derive(Debug)]
pub struct BoundInteger {
    pub is_size: bool,
    pub fixed: Option<i64>,
}

#[derive(Debug)]
pub struct Model {
    pub sessions: BTreeMap<Key, Session>,
    uids: Uid,
    pub lost: BTreeMap<Uid, String>,
    pub ended: BTreeSet<Uid>,
    /// Those of them whose queues were not waited for.
    pub cut_short: BTreeSet<Uid>,
    pub mistake: Option<Mistake>,
}

/// Who takes up a command, where.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub home: usize,
    /// The connection whose batch it is.
    pub connection: usize,
    /// Whether it came through the mesh, and so opens no session.
    pub is_forwarded: bool,
    /// Whether a later command's output takes the place of this one's.
    pub drops_output: bool,
}

/// A command that has been taken up.
#[derive(Debug)]
pub struct Started {
    pub place: Place,
    pub command: Command,
    pub session: Result<Uid, Causes>,
    /// What the checks said, of a command that waits.
    pub checked: Option<Check>,
    /// Sessions that were lost then.
    lost: BTreeSet<Uid>,
    pub copies_in: u32,
    since: Instant,
    pub output: Option<Output>,
    pub graph: Option<Rc<Graph>>,
}

/// What a command should come to, if devices do what they should.
#[derive(Debug, Default)]
pub struct Check {
    pub causes: Option<Causes>,
    /// Sessions whose devices it needs; it fails where they were lost before.
    pub needs: Vec<Uid>,
    /// Sessions whose loss it may notice.
    pub looks: Vec<Uid>,
}

/// Where a command is to be done.
pub enum Begun {
    Here(Box<Started>),
    /// By the session's home.
    Elsewhere,
}

/// What a command came to.
pub struct Finished {
    pub result: Result<(), Causes>,
    pub output: Option<Output>,
}

pub type Checked = Result<(), Causes>;

pub fn fail<T>(cause: impl Into<String>) -> Result<T, Causes> {
    Err(vec![cause.into()])
}

pub const ENDED: &str = "the session has ended";
pub const NO_RDMA: &str = "this server has no RDMA";
pub const OF_SERVER: &str = "BlobLanding is what one server asks of another";

impl Model {
    pub fn new(mistake: Option<Mistake>) -> Model {
        let (sessions, lost, ended, cut_short) = Default::default();
        Model { sessions, uids: 0, lost, ended, cut_short, mistake }
    }

    pub fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// An engine takes up a command.
    pub fn begin(&mut self, place: Place, command: &Command, now: Instant) -> Begun {
        let session = match self.sessions.get(&command.at) {
            Some(session) if session.home == place.home => Ok(session.uid),
            _ if command.at >= DEVICES => fail("device index 33 is out of range"),
            _ if place.is_forwarded => fail(ENDED),
            // A peer is let in where its connection is served, and so refused there too.
            Some(_) if command.is_of_connection() => fail(command.refusal()),
            Some(_) => return Begun::Elsewhere,
            None => self.open(place, command.at),
        };
        let mut started = Started {
            place,
            command: command.clone(),
            session,
            checked: None,
            lost: self.lost.keys().copied().collect(),
            copies_in: self.sessions.get(&command.at).map_or(0, |session| session.copies_in),
            since: now,
            output: None,
            graph: None,
        };
        if started.command.waits() && started.session.is_ok() {
            let check = self.check(&mut started);
            if check.causes.is_none() {
                self.take_effect(&mut started);
            }
            started.checked = Some(check);
        }
        Begun::Here(Box::new(started))
    }

    fn open(&mut self, place: Place, key: Key) -> Result<Uid, Causes> {
        let opened = self.sessions.values().filter(|s| s.owner == place.connection).count();
        if opened >= limits::SESSIONS {
            return fail(format!("too many sessions: the limit is {}", limits::SESSIONS));
        }
        self.uids += 1;
        let session = Session {
            uid: self.uids,
            home: place.home,
            owner: place.connection,
            buffers: BTreeMap::new(),
            programs: BTreeMap::new(),
            graphs: BTreeMap::new(),
            events: BTreeMap::new(),
            missing: BTreeMap::new(),
            alphabet: Alphabet::default(),
            copies_in: 0,
        };
        self.sessions.insert(key, session);
        Ok(self.uids)
    }

    /// An engine is done with a command. `failed` says what it made of it, where that is known.
    ///
    /// # Errors
    ///
    /// Where that is not what it should be.
    pub fn finish(
        &mut self,
        mut started: Started,
        failed: Option<bool>,
        now: Instant,
    ) -> Result<Finished, String> {
        if let Err(causes) = &started.session {
            let name = started.command.name();
            if failed == Some(false) {
                return Err(format!("{name} worked, but {causes:?}"));
            }
            return Ok(Finished { result: Err(causes.clone()), output: None });
        }
        let mut check = match started.checked.take() {
            Some(check) => check,
            None => self.check(&mut started),
        };
        if let (Act::GraphAlloc { graph, .. }, Ok(uid)) = (&started.command.act, &started.session)
            && self.by_uid(*uid).is_some_and(|session| session.graphs.contains_key(graph))
        {
            check.causes = Some(vec![format!("graph {graph} is already allocated")]);
        }
        let result = self.judge(&started, &check, failed)?;
        if matches!(started.command.act, Act::Wait { .. })
            && let Err(causes) = &result
            && causes.iter().any(|cause| cause.starts_with("nobody set"))
            && now < started.since + limits::WAIT
        {
            return Err(format!("a wait of {:?} timed out", now - started.since));
        }
        match &result {
            Ok(()) if started.command.waits() => self.settle(&mut started)?,
            Ok(()) => self.take_effect(&mut started),
            Err(causes) => {
                if check.causes.is_none() {
                    self.abandon(&started);
                    self.fail_event(&started, causes);
                }
                self.use_event(&started, check.causes.is_none());
                self.remember(&started, causes);
            }
        }
        let output = result.is_ok().then(|| started.output.take()).flatten();
        Ok(Finished { result, output })
    }

    /// Compares what a command came to with what it should have.
    fn judge(
        &self,
        started: &Started,
        check: &Check,
        failed: Option<bool>,
    ) -> Result<Checked, String> {
        let name = started.command.name();
        let mut troubles = Causes::new();
        let mut is_hopeless = false;
        for uid in check.needs.iter().chain(&check.looks) {
            let lost = self.lost.get(uid).filter(|_| !self.has(Mistake::LostDeviceWorks));
            troubles.extend(lost.cloned());
            troubles.extend(self.ended.contains(uid).then(|| ENDED.to_owned()));
        }
        for uid in &check.needs {
            is_hopeless |= started.lost.contains(uid);
        }
        if let Some(causes) = &check.causes {
            if failed == Some(false) {
                return Err(format!("{name} worked, but {causes:?}"));
            }
            troubles.extend(causes.iter().cloned());
            return Ok(Err(troubles));
        }
        match failed {
            Some(true) if troubles.is_empty() => Err(format!("{name} failed without a reason")),
            Some(true) => Ok(Err(troubles)),
            Some(false) if is_hopeless => Err(format!("{name} worked, but {troubles:?}")),
            None if !troubles.is_empty() => Err(format!("{name}: a loss where there is none")),
            Some(false) | None => Ok(Ok(())),
        }
    }

    /// A command that was taken up and will not be finished, or that was begun and failed: nobody
    /// knows how much of it was done.
    pub fn abandon(&mut self, started: &Started) {
        let Ok(uid) = started.session else { return };
        let connection = started.place.connection;
        match &started.command.act {
            Act::ProgramExec { buffers, .. } => {
                if let Some(view) = self.by_uid(uid).and_then(|s| s.buffers.get(buffers.first()?)) {
                    view.spoil(connection);
                }
            }
            Act::GraphExec { graph, inputs, .. } => {
                let graph = self.by_uid(uid).and_then(|s| s.graphs.get(graph).cloned());
                let inputs: Vec<View> =
                    inputs.iter().filter_map(|name| self.view_anywhere(name)).collect();
                for step in graph.iter().flat_map(|graph| &graph.steps) {
                    let (GraphStep::Add1(_, to) | GraphStep::Copy { to, .. }) = step;
                    match to {
                        Target::Fixed(view) => view.spoil(connection),
                        Target::Input(at) => {
                            inputs.get(*at).inspect(|view| view.spoil(connection));
                        }
                    }
                }
            }
            Act::Transfer { to, to_buffer, .. } => {
                if let Some(view) = self.view_anywhere(&(*to, *to_buffer)) {
                    view.spoil(connection);
                }
            }
            _ => {}
        }
    }

    /// A wait that fails for its device's sake has taken its event, and so has one that hears why
    /// there is none.
    fn use_event(&mut self, started: &Started, has_failed_for_its_device: bool) {
        if let (Act::Wait { event }, Ok(uid)) = (&started.command.act, &started.session)
            && let Some(session) = self.by_uid_mut(*uid)
            && (has_failed_for_its_device
                || matches!(session.events.get(event), Some(Flag::Failed(_))))
        {
            session.events.remove(event);
        }
    }

    /// An event that could not be set is waited for by nobody.
    fn fail_event(&mut self, started: &Started, causes: &Causes) {
        if let Act::Event { to, event, .. } = &started.command.act
            && let Some(session) = self.sessions.get_mut(to)
        {
            session.events.entry(*event).or_insert_with(|| Flag::Failed(causes.clone()));
        }
    }

    pub fn view_anywhere(&self, (key, buffer): &(Key, u64)) -> Option<View> {
        self.sessions.get(key)?.buffers.get(buffer).cloned()
    }

    /// After a failure: what should have come into being is remembered.
    fn remember(&mut self, started: &Started, causes: &Causes) {
        let thing = match &started.command.act {
            Act::BufferAlloc { buffer, .. } | Act::BufferOffset { buffer, .. } => {
                Thing::Buffer(*buffer)
            }
            Act::GraphAlloc { graph, .. } => Thing::Graph(*graph),
            Act::ProgramAlloc { name, .. } => Thing::Program(*name),
            _ => return,
        };
        let forgets = self.has(Mistake::CauseOfMissing);
        let Ok(uid) = started.session else { return };
        let Some(session) = self.by_uid_mut(uid) else { return };
        let exists = match &thing {
            Thing::Buffer(number) => session.buffers.contains_key(number),
            Thing::Graph(number) => session.graphs.contains_key(number),
            Thing::Program(name) => session.programs.contains_key(name),
        };
        if !exists && session.missing.len() < limits::MISSING && !forgets {
            session.missing.insert(thing, causes.clone());
        }
    }

    /// A session's device is gone.
    pub fn lose(&mut self, key: Key, why: &str) {
        let Some(session) = self.sessions.get(&key) else { return };
        let uid = session.uid;
        self.lost.entry(uid).or_insert_with(|| why.to_owned());
        self.taint(uid);
    }

    /// A connection is gone, with the sessions that it opened.
    pub fn release(&mut self, connection: usize) {
        let keys: Vec<Key> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.owner == connection)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(uid) = self.end(key) {
                self.cut_short.insert(uid);
                self.taint(uid);
            }
        }
    }

    /// The end of a session, whose work for others has been done.
    pub fn end(&mut self, key: Key) -> Option<Uid> {
        if self.has(Mistake::SessionStays) {
            return None;
        }
        let uid = self.sessions.remove(&key)?.uid;
        self.ended.insert(uid);
        Some(uid)
    }

    /// Nobody knows what bytes are that depend on work of a session whose device is gone.
    fn taint(&mut self, uid: Uid) {
        for session in self.sessions.values() {
            let kept = session.graphs.values().flat_map(|graph| &graph.steps).flat_map(|step| {
                let targets = match step {
                    GraphStep::Add1(_, to) => [Some(to), None],
                    GraphStep::Copy { to, from, .. } => [Some(to), Some(from)],
                };
                targets.into_iter().flatten().filter_map(|target| match target {
                    Target::Fixed(view) => Some(view),
                    Target::Input(_) => None,
                })
            });
            for view in session.buffers.values().chain(kept) {
                let mut region = view.region.borrow_mut();
                if region.depends.contains(&uid) {
                    region.bytes.fill(ANY);
                    region.alphabet.borrow_mut().add(&[ANY]);
                }
            }
        }
    }

    pub fn by_uid(&self, uid: Uid) -> Option<&Session> {
        self.sessions.values().find(|session| session.uid == uid)
    }

    pub fn by_uid_mut(&mut self, uid: Uid) -> Option<&mut Session> {
        self.sessions.values_mut().find(|session| session.uid == uid)
    }

    /// A session that a command names beside its own.
    pub fn other(&self, home: usize, key: Key) -> Result<&Session, Causes> {
        match self.sessions.get(&key) {
            Some(session) if session.home == home => Ok(session),
            Some(_) => fail("live on different cores"),
            None => fail(format!("unknown session of device {key}")),
        }
    }

    pub fn buffer<'s>(&self, session: &'s Session, number: u64) -> Result<&'s View, Causes> {
        session.buffers.get(&number).ok_or_else(|| {
            session.missing_or(&Thing::Buffer(number), &format!("unknown buffer {number}:"))
        })
    }

    pub fn program(&self, session: &Session, name: &ProgramName) -> Checked {
        if session.programs.contains_key(name) {
            return Ok(());
        }
        let unknown = format!("unknown program ({}, ", name.0);
        Err(session.missing_or(&Thing::Program(*name), &unknown))
    }
}

impl Session {
    /// The causes of what failed to come into being, or `unknown`.
    pub fn missing_or(&self, thing: &Thing, unknown: &str) -> Causes {
        self.missing.get(thing).cloned().unwrap_or_else(|| vec![unknown.to_owned()])
    }

    pub fn forget(&mut self, thing: &Thing) -> bool {
        self.missing.remove(thing).is_some()
    }

    pub fn is_missing(&self, thing: &Thing) -> bool {
        self.missing.contains_key(thing)
    }
}

impl Started {
    pub fn is_dropped_copy(&self) -> bool {
        self.place.drops_output && matches!(self.command.act, Act::CopyOut { .. })
    }
}

impl Command {
    /// Whether it may end later than it has its effect.
    fn waits(&self) -> bool {
        match &self.act {
            Act::CopyOut { .. }
            | Act::GraphAlloc { .. }
            | Act::GraphExec { .. }
            | Act::ProgramAlloc { .. } => true,
            Act::ProgramExec { wait, .. } => *wait,
            _ => false,
        }
    }
}

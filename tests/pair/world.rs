//! What happens when: everything that a history consists of, one choice after the other.
//!
//! A history has a phase in which anything may happen, and one in which all that waits is helped to
//! its end. What then still waits hangs; what then is left has leaked.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use outboard::blob::Digest;
use outboard::config::EngineLimits;
use outboard::device::DeviceError;
use outboard::device::null::{NullControl, NullPlatform};
use outboard::device::shared::{Budget, Heap};
use outboard::engine::{Blob, Blobs, Directory, Engine, Home, Owner};

use super::client::{self, Client, Parcel};
use super::command::{Author, DEVICES, Key};
use super::ledger::Ledger;
use super::model::{Mistake, Model, limits};
use super::pick::Pick;
use super::server::{InProgress, Runner, serve};

/// A shard without its sockets.
pub struct Shard {
    pub engine: RefCell<Engine>,
    control: NullControl,
}

pub struct Connection {
    home: usize,
    client: Client,
    /// On its way to the server; what has arrived there; on its way to the client.
    sending: VecDeque<u8>,
    pub to_server: Vec<u8>,
    pub to_client: VecDeque<u8>,
    /// Requests that the server has not taken up yet.
    pub arriving: VecDeque<Parcel>,
    staging: Heap,
    /// The client sends no more.
    pub is_ended: bool,
    /// The server gave up in the middle of an output.
    pub is_cut_short: bool,
    is_dead: bool,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

pub struct World {
    pub shards: [Shard; 2],
    pub model: RefCell<Model>,
    pub now: Cell<Instant>,
    pick: RefCell<Pick>,
    connections: Vec<RefCell<Connection>>,
    directory: Arc<Directory>,
    budget: Arc<Budget>,
    staged: Arc<Budget>,
    spawned: RefCell<Vec<Task>>,
    difference: RefCell<Option<String>>,
}

/// What a history is like.
#[derive(Clone, Copy, Debug)]
struct Style {
    clients: usize,
    /// Percentage of commands that name another client's session.
    foreign: usize,
    has_long_blobs: bool,
    /// Whether devices do their work when they are told, and may be lost.
    is_slow: bool,
    /// Whether connections may die.
    is_deadly: bool,
}

/// What happened in a history.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Of batches that worked, with bytes.
    pub outputs: usize,
    pub replies: usize,
    pub deaths: usize,
    pub losses: usize,
}

/// Rounds in which all that waits has to come to its end. A wait takes ten of them.
const ROUNDS_MAX: usize = 3000;

/// A history, from its first choice to its end.
///
/// # Errors
///
/// The first difference between the server and the model.
pub fn simulate(pick: Pick, mistake: Option<Mistake>) -> Result<Report, String> {
    let (world, style) = World::new(pick, mistake);
    let world = Rc::new(world);
    let mut play = Play::new(&world, style);
    play.anything();
    play.help_to_the_end();
    let report = play.report;
    drop(play);
    world.check_books();
    // A task that differs is stopped for ever, and holds the world.
    let difference = world.difference.borrow_mut().take();
    difference.map_or(Ok(report), Err)
}

/// Low limits, and how many commands run in one go.
fn engine_limits(commands_per_slice: usize) -> EngineLimits {
    EngineLimits {
        buffers_per_session_max: limits::BUFFERS,
        commands_per_slice,
        events_per_session_max: limits::EVENTS,
        graph_nodes_max: limits::NODES,
        graphs_per_session_max: limits::GRAPHS,
        missing_max: limits::MISSING,
        programs_per_session_max: limits::PROGRAMS,
        sessions_per_connection_max: limits::SESSIONS,
        source_bytes_max: limits::SOURCE_BYTES as u64,
        wait_time_max: limits::WAIT,
        ..EngineLimits::default()
    }
}

impl World {
    fn new(mut pick: Pick, mistake: Option<Mistake>) -> (World, Style) {
        let style = Style {
            clients: 1 + pick.below(4),
            foreign: pick.of(&[0, 0, 10, 30]),
            has_long_blobs: pick.percent(2),
            is_slow: pick.percent(70),
            is_deadly: pick.percent(60),
        };
        let (directory, budget) = (Arc::default(), Arc::new(Budget::new(1 << 30)));
        let slice = if style.is_slow || style.foreign > 0 { 1 } else { pick.of(&[1, 2, 512]) };
        let limits = engine_limits(slice);
        let shards = [0, 1].map(|home| {
            let platform = NullPlatform::new(DEVICES, Arc::clone(&budget));
            let control = platform.control();
            if style.is_slow {
                control.hold();
                if style.foreign == 0 && pick.percent(30) {
                    control.limit_queue(1 + pick.below(4) as u64);
                }
                if style.foreign == 0 && pick.percent(30) {
                    let bytes = if style.has_long_blobs { 60_000 } else { 1 + pick.below(5) };
                    control.hide_memory(bytes as u64);
                }
            }
            let (platform, directory) = (Box::new(platform), Arc::clone(&directory));
            let engine = Engine::new(platform, limits, directory, Home(home));
            Shard { engine: RefCell::new(engine), control }
        });
        let staged = Arc::new(Budget::of_staging(1 << 26, Arc::clone(&budget)));
        let all: Vec<Key> = (0..3 * style.clients as u64).collect();
        let connections = (0..style.clients).map(|index| {
            let author = Author::new(index, &all, style.foreign, style.has_long_blobs);
            let client = Client::new(author, 1 + pick.below(8));
            RefCell::new(Connection {
                home: pick.below(2),
                client,
                sending: VecDeque::new(),
                to_server: Vec::new(),
                to_client: VecDeque::new(),
                arriving: VecDeque::new(),
                staging: Heap::new(Arc::clone(&staged)),
                is_ended: false,
                is_cut_short: false,
                is_dead: false,
            })
        });
        let world = World {
            shards,
            model: RefCell::new(Model::new(mistake)),
            now: Cell::new(Instant::now()),
            connections: connections.collect(),
            pick: RefCell::new(pick),
            directory,
            budget,
            staged,
            spawned: RefCell::default(),
            difference: RefCell::default(),
        };
        (world, style)
    }

    pub fn owner(connection: usize) -> Owner {
        Owner::Connection(connection as u64)
    }

    pub fn connection(&self, index: usize) -> RefMut<'_, Connection> {
        self.connections[index].borrow_mut()
    }

    /// Notes that the server and the model do not agree.
    pub fn differs(&self, difference: &str) {
        self.difference.borrow_mut().get_or_insert_with(|| difference.to_owned());
    }

    pub fn has_differed(&self) -> bool {
        self.difference.borrow().is_some()
    }

    pub fn spawn(&self, task: Task) {
        self.spawned.borrow_mut().push(task);
    }

    /// A batch's blobs, some of them where devices take them from.
    pub fn blobs(&self, index: usize, blobs: Vec<(Digest, Vec<u8>)>) -> Blobs {
        let staging = self.connection(index).staging.clone();
        let mut taken = Blobs::default();
        for (digest, bytes) in blobs {
            let length = bytes.len() as u64;
            let is_staged = length > 0 && (length > 1000 || self.pick.borrow_mut().percent(30));
            let range = is_staged.then(|| staging.reserve(length).expect("there is room"));
            let blob = match range {
                Some(mut range) => {
                    range.charge(length).expect("there is room");
                    range.slice_mut().copy_from_slice(&bytes);
                    Blob::Staged(Rc::new(range))
                }
                None => Blob::Private(bytes.into()),
            };
            taken.insert(digest, blob);
        }
        taken
    }

    /// That nothing is left of anybody.
    fn check_books(&self) {
        for (home, shard) in self.shards.iter().enumerate() {
            shard.engine.borrow_mut().tick(self.now.get());
            let sessions = shard.engine.borrow().session_count();
            let control = &shard.control;
            let devices = (0..control.opened()).filter(|at| control.is_open(*at)).count();
            if sessions + devices > 0 {
                self.differs(&format!("shard {home} is left with {sessions} sessions"));
                self.differs(&format!("shard {home} is left with {devices} devices"));
            }
        }
        let known = self.directory.session_count();
        if known > 0 {
            self.differs(&format!("the directory is left with {known} sessions"));
        }
        let (used, staged) = (self.budget.used(), self.staged.used());
        if used + staged > 0 {
            self.differs(&format!("{used} bytes are left, and {staged} staged ones"));
        }
        if !self.model.borrow().sessions.is_empty() {
            self.differs("the model is left with sessions");
        }
    }
}

/// The tasks of a world, and how they get on.
struct Play {
    world: Rc<World>,
    style: Style,
    /// Of each connection, until it ends.
    tasks: Vec<Option<(Task, InProgress)>>,
    forwarded: Vec<Task>,
    report: Report,
}

impl Play {
    fn new(world: &Rc<World>, style: Style) -> Play {
        let tasks = (0..style.clients).map(|connection| {
            let runner = Runner {
                world: Rc::clone(world),
                home: world.connection(connection).home,
                connection,
                is_forwarded: false,
                in_progress: InProgress::default(),
            };
            let in_progress = Rc::clone(&runner.in_progress);
            Some((Box::pin(serve(runner)) as Task, in_progress))
        });
        let (tasks, forwarded) = (tasks.collect(), Vec::new());
        Play { world: Rc::clone(world), style, tasks, forwarded, report: Report::default() }
    }

    fn below(&self, end: usize) -> usize {
        self.world.pick.borrow_mut().below(end)
    }

    fn anything(&mut self) {
        for _ in 0..3000 {
            let is_over = (0..self.style.clients).all(|index| {
                let connection = self.world.connection(index);
                let client = &connection.client;
                connection.is_dead || (client.is_done() && client.sent.is_empty())
            });
            if is_over || self.world.has_differed() || self.world.pick.borrow().is_spent() {
                return;
            }
            let connection = self.below(self.style.clients);
            match self.below(100) {
                0..15 => self.send(connection),
                15..35 => self.deliver(connection),
                35..70 => self.poll(connection),
                70..76 => self.poll_forwarded(),
                76..90 => self.complete(),
                90..93 => self.receive(connection),
                93..96 => {
                    let shard = &self.world.shards[self.below(2)];
                    shard.engine.borrow_mut().tick(self.world.now.get());
                }
                96..98 => self.pass(Duration::from_millis(100 * self.below(30) as u64)),
                98 if self.style.is_slow && self.below(4) == 0 => self.lose(),
                99 if self.style.is_deadly && self.below(6) == 0 => self.kill(connection),
                _ => {}
            }
        }
    }

    /// Helps all that waits to its end, and ends all connections.
    fn help_to_the_end(&mut self) {
        for round in 0..ROUNDS_MAX {
            if self.world.has_differed() {
                return;
            }
            for index in 0..self.style.clients {
                self.deliver_all(index);
                self.poll(index);
                self.receive(index);
                let mut connection = self.world.connection(index);
                connection.is_ended |= connection.client.sent.is_empty();
            }
            (0..self.forwarded.len().max(1)).for_each(|_| self.poll_forwarded());
            for shard in &self.world.shards {
                (0..shard.control.opened()).for_each(|device| {
                    let _ = shard.control.complete_next(device);
                });
            }
            if round % 8 == 7 {
                self.pass(Duration::from_secs(1));
            }
            if self.tasks.iter().all(Option::is_none) && self.forwarded.is_empty() {
                return;
            }
        }
        let stuck = self.tasks.iter().flatten().map(|(_, in_progress)| {
            let started = in_progress.borrow();
            started.as_ref().map_or("between commands".to_owned(), |s| s.command.text())
        });
        let (stuck, forwarded) = (stuck.collect::<Vec<_>>(), self.forwarded.len());
        self.world.differs(&format!("it hangs, {forwarded} forwarded ones, and {stuck:?}"));
    }

    fn pass(&self, time: Duration) {
        self.world.now.set(self.world.now.get() + time);
    }

    fn send(&mut self, index: usize) {
        let mut connection = self.world.connection(index);
        let Connection { client, sending, arriving, .. } = &mut *connection;
        if client.sent.len() > 2 || client.is_done() {
            return;
        }
        let ledger = Ledger::new(self.world.model.borrow().mistake);
        let written = client.write(&mut self.world.pick.borrow_mut(), ledger);
        let Some((bytes, parcel)) = written else { return };
        sending.extend(bytes);
        arriving.push_back(parcel);
    }

    /// Some bytes arrive at the server.
    fn deliver(&mut self, index: usize) {
        let mut connection = self.world.connection(index);
        let most = connection.sending.len();
        let bytes = match self.below(4) {
            0 => 1 + self.below(60),
            1 => 1 + self.below(2000),
            _ => most,
        };
        let Connection { sending, to_server, .. } = &mut *connection;
        to_server.extend(sending.drain(..bytes.min(most)));
    }

    fn deliver_all(&mut self, index: usize) {
        let mut connection = self.world.connection(index);
        let Connection { sending, to_server, .. } = &mut *connection;
        to_server.extend(sending.drain(..));
    }

    fn poll(&mut self, index: usize) {
        let Some((task, _)) = &mut self.tasks[index] else { return };
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_ready() {
            self.end(index);
        }
        self.forwarded.append(&mut self.world.spawned.borrow_mut());
    }

    fn poll_forwarded(&mut self) {
        if self.forwarded.is_empty() {
            return;
        }
        let index = self.below(self.forwarded.len());
        // In turn, so that all get on although the choices are used up.
        let mut task = self.forwarded.remove(index);
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_pending() {
            self.forwarded.push(task);
        }
    }

    fn complete(&mut self) {
        let control = &self.world.shards[self.below(2)].control;
        if control.opened() > 0 {
            let _ = control.complete_next(self.below(control.opened()));
        }
    }

    /// A device is lost.
    fn lose(&mut self) {
        let home = self.below(2);
        let control = &self.world.shards[home].control;
        // Of each name, the last device is its session's.
        let last: BTreeMap<Key, usize> =
            (0..control.opened()).map(|device| (control.ordinal(device), device)).collect();
        let live: Vec<(Key, usize)> = last
            .into_iter()
            .filter(|(key, device)| {
                let model = self.world.model.borrow();
                let session = model.sessions.get(key);
                control.is_open(*device) && session.is_some_and(|session| session.home == home)
            })
            .collect();
        if live.is_empty() {
            return;
        }
        let (key, device) = live[self.below(live.len())];
        self.report.losses += 1;
        let why = format!("lightning {}", self.report.losses);
        control.lose(device, DeviceError::Lost { why: why.clone() });
        self.world.model.borrow_mut().lose(key, &format!("device lost: {why};"));
    }

    /// A client dies, whatever it or the server is at.
    fn kill(&mut self, index: usize) {
        self.report.deaths += 1;
        if self.tasks[index].is_some() {
            self.end(index);
        }
    }

    /// The end of a connection, and of what it owns.
    fn end(&mut self, index: usize) {
        let Some((task, in_progress)) = self.tasks[index].take() else { return };
        drop(task);
        if let Some(started) = in_progress.borrow_mut().take() {
            self.world.model.borrow_mut().abandon(&started);
        }
        self.receive(index);
        let mut connection = self.world.connection(index);
        connection.is_dead = true;
        connection.client.sent.clear();
        connection.staging = Heap::new(Arc::clone(&self.world.staged));
        let engine = &self.world.shards[connection.home].engine;
        engine.borrow_mut().release(World::owner(index));
        self.world.model.borrow_mut().release(index);
    }

    /// The client reads its replies.
    fn receive(&mut self, index: usize) {
        let mut connection = self.world.connection(index);
        let Connection { client, to_client, is_cut_short, .. } = &mut *connection;
        client.received.extend(to_client.drain(..));
        while let Some(reply) = client.read() {
            self.report.replies += 1;
            self.report.outputs += usize::from(reply.status == 200 && !reply.body.is_empty());
            let Some(parcel) = client.sent.pop_front() else {
                return self.world.differs("a reply to nothing");
            };
            if let Err(difference) = client::check(&parcel, &reply) {
                self.world.differs(&difference);
            }
            if reply.closes {
                client.is_told_off = true;
                client.sent.clear();
            }
        }
        let model = self.world.model.borrow();
        if *is_cut_short && model.lost.is_empty() && model.ended.is_empty() {
            self.world.differs("an output was cut short although nothing was lost");
        }
    }
}

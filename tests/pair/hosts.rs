//! Two hosts, and clients of both that have them copy to each other and wait for each other, over
//! connections that are slow, break, lose what is sent or bring it twice. Hosts die in the middle
//! of anything, and come back with nothing.
//!
//! Each command of a client's batch, and each of a request between hosts, is compared with `books`
//! as it comes to its end. Absent: shards and their mesh, and how clients' requests are framed,
//! which are `world`'s.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outboard::blob::Digest;
use outboard::config::{EngineLimits, WireLimits};
use outboard::device::null::{NullControl, NullPlatform};
use outboard::device::shared::{Budget, Heap};
use outboard::engine::{
    Batch, Blob, Blobs, Cause, Directory, Engine, Home, Owner, Progress, Reply, WaitFor,
};

use super::books::{Act, BUFFERS, Books, Command, Writes, Wrong, pattern};
use super::courier::{Fate, SharedWire, Wire, carry, read};
use super::pick::Pick;
use super::server::{Named, turn};

/// How long a client waits for an event.
const WAIT: Duration = Duration::from_secs(10);

pub type Task = Pin<Box<dyn Future<Output = ()>>>;
type Carried = Pin<Box<dyn Future<Output = Result<(), Cause>>>>;
pub type Outbox = Rc<RefCell<VecDeque<Vec<Command>>>>;

/// One life of a host.
pub struct Host {
    pub place: usize,
    pub engine: RefCell<Engine>,
    pub control: NullControl,
    directory: Arc<Directory>,
    budget: Arc<Budget>,
    staged: Arc<Budget>,
    /// Memory for each client's blobs, those among them that the other host sends.
    pub heaps: RefCell<BTreeMap<u64, Heap>>,
}

/// Everything but the tasks.
pub struct Hosts {
    pub books: RefCell<Books>,
    pub now: Cell<Instant>,
    pub pick: RefCell<Pick>,
    pub is_lossy: bool,
    /// Connections that nobody has accepted yet.
    pub newborn: RefCell<Vec<SharedWire>>,
    pub difference: RefCell<Option<String>>,
}

/// What happened in a history.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub outputs: usize,
    pub errands: usize,
    pub errands_failed: usize,
    pub deaths: usize,
}

impl Host {
    pub fn new(place: usize, pick: &mut Pick) -> Host {
        let (directory, budget) = (Arc::default(), Arc::new(Budget::new(1 << 30)));
        let platform = NullPlatform::new(16, Arc::clone(&budget));
        let control = platform.control();
        control.hold();
        if pick.percent(30) {
            control.limit_queue(1 + pick.below(4) as u64);
        }
        if pick.percent(30) {
            control.hide_memory(100 + pick.below(300) as u64);
        }
        let limits =
            EngineLimits { commands_per_slice: 1, wait_time_max: WAIT, ..EngineLimits::default() };
        let engine = Engine::new(Box::new(platform), limits, Arc::clone(&directory), Home(0));
        let staged = Arc::new(Budget::of_staging(1 << 26, Arc::clone(&budget)));
        let (engine, heaps) = (RefCell::new(engine), RefCell::default());
        Host { place, engine, control, directory, budget, staged, heaps }
    }

    /// A batch's blobs, some of them where devices take them from.
    pub fn blobs(&self, world: &Hosts, client: Option<u64>, blobs: Named) -> Blobs {
        let of_none = || Heap::new(Arc::clone(&self.staged));
        let heap = match client {
            Some(client) => self.heaps.borrow_mut().entry(client).or_insert_with(of_none).clone(),
            None => of_none(),
        };
        let mut taken = Blobs::default();
        for (digest, bytes) in blobs {
            let blob = if world.below(100) < 40 {
                let length = bytes.len() as u64;
                let mut range = heap.reserve(length).expect("there is room");
                range.charge(length).expect("there is room");
                range.slice_mut().copy_from_slice(&bytes);
                Blob::Staged(Rc::new(range))
            } else {
                Blob::Private(bytes.into())
            };
            taken.insert(digest, blob);
        }
        taken
    }

    /// What is left when nobody is there any more.
    pub fn left(&self, now: Instant) -> Option<String> {
        self.heaps.borrow_mut().clear();
        self.engine.borrow_mut().tick(now);
        let sessions = self.engine.borrow().session_count() + self.directory.session_count();
        let devices = (0..self.control.opened()).filter(|at| self.control.is_open(*at)).count();
        let bytes = self.budget.used() + self.staged.used();
        let place = self.place;
        (sessions + devices > 0 || bytes > 0).then(|| {
            format!("host {place} is left with {sessions} sessions, {devices} devices, {bytes} B")
        })
    }
}

impl Hosts {
    pub fn below(&self, end: usize) -> usize {
        self.pick.borrow_mut().below(end)
    }

    pub fn differs(&self, difference: &str) {
        self.difference.borrow_mut().get_or_insert_with(|| difference.to_owned());
    }

    pub fn has_differed(&self) -> bool {
        self.difference.borrow().is_some()
    }

    pub fn add_wire(&self, wire: SharedWire) {
        self.newborn.borrow_mut().push(wire);
    }

    pub fn new_wire(&self, to: usize) -> SharedWire {
        let fate = match self.below(20) {
            0 if self.is_lossy => Fate::Breaks(self.below(3000)),
            1 if self.is_lossy => Fate::Lost,
            2 if self.is_lossy => Fate::Mute,
            3 if self.is_lossy => Fate::Twice,
            _ => Fate::Good,
        };
        let wire = Wire::new(to, fate);
        self.add_wire(Rc::clone(&wire));
        wire
    }
}

pub async fn wait(world: &Rc<Hosts>, host: &Rc<Host>, over: &WaitFor) {
    while !host.engine.borrow_mut().is_over(over, world.now.get()) {
        turn().await;
    }
}

/// A client's connection to a host.
pub struct Talk {
    pub world: Rc<Hosts>,
    pub host: Rc<Host>,
    pub client: usize,
    pub report: Rc<Cell<Report>>,
}

/// What a batch has come to so far.
#[derive(Default)]
struct Ledger {
    failed: BTreeSet<usize>,
    /// The first that was known to fail.
    first: Option<usize>,
    /// What the last output should be, and what its client had written then.
    look: Option<(usize, Vec<u8>, bool, Writes)>,
    begun: Option<(usize, Instant)>,
    errands: Vec<(usize, Carried)>,
}

/// A client's batches, one after the other.
pub async fn converse(talk: Talk, outbox: Outbox) {
    loop {
        let Some(commands) = outbox.borrow_mut().pop_front() else { return };
        talk.exchange(&commands).await;
        if talk.world.has_differed() {
            // Nothing that follows is of interest.
            return std::future::pending().await;
        }
    }
}

impl Talk {
    fn differs(&self, difference: &str) {
        self.world.differs(&format!("client {}: {difference}", self.client));
    }

    fn count(&self, count: impl Fn(&mut Report)) {
        let mut report = self.report.get();
        count(&mut report);
        self.report.set(report);
    }

    async fn exchange(&self, commands: &[Command]) {
        let Talk { world, host, client, .. } = self;
        let program = Digest([200; 32]);
        let (mut blobs, mut texts) = (vec![(program, b"add1".to_vec())], Vec::new());
        for (index, command) in commands.iter().enumerate() {
            let mut name = program;
            if let Act::CopyIn { buffer, first } = command.act {
                name = Digest([u8::try_from(index).expect("few commands"); 32]);
                let bytes = BUFFERS.iter().find(|(number, _)| *number == buffer).expect("known").1;
                blobs.push((name, pattern(first, bytes)));
            }
            texts.push(command.text(host.place, *client, &name.to_string()));
        }
        let (text, owner) = (format!("[{}]", texts.join(", ")), *client as u64);
        let blobs = host.blobs(world, Some(owner), blobs);
        let limits = WireLimits::default();
        let owner = Owner::Connection(owner);
        let parsed = host.engine.borrow_mut().parse(text.as_bytes(), blobs, owner, &limits);
        let mut batch = parsed.unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut ledger = Ledger::default();
        let reply = loop {
            match self.advance(commands, &mut batch, &mut ledger) {
                Progress::Done(reply) => break reply,
                Progress::Wait(over) => self.wait(&over, &mut batch, &mut ledger).await,
                Progress::Join | Progress::Pause => {
                    turn().await;
                    self.look_at_errands(&mut batch, &mut ledger);
                }
                other => return self.differs(&format!("a batch came to {other:?}")),
            }
            if world.has_differed() {
                return;
            }
        };
        self.check(commands, reply, ledger).await;
    }

    /// The engine has taken up a command.
    fn begin(&self, commands: &[Command], index: usize, ledger: &mut Ledger) {
        let Talk { world, host, client, .. } = self;
        let Some(command) = commands.get(index) else { return };
        if ledger.begun.is_some_and(|(begun, _)| begun == index) {
            return;
        }
        ledger.begun = Some((index, world.now.get()));
        let mut books = world.books.borrow_mut();
        books.begin(host.place, (*client, command.device));
        if let Act::CopyOut { buffer } = command.act {
            let held = books.held(host.place, (*client, command.device), buffer);
            let writes = books.writes(host.place, *client);
            ledger.look = held.map(|held| {
                let bytes = pattern(held.first.unwrap_or(0), held.bytes);
                (index, bytes, held.first.is_some(), writes)
            });
        }
    }

    /// The next command, or the same one again.
    fn advance(
        &self,
        commands: &[Command],
        batch: &mut Batch<'_>,
        ledger: &mut Ledger,
    ) -> Progress {
        let Talk { world, host, client, .. } = self;
        let (done, failed) = batch.outcomes();
        let progress = host.engine.borrow_mut().advance(batch, world.now.get());
        let (done_now, failed_now) = batch.outcomes();
        if !matches!(progress, Progress::Join) || done_now > done {
            self.begin(commands, done, ledger);
        }
        if done_now == done {
            return progress;
        }
        let expected = world.books.borrow_mut().done(host.place, *client, &commands[done]);
        let has_failed = failed_now > failed;
        if expected.is_ok() == has_failed {
            let was = if has_failed { "failed" } else { "worked" };
            self.differs(&format!("{:?} {was}, not {expected:?}", commands[done]));
        }
        if has_failed {
            ledger.fail(done);
            let waited = ledger.begun.map(|(_, since)| world.now.get() - since);
            if matches!(commands[done].act, Act::Wait { .. }) && waited < Some(WAIT) {
                self.differs(&format!("a wait ended after {waited:?}"));
            }
        }
        match (progress, expected) {
            (Progress::Peer(errand), Ok(errands)) if !errands.is_empty() => {
                let writes = world.books.borrow().writes(host.place, *client);
                let index = errand.index;
                let (world, host) = (Rc::clone(world), Rc::clone(host));
                let carried = carry(world, host, (*client, writes), errand, errands);
                ledger.errands.push((index, Box::pin(carried)));
                self.count(|report| report.errands += 1);
                Progress::Pause
            }
            (progress, _) => progress,
        }
    }

    async fn wait(&self, over: &WaitFor, batch: &mut Batch<'_>, ledger: &mut Ledger) {
        while !self.host.engine.borrow_mut().is_over(over, self.world.now.get()) {
            turn().await;
            self.look_at_errands(batch, ledger);
        }
    }

    fn look_at_errands(&self, batch: &mut Batch<'_>, ledger: &mut Ledger) {
        let mut context = Context::from_waker(Waker::noop());
        let mut back = Vec::new();
        ledger.errands.retain_mut(|(index, task)| match task.as_mut().poll(&mut context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                back.push((*index, outcome));
                false
            }
        });
        for (index, outcome) in back {
            if outcome.is_err() {
                ledger.fail(index);
                self.count(|report| report.errands_failed += 1);
            }
            batch.came_back(index, outcome);
        }
    }

    /// Compares the reply with what the batch came to.
    async fn check(&self, commands: &[Command], reply: Reply, ledger: Ledger) {
        if !ledger.errands.is_empty() {
            return self.differs("a reply before all errands were back");
        }
        let wrong = self.world.books.borrow().wrong == Some(Wrong::FirstToFailCounts);
        let first = if wrong { ledger.first } else { ledger.failed.first().copied() };
        match (reply, first) {
            (Reply::Failed(text), Some(index)) => {
                let more = match ledger.failed.len() - 1 {
                    0 => "')".to_owned(),
                    1 => "(and 1 later command failed)".to_owned(),
                    more => format!("(and {more} later commands failed)"),
                };
                let found = text.replace("\")", "')");
                if !found.contains(&format!("command {index} (")) || !found.contains(&more) {
                    self.differs(&format!("{text}: not command {index}, {more}"));
                }
            }
            (Reply::Ok(output), None) => {
                let Ok(found) = read(&self.world, &self.host, output).await else {
                    // It is not whole where its session was freed behind it.
                    let is_freed = |c: &Command| matches!(c.act, Act::FreeSession);
                    if !commands.iter().any(is_freed) {
                        self.differs("an output was cut short");
                    }
                    return;
                };
                let last = commands.iter().rposition(Command::has_output);
                self.count(|report| report.outputs += usize::from(last.is_some()));
                let expected = ledger.look.filter(|(index, ..)| Some(*index) == last);
                let after = self.world.books.borrow().writes(self.host.place, self.client);
                match expected {
                    Some((_, expected, is_known, writes))
                        if is_known && writes.of_peers == after.of_peers =>
                    {
                        if expected != found {
                            let (expected, found) = (expected[0], found.first().copied());
                            self.differs(&format!("{found:?}, not {expected}: {commands:?}"));
                        }
                    }
                    Some((_, expected, ..)) if expected.len() == found.len() => {}
                    None if found.is_empty() => {}
                    other => self.differs(&format!("{} bytes, not {other:?}", found.len())),
                }
            }
            (reply, first) => self.differs(&format!("{reply:?}, but {first:?}: {commands:?}")),
        }
    }
}

impl Ledger {
    fn fail(&mut self, index: usize) {
        self.failed.insert(index);
        self.first.get_or_insert(index);
    }
}

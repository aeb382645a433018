//! What happens when on two hosts, one choice after the other: what clients have done, which
//! connection moves, which device works, who dies.
//!
//! As in `world`, anything may happen at first, and then all that waits is helped to its end. What
//! then still waits hangs; what then is left has leaked.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use outboard::engine::Owner;

use super::books::{Act, BUFFERS, Books, Command, Wrong};
use super::courier::{SharedWire, answer, forbidden};
use super::hosts::{Host, Hosts, Outbox, Report, Talk, Task, converse};
use super::pick::Pick;

/// Devices of each client on each host.
const DEVICES: usize = 2;
/// Numbers of events.
const EVENTS: usize = 3;
/// Rounds in which all that waits has to come to its end. A wait takes ten of them.
const ROUNDS_MAX: usize = 3000;

/// A history of two hosts, from its first choice to its end.
///
/// # Errors
///
/// The first difference between the engines and the model.
pub fn tell(mut pick: Pick, wrong: Option<Wrong>) -> Result<Report, String> {
    let clients = 1 + pick.below(3);
    let (is_lossy, is_deadly) = (pick.percent(60), pick.percent(50));
    let hosts = [0, 1].map(|place| Rc::new(Host::new(place, &mut pick)));
    let world = Rc::new(Hosts {
        books: RefCell::new(Books::new(wrong)),
        now: Cell::new(Instant::now()),
        pick: RefCell::new(pick),
        is_lossy,
        newborn: RefCell::default(),
        difference: RefCell::default(),
    });
    let mut story = Story::new(&world, hosts, clients, is_deadly);
    story.anything();
    story.help_to_the_end();
    let report = story.report.get();
    for client in 0..clients {
        (0..2).for_each(|host| story.end(client, host));
    }
    let Story { hosts, serving, wires, .. } = story;
    drop((serving, wires));
    for host in hosts {
        if let Some(left) = host.left(world.now.get()) {
            world.differs(&left);
        }
    }
    if !world.books.borrow().is_empty() {
        world.differs("the books are left with sessions");
    }
    // A task that differs is stopped for ever, and holds the world.
    let difference = world.difference.borrow_mut().take();
    difference.map_or(Ok(report), Err)
}

/// A client's connection to a host.
struct Line {
    /// None once it has come to its end.
    task: Option<Task>,
    outbox: Outbox,
    is_open: bool,
}

struct Story {
    world: Rc<Hosts>,
    hosts: [Rc<Host>; 2],
    is_deadly: bool,
    /// Of each client, one to each host.
    lines: Vec<[Line; 2]>,
    /// Which host they are on.
    serving: Vec<(usize, Task)>,
    wires: Vec<SharedWire>,
    report: Rc<Cell<Report>>,
}

impl Story {
    fn new(world: &Rc<Hosts>, hosts: [Rc<Host>; 2], clients: usize, is_deadly: bool) -> Story {
        let mut story = Story {
            world: Rc::clone(world),
            hosts,
            is_deadly,
            lines: Vec::new(),
            serving: Vec::new(),
            wires: Vec::new(),
            report: Rc::default(),
        };
        for client in 0..clients {
            let outboxes = batches(&mut world.pick.borrow_mut()).map(|batches| {
                let batches: VecDeque<_> = batches.into();
                Rc::new(RefCell::new(batches))
            });
            let lines = outboxes.map(|outbox| Line { task: None, outbox, is_open: false });
            story.lines.push(lines);
            (0..2).for_each(|host| story.open(client, host));
        }
        story
    }

    fn below(&self, end: usize) -> usize {
        self.world.below(end)
    }

    /// Connects a client.
    fn open(&mut self, client: usize, host: usize) {
        let talk = Talk {
            world: Rc::clone(&self.world),
            host: Rc::clone(&self.hosts[host]),
            client,
            report: Rc::clone(&self.report),
        };
        let line = &mut self.lines[client][host];
        line.task = Some(Box::pin(converse(talk, Rc::clone(&line.outbox))));
        line.is_open = true;
    }

    /// The end of a client's connection, and of what it owns.
    fn end(&mut self, client: usize, host: usize) {
        let line = &mut self.lines[client][host];
        drop(line.task.take());
        if std::mem::replace(&mut line.is_open, false) {
            let host = &self.hosts[host];
            let owner = client as u64;
            host.heaps.borrow_mut().remove(&owner);
            host.engine.borrow_mut().release(Owner::Connection(owner));
            self.world.books.borrow_mut().release(host.place, client);
        }
    }

    fn anything(&mut self) {
        for _ in 0..4000 {
            let is_over = self.lines.iter().flatten().all(|line| line.task.is_none());
            if is_over || self.world.has_differed() {
                return;
            }
            let (client, host) = (self.below(self.lines.len()), self.below(2));
            match self.below(200) {
                0..70 => self.talk(client, host),
                70..115 => self.serve(),
                115..150 => self.deliver(),
                150..182 => self.complete(host),
                182..188 => {
                    self.hosts[host].engine.borrow_mut().tick(self.world.now.get());
                }
                188..193 => self.pass(Duration::from_millis(100 * self.below(20) as u64)),
                193 => {
                    let name = (client, self.below(DEVICES + 1) as u64);
                    self.world.add_wire(forbidden(host, name, self.below(4)));
                }
                194 if self.is_deadly && self.below(3) == 0 => {
                    self.count_death();
                    self.lines[client][host].outbox.borrow_mut().clear();
                    self.end(client, host);
                }
                195 if self.is_deadly && self.below(4) == 0 => self.kill_host(host),
                _ => {}
            }
        }
    }

    /// Helps all that waits to its end.
    fn help_to_the_end(&mut self) {
        for round in 0..ROUNDS_MAX {
            if self.world.has_differed() {
                return;
            }
            for client in 0..self.lines.len() {
                (0..2).for_each(|host| self.talk(client, host));
            }
            self.accept();
            self.wires.iter().for_each(|wire| wire.borrow_mut().deliver(usize::MAX));
            (0..self.serving.len()).for_each(|_| self.serve());
            for host in &self.hosts {
                (0..host.control.opened()).for_each(|device| {
                    let _ = host.control.complete_next(device);
                });
            }
            if round % 8 == 7 {
                self.pass(Duration::from_secs(1));
            }
            let is_over = self.lines.iter().flatten().all(|line| line.task.is_none());
            if is_over && self.serving.is_empty() && self.world.newborn.borrow().is_empty() {
                return;
            }
        }
        let talking = self.lines.iter().flatten().filter(|line| line.task.is_some()).count();
        let serving = self.serving.len();
        self.world.differs(&format!("it hangs: {talking} clients, {serving} requests"));
    }

    fn pass(&self, time: Duration) {
        self.world.now.set(self.world.now.get() + time);
    }

    fn count_death(&self) {
        let report = self.report.get();
        self.report.set(Report { deaths: report.deaths + 1, ..report });
    }

    fn talk(&mut self, client: usize, host: usize) {
        let Some(task) = &mut self.lines[client][host].task else { return };
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_ready() {
            // It stays connected, as long as it talks to the other host.
            self.lines[client][host].task = None;
            if self.lines[client].iter().all(|line| line.task.is_none()) {
                (0..2).for_each(|host| self.end(client, host));
            }
        }
        self.accept();
    }

    fn accept(&mut self) {
        for wire in self.world.newborn.take() {
            let to = wire.borrow().to;
            let (world, host) = (Rc::clone(&self.world), Rc::clone(&self.hosts[to]));
            self.serving.push((to, Box::pin(answer(world, host, Rc::clone(&wire)))));
            self.wires.push(wire);
        }
    }

    fn serve(&mut self) {
        self.accept();
        if self.serving.is_empty() {
            return;
        }
        // In turn, so that all get on although the choices are used up.
        let (host, mut task) = self.serving.remove(self.below(self.serving.len()));
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_pending() {
            self.serving.push((host, task));
        }
    }

    /// Some bytes arrive.
    fn deliver(&mut self) {
        self.wires.retain(|wire| Rc::strong_count(wire) > 1);
        if self.wires.is_empty() {
            return;
        }
        let bytes = match self.below(4) {
            0 => 1 + self.below(60),
            1 => 1 + self.below(2000),
            _ => usize::MAX,
        };
        self.wires[self.below(self.wires.len())].borrow_mut().deliver(bytes);
    }

    fn complete(&self, host: usize) {
        let control = &self.hosts[host].control;
        if control.opened() > 0 {
            let _ = control.complete_next(self.below(control.opened()));
        }
    }

    /// A host dies and is started again. Its clients go on with what they have not sent, or do not.
    fn kill_host(&mut self, place: usize) {
        self.count_death();
        self.accept();
        let clients: Vec<usize> =
            (0..self.lines.len()).filter(|client| self.lines[*client][place].is_open).collect();
        self.serving.retain(|(host, _)| *host != place);
        for wire in &self.wires {
            let mut wire = wire.borrow_mut();
            wire.is_broken |= wire.to == place;
        }
        clients.iter().for_each(|client| self.end(*client, place));
        if let Some(left) = self.hosts[place].left(self.world.now.get()) {
            self.world.differs(&left);
        }
        self.hosts[place] = Rc::new(Host::new(place, &mut self.world.pick.borrow_mut()));
        for client in clients {
            if self.below(2) == 0 {
                self.open(client, place);
            }
        }
    }
}

/// What a client has each host do.
fn batches(pick: &mut Pick) -> [Vec<Vec<Command>>; 2] {
    let mut batches = [prepare(pick), prepare(pick)].map(|batch| vec![batch]);
    for _ in 0..1 + pick.below(5) {
        let from = pick.below(2);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        copy(pick, &mut near, &mut far);
        if pick.percent(30) {
            // Both ways; each may wait for what the other does later.
            copy(pick, &mut far, &mut near);
        }
        batches[from].push(near);
        batches[1 - from].push(far);
    }
    batches
}

fn device(pick: &mut Pick) -> u64 {
    pick.below(DEVICES) as u64
}

fn prepare(pick: &mut Pick) -> Vec<Command> {
    let mut batch = Vec::new();
    for device in 0..DEVICES as u64 {
        let mut add = |act| batch.push(Command { device, act });
        add(Act::Program);
        for (buffer, _) in BUFFERS {
            if pick.percent(95) {
                add(Act::Alloc { buffer });
            }
            if pick.percent(80) {
                add(Act::CopyIn { buffer, first: pick_byte(pick) });
            }
        }
    }
    batch
}

fn pick_byte(pick: &mut Pick) -> u8 {
    pick.below(200).to_le_bytes()[0]
}

fn some(pick: &mut Pick) -> Command {
    let (device, buffer) = (device(pick), pick.of(&BUFFERS).0);
    let act = match pick.below(40) {
        0..8 => Act::Add1 { buffer },
        8..20 => Act::CopyIn { buffer, first: pick_byte(pick) },
        20..34 => Act::CopyOut { buffer },
        34 => Act::Wait { event: pick.below(EVENTS) as u64 },
        35..38 => Act::Event { device, event: pick.below(EVENTS) as u64 },
        38 => Act::Free { buffer },
        _ => Act::FreeSession,
    };
    Command { device, act }
}

/// Copies from `near` to `far`, and what `far` does once it has them.
fn copy(pick: &mut Pick, near: &mut Vec<Command>, far: &mut Vec<Command>) {
    (0..pick.below(3)).for_each(|_| near.push(some(pick)));
    (0..pick.below(2)).for_each(|_| far.push(some(pick)));
    let mut pairs = Vec::new();
    for _ in 0..pick.of(&[1, 1, 1, 2, 3, 7]) {
        let buffer = pick.of(&BUFFERS).0;
        let to = if pick.percent(4) { pick.of(&BUFFERS).0 } else { buffer };
        pairs.push([(device(pick), buffer), (device(pick), to)]);
    }
    let (source, target) = (pairs[0][0], pairs[pairs.len() - 1][1]);
    let is_batch = pairs.len() > 1;
    let at = if is_batch { device(pick) } else { source.0 };
    near.push(Command { device: at, act: Act::Copies(pairs) });
    if pick.percent(50) {
        // What must not come too soon.
        let (device, buffer) = source;
        near.push(Command { device, act: Act::CopyIn { buffer, first: pick_byte(pick) } });
    }
    if pick.percent(80) {
        let (waiting, event) = (device(pick), pick.below(EVENTS) as u64);
        near.push(Command { device: at, act: Act::Event { device: waiting, event } });
        far.push(Command { device: waiting, act: Act::Wait { event } });
    }
    let (device, buffer) = target;
    far.push(Command { device, act: Act::CopyOut { buffer } });
    (0..pick.below(2)).for_each(|_| near.push(some(pick)));
}

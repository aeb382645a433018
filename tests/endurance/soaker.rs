//! One client of the soak: what it asks for, and what it expects.
//!
//! It keeps its own account of every buffer's bytes. A reply has to be exactly what was asked for,
//! unless a worker of one of its sessions was killed meanwhile.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::link::Link;
use crate::pick::Pick;
use crate::rig::{ADD, ENDLESS, dawdle, leave};
use crate::support::client::{Reply, name_of};

/// Where to go, and with which token.
pub(crate) struct Target {
    pub(crate) tls: SocketAddr,
    pub(crate) plain: SocketAddr,
    pub(crate) tokens: [&'static str; 2],
}

/// What was done, by all clients.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) episodes: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) commands: AtomicU64,
    pub(crate) bytes_checked: AtomicU64,
    pub(crate) failures_asked_for: AtomicU64,
    pub(crate) deaths: AtomicU64,
    pub(crate) workers_killed: AtomicU64,
    /// Episodes that ended because a worker was gone.
    pub(crate) losses: AtomicU64,
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

/// One of the client's sessions no longer has its worker.
struct Lost;

#[derive(Clone)]
struct View {
    memory: Rc<RefCell<Vec<u8>>>,
    offset: usize,
    bytes: usize,
}

impl View {
    fn read(&self) -> Vec<u8> {
        self.memory.borrow()[self.offset..self.offset + self.bytes].to_vec()
    }

    fn write(&self, bytes: &[u8]) {
        self.memory.borrow_mut()[self.offset..self.offset + bytes.len()].copy_from_slice(bytes);
    }

    fn add_one(&self) {
        let mut memory = self.memory.borrow_mut();
        memory[self.offset..self.offset + self.bytes]
            .iter_mut()
            .for_each(|b| *b = b.wrapping_add(1));
    }

    fn shares_memory_with(&self, other: &View) -> bool {
        Rc::ptr_eq(&self.memory, &other.memory)
    }
}

enum Step {
    AddOne(View),
    Copy { from: View, to: View },
}

#[derive(Default)]
struct Session {
    buffers: BTreeMap<u64, View>,
    graphs: BTreeMap<u64, Vec<Step>>,
}

enum Expected {
    Bytes(Vec<u8>),
    Properties,
    Seconds,
}

/// A batch that is being written.
#[derive(Default)]
struct Draft {
    commands: Vec<String>,
    blobs: Vec<Vec<u8>>,
    /// Of the last command that has an output.
    output: Option<Expected>,
    /// Words of the first failure.
    failure: Option<&'static str>,
}

impl Draft {
    fn fails(&mut self, command: String, words: &'static str) {
        self.commands.push(command);
        self.failure.get_or_insert(words);
    }
}

struct Soaker<'s> {
    link: Link,
    nonce: String,
    pick: &'s mut Pick,
    counts: &'s Counts,
    sessions: Vec<Session>,
    /// The last number of a buffer, graph or event.
    number: u64,
}

const VARIABLE: &str = "UOp(Ops.DEFINE_VAR, dtypes.int, arg=('n', 1, 100000000), src=())";
const BUFFERS_MAX: usize = 10;

/// A client's life, from its connection to its end.
pub(crate) fn episode(target: &Target, nonce: String, counts: &Counts, pick: &mut Pick) {
    let is_tls = pick.percent(50);
    let address = if is_tls { target.tls } else { target.plain };
    if pick.below(200) == 0 {
        let mut nobody = Link::open(address, is_tls, "nobody-0123456789abcdefghij");
        nobody.send(&nobody.request("[]", &[]));
        assert_eq!(nobody.receive().status, 401);
    }
    let link = Link::open(address, is_tls, pick.of(&target.tokens));
    let sessions = (0..pick.of(&[1, 1, 2, 3])).map(|_| Session::default()).collect();
    let mut soaker = Soaker { link, nonce, pick, counts, sessions, number: 0 };
    add(&counts.episodes, 1);
    add(&counts.sessions, soaker.sessions.len());
    match soaker.live() {
        Ok(()) if soaker.pick.percent(60) => {}
        Ok(()) => {
            add(&counts.deaths, 1);
            return soaker.die();
        }
        Err(Lost) => add(&counts.losses, 1),
    }
    let Soaker { link, pick, .. } = soaker;
    leave(link.into_socket(), pick);
}

impl Soaker<'_> {
    fn key(&self, at: usize) -> String {
        format!("SessionKey('h', {at}, '{}')", self.nonce)
    }

    fn live(&mut self) -> Result<(), Lost> {
        let mut draft = Draft { blobs: vec![ADD.into()], ..Draft::default() };
        for at in 0..self.sessions.len() {
            draft.commands.push(self.program(at, "add", ADD));
            self.new_buffer(at, &mut draft);
        }
        self.ask(draft)?;
        for _ in 0..self.pick.below(40) {
            let mut draft = Draft::default();
            for _ in 0..1 + self.pick.below(8) {
                self.something(&mut draft);
            }
            self.ask(draft)?;
        }
        if self.pick.percent(50) {
            let all = 0..self.sessions.len();
            let commands = all.map(|at| format!("SessionFree(session={})", self.key(at)));
            let draft = Draft { commands: commands.collect(), ..Draft::default() };
            self.sessions.iter_mut().for_each(|session| *session = Session::default());
            self.ask(draft)?;
        }
        Ok(())
    }

    /// Sends a batch and compares its reply with what is expected.
    fn ask(&mut self, draft: Draft) -> Result<(), Lost> {
        let reply = self.exchange(&draft);
        add(&self.counts.batches, 1);
        add(&self.counts.commands, draft.commands.len());
        let text = String::from_utf8_lossy(&reply.body[..reply.body.len().min(2000)]).into_owned();
        if is_loss(&reply) {
            return Err(Lost);
        }
        if let Some(words) = draft.failure {
            assert_eq!(reply.status, 500, "worked, not {words}: {:?}", draft.commands);
            assert!(text.contains(words), "{text}, not {words}: {:?}", draft.commands);
            add(&self.counts.failures_asked_for, 1);
            return Ok(());
        }
        assert_eq!(reply.status, 200, "{text}: {:?}", draft.commands);
        let is_right = match &draft.output {
            None => reply.body.is_empty(),
            Some(Expected::Bytes(bytes)) => *bytes == reply.body,
            Some(Expected::Properties) => text.starts_with("RemoteProperties(real_device='CPU'"),
            Some(Expected::Seconds) => text.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0),
        };
        if !is_right {
            // What a worker should have written that is gone is not there.
            self.look_for_losses()?;
            panic!("not what was asked for: {} bytes: {:?}", reply.body.len(), draft.commands);
        }
        add(&self.counts.bytes_checked, reply.body.len());
        Ok(())
    }

    fn exchange(&mut self, draft: &Draft) -> Reply {
        let blobs: Vec<&[u8]> = draft.blobs.iter().map(Vec::as_slice).collect();
        let text = format!("[{}]", draft.commands.join(", "));
        let request = self.link.request(&text, &blobs);
        // Some come in pieces.
        let pieces = self.pick.of(&[1, 1, 1, 3]);
        for piece in request.chunks(request.len().div_ceil(pieces)) {
            self.link.send(piece);
        }
        let reply = self.link.try_receive();
        reply.unwrap_or_else(|error| panic!("{error}: {:?}", draft.commands))
    }

    fn look_for_losses(&mut self) -> Result<(), Lost> {
        for at in 0..self.sessions.len() {
            let Some(buffer) = self.sessions[at].buffers.keys().next() else { continue };
            let out = format!("CopyOut({buffer}, session={})", self.key(at));
            let reply = self.exchange(&Draft { commands: vec![out], ..Draft::default() });
            if is_loss(&reply) {
                return Err(Lost);
            }
        }
        Ok(())
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn program(&self, at: usize, name: &str, source: &str) -> String {
        format!(
            "ProgramAlloc('{name}', '{}', session={})",
            name_of(source.as_bytes()),
            self.key(at)
        )
    }

    fn launch(&self, at: usize, source: &str, name: &str, buffer: u64, wait: bool) -> String {
        let bytes = self.sessions[at].buffers[&buffer].bytes;
        let (hash, wait) = (name_of(source.as_bytes()), if wait { "True" } else { "False" });
        let key = self.key(at);
        format!(
            "ProgramExec('{name}', '{hash}', ({buffer},), ({bytes},), None, None, {wait}, \
             session={key})"
        )
    }

    /// A session, and one of its buffers.
    fn any_buffer(&mut self) -> Option<(usize, u64)> {
        let at = self.pick.below(self.sessions.len());
        let buffers: Vec<u64> = self.sessions[at].buffers.keys().copied().collect();
        (!buffers.is_empty()).then(|| (at, self.pick.of(&buffers)))
    }

    fn view(&self, (at, buffer): (usize, u64)) -> View {
        self.sessions[at].buffers[&buffer].clone()
    }

    /// A buffer with bytes that the client knows.
    fn new_buffer(&mut self, at: usize, draft: &mut Draft) {
        let sizes = [1, 16, 16, 64, 64, 1000, 5000, 5000, 20_000, 70_000, 300_000, 2_000_000];
        let bytes = self.pick.of(&sizes);
        let (buffer, key) = (self.next_number(), self.key(at));
        draft.commands.push(format!("BufferAlloc({buffer}, {bytes}, BufferSpec(), session={key})"));
        let memory = Rc::new(RefCell::new(vec![0; bytes]));
        self.sessions[at].buffers.insert(buffer, View { memory, offset: 0, bytes });
        self.copy_in((at, buffer), draft);
    }

    fn copy_in(&mut self, (at, buffer): (usize, u64), draft: &mut Draft) {
        let view = self.view((at, buffer));
        let first = self.pick.below(256);
        let bytes: Vec<u8> = (0..view.bytes)
            .map(|i| u8::try_from((first + i * 7 + i / 256) % 256).unwrap())
            .collect();
        let (name, key) = (name_of(&bytes), self.key(at));
        draft.commands.push(format!("CopyIn({buffer}, '{name}', session={key})"));
        view.write(&bytes);
        if !draft.blobs.contains(&bytes) {
            draft.blobs.push(bytes);
        }
    }

    fn something(&mut self, draft: &mut Draft) {
        let Some((at, buffer)) = self.any_buffer() else {
            return self.new_buffer(0, draft);
        };
        let (view, key) = (self.view((at, buffer)), self.key(at));
        match self.pick.below(24) {
            0..3 if self.sessions[at].buffers.len() < BUFFERS_MAX => self.new_buffer(at, draft),
            3..5 => self.copy_in((at, buffer), draft),
            5..10 => {
                draft.commands.push(format!("CopyOut({buffer}, session={key})"));
                draft.output = Some(Expected::Bytes(view.read()));
            }
            10..14 => {
                let wait = self.pick.percent(30);
                draft.commands.push(self.launch(at, ADD, "add", buffer, wait));
                view.add_one();
                if wait {
                    draft.output = Some(Expected::Seconds);
                }
            }
            14..16 => self.transfer((at, buffer), draft),
            16..18 => self.graph(at, draft),
            18 => self.event(at, draft),
            19 => self.sub_buffer((at, buffer), draft),
            20 if self.sessions[at].buffers.len() > 2 => {
                draft.commands.push(format!("BufferFree({buffer}, session={key})"));
                self.sessions[at].buffers.remove(&buffer);
            }
            21 => self.short_lived_program((at, buffer), draft),
            22 => self.failure((at, buffer), draft),
            _ => {
                draft.commands.push(format!("GetProperties(session={key})"));
                draft.output = Some(Expected::Properties);
            }
        }
    }

    /// A copy to a new buffer of any session.
    fn transfer(&mut self, from: (usize, u64), draft: &mut Draft) {
        let (at, view) = (self.pick.below(self.sessions.len()), self.view(from));
        if self.sessions[at].buffers.len() >= BUFFERS_MAX {
            return;
        }
        let (to, key, bytes) = (self.next_number(), self.key(at), view.bytes);
        draft.commands.push(format!("BufferAlloc({to}, {bytes}, BufferSpec(), session={key})"));
        let (buffer, from_key) = (from.1, self.key(from.0));
        draft.commands.push(format!("Transfer({buffer}, {key}, {to}, session={from_key})"));
        let memory = Rc::new(RefCell::new(view.read()));
        self.sessions[at].buffers.insert(to, View { memory, offset: 0, bytes });
    }

    fn sub_buffer(&mut self, (at, base): (usize, u64), draft: &mut Draft) {
        let view = self.view((at, base));
        let (buffer, key) = (self.next_number(), self.key(at));
        let offset = self.pick.below(view.bytes.min(60_000));
        let bytes = 1 + self.pick.below((view.bytes - offset).min(60_000));
        draft
            .commands
            .push(format!("BufferOffset({buffer}, {bytes}, {offset}, {base}, session={key})"));
        let view = View { offset: view.offset + offset, bytes, ..view };
        self.sessions[at].buffers.insert(buffer, view);
    }

    /// Sets an event of one session by another, and waits for it.
    fn event(&mut self, at: usize, draft: &mut Draft) {
        let (to, event) = (self.pick.below(self.sessions.len()), self.next_number());
        let (key, to) = (self.key(at), self.key(to));
        draft.commands.push(format!("Event({to}, {event}, session={key})"));
        draft.commands.push(format!("Wait({event}, session={to})"));
    }

    fn short_lived_program(&mut self, (at, buffer): (usize, u64), draft: &mut Draft) {
        let name = format!("add{}", self.pick.below(40));
        let source = ADD.replace("add(", &format!("{name}("));
        let (hash, key) = (name_of(source.as_bytes()), self.key(at));
        draft.commands.push(self.program(at, &name, &source));
        draft.commands.push(self.launch(at, &source, &name, buffer, false));
        draft.commands.push(format!("ProgramFree('{name}', '{hash}', session={key})"));
        self.view((at, buffer)).add_one();
        if !draft.blobs.iter().any(|blob| blob == source.as_bytes()) {
            draft.blobs.push(source.into_bytes());
        }
    }

    /// What does not work, and says why.
    fn failure(&mut self, (at, buffer): (usize, u64), draft: &mut Draft) {
        let (key, bytes) = (self.key(at), self.view((at, buffer)).bytes);
        let number = self.next_number();
        match self.pick.below(4) {
            0 => draft.fails(format!("CopyOut(999999, session={key})"), "unknown buffer 999999"),
            1 => draft.fails(
                format!("BufferOffset({number}, 2, {bytes}, {buffer}, session={key})"),
                "lie outside of buffer",
            ),
            2 => {
                let source = "void broken(int* data0) { data0[0] = ; }";
                draft.fails(self.program(at, "broken", source), "compile error");
                if !draft.blobs.iter().any(|blob| blob == source.as_bytes()) {
                    draft.blobs.push(source.into());
                }
            }
            _ => draft.fails(
                format!("GraphExec({number}, (), {{}}, False, session={key})"),
                "unknown graph",
            ),
        }
    }

    /// Records a graph, or runs one, or forgets it.
    fn graph(&mut self, at: usize, draft: &mut Draft) {
        let (key, wait) = (self.key(at), self.pick.percent(30));
        let known = self.sessions[at].graphs.keys().next().copied();
        match known {
            None => {
                let graph = self.next_number();
                let (items, steps) = self.steps();
                draft
                    .commands
                    .push(format!("GraphAlloc({graph}, ({items}), (), {{}}, session={key})"));
                self.sessions[at].graphs.insert(graph, steps);
            }
            Some(graph) if self.pick.percent(20) => {
                draft.commands.push(format!("GraphFree({graph}, session={key})"));
                self.sessions[at].graphs.remove(&graph);
            }
            Some(graph) => {
                let words = if wait { "True" } else { "False" };
                draft
                    .commands
                    .push(format!("GraphExec({graph}, (), {{}}, {words}, session={key})"));
                for step in &self.sessions[at].graphs[&graph] {
                    match step {
                        Step::AddOne(view) => view.add_one(),
                        Step::Copy { from, to } => to.write(&from.read()),
                    }
                }
                if wait {
                    draft.output = Some(Expected::Seconds);
                }
            }
        }
    }

    /// Kernels and copies of any sessions.
    fn steps(&mut self) -> (String, Vec<Step>) {
        let (mut items, mut steps) = (String::new(), Vec::new());
        for _ in 0..1 + self.pick.below(6) {
            let Some(from) = self.any_buffer() else { continue };
            let (key, view) = (self.key(from.0), self.view(from));
            let to = self.any_buffer().filter(|to| {
                let to = self.view(*to);
                to.bytes == view.bytes && !to.shares_memory_with(&view)
            });
            if let Some(to) = to {
                let to_key = self.key(to.0);
                items += &format!("Transfer({}, {to_key}, {}, session={key}), ", from.1, to.1);
                steps.push(Step::Copy { from: view, to: self.view(to) });
            } else {
                let (hash, bytes) = (name_of(ADD.as_bytes()), view.bytes);
                items += &format!(
                    "GraphComputeItem({key}, 'add', '{hash}', ({},), ({VARIABLE},), \
                     {{{VARIABLE}: {bytes}}}, (), (0,), None, None), ",
                    from.1
                );
                steps.push(Step::AddOne(view));
            }
        }
        (items, steps)
    }

    /// Ends in the middle of something.
    fn die(mut self) {
        let key = self.key(0);
        match self.pick.below(6) {
            0 => {
                let bytes = self.pick.of(&[100, 30_000, 1_000_000]);
                let request = self.link.request("[]", &[&vec![1; bytes]]);
                let end = self.pick.below(request.len().min(1 << 16));
                self.link.send(&request[..end * (request.len() >> 16).max(1)]);
            }
            1 => {
                let number = self.next_number();
                let text = format!(
                    "[{}, BufferAlloc({number}, 16, BufferSpec(), session={key}), \
                     ProgramExec('bad', '{}', ({number},), (), None, None, True, session={key})]",
                    self.program(0, "bad", ENDLESS),
                    name_of(ENDLESS.as_bytes())
                );
                self.link.send(&self.link.request(&text, &[ENDLESS.as_bytes()]));
            }
            2 => self.link.send(&self.link.request(&format!("[Wait(7, session={key})]"), &[])),
            3 => {
                let number = self.next_number();
                let text = format!(
                    "[BufferAlloc({number}, 3000000, BufferSpec(), session={key}), \
                     CopyOut({number}, session={key})]"
                );
                self.link.send(&self.link.request(&text, &[]));
                // Its worker may be gone, and the reply be shorter than that.
                let _ = self.link.taste(self.pick.below(60_000).min(100));
            }
            4 => {
                let source = ADD.replace("add(", &format!("add{}(", self.nonce));
                let text = format!("[{}]", self.program(0, "late", &source));
                self.link.send(&self.link.request(&text, &[source.as_bytes()]));
            }
            _ => {}
        }
        dawdle(self.pick);
        leave(self.link.into_socket(), self.pick);
    }
}

/// Whether a reply says that a worker is gone.
fn is_loss(reply: &Reply) -> bool {
    reply.status == 500 && reply.text().contains("the worker was killed")
}

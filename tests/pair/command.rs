//! What clients send: commands, their text, and batches made of choices.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use outboard::blob::Digest;

use super::model::{NO_RDMA, OF_SERVER};
use super::pick::Pick;

/// A session's name: the ordinal of its device. No two sessions share one at a time.
pub type Key = u64;

/// Devices of each engine; names from here on are out of range.
pub const DEVICES: u64 = 32;

/// Sources of programs by number, and their names as blobs.
pub const SOURCES: [&[u8]; 5] = [b"add1", b"nop", b"fail", b"broken", &[b'x'; 65]];

pub fn source_digest(source: usize) -> Digest {
    Digest([200 + u8::try_from(source).expect("few sources"); 32])
}

/// A name of a program: what the client calls it, and the number of its source.
pub type ProgramName = (char, usize);

#[derive(Clone, Debug)]
pub struct Command {
    pub at: Key,
    pub act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    ExternalPointer,
    Image,
    None,
}

#[derive(Clone, Debug)]
pub enum Act {
    BufferAlloc {
        buffer: u64,
        size: u64,
        wish: Wish,
    },
    BufferFree {
        buffer: u64,
    },
    BufferOffset {
        buffer: u64,
        size: u64,
        offset: u64,
        base: u64,
    },
    /// `bytes` are those of the blob, if the batch has it.
    CopyIn {
        buffer: u64,
        blob: Digest,
        bytes: Option<Rc<[u8]>>,
    },
    CopyOut {
        buffer: u64,
    },
    Event {
        to: Key,
        host: &'static str,
        event: u64,
    },
    GetProperties,
    GraphAlloc {
        graph: u64,
        items: Vec<Item>,
        inputs: Vec<(Key, u64)>,
    },
    GraphExec {
        graph: u64,
        inputs: Vec<(Key, u64)>,
        value: Option<i64>,
        wait: bool,
    },
    GraphFree {
        graph: u64,
    },
    ProgramAlloc {
        name: ProgramName,
        is_sent: bool,
    },
    ProgramExec {
        name: ProgramName,
        buffers: Vec<u64>,
        value: i64,
        size: Option<i64>,
        wait: bool,
    },
    ProgramFree {
        name: ProgramName,
    },
    SessionFree,
    Transfer {
        from: u64,
        to: Key,
        host: &'static str,
        to_buffer: u64,
    },
    /// A copy of nothing to somewhere, or one of two commands that this server does not have.
    Unsupported(usize),
    Wait {
        event: u64,
    },
}

/// A step of a graph.
#[derive(Clone, Debug)]
pub enum Item {
    Copy { from: (Key, u64), to: (Key, u64) },
    Launch { at: Key, name: ProgramName, buffers: Vec<u64>, variable: Variable, is_sized: bool },
}

/// Whether the variable `i` is an argument of a graph's kernel, and whether it is fixed.
#[derive(Clone, Copy, Debug)]
pub enum Variable {
    Fixed(i64),
    Free,
    None,
}

const HOST: &str = "h";
const VARIABLE: &str = "UOp(Ops.DEFINE_VAR, dtypes.int, arg=('i', 1, 10), src=())";

fn key(host: &str, key: Key) -> String {
    format!("SessionKey(host='{host}', idx={key}, nonce='n')")
}

fn tuple<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    let items: String = items.iter().map(|item| text(item) + ", ").collect();
    format!("({items})")
}

fn program(name: &ProgramName) -> String {
    format!("'{}', '{}'", name.0, source_digest(name.1))
}

fn boolean(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

impl Command {
    pub fn name(&self) -> &'static str {
        match &self.act {
            Act::BufferAlloc { .. } => "BufferAlloc",
            Act::BufferFree { .. } => "BufferFree",
            Act::BufferOffset { .. } => "BufferOffset",
            Act::CopyIn { .. } => "CopyIn",
            Act::CopyOut { .. } => "CopyOut",
            Act::Event { .. } => "Event",
            Act::GetProperties => "GetProperties",
            Act::GraphAlloc { .. } => "GraphAlloc",
            Act::GraphExec { .. } => "GraphExec",
            Act::GraphFree { .. } => "GraphFree",
            Act::ProgramAlloc { .. } => "ProgramAlloc",
            Act::ProgramExec { .. } => "ProgramExec",
            Act::ProgramFree { .. } => "ProgramFree",
            Act::SessionFree => "SessionFree",
            Act::Transfer { .. } => "Transfer",
            Act::Unsupported(which) => {
                ["BatchTransfer", "BufferIOVAS", "IBConnect", "BlobLanding"][*which]
            }
            Act::Wait { .. } => "Wait",
        }
    }

    pub fn text(&self) -> String {
        let arguments = self.act.arguments();
        format!("{}({arguments}session={})", self.name(), key(HOST, self.at))
    }

    /// Whether it asks for what is the connection's and no session's: to be let in, or memory.
    pub fn is_of_connection(&self) -> bool {
        matches!(self.act, Act::Unsupported(2 | 3))
    }

    /// What becomes of it where there is no RDMA, if it is about that.
    pub fn refusal(&self) -> &'static str {
        match self.act {
            Act::Unsupported(3) => OF_SERVER,
            _ => NO_RDMA,
        }
    }

    /// Whether a reply may be this command's.
    pub fn has_output(&self) -> bool {
        match &self.act {
            Act::CopyOut { .. } | Act::GetProperties => true,
            Act::GraphExec { wait, .. } | Act::ProgramExec { wait, .. } => *wait,
            Act::Unsupported(which) => *which > 0,
            _ => false,
        }
    }
}

impl Act {
    /// The fields before the session, each with a comma.
    fn arguments(&self) -> String {
        let number = |number: &u64| number.to_string();
        let name = |(session, buffer): &(Key, u64)| format!("({}, {buffer})", key(HOST, *session));
        match self {
            Act::BufferAlloc { buffer, size, wish } => {
                let options = match wish {
                    Wish::ExternalPointer => "external_ptr=4096",
                    Wish::Image => "image=dtypes.imagef((1, 1, 4))",
                    Wish::None => "",
                };
                format!("{buffer}, {size}, BufferSpec({options}), ")
            }
            Act::BufferFree { buffer } | Act::CopyOut { buffer } => format!("{buffer}, "),
            Act::BufferOffset { buffer, size, offset, base } => {
                format!("{buffer}, {size}, {offset}, {base}, ")
            }
            Act::CopyIn { buffer, blob, .. } => format!("{buffer}, '{blob}', "),
            Act::Event { to, host, event } => format!("{}, {event}, ", key(host, *to)),
            Act::GetProperties | Act::SessionFree => String::new(),
            Act::GraphAlloc { graph, items, inputs } => {
                let (items, inputs) = (tuple(items, Item::text), tuple(inputs, name));
                format!("{graph}, {items}, {inputs}, {{}}, ")
            }
            Act::GraphExec { graph, inputs, value, wait } => {
                let values = value.map_or("{}".to_owned(), |value| format!("{{'i': {value}}}"));
                format!("{graph}, {}, {values}, {}, ", tuple(inputs, name), boolean(*wait))
            }
            Act::GraphFree { graph } => format!("{graph}, "),
            Act::ProgramAlloc { name, .. } | Act::ProgramFree { name } => {
                format!("{}, ", program(name))
            }
            Act::ProgramExec { name, buffers, value, size, wait } => {
                let size = size.map_or("None".to_owned(), |size| format!("({size}, 1, 1)"));
                let (buffers, wait) = (tuple(buffers, number), boolean(*wait));
                format!("{}, {buffers}, ({value},), {size}, {size}, {wait}, ", program(name))
            }
            Act::Transfer { from, to, host, to_buffer } => {
                format!("{from}, {}, {to_buffer}, ", key(host, *to))
            }
            Act::Unsupported(0) => "[], [(SessionKey('elsewhere', 0, 'n'), 1)], ".to_owned(),
            Act::Unsupported(1) => "[], ".to_owned(),
            Act::Unsupported(2) => "'elsewhere', b'0123456789abcdef', 1, ".to_owned(),
            Act::Unsupported(_) => format!("[('{}', 4)], ", "00".repeat(32)),
            Act::Wait { event } => format!("{event}, "),
        }
    }
}

impl Item {
    fn text(&self) -> String {
        match self {
            Item::Copy { from, to } => {
                let (source, destination) = (key(HOST, from.0), key(HOST, to.0));
                format!("Transfer({}, {destination}, {}, session={source})", from.1, to.1)
            }
            Item::Launch { at, name, buffers, variable, is_sized } => {
                let variables = match variable {
                    Variable::None => "()".to_owned(),
                    Variable::Fixed(_) | Variable::Free => format!("({VARIABLE},)"),
                };
                let fixed = match variable {
                    Variable::Fixed(value) => format!("{{{VARIABLE}: {value}}}"),
                    Variable::Free | Variable::None => "{}".to_owned(),
                };
                let size = if *is_sized { format!("({VARIABLE}, 1, 1)") } else { "None".into() };
                format!(
                    "GraphComputeItem({}, {}, {}, {variables}, {fixed}, (), (0,), {size}, None)",
                    key(HOST, *at),
                    program(name),
                    tuple(buffers, |buffer| buffer.to_string()),
                )
            }
        }
    }
}

/// A batch.
#[derive(Debug, Default)]
pub struct Request {
    pub commands: Vec<Command>,
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

impl Request {
    pub fn text(&self) -> String {
        let commands: Vec<String> = self.commands.iter().map(Command::text).collect();
        format!("[{}]", commands.join(", "))
    }

    fn add_source(&mut self, source: usize) {
        let digest = source_digest(source);
        if !self.blobs.iter().any(|(name, _)| *name == digest) {
            self.blobs.push((digest, SOURCES[source].to_vec()));
        }
    }

    /// Which programs' sources it brings.
    fn find_sources(&mut self) {
        for command in &mut self.commands {
            if let Act::ProgramAlloc { name, is_sent } = &mut command.act {
                let digest = source_digest(name.1);
                *is_sent = self.blobs.iter().any(|(blob, _)| *blob == digest);
            }
        }
    }

    /// A blob of the batch, under the next free name.
    fn add_blob(&mut self, bytes: Vec<u8>) -> Digest {
        let digest = Digest([u8::try_from(self.blobs.len()).expect("few blobs"); 32]);
        self.blobs.push((digest, bytes));
        digest
    }
}

/// What one client knows of its own doing, so that most of its commands make sense.
#[derive(Debug)]
pub struct Author {
    /// Its own sessions' names.
    own: Vec<Key>,
    /// All clients' names.
    all: Vec<Key>,
    /// Percentage of commands that name others' sessions.
    foreign: usize,
    /// The first of the bytes that it sends.
    first_byte: u8,
    has_long_blobs: bool,
    known: BTreeMap<Key, Known>,
    /// Buffers that it will still look at, at its end.
    looks_left: usize,
}

/// What is known of a graph.
#[derive(Clone, Debug)]
struct KnownGraph {
    inputs: usize,
    copy: Option<Copied>,
}

/// A copy between sessions.
#[derive(Clone, Copy, Debug)]
struct Copied {
    from: (Key, u64),
    to: (Key, u64),
}

/// What a session should have by now.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Their sizes.
    buffers: BTreeMap<u64, u64>,
    events: BTreeSet<u64>,
    /// How many inputs they have.
    graphs: BTreeMap<u64, KnownGraph>,
    programs: BTreeSet<ProgramName>,
}

/// From here on a blob may become its buffer's memory.
pub const LONG: u64 = 256 << 10;
const HUGE: u64 = 1 << 50;
const BUFFERS: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const FEW: [u64; 4] = [1, 2, 3, 4];

impl Author {
    pub fn new(index: usize, all: &[Key], foreign: usize, has_long_blobs: bool) -> Author {
        let own = all.chunks(3).nth(index).expect("three names for each client").to_vec();
        let first_byte = u8::try_from(index * 50).expect("few clients");
        let (all, known) = (all.to_vec(), BTreeMap::new());
        Author { own, all, foreign, first_byte, has_long_blobs, known, looks_left: 5 }
    }

    /// The client's next batch.
    pub fn request(&mut self, pick: &mut Pick) -> Request {
        let mut request = Request::default();
        for at in [self.own[0], self.own[1]] {
            if !self.known.contains_key(&at) && pick.percent(80) {
                self.prepare(pick, at, &mut request);
            }
        }
        for _ in 0..pick.of(&[1, 1, 1, 1, 2, 2, 2, 3, 3, 5, 12]) {
            let at = self.key(pick);
            let has_nothing = self.known(at).buffers.is_empty() && !pick.percent(10);
            let act = match pick.below(20) {
                _ if has_nothing => self.buffer_alloc(pick, at),
                0..2 => self.buffer_alloc(pick, at),
                2..4 => {
                    let buffer = self.buffer(pick, at);
                    self.copy_in(pick, at, buffer, &mut request)
                }
                4..8 => Act::CopyOut { buffer: self.buffer(pick, at) },
                8..11 => self.program_exec(pick, at),
                11..15 => self.graph_or_transfer(pick, at),
                _ => self.other(pick, at, &mut request),
            };
            let copy = self.copy_of(at, &act);
            request.commands.push(Command { at, act });
            if let Some(copy) = copy
                && pick.percent(50)
            {
                self.disturb(pick, copy, &mut request);
                break;
            }
        }
        request.find_sources();
        request
    }

    /// One of the batches with which a client ends: a look at a single buffer.
    pub fn look(&mut self, pick: &mut Pick) -> Option<Request> {
        self.looks_left = self.looks_left.checked_sub(1)?;
        let at = pick.of(&self.own[..2]);
        let act = Act::CopyOut { buffer: self.buffer(pick, at) };
        Some(Request { commands: vec![Command { at, act }], blobs: Vec::new() })
    }

    /// Whether there is nothing left to look at.
    pub fn has_looked(&self) -> bool {
        self.looks_left == 0
    }

    /// Buffers and a program, for what is to come.
    fn prepare(&mut self, pick: &mut Pick, at: Key, request: &mut Request) {
        let name = ('p', 0);
        request.add_source(name.1);
        self.known(at).programs.insert(name);
        request.commands.push(Command { at, act: Act::ProgramAlloc { name, is_sent: false } });
        for buffer in 1..4 {
            let size = if self.has_long_blobs && buffer > 1 { LONG } else { 4 };
            let act = Act::BufferAlloc { buffer, size, wish: Wish::None };
            self.known(at).buffers.insert(buffer, size);
            request.commands.push(Command { at, act });
            if pick.percent(70) {
                let act = self.copy_in(pick, at, buffer, request);
                request.commands.push(Command { at, act });
            }
        }
        if self.has_long_blobs && pick.percent(50) {
            self.use_twice(pick, at, request);
        }
        if pick.percent(60) {
            let act = Act::BufferOffset { buffer: 5, size: 2, offset: 2, base: 1 };
            self.known(at).buffers.insert(5, 2);
            request.commands.push(Command { at, act });
            if pick.percent(50) {
                let act = Act::BufferOffset { buffer: 6, size: 1, offset: 1, base: 5 };
                self.known(at).buffers.insert(6, 1);
                request.commands.push(Command { at, act });
            }
        }
    }

    /// A long blob into two buffers, of which the first is changed in between.
    fn use_twice(&mut self, pick: &mut Pick, at: Key, request: &mut Request) {
        let first = self.copy_in(pick, at, 2, request);
        let (name, wait) = (('p', 0), false);
        let (buffers, value, size) = (vec![2], 1, None);
        let change = Act::ProgramExec { name, buffers, value, size, wait };
        let mut second = first.clone();
        if let Act::CopyIn { buffer, .. } = &mut second {
            *buffer = 3;
        }
        let acts = [first, change, second];
        request.commands.extend(acts.map(|act| Command { at, act }));
    }

    /// The last copy between sessions that this makes.
    fn copy_of(&mut self, at: Key, act: &Act) -> Option<Copied> {
        match act {
            Act::GraphExec { graph, .. } => self.known(at).graphs.get(graph)?.copy,
            Act::Transfer { from, to, to_buffer, .. } if *to != at => {
                Some(Copied { from: (at, *from), to: (*to, *to_buffer) })
            }
            _ => None,
        }
    }

    /// Right behind a copy, does to its source what must not come too soon, and looks.
    fn disturb(&mut self, pick: &mut Pick, copy: Copied, request: &mut Request) {
        let (at, buffer) = copy.from;
        let act = if pick.percent(20) {
            self.known.remove(&at);
            Act::SessionFree
        } else {
            self.copy_in(pick, at, buffer, request)
        };
        request.commands.push(Command { at, act });
        let (at, buffer) = copy.to;
        request.commands.push(Command { at, act: Act::CopyOut { buffer } });
    }

    fn known(&mut self, at: Key) -> &mut Known {
        self.known.entry(at).or_default()
    }

    fn key(&self, pick: &mut Pick) -> Key {
        if pick.below(200) == 199 {
            return DEVICES + 1;
        }
        if pick.percent(self.foreign) { pick.of(&self.all) } else { pick.of(&self.own[..2]) }
    }

    /// Most often one of `known`, else any of `all`.
    fn choose<T: Clone>(pick: &mut Pick, known: impl Iterator<Item = T>, all: &[T]) -> T {
        let known: Vec<T> = known.collect();
        if known.is_empty() || pick.below(20) == 19 { pick.of(all) } else { pick.of(&known) }
    }

    fn buffer(&mut self, pick: &mut Pick, at: Key) -> u64 {
        Self::choose(pick, self.known(at).buffers.keys().copied(), &BUFFERS)
    }

    /// A number that is free, most often.
    fn new_buffer(&mut self, pick: &mut Pick, at: Key) -> u64 {
        let known = self.known(at).buffers.clone();
        let free = BUFFERS.into_iter().filter(|number| !known.contains_key(number));
        Self::choose(pick, free, &BUFFERS)
    }

    fn name(&mut self, pick: &mut Pick, at: Key) -> ProgramName {
        let any = Self::any_name(pick);
        Self::choose(pick, self.known(at).programs.iter().copied(), &[any])
    }

    fn any_name(pick: &mut Pick) -> ProgramName {
        (pick.of(&['p', 'p', 'p', 'q']), pick.of(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]))
    }

    fn buffer_alloc(&mut self, pick: &mut Pick, at: Key) -> Act {
        let buffer = self.new_buffer(pick, at);
        let long = if self.has_long_blobs { LONG } else { 4 };
        let size =
            pick.of(&[4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 3, 3, 200, long, long, 0, HUGE]);
        let wish = match pick.below(40) {
            38 => Wish::Image,
            39 => Wish::ExternalPointer,
            _ => Wish::None,
        };
        if (1..HUGE).contains(&size) && wish == Wish::None {
            self.known(at).buffers.entry(buffer).or_insert(size);
        }
        Act::BufferAlloc { buffer, size, wish }
    }

    fn copy_in(&mut self, pick: &mut Pick, at: Key, buffer: u64, request: &mut Request) -> Act {
        let known = self.known(at).buffers.get(&buffer).copied().unwrap_or(4);
        let size = if pick.percent(4) { 5 } else { known };
        if pick.percent(2) {
            return Act::CopyIn { buffer, blob: Digest([199; 32]), bytes: None };
        }
        // Sometimes one blob is named twice.
        if pick.percent(20)
            && let Some((blob, bytes)) = request
                .blobs
                .iter()
                .find(|(name, bytes)| name.0[0] < 100 && bytes.len() as u64 == size)
        {
            return Act::CopyIn { buffer, blob: *blob, bytes: Some(bytes[..].into()) };
        }
        let first = self.first_byte + u8::try_from(pick.below(40)).expect("below 40");
        let bytes: Vec<u8> = (0..size).map(|at| first + u8::from(at % 2 == 1)).collect();
        let blob = request.add_blob(bytes.clone());
        Act::CopyIn { buffer, blob, bytes: Some(bytes.into()) }
    }

    fn program_exec(&mut self, pick: &mut Pick, at: Key) -> Act {
        let count = pick.of(&[1, 1, 1, 1, 1, 2, 0]);
        let buffers = (0..count).map(|_| self.buffer(pick, at)).collect();
        let value = if pick.percent(3) { 1 << 31 } else { -1 };
        let size = pick.of(&[None, None, None, None, None, Some(3), Some(3), Some(1), Some(0)]);
        let (name, wait) = (self.name(pick, at), pick.percent(30));
        Act::ProgramExec { name, buffers, value, size, wait }
    }

    fn graph_or_transfer(&mut self, pick: &mut Pick, at: Key) -> Act {
        let graphs = self.known(at).graphs.clone();
        let has_none = graphs.is_empty() && !pick.percent(5);
        match pick.below(12) {
            3.. if has_none => self.graph_alloc(pick, at),
            0..3 => {
                let to = self.key(pick);
                let (from, to_buffer) = (self.buffer(pick, at), self.buffer(pick, to));
                Act::Transfer { from, to, host: Self::host(pick), to_buffer }
            }
            3..6 => self.graph_alloc(pick, at),
            6..11 => {
                let graph = Self::choose(pick, graphs.keys().copied(), &FEW);
                let count = graphs.get(&graph).map_or(1, |known| known.inputs);
                let count = if pick.percent(5) { 1 } else { count };
                let value = pick.of(&[Some(5), Some(5), Some(5), Some(5), None, Some(0)]);
                let (inputs, wait) = (self.inputs(pick, at, count), pick.percent(30));
                Act::GraphExec { graph, inputs, value, wait }
            }
            _ => {
                let graph = Self::choose(pick, graphs.keys().copied(), &FEW);
                self.known(at).graphs.remove(&graph);
                Act::GraphFree { graph }
            }
        }
    }

    fn graph_alloc(&mut self, pick: &mut Pick, at: Key) -> Act {
        let graphs = self.known(at).graphs.clone();
        let free = FEW.into_iter().filter(|number| !graphs.contains_key(number));
        let graph = Self::choose(pick, free, &FEW);
        let count = pick.of(&[0, 1, 1, 2]);
        let inputs = self.inputs(pick, at, count);
        let count = pick.of(&[1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 0]);
        let items: Vec<Item> = (0..count).map(|_| self.item(pick, at, &inputs)).collect();
        let copy = items.iter().rev().find_map(|item| match item {
            Item::Copy { from, to } if from.0 != to.0 => Some(Copied { from: *from, to: *to }),
            _ => None,
        });
        self.known(at).graphs.insert(graph, KnownGraph { inputs: inputs.len(), copy });
        Act::GraphAlloc { graph, items, inputs }
    }

    fn other(&mut self, pick: &mut Pick, at: Key, request: &mut Request) -> Act {
        match pick.below(24) {
            0..5 => {
                let (base, buffer) = (self.buffer(pick, at), self.new_buffer(pick, at));
                let size = pick.of(&[1, 2, 2, 3, 4, 4, 4, 5]);
                let offset = pick.of(&[0, 0, 0, 1, 1, 1, 2, 2, u64::MAX]);
                self.known(at).buffers.entry(buffer).or_insert(size);
                Act::BufferOffset { buffer, size, offset, base }
            }
            5..9 => {
                let buffer = self.buffer(pick, at);
                self.known(at).buffers.remove(&buffer);
                Act::BufferFree { buffer }
            }
            9..13 => {
                let name = Self::any_name(pick);
                if !pick.percent(5) {
                    request.add_source(name.1);
                }
                self.known(at).programs.insert(name);
                Act::ProgramAlloc { name, is_sent: false }
            }
            13..15 => {
                let name = self.name(pick, at);
                self.known(at).programs.remove(&name);
                Act::ProgramFree { name }
            }
            15..19 => {
                let (to, event) = (self.key(pick), pick.of(&FEW));
                self.known(to).events.insert(event);
                Act::Event { to, host: Self::host(pick), event }
            }
            19..22 => {
                let known = self.known(at).events.clone();
                let event = Self::choose(pick, known.into_iter(), &FEW);
                self.known(at).events.remove(&event);
                Act::Wait { event }
            }
            22 if pick.percent(30) => {
                self.known.remove(&at);
                Act::SessionFree
            }
            22 => Act::GetProperties,
            _ if pick.percent(20) => Act::Unsupported(pick.below(4)),
            _ => Act::GetProperties,
        }
    }

    fn host(pick: &mut Pick) -> &'static str {
        if pick.percent(3) { "elsewhere" } else { HOST }
    }

    fn inputs(&mut self, pick: &mut Pick, at: Key, count: usize) -> Vec<(Key, u64)> {
        let mut input = |_| {
            let key = if pick.percent(10) { self.key(pick) } else { at };
            (key, self.buffer(pick, key))
        };
        (0..count).map(&mut input).collect()
    }

    /// A buffer of a graph: one of its inputs, as often as not.
    fn place(&mut self, pick: &mut Pick, at: Key, inputs: &[(Key, u64)]) -> (Key, u64) {
        if !inputs.is_empty() && pick.percent(50) {
            return pick.of(inputs);
        }
        let key = if pick.percent(30) { self.key(pick) } else { at };
        (key, self.buffer(pick, key))
    }

    fn item(&mut self, pick: &mut Pick, at: Key, inputs: &[(Key, u64)]) -> Item {
        let from = self.place(pick, at, inputs);
        if pick.percent(40) {
            return Item::Copy { from, to: self.place(pick, at, inputs) };
        }
        let variable = match pick.below(16) {
            12..14 => Variable::Fixed(3),
            14 => Variable::Free,
            15 => Variable::Fixed(1 << 40),
            _ => Variable::None,
        };
        let (name, (at, buffer)) = (self.name(pick, from.0), from);
        let buffers = vec![buffer];
        Item::Launch { at, name, buffers, variable, is_sized: pick.percent(20) }
    }
}

//! What sessions on two hosts should hold: the model of `hosts`.
//!
//! Knows nothing of queues, connections and bytes on their way. A command has its effect when an
//! engine is done with it, and another host's part of it when the request for it has run there.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A client, and the ordinal of one of its devices.
pub type Name = (usize, u64);

/// How clients name the hosts.
pub const HOSTS: [&str; 2] = ["a:1", "b:1"];

/// Numbers of buffers, and their lengths.
pub const BUFFERS: [(u64, usize); 4] = [(1, 4), (2, 4), (3, 700), (4, 3000)];

/// Counts up, so that bytes in the wrong place are seen.
pub fn pattern(first: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| first.wrapping_add(at.to_le_bytes()[0])).collect()
}

pub fn key(host: usize, (client, device): Name) -> String {
    format!("SessionKey('{}', {device}, 'c{client}')", HOSTS[host])
}

/// What a client has a host do.
#[derive(Clone, Debug)]
pub struct Command {
    pub device: u64,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub enum Act {
    Add1 {
        buffer: u64,
    },
    Alloc {
        buffer: u64,
    },
    CopyIn {
        buffer: u64,
        first: u8,
    },
    CopyOut {
        buffer: u64,
    },
    /// To the other host: devices and buffers, there and here. A single one is a `Transfer`.
    Copies(Vec<[(u64, u64); 2]>),
    /// Of the other host.
    Event {
        device: u64,
        event: u64,
    },
    Free {
        buffer: u64,
    },
    FreeSession,
    Program,
    Wait {
        event: u64,
    },
}

/// One command of a request of one host to the other.
#[derive(Clone, Debug)]
pub enum Errand {
    Copy {
        to: (Name, u64),
        bytes: usize,
        first: Rc<Cell<Option<u8>>>,
    },
    Event {
        to: Name,
        event: u64,
    },
    /// That no host asks of another.
    Forbidden,
}

/// A buffer.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub bytes: usize,
    /// Its first byte, if that is known.
    pub first: Option<u8>,
}

/// How often a client's memory on one host has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    pub own: u32,
    pub of_peers: u32,
}

#[derive(Debug, Default)]
struct Session {
    buffers: BTreeMap<u64, Held>,
    events: BTreeSet<u64>,
    has_program: bool,
}

/// A rule that is wrong on purpose, to see whether the difference is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    CopyChangesNothing,
    EventStays,
    FirstToFailCounts,
    PeerOpensSessions,
}

pub const WRONG: [Wrong; 4] = [
    Wrong::CopyChangesNothing,
    Wrong::EventStays,
    Wrong::FirstToFailCounts,
    Wrong::PeerOpensSessions,
];

/// All sessions of both hosts.
#[derive(Debug)]
pub struct Books {
    hosts: [BTreeMap<Name, Session>; 2],
    /// Of each host and client.
    writes: BTreeMap<(usize, usize), Writes>,
    pub wrong: Option<Wrong>,
}

impl Books {
    pub fn new(wrong: Option<Wrong>) -> Books {
        Books { hosts: Default::default(), writes: BTreeMap::new(), wrong }
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.iter().all(BTreeMap::is_empty)
    }

    pub fn held(&self, host: usize, name: Name, buffer: u64) -> Option<Held> {
        self.hosts[host].get(&name)?.buffers.get(&buffer).copied()
    }

    pub fn writes(&self, host: usize, client: usize) -> Writes {
        self.writes.get(&(host, client)).copied().unwrap_or_default()
    }

    /// A client's connection to a host has ended.
    pub fn release(&mut self, host: usize, client: usize) {
        self.hosts[host].retain(|(owner, _), _| *owner != client);
    }

    /// The engine takes up a client's command, which opens the session that it names.
    pub fn begin(&mut self, host: usize, name: Name) {
        self.hosts[host].entry(name).or_default();
    }

    /// The engine is done with a client's command, or with its own part of it. Whether it should
    /// have worked, and what the other host is to be asked for.
    pub fn done(
        &mut self,
        host: usize,
        client: usize,
        command: &Command,
    ) -> Result<Vec<Errand>, String> {
        let name = (client, command.device);
        if command.writes() {
            self.writes.entry((host, client)).or_default().own += 1;
        }
        if let Act::FreeSession = command.act {
            self.hosts[host].remove(&name);
            return Ok(Vec::new());
        }
        let stays = self.wrong == Some(Wrong::EventStays);
        let session = self.hosts[host].entry(name).or_default();
        let unknown = |buffer: u64| format!("unknown buffer {buffer}");
        match &command.act {
            Act::Add1 { .. } if !session.has_program => return Err("unknown program".to_owned()),
            Act::Add1 { buffer } => {
                let held = session.buffers.get_mut(buffer).ok_or(unknown(*buffer))?;
                held.first = held.first.map(|first| first.wrapping_add(1));
            }
            Act::Alloc { buffer } => {
                let bytes = BUFFERS.iter().find(|(number, _)| number == buffer).expect("known").1;
                let held = Held { bytes, first: None };
                session.buffers.insert(*buffer, held);
            }
            Act::CopyIn { buffer, first } => {
                let held = session.buffers.get_mut(buffer).ok_or(unknown(*buffer))?;
                held.first = Some(*first);
            }
            Act::CopyOut { buffer } => {
                session.buffers.get(buffer).ok_or(unknown(*buffer))?;
            }
            Act::Copies(pairs) => return self.parcels(host, client, pairs),
            Act::Event { device, event } => {
                return Ok(vec![Errand::Event { to: (client, *device), event: *event }]);
            }
            Act::Free { buffer } => {
                session.buffers.remove(buffer).ok_or(unknown(*buffer))?;
            }
            Act::Program => session.has_program = true,
            Act::Wait { event } => {
                let is_set = match stays {
                    true => session.events.contains(event),
                    false => session.events.remove(event),
                };
                if !is_set {
                    return Err(format!("nobody set event {event} within"));
                }
            }
            Act::FreeSession => {}
        }
        Ok(Vec::new())
    }

    fn parcels(
        &self,
        host: usize,
        client: usize,
        pairs: &[[(u64, u64); 2]],
    ) -> Result<Vec<Errand>, String> {
        let parcel = |[(device, buffer), (to, to_buffer)]: &[(u64, u64); 2]| {
            let name = (client, *device);
            if !self.hosts[host].contains_key(&name) {
                return Err(format!("unknown session of device {device}"));
            }
            let held = self.held(host, name, *buffer);
            let held = held.ok_or(format!("unknown buffer {buffer}"))?;
            let (to, first) = (((client, *to), *to_buffer), Rc::new(Cell::new(held.first)));
            Ok(Errand::Copy { to, bytes: held.bytes, first })
        };
        pairs.iter().map(parcel).collect()
    }

    /// The engine is done with a command of another host's request, which is for a client if that
    /// is said. Whether it should have worked.
    pub fn received(
        &mut self,
        host: usize,
        client: Option<usize>,
        errand: &Errand,
    ) -> Result<(), String> {
        let opens = self.wrong == Some(Wrong::PeerOpensSessions);
        let changes = self.wrong != Some(Wrong::CopyChangesNothing);
        let sessions = &mut self.hosts[host];
        if let Errand::Copy { to: (name, _), .. } | Errand::Event { to: name, .. } = errand {
            if client.is_some_and(|client| client != name.0) {
                return Err("unknown session".to_owned());
            }
            if opens {
                sessions.entry(*name).or_default();
            }
        }
        let unknown = || "unknown session".to_owned();
        match errand {
            Errand::Copy { to: (name, buffer), bytes, first } => {
                let session = sessions.get_mut(name).ok_or_else(unknown)?;
                let unknown = format!("unknown buffer {buffer}");
                let held = session.buffers.get_mut(buffer).ok_or(unknown)?;
                if held.bytes != *bytes {
                    return Err(format!("the blob has {bytes} bytes, buffer {buffer} has"));
                }
                if changes {
                    held.first = first.get();
                }
                self.writes.entry((host, name.0)).or_default().of_peers += 1;
            }
            Errand::Event { to, event } => {
                sessions.get_mut(to).ok_or_else(unknown)?.events.insert(*event);
            }
            Errand::Forbidden => return Err("not what one server asks of another".to_owned()),
        }
        Ok(())
    }
}

impl Command {
    pub fn has_output(&self) -> bool {
        matches!(self.act, Act::CopyOut { .. })
    }

    fn writes(&self) -> bool {
        !matches!(self.act, Act::CopyOut { .. } | Act::Copies(_) | Act::Event { .. })
    }

    /// As a client of this host writes it; the blob at this place is its own.
    pub fn text(&self, host: usize, client: usize, blob: &str) -> String {
        let there = 1 - host;
        let session = format!("session={}", key(host, (client, self.device)));
        match &self.act {
            Act::Add1 { buffer } => {
                format!("ProgramExec('p', '{blob}', ({buffer},), (), None, None, False, {session})")
            }
            Act::Alloc { buffer } => {
                let bytes = BUFFERS.iter().find(|(number, _)| number == buffer).expect("known").1;
                format!("BufferAlloc({buffer}, {bytes}, BufferSpec(), {session})")
            }
            Act::CopyIn { buffer, .. } => format!("CopyIn({buffer}, '{blob}', {session})"),
            Act::CopyOut { buffer } => format!("CopyOut({buffer}, {session})"),
            Act::Copies(pairs) => match &pairs[..] {
                [[(_, buffer), (device, to)]] => {
                    let to_session = key(there, (client, *device));
                    format!("Transfer({buffer}, {to_session}, {to}, {session})")
                }
                pairs => {
                    let list = |end: usize, host| {
                        let name = |pair: &[(u64, u64); 2]| {
                            let (device, buffer) = pair[end];
                            format!("({}, {buffer})", key(host, (client, device)))
                        };
                        pairs.iter().map(name).collect::<Vec<_>>().join(", ")
                    };
                    let (from, to) = (list(0, host), list(1, there));
                    format!("BatchTransfer([{from}], [{to}], {session})")
                }
            },
            Act::Event { device, event } => {
                format!("Event({}, {event}, {session})", key(there, (client, *device)))
            }
            Act::Free { buffer } => format!("BufferFree({buffer}, {session})"),
            Act::FreeSession => format!("SessionFree({session})"),
            Act::Program => format!("ProgramAlloc('p', '{blob}', {session})"),
            Act::Wait { event } => format!("Wait({event}, {session})"),
        }
    }
}

//! Handles: numbers that are never used twice and that tell their kind.

use std::collections::BTreeMap;

use super::files::report;
use super::{Code, Outcome, code};

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Context = 1,
    Stream,
    Event,
    Pool,
    Module,
    Function,
    Graph,
    Node,
    GraphExec,
    /// Of a compiler: programs and data sets.
    Compiler,
    Data,
    Info,
    Memory,
}

const KINDS: [&str; 13] = [
    "context",
    "stream",
    "event",
    "pool",
    "module",
    "function",
    "graph",
    "node",
    "graph exec",
    "compiler object",
    "data object",
    "action info",
    "memory",
];

impl Kind {
    fn name(self) -> &'static str {
        KINDS[self as usize - 1]
    }
}

/// Handles look like addresses that no process can have, so that using one as a pointer faults.
const HANDLES: u64 = 0x00f0_0000_0000_0000;

fn kind_of(handle: u64) -> Option<&'static str> {
    let kind = usize::try_from((handle ^ HANDLES) >> 44).ok()?;
    KINDS.get(kind.checked_sub(1)?).copied()
}

/// Everything of one kind that is alive.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: Kind,
    made: u64,
    items: BTreeMap<u64, T>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: Kind) -> Table<T> {
        Table { kind, made: 0, items: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, item: T) -> u64 {
        self.made += 1;
        let handle = HANDLES | (self.kind as u64) << 44 | self.made << 4;
        self.items.insert(handle, item);
        handle
    }

    pub(crate) fn get(&self, handle: u64) -> Outcome<&T> {
        self.items.get(&handle).ok_or_else(|| self.wrong(handle))
    }

    pub(crate) fn get_mut(&mut self, handle: u64) -> Outcome<&mut T> {
        if !self.items.contains_key(&handle) {
            return Err(self.wrong(handle));
        }
        Ok(self.items.get_mut(&handle).expect("it was just found"))
    }

    pub(crate) fn take(&mut self, handle: u64) -> Outcome<T> {
        self.items.remove(&handle).ok_or_else(|| self.wrong(handle))
    }

    /// Without a word about a handle that is not there.
    pub(crate) fn find(&self, handle: u64) -> Option<&T> {
        self.items.get(&handle)
    }

    pub(crate) fn find_mut(&mut self, handle: u64) -> Option<&mut T> {
        self.items.get_mut(&handle)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items.iter().map(|(&handle, item)| (handle, item))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.items.iter_mut().map(|(&handle, item)| (handle, item))
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Removes what the condition holds for and says how many that were.
    pub(crate) fn remove_where(&mut self, condition: impl Fn(&T) -> bool) -> usize {
        let before = self.items.len();
        self.items.retain(|_, item| !condition(item));
        before - self.items.len()
    }

    fn wrong(&self, handle: u64) -> Code {
        let wanted = self.kind.name();
        let what = match kind_of(handle) {
            _ if handle == 0 => format!("the {wanted} is null"),
            Some(kind) if kind == wanted => format!("{wanted} {handle:#x} was destroyed before"),
            Some(kind) => format!("{kind} {handle:#x} given as a {wanted}"),
            None => format!("{handle:#x} is no {wanted}"),
        };
        report("protocol", &what);
        code::INVALID_HANDLE
    }
}

//! What is known to have happened before what, and which accesses to memory are not ordered by it.
//!
//! Each stream counts its operations. A [`Clock`] says up to which operation of each stream
//! everything has happened; streams pass it on through events, and to the host through whatever
//! the host waited for. Two accesses to the same bytes, one of them a write, of which neither is
//! known to come first are a race, whether or not this run happened to order them well.

use std::collections::BTreeMap;

/// For each stream the number of its operations that have happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(BTreeMap<u64, u64>);

impl Clock {
    pub(super) fn merge(&mut self, other: &Clock) {
        for (&stream, &count) in &other.0 {
            let known = self.0.entry(stream).or_default();
            *known = count.max(*known);
        }
    }

    pub(super) fn set(&mut self, stream: u64, count: u64) {
        self.0.insert(stream, count);
    }

    pub(super) fn covers(&self, stream: u64, index: u64) -> bool {
        self.0.get(&stream).is_some_and(|&count| count >= index)
    }

    /// Forgets a stream that is gone with all its work.
    pub(super) fn forget(&mut self, stream: u64) {
        self.0.remove(&stream);
    }
}

/// Bytes that an operation reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) writes: bool,
}

impl Touch {
    pub(super) fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes)
    }

    pub(super) fn overlaps(&self, other: &Touch) -> bool {
        self.at < other.end() && other.at < self.end()
    }

    /// Whether the order of the two matters.
    pub(super) fn conflicts(&self, other: &Touch) -> bool {
        (self.writes || other.writes) && self.overlaps(other)
    }

    fn covers(&self, other: &Touch) -> bool {
        self.at <= other.at && other.end() <= self.end()
    }
}

/// An operation's access to one piece of memory.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) touch: Touch,
    pub(super) stream: u64,
    pub(super) index: u64,
    pub(super) call: &'static str,
}

/// Beyond this the oldest accesses are forgotten.
const ACCESSES_MAX: usize = 512;

/// What was accessed, as far as it can still matter.
#[derive(Debug, Default)]
pub(super) struct History(Vec<Access>);

impl History {
    /// Adds an access by an operation to which `clock` has happened. Returns an earlier one with
    /// which it races. `is_gone` tells streams that are drained and destroyed.
    pub(super) fn add(
        &mut self,
        new: Access,
        clock: &Clock,
        is_gone: impl Fn(u64) -> bool,
    ) -> Option<Access> {
        let ordered = |old: &Access| {
            old.stream == new.stream || clock.covers(old.stream, old.index) || is_gone(old.stream)
        };
        let conflicting = |old: &&Access| old.touch.conflicts(&new.touch) && !ordered(old);
        let race = self.0.iter().find(conflicting).cloned();
        self.0.retain(|old| {
            let replaced = new.touch.writes || (!old.touch.writes && old.stream == new.stream);
            !(replaced && new.touch.covers(&old.touch) && ordered(old))
        });
        if self.0.len() >= ACCESSES_MAX {
            self.0.remove(0);
        }
        self.0.push(new);
        race
    }
}

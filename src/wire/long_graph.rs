//! A recorded graph's text, read an item at a time.
//!
//! A graph is the one command whose text may have megabytes, and others are to have their turn in
//! the middle of it. So what stands around its items is read here, in the stock client's spelling
//! only, and each item by way of a tape of its own, in any spelling. Where that fails, for whatever
//! reason, the command is read again from its beginning, in one go, as any other. Whatever is
//! accepted here, the tape reads as the same.

use super::command::{Command, GraphAlloc, GraphItem, GraphNumber};
use super::cursor::Cursor;
use super::record::Part;
use super::tape::Tape;
use crate::config::WireLimits;

/// Brackets around an item: the command's and the tuple's.
const DEPTH: usize = 2;

/// A graph of which some items are read.
#[derive(Debug)]
pub(super) struct LongGraph<'t> {
    /// Where the command begins.
    begin: Cursor<'t>,
    session: usize,
    graph: GraphNumber,
    items: Vec<GraphItem<'t>>,
    nodes: usize,
}

/// How far reading got.
pub(super) enum Reached<'t> {
    /// Between two items.
    Middle,
    /// The command's end.
    End { begin: Cursor<'t>, session: usize, command: Command<'t> },
    /// What is not spelled as the stock client does it: the command is to be read from its
    /// beginning.
    Unknown { begin: Cursor<'t> },
}

impl<'t> LongGraph<'t> {
    /// Begins behind the session of a command that began at `begin`. Leaves the cursor anywhere
    /// where it fails.
    pub(super) fn begin(
        begin: Cursor<'t>,
        session: usize,
        cursor: &mut Cursor<'t>,
    ) -> Option<LongGraph<'t>> {
        cursor.eat_text(", graph_num=")?;
        let graph = GraphNumber::read_plain(cursor)?;
        cursor.eat_text(", jit_cache=(")?;
        Some(LongGraph { begin, session, graph, items: Vec::new(), nodes: 0 })
    }

    /// Reads on, up to `until` or to the next end of an item.
    pub(super) fn read_on(
        &mut self,
        cursor: &mut Cursor<'t>,
        tape: &mut Tape,
        limits: &WireLimits,
        until: usize,
    ) -> Reached<'t> {
        match self.read_items(cursor, tape, limits, until) {
            Some(true) => {}
            Some(false) => return Reached::Middle,
            None => return Reached::Unknown { begin: self.begin },
        }
        match self.read_end(cursor, tape, limits) {
            Some(graph) => {
                let command = Command::GraphAlloc(graph);
                Reached::End { begin: self.begin, session: self.session, command }
            }
            None => Reached::Unknown { begin: self.begin },
        }
    }

    /// Whether that were all items.
    fn read_items(
        &mut self,
        cursor: &mut Cursor<'t>,
        tape: &mut Tape,
        limits: &WireLimits,
        until: usize,
    ) -> Option<bool> {
        if self.items.is_empty() && cursor.eat(b')') {
            return Some(true);
        }
        loop {
            let item = self.read_part(cursor, tape, limits)?;
            self.items.push(item);
            let is_one = self.items.len() == 1;
            if self.nodes > limits.nodes_max || self.items.len() > limits.items_max {
                return None;
            }
            if cursor.eat_text(if is_one { ",)" } else { ")" }).is_some() {
                return Some(true);
            }
            cursor.eat_text(", ")?;
            if cursor.at() >= until {
                return Some(false);
            }
        }
    }

    fn read_end(
        &mut self,
        cursor: &mut Cursor<'t>,
        tape: &mut Tape,
        limits: &WireLimits,
    ) -> Option<GraphAlloc<'t>> {
        cursor.eat_text(", bufs=")?;
        let inputs = self.read_part(cursor, tape, limits)?;
        cursor.eat_text(", var_vals=")?;
        let values = self.read_part(cursor, tape, limits)?;
        cursor.eat_text(")")?;
        let items = std::mem::take(&mut self.items).into();
        Some(GraphAlloc { graph: self.graph, items, inputs, values })
    }

    fn read_part<T: Part<'t>>(
        &mut self,
        cursor: &mut Cursor<'t>,
        tape: &mut Tape,
        limits: &WireLimits,
    ) -> Option<T> {
        let depth_max = limits.depth_max.checked_sub(DEPTH)?;
        tape.read(cursor, &WireLimits { depth_max, ..*limits }).ok()?;
        self.nodes += tape.len();
        T::read(tape.value(cursor.text())).ok()
    }
}

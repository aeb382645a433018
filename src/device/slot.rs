//! Resources that a worker holds for the server, and how it hears that they are gone.
//!
//! Owns: [`Slot`] (a numbered place in a worker's table), [`Slots`] (which numbers are free),
//! [`Graveyard`] (what was dropped since the device last looked).
//!
//! Dropping a resource does not touch the queue: drops happen in the middle of anything. The device
//! empties its graveyard at its next call, before that call's own work, so in the queue's order the
//! end of a resource always lies before a new use of its number or its memory.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use super::shared::Freed;

/// Something whose last owner is gone.
pub(super) enum Dead {
    Block(Freed),
    Graph(u32),
    Program(u32),
    /// Memory that only the worker reaches, by its segment in the worker's table.
    Region(u32),
    /// By the segment's number in this process.
    Segment(u64),
}

/// What was dropped since the device last looked.
#[derive(Default)]
pub(super) struct Graveyard {
    dead: RefCell<VecDeque<Dead>>,
    closed: Cell<bool>,
}

impl Graveyard {
    pub(super) fn push(&self, dead: Dead) {
        if !self.closed.get() {
            self.dead.borrow_mut().push_back(dead);
        }
    }

    pub(super) fn pop(&self) -> Option<Dead> {
        self.dead.borrow_mut().pop_front()
    }

    /// The device is gone: nobody will look again.
    pub(super) fn close(&self) {
        self.closed.set(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

impl fmt::Debug for Graveyard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graveyard({})", self.dead.borrow().len())
    }
}

/// A place in a table of one device's worker, with what the server remembers about it.
pub(super) struct Slot<T> {
    index: u32,
    dead: fn(u32) -> Dead,
    grave: Rc<Graveyard>,
    pub(super) state: T,
}

impl<T> Slot<T> {
    /// `dead` says what is pushed to `grave` when the slot is dropped.
    pub(super) fn new(index: u32, dead: fn(u32) -> Dead, grave: &Rc<Graveyard>, state: T) -> Self {
        Slot { index, dead, grave: Rc::clone(grave), state }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Whether it lies in the table of the device with this graveyard.
    pub(super) fn belongs_to(&self, grave: &Rc<Graveyard>) -> bool {
        Rc::ptr_eq(&self.grave, grave)
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        self.grave.push((self.dead)(self.index));
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.index)
    }
}

/// The free numbers of one table. Freed ones are used first, so tables stay dense.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: Vec<u32>,
    next: u32,
}

impl Slots {
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    pub(super) fn give(&mut self, index: u32) {
        self.free.push(index);
    }
}

//! Device memory, and what is still to happen to it.
//!
//! Owns: [`Allocation`] (a region of a GPU), [`Uses`] (by which it is known what has to wait for
//! what), [`Site`] (what of a device its regions, programs and graphs can reach: where they report
//! that they were dropped). Absent: the calls that allocate and free (`device`).
//!
//! Dropping a resource does not touch the device's queue. The device hears of it at its next call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::driver::DevicePointer;
use super::handles::{Context, Done, Event};
use super::queue::{Lane, Queue, STREAMS};
use super::reading::Reading;
use super::relay::Relay;
use super::store::Store;
use crate::device::budget::Charge;

/// How far each stream has work that touches a piece of memory.
#[derive(Debug, Default)]
pub(super) struct Uses {
    reads: [Cell<u64>; STREAMS.len()],
    writes: [Cell<u64>; STREAMS.len()],
    /// Whether another device has copied it in a stream that is none of these.
    is_relayed: Cell<bool>,
}

/// What work does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Uses {
    /// Lets what comes later in `lane` wait for whatever conflicts with `access`.
    pub(super) fn order(&self, queue: &mut Queue, lane: Lane, access: Access) -> Done<()> {
        for other in STREAMS {
            let write = self.writes[other.index()].get();
            let number = match access {
                Access::Read => write,
                Access::Write => write.max(self.reads[other.index()].get()),
            };
            queue.after(lane, other, number)?;
        }
        Ok(())
    }

    pub(super) fn set_relayed(&self) {
        self.is_relayed.set(true);
    }

    pub(super) fn is_relayed(&self) -> bool {
        self.is_relayed.get()
    }

    /// Notes work that was queued.
    pub(super) fn note(&self, lane: Lane, access: Access, number: u64) {
        let uses = match access {
            Access::Read => &self.reads,
            Access::Write => &self.writes,
        };
        uses[lane.index()].set(number);
    }
}

/// Memory on a device. Freed when dropped, after the work that is already queued.
pub(in crate::device) struct Allocation {
    pub(super) at: DevicePointer,
    pub(super) bytes: u64,
    pub(super) uses: Rc<Uses>,
    pub(super) site: Rc<Site>,
    charge: Cell<Option<Charge>>,
}

impl Allocation {
    pub(super) fn new(at: DevicePointer, bytes: u64, site: &Rc<Site>, charge: Charge) -> Self {
        let (uses, site, charge) = (Rc::default(), Rc::clone(site), Cell::new(Some(charge)));
        Allocation { at, bytes, uses, site, charge }
    }

    pub(in crate::device) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let (at, uses, charge) = (self.at, Rc::clone(&self.uses), self.charge.take());
        self.site.bury(Dead::Memory { at, uses, _charge: charge });
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.at.0)
    }
}

/// Something whose last owner is gone.
pub(super) enum Dead {
    Graph(usize),
    Memory { at: DevicePointer, uses: Rc<Uses>, _charge: Option<Charge> },
    Program(usize),
}

/// What of a device its resources can reach, whether it is open or not.
#[derive(Default)]
pub(super) struct Site {
    dead: RefCell<VecDeque<Dead>>,
    open: RefCell<Option<Reach>>,
    is_closed: Cell<bool>,
}

/// What other devices need of an open one.
pub(super) struct Reach {
    pub(super) context: Arc<Context>,
    pub(super) store: Store,
    /// Contexts whose copies reach this one's memory, by their serials.
    pub(super) allowed: Vec<u64>,
    /// Events of signals that nobody waits for any more.
    pub(super) events: Vec<Event>,
    /// The ways out for devices that do not reach this one's memory.
    pub(super) relays: Vec<Relay>,
    /// What others read by themselves, as far as it may be under way.
    pub(super) readers: Vec<Weak<Reading>>,
}

impl Site {
    pub(super) fn open(&self, context: Arc<Context>, store: Store) {
        let (allowed, events) = (Vec::new(), Vec::new());
        let (relays, readers) = (Vec::new(), Vec::new());
        *self.open.borrow_mut() = Some(Reach { context, store, allowed, events, relays, readers });
    }

    /// The device is gone. Nobody looks any more for what is dropped.
    pub(super) fn close(&self) -> Option<Reach> {
        self.is_closed.set(true);
        self.dead.borrow_mut().clear();
        self.open.borrow_mut().take()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    pub(super) fn bury(&self, dead: Dead) {
        if !self.is_closed.get() {
            self.dead.borrow_mut().push_back(dead);
        }
    }

    pub(super) fn exhume(&self) -> Option<Dead> {
        self.dead.borrow_mut().pop_front()
    }

    /// Calls `look` with what there is of an open device.
    pub(super) fn reach<T>(&self, look: impl FnOnce(&mut Reach) -> T) -> Option<T> {
        self.open.borrow_mut().as_mut().map(look)
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({} dropped)", self.dead.borrow().len())
    }
}

/// A number in one of a device's tables. Dropping it is how the device hears that it is gone.
#[derive(Debug)]
pub(in crate::device) struct Entry {
    pub(super) index: usize,
    pub(super) site: Rc<Site>,
    is_graph: bool,
}

impl Entry {
    pub(super) fn of_graph(index: usize, site: &Rc<Site>) -> Entry {
        Entry { index, site: Rc::clone(site), is_graph: true }
    }

    pub(super) fn of_program(index: usize, site: &Rc<Site>) -> Entry {
        Entry { index, site: Rc::clone(site), is_graph: false }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let dead = if self.is_graph { Dead::Graph } else { Dead::Program };
        self.site.bury(dead(self.index));
    }
}

/// A table whose free places are used first.
pub(super) struct Table<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    pub(super) fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.places[index] = Some(value);
                index
            }
            None => {
                self.places.push(Some(value));
                self.places.len() - 1
            }
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.places.get(index)?.as_ref()
    }

    pub(super) fn find_mut(&mut self, is_it: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.places.iter_mut().flatten().find(|value| is_it(value))
    }

    /// Takes a value whose place stays its own, until [`Self::put`].
    pub(super) fn take(&mut self, index: usize) -> Option<T> {
        self.places.get_mut(index)?.take()
    }

    pub(super) fn put(&mut self, index: usize, value: T) {
        self.places[index] = Some(value);
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let value = self.places.get_mut(index)?.take();
        if value.is_some() {
            self.free.push(index);
        }
        value
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        std::mem::take(&mut self.places).into_iter().flatten()
    }
}

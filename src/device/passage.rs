//! Copies between the devices of two workers.
//!
//! Owns: [`Orders`], what other devices want of one's memory, and the two ways of a copy. Both go
//! through memory between the two, a piece being written while another is read; each piece waits
//! for the other's signal that it may.
//!
//! Through shared memory every copy can go. Where the destination's device reaches the source's,
//! the memory between them is a [`Window`]: device memory that the source's worker shares, which
//! the destination's copies from by itself. It is made when two sessions first copy much. The
//! descriptor goes from worker to worker, through a channel that the server makes for the two; the
//! server neither has it nor believes anything about it. Until the destination's worker has said
//! that it has the memory, and for good where it says that it cannot, copies go through shared
//! memory: they never fail for want of a window.
//!
//! What a worker sees of another's is what was copied to it. It could also write there, which is
//! nobody's loss but its client's: both sessions are of one identity.
//!
//! Either end may go at any time. The memory lives until both have let go of it, and so does the
//! charge for it, which both workers' accounts hold.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::budget::Charge;
use super::link;
use super::packet::{Address, Packet};
use super::remote::{Remote, RemoteConfig, Retired};
use super::replay::copy_units;
use super::shared::{Block, Budget, Range, to_u64};
use super::timeline::Timeline;
use super::{DeviceError, Fence, Point, Span};
use crate::config::DeviceLimits;

/// What other devices want of this one's memory.
pub(super) struct Orders {
    timeline: Rc<Timeline>,
    waiting: RefCell<VecDeque<Order>>,
    ordinal: usize,
    /// The device's memory, as far as the session may have it.
    memory: Arc<Budget>,
    /// Whether nobody obeys any more.
    is_closed: Cell<bool>,
}

/// What the source's worker is to do for another device.
enum Order {
    /// To copy a piece to where the other finds it, and to signal.
    Piece { after: Option<Point>, from: Address, to: Between, bytes: u64 },
    /// To share memory, and to signal.
    Share { memory: Rc<Shared>, channel: OwnedFd },
    /// To let go of it.
    LetGo { memory: Rc<Shared> },
}

/// Where a piece is between the two.
enum Between {
    /// In shared memory, which may be written after `after`.
    Passage(Rc<Block>),
    Window {
        memory: Rc<Shared>,
        offset: u64,
    },
}

/// Device memory that two workers share.
struct Shared {
    /// In the source's table, once it is asked for.
    segment: Cell<Option<u32>>,
    charge: Arc<Charge>,
}

/// The destination's end of such memory.
pub(super) struct Window {
    source: Rc<Orders>,
    state: State,
}

enum State {
    /// The worker's answer is there once it has reached the fence.
    Opening {
        fence: Fence,
        outcome: Range,
        pane: Pane,
    },
    Open(Pane),
    /// It cannot be had, and is not asked for again.
    Refused,
}

/// What there is of a window.
struct Pane {
    memory: Rc<Shared>,
    /// In the destination's table.
    segment: u32,
    /// When each piece may be written again.
    emptied: [Option<Point>; DeviceLimits::WINDOW_PIECES],
    turn: usize,
}

const WINDOW_BYTES: u64 = DeviceLimits::WINDOW_PIECE_BYTES * DeviceLimits::WINDOW_PIECES as u64;

impl Orders {
    pub(super) fn new(timeline: &Rc<Timeline>, config: &RemoteConfig) -> Rc<Orders> {
        Rc::new(Orders {
            timeline: Rc::clone(timeline),
            waiting: RefCell::default(),
            ordinal: config.ordinal,
            memory: Arc::clone(&config.memory),
            is_closed: Cell::new(false),
        })
    }

    pub(super) fn are_done(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Nobody obeys any more.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.waiting.borrow_mut().clear();
    }

    fn push(&self, order: Order) {
        if !self.is_closed.get() {
            self.waiting.borrow_mut().push_back(order);
        }
    }

    /// An order that ends in a signal, whose number it gets now.
    fn signalled(&self, order: Order) -> Point {
        let point = self.timeline.next();
        self.push(order);
        point
    }
}

impl Remote {
    /// Queues what others have ordered.
    pub(super) fn obey(&mut self) -> Result<(), DeviceError> {
        let orders = Rc::clone(&self.orders);
        if self.link.lost().is_some() {
            orders.close();
        }
        while !orders.are_done() && self.link.has_room() {
            let Some(order) = orders.waiting.borrow_mut().pop_front() else { break };
            match order {
                Order::Piece { after, from, to, bytes } => {
                    if let Some(point) = after {
                        self.link.wait(&point)?;
                    }
                    self.hand_out(from, &to, bytes)?;
                }
                Order::Share { memory, channel } => self.share(&memory, channel)?,
                Order::LetGo { memory } => {
                    if let Some(segment) = memory.segment.take() {
                        self.forget_shared(segment, &memory);
                    }
                    continue;
                }
            }
            // Its number was given when it was ordered.
            self.link.enqueue(&Packet::Signal, 0)?;
        }
        Ok(())
    }

    fn hand_out(&mut self, from: Address, to: &Between, bytes: u64) -> Result<(), DeviceError> {
        match to {
            Between::Passage(block) => {
                let at = self.link.address(block, 0, true)?;
                let copy = Packet::Copy { to: at, from, bytes };
                let fence = self.link.enqueue(&copy, copy_units(bytes))?;
                self.link.hold(fence, block);
            }
            Between::Window { memory, offset } => {
                // It was not shared where the other end is not honest, which is that one's loss.
                let Some(segment) = memory.segment.get() else { return Ok(()) };
                let to = Address::new(segment, *offset);
                self.link.enqueue(&Packet::Copy { to, from, bytes }, copy_units(bytes))?;
            }
        }
        Ok(())
    }

    fn share(&mut self, memory: &Shared, channel: OwnedFd) -> Result<(), DeviceError> {
        // Where there is no number for it the channel ends here, which the other end sees.
        let Some(segment) = self.link.imports.reserve() else { return Ok(()) };
        self.account.hold(&memory.charge);
        memory.segment.set(Some(segment));
        self.link.enqueue_with(&Packet::Share { segment, bytes: WINDOW_BYTES }, channel)?;
        Ok(())
    }

    fn forget_shared(&mut self, segment: u32, memory: &Shared) {
        self.link.tell(&Packet::Forget { segment });
        self.link.imports.release(segment);
        self.retire(Retired::Shared(Arc::clone(&memory.charge)));
    }

    /// Lets go of windows whose source is gone, and of all where this device is lost.
    pub(super) fn tidy_windows(&mut self) {
        let is_lost = self.link.lost().is_some();
        while let Some(at) =
            self.windows.iter().position(|window| is_lost || window.source.is_closed.get())
        {
            if !is_lost && !self.link.has_room() {
                return;
            }
            let Window { source, state } = self.windows.swap_remove(at);
            match state {
                State::Opening { pane, .. } | State::Open(pane) => self.shut(&source, pane),
                State::Refused => {}
            }
        }
    }

    fn shut(&mut self, source: &Orders, pane: Pane) {
        let Pane { memory, segment, .. } = pane;
        self.forget_shared(segment, &memory);
        source.push(Order::LetGo { memory });
    }

    /// Whether a window to that device may be had.
    fn may_share(&self, source: &Orders) -> bool {
        let reaches = self.reaches.get(source.ordinal).is_some_and(|reaches| *reaches);
        reaches && self.orders.memory.is_of_same_identity(&source.memory)
    }

    /// How long a copy from another worker's device may be in one call.
    pub(super) fn fetched_bytes_max(&self, source: &Orders) -> u64 {
        if self.may_share(source) { DeviceLimits::WINDOW_COPY_BYTES_MAX } else { u64::MAX }
    }

    /// The window to a source for a copy of this length, if there is one. Begins to open one.
    fn window(&mut self, source: &Rc<Orders>, bytes: u64) -> Result<Option<usize>, DeviceError> {
        let is_it = |window: &Window| Rc::ptr_eq(&window.source, source);
        let Some(at) = self.windows.iter().position(is_it) else {
            let is_long = bytes >= DeviceLimits::WINDOW_COPY_BYTES_MIN;
            // The copy that comes after it takes what is kept for a call.
            let has_room = is_long && self.link.has_room();
            if has_room && !source.is_closed.get() && self.may_share(source) {
                self.open_window(source)?;
            }
            return Ok(None);
        };
        let window = &mut self.windows[at];
        match std::mem::replace(&mut window.state, State::Refused) {
            State::Opening { fence, outcome, pane } if fence.0 <= self.link.completed() => {
                match link::outcome(&outcome) {
                    Some(Ok(())) => window.state = State::Open(pane),
                    refused => {
                        tracing::debug!(?refused, "no memory between two devices");
                        self.shut(source, pane);
                    }
                }
            }
            state => window.state = state,
        }
        Ok(matches!(self.windows[at].state, State::Open(_)).then_some(at))
    }

    /// Asks both workers for a window. Where something is missing for one now, later.
    fn open_window(&mut self, source: &Rc<Orders>) -> Result<(), DeviceError> {
        let Ok(charge) = Charge::new(&source.memory, WINDOW_BYTES) else { return Ok(()) };
        let Ok((outcome, status)) = self.link.room_for_outcome() else { return Ok(()) };
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let channel = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None);
        let Ok((ours, theirs)) = channel else { return Ok(()) };
        let Some(segment) = self.link.imports.reserve() else { return Ok(()) };
        let memory = Rc::new(Shared { segment: Cell::default(), charge: Arc::new(charge) });
        self.account.hold(&memory.charge);
        let order = Order::Share { memory: Rc::clone(&memory), channel: theirs };
        let shared = source.signalled(order);
        self.link.wait(&shared)?;
        let open = Packet::OpenShared { segment, bytes: WINDOW_BYTES, status };
        let fence = self.link.enqueue_with(&open, ours)?;
        self.link.hold(fence, outcome.block());
        let pane = Pane { memory, segment, emptied: Default::default(), turn: 0 };
        let state = State::Opening { fence, outcome, pane };
        self.windows.push(Window { source: Rc::clone(source), state });
        Ok(())
    }

    /// Copies from another worker's device, which signalled that the source is there.
    pub(super) fn fetch(&mut self, to: &Span<'_>, from: &Span<'_>) -> Result<Fence, DeviceError> {
        let (to_at, place) = (self.own(to)?, self.place(from)?);
        let source = Rc::clone(&place.state.orders);
        let from = Address::new(place.index(), from.offset);
        match self.window(&source, to.bytes())? {
            Some(window) => self.fetch_through_window(window, to_at, from, to.bytes()),
            None => self.fetch_through_passage(&source, to_at, from, to.bytes()),
        }
    }

    fn fetch_through_window(
        &mut self,
        window: usize,
        to: Address,
        from: Address,
        bytes: u64,
    ) -> Result<Fence, DeviceError> {
        let most = DeviceLimits::WINDOW_PIECE_BYTES;
        let mut at = 0;
        while at < bytes {
            let length = most.min(bytes - at);
            let Window { source, state: State::Open(pane) } = &mut self.windows[window] else {
                unreachable!("only an open window is copied through");
            };
            let place = pane.turn;
            pane.turn = (place + 1) % DeviceLimits::WINDOW_PIECES;
            let offset = most * to_u64(place);
            let between = Address::new(pane.segment, offset);
            let order = Order::Piece {
                after: pane.emptied[place].take(),
                from: Address::new(from.segment(), from.offset() + at),
                to: Between::Window { memory: Rc::clone(&pane.memory), offset },
                bytes: length,
            };
            let written = source.signalled(order);
            self.link.wait(&written)?;
            let to = Address::new(to.segment(), to.offset() + at);
            let copy = Packet::Copy { to, from: between, bytes: length };
            self.link.enqueue(&copy, copy_units(length))?;
            let read = self.link.signal()?;
            if let State::Open(pane) = &mut self.windows[window].state {
                pane.emptied[place] = Some(read);
            }
            at += length;
        }
        Ok(self.link.last())
    }

    fn fetch_through_passage(
        &mut self,
        source: &Orders,
        to: Address,
        from: Address,
        bytes: u64,
    ) -> Result<Fence, DeviceError> {
        let most = DeviceLimits::PASSAGE_BYTES.max(bytes.div_ceil(DeviceLimits::PASSAGES_MAX));
        let mut pieces: [Option<(Range, Option<Point>)>; 2] = [None, None];
        let (mut at, mut turn) = (0, 0);
        while at < bytes {
            let length = most.min(bytes - at);
            let (range, after) = match pieces[turn].take() {
                Some(piece) => piece,
                None => (self.piece(most.min(bytes))?, None),
            };
            let written = source.signalled(Order::Piece {
                after,
                from: Address::new(from.segment(), from.offset() + at),
                to: Between::Passage(Rc::clone(range.block())),
                bytes: length,
            });
            self.link.wait(&written)?;
            let piece = self.link.address(range.block(), 0, true)?;
            let to = Address::new(to.segment(), to.offset() + at);
            let copy = Packet::Copy { to, from: piece, bytes: length };
            let fence = self.link.enqueue(&copy, copy_units(length))?;
            self.link.hold(fence, range.block());
            let read = self.link.signal()?;
            pieces[turn] = Some((range, Some(read)));
            (at, turn) = (at + length, 1 - turn);
        }
        Ok(self.link.last())
    }
}

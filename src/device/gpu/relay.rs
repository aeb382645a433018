//! Copies between devices that do not reach each other's memory: through pinned memory.
//!
//! A piece is copied out in a stream of the source's context, and in through the destination's own,
//! which waits for it by an event; another one tells the source's stream when the memory may be
//! written again. All of it is queued at once, so a long copy is to be asked for in parts
//! (`Device::copy_bytes_max`).
//!
//! What goes out waits for the source's own work and for nothing of the destination's, as long as
//! there is room for a part (`Device::backlog`): two parts have pieces of their own, and one goes
//! out while the other comes in. So a destination that hangs holds up no copy out of a source, and
//! its end has to wait for none for long.
//!
//! Owns: [`Relay`] (the source's end, one for each device that copies from it) and [`Stage`] (the
//! destination's: the memory). Absent: when the source was written and may be written again, which
//! the caller's signals say.
//!
//! What fails at the source's end is not the destination's fault and does not cost its session.

use std::collections::VecDeque;
use std::rc::{self, Rc};
use std::sync::{Arc, Weak};

use super::clerk::{Lent, order_event};
use super::device::{GpuDevice, Stop};
use super::driver::DevicePointer;
use super::handles::{Context, Done, Event, Stream, Trouble};
use super::memory::{Access, Allocation, Reach, Site};
use super::queue::{Lane, Queue};
use super::signal::Signal;
use super::transfer::{closed, place};
use crate::config::GpuLimits;
use crate::device::shared::{to_u64, to_usize};
use crate::device::{DeviceError, Fence, Span};

/// The way out of a device's memory, for one other device.
pub(super) struct Relay {
    reader: rc::Weak<Site>,
    stream: Stream,
    /// Behind the last copy.
    out: Event,
    /// Memory in which copies may end that nobody waits for. Kept until the stream is done.
    astray: Vec<Arc<Lent>>,
    /// Whether it is of no more use.
    is_broken: bool,
}

impl Relay {
    fn create(context: &Arc<Context>, reader: &Rc<Site>) -> Done<Relay> {
        let (stream, out) = (Stream::create(context)?, order_event(context)?);
        let (reader, astray) = (Rc::downgrade(reader), Vec::new());
        Ok(Relay { reader, stream, out, astray, is_broken: false })
    }

    fn is_of(&self, reader: &Rc<Site>) -> bool {
        std::ptr::eq(self.reader.as_ptr(), Rc::as_ptr(reader))
    }

    fn is_done(&self) -> bool {
        // Nothing runs in a context that is lost.
        self.stream.is_done().unwrap_or(true)
    }

    /// Whether its device is gone, and nothing is under way.
    fn is_over(&self) -> bool {
        let is_open = self.reader.upgrade().is_some_and(|reader| !reader.is_closed());
        !is_open && self.is_done()
    }

    /// Lets go of what nobody writes to any more.
    pub(super) fn tidy(&mut self) {
        if !self.astray.is_empty() && self.is_done() {
            self.astray.clear();
        }
    }

    /// Its stream, which everything else that it has is behind, and what goes with that.
    pub(super) fn into_parts(self) -> (Stream, Event, Vec<Arc<Lent>>) {
        (self.stream, self.out, self.astray)
    }
}

/// What a reader's relay is in an open device, which gets one where it has none.
fn relay_for<'r>(reach: &'r mut Reach, reader: &Rc<Site>) -> Done<&'r mut Relay> {
    let at = match reach.relays.iter().position(|relay| relay.is_of(reader)) {
        Some(at) => at,
        None => {
            reach.relays.retain(|relay| !relay.is_over());
            reach.relays.push(Relay::create(&reach.context, reader)?);
            reach.relays.len() - 1
        }
    };
    Ok(&mut reach.relays[at])
}

/// Pinned memory on the way, and when it may be written again.
struct Piece {
    memory: Arc<Lent>,
    emptied: Event,
    is_used: bool,
}

/// What a device has to copy from others with.
#[derive(Default)]
pub(super) struct Stage {
    /// The next one first.
    pieces: VecDeque<Piece>,
    /// Copies under way.
    under_way: VecDeque<u64>,
    /// The devices from which it has copied, and their contexts.
    sources: Vec<(rc::Weak<Site>, Weak<Context>)>,
}

impl Stage {
    /// The work to wait for where enough is under way.
    pub(super) fn backlog(&self, queue: &Queue) -> Option<u64> {
        let done = queue.done(Lane::In);
        let from = self.under_way.partition_point(|number| *number <= done);
        let left = self.under_way.len() - from;
        if left < GpuLimits::RELAYED_MAX { None } else { Some(self.under_way[from]) }
    }

    fn note_source(&mut self, site: &Rc<Site>) {
        let is_it =
            |(known, _): &(rc::Weak<Site>, _)| std::ptr::eq(known.as_ptr(), Rc::as_ptr(site));
        if !self.sources.iter().any(is_it) {
            self.sources.retain(|(_, context)| context.strong_count() > 0);
            let context = site.reach(|reach| Arc::downgrade(&reach.context));
            self.sources.extend(context.map(|context| (Rc::downgrade(site), context)));
        }
    }

    /// Forgets what the queue is past.
    pub(super) fn look(&mut self, queue: &Queue) {
        let done = queue.done(Lane::In);
        let over = self.under_way.partition_point(|number| *number <= done);
        self.under_way.drain(..over);
    }

    /// Whatever a source may still write to is kept at its end too. Gives the contexts of those
    /// that are gone themselves, and may write until they have ended.
    pub(super) fn leave(&mut self, reader: &Rc<Site>) -> Vec<Weak<Context>> {
        let pieces = || self.pieces.iter().map(|piece| Arc::clone(&piece.memory));
        let leave = |(source, context): (rc::Weak<Site>, Weak<Context>)| {
            let source = source.upgrade();
            let is_open = source.and_then(|source| {
                source.reach(|reach| {
                    let busy = |relay: &&mut Relay| relay.is_of(reader) && !relay.is_done();
                    if let Some(relay) = reach.relays.iter_mut().find(busy) {
                        relay.astray.extend(pieces());
                    }
                })
            });
            is_open.is_none().then_some(context)
        };
        std::mem::take(&mut self.sources).into_iter().filter_map(leave).collect()
    }

    /// All of it, to be given back behind the device's work.
    pub(super) fn close(&mut self) -> (Vec<Arc<Lent>>, Vec<Event>) {
        let (mut lent, mut events) = (Vec::new(), Vec::new());
        for piece in self.pieces.drain(..) {
            lent.push(piece.memory);
            events.push(piece.emptied);
        }
        (lent, events)
    }
}

/// From where to where.
#[derive(Clone, Copy)]
struct Route {
    to: DevicePointer,
    from: DevicePointer,
    bytes: u64,
}

/// Queues a whole copy: out through the relay, once the source has signalled, and in through the
/// queue.
fn pass(
    reach: &mut Reach,
    reader: &Rc<Site>,
    (stage, queue): (&mut Stage, &Queue),
    written: Option<&Signal>,
    route: Route,
) -> Result<(), Stop> {
    let context = Arc::clone(&reach.context);
    let theirs = |trouble: Trouble| {
        let words = context.driver().describe(trouble.code);
        let why = format!("{} at that device's end: {words}", trouble.what);
        Stop::Error(DeviceError::Failed { what: "copy from another device", why })
    };
    let relay = relay_for(reach, reader).map_err(theirs)?;
    if relay.is_broken {
        let (what, why) = ("copy from another device", "an earlier one has failed".to_owned());
        return Err(DeviceError::Failed { what, why }.into());
    }
    if let Some(written) = written {
        relay.stream.wait(written.event()).map_err(theirs)?;
    }
    let (most, ours) = (to_u64(GpuLimits::OUT_PIECE_BYTES), queue.stream(Lane::In));
    for at in (0..route.bytes).step_by(GpuLimits::OUT_PIECE_BYTES) {
        stage.pieces.rotate_left(1);
        let piece = stage.pieces.back_mut().ok_or_else(closed)?;
        let bytes = most.min(route.bytes - at);
        let [to, from] = [route.to, route.from].map(|place| DevicePointer(place.0 + at));
        if piece.is_used {
            relay.stream.wait(&piece.emptied).map_err(theirs)?;
        }
        let between = piece.memory.memory().part(0, to_usize(bytes));
        // SAFETY: the stage keeps the memory until the queue is past this, which waits for this
        // copy; where it does not, the relay keeps it. The last copy out of it has been waited for.
        unsafe { relay.stream.copy_out(between, from, bytes).map_err(theirs)? };
        let written = relay.stream.record(&relay.out).map_err(theirs);
        let awaited = written.and_then(|()| Ok(ours.wait(&relay.out)?));
        if let Err(stop) = awaited {
            relay.astray.push(Arc::clone(&piece.memory));
            relay.is_broken = true;
            return Err(stop);
        }
        // SAFETY: as above; what writes there next waits for the event behind this copy.
        unsafe { ours.copy_in(to, between, bytes)? };
        ours.record(&piece.emptied)?;
        piece.is_used = true;
    }
    Ok(())
}

impl GpuDevice {
    /// Copies from a device whose memory is out of reach, and which signalled that the source is
    /// there.
    pub(super) fn copy_relayed(
        &mut self,
        target: &Allocation,
        to: &Span<'_>,
        source: &Allocation,
        from: &Span<'_>,
    ) -> Result<Fence, Stop> {
        self.fill_stage()?;
        self.queue.begin(Lane::In)?;
        target.uses.order(&mut self.queue, Lane::In, Access::Write)?;
        // Where it is not waited for any more, the source is there.
        let written = self.watchdog.awaited_from(&source.site);
        let route = Route { to: place(target, to), from: place(source, from), bytes: to.bytes() };
        source.uses.set_relayed();
        self.stage.note_source(&source.site);
        let (site, stage, queue) = (&self.site, &mut self.stage, &self.queue);
        let passed =
            source.site.reach(|reach| pass(reach, site, (stage, queue), written.as_deref(), route));
        let number = self.queue.push(Lane::In, 1);
        target.uses.note(Lane::In, Access::Write, number);
        self.stage.under_way.push_back(number);
        if let Err(stop) = passed.unwrap_or_else(|| Err(gone())) {
            self.drop_stage(number);
            return Err(stop);
        }
        // The next one is queued before somebody asks for this one.
        self.queue.mark_here(Lane::In)?;
        Ok(Fence(number))
    }

    fn fill_stage(&mut self) -> Result<(), Stop> {
        let Some(parts) = &self.parts else { return Err(closed()) };
        while self.stage.pieces.len() < GpuLimits::RELAY_PIECES {
            let memory = parts.outbox.lend(self.queue.context(), &self.clerk)?;
            let emptied = self.queue.event()?;
            self.stage.pieces.push_back(Piece { memory, emptied, is_used: false });
        }
        Ok(())
    }

    /// After a failure nobody knows which piece is in use: all are let go behind the work so far.
    fn drop_stage(&mut self, number: u64) {
        let Some(parts) = &mut self.parts else { return };
        for Piece { memory, emptied, .. } in self.stage.pieces.drain(..) {
            parts.outbox.hold(Lane::In, number, memory);
            self.retired.push_back((number, Box::new(emptied)));
        }
    }

    /// Lets what comes later come after all that other devices have copied from this one so far.
    pub(super) fn wait_for_relays(&mut self) -> Done<()> {
        let stream = self.queue.stream(Lane::Compute);
        let waited = self
            .site
            .reach(|reach| reach.relays.iter().try_for_each(|relay| stream.wait(&relay.out)));
        waited.unwrap_or(Ok(()))?;
        self.queue.push(Lane::Compute, 0);
        Ok(())
    }
}

pub(super) fn gone() -> Stop {
    let why = "the source's device is lost".to_owned();
    DeviceError::Failed { what: "copy", why }.into()
}

//! The order of a device's work: which stream it goes to, what it waits for, and when it is done.
//!
//! Owns: [`Queue`]. Work is numbered in the order in which it is asked for, and the number is its
//! fence. It goes to one of four lanes: three streams (computing, copies in, copies out) and the
//! device's own thread, which reports. Absent: what the work is (`device`), whose memory it
//! touches (`memory`).
//!
//! Inside a lane work runs in order. Where memory passes from one stream to another, the second
//! waits for a mark in the first: an event that is recorded only when somebody needs to know. A
//! mark may stand behind later work than was asked for; what waits for it then waits longer than it
//! has to, and never for what comes after it. Work that one stream has waited for once it does not
//! wait for again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::clerk::{Bell, order_event};
use super::handles::{Context, Done, Event, Stream};
use crate::config::GpuLimits;

/// Where work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Compute = 0,
    In = 1,
    Out = 2,
    /// The device's own thread.
    Clerk = 3,
}

pub(super) const STREAMS: [Lane; 3] = [Lane::Compute, Lane::In, Lane::Out];
const LANES: usize = 4;

impl Lane {
    pub(super) fn index(self) -> usize {
        match self {
            Lane::Compute => 0,
            Lane::In => 1,
            Lane::Out => 2,
            Lane::Clerk => 3,
        }
    }
}

/// Work that is under way.
#[derive(Clone, Copy)]
struct Work {
    number: u64,
    /// How many kernels or copies it is.
    units: u64,
}

/// An event behind the work with this number and all before it in its stream.
struct Mark {
    number: u64,
    event: Event,
}

#[derive(Default)]
struct LaneState {
    stream: Option<Stream>,
    pending: VecDeque<Work>,
    marks: VecDeque<Mark>,
    /// The last work that was queued.
    last: u64,
    /// The last work that is known to be done.
    done: u64,
    /// Up to where this lane's stream has waited for the others.
    waited: [u64; LANES],
}

/// What is queued on a device, and how far it has come.
#[derive(Default)]
pub(super) struct Queue {
    context: Option<Arc<Context>>,
    lanes: [LaneState; LANES],
    /// In which the doorbell is rung, so that no other stream waits for that.
    bell: Option<Stream>,
    events: Vec<Event>,
    last: u64,
    /// Work that all later work of every stream comes after.
    barrier: u64,
}

impl Queue {
    pub(super) fn open(&mut self, context: Arc<Context>, streams: [Stream; 3], bell: Stream) {
        self.context = Some(context);
        for (lane, stream) in self.lanes.iter_mut().zip(streams) {
            lane.stream = Some(stream);
        }
        self.bell = Some(bell);
    }

    /// Streams and events, for the one that gives them back. Nothing is queued any more.
    pub(super) fn close(&mut self) -> (Vec<Stream>, Vec<Event>) {
        let mut events = std::mem::take(&mut self.events);
        let mut streams = Vec::new();
        for lane in &mut self.lanes {
            events.extend(lane.marks.drain(..).map(|mark| mark.event));
            streams.extend(lane.stream.take());
        }
        streams.extend(self.bell.take());
        self.context = None;
        (streams, events)
    }

    pub(super) fn stream(&self, lane: Lane) -> &Stream {
        self.lanes[lane.index()].stream.as_ref().expect("work is queued on open devices only")
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        self.context.as_ref().expect("work is queued on open devices only")
    }

    /// The number of the last work.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Numbers work that was queued.
    pub(super) fn push(&mut self, lane: Lane, units: u64) -> u64 {
        self.last += 1;
        let lane = &mut self.lanes[lane.index()];
        lane.last = self.last;
        lane.pending.push_back(Work { number: self.last, units });
        self.last
    }

    /// How much work is under way.
    pub(super) fn pending(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pending.len()).sum()
    }

    /// The number that leaves half of the streams' work to do once it is done.
    pub(super) fn halfway(&self) -> u64 {
        let longest = self.lanes.iter().max_by_key(|lane| lane.pending.len());
        let pending = longest.map(|lane| &lane.pending);
        let half = pending.and_then(|pending| pending.get(pending.len() / 2));
        half.map_or(self.last, |work| work.number)
    }

    /// The oldest work that is not done, and its lane.
    fn oldest(&self) -> Option<(u64, &LaneState)> {
        let oldest =
            self.lanes.iter().filter_map(|lane| Some((lane.pending.front()?.number, lane)));
        oldest.min_by_key(|(number, _)| *number)
    }

    /// The number of the oldest work that is not done, and how many kernels or copies it may take
    /// until it is seen to be: those up to the next mark.
    pub(super) fn awaited(&self) -> Option<(u64, u64)> {
        let (number, lane) = self.oldest()?;
        let mark = lane.marks.front().map_or(lane.last, |mark| mark.number);
        let until = lane.pending.iter().take_while(|work| work.number <= mark);
        Some((number, until.map(|work| work.units).sum()))
    }

    /// Up to here everything is done.
    pub(super) fn completed(&self) -> u64 {
        self.oldest().map_or(self.last, |(number, _)| number - 1)
    }

    /// Up to here the lane's work is done.
    pub(super) fn done(&self, lane: Lane) -> u64 {
        let lane = &self.lanes[lane.index()];
        lane.pending.front().map_or(u64::MAX, |work| work.number - 1)
    }

    pub(super) fn event(&mut self) -> Done<Event> {
        match self.events.pop() {
            Some(event) => Ok(event),
            None => order_event(self.context()),
        }
    }

    /// The mark at or behind the lane's work with `number`, as close to it as there is one.
    fn mark(&mut self, lane: Lane, number: u64) -> Done<&Mark> {
        let index = lane.index();
        let known = self.lanes[index].marks.iter().position(|mark| mark.number >= number);
        if let Some(at) = known {
            return Ok(&self.lanes[index].marks[at]);
        }
        let event = self.event()?;
        self.stream(lane).record(&event)?;
        let state = &mut self.lanes[index];
        state.marks.push_back(Mark { number: state.last, event });
        Ok(state.marks.back().expect("just pushed"))
    }

    /// Marks the end of a lane's work so far, so that others need not wait for what comes later.
    pub(super) fn mark_here(&mut self, lane: Lane) -> Done<()> {
        let last = self.lanes[lane.index()].last;
        self.mark(lane, last).map(drop)
    }

    /// Lets what comes later in `lane` wait for the work of `other` with `number`.
    pub(super) fn after(&mut self, lane: Lane, other: Lane, number: u64) -> Done<()> {
        let (to, from) = (&self.lanes[lane.index()], &self.lanes[other.index()]);
        let is_done = from.pending.front().is_none_or(|work| work.number > number);
        if lane == other || is_done || to.waited[other.index()] >= number {
            return Ok(());
        }
        self.mark(other, number)?;
        let (lanes, index) = (&self.lanes, other.index());
        let marks = &lanes[index].marks;
        let mark = marks.iter().find(|mark| mark.number >= number).expect("just made");
        let reached = mark.number;
        self.stream(lane).wait(&mark.event)?;
        self.lanes[lane.index()].waited[index] = reached;
        Ok(())
    }

    /// Comes before anything is queued in a stream: what all later work comes after. Of work that
    /// queues up some is marked now and then, so that it is seen to move.
    pub(super) fn begin(&mut self, lane: Lane) -> Done<()> {
        let state = &self.lanes[lane.index()];
        let marked = state.marks.back().map_or(0, |mark| mark.number);
        let unmarked = state.pending.partition_point(|work| work.number <= marked);
        if state.pending.len() - unmarked >= GpuLimits::UNMARKED_MAX {
            self.mark_here(lane)?;
        }
        self.after(lane, Lane::Compute, self.barrier)
    }

    /// Lets the computing stream come after all that is queued in the others.
    pub(super) fn join(&mut self) -> Done<()> {
        for lane in [Lane::In, Lane::Out] {
            let last = self.lanes[lane.index()].last;
            self.after(Lane::Compute, lane, last)?;
        }
        Ok(())
    }

    /// Lets all later work, of every stream, come after the computing stream's work so far.
    pub(super) fn set_barrier(&mut self) {
        self.barrier = self.lanes[Lane::Compute.index()].last;
    }

    /// The device's thread has done the oldest of its work.
    pub(super) fn clerk_did(&mut self, number: u64) {
        let lane = &mut self.lanes[Lane::Clerk.index()];
        while lane.pending.front().is_some_and(|work| work.number <= number) {
            lane.pending.pop_front();
        }
    }

    /// Looks how far the streams have come, and marks where they are so that the next look tells.
    pub(super) fn look(&mut self) -> Done<()> {
        for lane in STREAMS {
            self.look_at(lane)?;
            let state = &self.lanes[lane.index()];
            if !state.pending.is_empty() && state.marks.is_empty() {
                self.mark(lane, state.last)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, lane: Lane) -> Done<()> {
        let state = &mut self.lanes[lane.index()];
        while let Some(mark) = state.marks.front() {
            if !mark.event.is_reached()? {
                break;
            }
            state.done = mark.number;
            while state.pending.front().is_some_and(|work| work.number <= state.done) {
                state.pending.pop_front();
            }
            if let Some(mark) = state.marks.pop_front() {
                self.events.push(mark.event);
            }
        }
        Ok(())
    }

    /// A lane's last work up to `number` that is under way.
    fn last_up_to(&self, lane: Lane, number: u64) -> Option<u64> {
        let pending = &self.lanes[lane.index()].pending;
        let count = pending.partition_point(|work| work.number <= number);
        Some(pending.get(count.checked_sub(1)?)?.number)
    }

    /// Makes sure that there are marks by which to see that all work up to `number` is done.
    pub(super) fn mark_up_to(&mut self, number: u64) -> Done<()> {
        for lane in STREAMS {
            if let Some(last) = self.last_up_to(lane, number) {
                self.mark(lane, last)?;
            }
        }
        Ok(())
    }

    /// Has the bell rung once the streams are past `number`.
    pub(super) fn ring_at(&mut self, number: u64, bell: &Arc<Bell>) -> Done<()> {
        let mut rings = false;
        for lane in STREAMS {
            let Some(last) = self.last_up_to(lane, number) else { continue };
            self.mark(lane, last)?;
            let marks = &self.lanes[lane.index()].marks;
            let mark = marks.iter().find(|mark| mark.number >= last).expect("just made");
            let stream = self.bell.as_ref().expect("work is queued on open devices only");
            stream.wait(&mark.event)?;
            rings = true;
        }
        match &self.bell {
            // The device's thread rings for what it does itself.
            Some(stream) if rings => bell.ring_behind(stream),
            _ => Ok(()),
        }
    }
}

//! Events: a flag that one session sets after its work, and another waits for.
//!
//! Between devices of this host nobody stops: setting notes a point in the setter's queue, waiting
//! queues a wait for that point. Events of other hosts are `peer`'s.

use std::rc::Rc;
use std::time::Instant;

use super::batch::Pending;
use super::session::SessionId;
use super::{Cause, DONE, Engine, Step, Stop, WaitFor};
use crate::device::Point;
use crate::wire::command::{self, EventNumber};

/// A set event, or what became of it.
#[derive(Debug)]
pub(super) enum EventState {
    /// After this point of another session's queue.
    After(Point),
    /// Never, since the session that should set it could not.
    Failed(Rc<Cause>),
    /// At once, or by work of the same queue.
    Set,
}

impl Engine {
    pub(super) fn event_set(
        &mut self,
        at: SessionId,
        c: &command::Event<'_>,
    ) -> Result<Step, Stop> {
        if c.event_session.host != self.get(at)?.host() {
            return self.event_of_peer(at, c);
        }
        let to = self.other_session(at, &c.event_session)?;
        let limit = self.limits.events_per_session_max;
        if self.get(to)?.events.len() >= limit {
            return Err(Cause::Limit { what: "events", limit }.into());
        }
        let state = if to == at {
            EventState::Set
        } else {
            match self.device(at).and_then(|session| Ok(session.signal()?)) {
                Ok(point) => EventState::After(point),
                Err(Stop::Failed(cause)) => {
                    // Whoever waits for it would wait for nothing.
                    let failed = EventState::Failed(Rc::new(cause.clone()));
                    self.get_mut(to)?.events.entry(c.event).or_insert(failed);
                    self.events_set += 1;
                    return Err(cause.into());
                }
                Err(stop) => return Err(stop),
            }
        };
        self.get_mut(to)?.events.insert(c.event, state);
        self.events_set += 1;
        DONE
    }

    pub(super) fn event_wait(
        &mut self,
        at: SessionId,
        event: EventNumber,
        now: Instant,
    ) -> Result<Step, Stop> {
        self.event_resume(at, event, now + self.limits.wait_time_max, now)
    }

    pub(super) fn event_resume(
        &mut self,
        at: SessionId,
        event: EventNumber,
        until: Instant,
        now: Instant,
    ) -> Result<Step, Stop> {
        let waited = self.limits.wait_time_max;
        let pending = Pending::Event { session: at, event, until };
        match self.get_mut(at)?.events.remove(&event) {
            Some(EventState::Set) => DONE,
            Some(EventState::Failed(cause)) => {
                Err(Cause::Missing { what: "the event", cause }.into())
            }
            Some(EventState::After(point)) => {
                // The point is put back where there is no room in the queue for the wait.
                match self.device(at) {
                    Ok(session) => {
                        session.open_device()?.wait(&point)?;
                        DONE
                    }
                    Err(Stop::Retry(room)) => {
                        self.get_mut(at)?.events.insert(event, EventState::After(point));
                        Ok(Step::Wait(room, pending))
                    }
                    Err(stop) => Err(stop),
                }
            }
            None if now >= until => Err(Cause::EventTimeout { event: event.0, waited }.into()),
            None => Ok(Step::Wait(WaitFor::Event { session: at, event, until }, pending)),
        }
    }

    pub(super) fn event_is_set(&self, session: SessionId, event: EventNumber) -> bool {
        self.sessions.by_id(session).is_none_or(|s| s.events.contains_key(&event))
    }
}

//! Waiting for staging memory.
//!
//! A body that finds none stops reading its socket until some is free, which is looked at whenever
//! this shard lets go of some, and at each tick, since other shards do too. Two bodies may each
//! hold what the other waits for, so nobody waits for ever, and they do not give up together: the
//! one that has waited longest on its shard is twice as patient as the others.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::Shard;

/// Bodies that wait for memory, in the order in which they began to.
#[derive(Default)]
pub(super) struct Queue {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

/// A place in the queue; leaves it when dropped.
struct Place<'q> {
    queue: &'q Queue,
    number: u64,
    since: Instant,
}

impl Queue {
    fn join(&self, waker: &Waker) -> Place<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().insert(number, waker.clone());
        Place { queue: self, number, since: Instant::now() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Has all that wait look again, the longest waiting first.
    pub(super) fn wake_all(&self) {
        self.waiting.borrow().values().for_each(Waker::wake_by_ref);
    }
}

impl Place<'_> {
    fn is_first(&self) -> bool {
        self.queue.waiting.borrow().keys().next() == Some(&self.number)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.waiting.borrow_mut().remove(&self.number);
    }
}

impl Shard {
    /// Waits until `has_room` says so, or fails; false when it took too long.
    pub(super) async fn wait_for_memory<E>(
        &self,
        mut has_room: impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let patience = self.config.shard.staging_wait_max;
        let mut place = None;
        poll_fn(|cx| {
            match has_room() {
                Ok(false) => {}
                over => return Poll::Ready(over),
            }
            let place = place.get_or_insert_with(|| self.memory.join(cx.waker()));
            let patience = if place.is_first() { patience * 2 } else { patience };
            if place.since.elapsed() >= patience {
                return Poll::Ready(Ok(false));
            }
            self.waits.want_ticks();
            Poll::Pending
        })
        .await
    }
}

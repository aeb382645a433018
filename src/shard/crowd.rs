//! Whether a connection has its shard to itself, or others wait while it is served.
//!
//! What moves many bytes moves them in long pieces, each of which holds the core, as long as nobody
//! else is there. Owns: who sent requests lately. Two connections are enough to know: of those, one
//! is another's.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::engine::Owner;

/// The last two connections that sent requests, the later first.
#[derive(Default)]
pub(super) struct Crowd(Cell<[Option<(Owner, Instant)>; 2]>);

impl Crowd {
    /// Notes a request.
    pub(super) fn note(&self, owner: Owner, now: Instant) {
        let [last, before] = self.0.get();
        let before = if last.is_some_and(|(known, _)| known != owner) { last } else { before };
        self.0.set([Some((owner, now)), before]);
    }

    /// Whether somebody else than `owner` has sent a request within `time`.
    pub(super) fn has_others(&self, owner: Owner, now: Instant, time: Duration) -> bool {
        let is_other = |(known, at): (Owner, Instant)| {
            known != owner && now.saturating_duration_since(at) < time
        };
        self.0.get().into_iter().flatten().any(is_other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_seen_for_a_while_and_oneself_never() {
        let (crowd, begin, time) = (Crowd::default(), Instant::now(), Duration::from_secs(1));
        let [first, second] = [Owner::Connection(1), Owner::Connection(2)];
        crowd.note(first, begin);
        crowd.note(first, begin);
        assert!(!crowd.has_others(first, begin, time));
        assert!(crowd.has_others(second, begin, time));
        crowd.note(second, begin);
        for _ in 0..3 {
            crowd.note(first, begin + time / 2);
        }
        assert!(crowd.has_others(first, begin + time / 2, time), "the second was here just now");
        assert!(!crowd.has_others(first, begin + time, time));
        assert!(crowd.has_others(second, begin + time, time));
    }
}

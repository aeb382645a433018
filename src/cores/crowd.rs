//! Which shards serve whom, as they say themselves and all threads may read.
//!
//! What moves many bytes moves them in long pieces, and what computes for seconds may have a core,
//! as long as nobody else is there. Owns: who sent requests to each shard lately. Two connections
//! are enough to know: of those, one is another's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The shards and who is with them. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Crowds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begin: Instant,
    shards: Box<[Crowd]>,
}

/// The last two connections that sent requests to a shard, the later first. Written by that shard
/// alone; another thread may see one's number with another's time, and is then wrong once.
#[derive(Debug)]
struct Crowd {
    core: usize,
    seats: [Seat; 2],
}

#[derive(Debug, Default)]
struct Seat {
    connection: AtomicU64,
    /// Microseconds since the beginning, and one more; 0 is never.
    at: AtomicU64,
}

impl Seat {
    fn get(&self) -> (u64, u64) {
        (self.connection.load(Ordering::Relaxed), self.at.load(Ordering::Relaxed))
    }

    fn set(&self, (connection, at): (u64, u64)) {
        self.connection.store(connection, Ordering::Relaxed);
        self.at.store(at, Ordering::Relaxed);
    }
}

impl Crowds {
    /// Shards with nobody there yet, on these cores.
    #[must_use]
    pub fn new(cores: &[usize]) -> Crowds {
        let shards = cores.iter().map(|core| Crowd { core: *core, seats: Default::default() });
        Crowds(Arc::new(Inner { begin: Instant::now(), shards: shards.collect() }))
    }

    /// Notes a request of a connection. For the shard itself to call.
    pub fn note(&self, shard: usize, connection: u64, now: Instant) {
        let Some(Crowd { seats: [last, before], .. }) = self.0.shards.get(shard) else { return };
        let (known, at) = last.get();
        if known != connection {
            before.set((known, at));
        }
        last.set((connection, self.micros(now) + 1));
    }

    /// Whether somebody else than `connection` has sent this shard a request within `time`.
    #[must_use]
    pub fn has_others(&self, shard: usize, connection: u64, now: Instant, time: Duration) -> bool {
        let now = self.micros(now);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let is_other =
            |(known, at): (u64, u64)| at != 0 && known != connection && now < at - 1 + time;
        self.0.shards.get(shard).is_some_and(|c| c.seats.iter().map(Seat::get).any(is_other))
    }

    /// Those of `allowed` where nobody else waits than this connection of this shard; if others are
    /// everywhere, its own shard's.
    #[must_use]
    pub fn cores_left(
        &self,
        allowed: &BTreeSet<usize>,
        (home, connection): (usize, u64),
        now: Instant,
        time: Duration,
    ) -> BTreeSet<usize> {
        let shards = || self.0.shards.iter().enumerate();
        // Connections of two shards may have the same number.
        let has_others = |shard: usize| match shard == home {
            true => self.has_others(shard, connection, now, time),
            false => self.has_others(shard, u64::MAX, now, time),
        };
        let crowded: BTreeSet<_> =
            shards().filter(|(shard, _)| has_others(*shard)).map(|(_, crowd)| crowd.core).collect();
        let left: BTreeSet<_> = allowed.difference(&crowded).copied().collect();
        match self.0.shards.get(home) {
            Some(crowd) if left.is_empty() => [crowd.core].into(),
            _ => left,
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        let time = now.saturating_duration_since(self.0.begin);
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(1);

    #[test]
    fn others_are_seen_for_a_while_and_oneself_never() {
        let (crowds, begin) = (Crowds::new(&[3]), Instant::now());
        let has_others = |connection, now| crowds.has_others(0, connection, now, TIME);
        assert!(!has_others(1, begin));
        crowds.note(0, 1, begin);
        crowds.note(0, 1, begin);
        assert!(!has_others(1, begin));
        assert!(has_others(2, begin));
        crowds.note(0, 2, begin);
        for _ in 0..3 {
            crowds.note(0, 1, begin + TIME / 2);
        }
        assert!(has_others(1, begin + TIME / 2), "the second was here just now");
        assert!(!has_others(1, begin + TIME));
        assert!(has_others(2, begin + TIME));
    }

    #[test]
    fn cores_left_are_those_of_nobody_else_or_ones_own() {
        let (crowds, now) = (Crowds::new(&[0, 1, 2]), Instant::now());
        let allowed = BTreeSet::from([0, 1, 2, 3]);
        let left = |allowed: &BTreeSet<usize>, home, connection, now| {
            let left = crowds.cores_left(allowed, (home, connection), now, TIME);
            left.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(left(&allowed, 0, 1, now), [0, 1, 2, 3]);
        crowds.note(0, 1, now);
        assert_eq!(left(&allowed, 0, 1, now), [0, 1, 2, 3], "nobody but itself");
        crowds.note(2, 1, now);
        assert_eq!(left(&allowed, 0, 1, now), [0, 1, 3], "the other shard's is another one");
        crowds.note(0, 2, now);
        assert_eq!(left(&allowed, 0, 1, now), [1, 3]);
        crowds.note(1, 1, now);
        assert_eq!(left(&allowed, 0, 1, now), [3], "a core without a shard");
        let allowed = BTreeSet::from([0, 1, 2]);
        assert_eq!(left(&allowed, 0, 1, now), [0], "its own shard's");
        assert_eq!(left(&allowed, 0, 1, now + TIME), [0, 1, 2]);
    }
}

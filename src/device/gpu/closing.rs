//! The end of a device: everything goes back to the driver, on a thread that may wait.
//!
//! Owns: [`Remains`] (all that a device had) and the order in which it goes. Absent: the context's
//! own end as a rule, which comes with the last of what was made in it, on the same thread.
//!
//! Memory must not go to anybody else while a kernel may still write there. So the work is waited
//! for, as long as a kernel may run. After that the context is ended with the work in it, as soon
//! as no other device writes to its pinned memory (`relay`). Where that cannot be done (HIP has one
//! context for all; the other device is busy with its own work for longer than a kernel may run)
//! nothing is given back: it stays taken until the server ends, which the log says.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clerk::{Lent, Uploader};
use super::driver::DevicePointer;
use super::handles::{Context, Event, Pinned, Pool, Stream};
use super::registered::Ended;
use super::relay::Relay;

/// What a device had. Dropped in this order once the work is done.
pub(super) struct Remains {
    /// Graphs and programs.
    pub(super) left: Vec<Box<dyn Any + Send>>,
    pub(super) events: Vec<Event>,
    pub(super) lent: Vec<Arc<Lent>>,
    pub(super) pinned: Vec<Pinned>,
    pub(super) registered: Vec<Ended>,
    pub(super) memory: Vec<DevicePointer>,
    pub(super) pool: Option<Pool>,
    pub(super) streams: Vec<Stream>,
    /// Pinned memory to which other devices write, who have a part in it until they do not.
    pub(super) relayed: Vec<Arc<Lent>>,
    /// And who may write there until its context has ended.
    pub(super) writers: Vec<Weak<Context>>,
    /// How long its work may take yet.
    pub(super) patience: Duration,
    /// How long others may write yet.
    pub(super) patience_with_others: Duration,
}

impl Remains {
    /// The ways by which other devices have copied from this one.
    pub(super) fn take_relays(&mut self, relays: Vec<Relay>) {
        for relay in relays {
            let (stream, event, lent) = relay.into_parts();
            self.streams.push(stream);
            self.events.push(event);
            self.lent.extend(lent);
        }
    }
}

/// Pauses between two looks at work that does not end, from the first to the longest.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(10);

pub(super) fn close(context: &Arc<Context>, remains: Remains, uploader: Option<Uploader>) {
    if settle(&remains, uploader.as_ref()) {
        give_back(context, remains);
        return;
    }
    if is_left_alone(&remains) && context.end() {
        return;
    }
    tracing::warn!(
        allocations = remains.memory.len(),
        "work of a session does not end: its memory stays taken until the server ends"
    );
    std::mem::forget((remains, uploader));
}

/// Waits until nothing is under way. False where that takes too long. A stream that fails is done:
/// nothing runs in a context that is lost.
fn settle(remains: &Remains, uploader: Option<&Uploader>) -> bool {
    let uploads = uploader.into_iter().flat_map(Uploader::streams);
    let mut streams: Vec<&Stream> = remains.streams.iter().chain(uploads).collect();
    wait_until(remains.patience, || {
        while streams.pop_if(|stream| stream.is_done().unwrap_or(true)).is_some() {}
        streams.is_empty()
    })
}

/// Waits until no other device writes to the context's memory. False where that takes too long.
fn is_left_alone(remains: &Remains) -> bool {
    let is_ours = |lent: &Arc<Lent>| Arc::strong_count(lent) == 1;
    let has_ended = |writer: &Weak<Context>| writer.upgrade().is_none_or(|it| it.has_ended());
    wait_until(remains.patience_with_others, || {
        remains.relayed.iter().all(is_ours) && remains.writers.iter().all(has_ended)
    })
}

/// Looks again and again whether something is so, for a time.
fn wait_until(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    while !is_so() {
        if start.elapsed() >= patience {
            return false;
        }
        // Nobody unparks this thread: it is a pause.
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    true
}

/// Frees the memory behind all work, then all else. What a lost context answers does not matter: it
/// takes with it what could not be freed.
fn give_back(context: &Arc<Context>, remains: Remains) {
    let Remains { left, events, lent, relayed, pinned, registered, memory, pool, streams, .. } =
        remains;
    drop((left, events, registered));
    for at in memory {
        let freed = match (&pool, streams.first()) {
            (Some(pool), Some(stream)) => pool.free(at, stream),
            _ => context.free(at),
        };
        if let Err(trouble) = freed {
            let why = context.driver().describe(trouble.code);
            tracing::debug!(why, "memory not freed: it goes with its context");
        }
    }
    for stream in &streams {
        if let Err(trouble) = stream.synchronize() {
            tracing::debug!(why = context.driver().describe(trouble.code), "stream not settled");
        }
    }
    drop((lent, relayed, pinned, pool, streams));
}

//! The end of a device: everything goes back to the driver, on a thread that may wait.
//!
//! Owns: [`Remains`] (all that a device had) and the order in which it goes. Absent: the context's
//! own end as a rule, which comes with the last of what was made in it, on the same thread.
//!
//! Memory must not go to anybody else while a kernel may still write there, or another device copy
//! from it (`reading`). So the work is waited for, as long as a kernel may run. After that the
//! context is ended with the work in it, as soon as no other device writes to its pinned memory
//! (`relay`) or reads its own. Where that cannot be done (HIP has one context for all; the other
//! device is busy with its own work for longer than a kernel may run) nothing is given back: it
//! stays taken until the server ends, which the log says.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clerk::{Lent, Uploader};
use super::driver::DevicePointer;
use super::handles::{Context, Event, Pinned, Stream};
use super::reading::Reading;
use super::registered::Ended;
use super::relay::Relay;
use super::store::Store;

/// What a device had. Dropped in this order once the work is done.
pub(super) struct Remains {
    /// Graphs and programs.
    pub(super) left: Vec<Box<dyn Any + Send>>,
    pub(super) events: Vec<Event>,
    pub(super) lent: Vec<Arc<Lent>>,
    pub(super) pinned: Vec<Pinned>,
    pub(super) registered: Vec<Ended>,
    pub(super) memory: Vec<DevicePointer>,
    pub(super) store: Option<Store>,
    pub(super) streams: Vec<Stream>,
    /// Pinned memory to which other devices write, who have a part in it until they do not.
    pub(super) relayed: Vec<Arc<Lent>>,
    /// And who may write there until its context has ended.
    pub(super) writers: Vec<Weak<Context>>,
    /// What its work reads of others' memory, and whether it may wait for them.
    pub(super) reading: Vec<(Arc<Reading>, bool)>,
    /// And others' work of its own.
    pub(super) readers: Vec<Weak<Reading>>,
    /// Whether its work may wait for another device's.
    pub(super) is_waiting: bool,
    /// How long its work may take yet.
    pub(super) patience: Duration,
    /// How long others may write and read yet.
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

pub(super) fn close(context: &Arc<Context>, mut remains: Remains, uploader: Option<Uploader>) {
    if settle(&remains, uploader.as_ref()) {
        remains.reading.clear();
        if wait_until(remains.patience_with_others, || !is_read(&remains)) {
            give_back(context, remains);
            return;
        }
    } else if context.can_end() && can_be_ended(&remains) && context.end() {
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

/// Whether others may still read the device's memory.
fn is_read(remains: &Remains) -> bool {
    remains.readers.iter().any(|reading| reading.strong_count() > 0)
}

/// Waits until no other device uses the memory of a context with work that does not end. False
/// where that takes too long.
///
/// Readers may themselves wait for that work, and would go on once it has ended. So after a time
/// they are lost too, and end first. A reader that is stuck at something else does not go on, and
/// is not waited for: it may wait here in its turn.
fn can_be_ended(remains: &Remains) -> bool {
    let stuck = remains.reading.iter().filter(|(_, may_wait)| !may_wait);
    stuck.for_each(|(reading, _)| reading.set_stuck());
    if !remains.is_waiting {
        wait_until(remains.patience_with_others, || !is_read(remains));
    }
    let readers = || remains.readers.iter().filter_map(Weak::upgrade);
    readers().for_each(|reading| reading.abandon());
    let is_ours = |lent: &Arc<Lent>| Arc::strong_count(lent) == 1;
    let has_ended = |writer: &Weak<Context>| writer.upgrade().is_none_or(|it| it.has_ended());
    wait_until(remains.patience_with_others, || {
        readers().all(|reading| reading.is_stuck())
            && remains.relayed.iter().all(is_ours)
            && remains.writers.iter().all(has_ended)
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
    let Remains {
        left, events, lent, relayed, pinned, registered, memory, mut store, streams, ..
    } = remains;
    drop((left, events, registered));
    for at in memory {
        let freed = match (&mut store, streams.first()) {
            (Some(store), Some(stream)) => store.free(context, at, stream, 0),
            _ => Ok(()),
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
    drop((lent, relayed, pinned, store, streams));
}

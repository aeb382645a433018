//! What takes longer than a shard has, on threads that do nothing else: pinning memory takes time
//! for each page, a tenth of a second for a gigabyte of small ones, and the kernel looks for a peer
//! that is not there for a second.
//!
//! Owns: [`Promise`] and those threads. Whoever drops a promise before it is kept has what was
//! promised taken back by the thread, as soon as it is made.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::fabric::{Accepted, Registered};
use super::{Address, RdmaError, Target};
use crate::config::RdmaConfig;
use crate::cores;

/// The promise of something, of a registration if nothing else is said. That lasts as long as the
/// promise.
#[derive(Debug)]
pub struct Promise<T = Box<dyn Registered>>(Arc<Owner<T>>);

/// What promises hold together. Threads and those who only wait hold the inside: what was promised
/// ends with the last promise, however slow they are to let go.
#[derive(Debug)]
struct Owner<T>(Arc<Mutex<State<T>>>);

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_wanted = false;
        let (outcome, wakers) = (state.outcome.take(), std::mem::take(&mut state.wakers));
        drop(state);
        drop(outcome);
        // There is nothing to wait for any more.
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[derive(Debug)]
struct State<T> {
    outcome: Option<Result<T, RdmaError>>,
    begun: Instant,
    /// Whether something has come of it, even if it has been taken since.
    is_kept: bool,
    is_wanted: bool,
    wakers: Vec<Waker>,
}

impl<T> State<T> {
    fn is_late(&self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.begun);
        !self.is_kept && waited >= RdmaConfig::PROMISE_TIME_MAX
    }

    /// Whether waiting brings nothing more.
    fn is_settled(&self) -> bool {
        self.is_kept || !self.is_wanted
    }
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Promise<T> {
        Promise(Arc::clone(&self.0))
    }
}

impl<T> Promise<T> {
    /// A promise, and what whoever is to keep it holds.
    pub(super) fn new() -> (Promise<T>, Keeper<T>) {
        let state = Arc::new(Mutex::new(State {
            outcome: None,
            begun: Instant::now(),
            is_kept: false,
            is_wanted: true,
            wakers: Vec::new(),
        }));
        (Promise(Arc::new(Owner(Arc::clone(&state)))), Keeper(state))
    }

    /// What has come of it, if anything has. It is the caller's then.
    #[must_use]
    pub fn take(&self) -> Option<Result<T, RdmaError>> {
        lock(&self.0.0).outcome.take()
    }

    /// Whether nothing has come of it for so long that nobody should wait any more.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        lock(&self.0.0).is_late(now)
    }

    fn look<R>(&self, at: impl FnOnce(&T) -> R) -> Option<Result<R, RdmaError>> {
        let outcome = &lock(&self.0.0).outcome;
        outcome.as_ref().map(|outcome| outcome.as_ref().map(at).map_err(Clone::clone))
    }
}

impl<T: Debug + Send + 'static> Promise<T> {
    /// To wait for it, whatever it is of.
    #[must_use]
    pub fn awaited(&self) -> Awaited {
        let kept: Arc<Mutex<State<T>>> = Arc::clone(&self.0.0);
        Awaited(kept)
    }
}

impl Promise {
    /// What peers are to be told, once there is something.
    #[must_use]
    pub fn target(&self) -> Option<Result<Target, RdmaError>> {
        self.look(|registered| registered.target())
    }

    /// Where it is for this side's own requests, and their key, once there is something.
    #[must_use]
    pub fn local(&self) -> Option<Result<(u64, u32), RdmaError>> {
        self.look(|registered| (registered.target().iova, registered.local_key()))
    }
}

impl Promise<Box<dyn Accepted>> {
    /// What the peer is to be told, once there is something.
    #[must_use]
    pub fn address(&self) -> Option<Result<Address, RdmaError>> {
        self.look(|accepted| accepted.address())
    }
}

/// Some promise, to whoever waits for it.
#[derive(Clone, Debug)]
pub struct Awaited(Arc<dyn Kept>);

impl Awaited {
    /// Whether anything has come of it, or is not worth waiting for any more, or nobody wants it
    /// any more.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.0.is_over(now)
    }

    /// Wakes a task, once, when there is something or never will be: at once if that is so
    /// already.
    pub fn wake_on_done(&self, waker: &Waker) {
        self.0.wake_on_done(waker);
    }
}

trait Kept: Debug + Send + Sync {
    fn is_over(&self, now: Instant) -> bool;
    fn wake_on_done(&self, waker: &Waker);
}

impl<T: Debug + Send> Kept for Mutex<State<T>> {
    fn is_over(&self, now: Instant) -> bool {
        let state = lock(self);
        state.is_settled() || state.is_late(now)
    }

    fn wake_on_done(&self, waker: &Waker) {
        let mut state = lock(self);
        if state.is_settled() {
            waker.wake_by_ref();
        } else if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }
}

/// What keeps a promise, which ends without it where nobody wants it any more.
#[derive(Debug)]
pub(super) struct Keeper<T = Box<dyn Registered>>(Arc<Mutex<State<T>>>);

impl<T> Keeper<T> {
    /// Says what has come of it.
    pub(super) fn keep(self, outcome: Result<T, RdmaError>) {
        let mut state = lock(&self.0);
        let unwanted = match state.is_wanted {
            true => state.outcome.replace(outcome),
            false => Some(outcome),
        };
        state.is_kept = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        drop(unwanted);
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread, which begins when it is first wanted.
pub(super) struct Hand {
    name: &'static str,
    jobs: OnceLock<Option<Sender<Job>>>,
}

/// Registers memory.
pub(super) static REGISTRAR: Hand = Hand { name: "outboard-rdma", jobs: OnceLock::new() };
/// Looks for peers. Those that are not there hold up nothing else.
pub(super) static FINDER: Hand = Hand { name: "outboard-reach", jobs: OnceLock::new() };

impl Hand {
    /// Makes something on the thread. Where the thread cannot be had, the caller pays.
    pub(super) fn promise<T: Send + 'static>(
        &'static self,
        make: impl FnOnce() -> Result<T, RdmaError> + Send + 'static,
    ) -> Promise<T> {
        let (promise, keeper) = Promise::new();
        let job: Job = Box::new(move || keeper.keep(make()));
        match self.jobs.get_or_init(|| self.begin()) {
            // A failed send hands the job back in its error.
            Some(jobs) => jobs.send(job).unwrap_or_else(|error| (error.0)()),
            None => job(),
        }
        promise
    }

    fn begin(&self) -> Option<Sender<Job>> {
        let (sender, receiver) = mpsc::channel::<Job>();
        let run = move || {
            cores::spread();
            receiver.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name(self.name.to_owned()).spawn(run).ok().map(|_| sender)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_waits_for_what_nobody_wants_any_more_is_told_at_once() {
        let (promise, _keeper) = Promise::<()>::new();
        let (awaited, calls) = (promise.awaited(), Arc::new(Calls::default()));
        let waker = Waker::from(Arc::clone(&calls));
        awaited.wake_on_done(&waker);
        assert!(!awaited.is_over(Instant::now()));
        drop(promise);
        assert!(awaited.is_over(Instant::now()));
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        awaited.wake_on_done(&waker);
        assert_eq!(calls.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_has_been_taken_is_over_for_those_who_still_wait() {
        let (promise, keeper) = Promise::new();
        let awaited = promise.awaited();
        keeper.keep(Ok(()));
        promise.take().unwrap().unwrap();
        assert!(awaited.is_over(Instant::now()));
        assert!(!promise.is_late(Instant::now() + 2 * RdmaConfig::PROMISE_TIME_MAX));
    }

    #[test]
    fn what_was_promised_ends_with_the_last_promise_whoever_still_looks() {
        let thing = Arc::new(());
        let (promise, keeper) = Promise::new();
        keeper.keep(Ok(Arc::clone(&thing)));
        let (another, awaited) = (promise.clone(), promise.awaited());
        // As a thread that was held up behind its last word.
        let thread = Arc::clone(&promise.0.0);
        drop(promise);
        assert_eq!(Arc::strong_count(&thing), 2);
        drop(another);
        assert_eq!(Arc::strong_count(&thing), 1);
        drop((thread, awaited));
    }

    #[test]
    fn what_nobody_wants_any_more_is_taken_back_when_it_is_made() {
        let thing = Arc::new(());
        let (promise, keeper) = Promise::new();
        drop(promise);
        keeper.keep(Ok(Arc::clone(&thing)));
        assert_eq!(Arc::strong_count(&thing), 1);
    }
}

//! Memory that is being registered, on a thread that does nothing else: pinning takes time for each
//! page, a tenth of a second for a gigabyte of small ones, which a shard does not have.
//!
//! Owns: [`Promise`] and that thread. Whoever drops a promise before it is kept has the
//! registration taken back by the thread, as soon as it is made.
#![forbid(unsafe_code)]

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use super::fabric::Registered;
use super::{Domain, RdmaError, Target};
use crate::cores;
use crate::device::SharedBytes;

/// What came of a registration.
pub(super) type Outcome = Result<Box<dyn Registered>, RdmaError>;

/// The promise of a registration, which lasts as long as the promise.
#[derive(Clone, Debug, Default)]
pub struct Promise(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    wakers: Vec<Waker>,
}

impl Promise {
    /// What peers are to be told, once there is something.
    #[must_use]
    pub fn target(&self) -> Option<Result<Target, RdmaError>> {
        let outcome = &self.lock().outcome;
        outcome.as_ref().map(|outcome| match outcome {
            Ok(registered) => Ok(registered.target()),
            Err(error) => Err(error.clone()),
        })
    }

    /// Where it is for this side's own requests, and their key, once there is something.
    #[must_use]
    pub fn local(&self) -> Option<Result<(u64, u32), RdmaError>> {
        let outcome = &self.lock().outcome;
        outcome.as_ref().map(|outcome| match outcome {
            Ok(registered) => Ok((registered.target().iova, registered.local_key())),
            Err(error) => Err(error.clone()),
        })
    }

    /// Wakes a task, once, when there is something: at once if there is already.
    pub fn wake_on_done(&self, waker: &Waker) {
        let mut state = self.lock();
        if state.outcome.is_some() {
            waker.wake_by_ref();
        } else if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }

    pub(super) fn keep(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.outcome = Some(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Job {
    domain: Arc<Domain>,
    memory: SharedBytes,
    promise: Promise,
}

impl Job {
    fn run(self) {
        let Job { domain, memory, promise } = self;
        let registered = domain.register(memory);
        promise.keep(registered.map(|registered| Box::new(registered) as Box<dyn Registered>));
    }
}

/// Registers memory on the thread for that. Where the thread cannot be had, the caller pays.
pub(super) fn register(domain: &Arc<Domain>, memory: SharedBytes) -> Promise {
    static THREAD: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        let run = move || {
            cores::spread();
            receiver.into_iter().for_each(Job::run);
        };
        let name = "outboard-rdma".to_owned();
        std::thread::Builder::new().name(name).spawn(run).ok().map(|_| sender)
    });
    let promise = Promise::default();
    let job = Job { domain: Arc::clone(domain), memory, promise: promise.clone() };
    match thread {
        // A failed send hands the job back in its error.
        Some(thread) => thread.send(job).unwrap_or_else(|error| error.0.run()),
        None => job.run(),
    }
    promise
}

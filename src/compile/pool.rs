//! Jobs, the queue they wait in, and the threads that take them.
//!
//! Tickets own a job; the queue and the table of sources in flight only know of it. So a job that
//! nobody waits for is gone by itself, and a thread that takes its place in the queue finds nothing
//! to do. A source that several ask for has a place in the queue for each of them, and the first
//! counts: nobody waits for another's turn. Absent: whose turn it is (`turns`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Instant;

use super::cache::{Key, Memory};
use super::turns::{Asker, Running, Turns};
use super::{Backend, CompileError, CompileResult, Target};
use crate::config::CoreLimits;
use crate::cores::{self, crowd::Crowds};

/// One source on its way to an object.
#[derive(Debug)]
pub(super) struct Job {
    target: Target,
    source: Arc<[u8]>,
    /// Whether a thread has taken it.
    begun: AtomicBool,
    state: Mutex<JobState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct JobState {
    result: Option<CompileResult>,
    wakers: Vec<Waker>,
}

impl Job {
    fn new(target: Target, source: Arc<[u8]>, state: JobState) -> Job {
        let (begun, state) = (AtomicBool::new(state.result.is_some()), Mutex::new(state));
        Job { target, source, begun, state, done: Condvar::new() }
    }

    pub(super) fn done(result: CompileResult) -> Job {
        let state = JobState { result: Some(result), wakers: Vec::new() };
        Job::new(Target::Cpu, Arc::default(), state)
    }

    pub(super) fn result(&self) -> Option<CompileResult> {
        lock(&self.state).result.clone()
    }

    pub(super) fn wake_on_done(&self, waker: &Waker) {
        let mut state = lock(&self.state);
        if state.result.is_some() {
            drop(state);
            waker.wake_by_ref();
        } else if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }

    pub(super) fn wait(&self) -> CompileResult {
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn complete(&self, result: CompileResult) {
        let mut state = lock(&self.state);
        state.result = Some(result);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.done.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The queue and what its threads share.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) backend: Backend,
    crowds: Crowds,
    queue: Mutex<Queue>,
    /// Signalled once for each new job, and to all at the end.
    work: Condvar,
}

#[derive(Debug)]
struct Queue {
    waiting: Turns<(Key, Weak<Job>)>,
    running: Running,
    /// Waiting and running jobs by the hash of their source and target.
    in_flight: HashMap<Key, Weak<Job>>,
    memory: Memory,
    threads: usize,
    threads_idle: usize,
    closed: bool,
}

impl Pool {
    pub(super) fn new(backend: Backend, crowds: Crowds) -> Pool {
        let queue = Queue {
            waiting: Turns::new(),
            running: Running::new(backend.config.threads),
            in_flight: HashMap::new(),
            memory: Memory::new(backend.config.cache_memory_bytes_max),
            threads: 0,
            threads_idle: 0,
            closed: false,
        };
        Pool { backend, crowds, queue: Mutex::new(queue), work: Condvar::new() }
    }

    /// The job for a source: a finished one, one in flight, or a new one.
    pub(super) fn submit(
        pool: &Arc<Pool>,
        asker: Asker,
        target: &Target,
        source: Arc<[u8]>,
    ) -> Arc<Job> {
        let queue_max = pool.backend.config.queue_max;
        let key = target.key(&source);
        let mut queue = lock(&pool.queue);
        if let Some(object) = queue.memory.get(&key) {
            return Arc::new(Job::done(Ok(object)));
        }
        let known = queue.in_flight.get(&key).and_then(Weak::upgrade);
        let has_place = |queue: &Queue| queue.waiting.has(asker, |(waiting, _)| *waiting == key);
        if let Some(job) = &known
            && (job.begun.load(Ordering::Relaxed) || has_place(&queue))
        {
            return Arc::clone(job);
        }
        if queue.waiting.len_of(asker.client) >= queue_max {
            queue.forget_cancelled();
        }
        if queue.waiting.len_of(asker.client) >= queue_max {
            let busy = || Arc::new(Job::done(Err(CompileError::Busy { queue_max })));
            return known.unwrap_or_else(busy);
        }
        if queue.threads_idle <= queue.waiting.len() && !queue.add_thread(pool, asker) {
            return Arc::new(Job::done(Err(CompileError::Sandbox)));
        }
        let job = known
            .unwrap_or_else(|| Arc::new(Job::new(target.clone(), source, JobState::default())));
        queue.waiting.push(asker, (key, Arc::downgrade(&job)));
        queue.in_flight.insert(key, Arc::downgrade(&job));
        drop(queue);
        pool.work.notify_one();
        job
    }

    /// Ends the threads, and the jobs that no thread has begun.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        let jobs: Vec<_> = queue.waiting.drain().filter_map(|(_, job)| job.upgrade()).collect();
        drop(queue);
        self.work.notify_all();
        let not_begun = jobs.into_iter().filter(|job| !job.begun.swap(true, Ordering::Relaxed));
        not_begun.for_each(|job| job.complete(Err(CompileError::Closed)));
    }

    /// A thread's life.
    fn work(&self) {
        while let Some((asker, key, job)) = self.next() {
            self.step_aside(asker);
            let result = self.backend.compile(&job.target, &job.source);
            let mut queue = lock(&self.queue);
            queue.running.end(asker);
            queue.in_flight.remove(&key);
            if let Ok(object) = &result {
                queue.memory.put(key, Arc::clone(object));
            }
            drop(queue);
            job.complete(result);
        }
    }

    /// Has the calling thread, and the compilers that it starts, leave others' cores to them. A
    /// compiler takes turns of milliseconds, and a scheduler that looks at its tick leaves it there
    /// when a shard wakes up.
    fn step_aside(&self, asker: Asker) {
        let Ok(allowed) = cores::allowed() else { return };
        let whose = (asker.shard, asker.connection);
        let time = CoreLimits::COMPILER_AWAY_TIME;
        cores::keep_to(&self.crowds.cores_left(&allowed, whose, Instant::now(), time));
    }

    /// Waits for a job that somebody waits for; `None` at the end.
    fn next(&self) -> Option<(Asker, Key, Arc<Job>)> {
        let mut queue = lock(&self.queue);
        loop {
            let Queue { waiting, running, closed, .. } = &mut *queue;
            if *closed {
                queue.threads -= 1;
                return None;
            }
            match waiting.pop(|asker| running.may_have(asker)) {
                Some((asker, (key, job))) => match job.upgrade() {
                    Some(job) if job.begun.swap(true, Ordering::Relaxed) => {}
                    Some(job) => {
                        running.begin(asker);
                        return Some((asker, key, job));
                    }
                    None => queue.forget(&key),
                },
                None => {
                    queue.threads_idle += 1;
                    queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.threads_idle -= 1;
                }
            }
        }
    }
}

impl Queue {
    /// Starts a thread if there may be one more for this asker. False if there is none at all.
    fn add_thread(&mut self, pool: &Arc<Pool>, asker: Asker) -> bool {
        if self.threads < self.running.most() && self.running.may_have(asker) {
            let pool = Arc::clone(pool);
            let thread = std::thread::Builder::new().name("compile".to_owned());
            let work = move || {
                cores::step_back(CoreLimits::COMPILER_NICE);
                cores::take_turns(CoreLimits::LONG_TURN);
                pool.work();
            };
            match thread.spawn(work) {
                Ok(_) => self.threads += 1,
                Err(error) => tracing::warn!(%error, "cannot start a thread for the compiler"),
            }
        }
        self.threads > 0
    }

    /// Drops a cancelled job's entry, unless a new job has taken its name since.
    fn forget(&mut self, key: &Key) {
        if self.in_flight.get(key).is_some_and(|job| job.strong_count() == 0) {
            self.in_flight.remove(key);
        }
    }

    fn forget_cancelled(&mut self) {
        self.waiting.retain(|(_, job)| job.strong_count() > 0);
        self.in_flight.retain(|_, job| job.strong_count() > 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

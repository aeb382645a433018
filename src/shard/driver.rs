//! When a shard enters the kernel, and when it waits there.
//!
//! Owns: [`Reactor`] (the ring, timers, turns) and the driver, the one task of a shard that enters
//! the kernel. The driver is always runnable: each time that its turn comes it goes back to the end
//! of the executor's queue. When no other task has run since its last turn, none can be runnable,
//! and the driver waits in the ring for a completion or the next timer. So there is one entry into
//! the kernel for all that the tasks began since the last one, and the executor itself never
//! sleeps, nor does it have to look at anything.
//!
//! So every task of a shard is spawned through [`Reactor::spawn`], which counts how often tasks
//! run, and no task is ever woken by the waker of another thread: the executor, which hears those
//! only when it looks, does not look. Other threads ring a bell (`io`).
//!
//! Where more connections of several identities can go on than a few, the driver calls a few at a
//! time, those first whose identity has had least (`fair`), and looks at the ring in between: what
//! comes then does not stand behind all that came before it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::fair::{Claim, Queue, State};
use super::ring::{Ring, Wait};
use crate::config::RingLimits;

/// Turns of the driver without a look at the ring while other tasks run. Tasks that wake each other
/// without end delay completions by this many rounds, no more.
const ROUNDS_MAX: u32 = 16;

/// Connections that go on between two looks at the ring: a small request with its reply takes 5 to
/// 10 microseconds, and an entry into the kernel less than one.
const CALLS_MAX: u32 = 8;
/// How long they may take for that.
const CALLS_TIME_MAX: Duration = Duration::from_micros(50);

/// What a shard's tasks wait on.
pub(super) struct Reactor {
    ring: Rc<Ring>,
    busy_poll: Duration,
    /// Tasks that wait for a device, whose worker may need this very core.
    yields: Cell<u32>,
    /// Counts how often tasks have run.
    runs: Cell<u64>,
    is_stopping: Cell<bool>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    timer_next: Cell<u64>,
    /// Tasks that let the others go first.
    turns: RefCell<Vec<Waker>>,
    /// Counts looks at the ring.
    looks: Cell<u64>,
    /// Connections that can go on and have to wait until they are called.
    queue: RefCell<Queue<(Waker, Rc<Claim>)>>,
    /// Connections that have gone on since the last look without having been called.
    uncalled: Cell<u32>,
}

/// What the driver knows from turn to turn.
struct Driver {
    reactor: Rc<Reactor>,
    runs: u64,
    rounds: u32,
    woken: Vec<Waker>,
    active: Instant,
    /// Calls since the last look, and when the first one was.
    calls: u32,
    calling: Instant,
    /// Whom the last calls were for, and when they were.
    called: Option<(u128, Instant)>,
}

impl Reactor {
    /// The reactor of the calling thread's shard, and the task that drives it.
    pub(super) fn start(limits: RingLimits) -> io::Result<Rc<Reactor>> {
        let reactor = Rc::new(Reactor {
            ring: Ring::new(limits)?,
            busy_poll: limits.busy_poll,
            yields: Cell::new(0),
            runs: Cell::new(0),
            is_stopping: Cell::new(false),
            timers: RefCell::default(),
            timer_next: Cell::new(0),
            turns: RefCell::default(),
            looks: Cell::new(0),
            queue: RefCell::default(),
            uncalled: Cell::new(0),
        });
        let mut driver = Driver {
            reactor: Rc::clone(&reactor),
            // The executor runs a new task at once: nothing is known about others then.
            runs: u64::MAX,
            rounds: 0,
            woken: Vec::new(),
            active: Instant::now(),
            calls: 0,
            calling: Instant::now(),
            called: None,
        };
        glommio::spawn_local(poll_fn(move |cx| driver.turn(cx))).detach();
        Ok(reactor)
    }

    /// Whether the shard watches its sockets before it sleeps.
    pub(super) fn is_watching(&self) -> bool {
        !self.busy_poll.is_zero() && self.yields.get() == 0
    }

    pub(super) fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// Runs a task. It ends when what is returned is dropped.
    pub(super) fn spawn<F>(self: &Rc<Self>, task: F) -> glommio::Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        glommio::spawn_local(self.counted(task))
    }

    /// Runs the task of a connection, which waits for its turn where others can go on too.
    pub(super) fn spawn_fair<F>(
        self: &Rc<Self>,
        claim: Rc<Claim>,
        task: F,
    ) -> glommio::Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let reactor = Rc::clone(self);
        let mut task = Box::pin(task);
        self.spawn(poll_fn(move |cx| match reactor.lets_on(&claim, cx.waker()) {
            true => task.as_mut().poll(cx),
            false => Poll::Pending,
        }))
    }

    /// Whether a connection may go on now; if not, its task is woken when it may.
    fn lets_on(&self, claim: &Rc<Claim>, waker: &Waker) -> bool {
        match claim.state.get() {
            _ if !claim.is_fair => return true,
            State::Called => {
                claim.state.set(State::Idle);
                return true;
            }
            State::Waiting => return false,
            State::Idle => {}
        }
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() && self.uncalled.get() < CALLS_MAX {
            self.uncalled.update(|count| count + 1);
            return true;
        }
        claim.state.set(State::Waiting);
        queue.push(claim.identity.get().number(), (waker.clone(), Rc::clone(claim)));
        false
    }

    /// A future whose runs the driver sees. The executor's first task has to be one.
    pub(super) fn counted<F: Future>(
        self: &Rc<Self>,
        task: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let reactor = Rc::clone(self);
        let mut task = Box::pin(task);
        poll_fn(move |cx| {
            reactor.runs.update(|runs| runs + 1);
            task.as_mut().poll(cx)
        })
    }

    /// Ends the driver; the executor ends behind it. What waits then waits for ever.
    pub(super) fn stop(&self) {
        self.is_stopping.set(true);
    }

    /// Waits for a time.
    pub(super) fn sleep(self: &Rc<Self>, time: Duration) -> Sleep {
        let number = self.timer_next.get();
        self.timer_next.set(number + 1);
        Sleep { reactor: Rc::clone(self), key: (Instant::now() + time, number) }
    }

    /// What comes of `work`, unless it takes longer than `time_max`.
    pub(super) async fn within<F: Future>(
        self: &Rc<Self>,
        time_max: Duration,
        work: F,
    ) -> Option<F::Output> {
        let patience = async {
            self.sleep(time_max).await;
            None
        };
        futures_lite::future::or(async { Some(work.await) }, patience).await
    }

    /// Lets every other task of this shard that can run, and every socket, have its turn.
    ///
    /// A task that always has work gives up the core here; merely yielding would not let the ring
    /// be looked at.
    pub(super) async fn turn(&self) {
        let look = self.looks.get();
        poll_fn(|cx| {
            if self.looks.get() != look {
                return Poll::Ready(());
            }
            self.turns.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Leaves the core to others while nothing is to be done, until the value is dropped.
    pub(super) fn yield_core(self: &Rc<Self>) -> YieldedCore {
        self.yields.update(|count| count + 1);
        YieldedCore(Rc::clone(self))
    }

    /// Wakes those whose time has come; how long it is to the next.
    fn fire(&self, woken: &mut Vec<Waker>) -> Option<Duration> {
        let mut timers = self.timers.borrow_mut();
        let now = Instant::now();
        loop {
            let first = timers.first_entry()?;
            let (due, _) = *first.key();
            if due > now {
                return Some(due - now);
            }
            woken.push(first.remove());
        }
    }

    /// Looks at the ring without waiting, and lets those go on that waited for a look.
    fn look(&self, woken: &mut Vec<Waker>) {
        self.ring.enter(Wait::No);
        self.ring.collect(woken);
        self.uncalled.set(0);
        self.looks.update(|looks| looks + 1);
        woken.append(&mut self.turns.borrow_mut());
    }
}

impl Driver {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reactor.is_stopping.get() {
            let left = self.reactor.ring.close();
            self.reactor.timers.take();
            self.reactor.turns.take();
            self.reactor.queue.take();
            drop(left);
            return Poll::Ready(());
        }
        let runs = self.reactor.runs.get();
        let is_quiet = std::mem::replace(&mut self.runs, runs) == runs;
        if let Some((identity, since)) = self.called.take() {
            self.reactor.queue.borrow_mut().charge(identity, since.elapsed());
        }
        if !self.reactor.queue.borrow().is_empty() {
            self.call();
        } else if is_quiet {
            self.wait();
        } else {
            self.advance();
        }
        self.woken.drain(..).for_each(Waker::wake);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Has the next connections go on, or looks whether there are others before them.
    fn call(&mut self) {
        let now = Instant::now();
        if self.calls == 0 {
            self.calling = now;
        }
        if self.calls == CALLS_MAX || now - self.calling >= CALLS_TIME_MAX {
            return self.look();
        }
        let Driver { woken, calls, .. } = self;
        let most = (CALLS_MAX - *calls) as usize;
        let identity = self.reactor.queue.borrow_mut().pop(most, |(waker, claim)| {
            *calls += 1;
            claim.state.set(State::Called);
            woken.push(waker);
        });
        self.called = identity.map(|identity| (identity, now));
    }

    /// Other tasks have run, and what they woke may be runnable.
    fn advance(&mut self) {
        self.rounds += 1;
        if self.rounds < ROUNDS_MAX && self.reactor.turns.borrow().is_empty() {
            return;
        }
        self.look();
    }

    fn look(&mut self) {
        (self.rounds, self.calls) = (0, 0);
        self.reactor.fire(&mut self.woken);
        self.reactor.look(&mut self.woken);
    }

    /// Nothing else can run until something comes from outside.
    fn wait(&mut self) {
        (self.rounds, self.calls) = (0, 0);
        self.reactor.uncalled.set(0);
        self.reactor.queue.borrow_mut().forget();
        // Interruptions, and completions that nobody waits for, go round here: the executor would
        // arm its timer each time.
        while self.woken.is_empty() {
            let time = self.reactor.fire(&mut self.woken);
            // A full ring may have been emptied while tasks began operations.
            self.reactor.ring.collect(&mut self.woken);
            if !self.woken.is_empty() {
                return;
            }
            if !self.reactor.turns.borrow().is_empty() {
                return self.reactor.look(&mut self.woken);
            }
            if !self.spin(time) {
                self.reactor.ring.enter(Wait::For(time));
            }
            self.reactor.ring.collect(&mut self.woken);
        }
        if !self.reactor.busy_poll.is_zero() {
            self.active = Instant::now();
        }
    }

    /// Watches the ring for a while after it was last active, if that is wanted. Returns whether
    /// there are completions.
    fn spin(&self, time: Option<Duration>) -> bool {
        if self.reactor.yields.get() > 0 {
            return false;
        }
        let spin = self.reactor.busy_poll;
        let left = spin.saturating_sub(self.active.elapsed());
        if left.is_zero() {
            return false;
        }
        let left = time.map_or(left, |time| time.min(left));
        let (ring, begun) = (&self.reactor.ring, Instant::now());
        loop {
            ring.hand_over();
            if ring.look_at_watched() || ring.has_completions() {
                return true;
            }
            if begun.elapsed() >= left {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

/// While there is one, a shard with nothing to do sleeps at once, whatever `busy_poll` says.
pub(super) struct YieldedCore(Rc<Reactor>);

impl Drop for YieldedCore {
    fn drop(&mut self) {
        self.0.yields.update(|count| count - 1);
    }
}

/// A wait for a time.
pub(super) struct Sleep {
    reactor: Rc<Reactor>,
    key: (Instant, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        self.reactor.timers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.reactor.timers.borrow_mut().remove(&self.key);
    }
}

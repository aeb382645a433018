//! Waiting: for devices, compilations, events, and for time.
//!
//! A task that waits leaves its waker here. Doorbells of devices, other threads and the ticker wake
//! it; it then asks the engine whether the wait is over. The ticker runs only while something is
//! under way, so an idle server uses no processor time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::Shard;
use super::io::Doorbell;
use crate::config::ShardLimits;
use crate::engine::{SessionId, WaitFor};

/// Tasks of this shard that wait.
#[derive(Default)]
pub(super) struct Waits {
    compilations: RefCell<Vec<Waker>>,
    devices: RefCell<HashMap<SessionId, Vec<Waker>>>,
    events: RefCell<Vec<Waker>>,
    ticker: RefCell<Option<Waker>>,
    ticks_wanted: Cell<bool>,
}

impl Waits {
    /// Asks for ticks, as long as something is under way.
    pub(super) fn want_ticks(&self) {
        if !self.ticks_wanted.replace(true)
            && let Some(waker) = self.ticker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    async fn until_ticks_are_wanted(&self) {
        poll_fn(|cx| {
            if self.ticks_wanted.get() {
                return Poll::Ready(());
            }
            *self.ticker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn wake_compilations(&self) {
        let wakers = std::mem::take(&mut *self.compilations.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn wake_device(&self, session: SessionId) {
        let wakers = self.devices.borrow_mut().remove(&session);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub(super) fn wake_events(&self) {
        let wakers = std::mem::take(&mut *self.events.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes all that wait, so that they see what time has changed.
    fn wake_all(&self) {
        let devices = std::mem::take(&mut *self.devices.borrow_mut());
        devices.into_values().flatten().for_each(Waker::wake);
        self.wake_compilations();
        self.wake_events();
    }
}

/// The client is gone; its batch is abandoned.
#[derive(Debug)]
pub(super) struct Gone;

/// How a task that waits for its batch hears that the client went away.
#[derive(Default)]
pub(super) struct Cancel {
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Cancel {
    pub(super) fn cancel(&self) {
        self.gone.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it has happened; if not, the task is woken when it does.
    pub(super) fn is_cancelled(&self, waker: &Waker) -> bool {
        *self.waker.borrow_mut() = Some(waker.clone());
        self.gone.get()
    }
}

impl Shard {
    /// Waits until the engine says that `wait` is over, or the connection is gone.
    pub(super) async fn wait(&self, cancel: &Cancel, wait: &WaitFor) -> Result<(), Gone> {
        self.waits.want_ticks();
        // On a machine with few cores a worker process may have to run where this shard does.
        let _yielded = matches!(wait, WaitFor::Device { .. }).then(|| self.reactor.yield_core());
        while self.is_soon(wait) {
            self.reactor.turn().await;
        }
        poll_fn(|cx| {
            let waker = cx.waker();
            if cancel.is_cancelled(waker) {
                return Poll::Ready(Err(Gone));
            }
            if self.engine.borrow_mut().is_over(wait, Instant::now()) {
                return Poll::Ready(Ok(()));
            }
            // Nothing of this shard runs in between; a ticket that is done by now wakes at once.
            match wait {
                WaitFor::Compile(ticket) => {
                    push(&mut self.waits.compilations.borrow_mut(), waker);
                    ticket.wake_on_done(&self.bell);
                }
                WaitFor::Device { session, .. } => {
                    let mut devices = self.waits.devices.borrow_mut();
                    push(devices.entry(*session).or_default(), waker);
                }
                WaitFor::Event { .. } => push(&mut self.waits.events.borrow_mut(), waker),
                // Other threads ring for these as they do for compilations.
                WaitFor::Rdma(promise) => {
                    push(&mut self.waits.compilations.borrow_mut(), waker);
                    promise.wake_on_done(&self.bell);
                }
            }
            Poll::Pending
        })
        .await
    }

    fn is_soon(&self, wait: &WaitFor) -> bool {
        self.engine.borrow_mut().is_soon(wait, Instant::now())
    }

    /// Gives each newly opened device a task that listens to its doorbell.
    pub(super) fn listen_to_doorbells(self: &Rc<Self>) {
        let opened = self.engine.borrow_mut().take_opened();
        for session in opened {
            let Some(doorbell) = self.engine.borrow().doorbell(session) else { continue };
            let shard = Rc::clone(self);
            let doorbell = Doorbell::new(&self.reactor, doorbell);
            self.reactor.spawn(shard.listen_to(session, doorbell)).detach();
        }
    }

    async fn listen_to(self: Rc<Self>, session: SessionId, mut doorbell: Doorbell) {
        while doorbell.rung().await {
            self.engine.borrow_mut().poll_session(session, Instant::now());
            self.waits.wake_device(session);
            self.memory.wake_all();
        }
        // The reason is known by the time that a doorbell ends.
        self.engine.borrow_mut().poll_session(session, Instant::now());
        self.waits.wake_device(session);
    }

    /// Looks after everything that time changes.
    pub(super) async fn tick_for_ever(self: Rc<Self>) {
        loop {
            let rest = self.config.shard.rest;
            if self.reactor.within(rest, self.waits.until_ticks_are_wanted()).await.is_none() {
                give_memory_back();
                self.waits.until_ticks_are_wanted().await;
            }
            self.reactor.sleep(self.config.shard.tick).await;
            let now = Instant::now();
            let devices_busy = self.engine.borrow_mut().tick(now);
            let connections_busy = self.look_after_connections(now);
            self.waits.wake_all();
            self.memory.wake_all();
            let is_busy = devices_busy || connections_busy || !self.memory.is_empty();
            self.waits.ticks_wanted.set(is_busy);
        }
    }

    /// Time limits of requests that arrive, and clients that went away while their batch waits.
    /// Returns whether any connection has a request under way.
    fn look_after_connections(&self, now: Instant) -> bool {
        let mut busy = false;
        for connection in self.connections.borrow().values() {
            busy |= connection.deadline.get().is_some() || connection.in_batch.get();
            busy |= connection.staging.borrow().tick(now);
            if connection.deadline.get().is_some_and(|deadline| deadline <= now) {
                if connection.handle.hear_all() {
                    // Few bytes in the time of many are no pause.
                    let pause_max = self.config.shard.body_pause_max;
                    connection.deadline.set(Some(now + pause_max));
                    continue;
                }
                connection.timed_out.set(true);
                connection.handle.stop_receiving();
            }
            if connection.in_batch.get() && connection.handle.is_gone() {
                connection.cancel.cancel();
            }
        }
        busy
    }
}

/// Has the allocator give back what was freed some time ago. It does so of itself when something
/// is freed that it does not keep for later; a shard that rests frees nothing.
fn give_memory_back() {
    // Address space alone: no page of it is touched.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(ShardLimits::UNKEPT_BYTES)));
}

/// Adds a waker unless it is there.
fn push(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

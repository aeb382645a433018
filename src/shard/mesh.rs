//! Messages between shards: a closed set, over bounded queues.
//!
//! A command that names a session of another shard goes there as text, with the blob that it
//! names, and its outcome comes back. A connection may go itself (`moving`). Nothing else crosses.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::Shard;
use super::completion::{Cancel, Gone};
use super::connection::Moved;
use super::io::{Bell, Doorbell};
use super::output::Unreadable;
use crate::blob::Digest;
use crate::engine::{Batch, Blob, Blobs, Home, Output, Owner};
use crate::identity::{Access, Identity, Peers};

/// Messages that a shard's queue holds. A sender that finds it full tries again.
const QUEUE_LENGTH: usize = 1024;
const RETRY: Duration = Duration::from_millis(1);

/// What one shard tells another.
pub(super) enum Message {
    /// From now on this says who may come.
    Access(Arc<Access>),
    /// Run this command for one of your sessions.
    Command {
        text: String,
        blob: Option<(Digest, Box<[u8]>)>,
        identity: Identity,
        from: Home,
        ticket: u64,
    },
    /// Serve this connection from now on.
    Connection(Box<Moved>),
    /// Stop accepting, finish what runs.
    Drain,
    /// The outcome of a command that you sent.
    Outcome { ticket: u64, outcome: Result<Vec<u8>, String> },
    /// From now on these are the other servers, and this is how they are spoken to.
    Peers(Arc<Peers>),
}

/// The queues of all shards.
#[derive(Clone)]
pub(super) struct Mesh(Arc<[Inbox]>);

struct Inbox {
    queue: ArrayQueue<Message>,
    bell: Bell,
}

impl Mesh {
    /// Queues for `shards` shards, and for each the end of the bell that it waits on.
    pub(super) fn new(shards: usize) -> std::io::Result<(Mesh, Vec<std::os::fd::OwnedFd>)> {
        let mut inboxes = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..shards {
            let (bell, wait) = Bell::pair()?;
            inboxes.push(Inbox { queue: ArrayQueue::new(QUEUE_LENGTH), bell });
            waits.push(wait);
        }
        Ok((Mesh(inboxes.into()), waits))
    }

    /// Sends a message, or gives it back where the queue is full.
    pub(super) fn send(&self, to: Home, message: Message) -> Result<(), Message> {
        let Some(inbox) = self.0.get(to.0) else { return Ok(()) };
        inbox.queue.push(message)?;
        inbox.bell.ring();
        Ok(())
    }

    /// Sends a message to every shard, from another thread.
    pub(super) fn send_to_all(&self, message: impl Fn() -> Message) {
        for home in 0..self.0.len() {
            // A full queue is emptied within a moment by its shard.
            let mut message = message();
            while let Err(back) = self.send(Home(home), message) {
                message = back;
                std::thread::yield_now();
            }
        }
    }

    /// A waker for other threads: it rings the bell of a shard, which then looks at what they may
    /// have done.
    pub(super) fn waker(&self, home: Home) -> Waker {
        Arc::new(self.0[home.0].bell.clone()).into()
    }

    fn receive(&self, home: Home) -> Option<Message> {
        self.0.get(home.0)?.queue.pop()
    }
}

/// Commands sent to other shards, whose outcomes are awaited.
#[derive(Default)]
pub(super) struct Forwarded {
    ticket_next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Slot>>,
}

enum Slot {
    Awaited(Option<Waker>),
    Arrived(Result<Vec<u8>, String>),
}

impl Shard {
    /// Has another shard run the command that the batch is at.
    pub(super) async fn forward(
        &self,
        cancel: &Cancel,
        batch: &mut Batch<'_>,
        to: Home,
    ) -> Result<(), Gone> {
        let ticket = self.forwarded.ticket_next.get();
        self.forwarded.ticket_next.set(ticket + 1);
        self.forwarded.waiting.borrow_mut().insert(ticket, Slot::Awaited(None));
        let (text, blob) = batch.forward();
        let blob = blob.map(|(digest, bytes)| (digest, Box::from(&*bytes)));
        let (identity, from) = (batch.identity(), self.home);
        let message = Message::Command { text, blob, identity, from, ticket };
        self.send_patiently(to, message).await;
        let outcome = poll_fn(|cx| {
            let mut waiting = self.forwarded.waiting.borrow_mut();
            if cancel.is_cancelled(cx.waker()) {
                waiting.remove(&ticket);
                return Poll::Ready(Err(Gone));
            }
            match waiting.remove(&ticket) {
                Some(Slot::Arrived(outcome)) => Poll::Ready(Ok(outcome)),
                _ => {
                    waiting.insert(ticket, Slot::Awaited(Some(cx.waker().clone())));
                    Poll::Pending
                }
            }
        })
        .await?;
        batch.forwarded(outcome);
        Ok(())
    }

    /// Takes messages for as long as the shard lives.
    pub(super) async fn take_messages(self: Rc<Self>, mut bell: Doorbell) {
        while bell.rung().await {
            self.waits.wake_compilations();
            while let Some(message) = self.mesh.receive(self.home) {
                match message {
                    Message::Access(access) => *self.access.borrow_mut() = access,
                    Message::Command { text, blob, identity, from, ticket } => {
                        let shard = Rc::clone(&self);
                        let task = async move {
                            let outcome = shard.run_for(identity, &text, blob).await;
                            shard.send_patiently(from, Message::Outcome { ticket, outcome }).await;
                        };
                        self.reactor.spawn(task).detach();
                    }
                    Message::Connection(moved) => self.take_in(*moved),
                    Message::Drain => self.begin_drain(),
                    Message::Outcome { ticket, outcome } => self.arrived(ticket, outcome),
                    Message::Peers(peers) => *self.peers.borrow_mut() = peers,
                }
            }
        }
    }

    fn arrived(&self, ticket: u64, outcome: Result<Vec<u8>, String>) {
        // A ticket that is not awaited any more belonged to a client that went away.
        let mut waiting = self.forwarded.waiting.borrow_mut();
        if let Some(slot) = waiting.get_mut(&ticket)
            && let Slot::Awaited(Some(waker)) = std::mem::replace(slot, Slot::Arrived(outcome))
        {
            waker.wake();
        }
    }

    /// Runs a command for another shard.
    async fn run_for(
        self: &Rc<Self>,
        identity: Identity,
        text: &str,
        blob: Option<(Digest, Box<[u8]>)>,
    ) -> Result<Vec<u8>, String> {
        let mut blobs = Blobs::default();
        if let Some((digest, bytes)) = blob {
            blobs.insert(digest, Blob::Private(bytes.into()));
        }
        let parsed =
            self.engine.borrow_mut().parse(text.as_bytes(), blobs, Owner::Shard, &self.config.wire);
        let mut batch = parsed.map_err(|error| error.to_string())?.of_identity(identity);
        match self.run(&Cancel::default(), &mut batch).await {
            Ok(reply) => self.collect(batch.outcome(reply)?).await.map_err(|e| e.to_string()),
            Err(Gone) => Err("the command was abandoned".to_owned()),
        }
    }

    /// All bytes of an output.
    async fn collect(&self, output: Output) -> Result<Vec<u8>, Unreadable> {
        let mut output = output;
        let mut bytes = output.as_bytes().to_vec();
        while let Some(rest) = output.take_rest() {
            let reading = self.engine.borrow_mut().read_on(rest)?;
            output = self.read(&Cancel::default(), reading).await?;
            bytes.extend_from_slice(output.as_bytes());
        }
        Ok(bytes)
    }

    pub(super) async fn send_patiently(&self, to: Home, message: Message) {
        let mut message = message;
        while let Err(back) = self.mesh.send(to, message) {
            message = back;
            self.reactor.sleep(RETRY).await;
        }
    }
}

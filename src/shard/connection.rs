//! One client's connection: requests in, batches run, replies out, in order.
//!
//! Owns: the socket, the receive buffer, the HTTP value, the staging memory, and the rule that a
//! task gives up the core after a bounded amount of work. A socket that always has data never
//! blocks its task, and glommio's `yield_if_needed` does not look at other sockets, so that giving
//! way has to go through the reactor.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tracing::debug;

use super::Shard;
use super::body::{Body, BodyError};
use super::completion::{Cancel, Gone};
use super::io::{Handle, Socket, send_all};
use crate::device::shared::Heap;
use crate::engine::{Batch, Blobs, Output, Owner, Progress, Reply};
use crate::http::{self, BodyLength, Event, Phase, Refusal, Status};
use crate::wire::reply;

/// What others see of a connection: the ticker, and whoever wakes its task.
pub(super) struct ConnectionEntry {
    pub(super) cancel: Cancel,
    pub(super) handle: Handle,
    /// When the peer has to have sent more.
    pub(super) deadline: Cell<Option<Instant>>,
    /// A batch is under way.
    pub(super) in_batch: Cell<bool>,
    /// Nothing of a request has arrived.
    pub(super) idle: Cell<bool>,
    /// Memory that long blobs are received into.
    pub(super) staging: Heap,
    pub(super) timed_out: Cell<bool>,
}

impl ConnectionEntry {
    pub(super) fn new(handle: Handle, staging: Heap) -> ConnectionEntry {
        ConnectionEntry {
            staging,
            cancel: Cancel::default(),
            handle,
            deadline: Cell::new(None),
            in_batch: Cell::new(false),
            idle: Cell::new(true),
            timed_out: Cell::new(false),
        }
    }
}

/// Received bytes that are not consumed yet.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Free space behind what is buffered.
    fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }
}

/// What became of a request.
enum Arrived {
    /// It is here: the command text and the blobs before it.
    Batch(Vec<u8>, Blobs),
    /// It is answered with this status and text instead.
    Refused(Status, String),
    /// The peer is gone.
    Closed,
}

struct Connection {
    shard: Rc<Shard>,
    socket: Socket,
    entry: Rc<ConnectionEntry>,
    owner: Owner,
    http: http::Connection,
    input: Input,
    /// Bytes since the last time that others had their turn.
    taken: usize,
}

/// Serves a connection to its end, then ends the sessions that it opened.
pub(super) async fn serve(shard: Rc<Shard>, socket: Socket, owner: Owner) {
    let staging = Heap::new(Arc::clone(&shard.config.staging));
    let entry = Rc::new(ConnectionEntry::new(socket.handle(), staging));
    shard.connections.borrow_mut().insert(owner, Rc::clone(&entry));
    let mut connection = Connection {
        http: http::Connection::new(shard.config.http),
        input: Input { buffer: vec![0; shard.config.shard.receive_bytes].into(), start: 0, end: 0 },
        shard: Rc::clone(&shard),
        socket,
        entry,
        owner,
        taken: 0,
    };
    let outcome = connection.exchange_all().await;
    shard.connections.borrow_mut().remove(&owner);
    shard.engine.borrow_mut().release(owner);
    match outcome {
        Ok(()) => connection.socket.close().await,
        Err(error) => debug!(?owner, %error, "connection lost"),
    }
    shard.connection_ended();
}

impl Connection {
    async fn exchange_all(&mut self) -> io::Result<()> {
        loop {
            let arrived = self.arrive().await?;
            self.entry.deadline.set(None);
            let (text, blobs) = match arrived {
                Arrived::Batch(text, blobs) => (text, blobs),
                Arrived::Refused(status, text) => {
                    self.respond(status, text.as_bytes()).await?;
                    if self.http.closes() {
                        return Ok(());
                    }
                    continue;
                }
                Arrived::Closed => return Ok(()),
            };
            let Ok((status, output)) = self.run(&text, blobs).await else { return Ok(()) };
            self.respond(status, output.as_bytes()).await?;
            if self.http.closes() {
                return Ok(());
            }
            // A pipelining client may have the next request here already.
            self.take(text.len()).await;
        }
    }

    /// Runs a batch. `Err` when the client went away meanwhile.
    async fn run(&mut self, text: &[u8], blobs: Blobs) -> Result<(Status, Output), Gone> {
        let limits = &self.shard.config.wire;
        let parsed = self.shard.engine.borrow_mut().parse(text, blobs, self.owner, limits);
        let mut batch = match parsed {
            Ok(batch) => batch,
            Err(error) => {
                let message = format!("bad command text: {error}");
                let text = reply::RemoteException { message: &message }.to_string();
                return Ok((Status::InternalServerError, Output::Text(text)));
            }
        };
        self.entry.in_batch.set(true);
        let reply = self.shard.run(&self.entry.cancel, &mut batch).await;
        self.entry.in_batch.set(false);
        Ok(match reply? {
            Reply::Ok(output) => (Status::Ok, output),
            Reply::Failed(text) => {
                debug!(owner = ?self.owner, %text, "batch failed");
                (Status::InternalServerError, Output::Text(text))
            }
        })
    }

    async fn respond(&mut self, status: Status, body: &[u8]) -> io::Result<()> {
        if self.shard.draining.get() {
            self.http.stop();
        }
        let mut head = Vec::with_capacity(128);
        let sent = if self.http.omits_body() { &[] } else { body };
        self.http.respond(status, body.len() as u64, &mut head);
        let slice_bytes = self.shard.config.shard.io_slice_bytes;
        send_all(&self.shard.turnstile, &mut self.socket, &head, sent, slice_bytes).await
    }

    /// Receives the next request, whole.
    async fn arrive(&mut self) -> io::Result<Arrived> {
        loop {
            self.entry.idle.set(self.http.phase() == Phase::Idle && self.input.bytes().is_empty());
            if self.entry.idle.get() && self.shard.draining.get() {
                return Ok(Arrived::Closed);
            }
            let step = self.http.next(self.input.bytes());
            let consumed = step.consumed;
            match step.event {
                Event::Request(request) => {
                    let (length, expects_continue) = (request.body, request.expects_continue);
                    self.input.consume(consumed);
                    if expects_continue {
                        let mut head = Vec::new();
                        self.http.write_continue(&mut head);
                        let turnstile = &self.shard.turnstile;
                        send_all(turnstile, &mut self.socket, &head, &[], usize::MAX).await?;
                    }
                    return self.arrive_body(length).await;
                }
                Event::Refused(refusal) => {
                    self.input.consume(consumed);
                    return Ok(self.refused(refusal));
                }
                Event::NeedMore | Event::Body(_) | Event::End => {
                    self.input.consume(consumed);
                    if self.fill().await? == 0 {
                        return Ok(self.ended());
                    }
                }
            }
        }
    }

    async fn arrive_body(&mut self, length: BodyLength) -> io::Result<Arrived> {
        let shard = Rc::clone(&self.shard);
        let staging = self.entry.staging.clone();
        let mut body = Body::new(&shard.config, &staging, length);
        loop {
            let run = usize::try_from(self.http.body_run()).unwrap_or(usize::MAX);
            let direct = match self.input.bytes() {
                [] => body.direct(run.min(shard.config.shard.io_slice_bytes)),
                _ => Ok(None),
            };
            let direct = match direct {
                Ok(direct) => direct,
                Err(error) => return Ok(bad_body(&error)),
            };
            if let Some(slice) = direct {
                self.entry
                    .deadline
                    .set(Some(Instant::now() + self.shard.config.shard.body_pause_max));
                self.shard.waits.want_ticks();
                let received = self.socket.receive(slice).await?;
                if received == 0 {
                    return Ok(self.ended());
                }
                self.http.advance_body(received as u64);
                if let Err(error) = body.advance(received) {
                    return Ok(bad_body(&error));
                }
                self.take(received).await;
                continue;
            }
            let step = self.http.next(self.input.bytes());
            let consumed = step.consumed;
            match step.event {
                Event::Body(bytes) => {
                    if let Err(error) = body.take(bytes) {
                        return Ok(bad_body(&error));
                    }
                    self.input.consume(consumed);
                }
                Event::End => {
                    self.input.consume(consumed);
                    return Ok(match body.finish() {
                        Ok((text, blobs)) => Arrived::Batch(text, blobs),
                        Err(error) => bad_body(&error),
                    });
                }
                Event::Refused(refusal) => {
                    self.input.consume(consumed);
                    return Ok(self.refused(refusal));
                }
                Event::NeedMore | Event::Request(_) => {
                    self.input.consume(consumed);
                    if self.fill().await? == 0 {
                        return Ok(self.ended());
                    }
                }
            }
        }
    }

    /// Receives more into the buffer, within the time that the phase allows; 0 is the end.
    async fn fill(&mut self) -> io::Result<usize> {
        let limits = &self.shard.config.shard;
        let deadline = match self.http.phase() {
            Phase::Idle if self.input.bytes().is_empty() => None,
            // The time of a head runs from its first byte.
            Phase::Idle | Phase::Head => {
                self.entry.deadline.get().or_else(|| Some(Instant::now() + limits.head_time_max))
            }
            _ => Some(Instant::now() + limits.body_pause_max),
        };
        self.entry.deadline.set(deadline);
        if deadline.is_some() {
            self.shard.waits.want_ticks();
        }
        let received = self.socket.receive(self.input.space()).await?;
        self.input.end += received;
        self.take(received).await;
        Ok(received)
    }

    /// After the end of what the peer sends: the end of a time limit looks the same.
    fn ended(&mut self) -> Arrived {
        match self.entry.timed_out.get().then(|| self.http.timeout()).flatten() {
            Some(refusal) => self.refused(refusal),
            None => Arrived::Closed,
        }
    }

    fn refused(&self, refusal: Refusal) -> Arrived {
        debug!(owner = ?self.owner, reason = %refusal.reason, "request refused");
        Arrived::Refused(refusal.status, format!("{}\n", refusal.reason))
    }

    /// Counts work, and gives way after enough of it. A small request counts as a page.
    async fn take(&mut self, bytes: usize) {
        self.taken += bytes.max(4096);
        if self.taken >= self.shard.config.shard.io_slice_bytes {
            self.taken = 0;
            self.shard.turnstile.pass().await;
        }
    }
}

fn bad_body(error: &BodyError) -> Arrived {
    Arrived::Refused(error.status(), format!("{error}\n"))
}

impl Shard {
    /// Runs a batch to its end.
    pub(super) async fn run(
        self: &Rc<Self>,
        cancel: &Cancel,
        batch: &mut Batch<'_>,
    ) -> Result<Reply, Gone> {
        loop {
            let events_set = self.engine.borrow().events_set();
            let progress = self.engine.borrow_mut().advance(batch, Instant::now());
            if self.engine.borrow().events_set() != events_set {
                self.waits.wake_events();
            }
            self.listen_to_doorbells();
            match progress {
                Progress::Done(reply) => {
                    // What the batch freed is given back at the next tick, if nothing comes first.
                    self.waits.want_ticks();
                    return Ok(reply);
                }
                Progress::Forward(home) => self.forward(cancel, batch, home).await?,
                Progress::Pause => self.turnstile.pass().await,
                Progress::Wait(wait) => self.wait(cancel, &wait).await?,
            }
        }
    }
}

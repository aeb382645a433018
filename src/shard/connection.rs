//! One client's connection: requests in, batches run, replies out, in order.
//!
//! Owns: the socket, what was received and is not used yet, the HTTP value, the staging memory, and
//! the rule that a task gives up the core after a bounded amount of work. A small request is parsed
//! where the kernel put it, and its reply goes out with the receive of the next one.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tracing::debug;

use super::Shard;
use super::body::{Body, BodyError, Direct, Text};
use super::completion::{Cancel, Gone};
use super::fair::Claim;
use super::input::Input;
use super::io::{Detached, Handle, Socket};
use super::moving::Place;
use super::output::Unsent;
use super::peer::Errands;
use crate::blob::Hash;
use crate::config::HashPolicy;
use crate::device::shared::Heap;
use crate::engine::{Batch, Blobs, Output, Owner, Progress, Reply, Route, Seat, Sender};
use crate::http::{self, BodyLength, Event, Phase, Refusal, Status};
use crate::identity::{Denied, Identity};
use crate::wire::{WireError, reply};

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
    pub(super) staging: RefCell<Heap>,
    pub(super) timed_out: Cell<bool>,
    /// Until it counts as ended.
    pub(super) place: Cell<Option<Place>>,
}

impl ConnectionEntry {
    fn new(handle: Handle, shard: &Shard, place: Place) -> ConnectionEntry {
        ConnectionEntry {
            staging: RefCell::new(Heap::new(Arc::clone(&shard.config.staging))),
            cancel: Cancel::default(),
            handle,
            deadline: Cell::new(None),
            in_batch: Cell::new(false),
            idle: Cell::new(true),
            timed_out: Cell::new(false),
            place: Cell::new(Some(place)),
        }
    }
}

/// What became of a request.
enum Arrived {
    /// It is here: the command text and the blobs before it.
    Batch(Text, Blobs),
    /// It is answered with this status and text instead.
    Refused(Status, String),
    /// It is for a session of another shard, which is to take the connection as it is.
    Moves(Place),
    /// The peer is gone.
    Closed,
}

struct Connection {
    shard: Rc<Shard>,
    socket: Socket,
    entry: Rc<ConnectionEntry>,
    owner: Owner,
    /// How its turns are counted.
    claim: Rc<Claim>,
    /// Who the peer is by its address.
    known: Option<Identity>,
    /// Who sent the last request, or is known to be there before one; nobody where that is not
    /// known, or has too many connections.
    seat: Option<Seat>,
    /// What kind of sender that was.
    sender: Sender,
    /// The connection of the client that a peer has sent it for.
    client: Option<Owner>,
    http: http::Connection,
    input: Input,
    /// Whether it may still move to another shard, as before its first reply.
    may_move: bool,
    /// Bytes since the last time that others had their turn.
    taken: usize,
}

/// A connection on its way to another shard, which is to answer its first request.
pub(super) struct Moved {
    socket: Detached,
    known: Option<Identity>,
    seat: Option<Seat>,
    http: http::Connection,
    /// The text of the request, if it has been received and not answered.
    text: Option<Vec<u8>>,
    /// What has been received besides and not used.
    input: Vec<u8>,
    /// Where it goes.
    pub(super) place: Place,
}

/// Why requests are not answered here any more.
enum End {
    Closed,
    /// The next request is another shard's to answer, that with this text if it has been received.
    Moves(Place, Option<Vec<u8>>),
}

/// Why a request is not answered here.
enum Unanswered {
    Gone,
    Moves(Place),
}

impl From<Gone> for Unanswered {
    fn from(Gone: Gone) -> Unanswered {
        Unanswered::Gone
    }
}

/// Serves a connection to its end, then ends the sessions that it opened.
pub(super) async fn serve(
    shard: Rc<Shard>,
    mut socket: Socket,
    owner: Owner,
    place: Place,
    claim: Rc<Claim>,
) {
    let entry = Rc::new(ConnectionEntry::new(socket.handle(), &shard, place));
    shard.connections.borrow_mut().insert(owner, Rc::clone(&entry));
    let known = match shard.introduce(&mut socket, &entry).await {
        Ok(known) => known,
        Err(error) => {
            debug!(?owner, %error, "no handshake");
            shard.forget(owner);
            // So that the alert arrives.
            socket.close().await;
            return shard.connection_ended();
        }
    };
    let mut connection = Connection {
        claim,
        known,
        seat: None,
        sender: Sender::Client,
        client: None,
        http: http::Connection::new(shard.config.http),
        input: Input::default(),
        may_move: shard.nodes.differ(),
        shard,
        socket,
        entry,
        owner,
        taken: 0,
    };
    if let Some(identity) = known {
        connection.sit(identity);
    }
    connection.serve(None).await;
}

/// Serves a connection that another shard has begun to serve.
pub(super) async fn serve_on(shard: Rc<Shard>, moved: Moved, owner: Owner, claim: Rc<Claim>) {
    let Moved { socket, known, seat, http, text, input, place } = moved;
    let socket = Socket::attach(&shard.reactor, socket);
    let entry = Rc::new(ConnectionEntry::new(socket.handle(), &shard, place));
    entry.idle.set(false);
    shard.connections.borrow_mut().insert(owner, Rc::clone(&entry));
    let input = Input::from(input);
    let may_move = false;
    let sender = Sender::Client;
    if let Some(seat) = &seat {
        claim.identity.set(seat.identity());
    }
    let connection = Connection {
        claim,
        known,
        seat,
        sender,
        client: None,
        http,
        input,
        may_move,
        shard,
        socket,
        entry,
        owner,
        taken: 0,
    };
    connection.receive_into_share();
    connection.serve(text).await;
}

impl Connection {
    /// Serves it to its end, or to where it moves to another shard. `text` is that of a request
    /// which has arrived.
    async fn serve(mut self, text: Option<Vec<u8>>) {
        let (shard, owner) = (Rc::clone(&self.shard), self.owner);
        let outcome = self.exchange_all(text).await;
        shard.forget(owner);
        shard.engine.borrow_mut().release(owner);
        shard.memory.wake_all();
        match outcome {
            Ok(End::Closed) => self.socket.close().await,
            Ok(End::Moves(place, text)) => match self.leave(text, place) {
                Ok(moved) => shard.send_away(moved).await,
                Err(error) => debug!(?owner, %error, "connection lost"),
            },
            Err(error) => debug!(?owner, %error, "connection lost"),
        }
        shard.connection_ended();
    }

    /// What another shard needs in order to go on, with the request that has this text or with the
    /// head of the next one, which is there and not used.
    fn leave(self, text: Option<Vec<u8>>, place: Place) -> io::Result<Moved> {
        let Connection { socket, known, seat, mut http, input, entry, shard, .. } = self;
        drop(entry);
        if text.is_none() {
            http = http::Connection::new(shard.config.http);
        }
        let (socket, input) = (socket.detach()?, input.bytes().to_vec());
        Ok(Moved { socket, known, seat, http, text, input, place })
    }

    async fn exchange_all(&mut self, text: Option<Vec<u8>>) -> io::Result<End> {
        let here = |text| Arrived::Batch(Text::Own(text), Blobs::default());
        let mut here = text.map(here);
        loop {
            let arrived = match here.take() {
                Some(arrived) => arrived,
                None => self.arrive().await?,
            };
            self.entry.deadline.set(None);
            let (text, blobs) = match arrived {
                Arrived::Batch(text, blobs) => (text, blobs),
                Arrived::Refused(status, text) => {
                    self.respond(status, Output::Text(text)).await?;
                    if self.http.closes() {
                        return Ok(End::Closed);
                    }
                    continue;
                }
                Arrived::Moves(place) => return Ok(End::Moves(place, None)),
                Arrived::Closed => return Ok(End::Closed),
            };
            // The text lies in the input, which nothing is received into before the reply.
            let input = std::mem::take(&mut self.input);
            let text = match &text {
                Text::InPlace(place) => &input.all()[place.clone()],
                Text::Own(text) => text,
            };
            let work = text.len();
            let (status, output) = match self.run(text, blobs).await {
                Ok(answer) => answer,
                Err(Unanswered::Gone) => return Ok(End::Closed),
                Err(Unanswered::Moves(to)) => {
                    let text = text.to_vec();
                    self.input = input;
                    return Ok(End::Moves(to, Some(text)));
                }
            };
            self.input = input;
            self.shard.memory.wake_all();
            self.respond(status, output).await?;
            if self.http.closes() {
                return Ok(End::Closed);
            }
            // A pipelining client has the next request here already.
            if !self.input.is_empty() {
                self.take(work).await;
            }
        }
    }

    /// Runs a batch, unless it is another shard's to run or the client goes away meanwhile.
    async fn run(&mut self, text: &[u8], blobs: Blobs) -> Result<(Status, Output), Unanswered> {
        let mut batch = match self.parse(text, blobs).await {
            Ok(batch) => self.introduce(batch),
            Err(error) => {
                let message = format!("bad command text: {error}");
                let text = reply::RemoteException { message: &message }.to_string();
                return Ok((Status::InternalServerError, Output::Text(text)));
            }
        };
        if self.may_move
            && let Some(place) = self.shard.nearer_place(&batch)
        {
            return Err(Unanswered::Moves(place));
        }
        self.shard.note_crowd(self.works_for());
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

    /// Reads a command text; others have their turn in the middle of a long one.
    async fn parse<'t>(&self, text: &'t [u8], blobs: Blobs) -> Result<Batch<'t>, WireError> {
        let Shard { engine, config, reactor, .. } = &*self.shard;
        let mut parsing = engine.borrow_mut().begin_parsing(text, &config.wire)?;
        while !engine.borrow_mut().parse_on(&mut parsing, &config.wire)? {
            reactor.turn().await;
        }
        Ok(engine.borrow_mut().batch(parsing, blobs, self.owner))
    }

    /// Says of a batch who has sent it.
    fn introduce<'t>(&self, batch: Batch<'t>) -> Batch<'t> {
        match &self.seat {
            Some(seat) => {
                let batch = batch.of_identity(seat.identity());
                let batch = batch.of_sender(self.sender, self.client);
                match self.sender {
                    Sender::Client => batch,
                    Sender::Peer | Sender::PeerOfAll => batch.landing_beside(self.staging()),
                }
            }
            None => batch,
        }
    }

    async fn respond(&mut self, status: Status, output: Output) -> io::Result<()> {
        self.may_move = false;
        if self.shard.draining.get() {
            self.http.stop();
        }
        let limits = &self.shard.config.shard;
        let (body, length) = (output.as_bytes(), output.bytes());
        let omits_body = self.http.omits_body();
        let is_whole = body.len() as u64 == length;
        let is_copied = omits_body || (is_whole && body.len() <= limits.reply_copied_bytes_max);
        let copied = if is_copied && !omits_body { body } else { &[] };
        let mut head = Vec::with_capacity(128 + copied.len());
        self.http.respond(status, length, &mut head);
        head.extend_from_slice(copied);
        self.socket.cork(head);
        if !is_copied {
            return self.send(output).await;
        }
        // The next receive may wait for long after what is here already.
        if self.input.is_empty() { Ok(()) } else { self.socket.flush().await }
    }

    /// Sends an output that is not copied.
    async fn send(&mut self, output: Output) -> io::Result<()> {
        let (shard, owner, socket) = (Rc::clone(&self.shard), self.owner, &mut self.socket);
        let sent = shard.send_output(socket, owner, &self.entry.cancel, output, None).await;
        sent.map_err(|unsent| match unsent {
            Unsent::Io(error) => error,
            Unsent::Output(error) => error.as_io(),
            Unsent::Silent(_) => io::ErrorKind::TimedOut.into(),
        })
    }

    /// Receives the next request, whole.
    async fn arrive(&mut self) -> io::Result<Arrived> {
        loop {
            self.entry.idle.set(self.http.phase() == Phase::Idle && self.input.is_empty());
            if self.entry.idle.get() && self.shard.draining.get() {
                return Ok(Arrived::Closed);
            }
            let step = self.http.next(self.input.bytes());
            let consumed = step.consumed;
            match step.event {
                Event::Request(request) => {
                    let (length, expects_continue) = (request.body, request.expects_continue);
                    let route = request.peer;
                    let hash = hash_of(&self.shard.config.hash, request.digest, route.is_some());
                    let access = &self.shard.access;
                    let identity = access.borrow().of_request(request.authorization, self.known);
                    if let Ok(identity) = identity {
                        self.sender = self.shard.sender(identity, route.is_some());
                        self.client = match self.route(identity, route.unwrap_or_default()) {
                            Some(Route::Elsewhere(home)) => match self.shard.places.take(home) {
                                Some(place) => return Ok(Arrived::Moves(place)),
                                None => None,
                            },
                            Some(Route::Here(client)) => Some(client),
                            None => None,
                        };
                    }
                    self.input.consume(consumed);
                    match identity {
                        Ok(identity) if self.sit(identity) => {}
                        Ok(_) => return Ok(self.crowded()),
                        Err(denied) => return Ok(self.denied(denied)),
                    }
                    let hash = match hash {
                        Ok(hash) => hash,
                        Err(text) => return Ok(Arrived::Refused(Status::BadRequest, text)),
                    };
                    if expects_continue {
                        let mut head = Vec::new();
                        self.http.write_continue(&mut head);
                        self.socket.cork(head);
                        self.socket.flush().await?;
                    }
                    return self.arrive_body(length, hash).await;
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

    /// Where the session is that a peer's request is for. No connection moves that has sessions of
    /// its own, or memory for blobs.
    fn route(&self, identity: Identity, route: &[u8]) -> Option<Route> {
        let engine = self.shard.engine.borrow();
        let stays = engine.has_sessions(self.owner) || engine.has_landings(self.owner);
        let found = engine.route(self.sender, identity, route);
        found.filter(|found| !stays || matches!(found, Route::Here(_)))
    }

    /// The client's connection whose work this is: what a peer brings for a client is that one's,
    /// and does not make way for it.
    fn works_for(&self) -> Owner {
        self.client.unwrap_or(self.owner)
    }

    /// The staging memory of whoever the request is for: a client's connection has its own, which
    /// peers use for that client. Where it is not known who that is, no other request has it.
    fn staging(&self) -> Heap {
        let connections = self.shard.connections.borrow();
        let found = match (self.sender, self.client.and_then(|client| connections.get(&client))) {
            (Sender::Client, _) => None,
            (Sender::Peer | Sender::PeerOfAll, Some(client)) => {
                Some(client.staging.borrow().clone())
            }
            (Sender::Peer | Sender::PeerOfAll, None) => self.share(),
        };
        found.unwrap_or_else(|| self.entry.staging.borrow().clone())
    }

    async fn arrive_body(&mut self, length: BodyLength, hash: Option<Hash>) -> io::Result<Arrived> {
        let shard = Rc::clone(&self.shard);
        let staging = self.staging();
        let mut body = Body::new(&shard.config, &staging, length, hash);
        loop {
            let slice_bytes = shard.piece(self.works_for(), shard.config.shard.io_slice_bytes);
            if let Err(error) = self.find_room(&mut body).await {
                return Ok(bad_body(&error));
            }
            if self.input.is_empty() && !self.socket.is_tls() {
                let run = usize::try_from(self.http.body_run()).unwrap_or(usize::MAX);
                if let Some(direct) = body.direct(run.min(slice_bytes)) {
                    match self.receive_direct(&mut body, direct).await? {
                        Ok(0) => return Ok(self.ended()),
                        Ok(_) => continue,
                        Err(error) => return Ok(bad_body(&error)),
                    }
                }
            }
            let step = self.http.next(self.input.bytes());
            let consumed = step.consumed;
            match step.event {
                Event::Body(bytes) => {
                    let end = self.input.start() + consumed;
                    let place = end - bytes.len()..end;
                    self.input.consume(consumed);
                    if let Err(error) = self.take_body(&mut body, place).await {
                        return Ok(bad_body(&error));
                    }
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

    /// Gives a part of the input to the body, which waits for memory where there is none.
    async fn take_body(
        &mut self,
        body: &mut Body<'_>,
        part: ops::Range<usize>,
    ) -> Result<(), BodyError> {
        let ops::Range { mut start, end } = part;
        loop {
            start += body.take(&self.input.all()[start..end], start)?;
            if start == end {
                return Ok(());
            }
            self.find_room(body).await?;
        }
    }

    /// Waits until there is memory for what comes next. The socket is not read meanwhile.
    async fn find_room(&mut self, body: &mut Body<'_>) -> Result<(), BodyError> {
        let bytes_max = self.shard.config.shard.io_slice_bytes;
        if body.has_room(bytes_max)? {
            return Ok(());
        }
        self.entry.deadline.set(None);
        // Whoever has hung up holds what others wait for.
        let looks = || match body.has_room(bytes_max) {
            Ok(false) if self.entry.handle.has_ended() => Err(BodyError::HungUp),
            looked => looked,
        };
        if self.shard.wait_for_memory(looks).await? {
            return Ok(());
        }
        let seconds = self.shard.config.shard.staging_wait_max.as_secs();
        Err(BodyError::StagingBusy { bytes: body.staged_bytes(), seconds })
    }

    /// Receives to where the body wants its bytes; 0 is the end.
    async fn receive_direct(
        &mut self,
        body: &mut Body<'_>,
        direct: Direct,
    ) -> io::Result<Result<usize, BodyError>> {
        // What is consumed goes back to the ring before the wait.
        self.input.tidy();
        let pause_max = self.shard.config.shard.body_pause_max;
        self.entry.deadline.set(Some(Instant::now() + pause_max));
        self.shard.waits.want_ticks();
        let (received, text) = match direct {
            Direct::Landing(landing) => (self.socket.receive_landing(landing).await?, None),
            Direct::Text(text, bytes_max) => {
                let (text, received) = self.socket.receive_into(text, bytes_max).await?;
                (received, Some(text))
            }
        };
        self.http.advance_body(received as u64);
        Ok(body.advance(received, text).map(|()| received))
    }

    /// Receives more, within the time that the phase allows; 0 is the end.
    async fn fill(&mut self) -> io::Result<usize> {
        let limits = &self.shard.config.shard;
        let deadline = match self.http.phase() {
            // Whoever may use the server may pause for as long as they like.
            Phase::Idle if self.input.is_empty() && self.seat.is_some() => None,
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
        self.input.tidy();
        let received = self.socket.receive().await?;
        let bytes = received.len();
        self.input.add(received);
        Ok(bytes)
    }

    /// After the end of what the peer sends: the end of a time limit looks the same.
    fn ended(&mut self) -> Arrived {
        match self.entry.timed_out.get().then(|| self.http.timeout()).flatten() {
            Some(refusal) => self.refused(refusal),
            None => Arrived::Closed,
        }
    }

    /// The request came from nobody who may; its body is not looked at.
    fn denied(&mut self, denied: Denied) -> Arrived {
        self.seat = None;
        debug!(owner = ?self.owner, peer = ?self.socket.peer(), ?denied, "request denied");
        Arrived::Refused(Status::Unauthorized, format!("{denied}\n"))
    }

    /// Makes this one of an identity's connections, if it is not yet and there may be one more.
    fn sit(&mut self, identity: Identity) -> bool {
        if self.seat.as_ref().is_some_and(|seat| seat.identity() == identity) {
            return true;
        }
        self.seat = None;
        self.claim.identity.set(identity);
        let tenant = self.shard.engine.borrow().tenant(identity);
        let limit = self.shard.config.shard.connections_per_identity_max;
        self.seat = tenant.seat(identity, limit);
        self.receive_into_share();
        self.seat.is_some()
    }

    /// From now on bodies go where the identity's bodies may.
    fn receive_into_share(&self) {
        if let Some(heap) = self.share() {
            self.entry.staging.replace(heap);
        }
    }

    /// Memory for bodies of the identity.
    fn share(&self) -> Option<Heap> {
        let seat = self.seat.as_ref()?;
        let leaves_room = self.shard.access.borrow().may_be_several();
        Some(Heap::new(seat.tenant().bodies(&self.shard.config.staging, leaves_room)))
    }

    /// The request came from somebody who has too many connections; its body is not looked at.
    fn crowded(&self) -> Arrived {
        let limit = self.shard.config.shard.connections_per_identity_max;
        debug!(owner = ?self.owner, limit, "too many connections of one identity");
        let words = format!(
            "too many connections: one identity has at most {limit} at once; close some, or start \
             the server with a higher --identity-connections\n"
        );
        Arrived::Refused(Status::TooManyRequests, words)
    }

    fn refused(&self, refusal: Refusal) -> Arrived {
        debug!(owner = ?self.owner, reason = %refusal.reason, "request refused");
        Arrived::Refused(refusal.status, format!("{}\n", refusal.reason))
    }

    /// Counts work that came without a wait, and gives way after enough of it. A small request
    /// counts as a page.
    async fn take(&mut self, bytes: usize) {
        self.taken += bytes.max(4096);
        if self.taken >= self.shard.config.shard.io_slice_bytes {
            self.taken = 0;
            self.shard.reactor.turn().await;
        }
    }
}

/// What the names of a request's blobs are checked as, given the value of `Outboard-Digest`. A peer
/// that says nothing has numbered them.
fn hash_of(
    policy: &HashPolicy,
    said: Option<&[u8]>,
    is_peer: bool,
) -> Result<Option<Hash>, String> {
    match said {
        None => Ok((policy.verify_sha256 && !is_peer).then_some(Hash::Sha256)),
        Some(name) => Hash::named(name).map(Some).ok_or_else(|| {
            let name = name.escape_ascii();
            format!("outboard-digest: {name} is not known; use blake3 or sha256\n")
        }),
    }
}

fn bad_body(error: &BodyError) -> Arrived {
    Arrived::Refused(error.status(), format!("{error}\n"))
}

impl Shard {
    /// What kind of sender an identity is, which may have said that it is a server.
    fn sender(&self, identity: Identity, says_peer: bool) -> Sender {
        match self.access.borrow().is_peer(identity) {
            true => Sender::PeerOfAll,
            false if says_peer => Sender::Peer,
            false => Sender::Client,
        }
    }

    /// Who the peer is, as far as the connection alone tells: by its certificate, or else by its
    /// address.
    async fn introduce(
        &self,
        socket: &mut Socket,
        entry: &ConnectionEntry,
    ) -> io::Result<Option<Identity>> {
        let peer = socket.peer();
        let mut certificate = None;
        if socket.is_tls() {
            // A handshake takes no longer than a head.
            entry.deadline.set(Some(Instant::now() + self.config.shard.head_time_max));
            self.waits.want_ticks();
            certificate = socket.shake_hands().await?;
        }
        let access = self.access.borrow();
        let shown = certificate.and_then(|certificate| access.of_certificate(certificate));
        Ok(shown.or_else(|| access.of_address(peer?)))
    }

    /// Runs a batch to its end.
    pub(super) async fn run(
        self: &Rc<Self>,
        cancel: &Cancel,
        batch: &mut Batch<'_>,
    ) -> Result<Reply, Gone> {
        let mut errands = Errands::default();
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
                Progress::Join => errands.join(cancel, batch).await?,
                Progress::Pause => self.reactor.turn().await,
                Progress::Peer(errand) => errands.begin(self, cancel, batch, errand).await?,
                Progress::Wait(wait) => self.wait(cancel, &wait).await?,
            }
        }
    }
}

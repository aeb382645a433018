//! Requests of one host to the other: the connections that they go by, what becomes of them, and
//! both ends of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use outboard::blob::Digest;
use outboard::config::{HttpLimits, WireLimits};
use outboard::engine::{Cause, Output, Owner, Parcel, Progress, Reply, Route, Sender, Work};
use outboard::http::{self, Event, Replies, ReplyEvent, Status};
use outboard::identity::Identity;
use outboard::wire::envelope;

use super::books::{Errand, Name, Writes};
use super::hosts::{Host, Hosts, wait};
use super::server::{Body, Named, turn};

/// How long nothing may be heard of the other host.
pub const SILENCE: Duration = Duration::from_secs(5);

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It breaks once the other host has had so many bytes.
    Breaks(usize),
    Good,
    /// Nothing that is sent arrives.
    Lost,
    /// No answer arrives.
    Mute,
    /// What is sent arrives a second time, by a connection of its own.
    Twice,
}

/// A connection of one host to the other.
pub struct Wire {
    pub to: usize,
    pub fate: Fate,
    /// On its way there, and what has arrived.
    pub sending: VecDeque<u8>,
    pub there: Vec<u8>,
    /// How many bytes have.
    pub arrived: usize,
    /// The same for answers.
    pub answering: VecDeque<u8>,
    pub here: Vec<u8>,
    /// What the requests that are sent ask for.
    requests: VecDeque<Rc<Vec<Errand>>>,
    /// The sending end is closed.
    pub is_closed: bool,
    /// Neither end gets anything more.
    pub is_broken: bool,
}

pub type SharedWire = Rc<RefCell<Wire>>;

impl Wire {
    pub fn new(to: usize, fate: Fate) -> SharedWire {
        Rc::new(RefCell::new(Wire {
            to,
            fate,
            sending: VecDeque::new(),
            there: Vec::new(),
            arrived: 0,
            answering: VecDeque::new(),
            here: Vec::new(),
            requests: VecDeque::new(),
            is_closed: false,
            is_broken: false,
        }))
    }

    /// Bytes that a client of neither host has had sent.
    pub fn carrying(to: usize, request: Vec<u8>, errands: Vec<Errand>) -> SharedWire {
        let wire = Wire::new(to, Fate::Good);
        wire.borrow_mut().sending.extend(request);
        wire.borrow_mut().requests.push_back(Rc::new(errands));
        wire.borrow_mut().is_closed = true;
        wire
    }

    /// Moves up to so many bytes each way.
    pub fn deliver(&mut self, bytes: usize) {
        if self.fate != Fate::Lost {
            let bytes = bytes.min(self.sending.len());
            self.there.extend(self.sending.drain(..bytes));
            self.arrived += bytes;
        }
        if self.fate != Fate::Mute {
            let bytes = bytes.min(self.answering.len());
            self.here.extend(self.answering.drain(..bytes));
        }
        if let Fate::Breaks(after) = self.fate
            && self.arrived >= after
        {
            self.is_broken = true;
        }
    }

    /// What has come to the other host, and whether nothing more will.
    fn take(&mut self) -> (bool, Vec<u8>) {
        (self.is_over(), std::mem::take(&mut self.there))
    }

    fn is_over(&self) -> bool {
        let all_came = self.sending.is_empty() || self.fate == Fate::Lost;
        self.is_broken || (self.is_closed && all_came)
    }
}

/// A request.
pub fn request(route: &str, blobs: &[(Digest, Vec<u8>)], text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (digest, bytes) in blobs {
        envelope::append(&mut body, *digest, bytes);
    }
    envelope::append(&mut body, Digest([0xff; 32]), text.as_bytes());
    let length = body.len();
    let head = format!("POST /batch HTTP/1.1\r\nHost: h\r\nOutboard-Peer: {route}\r\n");
    let mut request = format!("{head}Content-Length: {length}\r\n\r\n").into_bytes();
    request.append(&mut body);
    request
}

/// The end that sends, which closes the connection when it is gone.
struct Sending {
    world: Rc<Hosts>,
    wire: SharedWire,
    replies: Replies,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.wire.borrow_mut().is_closed = true;
    }
}

/// Does an errand of a batch, which asks the other host for `errands`. `begun` is what the batch's
/// client had written then.
pub async fn carry(
    world: Rc<Hosts>,
    host: Rc<Host>,
    begun: (usize, Writes),
    errand: outboard::engine::Errand,
    errands: Vec<Errand>,
) -> Result<(), Cause> {
    let outboard::engine::Errand { host: to, route, work, .. } = errand;
    let wire = world.new_wire(1 - host.place);
    let replies = Replies::new(HttpLimits::default());
    let mut sending = Sending { world, wire, replies };
    let lost = |why: &str| Cause::Peer { host: to.clone(), why: why.to_owned() };
    let mut requests = 0;
    match work {
        Work::Event { text, after } => {
            for (session, fence) in &after {
                let over = outboard::engine::WaitFor::Device { session: *session, fence: *fence };
                wait(&sending.world, &host, &over).await;
            }
            host.engine.borrow_mut().has_reached(&after)?;
            sending.send(&route, &[], &text, errands);
            requests += 1;
        }
        Work::Copies(parcels) => {
            let mut pairs = parcels.into_iter().zip(errands).peekable();
            while pairs.peek().is_some() {
                let count = 1 + sending.world.below(3);
                let group: Vec<_> = pairs.by_ref().take(count).collect();
                sending.send_copies(&host, begun, &route, group).await?;
                requests += 1;
            }
        }
    }
    let mut outcome = Ok(());
    for _ in 0..requests {
        let answer = sending.receive().await.map_err(lost)?;
        outcome = outcome.and(answer.map_err(|text| lost(&text)));
    }
    outcome
}

impl Sending {
    fn send(&self, route: &str, blobs: &[(Digest, Vec<u8>)], text: &str, errands: Vec<Errand>) {
        let (bytes, errands) = (request(route, blobs, text), Rc::new(errands));
        let mut wire = self.wire.borrow_mut();
        if wire.fate == Fate::Twice {
            let again = Wire::carrying(wire.to, bytes.clone(), errands.to_vec());
            self.world.add_wire(again);
        }
        wire.sending.extend(bytes);
        wire.requests.push_back(errands);
    }

    /// Reads what is to be sent, and sends it.
    async fn send_copies(
        &self,
        host: &Rc<Host>,
        (client, before): (usize, Writes),
        route: &str,
        group: Vec<(Parcel, Errand)>,
    ) -> Result<(), Cause> {
        let (mut blobs, mut texts, mut errands) = (Vec::new(), Vec::new(), Vec::new());
        for (parcel, errand) in group {
            let (name, command) = (parcel.name, parcel.command.clone());
            let bytes = read(&self.world, host, parcel.output).await?;
            if let Errand::Copy { first, .. } = &errand {
                let after = self.world.books.borrow().writes(host.place, client);
                if before.own != after.own {
                    self.world.differs("a copy did not hold what comes behind it");
                }
                // Peers may have written to it meanwhile.
                if before.of_peers != after.of_peers {
                    first.set(None);
                }
            }
            blobs.push((name, bytes));
            texts.push(command);
            errands.push(errand);
        }
        self.send(route, &blobs, &format!("[{}]", texts.join(", ")), errands);
        Ok(())
    }

    /// The next answer: what was refused is the inner error.
    async fn receive(&mut self) -> Result<Result<(), String>, &'static str> {
        let (mut since, mut status, mut body) = (self.world.now.get(), 0, Vec::new());
        loop {
            let known = self.wire.borrow().here.len();
            match self.look(&mut status, &mut body)? {
                Looked::Over => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    return Ok(if status == 200 { Ok(()) } else { Err(text) });
                }
                Looked::More => continue,
                Looked::Nothing => {}
            }
            turn().await;
            if self.wire.borrow().here.len() > known {
                since = self.world.now.get();
            } else if self.world.now.get() > since + SILENCE {
                return Err("nothing was heard of it");
            }
        }
    }

    /// Takes what has come of an answer.
    fn look(&mut self, status: &mut u16, body: &mut Vec<u8>) -> Result<Looked, &'static str> {
        let mut wire = self.wire.borrow_mut();
        let (consumed, event) = self.replies.next(&wire.here).map_err(|_| "no answer")?;
        let looked = match event {
            ReplyEvent::Head { status: found } => {
                *status = found;
                Looked::More
            }
            ReplyEvent::Body(bytes) => {
                body.extend_from_slice(bytes);
                Looked::More
            }
            ReplyEvent::End { .. } => Looked::Over,
            ReplyEvent::NeedMore if wire.is_broken => return Err("the connection to it broke"),
            ReplyEvent::NeedMore => Looked::Nothing,
        };
        wire.here.drain(..consumed);
        Ok(looked)
    }
}

/// What was there of an answer.
enum Looked {
    More,
    Nothing,
    Over,
}

/// All bytes of an output.
pub async fn read(world: &Rc<Hosts>, host: &Rc<Host>, output: Output) -> Result<Vec<u8>, Cause> {
    let (mut output, mut bytes) = (output, Vec::new());
    loop {
        bytes.extend_from_slice(output.as_bytes());
        let Some(rest) = output.take_rest() else { return Ok(bytes) };
        let reading = host.engine.borrow_mut().read_on(rest)?;
        wait(world, host, &reading.wait()).await;
        output = host.engine.borrow_mut().finish_reading(reading)?;
    }
}

/// The other end: answers what a connection brings.
pub async fn answer(world: Rc<Hosts>, host: Rc<Host>, wire: SharedWire) {
    let mut http = http::Connection::new(HttpLimits::default());
    let (mut input, mut body, mut client) = (Vec::new(), None, None);
    loop {
        let step = http.next(&input);
        let (consumed, mut needs_more, mut finished) = (step.consumed, false, None);
        match step.event {
            Event::Request(request) => {
                let route = request.peer.unwrap_or_default();
                let engine = host.engine.borrow();
                client = match engine.route(Sender::Peer, Identity::default(), route) {
                    Some(Route::Here(Owner::Connection(client))) => Some(client),
                    _ => None,
                };
                body = Some(Body::new(request.body));
            }
            Event::Body(bytes) => {
                if body.as_mut().is_none_or(|body| body.take(bytes).is_err()) {
                    return world.differs("a body that cannot be read");
                }
            }
            Event::End => finished = body.take().map(Body::finish),
            Event::Refused(refusal) => {
                return world.differs(&format!("a peer's request was refused: {refusal:?}"));
            }
            Event::NeedMore => needs_more = true,
        }
        input.drain(..consumed);
        if let Some(finished) = finished {
            let Ok((text, blobs)) = finished else { return world.differs("a body without text") };
            let errands = wire.borrow_mut().requests.pop_front().unwrap_or_default();
            let (status, text) = run(&world, &host, client, &text, blobs, &errands).await;
            let mut head = Vec::new();
            http.respond(status, text.len() as u64, &mut head);
            let mut wire = wire.borrow_mut();
            wire.answering.extend(head);
            wire.answering.extend(text.into_bytes());
        }
        while needs_more {
            let (is_over, received) = wire.borrow_mut().take();
            needs_more = received.is_empty();
            input.extend(received);
            if needs_more {
                if is_over {
                    return;
                }
                turn().await;
            }
        }
    }
}

/// Runs a batch of the other host's.
async fn run(
    world: &Rc<Hosts>,
    host: &Rc<Host>,
    client: Option<u64>,
    text: &[u8],
    blobs: Named,
    errands: &[Errand],
) -> (Status, String) {
    let blobs = host.blobs(world, client, blobs);
    let owner = client.map(Owner::Connection);
    let parsed = host.engine.borrow_mut().parse(
        text,
        blobs,
        Owner::Connection(1000),
        &WireLimits::default(),
    );
    let batch = parsed.expect("what hosts write can be read");
    let mut batch = batch.of_sender(Sender::Peer, owner);
    let known = client.and_then(|client| usize::try_from(client).ok());
    loop {
        let (done, failed) = batch.outcomes();
        let progress = host.engine.borrow_mut().advance(&mut batch, world.now.get());
        let (done_now, failed_now) = batch.outcomes();
        for errand in errands.iter().take(done_now).skip(done) {
            let expected = world.books.borrow_mut().received(host.place, known, errand);
            if expected.is_ok() == (failed_now > failed) {
                world.differs(&format!("{errand:?} for {known:?}: not {expected:?}"));
            }
        }
        match progress {
            Progress::Done(Reply::Ok(_)) => return (Status::Ok, String::new()),
            Progress::Done(Reply::Failed(text)) => return (Status::InternalServerError, text),
            Progress::Wait(over) => wait(world, host, &over).await,
            Progress::Pause => turn().await,
            other => {
                world.differs(&format!("a peer's batch came to {other:?}"));
                return (Status::InternalServerError, String::new());
            }
        }
    }
}

/// What no host asks of another, of a session that is there or not.
pub fn forbidden(to: usize, name: Name, which: usize) -> SharedWire {
    let session = super::books::key(to, name);
    let command = match which {
        0 => format!("CopyOut(1, session={session})"),
        1 => format!("BufferAlloc(9, 4, BufferSpec(), session={session})"),
        2 => format!("Event({}, 1, session={session})", super::books::key(1 - to, name)),
        _ => format!("SessionFree(session={session})"),
    };
    let bytes = request("", &[], &format!("[{command}]"));
    Wire::carrying(to, bytes, vec![Errand::Forbidden])
}

//! The connection: which message is being read, and what comes after it.
//!
//! Owns: [`Connection`]. Absent: the syntax of heads (`head`) and of chunks (`chunked`).
//!
//! A request passes through these states, and the next one is not looked at before the answer to
//! this one is written, so pipelined requests are answered in order:
//!
//! ```text
//! Head -> Content -> Ended -> (respond) -> Head
//!    \         \--> Refused -> (respond) -> Head, Discard or Closed
//!     \----------->
//! ```

use super::chunked::Chunked;
use super::head::{Head, Scan};
use super::response::{CONTINUE, Persistence, Reason, Refusal, Status, write_head};
use super::route::route;
use crate::config::HttpLimits;

/// Bytes of a refused or abandoned body that are read and dropped to keep the connection. Reading
/// more than about a round trip's worth costs more than a new connection does.
pub const DISCARD_BYTES_MAX: u64 = 64 << 10;

/// One HTTP/1.1 connection, as seen by the server.
#[derive(Debug)]
pub struct Connection {
    limits: HttpLimits,
    state: State,
    /// Whether the current request lets the connection go on.
    is_persistent: bool,
    /// Whether the current request is HTTP/1.0.
    is_http_1_0: bool,
    /// Whether the current request is a `HEAD`.
    is_head: bool,
    /// Whether the client holds its body back until it sees `100 Continue`.
    awaits_continue: bool,
    /// Whether the server wants to close after the next response.
    is_stopping: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In a head, or before it.
    Head(Scan),
    /// In the body of an accepted request.
    Content(Content),
    /// A request is complete, its response is due.
    Ended,
    /// A refusal is due; what is left of the body, if its framing is certain.
    Refused(Option<Content>),
    /// The response is written; these bytes of its request's body are still to be dropped.
    Discard(u64),
    /// Nothing is read any more.
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Length { rest: u64 },
    Chunked(Chunked),
}

/// What the caller waits for; each deserves its own time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For the first byte of a request. Idle connections may own sessions and may be idle for long.
    Idle,
    /// For the rest of a head.
    Head,
    /// For the rest of a body.
    Body,
    /// For its own response.
    AwaitingResponse,
    /// For the rest of a body that nobody wants; the response is written.
    Discarding,
    /// For nothing: the connection is to be closed.
    Closed,
}

/// What [`Connection::next`] found.
#[derive(Debug)]
pub struct Step<'a> {
    /// Bytes to drop from the front of the input, those of [`Event::Body`] included.
    pub consumed: usize,
    /// What to do.
    pub event: Event<'a>,
}

/// What the bytes mean.
#[derive(Debug)]
pub enum Event<'a> {
    /// Part of a body.
    Body(&'a [u8]),
    /// The request is complete: [`Connection::respond`] is due.
    End,
    /// Call again with the bytes that were not consumed and at least one more. Also given, with
    /// nothing consumed, while a response is due.
    NeedMore,
    /// The request is refused: [`Connection::respond`] is due.
    Refused(Refusal),
    /// A `POST /batch` begins.
    Request(Request<'a>),
}

/// An accepted head; the slices lie in the input.
#[derive(Debug)]
pub struct Request<'a> {
    /// The value of `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// How long the body will be.
    pub body: BodyLength,
    /// The value of `Outboard-Digest`.
    pub digest: Option<&'a [u8]>,
    /// Whether the client holds its body back: see [`Connection::write_continue`].
    pub expects_continue: bool,
    /// The value of `Outboard-Peer`, which says that another server sends it.
    pub peer: Option<&'a [u8]>,
    /// The value of `Outboard-Wire`.
    pub wire_version: Option<&'a [u8]>,
}

/// What a head tells about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// It comes in chunks; the limit for bodies bounds their sum.
    Chunked,
    /// This many bytes, checked against the limit for bodies.
    Known(u64),
}

impl Connection {
    /// A new connection, waiting for its first request.
    #[must_use]
    pub fn new(limits: HttpLimits) -> Connection {
        Connection {
            limits,
            state: State::Head(Scan::default()),
            is_persistent: true,
            is_http_1_0: false,
            is_head: false,
            awaits_continue: false,
            is_stopping: false,
        }
    }

    /// What the connection waits for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Head(scan) if scan.is_idle() => Phase::Idle,
            State::Head(_) => Phase::Head,
            State::Content(_) => Phase::Body,
            State::Ended | State::Refused(_) => Phase::AwaitingResponse,
            State::Discard(_) => Phase::Discarding,
            State::Closed => Phase::Closed,
        }
    }

    /// Whether the connection is to be closed now that its last response is written. Data that the
    /// peer has sent and nobody has read turns a close into a reset, which can overtake the
    /// response: shut the sending side down first and read for a moment.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Makes the next response the last one.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Looks at the received bytes, which begin behind what earlier calls consumed.
    ///
    /// A head is consumed only when it is complete, so the caller's buffer must hold
    /// `HttpLimits::head_bytes_max` bytes; a longer head is refused by then. Everything else is
    /// consumed as it comes.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let (dropped, input) = self.discard(input);
        let step = match self.state {
            State::Head(scan) => self.head(scan, input),
            State::Content(content) => self.content(content, input),
            State::Ended | State::Refused(_) | State::Discard(_) => need_more(0),
            State::Closed => need_more(input.len()),
        };
        Step { consumed: dropped + step.consumed, event: step.event }
    }

    /// Bytes that come next on the wire and are body throughout, with no framing in between: the
    /// caller may receive that many past its buffer, straight into their destination, once the
    /// buffer is empty.
    #[must_use]
    pub fn body_run(&self) -> u64 {
        match self.state {
            State::Content(Content::Length { rest }) => rest,
            State::Content(Content::Chunked(chunked)) => chunked.data_rest(),
            _ => 0,
        }
    }

    /// Takes note of `bytes` of body received past [`Connection::next`]; at most
    /// [`Connection::body_run`].
    pub fn advance_body(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.body_run(), "the run is the caller's to respect");
        if bytes == 0 {
            return;
        }
        self.awaits_continue = false;
        match &mut self.state {
            State::Content(Content::Length { rest }) => *rest = rest.saturating_sub(bytes),
            State::Content(Content::Chunked(chunked)) => chunked.take_data(bytes),
            _ => {}
        }
    }

    /// Appends `100 Continue` if the client still waits for it; nothing otherwise.
    pub fn write_continue(&mut self, out: &mut Vec<u8>) {
        if self.awaits_continue && matches!(self.state, State::Content(_)) {
            self.awaits_continue = false;
            out.extend_from_slice(CONTINUE);
        }
    }

    /// Whether the response to the current request is a head alone, whatever length it states: the
    /// client of a `HEAD` takes what comes behind it for the next response (RFC 9110 section
    /// 9.3.2).
    #[must_use]
    pub fn omits_body(&self) -> bool {
        self.is_head
    }

    /// Appends the head of the response; unless [`Connection::omits_body`], the caller sends
    /// `body_bytes` of body behind it. Then [`Connection::closes`] tells whether to close or to go
    /// on with [`Connection::next`].
    ///
    /// May be called before a request is complete: the rest of its body is then dropped, or the
    /// connection closes.
    pub fn respond(&mut self, status: Status, body_bytes: u64, out: &mut Vec<u8>) {
        debug_assert!(!matches!(self.state, State::Discard(_) | State::Closed), "answered twice");
        let rest = self.rest_to_discard();
        let persistence = match rest {
            None => Persistence::Close,
            Some(_) if self.is_http_1_0 => Persistence::KeepAlive,
            Some(_) => Persistence::Implied,
        };
        write_head(out, status, body_bytes, persistence);
        self.awaits_continue = false;
        self.state = match rest {
            None => State::Closed,
            Some(0) => State::Head(Scan::default()),
            Some(bytes) => State::Discard(bytes),
        };
    }

    /// The caller's time limit has passed. A request that has begun to arrive is refused with 408;
    /// with `None` there is nobody to tell, and the connection is to be closed. While the response
    /// is due the wait is the server's own, and nothing changes.
    pub fn timeout(&mut self) -> Option<Refusal> {
        match self.phase() {
            Phase::Head | Phase::Body => Some(self.refuse(Reason::Timeout, None)),
            Phase::AwaitingResponse => None,
            Phase::Idle | Phase::Discarding | Phase::Closed => {
                self.state = State::Closed;
                None
            }
        }
    }

    /// Drops what is left of an answered request's body.
    fn discard<'a>(&mut self, input: &'a [u8]) -> (usize, &'a [u8]) {
        let State::Discard(rest) = self.state else { return (0, input) };
        let bytes = fitting(rest, input);
        let rest = rest - bytes as u64;
        self.state = if rest == 0 { State::Head(Scan::default()) } else { State::Discard(rest) };
        (bytes, &input[bytes..])
    }

    fn head<'a>(&mut self, mut scan: Scan, input: &'a [u8]) -> Step<'a> {
        if scan.is_fresh()
            && let Some((head, consumed)) = Head::whole(input, &self.limits)
        {
            return Step { consumed, event: self.begin(&head) };
        }
        let scanned = scan.advance(input, &self.limits);
        self.state = State::Head(scan);
        let (head, consumed) = match scanned {
            Ok(None) => return need_more(0),
            Ok(Some(found)) => found,
            Err(reason) => return refused(0, self.refuse(reason, None)),
        };
        match Head::parse(head, &self.limits) {
            Ok(head) => Step { consumed, event: self.begin(&head) },
            Err(reason) => refused(consumed, self.refuse(reason, None)),
        }
    }

    /// Decides about a request whose framing is certain.
    fn begin<'a>(&mut self, head: &Head<'a>) -> Event<'a> {
        let fields = &head.fields;
        self.is_http_1_0 = head.is_http_1_0;
        self.is_head = head.method == "HEAD";
        self.is_persistent = !fields.asks_close && (!head.is_http_1_0 || fields.asks_keep_alive);
        let content_bytes = fields.content_bytes.unwrap_or(0);
        let (content, body) = if fields.is_chunked {
            (Content::Chunked(Chunked::new()), BodyLength::Chunked)
        } else {
            (Content::Length { rest: content_bytes }, BodyLength::Known(content_bytes))
        };
        let has_body = body != BodyLength::Known(0);
        self.awaits_continue = has_body && (fields.expects_continue || fields.expects_other);
        if let Err(reason) = check(head, content_bytes, &self.limits) {
            let rest = reason.leaves_framing_certain().then_some(content);
            return Event::Refused(self.refuse(reason, rest));
        }
        self.state = State::Content(content);
        Event::Request(Request {
            authorization: fields.authorization,
            body,
            digest: fields.digest,
            expects_continue: self.awaits_continue,
            peer: fields.peer,
            wire_version: fields.wire_version,
        })
    }

    fn content<'a>(&mut self, mut content: Content, input: &'a [u8]) -> Step<'a> {
        let framing = match &mut content {
            Content::Length { .. } => 0,
            Content::Chunked(chunked) => match chunked.eat_framing(input, &self.limits) {
                Ok(eaten) => eaten,
                Err(reason) => return refused(0, self.refuse(reason, None)),
            },
        };
        self.state = State::Content(content);
        let is_complete = match content {
            Content::Length { rest } => rest == 0,
            Content::Chunked(chunked) => chunked.is_complete(),
        };
        if is_complete {
            self.state = State::Ended;
            return Step { consumed: framing, event: Event::End };
        }
        self.awaits_continue &= framing == 0;
        let bytes = fitting(self.body_run(), &input[framing..]);
        if bytes == 0 {
            return need_more(framing);
        }
        self.advance_body(bytes as u64);
        let consumed = framing + bytes;
        Step { consumed, event: Event::Body(&input[framing..consumed]) }
    }

    fn refuse(&mut self, reason: Reason, rest: Option<Content>) -> Refusal {
        self.state = State::Refused(rest);
        let keeps = self.rest_to_discard().is_some();
        Refusal { status: reason.status(), reason, keeps }
    }

    /// Bytes of the current request that are still to come and can be dropped, or `None` if the
    /// connection has to close after the response.
    fn rest_to_discard(&self) -> Option<u64> {
        if !self.is_persistent || self.is_stopping {
            return None;
        }
        match self.state {
            State::Ended => Some(0),
            State::Content(Content::Length { rest })
            | State::Refused(Some(Content::Length { rest })) => {
                // A client that was not told to continue may or may not send its body now.
                (rest <= DISCARD_BYTES_MAX && !self.awaits_continue).then_some(rest)
            }
            _ => None,
        }
    }
}

/// Checks a request whose framing is certain; the order decides which status wins.
fn check(head: &Head<'_>, content_bytes: u64, limits: &HttpLimits) -> Result<(), Reason> {
    let fields = &head.fields;
    if fields.expects_other {
        return Err(Reason::Expectation);
    }
    route(head.method, head.target)?;
    if !fields.is_chunked && fields.content_bytes.is_none() {
        return Err(Reason::LengthRequired);
    }
    if content_bytes > limits.body_bytes_max {
        return Err(Reason::BodyTooLarge { bytes_max: limits.body_bytes_max });
    }
    Ok(())
}

/// How many of the first `bytes` are in the input.
fn fitting(bytes: u64, input: &[u8]) -> usize {
    usize::try_from(bytes).map_or(input.len(), |bytes| bytes.min(input.len()))
}

fn need_more(consumed: usize) -> Step<'static> {
    Step { consumed, event: Event::NeedMore }
}

fn refused(consumed: usize, refusal: Refusal) -> Step<'static> {
    Step { consumed, event: Event::Refused(refusal) }
}

//! Bytes of a hostile peer, cut anywhere: no panic, the same events for every cut, and no body
//! longer than its length says.
//!
//! Input: a byte that chooses how the stream begins, a byte that says how many cuts there are, a
//! byte for the distance of each, the rest of the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::config::HttpLimits;
use outboard::http::{BodyLength, Connection, Event, Phase, Status};

/// Small limits, so that short inputs reach them.
const LIMITS: HttpLimits = HttpLimits {
    head_bytes_max: 256,
    headers_max: 6,
    target_bytes_max: 32,
    body_bytes_max: 512,
    chunk_line_bytes_max: 24,
    trailer_bytes_max: 32,
};

/// Beginnings, so that a short run gets past the request line. The last one leaves it to the input.
const BEGINNINGS: [&str; 4] = [
    "POST /batch HTTP/1.1\r\nHost: a\r\n",
    "POST /batch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n",
    "",
];

/// What the server saw, without the seams between pieces of a body.
#[derive(Debug, PartialEq)]
enum Seen {
    Request { body: BodyLength, wire_version: Option<Vec<u8>>, authorization: Option<Vec<u8>> },
    Body(Vec<u8>),
    End,
    Refused { status: Status, keeps: bool },
}

struct Server {
    connection: Connection,
    buffer: Vec<u8>,
    seen: Vec<Seen>,
    /// Bytes of the current body, and how many there may be.
    body_bytes: u64,
    body_bytes_max: u64,
    has_length: bool,
}

impl Server {
    fn new() -> Server {
        Server {
            connection: Connection::new(LIMITS),
            buffer: Vec::new(),
            seen: Vec::new(),
            body_bytes: 0,
            body_bytes_max: 0,
            has_length: false,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.buffer);
        let mut rest = &input[..];
        while !self.connection.closes() {
            let step = self.connection.next(rest);
            assert!(step.consumed <= rest.len());
            rest = &rest[step.consumed..];
            match step.event {
                Event::NeedMore => break,
                Event::Body(bytes) => self.take_body(bytes),
                Event::Request(request) => {
                    self.body_bytes = 0;
                    (self.has_length, self.body_bytes_max) = match request.body {
                        BodyLength::Known(bytes) => (true, bytes),
                        BodyLength::Chunked => (false, LIMITS.body_bytes_max),
                    };
                    assert!(self.body_bytes_max <= LIMITS.body_bytes_max);
                    self.seen.push(Seen::Request {
                        body: request.body,
                        wire_version: request.wire_version.map(<[u8]>::to_vec),
                        authorization: request.authorization.map(<[u8]>::to_vec),
                    });
                }
                Event::End => {
                    assert!(!self.has_length || self.body_bytes == self.body_bytes_max);
                    self.seen.push(Seen::End);
                    self.answer(Status::Ok, None);
                }
                Event::Refused(refusal) => {
                    let (status, keeps) = (refusal.status, refusal.keeps);
                    self.seen.push(Seen::Refused { status, keeps });
                    self.answer(status, Some(keeps));
                }
            }
        }
        self.buffer = rest.to_vec();
        assert!(self.buffer.len() < LIMITS.head_bytes_max || self.connection.closes());
    }

    fn answer(&mut self, status: Status, keeps: Option<bool>) {
        assert_eq!(self.connection.phase(), Phase::AwaitingResponse);
        self.connection.respond(status, 0, &mut Vec::new());
        assert!(keeps.is_none_or(|keeps| keeps != self.connection.closes()));
    }

    fn take_body(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty());
        self.body_bytes += bytes.len() as u64;
        assert!(self.body_bytes <= self.body_bytes_max);
        match self.seen.last_mut() {
            Some(Seen::Body(body)) => body.extend_from_slice(bytes),
            _ => self.seen.push(Seen::Body(bytes.to_vec())),
        }
    }

    /// Takes what it can of a body past the buffer, as a receive into device memory does.
    fn receive_past_buffer<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let run = usize::try_from(self.connection.body_run()).expect("limits are small");
        let direct = run.min(bytes.len());
        if self.buffer.is_empty() && direct > 0 {
            self.connection.advance_body(direct as u64);
            self.take_body(&bytes[..direct]);
            return &bytes[direct..];
        }
        bytes
    }

    /// The events, and how the connection ended; what follows a close is nobody's business.
    fn end(self) -> (Vec<Seen>, Phase) {
        (self.seen, self.connection.phase())
    }
}

fuzz_target!(|data: &[u8]| {
    let [beginning, cuts, rest @ ..] = data else { return };
    let (cuts, rest) = rest.split_at(rest.len().min(usize::from(*cuts)));
    let beginning = BEGINNINGS[usize::from(*beginning) % BEGINNINGS.len()];
    let stream = [beginning.as_bytes(), rest].concat();

    let mut whole = Server::new();
    whole.receive(&stream);

    let mut split = Server::new();
    let mut past_buffer = Server::new();
    let mut rest = &stream[..];
    for &distance in cuts {
        let (piece, behind) = rest.split_at(rest.len().min(usize::from(distance)));
        split.receive(piece);
        let piece = past_buffer.receive_past_buffer(piece);
        past_buffer.receive(piece);
        rest = behind;
    }
    split.receive(rest);
    past_buffer.receive(rest);

    let whole = whole.end();
    assert_eq!(split.end(), whole);
    assert_eq!(past_buffer.end(), whole);
});

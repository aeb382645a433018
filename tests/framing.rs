//! What the server makes of well-formed and malformed HTTP/1.1: a table of inputs and outcomes.
//!
//! Every case is fed whole, in two pieces split at every byte, byte by byte, and with bodies taken
//! past the parser; the outcome must be the same each time. An outcome lists the answers in order:
//! `200 BODY` for a request that was accepted and complete, another status for a refusal. The last
//! word is the state at the end of the input: `idle` (ready for the next request), `waits` (in the
//! middle of one) or `closes`.
//!
//! Reading order: the harness, then the tables by section of RFC 9112, then whole responses.

use outboard::config::HttpLimits;
use outboard::http::{BodyLength, Connection, DISCARD_BYTES_MAX, Event, Phase, Reason, Status};

#[path = "framing/cases.rs"]
mod cases;

/// A row of the table.
struct Case {
    name: &'static str,
    outcome: &'static str,
    input: &'static str,
}

/// A `POST /batch` with a host, followed by more fields, the empty line and the body.
macro_rules! post {
    ($rest:literal) => {
        concat!("POST /batch HTTP/1.1\r\nHost: a\r\n", $rest)
    };
}

/// A `POST /batch` in chunks.
macro_rules! chunks {
    ($rest:literal) => {
        concat!("POST /batch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", $rest)
    };
}

/// A complete request with an empty body, to see whether the connection goes on.
macro_rules! then_next {
    ($first:literal) => {
        concat!($first, "POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nZ")
    };
}

/// Small limits, so that the cases about limits are short.
fn limits() -> HttpLimits {
    HttpLimits {
        head_bytes_max: 400,
        headers_max: 8,
        target_bytes_max: 40,
        body_bytes_max: 1000,
        chunk_line_bytes_max: 24,
        trailer_bytes_max: 40,
    }
}

/// A peer's bytes arriving in pieces, and what the server answered.
struct Server {
    connection: Connection,
    buffer: Vec<u8>,
    body: Vec<u8>,
    answers: Vec<String>,
}

impl Server {
    fn new() -> Server {
        Server {
            connection: Connection::new(limits()),
            buffer: Vec::new(),
            body: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while !self.connection.closes() {
            let step = self.connection.next(&self.buffer);
            assert!(step.consumed <= self.buffer.len());
            let answer = match step.event {
                Event::NeedMore => {
                    self.buffer.drain(..step.consumed);
                    return;
                }
                Event::Body(bytes) => {
                    assert!(!bytes.is_empty());
                    self.body.extend_from_slice(bytes);
                    None
                }
                Event::Request(_) => None,
                Event::End => Some((Status::Ok, None)),
                Event::Refused(refusal) => Some((refusal.status, Some(refusal.keeps))),
            };
            self.buffer.drain(..step.consumed);
            if let Some((status, keeps)) = answer {
                self.answer(status, keeps);
            }
        }
    }

    fn answer(&mut self, status: Status, keeps: Option<bool>) {
        assert_eq!(self.connection.phase(), Phase::AwaitingResponse);
        let mut out = Vec::new();
        self.connection.respond(status, 0, &mut out);
        let closes = self.connection.closes();
        assert_eq!(closes, contains(&out, b"Connection: close\r\n"));
        assert_eq!(keeps.unwrap_or(!closes), !closes, "a refusal foretells what follows");
        let body = String::from_utf8(std::mem::take(&mut self.body)).expect("cases are text");
        self.answers.push(match status {
            Status::Ok => format!("200 {body}").trim_end_matches(' ').to_owned(),
            _ => status.code().to_string(),
        });
    }

    /// Takes as much of the body as there is, past the buffer, when the buffer is empty.
    fn receive_past_buffer<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let run = usize::try_from(self.connection.body_run()).unwrap_or(usize::MAX);
        if !self.buffer.is_empty() || run == 0 {
            return bytes;
        }
        let (direct, rest) = bytes.split_at(run.min(bytes.len()));
        self.body.extend_from_slice(direct);
        self.connection.advance_body(direct.len() as u64);
        rest
    }

    fn outcome(mut self) -> String {
        let end = match self.connection.phase() {
            Phase::Idle => "idle",
            Phase::Closed => "closes",
            Phase::Head | Phase::Body | Phase::Discarding => "waits",
            Phase::AwaitingResponse => panic!("every answer is given at once"),
        };
        self.answers.push(end.to_owned());
        self.answers.join(" | ")
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn outcome_of_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut server = Server::new();
    for piece in pieces {
        server.receive(piece);
    }
    server.outcome()
}

fn outcome_past_buffer(input: &[u8]) -> String {
    let mut server = Server::new();
    let mut rest = input;
    while !rest.is_empty() {
        rest = server.receive_past_buffer(rest);
        let (byte, behind) = rest.split_at(rest.len().min(1));
        server.receive(byte);
        rest = behind;
    }
    server.outcome()
}

fn check_bytes(name: &str, input: &[u8], outcome: &str) {
    assert_eq!(outcome_of_pieces([input]), outcome, "{name}, whole");
    assert_eq!(outcome_of_pieces(input.chunks(1)), outcome, "{name}, byte by byte");
    assert_eq!(outcome_past_buffer(input), outcome, "{name}, bodies past the buffer");
    for at in 1..input.len() {
        let (first, second) = input.split_at(at);
        assert_eq!(outcome_of_pieces([first, second]), outcome, "{name}, split at {at}");
    }
}

fn check(cases: &[Case]) {
    for case in cases {
        check_bytes(case.name, case.input.as_bytes(), case.outcome);
    }
}

#[test]
fn request_lines_of_the_table_end_as_it_says() {
    check(cases::REQUEST_LINES);
}

#[test]
fn targets_of_the_table_end_as_it_says() {
    check(cases::TARGETS);
}

#[test]
fn fields_of_the_table_end_as_it_says() {
    check(cases::FIELDS);
}

#[test]
fn lengths_of_the_table_end_as_it_says() {
    check(cases::LENGTHS);
}

#[test]
fn chunks_of_the_table_end_as_it_says() {
    check(cases::CHUNKS);
}

#[test]
fn connections_of_the_table_end_as_it_says() {
    check(cases::CONNECTIONS);
}

#[test]
fn bytes_that_are_not_utf8_are_refused_outside_of_values() {
    check_bytes("method", b"P\xffST /batch HTTP/1.1\r\nHost: a\r\n\r\n", "400 | closes");
    check_bytes("target", b"POST /\xff HTTP/1.1\r\nHost: a\r\n\r\n", "400 | closes");
    check_bytes("version", b"POST /batch HTTP/1.\xff\r\nHost: a\r\n\r\n", "400 | closes");
    check_bytes("name", b"GET / HTTP/1.1\r\nHost: a\r\nX\xff: y\r\n\r\n", "400 | closes");
    check_bytes("value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\r\n\r\n", "404 | idle");
    check_bytes("host", b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n", "400 | closes");
}

#[test]
fn control_bytes_in_a_head_are_refused_wherever_they_are() {
    let head = b"POST /batch HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 0\r\n\r\n";
    // A tab is allowed in values. The last line feed ends the head, so nothing is put before it.
    for byte in (0..b'\t').chain(b'\n'..b' ').chain([0x7f]) {
        for at in 0..head.len() - 1 {
            let mut input = head.to_vec();
            input.insert(at, byte);
            assert_eq!(outcome_of_pieces([&input[..]]), "400 | closes", "{byte:#x} at {at}");
        }
    }
}

#[test]
fn head_at_its_limit_is_accepted_and_above_it_refused() {
    let head_of = |bytes: usize| {
        let start = "POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(bytes - start.len() - 4))
    };
    check_bytes("at", head_of(400).as_bytes(), "200 | idle");
    check_bytes("above", head_of(401).as_bytes(), "431 | closes");
    check_bytes("without an end", &head_of(500).as_bytes()[..450], "431 | closes");
}

#[test]
fn extensions_of_many_small_chunks_are_bounded_together() {
    let mut input = chunks!("").as_bytes().to_vec();
    for _ in 0..60 {
        input.extend_from_slice(b"1;abcdefgh\r\nA\r\n");
    }
    check_bytes("flood", &input, "400 | closes");
}

#[test]
fn body_dropped_after_a_refusal_is_followed_by_the_next_request() {
    let mut input = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1200\r\n\r\n".to_vec();
    input.extend_from_slice(&[b'\r'; 1200]);
    input.extend_from_slice(post!("Content-Length: 1\r\n\r\nA").as_bytes());
    check_bytes("dropped", &input, "404 | 200 A | idle");
}

#[test]
fn accepted_head_reports_its_fields() {
    let head = post!(
        "Outboard-Wire: 2\r\nAuthorization: Bearer x\r\nOutboard-Digest: blake3\r\n\
         Content-Length: 7\r\n\r\n"
    );
    let mut connection = Connection::new(limits());
    let step = connection.next(head.as_bytes());
    assert_eq!(step.consumed, head.len());
    let Event::Request(request) = step.event else { panic!("{step:?}") };
    assert_eq!(request.wire_version, Some(&b"2"[..]));
    assert_eq!(request.authorization, Some(&b"Bearer x"[..]));
    assert_eq!(request.digest, Some(&b"blake3"[..]));
    assert_eq!(request.body, BodyLength::Known(7));
    assert!(!request.expects_continue);
    assert_eq!(connection.body_run(), 7);
}

#[test]
fn continue_is_written_once_and_only_while_the_client_waits() {
    let head = post!("Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let mut out = Vec::new();
    let mut connection = Connection::new(limits());
    let Event::Request(request) = connection.next(head.as_bytes()).event else { panic!() };
    assert!(request.expects_continue);
    connection.write_continue(&mut out);
    connection.write_continue(&mut out);
    assert_eq!(out, b"HTTP/1.1 100 Continue\r\n\r\n");

    let mut connection = Connection::new(limits());
    connection.next(head.as_bytes());
    connection.advance_body(1);
    out.clear();
    connection.write_continue(&mut out);
    assert_eq!(out, b"", "the body is coming, so the client does not wait");

    let chunks = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut connection = Connection::new(limits());
    connection.next(format!("POST /batch HTTP/1.1\r\nHost: a\r\n{chunks}").as_bytes());
    connection.next(b"1");
    connection.write_continue(&mut out);
    assert_eq!(out, b"", "so is the first chunk");
}

#[test]
fn response_heads_are_exact() {
    let respond = |input: &str, status: Status, body_bytes: u64| {
        let mut connection = Connection::new(limits());
        let mut rest = input.as_bytes();
        loop {
            let step = connection.next(rest);
            rest = &rest[step.consumed..];
            if matches!(step.event, Event::End | Event::Refused(_)) {
                break;
            }
        }
        let mut out = Vec::new();
        connection.respond(status, body_bytes, &mut out);
        String::from_utf8(out).unwrap()
    };
    let kept = post!("Content-Length: 0\r\n\r\n");
    assert_eq!(
        respond(kept, Status::Ok, 12_345_678_901),
        "HTTP/1.1 200 OK\r\nContent-Length: 12345678901\r\n\r\n"
    );
    assert_eq!(
        respond(kept, Status::InternalServerError, 3),
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\n"
    );
    assert_eq!(
        respond("POST /batch HTTP/1.0\r\nContent-Length: 0\r\n\r\n", Status::Ok, 1),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
    );
    let old_kept = "POST /batch HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        respond(old_kept, Status::Ok, 1),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n"
    );
    assert_eq!(
        respond("PUT /batch HTTP/1.1\r\nHost: a\r\n\r\n", Status::MethodNotAllowed, 0),
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nAllow: POST\r\n\r\n"
    );
}

#[test]
fn next_request_waits_for_the_response() {
    let two = then_next!("POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let mut connection = Connection::new(limits());
    let first = connection.next(two.as_bytes()).consumed;
    let rest = &two.as_bytes()[first..];
    assert!(matches!(connection.next(rest).event, Event::End));
    for _ in 0..2 {
        let step = connection.next(rest);
        assert!(matches!(step.event, Event::NeedMore) && step.consumed == 0, "{step:?}");
    }
    connection.respond(Status::Ok, 0, &mut Vec::new());
    assert!(matches!(connection.next(rest).event, Event::Request(_)));
}

#[test]
fn response_before_the_body_is_complete_drops_the_rest_or_closes() {
    let early = |fields: &str, continues: bool| {
        let mut limits = limits();
        limits.body_bytes_max = 2 * DISCARD_BYTES_MAX;
        let mut connection = Connection::new(limits);
        let head = format!("POST /batch HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        connection.next(head.as_bytes());
        if continues {
            connection.write_continue(&mut Vec::new());
        }
        connection.respond(Status::BadRequest, 0, &mut Vec::new());
        connection.phase()
    };
    assert_eq!(early("Content-Length: 65536", false), Phase::Discarding);
    assert_eq!(early("Content-Length: 65537", false), Phase::Closed);
    assert_eq!(early("Transfer-Encoding: chunked", false), Phase::Closed);
    assert_eq!(early("Content-Length: 1\r\nExpect: 100-continue", false), Phase::Closed);
    assert_eq!(early("Content-Length: 1\r\nExpect: 100-continue", true), Phase::Discarding);
    assert_eq!(early("Content-Length: 1\r\nConnection: close", false), Phase::Closed);
}

#[test]
fn timeout_tells_the_client_only_if_its_request_has_begun() {
    let timed_out = |input: &str| {
        let mut connection = Connection::new(limits());
        connection.next(input.as_bytes());
        let refusal = connection.timeout();
        assert!(refusal.is_none_or(|r| r.reason == Reason::Timeout && !r.keeps));
        (refusal.map(|refusal| refusal.status), connection.phase())
    };
    let told = (Some(Status::RequestTimeout), Phase::AwaitingResponse);
    assert_eq!(timed_out("P"), told);
    assert_eq!(timed_out(post!("Content-Length: 1\r\n\r\n")), told);
    assert_eq!(timed_out(""), (None, Phase::Closed));
    assert_eq!(timed_out("\r\n"), (None, Phase::Closed));
    assert_eq!(timed_out("GET /batch HTTP/1.1\r\nHost: a\r\n\r\n").0, None);
}

#[test]
fn connection_that_is_stopping_closes_with_its_next_response() {
    let mut connection = Connection::new(limits());
    connection.stop();
    connection.next(post!("Content-Length: 0\r\n\r\n").as_bytes());
    assert!(matches!(connection.next(b"").event, Event::End));
    let mut out = Vec::new();
    connection.respond(Status::Ok, 0, &mut out);
    assert!(connection.closes() && contains(&out, b"Connection: close\r\n"));
}

#[test]
fn server_that_answers_before_any_request_closes() {
    let mut connection = Connection::new(limits());
    let mut out = Vec::new();
    connection.respond(Status::ServiceUnavailable, 0, &mut out);
    assert!(out.starts_with(b"HTTP/1.1 503 Service Unavailable\r\n"));
    assert!(connection.closes());
    let step = connection.next(b"GET /");
    assert!(step.consumed == 5 && matches!(step.event, Event::NeedMore));
}

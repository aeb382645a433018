//! Bytes of a hostile server, cut anywhere: no panic, the same events for every cut, and no body
//! longer than its limit.
//!
//! Input: a byte that chooses how the stream begins, a byte that says how many cuts there are, a
//! byte for the distance of each, the rest of the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::config::HttpLimits;
use outboard::http::{Replies, ReplyError, ReplyEvent};

/// Small limits, so that short inputs reach them.
const LIMITS: HttpLimits = HttpLimits {
    head_bytes_max: 256,
    headers_max: 6,
    target_bytes_max: 32,
    body_bytes_max: 512,
    chunk_line_bytes_max: 24,
    trailer_bytes_max: 32,
};

/// Beginnings, so that a short run gets past the status line. The last one leaves it to the input.
const BEGINNINGS: [&str; 4] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 20\r\n",
    "",
];

/// What the client saw, without the seams between pieces of a body.
#[derive(Debug, PartialEq)]
enum Seen {
    Head(u16),
    Body(Vec<u8>),
    End(bool),
    Error(ReplyError),
}

/// Shows the stream with its ends at `cuts`.
fn read(stream: &[u8], cuts: &[u8]) -> Vec<Seen> {
    let (mut replies, mut seen) = (Replies::new(LIMITS), Vec::new());
    let (mut start, mut end, mut body_bytes) = (0, 0, 0);
    let mut cuts = cuts.iter();
    loop {
        let (consumed, event) = match replies.next(&stream[start..end]) {
            Ok(step) => step,
            Err(error) => {
                seen.push(Seen::Error(error));
                return seen;
            }
        };
        assert!(consumed <= end - start);
        start += consumed;
        match event {
            ReplyEvent::Head { status } => {
                assert!((200..1000).contains(&status));
                seen.push(Seen::Head(status));
            }
            ReplyEvent::Body(bytes) => {
                assert!(!bytes.is_empty());
                body_bytes += bytes.len() as u64;
                assert!(body_bytes <= LIMITS.body_bytes_max);
                match seen.last_mut() {
                    Some(Seen::Body(body)) => body.extend_from_slice(bytes),
                    _ => seen.push(Seen::Body(bytes.to_vec())),
                }
            }
            ReplyEvent::End { keeps } => {
                body_bytes = 0;
                seen.push(Seen::End(keeps));
            }
            ReplyEvent::NeedMore if end == stream.len() => return seen,
            ReplyEvent::NeedMore => {
                let distance = cuts.next().map_or(stream.len(), |cut| usize::from(*cut));
                end = end.saturating_add(distance).min(stream.len());
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [beginning, cuts, rest @ ..] = data else { return };
    let (cuts, rest) = rest.split_at(rest.len().min(usize::from(*cuts)));
    let beginning = BEGINNINGS[usize::from(*beginning) % BEGINNINGS.len()];
    let stream = [beginning.as_bytes(), rest].concat();
    assert_eq!(read(&stream, cuts), read(&stream, &[]));
});

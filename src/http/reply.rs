//! What another server answers, as a value: the converse of `connection`.
//!
//! Owns: the framing of responses to `POST`, one after the other. Absent: requests, sockets, time
//! limits; what a status means, beyond whether there is a body.
//!
//! As strict as the server is with requests, and for the same reason: where a response ends is
//! where the next one begins. One without a length of its own, which would end with the connection,
//! is refused. Interim responses are skipped, but for the one that changes the protocol.

use thiserror::Error;

use super::chunked::Chunked;
use super::head::{decimal, is_text_byte, list};
use super::response::Reason;
use crate::config::HttpLimits;

/// Fields of a response; the servers that are asked send two or three.
const FIELDS_MAX: usize = 64;

/// How a response begins.
const BEGINNING: &[u8] = b"HTTP/1.";

/// Why a response cannot be read on; the connection is of no use any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReplyError {
    #[error("its chunks are malformed: {0}")]
    Chunks(Reason),
    #[error("it has no HTTP response to give")]
    Head,
    #[error("the head of its response exceeds {bytes_max} bytes")]
    HeadTooLarge { bytes_max: usize },
    #[error("the length of its response is missing, in doubt or above {bytes_max} bytes")]
    Length { bytes_max: u64 },
    #[error("its response has status {status}, which nobody has asked for")]
    Status { status: u16 },
}

/// What the bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplyEvent<'a> {
    Body(&'a [u8]),
    /// The response is complete.
    End {
        /// Whether another request may follow.
        keeps: bool,
    },
    /// A response begins.
    Head {
        status: u16,
    },
    /// Call again with the bytes that were not consumed and at least one more.
    NeedMore,
}

/// The responses of one connection.
#[derive(Debug)]
pub struct Replies {
    limits: HttpLimits,
    state: State,
    keeps: bool,
}

#[derive(Debug)]
enum State {
    Head,
    Length { rest: u64 },
    Chunked(Box<Chunked>),
}

/// What a head says of its body.
struct Head {
    status: u16,
    body: State,
    keeps: bool,
}

impl Replies {
    /// `limits` bound heads and bodies as those of requests.
    #[must_use]
    pub fn new(limits: HttpLimits) -> Replies {
        Replies { limits, state: State::Head, keeps: true }
    }

    /// What `input` begins with, and how many of its bytes that takes.
    ///
    /// # Errors
    ///
    /// Where it is no response, or one whose end is in doubt.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, ReplyEvent<'a>), ReplyError> {
        match &mut self.state {
            State::Head => self.head(input),
            State::Length { rest: 0 } => Ok((0, self.end())),
            State::Length { rest } => {
                let piece = prefix(input, *rest);
                *rest -= piece.len() as u64;
                Ok((piece.len(), body(piece)))
            }
            State::Chunked(chunked) => {
                let eaten = chunked.eat_framing(input, &self.limits).map_err(ReplyError::Chunks)?;
                if chunked.is_complete() {
                    return Ok((eaten, self.end()));
                }
                let piece = prefix(&input[eaten..], chunked.data_rest());
                chunked.take_data(piece.len() as u64);
                Ok((eaten + piece.len(), body(piece)))
            }
        }
    }

    fn end(&mut self) -> ReplyEvent<'static> {
        self.state = State::Head;
        ReplyEvent::End { keeps: self.keeps }
    }

    fn head<'a>(&mut self, input: &'a [u8]) -> Result<(usize, ReplyEvent<'a>), ReplyError> {
        let mut start = 0;
        loop {
            let Some(bytes) = whole_head(&input[start..], &self.limits)? else {
                return Ok((start, ReplyEvent::NeedMore));
            };
            let head = parse(&input[start..start + bytes], &self.limits)?;
            start += bytes;
            match head.status {
                101 => return Err(ReplyError::Status { status: 101 }),
                100..200 => {}
                status => {
                    self.keeps = head.keeps;
                    self.state = head.body;
                    return Ok((start, ReplyEvent::Head { status }));
                }
            }
        }
    }
}

fn body(piece: &[u8]) -> ReplyEvent<'_> {
    if piece.is_empty() { ReplyEvent::NeedMore } else { ReplyEvent::Body(piece) }
}

fn prefix(input: &[u8], bytes: u64) -> &[u8] {
    &input[..usize::try_from(bytes).map_or(input.len(), |bytes| bytes.min(input.len()))]
}

/// The length of the head that `input` begins with, if all of it is there. Its lines end with CRLF,
/// and hold no other control characters.
fn whole_head(input: &[u8], limits: &HttpLimits) -> Result<Option<usize>, ReplyError> {
    let bytes_max = limits.head_bytes_max;
    // Who speaks another protocol may be waiting for this side to go on.
    if !BEGINNING.starts_with(&input[..input.len().min(BEGINNING.len())]) {
        return Err(ReplyError::Head);
    }
    let mut start = 0;
    loop {
        let line = &input[start..input.len().min(bytes_max)];
        let length = line.iter().position(|&byte| !is_text_byte(byte));
        match length.map(|length| (length, &line[length..])) {
            None | Some((_, [b'\r'])) if input.len() >= bytes_max => {
                return Err(ReplyError::HeadTooLarge { bytes_max });
            }
            None | Some((_, [b'\r'])) => return Ok(None),
            Some((0, [b'\r', b'\n', ..])) if start > 0 => return Ok(Some(start + 2)),
            Some((length, [b'\r', b'\n', ..])) if length > 0 => start += length + 2,
            Some(_) => return Err(ReplyError::Head),
        }
    }
}

fn parse(bytes: &[u8], limits: &HttpLimits) -> Result<Head, ReplyError> {
    let mut table = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut table);
    let parsed = response.parse(bytes).map_err(|_| ReplyError::Head)?;
    let (Some(status @ 100..), Some(minor)) = (response.code, response.version) else {
        return Err(ReplyError::Head);
    };
    if parsed != httparse::Status::Complete(bytes.len()) {
        return Err(ReplyError::Head);
    }
    let wrong = Err(ReplyError::Length { bytes_max: limits.body_bytes_max });
    let (mut length, mut is_chunked) = (None, false);
    let (mut asks_close, mut asks_keep_alive) = (false, false);
    for field in &*response.headers {
        let is = |known: &str| field.name.eq_ignore_ascii_case(known);
        if is("content-length") {
            let bytes = decimal(field.value).filter(|bytes| *bytes <= limits.body_bytes_max);
            if bytes.is_none() || length.is_some() {
                return wrong;
            }
            length = bytes;
        } else if is("transfer-encoding") {
            if is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                return wrong;
            }
            is_chunked = true;
        } else if is("connection") {
            for option in list(field.value) {
                asks_close |= option.eq_ignore_ascii_case(b"close");
                asks_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    let has_body = status >= 200 && status != 204 && status != 304;
    let body = match (length, is_chunked) {
        _ if !has_body => State::Length { rest: 0 },
        (Some(rest), false) => State::Length { rest },
        (None, true) if minor > 0 => State::Chunked(Box::new(Chunked::new())),
        _ => return wrong,
    };
    Ok(Head { status, body, keeps: !asks_close && (minor > 0 || asks_keep_alive) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HttpLimits = HttpLimits {
        head_bytes_max: 128,
        headers_max: 8,
        target_bytes_max: 32,
        body_bytes_max: 64,
        chunk_line_bytes_max: 16,
        trailer_bytes_max: 32,
    };

    /// What a stream says, the pieces of bodies joined; it comes `step` bytes at a time.
    fn read(stream: &[u8], step: usize) -> (Vec<String>, Option<ReplyError>) {
        let (mut replies, mut seen, mut body) = (Replies::new(LIMITS), Vec::new(), Vec::new());
        let (mut start, mut end) = (0, 0);
        loop {
            let (consumed, event) = match replies.next(&stream[start..end]) {
                Ok(step) => step,
                Err(error) => return (seen, Some(error)),
            };
            start += consumed;
            match event {
                ReplyEvent::Body(bytes) => body.extend_from_slice(bytes),
                ReplyEvent::End { keeps } => {
                    let text = String::from_utf8(std::mem::take(&mut body)).unwrap();
                    seen.push(format!("{text:?} {keeps}"));
                }
                ReplyEvent::Head { status } => seen.push(status.to_string()),
                ReplyEvent::NeedMore if end == stream.len() => return (seen, None),
                ReplyEvent::NeedMore => end = (end + step).min(stream.len()),
            }
        }
    }

    /// The same for all ways to cut the stream.
    fn check(stream: &str, expected: &[&str], error: Option<ReplyError>) {
        for step in 1..=stream.len() {
            let (seen, found) = read(stream.as_bytes(), step);
            assert_eq!((&seen[..], found), (&expected.map_strings()[..], error), "{stream:?}");
        }
    }

    trait MapStrings {
        fn map_strings(&self) -> Vec<String>;
    }

    impl MapStrings for [&str] {
        fn map_strings(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn responses_one_behind_the_other_are_told_apart() {
        let stream = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 100 Continue\r\n\r\n\
                      HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n\
                      3\r\nabc\r\n0\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        check(stream, &["200", "\"hi\" true", "500", "\"abc\" true", "204", "\"\" false"], None);
        check("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", &["200", "\"\" false"], None);
    }

    #[test]
    fn response_whose_end_is_in_doubt_is_refused() {
        let length = Some(ReplyError::Length { bytes_max: 64 });
        for fields in [
            "",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 65\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
        ] {
            check(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), &[], length);
        }
        check("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &[], length);
    }

    #[test]
    fn bytes_that_are_no_response_are_refused() {
        for stream in [
            "\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n Content-Length: 0\r\n\r\n",
            "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: \u{1}\r\n\r\n",
        ] {
            check(stream, &[], Some(ReplyError::Head));
        }
        let status = Some(ReplyError::Status { status: 101 });
        check("HTTP/1.1 101 Switching Protocols\r\n\r\n", &[], status);
        let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(128));
        check(&large, &[], Some(ReplyError::HeadTooLarge { bytes_max: 128 }));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx";
        check(chunks, &["200"], Some(ReplyError::Chunks(Reason::ChunkSize)));
    }
}

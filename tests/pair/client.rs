//! The client's side of the wire: bytes of requests, and replies made of bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use outboard::blob::Digest;
use outboard::wire::envelope;

use super::command::{Author, Request};
use super::ledger::Ledger;
use super::pick::Pick;

/// What should become of a request.
#[derive(Clone, Debug)]
pub enum Parcel {
    Batch(Rc<Request>, Rc<RefCell<Ledger>>),
    /// Text that is no list of commands.
    BadText,
    /// A refusal that keeps or ends the connection.
    Status(u16),
}

#[derive(Debug)]
pub struct Client {
    pub author: Author,
    pub requests_left: usize,
    /// Requests without a reply yet.
    pub sent: VecDeque<Parcel>,
    pub received: Vec<u8>,
    /// The server has said that it closes.
    pub is_told_off: bool,
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub closes: bool,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(author: Author, requests_left: usize) -> Client {
        let (sent, received) = (VecDeque::new(), Vec::new());
        Client { author, requests_left, sent, received, is_told_off: false }
    }

    /// The bytes of the next request, and what should become of it.
    pub fn write(&mut self, pick: &mut Pick, ledger: Ledger) -> Option<(Vec<u8>, Parcel)> {
        let is_last = self.requests_left == 0;
        self.requests_left = self.requests_left.saturating_sub(1);
        let look = if is_last { Some(self.author.look(pick)?) } else { None };
        let form = if is_last { 0 } else { pick.below(40) };
        let text = match form {
            1 => Some("[CopyOut(1, 2, 3, session=4)]"),
            2 => Some("[SessionFree("),
            _ => None,
        };
        let request = match (look, text) {
            (Some(look), _) => look,
            (None, Some(_)) => Request::default(),
            (None, None) => self.author.request(pick),
        };
        let mut body = Vec::new();
        for (digest, bytes) in &request.blobs {
            envelope::append(&mut body, *digest, bytes);
        }
        let text = text.map_or_else(|| request.text(), str::to_owned);
        envelope::append(&mut body, Digest([255; 32]), text.as_bytes());
        let parcel = match form {
            1 | 2 => Parcel::BadText,
            3 => {
                // A blob that is longer than the body.
                let at = body.len() - text.len() - 1;
                body[at] = 1;
                Parcel::Status(400)
            }
            4 => Parcel::Status(404),
            5 => Parcel::Status(405),
            _ => Parcel::Batch(Rc::new(request), Rc::new(RefCell::new(ledger))),
        };
        let line = match form {
            4 => "POST /elsewhere HTTP/1.1",
            5 => "PUT /batch HTTP/1.1",
            _ => "POST /batch HTTP/1.1",
        };
        let expect = if form == 6 { "Expect: 100-continue\r\n" } else { "" };
        let mut bytes = format!("{line}\r\nHost: h\r\n{expect}").into_bytes();
        if form > 6 && form < 13 {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            write_chunks(&body, pick, &mut bytes);
        } else {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(&body);
        }
        self.sent.push_back(parcel.clone());
        Some((bytes, parcel))
    }

    /// Whether it will send no more.
    pub fn is_done(&self) -> bool {
        self.is_told_off || (self.requests_left == 0 && self.author.has_looked())
    }

    /// The next reply, once all of it is there.
    pub fn read(&mut self) -> Option<Reply> {
        let end = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        if status == 100 {
            self.received.drain(..end);
            return self.read();
        }
        let length = head.split("Content-Length: ").nth(1)?.split('\r').next()?;
        let length: usize = length.parse().ok()?;
        if self.received.len() < end + length {
            return None;
        }
        let body = self.received[end..end + length].to_vec();
        self.received.drain(..end + length);
        Some(Reply { status, closes: head.contains("Connection: close"), body })
    }
}

fn write_chunks(body: &[u8], pick: &mut Pick, out: &mut Vec<u8>) {
    let mut rest = body;
    while !rest.is_empty() {
        let length = (1 + pick.below(300)).min(rest.len()).max(rest.len().min(1) + rest.len() / 50);
        let (chunk, behind) = rest.split_at(length);
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = behind;
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Compares a reply with what should have become of its request.
pub fn check(parcel: &Parcel, reply: &Reply) -> Result<(), String> {
    match (parcel, reply.status) {
        (Parcel::Batch(_, ledger), 200 | 500) => {
            ledger.borrow().check(reply.status == 200, &reply.body)
        }
        (Parcel::BadText, 500) if contains(&reply.body, b"bad command text") => Ok(()),
        (Parcel::Status(status), found) if *status == found => Ok(()),
        _ => Err(format!("status {} for {parcel:?}", reply.status)),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

//! One HTTP/1.1 server connection as a value (RFC 9110, RFC 9112).
//!
//! Owns: the framing of requests, what is refused and with which status, the heads of responses,
//! and whether the connection goes on. Absent: sockets, buffers and clocks, which are the caller's;
//! the content of a body, which is handed on as it lies in the caller's buffer; a `Date` field,
//! which a server without a clock leaves out (RFC 9110 section 6.6.1).
//!
//! The caller shows its receive buffer to [`Connection::next`], drops what was consumed, and acts
//! on the event. How the bytes were split on arrival changes nothing but the seams between
//! [`Event::Body`] slices. No byte is copied, and no peer byte can panic.
//!
//! # What is served
//!
//! `POST /batch` alone, in origin-form or absolute-form (`http://any-host/batch`). A query is
//! ignored. Paths are compared as they are, so percent-encoded spellings are not found.
//!
//! # Strictness
//!
//! Where two readers could see two framings, the request is refused and the connection closed:
//! `Transfer-Encoding` beside `Content-Length` or in HTTP/1.0, any coding but `chunked`, repeated
//! or decorated `Content-Length`, line ends other than CRLF, folded lines, space before a colon,
//! control characters. `httparse` reads the fields; it is lenient about bare line feeds, empty
//! lines, bytes above 127 in targets and chunk sizes without digits, so line ends and request-line
//! bytes are checked in front of it and chunks are read here.
//!
//! # After a refusal
//!
//! Where the framing is certain (404, 405, 411, 413, 417, 501 for a method), the connection stays,
//! provided that the rest of the body has a known length of at most [`DISCARD_BYTES_MAX`] and the
//! client is not still waiting for `100 Continue`; that rest is then dropped. Everything else
//! closes it. The same rule holds when the caller answers before a body is complete.
//!
//! Reading order: `connection`, `head`, `route`, `chunked`, `response`; `reply`, the other side:
//! what another server answers to this one.

#![forbid(unsafe_code)]

mod chunked;
mod connection;
mod head;
mod reply;
mod response;
mod route;

pub use connection::{BodyLength, Connection, DISCARD_BYTES_MAX, Event, Phase, Request, Step};
pub use reply::{Replies, ReplyError, ReplyEvent};
pub use response::{Reason, Refusal, Status};

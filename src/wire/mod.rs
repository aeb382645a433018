//! The wire: bytes to commands, and back.
//!
//! A request's body is blobs, of which the last is text: a Python list of calls, as tinygrad's
//! client prints it with `repr`. This module takes the body apart as it streams in, reads the text
//! into [`Command`]s that borrow from it, and prints commands and replies.
//!
//! Absent, on purpose: IO, clocks, `unsafe`, and all state of sessions. What a command means, and
//! whether the buffer it names exists, is the engine's business. No input can make this module
//! panic, recurse, or reserve memory before a limit was checked: lengths are compared with
//! [`EnvelopeLimits`](crate::config::EnvelopeLimits) and [`WireLimits`](crate::config::WireLimits).
//!
//! Reading order:
//!
//! 1. [`envelope`]: a body's blobs, as they stream in.
//! 2. `cursor`, `token`, `escape`: the text's bytes, Python's literal tokens, its escapes.
//! 3. `tape`, [`value`]: a flat list of values, and its readings.
//! 4. `record`, [`command`], [`batch`]: values to commands, each declared once for both directions;
//!    `long_graph`: the one command that is read in parts.
//! 5. `dtype`, [`symbolic`], `symbolic_repr`: integers that depend on variables.
//! 6. [`repr`], [`reply`]: Python's `repr`, and what the server answers.

#![forbid(unsafe_code)]

pub mod batch;
pub mod command;
mod cursor;
mod dtype;
pub mod envelope;
mod error;
mod escape;
mod long_graph;
mod record;
pub mod reply;
pub mod repr;
pub mod symbolic;
mod symbolic_repr;
mod tape;
#[cfg(test)]
mod tests;
mod token;
pub mod value;

pub use batch::{Commands, Parsing, Stored, parse_batch, parse_batch_with, write_batch};
pub use command::{
    BufferName, BufferNumber, Command, EventNumber, GraphNumber, Request, SessionKey,
};
pub use dtype::{DataType, Operation};
pub use envelope::Envelope;
pub use error::{WireError, WireErrorKind};
pub use tape::Tape;

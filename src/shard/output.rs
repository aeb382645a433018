//! An output on its way to a socket, a client's or another server's.
//!
//! Owns: the length of what is sent in one go, and that the next part of an output is read while
//! this one is sent. Absent: the sockets (`io`), what an output is (`engine`).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use super::completion::{Cancel, Gone};
use super::io::Socket;
use crate::engine::{Cause, Output, Owner, Reading};

/// Why the rest of an output cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the client went away")]
    Gone,
    #[error(transparent)]
    Failed(#[from] Cause),
}

impl Unreadable {
    /// As the end of a connection: the client has been promised a length already.
    pub(super) fn as_io(&self) -> io::Error {
        io::Error::other(self.to_string())
    }
}

/// Why an output was not sent, all of it.
#[derive(Debug)]
pub(super) enum Unsent {
    Io(io::Error),
    Output(Unreadable),
    /// The other end took nothing for so long.
    Silent(Duration),
}

impl From<Gone> for Unreadable {
    fn from(Gone: Gone) -> Unreadable {
        Unreadable::Gone
    }
}

impl Shard {
    /// What is sent or received for `owner` in one go, of `bytes` at most: less where others wait
    /// meanwhile.
    pub(super) fn piece(&self, owner: Owner, bytes: usize) -> usize {
        let limits = &self.config.shard;
        match self.has_crowd(owner) {
            true => bytes.min(limits.crowd_piece_bytes),
            false => bytes,
        }
    }

    /// Sends what is corked, and then an output for `owner`. What the server does not see yet is
    /// read meanwhile. With `pause_max`, no piece may take longer.
    pub(super) async fn send_output(
        &self,
        socket: &mut Socket,
        owner: Owner,
        cancel: &Cancel,
        output: Output,
        pause_max: Option<Duration>,
    ) -> Result<(), Unsent> {
        let limits = &self.config.shard;
        let mut output = output;
        loop {
            let rest = output.take_rest();
            let reading = rest.map(|rest| self.engine.borrow_mut().read_on(rest)).transpose();
            let reading = reading.map_err(|cause| Unsent::Output(cause.into()))?;
            let piece = Rc::new(output);
            let (mut start, length) = (0, piece.as_bytes().len());
            while start < length {
                let bytes = self.piece(owner, limits.send_piece_bytes);
                let end = start.saturating_add(bytes).min(length);
                let send = socket.send_output(&piece, start..end, limits.zero_copy_bytes_min);
                match pause_max {
                    None => send.await,
                    Some(pause_max) => {
                        let sent = self.reactor.within(pause_max, send).await;
                        sent.ok_or(Unsent::Silent(pause_max))?
                    }
                }
                .map_err(Unsent::Io)?;
                start = end;
            }
            drop(piece);
            let Some(reading) = reading else { return Ok(()) };
            output = self.read(cancel, reading).await.map_err(Unsent::Output)?;
        }
    }

    /// Waits until a part of an output can be seen.
    pub(super) async fn read(
        &self,
        cancel: &Cancel,
        reading: Reading,
    ) -> Result<Output, Unreadable> {
        self.wait(cancel, &reading.wait()).await?;
        Ok(self.engine.borrow_mut().finish_reading(reading)?)
    }
}

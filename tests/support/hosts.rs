//! What a client tells two servers that copy to each other, and what is copied.

#![expect(clippy::unwrap_used, reason = "what tests copy fits into memory")]

use super::client::Client;

/// Has `from` send its buffer 1 to that of `to`.
pub(crate) fn transfer(from: &Client, to: &Client) -> String {
    let (session, to) = (from.session(0), to.key(0));
    format!("Transfer({session}, buffer_num=1, dsession={to}, dbuffer_num=1)")
}

/// Has `from` set an event of `to`, once its work is done.
pub(crate) fn event(from: &Client, to: &Client, number: u64) -> String {
    format!("Event({}, event_session={}, event={number})", from.session(0), to.key(0))
}

/// Has a session wait for an event of its own.
pub(crate) fn wait(at: &Client, number: u64) -> String {
    format!("Wait({}, event={number})", at.session(0))
}

/// Bytes that are nowhere the same.
pub(crate) fn pattern(bytes: u64) -> Vec<u8> {
    let words = (0..u32::MAX).map(|word| word.wrapping_mul(0x9e37_79b1));
    words.flat_map(u32::to_le_bytes).take(usize::try_from(bytes).unwrap()).collect()
}

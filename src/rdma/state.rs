//! The states of a queue pair, and what may happen in each.
//!
//! A pair is made in `Reset`, is told its port and what peers may do (`Init`), then who the peer is
//! (`ReadyToReceive`), then how patient to be with it (`ReadyToSend`). A failed request puts it
//! into `Error` for good: what else is in its queue is flushed, and a new pair takes its place.
//!
//! Absent: the calls that bring a real pair from one state to the next (`verbs`).
#![forbid(unsafe_code)]

use std::fmt;

/// Where a queue pair of a reliable connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueState {
    #[default]
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
}

/// What is done to a queue pair, or happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is bound to a port, and gets the rights that peers have.
    Bind,
    /// It learns its peer's address, and answers it from now on.
    Answer,
    /// It may send.
    Send,
    /// A request failed, or it is taken out of use.
    Fail,
}

/// A change that cannot happen in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a queue pair in state {state} cannot {change}")]
pub struct OutOfOrder {
    pub state: QueueState,
    pub change: Change,
}

impl QueueState {
    /// The state after a change.
    ///
    /// # Errors
    ///
    /// [`OutOfOrder`] where the change cannot happen.
    pub fn after(self, change: Change) -> Result<QueueState, OutOfOrder> {
        match (self, change) {
            (QueueState::Reset, Change::Bind) => Ok(QueueState::Init),
            (QueueState::Init, Change::Answer) => Ok(QueueState::ReadyToReceive),
            (QueueState::ReadyToReceive, Change::Send) => Ok(QueueState::ReadyToSend),
            (_, Change::Fail) => Ok(QueueState::Error),
            (state, change) => Err(OutOfOrder { state, change }),
        }
    }

    /// Whether requests can be posted and will be sent.
    #[must_use]
    pub fn sends(self) -> bool {
        self == QueueState::ReadyToSend
    }

    /// Whether the peer's writes are carried out.
    #[must_use]
    pub fn answers(self) -> bool {
        matches!(self, QueueState::ReadyToReceive | QueueState::ReadyToSend)
    }
}

impl fmt::Display for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueueState::Reset => "RESET",
            QueueState::Init => "INIT",
            QueueState::ReadyToReceive => "RTR",
            QueueState::ReadyToSend => "RTS",
            QueueState::Error => "ERR",
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Bind => "be bound to a port",
            Change::Answer => "begin to receive",
            Change::Send => "begin to send",
            Change::Fail => "fail",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGES: [Change; 4] = [Change::Bind, Change::Answer, Change::Send, Change::Fail];

    #[test]
    fn pair_sends_after_three_changes_in_order() {
        let mut state = QueueState::default();
        for change in [Change::Bind, Change::Answer, Change::Send] {
            assert!(!state.sends());
            state = state.after(change).unwrap();
        }
        assert!(state.sends() && state.answers());
    }

    #[test]
    fn change_out_of_order_is_refused_and_named() {
        let orders = [
            (QueueState::Reset, Change::Bind),
            (QueueState::Init, Change::Answer),
            (QueueState::ReadyToReceive, Change::Send),
        ];
        let states = [QueueState::Reset, QueueState::Init, QueueState::ReadyToReceive];
        for state in states.into_iter().chain([QueueState::ReadyToSend, QueueState::Error]) {
            for change in CHANGES.into_iter().filter(|change| *change != Change::Fail) {
                assert_eq!(state.after(change).is_ok(), orders.contains(&(state, change)));
            }
        }
        let error = QueueState::Reset.after(Change::Send).unwrap_err();
        assert_eq!(error.to_string(), "a queue pair in state RESET cannot begin to send");
    }

    #[test]
    fn failed_pair_never_sends_or_answers_again() {
        let failed = QueueState::ReadyToSend.after(Change::Fail).unwrap();
        assert!(!failed.sends() && !failed.answers());
        for change in CHANGES {
            assert!(failed.after(change).is_err() || change == Change::Fail);
        }
    }
}

//! What a connection has received and not used yet.

use super::io::Received;

/// Received bytes that are not consumed yet. They stay where they are until more is received.
#[derive(Default)]
pub(super) struct Input {
    held: Held,
    start: usize,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// As they came.
    Received(Received),
    /// What came in several pieces and is used as one.
    Joined(Vec<u8>),
}

impl Input {
    /// From the first byte that is kept; places of a text are counted from there.
    pub(super) fn all(&self) -> &[u8] {
        match &self.held {
            Held::Nothing => &[],
            Held::Received(received) => received,
            Held::Joined(bytes) => bytes,
        }
    }

    /// Where that begins which is not consumed.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// What is not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.all()[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.all().len()
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Lets go of what is consumed. A buffer of the ring's goes back to it.
    pub(super) fn tidy(&mut self) {
        if self.is_empty() {
            *self = Input::default();
            return;
        }
        let mut joined = match std::mem::take(&mut self.held) {
            Held::Joined(bytes) => bytes,
            held => Input { held, start: 0 }.all().to_vec(),
        };
        joined.drain(..self.start);
        *self = Input { held: Held::Joined(joined), start: 0 };
    }

    /// Adds what was received, after [`Input::tidy`].
    pub(super) fn add(&mut self, received: Received) {
        match &mut self.held {
            Held::Joined(bytes) => bytes.extend_from_slice(&received),
            held => *held = Held::Received(received),
        }
    }
}

/// What another shard has received.
impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Input {
        Input { held: Held::Joined(bytes), start: 0 }
    }
}

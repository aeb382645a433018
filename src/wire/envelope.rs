//! The body of a request: blobs back to back, `hash[32] | length u64 LE | bytes`.
//!
//! Owns: [`Envelope`], which is fed a body in pieces of any size and says what to do with them, and
//! the writing of a blob's header. Absent: the bytes of the blobs, which go from the socket to
//! their destination; hashes are not verified here. The last blob is the command text.

use super::error::{WireError, WireErrorKind};
use crate::blob::Digest;
use crate::config::EnvelopeLimits;

/// Bytes in front of each blob.
pub const HEADER_BYTES: usize = 40;

/// The header of a blob.
#[must_use]
pub fn header(digest: Digest, bytes: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..32].copy_from_slice(&digest.0);
    header[32..].copy_from_slice(&bytes.to_le_bytes());
    header
}

/// Appends a blob with its header to a body.
pub fn append(body: &mut Vec<u8>, digest: Digest, blob: &[u8]) {
    // A usize is at most 64 bits on every target there is.
    body.extend_from_slice(&header(digest, blob.len() as u64));
    body.extend_from_slice(blob);
}

/// A request body as it streams in.
#[derive(Debug)]
pub struct Envelope {
    limits: EnvelopeLimits,
    /// Length of the whole body, where it was announced.
    body_bytes: Option<u64>,
    /// Bytes of the body taken so far.
    taken: u64,
    blobs: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    Payload { remaining: u64 },
}

const EMPTY_HEADER: State = State::Header { bytes: [0; HEADER_BYTES], have: 0 };

/// What a piece of the body was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that this step took, from its start.
    pub consumed: usize,
    pub event: Event,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The blob is complete.
    BlobEnd,
    /// A blob of this name and length begins. Whether it is the last one, which is the command
    /// text, is known if the length of the body was announced.
    BlobStart { digest: Digest, bytes: u64, last: Option<bool> },
    /// The input is used up.
    NeedMore,
    /// The bytes that this step consumed belong to the current blob.
    Payload,
}

impl Envelope {
    /// The start of a body, which is `body_bytes` long if that was announced.
    #[must_use]
    pub fn new(limits: EnvelopeLimits, body_bytes: Option<u64>) -> Self {
        Envelope { limits, body_bytes, taken: 0, blobs: 0, state: EMPTY_HEADER }
    }

    /// Looks at the next bytes of the body. Call it again with what it did not consume.
    ///
    /// # Errors
    ///
    /// A blob exceeds a limit, or the end of an announced body.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, WireError> {
        let (bytes, have) = match &mut self.state {
            State::Payload { remaining: 0 } => {
                self.state = EMPTY_HEADER;
                return Ok(Step { consumed: 0, event: Event::BlobEnd });
            }
            State::Payload { remaining } => {
                let offered = input.len() as u64;
                let step = (*remaining).min(offered);
                *remaining -= step;
                self.taken += step;
                let consumed = if step == offered {
                    input.len()
                } else {
                    usize::try_from(step).expect("less than the length of a slice")
                };
                let event = if consumed == 0 { Event::NeedMore } else { Event::Payload };
                return Ok(Step { consumed, event });
            }
            State::Header { bytes, have } => (bytes, have),
        };
        let room = &mut bytes[*have..];
        let consumed = room.len().min(input.len());
        room[..consumed].copy_from_slice(&input[..consumed]);
        *have += consumed;
        self.taken += consumed as u64;
        if *have < HEADER_BYTES {
            return Ok(Step { consumed, event: Event::NeedMore });
        }
        let header = *bytes;
        Ok(Step { consumed, event: self.start(&header)? })
    }

    /// Checks a blob's header.
    fn start(&mut self, header: &[u8; HEADER_BYTES]) -> Result<Event, WireError> {
        let at = self.taken - HEADER_BYTES as u64;
        let fail = |kind| Err(WireError::in_body(at, kind));
        let (digest, bytes) = header.split_at(32);
        let digest = Digest(std::array::from_fn(|index| digest[index]));
        let bytes = u64::from_le_bytes(std::array::from_fn(|index| bytes[index]));
        let EnvelopeLimits { blob_bytes_max, blobs_max } = self.limits;
        if bytes > blob_bytes_max {
            return fail(WireErrorKind::BlobTooLong { bytes, max: blob_bytes_max });
        }
        if self.blobs == blobs_max {
            return fail(WireErrorKind::TooManyBlobs { max: blobs_max });
        }
        let left = self.body_bytes.map(|all| all.saturating_sub(self.taken));
        if let Some(missing) = left.and_then(|left| bytes.checked_sub(left)).filter(|&n| n > 0) {
            return fail(WireErrorKind::TruncatedPayload { missing });
        }
        self.blobs += 1;
        self.state = State::Payload { remaining: bytes };
        Ok(Event::BlobStart { digest, bytes, last: left.map(|left| left == bytes) })
    }

    /// Bytes of the current blob that are still to come.
    #[must_use]
    pub fn payload_remaining(&self) -> u64 {
        match self.state {
            State::Header { .. } => 0,
            State::Payload { remaining } => remaining,
        }
    }

    /// Notes that bytes of the current blob were received where they belong, past this value.
    ///
    /// # Panics
    ///
    /// If that is more than [`Self::payload_remaining`].
    pub fn advance_payload(&mut self, bytes: u64) {
        assert!(bytes <= self.payload_remaining(), "more payload than the blob has");
        if let State::Payload { remaining } = &mut self.state {
            *remaining -= bytes;
            self.taken += bytes;
        }
    }

    /// Bytes of the body taken so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Checks that the body may end here.
    ///
    /// # Errors
    ///
    /// There was no blob, or the body ends inside one.
    pub fn finish(&self) -> Result<(), WireError> {
        let kind = match self.state {
            State::Header { have: 0, .. } if self.blobs == 0 => WireErrorKind::EmptyBody,
            State::Header { have: 0, .. } | State::Payload { remaining: 0 } => return Ok(()),
            State::Header { have, .. } => {
                WireErrorKind::TruncatedHeader { missing: (HEADER_BYTES - have) as u64 }
            }
            State::Payload { remaining } => WireErrorKind::TruncatedPayload { missing: remaining },
        };
        Err(WireError::in_body(self.taken, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Envelope, EnvelopeLimits, Event, WireErrorKind, append, header};

    const LIMITS: EnvelopeLimits = EnvelopeLimits { blob_bytes_max: 1 << 20, blobs_max: 4 };

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    type Blobs = Vec<(Digest, Vec<u8>)>;

    /// The blobs of a body that arrives in pieces cut at `cuts`, and how it ended.
    fn read(body: &[u8], cuts: &[usize], announced: bool) -> (Blobs, Result<(), WireErrorKind>) {
        let length = announced.then_some(body.len() as u64);
        let mut envelope = Envelope::new(LIMITS, length);
        let mut blobs = Blobs::new();
        let mut complete = 0;
        let mut from = 0;
        for &to in cuts.iter().chain([&body.len()]) {
            let mut piece = &body[from..to];
            from = to;
            loop {
                let step = match envelope.next(piece) {
                    Ok(step) => step,
                    Err(error) => return (blobs, Err(error.kind().clone())),
                };
                let (taken, rest) = piece.split_at(step.consumed);
                piece = rest;
                match step.event {
                    Event::BlobEnd => complete += 1,
                    Event::BlobStart { digest, bytes, last } => {
                        assert_eq!(last.is_some(), announced);
                        assert_eq!(bytes, envelope.payload_remaining());
                        blobs.push((digest, Vec::new()));
                    }
                    Event::NeedMore => {
                        assert!(piece.is_empty());
                        break;
                    }
                    Event::Payload => {
                        assert!(!taken.is_empty());
                        blobs.last_mut().unwrap().1.extend_from_slice(taken);
                    }
                }
            }
        }
        let end = envelope.finish().map_err(|error| error.kind().clone());
        assert_eq!(envelope.taken(), body.len() as u64);
        assert!(end.is_err() || complete == blobs.len());
        (blobs, end)
    }

    fn body() -> Vec<u8> {
        let mut body = Vec::new();
        append(&mut body, digest(1), b"some data");
        append(&mut body, digest(2), b"");
        append(&mut body, digest(3), b"[]");
        body
    }

    #[test]
    fn body_split_anywhere_has_the_same_blobs() {
        let body = body();
        let blobs = [b"some data".as_slice(), b"", b"[]"];
        let blobs: Vec<_> = (1..).map(digest).zip(blobs.map(<[u8]>::to_vec)).collect();
        for announced in [false, true] {
            for first in 0..=body.len() {
                for second in first..=body.len() {
                    assert_eq!(read(&body, &[first, second], announced), (blobs.clone(), Ok(())));
                }
            }
            let all: Vec<_> = (1..body.len()).collect();
            assert_eq!(read(&body, &all, announced), (blobs.clone(), Ok(())));
        }
    }

    #[test]
    fn body_cut_short_is_refused() {
        let body = body();
        for length in 0..body.len() {
            let (_, end) = read(&body[..length], &[], false);
            match (length, end) {
                (0, end) => assert_eq!(end, Err(WireErrorKind::EmptyBody)),
                (49 | 89, end) => assert_eq!(end, Ok(())),
                (1..40 | 50..89 | 90..129, Err(WireErrorKind::TruncatedHeader { .. })) => {}
                (_, end) => assert!(matches!(end, Err(WireErrorKind::TruncatedPayload { .. }))),
            }
        }
    }

    #[test]
    fn blob_longer_than_an_announced_body_is_refused_at_its_start() {
        let body = body();
        let (blobs, end) = read(&body[..45], &[], true);
        assert_eq!((blobs.len(), end), (0, Err(WireErrorKind::TruncatedPayload { missing: 4 })));
    }

    #[test]
    fn blob_that_exceeds_a_limit_is_refused_at_its_start() {
        for bytes in [u64::MAX, (1 << 20) + 1] {
            let error = Envelope::new(LIMITS, None).next(&header(digest(1), bytes)).unwrap_err();
            assert_eq!(error.kind(), &WireErrorKind::BlobTooLong { bytes, max: 1 << 20 });
        }
        let body = header(digest(1), 0).repeat(5);
        let (blobs, end) = read(&body, &[], false);
        assert_eq!((blobs.len(), end), (4, Err(WireErrorKind::TooManyBlobs { max: 4 })));
    }

    #[test]
    fn last_blob_of_an_announced_body_is_known_at_its_start() {
        let body = body();
        let mut envelope = Envelope::new(LIMITS, Some(body.len() as u64));
        let mut input = &body[..];
        let mut lasts = Vec::new();
        while !input.is_empty() {
            let step = envelope.next(input).unwrap();
            input = &input[step.consumed..];
            if let Event::BlobStart { last, .. } = step.event {
                lasts.push(last);
            }
        }
        assert_eq!(lasts, [Some(false), Some(false), Some(true)]);
    }

    #[test]
    fn payload_received_elsewhere_counts() {
        let mut envelope = Envelope::new(LIMITS, None);
        envelope.next(&header(digest(1), 10)).unwrap();
        assert_eq!(envelope.next(b"abc").unwrap().consumed, 3);
        envelope.advance_payload(5);
        assert_eq!((envelope.payload_remaining(), envelope.taken()), (2, 48));
        assert_eq!(envelope.next(b"xyz").unwrap().consumed, 2);
        assert_eq!(envelope.next(b"z").unwrap().event, Event::BlobEnd);
        assert_eq!(envelope.finish(), Ok(()));
    }
}

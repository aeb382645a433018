//! The body of a request as it arrives: blobs into memory, the last of them the command text.
//!
//! Owns: where each blob's bytes go. Text that came in one piece stays in the receive buffer; other
//! text, and short blobs, go into private memory. Long blobs go into staging memory, which devices
//! take them from. Both are received there directly where they are long. Memory is charged as
//! bytes arrive, not as they are promised; where there is none, the body says so and can be gone on
//! with later.

use std::ops;
use std::rc::Rc;

use super::Config;
use crate::blob::{Digest, Hash, Mismatch, Verifier};
use crate::device::DeviceError;
use crate::device::shared::{Heap, Landing, Range};
use crate::engine::{Blob, Blobs};
use crate::http::{BodyLength, Status};
use crate::wire::envelope::{Envelope, Event};
use crate::wire::{WireError, WireErrorKind};

/// Text is received directly, in pieces of at least so much: it is long then.
const TEXT_STEP_BYTES: usize = 64 << 10;

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("blob {digest} is named twice in one batch")]
    DigestRepeated { digest: Digest },
    #[error("no staging memory for {bytes} bytes: {cause}")]
    Staging { bytes: u64, cause: DeviceError },
    #[error("no staging memory came free for {bytes} bytes in {seconds} s; try again later")]
    StagingBusy { bytes: u64, seconds: u64 },
    #[error("the client hung up while its body waited for staging memory")]
    HungUp,
    #[error("a blob's bytes are not what its name says: {0}; send it again")]
    Mismatch(#[from] Mismatch),
    #[error("the command text has {bytes} bytes, the limit is {bytes_max}")]
    TextTooLong { bytes: u64, bytes_max: u64 },
    #[error("bad body: {0}")]
    Wire(#[from] WireError),
}

impl BodyError {
    pub(super) fn status(&self) -> Status {
        match self {
            BodyError::DigestRepeated { .. } | BodyError::Mismatch(_) => Status::BadRequest,
            BodyError::Staging { .. } | BodyError::StagingBusy { .. } | BodyError::HungUp => {
                Status::ServiceUnavailable
            }
            BodyError::TextTooLong { .. } => Status::ContentTooLarge,
            BodyError::Wire(error) => match error.kind() {
                WireErrorKind::BlobTooLong { .. } | WireErrorKind::TooManyBlobs { .. } => {
                    Status::ContentTooLarge
                }
                _ => Status::BadRequest,
            },
        }
    }
}

/// The command text.
pub(super) enum Text {
    /// In the receive buffer.
    InPlace(ops::Range<usize>),
    Own(Vec<u8>),
}

/// A blob whose bytes arrive.
enum Destination {
    /// Text that is complete, and where it lies in the receive buffer.
    InPlace(ops::Range<usize>),
    Private(Vec<u8>),
    Text(Vec<u8>),
    /// Filled up to `filled`; there is memory up to `room`.
    Staged {
        range: Range,
        filled: usize,
        room: usize,
    },
}

/// Where the next bytes of a body may be received directly.
pub(super) enum Direct {
    Landing(Landing),
    /// Behind what the vector holds, up to so many bytes.
    Text(Vec<u8>, usize),
}

/// A request's body.
pub(super) struct Body<'c> {
    config: &'c Config,
    staging: &'c Heap,
    envelope: Envelope,
    /// A blob that has begun and has no memory yet.
    unplaced: Option<(Digest, u64)>,
    current: Option<(Digest, Destination)>,
    /// The last complete blob: text if no other follows.
    last: Option<(Digest, Destination)>,
    blobs: Blobs,
    /// Bytes of short blobs in private memory.
    private_bytes: u64,
    /// Bytes that went to staging memory, or were promised for it.
    staged_bytes: u64,
    /// What the names of all blobs are checked as.
    hash: Option<Hash>,
    /// That of the current blob.
    verifier: Option<Verifier>,
}

impl<'c> Body<'c> {
    /// A body whose long blobs go to `staging`, which belongs to one connection. Names are checked
    /// as `hash`.
    pub(super) fn new(
        config: &'c Config,
        staging: &'c Heap,
        length: BodyLength,
        hash: Option<Hash>,
    ) -> Body<'c> {
        let body_bytes = match length {
            BodyLength::Chunked => None,
            BodyLength::Known(bytes) => Some(bytes),
        };
        Body {
            config,
            staging,
            envelope: Envelope::new(config.envelope, body_bytes),
            unplaced: None,
            current: None,
            last: None,
            blobs: Blobs::default(),
            private_bytes: 0,
            staged_bytes: 0,
            hash,
            verifier: None,
        }
    }

    /// Whether there is memory for what comes next, as far as it is known; at most `bytes_max`
    /// bytes of a long blob. While there is none, nothing is taken.
    pub(super) fn has_room(&mut self, bytes_max: usize) -> Result<bool, BodyError> {
        if let Some((digest, bytes)) = self.unplaced.take() {
            let reserved = self.staging.reserve(bytes);
            let Some(range) = self.unless_short(reserved, bytes)? else {
                self.unplaced = Some((digest, bytes));
                return Ok(false);
            };
            self.current = Some((digest, Destination::Staged { range, filled: 0, room: 0 }));
        }
        let Some((_, Destination::Staged { range, filled, room })) = &self.current else {
            return Ok(true);
        };
        let all = range.slice().len();
        let end = filled.saturating_add(bytes_max).min(all);
        if end <= *room {
            return Ok(true);
        }
        let (charged, bytes) = (range.charge(end as u64), all as u64);
        let has_room = self.unless_short(charged, bytes)?.is_some();
        if has_room && let Some((_, Destination::Staged { room, .. })) = &mut self.current {
            *room = end;
        }
        Ok(has_room)
    }

    /// `None` where memory is short now but may not be later.
    fn unless_short<T>(
        &self,
        outcome: Result<T, DeviceError>,
        bytes: u64,
    ) -> Result<Option<T>, BodyError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_shortage() && self.staged_bytes <= self.staging.reach() => {
                Ok(None)
            }
            Err(cause) => Err(BodyError::Staging { bytes, cause }),
        }
    }

    /// Where up to `bytes_max` of the body's next bytes may be received directly, if that is worth
    /// while; there has to be room.
    pub(super) fn direct(&mut self, bytes_max: usize) -> Option<Direct> {
        if bytes_max == 0 {
            return None;
        }
        let bytes_max = match self.verifier {
            Some(_) => bytes_max.min(self.config.hash.piece_bytes),
            None => bytes_max,
        };
        match &mut self.current {
            Some((_, Destination::Staged { range, filled, room })) if *filled < *room => {
                let bytes = bytes_max.min(*room - *filled);
                Some(Direct::Landing(range.landing(*filled..*filled + bytes)))
            }
            Some((_, Destination::Text(to))) => {
                let missing = usize::try_from(self.envelope.payload_remaining()).ok()?;
                let bytes = missing.min(bytes_max).min(to.len().max(TEXT_STEP_BYTES));
                (missing > self.config.ring.chunk_bytes)
                    .then(|| Direct::Text(std::mem::take(to), bytes))
            }
            _ => None,
        }
    }

    /// Takes note of bytes received where [`Body::direct`] said; text comes back as `text`.
    pub(super) fn advance(&mut self, bytes: usize, text: Option<Vec<u8>>) -> Result<(), BodyError> {
        self.envelope.advance_payload(bytes as u64);
        if let (Some((_, Destination::Text(to))), Some(text)) = (&mut self.current, text) {
            *to = text;
        }
        self.verify(bytes);
        self.arrived(bytes);
        self.take(&[], 0).map(drop)
    }

    /// Hashes the next `bytes` bytes, which were received where they belong.
    fn verify(&mut self, bytes: usize) {
        let Some(verifier) = &mut self.verifier else { return };
        match &self.current {
            Some((_, Destination::Staged { range, filled, .. })) => {
                verifier.update(&range.slice()[*filled..*filled + bytes]);
            }
            Some((_, Destination::Text(to))) => verifier.update(&to[to.len() - bytes..]),
            _ => {}
        }
    }

    /// Takes bytes that lie at `at` in the receive buffer, which is not filled again before the
    /// request is answered once all of the text is in it. Returns how many were taken: fewer than
    /// all where there is no room.
    pub(super) fn take(&mut self, bytes: &[u8], at: usize) -> Result<usize, BodyError> {
        let mut taken = 0;
        while self.unplaced.is_none() {
            let input = &bytes[taken..];
            let offered = match &self.current {
                Some((_, Destination::Staged { filled, room, .. })) => {
                    &input[..input.len().min(room - filled)]
                }
                _ => input,
            };
            let step = self.envelope.next(offered)?;
            let place = at + taken..at + taken + step.consumed;
            taken += step.consumed;
            match step.event {
                Event::BlobStart { digest, bytes, last } => self.begin(digest, bytes, last)?,
                Event::Payload => self.put(&offered[..step.consumed], place),
                Event::BlobEnd => self.end()?,
                Event::NeedMore => break,
            }
        }
        Ok(taken)
    }

    /// Bytes that went to staging memory, or were promised for it.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.staged_bytes
    }

    /// The command text, and the blobs before it.
    pub(super) fn finish(self) -> Result<(Text, Blobs), BodyError> {
        self.envelope.finish()?;
        // Of a chunked body the last blob is known only now; text is parsed from private memory.
        let bytes_max = self.config.wire.text_bytes_max as u64;
        let text = match self.last {
            Some((_, Destination::Staged { range, .. })) if range.bytes() > bytes_max => {
                return Err(BodyError::TextTooLong { bytes: range.bytes(), bytes_max });
            }
            Some((_, Destination::InPlace(place))) => Text::InPlace(place),
            Some((_, Destination::Private(text) | Destination::Text(text))) => Text::Own(text),
            Some((_, Destination::Staged { range, .. })) => Text::Own(range.slice().to_vec()),
            None => Text::Own(Vec::new()),
        };
        Ok((text, self.blobs))
    }

    /// `last` says whether this blob is the command text, where that is known already.
    fn begin(&mut self, digest: Digest, bytes: u64, last: Option<bool>) -> Result<(), BodyError> {
        let text_bytes_max = self.config.wire.text_bytes_max as u64;
        if last == Some(true) && bytes > text_bytes_max {
            return Err(BodyError::TextTooLong { bytes, bytes_max: text_bytes_max });
        }
        let blob = match self.last.take() {
            Some((digest, Destination::Private(bytes))) => {
                Some((digest, Blob::Private(bytes.into())))
            }
            Some((digest, Destination::Staged { range, .. })) => {
                Some((digest, Blob::Staged(Rc::new(range))))
            }
            // Nothing follows the text.
            Some((_, Destination::InPlace(_) | Destination::Text(_))) | None => None,
        };
        if let Some((digest, blob)) = blob
            && !self.blobs.insert(digest, blob)
        {
            return Err(BodyError::DigestRepeated { digest });
        }
        self.verifier = self.hash.map(Verifier::new);
        match usize::try_from(bytes) {
            // Text goes where no device can change it while it is parsed.
            Ok(_) if last == Some(true) => {
                self.current = Some((digest, Destination::Text(Vec::new())));
            }
            Ok(length) if self.is_private(bytes) => {
                self.private_bytes += bytes;
                let to = Vec::with_capacity(length);
                self.current = Some((digest, Destination::Private(to)));
            }
            _ => {
                self.staged_bytes = self.staged_bytes.saturating_add(bytes);
                self.unplaced = Some((digest, bytes));
                self.has_room(0)?;
            }
        }
        Ok(())
    }

    /// Whether a blob of so many bytes is held in the server's own memory.
    fn is_private(&self, bytes: u64) -> bool {
        let limits = &self.config.shard;
        let left = limits.private_bytes_per_body_max.saturating_sub(self.private_bytes);
        bytes <= limits.private_blob_bytes_max.min(left)
    }

    /// The current blob is complete.
    fn end(&mut self) -> Result<(), BodyError> {
        self.last = self.current.take();
        if let (Some(verifier), Some((name, _))) = (self.verifier.take(), &self.last) {
            verifier.finish(*name)?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], place: ops::Range<usize>) {
        let is_whole = self.envelope.payload_remaining() == 0;
        let Some((_, destination)) = &mut self.current else { return };
        if let Some(verifier) = &mut self.verifier {
            verifier.update(bytes);
        }
        match destination {
            Destination::Text(to) if is_whole && to.is_empty() => {
                *destination = Destination::InPlace(place);
            }
            Destination::Private(to) | Destination::Text(to) => to.extend_from_slice(bytes),
            Destination::Staged { range, filled, .. } => {
                range.slice_mut()[*filled..*filled + bytes.len()].copy_from_slice(bytes);
            }
            Destination::InPlace(_) => {}
        }
        self.arrived(bytes.len());
    }

    /// The next `bytes` bytes of the current blob are where they belong.
    fn arrived(&mut self, bytes: usize) {
        if let Some((_, Destination::Staged { filled, .. })) = &mut self.current {
            *filled += bytes;
        }
    }
}

//! The body of a request as it arrives: blobs into memory, the last of them the command text.
//!
//! Owns: where each blob's bytes go. Short ones go into private memory. Long ones go into staging
//! memory, which devices take them from, so that they can be received there directly. Memory is
//! charged as bytes arrive, not as they are promised.

use std::rc::Rc;

use super::Config;
use crate::blob::Digest;
use crate::device::DeviceError;
use crate::device::shared::{Heap, Range};
use crate::engine::{Blob, Blobs};
use crate::http::{BodyLength, Status};
use crate::wire::WireError;
use crate::wire::envelope::{Envelope, Event};

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("blob {digest} is named twice in one batch")]
    DigestRepeated { digest: Digest },
    #[error("no staging memory for {bytes} bytes: {cause}")]
    Staging { bytes: u64, cause: DeviceError },
    #[error("the command text has {bytes} bytes, the limit is {bytes_max}")]
    TextTooLong { bytes: u64, bytes_max: u64 },
    #[error("bad body: {0}")]
    Wire(#[from] WireError),
}

impl BodyError {
    pub(super) fn status(&self) -> Status {
        match self {
            BodyError::DigestRepeated { .. } => Status::BadRequest,
            BodyError::Staging { .. } => Status::ServiceUnavailable,
            BodyError::TextTooLong { .. } => Status::ContentTooLarge,
            BodyError::Wire(_) => Status::BadRequest,
        }
    }
}

/// A blob whose bytes arrive.
enum Destination {
    Private(Vec<u8>),
    Staged { range: Range, filled: usize },
}

/// A request's body.
pub(super) struct Body<'c> {
    config: &'c Config,
    staging: &'c Heap,
    envelope: Envelope,
    current: Option<(Digest, Destination)>,
    /// The last complete blob: text if no other follows.
    last: Option<(Digest, Destination)>,
    blobs: Blobs,
}

impl<'c> Body<'c> {
    /// A body whose long blobs go to `staging`, which belongs to one connection.
    pub(super) fn new(config: &'c Config, staging: &'c Heap, length: BodyLength) -> Body<'c> {
        let body_bytes = match length {
            BodyLength::Chunked => None,
            BodyLength::Known(bytes) => Some(bytes),
        };
        Body {
            config,
            staging,
            envelope: Envelope::new(config.envelope, body_bytes),
            current: None,
            last: None,
            blobs: Blobs::default(),
        }
    }

    /// Where up to `bytes_max` of the body's next bytes may be received directly, if that is worth
    /// while.
    pub(super) fn direct(&mut self, bytes_max: usize) -> Result<Option<&mut [u8]>, BodyError> {
        let Some((_, Destination::Staged { range, filled })) = &mut self.current else {
            return Ok(None);
        };
        let end = filled.saturating_add(bytes_max).min(range.slice().len());
        charge(range, end)?;
        Ok((end > *filled).then(|| &mut range.slice_mut()[*filled..end]))
    }

    /// Takes note of bytes received where [`Body::direct`] said.
    pub(super) fn advance(&mut self, bytes: usize) -> Result<(), BodyError> {
        self.envelope.advance_payload(bytes as u64);
        if let Some((_, Destination::Staged { filled, .. })) = &mut self.current {
            *filled += bytes;
        }
        self.take(&[])
    }

    /// Takes bytes from the receive buffer.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        let mut input = bytes;
        loop {
            let step = self.envelope.next(input)?;
            let (taken, rest) = input.split_at(step.consumed);
            input = rest;
            match step.event {
                Event::BlobStart { digest, bytes, last } => self.begin(digest, bytes, last)?,
                Event::Payload => self.put(taken)?,
                Event::BlobEnd => self.last = self.current.take(),
                Event::NeedMore => return Ok(()),
            }
        }
    }

    /// The command text, and the blobs before it.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Blobs), BodyError> {
        self.envelope.finish()?;
        // Of a chunked body the last blob is known only now; text is parsed from private memory.
        let text = match self.last {
            Some((_, Destination::Private(text))) => text,
            Some((_, Destination::Staged { range, .. })) => range.slice().to_vec(),
            None => Vec::new(),
        };
        Ok((text, self.blobs))
    }

    /// `last` says whether this blob is the command text, where that is known already.
    fn begin(&mut self, digest: Digest, bytes: u64, last: Option<bool>) -> Result<(), BodyError> {
        let text_bytes_max = self.config.wire.text_bytes_max as u64;
        if last == Some(true) && bytes > text_bytes_max {
            return Err(BodyError::TextTooLong { bytes, bytes_max: text_bytes_max });
        }
        if let Some((digest, destination)) = self.last.take() {
            let blob = match destination {
                Destination::Private(bytes) => Blob::Private(bytes.into()),
                Destination::Staged { range, .. } => Blob::Staged(Rc::new(range)),
            };
            if !self.blobs.insert(digest, blob) {
                return Err(BodyError::DigestRepeated { digest });
            }
        }
        let destination = match usize::try_from(bytes) {
            // Text goes where no device can change it while it is parsed.
            Ok(_) if last == Some(true) => Destination::Private(Vec::new()),
            Ok(length) if bytes <= self.config.shard.private_blob_bytes_max => {
                Destination::Private(Vec::with_capacity(length))
            }
            _ => {
                let range = self
                    .staging
                    .reserve(bytes)
                    .map_err(|cause| BodyError::Staging { bytes, cause })?;
                Destination::Staged { range, filled: 0 }
            }
        };
        self.current = Some((digest, destination));
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        match &mut self.current {
            Some((_, Destination::Private(to))) => to.extend_from_slice(bytes),
            Some((_, Destination::Staged { range, filled })) => {
                let end = *filled + bytes.len();
                charge(range, end)?;
                range.slice_mut()[*filled..end].copy_from_slice(bytes);
                *filled = end;
            }
            None => {}
        }
        Ok(())
    }
}

fn charge(range: &Range, bytes: usize) -> Result<(), BodyError> {
    let bytes = bytes as u64;
    range.charge(bytes).map_err(|cause| BodyError::Staging { bytes, cause })
}

//! `blob/*`: taking a body apart, hashing it, and copying it, on the same memory.
//!
//! A piece is hashed again and again, so that it is in the processor's caches, as after its
//! arrival; a stream is longer than they are.

mod support;

use std::hint::black_box;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use outboard::blob::Digest;
use outboard::config::EnvelopeLimits;
use outboard::wire::Envelope;
use outboard::wire::envelope::{self, Event};
use sha2::Digest as _;
use support::wall::{self, measure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PIECES: [(&str, usize); 4] =
    [("16_kib", 16 << 10), ("64_kib", 64 << 10), ("256_kib", 256 << 10), ("1_mib", 1 << 20)];
const STREAM_BYTES: usize = 256 << 20;
/// What a socket is read by.
const STREAM_PIECE_BYTES: usize = 128 << 10;

/// Blobs and payload bytes of a body that arrives in pieces.
fn take_apart(body: &[u8], piece_bytes: usize) -> (usize, usize) {
    let mut envelope = Envelope::new(EnvelopeLimits::default(), Some(body.len() as u64));
    let (mut blobs, mut bytes) = (0, 0);
    for mut piece in body.chunks(piece_bytes) {
        loop {
            let step = envelope.next(piece).expect("the body is well-formed");
            piece = &piece[step.consumed..];
            match step.event {
                Event::BlobEnd => blobs += 1,
                Event::BlobStart { .. } => {}
                Event::NeedMore => break,
                Event::Payload => bytes += step.consumed,
            }
        }
    }
    (blobs, bytes)
}

fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("blob/envelope");
    for (shape, blobs, blob_bytes, piece_bytes) in [
        ("64_bytes_x1000", 1_000, 64, 64 << 10),
        ("4_kib_x100", 100, 4 << 10, 64 << 10),
        ("16_mib_in_64_kib_pieces", 1, 16 << 20, 64 << 10),
    ] {
        let blob = vec![7; blob_bytes];
        let mut body = Vec::new();
        for _ in 0..blobs {
            envelope::append(&mut body, Digest([9; 32]), &blob);
        }
        measure(&mut group, shape, blobs, body.len(), || {
            let got = take_apart(black_box(&body), piece_bytes);
            assert_eq!(got, (blobs, blobs * blob_bytes));
        });
    }
    group.finish();
}

fn hashing(criterion: &mut Criterion) {
    let memory: Vec<u8> = (0..STREAM_BYTES).map(|i| (i * 31).to_le_bytes()[1]).collect();
    let mut copy = vec![0; STREAM_BYTES];

    let mut group = criterion.benchmark_group("blob/blake3");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let mut hasher = blake3::Hasher::new();
    for (shape, bytes) in PIECES {
        measure(&mut group, shape, 1, bytes, || {
            hasher.update(black_box(&memory[..bytes]));
        });
    }
    measure(&mut group, "256_mib_stream", 1, STREAM_BYTES, || {
        let mut hasher = blake3::Hasher::new();
        memory.chunks(STREAM_PIECE_BYTES).for_each(|piece| {
            hasher.update(piece);
        });
        hasher.finalize()
    });
    group.finish();

    let mut group = criterion.benchmark_group("blob/sha256");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let mut hasher = sha2::Sha256::new();
    for (shape, bytes) in PIECES {
        measure(&mut group, shape, 1, bytes, || hasher.update(black_box(&memory[..bytes])));
    }
    measure(&mut group, "256_mib_stream", 1, STREAM_BYTES, || {
        let mut hasher = sha2::Sha256::new();
        memory.chunks(STREAM_PIECE_BYTES).for_each(|piece| hasher.update(piece));
        hasher.finalize()
    });
    group.finish();

    let mut group = criterion.benchmark_group("blob/memcpy");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for (shape, bytes) in PIECES {
        measure(&mut group, shape, 1, bytes, || {
            copy[..bytes].copy_from_slice(black_box(&memory[..bytes]));
            black_box(&mut copy);
        });
    }
    measure(&mut group, "256_mib_stream", 1, STREAM_BYTES, || {
        let pieces = copy.chunks_mut(STREAM_PIECE_BYTES).zip(memory.chunks(STREAM_PIECE_BYTES));
        pieces.for_each(|(to, from)| to.copy_from_slice(black_box(from)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = wall::criterion();
    targets = framing, hashing
}
criterion_main!(benches);

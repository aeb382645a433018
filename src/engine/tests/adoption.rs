//! When a blob becomes its buffer's memory, and when it is copied.

use std::rc::Rc;
use std::sync::Arc;

use super::{Bench, parse_for};
use crate::blob::Digest;
use crate::config::DeviceLimits;
use crate::device::shared::{Budget, Heap};
use crate::engine::{Batch, Blob, Owner, Progress, Reply};
use crate::rdma::NullFabric;

const BYTES: usize = 256 << 10;
const LONG: Digest = Digest([7; 32]);
const CLIENT: Owner = Owner::Connection(1);

const READY: &str = "BufferAlloc(1, 262144, $spec, session=$a), ProgramAlloc('p', $add1, \
                     session=$a)";
const COPY: &str = "CopyIn(1, $long, session=$a)";
const EXEC: &str = "ProgramExec('p', $add1, (1,), (), None, None, False, session=$a)";
const OUT: &str = "CopyOut(1, session=$a)";

/// An engine and the staging memory of one connection.
struct Uploads {
    bench: Bench,
    staged: Arc<Budget>,
    staging: Heap,
}

impl Uploads {
    fn new() -> Uploads {
        let staged = Arc::new(Budget::new(64 << 20));
        let staging = Heap::new(Arc::clone(&staged));
        let mut bench = Bench::new();
        bench.ok(READY);
        Uploads { bench, staged, staging }
    }

    /// A batch whose blob `$long` is so many times `byte`.
    fn batch(&self, text: &str, byte: u8, owner: Owner) -> Batch<'static> {
        let mut batch = parse_for(&text.replace("$long", &format!("'{LONG}'")), owner);
        let bytes = BYTES as u64;
        let mut range = self.staging.reserve(bytes).unwrap();
        range.charge(bytes).unwrap();
        range.slice_mut().fill(byte);
        batch.blobs.insert(LONG, Blob::Staged(Rc::new(range)));
        batch
    }

    fn run(&mut self, mut batch: Batch<'_>) -> Vec<u8> {
        loop {
            match self.bench.engine.advance(&mut batch, self.bench.now) {
                Progress::Done(Reply::Ok(output)) => return output.as_bytes().to_vec(),
                Progress::Wait(wait) => assert!(self.bench.engine.is_over(&wait, self.bench.now)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs commands, checks that the buffer has this byte throughout after them, and tells whether
    /// the blob was copied: its own memory is free again then.
    fn copies(&mut self, text: &str, owner: Owner, expected: u8) -> bool {
        let kept = self.staging.kept_bytes();
        self.run(self.batch(text, 5, owner));
        assert_eq!(self.bench.ok(OUT), [expected; BYTES]);
        self.bench.engine.tick(self.bench.now);
        self.staging.kept_bytes() > kept
    }

    /// Ends everything and checks that nothing is left of the budgets.
    fn finish(mut self) {
        self.bench.engine.release(CLIENT);
        assert_eq!(self.bench.budget.used(), 0);
        assert_eq!(self.staged.used(), 0);
        drop(self.staging);
        assert_eq!(self.staged.kept(), 0);
    }
}

#[test]
fn blob_that_fills_a_buffer_becomes_its_memory() {
    let mut uploads = Uploads::new();
    let before = uploads.bench.budget.used();
    assert!(!uploads.copies(COPY, CLIENT, 5));
    assert_eq!(uploads.bench.budget.used(), before, "one memory took the place of the other");
    assert_eq!(uploads.staged.used(), 0);
    // The memory that it replaces goes to the next blob.
    uploads.run(uploads.batch(COPY, 6, CLIENT));
    uploads.bench.engine.tick(uploads.bench.now);
    assert_eq!(uploads.staging.kept_bytes(), BYTES as u64);
    assert!(!uploads.copies(COPY, CLIENT, 5));
    uploads.finish();
}

#[test]
fn blob_is_copied_where_a_view_of_the_buffer_lives() {
    let mut uploads = Uploads::new();
    uploads.bench.ok("BufferOffset(2, 1, 9, 1, session=$a)");
    assert!(uploads.copies(COPY, CLIENT, 5));
    assert_eq!(uploads.bench.ok("CopyOut(2, session=$a)"), [5]);
    uploads.bench.ok("BufferOffset(3, 262144, 0, 1, session=$a), BufferFree(1, session=$a)");
    let text = "CopyIn(3, $long, session=$a)";
    uploads.run(uploads.batch(text, 6, CLIENT));
    assert_eq!(uploads.bench.ok("CopyOut(2, session=$a)"), [6]);
    uploads.finish();
}

#[test]
fn blob_is_copied_where_a_peer_knows_the_memory() {
    let mut uploads = Uploads::new();
    uploads.bench.engine = uploads.bench.engine.with_fabric(Box::new(NullFabric::default()));
    let ask = "BufferIOVAS([($a, 1)], session=$a)";
    let told = uploads.bench.ok(ask);
    assert!(uploads.copies(COPY, CLIENT, 5));
    assert_eq!(uploads.bench.ok(ask), told);
    uploads.finish();
}

#[test]
fn blob_is_copied_where_a_graph_holds_the_buffer() {
    let mut uploads = Uploads::new();
    uploads.bench.ok(
        "GraphAlloc(1, (GraphComputeItem($a, 'p', $add1, (1,), (), {}, (), (0,), None, None),), \
         (), {}, session=$a)",
    );
    assert!(uploads.copies(COPY, CLIENT, 5));
    uploads.bench.ok("GraphExec(1, (), {}, False, session=$a)");
    assert_eq!(uploads.bench.ok(OUT), [6; BYTES]);
    uploads.bench.ok("GraphFree(1, session=$a)");
    assert!(!uploads.copies(COPY, CLIENT, 5));
    uploads.finish();
}

#[test]
fn blob_that_two_commands_name_is_copied_for_both() {
    let mut uploads = Uploads::new();
    let text = format!(
        "BufferAlloc(2, 262144, $spec, session=$a), CopyIn(2, $long, session=$a), {COPY}, {EXEC}"
    );
    assert!(uploads.copies(&text, CLIENT, 6));
    assert_eq!(uploads.bench.ok("CopyOut(2, session=$a)"), [5; BYTES]);
    uploads.finish();
}

#[test]
fn blob_of_another_connection_is_copied() {
    let mut uploads = Uploads::new();
    assert!(uploads.copies(COPY, Owner::Connection(2), 5));
    uploads.finish();
}

#[test]
fn work_queued_before_a_blob_goes_on_with_the_old_memory() {
    let mut uploads = Uploads::new();
    assert!(!uploads.copies(COPY, CLIENT, 5));
    uploads.bench.control.hold();
    uploads.run(uploads.batch(&format!("{EXEC}, {COPY}, {EXEC}"), 10, CLIENT));
    uploads.bench.engine.tick(uploads.bench.now);
    assert_eq!(uploads.staging.kept_bytes(), 0, "the old memory is still in use");
    uploads.bench.control.release();
    assert_eq!(uploads.bench.ok(OUT), [11; BYTES]);
    uploads.bench.engine.tick(uploads.bench.now);
    assert_eq!(uploads.staging.kept_bytes(), BYTES as u64);
    uploads.finish();
}

#[test]
fn blob_below_the_limit_or_in_part_of_a_buffer_is_copied() {
    let mut uploads = Uploads::new();
    uploads.bench.ok(
        "BufferAlloc(2, 262145, $spec, session=$a), BufferOffset(3, 262144, 1, 2, session=$a), \
         BufferFree(2, session=$a)",
    );
    // The view is all that is left, and is not the whole.
    uploads.run(uploads.batch("CopyIn(3, $long, session=$a)", 8, CLIENT));
    assert_eq!(uploads.bench.ok("CopyOut(3, session=$a)"), [8; BYTES]);
    assert_eq!(uploads.staging.kept_bytes(), BYTES as u64);
    assert!(DeviceLimits::STAGED_SEGMENT_BYTES_MIN <= BYTES as u64, "else none is adopted");
    let short = uploads.staging.reserve(DeviceLimits::STAGED_SEGMENT_BYTES_MIN - 1).unwrap();
    assert_eq!(uploads.staging.kept_bytes(), BYTES as u64, "short ones do not take it");
    drop(short);
    uploads.finish();
}

//! An engine on null devices, driven by hand.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outboard::blob::Digest;
use outboard::config::{EngineLimits, WireLimits};
use outboard::device::null::NullPlatform;
use outboard::device::shared::Budget;
use outboard::engine::{
    Batch, Blob, Blobs, Directory, Engine, Home, Output, Owner, Progress, Reply,
};

use super::corpus::{self, Recorded};
use super::spelling::{DATA, SOURCE, Session, batch};

/// An engine whose devices do nothing, at once.
pub(crate) struct Bench {
    engine: Engine,
    now: Instant,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let platform = NullPlatform::new(16, Arc::new(Budget::new(64 << 30)));
        let directory = Arc::new(Directory::default());
        let engine = Engine::new(Box::new(platform), EngineLimits::default(), directory, Home(0));
        Bench { engine, now: Instant::now() }
    }

    /// A session with buffers 0 and 1 of 4 bytes, the program, and graph 0 of ten kernels.
    pub(crate) fn ready(session: &Session) -> Bench {
        let mut bench = Bench::new();
        let commands =
            [session.alloc(0, 4), session.alloc(1, 4), session.program(), session.graph(0, 10)];
        bench.expect(parse(&batch(&commands)));
        bench
    }

    /// Runs a batch to its end.
    pub(crate) fn run(&mut self, batch: &mut Batch<'_>) -> Reply {
        loop {
            match self.engine.advance(batch, self.now) {
                Progress::Done(reply) => return reply,
                Progress::Pause => {}
                Progress::Wait(wait) => {
                    assert!(self.engine.is_over(&wait, self.now), "waits for ever: {wait:?}");
                }
                Progress::Forward(home) => unreachable!("one shard is all there is: {home:?}"),
                Progress::Join | Progress::Peer(_) => unreachable!("one host is all there is"),
            }
        }
    }

    /// Runs a batch that has to succeed.
    pub(crate) fn expect(&mut self, mut batch: Batch<'_>) -> Output {
        match self.run(&mut batch) {
            Reply::Ok(output) => output,
            Reply::Failed(text) => panic!("{text}"),
        }
    }

    /// Ends all sessions, as when their connection has gone.
    pub(crate) fn release(&mut self) {
        self.engine.release(Owner::Connection(1));
    }
}

/// A batch with the source and four bytes of data as its blobs.
pub(crate) fn parse(text: &str) -> Batch<'_> {
    let mut blobs = Blobs::default();
    for (name, bytes) in [(SOURCE, &b"source"[..]), (DATA, &[1, 2, 3, 4])] {
        let digest = Digest::from_hex(name.as_bytes()).expect("names are hexadecimal");
        blobs.insert(digest, Blob::Private(Rc::from(bytes)));
    }
    parse_with(text, blobs)
}

pub(crate) fn parse_with(text: &str, blobs: Blobs) -> Batch<'_> {
    Batch::parse(text.as_bytes(), blobs, Owner::Connection(1), &WireLimits::default())
        .expect("a text that the client could have sent")
}

/// The first batches of a recording, up to where others were left out of it: what names a buffer
/// that was made in between would fail.
pub(crate) fn replayable(name: &str) -> Vec<Recorded> {
    let mut bench = Bench::new();
    let mut batches = corpus::load(name);
    let runs = |batch: &Recorded| {
        matches!(bench.run(&mut parse_with(&batch.text, batch.blobs())), Reply::Ok(_))
    };
    let count = batches.iter().map(runs).take_while(|runs| *runs).count();
    batches.truncate(count);
    batches
}

//! `engine/*`: batches on devices that do nothing, at once; time per command.
//!
//! Parsing does not count, but where a name says `replay`: there a recording is parsed and
//! run, its sessions begun and ended. What the null devices do for a command is part of its time.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use support::corpus::{self, Recorded};
use support::null::{Bench, parse, parse_with, replayable};
use support::spelling::{Session, batch};
use support::wall::{self, measure, measure_after};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands in one batch, where there are many.
const MANY: usize = 10_000;

fn commands(criterion: &mut Criterion) {
    let session = Session::new(0, 7);
    let mut bench = Bench::ready(&session);
    let pair = |commands: [String; 2]| batch(&vec![commands; MANY / 2].concat());
    let view = [session.offset(9, 2, 2, 0), session.free(9)];
    let texts = [
        ("engine/batch", "empty", 1, batch(&[])),
        ("engine/program_exec", "x1", 1, batch(&[session.exec(false)])),
        ("engine/program_exec", "x10000", MANY, batch(&vec![session.exec(false); MANY])),
        ("engine/program_exec", "wait", 1, batch(&[session.exec(true)])),
        ("engine/buffer_alloc_free", "4_bytes", MANY, pair([session.alloc(9, 4), session.free(9)])),
        (
            "engine/buffer_alloc_free",
            "1_mib",
            MANY,
            pair([session.alloc(9, 1 << 20), session.free(9)]),
        ),
        ("engine/buffer_offset_free", "2_bytes", MANY, pair(view)),
        ("engine/copy_in", "4_bytes_x10000", MANY, batch(&vec![session.copy_in(0); MANY])),
        ("engine/copy_out", "4_bytes", 1, batch(&[session.copy_out(0)])),
        (
            "engine/transfer",
            "4_bytes_x10000",
            MANY,
            batch(&vec![session.transfer(0, &session, 1); MANY]),
        ),
        ("engine/event_wait", "x10000", MANY, pair([session.event(&session, 1), session.wait(1)])),
        ("engine/graph_exec", "10_kernels", 1, batch(&[session.graph_exec(0, false)])),
        ("engine/graph_exec", "10_kernels_wait", 1, batch(&[session.graph_exec(0, true)])),
        ("engine/get_properties", "x1", 1, batch(&[session.properties()])),
    ];
    for (operation, shape, count, text) in &texts {
        let mut group = criterion.benchmark_group(*operation);
        let run = |batch| bench.expect(batch);
        measure_after(&mut group, shape, *count, 0, || parse(text), run);
        group.finish();
    }
}

fn graphs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/graph_alloc_free");
    let session = Session::new(0, 7);
    let mut bench = Bench::ready(&session);
    for kernels in [10, 1_000] {
        let text = batch(&[session.graph(1, kernels), session.graph_free(1)]);
        let shape = format!("{kernels}_kernels");
        measure_after(&mut group, &shape, 1, 0, || parse(&text), |batch| bench.expect(batch));
    }
    group.finish();
}

/// Recordings, parsed, run, and their sessions ended.
fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/replay");
    for name in corpus::MIXED {
        let batches = replayable(name);
        let commands = batches.iter().map(Recorded::commands).sum();
        let bytes = batches.iter().map(|batch| batch.text.len()).sum();
        let blobs: Vec<_> = batches.iter().map(Recorded::blobs).collect();
        let mut bench = Bench::new();
        measure(&mut group, name, commands, bytes, || {
            for (batch, blobs) in batches.iter().zip(&blobs) {
                bench.expect(parse_with(&batch.text, blobs.clone()));
            }
            bench.release();
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = wall::criterion();
    targets = commands, graphs, replay
}
criterion_main!(benches);

//! `wire/*`: command texts to commands, replies to text; time per command.
//!
//! Memory for the tape is used again, as a connection does. Reading order: [`parse`], [`recorded`],
//! [`print`].

mod support;

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use outboard::wire::reply::{RemoteException, RemoteProperties, Renderer, Seconds};
use support::corpus;
use support::parser::Parser;
use support::spelling::{Session, batch};
use support::wall::{self, measure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn parse_text(group: &mut BenchmarkGroup<'_, WallTime>, shape: &str, commands: usize, text: &str) {
    let mut parser = Parser::default();
    measure(group, shape, commands, text.len(), || {
        assert_eq!(parser.parse(black_box(text)), commands);
    });
}

fn parse(criterion: &mut Criterion) {
    let session = Session::new(0, 7);
    let mut group = criterion.benchmark_group("wire/parse_program_exec");
    for count in [1, 100, 10_000] {
        let text = batch(&vec![session.exec(false); count]);
        parse_text(&mut group, &format!("x{count}"), count, &text);
    }
    group.finish();

    // A space that the client does not write: what any other client's text costs.
    let mut group = criterion.benchmark_group("wire/parse_tape");
    let exec = session.exec(false).replace("(session=", "( session=");
    parse_text(&mut group, "program_exec_x100", 100, &batch(&vec![exec; 100]));
    let alloc = session.alloc(0, 4).replace("(session=", "( session=");
    parse_text(&mut group, "buffer_alloc_x100", 100, &batch(&vec![alloc; 100]));
    group.finish();

    let mut group = criterion.benchmark_group("wire/parse_graph_alloc");
    for kernels in [10, 1_000] {
        parse_text(
            &mut group,
            &format!("{kernels}_kernels"),
            1,
            &batch(&[session.graph(0, kernels)]),
        );
    }
    group.finish();
}

/// All batches of a recording, one after the other.
fn recorded(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/parse_recorded");
    for name in corpus::MIXED {
        let batches = corpus::load(name);
        let commands = batches.iter().map(corpus::Recorded::commands).sum();
        let bytes = batches.iter().map(|batch| batch.text.len()).sum();
        let mut parser = Parser::default();
        measure(&mut group, name, commands, bytes, || {
            let mut count = 0;
            for batch in &batches {
                count += parser.parse(&batch.text);
            }
            assert_eq!(count, commands);
        });
    }
    group.finish();
}

fn print(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/print");
    let properties = RemoteProperties {
        real_device: "CPU",
        renderer: Renderer {
            module: "tinygrad.renderer.cstyle",
            class: "ClangRenderer",
            arguments: "()",
        },
        offset_supported: true,
        graph_supported: true,
        graph_supports_multi: true,
        ib_gid: None,
    };
    let message = "command 17 (CopyOut): unknown buffer 4711 (and 3 later commands failed)";
    let mut out = String::new();
    let mut printed = |shape: &str, value: &dyn std::fmt::Display| {
        let bytes = value.to_string().len();
        measure(&mut group, shape, 1, bytes, || {
            out.clear();
            write!(out, "{}", black_box(value)).expect("a string takes what is written to it");
        });
    };
    printed("properties", &properties);
    printed("exception", &RemoteException { message });
    printed("seconds", &Seconds(1.2345e-5));
    group.finish();
}

criterion_group! {
    name = benches;
    config = wall::criterion();
    targets = parse, recorded, print
}
criterion_main!(benches);

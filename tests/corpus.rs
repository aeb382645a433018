//! Every recorded batch of the stock client, read and printed again, is the same text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use outboard::config::WireLimits;
use outboard::wire::command::GraphItem;
use outboard::wire::{Command, Tape, parse_batch, parse_batch_with, write_batch};

fn recordings() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn batches(path: &Path) -> impl Iterator<Item = String> {
    let lines = BufReader::new(flate2::read::GzDecoder::new(File::open(path).unwrap())).lines();
    lines.map(|line| {
        let batch: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        batch["commands"].as_str().unwrap().to_owned()
    })
}

#[test]
fn recorded_batch_read_and_printed_is_the_same_text() {
    let mut tape = Tape::new();
    let (mut count, mut commands, mut shared) = (0, 0, 0);
    for path in recordings() {
        for text in batches(&path) {
            let requests = parse_batch_with(&mut tape, text.as_bytes(), &WireLimits::default())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut printed = String::new();
            write_batch(&mut printed, &requests).unwrap();
            if printed != text {
                let at = printed.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
                let around = at.saturating_sub(80)..(at + 80).min(text.len().min(printed.len()));
                let (ours, theirs) = (&printed[around.clone()], &text[around]);
                panic!("{}: byte {at}:\n{ours}\n{theirs}", path.display());
            }
            for request in &requests {
                let name = &text[request.offset..];
                assert!(name.starts_with(request.command.name()));
            }
            count += 1;
            commands += requests.len();
            shared += usize::from(text.contains(":="));
        }
    }
    assert!(count > 1000 && commands > 10_000 && shared > 0, "{count} {commands} {shared}");
}

/// A space that the client does not write keeps a command off the short way of reading.
#[test]
fn recorded_batch_with_other_spaces_is_read_as_the_same() {
    for path in recordings() {
        for text in batches(&path) {
            let spaced = text.replace("(session=", "( session=");
            let limits = WireLimits::default();
            let requests = parse_batch(text.as_bytes(), &limits).unwrap();
            let again = parse_batch(spaced.as_bytes(), &limits).unwrap();
            assert_eq!(requests.len(), again.len());
            for (one, other) in requests.iter().zip(&again) {
                assert_eq!((&one.session, &one.command), (&other.session, &other.command));
            }
        }
    }
}

#[test]
fn recorded_graphs_have_launch_sizes_that_can_be_computed() {
    let text = r"UOp(Ops.DEFINE_VAR, dtypes.int, arg=('i', 1, 10), src=())";
    let mut computed = 0;
    for path in recordings() {
        for batch in batches(&path).filter(|batch| batch.contains(text)) {
            let requests = parse_batch(batch.as_bytes(), &WireLimits::default());
            for request in requests.unwrap() {
                let Command::GraphAlloc(graph) = request.command else { continue };
                for item in &*graph.items {
                    let GraphItem::Compute(item) = item else { continue };
                    let Some(global) = &item.global else { continue };
                    let sizes = global.eval(&|name| graph.values.lookup(name));
                    assert!(sizes.unwrap().as_slice().iter().all(|&size| size > 0));
                    computed += 1;
                }
            }
        }
    }
    assert!(computed > 0);
}

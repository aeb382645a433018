//! Histories of clients, two shards, slow and mortal devices and dying connections, made of seeds
//! and compared with a reference model; see `pair/mod.rs`.
//!
//! A difference names its seed in one line:
//! `OUTBOARD_PAIR_SEED=17 cargo test --test pair replay -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pair/mod.rs"]
#[expect(unreachable_pub, reason = "the fuzzers have these modules too")]
mod sim;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::model::{MISTAKES, Mistake};
use sim::pick::Pick;
use sim::world::{Report, simulate};

const SEED: &str = "OUTBOARD_PAIR_SEED";

/// What is printed when a history ends with a panic.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", replay(self.0));
        }
    }
}

fn replay(seed: u64) -> String {
    format!("replay: {SEED}={seed} cargo test --test pair replay -- --nocapture")
}

fn history(seed: u64, mistake: Option<Mistake>) -> Result<Report, String> {
    let _named = Named(seed);
    simulate(Pick::Seed(seed), mistake)
}

/// All histories of these seeds, on all cores.
fn check(seeds: Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let reports = thread::scope(|scope| {
        let work = || {
            let mut sum = Report::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return sum;
                }
                match history(seed, None) {
                    Ok(report) => {
                        sum.outputs += report.outputs;
                        sum.replies += report.replies;
                        sum.deaths += report.deaths;
                        sum.losses += report.losses;
                    }
                    Err(difference) => panic!("{difference}; {}", replay(seed)),
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{reports:?}");
    // Histories in which little happens show little.
    let counts: [fn(&Report) -> usize; 4] =
        [|r| r.outputs, |r| r.replies, |r| r.deaths, |r| r.losses];
    for happened in counts {
        let sum: usize = reports.iter().map(happened).sum();
        assert!(sum as u64 > (seeds.end - seeds.start) / 20);
    }
}

#[test]
fn histories_of_two_thousand_seeds_are_as_the_model_says() {
    check(0..2000);
}

#[test]
#[ignore = "half an hour with --release"]
fn histories_of_a_million_seeds_are_as_the_model_says() {
    check(0..1_000_000);
}

#[test]
fn replay_of_a_seed_is_as_the_model_says() {
    let Ok(seed) = std::env::var(SEED) else { return };
    println!("{:?}", history(seed.parse().expect("a number"), None).unwrap());
}

/// What the fuzzers begin with.
#[test]
fn histories_of_committed_bytes_are_as_the_model_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/engine_sequence");
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let history = simulate(Pick::of_bytes(&fs::read(&path).unwrap()), None);
        assert!(history.is_ok(), "{}: {history:?}", path.display());
    }
}

#[test]
fn model_with_a_wrong_rule_is_found_out() {
    for mistake in MISTAKES {
        let found = (0..2000).find(|seed| history(*seed, Some(mistake)).is_err());
        println!("{mistake:?}: seed {found:?}");
        assert!(found.is_some(), "{mistake:?}");
    }
}

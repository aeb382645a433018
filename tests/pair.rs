//! Histories of clients, two shards, slow and mortal devices and dying connections, and of two
//! hosts that copy to each other, made of seeds and compared with a reference model; see
//! `pair/mod.rs`.
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

use sim::books::{WRONG, Wrong};
use sim::hosts;
use sim::model::{MISTAKES, Mistake};
use sim::pick::Pick;
use sim::story::tell;
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

/// The same of two hosts.
fn history_of_hosts(seed: u64, wrong: Option<Wrong>) -> Result<hosts::Report, String> {
    let _named = Named(seed);
    tell(Pick::Seed(seed), wrong)
}

/// All histories of these seeds, on all cores; what happened in each, as counts.
fn check<const COUNTS: usize>(
    seeds: Range<u64>,
    history: impl Fn(u64) -> Result<[usize; COUNTS], String> + Sync,
) {
    let next = AtomicU64::new(seeds.start);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let sums = thread::scope(|scope| {
        let work = || {
            let mut sums = [0; COUNTS];
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return sums;
                }
                match history(seed) {
                    Ok(counts) => sums.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more),
                    Err(difference) => panic!("{difference}; {}", replay(seed)),
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    println!("{sums:?}");
    // Histories in which little happens show little.
    for which in 0..COUNTS {
        let sum: usize = sums.iter().map(|sums| sums[which]).sum();
        assert!(sum as u64 > (seeds.end - seeds.start) / 20, "{which}");
    }
}

fn counts(seed: u64) -> Result<[usize; 4], String> {
    let Report { outputs, replies, deaths, losses } = history(seed, None)?;
    Ok([outputs, replies, deaths, losses])
}

fn counts_of_hosts(seed: u64) -> Result<[usize; 4], String> {
    let hosts::Report { outputs, errands, errands_failed, deaths } = history_of_hosts(seed, None)?;
    Ok([outputs, errands - errands_failed, errands_failed, deaths])
}

#[test]
fn histories_of_two_thousand_seeds_are_as_the_model_says() {
    check(0..2000, counts);
}

#[test]
#[ignore = "half an hour with --release"]
fn histories_of_a_million_seeds_are_as_the_model_says() {
    check(0..1_000_000, counts);
}

#[test]
fn histories_of_two_hosts_are_as_the_model_says() {
    check(0..2000, counts_of_hosts);
}

#[test]
#[ignore = "some minutes with --release"]
fn histories_of_two_hosts_of_a_hundred_thousand_seeds_are_as_the_model_says() {
    check(0..100_000, counts_of_hosts);
}

#[test]
fn replay_of_a_seed_is_as_the_model_says() {
    let Ok(seed) = std::env::var(SEED) else { return };
    let seed = seed.parse().expect("a number");
    println!("{:?}", history(seed, None).unwrap());
    println!("{:?}", history_of_hosts(seed, None).unwrap());
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

#[test]
fn model_of_two_hosts_with_a_wrong_rule_is_found_out() {
    for wrong in WRONG {
        let found = (0..2000).find(|seed| history_of_hosts(*seed, Some(wrong)).is_err());
        println!("{wrong:?}: seed {found:?}");
        assert!(found.is_some(), "{wrong:?}");
    }
}

//! Instructions and heap allocations of the parser and the engine: counted, not timed, so that a
//! slower change is told from a busy machine.
//!
//! Each case runs in a process of its own under valgrind's callgrind, which counts what
//! [`outboard_measured`] executes. The counts are compared with those in `base.json`, which is part
//! of the repository, and more than five percent above them is a failure. Counts are those of a
//! compiler, of a C library (whose allocator and memory functions are counted too) and of a kind of
//! processor (which those functions ask for): where there is no base for these, the run says so,
//! passes, and keeps its counts under `target/` as the base of the next run.
//!
//! The allocator is the system's, since mimalloc's instructions would depend on the C compiler as
//! well.
//!
//! Reading order: this file (arguments, the comparison), `cases`, `count` (allocations, valgrind),
//! `base` (the file).

mod base;
mod cases;
mod count;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use clap::Parser;

use base::Base;
use cases::CASES;
use count::Count;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Growth that fails.
const GROWTH_MAX: f64 = 0.05;

/// Counts instructions and allocations, and fails where they have grown by more than 5 %.
#[derive(Parser)]
#[command(name = "instructions")]
struct Args {
    /// Cases to count: those whose name holds one of these [default: all].
    filter: Vec<String>,
    /// Write the counts to the base, as what is expected from now on.
    #[arg(long)]
    bless: bool,
    /// Run one case, for valgrind to count.
    #[arg(long, hide = true, value_name = "NAME")]
    case: Option<String>,
    /// Changes nothing: counting takes as long as it takes.
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.case {
        Some(name) => cases::run(name).map(|()| true),
        None => compare(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Counts and compares. False if something has grown.
fn compare(args: &Args) -> Result<bool> {
    if cfg!(debug_assertions) {
        return Err("these are counts of the program as it is released: use cargo bench".into());
    }
    let chosen = |name: &str| {
        args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part.as_str()))
    };
    let mut base = Base::load()?;
    println!("instructions and allocations with {}", base.environment());
    println!(
        "{:<36} {:>13} {:>13} {:>8} {:>12} {:>12}",
        "case", "instructions", "base", "change", "allocations", "base"
    );
    let (mut grown, mut unknown) = (Vec::new(), 0);
    for case in CASES.iter().filter(|case| chosen(case.name)) {
        let count = count::under_valgrind(case.name)?;
        let before = base.get(case.name);
        print_row(case.name, count, before);
        match before {
            None => unknown += 1,
            Some(before) if count.is_above(before, GROWTH_MAX) => grown.push(case.name),
            Some(_) => {}
        }
        base.set(case.name, count);
    }
    if args.bless {
        base.retain(|name| CASES.iter().any(|case| case.name == name));
        println!("blessed: {}", base.save_expected()?);
        return Ok(true);
    }
    if unknown > 0 {
        println!(
            "\nNO BASE for {unknown} of these cases with this compiler, C library and processor: \
             they were NOT compared.\nThe counts are in {} for the next run; `cargo bench --bench \
             instructions -- --bless` adds them to the repository.",
            base.save_seen()?
        );
    }
    if !grown.is_empty() {
        println!(
            "\nFAILED: more than {:.0} % above the base: {}",
            GROWTH_MAX * 100.0,
            grown.join(", ")
        );
        println!("If that is the price of something: cargo bench --bench instructions -- --bless");
    }
    Ok(grown.is_empty())
}

fn print_row(name: &str, count: Count, before: Option<Count>) {
    let (base, change, allocations) = match before {
        None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        Some(before) => (
            before.instructions.to_string(),
            format!("{:+.2} %", (count.growth(before) - 1.0) * 100.0),
            before.allocations.to_string(),
        ),
    };
    println!(
        "{name:<36} {:>13} {base:>13} {change:>8} {:>12} {allocations:>12}",
        count.instructions, count.allocations
    );
}

/// What is counted: callgrind looks for this name.
#[inline(never)]
#[unsafe(no_mangle)]
fn outboard_measured(case: &mut cases::Running<'_>) {
    count::ALLOCATIONS.during(case);
    // Something after the call, so that it is not a jump that leaves this function behind.
    std::hint::black_box(());
}

//! `allocator/*`: the same work with mimalloc, which the server uses, and with the C library's
//! allocator, in turns.
//!
//! The program runs itself, once for each turn: which allocator serves the process is decided at
//! its first allocation, by an environment variable, and the cost of looking at that decision is
//! the same for both. Reading order: [`main`] and [`compare`] (the turns), [`work`], [`Switch`].

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mimalloc::MiMalloc;
use outboard::cores;
use serde_json::json;
use support::corpus::Recorded;
use support::loopback::{self, Awake, Client, Result};
use support::null::{Bench, parse, parse_with, replayable};
use support::parser;
use support::spelling::{Session, batch};

/// Mimalloc and the C library, alternately.
#[derive(Parser)]
#[command(name = "allocator")]
struct Args {
    /// Rows to measure: those whose name holds one of these [default: all].
    filter: Vec<String>,
    /// Turns of each allocator.
    #[arg(long, default_value_t = 7)]
    turns: usize,
    /// Seconds for each row and turn.
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    seconds: f64,
    /// A short look: one turn each, of 0.05 seconds a row.
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Decides about a process that is to do the work.
const VARIABLE: &CStr = c"OUTBOARD_BENCH_ALLOCATOR";
const CHOICES: [&str; 2] = ["mimalloc", "glibc"];

type Values = BTreeMap<String, f64>;

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.turns, args.seconds) = (1, 0.05);
    }
    if std::env::var_os(VARIABLE.to_str()?).is_some() {
        println!("{}", json!(work(&args)?));
        return Ok(());
    }
    compare(&args)
}

/// Lets processes do the work in turns, and prints medians side by side.
fn compare(args: &Args) -> Result<()> {
    let mut values: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for turn in 0..args.turns {
        for choice in [turn % 2, 1 - turn % 2] {
            let run = Command::new(std::env::current_exe()?)
                .args(&args.filter)
                .arg(format!("--seconds={}", args.seconds))
                .env(VARIABLE.to_str()?, CHOICES[choice])
                .output()?;
            if !run.status.success() {
                return Err(String::from_utf8_lossy(&run.stderr).into());
            }
            for (row, value) in serde_json::from_slice::<Values>(&run.stdout)? {
                values.entry(row).or_default()[choice].push(value);
            }
        }
    }
    println!(
        "{:<40} {:>10} {:>10} {:>7}   medians of {}",
        "allocator/", CHOICES[0], CHOICES[1], "ratio", args.turns
    );
    for (row, values) in &mut values {
        let [mimalloc, glibc] = values.each_mut().map(|values| median(values));
        println!("{row:<40} {mimalloc:>10.1} {glibc:>10.1} {:>7.2}", mimalloc / glibc);
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All work, with the allocator that this process has.
fn work(args: &Args) -> Result<Values> {
    let mut rows = Rows { args, values: Values::new() };
    in_process(&mut rows)?;
    let allowed = cores::allowed()?;
    let (first, last) = allowed.first().zip(allowed.last()).ok_or("there are no cores")?;
    let server = loopback::start(*first, &loopback::null_platform())?;
    loopback::pin(*last)?;
    let mut client = Client::connect(server.addresses()[0])?;
    client.wait_awake(Awake::Yes)?;
    over_loopback(&mut rows, &mut client)?;
    drop(client);
    loopback::stop(server);
    if args.filter.is_empty() {
        rows.values.insert("memory/peak MiB".to_owned(), peak_mebibytes()?);
    }
    Ok(rows.values)
}

/// The parser and the engine, on this thread.
fn in_process(rows: &mut Rows<'_>) -> Result<()> {
    let session = Session::new(0, 7);
    let mut parser = parser::Parser::default();
    let exec = batch(&vec![session.exec(false); 1_000]);
    rows.measure("parse/program_exec ns/command", 1_000, || {
        parser.parse(&exec);
        Ok(())
    })?;
    let graph = batch(&[session.graph(1, 100), session.graph_free(1)]);
    let mut bench = Bench::ready(&session);
    rows.measure("engine/program_exec ns/command", 1_000, || {
        bench.expect(parse(&exec));
        Ok(())
    })?;
    rows.measure("engine/graph_alloc_free ns/kernel", 100, || {
        bench.expect(parse(&graph));
        Ok(())
    })?;
    for name in ["jit", "multitensor"] {
        let batches = replayable(name);
        let blobs: Vec<_> = batches.iter().map(Recorded::blobs).collect();
        let commands = batches.iter().map(Recorded::commands).sum();
        let mut bench = Bench::new();
        rows.measure(&format!("engine/replay_{name} ns/command"), commands, || {
            for (batch, blobs) in batches.iter().zip(&blobs) {
                bench.expect(parse_with(&batch.text, blobs.clone()));
            }
            bench.release();
            Ok(())
        })?;
    }
    Ok(())
}

/// A whole server with null devices, asked by one client that spins.
fn over_loopback(rows: &mut Rows<'_>, client: &mut Client) -> Result<()> {
    let session = Session::new(0, 7);
    let empty = loopback::request(&[], "[]");
    rows.measure("server/empty_batch ns/request", 1, || client.exchange(&empty).map(drop))?;
    let pairs = (0..1_000).flat_map(|number| [session.alloc(number, 4_096), session.free(number)]);
    let flood = loopback::request(&[], &batch(&pairs.collect::<Vec<_>>()));
    rows.measure("server/buffer_alloc_free ns/command", 2_000, || {
        client.exchange(&flood).map(drop)
    })?;
    let one = session.alloc(0, 4_096);
    let (alloc, free) = (
        loopback::request(&[], &batch(&[one])),
        loopback::request(&[], &batch(&[session.free(0)])),
    );
    rows.measure("server/buffer_alloc_free ns/request", 2, || {
        client.exchange(&alloc)?;
        client.exchange(&free).map(drop)
    })?;
    for name in ["jit", "multitensor"] {
        let batches = replayable(name);
        let commands = batches.iter().map(Recorded::commands).sum();
        let mut requests: Vec<_> = batches.iter().map(with_zeros).collect();
        requests.push(loopback::request(&[], &batch(&sessions_end(&batches))));
        rows.measure(&format!("server/replay_{name} ns/command"), commands, || {
            requests.iter().try_for_each(|request| client.exchange(request).map(drop))
        })?;
    }
    Ok(())
}

/// A recorded batch as a request, its data zeros.
fn with_zeros(batch: &Recorded) -> Vec<u8> {
    let zeros: Vec<_> =
        batch.blob_lengths().iter().map(|(name, bytes)| (*name, vec![0; *bytes])).collect();
    let blobs: Vec<_> = zeros.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    loopback::request(&blobs, &batch.text)
}

/// The commands that end all sessions of a recording.
fn sessions_end(batches: &[Recorded]) -> Vec<String> {
    let mut keys: Vec<&str> = batches
        .iter()
        .flat_map(|batch| batch.text.match_indices("SessionKey(").map(|(at, _)| &batch.text[at..]))
        .filter_map(|text| Some(&text[..=text.find(')')?]))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys.iter().map(|key| format!("SessionFree(session={key})")).collect()
}

/// What has been measured.
struct Rows<'a> {
    args: &'a Args,
    values: Values,
}

impl Rows<'_> {
    /// Repeats `run`, which has `parts` equal parts, and keeps the nanoseconds of one part: the
    /// median over repetitions, so that others who use the machine count for little.
    fn measure(
        &mut self,
        row: &str,
        parts: usize,
        mut run: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let filter = &self.args.filter;
        if !filter.is_empty() && !filter.iter().any(|part| row.contains(part.as_str())) {
            return Ok(());
        }
        run()?;
        let mut times = Vec::with_capacity(1 << 16);
        let until = Instant::now() + Duration::try_from_secs_f64(self.args.seconds)?;
        while times.is_empty() || Instant::now() < until && times.len() < times.capacity() {
            let began = Instant::now();
            run()?;
            times.push(began.elapsed().as_secs_f64() * 1e9 / parts as f64);
        }
        self.values.insert(row.to_owned(), median(&mut times));
        Ok(())
    }
}

/// The most memory that this process has had.
fn peak_mebibytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(kibibytes.parse::<f64>()? / 1024.0)
}

#[global_allocator]
static ALLOCATOR: Switch = Switch(AtomicU8::new(UNDECIDED));

const UNDECIDED: u8 = 0;
const MIMALLOC: u8 = 1;
const GLIBC: u8 = 2;

/// One of two allocators, for the whole life of the process.
struct Switch(AtomicU8);

impl Switch {
    fn is_mimalloc(&self) -> bool {
        let choice = self.0.load(Ordering::Relaxed);
        if choice == UNDECIDED { self.decide() } else { choice == MIMALLOC }
    }

    /// Nothing here may allocate. The first allocation comes before the first thread.
    #[cold]
    fn decide(&self) -> bool {
        // SAFETY: the name ends with a zero, and nothing has changed the environment so early.
        let value = unsafe { libc::getenv(VARIABLE.as_ptr()) };
        let is_glibc = !value.is_null() && {
            // SAFETY: a value of the environment ends with a zero, and nothing changes it.
            let value = unsafe { CStr::from_ptr(value) };
            value.to_bytes() == CHOICES[1].as_bytes()
        };
        self.0.store(if is_glibc { GLIBC } else { MIMALLOC }, Ordering::Relaxed);
        !is_glibc
    }
}

// SAFETY: all memory of a process comes from one of two allocators, to which everything is handed
// as it came.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_mimalloc() {
            // SAFETY: the caller keeps this method's contract, which is the same.
            unsafe { MiMalloc.alloc(layout) }
        } else {
            // SAFETY: see above.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.is_mimalloc() {
            // SAFETY: as in `alloc`.
            unsafe { MiMalloc.alloc_zeroed(layout) }
        } else {
            // SAFETY: as in `alloc`.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if self.is_mimalloc() {
            // SAFETY: as in `alloc`; the memory came from the same allocator.
            unsafe { MiMalloc.realloc(memory, layout, bytes) }
        } else {
            // SAFETY: as above.
            unsafe { System.realloc(memory, layout, bytes) }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if self.is_mimalloc() {
            // SAFETY: as in `realloc`.
            unsafe { MiMalloc.dealloc(memory, layout) }
        } else {
            // SAFETY: as in `realloc`.
            unsafe { System.dealloc(memory, layout) }
        }
    }
}

//! What the kernel tells of processes: processor time, resident memory, cores.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Result;

/// How often memory is looked at while something runs, at most.
const SAMPLE_PAUSE: Duration = Duration::from_millis(20);
/// Part of the time that goes into looking: the kernel visits each page of the processes.
const SAMPLE_SHARE: u32 = 5;

/// Keeps the calling thread, and those that it starts, on one core.
pub(crate) fn pin(core: Option<usize>) -> Result<()> {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}

fn folder(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// A process and everything that it and its children have started.
fn tree(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        next += 1;
        let tasks = fs::read_dir(folder(pid).join("task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids
}

/// Processor time that a process and its children have used, user and system; `None` where the
/// kernel does not tell. The kernel counts in ticks, of 10 ms as a rule.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let of_one = |pid: u32| {
        let stat = fs::read_to_string(folder(pid).join("stat")).ok()?;
        // The second field is the name in parentheses, which may hold spaces. Fields 14 to 17 are
        // wanted: the process itself, and its children that have ended.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum::<f64>())
    };
    of_one(pid)?;
    let ticks: f64 = tree(pid).into_iter().filter_map(of_one).sum();
    Some(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// A value in bytes out of a file of lines such as `Pss:   12 kB`.
fn kilobytes(path: PathBuf, name: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// Resident bytes of a process and its children, a page that several map counted once.
pub(crate) fn resident_bytes(pid: u32) -> f64 {
    let of_one = |pid| kilobytes(folder(pid).join("smaps_rollup"), "Pss");
    tree(pid).into_iter().filter_map(of_one).sum()
}

/// Bytes that the machine could still give away.
fn available_bytes() -> f64 {
    kilobytes(PathBuf::from("/proc/meminfo"), "MemAvailable").unwrap_or(0.0)
}

/// Watches the memory of a process tree, and of the machine, until it is asked for the peak.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(f64, f64)>,
    resident_before: f64,
    available_before: f64,
}

impl MemoryWatch {
    pub(crate) fn start(pid: u32) -> MemoryWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (resident_before, available_before) = (resident_bytes(pid), available_bytes());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = (resident_before, available_before);
            loop {
                let is_last = stopped.load(Ordering::Acquire);
                let began = Instant::now();
                peak = (peak.0.max(resident_bytes(pid)), peak.1.min(available_bytes()));
                if is_last {
                    return peak;
                }
                std::thread::sleep(SAMPLE_PAUSE.max(began.elapsed() * (SAMPLE_SHARE - 1)));
            }
        });
        MemoryWatch { stop, thread, resident_before, available_before }
    }

    /// How much the tree's resident memory grew at most, and how much the machine's available
    /// memory shrank at most.
    pub(crate) fn peak(self) -> Result<(f64, f64)> {
        self.stop.store(true, Ordering::Release);
        let peak = self.thread.join().map_err(|_| "the thread that watches memory failed")?;
        Ok((peak.0 - self.resident_before, self.available_before - peak.1))
    }
}

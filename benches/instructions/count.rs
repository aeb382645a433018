//! Counting: allocations by standing in front of the allocator, instructions by callgrind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Result;

/// The function that callgrind counts in.
const MEASURED: &str = "outboard_measured";

/// What a case took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) instructions: u64,
    pub(crate) allocations: u64,
}

impl Count {
    /// Instructions as a multiple of those before.
    pub(crate) fn growth(self, before: Count) -> f64 {
        self.instructions as f64 / before.instructions as f64
    }

    /// Whether either count has grown by more than a part of what it was.
    pub(crate) fn is_above(self, before: Count, part: f64) -> bool {
        let grown = |now: u64, before: u64| now as f64 > before as f64 * (1.0 + part);
        grown(self.instructions, before.instructions) || grown(self.allocations, before.allocations)
    }
}

/// Where the build keeps its outputs.
pub(crate) fn output_folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Runs one case of this program under callgrind.
pub(crate) fn under_valgrind(case: &str) -> Result<Count> {
    let profile = output_folder()?.join(format!("{}.callgrind", case.replace('/', "-")));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["--case", case])
        .output()
        .map_err(|error| format!("valgrind cannot be started ({error}): install it"))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        return Err(format!("{case}: valgrind ended with {}:\n{said}", run.status).into());
    }
    let profile = std::fs::read_to_string(profile)?;
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    let instructions: u64 = total.ok_or("callgrind wrote no total")?.trim().parse()?;
    if instructions == 0 {
        return Err(format!("{case}: callgrind saw nothing of {MEASURED}").into());
    }
    let allocations = String::from_utf8(run.stdout)?.trim().parse()?;
    Ok(Count { instructions, allocations })
}

#[global_allocator]
pub(crate) static ALLOCATIONS: Allocations =
    Allocations { counts: AtomicBool::new(false), count: AtomicU64::new(0) };

/// The system's allocator, and how often it was asked for memory.
pub(crate) struct Allocations {
    counts: AtomicBool,
    count: AtomicU64,
}

impl Allocations {
    /// Counts while `work` runs.
    pub(crate) fn during(&self, work: &mut dyn FnMut()) {
        self.counts.store(true, Ordering::Relaxed);
        work();
        self.counts.store(false, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn note(&self) {
        if self.counts.load(Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Allocations {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.note();
        // SAFETY: as in `alloc`; the memory came from the system's allocator, by way of this one.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

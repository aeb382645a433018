//! What a process holds of the machine, read from /proc.

#![expect(clippy::unwrap_used, reason = "a process under test is there, and /proc is well-formed")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::wait::wait_for;

/// What a server holds of the machine.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) memory_bytes: u64,
    pub(crate) descriptors: usize,
    pub(crate) children: usize,
    /// Of memory that is shared with workers.
    pub(crate) mappings: usize,
}

impl Holdings {
    pub(crate) fn of(pid: u32) -> Holdings {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let pages: u64 = read("statm").split(' ').nth(1).unwrap().parse().unwrap();
        let children = children_of(pid).len();
        Holdings {
            memory_bytes: pages * 4096,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            children,
            mappings: read("maps").lines().filter(|line| line.contains("memfd:")).count(),
        }
    }

    /// Waits until a process holds nothing beyond what is held here, but for a few MiB that an
    /// allocator may keep; panics with both when that does not happen in time.
    pub(crate) fn wait_until_back(&self, pid: u32) {
        wait_for(&format!("the process is back at {self:?}"), || {
            let now = Holdings::of(pid);
            if now.is_within(self) { Ok(()) } else { Err(now) }
        });
    }

    fn is_within(&self, baseline: &Holdings) -> bool {
        self.memory_bytes <= baseline.memory_bytes + (8 << 20)
            && self.descriptors <= baseline.descriptors
            && self.children <= baseline.children
            && self.mappings <= baseline.mappings
    }
}

/// A file of each of a process's threads, as far as they are still there.
pub(crate) fn read_of_tasks(pid: u32, file: &str) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join(file)).ok())
        .collect()
}

/// Bytes of memory of a server and its workers: pages of the files that they share, each counted
/// once, and what each has for itself.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let shared: std::collections::BTreeMap<u64, u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        // Descriptors may be closed meanwhile.
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let file = fs::read_link(&path).ok()?.to_string_lossy().contains("memfd:outboard");
            fs::metadata(&path).ok().filter(|_| file)
        })
        .map(|file| (file.ino(), file.blocks() * 512))
        .collect();
    let private = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        kib.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let processes = children_of(pid).into_iter().chain([pid.to_string()]);
    shared.into_values().sum::<u64>() + processes.map(|pid| private(&pid)).sum::<u64>()
}

pub(crate) fn children_of(pid: u32) -> Vec<String> {
    let lines = read_of_tasks(pid, "children");
    lines.iter().flat_map(|line| line.split_whitespace()).map(str::to_owned).collect()
}

/// Clock ticks that children of a process have run in user mode.
pub(crate) fn worker_ticks(pid: u32) -> u64 {
    children_of(pid)
        .into_iter()
        .filter_map(|child| fs::read_to_string(format!("/proc/{child}/stat")).ok())
        // The twelfth field after the name: proc(5).
        .filter_map(|stat| stat.rsplit(')').next()?.split(' ').nth(12)?.parse::<u64>().ok())
        .sum()
}

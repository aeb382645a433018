//! The cores that this process may use, and how its threads share them.
//!
//! Shards are pinned to a core each, and a thread that a shard starts would inherit that: threads
//! that do the server's other work ask for all cores back.

pub mod crowd;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

static ALLOWED: OnceLock<CpuSet> = OnceLock::new();

/// The cores that this process was started with. To be called before any thread is pinned.
///
/// # Errors
///
/// If the kernel does not tell.
pub fn allowed() -> std::io::Result<BTreeSet<usize>> {
    let set = match ALLOWED.get() {
        Some(set) => *set,
        None => *ALLOWED.get_or_init(|| sched_getaffinity(None).unwrap_or_default()),
    };
    match (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect::<BTreeSet<usize>>() {
        cores if cores.is_empty() => Err(std::io::Error::other("the set of cores is unknown")),
        cores => Ok(cores),
    }
}

/// Lets the calling thread run on all cores that the process was started with.
pub fn spread() {
    if let Some(set) = ALLOWED.get()
        && let Err(error) = sched_setaffinity(None, set)
    {
        tracing::warn!(%error, "a helper thread stays on its shard's core");
    }
}

/// Lets the calling thread, and what it starts, run on these cores alone.
pub fn keep_to(cores: &BTreeSet<usize>) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::debug!(%error, ?cores, "a thread stays on the cores that it has");
    }
}

/// Has the calling thread, and what it starts, step back for others on its core.
pub fn step_back(nice: i32) {
    if let Err(error) = rustix::process::nice(nice) {
        tracing::debug!(%error, "a thread does not step back");
    }
}

/// Has the calling thread, and what it starts, take turns of this length on its core while others
/// want it too. Where that cannot be had (before Linux 6.12), they are as they were.
pub fn take_turns(turn: Duration) {
    let Some(mut attributes) = attributes() else { return };
    // Other policies were chosen by whoever started the server.
    if attributes.sched_policy != libc::SCHED_OTHER.unsigned_abs() {
        return;
    }
    attributes.sched_runtime = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the structure has the size that it says; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "turns on the core stay as they are");
    }
}

/// How the calling thread shares its core.
fn attributes() -> Option<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).expect("a few words");
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes as many bytes as it is told; 0 is the calling thread.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (known == 0).then_some(attributes)
}

/// Whether a thread of this process and one of its children can run at the same time.
#[must_use]
pub fn are_several() -> bool {
    match ALLOWED.get() {
        Some(set) => set.count() > 1,
        None => std::thread::available_parallelism().is_ok_and(|count| count.get() > 1),
    }
}

/// The memory node of each of these cores, as far as `root` (`/sys`, unless it is a test's) says.
#[must_use]
pub fn nodes(root: &Path, cores: &[usize]) -> Vec<Option<usize>> {
    // A link in the core's folder is called as the node is.
    let node_of = |core: &usize| {
        let folder = root.join(format!("devices/system/cpu/cpu{core}"));
        let names =
            std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
        names.filter_map(|name| name.to_str()?.strip_prefix("node")?.parse().ok()).next()
    };
    cores.iter().map(node_of).collect()
}

/// Reads a list of cores, such as `0,2-5`.
///
/// # Errors
///
/// What part of the text is not a core or a range of cores.
pub fn parse(text: &str) -> Result<BTreeSet<usize>, String> {
    let number = |digits: &str| {
        digits.parse::<usize>().map_err(|_| format!("{digits:?} is not the number of a core"))
    };
    let mut cores = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CpuSet::MAX_CPU {
            return Err(format!("{part:?} is not a range of cores"));
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_as_list_with_ranges_are_read() {
        assert_eq!(parse("4,0-2,1"), Ok([0, 1, 2, 4].into()));
    }

    #[test]
    fn node_of_a_core_is_what_its_link_is_called() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cpu0/node0", "cpu0/cache", "cpu3/node12", "cpu4/nodes"] {
            let path = root.path().join("devices/system/cpu").join(folder);
            std::fs::create_dir_all(path).unwrap();
        }
        assert_eq!(nodes(root.path(), &[3, 0, 4, 5]), [Some(12), Some(0), None, None]);
    }

    #[test]
    fn short_turns_and_steps_back_are_the_threads_own() {
        let before = attributes().expect("the kernel tells");
        let stepped = std::thread::spawn(|| {
            take_turns(Duration::from_micros(200));
            step_back(3);
            attributes()
        });
        let after = stepped.join().unwrap().expect("the kernel tells");
        if before.sched_policy == 0 {
            assert_eq!(after.sched_nice, (before.sched_nice + 3).min(19));
            // Kernels that know of no lengths say 0.
            assert!([0, 200_000].contains(&after.sched_runtime), "{}", after.sched_runtime);
        }
        assert_eq!(attributes().map(|here| here.sched_nice), Some(before.sched_nice));
    }

    #[test]
    fn cores_that_are_no_range_are_refused() {
        for text in ["2-1", "x", "", "1,", "0-99999999"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}

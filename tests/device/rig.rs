//! What the tests share: devices, kernels, and the books that each test must leave as they were.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use outboard::device::isolated::{Isolated, WorkerConfig};
use outboard::device::remote::{Remote, RemoteConfig};
use outboard::device::shared::Budget;
use outboard::device::{Device, Fence, Launch, Program, Region, Span};

pub(crate) use crate::common::*;
use crate::skip::skip;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

static ALONE: Mutex<()> = Mutex::new(());

/// Held by whoever has descriptors and children, so that no other test counts them.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What a test must leave as it was.
#[derive(Debug)]
pub(crate) struct Books {
    children: usize,
    descriptors: usize,
    mappings: usize,
    budget: u64,
}

pub(crate) struct Rig {
    pub(crate) config: WorkerConfig,
    /// Of the devices that only workers reach.
    pub(crate) memory: Arc<Budget>,
    before: Books,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with_limit(DEADLINE)
    }

    pub(crate) fn with_limit(kernel_time_max: Duration) -> Rig {
        let alone = alone();
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_outboard"));
        let budget = Arc::new(Budget::new(64 << 30));
        let config = WorkerConfig::of_kernels(exe, kernel_time_max, budget);
        // The threads of the server start with the first worker, and stay.
        let mut first = Isolated::open(&config).unwrap();
        drop(first.alloc(64 << 20).unwrap());
        let fence = first.signal().map(|_| first.last()).unwrap();
        wait(&mut first, fence);
        drop(first);
        until("the first worker is gone", || children().is_empty() && memory_mappings() == 0);
        let before = books(&config.budget);
        let memory = Arc::new(Budget::new(64 << 30));
        Rig { config, memory, before, _alone: alone }
    }

    pub(crate) fn open(&self) -> Isolated {
        Isolated::open(&self.config).unwrap()
    }

    /// A device that a worker of the test's drives, as `kind` says.
    pub(crate) fn remote(&self, kind: &str) -> Remote {
        Remote::open(&self.remote_config(kind)).unwrap()
    }

    pub(crate) fn remote_config(&self, kind: &str) -> RemoteConfig {
        let arguments = ["--exact", "remote::worker", "--ignored", "--nocapture"];
        let worker = WorkerConfig {
            exe: std::env::current_exe().unwrap(),
            arguments: arguments.map(Into::into).into(),
            environment: vec![(crate::remote::KIND.into(), kind.into())],
            ..self.config.clone()
        };
        let (memory, reaches) = (Arc::clone(&self.memory), Arc::from([true]));
        let (ordinal, exports, is_flushed) = (0, false, false);
        RemoteConfig {
            worker,
            memory,
            context_bytes: 1 << 20,
            ordinal,
            reaches,
            exports,
            is_flushed,
        }
    }

    /// Everything that the devices had is back.
    pub(crate) fn finish(self) {
        let start = Instant::now();
        loop {
            let now = books(&self.config.budget);
            if now.is_within(&self.before) && self.memory.used() == 0 {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "left: {now:?}, before: {:?}", self.before);
            std::thread::yield_now();
        }
    }
}

impl Books {
    /// The last worker's descriptors may have been about to close when `before` was written.
    fn is_within(&self, before: &Books) -> bool {
        self.children <= before.children
            && self.descriptors <= before.descriptors
            && self.mappings <= before.mappings
            && self.budget <= before.budget
    }
}

pub(crate) fn books(budget: &Budget) -> Books {
    Books {
        children: children().len(),
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        mappings: memory_mappings(),
        budget: budget.used(),
    }
}

/// Process ids of this process's children, zombies included.
pub(crate) fn children() -> Vec<i32> {
    let me = std::process::id().to_string();
    let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let pid: i32 = name.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.to_owned();
        (parent == me).then_some(pid)
    });
    stats.collect()
}

pub(crate) fn memory_mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:outboard")).count()
}

/// Bytes of memory in the files that this process shares with its workers.
pub(crate) fn memory_bytes() -> u64 {
    let files = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = fs::read_link(&path).ok()?;
        let ours = target.to_string_lossy().contains("memfd:outboard");
        ours.then(|| fs::metadata(&path).ok().map(|file| file.blocks() * 512)).flatten()
    });
    files.sum()
}

/// Bytes of shared memory that a process has touched and still maps.
pub(crate) fn mapped_bytes(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split_ascii_whitespace().nth(2).unwrap().parse().unwrap();
    pages * u64::try_from(rustix::param::page_size()).unwrap()
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

/// All bytes of a region, piece by piece.
pub(crate) fn read(device: &mut dyn Device, region: &Region) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(left) = region.bytes().checked_sub(bytes.len() as u64).filter(|left| *left > 0) {
        let rest = Span::new(region, bytes.len() as u64, left).unwrap();
        let (fence, piece) = device.read(rest).unwrap();
        wait(device, fence);
        assert!(!piece.slice().is_empty());
        bytes.extend_from_slice(piece.slice());
    }
    bytes
}

/// A kernel's object, or none where there is no gcc. Asked for before there is a rig.
pub(crate) fn object(source: &str) -> Option<Vec<u8>> {
    static OBJECTS: Mutex<Option<HashMap<String, Vec<u8>>>> = Mutex::new(None);
    let mut objects = OBJECTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let objects = objects.get_or_insert_default();
    if !objects.contains_key(source) {
        objects.insert(source.to_owned(), compile(source)?);
    }
    objects.get(source).cloned()
}

pub(crate) fn compile(source: &str) -> Option<Vec<u8>> {
    let _alone = alone();
    let flags = "-x c -O2 -fPIC -ffreestanding -nostdlib -fno-stack-protector -fno-ident \
                 -fcf-protection=none -fno-asynchronous-unwind-tables -c - -o";
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("kernel.o");
    let mut gcc = Command::new("gcc");
    gcc.args(flags.split_whitespace()).arg(&out).stdin(Stdio::piped());
    let Ok(mut gcc) = gcc.spawn() else {
        skip("kernels of the device tests", "no gcc to compile them with");
        return None;
    };
    gcc.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(gcc.wait().unwrap().success(), "{source}");
    let mut object = Vec::new();
    fs::File::open(out).unwrap().read_to_end(&mut object).unwrap();
    Some(object)
}

pub(crate) fn load(device: &mut dyn Device, object: &[u8]) -> Program {
    let program = device.load("kernel", object).unwrap();
    let fence = device.last();
    wait(device, fence);
    device.loaded(&program).unwrap();
    program
}

pub(crate) fn launch(
    device: &mut dyn Device,
    program: &Program,
    buffers: &[&Region],
    values: &[i32],
) -> Fence {
    let buffers: Vec<Span<'_>> = buffers.iter().map(|region| whole(region)).collect();
    let (global, local, timed) = (None, None, false);
    device.launch(&Launch { program, buffers: &buffers, values, global, local, timed }).unwrap()
}

pub(crate) const ADD: &str = "void add(int* to, int* from, int n) { \
                   for (int i = 0; i < 64; i++) to[i] += from[i] + n; }";
pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

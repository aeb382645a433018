//! What the tests share: processes on the fakes, devices in them, and how to wait for these.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::compile;
use outboard::config::{CacheDir, CompileConfig};
use outboard::device::gpu::{CudaSource, GpuConfig, GpuPlatform, Vendor};
use outboard::device::shared::{Budget, Heap, Range};
use outboard::device::{
    Device, Fence, GraphBuffer, GraphInt, GraphStep, Launch, LaunchSize, Platform, Program, Region,
    Span,
};

pub(crate) use crate::support::device::*;
use crate::support::fakes::Watch;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const CHILD: &str = "OUTBOARD_TEST_ON_FAKES";
/// For devices whose memory network cards are to reach, and the fake HIP's version that can.
pub(crate) const EXPORTS: [(&str, &str); 2] =
    [("OUTBOARD_TEST_EXPORTS", "1"), ("FAKE_HIP_VERSION", "70253211")];

pub(crate) fn exports() -> bool {
    std::env::var_os(EXPORTS[0].0).is_some()
}

/// What the process that made the calls left.
pub(crate) struct Ran {
    pub(crate) vendor: Vendor,
    pub(crate) watch: Watch,
}

impl Ran {
    /// A call by its name with one vendor and with the other.
    pub(crate) fn calls(&self, cuda: &str, hip: &str) -> usize {
        self.watch.calls(match self.vendor {
            Vendor::Nvidia => cuda,
            Vendor::Amd => hip,
        })
    }
}

/// Runs `body` in a process of its own on each vendor's fake, then `check` here on what the fakes
/// wrote. `test` is the calling test's name.
pub(crate) fn on_fakes(
    test: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce(Vendor),
    check: impl Fn(&Ran),
) {
    if let Ok(vendor) = std::env::var(CHILD) {
        body(if vendor == "hip" { Vendor::Amd } else { Vendor::Nvidia });
        return settle();
    }
    for (vendor, library) in [(Vendor::Nvidia, "cuda"), (Vendor::Amd, "hip")] {
        let watch = Watch::new(&[library]);
        run(test, library, environment, &watch);
        check(&Ran { vendor, watch });
    }
}

/// Waits until the threads of all devices have given back what they had.
pub(crate) fn settle() {
    settle_but(0);
}

/// As [`settle`], where so many devices are open.
pub(crate) fn settle_but(open: usize) {
    let start = Instant::now();
    let is_devices = |name: &&String| *name == "outboard-cuda" || *name == "outboard-hip";
    while threads().iter().filter(is_devices).count() > open {
        assert!(start.elapsed() < DEADLINE, "a device does not end");
        std::thread::yield_now();
    }
}

/// The names of this process's threads. The list that the system gives ends early where a thread
/// ends while it is read, so it is read until none is missing.
fn threads() -> Vec<String> {
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        let names: Vec<_> =
            tasks.filter_map(|task| Some(name(task.ok()?)?.trim().to_owned())).collect();
        if names.len() == thread_count() {
            return names;
        }
    }
}

fn thread_count() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    line.expect("the system says how many").trim().parse().unwrap()
}

/// As [`on_fakes`], where nothing may be reported.
pub(crate) fn clean_on_fakes(test: &str, environment: &[(&str, &str)], body: impl FnOnce(Vendor)) {
    on_fakes(test, environment, body, |ran| ran.watch.assert_clean());
}

/// Whether this is a process in which the calls are made.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test of this binary on a fake.
pub(crate) fn run(test: &str, library: &str, environment: &[(&str, &str)], watch: &Watch) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, library).envs(watch.environment()).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = text(&output.stdout).contains("1 passed");
    assert!(
        output.status.success() && ran,
        "{test} on {library}: {}\n{}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr),
        watch.report(),
    );
}

pub(crate) struct Rig {
    pub(crate) platform: GpuPlatform,
    pub(crate) staging: Heap,
}

impl Rig {
    pub(crate) fn new(vendor: Vendor) -> Rig {
        Rig::with_limit(vendor, DEADLINE)
    }

    pub(crate) fn with_limit(vendor: Vendor, kernel_time_max: Duration) -> Rig {
        let config = CompileConfig { cache_dir: CacheDir::Off, ..CompileConfig::default() };
        let compile = Arc::new(compile::Service::new(config));
        let config = GpuConfig::find(vendor, kernel_time_max, CudaSource::Cuda, compile).unwrap();
        let config = if exports() { config.exporting() } else { config };
        let staging = Heap::new(Arc::new(Budget::new(1 << 40)));
        Rig { platform: GpuPlatform::new(config), staging }
    }

    pub(crate) fn open(&mut self) -> Box<dyn Device> {
        self.open_at(0)
    }

    pub(crate) fn open_at(&mut self, index: u64) -> Box<dyn Device> {
        self.platform.open(index).unwrap()
    }

    /// Bytes in staging memory.
    pub(crate) fn staged(&self, bytes: &[u8]) -> Range {
        let mut range = self.staging.alloc(u64::try_from(bytes.len()).unwrap()).unwrap();
        range.slice_mut().copy_from_slice(bytes);
        range
    }
}

/// Bytes of which no two neighbours of a piece are alike.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

pub(crate) fn wait_for_all(device: &mut dyn Device) {
    let last = device.last();
    wait(device, last);
}

pub(crate) fn read(device: &mut dyn Device, region: &Region) -> Vec<u8> {
    read_span(device, region, 0, region.bytes())
}

/// Reads piece by piece, as a connection does: the next is asked for before one is let go.
pub(crate) fn read_span(
    device: &mut dyn Device,
    region: &Region,
    offset: u64,
    bytes: u64,
) -> Vec<u8> {
    let mut read = Vec::new();
    let mut before = None;
    while (read.len() as u64) < bytes {
        let at = read.len() as u64;
        let span = Span::new(region, offset + at, bytes - at).unwrap();
        let (fence, piece) = device.read(span).unwrap();
        wait(device, fence);
        read.extend_from_slice(piece.slice());
        before = Some(piece);
    }
    drop(before);
    read
}

pub(crate) fn bytes_of(ints: &[i32]) -> Vec<u8> {
    ints.iter().flat_map(|int| int.to_ne_bytes()).collect()
}

/// A binary as the fakes take it: a kernel with its parameters, `p` for a pointer and `i` for an
/// int, the threads of a block that it takes (0: all) and its shared memory.
pub(crate) fn image_with(vendor: Vendor, name: &str, limits: &str, parameters: &str) -> Vec<u8> {
    let arch = match vendor {
        Vendor::Amd => "gfx90a:sramecc+:xnack-",
        Vendor::Nvidia => "sm_90",
    };
    let text = format!("arch {arch}\nkernel {name} {limits} {parameters}\nend\n\0");
    [b"\x7fELF fake device code\n", text.as_bytes()].concat()
}

/// A kernel of the fakes, by its name.
pub(crate) fn load(
    device: &mut dyn Device,
    vendor: Vendor,
    name: &str,
    parameters: &str,
) -> Program {
    let program = device.load(name, &image_with(vendor, name, "0 0", parameters)).unwrap();
    wait_for_all(device);
    device.loaded(&program).unwrap();
    program
}

pub(crate) const GRID: Option<LaunchSize> = Some([4, 1, 1]);
pub(crate) const BLOCK: Option<LaunchSize> = Some([16, 1, 1]);
/// Threads of a launch of those sizes: each has an element of four bytes.
pub(crate) const THREADS: usize = 64;

pub(crate) fn launch(
    device: &mut dyn Device,
    program: &Program,
    buffers: &[&Region],
    values: &[i32],
) -> Fence {
    let buffers: Vec<Span<'_>> = buffers.iter().map(|region| whole(region)).collect();
    let (global, local, timed) = (GRID, BLOCK, false);
    device.launch(&Launch { program, buffers: &buffers, values, global, local, timed }).unwrap()
}

/// A step that writes its first buffer, with those sizes.
pub(crate) fn step<'s>(
    program: &'s Program,
    buffers: &'s [GraphBuffer<'s>],
    values: &'s [GraphInt],
) -> GraphStep<'s> {
    let global = GRID.map(|sizes| sizes.map(GraphInt::Fixed));
    let local = BLOCK.map(|sizes| sizes.map(GraphInt::Fixed));
    GraphStep::Launch { program, buffers, outputs: &[0], values, global, local }
}

//! A device that takes its time: nothing is done before somebody has asked for its doorbell.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outboard::device::null::{NullControl, NullPlatform};
use outboard::device::shared::{Budget, Range};
use outboard::device::{
    Device, DeviceError, Fence, Graph, GraphRun, GraphStep, HostBytes, Launch, Platform, Point,
    Program, Region, Source, Span, Status,
};
use rustix::event::EventfdFlags;

pub(crate) struct Late {
    device: Box<dyn Device>,
    control: NullControl,
    bell: Arc<OwnedFd>,
    is_due: Arc<AtomicBool>,
}

impl Late {
    /// A null device behind it gives pieces of at most `read_bytes_max`.
    pub(crate) fn open(read_bytes_max: u64) -> Result<Late, DeviceError> {
        let mut platform = NullPlatform::new(1, Arc::new(Budget::new(64 << 30)));
        let control = platform.control();
        control.hold();
        control.hide_memory(read_bytes_max);
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (bell, is_due) = (Arc::new(bell), Arc::new(AtomicBool::new(false)));
        Ok(Late { device: platform.open(0)?, control, bell, is_due })
    }
}

impl Device for Late {
    fn backlog(&mut self) -> Option<Fence> {
        self.device.backlog()
    }

    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError> {
        self.device.alloc(bytes)
    }

    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError> {
        self.device.copy_in(to, from)
    }

    fn adopt(&mut self, region: &Region, staged: &Range) -> Option<Region> {
        self.device.adopt(region, staged)
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.device.copy(to, from)
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.device.read(of)
    }

    fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        self.device.load(name, binary)
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        self.device.loaded(program)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.device.launch(launch)
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.device.build_graph(steps)
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.device.run_graph(graph, run)
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.device.signal()
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.device.wait(point)
    }

    fn last(&self) -> Fence {
        self.device.last()
    }

    fn poll(&mut self, now: Instant) -> Status {
        if self.is_due.swap(false, Ordering::SeqCst) {
            while self.control.complete_next(0) {}
        }
        self.device.poll(now)
    }

    fn linger(&mut self, _fence: Fence) {}

    fn arm(&mut self, _fence: Fence) {
        let (bell, is_due) = (Arc::clone(&self.bell), Arc::clone(&self.is_due));
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(200));
            is_due.store(true, Ordering::SeqCst);
            rustix::io::write(&bell, &1_u64.to_ne_bytes()).unwrap();
        });
    }

    fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        self.device.elapsed(fence)
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }
}

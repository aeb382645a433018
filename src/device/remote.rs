//! A device that only a worker process reaches: one session's use of a GPU, with the driver and its
//! context in a process of their own.
//!
//! Owns: [`Remote`], the [`Device`] on the server's side. Its regions are numbers: segments of the
//! worker's table that the server has no mapping of. What the server or another device is to see
//! goes through shared memory, in pieces. Absent: copies between two workers (`passage`), the
//! queue, programs, graphs and the worker's end (`link`), what becomes of packets (`driven`).
//!
//! An allocation is a packet like any other, so that the queue takes it while the driver is still
//! being loaded. Whether there is room is known here, from the budget of the device's memory, on
//! which each session also draws for its context. What the budget allows and the device refuses all
//! the same, because somebody else took the memory, ends the session.
//!
//! A copy from another session's device has work for both workers (`passage`). The other's part
//! goes into its `Orders`, which it queues at its next call, before anything else of that call.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Account, Charge};
use super::export::Export;
use super::isolated::graph_int;
use super::link::{self, GraphUnits, Kind, Link, WorkerConfig};
use super::packet::{self, Address, Packet, Step, VARIABLE, int_word};
use super::passage::{Orders, Window};
use super::replay::copy_units;
use super::shared::{Budget, Heap, Range, to_u64};
use super::slot::{Dead, Slot};
use super::{
    Device, DeviceError, Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, HostBytes,
    Launch, LaunchSize, Memory, Point, Program, Quota, Region, Source, Span, Status,
};
use crate::config::DeviceLimits;

/// What all sessions of one device have in common.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The budget in it is that of shared memory.
    pub worker: WorkerConfig,
    /// The device's memory.
    pub memory: Arc<Budget>,
    /// What a session takes of it beside its buffers.
    pub context_bytes: u64,
    /// Which device of its kind it is.
    pub ordinal: usize,
    /// Which of them, by their numbers, share memory that this one's copies reach. It may share its
    /// own with itself.
    pub reaches: Arc<[bool]>,
    /// Whether network cards are to reach its memory.
    pub exports: bool,
    /// Whether it has to be told to look for what they have written.
    pub is_flushed: bool,
}

impl RemoteConfig {
    /// The same for a session that may have so much of the device's memory, its context included.
    pub(super) fn within(&self, quota: &Quota) -> Self {
        RemoteConfig { memory: quota.of(&self.memory), ..self.clone() }
    }
}

/// One session's worker process.
pub struct Remote {
    pub(super) link: Link,
    pub(super) account: Arc<Account>,
    pub(super) reaches: Arc<[bool]>,
    /// Bytes of the regions, by their segments.
    regions: BTreeMap<u32, u64>,
    /// What the worker lets go of, until it is past a packet.
    retiring: VecDeque<(u64, Retired)>,
    /// Shared memory of what the server is to see.
    outbox: Heap,
    /// Shared memory of pieces on their way from other workers, who see all of it.
    passage: Heap,
    pub(super) orders: Rc<Orders>,
    /// To devices that it copies from.
    pub(super) windows: Vec<Window>,
    exports: bool,
    is_flushed: bool,
    args: Vec<u64>,
}

/// Memory of the device that the worker lets go of.
pub(super) enum Retired {
    /// That of a region.
    Bytes(u64),
    /// That which another worker may have too.
    Shared(Arc<Charge>),
}

/// Where a region is.
pub(super) struct Place {
    pub(super) bytes: u64,
    pub(super) orders: Rc<Orders>,
}

/// Device memory comes in units of this many bytes, which is what a driver's pool gives at least.
const UNIT_BYTES: u64 = 512;

/// Words of a launch's sizes.
pub(super) const SIZES: usize = 6;

impl Remote {
    /// A device whose worker starts some time soon.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`] where the device has no room for one more session,
    /// [`DeviceError::Failed`] where the system gives no memory, descriptors or threads.
    pub fn open(config: &RemoteConfig) -> Result<Remote, DeviceError> {
        let account = Account::open(&config.memory, config.context_bytes)?;
        let link = Link::open(&config.worker, Kind::Driver, Some(Arc::clone(&account)))?;
        let orders = Orders::new(link.timeline(), config);
        Ok(Remote {
            link,
            account,
            reaches: Arc::clone(&config.reaches),
            regions: BTreeMap::new(),
            retiring: VecDeque::new(),
            outbox: Heap::scratch(Arc::clone(&config.worker.budget)),
            passage: Heap::scratch(Arc::clone(&config.worker.budget)),
            orders,
            windows: Vec::new(),
            exports: config.exports,
            is_flushed: config.exports && config.is_flushed,
            args: Vec::new(),
        })
    }

    /// Comes first in each call: refuses where all is lost, and queues what others have ordered and
    /// the end of what was dropped.
    fn ready(&mut self) -> Result<(), DeviceError> {
        self.tidy();
        self.link.alive()?;
        // Signals have their numbers by the order of the calls.
        if self.orders.are_done() { Ok(()) } else { Err(link::no_room_to_map()) }
    }

    /// Queues orders and ends, as far as the queue has room beyond one call.
    fn tidy(&mut self) {
        if let Err(error) = self.obey() {
            self.link.lose(error);
        }
        self.tidy_windows();
        // Orders come first: they may be for what was dropped after they were given.
        while self.orders.are_done()
            && let Some(dead) = self.link.next_dead()
        {
            match dead {
                Dead::Region(segment) => {
                    let bytes = self.regions.remove(&segment).unwrap_or_default();
                    self.link.tell(&Packet::Forget { segment });
                    self.link.imports.release(segment);
                    self.retire(Retired::Bytes(bytes));
                }
                other => self.link.bury(&other),
            }
        }
        if self.link.lost().is_some() {
            // The account takes care of it, at the worker's end.
            self.retiring.clear();
        }
        while self.retiring.front().is_some_and(|(packet, _)| *packet <= self.link.completed()) {
            match self.retiring.pop_front() {
                Some((_, Retired::Bytes(bytes))) => self.account.give(bytes),
                Some((_, Retired::Shared(charge))) => self.account.let_go(&charge),
                None => {}
            }
        }
    }

    /// The worker lets go of something in the packet queued last.
    pub(super) fn retire(&mut self, what: Retired) {
        self.retiring.push_back((self.link.last().0, what));
    }

    pub(super) fn place<'s>(&self, span: &Span<'s>) -> Result<&'s Slot<Place>, DeviceError> {
        match &span.region.0 {
            Memory::Remote(slot) => Ok(slot),
            Memory::Gpu(_) | Memory::Shared(_) => Err(link::foreign("buffer")),
        }
    }

    /// The worker's address of a part of this device's own memory.
    pub(super) fn own(&self, span: &Span<'_>) -> Result<Address, DeviceError> {
        let slot = self.place(span)?;
        if slot.belongs_to(&self.link.grave) {
            Ok(Address::new(slot.index(), span.offset))
        } else {
            Err(link::foreign("buffer"))
        }
    }

    /// As much of a copy's way through shared memory as is one piece: at least `bytes` long.
    pub(super) fn piece(&self, bytes: u64) -> Result<Range, DeviceError> {
        self.passage.alloc(bytes)
    }

    fn push_buffer(args: &mut Vec<u64>, at: Address, bytes: u64) {
        args.extend([at.word(), bytes]);
    }

    fn graph_buffer(
        &self,
        buffer: &GraphBuffer<'_>,
        args: &mut Vec<u64>,
    ) -> Result<(), DeviceError> {
        match buffer {
            GraphBuffer::Fixed(span) => Self::push_buffer(args, self.own(span)?, span.bytes()),
            GraphBuffer::Input(position) => args.extend([to_u64(*position) | VARIABLE, 0]),
        }
        Ok(())
    }

    fn encode_step(
        &mut self,
        step: &GraphStep<'_>,
        words: &mut Vec<u64>,
        units: &mut GraphUnits,
    ) -> Result<(), DeviceError> {
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        match step {
            GraphStep::Copy { to, from, bytes } => {
                self.graph_buffer(to, &mut args)?;
                self.graph_buffer(from, &mut args)?;
                Step::Copy { to: args[0], from: args[2], bytes: *bytes }.encode(words);
                units.0 += copy_units(*bytes);
            }
            GraphStep::Launch { program, buffers, outputs, values, global, local } => {
                let program = self.link.program(program)?.index();
                let outputs: Vec<u64> = outputs.iter().copied().map(to_u64).collect();
                for sizes in [global, local] {
                    let none = [GraphInt::Fixed(0); 3];
                    args.extend(sizes.as_ref().unwrap_or(&none).iter().map(graph_int));
                }
                for buffer in *buffers {
                    self.graph_buffer(buffer, &mut args)?;
                }
                args.extend(values.iter().map(graph_int));
                let (sizes, rest) = args.split_at(SIZES);
                let (buffers, values) = rest.split_at(2 * buffers.len());
                let outputs = &outputs;
                Step::Launch { program, outputs, sizes, buffers, values }.encode(words);
                units.0 += 1;
            }
        }
        self.args = args;
        Ok(())
    }
}

/// Sizes of a launch, as words.
fn size_words(sizes: Option<LaunchSize>) -> [u64; 3] {
    sizes.unwrap_or_default().map(int_word)
}

impl Device for Remote {
    fn backlog(&mut self) -> Option<Fence> {
        self.tidy();
        // Where it finds room, what others have ordered is queued.
        self.link.backlog()
    }

    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError> {
        self.ready()?;
        if bytes > DeviceLimits::ALLOCATION_BYTES_MAX {
            return Err(self.account.refusal(bytes));
        }
        let whole = bytes.max(1).next_multiple_of(UNIT_BYTES);
        self.account.take(whole)?;
        let segment = self.link.imports.reserve().ok_or_else(link::no_room_to_map);
        let queued = segment.and_then(|segment| {
            self.link.enqueue(&Packet::Alloc { segment, bytes }, 0).map(|_| segment)
        });
        let segment = queued.inspect_err(|_| self.account.give(whole))?;
        self.regions.insert(segment, whole);
        let place = Place { bytes, orders: Rc::clone(&self.orders) };
        let slot = Slot::new(segment, Dead::Region, &self.link.grave, place);
        Ok(Region(Memory::Remote(slot)))
    }

    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let at = self.own(&to)?;
        match from {
            Source::Bytes(bytes) => {
                let mut data = Vec::with_capacity(bytes.len() / 8 + 1);
                packet::push_bytes(&mut data, bytes);
                let bytes = to_u64(bytes.len());
                self.link.enqueue(&Packet::Write { to: at, bytes, data: &data }, 0)
            }
            Source::Staged(range) => {
                let bytes = to.bytes();
                let from = self.link.address(range.block(), 0, false)?;
                self.link.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
            }
        }
    }

    fn adopt(&mut self, _region: &Region, _staged: &Range) -> Option<Region> {
        None
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        if !self.reaches(from.region) {
            return self.fetch(&to, &from);
        }
        let (at, from, bytes) = (self.own(&to)?, self.own(&from)?, to.bytes());
        self.link.enqueue(&Packet::Copy { to: at, from, bytes }, copy_units(bytes))
    }

    fn export(&mut self, of: Span<'_>) -> Result<Option<Export>, DeviceError> {
        self.ready()?;
        let at = self.own(&of)?;
        if !self.exports {
            return Ok(None);
        }
        let (ours, theirs) = link::socket_pair().map_err(link::no_channel)?;
        let bytes = of.bytes();
        let fence = self.link.enqueue_with(&Packet::Export { at, bytes }, theirs)?;
        Ok(Some(Export::through(fence, ours, bytes)))
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        self.ready()?;
        match self.is_flushed {
            true => self.link.enqueue(&Packet::Flush, 0).map(drop),
            false => Ok(()),
        }
    }

    fn copy_bytes_max(&self, from: &Region) -> u64 {
        match &from.0 {
            Memory::Remote(slot) if !slot.belongs_to(&self.link.grave) => {
                self.fetched_bytes_max(&slot.state.orders)
            }
            _ => u64::MAX,
        }
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.ready()?;
        let from = self.own(&of)?;
        let bytes = of.bytes().min(DeviceLimits::PASSAGE_BYTES);
        let range = self.outbox.alloc(bytes)?;
        let to = self.link.address(range.block(), 0, true)?;
        let fence = self.link.enqueue(&Packet::Copy { to, from, bytes }, copy_units(bytes))?;
        // The worker writes there until then, whatever becomes of the bytes.
        self.link.hold(fence, range.block());
        Ok((fence, HostBytes { memory: Rc::clone(range.block()) as Rc<_>, offset: 0, bytes }))
    }

    fn load(&mut self, name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        self.ready()?;
        self.link.load(name, binary)
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        self.link.loaded(program)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let program = self.link.program(launch.program)?.index();
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        args.extend(size_words(launch.global));
        args.extend(size_words(launch.local));
        for buffer in launch.buffers {
            Self::push_buffer(&mut args, self.own(buffer)?, buffer.bytes());
        }
        args.extend(launch.values.iter().copied().map(int_word));
        let counts = [SIZES, 2 * launch.buffers.len()];
        let fence = self.link.launch(program, launch.timed, &args, counts);
        self.args = args;
        fence
    }

    fn reaches(&self, from: &Region) -> bool {
        matches!(&from.0, Memory::Remote(slot) if slot.belongs_to(&self.link.grave))
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.ready()?;
        let (mut words, mut units) = (Vec::new(), GraphUnits::default());
        for step in steps {
            self.encode_step(step, &mut words, &mut units)?;
        }
        self.link.record(&words, units)
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        for input in run.inputs {
            Self::push_buffer(&mut args, self.own(input)?, input.bytes());
        }
        args.extend(run.ints.iter().copied().map(int_word));
        let fence = self.link.replay(graph, run.timed, &args, 2 * run.inputs.len());
        self.args = args;
        fence
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.ready()?;
        self.link.signal()
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.ready()?;
        self.link.wait(point)
    }

    fn last(&self) -> Fence {
        self.link.last()
    }

    fn poll(&mut self, now: Instant) -> Status {
        self.link.poll(now);
        self.tidy();
        self.link.status()
    }

    fn linger(&mut self, fence: Fence) {
        self.link.linger(fence);
    }

    fn watch(&mut self, fence: Fence, now: Instant) -> bool {
        self.link.watch(fence, now)
    }

    fn arm(&mut self, fence: Fence) {
        self.link.arm(fence);
    }

    fn elapsed(&mut self, fence: Fence) -> Result<Duration, DeviceError> {
        self.link.elapsed(fence)
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.link.doorbell())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.link.lose(DeviceError::Lost { why: "closed".to_owned() });
        self.tidy();
    }
}

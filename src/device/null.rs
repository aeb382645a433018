//! A device without hardware, for tests of what uses devices.
//!
//! Owns: [`NullPlatform`], whose devices do their work in this process, and [`NullControl`], with
//! which a test holds work back or ends a device. Work has its effect when it completes and not
//! before, so that whoever looks too early sees old bytes.
//!
//! Programs are named by their binary: `add1` adds 1 to each byte of its first buffer, `fail`
//! cannot be loaded, `fault` ends the device, `hang` does not end, launches of `refuse` are
//! refused, any other does nothing. Source that begins with `broken` cannot be compiled.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{GraphUnits, ProgramState};
use super::shared::{Block, Budget, Heap, Range};
use super::slot::{Dead, Graveyard, Slot, Slots};
use super::timeline::{ENDED, Timeline};
use super::{
    Code, Device, DeviceError, Fence, Graph, GraphBuffer, GraphRun, GraphStep, HostBytes, Launch,
    Memory, Platform, Point, Program, Quota, Recording, Region, Renderer, Source, Span, Status,
};
use crate::compile::{self, CompileError};

/// Devices in this process. Compiling a source gives the source.
pub struct NullPlatform {
    device_count: u64,
    budget: Arc<Budget>,
    control: NullControl,
    nodes: Vec<Option<usize>>,
}

impl NullPlatform {
    #[must_use]
    pub fn new(device_count: u64, budget: Arc<Budget>) -> NullPlatform {
        let (control, nodes) = (NullControl::default(), Vec::new());
        NullPlatform { device_count, budget, control, nodes }
    }

    /// Has its devices be next to these memory nodes.
    #[must_use]
    pub fn with_nodes(self, nodes: &[Option<usize>]) -> NullPlatform {
        NullPlatform { nodes: nodes.to_vec(), ..self }
    }

    /// A handle that stays with the test when the platform goes to what is tested.
    #[must_use]
    pub fn control(&self) -> NullControl {
        self.control.clone()
    }
}

/// A copy from a device that is kept apart, in one call: so little that nearly all take several.
const APART_BYTES_MAX: u64 = 2;

impl Platform for NullPlatform {
    fn name(&self) -> &'static str {
        "NULL"
    }

    fn device_count(&self) -> u64 {
        self.device_count
    }

    fn renderer(&self, _index: u64) -> Renderer {
        let (module, class) = ("tinygrad.renderer.cstyle", "ClangRenderer");
        Renderer { module, class, arguments: "()".to_owned() }
    }

    fn numa_node(&self, index: u64) -> Option<usize> {
        *self.nodes.get(usize::try_from(index).ok()?)?
    }

    fn open_within(&mut self, index: u64, quota: &Quota) -> Result<Box<dyn Device>, DeviceError> {
        let device = NullDevice::open(index, quota.of(&self.budget), self.control.clone())?;
        Ok(Box::new(device))
    }

    fn compile(
        &mut self,
        _asker: compile::Asker,
        _index: u64,
        source: Arc<[u8]>,
    ) -> compile::Ticket {
        let is_broken = source.starts_with(b"broken");
        let rejected = || CompileError::Rejected { message: "the source is broken".to_owned() };
        compile::Ticket::ready(if is_broken { Err(rejected()) } else { Ok(source) })
    }
}

/// A test's hold on the devices of one [`NullPlatform`], which it names in the order in which they
/// were opened, from 0.
#[derive(Clone, Default)]
pub struct NullControl(Rc<Controlled>);

#[derive(Default)]
struct Controlled {
    manual: Cell<bool>,
    read_bytes_max: Cell<Option<u64>>,
    queue_calls_max: Cell<Option<u64>>,
    apart: Cell<bool>,
    queues: RefCell<Vec<Rc<RefCell<Queue>>>>,
}

impl NullControl {
    /// From now on work completes only by [`Self::complete_next`].
    pub fn hold(&self) {
        self.0.manual.set(true);
    }

    /// Completes what is held, and all work at once from now on.
    pub fn release(&self) {
        self.0.manual.set(false);
        self.advance();
    }

    /// From now on the server does not see the devices' memory: it gets copies of so many bytes at
    /// most.
    pub fn hide_memory(&self, read_bytes_max: u64) {
        self.0.read_bytes_max.set(Some(read_bytes_max));
    }

    /// From now on graphs of a device do not reach other devices' memory.
    pub fn keep_apart(&self) {
        self.0.apart.set(true);
    }

    /// From now on a device takes no more calls than this before it has completed some.
    pub fn limit_queue(&self, calls: u64) {
        self.0.queue_calls_max.set(Some(calls));
    }

    /// Completes one piece of work. False where there is none, or it waits for another device.
    #[must_use]
    pub fn complete_next(&self, device: usize) -> bool {
        self.0.queues.borrow()[device].borrow_mut().step()
    }

    /// How many devices have been opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.0.queues.borrow().len()
    }

    /// The ordinal by which a device was opened.
    #[must_use]
    pub fn ordinal(&self, device: usize) -> u64 {
        self.0.queues.borrow()[device].borrow().ordinal
    }

    /// Whether a device is still somebody's, be it lost or not.
    #[must_use]
    pub fn is_open(&self, device: usize) -> bool {
        // The other owner of a queue is its device.
        Rc::strong_count(&self.0.queues.borrow()[device]) > 1
    }

    /// Ends a device.
    pub fn lose(&self, device: usize, why: DeviceError) {
        self.0.queues.borrow()[device].borrow_mut().lose(why);
        if !self.0.manual.get() {
            self.advance();
        }
    }

    /// Completes what can be completed on all devices, whose work may wait for one another.
    fn advance(&self) {
        let queues = self.0.queues.borrow();
        while queues.iter().any(|queue| queue.borrow_mut().step()) {}
    }
}

/// A part of a region, kept alive by the work that uses it.
#[derive(Clone)]
struct Part {
    block: Rc<Block>,
    offset: u64,
    bytes: u64,
}

impl Part {
    fn of(span: &Span<'_>) -> Part {
        let block = Rc::clone(shared(span.region).block());
        Part { block, offset: span.offset, bytes: span.bytes }
    }

    fn read(&self) -> Vec<u8> {
        self.block.slice(self.offset, self.bytes).to_vec()
    }

    fn write(&self, bytes: &[u8]) {
        self.block.write(self.offset, bytes);
    }
}

fn shared(region: &Region) -> &Range {
    region.shared().expect("a region of another platform")
}

/// A piece of work.
enum Work {
    Add1(Part),
    Copy { to: Part, from: Part },
    Fault,
    Hang,
    Nothing,
    Signal,
    Wait(Rc<Timeline>, u64),
    Write { to: Part, bytes: Vec<u8> },
}

/// Work, and the fence that is reached with it.
struct Entry {
    work: Work,
    fence: Option<u64>,
}

/// What is queued on one device, and how far it has come.
struct Queue {
    ordinal: u64,
    entries: VecDeque<Entry>,
    completed: u64,
    timeline: Rc<Timeline>,
    lost: Option<DeviceError>,
}

impl Queue {
    /// Goes on to the next fence, or to where the work has to wait. False where nothing could be
    /// done.
    fn step(&mut self) -> bool {
        let mut progress = false;
        while let Some(Entry { work, fence }) = self.entries.pop_front() {
            if matches!(work, Work::Fault) {
                self.lose(DeviceError::Fault { what: "the program says so".to_owned() });
                return true;
            }
            if let Some(work) = self.perform(work) {
                self.entries.push_front(Entry { work, fence });
                return progress;
            }
            progress = true;
            if let Some(fence) = fence {
                self.completed = fence;
                return true;
            }
        }
        progress
    }

    /// Gives work back that has to wait.
    fn perform(&self, work: Work) -> Option<Work> {
        match work {
            Work::Add1(part) => {
                let bytes: Vec<u8> = part.read().iter().map(|byte| byte.wrapping_add(1)).collect();
                part.write(&bytes);
            }
            Work::Copy { to, from } => to.write(&from.read()),
            Work::Hang => return Some(Work::Hang),
            Work::Fault | Work::Nothing => {}
            Work::Signal => {
                let words = self.timeline.words();
                words.set(words.value() + 1);
            }
            Work::Wait(timeline, value) if timeline.words().value() < value => {
                return Some(Work::Wait(timeline, value));
            }
            Work::Wait(..) => {}
            Work::Write { to, bytes } => to.write(&bytes),
        }
        None
    }

    fn lose(&mut self, why: DeviceError) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.entries.clear();
            self.timeline.words().set(ENDED);
        }
    }
}

/// A recorded step.
enum Recorded {
    Add1(RecordedBuffer),
    Copy { to: RecordedBuffer, from: RecordedBuffer, bytes: u64 },
}

#[derive(Clone)]
enum RecordedBuffer {
    Fixed(Part),
    Input(usize),
}

impl RecordedBuffer {
    fn of(buffer: &GraphBuffer<'_>) -> RecordedBuffer {
        match buffer {
            GraphBuffer::Fixed(span) => RecordedBuffer::Fixed(Part::of(span)),
            GraphBuffer::Input(position) => RecordedBuffer::Input(*position),
        }
    }

    fn part(&self, run: &GraphRun<'_>) -> Part {
        match self {
            RecordedBuffer::Fixed(part) => part.clone(),
            RecordedBuffer::Input(position) => Part::of(&run.inputs[*position]),
        }
    }
}

impl Recorded {
    fn work(&self, run: &GraphRun<'_>) -> Work {
        let cut = |part: Part, bytes: u64| Part { bytes, ..part };
        match self {
            Recorded::Add1(buffer) => Work::Add1(buffer.part(run)),
            Recorded::Copy { to, from, bytes } => {
                Work::Copy { to: cut(to.part(run), *bytes), from: cut(from.part(run), *bytes) }
            }
        }
    }
}

/// A device in this process.
pub struct NullDevice {
    control: NullControl,
    queue: Rc<RefCell<Queue>>,
    last: u64,
    signals: u64,
    timeline: Rc<Timeline>,
    heap: Heap,
    grave: Rc<Graveyard>,
    programs: Slots,
    binaries: BTreeMap<u32, Vec<u8>>,
    graphs: Slots,
    recorded: BTreeMap<u32, Vec<Recorded>>,
}

impl NullDevice {
    fn open(
        ordinal: u64,
        budget: Arc<Budget>,
        control: NullControl,
    ) -> Result<NullDevice, DeviceError> {
        let timeline = Timeline::create()?;
        let (entries, lost, grave) = (VecDeque::new(), None, Rc::<Graveyard>::default());
        let queue = Queue { ordinal, entries, completed: 0, timeline: Rc::clone(&timeline), lost };
        let queue = Rc::new(RefCell::new(queue));
        control.0.queues.borrow_mut().push(Rc::clone(&queue));
        Ok(NullDevice {
            control,
            queue,
            last: 0,
            signals: 0,
            timeline,
            heap: Heap::of_device(budget, Rc::clone(&grave)),
            grave,
            programs: Slots::default(),
            binaries: BTreeMap::new(),
            graphs: Slots::default(),
            recorded: BTreeMap::new(),
        })
    }

    fn ready(&mut self) -> Result<(), DeviceError> {
        while let Some(dead) = self.grave.pop() {
            match dead {
                Dead::Block(freed) => self.heap.free(freed),
                Dead::Region(_) | Dead::Segment(_) => {}
                Dead::Graph(graph) => {
                    self.recorded.remove(&graph);
                    self.graphs.give(graph);
                }
                Dead::Program(program) => {
                    self.binaries.remove(&program);
                    self.programs.give(program);
                }
            }
        }
        self.queue.borrow().lost.clone().map_or(Ok(()), Err)
    }

    fn enqueue(&mut self, work: impl IntoIterator<Item = Work>) -> Fence {
        self.last += 1;
        let mut queue = self.queue.borrow_mut();
        queue.entries.extend(work.into_iter().map(|work| Entry { work, fence: None }));
        queue.entries.push_back(Entry { work: Work::Nothing, fence: Some(self.last) });
        drop(queue);
        if !self.control.0.manual.get() {
            self.control.advance();
        }
        Fence(self.last)
    }

    fn binary(&self, program: &Program) -> &[u8] {
        let slot = program.slot().expect("a program of another platform");
        assert!(slot.belongs_to(&self.grave), "a program of another device");
        &self.binaries[&slot.index()]
    }

    fn record(&self, step: &GraphStep<'_>) -> Option<Recorded> {
        match step {
            GraphStep::Copy { to, from, bytes } => {
                let (to, from) = (RecordedBuffer::of(to), RecordedBuffer::of(from));
                Some(Recorded::Copy { to, from, bytes: *bytes })
            }
            GraphStep::Launch { program, buffers, .. } => match self.binary(program) {
                b"add1" => buffers.first().map(RecordedBuffer::of).map(Recorded::Add1),
                _ => None,
            },
        }
    }
}

impl Device for NullDevice {
    fn backlog(&mut self) -> Option<Fence> {
        let first = (self.last + 1).checked_sub(self.control.0.queue_calls_max.get()?)?;
        let queue = self.queue.borrow();
        (first > queue.completed && queue.lost.is_none()).then_some(Fence(first))
    }

    fn alloc(&mut self, bytes: u64) -> Result<Region, DeviceError> {
        self.ready()?;
        self.heap.alloc(bytes).map(|range| Region(Memory::Shared(range)))
    }

    fn copy_in(&mut self, to: Span<'_>, from: Source<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let to = Part::of(&to);
        let work = match from {
            Source::Bytes(bytes) => Work::Write { to, bytes: bytes.to_vec() },
            Source::Staged(range) => {
                let (block, bytes) = (Rc::clone(range.block()), to.bytes);
                Work::Copy { to, from: Part { block, offset: 0, bytes } }
            }
        };
        Ok(self.enqueue([work]))
    }

    fn adopt(&mut self, region: &Region, staged: &Range) -> Option<Region> {
        self.ready().ok()?;
        let adopted = self.heap.adopt(shared(region).block(), staged)?;
        Some(Region(Memory::Shared(adopted)))
    }

    fn copy(&mut self, to: Span<'_>, from: Span<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        assert!(to.bytes() <= self.copy_bytes_max(from.region), "a copy in one go");
        Ok(self.enqueue([Work::Copy { to: Part::of(&to), from: Part::of(&from) }]))
    }

    fn copy_bytes_max(&self, from: &Region) -> u64 {
        if self.reaches(from) { u64::MAX } else { APART_BYTES_MAX }
    }

    fn read(&mut self, of: Span<'_>) -> Result<(Fence, HostBytes), DeviceError> {
        self.ready()?;
        let from = Part::of(&of);
        let Some(bytes_max) = self.control.0.read_bytes_max.get() else {
            let Part { block: memory, offset, bytes } = from;
            return Ok((self.last(), HostBytes { memory, offset, bytes }));
        };
        let bytes = from.bytes.min(bytes_max);
        let passage = self.heap.alloc(bytes)?;
        let to = Part { block: Rc::clone(passage.block()), offset: 0, bytes };
        let memory = Rc::clone(&to.block);
        let fence = self.enqueue([Work::Copy { to, from: Part { bytes, ..from } }]);
        Ok((fence, HostBytes { memory, offset: 0, bytes }))
    }

    fn load(&mut self, _name: &str, binary: &[u8]) -> Result<Program, DeviceError> {
        self.ready()?;
        let status = self.heap.alloc(1)?;
        let program = self.programs.take();
        self.binaries.insert(program, binary.to_vec());
        self.enqueue([Work::Nothing]);
        let slot = Slot::new(program, Dead::Program, &self.grave, ProgramState { status });
        Ok(Program(Code::Slot(slot)))
    }

    fn loaded(&mut self, program: &Program) -> Result<(), DeviceError> {
        match self.binary(program) {
            b"fail" => Err(DeviceError::Load { why: "named so".to_owned() }),
            _ => Ok(()),
        }
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let work = match (self.binary(launch.program), launch.buffers.first()) {
            (b"add1", Some(buffer)) => Work::Add1(Part::of(buffer)),
            (b"fault", _) => Work::Fault,
            (b"hang", _) => Work::Hang,
            (b"refuse", _) => {
                let why = "the program says so".to_owned();
                return Err(DeviceError::Failed { what: "launch", why });
            }
            _ => Work::Nothing,
        };
        Ok(self.enqueue([work]))
    }

    fn reaches(&self, from: &Region) -> bool {
        !self.control.0.apart.get() || self.heap.owns(shared(from).block())
    }

    fn build_graph(&mut self, steps: &[GraphStep<'_>]) -> Result<Graph, DeviceError> {
        self.ready()?;
        for step in steps {
            if let GraphStep::Copy { from: GraphBuffer::Fixed(from), .. } = step {
                assert!(self.reaches(from.region), "a copy out of reach");
            }
        }
        let recorded: Vec<Recorded> = steps.iter().filter_map(|step| self.record(step)).collect();
        let graph = self.graphs.take();
        self.recorded.insert(graph, recorded);
        self.enqueue([Work::Nothing]);
        let units = GraphUnits::default();
        Ok(Graph(Recording::Slot(Slot::new(graph, Dead::Graph, &self.grave, units))))
    }

    fn run_graph(&mut self, graph: &Graph, run: &GraphRun<'_>) -> Result<Fence, DeviceError> {
        self.ready()?;
        let slot = graph.slot()?;
        assert!(slot.belongs_to(&self.grave), "a graph of another device");
        let steps = &self.recorded[&slot.index()];
        let work: Vec<Work> = steps.iter().map(|step| step.work(run)).collect();
        Ok(self.enqueue(work))
    }

    fn signal(&mut self) -> Result<Point, DeviceError> {
        self.ready()?;
        self.signals += 1;
        self.enqueue([Work::Signal]);
        Ok(Point::shared(&self.timeline, self.signals))
    }

    fn wait(&mut self, point: &Point) -> Result<Fence, DeviceError> {
        self.ready()?;
        let (timeline, value) = point.value()?;
        Ok(self.enqueue([Work::Wait(Rc::clone(timeline), value)]))
    }

    fn last(&self) -> Fence {
        Fence(self.last)
    }

    fn poll(&mut self, _now: Instant) -> Status {
        // Only the graveyard: the reason of a loss is in the status.
        drop(self.ready());
        let queue = self.queue.borrow();
        Status { completed: Fence(queue.completed), lost: queue.lost.clone() }
    }

    fn linger(&mut self, _fence: Fence) {}

    fn arm(&mut self, _fence: Fence) {}

    fn elapsed(&mut self, _fence: Fence) -> Result<Duration, DeviceError> {
        Ok(Duration::from_micros(1))
    }

    fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for NullDevice {
    fn drop(&mut self) {
        let closed = DeviceError::Lost { why: "closed".to_owned() };
        self.queue.borrow_mut().lose(closed);
        self.grave.close();
        if !self.control.0.manual.get() {
            self.control.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(count: usize) -> (Vec<Box<dyn Device>>, NullControl) {
        let budget = Arc::new(Budget::new(1 << 30));
        let mut platform = NullPlatform::new(1, budget);
        let devices = (0..count).map(|_| platform.open(0).unwrap()).collect();
        (devices, platform.control())
    }

    fn whole(region: &Region) -> Span<'_> {
        Span::new(region, 0, region.bytes()).unwrap()
    }

    fn bytes(device: &mut dyn Device, region: &Region) -> Vec<u8> {
        device.read(whole(region)).unwrap().1.slice().to_vec()
    }

    fn completed(device: &mut Box<dyn Device>) -> Fence {
        device.poll(Instant::now()).completed
    }

    #[test]
    fn held_work_has_no_effect_before_it_completes() {
        let (mut devices, control) = open(1);
        let device = &mut devices[0];
        let region = device.alloc(3).unwrap();
        let program = device.load("test", b"add1").unwrap();
        control.hold();
        let copied = device.copy_in(whole(&region), Source::Bytes(b"abc")).unwrap();
        let (buffers, values, global, local) = (&[whole(&region)], &[], None, None);
        let program = &program;
        let launch = Launch { program, buffers, values, global, local, timed: false };
        device.launch(&launch).unwrap();
        assert_eq!(bytes(device.as_mut(), &region), [0; 3]);
        assert!(control.complete_next(0));
        assert_eq!(completed(device), copied);
        assert_eq!(bytes(device.as_mut(), &region), b"abc");
        control.release();
        assert_eq!(completed(device), device.last());
        assert_eq!(bytes(device.as_mut(), &region), b"bcd");
    }

    #[test]
    fn wait_holds_a_device_until_the_other_signals_or_is_lost() {
        for is_lost in [false, true] {
            let (mut devices, control) = open(2);
            control.hold();
            let point = devices[0].signal().unwrap();
            devices[1].wait(&point).unwrap();
            assert!(!control.complete_next(1));
            if is_lost {
                control.lose(0, DeviceError::Lost { why: "test".to_owned() });
                assert!(devices[0].signal().is_err());
                assert!(devices[0].poll(Instant::now()).lost.is_some());
            } else {
                assert!(control.complete_next(0));
            }
            assert!(control.complete_next(1));
            assert_eq!(completed(&mut devices[1]), devices[1].last());
        }
    }

    #[test]
    fn graph_replays_its_steps_on_what_it_is_given() {
        let (mut devices, _) = open(1);
        let device = &mut devices[0];
        let program = device.load("test", b"add1").unwrap();
        let fixed = device.alloc(2).unwrap();
        let input = device.alloc(2).unwrap();
        let (program, values, global, local) = (&program, &[][..], None, None);
        let buffers = &[GraphBuffer::Input(0)];
        let step = GraphStep::Launch { program, buffers, outputs: &[], values, global, local };
        let (to, from) = (GraphBuffer::Fixed(whole(&fixed)), GraphBuffer::Input(0));
        let copy = GraphStep::Copy { to, from, bytes: 2 };
        let graph = device.build_graph(&[step, step, copy]).unwrap();
        let run = GraphRun { inputs: &[whole(&input)], ints: &[], timed: false };
        device.run_graph(&graph, &run).unwrap();
        device.run_graph(&graph, &run).unwrap();
        assert_eq!(bytes(device.as_mut(), &fixed), [4, 4]);
    }

    #[test]
    fn program_named_fail_cannot_be_loaded() {
        let (mut devices, _) = open(1);
        let fail = devices[0].load("test", b"fail").unwrap();
        assert!(matches!(devices[0].loaded(&fail), Err(DeviceError::Load { .. })));
        let other = devices[0].load("test", b"other").unwrap();
        assert!(devices[0].loaded(&other).is_ok());
    }
}

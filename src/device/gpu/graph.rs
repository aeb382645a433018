//! Graphs: recorded steps, run as one launch of the driver's own graph.
//!
//! Owns: [`Recorded`] and its runs. Reading order: this file, then `plan` (which step depends on
//! which).
//!
//! The driver's graph is made at the first run: only then are the inputs known, and with them what
//! depends on what. Later runs change those nodes whose buffers, values or sizes are others than in
//! the last one. Where inputs share memory with each other or with the graph's own buffers in
//! another way than before, dependencies differ, and a graph is made for that.
//!
//! CUDA promises that a change leaves launches alone that are under way. HIP does not say. There a
//! graph that is under way is not changed: a second one takes turns with it, and where both are
//! under way the steps are queued one by one. That is also what happens where the driver cannot
//! make a graph of the steps.

mod plan;

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

use super::device::{GpuDevice, Kernel, Stop};
use super::driver::{DevicePointer, Node};
use super::handles::{Exec, Module, Template};
use super::launch::{self, Sizes};
use super::memory::{Access, Allocation};
use super::queue::Lane;
use crate::config::GpuLimits;
use crate::device::{DeviceError, Fence, GraphBuffer, GraphInt, GraphRun, GraphStep, LaunchSize};
use plan::{Operand, Plan, Sharing};

/// A graph as it was recorded, and what the driver has of it.
pub(super) struct Recorded {
    steps: Vec<Step>,
    /// What the steps together do to the graph's own buffers.
    fixed: Vec<(Rc<Allocation>, Access)>,
    /// And to the inputs, by position.
    inputs: Vec<Option<Access>>,
    /// How many kernels and pieces of copies it is.
    units: u64,
    made: Vec<Made>,
    /// Whether the driver has refused to make a graph of it.
    is_refused: bool,
}

struct Step {
    kind: Kind,
    /// Of a copy: to, from.
    buffers: Vec<Buffer>,
    /// Whether it differs from run to run.
    varies: bool,
    /// Which of the buffers it writes; for kernels that do not say, all of them.
    writes: Vec<bool>,
}

enum Kind {
    Copy { bytes: u64 },
    Launch { kernel: Kernel, values: Vec<GraphInt>, global: Sized, local: Sized },
}

type Sized = Option<[GraphInt; 3]>;

#[derive(Clone)]
enum Buffer {
    Fixed { allocation: Rc<Allocation>, offset: u64, bytes: u64 },
    Input(usize),
}

/// A buffer in a run.
#[derive(Clone, Copy)]
struct Place<'r> {
    allocation: &'r Rc<Allocation>,
    offset: u64,
    bytes: u64,
}

impl Place<'_> {
    fn at(&self) -> DevicePointer {
        DevicePointer(self.allocation.at.0 + self.offset)
    }
}

/// What a step is in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Copy { to: DevicePointer, from: DevicePointer, bytes: u64 },
    Launch { sizes: Sizes, arguments: Vec<u8> },
}

/// A graph of the driver's.
struct Made {
    nodes: Vec<Node>,
    /// What each node does at present.
    actions: Vec<Action>,
    sharing: Sharing,
    /// Its last run.
    number: u64,
    exec: Exec,
    /// The nodes are its.
    _template: Template,
}

impl Recorded {
    pub(super) fn new(device: &GpuDevice, steps: &[GraphStep<'_>]) -> Result<Self, DeviceError> {
        let steps: Vec<Step> =
            steps.iter().map(|step| Step::new(device, step)).collect::<Result<_, _>>()?;
        let (mut fixed, mut inputs) = (Vec::<(Rc<Allocation>, Access)>::new(), Vec::new());
        let mut units = 0;
        for step in &steps {
            units += match &step.kind {
                Kind::Copy { bytes } => bytes.div_ceil(GpuLimits::UNIT_COPY_BYTES),
                Kind::Launch { .. } => 1,
            };
            for (buffer, writes) in step.buffers.iter().zip(&step.writes) {
                let access = if *writes { Access::Write } else { Access::Read };
                match buffer {
                    Buffer::Fixed { allocation, .. } => fixed.push((Rc::clone(allocation), access)),
                    Buffer::Input(position) => {
                        if *position >= inputs.len() {
                            inputs.resize(position + 1, None);
                        }
                        let known = &mut inputs[*position];
                        if *known != Some(Access::Write) {
                            *known = Some(access);
                        }
                    }
                }
            }
        }
        // Writes first, of which those of the same allocation that follow say nothing new.
        let key = |(allocation, access): &(Rc<Allocation>, Access)| {
            (allocation.at, *access == Access::Read)
        };
        fixed.sort_by_key(key);
        fixed.dedup_by(|later, first| Rc::ptr_eq(&later.0, &first.0));
        Ok(Recorded { steps, fixed, inputs, units, made: Vec::new(), is_refused: false })
    }

    /// What has to be given back once its runs are over.
    pub(super) fn into_left(self) -> Box<dyn Any + Send> {
        let kernels = self.steps.into_iter().filter_map(|step| match step.kind {
            Kind::Launch { kernel, .. } => Some(kernel.module),
            Kind::Copy { .. } => None,
        });
        let mut modules: Vec<Arc<Module>> = kernels.collect();
        modules.sort_by_key(Arc::as_ptr);
        modules.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Box::new((self.made, modules))
    }
}

impl Step {
    fn new(device: &GpuDevice, step: &GraphStep<'_>) -> Result<Step, DeviceError> {
        match *step {
            GraphStep::Copy { to, from, bytes } => {
                let buffers =
                    vec![Buffer::new(device, &to, true)?, Buffer::new(device, &from, false)?];
                let varies = buffers.iter().any(Buffer::is_input);
                Ok(Step { kind: Kind::Copy { bytes }, buffers, varies, writes: vec![true, false] })
            }
            GraphStep::Launch { program, buffers, values, global, local, outputs } => {
                let kernel = device.kernel(program)?.clone();
                let buffers: Vec<Buffer> = buffers
                    .iter()
                    .map(|buffer| Buffer::new(device, buffer, true))
                    .collect::<Result<_, _>>()?;
                let sizes = global.iter().chain(&local).flatten();
                let varies = buffers.iter().any(Buffer::is_input)
                    || sizes.chain(values).any(|int| matches!(int, GraphInt::Variable(_)));
                let says = !outputs.is_empty() && outputs.iter().all(|out| *out < buffers.len());
                let writes = (0..buffers.len()).map(|index| !says || outputs.contains(&index));
                let (writes, values) = (writes.collect(), values.to_vec());
                Ok(Step {
                    kind: Kind::Launch { kernel, values, global, local },
                    buffers,
                    varies,
                    writes,
                })
            }
        }
    }

    /// What the step is in a run.
    fn action(
        &self,
        device: &mut GpuDevice,
        run: &GraphRun<'_>,
        packed: &mut Vec<u8>,
    ) -> Result<Action, Stop> {
        match &self.kind {
            Kind::Copy { bytes } => {
                let place =
                    |buffer: &Buffer| buffer.place(run).map(|place| (place.at(), place.bytes));
                let ((to, room), (from, there)) =
                    (place(&self.buffers[0])?, place(&self.buffers[1])?);
                if room.min(there) < *bytes {
                    let why = "an input is shorter than what is copied".to_owned();
                    return Err(DeviceError::Failed { what: "graph", why }.into());
                }
                Ok(Action::Copy { to, from, bytes: *bytes })
            }
            Kind::Launch { kernel, values, global, local } => {
                let limits = device.parts().limits;
                let (global, local) = (launch_size(global, run)?, launch_size(local, run)?);
                let sizes = Sizes::new(global, local, &kernel.function, &limits)?;
                let mut places = Vec::with_capacity(self.buffers.len());
                for buffer in &self.buffers {
                    let place = buffer.place(run)?;
                    if !Rc::ptr_eq(&place.allocation.site, &device.site) {
                        return Err(super::device::foreign("buffer").into());
                    }
                    places.push(place.at());
                }
                let mut ints = Vec::with_capacity(values.len());
                for value in values {
                    ints.push(integer(value, run)?);
                }
                launch::pack(packed, places.into_iter(), ints.into_iter(), &limits)?;
                Ok(Action::Launch { sizes, arguments: packed.clone() })
            }
        }
    }
}

fn integer(int: &GraphInt, run: &GraphRun<'_>) -> Result<i32, DeviceError> {
    let missing = || DeviceError::Failed { what: "graph", why: "a value is missing".to_owned() };
    match int {
        GraphInt::Fixed(value) => Ok(*value),
        GraphInt::Variable(position) => run.ints.get(*position).copied().ok_or_else(missing),
    }
}

fn launch_size(sizes: &Sized, run: &GraphRun<'_>) -> Result<Option<LaunchSize>, DeviceError> {
    let Some([x, y, z]) = sizes else { return Ok(None) };
    Ok(Some([integer(x, run)?, integer(y, run)?, integer(z, run)?]))
}

impl Buffer {
    fn new(device: &GpuDevice, buffer: &GraphBuffer<'_>, own: bool) -> Result<Self, DeviceError> {
        match buffer {
            GraphBuffer::Fixed(span) => {
                let allocation = if own { device.own(span)? } else { span.region.gpu()? };
                let allocation = Rc::clone(allocation);
                Ok(Buffer::Fixed { allocation, offset: span.offset, bytes: span.bytes })
            }
            GraphBuffer::Input(position) => Ok(Buffer::Input(*position)),
        }
    }

    fn is_input(&self) -> bool {
        matches!(self, Buffer::Input(_))
    }

    fn place<'p>(&'p self, run: &GraphRun<'p>) -> Result<Place<'p>, DeviceError> {
        match self {
            Buffer::Fixed { allocation, offset, bytes } => {
                Ok(Place { allocation, offset: *offset, bytes: *bytes })
            }
            Buffer::Input(position) => {
                let missing =
                    || DeviceError::Failed { what: "graph", why: "an input is missing".to_owned() };
                let span = run.inputs.get(*position).ok_or_else(missing)?;
                let allocation = span.region.gpu()?;
                Ok(Place { allocation, offset: span.offset, bytes: span.bytes })
            }
        }
    }
}

/// How a run is submitted.
enum Way {
    /// The graph at this position, in which these nodes change.
    Launch {
        at: usize,
        changes: Vec<(usize, Action)>,
    },
    Make,
    OneByOne,
}

impl GpuDevice {
    pub(super) fn run_recorded(&mut self, index: usize, run: &GraphRun<'_>) -> Result<Fence, Stop> {
        let Some(mut recorded) = self.graphs.take(index) else {
            return Err(super::device::foreign("graph").into());
        };
        let fence = self.run_taken(&mut recorded, run);
        self.graphs.put(index, recorded);
        fence
    }

    fn run_taken(&mut self, graph: &mut Recorded, run: &GraphRun<'_>) -> Result<Fence, Stop> {
        let mut uses = Vec::with_capacity(graph.fixed.len() + graph.inputs.len());
        uses.extend(graph.fixed.iter().cloned());
        for (position, access) in graph.inputs.iter().enumerate() {
            if let Some(access) = access {
                let place = Buffer::Input(position);
                uses.push((Rc::clone(place.place(run)?.allocation), *access));
            }
        }
        // What another device has is ordered by signals, and has to be within reach.
        let (ours, theirs): (Vec<_>, Vec<_>) =
            uses.into_iter().partition(|(allocation, _)| Rc::ptr_eq(&allocation.site, &self.site));
        let mut within_reach = true;
        for (allocation, _) in &theirs {
            let context = self.peer(allocation)?;
            within_reach &= self.can_reach(&context)?;
        }
        self.queue.begin(Lane::Compute)?;
        for (allocation, access) in &ours {
            allocation.uses.order(&mut self.queue, Lane::Compute, *access)?;
        }
        let way = match within_reach && !graph.is_refused {
            true => self.way(graph, run)?,
            false => Way::OneByOne,
        };
        theirs.iter().for_each(|(source, _)| self.readings.begin(&source.site, &self.queue));
        let submitted = self.submit(graph, run, way);
        if submitted.is_err() && !theirs.is_empty() {
            // What was queued before the failure reads there too.
            self.queue.push(Lane::Compute, 0);
        }
        let fence = submitted?;
        for (allocation, access) in &ours {
            allocation.uses.note(Lane::Compute, *access, fence.0);
        }
        Ok(fence)
    }

    fn submit(
        &mut self,
        graph: &mut Recorded,
        run: &GraphRun<'_>,
        way: Way,
    ) -> Result<Fence, Stop> {
        let (at, changes) = match way {
            Way::Launch { at, changes } => (at, changes),
            Way::Make => match self.make(graph, run)? {
                Some(at) => (at, Vec::new()),
                None => return self.one_by_one(graph, run),
            },
            Way::OneByOne => return self.one_by_one(graph, run),
        };
        for (index, action) in changes {
            let made = &mut graph.made[at];
            made.change(index, action, &graph.steps[index])?;
        }
        let units = graph.units;
        let exec = &graph.made[at].exec;
        let fence = self.timed(run.timed, units, |device| {
            Ok(device.queue.stream(Lane::Compute).launch_graph(exec)?)
        })?;
        graph.made[at].number = fence.0;
        Ok(fence)
    }

    /// Decides how to submit a run.
    fn way(&mut self, graph: &Recorded, run: &GraphRun<'_>) -> Result<Way, Stop> {
        let sharing = graph.sharing(run)?;
        let completed = self.queue.completed();
        let mut packed = std::mem::take(&mut self.arguments);
        let mut idle_ways = Vec::new();
        for (at, made) in graph.made.iter().enumerate() {
            if made.sharing != sharing {
                continue;
            }
            let mut changes = Vec::new();
            for (index, step) in graph.steps.iter().enumerate().filter(|(_, step)| step.varies) {
                let action = step.action(self, run, &mut packed)?;
                if action != made.actions[index] {
                    changes.push((index, action));
                }
            }
            let may_change = made.number <= completed || self.changes_are_for_later();
            if changes.is_empty() || may_change {
                idle_ways.push(Way::Launch { at, changes });
                break;
            }
        }
        self.arguments = packed;
        if let Some(way) = idle_ways.pop() {
            return Ok(way);
        }
        let has_room = graph.made.len() < GpuLimits::GRAPHS_MADE_MAX
            || graph.made.iter().any(|made| made.number <= completed);
        Ok(if has_room { Way::Make } else { Way::OneByOne })
    }

    /// Makes a graph of the driver's for this run. `None` where the driver cannot.
    fn make(&mut self, graph: &mut Recorded, run: &GraphRun<'_>) -> Result<Option<usize>, Stop> {
        let plan = graph.plan(run)?;
        if plan.overlaps_itself {
            return Ok(None);
        }
        let mut packed = Vec::new();
        let template = Template::create(self.queue.context())?;
        let (mut nodes, mut actions) = (Vec::<Node>::new(), Vec::new());
        for (step, after) in graph.steps.iter().zip(&plan.after) {
            let after: Vec<Node> = after.iter().map(|index| nodes[*index]).collect();
            let action = step.action(self, run, &mut packed)?;
            let added = match (&action, &step.kind) {
                (Action::Launch { sizes, arguments }, Kind::Launch { kernel, .. }) => {
                    template.add_kernel(&after, &sizes.kernel(&kernel.function, arguments))
                }
                (Action::Copy { to, from, bytes }, _) => {
                    template.add_copy(&after, *to, *from, *bytes)
                }
                (Action::Launch { .. }, Kind::Copy { .. }) => break,
            };
            match added {
                Err(trouble) if self.is_unsupported(trouble) => {
                    graph.is_refused = true;
                    return Ok(None);
                }
                added => nodes.push(added?),
            }
            actions.push(action);
        }
        let exec = template.instantiate()?;
        let made =
            Made { nodes, actions, sharing: plan.sharing, number: 0, exec, _template: template };
        if graph.made.len() < GpuLimits::GRAPHS_MADE_MAX {
            graph.made.push(made);
            return Ok(Some(graph.made.len() - 1));
        }
        let completed = self.queue.completed();
        let idle = graph.made.iter().position(|made| made.number <= completed);
        let Some(at) = idle else { return Ok(None) };
        let old = std::mem::replace(&mut graph.made[at], made);
        self.clerk.send(super::clerk::Job::Drop(Box::new(old)));
        Ok(Some(at))
    }

    /// Queues the steps in their order.
    fn one_by_one(&mut self, graph: &Recorded, run: &GraphRun<'_>) -> Result<Fence, Stop> {
        let mut packed = Vec::new();
        // All are checked before any is queued.
        let mut actions = Vec::with_capacity(graph.steps.len());
        for step in &graph.steps {
            actions.push(step.action(self, run, &mut packed)?);
        }
        self.timed(run.timed, graph.units, |device| {
            for (step, action) in graph.steps.iter().zip(&actions) {
                match (action, &step.kind) {
                    (Action::Launch { sizes, arguments }, Kind::Launch { kernel, .. }) => {
                        let kernel = sizes.kernel(&kernel.function, arguments);
                        device.queue.stream(Lane::Compute).launch(&kernel)?;
                    }
                    (Action::Copy { to, from, bytes }, _) => {
                        let source = step.buffers[1].place(run)?.allocation;
                        if Rc::ptr_eq(&source.site, &device.site) {
                            device.copy_here(*to, *from, *bytes)?;
                        } else {
                            let theirs = device.peer(source)?;
                            device.copy_far(*to, &theirs, *from, *bytes)?;
                        }
                    }
                    (Action::Launch { .. }, Kind::Copy { .. }) => {}
                }
            }
            Ok(())
        })
    }
}

impl Made {
    fn change(&mut self, index: usize, action: Action, step: &Step) -> Result<(), Stop> {
        let node = self.nodes[index];
        match (&action, &step.kind) {
            (Action::Launch { sizes, arguments }, Kind::Launch { kernel, .. }) => {
                self.exec.set_kernel(node, &sizes.kernel(&kernel.function, arguments))?;
            }
            (Action::Copy { to, from, bytes }, _) => {
                self.exec.set_copy(node, *to, *from, *bytes)?;
            }
            (Action::Launch { .. }, Kind::Copy { .. }) => {}
        }
        self.actions[index] = action;
        Ok(())
    }
}

impl Recorded {
    /// How the inputs of a run share memory with each other and with the graph's own buffers.
    fn sharing(&self, run: &GraphRun<'_>) -> Result<Sharing, Stop> {
        let mut places = Vec::new();
        for (position, access) in self.inputs.iter().enumerate() {
            if access.is_some() {
                let place = Buffer::Input(position).place_of(run)?;
                places.push((position, place));
            }
        }
        let is_fixed = |base: u64| {
            self.fixed.binary_search_by_key(&base, |(allocation, _)| allocation.at.0).is_ok()
        };
        Ok(Sharing::of(&places, is_fixed))
    }

    fn plan(&self, run: &GraphRun<'_>) -> Result<Plan, Stop> {
        let mut plan = Plan::new(self.sharing(run)?);
        let mut operands = Vec::new();
        for step in &self.steps {
            operands.clear();
            for (buffer, writes) in step.buffers.iter().zip(&step.writes) {
                let mut operand = buffer.place_of(run)?;
                if let Kind::Copy { bytes } = step.kind {
                    operand.bytes = bytes;
                }
                operands.push((operand, *writes));
            }
            plan.add(&operands, matches!(step.kind, Kind::Copy { .. }));
        }
        Ok(plan)
    }
}

impl Buffer {
    fn place_of(&self, run: &GraphRun<'_>) -> Result<Operand, DeviceError> {
        let place = self.place(run)?;
        Ok(Operand { base: place.allocation.at.0, offset: place.offset, bytes: place.bytes })
    }
}

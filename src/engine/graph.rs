//! Graphs: a recorded list of kernels and copies, over one or several sessions.
//!
//! Owns: [`GraphState`], and how it is recorded on the devices and run. A graph's steps are in one
//! order. They are sorted into [`Turn`]s of the devices that take part: sections, each a graph of
//! one device and one submission to it, and between them signals and waits where a copy goes from
//! one device to another, which is a turn of its own where a graph cannot reach so far. A graph of
//! one device is one section, unless it is long. A graph keeps the buffers and programs that it
//! uses.
//!
//! A run takes the turns in their order. Each comes after all that it waits for, so a run may stop
//! between two of them until there is room, and a device never waits for what nobody has queued.
//!
//! Absent: what waits for what (`recorder`).

mod recorder;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::batch::{Output, Pending};
use super::buffer::Buffer;
use super::program::{dimension, kernel_value};
use super::session::{SessionId, Thing};
use super::transfer::copy_on;
use super::{Cause, DONE, Engine, Step, Stop, WaitFor};
use crate::config::DeviceLimits;
use crate::device::{
    Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, Point, Program, Span,
};
use crate::wire::command::{self, GraphNumber};
use crate::wire::reply;
use crate::wire::symbolic::Integer;
use recorder::Recorder;

/// A recorded graph.
#[derive(Debug, Default)]
pub(super) struct GraphState {
    /// Bytes that each input must have at least, by position: those that are copied. Kernels may
    /// get inputs of other sizes, as they do where shapes are symbolic.
    inputs: Vec<u64>,
    integers: Vec<BoundInteger>,
    /// Those who take part.
    sessions: Vec<SessionId>,
    turns: Vec<Turn>,
}

/// What one device does next. `part` is a position among the graph's sessions.
#[derive(Debug)]
enum Turn {
    /// A copy that the devices cannot make in a graph. Positions of inputs are those among the
    /// graph's.
    Copy {
        part: usize,
        source: usize,
        to: OwnedBuffer,
        from: OwnedBuffer,
        bytes: u64,
    },
    Section(Section),
    /// Signals have numbers, from 0, in their order.
    Signal {
        part: usize,
    },
    Wait {
        part: usize,
        signal: usize,
    },
}

/// Steps that one device does by itself.
#[derive(Debug)]
struct Section {
    part: usize,
    /// Positions of the inputs that are used, in the order of the section's own.
    inputs: Vec<usize>,
    steps: Vec<OwnedStep>,
    graph: Option<Graph>,
}

/// A step that keeps what it uses.
#[derive(Debug)]
enum OwnedStep {
    Copy {
        to: OwnedBuffer,
        from: OwnedBuffer,
        bytes: u64,
    },
    Launch {
        program: Rc<Program>,
        buffers: Vec<OwnedBuffer>,
        /// Positions of the buffers that are written, as the client says.
        outputs: Vec<usize>,
        values: Vec<GraphInt>,
        global: Option<[GraphInt; 3]>,
        local: Option<[GraphInt; 3]>,
    },
}

#[derive(Debug)]
enum OwnedBuffer {
    Fixed(Buffer),
    /// Position among the section's inputs.
    Input(usize),
}

impl OwnedBuffer {
    fn borrowed(&self) -> GraphBuffer<'_> {
        match self {
            OwnedBuffer::Fixed(buffer) => GraphBuffer::Fixed(buffer.span()),
            OwnedBuffer::Input(position) => GraphBuffer::Input(*position),
        }
    }

    fn among<'b>(&'b self, inputs: &'b [Buffer]) -> &'b Buffer {
        match self {
            OwnedBuffer::Fixed(buffer) => buffer,
            OwnedBuffer::Input(position) => &inputs[*position],
        }
    }
}

/// An integer that depends on variables which each run gives.
#[derive(Debug)]
struct BoundInteger {
    from: Origin,
    /// Variables that the kernel has fixed, which beat those of the run.
    fixed: Rc<HashMap<Box<str>, i64>>,
}

#[derive(Debug)]
enum Origin {
    Size { what: &'static str, integer: Integer<'static> },
    Variable(Box<str>),
}

/// A graph whose items are being sorted.
#[derive(Debug)]
pub(super) struct Sorting {
    session: SessionId,
    recorder: Recorder,
    /// Items up to here are sorted.
    next: usize,
}

/// A graph that is being recorded on its devices.
#[derive(Debug)]
pub(super) struct Building {
    session: SessionId,
    number: GraphNumber,
    graph: GraphState,
    /// Turns up to here are recorded.
    next: usize,
}

/// A run of a graph under way.
#[derive(Debug)]
pub(super) struct Running {
    graph: Rc<GraphState>,
    inputs: Vec<Buffer>,
    integers: Vec<i32>,
    /// Turns up to here are queued.
    next: usize,
    /// Of the next one, if it is a copy, bytes up to here are.
    copied: u64,
    /// What the signals so far lead to.
    points: Vec<Point>,
    timing: Option<Timing>,
}

/// What the sections of a run took.
#[derive(Debug, Default)]
struct Timing {
    /// Those that may still run, in their order.
    running: VecDeque<(SessionId, Fence)>,
    /// Those before.
    elapsed: Vec<Duration>,
}

/// Sections whose time nobody has asked for yet. A device remembers only so many.
const TIMED_MAX: usize = DeviceLimits::TIMERS / 2;

impl Engine {
    pub(super) fn graph_alloc(
        &mut self,
        at: SessionId,
        c: &command::GraphAlloc<'_>,
    ) -> Result<Step, Stop> {
        let limit = self.limits.graphs_per_session_max;
        self.graph_is_new(at, c.graph)?;
        if self.get(at)?.graphs.len() >= limit {
            return Err(Cause::Limit { what: "graphs", limit }.into());
        }
        let nodes = c.items.len().max(c.inputs.len());
        let limit = self.limits.graph_nodes_max;
        if nodes > limit {
            return Err(Cause::GraphTooLarge { nodes, limit }.into());
        }
        let mut recorder = Recorder::default();
        for name in c.inputs.iter() {
            recorder.input(self, at, name)?;
        }
        self.graph_sort(Box::new(Sorting { session: at, recorder, next: 0 }), c)
    }

    /// Sorts a graph's items into turns, some at a time.
    pub(super) fn graph_sort(
        &mut self,
        mut sorting: Box<Sorting>,
        c: &command::GraphAlloc<'_>,
    ) -> Result<Step, Stop> {
        let Sorting { session: at, recorder, next } = &mut *sorting;
        let until = next.saturating_add(self.limits.graph_items_per_slice).min(c.items.len());
        for item in &c.items[*next..until] {
            recorder.item(self, *at, item)?;
        }
        *next = until;
        if until < c.items.len() {
            return Ok(Step::Pause(Pending::GraphSort(sorting)));
        }
        let Sorting { session, recorder, .. } = *sorting;
        let graph = recorder.finish();
        self.graph_build(Building { session, number: c.graph, graph, next: 0 })
    }

    /// Records a graph's sections, as far as there is room.
    pub(super) fn graph_build(&mut self, mut building: Building) -> Result<Step, Stop> {
        let mut left = self.limits.commands_per_slice;
        let Building { graph: GraphState { sessions, turns, .. }, next, .. } = &mut building;
        while let Some(turn) = turns.get_mut(*next) {
            if let Turn::Section(section) = turn {
                if left == 0 {
                    return Ok(Step::Pause(Pending::GraphBuild(Box::new(building))));
                }
                let device = match self.device(sessions[section.part]) {
                    Ok(session) => session.open_device()?,
                    Err(Stop::Retry(room)) => {
                        return Ok(Step::Wait(room, Pending::GraphBuild(Box::new(building))));
                    }
                    Err(stop) => return Err(stop),
                };
                let recorded = with_steps(&section.steps, |steps| device.build_graph(steps))?;
                section.graph = Some(recorded);
                left = left.saturating_sub(section.steps.len());
            }
            *next += 1;
        }
        let Building { session, number, graph, .. } = building;
        self.graph_is_new(session, number)?;
        let session = self.get_mut(session)?;
        session.forget_missing(&Thing::Graph(number));
        session.graphs.insert(number, Rc::new(graph));
        DONE
    }

    fn graph_is_new(&self, at: SessionId, graph: GraphNumber) -> Result<(), Cause> {
        if self.get(at)?.graphs.contains_key(&graph) {
            return Err(Cause::GraphExists { graph: graph.0 });
        }
        Ok(())
    }

    pub(super) fn graph_free(&mut self, at: SessionId, graph: GraphNumber) -> Result<Step, Stop> {
        let session = self.get_mut(at)?;
        if let Some(graph) = session.graphs.remove(&graph) {
            // Where it runs, who runs it drops it.
            return Rc::try_unwrap(graph).map_or(DONE, |graph| self.graph_drop(Box::new(graph)));
        }
        match session.forget_missing(&Thing::Graph(graph)) {
            true => DONE,
            false => Err(Cause::GraphUnknown { graph: graph.0 }.into()),
        }
    }

    /// Drops a graph, some sections at a time.
    pub(super) fn graph_drop(&self, mut graph: Box<GraphState>) -> Result<Step, Stop> {
        let mut left = self.limits.commands_per_slice;
        while let Some(turn) = graph.turns.pop() {
            let steps = if let Turn::Section(section) = &turn { section.steps.len() } else { 1 };
            left = left.saturating_sub(steps);
            if left == 0 && !graph.turns.is_empty() {
                return Ok(Step::Pause(Pending::GraphDrop(graph)));
            }
        }
        DONE
    }

    pub(super) fn graph_exec(
        &mut self,
        at: SessionId,
        c: &command::GraphExec<'_>,
    ) -> Result<Step, Stop> {
        let session = self.get(at)?;
        let graph = session.graphs.get(&c.graph).cloned().ok_or_else(|| {
            session.missing_or(&Thing::Graph(c.graph), "the graph", || Cause::GraphUnknown {
                graph: c.graph.0,
            })
        })?;
        let inputs = self.graph_inputs(at, &graph, c)?;
        let integers = graph.integers(c)?;
        // Those who are lost are found before anything is queued.
        for session in &graph.sessions {
            self.device(*session)?;
        }
        let (points, timing) = (Vec::new(), c.wait.then(Timing::default));
        self.graph_run(Running { graph, inputs, integers, next: 0, copied: 0, points, timing })
    }

    /// Goes on with a run, as far as there is room.
    pub(super) fn graph_run(&mut self, mut running: Running) -> Result<Step, Stop> {
        let until = running.next.saturating_add(self.limits.commands_per_slice);
        let ran = loop {
            if running.next >= running.graph.turns.len() {
                break self.graph_collect(&mut running, 0);
            }
            if running.next >= until {
                return Ok(Step::Pause(Pending::GraphRun(Box::new(running))));
            }
            let taken = self.graph_turn(&mut running);
            if taken.is_err() {
                break taken;
            }
            running.next += 1;
        };
        match ran {
            Ok(()) => Ok(Step::Done(running.output())),
            Err(Stop::Retry(wait)) => Ok(Step::Wait(wait, Pending::GraphRun(Box::new(running)))),
            Err(stop) => Err(stop),
        }
    }

    fn graph_turn(&mut self, running: &mut Running) -> Result<(), Stop> {
        self.graph_collect(running, TIMED_MAX)?;
        let Running { graph, inputs, integers, next, copied, points, timing } = running;
        match &graph.turns[*next] {
            Turn::Copy { part, source, to, from, bytes } => {
                let [part, source] = [part, source].map(|part| graph.sessions[*part]);
                let copy = [to, from].map(|buffer| buffer.among(inputs));
                self.device(source)?;
                while *copied < *bytes {
                    let device = self.device(part)?.open_device()?.as_mut();
                    *copied = copy_on(device, copy, *bytes, *copied)?;
                }
                *copied = 0;
                // The source has its part to do, and begins with it when it is asked something.
                drop(self.device(source));
            }
            Turn::Section(Section { part, inputs: used, graph: recorded, .. }) => {
                let session = graph.sessions[*part];
                let device = self.device(session)?.open_device()?;
                let Some(recorded) = recorded else { return Ok(()) };
                let spans: Vec<Span<'_>> = used.iter().map(|input| inputs[*input].span()).collect();
                let run = GraphRun { inputs: &spans, ints: integers, timed: timing.is_some() };
                let fence = device.run_graph(recorded, &run)?;
                if let Some(timing) = timing {
                    timing.running.push_back((session, fence));
                }
            }
            Turn::Signal { part } => {
                points.push(self.device(graph.sessions[*part])?.signal()?);
            }
            Turn::Wait { part, signal } => {
                self.device(graph.sessions[*part])?.wait_for_reader(&points[*signal])?;
            }
        }
        Ok(())
    }

    /// Takes the times of sections until no more than `most` may still run.
    fn graph_collect(&mut self, running: &mut Running, most: usize) -> Result<(), Stop> {
        let Some(timing) = &mut running.timing else { return Ok(()) };
        while timing.running.len() > most
            && let Some(&(at, fence)) = timing.running.front()
        {
            let session = self.get_mut(at)?;
            if !session.completed(fence) && session.lost().is_none() {
                return Err(Stop::Retry(WaitFor::Device { session: at, fence }));
            }
            timing.elapsed.push(self.elapsed(at, fence)?);
            timing.running.pop_front();
        }
        Ok(())
    }

    fn graph_inputs(
        &self,
        at: SessionId,
        graph: &GraphState,
        c: &command::GraphExec<'_>,
    ) -> Result<Vec<Buffer>, Cause> {
        if c.inputs.len() < graph.inputs.len() {
            let (given, recorded) = (c.inputs.len(), graph.inputs.len());
            return Err(Cause::GraphInputs { given, recorded });
        }
        let mut inputs = Vec::with_capacity(graph.inputs.len());
        for (position, (name, copied)) in c.inputs.iter().zip(&graph.inputs).enumerate() {
            let session = self.other_session(at, &name.session)?;
            let buffer = self.get(session)?.buffer(name.buffer)?.clone();
            if buffer.bytes < *copied {
                let (bytes, copied) = (buffer.bytes, *copied);
                return Err(Cause::GraphInputBytes { position, bytes, copied });
            }
            inputs.push(buffer);
        }
        Ok(inputs)
    }
}

impl Running {
    /// The time that the run took, where it was asked for.
    fn output(&mut self) -> Output {
        let Some(timing) = &self.timing else { return Output::Empty };
        let longest = self.graph.longest(&timing.elapsed);
        Output::Text(reply::Seconds(longest.as_secs_f64()).to_string())
    }
}

impl GraphState {
    /// From the begin of a run to its end, if sections take as long as this and nothing else, such
    /// as a copy between them, takes time: the longest way along what waits for what.
    fn longest(&self, elapsed: &[Duration]) -> Duration {
        let mut clocks = vec![Duration::ZERO; self.sessions.len()];
        let (mut signals, mut elapsed) = (Vec::new(), elapsed.iter());
        for turn in &self.turns {
            match *turn {
                Turn::Section(Section { part, .. }) => {
                    clocks[part] += elapsed.next().copied().unwrap_or_default();
                }
                Turn::Copy { .. } => {}
                Turn::Signal { part } => signals.push(clocks[part]),
                Turn::Wait { part, signal } => clocks[part] = clocks[part].max(signals[signal]),
            }
        }
        clocks.into_iter().max().unwrap_or_default()
    }

    /// The values of all integers in a run.
    fn integers(&self, c: &command::GraphExec<'_>) -> Result<Vec<i32>, Cause> {
        let given: HashMap<&str, i64> =
            c.values.0.iter().map(|(key, value)| (key.name(), *value)).collect();
        self.integers
            .iter()
            .map(|bound| {
                let lookup =
                    |name: &str| bound.fixed.get(name).or_else(|| given.get(name)).copied();
                match &bound.from {
                    Origin::Size { what, integer } => dimension(what, integer.eval(&lookup)?),
                    Origin::Variable(name) => {
                        let value = lookup(name)
                            .ok_or_else(|| Cause::VariableUnbound { name: name.to_string() })?;
                        kernel_value(value)
                    }
                }
            })
            .collect()
    }
}

/// Calls `take` with the steps in the form that a device takes them.
fn with_steps<T>(steps: &[OwnedStep], take: impl FnOnce(&[GraphStep<'_>]) -> T) -> T {
    let buffers: Vec<Vec<GraphBuffer<'_>>> = steps
        .iter()
        .map(|step| match step {
            OwnedStep::Launch { buffers, .. } => {
                buffers.iter().map(OwnedBuffer::borrowed).collect()
            }
            OwnedStep::Copy { to, from, .. } => vec![to.borrowed(), from.borrowed()],
        })
        .collect();
    let steps: Vec<GraphStep<'_>> = steps
        .iter()
        .zip(&buffers)
        .map(|(step, buffers)| match step {
            OwnedStep::Copy { bytes, .. } => {
                GraphStep::Copy { to: buffers[0], from: buffers[1], bytes: *bytes }
            }
            OwnedStep::Launch { program, outputs, values, global, local, .. } => {
                let (global, local) = (*global, *local);
                GraphStep::Launch { program, buffers, outputs, values, global, local }
            }
        })
        .collect();
    take(&steps)
}

//! Graphs: a recorded list of kernels and copies, over one or several sessions, run as one
//! submission to each device that takes part.
//!
//! A graph's steps are in one order; each device runs its own in that order. Devices meet only
//! where a copy goes from one to another: the destination waits for the source's steps so far, and
//! the source goes on to later steps of its own, which might overwrite what is copied, only after
//! the copy. A graph keeps the buffers and programs that it uses.

use std::collections::HashMap;
use std::rc::Rc;

use super::batch::Pending;
use super::buffer::Buffer;
use super::program::{dimension, kernel_value};
use super::session::{SessionId, Thing};
use super::{Cause, DONE, Engine, Step, Stop, WaitFor};
use crate::device::{Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, Point, Program, Span};
use crate::wire::command::{self, BufferNumber, GraphItem, GraphNumber, SessionKey};
use crate::wire::symbolic::{Integer, Variable};

/// A recorded graph.
#[derive(Debug, Default)]
pub(super) struct GraphState {
    /// Bytes that each input must have at least, by position: those that are copied. Kernels may
    /// get inputs of other sizes, as they do where shapes are symbolic.
    inputs: Vec<u64>,
    integers: Vec<BoundInteger>,
    parts: Vec<Part>,
}

/// What one device does of a graph.
#[derive(Debug)]
struct Part {
    session: SessionId,
    /// Positions of the inputs that this part uses, in the order of its own.
    inputs: Vec<usize>,
    /// The parts whose timelines this one waits for.
    peers: Vec<usize>,
    steps: Vec<OwnedStep>,
    /// Signals among the steps so far.
    signals: u32,
    /// Copies from this part's memory that it has not waited for yet: the part that copies, and
    /// its signals then.
    readers: Vec<(usize, u32)>,
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
        values: Vec<GraphInt>,
        global: Option<[GraphInt; 3]>,
        local: Option<[GraphInt; 3]>,
    },
    Signal,
    Wait {
        peer: usize,
        steps: u32,
    },
}

#[derive(Debug)]
enum OwnedBuffer {
    Fixed(Buffer),
    /// Position among the part's inputs.
    Input(usize),
}

impl OwnedBuffer {
    fn borrowed(&self) -> GraphBuffer<'_> {
        match self {
            OwnedBuffer::Fixed(buffer) => GraphBuffer::Fixed(buffer.span()),
            OwnedBuffer::Input(position) => GraphBuffer::Input(*position),
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

impl Engine {
    pub(super) fn graph_alloc(
        &mut self,
        at: SessionId,
        c: &command::GraphAlloc<'_>,
    ) -> Result<Step, Stop> {
        let session = self.get(at)?;
        let limit = self.limits.graphs_per_session_max;
        if session.graphs.contains_key(&c.graph) {
            return Err(Cause::GraphExists { graph: c.graph.0 }.into());
        }
        if session.graphs.len() >= limit {
            return Err(Cause::Limit { what: "graphs", limit }.into());
        }
        let nodes = c.items.len().max(c.inputs.len());
        let limit = self.limits.graph_nodes_max;
        if nodes > limit {
            return Err(Cause::GraphTooLarge { nodes, limit }.into());
        }
        let mut builder = Builder::default();
        for (position, name) in c.inputs.iter().enumerate() {
            let session = self.other_session(&name.session)?;
            builder.inputs.entry((session, name.buffer)).or_insert(position);
            self.get(session)?.buffer(name.buffer)?;
            builder.graph.inputs.push(0);
        }
        for item in c.items.iter() {
            match item {
                GraphItem::Compute(item) => builder.launch(self, item)?,
                GraphItem::Transfer { session, transfer } => {
                    builder.copy(self, session, transfer)?;
                }
            }
        }
        let mut graph = builder.finish();
        for part in &graph.parts {
            self.device(part.session)?;
        }
        for part in &mut graph.parts {
            let device = self.get_mut(part.session)?.open_device()?;
            part.graph = Some(with_steps(&part.steps, |steps| device.build_graph(steps))?);
        }
        let session = self.get_mut(at)?;
        session.forget_missing(&Thing::Graph(c.graph));
        session.graphs.insert(c.graph, Rc::new(graph));
        DONE
    }

    pub(super) fn graph_free(&mut self, at: SessionId, graph: GraphNumber) -> Result<Step, Stop> {
        let session = self.get_mut(at)?;
        let known =
            session.graphs.remove(&graph).is_some() || session.forget_missing(&Thing::Graph(graph));
        if known { DONE } else { Err(Cause::GraphUnknown { graph: graph.0 }.into()) }
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
        let inputs = self.graph_inputs(&graph, c)?;
        let integers = graph.integers(c)?;
        // All devices have room before any gets its part: they wait for each other.
        for part in &graph.parts {
            self.device(part.session)?;
        }
        let mut timelines = Vec::new();
        for part in &graph.parts {
            timelines.push(self.get_mut(part.session)?.open_device()?.timeline());
        }
        let mut fences = Vec::new();
        for part in &graph.parts {
            let Some(recorded) = &part.graph else { continue };
            let spans: Vec<Span<'_>> = part.inputs.iter().map(|i| inputs[*i].span()).collect();
            let peers: Vec<Point> = part.peers.iter().map(|p| timelines[*p].clone()).collect();
            let run = GraphRun { inputs: &spans, ints: &integers, peers: &peers, timed: c.wait };
            let device = self.get_mut(part.session)?.open_device()?;
            fences.push((part.session, device.run_graph(recorded, &run)?));
        }
        match fences.last() {
            Some((session, fence)) if c.wait => Ok(Step::Wait(
                WaitFor::Device { session: *session, fence: *fence },
                Pending::Elapsed { fences },
            )),
            _ => DONE,
        }
    }

    fn graph_inputs(
        &self,
        graph: &GraphState,
        c: &command::GraphExec<'_>,
    ) -> Result<Vec<Buffer>, Cause> {
        if c.inputs.len() < graph.inputs.len() {
            let (given, recorded) = (c.inputs.len(), graph.inputs.len());
            return Err(Cause::GraphInputs { given, recorded });
        }
        let mut inputs = Vec::with_capacity(graph.inputs.len());
        for (position, (name, copied)) in c.inputs.iter().zip(&graph.inputs).enumerate() {
            let session = self.other_session(&name.session)?;
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

impl GraphState {
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

/// A graph that is being recorded.
#[derive(Default)]
struct Builder {
    graph: GraphState,
    /// Positions of the inputs by what stood there.
    inputs: HashMap<(SessionId, BufferNumber), usize>,
    /// Positions among a part's inputs, by part and position among the graph's.
    part_inputs: HashMap<(usize, usize), usize>,
    parts: HashMap<SessionId, usize>,
    /// Positions of variables among the graph's integers.
    variables: HashMap<Box<str>, usize>,
}

impl Builder {
    fn launch(
        &mut self,
        engine: &Engine,
        item: &command::GraphComputeItem<'_>,
    ) -> Result<(), Cause> {
        let session = engine.other_session(&item.session)?;
        let program = engine.get(session)?.names().program(&item.name, item.source)?;
        let program = Rc::clone(program);
        let part = self.part(session);
        let buffers = item
            .buffers
            .iter()
            .map(|number| self.buffer(engine, part, session, *number))
            .collect::<Result<_, _>>()?;
        let fixed: HashMap<Box<str>, i64> =
            item.fixed.0.iter().map(|(key, value)| (key.name().into(), *value)).collect();
        let fixed = Rc::new(fixed);
        let values = item
            .variables
            .iter()
            .map(|variable| self.variable(variable, &fixed))
            .collect::<Result<_, _>>()?;
        let global = self.sizes("global size", item.global.as_ref(), &fixed)?;
        let local = self.sizes("local size", item.local.as_ref(), &fixed)?;
        self.wait_for_readers(part);
        let step = OwnedStep::Launch { program, buffers, values, global, local };
        self.graph.parts[part].steps.push(step);
        Ok(())
    }

    fn copy(
        &mut self,
        engine: &Engine,
        session: &SessionKey<'_>,
        c: &command::Transfer<'_>,
    ) -> Result<(), Cause> {
        let from_session = engine.other_session(session)?;
        let to_session = engine.other_session(&c.destination_session)?;
        let (from_number, to_number) = (c.source, c.destination);
        let from = engine.get(from_session)?.buffer(from_number)?;
        let to = engine.get(to_session)?.buffer(to_number)?;
        if from.bytes != to.bytes {
            return Err(Cause::Length {
                what: format!("source buffer {}", from_number.0),
                left: from.bytes,
                other: format!("destination buffer {}", to_number.0),
                right: to.bytes,
            });
        }
        let bytes = from.bytes;
        let (source, destination) = (self.part(from_session), self.part(to_session));
        for name in [(from_session, from_number), (to_session, to_number)] {
            if let Some(position) = self.inputs.get(&name) {
                let copied = &mut self.graph.inputs[*position];
                *copied = bytes.max(*copied);
            }
        }
        let to = self.buffer(engine, destination, to_session, to_number)?;
        let from = self.buffer(engine, destination, from_session, from_number)?;
        if source != destination {
            let signals = self.signal(source);
            self.wait(destination, source, signals);
        }
        self.wait_for_readers(destination);
        self.graph.parts[destination].steps.push(OwnedStep::Copy { to, from, bytes });
        if source != destination {
            let signals = self.signal(destination);
            self.graph.parts[source].readers.push((destination, signals));
        }
        Ok(())
    }

    fn finish(mut self) -> GraphState {
        (0..self.graph.parts.len()).for_each(|part| self.wait_for_readers(part));
        self.graph
    }

    fn part(&mut self, session: SessionId) -> usize {
        *self.parts.entry(session).or_insert_with(|| {
            self.graph.parts.push(Part {
                session,
                inputs: Vec::new(),
                peers: Vec::new(),
                steps: Vec::new(),
                signals: 0,
                readers: Vec::new(),
                graph: None,
            });
            self.graph.parts.len() - 1
        })
    }

    /// A buffer as a step of `part` sees it.
    fn buffer(
        &mut self,
        engine: &Engine,
        part: usize,
        session: SessionId,
        number: BufferNumber,
    ) -> Result<OwnedBuffer, Cause> {
        if let Some(position) = self.inputs.get(&(session, number)) {
            let inputs = &mut self.graph.parts[part].inputs;
            let index = *self.part_inputs.entry((part, *position)).or_insert_with(|| {
                inputs.push(*position);
                inputs.len() - 1
            });
            return Ok(OwnedBuffer::Input(index));
        }
        Ok(OwnedBuffer::Fixed(engine.get(session)?.buffer(number)?.clone()))
    }

    /// Signals from `part`, and how many signals that makes.
    fn signal(&mut self, part: usize) -> u32 {
        let part = &mut self.graph.parts[part];
        part.steps.push(OwnedStep::Signal);
        part.signals += 1;
        part.signals
    }

    fn wait(&mut self, part: usize, peer: usize, steps: u32) {
        let part = &mut self.graph.parts[part];
        // There are as many as sessions of one connection at most.
        let peer = part.peers.iter().position(|known| *known == peer).unwrap_or_else(|| {
            part.peers.push(peer);
            part.peers.len() - 1
        });
        part.steps.push(OwnedStep::Wait { peer, steps });
    }

    /// Lets `part` go on only after others have copied from its memory.
    fn wait_for_readers(&mut self, part: usize) {
        for (reader, signals) in std::mem::take(&mut self.graph.parts[part].readers) {
            self.wait(part, reader, signals);
        }
    }

    fn variable(
        &mut self,
        variable: &Variable<'_>,
        fixed: &Rc<HashMap<Box<str>, i64>>,
    ) -> Result<GraphInt, Cause> {
        let name: &str = &variable.name;
        if let Some(value) = fixed.get(name) {
            return kernel_value(*value).map(GraphInt::Fixed);
        }
        if let Some(position) = self.variables.get(name) {
            return Ok(GraphInt::Variable(*position));
        }
        let from = Origin::Variable(name.into());
        let position = self.push(BoundInteger { from, fixed: Rc::default() });
        self.variables.insert(name.into(), position);
        Ok(GraphInt::Variable(position))
    }

    fn sizes(
        &mut self,
        what: &'static str,
        sizes: Option<&command::LaunchSize<Integer<'_>>>,
        fixed: &Rc<HashMap<Box<str>, i64>>,
    ) -> Result<Option<[GraphInt; 3]>, Cause> {
        let Some(sizes) = sizes else { return Ok(None) };
        let mut launch = [GraphInt::Fixed(1); 3];
        for (to, integer) in launch.iter_mut().zip(sizes.as_slice()) {
            *to = match integer {
                Integer::Fixed(value) => GraphInt::Fixed(dimension(what, *value)?),
                Integer::Expression(_) => {
                    let from = Origin::Size { what, integer: integer.clone().into_owned() };
                    GraphInt::Variable(self.push(BoundInteger { from, fixed: Rc::clone(fixed) }))
                }
            };
        }
        Ok(Some(launch))
    }

    fn push(&mut self, integer: BoundInteger) -> usize {
        self.graph.integers.push(integer);
        self.graph.integers.len() - 1
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
            OwnedStep::Signal | OwnedStep::Wait { .. } => Vec::new(),
        })
        .collect();
    let steps: Vec<GraphStep<'_>> = steps
        .iter()
        .zip(&buffers)
        .map(|(step, buffers)| match step {
            OwnedStep::Copy { bytes, .. } => {
                GraphStep::Copy { to: buffers[0], from: buffers[1], bytes: *bytes }
            }
            OwnedStep::Launch { program, values, global, local, .. } => {
                GraphStep::Launch { program, buffers, values, global: *global, local: *local }
            }
            OwnedStep::Signal => GraphStep::Signal,
            OwnedStep::Wait { peer, steps } => GraphStep::Wait { peer: *peer, steps: *steps },
        })
        .collect();
    take(&steps)
}

//! A graph's commands, sorted into turns of its devices.
//!
//! Owns: what waits for what between devices. Inside a section its device keeps the order.
//!
//! A copy between devices is a step of the destination's, or a turn of its own where its graphs do
//! not reach that memory. It needs the source's steps so far, and
//! what the source does next, which might overwrite what is copied, comes only after it. A section
//! ends where that makes its device signal or wait: a signal comes as late as it
//! can, before the next step that nobody waits for, so that several copies in a row have one; and
//! what a device has waited for before it does not wait for again. A section that is long ends too,
//! so that others have their turn while it is recorded.
//!
//! A turn stands after all that it needs. So whoever takes the turns in their order never has a
//! device wait for something that has not been queued.

use std::collections::HashMap;
use std::rc::Rc;

use super::{BoundInteger, GraphState, Origin, OwnedBuffer, OwnedStep, Section, Turn};
use crate::config::EngineLimits;
use crate::device::GraphInt;
use crate::engine::buffer::Buffer;
use crate::engine::program::{dimension, kernel_value};
use crate::engine::session::SessionId;
use crate::engine::{Cause, Engine};
use crate::wire::command::{self, BufferNumber, GraphItem};
use crate::wire::symbolic::{Integer, Variable};

/// A graph that is being recorded.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    graph: GraphState,
    /// Positions of the inputs by what stood there.
    inputs: HashMap<(SessionId, BufferNumber), usize>,
    by_session: HashMap<SessionId, usize>,
    parts: Vec<Part>,
    /// The parts that signal, by the signals' numbers.
    signals: Vec<usize>,
    /// Positions of variables among the graph's integers.
    variables: HashMap<Box<str>, usize>,
}

/// What is known of one device's part.
#[derive(Debug, Default)]
struct Part {
    /// The section that grows.
    steps: Vec<OwnedStep>,
    inputs: Vec<usize>,
    /// Positions among `inputs`, by those among the graph's.
    input_positions: HashMap<usize, usize>,
    /// The signal after all steps so far.
    signalled: Option<usize>,
    /// Parts from which it has copied since its last signal.
    sources: Vec<usize>,
    /// Parts that have copied from it, and whose signal may be to come.
    readers: Vec<usize>,
    /// Signals before its next step.
    waits: Vec<usize>,
    /// The last signal of each part that it has waited for.
    waited: HashMap<usize, usize>,
}

impl Recorder {
    /// Names an input, in their order; the graph is one of session `at`.
    pub(super) fn input(
        &mut self,
        engine: &Engine,
        at: SessionId,
        name: &command::BufferName<'_>,
    ) -> Result<(), Cause> {
        let session = engine.other_session(at, &name.session)?;
        engine.get(session)?.buffer(name.buffer)?;
        let position = self.graph.inputs.len();
        self.inputs.entry((session, name.buffer)).or_insert(position);
        self.graph.inputs.push(0);
        Ok(())
    }

    pub(super) fn item(
        &mut self,
        engine: &Engine,
        at: SessionId,
        item: &GraphItem<'_>,
    ) -> Result<(), Cause> {
        match item {
            GraphItem::Compute(item) => self.launch(engine, at, item),
            GraphItem::Transfer { session, transfer } => {
                let from = engine.other_session(at, session)?;
                let to = engine.other_session(at, &transfer.destination_session)?;
                self.copy(engine, (from, transfer.source), (to, transfer.destination))
            }
        }
    }

    /// The graph, at whose end no device goes on before the others are done with its memory.
    pub(super) fn finish(mut self) -> GraphState {
        (0..self.parts.len()).for_each(|part| self.wait_for_readers(part));
        (0..self.parts.len()).for_each(|part| self.settle(part));
        (0..self.parts.len()).for_each(|part| self.end_section(part));
        self.graph
    }

    fn launch(
        &mut self,
        engine: &Engine,
        at: SessionId,
        item: &command::GraphComputeItem<'_>,
    ) -> Result<(), Cause> {
        let session = engine.other_session(at, &item.session)?;
        let program = engine.get(session)?.names().program(&item.name, item.source)?;
        let program = Rc::clone(program);
        let part = self.part(session);
        self.begin_step(part);
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
        // A position that is none says as little as none at all.
        let outputs = item.outputs.iter().map(|at| usize::try_from(*at).unwrap_or(usize::MAX));
        let outputs = outputs.collect();
        let step = OwnedStep::Launch { program, buffers, outputs, values, global, local };
        self.push_step(part, step);
        Ok(())
    }

    fn copy(
        &mut self,
        engine: &Engine,
        (from_session, from_number): (SessionId, BufferNumber),
        (to_session, to_number): (SessionId, BufferNumber),
    ) -> Result<(), Cause> {
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
        if source == destination {
            self.begin_step(destination);
        } else {
            let written = self.signal(source);
            self.parts[destination].waits.push(written);
            self.wait_for_readers(destination);
            self.settle(destination);
        }
        if source == destination || engine.get(to_session)?.reaches(&from.region) {
            let to = self.buffer(engine, destination, to_session, to_number)?;
            let from = self.buffer(engine, destination, from_session, from_number)?;
            self.push_step(destination, OwnedStep::Copy { to, from, bytes });
        } else {
            self.end_section(destination);
            let to = self.graph_buffer((to_session, to_number), to);
            let from = self.graph_buffer((from_session, from_number), from);
            self.graph.turns.push(Turn::Copy { part: destination, source, to, from, bytes });
            self.parts[destination].signalled = None;
        }
        if source != destination {
            self.parts[destination].sources.push(source);
            self.parts[source].readers.push(destination);
        }
        Ok(())
    }

    fn part(&mut self, session: SessionId) -> usize {
        *self.by_session.entry(session).or_insert_with(|| {
            self.graph.sessions.push(session);
            self.parts.push(Part::default());
            self.parts.len() - 1
        })
    }

    /// Comes before a step for which no other device waits.
    fn begin_step(&mut self, part: usize) {
        if !self.parts[part].sources.is_empty() {
            self.signal(part);
        }
        self.wait_for_readers(part);
        self.settle(part);
    }

    fn push_step(&mut self, part: usize, step: OwnedStep) {
        let Part { steps, signalled, .. } = &mut self.parts[part];
        steps.push(step);
        *signalled = None;
        if steps.len() >= EngineLimits::GRAPH_SECTION_STEPS_MAX {
            self.end_section(part);
        }
    }

    /// Has `part` wait, before its next step, for those who have copied from its memory.
    fn wait_for_readers(&mut self, part: usize) {
        for reader in std::mem::take(&mut self.parts[part].readers) {
            // Where it does not, it has signalled since, and that signal is waited for.
            if self.parts[reader].sources.contains(&part) {
                self.signal(reader);
            }
        }
    }

    /// The number of a signal after all steps of `part` so far.
    fn signal(&mut self, part: usize) -> usize {
        if let Some(signal) = self.parts[part].signalled {
            return signal;
        }
        self.end_section(part);
        self.graph.turns.push(Turn::Signal { part });
        self.signals.push(part);
        let signal = self.signals.len() - 1;
        self.parts[part].signalled = Some(signal);
        for source in std::mem::take(&mut self.parts[part].sources) {
            self.parts[source].waits.push(signal);
        }
        signal
    }

    /// Has `part` wait for what comes before its next step, as far as it has not yet.
    fn settle(&mut self, part: usize) {
        let mut waits = std::mem::take(&mut self.parts[part].waits);
        // Of one device's signals the last one says all.
        waits.sort_unstable_by(|a, b| b.cmp(a));
        for signal in waits {
            let peer = self.signals[signal];
            if self.parts[part].waited.get(&peer).is_some_and(|waited| *waited >= signal) {
                continue;
            }
            // What others wait for must not wait in its turn.
            if !self.parts[part].sources.is_empty() {
                self.signal(part);
            }
            self.end_section(part);
            self.graph.turns.push(Turn::Wait { part, signal });
            self.parts[part].waited.insert(peer, signal);
        }
    }

    fn end_section(&mut self, part: usize) {
        let Part { steps, inputs, input_positions, .. } = &mut self.parts[part];
        if steps.is_empty() {
            return;
        }
        input_positions.clear();
        let (steps, inputs) = (std::mem::take(steps), std::mem::take(inputs));
        self.graph.turns.push(Turn::Section(Section { part, inputs, steps, graph: None }));
    }

    /// A buffer as the next step of `part` sees it.
    fn buffer(
        &mut self,
        engine: &Engine,
        part: usize,
        session: SessionId,
        number: BufferNumber,
    ) -> Result<OwnedBuffer, Cause> {
        if let Some(position) = self.inputs.get(&(session, number)) {
            let Part { inputs, input_positions, .. } = &mut self.parts[part];
            let index = *input_positions.entry(*position).or_insert_with(|| {
                inputs.push(*position);
                inputs.len() - 1
            });
            return Ok(OwnedBuffer::Input(index));
        }
        Ok(OwnedBuffer::Fixed(engine.get(session)?.buffer(number)?.clone()))
    }

    /// A buffer as a turn between sections sees it.
    fn graph_buffer(&self, name: (SessionId, BufferNumber), buffer: &Buffer) -> OwnedBuffer {
        match self.inputs.get(&name) {
            Some(position) => OwnedBuffer::Input(*position),
            None => OwnedBuffer::Fixed(buffer.clone()),
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

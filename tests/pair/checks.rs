//! What a command should come to: its checks, in the order in which they count.

use std::rc::Rc;

use super::command::{Act, Command, Item, Key, ProgramName, SOURCES, Variable, Wish};
use super::model::{
    BoundInteger, Causes, Check, Checked, ENDED, Flag, Graph, GraphStep, Mistake, Model, Session,
    Started, Target, Thing, Uid, fail, limits,
};

impl Model {
    pub fn check(&mut self, started: &mut Started) -> Check {
        let mut check = Check::default();
        let Ok(uid) = started.session else { return check };
        let Some(session) = self.by_uid(uid) else {
            check.causes = Some(vec![ENDED.to_owned()]);
            return check;
        };
        let graph = match &started.command.act {
            Act::GraphAlloc { .. } => {
                Some(self.record_graph(session, &started.command, &mut check.looks))
            }
            _ => None,
        };
        let checked = match graph {
            Some(Ok(graph)) => {
                started.graph = Some(Rc::new(graph));
                Ok(())
            }
            Some(Err(causes)) => Err(causes),
            None => self.check_act(started, session, &mut check),
        };
        check.causes = checked.err();
        check
    }

    fn check_act(&self, started: &Started, session: &Session, check: &mut Check) -> Checked {
        let (home, uid) = (started.place.home, session.uid);
        match &started.command.act {
            Act::GetProperties | Act::GraphAlloc { .. } | Act::SessionFree => Ok(()),
            Act::GraphExec { graph, inputs, value, .. } => {
                self.check_run(home, session, *graph, inputs, *value, check)
            }
            Act::GraphFree { graph } => {
                let thing = Thing::Graph(*graph);
                let known = session.graphs.contains_key(graph) || session.is_missing(&thing);
                if known { Ok(()) } else { fail(format!("unknown graph {graph}:")) }
            }
            Act::ProgramAlloc { name, is_sent } => {
                self.check_program(session, name, *is_sent, check)
            }
            Act::ProgramExec { name, buffers, value, size, .. } => {
                if i32::try_from(*value).is_err() {
                    return fail(format!("value {value} does not fit"));
                }
                if let Some(size) = size
                    && *size < 1
                {
                    return fail(format!("global size {size} is not a launch size"));
                }
                check.needs.push(uid);
                self.program(session, name)?;
                buffers.iter().try_for_each(|number| self.buffer(session, *number).map(drop))
            }
            Act::ProgramFree { name } => {
                let thing = Thing::Program(*name);
                let known = session.programs.contains_key(name) || session.is_missing(&thing);
                if known { Ok(()) } else { fail(format!("unknown program ({}, ", name.0)) }
            }
            Act::Unsupported(0) => fail("0 sources and 1 destinations"),
            Act::Unsupported(_) => fail(started.command.refusal()),
            Act::BufferAlloc { .. }
            | Act::BufferFree { .. }
            | Act::BufferOffset { .. }
            | Act::CopyIn { .. }
            | Act::CopyOut { .. } => self.check_buffer_act(started, session, check),
            Act::Event { .. } | Act::Transfer { .. } | Act::Wait { .. } => {
                self.check_meeting(started, session, check)
            }
        }
    }

    /// Buffers and their bytes.
    fn check_buffer_act(&self, started: &Started, session: &Session, check: &mut Check) -> Checked {
        let uid = session.uid;
        match &started.command.act {
            Act::BufferAlloc { buffer, size, wish } => {
                match wish {
                    Wish::ExternalPointer => return fail("external_ptr is refused"),
                    Wish::Image => return fail("image buffers are not supported by NULL devices"),
                    Wish::None => {}
                }
                self.check_new_buffer(session, *buffer, *size)?;
                check.needs.push(uid);
                if *size > 1 << 30 { fail(format!("out of memory: {size} bytes")) } else { Ok(()) }
            }
            Act::BufferFree { buffer } => {
                let thing = Thing::Buffer(*buffer);
                let known = session.buffers.contains_key(buffer) || session.is_missing(&thing);
                if known { Ok(()) } else { fail(format!("unknown buffer {buffer}:")) }
            }
            Act::BufferOffset { buffer, size, offset, base } => {
                self.check_new_buffer(session, *buffer, *size)?;
                let (number, base) = (base, self.buffer(session, *base)?);
                let slack = u128::from(self.has(Mistake::ViewEnd));
                if u128::from(*offset) + u128::from(*size) > base.bytes as u128 + slack {
                    return fail(format!(
                        "lie outside of buffer {number}, which has {}",
                        base.bytes
                    ));
                }
                Ok(())
            }
            Act::CopyIn { buffer, blob, bytes } => {
                let Some(bytes) = bytes else { return fail(format!("no blob {blob}")) };
                check.needs.push(uid);
                let (number, buffer) = (buffer, self.buffer(session, *buffer)?);
                if bytes.len() == buffer.bytes {
                    return Ok(());
                }
                let (left, right) = (bytes.len(), buffer.bytes);
                fail(format!("the blob has {left} bytes, buffer {number} has {right}"))
            }
            Act::CopyOut { buffer } => {
                // Where a later output takes its place it is not read.
                let reads = !started.place.drops_output;
                if reads { &mut check.needs } else { &mut check.looks }.push(uid);
                self.buffer(session, *buffer).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Where two sessions have to do with each other.
    fn check_meeting(&self, started: &Started, session: &Session, check: &mut Check) -> Checked {
        let (home, uid) = (started.place.home, session.uid);
        match &started.command.act {
            Act::Event { to, host, .. } => {
                if *host != "h" {
                    return fail("this server does not connect to");
                }
                let to = self.other(home, *to)?;
                if to.events.len() >= limits::EVENTS {
                    return fail("too many events: the limit is 4");
                }
                if to.uid != uid {
                    check.needs.push(uid);
                }
                Ok(())
            }
            Act::Transfer { from, to, host, to_buffer } => {
                if *host != "h" {
                    check.needs.push(uid);
                    self.buffer(session, *from)?;
                    return fail("this server does not connect to");
                }
                let to = self.other(home, *to)?;
                check.needs.extend([uid, to.uid]);
                let (number, from) = (from, self.buffer(session, *from)?);
                let to = self.buffer(to, *to_buffer)?;
                if from.bytes == to.bytes {
                    return Ok(());
                }
                let (left, right) = (from.bytes, to.bytes);
                fail(format!(
                    "source buffer {number} has {left} bytes, destination buffer {to_buffer} has \
                     {right}"
                ))
            }
            Act::Wait { event } => match session.events.get(event) {
                None => fail(format!("nobody set event {event} within")),
                // Set by another session: its queue is waited for.
                Some(Flag::Other) => {
                    check.needs.push(uid);
                    Ok(())
                }
                Some(Flag::Own) => Ok(()),
                Some(Flag::Failed(causes)) => Err(causes.clone()),
            },
            _ => Ok(()),
        }
    }

    fn check_new_buffer(&self, session: &Session, number: u64, size: u64) -> Checked {
        if size == 0 {
            fail("size 0: a buffer has at least one byte")
        } else if session.buffers.contains_key(&number) {
            fail(format!("buffer {number} is already allocated"))
        } else if session.buffers.len() >= limits::BUFFERS {
            fail("too many buffers: the limit is 7")
        } else {
            Ok(())
        }
    }

    fn check_program(
        &self,
        session: &Session,
        name: &ProgramName,
        is_sent: bool,
        check: &mut Check,
    ) -> Checked {
        if !is_sent {
            return fail("no blob ");
        }
        if session.programs.contains_key(name) {
            check.looks.push(session.uid);
            return Ok(());
        }
        check.needs.push(session.uid);
        if session.programs.len() >= limits::PROGRAMS {
            return fail("too many programs: the limit is 3");
        }
        match SOURCES[name.1] {
            source if source.len() > limits::SOURCE_BYTES => fail("longer than this server"),
            b"broken" => fail("compile error: the source is broken"),
            b"fail" => fail("cannot load program: named so"),
            _ => Ok(()),
        }
    }
}

/// Graphs.
impl Model {
    fn record_graph(
        &self,
        session: &Session,
        command: &Command,
        looks: &mut Vec<Uid>,
    ) -> Result<Graph, Causes> {
        let Act::GraphAlloc { graph: number, items, inputs } = &command.act else {
            return fail("no graph");
        };
        if session.graphs.contains_key(number) {
            return fail(format!("graph {number} is already allocated"));
        }
        if session.graphs.len() >= limits::GRAPHS {
            return fail("too many graphs: the limit is 3");
        }
        let nodes = items.len().max(inputs.len());
        if nodes > limits::NODES {
            return fail(format!("the graph has {nodes} kernels, copies or inputs"));
        }
        let mut graph = Graph {
            parts: Default::default(),
            inputs: Vec::new(),
            steps: Vec::new(),
            integers: Vec::new(),
        };
        for (key, number) in inputs {
            let owner = self.other(session.home, *key)?;
            self.buffer(owner, *number)?;
            graph.inputs.push((0, owner.uid));
        }
        for item in items {
            match item {
                Item::Copy { from, to } => {
                    self.record_copy(session.home, *from, *to, inputs, &mut graph)
                }
                Item::Launch { .. } => self.record_launch(session.home, item, inputs, &mut graph),
            }
            .inspect_err(|_| looks.extend(graph_sessions(self, items)))?;
        }
        looks.extend(&graph.parts);
        Ok(graph)
    }

    fn record_copy(
        &self,
        home: usize,
        from: (Key, u64),
        to: (Key, u64),
        inputs: &[(Key, u64)],
        graph: &mut Graph,
    ) -> Checked {
        let (source, destination) = (self.other(home, from.0)?, self.other(home, to.0)?);
        let (read, written) = (self.buffer(source, from.1)?, self.buffer(destination, to.1)?);
        if read.bytes != written.bytes {
            return fail(format!("source buffer {} has {} bytes", from.1, read.bytes));
        }
        let target = |name: (Key, u64), view: &super::model::View| match inputs
            .iter()
            .position(|input| *input == name)
        {
            Some(at) => Target::Input(at),
            None => Target::Fixed(view.clone()),
        };
        let bytes = read.bytes;
        let (read, written) = (target(from, read), target(to, written));
        for target in [&read, &written] {
            if let Target::Input(at) = target {
                graph.inputs[*at].0 = graph.inputs[*at].0.max(bytes);
            }
        }
        graph.parts.extend([source.uid, destination.uid]);
        let by = destination.uid;
        graph.steps.push(GraphStep::Copy { by, to: written, from: read, bytes });
        Ok(())
    }

    fn record_launch(
        &self,
        home: usize,
        item: &Item,
        inputs: &[(Key, u64)],
        graph: &mut Graph,
    ) -> Checked {
        let Item::Launch { at, name, buffers, variable, is_sized } = item else { return Ok(()) };
        let session = self.other(home, *at)?;
        self.program(session, name)?;
        let mut targets = Vec::new();
        for number in buffers {
            let position = inputs.iter().position(|input| *input == (*at, *number));
            targets.push(match position {
                Some(position) => Target::Input(position),
                None => Target::Fixed(self.buffer(session, *number)?.clone()),
            });
        }
        let fixed = match variable {
            Variable::Fixed(value) if i32::try_from(*value).is_err() => {
                return fail(format!("value {value} does not fit"));
            }
            Variable::Fixed(value) => Some(*value),
            Variable::Free => {
                // One argument of that name is enough.
                if !graph.integers.iter().any(|integer| !integer.is_size) {
                    graph.integers.push(BoundInteger { is_size: false, fixed: None });
                }
                None
            }
            Variable::None => None,
        };
        if *is_sized {
            graph.integers.push(BoundInteger { is_size: true, fixed });
        }
        graph.parts.insert(session.uid);
        if SOURCES[name.1] == b"add1"
            && let Some(target) = targets.into_iter().next()
        {
            graph.steps.push(GraphStep::Add1(session.uid, target));
        }
        Ok(())
    }

    pub fn check_run(
        &self,
        home: usize,
        session: &Session,
        number: u64,
        inputs: &[(Key, u64)],
        value: Option<i64>,
        check: &mut Check,
    ) -> Checked {
        let Some(graph) = session.graphs.get(&number) else {
            let unknown = format!("unknown graph {number}:");
            return Err(session.missing_or(&Thing::Graph(number), &unknown));
        };
        let graph: &Rc<Graph> = graph;
        let (given, recorded) = (inputs.len(), graph.inputs.len());
        if given < recorded {
            return fail(format!(
                "the graph was recorded with {recorded} inputs, but {given} are given"
            ));
        }
        for (position, ((key, number), (copied, _))) in inputs.iter().zip(&graph.inputs).enumerate()
        {
            let buffer = self.buffer(self.other(home, *key)?, *number)?;
            if buffer.bytes < *copied {
                let bytes = buffer.bytes;
                return fail(format!(
                    "graph input {position} has {bytes} bytes, but the graph copies {copied}"
                ));
            }
        }
        for integer in &graph.integers {
            check_integer(integer, value)?;
        }
        check.needs.extend(&graph.parts);
        if graph.parts.iter().any(|part| self.ended.contains(part)) {
            return fail(ENDED);
        }
        Ok(())
    }
}

fn check_integer(integer: &BoundInteger, given: Option<i64>) -> Checked {
    match (integer.fixed.or(given), integer.is_size) {
        (None, true) => fail("launch size: no value for the variable \"i\""),
        (None, false) => fail("variable i has no value"),
        (Some(value), true) if value < 1 || i32::try_from(value).is_err() => {
            fail(format!("global size {value} is not a launch size"))
        }
        (Some(value), false) if i32::try_from(value).is_err() => {
            fail(format!("value {value} does not fit"))
        }
        (Some(_), _) => Ok(()),
    }
}

fn graph_sessions(model: &Model, items: &[Item]) -> Vec<Uid> {
    let keys = items.iter().flat_map(|item| match item {
        Item::Copy { from, to } => vec![from.0, to.0],
        Item::Launch { at, .. } => vec![*at],
    });
    keys.filter_map(|key| Some(model.sessions.get(&key)?.uid)).collect()
}

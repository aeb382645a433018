//! What a command does when its checks have passed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::command::{Act, SOURCES};
use super::ledger::Output;
use super::model::{
    FRESH, Flag, Graph, GraphStep, Mistake, Model, Region, Started, Target, Thing, Uid, View,
};

impl Model {
    /// The effect of a command whose checks have passed.
    pub fn take_effect(&mut self, started: &mut Started) {
        let Ok(uid) = started.session else { return };
        let (key, connection) = (started.command.at, started.place.connection);
        let mistake = self.mistake;
        let Some(session) = self.sessions.get_mut(&key).filter(|s| s.uid == uid) else { return };
        match &started.command.act {
            Act::Event { to, event, .. } => {
                let flag = if *to == key { Flag::Own } else { Flag::Other };
                let session = self.sessions.get_mut(to).expect("checked");
                session.events.insert(*event, flag);
            }
            Act::GetProperties => started.output = Some(Output::Properties),
            Act::GraphFree { graph } => {
                session.forget(&Thing::Graph(*graph));
                session.graphs.remove(graph);
            }
            Act::GraphExec { graph, inputs, value: _, wait } => {
                let graph = Rc::clone(&session.graphs[graph]);
                let inputs: Vec<View> =
                    inputs.iter().filter_map(|name| self.view_anywhere(name)).collect();
                self.run_graph(&graph, &inputs, connection);
                started.output = wait.then_some(Output::Seconds);
            }
            Act::ProgramExec { name, buffers, wait, .. } => {
                if let Some(buffer) = buffers.first()
                    && SOURCES[name.1] == b"add1"
                {
                    session.buffers[buffer].add1(connection);
                }
                started.output = wait.then_some(Output::Seconds);
            }
            Act::ProgramFree { name } => {
                session.forget(&Thing::Program(*name));
                if let Some(references) = session.programs.get_mut(name) {
                    *references -= 1;
                    if *references == 0 || mistake == Some(Mistake::ProgramReferences) {
                        session.programs.remove(name);
                    }
                }
            }
            Act::SessionFree => {
                self.end(key);
            }
            Act::Transfer { from, to, to_buffer, .. } => {
                let from = session.buffers[from].clone();
                let to_view = self.sessions[to].buffers[to_buffer].clone();
                self.copy(&from, &to_view, from.bytes, self.sessions[to].uid, connection);
                if *to != key {
                    self.sessions.get_mut(to).expect("checked").copies_in += 1;
                }
            }
            Act::Wait { event } if mistake != Some(Mistake::EventStays) => {
                session.events.remove(event);
            }
            _ => self.buffer_effect(started, uid),
        }
    }

    /// Buffers and their bytes.
    fn buffer_effect(&mut self, started: &mut Started, uid: Uid) {
        let (key, connection) = (started.command.at, started.place.connection);
        let mistake = self.mistake;
        let Some(session) = self.sessions.get_mut(&key) else { return };
        match &started.command.act {
            Act::BufferAlloc { buffer, size, .. } => {
                let region = Region {
                    owner: uid,
                    bytes: vec![FRESH; usize::try_from(*size).expect("small")],
                    depends: BTreeSet::new(),
                    writes: BTreeMap::new(),
                    is_racy: false,
                    alphabet: Rc::clone(&session.alphabet),
                };
                let bytes = region.bytes.len();
                session.forget(&Thing::Buffer(*buffer));
                let region = Rc::new(RefCell::new(region));
                session.buffers.insert(*buffer, View { region, offset: 0, bytes });
            }
            Act::BufferFree { buffer } => {
                session.forget(&Thing::Buffer(*buffer));
                let freed = session.buffers.remove(buffer);
                if mistake == Some(Mistake::FreeReachesViews)
                    && let Some(freed) = freed
                {
                    session.buffers.retain(|_, view| !Rc::ptr_eq(&view.region, &freed.region));
                }
            }
            Act::BufferOffset { buffer, size, offset, base } => {
                let base = session.buffers[base].clone();
                let begin = if mistake == Some(Mistake::ViewOfView) { 0 } else { base.offset };
                let small = |n: u64| usize::try_from(n).expect("checked");
                let mut view = View { offset: begin + small(*offset), bytes: small(*size), ..base };
                let end = view.region.borrow().bytes.len();
                view.bytes = view.bytes.min(end - view.offset);
                session.forget(&Thing::Buffer(*buffer));
                session.buffers.insert(*buffer, view);
            }
            Act::CopyIn { buffer, bytes: Some(bytes), .. } => {
                let bytes: Vec<u16> = bytes.iter().map(|byte| u16::from(*byte)).collect();
                let view = &session.buffers[buffer];
                if view.bytes == view.region.borrow().bytes.len() {
                    view.region.borrow_mut().depends.clear();
                }
                view.write(&bytes, connection);
            }
            Act::CopyOut { buffer } => {
                let view = session.buffers[buffer].clone();
                let depends = view.region.borrow().depends.clone();
                started.output = Some(Output::of_view(view, depends, connection));
            }
            _ => {}
        }
    }

    /// A copy in the queue of `by`. Memory of a third session is not in order with it.
    fn copy(&self, from: &View, to: &View, bytes: usize, by: Uid, connection: usize) {
        to.copy(from, bytes, by, connection);
        if to.owner() != by {
            to.region.borrow_mut().is_racy = true;
        }
    }

    fn spoil_if_foreign(view: &View, by: Uid) {
        if view.owner() != by {
            view.region.borrow_mut().is_racy = true;
        }
    }

    fn run_graph(&mut self, graph: &Graph, inputs: &[View], connection: usize) {
        let skip = usize::from(self.has(Mistake::GraphInput));
        let view = |target: &Target| match target {
            Target::Fixed(view) => view.clone(),
            Target::Input(at) => inputs[(at + skip) % inputs.len()].clone(),
        };
        let mut receivers = BTreeSet::new();
        for step in &graph.steps {
            match step {
                GraphStep::Add1(by, to) => {
                    Model::spoil_if_foreign(&view(to), *by);
                    view(to).add1(connection);
                }
                GraphStep::Copy { by, to, from, bytes } => {
                    let (to, from) = (view(to), view(from));
                    let bytes = (*bytes).min(to.bytes).min(from.bytes);
                    self.copy(&from, &to, bytes, *by, connection);
                    // An input of a session that does not take part is not in order.
                    if !graph.parts.contains(&from.owner()) {
                        to.region.borrow_mut().is_racy = true;
                    }
                    if from.owner() != *by {
                        receivers.insert(*by);
                    }
                }
            }
        }
        for uid in receivers {
            if let Some(session) = self.by_uid_mut(uid) {
                session.copies_in += 1;
            }
        }
    }

    /// What a command that waited does at its end.
    pub fn settle(&mut self, started: &mut Started) -> Result<(), String> {
        let Ok(uid) = started.session else { return Ok(()) };
        let gone: BTreeSet<Uid> = self.lost.keys().chain(&self.cut_short).copied().collect();
        if let Some(output) = &mut started.output {
            if started.place.drops_output {
                output.forget();
            }
            output.settle(&gone);
        }
        let Some(session) = self.sessions.get_mut(&started.command.at) else { return Ok(()) };
        if session.uid != uid {
            return Ok(());
        }
        match &started.command.act {
            Act::GraphAlloc { graph, .. } => {
                let recorded = started.graph.take().ok_or("no graph was recorded")?;
                session.forget(&Thing::Graph(*graph));
                session.graphs.insert(*graph, recorded);
            }
            Act::ProgramAlloc { name, .. } => {
                session.forget(&Thing::Program(*name));
                *session.programs.entry(*name).or_default() += 1;
            }
            // What was queued before has been done.
            Act::CopyOut { .. } | Act::ProgramExec { .. }
                if session.copies_in == started.copies_in && !started.is_dropped_copy() =>
            {
                for view in session.buffers.values() {
                    view.region.borrow_mut().depends.clear();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

//! Graphs: nodes with dependencies, run in any order that these allow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::clock::{Clock, Touch};
use super::files::{report, trace};
use super::kernel::Work;
use super::memory::Memory;
use super::stream::{Action, Point, Progress, Readiness};
use super::{Outcome, State, code, size};

/// A template.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) context: u64,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Node {
    handle: u64,
    /// Places in the list of those that come before.
    after: Vec<usize>,
    work: Work,
}

/// Where a node's handle leads.
#[derive(Debug)]
pub(super) struct NodePlace {
    pub(super) graph: u64,
    index: usize,
}

/// An instantiated graph.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) context: u64,
    graph: u64,
    nodes: Vec<Node>,
    /// The end of the launch before: launches of one exec come one after the other.
    last: Option<Arc<Point>>,
    /// What has happened once that launch is over.
    last_clock: Clock,
}

/// A launch that is enqueued or runs.
#[derive(Debug)]
pub(super) struct Run {
    nodes: Vec<(Work, Progress)>,
    /// Dependencies not yet done, by node.
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    /// Nodes that may begin, and nodes that run.
    ready: Vec<usize>,
    running: Vec<usize>,
    left: usize,
    previous: Option<Arc<Point>>,
    pub(super) before: Clock,
    pub(super) after: Arc<Point>,
}

impl Run {
    pub(super) fn readiness(&self, now: Instant) -> Readiness {
        if self.previous.as_ref().is_some_and(|previous| !previous.is_done()) {
            return Readiness::Blocked;
        }
        if !self.ready.is_empty() || self.left == 0 {
            return Readiness::Now;
        }
        let mut next = Readiness::Blocked;
        for &node in &self.running {
            match (Readiness::of(self.nodes[node].1, now), next) {
                (Readiness::Now, _) => return Readiness::Now,
                (Readiness::At(a), Readiness::At(b)) => next = Readiness::At(a.min(b)),
                (Readiness::At(a), _) => next = Readiness::At(a),
                (Readiness::Blocked, _) => {}
            }
        }
        next
    }

    /// Goes on by one node. True once all are done.
    pub(super) fn step(&mut self, memory: &mut Memory, dice: u64, now: Instant) -> Outcome<bool> {
        let is_over = |&node: &usize| Readiness::of(self.nodes[node].1, now) == Readiness::Now;
        let node = if let Some(at) = self.running.iter().position(is_over) {
            self.running.swap_remove(at)
        } else if !self.ready.is_empty() {
            // First come, last come, or any: the dependencies are all that counts.
            let at = size(dice.wrapping_mul(self.left as u64 + 7)) % self.ready.len();
            let node = self.ready.swap_remove(at);
            let (work, progress) = &mut self.nodes[node];
            if progress.begin(work, now) {
                self.running.push(node);
                return Ok(false);
            }
            node
        } else {
            return self.finished(now);
        };
        self.nodes[node].0.perform(memory)?;
        self.left -= 1;
        for dependent in std::mem::take(&mut self.dependents[node]) {
            self.missing[dependent] -= 1;
            if self.missing[dependent] == 0 {
                self.ready.push(dependent);
            }
        }
        self.finished(now)
    }

    fn finished(&self, now: Instant) -> Outcome<bool> {
        if self.left == 0 {
            self.after.finish(now);
        }
        Ok(self.left == 0)
    }
}

/// For each node the set of those that come before it, as bits.
fn predecessors(nodes: &[Node]) -> Vec<Vec<u64>> {
    let words = nodes.len().div_ceil(64);
    let mut sets: Vec<Vec<u64>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let mut set = vec![0; words];
        for &before in &node.after {
            set[before / 64] |= 1 << (before % 64);
            set.iter_mut().zip(&sets[before]).for_each(|(word, earlier)| *word |= earlier);
        }
        sets.push(set);
    }
    sets
}

/// Nodes on the longest way through the graph.
fn critical_path(nodes: &[Node]) -> usize {
    let mut lengths: Vec<usize> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let before = node.after.iter().map(|&before| lengths[before]).max();
        lengths.push(before.unwrap_or(0) + 1);
    }
    lengths.into_iter().max().unwrap_or(0)
}

/// Reports two nodes that touch the same bytes, one of them writing, in no order.
fn report_races(nodes: &[Node], touches: &[Vec<Touch>]) {
    let before = predecessors(nodes);
    let mut writers: BTreeMap<u64, Vec<(usize, Touch)>> = BTreeMap::new();
    for (index, list) in touches.iter().enumerate() {
        for touch in list.iter().filter(|touch| touch.bytes > 0) {
            // By page of 64 KiB, so that not all nodes are compared with all others.
            for page in touch.at >> 16..=(touch.end() - 1) >> 16 {
                let page = writers.entry(page).or_default();
                let clash = page.iter().find(|(other, at)| {
                    at.conflicts(touch)
                        && *other != index
                        && before[index][other / 64] >> (other % 64) & 1 == 0
                });
                if let Some((other, at)) = clash {
                    let what = format!(
                        "nodes {other} and {index} of the graph both touch memory at {:#x} and \
                         {:#x}, and none comes first",
                        at.at, touch.at
                    );
                    report("race", &what);
                    return;
                }
                page.push((index, *touch));
            }
        }
    }
}

impl State {
    pub(crate) fn graph_create(&mut self) -> Outcome<u64> {
        let context = self.context()?;
        Ok(self.graphs.add(Graph { context, nodes: Vec::new() }))
    }

    pub(crate) fn graph_destroy(&mut self, handle: u64) -> Outcome<()> {
        self.graphs.take(handle)?;
        self.nodes.remove_where(|node| node.graph == handle);
        Ok(())
    }

    /// Adds a node behind others of the same graph. The caller has checked the work.
    pub(super) fn graph_add(&mut self, graph: u64, after: &[u64], work: Work) -> Outcome<u64> {
        let owner = self.graphs.get(graph)?.context;
        self.right_context("graph", graph, owner)?;
        let mut places = Vec::with_capacity(after.len());
        for &node in after {
            let place = self.nodes.get(node)?;
            if place.graph != graph {
                report("protocol", &format!("node {node:#x} is of another graph"));
                return Err(code::INVALID_VALUE);
            }
            if places.contains(&place.index) {
                report("protocol", &format!("node {node:#x} is named twice"));
                return Err(code::INVALID_VALUE);
            }
            places.push(place.index);
        }
        let index = self.graphs.get(graph)?.nodes.len();
        let handle = self.nodes.add(NodePlace { graph, index });
        self.graphs.get_mut(graph)?.nodes.push(Node { handle, after: places, work });
        Ok(handle)
    }

    pub(crate) fn graph_instantiate(&mut self, graph: u64) -> Outcome<u64> {
        let context = self.context()?;
        let template = self.graphs.get(graph)?;
        let (owner, nodes) = (template.context, template.nodes.clone());
        self.right_context("graph", graph, owner)?;
        Ok(self.execs.add(Exec { context, graph, nodes, last: None, last_clock: Clock::default() }))
    }

    pub(crate) fn graph_exec_destroy(&mut self, exec: u64) -> Outcome<()> {
        self.execs.take(exec).map(|_| ())
    }

    /// Replaces a node's work in an instantiated graph, for launches from now on.
    pub(super) fn graph_set(&mut self, exec: u64, node: u64, work: Work) -> Outcome<()> {
        let owner = self.execs.get(exec)?.context;
        self.right_context("graph exec", exec, owner)?;
        let graph = self.nodes.get(node)?.graph;
        let target = self.execs.get_mut(exec)?;
        if target.graph != graph {
            report("protocol", &format!("node {node:#x} is not of the graph of {exec:#x}"));
            return Err(code::INVALID_VALUE);
        }
        let Some(place) = target.nodes.iter_mut().find(|place| place.handle == node) else {
            report("protocol", &format!("node {node:#x} was added after the instantiation"));
            return Err(code::INVALID_VALUE);
        };
        if std::mem::discriminant(&place.work) != std::mem::discriminant(&work) {
            report("protocol", &format!("node {node:#x} is of another kind"));
            return Err(code::INVALID_VALUE);
        }
        place.work = work;
        Ok(())
    }

    pub(crate) fn graph_launch(&mut self, exec: u64, stream: u64) -> Outcome<()> {
        self.own_stream(stream)?;
        let owner = self.execs.get(exec)?.context;
        self.right_context("graph exec", exec, owner)?;
        let nodes = self.execs.get(exec)?.nodes.clone();
        let mut touches = Vec::with_capacity(nodes.len());
        for node in &nodes {
            self.check_work(&node.work)?;
            touches.push(node.work.touches(&self.memory));
        }
        if self.config.races {
            report_races(&nodes, &touches);
        }
        let edges: usize = nodes.iter().map(|node| node.after.len()).sum();
        trace(|| {
            let (count, path) = (nodes.len(), critical_path(&nodes));
            format!("# graph exec={exec:#x} nodes={count} edges={edges} critical_path={path}")
        });
        let run = self.graph_run(exec, &nodes)?;
        let after = Arc::clone(&run.after);
        self.enqueue(stream, Action::Graph(run), touches.into_iter().flatten().collect())?;
        let clock = self.streams.get(stream)?.clock.clone();
        let exec = self.execs.get_mut(exec)?;
        exec.last = Some(after);
        exec.last_clock = clock;
        Ok(())
    }

    fn graph_run(&mut self, exec: u64, nodes: &[Node]) -> Outcome<Run> {
        let mut dependents = vec![Vec::new(); nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            for &before in &node.after {
                dependents[before].push(index);
            }
        }
        let missing: Vec<usize> = nodes.iter().map(|node| node.after.len()).collect();
        let previous = self.execs.get(exec)?.last.clone();
        Ok(Run {
            nodes: nodes.iter().map(|node| (node.work.clone(), Progress::Waiting)).collect(),
            ready: (0..nodes.len()).filter(|&node| missing[node] == 0).collect(),
            missing,
            dependents,
            running: Vec::new(),
            left: nodes.len(),
            before: self.execs.get(exec)?.last_clock.clone(),
            previous,
            after: Arc::new(Point::default()),
        })
    }
}

//! Connections that move to another shard, once, before their first reply.
//!
//! A session lives where the connection that opens it is served, and a device is best driven from a
//! core next to its memory. Which device a connection is for, its first request tells. So where
//! cores have different memory nodes, a connection whose first request opens a session on a device
//! of another node goes to a shard of that node, with all that has been received of it, and is
//! answered there. What the kernel has received stays in the socket, and comes in its order.
//!
//! A request that brought data is answered where its data has landed, and the connection stays. So
//! it does where the other shard serves as many as it may.
//!
//! Owns: [`Nodes`] (which shard is next to which memory), [`Places`] (how many connections each
//! shard serves). Absent: the queues between shards (`mesh`), what travels (`connection`).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Shard;
use super::connection::{Moved, serve_on};
use super::fair::Claim;
use super::mesh::Message;
use crate::engine::{Batch, Home, Owner};

/// Which shard is next to which memory, where there is a difference.
pub(super) struct Nodes {
    /// By shard. Empty where all are the same.
    of_shards: Vec<Option<usize>>,
    /// Counts choices, so that the shards of a node take turns.
    turn: Cell<usize>,
}

impl Nodes {
    /// From the node of each shard's core, as far as it is known.
    pub(super) fn new(of_shards: &[Option<usize>]) -> Nodes {
        let differ = of_shards.iter().flatten().any(|node| Some(*node) != of_shards[0]);
        let of_shards = if differ { of_shards.to_vec() } else { Vec::new() };
        Nodes { of_shards, turn: Cell::new(0) }
    }

    /// Whether any connection ever moves.
    pub(super) fn differ(&self) -> bool {
        !self.of_shards.is_empty()
    }

    /// A shard of that node, unless `here` is one or there is none.
    fn nearer(&self, here: Home, node: usize) -> Option<Home> {
        let is_near = |shard: &usize| self.of_shards.get(*shard) == Some(&Some(node));
        if is_near(&here.0) {
            return None;
        }
        let near: Vec<usize> = (0..self.of_shards.len()).filter(is_near).collect();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        // Each shard begins with another one.
        near.get(turn.wrapping_add(here.0).checked_rem(near.len())?).copied().map(Home)
    }
}

/// How many connections each shard serves, with those on their way to it.
#[derive(Clone)]
pub(super) struct Places {
    taken: Arc<[AtomicUsize]>,
    /// For each shard.
    most: usize,
}

impl Places {
    pub(super) fn new(shards: usize, most: usize) -> Places {
        Places { taken: (0..shards).map(|_| AtomicUsize::new(0)).collect(), most }
    }

    /// A place at that shard, unless all are taken.
    pub(super) fn take(&self, home: Home) -> Option<Place> {
        let one_more = |taken: usize| (taken < self.most).then_some(taken + 1);
        let taken = self.taken.get(home.0)?;
        // A count: what it counts goes from shard to shard through their queues.
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place { taken: Arc::clone(&self.taken), home })
    }
}

/// One connection's place at a shard, until it is dropped.
pub(super) struct Place {
    taken: Arc<[AtomicUsize]>,
    home: Home,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken[self.home.0].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shard {
    /// Where a connection should be served whose first request this is, if not here, and may be.
    pub(super) fn nearer_place(&self, batch: &Batch<'_>) -> Option<Place> {
        if self.draining.get() || batch.has_blobs() {
            return None;
        }
        let node = self.engine.borrow().node_of_new_session(batch)?;
        self.places.take(self.nodes.nearer(self.home, node)?)
    }

    /// A connection is not served here any more.
    pub(super) fn forget(&self, owner: Owner) {
        if let Some(entry) = self.connections.borrow_mut().remove(&owner) {
            drop(entry.place.take());
        }
    }

    /// Gives a connection to the shard where it has a place. Nothing of it is left here.
    pub(super) async fn send_away(&self, moved: Moved) {
        let to = moved.place.home;
        tracing::debug!(from = self.home.0, to = to.0, "connection moves to its device's node");
        self.send_patiently(to, Message::Connection(Box::new(moved))).await;
    }

    /// Takes a connection in.
    pub(super) fn take_in(self: &Rc<Self>, moved: Moved) {
        let owner = self.next_owner();
        let claim = Claim::new(self.access.borrow().may_be_several());
        let task = serve_on(Rc::clone(self), moved, owner, Rc::clone(&claim));
        self.reactor.spawn_fair(claim, task).detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_the_devices_node_take_turns() {
        let nodes = Nodes::new(&[Some(0), Some(1), None, Some(1)]);
        assert!(nodes.differ());
        let chosen: Vec<_> = (0..4).map(|_| nodes.nearer(Home(0), 1)).collect();
        assert_eq!(chosen, [Some(Home(1)), Some(Home(3)), Some(Home(1)), Some(Home(3))]);
        assert_eq!(nodes.nearer(Home(1), 1), None, "it is there already");
        assert_eq!(nodes.nearer(Home(2), 0), Some(Home(0)));
        assert_eq!(nodes.nearer(Home(0), 2), None, "no shard is there");
    }

    #[test]
    fn place_is_taken_until_it_is_dropped_and_each_shard_has_its_own() {
        let places = Places::new(2, 2);
        let first = [0, 0].map(|shard| places.take(Home(shard)));
        assert!(first.iter().all(Option::is_some));
        assert!(places.take(Home(0)).is_none());
        assert!(places.take(Home(2)).is_none(), "there is no such shard");
        let other = places.take(Home(1));
        assert!(other.is_some());
        drop(first);
        assert!([0, 0].map(|shard| places.take(Home(shard))).iter().all(Option::is_some));
    }

    #[test]
    fn one_node_is_no_reason_to_move() {
        for nodes in [&[][..], &[None, None], &[Some(0), Some(0)], &[Some(3)]] {
            assert!(!Nodes::new(nodes).differ(), "{nodes:?}");
        }
    }
}

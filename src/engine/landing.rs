//! Memory of the server's own in which another server's network card leaves blobs.
//!
//! Owns: which blobs land for which connection, from the command that asks for their memory until
//! a `CopyIn` of that connection names them. Absent: the buffers, which are out of the network
//! card's reach, else the card would write them (`rdma`); what a blob comes to (`buffer`).
//!
//! A peer writes by RDMA without a word to this server, so nobody would know when to carry the
//! bytes on. A peer that is one of these servers does tell: it asks for memory, writes, and then
//! sends the `CopyIn` that it would send with the bytes over HTTP.
//!
//! By the time that anything looks at the bytes the card can write them no more: the registration
//! ends first. The memory is nobody's from before, since a peer may name a blob without having
//! written it, and it becomes no buffer's. It belongs to the connection and ends with that, or when
//! it has not been used for so long that nobody waits for the copy any more.

use std::time::Instant;

use super::batch::{Batch, Blob, Output, Sender};
use super::session::{Map, Owner};
use super::{Cause, Engine, Step, Stop, WaitFor};
use crate::blob::Digest;
use crate::config::RdmaConfig;
use crate::device::SharedBytes;
use crate::device::shared::Range;
use crate::identity::Identity;
use crate::rdma::{Promise, RdmaError, Target};
use crate::wire::Stored;
use crate::wire::command::{BlobLanding, Command};

/// What lands for all connections. There is an entry only for those that have asked.
#[derive(Default)]
pub(super) struct Landings(Map<Owner, Expected>);

/// What lands for one connection.
#[derive(Default)]
struct Expected {
    /// What the peer was told of, by whose sessions it is for and its name.
    told: Map<(Identity, Digest), Landing>,
    /// Memory for the command that waits, in the order of its blobs.
    coming: Vec<Landing>,
}

/// Fields are dropped in this order: the card lets go first.
struct Landing {
    promise: Promise,
    memory: Range,
    since: Instant,
}

impl Landings {
    /// Ends what a connection has asked for.
    pub(super) fn end_of_owner(&mut self, owner: Owner) {
        self.0.remove(&owner);
    }

    /// Ends what nobody uses. Whether there is more to come.
    pub(super) fn end_unused(&mut self, now: Instant) -> bool {
        let is_of_use = |landing: &Landing| {
            now.saturating_duration_since(landing.since) < RdmaConfig::LANDING_TIME_MAX
        };
        self.0.retain(|_, Expected { told, coming }| {
            told.retain(|_, landing| is_of_use(landing));
            !told.is_empty() || !coming.is_empty()
        });
        !self.0.is_empty()
    }

    /// A blob that was told of, which is the caller's alone from now on.
    fn take(&mut self, owner: Owner, identity: Identity, name: Digest) -> Option<Range> {
        let Landing { promise, memory, .. } =
            self.0.get_mut(&owner)?.told.remove(&(identity, name))?;
        drop(promise);
        Some(memory)
    }
}

impl Engine {
    /// Tells a peer where it may write blobs.
    pub(super) fn blob_landing(
        &mut self,
        batch: &Batch<'_>,
        c: &BlobLanding,
        now: Instant,
    ) -> Result<Step, Stop> {
        let outcome = self.land(batch, c, now);
        if let (Err(Stop::Failed(_)), Some(expected)) =
            (&outcome, self.landings.0.get_mut(&batch.owner))
        {
            expected.coming.clear();
        }
        outcome
    }

    fn land(&mut self, batch: &Batch<'_>, c: &BlobLanding, now: Instant) -> Result<Step, Stop> {
        const COMMAND: &str = "BlobLanding";
        let staging = batch.staging.as_ref().ok_or(Cause::OfServer { command: COMMAND })?;
        let fabric = self.rdma.fabric(batch.sender, COMMAND)?;
        let Expected { told, coming } = self.landings.0.entry(batch.owner).or_default();
        if coming.is_empty() {
            let limit = RdmaConfig::LANDINGS_PER_CONNECTION_MAX;
            if told.len() + c.blobs.len() > limit {
                return Err(Cause::Landings { limit }.into());
            }
            let (reach, heap) = (fabric.reach(batch.identity)?, staging.apart());
            for blob in &c.blobs {
                let memory = heap.alloc(blob.bytes)?;
                let promise = reach.register(SharedBytes::of(&memory));
                coming.push(Landing { promise, memory, since: now });
            }
        }
        let mut answer = Vec::with_capacity(coming.len() * Target::BYTES);
        for Landing { promise, .. } in &*coming {
            match promise.target() {
                Some(target) => answer.extend_from_slice(&target?.to_bytes()),
                None if promise.is_late(now) => return Err(RdmaError::LATE.into()),
                // What was begun is found when the command is tried again.
                None => return Err(Stop::Retry(WaitFor::Rdma(promise.awaited()))),
            }
        }
        let names = c.blobs.iter().map(|blob| (batch.identity, blob.name));
        told.extend(names.zip(coming.drain(..)));
        Ok(Step::Done(Output::Owned(answer)))
    }

    /// Makes a blob that has landed one of the batch's, if the next command is to copy it and the
    /// batch brought none of that name.
    pub(super) fn claim_landed(&mut self, batch: &mut Batch<'_>) {
        if batch.sender == Sender::Client || self.landings.0.is_empty() {
            return;
        }
        let Some(Stored::Other(Command::CopyIn(c))) = batch.commands.get(batch.next) else {
            return;
        };
        let name = c.source;
        if batch.blobs.find(&name).is_ok() {
            return;
        }
        if let Some(memory) = self.landings.take(batch.owner, batch.identity, name) {
            batch.blobs.insert(name, Blob::Staged(memory.into()));
        }
    }

    /// Whether a connection has blobs that land here.
    #[must_use]
    pub fn has_landings(&self, owner: Owner) -> bool {
        self.landings.0.get(&owner).is_some_and(|expected| !expected.told.is_empty())
    }
}

//! RDMA by peers: they connect, and are told where a buffer's memory is.
//!
//! A registration belongs to a buffer's number and covers its bytes and no more: of a view, the
//! view's. It keeps the memory where it is, so a blob that fills the buffer is copied from then on,
//! and ends with the number (`reachable`).
//!
//! A connection belongs to the HTTP connection that asked for it, and ends with that: it is made on
//! the shard where that is served, whichever has the session that is named, since it reaches
//! whatever the session's identity has on any shard. A peer that connects again under the same name
//! takes the place of its earlier connection, as on the reference server.
//!
//! In the other direction a peer is asked the same, and what it says is told by `asking`.
//!
//! Absent: the device, and writing to a peer's memory (`rdma`); memory for what the card cannot
//! write where it belongs (`landing`).

use std::time::Instant;

use super::peer::Parcel;
use super::reachable::Found;
use super::session::{Owner, SessionId};
use super::{Cause, Engine, Step, Stop, WaitFor};
use crate::device::Fence;
use crate::engine::batch::{Batch, Output, Sender};
use crate::identity::Identity;
use crate::rdma::{Accepted, Address, Fabric, Promise, QueuePairNumber, RdmaError, Target};
use crate::wire::command::{self, BufferName};

/// RDMA as this engine has it, and who is connected.
#[derive(Default)]
pub(super) struct Rdma {
    fabric: Option<Box<dyn Fabric>>,
    peers: Vec<Peer>,
    /// Those that are being let in, for commands that wait for it.
    coming: Vec<Peer>,
}

/// A peer's connection.
struct Peer {
    identity: Identity,
    host: Box<str>,
    owner: Owner,
    address: Address,
    end: Promise<Box<dyn Accepted>>,
}

impl Rdma {
    pub(super) fn set(&mut self, fabric: Box<dyn Fabric>) {
        self.fabric = Some(fabric);
    }

    /// The fabric, as far as it is of use to whoever sends a command: where the card does not reach
    /// buffers, who knows nothing of landings can do nothing, and is told that there is none.
    pub(super) fn fabric(
        &self,
        sender: Sender,
        command: &'static str,
    ) -> Result<&dyn Fabric, Cause> {
        let fabric = self.fabric.as_deref().ok_or(Cause::NoRdma { command })?;
        match sender == Sender::Client && !fabric.reaches_buffers() {
            true => Err(Cause::NoRdma { command }),
            false => Ok(fabric),
        }
    }

    pub(super) fn gid(&self, to: Sender) -> Option<[u8; 16]> {
        self.fabric(to, "GetProperties").ok().map(|fabric| fabric.gid())
    }

    /// Ends the connections that an HTTP connection asked for.
    pub(super) fn end_of_owner(&mut self, owner: Owner) {
        self.peers.retain(|peer| peer.owner != owner);
        self.coming.retain(|peer| peer.owner != owner);
    }
}

impl Engine {
    /// Lets a peer of an identity in.
    pub(super) fn ib_connect(
        &mut self,
        batch: &Batch<'_>,
        c: &command::IbConnect<'_>,
        now: Instant,
    ) -> Result<Step, Stop> {
        let (identity, owner) = (batch.identity, batch.owner);
        let reach = self.rdma.fabric(batch.sender, "IBConnect")?.reach(identity)?;
        let Rdma { peers, coming, .. } = &mut self.rdma;
        let address = Address { gid: c.gid, queue_pair: QueuePairNumber::new(c.queue_pair)? };
        let is_same = |peer: &Peer| peer.identity == identity && *peer.host == *c.host;
        let is_asked =
            |peer: &Peer| is_same(peer) && (peer.owner, peer.address) == (owner, address);
        let at = match coming.iter().position(is_asked) {
            Some(at) => at,
            None => {
                let others = peers.iter().chain(&*coming);
                let others = others.filter(|peer| peer.identity == identity && !is_same(peer));
                let limit = self.limits.rdma_peers_per_identity_max;
                if others.count() >= limit {
                    return Err(Cause::RdmaPeers { limit }.into());
                }
                let end = reach.accept(address);
                coming.push(Peer { identity, host: Box::from(&*c.host), owner, address, end });
                coming.len() - 1
            }
        };
        let found = coming[at].end.address();
        if found.is_none() && !coming[at].end.is_late(now) {
            // What was begun is found when the command is tried again.
            return Err(Stop::Retry(WaitFor::Rdma(coming[at].end.awaited())));
        }
        let peer = coming.swap_remove(at);
        let Some(outcome) = found else {
            let (host, why) = (peer.host.into_string(), RdmaError::LATE.to_string());
            return Err(Cause::Peer { host, why }.into());
        };
        let end = outcome?;
        peers.retain(|peer| !is_same(peer));
        peers.push(peer);
        Ok(Step::Done(Output::Owned(end.to_bytes().to_vec())))
    }

    pub(super) fn buffer_iovas(
        &mut self,
        at: SessionId,
        c: &command::BufferIovas<'_>,
        sender: Sender,
        now: Instant,
    ) -> Result<Step, Stop> {
        let fabric = self.rdma.fabric(sender, "BufferIOVAS")?;
        let reach = fabric.reach(self.get(at)?.identity())?;
        let mut answer = Vec::with_capacity(c.buffers.len() * Target::BYTES);
        let mut pending = None;
        for BufferName { session, buffer: number } in &c.buffers {
            let id = self.other_session(at, session)?;
            let promise = match self.registration(id, *number, &*reach, now)? {
                Found::Never => return Err(Cause::OutOfReach { buffer: number.0 }.into()),
                Found::Registered(promise) => promise,
                Found::Wait(wait) => {
                    pending = pending.or(Some(wait));
                    continue;
                }
            };
            match promise.target() {
                Some(Ok(target)) => {
                    self.expose(id, *number)?;
                    answer.extend_from_slice(&target.to_bytes());
                }
                Some(Err(error)) => {
                    self.get_mut(id)?.registrations.remove(number);
                    return Err(error.into());
                }
                // It may come yet, for whoever asks again.
                None if promise.is_late(now) => return Err(RdmaError::LATE.into()),
                None => pending = pending.or_else(|| Some(WaitFor::Rdma(promise.awaited()))),
            }
        }
        match pending {
            // What was begun is found when the command is tried again.
            Some(wait) => Err(Stop::Retry(wait)),
            None => Ok(Step::Done(Output::Owned(answer))),
        }
    }
}

/// How a parcel gets to another server's memory.
#[derive(Debug)]
pub enum Sourcing {
    /// Ask again after that.
    Later(WaitFor),
    /// There is no RDMA, or the buffer is in memory that it does not reach.
    Never,
    Ready(Source),
}

/// A buffer that is to be written to another server's memory.
#[derive(Debug)]
pub struct Source {
    pub promise: Promise,
    /// The work that has to be done before.
    pub after: Option<(SessionId, Fence)>,
}

impl Engine {
    /// Whose bytes a parcel has.
    ///
    /// # Errors
    ///
    /// Where its session is gone.
    pub fn identity_of(&self, parcel: &Parcel) -> Result<Identity, Cause> {
        Ok(self.get(parcel.from.0)?.identity())
    }

    /// Begins to register what a parcel's bytes are in.
    ///
    /// # Errors
    ///
    /// Where the session is gone, or the device has no more.
    pub fn source(&mut self, parcel: &mut Parcel, now: Instant) -> Result<Sourcing, Cause> {
        let Some(fabric) = &self.rdma.fabric else { return Ok(Sourcing::Never) };
        let reach = fabric.reach(self.get(parcel.from.0)?.identity())?;
        match self.registration_of(parcel, &*reach, now) {
            Ok(Found::Never) => Ok(Sourcing::Never),
            Ok(Found::Registered(promise)) => {
                Ok(Sourcing::Ready(Source { promise, after: parcel.after }))
            }
            Ok(Found::Wait(wait)) | Err(Stop::Retry(wait)) => Ok(Sourcing::Later(wait)),
            Err(Stop::Failed(cause)) => Err(cause),
            Err(Stop::Forward(_)) => Err(Cause::SessionEnded),
        }
    }
}

/// What another server is asked before its memory is written, in its own words.
pub mod asking {
    use std::borrow::Cow;

    use crate::engine::peer::{Parcel, text};
    use crate::rdma::Address;
    use crate::wire::command::{BlobLanding, BlobLength, BufferIovas, Command, IbConnect};

    /// Whether it has RDMA.
    #[must_use]
    pub fn properties(parcel: &Parcel) -> String {
        text(&parcel.to.session, Command::GetProperties)
    }

    /// To connect to `address`, and to know it by `host`.
    #[must_use]
    pub fn connect(parcel: &Parcel, host: &str, address: Address) -> String {
        let (gid, queue_pair) = (address.gid, address.queue_pair.into());
        let host = Cow::Borrowed(host);
        text(&parcel.to.session, Command::IbConnect(IbConnect { host, gid, queue_pair }))
    }

    /// Where the destinations are.
    #[must_use]
    pub fn places(parcels: &[Parcel]) -> String {
        let Some(first) = parcels.first() else { return String::new() };
        let buffers = parcels.iter().map(|parcel| parcel.to.clone()).collect();
        text(&first.to.session, Command::BufferIovas(BufferIovas { buffers }))
    }

    /// For memory that stands for the blobs.
    #[must_use]
    pub fn landings(parcels: &[Parcel]) -> String {
        let Some(first) = parcels.first() else { return String::new() };
        let length = |parcel: &Parcel| BlobLength { name: parcel.name, bytes: parcel.bytes };
        let blobs = parcels.iter().map(length).collect();
        text(&first.to.session, Command::BlobLanding(BlobLanding { blobs }))
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({}, {:?})", self.host, self.end)
    }
}

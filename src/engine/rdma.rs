//! RDMA by peers: they connect, and are told where a buffer's memory is.
//!
//! A registration belongs to a buffer's number and covers its bytes and no more: of a view, the
//! view's. It keeps the memory where it is, so a blob that fills the buffer is copied from then on,
//! and ends with the number. A connection belongs to the HTTP connection that asked for it, or to
//! the session where another shard's connection asked, and ends with that; a peer that connects
//! again under the same name takes the place of its earlier connection, as on the reference server.
//!
//! In the other direction a peer is asked the same, and what it says is told by `asking`.
//!
//! Absent: the device, and writing to a peer's memory (`rdma`).

use super::peer::Parcel;
use super::session::{Owner, SessionId, Sessions};
use super::{Cause, Engine, Step, Stop, WaitFor};
use crate::device::Fence;
use crate::engine::batch::Output;
use crate::identity::Identity;
use crate::rdma::{Accepted, Address, Fabric, Promise, QueuePairNumber, Target};
use crate::wire::command::{self, BufferName};

/// RDMA as this engine has it, and who is connected.
#[derive(Default)]
pub(super) struct Rdma {
    fabric: Option<Box<dyn Fabric>>,
    peers: Vec<Peer>,
}

/// A peer's connection.
struct Peer {
    identity: Identity,
    host: Box<str>,
    owner: Owner,
    session: SessionId,
    end: Box<dyn Accepted>,
}

impl Rdma {
    pub(super) fn set(&mut self, fabric: Box<dyn Fabric>) {
        self.fabric = Some(fabric);
    }

    pub(super) fn gid(&self) -> Option<[u8; 16]> {
        self.fabric.as_ref().map(|fabric| fabric.gid())
    }

    /// Ends the connections that an HTTP connection asked for.
    pub(super) fn end_of_owner(&mut self, owner: Owner) {
        self.peers.retain(|peer| peer.owner != owner);
    }

    /// Ends the connections that belong to sessions which have ended.
    pub(super) fn end_of_sessions(&mut self, sessions: &Sessions) {
        let lives =
            |peer: &Peer| peer.owner != Owner::Shard || sessions.by_id(peer.session).is_some();
        self.peers.retain(lives);
    }
}

impl Engine {
    pub(super) fn ib_connect(
        &mut self,
        at: SessionId,
        c: &command::IbConnect<'_>,
        owner: Owner,
    ) -> Result<Step, Stop> {
        let Some(fabric) = &self.rdma.fabric else {
            return Err(Cause::NoRdma { command: "IBConnect" }.into());
        };
        let identity = self.get(at)?.identity();
        let replaced = self
            .rdma
            .peers
            .iter()
            .position(|peer| peer.identity == identity && *peer.host == *c.host);
        let count = self.rdma.peers.iter().filter(|peer| peer.identity == identity).count();
        let limit = self.limits.rdma_peers_per_identity_max;
        if replaced.is_none() && count >= limit {
            return Err(Cause::RdmaPeers { limit }.into());
        }
        let peer = Address { gid: c.gid, queue_pair: QueuePairNumber::new(c.queue_pair)? };
        let end = fabric.reach(identity)?.accept(peer)?;
        let address = end.address();
        if let Some(replaced) = replaced {
            self.rdma.peers.swap_remove(replaced);
        }
        let host = Box::from(&*c.host);
        self.rdma.peers.push(Peer { identity, host, owner, session: at, end });
        Ok(Step::Done(Output::Owned(address.to_bytes().to_vec())))
    }

    pub(super) fn buffer_iovas(
        &mut self,
        at: SessionId,
        c: &command::BufferIovas<'_>,
    ) -> Result<Step, Stop> {
        let Some(fabric) = &self.rdma.fabric else {
            return Err(Cause::NoRdma { command: "BufferIOVAS" }.into());
        };
        let reach = fabric.reach(self.get(at)?.identity())?;
        let mut answer = Vec::with_capacity(c.buffers.len() * Target::BYTES);
        let mut pending = None;
        for BufferName { session, buffer: number } in &c.buffers {
            let id = self.other_session(at, session)?;
            let session = self.get_mut(id)?;
            let buffer = session.buffer(*number)?;
            let promise = match session.registrations.get(number) {
                Some(promise) => promise,
                None => {
                    let Some(memory) = buffer.shared_bytes() else {
                        return Err(Cause::NoRdma { command: "BufferIOVAS" }.into());
                    };
                    let promise = reach.register(memory);
                    session.registrations.entry(*number).or_insert(promise)
                }
            };
            match promise.target() {
                Some(Ok(target)) => answer.extend_from_slice(&target.to_bytes()),
                Some(Err(error)) => {
                    session.registrations.remove(number);
                    return Err(error.into());
                }
                None => pending = pending.or_else(|| Some(promise.clone())),
            }
        }
        match pending {
            // What was begun is found when the command is tried again.
            Some(promise) => Err(Stop::Retry(WaitFor::Registration(promise))),
            None => Ok(Step::Done(Output::Owned(answer))),
        }
    }
}

/// A buffer that is to be written to another server's memory.
#[derive(Debug)]
pub struct Source {
    pub identity: Identity,
    pub promise: Promise,
    /// The work that has to be done before.
    pub after: Option<(SessionId, Fence)>,
}

impl Engine {
    /// Begins to register what a parcel's bytes are in. `None` where there is no RDMA, or memory
    /// that it does not reach.
    ///
    /// # Errors
    ///
    /// Where the session or the buffer is gone, or the device has no more.
    pub fn source(&mut self, parcel: &Parcel) -> Result<Option<Source>, Cause> {
        let Some(fabric) = &self.rdma.fabric else { return Ok(None) };
        let (session, number) = parcel.from;
        let identity = self.get(session)?.identity();
        let reach = fabric.reach(identity)?;
        let session = self.get_mut(session)?;
        let buffer = session.buffer(number)?;
        let promise = match session.registrations.get(&number) {
            Some(promise) => promise.clone(),
            None => {
                let Some(memory) = buffer.shared_bytes() else { return Ok(None) };
                let promise = reach.register(memory);
                session.registrations.insert(number, promise.clone());
                promise
            }
        };
        Ok(Some(Source { identity, promise, after: session.last() }))
    }
}

/// What another server is asked before its memory is written, in its own words.
pub mod asking {
    use std::borrow::Cow;

    use crate::engine::peer::{Parcel, text};
    use crate::rdma::Address;
    use crate::wire::command::{BufferIovas, Command, IbConnect};

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
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({}, {:?})", self.host, self.end)
    }
}

//! What other servers are asked for: events, and copies to their sessions' buffers.
//!
//! Absent: sockets, and whom the server may connect to. An [`Errand`] says what is to be done; the
//! caller of [`Engine::advance`] does it, while the batch goes on where it may, and tells what it
//! came to.
//!
//! The other server takes this one for a client that names the sessions of whoever it works for. So
//! an event is the command `Event` of the session that it belongs to, and a copy is a `CopyIn`.
//!
//! An event stands for all that its client has had done on this host, not for one session's work:
//! a graph of several hosts has one session of each host speak for all of them. Each device is
//! waited for up to the work that it has now; nobody stops.

use super::batch::{Batch, Sender};
use super::batch::{Output, Rest};
use super::buffer::Buffer;
use super::reachable::Reachable;
use super::session::{Home, Owner, SessionId};
use super::{Cause, DONE, Engine, Step, Stop};
use crate::blob::Digest;
use crate::device::Fence;
use crate::identity::Identity;
use crate::wire::Stored;
use crate::wire::command::{self, BufferName, BufferNumber, Command, Request, SessionKey};

/// What a batch asks of another server.
#[derive(Debug)]
pub struct Errand {
    /// The command that it is for.
    pub index: usize,
    /// The other server, as clients name it.
    pub host: String,
    /// The connection whose batch asks for it.
    pub owner: Owner,
    /// A session that the work is for, in words that fit a line; see [`Engine::route`].
    pub route: String,
    pub work: Work,
}

/// What is to be done.
#[derive(Debug)]
pub enum Work {
    /// Copies; the batch does not go on before they are made.
    Copies(Vec<Parcel>),
    /// A batch without blobs, to be sent once [`Engine::has_reached`] all of these.
    Event { text: String, after: Vec<(SessionId, Fence)> },
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Elsewhere(Home),
    /// On this shard, and whose it is.
    Here(Owner),
}

/// A buffer on its way.
#[derive(Debug)]
pub struct Parcel {
    /// The name of its blob, which no other parcel of the errand has.
    pub name: Digest,
    /// How many bytes there will be.
    pub bytes: u64,
    /// The bytes.
    pub output: Output,
    /// The other server's command.
    pub command: String,
    pub(super) from: (SessionId, BufferNumber),
    /// What it was by that number.
    pub(super) buffer: Buffer,
    /// The work that its device had then.
    pub(super) after: Option<(SessionId, Fence)>,
    /// Its registration, if by that number it is another buffer now.
    pub(super) reachable: Option<Reachable>,
    /// How clients name this server.
    pub(super) from_host: String,
    pub(super) to: BufferName<'static>,
}

impl Parcel {
    /// The destination.
    #[must_use]
    pub fn to(&self) -> &BufferName<'static> {
        &self.to
    }

    /// The bytes once more, of which nothing has been read yet.
    #[must_use]
    pub fn again(&self) -> Output {
        Output::Later(Rest { session: self.from.0, buffer: self.buffer.clone() })
    }

    /// How clients name this server.
    #[must_use]
    pub fn from_host(&self) -> &str {
        &self.from_host
    }
}

impl Errand {
    pub(super) fn new(index: usize, owner: Owner, to: SessionKey<'_>, work: Work) -> Errand {
        let fits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let has_route =
            fits(&to.host) && fits(&to.nonce) && to.nonce.len() <= ROUTE_NONCE_BYTES_MAX;
        let route = match has_route {
            true => format!("{} {} {}", to.idx, to.host, to.nonce),
            false => String::new(),
        };
        Errand { index, host: to.host.into_owned(), owner, route, work }
    }
}

/// The stock client's have 32.
const ROUTE_NONCE_BYTES_MAX: usize = 128;

/// The session that a route names.
fn routed(route: &[u8]) -> Option<SessionKey<'_>> {
    let mut words = std::str::from_utf8(route).ok()?.split(' ');
    let (idx, host, nonce) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    Some(SessionKey { host: host.into(), idx, nonce: nonce.into() })
}

/// A command as another server reads it.
pub(super) fn text(session: &SessionKey<'_>, command: Command<'_>) -> String {
    Request { session: session.clone(), command, offset: 0 }.to_string()
}

impl Engine {
    pub(super) fn event_of_peer(
        &mut self,
        at: SessionId,
        c: &command::Event<'_>,
    ) -> Result<Step, Stop> {
        let owner = self.get(at)?.owner();
        let sessions = self.sessions.iter_mut().filter(|session| session.owner() == owner);
        let after = sessions.filter_map(|session| session.last()).collect();
        let session = &c.event_session;
        let text = format!("[{}]", text(session, Command::Event(c.clone())));
        let to = session.clone().into_owned();
        Ok(Step::Peer { to, work: Work::Event { text, after } })
    }

    pub(super) fn transfer_to_peer(
        &mut self,
        at: SessionId,
        c: &command::Transfer<'_>,
    ) -> Result<Step, Stop> {
        let parcel = self.parcel(at, c.source, 0, &c.destination_session, c.destination)?;
        let to = c.destination_session.clone().into_owned();
        Ok(Step::Peer { to, work: Work::Copies(vec![parcel]) })
    }

    pub(super) fn batch_transfer(
        &mut self,
        at: SessionId,
        c: &command::BatchTransfer<'_>,
    ) -> Result<Step, Stop> {
        let (sources, destinations) = (&c.sources, &c.destinations);
        if sources.len() != destinations.len() {
            let (sources, destinations) = (sources.len(), destinations.len());
            return Err(Cause::Pairs { sources, destinations }.into());
        }
        let Some(BufferName { session: first, .. }) = destinations.first() else { return DONE };
        if destinations.iter().any(|to| to.session.host != first.host) {
            return Err(Cause::PairsApart.into());
        }
        let mut parcels = Vec::with_capacity(sources.len());
        for (index, (from, to)) in sources.iter().zip(destinations).enumerate() {
            let source = self.other_session(at, &from.session)?;
            parcels.push(self.parcel(source, from.buffer, index, &to.session, to.buffer)?);
        }
        Ok(Step::Peer { to: first.clone().into_owned(), work: Work::Copies(parcels) })
    }

    /// A buffer of a session of this host, for a buffer of another host's.
    fn parcel(
        &mut self,
        from: SessionId,
        source: BufferNumber,
        index: usize,
        session: &SessionKey<'_>,
        destination: BufferNumber,
    ) -> Result<Parcel, Stop> {
        let buffer = self.device(from)?.buffer(source)?.clone();
        // The other server does not ask what a name is made of.
        let mut name = Digest([0; 32]);
        name.0[..8].copy_from_slice(&(index as u64).to_le_bytes());
        let copy = command::CopyIn { buffer: destination, source: name };
        Ok(Parcel {
            name,
            bytes: buffer.bytes,
            output: Output::Later(Rest { session: from, buffer: buffer.clone() }),
            command: text(session, Command::CopyIn(copy)),
            from: (from, source),
            buffer,
            after: self.get(from)?.last(),
            reachable: None,
            from_host: self.get(from)?.host().to_owned(),
            to: BufferName { session: session.clone(), buffer: destination }.into_owned(),
        })
    }

    /// Where the session is that another server's request is for, as far as it says so.
    #[must_use]
    pub fn route(&self, sender: Sender, identity: Identity, route: &[u8]) -> Option<Route> {
        let key = routed(route)?;
        let identity = match sender {
            Sender::Client => return None,
            Sender::Peer => identity,
            Sender::PeerOfAll => self.sessions.identity_of(&key)?,
        };
        match self.session_for_peer(identity, &key, None) {
            Ok(id) => Some(Route::Here(self.get(id).ok()?.owner())),
            Err(Stop::Forward(home)) => Some(Route::Elsewhere(home)),
            Err(_) => None,
        }
    }

    /// That a command may come from where it comes from: other servers say what this file has them
    /// say.
    pub(super) fn check_sender(&self, batch: &Batch<'_>) -> Result<(), Stop> {
        if batch.sender == Sender::Client {
            return Ok(());
        }
        let (Some(stored), Some((_, session))) =
            (batch.commands.get(batch.next), batch.commands.session(batch.next))
        else {
            return Ok(());
        };
        match &stored {
            Stored::Other(
                Command::BlobLanding(_)
                | Command::BufferIovas(_)
                | Command::CopyIn(_)
                | Command::GetProperties
                | Command::IbConnect(_),
            ) => Ok(()),
            Stored::Other(Command::Event(event)) if event.event_session == *session => Ok(()),
            _ => Err(Cause::OfPeer { command: stored.name() }.into()),
        }
    }

    /// That the work before an event was done, once it is over. A session that has ended since has
    /// nothing more to say.
    ///
    /// # Errors
    ///
    /// Where a device was lost first.
    pub fn has_reached(&mut self, after: &[(SessionId, Fence)]) -> Result<(), Cause> {
        after.iter().try_for_each(|(session, fence)| match self.finished(*session, *fence) {
            Err(Cause::SessionEnded) => Ok(()),
            outcome => outcome,
        })
    }
}

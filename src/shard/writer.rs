//! Copies to other servers' buffers by RDMA, where both servers have it.
//!
//! Owns: the link to each peer for each identity of this shard, and how long a write may take
//! without a word of its device. Absent: what goes through memory of the server's own (`stage`) or
//! of the peer's own (`landing`), queue pairs and what is posted when (`rdma`), and copies over
//! HTTP (`peer`), which are made where a peer has no RDMA or cannot be reached by it.
//!
//! The peer is asked over HTTP for a connection, and for the place of each destination, once. A
//! place is good as long as its buffer; by one that is not, the peer's device refuses what is
//! written, and the peer is asked again. Nothing is registered or written before the source's
//! device is past the work that it had when the copy was asked for. One errand uses a link at a
//! time; one that fails or is given up takes the link with it, and the next makes a new one.
//!
//! The peer's ends of a link belong to the HTTP connection that asked for them. So that connection
//! serves nothing else and lasts as long as the link: a link that nobody used for a while ends with
//! it, and one whose peer has ended the connection is of no use any more.

mod landing;
mod stage;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use tracing::{debug, info};

use self::stage::Stage;
use super::Shard;
use super::completion::Cancel;
use super::peer::{Link as Held, To, Trouble};
use crate::config::{PeerLimits, RdmaConfig};
use crate::engine::{Parcel, Source, Sourcing, WaitFor, asking};
use crate::identity::{Identity, Peer};
use crate::rdma::{
    Address, DeviceFabric, Link, Promise, RdmaError, Target, Turn, WorkStatus, Write,
};
use crate::wire::command::BufferName;

/// Places that one answer has room for.
const PLACES_MAX: usize = 32 << 10;

/// What is known of a peer, for one identity.
enum Peering {
    /// Nobody has used the link since then.
    Free(Instant, Box<Writer>),
    /// Somebody does, or makes it; these wait.
    Busy(Vec<Waker>),
    /// It cannot be reached by RDMA, as was found then.
    None(Instant),
}

impl Peering {
    /// Whether it was found lately that there can be no link.
    fn is_none(&self) -> bool {
        matches!(self, Peering::None(since) if since.elapsed() < PeerLimits::IDLE_TIME_MAX)
    }
}

/// The links of all peers.
#[derive(Default)]
pub(super) struct Writers(RefCell<HashMap<(String, Identity), Peering>>);

/// A link to one peer.
struct Writer {
    /// First, so that nothing is under way by the time that the peer hears of the end.
    link: Link<Promise>,
    /// What the peer's ends belong to.
    held_by: Held,
    places: Places,
    /// Made when it is first needed.
    stage: Option<Stage>,
    /// What the link's descriptor names.
    descriptor: Rc<OwnedFd>,
}

/// Where a peer's buffers are, as far as it has been asked by this link.
#[derive(Default)]
struct Places(HashMap<BufferName<'static>, Place>);

/// Where one buffer is.
#[derive(Clone, Copy)]
enum Place {
    /// Where the peer's network card reaches it.
    At(Target),
    /// The peer has told no place, and taken what landed in memory of its own.
    Elsewhere,
}

/// Where the destinations of copies are.
enum Destinations {
    At(Vec<Target>),
    /// Of one at least there is no place.
    Elsewhere,
}

impl Places {
    /// The destinations of copies, if enough is known.
    fn find(&self, parcels: &[Parcel]) -> Option<Destinations> {
        let places = parcels.iter().map(|parcel| (parcel, self.0.get(parcel.to())));
        let (mut targets, mut is_known) = (Vec::with_capacity(parcels.len()), true);
        for (parcel, place) in places {
            match place {
                Some(Place::Elsewhere) => return Some(Destinations::Elsewhere),
                Some(Place::At(target)) if target.bytes == parcel.bytes => targets.push(*target),
                Some(Place::At(_)) | None => is_known = false,
            }
        }
        is_known.then_some(Destinations::At(targets))
    }

    fn remember(&mut self, parcels: &[Parcel], places: impl Iterator<Item = Place>) {
        if self.0.len() + parcels.len() > RdmaConfig::PLACES_REMEMBERED_MAX {
            self.0.clear();
        }
        let most = places.take(RdmaConfig::PLACES_REMEMBERED_MAX);
        self.0.extend(parcels.iter().map(|parcel| parcel.to().clone()).zip(most));
    }
}

/// The right to use one entry, which is put back when it ends.
struct Turnstile<'s> {
    writers: &'s Writers,
    key: (String, Identity),
    after: Option<Peering>,
}

impl Drop for Turnstile<'_> {
    fn drop(&mut self) {
        let mut writers = self.writers.0.borrow_mut();
        let before = match self.after.take() {
            Some(after) => writers.insert(self.key.clone(), after),
            None => writers.remove(&self.key),
        };
        if let Some(Peering::Busy(waiting)) = before {
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

impl Writers {
    fn knows_none(&self, key: &(String, Identity)) -> bool {
        self.0.borrow().get(key).is_some_and(Peering::is_none)
    }

    /// Waits until nobody uses the link, and takes it if there is one. `None` where it is known
    /// that there can be none.
    async fn enter(
        &self,
        key: (String, Identity),
        peer: &Peer,
    ) -> Option<(Turnstile<'_>, Option<Box<Writer>>)> {
        let found = poll_fn(|cx| {
            let mut writers = self.0.borrow_mut();
            match writers.get_mut(&key) {
                Some(Peering::Busy(waiting)) => {
                    waiting.push(cx.waker().clone());
                    return Poll::Pending;
                }
                Some(peering) if peering.is_none() => return Poll::Ready(None),
                _ => {}
            }
            match writers.insert(key.clone(), Peering::Busy(Vec::new())) {
                Some(Peering::Free(_, writer)) => Poll::Ready(Some(
                    Some(writer).filter(|writer| writer.held_by.is_good_for(peer)),
                )),
                _ => Poll::Ready(Some(None)),
            }
        });
        let writer = found.await?;
        Some((Turnstile { writers: self, key, after: None }, writer))
    }

    /// Ends links that nobody has used since `then`; whether any is left.
    pub(super) fn end_idle(&self, then: Instant) -> bool {
        let mut writers = self.0.borrow_mut();
        writers.retain(|_, peering| !matches!(peering, Peering::Free(since, _) if *since <= then));
        writers.values().any(|peering| matches!(peering, Peering::Free(..)))
    }
}

impl Shard {
    /// Writes buffers into a peer's by RDMA. Gives the parcels back where that cannot be.
    pub(super) async fn write_to(
        self: &Rc<Self>,
        to: To<'_>,
        mut parcels: Vec<Parcel>,
    ) -> Result<Option<Vec<Parcel>>, Trouble> {
        let Some(fabric) = self.config.fabric.clone() else { return Ok(Some(parcels)) };
        let Some(first) = parcels.first() else { return Ok(None) };
        let identity = self.engine.borrow().identity_of(first).map_err(Trouble::Here)?;
        let key = (to.host().to_owned(), identity);
        // Memory is not pinned for nothing.
        if parcels.len() > PLACES_MAX || self.writers.knows_none(&key) {
            return Ok(Some(parcels));
        }
        let sources = self.sources(&mut parcels).await?;
        loop {
            let Some((mut turnstile, kept)) = self.writers.enter(key.clone(), to.peer()).await
            else {
                return Ok(Some(parcels));
            };
            let kept = self.kept_or_new(kept, &fabric, to, identity, &parcels[0]).await;
            let Some(mut writer) = kept else {
                turnstile.after = Some(Peering::None(Instant::now()));
                return Ok(Some(parcels));
            };
            let remembered = writer.places.find(&parcels);
            let is_remembered = remembered.is_some();
            let destinations = match remembered {
                Some(destinations) => Ok(destinations),
                None => self.ask_places(to, &parcels).await,
            };
            let destinations = match destinations {
                Ok(destinations) => destinations,
                Err(trouble) => {
                    self.keep_writer(turnstile, writer);
                    return Err(trouble);
                }
            };
            let needs_stage = sources.iter().any(Option::is_none);
            if needs_stage && !self.has_stage(&mut writer, &fabric, identity).await {
                self.keep_writer(turnstile, writer);
                return Ok(Some(parcels));
            }
            let targets = match destinations {
                Destinations::At(targets) => targets,
                Destinations::Elsewhere => {
                    let landed = self.write_landed(&mut writer, to, &parcels, &sources).await?;
                    self.keep_writer(turnstile, writer);
                    let rest = parcels.split_off(landed?);
                    return Ok(Some(rest).filter(|rest| !rest.is_empty()));
                }
            };
            match self.write(&mut writer, &parcels, &sources, &targets).await {
                Ok(()) => {
                    if !is_remembered {
                        writer.places.remember(&parcels, targets.into_iter().map(Place::At));
                    }
                    self.keep_writer(turnstile, writer);
                    return Ok(None);
                }
                // Some buffer has ended since; whether there is another by its name the peer knows.
                Err(Trouble::Unwritten(WorkStatus::REMOTE_ACCESS)) if is_remembered => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// The link that was kept, or a new one if there can be one.
    async fn kept_or_new(
        self: &Rc<Self>,
        kept: Option<Box<Writer>>,
        fabric: &DeviceFabric,
        to: To<'_>,
        identity: Identity,
        parcel: &Parcel,
    ) -> Option<Box<Writer>> {
        if kept.is_some() {
            return kept;
        }
        let made = self.connect_writer(fabric, to, identity, parcel).await;
        made.map(Box::new)
            .inspect_err(|trouble| debug!(host = to.host(), %trouble, "no RDMA to this peer"))
            .ok()
    }

    /// Where the bytes of parcels are for the network card, as far as it reaches them.
    async fn sources(&self, parcels: &mut [Parcel]) -> Result<Vec<Option<Source>>, Trouble> {
        loop {
            // What was begun for each is found when it is asked for again.
            let (mut sources, mut later) = (Vec::with_capacity(parcels.len()), None);
            for parcel in &mut *parcels {
                let asked = self.engine.borrow_mut().source(parcel, Instant::now());
                match asked.map_err(Trouble::Here)? {
                    Sourcing::Later(wait) => later = later.or(Some(wait)),
                    Sourcing::Never => sources.push(None),
                    Sourcing::Ready(source) => sources.push(Some(source)),
                }
            }
            let Some(wait) = later else { return Ok(sources) };
            // Nobody cancels it but by dropping the task.
            let _ = self.wait(&Cancel::default(), &wait).await;
        }
    }

    /// Keeps a link that works, for a while.
    fn keep_writer(self: &Rc<Self>, mut turnstile: Turnstile<'_>, writer: Box<Writer>) {
        turnstile.after = Some(Peering::Free(Instant::now(), writer));
        drop(turnstile);
        self.want_sweeper();
    }

    /// Makes a link and connects it.
    async fn connect_writer(
        self: &Rc<Self>,
        fabric: &DeviceFabric,
        to: To<'_>,
        identity: Identity,
        parcel: &Parcel,
    ) -> Result<Writer, Trouble> {
        let mut held_by = self.new_link(to.peer()).await?;
        let text = format!("[{}]", asking::properties(parcel));
        let properties = self.ask_on(&mut held_by, to, &text).await??;
        if String::from_utf8_lossy(&properties).contains("ib_gid=None") {
            return Err(Trouble::Rdma("it has no RDMA".to_owned()));
        }
        let domain = fabric.domain(identity)?;
        let link = Link::new(&domain, self.config.rdma_queue_pairs)?;
        let mut peers = Vec::new();
        for (pair, address) in link.addresses().enumerate() {
            // Shards, identities and pairs have connections of their own.
            let (shard, identity) = (self.home.0, identity.number());
            let name = format!("{}#{shard}.{identity:x}.{pair}", parcel.from_host());
            let text = format!("[{}]", asking::connect(parcel, &name, address));
            let answer = self.ask_on(&mut held_by, to, &text).await??;
            let answer: &[u8; Address::BYTES] = answer.as_slice().try_into().map_err(|_| odd())?;
            peers.push(Address::from_bytes(answer)?);
        }
        let connecting = link.connect_all(peers);
        // Nobody cancels it but by dropping the task.
        let _ = self.wait(&Cancel::default(), &WaitFor::Rdma(connecting.awaited())).await;
        let link = connecting.take().ok_or(RdmaError::LATE)??;
        let descriptor = link.descriptor().try_clone_to_owned()?;
        info!(host = to.host(), "connected by RDMA");
        Ok(Writer {
            link,
            held_by,
            places: Places::default(),
            stage: None,
            descriptor: Rc::new(descriptor),
        })
    }

    /// Where the destinations are, which have to be as long as the sources.
    async fn ask_places(
        self: &Rc<Self>,
        to: To<'_>,
        parcels: &[Parcel],
    ) -> Result<Destinations, Trouble> {
        match self.ask(to, &asking::places(parcels)).await {
            Ok(answer) => Ok(Destinations::At(targets(&answer, parcels)?)),
            // There may be memory that its network card does not reach. What else is wrong it says
            // again.
            Err(Trouble::Refused { status, text }) => {
                debug!(host = to.host(), status, text, "no place for RDMA");
                Ok(Destinations::Elsewhere)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Waits until sources are registered and their devices are past what they have to do.
    async fn settle(&self, sources: &[Option<Source>]) -> Result<(), Trouble> {
        let cancel = Cancel::default();
        for source in sources.iter().flatten() {
            // Nobody cancels these but by dropping the task.
            let _ = self.wait(&cancel, &WaitFor::Rdma(source.promise.awaited())).await;
            if let Some((session, fence)) = source.after {
                let _ = self.wait(&cancel, &WaitFor::Device { session, fence }).await;
            }
        }
        let after: Vec<_> = sources.iter().flatten().filter_map(|source| source.after).collect();
        self.engine.borrow_mut().has_reached(&after).map_err(Trouble::Here)
    }

    /// Writes, once all sources are registered and their devices are past what they have to do.
    async fn write(
        &self,
        writer: &mut Writer,
        parcels: &[Parcel],
        sources: &[Option<Source>],
        targets: &[Target],
    ) -> Result<(), Trouble> {
        self.settle(sources).await?;
        let mut staged = Vec::new();
        for ((source, target), parcel) in sources.iter().zip(targets).zip(parcels) {
            let Some(source) = source else {
                staged.push((target, parcel));
                continue;
            };
            let (local, local_key) = source.promise.local().ok_or(RdmaError::LATE)??;
            let write = Write {
                local,
                local_key,
                remote: target.iova,
                remote_key: target.key,
                bytes: parcel.bytes,
            };
            writer.link.submit(vec![write], source.promise.clone());
        }
        self.drive(writer).await?;
        // Back to the link at its end; what has failed goes with the link.
        let Some(mut stage) = writer.stage.take() else { return Ok(()) };
        for (target, parcel) in staged {
            self.write_staged(writer, &mut stage, parcel, target).await?;
        }
        writer.stage = Some(stage);
        Ok(())
    }

    /// Waits until all that a link has to write is written.
    async fn drive(&self, Writer { link, descriptor, .. }: &mut Writer) -> Result<(), Trouble> {
        let silence_max = self.config.peer.silence_max;
        loop {
            let turn = link.turn()?;
            let failed = std::iter::from_fn(|| link.next_finished())
                .fold(None, |failed, finished| failed.or(finished.outcome.err()));
            if let Some(status) = failed {
                return Err(Trouble::Unwritten(status));
            }
            if turn == Turn::Idle {
                return Ok(());
            }
            let readable = self.reactor.ring().readable(descriptor);
            if self.reactor.within(silence_max, readable).await.is_none() {
                return Err(Trouble::Silent(silence_max));
            }
        }
    }
}

/// The targets that a peer has answered, each as long as its parcel.
fn targets(answer: &[u8], parcels: &[Parcel]) -> Result<Vec<Target>, Trouble> {
    let (places, rest) = answer.as_chunks::<{ Target::BYTES }>();
    if places.len() != parcels.len() || !rest.is_empty() {
        return Err(odd());
    }
    let targets = places.iter().zip(parcels).map(|(place, parcel)| {
        let target = Target::from_bytes(place).ok_or_else(odd)?;
        match target.bytes == parcel.bytes {
            true => Ok(target),
            false => Err(Trouble::Rdma(format!(
                "its buffer has {} bytes, ours has {}: they must be equal",
                target.bytes, parcel.bytes
            ))),
        }
    });
    targets.collect()
}

/// A peer that answers what makes no sense.
fn odd() -> Trouble {
    Trouble::Rdma("its answer makes no sense".to_owned())
}

impl From<RdmaError> for Trouble {
    fn from(error: RdmaError) -> Trouble {
        Trouble::Here(error.into())
    }
}

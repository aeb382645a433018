//! Other servers: errands of this shard's batches, and the connections that they go by.
//!
//! Owns: the connections that are kept to each peer, how many there may be at once, and how long
//! anything may take. Absent: whom the server may connect to (`identity::Peers`), what is said
//! (`engine::Errand`) and how answers are framed (`http::Replies`).
//!
//! An errand is a task of its own. Its requests go out one behind the other without waiting for
//! answers, and bytes are sent while the device still brings the next ones. Events have connections
//! of their own: what they set free may be just what a long copy on another connection waits for.
//!
//! Where TLS is spoken, a connection is used once both ends know whom they have. One that was made
//! with files that have been read again since is not used any more. Only connecting is tried more
//! than once, and nothing is ever said without TLS to a peer that is to speak it.
//!
//! Nothing is sent twice. A connection that has been idle is looked at before it is used, and what
//! fails later fails with the name of the peer.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tracing::debug;

use super::Shard;
use super::completion::{Cancel, Gone};
use super::io::{Received, Socket, connect};
use super::output::{Unreadable, Unsent};
use super::tls;
use crate::blob::Digest;
use crate::config::{HttpLimits, PeerLimits};
use crate::engine::{Batch, Cause, Errand, Owner, Parcel, WaitFor, Work};
use crate::http::{Replies, ReplyError, ReplyEvent};
use crate::identity::Peer;
use crate::rdma::WorkStatus;

/// Why an errand failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("it closed the connection before it had answered")]
    Closed,
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// Not the peer's doing.
    #[error("{0}")]
    Here(Cause),
    #[error("it ended the connection before the handshake of TLS was over")]
    HungUp,
    #[error("the connection to it broke: {0}")]
    Io(io::Error),
    #[error("by RDMA: {0}")]
    Rdma(String),
    #[error("it answered {status}: {text}")]
    Refused { status: u16, text: String },
    #[error("{0}")]
    Reply(#[from] ReplyError),
    #[error("nothing was heard of it for {0:?}")]
    Silent(Duration),
    #[error("{}", tls::advice(.0))]
    Tls(rustls::Error),
    #[error("the handshake of TLS was not over after {0:?}")]
    Unshaken(Duration),
    #[error("by RDMA: {0}")]
    Unwritten(WorkStatus),
    #[error("it speaks TLS: --peer names its authorities with ca=FILE")]
    WantsTls,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        match error.downcast() {
            Ok(error) => Trouble::Tls(error),
            Err(error) => Trouble::Io(error),
        }
    }
}

impl Trouble {
    fn of_peer(self, host: String) -> Cause {
        match self {
            Trouble::Here(cause) => cause,
            trouble => Cause::Peer { host, why: trouble.to_string() },
        }
    }
}

impl From<Unsent> for Trouble {
    fn from(unsent: Unsent) -> Trouble {
        match unsent {
            Unsent::Io(error) => error.into(),
            Unsent::Output(Unreadable::Failed(cause)) => Trouble::Here(cause),
            Unsent::Output(Unreadable::Gone) => Trouble::Closed,
            Unsent::Silent(time) => Trouble::Silent(time),
        }
    }
}

/// Where an errand goes.
#[derive(Clone, Copy)]
pub(super) struct To<'e> {
    peer: &'e Peer,
    /// A session there, or nothing.
    route: &'e str,
}

impl<'e> To<'e> {
    pub(super) fn host(self) -> &'e str {
        &self.peer.host
    }

    pub(super) fn peer(self) -> &'e Peer {
        self.peer
    }

    /// The head of a request.
    fn head(self, body_bytes: u64) -> Vec<u8> {
        let To { peer: Peer { host, token, .. }, route } = self;
        let authorization = match token {
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        };
        format!(
            "POST /batch HTTP/1.1\r\nHost: {host}\r\nOutboard-Peer: {route}\r\n{authorization}\
             Content-Length: {body_bytes}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// What a connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    Copies,
    Events,
}

/// The connections of all lanes.
#[derive(Default)]
pub(super) struct Links(RefCell<HashMap<(String, Lane), Lines>>);

/// The connections of one lane to one peer. There is an entry only while there is one.
#[derive(Default)]
struct Lines {
    /// The one that was used last is at the end.
    idle: Vec<(Instant, Link)>,
    busy: usize,
    waiting: Vec<Waker>,
}

/// A connection to a peer.
pub(super) struct Link {
    socket: Socket,
    replies: Replies,
    /// What came and was not looked at.
    input: Vec<u8>,
    /// What TLS was begun with.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Link {
    /// Whether it is open, the peer has nothing to say, and it was made as one to `peer` would be
    /// made now.
    pub(super) fn is_good_for(&self, peer: &Peer) -> bool {
        let is_as_now = match (&self.tls, &peer.tls) {
            (None, None) => true,
            (Some(then), Some(now)) => Arc::ptr_eq(then, &now.config),
            _ => false,
        };
        is_as_now && self.socket.handle().is_quiet()
    }
}

/// The right to use one connection of a lane.
pub(super) struct Seat {
    shard: Rc<Shard>,
    lane: (String, Lane),
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shard.links.change(&self.lane, |lines| lines.busy -= 1);
    }
}

impl Links {
    /// Changes a lane's entry, which goes when it is empty, and wakes who waits for a change.
    fn change<T>(&self, lane: &(String, Lane), change: impl FnOnce(&mut Lines) -> T) -> T {
        let mut lanes = self.0.borrow_mut();
        let lines = lanes.entry(lane.clone()).or_default();
        let outcome = change(lines);
        lines.waiting.drain(..).for_each(Waker::wake);
        if lines.busy == 0 && lines.idle.is_empty() {
            lanes.remove(lane);
        }
        outcome
    }

    /// Closes what nobody has used since `then`; whether any is left.
    fn close_idle(&self, then: Instant) -> bool {
        let mut lanes = self.0.borrow_mut();
        lanes.retain(|_, lines| {
            lines.idle.retain(|(since, _)| *since > then);
            lines.busy > 0 || !lines.idle.is_empty()
        });
        lanes.values().any(|lines| !lines.idle.is_empty())
    }
}

/// Errands of one batch that are under way. They end with it.
#[derive(Default)]
pub(super) struct Errands(VecDeque<(usize, glommio::Task<Result<(), Cause>>)>);

impl Errands {
    /// Begins one.
    pub(super) async fn begin(
        &mut self,
        shard: &Rc<Shard>,
        cancel: &Cancel,
        batch: &mut Batch<'_>,
        errand: Errand,
    ) -> Result<(), Gone> {
        while self.0.len() >= PeerLimits::ERRANDS_PER_BATCH_MAX {
            self.join_first(cancel, batch).await?;
        }
        let index = errand.index;
        let task = Rc::clone(shard).run_errand(errand);
        self.0.push_back((index, shard.reactor.spawn(task)));
        Ok(())
    }

    /// Waits for all of them.
    pub(super) async fn join(
        &mut self,
        cancel: &Cancel,
        batch: &mut Batch<'_>,
    ) -> Result<(), Gone> {
        while !self.0.is_empty() {
            self.join_first(cancel, batch).await?;
        }
        Ok(())
    }

    async fn join_first(&mut self, cancel: &Cancel, batch: &mut Batch<'_>) -> Result<(), Gone> {
        let Some((index, mut task)) = self.0.pop_front() else { return Ok(()) };
        let outcome = poll_fn(|cx| {
            if cancel.is_cancelled(cx.waker()) {
                return Poll::Ready(Err(Gone));
            }
            Pin::new(&mut task).poll(cx).map(Ok)
        });
        batch.came_back(index, outcome.await?);
        Ok(())
    }
}

impl Shard {
    async fn run_errand(self: Rc<Self>, errand: Errand) -> Result<(), Cause> {
        let Errand { host, owner, route, work, .. } = errand;
        self.waits.want_ticks();
        let Some(peer) = self.peers.borrow().find(&host) else {
            return Err(Cause::PeerUnknown { host });
        };
        let to = To { peer: &peer, route: &route };
        let outcome = match work {
            Work::Copies(parcels) => self.copy_to(to, owner, parcels).await,
            Work::Event { text, after } => {
                for (session, fence) in &after {
                    let wait = WaitFor::Device { session: *session, fence: *fence };
                    // Nobody cancels it but by dropping the task.
                    let _ = self.wait(&Cancel::default(), &wait).await;
                }
                self.engine.borrow_mut().has_reached(&after)?;
                self.send_event(to, &text).await
            }
        };
        outcome.map_err(|trouble| {
            debug!(%host, %trouble, "errand failed");
            trouble.of_peer(host)
        })
    }

    async fn send_event(self: &Rc<Self>, to: To<'_>, text: &str) -> Result<(), Trouble> {
        self.ask_by(Lane::Events, to, text).await.map(drop)
    }

    /// Sends a batch without blobs that somebody waits for, and gives back the answer.
    pub(super) async fn ask(self: &Rc<Self>, to: To<'_>, text: &str) -> Result<Vec<u8>, Trouble> {
        self.ask_by(Lane::Copies, to, &format!("[{text}]")).await
    }

    async fn ask_by(
        self: &Rc<Self>,
        lane: Lane,
        to: To<'_>,
        text: &str,
    ) -> Result<Vec<u8>, Trouble> {
        let (seat, mut link) = self.link_to(to.peer, lane).await?;
        let outcome = self.ask_on(&mut link, to, text).await?;
        self.keep(seat, link);
        outcome
    }

    /// As [`Self::ask`], by a connection that the caller keeps: the inner error leaves it as it
    /// should be.
    pub(super) async fn ask_on(
        &self,
        link: &mut Link,
        to: To<'_>,
        text: &str,
    ) -> Result<Result<Vec<u8>, Trouble>, Trouble> {
        let mut request = to.head(BLOB_HEAD_BYTES + text.len() as u64);
        put_blob_head(&mut request, Digest([0xff; 32]), text.len() as u64);
        request.extend_from_slice(text.as_bytes());
        link.socket.cork(request);
        self.receive_reply(link).await
    }

    /// Sends buffers, and waits until the peer has taken them.
    async fn copy_to(
        self: &Rc<Self>,
        to: To<'_>,
        owner: Owner,
        parcels: Vec<Parcel>,
    ) -> Result<(), Trouble> {
        let Some(parcels) = self.write_to(to, parcels).await? else { return Ok(()) };
        let (seat, mut link) = self.link_to(to.peer, Lane::Copies).await?;
        let (mut answers, mut outcome) = (0, Ok(()));
        let mut parcels = parcels.into_iter().peekable();
        while let Some(first) = parcels.next() {
            let mut bytes = first.bytes;
            let mut group = vec![first];
            // Small ones share a request.
            while let Some(next) = parcels
                .next_if(|next| bytes.saturating_add(next.bytes) <= PeerLimits::GROUP_BYTES_MAX)
            {
                bytes += next.bytes;
                group.push(next);
            }
            if let Err(trouble) = self.send_copies(&mut link, to, owner, group).await {
                // A peer that refuses a request may say why before it hangs up.
                return Err(match self.receive_reply(&mut link).await {
                    Ok(Err(said)) | Err(said @ (Trouble::Tls(_) | Trouble::WantsTls)) => said,
                    _ => trouble,
                });
            }
            answers += 1;
            if answers == PeerLimits::REQUESTS_AHEAD_MAX {
                outcome = outcome.and(self.receive_reply(&mut link).await?.map(drop));
                answers -= 1;
            }
        }
        for _ in 0..answers {
            outcome = outcome.and(self.receive_reply(&mut link).await?.map(drop));
        }
        self.keep(seat, link);
        outcome
    }

    /// Sends one request. The text, which comes last, goes out with the next receive.
    async fn send_copies(
        &self,
        link: &mut Link,
        to: To<'_>,
        owner: Owner,
        group: Vec<Parcel>,
    ) -> Result<(), Trouble> {
        let commands: Vec<&str> = group.iter().map(|parcel| parcel.command.as_str()).collect();
        let text = format!("[{}]", commands.join(", "));
        let blobs: u64 = group.iter().map(|parcel| BLOB_HEAD_BYTES + parcel.bytes).sum();
        let mut request = to.head(blobs + BLOB_HEAD_BYTES + text.len() as u64);
        let cancel = Cancel::default();
        for parcel in group {
            put_blob_head(&mut request, parcel.name, parcel.bytes);
            link.socket.cork(std::mem::take(&mut request));
            let pause_max = Some(self.config.peer.silence_max);
            let socket = &mut link.socket;
            self.send_output(socket, owner, &cancel, parcel.output, pause_max).await?;
        }
        put_blob_head(&mut request, Digest([0xff; 32]), text.len() as u64);
        request.extend_from_slice(text.as_bytes());
        link.socket.cork(request);
        Ok(())
    }

    /// What the peer says to the next request, whose rest goes out first: the inner error leaves
    /// the connection as it should be.
    async fn receive_reply(&self, link: &mut Link) -> Result<Result<Vec<u8>, Trouble>, Trouble> {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let (consumed, event) = match link.replies.next(&link.input) {
                Err(ReplyError::Head) if link.input.starts_with(TLS_ALERT) => {
                    return Err(Trouble::WantsTls);
                }
                next => next?,
            };
            let is_over = match event {
                ReplyEvent::Head { status: found } => {
                    status = found;
                    None
                }
                ReplyEvent::Body(bytes) => {
                    let room = match status {
                        200 => bytes.len(),
                        _ => PeerLimits::ANSWER_BYTES_KEPT.saturating_sub(body.len()),
                    };
                    body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    None
                }
                ReplyEvent::End { keeps } => Some(keeps),
                ReplyEvent::NeedMore => {
                    link.input.drain(..consumed);
                    let received = self.hear(link).await?;
                    if received.is_empty() {
                        return Err(Trouble::Closed);
                    }
                    link.input.extend_from_slice(&received);
                    continue;
                }
            };
            link.input.drain(..consumed);
            match is_over {
                None => {}
                Some(keeps) => {
                    let outcome = answer(status, std::mem::take(&mut body));
                    return if keeps { Ok(outcome) } else { outcome.map(Ok) };
                }
            }
        }
    }

    /// What comes next. A peer that refuses what it is sent says why before it hangs up, which is
    /// there to be read when nothing more can be sent.
    async fn hear(&self, link: &mut Link) -> Result<Received, Trouble> {
        let silence_max = self.config.peer.silence_max;
        let received = self.reactor.within(silence_max, link.socket.receive()).await;
        match received.ok_or(Trouble::Silent(silence_max))?.map_err(Trouble::from) {
            Err(Trouble::Io(error)) => {
                let last = self.reactor.within(silence_max, link.socket.receive()).await;
                match last.map(|last| last.map_err(Trouble::from)) {
                    Some(Ok(last)) if !last.is_empty() => Ok(last),
                    Some(Err(said @ Trouble::Tls(_))) => Err(said),
                    _ => Err(Trouble::Io(error)),
                }
            }
            received => received,
        }
    }

    /// A connection to a peer: one that was kept, or a new one.
    pub(super) async fn link_to(
        self: &Rc<Self>,
        peer: &Peer,
        lane: Lane,
    ) -> Result<(Seat, Link), Trouble> {
        let silence_max = self.config.peer.silence_max;
        let seat = self.reactor.within(silence_max, self.seat((peer.host.clone(), lane))).await;
        let seat = seat.ok_or(Trouble::Silent(silence_max))?;
        while let Some((_, link)) = self.links.change(&seat.lane, |lines| lines.idle.pop()) {
            if link.is_good_for(peer) {
                return Ok((seat, link));
            }
        }
        Ok((seat, self.new_link(peer).await?))
    }

    /// A connection to a peer that nobody else uses.
    pub(super) async fn new_link(&self, peer: &Peer) -> Result<Link, Trouble> {
        let mut tries = 1;
        loop {
            match self.connect_to(peer).await {
                Ok(mut socket) => {
                    self.begin_tls(&mut socket, peer).await?;
                    let limits = HttpLimits {
                        body_bytes_max: PeerLimits::ANSWER_BYTES_MAX,
                        ..HttpLimits::default()
                    };
                    let (replies, input) = (Replies::new(limits), Vec::new());
                    let tls = peer.tls.as_ref().map(|tls| Arc::clone(&tls.config));
                    return Ok(Link { socket, replies, input, tls });
                }
                Err(error) if tries == PeerLimits::CONNECT_TRIES => {
                    return Err(Trouble::Connect(error));
                }
                Err(error) => debug!(host = %peer.host, %error, tries, "cannot connect"),
            }
            tries += 1;
            self.reactor.sleep(PeerLimits::CONNECT_PAUSE).await;
        }
    }

    async fn connect_to(&self, peer: &Peer) -> io::Result<Socket> {
        let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
        for address in &peer.addresses {
            let connecting = connect(&self.reactor, *address, self.config.shard.keepalive_idle);
            let time_max = PeerLimits::CONNECT_TIME_MAX.min(self.config.peer.silence_max);
            outcome = self.reactor.within(time_max, connecting).await.unwrap_or_else(|| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection"))
            });
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Makes sure of the other end, where it is to speak TLS.
    async fn begin_tls(&self, socket: &mut Socket, peer: &Peer) -> Result<(), Trouble> {
        let Some(tls) = &peer.tls else { return Ok(()) };
        socket.begin_tls_to(tls)?;
        let time_max = PeerLimits::HANDSHAKE_TIME_MAX.min(self.config.peer.silence_max);
        let shaken = self.reactor.within(time_max, socket.shake_hands()).await;
        match shaken.ok_or(Trouble::Unshaken(time_max))? {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Trouble::HungUp),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a connection of a lane may be used.
    async fn seat(self: &Rc<Self>, lane: (String, Lane)) -> Seat {
        poll_fn(|cx| {
            let mut lanes = self.links.0.borrow_mut();
            let lines = lanes.entry(lane.clone()).or_default();
            if lines.busy < PeerLimits::CONNECTIONS_PER_LANE_MAX {
                lines.busy += 1;
                return Poll::Ready(());
            }
            lines.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Seat { shard: Rc::clone(self), lane }
    }

    /// Keeps a connection whose requests are all answered.
    pub(super) fn keep(self: &Rc<Self>, seat: Seat, link: Link) {
        self.links.change(&seat.lane, |lines| lines.idle.push((Instant::now(), link)));
        self.want_sweeper();
    }

    /// Has connections and links to peers end that nobody uses for a while.
    pub(super) fn want_sweeper(self: &Rc<Self>) {
        if self.has_sweeper.replace(true) {
            return;
        }
        let shard = Rc::clone(self);
        let sweep = async move {
            let mut is_left = true;
            while is_left {
                shard.reactor.sleep(PeerLimits::IDLE_TIME_MAX).await;
                if let Some(then) = Instant::now().checked_sub(PeerLimits::IDLE_TIME_MAX) {
                    is_left = shard.links.close_idle(then) | shard.writers.end_idle(then);
                }
            }
            shard.has_sweeper.set(false);
        };
        self.reactor.spawn(sweep).detach();
    }
}

/// How a server begins that speaks TLS and was sent something else: an alert of any version.
const TLS_ALERT: &[u8] = &[21, 3];

/// Bytes in front of a blob: its name, its length.
const BLOB_HEAD_BYTES: u64 = 40;

fn put_blob_head(to: &mut Vec<u8>, name: Digest, bytes: u64) {
    to.extend_from_slice(&name.0);
    to.extend_from_slice(&bytes.to_le_bytes());
}

/// What a peer's answer says, in words for whoever sent the batch.
fn answer(status: u16, body: Vec<u8>) -> Result<Vec<u8>, Trouble> {
    if status == 200 {
        return Ok(body);
    }
    let text = String::from_utf8_lossy(&body);
    // Of a Python server the trace is of no use to a client of this one.
    let text = text.split(", trace=").next().unwrap_or_default();
    let text = text.strip_prefix("RemoteException(exc=").unwrap_or(text).trim_end();
    Err(Trouble::Refused { status, text: text.to_owned() })
}

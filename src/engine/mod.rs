//! What a command means.
//!
//! Owns: all session state (memory, programs, graphs, events) of the sessions whose home is this
//! shard, and the rules of a batch: commands run in order, a failing one has no effect, those after
//! it still run unless they need what failed to come into being.
//!
//! Absent: sockets, tasks, wakers, the clock (time is an argument), other shards. Nothing here
//! blocks: where a command has to wait, [`Engine::advance`] says for what, and the caller comes
//! back.
//!
//! Reading order: this file (the one `match` over commands), `batch` (a batch under way), `session`
//! (the table of sessions), `tenant` (what one identity has), then a file per kind of resource:
//! `buffer`, `program`, `graph`, `event`, `transfer`, `rdma`, `reachable` and `landing`; `peer`,
//! what other servers are asked for; `cause` has every way to fail.
#![forbid(unsafe_code)]

mod batch;
mod buffer;
mod cause;
mod event;
mod graph;
mod landing;
mod peer;
mod program;
mod rdma;
mod reachable;
mod session;
mod tenant;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use batch::{Batch, Blob, Blobs, NamedBytes, Output, Progress, Reading, Reply, Rest, Sender};
pub use cause::Cause;
pub use peer::{Errand, Parcel, Route, Work};
pub use rdma::{Source, Sourcing, asking};
pub use session::{Directory, Home, Owner, SessionId};
pub use tenant::{Seat, Tenant};

use crate::compile;
use crate::config::{EngineLimits, WireLimits};
use crate::device::{DeviceError, Fence, Platform};
use crate::identity::Identity;
use crate::rdma::{Awaited, Fabric, RdmaError};
use crate::wire::command::{Command, EventNumber, SessionKey};
use crate::wire::{Parsing, Stored, WireError, reply};
use batch::{Memory, Pending};
use landing::Landings;
use rdma::Rdma;
use session::Sessions;

/// What a batch waits for. The caller of [`Engine::advance`] comes back when [`Engine::is_over`]
/// says so.
#[derive(Clone, Debug)]
pub enum WaitFor {
    /// A compilation.
    Compile(compile::Ticket),
    /// A fence of a session's device.
    Device { session: SessionId, fence: Fence },
    /// An event that somebody has to set.
    Event { session: SessionId, event: EventNumber, until: Instant },
    /// What RDMA's own threads do.
    Rdma(Awaited),
}

/// Why a command did not finish: it failed, it has to be tried again later, or it is another
/// shard's to do. None of the three has had an effect.
enum Stop {
    Failed(Cause),
    Forward(Home),
    Retry(WaitFor),
}

impl<C: Into<Cause>> From<C> for Stop {
    fn from(cause: C) -> Stop {
        Stop::Failed(cause.into())
    }
}

/// What a command came to.
enum Step {
    Done(Output),
    /// The rest of the command is another server's; the batch goes on.
    Peer {
        to: SessionKey<'static>,
        work: Work,
    },
    /// The command has begun; `Pending` says how it ends.
    Wait(WaitFor, Pending),
    /// The command has begun and could go on, but it is others' turn.
    Pause(Pending),
}

const DONE: Result<Step, Stop> = Ok(Step::Done(Output::Empty));

/// The state of all sessions of one shard.
pub struct Engine {
    platform: Box<dyn Platform>,
    limits: EngineLimits,
    sessions: Sessions,
    /// Counts events that were set, so that a caller can tell whether one was.
    events_set: u64,
    memory: Memory,
    rdma: Rdma,
    landings: Landings,
    /// Counts calls of [`Self::advance`].
    turn: u64,
}

impl Engine {
    /// An engine over the machine's accelerators. `directory` is shared by all shards, `home` is
    /// this one.
    #[must_use]
    pub fn new(
        platform: Box<dyn Platform>,
        limits: EngineLimits,
        directory: Arc<Directory>,
        home: Home,
    ) -> Engine {
        let (sessions, memory) = (Sessions::new(directory, home), Memory::default());
        let (rdma, landings) = (Rdma::default(), Landings::default());
        Engine { platform, limits, sessions, events_set: 0, memory, rdma, landings, turn: 0 }
    }

    /// The same, which peers may reach by RDMA.
    #[must_use]
    pub fn with_fabric(mut self, fabric: Box<dyn Fabric>) -> Engine {
        self.rdma.set(fabric);
        self
    }

    /// [`Batch::parse`], in the memory of the last batch that was done.
    ///
    /// # Errors
    ///
    /// Those of [`Batch::parse`].
    pub fn parse<'t>(
        &mut self,
        text: &'t [u8],
        blobs: Blobs,
        owner: Owner,
        limits: &WireLimits,
    ) -> Result<Batch<'t>, WireError> {
        Batch::parse_with(&mut self.memory, text, blobs, owner, limits)
    }

    /// The memory node of the device that a batch names first, if that is known, and the session is
    /// one that the batch would open.
    #[must_use]
    pub fn node_of_new_session(&self, batch: &Batch<'_>) -> Option<usize> {
        let (_, key) = batch.commands.session(0)?;
        let is_new =
            key.idx < self.platform.device_count() && self.sessions.is_unknown(batch.identity, key);
        if is_new { self.platform.numa_node(key.idx) } else { None }
    }

    /// As [`Self::parse`], little by little; to be gone on with by [`Self::parse_on`].
    ///
    /// # Errors
    ///
    /// The text is no list, or too long.
    pub fn begin_parsing<'t>(
        &mut self,
        text: &'t [u8],
        limits: &WireLimits,
    ) -> Result<Parsing<'t>, WireError> {
        Parsing::begin(std::mem::take(&mut self.memory.commands), text, limits)
    }

    /// Reads a part of a text that is short enough for others to wait for. Whether that was the
    /// last.
    ///
    /// # Errors
    ///
    /// Those of [`Batch::parse`].
    pub fn parse_on(
        &mut self,
        parsing: &mut Parsing<'_>,
        limits: &WireLimits,
    ) -> Result<bool, WireError> {
        parsing.go_on(&mut self.memory.tape, limits, self.limits.text_slice_bytes)
    }

    /// The batch of a text that was read.
    pub fn batch<'t>(&mut self, parsing: Parsing<'t>, blobs: Blobs, owner: Owner) -> Batch<'t> {
        Batch::new(&mut self.memory, parsing.finish(), blobs, owner)
    }

    /// Runs a batch until it is done, has to wait, or has used its slice of time.
    pub fn advance(&mut self, batch: &mut Batch<'_>, now: Instant) -> Progress {
        self.prefetch(batch);
        self.turn += 1;
        let mut left = self.limits.commands_per_slice;
        loop {
            let progress = self.run_slice(batch, &mut left, now);
            match &progress {
                Progress::Done(_) => self.memory.take_back(batch),
                Progress::Wait(WaitFor::Device { session, fence })
                    if batch.may_linger() && self.sessions.linger(*session, *fence, now) =>
                {
                    continue;
                }
                Progress::Forward(_)
                | Progress::Join
                | Progress::Pause
                | Progress::Peer(_)
                | Progress::Wait(_) => {}
            }
            return progress;
        }
    }

    /// Runs the next `left` commands, as far as they run without waiting.
    fn run_slice(&mut self, batch: &mut Batch<'_>, left: &mut usize, now: Instant) -> Progress {
        while let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            let outcome = match batch.pending.take() {
                Some(pending) => self.resume(pending, batch, now),
                None if batch.waits_for_errands() => return Progress::Join,
                None if batch.next >= batch.commands.len() => {
                    return Progress::Done(batch.finish());
                }
                None => self.begin(batch, now),
            };
            match outcome {
                Ok(Step::Done(output)) => batch.succeed(output),
                Ok(Step::Peer { to, work }) => {
                    return Progress::Peer(batch.begin_errand(to, work));
                }
                Ok(Step::Wait(wait, pending)) => {
                    batch.pending = Some(pending);
                    return Progress::Wait(wait);
                }
                Ok(Step::Pause(pending)) => {
                    batch.pending = Some(pending);
                    return Progress::Pause;
                }
                Err(Stop::Failed(cause)) => {
                    if let Some(command) = batch.commands.get(batch.next)
                        && let Some((_, key)) = batch.commands.session(batch.next)
                    {
                        self.remember_missing(batch.identity, key, &command, &cause);
                    }
                    batch.fail(cause);
                }
                Err(Stop::Forward(home)) => return Progress::Forward(home),
                Err(Stop::Retry(wait)) => return Progress::Wait(wait),
            }
        }
        Progress::Pause
    }

    /// The batch's next command, of which nothing has happened yet.
    fn begin(&mut self, batch: &mut Batch<'_>, now: Instant) -> Result<Step, Stop> {
        self.check_sender(batch)?;
        let at = self.session_of(batch);
        self.claim_landed(batch);
        let stop = match at {
            Ok(at) => return self.apply(at, batch, now),
            Err(stop) => stop,
        };
        match (stop, batch.commands.get(batch.next)) {
            // A peer is let in, and has memory, where its connection is served.
            (Stop::Forward(_), Some(Stored::Other(Command::BlobLanding(c)))) => {
                self.blob_landing(batch, c, now)
            }
            (Stop::Forward(_), Some(Stored::Other(Command::IbConnect(c)))) => {
                self.ib_connect(batch, c, now)
            }
            (stop, _) => Err(stop),
        }
    }

    /// The session of the batch's next command. The names of a batch's sessions are looked up once.
    fn session_of(&mut self, batch: &mut Batch<'_>) -> Result<SessionId, Stop> {
        let (index, key) = batch.commands.session(batch.next).expect("it is there to be run");
        if let Some(known) = batch.sessions[index]
            && self.sessions.by_id(known).is_some()
        {
            return Ok(known);
        }
        let id = match batch.sender {
            Sender::Client => self.session(batch.identity, key, batch.owner)?,
            Sender::Peer => self.session_for_peer(batch.identity, key, batch.client)?,
            Sender::PeerOfAll => {
                if batch.next == 0 {
                    batch.identity = self.sessions.identity_of(key).unwrap_or(batch.identity);
                }
                self.session_for_peer(batch.identity, key, batch.client)?
            }
        };
        batch.sessions[index] = Some(id);
        Ok(id)
    }

    /// One command. Every arm is a line; each does all its checks before it has an effect.
    fn apply(&mut self, at: SessionId, batch: &Batch<'_>, now: Instant) -> Result<Step, Stop> {
        let command = match batch.commands.get(batch.next) {
            Some(Stored::Launch(c)) => return self.program_exec(at, &c),
            Some(Stored::Other(command)) => command,
            None => return DONE,
        };
        match command {
            Command::BatchTransfer(c) => self.batch_transfer(at, c),
            Command::BlobLanding(c) => self.blob_landing(batch, c, now),
            Command::BufferAlloc(c) => self.buffer_alloc(at, c),
            Command::BufferFree(c) => self.buffer_free(at, c.buffer),
            Command::BufferIovas(c) => self.buffer_iovas(at, c, batch.sender, now),
            Command::BufferOffset(c) => self.buffer_offset(at, c),
            Command::CopyIn(c) => self.copy_in(at, c, batch),
            Command::CopyOut(c) => self.copy_out(at, c.buffer, batch.use_of_output()),
            Command::Event(c) => self.event_set(at, c),
            Command::GetProperties => self.properties(at, batch.sender),
            Command::GraphAlloc(c) => self.graph_alloc(at, c),
            Command::GraphExec(c) => self.graph_exec(at, c),
            Command::GraphFree(c) => self.graph_free(at, c.graph),
            Command::IbConnect(c) => self.ib_connect(batch, c, now),
            Command::ProgramAlloc(c) => self.program_alloc(at, c, batch),
            Command::ProgramExec(c) => self.program_exec(at, &c.fields()),
            Command::ProgramFree(c) => self.program_free(at, c),
            Command::SessionFree => self.session_free(at, now),
            Command::Transfer(c) => self.transfer(at, c),
            Command::Wait(c) => self.event_wait(at, c.event, now),
        }
    }

    /// Goes on with a command that waited.
    fn resume(&mut self, pending: Pending, batch: &Batch<'_>, now: Instant) -> Result<Step, Stop> {
        match pending {
            Pending::Bytes(reading) => Ok(Step::Done(self.finish_reading(reading)?)),
            Pending::Compile { session, key, compilation } => {
                self.program_compiled(session, key, compilation)
            }
            Pending::Elapsed { session, fence } => self.launch_elapsed(session, fence),
            Pending::Ending { session } => self.session_free(session, now),
            Pending::Event { session, event, until } => {
                self.event_resume(session, event, until, now)
            }
            Pending::GraphBuild(building) => self.graph_build(*building),
            Pending::GraphDrop(graph) => self.graph_drop(graph),
            Pending::GraphRun(running) => self.graph_run(*running),
            Pending::GraphSort(sorting) => match batch.commands.get(batch.next) {
                Some(Stored::Other(Command::GraphAlloc(c))) => self.graph_sort(sorting, c),
                _ => Err(Cause::SessionEnded.into()),
            },
            Pending::Load { session, key, program, fence } => {
                self.program_loaded(session, key, program, fence)
            }
            Pending::Transfer(copying) => self.transfer_on(*copying),
        }
    }

    /// Whether a wait has ended, well or badly. A wait for a device that has not ended asks its
    /// doorbell to ring for it.
    pub fn is_over(&mut self, wait: &WaitFor, now: Instant) -> bool {
        match wait {
            WaitFor::Compile(ticket) => ticket.poll().is_some(),
            WaitFor::Device { session, fence } => {
                let Some(session) = self.sessions.by_id_mut(*session) else { return true };
                session.reached(*fence, now) || {
                    session.arm(*fence);
                    session.reached(*fence, now)
                }
            }
            WaitFor::Rdma(promise) => promise.is_over(now),
            WaitFor::Event { session, event, until } => {
                now >= *until || self.event_is_set(*session, *event)
            }
        }
    }

    /// Whether to ask about a wait that has not ended again at once, after others had their turn,
    /// instead of waiting for a doorbell. True for a bounded time.
    pub fn is_soon(&mut self, wait: &WaitFor, now: Instant) -> bool {
        let WaitFor::Device { session, fence } = wait else { return false };
        let session = self.sessions.by_id_mut(*session);
        session.is_some_and(|session| session.watch(*fence, now) && !session.reached(*fence, now))
    }

    /// Looks after devices that have work or have been lost: frees what they are done with, stops
    /// what ran for too long; and ends memory for blobs that nobody copies. Returns whether there
    /// is more to come, so that this must be called again.
    pub fn tick(&mut self, now: Instant) -> bool {
        let is_landing = self.landings.end_unused(now);
        self.sessions.iter_mut().fold(is_landing, |busy, session| session.poll(now) | busy)
    }

    /// One session's device, after its doorbell rang.
    pub fn poll_session(&mut self, session: SessionId, now: Instant) {
        if let Some(session) = self.sessions.by_id_mut(session) {
            session.poll(now);
        }
    }

    /// Ends all sessions that a connection opened.
    pub fn release(&mut self, owner: Owner) {
        self.rdma.end_of_owner(owner);
        self.landings.end_of_owner(owner);
        self.sessions.end_of_owner(owner);
    }

    /// Sessions whose devices were opened since the last call: their doorbells need a reader.
    pub fn take_opened(&mut self) -> Vec<SessionId> {
        self.sessions.take_opened()
    }

    /// A descriptor of its own for the doorbell of a session's device, if it has one.
    pub fn doorbell(&self, session: SessionId) -> Option<std::os::fd::OwnedFd> {
        self.sessions.by_id(session)?.doorbell()
    }

    /// The accounts of an identity, which all shards share.
    #[must_use]
    pub fn tenant(&self, identity: Identity) -> Arc<Tenant> {
        self.sessions.tenant(identity, &self.limits)
    }

    /// Whether a connection has opened sessions that are there.
    #[must_use]
    pub fn has_sessions(&self, owner: Owner) -> bool {
        self.sessions.count_of(owner) > 0
    }

    /// How many sessions there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// A number that grows whenever an event is set.
    #[must_use]
    pub fn events_set(&self) -> u64 {
        self.events_set
    }

    fn properties(&self, at: SessionId, to: Sender) -> Result<Step, Stop> {
        let index = self.sessions.by_id(at).ok_or(Cause::SessionEnded)?.index;
        let renderer = self.platform.renderer(index);
        let text = reply::RemoteProperties {
            real_device: self.platform.name(),
            renderer: reply::Renderer {
                module: renderer.module,
                class: renderer.class,
                arguments: &renderer.arguments,
            },
            offset_supported: true,
            graph_supported: true,
            graph_supports_multi: true,
            ib_gid: self.rdma.gid(to),
        }
        .to_string();
        Ok(Step::Done(Output::Text(text)))
    }

    /// Ends a session, once its queue has come to where no other session's needs it.
    fn session_free(&mut self, at: SessionId, now: Instant) -> Result<Step, Stop> {
        let session = self.get_mut(at)?;
        let fence = session.awaited();
        if !session.reached(fence, now) {
            let wait = WaitFor::Device { session: at, fence };
            return Ok(Step::Wait(wait, Pending::Ending { session: at }));
        }
        self.sessions.end(at);
        DONE
    }

    /// That the work at `fence` was done, not lost.
    fn finished(&mut self, session: SessionId, fence: Fence) -> Result<(), Cause> {
        let session = self.sessions.by_id_mut(session).ok_or(Cause::SessionEnded)?;
        match session.lost() {
            Some(lost) if !session.completed(fence) => Err(lost.clone().into()),
            _ => Ok(()),
        }
    }

    /// How long the timed work at `fence` ran.
    fn elapsed(&mut self, session: SessionId, fence: Fence) -> Result<Duration, Cause> {
        self.finished(session, fence)?;
        Ok(self.get_mut(session)?.elapsed(fence)?)
    }
}

impl From<RdmaError> for Cause {
    fn from(error: RdmaError) -> Cause {
        Cause::Rdma(error)
    }
}

impl From<DeviceError> for Cause {
    fn from(error: DeviceError) -> Cause {
        Cause::Device(error)
    }
}

//! A batch under way: what it brought, how far it is, what it came to.
//!
//! Absent: the meaning of commands (`mod.rs` and the files beside it).

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Instant;

use super::buffer::Buffer;
use super::graph::{Building, GraphState, Running, Sorting};
use super::program::{Compilation, ProgramKey};
use super::session::{Home, Owner, SessionId};
use super::transfer::Copying;
use super::{Cause, Errand, WaitFor, Work};
use crate::blob::Digest;
use crate::config::{EngineLimits, WireLimits};
use crate::device::{Fence, HostBytes, Program, Region, shared};
use crate::identity::Identity;
use crate::wire::command::{Command, EventNumber, SessionKey};
use crate::wire::{Commands, Stored, Tape, WireError, reply};

/// The bytes of one blob.
#[derive(Clone, Debug)]
pub enum Blob {
    /// A small one, in memory of the server alone.
    Private(Rc<[u8]>),
    /// A large one, where a device can take it from.
    Staged(Rc<shared::Range>),
}

impl Blob {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Blob::Private(bytes) => bytes.len() as u64,
            Blob::Staged(range) => range.bytes(),
        }
    }

    /// A copy that no device can change.
    #[must_use]
    pub fn to_private(&self) -> Rc<[u8]> {
        match self {
            Blob::Private(bytes) => Rc::clone(bytes),
            Blob::Staged(range) => range.slice().into(),
        }
    }
}

/// The data blobs of a batch, by name.
#[derive(Clone, Debug, Default)]
pub struct Blobs(HashMap<Digest, Blob>);

impl Blobs {
    /// Adds a blob; false if the name is taken.
    pub fn insert(&mut self, digest: Digest, blob: Blob) -> bool {
        self.0.insert(digest, blob).is_none()
    }

    pub(super) fn find(&self, digest: &Digest) -> Result<&Blob, Cause> {
        self.0.get(digest).ok_or_else(|| Cause::BlobMissing { digest: digest.to_string() })
    }
}

/// The bytes of a blob, and its name.
pub type NamedBytes = (Digest, Rc<[u8]>);

/// What a command gives back to the client.
#[derive(Debug, Default)]
pub enum Output {
    #[default]
    Empty,
    /// Bytes of a region, which is kept until they are sent.
    Bytes {
        bytes: HostBytes,
        region: Rc<Region>,
        rest: Option<Rest>,
    },
    /// Nothing yet: the device had no room for the call.
    Later(Rest),
    /// Bytes that came from another shard.
    Owned(Vec<u8>),
    Text(String),
}

/// What the client gets after an output's bytes. [`super::Engine::read_on`] begins to read it.
#[derive(Debug)]
pub struct Rest {
    pub(super) session: SessionId,
    pub(super) buffer: Buffer,
}

impl Output {
    /// The bytes that the client gets, as far as the server sees them yet.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Output::Empty | Output::Later(_) => &[],
            Output::Bytes { bytes, .. } => bytes.slice(),
            Output::Owned(bytes) => bytes,
            Output::Text(text) => text.as_bytes(),
        }
    }

    /// Length in bytes of all that the client gets.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rest = match self {
            Output::Bytes { rest: Some(rest), .. } | Output::Later(rest) => rest.buffer.bytes,
            _ => 0,
        };
        self.as_bytes().len() as u64 + rest
    }

    /// What comes after [`Self::as_bytes`].
    pub fn take_rest(&mut self) -> Option<Rest> {
        if let Output::Bytes { rest, .. } = self {
            return rest.take();
        }
        match std::mem::take(self) {
            Output::Later(rest) => Some(rest),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// A part of an output on its way to where the server sees it.
#[derive(Debug)]
pub struct Reading {
    pub(super) session: SessionId,
    pub(super) fence: Fence,
    pub(super) output: Output,
}

impl Reading {
    /// What has to be over before [`super::Engine::finish_reading`].
    #[must_use]
    pub fn wait(&self) -> WaitFor {
        WaitFor::Device { session: self.session, fence: self.fence }
    }
}

/// What a batch came to.
#[derive(Debug)]
pub enum Reply {
    /// The output of the last command that has one.
    Ok(Output),
    /// The text of a `RemoteException`.
    Failed(String),
}

/// How far [`super::Engine::advance`] got.
#[derive(Debug)]
pub enum Progress {
    Done(Reply),
    /// The next command is another shard's to do; see [`Batch::forward`].
    Forward(Home),
    /// Nothing more can be done before all errands are back: tell of each by
    /// [`Batch::came_back`].
    Join,
    /// Another server's part of a command. The batch goes on meanwhile.
    Peer(Errand),
    /// The slice of time is used up; let others run, then come back.
    Pause,
    Wait(WaitFor),
}

/// How a command that has begun goes on.
#[derive(Debug)]
pub(super) enum Pending {
    Bytes(Reading),
    Compile { session: SessionId, key: ProgramKey, compilation: Compilation },
    Elapsed { session: SessionId, fence: Fence },
    Ending { session: SessionId },
    Event { session: SessionId, event: EventNumber, until: Instant },
    GraphBuild(Box<Building>),
    GraphDrop(Box<GraphState>),
    GraphRun(Box<Running>),
    GraphSort(Box<Sorting>),
    Load { session: SessionId, key: ProgramKey, program: Program, fence: Fence },
    Transfer(Box<Copying>),
}

/// What kind of sender a batch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    #[default]
    Client,
    /// Another server, which opens no sessions and may do little to those that are there.
    Peer,
    /// The same, and it may name sessions of every identity, of one in each batch: it works for
    /// clients of its own.
    PeerOfAll,
}

/// What becomes of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UseOfOutput {
    /// A later command's output takes its place.
    Dropped,
    /// It is sent after later commands have run, which may change the memory it is in.
    SentAfterOthers,
    /// It is sent at once: this is the last command.
    SentNext,
}

/// A parsed batch and its state.
#[derive(Debug)]
pub struct Batch<'t> {
    pub(super) commands: Commands<'t>,
    /// The sessions that the batch names, as far as they have been looked up.
    pub(super) sessions: Vec<Option<SessionId>>,
    pub(super) blobs: Blobs,
    pub(super) owner: Owner,
    pub(super) identity: Identity,
    pub(super) sender: Sender,
    /// Whose blobs they are that a peer sends.
    pub(super) client: Option<Owner>,
    /// Where blobs go that a peer has memory made for.
    pub(super) staging: Option<shared::Heap>,
    pub(super) next: usize,
    pub(super) pending: Option<Pending>,
    /// Compilations begun ahead of their commands, by device index and source.
    pub(super) compiling: HashMap<(u64, Digest), Compilation>,
    /// Where to look for the next program to compile ahead.
    pub(super) compiling_next: usize,
    /// How often the batch has lingered.
    lingers: u32,
    /// The last command that has an output.
    last_output: OnceCell<Option<usize>>,
    /// Blobs that more than one command names.
    named_twice: OnceCell<HashSet<Digest>>,
    output: Output,
    failure: Option<Failure>,
    failures_more: usize,
    /// Errands that are not back.
    errands: usize,
    /// Whether one of them reads memory that the next command may change.
    is_read: bool,
}

#[derive(Debug)]
struct Failure {
    index: usize,
    command: &'static str,
    cause: Cause,
}

impl<'t> Batch<'t> {
    /// Parses the command text of a batch.
    ///
    /// # Errors
    ///
    /// Where the text is not a list of commands. Nothing has run then.
    pub fn parse(
        text: &'t [u8],
        blobs: Blobs,
        owner: Owner,
        limits: &WireLimits,
    ) -> Result<Batch<'t>, WireError> {
        Batch::parse_with(&mut Memory::default(), text, blobs, owner, limits)
    }

    /// [`Self::parse`], with memory of an earlier batch.
    pub(super) fn parse_with(
        memory: &mut Memory,
        text: &'t [u8],
        blobs: Blobs,
        owner: Owner,
        limits: &WireLimits,
    ) -> Result<Batch<'t>, WireError> {
        let commands = std::mem::take(&mut memory.commands);
        let commands = Commands::parse(commands, &mut memory.tape, text, limits)?;
        Ok(Batch::new(memory, commands, blobs, owner))
    }

    /// The batch of these commands.
    pub(super) fn new(
        memory: &mut Memory,
        commands: Commands<'t>,
        blobs: Blobs,
        owner: Owner,
    ) -> Batch<'t> {
        let mut sessions = std::mem::take(&mut memory.sessions);
        sessions.clear();
        sessions.resize(commands.session_count(), None);
        Batch {
            commands,
            sessions,
            blobs,
            owner,
            identity: Identity::default(),
            sender: Sender::Client,
            client: None,
            staging: None,
            next: 0,
            pending: None,
            compiling: HashMap::new(),
            compiling_next: 0,
            lingers: 0,
            last_output: OnceCell::new(),
            named_twice: OnceCell::new(),
            output: Output::Empty,
            failure: None,
            failures_more: 0,
            errands: 0,
            is_read: false,
        }
    }

    /// Says who sent it. Without this it is nobody, who has no part in anybody's sessions.
    #[must_use]
    pub fn of_identity(self, identity: Identity) -> Batch<'t> {
        Batch { identity, ..self }
    }

    /// Says what kind of sender it has. Of a peer, `client` is who owns the memory that its long
    /// blobs lie in, and whose sessions alone it may name then; if nobody is said, nobody else has
    /// that memory.
    #[must_use]
    pub fn of_sender(self, sender: Sender, client: Option<Owner>) -> Batch<'t> {
        Batch { sender, client, ..self }
    }

    /// Says of a peer's where its long blobs lie. Without this it can have no memory made for more.
    #[must_use]
    pub fn landing_beside(self, staging: shared::Heap) -> Batch<'t> {
        Batch { staging: Some(staging), ..self }
    }

    /// Who sent it; of what a peer of all sends, who its first session belongs to.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How many commands have come to their end, and how many of them failed.
    #[must_use]
    pub fn outcomes(&self) -> (usize, usize) {
        (self.next, usize::from(self.failure.is_some()) + self.failures_more)
    }

    /// Whether more than one command names the blob.
    pub(super) fn names_twice(&self, blob: &Digest) -> bool {
        let named_twice = self.named_twice.get_or_init(|| {
            let mut once = HashSet::new();
            let sources =
                (0..self.commands.len()).filter_map(|index| match self.commands.get(index) {
                    Some(Stored::Other(command)) => source(command),
                    _ => None,
                });
            sources.filter(|source| !once.insert(*source)).collect()
        });
        named_twice.contains(blob)
    }

    /// The command that [`Progress::Forward`] spoke of, as text, and the blob that it names.
    #[must_use]
    pub fn forward(&self) -> (String, Option<NamedBytes>) {
        let Some(request) = self.commands.request(self.next) else { return (String::new(), None) };
        let blob = source(&request.command)
            .and_then(|d| Some((d, self.blobs.find(&d).ok()?.to_private())));
        (format!("[{request}]"), blob)
    }

    /// What the other shard made of the forwarded command.
    pub fn forwarded(&mut self, outcome: Result<Vec<u8>, String>) {
        match outcome {
            Ok(bytes) if bytes.is_empty() => self.succeed(Output::Empty),
            Ok(bytes) => self.succeed(Output::Owned(bytes)),
            Err(cause) => self.fail(Cause::Elsewhere { cause }),
        }
    }

    /// What a forwarded command came to, in the form that crosses shards.
    ///
    /// # Errors
    ///
    /// Why the command failed, without its place in the batch, which is not the client's.
    pub fn outcome(&self, reply: Reply) -> Result<Output, String> {
        match (&self.failure, reply) {
            (Some(failure), _) => Err(failure.cause.to_string()),
            (None, Reply::Ok(output)) => Ok(output),
            (None, Reply::Failed(text)) => Err(text),
        }
    }

    /// Whether it brought data.
    #[must_use]
    pub fn has_blobs(&self) -> bool {
        !self.blobs.0.is_empty()
    }

    /// Whether the batch may hold the core once more to wait for a device.
    pub(super) fn may_linger(&mut self) -> bool {
        self.lingers += 1;
        self.lingers <= EngineLimits::LINGERS_PER_BATCH_MAX
    }

    pub(super) fn use_of_output(&self) -> UseOfOutput {
        let last = *self
            .last_output
            .get_or_init(|| (0..self.commands.len()).rev().find(|index| self.has_output(*index)));
        if last.is_some_and(|last| last > self.next) {
            UseOfOutput::Dropped
        } else if self.next + 1 < self.commands.len() {
            UseOfOutput::SentAfterOthers
        } else {
            UseOfOutput::SentNext
        }
    }

    fn has_output(&self, index: usize) -> bool {
        match self.commands.get(index) {
            Some(Stored::Launch(c)) => c.wait,
            Some(Stored::Other(command)) => match command {
                Command::BlobLanding(_)
                | Command::BufferIovas(_)
                | Command::CopyOut(_)
                | Command::GetProperties
                | Command::IbConnect(_) => true,
                Command::GraphExec(c) => c.wait,
                Command::ProgramExec(c) => c.wait,
                _ => false,
            },
            None => false,
        }
    }

    pub(super) fn succeed(&mut self, output: Output) {
        self.forget_compilation();
        if !matches!(output, Output::Empty) {
            self.output = output;
        }
        self.next += 1;
    }

    pub(super) fn fail(&mut self, cause: Cause) {
        self.note_failure(self.next, cause);
        self.forget_compilation();
        self.next += 1;
    }

    /// The failure of the first command counts, whichever is known first.
    fn note_failure(&mut self, index: usize, cause: Cause) {
        let command = self.commands.get(index).map_or("", |command| command.name());
        if self.failure.is_some() {
            self.failures_more += 1;
        }
        if self.failure.as_ref().is_none_or(|first| index < first.index) {
            self.failure = Some(Failure { index, command, cause });
        }
    }

    /// The next command becomes an errand; the one behind it is next.
    pub(super) fn begin_errand(&mut self, to: SessionKey<'_>, work: Work) -> Errand {
        let index = self.next;
        self.is_read |= matches!(work, Work::Copies(_));
        self.errands += 1;
        self.next += 1;
        Errand::new(index, self.owner, to, work)
    }

    /// Whether nothing more can be done before errands are back.
    pub(super) fn waits_for_errands(&self) -> bool {
        self.errands > 0 && (self.is_read || self.next >= self.commands.len())
    }

    /// What an errand came to.
    pub fn came_back(&mut self, index: usize, outcome: Result<(), Cause>) {
        self.errands -= 1;
        self.is_read &= self.errands > 0;
        if let Err(cause) = outcome {
            self.note_failure(index, cause);
        }
    }

    /// Makes room for the next compilation ahead, once a program's own is used.
    fn forget_compilation(&mut self) {
        if !self.compiling.is_empty()
            && let Some((_, session)) = self.commands.session(self.next)
            && let Some(Stored::Other(Command::ProgramAlloc(c))) = self.commands.get(self.next)
        {
            self.compiling.remove(&(session.idx, c.source));
        }
    }

    pub(super) fn finish(&mut self) -> Reply {
        let Some(Failure { index, command, cause }) = &self.failure else {
            return Reply::Ok(std::mem::take(&mut self.output));
        };
        let more = match self.failures_more {
            0 => String::new(),
            1 => " (and 1 later command failed)".to_owned(),
            more => format!(" (and {more} later commands failed)"),
        };
        let message = format!("command {index} ({command}): {cause}{more}");
        Reply::Failed(reply::RemoteException { message: &message }.to_string())
    }
}

/// The blob that a command names.
fn source(command: &Command<'_>) -> Option<Digest> {
    match command {
        Command::CopyIn(c) => Some(c.source),
        Command::ProgramAlloc(c) => Some(c.source),
        _ => None,
    }
}

/// What batches of one shard use one after the other, so that a batch needs no memory of its own.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) tape: Tape,
    pub(super) commands: Commands<'static>,
    sessions: Vec<Option<SessionId>>,
}

impl Memory {
    /// Takes a batch's memory back, once all of it has run.
    pub(super) fn take_back(&mut self, batch: &mut Batch<'_>) {
        let commands = std::mem::take(&mut batch.commands);
        self.commands = commands.recycle(EngineLimits::BATCH_BYTES_KEPT_MAX);
        self.sessions = std::mem::take(&mut batch.sessions);
        self.sessions.truncate(EngineLimits::BATCH_SESSIONS_KEPT_MAX);
        self.sessions.shrink_to(EngineLimits::BATCH_SESSIONS_KEPT_MAX);
    }
}

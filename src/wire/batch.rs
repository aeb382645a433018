//! A batch: the list of commands that is the text of one request.
//!
//! Owns: [`Commands`], in which a batch lies from its text until all of it has run; reading a text
//! command by command, so that the tape holds one command at a time; and printing commands as the
//! stock client does.
//!
//! Nearly all commands of a long batch are launches. They are kept in flat tables, a hundred bytes
//! each, whose memory the next batch uses again: reading one allocates nothing, and a long batch
//! stays in the processor's caches until it runs. The session, whose text is half of a command's,
//! is compared with that of the command before and read only where it differs.

use std::borrow::Cow;
use std::fmt;

use super::command::{
    BatchTransfer, BlobLanding, BufferAlloc, BufferFree, BufferIovas, BufferNumber, BufferOffset,
    Command, CopyIn, CopyOut, Event, Exec, GraphAlloc, GraphExec, GraphFree, IbConnect, LaunchSize,
    ProgramAlloc, ProgramExec, ProgramFree, Request, SessionKey, Transfer, Wait,
};
use super::cursor::{Cursor, slice};
use super::error::{WireError, WireErrorKind};
use super::long_graph::{LongGraph, Reached};
use super::record::{Fields, Part, Shape, read_plain_name, read_plain_tuple};
use super::tape::Tape;
use super::value::Value;
use crate::blob::Digest;
use crate::config::WireLimits;

/// Reads the command text of a batch.
///
/// # Errors
///
/// The text is not a list of commands, or exceeds a limit. Nothing of it is of use then.
pub fn parse_batch<'t>(text: &'t [u8], limits: &WireLimits) -> Result<Vec<Request<'t>>, WireError> {
    parse_batch_with(&mut Tape::new(), text, limits)
}

/// [`parse_batch`], with memory that is used again.
///
/// # Errors
///
/// Those of [`parse_batch`].
pub fn parse_batch_with<'t>(
    tape: &mut Tape,
    text: &'t [u8],
    limits: &WireLimits,
) -> Result<Vec<Request<'t>>, WireError> {
    let commands = Commands::parse(Commands::default(), tape, text, limits)?;
    Ok((0..commands.len()).filter_map(|index| commands.request(index)).collect())
}

/// The commands of one batch, from its text until all have run.
#[derive(Debug, Default)]
pub struct Commands<'t> {
    text: &'t str,
    entries: Vec<Entry>,
    sessions: Vec<Session<'t>>,
    /// The session of the last command.
    session: usize,
    launches: Vec<Launch>,
    /// Buffers of all launches.
    buffers: Vec<BufferNumber>,
    /// Values of all launches, each one's sizes after its values.
    integers: Vec<i64>,
    others: Vec<Command<'t>>,
    program_allocs: Vec<usize>,
}

/// One command.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where it begins in the text.
    at: u32,
    session: u32,
    place: Place,
}

/// Where a command's fields are, as an index.
#[derive(Clone, Copy, Debug)]
enum Place {
    Launch(u32),
    Other(u32),
}

#[derive(Debug)]
struct Session<'t> {
    key: SessionKey<'t>,
    /// How the text spells it. Empty where it is not the stock client's spelling.
    text: &'t str,
}

/// A `ProgramExec` as the stock client spells it.
#[derive(Clone, Copy, Debug)]
struct Launch {
    source: Digest,
    /// Where the name is in the text.
    name: (u32, u32),
    /// The first of its buffers and of its integers.
    buffers: u32,
    integers: u32,
    buffer_count: u8,
    value_count: u8,
    has_global: bool,
    has_local: bool,
    wait: bool,
}

/// A command where it lies.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'c, 't> {
    Launch(Exec<'c>),
    Other(&'c Command<'t>),
}

impl Stored<'_, '_> {
    /// The command's name on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Stored::Launch(_) => ProgramExec::SHAPE.name,
            Stored::Other(command) => command.name(),
        }
    }
}

/// Sessions that a command's is compared with before it is taken for a new one: the devices of
/// one client, as a rule.
const SESSIONS_COMPARED: usize = 16;

/// Dimensions of a launch size, as the stock client gives it.
const DIMENSIONS: usize = 3;

/// What is read by way of the tape takes so many times as long, rather more.
const TAPE_COST: usize = 4;

/// A command text that is read little by little, since a long one takes long.
#[derive(Debug)]
pub struct Parsing<'t> {
    cursor: Cursor<'t>,
    commands: Commands<'t>,
    /// A command that is read in part.
    graph: Option<LongGraph<'t>>,
}

impl<'t> Parsing<'t> {
    /// Begins to read; `memory` comes from [`Commands::recycle`].
    ///
    /// # Errors
    ///
    /// The text is no list, or too long.
    pub fn begin(
        memory: Commands<'t>,
        text: &'t [u8],
        limits: &WireLimits,
    ) -> Result<Parsing<'t>, WireError> {
        let mut cursor = Cursor::new(text, limits.text_bytes_max)?;
        let commands = Commands { text: cursor.text(), ..memory };
        cursor.skip_space();
        if !cursor.eat(b'[') {
            return Err(cursor.unexpected("a list of commands"));
        }
        cursor.skip_space();
        Ok(Parsing { cursor, commands, graph: None })
    }

    /// Reads on, for about `bytes` bytes: to the end of a command, or of a graph's item. Whether
    /// that was all; then it is not to be called again. `tape` comes from earlier calls, whatever
    /// they read.
    ///
    /// # Errors
    ///
    /// The text is not a list of commands, or exceeds a limit. Nothing of it is of use then.
    pub fn go_on(
        &mut self,
        tape: &mut Tape,
        limits: &WireLimits,
        bytes: usize,
    ) -> Result<bool, WireError> {
        tape.trim();
        let until = self.cursor.at().saturating_add(bytes);
        while self.graph.is_some() || !self.cursor.eat(b']') {
            let max = limits.commands_max;
            if self.commands.len() >= max {
                return Err(self.cursor.error(WireErrorKind::TooManyCommands { max }));
            }
            if !self.read(tape, limits, bytes / TAPE_COST)? {
                return Ok(false);
            }
            let cursor = &mut self.cursor;
            cursor.skip_space();
            if cursor.eat(b',') {
                cursor.skip_space();
            } else if cursor.peek() != b']' {
                return Err(cursor.unexpected("`,` or `]` after a command"));
            }
            if cursor.at() >= until && cursor.peek() != b']' {
                return Ok(false);
            }
        }
        self.cursor.skip_space();
        match self.cursor.peek() {
            0 => Ok(true),
            _ => Err(self.cursor.unexpected("the end of the text")),
        }
    }

    /// Reads the next command, or `bytes` bytes more of it. Whether that was all of it.
    fn read(
        &mut self,
        tape: &mut Tape,
        limits: &WireLimits,
        bytes: usize,
    ) -> Result<bool, WireError> {
        let Parsing { cursor, commands, graph } = self;
        let until = cursor.at().saturating_add(bytes);
        if graph.is_none() {
            *graph = commands.begin_graph(cursor);
        }
        match graph.as_mut().map(|graph| graph.read_on(cursor, tape, limits, until)) {
            Some(Reached::Middle) => return Ok(false),
            Some(Reached::End { begin, session, command }) => {
                *graph = None;
                let place = commands.add(command);
                commands.enter(begin.at_u32(), session, place);
                return Ok(true);
            }
            Some(Reached::Unknown { begin }) => {
                *graph = None;
                *cursor = begin;
            }
            None => {}
        }
        let read = commands.read(tape, cursor, limits);
        read.map(|()| true).map_err(|error| error.in_command(commands.len()))
    }

    /// The commands, once all is read.
    #[must_use]
    pub fn finish(self) -> Commands<'t> {
        self.commands
    }
}

impl<'t> Commands<'t> {
    /// Reads the command text of a batch. `memory` comes from [`Self::recycle`] and `tape` from
    /// earlier calls.
    ///
    /// # Errors
    ///
    /// The text is not a list of commands, or exceeds a limit. Nothing of it is of use then.
    pub fn parse(
        memory: Commands<'t>,
        tape: &mut Tape,
        text: &'t [u8],
        limits: &WireLimits,
    ) -> Result<Commands<'t>, WireError> {
        let mut parsing = Parsing::begin(memory, text, limits)?;
        parsing.go_on(tape, limits, usize::MAX)?;
        Ok(parsing.commands)
    }

    /// The memory, for another batch. More than `bytes_max` of it is given back.
    #[must_use]
    pub fn recycle(self, bytes_max: usize) -> Commands<'static> {
        if self.memory_bytes() > bytes_max {
            return Commands::default();
        }
        let mut memory = Commands {
            text: "",
            entries: self.entries,
            sessions: emptied(self.sessions),
            session: 0,
            launches: self.launches,
            buffers: self.buffers,
            integers: self.integers,
            others: emptied(self.others),
            program_allocs: self.program_allocs,
        };
        memory.entries.clear();
        memory.launches.clear();
        memory.buffers.clear();
        memory.integers.clear();
        memory.program_allocs.clear();
        memory
    }

    /// Memory that is reserved for the tables.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.sessions.capacity() * size_of::<Session<'_>>()
            + self.launches.capacity() * size_of::<Launch>()
            + self.buffers.capacity() * size_of::<BufferNumber>()
            + self.integers.capacity() * size_of::<i64>()
            + self.others.capacity() * size_of::<Command<'_>>()
            + self.program_allocs.capacity() * size_of::<usize>()
    }

    /// How many commands there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many sessions there are, some perhaps more than once.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The session that a command is for, and which one of all it is: an index below
    /// [`Self::session_count`].
    #[inline]
    #[must_use]
    pub fn session(&self, index: usize) -> Option<(usize, &SessionKey<'t>)> {
        let session = to_usize(self.entries.get(index)?.session);
        Some((session, &self.sessions.get(session)?.key))
    }

    /// A command without its session.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Stored<'_, 't>> {
        match self.entries.get(index)?.place {
            Place::Launch(launch) => self.exec(to_usize(launch)).map(Stored::Launch),
            Place::Other(other) => self.others.get(to_usize(other)).map(Stored::Other),
        }
    }

    /// A command on its own.
    #[must_use]
    pub fn request(&self, index: usize) -> Option<Request<'t>> {
        let session = self.session(index)?.1.clone();
        let command = match self.entries.get(index)?.place {
            Place::Launch(launch) => {
                let exec = self.exec(to_usize(launch))?;
                let (from, to) = self.launches.get(to_usize(launch))?.name;
                let name = Cow::Borrowed(slice(self.text, to_usize(from), to_usize(to)));
                Command::ProgramExec(Box::new(exec.to_record(name)))
            }
            Place::Other(other) => self.others.get(to_usize(other))?.clone(),
        };
        Some(Request { session, command, offset: to_usize(self.entries.get(index)?.at) })
    }

    /// Indices of all commands that are a `ProgramAlloc`.
    #[must_use]
    pub fn program_allocs(&self) -> &[usize] {
        &self.program_allocs
    }

    #[inline]
    fn exec(&self, index: usize) -> Option<Exec<'_>> {
        let launch = self.launches.get(index)?;
        let buffers = self.buffers.get(to_usize(launch.buffers)..)?;
        let integers = self.integers.get(to_usize(launch.integers)..)?;
        let (values, sizes) = integers.split_at_checked(launch.value_count.into())?;
        let (global, sizes) = match launch.has_global {
            true => sizes.split_first_chunk().map(|(global, rest)| (Some(global), rest))?,
            false => (None, sizes),
        };
        let local = if launch.has_local { Some(sizes.first_chunk()?) } else { None };
        Some(Exec {
            name: slice(self.text, to_usize(launch.name.0), to_usize(launch.name.1)),
            source: &launch.source,
            buffers: buffers.get(..launch.buffer_count.into())?,
            values,
            global: global.map(<[i64; DIMENSIONS]>::as_slice),
            local: local.map(<[i64; DIMENSIONS]>::as_slice),
            wait: launch.wait,
        })
    }

    fn read(
        &mut self,
        tape: &mut Tape,
        cursor: &mut Cursor<'t>,
        limits: &WireLimits,
    ) -> Result<(), WireError> {
        let at = cursor.at_u32();
        let mut plain = *cursor;
        let (session, place) = match self.read_plain(&mut plain) {
            Some(read) => {
                *cursor = plain;
                read
            }
            None => {
                tape.read(cursor, limits)?;
                let (session, command) = read_command(tape.value(cursor.text()))?;
                (self.find_or_add(session), self.add(command))
            }
        };
        self.enter(at, session, place);
        Ok(())
    }

    fn enter(&mut self, at: u32, session: usize, place: Place) {
        self.session = session;
        self.entries.push(Entry { at, session: to_u32(session), place });
    }

    /// Reads the beginning of a graph as the stock client spells it, up to its items. Where it is
    /// no graph, nothing is read.
    fn begin_graph(&mut self, cursor: &mut Cursor<'t>) -> Option<LongGraph<'t>> {
        let mut plain = *cursor;
        plain.eat_text("GraphAlloc(session=")?;
        let session = self.read_plain_session(&mut plain)?;
        let graph = LongGraph::begin(*cursor, session, &mut plain)?;
        *cursor = plain;
        Some(graph)
    }

    /// Reads the stock client's spelling of a frequent command. Leaves the cursor anywhere where it
    /// fails.
    #[inline]
    fn read_plain(&mut self, cursor: &mut Cursor<'t>) -> Option<(usize, Place)> {
        if cursor.eat_text("ProgramExec(session=").is_some() {
            let session = self.read_plain_session(cursor)?;
            // What a failed attempt leaves in the tables is referred to by nothing.
            let launch = self.read_plain_launch(cursor)?;
            self.launches.push(launch);
            return Some((session, Place::Launch(to_u32(self.launches.len() - 1))));
        }
        let from = cursor.at();
        cursor.skip_name();
        let name = cursor.between(from, cursor.at());
        cursor.eat_text("(session=")?;
        let session = self.read_plain_session(cursor)?;
        let command = read_plain_command(name, cursor)?;
        Some((session, self.add(command)))
    }

    #[inline]
    fn read_plain_session(&mut self, cursor: &mut Cursor<'t>) -> Option<usize> {
        // A text that has been read ends with a bracket, so that nothing can follow that would
        // belong to it.
        let is_here = |cursor: &mut Cursor<'t>, session: &Session<'t>| {
            !session.text.is_empty() && cursor.eat_str(session.text)
        };
        if self.sessions.get(self.session).is_some_and(|session| is_here(cursor, session)) {
            return Some(self.session);
        }
        let known = self.sessions.len().saturating_sub(SESSIONS_COMPARED)..self.sessions.len();
        for index in known {
            if is_here(cursor, &self.sessions[index]) {
                return Some(index);
            }
        }
        let from = cursor.at();
        let key = SessionKey::read_plain(cursor)?;
        self.sessions.push(Session { key, text: cursor.between(from, cursor.at()) });
        Some(self.sessions.len() - 1)
    }

    /// The rest of a `ProgramExec`, after its session.
    #[inline]
    fn read_plain_launch(&mut self, cursor: &mut Cursor<'t>) -> Option<Launch> {
        let (buffers, integers) = (to_u32(self.buffers.len()), to_u32(self.integers.len()));
        cursor.eat_text(", name=")?;
        let name = read_plain_name(cursor)?;
        cursor.eat_text(", datahash=")?;
        let source = Digest::read_plain(cursor)?;
        cursor.eat_text(", bufs=")?;
        let buffer_count = read_plain_tuple(cursor, |buffer| self.buffers.push(buffer))?;
        cursor.eat_text(", vals=")?;
        let value_count = read_plain_tuple(cursor, |value| self.integers.push(value))?;
        cursor.eat_text(", global_size=")?;
        let has_global = self.read_plain_size(cursor)?;
        cursor.eat_text(", local_size=")?;
        let has_local = self.read_plain_size(cursor)?;
        cursor.eat_text(", wait=")?;
        let wait = bool::read_plain(cursor)?;
        cursor.eat_text(")")?;
        Some(Launch {
            source,
            name,
            buffers,
            integers,
            buffer_count,
            value_count,
            has_global,
            has_local,
            wait,
        })
    }

    #[inline]
    fn read_plain_size(&mut self, cursor: &mut Cursor<'t>) -> Option<bool> {
        if cursor.eat_text("None").is_some() {
            return Some(false);
        }
        match LaunchSize::read_plain(cursor)? {
            LaunchSize::Three(sizes) => self.integers.extend_from_slice(&sizes),
            LaunchSize::One(_) | LaunchSize::Two(_) => return None,
        }
        Some(true)
    }

    fn find_or_add(&mut self, key: SessionKey<'t>) -> usize {
        let from = self.sessions.len().saturating_sub(SESSIONS_COMPARED);
        let known = self.sessions[from..].iter().position(|session| session.key == key);
        known.map_or_else(
            || {
                self.sessions.push(Session { key, text: "" });
                self.sessions.len() - 1
            },
            |known| from + known,
        )
    }

    fn add(&mut self, command: Command<'t>) -> Place {
        if matches!(command, Command::ProgramAlloc(_)) {
            self.program_allocs.push(self.entries.len());
        }
        self.others.push(command);
        Place::Other(to_u32(self.others.len() - 1))
    }
}

/// An empty vector with the memory of another. The standard library collects in place where the
/// types have one size.
fn emptied<T, U>(mut vec: Vec<T>) -> Vec<U> {
    vec.clear();
    vec.into_iter().map(|_| unreachable!("it was cleared")).collect()
}

/// Of tables that have fewer entries than a text has bytes.
#[inline]
fn to_u32(index: usize) -> u32 {
    u32::try_from(index).expect("a text is shorter than 4 GiB")
}

#[inline]
fn to_usize(index: u32) -> usize {
    index as usize
}

const GET_PROPERTIES: &Shape = &Shape::new("GetProperties", &[], true);
const SESSION_FREE: &Shape = &Shape::new("SessionFree", &[], true);

/// Everything that there is one of for each command with fields.
macro_rules! commands {
    ($($name:ident)*) => {
        fn read_command<'t>(
            value: Value<'_, 't>,
        ) -> Result<(SessionKey<'t>, Command<'t>), WireError> {
            let Some((name, arguments)) = value.as_call() else {
                return Err(value.mismatch("a command"));
            };
            let fields = |shape| {
                Fields::new(shape, value, arguments.clone())
            };
            $(
                if name == $name::SHAPE.name {
                    let read = |fields: Fields<'_, 't>| {
                        let session = fields.read_session()?;
                        Ok((session, Command::$name($name::from_fields(&fields)?.into())))
                    };
                    return fields($name::SHAPE).and_then(read).map_err(|error: WireError| {
                        error.in_command_named($name::SHAPE.name)
                    });
                }
            )*
            for (shape, command) in [
                (GET_PROPERTIES, Command::GetProperties),
                (SESSION_FREE, Command::SessionFree),
            ] {
                if name == shape.name {
                    let session = fields(shape).and_then(|fields| fields.read_session());
                    return session
                        .map(|session| (session, command))
                        .map_err(|error| error.in_command_named(shape.name));
                }
            }
            Err(value.error(WireErrorKind::UnknownCommand { found: value.quote() }))
        }

        /// Reads the rest of a command, after its session, as the stock client spells it.
        fn read_plain_command<'t>(name: &str, cursor: &mut Cursor<'t>) -> Option<Command<'t>> {
            $(
                if name == $name::SHAPE.name {
                    let command = Command::$name($name::from_plain(cursor)?.into());
                    cursor.eat_text(")")?;
                    return Some(command);
                }
            )*
            None
        }

        impl Command<'_> {
            /// The command's name on the wire.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(Command::$name(_) => $name::SHAPE.name,)*
                    Command::GetProperties => GET_PROPERTIES.name,
                    Command::SessionFree => SESSION_FREE.name,
                }
            }

            fn write_fields(
                &self,
                first: &'static str,
                f: &mut fmt::Formatter<'_>,
            ) -> fmt::Result {
                match self {
                    $(Command::$name(fields) => fields.write_fields(first, f),)*
                    Command::GetProperties | Command::SessionFree => Ok(()),
                }
            }
        }
    };
}

// Frequent ones first: they are tried in this order.
commands! {
    BufferAlloc BufferFree ProgramExec Transfer BufferOffset ProgramAlloc ProgramFree CopyIn CopyOut
    Event Wait GraphExec GraphAlloc GraphFree BatchTransfer BufferIovas IbConnect
    BlobLanding
}

/// The command without its session.
impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        self.write_fields("", f)?;
        f.write_str(")")
    }
}

/// The client's text of the command.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(session={}", self.command.name(), self.session)?;
        self.command.write_fields(", ", f)?;
        f.write_str(")")
    }
}

/// Writes the client's text of a batch.
///
/// # Errors
///
/// Those of `out`.
pub fn write_batch(out: &mut impl fmt::Write, requests: &[Request<'_>]) -> fmt::Result {
    out.write_char('[')?;
    for (index, request) in requests.iter().enumerate() {
        out.write_str(if index > 0 { ", " } else { "" })?;
        write!(out, "{request}")?;
    }
    out.write_char(']')
}

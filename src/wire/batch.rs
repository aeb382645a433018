//! A batch: the list of commands that is the text of one request.
//!
//! Owns: reading a text command by command, so that the tape holds one command at a time, and
//! printing commands as the stock client does.

use std::fmt;

use super::command::{
    BatchTransfer, BufferAlloc, BufferFree, BufferIovas, BufferOffset, Command, CopyIn, CopyOut,
    Event, GraphAlloc, GraphExec, GraphFree, IbConnect, ProgramAlloc, ProgramExec, ProgramFree,
    Request, SessionKey, Transfer, Wait,
};
use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};
use super::record::{Fields, Part, Shape};
use super::tape::Tape;
use super::value::Value;
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
    tape.trim();
    let mut cursor = Cursor::new(text, limits.text_bytes_max)?;
    let mut requests = Vec::new();
    cursor.skip_space();
    if !cursor.eat(b'[') {
        return Err(cursor.unexpected("a list of commands"));
    }
    cursor.skip_space();
    while !cursor.eat(b']') {
        let max = limits.commands_max;
        if requests.len() >= max {
            return Err(cursor.error(WireErrorKind::TooManyCommands { max }));
        }
        let request = read_request(tape, &mut cursor, limits)
            .map_err(|error| error.in_command(requests.len()))?;
        requests.push(request);
        cursor.skip_space();
        if cursor.eat(b',') {
            cursor.skip_space();
        } else if cursor.peek() != b']' {
            return Err(cursor.unexpected("`,` or `]` after a command"));
        }
    }
    cursor.skip_space();
    match cursor.peek() {
        0 => Ok(requests),
        _ => Err(cursor.unexpected("the end of the text")),
    }
}

fn read_request<'t>(
    tape: &mut Tape,
    cursor: &mut Cursor<'t>,
    limits: &WireLimits,
) -> Result<Request<'t>, WireError> {
    let offset = cursor.at();
    let mut plain = *cursor;
    let (session, command) = match read_plain(&mut plain) {
        Some(read) => {
            *cursor = plain;
            read
        }
        None => {
            tape.read(cursor, limits)?;
            read_command(tape.value(cursor.text()))?
        }
    };
    Ok(Request { session, command, offset })
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
                        Ok((session, Command::$name($name::from_fields(&fields)?)))
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

        /// Reads the stock client's spelling of a frequent command.
        fn read_plain<'t>(cursor: &mut Cursor<'t>) -> Option<(SessionKey<'t>, Command<'t>)> {
            let from = cursor.at();
            cursor.skip_name();
            let name = cursor.between(from, cursor.at());
            cursor.eat_text("(session=")?;
            let session = SessionKey::read_plain(cursor)?;
            $(
                if name == $name::SHAPE.name {
                    let command = Command::$name($name::from_plain(cursor)?);
                    cursor.eat_text(")")?;
                    return Some((session, command));
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
    ProgramExec BufferAlloc BufferFree Transfer BufferOffset ProgramAlloc ProgramFree CopyIn CopyOut
    Event Wait GraphExec GraphAlloc GraphFree BatchTransfer BufferIovas IbConnect
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

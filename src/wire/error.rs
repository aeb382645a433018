//! What is wrong with a peer's bytes, and where.
//!
//! Every error of this module is the peer's fault. It carries the byte offset, and in a batch the
//! command and the field. What it quotes of the text is short and escaped.

use std::fmt;

/// Why bytes are not what the protocol wants.
#[derive(Clone, PartialEq, Eq)]
pub struct WireError(Box<Detail>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Detail {
    at: u64,
    command: Option<usize>,
    command_name: Option<&'static str>,
    field: Option<(&'static str, &'static str)>,
    kind: WireErrorKind,
}

/// The kinds of [`WireError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireErrorKind {
    /// A number, or a name's place, that a field has no room for.
    #[error("expected {expected}, found {found}, which is out of range")]
    OutOfRange { expected: &'static str, found: String },
    /// A backslash escape that means nothing, or that has no place in UTF-8.
    #[error("bad escape in a literal: {reason}")]
    Escape { reason: &'static str },
    /// A blob longer than the limit.
    #[error("a blob of {bytes} bytes is longer than the limit of {max}")]
    BlobTooLong { bytes: u64, max: u64 },
    /// A body without a single blob.
    #[error("the body is empty; it needs at least the command text")]
    EmptyBody,
    /// A byte that no UTF-8 text has there.
    #[error("the command text is not UTF-8")]
    InvalidUtf8,
    /// A field that must be given and is not.
    #[error("{record} needs a field {field}")]
    MissingField { record: &'static str, field: &'static str },
    /// An operation of tinygrad's that has no value on integers.
    #[error("Ops.{op} has no place in an integer expression")]
    NotAnIntegerOperation { op: String },
    /// A NUL byte in the command text.
    #[error("the command text has a NUL byte")]
    Nul,
    /// The same field twice.
    #[error("{record} has its field {field} twice")]
    RepeatedField { record: &'static str, field: &'static str },
    /// Something else than the grammar wants.
    #[error("expected {expected}, found {found}")]
    Syntax { expected: &'static str, found: String },
    /// The text is longer than the limit.
    #[error("a command text of {bytes} bytes is longer than the limit of {max}")]
    TextTooLong { bytes: usize, max: usize },
    /// Brackets nested too deeply.
    #[error("more than {max} levels of brackets")]
    TooDeep { max: usize },
    /// More blobs than the limit.
    #[error("more than {max} blobs")]
    TooManyBlobs { max: u64 },
    /// More commands than the limit.
    #[error("more than {max} commands")]
    TooManyCommands { max: usize },
    /// More digits than the limit.
    #[error("a number with more than {max} digits")]
    TooManyDigits { max: usize },
    /// More items than the limit.
    #[error("more than {max} items in one bracket")]
    TooManyItems { max: usize },
    /// More values in one command, or nodes in one expression, than the limit.
    #[error("more than {max} nested values")]
    TooManyNodes { max: usize },
    /// More positional arguments than the record has fields.
    #[error("{record} takes at most {max} positional arguments")]
    TooManyPositional { record: &'static str, max: usize },
    /// The body ended inside the 40 bytes before a blob.
    #[error("the body ends {missing} bytes before the end of a blob's header")]
    TruncatedHeader { missing: u64 },
    /// The body ended, or must end, inside a blob.
    #[error("the body ends {missing} bytes before the end of a blob")]
    TruncatedPayload { missing: u64 },
    /// A name that is bound nowhere before in its expression.
    #[error("nothing is bound to the name {found}")]
    UnboundName { found: String },
    /// A command that does not exist.
    #[error("{found} is not a command")]
    UnknownCommand { found: String },
    /// A data type that does not exist.
    #[error("{found} is not a data type")]
    UnknownDataType { found: String },
    /// A keyword that the record does not have.
    #[error("{record} has no field {found}")]
    UnknownField { record: &'static str, found: String },
    /// An operation that does not exist.
    #[error("{found} is not an operation")]
    UnknownOperation { found: String },
    /// A value of another type than the field has.
    #[error("expected {expected}, found {found}")]
    WrongType { expected: &'static str, found: String },
    /// An operation with the wrong number of sources.
    #[error("Ops.{op} takes {expected} sources, found {found}")]
    WrongArity { op: &'static str, expected: usize, found: usize },
}

impl WireError {
    #[cold]
    pub(crate) fn new(at: usize, kind: WireErrorKind) -> Self {
        // A usize is at most 64 bits on every target there is.
        Self::in_body(at as u64, kind)
    }

    #[cold]
    pub(crate) fn in_body(at: u64, kind: WireErrorKind) -> Self {
        WireError(Box::new(Detail { at, command: None, command_name: None, field: None, kind }))
    }

    /// Says which field was being read, unless an inner record has said it already.
    #[cold]
    pub(crate) fn in_field(mut self, record: &'static str, field: &'static str) -> Self {
        self.0.field.get_or_insert((record, field));
        self
    }

    #[cold]
    pub(crate) fn in_command_named(mut self, name: &'static str) -> Self {
        self.0.command_name = Some(name);
        self
    }

    #[cold]
    pub(crate) fn in_command(mut self, index: usize) -> Self {
        self.0.command = Some(index);
        self
    }

    /// Byte offset in the command text, or in the body for an error of the envelope.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.0.at
    }

    /// Index of the command in its batch, where the error is inside one.
    #[must_use]
    pub fn command(&self) -> Option<usize> {
        self.0.command
    }

    /// Wire name of the command, where the error is inside one and its name was good.
    #[must_use]
    pub fn command_name(&self) -> Option<&'static str> {
        self.0.command_name
    }

    /// The innermost record and field that were being read.
    #[must_use]
    pub fn field(&self) -> Option<(&'static str, &'static str)> {
        self.0.field
    }

    #[must_use]
    pub fn kind(&self) -> &WireErrorKind {
        &self.0.kind
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Detail { at, command, command_name, field, kind } = &*self.0;
        write!(f, "byte {at}: ")?;
        match (command, command_name) {
            (Some(index), Some(name)) => write!(f, "command {index}, {name}: ")?,
            (Some(index), None) => write!(f, "command {index}: ")?,
            (None, _) => {}
        }
        if let Some((record, field)) = field {
            write!(f, "{record}.{field}: ")?;
        }
        kind.fmt(f)
    }
}

impl fmt::Debug for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for WireError {}

/// Characters of the text that an error quotes.
const QUOTE_CHARS_MAX: usize = 40;

/// One token for an error message: cut short, and escaped.
#[cold]
pub(crate) fn quote(token: &str) -> String {
    let mut out = String::from("`");
    for (count, c) in token.chars().enumerate() {
        match c {
            _ if count == QUOTE_CHARS_MAX => {
                out.push_str("...");
                break;
            }
            '\'' | '"' | '\\' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out + "`"
}

/// What `rest` begins with, for an error message. Of strings not the content: where the text is
/// broken, nobody knows which of them is a session's secret.
#[cold]
pub(crate) fn quote_next(rest: &str) -> String {
    let in_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    match rest.chars().next() {
        None => "the end of the text".to_owned(),
        Some('\'' | '"') => "a string".to_owned(),
        Some(c) if in_word(c) => quote(rest.split(|c| !in_word(c)).next().unwrap_or_default()),
        Some(c) => quote(rest.get(..c.len_utf8()).unwrap_or_default()),
    }
}

//! Statuses, the reasons for refusals, and the heads of responses.
//!
//! Owns: which reason is answered with which status. Absent: whether a connection can go on, which
//! depends on what is left of the request; see `connection`.

use thiserror::Error;

/// A status that this server sends (RFC 9110 section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    Ok = 200,
    BadRequest = 400,
    Unauthorized = 401,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    LengthRequired = 411,
    ContentTooLarge = 413,
    UriTooLong = 414,
    ExpectationFailed = 417,
    TooManyRequests = 429,
    FieldsTooLarge = 431,
    InternalServerError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    VersionNotSupported = 505,
}

impl Status {
    /// The three digits.
    #[must_use]
    pub fn code(self) -> u16 {
        self as u16
    }

    fn phrase(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::Unauthorized => "Unauthorized",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::RequestTimeout => "Request Timeout",
            Status::LengthRequired => "Length Required",
            Status::ContentTooLarge => "Content Too Large",
            Status::UriTooLong => "URI Too Long",
            Status::ExpectationFailed => "Expectation Failed",
            Status::TooManyRequests => "Too Many Requests",
            Status::FieldsTooLarge => "Request Header Fields Too Large",
            Status::InternalServerError => "Internal Server Error",
            Status::NotImplemented => "Not Implemented",
            Status::ServiceUnavailable => "Service Unavailable",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }

    /// The field that a response with this status has to carry.
    fn field(self) -> &'static str {
        match self {
            Status::Unauthorized => "WWW-Authenticate: Bearer\r\n",
            Status::MethodNotAllowed => "Allow: POST\r\n",
            _ => "",
        }
    }
}

/// Why a request is refused. All of these are the client's doing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    #[error("a carriage return is not followed by a line feed")]
    BareCarriageReturn,
    #[error("a line feed does not follow a carriage return")]
    BareLineFeed,
    #[error("the body exceeds {bytes_max} bytes")]
    BodyTooLarge { bytes_max: u64 },
    #[error("the data of a chunk is not followed by an empty line")]
    ChunkEnd,
    #[error("a chunk-size line or all chunk extensions together are too long")]
    ChunkLineTooLong,
    #[error("a chunk-size line is malformed")]
    ChunkSize,
    #[error("content-length is not one decimal number of 64 bits")]
    ContentLength,
    #[error("byte {byte:#04x} is not allowed in a line")]
    ControlCharacter { byte: u8 },
    #[error("the field {name} is repeated")]
    DuplicateField { name: &'static str },
    #[error("more than one empty line precedes the request")]
    EmptyLines,
    #[error("an expectation other than 100-continue")]
    Expectation,
    #[error("a field line is malformed")]
    FieldSyntax,
    #[error("the head exceeds {bytes_max} bytes")]
    HeadTooLarge { bytes_max: usize },
    #[error("the host is not a name or address with an optional port")]
    Host,
    #[error("the field host is missing")]
    HostMissing,
    #[error("both transfer-encoding and content-length are given")]
    LengthAmbiguous,
    #[error("the length of the body is not given")]
    LengthRequired,
    #[error("the method is not allowed here: send batches with POST")]
    MethodNotAllowed,
    #[error("the method is not implemented")]
    MethodNotImplemented,
    #[error("there is nothing at this target: send batches to /batch")]
    NotFound,
    #[error("the request line is malformed")]
    RequestLine,
    #[error("the request target has none of the forms that its method allows")]
    TargetForm,
    #[error("the request target exceeds {bytes_max} bytes")]
    TargetTooLong { bytes_max: usize },
    #[error("the request did not arrive in time")]
    Timeout,
    #[error("more than {fields_max} fields")]
    TooManyFields { fields_max: usize },
    #[error("a trailer line is malformed")]
    TrailerSyntax,
    #[error("the trailer exceeds {bytes_max} bytes")]
    TrailerTooLarge { bytes_max: usize },
    #[error("a transfer coding other than chunked")]
    TransferCoding,
    #[error("transfer-encoding in an HTTP/1.0 request")]
    TransferCodingVersion,
    #[error("tunnels are not implemented")]
    Tunnel,
    #[error("the version of the protocol is not supported")]
    Version,
}

impl Reason {
    /// What the client is told.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Reason::BareCarriageReturn
            | Reason::BareLineFeed
            | Reason::ChunkEnd
            | Reason::ChunkLineTooLong
            | Reason::ChunkSize
            | Reason::ContentLength
            | Reason::ControlCharacter { .. }
            | Reason::DuplicateField { .. }
            | Reason::EmptyLines
            | Reason::FieldSyntax
            | Reason::Host
            | Reason::HostMissing
            | Reason::LengthAmbiguous
            | Reason::RequestLine
            | Reason::TargetForm
            | Reason::TrailerSyntax
            | Reason::TransferCodingVersion => Status::BadRequest,
            Reason::BodyTooLarge { .. } => Status::ContentTooLarge,
            Reason::Expectation => Status::ExpectationFailed,
            Reason::HeadTooLarge { .. }
            | Reason::TooManyFields { .. }
            | Reason::TrailerTooLarge { .. } => Status::FieldsTooLarge,
            Reason::LengthRequired => Status::LengthRequired,
            Reason::MethodNotAllowed => Status::MethodNotAllowed,
            Reason::MethodNotImplemented | Reason::TransferCoding | Reason::Tunnel => {
                Status::NotImplemented
            }
            Reason::NotFound => Status::NotFound,
            Reason::TargetTooLong { .. } => Status::UriTooLong,
            Reason::Timeout => Status::RequestTimeout,
            Reason::Version => Status::VersionNotSupported,
        }
    }

    /// Whether the framing of the request is certain all the same.
    pub(super) fn leaves_framing_certain(self) -> bool {
        matches!(
            self,
            Reason::BodyTooLarge { .. }
                | Reason::Expectation
                | Reason::LengthRequired
                | Reason::MethodNotAllowed
                | Reason::MethodNotImplemented
                | Reason::NotFound
        )
    }
}

/// An answer that is due instead of a request: pass `status` to [`super::Connection::respond`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with.
    pub status: Status,
    /// For the log; the client sees the status alone.
    pub reason: Reason,
    /// Whether the connection goes on after the answer.
    pub keeps: bool,
}

/// What a response says about the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It closes, and says so.
    Close,
    /// It stays; in HTTP/1.1 that needs no word.
    Implied,
    /// It stays, and an HTTP/1.0 client has to be told.
    KeepAlive,
}

/// Writes the head of a response, the empty line included.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    status: Status,
    body_bytes: u64,
    persistence: Persistence,
) {
    let connection = match persistence {
        Persistence::Close => "Connection: close\r\n",
        Persistence::Implied => "",
        Persistence::KeepAlive => "Connection: keep-alive\r\n",
    };
    let (mut code, mut length) = (itoa::Buffer::new(), itoa::Buffer::new());
    for part in [
        "HTTP/1.1 ",
        code.format(status.code()),
        " ",
        status.phrase(),
        "\r\nContent-Length: ",
        length.format(body_bytes),
        "\r\n",
        status.field(),
        connection,
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The interim response that asks for the body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

//! The chunked transfer coding (RFC 9112 section 7.1), as bytes arrive.
//!
//! Owns: [`Chunked`], which eats framing and says how much pure data follows. Absent: the data.
//! Extensions and trailer fields are checked for shape and dropped: nothing here gives them a
//! meaning, and RFC 9110 section 6.5.1 forbids to treat a trailer as if it had been in the head.
//!
//! Line ends are CRLF and nothing else, since readers that also take a lone LF disagree with those
//! that do not about where an extension ends.

use super::head::{is_text_byte, is_token_byte};
use super::response::Reason;
use crate::config::HttpLimits;

/// Hexadecimal digits of one chunk size: 64 bits.
const SIZE_DIGITS_MAX: u32 = 16;

/// Where in the coding the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the digits of a size.
    Size { digits: u32 },
    /// In white space between the size and a semicolon.
    SizeSpace,
    /// Behind a semicolon, before the extension's name.
    ExtensionName,
    /// Inside an extension, outside quotes.
    Extension,
    /// Inside a quoted value of an extension.
    ExtensionQuoted,
    /// Behind a backslash in a quoted value.
    ExtensionEscape,
    /// Before the line feed of a chunk-size line.
    SizeLineFeed,
    /// In the data.
    Data { rest: u64 },
    /// Before the carriage return behind the data.
    DataReturn,
    /// Before the line feed behind the data.
    DataLineFeed,
    /// At the start of a trailer line.
    TrailerLine,
    /// In the name of a trailer field.
    TrailerName,
    /// In the value of a trailer field.
    TrailerValue,
    /// Before the line feed of a trailer line.
    TrailerLineFeed,
    /// Before the line feed that ends the message.
    LastLineFeed,
    /// Behind the message.
    End,
}

/// A body in chunks, and how much of it has been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunked {
    at: At,
    /// The size that is being read.
    size: u64,
    /// Data of all chunks announced so far.
    body_bytes: u64,
    /// Bytes of the current chunk-size line.
    line_bytes: usize,
    /// Bytes of all extensions; bounded so that one-byte chunks cannot carry a flood of them.
    extension_bytes: usize,
    trailer_bytes: usize,
}

impl Chunked {
    pub(super) fn new() -> Chunked {
        Chunked {
            at: At::Size { digits: 0 },
            size: 0,
            body_bytes: 0,
            line_bytes: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
        }
    }

    /// Bytes of pure data that come next.
    pub(super) fn data_rest(&self) -> u64 {
        match self.at {
            At::Data { rest } => rest,
            _ => 0,
        }
    }

    /// Whether the whole message has been read.
    pub(super) fn is_complete(&self) -> bool {
        self.at == At::End
    }

    /// Takes note of data that the caller has taken; at most [`Chunked::data_rest`].
    pub(super) fn take_data(&mut self, bytes: u64) {
        if let At::Data { rest } = self.at {
            let rest = rest.saturating_sub(bytes);
            self.at = if rest == 0 { At::DataReturn } else { At::Data { rest } };
        }
    }

    /// Eats framing until data, the end of the message, or the end of the input; returns the bytes
    /// eaten.
    pub(super) fn eat_framing(
        &mut self,
        input: &[u8],
        limits: &HttpLimits,
    ) -> Result<usize, Reason> {
        for (eaten, &byte) in input.iter().enumerate() {
            if matches!(self.at, At::Data { .. } | At::End) {
                return Ok(eaten);
            }
            self.at = match self.at {
                At::Data { .. } | At::End | At::DataReturn | At::DataLineFeed => {
                    self.behind_data(byte)?
                }
                At::TrailerLine
                | At::TrailerName
                | At::TrailerValue
                | At::TrailerLineFeed
                | At::LastLineFeed => self.trailer(byte, limits)?,
                At::Size { .. }
                | At::SizeSpace
                | At::ExtensionName
                | At::Extension
                | At::ExtensionQuoted
                | At::ExtensionEscape
                | At::SizeLineFeed => self.size_line(byte, limits)?,
            };
        }
        Ok(input.len())
    }

    fn behind_data(&self, byte: u8) -> Result<At, Reason> {
        match (self.at, byte) {
            (At::DataReturn, b'\r') => Ok(At::DataLineFeed),
            (At::DataLineFeed, b'\n') => Ok(At::Size { digits: 0 }),
            _ => Err(Reason::ChunkEnd),
        }
    }

    fn size_line(&mut self, byte: u8, limits: &HttpLimits) -> Result<At, Reason> {
        self.line_bytes += 1;
        if !matches!(self.at, At::Size { .. } | At::SizeLineFeed) {
            self.extension_bytes += 1;
        }
        if self.line_bytes > limits.chunk_line_bytes_max
            || self.extension_bytes > limits.head_bytes_max
        {
            return Err(Reason::ChunkLineTooLong);
        }
        match (self.at, byte) {
            (At::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(Reason::ChunkSize);
                }
                self.size = self.size << 4 | u64::from(hex_value(byte));
                Ok(At::Size { digits: digits + 1 })
            }
            (At::Size { digits: 0 }, _) => Err(Reason::ChunkSize),
            (At::Size { .. } | At::SizeSpace, b' ' | b'\t') => Ok(At::SizeSpace),
            (At::Size { .. } | At::SizeSpace, b';') => Ok(At::ExtensionName),
            (At::ExtensionName, b' ' | b'\t') => Ok(At::ExtensionName),
            (At::ExtensionName, _) if is_token_byte(byte) => Ok(At::Extension),
            (At::Size { .. } | At::Extension, b'\r') => Ok(At::SizeLineFeed),
            (At::SizeLineFeed, b'\n') => self.begin_chunk(limits),
            _ if !is_text_byte(byte) => Err(Reason::ChunkSize),
            (At::Extension, b'"') | (At::ExtensionEscape, _) => Ok(At::ExtensionQuoted),
            (At::ExtensionQuoted, b'"') | (At::Extension, _) => Ok(At::Extension),
            (At::ExtensionQuoted, b'\\') => Ok(At::ExtensionEscape),
            (At::ExtensionQuoted, _) => Ok(At::ExtensionQuoted),
            _ => Err(Reason::ChunkSize),
        }
    }

    fn begin_chunk(&mut self, limits: &HttpLimits) -> Result<At, Reason> {
        let size = std::mem::take(&mut self.size);
        self.line_bytes = 0;
        if size == 0 {
            return Ok(At::TrailerLine);
        }
        match self.body_bytes.checked_add(size) {
            Some(body_bytes) if body_bytes <= limits.body_bytes_max => {
                self.body_bytes = body_bytes;
                Ok(At::Data { rest: size })
            }
            _ => Err(Reason::BodyTooLarge { bytes_max: limits.body_bytes_max }),
        }
    }

    fn trailer(&mut self, byte: u8, limits: &HttpLimits) -> Result<At, Reason> {
        let ends = matches!(self.at, At::LastLineFeed)
            || matches!((self.at, byte), (At::TrailerLine, b'\r'));
        if !ends {
            self.trailer_bytes += 1;
            if self.trailer_bytes > limits.trailer_bytes_max {
                return Err(Reason::TrailerTooLarge { bytes_max: limits.trailer_bytes_max });
            }
        }
        match (self.at, byte) {
            (At::TrailerLine, b'\r') => Ok(At::LastLineFeed),
            (At::LastLineFeed, b'\n') => Ok(At::End),
            (At::TrailerLine | At::TrailerName, _) if is_token_byte(byte) => Ok(At::TrailerName),
            (At::TrailerName, b':') => Ok(At::TrailerValue),
            (At::TrailerValue, b'\r') => Ok(At::TrailerLineFeed),
            (At::TrailerValue, _) if is_text_byte(byte) => Ok(At::TrailerValue),
            (At::TrailerLineFeed, b'\n') => Ok(At::TrailerLine),
            _ => Err(Reason::TrailerSyntax),
        }
    }
}

/// The value of a hexadecimal digit.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

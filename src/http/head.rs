//! The head of a request: where it ends, and what it says.
//!
//! Owns: [`Scan`], which finds the end of a head in a growing buffer, and [`Head`], its fields.
//! Absent: what the method and target mean; see `route`.
//!
//! A scan remembers how far it has read, so each byte of a head is looked at once by the scan and
//! at most twice by `httparse` (the request line as soon as it is complete, everything at the
//! end), however slowly the head arrives. What a scan refuses depends on the bytes alone, in their
//! order, never on how they were split.
//!
//! Nearly every head arrives whole and is one that nobody refuses. [`Head::whole`] recognizes these
//! a line at a time; whatever it does not recognize goes the way of the scan, which knows the
//! reason.

use std::mem::MaybeUninit;

use httparse::Header;

use super::response::Reason;
use super::route::is_authority;
use crate::config::HttpLimits;

/// Bytes of a method. RFC 9110 lists none longer than 7; the registry's longest has 17.
const METHOD_BYTES_MAX: usize = 32;

/// Fields that a head may have before its table moves from the stack to the heap.
const FIELDS_INLINE: usize = 64;

/// The search for the end of a head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Bytes read so far.
    read: usize,
    /// Where the request line starts: behind the one empty line that is tolerated.
    start: usize,
    /// Where the current line starts.
    line: usize,
    /// Whether the request line is complete.
    has_request_line: bool,
    /// Whether the last byte was a carriage return.
    after_return: bool,
    /// Spaces of the request line so far.
    spaces: usize,
    /// Bytes of the current part of the request line.
    part_bytes: usize,
    /// Complete field lines so far.
    fields: usize,
}

impl Scan {
    /// Whether nothing has been read.
    pub(super) fn is_fresh(&self) -> bool {
        self.read == 0
    }

    /// Whether not even the first byte of a request has come.
    pub(super) fn is_idle(&self) -> bool {
        self.read == self.start
    }

    /// Reads on from where the last call stopped; `input` is the buffer from the head's first byte.
    /// Returns the head without the tolerated empty line, and the bytes of both, once complete.
    pub(super) fn advance<'a>(
        &mut self,
        input: &'a [u8],
        limits: &HttpLimits,
    ) -> Result<Option<(&'a [u8], usize)>, Reason> {
        debug_assert!(self.read <= input.len(), "the caller keeps what was not consumed");
        loop {
            self.skip_field_text(input, limits);
            let Some(&byte) = input.get(self.read) else { break };
            self.read += 1;
            match byte {
                b'\n' if self.after_return => {
                    if self.end_line(input, limits)? {
                        return Ok(Some((&input[self.start..self.read], self.read)));
                    }
                }
                b'\n' => return Err(Reason::BareLineFeed),
                _ if self.after_return => return Err(Reason::BareCarriageReturn),
                b'\r' => self.after_return = true,
                _ if !is_text_byte(byte) => return Err(Reason::ControlCharacter { byte }),
                _ if self.has_request_line => {}
                _ => self.request_line_byte(byte, limits)?,
            }
            if self.read >= limits.head_bytes_max {
                return Err(Reason::HeadTooLarge { bytes_max: limits.head_bytes_max });
            }
        }
        Ok(None)
    }

    /// Reads over bytes of a field line that mean nothing to the scan, which nearly all do.
    fn skip_field_text(&mut self, input: &[u8], limits: &HttpLimits) {
        if !self.has_request_line || self.after_return {
            return;
        }
        // The last byte that the limit allows is looked at on its own, so that it is refused there.
        let end = input.len().min(limits.head_bytes_max.saturating_sub(1));
        let rest = input.get(self.read..end).unwrap_or_default();
        self.read += rest.iter().take_while(|&&byte| is_text_byte(byte)).count();
    }

    /// Checks what a byte of the request line can be by its place, so that a client that speaks
    /// another protocol is answered at once.
    fn request_line_byte(&mut self, byte: u8, limits: &HttpLimits) -> Result<(), Reason> {
        if byte == b' ' {
            self.spaces += 1;
            self.part_bytes = 0;
            return Ok(());
        }
        self.part_bytes += 1;
        match self.spaces {
            0 if !is_token_byte(byte) => Err(Reason::RequestLine),
            0 if self.part_bytes > METHOD_BYTES_MAX => Err(Reason::MethodNotImplemented),
            1 if self.part_bytes > limits.target_bytes_max => {
                Err(Reason::TargetTooLong { bytes_max: limits.target_bytes_max })
            }
            _ if !byte.is_ascii_graphic() => Err(Reason::RequestLine),
            _ => Ok(()),
        }
    }

    /// Takes note of a complete line; true if it was the empty one that ends the head.
    fn end_line(&mut self, input: &[u8], limits: &HttpLimits) -> Result<bool, Reason> {
        let line = &input[self.line..self.read];
        let is_empty = line == b"\r\n";
        self.line = self.read;
        self.after_return = false;
        if self.has_request_line {
            if is_empty {
                return Ok(true);
            }
            self.fields += 1;
            if self.fields > limits.headers_max {
                return Err(Reason::TooManyFields { fields_max: limits.headers_max });
            }
        } else if is_empty {
            if self.start != 0 {
                return Err(Reason::EmptyLines);
            }
            self.start = self.read;
        } else {
            check_request_line(line)?;
            self.has_request_line = true;
        }
        Ok(false)
    }
}

/// Whether this byte may be in a token (RFC 9110 section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether this byte may be in a line at all: any but control characters, tabs excepted.
pub(super) fn is_text_byte(byte: u8) -> bool {
    (byte >= b' ') & (byte != 0x7f) | (byte == b'\t')
}

/// Checks a request line, its line end included.
fn check_request_line(line: &[u8]) -> Result<(), Reason> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse(line) {
        Ok(_) if request.version.is_some() => Ok(()),
        Err(httparse::Error::Version) => Err(version_refusal(line)),
        Ok(_) | Err(_) => Err(Reason::RequestLine),
    }
}

/// Tells a version that is not spoken from one that is misspelt. RFC 9110 section 2.5 lets a server
/// treat 1.2 and above as 1.1; nobody sends them, and `httparse` knows only 1.0 and 1.1.
fn version_refusal(line: &[u8]) -> Reason {
    let version = line.splitn(3, |&b| b == b' ').nth(2).unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor, b'\r', b'\n']
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Reason::Version
        }
        _ => Reason::RequestLine,
    }
}

/// What a complete head says.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    /// Whether the client speaks HTTP/1.0.
    pub(super) is_http_1_0: bool,
    pub(super) fields: Fields<'a>,
}

/// The fields that mean something here; all others are ignored.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) digest: Option<&'a [u8]>,
    pub(super) peer: Option<&'a [u8]>,
    pub(super) wire_version: Option<&'a [u8]>,
    pub(super) content_bytes: Option<u64>,
    /// Whether the body comes in chunks.
    pub(super) is_chunked: bool,
    /// Whether `Connection` lists `close`.
    pub(super) asks_close: bool,
    /// Whether `Connection` lists `keep-alive`.
    pub(super) asks_keep_alive: bool,
    /// Whether the client waits for `100 Continue`.
    pub(super) expects_continue: bool,
    /// Whether the client expects anything else.
    pub(super) expects_other: bool,
    has_host: bool,
    has_other_coding: bool,
}

/// The end of a head that is here from its first byte to its last and holds nothing that a [`Scan`]
/// refuses.
fn end_of_whole(input: &[u8], limits: &HttpLimits) -> Option<usize> {
    let input = &input[..input.len().min(limits.head_bytes_max.saturating_sub(1))];
    let line = clean_line(input)?;
    let mut parts = input[..line].split(|&byte| byte == b' ');
    let (method, target) = (parts.next()?, parts.next()?);
    let is_graphic = |part: &[u8]| part.iter().all(u8::is_ascii_graphic);
    let is_short = method.len() <= METHOD_BYTES_MAX && target.len() <= limits.target_bytes_max;
    if !is_short || !method.iter().copied().all(is_token_byte) {
        return None;
    }
    if !is_graphic(target) || !parts.all(is_graphic) {
        return None;
    }
    let mut end = line + 2;
    loop {
        let line = clean_line(&input[end..])?;
        end += line + 2;
        if line == 0 {
            return Some(end);
        }
    }
}

/// The length of the first line, if all of it is here, its line end and its bytes being allowed.
fn clean_line(input: &[u8]) -> Option<usize> {
    let length = memchr::memchr(b'\r', input)?;
    let line = &input[..length];
    // Without an early end, so that many bytes are looked at at once.
    let is_clean = line.iter().fold(true, |clean, &byte| clean & is_text_byte(byte));
    (is_clean && input.get(length + 1) == Some(&b'\n')).then_some(length)
}

impl<'a> Head<'a> {
    /// The head with which `input` begins, and its length, if all of it is there and nothing is
    /// wrong with it. `None` says nothing: the scan has to find out.
    pub(super) fn whole(input: &'a [u8], limits: &HttpLimits) -> Option<(Head<'a>, usize)> {
        let end = end_of_whole(input, limits)?;
        Some((Head::parse(&input[..end], limits).ok()?, end))
    }

    /// Reads a head whose end a [`Scan`] has found, and checks its framing.
    pub(super) fn parse(bytes: &'a [u8], limits: &HttpLimits) -> Result<Head<'a>, Reason> {
        let mut inline = [const { MaybeUninit::<Header<'a>>::uninit() }; FIELDS_INLINE];
        let mut heap = Vec::new();
        let table = match inline.get_mut(..limits.headers_max) {
            Some(table) => table,
            None => {
                heap.resize_with(limits.headers_max, MaybeUninit::uninit);
                &mut heap[..]
            }
        };
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, table);
        let status = parsed.map_err(|error| match error {
            httparse::Error::TooManyHeaders => {
                Reason::TooManyFields { fields_max: limits.headers_max }
            }
            _ => Reason::FieldSyntax,
        })?;
        // The scan and httparse must agree where the head ends.
        if status != httparse::Status::Complete(bytes.len()) {
            return Err(Reason::FieldSyntax);
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(Reason::RequestLine);
        };
        let mut fields = Fields::default();
        for header in &*request.headers {
            fields.take(header.name, header.value)?;
        }
        let is_http_1_0 = minor == 0;
        fields.check(is_http_1_0)?;
        Ok(Head { method, target, is_http_1_0, fields })
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &str, value: &'a [u8]) -> Result<(), Reason> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("authorization") {
            return set_once(&mut self.authorization, value, "authorization");
        }
        if is("outboard-digest") {
            return set_once(&mut self.digest, value, "outboard-digest");
        }
        if is("outboard-peer") {
            return set_once(&mut self.peer, value, "outboard-peer");
        }
        if is("outboard-wire") {
            return set_once(&mut self.wire_version, value, "outboard-wire");
        }
        if is("content-length") {
            let bytes = decimal(value).ok_or(Reason::ContentLength)?;
            return set_once(&mut self.content_bytes, bytes, "content-length");
        }
        if is("host") {
            if self.has_host {
                return Err(Reason::DuplicateField { name: "host" });
            }
            self.has_host = true;
            return if is_authority(value) { Ok(()) } else { Err(Reason::Host) };
        }
        if is("transfer-encoding") {
            // A second line would make the list `chunked, chunked`, which is another coding.
            let is_plain = value.eq_ignore_ascii_case(b"chunked") && !self.is_chunked;
            self.has_other_coding |= !is_plain;
            self.is_chunked = true;
        } else if is("connection") {
            for option in list(value) {
                self.asks_close |= option.eq_ignore_ascii_case(b"close");
                self.asks_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("expect") {
            for expectation in list(value) {
                let is_continue = expectation.eq_ignore_ascii_case(b"100-continue");
                self.expects_continue |= is_continue;
                self.expects_other |= !is_continue;
            }
        }
        Ok(())
    }

    /// Checks what concerns several fields: RFC 9112 sections 3.2, 6.1 and 6.3.
    fn check(&mut self, is_http_1_0: bool) -> Result<(), Reason> {
        if self.is_chunked && self.content_bytes.is_some() {
            return Err(Reason::LengthAmbiguous);
        }
        if self.is_chunked && is_http_1_0 {
            return Err(Reason::TransferCodingVersion);
        }
        if !self.has_host && !is_http_1_0 {
            return Err(Reason::HostMissing);
        }
        if self.has_other_coding {
            return Err(Reason::TransferCoding);
        }
        if is_http_1_0 {
            // HTTP/1.0 has no interim responses (RFC 9110 section 10.1.1).
            self.expects_continue = false;
        }
        Ok(())
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), Reason> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Reason::DuplicateField { name }),
    }
}

/// One or more decimal digits that fit 64 bits; no sign, no space, no list.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The members of a comma-separated list, empty ones left out (RFC 9110 section 5.6.1).
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{Scan, decimal};
    use crate::config::HttpLimits;

    #[test]
    fn decimal_at_and_above_64_bits_is_told_apart() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(decimal(b"0000000000000000000000007"), Some(7));
    }

    #[test]
    fn scan_byte_by_byte_reads_each_byte_once() {
        let head = b"POST /batch HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut scan = Scan::default();
        for end in 0..=head.len() {
            let found = scan.advance(&head[..end], &HttpLimits::default()).unwrap();
            assert_eq!(scan.read, end);
            assert_eq!(found.is_some(), end == head.len());
        }
    }
}

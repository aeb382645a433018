//! One connection that speaks the wire by hand, blocking or spinning on its socket, and the texts
//! of the commands that measurements send.
//!
//! Blob names are a counter, not the bytes' SHA-256: to the servers a name is only a name, and
//! hashing here would be measured as their time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::Result;

/// Answers slower than this mean that the server hangs.
const REPLY_LIMIT: Duration = Duration::from_secs(120);
/// What is read or written at once: among the fastest between two threads over plain TCP.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// Room for the head of a reply and a small body.
const REPLY_BYTES_MIN: usize = 64 << 10;
/// Adds one to the integer it finds.
pub(crate) const KERNEL: &str = "void tiny(int* restrict data0, int* restrict data1) \
    { *(data0+0) = ((*(data1+0))+1); }\n";

/// A socket that sleeps in the kernel until there are bytes, or asks again and again so that its
/// core never sleeps.
pub(crate) struct Wire {
    stream: TcpStream,
    spin: bool,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, spin: bool) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_nonblocking(spin)?;
        Ok(Wire { stream, spin })
    }

    pub(crate) fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if !self.spin {
            return uninterrupted(|| self.stream.read(to));
        }
        let mut looks = 0_u32;
        let mut began = None;
        loop {
            match self.stream.read(to) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1 << 16)
                && began.get_or_insert_with(Instant::now).elapsed() > REPLY_LIMIT
            {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    pub(crate) fn read_exact(&mut self, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            match self.read(to)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => to = &mut to[count..],
            }
        }
        Ok(())
    }

    pub(crate) fn write_all(&mut self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            match uninterrupted(|| self.stream.write(from)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => from = &from[count..],
                Err(error) if self.spin && error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Who is stopped and let go on in a call that has a time limit finds it interrupted.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A connection with one session.
pub(crate) struct Client {
    wire: Wire,
    host: String,
    pub(crate) session: String,
    names: u64,
    reply: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, spin: bool) -> Result<Client> {
        Client::over(TcpStream::connect(address)?, address, spin)
    }

    /// The same from an address of this machine's.
    pub(crate) fn connect_from(from: IpAddr, address: SocketAddr, spin: bool) -> Result<Client> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&address.into())?;
        Client::over(socket.into(), address, spin)
    }

    fn over(stream: TcpStream, address: SocketAddr, spin: bool) -> Result<Client> {
        let wire = Wire::new(stream, spin)?;
        let host = address.to_string();
        let session = new_session(&host)?;
        Ok(Client { wire, host, session, names: 0, reply: vec![1; REPLY_BYTES_MIN] })
    }

    /// The connection, without its session.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.wire.stream
    }

    /// The key of one more session.
    pub(crate) fn another_session(&self) -> Result<String> {
        new_session(&self.host)
    }

    /// Makes room for a reply's body, with pages that have been touched.
    pub(crate) fn expect_bytes(&mut self, bytes: usize) {
        let bytes = bytes + REPLY_BYTES_MIN;
        if self.reply.len() < bytes {
            self.reply = vec![1; bytes];
        }
    }

    /// The head of a blob in a body, and its name as commands spell it.
    pub(crate) fn blob_head(&mut self, bytes: usize) -> ([u8; 40], String) {
        let mut head = [0; 40];
        head[..8].copy_from_slice(&self.names.to_be_bytes());
        self.names += 1;
        head[32..].copy_from_slice(&(bytes as u64).to_le_bytes());
        let name = hex(&head[..32]);
        (head, name)
    }

    /// A blob as it stands in a body, and its name.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> (Vec<u8>, String) {
        let (head, name) = self.blob_head(bytes.len());
        ([&head[..], bytes].concat(), name)
    }

    /// A whole request, head and body, that holds only commands.
    pub(crate) fn batch(&mut self, text: &str) -> Vec<u8> {
        self.batch_with(&[], text)
    }

    /// A whole request with data blobs before the commands.
    pub(crate) fn batch_with(&mut self, data: &[u8], text: &str) -> Vec<u8> {
        let (text, _) = self.blob(text.as_bytes());
        [&self.head(data.len() + text.len()), data, &text].concat()
    }

    /// The head of a request, as the stock client spells it.
    pub(crate) fn head(&self, body_bytes: usize) -> Vec<u8> {
        let host = &self.host;
        format!(
            "POST /batch HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n\
             Content-Length: {body_bytes}\r\n\r\n"
        )
        .into_bytes()
    }

    /// Sends a request and returns the body of its reply; any status but 200 is an error.
    pub(crate) fn request(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.send(request)?;
        self.reply()
    }

    /// A part of a request whose reply is not read yet.
    pub(crate) fn send(&mut self, part: &[u8]) -> Result<()> {
        Ok(part.chunks(PIECE_BYTES).try_for_each(|piece| self.wire.write_all(piece))?)
    }

    /// The body of a whole reply.
    pub(crate) fn reply(&mut self) -> Result<&[u8]> {
        let (at, filled, length) = self.reply_head()?;
        let end = at + length;
        if end > self.reply.len() {
            return Err(format!("a reply of {length} bytes").into());
        }
        for piece in self.reply[filled.min(end)..end].chunks_mut(PIECE_BYTES) {
            self.wire.read_exact(piece)?;
        }
        Ok(&self.reply[at..end])
    }

    /// Reads `count` replies without bodies, which may come together.
    pub(crate) fn replies(&mut self, count: usize) -> Result<()> {
        let (mut seen, mut filled) = (0, 0);
        while seen < count {
            match self.wire.read(&mut self.reply[filled..])? {
                0 => return Err("the server closed the connection".into()),
                read => filled += read,
            }
            let mut begin = 0;
            while let Some(end) = head_end(&self.reply[begin..filled]) {
                match parse_head(&self.reply[begin..begin + end])? {
                    (200, 0) => seen += 1,
                    (status, length) => {
                        return Err(format!("status {status} with {length} bytes").into());
                    }
                }
                begin += end;
            }
            self.reply.copy_within(begin..filled, 0);
            filled -= begin;
        }
        Ok(())
    }

    /// A long reply's body, given to `take` piece by piece; `buffer` is where pieces lie.
    pub(crate) fn reply_in_pieces(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let (at, mut filled, length) = self.reply_head()?;
        let begun = filled - at;
        buffer[..begun].copy_from_slice(&self.reply[at..filled]);
        filled = begun;
        let mut left = length - begun;
        loop {
            let end = buffer.len().min(filled + left);
            for piece in buffer[filled..end].chunks_mut(PIECE_BYTES) {
                self.wire.read_exact(piece)?;
            }
            take(&buffer[..end])?;
            left -= end - filled;
            filled = 0;
            if left == 0 {
                return Ok(length);
            }
        }
    }

    /// Reads until the head is there: where the body begins, how far the buffer is filled, and the
    /// body's length.
    fn reply_head(&mut self) -> Result<(usize, usize, usize)> {
        let mut filled = 0;
        let head_end = loop {
            let room = self.reply.len().min(filled + REPLY_BYTES_MIN);
            let count = self.wire.read(&mut self.reply[filled..room])?;
            if count == 0 {
                return Err("the server closed the connection".into());
            }
            filled += count;
            // The head is within the first bytes; the body need not be searched.
            if let Some(at) = head_end(&self.reply[..filled.min(4096)]) {
                break at;
            }
        };
        let (status, length) = parse_head(&self.reply[..head_end])?;
        if status != 200 {
            let body = &self.reply[head_end..filled.min(head_end + length)];
            return Err(format!("status {status}: {}", String::from_utf8_lossy(body)).into());
        }
        Ok((head_end, filled, length))
    }

    /// Compiles the kernel in a session, and makes buffer 0, which holds 41, and buffer 1. Returns
    /// the name of the kernel's source.
    pub(crate) fn prepare_kernel(&mut self, session: &str) -> Result<String> {
        let (source, hash) = self.blob(KERNEL.as_bytes());
        let (number, name) = self.blob(&41_i32.to_le_bytes());
        let text = [
            format!("ProgramAlloc(session={session}, name='tiny', datahash='{hash}')"),
            buffer_alloc(session, 0, 4),
            buffer_alloc(session, 1, 4),
            copy_in(session, 0, &name),
        ];
        let request = self.batch_with(&[source, number].concat(), &list(&text));
        self.request(&request)?;
        Ok(hash)
    }
}

fn new_session(host: &str) -> Result<String> {
    let mut nonce = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(format!("SessionKey(host='{host}', idx=0, nonce='{}')", hex(&nonce)))
}

pub(crate) fn list(commands: &[String]) -> String {
    format!("[{}]", commands.join(", "))
}

pub(crate) fn buffer_alloc(session: &str, number: usize, bytes: usize) -> String {
    format!(
        "BufferAlloc(session={session}, buffer_num={number}, size={bytes}, \
         options=BufferSpec(image=None, uncached=False, cpu_access=False, host=False, \
         nolru=False, external_ptr=None))"
    )
}

pub(crate) fn buffer_free(session: &str, number: usize) -> String {
    format!("BufferFree(session={session}, buffer_num={number})")
}

pub(crate) fn copy_in(session: &str, number: usize, name: &str) -> String {
    format!("CopyIn(session={session}, buffer_num={number}, datahash='{name}')")
}

pub(crate) fn copy_out(session: &str, number: usize) -> String {
    format!("CopyOut(session={session}, buffer_num={number})")
}

pub(crate) fn launch(session: &str, hash: &str, wait: bool) -> String {
    let wait = if wait { "True" } else { "False" };
    format!(
        "ProgramExec(session={session}, name='tiny', datahash='{hash}', bufs=(1, 0), vals=(), \
         global_size=None, local_size=None, wait={wait})"
    )
}

pub(crate) fn session_free(session: &str) -> String {
    format!("SessionFree(session={session})")
}

/// Where the body of a reply begins, if its head is whole.
pub(crate) fn head_end(reply: &[u8]) -> Option<usize> {
    reply.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Status and body length of a reply's head.
pub(crate) fn parse_head(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("no length")?;
    Ok((status.parse()?, length.1.trim().parse()?))
}

pub(crate) fn expect_int(reply: &[u8], expected: i32) -> Result<()> {
    let got = i32::from_le_bytes(reply.try_into()?);
    if got != expected {
        return Err(format!("the kernel's result is {got}, not {expected}").into());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! A server in this process, of one shard on a core, and a connection to it from another core.
//!
//! Absent: what is asked, and how it is measured.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboard::blob::Digest;
use outboard::device::null::NullPlatform;
use outboard::device::shared::Budget;
use outboard::shard::{self, PlatformMaker, Server};
use outboard::wire::envelope;
use rustix::thread::{CpuSet, sched_setaffinity};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Answers slower than this mean that the server hangs.
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);

/// Whether the client spins while it waits, so that its core never sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awake {
    No,
    Yes,
}

/// A stream that is waited for asleep or spinning.
pub(crate) struct Wire {
    stream: TcpStream,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Result<Wire> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
        Ok(Wire { stream })
    }

    pub(crate) fn wait_awake(&mut self, awake: Awake) -> Result<()> {
        Ok(self.stream.set_nonblocking(awake == Awake::Yes)?)
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_passing(&error) => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut until = None;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(count) => return Ok(count),
                Err(error) if is_passing(&error) => {
                    let until = *until.get_or_insert_with(|| Instant::now() + REPLY_TIME_MAX);
                    if Instant::now() > until {
                        return Err("no reply".into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether to try again: not ready yet, or a child process has ended.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}

/// A connection to the server.
pub(crate) struct Client {
    wire: Wire,
    reply: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Client> {
        // Room for the longest reply, touched before anything is measured.
        Ok(Client { wire: Wire::new(TcpStream::connect(address)?)?, reply: vec![1; 2 << 20] })
    }

    pub(crate) fn wait_awake(&mut self, awake: Awake) -> Result<()> {
        self.wire.wait_awake(awake)
    }

    /// Sends a request and receives its reply, whose length is returned; any status but 200 is an
    /// error.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<usize> {
        self.wire.send(request)?;
        let mut filled = 0;
        let mut end = None;
        loop {
            filled += self.wire.receive(&mut self.reply[filled..])?;
            if end.is_none() {
                end = end_of_reply(&self.reply[..filled])?;
            }
            if let Some((body, end)) = end
                && end <= filled
            {
                if !self.reply.starts_with(b"HTTP/1.1 200") {
                    return Err(String::from_utf8_lossy(&self.reply[body..end]).into());
                }
                return Ok(end);
            }
        }
    }
}

/// Where the body begins and ends, once the head is there.
fn end_of_reply(reply: &[u8]) -> Result<Option<(usize, usize)>> {
    // The head is within the first bytes; a body need not be searched.
    let seen = &reply[..reply.len().min(512)];
    let Some(head) = seen.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&seen[..head])?;
    let length = text
        .split("\r\n")
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .ok_or("a reply without its length")?;
    Ok(Some((head + 4, head + 4 + length.parse::<usize>()?)))
}

/// Starts a server of one shard.
pub(crate) fn start(core: usize, platform: &PlatformMaker) -> Result<Server> {
    let config = shard::Config::new(Arc::new(Budget::new(1 << 30)));
    let address = "127.0.0.1:0".parse()?;
    Ok(Server::start(&[address], &[core], &config, platform)?)
}

/// Ends a server whose connections are closed.
pub(crate) fn stop(server: Server) {
    server.drain().begin();
    server.join();
}

/// Devices that do nothing, at once.
pub(crate) fn null_platform() -> PlatformMaker {
    Arc::new(|| Box::new(NullPlatform::new(16, Arc::new(Budget::new(16 << 30)))))
}

/// Keeps the calling thread on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// A whole request: head, data blobs with their names, command text.
pub(crate) fn request(blobs: &[(Digest, &[u8])], text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, bytes) in blobs.iter().copied().chain([(Digest([0; 32]), text.as_bytes())]) {
        envelope::append(&mut body, name, bytes);
    }
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: 127.0.0.1:6667\r\nAccept-Encoding: identity\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

//! A client that speaks the wire by hand, over a blocking socket.

#![expect(clippy::unwrap_used, reason = "a test ends where its client cannot go on")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The hash by which commands name a blob.
pub(crate) fn name_of(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// A request body: blobs, then the command text.
pub(crate) fn body_of(text: &str, blobs: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for blob in blobs.iter().copied().chain([text.as_bytes()]) {
        body.extend_from_slice(&Sha256::digest(blob));
        body.extend_from_slice(&(blob.len() as u64).to_le_bytes());
        body.extend_from_slice(blob);
    }
    body
}

/// A request with this body.
pub(crate) fn request_of(body: &[u8]) -> Vec<u8> {
    request_with("", body)
}

/// A request with this body and more fields, each with its line end.
pub(crate) fn request_with(fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST /batch HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a reply that has to be a success.
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(self.status, 200, "{}", self.text());
        self.body
    }

    /// The text of a reply that has to be a failure.
    pub(crate) fn failure(self) -> String {
        assert_eq!(self.status, 500, "{}", self.text());
        self.text()
    }
}

/// One connection, and one session for each device index on it.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    nonce: String,
    /// How sessions name the server.
    host: String,
    /// More fields of each request.
    fields: String,
}

impl Client {
    /// Connects; `nonce` makes the sessions this client's own.
    pub(crate) fn connect(address: SocketAddr, nonce: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { stream, nonce: nonce.to_owned(), host: "h".to_owned(), fields: String::new() }
    }

    /// The same, naming the server by its address as the stock client does.
    pub(crate) fn naming_its_server(self) -> Client {
        let host = self.stream.peer_addr().unwrap().to_string();
        self.naming(&host)
    }

    /// The same, naming the server so.
    pub(crate) fn naming(self, host: &str) -> Client {
        Client { host: host.to_owned(), ..self }
    }

    /// The same, sending a token from now on.
    pub(crate) fn with_token(self, token: &str) -> Client {
        Client { fields: format!("Authorization: Bearer {token}\r\n"), ..self }
    }

    /// `session=...` of the session of device `index`, as every command has it.
    pub(crate) fn session(&self, index: u64) -> String {
        format!("session={}", self.key(index))
    }

    /// The name of that session.
    pub(crate) fn key(&self, index: u64) -> String {
        let Client { host, nonce, .. } = self;
        format!("SessionKey(host='{host}', idx={index}, nonce='{nonce}')")
    }

    /// Sends a batch without waiting for its reply.
    pub(crate) fn send(&mut self, commands: &[String], blobs: &[&[u8]]) {
        let body = body_of(&format!("[{}]", commands.join(", ")), blobs);
        self.stream.write_all(&request_with(&self.fields, &body)).unwrap();
    }

    /// Sends a batch and receives its reply.
    pub(crate) fn batch(&mut self, commands: &[String], blobs: &[&[u8]]) -> Reply {
        self.send(commands, blobs);
        self.receive()
    }

    /// Receives the head of a reply.
    pub(crate) fn receive_head(&mut self) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Receives one reply.
    pub(crate) fn receive(&mut self) -> Reply {
        let head = self.receive_head();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .unwrap()
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Reply { status, body }
    }

    /// Copies `bytes` bytes into a buffer, the same piece again and again, and calls `between`
    /// after each.
    pub(crate) fn upload(
        &mut self,
        buffer: u64,
        bytes: u64,
        piece: &[u8],
        between: &mut dyn FnMut(),
    ) {
        // To the server a name is only a name.
        let name = "00".repeat(32);
        let text = format!("[CopyIn({}, buffer_num={buffer}, datahash='{name}')]", self.session(0));
        let length = 40 + bytes + 40 + text.len() as u64;
        let head = format!("POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        let blob_head = [&[0; 32][..], &bytes.to_le_bytes()].concat();
        self.stream.write_all(&[head.as_bytes(), &blob_head].concat()).unwrap();
        for _ in 0..bytes / piece.len() as u64 {
            self.stream.write_all(piece).unwrap();
            between();
        }
        self.stream.write_all(&body_of(&text, &[])).unwrap();
        self.receive().ok();
    }

    pub(crate) fn alloc(&self, buffer: u64, bytes: u64) -> String {
        let session = self.session(0);
        format!(
            "BufferAlloc({session}, buffer_num={buffer}, size={bytes}, options=BufferSpec(\
             image=None, uncached=False, cpu_access=False, host=False, nolru=False, \
             external_ptr=None))"
        )
    }

    pub(crate) fn copy_in(&self, buffer: u64, blob: &[u8]) -> String {
        let session = self.session(0);
        format!("CopyIn({session}, buffer_num={buffer}, datahash='{}')", name_of(blob))
    }

    pub(crate) fn copy_out(&self, buffer: u64) -> String {
        format!("CopyOut({}, buffer_num={buffer})", self.session(0))
    }

    pub(crate) fn program(&self, name: &str, source: &str) -> String {
        let session = self.session(0);
        format!("ProgramAlloc({session}, name='{name}', datahash='{}')", name_of(source.as_bytes()))
    }

    pub(crate) fn exec(&self, name: &str, source: &str, buffers: &[u64], wait: bool) -> String {
        let session = self.session(0);
        let hash = name_of(source.as_bytes());
        let buffers: String = buffers.iter().map(|number| format!("{number},")).collect();
        let wait = if wait { "True" } else { "False" };
        format!(
            "ProgramExec({session}, name='{name}', datahash='{hash}', bufs=({buffers}), vals=(), \
             global_size=None, local_size=None, wait={wait})"
        )
    }
}

//! A connection that is plain or TLS, and may have a token.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::client::{Reply, body_of, request_with};

pub(crate) fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
});

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub(crate) struct Link {
    stream: Stream,
    fields: String,
}

impl Link {
    pub(crate) fn open(address: SocketAddr, is_tls: bool, token: &str) -> Link {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        // Far above what anything takes, on a machine that has other things to do too.
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let stream = if is_tls {
            let name = ServerName::try_from("localhost").unwrap();
            let connection = ClientConnection::new(Arc::clone(&CONFIG), name).unwrap();
            Stream::Tls(Box::new(StreamOwned::new(connection, stream)))
        } else {
            Stream::Plain(stream)
        };
        Link { stream, fields: format!("Authorization: Bearer {token}\r\n") }
    }

    pub(crate) fn request(&self, text: &str, blobs: &[&[u8]]) -> Vec<u8> {
        request_with(&self.fields, &body_of(text, blobs))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let stream: &mut dyn Write = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
        };
        stream.write_all(bytes).unwrap();
        stream.flush().unwrap();
    }

    pub(crate) fn receive(&mut self) -> Reply {
        self.try_receive().unwrap()
    }

    pub(crate) fn try_receive(&mut self) -> io::Result<Reply> {
        let stream: &mut dyn Read = match &mut self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
        };
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut body)?;
        Ok(Reply { status, body })
    }

    /// Reads some of what comes.
    pub(crate) fn taste(&mut self, bytes: usize) -> io::Result<()> {
        let mut some = vec![0; bytes];
        match &mut self.stream {
            Stream::Plain(stream) => stream.read_exact(&mut some),
            Stream::Tls(stream) => stream.read_exact(&mut some),
        }
    }

    /// The socket, to be left alone. What TLS says at an end is not said.
    pub(crate) fn into_socket(self) -> TcpStream {
        match self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.into_parts().1,
        }
    }
}

//! A client that speaks TLS by hand, and the certificates that lie in `tests/tls`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{body_of, request_of};
use super::scratch_file;

pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A copy of a file that its owner alone may read, which goes when it is dropped.
pub(crate) struct Private(PathBuf);

impl Private {
    pub(crate) fn new(text: &str) -> Private {
        let path = scratch_file("private");
        fs::write(&path, text).expect("the scratch folder can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is our own");
        Private(path)
    }

    /// The key of the server's certificate.
    pub(crate) fn key() -> Private {
        Private::of("server.key")
    }

    /// A copy of a file of `tests/tls`.
    pub(crate) fn of(name: &str) -> Private {
        Private::new(&fs::read_to_string(file(name)).expect("it is in the tree"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Best effort: the folder belongs to the build and goes with it.
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connects; the handshake is not done yet.
pub(crate) fn connect(address: SocketAddr, certificate: Option<&str>) -> Stream {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(file("ca.pem")).expect("a certificate");
    roots.add(ca).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots);
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some(name) => {
            let certificate = CertificateDer::from_pem_file(file(name)).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(file("client.key")).expect("a key");
            config.with_client_auth_cert(vec![certificate], key).expect("they belong together")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
    StreamOwned::new(connection, stream)
}

/// Receives one reply.
pub(crate) fn receive(stream: &mut Stream) -> io::Result<(u16, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.and_then(|length| length.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body))
}

pub(crate) fn exchange(stream: &mut Stream, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    stream.write_all(request)?;
    stream.flush()?;
    receive(stream)
}

pub(crate) fn batch(stream: &mut Stream, commands: &[String], blobs: &[&[u8]]) -> (u16, Vec<u8>) {
    let body = body_of(&format!("[{}]", commands.join(", ")), blobs);
    exchange(stream, &request_of(&body)).expect("an answer")
}

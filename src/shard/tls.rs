//! TLS as a value: what came from the peer in, what is to be sent out.
//!
//! Owns: the conversion between the two kinds of bytes; what is to be done where another server and
//! this one do not come together. Absent: sockets and waiting (`io`), files and names (`identity`).

use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;

use rustls::{
    AlertDescription, CertificateError, ClientConnection, Connection, ServerConfig,
    ServerConnection,
};

use crate::identity::PeerTls;

/// This server's end of one TLS connection.
pub(super) struct Tls(Connection);

impl Tls {
    /// The end of who was connected to.
    pub(super) fn of_server(config: Arc<ServerConfig>) -> Result<Tls, rustls::Error> {
        Ok(Tls::new(ServerConnection::new(config)?.into()))
    }

    /// The end of who connects, to another server.
    pub(super) fn of_client(to: &PeerTls) -> Result<Tls, rustls::Error> {
        let connection = ClientConnection::new(Arc::clone(&to.config), to.name.clone())?;
        Ok(Tls::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Tls {
        // What is encrypted is taken out at once.
        connection.set_buffer_limit(None);
        Tls(connection)
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// The certificate that the peer has shown, after the handshake.
    pub(super) fn certificate(&self) -> Option<&rustls::pki_types::CertificateDer<'static>> {
        self.0.peer_certificates()?.first()
    }

    /// Takes what came from the peer; what it says goes behind the end of `to`. Returns whether
    /// that was the last. After an error there is an alert to be sent.
    pub(super) fn decrypt(&mut self, mut bytes: &[u8], to: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            if !bytes.is_empty() && self.0.read_tls(&mut bytes)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let state = self.0.process_new_packets().map_err(io::Error::other)?;
            let mut left = state.plaintext_bytes_to_read();
            to.reserve(left);
            while left > 0 {
                let mut reader = self.0.reader();
                let piece = reader.fill_buf()?;
                let length = piece.len();
                to.extend_from_slice(piece);
                reader.consume(length);
                left = left.saturating_sub(length.max(1));
            }
            // Nothing behind the peer's last word is looked at.
            if bytes.is_empty() || state.peer_has_closed() {
                return Ok(state.peer_has_closed());
            }
        }
    }

    /// What is to be sent: what the protocol itself has to say, then `bytes`.
    pub(super) fn encrypt(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        if !bytes.is_empty() {
            self.0.writer().write_all(bytes)?;
        }
        // A record has 16 KiB at most, and 22 bytes around them.
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 512 + 64);
        while self.0.wants_write() {
            self.0.write_tls(&mut out)?;
        }
        Ok(out)
    }

    /// Says that nothing more comes, in what is encrypted next.
    pub(super) fn close(&mut self) {
        self.0.send_close_notify();
    }
}

/// Why another server and this one do not speak TLS, and what to do, for who has the batch.
pub(super) fn advice(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    use rustls::Error;
    match error {
        Error::AlertReceived(Alert::CertificateRequired) => {
            "it wants a certificate of this server, which --peer gives it with cert= and key="
                .into()
        }
        Error::AlertReceived(
            alert @ (Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate),
        ) => format!(
            "it refuses this server's certificate ({alert:?}): --peer gives it another with cert= \
             and key="
        ),
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            format!("it does not speak TLS 1.3 as this server does ({error})")
        }
        Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "its certificate is of none of the authorities that --peer names for it with ca=".into()
        }
        Error::InvalidCertificate(
            bad @ (Bad::NotValidForName | Bad::NotValidForNameContext { .. }),
        ) => {
            format!("{bad}: --peer says with name= which one it has to have")
        }
        Error::InvalidCertificate(bad @ (Bad::Expired | Bad::ExpiredContext { .. })) => {
            format!("{bad}: it needs a new one")
        }
        Error::InvalidCertificate(bad) => format!("its certificate is no good: {bad}"),
        Error::InvalidMessage(_) => format!(
            "what it sends is not TLS ({error}): where it listens without, --peer names it without \
             ca="
        ),
        error => error.to_string(),
    }
}

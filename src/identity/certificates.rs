//! TLS: the server's certificate, whose certificates clients may show, and who they are then; and
//! the other direction, whose certificates other servers have to show.
//!
//! A client is the one DNS name of its certificate's subject alternative names, in lower case. The
//! subject itself is not looked at: it is free text, which authorities check least. A certificate
//! with several DNS names, with none or with a wildcard is nobody's.
//!
//! Only TLS 1.3. Sessions are not resumed, so that every connection shows its certificate anew:
//! connections live for as long as their clients do, and a handshake takes a millisecond.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedProtocolVersion};

use super::{Identity, Space};
use crate::config::AccessLimits;

/// The versions that are spoken.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The files that TLS needs, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, and those of the authorities between it and a root.
    pub certificate: PathBuf,
    /// The key of the first.
    pub key: PathBuf,
    /// The authorities whose certificates clients may show.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {cause}", path.display())]
    Authority { path: PathBuf, cause: rustls::Error },
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error(
        "{}: others than its owner and group may read or write it (mode {mode:03o}): chmod 600 {}",
        path.display(),
        path.display()
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}: it has no {what} in PEM", path.display())]
    Nothing { path: PathBuf, what: &'static str },
    #[error("{}: {cause}", path.display())]
    Pem { path: PathBuf, cause: rustls::pki_types::pem::Error },
    #[error("--tls-cert {} and --tls-key {}: {cause}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, cause: rustls::Error },
    #[error("the certificate {} and the key {}: {cause}", certificate.display(), key.display())]
    PairForPeer { certificate: PathBuf, key: PathBuf, cause: rustls::Error },
    #[error("--client-ca {}: {cause}", path.display())]
    Verifier { path: PathBuf, cause: rustls::server::VerifierBuilderError },
    #[error("TLS: {0}")]
    Versions(rustls::Error),
}

/// Reads the files. With `asks` clients need not show a certificate: something else may say who
/// they are.
pub(super) fn load(files: &TlsFiles, asks: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Versions)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = read_authorities(path)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = if asks { verifier.allow_unauthenticated() } else { verifier }.build();
            builder.with_client_cert_verifier(
                verifier.map_err(|cause| TlsError::Verifier { path: path.clone(), cause })?,
            )
        }
    };
    let key = read_key(&files.key)?;
    let built = builder.with_single_cert(read_certificates(&files.certificate)?, key);
    let mut config = built.map_err(|cause| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        cause,
    })?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// How to speak to a server that one of the authorities in a file has to vouch for. A server that
/// asks is shown the certificate in `own`, whose key is in the second file.
pub(super) fn load_for_peer(
    authorities: &Path,
    own: Option<(&Path, &Path)>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Versions)?
        .with_root_certificates(read_authorities(authorities)?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)
            .map_err(|cause| TlsError::PairForPeer {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                cause,
            })?,
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Who shows this certificate, whose authority was checked.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) if !name.contains('*') => {
            Some(Identity::of(Space::Certificate, &name.to_ascii_lowercase()))
        }
        _ => None,
    }
}

fn read_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|cause| TlsError::Authority { path: path.to_owned(), cause })?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let (text, _) = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates =
        certificates.map_err(|cause| TlsError::Pem { path: path.to_owned(), cause })?;
    if certificates.is_empty() {
        return Err(TlsError::Nothing { path: path.to_owned(), what: "certificate" });
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (text, mode) = read(path)?;
    // Some systems give such keys to a group of their own.
    if mode & 0o007 != 0 {
        return Err(TlsError::Mode { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|cause| match cause {
        rustls::pki_types::pem::Error::NoItemsFound => {
            TlsError::Nothing { path: path.to_owned(), what: "private key" }
        }
        cause => TlsError::Pem { path: path.to_owned(), cause },
    })
}

/// A file's bytes and mode.
fn read(path: &Path) -> Result<(Vec<u8>, u32), TlsError> {
    let refused = |cause| TlsError::Io { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(refused)?;
    let mode = file.metadata().map_err(refused)?.mode() & 0o777;
    let mut bytes = Vec::new();
    file.take(AccessLimits::PEM_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(refused)?;
    Ok((bytes, mode))
}

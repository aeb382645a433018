//! Who sends a request, and who may.
//!
//! Owns: [`Identity`], what sessions belong to; [`Access`], which tells identities from tokens,
//! certificates and addresses, and refuses everybody else; [`Rules`], where all of that is said.
//! Absent: sockets and sessions; files are read when the rules are applied, and at no other time.
//!
//! An address is not an identity: clients share one behind a router, change theirs from connection
//! to connection, and have another one on another way. So whoever trusts a network makes one tenant
//! of it; to keep two hosts of it apart, each is trusted on its own as well, and the narrowest
//! network that an address is in decides.
//!
//! Reading order: this file, `network`, `tokens`, `certificates`; `peers`, the other direction:
//! whom this server goes to, and as whom.
#![forbid(unsafe_code)]

mod certificates;
mod network;
mod peers;
mod tokens;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

pub use certificates::{TlsError, TlsFiles};
pub use network::{Network, NetworkError};
pub use peers::{Peer, PeerError, PeerRule, PeerTls, Peers};
use tokens::Tokens;
pub use tokens::{TokenError, TokenFileError};

/// What sessions belong to. Stands for a name: equal names, equal identities, also after the files
/// were read again. The default is nobody's name, for engines that nobody guards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity(u128);

impl Identity {
    /// The identity of `name`, in one of the name spaces that do not meet.
    fn of(space: Space, name: &dyn fmt::Display) -> Identity {
        let hash = blake3::hash(format!("{space:?} {name}").as_bytes());
        let (half, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Identity(u128::from_le_bytes(*half))
    }

    /// A number that no other identity has.
    #[must_use]
    pub fn number(self) -> u128 {
        self.0
    }
}

/// Where a name comes from: a token's name is another identity than a certificate's.
#[derive(Clone, Copy, Debug)]
enum Space {
    Certificate,
    Loopback,
    Network,
    Token,
}

/// How the server is to tell who may use it.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Names and tokens; see `tokens`.
    pub token_file: Option<PathBuf>,
    /// Where clients come from that need no token.
    pub trusted: Vec<Network>,
    /// TLS, with the certificates of clients or without.
    pub tls: Option<TlsFiles>,
}

/// Why rules cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
}

/// Why a server may not listen where it is told to.
#[derive(Debug, thiserror::Error)]
#[error(
    "--listen {address}: other machines reach this address, and nothing says who may use this \
     one. Give one of\n  \
     --token-file FILE  names and tokens, for clients that send `Authorization: Bearer TOKEN`\n  \
     --trust CIDR       a network whose clients need no token, as stock clients can send none\n  \
     --client-ca FILE   with --tls-cert and --tls-key: who signs the certificates of clients\n\
     or listen on 127.0.0.1 and let clients come through ssh -L"
)]
pub struct Unguarded {
    address: SocketAddr,
}

impl Rules {
    /// Whether there are files that may change while the server runs.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.token_file.is_some() || self.tls.is_some()
    }

    /// Whether clients are known by their certificates.
    fn has_client_ca(&self) -> bool {
        self.tls.as_ref().is_some_and(|files| files.client_ca.is_some())
    }

    /// Whether anything says who may come from other machines.
    ///
    /// # Errors
    ///
    /// If one of the addresses is not a loopback one, and nothing does.
    pub fn check(&self, listen: &[SocketAddr]) -> Result<(), Unguarded> {
        if self.token_file.is_some() || !self.trusted.is_empty() || self.has_client_ca() {
            return Ok(());
        }
        match listen.iter().find(|address| !is_loopback(address.ip())) {
            Some(address) => Err(Unguarded { address: *address }),
            None => Ok(()),
        }
    }
}

/// Why a request is refused, in words for whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this server wants a token: send `Authorization: Bearer TOKEN`\n{HOW_TO_CONNECT}")]
    TokenMissing,
    #[error("this token is not known here, or not any more: ask for another\n{HOW_TO_CONNECT}")]
    TokenUnknown,
    #[error("this server does not trust the network that you come from\n{HOW_TO_CONNECT}")]
    Untrusted,
}

/// For people at stock clients, which show what comes with a refusal.
const HOW_TO_CONNECT: &str = "a stock tinygrad client (REMOTE=1) can send no token. It can use a \
    server that trusts its network (outboard --trust CIDR), or one that trusts its own loopback \
    (outboard --trust 127.0.0.0/8) through a tunnel: ssh -N -L 6667:127.0.0.1:6667 SERVER, and \
    HOST=127.0.0.1:6667 for the client";

/// Tells who sends a request.
#[derive(Debug)]
pub struct Access {
    tokens: Option<Tokens>,
    /// The narrowest first.
    trusted: Vec<(Network, Identity)>,
    /// Clients of this machine, where nothing else says who may come.
    loopback: Option<Identity>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Default for Access {
    /// Loopback alone may come.
    fn default() -> Access {
        Access::new(None, &[], false)
    }
}

impl Access {
    /// Applies rules: reads the files that they name.
    ///
    /// # Errors
    ///
    /// If a file cannot be used; with the line, where there is one, and the remedy.
    pub fn load(rules: &Rules) -> Result<Access, AccessError> {
        let tokens = rules.token_file.as_deref().map(Tokens::load).transpose()?;
        let others_know = tokens.is_some() || !rules.trusted.is_empty();
        let tls = rules.tls.as_ref().map(|files| certificates::load(files, others_know));
        let access = Access::new(tokens, &rules.trusted, rules.has_client_ca());
        Ok(Access { tls: tls.transpose()?, ..access })
    }

    fn new(tokens: Option<Tokens>, trusted: &[Network], has_client_ca: bool) -> Access {
        let mut trusted: Vec<_> =
            trusted.iter().map(|net| (*net, Identity::of(Space::Network, net))).collect();
        trusted.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_bits()));
        let is_open = tokens.is_none() && !has_client_ca;
        let loopback = is_open.then(|| Identity::of(Space::Loopback, &""));
        Access { tokens, trusted, loopback, tls: None }
    }

    /// How TLS is spoken, where it is.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<rustls::ServerConfig>> {
        self.tls.as_ref()
    }

    /// Who a client is by the certificate that it has shown, and that TLS has checked.
    #[must_use]
    pub fn of_certificate(
        &self,
        certificate: &rustls::pki_types::CertificateDer<'_>,
    ) -> Option<Identity> {
        certificates::identity_of(certificate)
    }

    /// Whether there may be more than one identity, so that one has to leave room for others.
    #[must_use]
    pub fn may_be_several(&self) -> bool {
        self.loopback.is_none() || !self.trusted.is_empty()
    }

    /// Whether an identity is another server's, which works for clients of its own and names their
    /// sessions.
    #[must_use]
    pub fn is_peer(&self, identity: Identity) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.is_peer(identity))
    }

    /// How many tokens are known.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.tokens.as_ref().map_or(0, Tokens::len)
    }

    /// Who a client is by its address alone.
    #[must_use]
    pub fn of_address(&self, address: IpAddr) -> Option<Identity> {
        let address = address.to_canonical();
        let trusted = self.trusted.iter().find(|(network, _)| network.contains(address));
        match trusted {
            Some((_, identity)) => Some(*identity),
            None => self.loopback.filter(|_| address.is_loopback()),
        }
    }

    /// Who sends a request: a token decides where tokens are known, else what is `known` of the
    /// connection. Takes the same time for all tokens of one length and allocates nothing.
    ///
    /// # Errors
    ///
    /// If nobody who may.
    pub fn of_request(
        &self,
        authorization: Option<&[u8]>,
        known: Option<Identity>,
    ) -> Result<Identity, Denied> {
        match (&self.tokens, authorization) {
            (Some(tokens), Some(authorization)) => {
                let identity = bearer(authorization).and_then(|token| tokens.find(token));
                identity.ok_or(Denied::TokenUnknown)
            }
            (Some(_), None) => known.ok_or(Denied::TokenMissing),
            (None, _) => known.ok_or(Denied::Untrusted),
        }
    }
}

/// The token of `Bearer TOKEN` (RFC 6750 section 2.1); the scheme is in any case.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii_start())
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdefghijkl";

    fn access(tokens: Option<&str>, trusted: &[&str]) -> Access {
        let tokens = tokens.map(|text| Tokens::parse(text).unwrap());
        let trusted: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        Access::new(tokens, &trusted, false)
    }

    fn at(access: &Access, address: &str) -> Option<Identity> {
        access.of_address(address.parse().unwrap())
    }

    #[test]
    fn loopback_is_trusted_only_where_no_tokens_are() {
        let open = access(None, &["10.0.0.0/8"]);
        assert!(at(&open, "127.0.0.1").is_some());
        assert_eq!(at(&open, "127.9.9.9"), at(&open, "::1"));
        assert_eq!(at(&open, "::ffff:127.0.0.1"), at(&open, "::1"));
        assert_eq!(at(&open, "192.0.2.1"), None);
        let closed = access(Some(&format!("a {TOKEN}")), &[]);
        assert_eq!(at(&closed, "127.0.0.1"), None);
        assert_eq!(at(&closed, "::1"), None);
        let told = access(Some(&format!("a {TOKEN}")), &["127.0.0.0/8"]);
        assert!(at(&told, "127.0.0.1").is_some());
        assert_eq!(at(&told, "::1"), None);
    }

    #[test]
    fn narrowest_trusted_network_is_the_identity() {
        let access = access(None, &["10.0.0.0/8", "10.1.2.3", "10.1.0.0/16", "2001:db8::/32"]);
        assert_eq!(at(&access, "10.9.9.9"), at(&access, "10.200.0.1"));
        assert_eq!(at(&access, "10.9.9.9"), at(&access, "::ffff:10.9.9.8"));
        assert_ne!(at(&access, "10.1.9.9"), at(&access, "10.2.9.9"));
        assert_ne!(at(&access, "10.1.2.3"), at(&access, "10.1.2.4"));
        assert!(at(&access, "2001:db8:1::7").is_some());
        assert_eq!(at(&access, "2001:db9::7"), None);
        assert_eq!(at(&access, "11.0.0.0"), None);
    }

    #[test]
    fn token_decides_before_the_address() {
        let access = access(Some(&format!("a {TOKEN}")), &["127.0.0.0/8"]);
        let trusted = at(&access, "127.0.0.1");
        let right = format!("Bearer {TOKEN}");
        let by_token = access.of_request(Some(right.as_bytes()), trusted).unwrap();
        assert_eq!(access.of_request(None, trusted), Ok(trusted.unwrap()));
        assert_ne!(Some(by_token), trusted);
        assert_eq!(access.of_request(Some(right.as_bytes()), None), Ok(by_token));
        assert_eq!(access.of_request(None, None), Err(Denied::TokenMissing));
        for wrong in ["", "Bearer", "Bearer ", "Basic x", TOKEN, "Bearer 0123456789abcdefghijk"] {
            let denied = Err(Denied::TokenUnknown);
            assert_eq!(access.of_request(Some(wrong.as_bytes()), trusted), denied, "{wrong:?}");
        }
        let spelt = format!("bEARER   {TOKEN}");
        assert_eq!(access.of_request(Some(spelt.as_bytes()), None), Ok(by_token));
    }

    #[test]
    fn server_without_tokens_asks_for_none() {
        let access = access(None, &[]);
        assert_eq!(access.of_request(Some(b"Bearer x"), None), Err(Denied::Untrusted));
        let local = at(&access, "::1");
        assert_eq!(access.of_request(Some(b"Bearer x"), local), Ok(local.unwrap()));
    }

    #[test]
    fn address_of_other_machines_needs_a_guard() {
        let listen = |text: &str| [text.parse::<SocketAddr>().unwrap()];
        let open = Rules::default();
        for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(open.check(&listen(address)).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let words = open.check(&listen(address)).unwrap_err().to_string();
            assert!(words.contains(address) && words.contains("--token-file"), "{words}");
        }
        let trusted = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(Rules { trusted, ..Rules::default() }.check(&listen("0.0.0.0:1")).is_ok());
    }
}

//! Other servers: which ones this one connects to, and as whom.
//!
//! Owns: [`Peers`], the addresses that it connects to and no others; the tokens that it sends
//! there. Absent: connections; what other servers may do here, which `tokens` says.
//!
//! A session's key names the other server as the client reaches it, and the client decides what it
//! says. So a peer is found by that very spelling; what the name stands for was looked up at the
//! start, and nothing that a client sends is ever looked up.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::tokens::{TokenFileError, load_token};

/// The other servers that this one connects to.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    known: Vec<Peer>,
    /// Whether every loopback address is one.
    has_loopback: bool,
}

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `HOST:PORT`, as clients spell it.
    pub host: String,
    /// Where it is; tried in this order.
    pub addresses: Vec<SocketAddr>,
    /// What this server says of itself there.
    pub token: Option<String>,
}

/// `HOST:PORT[,token=FILE]`, as it is given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRule {
    host: String,
    token_file: Option<PathBuf>,
}

/// Why a rule is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("--peer {host}: its address cannot be found: {cause}")]
    Address { host: String, cause: std::io::Error },
    #[error("a peer is HOST:PORT or HOST:PORT,token=FILE")]
    Form,
    #[error("--peer {host}: {cause}")]
    Token { host: String, cause: TokenFileError },
}

impl FromStr for PeerRule {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<PeerRule, PeerError> {
        let (host, option) = match text.split_once(',') {
            Some((host, option)) => (host, Some(option)),
            None => (text, None),
        };
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        let (machine, port) = host.rsplit_once(':').ok_or(PeerError::Form)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if machine.is_empty() || !machine.bytes().all(name) || !is_port {
            return Err(PeerError::Form);
        }
        let token_file = match option.map(|option| option.strip_prefix("token=")) {
            None => None,
            Some(Some(file)) if !file.is_empty() => Some(PathBuf::from(file)),
            Some(_) => return Err(PeerError::Form),
        };
        Ok(PeerRule { host: host.to_owned(), token_file })
    }
}

impl PeerRule {
    /// Looks the name up and reads the token.
    fn load(&self) -> Result<Peer, PeerError> {
        let host = self.host.clone();
        let addresses = match host.to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(cause) => return Err(PeerError::Address { host, cause }),
        };
        let token = match self.token_file.as_deref().map(|path: &Path| load_token(path)) {
            None => None,
            Some(Ok(token)) => Some(token),
            Some(Err(cause)) => return Err(PeerError::Token { host, cause }),
        };
        Ok(Peer { host, addresses, token })
    }
}

impl Peers {
    /// Every server of this machine, and no other.
    #[must_use]
    pub fn of_loopback() -> Peers {
        Peers { known: Vec::new(), has_loopback: true }
    }

    /// The peers that the rules name. Where there are no rules, they are the servers of this
    /// machine if only clients of this machine can ask for them, which they can reach by themselves
    /// too.
    ///
    /// # Errors
    ///
    /// If a name has no address, or a token cannot be used.
    pub fn load(rules: &[PeerRule], listen: &[SocketAddr]) -> Result<Peers, PeerError> {
        let is_local = listen.iter().all(|address| address.ip().to_canonical().is_loopback());
        let known: Vec<Peer> = rules.iter().map(PeerRule::load).collect::<Result<_, _>>()?;
        Ok(Peers { has_loopback: known.is_empty() && is_local, known })
    }

    /// The server that clients call so, if this one connects to it.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<Peer> {
        if let Some(known) = self.known.iter().find(|peer| peer.host.eq_ignore_ascii_case(host)) {
            return Some(known.clone());
        }
        let address: SocketAddr = host.parse().ok()?;
        let is_near = address.ip().to_canonical().is_loopback() && address.port() != 0;
        (self.has_loopback && is_near).then(|| Peer {
            host: address.to_string(),
            addresses: vec![address],
            token: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(rules: &[&str], listen: &str) -> Peers {
        let rules: Vec<PeerRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Peers::load(&rules, &[listen.parse().unwrap()]).unwrap()
    }

    #[test]
    fn loopback_is_a_peer_only_where_nothing_else_is_said_and_nobody_else_can_ask() {
        let alone = peers(&[], "127.0.0.1:6667");
        for host in ["127.0.0.1:1", "[::1]:2", "127.9.9.9:3"] {
            assert!(alone.find(host).is_some(), "{host}");
        }
        for host in ["10.0.0.1:1", "localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:1/x", ""] {
            assert_eq!(alone.find(host), None, "{host}");
        }
        assert_eq!(peers(&[], "0.0.0.0:6667").find("127.0.0.1:1"), None);
        assert_eq!(peers(&["10.0.0.1:6667"], "127.0.0.1:6667").find("127.0.0.1:1"), None);
    }

    #[test]
    fn peer_is_found_by_the_spelling_of_its_rule() {
        let known = peers(&["10.0.0.1:6667", "localhost:6668"], "0.0.0.0:6667");
        let found = known.find("10.0.0.1:6667").unwrap();
        assert_eq!(found.addresses, ["10.0.0.1:6667".parse().unwrap()]);
        assert!(known.find("LocalHost:6668").unwrap().addresses[0].ip().is_loopback());
        for host in ["10.0.0.1:6668", "10.0.0.2:6667", "127.0.0.1:6668"] {
            assert_eq!(known.find(host), None, "{host}");
        }
    }

    #[test]
    fn rule_that_is_none_is_refused() {
        for text in ["", "host", "host:", "host:0", "host:65536", ":1", "h:1,", "h:1,tokens=x"] {
            assert!(text.parse::<PeerRule>().is_err(), "{text}");
        }
        for text in ["ho st:1", "h\r\n:1", "h/x:1", "h:1,token="] {
            assert!(text.parse::<PeerRule>().is_err(), "{text}");
        }
    }
}

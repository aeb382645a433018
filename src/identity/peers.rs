//! Other servers: which ones this one connects to, as whom, and how it knows them again.
//!
//! Owns: [`Peers`], the addresses that it connects to and no others; the tokens that it sends
//! there, and what TLS needs. Absent: connections; what other servers may do here, which `tokens`
//! says.
//!
//! A session's key names the other server as the client reaches it, and the client decides what it
//! says. So a peer is found by that very spelling; what the name stands for was looked up at the
//! start, and nothing that a client sends is ever looked up.
//!
//! With `ca=` a peer is spoken to by TLS and in no other way. There are no authorities that are
//! trusted unless told otherwise: whoever any of a system's could certify is no peer.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::certificates::{TlsError, TlsFiles, load_for_peer};
use super::tokens::{TokenFileError, load_token};

/// The other servers that this one connects to.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    known: Vec<(PeerRule, Peer)>,
    /// Whether every loopback address is one.
    has_loopback: bool,
    /// The server's own certificate.
    own: Option<TlsFiles>,
}

/// Another server.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `HOST:PORT`, as clients spell it.
    pub host: String,
    /// Where it is; tried in this order.
    pub addresses: Vec<SocketAddr>,
    /// What this server says of itself there.
    pub token: Option<String>,
    /// How TLS is spoken there, where it is.
    pub tls: Option<PeerTls>,
}

/// TLS to another server.
#[derive(Clone, Debug)]
pub struct PeerTls {
    pub config: Arc<ClientConfig>,
    /// Whom its certificate has to be for.
    pub name: ServerName<'static>,
}

/// `HOST:PORT[,OPTION=VALUE]...`, as it is given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRule {
    host: String,
    token_file: Option<PathBuf>,
    tls: Option<TlsRule>,
}

/// What a rule says of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TlsRule {
    authorities: PathBuf,
    name: ServerName<'static>,
    /// What this server shows there: a certificate and its key.
    own: Option<(PathBuf, PathBuf)>,
}

/// Why a rule is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("--peer {host}: its address cannot be found: {cause}")]
    Address { host: String, cause: std::io::Error },
    #[error(
        "a peer is HOST:PORT, and then perhaps ,token=FILE and ,ca=FILE; with ca, perhaps \
         ,name=NAME and ,cert=FILE,key=FILE"
    )]
    Form,
    #[error("{name} is no name of a server's certificate")]
    Name { name: String },
    #[error("cert= and key= belong together")]
    Pair,
    #[error("name=, cert= and key= are for TLS, which ca=FILE asks for")]
    Plain,
    #[error("--peer {host}: {cause}")]
    Tls { host: String, cause: Box<TlsError> },
    #[error("--peer {host}: {cause}")]
    Token { host: String, cause: TokenFileError },
}

impl FromStr for PeerRule {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<PeerRule, PeerError> {
        let mut words = text.split(',');
        let host = words.next().unwrap_or_default();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        let (machine, port) = host.rsplit_once(':').ok_or(PeerError::Form)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if machine.is_empty() || !machine.bytes().all(is_name) || !is_port {
            return Err(PeerError::Form);
        }
        let [mut token, mut ca, mut name, mut cert, mut key] = [None; 5];
        for word in words {
            let (option, value) = word.split_once('=').ok_or(PeerError::Form)?;
            let place = match option {
                "token" => &mut token,
                "ca" => &mut ca,
                "name" => &mut name,
                "cert" => &mut cert,
                "key" => &mut key,
                _ => return Err(PeerError::Form),
            };
            if value.is_empty() || place.replace(value).is_some() {
                return Err(PeerError::Form);
            }
        }
        let own = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => return Err(PeerError::Pair),
        };
        let tls = match ca {
            None if name.is_some() || own.is_some() => return Err(PeerError::Plain),
            None => None,
            Some(ca) => {
                let name = name.unwrap_or(machine.trim_matches(['[', ']'])).to_owned();
                let known = ServerName::try_from(name.clone());
                let name = known.map_err(|_| PeerError::Name { name })?;
                Some(TlsRule { authorities: ca.into(), name, own })
            }
        };
        Ok(PeerRule { host: host.to_owned(), token_file: token.map(PathBuf::from), tls })
    }
}

impl PeerRule {
    fn look_up(&self) -> Result<Vec<SocketAddr>, PeerError> {
        let addresses = self.host.to_socket_addrs();
        let failed = |cause| PeerError::Address { host: self.host.clone(), cause };
        Ok(addresses.map_err(failed)?.collect())
    }

    /// Reads the files. `own` is the server's own certificate, which it shows there if nothing else
    /// says who it is.
    fn read(&self, addresses: Vec<SocketAddr>, own: Option<&TlsFiles>) -> Result<Peer, PeerError> {
        let host = self.host.clone();
        let token = match self.token_file.as_deref().map(|path: &Path| load_token(path)) {
            None => None,
            Some(Ok(token)) => Some(token),
            Some(Err(cause)) => return Err(PeerError::Token { host, cause }),
        };
        let Some(rule) = &self.tls else {
            return Ok(Peer { host, addresses, token, tls: None });
        };
        let pair = match (&rule.own, own) {
            (Some((certificate, key)), _) => Some((&**certificate, &**key)),
            (None, Some(own)) if token.is_none() => Some((&*own.certificate, &*own.key)),
            _ => None,
        };
        match load_for_peer(&rule.authorities, pair) {
            Ok(config) => {
                let tls = Some(PeerTls { config, name: rule.name.clone() });
                Ok(Peer { host, addresses, token, tls })
            }
            Err(cause) => Err(PeerError::Tls { host, cause: Box::new(cause) }),
        }
    }
}

impl Peers {
    /// Every server of this machine, and no other.
    #[must_use]
    pub fn of_loopback() -> Peers {
        Peers { has_loopback: true, ..Peers::default() }
    }

    /// The peers that the rules name. Where there are no rules, they are the servers of this
    /// machine if only clients of this machine can ask for them, which they can reach by themselves
    /// too. `own` is the server's own certificate.
    ///
    /// # Errors
    ///
    /// If a name has no address, or a file cannot be used.
    pub fn load(
        rules: &[PeerRule],
        listen: &[SocketAddr],
        own: Option<&TlsFiles>,
    ) -> Result<Peers, PeerError> {
        let is_local = listen.iter().all(|address| address.ip().to_canonical().is_loopback());
        let known: Result<_, _> =
            rules.iter().map(|rule| Ok((rule.clone(), rule.read(rule.look_up()?, own)?))).collect();
        Ok(Peers { has_loopback: rules.is_empty() && is_local, known: known?, own: own.cloned() })
    }

    /// The same peers at the same addresses, with what their files say now.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn read_again(&self) -> Result<Peers, PeerError> {
        let again = |(rule, peer): &(PeerRule, Peer)| {
            Ok((rule.clone(), rule.read(peer.addresses.clone(), self.own.as_ref())?))
        };
        let known = self.known.iter().map(again).collect::<Result<_, _>>()?;
        Ok(Peers { known, ..self.clone() })
    }

    /// Whether there are files that may change while the server runs.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.known.iter().any(|(rule, _)| rule.token_file.is_some() || rule.tls.is_some())
    }

    /// The peers on other machines that get a token which can be read on the way.
    pub fn with_open_tokens(&self) -> impl Iterator<Item = &str> {
        let is_near = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        let known = self.known.iter().map(|(_, peer)| peer);
        let open = known.filter(move |peer| {
            peer.token.is_some() && peer.tls.is_none() && !peer.addresses.iter().all(is_near)
        });
        open.map(|peer| peer.host.as_str())
    }

    /// The server that clients call so, if this one connects to it.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<Peer> {
        let mut known = self.known.iter().map(|(_, peer)| peer);
        if let Some(known) = known.find(|peer| peer.host.eq_ignore_ascii_case(host)) {
            return Some(known.clone());
        }
        let address: SocketAddr = host.parse().ok()?;
        let is_near = address.ip().to_canonical().is_loopback() && address.port() != 0;
        (self.has_loopback && is_near).then(|| Peer {
            host: address.to_string(),
            addresses: vec![address],
            token: None,
            tls: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(rules: &[&str], listen: &str) -> Peers {
        let rules: Vec<PeerRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Peers::load(&rules, &[listen.parse().unwrap()], None).unwrap()
    }

    #[test]
    fn loopback_is_a_peer_only_where_nothing_else_is_said_and_nobody_else_can_ask() {
        let alone = peers(&[], "127.0.0.1:6667");
        for host in ["127.0.0.1:1", "[::1]:2", "127.9.9.9:3"] {
            assert!(alone.find(host).is_some(), "{host}");
        }
        for host in ["10.0.0.1:1", "localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:1/x", ""] {
            assert!(alone.find(host).is_none(), "{host}");
        }
        assert!(peers(&[], "0.0.0.0:6667").find("127.0.0.1:1").is_none());
        assert!(peers(&["10.0.0.1:6667"], "127.0.0.1:6667").find("127.0.0.1:1").is_none());
    }

    #[test]
    fn peer_is_found_by_the_spelling_of_its_rule() {
        let known = peers(&["10.0.0.1:6667", "localhost:6668"], "0.0.0.0:6667");
        let found = known.find("10.0.0.1:6667").unwrap();
        assert_eq!(found.addresses, ["10.0.0.1:6667".parse().unwrap()]);
        assert!(known.find("LocalHost:6668").unwrap().addresses[0].ip().is_loopback());
        for host in ["10.0.0.1:6668", "10.0.0.2:6667", "127.0.0.1:6668"] {
            assert!(known.find(host).is_none(), "{host}");
        }
    }

    #[test]
    fn rule_that_is_none_is_refused() {
        for text in ["", "host", "host:", "host:0", "host:65536", ":1", "h:1,", "h:1,tokens=x"] {
            assert!(text.parse::<PeerRule>().is_err(), "{text}");
        }
        for text in ["ho st:1", "h\r\n:1", "h/x:1", "h:1,token=", "h:1,tls", "h:1,ca=a,ca=b"] {
            assert!(text.parse::<PeerRule>().is_err(), "{text}");
        }
        for (text, why) in [
            ("h:1,ca=a,cert=b", "belong together"),
            ("h:1,name=b", "ca=FILE"),
            ("h:1,cert=b,key=c", "ca=FILE"),
            ("h:1,ca=a,name=a b", "no name"),
        ] {
            let error = text.parse::<PeerRule>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn certificate_of_a_peer_is_for_its_host_unless_another_name_is_given() {
        for (text, name) in [
            ("far.lab:1,ca=a", "far.lab"),
            ("10.0.0.2:1,token=t,ca=a", "10.0.0.2"),
            ("[2001:db8::2]:1,ca=a", "2001:db8::2"),
            ("10.0.0.2:1,name=far.lab,ca=a,key=k,cert=c", "far.lab"),
        ] {
            let rule: PeerRule = text.parse().unwrap();
            assert_eq!(rule.tls.unwrap().name.to_str(), name, "{text}");
        }
        assert_eq!("far.lab:1,token=t".parse::<PeerRule>().unwrap().tls, None);
    }
}

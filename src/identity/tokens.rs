//! The file of tokens: `NAME TOKEN`, one identity on each line, `#` comments. A third word, `peer`,
//! says that it is another server.
//!
//! Tokens are not kept: what is kept of each is its BLAKE3 under a key that is drawn when the file
//! is read. So the time that a look-up takes says nothing about how much of a token was right, and
//! the server's memory holds none to be read. A comparison in constant time of the tokens
//! themselves would take a look at each of them, and tell their lengths.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Identity, Space};
use crate::config::AccessLimits;

/// Tokens, and whose they are.
#[derive(Debug)]
pub(super) struct Tokens {
    key: [u8; 32],
    known: HashMap<blake3::Hash, Identity>,
    peers: HashSet<Identity>,
}

/// Why a file of tokens is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{}:{line}: {cause}", path.display())]
    Line { path: PathBuf, line: usize, cause: TokenError },
    #[error(
        "{}: others than its owner may read or write it (mode {mode:03o}): chmod 600 {}",
        path.display(),
        path.display()
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}: it has no tokens: add a line NAME TOKEN", path.display())]
    NoTokens { path: PathBuf },
    #[error("{}: it is no file of at most {bytes_max} bytes", path.display())]
    NotAFile { path: PathBuf, bytes_max: u64 },
}

/// What is wrong with a line. Says no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "a token may have letters, digits and -._~+/= only: make one with openssl rand -hex 32"
    )]
    Characters,
    #[error("a line is NAME TOKEN, with a space between the two, or NAME TOKEN peer")]
    Form,
    #[error("the name {name:?} is that of line {first}: give each identity one line")]
    NameRepeated { name: String, first: usize },
    #[error("a name has 1 to {bytes_max} letters, digits and -._@")]
    Name { bytes_max: usize },
    #[error("a token has at most {bytes_max} characters")]
    TooLong { bytes_max: usize },
    #[error(
        "a token needs at least {bytes_min} characters, so that it cannot be guessed: make one \
         with openssl rand -hex 32"
    )]
    TooShort { bytes_min: usize },
    #[error("the token is that of line {first}: make another with openssl rand -hex 32")]
    TokenRepeated { first: usize },
}

impl Tokens {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Tokens, TokenFileError> {
        let tokens = Tokens::parse(&read(path)?).map_err(|(line, cause)| TokenFileError::Line {
            path: path.to_owned(),
            line,
            cause,
        })?;
        if tokens.known.is_empty() {
            return Err(TokenFileError::NoTokens { path: path.to_owned() });
        }
        Ok(tokens)
    }

    /// Reads lines; an error comes with the number of its line.
    pub(super) fn parse(text: &str) -> Result<Tokens, (usize, TokenError)> {
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
            .expect("the kernel has random bytes for whoever waits");
        let mut tokens = Tokens { key, known: HashMap::new(), peers: HashSet::new() };
        let (mut names, mut lines) = (HashMap::new(), HashMap::new());
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, token, is_peer) = read_line(line).map_err(|cause| (number, cause))?;
            if let Some(first) = names.insert(name, number) {
                let name = name.to_owned();
                return Err((number, TokenError::NameRepeated { name, first }));
            }
            let hash = tokens.hash(token.as_bytes());
            if let Some(first) = lines.insert(hash, number) {
                return Err((number, TokenError::TokenRepeated { first }));
            }
            let identity = Identity::of(Space::Token, &name);
            tokens.known.insert(hash, identity);
            if is_peer {
                tokens.peers.insert(identity);
            }
        }
        Ok(tokens)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn is_peer(&self, identity: Identity) -> bool {
        self.peers.contains(&identity)
    }

    /// Whose token this is.
    pub(super) fn find(&self, token: &[u8]) -> Option<Identity> {
        self.known.get(&self.hash(token)).copied()
    }

    fn hash(&self, token: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.key, token)
    }
}

/// The text of a file that nobody but its owner can read.
fn read(path: &Path) -> Result<String, TokenFileError> {
    let refused = |cause| TokenFileError::Io { path: path.to_owned(), cause };
    let file = File::open(path).map_err(refused)?;
    // Of the file that is open, so that another cannot take its place in between.
    let metadata = file.metadata().map_err(refused)?;
    let bytes_max = AccessLimits::TOKEN_FILE_BYTES_MAX;
    if !metadata.is_file() || metadata.len() > bytes_max {
        return Err(TokenFileError::NotAFile { path: path.to_owned(), bytes_max });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TokenFileError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).map_err(refused)?;
    Ok(text)
}

/// The one token that a file holds, of a server that shows it to others.
pub(super) fn load_token(path: &Path) -> Result<String, TokenFileError> {
    let text = read(path)?;
    let token = text.trim();
    match check_token(token) {
        Ok(()) => Ok(token.to_owned()),
        Err(cause) => Err(TokenFileError::Line { path: path.to_owned(), line: 1, cause }),
    }
}

/// The name and the token of a line, and whether they are another server's.
fn read_line(line: &str) -> Result<(&str, &str, bool), TokenError> {
    let mut words = line.split_ascii_whitespace();
    let (name, token, kind) = (words.next(), words.next(), words.next());
    let (Some(name), Some(token), None | Some("peer"), None) = (name, token, kind, words.next())
    else {
        return Err(TokenError::Form);
    };
    let bytes_max = AccessLimits::NAME_BYTES_MAX;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
    if name.len() > bytes_max || !name.bytes().all(is_name) {
        return Err(TokenError::Name { bytes_max });
    }
    check_token(token)?;
    Ok((name, token, kind.is_some()))
}

fn check_token(token: &str) -> Result<(), TokenError> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !token.bytes().all(is_token) {
        return Err(TokenError::Characters);
    }
    let (bytes_min, bytes_max) = (AccessLimits::TOKEN_BYTES_MIN, AccessLimits::TOKEN_BYTES_MAX);
    match token.len() {
        bytes if bytes < bytes_min => Err(TokenError::TooShort { bytes_min }),
        bytes if bytes > bytes_max => Err(TokenError::TooLong { bytes_max }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn file_of_tokens_names_each_identity() {
        let text = format!("# the lab\n\n  ann\t{A}\r\nbob@lab {B}\n");
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens.find(A.as_bytes()), Some(Identity::of(Space::Token, &"ann")));
        assert_eq!(tokens.find(B.as_bytes()), Some(Identity::of(Space::Token, &"bob@lab")));
        for wrong in ["", &A[1..], &format!("{A}a"), "ann"] {
            assert_eq!(tokens.find(wrong.as_bytes()), None, "{wrong}");
        }
        // A new token for the same name is the same identity.
        let renewed = Tokens::parse(&format!("ann {B}")).unwrap();
        assert_eq!(renewed.find(B.as_bytes()), tokens.find(A.as_bytes()));
    }

    #[test]
    fn bad_line_is_refused_with_its_number_and_the_remedy() {
        let name = |length| "n".repeat(length);
        for (text, line, words) in [
            (format!("ann {A}\nann {B}"), 2, "is that of line 1"),
            (format!("ann {A}\n#\nbob {A}"), 3, "the token is that of line 1"),
            ("ann short".to_owned(), 1, "openssl rand"),
            (format!("ann {}", &A[..21]), 1, "at least 22"),
            (format!("ann {}", "a".repeat(513)), 1, "at most 512"),
            ("\n\nann".to_owned(), 3, "NAME TOKEN"),
            (format!("ann {A} # comment"), 1, "NAME TOKEN"),
            (format!("an,n {A}"), 1, "a name has 1 to 64"),
            (format!("{} {A}", name(65)), 1, "a name has 1 to 64"),
            (format!("ann {A}\u{e9}"), 1, "letters, digits"),
        ] {
            let (number, error) = Tokens::parse(&text).unwrap_err();
            let error = error.to_string();
            assert_eq!(number, line, "{text}: {error}");
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains(A) && !error.contains("short"), "{error}");
        }
    }
}

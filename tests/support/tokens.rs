//! A file of tokens, and clients that send them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::{Server, ServerBuilder, scratch_file};

pub(crate) const ANN: &str = "ann-0123456789abcdefghijklmnop";
pub(crate) const BOB: &str = "bob-0123456789abcdefghijklmnop";

/// A file of tokens that goes when it is dropped.
pub(crate) struct TokenFile(PathBuf);

impl TokenFile {
    pub(crate) fn new(text: &str) -> TokenFile {
        let file = TokenFile(scratch_file("tokens"));
        file.write(text);
        file.set_mode(0o600);
        file
    }

    pub(crate) fn of_both() -> TokenFile {
        TokenFile::new(&format!("# the lab\nann {ANN}\nbob {BOB}\n"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("the scratch folder can be written");
    }

    pub(crate) fn set_mode(&self, mode: u32) {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&self.0, permissions).expect("it is this process's own");
    }

    pub(crate) fn server(&self) -> ServerBuilder {
        Server::builder().arg("--token-file").arg(&self.0.to_string_lossy())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // Best effort: the folder belongs to the build and goes with it.
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) fn ann(server: &Server, nonce: &str) -> Client {
    Client::connect(server.address(), nonce).with_token(ANN)
}

pub(crate) fn bob(server: &Server, nonce: &str) -> Client {
    Client::connect(server.address(), nonce).with_token(BOB)
}

//! Any bytes as the value of the header `Authorization`: no panic, and whoever is let in has given
//! a token of the file, byte for byte, as a second, simpler look can tell.
//!
//! Input: a byte that chooses the server and what is known of the connection, the rest the value.
#![no_main]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outboard::identity::{Access, Denied, Identity, Rules};

/// The second begins as the first does, and the last is as long.
const TOKENS: [&str; 3] =
    ["0123456789abcdefghijkl", "0123456789abcdefghijklm", "ABCDEFGHIJKLMNOPQRS.-~"];

static OPEN: LazyLock<Access> = LazyLock::new(Access::default);

static GUARDED: LazyLock<Access> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("outboard-tokens-{}", std::process::id()));
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let text = format!("ann {}\nbob {}\neve {} peer\n", TOKENS[0], TOKENS[1], TOKENS[2]);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the folder can be written");
    let access = Access::load(&Rules { token_file: Some(path.clone()), ..Rules::default() });
    fs::remove_file(path).expect("the file is there");
    access.expect("the file is right")
});

fn of_token(token: &str) -> Identity {
    let value = format!("Bearer {token}");
    GUARDED.of_request(Some(value.as_bytes()), None).expect("it is in the file")
}

/// The token that a value gives: at its end, behind the scheme and nothing but space.
fn given(value: &[u8]) -> Option<&'static str> {
    let is_scheme = |before: &[u8]| {
        let before = before.to_ascii_lowercase();
        before.starts_with(b"bearer ") && before[6..].iter().all(u8::is_ascii_whitespace)
    };
    TOKENS.into_iter().find(|token| value.strip_suffix(token.as_bytes()).is_some_and(is_scheme))
}

fuzz_target!(|input: &[u8]| {
    let [choice, value @ ..] = input else { return };
    let known = (choice & 1 == 1).then(|| of_token(TOKENS[2]));
    let value = (choice & 4 == 0).then_some(value);
    if choice & 2 == 2 {
        assert_eq!(OPEN.of_request(value, known), known.ok_or(Denied::Untrusted));
        return;
    }
    let expected = match value {
        None => known.ok_or(Denied::TokenMissing),
        Some(value) => given(value).map(of_token).ok_or(Denied::TokenUnknown),
    };
    let found = GUARDED.of_request(value, known);
    assert_eq!(found, expected);
    assert_eq!(
        found.is_ok_and(|identity| GUARDED.is_peer(identity)),
        found == Ok(of_token(TOKENS[2]))
    );
});

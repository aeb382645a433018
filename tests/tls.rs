//! TLS, with a client of the same library and certificates that lie in `tests/tls`.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use outboard::identity::{Access, Rules, TlsFiles};
use support::client::{Client, body_of, request_of, request_with};
use support::holdings::Holdings;
use support::nodes::TwoNodes;
use support::tls::{Private, batch, connect, exchange, file, receive};
use support::wait::wait_until;
use support::{Server, ServerBuilder};

const TOKEN: &str = "ann-0123456789abcdefghijklmnop";

fn arguments(key: &Private) -> Vec<String> {
    let (certificate, key) = (file("server.pem"), key.path().display());
    vec![format!("--tls-cert={}", certificate.display()), format!("--tls-key={key}")]
}

fn builder(key: &Private) -> ServerBuilder {
    arguments(key).iter().fold(Server::builder(), |builder, argument| builder.arg(argument))
}

/// A server that knows clients by the certificates of `ca.pem`.
fn mutual(key: &Private) -> ServerBuilder {
    builder(key).arg(&format!("--client-ca={}", file("ca.pem").display()))
}

/// Spells commands. Its own connection is not used.
fn words(server: &Server) -> Client {
    Client::connect(server.address(), "a")
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from((i * 7 + i / 256) % 251).expect("below 251")).collect()
}

#[test]
fn connection_moves_to_its_devices_node_with_who_it_is_and_what_it_has_sent() {
    let key = Private::key();
    let tls = TlsFiles {
        certificate: file("server.pem"),
        key: key.path().to_owned(),
        client_ca: Some(file("ca.pem")),
    };
    let rules = Rules { tls: Some(tls), ..Rules::default() };
    let server = TwoNodes::start(Access::load(&rules).expect("the files are good"));
    for turn in 0..16 {
        let mut stream = connect(server.address(), Some("ann.pem"));
        let words = Client::connect(server.address(), &format!("t{turn}"));
        let second = |text: String| text.replace("idx=0", "idx=1");
        let mut sent = Vec::new();
        sent.extend(request_of(&body_of(&format!("[{}]", second(words.alloc(1, 4))), &[])));
        let blob = [turn; 4];
        let text = format!("[{}, {}]", words.copy_in(1, &blob), words.copy_out(1));
        sent.extend(request_of(&body_of(&second(text), &[&blob])));
        assert_eq!(exchange(&mut stream, &sent).expect("an answer").0, 200);
        assert_eq!(receive(&mut stream).expect("an answer"), (200, blob.to_vec()));
        let (status, bytes) = batch(&mut stream, &[second(words.copy_out(1))], &[]);
        assert_eq!((status, bytes), (200, blob.to_vec()));
        assert_eq!(server.opened(), [(1, "shard-1".to_owned())]);
    }
    server.finish();
}

#[test]
fn blobs_of_every_length_go_there_and_back_over_tls() {
    let key = Private::key();
    let server = builder(&key).start();
    let words = words(&server);
    let mut stream = connect(server.address(), None);
    for bytes in [1, 100, 16_000, 16_384, 16_385, 40_000, 300_000, 5_000_003] {
        let blob = pattern(bytes);
        let commands = [
            words.alloc(1, bytes as u64),
            words.copy_in(1, &blob),
            words.copy_out(1),
            format!("BufferFree({}, buffer_num=1)", words.session(0)),
        ];
        let (status, reply) = batch(&mut stream, &commands, &[&blob]);
        assert_eq!(status, 200, "{bytes}: {}", String::from_utf8_lossy(&reply));
        assert!(reply == blob, "{bytes} bytes");
    }
    // Long text, in requests that come close together.
    let text = vec![format!("GetProperties({})", words.session(0)); 5_000].join(", ");
    let request = request_of(&body_of(&format!("[{text}]"), &[]));
    stream.write_all(&[&request[..], &request, &request].concat()).unwrap();
    for _ in 0..3 {
        let (status, reply) = receive(&mut stream).unwrap();
        assert!(status == 200 && reply.starts_with(b"RemoteProperties("));
    }
}

#[test]
fn certificate_is_the_identity_of_its_dns_name() {
    let key = Private::key();
    let server = mutual(&key).start();
    let words = words(&server);
    let mut ann = connect(server.address(), Some("ann.pem"));
    let make = [words.alloc(1, 16)];
    assert_eq!(batch(&mut ann, &make, &[]).0, 200);
    let out = [words.copy_out(1)];
    let mut again = connect(server.address(), Some("ann.pem"));
    assert_eq!(batch(&mut again, &out, &[]).0, 200);
    let mut bob = connect(server.address(), Some("bob.pem"));
    let (status, reply) = batch(&mut bob, &out, &[]);
    assert_eq!(status, 500);
    assert!(String::from_utf8_lossy(&reply).contains("unknown buffer 1"));
    // A certificate that may be either's is nobody's.
    let mut either = connect(server.address(), Some("ambiguous.pem"));
    assert_eq!(batch(&mut either, &out, &[]).0, 401);
}

#[test]
fn certificate_that_is_missing_expired_or_a_strangers_is_refused() {
    let key = Private::key();
    let server = mutual(&key).start();
    for (certificate, alert) in [
        (None, "CertificateRequired"),
        (Some("expired.pem"), "CertificateExpired"),
        (Some("stranger.pem"), "UnknownCA"),
    ] {
        let mut stream = connect(server.address(), certificate);
        let refused = exchange(&mut stream, &request_of(&body_of("[]", &[]))).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains(alert), "{certificate:?}: {refused}");
    }
    let mut ann = connect(server.address(), Some("ann.pem"));
    assert_eq!(batch(&mut ann, &[], &[]).0, 200);
}

#[test]
fn token_over_tls_needs_no_certificate() {
    let key = Private::key();
    let tokens = Private::new(&format!("ann {TOKEN}\n"));
    let server = mutual(&key).arg(&format!("--token-file={}", tokens.path().display())).start();
    let mut stream = connect(server.address(), None);
    assert_eq!(batch(&mut stream, &[], &[]).0, 401);
    let fields = format!("Authorization: Bearer {TOKEN}\r\n");
    let request = request_with(&fields, &body_of("[]", &[]));
    assert_eq!(exchange(&mut stream, &request).unwrap().0, 200);
    let mut ann = connect(server.address(), Some("ann.pem"));
    assert_eq!(batch(&mut ann, &[], &[]).0, 200);
    // An expired certificate is refused all the same.
    let mut expired = connect(server.address(), Some("expired.pem"));
    assert!(exchange(&mut expired, &request).is_err());
}

#[test]
fn peer_that_does_not_shake_hands_is_not_kept() {
    let key = Private::key();
    let server = builder(&key).arg("--head-timeout=0.3").start();
    let mut known = connect(server.address(), None);
    assert_eq!(batch(&mut known, &[], &[]).0, 200);
    let descriptors = || Holdings::of(server.pid()).descriptors;
    let before = descriptors();
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(begun).unwrap();
        // What comes may be an alert; then the end.
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    }
    // Somebody who speaks plain HTTP hears of it at once.
    let mut plain = TcpStream::connect(server.address()).unwrap();
    plain.write_all(&request_of(&body_of("[]", &[]))).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert_eq!(said.first(), Some(&21), "an alert: {said:?}");
    wait_until("nothing is kept", || descriptors() <= before);
    assert_eq!(batch(&mut known, &[], &[]).0, 200);
}

#[test]
fn client_that_says_goodbye_during_an_endless_kernel_is_cleaned_up() {
    let key = Private::key();
    let server = builder(&key).start();
    let words = words(&server);
    let source = "void bad(volatile int* data0) { for (;;) { data0[0] = 1; } }";
    let commands =
        [words.alloc(1, 16), words.program("bad", source), words.exec("bad", source, &[1], true)];
    let mut stream = connect(server.address(), None);
    let body = body_of(&format!("[{}]", commands.join(", ")), &[source.as_bytes()]);
    stream.write_all(&request_of(&body)).unwrap();
    wait_until("the kernel runs", || Holdings::of(server.pid()).children == 1);
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.conn.write_tls(&mut stream.sock).unwrap();
    drop(stream);
    wait_until("its worker is gone", || Holdings::of(server.pid()).children == 0);
}

#[test]
fn end_of_a_connection_is_said() {
    let key = Private::key();
    let server = builder(&key).start();
    let mut stream = connect(server.address(), None);
    let request = request_with("Connection: close\r\n", &body_of("[]", &[]));
    assert_eq!(exchange(&mut stream, &request).unwrap().0, 200);
    // Without close_notify this is an error.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn plain_address_beside_tls_takes_plain_requests() {
    let key = Private::key();
    let server = builder(&key).arg("--listen-plain=127.0.0.1:0").start();
    let line = server.ready_line();
    let plain = line.split(&[' ', ',']).filter_map(|word| word.parse().ok()).nth(1);
    let plain = plain.unwrap_or_else(|| panic!("no second address: {line}"));
    Client::connect(plain, "a").batch(&[], &[]).ok();
    let mut stream = connect(server.address(), None);
    assert_eq!(batch(&mut stream, &[], &[]).0, 200);
}

#[test]
fn bad_files_of_tls_are_refused_with_the_remedy() {
    let (key, other) = (Private::key(), Private::new("nothing\n"));
    let other_key = Private::new(&fs::read_to_string(file("client.key")).unwrap());
    let said = |arguments: &[String]| {
        let output = Command::new(env!("CARGO_BIN_EXE_outboard"))
            .args(["serve", "--listen=127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words}");
        words
    };
    fs::set_permissions(other_key.path(), fs::Permissions::from_mode(0o604)).unwrap();
    let words = said(&arguments(&other_key));
    assert!(words.contains("chmod 600"), "{words}");
    fs::set_permissions(other_key.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let words = said(&arguments(&other_key));
    assert!(words.contains("--tls-key"), "{words}");
    let words = said(&arguments(&other));
    assert!(words.contains("no private key in PEM"), "{words}");
    let mut arguments = arguments(&key);
    arguments.push(format!("--client-ca={}", other.path().display()));
    let words = said(&arguments);
    assert!(words.contains("no certificate in PEM"), "{words}");
}

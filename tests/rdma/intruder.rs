//! A peer of a server that writes where it should not: the server's memory stays as it is.
//!
//! The server has device rxe1, and this process, which is a client of it, writes by rxe0.

use std::sync::Arc;
use std::time::Instant;

use outboard::rdma::{Address, Domain, Link, Target};

use crate::support::Server;
use crate::support::client::Client;
use crate::support::tokens::{TokenFile, ann, bob};
use crate::support::wait::wait_until;
use crate::{DEVICES, Memory, REMOTE_ACCESS_ERROR, domains, objects, transfer, write};

const LENGTH: usize = 4096;
const BYTES: u64 = LENGTH as u64;

/// A server of two identities.
fn server(tokens: &TokenFile) -> Server {
    tokens.server().args(["--rdma-device", DEVICES[1], "--no-cache", "--shards", "1"]).start()
}

/// The place of a buffer.
fn target(client: &mut Client, buffer: u64) -> Target {
    let key = client.key(0);
    let text = format!("BufferIOVAS({}, buffer_nums=[({key}, {buffer})])", client.session(0));
    let place = client.batch(&[text], &[]).ok();
    Target::from_bytes(place.as_slice().try_into().expect("three numbers")).expect("a place")
}

fn ib_connect(client: &Client, address: Address) -> String {
    let gid: String = address.gid.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let number = u64::from(address.queue_pair);
    format!("IBConnect({}, host='intruder', gid=b'{gid}', qp_num={number})", client.session(0))
}

/// A link that the server has let in for this client.
fn link_to(client: &mut Client, domain: &Arc<Domain>) -> Link<()> {
    let mut link = Link::new(domain, 1).expect("a link");
    let address = link.addresses().next().expect("one");
    let answer = client.batch(&[ib_connect(client, address)], &[]).ok();
    let answer = answer.as_slice().try_into().expect("an address");
    link.connect(0, Address::from_bytes(answer).expect("an address")).expect("it is there");
    link
}

#[test]
fn server_is_written_only_with_keys_that_it_gave_and_that_still_hold() {
    let Some([domain, _]) = domains() else { return };
    let tokens = TokenFile::of_both();
    let server = server(&tokens);
    let (mut ann, mut bob) = (ann(&server, "n"), bob(&server, "n"));
    let source = Memory::pattern(2 * LENGTH, 1);
    let from = domain.register(source).expect("it can be pinned");
    for client in [&mut ann, &mut bob] {
        let blob = vec![0x5a; LENGTH];
        let commands = [client.alloc(1, BYTES), client.alloc(2, BYTES), client.copy_in(1, &blob)];
        client.batch(&commands, &[&blob]).ok();
    }
    let (right, other, bobs) = (target(&mut ann, 1), target(&mut ann, 2), target(&mut bob, 1));
    let longer = Target { bytes: BYTES + 1, ..right };
    let wrong = [
        ("a forged key", Target { key: right.key ^ 0x55, ..right }),
        ("an address before the buffer", Target { iova: right.iova - 1, ..right }),
        ("an address behind the buffer", Target { iova: right.iova + BYTES, ..right }),
        ("a size beyond the buffer's", longer),
        ("the key of another buffer", Target { key: other.key, ..right }),
        ("the key of another identity", bobs),
    ];
    for (what, target) in wrong {
        let mut link = link_to(&mut ann, &domain);
        let outcome = transfer(&mut link, vec![write(&from, 0, target, target.bytes)]);
        assert_eq!(outcome, Err(REMOTE_ACCESS_ERROR), "{what}");
    }
    for client in [&mut ann, &mut bob] {
        let bytes = client.batch(&[client.copy_out(1)], &[]).ok();
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "something was written");
    }
    let mut link = link_to(&mut ann, &domain);
    assert_eq!(transfer(&mut link, vec![write(&from, 0, right, BYTES)]), Ok(()), "the right one");
    assert!(ann.batch(&[ann.copy_out(1)], &[]).ok() == source.0[..LENGTH]);
    let free = format!("BufferFree({}, buffer_num=1)", ann.session(0));
    ann.batch(&[free, ann.alloc(1, BYTES)], &[]).ok();
    let bytes = ann.batch(&[ann.copy_out(1)], &[]).ok();
    let others = domain.register(Memory::pattern(LENGTH, 2)).expect("it can be pinned");
    let outcome = transfer(&mut link, vec![write(&others, 0, right, BYTES)]);
    assert_eq!(outcome, Err(REMOTE_ACCESS_ERROR), "a key of a buffer that was freed");
    assert!(ann.batch(&[ann.copy_out(1)], &[]).ok() == bytes, "something was written");
}

#[test]
fn address_that_nobody_has_is_an_error_and_leaves_nothing() {
    let Some([domain, _]) = domains() else { return };
    let server = Server::builder().args(["--rdma-device", DEVICES[1], "--no-cache"]).start();
    let mut client = Client::connect(server.address(), "n");
    let link: Link<()> = Link::new(&domain, 1).expect("a link");
    let address = link.addresses().next().expect("one");
    client.batch(&[client.alloc(1, BYTES)], &[]).ok();
    let before = objects();
    let begin = Instant::now();
    // A network that is not there, and a neighbour that does not answer.
    for last in ["\u{8}\u{8}\u{8}\u{8}", "\u{a}\u{9}\0M"] {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(last.as_bytes());
        let reply = client.batch(&[ib_connect(&client, Address { gid, ..address })], &[]);
        println!("{:?}: {}", begin.elapsed(), reply.failure());
    }
    assert_eq!(objects(), before, "something was left behind");
    link_to(&mut client, &domain);
}

#[test]
fn peer_that_goes_leaves_nothing_in_the_server() {
    let Some([domain, _]) = domains() else { return };
    let server = Server::builder().args(["--rdma-device", DEVICES[1], "--no-cache"]).start();
    let mut client = Client::connect(server.address(), "n");
    client.batch(&[client.alloc(1, BYTES)], &[]).ok();
    let before = objects();
    target(&mut client, 1);
    let link = link_to(&mut client, &domain);
    assert_ne!(objects(), before);
    drop((client, link));
    wait_until("the server has let go of it all", || objects() == before);
    drop(server);
}

//! A whole server over devices whose memory it does not see, as with accelerators: what is copied
//! out passes through memory that both see, a piece at a time.

mod support;

use std::io::Read as _;
use std::sync::Arc;

use outboard::device::null::NullPlatform;
use outboard::device::shared::Budget;
use outboard::shard::{Config, PlatformMaker, Server};
use support::client::Client;

const PIECE_BYTES: u64 = 10_000;

/// A server in this process, with as many shards as there are cores, two at most.
fn start(budget: &Arc<Budget>) -> Server {
    let config = Config::new(Arc::new(Budget::new(1 << 30)));
    let budget = Arc::clone(budget);
    let platform: PlatformMaker = Arc::new(move || {
        let platform = NullPlatform::new(1, Arc::clone(&budget));
        platform.control().hide_memory(PIECE_BYTES);
        Box::new(platform)
    });
    let cores: Vec<usize> =
        outboard::cores::allowed().expect("cores are known").into_iter().take(2).collect();
    let address = "127.0.0.1:0".parse().expect("an address");
    Server::start(&[address], &cores, &config, &platform).expect("a server starts")
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from((i * 7 + i / 256) % 251).expect("below 251")).collect()
}

#[test]
fn copy_out_in_pieces_is_whole_for_every_length() {
    let budget = Arc::new(Budget::new(1 << 30));
    let server = start(&budget);
    let address = server.addresses()[0];
    let mut client = Client::connect(address, "a");
    for bytes in [1, 9_999, 10_000, 10_001, 20_000, 1_000_003] {
        let blob = pattern(bytes);
        let commands =
            [client.alloc(1, bytes as u64), client.copy_in(1, &blob), client.copy_out(1)];
        assert!(client.batch(&commands, &[&blob]).ok() == blob, "{bytes} bytes");
        // Of other shards' connections the output comes through the mesh.
        for _ in 0..8 {
            let mut other = Client::connect(address, "a");
            assert!(other.batch(&[other.copy_out(1)], &[]).ok() == blob, "{bytes} bytes");
        }
        let free = format!("BufferFree({}, buffer_num=1)", client.session(0));
        client.batch(&[free], &[]).ok();
    }
    drop(client);
    server.drain().begin();
    server.join();
    assert_eq!(budget.used(), 0);
}

#[test]
fn client_that_goes_in_mid_output_leaves_nothing_behind() {
    let budget = Arc::new(Budget::new(1 << 30));
    let server = start(&budget);
    let address = server.addresses()[0];
    for _ in 0..4 {
        let mut client = Client::connect(address, "b");
        let blob = vec![7; 64 << 20];
        let commands = [client.alloc(1, blob.len() as u64), client.copy_in(1, &blob)];
        client.batch(&commands, &[&blob]).ok();
        client.send(&[client.copy_out(1)], &[]);
        let mut begun = [0; 1 << 16];
        client.stream.read_exact(&mut begun).unwrap();
    }
    server.drain().begin();
    server.join();
    assert_eq!(budget.used(), 0);
}

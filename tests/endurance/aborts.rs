//! Connections that end at every kind of place of a request and its reply.

use std::io::{Read as _, Write as _};
use std::sync::LazyLock;

use crate::pick::Pick;
use crate::rig::{ENDLESS, builder, dawdle, leave, leaves_nothing, many};
use crate::support::Server;
use crate::support::client::{Client, body_of, request_of};

/// Where a connection ends.
#[derive(Clone, Copy, Debug)]
enum Place {
    Head,
    BlobHead,
    SmallBlob,
    StagedBlob,
    Text,
    Waiting,
    Running,
    Replying,
}

const PLACES: [Place; 12] = [
    Place::Head,
    Place::BlobHead,
    Place::SmallBlob,
    Place::SmallBlob,
    Place::StagedBlob,
    Place::StagedBlob,
    Place::Text,
    Place::Text,
    Place::Waiting,
    Place::Waiting,
    Place::Running,
    Place::Replying,
];

/// A request with a blob, and where its parts end.
struct Request {
    bytes: Vec<u8>,
    head_end: usize,
    text_at: usize,
}

impl Request {
    fn new(blob_bytes: usize) -> Request {
        let text = "[GetProperties(session=SessionKey('h', 0, 'n'))]";
        let body = body_of(text, &[&vec![7; blob_bytes]]);
        let bytes = request_of(&body);
        let head_end = bytes.len() - body.len();
        let text_at = bytes.len() - text.len();
        Request { bytes, head_end, text_at }
    }

    fn cut(&self, pick: &mut Pick, place: Place) -> &[u8] {
        let blob_at = self.head_end + 40;
        let (from, to) = match place {
            Place::Head => (0, self.head_end),
            Place::BlobHead => (self.head_end, blob_at),
            Place::SmallBlob | Place::StagedBlob => (blob_at, self.text_at - 40),
            _ => (self.text_at - 40, self.bytes.len() - 1),
        };
        &self.bytes[..from + pick.below(to - from)]
    }
}

static SMALL: LazyLock<Request> = LazyLock::new(|| Request::new(3000));
static STAGED: LazyLock<Request> = LazyLock::new(|| Request::new(700_000));

fn abort(server: &Server, seed: u64, pick: &mut Pick) {
    let mut client = Client::connect(server.address(), &format!("n{seed}"));
    if pick.percent(20) {
        client.batch(&[format!("GetProperties({})", client.session(0))], &[]).ok();
    }
    let place = pick.of(&PLACES);
    match place {
        Place::Waiting => client.send(&[format!("Wait({}, event=1)", client.session(0))], &[]),
        Place::Running => {
            let commands = [
                client.alloc(1, 16),
                client.program("bad", ENDLESS),
                client.exec("bad", ENDLESS, &[1], true),
            ];
            client.send(&commands, &[ENDLESS.as_bytes()]);
        }
        Place::Replying => {
            let bytes = pick.of(&[100_u64, 1 << 20, 8 << 20]);
            client.send(&[client.alloc(1, bytes), client.copy_out(1)], &[]);
            let most = pick.of(&[1, 60, 400_000]).min(usize::try_from(bytes).unwrap());
            let mut some = vec![0; pick.below(most)];
            client.stream.read_exact(&mut some).unwrap();
        }
        _ => {
            let is_long = matches!(place, Place::StagedBlob) || pick.percent(20);
            let request: &Request = if is_long { &STAGED } else { &SMALL };
            let bytes = request.cut(pick, place);
            let piece = pick.of(&[1 << 20, 1 << 20, 40_000, 700]).max(bytes.len() / 50 + 1);
            bytes.chunks(piece).for_each(|piece| client.stream.write_all(piece).unwrap());
        }
    }
    dawdle(pick);
    leave(client.stream, pick);
}

fn aborts(warm: u64, count: u64, test: &str) {
    let server = builder().start();
    let run = |count| many(count, test, |seed, pick| abort(&server, seed, pick));
    leaves_nothing(&server, &format!("{count} aborts"), || run(warm), || run(count));
    assert!(server.stderr().lines().all(|line| !line.contains("ERROR")), "{}", server.stderr());
}

#[test]
fn aborted_connections_leave_nothing_behind() {
    aborts(100, 300, "aborted");
}

#[test]
#[ignore = "minutes, in release; see the head of main.rs"]
fn ten_thousand_aborted_connections_leave_nothing_behind() {
    aborts(2000, 10_000, "ten_thousand -- --ignored");
}

//! Blobs that another server writes by RDMA to memory of this one's, on a fabric that reaches
//! nothing.

use super::*;
use crate::config::{DeviceLimits, RdmaConfig};
use crate::device::shared::Heap;
use crate::engine::Sender;
use crate::identity::Access;
use crate::rdma::{NullFabric, Target};

const NAME: Digest = Digest([7; 32]);
const LENGTH_OF_CLIENT: u64 = 4;
const CONNECTION: Owner = Owner::Connection(9);

/// A server whose client has buffer 1 with the bytes 1, 2, 3, 4.
struct Yard {
    bench: Bench,
    fabric: NullFabric,
    staging: Arc<Budget>,
}

impl Yard {
    fn new() -> Yard {
        let mut bench = Bench::new();
        bench.ok(READY);
        Yard::of(bench)
    }

    fn of(mut bench: Bench) -> Yard {
        let fabric = NullFabric::default();
        bench.engine = bench.engine.with_fabric(Box::new(fabric.clone()));
        Yard { bench, fabric, staging: Arc::new(Budget::new(300 << 10)) }
    }

    /// A batch of another server.
    fn parse(&self, text: &str, owner: Owner) -> Batch<'static> {
        let heap = Heap::new(Arc::clone(&self.staging));
        parse_for(text, owner).of_sender(Sender::Peer, None).landing_beside(heap)
    }

    /// What becomes of a batch that another server sends by a connection.
    fn reply_by(&mut self, text: &str, owner: Owner) -> Result<Vec<u8>, String> {
        let mut batch = self.parse(text, owner);
        match self.bench.engine.advance(&mut batch, self.bench.now) {
            Progress::Done(Reply::Ok(output)) => Ok(output.as_bytes().to_vec()),
            Progress::Done(Reply::Failed(text)) => Err(text),
            progress => panic!("{progress:?}"),
        }
    }

    fn ok(&mut self, text: &str) -> Vec<u8> {
        self.reply_by(text, CONNECTION).unwrap_or_else(|text| panic!("{text}"))
    }

    fn fails_with(&mut self, text: &str, expected: &str) {
        let failure = self.reply_by(text, CONNECTION).unwrap_err();
        assert!(failure.contains(expected), "{failure}");
    }

    /// Registrations, and whether anything is left of staging memory.
    fn has(&self) -> (u32, bool) {
        (self.fabric.registered(), self.staging.used() > 0)
    }
}

fn landing(name: Digest, bytes: u64) -> String {
    format!("BlobLanding([('{name}', {bytes})], session=$a)")
}

fn copy(buffer: u64, name: Digest) -> String {
    format!("CopyIn({buffer}, '{name}', session=$a)")
}

#[test]
fn blob_that_has_landed_is_copied_once() {
    let mut yard = Yard::new();
    let answer = yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    let target = Target::from_bytes(answer.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(target.bytes, LENGTH_OF_CLIENT);
    assert_eq!(yard.has(), (1, true));
    yard.ok(&copy(1, NAME));
    // Nothing was written, and nobody else's bytes are there.
    assert_eq!(yard.bench.ok("CopyOut(1, session=$a)"), [0; 4]);
    assert_eq!(yard.has(), (0, false));
    yard.fails_with(&copy(1, NAME), "no blob 0707");
}

#[test]
fn card_can_write_no_more_once_the_copy_is_queued() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    yard.bench.control.hold();
    yard.ok(&copy(1, NAME));
    assert_eq!(yard.has(), (0, true), "the device is still to read it");
    yard.bench.control.release();
    yard.bench.ok("CopyOut(1, session=$a)");
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn blob_of_the_batch_comes_before_one_that_has_landed() {
    let mut yard = Yard::new();
    yard.ok(&landing(DATA, LENGTH_OF_CLIENT));
    yard.ok("CopyIn(1, $data, session=$a)");
    assert_eq!(yard.bench.ok("CopyOut(1, session=$a)"), [1, 2, 3, 4]);
    assert_eq!(yard.has(), (1, true));
}

#[test]
fn landing_becomes_no_buffers_memory() {
    // A blob of this length that a client sends would.
    const BYTES: u64 = DeviceLimits::STAGED_SEGMENT_BYTES_MIN;
    let mut yard = Yard::new();
    yard.bench.ok(&format!("BufferAlloc(5, {BYTES}, $spec, session=$a)"));
    yard.ok(&landing(NAME, BYTES));
    yard.bench.control.hold();
    yard.ok(&copy(5, NAME));
    assert!(yard.bench.control.complete_next(0), "it is copied");
    yard.bench.control.release();
    yard.bench.ok("CopyOut(5, session=$a)");
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn landing_ends_with_the_connection_that_asked_for_it() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    yard.bench.engine.release(Owner::Connection(1));
    assert_eq!(yard.has(), (1, true), "it is not the client's");
    assert!(yard.bench.engine.has_landings(CONNECTION));
    yard.bench.engine.release(CONNECTION);
    assert_eq!(yard.has(), (0, false));
    assert!(!yard.bench.engine.has_landings(CONNECTION));
}

#[test]
fn landing_of_another_connection_or_identity_is_not_found() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    let other = yard.reply_by(&copy(1, NAME), Owner::Connection(10)).unwrap_err();
    assert!(other.contains("no blob 0707"), "{other}");
    let somebody = Access::default().of_address([127, 0, 0, 1].into()).unwrap();
    let open = parse_for("BufferAlloc(1, 4, $spec, session=$a)", Owner::Connection(2));
    let mut open = open.of_identity(somebody);
    let opened = yard.bench.engine.advance(&mut open, yard.bench.now);
    assert!(matches!(opened, Progress::Done(Reply::Ok(_))), "{opened:?}");
    let mut theirs = yard.parse(&copy(1, NAME), CONNECTION).of_identity(somebody);
    match yard.bench.engine.advance(&mut theirs, yard.bench.now) {
        Progress::Done(Reply::Failed(text)) => assert!(text.contains("no blob 0707"), "{text}"),
        progress => panic!("{progress:?}"),
    }
    assert_eq!(yard.has(), (1, true));
    yard.ok(&copy(1, NAME));
}

#[test]
fn server_that_works_for_others_clients_lands_for_the_one_whose_session_it_is() {
    let mut yard = Yard::new();
    let server = Access::default().of_address([127, 0, 0, 1].into()).unwrap();
    let run = |yard: &mut Yard, text: &str| {
        let mut batch = yard.parse(text, CONNECTION).of_identity(server);
        batch = batch.of_sender(Sender::PeerOfAll, None);
        match yard.bench.engine.advance(&mut batch, yard.bench.now) {
            Progress::Done(Reply::Ok(_)) => {}
            progress => panic!("{progress:?}"),
        }
    };
    run(&mut yard, &landing(NAME, LENGTH_OF_CLIENT));
    run(&mut yard, &copy(1, NAME));
    assert_eq!(yard.bench.ok("CopyOut(1, session=$a)"), [0; 4]);
    assert_eq!(yard.has(), (0, false));
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    run(&mut yard, &copy(1, NAME));
}

#[test]
fn landing_of_another_length_than_its_buffer_is_the_copys_error() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, 8));
    yard.fails_with(&copy(1, NAME), "the blob has 8 bytes, buffer 1 has 4");
    assert_eq!(yard.has(), (0, false), "it is used up");
    assert_eq!(yard.bench.ok("CopyOut(1, session=$a)"), [1, 2, 3, 4]);
}

#[test]
fn session_that_has_ended_is_the_copys_error() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    yard.bench.ok("SessionFree(session=$a)");
    yard.fails_with(&copy(1, NAME), "unknown session of device 0");
    assert_eq!(yard.has(), (0, false), "it is used up");
}

#[test]
fn landings_of_one_connection_are_bounded() {
    let mut yard = Yard::new();
    let many = |count: usize| {
        let name = |index| Digest(std::array::from_fn(|byte| if byte < 31 { 8 } else { index }));
        let blobs: Vec<_> = (0..count)
            .map(|index| format!("('{}', 1)", name(u8::try_from(index % 256).unwrap())))
            .collect();
        format!("BlobLanding([{}], session=$a)", blobs.join(", "))
    };
    let limit = RdmaConfig::LANDINGS_PER_CONNECTION_MAX;
    yard.fails_with(&many(limit + 1), &format!("at most {limit} that no CopyIn has used"));
    assert_eq!(yard.has(), (0, false));
    yard.ok(&many(256));
    yard.fails_with(&many(limit - 255), "at most");
    assert_eq!(yard.has().0, 256);
    assert_eq!(yard.ok(&many(256)).len(), 256 * Target::BYTES);
    assert_eq!(yard.has().0, 256, "the same names again");
}

#[test]
fn memory_that_cannot_be_had_or_pinned_leaves_nothing() {
    let mut yard = Yard::new();
    let both = format!("BlobLanding([('{NAME}', 4096), ('{DATA}', 400000)], session=$a)");
    yard.fails_with(&both, "out of memory");
    assert_eq!(yard.has(), (0, false));
    yard.fabric.refuse();
    yard.fails_with(&landing(NAME, 4096), "4096 bytes of memory could not be pinned");
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn memory_that_is_being_pinned_is_waited_for_and_goes_with_its_connection() {
    let mut yard = Yard::new();
    yard.fabric.hold();
    let text = format!("BlobLanding([('{NAME}', 4), ('{DATA}', 4)], session=$a)");
    let mut batch = yard.parse(&text, CONNECTION);
    let Progress::Wait(wait) = yard.bench.engine.advance(&mut batch, yard.bench.now) else {
        panic!("there is nothing to say yet");
    };
    assert!(!yard.bench.engine.is_over(&wait, yard.bench.now));
    yard.fabric.release();
    assert!(yard.bench.engine.is_over(&wait, yard.bench.now));
    let Progress::Done(Reply::Ok(output)) = yard.bench.engine.advance(&mut batch, yard.bench.now)
    else {
        panic!("both are pinned");
    };
    assert_eq!((output.as_bytes().len(), yard.has()), (2 * Target::BYTES, (2, true)));
    yard.fabric.hold();
    let mut batch = yard.parse(&text, CONNECTION);
    let progress = yard.bench.engine.advance(&mut batch, yard.bench.now);
    assert!(matches!(progress, Progress::Wait(_)), "{progress:?}");
    drop((wait, progress));
    yard.bench.engine.release(CONNECTION);
    yard.fabric.release();
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn driver_that_never_pins_is_given_up() {
    let mut yard = Yard::new();
    yard.fabric.hold();
    let mut batch = yard.parse(&landing(NAME, 4), CONNECTION);
    let progress = yard.bench.engine.advance(&mut batch, yard.bench.now);
    assert!(matches!(progress, Progress::Wait(_)), "{progress:?}");
    yard.bench.now += 2 * RdmaConfig::PROMISE_TIME_MAX;
    let Progress::Done(Reply::Failed(text)) = yard.bench.engine.advance(&mut batch, yard.bench.now)
    else {
        panic!("it is late");
    };
    assert!(text.contains("BlobLanding") && text.contains("nothing came of it"), "{text}");
    drop(progress);
    yard.fabric.release();
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn landing_that_nobody_uses_ends() {
    let mut yard = Yard::new();
    yard.ok(&landing(NAME, 4));
    let tick = |yard: &mut Yard, after| {
        yard.bench.now += after;
        yard.bench.engine.tick(yard.bench.now)
    };
    assert!(tick(&mut yard, RdmaConfig::LANDING_TIME_MAX / 2), "it has to be looked at again");
    yard.ok(&landing(DATA, 4));
    assert!(tick(&mut yard, RdmaConfig::LANDING_TIME_MAX / 2));
    assert_eq!(yard.has(), (1, true));
    assert!(!tick(&mut yard, RdmaConfig::LANDING_TIME_MAX / 2));
    assert_eq!(yard.has(), (0, false));
    yard.fails_with(&copy(1, NAME), "no blob 0707");
}

#[test]
fn client_has_no_memory_made_for_it() {
    let mut yard = Yard::new();
    yard.bench.fails_with(&landing(NAME, 4), "BlobLanding is what one server asks of another");
    assert_eq!(yard.has(), (0, false));
    yard.ok(&landing(NAME, 4));
    let mut batch = parse_for(&copy(1, NAME), CONNECTION);
    match yard.bench.engine.advance(&mut batch, yard.bench.now) {
        Progress::Done(Reply::Failed(text)) => assert!(text.contains("no blob"), "{text}"),
        progress => panic!("{progress:?}"),
    }
}

#[test]
fn server_without_rdma_has_no_memory_for_peers() {
    let mut yard = Yard::new();
    yard.bench = Bench::new();
    yard.bench.ok(READY);
    yard.fails_with(&landing(NAME, 4), "BlobLanding: this server has no RDMA");
}

#[test]
fn blob_lands_where_its_connection_is_and_goes_to_the_sessions_shard() {
    let directory = Arc::new(Directory::default());
    let mut there = Bench::with(Arc::clone(&directory), Home(1));
    there.ok(READY);
    let mut yard = Yard::of(Bench::with(directory, Home(0)));
    yard.ok(&landing(NAME, LENGTH_OF_CLIENT));
    let mut batch = yard.parse(&copy(1, NAME), CONNECTION);
    let progress = yard.bench.engine.advance(&mut batch, yard.bench.now);
    assert!(matches!(progress, Progress::Forward(Home(1))), "{progress:?}");
    assert_eq!(yard.has(), (0, true));
    let (_, blob) = batch.forward();
    assert_eq!(blob, Some((NAME, Rc::from([0; 4]))));
    drop(batch);
    assert_eq!(yard.has(), (0, false));
}

#[test]
fn card_that_reaches_no_buffers_is_told_to_servers_alone() {
    let mut yard = Yard::new();
    yard.fabric.reach_no_buffers();
    let properties = "GetProperties(session=$a)";
    let told = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let client = told(yard.bench.ok(properties));
    assert!(client.ends_with("ib_gid=None)"), "{client}");
    let server = told(yard.ok(properties));
    assert!(server.ends_with("ib_gid=b'nowhere in a net')"), "{server}");
    let connect = "IBConnect('a:1', b'0123456789abcdef', 5, session=$a)";
    yard.bench.fails_with(connect, "IBConnect: this server has no RDMA");
    let places = "BufferIOVAS([($a, 1)], session=$a)";
    yard.bench.fails_with(places, "BufferIOVAS: this server has no RDMA");
    yard.ok(connect);
    assert_eq!(yard.fabric.accepted(), 1);
}

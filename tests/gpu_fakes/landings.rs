//! Copies to GPUs whose memory the network card does not reach: they are written by the card to the
//! server's own memory. Neither GPU nor card is there.
//!
//! Between the two servers is a [`Way`] that hears all that is said over HTTP, so a test sees
//! whether bytes went there, and has things happen between two requests.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::rdma::{CPU, Host, Kind, gpus};
use crate::rig::pattern;
use crate::support::client::Client;
use crate::support::wait::wait_until;

/// Far more than the words of all copies of one test.
const WORDS_MAX: usize = 64 << 10;
const LENGTHS: [usize; 4] = [1, 4096, 300_001, (5 << 20) + 7];
/// A card that is told of no device's memory: no device can export any.
const NO_DMABUF: (&str, &str) = ("FAKE_IBVERBS_DMABUF", "0");
/// A driver that exports the piece that is tried when the server starts, and no buffer.
const NO_DESCRIPTORS: (&str, &str) = ("FAKE_GPU_FAIL", "cuMemGetHandleForAddressRange:801:from=2");

/// The only way to a server that its peers know.
struct Way {
    address: SocketAddr,
    talk: Arc<Talk>,
}

#[derive(Default)]
struct Talk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// All that peers have sent.
    said: Vec<u8>,
    gate: Gate,
}

/// What becomes of requests.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    /// The next one with this command is held back.
    Closed(&'static str),
    /// One is.
    Waiting,
    /// Nothing arrives, and its connection ends.
    Cut,
}

impl Way {
    fn to(server: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let talk = Arc::new(Talk::default());
        let heard = Arc::clone(&talk);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(server).unwrap();
                let back = [far.try_clone().unwrap(), near.try_clone().unwrap()];
                let talk = Arc::clone(&heard);
                thread::spawn(move || carry(near, far, |bytes| talk.pass(bytes)));
                thread::spawn(move || {
                    let [far, near] = back;
                    carry(far, near, |_| true);
                });
            }
        });
        Way { address, talk }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.talk.lock().said).into_owned()
    }

    /// Waits until the request that is to be held back is there.
    fn wait(&self) {
        let state = self.talk.lock();
        let limit = Duration::from_secs(30);
        let waits = |state: &mut State| state.gate != Gate::Waiting;
        let waited = self.talk.changed.wait_timeout_while(state, limit, waits).unwrap();
        assert!(!waited.1.timed_out(), "no such request came");
    }

    fn turn_to(&self, gate: Gate) {
        self.talk.lock().gate = gate;
        self.talk.changed.notify_all();
    }
}

impl Talk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Hears what a peer sends; whether it goes on.
    fn pass(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        state.said.extend_from_slice(bytes);
        if let Gate::Closed(command) = state.gate
            && bytes.windows(command.len()).any(|part| part == command.as_bytes())
        {
            state.gate = Gate::Waiting;
            self.changed.notify_all();
            let waits = |state: &mut State| state.gate == Gate::Waiting;
            state = self.changed.wait_while(state, waits).unwrap();
        }
        state.gate != Gate::Cut
    }
}

/// Carries bytes from one connection to the other as long as they pass, then ends both.
fn carry(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(&[u8]) -> bool) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if !pass(&piece[..count]) || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    // Either may have ended already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Two servers with a client each, whose sessions no other pair has; the second one's peers know it
/// by the way.
struct Pair {
    hosts: [Host; 2],
    way: Way,
    near: Client,
    far: Client,
}

impl Pair {
    fn of(hosts: [Host; 2]) -> Pair {
        let [near, far] = hosts.each_ref().map(|host| host.server.address());
        let way = Way::to(far);
        let name = way.address.to_string();
        let near = Client::connect(near, &name).naming_its_server();
        let far = Client::connect(far, &name).naming(&name);
        Pair { hosts, way, near, far }
    }

    /// Buffers of these numbers and lengths on both sides, filled on the first.
    fn fill(&mut self, buffers: &[(u64, usize)]) -> Vec<Vec<u8>> {
        let mut filled = Vec::new();
        for (number, bytes) in buffers.iter().copied() {
            let Pair { near, far, .. } = self;
            let seed = usize::try_from(number).unwrap();
            let data = pattern(bytes + seed)[seed..].to_vec();
            let alloc = near.alloc(number, bytes as u64);
            near.batch(&[alloc, near.copy_in(number, &data)], &[&data]).ok();
            far.batch(&[far.alloc(number, bytes as u64)], &[]).ok();
            filled.push(data);
        }
        filled
    }

    fn transfer(&self, buffer: u64) -> String {
        let (session, to) = (self.near.session(0), self.far.key(0));
        format!("Transfer({session}, buffer_num={buffer}, dsession={to}, dbuffer_num={buffer})")
    }

    fn batch_transfer(&self, buffers: &[u64]) -> String {
        let list = |key: String| {
            let names: Vec<_> = buffers.iter().map(|buffer| format!("({key}, {buffer})")).collect();
            names.join(", ")
        };
        let (sources, destinations) = (list(self.near.key(0)), list(self.far.key(0)));
        let session = self.near.session(0);
        format!("BatchTransfer({session}, sbuffer_nums=[{sources}], dbuffer_nums=[{destinations}])")
    }

    fn holds(&mut self, buffer: u64, data: &[u8]) {
        let found = self.far.batch(&[self.far.copy_out(buffer)], &[]).ok();
        assert!(found == data, "buffer {buffer} of {} bytes", data.len());
    }

    /// That peers have sent words alone, by one link.
    fn has_landed(&self, turns: usize) {
        let said = self.way.said();
        assert!(said.len() < WORDS_MAX, "{} bytes went over HTTP", said.len());
        assert_eq!(said.matches("BlobLanding(").count(), turns, "{said}");
        assert_eq!(self.hosts[0].connected(), 1);
    }

    fn finish(self) {
        let Pair { hosts, near, far, .. } = self;
        drop((near, far));
        hosts.into_iter().for_each(Host::finish);
    }
}

/// Copies of all lengths to a device out of reach.
fn copies(near: Kind, far: Kind, lacks: (&str, &str)) {
    let mut pair = Pair::of([Host::start(near), Host::with(far, &[lacks])]);
    let buffers: Vec<_> = (1..).zip(LENGTHS).collect();
    let filled = pair.fill(&buffers);
    for ((number, _), data) in buffers.iter().zip(&filled) {
        let copy = pair.transfer(*number);
        pair.near.batch(&[copy], &[]).ok();
        pair.holds(*number, data);
    }
    pair.has_landed(LENGTHS.len());
    // What is known of a place is not asked for again.
    let asked = |pair: &Pair| pair.way.said().matches("BufferIOVAS(").count();
    let before = asked(&pair);
    let copy = pair.transfer(1);
    pair.near.batch(&[copy], &[]).ok();
    assert_eq!((before, asked(&pair)), (LENGTHS.len(), LENGTHS.len()));
    pair.finish();
}

#[test]
fn copy_to_a_device_out_of_the_cards_reach_lands_in_its_servers_memory() {
    for kind in gpus() {
        copies(CPU, kind, NO_DMABUF);
        // Processes of sessions count for themselves.
        if kind == (Kind { device: "cuda", isolation: "process" }) {
            copies(kind, kind, NO_DESCRIPTORS);
        }
    }
}

#[test]
fn copy_between_devices_out_of_the_cards_reach_goes_through_both_servers_memory() {
    for kind in gpus() {
        let mut pair = Pair::of([(); 2].map(|()| Host::with(kind, &[NO_DMABUF])));
        let filled = pair.fill(&[(1, 300_001)]);
        let copy = pair.transfer(1);
        pair.near.batch(&[copy], &[]).ok();
        pair.holds(1, &filled[0]);
        pair.has_landed(1);
        pair.finish();
    }
}

#[test]
fn batch_of_buffers_of_which_one_is_out_of_reach_lands() {
    let kind = Kind { device: "cuda", isolation: "process" };
    let fails = ("FAKE_GPU_FAIL", "cuMemGetHandleForAddressRange:801:nth=2");
    let mut pair = Pair::of([Host::start(CPU), Host::with(kind, &[fails])]);
    let filled = pair.fill(&[(1, 3 << 20), (2, 70_001)]);
    let copy = pair.batch_transfer(&[1, 2]);
    pair.near.batch(&[copy], &[]).ok();
    pair.holds(1, &filled[0]);
    pair.holds(2, &filled[1]);
    pair.has_landed(1);
    pair.finish();
}

#[test]
fn batch_of_more_than_lands_at_once_goes_in_turns() {
    let kind = Kind { device: "cuda", isolation: "process" };
    let mut pair = Pair::of([Host::start(CPU), Host::with(kind, &[NO_DMABUF])]);
    let filled = pair.fill(&[(1, 22 << 20), (2, 22 << 20), (3, 22 << 20), (4, 5)]);
    let copy = pair.batch_transfer(&[1, 2, 3, 4]);
    pair.near.batch(&[copy], &[]).ok();
    for (number, data) in (1..).zip(&filled) {
        pair.holds(number, data);
    }
    pair.has_landed(2);
    pair.finish();
}

#[test]
fn copy_that_finds_no_memory_to_land_in_goes_over_http() {
    let kind = Kind { device: "cuda", isolation: "session" };
    let far = Host::with_arguments(kind, &[NO_DMABUF], &["--staging-memory=1M"]);
    let mut pair = Pair::of([Host::start(CPU), far]);
    let bytes = 2 << 20;
    let filled = pair.fill(&[(1, bytes)]);
    let copy = pair.transfer(1);
    pair.near.batch(&[copy], &[]).ok();
    pair.holds(1, &filled[0]);
    let said = pair.way.said();
    assert!(said.contains("BlobLanding(") && said.len() > bytes, "{} bytes", said.len());
    pair.finish();
}

/// What one landing takes most of.
const STAGING: &str = "--staging-memory=8M";
const MOST: usize = 5 << 20;

#[test]
fn buffer_or_session_that_ends_before_what_has_landed_is_copied_is_the_error() {
    for kind in gpus() {
        let far = Host::with_arguments(kind, &[NO_DMABUF], &[STAGING]);
        let mut pair = Pair::of([Host::start(CPU), far]);
        let mut filled = pair.fill(&[(1, MOST)]);
        let free = format!("BufferFree({}, buffer_num=1)", pair.far.session(0));
        let end = format!("SessionFree({})", pair.far.session(0));
        for (command, words) in [(free, "unknown buffer 1"), (end, "unknown session of device 0")] {
            pair.way.turn_to(Gate::Closed("CopyIn("));
            let copy = pair.transfer(1);
            pair.near.send(&[copy], &[]);
            pair.way.wait();
            pair.far.batch(&[command], &[]).ok();
            pair.way.turn_to(Gate::Open);
            let failure = pair.near.receive().failure();
            assert!(failure.contains(words), "{failure}");
            pair.far.batch(&[pair.far.alloc(1, MOST as u64)], &[]).ok();
        }
        // There is as much memory as before, and the link is good.
        let copy = pair.transfer(1);
        pair.near.batch(&[copy], &[]).ok();
        pair.holds(1, &filled.remove(0));
        pair.has_landed(3);
        pair.finish();
    }
}

#[test]
fn server_that_dies_before_what_lands_is_copied_leaves_its_memory() {
    let kind = Kind { device: "cuda", isolation: "session" };
    for (command, gate) in [("BlobLanding(", Gate::Open), ("CopyIn(", Gate::Cut)] {
        let far = Host::with_arguments(kind, &[NO_DMABUF], &[STAGING]);
        let mut pair = Pair::of([Host::start(CPU), far]);
        pair.fill(&[(1, MOST)]);
        pair.way.turn_to(Gate::Closed(command));
        let copy = pair.transfer(1);
        pair.near.send(&[copy], &[]);
        pair.way.wait();
        let Pair { hosts: [near, far], way, far: mut client, .. } = pair;
        if gate == Gate::Open {
            // It may be in the middle of the write when it dies.
            way.turn_to(gate);
        }
        near.server.signal(Signal::KILL);
        let _ = near.server.wait(Duration::from_secs(30));
        if gate == Gate::Cut {
            way.turn_to(gate);
            let found = client.batch(&[client.copy_out(1)], &[]).ok();
            assert!(found == vec![0; MOST], "something was copied");
        }
        let mut pair = Pair::of([Host::start(CPU), far]);
        let filled = pair.fill(&[(1, MOST)]);
        // Until then copies go over HTTP.
        wait_until("the memory is there again", || {
            let before = pair.way.said().len();
            let copy = pair.transfer(1);
            pair.near.batch(&[copy], &[]).ok();
            pair.way.said().len() - before < WORDS_MAX
        });
        pair.holds(1, &filled[0]);
        drop(client);
        pair.finish();
    }
}

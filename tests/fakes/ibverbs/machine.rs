//! The network card that is not there: queue pairs, registrations and completions as tables, and a
//! socket to every peer.
//!
//! A process is one device. Its address has the process's number, and a socket of that name, in
//! Linux's name space for such, takes what peers write. Each queue pair that sends has a thread: it
//! reads registered memory, sends it, waits for the peer's word, and says that the request is
//! complete. So requests are carried out in order and one at a time, as the standard has it, and
//! what is written is there before its completion is.
//!
//! Memory is read and written under the lock of the tables alone. So once a registration or a queue
//! pair is gone, nobody touches the memory any more.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};

use super::dmabuf::Mapped;
use super::pages;

pub(crate) type Gid = [u8; 16];

pub(crate) const SUCCESS: u32 = 0;
const LOCAL_PROTECTION: u32 = 4;
const FLUSHED: u32 = 5;
pub(crate) const REMOTE_ACCESS: u32 = 10;
const RETRIES_EXCEEDED: u32 = 12;

/// Registered memory.
pub(crate) struct Region {
    pub(crate) domain: u32,
    pub(crate) address: usize,
    pub(crate) iova: u64,
    pub(crate) bytes: u64,
    /// Of another device's memory, which is mapped for this.
    pub(crate) _mapped: Option<Mapped>,
}

impl Region {
    /// Where so many bytes are that the device knows by `at`.
    fn place(&self, at: u64, bytes: usize) -> Option<*mut u8> {
        let offset = at.checked_sub(self.iova)?;
        let end = offset.checked_add(u64::try_from(bytes).ok()?)?;
        let place = self.address.checked_add(usize::try_from(offset).ok()?)?;
        if end > self.bytes {
            return None;
        }
        self.check(place, bytes);
        Some(std::ptr::with_exposed_provenance_mut(place))
    }

    /// To be called before it ends.
    pub(crate) fn check_all(&self) {
        self.check(self.address, self.bytes as usize);
    }

    fn check(&self, place: usize, bytes: usize) {
        let are_there = pages::are_there(place, bytes);
        assert!(are_there, "pages of registered memory were taken back: a card keeps the old ones");
    }
}

/// A completion.
pub(crate) struct Done {
    pub(crate) work: u64,
    pub(crate) pair: u32,
    pub(crate) status: u32,
    /// The place of its request among all of its pair.
    serial: u64,
}

/// A completion queue.
pub(crate) struct Queue {
    pub(crate) room: usize,
    pub(crate) done: VecDeque<Done>,
    pub(crate) is_armed: bool,
    /// What is written to where an event was asked for and comes.
    pub(crate) events: Option<io::PipeWriter>,
    pub(crate) pairs: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Made,
    Bound,
    Receives,
    Sends,
    Failed,
}

/// A queue pair.
pub(crate) struct Pair {
    pub(crate) domain: u32,
    pub(crate) queue: u32,
    pub(crate) depth: u64,
    pub(crate) stage: Stage,
    pub(crate) peer: (Gid, u32),
    pub(crate) stream: Option<UnixStream>,
    /// Requests that were posted, and how many of them are known to be complete.
    posted: u64,
    retired: u64,
    requests: Option<Sender<Request>>,
}

/// A request to write.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) work: u64,
    pub(crate) local: u64,
    pub(crate) local_key: u32,
    pub(crate) remote: u64,
    pub(crate) remote_key: u32,
    pub(crate) bytes: u32,
    pub(crate) is_signalled: bool,
    pub(crate) serial: u64,
}

#[derive(Default)]
pub(crate) struct Machine {
    last: u32,
    /// How many registrations and queue pairs each protection domain has.
    pub(crate) domains: HashMap<u32, usize>,
    pub(crate) regions: HashMap<u32, Region>,
    pub(crate) queues: HashMap<u32, Queue>,
    pub(crate) pairs: HashMap<u32, Pair>,
}

static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(Mutex::default);

pub(crate) fn machine() -> MutexGuard<'static, Machine> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A number that nothing else has: of 24 bits, as those of queue pairs.
    pub(crate) fn number(&mut self) -> u32 {
        self.last += 1;
        assert!(self.last < 1 << 24, "no test makes as many things");
        self.last
    }

    pub(crate) fn make_pair(&mut self, domain: u32, queue: u32, depth: u32) -> Option<u32> {
        let number = self.number();
        self.queues.get_mut(&queue)?.pairs += 1;
        *self.domains.get_mut(&domain)? += 1;
        let pair = Pair {
            domain,
            queue,
            depth: depth.into(),
            stage: Stage::Made,
            peer: ([0; 16], 0),
            stream: None,
            posted: 0,
            retired: 0,
            requests: None,
        };
        self.pairs.insert(number, pair);
        Some(number)
    }

    /// Hands a request to the pair's thread. False where it does not send, or has no room.
    pub(crate) fn post(&mut self, number: u32, mut request: Request) -> bool {
        let Some(pair) = self.pairs.get_mut(&number) else { return false };
        let sends = matches!(pair.stage, Stage::Sends | Stage::Failed);
        if !sends || pair.posted - pair.retired >= pair.depth {
            return false;
        }
        request.serial = pair.posted;
        pair.posted += 1;
        let (stream, peer) = (pair.stream.take(), pair.peer.1);
        let requests = pair.requests.get_or_insert_with(|| {
            let (requests, posted) = channel();
            std::thread::spawn(move || carry_out_all(number, peer, stream, &posted));
            requests
        });
        requests.send(request).is_ok()
    }

    /// The oldest completion of a queue. What it tells of has room in its pair again.
    pub(crate) fn take(&mut self, queue: u32) -> Option<Done> {
        let done = self.queues.get_mut(&queue)?.done.pop_front()?;
        if let Some(pair) = self.pairs.get_mut(&done.pair) {
            pair.retired = pair.retired.max(done.serial + 1);
        }
        Some(done)
    }

    fn region(&self, key: u32, domain: u32) -> Option<&Region> {
        self.regions.get(&key).filter(|region| region.domain == domain)
    }

    /// What a request has to send, or why it cannot be carried out.
    fn read(&self, number: u32, request: &Request) -> Result<Vec<u8>, u32> {
        let pair = self.pairs.get(&number).filter(|pair| pair.stage == Stage::Sends);
        let pair = pair.ok_or(FLUSHED)?;
        let bytes = request.bytes as usize;
        let region = self.region(request.local_key, pair.domain);
        let place = region.and_then(|region| region.place(request.local, bytes));
        let place = place.ok_or(LOCAL_PROTECTION)?;
        let mut read = vec![0; bytes];
        // SAFETY: whoever registered the memory keeps it until the registration is gone, for which
        // these tables would have to be unlocked; the place lies inside of it.
        unsafe { std::ptr::copy_nonoverlapping(place, read.as_mut_ptr(), bytes) };
        Ok(read)
    }

    /// Writes what a peer has sent. `None` where there is no queue pair that it could be for.
    fn write(&self, head: &Head, bytes: &[u8]) -> Option<u32> {
        let pair = self.pairs.get(&head.pair)?;
        let answers = matches!(pair.stage, Stage::Receives | Stage::Sends);
        if !answers || pair.peer.1 != head.from {
            return None;
        }
        let region = self.region(head.key, pair.domain);
        let Some(place) = region.and_then(|region| region.place(head.at, bytes.len())) else {
            return Some(REMOTE_ACCESS);
        };
        // SAFETY: as in `read`; peers with the key may write it at any time.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        Some(SUCCESS)
    }

    fn complete(&mut self, number: u32, request: &Request, status: u32) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        if status != SUCCESS {
            pair.stage = Stage::Failed;
        } else if !request.is_signalled || is_lost() {
            return;
        }
        let Some(queue) = self.queues.get_mut(&pair.queue) else { return };
        assert!(queue.done.len() < queue.room, "a completion queue overflows");
        let serial = request.serial;
        queue.done.push_back(Done { work: request.work, pair: number, status, serial });
        if std::mem::take(&mut queue.is_armed)
            && let Some(events) = &mut queue.events
        {
            events.write_all(&[1]).expect("the channel outlives its queue");
        }
    }
}

/// Whether this completion is the one that never comes: `FAKE_IBVERBS_LOSE` counts from 1.
fn is_lost() -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static LOSE: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("FAKE_IBVERBS_LOSE").ok()?.parse().ok());
    *LOSE == Some(COUNT.fetch_add(1, Ordering::Relaxed) + 1)
}

/// What goes in front of the bytes of a request.
struct Head {
    pair: u32,
    from: u32,
    key: u32,
    bytes: u32,
    at: u64,
}

const HEAD_BYTES: usize = 24;

impl Head {
    fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        let numbers = [self.pair, self.from, self.key, self.bytes];
        for (place, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[16..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEAD_BYTES]) -> Head {
        let (numbers, at) = bytes.split_at(16);
        let (numbers, _) = numbers.as_chunks::<4>();
        let [pair, from, key, bytes] = [0, 1, 2, 3].map(|at| u32::from_le_bytes(numbers[at]));
        Head { pair, from, key, bytes, at: u64::from_le_bytes(at.try_into().expect("8 bytes")) }
    }
}

/// A queue pair's thread.
fn carry_out_all(
    number: u32,
    peer: u32,
    mut stream: Option<UnixStream>,
    requests: &Receiver<Request>,
) {
    for request in requests {
        let read = machine().read(number, &request);
        let status = match (read, &mut stream) {
            (Ok(bytes), Some(stream)) => {
                let head = Head {
                    pair: peer,
                    from: number,
                    key: request.remote_key,
                    bytes: request.bytes,
                    at: request.remote,
                };
                send(stream, &head, &bytes).unwrap_or(RETRIES_EXCEEDED)
            }
            (Ok(_), None) => RETRIES_EXCEEDED,
            (Err(status), _) => status,
        };
        machine().complete(number, &request, status);
    }
}

/// Sends a request, and waits for what the peer says to it.
fn send(stream: &mut UnixStream, head: &Head, bytes: &[u8]) -> io::Result<u32> {
    stream.write_all(&head.to_bytes())?;
    stream.write_all(bytes)?;
    let mut status = [0; 4];
    stream.read_exact(&mut status)?;
    Ok(u32::from_le_bytes(status))
}

/// The address of this process.
pub(crate) fn own_gid() -> Gid {
    let mut gid = [0; 16];
    gid[10..12].fill(0xff);
    gid[12..].copy_from_slice(&std::process::id().to_be_bytes());
    gid
}

fn name_of(gid: &Gid) -> io::Result<SocketAddr> {
    let number = u128::from_be_bytes(*gid);
    SocketAddr::from_abstract_name(format!("fake-ibverbs-{number:x}"))
}

pub(crate) fn connect(gid: &Gid) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&name_of(gid)?)
}

/// Takes what peers send, from the first call on.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let name = name_of(&own_gid()).expect("a name that fits");
        let listener = UnixListener::bind_addr(&name).expect("a name that nobody else has");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || drop(answer_all(stream)));
            }
        });
    });
}

fn answer_all(mut stream: UnixStream) -> io::Result<()> {
    let mut head = [0; HEAD_BYTES];
    loop {
        stream.read_exact(&mut head)?;
        let head = Head::from_bytes(&head);
        let mut bytes = vec![0; head.bytes as usize];
        stream.read_exact(&mut bytes)?;
        // Who asks for what is not there hears nothing.
        let Some(status) = machine().write(&head, &bytes) else { return Ok(()) };
        stream.write_all(&status.to_le_bytes())?;
    }
}

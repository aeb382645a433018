//! A server, what it holds at rest, and the ways in which clients leave.

use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pick::Pick;
use crate::support::client::Client;
use crate::support::holdings::{Holdings, read_of_tasks};
use crate::support::wait::wait_until;
use crate::support::{Server, ServerBuilder};

/// Sessions that one identity may have. Low enough to see at the end that all are to be had.
pub(crate) const SESSIONS_MAX: usize = 128;

const SEED: &str = "OUTBOARD_ENDURANCE_SEED";

/// Clients at once.
const CLIENTS: usize = 4;

pub(crate) const ADD: &str = "void add(unsigned char* restrict data0, int n) {\n\
                              for (int i = 0; i < n; i++) { data0[i] = data0[i] + 1; }\n}\n";

pub(crate) const ENDLESS: &str = "void bad(volatile int* data0) { for (;;) { data0[0] = 1; } }";

/// Takes some tenths of a second.
pub(crate) const SLOW: &str = "void slow(volatile unsigned* data0) {\n\
                               for (unsigned i = 0; i < 100000000u; i++) { data0[0] = i; }\n}\n";

pub(crate) fn seed() -> u64 {
    std::env::var(SEED).map_or(1, |seed| seed.parse().expect("a number"))
}

/// Runs something that is drawn from a seed, and names the seed where it fails.
pub(crate) fn seeded<T>(seed: u64, test: &str, run: impl FnOnce(&mut Pick) -> T) -> T {
    let mut pick = Pick::Seed(seed);
    catch_unwind(AssertUnwindSafe(|| run(&mut pick))).unwrap_or_else(|panic| {
        eprintln!("again: {SEED}={seed} cargo test --test endurance {test}");
        resume_unwind(panic)
    })
}

pub(crate) fn builder() -> ServerBuilder {
    Server::builder().arg("--no-cache").arg(&format!("--session-limit={SESSIONS_MAX}"))
}

/// Runs `count` of something, of which each has a seed of its own, from several clients at once.
pub(crate) fn many(count: u64, test: &str, one: impl Fn(u64, &mut Pick) + Sync) {
    let (first, next) = (seed(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let seed = first.wrapping_add(index);
                    seeded(seed, test, |pick| one(seed, pick));
                }
            });
        }
    });
}

/// What a server holds once nobody is connected any more.
pub(crate) fn at_rest(server: &Server) -> Holdings {
    let mut last = usize::MAX;
    wait_until("no session is left", || {
        let now = Holdings::of(server.pid());
        // Descriptors go one after the other, some of them behind the processes.
        let rests = now.children == 0 && now.mappings == 0 && now.descriptors == last;
        last = now.descriptors;
        std::thread::sleep(Duration::from_millis(50));
        rests
    });
    Holdings::of(server.pid())
}

/// How many threads there are, without those that start when they are needed and stay, up to a
/// number of them: those that compile, and the kernel's own, of which each ring has one for what it
/// cannot do at once.
pub(crate) fn threads(server: &Server) -> usize {
    let grows = |name: &String| name.trim() == "compile" || name.starts_with("iou-wrk");
    read_of_tasks(server.pid(), "comm").iter().filter(|name| !grows(name)).count()
}

/// What each of the server's threads does: its name, its state (`t` where a debugger holds it), and
/// where in the kernel it waits.
pub(crate) fn doings(server: &Server) -> Vec<String> {
    let [stats, places] = ["stat", "wchan"].map(|file| read_of_tasks(server.pid(), file));
    let name_and_state = |stat: &String| {
        let (name, rest) = stat.rsplit_once(')').unwrap_or((stat, ""));
        format!("{}: {}", name.rsplit('(').next().unwrap_or(""), &rest[..rest.len().min(2)])
    };
    let all = stats.iter().zip(&places);
    all.map(|(stat, place)| format!("{} {place}", name_and_state(stat))).collect()
}

/// Does `warm` and then `all` of something, and checks that the server holds no more after the
/// second than after the first. A shard's buffers, 4 MiB, come into being as they are used.
pub(crate) fn leaves_nothing(server: &Server, what: &str, warm: impl Fn(), all: impl Fn()) {
    let fresh = Holdings::of(server.pid());
    warm();
    let before = at_rest(server);
    let before_threads = threads(server);
    let begun = Instant::now();
    all();
    let took = begun.elapsed();
    let after = at_rest(server);
    println!(
        "{what}: {took:.1?}\n  fresh  {fresh:?}\n  before {before:?}, {before_threads} threads\n  \
         after  {after:?}, {} threads",
        threads(server)
    );
    before.wait_until_back(server.pid());
    wait_until("as many threads", || threads(server) <= before_threads);
    all_sessions_are_to_be_had(server);
}

/// The directory forgets a session only if somebody ended it.
fn all_sessions_are_to_be_had(server: &Server) {
    let mut client = Client::connect(server.address(), "");
    let of = |name: usize| {
        format!("GetProperties(session=SessionKey('h', {}, '{}'))", name % 16, name / 16)
    };
    let all: Vec<String> = (0..SESSIONS_MAX).map(of).collect();
    client.batch(&all, &[]).ok();
    let failure = client.batch(&[of(SESSIONS_MAX)], &[]).failure();
    assert!(failure.contains("sessions"), "{failure}");
}

/// Goes away in some way.
pub(crate) fn leave(stream: TcpStream, pick: &mut Pick) {
    match pick.below(3) {
        // FIN, or RST where something was not read.
        0 => {}
        1 => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
        _ => {
            // Fails where the server was faster.
            let _ = stream.shutdown(Shutdown::Write);
            let mut rest = std::io::sink();
            let read = std::io::copy(&mut &stream, &mut rest);
            let is_timeout =
                |error: &std::io::Error| matches!(error.kind(), std::io::ErrorKind::WouldBlock);
            assert!(!read.as_ref().is_err_and(is_timeout), "the server does not close");
        }
    }
}

/// Lets some time pass, so that what follows happens anywhere in what the server does.
pub(crate) fn dawdle(pick: &mut Pick) {
    let most = pick.of(&[1, 1, 300, 5000, 30_000]);
    let until = Instant::now() + Duration::from_micros(pick.below(most) as u64);
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

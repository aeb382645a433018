//! Many clients for a long time, with workers that are killed, and what the server holds meanwhile.
//!
//! Now and then everybody pauses, and the server is looked at when nobody is connected: what it
//! holds then must not grow. It is looked at under load too, which is for people.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::link::{Link, certificate};
use crate::pick::Pick;
use crate::rig::{at_rest, doings, seed, seeded, threads};
use crate::soaker::{Counts, Target, episode};
use crate::support::holdings::{Holdings, children_of, resident_bytes};
use crate::support::wait::wait_until;
use crate::support::{Server, scratch_file};

const TOKENS: [&str; 2] = ["ann-0123456789abcdefghijklmnop", "bob-0123456789abcdefghijklmnop"];

/// Sessions of one identity: twice what all clients have at once, since the end of one that has
/// died takes a moment.
const SESSIONS_MAX: usize = 256;

/// How much more memory a minute may take at rest. The allocator keeps between 100 and 190 MB after
/// the load of 64 clients, which over ten minutes looks like a slope of 1.6 MB a minute either way
/// (one standard deviation).
const BYTES_PER_MINUTE_MAX: f64 = 4_194_304.0;

/// Below this the slope says nothing.
const SLOPE_MINUTES_MIN: f64 = 5.0;

/// A file that its owner alone may read, and that goes with it.
struct Private(PathBuf);

impl Private {
    fn new(text: &str) -> Private {
        let path = scratch_file("private");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Private(path)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Best effort: the folder belongs to the build and goes with it.
        let _ = fs::remove_file(&self.0);
    }
}

/// What the server held when nobody was connected.
struct Sample {
    minutes: f64,
    holdings: Holdings,
    threads: usize,
}

struct Soak<'s> {
    server: &'s Server,
    target: Target,
    counts: Counts,
    /// Held for reading by whoever is connected.
    open: RwLock<()>,
    /// For how long the memory has to be the same before it counts as memory at rest.
    settles_in: Duration,
    is_over: AtomicBool,
    peak_bytes: AtomicU64,
}

/// Ends all when one client has found a fault, and says what the server does then.
struct Stop<'s>(&'s Soak<'s>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.0.is_over.swap(true, Ordering::Relaxed) {
            for doing in doings(self.0.server) {
                eprintln!("  {doing}");
            }
        }
    }
}

impl Soak<'_> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn client(&self, client: u64, test: &str) {
        let _stop = Stop(self);
        for round in 0.. {
            if self.is_over() {
                return;
            }
            let _open = self.open.read().unwrap();
            let seed = seed().wrapping_add(client * 1_000_000 + round);
            let nonce = format!("c{client}r{round}");
            seeded(seed, test, |pick| episode(&self.target, nonce, &self.counts, pick));
        }
    }

    /// Kills a worker now and then.
    fn kill_workers(&self, mut pick: Pick) {
        while !self.is_over() {
            // The pace, not an order of events.
            std::thread::sleep(Duration::from_millis(100 + pick.below(900) as u64));
            let children = children_of(self.server.pid());
            if !children.is_empty() {
                let child = pick.of(&children);
                // Counted before anybody can notice.
                self.counts.workers_killed.fetch_add(1, Ordering::Relaxed);
                if kill_worker(self.server.pid(), &child).is_none() {
                    self.counts.workers_killed.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Looks at the server until the time is over.
    fn samples(&self, time: Duration, every: Duration) -> Vec<Sample> {
        let begun = Instant::now();
        let (mut samples, mut looked) = (Vec::new(), begun);
        while begun.elapsed() < time && !self.is_over() {
            std::thread::sleep(every / 20);
            self.peak_bytes.fetch_max(resident_bytes(self.server.pid()), Ordering::Relaxed);
            if looked.elapsed() >= every {
                samples.push(self.sample(begun));
                looked = Instant::now();
            }
        }
        self.is_over.store(true, Ordering::Relaxed);
        samples.push(self.sample(begun));
        samples
    }

    fn sample(&self, begun: Instant) -> Sample {
        let _closed = self.open.write().unwrap();
        let holdings = self.settled();
        let minutes = begun.elapsed().as_secs_f64() / 60.0;
        let sample = Sample { minutes, holdings, threads: threads(self.server) };
        println!(
            "{minutes:6.2} min: {:?}, {} threads; {:?}",
            sample.holdings, sample.threads, self.counts
        );
        sample
    }

    /// What the server holds once it has given back what it is not going to use.
    fn settled(&self) -> Holdings {
        let mut last = at_rest(self.server);
        wait_until("the memory stays the same", || {
            // The span that is looked at.
            std::thread::sleep(self.settles_in);
            let now = Holdings::of(self.server.pid());
            let is_settled = now.memory_bytes == last.memory_bytes || self.settles_in.is_zero();
            last = now;
            is_settled
        });
        last
    }

    /// A session that nobody ended would be missed here.
    fn all_sessions_are_to_be_had(&self) {
        for token in TOKENS {
            let mut link = Link::open(self.target.plain, false, token);
            let of = |name: usize| {
                format!("GetProperties(session=SessionKey('h', {}, '{}'))", name % 16, name / 16)
            };
            let all: Vec<String> = (0..SESSIONS_MAX).map(of).collect();
            link.send(&link.request(&format!("[{}]", all.join(", ")), &[]));
            link.receive().ok();
        }
    }
}

/// Kills a process, if it is a worker of the server. `None` if it is not, or has ended.
fn kill_worker(server: u32, child: &str) -> Option<()> {
    let pid = Pid::from_raw(child.parse().ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // What is read now is of the process that the handle names, or of none.
    let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
    let is_child = children_of(server).iter().any(|known| known == child);
    let is_worker = arguments.split('\0').nth(1) == Some("worker");
    (is_child && is_worker).then_some(())?;
    pidfd_send_signal(&handle, Signal::KILL).ok()
}

fn soak(clients: u64, time: Duration, every: Duration, settles_in: Duration, test: &str) {
    let key = Private::new(&fs::read_to_string(certificate("server.key")).unwrap());
    let tokens = Private::new(&format!("ann {}\nbob {}\n", TOKENS[0], TOKENS[1]));
    let server = Server::builder()
        .arg("--no-cache")
        .arg(&format!("--session-limit={SESSIONS_MAX}"))
        .arg(&format!("--tls-cert={}", certificate("server.pem").display()))
        .arg(&format!("--tls-key={}", key.0.display()))
        .arg(&format!("--token-file={}", tokens.0.display()))
        .arg("--listen-plain=127.0.0.1:0")
        .start();
    let line = server.ready_line();
    let addresses: Vec<_> = line.split(&[' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let target = Target { tls: addresses[0], plain: addresses[1], tokens: TOKENS };
    let soak = Soak {
        server: &server,
        target,
        counts: Counts::default(),
        open: RwLock::default(),
        settles_in,
        is_over: AtomicBool::default(),
        peak_bytes: AtomicU64::default(),
    };
    let samples = std::thread::scope(|scope| {
        for client in 0..clients {
            let soak = &soak;
            scope.spawn(move || soak.client(client, test));
        }
        scope.spawn(|| soak.kill_workers(Pick::Seed(seed())));
        let _stop = Stop(&soak);
        soak.samples(time, every)
    });
    let (killed, lost) = (&soak.counts.workers_killed, &soak.counts.losses);
    let (killed, lost) = (killed.load(Ordering::Relaxed), lost.load(Ordering::Relaxed));
    assert!(lost <= killed, "{lost} clients heard of the end of {killed} workers");
    soak.all_sessions_are_to_be_had();
    println!("most under load: {} MiB", soak.peak_bytes.load(Ordering::Relaxed) >> 20);
    check(&samples);
}

/// That nothing grows.
fn check(samples: &[Sample]) {
    let (first, last) = (&samples[0], &samples[samples.len() - 1]);
    let half = &samples[samples.len() / 2..];
    assert!(last.holdings.descriptors <= first.holdings.descriptors, "descriptors grow");
    assert!(last.threads <= first.threads, "threads grow");
    let points = half.iter().map(|sample| (sample.minutes, sample.holdings.memory_bytes as f64));
    let slope = slope(&points.collect::<Vec<_>>());
    let minutes = last.minutes - half[0].minutes;
    println!("memory at rest: {slope:.0} bytes per minute over the last {minutes:.1} minutes");
    // Before that the allocator has not seen what it will keep.
    if minutes >= SLOPE_MINUTES_MIN {
        assert!(slope <= BYTES_PER_MINUTE_MAX, "memory grows");
    }
}

/// The slope of the line with the least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let under: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if under > 0.0 { over / under } else { 0.0 }
}

#[test]
fn slope_of_points_on_a_line_is_the_lines() {
    let points: Vec<(f64, f64)> =
        (0..9).map(|x| (f64::from(x), 5.0 - 3.0 * f64::from(x))).collect();
    assert!((slope(&points) + 3.0).abs() < 1e-9);
}

#[test]
fn clients_that_mix_all_commands_get_what_they_ask_for() {
    soak(12, Duration::from_secs(6), Duration::from_secs(2), Duration::ZERO, "mix");
}

#[test]
#[ignore = "20 minutes, in release; see the head of main.rs"]
fn soak_of_many_clients_stays_flat() {
    let minutes = std::env::var("OUTBOARD_SOAK_MINUTES");
    let minutes: f64 = minutes.map_or(20.0, |minutes| minutes.parse().unwrap());
    let time = Duration::from_secs_f64(minutes * 60.0);
    let every = Duration::from_secs(20).min(time / 6);
    soak(64, time, every, Duration::from_secs(3), "soak -- --ignored");
}

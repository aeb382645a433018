//! What one client's small requests take, sent at a steady pace, while others may keep the server
//! busy; and which shard a connection is on, so that both can be put on the same one or apart.
//!
//! Beside the server's answers the same client measures an echo: a blocking thread on the server's
//! core, which does nothing else. Whoever burdens the server burdens that core too, so the echo
//! says how much of a delay is the machine's.

use std::fs;
use std::io::BufRead;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{self, Client, Wire, expect_int, list};
use crate::floors::{REPLY_BYTES, REQUEST_BYTES};
use crate::{Result, Results, Setting, process};

/// Requests before the measurement, of each kind.
const WARM_UP: usize = 50;
/// Connections that are tried until one is on the shard that is wanted.
const TRIES: usize = 64;
/// Requests that tell on which shard a connection is: so many that their processor time is seen.
const PROBES: usize = 40;

/// How the requests are sent.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// From one request to the next.
    pub(crate) pause: Duration,
    pub(crate) time: Duration,
    /// The core of the thread that echoes.
    pub(crate) server_core: Option<usize>,
    /// Say that all is prepared, and begin when told so.
    pub(crate) announce: bool,
}

/// Round trips of one kind.
struct Kind {
    name: &'static str,
    /// Empty for the echo.
    request: Vec<u8>,
    times: Vec<Duration>,
}

pub(crate) fn measure(setting: &Setting, pace: Pace) -> Result<Results> {
    let mut client = setting.connect()?;
    let session = client.session.clone();
    let hash = client.prepare_kernel(&session)?;
    let mut echo = echo(pace.server_core)?;
    let copy_out = client.batch(&list(&[client::copy_out(&session, 1)]));
    let requests = [
        ("empty", client.batch("[]")),
        ("copy_out", copy_out.clone()),
        ("launch", client.batch(&list(&[client::launch(&session, &hash, true)]))),
        ("echo", Vec::new()),
    ];
    let mut kinds = requests.map(|(name, request)| Kind { name, request, times: Vec::new() });
    if pace.announce {
        announce()?;
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    for kind in &kinds {
        for _ in 0..WARM_UP {
            round_trip(&mut client, &mut echo, &kind.request)?;
        }
    }
    let began = Instant::now();
    let mut due = began;
    while began.elapsed() < pace.time {
        for kind in &mut kinds {
            // What came late moves those behind it: each time is that of its own request alone.
            due = (due + pace.pause).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let since = Instant::now();
            round_trip(&mut client, &mut echo, &kind.request)?;
            kind.times.push(since.elapsed());
        }
    }
    expect_int(client.request(&copy_out)?, 42)?;
    let mut results = Results::new();
    for Kind { name, times, .. } in &mut kinds {
        report(name, times, &mut results);
    }
    Ok(results)
}

fn round_trip(client: &mut Client, echo: &mut Wire, request: &[u8]) -> Result<()> {
    if request.is_empty() {
        echo.write_all(&[0; REQUEST_BYTES])?;
        return Ok(echo.read_exact(&mut [0; REPLY_BYTES])?);
    }
    client.request(request).map(drop)
}

fn report(name: &str, times: &mut [Duration], results: &mut Results) {
    times.sort();
    let mut at = |part: &str, index: usize| {
        let time = times.get(index.min(times.len() - 1)).copied().unwrap_or_default();
        results.insert(format!("{name}_{part}_us"), json!(time.as_secs_f64() * 1e6));
    };
    at("p50", times.len() / 2);
    at("p99", times.len() * 99 / 100);
    at("p999", times.len() * 999 / 1000);
    at("max", times.len() - 1);
}

/// Tells whoever started this that everything is prepared.
pub(crate) fn announce() -> Result<()> {
    println!("ready");
    Ok(std::io::Write::flush(&mut std::io::stdout())?)
}

/// A thread that answers messages as long as an empty batch until the program ends.
fn echo(core: Option<usize>) -> Result<Wire> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let mut far = Wire::new(far, false)?;
    std::thread::spawn(move || {
        if let Err(error) = process::pin(core) {
            return eprintln!("core {core:?}: {error}");
        }
        let mut request = [0; REQUEST_BYTES];
        while far.read_exact(&mut request).is_ok() && far.write_all(&[0; REPLY_BYTES]).is_ok() {}
    });
    Ok(Wire::new(near, false)?)
}

impl Setting {
    /// A connection with a session, on the shard that is wanted.
    pub(crate) fn connect(&self) -> Result<Client> {
        let Some((shard, pid)) = self.shard.zip(self.pid) else {
            return Client::connect(self.address, self.spin);
        };
        for _ in 0..TRIES {
            let mut client = Client::connect(self.address, self.spin)?;
            let empty = client.batch("[]");
            client.request(&empty)?;
            let before = shard_times(pid);
            for _ in 0..PROBES {
                client.request(&empty)?;
            }
            let grown = shard_times(pid)
                .into_iter()
                .zip(before)
                .map(|((name, after), (_, then))| (after.saturating_sub(then), name));
            let busiest = grown.max().ok_or("the server's threads cannot be seen")?;
            if busiest.1 == shard {
                return Ok(client);
            }
        }
        Err(format!("no connection of {TRIES} came to shard {shard}").into())
    }
}

/// Processor time of each shard's thread, in nanoseconds.
fn shard_times(pid: u32) -> Vec<(usize, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut times: Vec<_> = tasks
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let shard = name.trim().strip_prefix("shard-")?.split('-').next()?.parse().ok()?;
            let times = fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some((shard, times.split_whitespace().next()?.parse().ok()?))
        })
        .collect();
    times.sort_unstable();
    times.sort_by_key(|(shard, _)| *shard);
    times
}

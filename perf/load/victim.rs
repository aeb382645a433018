//! What one client's small requests take, sent at a steady pace, while others may keep the server
//! busy; and which shard a connection is on, so that both can be put on the same one or apart.
//!
//! Beside the server's answers the same client measures an echo: a blocking thread on the server's
//! core, which does nothing else. Whoever burdens the server burdens that core too, so the echo
//! says how much of a delay is the machine's.
//!
//! Another process is stopped and let go on by turns, so that the times without it and beside it
//! are of the same minute: a shared machine is slower in one minute than in another by more than
//! what is measured here. A third process may run while the other is stopped, one that keeps a
//! core busy and asks nothing of the server: where the machine has few cores, that too makes a
//! difference.

use std::fs;
use std::io::BufRead;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
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

/// How long another process runs, and is stopped, at a time; at most half of all.
const PHASE_MAX: Duration = Duration::from_millis(1500);
/// The part of that in which nothing is measured: what the other process has asked for is still
/// being done.
const SETTLING_SHARE: u32 = 2;

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
    without: Vec<Duration>,
    beside: Vec<Duration>,
}

/// Other processes, of which one runs at a time, if there is more than one.
struct Others {
    greedy: Pid,
    spinner: Option<Pid>,
    phase: Duration,
    greedy_runs: bool,
    since: Instant,
}

impl Others {
    /// From a line of one or two numbers of processes; nothing where it is empty.
    fn parse(line: &str, phase: Duration) -> Result<Option<Others>> {
        let mut pids = line.split_whitespace().map(|pid| -> Result<Pid> {
            Ok(Pid::from_raw(pid.parse()?).ok_or("0 is no process")?)
        });
        let Some(greedy) = pids.next().transpose()? else { return Ok(None) };
        let spinner = pids.next().transpose()?;
        Ok(Some(Others { greedy, spinner, phase, greedy_runs: false, since: Instant::now() }))
    }

    fn turn(&mut self) -> Result<()> {
        self.greedy_runs = !self.greedy_runs;
        self.since = Instant::now();
        let [stopped, going] = match self.greedy_runs {
            true => [self.spinner, Some(self.greedy)],
            false => [Some(self.greedy), self.spinner],
        };
        stopped.map_or(Ok(()), |pid| kill_process(pid, Signal::STOP))?;
        Ok(going.map_or(Ok(()), |pid| kill_process(pid, Signal::CONT))?)
    }

    fn is_settled(&self) -> bool {
        self.since.elapsed() >= self.phase / SETTLING_SHARE
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // Stopped, they would never end.
        for pid in [Some(self.greedy), self.spinner].into_iter().flatten() {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
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
    let mut kinds = requests.map(|(name, request)| {
        let (without, beside) = (Vec::new(), Vec::new());
        Kind { name, request, without, beside }
    });
    let mut pids = String::new();
    if pace.announce {
        announce()?;
        std::io::stdin().lock().read_line(&mut pids)?;
    }
    let mut others = Others::parse(&pids, PHASE_MAX.min(pace.time / 2))?;
    for kind in &kinds {
        for _ in 0..WARM_UP {
            round_trip(&mut client, &mut echo, &kind.request)?;
        }
    }
    let began = Instant::now();
    let mut due = began;
    others.as_mut().map_or(Ok(()), Others::turn)?;
    while began.elapsed() < pace.time {
        if let Some(others) = &mut others
            && others.since.elapsed() >= others.phase
        {
            others.turn()?;
        }
        for kind in &mut kinds {
            // What came late moves those behind it: each time is that of its own request alone.
            due = (due + pace.pause).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let since = Instant::now();
            round_trip(&mut client, &mut echo, &kind.request)?;
            let took = since.elapsed();
            match &others {
                Some(others) if !others.is_settled() => {}
                Some(others) if others.greedy_runs => kind.beside.push(took),
                _ => kind.without.push(took),
            }
        }
    }
    drop(others);
    expect_int(client.request(&copy_out)?, 42)?;
    let mut results = Results::new();
    for Kind { name, without, beside, .. } in &mut kinds {
        report(&format!("{name}_without"), without, &mut results);
        report(&format!("{name}_beside"), beside, &mut results);
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
    if times.is_empty() {
        return;
    }
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
    /// A connection with a session, on any shard.
    fn connect_anywhere(&self) -> Result<Client> {
        match self.from {
            None => Client::connect(self.address, self.spin),
            Some(from) => Client::connect_from(from, self.address, self.spin),
        }
    }

    /// A connection with a session, on the shard that is wanted.
    pub(crate) fn connect(&self) -> Result<Client> {
        let Some((shard, pid)) = self.shard.zip(self.pid) else {
            return self.connect_anywhere();
        };
        for _ in 0..TRIES {
            let mut client = self.connect_anywhere()?;
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

//! `latency/*`: how long a client waits for each kind of command, on this machine.
//!
//! A server in this process, of one shard, and one client on loopback, each on a core of its own.
//! Beside each row stands its floor: a blocking thread on the server's core that takes a message of
//! the same length and sends one as long as the reply, measured in turns with the server.
//!
//! Reading order: this file (arguments, the device, the run), `cases` (what is asked), `echo` (the
//! floor), `report` (what is printed).

mod cases;
mod echo;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use outboard::config::{CacheDir, CompileConfig};
use outboard::device::platform::{CpuPlatform, PlatformConfig};
use outboard::device::shared::Budget;
use outboard::shard::PlatformMaker;
use outboard::{compile, cores};

use cases::{Case, Cases};
use echo::Echo;
use report::{Report, Row, Times};
use support::loopback::{Awake, Client, Result, null_platform, pin, start, stop};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Turns that the server and its floor take at each row: what disturbs one disturbs both.
const TURNS: u32 = 8;

/// Round-trip times of every command, over loopback, beside the floor of a bare echo.
#[derive(Parser)]
#[command(name = "latency")]
struct Args {
    /// Rows to measure: those whose name holds one of these [default: all].
    filter: Vec<String>,
    /// What runs the kernels; auto takes the CPU where there is a C compiler for it.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// The server's core and the client's, such as 2,3 [default: the first two of this process].
    #[arg(long, value_name = "SERVER,CLIENT")]
    cores: Option<String>,
    /// Seconds for each row and mode.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// How the client waits: asleep (idle), spinning (warm), or each in turn.
    #[arg(long, value_enum, default_value = "both")]
    mode: Mode,
    /// Also write everything to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Name the rows and end.
    #[arg(long)]
    list: bool,
    /// A short look, for tests of this program: 0.05 seconds a row.
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceChoice {
    Auto,
    Cpu,
    Null,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Idle,
    Warm,
    Both,
}

impl Args {
    fn asks_for(&self, name: &str) -> bool {
        let name = format!("latency/{name}");
        self.filter.is_empty() || self.filter.iter().any(|part| name.contains(part.as_str()))
    }
}

impl Mode {
    fn each(self) -> &'static [Awake] {
        match self {
            Mode::Idle => &[Awake::No],
            Mode::Warm => &[Awake::Yes],
            Mode::Both => &[Awake::No, Awake::Yes],
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Cases { prepare, mut all } = Cases::new();
    all.retain(|case| args.asks_for(case.name));
    if args.list {
        all.iter().for_each(|case| println!("latency/{}", case.name));
    }
    if args.list || all.is_empty() {
        return Ok(());
    }
    let (server_core, client_core) = choose_cores(args.cores.as_deref())?;
    let (device, platform) = choose_platform(args.device)?;
    let server = start(server_core, &platform)?;
    pin(client_core)?;
    let seconds = if args.quick { 0.05 } else { args.seconds };
    let slice = Duration::try_from_secs_f64(seconds / f64::from(TURNS))?;
    let mut report = Report::new(device, server_core, client_core, seconds);

    let mut client = Client::connect(server.addresses()[0])?;
    client.exchange(&prepare)?;
    for case in &all {
        for awake in args.mode.each() {
            client.wait_awake(*awake)?;
            let row = measure(&mut client, case, *awake, server_core, slice)
                .map_err(|error| format!("{}: {error}", case.name))?;
            report.add(row);
        }
    }
    report.finish();
    drop(client);
    stop(server);
    match &args.json {
        Some(path) => Ok(std::fs::write(path, report.to_json())?),
        None => Ok(()),
    }
}

/// One row: the server and its floor in turns.
fn measure(
    client: &mut Client,
    case: &Case,
    awake: Awake,
    server_core: usize,
    slice: Duration,
) -> Result<Row> {
    // What happens once, such as the first touch of memory, is not asked about.
    let reply_bytes = once(client, case)?.1;
    let mut echo = Echo::start(case.request.len(), reply_bytes, server_core)?;
    echo.wait_awake(awake)?;
    let (mut server, mut floor) = (Times::new(), Times::new());
    for _ in 0..TURNS {
        let until = Instant::now() + slice / 4;
        while Instant::now() < until {
            floor.add(echo.round_trip(&case.request)?);
        }
        let until = Instant::now() + slice / 4 * 3;
        while Instant::now() < until {
            server.add(once(client, case)?.0);
        }
    }
    echo.stop()?;
    let request_bytes = case.request.len();
    Ok(Row { name: case.name, awake, request_bytes, reply_bytes, server, floor })
}

/// The time of the one request that counts, and the length of its reply.
fn once(client: &mut Client, case: &Case) -> Result<(Duration, usize)> {
    for request in &case.before {
        client.exchange(request)?;
    }
    let began = Instant::now();
    let reply_bytes = client.exchange(&case.request)?;
    let elapsed = began.elapsed();
    for request in &case.after {
        client.exchange(request)?;
    }
    Ok((elapsed, reply_bytes))
}

fn choose_cores(given: Option<&str>) -> Result<(usize, usize)> {
    let allowed = cores::allowed()?;
    let two = match given {
        Some(text) => {
            let cores: std::result::Result<Vec<usize>, _> =
                text.split(',').map(str::parse).collect();
            cores.map_err(|error| format!("--cores {text}: {error}"))?
        }
        None => allowed.iter().copied().cycle().take(2).collect(),
    };
    let &[server, client] = &two[..] else {
        return Err("--cores takes two: the server's and the client's".into());
    };
    match two.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(format!("this process may not use core {core} of {allowed:?}").into()),
        None => Ok((server, client)),
    }
}

fn choose_platform(choice: DeviceChoice) -> Result<(&'static str, PlatformMaker)> {
    if choice == DeviceChoice::Null {
        return Ok(("null", null_platform()));
    }
    let compile = compile::Service::new(CompileConfig {
        cache_dir: CacheDir::Off,
        ..CompileConfig::default()
    });
    match compile.toolchain() {
        Err(error) if choice == DeviceChoice::Cpu => Err(error.to_string().into()),
        Err(error) => {
            eprintln!("no CPU device: {error}; these are the times of a device without kernels");
            Ok(("null", null_platform()))
        }
        Ok(_) => {
            let config = PlatformConfig {
                device_count: 16,
                worker_exe: PathBuf::from(env!("CARGO_BIN_EXE_outboard")),
                kernel_time_max: Duration::from_secs(60),
                budget: Arc::new(Budget::new(16 << 30)),
                compile: Arc::new(compile),
            };
            Ok(("cpu", Arc::new(move || Box::new(CpuPlatform::new(config.clone())))))
        }
    }
}

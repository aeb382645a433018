//! A load generator that speaks the wire by hand over blocking sockets: the same work for any
//! server of the protocol, so that two can be compared, and the floors that no server can beat.
//!
//! Reading order: this file, `client` (the wire), `server` (what is measured of a server), `bulk`,
//! `gpu` (of a server with a GPU), `floors`, `scale` and `many` (cost against size and number),
//! `victim` and `greedy` (one client beside another), `process`. Each run prints one JSON object on
//! standard output. The scripts beside this folder run it and make tables. Every result
//! is checked for being right.

mod bulk;
mod client;
mod floors;
mod gpu;
mod greedy;
mod many;
mod process;
mod scale;
mod server;
mod victim;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Results = Map<String, Value>;

#[derive(Parser)]
#[command(about = "Loads a server of the wire protocol, or measures what no server can beat.")]
struct Args {
    /// The core that the load runs on.
    #[arg(long, global = true)]
    core: Option<usize>,
    /// How often measurements are repeated.
    #[arg(long, global = true, value_enum, default_value = "full")]
    effort: Effort,
    /// Ask the socket again and again instead of sleeping until there is a reply.
    #[arg(long, global = true)]
    spin: bool,
    /// The server's process, for the processor time and memory that it and its children use.
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// Connect to this shard of the server's; needs --pid. Nobody else may use the server while a
    /// shard is looked for.
    #[arg(long, global = true, requires = "pid")]
    shard: Option<usize>,
    /// Connect from this address. To a server that trusts each address of its own, clients of
    /// different addresses are different clients.
    #[arg(long, global = true)]
    from: Option<IpAddr>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a server.
    Server {
        address: SocketAddr,
        /// What to measure.
        #[arg(
            long,
            value_enum,
            value_delimiter = ',',
            default_value = "latency,launch,small-graph,large-graph,bulk"
        )]
        parts: Vec<server::Part>,
    },
    /// Measure a server with any device, its own kernels included, as `perf/gpu` needs it.
    Gpu {
        address: SocketAddr,
        #[arg(long, value_enum, value_delimiter = ',', default_value = "copy,launch,graph")]
        parts: Vec<gpu::Part>,
        /// Of the copies.
        #[arg(long, default_value_t = 1 << 30)]
        bytes: usize,
        /// Integers that each kernel of the graph adds; a multiple of 256.
        #[arg(long, default_value_t = 256)]
        elements: usize,
    },
    /// Measure what the machine allows.
    Floors {
        /// The core of the thread that stands for the server.
        #[arg(long)]
        server_core: Option<usize>,
        /// With --spin, only the end that stands for the client spins.
        #[arg(long)]
        server_sleeps: bool,
        /// Congestion control of the connections instead of the system's default.
        #[arg(long)]
        congestion: Option<String>,
        #[arg(long, value_enum, value_delimiter = ',', default_value = "echo,stream,memory")]
        parts: Vec<floors::Part>,
    },
    /// Measure cost against the number or size of something.
    Scale {
        #[arg(value_enum)]
        of: scale::Axis,
        address: SocketAddr,
        /// The largest size.
        #[arg(long, default_value_t = usize::MAX)]
        up_to: usize,
    },
    /// Measure one connection among many idle ones, the throughput of 64, and memory.
    Connections {
        address: SocketAddr,
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Send one blob of many gigabytes and watch the server's memory.
    Upload {
        address: SocketAddr,
        #[arg(long, default_value_t = 4 << 30)]
        bytes: usize,
    },
    /// Copy 256 MiB from one server to another.
    Transfer { address: SocketAddr, to: SocketAddr },
    /// Repeat one kind of request for a while.
    Run {
        #[arg(value_enum)]
        what: server::Load,
        address: SocketAddr,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Print a line when all is prepared.
        #[arg(long)]
        announce: bool,
    },
    /// Measure small requests at a steady pace, whatever others do to the server meanwhile.
    Victim {
        address: SocketAddr,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// From one request to the next.
        #[arg(long, default_value_t = 500)]
        pause_us: u64,
        /// The core of the thread that echoes.
        #[arg(long)]
        server_core: Option<usize>,
        /// Print a line when all is prepared, and begin when one is read: with the number of a
        /// process that is to be stopped and let go on by turns, and that of one that runs
        /// meanwhile, if there are such.
        #[arg(long)]
        announce: bool,
    },
    /// Use the core and nothing else for a while.
    Spin {
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Print the source of the kernel that is launched.
    Kernel,
    /// Print the body of an empty batch, as bytes.
    EmptyBatch,
}

#[derive(Clone, Copy, ValueEnum)]
enum Effort {
    /// Only shows that everything works.
    Smoke,
    Quick,
    Full,
}

/// How often each kind of measurement is repeated.
#[derive(Clone, Copy)]
struct Counts {
    round_trips: usize,
    /// At least so many, of what takes long.
    repeats: usize,
    /// And as many more as fit into this.
    time: Duration,
}

impl Effort {
    fn counts(self) -> Counts {
        let (round_trips, repeats, milliseconds) = match self {
            Effort::Smoke => (50, 1, 0),
            Effort::Quick => (2_000, 2, 300),
            Effort::Full => (10_000, 5, 1_000),
        };
        Counts { round_trips, repeats, time: Duration::from_millis(milliseconds) }
    }
}

/// What every measurement of a server is told.
struct Setting {
    address: SocketAddr,
    counts: Counts,
    pid: Option<u32>,
    shard: Option<usize>,
    from: Option<IpAddr>,
    spin: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    process::pin(args.core)?;
    let counts = args.effort.counts();
    let (pid, shard, from, spin) = (args.pid, args.shard, args.from, args.spin);
    let setting = |address| Setting { address, counts, pid, shard, from, spin };
    let measured = match args.command {
        Command::Server { address, parts } => server::measure(&setting(address), &parts)?,
        Command::Gpu { address, parts, bytes, elements } => {
            gpu::measure(&setting(address), &parts, bytes, elements)?
        }
        Command::Floors { server_core, server_sleeps, congestion, parts } => {
            let server_spin = spin && !server_sleeps;
            let floors = floors::Floors { counts, spin, server_spin, server_core, congestion };
            floors::measure(&floors, &parts)?
        }
        Command::Scale { of, address, up_to } => scale::measure(&setting(address), of, up_to)?,
        Command::Connections { address, count } => many::measure(&setting(address), count)?,
        Command::Upload { address, bytes } => bulk::upload(&setting(address), bytes)?,
        Command::Transfer { address, to } => bulk::transfer(&setting(address), to)?,
        Command::Run { what, address, seconds, announce } => {
            server::run(&setting(address), what, Duration::from_secs_f64(seconds), announce)?
        }
        Command::Victim { address, seconds, pause_us, server_core, announce } => {
            let (pause, time) = (Duration::from_micros(pause_us), Duration::from_secs_f64(seconds));
            let pace = victim::Pace { pause, time, server_core, announce };
            victim::measure(&setting(address), pace)?
        }
        Command::Spin { seconds } => {
            let (began, time) = (Instant::now(), Duration::from_secs_f64(seconds));
            while began.elapsed() < time {
                std::hint::spin_loop();
            }
            Results::new()
        }
        Command::Kernel => {
            print!("{}", client::KERNEL);
            return Ok(());
        }
        Command::EmptyBatch => {
            let body = [&[0; 32][..], &2_u64.to_le_bytes(), b"[]"].concat();
            return Ok(std::io::Write::write_all(&mut std::io::stdout(), &body)?);
        }
    };
    println!("{}", Value::Object(measured));
    Ok(())
}

/// Times of what is done as often as the effort says, in seconds.
fn repeated(counts: Counts, mut once: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < counts.repeats || began.elapsed() < counts.time {
        times.push(once()?.as_secs_f64());
    }
    Ok(times)
}

/// The middle value; of an even number, the upper one of the two.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median and 99th percentile, in microseconds.
fn report_times(name: &str, times: &mut [Duration], results: &mut Results) {
    times.sort();
    let microseconds = |at: usize| times[at.min(times.len() - 1)].as_secs_f64() * 1e6;
    results.insert(format!("{name}_p50_us"), json!(microseconds(times.len() / 2)));
    results.insert(format!("{name}_p99_us"), json!(microseconds(times.len() * 99 / 100)));
}

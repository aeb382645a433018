//! The command line: arguments, signals, exit codes.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use outboard::config::{
    CacheDir, CompileConfig, CompilerChoice, EngineLimits, HashPolicy, HttpLimits, PeerLimits,
    RdmaConfig, RingLimits, ShardLimits,
};
use outboard::cores::crowd::Crowds;
use outboard::device::gpu::{CudaSource, GpuConfig, GpuPlatform, Vendor, WorkersConfig};
use outboard::device::platform::{CpuPlatform, PlatformConfig};
use outboard::device::shared::Budget;
use outboard::identity::{Access, Network, PeerRule, Peers, Rules, TlsFiles};
use outboard::rdma::{Device, DeviceFabric, Fabric as _};
use outboard::shard::{self, Admission, Drain, PlatformMaker, Server};

use outboard::{check, compile, cores, device};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{debug, error, info, warn};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Puts this machine's accelerators on the network, for tinygrad's REMOTE=1 clients.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients (the default).
    Serve(Box<ServeArgs>),
    /// Say what this machine offers and lacks, with remedies.
    Check,
    /// Run one session's kernels, or drive its device. Started by the server, never by hand.
    #[command(hide = true)]
    Worker {
        driver: Option<Driver>,
        #[arg(default_value_t = 0)]
        ordinal: i32,
        /// Network cards are to reach its memory.
        #[arg(long)]
        exports: bool,
    },
    /// Run a GPU compiler. Started by the server, never by hand.
    #[command(hide = true, name = compile::worker::ARGUMENT)]
    CompileWorker {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What a worker drives, if it does not run kernels itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Driver {
    Cuda,
    Hip,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
    Hip,
}

/// What keeps sessions of a GPU apart.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Isolation {
    /// A process for each session: a fault costs that session.
    Session,
    /// Contexts of the server's process: less latency.
    Process,
}

/// What clients of CUDA devices are to write.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RendererChoice {
    /// CUDA C++ where there is NVRTC, else PTX.
    Auto,
    Cuda,
    Ptx,
}

#[derive(Args)]
struct ServeArgs {
    /// Address to listen on; may be given several times.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6667")]
    listen: Vec<SocketAddr>,
    /// File of those who may use the server, a line NAME TOKEN for each; read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Network whose clients need no token, such as 10.0.0.0/8; may be given several times.
    #[arg(long, value_name = "CIDR")]
    trust: Vec<Network>,
    /// The server's certificate (PEM): what --listen names speaks TLS 1.3 then.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Who signs the certificates that clients have to show (PEM); a client is known by the DNS
    /// name in its own.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Address to listen on without TLS, beside --listen; may be given several times.
    #[arg(long, value_name = "ADDR:PORT", requires = "tls_cert")]
    listen_plain: Vec<SocketAddr>,
    /// Another server that clients may have this one send tensors to, spelt as clients spell it;
    /// may be given several times [default: servers on loopback, while this one listens on
    /// loopback alone]. With token=FILE, what this server says of itself there. With ca=FILE,
    /// TLS 1.3 is spoken there and nothing else, and FILE has the authorities of its certificate
    /// (PEM), which has to be for HOST, or for name=NAME. If it asks for a certificate, this server
    /// shows cert=FILE with key=FILE, else its own unless it has a token. Files are read again on
    /// SIGHUP.
    #[arg(long, value_name = "HOST:PORT[,token=FILE][,ca=FILE[,name=NAME][,cert=FILE,key=FILE]]")]
    peer: Vec<PeerRule>,
    /// Seconds that nothing may be heard of another server before what it was asked for fails.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "90")]
    peer_timeout: Duration,
    /// Sessions of one identity, of all its connections.
    #[arg(long, value_name = "N",
          default_value_t = EngineLimits::default().sessions_per_identity_max)]
    session_limit: usize,
    /// Connections of one identity, on all shards.
    #[arg(long, value_name = "N",
          default_value_t = ShardLimits::default().connections_per_identity_max)]
    identity_connections: usize,
    /// Device memory of all sessions of one identity, such as 16G [default: all].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    identity_memory: Option<u64>,
    /// Device memory of one session [default: all].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    session_memory: Option<u64>,
    /// Kind of accelerator to serve.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// What keeps sessions of a GPU apart.
    #[arg(long, value_enum, default_value = "session")]
    isolation: Isolation,
    /// Variables of this environment that the processes get which drive a GPU, beside those that
    /// say where its driver is and which devices it shows.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    driver_env: Vec<OsString>,
    /// What clients of CUDA devices are to write.
    #[arg(long, value_enum, default_value = "auto")]
    renderer: RendererChoice,
    /// Number of shards, each a thread on a core of its own [default: as many as cores].
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// Cores to run shards on, such as 0,2-5 [default: all that this process may use].
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    cores: Option<Cores>,
    /// Number of CPU devices that sessions may name.
    #[arg(long, value_name = "N", default_value_t = 16)]
    cpu_devices: u64,
    /// Memory of all buffers of the CPU devices, such as 16G [default: three quarters of the
    /// machine's].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    cpu_memory: Option<u64>,
    /// Memory for bodies that are being received [default: half of the machine's].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    staging_memory: Option<u64>,
    /// Check that the SHA-256 of each blob is its name, and refuse the batch where it is not.
    #[arg(long)]
    verify_sha256: bool,
    /// Seconds that a body waits for such memory before it is refused.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    staging_timeout: Duration,
    /// Largest body of a request.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256G")]
    body_limit: u64,
    /// Connections of one shard.
    #[arg(long, value_name = "N", default_value_t = ShardLimits::default().connections_max)]
    connection_limit: usize,
    /// Seconds that the head of a request may take.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "20")]
    head_timeout: Duration,
    /// Seconds that a client may pause inside a body.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    body_timeout: Duration,
    /// Seconds that a client may take nothing of a reply.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "360")]
    reply_timeout: Duration,
    /// Seconds that a client waits for an event that nobody sets.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "290")]
    wait_timeout: Duration,
    /// Microseconds that a shard watches its sockets after it was last active before it sleeps:
    /// shorter round trips, for a core's time.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    busy_poll: u64,
    /// Seconds that one kernel may run before its session is ended.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    kernel_timeout: Duration,
    /// Seconds that one compilation may take.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    compile_timeout: Duration,
    /// The C compiler, clang or gcc [default: the newest clang, else gcc].
    #[arg(long, value_name = "PROGRAM")]
    compiler: Option<PathBuf>,
    /// NVRTC, which compiles for CUDA devices: a path or a library's name [default: the newest].
    #[arg(long, value_name = "LIBRARY")]
    nvrtc: Option<PathBuf>,
    /// comgr, which compiles for HIP devices: a path or a library's name [default: the newest].
    #[arg(long, value_name = "LIBRARY")]
    comgr: Option<PathBuf>,
    /// Directory of compiled programs [default: ~/.cache/outboard].
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    cache_dir: Option<PathBuf>,
    /// Keep no compiled programs on disk.
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    rdma: RdmaArgs,
    /// Seconds that a drain waits for running batches.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    drain_timeout: Duration,
    /// What to log, as for RUST_LOG, which wins.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Whether other servers may write buffers of CPU devices directly.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RdmaChoice {
    /// Where there is a device for it.
    Auto,
    Off,
}

#[derive(Args)]
struct RdmaArgs {
    /// Whether other servers may write buffers of CPU devices directly.
    #[arg(long, value_enum, default_value = "auto")]
    rdma: RdmaChoice,
    /// The RDMA device [default: the one with the best address].
    #[arg(long, value_name = "NAME")]
    rdma_device: Option<String>,
    /// The device's port [default: one that is active].
    #[arg(long, value_name = "N")]
    rdma_port: Option<u8>,
    /// The place of the address in the port's table [default: RoCE v2, IPv4 first].
    #[arg(long, value_name = "N")]
    rdma_gid: Option<u8>,
    /// Queue pairs to each server that buffers are written to.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    rdma_queue_pairs: u8,
}

/// How long the process stays for devices of ended sessions to give back what they have. Work that
/// does not end is left to the driver's own end.
const DEVICES_END_TIME_MAX: Duration = Duration::from_secs(5);

/// A list of cores, as a type of its own so that the argument is one value.
#[derive(Clone)]
struct Cores(Vec<usize>);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(arguments)) => serve(&arguments),
        Some(Command::Check) => return if check::run() { ExitCode::SUCCESS } else { 1.into() },
        Some(Command::Worker { driver: None, .. }) => device::worker::main(),
        Some(Command::Worker { driver: Some(Driver::Cuda), ordinal, exports }) => {
            device::gpu::drive(Vendor::Nvidia, ordinal, exports)
        }
        Some(Command::Worker { driver: Some(Driver::Hip), ordinal, exports }) => {
            device::gpu::drive(Vendor::Amd, ordinal, exports)
        }
        Some(Command::CompileWorker { arguments }) => compile::worker::main(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outboard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServeArgs) -> Result<(), Box<dyn std::error::Error>> {
    start_log(&arguments.log)?;
    let rules = rules(arguments)?;
    let access = Arc::new(Access::load(&rules)?);
    raise_limit(Resource::Nofile);
    let cores = choose_cores(arguments)?;
    let buffers =
        Arc::new(Budget::new(arguments.cpu_memory.unwrap_or_else(|| memory_bytes() / 4 * 3)));
    let staging_bytes = arguments.staging_memory.unwrap_or_else(|| memory_bytes() / 2);
    let staging = Arc::new(Budget::of_staging(staging_bytes, Arc::clone(&buffers)));
    let crowds = Crowds::new(&cores);
    let mut fabric = choose_fabric(&arguments.rdma)?;
    let (device, platform) = choose_platform(arguments, buffers, crowds.clone(), &mut fabric)?;
    let listen = [&arguments.listen[..], &arguments.listen_plain].concat();
    let peers = Arc::new(Peers::load(&arguments.peer, &listen, rules.tls.as_ref())?);
    for host in peers.with_open_tokens() {
        warn!(host, "the token for this peer can be read on the way: TLS, with ca=FILE, hides it");
    }
    let mut config = shard_config(arguments, staging, access, Arc::clone(&peers));
    config.crowds = Some(crowds);
    config.nodes = cores::nodes(Path::new("/sys"), &cores);
    if let Some(fabric) = &fabric {
        let device = fabric.device().chosen();
        match fabric.reaches_buffers() {
            true => info!(%device, "other servers may write buffers by RDMA"),
            false => info!(%device, "other servers may write by RDMA what is copied to buffers"),
        }
        raise_limit(Resource::Memlock);
    }
    config.fabric = fabric;
    config.rdma_queue_pairs = usize::from(arguments.rdma.rdma_queue_pairs);
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if rules.has_files() || peers.has_files() {
        signals.add_signal(SIGHUP)?;
    }
    let server = Server::start(&arguments.listen, &cores, &config, &platform)?;
    let addresses: Vec<_> = server.addresses().iter().map(SocketAddr::to_string).collect();
    let shards = if cores.len() == 1 { "1 shard" } else { &format!("{} shards", cores.len()) };
    println!("outboard: listening on {}, device {device}, {shards}", addresses.join(", "));
    let (drain, admission) = (server.drain(), server.admission());
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || heed(&mut signals, &drain, &admission, (&rules, &peers)))?;
    server.join();
    device::gpu::settle(DEVICES_END_TIME_MAX);
    Ok(())
}

/// Who may come, and that it is said for every address that others reach.
fn rules(arguments: &ServeArgs) -> Result<Rules, Box<dyn std::error::Error>> {
    let tls = arguments.tls_cert.clone().zip(arguments.tls_key.clone());
    let tls = tls.map(|(certificate, key)| {
        let client_ca = arguments.client_ca.clone();
        TlsFiles { certificate, key, client_ca }
    });
    let plain = if tls.is_some() { &arguments.listen_plain } else { &arguments.listen };
    let rules =
        Rules { token_file: arguments.token_file.clone(), trusted: arguments.trust.clone(), tls };
    rules.check(&arguments.listen)?;
    rules.check(&arguments.listen_plain)?;
    if rules.token_file.is_some() {
        for address in plain.iter().filter(|address| !address.ip().to_canonical().is_loopback()) {
            warn!(%address, "tokens can be read on the way to this address: it does not speak TLS");
        }
    }
    Ok(rules)
}

fn shard_config(
    arguments: &ServeArgs,
    staging: Arc<Budget>,
    access: Arc<Access>,
    peers: Arc<Peers>,
) -> shard::Config {
    shard::Config {
        engine: EngineLimits {
            memory_per_identity_bytes_max: arguments.identity_memory.unwrap_or(u64::MAX),
            memory_per_session_bytes_max: arguments.session_memory.unwrap_or(u64::MAX),
            sessions_per_identity_max: arguments.session_limit,
            wait_time_max: arguments.wait_timeout,
            ..EngineLimits::default()
        },
        hash: HashPolicy { verify_sha256: arguments.verify_sha256, ..HashPolicy::default() },
        http: HttpLimits { body_bytes_max: arguments.body_limit, ..HttpLimits::default() },
        peer: PeerLimits { silence_max: arguments.peer_timeout },
        peers,
        ring: RingLimits {
            busy_poll: Duration::from_micros(arguments.busy_poll),
            ..RingLimits::default()
        },
        shard: ShardLimits {
            body_pause_max: arguments.body_timeout,
            connections_max: arguments.connection_limit,
            connections_per_identity_max: arguments.identity_connections,
            drain_time_max: arguments.drain_timeout,
            head_time_max: arguments.head_timeout,
            send_pause_max: arguments.reply_timeout,
            staging_wait_max: arguments.staging_timeout,
            ..ShardLimits::default()
        },
        access,
        plain: arguments.listen_plain.clone(),
        ..shard::Config::new(staging)
    }
}

/// Does what signals ask for, for as long as the process lives.
fn heed(
    signals: &mut Signals,
    drain: &Drain,
    admission: &Admission,
    (rules, peers): (&Rules, &Peers),
) {
    let mut is_draining = false;
    for signal in signals.forever() {
        if signal == SIGHUP {
            if let Err(error) = read_again(admission, rules, peers) {
                error!(error, "what was read before stays in force");
            }
        } else if is_draining {
            std::process::exit(1);
        } else {
            info!("draining; a second signal ends at once");
            is_draining = true;
            drain.begin();
        }
    }
}

/// Has the server go by what its files say now: all of them, or none if one cannot be used.
fn read_again(admission: &Admission, rules: &Rules, peers: &Peers) -> Result<(), String> {
    let access = Access::load(rules).map_err(|error| error.to_string())?;
    let peers = peers.read_again().map_err(|error| error.to_string())?;
    info!(tokens = access.token_count(), "read who may use this server");
    admission.replace(&Arc::new(access));
    admission.replace_peers(&Arc::new(peers));
    Ok(())
}

/// The RDMA device. That there is none is an error only where one was asked for.
fn choose_fabric(arguments: &RdmaArgs) -> Result<Option<DeviceFabric>, String> {
    if arguments.rdma == RdmaChoice::Off {
        return Ok(None);
    }
    let config = RdmaConfig {
        device: arguments.rdma_device.clone(),
        port: arguments.rdma_port,
        gid: arguments.rdma_gid,
    };
    match Device::open(&config) {
        Ok(device) => Ok(Some(DeviceFabric::new(device))),
        Err(error) if config == RdmaConfig::default() => {
            debug!(%error, "no RDMA");
            Ok(None)
        }
        Err(error) => Err(format!("{error} -> {}", error.remedy())),
    }
}

fn start_log(filter: &str) -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(())
}

/// The devices to serve, with the name that clients see.
fn choose_platform(
    arguments: &ServeArgs,
    buffers: Arc<Budget>,
    crowds: Crowds,
    fabric: &mut Option<DeviceFabric>,
) -> Result<(&'static str, PlatformMaker), String> {
    let compile = Arc::new(compile_service(arguments, crowds));
    // What passes through the machine's memory on its way to a GPU's worker process, or from there,
    // is counted as buffers of the CPU's are.
    let passages = Arc::clone(&buffers);
    let cpu = |compile| cpu_platform(arguments, buffers, compile).map(|maker| ("CPU", maker));
    let gpus = |vendor, passages, compile, fabric: &mut _| {
        gpu_platform(arguments, vendor, passages, compile, fabric)
    };
    match arguments.device {
        DeviceChoice::Cpu => return cpu(compile),
        DeviceChoice::Cuda => return gpus(Vendor::Nvidia, passages, compile, fabric),
        DeviceChoice::Hip => return gpus(Vendor::Amd, passages, compile, fabric),
        DeviceChoice::Auto => {}
    }
    for vendor in [Vendor::Nvidia, Vendor::Amd] {
        match gpus(vendor, Arc::clone(&passages), Arc::clone(&compile), fabric) {
            Ok(platform) => return Ok(platform),
            Err(why) => info!(?vendor, why, "no devices"),
        }
    }
    cpu(compile)
}

fn gpu_platform(
    arguments: &ServeArgs,
    vendor: Vendor,
    passages: Arc<Budget>,
    compile: Arc<compile::Service>,
    fabric: &mut Option<DeviceFabric>,
) -> Result<(&'static str, PlatformMaker), String> {
    let source = match arguments.renderer {
        RendererChoice::Auto => CudaSource::Any,
        RendererChoice::Cuda => CudaSource::Cuda,
        RendererChoice::Ptx => CudaSource::Ptx,
    };
    let config = GpuConfig::find(vendor, arguments.kernel_timeout, source, compile)?;
    config.names().for_each(|device| info!(device, "found"));
    let name = config.name();
    let config = match fabric.as_mut().map(|fabric| (reaches(fabric, &config), fabric)) {
        None => config,
        Some((Ok(()), _)) => config.exporting(),
        Some((Err(why), fabric)) => {
            info!(why, "the network card does not reach the devices' memory");
            fabric.reach_no_buffers();
            config
        }
    };
    let config = match arguments.isolation {
        Isolation::Process => config,
        Isolation::Session => config.apart(&WorkersConfig {
            exe: PathBuf::from("/proc/self/exe"),
            budget: passages,
            environment: variables(&arguments.driver_env),
        }),
    };
    Ok((name, Arc::new(move || Box::new(GpuPlatform::new(config.clone())))))
}

/// Whether a network card can be told of the memory of all devices.
fn reaches(fabric: &DeviceFabric, devices: &GpuConfig) -> Result<(), String> {
    let samples = device::gpu::samples(devices.vendor()).map_err(ToString::to_string)?;
    samples.into_iter().try_for_each(|sample| {
        fabric.try_device_memory(&sample?).map_err(|error| error.to_string())
    })
}

/// As far as they are set.
fn variables(names: &[OsString]) -> Vec<(OsString, OsString)> {
    names.iter().filter_map(|name| Some((name.clone(), std::env::var_os(name)?))).collect()
}

fn compile_service(arguments: &ServeArgs, crowds: Crowds) -> compile::Service {
    let cache_dir = match &arguments.cache_dir {
        _ if arguments.no_cache => CacheDir::Off,
        Some(directory) => CacheDir::At(directory.clone()),
        None => CacheDir::User,
    };
    let config = CompileConfig {
        compiler: arguments.compiler.clone().map_or(CompilerChoice::Any, CompilerChoice::Path),
        comgr: arguments.comgr.clone(),
        nvrtc: arguments.nvrtc.clone(),
        time_max: arguments.compile_timeout,
        cache_dir,
        ..CompileConfig::default()
    };
    compile::Service::beside(crowds, config)
}

fn cpu_platform(
    arguments: &ServeArgs,
    buffers: Arc<Budget>,
    compile: Arc<compile::Service>,
) -> Result<PlatformMaker, String> {
    // Clients are taken once it is known which compiler serves them.
    compile.toolchain().map_err(|error| error.to_string())?;
    let config = PlatformConfig {
        device_count: arguments.cpu_devices,
        worker_exe: PathBuf::from("/proc/self/exe"),
        kernel_time_max: arguments.kernel_timeout,
        budget: buffers,
        compile,
    };
    Ok(Arc::new(move || Box::new(CpuPlatform::new(config.clone()))))
}

fn choose_cores(arguments: &ServeArgs) -> Result<Vec<usize>, Box<dyn std::error::Error>> {
    let allowed = cores::allowed()?;
    let cores = match &arguments.cores {
        None => allowed.into_iter().collect(),
        Some(Cores(cores)) => match cores.iter().find(|core| !allowed.contains(*core)) {
            Some(core) => {
                let message =
                    format!("--cores: this process may not use core {core} of {allowed:?}");
                return Err(message.into());
            }
            None => cores.clone(),
        },
    };
    match arguments.shards {
        Some(shards) if shards == 0 || shards > cores.len() => {
            Err(format!("--shards {shards}: there are 1 to {} cores to use", cores.len()).into())
        }
        shards => Ok(cores[..shards.unwrap_or(cores.len())].to_vec()),
    }
}

/// Makes the hard limit the soft one. Of descriptors, since each device and each large buffer has
/// one and the usual soft limit of 1,024 is soon reached; of locked memory, which a network card's
/// buffers are.
fn raise_limit(resource: Resource) {
    let maximum = getrlimit(resource).maximum;
    if let Err(error) = setrlimit(resource, Rlimit { current: maximum, maximum }) {
        warn!(?resource, %error, "cannot raise the limit");
    }
}

fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    cores::parse(text).map(|cores| Cores(cores.into_iter().collect()))
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        unit => return Err(format!("unknown unit {unit:?}: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_with_units_are_read_and_overflow_is_refused() {
        assert_eq!(parse_bytes("16G"), Ok(16 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("1MiB"), Ok(1 << 20));
        assert!(parse_bytes("1X").is_err());
        assert!(parse_bytes("99999999999T").is_err());
    }
}

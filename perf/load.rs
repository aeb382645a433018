//! A load generator that speaks the wire by hand over blocking sockets: the same work for any
//! server of the protocol, so that two can be compared, and the floors that no server can beat.
//!
//! Reading order: [`main`], [`measure_server`] and the measurements it lists, [`Client`], the
//! floors. Prints one JSON object on standard output. `perf/compare` runs it and makes tables.
//!
//! Blob names are a counter, not the bytes' SHA-256: to the servers a name is only a name, and
//! hashing here would be measured as their time.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Map, Value, json};

const MIB: usize = 1 << 20;
/// Of one bulk copy: far beyond caches and socket buffers.
const BULK_BYTES: usize = 256 * MIB;
/// Launches in one batch.
const LAUNCHES: usize = 10_000;
/// Kernels in the graph.
const GRAPH_KERNELS: usize = 10;
/// Answers slower than this mean that the server hangs.
const REPLY_LIMIT: Duration = Duration::from_secs(120);
/// Adds one to the integer it finds.
const KERNEL: &str = "void tiny(int* restrict data0, int* restrict data1) \
    { *(data0+0) = ((*(data1+0))+1); }\n";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measures a server of the wire protocol, or with no address the floors of this machine.
#[derive(Parser)]
struct Args {
    /// Where the server listens.
    address: Option<SocketAddr>,
    /// The server's process, for the processor time that it and its children use.
    #[arg(long)]
    pid: Option<u32>,
    /// Fewer repetitions.
    #[arg(long)]
    quick: bool,
}

/// How often each kind of measurement is repeated.
#[derive(Clone, Copy)]
struct Counts {
    round_trips: usize,
    batches: usize,
    bulks: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let counts = match args.quick {
        true => Counts { round_trips: 500, batches: 1, bulks: 2 },
        false => Counts { round_trips: 5_000, batches: 5, bulks: 5 },
    };
    let measured = match args.address {
        Some(address) => measure_server(address, args.pid, counts)?,
        None => measure_floors(counts)?,
    };
    println!("{}", Value::Object(measured));
    Ok(())
}

/// Everything that is measured of a server, each result checked for being right.
fn measure_server(
    address: SocketAddr,
    pid: Option<u32>,
    counts: Counts,
) -> Result<Map<String, Value>> {
    let mut client = Client::connect(address)?;
    let mut results = Map::new();
    let session = client.session.clone();

    let empty = client.batch("[]");
    round_trips(&mut client, "round_trip", &empty, pid, counts, &mut results)?;
    let properties = client.batch(&format!("[GetProperties(session={session})]"));
    round_trips(&mut client, "get_properties", &properties, pid, counts, &mut results)?;

    let hash = client.prepare_kernel()?;
    let copy_out = client.batch(&format!("[CopyOut(buffer_num=1, session={session})]"));
    round_trips(&mut client, "copy_out_4_bytes", &copy_out, pid, counts, &mut results)?;
    let launch = client.batch(&format!("[{}]", client.launch(&hash, true)));
    round_trips(&mut client, "launch_and_wait", &launch, pid, counts, &mut results)?;
    expect_int(client.request(&copy_out)?, 42)?;

    launches(&mut client, &hash, counts, &mut results)?;
    graph(&mut client, &hash, pid, counts, &mut results)?;
    bulk(&mut client, counts, &mut results)?;
    let free = client.batch(&format!("[SessionFree(session={session})]"));
    client.request(&free)?;
    Ok(results)
}

/// One request at a time, each waited for: median and 99th percentile, and processor time each.
fn round_trips(
    client: &mut Client,
    name: &str,
    request: &[u8],
    pid: Option<u32>,
    counts: Counts,
    results: &mut Map<String, Value>,
) -> Result<()> {
    for _ in 0..counts.round_trips / 10 {
        client.request(request)?;
    }
    let cpu_before = pid.and_then(cpu_seconds);
    let mut times = Vec::with_capacity(counts.round_trips);
    for _ in 0..counts.round_trips {
        let began = Instant::now();
        client.request(request)?;
        times.push(began.elapsed());
    }
    report_times(name, &mut times, results);
    if let Some((before, after)) = cpu_before.zip(pid.and_then(cpu_seconds)) {
        let each = (after - before) * 1e6 / counts.round_trips as f64;
        results.insert(format!("{name}_server_cpu_us"), json!(each));
    }
    Ok(())
}

/// Many launches in one batch, which ends with reading the result.
fn launches(
    client: &mut Client,
    hash: &str,
    counts: Counts,
    results: &mut Map<String, Value>,
) -> Result<()> {
    let launch = client.launch(hash, false);
    let mut text = vec![launch; LAUNCHES];
    text.push(format!("CopyOut(buffer_num=1, session={})", client.session));
    let request = client.batch(&format!("[{}]", text.join(", ")));
    let mut each = Vec::new();
    for _ in 0..counts.batches {
        let began = Instant::now();
        expect_int(client.request(&request)?, 42)?;
        each.push(began.elapsed().as_secs_f64() * 1e6 / LAUNCHES as f64);
    }
    results.insert("launch_in_batch_us".into(), json!(median(&mut each)));
    Ok(())
}

/// A chain of kernels, recorded once and replayed.
fn graph(
    client: &mut Client,
    hash: &str,
    pid: Option<u32>,
    counts: Counts,
    results: &mut Map<String, Value>,
) -> Result<()> {
    let session = client.session.clone();
    let first = 10;
    let last = first + GRAPH_KERNELS;
    let mut text: Vec<_> = (first..=last).map(|number| client.buffer(number, 4)).collect();
    let items: Vec<_> = (first..last)
        .map(|number| {
            format!(
                "GraphComputeItem(session={session}, name='tiny', datahash='{hash}', bufs=({}, \
                 {number}), vars=(), fixedvars={{}}, ins=(1,), outs=(0,), global_size=None, \
                 local_size=None)",
                number + 1
            )
        })
        .collect();
    let bufs = format!("bufs=(({session}, {first}), ({session}, {last})), var_vals={{}}");
    text.push(format!(
        "GraphAlloc(graph_num=0, jit_cache=({}), {bufs}, session={session})",
        items.join(", ")
    ));
    let (data, name) = client.blob(&1_000_i32.to_le_bytes());
    text.push(format!("CopyIn(buffer_num={first}, datahash='{name}', session={session})"));
    let request = client.batch_with(data, &format!("[{}]", text.join(", ")));
    client.request(&request)?;

    let exec = format!("GraphExec(graph_num=0, {bufs}, wait=True, session={session})");
    let request = client.batch(&format!("[{exec}]"));
    round_trips(client, "graph_of_10", &request, pid, counts, results)?;
    let read = client.batch(&format!("[CopyOut(buffer_num={last}, session={session})]"));
    expect_int(client.request(&read)?, 1_000 + i32::try_from(GRAPH_KERNELS)?)
}

/// One large copy in each direction.
fn bulk(client: &mut Client, counts: Counts, results: &mut Map<String, Value>) -> Result<()> {
    let session = client.session.clone();
    let number = 100;
    let alloc = client.batch(&format!("[{}]", client.buffer(number, BULK_BYTES)));
    client.request(&alloc)?;
    let pattern: Vec<u8> = (0..BULK_BYTES).map(|i| (i >> 12).to_le_bytes()[0]).collect();
    let (data, name) = client.blob(&pattern);
    // Reading a small buffer afterwards makes the reply wait for the copy.
    let request = client.batch_with(
        data,
        &format!(
            "[CopyIn(buffer_num={number}, datahash='{name}', session={session}), \
             CopyOut(buffer_num=1, session={session})]"
        ),
    );
    let read = client.batch(&format!("[CopyOut(buffer_num={number}, session={session})]"));
    let (mut inward, mut outward) = (Vec::new(), Vec::new());
    for _ in 0..counts.bulks {
        let began = Instant::now();
        client.request(&request)?;
        inward.push(gigabytes_per_second(began));
        let began = Instant::now();
        let reply = client.request(&read)?;
        outward.push(gigabytes_per_second(began));
        if reply != pattern {
            return Err("the bytes that came back are not those that were sent".into());
        }
    }
    results.insert("copy_in_256_mib_gbs".into(), json!(median(&mut inward)));
    results.insert("copy_out_256_mib_gbs".into(), json!(median(&mut outward)));
    Ok(())
}

/// A connection with one session.
struct Client {
    stream: TcpStream,
    host: String,
    session: String,
    names: u64,
    reply: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        let mut nonce = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        let host = address.to_string();
        let session = format!("SessionKey(host='{host}', idx=0, nonce='{}')", hex(&nonce));
        // Pages of the reply buffer are touched once, before anything is measured.
        let reply = vec![0; BULK_BYTES + MIB];
        Ok(Client { stream, host, session, names: 0, reply })
    }

    /// A blob as it stands in a body, and its name as commands spell it.
    fn blob(&mut self, bytes: &[u8]) -> (Vec<u8>, String) {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&self.names.to_be_bytes());
        self.names += 1;
        let mut blob = Vec::with_capacity(40 + bytes.len());
        blob.extend(name);
        blob.extend((bytes.len() as u64).to_le_bytes());
        blob.extend(bytes);
        (blob, hex(&name))
    }

    /// A whole request, head and body, that holds only commands.
    fn batch(&mut self, text: &str) -> Vec<u8> {
        self.batch_with(Vec::new(), text)
    }

    /// A whole request with a data blob before the commands.
    fn batch_with(&mut self, data: Vec<u8>, text: &str) -> Vec<u8> {
        let (text, _) = self.blob(text.as_bytes());
        let head = format!(
            "POST /batch HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\n\
             Content-Length: {}\r\n\r\n",
            self.host,
            data.len() + text.len()
        );
        [head.into_bytes(), data, text].concat()
    }

    /// Sends a request and returns the body of its reply; any status but 200 is an error.
    fn request(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        let head_end = loop {
            let count = self.stream.read(&mut self.reply[filled..])?;
            if count == 0 {
                return Err("the server closed the connection".into());
            }
            filled += count;
            // The head is within the first bytes; the body need not be searched.
            let seen = &self.reply[..filled.min(4096)];
            if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let (status, length) = parse_head(&self.reply[..head_end])?;
        let end = head_end + length;
        if end > self.reply.len() {
            return Err(format!("a reply of {length} bytes").into());
        }
        self.stream.read_exact(&mut self.reply[filled.min(end)..end])?;
        let body = &self.reply[head_end..end];
        if status != 200 {
            return Err(format!("status {status}: {}", String::from_utf8_lossy(body)).into());
        }
        Ok(body)
    }

    fn buffer(&self, number: usize, bytes: usize) -> String {
        format!(
            "BufferAlloc(buffer_num={number}, size={bytes}, options=BufferSpec(image=None, \
             uncached=False, cpu_access=False, host=False, nolru=False, external_ptr=None), \
             session={})",
            self.session
        )
    }

    fn launch(&self, hash: &str, wait: bool) -> String {
        let wait = if wait { "True" } else { "False" };
        format!(
            "ProgramExec(session={}, name='tiny', datahash='{hash}', bufs=(1, 0), vals=(), \
             global_size=None, local_size=None, wait={wait})",
            self.session
        )
    }

    /// Compiles the kernel, and makes buffer 0, which holds 41, and buffer 1. Returns the name of
    /// the kernel's source.
    fn prepare_kernel(&mut self) -> Result<String> {
        let session = self.session.clone();
        let (source, hash) = self.blob(KERNEL.as_bytes());
        let (number, name) = self.blob(&41_i32.to_le_bytes());
        let text = [
            format!("ProgramAlloc(name='tiny', datahash='{hash}', session={session})"),
            self.buffer(0, 4),
            self.buffer(1, 4),
            format!("CopyIn(buffer_num=0, datahash='{name}', session={session})"),
        ];
        let request = self.batch_with([source, number].concat(), &format!("[{}]", text.join(", ")));
        self.request(&request)?;
        Ok(hash)
    }
}

/// Status and body length of a reply's head.
fn parse_head(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("no status")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("no length")?;
    Ok((status.parse()?, length.1.trim().parse()?))
}

fn expect_int(reply: &[u8], expected: i32) -> Result<()> {
    let got = i32::from_le_bytes(reply.try_into()?);
    if got != expected {
        return Err(format!("the kernel's result is {got}, not {expected}").into());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the machine allows: an echo of a small request, a plain bulk stream, a copy in memory.
fn measure_floors(counts: Counts) -> Result<Map<String, Value>> {
    let mut results = Map::new();
    floor_echo(counts, &mut results)?;
    floor_stream(counts, &mut results)?;
    let from = vec![1_u8; BULK_BYTES];
    let mut to = vec![2_u8; BULK_BYTES];
    let mut speeds = Vec::new();
    for _ in 0..counts.bulks {
        let began = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        speeds.push(gigabytes_per_second(began));
    }
    results.insert("floor_memory_copy_gbs".into(), json!(median(&mut speeds)));
    Ok(results)
}

/// Two connected sockets, as a server and its client would have them.
fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// The round trip of a message as long as an empty batch, answered by a blocking thread.
fn floor_echo(counts: Counts, results: &mut Map<String, Value>) -> Result<()> {
    const REQUEST_BYTES: usize = 135;
    const REPLY_BYTES: usize = 38;
    let (mut near, mut far) = connected()?;
    let server = std::thread::spawn(move || {
        let mut request = [0; REQUEST_BYTES];
        while far.read_exact(&mut request).is_ok() && far.write_all(&[0; REPLY_BYTES]).is_ok() {}
    });
    let mut times = Vec::with_capacity(counts.round_trips);
    for _ in 0..counts.round_trips {
        let began = Instant::now();
        near.write_all(&[0; REQUEST_BYTES])?;
        near.read_exact(&mut [0; REPLY_BYTES])?;
        times.push(began.elapsed());
    }
    drop(near);
    server.join().map_err(|_| "the echo thread failed")?;
    report_times("floor_echo", &mut times, results);
    Ok(())
}

/// Bytes from one thread's memory to another's over loopback, both touched before.
fn floor_stream(counts: Counts, results: &mut Map<String, Value>) -> Result<()> {
    let (mut near, mut far) = connected()?;
    let server = std::thread::spawn(move || {
        let mut memory = vec![3_u8; BULK_BYTES];
        while far.read_exact(&mut memory).is_ok() && far.write_all(&[0]).is_ok() {}
    });
    let memory = vec![4_u8; BULK_BYTES];
    let mut speeds = Vec::new();
    // The first run also waits for the other thread to have its memory.
    for _ in 0..=counts.bulks {
        let began = Instant::now();
        near.write_all(&memory)?;
        near.read_exact(&mut [0])?;
        speeds.push(gigabytes_per_second(began));
    }
    drop(near);
    server.join().map_err(|_| "the stream thread failed")?;
    results.insert("floor_stream_gbs".into(), json!(median(&mut speeds[1..])));
    Ok(())
}

fn gigabytes_per_second(began: Instant) -> f64 {
    BULK_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// The middle value; of an even number, the upper one of the two.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report_times(name: &str, times: &mut [Duration], results: &mut Map<String, Value>) {
    times.sort();
    let microseconds = |at: usize| times[at.min(times.len() - 1)].as_secs_f64() * 1e6;
    results.insert(format!("{name}_p50_us"), json!(microseconds(times.len() / 2)));
    results.insert(format!("{name}_p99_us"), json!(microseconds(times.len() * 99 / 100)));
}

/// Processor time that a process and its children have used, user and system; `None` where the
/// kernel does not tell. The kernel counts in ticks, of 10 ms as a rule.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The second field is the name in parentheses, which may hold spaces; 14 and 15 are wanted.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let mut seconds = ticks / rustix::param::clock_ticks_per_second() as f64;
    for task in std::fs::read_dir(folder.join("task")).ok()?.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|number| number.parse().ok()) {
            // One that has ended meanwhile no longer counts.
            seconds += cpu_seconds(child).unwrap_or(0.0);
        }
    }
    Some(seconds)
}

//! What is measured of one server over one connection.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::json;

use crate::client::{self, Client, expect_int, list};
use crate::{Results, Setting, bulk, greedy, median, repeated, report_times, victim};

/// Launches in one batch.
const LAUNCHES: usize = 10_000;
/// Kernels in the graphs.
const GRAPHS: [(Part, usize); 2] = [(Part::SmallGraph, 10), (Part::LargeGraph, 10_000)];
/// What a graph's first buffer holds.
const GRAPH_START: i32 = 1_000;

/// Groups of measurements.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// One request at a time.
    Latency,
    /// Ten thousand launches in a batch.
    Launch,
    /// A graph of ten kernels.
    SmallGraph,
    /// A graph of ten thousand kernels.
    LargeGraph,
    /// Copies of 256 MiB.
    Bulk,
}

/// Requests that can be repeated for a while.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Load {
    Empty,
    CopyOut,
    Launch,
    LaunchBatch,
    Graph,
    BulkIn,
    BulkOut,
    Connections,
    /// Empty batches, many at once on one connection.
    Pipelined,
    /// Long sources that nobody has compiled before.
    Compile,
    /// A graph that is recorded and freed.
    Record,
    /// A session with a process that is opened and freed.
    Sessions,
}

/// All groups of measurements that are asked for, with one session.
pub(crate) fn measure(setting: &Setting, parts: &[Part]) -> crate::Result<Results> {
    let mut client = Client::connect(setting.address, setting.spin)?;
    let mut results = Results::new();
    let has = |part| parts.contains(&part);
    let session = client.session.clone();
    if has(Part::Latency) {
        let empty = client.batch("[]");
        round_trips(&mut client, "round_trip", &empty, setting, &mut results)?;
        let properties = client.batch(&format!("[GetProperties(session={session})]"));
        round_trips(&mut client, "get_properties", &properties, setting, &mut results)?;
    }
    let hash = client.prepare_kernel(&session)?;
    if has(Part::Latency) {
        let copy_out = client.batch(&list(&[client::copy_out(&session, 1)]));
        round_trips(&mut client, "copy_out_4_bytes", &copy_out, setting, &mut results)?;
        let launch = client.batch(&list(&[client::launch(&session, &hash, true)]));
        round_trips(&mut client, "launch_and_wait", &launch, setting, &mut results)?;
        expect_int(client.request(&copy_out)?, 42)?;
    }
    if has(Part::Launch) {
        launches(&mut client, &hash, setting, &mut results)?;
    }
    for (number, (part, kernels)) in GRAPHS.into_iter().enumerate() {
        if has(part) {
            graph(&mut client, &hash, number, kernels, setting, &mut results)?;
        }
    }
    if has(Part::Bulk) {
        bulk::measure(&mut client, setting, &mut results)?;
    }
    let free = client.batch(&list(&[client::session_free(&session)]));
    client.request(&free)?;
    Ok(results)
}

/// One request at a time, each waited for: median and 99th percentile, and processor time each.
pub(crate) fn round_trips(
    client: &mut Client,
    name: &str,
    request: &[u8],
    setting: &Setting,
    results: &mut Results,
) -> crate::Result<()> {
    let count = setting.counts.round_trips;
    for _ in 0..count / 10 {
        client.request(request)?;
    }
    let cpu_seconds = || setting.pid.and_then(crate::process::cpu_seconds);
    let cpu_before = cpu_seconds();
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        client.request(request)?;
        times.push(began.elapsed());
    }
    report_times(name, &mut times, results);
    if let Some((before, after)) = cpu_before.zip(cpu_seconds()) {
        let each = (after - before) * 1e6 / count as f64;
        results.insert(format!("{name}_server_cpu_us"), json!(each));
    }
    Ok(())
}

/// A batch of many launches, which ends with reading the result.
pub(crate) fn launch_batch(
    client: &mut Client,
    session: &str,
    hash: &str,
    count: usize,
) -> Vec<u8> {
    let mut text = vec![client::launch(session, hash, false); count];
    text.push(client::copy_out(session, 1));
    client.batch(&list(&text))
}

/// Sends what [`launch_batch`] made again and again; the seconds of each.
pub(crate) fn time_launches(
    client: &mut Client,
    setting: &Setting,
    request: &[u8],
) -> crate::Result<Vec<f64>> {
    repeated(setting.counts, || {
        let began = Instant::now();
        expect_int(client.request(request)?, 42)?;
        Ok(began.elapsed())
    })
}

fn launches(
    client: &mut Client,
    hash: &str,
    setting: &Setting,
    results: &mut Results,
) -> crate::Result<()> {
    let session = client.session.clone();
    let request = launch_batch(client, &session, hash, LAUNCHES);
    let mut times = time_launches(client, setting, &request)?;
    let each = median(&mut times) * 1e6 / LAUNCHES as f64;
    results.insert("launch_in_batch_us".into(), json!(each));
    Ok(())
}

/// Makes the buffers of a chain of kernels; returns the command that records it.
pub(crate) fn graph_alloc(
    client: &mut Client,
    hash: &str,
    number: usize,
    kernels: usize,
) -> crate::Result<String> {
    let session = client.session.clone();
    let (first, last) = ends_of_graph(number, kernels);
    let buffers: Vec<_> =
        (first..=last).map(|number| client::buffer_alloc(&session, number, 4)).collect();
    let (data, name) = client.blob(&GRAPH_START.to_le_bytes());
    let commands = [&buffers[..], &[client::copy_in(&session, first, &name)]].concat();
    let request = client.batch_with(&data, &list(&commands));
    client.request(&request)?;

    let items: Vec<_> = (first..last)
        .map(|from| {
            let to = from + 1;
            format!(
                "GraphComputeItem(session={session}, name='tiny', datahash='{hash}', bufs=({to}, \
                 {from}), vars=(), fixedvars={{}}, ins=(1,), outs=(0,), global_size=None, \
                 local_size=None)"
            )
        })
        .collect();
    let (items, bufs) = (items.join(", "), ends_as_inputs(&session, number, kernels));
    Ok(format!("GraphAlloc(session={session}, graph_num={number}, jit_cache=({items}), {bufs})"))
}

/// The first and the last buffer of a chain.
fn ends_of_graph(number: usize, kernels: usize) -> (usize, usize) {
    let first = 1_000 + number * 1_000_000;
    (first, first + kernels)
}

fn ends_as_inputs(session: &str, number: usize, kernels: usize) -> String {
    let (first, last) = ends_of_graph(number, kernels);
    format!("bufs=(({session}, {first}), ({session}, {last})), var_vals={{}}")
}

/// Records a chain of kernels; returns the request that runs it once, and the one that reads its
/// last buffer.
fn record_graph(
    client: &mut Client,
    hash: &str,
    number: usize,
    kernels: usize,
) -> crate::Result<(Vec<u8>, Vec<u8>)> {
    let session = client.session.clone();
    let record = graph_alloc(client, hash, number, kernels)?;
    let request = client.batch(&list(&[record]));
    client.request(&request)?;
    let bufs = ends_as_inputs(&session, number, kernels);
    let exec = format!("GraphExec(session={session}, graph_num={number}, {bufs}, wait=True)");
    let (_, last) = ends_of_graph(number, kernels);
    Ok((
        client.batch(&format!("[{exec}]")),
        client.batch(&list(&[client::copy_out(&session, last)])),
    ))
}

/// A chain of kernels, recorded once and replayed.
fn graph(
    client: &mut Client,
    hash: &str,
    number: usize,
    kernels: usize,
    setting: &Setting,
    results: &mut Results,
) -> crate::Result<()> {
    let (run, read) = record_graph(client, hash, number, kernels)?;
    let name = format!("graph_of_{kernels}");
    if kernels < 100 {
        round_trips(client, &name, &run, setting, results)?;
    } else {
        let mut times = repeated(setting.counts, || {
            let began = Instant::now();
            client.request(&run)?;
            Ok(began.elapsed())
        })?;
        let each = median(&mut times) * 1e6 / kernels as f64;
        results.insert(format!("{name}_each_us"), json!(each));
    }
    expect_int(client.request(&read)?, GRAPH_START + i32::try_from(kernels)?)
}

/// Repeats one kind of request for a while; for profiles, and as somebody else's burden.
pub(crate) fn run(
    setting: &Setting,
    what: Load,
    time: Duration,
    announce: bool,
) -> crate::Result<Results> {
    let mut results = Results::new();
    let begin = || if announce { victim::announce() } else { Ok(()) };
    if matches!(what, Load::Connections) {
        crate::many::throughput(setting, crate::many::ACTIVE, time, begin, &mut results)?;
        return Ok(results);
    }
    let mut client = setting.connect()?;
    let request = request_of(&mut client, what)?;
    begin()?;
    let began = Instant::now();
    let mut count = 0_u64;
    while began.elapsed() < time {
        count += match what {
            Load::Pipelined => greedy::pipelined(&mut client)?,
            Load::Compile => greedy::compile(&mut client, count).map(|()| 1)?,
            Load::Sessions => greedy::open_and_end(&mut client).map(|()| 1)?,
            _ => client.request(&request).map(|_| 1)?,
        };
    }
    results.insert("requests_per_s".into(), json!(count as f64 / began.elapsed().as_secs_f64()));
    Ok(results)
}

/// The request that is repeated, where it is always the same.
fn request_of(client: &mut Client, what: Load) -> crate::Result<Vec<u8>> {
    let session = client.session.clone();
    let hash = client.prepare_kernel(&session)?;
    Ok(match what {
        Load::Empty => client.batch("[]"),
        Load::CopyOut => client.batch(&list(&[client::copy_out(&session, 1)])),
        Load::Launch => client.batch(&list(&[client::launch(&session, &hash, true)])),
        Load::LaunchBatch => launch_batch(client, &session, &hash, LAUNCHES),
        Load::Graph => record_graph(client, &hash, 0, GRAPHS[1].1)?.0,
        Load::BulkIn => {
            // The first find no pages, which on some machines takes longer than all the rest.
            let (fill, _, _) = bulk::requests(client, bulk::BULK_BYTES)?;
            for _ in 0..3 {
                client.request(&fill)?;
            }
            fill
        }
        Load::BulkOut => {
            let (fill, read, _) = bulk::requests(client, bulk::BULK_BYTES)?;
            client.request(&fill)?;
            read
        }
        Load::Record => greedy::record(client, &hash, GRAPHS[1].1)?,
        Load::Connections | Load::Pipelined | Load::Compile | Load::Sessions => Vec::new(),
    })
}

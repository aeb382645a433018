//! What is measured of a server whatever its device: copies, a waited launch, a graph of a thousand
//! kernels. Sources are written in the language that the server asks for.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

#[path = "../../tests/gpu/kernels.rs"]
#[expect(dead_code, reason = "faulty kernels are for tests")]
mod kernels;

use self::kernels::{Dialect, GROUP, Kernel};
use crate::bulk::{requests, there_and_back};
use crate::client::{Client, buffer_alloc, copy_in, copy_out, list, session_free};
use crate::{Result, Results, Setting, median, report_times};

/// Kernels of the graph.
const GRAPH_KERNELS: usize = 1_000;
/// The graph's first buffer; the others follow.
const GRAPH_BUFFER: usize = 1_000;
/// Buffers of the kernel that is launched alone: result, and what is added. Small ones, one of
/// which the copies' measurement reads too.
const SUM: usize = 1;
const LEFT: usize = 0;
const RIGHT: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Copy,
    Launch,
    Graph,
}

/// A connection, and how kernels are sent over it.
struct Rig {
    client: Client,
    dialect: Dialect,
}

pub(crate) fn measure(
    setting: &Setting,
    parts: &[Part],
    bytes: usize,
    elements: usize,
) -> Result<Results> {
    if elements == 0 || !elements.is_multiple_of(GROUP) {
        return Err(format!("{elements} is not a multiple of {GROUP}").into());
    }
    let mut client = Client::connect(setting.address, setting.spin)?;
    let session = client.session.clone();
    let properties = client.batch(&format!("[GetProperties(session={session})]"));
    let began = Instant::now();
    let properties = String::from_utf8(client.request(&properties)?.to_vec())?;
    let mut rig = Rig { client, dialect: Dialect::of(&properties) };
    let mut results = Results::new();
    let language = format!("{:?}", rig.dialect).to_lowercase();
    results.insert("language".into(), json!(language));
    let small: Vec<_> = [LEFT, SUM, RIGHT].map(|number| (number, GROUP)).to_vec();
    rig.fill(&small)?;
    let kernel = rig.load(GROUP)?;
    rig.run(&kernel)?;
    // A context, a compilation, a kernel.
    results.insert("begin_seconds".into(), json!(began.elapsed().as_secs_f64()));
    if parts.contains(&Part::Launch) {
        rig.launch(&kernel, setting, &mut results)?;
    }
    if parts.contains(&Part::Graph) {
        rig.graph(elements, setting, &mut results)?;
    }
    if parts.contains(&Part::Copy) {
        rig.copy(bytes, setting, &mut results)?;
    }
    let free = rig.client.batch(&list(&[session_free(&session)]));
    rig.client.request(&free)?;
    Ok(results)
}

impl Rig {
    /// Makes buffers of so many integers, each of them one.
    fn fill(&mut self, buffers: &[(usize, usize)]) -> Result<()> {
        let session = self.client.session.clone();
        let (mut data, mut text) = (Vec::new(), Vec::new());
        for &(number, elements) in buffers {
            let (blob, name) = self.client.blob(&1_u32.to_le_bytes().repeat(elements));
            data.extend(blob);
            text.push(buffer_alloc(&session, number, elements * 4));
            text.push(copy_in(&session, number, &name));
        }
        let request = self.client.batch_with(&data, &list(&text));
        self.client.request(&request)?;
        Ok(())
    }

    /// Compiles the kernel for so many elements; returns the beginning of a command that uses it.
    fn load(&mut self, elements: usize) -> Result<Loaded> {
        let session = self.client.session.clone();
        let Kernel { name, source } = kernels::add(self.dialect, elements);
        let (blob, hash) = self.client.blob(source.as_bytes());
        let text = format!("ProgramAlloc(session={session}, name='{name}', datahash='{hash}')");
        let request = self.client.batch_with(&blob, &list(&[text]));
        self.client.request(&request)?;
        let program = format!("session={session}, name='{name}', datahash='{hash}'");
        Ok(Loaded { program, sizes: self.dialect.sizes(elements) })
    }

    /// A waited launch, once; its time on the device in microseconds.
    fn run(&mut self, kernel: &Loaded) -> Result<f64> {
        let request = kernel.launch();
        let request = self.client.batch(&list(&[request]));
        microseconds(self.client.request(&request)?)
    }

    fn launch(&mut self, kernel: &Loaded, setting: &Setting, results: &mut Results) -> Result<()> {
        let request = self.client.batch(&list(&[kernel.launch()]));
        let (mut times, mut on_device) = (Vec::new(), Vec::new());
        let count = setting.counts.round_trips;
        for round in 0..count + count / 10 {
            let began = Instant::now();
            let reply = self.client.request(&request)?;
            let time = began.elapsed();
            if round >= count / 10 {
                on_device.push(microseconds(reply)?);
                times.push(time);
            }
        }
        report_times("launch_and_wait", &mut times, results);
        results.insert("launch_device_us".into(), json!(median(&mut on_device)));
        self.expect(SUM, GROUP, 2)
    }

    /// Each kernel adds the two buffers before its own; the first two are inputs.
    fn graph(&mut self, elements: usize, setting: &Setting, results: &mut Results) -> Result<()> {
        let session = self.client.session.clone();
        let (first, last) = (GRAPH_BUFFER, GRAPH_BUFFER + GRAPH_KERNELS + 1);
        self.fill(&[(first, elements), (first + 1, elements)])?;
        let buffers: Vec<_> =
            (first + 2..=last).map(|number| buffer_alloc(&session, number, elements * 4)).collect();
        let request = self.client.batch(&list(&buffers));
        self.client.request(&request)?;
        let Loaded { program, sizes } = self.load(elements)?;
        let items: Vec<_> = (first + 2..=last)
            .map(|to| {
                let (left, right) = (to - 1, to - 2);
                format!(
                    "GraphComputeItem({program}, bufs=({to}, {left}, {right}), vars=(), \
                     fixedvars={{}}, ins=(1, 2), outs=(0,), {sizes})"
                )
            })
            .collect();
        let (items, second) = (items.join(", "), first + 1);
        let inputs = format!("bufs=(({session}, {first}), ({session}, {second})), var_vals={{}}");
        let request = self.client.batch(&format!(
            "[GraphAlloc(session={session}, graph_num=1, jit_cache=({items}), {inputs})]"
        ));
        self.client.request(&request)?;
        let run = format!("GraphExec(session={session}, graph_num=1, {inputs}, wait=True)");
        let run = self.client.batch(&list(&[run]));
        for _ in 0..3 {
            self.client.request(&run)?;
        }
        let (mut times, mut on_device) = (Vec::new(), Vec::new());
        let repeats = setting.counts.repeats.max(setting.counts.round_trips / 50);
        for _ in 0..repeats {
            let began = Instant::now();
            let reply = self.client.request(&run)?;
            times.push(began.elapsed());
            on_device.push(microseconds(reply)?);
        }
        report_times("graph", &mut times, results);
        results.insert("graph_device_us".into(), json!(median(&mut on_device)));
        let sum = |(older, newer): (u32, u32), _| (newer, newer.wrapping_add(older));
        self.expect(last, elements, (0..GRAPH_KERNELS).fold((1, 1), sum).1)
    }

    fn copy(&mut self, bytes: usize, setting: &Setting, results: &mut Results) -> Result<()> {
        let (fill, read, pattern) = requests(&mut self.client, bytes)?;
        let began = Instant::now();
        self.client.request(&fill)?;
        let mut first = vec![began.elapsed().as_secs_f64()];
        let (mut inward, mut outward) =
            there_and_back(&mut self.client, setting, &fill, &read, &pattern)?;
        for (name, seconds) in [
            ("copy_in_gbs", &mut inward),
            ("copy_in_first_gbs", &mut first),
            ("copy_out_gbs", &mut outward),
        ] {
            results.insert(name.into(), json!(bytes as f64 / median(seconds) / 1e9));
        }
        Ok(())
    }

    /// Reads a buffer, all of whose integers must be this one.
    fn expect(&mut self, buffer: usize, elements: usize, expected: u32) -> Result<()> {
        let session = self.client.session.clone();
        let request = self.client.batch(&list(&[copy_out(&session, buffer)]));
        self.client.expect_bytes(elements * 4);
        let reply = self.client.request(&request)?;
        if reply != expected.to_le_bytes().repeat(elements) {
            return Err(format!("buffer {buffer} does not hold {expected} everywhere").into());
        }
        Ok(())
    }
}

/// A compiled kernel: as commands name it, and its launch sizes.
struct Loaded {
    program: String,
    sizes: String,
}

impl Loaded {
    fn launch(&self) -> String {
        let Loaded { program, sizes } = self;
        format!(
            "ProgramExec({program}, bufs=({SUM}, {LEFT}, {RIGHT}), vals=(), {sizes}, wait=True)"
        )
    }
}

/// A reply that is a time in seconds.
fn microseconds(reply: &[u8]) -> Result<f64> {
    Ok(std::str::from_utf8(reply)?.parse::<f64>()? * 1e6)
}

//! The table and the JSON of a run.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::support::loopback::Awake;

/// Percentiles that are told, and how they are called.
const PERCENTILES: [(&str, f64); 4] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// Times beyond a minute count as one.
const NANOSECONDS_MAX: u64 = 60_000_000_000;

/// Round-trip times, to three digits.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Times {
        let times = Histogram::new_with_bounds(1, NANOSECONDS_MAX, 3);
        Times(times.expect("three digits are within what the crate offers"))
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn microseconds(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    fn max_microseconds(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    fn to_json(&self) -> Value {
        let mut all = json!({ "count": self.0.len(), "max_us": self.max_microseconds() });
        for (name, percentile) in PERCENTILES {
            all[format!("{name}_us")] = json!(self.microseconds(percentile));
        }
        all
    }
}

/// What was measured of one command, in one mode.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) awake: Awake,
    pub(crate) request_bytes: usize,
    pub(crate) reply_bytes: usize,
    pub(crate) server: Times,
    pub(crate) floor: Times,
}

impl Row {
    fn mode(&self) -> &'static str {
        match self.awake {
            Awake::No => "idle",
            Awake::Yes => "warm",
        }
    }

    fn ratio(&self) -> f64 {
        self.server.microseconds(50.0) / self.floor.microseconds(50.0)
    }
}

/// A run.
pub(crate) struct Report {
    about: Value,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(
        device: &str,
        server_core: usize,
        client_core: usize,
        seconds: f64,
    ) -> Report {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name\t: ").map(str::to_owned));
        let about = json!({
            "device": device,
            "server_core": server_core,
            "client_core": client_core,
            "seconds_per_row": seconds,
            "processor": processor,
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
            "load_before": read("/proc/loadavg").trim(),
        });
        println!(
            "device {device}, server on core {server_core}, client on core {client_core}, \
             {seconds} s a row; microseconds"
        );
        println!(
            "{:<32} {:<4} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} | {:>8} {:>8} {:>6}",
            "latency/",
            "mode",
            "count",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "echo p50",
            "echo p99",
            "ratio"
        );
        Report { about, rows: Vec::new() }
    }

    /// Prints a row and keeps it.
    pub(crate) fn add(&mut self, row: Row) {
        let Row { name, server, floor, .. } = &row;
        print!("{name:<32} {:<4} {:>8}", row.mode(), server.0.len());
        for (_, percentile) in PERCENTILES {
            print!(" {:>8.1}", server.microseconds(percentile));
        }
        println!(
            " {:>9.1} | {:>8.1} {:>8.1} {:>6.2}",
            server.max_microseconds(),
            floor.microseconds(50.0),
            floor.microseconds(99.0),
            row.ratio()
        );
        self.rows.push(row);
    }

    /// Says how to read the table.
    pub(crate) fn finish(&self) {
        println!(
            "echo: a blocking thread on the server's core, messages of the same lengths; ratio: of \
             the medians\nidle: the client sleeps until the reply; warm: it spins. The server \
             sleeps in both."
        );
    }

    pub(crate) fn to_json(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": format!("latency/{}", row.name),
                    "mode": row.mode(),
                    "request_bytes": row.request_bytes,
                    "reply_bytes": row.reply_bytes,
                    "server": row.server.to_json(),
                    "echo": row.floor.to_json(),
                    "ratio_p50": row.ratio(),
                })
            })
            .collect();
        format!("{:#}\n", json!({ "about": self.about, "rows": rows }))
    }
}

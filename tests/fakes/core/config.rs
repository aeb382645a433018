//! What the environment asks of the fake: devices, sizes, order of execution, injected errors.
//!
//! A process may have been started without its parent's environment. For that, a copy of a library
//! can carry settings of its own: text such as `VERSION=12000;ARCHS=75,80` behind a mark in it.

use std::path::PathBuf;
use std::time::Duration;

/// What a fault takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultReach {
    /// The context in which it happened.
    Context,
    /// Every context of the process.
    Process,
    /// The process.
    Abort,
}

/// An error to be returned where none happened.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    call: String,
    /// When the work runs, instead of when it is asked for.
    at_run: bool,
    code: i32,
    /// The first occurrence to fail, from 1, and the last.
    first: u64,
    last: u64,
    pub(super) sticky: bool,
    seen: u64,
}

#[derive(Debug)]
pub(super) struct Config {
    pub(super) devices: usize,
    pub(super) version: i32,
    pub(super) stub: bool,
    /// Pairs of devices that reach each other; `None` for all.
    pub(super) peers: Option<Vec<(usize, usize)>>,
    pub(super) memory_bytes: u64,
    pub(super) seed: u64,
    /// The longest time for which a stream's work is held back.
    pub(super) lag: Duration,
    pub(super) arch: String,
    pub(super) pci: Vec<String>,
    pub(super) fault: FaultReach,
    pub(super) races: bool,
    pub(super) pools: bool,
    /// Memory can be shared with other processes.
    pub(super) shares: bool,
    /// Network cards reach the devices' memory.
    pub(super) cards: bool,
    /// What they write is seen after a flush only.
    pub(super) flushes: bool,
    pub(super) integrated: bool,
    pub(super) hang_blocks: bool,
    /// Where real kernels are compiled to, if they are.
    pub(super) native: Option<PathBuf>,
    pub(super) failures: Vec<Failure>,
}

/// The mark, and room for settings behind it.
#[used]
static SETTINGS: [u8; 512] = {
    let mark = b"fake library's own settings:";
    let mut bytes = [0; 512];
    let mut at = 0;
    while at < mark.len() {
        bytes[at] = mark[at];
        at += 1;
    }
    bytes
};

/// A setting that the library itself carries.
fn carried(name: &str) -> Option<String> {
    // Not what the compiler saw: the file may have been changed since.
    let bytes = std::hint::black_box(&SETTINGS);
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let (_, settings) = text.split_once(':')?;
    let mut pairs = settings.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// The value of `FAKE_<face>_<name>`, else of `FAKE_GPU_<name>`, else the library's own. A
/// compiler's version is its own.
pub(super) fn text(name: &str) -> Option<String> {
    let value = |prefix: &str| {
        std::env::var(format!("FAKE_{prefix}_{name}")).ok().filter(|text| !text.is_empty())
    };
    let is_shared = crate::FACE.is_driver || name != "VERSION";
    let shared = || value("GPU").filter(|_| is_shared);
    value(crate::FACE.variables).or_else(shared).or_else(|| carried(name))
}

fn number(name: &str, default: u64) -> u64 {
    text(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("FAKE_GPU_{name}: {text} is not a number"))
    })
}

fn flag(name: &str, default: bool) -> bool {
    number(name, u64::from(default)) != 0
}

impl Config {
    pub(super) fn from_environment() -> Config {
        let size = |name, default| usize::try_from(number(name, default)).expect("64 bits");
        Config {
            devices: size("DEVICES", 1),
            version: i32::try_from(number("VERSION", crate::FACE.version))
                .expect("a version is a small number"),
            stub: flag("STUB", false),
            peers: peers(&text("PEERS").unwrap_or_else(|| "all".into())),
            memory_bytes: number("MEMORY", 1 << 30),
            seed: number("SEED", 1),
            lag: Duration::from_micros(number("LAG_US", 200)),
            arch: text("ARCH").unwrap_or_else(|| crate::FACE.arch.into()),
            pci: text("PCI")
                .map_or_else(Vec::new, |list| list.split(',').map(str::to_owned).collect()),
            fault: match text("FAULT").as_deref() {
                None | Some("context") => FaultReach::Context,
                Some("process") => FaultReach::Process,
                Some("abort") => FaultReach::Abort,
                Some(other) => panic!("FAKE_GPU_FAULT: {other}"),
            },
            races: flag("RACES", true),
            pools: flag("POOLS", true),
            shares: flag("SHARES", true),
            cards: flag("CARDS", true),
            flushes: flag("FLUSHES", false),
            integrated: flag("INTEGRATED", false),
            hang_blocks: flag("HANG_BLOCKS", false),
            native: text("NATIVE").map(PathBuf::from),
            failures: text("FAIL")
                .map_or_else(Vec::new, |list| list.split(',').map(failure).collect()),
        }
    }

    pub(super) fn reach_each_other(&self, a: usize, b: usize) -> bool {
        let Some(pairs) = &self.peers else { return a != b };
        pairs.contains(&(a, b)) || pairs.contains(&(b, a))
    }

    /// The error to return for this occurrence of `call`.
    pub(super) fn injected(&mut self, call: &str, at_run: bool) -> Option<Failure> {
        let mut found = None;
        for failure in &mut self.failures {
            if failure.call != call || failure.at_run != at_run {
                continue;
            }
            failure.seen += 1;
            if (failure.first..=failure.last).contains(&failure.seen) {
                found = Some(failure.clone());
            }
        }
        found
    }
}

impl Failure {
    pub(super) fn code(&self) -> i32 {
        self.code
    }
}

/// `all`, `none` or pairs such as `0-1;2-3`.
fn peers(list: &str) -> Option<Vec<(usize, usize)>> {
    match list {
        "all" => return None,
        "none" => return Some(Vec::new()),
        _ => {}
    }
    let pair = |pair: &str| {
        let (a, b) = pair.split_once('-')?;
        Some((a.parse().ok()?, b.parse().ok()?))
    };
    let pairs = list.split([',', ';']).map(pair).collect::<Option<Vec<_>>>();
    Some(pairs.unwrap_or_else(|| panic!("FAKE_GPU_PEERS: {list}")))
}

/// `call[@run]:code[:nth=N|:from=N|:every][:sticky]`.
fn failure(item: &str) -> Failure {
    let wrong = || -> ! { panic!("FAKE_GPU_FAIL: {item}") };
    let mut parts = item.split(':');
    let name = parts.next().unwrap_or_default();
    let (call, at_run) = name.strip_suffix("@run").map_or((name, false), |call| (call, true));
    let code = parts.next().and_then(|code| code.parse().ok()).unwrap_or_else(|| wrong());
    let call = call.trim().to_owned();
    let mut failure = Failure { call, at_run, code, first: 1, last: 1, sticky: false, seen: 0 };
    for part in parts {
        match part.split_once('=') {
            Some(("nth", n)) => {
                failure.first = n.parse().unwrap_or_else(|_| wrong());
                failure.last = failure.first;
            }
            Some(("from", n)) => {
                failure.first = n.parse().unwrap_or_else(|_| wrong());
                failure.last = u64::MAX;
            }
            None if part == "every" => failure.last = u64::MAX,
            None if part == "sticky" => failure.sticky = true,
            _ => wrong(),
        }
    }
    failure
}

//! `outboard check`: what this machine offers and lacks, each line with its remedy.
//!
//! Absent: anything that changes the machine. The lines are independent; only those marked `need`
//! decide the exit code.

use std::fmt;

use rustix::process::{Resource, getrlimit};

use crate::compile::{self, SandboxStatus, Toolchain};
use crate::config::{CompileConfig, RdmaConfig};
use crate::device::gpu::{self, Vendor};
use crate::rdma::{Device, DeviceFabric};
use crate::shard;

/// Locked memory that glommio's buffers want beside the rings' 512 KiB.
const MEMLOCK_BYTES: u64 = 8 << 20;

/// How a line came out.
enum Verdict {
    /// It is there.
    Ok,
    /// It would be nice to have.
    Lacks { remedy: String },
    /// The main job cannot run without it.
    Needs { remedy: String },
}

struct Line {
    subject: &'static str,
    verdict: Verdict,
    found: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, remedy) = match &self.verdict {
            Verdict::Ok => ("ok", None),
            Verdict::Lacks { remedy } => ("lacks", Some(remedy)),
            Verdict::Needs { remedy } => ("NEEDS", Some(remedy)),
        };
        write!(f, "{word:<6} {:<10} {}", self.subject, self.found)?;
        remedy.map_or(Ok(()), |remedy| write!(f, " -> {remedy}"))
    }
}

/// Prints the lines; whether kernels of CPU devices can be served.
#[must_use]
pub fn run() -> bool {
    let mut lines = vec![io_uring(), memlock(), descriptors()];
    lines.extend(compilers());
    lines.extend(sandbox());
    lines.extend(accelerator("CUDA", Vendor::Nvidia));
    lines.extend(accelerator("HIP", Vendor::Amd));
    lines.push(gpu_compiler("NVRTC", compile::Kind::Nvrtc));
    lines.push(gpu_compiler("comgr", compile::Kind::Comgr));
    lines.extend(rdma());
    lines.iter().for_each(|line| println!("{line}"));
    !lines.iter().any(|line| matches!(line.verdict, Verdict::Needs { .. }))
}

fn io_uring() -> Line {
    let subject = "io_uring";
    match shard::probe() {
        Ok(()) => Line { subject, verdict: Verdict::Ok, found: "a shard starts".to_owned() },
        Err(shard::StartError::Executor { why, remedy, .. }) => {
            Line { subject, verdict: Verdict::Needs { remedy }, found: why }
        }
        Err(error) => {
            let remedy = "see the message".to_owned();
            Line { subject, verdict: Verdict::Needs { remedy }, found: error.to_string() }
        }
    }
}

fn memlock() -> Line {
    let (subject, limit) = ("memlock", getrlimit(Resource::Memlock).current);
    let found = limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    let verdict = match limit {
        Some(bytes) if bytes < MEMLOCK_BYTES => Verdict::Lacks {
            remedy: "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit".to_owned(),
        },
        _ => Verdict::Ok,
    };
    Line { subject, verdict, found }
}

fn descriptors() -> Line {
    let (subject, limit) = ("files", getrlimit(Resource::Nofile).maximum);
    let found = limit.map_or("unlimited".to_owned(), |count| format!("{count} descriptors"));
    let verdict = match limit {
        Some(count) if count < 65_536 => Verdict::Lacks {
            remedy: "ulimit -Hn 1048576, or LimitNOFILE=1048576 in the systemd unit, for many \
                     clients"
                .to_owned(),
        },
        _ => Verdict::Ok,
    };
    Line { subject, verdict, found }
}

fn compilers() -> Vec<Line> {
    let subject = "compiler";
    let remedy = || "install clang-19 (clang 17 or later), or gcc 13 or later".to_owned();
    let toolchain = match Toolchain::find(&CompileConfig::default()) {
        Ok(toolchain) => toolchain,
        Err(error) => {
            let verdict = Verdict::Needs { remedy: remedy() };
            return vec![Line { subject, verdict, found: error.to_string() }];
        }
    };
    let found = format!("{} ({})", toolchain.path.display(), toolchain.version);
    let mut lines = vec![Line { subject, verdict: Verdict::Ok, found }];
    for (subject, has) in [("float16", toolchain.half), ("bfloat16", toolchain.bfloat16)] {
        let line = match has {
            true => Line { subject, verdict: Verdict::Ok, found: "compiles".to_owned() },
            false => {
                let found = "not known to this compiler".to_owned();
                Line { subject, verdict: Verdict::Lacks { remedy: remedy() }, found }
            }
        };
        lines.push(line);
    }
    lines
}

fn sandbox() -> Vec<Line> {
    let status = SandboxStatus::of_this_kernel();
    let landlock = match status.landlock_abi {
        Some(abi) => Line {
            subject: "landlock",
            verdict: Verdict::Ok,
            found: format!("version {abi} of its interface"),
        },
        None => Line {
            subject: "landlock",
            verdict: Verdict::Lacks {
                remedy:
                    "a kernel from 5.13 with lsm=landlock; without it a compiler may read files"
                        .to_owned(),
            },
            found: "not in this kernel".to_owned(),
        },
    };
    let seccomp = match status.seccomp {
        true => Line { subject: "seccomp", verdict: Verdict::Ok, found: "filters work".to_owned() },
        false => Line {
            subject: "seccomp",
            verdict: Verdict::Needs {
                remedy: "a kernel with CONFIG_SECCOMP_FILTER; kernels are not run without it"
                    .to_owned(),
            },
            found: "no filters in this kernel".to_owned(),
        },
    };
    vec![landlock, seccomp]
}

/// A line for the driver and one for each device, or one that says why there are none.
fn accelerator(subject: &'static str, vendor: Vendor) -> Vec<Line> {
    match gpu::describe(vendor) {
        Ok(lines) => {
            let line = |found| Line { subject, verdict: Verdict::Ok, found };
            lines.into_iter().map(line).collect()
        }
        Err(absent) => {
            let verdict = Verdict::Lacks { remedy: absent.remedy() };
            vec![Line { subject, verdict, found: absent.to_string() }]
        }
    }
}

fn gpu_compiler(subject: &'static str, kind: compile::Kind) -> Line {
    let compile::Report { found, remedy } = compile::Report::of(kind, &CompileConfig::default());
    let verdict = remedy.map_or(Verdict::Ok, |remedy| Verdict::Lacks { remedy });
    Line { subject, verdict, found }
}

/// A line for the network card, and one for the memory of each vendor's devices.
fn rdma() -> Vec<Line> {
    let subject = "RDMA";
    let device = match Device::open(&RdmaConfig::default()) {
        Ok(device) => device,
        Err(error) => {
            let verdict = Verdict::Lacks { remedy: error.remedy().to_owned() };
            return vec![Line { subject, verdict, found: error.to_string() }];
        }
    };
    let card = Line { subject, verdict: Verdict::Ok, found: device.chosen().to_string() };
    let fabric = DeviceFabric::new(device);
    let memory = |(subject, vendor)| match gpu::samples(vendor) {
        Ok(samples) => {
            let tries = samples.into_iter().map(|sample| match sample {
                Ok(sample) => fabric.try_device_memory(&sample).map_err(|error| error.to_string()),
                Err(why) => Err(why),
            });
            tries.map(|reached| device_memory(subject, reached)).collect()
        }
        // Another line says that there are none.
        Err(_) => Vec::new(),
    };
    let vendors = [("CUDA+RDMA", Vendor::Nvidia), ("HIP+RDMA", Vendor::Amd)];
    std::iter::once(card).chain(vendors.into_iter().flat_map(memory)).collect()
}

/// Whether the network card reaches a device's memory.
fn device_memory(subject: &'static str, reached: Result<(), String>) -> Line {
    match reached {
        Ok(()) => {
            let found = "the network card reaches its memory".to_owned();
            Line { subject, verdict: Verdict::Ok, found }
        }
        Err(found) => {
            let remedy = "none needed: it is copied by way of the server's own memory; for the \
                          card to reach it its driver and the device's have to know dmabuf";
            Line { subject, verdict: Verdict::Lacks { remedy: remedy.to_owned() }, found }
        }
    }
}

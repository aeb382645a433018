//! The CPU as a platform.
//!
//! Owns: what clients are told about it, and how devices of it are opened and sources compiled for
//! it. Absent: the devices (`isolated`), the compiler (`compile`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::isolated::{Isolated, WorkerConfig};
use super::shared::Budget;
use super::{Device, DeviceError, Platform, Quota, Renderer};
use crate::compile;

/// What a CPU platform is made of.
#[derive(Clone)]
pub struct PlatformConfig {
    /// How many devices clients see. Each session has a process of its own whatever their number.
    pub device_count: u64,
    /// The program that is started with the argument `worker`; this one by `/proc/self/exe`.
    pub worker_exe: PathBuf,
    /// See [`crate::config::DeviceLimits::kernel_time_max`].
    pub kernel_time_max: Duration,
    /// The memory of all sessions.
    pub budget: Arc<Budget>,
    /// Compiles C to objects.
    pub compile: Arc<compile::Service>,
}

/// C kernels on the machine's own cores, a process for each session.
pub struct CpuPlatform {
    device_count: u64,
    workers: WorkerConfig,
    compile: Arc<compile::Service>,
}

impl CpuPlatform {
    #[must_use]
    pub fn new(config: PlatformConfig) -> CpuPlatform {
        let PlatformConfig { device_count, worker_exe, kernel_time_max, budget, compile } = config;
        let workers = WorkerConfig::of_kernels(worker_exe, kernel_time_max, budget);
        CpuPlatform { device_count, workers, compile }
    }
}

impl Platform for CpuPlatform {
    fn name(&self) -> &'static str {
        "CPU"
    }

    fn device_count(&self) -> u64 {
        self.device_count
    }

    fn renderer(&self, _index: u64) -> Renderer {
        let (module, class) = ("tinygrad.renderer.cstyle", "ClangRenderer");
        Renderer { module, class, arguments: "()".to_owned() }
    }

    fn open_within(&mut self, _index: u64, quota: &Quota) -> Result<Box<dyn Device>, DeviceError> {
        Ok(Box::new(Isolated::open(&self.workers.within(quota))?))
    }

    fn compile(
        &mut self,
        asker: compile::Asker,
        _index: u64,
        source: Arc<[u8]>,
    ) -> compile::Ticket {
        self.compile.compile_for(asker, &compile::Target::Cpu, source)
    }
}

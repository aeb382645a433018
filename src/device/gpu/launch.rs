//! What a launch asks for, checked and packed.
//!
//! Owns: the limits of a launch, each refused in words before the driver sees it, and how arguments
//! lie in memory: pointers of 8 bytes, then integers of 4, with nothing behind them; and the launch
//! of one kernel by a device.

use super::device::{self, GpuDevice, Stop};
use super::driver::{DevicePointer, Kernel, LaunchLimits};
use super::handles::Function;
use super::memory::Access;
use super::queue::Lane;
use crate::device::{DeviceError, Fence, Launch, LaunchSize};

/// Sizes of a launch: the grid in blocks, the block in threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
}

fn refused(why: String) -> DeviceError {
    DeviceError::Failed { what: "launch", why }
}

impl Sizes {
    /// Checks what a client asks for against what the device and the kernel can do.
    pub(super) fn new(
        global: Option<LaunchSize>,
        local: Option<LaunchSize>,
        function: &Function,
        limits: &LaunchLimits,
    ) -> Result<Sizes, DeviceError> {
        let missing = |what| refused(format!("the {what} size is missing: this device needs one"));
        let grid = global.ok_or_else(|| missing("global"))?;
        let block = local.ok_or_else(|| missing("local"))?;
        let sizes = Sizes {
            grid: fit("global", grid, limits.grid)?,
            block: fit("local", block, limits.block)?,
        };
        let threads: u64 = sizes.block.iter().map(|&size| u64::from(size)).product();
        for (whose, most) in [
            ("the device", limits.block_threads),
            ("this kernel, with the registers it needs,", function.info.block_threads),
        ] {
            if threads > u64::from(most) {
                let why = format!("{threads} threads in a block: {whose} takes {most} at most");
                return Err(refused(why));
            }
        }
        Ok(sizes)
    }

    pub(super) fn kernel<'a>(&self, function: &Function, arguments: &'a [u8]) -> Kernel<'a> {
        let Sizes { grid, block } = *self;
        Kernel { function: function.raw, grid, block, dynamic_shared_bytes: 0, arguments }
    }
}

fn fit(what: &str, sizes: LaunchSize, limits: [u32; 3]) -> Result<[u32; 3], DeviceError> {
    let mut fitting = [1; 3];
    for (dimension, (to, (size, most))) in
        fitting.iter_mut().zip(sizes.into_iter().zip(limits)).enumerate()
    {
        *to =
            u32::try_from(size).ok().filter(|size| (1..=most).contains(size)).ok_or_else(|| {
                let why = format!(
                    "{what} size {size} in dimension {dimension}: the device takes 1 to {most}"
                );
                refused(why)
            })?;
    }
    Ok(fitting)
}

/// Checks a kernel when it is loaded: it has shared memory of a fixed size only.
pub(super) fn check_shared(function: &Function, limits: &LaunchLimits) -> Result<(), String> {
    let (needs, most) = (function.info.static_shared_bytes, limits.shared_bytes);
    if needs > most {
        return Err(format!("the kernel needs {needs} bytes of shared memory, a block has {most}"));
    }
    Ok(())
}

/// Packs arguments.
pub(super) fn pack(
    to: &mut Vec<u8>,
    buffers: impl Iterator<Item = DevicePointer>,
    values: impl Iterator<Item = i32>,
    limits: &LaunchLimits,
) -> Result<(), DeviceError> {
    to.clear();
    buffers.for_each(|at| to.extend(at.0.to_ne_bytes()));
    values.for_each(|value| to.extend(value.to_ne_bytes()));
    let most = limits.argument_bytes;
    if u32::try_from(to.len()).is_ok_and(|bytes| bytes <= most) {
        return Ok(());
    }
    Err(refused(format!("{} bytes of arguments: the device takes {most} at most", to.len())))
}

impl GpuDevice {
    pub(super) fn launch_one(&mut self, launch: &Launch<'_>) -> Result<Fence, Stop> {
        let device::Kernel { function, .. } = *self.kernel(launch.program)?;
        let limits = self.parts().limits;
        let sizes = Sizes::new(launch.global, launch.local, &function, &limits)?;
        let mut arguments = std::mem::take(&mut self.arguments);
        let packed = self.pack(launch, &mut arguments, &limits);
        let fence = packed.and_then(|()| {
            self.queue.begin(Lane::Compute)?;
            for span in launch.buffers {
                let allocation = self.own(span)?;
                allocation.uses.order(&mut self.queue, Lane::Compute, Access::Write)?;
            }
            let kernel = sizes.kernel(&function, &arguments);
            self.timed(launch.timed, 1, |device| {
                Ok(device.queue.stream(Lane::Compute).launch(&kernel)?)
            })
        });
        self.arguments = arguments;
        let fence = fence?;
        for span in launch.buffers {
            // Which of its buffers a kernel writes is not said.
            self.own(span)?.uses.note(Lane::Compute, Access::Write, fence.0);
        }
        Ok(fence)
    }

    fn pack(
        &self,
        launch: &Launch<'_>,
        to: &mut Vec<u8>,
        limits: &LaunchLimits,
    ) -> Result<(), Stop> {
        let mut places = Vec::with_capacity(launch.buffers.len());
        for span in launch.buffers {
            places.push(DevicePointer(self.own(span)?.at.0 + span.offset));
        }
        pack(to, places.into_iter(), launch.values.iter().copied(), limits)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::device::gpu::driver::{self, FunctionInfo};

    const LIMITS: LaunchLimits = LaunchLimits {
        grid: [2_147_483_647, 65_535, 65_535],
        block: [1024, 1024, 64],
        block_threads: 1024,
        shared_bytes: 48 << 10,
        argument_bytes: 4096,
    };

    fn function(block_threads: u32) -> Function {
        let raw = driver::Function(NonZeroUsize::new(1).unwrap());
        Function { raw, info: FunctionInfo { block_threads, static_shared_bytes: 49 << 10 } }
    }

    fn check(global: Option<LaunchSize>, local: Option<LaunchSize>, expected: &str) {
        let error = Sizes::new(global, local, &function(512), &LIMITS).unwrap_err();
        assert_eq!(error.to_string(), format!("launch: {expected}"));
    }

    #[test]
    fn launch_beyond_a_limit_is_refused_by_its_name() {
        let one = Some([1; 3]);
        check(None, one, "the global size is missing: this device needs one");
        check(one, None, "the local size is missing: this device needs one");
        let message = "global size 65536 in dimension 1: the device takes 1 to 65535";
        check(Some([1, 65_536, 1]), one, message);
        check(one, Some([1, 1, 0]), "local size 0 in dimension 2: the device takes 1 to 64");
        let message = "2048 threads in a block: the device takes 1024 at most";
        check(one, Some([32, 32, 2]), message);
        check(
            one,
            Some([1024, 1, 1]),
            "1024 threads in a block: this kernel, with the registers it needs, takes 512 at most",
        );
        assert!(Sizes::new(one, Some([512, 1, 1]), &function(512), &LIMITS).is_ok());
    }

    #[test]
    fn arguments_are_pointers_then_integers_with_nothing_behind() {
        let mut packed = Vec::new();
        let pointers = [DevicePointer(1), DevicePointer(2)];
        pack(&mut packed, pointers.into_iter(), [-1].into_iter(), &LIMITS).unwrap();
        let expected = [&1_u64.to_ne_bytes()[..], &2_u64.to_ne_bytes(), &(-1_i32).to_ne_bytes()];
        assert_eq!(packed, expected.concat());
        let many = [DevicePointer(1); 513];
        let error = pack(&mut packed, many.into_iter(), [].into_iter(), &LIMITS).unwrap_err();
        assert!(
            error.to_string().ends_with("4104 bytes of arguments: the device takes 4096 at most")
        );
    }

    #[test]
    fn kernel_with_too_much_shared_memory_is_refused() {
        let why = check_shared(&function(1), &LIMITS).unwrap_err();
        assert_eq!(why, "the kernel needs 50176 bytes of shared memory, a block has 49152");
    }
}

//! Finding CUDA's driver and starting it.
//!
//! Owns: which libraries are tried, which version is needed, and why a driver does not start.

use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::sys;
use sys::CUresult::*;

use super::calls::Calls;
use super::{Cuda, check, version_text};
use crate::device::gpu::driver::{Code, Driver};
use crate::device::gpu::loading::{self, Absent, Loaded, Opened, Vendor};

/// The driver's own name first: under the other a toolkit has a stub.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// CUDA 12.0: the first with version 2 of the graph's kernel nodes.
const VERSION_MIN: c_int = 12_000;

/// The driver of this machine; looked for once in a process.
pub(in crate::device::gpu) fn load() -> Result<&'static Loaded, &'static Absent> {
    static FOUND: OnceLock<Result<Loaded, Absent>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Result<Loaded, Absent> {
    let vendor = Vendor::Nvidia;
    let opened = loading::open(vendor, &LIBRARIES)?;
    let path = opened.path("cuInit");
    let number = version_of(&opened, &path)?;
    let version = version_text(number);
    let too_old =
        |missing| Absent::TooOld { vendor, path: path.clone(), version: version.clone(), missing };
    let calls = Calls::look_up(&opened).map_err(|missing| too_old(Some(missing)))?;
    if number < VERSION_MIN {
        return Err(too_old(None));
    }
    let cuda = Cuda { calls, version: number };
    let refused = |code| start_failure(code, &cuda.describe(code), &path, &version);
    // SAFETY: the call takes a number that has to be zero.
    check(unsafe { (cuda.calls.cuInit)(0) }).map_err(refused)?;
    let devices = cuda.device_count().map_err(refused)?;
    if devices == 0 {
        return Err(Absent::NoDevice { vendor, path, version });
    }
    let driver: &'static dyn Driver = Box::leak(Box::new(cuda));
    Ok(Loaded { driver, devices, path, version })
}

/// The version, which the library tells before it is initialised and however old it is.
fn version_of(opened: &Opened, path: &str) -> Result<c_int, Absent> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: the driver's documentation has the call so.
    let Some(ask) = (unsafe { opened.call::<Ask>("cuDriverGetVersion") }) else {
        let (path, why) = (path.to_owned(), "has no cuDriverGetVersion: not CUDA's driver".into());
        return Err(Absent::Broken { path, why, remedy: "see where the file comes from" });
    };
    let mut version = 0;
    // SAFETY: `version` takes one integer.
    match check(unsafe { ask(&mut version) }) {
        Ok(()) => Ok(version),
        Err(code) => Err(start_failure(code, &format!("error {}", code.0), path, "unknown")),
    }
}

/// Why the driver does not start, by the code of one of its first calls.
fn start_failure(code: Code, words: &str, path: &str, version: &str) -> Absent {
    const REMEDIES: &[(sys::CUresult, &str)] = &[
        (
            CUDA_ERROR_OPERATING_SYSTEM,
            "see that /dev/nvidia0, /dev/nvidiactl and /dev/nvidia-uvm are there and may be \
             opened; nvidia-modprobe -u -c 0 makes them",
        ),
        (
            CUDA_ERROR_SYSTEM_NOT_READY,
            "start the fabric manager (systemctl start nvidia-fabricmanager)",
        ),
        (
            CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            "library and kernel module are of two versions: reboot, or load the module anew",
        ),
        (
            CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
            "this device takes no forward compatibility: take the cuda-compat package's folder out \
             of LD_LIBRARY_PATH",
        ),
        (CUDA_ERROR_UNKNOWN, "often /dev/nvidia-uvm is missing: nvidia-modprobe -u -c 0 makes it"),
    ];
    let is = |result: sys::CUresult| result as c_int == code.0;
    let path = path.to_owned();
    if is(CUDA_ERROR_STUB_LIBRARY) {
        return Absent::Stub { path };
    }
    if is(CUDA_ERROR_NO_DEVICE) || is(CUDA_ERROR_INVALID_DEVICE) {
        return Absent::NoDevice { vendor: Vendor::Nvidia, path, version: version.to_owned() };
    }
    let known = REMEDIES.iter().find(|(result, _)| is(*result));
    let remedy = known.map_or("nvidia-smi and the kernel's log say more", |(_, remedy)| *remedy);
    Absent::Broken { path, why: format!("driver {version} does not start: {words}"), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(result: sys::CUresult) -> Absent {
        start_failure(Code(result as c_int), "words", "libcuda.so.1", "12.4")
    }

    #[test]
    fn stub_and_no_device_have_answers_of_their_own() {
        let path = "libcuda.so.1".to_owned();
        assert_eq!(failure(CUDA_ERROR_STUB_LIBRARY), Absent::Stub { path: path.clone() });
        let version = "12.4".to_owned();
        let none = Absent::NoDevice { vendor: Vendor::Nvidia, path, version };
        assert_eq!(failure(CUDA_ERROR_NO_DEVICE), none);
        assert_eq!(none.to_string(), "driver 12.4 (libcuda.so.1) finds no device");
    }

    #[test]
    fn driver_that_does_not_start_has_a_remedy_for_its_code() {
        let check = |result, expected: &str| {
            let absent = failure(result);
            let text = "libcuda.so.1: driver 12.4 does not start: words";
            assert_eq!(absent.to_string(), text);
            assert!(absent.remedy().contains(expected), "{}", absent.remedy());
        };
        check(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "reboot");
        check(CUDA_ERROR_SYSTEM_NOT_READY, "nvidia-fabricmanager");
        check(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "cuda-compat");
        check(CUDA_ERROR_OPERATING_SYSTEM, "nvidia-modprobe");
        check(CUDA_ERROR_UNKNOWN, "nvidia-uvm");
        check(CUDA_ERROR_OUT_OF_MEMORY, "nvidia-smi");
    }

    #[test]
    fn library_without_cuda_is_not_its_driver() {
        let opened = loading::open(Vendor::Nvidia, &["libc.so.6"]);
        let opened = opened.expect("every test runs with the C library");
        let absent = version_of(&opened, "libc.so.6").expect_err("that is no driver");
        assert_eq!(absent.to_string(), "libc.so.6: has no cuDriverGetVersion: not CUDA's driver");
        assert_eq!(Calls::look_up(&opened).err(), Some("cuCtxDestroy_v2"));
    }

    #[test]
    fn versions_are_spelled_as_everywhere() {
        assert_eq!(version_text(13_000), "13.0");
        assert_eq!(version_text(12_080), "12.8");
    }
}

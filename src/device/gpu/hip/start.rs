//! Finding HIP's runtime and starting it.
//!
//! Owns: which version is needed, and why a runtime does not start. The names that are tried are
//! those of the crate that declares the calls.

use std::ffi::c_int;
use std::sync::OnceLock;

use hip_sys::hiprt::{self as hip, Missing, Runtime};

use super::{Hip, check, version_text};
use crate::device::gpu::driver::{Code, Driver};
use crate::device::gpu::loading::{self, Absent, Loaded, Opened, Vendor};

/// HIP 5.4: the oldest version whose declarations were held against those that are used.
const VERSION_MIN: c_int = 50_400_000;

/// The driver of this machine; looked for once in a process.
pub(in crate::device::gpu) fn load() -> Result<&'static Loaded, &'static Absent> {
    static FOUND: OnceLock<Result<Loaded, Absent>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Result<Loaded, Absent> {
    let vendor = Vendor::Amd;
    let opened = loading::open(vendor, &hip::LIBRARIES)?;
    let path = opened.path("hipInit");
    let number = version_of(&opened, &path)?;
    let version = version_text(number);
    let too_old =
        |missing| Absent::TooOld { vendor, path: path.clone(), version: version.clone(), missing };
    // SAFETY: the library has HIP's version call, so it is HIP's runtime; it is never closed.
    let calls = unsafe { Runtime::look_up(&opened.library) };
    let calls = calls.map_err(|Missing(call)| too_old(Some(call)))?;
    if number < VERSION_MIN {
        return Err(too_old(None));
    }
    let hip = Hip { calls, version: number };
    let refused = |code| start_failure(code, &hip.describe(code), &path, &version);
    // SAFETY: the call takes a number that has to be zero.
    check(unsafe { (hip.calls.hipInit)(0) }).map_err(refused)?;
    let devices = hip.device_count().map_err(refused)?;
    if devices == 0 {
        return Err(Absent::NoDevice { vendor, path, version });
    }
    let driver: &'static dyn Driver = Box::leak(Box::new(hip));
    Ok(Loaded { driver, devices, path, version })
}

/// The version. A runtime that may not tell for lack of a device tells zero.
fn version_of(opened: &Opened, path: &str) -> Result<c_int, Absent> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> hip::hipError_t;
    // SAFETY: HIP's documentation has the call so.
    let Some(ask) = (unsafe { opened.call::<Ask>("hipRuntimeGetVersion") }) else {
        let (path, why) = (path.to_owned(), "has no hipRuntimeGetVersion: not HIP".into());
        return Err(Absent::Broken { path, why, remedy: "see where the file comes from" });
    };
    let mut version = 0;
    // SAFETY: `version` takes one integer.
    match check(unsafe { ask(&mut version) }) {
        Ok(()) => Ok(version),
        Err(code) => Err(start_failure(code, &format!("error {}", code.0), path, "unknown")),
    }
}

/// Why the runtime does not start, by the code of one of its first calls.
fn start_failure(code: Code, words: &str, path: &str, version: &str) -> Absent {
    let (path, version) = (path.to_owned(), version.to_owned());
    match code.0 {
        // Without a device, initialising says the second and counting the first.
        hip::hipErrorNoDevice | hip::hipErrorInvalidDevice => {
            Absent::NoDevice { vendor: Vendor::Amd, path, version }
        }
        hip::hipErrorInsufficientDriver => Absent::Broken {
            path,
            why: format!("the kernel's driver is too old for {version}: {words}"),
            remedy: "install the amdgpu driver of the same ROCm version, or a newer kernel",
        },
        _ => Absent::Broken {
            path,
            why: format!("driver {version} does not start: {words}"),
            remedy: "rocminfo and the kernel's log say more",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: hip::hipError_t) -> Absent {
        start_failure(Code(code), "words", "libamdhip64.so.6", "6.4")
    }

    #[test]
    fn both_codes_for_no_device_say_so() {
        for code in [hip::hipErrorNoDevice, hip::hipErrorInvalidDevice] {
            let text = "driver 6.4 (libamdhip64.so.6) finds no device";
            assert_eq!(failure(code).to_string(), text);
        }
    }

    #[test]
    fn runtime_that_does_not_start_says_why_and_what_to_do() {
        let old = failure(hip::hipErrorInsufficientDriver);
        let text = "libamdhip64.so.6: the kernel's driver is too old for 6.4: words";
        assert_eq!(old.to_string(), text);
        assert!(old.remedy().contains("amdgpu"), "{}", old.remedy());
        let other = failure(hip::hipErrorUnknown);
        assert_eq!(other.to_string(), "libamdhip64.so.6: driver 6.4 does not start: words");
        assert!(other.remedy().contains("rocminfo"), "{}", other.remedy());
    }

    #[test]
    fn library_without_hip_is_not_its_runtime() {
        let opened = loading::open(Vendor::Amd, &["libc.so.6"]);
        let opened = opened.expect("every test runs with the C library");
        let absent = version_of(&opened, "libc.so.6").expect_err("that is no driver");
        assert_eq!(absent.to_string(), "libc.so.6: has no hipRuntimeGetVersion: not HIP");
    }
}

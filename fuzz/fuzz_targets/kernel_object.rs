//! Any bytes as an object of a kernel: refused with a short reason, or loaded. Never called.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::device::cpu::Kernel;

fuzz_target!(|object: &[u8]| {
    if let Err(error) = Kernel::load(object) {
        assert!(error.to_string().len() < 500, "{error}");
    }
});

//! What a fuzzer has to find: `engine_sequence` with a model that has one rule wrong, that a view
//! may end one byte behind its base. A run that ends without a finding shows that the fuzzers are
//! blind.
#![no_main]

#[path = "../../tests/pair/mod.rs"]
#[expect(dead_code, reason = "some of it is for seeds, and for other targets")]
mod sim;

use libfuzzer_sys::fuzz_target;
use sim::model::Mistake;
use sim::pick::Pick;
use sim::world::simulate;

fuzz_target!(|choices: &[u8]| {
    if let Err(difference) = simulate(Pick::of_bytes(choices), Some(Mistake::ViewEnd)) {
        panic!("{difference}");
    }
});

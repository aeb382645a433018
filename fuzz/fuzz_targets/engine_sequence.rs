//! Any history of clients, shards, slow and mortal devices and dying connections is as the
//! reference model says. The simulator and the model are those of `tests/pair.rs`; the input makes
//! the choices that a seed makes there.
#![no_main]

#[path = "../../tests/pair/mod.rs"]
#[expect(dead_code, reason = "some of it is for seeds, and for other targets")]
mod sim;

use libfuzzer_sys::fuzz_target;
use sim::pick::Pick;
use sim::world::simulate;

fuzz_target!(|choices: &[u8]| {
    if let Err(difference) = simulate(Pick::of_bytes(choices), None) {
        panic!("{difference}");
    }
});

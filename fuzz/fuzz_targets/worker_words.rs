//! Whatever a worker writes into the head of its queue: the server notices, or is not misled.
//!
//! Input: what the server does with the queue and what the worker writes, a byte for each and its
//! arguments behind it; see `outboard::device::hostile`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| outboard::device::hostile::queue(input));

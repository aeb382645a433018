//! What is read can be printed, and what is printed is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::config::WireLimits;
use outboard::wire::{parse_batch, write_batch};

fuzz_target!(|text: &[u8]| {
    let limits = WireLimits::default();
    let Ok(requests) = parse_batch(text, &limits) else { return };
    let mut printed = String::new();
    write_batch(&mut printed, &requests).expect("a String takes all");
    let again = parse_batch(printed.as_bytes(), &limits).expect("what we print can be read");
    assert_eq!(requests.len(), again.len());
    let mut printed_again = String::new();
    write_batch(&mut printed_again, &again).expect("a String takes all");
    assert_eq!(printed, printed_again);
    for (before, after) in requests.iter().zip(&again) {
        assert_eq!((&before.session, &before.command), (&after.session, &after.command));
    }
});

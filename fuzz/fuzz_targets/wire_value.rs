//! Any bytes as one Python literal, all of it looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::config::WireLimits;
use outboard::wire::Tape;
use outboard::wire::value::View;

fuzz_target!(|text: &[u8]| {
    let mut tape = Tape::new();
    let Ok(root) = tape.parse(text, &WireLimits::default()) else { return };
    let mut left = vec![root];
    while let Some(value) = left.pop() {
        assert!(value.at() < text.len());
        match value.view() {
            Ok(
                View::Call(_, items) | View::Dict(items) | View::List(items) | View::Tuple(items),
            ) => {
                left.extend(items);
            }
            Ok(View::Binding(_, inner) | View::Keyword(_, inner)) => left.push(inner),
            Ok(_) | Err(_) => {}
        }
    }
});

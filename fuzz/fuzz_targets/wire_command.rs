//! Any bytes as a batch: no panic, no hang, and errors that lie inside the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outboard::config::WireLimits;
use outboard::wire::command::{Command, GraphItem};
use outboard::wire::parse_batch;

fuzz_target!(|text: &[u8]| {
    let requests = match parse_batch(text, &WireLimits::default()) {
        Ok(requests) => requests,
        Err(error) => {
            assert!(error.at() <= text.len() as u64);
            assert!(error.to_string().len() < 1000);
            return;
        }
    };
    for request in requests {
        let Command::GraphAlloc(graph) = request.command else { continue };
        for item in &*graph.items {
            let GraphItem::Compute(item) = item else { continue };
            for size in item.global.iter().chain(&item.local).flat_map(|size| size.as_slice()) {
                let _ = size.eval(&|name| graph.values.lookup(name));
            }
        }
    }
});

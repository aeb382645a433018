//! A worker that writes what it likes, for the fuzzers: what the server's end of a queue makes of
//! it.
//!
//! Absent: processes. What is written into the queue's header comes from the input, word by word.

use std::time::{Duration, Instant};

use super::ring::{Producer, Ring};
use super::watchdog::Watchdog;
use crate::config::DeviceLimits;

/// Takes an input apart.
struct Bytes<'i>(&'i [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn below(&mut self, end: usize) -> Option<usize> {
        let both = u16::from_le_bytes([self.byte()?, self.byte()?]);
        Some(usize::from(both) % end)
    }

    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }
}

/// Has the server push packets and look at the queue, while somebody writes into its header. Ends
/// where the server notices, which is the end of the worker.
///
/// # Panics
///
/// Where the server does not notice and is misled.
pub fn queue(input: &[u8]) {
    let (ring, fd) = Ring::create().expect("a queue");
    let worker = Ring::open(&fd).expect("the same queue");
    let mut producer = Producer::new(ring);
    let mut watchdog = Watchdog::new(Duration::from_secs(1));
    let mut now = Instant::now();
    let mut input = Bytes(input);
    while let Some(()) = step(&mut input, &mut producer, &worker, &mut watchdog, &mut now) {}
}

fn step(
    input: &mut Bytes<'_>,
    producer: &mut Producer,
    worker: &Ring,
    watchdog: &mut Watchdog,
    now: &mut Instant,
) -> Option<()> {
    match input.byte()? % 8 {
        0 => {
            let words = vec![1; 1 + input.below(DeviceLimits::PACKET_BYTES_MAX / 8)?];
            let units = u64::from(input.byte()?);
            let before = producer.submitted();
            let pushed = producer.push_parts(&[&words], units);
            assert!(pushed.is_none_or(|packet| packet == before + 1));
            producer.publish();
        }
        1 => worker.spoil(input.below(512)?, |_| input.word())?,
        2 => {
            let place = input.below(64)?;
            worker.spoil(place, |word| Some(word.wrapping_add(u64::from(input.byte()?))))?;
        }
        // What an honest worker would have written by now.
        3 => worker.catch_up(producer.submitted()),
        4 => {
            *now += Duration::from_millis(u64::from(input.byte()?));
            // Any answer will do, at any time.
            let _ = watchdog.is_late(producer, *now);
        }
        5 => {
            producer.arm(producer.submitted());
            let words = producer.last_words().map(|error| error.to_string());
            assert!(words.is_none_or(|words| words.len() < 4096));
            let _ = (producer.timer(u32::from(input.byte()?)), producer.is_waiting());
        }
        _ => {
            let before = (producer.completed(), producer.progress());
            producer.look().ok()?;
            let after = (producer.completed(), producer.progress());
            assert!(after.0 >= before.0 && after.1 >= before.1, "time goes back");
            assert!(after.0 <= producer.submitted());
            let bytes = 1 + input.below(DeviceLimits::RING_BYTES)?;
            match producer.room(bytes) {
                None => assert!(producer.free_bytes() >= bytes),
                // Or whoever waits would never stop asking.
                Some(packet) => {
                    assert!(packet > after.0 && packet <= producer.submitted(), "waits for ever");
                }
            }
        }
    }
    Some(())
}

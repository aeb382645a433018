//! Wall time, with criterion: time per command, so that shapes of all sizes can be compared.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};

/// The length of a measurement: the figures are for people, who wait for them.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(30)
        .configure_from_args()
}

/// Measures `run`, which works through `bytes` bytes in `parts` equal parts: the time is that of
/// one part, the throughput that of all.
pub(crate) fn measure<R>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    shape: &str,
    parts: usize,
    bytes: usize,
    mut run: impl FnMut() -> R,
) {
    measure_after(group, shape, parts, bytes, || (), move |()| run());
}

/// [`measure`], with work before each run that does not count. Much of it is done ahead, so that
/// the clock is not read for each run.
pub(crate) fn measure_after<I, R>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    shape: &str,
    parts: usize,
    bytes: usize,
    mut prepare: impl FnMut() -> I,
    mut run: impl FnMut(I) -> R,
) {
    const AHEAD_PARTS: usize = 1_000;
    let ahead = (AHEAD_PARTS / parts).max(1);
    let divisor = u32::try_from(parts).expect("a bench has fewer parts than that");
    if let Some(each) = (bytes as u64).checked_div(parts as u64).filter(|&each| each > 0) {
        group.throughput(Throughput::BytesDecimal(each));
    }
    let mut inputs = Vec::with_capacity(ahead);
    group.bench_function(shape, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut left = usize::try_from(iterations).expect("a target has 64 bits");
            let mut elapsed = Duration::ZERO;
            while left > 0 {
                let count = left.min(ahead);
                inputs.extend((0..count).map(|_| prepare()));
                let began = Instant::now();
                for input in inputs.drain(..) {
                    black_box(run(input));
                }
                elapsed += began.elapsed();
                left -= count;
            }
            elapsed / divisor
        });
    });
}

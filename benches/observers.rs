//! What observing costs: throughput of the observers on a 1 x 256 x 56 x 56 activation (3.2 MB of f32), on each
//! instruction set of this machine, and the time of the histogram's search for the best range.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jitquant::kernel::Isa;
use jitquant::observer::paths::{Extremes, extremes, extremes_per_channel, least_error_bins};
use jitquant::observer::{ChannelLayout, Histogram, UNSET, min_max};

const SIZES: [i64; 4] = [1, 256, 56, 56];

/// Roughly normal values: the sum of the four 16-bit parts of a hash of the index.
fn activation(relu: bool) -> Vec<f32> {
    let len = SIZES.iter().product::<i64>() as u64;
    (1..=len)
        .map(|index| {
            let hash = (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let sum: u64 = (0..4).map(|part| (hash >> (16 * part)) & 0xffff).sum();
            let value = (sum as f32 - 131_070.0) / 32768.0;
            if relu { value.max(0.0) } else { value }
        })
        .collect()
}

fn observers(criterion: &mut Criterion) {
    let x = activation(false);
    let bytes = size_of_val(x.as_slice()) as u64;
    let nchw = ChannelLayout::of(&SIZES, 1).expect("axis 1");
    let nhwc = ChannelLayout { outer: nchw.inner, channels: nchw.channels, inner: 1 };

    let mut group = criterion.benchmark_group("range");
    group.throughput(Throughput::Bytes(bytes));
    for isa in Isa::available() {
        group.bench_function(format!("min_max/{}", isa.name()), |b| b.iter(|| extremes(isa, black_box(&x))));
        let mut channels = vec![Extremes::NONE; nchw.channels];
        for (name, layout) in [("nchw", nchw), ("nhwc", nhwc)] {
            group.bench_function(format!("per_channel_{name}/{}", isa.name()), |b| {
                b.iter(|| extremes_per_channel(isa, black_box(&x), layout, &mut channels));
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("histogram");
    group.throughput(Throughput::Bytes(bytes));
    for (name, x) in [("normal", x), ("relu", activation(true))] {
        let mut counts = vec![0.0; Histogram::BINS];
        let (mut min, mut max) = UNSET;
        group.bench_function(format!("first_batch/{name}"), |b| {
            b.iter(|| {
                (min, max) = UNSET;
                Histogram::new(&mut counts, &mut min, &mut max).observe(black_box(&x))
            });
        });
        group.bench_function(format!("range_grows/{name}"), |b| {
            let (batch_min, batch_max) = min_max(&x).expect("finite").expect("not empty");
            b.iter(|| {
                (min, max) = (0.9 * batch_min, 0.9 * batch_max);
                Histogram::new(&mut counts, &mut min, &mut max).observe(black_box(&x))
            });
        });
        group.bench_function(format!("range_stays/{name}"), |b| {
            (min, max) = UNSET;
            let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
            histogram.observe(&x).expect("finite");
            b.iter(|| histogram.observe(black_box(&x)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("best_range");
    for (name, x) in [("normal", activation(false)), ("relu", activation(true))] {
        let mut counts = vec![0.0; Histogram::BINS];
        let (mut min, mut max) = UNSET;
        Histogram::new(&mut counts, &mut min, &mut max).observe(&x).expect("finite");
        for isa in Isa::available() {
            group.bench_function(format!("{name}/{}", isa.name()), |b| {
                b.iter(|| least_error_bins(isa, black_box(&counts), f64::from(max) - f64::from(min)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, observers);
criterion_main!(benches);

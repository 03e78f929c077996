//! Depthwise convolutions of MobileNetV2 and grouped ones of ResNeXt, requantized to bytes, on one thread: giga-operations
//! (two a multiply-add) a second on each instruction set.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jitquant_kernels::{ConvWindow as Window, DepthwiseShape, Isa, Output, PackedDepthwise, Requantize, Serial};

/// Channels, input size, stride.
const DEPTHWISE: [(usize, usize, usize); 10] = [
    (32, 112, 1),
    (96, 112, 2),
    (144, 56, 1),
    (144, 56, 2),
    (192, 28, 1),
    (192, 28, 2),
    (384, 14, 1),
    (576, 14, 1),
    (576, 14, 2),
    (960, 7, 1),
];

/// Bytes that begin at a cache line, as libtorch's tensors do.
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, value: impl Fn(usize) -> u8) -> Self {
        let mut bytes = vec![0; len + 63];
        let begin = bytes.as_ptr().align_offset(64);
        bytes[begin..begin + len].iter_mut().enumerate().for_each(|(n, byte)| *byte = value(n));
        Self { bytes, begin, len }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.len]
    }
}

fn requantize(scale: &[f32]) -> Requantize<'_> {
    Requantize { scale, bias: scale, zero_point: 7, min: 7, max: 255, residual: None, table: None }
}

fn depthwise(criterion: &mut Criterion) {
    for (kernel, shapes) in [(3, &DEPTHWISE[..]), (5, &[(240, 28, 1), (240, 28, 2), (672, 14, 1)])] {
        let mut group = criterion.benchmark_group(format!("depthwise{kernel}x{kernel}"));
        for &(channels, size, stride) in shapes {
            let window = Window::plane([kernel; 2], [stride; 2], [kernel / 2; 2], [1, 1]);
            let [_, height, width] = window.output_spatial([1, size, size]).expect("fits");
            let outputs = height * width * channels;
            let weight: Vec<i8> = (0..channels * kernel * kernel).map(|n| (n * 37 % 255) as i8).collect();
            let mut input = Aligned::new(channels * size * size, |n| (n * 31 % 251) as u8);
            let input = &*input.as_mut_slice();
            let scale = vec![0.01; channels];
            let mut bytes = Aligned::new(outputs, |_| 0);
            group.throughput(Throughput::Elements((2 * outputs * kernel * kernel) as u64));
            for isa in Isa::available().filter(|&isa| isa != Isa::Scalar) {
                let shape = DepthwiseShape { channels, multiplier: 1, window };
                let packed = PackedDepthwise::new(isa, &weight, shape, &[0]).expect("fits");
                let mut scratch = vec![0; packed.scratch_len([1, size, size], 1).expect("fits")];
                group.bench_function(format!("{channels}@{size}/{stride}/{}", isa.name()), |b| {
                    b.iter(|| {
                        let output = Output::U8(bytes.as_mut_slice(), requantize(&scale));
                        packed.run(black_box(input), 1, [1, size, size], 12, output, &mut scratch, &Serial)
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(100))
        .measurement_time(std::time::Duration::from_millis(300));
    targets = depthwise
}
criterion_main!(benches);

//! Matrix products and convolutions, requantized to bytes, on one thread: giga-operations (two a multiply-add) a second on
//! each instruction set. `cargo bench --no-default-features --bench gemm -- avx512vnni/1024x` runs a part.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jitquant_kernels::{ConvShape, Isa, Output, PackedConv, PackedGemm, Requantize, Serial};

/// M, K, N of linear layers: of transformers and classifiers, large and small.
const LINEAR: [[usize; 3]; 13] = [
    [128, 768, 768],
    [128, 768, 3072],
    [128, 3072, 768],
    [512, 1024, 1024],
    [1024, 1024, 1024],
    [196, 1024, 256],
    [49, 512, 2048],
    [1, 768, 768],
    [1, 384, 1536],
    [1, 1024, 4096],
    [16, 768, 3072],
    [32, 384, 384],
    [3136, 64, 256],
];

/// Input channels, output channels, kernel, stride and input size of some of ResNet-50's convolutions.
const CONV: [[usize; 5]; 8] = [
    [3, 64, 7, 2, 224],
    [64, 64, 3, 1, 56],
    [256, 128, 1, 1, 56],
    [128, 128, 3, 1, 28],
    [256, 512, 1, 2, 56],
    [256, 256, 3, 1, 14],
    [512, 2048, 1, 1, 7],
    [512, 512, 3, 1, 7],
];

fn requantize(scale: &[f32]) -> Requantize<'_> {
    Requantize { scale, bias: scale, zero_point: 7, min: 7, max: 255, residual: None, table: None }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

fn weight(len: usize) -> Vec<i8> {
    (0..len).map(|n| (n * 37 % 255) as u8 as i8).collect()
}

fn linear(criterion: &mut Criterion) {
    for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
        let mut group = criterion.benchmark_group(isa.name());
        for [m, k, n] in LINEAR {
            let packed = PackedGemm::new(isa, &weight(n * k), n, k, &[]).expect("fits");
            let (input, scale, mut output) = (bytes(m * k), vec![0.001; n], vec![0; m * n]);
            group.throughput(Throughput::Elements((2 * m * k * n) as u64));
            group.bench_function(format!("{m}x{k}x{n}"), |bencher| {
                bencher.iter(|| {
                    let output = Output::U8(&mut output, requantize(&scale));
                    packed.run(black_box(&input), k, m, 12, output, n, &Serial)
                });
            });
        }
        group.finish();
    }
}

fn conv(criterion: &mut Criterion) {
    for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
        let mut group = criterion.benchmark_group(isa.name());
        for [inputs, outputs, kernel, stride, size] in CONV {
            let shape = ConvShape {
                kernel: [1, kernel, kernel],
                stride: [1, stride, stride],
                padding: [0, kernel / 2, kernel / 2],
                ..ConvShape::new(inputs, outputs)
            };
            let packed = PackedConv::new(isa, &weight(shape.weight_len()), shape, &[]).expect("fits");
            let spatial = [1, size, size];
            let pixels: usize = shape.output_spatial(spatial).expect("fits").iter().product();
            let (input, scale, mut output) =
                (bytes(size * size * inputs), vec![0.001; outputs], vec![0; pixels * outputs]);
            let mut scratch = vec![0; packed.scratch_len(1, spatial, &Serial).expect("fits")];
            group.throughput(Throughput::Elements((2 * pixels * shape.weight_len()) as u64));
            group.bench_function(format!("{inputs}->{outputs} {kernel}x{kernel}/{stride} @{size}"), |bencher| {
                bencher.iter(|| {
                    let output = Output::U8(&mut output, requantize(&scale));
                    packed.run(black_box(&input), 1, spatial, 12, output, &mut scratch, &Serial)
                });
            });
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
    targets = linear, conv
}
criterion_main!(benches);

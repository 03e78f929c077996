//! f32 kernels between INT8 layers, on one thread and each instruction set: attention and products in floating-point operations
//! a second (two a multiply-add), the others in bytes read and written.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use jitquant_kernels::float::{
    Arithmetic, Attention, Batch, BatchMut, Mask, Norm, Product, Rows, Strided, Target, activate, arithmetic,
    attention, attention_scratch_len, layer_norm, matmul, matmul_scratch_len, softmax,
};
use jitquant_kernels::{Activation, Isa, QParams, Serial};

/// Values that begin at a cache line, as those of a tensor do; they stay until the end.
fn values(len: usize) -> &'static mut [f32] {
    let values: Vec<f32> = (0..len + 16).map(|i| ((i * 37 % 101) as f32 - 50.0) / 12.5).collect();
    let values = values.leak();
    let begin = values.as_ptr().align_offset(64);
    &mut values[begin..begin + len]
}

/// `f` on each instruction set but the scalar one.
fn each(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, throughput: Throughput, mut f: impl FnMut(Isa)) {
    group.throughput(throughput);
    for isa in [Isa::Avx2, Isa::Avx512Vnni, Isa::NeonDotprod].into_iter().filter(|isa| isa.is_available()) {
        group.bench_function(format!("{name}/{}", isa.name()), |bench| bench.iter(|| f(black_box(isa))));
    }
}

/// MiniLM-L6, ViT-B, Swin-T (windows with a bias of their own), BERT.
fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for (name, batch, heads, rows, dim, biased) in [
        ("minilm-128", 1, 12, 128, 32, true),
        ("minilm-384", 1, 12, 384, 32, true),
        ("vit_b_16", 1, 12, 197, 64, false),
        ("swin_t", 64, 3, 49, 32, true),
        ("bert-512", 1, 12, 512, 64, true),
    ] {
        let x = values(batch * heads * rows * dim);
        let bias = values(heads * rows * rows);
        let out = values(x.len());
        let options = Attention {
            batch,
            heads,
            rows,
            columns: rows,
            dim,
            value_dim: dim,
            scale: 0.125,
            causal: false,
            blind_is_zero: false,
        };
        let scratch = values(attention_scratch_len(&options, 1));
        // As a projection leaves them: a row has all heads.
        let [a, b, c] = [rows * heads * dim, dim, heads * dim];
        let work = Throughput::Elements((4 * batch * heads * rows * rows * dim) as u64);
        each(&mut group, name, work, |isa| {
            let x = Batch { data: x, strides: [a, b, c, 1] };
            let mask = biased.then_some(Mask { data: bias, strides: [0, rows * rows, rows] });
            let out = BatchMut { data: out, strides: [a, b, c] };
            attention(isa, &options, x, x, x, mask, out, scratch, &Serial);
        });
    }
    group.finish();
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matmul");
    for (rows, inner, columns) in [(128, 32, 128), (197, 64, 197), (128, 384, 384), (512, 512, 512)] {
        let (a, b, c) = (values(rows * inner), values(inner * columns), values(rows * columns));
        let product = Product { batch: 1, heads: 1, rows, inner, columns };
        let scratch = values(matmul_scratch_len(product, 1));
        let work = Throughput::Elements((2 * rows * inner * columns) as u64);
        each(&mut group, &format!("{rows}x{inner}x{columns}"), work, |isa| {
            let (a, b) = (Batch::new(a, [1, rows, inner]), Batch::new(b, [1, inner, columns]));
            let c = BatchMut::new(c, [1, rows, columns]);
            matmul(isa, product, a, b, 1.0, None, c, scratch, &Serial);
        });
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    for (rows, columns) in [(128, 384), (197, 768)] {
        let len = rows * columns;
        let (x, y, weight) = (values(len), values(len), values(columns));
        let (out, sum, mut bytes) = (values(len), values(len), vec![0; len]);
        let (mut scales, mut zero_points, scratch) = (vec![0.0; rows], vec![0; rows], values(columns));
        let norm = Norm { columns, weight, bias: weight, eps: 1e-5 };
        let (x, y, stride) = (Rows::new(x, columns), Rows::new(y, columns), columns);
        let bytes_of = |each: usize| Throughput::Bytes((len * each) as u64);
        each(&mut group, &format!("layer_norm/{rows}x{columns}"), bytes_of(8), |isa| {
            let target = Target::F32 { values: out, stride };
            layer_norm(isa, x, None, None, rows, norm, target, &mut [], &Serial);
        });
        each(&mut group, &format!("layer_norm+residual/{rows}x{columns}"), bytes_of(16), |isa| {
            let target = Target::F32 { values: out, stride };
            layer_norm(isa, x, Some(y), Some(sum), rows, norm, target, &mut [], &Serial);
        });
        each(&mut group, &format!("layer_norm-u8/{rows}x{columns}"), bytes_of(5), |isa| {
            let target = Target::U8 { bytes: &mut bytes, stride, qparams: QParams::new(0.05, 128) };
            layer_norm(isa, x, None, None, rows, norm, target, scratch, &Serial);
        });
        each(&mut group, &format!("layer_norm-dynamic/{rows}x{columns}"), bytes_of(5), |isa| {
            let (scales, zero_points) = (&mut scales[..], &mut zero_points[..]);
            let target = Target::Dynamic { bytes: &mut bytes, stride, scales, zero_points };
            layer_norm(isa, x, None, None, rows, norm, target, scratch, &Serial);
        });
    }
    let (rows, columns) = (1536, 128);
    let (x, out) = (values(rows * columns), values(rows * columns));
    each(&mut group, "softmax/1536x128", Throughput::Bytes((8 * rows * columns) as u64), |isa| {
        let (mask, target) = (Mask::row(&x[..columns]), Target::F32 { values: out, stride: columns });
        softmax(isa, Rows::new(x, columns), [1, 12, 128], columns, 0.1, Some(mask), target, &mut [], &Serial);
    });
    group.finish();
}

fn elements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("elements");
    let (rows, columns) = (128, 1536);
    let len = rows * columns;
    let (x, y, bias, out) = (values(len), values(len), values(columns), values(len));
    for function in [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Exp,
        Activation::HardSwish,
    ] {
        each(&mut group, &format!("{function:?}"), Throughput::Bytes((8 * len) as u64), |isa| {
            let target = Target::F32 { values: out, stride: columns };
            activate(isa, Rows::new(x, columns), rows, columns, bias, function, target, &mut [], &Serial);
        });
    }
    for (name, strides, bytes) in [("add", [columns, 1], 12), ("add a row", [0, 1], 8), ("add a scalar", [0, 0], 8)] {
        each(&mut group, name, Throughput::Bytes((bytes * len) as u64), |isa| {
            let (a, b) = (Strided { data: x, strides: &[columns, 1] }, Strided { data: y, strides: &strides });
            arithmetic(isa, Arithmetic::Add, a, b, &[rows, columns], None, out, &Serial);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = heads, products, rows, elements
}
criterion_main!(benches);

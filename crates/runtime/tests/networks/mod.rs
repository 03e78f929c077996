//! A small network with a convolution, a depthwise one in a residual sum, pooling, concatenation and a linear layer.
#![allow(dead_code)]

use jitquant_kernels::{AveragePool, ConvShape, QParams, Table, Window};
use jitquant_runtime::{
    Binary, Builder, Op, PlainWeight, Product, Program, Size, Store, View, WeightForm, write_model,
};

/// Numbers that look random: 0 to 255.
pub fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x2545_F491_4F6C_DD1D);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u8
        })
        .collect()
}

/// Floats from -1 to 1.
pub fn floats(count: usize, seed: u64) -> Vec<f32> {
    noise(count, seed).into_iter().map(|byte| f32::from(byte) / 128.0 - 1.0).collect()
}

fn weight(form: WeightForm, len: usize, channels: usize, seed: u64) -> PlainWeight {
    PlainWeight {
        form,
        values: noise(len, seed).into_iter().map(|byte| byte as i8).collect(),
        scales: (0..channels).map(|channel| 0.002 + channel as f32 * 0.000_37).collect(),
        zero_points: if seed.is_multiple_of(2) { vec![3; channels] } else { Vec::new() },
        bias: if seed.is_multiple_of(3) { Vec::new() } else { floats(channels, seed + 7) },
    }
}

fn conv(shape: ConvShape, seed: u64) -> PlainWeight {
    weight(WeightForm::Conv { shape, dimensions: 2 }, shape.weight_len(), shape.output_channels, seed)
}

/// The Program and its weights: floats `[batch, 3, height, width]` to 5 scores.
pub fn network() -> (Program, Vec<PlainWeight>) {
    let q = QParams::new(0.043_21, 117);
    let other = QParams::new(0.017, 60);
    let mut builder = Builder::default();
    let x = builder.input();
    let window = ConvShape { kernel: [1, 3, 3], padding: [0, 1, 1], ..ConvShape::new(8, 8) };
    let weights = vec![
        conv(ConvShape { input_channels: 3, stride: [1, 2, 2], ..window }, 1),
        conv(ConvShape { groups: 8, ..window }, 2),
        weight(WeightForm::Linear { n: 5, k: 16 }, 80, 5, 3),
    ];
    let ids: Vec<_> = weights.iter().map(|_| builder.weight()).collect();
    let bytes = builder.step(Op::Quantize(q), &[x]).unwrap();
    let store = |residual| Store::Bytes { to: other, min: 60, max: 255, residual, table: None };
    let first = Op::Conv(Product { weight: ids[0], x: q, store: store(None) });
    let first = builder.step(first, &[bytes]).unwrap();
    let second = Op::Conv(Product { weight: ids[1], x: other, store: store(Some(other)) });
    let second = builder.step(second, &[first, first]).unwrap();
    let pool = Op::MaxPool { window: Window::d2([2, 2], [1, 1], [0, 0]), dimensions: 2 };
    let pooled = builder.step(pool, &[second]).unwrap();
    let form =
        AveragePool { window: Window::d2([2, 2], [1, 1], [0, 0]), count_include_pad: true, divisor_override: None };
    let averaged = builder.step(Op::AvgPool { pool: form, dimensions: 2, zero_point: 60 }, &[second]).unwrap();
    let table = Some(Box::new(Table::requantize(other, q)));
    let both = builder.step(Op::Cat { axis: 1, tables: vec![table.clone(), table] }, &[pooled, averaged]).unwrap();
    let mean = builder.step(Op::AdaptiveAvgPool { sizes: vec![1, 1], zero_point: 117 }, &[both]).unwrap();
    let scaled = builder.step(Op::Mul(Binary { a: q, b: q, to: q, min: 0, max: 255 }), &[both, mean]).unwrap();
    let mean = builder.step(Op::AdaptiveAvgPool { sizes: vec![1, 1], zero_point: 117 }, &[scaled]).unwrap();
    let sizes = vec![Size::Of(x, 0), Size::Known(-1)];
    let flat = builder.step(Op::View(View::Reshape(sizes)), &[mean]).unwrap();
    let store = Store::Floats { min: f32::NEG_INFINITY, max: f32::INFINITY };
    let scores = builder.step(Op::Linear(Product { weight: ids[2], x: q, store }), &[flat]).unwrap();
    let features = builder.step(Op::Dequantize(q), &[scaled]).unwrap();
    (builder.finish(&[scores, features]).unwrap(), weights)
}

/// The bytes of the network's file.
pub fn file() -> Vec<u8> {
    let (program, weights) = network();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    write_model(&program, &weights, &names(&["image"]), &names(&["scores", "features"]), None).unwrap()
}

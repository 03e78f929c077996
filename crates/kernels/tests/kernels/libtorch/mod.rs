//! The kernels give what libtorch 2.13.0 gave (golden.json, written by golden.py) on inputs that both sides make from
//! one formula: the same bits, or at most one step apart where libtorch's arithmetic differs.

use jitquant_kernels::{
    Activation, Channels, Isa, Operand, QParams, Table, add, dequantize, dequantize_per_channel, mul, quantize,
    quantize_per_channel, relu,
};
use serde_json::Value;

/// The upper 24 bits of golden.py's sequence.
fn bits(seed: u64, n: usize) -> impl Iterator<Item = u32> {
    (1..=n as u64).map(move |i| {
        let z = i.wrapping_add(seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 40) as u32
    })
}

pub fn floats(seed: u64, low: f32, high: f32, n: usize) -> Vec<f32> {
    bits(seed, n).map(|x| x as f32 / (1 << 24) as f32 * (high - low) + low).collect()
}

pub fn bytes(seed: u64, n: usize) -> Vec<u8> {
    bits(seed, n).map(|x| (x >> 16) as u8).collect()
}

fn case(name: &str) -> Value {
    let cases: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    let case = cases[name].clone();
    assert!(!case.is_null(), "golden.json has no {name:?}");
    case
}

/// The recorded bytes of a small result.
pub fn recorded(name: &str) -> Vec<u8> {
    case(name).as_array().expect("recorded in full").iter().map(|x| x.as_u64().unwrap() as u8).collect()
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash =
        bytes.into_iter().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    format!("{hash:016x}")
}

fn same_bits(name: &str, bytes: impl IntoIterator<Item = u8>) {
    assert_eq!(case(name).as_str(), Some(fnv(bytes).as_str()), "{name}");
}

fn same_floats(name: &str, floats: &[f32]) {
    same_bits(name, floats.iter().flat_map(|x| x.to_le_bytes()));
}

pub fn within_one_step(name: &str, found: &[u8]) {
    let expected = recorded(name);
    let apart = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    assert!(found.len() == expected.len() && apart <= 1, "{name}\n{found:?}\n{expected:?}");
}

#[test]
fn quantize_per_tensor_has_libtorchs_bits() {
    let x = floats(1, -8.0, 8.0, 10007);
    let isa = Isa::current();
    let mut q = vec![0u8; x.len()];
    quantize(isa, &x, QParams::new(0.05, 77), &mut q);
    same_bits("quantize u8", q);
    let mut q = vec![0i8; x.len()];
    quantize(isa, &x, QParams::new(0.0421, -9), &mut q);
    same_bits("quantize i8", q.iter().map(|&q| q as u8));
    let ties: Vec<f32> = (-128..127).map(|i| i as f32 * 0.25 + 0.125).collect();
    let mut q = vec![0u8; 255];
    quantize(isa, &ties, QParams::new(0.25, 101), &mut q);
    assert_eq!(q, recorded("quantize ties"));
    quantize_per_channel(isa, &ties, Channels::of(&[1, 255], 0), &[0.25], &[101], &mut q);
    assert_eq!(q, recorded("quantize ties per channel"));
    let mut y = vec![0.0; x.len()];
    dequantize(isa, &bytes(2, x.len()), QParams::new(0.0371, 77), &mut y);
    same_floats("dequantize u8", &y);
}

#[test]
fn quantize_per_channel_has_libtorchs_bits() {
    let scales = floats(3, 0.01, 0.1, 33);
    let zero_points: Vec<i32> = bytes(4, 33).into_iter().map(i32::from).collect();
    for (axis, shape) in [[33, 10, 7], [10, 33, 7], [10, 7, 33]].iter().enumerate() {
        let layout = Channels::of(shape, axis);
        let x = floats(5, -8.0, 8.0, layout.len());
        let mut q = vec![0u8; x.len()];
        quantize_per_channel(Isa::current(), &x, layout, &scales, &zero_points, &mut q);
        same_bits(&format!("quantize per channel {axis}"), q.iter().copied());
        let mut y = vec![0.0; x.len()];
        dequantize_per_channel(Isa::current(), &q, layout, &scales, &zero_points, &mut y);
        same_floats(&format!("dequantize per channel {axis}"), &y);
    }
}

#[test]
fn add_and_mul_have_libtorchs_bits() {
    let (x, y) = (bytes(6, 4096), bytes(7, 4096));
    let x = Operand { data: &x, qparams: QParams::new(0.05, 120) };
    let y = Operand { data: &y, qparams: QParams::new(0.04, 131) };
    type Op = fn(Isa, Operand<'_>, Operand<'_>, QParams, bool, &mut [u8]);
    let cases: [(&str, Op, f32, bool); 4] = [
        ("add", add, 0.0625, false),
        ("add_relu", add, 0.07, true),
        ("mul", mul, 0.2, false),
        ("mul_relu", mul, 0.21, true),
    ];
    for (name, op, scale, fused) in cases {
        let mut out = vec![0; 4096];
        op(Isa::current(), x, y, QParams::new(scale, 90), fused, &mut out);
        same_bits(name, out);
    }
}

#[test]
fn activations_are_within_a_step_of_libtorch() {
    let every: Vec<u8> = (0..=255).collect();
    let input = QParams::new(0.05, 120);
    let mut out = vec![0; 256];
    relu(Isa::current(), &every, 120, &mut out);
    assert_eq!(out, recorded("relu"));
    let elu = Activation::Elu { alpha: 1.5, scale: 1.0, input_scale: 1.0 };
    let cases = [
        ("relu6", Activation::RELU6, input),
        ("sigmoid", Activation::Sigmoid, QParams::new(1.0 / 256.0, 0)),
        ("tanh", Activation::Tanh, QParams::new(2.0 / 256.0, 128)),
        ("leaky_relu", Activation::LeakyRelu { negative_slope: 0.1 }, QParams::new(0.04, 100)),
        ("hardswish", Activation::HardSwish, QParams::new(0.04, 30)),
        ("hardsigmoid", Activation::HardSigmoid, QParams::new(1.0 / 256.0, 0)),
        ("elu", elu, QParams::new(0.04, 30)),
        ("gelu", Activation::Gelu, input),
    ];
    for (name, activation, output) in cases {
        let mut out = vec![0; 256];
        Table::of(activation, input, output).apply(Isa::current(), &every, &mut out);
        within_one_step(name, &out);
    }
    assert_eq!(Table::requantize(input, QParams::new(0.07, 99)).bytes().to_vec(), recorded("requantize"));
}

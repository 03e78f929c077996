//! Element-wise operators on bytes, quantization and dequantization: the scalar path's bits.
#![no_main]

use arbitrary::Arbitrary;
use jitquant_kernels::{Operand, QParams, add, clamp, dequantize, mul, quantize};
use jitquant_fuzz::{exactly, on_all, scale};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    len: u8,
    scales: [u32; 3],
    zero_points: [u8; 3],
    relu: bool,
    bounds: (u8, u8),
    bytes: Vec<u8>,
    floats: Vec<u32>,
}

fuzz_target!(|input: Input| {
    let len = usize::from(input.len);
    let [a, b, to] = std::array::from_fn(|i| QParams::new(scale(input.scales[i]), i32::from(input.zero_points[i])));
    let x = exactly(len, &input.bytes);
    let y: Box<[u8]> = x.iter().rev().map(|byte| byte.wrapping_mul(13)).collect();
    let patterns: Vec<f32> = input.floats.iter().map(|bits| f32::from_bits(*bits)).collect();
    let floats = exactly(len, &patterns);
    let (low, high) = (input.bounds.0.min(input.bounds.1), input.bounds.0.max(input.bounds.1));
    on_all(|isa| {
        let mut out = std::array::from_fn::<_, 4, _>(|_| exactly(len, &[0u8]));
        let (one, other) = (Operand { data: &x, qparams: a }, Operand { data: &y, qparams: b });
        add(isa, one, other, to, input.relu, &mut out[0]);
        mul(isa, one, other, to, input.relu, &mut out[1]);
        clamp(isa, &x, low, high, &mut out[2]);
        quantize(isa, &floats, to, &mut out[3]);
        let mut back = exactly(len, &[0f32]);
        dequantize(isa, &x, a, &mut back);
        (out, back.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    });
});

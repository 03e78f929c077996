//! Matrix products of any shapes and arguments: an error or the scalar path's bits.
#![no_main]

use arbitrary::Arbitrary;
use jitquant_kernels::{Dequantize, DynamicScheme, Output, PackedGemm, Requantize, Residual, Serial};
use jitquant_fuzz::{exactly, finite, on_all, scale};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    m: u8,
    n: u8,
    k: u8,
    /// Added to the lengths that would fit: mostly none, else too short or too long.
    more: [i8; 4],
    zero_point: u8,
    weight_zero_points: Vec<i16>,
    scale: u32,
    bias: Option<u32>,
    output: (u8, u8, u8),
    residual: Option<(u32, u8)>,
    table: Option<[u8; 16]>,
    per_row: bool,
    bytes: Vec<u8>,
}

/// A length that fits, or one that is off by a few in a few cases.
fn off(len: usize, by: i8) -> usize {
    len.saturating_add_signed(if by % 8 == 7 { isize::from(by / 8) } else { 0 })
}

fuzz_target!(|input: Input| {
    let (m, n, k) = (usize::from(input.m % 40), usize::from(input.n % 90), usize::from(input.k));
    let (lda, ldc) = (off(k, input.more[0]), off(n, input.more[1]));
    let signed: Vec<i8> = input.bytes.iter().map(|byte| *byte as i8).collect();
    let weight = exactly(n * k, &signed);
    let zero_points: Vec<i32> = input.weight_zero_points.iter().map(|zero| i32::from(*zero)).collect();
    let a = exactly(off(m * lda, input.more[2]), &input.bytes);
    let len = off(m * ldc, input.more[3]);
    let scales = exactly(n, &[scale(input.scale)]);
    let bias = input.bias.map_or_else(Default::default, |bias| exactly(n, &[finite(bias)]));
    let residual = exactly(len, &input.bytes);
    let table: [u8; 256] = std::array::from_fn(|i| input.table.unwrap_or_default()[i % 16]);
    let form = Requantize {
        scale: &scales,
        bias: &bias,
        zero_point: input.output.0,
        min: input.output.1,
        max: input.output.2,
        residual: input.residual.map(|(bits, zero_point)| Residual { data: &residual, scale: scale(bits), zero_point }),
        table: input.table.is_some().then_some(&table),
    };
    let floats = Dequantize { scale: &scales, bias: &bias, min: f32::NEG_INFINITY, max: f32::INFINITY };
    let values: Vec<f32> = exactly(m * k, &input.bytes).iter().map(|byte| f32::from(*byte) - 77.0).collect();
    on_all(|isa| {
        let packed = match PackedGemm::new(isa, &weight, n, k, &zero_points) {
            Ok(packed) => packed,
            Err(error) => return Err(error.to_string()),
        };
        let mut unpacked = exactly(n * k, &[0i8]);
        packed.unpack_into(&mut unpacked);
        assert_eq!(unpacked, weight);
        let mut sums = exactly(len, &[0i32]);
        let mut bytes = exactly(len, &[0u8]);
        let mut dynamic = exactly(m * n, &[0f32]);
        let scheme = match input.per_row {
            true => DynamicScheme::PerRow,
            false => DynamicScheme::PerTensor { reduce_range: false },
        };
        let mut scratch = exactly(packed.dynamic_scratch_len(m), &[0u8]);
        let outcomes = [
            packed.run(&a, lda, m, input.zero_point, Output::I32(&mut sums), ldc, &Serial),
            packed.run(&a, lda, m, input.zero_point, Output::U8(&mut bytes, form), ldc, &Serial),
            packed.run_dynamic(&values, m, scheme, &mut dynamic, floats, &mut scratch, &Serial),
        ]
        .map(|outcome| outcome.map_err(|error| error.to_string()));
        let dynamic: Vec<u32> = dynamic.iter().map(|x| x.to_bits()).collect();
        Ok((sums, bytes, dynamic, outcomes))
    });
});

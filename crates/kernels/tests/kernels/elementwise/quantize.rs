//! Quantize, dequantize and dynamic qparams.

use jitquant_kernels::{
    Channels, Isa, QParams, Quantized, choose_qparams, dequantize, dequantize_per_channel, dynamic_qparams, min_max,
    quantize, quantize_dynamic_rows, quantize_per_channel,
};
use proptest::prelude::*;

use crate::guarded::{Plain, cases, on_all_paths};

/// Floats in the range of the qparams, exact ties, and what no range holds.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -20.0f32..20.0,
        2 => (-500i32..500).prop_map(|x| x as f32 * 0.25),
        1 => prop::num::f32::ANY,
        1 => prop::sample::select(vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MAX, f32::MIN, 2147483648.0]),
    ]
}

fn scale() -> impl Strategy<Value = f32> {
    prop_oneof![1e-4f32..2.0, prop::sample::select(vec![0.5, 0.25, 1.0, 1e-30, 1e30])]
}

/// The formula of `quantize`, with the product and the sum in one rounding, or of `quantize_per_channel`.
fn by_formula<T: Quantized>(x: f32, scale: f32, zero_point: i32, fused: bool) -> i32 {
    let (inv_scale, zero_point) = (1.0 / scale, zero_point as f32);
    let steps = if fused { x.mul_add(inv_scale, zero_point) } else { x * inv_scale + zero_point };
    if steps.is_nan() {
        return T::MAX;
    }
    f64::from(steps).round_ties_even().clamp(f64::from(T::MIN), f64::from(T::MAX)) as i32
}

fn check_per_tensor<T: Quantized + Plain + PartialEq + std::fmt::Debug>(x: &[f32], qparams: QParams) {
    let q = on_all_paths(|path| {
        let mut out = path.output::<T>(x.len());
        quantize(path.isa, &path.input(x), qparams, &mut out);
        out.to_vec()
    });
    for (&x, &q) in x.iter().zip(&q) {
        assert_eq!(q.to_i32(), by_formula::<T>(x, qparams.scale, qparams.zero_point, true), "{x} {qparams:?}");
        assert_eq!(q, qparams.quantize::<T>(x));
    }
    let floats = on_all_paths(|path| {
        let mut out = path.output(x.len());
        dequantize(path.isa, &path.input(&q), qparams, &mut out);
        out.iter().map(|x: &f32| x.to_bits()).collect::<Vec<_>>()
    });
    for (&float, &q) in floats.iter().zip(&q) {
        let expected = (q.to_i32() - qparams.zero_point) as f32 * qparams.scale;
        assert_eq!(float, expected.to_bits());
        assert_eq!(float, qparams.dequantize(q).to_bits());
    }
}

fn check_per_channel<T: Quantized + Plain + PartialEq + std::fmt::Debug>(
    layout: Channels,
    x: &[f32],
    scales: &[f32],
    zero_points: &[i32],
) {
    let q = on_all_paths(|path| {
        let mut out = path.output::<T>(x.len());
        let (scales, zero_points) = (path.input(scales), path.input(zero_points));
        quantize_per_channel(path.isa, &path.input(x), layout, &scales, &zero_points, &mut out);
        out.to_vec()
    });
    let channel = |i: usize| i / layout.inner % layout.channels;
    for (i, (&x, &q)) in x.iter().zip(&q).enumerate() {
        let c = channel(i);
        assert_eq!(q.to_i32(), by_formula::<T>(x, scales[c], zero_points[c], false));
    }
    let floats = on_all_paths(|path| {
        let mut out = path.output(x.len());
        let (scales, zero_points) = (path.input(scales), path.input(zero_points));
        dequantize_per_channel(path.isa, &path.input(&q), layout, &scales, &zero_points, &mut out);
        out.iter().map(|x: &f32| x.to_bits()).collect::<Vec<_>>()
    });
    for (i, (&float, &q)) in floats.iter().zip(&q).enumerate() {
        let c = channel(i);
        assert_eq!(float, QParams::new(scales[c], zero_points[c]).dequantize(q).to_bits());
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn per_tensor(x in prop::collection::vec(float(), 0..300), scale in scale(), zero_point in 0..=255i32) {
        check_per_tensor::<u8>(&x, QParams::new(scale, zero_point));
        check_per_tensor::<i8>(&x, QParams::new(scale, zero_point - 128));
    }

    #[test]
    fn per_channel(
        (layout, x, scales, zero_points) in (1..4usize, 1..90usize, prop_oneof![Just(1usize), 1..70usize])
            .prop_flat_map(|(outer, channels, inner)| {
                let layout = Channels { outer, channels, inner };
                (
                    Just(layout),
                    prop::collection::vec(float(), layout.len()),
                    prop::collection::vec(scale(), channels),
                    prop::collection::vec(0..=255i32, channels),
                )
            }),
    ) {
        check_per_channel::<u8>(layout, &x, &scales, &zero_points);
        let signed: Vec<i32> = zero_points.iter().map(|z| z - 128).collect();
        check_per_channel::<i8>(layout, &x, &scales, &signed);
    }

    #[test]
    fn min_max_is_the_fold_without_nan(x in prop::collection::vec(float(), 0..300)) {
        let found = on_all_paths(|path| {
            let (min, max) = min_max(path.isa, &path.input(&x));
            (min.to_bits(), max.to_bits())
        });
        let numbers = x.iter().copied().filter(|x| !x.is_nan());
        let expected = if numbers.clone().next().is_none() {
            (0.0, 0.0)
        } else {
            (numbers.clone().fold(f32::INFINITY, f32::min) + 0.0, numbers.fold(f32::NEG_INFINITY, f32::max) + 0.0)
        };
        prop_assert_eq!(found, (expected.0.to_bits(), expected.1.to_bits()));
    }

    #[test]
    fn rows_have_qparams_of_their_own(rows in 1..6usize, columns in 1..100usize, seed in 0..1000u32) {
        let x: Vec<f32> = (0..rows * columns)
            .map(|i| ((i as u32 * 7919 + seed) % 1000) as f32 * 0.01 * (1 + i / columns) as f32 - 3.0)
            .collect();
        let (qparams, q) = on_all_paths(|path| {
            let mut qparams = vec![QParams::new(0.0, 0); rows];
            let mut out = path.output::<u8>(x.len());
            quantize_dynamic_rows(path.isa, &path.input(&x), &mut qparams, &mut out);
            (qparams, out.to_vec())
        });
        for ((x, q), qparams) in x.chunks(columns).zip(q.chunks(columns)).zip(qparams) {
            prop_assert_eq!(qparams, dynamic_qparams::<u8>(Isa::Scalar, x, false));
            for (&x, &q) in x.iter().zip(q) {
                prop_assert!((qparams.dequantize(q) - x).abs() <= qparams.scale * 0.501, "{} {} {:?}", x, q, qparams);
            }
        }
    }
}

#[test]
fn ties_go_to_the_even_value_with_the_zero_point_added() {
    let x = [0.25, 0.75, -0.25, 1.25];
    let mut q = [0u8; 4];
    quantize(Isa::Scalar, &x, QParams::new(0.5, 100), &mut q);
    assert_eq!(q, [100, 102, 100, 102]);
    quantize(Isa::Scalar, &x, QParams::new(0.5, 101), &mut q);
    assert_eq!(q, [102, 102, 100, 104]);
    quantize_per_channel(Isa::Scalar, &x, Channels::of(&[1, 4], 0), &[0.5], &[101], &mut q);
    assert_eq!(q, [102, 102, 100, 104]);
}

#[test]
fn every_zero_point_of_both_types() {
    let x: Vec<f32> = (0..67).map(|i| (i - 33) as f32 * 0.37).collect();
    for zero_point in 0..=255 {
        check_per_tensor::<u8>(&x, QParams::new(0.11, zero_point));
        check_per_tensor::<i8>(&x, QParams::new(0.11, zero_point - 128));
    }
}

#[test]
fn an_empty_or_constant_zero_tensor_has_qparams() {
    assert_eq!(dynamic_qparams::<u8>(Isa::Scalar, &[], false), QParams::new(0.1, 0));
    assert_eq!(dynamic_qparams::<u8>(Isa::Scalar, &[0.0; 5], false), QParams::new(0.1, 0));
    assert_eq!(choose_qparams(0.0, 255.0, (0, 255), true).scale, 255.0 / 127.0);
}

#[test]
#[should_panic(expected = "zero point 256 is outside 0..=255")]
fn a_zero_point_outside_the_type_is_refused() {
    quantize(Isa::Scalar, &[0.0], QParams::new(1.0, 256), &mut [0u8]);
}

#[test]
#[should_panic(expected = "lengths")]
fn lengths_that_differ_are_refused() {
    quantize(Isa::Scalar, &[0.0; 2], QParams::new(1.0, 0), &mut [0u8]);
}

//! Add, mul, clamp, cat and tables.

use jitquant_kernels::{Activation, Isa, Operand, QParams, Table, add, cat, clamp, mul, relu};
use proptest::prelude::*;

use crate::guarded::{cases, on_all_paths};

fn qparams() -> impl Strategy<Value = QParams> {
    let scale = prop_oneof![1e-3f32..1.0, prop::sample::select(vec![0.5, 0.25, 1e-20, 1e20])];
    (scale, 0..=255i32).prop_map(|(scale, zero_point)| QParams::new(scale, zero_point))
}

/// Two tensors of one length; half of them hold every pair of extremes.
fn pair() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(vec![0u8, 255])];
    (0..300usize).prop_flat_map(move |n| (prop::collection::vec(byte(), n), prop::collection::vec(byte(), n)))
}

fn quantized(x: f64, qparams: QParams) -> f64 {
    (x / f64::from(qparams.scale) + f64::from(qparams.zero_point)).clamp(0.0, 255.0)
}

fn float(q: u8, qparams: QParams) -> f64 {
    (f64::from(q) - f64::from(qparams.zero_point)) * f64::from(qparams.scale)
}

/// Whether `q` is `exact` rounded, give or take the error of f32 arithmetic on values up to `magnitude` steps.
fn is_rounded(q: u8, exact: f64, magnitude: f64) -> bool {
    (f64::from(q) - exact).abs() <= 0.5 + magnitude * 4.0 * f64::from(f32::EPSILON)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn add_follows_its_formula((x, y) in pair(), qx in qparams(), qy in qparams(), qo in qparams(), fused in any::<bool>()) {
        let out = on_all_paths(|path| {
            let mut out = path.output(x.len());
            let (x, y) = (path.input(&x), path.input(&y));
            add(path.isa, Operand { data: &x, qparams: qx }, Operand { data: &y, qparams: qy }, qo, fused, &mut out);
            out.to_vec()
        });
        let magnitude = 255.0 * f64::from(qx.scale + qy.scale) / f64::from(qo.scale);
        for ((&x, &y), &q) in x.iter().zip(&y).zip(&out) {
            let sum = float(x, qx) + float(y, qy);
            let exact = quantized(if fused { sum.max(0.0) } else { sum }, qo);
            prop_assert!(is_rounded(q, exact, magnitude), "{} {} {} {}", x, y, q, exact);
        }
    }

    #[test]
    fn mul_follows_its_formula((x, y) in pair(), qx in qparams(), qy in qparams(), qo in qparams(), fused in any::<bool>()) {
        let out = on_all_paths(|path| {
            let mut out = path.output(x.len());
            let (x, y) = (path.input(&x), path.input(&y));
            mul(path.isa, Operand { data: &x, qparams: qx }, Operand { data: &y, qparams: qy }, qo, fused, &mut out);
            out.to_vec()
        });
        let multiplier = qx.scale * qy.scale * (1.0 / qo.scale);
        let low = if fused { qo.zero_point } else { 0 };
        for ((&x, &y), &q) in x.iter().zip(&y).zip(&out) {
            let product = (i32::from(x) - qx.zero_point) * (i32::from(y) - qy.zero_point);
            let t = f64::from(product as f32 * multiplier);
            // 0 * infinity, where the multiplier overflows.
            let exact = if t.is_nan() { 255 } else { (t.round_ties_even() + f64::from(qo.zero_point)).clamp(f64::from(low), 255.0) as u8 };
            prop_assert_eq!(q, exact);
        }
    }

    #[test]
    fn clamp_and_relu_keep_the_larger_and_the_smaller((x, _) in pair(), low in any::<u8>(), high in any::<u8>()) {
        let (low, high) = (low.min(high), low.max(high));
        let out = on_all_paths(|path| {
            let mut out = path.output(x.len());
            clamp(path.isa, &path.input(&x), low, high, &mut out);
            out.to_vec()
        });
        prop_assert_eq!(out, x.iter().map(|q| *q.clamp(&low, &high)).collect::<Vec<_>>());
        let out = on_all_paths(|path| {
            let mut out = path.output(x.len());
            relu(path.isa, &path.input(&x), low, &mut out);
            out.to_vec()
        });
        prop_assert_eq!(out, x.iter().map(|q| *q.max(&low)).collect::<Vec<_>>());
    }

    #[test]
    fn tables_look_up_every_byte((x, _) in pair(), values in prop::collection::vec(any::<u8>(), 256)) {
        let table = Table::from_bytes(values.clone().try_into().unwrap());
        let out = on_all_paths(|path| {
            let mut out = path.output(x.len());
            table.apply(path.isa, &path.input(&x), &mut out);
            let mut in_place = path.input(&x);
            table.apply_in_place(path.isa, &mut in_place);
            assert_eq!(*out, *in_place);
            out.to_vec()
        });
        prop_assert_eq!(out, x.iter().map(|q| values[usize::from(*q)]).collect::<Vec<_>>());
    }

    #[test]
    fn cat_places_requantized_rows(
        outer in 1..5usize,
        widths in prop::collection::vec((0..80usize, qparams(), any::<bool>()), 1..4),
        qo in qparams(),
        fused in any::<bool>(),
    ) {
        let data: Vec<Vec<u8>> =
            widths.iter().map(|w| (0..outer * w.0).map(|i| (i * 37 % 256) as u8).collect()).collect();
        let inputs: Vec<_> = data
            .iter()
            .zip(&widths)
            .map(|(data, &(_, qparams, same))| Operand { data, qparams: if same { qo } else { qparams } })
            .collect();
        let total: usize = widths.iter().map(|w| w.0).sum();
        let out = on_all_paths(|path| {
            let guarded: Vec<_> = inputs.iter().map(|x| path.input(x.data)).collect();
            let inputs: Vec<_> =
                inputs.iter().zip(&guarded).map(|(x, data)| Operand { data, qparams: x.qparams }).collect();
            let mut out = path.output(outer * total);
            cat(path.isa, &inputs, outer, qo, fused, &mut out);
            out.to_vec()
        });
        let mut expected = Vec::new();
        for row in 0..outer {
            for (input, w) in inputs.iter().zip(&widths) {
                for &q in &input.data[row * w.0..(row + 1) * w.0] {
                    let x: f32 = input.qparams.dequantize(q);
                    expected.push(match (input.qparams == qo, fused) {
                        (true, false) => q,
                        (true, true) => q.max(qo.zero_point as u8),
                        (false, false) => qo.quantize(x),
                        (false, true) => qo.quantize(x.max(0.0)),
                    });
                }
            }
        }
        // A scale of 1e20 or 1e-20 makes 1 / scale round, so that the way back may miss by a step.
        let apart = out.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        prop_assert!(out.len() == expected.len() && apart <= u8::from(fused));
    }
}

/// Every byte on both sides: 65536 pairs, and each zero point of the three.
#[test]
fn add_and_mul_of_all_pairs_and_zero_points() {
    let x: Vec<u8> = (0..=255u8).flat_map(|q| [q; 256]).collect();
    let y: Vec<u8> = (0..256).flat_map(|_| 0..=255u8).collect();
    for zero_point in (0..=255).step_by(if cfg!(miri) { 255 } else { 5 }) {
        let qx = QParams::new(0.05, zero_point);
        let qy = QParams::new(0.04, 255 - zero_point);
        let qo = QParams::new(0.0625, (zero_point * 7) % 256);
        for op in [add, mul] {
            on_all_paths(|path| {
                let mut out = path.output(x.len());
                let (x, y) = (Operand { data: &x, qparams: qx }, Operand { data: &y, qparams: qy });
                op(path.isa, x, y, qo, zero_point % 2 == 0, &mut out);
                out.to_vec()
            });
        }
    }
}

#[test]
fn activations_have_their_known_values() {
    let near = |activation: Activation, x: f32, y: f32| {
        let found = activation.eval(x);
        assert!((found - y).abs() <= 1e-6 * y.abs().max(1.0), "{activation:?}({x}) = {found}, not {y}");
    };
    near(Activation::Sigmoid, 1.0, 0.731_058_6);
    near(Activation::Tanh, 0.5, 0.462_117_16);
    near(Activation::Gelu, 1.0, 0.841_344_7);
    near(Activation::Gelu, -2.0, -0.045_500_264);
    near(Activation::GeluTanh, 1.0, 0.841_192);
    near(Activation::HardSwish, 1.0, 0.666_666_7);
    near(Activation::HardSwish, -4.0, 0.0);
    near(Activation::HardSigmoid, 1.0, 0.666_666_7);
    near(Activation::Elu { alpha: 1.5, scale: 2.0, input_scale: 1.0 }, -1.0, -1.896_361_7);
    near(Activation::LeakyRelu { negative_slope: 0.1 }, -2.0, -0.2);
    near(Activation::Silu, 2.0, 1.761_594_2);
    near(Activation::RELU6, 7.0, 6.0);
}

#[test]
fn tables_compose() {
    let (a, b, c) = (QParams::new(0.05, 100), QParams::new(0.03, 50), QParams::new(1.0 / 256.0, 0));
    let both = Table::requantize(a, b).then(&Table::of(Activation::Sigmoid, b, c));
    let x: Vec<u8> = (0..=255).collect();
    let (mut once, mut twice) = (vec![0; 256], vec![0; 256]);
    both.apply(Isa::Scalar, &x, &mut once);
    Table::requantize(a, b).apply(Isa::Scalar, &x, &mut twice);
    Table::of(Activation::Sigmoid, b, c).apply_in_place(Isa::Scalar, &mut twice);
    assert_eq!(once, twice);
}

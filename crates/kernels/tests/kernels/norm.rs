//! Layer, group, instance and batch norm and softmax: every ISA gives the bits of the scalar path, nothing outside the
//! slices is touched, and the scalar path is within rounding of the exact result in f64.

use crate::guarded::{Path, cases, on_all_paths};
use jitquant_kernels::{
    BatchNorm, Channels, GroupNorm, Isa, LayerNorm, NormScratch, QParams, batch_norm, group_norm, layer_norm, softmax,
};
use proptest::prelude::*;

fn zero_point() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), Just(255), 0..=255i32]
}

fn qparams() -> impl Strategy<Value = QParams> {
    (1e-3f32..0.5, zero_point()).prop_map(|(scale, zero_point)| QParams::new(scale, zero_point))
}

/// Bytes of one of the kinds that norms see: spread out, nearly equal, all equal, extremes.
fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), len),
        prop::collection::vec(100..103u8, len),
        any::<u8>().prop_map(move |q| vec![q; len]),
        prop::collection::vec(prop::sample::select(vec![0u8, 255]), len),
    ]
}

/// A parameter for each channel, or none.
fn parameter(len: usize) -> impl Strategy<Value = Option<Vec<f32>>> {
    prop::option::of(prop::collection::vec(-3.0f32..3.0, len))
}

fn at(parameter: &Option<Vec<f32>>, c: usize, absent: f64) -> f64 {
    parameter.as_ref().map_or(absent, |p| f64::from(p[c]))
}

/// The parameter against a forbidden page, for as long as `f` runs.
fn with<R>(path: Path, parameter: &Option<Vec<f32>>, f: impl FnOnce(Option<&[f32]>) -> R) -> R {
    let copy = parameter.as_ref().map(|p| path.input(p));
    f(copy.as_deref())
}

/// `1 / sqrt(var + eps)` and the mean of quantized values, in f64.
fn exact_moments(values: &[u8], scale: f64, eps: f64) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|q| f64::from(*q)).sum::<f64>() / n;
    let variance = values.iter().map(|q| (f64::from(*q) - mean).powi(2)).sum::<f64>() / n * scale * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Whether `q` is `y` quantized; `magnitude` bounds the terms that `y` is the sum of.
fn is_quantized(q: u8, y: f64, magnitude: f64, out: QParams, lowest: i32) -> bool {
    let steps = (y / f64::from(out.scale) + f64::from(out.zero_point)).clamp(f64::from(lowest), 255.0);
    let error = (magnitude / f64::from(out.scale) + 255.0) * 8.0 * f64::from(f32::EPSILON);
    (f64::from(q) - steps).abs() <= 0.5 + error
}

/// Scratch of exactly the length that is asked for.
macro_rules! scratch {
    ($path:expr, $channels:expr, $groups:expr, |$scratch:ident| $body:expr) => {{
        let (mut affine, mut sums) = ($path.output::<f32>(2 * $channels), $path.output::<u64>(2 * $groups));
        let $scratch = NormScratch { affine: &mut affine, sums: &mut sums };
        $body
    }};
}

const EPS: f64 = 1e-5;

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn layer_norm_standardizes_rows(
        (columns, x, weight, bias) in (1..4usize, 1..200usize).prop_flat_map(|(rows, columns)| {
            (Just(columns), bytes(rows * columns), parameter(columns), parameter(columns))
        }),
        x_qparams in qparams(),
        qparams in qparams(),
    ) {
        let found = on_all_paths(|path| {
            let mut out = path.output(x.len());
            with(path, &weight, |weight| with(path, &bias, |bias| {
                let norm = LayerNorm { columns, weight, bias, eps: EPS };
                layer_norm(path.isa, &path.input(&x), x_qparams, norm, qparams, &mut out);
            }));
            out.to_vec()
        });
        let scale = f64::from(x_qparams.scale);
        for (x, found) in x.chunks(columns).zip(found.chunks(columns)) {
            let (mean, inv_std) = exact_moments(x, scale, EPS);
            for (c, (&x, &q)) in x.iter().zip(found).enumerate() {
                let (w, b) = (at(&weight, c, 1.0), at(&bias, c, 0.0));
                let y = (f64::from(x) - mean) * scale * inv_std * w + b;
                let magnitude = 255.0 * scale * inv_std * w.abs() + b.abs();
                prop_assert!(is_quantized(q, y, magnitude, qparams, 0), "{} for {}", q, y);
            }
        }
    }

    #[test]
    fn group_norm_standardizes_groups_in_both_orders(
        (images, groups, pixels, x, weight, bias) in (1..3usize, 1..5usize, 1..40usize, 1..50usize)
            .prop_flat_map(|(images, groups, channels, pixels)| {
                let channels = groups * channels;
                let len = images * channels * pixels;
                (Just(images), Just(groups), Just(pixels), bytes(len), parameter(channels), parameter(channels))
            }),
        x_qparams in qparams(),
        qparams in qparams(),
    ) {
        let channels = x.len() / images / pixels;
        let run = |x: &[u8], layout: Channels| on_all_paths(|path| {
            let mut out = path.output(x.len());
            with(path, &weight, |weight| with(path, &bias, |bias| scratch!(path, channels, groups, |scratch| {
                let norm = GroupNorm { groups, weight, bias, eps: EPS };
                group_norm(path.isa, &path.input(x), layout, images, x_qparams, norm, qparams, scratch, &mut out);
            })));
            out.to_vec()
        });
        // The same tensor in the two orders: the sums are exact, so the results have the same bits.
        let nchw = run(&x, Channels { outer: images, channels, inner: pixels });
        let moved = |from: &[u8]| -> Vec<u8> {
            let at = |i: usize, p: usize, c: usize| from[(i * channels + c) * pixels + p];
            (0..from.len()).map(|k| at(k / channels / pixels, k / channels % pixels, k % channels)).collect()
        };
        let nhwc = run(&moved(&x), Channels { outer: images * pixels, channels, inner: 1 });
        prop_assert_eq!(&nhwc, &moved(&nchw));
        let scale = f64::from(x_qparams.scale);
        let group_len = channels / groups * pixels;
        for (g, (x, found)) in x.chunks(group_len).zip(nchw.chunks(group_len)).enumerate() {
            let (mean, inv_std) = exact_moments(x, scale, EPS);
            for (k, (&x, &q)) in x.iter().zip(found).enumerate() {
                let c = g % groups * (channels / groups) + k / pixels;
                let (w, b) = (at(&weight, c, 1.0), at(&bias, c, 0.0));
                let y = (f64::from(x) - mean) * scale * inv_std * w + b;
                let magnitude = 255.0 * scale * inv_std * w.abs() + b.abs();
                prop_assert!(is_quantized(q, y, magnitude, qparams, 0), "{} for {}", q, y);
            }
        }
    }

    #[test]
    fn batch_norm_applies_the_running_statistics(
        (layout, x, mean, var, weight, bias) in (1..4usize, 1..90usize, prop_oneof![Just(1usize), 1..80usize])
            .prop_flat_map(|(outer, channels, inner)| {
                let layout = Channels { outer, channels, inner };
                (
                    Just(layout),
                    bytes(layout.len()),
                    prop::collection::vec(-5.0f32..5.0, channels),
                    prop::collection::vec(prop_oneof![Just(0.0f32), 1e-3f32..100.0], channels),
                    parameter(channels),
                    parameter(channels),
                )
            }),
        relu in any::<bool>(),
        x_qparams in qparams(),
        qparams in qparams(),
    ) {
        let found = on_all_paths(|path| {
            let (mut out, mean, var) = (path.output(x.len()), path.input(&mean), path.input(&var));
            with(path, &weight, |weight| with(path, &bias, |bias| scratch!(path, layout.channels, 0, |scratch| {
                let norm = BatchNorm { mean: &mean, var: &var, weight, bias, eps: EPS };
                batch_norm(path.isa, &path.input(&x), layout, x_qparams, norm, relu, qparams, scratch, &mut out);
            })));
            out.to_vec()
        });
        let lowest = if relu { qparams.zero_point } else { 0 };
        for (k, (&x, &q)) in x.iter().zip(&found).enumerate() {
            let c = k / layout.inner % layout.channels;
            let gain = at(&weight, c, 1.0) / (f64::from(var[c]) + EPS).sqrt();
            let (m, b) = (f64::from(mean[c]), at(&bias, c, 0.0));
            let x = (f64::from(x) - f64::from(x_qparams.zero_point)) * f64::from(x_qparams.scale);
            let magnitude = (255.0 * f64::from(x_qparams.scale) + m.abs()) * gain.abs() + b.abs();
            prop_assert!(is_quantized(q, (x - m) * gain + b, magnitude, qparams, lowest), "{} for {}", q, x);
        }
    }

    #[test]
    fn softmax_adds_up_to_one(
        (columns, x) in (1..4usize, 1..200usize).prop_flat_map(|(rows, n)| (Just(n), bytes(rows * n))),
        scale in prop_oneof![1e-4f32..0.5, Just(1e-20), Just(1e20)],
        qparams in prop_oneof![Just(QParams::new(1.0 / 256.0, 0)), qparams()],
    ) {
        let found = on_all_paths(|path| {
            let mut out = path.output(x.len());
            softmax(path.isa, &path.input(&x), scale, columns, qparams, &mut out);
            out.to_vec()
        });
        for (x, found) in x.chunks(columns).zip(found.chunks(columns)) {
            let max = x.iter().max().unwrap();
            let e: Vec<f64> = x.iter().map(|q| (-f64::from(max - q) * f64::from(scale)).exp()).collect();
            let sum: f64 = e.iter().sum();
            for (e, &q) in e.iter().zip(found) {
                // The exponentials are multiples of 2^-24, off by at most half of one each.
                let error = 1e-6 / f64::from(qparams.scale);
                let steps = (e / sum / f64::from(qparams.scale) + f64::from(qparams.zero_point)).min(255.0);
                prop_assert!((f64::from(q) - steps).abs() <= 0.5 + 1e-4 + error, "{} for {}", q, steps);
            }
        }
    }
}

/// More pixels than a lane of 32 bits can add the squares of: all 255, in the rows of a layer norm and in both orders
/// of a group norm.
#[test]
fn long_sums_do_not_overflow() {
    let len = if cfg!(miri) { 40_000 } else { 5_000_000 };
    let mut x = vec![255; len];
    x[len / 2..].fill(253);
    let input = QParams::new(0.1, 7);
    let output = QParams::new(0.01, 100);
    // Half of the values are one deviation above the mean, half below.
    let expected = |k: usize| if k < len / 2 { 200 } else { 0 };
    let norm = LayerNorm { columns: len, weight: None, bias: None, eps: 0.0 };
    let mut out = vec![0; len];
    for isa in Isa::available() {
        layer_norm(isa, &x, input, norm, output, &mut out);
        assert!(out.iter().enumerate().all(|(k, q)| *q == expected(k)), "layer norm on {}", isa.name());
        for layout in [Channels { outer: 1, channels: 1, inner: len }, Channels { outer: len, channels: 1, inner: 1 }] {
            out.fill(0);
            let norm = GroupNorm { groups: 1, weight: None, bias: None, eps: 0.0 };
            let scratch = NormScratch { affine: &mut [0.0; 2], sums: &mut [0; 2] };
            group_norm(isa, &x, layout, 1, input, norm, output, scratch, &mut out);
            assert!(out.iter().enumerate().all(|(k, q)| *q == expected(k)), "group norm on {} {layout:?}", isa.name());
        }
    }
}

/// A row whose sum of exponentials needs more than 32 bits.
#[test]
fn a_long_softmax_of_equal_values() {
    let len = if cfg!(miri) { 70_000 } else { 1 << 21 };
    for isa in Isa::available() {
        let mut out = vec![9; len];
        softmax(isa, &vec![17; len], 0.1, len, QParams::new(1.0 / len as f32, 3), &mut out);
        assert!(out.iter().all(|q| *q == 4), "{}", isa.name());
    }
}

#[test]
#[should_panic(expected = "12 values in rows of 5")]
fn rows_that_do_not_fit_are_refused() {
    let norm = LayerNorm { columns: 5, weight: None, bias: None, eps: EPS };
    layer_norm(Isa::current(), &[0; 12], QParams::new(1.0, 0), norm, QParams::new(1.0, 0), &mut [0; 12]);
}

#[test]
#[should_panic(expected = "3 groups")]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let layout = Channels { outer: 1, channels: 4, inner: 1 };
    let norm = GroupNorm { groups: 3, weight: None, bias: None, eps: EPS };
    let scratch = NormScratch { affine: &mut [0.0; 8], sums: &mut [0; 6] };
    let qparams = QParams::new(1.0, 0);
    group_norm(Isa::current(), &[0; 4], layout, 1, qparams, norm, qparams, scratch, &mut [0; 4]);
}

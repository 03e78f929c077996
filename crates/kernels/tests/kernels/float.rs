//! f32 kernels: every ISA gives the bits of the scalar path for any number of threads, nothing outside the slices is touched,
//! and the scalar path is within its stated error of the exact result in f64.

use crate::guarded::{Path, cases, on_all_paths};
use crate::threads::Threads;
use jitquant_kernels::float::{
    Arithmetic, Attention, Batch, BatchMut, Mask, Norm, Product, Rows, Strided, Target, activate, arithmetic,
    attention, attention_scratch_len, layer_norm, log_softmax, matmul, matmul_scratch_len, rms_norm, scratch_len,
    softmax,
};
use jitquant_kernels::{Activation, Isa, Parallel, QParams, Serial, dynamic_qparams, quantize};
use proptest::prelude::*;

/// The bits, all NaN alike.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Ordinary numbers, now and then an extreme.
fn value() -> impl Strategy<Value = f32> {
    let extremes = vec![0.0, -0.0, 1e-41, -1e-30, 1e30, -88.0, -104.0, 5.3, 5.31, -5.3, 89.0, f32::MAX, f32::INFINITY];
    prop_oneof![40 => -6.0f32..6.0, 2 => -100.0f32..100.0, 1 => prop::sample::select(extremes)]
}

fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        6 => prop::collection::vec(-4.0f32..4.0, len),
        3 => prop::collection::vec(value(), len),
        1 => prop::collection::vec(prop_oneof![value(), Just(f32::NAN), Just(f32::NEG_INFINITY)], len),
        1 => Just(vec![f32::NEG_INFINITY; len]),
    ]
}

/// Lengths below, at and beyond a block.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0..4usize, 30..35usize, 60..70usize, 1..200usize, Just(1100)]
}

/// A kernel's results in each form that [`Target`] has.
#[derive(Debug, PartialEq)]
struct Forms {
    values: Vec<u32>,
    bytes: Vec<u8>,
    rows: (Vec<u8>, Vec<u32>, Vec<u8>),
}

const QPARAMS: QParams = QParams::new(0.05, 100);

/// Runs a kernel of `rows` rows of `columns` values, three elements apart from each other, into every form.
fn forms(
    path: Path,
    [rows, columns]: [usize; 2],
    threads: &dyn Parallel,
    run: impl Fn(Target<'_>, &mut [f32], &dyn Parallel),
) -> Forms {
    let stride = columns + 3;
    let len = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
    let mut values = path.output::<f32>(len);
    values.fill(7.0);
    run(Target::F32 { values: &mut values, stride }, &mut [], threads);
    let mut scratch = path.output::<f32>(scratch_len(columns, threads.threads()));
    let mut bytes = path.output::<u8>(len);
    run(Target::U8 { bytes: &mut bytes, stride, qparams: QPARAMS }, &mut scratch, threads);
    let (mut dynamic, mut scales, mut zero_points) = (path.output(len), path.output::<f32>(rows), path.output(rows));
    let target = Target::Dynamic { bytes: &mut dynamic, stride, scales: &mut scales, zero_points: &mut zero_points };
    run(target, &mut scratch, threads);
    // The bytes are those of the values.
    for row in 0..if columns == 0 { 0 } else { rows } {
        let at = row * stride..row * stride + columns;
        let mut expected = vec![0; columns];
        quantize(Isa::Scalar, &values[at.clone()], QPARAMS, &mut expected);
        assert_eq!(bytes[at.clone()], expected);
        let qparams = dynamic_qparams::<u8>(Isa::Scalar, &values[at.clone()], false);
        quantize(Isa::Scalar, &values[at.clone()], qparams, &mut expected);
        assert_eq!(dynamic[at.clone()], expected);
        assert_eq!((scales[row], zero_points[row]), (qparams.scale, qparams.zero_point as u8));
        if row + 1 < rows {
            assert_eq!(values[at.end..at.end + 3], [7.0; 3]);
            assert_eq!((&bytes[at.end..at.end + 3], &dynamic[at.end..at.end + 3]), (&[0xA5; 3][..], &[0xA5; 3][..]));
        }
    }
    let rows = (dynamic.to_vec(), bits(&scales), zero_points.to_vec());
    Forms { values: bits(&values), bytes: bytes.to_vec(), rows }
}

/// The values of the rows.
fn unstrided(forms: &Forms, columns: usize) -> Vec<f32> {
    let rows = forms.values.chunks(columns + 3).flat_map(|row| &row[..columns.min(row.len())]);
    rows.map(|x| f32::from_bits(*x)).collect()
}

/// On one thread and on three.
fn on_threads<R: PartialEq + std::fmt::Debug>(run: impl Fn(&dyn Parallel) -> R) -> R {
    let one = run(&Serial);
    assert!(one == run(&Threads(3)), "three threads differ");
    one
}

fn activation() -> impl Strategy<Value = Activation> {
    prop::sample::select(ACTIVATIONS.to_vec())
}

const ACTIVATIONS: [Activation; 14] = [
    Activation::Relu,
    Activation::RELU6,
    Activation::LeakyRelu { negative_slope: 0.1 },
    Activation::HardSwish,
    Activation::HardSigmoid,
    Activation::Sigmoid,
    Activation::Silu,
    Activation::Tanh,
    Activation::Elu { alpha: 1.5, scale: 1.0, input_scale: 1.0 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Exp,
    Activation::AddScalar(0.7),
    Activation::MulScalar(-3.0),
];

/// An upper bound of `|f(x) - exact|`.
fn bound(activation: Activation, x: f32, exact: f64) -> f64 {
    let ulp = |units: f64| units * (f64::from(f32::EPSILON) / 2.0 * 2.0 * exact.abs()).max(1.5e-45) + 1.1e-36;
    match activation {
        Activation::Gelu => 2e-7 * f64::from(x).abs() + 1e-45,
        // The exponent is up to 90, and rounded.
        Activation::GeluTanh => 3e-7 * f64::from(x).abs() + 1.1e-36,
        _ => ulp(2.0),
    }
}

fn exact(activation: Activation, x: f32) -> f64 {
    let wide = f64::from(x);
    match activation {
        Activation::Sigmoid => 1.0 / (1.0 + (-wide).exp()),
        Activation::Silu => wide / (1.0 + (-wide).exp()),
        Activation::Tanh => wide.tanh(),
        Activation::Exp => wide.exp(),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            wide / (1.0 + (-2.0 * inner).exp())
        }
        _ => f64::from(activation.eval(x)),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn functions_have_the_same_bits_everywhere(
        (rows, columns, x, bias) in (0..5usize, length()).prop_flat_map(|(rows, columns)| {
            let bias = prop_oneof![Just(vec![]), values(columns)];
            (Just(rows), Just(columns), values(rows * (columns + 2)), bias)
        }),
        function in activation(),
    ) {
        let found = on_all_paths(|path| on_threads(|threads| {
            let (x, bias) = (path.input(&x), path.input(&bias));
            forms(path, [rows, columns], threads, |target, scratch, threads| {
                let x = Rows { data: &x, stride: columns + 2 };
                activate(path.isa, x, rows, columns, &bias, function, target, scratch, threads);
            })
        }));
        for (i, found) in unstrided(&found, columns).into_iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let x = x[row * (columns + 2) + column] + bias.get(column).copied().unwrap_or(0.0);
            let exact = exact(function, x);
            if x.is_nan() || exact.is_nan() {
                prop_assert!(found.is_nan(), "{function:?}({x}) = {found}");
            } else if exact.abs() > f64::from(f32::MAX) {
                prop_assert!(f64::from(found).signum() == exact.signum() && found.abs() > 3e38, "{function:?}({x}) = {found}");
            } else {
                let error = (f64::from(found) - exact).abs();
                prop_assert!(error <= bound(function, x, exact), "{function:?}({x}) = {found}, not {exact}");
            }
        }
    }

    #[test]
    fn softmax_of_rows(
        (sizes, columns, x, masks) in ([1..3usize, 1..3usize, 0..4usize], length()).prop_flat_map(|(sizes, columns)| {
            let rows = sizes.iter().product::<usize>();
            (Just(sizes), Just(columns), values(rows * columns), prop::option::of(values(rows * columns)))
        }),
        repeated in any::<[bool; 3]>(),
        scale in prop_oneof![Just(1.0f32), -2.0f32..2.0],
    ) {
        let rows = sizes.iter().product::<usize>();
        let [a, b, c] = [sizes[1] * sizes[2] * columns, sizes[2] * columns, columns];
        let strides: [usize; 3] = std::array::from_fn(|i| if repeated[i] { 0 } else { [a, b, c][i] });
        let run = |log: bool| on_all_paths(|path| on_threads(|threads| {
            let x = path.input(&x);
            let data = masks.as_ref().map(|mask| path.input(mask));
            forms(path, [rows, columns], threads, |target, scratch, threads| {
                let mask = data.as_ref().map(|data| Mask { data, strides });
                let x = Rows::new(&x, columns);
                let kernel = if log { log_softmax } else { softmax };
                kernel(path.isa, x, sizes, columns, scale, mask, target, scratch, threads);
            })
        }));
        let [found, logs] = [run(false), run(true)].map(|forms| unstrided(&forms, columns));
        for row in 0..if columns == 0 { 0 } else { rows } {
            let place = [row / sizes[2] / sizes[1], row / sizes[2] % sizes[1], row % sizes[2]];
            let from: usize = place.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            let t: Vec<f64> = (0..columns).map(|i| match &masks {
                Some(mask) => f64::from(x[row * columns + i].mul_add(scale, mask[from + i])),
                None => f64::from(x[row * columns + i] * scale),
            }).collect();
            let max = t.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = t.iter().map(|t| (t - max).exp()).sum();
            for i in 0..columns {
                let exact = (t[i] - max).exp() / sum;
                let (found, log) = (found[row * columns + i], logs[row * columns + i]);
                if sum.is_nan() {
                    prop_assert!(found.is_nan() && log.is_nan(), "{found} and {log} of {t:?}");
                    continue;
                }
                // The difference to the maximum is rounded too.
                let unit = f64::from(f32::EPSILON) / 2.0;
                let relative = (4.0 + columns as f64 / 32.0) * unit;
                let rounded = if (t[i] - max).is_finite() { (t[i] - max).abs() } else { 0.0 } * unit;
                prop_assert!((f64::from(found) - exact).abs() <= exact * (relative + rounded) + 1.3e-38, "{found}, not {exact}");
                let exact = t[i] - max - sum.ln();
                if exact.is_finite() && exact.abs() < 1e38 {
                    prop_assert!((f64::from(log) - exact).abs() <= relative + 2.0 * unit * exact.abs(), "{log}, not {exact}");
                } else {
                    prop_assert!(log < -1e38);
                }
            }
        }
    }

    #[test]
    fn norms_of_rows(
        (rows, columns, x, residual, weight, bias) in (0..5usize, length()).prop_flat_map(|(rows, columns)| {
            let residual = prop::option::of(values(rows * columns));
            let parameter = || prop_oneof![Just(vec![]), prop::collection::vec(-3.0f32..3.0, columns)];
            (Just(rows), Just(columns), values(rows * (columns + 1)), residual, parameter(), parameter())
        }),
        (wants_sum, centred) in any::<(bool, bool)>(),
        offset in prop::sample::select(vec![0.0f32, 0.0, 10.0, -1000.0]),
    ) {
        let eps = 1e-5;
        let x: Vec<f32> = x.into_iter().map(|x| x + offset).collect();
        let found = on_all_paths(|path| on_threads(|threads| {
            let (x, residual) = (path.input(&x), residual.as_ref().map(|residual| path.input(residual)));
            let (weight, bias) = (path.input(&weight), path.input(&bias));
            let mut sum = path.output::<f32>(rows * columns);
            sum.fill(0.0);
            let sum = std::cell::RefCell::new(sum);
            let forms = forms(path, [rows, columns], threads, |target, scratch, threads| {
                let x = Rows { data: &x, stride: columns + 1 };
                let residual = residual.as_ref().map(|residual| Rows::new(residual, columns));
                let mut sum = sum.borrow_mut();
                let sum = (wants_sum && residual.is_some()).then_some(&mut sum[..]);
                let norm = Norm { columns, weight: &weight, bias: &bias, eps };
                let kernel = if centred { layer_norm } else { rms_norm };
                kernel(path.isa, x, residual, sum, rows, norm, target, scratch, threads);
            });
            (forms, bits(&sum.into_inner()))
        }));
        let (values, sum) = (unstrided(&found.0, columns), found.1);
        for row in 0..if columns == 0 { 0 } else { rows } {
            let z: Vec<f32> = (0..columns).map(|c| {
                x[row * (columns + 1) + c] + residual.as_ref().map_or(0.0, |r| r[row * columns + c])
            }).collect();
            if wants_sum && residual.is_some() {
                prop_assert_eq!(&bits(&z), &sum[row * columns..][..columns]);
            }
            let n = columns as f64;
            let mean = if centred { z.iter().map(|z| f64::from(*z)).sum::<f64>() / n } else { 0.0 };
            let squares = z.iter().map(|z| (f64::from(*z) - mean).powi(2)).sum::<f64>() / n;
            let most = z.iter().map(|z| f64::from(z.abs())).fold(0.0, f64::max);
            for c in 0..columns {
                let found = values[row * columns + c];
                if z.iter().any(|z| !z.is_finite()) {
                    // Without a mean, infinity makes the others 0.
                    prop_assert!(found.is_nan() || !centred);
                } else if most < 1e15 {
                    let gain = weight.get(c).map_or(1.0, |w| f64::from(*w)) / (squares + eps).sqrt();
                    let bias = bias.get(c).map_or(0.0, |b| f64::from(*b));
                    let exact = (f64::from(z[c]) - mean) * gain + bias;
                    let unit = (4.0 + n / 32.0) * f64::from(f32::EPSILON) / 2.0;
                    let bound = unit * (most * gain.abs() + bias.abs() + exact.abs()) + 1e-37;
                    prop_assert!((f64::from(found) - exact).abs() <= bound, "{found}, not {exact}");
                }
            }
        }
    }

    #[test]
    fn products_of_matrices(
        [batch, heads, rows, inner, columns] in sizes(),
        (left, right, outer, repeated) in (0..4usize, 0..4usize, 0..3usize, any::<[bool; 4]>()),
        seed in any::<u32>(),
        masked in any::<bool>(),
        scale in prop_oneof![Just(1.0f32), -2.0f32..2.0],
    ) {
        let product = Product { batch, heads, rows, inner, columns };
        let mut a = Layout::new([batch, heads, rows, inner], left);
        let mut b = Layout::new([batch, heads, inner, columns], right);
        for (layout, [first, second]) in [(&mut a, [repeated[0], repeated[1]]), (&mut b, [repeated[2], repeated[3]])] {
            layout.strides[0] *= usize::from(!first);
            layout.strides[1] *= usize::from(!second);
        }
        let out = Layout::new([batch, heads, rows, columns], outer);
        let mask = Layout { strides: [0, rows * columns, columns, 1], len: heads * rows * columns };
        let (x, y, z) = (numbers(a.len, seed), numbers(b.len, seed ^ 1), numbers(mask.len, seed ^ 2));
        let found = on_all_paths(|path| on_threads(|threads| {
            let (x, y, z) = (path.input(&x), path.input(&y), path.input(&z));
            let mut result = path.output::<f32>(out.len);
            let mut scratch = path.output::<f32>(matmul_scratch_len(product, threads.threads()));
            let [a, b] = [(&x, a), (&y, b)].map(|(data, layout)| Batch { data, strides: layout.strides });
            let mask = masked.then_some(Mask { data: &z, strides: [0, rows * columns, columns] });
            let to = BatchMut { data: &mut result, strides: [out.strides[0], out.strides[1], out.strides[2]] };
            matmul(path.isa, product, a, b, scale, mask, to, &mut scratch, threads);
            bits(&result)
        }));
        for [i, j, r, c] in places([batch, heads, rows, columns]) {
            let terms = (0..inner).map(|k| f64::from(x[a.at([i, j, r, k])]) * f64::from(y[b.at([i, j, k, c])]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), x| (sum + x, size + x.abs()));
            let z = if masked { f64::from(z[mask.at([0, j, r, c])]) } else { 0.0 };
            let exact = sum * f64::from(scale) + z;
            let bound = (size * f64::from(scale.abs()) * (inner + 1) as f64 + z.abs() + exact.abs()) * 6e-8 + 1e-37;
            let found = f32::from_bits(found[out.at([i, j, r, c])]);
            prop_assert!((f64::from(found) - exact).abs() <= bound, "{found}, not {exact}");
        }
    }

    #[test]
    fn attention_of_heads(
        [batch, heads, rows, dim, columns] in sizes(),
        value_dim in prop_oneof![Just(1usize), 1..40usize, Just(64)],
        (layouts, outer, repeated) in (any::<[u8; 3]>(), 0..3usize, any::<[bool; 3]>()),
        seed in any::<u32>(),
        (masked, causal, blind_is_zero) in any::<(bool, bool, bool)>(),
        scale in prop_oneof![Just(0.125f32), Just(1.0), -0.5f32..2.0],
    ) {
        let options = Attention { batch, heads, rows, columns, dim, value_dim, scale, causal, blind_is_zero };
        let [q, k, v] = [[rows, dim], [columns, dim], [columns, value_dim]].map(|[m, n]| [batch, heads, m, n]);
        let [q, k, v] = [(q, layouts[0]), (k, layouts[1]), (v, layouts[2])].map(|(sizes, kind)| Layout::new(sizes, usize::from(kind) % 4));
        let out = Layout::new([batch, heads, rows, value_dim], outer);
        let mut mask = Layout::new([batch, heads, rows, columns], 0);
        for (stride, repeated) in mask.strides.iter_mut().zip(repeated) {
            *stride *= usize::from(!repeated);
        }
        let data = [q.len, k.len, v.len].map(|len| numbers(len, seed ^ len as u32));
        let mut masks = numbers(mask.len, seed);
        for (i, x) in masks.iter_mut().enumerate() {
            // Rows that see little, and rows that see nothing.
            if (i / columns.max(1) + seed as usize).is_multiple_of(5) || (i + seed as usize).is_multiple_of(3) {
                *x = f32::NEG_INFINITY;
            }
        }
        let found = on_all_paths(|path| on_threads(|threads| {
            let [a, b, c] = [0, 1, 2].map(|i| path.input(&data[i]));
            let (masks, mut result) = (path.input(&masks), path.output::<f32>(out.len));
            let mut scratch = path.output::<f32>(attention_scratch_len(&options, threads.threads()));
            let [q, k, v] = [(&a, q), (&b, k), (&c, v)].map(|(data, layout)| Batch { data, strides: layout.strides });
            let mask = masked.then_some(Mask { data: &masks, strides: [mask.strides[0], mask.strides[1], mask.strides[2]] });
            let to = BatchMut { data: &mut result, strides: [out.strides[0], out.strides[1], out.strides[2]] };
            attention(path.isa, &options, q, k, v, mask, to, &mut scratch, threads);
            bits(&result)
        }));
        for [i, j, r, _] in places([batch, heads, rows, 1]) {
            let seen = if causal { columns.min(r + 1) } else { columns };
            let (mut most, mut sizes) = (0.0f64, 0.0f64);
            let scores: Vec<f64> = (0..seen).map(|c| {
                let terms = (0..dim).map(|d| f64::from(data[0][q.at([i, j, r, d])]) * f64::from(data[1][k.at([i, j, c, d])]));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), x| (sum + x, size + x.abs()));
                let score = sum * f64::from(scale) + if masked { f64::from(masks[mask.at([i, j, r, c])]) } else { 0.0 };
                if score.is_finite() {
                    most = most.max(score.abs());
                }
                sizes = sizes.max(size * f64::from(scale.abs()));
                score
            }).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
            for d in 0..value_dim {
                let found = f32::from_bits(found[out.at([i, j, r, d])]);
                if max == f64::NEG_INFINITY {
                    prop_assert!(if blind_is_zero || columns == 0 { found == 0.0 } else { found.is_nan() }, "{found} for a blind row");
                    continue;
                }
                let value = |c| f64::from(data[2][v.at([i, j, c, d])]);
                let exact = (0..seen).map(|c| (scores[c] - max).exp() * value(c)).sum::<f64>() / sum;
                let largest = (0..seen).map(|c| value(c).abs()).fold(0.0, f64::max);
                let bound = (dim as f64 * sizes + 2.0 * most + 1.5 * columns as f64 + 8.0) * 6e-8 * largest + 1e-37;
                prop_assert!((f64::from(found) - exact).abs() <= bound, "{found}, not {exact}");
            }
        }
    }

    #[test]
    fn arithmetic_with_broadcasting(
        (sizes, order, kinds) in (0..6usize).prop_flat_map(|dimensions| (
            prop::collection::vec(prop_oneof![6 => 1..5usize, 2 => 15..18usize, 1 => Just(0usize)], dimensions),
            Just((0..dimensions).collect::<Vec<usize>>()).prop_shuffle(),
            prop::collection::vec(any::<[bool; 2]>(), dimensions),
        )),
        mixed in prop::bool::weighted(0.3),
        last in prop_oneof![Just(1usize), 1..200usize],
        op in prop::sample::select(vec![Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div]),
        function in prop::option::of(activation()),
        seed in any::<u32>(),
    ) {
        let (mut sizes, mut order, mut kinds) = (sizes, order, kinds);
        order.push(sizes.len());
        sizes.push(last);
        kinds.push([seed % 7 == 0, seed % 5 == 0]);
        if !mixed {
            order.sort_unstable();
        }
        // Operands whose dimensions lie in `order`, some of them repeated.
        let layouts: [(Vec<usize>, usize); 2] = std::array::from_fn(|i| {
            let (mut strides, mut len) = (vec![0; sizes.len()], 1);
            for &d in order.iter().rev() {
                if !kinds[d][i] {
                    strides[d] = len;
                    len *= sizes[d];
                }
            }
            (strides, len)
        });
        let total = sizes.iter().product::<usize>();
        let [x, y] = [0, 1].map(|i| numbers(layouts[i].1, seed ^ i as u32));
        let found = on_all_paths(|path| on_threads(|threads| {
            let (x, y, mut out) = (path.input(&x), path.input(&y), path.output::<f32>(total));
            let a = Strided { data: &x, strides: &layouts[0].0 };
            let b = Strided { data: &y, strides: &layouts[1].0 };
            arithmetic(path.isa, op, a, b, &sizes, function, &mut out, threads);
            bits(&out)
        }));
        for (i, found) in found.into_iter().enumerate() {
            let (mut rest, mut at) = (i, [0; 2]);
            for d in (0..sizes.len()).rev() {
                for (at, (strides, _)) in at.iter_mut().zip(&layouts) {
                    *at += rest % sizes[d] * strides[d];
                }
                rest /= sizes[d];
            }
            let (x, y) = (x[at[0]], y[at[1]]);
            let z = match op {
                Arithmetic::Add => x + y,
                Arithmetic::Sub => x - y,
                Arithmetic::Mul => x * y,
                Arithmetic::Div => x / y,
            };
            let found = f32::from_bits(found);
            match function {
                None => prop_assert_eq!(found.to_bits(), z.to_bits()),
                Some(function) if z.is_finite() => {
                    let exact = exact(function, z);
                    let bound = bound(function, z, exact);
                    prop_assert!(exact.abs() > 3e38 || (f64::from(found) - exact).abs() <= bound, "{found}, not {exact}");
                }
                Some(_) => {}
            }
        }
    }
}

/// A kernel that stores into a target.
type Run<'a> = &'a dyn Fn(Target<'_>, &mut [f32], &dyn Parallel);

/// Sizes that are worth several threads; the others here mostly are not.
#[test]
#[cfg_attr(miri, ignore)]
fn threads_share_the_work() {
    let (rows, columns) = (41, 1103);
    let (x, y) = (numbers(rows * columns, 3), numbers(rows * columns, 4));
    let (x_rows, y_rows) = (Rows::new(&x, columns), Rows::new(&y, columns));
    for isa in Isa::available().filter(|&isa| isa != Isa::Scalar) {
        let path = Path { isa, edge: crate::guarded::Edge::End };
        on_threads(|threads| {
            let forms = |run: Run<'_>| forms(path, [rows, columns], threads, run);
            let activated = forms(&|target, scratch, threads| {
                activate(isa, x_rows, rows, columns, &y[..columns], Activation::Silu, target, scratch, threads);
            });
            let soft = forms(&|target, scratch, threads| {
                let mask = Some(Mask { data: &y, strides: [0, 0, columns] });
                softmax(isa, x_rows, [1, 1, rows], columns, 1.0, mask, target, scratch, threads);
            });
            let mut sum = vec![0.0; rows * columns];
            let sums = std::cell::RefCell::new(&mut sum);
            let normal = forms(&|target, scratch, threads| {
                let norm = Norm { columns, weight: &y[..columns], bias: &[], eps: 1e-5 };
                let sum = &mut **sums.borrow_mut();
                layer_norm(isa, x_rows, Some(y_rows), Some(sum), rows, norm, target, scratch, threads);
            });
            let mut line = vec![0.0; x.len()];
            let target = Target::F32 { values: &mut line, stride: x.len() };
            let whole = Rows::new(&x, x.len());
            activate(isa, whole, 1, x.len(), &y, Activation::Gelu, target, &mut [], threads);
            let mut added = [vec![0.0; x.len()], vec![0.0; x.len()]];
            for (added, strides) in added.iter_mut().zip([[columns, 1], [0, 1]]) {
                let (a, b) = (Strided { data: &x, strides: &[columns, 1] }, Strided { data: &y, strides: &strides });
                let function = Some(Activation::Tanh);
                arithmetic(isa, Arithmetic::Add, a, b, &[rows, columns], function, added, threads);
            }
            let [added, broadcast] = added.map(|added| bits(&added));
            (activated, soft, normal, bits(&sum), bits(&line), added, broadcast)
        });
        // One head, cut by rows, and many.
        for (batch, heads, rows) in [(1, 1, 203), (3, 5, 70), (2, 7, 31)] {
            let (columns, dim) = (rows + 5, 24);
            let data = numbers(batch * heads * columns * dim, 5);
            let mask = numbers(rows * columns, 6);
            on_threads(|threads| {
                let (scale, causal, blind_is_zero) = (0.2, heads == 5, false);
                let options =
                    Attention { batch, heads, rows, columns, dim, value_dim: dim, scale, causal, blind_is_zero };
                let x = Batch { data: &data, strides: [heads * columns * dim, dim, heads * dim, 1] };
                let mask = Some(Mask { data: &mask, strides: [0, 0, columns] });
                let mut out = path.output::<f32>(batch * heads * rows * dim);
                let mut scratch = path.output::<f32>(attention_scratch_len(&options, threads.threads()));
                let to = BatchMut { data: &mut out, strides: [heads * rows * dim, dim, heads * dim] };
                attention(isa, &options, x, x, x, mask, to, &mut scratch, threads);
                let product = Product { batch, heads, rows, inner: dim, columns };
                let mut scores = path.output::<f32>(batch * heads * rows * columns);
                let mut scratch = path.output::<f32>(matmul_scratch_len(product, threads.threads()));
                let to = BatchMut::new(&mut scores, [heads, rows, columns]);
                matmul(isa, product, x, x.transposed(), scale, mask, to, &mut scratch, threads);
                (bits(&out), bits(&scores))
            });
        }
    }
}

/// Batch, heads, rows, inner dimension, columns: around the sizes of tiles and blocks.
fn sizes() -> impl Strategy<Value = [usize; 5]> {
    let rows = || prop_oneof![0..3usize, 5..8usize, 1..60usize];
    let columns = || prop_oneof![0..3usize, 15..18usize, 1..70usize, Just(100)];
    (0..4usize, 1..4usize, rows(), columns(), columns())
        .prop_map(|(batch, heads, rows, inner, columns)| [batch, heads, rows, inner, columns])
}

/// Where the values of `[batch, heads, rows, columns]` lie, and how far they reach.
#[derive(Clone, Copy, Debug)]
struct Layout {
    strides: [usize; 4],
    len: usize,
}

impl Layout {
    /// Contiguous, heads within rows as a projection has them, with gaps, transposed.
    fn new(sizes: [usize; 4], kind: usize) -> Self {
        let [batch, heads, rows, columns] = sizes;
        let strides = match kind {
            0 => [heads * rows * columns, rows * columns, columns, 1],
            1 => [rows * heads * columns, columns, heads * columns, 1],
            2 => [heads * rows * (columns + 3) + 5, rows * (columns + 3), columns + 3, 1],
            _ => [heads * rows * columns, rows * columns, 1, rows],
        };
        let _ = batch;
        let empty = sizes.contains(&0);
        let len = if empty {
            0
        } else {
            sizes.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>() + 1
        };
        Self { strides, len }
    }

    fn at(&self, place: [usize; 4]) -> usize {
        place.iter().zip(self.strides).map(|(i, stride)| i * stride).sum()
    }
}

fn places([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..a * b * c * d).map(move |i| [i / d / c / b, i / d / c % b, i / d % c, i % d])
}

/// Numbers in -2..2 that look random.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..len).map(|_| next()).collect()
}

/// The largest error of each function over a sample of all f32, in units of the last place of the result (of 1 for gelu,
/// divided by the argument): 2^22 numbers, every 1024th.
#[test]
#[ignore = "prints figures for the documentation"]
fn errors_of_functions() {
    for function in ACTIVATIONS {
        let (mut worst, mut at) = (0.0, 0.0);
        for start in 0..64u32 {
            let x: Vec<f32> = (0..1 << 16).map(|i| f32::from_bits((start << 26) + (i << 10) + 77 * i % 1024)).collect();
            let mut y = vec![0.0; x.len()];
            let target = Target::F32 { values: &mut y, stride: x.len() };
            activate(Isa::current(), Rows::new(&x, x.len()), 1, x.len(), &[], function, target, &mut [], &Serial);
            for (x, y) in x.into_iter().zip(y) {
                let exact = exact(function, x);
                if !x.is_finite() || exact.abs() > f64::from(f32::MAX) || exact.abs() < 1.2e-36 {
                    assert!(
                        !x.is_finite() || (f64::from(y) - exact).abs() < 1.3e-36 || y.abs() > 3e38,
                        "{function:?}({x}) = {y}"
                    );
                    continue;
                }
                let unit = match function {
                    Activation::Gelu | Activation::GeluTanh => f64::from(x).abs(),
                    _ => 2f64.powi(exact.abs().log2().floor() as i32 - 23),
                };
                let error = (f64::from(y) - exact).abs() / unit;
                if error > worst {
                    (worst, at) = (error, x);
                }
            }
        }
        println!("{function:?}: {worst:.3e} at {at:e}");
    }
}

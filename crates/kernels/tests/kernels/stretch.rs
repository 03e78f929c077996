//! Rows stretched to bytes: every ISA gives the bits of the scalar path for any number of threads, and those of the operators that
//! it stands for.

use crate::guarded::{cases, on_all_paths};
use crate::threads::Threads;
use jitquant_kernels::float::{LEAST_SPAN, Rows, Stretched, Target, activate, add_lows, scratch_len, stretch_rows};
use jitquant_kernels::{Activation, Isa, Parallel, QParams, Serial, quantize};
use proptest::prelude::*;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Ordinary rows, some of equal values, some with what is not finite.
fn row(columns: usize) -> impl Strategy<Value = Vec<f32>> {
    let odd = prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, -0.0]);
    prop_oneof![
        6 => prop::collection::vec(-4.0f32..4.0, columns),
        1 => (-2.0f32..2.0).prop_map(move |x| vec![x; columns]),
        2 => prop::collection::vec(prop_oneof![20 => -4.0f32..4.0, 1 => odd], columns),
    ]
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn rows_are_stretched_as_operators_do(
        (columns, rows) in prop_oneof![1..5usize, 30..35usize, 1..300usize]
            .prop_flat_map(|columns| (Just(columns), prop::collection::vec(row(columns), 0..6))),
        function in prop::sample::select(vec![None, Some(Activation::Gelu), Some(Activation::Relu)]),
    ) {
        let x = rows.concat();
        let run = |threads: &dyn Parallel| on_all_paths(|path| {
            let x = path.input(&x);
            let (mut bytes, mut lows) = (path.output::<u8>(x.len()), path.output::<f32>(rows.len()));
            let (mut scales, mut scratch) = (path.output::<f32>(rows.len()), path.output(scratch_len(columns, threads.threads())));
            let to = Stretched { bytes: &mut bytes, lows: &mut lows, scales: &mut scales };
            stretch_rows(path.isa, Rows::new(&x, columns), rows.len(), columns, function, to, &mut scratch, threads);
            // What the bytes of a row without a range are is nobody's.
            for (bytes, low) in bytes.chunks_mut(columns).zip(lows.iter()) {
                if low.is_nan() { bytes.fill(0) }
            }
            (bytes.to_vec(), bits(&lows), bits(&scales))
        });
        let found = run(&Serial);
        prop_assert_eq!(&found, &run(&Threads(3)));
        for (at, row) in rows.iter().enumerate() {
            let mut y = row.clone();
            if let Some(function) = function {
                let target = Target::F32 { values: &mut y, stride: columns };
                activate(Isa::Scalar, Rows::new(row, columns), 1, columns, &[], function, target, &mut [], &Serial);
            }
            let (low, high) = y.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
            let span = (high - low).max(LEAST_SPAN);
            if !span.is_finite() || y.iter().any(|y| !y.is_finite()) {
                prop_assert_eq!((found.1[at], found.2[at]), (f32::NAN.to_bits(), f32::NAN.to_bits()));
                continue;
            }
            let t: Vec<f32> = y.iter().map(|y| (y - low) / span).collect();
            let mut expected = vec![0; columns];
            quantize(Isa::Scalar, &t, QParams::new(1.0 / 255.0, 0), &mut expected);
            prop_assert_eq!(&found.0[at * columns..][..columns], expected);
            prop_assert_eq!((found.1[at], found.2[at]), ((low + 0.0).to_bits(), (span * (1.0 / 255.0)).to_bits()));
        }
    }

    #[test]
    fn lows_are_added_term_by_term(
        (columns, rows, values) in (1..200usize, 0..5usize)
            .prop_flat_map(|(c, r)| (Just(c), Just(r), prop::collection::vec(-4.0f32..4.0, c * r * 2 + c * 2 + r))),
        (has_bias, has_residual) in any::<(bool, bool)>(),
    ) {
        let (y, rest) = values.split_at(columns * rows);
        let (residual, rest) = rest.split_at(columns * rows);
        let (factors, rest) = rest.split_at(columns);
        let (bias, lows) = rest.split_at(columns);
        let bias = if has_bias { bias } else { &[] };
        let run = |threads: &dyn Parallel| on_all_paths(|path| {
            let mut out = path.input(y);
            let residual = has_residual.then(|| path.input(residual));
            let (factors, bias) = (path.input(factors), path.input(bias));
            add_lows(path.isa, &mut out, lows, &factors, &bias, residual.as_deref(), threads);
            bits(&out)
        });
        let found = run(&Serial);
        prop_assert_eq!(&found, &run(&Threads(3)));
        for (at, y) in y.iter().enumerate() {
            let mut expected = lows[at / columns].mul_add(factors[at % columns], *y);
            if has_bias { expected += bias[at % columns] }
            if has_residual { expected += residual[at] }
            prop_assert_eq!(found[at], expected.to_bits());
        }
    }
}

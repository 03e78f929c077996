//! The cells of LSTM and GRU: every ISA gives the bits of the scalar path, nothing outside the slices is touched, and
//! the new state is near the exact one.

use crate::guarded::{cases, on_all_paths};
use jitquant_kernels::{Isa, gru_cell, lstm_cell};
use proptest::prelude::*;

/// Gates as they come, where the functions change their formula, and far out.
fn gate() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -6.0f32..6.0,
        2 => -1.0f32..1.0,
        1 => -200.0f32..200.0,
        1 => prop::sample::select(vec![0.0, -0.0, 0.625, -0.625, 44.0, -88.0, 88.7, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]),
    ]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// An upper bound of the error of sums and products of a few values of the given magnitude: each sigmoid and tanh is
/// within 3 units in the last place, and its argument within half of one.
fn tolerance(magnitude: f64) -> f64 {
    8.0 * f64::from(f32::EPSILON) * (1.0 + magnitude)
}

fn rows_of(hidden: std::ops::Range<usize>) -> impl Strategy<Value = (usize, usize)> {
    (1..4usize, hidden)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn lstm_cells_follow_the_formula(
        (hidden, gates, state) in rows_of(1..100).prop_flat_map(|(rows, hidden)| {
            let len = rows * hidden;
            (Just(hidden), prop::collection::vec(gate(), 4 * len), prop::collection::vec(-4.0f32..4.0, len))
        }),
    ) {
        let (c, h) = on_all_paths(|path| {
            let (mut c, mut h) = (path.input(&state), path.output::<f32>(state.len()));
            lstm_cell(path.isa, &path.input(&gates), hidden, &mut c, &mut h);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (bits(&c), bits(&h))
        });
        for k in 0..state.len() {
            let (row, column) = (k / hidden, k % hidden);
            let [i, f, g, o] = std::array::from_fn(|gate| f64::from(gates[(4 * row + gate) * hidden + column]));
            let old = f64::from(state[k]);
            let new = sigmoid(f) * old + sigmoid(i) * g.tanh();
            let found = f64::from(f32::from_bits(c[k]));
            prop_assert!((found - new).abs() <= tolerance(old.abs()), "c = {}, not {}", found, new);
            let new = sigmoid(o) * new.tanh();
            let found = f64::from(f32::from_bits(h[k]));
            prop_assert!((found - new).abs() <= tolerance(old.abs()), "h = {}, not {}", found, new);
        }
    }

    #[test]
    fn gru_cells_follow_the_formula(
        (hidden, x_gates, h_gates, state) in rows_of(1..100).prop_flat_map(|(rows, hidden)| {
            let len = rows * hidden;
            let finite = || gate().prop_map(|x| x.clamp(-200.0, 200.0));
            (
                Just(hidden),
                prop::collection::vec(finite(), 3 * len),
                prop::collection::vec(finite(), 3 * len),
                prop::collection::vec(-4.0f32..4.0, len),
            )
        }),
    ) {
        let found = on_all_paths(|path| {
            let mut h = path.input(&state);
            gru_cell(path.isa, &path.input(&x_gates), &path.input(&h_gates), hidden, &mut h);
            h.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        for (k, found) in found.into_iter().enumerate() {
            let (row, column) = (k / hidden, k % hidden);
            let part = |gates: &[f32], gate: usize| f64::from(gates[(3 * row + gate) * hidden + column]);
            let sum = |gate| part(&x_gates, gate) + part(&h_gates, gate);
            let (reset, update) = (sigmoid(sum(0)), sigmoid(sum(1)));
            let candidate = (part(&x_gates, 2) + reset * part(&h_gates, 2)).tanh();
            let old = f64::from(state[k]);
            let new = (old - candidate) * update + candidate;
            // The arguments are sums of values of this size, rounded before sigmoid and tanh see them.
            let magnitude = (0..3).map(|g| part(&x_gates, g).abs() + part(&h_gates, g).abs()).fold(old.abs(), f64::max);
            let found = f64::from(f32::from_bits(found));
            prop_assert!((found - new).abs() <= tolerance(magnitude), "{}, not {}", found, new);
        }
    }
}

#[test]
fn nan_stays_nan() {
    for isa in Isa::available() {
        let (mut c, mut h) = ([1.0; 20], [0.0; 20]);
        lstm_cell(isa, &[f32::NAN; 80], 20, &mut c, &mut h);
        assert!(c.iter().chain(&h).all(|x| x.is_nan()), "{}", isa.name());
        let mut h = [1.0; 20];
        gru_cell(isa, &[f32::NAN; 60], &[0.0; 60], 20, &mut h);
        assert!(h.iter().all(|x| x.is_nan()), "{}", isa.name());
    }
}

#[test]
fn saturated_gates_keep_or_replace_the_state() {
    // i and o closed, f open: the state stays and nothing comes out. Then f closed, i and o open.
    let gates = |f: f32, i: f32, o: f32| [[i; 5], [f; 5], [20.0; 5], [o; 5]].concat();
    let (mut c, mut h) = ([1.5; 5], [0.0; 5]);
    lstm_cell(Isa::current(), &gates(100.0, -100.0, -100.0), 5, &mut c, &mut h);
    assert_eq!(c, [1.5; 5]);
    assert!(h.iter().all(|h| h.abs() < 1e-37));
    lstm_cell(Isa::current(), &gates(-100.0, 100.0, 100.0), 5, &mut c, &mut h);
    assert_eq!(c, [1.0; 5]);
    assert!(h.iter().all(|h| (h - 1f32.tanh()).abs() < 2e-7));
}

#[test]
#[should_panic(expected = "length of the gates")]
fn gates_of_another_length_are_refused() {
    lstm_cell(Isa::current(), &[0.0; 30], 2, &mut [0.0; 8], &mut [0.0; 8]);
}

//! Products with weights of 8 and 4 bits: every instruction set is within float rounding of the product in f64, touches
//! nothing outside of its slices, and gives a weight back as it was.

use crate::guarded::{Edge, Path, cases};
use crate::threads::Threads;
use jitquant_kernels::{Channels, Isa, PackedWeightOnly, Parallel, Serial, round_channels, round_groups};
use proptest::prelude::*;

/// A product: rows, inputs, outputs, and the group of a weight of 4 bits.
#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    k: usize,
    n: usize,
    group: Option<usize>,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn case() -> impl Strategy<Value = Case> {
    let eight = (0..30usize, 0..70usize, Just(None));
    // More than one panel of columns, and groups that do not divide it.
    let four = (0..30usize, 0..12usize, prop::sample::select(vec![2usize, 32, 48, 64, 128]))
        .prop_map(|(rows, count, group)| (rows, count * group, Some(group)));
    let wide = (0..30usize, 250..270usize, Just(None));
    (prop_oneof![eight, four, wide], 1..50usize, any::<bool>()).prop_flat_map(|((rows, k, group), n, has_bias)| {
        let number = -2.0f32..2.0;
        (
            prop::collection::vec(number.clone(), rows * k),
            prop::collection::vec(number.clone(), n * k),
            prop::collection::vec(number, if has_bias { n } else { 0 }),
        )
            .prop_map(move |(x, weight, bias)| Case { rows, k, n, group, x, weight, bias })
    })
}

fn bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

impl Case {
    /// The weight on `isa`, and what it stands for.
    fn packed(&self, isa: Isa) -> (PackedWeightOnly, Vec<f64>) {
        let (n, k) = (self.n, self.k);
        match self.group.filter(|_| k > 0) {
            None => {
                let (q, scales) = round_channels(&self.weight, Channels { outer: 1, channels: n, inner: k });
                let value = |i: usize| f64::from(q[i]) * f64::from(scales[i / k]);
                let weight = PackedWeightOnly::channels(isa, &q, n, k, &scales).unwrap();
                let mut again = vec![1; q.len()];
                weight.unpack_into(&mut again);
                assert!(again.iter().zip(&q).all(|(a, b)| *a as i8 == *b), "unpacked as packed");
                (weight, (0..n * k).map(value).collect())
            }
            Some(group) => {
                let rounded = round_groups(&self.weight, k, group);
                let value = |i: usize| {
                    let (row, column) = (i / k, i % k);
                    let byte = rounded.nibbles[row * (k / 2) + column % (k / 2)];
                    let q = if column < k / 2 { byte & 15 } else { byte >> 4 };
                    let place = row * (k / group) + column / group;
                    bf16(rounded.scales[place]) * f64::from(q) + bf16(rounded.offsets[place])
                };
                let weight = PackedWeightOnly::groups(isa, &rounded, n, k, group).unwrap();
                let mut again = vec![1; rounded.nibbles.len()];
                weight.unpack_into(&mut again);
                assert_eq!(again, rounded.nibbles);
                (weight, (0..n * k).map(value).collect())
            }
        }
    }

    fn run(&self, path: Path, threads: &dyn Parallel) -> Vec<f32> {
        let (weight, _) = self.packed(path.isa);
        let (x, bias) = (path.input(&self.x), path.input(&self.bias));
        let mut y = path.output::<f32>(self.rows * self.n);
        let mut scratch = path.output::<f32>(weight.scratch_len(self.rows, threads.threads()));
        weight.run(&x, self.rows, &bias, &mut y, &mut scratch, threads).unwrap();
        y.to_vec()
    }

    /// The product in f64, and the bound of the rounding errors of one in f32.
    fn exact(&self) -> Vec<(f64, f64)> {
        let (n, k) = (self.n, self.k);
        let (_, weight) = self.packed(Isa::Scalar);
        let sum = |place: usize| {
            let (row, output) = (place / n, place % n);
            let bias = self.bias.get(output).map_or(0.0, |bias| f64::from(*bias));
            let products = (0..k).map(|i| f64::from(self.x[row * k + i]) * weight[output * k + i]);
            let (sum, size) = products.fold((bias, bias.abs()), |(sum, size), p| (sum + p, size + p.abs()));
            // Of 4 bits, sums of x are multiplied by offsets: their products are larger than those with the weight.
            let size = size + if self.group.is_some() { 4.0 * k as f64 } else { 0.0 };
            (sum, (k as f64 + 8.0) * f64::from(f32::EPSILON) * size + 1e-30)
        };
        (0..self.rows * n).map(sum).collect()
    }

    fn check(&self, y: &[f32], what: &str) {
        for (place, (y, (exact, bound))) in y.iter().zip(self.exact()).enumerate() {
            let error = (f64::from(*y) - exact).abs();
            assert!(error <= bound, "{what}, output {place}: {y} instead of {exact} (off by {error:e}, not {bound:e})");
        }
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_path_is_within_float_rounding(case in case()) {
        for isa in Isa::available() {
            for edge in [Edge::Start, Edge::End] {
                let y = case.run(Path { isa, edge }, &Serial);
                case.check(&y, isa.name());
            }
        }
    }
}

#[test]
fn threads_share_the_outputs() {
    let noise = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
    for (rows, group) in [(1, None), (3, Some(32)), (40, None), (40, Some(64))] {
        let (k, n) = (512, 1000);
        let case =
            Case { rows, k, n, group, x: noise(rows * k, 0.37), weight: noise(n * k, 0.71), bias: noise(n, 0.1) };
        let path = Path { isa: Isa::current(), edge: Edge::End };
        let shared = case.run(path, &Threads(3));
        assert_eq!(shared, case.run(path, &Serial), "{rows} rows, {group:?}: which thread computes it changes nothing");
        case.check(&shared, "threads");
    }
}

#[test]
fn four_bits_are_as_good_as_they_should_be() {
    // A normal distribution, as weights have it: rounding to 16 levels of a group's range leaves about 20 dB.
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let weight: Vec<f32> =
        (0..64 * 256).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32 * 0.05).collect();
    let case = |group| Case { rows: 0, k: 256, n: 64, group, x: Vec::new(), weight: weight.clone(), bias: Vec::new() };
    let sqnr = |group| {
        let (_, kept) = case(group).packed(Isa::Scalar);
        let signal: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
        let noise: f64 = weight.iter().zip(&kept).map(|(w, k)| (f64::from(*w) - k).powi(2)).sum();
        10.0 * (signal / noise).log10()
    };
    let [eight, small, large] = [None, Some(32), Some(128)].map(sqnr);
    println!("8 bits {eight:.1} dB; 4 bits in groups of 32 {small:.1} dB, of 128 {large:.1} dB");
    assert!(eight > 40.0 && small > 21.0 && large > 18.5 && small > large, "{eight} {small} {large}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let refusal = |result: jitquant_kernels::Result<PackedWeightOnly>| result.err().unwrap().to_string();
    let isa = Isa::Scalar;
    assert!(refusal(PackedWeightOnly::channels(isa, &[1; 5], 2, 3, &[1.0; 2])).contains("6 are accepted"));
    assert!(refusal(PackedWeightOnly::channels(isa, &[1; 6], 2, 3, &[1.0])).contains("its scales"));
    let rounded = round_groups(&[0.5; 64], 32, 32);
    assert!(refusal(PackedWeightOnly::groups(isa, &rounded, 2, 32, 24)).contains("whole groups"));
    assert!(refusal(PackedWeightOnly::groups(isa, &rounded, 3, 32, 32)).contains("bytes"));
    let weight = PackedWeightOnly::groups(isa, &rounded, 2, 32, 32).unwrap();
    let mut y = [0.0; 2];
    let mut run = |x: &[f32], bias: &[f32], scratch: usize| {
        weight.run(x, 1, bias, &mut y, &mut vec![0.0; scratch], &Serial).map_err(|e| e.to_string())
    };
    assert!(run(&[0.0; 31], &[], 1).unwrap_err().contains("input"));
    assert!(run(&[0.0; 32], &[0.0], 1).unwrap_err().contains("bias"));
    assert!(run(&[0.0; 32], &[], 0).unwrap_err().contains("scratch"));
    run(&[0.0; 32], &[], 1).unwrap();
}

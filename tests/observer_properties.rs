//! What holds for any input: every instruction set gives the bits of the plain definition, and the order in which
//! values and states come does not matter.

use jitquant::kernel::Isa;
use jitquant::observer::paths::{BinCounts, Bins, Extremes, extremes, extremes_per_channel, least_error_bins};
use jitquant::observer::{
    ChannelLayout, Histogram, QRange, UNSET, merge_min_max, min_max, min_max_in_parts, min_max_per_channel,
    observe_min_max, observe_min_max_per_channel, qparams,
};
use proptest::collection::vec;
use proptest::num::f32::{INFINITE, NEGATIVE, NORMAL, POSITIVE, QUIET_NAN, SUBNORMAL, ZERO};
use proptest::prelude::*;
use proptest::sample::Index;

fn finite() -> impl Strategy<Value = f32> {
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

/// Values of ordinary size, with zeros as after a relu.
fn activation() -> impl Strategy<Value = f32> {
    prop_oneof![3 => -8.0f32..8.0, 1 => Just(0.0f32)]
}

fn paths() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|&isa| isa != Isa::Scalar)
}

/// Smallest and largest by IEEE's total order.
fn by_total_order(x: &[f32]) -> (u32, u32) {
    let min = x.iter().copied().min_by(f32::total_cmp).expect("not empty");
    let max = x.iter().copied().max_by(f32::total_cmp).expect("not empty");
    (min.to_bits(), max.to_bits())
}

fn bits((min, max): (f32, f32)) -> (u32, u32) {
    (min.to_bits(), max.to_bits())
}

fn observed(batches: &[&[f32]], bins: usize) -> (Vec<f32>, f32, f32) {
    let (mut min, mut max) = UNSET;
    let mut counts = vec![0.0; bins];
    for batch in batches {
        Histogram::new(&mut counts, &mut min, &mut max).observe(batch).expect("finite");
    }
    (counts, min, max)
}

fn on_threads(parts: usize, task: &(dyn Fn(usize) + Sync)) {
    std::thread::scope(|scope| (0..parts).rev().for_each(|part| drop(scope.spawn(move || task(part)))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn min_max_is_that_of_the_total_order(x in vec(finite(), 1..600)) {
        for isa in Isa::available() {
            prop_assert_eq!(bits(extremes(isa, &x).min_max()), by_total_order(&x), "{}", isa.name());
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_anywhere(
        mut x in vec(finite(), 1..600),
        at in any::<Index>(),
        bad in INFINITE | QUIET_NAN | POSITIVE | NEGATIVE,
    ) {
        let at = at.index(x.len());
        x[at] = bad;
        for isa in Isa::available() {
            prop_assert_eq!(extremes(isa, &x).is_finite(), bad.is_finite(), "{}", isa.name());
        }
        match min_max(&x) {
            Ok(_) => prop_assert!(bad.is_finite()),
            Err(error) => prop_assert_eq!((error.first, error.nan + error.infinite), (at, 1)),
        }
    }

    #[test]
    fn each_channel_has_the_range_of_its_values(
        (layout, x) in (1usize..5, 1usize..7, 1usize..80).prop_flat_map(|(outer, channels, inner)| {
            let layout = ChannelLayout { outer, channels, inner };
            (Just(layout), vec(finite(), layout.len()))
        }),
    ) {
        let values_of = |channel: usize| -> Vec<f32> {
            let rows = x.chunks(layout.inner).enumerate();
            rows.filter(|(row, _)| row % layout.channels == channel).flat_map(|(_, row)| row.to_vec()).collect()
        };
        for isa in Isa::available() {
            let mut found = vec![Extremes::NONE; layout.channels];
            extremes_per_channel(isa, &x, layout, &mut found);
            for (channel, found) in found.iter().enumerate() {
                prop_assert_eq!(bits(found.min_max()), by_total_order(&values_of(channel)), "{}", isa.name());
            }
        }
    }

    #[test]
    fn ranges_merge_in_any_order_and_grouping(x in vec(activation(), 3..200), cuts in any::<[Index; 2]>()) {
        let mut cuts = cuts.map(|cut| cut.index(x.len()));
        cuts.sort();
        let parts = [&x[..cuts[0]], &x[cuts[0]..cuts[1]], &x[cuts[1]..]];
        let states = parts.map(|part| {
            let (mut min, mut max) = UNSET;
            observe_min_max(part, &mut min, &mut max).expect("finite");
            (min, max)
        });
        let merged = |order: [usize; 3]| {
            let (mut min, mut max) = UNSET;
            for state in order.map(|part| states[part]) {
                merge_min_max(
                    std::slice::from_mut(&mut min), std::slice::from_mut(&mut max), &[state.0], &[state.1],
                );
            }
            (min, max)
        };
        let whole = min_max(&x).expect("finite").expect("not empty");
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]] {
            prop_assert_eq!(merged(order), whole);
        }
    }

    #[test]
    fn batches_of_channels_are_as_one_tensor(x in vec(activation(), 6 * 4 * 5)) {
        let whole = ChannelLayout { outer: 6, channels: 4, inner: 5 };
        let (mut whole_min, mut whole_max) = ([0.0; 4], [0.0; 4]);
        min_max_per_channel(&x, whole, &mut whole_min, &mut whole_max).expect("finite");
        let (mut min, mut max) = ([UNSET.0; 4], [UNSET.1; 4]);
        let image = ChannelLayout { outer: 1, ..whole };
        for batch in x.chunks(image.len()) {
            observe_min_max_per_channel(batch, image, &mut min, &mut max).expect("finite");
        }
        prop_assert_eq!((min, max), (whole_min, whole_max));
    }

    #[test]
    fn every_path_bins_as_the_scalar_one(x in vec(activation(), 1..1500), bins in 1usize..3000) {
        let (min, max) = min_max(&x).expect("finite").expect("not empty");
        let edges = Bins::new(min, max, bins);
        let counted = |isa| {
            let mut counts = BinCounts::new(bins);
            assert!(edges.count_into(isa, &x, &mut counts), "all values are in the range");
            let mut histogram = vec![0.0; bins];
            BinCounts::add_to(&[counts], &mut histogram);
            histogram
        };
        let scalar = counted(Isa::Scalar);
        let mut expected = vec![0.0; bins];
        x.iter().for_each(|&value| expected[edges.bin_of(value)] += 1.0);
        prop_assert_eq!(&scalar, &expected);
        for isa in paths() {
            prop_assert_eq!(&scalar, &counted(isa), "{}", isa.name());
        }
    }

    #[test]
    fn a_value_outside_the_bins_is_noticed(
        mut x in vec(-1.0f32..1.0, 1..1000),
        at in any::<Index>(),
        outside in prop_oneof![Just(f32::NAN), Just(1.0f32.next_up()), Just(-1.5), Just(f32::INFINITY)],
    ) {
        let at = at.index(x.len());
        x[at] = outside;
        for isa in Isa::available() {
            let counts = &mut BinCounts::new(64);
            prop_assert!(!Bins::new(-1.0, 1.0, 64).count_into(isa, &x, counts), "{}", isa.name());
        }
    }

    #[test]
    fn every_path_finds_the_best_range_of_the_scalar_one(x in vec(activation(), 1..2000), bins in 2usize..600) {
        let (counts, min, max) = observed(&[&x], bins);
        prop_assume!(min < max);
        let width = f64::from(max) - f64::from(min);
        let scalar = least_error_bins(Isa::Scalar, &counts, width);
        for isa in paths() {
            prop_assert_eq!(scalar, least_error_bins(isa, &counts, width), "{}", isa.name());
        }
    }

    #[test]
    fn the_order_of_values_does_not_matter_to_a_histogram(x in vec(activation(), 1..800), turn in any::<Index>()) {
        let mut turned = x.clone();
        turned.rotate_left(turn.index(x.len()));
        prop_assert_eq!(observed(&[&x], 256), observed(&[&turned], 256));
    }

    #[test]
    fn a_histogram_loses_no_value_as_it_grows(batches in vec(vec(activation(), 1..200), 1..6), factor in 0.01f32..9.0) {
        let batches: Vec<Vec<f32>> = batches
            .into_iter()
            .enumerate()
            .map(|(index, batch)| batch.into_iter().map(|value| value * factor.powi(index as i32)).collect())
            .collect();
        let (counts, min, max) = observed(&batches.iter().map(Vec::as_slice).collect::<Vec<_>>(), 128);
        let all = batches.concat();
        // Each growth divides counts by 16 before it adds them up again.
        prop_assert!((counts.iter().sum::<f32>() - all.len() as f32).abs() < 1e-3, "{counts:?}");
        prop_assert_eq!((min, max), min_max(&all).expect("finite").expect("not empty"));
    }

    #[test]
    fn merged_histograms_are_within_a_bin_of_one_over_all(
        x in vec(activation(), 1..400),
        y in vec(activation(), 1..400),
    ) {
        let (mut counts, mut min, mut max) = observed(&[&x], 64);
        let (mut other_counts, mut other_min, mut other_max) = observed(&[&y], 64);
        Histogram::new(&mut counts, &mut min, &mut max)
            .merge(&Histogram::new(&mut other_counts, &mut other_min, &mut other_max));
        let all = [x, y].concat();
        let (expected, expected_min, expected_max) = observed(&[&all], 64);
        prop_assert_eq!((min, max), (expected_min, expected_max));
        prop_assert_eq!(counts.iter().sum::<f32>(), all.len() as f32);
        // What lies below an edge according to the merged counts, lies below the next edge in truth, and conversely.
        let below = |counts: &[f32]| -> Vec<f32> {
            counts.iter().scan(0.0, |sum, count| { *sum += count; Some(*sum) }).collect()
        };
        let (merged, truth) = (below(&counts), below(&expected));
        for bin in 0..63 {
            prop_assert!(merged[bin] <= truth[bin + 1], "bin {bin}: {merged:?} {truth:?}");
            prop_assert!(truth[bin] <= merged[bin + 1], "bin {bin}: {merged:?} {truth:?}");
        }
    }

    #[test]
    fn parts_on_threads_give_the_same(x in vec(activation(), 1..2000), repeats in 1usize..90, threads in 0usize..9) {
        let x = x.repeat(repeats);
        prop_assert_eq!(min_max_in_parts(&x, threads, &on_threads), min_max(&x));
        let (mut min, mut max) = UNSET;
        let mut counts = vec![0.0; 256];
        let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
        histogram.observe_in_parts(&x, threads, &on_threads).expect("finite");
        histogram.observe_in_parts(&x[x.len() / 2..], threads, &on_threads).expect("finite");
        prop_assert_eq!((counts, min, max), observed(&[&x, &x[x.len() / 2..]], 256));
    }

    #[test]
    fn the_best_range_scales_with_the_values(x in vec(activation(), 2..600), exponent in -100i32..100) {
        let scale = 2f32.powi(exponent);
        let scaled: Vec<f32> = x.iter().map(|value| value * scale).collect();
        // Values next to zero would lose bits.
        prop_assume!(x.iter().all(|&value| value == 0.0 || value.abs() > 1e-4));
        let best = |x: &[f32]| {
            let (mut counts, mut min, mut max) = observed(&[x], 256);
            Histogram::new(&mut counts, &mut min, &mut max).best_range().expect("observed")
        };
        let (low, high) = best(&x);
        prop_assume!(min_max(&x).expect("finite").is_some_and(|(min, max)| min < max));
        prop_assert_eq!(best(&scaled), (low * scale, high * scale));
    }

    #[test]
    fn a_quantized_range_holds_zero_and_both_ends(a in -1e6f32..1e6, b in -1e6f32..1e6) {
        let (min, max) = (a.min(b), a.max(b));
        for range in [QRange::U8_AFFINE, QRange::I8_SYMMETRIC] {
            let q = qparams(min, max, &range).expect("qparams");
            let (quant_min, quant_max) = range.bounds().expect("bounds");
            prop_assert!((quant_min..=quant_max).contains(&q.zero_point));
            for end in [min, max] {
                let quantized = (f64::from(end) / f64::from(q.scale)).round_ties_even() as i32 + q.zero_point;
                prop_assert!((quant_min - 1..=quant_max + 1).contains(&quantized), "{end} becomes {quantized}");
            }
        }
    }
}

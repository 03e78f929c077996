//! What observers refuse, what they ignore, and that a refusal leaves their state as it was.

use jitquant::observer::{
    ChannelLayout, Dtype, Histogram, NotFinite, QParams, QParamsError, QRange, Scheme, UNSET, merge_min_max, min_max,
    min_max_per_channel, observe_min_max, observe_min_max_per_channel, observe_moving_average,
    observe_moving_average_per_channel, qparams, qparams_per_channel,
};

const BAD: [f32; 5] = [1.0, f32::NAN, -9.0, f32::INFINITY, f32::NEG_INFINITY];
const FOUND: NotFinite = NotFinite { nan: 1, infinite: 2, first: 1, len: 5 };

#[test]
fn nan_and_infinity_are_counted_and_located() {
    assert_eq!(min_max(&BAD), Err(FOUND));
    assert_eq!(FOUND.to_string(), "1 NaN and 2 infinite of 5 values, the first at flat index 1");
    // A negative NaN, and each kind alone.
    for bad in [-f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 31, 32, 99] {
            let mut x = vec![0.5; 100];
            x[at] = bad;
            assert_eq!(min_max(&x).expect_err("refused").first, at, "{bad}");
        }
    }
}

#[test]
fn a_refused_tensor_changes_no_state() {
    let (mut min, mut max) = (-1.0, 2.0);
    assert_eq!(observe_min_max(&BAD, &mut min, &mut max), Err(FOUND));
    assert_eq!(observe_moving_average(&BAD, 0.1, &mut min, &mut max), Err(FOUND));
    assert_eq!((min, max), (-1.0, 2.0));

    // Only the last channel is bad: the first must not have been updated either.
    let layout = ChannelLayout { outer: 1, channels: 5, inner: 1 };
    let (mut mins, mut maxs) = ([0.0; 5], [0.5; 5]);
    let x = [-7.0, 7.0, 7.0, 7.0, f32::NAN];
    assert!(observe_min_max_per_channel(&x, layout, &mut mins, &mut maxs).is_err());
    assert!(observe_moving_average_per_channel(&x, layout, 0.1, &mut mins, &mut maxs).is_err());
    assert!(min_max_per_channel(&x, layout, &mut mins, &mut maxs).is_err());
    assert_eq!((mins, maxs), ([0.0; 5], [0.5; 5]));

    let mut counts = [0.0; 4];
    let (mut min, mut max) = UNSET;
    let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
    assert_eq!(histogram.observe(&BAD), Err(FOUND));
    assert!(histogram.is_unset());
    histogram.observe(&[0.0, 4.0]).expect("finite");
    assert_eq!(histogram.observe(&BAD), Err(FOUND));
    assert_eq!((counts, min, max), ([1.0, 0.0, 0.0, 1.0], 0.0, 4.0));
}

#[test]
fn empty_tensors_are_ignored() {
    assert_eq!(min_max(&[]), Ok(None));
    let (mut min, mut max) = UNSET;
    observe_min_max(&[], &mut min, &mut max).expect("ignored");
    observe_moving_average(&[], 0.1, &mut min, &mut max).expect("ignored");
    assert_eq!((min, max), UNSET);

    for layout in [
        ChannelLayout { outer: 0, channels: 2, inner: 3 },
        ChannelLayout { outer: 1, channels: 2, inner: 0 },
        ChannelLayout { outer: 1, channels: 0, inner: 3 },
    ] {
        let (mut mins, mut maxs) = (vec![-1.0; layout.channels], vec![1.0; layout.channels]);
        observe_min_max_per_channel(&[], layout, &mut mins, &mut maxs).expect("ignored");
        observe_moving_average_per_channel(&[], layout, 0.1, &mut mins, &mut maxs).expect("ignored");
        assert!(mins.iter().all(|&min| min == -1.0) && maxs.iter().all(|&max| max == 1.0));
        min_max_per_channel(&[], layout, &mut mins, &mut maxs).expect("ignored");
        assert!(mins.iter().all(|&min| min == UNSET.0) && maxs.iter().all(|&max| max == UNSET.1));
    }

    let mut counts = [0.0; 4];
    let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
    histogram.observe(&[]).expect("ignored");
    assert!(histogram.is_unset());
    assert_eq!(histogram.best_range(), None);
    histogram.observe(&[1.0, 2.0]).expect("finite");
    histogram.observe(&[]).expect("ignored");
    assert_eq!((counts, min, max), ([1.0, 0.0, 0.0, 1.0], 1.0, 2.0));
}

#[test]
fn a_state_that_saw_nothing_merges_without_effect() {
    let (mut min, mut max) = ([-1.0, 0.0], [2.0, 5.0]);
    merge_min_max(&mut min, &mut max, &[UNSET.0; 2], &[UNSET.1; 2]);
    assert_eq!((min, max), ([-1.0, 0.0], [2.0, 5.0]));

    let (mut counts, mut seen_min, mut seen_max) = ([3.0, 1.0], 0.0, 1.0);
    let (mut none, (mut unset_min, mut unset_max)) = ([0.0; 2], UNSET);
    let mut seen = Histogram::new(&mut counts, &mut seen_min, &mut seen_max);
    let mut unset = Histogram::new(&mut none, &mut unset_min, &mut unset_max);
    seen.merge(&unset);
    unset.merge(&seen);
    assert_eq!((counts, seen_min, seen_max), ([3.0, 1.0], 0.0, 1.0));
    assert_eq!((none, unset_min, unset_max), ([3.0, 1.0], 0.0, 1.0));
}

#[test]
fn ranges_at_the_ends_of_f32_are_observed() {
    let mut counts = vec![0.0; Histogram::BINS];
    let (mut min, mut max) = UNSET;
    let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
    for batch in [[1e-45, 1e-45], [0.0, 1e-40], [f32::MAX, f32::MAX], [f32::MIN, 0.0]] {
        histogram.observe(&batch).expect("finite");
    }
    let (low, high) = histogram.best_range().expect("observed");
    assert!(low.is_finite() && high.is_finite() && low <= high, "{low} {high}");
    assert_eq!(counts.iter().sum::<f32>(), 8.0);
    assert_eq!(qparams(min, max, &QRange::U8_AFFINE), Err(QParamsError::TooWide { min, max }));
}

#[test]
fn a_histogram_with_a_broken_range_starts_anew() {
    for (mut min, mut max) in [(f32::NAN, 1.0), (f32::NEG_INFINITY, 1.0), (0.0, f32::NAN), (1.0, 0.0), UNSET] {
        let mut counts = [9.0; 2];
        let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
        assert!(histogram.is_unset());
        assert_eq!(histogram.best_range(), None);
        histogram.observe(&[0.0, 3.0]).expect("finite");
        assert_eq!((counts, min, max), ([1.0, 1.0], 0.0, 3.0));
    }
}

#[test]
fn qparams_need_a_range_in_order() {
    let u8 = QRange::U8_AFFINE;
    assert_eq!(qparams(UNSET.0, UNSET.1, &u8), Err(QParamsError::Unobserved));
    assert_eq!(qparams(1.0, -1.0, &u8), Err(QParamsError::Inverted { min: 1.0, max: -1.0 }));
    for (min, max) in [(f32::NAN, 1.0), (0.0, f32::NAN)] {
        assert!(matches!(qparams(min, max, &u8), Err(QParamsError::Inverted { .. })));
    }
    for (min, max) in [(0.0, f32::INFINITY), (f32::NEG_INFINITY, 0.0), (f32::MIN, f32::MAX)] {
        assert_eq!(qparams(min, max, &u8), Err(QParamsError::TooWide { min, max }));
    }
    let (mut scale, mut zero_point) = ([0.0; 2], [0; 3]);
    assert_eq!(
        qparams_per_channel(&[0.0; 2], &[1.0; 2], &QRange::I8_PER_CHANNEL, &mut scale, &mut zero_point),
        Err(QParamsError::Channels { ranges: 2, room: 3 })
    );
}

#[test]
fn a_zero_point_between_two_values_is_the_even_one() {
    let q = |min, max| qparams(min, max, &QRange::U8_AFFINE).expect("qparams");
    assert_eq!(q(-0.5, 254.5), QParams { scale: 1.0, zero_point: 0 });
    assert_eq!(q(-1.5, 253.5), QParams { scale: 1.0, zero_point: 2 });
}

#[test]
fn contradictory_options_are_refused() {
    let u8 = QRange::U8_AFFINE;
    let bounded = |dtype, quant_min, quant_max| QRange {
        quant_min: Some(quant_min),
        quant_max: Some(quant_max),
        ..QRange::new(dtype, Scheme::PerTensorAffine)
    };
    assert_eq!(QRange { quant_min: Some(0), ..u8 }.bounds(), Err(QParamsError::OneBound));
    assert_eq!(QRange { quant_max: Some(9), ..u8 }.bounds(), Err(QParamsError::OneBound));
    for (quant_min, quant_max) in [(1, 9), (-9, -1), (0, 0)] {
        let refused = QParamsError::WithoutZero { quant_min, quant_max };
        assert_eq!(bounded(Dtype::I8, quant_min, quant_max).bounds(), Err(refused));
    }
    for (dtype, quant_min, quant_max) in [(Dtype::U8, -1, 255), (Dtype::U8, 0, 256), (Dtype::I8, 0, 255)] {
        assert!(matches!(bounded(dtype, quant_min, quant_max).bounds(), Err(QParamsError::OutsideDtype { .. })));
    }
    for eps in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(QRange { eps, ..u8 }.bounds(), Err(QParamsError::Eps(_))));
    }
    let symmetric = QRange::new(Dtype::U8, Scheme::PerTensorSymmetric);
    assert_eq!(QRange { reduce_range: true, ..symmetric }.bounds(), Err(QParamsError::ReducedSymmetricU8));
    assert_eq!(qparams(0.0, 1.0, &symmetric), Ok(QParams { scale: 1.0 / 127.5, zero_point: 128 }));
    let message = bounded(Dtype::U8, -1, 255).bounds().expect_err("refused").to_string();
    assert_eq!(message, "quant_min -1 and quant_max 255: U8 has 0 to 255");
}

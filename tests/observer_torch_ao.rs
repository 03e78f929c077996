//! The observers against values recorded from torch.ao's (`scripts/record_observers.py`).
//!
//! Ranges, counts, scales and zero points must be equal. The search of the histogram observer compares sums of 2048
//! errors that torch rounds in another order; on these inputs it still ends at the same bins.

mod observer_inputs;

use jitquant::observer::{
    ChannelLayout, Dtype, Histogram, QRange, Scheme, UNSET, observe_min_max, observe_min_max_per_channel,
    observe_moving_average, observe_moving_average_per_channel, qparams, qparams_per_channel,
};
use observer_inputs::{batch, batches, factors};
use serde_json::Value;

const AVERAGING_CONSTANT: f32 = 0.1;

/// The recorded cases of an observer.
fn cases(observer: &str) -> Vec<Value> {
    let record: Value = serde_json::from_str(include_str!("data/observers/torch_ao.json")).expect("JSON");
    record[observer].as_array().expect("a list of cases").clone()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"))
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number")) as f32
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list")).iter().map(number).collect()
}

/// The options that the script names, for example `i8 symmetric narrow`.
fn range_of(setting: &str, per_channel: bool) -> QRange {
    let mut words = setting.split(' ');
    let dtype = match words.next() {
        Some("u8") => Dtype::U8,
        Some("i8") => Dtype::I8,
        other => panic!("dtype {other:?}"),
    };
    let scheme = match (words.next(), per_channel) {
        (Some("affine"), false) => Scheme::PerTensorAffine,
        (Some("symmetric"), false) => Scheme::PerTensorSymmetric,
        (Some("affine"), true) => Scheme::PerChannelAffine,
        (Some("symmetric"), true) => Scheme::PerChannelSymmetric,
        other => panic!("scheme {other:?}"),
    };
    let range = QRange::new(dtype, scheme);
    let bounded = |quant_min, quant_max| QRange { quant_min: Some(quant_min), quant_max: Some(quant_max), ..range };
    match (words.next(), dtype) {
        (None, _) => range,
        (Some("reduce_range"), _) => QRange { reduce_range: true, ..range },
        (Some("narrow"), Dtype::I8) => bounded(-127, 127),
        (Some("narrow"), Dtype::U8) => bounded(0, 100),
        (Some("narrow_reduced"), Dtype::I8) => QRange { reduce_range: true, ..bounded(-127, 127) },
        (Some("narrow_reduced"), Dtype::U8) => QRange { reduce_range: true, ..bounded(0, 127) },
        (Some("eps"), _) => QRange { eps: 0.02, ..range },
        (Some(other), _) => panic!("setting {other}"),
    }
}

/// Compares the qparams of every recorded setting; returns how many there were.
fn check_qparams(case: &Value, min: &[f32], max: &[f32], per_channel: bool) -> usize {
    let Some(settings) = case["qparams"].as_object() else { return 0 };
    for (setting, expected) in settings {
        let (mut scale, mut zero_point) = (vec![0.0; min.len()], vec![0; min.len()]);
        let range = range_of(setting, per_channel);
        qparams_per_channel(min, max, &range, &mut scale, &mut zero_point).expect("qparams");
        assert_eq!(scale, numbers(&expected[0]), "scale, {setting} of {case}");
        let expected: Vec<i32> = numbers(&expected[1]).into_iter().map(|zero_point| zero_point as i32).collect();
        assert_eq!(zero_point, expected, "zero point, {setting} of {case}");
    }
    settings.len()
}

#[test]
fn min_max_observers() {
    let mut settings = 0;
    for (name, averaging_constant) in [("min_max", None), ("moving_average", Some(AVERAGING_CONSTANT))] {
        for case in cases(name) {
            let (mut min, mut max) = UNSET;
            for batch in batches(text(&case, "distribution"), text(&case, "plan")) {
                match averaging_constant {
                    None => observe_min_max(&batch, &mut min, &mut max),
                    Some(constant) => observe_moving_average(&batch, constant, &mut min, &mut max),
                }
                .expect("finite");
            }
            assert_eq!(vec![min, max], numbers(&case["range"]), "{name} {case}");
            settings += check_qparams(&case, &[min], &[max], false);
        }
    }
    assert!(settings > 500, "only {settings} settings compared");
}

#[test]
fn per_channel_observers() {
    let mut settings = 0;
    for (name, averaging_constant) in [("per_channel", None), ("moving_average_per_channel", Some(AVERAGING_CONSTANT))]
    {
        for case in cases(name) {
            let shape: Vec<i64> = numbers(&case["shape"]).into_iter().map(|size| size as i64).collect();
            let layout = ChannelLayout::of(&shape, number(&case["axis"]) as i64).expect("an axis");
            let (mut min, mut max) = (vec![UNSET.0; layout.channels], vec![UNSET.1; layout.channels]);
            for (index, &factor) in factors("grows").iter().enumerate() {
                let batch = batch(text(&case, "distribution"), index, layout.len(), factor);
                match averaging_constant {
                    None => observe_min_max_per_channel(&batch, layout, &mut min, &mut max),
                    Some(constant) => observe_moving_average_per_channel(&batch, layout, constant, &mut min, &mut max),
                }
                .expect("finite");
            }
            assert_eq!(min, numbers(&case["min"]), "{name} {case}");
            assert_eq!(max, numbers(&case["max"]), "{name} {case}");
            settings += check_qparams(&case, &min, &max, true);
        }
    }
    assert!(settings > 100, "only {settings} settings compared");
}

/// The checksum of the script: differs where counts are in other bins, exact for multiples of 1/16.
fn checksum(counts: &[f32]) -> f64 {
    counts.iter().enumerate().map(|(bin, &count)| f64::from(count) * (bin * 7919 % 1009 + 1) as f64).sum()
}

#[test]
fn histogram_observer() {
    let mut clipped = 0;
    let cases = cases("histogram");
    for case in &cases {
        let bins = number(&case["bins"]) as usize;
        let (mut min, mut max) = UNSET;
        let mut counts = vec![0.0; bins];
        let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
        for batch in batches(text(case, "distribution"), text(case, "plan")) {
            histogram.observe(&batch).expect("finite");
        }
        let (low, high) = histogram.best_range().expect("observed");
        assert_eq!(vec![min, max], numbers(&case["range"]), "range of {case}");
        assert_eq!(counts.iter().sum::<f32>(), number(&case["total"]), "total of {case}");
        let expected = case["checksum"].as_f64().expect("a checksum");
        assert_eq!(checksum(&counts), expected, "counts of {case}");

        assert_eq!(vec![low, high], numbers(&case["best"]), "best range of {case}");
        let q = qparams(low, high, &QRange::U8_AFFINE).expect("qparams");
        assert_eq!(q.scale, number(&case["scale"]), "scale of {case}");
        assert_eq!(q.zero_point, number(&case["zero_point"]) as i32, "zero point of {case}");
        clipped += usize::from(low > min || high < max);
    }
    assert!(clipped * 2 > cases.len(), "the search left {clipped} of {} ranges as they were", cases.len());
}

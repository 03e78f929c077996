//! Observers as TorchScript modules.

#![cfg(feature = "torch")]

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::observer::{Dtype, ObserverConfig, ObserverKind, QRange, qparams};

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, &[values.len() as i64]).unwrap()
}

fn calculated(observer: &Module) -> (Vec<f32>, Vec<i32>) {
    let IValue::Tuple(items) = observer.call::<IValue>("calculate_qparams", &[]).unwrap() else { panic!("a tuple") };
    (items[0].as_tensor().unwrap().to_vec().unwrap(), items[1].as_tensor().unwrap().to_vec().unwrap())
}

#[test]
fn every_kind_observes_and_returns_its_input() {
    let x = Tensor::from_slice(&[-1.0f32, 0.5, 3.0, 0.25], &[2, 2]).unwrap();
    for kind in ObserverKind::ALL {
        let observer = ObserverConfig::new(kind).module().unwrap();
        let y = observer.forward(&[&x].map(Clone::clone)).unwrap();
        assert!(y.as_tensor().unwrap().equal(&x).unwrap(), "{}", kind.name());
        let (scale, zero_point) = calculated(&observer);
        assert_eq!(scale.len(), zero_point.len());
        match kind {
            ObserverKind::MinMax => {
                let q = qparams(-1.0, 3.0, &QRange::U8_AFFINE).unwrap();
                assert_eq!((scale, zero_point), (vec![q.scale], vec![q.zero_point]));
            }
            ObserverKind::PerChannelMinMax => {
                let first = qparams(-1.0, 0.5, &QRange::U8_AFFINE).unwrap();
                let second = qparams(0.25, 3.0, &QRange::U8_AFFINE).unwrap();
                assert_eq!(scale, [first.scale, second.scale]);
                assert_eq!(zero_point, [first.zero_point, second.zero_point]);
            }
            _ => assert!(scale.iter().all(|s| *s > 0.0)),
        }
    }
}

#[test]
fn a_half_calibrated_observer_is_saved_and_goes_on() {
    for kind in [ObserverKind::MinMax, ObserverKind::Histogram, ObserverKind::MovingAverageMinMax] {
        let whole = ObserverConfig::new(kind).module().unwrap();
        let half = ObserverConfig::new(kind).module().unwrap();
        let (first, second) = (tensor(&[0.0, 1.0, 2.0]), tensor(&[-4.0, 1.0, 5.0]));
        half.forward(std::slice::from_ref(&first)).unwrap();
        let half = Module::load_bytes(&half.save_bytes().unwrap()).unwrap();
        half.forward(std::slice::from_ref(&second)).unwrap();
        whole.forward(&[first]).unwrap();
        whole.forward(&[second]).unwrap();
        assert_eq!(calculated(&half), calculated(&whole), "{}", kind.name());
    }
}

#[test]
fn what_cannot_be_observed_is_refused_by_name_and_changes_nothing() {
    for kind in ObserverKind::ALL.into_iter().filter(|kind| *kind != ObserverKind::Placeholder) {
        let observer = ObserverConfig::new(kind).module().unwrap();
        observer.set_attribute("observed", &"features.3: %out".into()).unwrap();
        observer.forward(&[tensor(&[1.0, 2.0])]).unwrap();
        let before = calculated(&observer);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refusal = observer.forward(&[tensor(&[0.5, bad])]).unwrap_err().to_string();
            assert!(refusal.contains("features.3: %out") && refusal.contains("index 1"), "{refusal}");
        }
        observer.forward(&[tensor(&[])]).unwrap();
        assert_eq!(calculated(&observer), before, "{}", kind.name());
    }
    let clash = ObserverConfig { quant_min: Some(3), ..ObserverConfig::new(ObserverKind::MinMax) };
    assert!(clash.module().unwrap_err().to_string().contains("quant_min"));
}

#[test]
fn per_channel_observers_check_the_number_of_channels() {
    let weights = ObserverConfig { dtype: Dtype::I8, ..ObserverConfig::new(ObserverKind::PerChannelMinMax) };
    let observer = weights.module().unwrap();
    observer.forward(&[Tensor::from_slice(&[1.0f32; 6], &[3, 2]).unwrap()]).unwrap();
    let refusal = observer.forward(&[Tensor::from_slice(&[1.0f32; 4], &[2, 2]).unwrap()]).unwrap_err().to_string();
    assert!(refusal.contains("2 channels") && refusal.contains("3 were observed"), "{refusal}");
}

#[test]
fn buffers_that_are_no_observers_are_refused_in_words() {
    jitquant::init().unwrap();
    let ops = Module::new("Ops").unwrap();
    ops.define(
        "def observe(self, x, counts, low, high):\n    \
         ops.jitquant.observe_histogram(x, counts, low, high, 'conv1')\n    return x\n\
         def search(self, counts, low, high, how: str):\n    \
         return ops.jitquant.histogram_range(counts, low, high, how)\n\
         def qparams(self, low, high):\n    return ops.jitquant.qparams(low, high, 13, 0, 0, 0, False, 1e-7, 'conv1')\n",
    )
    .unwrap();
    let one = || IValue::from(&Tensor::from_slice(&[1.0f32], &[]).unwrap());
    let many = |values: &[f32]| IValue::from(&tensor(values));
    let refusal = |method: &str, arguments: &[IValue]| {
        let refusal = ops.call(method, arguments).unwrap_err().to_string();
        assert!(!refusal.contains("internal error") && !refusal.contains("panic"), "{method}: {refusal}");
        refusal
    };
    let without_bins = "a histogram of 0 bins; 1 to 16777216 are accepted";
    let said = refusal("observe", &[many(&[1.0]), many(&[]), one(), one()]);
    assert!(said.contains("conv1") && said.contains(without_bins), "{said}");
    for how in ["histogram", "percentile", "squared-error", "entropy"] {
        let said = refusal("search", &[many(&[]), one(), one(), how.into()]);
        assert!(said.contains(without_bins), "{said}");
        assert!(refusal("search", &[many(&[f32::NAN, 1.0]), one(), one(), how.into()]).contains("count is NaN"));
    }
    let said = refusal("search", &[many(&[1.0, 2.0]), one(), one(), "best".into()]);
    assert!(said.contains("there is no search 'best'"), "{said}");
    let said = refusal("qparams", &[many(&[-1.0, 0.0]), many(&[1.0])]);
    assert!(said.contains("conv1") && said.contains("2 minima and 1 maxima"), "{said}");
}

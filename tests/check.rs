//! The check at the end of a conversion: what breaks a model stays in float, or no model is made.

#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::{Converted, Quantizer};
use support::{conv2d, noise};

/// Two convolutions, the first of which ignores its first input channel.
fn model(layers: usize) -> Module {
    let module = Module::new("Outlier").unwrap();
    let first = conv2d(2, 4, 3, 1, 1);
    let mut weight = noise(4 * 2 * 9, 5);
    weight.chunks_mut(18).for_each(|filter| filter[..9].fill(0.0));
    first.set_attribute("weight", &Tensor::from_slice(&weight, &[4, 2, 3, 3]).unwrap().into()).unwrap();
    module.register_submodule("first", &first).unwrap();
    if layers == 1 {
        module.define("def forward(self, x: Tensor) -> Tensor:\n    return self.first.forward(x)\n").unwrap();
        return module;
    }
    module.register_submodule("second", &conv2d(4, 4, 3, 1, 9)).unwrap();
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    return self.second.forward(self.first.forward(x))\n")
        .unwrap();
    module
}

/// Images whose first channel is a million times as large as the second one: INT8 has nothing left for that.
fn batch() -> Tensor {
    let mut values = noise(8 * 2 * 36, 3);
    values.chunks_mut(72).for_each(|image| image[..36].iter_mut().for_each(|value| *value *= 1e6));
    Tensor::from_slice(&values, &[8, 2, 6, 6]).unwrap()
}

fn converted(quantizer: Quantizer, module: &Module) -> jitquant::Result<Converted> {
    let mut prepared = quantizer.prepare(module)?;
    prepared.calibrate(&[batch()])?;
    prepared.convert()
}

fn sqnr(float: &Module, int8: &Module) -> f64 {
    let outputs = |module: &Module| module.forward(&[batch()]).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    let mut comparison = Comparison::default();
    comparison.add(&outputs(float), &outputs(int8), 8);
    comparison.sqnr_db()
}

#[test]
fn a_layer_that_breaks_the_model_stays_in_float() {
    let module = model(2);
    let unchecked = converted(Quantizer::static_ptq().check(false), &module).unwrap();
    assert!(sqnr(&module, &unchecked.module) < 10.0, "the test's model breaks");
    assert_eq!(unchecked.report.check, None);

    let checked = converted(Quantizer::static_ptq(), &module).unwrap();
    let check = checked.report.check.expect("it was checked");
    assert_eq!(check.samples, 8);
    assert!(check.sqnr_db.unwrap() > 30.0, "{check:?}");
    assert!((sqnr(&module, &checked.module) - check.sqnr_db.unwrap()).abs() < 0.1);
    assert!(check.left_in_float.iter().any(|layer| layer.contains("'first'")), "{check:?}");
    assert_eq!(checked.report.quantized_layers, 1);
    assert!(checked.report.float.iter().any(|layer| layer.path == "first"), "{:?}", checked.report.float);
    assert!(check.speed_up.is_some_and(|speed_up| speed_up > 0.0));
}

#[test]
fn no_model_is_made_where_nothing_helps() {
    let refusal = converted(Quantizer::static_ptq(), &model(1)).unwrap_err().to_string();
    for words in ["dB from the float model's", "no model was made", "--no-check"] {
        assert!(refusal.contains(words), "{words}: {refusal}");
    }
}

#[test]
fn the_least_that_is_asked_can_be_said() {
    let module = model(1);
    let least = sqnr(&module, &converted(Quantizer::static_ptq().check(false), &module).unwrap().module) - 1.0;
    let taken = converted(Quantizer::static_ptq().check_min_sqnr(least), &module).unwrap();
    assert!(taken.report.check.unwrap().left_in_float.is_empty());
}

#[test]
fn without_samples_nothing_is_checked() {
    let module = Module::new("Net").unwrap();
    module.register_submodule("fc", &support::linear(8, 4, 1)).unwrap();
    module.define("def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(x)\n").unwrap();
    let report = Quantizer::dynamic().prepare(&module).unwrap().convert().unwrap().report;
    assert_eq!((report.quantized_layers, report.check), (1, None));
}

#[test]
fn the_check_leaves_the_samples_and_the_model_alone() {
    let module = Module::new("Counts").unwrap();
    module.register_submodule("fc", &support::linear(8, 4, 1)).unwrap();
    module.register_buffer("count", Tensor::from_slice(&[0.0f32], &[1]).unwrap()).unwrap();
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    self.count.add_(1.0)\n    return self.fc.forward(x)\n")
        .unwrap();
    let batch = Tensor::from_slice(&noise(24, 1), &[3, 8]).unwrap();
    let mut prepared = Quantizer::static_ptq().prepare(&module).unwrap();
    prepared.calibrate(std::slice::from_ref(&batch)).unwrap();
    prepared.convert().unwrap();
    assert_eq!(batch.to_vec::<f32>().unwrap(), noise(24, 1));
    let count = module.attribute("count").unwrap();
    assert_eq!(count.as_tensor().unwrap().to_vec::<f32>().unwrap(), [0.0]);
}

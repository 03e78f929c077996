//! What is made of a module goes when it is dropped: memory is flat over many inspections, preparations and conversions.

#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{Module, Tensor};
use jitquant::{Methods, ModelForm, Quantizer, Rounding};

use support::noise;

const INPUTS: i64 = 512;
const OUTPUTS: i64 = 2048;
/// Bytes of the model's weight in float.
const WEIGHT: i64 = INPUTS * OUTPUTS * 4;

/// Bytes of memory that the process has.
fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

fn model() -> Module {
    let model = Module::new("Model").unwrap();
    let count = (INPUTS * OUTPUTS) as usize;
    model.register_parameter("w", Tensor::from_slice(&noise(count, 1), &[OUTPUTS, INPUTS]).unwrap()).unwrap();
    model.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(torch.linear(x, self.w))").unwrap();
    model
}

/// By how much memory grows over `times` calls, after the first ones.
fn growth(times: usize, mut call: impl FnMut()) -> i64 {
    (0..3).for_each(|_| call());
    let before = resident();
    (0..times).for_each(|_| call());
    resident() - before
}

#[test]
fn memory_is_flat_over_many_inspections_preparations_and_conversions() {
    let model = model();
    let x = Tensor::from_slice(&noise(4 * INPUTS as usize, 2), &[4, INPUTS]).unwrap();
    let methods = Methods { rounding: Rounding::Nearest, ..Methods::default() };
    let quantizer = Quantizer::static_ptq().methods(methods);
    let times = if std::env::var_os("JITQUANT_LONG").is_some() { 1000 } else { 8 };
    // A copy a call would be four times this, or 500 times; the allocator keeps some.
    let bound = 2 * WEIGHT;
    let of_inspections = growth(times, || drop(quantizer.verdicts(&model).unwrap()));
    assert!(of_inspections < bound, "inspect: {of_inspections} bytes");
    let of_preparations = growth(times, || {
        let mut prepared = quantizer.prepare(&model).unwrap();
        prepared.calibrate(std::slice::from_ref(&x)).unwrap();
    });
    assert!(of_preparations < bound, "prepare: {of_preparations} bytes");
    for form in [ModelForm::Portable, ModelForm::Native] {
        let mut prepared = quantizer.clone().form(form).prepare(&model).unwrap();
        prepared.calibrate(std::slice::from_ref(&x)).unwrap();
        let of_conversions = growth(times, || drop(prepared.convert().unwrap()));
        assert!(of_conversions < bound, "convert: {of_conversions} bytes");
    }
}

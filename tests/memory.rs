//! What is made of a module goes when it is dropped: memory is flat over many inspections, preparations and conversions.

mod support;

use std::sync::{Mutex, PoisonError};

use jitquant::ir::{Module, Tensor};
use jitquant::{Methods, ModelForm, Quantizer, Rounding};

use support::noise;

const INPUTS: i64 = 512;
const OUTPUTS: i64 = 2048;
/// Bytes of the model's weight in float.
const WEIGHT: i64 = INPUTS * OUTPUTS * 4;

/// The tests measure the one process that they all are in: one after the other.
static TURN: Mutex<()> = Mutex::new(());

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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let model = model();
    let x = Tensor::from_slice(&noise(4 * INPUTS as usize, 2), &[4, INPUTS]).unwrap();
    let methods = Methods { rounding: Rounding::Nearest, ..Methods::default() };
    let quantizer = Quantizer::static_ptq().methods(methods);
    let times = 20;
    // A copy a call would be four times this; the allocator keeps some.
    let bound = times as i64 / 4 * WEIGHT;
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

#[test]
fn an_int8_module_outlives_what_it_was_made_from_and_keeps_none_of_it() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let x = Tensor::from_slice(&noise(4 * INPUTS as usize, 2), &[4, INPUTS]).unwrap();
    let make = || {
        let model = model();
        let mut prepared = Quantizer::static_ptq().prepare(&model).unwrap();
        prepared.calibrate(std::slice::from_ref(&x)).unwrap();
        prepared.convert().unwrap().module
    };
    let kept: Vec<_> = (0..2).map(|_| make()).collect();
    let before = resident();
    let more: Vec<_> = (0..8).map(|_| make()).collect();
    let each = (resident() - before) / 8;
    // A quarter of the float weight and what packing adds; slack of the allocator beside.
    assert!(each < WEIGHT * 3 / 4, "{each} bytes for a weight of {} in INT8", WEIGHT / 4);
    for module in kept.iter().chain(&more) {
        module.forward(std::slice::from_ref(&x)).unwrap();
    }
}

//! Layers of `torch.nn` as they are scripted, traced and written: what is quantized, what stays in float, and why.
//!
//! The files are made by `generate.py`.

#![cfg(feature = "torch")]

#[path = "../support/mod.rs"]
mod support;

mod shapes;
mod transformers;
mod written;

use std::path::Path;

use jitquant::ir::{IValue, Module};
use jitquant::measure::Comparison;
use jitquant::{Methods, ModelForm, Quantizer, Report, Rounding};

use support::tensor;

/// What each of these models has to reach.
const LEAST_SQNR: f64 = 30.0;

fn file(name: &str) -> Module {
    Module::load(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/layers/{name}.pt"))).unwrap()
}

fn inputs(shapes: &[&[i64]], seed: u64) -> Vec<IValue> {
    shapes.iter().enumerate().map(|(index, shape)| tensor(shape, seed + 100 * index as u64).into()).collect()
}

/// Quantizes with eight batches, or none in dynamic quantization, and compares with float on another batch.
fn quantized(model: &Module, shapes: &[&[i64]], quantizer: Quantizer) -> (Module, Report) {
    // Learned rounding takes time, and is for other suites.
    let quantizer = quantizer.methods(Methods { rounding: Rounding::Sums, ..Methods::default() });
    let is_static = quantizer.quant_type() == jitquant::pass::QuantType::Static;
    let mut prepared = quantizer.prepare(model).unwrap();
    for seed in 0..if is_static { 8 } else { 0 } {
        prepared.calibrate(&inputs(shapes, 10 + seed)).unwrap();
    }
    let converted = prepared.convert().unwrap();
    // As a file, since that is what runs elsewhere.
    let int8 = Module::load_bytes(&converted.module.save_bytes().unwrap()).unwrap();
    let test = inputs(shapes, 3);
    let (float, result) = (model.forward(&test).unwrap(), int8.forward(&test).unwrap());
    let mut comparison = Comparison::default();
    for (a, b) in std::iter::zip(float.tensors(), result.tensors()) {
        assert_eq!(a.shape(), b.shape());
        comparison.add(&a.to_f32_vec().unwrap(), &b.to_f32_vec().unwrap(), 1);
    }
    let sqnr = comparison.sqnr_db();
    assert!(sqnr >= LEAST_SQNR, "{sqnr} dB; {:?}", converted.report);
    (int8, converted.report)
}

/// The operators that stay in float, each once.
fn float(report: &Report) -> Vec<&str> {
    let mut operators: Vec<_> = report.float.iter().map(|layer| layer.operator.as_str()).collect();
    operators.sort_unstable();
    operators.dedup();
    for layer in &report.float {
        assert!(!layer.reason.contains("fusion"), "{layer:?}");
    }
    operators
}

/// Static and dynamic quantization, in both forms.
fn ways() -> [(&'static str, Quantizer); 4] {
    [
        ("static", Quantizer::static_ptq()),
        ("static native", Quantizer::static_ptq().form(ModelForm::Native)),
        ("dynamic", Quantizer::dynamic()),
        ("dynamic native", Quantizer::dynamic().form(ModelForm::Native)),
    ]
}

/// Has `inspect` list what the report lists.
fn listed(model: &Module, quantizer: &Quantizer) -> Vec<(String, String)> {
    let verdicts = quantizer.verdicts(model).unwrap().into_iter();
    verdicts.filter_map(|(layer, why)| Some((layer.operator.to_owned(), why?))).collect()
}

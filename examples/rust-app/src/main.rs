//! Quantizes a TorchScript model from a Rust program that works with tch: load, calibrate, convert, save, compare.
//!
//!     cargo run -- ../digits/digits.pt ../digits/calibration.npz ../digits/heldout.npz digits.int8.pt
//!
//! A data file is an .npz with samples `x` (samples first); the model takes batches of them and gives scores.

use std::error::Error;
use std::path::Path;

use jitquant::Quantizer;
use jitquant::ir::Module;
use jitquant::measure::Comparison;
use tch::{CModule, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, calibration, heldout, output] = arguments.as_slice() else {
        return Err("usage: rust-app MODEL.pt CALIBRATION.npz HELDOUT.npz OUTPUT.pt".into());
    };
    print!("{}", quantize(model.as_ref(), calibration.as_ref(), heldout.as_ref(), output.as_ref())?);
    Ok(())
}

/// Writes the INT8 model to `output` and says how it compares with `model` on the samples of `heldout`.
pub fn quantize(model: &Path, calibration: &Path, heldout: &Path, output: &Path) -> Result<String, Box<dyn Error>> {
    let float = Module::load(model)?;
    let mut prepared = Quantizer::static_ptq().prepare(&float)?;
    for batch in samples(calibration)?.split(50, 0) {
        prepared.calibrate(&[batch])?;
    }
    let converted = prepared.convert()?;
    converted.module.save(output)?;

    // The file is an ordinary TorchScript model: tch alone loads and runs it.
    let float = CModule::load(model)?;
    let int8 = CModule::load(output)?;
    let mut comparison = Comparison::default();
    for batch in samples(heldout)?.split(50, 0) {
        let count = batch.size()[0] as usize;
        let (expected, actual) = (scores(&float, &batch)?, scores(&int8, &batch)?);
        comparison.add(&expected, &actual, count);
        comparison.add_classes(&expected, &actual, count);
    }
    let report = &converted.report;
    Ok(format!(
        "{} layers are INT8, {} stay in float\nsame answer as float: {:.1} % of {}, SQNR {:.1} dB\n",
        report.quantized_layers,
        report.float.len(),
        100.0 * comparison.top1_agreement().unwrap_or(0.0),
        comparison.samples(),
        comparison.sqnr_db(),
    ))
}

/// The array `x` of an .npz file.
fn samples(path: &Path) -> Result<Tensor, Box<dyn Error>> {
    let arrays = Tensor::read_npz(path)?;
    let x = arrays.into_iter().find(|(name, _)| name == "x");
    Ok(x.ok_or_else(|| format!("{}: no array 'x'", path.display()))?.1)
}

fn scores(model: &CModule, batch: &Tensor) -> Result<Vec<f32>, tch::TchError> {
    Vec::try_from(model.forward_ts(&[batch])?.to_kind(Kind::Float).flatten(0, -1))
}

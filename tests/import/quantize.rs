//! INT8 models of imported programs.

use jitquant::Quantizer;
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;

use super::{arguments, leaves, program, runs};

/// The least that INT8 keeps, in dB.
const LEAST_DB: f64 = 30.0;

/// The arguments of all runs.
fn inputs(name: &str, module: &Module) -> Vec<Vec<IValue>> {
    runs(name).iter().map(|run| arguments(module, run)).collect()
}

fn sqnr(float: &Module, int8: &Module, inputs: &[Vec<IValue>]) -> f64 {
    let mut comparison = Comparison::default();
    for arguments in inputs {
        let run = |module: &Module| leaves(&module.forward(arguments).unwrap());
        for (a, b) in run(float).iter().zip(run(int8)) {
            comparison.add(&a.to_f32_vec().unwrap(), &b.to_f32_vec().unwrap(), 1);
        }
    }
    comparison.sqnr_db()
}

fn quantized(name: &str) -> (usize, f64) {
    let module = Module::load(program(name)).unwrap();
    let inputs = inputs(name, &module);
    let mut prepared = Quantizer::static_ptq().prepare(&module).unwrap();
    for arguments in &inputs {
        prepared.calibrate(arguments).unwrap();
    }
    let converted = prepared.convert().unwrap();
    (converted.report.float.len(), sqnr(&module, &converted.module, &inputs))
}

#[test]
fn int8_keeps_what_it_should() {
    for name in
        ["cnn", "cnn_dynamic", "cnn_decomposed", "mlp_decomposed", "encoder_dynamic", "unet", "cnn_flat_archive"]
    {
        let (float, db) = quantized(name);
        assert!(db > LEAST_DB, "{name}: {db:.1} dB, {float} layers in float");
    }
}

#[test]
fn decompositions_keep_linear_layers() {
    let module = Module::load(program("encoder_decomposed")).unwrap();
    let verdicts = Quantizer::static_ptq().verdicts(&module).unwrap();
    let linear: Vec<_> = verdicts.iter().filter(|(layer, _)| layer.operator == "linear").collect();
    assert_eq!(linear.len(), 6, "{verdicts:?}");
    assert!(linear.iter().all(|(_, reason)| reason.is_none()), "{linear:?}");
}

#[test]
fn layers_are_skipped_by_their_path() {
    let module = Module::load(program("cnn")).unwrap();
    let verdicts = Quantizer::static_ptq().verdicts(&module).unwrap();
    let paths: Vec<_> = verdicts.into_iter().map(|(layer, _)| layer.path).collect();
    for path in ["stem.0", "layer1.0.conv1", "fc"] {
        assert!(paths.iter().any(|known| known == path), "{path} in {paths:?}");
    }
}

#[test]
fn constants_of_a_program_are_its_own() {
    let one = Module::load(program("buffer_mutated")).unwrap();
    let other = Module::load(program("buffer_mutated")).unwrap();
    let x = Tensor::from_slice(&[1.0f32; 12], &[3, 4]).unwrap();
    one.forward(&[&x].map(IValue::from)).unwrap();
    let calls = |module: &Module| module.attribute("calls").unwrap().as_tensor().unwrap().to_vec::<i64>().unwrap();
    assert_eq!((calls(&one), calls(&other)), (vec![1], vec![0]));
}

#[cfg(feature = "cli")]
mod command_line {
    use std::path::Path;
    use std::process::{Command, Output};

    use super::{Module, program};

    fn run(folder: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
        command.current_dir(folder).env("OMP_NUM_THREADS", "1").args(arguments).output().unwrap()
    }

    #[test]
    fn convert_writes_what_libtorch_runs() {
        let folder = tempfile::tempdir().unwrap();
        let model = program("keywords");
        let done = run(folder.path(), &["convert", model.to_str().unwrap(), "-o", "model.pt"]);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && said.contains("x: Tensor, other: Tensor, bias: Tensor"), "{said}");
        let written = Module::load(folder.path().join("model.pt")).unwrap();
        assert!(written.submodule("a").is_ok());
        let again = run(folder.path(), &["convert", "model.pt", "-o", "model.pt"]);
        assert_eq!(again.status.code(), Some(1), "the model itself is not written over");
    }

    #[test]
    fn inspect_tells_layers_by_path_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let model = program("cnn");
        let done = run(folder.path(), &["inspect", model.to_str().unwrap(), "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let layers = found["layers"].as_array().unwrap();
        let conv = layers.iter().find(|layer| layer["path"] == "layer1.0.conv1").unwrap();
        assert_eq!(conv["operator"], "conv2d");
        assert!(conv["source"].as_str().unwrap().starts_with("model.py:"), "{conv}");
    }

    #[test]
    fn a_program_is_quantized_and_compared_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let model = program("cnn_dynamic");
        let model = model.to_str().unwrap();
        let x: Vec<f32> = (0..16 * 3 * 144).map(|place| ((place * 37 % 101) as f32 - 50.0) / 25.0).collect();
        let x = jitquant::ir::Tensor::from_slice(&x, &[16, 3, 12, 12]).unwrap();
        super::super::npz::write_npy(&folder.path().join("x.npy"), &x);
        let made =
            run(folder.path(), &["quantize", model, "-o", "int8.pt", "--calibrate", "x.npy", "--skip", "layer1.0"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let compared = run(folder.path(), &["compare", model, "int8.pt", "--data", "x.npy", "--json"]);
        let figures: serde_json::Value = serde_json::from_slice(&compared.stdout).unwrap();
        assert!(figures["sqnr_db"].as_f64().unwrap() > super::LEAST_DB, "{figures}");
    }
}

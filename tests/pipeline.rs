//! From a float module to an INT8 file that libtorch alone runs.

#![cfg(feature = "torch")]

mod support;

use std::ops::ControlFlow;
use std::process::Command;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::watch::watched;
use jitquant::{Error, Methods, Quantizer, Report, Rounding};
use support::{classifier, images, linear, noise, write_npy};

fn quantized(module: &Module, quantizer: &Quantizer) -> (Module, Report) {
    let mut prepared = quantizer.prepare(module).unwrap();
    for seed in 0..4 {
        prepared.calibrate(&[images(8, seed)]).unwrap();
    }
    let converted = prepared.convert().unwrap();
    (converted.module, converted.report)
}

fn sqnr(float: &Module, int8: &Module) -> f64 {
    let x = images(16, 99);
    let run =
        |module: &Module| module.forward(std::slice::from_ref(&x)).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    let mut comparison = Comparison::default();
    comparison.add(&run(float), &run(int8), 16);
    comparison.sqnr_db()
}

#[test]
fn a_static_model_keeps_its_outputs_and_runs_in_libtorch_alone() {
    let float = classifier();
    let before = float.graph("forward").unwrap().to_string();
    let (int8, report) = quantized(&float, &Quantizer::static_ptq());
    assert_eq!((report.quantized_layers, report.float.len()), (4, 0), "{report:?}");
    assert!(sqnr(&float, &int8) > 25.0, "{} dB", sqnr(&float, &int8));
    assert_eq!(float.graph("forward").unwrap().to_string(), before, "the float module stays as it was");

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    int8.save(path("int8.pt")).unwrap();
    let x = images(4, 7);
    write_npy(&path("x.npy"), &x);
    let run = Command::new(jitquant_oracle::STOCK_RUN)
        .args([path("int8.pt"), path("x.npy"), path("y.npy")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("jitquant in the process: no"), "{said}");
    let ours = int8.forward(&[x]).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    let bytes = std::fs::read(path("y.npy")).unwrap();
    let (values, _) = bytes[bytes.len() - 4 * ours.len()..].as_chunks::<4>();
    let theirs: Vec<f32> = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
    assert_eq!(ours, theirs, "the same file gives the same values with and without jitquant in the process");
}

#[test]
fn a_dynamic_model_needs_no_data() {
    let float = classifier();
    let converted = Quantizer::dynamic().prepare(&float).unwrap().convert().unwrap();
    assert_eq!(converted.report.quantized_layers, 1);
    assert_eq!(converted.report.float.len(), 3, "the convolutions: {:?}", converted.report.float);
    assert!(converted.report.float.iter().all(|layer| layer.reason.contains("dynamic")));
    assert!(sqnr(&float, &converted.module) > 35.0);
}

#[test]
fn what_is_skipped_stays_in_float_and_is_reported() {
    let float = classifier();
    let (int8, report) = quantized(&float, &Quantizer::static_ptq().skip("fc").skip("conv2"));
    assert_eq!(report.quantized_layers, 2);
    let mut left: Vec<_> = report.float.iter().map(|layer| layer.path.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["conv2", "fc"]);
    assert!(report.float.iter().all(|layer| layer.reason.contains("configuration")));
    assert!(sqnr(&float, &int8) > 25.0);
    let refusal = Quantizer::static_ptq().skip("fd").prepare(&float).unwrap_err().to_string();
    assert!(refusal.contains("'fd'") && refusal.contains("fc"), "{refusal}");
}

#[test]
fn calibration_goes_on_after_saving_and_loading() {
    let float = classifier();
    // Rounding and ranges that need no data: what was run before the module was saved is not there to be run again.
    let methods = Methods { rounding: Rounding::Sums, ..Methods::default() };
    let histogram = "[default]\nactivation = { observer = \"histogram\" }".parse().unwrap();
    let quantizer = Quantizer::static_ptq().qconfig(histogram).methods(methods);
    let mut whole = quantizer.prepare(&float).unwrap();
    let mut half = quantizer.prepare(&float).unwrap();
    for seed in 0..2 {
        whole.calibrate(&[images(8, seed)]).unwrap();
        half.calibrate(&[images(8, seed)]).unwrap();
    }
    let loaded = Module::load_bytes(&half.module().save_bytes().unwrap()).unwrap();
    let mut half = quantizer.resume(&loaded).unwrap();
    for seed in 2..4 {
        whole.calibrate(&[images(8, seed)]).unwrap();
        half.calibrate(&[images(8, seed)]).unwrap();
    }
    let run = |module: &Module| module.forward(&[images(4, 50)]).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    assert_eq!(run(&whole.convert().unwrap().module), run(&half.convert().unwrap().module));
    assert!(quantizer.resume(&float).unwrap_err().to_string().contains("no observers"));
}

#[test]
fn what_cannot_be_quantized_is_refused_in_words() {
    let refusal = |module: &Module| Quantizer::static_ptq().prepare(module).unwrap_err().to_string();
    let float = classifier();
    let (int8, _) = quantized(&float, &Quantizer::static_ptq());
    assert!(refusal(&int8).contains("quantized already"), "{}", refusal(&int8));

    let nothing = Module::new("Nothing").unwrap();
    nothing.define("def forward(self, x: Tensor) -> Tensor:\n    return x + 1\n").unwrap();
    assert!(refusal(&nothing).contains("no layer"), "{}", refusal(&nothing));

    let cuda = Module::new("Cuda").unwrap();
    cuda.register_submodule("fc", &float.submodule("fc").unwrap()).unwrap();
    cuda.define("def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(x.to(torch.device('cuda:0')))\n")
        .unwrap();
    let graph = cuda.graph("forward").unwrap();
    let device = graph.all_nodes().into_iter().find(|node| node.kind() == "aten::device");
    if let Some(node) = device {
        let constant = node.insert_constant(jitquant::ir::IValue::Device("cuda:0".into())).unwrap();
        node.output(0).unwrap().replace_all_uses_with(constant).unwrap();
    }
    drop(graph);
    assert!(refusal(&cuda).contains("cuda:0"), "{}", refusal(&cuda));

    let headless = Module::new("Headless").unwrap();
    headless.define("def run(self, x: Tensor) -> Tensor:\n    return x\n").unwrap();
    assert!(refusal(&headless).contains("no method 'forward'"));

    let uncalibrated = Quantizer::static_ptq().prepare(&float).unwrap().convert().unwrap_err().to_string();
    assert!(uncalibrated.contains("needs data"), "{uncalibrated}");

    let mut prepared = Quantizer::static_ptq().prepare(&float).unwrap();
    let mut values = images(1, 0).to_vec::<f32>().unwrap();
    values[5] = f32::NAN;
    let bad = Tensor::from_slice(&values, &[1, 1, 12, 12]).unwrap();
    let refusal = prepared.calibrate(&[bad]).unwrap_err().to_string();
    assert!(refusal.contains("NaN") && refusal.contains("argument 'x"), "{refusal}");
    let shape = Tensor::from_slice(&[0.0f32; 12], &[1, 12]).unwrap();
    assert!(prepared.calibrate(&[shape]).is_err());
}

/// Everything that an observed module holds, by path and name; tensors as their bytes.
fn state(module: &Module) -> Vec<(String, String)> {
    let of = |(path, part): (String, Module)| {
        let names =
            part.attributes().into_iter().filter(|attribute| !attribute.is_module).map(|attribute| attribute.name);
        let value = |name: String| match part.attribute(&name).unwrap() {
            IValue::Tensor(tensor) => (format!("{path}.{name}"), format!("{:?}", tensor.to_f32_vec().unwrap())),
            other => (format!("{path}.{name}"), format!("{other:?}")),
        };
        names.map(value).collect::<Vec<_>>()
    };
    module.modules().into_iter().flat_map(of).collect()
}

#[test]
fn a_batch_that_fails_changes_nothing() {
    // The second layer takes four rows alone; the sum of what went through is the model's state.
    let model = Module::new("Rows").unwrap();
    model.register_submodule("first", &linear(12, 12, 1)).unwrap();
    model.register_submodule("second", &linear(12, 12, 2)).unwrap();
    model.register_buffer("rows", Tensor::from_slice(&noise(48, 3), &[4, 12]).unwrap()).unwrap();
    model.register_buffer("sum", Tensor::from_slice(&[0.0f32; 12], &[12]).unwrap()).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    y = self.first.forward(x)\n    \
             self.sum = self.sum + torch.sum(y, [0])\n    \
             return self.second.forward(y + self.rows) + self.sum\n",
        )
        .unwrap();
    let batch = |rows: i64, scale: f32, seed: u64| {
        let values: Vec<f32> = noise(rows as usize * 12, seed).into_iter().map(|value| value * scale).collect();
        Tensor::from_slice(&values, &[rows, 12]).unwrap()
    };
    for observer in ["auto", "histogram", "min-max", "moving-average-min-max"] {
        let spec = format!("[default]\nactivation = {{ observer = \"{observer}\" }}").parse().unwrap();
        let quantizer = Quantizer::static_ptq().qconfig(spec);
        let mut prepared = quantizer.prepare(&model).unwrap();
        let before = state(prepared.module());
        // The only batch, and it failed: nothing was seen.
        assert!(prepared.calibrate(&[batch(5, 1000.0, 9)]).is_err());
        assert_eq!(state(prepared.module()), before, "{observer}");
        assert!(prepared.convert().unwrap_err().to_string().contains("no batch was taken in"));

        prepared.calibrate(&[batch(4, 1.0, 5)]).unwrap();
        let once = state(prepared.module());
        assert_ne!(once, before);
        assert!(prepared.calibrate(&[batch(5, 1000.0, 9)]).is_err());
        let mut not_finite = batch(4, 1.0, 6).to_vec::<f32>().unwrap();
        not_finite[7] = f32::INFINITY;
        assert!(prepared.calibrate(&[Tensor::from_slice(&not_finite, &[4, 12]).unwrap()]).is_err());
        let ended = watched(
            |step| if step.stage == "observing" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
            || prepared.calibrate(&[batch(4, 1000.0, 8)]),
        );
        assert!(matches!(ended, Err(Error::Cancelled)));
        assert_eq!(state(prepared.module()), once, "{observer}");
    }
}

//! Where an INT8 model loses accuracy, layer by layer.

#![cfg(feature = "cli")]

mod support;

use std::process::Command;

use jitquant::analysis::LayerComparison;
use jitquant::ir::Module;
use jitquant::{ModelForm, Quantizer, WeightOnly};
use support::{classifier, images, write_npy};

fn quantized(quantizer: Quantizer) -> Module {
    let mut prepared = quantizer.prepare(&classifier()).unwrap();
    prepared.calibrate(&[images(24, 1)]).unwrap();
    // Through a file, where the layers' paths are lost.
    Module::load_bytes(&prepared.convert().unwrap().module.save_bytes().unwrap()).unwrap()
}

fn paths(comparison: &LayerComparison) -> Vec<&str> {
    comparison.layers().iter().map(|layer| layer.path.as_str()).collect()
}

#[test]
fn layers_of_a_file_find_their_paths() {
    let mut comparison = LayerComparison::new(&classifier(), &quantized(Quantizer::static_ptq())).unwrap();
    comparison.add(&[images(8, 2)]).unwrap();
    comparison.add(&[images(8, 3)]).unwrap();
    assert_eq!(paths(&comparison), ["conv1", "conv2", "conv3", "fc"]);
    assert_eq!(comparison.unmatched(), Vec::<String>::new());
    for layer in comparison.layers() {
        assert!(layer.quantized && layer.output.sqnr_db() > 20.0 && layer.output.cosine() > 0.99, "{layer:?}");
        assert!(layer.output.sqnr_db().is_finite(), "rounding leaves a trace: {}", layer.path);
        let weight = layer.weight.as_ref().unwrap();
        assert!((30.0..70.0).contains(&weight.sqnr_db), "{} {}", layer.path, weight.sqnr_db);
        assert_eq!(weight.channels.len() as i64, weight.shape[0]);
        // The last layer's result is not rounded: it has no range.
        assert_eq!(layer.range.is_none(), layer.path == "fc");
        assert!(layer.range.is_none_or(|range| range.min() <= 0.0 && range.max() > 0.0), "{:?}", layer.range);
        assert!(layer.output.clipped_share() < 0.05, "{layer:?}");
    }
    // The first layer's relu is part of it: it holds 16 x 8 x 12 x 12 values, none negative.
    let first = &comparison.layers()[0];
    assert_eq!((first.output.count, first.output.min), (16 * 8 * 144, 0.0));
    let histogram = first.output.histogram.as_ref().unwrap();
    assert_eq!(histogram.float.iter().sum::<u64>(), 16 * 8 * 144);
}

#[test]
fn a_layer_left_in_float_and_a_worse_range_show() {
    let int8 = quantized(Quantizer::static_ptq().skip("conv1"));
    let mut comparison = LayerComparison::new(&classifier(), &int8).unwrap();
    // Ten times what calibration saw: most of it is cut off.
    let loud: Vec<f32> = images(8, 2).to_vec::<f32>().unwrap().iter().map(|value| value * 10.0).collect();
    comparison.add(&[jitquant::ir::Tensor::from_slice(&loud, &[8, 1, 12, 12]).unwrap()]).unwrap();
    assert_eq!(paths(&comparison), ["conv1", "conv2", "conv3", "fc"]);
    let [conv1, conv2, ..] = comparison.layers() else { panic!() };
    assert!(!conv1.quantized && conv1.range.is_none() && conv1.output.sqnr_db() > 100.0, "{conv1:?}");
    assert!(conv2.output.clipped_share() > 0.2 && conv2.output.sqnr_db() < 12.0, "{conv2:?}");
}

#[test]
fn dynamic_layers_have_no_range() {
    let mut comparison = LayerComparison::new(&classifier(), &quantized(Quantizer::dynamic())).unwrap();
    comparison.add(&[images(8, 2)]).unwrap();
    assert_eq!(paths(&comparison), ["conv1", "conv2", "conv3", "fc"]);
    let fc = &comparison.layers()[3];
    assert!(fc.quantized && fc.range.is_none() && fc.output.sqnr_db() > 25.0, "{fc:?}");
    assert!(!comparison.layers()[0].quantized);
}

#[test]
fn native_layers_are_compared_as_well() {
    let portable = quantized(Quantizer::static_ptq());
    let native = quantized(Quantizer::static_ptq().form(ModelForm::Native));
    let compared = |int8: &Module| {
        let mut comparison = LayerComparison::new(&classifier(), int8).unwrap();
        comparison.add(&[images(8, 2)]).unwrap();
        assert_eq!(paths(&comparison), ["conv1", "conv2", "conv3", "fc"]);
        assert_eq!(comparison.unmatched(), Vec::<String>::new());
        comparison
    };
    let (portable, native) = (compared(&portable), compared(&native));
    for (ours, theirs) in native.layers().iter().zip(portable.layers()) {
        assert!(ours.int8_operator.starts_with("jitquant::") && ours.quantized);
        assert!(ours.output.sqnr_db() > theirs.output.sqnr_db() - 3.0, "{ours:?}\n{theirs:?}");
        let (a, b) = (ours.weight.as_ref().unwrap(), theirs.weight.as_ref().unwrap());
        assert!((a.sqnr_db - b.sqnr_db).abs() < 1e-3, "the same integers");
    }
    // conv3's residual sum and relu are part of it.
    assert_eq!(native.layers()[2].output.min, 0.0);
    assert!(native.layers()[2].range.is_some() && native.layers()[3].range.is_none());
}

#[test]
fn weight_only_layers_are_compared_as_well() {
    for (form, calls) in [(ModelForm::Portable, "8-bit weight"), (ModelForm::Native, "linear_weight_only")] {
        let small = quantized(Quantizer::weight_only(WeightOnly::Bits8).form(form));
        let mut comparison = LayerComparison::new(&classifier(), &small).unwrap();
        comparison.add(&[images(8, 2)]).unwrap();
        assert_eq!(paths(&comparison), ["conv1", "conv2", "conv3", "fc"]);
        assert_eq!(comparison.unmatched(), Vec::<String>::new());
        let fc = &comparison.layers()[3];
        assert!(fc.quantized && fc.int8_operator.contains(calls) && fc.range.is_none(), "{fc:?}");
        assert!(comparison.layers().iter().all(|layer| (30.0..70.0).contains(&layer.output.sqnr_db())));
        assert_eq!(fc.weight_bytes, Some((4 * 2880, 2880)));
        assert!(comparison.times(&[images(2, 3)]).unwrap().iter().all(Option::is_some));
    }
}

#[test]
fn each_layer_is_timed_and_the_model_has_an_outline() {
    let mut comparison = LayerComparison::new(&classifier(), &quantized(Quantizer::static_ptq())).unwrap();
    comparison.add(&[images(8, 2)]).unwrap();
    for inputs in [images(8, 2), images(2, 3)] {
        let times = comparison.times(&[inputs]).unwrap();
        assert_eq!(times.len(), 4);
        for time in times {
            let time = time.expect("every layer of this model can be run by itself");
            assert!(time.float > 1e-7 && time.float < 1.0 && time.int8 > 1e-7 && time.int8 < 1.0, "{time:?}");
        }
    }
    let outline: Vec<_> = comparison.outline().iter().map(|n| (n.label.as_str(), n.layer, n.after.clone())).collect();
    assert_eq!(
        outline,
        [
            ("input", None, vec![]),
            ("conv1", Some(0), vec![0]),
            ("conv2", Some(1), vec![1]),
            ("conv3", Some(2), vec![2]),
            ("add", None, vec![1, 3]),
            ("fc", Some(3), vec![4]),
            ("output", None, vec![5]),
        ]
    );
}

#[test]
fn what_cannot_be_compared_says_so() {
    let other = Module::new("Other").unwrap();
    other.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(x)\n").unwrap();
    let refusal = LayerComparison::new(&other, &quantized(Quantizer::static_ptq())).unwrap_err().to_string();
    assert!(refusal.contains("not the same model"), "{refusal}");
}

#[test]
fn the_command_line_lists_the_worst() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    classifier().save(path("model.pt")).unwrap();
    quantized(Quantizer::static_ptq()).save(path("int8.pt")).unwrap();
    write_npy(&path("x.npy"), &images(16, 2));
    let run = |more: &[&str]| {
        let fixed = ["compare", "model.pt", "int8.pt", "--data", "x.npy", "--batch-size", "8"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
        let output = command.args(fixed).args(more).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let figures: serde_json::Value = serde_json::from_str(&run(&["--layers", "--json"])).unwrap();
    let layers = figures["layers"].as_array().unwrap();
    let positions: Vec<_> = layers.iter().map(|layer| layer["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
    // The last layer's output is the model's: both figures are one.
    let last = layers[3]["sqnr_db"].as_f64().unwrap();
    assert!((last - figures["sqnr_db"].as_f64().unwrap()).abs() < 1e-3, "{figures}");
    let worst: serde_json::Value = serde_json::from_str(&run(&["--layers", "--worst", "2", "--json"])).unwrap();
    let sqnr = |index: usize| worst["layers"][index]["sqnr_db"].as_f64().unwrap();
    assert_eq!(worst["layers"].as_array().unwrap().len(), 2);
    assert!(sqnr(0) <= sqnr(1) && layers.iter().all(|layer| layer["sqnr_db"].as_f64().unwrap() >= sqnr(0)));
    let text = run(&["--layers"]);
    assert!(text.contains("conv1") && text.contains("zero point") && text.contains("conv2d_relu"), "{text}");
}

#[test]
fn the_page_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    classifier().save(path("model.pt")).unwrap();
    quantized(Quantizer::static_ptq().skip("conv3")).save(path("int8.pt")).unwrap();
    write_npy(&path("x.npy"), &images(16, 2));
    let output = Command::new(env!("CARGO_BIN_EXE_jitquant"))
        .args(["report", "model.pt", "int8.pt", "--data", "x.npy", "-o", "page.html", "--json"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(path("page.html")).unwrap();
    // One picture of all layers, one of the graph, and for each of the four layers its values and its weight.
    assert_eq!(page.matches("<svg").count(), 2 + 4 * 2);
    assert_eq!(page.matches("class=\"node\"").count(), 4);
    assert_eq!(page.matches("<tr class=\"layer\"").count(), 4);
    let addresses = page.matches("://").count();
    assert_eq!(addresses, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count(), "nothing is fetched");
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(findings["left_in_float"][0]["path"], "conv3");
    assert_eq!(findings["layers"].as_array().unwrap().len(), 4);
    assert!(findings["command"].as_str().unwrap().contains("report model.pt int8.pt"), "{findings}");
    // Saved by the library, the file does not tell how it was made.
    assert_eq!(findings["made_by"], serde_json::Value::Null);
    assert!(page.contains("not recorded in its file"));
    for layer in findings["layers"].as_array().unwrap() {
        assert!(layer["time"]["float"].as_f64().unwrap() > 0.0 && layer["weight_bytes"][0].as_u64().unwrap() > 0);
    }
}

/// A linear layer behind a layer norm, and a convolution before it.
fn with_norm() -> Module {
    let module = Module::new("Net").unwrap();
    module.register_submodule("conv", &support::conv2d(1, 4, 3, 1, 10)).unwrap();
    let weight = jitquant::ir::Tensor::from_slice(&support::noise(12 * 12, 3), &[12, 12]).unwrap();
    module.register_parameter("weight", weight).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    y = torch.layer_norm(self.conv.forward(x), [12])\n    \
             return torch.linear(y, self.weight)\n",
        )
        .unwrap();
    module
}

#[test]
fn the_file_tells_how_it_was_made_and_what_stays_in_float() {
    let folder = tempfile::tempdir().unwrap();
    with_norm().save(folder.path().join("model.pt")).unwrap();
    write_npy(&folder.path().join("x.npy"), &images(16, 2));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
        let output = command.args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report = |int8: &str| -> serde_json::Value {
        serde_json::from_str(&run(&["report", "model.pt", int8, "--data", "x.npy", "-o", "page.html", "--json"]))
            .unwrap()
    };
    let quantize = ["quantize", "model.pt", "--mode", "dynamic"];
    run(&[&quantize[..], &["-o", "dynamic 8.pt"]].concat());
    run(&[&quantize[..], &["-o", "silent.pt", "--no-record"]].concat());
    let told = report("dynamic 8.pt");
    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.contains("jitquant quantize model.pt --mode dynamic -o 'dynamic 8.pt'"), "the command, quoted");
    assert_eq!(told["made_by"]["mode"], "dynamic");
    let silent = report("silent.pt");
    assert_eq!(
        (&silent["made_by"], &silent["mode"]),
        (&serde_json::Value::Null, &"dynamic".into()),
        "the operators tell"
    );
    for findings in [told, silent] {
        let left: Vec<(&str, &str)> = findings["left_in_float"]
            .as_array()
            .unwrap()
            .iter()
            .map(|left| (left["operator"].as_str().unwrap(), left["reason"].as_str().unwrap()))
            .collect();
        let expected = [
            ("conv2d", "convolutions have no dynamic INT8 form in libtorch"),
            ("layer_norm", "norms have no dynamic INT8 form"),
        ];
        assert_eq!(left, expected);
    }
    let extra = Module::extra_files(folder.path().join("silent.pt")).unwrap();
    assert!(extra.is_empty());
}

//! What a user of the command line sees.

#![cfg(feature = "cli")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use jitquant::ir::Tensor;
use support::{classifier, images, noise, write_npy};

/// A folder with a float model and samples for it.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        classifier().save(desk.path("model.pt")).unwrap();
        write_npy(&desk.path("x.npy"), &images(24, 1));
        write_npy(&desk.path("other.npy"), &images(16, 2));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `jitquant` in the folder.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_jitquant")).args(arguments).current_dir(&self.folder).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error message; the exit code is 1 and OUT.pt is not there.
    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(!self.path("out.pt").exists(), "nothing is written");
        let left: Vec<_> = std::fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().ends_with(".part"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }
}

#[test]
fn from_a_float_file_to_figures() {
    let desk = Desk::new();
    let outcome = desk.json(&["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--json"]);
    assert_eq!(outcome["quantized_layers"], 4);
    assert_eq!(outcome["calibration_samples"], 24);
    assert_eq!(outcome["float"].as_array().unwrap().len(), 0);
    let figures = desk.json(&["compare", "model.pt", "out.pt", "--data", "other.npy", "--json"]);
    assert_eq!(figures["samples"], 16);
    assert!(figures["sqnr_db"].as_f64().unwrap() > 25.0, "{figures}");
    assert!(figures["top1_agreement"].as_f64().unwrap() >= 0.8, "{figures}");
    let same = desk.json(&["compare", "model.pt", "model.pt", "--data", "other.npy", "--json"]);
    assert_eq!((&same["largest_difference"], &same["top1_agreement"]), (&0.0.into(), &1.0.into()));
    let rows = desk.json(&["bench", "model.pt", "out.pt", "--data", "other.npy", "--seconds", "0.1", "--json"]);
    let engines: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["engine"].as_str().unwrap()).collect();
    assert_eq!(engines, ["stock", "stock", "jitquant", "native"]);
    assert_eq!(rows[0]["speed_up"], 1.0);
    let refusal = desk.run(&["bench", "out.pt", "--data", "other.npy", "--engine", "warp"]);
    let text = String::from_utf8_lossy(&refusal.stderr);
    assert!(text.contains("--engine warp") && text.contains("jitquant, native, stock, "), "{text}");
    let table = desk.succeed(&["quantize", "model.pt", "-o", "dyn.pt", "--mode", "dynamic"]);
    assert!(table.contains("conv2d") && table.contains("no dynamic INT8 form"), "{table}");
}

#[test]
fn inspect_says_what_a_model_is() {
    let desk = Desk::new();
    let text = desk.succeed(&["inspect", "model.pt", "--layers"]);
    for wanted in ["x: Tensor", "aten::conv2d", "4 of 4 layers", "conv2", "fc"] {
        assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
    }
    desk.succeed(&["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy"]);
    let report = desk.json(&["inspect", "out.pt", "--json"]);
    assert!(report["refusal"].as_str().unwrap().contains("quantized already"), "{report}");
    assert!(report["quantized"]["conv2d"].is_number(), "{report}");
}

#[test]
fn labels_give_accuracy() {
    let desk = Desk::new();
    let x = images(8, 3);
    let scores = classifier().forward(std::slice::from_ref(&x)).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
    let labels: Vec<f32> = jitquant::measure::top_classes(&scores, 8).into_iter().map(|class| class as f32).collect();
    write_npy(&desk.path("x8.npy"), &x);
    write_npy(&desk.path("labels.npy"), &Tensor::from_slice(&labels, &[8]).unwrap());
    let data = ["--data", "x=x8.npy", "labels=labels.npy", "--labels", "labels", "--json"];
    let figures = desk.json(&[&["compare", "model.pt", "model.pt"], &data[..]].concat());
    assert_eq!(figures["accuracy"]["float"], 1.0);
}

#[test]
fn a_configuration_file_decides_for_parts() {
    let desk = Desk::new();
    std::fs::write(
        desk.path("q.toml"),
        "[modules]\nfc = \"float\"\n[classes]\nConv2d = { activation = { observer = \"min-max\" } }\n",
    )
    .unwrap();
    let quantize = ["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy", "--config", "q.toml", "--json"];
    let outcome = desk.json(&quantize);
    assert_eq!((&outcome["quantized_layers"], &outcome["float"][0]["path"]), (&3.into(), &"fc".into()));
    std::fs::remove_file(desk.path("out.pt")).unwrap();
    for (text, said) in [
        ("[modules]\nfd = \"float\"\n", "fc"),
        ("[default]\nactivation = { observer = \"minmax\" }\n", "min-max"),
        ("[default]\nactivation = { observer = \"histogram\", bin = 3 }\n", "bins"),
        ("[classes]\nLSTM = \"float\"\n", "Conv2d"),
        ("[default]\nactivation = { observer = \"placeholder\" }\n", "static"),
    ] {
        std::fs::write(desk.path("q.toml"), text).unwrap();
        let refusal = desk.fail(&quantize[..8]);
        assert!(refusal.contains(said), "{text}: {refusal}");
    }
}

#[test]
fn errors_say_what_where_and_what_would_be_accepted() {
    let desk = Desk::new();
    let quantize = |model: &str, data: &str| desk.fail(&["quantize", model, "-o", "out.pt", "--calibrate", data]);
    let check = |refusal: String, wanted: &[&str]| {
        for part in wanted {
            assert!(refusal.contains(part), "'{part}' is missing in: {refusal}");
        }
    };
    check(quantize("none.pt", "x.npy"), &["none.pt", "No such file"]);
    std::fs::write(desk.path("text.pt"), "hello").unwrap();
    check(quantize("text.pt", "x.npy"), &["text.pt", "not a TorchScript file", "torch.jit.save"]);
    let bytes = std::fs::read(desk.path("model.pt")).unwrap();
    std::fs::write(desk.path("half.pt"), &bytes[..bytes.len() / 2]).unwrap();
    check(quantize("half.pt", "x.npy"), &["half.pt", "truncated"]);
    check(quantize("model.pt", "none.npy"), &["none.npy"]);
    std::fs::write(desk.path("data.csv"), "1,2").unwrap();
    check(quantize("model.pt", "data.csv"), &["data.csv", ".npz"]);
    write_npy(&desk.path("flat.npy"), &Tensor::from_slice(&noise(8, 1), &[2, 4]).unwrap());
    check(quantize("model.pt", "flat.npy"), &["x: float32 [2, 4]"]);
    write_npy(&desk.path("empty.npy"), &Tensor::from_slice::<f32>(&[], &[0, 1, 12, 12]).unwrap());
    check(quantize("model.pt", "empty.npy"), &["empty.npy"]);
    let mut values = noise(144, 1);
    values[7] = f32::NAN;
    write_npy(&desk.path("nan.npy"), &Tensor::from_slice(&values, &[1, 1, 12, 12]).unwrap());
    check(quantize("model.pt", "nan.npy"), &["nan.npy", "NaN", "sample 0"]);
    check(desk.fail(&["quantize", "model.pt", "-o", "out.pt"]), &["--calibrate", "--mode dynamic"]);
    let skip = ["quantize", "model.pt", "-o", "out.pt", "--mode", "dynamic", "--skip", "classifier"];
    check(desk.fail(&skip), &["classifier", "near it"]);
    desk.succeed(&["quantize", "model.pt", "-o", "int8.pt", "--calibrate", "x.npy"]);
    check(quantize("int8.pt", "x.npy"), &["quantized already"]);
    let nowhere = ["quantize", "model.pt", "-o", "nowhere/out.pt", "--mode", "dynamic"];
    check(desk.fail(&nowhere), &["nowhere"]);
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let desk = Desk::new();
    let old = b"the old file";
    // A limit on the size of files stands for a full disk: the write fails half way.
    let limit = |blocks: u32| {
        let program = Path::new(env!("CARGO_BIN_EXE_jitquant")).display().to_string();
        let script =
            format!("trap '' XFSZ; ulimit -f {blocks}; exec {program} quantize model.pt -o kept.pt --mode dynamic");
        Command::new("bash").args(["-c", &script]).current_dir(&desk.folder).output().unwrap()
    };
    std::fs::write(desk.path("kept.pt"), old).unwrap();
    let output = limit(2);
    assert!(!output.status.success());
    assert_eq!(std::fs::read(desk.path("kept.pt")).unwrap(), old);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("kept.pt") && stderr.contains("written"), "{stderr}");
    assert!(limit(100_000).status.success());
    assert_ne!(std::fs::read(desk.path("kept.pt")).unwrap(), old);
}

#[test]
fn a_model_that_joins_samples_is_calibrated_with_single_ones_and_compared_as_a_whole() {
    let desk = Desk::new();
    let model = jitquant::ir::Module::new("Joined").unwrap();
    model.register_submodule("fc", &support::linear(16, 3, 1)).unwrap();
    model.define("def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(torch.mean(x, [0]))\n").unwrap();
    model.save(desk.path("model.pt")).unwrap();
    let rows = |count: i64, seed: u64| Tensor::from_slice(&noise(count as usize * 16, seed), &[count, 16]).unwrap();
    write_npy(&desk.path("x.npy"), &rows(64, 1));
    write_npy(&desk.path("other.npy"), &rows(5, 2));
    let quantized = desk.run(&["quantize", "model.pt", "-o", "out.pt", "--calibrate", "x.npy"]);
    let said = String::from_utf8(quantized.stderr).unwrap();
    assert!(quantized.status.success() && said.contains("joins the samples"), "{said}");
    // Means of 32 samples are far smaller than those of five.
    let report = desk.json(&["compare", "model.pt", "out.pt", "--data", "other.npy", "--json"]);
    let sqnr = report["sqnr_db"].as_f64().expect("outputs of three values for five samples are compared, too");
    assert!(sqnr > 28.0, "{sqnr}");
}

//! `jitquant export` and `jitquant run`.
#![cfg(feature = "cli")]

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use jitquant::ir::{Module, Type};
use jitquant_runtime::{Model, TensorRef};
use support::{classifier, conv2d, images, noise, write_npy};

/// A folder with a float model and samples for it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let model = classifier();
        model.register_attribute("training", &Type::parse("bool").unwrap(), &false.into()).unwrap();
        model.save(place.path("model.pt")).unwrap();
        write_npy(&place.path("x.npy"), &images(24, 1));
        write_npy(&place.path("other.npy"), &images(40, 2));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_jitquant")).args(arguments).current_dir(&self.folder).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The floats of an array in an archive that is not compressed.
fn floats_of(archive: &[u8], header: &str, count: usize) -> Vec<f32> {
    let at = archive.windows(header.len()).position(|window| window == header.as_bytes());
    let at = at.unwrap_or_else(|| panic!("{header} is not there"));
    let line = archive[at..].iter().position(|byte| *byte == b'\n').unwrap();
    let values = archive[at + line + 1..].chunks_exact(4).take(count);
    values.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

#[test]
fn from_a_float_file_to_results_without_libtorch() {
    let place = Place::new();
    let said = place.succeed(&["export", "model.pt", "-o", "model.jqp", "--calibrate", "x.npy"]);
    assert!(said.contains("takes  x: float32 [batch, 1, height, width]"), "{said}");
    assert!(said.contains("gives  output: float32 [batch, 10]"), "{said}");
    assert!(place.succeed(&["run", "model.jqp"]).contains("takes  x: float32 [batch, 1, height, width]"));
    let said = place.succeed(&["run", "model.jqp", "--data", "other.npy", "-o", "y.npz", "--threads", "2"]);
    assert!(said.contains("output  [40, 10]") && said.contains("40 samples"), "{said}");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 10, ), }";
    let found = floats_of(&std::fs::read(place.path("y.npz")).unwrap(), header, 400);
    let model = Model::open(place.path("model.jqp")).unwrap();
    let values = images(40, 2).to_vec::<f32>().unwrap();
    let expected = model.run(&[TensorRef::floats(&values, &[40, 1, 12, 12])]).unwrap();
    assert_eq!(Some(&found[..]), expected[0].floats());
}

#[test]
fn a_native_file_is_exported_with_the_bits_of_libtorch() {
    let place = Place::new();
    place.succeed(&["quantize", "model.pt", "-o", "int8.pt", "--form", "native", "--calibrate", "x.npy"]);
    let said = place.succeed(&["export", "int8.pt", "-o", "model.jqp", "--json"]);
    let written: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(written["outputs"][0], "output: float32 [batch, 10]");
    assert_eq!(written["file_bytes"], std::fs::metadata(place.path("model.jqp")).unwrap().len());
    let values = noise(5 * 144, 7);
    let input = jitquant::ir::Tensor::from_slice(&values, &[5, 1, 12, 12]).unwrap();
    let expected = Module::load(place.path("int8.pt")).unwrap().forward(&[input]).unwrap();
    let expected = expected.as_tensor().unwrap().to_vec::<f32>().unwrap();
    let results = Model::open(place.path("model.jqp")).unwrap();
    let results = results.run(&[TensorRef::floats(&values, &[5, 1, 12, 12])]).unwrap();
    assert_eq!(results[0].floats(), Some(&expected[..]));
}

#[test]
fn what_cannot_be_exported_or_run_is_said_and_nothing_is_written() {
    let place = Place::new();
    let why = place.fail(&["export", "model.pt", "-o", "model.jqp"]);
    assert!(why.contains("the model needs libtorch") && why.contains("x aten::"), "{why}");
    assert!(!place.path("model.jqp").exists());
    let module = Module::new("Sums").unwrap();
    module.register_submodule("a", &conv2d(1, 4, 3, 1, 10)).unwrap();
    module.register_attribute("training", &Type::parse("bool").unwrap(), &false.into()).unwrap();
    module.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.cumsum(self.a.forward(x), 2)\n").unwrap();
    module.save(place.path("sums.pt")).unwrap();
    let why = place.fail(&["export", "sums.pt", "-o", "sums.jqp", "--calibrate", "x.npy"]);
    assert!(why.contains("1 x aten::cumsum"), "{why}");
    assert!(!place.path("sums.jqp").exists());
    assert!(place.fail(&["export", "model.pt", "-o", "model.pt", "--calibrate", "x.npy"]).contains("the model itself"));
    assert!(place.fail(&["run", "model.pt"]).contains("not a Program file, or a damaged one"));
    assert!(place.fail(&["run", "missing.jqp"]).contains("missing.jqp"));
    place.succeed(&["export", "model.pt", "-o", "model.jqp", "--calibrate", "x.npy"]);
    write_npy(&place.path("wide.npy"), &jitquant::ir::Tensor::from_slice(&noise(288, 1), &[1, 2, 12, 12]).unwrap());
    let why = place.fail(&["run", "model.jqp", "--data", "wide.npy", "-o", "y.npz"]);
    assert!(why.contains("x: float32 [batch, 1, height, width]") && why.contains("[1, 2, 12, 12]"), "{why}");
    assert!(!place.path("y.npz").exists());
}

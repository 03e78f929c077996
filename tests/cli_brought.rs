//! What people bring to the command line: models with operators of other libraries, arguments that are tuples, lists,
//! dictionaries, numbers, models of other float types, files that are no TorchScript.

#![cfg(all(feature = "cli", target_os = "linux"))]

#[path = "support/desk.rs"]
mod desk;
mod programs;
mod support;

use std::path::Path;
use std::process::{Command, Output};

use desk::Desk;
use jitquant::ir::{DType, IValue, Module, Tensor};
use programs::{libtorch, root};
use support::{noise, tensor, write_npy};

fn jitquant(desk: &Desk, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitquant"));
    command.args(arguments).current_dir(&desk.folder).env("OMP_NUM_THREADS", "1").output().unwrap()
}

/// What it says on stderr where it fails.
fn refusal(desk: &Desk, arguments: &[&str]) -> String {
    let output = jitquant(desk, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    stderr
}

/// What it says on stderr where it succeeds.
fn notes(desk: &Desk, arguments: &[&str]) -> String {
    let output = jitquant(desk, arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stderr
}

/// A linear layer of 8 inputs and outputs as a submodule `fc` of a module with this `forward`.
fn model(forward: &str) -> Module {
    let linear = Module::new("torch.nn.modules.linear.Linear").unwrap();
    linear.register_parameter("weight", tensor(&[8, 8], 3)).unwrap();
    linear.register_parameter("bias", tensor(&[8], 4)).unwrap();
    linear
        .define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n")
        .unwrap();
    let model = Module::new("Net").unwrap();
    model.register_submodule("fc", &linear).unwrap();
    model.define(forward).unwrap();
    model
}

/// Arrays of 24 x 8 by name.
fn write_npz(path: &Path, names: &[&str]) {
    use std::io::Write;
    let file = std::fs::File::create(path).unwrap();
    let mut writer = zip::ZipWriter::new(file);
    for (seed, name) in names.iter().enumerate() {
        let part = path.with_extension("npy");
        write_npy(&part, &Tensor::from_slice(&noise(24 * 8, seed as u64), &[24, 8]).unwrap());
        writer.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&std::fs::read(&part).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn libraries_of_operators_are_loaded_first() {
    let desk = Desk::new(4);
    let library = desk.path("operators.so");
    let include = |folder: &str| format!("-isystem{}", libtorch().join(folder).display());
    let compiler = Command::new("c++")
        .args(["-std=c++20", "-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(root().join("tests/programs/operators.cpp"))
        .args([include("include"), include("include/torch/csrc/api/include")])
        .arg(format!("-L{}", libtorch().join("lib").display()))
        .args(["-ltorch_cpu", "-lc10"])
        .output()
        .unwrap();
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    jitquant::load_library(&library).unwrap();
    let twice = model(
        "def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(ops.jitquant_test_library.twice(x))\n",
    );
    twice.save(desk.path("twice.pt")).unwrap();

    let said = refusal(&desk, &["inspect", "twice.pt"]);
    for words in ["twice.pt", "jitquant_test_library::twice", "--library"] {
        assert!(said.contains(words), "{said}");
    }
    notes(&desk, &["inspect", "twice.pt", "--library", "operators.so"]);
    let quantize = ["quantize", "twice.pt", "-o", "out.pt", "--mode", "dynamic", "--library", "./operators.so"];
    notes(&desk, &quantize);
    assert!(desk.path("out.pt").exists());
    for (name, why) in [("none.so", "No such file"), ("x.npy", "not loaded"), ("/dev/null", "not a file")] {
        let said = refusal(&desk, &["--library", name, "inspect", "model.pt"]);
        assert!(said.contains(name) && said.contains(why), "{said}");
    }
}

#[test]
fn arguments_are_put_together_of_arrays() {
    let desk = Desk::new(4);
    for (name, signature, sum, arrays) in [
        ("tuple", "t: Tuple[Tensor, Tensor]", "t[0] + t[1]", &["t.1", "t.0"][..]),
        ("list", "l: List[Tensor]", "l[0] + l[2]", &["l.0", "l.1", "l.2"]),
        ("dict", "d: Dict[str, Tensor]", "d[\"p3\"] + d[\"p4\"]", &["d.p3", "d.p4"]),
        ("nested", "d: Dict[str, List[Tensor]], x: Tensor", "d[\"a\"][0] + x", &["x", "d.a.0", "d.b.0"]),
    ] {
        let source = format!("def forward(self, {signature}) -> Tensor:\n    return self.fc.forward({sum})\n");
        model(&source).save(desk.path(&format!("{name}.pt"))).unwrap();
        let data = format!("{name}.npz");
        write_npz(&desk.path(&data), arrays);
        let (input, output) = (format!("{name}.pt"), format!("{name}.int8.pt"));
        notes(&desk, &["quantize", &input, "-o", &output, "--calibrate", &data, "--rounding", "sums"]);
        notes(&desk, &["compare", &input, &output, "--data", &data]);
    }
    write_npz(&desk.path("plain.npz"), &["a", "b"]);
    let said = refusal(&desk, &["compare", "dict.pt", "dict.pt", "--data", "plain.npz"]);
    assert!(said.contains("Dict[str, Tensor]") && said.contains("d.KEY"), "{said}");
    let said = refusal(&desk, &["compare", "list.pt", "list.pt", "--data", "plain.npz"]);
    assert!(said.contains("l.0, l.1"), "{said}");
}

#[test]
fn numbers_truths_and_texts_are_given_by_name() {
    let desk = Desk::new(4);
    let source = "\
def forward(self, x: Tensor, scale: float, flip: bool, name: str, sizes: List[int], shift: Optional[Tensor]=None) -> Tensor:
    y = self.fc.forward(x) * scale + float(sizes[1])
    if shift is not None:
        y = y + shift
    if flip:
        y = -y
    if name == \"zero\":
        y = y * 0.0
    return y
";
    model(source).save(desk.path("net.pt")).unwrap();
    write_npz(&desk.path("x.npz"), &["x"]);
    let given = ["--input", "scale=0.5", "--input", "flip=true", "--input", "name=one", "--input", "sizes=3,4"];
    let compare = [&["compare", "net.pt", "net.pt", "--data", "x.npz", "--json"], &given[..]].concat();
    notes(&desk, &compare);
    notes(&desk, &[&compare[..], &["--input", "shift=0.25"]].concat());
    let said = refusal(&desk, &compare[..compare.len() - 2]);
    assert!(said.contains("--input sizes=VALUE"), "{said}");
    let said = refusal(&desk, &[&compare[..], &["--input", "bias=1"]].concat());
    assert!(said.contains("x, scale, flip, name, sizes, shift"), "{said}");
    let said = refusal(&desk, &["compare", "net.pt", "net.pt", "--data", "x.npz", "--input", "scale=big"]);
    assert!(said.contains("--input scale=big: not of type float"), "{said}");
}

#[test]
fn arguments_with_a_default_value_may_be_missing_anywhere() {
    let desk = Desk::new(4);
    let source = "\
def forward(self, x: Tensor, mask: Optional[Tensor]=None, y: Optional[Tensor]=None, k: int=2) -> Tensor:
    assert mask is None
    assert k == 2
    z = self.fc.forward(x)
    if y is not None:
        z = z + y
    return z
";
    model(source).save(desk.path("net.pt")).unwrap();
    write_npz(&desk.path("xy.npz"), &["x", "y"]);
    write_npz(&desk.path("x.npz"), &["x"]);
    for data in ["xy.npz", "x.npz"] {
        notes(&desk, &["compare", "net.pt", "net.pt", "--data", data]);
    }
}

fn cast(tensor: &Tensor, dtype: DType) -> Tensor {
    let values = tensor.to_vec::<f32>().unwrap();
    let bytes: Vec<u8> = match dtype {
        DType::F64 => values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect(),
        // bfloat16 is the upper half of float32.
        _ => values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect(),
    };
    Tensor::from_bytes(dtype, &tensor.shape(), &bytes).unwrap()
}

#[test]
fn other_float_types_are_said_and_converted() {
    let desk = Desk::new(4);
    write_npz(&desk.path("x.npz"), &["x"]);
    for (dtype, code, name) in [(DType::F64, 7, "float64"), (DType::BF16, 15, "bfloat16")] {
        let net = model(&format!(
            "def forward(self, x: Tensor) -> Tensor:\n    y = torch.to(x, {code})\n    return self.fc.forward(y)\n"
        ));
        let linear = net.submodule("fc").unwrap();
        for parameter in ["weight", "bias"] {
            let value = linear.attribute(parameter).unwrap();
            linear.set_attribute(parameter, &IValue::Tensor(cast(value.as_tensor().unwrap(), dtype))).unwrap();
        }
        net.save(desk.path("net.pt")).unwrap();
        for mode in ["static", "dynamic", "weight-only"] {
            let mut arguments = vec!["quantize", "net.pt", "-o", "out.pt", "--mode", mode];
            if mode == "static" {
                arguments.extend(["--calibrate", "x.npz"]);
            }
            let said = refusal(&desk, &arguments);
            for words in [name, "quantization starts from float32", ".float()", "--to-float"] {
                assert!(said.contains(words), "{words} {mode}: {said}");
            }
            arguments.push("--to-float");
            let said = notes(&desk, &arguments);
            assert!(said.contains("2 parameters and buffers") && said.contains("1 casts"), "{said}");
            let int8 = Module::load(desk.path("out.pt")).unwrap();
            int8.forward(&[tensor(&[2, 8], 9)]).unwrap();
            std::fs::remove_file(desk.path("out.pt")).unwrap();
        }
        notes(&desk, &["compare", "net.pt", "net.pt", "--data", "x.npz"]);
    }
}

#[test]
fn what_is_left_of_a_model_is_said() {
    let desk = Desk::new(4);
    let net = model(
        "def forward(self, x: Tensor) -> Tensor:\n    return self.half(self.fc.forward(x))\n\ndef half(self, x: Tensor) -> Tensor:\n    return x * 0.5\n\ndef reset(self) -> int:\n    return 0\n",
    );
    net.register_attribute("training", &jitquant::ir::Type::parse("bool").unwrap(), &IValue::Bool(true)).unwrap();
    net.save(desk.path("net.pt")).unwrap();
    let quantize = ["quantize", "net.pt", "-o", "out.pt", "--mode", "dynamic"];
    let said = notes(&desk, &quantize);
    assert!(said.contains("training mode"), "{said}");
    assert!(said.contains("left out: reset; --preserve NAME") && !said.contains("half"), "{said}");
    let said = notes(&desk, &[&quantize[..], &["--preserve", "reset"]].concat());
    assert!(!said.contains("left out"), "{said}");
}

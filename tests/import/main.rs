//! Programs that `torch.export.save` wrote (scripts/models/exported.py): their float outputs are Python's, also at other
//! sizes, and INT8 keeps what it keeps of TorchScript. Damaged and hostile files are refused with a reason.

#![cfg(feature = "torch")]

mod hostile;
mod npz;
mod quantize;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jitquant::ir::{DType, IValue, Module, Tensor, Type};

/// How far outputs may be from Python's, of the largest of them.
const TOLERANCE: f64 = 1e-5;

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/programs")
}

pub fn program(name: &str) -> PathBuf {
    folder().join(format!("{name}.pt2"))
}

/// The runs of a program: arrays by their names.
pub fn runs(name: &str) -> Vec<BTreeMap<String, Tensor>> {
    let mut runs: Vec<BTreeMap<String, Tensor>> = Vec::new();
    for (key, tensor) in npz::read(&folder().join(format!("{name}.npz"))) {
        let (run, name) = key.split_once('/').unwrap();
        let run: usize = run.parse().unwrap();
        runs.resize_with(runs.len().max(run + 1), BTreeMap::new);
        runs[run].insert(name.to_owned(), tensor);
    }
    runs
}

/// An argument of that name and type, from the arrays of a run.
fn argument(name: &str, ty: &Type, arrays: &BTreeMap<String, Tensor>) -> IValue {
    let part = |key: &str, ty: &Type| argument(&format!("{name}.{key}"), ty, arrays);
    let array = || arrays.get(name).unwrap_or_else(|| panic!("array {name} is missing"));
    let contained = ty.contained();
    let keys = || {
        let mut keys: Vec<&str> = Vec::new();
        for key in arrays.keys().filter_map(|key| key.strip_prefix(name)?.strip_prefix('.')) {
            let key = key.split('.').next().unwrap();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    };
    match ty.kind().as_str() {
        "TensorType" => IValue::Tensor(array().clone()),
        "IntType" => IValue::Int(array().to_vec::<i64>().unwrap()[0]),
        "FloatType" => IValue::Double(array().to_vec::<f64>().unwrap()[0]),
        "TupleType" => {
            // A tuple of several fields may have their names.
            let names = keys();
            let numbered = |index: usize| names.contains(&index.to_string().as_str());
            let items = contained.iter().enumerate().map(|(index, ty)| match numbered(index) {
                true => part(&index.to_string(), ty),
                false => part(names[index], ty),
            });
            IValue::Tuple(items.collect())
        }
        "ListType" => {
            let items = (0..keys().len()).map(|index| part(&index.to_string(), &contained[0])).collect();
            IValue::List { element: contained[0].annotation(), items }
        }
        "DictType" => IValue::Dict {
            key: contained[0].annotation(),
            value: contained[1].annotation(),
            items: keys().into_iter().map(|key| (key.into(), part(key, &contained[1]))).collect(),
        },
        other => panic!("argument {name} is a {other}"),
    }
}

/// The arguments of a run; those that became several have the array's name with `_` for `.`.
pub fn arguments(module: &Module, arrays: &BTreeMap<String, Tensor>) -> Vec<IValue> {
    let schema = module.schema("forward").unwrap();
    let is_there = |name: &str| arrays.keys().any(|key| key == name || key.starts_with(&format!("{name}.")));
    let flat: BTreeMap<String, Tensor> =
        arrays.iter().map(|(name, tensor)| (name.replace('.', "_"), tensor.clone())).collect();
    let arguments = schema.arguments.iter().skip(1);
    arguments
        .map(|argument| {
            let ty = Type::parse(&argument.type_name).unwrap();
            let value = self::argument(&argument.name, &ty, if is_there(&argument.name) { arrays } else { &flat });
            // A model may write into it.
            value.deep_clone().unwrap()
        })
        .collect()
}

/// The leaves of a result that are not `None`, as Python's pytree has them.
fn leaves(value: &IValue) -> Vec<Tensor> {
    match value {
        IValue::None => Vec::new(),
        IValue::Tensor(tensor) => vec![tensor.clone()],
        IValue::Int(number) => vec![Tensor::from_slice(&[*number], &[]).unwrap()],
        IValue::Double(number) => vec![Tensor::from_slice(&[*number], &[]).unwrap()],
        IValue::Bool(truth) => vec![Tensor::from_bytes(DType::Bool, &[], &[u8::from(*truth)]).unwrap()],
        IValue::Tuple(items) | IValue::List { items, .. } => items.iter().flat_map(leaves).collect(),
        IValue::Dict { items, .. } => items.iter().flat_map(|(_, value)| leaves(value)).collect(),
        other => panic!("a result that is a {}", other.kind()),
    }
}

/// The largest difference, of the largest number.
fn difference(found: &Tensor, wanted: &Tensor) -> f64 {
    let (found, wanted) = (found.to_f32_vec().unwrap(), wanted.to_f32_vec().unwrap());
    let largest = wanted.iter().filter(|v| v.is_finite()).fold(1e-3f64, |most, v| most.max(f64::from(v.abs())));
    let pairs = found.iter().zip(&wanted);
    let differences =
        pairs.map(|(a, b)| if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { f64::from((a - b).abs()) });
    differences.fold(0.0, f64::max) / largest
}

/// What is wrong with what a module gives.
fn fault(module: &Module, runs: &[BTreeMap<String, Tensor>], tolerance: f64) -> Option<String> {
    for (number, run) in runs.iter().enumerate() {
        let result = match module.forward(&arguments(module, run)) {
            Ok(result) => leaves(&result),
            Err(e) => return Some(format!("run {number}: {e}")),
        };
        let wanted: Vec<_> = (0..).map_while(|place| run.get(&format!("output_{place}"))).collect();
        if wanted.len() != result.len() {
            return Some(format!("run {number}: {} results, not {}", result.len(), wanted.len()));
        }
        for (place, (found, wanted)) in result.iter().zip(wanted).enumerate() {
            if (found.shape(), found.dtype()) != (wanted.shape(), wanted.dtype()) {
                return Some(format!("run {number}, output {place}: {found:?}, not {wanted:?}"));
            }
            let difference = difference(found, wanted);
            if difference.is_nan() || difference > tolerance {
                return Some(format!("run {number}, output {place}: {difference:e} apart"));
            }
        }
    }
    None
}

/// How far a program that PT2E quantized may be from the float model: its weights are rounded to 8 bits.
const ROUNDED: f64 = 0.03;

/// The names of all programs.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().flatten().map(|file| file.path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "pt2"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() > 40, "{} programs", names.len());
    names
}

#[test]
fn float_outputs_are_those_of_python() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut faults = Vec::new();
    for name in names().into_iter().filter(|name| name.contains(&only)) {
        let runs = runs(&name);
        let loaded = match Module::load(program(&name)) {
            Ok(loaded) => loaded,
            Err(e) => {
                faults.push(format!("{name}: {e}"));
                continue;
            }
        };
        // The file that is made of it gives the same.
        let saved = loaded.save_bytes().and_then(|bytes| Module::load_bytes(&bytes));
        let tolerance = if name.starts_with("pt2e") { ROUNDED } else { TOLERANCE };
        let fault = |module: &Module| fault(module, &runs, tolerance);
        faults.extend(fault(&loaded).map(|fault| format!("{name}: {fault}")));
        match saved {
            Ok(saved) => faults.extend(fault(&saved).map(|fault| format!("{name}, saved: {fault}"))),
            Err(e) => faults.push(format!("{name}, saved: {e}")),
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn tensors_lie_under_their_dotted_names() {
    let module = Module::load(program("cnn")).unwrap();
    let paths: Vec<String> = module.modules().into_iter().map(|(path, _)| path).collect();
    for path in ["stem.0", "layer1.1.conv2", "fc"] {
        assert!(paths.iter().any(|known| known == path), "{path} in {paths:?}");
    }
    let classes: Vec<_> = module.modules().into_iter().map(|(_, part)| part.class_name()).collect();
    assert!(
        classes.iter().any(|class| class.contains("torch.nn.modules.conv") && class.ends_with("Conv2d")),
        "{classes:?}"
    );
    let bn = module.modules().into_iter().find(|(path, _)| path == "stem.1").unwrap().1;
    let roles: Vec<_> = bn.attributes().into_iter().map(|a| (a.name, a.is_parameter, a.is_buffer)).collect();
    assert!(roles.contains(&("weight".to_owned(), true, false)), "{roles:?}");
    assert!(roles.contains(&("running_mean".to_owned(), false, true)), "{roles:?}");
    assert!(!module.is_training());
}

#[test]
fn nodes_know_their_line_and_arguments_their_names() {
    let module = Module::load(program("keywords")).unwrap();
    let names: Vec<_> = module.schema("forward").unwrap().arguments.into_iter().map(|argument| argument.name).collect();
    assert_eq!(names, ["self", "x", "other", "bias"]);
    let graph = module.submodule("a").unwrap().graph("forward").unwrap();
    let linear = graph.all_nodes().into_iter().find(|node| node.kind() == "aten::linear").unwrap();
    let place = linear.source_range().unwrap();
    assert!(place.file.ends_with("model.py") && place.line > 100, "{place:?}");
    assert!(place.text.contains("self.a(x)"), "{place:?}");
}

#[test]
fn inputs_of_other_sizes_are_refused_with_the_sizes() {
    let module = Module::load(program("cnn")).unwrap();
    let wrong = Tensor::from_slice(&[0.0f32; 4 * 144], &[1, 4, 12, 12]).unwrap();
    let refusal = module.forward(&[wrong]).unwrap_err().to_string();
    assert!(refusal.contains("input 'x' should have the sizes [2, 3, 12, 12]"), "{refusal}");
    let module = Module::load(program("encoder_dynamic")).unwrap();
    let long = Tensor::from_slice(&[0i64; 40], &[1, 40]).unwrap();
    let refusal = module.forward(&[long]).unwrap_err().to_string();
    assert!(refusal.contains("size 1 of input 'ids' should be at most 32"), "{refusal}");
}

#[test]
fn inputs_are_written_where_the_model_writes_them() {
    let module = Module::load(program("input_mutated")).unwrap();
    let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0], &[3]).unwrap();
    module.forward(&[&x].map(IValue::from)).unwrap();
    assert_eq!(x.to_vec::<f32>().unwrap(), [2.0, 3.0, 4.0]);
}

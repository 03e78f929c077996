//! Models whose INT8 form is exact, and how they are compared.
//!
//! The layer's weights are -1, 0 and 1, and each row that it takes holds 0 and 255 and whole numbers between: all of them are
//! steps of the INT8 grid. What a model computes of whole numbers is whole, so that INT8 and float differ by nothing.

use jitquant::ir::{IValue, Module, Node, Tensor};
use jitquant::pass::prepare::{flatten, functionalize};
use jitquant::{Methods, ModelForm, Quantizer, Rounding};

/// Sizes of all tensors.
pub const SIZE: i64 = 4;

/// Whole numbers from -8 to 7, the same everywhere.
pub fn whole(seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491_4F6C_DD1D);
    let values: Vec<f32> = (0..SIZE * SIZE)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 60) as i64 - 8) as f32
        })
        .collect();
    Tensor::from_slice(&values, &[SIZE, SIZE]).unwrap()
}

/// A module with a linear layer `fc`, a method `layer` that calls it on whole numbers, buffers `n` and `h`, and this
/// `forward`.
pub fn model(forward: &str) -> Module {
    let fc = Module::new("torch.nn.modules.linear.Linear").unwrap();
    let weight = [1, 0, -1, 0, 0, 1, 0, 1, -1, 0, 1, 1, 0, 1, 0, -1].map(|value| value as f32);
    fc.register_parameter("weight", Tensor::from_slice(&weight, &[SIZE, SIZE]).unwrap()).unwrap();
    fc.register_parameter("bias", Tensor::from_slice(&[1.0f32, 0.0, -2.0, 3.0], &[SIZE]).unwrap()).unwrap();
    fc.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n").unwrap();
    let model = Module::new("Model").unwrap();
    model.register_submodule("fc", &fc).unwrap();
    for name in ["n", "h"] {
        model.register_buffer(name, whole(name.len() as u64 + 40)).unwrap();
    }
    let source = format!(
        "def layer(self, x: Tensor) -> Tensor:
    low = torch.zeros_like(x[:, 0:1])
    x = torch.cat([low, low + 255.0, torch.clamp(x[:, 2:], 0.0, 255.0)], 1)
    return torch.floor((self.fc.forward(x) + 0.5) / 8.0)
{forward}"
    );
    model.define(&source).unwrap_or_else(|error| panic!("{error}\n{source}"));
    model
}

/// Whether `node` writes into a tensor.
fn writes(node: &Node<'_>) -> bool {
    node.schema().is_some_and(|schema| schema.arguments.iter().any(|argument| argument.is_write))
}

/// The nodes that write in place in the functional form, and what it says that stays.
pub fn left(model: &Module) -> (Vec<String>, Vec<String>) {
    let flat = flatten(model, &[]).unwrap();
    let reasons = functionalize(&mut flat.graph("forward").unwrap()).unwrap();
    let graph = flat.graph("forward").unwrap();
    let nodes = graph.all_nodes().iter().filter(|node| writes(node)).map(|node| node.kind().to_owned()).collect();
    (nodes, reasons.into_iter().map(|(_, why)| why).collect())
}

fn numbers(value: &IValue) -> Vec<Vec<f32>> {
    value.tensors().iter().map(|tensor| tensor.to_f32_vec().unwrap()).collect()
}

/// Runs the model three times in a row: what it gives, and what its arguments are after.
pub fn runs(module: &Module) -> Result<Vec<Vec<Vec<f32>>>, String> {
    (0..3)
        .map(|seed| {
            let inputs: Vec<IValue> = vec![whole(seed + 1).into(), whole(seed + 11).into()];
            let output = module.forward(&inputs).map_err(|error| error.to_string())?;
            Ok(numbers(&output).into_iter().chain(inputs.iter().flat_map(numbers)).collect())
        })
        .collect()
}

/// The first output that differs: of which run, and by what.
fn difference(got: &[Vec<Vec<f32>>], wanted: &[Vec<Vec<f32>>]) -> String {
    for (run, (got, wanted)) in std::iter::zip(got, wanted).enumerate() {
        if let Some(index) = std::iter::zip(got, wanted).position(|(got, wanted)| got != wanted) {
            return format!("run {run}, output {index}: {:?}, not {:?}", got[index], wanted[index]);
        }
    }
    "another number of outputs".to_owned()
}

/// Compares the functional form and the INT8 forms with `model`, bit by bit; `Err` says what differs.
pub fn check(model: &Module, forms: &[ModelForm]) -> Result<(), String> {
    let float = |module: &Module| runs(&module.deep_clone().unwrap());
    // libtorch's optimizations lose some writes: what is wanted is what the code says.
    let as_written = |module: &Module| jitquant_oracle::unoptimized(|| float(module));
    let wanted = as_written(model)?;
    let flat = flatten(model, &[]).map_err(|error| error.to_string())?;
    if as_written(&flat).map_err(|error| format!("the flat form: {error}"))? != wanted {
        return Err(format!("the flat form differs\n{}", flat.graph("forward").unwrap()));
    }
    functionalize(&mut flat.graph("forward").unwrap()).map_err(|error| format!("functionalize: {error}"))?;
    flat.graph("forward").unwrap().lint().map_err(|error| format!("functionalize: {error}"))?;
    let got = float(&flat).map_err(|error| format!("the functional form: {error}"))?;
    if got != wanted {
        let graph = flat.graph("forward").unwrap();
        return Err(format!("the functional form: {}\n{graph}", difference(&got, &wanted)));
    }
    for form in forms {
        let methods = Methods { rounding: Rounding::Nearest, ..Methods::default() };
        let quantizer = Quantizer::static_ptq().form(*form).methods(methods).check(false);
        let mut prepared = match quantizer.prepare(model) {
            // What the layer gave was written over before anybody read it.
            Err(error) if error.to_string().contains("no layer that could be quantized") => return Ok(()),
            // What may be written over by another name stays in float, and that may be all.
            Err(error) if error.to_string().contains("no layer would be quantized") => return Ok(()),
            prepared => prepared.map_err(|error| format!("prepare: {error}"))?,
        };
        // All that runs later has run: a branch that no sample reached has no ranges.
        for seed in 0..3 {
            let inputs: Vec<IValue> = vec![whole(seed + 1).into(), whole(seed + 11).into()];
            let before: Vec<_> = inputs.iter().map(numbers).collect();
            prepared.calibrate(&inputs).map_err(|error| format!("calibrate: {error}"))?;
            assert_eq!(inputs.iter().map(numbers).collect::<Vec<_>>(), before, "samples are the caller's");
        }
        let int8 = prepared.convert().map_err(|error| format!("convert: {error}"))?;
        assert!(int8.report.quantized_layers > 0, "the layer is quantized: {:?}", int8.report);
        let got = runs(&int8.module).map_err(|error| format!("INT8 ({form:?}): {error}"))?;
        // Values are whole numbers, and a range has steps of 0.13: a lost write is one off or more.
        let far = |a: &f32, b: &f32| (a - b).abs() > 0.5;
        let flat = |all: &[Vec<Vec<f32>>]| all.iter().flatten().flatten().copied().collect::<Vec<_>>();
        let (got, wanted) = (flat(&got), flat(&wanted));
        if got.len() != wanted.len() || std::iter::zip(&got, &wanted).any(|(a, b)| far(a, b)) {
            let graph = int8.module.graph("forward").unwrap();
            return Err(format!("INT8 ({form:?}) gives {got:?}, not {wanted:?}\n{graph}"));
        }
    }
    Ok(())
}

/// [`check`] in both forms.
pub fn assert_same(forward: &str) -> Module {
    let model = model(forward);
    if let Err(why) = check(&model, &[ModelForm::Portable, ModelForm::Native]) {
        panic!("{why}\n{forward}");
    }
    model
}

/// [`assert_same`], and nothing is left that writes in place but `copies` copies: into an argument at the end, or into a new
/// tensor through a view that has no other form.
pub fn assert_pure(forward: &str, copies: usize) {
    let model = assert_same(forward);
    let (nodes, reasons) = left(&model);
    assert!(nodes.iter().all(|kind| kind == "aten::copy_") && nodes.len() == copies, "{nodes:?}");
    assert!(reasons.is_empty(), "{reasons:?}");
}

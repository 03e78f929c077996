//! Weights of 8 and 4 bits with float activations: how near the answers stay, that nothing makes the weights large again,
//! that the native form computes the same, and what is refused.
#![cfg(feature = "torch")]

mod support;

use std::collections::BTreeMap;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::{ModelForm, Quantizer, WeightOnly};
use support::{classifier, images, noise};

fn tensor(shape: &[i64], seed: u64) -> Tensor {
    Tensor::from_slice(&noise(shape.iter().product::<i64>() as usize, seed), shape).unwrap()
}

/// A module with these parameters and this `forward`.
fn module(parameters: &[(&str, &[i64])], forward: &str) -> Module {
    let module = Module::new("Net").unwrap();
    for (seed, (name, shape)) in (1..).zip(parameters) {
        module.register_parameter(name, tensor(shape, seed)).unwrap();
    }
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {forward}\n")).unwrap();
    module
}

/// Two linear layers, of 256 and of 100 inputs: groups fit the first one only.
fn two_linear() -> Module {
    module(
        &[("w", &[100, 256]), ("b", &[100]), ("v", &[40, 100])],
        "return torch.linear(torch.relu(torch.linear(x, self.w, self.b)), self.v)",
    )
}

fn small(model: &Module, form: WeightOnly, model_form: ModelForm) -> (Module, BTreeMap<String, usize>) {
    let converted = Quantizer::weight_only(form).form(model_form).prepare(model).unwrap().convert().unwrap();
    assert_eq!(converted.report.float, Vec::new());
    assert_eq!(converted.report.quantized_layers, converted.report.quantized_operators.values().sum::<usize>());
    // Through a file, as a user has it.
    let loaded = Module::load_bytes(&converted.module.save_bytes().unwrap()).unwrap();
    (loaded, converted.report.quantized_operators)
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn answer(model: &Module, x: &Tensor) -> Vec<f32> {
    model.forward(std::slice::from_ref(x)).unwrap().as_tensor().unwrap().to_vec().unwrap()
}

/// Signal to noise, in dB.
fn sqnr(signal: &[f32], other: &[f32]) -> f64 {
    assert_eq!(signal.len(), other.len());
    let noise: f64 = signal.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * (signal.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() / noise.max(1e-30)).log10()
}

fn kinds(model: &Module) -> Vec<String> {
    model.graph("forward").unwrap().all_nodes().into_iter().map(|node| node.kind().to_owned()).collect()
}

const FOUR: WeightOnly = WeightOnly::Bits4 { group: 32 };

#[test]
fn a_convolutional_network_keeps_its_answers_in_8_bits() {
    let model = classifier();
    let (small, kept) = small(&model, WeightOnly::Bits8, ModelForm::Portable);
    assert_eq!(kept, counts(&[("conv2d_8bit", 3), ("linear_8bit", 1)]));
    assert!(kinds(&small).iter().all(|kind| kind.starts_with("aten::") || kind.starts_with("prim::")), "any libtorch");
    let x = images(8, 3);
    let db = sqnr(&answer(&model, &x), &answer(&small, &x));
    assert!((35.0..70.0).contains(&db), "{db} dB: near, and not the float weights");
}

#[test]
fn linear_layers_keep_theirs_in_4_bits() {
    let model = two_linear();
    let x = tensor(&[7, 256], 9);
    let float = answer(&model, &x);
    let db = |form| {
        let (small, kept) = small(&model, form, ModelForm::Portable);
        (sqnr(&float, &answer(&small, &x)), kept, small.save_bytes().unwrap().len())
    };
    let (eight, kept, eight_bytes) = db(WeightOnly::Bits8);
    assert_eq!(kept, counts(&[("linear_8bit", 2)]));
    let (four, kept, four_bytes) = db(FOUR);
    assert_eq!(kept, counts(&[("linear_4bit", 1), ("linear_8bit", 1)]), "100 inputs are no groups of 32");
    let (coarse, _, _) = db(WeightOnly::Bits4 { group: 128 });
    println!("8 bits {eight:.1} dB, 4 bits in groups of 32 {four:.1} dB, of 128 {coarse:.1} dB");
    assert!(eight > 38.0 && four > 21.0 && coarse > 18.0 && eight > four && four > coarse);
    let float_bytes = model.save_bytes().unwrap().len();
    println!("bytes: float {float_bytes}, 8 bits {eight_bytes}, 4 bits {four_bytes}");
    assert!(eight_bytes < float_bytes / 2 && four_bytes < eight_bytes - 8_000);
}

#[test]
fn every_kind_of_layer_with_a_weight_is_known() {
    type Parameters = [(&'static str, &'static [i64])];
    let cases: [(&Parameters, &str, &[i64], &str); 5] = [
        (&[("w", &[6, 2, 3]), ("b", &[6])], "torch.conv1d(x, self.w, self.b, [1], [1], [1], 2)", &[2, 4, 9], "conv1d"),
        (&[("w", &[6, 4, 2, 3, 3])], "torch.conv3d(x, self.w)", &[2, 4, 3, 5, 6], "conv3d"),
        (
            &[("w", &[4, 5, 3]), ("b", &[5])],
            "torch.conv_transpose1d(x, self.w, self.b)",
            &[2, 4, 9],
            "conv_transpose1d",
        ),
        (
            &[("w", &[4, 3, 3, 2]), ("b", &[6])],
            "torch.conv_transpose2d(x, self.w, self.b, [2, 2], [1, 1], [0, 0], 2, [1, 1])",
            &[2, 4, 5, 6],
            "conv_transpose2d",
        ),
        (&[("w", &[30, 8]), ("b", &[8])], "torch.addmm(self.b, x, self.w)", &[5, 30], "linear"),
    ];
    for (parameters, forward, sizes, operator) in cases {
        let model = module(parameters, &format!("return {forward}"));
        let (small, kept) = small(&model, WeightOnly::Bits8, ModelForm::Portable);
        assert_eq!(kept, counts(&[(&format!("{operator}_8bit"), 1)]), "{forward}");
        let x = tensor(sizes, 5);
        let db = sqnr(&answer(&model, &x), &answer(&small, &x));
        assert!((38.0..70.0).contains(&db), "{forward}: {db} dB");
    }
}

#[test]
fn embeddings_are_looked_up_in_8_bits() {
    let forward = "return torch.linear(torch.embedding(self.table, torch.abs(x * 49.0).to(4)), self.w)";
    let model = module(&[("table", &[50, 32]), ("w", &[8, 32])], forward);
    let (small, kept) = small(&model, FOUR, ModelForm::Portable);
    assert_eq!(kept, counts(&[("embedding_8bit", 1), ("linear_4bit", 1)]));
    let x = tensor(&[3, 4], 5);
    let db = sqnr(&answer(&model, &x), &answer(&small, &x));
    assert!((17.0..40.0).contains(&db), "{db} dB");
}

/// Tensors in float of so many elements and more that a graph's text has as constants.
fn float_constants(graph: &str, least: i64) -> Vec<String> {
    let is_large = |line: &&str| {
        let Some(sizes) = line.split_once(": Float(").and_then(|(_, rest)| rest.split_once(", strides")) else {
            return false;
        };
        line.contains("prim::Constant")
            && sizes.0.split(", ").filter_map(|s| s.parse::<i64>().ok()).product::<i64>() >= least
    };
    graph.lines().filter(is_large).map(str::to_owned).collect()
}

#[test]
fn nothing_folds_weights_back_to_float() {
    let conv = "return torch.conv2d(x, self.w)";
    let cases = [
        (two_linear(), WeightOnly::Bits8, vec![4, 256]),
        (two_linear(), FOUR, vec![4, 256]),
        (module(&[("w", &[16, 8, 3, 3])], conv), WeightOnly::Bits8, vec![1, 8, 7, 7]),
    ];
    for (model, form, sizes) in cases {
        // The check itself sees the float weights of the float model.
        let frozen = &jitquant_oracle::optimized(&model.save_bytes().unwrap(), &sizes).unwrap()[0];
        assert!(!float_constants(frozen, 1000).is_empty(), "{frozen}");
        let bytes = small(&model, form, ModelForm::Portable).0.save_bytes().unwrap();
        let names = ["frozen", "optimize_for_inference", "as executed"];
        for (name, graph) in names.iter().zip(jitquant_oracle::optimized(&bytes, &sizes).unwrap()) {
            assert!(graph.contains("aten::type_as"), "{name}: the weight is made float when it is used\n{graph}");
            assert_eq!(float_constants(&graph, 1000), Vec::<String>::new(), "{name}, {form:?}\n{graph}");
        }
    }
}

#[test]
fn the_native_form_computes_the_same() {
    let model = two_linear();
    for form in [WeightOnly::Bits8, FOUR, WeightOnly::Bits4 { group: 128 }] {
        let (portable, _) = small(&model, form, ModelForm::Portable);
        let (native, _) = small(&model, form, ModelForm::Native);
        let calls = kinds(&native).iter().filter(|kind| *kind == "jitquant::linear_weight_only").count();
        assert_eq!(calls, 2, "{}", native.graph("forward").unwrap());
        assert!(kinds(&native).iter().all(|kind| kind != "aten::linear" && kind != "aten::type_as"));
        for rows in [1, 2, 3, 4, 5, 33] {
            let x = tensor(&[rows, 256], rows as u64);
            let db = sqnr(&answer(&portable, &x), &answer(&native, &x));
            assert!(db > 110.0, "{form:?}, {rows} rows: {db} dB");
        }
        // Of a file that was saved in portable form, too.
        let again = jitquant::pass::to_native(&portable).unwrap();
        let x = tensor(&[2, 3, 256], 4);
        assert_eq!(answer(&again, &x), answer(&native, &x));
    }
}

#[test]
fn the_operator_packs_unpacks_and_refuses() {
    jitquant::init().unwrap();
    let ops = Module::new("Ops").unwrap();
    ops.define(
        "def eight(self, w: Tensor, s: Tensor, b: Optional[Tensor]):\n    \
         return ops.jitquant.linear_weight_only_unpack(ops.jitquant.linear_weight_only_prepack(w, s, None, b))\n\
         def four(self, w: Tensor, s: Tensor, o: Tensor):\n    \
         return ops.jitquant.linear_weight_only_unpack(ops.jitquant.linear_weight_only_prepack(w, s, o, None))\n\
         def run(self, x: Tensor, w: Tensor, s: Tensor) -> Tensor:\n    \
         return ops.jitquant.linear_weight_only(x, ops.jitquant.linear_weight_only_prepack(w, s, None, None))\n",
    )
    .unwrap();
    let eight = Tensor::from_slice(&(-60..60i8).collect::<Vec<_>>(), &[5, 24]).unwrap();
    let (scales, bias) = (tensor(&[5], 1), tensor(&[5], 2));
    let call = |name: &str, inputs: &[IValue]| ops.call::<IValue>(name, inputs);
    let parts = call("eight", &[(&eight).into(), (&scales).into(), (&bias).into()]).unwrap();
    let [w, s, b] = parts.tensors()[..] else { panic!("{parts:?}") };
    assert!(w.equal(&eight).unwrap() && s.equal(&scales).unwrap() && b.equal(&bias).unwrap());
    let four = Tensor::from_slice(&(0..160u8).collect::<Vec<_>>(), &[5, 32]).unwrap();
    let bf16 = |seed: usize| {
        let bytes: Vec<u8> = (0..10).flat_map(|i| (0x3F80u16 + (i * seed) as u16).to_ne_bytes()).collect();
        Tensor::from_bytes(jitquant::ir::DType::BF16, &[5, 2], &bytes).unwrap()
    };
    let parts = call("four", &[(&four).into(), (&bf16(1)).into(), (&bf16(2)).into()]).unwrap();
    let [w, s, o] = parts.tensors()[..] else { panic!("{parts:?}") };
    assert!(w.equal(&four).unwrap() && s.equal(&bf16(1)).unwrap() && o.equal(&bf16(2)).unwrap());
    let refusal =
        |x: Tensor, w: &Tensor, s: &Tensor| call("run", &[(&x).into(), w.into(), s.into()]).unwrap_err().to_string();
    assert!(refusal(tensor(&[2, 7], 1), &eight, &scales).contains("a layer of 24 inputs"));
    assert!(refusal(eight.clone(), &eight, &scales).contains("float32"));
    assert!(refusal(tensor(&[2, 24], 1), &tensor(&[5, 24], 1), &scales).contains("int8"));
    assert!(refusal(tensor(&[2, 24], 1), &eight, &tensor(&[4], 1)).contains("its scales"));
    let y = call("run", &[(&tensor(&[2, 0, 24], 1)).into(), (&eight).into(), (&scales).into()]).unwrap();
    assert_eq!(y.as_tensor().unwrap().shape(), [2, 0, 5]);
}

#[test]
fn shapes_are_known_without_data() {
    jitquant::init().unwrap();
    let ops = Module::new("Ops").unwrap();
    ops.define(
        "def run(self, x: Tensor, w: Tensor, s: Tensor) -> Tensor:\n    \
         packed = ops.jitquant.linear_weight_only_prepack(w, s, None, None)\n    \
         return ops.jitquant.linear_weight_only(torch.empty_like(x, device='meta'), packed)\n",
    )
    .unwrap();
    let weight = Tensor::from_slice(&[1i8; 12], &[3, 4]).unwrap();
    let y: IValue = ops.call("run", &[tensor(&[2, 5, 4], 1), weight, tensor(&[3], 1)]).unwrap();
    assert_eq!(y.as_tensor().unwrap().shape(), [2, 5, 3]);
}

#[test]
fn what_stays_in_float_is_listed_with_the_reason() {
    let model = Module::new("Net").unwrap();
    for (seed, name) in (1..).zip(["a", "b", "c"]) {
        model.register_parameter(name, tensor(&[32, 32], seed)).unwrap();
    }
    let mut bad = noise(32 * 32, 7);
    bad[5] = f32::NAN;
    model.set_attribute("b", &Tensor::from_slice(&bad, &[32, 32]).unwrap().into()).unwrap();
    let forward = "y = torch.linear(torch.linear(x, self.a), self.b)\n    return torch.matmul(y, torch.linear(x, self.c * x[0, 0]))";
    model.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {forward}\n")).unwrap();
    let converted = Quantizer::weight_only(WeightOnly::Bits8).prepare(&model).unwrap().convert().unwrap();
    assert_eq!(converted.report.quantized_operators, counts(&[("linear_8bit", 1)]));
    let mut reasons: Vec<_> = converted.report.float.iter().map(|layer| layer.reason.as_str()).collect();
    reasons.sort_unstable();
    let expected = [
        "it multiplies two activations and has no weight",
        "its weight holds NaN",
        "its weight is computed when the model runs",
    ];
    assert_eq!(reasons, expected);
    // A part that is to stay in float.
    let skipped = Quantizer::weight_only(WeightOnly::Bits8).skip("conv2").prepare(&classifier()).unwrap();
    let report = skipped.convert().unwrap().report;
    assert_eq!((report.quantized_layers, report.float[0].path.as_str()), (3, "conv2"));
    // A second time.
    for form in [ModelForm::Portable, ModelForm::Native] {
        let (once, _) = small(&two_linear(), WeightOnly::Bits8, form);
        let refusal = Quantizer::static_ptq().prepare(&once).unwrap_err().to_string();
        assert!(refusal.contains("quantized already"), "{refusal}");
    }
}

#[test]
fn layers_that_share_a_weight_share_the_small_one() {
    let twice = "return torch.linear(torch.linear(x, self.w), self.w)";
    let model = module(&[("w", &[128, 128])], twice);
    let (small, kept) = small(&model, WeightOnly::Bits8, ModelForm::Portable);
    assert_eq!(kept, counts(&[("linear_8bit", 2)]));
    let bytes = small.save_bytes().unwrap().len();
    assert!(bytes < 2 * 128 * 128, "{bytes} bytes hold the weight once");
}

#[cfg(feature = "cli")]
#[test]
fn the_command_line_quantizes_weights_alone() {
    let folder = tempfile::tempdir().unwrap();
    two_linear().save(folder.path().join("m.pt")).unwrap();
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_jitquant"));
        command.args(["quantize", "m.pt", "-o", "out.pt", "--mode", "weight-only"]).args(more);
        command.current_dir(&folder).output().unwrap()
    };
    let output = run(&["--weight-bits", "4", "--group", "128", "--form", "native", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["quantized_operators"]["linear_4bit"], 1, "{outcome}");
    let loaded = Module::load(folder.path().join("out.pt")).unwrap();
    assert_eq!(answer(&loaded, &tensor(&[2, 256], 1)).len(), 80);
    let output = run(&["--weight-bits", "3"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("8 and 4 are accepted"));
}

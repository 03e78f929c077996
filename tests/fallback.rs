//! Static quantization with default options of models that no operator-by-operator run goes through: what the interpreter alone can
//! run, arguments that are not given, branches, state.

#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::{Methods, Quantizer, Rounding};

use support::noise;

/// A small model: two convolutions, `body` between them and `end` behind them.
fn model(arguments: &str, body: &str, end: &str, result: &str) -> Module {
    let model = Module::new("Model").unwrap();
    let weight = |shape: &[i64], seed| {
        let count = shape.iter().product::<i64>() as usize;
        Tensor::from_slice(&noise(count, seed), shape).unwrap()
    };
    model.register_parameter("w", weight(&[8, 3, 3, 3], 1)).unwrap();
    model.register_parameter("v", weight(&[4, 8, 1, 1], 2)).unwrap();
    model.register_buffer("seen", weight(&[1], 3)).unwrap();
    model
        .define(&format!(
            "def forward(self, x: Tensor{arguments}) -> {result}:
    y = torch.relu(torch.conv2d(x, self.w, None, [1, 1], [1, 1]))
{body}
    z = torch.conv2d(y, self.v)
{end}
"
        ))
        .unwrap();
    model
}

fn batch(seed: u64) -> Tensor {
    Tensor::from_slice(&noise(2 * 3 * 64, seed), &[2, 3, 8, 8]).unwrap()
}

fn floats(value: &IValue) -> Vec<f32> {
    value.tensors().iter().flat_map(|tensor| tensor.to_f32_vec().unwrap()).collect()
}

fn quantized(model: &Module, methods: Methods) -> jitquant::Result<Module> {
    let mut prepared = Quantizer::static_ptq().methods(methods).prepare(model)?;
    for seed in 0..4 {
        prepared.calibrate(&[batch(seed)])?;
    }
    Ok(prepared.convert()?.module)
}

fn sqnr(float: &Module, int8: &Module) -> f64 {
    let [float, int8] = [float, int8].map(|module| floats(&module.forward(&[batch(9)]).unwrap()));
    assert_eq!(float.len(), int8.len());
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
    let noise = power(&mut std::iter::zip(&float, &int8).map(|(a, b)| a - b));
    10.0 * (power(&mut float.iter().copied()) / noise).log10()
}

fn differs(one: &Module, other: &Module) -> bool {
    floats(&one.forward(&[batch(9)]).unwrap()) != floats(&other.forward(&[batch(9)]).unwrap())
}

fn with(rounding: Rounding) -> Methods {
    Methods { rounding, ..Methods::default() }
}

/// Models that are run from layer to layer, whatever is between: name, arguments, body, end, result.
const FITTED: [(&str, &str, &str, &str, &str); 8] = [
    ("a dictionary", "", "", "    return {\"scores\": z, \"features\": y}", "Dict[str, Tensor]"),
    (
        "a list that grows",
        "",
        "    parts = [y]\n    parts.append(torch.relu(y - 0.5))\n    parts.append(parts[0] + parts[1])\n    y = parts[2]",
        "    return z",
        "Tensor",
    ),
    (
        "a dictionary that grows",
        "",
        "    d = {\"a\": y}\n    d[\"b\"] = y * 2\n    y = d[\"b\"]",
        "    return z",
        "Tensor",
    ),
    ("text", "", "    name = \"{}\".format(y.size(0))\n    print(name)", "    return z", "Tensor"),
    (
        "an argument with a default value",
        ", scale: float = 2., mask: Optional[Tensor] = None",
        "    y = y * scale",
        "    return z",
        "Tensor",
    ),
    ("writes", "", "    y = y * 1\n    y.add_(1)", "    return z", "Tensor"),
    (
        "a tuple of lists",
        "",
        "    pair = ([y, y * 2], 3)\n    y = pair[0][1] * pair[1]",
        "    return (z, [y])",
        "Tuple[Tensor, List[Tensor]]",
    ),
    (
        "several results of an operator",
        "",
        "    a, b = torch.chunk(y, 2, 1)\n    y = torch.cat([b, a], 1)",
        "    return z",
        "Tensor",
    ),
];

#[test]
fn what_only_the_interpreter_can_run_is_run_by_it() {
    for (name, arguments, body, end, result) in FITTED {
        let model = model(arguments, body, end, result);
        let [auto, learned, sums] = [Rounding::Auto, Rounding::Learned, Rounding::Sums]
            .map(|rounding| quantized(&model, with(rounding)).unwrap_or_else(|e| panic!("{name}: {e}")));
        assert!(!differs(&auto, &learned), "{name}: rounding is learned");
        assert!(differs(&auto, &sums), "{name}: rounding is learned");
        assert!(sqnr(&model, &auto) > 30.0, "{name}: {} dB", sqnr(&model, &auto));
        let both = Methods { bias_correction: true, equalize: true, ..with(Rounding::Auto) };
        let int8 = quantized(&model, both).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(sqnr(&model, &int8) > 25.0, "{name}: {} dB", sqnr(&model, &int8));
    }
}

#[test]
fn layers_around_branches_and_loops_are_fitted_and_those_within_rounded_by_sums() {
    let branch =
        "    if bool(y.sum() > 0):\n        y = torch.relu(torch.conv2d(y, self.v))\n        y = torch.cat([y, y], 1)";
    let bodies = [
        branch,
        "    for i in range(2):\n        y = y * 0.9",
        // An early return.
        "    if x.size(0) > 100:\n        return y",
    ];
    for body in bodies {
        let model = model("", body, "    return z", "Tensor");
        let [auto, sums] = [Rounding::Auto, Rounding::Sums].map(|rounding| quantized(&model, with(rounding)).unwrap());
        assert!(differs(&auto, &sums), "{body}");
        assert!(sqnr(&model, &auto) > 25.0, "{body}: {} dB", sqnr(&model, &auto));
        let both = Methods { bias_correction: true, equalize: true, ..with(Rounding::Auto) };
        assert!(sqnr(&model, &quantized(&model, both).unwrap()) > 25.0, "{body}");
    }
}

#[test]
fn a_model_that_keeps_state_is_rounded_by_sums_and_says_so_where_learning_was_asked_for() {
    let model = model("", "    self.seen = self.seen + 1", "    return z + self.seen", "Tensor");
    let before = floats(&model.attribute("seen").unwrap());
    let module = quantized(&model, Methods::default()).unwrap();
    assert!(module.has_method("forward"));
    assert_eq!(floats(&model.attribute("seen").unwrap()), before, "the model's state is as it was");
    let refusal = quantized(&model, with(Rounding::Learned)).unwrap_err().to_string();
    assert!(refusal.contains("keeps state") && refusal.contains("sums"), "{refusal}");
}

#[test]
fn a_missing_argument_without_a_default_is_an_error_that_says_so() {
    let model = model(", scale: float", "    y = y * scale", "    return z", "Tensor");
    let mut prepared = Quantizer::static_ptq().prepare(&model).unwrap();
    let error = prepared.calibrate(&[batch(1)]).unwrap_err().to_string();
    assert!(error.contains("scale") && error.len() < 1600, "{error}");
}

#[test]
fn a_model_that_fails_on_the_data_fails_with_a_short_message_and_its_place() {
    let inner = Module::new("Inner").unwrap();
    inner.define("def check(self, x: Tensor) -> Tensor:\n    return x.view([7])\ndef forward(self, x: Tensor) -> Tensor:\n    return self.check(x)").unwrap();
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", Tensor::from_slice(&noise(9, 1), &[3, 3, 1, 1]).unwrap()).unwrap();
    model.register_submodule("inner", &inner).unwrap();
    model
        .define("def forward(self, x: Tensor) -> Tensor:\n    return self.inner.forward(torch.conv2d(x, self.w))")
        .unwrap();
    drop(inner);
    let mut prepared = Quantizer::static_ptq().prepare(&model).unwrap();
    drop(model);
    let error = prepared.calibrate(&[batch(1)]).unwrap_err().to_string();
    assert!(error.contains("shape '[7]' is invalid") && error.len() < 300, "{error}");
}

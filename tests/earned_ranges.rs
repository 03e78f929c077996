//! Ranges are earned: what is quantized with a range has seen it, and an operator hands its input's range on only where its
//! arguments allow it. Each model is compared with itself in float.

#![cfg(feature = "torch")]

mod support;

use jitquant::control::Ranges;
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::qconfig::{Observers, QConfigSpec};
use jitquant::{Methods, ModelForm, Quantizer, Report, Rounding};
use support::{noise, tensor};

/// A module with parameters of noise, `(name, shape, largest)`.
fn model(parameters: &[(&str, &[i64], f32)], source: &str) -> Module {
    jitquant::init().unwrap();
    let module = Module::new("Net").unwrap();
    for (seed, (name, shape, largest)) in parameters.iter().enumerate() {
        let values = noise(shape.iter().product::<i64>() as usize, seed as u64 + 1);
        let values: Vec<f32> = values.into_iter().map(|value| value * largest).collect();
        module.register_parameter(name, Tensor::from_slice(&values, shape).unwrap()).unwrap();
    }
    module.define(source).unwrap();
    module
}

fn scaled(shape: &[i64], seed: u64, factor: f32) -> Tensor {
    let values: Vec<f32> = tensor(shape, seed).to_vec::<f32>().unwrap().into_iter().map(|v| v * factor).collect();
    Tensor::from_slice(&values, shape).unwrap()
}

fn static_ptq() -> Quantizer {
    Quantizer::static_ptq().methods(Methods { rounding: Rounding::Sums, ..Methods::default() })
}

/// Signal to quantization noise, in dB, over all floating-point results.
fn sqnr(float: &IValue, int8: &IValue) -> f64 {
    let (mut signal, mut error) = (0.0, 0.0);
    assert_eq!(float.tensors().len(), int8.tensors().len());
    for (float, int8) in std::iter::zip(float.tensors(), int8.tensors()) {
        assert_eq!(float.shape(), int8.shape());
        for (f, q) in std::iter::zip(float.to_f32_vec().unwrap(), int8.to_f32_vec().unwrap()) {
            signal += f64::from(f) * f64::from(f);
            error += (f64::from(f) - f64::from(q)).powi(2);
        }
    }
    10.0 * (signal / error.max(1e-300)).log10()
}

/// Quantizes and takes the module through a file.
fn int8(quantizer: &Quantizer, module: &Module, data: &[Vec<IValue>]) -> (Module, Report) {
    let mut prepared = quantizer.prepare(module).unwrap();
    data.iter().for_each(|batch| drop(prepared.calibrate(batch).unwrap()));
    let converted = prepared.convert().unwrap();
    (Module::load_bytes(&converted.module.save_bytes().unwrap()).unwrap(), converted.report)
}

/// The least SQNR of both forms on `input`, and the report of the last.
fn quantized(module: &Module, data: &[Vec<IValue>], input: &[IValue]) -> (f64, Report) {
    let float = module.call::<IValue>("forward", input).unwrap();
    let forms = [ModelForm::Portable, ModelForm::Native];
    let of = |form: ModelForm| {
        let (module, report) = int8(&static_ptq().form(form), module, data);
        (sqnr(&float, &module.call::<IValue>("forward", input).unwrap()), report)
    };
    let [(portable, _), (native, report)] = forms.map(of);
    (portable.min(native), report)
}

fn images(size: i64, seed: u64) -> Vec<IValue> {
    vec![tensor(&[4, 3, size, size], seed).into()]
}

/// Two convolutions of one image, the second with ten times the range, what `middle` makes of them, and a third one.
fn between_convolutions(middle: &str, channels: i64) -> Module {
    model(
        &[
            ("a", &[4, 3, 3, 3], 0.3),
            ("b", &[4, 3, 3, 3], 3.0),
            ("c", &[4, channels, 1, 1], 0.5),
            ("low", &[1, 4, 1, 1], 0.2),
        ],
        &format!(
            "def forward(self, x: Tensor) -> Tensor:
    a = torch.conv2d(x, self.a, None, [1, 1], [1, 1])
    b = torch.conv2d(x, self.b, None, [1, 1], [1, 1])
    {middle}
    return torch.conv2d(y, self.c)
"
        ),
    )
}

#[test]
fn results_beyond_the_range_of_the_input_have_their_own() {
    let cases = [
        ("y = torch.stack([a, b], 1).flatten(1, 2)", 8),
        ("y = torch.stack([a, b, b], -1).mean(-1)", 4),
        ("parts = [a]\n    parts.append(b)\n    y = torch.stack(parts).sum(0)", 4),
        ("y = torch.max(a, b)", 4),
        ("y = torch.min(b, a)", 4),
        ("y = torch.clamp(a, self.low, self.low + 0.5)", 4),
        ("y = torch.clamp(b, self.low)", 4),
        ("y = torch.avg_pool2d(a, [2, 2], divisor_override=1)", 4),
        ("y = torch.leaky_relu(a, 3.0)", 4),
        ("y = torch.leaky_relu(torch.relu(b) - 1.0, -2.0)", 4),
        ("y = torch.add(a, 2, alpha=3)", 4),
        ("y = torch.add(a, b, alpha=3)", 4),
        ("y = torch.upsample_bicubic2d(torch.relu(b), [17, 17], True)", 4),
        ("y = torch.mean(b, [3], True, dtype=6)", 4),
        ("y, i = torch.max(b, 3, True)\n    y = y + i.to(6)", 4),
        ("y, i = torch.min(b, 2)\n    y = y.unsqueeze(2)", 4),
    ];
    for (middle, channels) in cases {
        let module = between_convolutions(middle, channels);
        let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
        let (db, report) = quantized(&module, &data, &images(9, 50));
        // A mean, or the largest, of nine values has a part of their spread, and the same steps.
        let least = if middle.contains("dtype") || middle.contains("i.to(6)") { 20.0 } else { 26.0 };
        assert!(db > least, "{middle}: {db:.1} dB");
        assert!(report.float.is_empty(), "{middle}: {:?}", report.float);
    }
}

#[test]
fn what_keeps_within_the_range_still_hands_it_on() {
    for middle in [
        "y = torch.avg_pool2d(a, [2, 2], [2, 2], [1, 1])",
        "y = torch.leaky_relu(a, 0.1)",
        "y = torch.mean(a, [3], True)",
        "y = torch.add(a, 2)",
        "y = torch.max(a, 3, True)[0]",
        "y = torch.hardtanh(torch.max_pool2d(a, [2, 2]), -0.5, 0.5)",
    ] {
        let module = between_convolutions(middle, 4);
        let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
        let (int8, _) = int8(&static_ptq(), &module, &data);
        let graph = int8.graph("forward").unwrap();
        let quantized = graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::quantize_per_tensor").count();
        assert_eq!(quantized, 1, "{middle}: only the input is quantized\n{graph}");
    }
}

#[test]
fn a_branch_that_no_sample_reached_stays_in_float() {
    let module = model(
        &[("a", &[4, 3, 3, 3], 0.3), ("b", &[4, 4, 3, 3], 0.15), ("c", &[4, 4, 1, 1], 0.5)],
        "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv2d(x, self.a))
    if x.size(3) > 10:
        x = torch.relu(torch.conv2d(x, self.b))
    return torch.conv2d(x, self.c)
",
    );
    let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
    for size in [9, 16] {
        let (db, report) = quantized(&module, &data, &images(size, 50));
        assert!(db > 30.0, "{size}: {db:.1} dB");
        let reasons: Vec<_> = report.float.iter().map(|layer| layer.reason.as_str()).collect();
        assert!(reasons.contains(&"no calibration sample reached it"), "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.contains("no calibration sample reached")), "{reasons:?}");
    }
}

#[test]
fn an_expert_without_tokens_takes_what_comes() {
    let module = model(
        &[("a", &[16, 8], 0.5), ("b", &[16, 8], 5.0)],
        "def forward(self, x: Tensor, kind: Tensor) -> Tensor:
    y = torch.linear(x, self.a)
    rare = x[torch.gt(kind, 0.5)]
    return torch.cat([y, torch.linear(rare, self.b)])
",
    );
    let batch =
        |seed, kind: f32| vec![tensor(&[32, 8], seed).into(), Tensor::from_slice(&[kind; 32], &[32]).unwrap().into()];
    let data: Vec<Vec<IValue>> = (0..4).map(|seed| batch(seed, 0.0)).collect();
    let (db, report) = quantized(&module, &data, &batch(1, 1.0));
    assert!(db > 30.0, "{db:.1} dB");
    // Quantized by row, it needs no data.
    assert!(report.float.is_empty(), "{:?}", report.float);
}

#[test]
fn a_product_of_activations_stays_in_float_beside_a_layer() {
    let module = model(
        &[("a", &[4, 3, 3, 3], 0.3), ("b", &[5, 49], 0.5)],
        "def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
    f = torch.relu(torch.conv2d(x, self.a)).flatten(2).select(0, 0)
    g = torch.linear(f, self.b)
    return torch.matmul(f, f.transpose(0, 1)), torch.matmul(g, torch.t(g))
",
    );
    let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
    let (db, report) = quantized(&module, &data, &images(9, 50));
    assert!(db > 30.0, "{db:.1} dB");
    assert_eq!(report.float.len(), 2, "{:?}", report.float);
}

#[test]
fn stored_and_own_statistics_are_two_things() {
    let parameters: &[(&str, &[i64], f32)] =
        &[("a", &[4, 3, 3, 3], 0.3), ("g", &[4], 1.0), ("m", &[4], 2.0), ("c", &[4, 4, 1, 1], 0.5)];
    let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
    for (between, statistics) in [("", "False"), ("", "True"), ("torch.relu", "False"), ("torch.relu", "True")] {
        let stored = if statistics == "False" { "self.m, torch.exp(self.g)" } else { "None, None" };
        let module = model(
            parameters,
            &format!(
                "def forward(self, x: Tensor) -> Tensor:
    x = {between}(torch.conv2d(x, self.a))
    x = torch.instance_norm(x, self.g, self.m, {stored}, {statistics}, 0.1, 0.00001, False)
    return torch.conv2d(torch.relu(x), self.c)
"
            ),
        );
        let (db, report) = quantized(&module, &data, &images(9, 50));
        assert!(db > 28.0, "{between} {statistics}: {db:.1} dB, {:?}", report.float);
    }
}

#[test]
fn report_and_file_agree_on_batch_norms() {
    let module = model(
        &[("a", &[4, 3, 3, 3], 0.3), ("g", &[4], 1.0), ("h", &[3], 1.0), ("c", &[4, 4, 1, 1], 0.5)],
        "def forward(self, x: Tensor) -> Tensor:
    x = torch.batch_norm(x, self.h, self.h, self.h, torch.exp(self.h), False, 0.1, 0.00001, False)
    x = torch.relu(torch.conv2d(torch.sin(x), self.a))
    x = torch.batch_norm(x, self.g, self.g, self.g, torch.exp(self.g), False, 0.1, 0.00001, False)
    return torch.conv2d(x, self.c)
",
    );
    let data: Vec<_> = (0..4).map(|seed| images(9, seed)).collect();
    let (int8, report) = int8(&static_ptq(), &module, &data);
    let graph = int8.graph("forward").unwrap();
    let count = |kind: &str| graph.all_nodes().into_iter().filter(|node| node.kind() == kind).count();
    let listed = report.float.iter().filter(|layer| layer.operator == "batch_norm").count();
    assert_eq!(listed, count("aten::batch_norm"), "{:?}\n{graph}", report.float);
    assert_eq!(listed, 1);
    assert_eq!(report.quantized_operators.get("batch_norm"), Some(&1));
}

#[test]
fn small_weights_keep_their_steps() {
    let module = model(
        &[("a", &[16, 8], 1e-7), ("b", &[4, 16], 0.5)],
        "def forward(self, x: Tensor) -> Tensor:
    return torch.linear(torch.relu(torch.linear(x, self.a)), self.b)
",
    );
    let data: Vec<_> = (0..4).map(|seed| vec![scaled(&[32, 8], seed, 1e7).into()]).collect();
    let input = [scaled(&[32, 8], 50, 1e7).into()];
    let (db, _) = quantized(&module, &data, &input);
    assert!(db > 30.0, "{db:.1} dB");
    let float = module.call::<IValue>("forward", &input).unwrap();
    for form in [ModelForm::Portable, ModelForm::Native] {
        let (int8, _) = int8(&Quantizer::dynamic().form(form), &module, &[]);
        let db = sqnr(&float, &int8.call::<IValue>("forward", &input).unwrap());
        assert!(db > 30.0, "{form:?}: {db:.1} dB");
    }
}

#[test]
fn the_bias_of_a_dead_channel_stays() {
    let module = model(
        &[("a", &[16, 8], 1e-20), ("c", &[16, 8], 0.5), ("bias", &[16], 0.5), ("b", &[4, 32], 0.5)],
        "def forward(self, x: Tensor) -> Tensor:
    x = torch.linear(x, torch.cat([self.a, self.c]), torch.cat([self.bias, self.bias]))
    return torch.linear(torch.relu(x), self.b)
",
    );
    let data: Vec<_> = (0..4).map(|seed| vec![tensor(&[32, 8], seed).into()]).collect();
    let (db, report) = quantized(&module, &data, &[tensor(&[32, 8], 50).into()]);
    assert!(db > 35.0, "{db:.1} dB");
    assert!(report.float.is_empty(), "{:?}", report.float);
}

#[test]
fn layers_that_int8_has_no_room_for_stay_in_float() {
    let module = model(
        &[("a", &[0, 8], 1.0), ("b", &[4, 8], 0.5), ("w", &[4, 70_000], 0.01)],
        "def forward(self, x: Tensor, y: Tensor) -> Tensor:
    empty = torch.linear(x, self.a)
    return torch.cat([torch.linear(x, self.b), empty, torch.linear(y, self.w)], 1)
",
    );
    let batch = |seed| vec![tensor(&[6, 8], seed).into(), tensor(&[6, 70_000], seed + 1).into()];
    let (db, report) = quantized(&module, &[batch(1), batch(5)], &batch(9));
    assert!(db > 30.0, "{db:.1} dB");
    let reasons: Vec<_> = report.float.iter().map(|layer| layer.reason.as_str()).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].contains("empty") && reasons[1].contains("70000 products"), "{reasons:?}");
    let float = module.call::<IValue>("forward", &batch(9)).unwrap();
    for form in [ModelForm::Portable, ModelForm::Native] {
        let (int8, report) = int8(&Quantizer::dynamic().form(form), &module, &[]);
        assert!(sqnr(&float, &int8.call::<IValue>("forward", &batch(9)).unwrap()) > 30.0);
        assert_eq!(report.float.len(), 2, "{:?}", report.float);
    }
}

#[test]
fn a_file_keeps_large_scales() {
    let module = between_convolutions("y = torch.relu(a)", 4);
    let large = |seed| vec![IValue::from(scaled(&[4, 3, 9, 9], seed, 3e14))];
    let data: Vec<_> = (0..4).map(large).collect();
    let (db, report) = quantized(&module, &data, &large(50));
    assert!(db > 30.0, "{db:.1} dB");
    assert!(report.float.is_empty(), "{:?}", report.float);
}

#[test]
fn nan_that_the_model_drops_is_passed_over() {
    let source = "def forward(self, x: Tensor) -> Tensor:
    logarithm = torch.conv1d(torch.log(x), self.a)
    plain = torch.conv1d(x, self.b)
    return torch.where(torch.gt(torch.min(x, 1, True)[0], 0.0), logarithm, plain)
";
    let module = model(&[("a", &[4, 2, 1], 0.5), ("b", &[4, 2, 1], 0.5)], source);
    let data: Vec<_> = (0..4).map(|seed| vec![tensor(&[4, 2, 16], seed).into()]).collect();
    let (db, report) = quantized(&module, &data, &[tensor(&[4, 2, 16], 50).into()]);
    assert!(db > 30.0, "{db:.1} dB");
    assert_eq!(report.float.len(), 1, "{:?}", report.float);
    assert!(report.float[0].reason.contains("NaN"), "{:?}", report.float);

    let mut prepared = static_ptq().prepare(&module).unwrap();
    let bad = Tensor::from_slice(&[0.5f32, f32::NAN], &[1, 2, 1]).unwrap();
    let refusal = prepared.calibrate(&[bad]).unwrap_err().to_string();
    assert!(refusal.starts_with("the observer of ") && refusal.contains("NaN"), "{refusal}");
}

/// A transformer's feed-forward part, with channels of very different ranges.
fn feed_forward() -> Module {
    model(
        &[("g", &[32], 4.0), ("a", &[64, 32], 0.2), ("b", &[32, 64], 0.2)],
        "def forward(self, x: Tensor) -> Tensor:
    y = torch.layer_norm(x, [32], self.g, self.g)
    return x + torch.linear(torch.gelu(torch.linear(y, self.a)), self.b)
",
    )
}

#[test]
fn few_rows_give_no_static_range() {
    let module = feed_forward();
    let (db, _) = quantized(&module, &[vec![tensor(&[8, 32], 1).into()]], &[tensor(&[512, 32], 50).into()]);
    assert!(db > 38.0, "{db:.1} dB");
    let operators = |rows: i64| {
        let (int8, _) = int8(&static_ptq(), &module, &[vec![tensor(&[rows, 32], 1).into()]]);
        let graph = int8.graph("forward").unwrap().to_string();
        graph.matches("aten::amin").count()
    };
    assert_eq!(operators(8), 2, "both by row");
    assert_eq!(operators(2000), 1, "the one behind the layer norm has a range");
}

#[test]
fn recorded_ranges_serve_what_can_use_them() {
    let module = between_convolutions("y = torch.relu(a)", 4);
    let mut prepared = static_ptq().prepare(&module).unwrap();
    (0..4).for_each(|seed| drop(prepared.calibrate(&images(9, seed)).unwrap()));
    let ranges = Ranges::of(&prepared).unwrap();
    let activation = Some(ObserverConfig::new(ObserverKind::MinMax));
    let spec = QConfigSpec { default: Observers { activation, weight: None }, ..QConfigSpec::default() };
    let quantizer = Quantizer::static_ptq().qconfig(spec).form(ModelForm::Native);
    let mut other = quantizer.prepare(&module).unwrap();
    assert_eq!(ranges.restore(&mut other).unwrap(), Vec::<String>::new());
    let float = module.call::<IValue>("forward", &images(9, 50)).unwrap();
    let int8 = other.convert().unwrap().module;
    assert!(sqnr(&float, &int8.call::<IValue>("forward", &images(9, 50)).unwrap()) > 30.0);

    // The other way round there is no histogram, and the file says what it has.
    let reverse = Ranges::of(&other).unwrap();
    assert_eq!(reverse.kept(), "min-max");
    assert!(!reverse.restore(&mut static_ptq().prepare(&module).unwrap()).unwrap().is_empty());

    // A model whose layers need no range at all has nothing to record, and converts without data.
    let gelu = model(
        &[("a", &[64, 32], 0.2)],
        "def forward(self, x: Tensor) -> Tensor:\n    return torch.gelu(torch.linear(torch.gelu(x), self.a))\n",
    );
    let mut prepared = static_ptq().prepare(&gelu).unwrap();
    prepared.calibrate(&[tensor(&[4, 32], 1)]).unwrap();
    let ranges = Ranges::of(&prepared).unwrap();
    let mut other = static_ptq().form(ModelForm::Native).prepare(&gelu).unwrap();
    assert_eq!(ranges.restore(&mut other).unwrap(), Vec::<String>::new());
    assert_eq!(other.convert().unwrap().report.quantized_layers, 1);
}

/// What an input was quantized with, and the largest magnitude that calibration saw.
fn range_of_input(samples: i64) -> (f64, f64) {
    let module = model(
        &[("w", &[4, 8], 0.5)],
        "def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(torch.relu(torch.linear(x, self.w)), self.w.t())\n",
    );
    let batch = tensor(&[samples, 8], 5);
    let seen = batch.to_f32_vec().unwrap().into_iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let (converted, _) = int8(&static_ptq(), &module, &[vec![batch.into()]]);
    let graph = converted.graph("forward").unwrap();
    let quantize = graph.all_nodes().into_iter().find(|node| node.kind() == "aten::quantize_per_tensor").unwrap();
    let number = |index: usize| quantize.input(index).unwrap().constant().unwrap().as_number().unwrap();
    (number(1) * number(2).max(255.0 - number(2)), f64::from(seen))
}

#[test]
fn few_values_of_an_input_leave_room_for_others() {
    let (range, seen) = range_of_input(64);
    assert!((1.15..1.25).contains(&(range / seen)), "{range} of {seen}");
    let (range, seen) = range_of_input(4096);
    assert!(range < 1.02 * seen, "{range} of {seen}");
}

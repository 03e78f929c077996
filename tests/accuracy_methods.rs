//! Methods that keep a quantized model accurate: each does what it is for, and changes nothing else.

#![cfg(feature = "torch")]

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::pass::{QuantType, finalize, insert_quant_dequant, stock_operators, to_native};
use jitquant::qconfig::{Observers, QConfigSpec};
use jitquant::{Converted, Methods, Quantizer, Rounding, StockEngine};

/// Numbers that look random and are the same everywhere: -1 to 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491_4F6C_DD1D);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn random(shape: &[i64], seed: u64) -> Tensor {
    Tensor::from_slice(&noise(shape.iter().product::<i64>() as usize, seed), shape).unwrap()
}

fn sqnr(float: &Module, int8: &Module, input: &Tensor) -> f64 {
    let run = |module: &Module| {
        Tensor::try_from(module.forward(std::slice::from_ref(input)).unwrap()).unwrap().to_f32_vec().unwrap()
    };
    let mut comparison = Comparison::default();
    comparison.add(&run(float), &run(int8), 1);
    comparison.sqnr_db()
}

/// Static quantization with this observer of activations.
fn with_observer(kind: ObserverKind) -> Quantizer {
    let activation = Some(ObserverConfig::new(kind));
    let default = Observers { activation, weight: None };
    Quantizer::static_ptq().qconfig(QConfigSpec { default, ..QConfigSpec::default() })
}

/// What a method comes to by itself: the check at the end would leave layers in float where that is little.
fn quantized(model: &Module, quantizer: Quantizer, batches: &[Tensor]) -> Converted {
    let mut prepared = quantizer.check(false).prepare(model).unwrap();
    for batch in batches {
        prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    }
    prepared.convert().unwrap()
}

fn count(module: &Module, kind: &str) -> usize {
    module.graph("forward").unwrap().all_nodes().into_iter().filter(|node| node.kind() == kind).count()
}

/// A layer norm with two outlying channels, two linear layers with gelu between them, and a residual, as in BERT.
fn transformer_block() -> Module {
    let model = Module::new("Block").unwrap();
    let mut gamma = vec![1.0f32; 32];
    (gamma[3], gamma[17]) = (40.0, 25.0);
    model.register_parameter("gamma", Tensor::from_slice(&gamma, &[32]).unwrap()).unwrap();
    model.register_parameter("beta", random(&[32], 2)).unwrap();
    model.register_parameter("w1", random(&[64, 32], 3)).unwrap();
    model.register_parameter("b1", random(&[64], 4)).unwrap();
    model.register_parameter("w2", random(&[32, 64], 5)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    n = torch.layer_norm(x, [32], self.gamma, self.beta, 1e-5)
    h = torch.gelu(torch.linear(n, self.w1, self.b1))
    return torch.softmax(n + torch.linear(h, self.w2), -1) * 10.0
",
        )
        .unwrap();
    model
}

fn tokens(seed: u64) -> Tensor {
    random(&[4, 16, 32], seed)
}

#[test]
fn linear_layers_between_float_operators_keep_a_float_result() {
    let model = transformer_block();
    let quantizer = Quantizer::static_ptq().engine(StockEngine::Fbgemm);
    // Ranges of channels are taken from 1024 rows on.
    let rows: Vec<_> = (10..26).map(tokens).collect();
    let int8 = quantized(&model, quantizer, &rows);
    assert_eq!(int8.report.quantized_layers, 2);
    let fused = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32";
    assert_eq!((count(&int8.module, fused), count(&int8.module, "quantized::linear_dynamic")), (1, 1));
    for absent in ["aten::quantize_per_tensor", "quantized::layer_norm", "quantized::add"] {
        assert_eq!(count(&int8.module, absent), 0, "{absent}");
    }
    // Not every engine of libtorch has that operator.
    let methods = Methods { float_results: false, ..Methods::default() };
    let everywhere = quantized(&model, Quantizer::static_ptq().methods(methods), &rows);
    let counted = [fused, "quantized::linear_dynamic"].map(|kind| count(&everywhere.module, kind));
    assert_eq!((everywhere.report.quantized_layers, counted), (2, [0, 2]));
    // It is libtorch's operators alone, and survives being saved.
    let loaded = Module::load_bytes(&int8.module.save_bytes().unwrap()).unwrap();
    assert!(sqnr(&int8.module, &loaded, &tokens(12)).is_infinite());
}

#[test]
fn smoothing_takes_outlying_channels_out_of_the_way() {
    let model = transformer_block();
    let with = |smooth: f32| {
        let methods = Methods { smooth, per_row: false, ..Methods::default() };
        let batches = [tokens(10), tokens(11), tokens(12), tokens(13)];
        sqnr(&model, &quantized(&model, Quantizer::static_ptq().methods(methods), &batches).module, &tokens(20))
    };
    let (off, on) = (with(0.0), with(0.9));
    assert!(on > off + 3.0, "{off} dB without smoothing, {on} dB with it");
}

#[test]
fn a_row_with_outliers_costs_the_other_rows_nothing() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[16, 32], 1)).unwrap();
    model
        .define("def forward(self, x: Tensor) -> Tensor:\n    return torch.sin(torch.linear(torch.gelu(x), self.w))\n")
        .unwrap();
    let mut values = noise(16 * 32, 5);
    values[..32].iter_mut().for_each(|x| *x *= 1000.0);
    let input = Tensor::from_slice(&values, &[16, 32]).unwrap();
    let others = |module: &Module| {
        let all = Tensor::try_from(module.forward(std::slice::from_ref(&input)).unwrap()).unwrap();
        all.to_f32_vec().unwrap()[16..].to_vec()
    };
    let error = |per_row: bool| {
        let methods = Methods { per_row, ..Methods::default() };
        let int8 = Quantizer::dynamic().methods(methods).prepare(&model).unwrap().convert().unwrap().module;
        let worst = std::iter::zip(others(&model), others(&int8)).map(|(a, b)| (a - b).abs());
        worst.fold(0.0f32, f32::max)
    };
    let (by_tensor, by_row) = (error(false), error(true));
    assert!(by_row < 0.05 && by_tensor > 10.0 * by_row, "{by_tensor} by tensor, {by_row} by row");
}

#[test]
fn dynamic_quantization_uses_all_eight_bits_unless_asked_not_to() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[16, 64], 1)).unwrap();
    model.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.w)\n").unwrap();
    let with = |reduce_range: bool| {
        let methods = Methods { per_row: false, ..Methods::default() };
        let quantizer = Quantizer::dynamic().methods(methods).reduce_range(reduce_range);
        sqnr(&model, &quantizer.prepare(&model).unwrap().convert().unwrap().module, &random(&[64, 64], 9))
    };
    let (seven, eight) = (with(true), with(false));
    assert!(eight > seven + 3.0, "{seven} dB with 7 bits, {eight} dB with 8");
}

/// Convolutions with relus between them whose channels differ by up to a factor of 64; the middle one is depthwise.
fn uneven() -> Module {
    let model = Module::new("Uneven").unwrap();
    let mut first = noise(16 * 3 * 9, 1);
    for (channel, row) in first.chunks_mut(27).enumerate() {
        row.iter_mut().for_each(|w| *w *= 2.0f32.powi(-(channel as i32 % 7)));
    }
    let mut last = noise(8 * 16, 3);
    for (index, w) in last.iter_mut().enumerate() {
        *w *= 2.0f32.powi((index % 16) as i32 % 7);
    }
    model.register_parameter("w1", Tensor::from_slice(&first, &[16, 3, 3, 3]).unwrap()).unwrap();
    model.register_parameter("w2", random(&[16, 1, 3, 3], 2)).unwrap();
    model.register_parameter("w3", Tensor::from_slice(&last, &[8, 16, 1, 1]).unwrap()).unwrap();
    model.register_parameter("b1", Tensor::from_slice(&[0.01f32; 16], &[16]).unwrap()).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv2d(x, self.w1, self.b1, [1, 1], [1, 1]))
    x = torch.relu(torch.conv2d(x, self.w2, None, [1, 1], [1, 1], [1, 1], 16))
    return torch.conv2d(x, self.w3)
",
        )
        .unwrap();
    model
}

fn pictures(seed: u64) -> Tensor {
    random(&[4, 3, 12, 12], seed)
}

#[test]
fn equalization_evens_out_channels_and_keeps_the_function() {
    let model = uneven();
    let with = |equalize: bool| {
        let methods = Methods { equalize, ..Methods::default() };
        let batches = [pictures(1), pictures(2), pictures(3)];
        sqnr(&model, &quantized(&model, Quantizer::static_ptq().methods(methods), &batches).module, &pictures(9))
    };
    let (off, on) = (with(false), with(true));
    assert!(on > off + 2.0, "{off} dB without equalization, {on} dB with it");
}

#[test]
fn high_biases_are_absorbed() {
    // One channel lies around 100, all others between 0 and 3: the range between the layers is that of the one.
    let model = Module::new("Model").unwrap();
    let mut bias = vec![0.1f32; 8];
    bias[2] = 100.0;
    model.register_parameter("w1", random(&[8, 3, 3, 3], 1)).unwrap();
    model.register_parameter("b1", Tensor::from_slice(&bias, &[8]).unwrap()).unwrap();
    model.register_parameter("w2", random(&[4, 8, 1, 1], 2)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv2d(x, self.w1, self.b1, [1, 1], [1, 1]))
    return torch.conv2d(x, self.w2)
",
        )
        .unwrap();
    let scale = |equalize: bool| {
        // Learned rounding would make good for a part of what a coarse step does.
        let methods = Methods { equalize, rounding: Rounding::Nearest, ..Methods::default() };
        let int8 =
            quantized(&model, with_observer(ObserverKind::Histogram).methods(methods), &[pictures(1), pictures(2)])
                .module;
        let graph = int8.graph("forward").unwrap();
        let first = graph.all_nodes().into_iter().find(|node| node.kind() == "quantized::conv2d_relu").unwrap();
        let scale = first.named_input("output_scale").and_then(|value| value.constant()?.as_number()).unwrap();
        (scale, sqnr(&model, &int8, &pictures(9)))
    };
    let (off, on) = (scale(false), scale(true));
    assert!(on.0 < 0.3 * off.0, "the step between the layers: {off:?} and {on:?}");
    assert!(on.1 > off.1 + 2.0, "dB: {off:?} and {on:?}");
}

#[test]
fn learned_rounding_and_bias_correction_lose_less() {
    let model = uneven();
    let with = |rounding: Rounding, bias_correction: bool| {
        let methods = Methods { rounding, bias_correction, ..Methods::default() };
        let weight = ObserverConfig {
            quant_min: Some(-127),
            quant_max: Some(127),
            ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
        };
        let default = Observers { activation: None, weight: Some(weight) };
        let spec = QConfigSpec { default, methods, ..QConfigSpec::default() };
        let batches: Vec<_> = (0..6).map(pictures).collect();
        sqnr(&model, &quantized(&model, Quantizer::static_ptq().qconfig(spec), &batches).module, &pictures(9))
    };
    let nearest = with(Rounding::Nearest, false);
    let corrected = with(Rounding::Nearest, true);
    let learned = with(Rounding::Learned, false);
    assert!(corrected > nearest - 0.2 && learned > nearest, "{nearest} dB, {corrected} corrected, {learned} learned");
}

#[test]
fn learned_rounding_does_not_fit_the_noise_of_few_samples() {
    // Layers of 256 inputs each, which 24 rows do not determine.
    let model = Module::new("Model").unwrap();
    for (name, seed) in [("w1", 1), ("w2", 2), ("w3", 3)] {
        model.register_parameter(name, random(&[256, 256], seed)).unwrap();
    }
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.linear(x, self.w1))
    x = torch.relu(torch.linear(x, self.w2))
    return torch.linear(x, self.w3)
",
        )
        .unwrap();
    let rows: Vec<_> = (0..3).map(|seed| random(&[8, 256], 10 + seed)).collect();
    let with = |rounding: Rounding| {
        let quantizer = with_observer(ObserverKind::MinMax).methods(Methods { rounding, ..Methods::default() });
        sqnr(&model, &quantized(&model, quantizer, &rows).module, &random(&[512, 256], 99))
    };
    let [nearest, learned] = [Rounding::Nearest, Rounding::Learned].map(with);
    assert!(learned > nearest - 0.2, "{nearest} dB, {learned} learned");
}

/// Weights from -8 to 7.
fn four_bits() -> QConfigSpec {
    let weight = ObserverConfig {
        quant_min: Some(-8),
        quant_max: Some(7),
        ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
    };
    QConfigSpec { default: Observers { activation: None, weight: Some(weight) }, ..QConfigSpec::default() }
}

#[test]
fn few_bits_are_rounded_within_their_range() {
    let model = uneven();
    let with = |rounding: Rounding| {
        let spec = QConfigSpec { methods: Methods { rounding, ..Methods::default() }, ..four_bits() };
        let batches: Vec<_> = (0..6).map(pictures).collect();
        sqnr(&model, &quantized(&model, Quantizer::static_ptq().qconfig(spec), &batches).module, &pictures(9))
    };
    let [nearest, sums, learned] = [Rounding::Nearest, Rounding::Sums, Rounding::Learned].map(with);
    assert!(learned > nearest + 2.0 && learned > sums + 1.0, "{nearest} dB, {sums} by sums, {learned} learned");
}

#[test]
fn by_default_rounding_is_learned_where_data_allow() {
    let model = uneven();
    let bytes = |rounding: Rounding, batches: &[Tensor]| {
        let methods = Methods { rounding, ..Methods::default() };
        let module = quantized(&model, Quantizer::static_ptq().methods(methods), batches).module;
        Tensor::try_from(module.forward(&[pictures(9)]).unwrap()).unwrap().to_f32_vec().unwrap()
    };
    let few: Vec<_> = (0..6).map(pictures).collect();
    assert_eq!(bytes(Rounding::Auto, &few), bytes(Rounding::Learned, &few));
    assert_ne!(bytes(Rounding::Auto, &few), bytes(Rounding::Sums, &few));
    // Of more than 128 samples some are taken.
    let many: Vec<_> = (0..64).map(pictures).collect();
    assert_eq!(many.len() * 4, 256);
    let evenly: Vec<_> = many.iter().step_by(2).cloned().collect();
    let quantizer = Quantizer::static_ptq();
    let mut prepared = quantizer.prepare(&model).unwrap();
    many.iter().for_each(|batch| drop(prepared.calibrate(std::slice::from_ref(batch)).unwrap()));
    let some = prepared.convert().unwrap().module;
    let methods = Methods { rounding: Rounding::Learned, ..Methods::default() };
    let mut prepared = Quantizer::static_ptq().methods(methods).prepare(&model).unwrap();
    many.iter().for_each(|batch| drop(prepared.calibrate(std::slice::from_ref(batch)).unwrap()));
    let evenly: Vec<Vec<IValue>> = evenly.iter().map(|batch| vec![batch.into()]).collect();
    prepared.supply(&evenly).unwrap();
    let same = prepared.convert().unwrap().module;
    let run =
        |module: &Module| Tensor::try_from(module.forward(&[pictures(9)]).unwrap()).unwrap().to_f32_vec().unwrap();
    assert_eq!(run(&some), run(&same));
}

#[test]
fn bias_correction_takes_the_mean_error_away() {
    // Inputs of one sign and weights with a few large ones: rounding to the nearest shifts the mean.
    let model = Module::new("Model").unwrap();
    let mut weight = noise(8 * 27, 1);
    weight.iter_mut().enumerate().for_each(|(i, w)| *w = if i % 27 == 0 { 1.0 } else { 0.0035 + *w * 0.0003 });
    model.register_parameter("w", Tensor::from_slice(&weight, &[8, 3, 3, 3]).unwrap()).unwrap();
    model.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.conv2d(x, self.w)\n").unwrap();
    let inputs: Vec<_> = (0..4)
        .map(|seed| {
            let values: Vec<f32> = noise(4 * 3 * 144, seed).into_iter().map(f32::abs).collect();
            Tensor::from_slice(&values, &[4, 3, 12, 12]).unwrap()
        })
        .collect();
    let error = |bias_correction: bool| {
        let methods = Methods { rounding: Rounding::Nearest, bias_correction, ..Methods::default() };
        let int8 = quantized(&model, Quantizer::static_ptq().methods(methods), &inputs).module;
        let run = |module: &Module| {
            let result: IValue = module.forward(&inputs[..1]).unwrap();
            let values = Tensor::try_from(result).unwrap().to_f32_vec().unwrap();
            values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64
        };
        (run(&model) - run(&int8)).abs()
    };
    let (off, on) = (error(false), error(true));
    assert!(on < 0.3 * off, "mean error {off} without correction, {on} with it");
}

#[test]
fn a_model_with_branches_says_why_learned_rounding_does_not_go() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[4, 3, 1, 1], 1)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    if bool(x.sum() > 0):
        x = x * 2
    return torch.relu(torch.conv2d(x, self.w))
",
        )
        .unwrap();
    let methods = Methods { rounding: Rounding::Learned, ..Methods::default() };
    let mut prepared = Quantizer::static_ptq().methods(methods).prepare(&model).unwrap();
    prepared.calibrate(&[pictures(2)]).unwrap();
    let refusal = prepared.convert().unwrap_err().to_string();
    assert!(refusal.contains("branches") && refusal.contains("sums"), "{refusal}");
    quantized(&model, Quantizer::static_ptq(), &[pictures(2)]);
}

#[test]
fn a_check_that_raises_is_no_branch() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[4, 3, 1, 1], 1)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    assert x.dim() == 4, 'four dimensions are expected'
    return torch.relu(torch.conv2d(x, self.w))
",
        )
        .unwrap();
    let methods = Methods { rounding: Rounding::Learned, ..Methods::default() };
    let int8 = quantized(&model, Quantizer::static_ptq().methods(methods), &[pictures(1), pictures(2)]).module;
    assert!(sqnr(&model, &int8, &pictures(9)) > 35.0);
    // It is still made.
    assert!(int8.forward(&[random(&[3, 12, 12], 3)]).unwrap_err().to_string().contains("four dimensions"));
}

#[test]
fn options_out_of_range_and_unknown_ones_are_errors() {
    let model = transformer_block();
    let refusal = Quantizer::static_ptq().methods(Methods { smooth: 1.5, ..Methods::default() }).prepare(&model);
    assert!(refusal.unwrap_err().to_string().contains("smooth 1.5"));
    let unknown = "[methods]\nrounding = \"best\"".parse::<QConfigSpec>().unwrap_err().to_string();
    assert!(unknown.contains("learned"), "{unknown}");
    let percentile = ObserverConfig { percentile: 20.0, ..ObserverConfig::new(ObserverKind::Percentile) };
    assert!(percentile.module().unwrap_err().to_string().contains("percentile 20"));
}

#[test]
fn searching_observers_weigh_an_outlier() {
    // Not by entropy: of values that are spread evenly it loses nothing to coarse steps, and keeps any range.
    for kind in [ObserverKind::Percentile, ObserverKind::SquaredError] {
        let observer = ObserverConfig::new(kind).module().unwrap();
        let mut values = noise(100_000, 3);
        values[7] = 40.0;
        observer.forward(&[Tensor::from_slice(&values, &[100_000]).unwrap()]).unwrap();
        let qparams: IValue = observer.call("calculate_qparams", &[] as &[IValue]).unwrap();
        let scale = qparams.tensors()[0].to_f32_vec().unwrap()[0];
        // Of the range -1 to r, n uniform values have the error n (1 + r)^2 / (12 * 255^2), and the outlier (40 - r)^2: least
        // at r = 35.4, which is what a search by squared error is to find. A percentile leaves the outlier out.
        let expected = match kind {
            ObserverKind::SquaredError => 36.0 / 255.0..36.8 / 255.0,
            _ => 1.8 / 255.0..4.0 / 255.0,
        };
        assert!(expected.contains(&scale), "{kind:?}: {scale}");
    }
}

/// `Quantizer` with one activation observer and nothing else done for the accuracy.
fn observed_by(kind: ObserverKind) -> Quantizer {
    with_observer(kind).methods(Methods { float_results: true, ..Methods::none() })
}

#[test]
fn the_outputs_choose_between_all_of_a_histogram_and_its_best_part() {
    // One large value in a million: the range with the least error is without it.
    let mut values = noise(8192 * 128, 1);
    values[77] = 30.0;
    let data = [Tensor::from_slice(&values, &[8192, 128]).unwrap()];
    let body = |between: &str| {
        let model = Module::new("Model").unwrap();
        let mut first = vec![0.0f32; 128 * 128];
        (0..128).for_each(|i| first[i * 129] = 1.0);
        model.register_parameter("w1", Tensor::from_slice(&first, &[128, 128]).unwrap()).unwrap();
        model.register_parameter("w2", random(&[4, 128], 3)).unwrap();
        model.register_parameter("b", Tensor::from_slice(&[-4.0f32; 128], &[128]).unwrap()).unwrap();
        model.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {between}\n")).unwrap();
        model
    };
    let only_the_large_one_counts = body("return torch.linear(torch.relu(torch.linear(x, self.w1, self.b)), self.w2)");
    let it_counts_no_more_than_others =
        body("return torch.linear(torch.hardtanh(torch.linear(x, self.w1), -1.0, 1.0), self.w2)");
    for (model, better, worse) in [
        (only_the_large_one_counts, ObserverKind::MinMax, ObserverKind::Histogram),
        (it_counts_no_more_than_others, ObserverKind::Histogram, ObserverKind::MinMax),
    ] {
        let chosen = quantized(&model, observed_by(ObserverKind::Auto), &data).report.chosen_range;
        assert!(chosen.is_some_and(|kind| kind != worse), "{chosen:?}");
        let [auto, better, worse] = [ObserverKind::Auto, better, worse]
            .map(|kind| sqnr(&model, &quantized(&model, observed_by(kind), &data).module, &data[0]));
        assert!(better > worse + 3.0, "{better} and {worse} dB");
        assert!(auto > better - 0.5, "{auto} dB, and not {better}");
    }
}

/// A convolution, `between`, and a linear layer.
fn classifier(between: &str) -> Module {
    let model = Module::new("Classifier").unwrap();
    model.register_parameter("w1", random(&[8, 3, 3, 3], 1)).unwrap();
    model.register_parameter("w2", random(&[10, 8 * 36], 2)).unwrap();
    model.register_parameter("b2", random(&[10], 3)).unwrap();
    model
        .define(&format!(
            "def forward(self, x: Tensor) -> Tensor:
    x = torch.flatten({between}(torch.conv2d(x, self.w1)), 1)
    return torch.linear(x, self.w2, self.b2)
"
        ))
        .unwrap();
    model
}

#[test]
fn a_classifiers_scores_are_not_rounded() {
    const FLOAT: &str = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32";
    for (between, asked) in [("torch.relu", 0), ("torch.sigmoid", 1)] {
        let model = classifier(between);
        let image = random(&[16, 3, 8, 8], 10);
        let mut prepared = observed_by(ObserverKind::MinMax).engine(StockEngine::Fbgemm).prepare(&model).unwrap();
        prepared.calibrate(std::slice::from_ref(&image)).unwrap();
        let int8 = prepared.convert().unwrap().module;
        // A sigmoid's scale is an argument of no operator.
        let counted = [FLOAT, "quantized::linear", "aten::q_scale"].map(|kind| count(&int8, kind));
        assert_eq!(counted, [1, 0, asked], "{between}");

        // As libtorch's Finalize leaves it, the same sums are rounded.
        let rounded = insert_quant_dequant(prepared.module(), "forward", false, false, QuantType::Static).unwrap();
        let rounded = finalize(&rounded, QuantType::Static, &[]).unwrap();
        let graph = rounded.graph("forward").unwrap();
        let last = graph.all_nodes().into_iter().find(|node| node.kind() == "quantized::linear").unwrap();
        let step = last.input(2).and_then(|scale| scale.constant()?.as_number()).unwrap() as f32;
        let run = |module: &Module| {
            Tensor::try_from(module.forward(std::slice::from_ref(&image)).unwrap()).unwrap().to_f32_vec().unwrap()
        };
        let largest = |a: &[f32], b: &[f32]| std::iter::zip(a, b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (sums, bytes) = (run(&int8), run(&rounded));
        // Half a step at most, and a quarter on average; at the ends of the range saturation takes up to a step.
        let off = largest(&sums, &bytes);
        let mean = std::iter::zip(&sums, &bytes).map(|(a, b)| (a - b).abs()).sum::<f32>() / sums.len() as f32;
        assert!(off < 1.5 * step && mean > 0.15 * step && mean < 0.35 * step, "{off}, mean {mean}, of steps of {step}");

        // The native form of the portable one is the same, bytes all the way.
        let native = to_native(&int8).unwrap();
        assert!(stock_operators(&native).unwrap().is_empty());
        let counted = ["jitquant::linear_float", "jitquant::quantize", "jitquant::dequantize"];
        assert_eq!(counted.map(|kind| count(&native, kind)), [1, 1, 0], "{between}");
        assert!(largest(&sums, &run(&native)) < 0.02 * step);
    }
}

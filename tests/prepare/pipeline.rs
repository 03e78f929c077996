//! What becomes of prepared models in the whole pipeline.

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::{Quantizer, Report, StockEngine};

use crate::models::*;

fn static_int8(model: &Module, shapes: &[&[i64]], quantizer: &Quantizer) -> (Module, Report) {
    let mut prepared = quantizer.prepare(model).unwrap();
    for seed in 0..4 {
        let inputs: Vec<IValue> = shapes.iter().map(|shape| random(shape, 10 + seed).into()).collect();
        prepared.calibrate(&inputs).unwrap();
    }
    let converted = prepared.convert().unwrap();
    (converted.module, converted.report)
}

fn sqnr(float: &Module, int8: &Module, inputs: &[IValue]) -> f64 {
    let (float, int8) = (float.forward(inputs).unwrap(), int8.forward(inputs).unwrap());
    let mut comparison = Comparison::default();
    for (a, b) in std::iter::zip(float.tensors(), int8.tensors()) {
        comparison.add(&a.to_f32_vec().unwrap(), &b.to_f32_vec().unwrap(), 1);
    }
    comparison.sqnr_db()
}

#[test]
fn relu6_costs_nothing() {
    let model = file("Padded");
    let (int8, report) = static_int8(&model, &[&[1, 3, 8, 8]], &Quantizer::static_ptq());
    assert_eq!(report.float, []);
    for needless in ["aten::hardtanh", "aten::batch_norm"] {
        assert_eq!(count(&int8, needless), 0, "{needless}");
    }
    assert!(sqnr(&model, &int8, &[input(&[1, 3, 8, 8])]) > 30.0);
}

#[test]
fn a_clamp_narrower_than_the_quantized_range_stays_and_is_exact() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[4, 4], 1)).unwrap();
    // 0 is quantized exactly, so that the range begins there and not at 0.3.
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.hardtanh(torch.linear(x, self.w), 0.3, 0.9)\n",
        )
        .unwrap();
    let (int8, _) = static_int8(&model, &[&[16, 4]], &Quantizer::static_ptq());
    assert_eq!((count(&int8, "aten::hardtanh"), count(&int8, "quantized::linear")), (1, 1));
    assert!(sqnr(&model, &int8, &[input(&[16, 4])]) > 35.0);
}

#[test]
fn what_is_skipped_is_found_by_its_path_in_the_flat_graph() {
    let model = observers_file("Layers");
    let quantizer = Quantizer::static_ptq().skip("layers.1");
    let (int8, report) = static_int8(&model, &[&[2, 4]], &quantizer);
    let paths: Vec<_> = report.float.iter().map(|layer| layer.path.as_str()).collect();
    assert_eq!(paths, ["layers.1"]);
    assert_eq!(scopes(&int8, "aten::linear"), ["layers.1"]);
}

#[test]
fn a_batch_norm_that_is_not_folded_is_listed() {
    let model = Module::new("Model").unwrap();
    let ones = Tensor::from_slice(&[1.0f32; 4], &[4]).unwrap();
    model.register_buffer("var", ones).unwrap();
    model.register_parameter("mean", random(&[4], 2)).unwrap();
    model.register_parameter("w", random(&[4, 4], 1)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    y = torch.batch_norm(x, None, None, self.mean, self.var, False, 0.1, 1e-5, False)
    return torch.linear(y, self.w)
",
        )
        .unwrap();
    let (int8, report) = static_int8(&model, &[&[16, 4]], &Quantizer::static_ptq());
    assert_eq!((report.quantized_layers, count(&int8, "aten::batch_norm")), (1, 1));
    let [norm] = &report.float[..] else { panic!("{:?}", report.float) };
    assert_eq!(norm.operator, "batch_norm");
    assert!(norm.reason.contains("an input of the model"), "{}", norm.reason);
}

#[test]
fn a_layer_whose_weight_is_computed_is_listed_and_the_rest_goes_on() {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(&[4, 4], 1)).unwrap();
    model
        .define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(torch.linear(x, self.w), self.w * x.sum())\n")
        .unwrap();
    let (int8, report) = static_int8(&model, &[&[4, 4]], &Quantizer::static_ptq().engine(StockEngine::Fbgemm));
    let int8_layer = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32";
    assert_eq!((report.quantized_layers, count(&int8, int8_layer), count(&int8, "aten::linear")), (1, 1, 1));
    let [layer] = &report.float[..] else { panic!("{:?}", report.float) };
    assert_eq!((layer.operator.as_str(), layer.source.as_str()), ("linear", "<string>:2"));
    assert!(layer.reason.contains("computed"), "{}", layer.reason);
}

#[test]
fn layers_chosen_at_run_time_are_quantized() {
    let model = file("Indexed");
    let mut prepared = Quantizer::static_ptq().prepare(&model).unwrap();
    for index in 0..3 {
        prepared.calibrate(&[random(&[256, 4], 1).into(), IValue::Int(index)]).unwrap();
    }
    let int8 = prepared.convert().unwrap();
    assert_eq!((int8.report.quantized_layers, int8.report.float.len()), (3, 0));
    for index in 0..3 {
        assert!(sqnr(&model, &int8.module, &[input(&[8, 4]), IValue::Int(index)]) > 25.0);
    }
}

#[test]
fn recurrent_layers_and_cells_are_quantized_dynamically() {
    let state = [input(&[3, 8]), random(&[3, 16], 5).into(), random(&[3, 16], 6).into()];
    for (model, layers, inputs) in [(file("Recurrent"), 3, &[input(&[2, 5, 8])][..]), (file("Cells"), 3, &state[..])] {
        let int8 = Quantizer::dynamic().prepare(&model).unwrap().convert().unwrap();
        assert_eq!((int8.report.quantized_layers, &int8.report.float[..]), (layers, &[][..]));
        for float in ["aten::lstm", "aten::gru", "aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell"] {
            assert_eq!(count(&int8.module, float), 0, "{float}");
        }
        assert!(sqnr(&model, &int8.module, inputs) > 30.0, "{}", sqnr(&model, &int8.module, inputs));
        let loaded = Module::load_bytes(&int8.module.save_bytes().unwrap()).unwrap();
        assert!(sqnr(&int8.module, &loaded, inputs).is_infinite());
    }
}

#[test]
fn a_recurrent_layer_that_is_skipped_stays_in_float() {
    let model = file("Recurrent");
    let int8 = Quantizer::dynamic().skip("gru").prepare(&model).unwrap().convert().unwrap();
    assert_eq!((count(&int8.module, "aten::gru"), count(&int8.module, "aten::lstm")), (1, 0));
    assert_eq!(int8.report.float[0].path, "gru");
}

#[test]
fn static_quantization_quantizes_recurrent_layers_dynamically() {
    let model = file("Recurrent");
    let (int8, report) = static_int8(&model, &[&[2, 5, 8]], &Quantizer::static_ptq());
    assert_eq!(report.float, []);
    assert_eq!((count(&int8, "aten::quantized_lstm"), count(&int8, "aten::quantized_gru")), (1, 1));
    let (_, report) = static_int8(&model, &[&[2, 5, 8]], &Quantizer::static_ptq().skip("gru"));
    assert_eq!(report.float[0].path, "gru");
}

#[test]
fn errors_of_rounded_weights_cancel_where_inputs_are_alike() {
    let (inputs, outputs) = (512, 8);
    let weight = random(&[outputs, inputs], 3);
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", weight.clone()).unwrap();
    model.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.w)\n").unwrap();
    let int8 = Quantizer::dynamic().prepare(&model).unwrap().convert().unwrap().module;
    // Ones are quantized without error, so that each result is the sum of a row of the weight.
    let ones: IValue = Tensor::from_slice(&vec![1.0f32; inputs as usize], &[1, inputs]).unwrap().into();
    let run = |module: &Module| {
        module.forward(std::slice::from_ref(&ones)).unwrap().as_tensor().unwrap().to_f32_vec().unwrap()
    };
    let rows = weight.to_vec::<f32>().unwrap();
    for (row, (float, int8)) in rows.chunks(inputs as usize).zip(std::iter::zip(run(&model), run(&int8))) {
        let step = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs())) / 127.0;
        assert!((float - int8).abs() < 0.6 * step, "{float} and {int8}, a step being {step}");
    }
}

//! A portable file runs on every engine that this libtorch has, and gives on each what it gives on the others.

#![cfg(feature = "torch")]

mod support;

use jitquant::engine::{stock_engines, with_stock_engine};
use jitquant::ir::{Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::pass::{stock_operators, to_native};
use jitquant::{Quantizer, StockEngine};
use support::{classifier, images, linear, tensor};

fn sqnr(reference: &[f32], other: &[f32]) -> f64 {
    let mut comparison = Comparison::default();
    comparison.add(reference, other, 1);
    comparison.sqnr_db()
}

fn outputs(module: &Module, batch: &Tensor) -> Vec<f32> {
    module.forward(std::slice::from_ref(batch)).unwrap().as_tensor().unwrap().to_f32_vec().unwrap()
}

/// The outputs of the INT8 file on each engine.
fn on_each_engine(int8: &Module, batch: &Tensor) -> Vec<(String, Vec<f32>)> {
    let bytes = int8.save_bytes().unwrap();
    let engines = stock_engines();
    assert!(engines.len() > 1, "{engines:?}");
    let run = |engine: String| {
        let run = || Ok(outputs(&Module::load_bytes(&bytes)?, batch));
        let result = with_stock_engine(&engine, run).unwrap_or_else(|error| panic!("{engine}: {error}"));
        (engine, result)
    };
    engines.into_iter().map(run).collect()
}

fn quantized(module: &Module, batch: &Tensor, engine: StockEngine) -> Module {
    let mut prepared = Quantizer::static_ptq().engine(engine).prepare(module).unwrap();
    prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    prepared.convert().unwrap().module
}

/// Two linear layers between float operators, one behind a layer norm; the last result is float.
fn block() -> Module {
    let module = Module::new("Block").unwrap();
    module.register_submodule("fc1", &linear(16, 32, 1)).unwrap();
    module.register_submodule("fc2", &linear(32, 16, 5)).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             y = torch.layer_norm(x, [16])\n    \
             y = torch.gelu(self.fc1.forward(y))\n    \
             return x + self.fc2.forward(y)\n",
        )
        .unwrap();
    module
}

// One test: the engine is the process's.
#[test]
fn portable_files_give_the_same_on_every_engine() {
    let cases = [("classifier", classifier(), images(16, 3)), ("block", block(), tensor(&[64, 16, 16], 7))];
    for (name, float, batch) in cases {
        let reference = outputs(&float, &batch);
        let int8 = quantized(&float, &batch, StockEngine::Any);
        let all = on_each_engine(&int8, &batch);
        for (engine, result) in &all {
            let db = sqnr(&reference, result);
            assert!(db > 30.0, "{name} on {engine}: {db:.1} dB");
            let apart = sqnr(&all[0].1, result);
            assert!(apart > 45.0, "{name}: {engine} and {} are {apart:.1} dB apart", all[0].0);
        }

        // The same numbers as by the operator that FBGEMM alone has.
        let fbgemm = quantized(&float, &batch, StockEngine::Fbgemm);
        let only =
            |module: &Module| stock_operators(module).unwrap().keys().any(|operator| operator.ends_with("output_fp32"));
        assert!(only(&fbgemm) && !only(&int8), "{name}");
        let apart = sqnr(&outputs(&fbgemm, &batch), &outputs(&int8, &batch));
        assert!(apart > 100.0, "{name}: {apart:.1} dB");

        // The native form is the same from both.
        let kinds = |module: &Module| -> Vec<String> {
            let graph = to_native(module).unwrap().graph("forward").unwrap();
            graph.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect()
        };
        assert_eq!(kinds(&int8), kinds(&fbgemm), "{name}");
    }

    // A scale that no operator's arguments tell (a sigmoid's), an empty batch.
    let gate = Module::new("Gate").unwrap();
    gate.register_submodule("fc1", &linear(8, 8, 1)).unwrap();
    gate.register_submodule("fc2", &linear(8, 4, 5)).unwrap();
    gate.define(
        "def forward(self, x: Tensor) -> Tensor:\n    return self.fc2.forward(torch.sigmoid(self.fc1.forward(x)))\n",
    )
    .unwrap();
    let batch = tensor(&[8, 8], 2);
    let int8 = quantized(&gate, &batch, StockEngine::Any);
    for (engine, result) in on_each_engine(&int8, &batch) {
        let db = sqnr(&outputs(&gate, &batch), &result);
        assert!(db > 30.0, "sigmoid on {engine}: {db:.1} dB");
    }
    let none = Tensor::from_slice::<f32>(&[], &[0, 8]).unwrap();
    let nothing = int8.forward(std::slice::from_ref(&none)).unwrap();
    assert_eq!(nothing.as_tensor().unwrap().shape(), [0, 4]);

    // A layer of one input.
    let one_input = Module::new("One").unwrap();
    one_input.register_submodule("fc", &linear(1, 4, 3)).unwrap();
    one_input.define("def forward(self, x: Tensor) -> Tensor:\n    return self.fc.forward(torch.relu(x))\n").unwrap();
    let batch = tensor(&[8, 1], 2);
    let int8 = quantized(&one_input, &batch, StockEngine::Any);
    for (engine, result) in on_each_engine(&int8, &batch) {
        let db = sqnr(&outputs(&one_input, &batch), &result);
        assert!(db > 30.0, "one input on {engine}: {db:.1} dB");
    }
}

//! A portable file runs on every engine that this libtorch has, and gives on each what it gives on the others.

#![cfg(feature = "torch")]

mod support;

use std::sync::{Mutex, PoisonError};

use jitquant::engine::{stock_engines, with_stock_engine};
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::pass::{inexact, stock_operators, to_native};
use jitquant::{Converted, Quantizer, StockEngine};
use support::{classifier, images, linear, noise, tensor};

/// The engine is the process's: one test at a time.
static ENGINE: Mutex<()> = Mutex::new(());

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
    converted(module, batch, engine).module
}

fn converted(module: &Module, batch: &Tensor, engine: StockEngine) -> Converted {
    let mut prepared = Quantizer::static_ptq().engine(engine).prepare(module).unwrap();
    prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    prepared.convert().unwrap()
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

#[test]
fn portable_files_give_the_same_on_every_engine() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = [("classifier", classifier(), images(16, 3)), ("block", block(), tensor(&[64, 16, 16], 7))];
    for (name, float, batch) in cases {
        let reference = outputs(&float, &batch);
        let int8 = quantized(&float, &batch, StockEngine::Any);
        let all = on_each_engine(&int8, &batch);
        for (engine, result) in &all {
            let db = sqnr(&reference, result);
            assert!(db > 30.0, "{name} on {engine}: {db:.1} dB");
            let apart = sqnr(&all[0].1, result);
            assert!(apart > 35.0, "{name}: {engine} and {} are {apart:.1} dB apart", all[0].0);
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

/// A convolution with weights between -1 and 1, most of them near the ends, so that neighbours add up.
fn strong_conv(name: &str, weight: &[i64], arguments: &str, seed: u64) -> Module {
    let values = noise(weight.iter().product::<i64>() as usize, seed).into_iter().map(|v| v.signum() * v.abs().sqrt());
    let module = Module::new("Strong").unwrap();
    let weight = Tensor::from_slice(&values.collect::<Vec<_>>(), weight).unwrap();
    module.register_parameter("weight", weight).unwrap();
    module
        .define(&format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.{name}(x, self.weight, None, {arguments})\n"
        ))
        .unwrap();
    module
}

/// A model whose layers are `parts`, one after another.
fn chain(parts: Vec<Module>) -> Module {
    let module = Module::new("Chain").unwrap();
    let mut code = "def forward(self, x: Tensor) -> Tensor:\n".to_owned();
    for (number, part) in parts.into_iter().enumerate() {
        module.register_submodule(&format!("part{number}"), &part).unwrap();
        code += &format!("    x = self.part{number}.forward(x)\n");
    }
    module.define(&(code + "    return x\n")).unwrap();
    module
}

/// A shuffle network's layers: depthwise ones of many sizes between pointwise ones, inputs of both signs.
fn depthwise_network() -> Module {
    let mut parts = Vec::new();
    let mut channels = 8;
    for (seed, (to, kernel, padding)) in
        [(58, 3, 1), (112, 3, 1), (208, 3, 1), (104, 5, 2), (104, 3, 0)].into_iter().enumerate()
    {
        let seed = 10 * seed as u64;
        parts.push(strong_conv("conv2d", &[to, channels, 1, 1], "[1, 1], [0, 0], [1, 1], 1", seed + 1));
        let arguments = format!("[1, 1], [{padding}, {padding}], [1, 1], {to}");
        parts.push(strong_conv("conv2d", &[to, 1, kernel, kernel], &arguments, seed + 2));
        channels = to;
    }
    chain(parts)
}

#[test]
fn depthwise_layers_of_any_number_of_channels_have_a_fast_and_exact_form() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    for (channels, joined) in [(116, 58), (117, 39), (151, 151)] {
        let pointwise = strong_conv("conv2d", &[channels, 8, 1, 1], "[1, 1], [0, 0], [1, 1], 1", 1);
        let arguments = format!("[1, 1], [1, 1], [1, 1], {channels}");
        let float = chain(vec![pointwise, strong_conv("conv2d", &[channels, 1, 3, 3], &arguments, 2)]);
        let batch = tensor(&[2, 8, 7, 7], 3);
        let made = converted(&float, &batch, StockEngine::Any);
        let forms: Vec<&str> = made.report.engine_forms.iter().map(|form| &form.form[..]).collect();
        assert_eq!(forms, [format!("{joined} groups joined, with zeros between them")]);
        assert_eq!(inexact(&made.module, "forward").unwrap(), []);
        let reference = outputs(&float, &batch);
        let all = on_each_engine(&made.module, &batch);
        for (engine, result) in &all {
            let (db, apart) = (sqnr(&reference, result), sqnr(&all[0].1, result));
            assert!(db > 30.0 && apart > 40.0, "{channels} on {engine}: {db:.1} dB, {apart:.1} dB from {}", all[0].0);
        }
        let apart = sqnr(&all[0].1, &outputs(&to_native(&made.module).unwrap(), &batch));
        assert!(apart > 40.0, "{channels}: the native form is {apart:.1} dB from {}", all[0].0);
    }
}

#[test]
fn depthwise_layers_saturate_on_no_engine() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let (float, batch) = (depthwise_network(), tensor(&[4, 8, 9, 9], 3));
    let reference = outputs(&float, &batch);
    let made = converted(&float, &batch, StockEngine::Any);
    let forms: Vec<&str> = made.report.engine_forms.iter().map(|form| &form.form[..]).collect();
    assert!(forms.iter().any(|form| form.starts_with("8 groups joined")), "{forms:?}");
    assert_eq!(inexact(&made.module, "forward").unwrap(), []);
    let all = on_each_engine(&made.module, &batch);
    for (engine, result) in &all {
        // A value that one engine rounds up and another one down changes what the layers behind it round: after ten layers two
        // exact engines are as far apart as two roundings of the same numbers, 3 dB more than each is from float.
        let (db, apart) = (sqnr(&reference, result), sqnr(&all[0].1, result));
        assert!(db > 25.0 && apart > db - 3.0, "{engine}: {db:.1} dB, {apart:.1} dB from {}", all[0].0);
    }

    // Made for an engine that is exact by itself, the file keeps the plain form, and the others saturate.
    let plain = converted(&float, &batch, StockEngine::Onednn);
    assert_eq!(plain.report.engine_forms, []);
    let named: Vec<_> = inexact(&plain.module, "forward").unwrap().into_iter().map(|each| each.engine).collect();
    assert!(named.contains(&StockEngine::Fbgemm) && named.contains(&StockEngine::X86), "{named:?}");
    assert!(!named.contains(&StockEngine::Onednn) && !named.contains(&StockEngine::Qnnpack), "{named:?}");
    for (engine, result) in on_each_engine(&plain.module, &batch) {
        let (db, exact) = (sqnr(&reference, &result), matches!(&engine[..], "onednn" | "qnnpack"));
        assert_eq!(db > 25.0, exact, "{engine}: {db:.1} dB");
    }

    // The native form has depthwise layers again.
    let native = to_native(&made.module).unwrap();
    let result = outputs(&native, &batch);
    let (db, apart) = (sqnr(&reference, &result), sqnr(&all[0].1, &result));
    assert!(db > 25.0 && apart > db - 3.0, "native: {db:.1} dB, {apart:.1} dB from {}", all[0].0);
    let groups = |module: &Module| -> Vec<i64> {
        let state = |name: &str| {
            let reader = Module::new("Reader").unwrap();
            let IValue::Other(object) = module.attribute(name).unwrap() else { return 0 };
            reader.register_attribute("packed", &object.type_of().unwrap(), &module.attribute(name).unwrap()).unwrap();
            reader.define("def groups(self):\n    return ops.jitquant.conv_unpack(self.packed)[8]\n").unwrap();
            reader.call::<IValue>("groups", &[]).unwrap().as_int().unwrap()
        };
        let names = module.attributes().into_iter().map(|attribute| attribute.name);
        names
            .filter(|name| name.starts_with("jitquant_weight"))
            .map(|name| state(&name))
            .filter(|groups| *groups > 1)
            .collect()
    };
    let mut found = groups(&native);
    found.sort_unstable();
    assert_eq!(found, [58, 104, 104, 112, 208]);
}

#[test]
fn other_operators_have_forms_that_every_engine_computes() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let module = |code: &str| {
        let part = Module::new("Part").unwrap();
        part.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    return {code}\n")).unwrap();
        part
    };
    let pointwise = |seed: u64| strong_conv("conv2d", &[16, 16, 1, 1], "[1, 1], [0, 0], [1, 1], 1", seed);
    let up = || strong_conv("conv_transpose2d", &[16, 16, 2, 2], "[2, 2], [0, 0], [0, 0], 1, [1, 1]", 7);
    let image = tensor(&[4, 16, 6, 6], 3);
    let cases = [
        ("transposed", chain(vec![pointwise(1), up(), pointwise(2)]), &image, "four rows instead of two"),
        (
            "clamp",
            chain(vec![pointwise(1), module("torch.clamp(torch.sigmoid(x), 0.3, 0.6)"), pointwise(2)]),
            &image,
            "on a contiguous copy",
        ),
        (
            "pooled",
            chain(vec![
                pointwise(1),
                module("torch.avg_pool2d(x, [3, 3], [1, 1], [1, 1], False, False)"),
                pointwise(2),
            ]),
            &image,
            "in float",
        ),
    ];
    for (name, float, batch, wanted) in cases {
        let made = converted(&float, batch, StockEngine::Any);
        let forms: Vec<&str> = made.report.engine_forms.iter().map(|form| &form.form[..]).collect();
        assert_eq!(forms, [wanted], "{name}");
        assert_eq!(inexact(&made.module, "forward").unwrap(), [], "{name}");
        let reference = outputs(&float, batch);
        for (engine, result) in on_each_engine(&made.module, batch) {
            let db = sqnr(&reference, &result);
            assert!(db > 25.0, "{name} on {engine}: {db:.1} dB");
        }
    }
}

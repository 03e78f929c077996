//! libtorch's quantized operators on jitquant's kernels: the same results to a step, in every form a model can take.
#![cfg(feature = "torch")]

mod support;

use std::slice::from_ref;

use jitquant::Quantizer;
use jitquant::engine::{Accelerated, accelerate};
use jitquant::ir::{IValue, Module, Tensor, Type};
use support::{classifier, images, noise};

/// The largest distance of two u8 tensors and the share of elements that differ.
fn distance(a: &Tensor, b: &Tensor) -> (u8, f64) {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_vec::<u8>().unwrap(), b.to_vec::<u8>().unwrap());
    let largest = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    let differing = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    (largest, differing as f64 / a.len().max(1) as f64)
}

fn replaced(count: usize) -> Accelerated {
    Accelerated { replaced: count, ..Accelerated::default() }
}

/// The largest difference between two f32 tensors.
fn difference(a: &IValue, b: &IValue) -> f32 {
    let values = |x: &IValue| x.as_tensor().unwrap().to_vec::<f32>().unwrap();
    values(a).iter().zip(&values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn quantized_classifier() -> Module {
    let mut prepared = Quantizer::static_ptq().prepare(&classifier()).unwrap();
    for seed in 0..4 {
        prepared.calibrate(&[images(4, 100 + seed)]).unwrap();
    }
    prepared.convert().unwrap().module
}

#[test]
fn a_quantized_model_gives_the_same_answers_and_saves_a_file_for_stock_libtorch() {
    let model = quantized_classifier();
    let stock = Module::load_bytes(&model.save_bytes().unwrap()).unwrap();
    let x = images(16, 7);
    let expected = model.forward(from_ref(&x)).unwrap();
    assert_eq!(accelerate(&model).unwrap(), replaced(4));
    assert_eq!(accelerate(&model).unwrap(), Accelerated { already: 4, ..Accelerated::default() });
    let ours = model.forward(from_ref(&x)).unwrap();
    // The answers are multiples of the last layer's output step; a step in the middle can move one or two of them.
    let step = {
        let mut values = ours.as_tensor().unwrap().to_vec::<f32>().unwrap();
        values.sort_by(f32::total_cmp);
        values.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 1e-6).fold(f32::INFINITY, f32::min)
    };
    assert!(difference(&ours, &expected) <= 2.5 * step, "{} {step}", difference(&ours, &expected));
    // What our packed parameters unpack into is what libtorch's had.
    let saved = Module::load_bytes(&model.save_bytes().unwrap()).unwrap();
    assert_eq!(difference(&saved.forward(from_ref(&x)).unwrap(), &stock.forward(from_ref(&x)).unwrap()), 0.0);
}

#[test]
fn frozen_graphs_and_optimized_plans_see_the_change() {
    let model = quantized_classifier().freeze(&[], true).unwrap();
    let x = images(4, 9);
    for _ in 0..4 {
        model.forward(from_ref(&x)).unwrap();
    }
    assert_eq!(accelerate(&model).unwrap().replaced, 4);
    assert_eq!(accelerate(&model).unwrap().already, 4);
    model.forward(from_ref(&x)).unwrap();
}

/// A layer of libtorch's that is packed by `pack(self, w, b)` and run by `forward(self, x)`.
fn layer(pack: &str, forward: &str, weight: &[i64], outputs: i64, seed: u64) -> Module {
    let packer = Module::new("Packer").unwrap();
    packer.define(pack).unwrap();
    let count = weight.iter().product::<i64>() as usize;
    let w = Tensor::from_slice(&noise(count, seed), weight).unwrap();
    let b = Tensor::from_slice(&noise(outputs as usize, seed + 1), &[outputs]).unwrap();
    let packed = packer.call("pack", &[w, b]).unwrap();
    let ty = match &packed {
        IValue::Other(object) => object.type_of().unwrap(),
        IValue::List { element, .. } => Type::parse(&format!("List[{element}]")).unwrap(),
        other => panic!("{other:?}"),
    };
    let module = Module::new("Layer").unwrap();
    module.register_attribute("packed", &ty, &packed).unwrap();
    module.define(forward).unwrap();
    module
}

const PER_CHANNEL: &str =
    "q = torch.quantize_per_channel(w, torch.abs(b) * 0.004 + 0.006, torch.zeros_like(b).to(4), 0, 12)";
const PER_TENSOR: &str = "q = torch.quantize_per_tensor(w, 0.009, 5, 12)";

fn per_step(name: &str, module: &Module, input: &[i64], seed: u64) -> f64 {
    let count = input.iter().product::<i64>() as usize;
    let x = Tensor::from_slice(&noise(count, seed), input).unwrap();
    let expected = module.forward(from_ref(&x)).unwrap();
    assert_eq!(accelerate(module).unwrap(), replaced(1), "{name}");
    let ours = module.forward(from_ref(&x)).unwrap();
    let (largest, rate) = distance(ours.as_tensor().unwrap(), expected.as_tensor().unwrap());
    assert!(largest <= 1, "{name}: {largest} steps");
    rate
}

fn forward(call: &str) -> String {
    format!(
        "def forward(self, x: Tensor) -> Tensor:\n    \
         q = torch.quantize_per_tensor(x, 0.008, 120, 13)\n    \
         return torch.int_repr({call})\n"
    )
}

#[test]
fn layers_of_every_kind_are_within_a_step_of_libtorch() {
    let mut rates = Vec::new();
    let mut check = |name: &str, pack: &str, call: &str, weight: &[i64], outputs: i64, input: &[i64]| {
        for (scheme, quantize) in [("per channel", PER_CHANNEL), ("per tensor", PER_TENSOR)] {
            // libtorch packs transposed convolutions per tensor only, and pads depthwise ones wrongly with a zero point.
            if (name.contains("transpose") && scheme == "per channel")
                || (name == "depthwise" && scheme == "per tensor")
            {
                continue;
            }
            let pack = format!("def pack(self, w: Tensor, b: Tensor):\n    {quantize}\n    return {pack}\n");
            let module = layer(&pack, &forward(call), weight, outputs, 31);
            let rate = per_step(&format!("{name}, {scheme}"), &module, input, 77);
            rates.push(rate);
            println!("{name}, {scheme}: {:.4} % of the outputs are a step apart", 100.0 * rate);
        }
    };
    for relu in ["", "_relu"] {
        let call = format!("ops.quantized.linear{relu}(q, self.packed, 0.05, 100)");
        check("linear", "ops.quantized.linear_prepack(q, b)", &call, &[33, 70], 33, &[5, 3, 70]);
        let call = format!("ops.quantized.conv2d{relu}(q, self.packed, 0.04, 90)");
        let pack = |geometry: &str| format!("ops.quantized.conv2d_prepack(q, b, {geometry})");
        let dense = pack("[2, 1], [1, 2], [1, 1], 1");
        check("conv2d", &dense, &call, &[20, 12, 3, 5], 20, &[2, 12, 9, 11]);
        check("conv2d 1x1", &pack("[1, 1], [0, 0], [1, 1], 1"), &call, &[40, 24, 1, 1], 40, &[1, 24, 7, 7]);
        check("depthwise", &pack("[1, 1], [1, 1], [1, 1], 24"), &call, &[24, 1, 3, 3], 24, &[2, 24, 8, 8]);
        check("grouped", &pack("[1, 1], [1, 1], [1, 1], 4"), &call, &[32, 8, 3, 3], 32, &[1, 32, 6, 6]);
        check("dilated", &pack("[1, 1], [2, 2], [2, 2], 1"), &call, &[8, 8, 3, 3], 8, &[1, 8, 9, 9]);
        let call = format!("ops.quantized.conv3d{relu}(q, self.packed, 0.04, 90)");
        let pack = "ops.quantized.conv3d_prepack(q, b, [1, 1, 1], [1, 1, 1], [1, 1, 1], 1)";
        check("conv3d", pack, &call, &[10, 6, 3, 3, 3], 10, &[1, 6, 5, 6, 7]);
        let call = format!("ops.quantized.conv1d{relu}(q, self.packed, 0.04, 90)");
        let pack = "ops.quantized.conv1d_prepack(q, b, [2], [1], [1], 1)";
        check("conv1d", pack, &call, &[10, 6, 3], 10, &[2, 6, 21]);
    }
    let pack = "ops.quantized.conv_transpose2d_prepack(q, b, [2, 2], [1, 1], [1, 1], [1, 1], 1)";
    let call = "ops.quantized.conv_transpose2d(q, self.packed, 0.04, 90)";
    check("conv_transpose2d", pack, call, &[6, 10, 3, 3], 10, &[1, 6, 5, 5]);
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    assert!(mean < 0.01, "{:.3} % of the outputs are a step apart", 100.0 * mean);
}

#[test]
fn depthwise_weights_with_a_zero_point_are_exact_where_libtorch_is_not() {
    let pack = format!(
        "def pack(self, w: Tensor, b: Tensor):\n    {PER_TENSOR}\n    \
         return ops.quantized.conv2d_prepack(q, b, [1, 1], [1, 1], [1, 1], 24)\n"
    );
    let forward = "def forward(self, x: Tensor):\n    \
                   q = torch.quantize_per_tensor(x, 0.008, 120, 13)\n    \
                   w, b = ops.quantized.conv2d_unpack(self.packed)\n    \
                   y = torch.conv2d(torch.dequantize(q), torch.dequantize(w), b, [1, 1], [1, 1], [1, 1], 24)\n    \
                   y = torch.quantize_per_tensor(y, 0.04, 90, 13)\n    \
                   return ops.quantized.conv2d(q, self.packed, 0.04, 90).int_repr(), y.int_repr()\n";
    let module = layer(&pack, forward, &[24, 1, 3, 3], 24, 31);
    let x = Tensor::from_slice(&noise(2 * 24 * 64, 77), &[2, 24, 8, 8]).unwrap();
    let error = || {
        let IValue::Tuple(outputs) = module.forward(from_ref(&x)).unwrap() else { panic!("two outputs") };
        distance(outputs[0].as_tensor().unwrap(), outputs[1].as_tensor().unwrap()).0
    };
    assert!(error() > 1, "libtorch pads correctly now: docs/differences.md has a line too many");
    accelerate(&module).unwrap();
    assert!(error() <= 1);
}

#[test]
fn dynamic_layers_and_recurrent_cells_agree_with_libtorch() {
    let pack = format!(
        "def pack(self, w: Tensor, b: Tensor):\n    {PER_CHANNEL}\n    return ops.quantized.linear_prepack(q, b)\n"
    );
    for call in ["linear_dynamic", "linear_relu_dynamic"] {
        let run = format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return ops.quantized.{call}(x, self.packed, False)\n"
        );
        let module = layer(&pack, &run, &[48, 96], 48, 5);
        let x = Tensor::from_slice(&noise(7 * 96, 3), &[7, 96]).unwrap();
        let expected = module.forward(from_ref(&x)).unwrap();
        assert_eq!(accelerate(&module).unwrap(), replaced(1));
        let apart = difference(&module.forward(from_ref(&x)).unwrap(), &expected);
        assert!(apart < 1e-4, "{call}: {apart}");
    }
    let lstm = Module::new("Cell").unwrap();
    lstm.define(
        "def pack(self, w: Tensor, r: Tensor, b: Tensor):\n    \
         wi = ops.quantized.linear_prepack(torch.quantize_per_tensor(w, 0.01, 0, 12), b)\n    \
         wh = ops.quantized.linear_prepack(torch.quantize_per_tensor(r, 0.01, 0, 12), b)\n    \
         return ops.quantized.make_quantized_cell_params_dynamic(wi, wh, b, b, False)\n",
    )
    .unwrap();
    let tensor =
        |shape: &[i64], seed| Tensor::from_slice(&noise(shape.iter().product::<i64>() as usize, seed), shape).unwrap();
    let cell = lstm.call("pack", &[tensor(&[64, 20], 1), tensor(&[64, 16], 2), tensor(&[64], 3)]).unwrap();
    let IValue::Other(other) = &cell else { panic!("{cell:?}") };
    let module = Module::new("Lstm").unwrap();
    module.register_attribute("cell", &other.type_of().unwrap(), &cell).unwrap();
    module
        .define(
            "def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:\n    \
             y, _, _ = torch.quantized_lstm(x, [h, c], [self.cell], True, 1, 0.0, False, False, False)\n    \
             return y\n",
        )
        .unwrap();
    let inputs = [tensor(&[9, 2, 20], 4), tensor(&[1, 2, 16], 5), tensor(&[1, 2, 16], 6)];
    let expected = module.forward(&inputs).unwrap();
    assert_eq!(accelerate(&module).unwrap(), replaced(1));
    assert_eq!(accelerate(&module).unwrap().already, 1);
    let apart = difference(&module.forward(&inputs).unwrap(), &expected);
    assert!(apart < 1e-4, "lstm: {apart}");
}

#[test]
fn many_threads_run_one_model_at_once() {
    let model = quantized_classifier();
    accelerate(&model).unwrap();
    let inputs: Vec<_> = (0..4).map(|seed| images(2 + seed as i64, 50 + seed)).collect();
    let answer = |model: &Module, x: &Tensor| -> Vec<f32> {
        model.forward(from_ref(x)).unwrap().as_tensor().unwrap().to_vec().unwrap()
    };
    let expected: Vec<_> = inputs.iter().map(|x| answer(&model, x)).collect();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let work = Shared((model.clone(), inputs.clone(), expected.clone()));
            std::thread::spawn(move || {
                let Shared((model, inputs, expected)) = { work };
                for round in 0..50 {
                    let index = round % inputs.len();
                    assert_eq!(answer(&model, &inputs[index]), expected[index], "round {round}");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Handles on one module and its inputs, for another thread.
struct Shared<T>(T);

// SAFETY: libtorch counts references atomically and lets many threads run a module that nobody changes; each thread has
// handles of its own.
unsafe impl<T> Send for Shared<T> {}

#[test]
fn packed_parameters_in_lists_and_nested_modules_are_found_and_others_say_why_they_stay() {
    let inner = layer(
        &format!(
            "def pack(self, w: Tensor, b: Tensor):\n    {PER_TENSOR}\n    return [ops.quantized.linear_prepack(q, b)]\n"
        ),
        "def forward(self, x: Tensor) -> Tensor:\n    return ops.quantized.linear_dynamic(x, self.packed[0], False)\n",
        &[4, 6],
        4,
        1,
    );
    let outer = Module::new("Outer").unwrap();
    outer.register_submodule("inner", &inner).unwrap();
    outer.define("def forward(self, x: Tensor) -> Tensor:\n    return self.inner.forward(x)\n").unwrap();
    assert_eq!(accelerate(&outer).unwrap(), replaced(1));

    let half = layer(
        "def pack(self, w: Tensor, b: Tensor):\n    return ops.quantized.linear_prepack_fp16(w, b)\n",
        "def forward(self, x: Tensor) -> Tensor:\n    return ops.quantized.linear_dynamic(x, self.packed, False)\n",
        &[4, 6],
        4,
        1,
    );
    let done = accelerate(&half).unwrap();
    assert_eq!(done.replaced, 0);
    assert_eq!(done.left[0].path, "packed");
    assert!(done.left[0].reason.contains("qint8"), "{}", done.left[0]);
}

//! Attention quantized where that was asked for: the products of two activations.
#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::measure::Comparison;
use jitquant::{Converted, Methods, ModelForm, Quantizer};
use support::noise;

const WRITTEN_OUT: &str = "
    s = torch.matmul(q, k.transpose(-2, -1)) / 4.0
    y = torch.matmul(torch.softmax(s, -1), v)
";
const WITH_BMM: &str = "
    s = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)) * 0.25
    y = torch.bmm(torch.softmax(s, -1), v.flatten(0, 1)).view([x.size(0), 2, x.size(1), 16])
";
const SDPA: &str = "
    y = torch.scaled_dot_product_attention(q, k, v)
";
const CAUSAL: &str = "
    y = torch.scaled_dot_product_attention(q, k, v, None, 0.0, True)
";
const FLOAT_MASK: &str = "
    y = torch.scaled_dot_product_attention(q, k, v, x.sum(-1).view([x.size(0), 1, 1, x.size(1)]) * 0.1, scale=0.3)
";
const BOOL_MASK: &str = "
    y = torch.scaled_dot_product_attention(q, k, v, x.sum(-1).view([x.size(0), 1, 1, x.size(1)]) > -2.0)
";
const DROPOUT: &str = "
    y = torch.scaled_dot_product_attention(q, k, v, None, 0.5)
";

fn random(shape: &[i64], seed: u64) -> Tensor {
    Tensor::from_slice(&noise(shape.iter().product::<i64>() as usize, seed), shape).unwrap()
}

/// Two heads of 16 over rows of 32, and this way to attend.
fn attention(attend: &str) -> Module {
    jitquant::init().unwrap();
    let model = Module::new("Attention").unwrap();
    for (name, seed) in [("wq", 2), ("wk", 3), ("wv", 4), ("wo", 5)] {
        model.register_parameter(name, random(&[32, 32], seed)).unwrap();
    }
    let head =
        |name: &str| format!("torch.linear(x, self.w{name}).view([x.size(0), x.size(1), 2, 16]).transpose(1, 2)");
    let source = format!(
        "def forward(self, x: Tensor) -> Tensor:\n    q = {}\n    k = {}\n    v = {}{attend}    \
         return torch.linear(y.transpose(1, 2).reshape([x.size(0), x.size(1), 32]), self.wo)\n",
        head("q"),
        head("k"),
        head("v"),
    );
    model.define(&source).unwrap();
    model
}

fn tokens(seed: u64) -> Tensor {
    random(&[3, 11, 32], seed)
}

fn quantized(model: &Module, attention: bool, form: ModelForm) -> Converted {
    let methods = Methods { attention, ..Methods::default() };
    let mut prepared = Quantizer::static_ptq().methods(methods).form(form).prepare(model).unwrap();
    for seed in 10..14 {
        prepared.calibrate(&[tokens(seed)]).unwrap();
    }
    prepared.convert().unwrap()
}

fn count(module: &Module, kind: &str) -> usize {
    module.graph("forward").unwrap().all_nodes().into_iter().filter(|node| node.kind() == kind).count()
}

fn run(module: &Module) -> Vec<f32> {
    Tensor::try_from(module.forward(&[tokens(20)]).unwrap()).unwrap().to_f32_vec().unwrap()
}

fn sqnr(float: &[f32], int8: &[f32]) -> f64 {
    let mut comparison = Comparison::default();
    comparison.add(float, int8, 1);
    comparison.sqnr_db()
}

#[test]
fn products_are_quantized_where_asked_for() {
    for (name, attend) in [
        ("written out", WRITTEN_OUT),
        ("bmm", WITH_BMM),
        ("sdpa", SDPA),
        ("causal", CAUSAL),
        ("float mask", FLOAT_MASK),
        ("bool mask", BOOL_MASK),
    ] {
        let model = attention(attend);
        let float = run(&model);
        let portable = quantized(&model, true, ModelForm::Portable);
        assert_eq!(count(&portable.module, "quantized::matmul"), 2, "{name}");
        assert_eq!(
            (portable.report.float.len(), portable.report.quantized_layers),
            (0, 6),
            "{name}: {:?}",
            portable.report
        );
        let ours = |node: &str| node.starts_with("jitquant::");
        let graph = portable.module.graph("forward").unwrap();
        assert!(!graph.all_nodes().into_iter().any(|node| ours(node.kind())), "{name}: libtorch alone runs it");
        let loaded = Module::load_bytes(&portable.module.save_bytes().unwrap()).unwrap();
        let stock = run(&loaded);
        let decibels = sqnr(&float, &stock);
        assert!(decibels > 25.0, "{name}: {decibels} dB");

        let native = quantized(&model, true, ModelForm::Native);
        assert_eq!(count(&native.module, "jitquant::matmul"), 2, "{name}");
        let difference = sqnr(&stock, &run(&native.module));
        assert!(difference > 30.0, "{name}: {difference} dB between the two forms");
    }
}

#[test]
fn products_stay_in_float_where_nobody_asked() {
    for (attend, operator, count_of) in [(WRITTEN_OUT, "matmul", 2), (SDPA, "attention", 1)] {
        let converted = quantized(&attention(attend), false, ModelForm::Portable);
        assert_eq!(count(&converted.module, "quantized::matmul"), 0);
        let left: Vec<_> = converted.report.float.iter().filter(|layer| layer.operator == operator).collect();
        assert_eq!(left.len(), count_of);
        assert!(left[0].reason.contains("--attention"), "{}", left[0].reason);
    }
}

#[test]
fn what_cannot_be_written_out_says_so() {
    let converted = quantized(&attention(DROPOUT), true, ModelForm::Portable);
    let left = &converted.report.float[0];
    assert_eq!((left.operator.as_str(), converted.report.float.len()), ("attention", 1));
    assert!(left.reason.contains("dropout"), "{}", left.reason);
}

/// `jitquant::matmul` gives what `quantized::matmul` gives, to a step, for broadcast and transposed operands.
#[test]
fn the_native_product_is_libtorchs_to_a_step() {
    jitquant::init().unwrap();
    let ops = Module::new("Ops").unwrap();
    ops.define(
        "def stock(self, a: Tensor, b: Tensor):
    x = torch.quantize_per_tensor(a, 0.011, 117, 13)
    y = torch.quantize_per_tensor(b, 0.013, 140, 13)
    return torch.int_repr(ops.quantized.matmul(x, y, 0.05, 99))
def native(self, a: Tensor, b: Tensor):
    return ops.jitquant.matmul(ops.jitquant.quantize(a, 0.011, 117), 0.011, 117, ops.jitquant.quantize(b, 0.013, 140), 0.013, 140, 0.05, 99)
def sizes(self, a: Tensor, b: Tensor):
    x = torch.empty_like(ops.jitquant.quantize(a, 0.011, 117), device='meta')
    y = torch.empty_like(ops.jitquant.quantize(b, 0.013, 140), device='meta')
    return ops.jitquant.matmul(x, 0.011, 117, y, 0.013, 140, 0.05, 99)
def turned(self, b: Tensor):
    return b.transpose(-2, -1)
def stretched(self, b: Tensor):
    return b[:1].expand(b.size())
",
    )
    .unwrap();
    let bytes = |value: &IValue| value.as_tensor().unwrap().to_vec::<u8>().unwrap();
    let cases: [(&[i64], &[i64], &str); 8] = [
        (&[5, 7], &[7, 3], ""),
        (&[2, 3, 33, 17], &[2, 3, 17, 40], ""),
        (&[2, 3, 33, 17], &[2, 3, 40, 17], "turned"),
        (&[4, 64, 32], &[4, 32, 64], "stretched"),
        (&[1, 4, 1, 100], &[1, 4, 100, 1], ""),
        (&[3, 5, 0], &[3, 0, 2], ""),
        (&[3, 0, 5], &[3, 5, 2], ""),
        (&[12, 96, 96], &[12, 96, 96], "turned"),
    ];
    for (left, right, change) in cases {
        let a = random(left, 1);
        let mut b = random(right, 2);
        if !change.is_empty() {
            b = Tensor::try_from(ops.call(change, &[b]).unwrap()).unwrap();
        }
        let inputs = [a, b];
        let stock: IValue = ops.call("stock", &inputs).unwrap();
        let native: IValue = ops.call("native", &inputs).unwrap();
        let meta: IValue = ops.call("sizes", &inputs).unwrap();
        assert_eq!(stock.as_tensor().unwrap().shape(), native.as_tensor().unwrap().shape());
        assert_eq!(stock.as_tensor().unwrap().shape(), meta.as_tensor().unwrap().shape());
        let (stock, native) = (bytes(&stock), bytes(&native));
        let distance = stock.iter().zip(&native).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        assert!(distance <= 1, "{left:?} {right:?}: {distance} steps");
    }
    // What libtorch's quantized one refuses, vectors and other numbers of dimensions, is as in `matmul`.
    for (left, right, shape) in [
        (&[7][..], &[7, 3][..], &[3][..]),
        (&[5, 7], &[7], &[5]),
        (&[7], &[7], &[]),
        (&[2, 1, 4, 7], &[3, 7, 5], &[2, 3, 4, 5]),
    ] {
        let native: IValue = ops.call("native", &[random(left, 1), random(right, 2)]).unwrap();
        assert_eq!(native.as_tensor().unwrap().shape(), shape);
    }
    let error = ops.call("native", &[random(&[5, 7], 1), random(&[6, 3], 2)]).unwrap_err().to_string();
    assert!(error.contains("have to be the same"), "{error}");
}

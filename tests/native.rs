//! The native form: the same answers as the portable one, on bytes, with what stands around layers fused into them.
#![cfg(feature = "torch")]

mod support;

use std::collections::BTreeMap;

use jitquant::ir::{Module, Tensor};
use jitquant::pass::{stock_operators, to_native};
use jitquant::{Methods, Quantizer, Rounding};
use support::{classifier, conv2d, images, linear, tensor};

fn portable(model: &Module, batches: &[Tensor]) -> Module {
    let mut prepared = Quantizer::static_ptq().prepare(model).unwrap();
    for batch in batches {
        prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    }
    prepared.convert().unwrap().module
}

fn answer(model: &Module, x: &Tensor) -> Vec<f32> {
    model.forward(std::slice::from_ref(x)).unwrap().as_tensor().unwrap().to_vec().unwrap()
}

/// Signal to noise, in dB.
fn sqnr(signal: &[f32], other: &[f32]) -> f64 {
    let power = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let noise = power(&mut signal.iter().zip(other).map(|(a, b)| f64::from(a - b)));
    10.0 * (power(&mut signal.iter().map(|a| f64::from(*a))) / noise.max(1e-30)).log10()
}

/// How often `model` calls each operator of jitquant and of libtorch.
fn operators(model: &Module) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in model.graph("forward").unwrap().all_nodes() {
        *counts.entry(node.kind().to_owned()).or_default() += 1;
    }
    counts.retain(|kind, _| kind.starts_with("jitquant::") || kind.starts_with("aten::"));
    counts
}

/// A model of two convolutions of 4 channels, `a` of 1 to 4 and `b` of 4 to 4, with this code.
fn two(code: &str) -> Module {
    let module = Module::new("Two").unwrap();
    module.register_submodule("a", &conv2d(1, 4, 3, 1, 10)).unwrap();
    module.register_submodule("b", &conv2d(4, 4, 3, 4, 20)).unwrap();
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {code}\n")).unwrap();
    module
}

/// The native form of `code` calls `expected` operators, and is no less exact than the portable one.
fn becomes(code: &str, expected: &[(&str, usize)]) {
    let model = two(code);
    let stock = portable(&model, &[images(8, 1), images(8, 2)]);
    let native = to_native(&stock).unwrap();
    let counts = operators(&native);
    let expected: BTreeMap<String, usize> = expected.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
    let graph = native.graph("forward").unwrap();
    assert_eq!(counts, expected, "{code}\n{graph}");
    let x = images(4, 9);
    let float = answer(&model, &x);
    let (theirs, ours) = (sqnr(&float, &answer(&stock, &x)), sqnr(&float, &answer(&native, &x)));
    assert!(ours > theirs - 1.0 && ours > 20.0, "{code}: {ours} dB, the portable form {theirs} dB");
}

const QUANTIZE: (&str, usize) = ("jitquant::quantize", 1);

#[test]
fn layers_take_in_what_follows_them() {
    let (conv, float) = (("jitquant::conv", 1), ("jitquant::conv_float", 1));
    // A clamp, and the last result in float.
    becomes("return self.b.forward(torch.relu(self.a.forward(x)))", &[conv, float, QUANTIZE]);
    becomes("return self.b.forward(torch.hardtanh(self.a.forward(x), 0.0, 0.5))", &[conv, float, QUANTIZE]);
    // A function of one value, however it is spelled.
    becomes("return self.b.forward(torch.hardswish(self.a.forward(x)))", &[conv, float, QUANTIZE]);
    becomes("return self.b.forward(torch.gelu(self.a.forward(x)))", &[conv, float, QUANTIZE]);
    becomes(
        "y = self.a.forward(x)\n    return self.b.forward(y * torch.sigmoid(y))",
        &[("jitquant::conv", 1), ("jitquant::conv_float", 1), ("jitquant::lookup", 1), ("jitquant::mul", 1), QUANTIZE],
    );
    // A residual sum with its relu.
    becomes(
        "y = self.a.forward(x)\n    return torch.relu(y + self.b.forward(y))",
        &[("jitquant::conv", 2), ("jitquant::dequantize", 1), QUANTIZE],
    );
}

#[test]
fn zeros_around_an_image_become_padding_of_the_layer() {
    let code = "return self.b.forward(torch.constant_pad_nd(torch.relu(self.a.forward(x)), [1, 1, 2, 2], 0.0))";
    becomes(code, &[("jitquant::conv", 1), ("jitquant::conv_float", 1), QUANTIZE]);
    // Not the same on both sides: bytes are padded.
    let code = "return self.b.forward(torch.constant_pad_nd(torch.relu(self.a.forward(x)), [0, 1, 0, 1], 0.0))";
    becomes(code, &[("aten::constant_pad_nd", 1), ("jitquant::conv", 1), ("jitquant::conv_float", 1), QUANTIZE]);
}

#[test]
fn images_are_upsampled_as_bytes() {
    for (call, operator) in [
        ("torch.upsample_nearest2d(y, [17, 20])", "jitquant::upsample_nearest"),
        ("torch.upsample_nearest2d(y, [24, 24], 2.0, 2.0)", "jitquant::upsample_nearest"),
        ("torch.upsample_nearest2d(y, None, [1.5, 2.0])", "jitquant::upsample_nearest"),
        ("torch.upsample_bilinear2d(y, [17, 20], True)", "jitquant::upsample_bilinear"),
        ("torch.upsample_bilinear2d(y, None, False, [1.5, 2.0])", "jitquant::upsample_bilinear"),
        // Factors that are partly given: libtorch's own operator.
        ("torch.upsample_nearest2d(y, [24, 24], 2.0, None)", "aten::upsample_nearest2d"),
    ] {
        let code = format!("y = torch.relu(self.a.forward(x))\n    return self.b.forward({call})");
        becomes(&code, &[("jitquant::conv", 1), ("jitquant::conv_float", 1), (operator, 1), QUANTIZE]);
    }
}

#[test]
fn what_has_no_native_form_goes_on_with_libtorchs_tensors() {
    let code = "y = self.a.forward(x)\n    return self.b.forward(torch.relu(y) + 0.25)";
    let model = two(code);
    let stock = portable(&model, &[images(8, 1)]);
    let native = to_native(&stock).unwrap();
    let left = jitquant::pass::stock_operators(&native).unwrap();
    assert!(!left.is_empty(), "{}", native.graph("forward").unwrap());
    let x = images(4, 9);
    let float = answer(&model, &x);
    assert!(sqnr(&float, &answer(&native, &x)) > 20.0);
}

#[test]
fn a_classifier_runs_on_bytes_and_is_no_worse() {
    let model = classifier();
    let batches: Vec<_> = (0..4).map(|seed| images(4, 100 + seed)).collect();
    let stock = portable(&model, &batches);
    let native = to_native(&stock).unwrap();
    assert_eq!(stock_operators(&native).unwrap(), BTreeMap::new(), "{}", native.graph("forward").unwrap());
    let x = images(16, 7);
    let float = answer(&model, &x);
    let (theirs, ours) = (sqnr(&float, &answer(&stock, &x)), sqnr(&float, &answer(&native, &x)));
    println!("portable {theirs:.1} dB, native {ours:.1} dB");
    assert!(ours > theirs - 1.0, "{ours} dB, the portable form {theirs} dB");
    // The stock weights are gone, and the file holds ours.
    assert!(native.attributes().iter().all(|attribute| !attribute.name.contains("packed_weight")));
    let loaded = Module::load_bytes(&native.save_bytes().unwrap()).unwrap();
    assert_eq!(answer(&loaded, &x), answer(&native, &x));
    // The portable module is as it was.
    assert!(stock.attributes().iter().any(|attribute| attribute.name.contains("packed_weight")));
    answer(&stock, &x);
}

/// A layer that is called five times is in the file once: between float operators, and between INT8 ones where rounding does not
/// fit each call to its own data.
#[test]
fn a_weight_that_several_layers_share_is_packed_once() {
    for between in ["torch.gelu", "torch.relu"] {
        let float = Module::new("Shared").unwrap();
        float.register_submodule("fc", &linear(128, 128, 3)).unwrap();
        let call = format!("    x = {between}(self.fc.forward(x)) * 0.25\n").repeat(5);
        float.define(&format!("def forward(self, x: Tensor) -> Tensor:\n{call}    return x\n")).unwrap();
        let methods = Methods { rounding: Rounding::Sums, ..Methods::default() };
        let mut prepared = Quantizer::static_ptq().methods(methods).prepare(&float).unwrap();
        prepared.calibrate(&[tensor(&[16, 128], 5)]).unwrap();
        let int8 = prepared.convert().unwrap().module;
        let native = to_native(&int8).unwrap();
        for (form, module) in [("portable", &int8), ("native", &native)] {
            let bytes = module.save_bytes().unwrap().len();
            assert!(bytes < 3 * 128 * 128, "{between}, {form}: {bytes} bytes, a weight has {}", 128 * 128);
        }
    }
}

//! Where ours go further than libtorch's, as docs/differences.md lists it; and what they refuse.

use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::pass::{QuantType, finalize, insert_quant_dequant};
use jitquant_oracle as oracle;

use crate::canonical::Canonical;
use crate::compare::{Case, QINT8, random};
use crate::models::*;
use crate::same::*;

const IMAGE: &[i64] = &[1, 4, 4, 4];

fn image() -> Tensor {
    random(IMAGE, 100)
}

/// The model with observers that have seen an image.
fn observed(case: &Case) -> Module {
    let observed = case.ours().unwrap();
    observed.forward(&[image()]).unwrap();
    observed
}

fn quantized(observed: &Module) -> Module {
    insert_quant_dequant(observed, "forward", false, false, QuantType::Static).unwrap()
}

fn kinds(module: &Module) -> Vec<String> {
    let graph = module.graph("forward").unwrap();
    graph.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect()
}

fn count(module: &Module, kind: &str) -> usize {
    kinds(module).iter().filter(|found| *found == kind).count()
}

fn smallest(module: &Module) -> f32 {
    let output = module.forward(&[image()]).unwrap();
    output.as_tensor().unwrap().to_f32_vec().unwrap().into_iter().fold(f32::MAX, f32::min)
}

#[test]
fn what_is_changed_in_place_is_read_after_the_change() {
    let body = "
y = self.conv.forward(x)
if y.size(0) == 1:
    torch.relu_(y)
return y + 0.5";
    let case = Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]);
    let observed = observed(&case);
    let ours = finalize(&quantized(&observed), QuantType::Static, &[]).unwrap();
    let theirs = loaded(&oracle::quantize(&observed.save_bytes().unwrap(), "forward", false).unwrap());
    assert!(smallest(&ours) > 0.45, "relu and 0.5");
    assert!(smallest(&theirs) < 0.0, "libtorch adds before the relu");
}

#[test]
fn tuples_are_saved_and_loaded() {
    let body = "y = self.conv.forward(x)\nreturn torch.max_pool2d(y, [2, 2]), y";
    let case = Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]);
    let observed = observed(&case);
    let theirs = oracle::quantize(&observed.save_bytes().unwrap(), "forward", false).unwrap();
    assert!(Module::load_bytes(&theirs).is_err(), "libtorch dequantizes the tuple, which no file can say");
    let ours = saved_and_loaded(&finalize(&quantized(&observed), QuantType::Static, &[]).unwrap());
    assert!(matches!(ours.forward(&[image()]).unwrap(), IValue::Tuple(items) if items.len() == 2));
    assert_eq!(count(&ours, "aten::max_pool2d"), 1);
}

#[test]
fn clamps_in_branches_are_fused() {
    let body = "
y = self.conv.forward(x)
if y.size(0) == 1:
    y = torch.clamp(y, 0.0, 0.5)
return self.last.forward(y)";
    let case = Case::new(model(&[("conv", &conv2d(4, 4)), ("last", &conv2d(4, 4))], body), &[IMAGE]);
    let observed = observed(&case);
    let ours = finalize(&quantized(&observed), QuantType::Static, &[]).unwrap();
    let theirs = loaded(&oracle::quantize(&observed.save_bytes().unwrap(), "forward", false).unwrap());
    assert_eq!(count(&ours, "aten::quantize_per_tensor"), 1, "the input");
    assert!(count(&theirs, "aten::quantize_per_tensor") > 1, "the clamp is in float");
}

#[test]
fn a_saved_debug_module_is_fused_as_one_that_was_not() {
    let body = "return self.last.forward(torch.clamp(torch.sigmoid(self.conv.forward(x)), 0.25, 0.75))";
    let case = Case::new(model(&[("conv", &conv2d(4, 4)), ("last", &conv2d(4, 4))], body), &[IMAGE]);
    let quantized = quantized(&observed(&case));
    let direct = finalize(&quantized, QuantType::Static, &[]).unwrap();
    let bytes = quantized.save_bytes().unwrap();
    let saved = finalize(&loaded(&bytes), QuantType::Static, &[]).unwrap();
    assert_same(&saved_and_loaded(&saved), &saved_and_loaded(&direct));
    let theirs = loaded(&oracle::finalize(&bytes, false).unwrap());
    assert!(kinds(&theirs).len() > kinds(&saved).len() + 5, "libtorch finds shared constants and does not fuse");
}

#[test]
fn a_method_beside_forward_is_quantized() {
    let body = "
def part(self, x: Tensor):
    return torch.relu(self.conv.forward(x))
def forward(self, x: Tensor):
    return torch.sin(x)";
    let case = Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]).method("part");
    let observed = case.ours().unwrap();
    observed.call("part", &[image()]).unwrap();
    let ours = insert_quant_dequant(&observed, "part", false, false, QuantType::Static).unwrap();
    let graph = ours.graph("part").unwrap();
    assert!(graph.nodes().all(|node| node.kind() != "prim::CallMethod"), "inlined");
    let before_relu = graph.nodes().find(|node| node.kind() == "aten::relu").unwrap().inputs()[0].node();
    assert!(before_relu.kind().starts_with("aten::"), "{before_relu}");
}

#[test]
fn a_weight_that_comes_from_the_arguments_stays_in_float() {
    let body = "
def forward(self, x: Tensor, w: Tensor):
    return torch.linear(self.fc.forward(x), w)";
    let case = Case::new(model(&[("fc", &linear(4, 4))], body), &[&[2, 4], &[3, 4]]).dynamic(QINT8);
    let observed = case.theirs().unwrap();
    let bytes = observed.save_bytes().unwrap();
    let refusal = oracle::insert_quant_dequant(&bytes, "forward", true).unwrap_err();
    assert!(refusal.what().contains("Unexpected value found when handling weight"), "{}", refusal.what());
    let int8 = case.check_end_to_end();
    assert_eq!((count(&int8, "quantized::linear_dynamic"), count(&int8, "aten::linear")), (1, 1));
}

#[test]
fn each_step_leaves_its_input_as_it_was() {
    let body = "return torch.relu(self.conv.forward(x))";
    let observed = observed(&Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]));
    let before = Canonical::of(&observed).text;
    let quantized = quantized(&observed);
    assert_eq!(Canonical::of(&observed).text, before);
    let before = Canonical::of(&quantized).text;
    finalize(&quantized, QuantType::Static, &[]).unwrap();
    assert_eq!(Canonical::of(&quantized).text, before);
}

#[test]
fn refusals_say_what_is_wrong() {
    let layers = model(&[("conv", &conv2d(4, 4))], "return self.conv.forward(x)");
    let error = insert_quant_dequant(&layers, "missing", false, false, QuantType::Static).unwrap_err().to_string();
    assert!(error.contains("no method 'missing'"), "{error}");

    let broken = Module::new("test.Broken").unwrap();
    for name in ["dtype", "qscheme"] {
        broken
            .register_attribute(name, &Type::parse("int").unwrap(), &IValue::Int(if name == "dtype" { 13 } else { 0 }))
            .unwrap();
    }
    broken
        .define("def forward(self, x: Tensor) -> Tensor:\n    return x\ndef calculate_qparams(self) -> Tensor:\n    return torch.ones([1])\n")
        .unwrap();
    let qconfig = jitquant::qconfig::QConfig { activation: broken.clone(), weight: broken };
    let observed = Case::new(layers, &[IMAGE]).qconfig("", Some(qconfig)).ours().unwrap();
    let error = insert_quant_dequant(&observed, "forward", false, false, QuantType::Static).unwrap_err().to_string();
    assert!(error.contains("test.Broken") && error.contains("(scale, zero_point)"), "{error}");

    let module = model(&[], "return x");
    let error = finalize(&module, QuantType::Static, &["missing".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_clamp_may_have_one_bound() {
    for clamp in ["torch.clamp(y, None, 0.5)", "torch.clamp(y, 0.25)"] {
        let body = format!("y = self.conv.forward(x)\nreturn self.last.forward({clamp})");
        let case = Case::new(model(&[("conv", &conv2d(4, 4)), ("last", &conv2d(4, 4))], &body), &[IMAGE]);
        let observed = observed(&case);
        let refusal = oracle::insert_quant_dequant(&observed.save_bytes().unwrap(), "forward", false).unwrap_err();
        assert!(refusal.what().contains("aten::scalar_tensor"), "libtorch makes a tensor of None");
        quantized(&observed).forward(&[image()]).unwrap();
        assert_eq!(count(&case.check_end_to_end(), "aten::quantize_per_tensor"), 1, "{clamp}");
    }
}

#[test]
fn sums_with_numbers_in_branches_take_in_a_relu() {
    let body = "
y = self.conv.forward(x)
if y.size(0) == 1:
    y = torch.relu(y + 0.5)
return self.last.forward(y)";
    let case = Case::new(model(&[("conv", &conv2d(4, 4)), ("last", &conv2d(4, 4))], body), &[IMAGE]);
    let observed = observed(&case);
    let ours = finalize(&quantized(&observed), QuantType::Static, &[]).unwrap();
    let theirs = loaded(&oracle::quantize(&observed.save_bytes().unwrap(), "forward", false).unwrap());
    assert_eq!((count(&ours, "quantized::add_scalar_relu"), count(&theirs, "quantized::add_scalar_relu")), (1, 0));
}

#[test]
fn one_of_several_results_of_a_branch_may_be_quantized() {
    let body = "
y = x
z = x
if x.size(0) == 1:
    y = torch.sin(x)
    z = torch.cos(x)
return self.conv.forward(y) + torch.sin(z)";
    let case = Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]);
    let observed = observed(&case);
    assert!(oracle::insert_quant_dequant(&observed.save_bytes().unwrap(), "forward", false).is_err());
    let ours = finalize(&quantized(&observed), QuantType::Static, &[]).unwrap();
    ours.forward(&[image()]).unwrap();
    assert_eq!(count(&ours, "quantized::conv2d"), 1);
}

#[test]
fn operators_in_loops_are_handed_quantization_on() {
    let body = "
y = self.conv.forward(x)
for i in range(x.size(0)):
    y = self.conv.forward(torch.max_pool2d(self.conv.forward(y), [1, 1]))
return y";
    let case = Case::new(model(&[("conv", &conv2d(4, 4))], body), &[IMAGE]);
    let ours = finalize(&quantized(&observed(&case)), QuantType::Static, &[]).unwrap();
    ours.forward(&[image()]).unwrap();
    let graph = ours.graph("forward").unwrap();
    let pools: Vec<_> = graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::max_pool2d").collect();
    assert!(pools.iter().all(|pool| pool.inputs()[0].node().kind() == "quantized::conv2d"), "{graph}");
}

#[test]
fn what_is_taken_twice_is_not_quantized_dynamically_for_nothing() {
    let body = "y = self.fc.forward(x)\nreturn self.fc.forward(y) + torch.sin(y + y)";
    let case = Case::new(model(&[("fc", &linear(4, 4))], body), &[&[2, 4]]).dynamic(QINT8);
    let bytes = case.theirs().unwrap().save_bytes().unwrap();
    let theirs = loaded(&oracle::quantize(&bytes, "forward", true).unwrap());
    let observed = loaded(&bytes);
    let quantized = insert_quant_dequant(&observed, "forward", false, false, QuantType::Dynamic).unwrap();
    let ours = finalize(&quantized, QuantType::Dynamic, &[]).unwrap();
    assert_eq!((count(&ours, "aten::dequantize"), count(&theirs, "aten::dequantize") > 0), (0, true));
}

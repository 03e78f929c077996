//! Every operator and every fusion of the table, in a model that quantizes what is before and behind it.

use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::qconfig::QConfig;

use crate::compare::{Case, HALF, QINT8};
use crate::models::*;

/// A model: a layer, the expression in `y` (its result), and a layer again, where the shape is still the same.
fn around(first: &Module, expression: &str, last: Option<&Module>) -> Module {
    let mut children = vec![("first", first)];
    let mut body = format!("y = self.first.forward(x)\nz = {expression}\n");
    match last {
        Some(last) => {
            children.push(("last", last));
            body.push_str("return self.last.forward(z)");
        }
        None => body.push_str("return z"),
    }
    model(&children, &body)
}

fn kinds(module: &Module) -> Vec<String> {
    let graph = module.graph("forward").unwrap();
    graph.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect()
}

/// Ours and libtorch's are the same at every stage and end to end; our INT8 model has the operator `kind` in INT8.
fn check(case: &Case, what: &str, kind: &str) {
    let int8 = case.check_end_to_end();
    let found = kinds(&int8);
    assert!(found.iter().any(|found| found == kind), "{what} becomes {kind}: {found:?}");
}

/// Checks an operator on the result of a layer; all that is between the first quantize and the last dequantize is INT8.
fn check_operator(first: &Module, last: Option<&Module>, shape: &[i64], expression: &str, kind: &str) {
    let case = Case::new(around(first, expression, last), &[shape]);
    check(&case, expression, kind);
    let found = kinds(&case.check_end_to_end());
    let between = found.iter().skip_while(|kind| !kind.starts_with("aten::quantize")).skip(1);
    let between: Vec<_> = between.filter(|kind| !kind.starts_with("prim::")).collect();
    let dequantized = between.iter().position(|kind| *kind == "aten::dequantize").unwrap_or(between.len());
    assert_eq!(dequantized + 1, between.len(), "{expression}: {between:?}");
}

const IMAGE: &[i64] = &[1, 4, 6, 6];

#[test]
fn operators_that_run_on_quantized_images() {
    let (first, last) = (conv2d(4, 4), conv2d(4, 4));
    for (expression, kind) in [
        ("torch.avg_pool2d(y, [2, 2])", "aten::avg_pool2d"),
        ("torch.adaptive_avg_pool2d(y, [3, 3])", "aten::adaptive_avg_pool2d"),
        ("torch.upsample_nearest2d(y, [12, 12], None)", "aten::upsample_nearest2d"),
        ("torch.upsample_nearest2d(y, [12, 12], 2.0, 2.0)", "aten::upsample_nearest2d"),
        ("torch.upsample_bilinear2d(y, [12, 12], False, None)", "aten::upsample_bilinear2d"),
        ("torch.upsample_bilinear2d(y, [12, 12], False, 2.0, 2.0)", "aten::upsample_bilinear2d"),
        ("torch.leaky_relu(y, 0.1)", "aten::leaky_relu"),
        ("torch.leaky_relu_(y, 0.1)", "aten::leaky_relu_"),
        ("torch.clamp(y, 0.0, 6.0)", "aten::clamp"),
        ("torch.clamp(y, 0, 1)", "aten::clamp"),
        ("torch.clamp(y, -0.5, 0.5)", "aten::clamp"),
        ("torch.hardtanh(y, -0.25, 0.5)", "aten::hardtanh"),
        ("torch.hardtanh_(y, 0.0, 6.0)", "aten::hardtanh_"),
        ("torch.sigmoid(y)", "aten::sigmoid"),
        ("torch.hardsigmoid(y)", "aten::hardsigmoid"),
        ("torch.hardsigmoid_(y)", "aten::hardsigmoid_"),
        ("torch.tanh(y)", "aten::tanh"),
        ("torch.max_pool2d(y, [2, 2])", "aten::max_pool2d"),
        ("torch.relu(torch.max_pool2d(y, [2, 2]))", "aten::relu"),
        ("torch.relu_(torch.max_pool2d(y, [2, 2]))", "aten::relu_"),
    ] {
        check_operator(&first, Some(&last), IMAGE, expression, kind);
    }
}

#[test]
fn operators_with_parameters_of_their_own() {
    let (first, last) = (conv2d(4, 4), conv2d(4, 4));
    for (expression, kind) in [
        ("torch.hardswish(y)", "quantized::hardswish"),
        ("torch.hardswish_(y)", "quantized::hardswish"),
        ("torch.elu(y)", "quantized::elu"),
        ("torch.elu(y, 0.5)", "quantized::elu"),
        ("torch.elu_(y, 0.5)", "quantized::elu"),
        ("torch.layer_norm(y, [6, 6])", "quantized::layer_norm"),
        ("torch.group_norm(y, 2)", "quantized::group_norm"),
        ("torch.instance_norm(y, None, None, None, None, True, 0.1, 1e-05, False)", "quantized::instance_norm"),
        ("torch.cat([y, y], 1)[:, 0:4]", "quantized::cat"),
    ] {
        let case = Case::new(around(&first, expression, Some(&last)), &[IMAGE]);
        check(&case, expression, kind);
    }
}

#[test]
fn batch_norms() {
    let layers = [("conv", &conv2d(4, 4)), ("bn", &batch_norm2d(4)), ("relu", &relu()), ("last", &conv2d(4, 4))];
    for (body, kind) in [
        ("z = self.bn.forward(torch.max_pool2d(self.conv.forward(x), [2, 2]))", "quantized::batch_norm"),
        (
            "z = torch.relu(self.bn.forward(torch.max_pool2d(self.conv.forward(x), [2, 2])))",
            "quantized::batch_norm_relu",
        ),
        (
            "z = torch.relu_(self.bn.forward(torch.max_pool2d(self.conv.forward(x), [2, 2])))",
            "quantized::batch_norm_relu",
        ),
        ("z = self.relu.forward(self.bn.forward(self.conv.forward(x)))", "quantized::batch_norm_relu"),
    ] {
        let case = Case::new(model(&layers, &format!("{body}\nreturn self.last.forward(z)")), &[IMAGE]);
        check(&case, body, kind);
    }
}

#[test]
fn sums_and_products() {
    let layers = [("a", &conv2d(4, 4)), ("b", &conv2d(4, 4)), ("relu", &relu()), ("last", &conv2d(4, 4))];
    for (sum, name) in [("torch.add(a, b)", "add"), ("torch.add_(a, b)", "add"), ("a * b", "mul"), ("a.mul_(b)", "mul")]
    {
        for (relu, suffix) in
            [("", ""), ("torch.relu", "_relu"), ("torch.relu_", "_relu"), ("self.relu.forward", "_relu")]
        {
            let body = format!("a = self.a.forward(x)\nb = self.b.forward(x)\nreturn self.last.forward({relu}({sum}))");
            check(&Case::new(model(&layers, &body), &[IMAGE]), &body, &format!("quantized::{name}{suffix}"));
        }
    }
}

#[test]
fn sums_and_products_with_numbers() {
    let layers = [("a", &conv2d(4, 4)), ("relu", &relu()), ("last", &conv2d(4, 4))];
    for (sum, name, out) in [
        ("a + 0.5", "add_scalar", ""),
        ("a + 1", "add_scalar", ""),
        ("a * 2.0", "mul_scalar", ""),
        ("a.add_(0.5)", "add_scalar", "_out"),
        ("a.mul_(0.5)", "mul_scalar", "_out"),
    ] {
        for (relu, suffix) in
            [("", ""), ("torch.relu", "_relu"), ("torch.relu_", "_relu"), ("self.relu.forward", "_relu")]
        {
            let body = format!("a = self.a.forward(x)\nreturn self.last.forward({relu}({sum}))");
            check(&Case::new(model(&layers, &body), &[IMAGE]), &body, &format!("quantized::{name}{suffix}{out}"));
        }
    }
}

#[test]
fn sums_with_a_factor_stay_in_float() {
    let layers = [("a", &conv2d(4, 4)), ("b", &conv2d(4, 4)), ("last", &conv2d(4, 4))];
    for sum in
        ["torch.add(self.a.forward(x), self.b.forward(x), alpha=2)", "torch.add(self.a.forward(x), 0.5, alpha=2)"]
    {
        let case = Case::new(model(&layers, &format!("return self.last.forward({sum})")), &[IMAGE]);
        check(&case, sum, "aten::add");
    }
}

#[test]
fn layers_with_and_without_relu() {
    for (layer, name, shape) in [
        (linear(4, 4), "linear", vec![2, 4]),
        (conv1d(4, 4), "conv1d", vec![1, 4, 8]),
        (conv2d(4, 4), "conv2d", vec![1, 4, 6, 6]),
        (conv3d(4, 4), "conv3d", vec![1, 4, 4, 4, 4]),
    ] {
        for (relu_call, suffix) in
            [("", ""), ("torch.relu", "_relu"), ("torch.relu_", "_relu"), ("self.relu.forward", "_relu")]
        {
            let body = format!("return {relu_call}(self.layer.forward(x))");
            let case = Case::new(model(&[("layer", &layer), ("relu", &relu())], &body), &[&shape]);
            check(&case, &body, &format!("quantized::{name}{suffix}"));
        }
    }
}

#[test]
fn transposed_convolutions() {
    let conv1d = Module::new("torch.nn.modules.conv.ConvTranspose1d").unwrap();
    conv1d.register_parameter("weight", crate::compare::random(&[2, 3, 3], 1)).unwrap();
    conv1d
        .define("def forward(self, x: Tensor):\n    return torch.conv_transpose1d(x, self.weight, None, [2], [1], [1], 1, [1])")
        .unwrap();
    check(&Case::new(around(&conv1d, "torch.relu(y)", None), &[&[1, 2, 5]]), "1d", "quantized::conv_transpose1d");
    let conv2d = conv_transpose2d(2, 3);
    check(&Case::new(around(&conv2d, "torch.relu(y)", None), &[&[1, 2, 5, 5]]), "2d", "quantized::conv_transpose2d");
}

#[test]
fn operators_of_one_and_three_dimensions() {
    let (first, last) = (conv1d(4, 4), conv1d(4, 4));
    for (expression, kind) in [
        ("torch.avg_pool1d(y, [2])", "aten::avg_pool1d"),
        ("torch.adaptive_avg_pool1d(y, [4])", "aten::adaptive_avg_pool1d"),
        ("torch.max_pool1d(y, [2])", "aten::max_pool1d"),
    ] {
        check_operator(&first, Some(&last), &[1, 4, 8], expression, kind);
    }
    let (first, last) = (conv3d(4, 4), conv3d(4, 4));
    for (expression, kind) in [
        ("torch.avg_pool3d(y, [2, 2, 2])", "aten::avg_pool3d"),
        ("torch.adaptive_avg_pool3d(y, [2, 2, 2])", "aten::adaptive_avg_pool3d"),
        ("torch.max_pool3d(y, [2, 2, 2])", "aten::max_pool3d"),
        ("torch.upsample_nearest3d(y, [8, 8, 8], None)", "aten::upsample_nearest3d"),
    ] {
        check_operator(&first, Some(&last), &[1, 4, 4, 4, 4], expression, kind);
    }
}

#[test]
fn upsampling_of_one_dimension_runs_on_images_of_one_row() {
    // libtorch gives it quantized tensors, and the model fails when it runs.
    let layer = conv1d(4, 4);
    for (expression, kind) in [
        ("torch.upsample_nearest1d(y, [16], None)", "aten::upsample_nearest2d"),
        ("torch.upsample_nearest1d(y, [20], 2.5)", "aten::upsample_nearest2d"),
        ("torch.upsample_nearest1d(y, None, [2.0])", "aten::upsample_nearest2d"),
        ("torch.upsample_linear1d(y, [16], False, None)", "aten::upsample_bilinear2d"),
        ("torch.upsample_linear1d(y, [16], True, None)", "aten::upsample_bilinear2d"),
    ] {
        let case = Case::new(around(&layer, expression, Some(&layer)), &[&[1, 4, 8]]);
        let found = kinds(&case.check_end_to_end());
        assert!(found.contains(&kind.to_owned()), "{expression}: {found:?}");
        let dequantized = found.iter().filter(|kind| *kind == "aten::dequantize").count();
        assert_eq!(dequantized, 1, "{expression}: {found:?}");
    }
}

#[test]
fn operators_without_a_quantized_kernel_run_in_float() {
    // libtorch gives them quantized tensors, and the model fails when it runs.
    let (conv2d, conv3d) = (conv2d(4, 4), conv3d(4, 4));
    for (layer, shape, expression) in [
        (&conv3d, &[1, 4, 4, 4, 4][..], "torch.upsample_trilinear3d(y, [8, 8, 8], False, None)"),
        (&conv2d, IMAGE, "torch.upsample_bicubic2d(y, [12, 12], False, None)"),
        (&conv2d, IMAGE, "torch.sigmoid_(y)"),
        (&conv2d, IMAGE, "torch.tanh_(y)"),
        (&conv2d, IMAGE, "torch.celu(y)"),
    ] {
        Case::new(around(layer, expression, Some(layer)), &[shape]).check_end_to_end();
    }
}

#[test]
fn operators_that_move_elements() {
    let (first, last) = (linear(4, 4), linear(4, 4));
    for (expression, kind) in [
        ("y.reshape([3, 2, 4])", "aten::reshape"),
        ("y.view([3, 2, 4])", "aten::view"),
        ("y.transpose(0, 1)", "aten::transpose"),
        ("y.permute([1, 0, 2])", "aten::permute"),
        ("y.contiguous()", "aten::contiguous"),
        ("y.squeeze()", "aten::squeeze"),
        ("y.squeeze(0)", "aten::squeeze"),
        ("y.unsqueeze(0)", "aten::unsqueeze"),
        ("y.repeat([2, 1, 1])", "aten::repeat"),
        ("torch.flatten(y, 0, 1)", "aten::flatten"),
        ("torch.dropout(y, 0.5, False)", "aten::dropout"),
        ("torch.chunk(y, 2, 0)[0]", "aten::chunk"),
    ] {
        check_operator(&first, Some(&last), &[2, 3, 4], expression, kind);
    }
    for expression in
        ["torch.mean(y, [1])", "torch.max(y)", "torch.min(y)", "torch.sort(y)[0]", "torch.stack([y, y])", "y.detach()"]
    {
        Case::new(around(&first, expression, None), &[&[2, 3, 4]]).check_end_to_end();
    }
    check_operator(&first, None, &[2, 3, 4], "torch.mean(y, [1])", "aten::mean");
}

#[test]
fn dynamic_layers() {
    let layers = [("a", &linear(4, 4)), ("b", &linear(4, 4)), ("relu", &relu())];
    for (dtype, kind) in [(QINT8, "quantized::linear_dynamic"), (HALF, "quantized::linear_dynamic_fp16")] {
        for body in [
            "return self.b.forward(self.relu.forward(self.a.forward(x)))",
            "y = torch.sin(self.a.forward(x))\nreturn self.b.forward(y) + self.a.forward(y)",
            "if bool(x.sum() > 0):\n    y = self.a.forward(x)\nelse:\n    y = self.b.forward(x)\nreturn self.b.forward(y)",
        ] {
            check(&Case::new(model(&layers, body), &[&[2, 4]]).dynamic(dtype), body, kind);
        }
    }
}

fn embedding_bag_observer(operator: &str) -> Module {
    let module = Module::new("test.PlaceholderObserver").unwrap();
    let int = Type::parse("int").unwrap();
    module.register_attribute("dtype", &int, &IValue::Int(6)).unwrap();
    module.register_attribute("qscheme", &int, &IValue::Int(0)).unwrap();
    module.register_attribute("custom_op", &Type::parse("str").unwrap(), &operator.into()).unwrap();
    module.define("def forward(self, x: Tensor) -> Tensor:\n    return x\n").unwrap();
    module
}

#[test]
fn embedding_bags() {
    let bag = Module::new("torch.nn.modules.sparse.EmbeddingBag").unwrap();
    bag.register_parameter("weight", crate::compare::random(&[10, 12], 3)).unwrap();
    bag.define(
        "def forward(self, indices: Tensor, offsets: Tensor):
             y, a, b, c = torch.embedding_bag(self.weight, indices, offsets, False, 0, False, None, False, None)
             return y",
    )
    .unwrap();
    let body = "
def forward(self, indices: Tensor, offsets: Tensor):
    return self.bag.forward(indices, offsets)";
    for operator in ["embedding_bag_byte", "embedding_bag_4bit"] {
        let observer = embedding_bag_observer(operator);
        let qconfig = QConfig { activation: observer.clone(), weight: observer };
        let indices = Tensor::from_slice(&[9i64, 6, 5, 7, 8, 8, 9, 2, 8, 6, 6, 9], &[12]).unwrap();
        let case = Case::new(model(&[("bag", &bag)], body), &[])
            .qconfig("", Some(qconfig))
            .input(indices)
            .input(Tensor::from_slice(&[0i64, 4], &[2]).unwrap());
        check(&case, operator, &format!("quantized::{operator}_rowwise_offsets"));
    }
}

/// The observers that this library makes.
fn per_channel() -> QConfig {
    QConfig {
        activation: ObserverConfig::new(ObserverKind::Histogram).module().unwrap(),
        weight: ObserverConfig::weight(ObserverKind::PerChannelMinMax).module().unwrap(),
    }
}

#[test]
fn weights_per_channel() {
    let layers = [("conv", &conv2d(4, 4)), ("fc", &linear(6, 5)), ("relu", &relu())];
    let body = "return self.fc.forward(self.relu.forward(self.conv.forward(x)))";
    let case = Case::new(model(&layers, body), &[IMAGE]).qconfig("", Some(per_channel()));
    let observed = case.ours().unwrap();
    assert!(observed.modules().iter().any(|(_, part)| part.class_name().contains("PerChannel")));
    let found = kinds(&case.check_end_to_end());
    assert!(found.iter().any(|kind| kind == "quantized::conv2d_relu"), "{found:?}");
    let transposed = QConfig {
        weight: ObserverConfig { axis: 1, ..ObserverConfig::weight(ObserverKind::PerChannelMinMax) }.module().unwrap(),
        ..per_channel()
    };
    let case = Case::new(around(&conv_transpose2d(2, 3), "torch.relu(y)", None), &[&[1, 2, 5, 5]]);
    let found = kinds(&case.qconfig("", Some(transposed)).check_end_to_end());
    // libtorch fails: its kernels take one scale.
    assert!(found.iter().any(|kind| kind == "aten::conv_transpose2d"), "{found:?}");
}

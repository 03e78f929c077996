//! Single layers, what follows them, and operators that hand observation on.

use crate::compare::Case;
use crate::models::*;

#[test]
fn a_linear_layer() {
    Case::new(model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)"), &[&[2, 4]]).check(3);
}

#[test]
fn convolutions_of_one_two_and_three_dimensions() {
    Case::new(model(&[("conv", &conv1d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 8]]).check(3);
    Case::new(model(&[("conv", &conv2d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 8, 8]]).check(3);
    Case::new(model(&[("conv", &conv3d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 4, 4, 4]]).check(3);
}

#[test]
fn a_transposed_convolution() {
    Case::new(model(&[("conv", &conv_transpose2d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 5, 5]]).check(3);
}

#[test]
fn layers_with_a_relu_module_are_observed_after_it() {
    for (layer, input) in [
        (linear(4, 3), vec![2, 4]),
        (conv1d(2, 3), vec![1, 2, 8]),
        (conv2d(2, 3), vec![1, 2, 8, 8]),
        (conv3d(2, 3), vec![1, 2, 4, 4, 4]),
    ] {
        let body = "return self.relu.forward(self.layer.forward(x))";
        Case::new(model(&[("layer", &layer), ("relu", &relu())], body), &[&input]).check(3);
    }
}

#[test]
fn layers_with_a_relu_operator_are_observed_after_it() {
    for relu in ["torch.relu(y)", "torch.relu_(y)"] {
        for (layer, input) in [(linear(4, 3), vec![2, 4]), (conv2d(2, 3), vec![1, 2, 8, 8])] {
            let body = format!("y = self.layer.forward(x)\nreturn {relu}");
            Case::new(model(&[("layer", &layer)], &body), &[&input]).check(3);
        }
    }
}

#[test]
fn an_intermediate_that_is_used_twice_is_observed_beside_the_relu() {
    let body = "y = self.layer.forward(x)\nreturn torch.relu(y), y";
    Case::new(model(&[("layer", &conv2d(2, 3))], body), &[&[1, 2, 8, 8]]).check(3);
}

#[test]
fn a_batch_norm_operator_is_observed_on_every_argument() {
    let body = "return self.bn.forward(x)";
    Case::new(model(&[("bn", &batch_norm2d(2))], body), &[&[1, 2, 4, 4]]).check(6);
}

#[test]
fn convolution_batch_norm_and_relu() {
    let body = "return self.relu.forward(self.bn.forward(self.conv.forward(x)))";
    let children = [("conv", &conv2d(2, 3)), ("bn", &batch_norm2d(3)), ("relu", &relu())];
    Case::new(model(&children, body), &[&[1, 2, 8, 8]]).check(8);
    let body = "return torch.relu_(self.bn.forward(self.conv.forward(x)))";
    Case::new(model(&children[..2], body), &[&[1, 2, 8, 8]]).check(8);
}

#[test]
fn layer_norm_and_group_norm() {
    Case::new(model(&[("ln", &layer_norm(4))], "return self.ln.forward(x)"), &[&[2, 4]]).check(4);
    Case::new(model(&[], "return torch.group_norm(x, 2)"), &[&[1, 4, 4, 4]]).check(2);
    Case::new(
        model(&[], "return torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-05, False)"),
        &[&[1, 2, 4, 4]],
    )
    .check(2);
}

#[test]
fn activations_with_a_kernel_of_their_own() {
    for body in [
        "return torch.hardswish(self.fc.forward(x))",
        "return torch.elu(self.fc.forward(x))",
        "return torch.celu(self.fc.forward(x))",
    ] {
        Case::new(model(&[("fc", &linear(4, 3))], body), &[&[2, 4]]).check(4);
    }
}

#[test]
fn operators_with_a_fixed_range_pass_observation_on() {
    for operator in ["sigmoid", "sigmoid_", "tanh", "tanh_"] {
        let body = format!("return self.b.forward(torch.{operator}(self.a.forward(x)))");
        Case::new(model(&[("a", &linear(4, 3)), ("b", &linear(3, 2))], &body), &[&[2, 4]]).check(5);
    }
}

/// `{}` stands between two layers that are quantized, and needs no observer.
fn between_convolutions(operators: &str) {
    let body = format!("y = self.a.forward(x)\n{operators}\nreturn self.b.forward(y)");
    Case::new(model(&[("a", &conv2d(2, 4)), ("b", &conv2d(4, 2))], &body), &[&[1, 2, 8, 8]]).check(5);
}

#[test]
fn operators_that_move_elements_pass_observation_on() {
    for operators in [
        "y = torch.max_pool2d(y, [2, 2])",
        "y = torch.dropout(y, 0.5, False)",
        "y = y.reshape([1, 4, 8, 8])",
        "y = y.view([1, 4, 64]).view([1, 4, 8, 8])",
        "y = y.transpose(2, 3).contiguous()",
        "y = y.permute([0, 1, 3, 2])",
        "y = y.unsqueeze(0).squeeze(0)",
        "y = y.repeat([1, 1, 2, 1])",
        "y = y.detach()",
        "y = torch.relu(y.transpose(2, 3))",
        "y, i = torch.sort(y, 3)",
        "y = torch.stack([y, y]).flatten(0, 1)",
    ] {
        between_convolutions(operators);
    }
}

#[test]
fn operators_that_keep_the_range_pass_observation_on() {
    for operators in [
        "y = torch.avg_pool2d(y, [2, 2])",
        "y = torch.adaptive_avg_pool2d(y, [4, 4])",
        "y = torch.mean(y, [2], True)",
        "y = torch.upsample_nearest2d(y, [16, 16])",
        "y = torch.clamp(y, 0.0, 6.0)",
        "y = torch.hardtanh(y, -1.0, 1.0)",
        "y = torch.hardtanh_(y, 0.0, 6.0)",
        "y = torch.leaky_relu(y, 0.1)",
        "y = y + 1.5",
        "y = y * 2",
        "y += 3",
    ] {
        between_convolutions(operators);
    }
}

#[test]
fn a_relu6_between_convolutions_is_no_fusion() {
    between_convolutions("y = torch.clamp(torch.relu(y), max=6.0)");
}

#[test]
fn an_operator_without_a_row_ends_observation() {
    let body = "y = torch.sin(self.a.forward(x))\nreturn self.b.forward(y)";
    Case::new(model(&[("a", &linear(4, 3)), ("b", &linear(3, 2))], body), &[&[2, 4]]).check(6);
    let body = "return torch.flatten(torch.sin(self.a.forward(x)))";
    Case::new(model(&[("a", &linear(4, 3))], body), &[&[2, 4]]).check(3);
}

#[test]
fn chunks_and_concatenation() {
    let body = "
y, z = torch.chunk(self.a.forward(x), 2, 1)
return self.b.forward(torch.cat([z, y], 1))";
    Case::new(model(&[("a", &conv2d(2, 4)), ("b", &conv2d(4, 2))], body), &[&[1, 2, 8, 8]]).check(6);
}

#[test]
fn concatenation_is_observed_where_all_its_inputs_are() {
    let both = "return torch.cat([self.a.forward(x), self.b.forward(x)], 1)";
    let children = [("a", &conv2d(2, 4)), ("b", &conv2d(2, 4))];
    Case::new(model(&children, both), &[&[1, 2, 8, 8]]).check(6);
    let one = "return torch.cat([self.a.forward(x), torch.sin(x)], 1)";
    Case::new(model(&children[..1], one), &[&[1, 2, 8, 8]]).check(3);
}

#[test]
fn a_list_that_is_appended_to() {
    let body = "
parts = [self.a.forward(x)]
parts.append(self.b.forward(x))
return torch.cat(parts, 1)";
    Case::new(model(&[("a", &conv2d(2, 4)), ("b", &conv2d(2, 4))], body), &[&[1, 2, 8, 8]]).check(6);
}

#[test]
fn sums_and_products_are_observed_where_both_inputs_are() {
    for operation in ["y + z", "y * z", "y.add_(z)", "y.mul_(z)", "torch.add(y, z, alpha=2)"] {
        let body = format!("y = self.a.forward(x)\nz = self.b.forward(x)\nreturn {operation}");
        let children = [("a", &conv2d(2, 4)), ("b", &conv2d(2, 4))];
        Case::new(model(&children, &body), &[&[1, 2, 8, 8]]).check(6);
        let body = format!("y = self.a.forward(x)\nz = torch.sin(x)[:, :1]\nreturn {operation}");
        Case::new(model(&children[..1], &body), &[&[1, 2, 8, 8]]).check(3);
    }
}

#[test]
fn sums_and_products_with_a_relu_are_observed_after_it() {
    for operation in ["y + z", "y * z", "y.add_(z)", "y.mul_(z)", "torch.add(y, z, alpha=2)"] {
        for relu_of in ["self.relu.forward", "torch.relu", "torch.relu_"] {
            let body = format!("y = self.a.forward(x)\nz = self.b.forward(x)\nreturn {relu_of}({operation})");
            let children = [("a", &conv2d(2, 4)), ("b", &conv2d(2, 4)), ("relu", &relu())];
            Case::new(model(&children, &body), &[&[1, 2, 8, 8]]).check(6);
        }
    }
}

#[test]
fn a_residual_sum_of_the_input_itself() {
    let body = "return torch.relu(self.a.forward(x) + x)";
    Case::new(model(&[("a", &conv2d(2, 2))], body), &[&[1, 2, 8, 8]]).check(4);
}

#[test]
fn an_input_used_by_two_layers_is_observed_once() {
    let body = "return self.a.forward(x), self.b.forward(x)";
    Case::new(model(&[("a", &linear(4, 3)), ("b", &linear(4, 2))], body), &[&[2, 4]]).check(5);
}

#[test]
fn two_inputs() {
    let body = "
def forward(self, x: Tensor, y: Tensor):
    return self.a.forward(x) + self.b.forward(y)";
    Case::new(model(&[("a", &linear(4, 3)), ("b", &linear(5, 3))], body), &[&[2, 4], &[2, 5]]).check(7);
}

#[test]
fn a_weight_that_is_read_twice_is_observed_at_each_place() {
    let shared = linear(4, 4);
    shared.define("def twice(self, x: Tensor) -> Tensor:\n    return torch.linear(torch.sin(torch.linear(x, self.weight)), self.weight)\n").unwrap();
    Case::new(model(&[("fc", &shared)], "return self.fc.twice(x)"), &[&[2, 4]]).check(6);
}

#[test]
fn a_layer_used_twice() {
    let body = "return self.fc.forward(torch.sin(self.fc.forward(x)))";
    Case::new(model(&[("fc", &linear(4, 4))], body), &[&[2, 4]]).check(5);
}

#[test]
fn one_relu_module_after_two_layers() {
    let body = "return self.relu.forward(self.b.forward(self.relu.forward(self.a.forward(x))))";
    Case::new(model(&[("a", &linear(4, 3)), ("b", &linear(3, 2)), ("relu", &relu())], body), &[&[2, 4]]).check(5);
}

#[test]
fn nothing_to_quantize() {
    Case::new(model(&[("relu", &relu())], "return torch.sin(self.relu.forward(x)) + 1"), &[&[2, 4]]).check(0);
    Case::new(model(&[], "return x"), &[&[2, 4]]).check(0);
}

#[test]
fn an_embedding_bag_has_only_its_weight_quantized() {
    let table = jitquant::ir::Module::new("torch.nn.modules.sparse.EmbeddingBag").unwrap();
    table.register_parameter("weight", crate::compare::random(&[10, 4], 3)).unwrap();
    table
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             y, a, b, c = torch.embedding_bag(self.weight, x, torch.arange(0, 4, 2), False, 0, False, None, False)\n    return y\n",
        )
        .unwrap();
    let indices = jitquant::ir::Tensor::from_slice(&[1i64, 2, 3, 1], &[4]).unwrap();
    Case::new(model(&[("bag", &table)], "return self.bag.forward(x)"), &[]).input(indices).check(2);
}

#[test]
fn an_embedding_bag_with_padding_is_refused_in_libtorchs_words() {
    let weight = "torch.ones([10, 4])";
    let bag = jitquant::ir::Module::new("Bag").unwrap();
    bag.define(&format!(
        "def forward(self, x: Tensor) -> Tensor:\n    w = {weight}\n    \
         y, a, b, c = torch.embedding_bag(w, x, torch.arange(0, 4, 2), False, 0, False, None, False, 1)\n    return y\n"
    ))
    .unwrap();
    let placeholder = jitquant::observer::ObserverConfig::new(jitquant::observer::ObserverKind::Placeholder);
    let observer = placeholder.module().unwrap();
    let text = jitquant::ir::Type::parse("str").unwrap();
    observer.register_attribute("custom_op", &text, &"embedding_bag_byte".into()).unwrap();
    let qconfig = jitquant::qconfig::QConfig { activation: observer.clone(), weight: observer };
    let qconfigs = [(String::new(), Some(qconfig))].into();
    let observed =
        jitquant::pass::insert_observers(&bag, "forward", &qconfigs, false, jitquant::pass::QuantType::Static).unwrap();
    let quant_type = jitquant::pass::QuantType::Static;
    let refusal = jitquant::pass::insert_quant_dequant(&observed, "forward", false, false, quant_type).unwrap_err();
    assert!(refusal.to_string().contains("Expected aten::embedding_bag padding_idx input to be None"), "{refusal}");
}

//! Nested and shared submodules, methods that call one another, branches and loops, configurations.

use jitquant::ir::IValue;

use crate::compare::{Case, HALF, QINT8, other_qconfig};
use crate::models::*;

#[test]
fn nested_containers() {
    let inner = sequential(&[&conv2d(2, 3), &relu(), &max_pool2d(), &conv2d(3, 3), &relu()]);
    let outer = sequential(&[&inner, &conv2d(3, 2)]);
    Case::new(model(&[("net", &outer)], "return self.net.forward(x)"), &[&[1, 2, 8, 8]]).check(7);
}

#[test]
fn containers_at_the_top() {
    Case::new(sequential(&[&linear(4, 3), &relu(), &linear(3, 2)]), &[&[2, 4]]).check(5);
}

#[test]
fn siblings_of_one_class_have_observers_of_their_own() {
    let first = linear(4, 4);
    let second = sibling(&first);
    let body = "return self.b.forward(torch.sin(self.a.forward(x)))";
    Case::new(model(&[("a", &first), ("b", &second)], body), &[&[2, 4]]).check(6);
}

#[test]
fn blocks_of_one_class() {
    let block = module(
        "Block",
        &[("conv", &conv2d(2, 2)), ("relu", &relu())],
        "return self.relu.forward(self.conv.forward(x)) + x",
    );
    let second = sibling(&block);
    let body = "return self.b.forward(self.a.forward(x))";
    Case::new(model(&[("a", &block), ("b", &second)], body), &[&[1, 2, 6, 6]]).check(7);
}

#[test]
fn one_module_in_two_places() {
    let shared = linear(4, 4);
    let body = "return self.b.forward(torch.sin(self.a.forward(x)))";
    Case::new(model(&[("a", &shared), ("b", &shared)], body), &[&[2, 4]]).check(6);
}

#[test]
fn a_module_below_two_parents() {
    let shared = linear(4, 4);
    let left = module("Left", &[("fc", &shared)], "return torch.relu(self.fc.forward(x))");
    let right = module("Right", &[("fc", &shared)], "return torch.sigmoid(self.fc.forward(x))");
    let body = "return self.left.forward(x) * self.right.forward(x)";
    Case::new(model(&[("left", &left), ("right", &right)], body), &[&[2, 4]]).check(6);
}

#[test]
fn methods_that_call_one_another() {
    let body = "
def features(self, x: Tensor):
    return torch.relu(self.a.forward(x))
def classify(self, x: Tensor):
    return self.b.forward(torch.flatten(x, 1))
def forward(self, x: Tensor):
    return self.classify(self.features(x))";
    let module = || model(&[("a", &conv2d(2, 2)), ("b", &linear(32, 3))], body);
    Case::new(module(), &[&[1, 2, 4, 4]]).check(5);
    Case::new(module(), &[&[1, 2, 4, 4]]).method("features").check(3);
}

#[test]
fn a_method_of_another_name() {
    let body = "
def encode(self, x: Tensor):
    return self.a.forward(x)
def forward(self, x: Tensor):
    return x";
    Case::new(model(&[("a", &linear(4, 2))], body), &[&[2, 4]]).method("encode").check(3);
}

#[test]
fn a_method_called_twice_observes_its_inside_once() {
    let body = "
def block(self, x: Tensor):
    return self.b.forward(torch.sin(self.a.forward(x)))
def forward(self, x: Tensor):
    return self.block(torch.cos(self.block(x)))";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(8);
}

#[test]
fn a_value_that_crosses_three_calls_is_observed_once() {
    let inner = module("Inner", &[("fc", &linear(4, 4))], "return self.fc.forward(x)");
    let middle = module("Middle", &[("inner", &inner)], "return self.inner.forward(x)");
    let body = "return self.b.forward(self.a.forward(x))";
    Case::new(model(&[("a", &middle), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(5);
}

#[test]
fn submodules_reached_through_others() {
    let block = module("Block", &[("fc", &linear(4, 4))], "return x");
    let body = "return self.block.fc.forward(x)";
    Case::new(model(&[("block", &block)], body), &[&[2, 4]]).check(3);
}

#[test]
fn operators_and_weights_of_the_top_module_itself() {
    let top = linear(4, 4);
    top.define("def run(self, x: Tensor):\n    return torch.relu(torch.linear(x, self.weight, self.bias))\n").unwrap();
    Case::new(top, &[&[2, 4]]).method("run").check(3);
}

#[test]
fn a_product_with_a_transposed_weight_is_a_linear_layer() {
    for expression in [
        "torch.addmm(self.bias, x, self.weight.t())",
        "torch.matmul(x, self.weight.t())",
        "torch.matmul(x, self.weight.t()).add_(self.bias)",
    ] {
        let top = linear(4, 4);
        top.define(&format!("def run(self, x: Tensor):\n    return torch.relu({expression})\n")).unwrap();
        Case::new(top, &[&[2, 4]]).method("run").check(3);
    }
}

#[test]
fn a_product_that_is_scaled_stays_a_product() {
    let top = linear(4, 4);
    top.define("def run(self, x: Tensor):\n    return torch.addmm(self.bias, x, self.weight.t(), beta=2)\n").unwrap();
    Case::new(top, &[&[2, 4]]).method("run").check(0);
}

#[test]
fn traced_convolutions_are_named_by_their_dimensions() {
    for (layer, shape, geometry) in [
        (conv1d(2, 3), vec![1, 2, 8], "[1], [1], [1], False, [0]"),
        (conv2d(2, 3), vec![1, 2, 8, 8], "[1, 1], [1, 1], [1, 1], False, [0, 0]"),
        (conv3d(2, 3), vec![1, 2, 4, 4, 4], "[1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0]"),
        (conv_transpose2d(2, 3), vec![1, 2, 4, 4], "[1, 1], [1, 1], [1, 1], True, [0, 0]"),
    ] {
        let body = format!("torch._convolution(x, self.weight, self.bias, {geometry}, 1, False, False, True, True)");
        layer.define(&format!("def traced(self, x: Tensor):\n    return {body}\n")).unwrap();
        Case::new(model(&[("conv", &layer)], "return torch.relu(self.conv.traced(x))"), &[&shape]).check(3);
    }
}

#[test]
fn branches_that_are_both_quantized() {
    let body = "
if bool(x.sum() > 0):
    y = self.a.forward(x)
else:
    y = self.b.forward(x)
return self.c.forward(y)";
    let children = [("a", &linear(4, 4)), ("b", &linear(4, 4)), ("c", &linear(4, 2))];
    Case::new(model(&children, body), &[&[2, 4]]).check(7);
}

#[test]
fn a_branch_that_keeps_an_observed_value() {
    let body = "
y = self.a.forward(x)
if bool(x.sum() > 0):
    y = self.b.forward(y)
return self.c.forward(y)";
    let children = [("a", &linear(4, 4)), ("b", &linear(4, 4)), ("c", &linear(4, 2))];
    Case::new(model(&children, body), &[&[2, 4]]).check(7);
}

#[test]
fn a_branch_inside_a_submodule() {
    let block = module(
        "Block",
        &[("conv", &conv2d(2, 2)), ("down", &conv2d(2, 2))],
        "
y = self.conv.forward(x)
if x.size(2) > 4:
    z = self.down.forward(x)
else:
    z = x
return torch.relu(y + z)",
    );
    Case::new(model(&[("block", &block)], "return self.block.forward(x)"), &[&[1, 2, 6, 6]]).check(6);
}

#[test]
fn nested_branches() {
    let body = "
if x.size(0) > 1:
    if x.size(1) > 2:
        y = self.a.forward(x)
    else:
        y = self.b.forward(x)
else:
    y = self.b.forward(x)
return y";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(6);
}

#[test]
fn a_branch_with_two_results() {
    let body = "
if x.size(0) > 1:
    y, z = self.a.forward(x), x
else:
    y, z = self.b.forward(x), x
return y + z";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(6);
}

#[test]
fn a_loop_beside_quantized_layers() {
    let body = "
y = self.a.forward(x)
n = 0
for i in range(3):
    n += i
return self.b.forward(y) + n";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(5);
}

#[test]
fn tuples_lists_and_dictionaries() {
    let body = "
pair = (self.a.forward(x), self.b.forward(x))
first, second = pair
return {'y': torch.relu(first), 'z': [second]}";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(5);
}

#[test]
fn results_of_several_tensors() {
    let heads =
        module("Heads", &[("a", &linear(4, 2)), ("b", &linear(4, 3))], "return self.a.forward(x), self.b.forward(x)");
    let body = "y, z = self.heads.forward(torch.relu(self.fc.forward(x)))\nreturn torch.cat([y, z], 1)";
    Case::new(model(&[("fc", &linear(4, 4)), ("heads", &heads)], body), &[&[2, 4]]).check(8);
}

#[test]
fn a_part_left_in_float() {
    let module = || {
        let body = "return self.c.forward(self.b.forward(self.a.forward(x)))";
        model(&[("a", &linear(4, 4)), ("b", &linear(4, 4)), ("c", &linear(4, 2))], body)
    };
    Case::new(module(), &[&[2, 4]]).qconfig("b", None).check(6);
    Case::new(module(), &[&[2, 4]]).qconfig("a", None).qconfig("c", None).check(3);
    Case::new(module(), &[&[2, 4]]).qconfig("", None).check(0);
    Case::new(module(), &[&[2, 4]]).qconfig("", None).qconfig("b", Some(other_qconfig())).check(3);
}

#[test]
fn a_configuration_is_inherited_until_a_deeper_one() {
    let block = || {
        module(
            "Block",
            &[("a", &linear(4, 4)), ("b", &linear(4, 4))],
            "return self.b.forward(torch.sin(self.a.forward(x)))",
        )
    };
    let body = "return self.second.forward(torch.sin(self.first.forward(x)))";
    let module = model(&[("first", &block()), ("second", &block())], body);
    let checked =
        Case::new(module, &[&[2, 4]]).qconfig("second", Some(other_qconfig())).qconfig("second.a", None).check(9);
    let others = checked.canonical.text.matches("by __torch__.test.Other").count();
    assert_eq!(others, 3, "{}", checked.canonical.text);
}

#[test]
fn siblings_of_one_class_configured_differently() {
    let first = linear(4, 4);
    let second = sibling(&first);
    let body = "return self.b.forward(torch.sin(self.a.forward(x)))";
    let module = || model(&[("a", &first), ("b", &second)], body);
    Case::new(module(), &[&[2, 4]]).qconfig("b", None).check(3);
    Case::new(module(), &[&[2, 4]]).qconfig("b", Some(other_qconfig())).check(6);
}

#[test]
fn neighbours_configured_differently_share_the_observer_of_the_first() {
    let body = "return self.b.forward(self.a.forward(x))";
    let module = model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body);
    let text = Case::new(module, &[&[2, 4]]).qconfig("b", Some(other_qconfig())).check(5).canonical.text;
    assert_eq!(text.matches("by __torch__.test.OtherObserver").count(), 1, "{text}");
}

#[test]
fn a_configuration_for_a_path_that_does_not_occur() {
    let module = model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)");
    Case::new(module, &[&[2, 4]]).qconfig("fx", None).check(3);
}

#[test]
fn dynamic_quantization_observes_what_linear_layers_take() {
    let body = "return self.b.forward(torch.relu(self.a.forward(self.conv.forward(x))))";
    let module = model(&[("conv", &conv1d(2, 2)), ("a", &linear(4, 4)), ("b", &linear(4, 2))], body);
    Case::new(module, &[&[1, 2, 4]]).dynamic(QINT8).check(4);
}

#[test]
fn dynamic_quantization_to_half_observes_weights_only() {
    let body = "return self.b.forward(torch.relu(self.a.forward(x)))";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 2))], body), &[&[2, 4]]).dynamic(HALF).check(2);
}

#[test]
fn in_place_shares_the_tensors() {
    let case = Case::new(model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)"), &[&[2, 4]]).inplace();
    case.check(3);
}

#[test]
fn an_option_with_a_default_value_stays_optional() {
    let body = "
def forward(self, x: Tensor, scale: float = 2.0):
    return self.fc.forward(x) * scale";
    Case::new(model(&[("fc", &linear(4, 3))], body), &[&[2, 4]]).check(3);
}

#[test]
fn arguments_that_are_no_tensors() {
    let body = "
def forward(self, x: Tensor, flags: List[int], name: Optional[str]):
    if len(flags) > 1:
        y = torch.relu(self.fc.forward(x))
    else:
        y = self.fc.forward(x)
    return y";
    let module = model(&[("fc", &linear(4, 3))], body);
    Case::new(module, &[&[2, 4]]).input(IValue::int_list([1, 2])).input(IValue::None).check(4);
}

#[test]
fn forked_work() {
    let body = "
def branch(self, x: Tensor):
    return self.a.forward(x)
def forward(self, x: Tensor):
    return torch.relu(self.branch(x)) + self.b.forward(x)";
    Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body), &[&[2, 4]]).check(6);
}

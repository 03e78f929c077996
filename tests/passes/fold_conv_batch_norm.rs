//! `FoldConvBatchNorm`.

use jitquant::ir::{Module, Tensor};
use jitquant::pass::fold_conv_batch_norm;
use jitquant_oracle as oracle;

use crate::compare::{random, tensors};
use crate::models::*;
use crate::same::*;

const IMAGE: &[i64] = &[2, 2, 6, 6];

fn inputs(shape: &[i64]) -> Vec<Tensor> {
    vec![random(shape, 9)]
}

/// Ours and libtorch's, which are the same.
fn check(module: &Module, shape: &[i64]) -> Module {
    let bytes = module.save_bytes().unwrap();
    let ours = saved_and_loaded(&fold_conv_batch_norm(&loaded(&bytes)).unwrap());
    let theirs = loaded(&oracle::fold_conv_batch_norm(&bytes).unwrap());
    assert_same(&ours, &theirs);
    assert_same_output(&ours, &theirs, "forward", &inputs(shape));
    ours
}

fn calls(module: &Module, method: &str) -> usize {
    module.graph(method).unwrap().all_nodes().into_iter().filter(|node| node.kind() == "prim::CallMethod").count()
}

/// As traced without a bias: the class has no such attribute.
fn traced_conv2d(inputs: i64, outputs: i64) -> Module {
    let module = Module::new("torch.nn.modules.conv.Conv2d").unwrap();
    module.register_parameter("weight", random(&[outputs, inputs, 3, 3], 4)).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch._convolution(x, self.weight, None, [1, 1], \
             [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True)\n",
        )
        .unwrap();
    module
}

fn batch_norm3d(channels: i64) -> Module {
    let norm = batch_norm2d(channels);
    let module = Module::new("torch.nn.modules.batchnorm.BatchNorm3d").unwrap();
    for attribute in norm.attributes() {
        module.register_buffer(&attribute.name, norm.attribute(&attribute.name).unwrap()).unwrap();
    }
    let code = norm.graph("forward").unwrap();
    code.inputs()[0].set_type(&module.type_of()).unwrap();
    module.create_method("forward", &code).unwrap();
    module
}

#[test]
fn a_convolution_and_a_batch_norm() {
    let model =
        model(&[("conv", &conv2d(2, 3)), ("bn", &batch_norm2d(3))], "return self.bn.forward(self.conv.forward(x))");
    let folded = check(&model, IMAGE);
    assert_eq!(calls(&folded, "forward"), 1);
    let close = |a: f32, b: f32| (a - b).abs() < 1e-4;
    let output =
        |module: &Module| module.forward(&inputs(IMAGE)).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
    assert!(std::iter::zip(output(&model), output(&folded)).all(|(a, b)| close(a, b)));
}

#[test]
fn a_traced_convolution_gets_a_bias() {
    let children = [("conv", &traced_conv2d(2, 3)), ("bn", &batch_norm2d(3)), ("other", &traced_conv2d(3, 2))];
    let folded = check(&model(&children, "return self.other.forward(self.bn.forward(self.conv.forward(x)))"), IMAGE);
    assert!(folded.submodule("other").unwrap().has_attribute("bias"));
}

#[test]
fn three_dimensions() {
    let children = [("conv", &conv3d(2, 3)), ("bn", &batch_norm3d(3))];
    let folded = check(&model(&children, "return self.bn.forward(self.conv.forward(x))"), &[1, 2, 4, 4, 4]);
    assert_eq!(calls(&folded, "forward"), 1);
}

#[test]
fn nested_modules_of_one_class_keep_their_own_numbers() {
    let first = sequential(&[&conv2d(2, 2), &batch_norm2d(2), &relu()]);
    let second = sequential(&[&sibling(&first.submodule("m0").unwrap()), &batch_norm2d(2), &relu()]);
    let other = first.copy_instance().unwrap();
    other.register_submodule("m0", &sibling(&other.submodule("m0").unwrap())).unwrap();
    let body = "return self.c.forward(self.b.forward(self.a.forward(x)))";
    let folded = check(&model(&[("a", &first), ("b", &second), ("c", &other)], body), IMAGE);
    assert_eq!(calls(&folded.submodule("a").unwrap(), "forward"), 2);
    assert_eq!(calls(&folded.submodule("c").unwrap(), "forward"), 2);
}

#[test]
fn what_stands_between_keeps_them_apart() {
    let children = [("conv", &conv2d(2, 3)), ("bn", &batch_norm2d(3)), ("relu", &relu())];
    for body in [
        "return self.bn.forward(self.relu.forward(self.conv.forward(x)))",
        "y = self.conv.forward(x)\nreturn self.bn.forward(y) + y",
        "y = self.conv.forward(x)\nif bool(x.sum() > 0):\n    y = self.bn.forward(y)\nreturn y",
    ] {
        let folded = check(&model(&children, body), IMAGE);
        assert!(calls(&folded, "forward") >= 2, "{body}");
    }
}

#[test]
fn several_methods_and_branches() {
    let body = "
def part(self, x: Tensor):
    return self.bn.forward(self.conv.forward(x))
def forward(self, x: Tensor):
    if bool(x.sum() > 0):
        y = self.other_bn.forward(self.other.forward(x))
    else:
        y = self.part(x)
    return torch.relu(y)";
    let children =
        [("conv", &conv2d(2, 3)), ("bn", &batch_norm2d(3)), ("other", &conv2d(2, 3)), ("other_bn", &batch_norm2d(3))];
    let folded = check(&model(&children, body), IMAGE);
    assert_eq!(calls(&folded, "part"), 1);
}

#[test]
fn a_convolution_that_is_also_used_alone_stays() {
    let children = [("conv", &conv2d(2, 2)), ("bn", &batch_norm2d(2))];
    let body = "return self.bn.forward(self.conv.forward(x)) + self.conv.forward(torch.relu(x))";
    let model = model(&children, body);
    let bytes = model.save_bytes().unwrap();
    let float = tensors(&model.forward(&inputs(IMAGE)).unwrap());
    // libtorch folds, and the other call gets the folded weight.
    let theirs = loaded(&oracle::fold_conv_batch_norm(&bytes).unwrap());
    assert_eq!(calls(&theirs, "forward"), 2);
    let ours = fold_conv_batch_norm(&loaded(&bytes)).unwrap();
    assert_eq!(tensors(&ours.forward(&inputs(IMAGE)).unwrap()), float);
}

#[test]
fn the_input_stays_as_it_was() {
    let model =
        model(&[("conv", &conv2d(2, 3)), ("bn", &batch_norm2d(3))], "return self.bn.forward(self.conv.forward(x))");
    let before = (crate::canonical::Canonical::of(&model).text, tensors(&model.forward(&inputs(IMAGE)).unwrap()));
    fold_conv_batch_norm(&model).unwrap();
    assert_eq!(crate::canonical::Canonical::of(&model).text, before.0);
    assert_eq!(tensors(&model.forward(&inputs(IMAGE)).unwrap()), before.1);
}

#[test]
fn classes_whose_forward_calls_their_own_methods() {
    // As scripted from Python: the convolution's operator is in `_conv_forward`.
    let conv = Module::new("torch.nn.modules.conv.Conv2d").unwrap();
    conv.register_parameter("weight", random(&[3, 2, 3, 3], 4)).unwrap();
    conv.register_parameter("bias", random(&[3], 5)).unwrap();
    conv.define(
        "def _conv_forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return torch.conv2d(x, weight, bias, [1, 1], [1, 1], [1, 1], 1)
def forward(self, x: Tensor) -> Tensor:
    return self._conv_forward(x, self.weight, self.bias)
",
    )
    .unwrap();
    let model = model(&[("conv", &conv), ("bn", &batch_norm2d(3))], "return self.bn.forward(self.conv.forward(x))");
    assert_eq!(calls(&check(&model, IMAGE), "forward"), 1);
}

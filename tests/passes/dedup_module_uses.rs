//! `DedupModuleUses`.

use jitquant::ir::Module;
use jitquant::pass::dedup_module_uses;
use jitquant_oracle as oracle;

use crate::compare::{random, tensors};
use crate::models::*;
use crate::same::*;

fn names(module: &Module) -> Vec<String> {
    module.children().into_iter().map(|(name, _)| name).collect()
}

fn deduplicated(bytes: &[u8]) -> Module {
    let module = loaded(bytes);
    dedup_module_uses(&module).unwrap();
    saved_and_loaded(&module)
}

fn check(module: &Module) -> Module {
    let bytes = module.save_bytes().unwrap();
    let ours = deduplicated(&bytes);
    let theirs = loaded(&oracle::dedup_module_uses(&bytes).unwrap());
    assert_same(&ours, &theirs);
    assert_same_output(&ours, &theirs, "forward", &[random(&[2, 2, 4, 4], 3)]);
    ours
}

#[test]
fn a_module_called_three_times() {
    let body = "x = self.relu.forward(self.conv.forward(x))\nreturn self.relu.forward(self.relu.forward(x) - 1)";
    let ours = check(&model(&[("conv", &conv2d(2, 2)), ("relu", &relu())], body));
    assert_eq!(names(&ours), ["conv", "relu", "relu_0", "relu_1"]);
}

#[test]
fn one_module_in_two_places_and_in_a_branch() {
    let shared = relu();
    let inner = model(&[("relu", &shared)], "return self.relu.forward(x)");
    let body = "
y = self.inner.forward(x)
if bool(x.sum() > 0):
    y = self.a.forward(y)
else:
    y = self.b.forward(y)
return self.a.forward(y)";
    check(&model(&[("a", &shared), ("b", &shared), ("inner", &inner)], body));
}

#[test]
fn names_that_are_taken_are_passed_over() {
    let children = [("relu", &relu()), ("relu_0", &relu())];
    let ours = check(&model(&children, "return self.relu.forward(self.relu_0.forward(self.relu.forward(x)))"));
    assert_eq!(names(&ours), ["relu", "relu_0", "relu_1"]);
}

#[test]
fn one_read_for_two_calls() {
    // As traced: the attribute is read once. libtorch gives both calls the same copy.
    let body = "relu = self.relu\nreturn relu.forward(relu.forward(x) - 1)";
    let model = model(&[("relu", &relu())], body);
    let ours = deduplicated(&model.save_bytes().unwrap());
    assert_eq!(names(&ours), ["relu", "relu_0"]);
    let graph = ours.graph("forward").unwrap();
    let called: Vec<_> = graph
        .nodes()
        .filter(|node| node.kind() == "prim::CallMethod")
        .map(|node| node.inputs()[0].attribute_path().unwrap().join("."))
        .collect();
    assert_eq!(called, ["relu", "relu_0"]);
    drop(graph);
    let x = [random(&[2, 3], 1)];
    assert_eq!(tensors(&ours.forward(&x).unwrap()), tensors(&model.forward(&x).unwrap()));
}

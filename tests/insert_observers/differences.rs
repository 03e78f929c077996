//! Where ours goes further than libtorch's, as docs/differences.md lists it; and what both refuse.

use jitquant::ir::{IValue, Module};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::pass::{QuantType, insert_observers};
use jitquant::qconfig::{QConfig, QConfigDict};

use crate::canonical::is_observer;
use crate::compare::{Case, other_qconfig, random, static_qconfig, tensors};
use crate::files::file;
use crate::models::*;

#[test]
fn blocks_of_one_class_may_be_configured_differently_inside() {
    let block = module("Block", &[("fc", &linear(4, 4))], "return torch.sin(self.fc.forward(x))");
    let second = sibling(&block);
    let body = "return self.b.forward(self.a.forward(x))";
    let case = Case::new(model(&[("a", &block), ("b", &second)], body), &[&[2, 4]]).qconfig("b.fc", None);
    assert!(case.theirs().unwrap_err().contains("fc"), "libtorch gives both blocks one class, and fails");
    let checked = case.ours_calibrated(3);
    assert!(checked.canonical.observers.keys().all(|value| !value.starts_with("b.")));
}

#[test]
fn what_two_parts_take_may_be_configured_differently_in_them() {
    let body = "return self.a.forward(x), self.b.forward(x)";
    let module = model(&[("a", &linear(4, 4)), ("b", &linear(4, 4))], body);
    let case = Case::new(module, &[&[2, 4]]).qconfig("b", Some(other_qconfig()));
    assert!(case.theirs().unwrap_err().contains("only configured with one observer"));
    let text = case.ours_calibrated(5).canonical.text;
    assert_eq!(text.matches("by __torch__.test.OtherObserver").count(), 1, "the first one's watches the input\n{text}");
}

#[test]
fn one_module_in_two_places_may_be_configured_by_place() {
    let shared = linear(4, 4);
    let body = "return self.b.forward(torch.sin(self.a.forward(x)))";
    let module = model(&[("a", &shared), ("b", &shared)], body);
    let case = Case::new(module, &[&[2, 4]]).qconfig("b", None);
    assert_eq!(case.ours_calibrated(3).module.submodule("b").unwrap().children().len(), 0);
}

#[test]
fn instances_that_are_not_called_share_the_class_of_those_that_are() {
    let first = linear(4, 4);
    let second = sibling(&first);
    let observed =
        Case::new(model(&[("a", &first), ("b", &second)], "return self.a.forward(x)"), &[&[2, 4]]).ours().unwrap();
    let unused = observed.submodule("b").unwrap();
    assert_eq!(unused.children().len(), 1, "it has the attribute that the class declares");
    let loaded = Module::load_bytes(&observed.save_bytes().unwrap()).unwrap();
    loaded.submodule("b").unwrap().forward(&[random(&[2, 4], 1)]).unwrap();
}

#[test]
fn branches_may_differ_in_what_is_quantized() {
    let body = "
if bool(x.sum() > 100):
    y = torch.sin(x)
else:
    y = self.a.forward(x)
return self.b.forward(y)";
    let case = Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 2))], body), &[&[2, 4]]);
    assert!(case.theirs().unwrap_err().contains("consistently"));
    let checked = case.ours_calibrated(6);
    case.check_close_to_float(&checked.module, 20.0);
}

#[test]
fn bodies_of_loops_are_quantized() {
    let case = Case::new(file("Loop"), &[&[2, 4]]).input(IValue::Int(3));
    // libtorch warns that it leaves the body in float.
    let checked = case.ours_calibrated(9);
    let watched: Vec<_> = checked.canonical.observers.keys().filter(|value| value.starts_with("repeated")).collect();
    assert_eq!(watched.len(), 1, "its weight, in {watched:?}");
    let quantized = case.check_close_to_float(&checked.module, 20.0);
    let kinds: Vec<_> =
        quantized.graph("forward").unwrap().all_nodes().into_iter().map(|node| node.kind().to_owned()).collect();
    assert_eq!(kinds.iter().filter(|kind| kind.starts_with("quantized::linear")).count(), 3, "{kinds:?}");
}

#[test]
fn a_module_that_is_reached_by_no_path_stays_in_float() {
    let case = Case::new(file("Chosen"), &[&[2, 4]]).input(true);
    assert!(case.theirs().unwrap_err().contains("access pattern"));
    // The modules that it chooses from are of the same class as `fc`, and have observers that nothing reaches.
    case.ours_calibrated(5);
}

#[test]
fn sums_of_lists_are_not_observed() {
    let body = "
parts = [self.a.forward(x)] + [self.b.forward(x)]
return torch.cat(parts, 1)";
    let case = Case::new(model(&[("a", &linear(4, 4)), ("b", &linear(4, 2))], body), &[&[2, 4]]);
    assert!(case.theirs().is_err(), "libtorch gives the list to an observer, which takes tensors");
    case.ours_calibrated(5);
}

#[test]
fn a_transposed_weight_used_twice_is_still_the_weight() {
    let top = linear(4, 4);
    top.define("def run(self, x: Tensor):\n    t = self.weight.t()\n    return torch.matmul(torch.sin(torch.matmul(x, t)), t)\n")
        .unwrap();
    let case = Case::new(top, &[&[2, 4]]).method("run");
    let transposes = |module: &Module| module.graph("run").unwrap().to_string().matches("aten::t(").count();
    assert_eq!(transposes(&case.theirs().unwrap()), 3, "libtorch transposes the transpose");
    let checked = case.ours_calibrated(5);
    assert_eq!(transposes(&checked.module), 0, "{}", checked.canonical.text);
}

#[test]
fn models_can_be_observed_in_many_threads() {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let body = "return torch.relu(self.fc.forward(torch.flatten(self.conv.forward(x), 1)))";
                let case = Case::new(model(&[("conv", &conv2d(2, 2)), ("fc", &linear(32, 3))], body), &[&[1, 2, 4, 4]]);
                (0..10).for_each(|_| drop(case.ours_calibrated(5)));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn an_unknown_method_is_named_with_those_that_exist() {
    let message = Case::new(model(&[], "return x"), &[]).method("run").ours().unwrap_err().to_string();
    assert!(message.contains("'run'") && message.contains("forward"), "{message}");
}

#[test]
fn the_input_stays_as_it_is() {
    let model = model(&[("fc", &linear(4, 3))], "return torch.relu(self.fc.forward(x))");
    let before = (model.graph("forward").unwrap().to_string(), model.type_of().id());
    for inplace in [false, true] {
        let qconfigs = QConfigDict::from([(String::new(), Some(static_qconfig()))]);
        let observed = insert_observers(&model, "forward", &qconfigs, inplace, QuantType::Static).unwrap();
        assert_ne!(observed.type_of().id(), model.type_of().id());
        let shares = shares_weight(&model, &observed);
        assert_eq!(shares, inplace, "tensors are shared in place only");
        assert_eq!((model.graph("forward").unwrap().to_string(), model.type_of().id()), before);
        assert!(model.modules().iter().all(|(path, _)| !path.contains("_observer_")));
    }
}

/// Whether a change of one module's weight is seen in the other's.
fn shares_weight(a: &Module, b: &Module) -> bool {
    a.submodule("fc").unwrap().define("def clear(self):\n    self.weight.detach().zero_()\n").ok();
    let before = b.forward(&[random(&[2, 4], 1)]).unwrap();
    a.submodule("fc").unwrap().call::<IValue>("clear", &[]).unwrap();
    let after = b.forward(&[random(&[2, 4], 1)]).unwrap();
    a.submodule("fc").unwrap().set_attribute("weight", &random(&[3, 4], 9).into()).unwrap();
    tensors(&before) != tensors(&after)
}

#[test]
fn a_failure_leaves_the_input_as_it_is() {
    let observer = Module::new("test.TakesNoTensor").unwrap();
    observer.define("def forward(self, x: str) -> str:\n    return x\n").unwrap();
    let qconfig = QConfig { activation: observer.clone(), weight: observer };
    let model = model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)");
    let before = model.graph("forward").unwrap().to_string();
    for inplace in [false, true] {
        let qconfigs = QConfigDict::from([(String::new(), Some(qconfig.clone()))]);
        let refusal =
            insert_observers(&model, "forward", &qconfigs, inplace, QuantType::Static).unwrap_err().to_string();
        assert!(refusal.contains("observers for 'forward'") && refusal.contains("str"), "{refusal}");
        assert_eq!(model.graph("forward").unwrap().to_string(), before);
        assert!(model.modules().iter().all(|(path, _)| !path.contains("_observer_")));
    }
}

#[test]
fn tensors_that_alias_one_another_still_do_in_the_copy() {
    let (first, second) = (linear(4, 4), linear(4, 4));
    first.define("def clear(self):\n    self.weight.detach().zero_()\n").unwrap();
    let weight = random(&[4, 4], 3);
    for layer in [&first, &second] {
        layer.set_attribute("weight", &weight.clone().into()).unwrap();
    }
    let case =
        Case::new(model(&[("a", &first), ("b", &second)], "return self.a.forward(x), self.b.forward(x)"), &[&[2, 4]]);
    let is_tied = |module: &Module| {
        module.submodule("a").unwrap().call::<IValue>("clear", &[]).unwrap();
        let values =
            module.submodule("b").unwrap().attribute("weight").unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
        values.iter().all(|value| *value == 0.0)
    };
    assert!(is_tied(&case.ours().unwrap()));
    assert!(!is_tied(&case.theirs().unwrap()));
    assert!(weight.to_f32_vec().unwrap().iter().any(|value| *value != 0.0), "the original is not touched");
}

#[test]
fn a_convolution_whose_geometry_is_computed_stays_in_float() {
    let layer = conv2d(2, 2);
    layer
        .define(
            "def traced(self, x: Tensor):\n    n = x.size(0)\n    return torch._convolution(x, self.weight, self.bias, \
             [n, n], [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True)\n",
        )
        .unwrap();
    let body = "return self.fc.forward(torch.sin(self.conv.traced(x)))";
    let case = Case::new(model(&[("conv", &layer), ("fc", &linear(4, 2))], body), &[&[1, 2, 4, 4]]);
    assert!(case.theirs().is_err());
    case.ours_calibrated(3);
}

#[test]
fn observers_know_what_they_watch() {
    let qconfig = QConfig {
        activation: ObserverConfig::new(ObserverKind::MinMax).module().unwrap(),
        weight: ObserverConfig::weight(ObserverKind::PerChannelMinMax).module().unwrap(),
    };
    let block = module("Block", &[("fc", &linear(4, 4))], "return torch.add(self.fc.forward(x), x)");
    let body = "return self.block.forward(x)";
    let qconfigs = QConfigDict::from([(String::new(), Some(qconfig))]);
    let model = model(&[("block", &block)], body);
    let observed = insert_observers(&model, "forward", &qconfigs, false, QuantType::Static).unwrap();
    let mut names: Vec<_> = observed
        .modules()
        .into_iter()
        .filter(|(path, _)| path.rsplit('.').next().is_some_and(is_observer))
        .map(|(_, observer)| observer.attribute("observed").unwrap().as_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4);
    assert_eq!(names[0], "block.fc.weight");
    assert!(names[1].starts_with("block: the result of fc"), "{names:?}");
    assert!(names[2].starts_with("the argument 'x"), "{names:?}");
    assert!(names[3].starts_with("the result of block"), "{names:?}");
}

#[test]
fn a_model_can_be_observed_for_two_methods() {
    let body = "
def encode(self, x: Tensor):
    return self.a.forward(x)
def forward(self, x: Tensor):
    return self.b.forward(x)";
    let model = model(&[("a", &linear(4, 4)), ("b", &linear(4, 2))], body);
    let qconfigs = QConfigDict::from([(String::new(), Some(static_qconfig()))]);
    let once = insert_observers(&model, "forward", &qconfigs, false, QuantType::Static).unwrap();
    let twice = insert_observers(&once, "encode", &qconfigs, false, QuantType::Static).unwrap();
    let names: Vec<_> = twice.children().into_iter().map(|(name, _)| name).collect();
    let expected = ["a", "b", "_observer_1", "_observer_2", "_observer_3", "_observer_4"];
    assert_eq!(names, expected, "the second time takes names that are free");
}

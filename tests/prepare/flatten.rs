//! One flat graph, whatever the model's structure.

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::pass::prepare::flatten;

use crate::models::*;

/// Flattens, and checks that nothing is called any more.
fn flat(module: &Module) -> Module {
    let flat = flatten(module, &[]).unwrap();
    for called in ["prim::CallMethod", "prim::CallFunction"] {
        assert_eq!(count(&flat, called), 0);
    }
    flat
}

#[test]
fn nodes_keep_the_path_of_their_module() {
    let model = observers_file("Layers");
    let flat = flat(&model);
    assert_same(&flat, &model, &[input(&[2, 4])]);
    assert_eq!(scopes(&flat, "aten::linear")[..3], ["layers.0", "layers.1", "layers.2"]);
    assert!(flat.children().is_empty());
}

#[test]
fn a_layer_chosen_by_a_condition_becomes_a_branch_for_each() {
    let model = observers_file("Chosen");
    let flat = flat(&model);
    for first in [true, false] {
        assert_same(&flat, &model, &[input(&[2, 4]), first.into()]);
    }
    assert_eq!(scopes(&flat, "aten::linear"), ["fc", "a", "b"]);
}

#[test]
fn a_layer_chosen_by_number_becomes_a_branch_for_each() {
    let model = file("Indexed");
    let flat = flat(&model);
    for index in 0..3 {
        assert_same(&flat, &model, &[input(&[2, 4]), IValue::Int(index)]);
    }
    assert_eq!(scopes(&flat, "aten::linear"), ["layers.0", "layers.1.0", "layers.2"]);
    assert!(flat.forward(&[input(&[2, 4]), IValue::Int(3)]).is_err(), "there is no fourth layer");
}

#[test]
fn a_layer_chosen_by_key_becomes_a_branch_for_each() {
    let model = file("Keyed");
    let flat = flat(&model);
    for key in ["one", "two"] {
        assert_same(&flat, &model, &[input(&[2, 4]), key.into()]);
    }
    assert!(flat.forward(&[input(&[2, 4]), "three".into()]).is_err());
}

#[test]
fn choices_nest() {
    let model = Module::new("Nested").unwrap();
    let linear = observers_file("Chosen").submodule("a").unwrap();
    let pair = Module::new("Pair").unwrap();
    for name in ["one", "two"] {
        let copy = linear.copy_instance().unwrap();
        copy.set_attribute("weight", &random(&[4, 4], name.len() as u64 + name.as_bytes()[0] as u64).into()).unwrap();
        pair.register_submodule(name, &copy).unwrap();
    }
    model.register_submodule("pair", &pair).unwrap();
    model.register_submodule("single", &linear).unwrap();
    let source = "def forward(self, x: Tensor, a: bool, b: bool) -> Tensor:
    if a:
        pair = self.pair
        if b:
            layer = pair.one
        else:
            layer = pair.two
    else:
        layer = self.single
    y = layer.forward(x)
    return y + layer.weight.sum()
";
    model.define(source).unwrap();
    let flat = flat(&model);
    for (a, b) in [(true, true), (true, false), (false, true), (false, false)] {
        assert_same(&flat, &model, &[input(&[2, 4]), a.into(), b.into()]);
    }
    assert_eq!(scopes(&flat, "aten::linear"), ["pair.one", "pair.two", "single"]);
}

#[test]
fn what_is_behind_an_interface_is_found() {
    let model = observers_file("Interface");
    let flat = flat(&model);
    assert_same(&flat, &model, &[random(&[64, 4], 5).into()]);
    assert_eq!(scopes(&flat, "aten::linear"), ["body", "head.fc"]);
}

#[test]
fn every_form_of_module_stays_what_it_was() {
    let image = [1, 2, 8, 8];
    let files: [(&str, &[i64]); 10] = [
        ("FunctionalRelu", &image),
        ("FunctionalLinear", &[2, 4]),
        ("FunctionalPooling", &image),
        ("FunctionalNorms", &image),
        ("Activations", &[2, 4]),
        ("ComputingFunction", &[2, 4]),
        ("Raising", &[2, 4]),
        ("Forked", &[2, 4]),
        ("Attention", &[2, 3, 4]),
        ("Recurrent", &[2, 3, 4]),
    ];
    for (name, shape) in files {
        let model = observers_file(name);
        assert_same(&flat(&model), &model, &[input(shape)]);
    }
}

#[test]
fn state_is_kept_and_is_not_shared_with_the_original() {
    let model = Module::new("Counter").unwrap();
    model.register_buffer("total", Tensor::from_slice(&[0.0f32], &[1]).unwrap()).unwrap();
    model.register_buffer("last", Tensor::from_slice(&[1.0f32], &[1]).unwrap()).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    self.total.add_(x.sum())
    y = self.last + self.total
    self.last = x.sum()
    return y
",
        )
        .unwrap();
    let flat = flat(&model);
    let x = Tensor::from_slice(&[2.0f32], &[1]).unwrap();
    let x = std::slice::from_ref(&x);
    let run = |module: &Module| module.forward(x).unwrap().as_tensor().unwrap().to_f32_vec().unwrap()[0];
    assert_eq!([run(&flat), run(&flat), run(&flat)], [3.0, 6.0, 8.0]);
    assert_eq!(run(&model), 3.0, "the original starts from its own state");
}

#[test]
fn preserved_methods_and_attributes_stay() {
    let model = Module::new("Two").unwrap();
    model.register_attribute("version", &jitquant::ir::Type::parse("int").unwrap(), &IValue::Int(7)).unwrap();
    model.register_parameter("weight", random(&[3, 4], 1)).unwrap();
    model
        .define(
            "def forward(self, x: Tensor) -> Tensor:
    return torch.linear(x, self.weight)

def double(self, x: Tensor) -> Tensor:
    return self.forward(x) * 2
",
        )
        .unwrap();
    let flat = flatten(&model, &["double".into(), "version".into()]).unwrap();
    let x = [input(&[2, 4])];
    let run = |module: &Module| module.call("double", &x).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    assert_eq!(run(&flat), run(&model));
    assert_eq!(flat.attribute("version").unwrap().as_int(), Some(7));
    assert!(!flatten(&model, &[]).unwrap().has_method("double"));
}

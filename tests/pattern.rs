//! Patterns and rewrites over TorchScript graphs.

#![cfg(feature = "torch")]

use jitquant::ir::pattern::{
    Pattern, any, anything, attribute, boolean, call_function, call_method, commutative_op, constant, constant_where,
    int, none, number, one_of, op, rest,
};
use jitquant::ir::{Graph, IValue, Module, Value};

fn graph(text: &str) -> Graph {
    Graph::parse(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

/// The value called `name`.
fn value<'g>(graph: &'g Graph, name: &str) -> Value<'g> {
    let values = graph.all_nodes().into_iter().flat_map(|node| node.outputs()).chain(graph.inputs());
    values.into_iter().find(|value| value.debug_name() == name).unwrap()
}

fn why(pattern: &Pattern, value: Value<'_>) -> String {
    pattern.matches(value).unwrap_err().to_string()
}

const SWISH: &str = "graph(%a : Tensor, %b : Tensor):
  %s : Tensor = aten::sigmoid(%a)
  %y : Tensor = aten::mul(%s, %a)
  %z : Tensor = aten::mul(%s, %b)
  return (%y, %z)";

#[test]
fn a_name_that_stands_twice_is_one_value() {
    let graph = graph(SWISH);
    let swish = any("x") * op("aten::sigmoid", [any("x")]).named("gate");
    let found = swish.matches(value(&graph, "y")).unwrap();
    assert_eq!(found.value("x").unwrap().debug_name(), "a");
    assert_eq!(found.node("gate").unwrap().kind(), "aten::sigmoid");
    assert_eq!(found.nodes().iter().map(|node| node.kind()).collect::<Vec<_>>(), ["aten::mul", "aten::sigmoid"]);
    assert_eq!(found.root().debug_name(), "y");
    assert!(found.value("w").unwrap_err().to_string().contains("no 'w', only x, gate"));
    assert_eq!(why(&swish, value(&graph, "z")), "%a is an argument, expected 'x', which is %b");
    assert_eq!(graph.find_all(&swish).len(), 1);
    assert!(graph.find(&(any("x") * any("x"))).is_none());
}

#[test]
fn every_order_is_tried_together_with_the_rest() {
    // The product matches with x and y either way; only one way agrees with the sum's other operand.
    let graph = graph(
        "graph(%a : Tensor, %b : Tensor):
  %one : int = prim::Constant[value=1]()
  %p : Tensor = aten::mul(%a, %b)
  %y : Tensor = aten::add(%p, %b, %one)
  %z : Tensor = aten::add(%p, %a, %one)
  return (%y, %z)",
    );
    let pattern = any("x") * any("y") + any("x");
    let found = pattern.matches(value(&graph, "y")).unwrap();
    assert_eq!(found.value("x").unwrap().debug_name(), "b");
    assert_eq!(found.value("y").unwrap().debug_name(), "a");
    let found = pattern.matches(value(&graph, "z")).unwrap();
    assert_eq!(found.value("x").unwrap().debug_name(), "a");
    let subtraction = commutative_op("aten::sub", [any("x"), any("y"), rest()]);
    assert_eq!(why(&subtraction, value(&graph, "y")), "%y comes from aten::add, expected aten::sub");
    let either = one_of([any("x") * any("y"), any("p")]) + any("p");
    assert!(either.matches(value(&graph, "y")).is_ok(), "the second alternative, where the first fails later");
}

#[test]
fn inputs_are_counted_unless_left_open() {
    let graph = graph(
        "graph(%a : Tensor):
  %two : int = prim::Constant[value=2]()
  %y : Tensor = aten::add(%a, %a, %two)
  return (%y)",
    );
    let y = value(&graph, "y");
    assert_eq!(
        why(&op("aten::add", [any("x"), any("x")]), y),
        "%y comes from aten::add with 3 inputs, expected 2 of them"
    );
    assert!(op("aten::add", [any("x"), any("x"), rest()]).matches(y).is_ok());
    assert!(op("aten::add", [rest()]).matches(y).is_ok());
    assert!(op("aten::add", [any("x"), any("x"), int(2), rest()]).matches(y).is_ok());
    assert!(op("aten::add", [anything(), anything(), int(2), any("w"), rest()]).matches(y).is_err());
    assert_eq!(why(&(any("x") + any("x")), y), "%two is the constant 2, expected the constant 1");
    assert!(why(&rest(), y).contains("rest() only stands last"));
    assert!(why(&one_of([]), y).contains("expected nothing"));
}

#[test]
fn constants() {
    let graph = Graph::new();
    let end = graph.block().return_node();
    let make = |value: IValue| end.insert_constant(value).unwrap();
    let (three, half, yes, text) = (make(3.into()), make(0.5.into()), make(true.into()), make("abc".into()));
    let (nothing, list) = (make(IValue::None), make(IValue::int_list([1, 2])));
    assert!(int(3).matches(three).is_ok() && number(3.0).matches(three).is_ok() && number(0.5).matches(half).is_ok());
    assert!(boolean(true).matches(yes).is_ok() && none().matches(nothing).is_ok());
    assert_eq!(why(&int(4), three), format!("{three:?} is the constant 3, expected the constant 4"));
    assert_eq!(why(&boolean(false), yes), format!("{yes:?} is the constant true, expected the constant false"));
    assert_eq!(why(&none(), text), format!("{text:?} is the constant 'abc', expected the constant None"));
    assert!(int(1).matches(yes).is_err() && int(3).matches(half).is_err(), "kinds are told apart");
    assert_eq!(constant("c").matches(list).unwrap().value("c").unwrap(), list);
    let pair = constant_where("a list of two", |c| matches!(c, IValue::List { items, .. } if items.len() == 2));
    assert!(pair.matches(list).is_ok());
    assert!(why(&pair, three).ends_with("expected a list of two"));
}

#[test]
fn alternatives_conditions_and_outputs() {
    let graph = graph(
        "graph(%a : Tensor):
  %d : int = prim::Constant[value=1]()
  %k : bool = prim::Constant[value=0]()
  %v : Tensor, %i : Tensor = aten::max(%a, %d, %k)
  %r : Tensor = aten::relu(%v)
  %t : Tensor = aten::tanh(%v)
  %m : Tensor = aten::mul(%r, %t)
  return (%m, %i)",
    );
    let (v, i, r, t) = (value(&graph, "v"), value(&graph, "i"), value(&graph, "r"), value(&graph, "t"));
    let max = op("aten::max", [any("x"), rest()]);
    assert!(max.matches(v).is_ok() && max.matches(i).is_ok());
    assert!(max.clone().output(1).matches(i).is_ok());
    assert_eq!(why(&max.clone().output(0), i), "%i is output 1 of aten::max, expected output 0");
    assert_eq!(why(&op("aten::relu", [max.clone().single_use()]), r), "%v is used 2 times, expected a single use");
    assert!(max.single_use().matches(i).is_ok());

    let activation = one_of([op("aten::relu", [any("x")]).named("relu"), op("aten::tanh", [any("x")]).named("tanh")]);
    let found = activation.matches(t).unwrap();
    assert!(found.get("relu").is_none() && found.get("tanh").is_some());
    assert_eq!(why(&activation, v), "%v comes from aten::max, expected aten::relu or aten::tanh");
    assert_eq!(graph.find_all(&activation).iter().map(|found| found.root()).collect::<Vec<_>>(), [r, t]);

    let has_two_uses = any("x").when(|node| node.outputs()[0].uses().len() == 2);
    assert!(op("aten::relu", [has_two_uses.clone()]).matches(r).is_ok());
    assert!(has_two_uses.matches(r).is_err());
    let why = op("aten::tanh", [any("x").when_it("is an argument of the graph", |node| node.kind() == "prim::Param")])
        .matches(t)
        .unwrap_err();
    assert_eq!(
        (why.value(), why.node().kind(), why.expected()),
        (v, "aten::max", "that it is an argument of the graph")
    );
    assert!(jitquant::Error::from(why).to_string().contains("aten::max"));
}

#[test]
fn the_mismatch_is_the_one_that_came_furthest() {
    let graph = graph(SWISH);
    let deep = any("u") * op("aten::sigmoid", [op("aten::relu", [any("x")])]);
    assert_eq!(why(&deep, value(&graph, "z")), "%a is an argument, expected aten::relu");
}

#[test]
fn calls_and_attributes_before_inlining() {
    let module = Module::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/calls.pt")).unwrap();
    let graph = module.graph("forward").unwrap();
    let relu_module = |x| call_method("torch.nn.modules.activation.ReLU", "forward", [x]);
    let calls = graph.find_all(&relu_module(any("x")));
    assert_eq!(calls.len(), 2, "{graph}");
    let mangled = calls[0].root().node().inputs()[0].type_of().class_name().unwrap();
    assert!(mangled.contains("__torch__."), "{mangled}");
    assert!(calls.iter().all(|call| call.value("x").unwrap() == graph.inputs()[1]));
    let object = attribute(any("self"), "act2").matches(calls[1].root().node().inputs()[0]).unwrap();
    assert_eq!(object.value("self").unwrap(), graph.inputs()[0]);
    assert_eq!(
        why(&attribute(any("self"), "act"), calls[1].root().node().inputs()[0]),
        "%act2.1 comes from prim::GetAttr of act2, expected the attribute 'act'"
    );

    let functional = call_function("relu", [relu_module(any("x")), rest()]);
    let found = graph.find(&functional).expect("torch.nn.functional.relu");
    assert!(graph.find(&(functional.clone() + relu_module(any("x")))).is_some());
    let gelu = why(&call_function("gelu", [rest()]), found.root());
    assert!(gelu.ends_with("comes from prim::CallFunction of relu, expected a call of the function gelu"), "{gelu}");
    let linear = why(&call_method("torch.nn.modules.linear.Linear", "forward", [rest()]), calls[0].root());
    assert!(linear.contains("of torch.nn.modules.activation.ReLU, expected a call of torch.nn.modules.linear.Linear"));
    // With a class for each place, one of them has its name and a number.
    let copy = module.clone_by(true, str::to_owned).unwrap();
    let graph = copy.graph("forward").unwrap();
    let found = graph.find_all(&relu_module(any("x")));
    let class =
        |call: &jitquant::ir::pattern::Match<'_>| call.root().node().inputs()[0].type_of().class_name().unwrap();
    let classes: Vec<_> = found.iter().map(class).collect();
    assert_eq!(classes.len(), calls.len());
    assert!(
        classes.iter().any(|class| class.contains("___torch_mangle_")),
        "a mangled class is seen through: {classes:?}"
    );
}

const NESTED: &str = "graph(%a : Tensor, %c : bool):
  %s : Tensor = aten::sigmoid(%a)
  %y : Tensor = prim::If(%c)
    block0():
      %t : Tensor = aten::sigmoid(%a)
      %u : Tensor = aten::mul(%t, %a)
      -> (%u)
    block1():
      %v : Tensor = aten::mul(%a, %s)
      -> (%v)
  %z : Tensor = aten::mul(%y, %s)
  return (%z)";

fn swish() -> Pattern {
    any("x") * op("aten::sigmoid", [any("x")])
}

#[test]
fn nested_blocks_are_searched_and_rewritten() {
    let mut graph = graph(NESTED);
    let roots: Vec<_> = graph.find_all(&swish()).iter().map(|found| found.root().debug_name()).collect();
    assert_eq!(roots, ["u", "v"]);
    let rewritten =
        graph.rewrite(&swish(), |at, found| Ok(Some(at.insert_operator("aten::silu", &[found.value("x")?])?))).unwrap();
    assert_eq!(rewritten, 2);
    graph.lint().unwrap();
    let kinds: Vec<_> = graph.all_nodes().into_iter().map(|node| node.kind()).collect();
    assert_eq!(
        kinds,
        ["aten::sigmoid", "prim::If", "aten::silu", "aten::silu", "aten::mul"],
        "the outer one is in use"
    );
}

#[test]
fn a_rule_that_fails_or_declines_changes_nothing() {
    let mut graph = graph(NESTED);
    let before = graph.to_string();
    let refused = graph.rewrite(&swish(), |at, found| {
        let silu = at.insert_operator("aten::silu", &[found.value("x")?])?;
        at.graph().block().nodes().next().unwrap().insert_constant(1)?;
        at.insert_operator("aten::conv2d", &[silu]).map(Some)
    });
    assert!(refused.unwrap_err().to_string().contains("conv2d"));
    assert_eq!(graph.to_string(), before);

    let declined = graph.rewrite(&swish(), |at, found| {
        at.insert_operator("aten::silu", &[found.value("x")?])?;
        Ok(None)
    });
    assert_eq!(declined.unwrap(), 0);
    assert_eq!(graph.to_string(), before);

    let misfit = graph.rewrite(&swish(), |at, _| at.insert_constant("text").map(Some)).unwrap_err().to_string();
    assert!(misfit.contains("%u is a Tensor and cannot be replaced by") && misfit.contains("a str"), "{misfit}");
    assert_eq!(graph.to_string(), before);
    graph.lint().unwrap();
}

#[test]
fn overlapping_matches_are_rewritten_once() {
    let mut graph = graph(
        "graph(%a : Tensor):
  %b : Tensor = aten::relu(%a)
  %c : Tensor = aten::relu(%b)
  %d : Tensor = aten::relu(%c)
  return (%d)",
    );
    let twice = op("aten::relu", [op("aten::relu", [any("x")])]);
    assert_eq!(graph.find_all(&twice).len(), 2);
    let count = graph.rewrite(&twice, |at, found| at.insert_operator("aten::relu", &[found.value("x")?]).map(Some));
    assert_eq!(count.unwrap(), 2);
    assert_eq!(graph.nodes().count(), 1, "{graph}");
    graph.lint().unwrap();
}

#[test]
fn a_rewritten_model_computes_the_same_and_keeps_its_source_places() {
    let module = Module::new("Net").unwrap();
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    y = x * 2.0\n    return torch.sigmoid(y) * y\n")
        .unwrap();
    let graph = module.graph("forward").unwrap();
    graph.rewrite(&swish(), |at, found| at.insert_operator("aten::silu", &[found.value("x")?]).map(Some)).unwrap();
    let silu = graph.outputs()[0].node();
    assert_eq!((silu.kind(), silu.source_range().unwrap().line), ("aten::silu", 3));
    let x = jitquant::ir::Tensor::from_slice(&[1.0f32], &[1]).unwrap();
    let y = module.forward(&[x]).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap()[0];
    assert!((y - 2.0 / (1.0 + (-2.0f32).exp())).abs() < 1e-6);
}

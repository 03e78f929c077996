//! Nodes, values and blocks: every way to change a graph, and every way that is refused.

#![cfg(feature = "torch")]

use jitquant::ir::{GeneralPass, Graph, IValue, Module, Node, Tensor, Type, Value};

fn graph(text: &str) -> Graph {
    Graph::parse(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

const CHAIN: &str = "graph(%x : Tensor):
  %a : Tensor = aten::relu(%x)
  %b : Tensor = aten::tanh(%a)
  %c : Tensor = aten::sigmoid(%b)
  return (%c)";

const BRANCH: &str = "graph(%x : Tensor, %p : bool):
  %a : Tensor = aten::relu(%x)
  %y : Tensor = prim::If(%p)
    block0():
      %b : Tensor = aten::tanh(%a)
      %c : Tensor = aten::sigmoid(%b)
      -> (%c)
    block1():
      %d : Tensor = aten::neg(%a)
      -> (%d)
  %z : Tensor = aten::exp(%y)
  return (%z)";

fn node<'g>(graph: &'g Graph, kind: &str) -> Node<'g> {
    graph.all_nodes().into_iter().find(|node| node.kind() == kind).unwrap_or_else(|| panic!("no {kind} in {graph}"))
}

fn kinds(graph: &Graph) -> Vec<&str> {
    graph.all_nodes().into_iter().map(Node::kind).collect()
}

/// `change` is refused with a message that contains `text`, and the graph is as it was.
fn refused<'g, T: std::fmt::Debug>(
    graph: &'g Graph,
    text: &str,
    change: impl FnOnce(&'g Graph) -> jitquant::Result<T>,
) {
    let before = graph.to_string();
    let error = change(graph).unwrap_err().to_string();
    assert!(error.contains(text), "'{error}' does not contain '{text}'");
    assert_eq!(graph.to_string(), before, "{error}");
}

#[test]
fn nodes_are_created_inserted_moved_copied_and_destroyed() {
    let mut graph = graph(CHAIN);
    {
        let (relu, tanh, sigmoid) =
            (node(&graph, "aten::relu"), node(&graph, "aten::tanh"), node(&graph, "aten::sigmoid"));
        let neg = graph.create("aten::neg", &[graph.inputs()[0]], 1).unwrap();
        assert!(neg.owning_block().is_none() && !neg.is_inserted() && neg.next() == neg && neg.prev() == neg);
        neg.insert_after(relu).unwrap();
        assert!(
            neg.is_inserted() && relu.next() == neg && tanh.prev() == neg && neg.owning_block() == Some(graph.block())
        );
        assert!(
            neg.is_before(sigmoid).unwrap()
                && !sigmoid.is_before(neg).unwrap()
                && sigmoid.is_dominated_by(neg).unwrap()
        );
        neg.move_before(relu).unwrap();
        assert_eq!(kinds(&graph), ["aten::neg", "aten::relu", "aten::tanh", "aten::sigmoid"]);
        neg.move_after(tanh).unwrap();
        assert_eq!(kinds(&graph), ["aten::relu", "aten::tanh", "aten::neg", "aten::sigmoid"]);

        let copy = tanh.copy().unwrap().insert_after(tanh).unwrap();
        assert_eq!((copy.kind(), copy.inputs()), ("aten::tanh", tanh.inputs()));
        sigmoid.replace_input(0, copy.outputs()[0]).unwrap();
        tanh.destroy().unwrap();
        neg.destroy().unwrap();
        assert_eq!(kinds(&graph), ["aten::relu", "aten::tanh", "aten::sigmoid"]);
    }
    graph.lint().unwrap();
}

#[test]
fn inputs_and_uses_are_replaced() {
    let graph = graph(
        "graph(%x : Tensor, %y : Tensor):
  %one : int = prim::Constant[value=1]()
  %a : Tensor = aten::add(%x, %x, %one)
  %b : Tensor = aten::mul(%x, %a)
  return (%b)",
    );
    let (x, y) = (graph.inputs()[0], graph.inputs()[1]);
    let (add, mul) = (node(&graph, "aten::add"), node(&graph, "aten::mul"));
    assert_eq!(
        x.uses().iter().map(|each| (each.user, each.offset)).collect::<Vec<_>>(),
        [(add, 0), (add, 1), (mul, 0)]
    );
    x.replace_all_uses_after(add, y).unwrap();
    assert_eq!((x.uses().len(), mul.inputs()[0]), (2, y));
    add.replace_input_with(x, y).unwrap();
    assert!(!x.is_used() && add.inputs()[..2] == [y, y]);
    y.replace_all_uses_with(y).unwrap();
    y.replace_all_uses_after(add, y).unwrap();
    assert_eq!(y.uses().len(), 3, "a value in its own place");
    add.insert_input(0, x).unwrap();
    add.remove_input(1).unwrap();
    assert_eq!(add.inputs()[..2], [x, y]);
    assert_eq!(add.named_input("other"), Some(y));
    mul.remove_all_inputs().unwrap();
    assert!(mul.inputs().is_empty());
    refused(&graph, "input 9", |_| add.replace_input(9, x));
    refused(&graph, "input 9", |_| add.remove_input(9));
    refused(&graph, "input 9", |_| add.insert_input(9, x));
}

#[test]
fn blocks_are_built_and_walked() {
    let mut graph = graph("graph(%x : Tensor, %p : bool):\n  return (%x)");
    {
        let (x, p) = (graph.inputs()[0], graph.inputs()[1]);
        let branch = graph.create("prim::If", &[p], 1).unwrap();
        let end = graph.block().return_node();
        branch.insert_before(end).unwrap();
        let (yes, no) = (branch.add_block().unwrap(), branch.add_block().unwrap());
        let relu = yes.return_node().insert_operator("aten::relu", &[x]).unwrap();
        yes.register_output(relu).unwrap();
        let tanh = graph.create("aten::tanh", &[x], 1).unwrap();
        no.append(tanh).unwrap();
        let neg = graph.create("aten::neg", &[x], 1).unwrap();
        no.prepend(neg).unwrap();
        assert_eq!(no.nodes().map(Node::kind).collect::<Vec<_>>(), ["aten::neg", "aten::tanh"]);
        no.register_output(tanh.outputs()[0]).unwrap();
        assert!(yes.owner() == Some(branch) && graph.block().owner().is_none() && branch.blocks() == [yes, no]);
        assert!(yes.outputs() == [relu] && yes.inputs().is_empty());
        branch.outputs()[0].set_type(&Type::parse("Tensor").unwrap()).unwrap();
        end.replace_input(0, branch.outputs()[0]).unwrap();
        assert!(
            !relu.node().is_before(tanh).unwrap() && !tanh.is_before(relu.node()).unwrap(),
            "one or the other runs"
        );
        assert!(!end.is_dominated_by(tanh).unwrap());
    }
    graph.lint().unwrap();
    assert_eq!(kinds(&graph), ["prim::If", "aten::relu", "aten::neg", "aten::tanh"]);

    let copy = graph.deep_clone().unwrap();
    assert!(copy.id() != graph.id() && kinds(&copy) == kinds(&graph));
    let (from, to) =
        (node(&copy, "prim::If").blocks()[1], copy.create("prim::If", &[], 0).unwrap().add_block().unwrap());
    to.copy_from(from).unwrap();
    assert_eq!(to.nodes().map(Node::kind).collect::<Vec<_>>(), ["aten::neg", "aten::tanh"]);
    assert_eq!((to.outputs().len(), to.outputs()[0] == from.outputs()[0]), (1, false));
    assert!(from.copy_from(from).is_err(), "would not end");
    let argument = to.add_input("i").unwrap();
    assert!(argument.is_block_input() && argument.debug_name() == "i" && to.inputs() == [argument]);
}

#[test]
fn a_block_may_be_changed_while_it_is_walked() {
    let graph = graph(CHAIN);
    let mut met = Vec::new();
    for each in graph.nodes() {
        met.push(each.kind());
        let output = each.outputs()[0];
        let input = each.inputs()[0];
        if each.kind() == "aten::relu" {
            // The current one, and the one that would have been next.
            let next = each.next();
            next.outputs()[0].replace_all_uses_with(input).unwrap();
            next.destroy().unwrap();
            output.replace_all_uses_with(input).unwrap();
            each.destroy().unwrap();
        } else {
            let added = each.insert_operator("aten::neg", &[input]).unwrap();
            each.replace_input(0, added).unwrap();
        }
    }
    assert_eq!(met, ["aten::relu", "aten::sigmoid"]);
    assert_eq!(kinds(&graph), ["aten::neg", "aten::sigmoid"]);
}

#[test]
fn misplaced_nodes_are_refused() {
    let graph = graph(BRANCH);
    let (relu, branch, tanh) = (node(&graph, "aten::relu"), node(&graph, "prim::If"), node(&graph, "aten::tanh"));
    let (first, last) = (graph.block().param_node(), graph.block().return_node());
    refused(&graph, "within its blocks", |_| branch.move_before(tanh));
    refused(&graph, "the node itself", |_| relu.move_after(relu));
    refused(&graph, "arguments or results", |_| last.move_before(relu));
    refused(&graph, "arguments or results", |_| first.move_after(relu));
    refused(&graph, "before a block's arguments", |_| relu.move_before(first));
    refused(&graph, "after a block's results", |_| relu.move_after(last));
    refused(&graph, "cannot be destroyed", |_| last.destroy());
    refused(&graph, "cannot be destroyed", |_| first.destroy());
    refused(&graph, "still used", |_| relu.destroy());
    refused(&graph, "nothing can be inserted", |_| first.insert_constant(1));
    let free = graph.create("aten::neg", &[graph.inputs()[0]], 1).unwrap();
    refused(&graph, "in no block", |_| relu.move_before(free));
    refused(&graph, "", |_| free.move_before(relu));
    refused(&graph, "", |_| relu.insert_before(tanh));
    refused(&graph, "nothing can be inserted", |_| free.insert_constant(1));
    assert!(
        free.is_dominated_by(relu).is_err() && relu.is_dominated_by(free).is_err() && free.is_before(relu).is_err()
    );
    let a = relu.outputs()[0];
    free.replace_input(0, a).unwrap();
    refused(&graph, "", |graph| a.replace_all_uses_after(relu, graph.inputs()[0]));
    let owner = graph.create("prim::If", &[], 0).unwrap();
    let block = owner.add_block().unwrap();
    refused(&graph, "within its blocks", |_| block.append(owner));
    assert!(graph.create("relu", &[], 1).unwrap_err().to_string().contains("namespace::name"));
}

#[test]
fn two_graphs_do_not_mix() {
    let (graph, other) = (graph(CHAIN), graph(BRANCH));
    let (relu, foreign) = (node(&graph, "aten::relu"), node(&other, "aten::exp"));
    let value = foreign.outputs()[0];
    refused(&graph, "of another graph", |_| relu.add_input(value));
    refused(&graph, "of another graph", |_| relu.replace_input(0, value));
    refused(&graph, "of another graph", |_| relu.insert_operator("aten::neg", &[value]));
    refused(&graph, "of another graph", |_| relu.outputs()[0].replace_all_uses_with(value));
    refused(&graph, "of another graph", |_| relu.outputs()[0].replace_all_uses_after(relu, value));
    refused(&graph, "", |_| relu.outputs()[0].replace_all_uses_after(foreign, graph.inputs()[0]));
    refused(&graph, "of another graph", |_| relu.move_before(foreign));
    refused(&graph, "of another graph", |_| foreign.move_before(relu));
    refused(&graph, "of another graph", |graph| graph.block().register_output(value));
    refused(&graph, "of another graph", |graph| graph.create("aten::neg", &[value], 1));
    let free = other.create("aten::neg", &[value], 1).unwrap();
    refused(&graph, "of another graph", |_| free.insert_before(relu));
    refused(&graph, "of another graph", |graph| graph.block().append(free));
    refused(&graph, "same graph", |graph| graph.block().copy_from(other.block()));
    let identity = Graph::parse("graph(%x : Tensor):\n  return (%x)").unwrap();
    refused(&graph, "of another graph", |_| relu.insert_graph(&identity, &[value]));
    refused(&graph, "into itself", |graph| relu.insert_graph(graph, &[graph.inputs()[0]]));
    refused(&graph, "1 arguments inserted with 0", |_| relu.insert_graph(&identity, &[]));
}

#[test]
fn destroyed_nodes_stay_readable_and_out_of_the_graph() {
    let mut graph = graph(BRANCH);
    {
        let (relu, branch, tanh) = (node(&graph, "aten::relu"), node(&graph, "prim::If"), node(&graph, "aten::tanh"));
        let constant = relu.insert_constant(Tensor::from_slice(&[1.0f32], &[1]).unwrap()).unwrap().node();
        constant.destroy().unwrap();
        assert!(constant.to_string().contains("prim::Constant"));
        let Some(IValue::Tensor(gone)) = constant.attribute("value") else { panic!("a tensor") };
        assert!(!gone.is_defined() && gone.dtype().is_none() && gone.nbytes() == 0 && gone.to_vec::<f32>().is_err());
        assert!(gone.shape().iter().product::<i64>() == 0 && !gone.is_quantized() && gone.to_f32_vec().is_err());

        branch.outputs()[0].replace_all_uses_with(relu.outputs()[0]).unwrap();
        branch.destroy().unwrap();
        branch.destroy().unwrap();
        assert!(branch.is_destroyed() && tanh.is_destroyed() && !relu.is_destroyed());
        assert!(branch.owning_block().is_none() && branch.next() == branch && branch.prev() == branch);
        assert!(tanh.inputs().is_empty() && !branch.to_string().is_empty() && tanh.source_range().is_ok());
        assert_eq!(kinds(&graph), ["aten::relu", "aten::exp"]);
        let exp = node(&graph, "aten::exp");
        refused(&graph, "is destroyed", |_| exp.replace_input(0, tanh.outputs()[0]));
        refused(&graph, "is destroyed", |_| relu.outputs()[0].replace_all_uses_with(branch.outputs()[0]));
        refused(&graph, "in no block", |_| exp.move_after(branch));
        refused(&graph, "in no block", |_| exp.move_after(tanh));
        refused(&graph, "nothing can be inserted", |_| tanh.insert_constant(1));
        assert!(tanh.is_dominated_by(relu).is_err());
        assert_eq!(branch.blocks()[0].nodes().count(), 2, "its blocks can be walked");
    }
    graph.lint().unwrap();
    graph.run(GeneralPass::DeadCodeElimination).unwrap();
}

#[test]
fn a_node_destroyed_through_one_handle_is_safe_to_look_at_through_another() {
    let module = Module::new("Net").unwrap();
    module.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(torch.tanh(x))\n").unwrap();
    let first = module.graph("forward").unwrap();
    let second = module.graph("forward").unwrap();
    assert_eq!(first.id(), second.id());
    let tanh = node(&second, "aten::tanh");
    let name = {
        let same = node(&first, "aten::tanh");
        assert_eq!(same, tanh);
        same.outputs()[0].replace_all_uses_with(same.inputs()[0]).unwrap();
        same.destroy().unwrap();
        same.outputs()[0].debug_name()
    };
    drop(first);
    assert_eq!((tanh.kind(), tanh.outputs()[0].debug_name(), tanh.is_destroyed()), ("aten::tanh", name, true));
    drop(second);
    module.graph("forward").unwrap().lint().unwrap();
}

#[test]
fn failed_insertions_leave_no_constants_behind() {
    let graph = graph("graph(%x : Tensor, %n : int[]):\n  %y : Tensor = aten::relu(%x)\n  return (%y)");
    let relu = node(&graph, "aten::relu");
    let (x, n) = (graph.inputs()[0], graph.inputs()[1]);
    // Stride and padding get their defaults before the sixth argument turns out to be wrong.
    refused(&graph, "aten::conv2d", |_| relu.insert_operator("aten::conv2d", &[x, x, x, n, n, x]));
    refused(&graph, "aten::nothing", |_| relu.insert_operator("aten::nothing", &[x]));
    refused(&graph, "", |_| relu.insert_method_call(x, "forward", &[]));
    refused(&graph, "", |_| relu.insert_get_attribute(x, "weight"));
    refused(&graph, "", |_| relu.insert_constant(Module::new("M").unwrap()));
    let conv = relu.insert_operator("aten::conv2d", &[x, x]).unwrap();
    assert_eq!(conv.node().inputs().len(), 7, "defaults are filled in");
    assert_eq!(conv.node().named_input("groups").unwrap().constant().unwrap().as_int(), Some(1));
}

#[test]
fn attributes_of_every_kind_and_metadata() {
    let graph = graph(CHAIN);
    let relu = node(&graph, "aten::relu");
    let values: [(&str, IValue); 6] = [
        ("t", Tensor::from_slice(&[1i64, 2], &[2]).unwrap().into()),
        ("i", 3.into()),
        ("f", 0.5.into()),
        ("s", "text".into()),
        ("b", true.into()),
        ("l", IValue::int_list([4, 5])),
    ];
    for (name, value) in &values {
        relu.set_attribute(name, value).unwrap();
    }
    let mut names = relu.attribute_names();
    names.sort();
    assert_eq!(names, ["b", "f", "i", "l", "s", "t"]);
    for (name, value) in &values {
        assert_eq!(format!("{:?}", relu.attribute(name).unwrap()), format!("{value:?}"));
    }
    assert_eq!(relu.copy().unwrap().attribute("s").unwrap().as_str(), Some("text"), "copies have them too");
    relu.remove_attribute("s").unwrap();
    assert!(relu.attribute("s").is_none() && relu.remove_attribute("s").is_err());

    let schema = relu.schema().unwrap();
    assert_eq!((schema.name.as_str(), schema.arguments[0].name.as_str()), ("aten::relu", "self"));
    assert_eq!(schema.returns[0].type_name, "Tensor");
    assert!(node(&graph, "aten::tanh").schema().is_some());
    assert!(graph.create("acme::unknown", &[], 1).unwrap().schema().is_none());
    assert!(!relu.has_side_effects().unwrap() && !relu.is_nondeterministic().unwrap());
    let range = relu.source_range().unwrap();
    assert_eq!((range.file.as_str(), range.line), ("", 0), "a parsed graph has no source");
    let out = relu.outputs()[0];
    out.set_debug_name("activation").unwrap();
    assert_eq!((out.debug_name().as_str(), out.offset(), out.node()), ("activation", 0, relu));
    assert!(out.set_debug_name("7").is_err());
    assert_eq!(relu.add_output().unwrap().offset(), 1);
}

#[test]
fn constants_of_every_kind() {
    let graph = Graph::new();
    let end = graph.block().return_node();
    let constants = [
        IValue::None,
        IValue::Tensor(Tensor::from_slice(&[1.5f32, -2.0], &[2]).unwrap()),
        IValue::Int(-7),
        IValue::Double(0.25),
        IValue::Bool(false),
        IValue::Str("ü\n\"".into()),
        IValue::Device("cpu".into()),
        IValue::int_list([1, 2, 3]),
        IValue::double_list([0.5]),
        IValue::List { element: "bool".into(), items: vec![true.into(), false.into()] },
        IValue::List { element: "str".into(), items: vec!["a".into()] },
        IValue::tensor_list([Tensor::from_slice(&[1u8], &[1]).unwrap()]),
        IValue::Tuple(vec![1.into(), IValue::None, IValue::Tuple(vec!["x".into()])]),
        IValue::Dict { key: "str".into(), value: "int".into(), items: vec![("k".into(), 1.into())] },
    ];
    let inserted: Vec<Value<'_>> = constants.iter().map(|c| end.insert_constant(c).unwrap()).collect();
    for (constant, value) in constants.iter().zip(&inserted) {
        assert!(value.is_constant(), "{constant:?}");
        assert_eq!(format!("{:?}", value.constant().unwrap()), format!("{constant:?}"));
    }
    assert_eq!(inserted[1].constant().unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap(), [1.5, -2.0]);
    assert!(inserted[7].type_of().annotation() == "List[int]" && inserted[0].type_of().text() == "NoneType");
    let wrong = IValue::List { element: "int".into(), items: vec!["a".into()] };
    refused(&graph, "cannot hold", |_| end.insert_constant(&wrong));
    let wrong = IValue::Dict { key: "str".into(), value: "int".into(), items: vec![("k".into(), "v".into())] };
    refused(&graph, "cannot hold", |_| end.insert_constant(&wrong));
}

#[test]
fn source_places_follow_copies_and_metadata() {
    let module = Module::new("Net").unwrap();
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    y = torch.relu(x)\n    return torch.tanh(y)\n")
        .unwrap();
    let graph = module.graph("forward").unwrap();
    let (relu, tanh) = (node(&graph, "aten::relu"), node(&graph, "aten::tanh"));
    let range = tanh.source_range().unwrap();
    assert_eq!((range.line, range.text.as_str()), (3, "torch.tanh"));
    assert_eq!(relu.copy().unwrap().source_range().unwrap().line, 2);
    let made = graph.create("aten::neg", &[tanh.outputs()[0]], 1).unwrap();
    made.copy_metadata(tanh).unwrap();
    assert_eq!(made.source_range().unwrap().line, 3);
    assert!(graph.to_string_with_source().unwrap().contains(":3:"));
}

#[test]
fn a_subgraph_held_open_keeps_passes_away() {
    let module = Module::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/calls.pt")).unwrap();
    let mut graph = module.graph("forked").unwrap();
    let subgraph = node(&graph, "prim::fork").subgraph("Subgraph").unwrap();
    assert!(kinds(&subgraph).contains(&"prim::CallMethod"));
    assert!(graph.lint().is_err());
    drop(subgraph);
    graph.lint().unwrap();
}

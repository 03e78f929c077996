//! Graphs and modules through the bridge.

#![cfg(feature = "torch")]

use jitquant::ir::{GeneralPass, Graph, IValue, Module, Tensor, Type};

fn add_one() -> Module {
    let module = Module::new("AddOne").unwrap();
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    if bool(x.sum() > 0):\n        y = x + 1\n    else:\n        y = torch.relu(x)\n    return y\n")
        .unwrap();
    module
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, &[values.len() as i64]).unwrap()
}

#[test]
fn a_module_survives_saving_and_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let module = add_one();
    module.register_buffer("scale", tensor(&[0.5])).unwrap();
    module.save(&path).unwrap();
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["m.pt"], "nothing is left beside the file");
    let loaded = Module::load(&path).unwrap();
    let y = loaded.forward(&[tensor(&[1.0, 2.0])]).unwrap();
    assert_eq!(y.as_tensor().unwrap().to_vec::<f32>().unwrap(), [2.0, 3.0]);
    assert_eq!(loaded.attribute("scale").unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap(), [0.5]);
    let again = Module::load_bytes(&module.save_bytes().unwrap()).unwrap();
    assert_eq!(again.method_names(), ["forward"]);
}

#[test]
fn errors_name_the_file_and_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let text = |r: jitquant::Result<Module>| r.unwrap_err().to_string();
    assert!(text(Module::load(&path)).contains("No such file"));
    std::fs::write(&path, "hello").unwrap();
    assert!(text(Module::load(&path)).contains("not a TorchScript file"));
    let bytes = add_one().save_bytes().unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(text(Module::load(&path)).contains("truncated"), "{}", text(Module::load(&path)));
    assert!(text(Module::load(folder.path())).contains("not a file"));
    let missing = add_one().graph("run").unwrap_err().to_string();
    assert!(missing.contains("'run'") && missing.contains("forward"), "{missing}");
}

#[test]
fn a_destroyed_node_can_still_be_looked_at() {
    let module = add_one();
    let graph = module.graph("forward").unwrap();
    let relu = graph.all_nodes().into_iter().find(|n| n.kind() == "aten::relu").unwrap();
    let (input, output) = (relu.input(0).unwrap(), relu.output(0).unwrap());
    assert!(relu.destroy().is_err(), "its output is used");
    output.replace_all_uses_with(input).unwrap();
    relu.destroy().unwrap();
    assert_eq!((relu.kind(), relu.inputs().len(), relu.outputs().len()), ("aten::relu", 0, 1));
    assert!(!graph.to_string().contains("relu"));
    drop(graph);
    module.graph("forward").unwrap().lint().unwrap();
    let y = module.forward(&[tensor(&[-1.0, -2.0])]).unwrap();
    assert_eq!(y.as_tensor().unwrap().to_vec::<f32>().unwrap(), [-1.0, -2.0]);
}

#[test]
fn a_pass_that_frees_nodes_refuses_while_another_handle_lives() {
    let module = add_one();
    let mut graph = module.graph("forward").unwrap();
    let other = module.graph("forward").unwrap();
    assert!(graph.run(GeneralPass::DeadCodeElimination).unwrap_err().to_string().contains("1 other"));
    drop(other);
    graph.run(GeneralPass::DeadCodeElimination).unwrap();
}

#[test]
fn calls_are_inserted_and_inlined() {
    let child = Module::new("Child").unwrap();
    child.define("def forward(self, x: Tensor) -> Tensor:\n    return x * 3\n").unwrap();
    let parent = Module::new("Parent").unwrap();
    parent.register_submodule("child", &child).unwrap();
    parent.define("def forward(self, x: Tensor) -> Tensor:\n    return x\n").unwrap();
    let graph = parent.graph("forward").unwrap();
    let (this, x) = (graph.inputs()[0], graph.inputs()[1]);
    let end = graph.block().return_node();
    let object = end.insert_get_attribute(this, "child").unwrap();
    let result = end.insert_method_call(object, "forward", &[x]).unwrap();
    end.replace_input(0, result).unwrap();
    let run = || parent.forward(&[tensor(&[2.0])]).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
    assert_eq!(run(), [6.0]);
    assert_eq!(parent.modules().into_iter().map(|(path, _)| path).collect::<Vec<_>>(), ["", "child"]);
    let call = result.node();
    assert_eq!(call.inline_call().unwrap().len(), 1);
    assert!(!graph.to_string().contains("CallMethod"));
    let refusal = end.insert_operator("aten::conv2d", &[x]).unwrap_err().to_string();
    assert!(refusal.contains("aten::conv2d"), "{refusal}");
}

#[test]
fn values_of_every_kind_cross_the_bridge() {
    let module = Module::new("Echo").unwrap();
    module
        .define(
            "def forward(self, x: Tensor, n: int, f: float, b: bool, s: str, l: List[int], d: Dict[str, Tensor], o: Optional[Tensor]):\n    return (x, n, f, b, s, l, d, o)\n",
        )
        .unwrap();
    let arguments = [
        IValue::Tensor(tensor(&[1.0])),
        IValue::Int(7),
        IValue::Double(0.25),
        IValue::Bool(true),
        IValue::Str("ü".into()),
        IValue::int_list([1, 2]),
        IValue::Dict {
            key: "str".into(),
            value: "Tensor".into(),
            items: vec![("k".into(), IValue::Tensor(tensor(&[3.0])))],
        },
        IValue::None,
    ];
    let IValue::Tuple(results) = module.forward(&arguments).unwrap() else { panic!("a tuple") };
    assert_eq!(format!("{results:?}"), format!("{arguments:?}"));
    let constants = Graph::new();
    for value in &arguments[..6] {
        let constant = constants.block().return_node().insert_constant(value.clone()).unwrap();
        assert_eq!(format!("{:?}", constant.constant().unwrap()), format!("{value:?}"));
    }
    assert_eq!(Type::parse("Optional[List[int]]").unwrap().annotation(), "Optional[List[int]]");
}

#[cfg(feature = "tch")]
#[test]
fn tch_tensors_and_modules_go_both_ways() {
    let module = add_one();
    let x = tch::Tensor::from_slice(&[1.0f32, 2.0]);
    let y: tch::Tensor = module.forward(&[x.shallow_clone()]).unwrap().try_into().unwrap();
    assert_eq!(Vec::<f32>::try_from(&y).unwrap(), [2.0, 3.0]);
    let in_tch = tch::CModule::try_from(&module).unwrap();
    assert_eq!(Vec::<f32>::try_from(in_tch.forward_ts(&[x]).unwrap()).unwrap(), [2.0, 3.0]);
    assert_eq!(Module::try_from(&in_tch).unwrap().method_names(), ["forward"]);
}

#[test]
fn common_constant_tensors_are_one_and_others_stay() {
    let text = "graph(%x : Tensor):\n  %y : Tensor = aten::relu(%x)\n  return (%y)";
    let mut graph = Graph::parse(text).unwrap();
    let relu = graph.nodes().next().unwrap();
    let constant = |values: [f32; 2]| relu.insert_constant(Tensor::from_slice(&values, &[2]).unwrap()).unwrap();
    let constants = [constant([1.0, 2.0]), constant([1.0, 3.0]), constant([1.0, 2.0])];
    let mut sum = graph.inputs()[0];
    for value in constants {
        sum = relu.insert_operator("aten::mul", &[sum, value]).unwrap();
    }
    relu.replace_input(0, sum).unwrap();
    graph.run(GeneralPass::CommonSubexpressionElimination).unwrap();
    let text = graph.to_string();
    let products: Vec<_> =
        graph.nodes().filter(|node| node.kind() == "aten::mul").map(|node| node.inputs()[1]).collect();
    assert_eq!((products.len(), text.matches("prim::Constant[value=").count()), (3, 2), "{text}");
    assert!(products[0] == products[2] && products[0] != products[1], "{text}");
    assert!(products.iter().all(|value| value.node().inputs().is_empty()), "{text}");
    assert!(!text.contains("Uninitialized"), "{text}");
}

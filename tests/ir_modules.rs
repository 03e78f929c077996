//! Modules: attributes, submodules, clones, calls, and files.

#![cfg(feature = "torch")]

use std::path::Path;
use std::process::Command;

use jitquant::ir::{DType, ExtraFile, Graph, IValue, Module, Tensor, Type};

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, &[values.len() as i64]).unwrap()
}

fn module(name: &str, source: &str) -> Module {
    let module = Module::new(name).unwrap();
    module.define(source).unwrap();
    module
}

fn floats(value: &IValue) -> Vec<f32> {
    value.as_tensor().unwrap().to_vec().unwrap()
}

fn run(module: &Module, x: &[f32]) -> Vec<f32> {
    floats(&module.forward(&[tensor(x)]).unwrap())
}

const TIMES_3: &str = "def forward(self, x: Tensor) -> Tensor:\n    return x * 3";

#[test]
fn attributes_parameters_buffers_and_submodules_are_told_apart() {
    let child = module("Child", TIMES_3);
    let net = Module::new("Net").unwrap();
    net.register_parameter("weight", tensor(&[1.0])).unwrap();
    net.register_buffer("mean", tensor(&[2.0])).unwrap();
    net.register_attribute("bits", &Type::parse("int").unwrap(), &8.into()).unwrap();
    net.register_attribute("later", &Type::parse("Optional[Tensor]").unwrap(), &IValue::None).unwrap();
    net.register_submodule("0", &child).unwrap();
    let kinds: Vec<_> = net
        .attributes()
        .into_iter()
        .map(|a| (a.name, a.is_parameter, a.is_buffer, a.is_module))
        .filter(|(name, ..)| name != "training")
        .collect();
    let expected = [
        ("weight", true, false, false),
        ("mean", false, true, false),
        ("bits", false, false, false),
        ("later", false, false, false),
        ("0", false, false, true),
    ];
    assert_eq!(kinds, expected.map(|(name, p, b, m)| (name.to_owned(), p, b, m)));
    net.set_attribute("bits", &4.into()).unwrap();
    assert_eq!(net.attribute("bits").unwrap().as_int(), Some(4));
    assert!(net.set_attribute("bits", &"four".into()).is_err());
    assert!(net.attribute("missing").unwrap_err().to_string().contains("'missing'"));
    let wrong = net.register_attribute("other", &Type::parse("int").unwrap(), &"text".into()).unwrap_err().to_string();
    assert!(wrong.contains("declared as int") && !net.has_attribute("other"), "{wrong}");
    assert!(net.register_attribute("bits", &Type::parse("str").unwrap(), &"text".into()).is_err());
    net.define("def forward(self, x: Tensor) -> Tensor:\n    return getattr(self, \"0\").forward(x) + self.mean")
        .unwrap();
    assert_eq!(run(&net, &[1.0]), [5.0]);
    let reloaded = Module::load_bytes(&net.save_bytes().unwrap()).unwrap();
    assert_eq!(run(&reloaded, &[1.0]), [5.0]);
    assert_eq!(reloaded.attribute("bits").unwrap().as_int(), Some(4));
    net.remove_attribute("later").unwrap();
    assert!(!net.has_attribute("later") && net.remove_attribute("later").is_err());
    assert_eq!(net.attribute("bits").unwrap().as_int(), Some(4), "the others keep their values");
}

#[test]
fn submodules_have_paths() {
    let (net, features, conv) = (module("Net", TIMES_3), module("Features", TIMES_3), module("Conv", TIMES_3));
    net.register_submodule("features", &features).unwrap();
    features.register_submodule("0", &conv).unwrap();
    features.register_submodule("1", &conv).unwrap();
    let paths: Vec<_> = net.modules().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["", "features", "features.0", "features.1"]);
    assert!(net.submodule("features.1").unwrap() == conv && net.submodule("").unwrap() == net);
    let error = net.submodule("features.2.conv").unwrap_err().to_string();
    assert!(error.contains("'features.2.conv'") && error.contains("no '2', only [0, 1]"), "{error}");
    assert_eq!(conv.type_of().unmangled_class_name().unwrap(), "Conv");
}

#[test]
fn clones_share_among_themselves_and_nothing_with_the_original() {
    let (net, twin) = (module("Net", TIMES_3), module("Twin", TIMES_3));
    net.register_submodule("a", &twin).unwrap();
    net.register_submodule("b", &twin.copy_instance().unwrap()).unwrap();
    net.register_buffer("scale", tensor(&[2.0])).unwrap();
    let clone = net.deep_clone().unwrap();
    let class = |module: &Module, path: &str| module.submodule(path).unwrap().type_of().id();
    assert_eq!(class(&net, "a"), class(&net, "b"));
    assert_eq!(class(&clone, "a"), class(&clone, "b"), "shared classes stay shared");
    assert_ne!(class(&net, "a"), class(&clone, "a"));
    let graph = clone.graph("forward").unwrap();
    graph.block().return_node().replace_input(0, graph.inputs()[1]).unwrap();
    assert_eq!((run(&net, &[1.0]), run(&clone, &[1.0])), (vec![3.0], vec![1.0]));
    clone.set_attribute("scale", &tensor(&[5.0]).into()).unwrap();
    assert_eq!(floats(&net.attribute("scale").unwrap()), [2.0]);

    let copy = net.copy_instance().unwrap();
    assert!(copy.type_of() == net.type_of() && copy != net && net.clone() == net);
}

#[test]
fn an_attribute_given_to_one_module_of_a_class_is_there_in_the_others() {
    let first = module("Net", TIMES_3);
    let second = first.copy_instance().unwrap();
    let outer = module("Outer", TIMES_3);
    outer.register_submodule("inner", &second).unwrap();
    for i in 0..20 {
        first.register_buffer(&format!("late{i}"), tensor(&[1.0])).unwrap();
    }
    assert!(second.has_attribute("late19"), "the class has it");
    assert!(matches!(second.attribute("late19").unwrap(), IValue::None), "and the module no value yet");
    assert!(matches!(outer.submodule("inner").unwrap().attribute("late7").unwrap(), IValue::None));
    assert_eq!((run(&second, &[1.0]), run(&outer, &[1.0])), (vec![3.0], vec![3.0]));
    assert_eq!(outer.deep_clone().unwrap().modules().len(), 2);
    let third = second.copy_instance().unwrap();
    assert_eq!(third.attributes().len(), first.attributes().len());
    first.define("def read(self) -> Tensor:\n    return self.late3").unwrap();
    assert_eq!(floats(&first.call::<IValue>("read", &[]).unwrap()), [1.0]);
}

#[test]
fn methods_are_defined_copied_made_from_graphs_and_removed() {
    let net = module("Net", TIMES_3);
    net.clone_method("forward", "thrice").unwrap();
    let graph = net.graph("forward").unwrap();
    net.create_method("again", &graph).unwrap();
    graph.block().return_node().replace_input(0, graph.inputs()[1]).unwrap();
    drop(graph);
    assert_eq!(run(&net, &[1.0]), [1.0]);
    for method in ["thrice", "again"] {
        assert_eq!(floats(&net.call(method, &[tensor(&[1.0])]).unwrap()), [3.0], "a copy");
    }
    assert_eq!(net.method_names(), ["forward", "thrice", "again"]);
    let schema = net.schema("thrice").unwrap();
    let arguments: Vec<_> = schema.arguments.iter().map(|a| (a.name.as_str(), a.type_name.as_str())).collect();
    assert_eq!(arguments[1], ("x", "Tensor"));
    assert_eq!(schema.returns[0].type_name, "Tensor");
    net.remove_method("again").unwrap();
    assert!(!net.has_method("again") && net.remove_method("again").is_err());
    let error =
        net.define("def broken(self, x: Tensor) -> Tensor:\n    return torch.nonsense(x)").unwrap_err().to_string();
    assert!(error.contains("torch.nonsense") && error.contains("line 2"), "{error}");
    assert!(net.call("missing", &[tensor(&[1.0])]).unwrap_err().to_string().contains("it has forward, thrice"));
    assert!(net.create_method("forward", &Graph::new()).is_err());
}

#[test]
fn a_changed_graph_counts_from_the_next_clone_on() {
    let net = module("Net", TIMES_3);
    assert_eq!(run(&net, &[1.0]), [3.0]);
    let graph = net.graph("forward").unwrap();
    graph.block().return_node().replace_input(0, graph.inputs()[1]).unwrap();
    drop(graph);
    assert_eq!(run(&net, &[1.0]), [3.0], "libtorch has compiled it");
    assert_eq!(run(&net.deep_clone().unwrap(), &[1.0]), [1.0]);
    assert_eq!(run(&Module::load_bytes(&net.save_bytes().unwrap()).unwrap(), &[1.0]), [1.0]);
}

#[test]
fn calls_take_and_return_what_torchscript_has() {
    let net = module(
        "Net",
        "def forward(self, pair: Tuple[Tensor, int], more: List[Tensor], named: Dict[str, Tensor]) -> Dict[str, List[Tensor]]:
    return {\"first\": [pair[0] * pair[1]], \"rest\": [more[0] + named[\"k\"], more[1]]}",
    );
    let arguments = [
        IValue::Tuple(vec![tensor(&[1.0]).into(), 3.into()]),
        IValue::tensor_list([tensor(&[10.0]), tensor(&[20.0])]),
        IValue::Dict { key: "str".into(), value: "Tensor".into(), items: vec![("k".into(), tensor(&[5.0]).into())] },
    ];
    let result = net.forward(&arguments).unwrap();
    let values: Vec<_> = result.tensors().into_iter().map(|t| t.to_vec::<f32>().unwrap()[0]).collect();
    assert_eq!(values, [3.0, 15.0, 20.0]);
    let IValue::Dict { key, value, items } = &result else { panic!("a dictionary") };
    assert_eq!((key.as_str(), value.as_str(), items[1].0.as_str()), ("str", "List[Tensor]", Some("rest")));
    let error = net.forward(&[tensor(&[1.0])]).unwrap_err().to_string();
    assert!(error.contains("pair"), "which argument: {error}");
    let error =
        module("Bad", "def forward(self, x: Tensor) -> Tensor:\n    return x.view([7])").forward(&[tensor(&[1.0])]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("x.view") && error.contains("shape '[7]'"), "place and reason: {error}");
}

#[test]
fn odd_modules_and_tensors_are_no_reason_to_abort() {
    let odd = Module::new("Odd").unwrap();
    if odd.has_attribute("training") {
        odd.remove_attribute("training").unwrap();
    }
    odd.register_attribute("training", &Type::parse("int").unwrap(), &1.into()).unwrap();
    assert!(!odd.is_training());
    assert!(odd.train(false).is_err());
    let sparse = module("Sparse", "def forward(self, x: Tensor) -> Tensor:\n    return x.to_sparse()");
    let sparse: Tensor = sparse.forward(&[tensor(&[0.0, 1.0])]).unwrap().try_into().unwrap();
    assert_eq!((sparse.nbytes(), sparse.shape(), sparse.is_cpu()), (0, vec![2], true));
    let nested = module(
        "Nested",
        "def forward(self, x: List[Tensor]) -> Tensor:\n    return ops.aten._nested_tensor_from_tensor_list(x)",
    );
    let nested = nested.forward(&[IValue::tensor_list([tensor(&[1.0]), tensor(&[1.0, 2.0])])]).unwrap();
    let nested = nested.as_tensor().unwrap();
    assert_eq!((nested.nbytes(), nested.shape(), nested.dtype()), (0, vec![], Some(DType::F32)));
    assert_eq!(nested.to_vec::<f32>().unwrap(), [1.0, 1.0, 2.0]);
    assert!(Tensor::from_bytes(DType::F32, &[2], &[0; 4]).unwrap_err().to_string().contains("8 bytes"));
    assert!(Tensor::from_bytes(DType::F32, &[-1], &[]).is_err() && Tensor::from_bytes(DType::QI8, &[1], &[0]).is_err());
    assert!(Module::new("").is_err() || Module::new("").unwrap().save_bytes().is_ok());
}

#[test]
fn freezing_and_training() {
    let net = module("Net", TIMES_3);
    net.register_attribute("training", &Type::parse("bool").unwrap(), &true.into()).unwrap();
    assert!(net.is_training() && net.freeze(&[], true).is_err());
    net.train(false).unwrap();
    let frozen = net.freeze(&[], true).unwrap();
    assert_eq!((net.is_training(), run(&frozen, &[2.0])), (false, vec![6.0]));
}

#[test]
fn a_graph_keeps_the_code_that_it_calls_alive() {
    let graph = {
        let module = Module::load(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/calls.pt")).unwrap();
        module.graph("forward").unwrap()
    };
    let calls: Vec<_> = graph.all_nodes().into_iter().filter(|node| node.kind().starts_with("prim::Call")).collect();
    assert_eq!(calls.len(), 3);
    let functions: Vec<_> = calls.iter().filter_map(|call| call.inputs()[0].function_name()).collect();
    assert_eq!(functions, ["relu"]);
    for call in &calls {
        assert!(call.called_graph().unwrap().nodes().count() > 0);
    }
    let copy = graph.deep_clone().unwrap();
    let other = Graph::parse("graph(%self : Tensor, %x : Tensor):\n  return (%x)").unwrap();
    let end = other.block().return_node();
    let refusal = end.insert_graph(&graph, &other.inputs()).unwrap_err().to_string();
    assert!(refusal.contains("Inline"), "{refusal}");
    let net = module("Net", TIMES_3);
    assert!(net.create_method("borrowed", &graph).unwrap_err().to_string().contains("Inline"));
    drop(graph);
    let called = copy.all_nodes().into_iter().find_map(|node| node.called_graph().ok()).unwrap();
    drop(copy);
    assert!(!called.to_string().is_empty());
}

#[test]
fn a_class_whose_module_is_gone_says_so() {
    let ty = module("Net", TIMES_3).type_of();
    assert!(ty.method_names().is_empty());
    assert!(ty.method_graph("forward").unwrap_err().to_string().contains("is gone"));
    assert!(ty.is_subtype_of(&ty) && ty.is_module());
    let kept = module("Net", TIMES_3);
    assert_eq!((kept.type_of().method_names(), kept.type_of().is_subtype_of(&ty)), (vec!["forward".to_owned()], false));
    let graph = kept.type_of().method_graph("forward").unwrap();
    drop(kept);
    assert_eq!(graph.inputs()[0].type_of().method_names(), ["forward"]);
}

#[test]
fn files_carry_extra_files_and_replace_old_ones_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pt");
    let net = module("Net", TIMES_3);
    let note = ExtraFile { name: "note.bin".into(), content: vec![0, 255, 10] };
    net.save_with(&path, std::slice::from_ref(&note)).unwrap();
    assert_eq!(Module::extra_files(&path).unwrap(), [note]);
    net.save(&path).unwrap();
    assert!(Module::extra_files(&path).unwrap().is_empty(), "written anew");
    let missing = folder.path().join("no/such/folder/net.pt");
    assert!(net.save(&missing).unwrap_err().to_string().contains("no/such/folder/net.pt"));
    assert!(net.save(folder.path()).unwrap_err().to_string().contains("is a folder"));
    assert_eq!(files_in(folder.path()), ["net.pt"]);
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const TARGET: &str = "JITQUANT_TEST_SAVE_TO";

#[test]
#[ignore = "run by a_full_disk_leaves_the_old_file, in a process that may not write large files"]
fn save_where_there_is_no_room() {
    let path = std::env::var(TARGET).expect("set by a_full_disk_leaves_the_old_file");
    let net = module("Net", TIMES_3);
    net.register_buffer("large", tensor(&vec![1.0; 1 << 18])).unwrap();
    let error = net.save(&path).unwrap_err().to_string();
    assert!(error.contains(&path) && error.contains("could not be written: File too large"), "{error}");
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pt");
    module("Old", TIMES_3).save(&path).unwrap();
    let old = std::fs::read(&path).unwrap();
    // A limit on the size of files stands for the disk: writing past it fails as it does without room. Nothing at all
    // can be written with the first one, with the second the failure comes in the middle.
    for limit in ["0", "100"] {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" --ignored --exact save_where_there_is_no_room"))
            .arg(std::env::current_exe().unwrap())
            .env(TARGET, &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), old, "the old file is as it was");
        assert_eq!(files_in(folder.path()), ["net.pt"], "nothing is left beside it");
    }
}

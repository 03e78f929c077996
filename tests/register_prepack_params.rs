//! `register_prepack_params` against libtorch's `RegisterPrePackParams`, and where ours differs on purpose.

#![cfg(feature = "torch")]

use std::collections::BTreeSet;

use jitquant::ir::{DType, IValue, Module, Tensor};
use jitquant::pass::register_prepack_params;

/// A tensor of values in [-1, 1) that follow from the shape alone.
fn tensor(shape: &[i64]) -> Tensor {
    let len: i64 = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i * 37 + len) % 101) as f32 / 50.5 - 1.0).collect();
    Tensor::from_slice(&values, shape).unwrap()
}

/// A module with parameters of these shapes and these methods.
fn module(parameters: &[(&str, &[i64])], source: &str) -> Module {
    let module = Module::new("Net").unwrap();
    for (name, shape) in parameters {
        module.register_parameter(name, tensor(shape)).unwrap();
    }
    if !source.is_empty() {
        module.define(source).unwrap_or_else(|e| panic!("{source}\n{e}"));
    }
    module
}

/// Lines of `def forward(self, x: Tensor) -> Tensor`.
fn forward(lines: &[&str]) -> String {
    format!("def forward(self, x: Tensor) -> Tensor:\n    {}\n", lines.join("\n    "))
}

/// `packed = …` of an attribute of `self`, quantized per tensor.
fn packed(name: &str, attribute: &str, prepack: &str) -> String {
    format!("{name} = ops.quantized.{}", prepack.replace("W", &quantized(attribute)))
}

fn quantized(attribute: &str) -> String {
    format!("torch.quantize_per_tensor(self.{attribute}, 0.01, 0, 12)")
}

const LINEAR: &str = "linear_prepack(W, None)";

struct Case {
    name: &'static str,
    module: Module,
    input: Tensor,
    method: &'static str,
    prefix: &'static str,
    /// What is empty after a run: paths of attributes.
    released: &'static [&'static str],
}

impl Case {
    fn new(name: &'static str, module: Module, input: &[i64], released: &'static [&'static str]) -> Self {
        Self { name, module, input: tensor(input), method: "forward", prefix: "_jit", released }
    }

    fn one_layer(name: &'static str, weight: &[i64], bias: i64, prepack: &str, run: &str, input: &[i64]) -> Self {
        let source = forward(&[&packed("p", "weight", prepack), &format!("return ops.quantized.{run}(x, p, False)")]);
        Self::new(name, module(&[("weight", weight), ("bias", &[bias])], &source), input, &["weight"])
    }
}

/// A child at `path` below a module with these methods; the child has a parameter `weight` of 3 x 4 elements.
fn nested(path: &[&str], source: &str) -> Module {
    let mut inner = module(&[("weight", &[3, 4])], "");
    for name in path.iter().skip(1).rev() {
        let outer = module(&[], "");
        outer.register_submodule(name, &inner).unwrap();
        inner = outer;
    }
    let outer = module(&[("weight", &[4, 4])], "");
    outer.register_submodule(path[0], &inner).unwrap();
    outer.define(source).unwrap_or_else(|e| panic!("{source}\n{e}"));
    outer
}

fn cases() -> Vec<Case> {
    let conv = |strides: &str| format!("(W, self.bias, {strides}, 1)");
    let mut cases = vec![
        Case::one_layer("linear", &[3, 4], 3, "linear_prepack(W, self.bias)", "linear_dynamic", &[2, 4]),
        Case::one_layer(
            "conv1d",
            &[4, 2, 3],
            4,
            &format!("conv1d_prepack{}", conv("[1], [1], [1]")),
            "conv1d_dynamic",
            &[1, 2, 8],
        ),
        Case::one_layer(
            "conv2d",
            &[4, 2, 3, 3],
            4,
            &format!("conv2d_prepack{}", conv("[2, 1], [1, 0], [1, 1]")),
            "conv2d_dynamic",
            &[2, 2, 7, 7],
        ),
        Case::one_layer(
            "conv3d",
            &[4, 2, 3, 3, 3],
            4,
            &format!("conv3d_prepack{}", conv("[1, 1, 1], [1, 1, 1], [1, 1, 1]")),
            "conv3d_dynamic",
            &[1, 2, 4, 4, 4],
        ),
        Case::one_layer(
            "conv_transpose1d",
            &[2, 4, 3],
            4,
            &format!("conv_transpose1d_prepack{}", conv("[1], [0], [0], [1]")),
            "conv_transpose1d_dynamic",
            &[1, 2, 6],
        ),
        Case::one_layer(
            "conv_transpose2d",
            &[2, 4, 3, 3],
            4,
            &format!("conv_transpose2d_prepack{}", conv("[1, 1], [0, 0], [0, 0], [1, 1]")),
            "conv_transpose2d_dynamic",
            &[1, 2, 5, 5],
        ),
    ];

    let per_channel = module(&[("weight", &[3, 4]), ("scales", &[3])], "");
    per_channel.set_attribute("scales", &Tensor::from_slice(&[0.01f32, 0.02, 0.015], &[3]).unwrap().into()).unwrap();
    per_channel.register_buffer("zeros", Tensor::from_slice(&[0i64; 3], &[3]).unwrap()).unwrap();
    per_channel
        .define(&forward(&[
            "w = torch.quantize_per_channel(self.weight, self.scales, self.zeros, 0, 12)",
            "p = ops.quantized.linear_prepack(w, None)",
            "return ops.quantized.linear_dynamic(x, p, False)",
        ]))
        .unwrap();
    cases.push(Case::new("per channel", per_channel, &[2, 4], &["weight"]));

    let run = |packed: &str| format!("ops.quantized.linear_dynamic(x, {packed}, False)");
    let two = forward(&[
        &packed("p", "first", LINEAR),
        &format!("x = torch.relu({})", run("p")),
        &packed("q", "second", LINEAR),
        &format!("return {}", run("q")),
    ]);
    let shapes: &[(&str, &[i64])] = &[("first", &[5, 4]), ("second", &[3, 5])];
    cases.push(Case::new("two layers", module(shapes, &two), &[2, 4], &["first", "second"]));

    let packed_first = forward(&[
        &packed("p", "first", LINEAR),
        &packed("q", "second", LINEAR),
        &format!("x = {}", run("p")),
        &format!("return {}", run("q")),
    ]);
    cases.push(Case::new("packed one after the other", module(shapes, &packed_first), &[2, 4], &["first", "second"]));

    let clash = module(shapes, &two);
    for taken in ["_jit_forward_ondevice_ptq_packed_weight_0", "_jit_forward_ondevice_ptq_packed_weight__1"] {
        clash.register_attribute(taken, &jitquant::ir::Type::parse("int").unwrap(), &7.into()).unwrap();
    }
    cases.push(Case::new("names that exist already", clash, &[2, 4], &["first", "second"]));

    let prefixed = Case { prefix: "acme", ..Case::new("another prefix", module(shapes, &two), &[2, 4], &["first"]) };
    cases.push(prefixed);
    let no_prefix = Case { prefix: "", ..Case::new("an empty prefix", module(shapes, &two), &[2, 4], &["second"]) };
    cases.push(no_prefix);
    let renamed = module(shapes, &two.replace("forward", "quantize_forward"));
    cases.push(Case { method: "quantize_forward", ..Case::new("another method", renamed, &[2, 4], &["first"]) });

    let branches = forward(&[
        &packed("p", "outer", LINEAR),
        &format!("x = {}", run("p")),
        "if bool(x.sum() > 1000.0):",
        &format!("    {}", packed("q", "yes", LINEAR)),
        &format!("    y = {}", run("q")),
        "else:",
        &format!("    {}", packed("r", "no", LINEAR)),
        &format!("    y = torch.relu({})", run("r")),
        &packed("s", "last", LINEAR),
        &format!("return {}", run("s").replace('x', "y")),
    ]);
    let shapes: &[(&str, &[i64])] = &[("outer", &[5, 4]), ("yes", &[3, 5]), ("no", &[3, 5]), ("last", &[2, 3])];
    cases.push(Case::new("branches", module(shapes, &branches), &[2, 4], &["outer", "no", "last"]));

    let deep = forward(&[
        "y = x",
        "if bool(x.sum() > -1000.0):",
        "    if x.size(0) == 2:",
        &format!("        {}", packed("p", "weight", LINEAR)),
        &format!("        y = {}", run("p")),
        "    else:",
        "        y = torch.relu(x)",
        "return y",
    ]);
    cases.push(Case::new("a branch in a branch", module(&[("weight", &[3, 4])], &deep), &[2, 4], &["weight"]));

    let used_within = forward(&[
        &packed("p", "weight", LINEAR),
        "y = x",
        "if bool(x.sum() > -1000.0):",
        &format!("    y = {}", run("p")),
        "return y",
    ]);
    cases.push(Case::new("used in a branch", module(&[("weight", &[3, 4])], &used_within), &[2, 4], &["weight"]));

    let exclusive = forward(&[
        "if bool(x.sum() > 1000.0):",
        &format!("    {}", packed("p", "weight", LINEAR)),
        &format!("    y = {}", run("p")),
        "else:",
        &format!("    {}", packed("q", "weight", LINEAR)),
        &format!("    y = torch.relu({})", run("q")),
        "return y",
    ]);
    cases.push(Case::new("one weight, two branches", module(&[("weight", &[3, 4])], &exclusive), &[2, 4], &["weight"]));

    let child = forward(&[
        &packed("p", "weight", LINEAR),
        &format!("x = {}", run("p")),
        &packed("q", "fc.weight", LINEAR),
        &format!("return {}", run("q")),
    ]);
    cases.push(Case::new("a submodule's weight", nested(&["fc"], &child), &[2, 4], &["weight", "fc.weight"]));
    let deeper = forward(&[&packed("q", "a.b.c.weight", LINEAR), &format!("return {}", run("q"))]);
    cases.push(Case::new("a weight three modules down", nested(&["a", "b", "c"], &deeper), &[2, 4], &["a.b.c.weight"]));

    let packed_in_loop = forward(&[
        &format!("w = {}", quantized("weight")),
        "for i in range(2):",
        "    p = ops.quantized.linear_prepack(w, None)",
        &format!("    x = {}", run("p")),
        "return x",
    ]);
    cases.push(Case::new(
        "packed in a loop, read before it",
        module(&[("weight", &[4, 4])], &packed_in_loop),
        &[2, 4],
        &["weight"],
    ));

    let none = module(&[("weight", &[3, 4])], &forward(&["return torch.relu(x @ self.weight.t())"]));
    cases.push(Case::new("nothing to pack", none, &[2, 4], &[]));
    cases
}

const KINDS: [&str; 7] = [
    "quantized::linear_prepack",
    "quantized::conv1d_prepack",
    "quantized::conv2d_prepack",
    "quantized::conv3d_prepack",
    "quantized::conv_transpose1d_prepack",
    "quantized::conv_transpose2d_prepack",
    "quantized::conv_transpose3d_prepack",
];

fn ours(module: &Module, method: &str, kinds: &[&str], prefix: &str) -> jitquant::Result<Vec<String>> {
    let names = register_prepack_params(module, method, |node| kinds.contains(&node.kind()), prefix)?;
    Ok(names.into_iter().collect())
}

fn theirs(module: &Module, method: &str, kinds: &[&str], prefix: &str) -> Result<(Module, Vec<String>), String> {
    let kinds: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
    let bytes = module.save_bytes().unwrap();
    let result = jitquant_oracle::register_prepack_params(&bytes, method, &kinds, prefix).map_err(|e| e.to_string())?;
    Ok((Module::load_bytes(&result.module).unwrap(), result.names))
}

fn reloaded(module: &Module) -> Module {
    Module::load_bytes(&module.save_bytes().unwrap()).unwrap()
}

/// Printed text without the `___torch_mangle_N.` that tells classes of one name apart.
fn demangled(text: &str) -> String {
    let mut parts = text.split("___torch_mangle_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once('.').map_or(part, |(_, rest)| rest));
    }
    out
}

fn graph_text(module: &Module, method: &str) -> String {
    demangled(&module.graph(method).unwrap().to_string())
}

/// All attributes of all modules: name, declaration, and value in words.
fn attributes(module: &Module) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for (path, module) in module.modules() {
        for attribute in module.attributes() {
            let value = match module.attribute(&attribute.name).unwrap() {
                IValue::Tensor(tensor) if !tensor.is_quantized() && tensor.dtype() == Some(DType::F32) => {
                    format!("{:?} {:?}", tensor.shape(), tensor.to_vec::<f32>().unwrap())
                }
                IValue::Module(_) => "a module".into(),
                other => format!("{other:?}"),
            };
            all.push((format!("{path}.{}", attribute.name), demangled(&format!("{attribute:?}")), value));
        }
    }
    all
}

fn run(module: &Module, method: &str, input: &Tensor) -> Vec<f32> {
    let output = module.call(method, std::slice::from_ref(input)).unwrap();
    output.as_tensor().unwrap().to_vec().unwrap()
}

fn tensor_at(module: &Module, path: &str) -> Tensor {
    let (owner, name) = path.rsplit_once('.').unwrap_or(("", path));
    module.submodule(owner).unwrap().attribute(name).unwrap().try_into().unwrap()
}

#[test]
fn same_names_graphs_attributes_and_outputs_as_libtorch() {
    for Case { name, module, input, method, prefix, released } in cases() {
        let float = reloaded(&module);
        let expected = run(&float, method, &input);
        let (their_module, their_names) = theirs(&module, method, &KINDS, prefix).unwrap();
        let our_module = reloaded(&module);
        let our_names = ours(&our_module, method, &KINDS, prefix).unwrap();
        assert_eq!(our_names, their_names, "{name}");
        let ours_from_file = reloaded(&our_module);
        assert_eq!(graph_text(&ours_from_file, method), graph_text(&their_module, method), "{name}");
        assert_eq!(attributes(&ours_from_file), attributes(&their_module), "{name}");
        let mut graph = our_module.graph(method).unwrap();
        graph.lint().unwrap();
        drop(graph);

        for module in [&our_module, &ours_from_file, &their_module] {
            assert_eq!(run(module, method, &input), expected, "{name}");
            for path in released {
                assert_eq!(tensor_at(module, path).shape(), [0], "{name}: {path} is released");
            }
        }
        assert_eq!(attributes(&our_module), attributes(&their_module), "{name}, after a run");
        let stored = our_names.iter().filter(|name| name.contains("packed_weight"));
        let filled = stored.filter(|name| matches!(our_module.attribute(name), Ok(IValue::Other(_)))).count();
        assert_eq!(filled > 0, !released.is_empty(), "{name}: packed weights are there after a run");
    }
}

#[test]
fn the_filter_decides() {
    let shapes: &[(&str, &[i64])] = &[("linear", &[3, 4]), ("conv", &[2, 1, 3])];
    let source = forward(&[
        &packed("p", "linear", LINEAR),
        "x = ops.quantized.linear_dynamic(x, p, False)",
        &packed("q", "conv", "conv1d_prepack(W, None, [1], [1], [1], 1)"),
        "return ops.quantized.conv1d_dynamic(x.unsqueeze(1), q, False)",
    ]);
    let kinds = ["quantized::conv1d_prepack"];
    let net = module(shapes, &source);
    let (their_module, their_names) = theirs(&net, "forward", &kinds, "p").unwrap();
    assert_eq!(ours(&net, "forward", &kinds, "p").unwrap(), their_names);
    assert_eq!(graph_text(&reloaded(&net), "forward"), graph_text(&their_module, "forward"));
    run(&net, "forward", &tensor(&[2, 4]));
    assert_eq!(tensor_at(&net, "linear").shape(), [3, 4], "not taken, not released");
    assert_eq!(tensor_at(&net, "conv").shape(), [0]);
    let no_names = register_prepack_params(&net, "forward", |_| false, "p").unwrap();
    assert_eq!(no_names, BTreeSet::new());
}

/// Runs the pass, which has to refuse, and checks that graph and attributes are as before.
fn refusal(module: &Module, kinds: &[&str]) -> String {
    let before = (graph_text(module, "forward"), attributes(module));
    let error = ours(module, "forward", kinds, "_jit").unwrap_err().to_string();
    assert_eq!((graph_text(module, "forward"), attributes(module)), before, "untouched after: {error}");
    assert!(error.contains("'forward'"), "{error}");
    error
}

#[test]
fn a_packed_weight_with_two_users_is_refused() {
    let shapes: &[(&str, &[i64])] = &[("first", &[4, 4]), ("second", &[4, 4])];
    let net = module(
        shapes,
        &forward(&[
            &packed("p", "first", LINEAR),
            "x = ops.quantized.linear_dynamic(x, p, False)",
            &packed("q", "second", LINEAR),
            "x = ops.quantized.linear_dynamic(x, q, False)",
            "return ops.quantized.linear_dynamic(x, q, False)",
        ]),
    );
    let error = refusal(&net, &KINDS);
    assert!(error.contains("2 places, by 'quantized::linear_dynamic'") && error.contains(":4"), "{error}");
    assert!(theirs(&net, "forward", &KINDS, "_jit").unwrap_err().contains("exactly one op"));
}

#[test]
fn a_packed_weight_without_users_is_refused() {
    let lines = [&packed("p", "weight", LINEAR), "return ops.quantized.linear_dynamic(x, p, False)"];
    let net = module(&[("weight", &[3, 4])], &forward(&lines));
    let graph = net.graph("forward").unwrap();
    let linear = graph.outputs()[0].node();
    graph.block().return_node().replace_input(0, graph.inputs()[1]).unwrap();
    linear.destroy().unwrap();
    assert!(refusal(&net, &KINDS).contains("nothing uses the weight"));
}

#[test]
fn a_weight_that_is_no_attribute_is_refused() {
    // libtorch's pass follows a null pointer here, so it is not asked.
    let source = |weight: &str| {
        forward(&[
            &packed("p", "weight", LINEAR),
            "x = ops.quantized.linear_dynamic(x, p, False)",
            &format!("w = torch.quantize_per_tensor({weight}, 0.01, 0, 12)"),
            "q = ops.quantized.linear_prepack(w, None)",
            "return ops.quantized.linear_dynamic(x, q, False)",
        ])
    };
    let computed = module(&[("weight", &[4, 4])], &source("self.weight * 2.0"));
    let error = refusal(&computed, &KINDS);
    assert!(error.contains("not an attribute") && error.contains("'aten::mul'"), "{error}");
    let argument = module(&[("weight", &[4, 4])], &source("x"));
    assert!(refusal(&argument, &KINDS).contains("not an attribute"));
}

#[test]
fn what_is_not_a_quantized_weight_is_refused() {
    let net = module(
        &[("weight", &[3, 4])],
        &forward(&[
            "p = ops.quantized.linear_prepack(self.weight, None)",
            "return ops.quantized.linear_dynamic(x, p, False)",
        ]),
    );
    assert!(refusal(&net, &KINDS).contains("was not quantized by aten::quantize_per_tensor"));
    assert!(theirs(&net, "forward", &KINDS, "_jit").unwrap_err().contains("output of weight quantization"));
    assert!(refusal(&net, &["quantized::linear_dynamic"]).contains("packs no weight"));

    let split = module(&[], &forward(&["a, b = torch.max(x, 1)", "return a"]));
    assert!(refusal(&split, &["aten::max"]).contains("2 outputs"));
    assert!(theirs(&split, "forward", &["aten::max"], "_jit").unwrap_err().contains("single output"));
    let missing = ours(&split, "run", &KINDS, "").unwrap_err().to_string();
    assert!(missing.contains("'run'") && missing.contains("forward"), "{missing}");
}

/// Ours gives the output of the float weights' model, libtorch's has released a weight that was still to be read.
fn kept_while_needed(net: &Module) -> Module {
    let input = tensor(&[2, 4]);
    let expected = run(&reloaded(net), "forward", &input);
    let (their_module, their_names) = theirs(net, "forward", &KINDS, "_jit").unwrap();
    let our_module = reloaded(net);
    assert_eq!(ours(&our_module, "forward", &KINDS, "_jit").unwrap(), their_names);
    assert_eq!(run(&our_module, "forward", &input), expected);
    assert!(their_module.call("forward", &[input]).is_err());
    our_module
}

#[test]
fn a_shared_weight_is_kept_until_its_last_reader() {
    let twice = forward(&[
        &packed("p", "weight", LINEAR),
        "x = ops.quantized.linear_dynamic(x, p, False)",
        &packed("q", "weight", LINEAR),
        "return ops.quantized.linear_dynamic(x, q, False)",
    ]);
    let net = kept_while_needed(&module(&[("weight", &[4, 4])], &twice));
    assert_eq!(tensor_at(&net, "weight").shape(), [0], "released in the end");

    let fc = module(&[("weight", &[4, 4])], "");
    let shared = module(&[], "");
    shared.register_submodule("a", &fc).unwrap();
    shared.register_submodule("b", &fc).unwrap();
    shared
        .define(&twice.replacen("self.weight", "self.a.weight", 1).replacen("self.weight", "self.b.weight", 1))
        .unwrap();
    let net = kept_while_needed(&shared);
    assert_eq!(tensor_at(&net, "a.weight").shape(), [0], "released in the end");

    let float_too = forward(&[
        &packed("p", "weight", LINEAR),
        "x = ops.quantized.linear_dynamic(x, p, False)",
        "return x @ self.weight",
    ]);
    let net = kept_while_needed(&module(&[("weight", &[4, 4])], &float_too));
    assert_eq!(tensor_at(&net, "weight").shape(), [4, 4], "what packs it is not its last reader");
}

#[test]
fn a_weight_read_in_a_loop_is_kept() {
    let source = forward(&[
        "for i in range(3):",
        &format!("    {}", packed("p", "weight", LINEAR)),
        "    x = ops.quantized.linear_dynamic(x, p, False)",
        "return x",
    ]);
    let net = kept_while_needed(&module(&[("weight", &[4, 4])], &source));
    assert_eq!(tensor_at(&net, "weight").shape(), [4, 4]);
}

#[test]
fn three_dimensional_transposed_convolutions_are_taken_too() {
    let Case { module: net, input, .. } = Case::one_layer(
        "conv_transpose3d",
        &[2, 4, 3, 3, 3],
        4,
        "conv_transpose3d_prepack(W, self.bias, [1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1], 1)",
        "conv_transpose3d_dynamic",
        &[1, 2, 4, 4, 4],
    );
    let expected = run(&reloaded(&net), "forward", &input);
    assert!(theirs(&net, "forward", &KINDS, "_jit").is_err());
    ours(&net, "forward", &KINDS, "_jit").unwrap();
    assert_eq!(run(&net, "forward", &input), expected);
    assert_eq!(tensor_at(&net, "weight").shape(), [0]);
}

//! A whole model as a Program file, which `jitquant-runtime` runs without libtorch.

use std::collections::{BTreeMap, HashSet};

use jitquant_runtime::{Op, PlainWeight, Size, ValueId, View, WeightForm, WeightId, write_model};

use super::compile::{Compiler, Known};
use super::steps::{WeightKind, computation, is_size, views};
use crate::engine::conv_shape;
use crate::error::{Error, Result};
use crate::ir::{Element, FORWARD, GeneralPass, Graph, IValue, Module, Node, Operator, Value};
use crate::pass::{source_of, to_native};

/// The bytes of a Program file (`.jqp`) of a quantized model's `forward`: weights, steps, and the names, types and sizes of what it
/// takes and gives. Another form than the native one is made native first; the module stays as it is.
///
/// `like` are sizes of each input that the model is known to take, where they are at hand; without them some are tried.
///
/// # Errors
/// Where an operator has no step, an argument is no tensor, or a result is something else than tensors, or tuples, lists and
/// dictionaries of them: all of these are named with their lines.
pub fn export_program(module: &Module, like: Option<&[Vec<i64>]>) -> Result<Vec<u8>> {
    let native = to_native(module)?;
    if native.is_training() {
        native.train(false)?;
    }
    let frozen = native.freeze(&[], false)?;
    let mut graph = frozen.graph(FORWARD)?.deep_clone()?;
    graph.run(GeneralPass::Inline)?;
    graph.run(GeneralPass::ConstantPropagation)?;
    for check in graph.nodes().filter(|node| only_raises(*node)).collect::<Vec<_>>() {
        check.destroy()?;
    }
    graph.run(GeneralPass::DeadCodeElimination)?;
    let mut exporter = Exporter { module: &frozen, compiler: Compiler::default(), weights: Vec::new() };
    let inputs = exporter.inputs(&graph)?;
    exporter.steps(&graph)?;
    let (names, results) = exporter.results(&graph)?;
    let program = exporter.compiler.builder.finish(&results)?;
    Ok(write_model(&program, &exporter.weights, &inputs, &names, like)?)
}

struct Exporter<'m, 'g> {
    module: &'m Module,
    compiler: Compiler<'g>,
    weights: Vec<PlainWeight>,
}

impl<'g> Exporter<'_, 'g> {
    /// Declares the inputs; their names.
    fn inputs(&mut self, graph: &'g Graph) -> Result<Vec<String>> {
        let schema = self.module.schema(FORWARD)?;
        let mut names = Vec::new();
        for (value, argument) in graph.inputs().into_iter().zip(&schema.arguments).skip(1) {
            if !value.type_of().is_tensor() {
                let (name, kind) = (&argument.name, &argument.type_name);
                return Err(Error::invalid(format!(
                    "argument '{name}' is of type {kind}; a Program without libtorch takes tensors alone"
                )));
            }
            self.compiler.known.insert(value, Known::Tensor(self.compiler.builder.input()));
            names.push(argument.name.clone());
        }
        Ok(names)
    }

    /// Adds the steps of all nodes, or says which have none.
    fn steps(&mut self, graph: &'g Graph) -> Result<()> {
        let mut missing = Missing::default();
        let mut unknown = HashSet::new();
        for node in graph.nodes() {
            if is_free(node) {
                continue;
            }
            if let Some(id) = passed_on(node).and_then(|value| self.compiler.tensor(value).ok()) {
                node.output(0).map(|value| self.compiler.known.insert(value, Known::Tensor(id)));
                continue;
            }
            if let Some((value, view)) = constant_sizes(node)
                && let Ok(id) = self.compiler.tensor(value)
                && let Some(output) = node.output(0)
            {
                let id = self.compiler.builder.step(Op::View(view), &[id])?;
                self.compiler.known.insert(output, Known::Tensor(id));
                continue;
            }
            let follows = node.inputs().into_iter().any(|value| unknown.contains(&value.node()));
            let added = self.weight(node).and_then(|()| self.compiler.node(node));
            let Err(why) = added else { continue };
            // What takes the result of a node without a step has none for that reason alone, where it has one by its kind.
            if !follows || (computation(node).is_none() && views(node).is_none()) {
                missing.add(node, &why);
            }
            unknown.insert(node);
        }
        missing.refuse()
    }

    /// Keeps the weight that a node takes, once for all that take it.
    fn weight(&mut self, node: Node<'g>) -> Result<()> {
        let Some(Ok(step)) = computation(node) else { return Ok(()) };
        let Some((value, kind)) = step.weight else { return Ok(()) };
        if self.compiler.known.contains_key(&value) {
            return Ok(());
        }
        let content = match value.constant() {
            Some(content) => content,
            None => self.attribute(value)?,
        };
        let plain = match kind {
            WeightKind::Conv => plain_conv(&content)?,
            WeightKind::Linear => plain_linear(&content)?,
        };
        let id: WeightId = self.compiler.builder.weight();
        self.compiler.known.insert(value, Known::Weight(id));
        self.weights.push(plain);
        Ok(())
    }

    fn attribute(&self, value: Value<'g>) -> Result<IValue> {
        let path = value.attribute_path().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| Error::invalid("a weight that is computed when the model runs"))?;
        let (name, modules) = path.split_last().ok_or_else(|| Error::invalid("a weight without a name"))?;
        self.module.submodule(&modules.join("."))?.attribute(name)
    }

    /// The values that the model gives, and their names.
    fn results(&self, graph: &'g Graph) -> Result<(Vec<String>, Vec<ValueId>)> {
        let mut found = (Vec::new(), Vec::new());
        for value in graph.outputs() {
            self.result(value, "output".to_owned(), &mut found)?;
        }
        Ok(found)
    }

    fn result(&self, value: Value<'g>, name: String, found: &mut (Vec<String>, Vec<ValueId>)) -> Result<()> {
        let node = value.node();
        match node.kind() {
            "prim::TupleConstruct" | "prim::ListConstruct" => node
                .inputs()
                .into_iter()
                .enumerate()
                .try_for_each(|(index, item)| self.result(item, format!("{name}.{index}"), found)),
            "prim::DictConstruct" => node.inputs().chunks_exact(2).try_for_each(|entry| {
                let key = entry[0].constant().and_then(|key| key.as_str().map(str::to_owned));
                let key = key.ok_or_else(|| Error::invalid("a dictionary whose keys are no constant texts"))?;
                self.result(entry[1], format!("{name}.{key}"), found)
            }),
            _ => {
                let id = self.compiler.tensor(value).map_err(|_| {
                    let kind = value.type_of().kind();
                    Error::invalid(format!(
                        "result '{name}' of type {kind}; tensors, and tuples, lists and dictionaries of \
                                            them are accepted"
                    ))
                })?;
                found.0.push(name);
                found.1.push(id);
                Ok(())
            }
        }
    }
}

/// Whether a node makes nothing that a step computes: a constant, an attribute, a size or a collection of values.
fn is_free(node: Node<'_>) -> bool {
    let kinds =
        ["prim::Constant", "prim::GetAttr", "prim::TupleConstruct", "prim::ListConstruct", "prim::DictConstruct"];
    kinds.contains(&node.kind()) || is_size(node)
}

/// The tensor that a node hands on as it is: dropout outside of training, what means something to autograd alone.
fn passed_on<'g>(node: Node<'g>) -> Option<Value<'g>> {
    match (node.kind(), &node.inputs()[..]) {
        ("aten::dropout" | "aten::feature_dropout" | "aten::alpha_dropout", [x, _, train]) => {
            matches!(train.constant(), Some(IValue::Bool(false))).then_some(*x)
        }
        ("aten::detach", [x]) => Some(*x),
        _ => None,
    }
}

/// Whether a node is a check of the model's that gives nothing and can do nothing but raise.
fn only_raises(node: Node<'_>) -> bool {
    let raises = |node: Node<'_>| matches!(node.kind(), "prim::Constant" | "prim::RaiseException" | "aten::format");
    let mut blocks = node.blocks().into_iter();
    node.kind() == "prim::If" && node.outputs().is_empty() && blocks.all(|block| block.nodes().all(raises))
}

/// A view to sizes that are a constant list, and of what.
fn constant_sizes<'g>(node: Node<'g>) -> Option<(Value<'g>, View)> {
    let known = |sizes: &Value<'g>| match sizes.constant() {
        Some(IValue::List { items, .. }) => items.iter().map(|size| size.as_int().map(Size::Known)).collect(),
        _ => None,
    };
    match (node.kind(), &node.inputs()[..]) {
        ("aten::reshape", [x, sizes]) => Some((*x, View::Reshape(known(sizes)?))),
        ("aten::view", [x, sizes]) => Some((*x, View::Reinterpret(known(sizes)?))),
        ("aten::expand", [x, sizes, _]) => Some((*x, View::Expand(known(sizes)?))),
        _ => None,
    }
}

/// Operators without a step.
#[derive(Default)]
struct Missing(BTreeMap<String, (usize, String, String)>);

impl Missing {
    fn add(&mut self, node: Node<'_>, why: &Error) {
        let new = || (0, source_of(node), why.to_string());
        self.0.entry(node.kind().to_owned()).or_insert_with(new).0 += 1;
    }

    fn refuse(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let line = |(kind, (count, source, why)): (&String, &(usize, String, String))| {
            let at = if source.is_empty() { String::new() } else { format!(", first at {source}") };
            format!("\n  {count} x {kind}{at}: {why}")
        };
        let lines: String = self.0.iter().map(line).collect();
        Err(Error::invalid(format!("the model needs libtorch: these operators have no step in a Program{lines}")))
    }
}

/// What `jitquant::conv_unpack` and `jitquant::linear_unpack` give first: values, scales, zero points and bias.
fn plain_parts(form: WeightForm, parts: &[IValue]) -> Result<PlainWeight> {
    fn read<T: Element>(parts: &[IValue], index: usize) -> Result<Vec<T>> {
        let tensor = parts.get(index).and_then(IValue::as_tensor);
        tensor.ok_or_else(|| Error::invalid("a weight of another version"))?.to_vec()
    }
    let bias = match parts.get(3) {
        Some(IValue::Tensor(bias)) if bias.is_defined() => bias.to_f32_vec()?,
        _ => Vec::new(),
    };
    Ok(PlainWeight { form, values: read(parts, 0)?, scales: read(parts, 1)?, zero_points: read(parts, 2)?, bias })
}

/// What a packed weight was made of.
fn unpacked(operator: &str, weight: &IValue) -> Result<Vec<IValue>> {
    Operator::find(operator, "")?.call(std::slice::from_ref(weight))
}

fn plain_linear(weight: &IValue) -> Result<PlainWeight> {
    let parts = unpacked("jitquant::linear_unpack", weight)?;
    let size = |axis: usize| parts[0].as_tensor().and_then(|tensor| usize::try_from(*tensor.shape().get(axis)?).ok());
    let (Some(n), Some(k)) = (size(0), size(1)) else {
        return Err(Error::invalid("a linear layer's weight of other sizes"));
    };
    plain_parts(WeightForm::Linear { n, k }, &parts)
}

fn plain_conv(weight: &IValue) -> Result<PlainWeight> {
    let wrong = || Error::invalid("a convolution's weight of another version");
    let parts = unpacked("jitquant::conv_unpack", weight)?;
    let [values, _, _, _, stride, padding, dilation, output_padding, groups, transposed] = &parts[..] else {
        return Err(wrong());
    };
    let ints = |value: &IValue| match value {
        IValue::List { items, .. } => items.iter().map(IValue::as_int).collect::<Option<Vec<_>>>().ok_or_else(wrong),
        _ => Err(wrong()),
    };
    let sizes = values.as_tensor().ok_or_else(wrong)?.shape();
    let dimensions = sizes.len().saturating_sub(2);
    let windows = [ints(stride)?, ints(padding)?, ints(dilation)?, ints(output_padding)?];
    let groups = groups.as_int().ok_or_else(wrong)?;
    let shape = conv_shape(&sizes, windows, groups, matches!(transposed, IValue::Bool(true)))?;
    plain_parts(WeightForm::Conv { shape, dimensions }, &parts)
}

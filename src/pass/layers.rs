//! What a model computes, layer by layer: for reports on what is quantized and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::op_table::Operator;
use super::prepare::{PRODUCT, path_of_weight};
use crate::error::Result;
use crate::ir::{DType, Graph, IValue, Module, Node, Value, join_path};

/// Operators with weights, or with as much arithmetic, that quantization is for, and their names in reports.
const LAYERS: &[(&str, &str)] = &[
    ("aten::conv1d", "conv1d"),
    ("aten::conv2d", "conv2d"),
    ("aten::conv3d", "conv3d"),
    ("aten::conv_transpose1d", "conv_transpose1d"),
    ("aten::conv_transpose2d", "conv_transpose2d"),
    ("aten::conv_transpose3d", "conv_transpose3d"),
    ("aten::_convolution", "convolution"),
    ("aten::_convolution_mode", "convolution"),
    ("aten::convolution", "convolution"),
    ("aten::linear", "linear"),
    ("aten::addmm", "linear"),
    ("aten::bilinear", "bilinear"),
    ("aten::einsum", "einsum"),
    ("aten::matmul", "matmul"),
    ("aten::mm", "matmul"),
    ("aten::bmm", "matmul"),
    ("aten::baddbmm", "matmul"),
    (PRODUCT, "matmul"),
    ("aten::scaled_dot_product_attention", "attention"),
    ("aten::_native_multi_head_attention", "attention_layer"),
    ("aten::_transformer_encoder_layer_fwd", "transformer_layer"),
    ("aten::lstm", "lstm"),
    ("aten::gru", "gru"),
    ("aten::rnn_tanh", "rnn"),
    ("aten::rnn_relu", "rnn"),
    ("aten::lstm_cell", "lstm_cell"),
    ("aten::gru_cell", "gru_cell"),
    ("aten::rnn_tanh_cell", "rnn_cell"),
    ("aten::rnn_relu_cell", "rnn_cell"),
    ("aten::embedding", "embedding"),
    ("aten::embedding_bag", "embedding_bag"),
];

/// A layer of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The path of the module whose code has it, e.g. `features.0.conv`.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: &'static str,
    /// Its place in the TorchScript source, e.g. `resnet.py:231`; empty where that is not recorded.
    pub source: String,
}

/// The report's name of an operator, where it is a layer.
pub fn layer_operator(node: Node<'_>) -> Option<&'static str> {
    let kind = node.kind();
    if kind == "prim::CallFunction" {
        let name = node.input(0)?.function_name()?;
        return LAYERS.iter().map(|(_, operator)| *operator).find(|operator| *operator == name);
    }
    let listed = LAYERS.iter().find(|(known, _)| *known == kind).map(|(_, operator)| *operator);
    let Some(operator) = listed else { return is_unlisted(node).then(|| name_of(kind)) };
    // matmul is a linear layer where its second operand is a weight, possibly transposed.
    let is_weight = |value: Value<'_>| matches!(value.node().kind(), "prim::GetAttr" | "prim::Constant" | "aten::t");
    if operator == "matmul" && node.input(1).is_some_and(is_weight) {
        return Some("linear");
    }
    Some(operator)
}

/// What the names of `aten` operators that multiply have in them.
const PRODUCTS: [&str; 12] =
    ["mm", "mv", "dot", "conv", "linear", "einsum", "rnn", "lstm", "gru", "attention", "transformer", "matmul"];

/// Whether an operator that this crate does not know is a layer: it takes a matrix, or a tensor of more dimensions, of
/// constant float numbers, and it multiplies (of other libraries' operators that is taken for granted).
pub(crate) fn is_unlisted(node: Node<'_>) -> bool {
    let kind = node.kind();
    let Some((library, name)) = kind.split_once("::") else { return false };
    let multiplies = match library {
        "prim" | "quantized" | "jitquant" | "_quantized" => false,
        "aten" => PRODUCTS.iter().any(|part| name.contains(part)) && !name.starts_with("quantized_"),
        _ => true,
    };
    let is_known = Operator::of(node).is_some() || LAYERS.iter().any(|(known, _)| *known == kind);
    let is_matrix = |value: Value<'_>| match value.constant() {
        Some(IValue::Tensor(tensor)) => {
            tensor.is_defined()
                && matches!(tensor.dtype(), Some(DType::F32 | DType::F64 | DType::F16 | DType::BF16))
                && tensor.shape().iter().filter(|size| **size > 1).count() > 1
        }
        _ => false,
    };
    multiplies
        && !is_known
        && node.inputs().into_iter().any(|input| match input.node().kind() {
            "prim::ListConstruct" => input.node().inputs().into_iter().any(is_matrix),
            _ => is_matrix(input),
        })
}

/// The name of an operator without its library, kept for good: there are few.
fn name_of(kind: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<BTreeSet<&'static str>>> = LazyLock::new(Mutex::default);
    let name = kind.rsplit("::").next().unwrap_or(kind);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name).copied() {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}

/// Where a node came from, in a few characters.
pub fn source_of(node: Node<'_>) -> String {
    match node.source_range() {
        Ok(range) if !range.file.is_empty() => {
            let file = range.file.rsplit('/').next().unwrap_or(&range.file);
            format!("{file}:{}", range.line)
        }
        _ => String::new(),
    }
}

/// The module that a node in the code of the one at `path` belongs to: in a flat graph the nodes tell.
fn place_of(node: Node<'_>, path: &str) -> String {
    match node.scope() {
        Ok(scope) if path.is_empty() && !scope.is_empty() => untagged(&scope).to_owned(),
        _ if path.is_empty() => path_of_weight(node).unwrap_or_default(),
        _ => path.to_owned(),
    }
}

/// Activations that belong to the layer before them: INT8 layers take them in.
const ACTIVATIONS: [&str; 7] =
    ["aten::relu", "aten::relu_", "aten::relu6", "aten::hardtanh", "aten::hardtanh_", "aten::clamp", "aten::clamp_min"];

/// Gives layer `number` of a flat graph, and an activation that takes its result alone, a path of its own: below the one
/// of its module, `conv1.<3>`. The passes keep it, so that INT8 operators tell their layer, and a configuration can be for
/// one layer. The paths given.
pub(crate) fn tag_layer(node: Node<'_>, number: usize) -> Result<Vec<String>> {
    let mut tagged = vec![node];
    if let Some(output) = node.output(0)
        && let [place] = output.uses()[..]
        && ACTIVATIONS.contains(&place.user.kind())
        && place.user.owning_block() == node.owning_block()
    {
        tagged.push(place.user);
    }
    let tag = |node: Node<'_>| {
        let path = join_path(&node.scope()?, &format!("<{number}>"));
        node.set_scope(&path)?;
        Ok(path)
    };
    tagged.into_iter().map(tag).collect()
}

/// The number that [`tag_layer`] gave the layer that `node` is of.
pub(crate) fn tag_of(node: Node<'_>) -> Option<usize> {
    node.scope().ok()?.rsplit('.').next()?.strip_prefix('<')?.strip_suffix('>')?.parse().ok()
}

/// A path without what [`tag_layer`] added.
fn untagged(scope: &str) -> &str {
    match scope.rfind('<') {
        Some(start) if scope.ends_with('>') => scope[..start].trim_end_matches('.'),
        _ => scope,
    }
}

/// The layer that `node`, in the code of the module at `path`, is.
pub(crate) fn layer_of(node: Node<'_>, path: &str) -> Option<Layer> {
    Some(Layer { operator: layer_operator(node)?, path: place_of(node, path), source: source_of(node) })
}

/// A place in a flat graph that a report names, though it is no layer: what is done there, and where.
pub(crate) fn place(node: Node<'_>, operator: &'static str) -> Layer {
    Layer { operator, path: place_of(node, ""), source: source_of(node) }
}

/// Whether a layer's weight is computed when the model runs: it would be packed at every run.
pub(crate) fn computes_weight(layer: Node<'_>) -> bool {
    let index = Operator::of(layer).and_then(|row| row.weight);
    let weight = index.and_then(|index| Operator::argument(layer, index));
    weight.is_some_and(|weight| !matches!(weight.node().kind(), "prim::GetAttr" | "prim::Constant"))
}

/// The layers that `method` runs, in order, those of called submodules included.
///
/// # Errors
/// Where a graph cannot be read.
pub fn layers(module: &Module, method: &str) -> Result<Vec<Layer>> {
    let mut found = Vec::new();
    collect(module, "", method, &mut found)?;
    Ok(found)
}

fn collect(module: &Module, path: &str, method: &str, found: &mut Vec<Layer>) -> Result<()> {
    let graph = module.graph(method)?;
    for node in graph.all_nodes() {
        if let Some(layer) = layer_of(node, path) {
            found.push(layer);
        } else if node.kind() == "prim::CallFunction" {
            collect_function(&node.called_graph()?, path, found)?;
        } else if node.kind() == "prim::CallMethod" {
            let Some((target, method)) = called_method(node) else { continue };
            if let Ok(submodule) = module.submodule(&target) {
                collect(&submodule, &join_path(path, &target), &method, found)?;
            }
        }
    }
    Ok(())
}

fn collect_function(graph: &Graph, path: &str, found: &mut Vec<Layer>) -> Result<()> {
    for node in graph.all_nodes() {
        if let Some(layer) = layer_of(node, path) {
            found.push(layer);
        } else if node.kind() == "prim::CallFunction" {
            collect_function(&node.called_graph()?, path, found)?;
        }
    }
    Ok(())
}

/// The path of the submodule whose method `node` calls, where attributes lead there, and the method's name.
pub(super) fn called_method(node: Node<'_>) -> Option<(String, String)> {
    Some((node.input(0)?.attribute_path()?.join("."), node.name_attribute()?))
}

/// What is left of a quantized model's operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// How many nodes of each `quantized::` operator there are, and of `aten::quantized_lstm` and `…_gru`.
    pub quantized: BTreeMap<String, usize>,
    /// The layers that are still in float.
    pub float: Vec<Layer>,
    /// The paths of the batch norms that are still in float.
    pub batch_norms: Vec<String>,
}

impl Coverage {
    /// What the graph of `method` runs, called methods included.
    ///
    /// # Errors
    /// Where a graph cannot be read.
    pub fn of(module: &Module, method: &str) -> Result<Self> {
        let mut coverage = Self { float: layers(module, method)?, ..Self::default() };
        coverage.count(module, method)?;
        Ok(coverage)
    }

    /// How many layers are quantized.
    pub fn quantized_layers(&self) -> usize {
        const LAYERS: [&str; 7] = ["conv", "linear", "lstm", "gru", "rnn", "embedding", "matmul"];
        let is_layer = |name: &str| LAYERS.iter().any(|l| name.trim_start_matches("quantized_").starts_with(l));
        self.quantized.iter().filter(|(name, _)| is_layer(name)).map(|(_, count)| count).sum()
    }

    fn count(&mut self, module: &Module, method: &str) -> Result<()> {
        let graph = module.graph(method)?;
        for node in graph.all_nodes() {
            let kind = node.kind();
            let recurrent = kind.strip_prefix("aten::").filter(|name| name.starts_with("quantized_"));
            let packed_early = (kind == "jitquant::conv").then_some("conv");
            if let Some(name) = kind.strip_prefix("quantized::").or(recurrent).or(packed_early) {
                if !name.contains("pack") {
                    *self.quantized.entry(name.to_owned()).or_default() += 1;
                }
            } else if kind == "aten::batch_norm" {
                self.batch_norms.push(untagged(&node.scope()?).to_owned());
            } else if node.kind() == "prim::CallMethod" {
                let Some((target, method)) = called_method(node) else { continue };
                if let Ok(submodule) = module.submodule(&target) {
                    self.count(&submodule, &method)?;
                }
            }
        }
        Ok(())
    }
}

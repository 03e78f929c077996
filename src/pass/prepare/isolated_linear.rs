//! Linear layers that stand between float operators, as nearly all of a transformer's do (layer norm, gelu, softmax, the
//! sum of a residual).
//!
//! Nothing is gained there by results in INT8, which static quantization gives a layer: they would be dequantized at
//! once. Such a layer keeps a float input and a float result and is quantized inside, in the form that loses least:
//!
//! - *smoothed*, behind a layer norm in static quantization: each channel is shifted and scaled to the same range, so
//!   that the few channels with outliers do not take the steps of all others; the weight takes the scales back, the bias
//!   the shifts (Xiao et al., SmoothQuant, 2022; the shift is from Wei et al., Outlier Suppression+, 2023);
//! - *by row*, elsewhere: each row (token) is stretched to 0 to 1 when the model runs, `x' = (x - min) / (max - min)`,
//!   and `W x + b = (max - min) W x' + min W 1 + b`. A row with outliers then costs the other rows nothing.
//!
//! Both are made of libtorch's own operators. [`mark_isolated_linear`] marks the layers by observers of their inputs,
//! [`super::quantize_isolated_linear`] quantizes what is marked.

use std::collections::{HashMap, HashSet};

use super::attention::PRODUCT;
use crate::error::Result;
use crate::ir::{Graph, Module, Node, Tensor, Value, join_path};
use crate::observer::{ObserverConfig, ObserverKind};
use crate::pass::QuantType;
use crate::pass::computes_weight;
use crate::pass::op_table::{Conditions, Kernel, Operator, PassThrough};

/// Begins the names of the observers that mark layers.
pub(super) const MARK: &str = "_observer_lone_";

/// The buffer of an observer that says how many rows it has seen.
pub(crate) const ROWS: &str = "rows";

/// Which linear layers are marked, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IsolatedLinear {
    pub quant_type: QuantType,
    /// Whether layers without smoothing are quantized by row; they are not marked otherwise.
    pub per_row: bool,
    /// Whether layers behind a layer norm are smoothed.
    pub smooth: bool,
}

/// The layers to mark, by [`Node::address`].
pub(crate) fn find_isolated_linear(
    graph: &Graph,
    isolated: IsolatedLinear,
    is_wanted: impl Fn(Node<'_>) -> bool,
) -> HashSet<usize> {
    let nodes = graph.all_nodes();
    let linear = nodes.iter().filter(|node| node.kind() == "aten::linear" && !computes_weight(**node));
    let mut candidates: HashSet<Node<'_>> = linear.copied().filter(|node| is_wanted(*node)).collect();
    let is_marked = |node: Node<'_>| {
        isolated.per_row || (isolated.smooth && node.input(0).is_some_and(|input| norm_before(input).is_some()))
    };
    candidates.retain(|node| is_marked(*node));
    if isolated.quant_type == QuantType::Static {
        // A layer that goes away makes others' surroundings INT8: until nothing changes.
        loop {
            let surroundings = Surroundings { isolated: &candidates };
            let kept: HashSet<_> = candidates.iter().copied().filter(|node| surroundings.are_float(*node)).collect();
            if kept.len() == candidates.len() {
                break;
            }
            candidates = kept;
        }
    }
    candidates.into_iter().map(|node| node.address().addr()).collect()
}

/// Puts an observer before each of the layers, one for all that share an input and a form.
pub(crate) fn mark_isolated_linear(
    module: &Module,
    graph: &Graph,
    isolated: IsolatedLinear,
    layers: &HashSet<usize>,
) -> Result<()> {
    let mut marks: HashMap<Value<'_>, Value<'_>> = HashMap::new();
    for node in graph.all_nodes().into_iter().filter(|node| layers.contains(&node.address().addr())) {
        let input = node.inputs()[0];
        let mark = match marks.get(&input) {
            Some(mark) if node.owning_block() == mark.node().owning_block() => *mark,
            _ => {
                let is_smoothed = isolated.smooth && norm_before(input).is_some();
                let mark = insert_mark(module, node, input, is_smoothed)?;
                marks.insert(input, mark);
                mark
            }
        };
        node.replace_input(0, mark)?;
    }
    Ok(())
}

fn insert_mark<'g>(module: &Module, before: Node<'g>, input: Value<'g>, is_smoothed: bool) -> Result<Value<'g>> {
    let observer = match is_smoothed {
        true => channels_and_rows()?,
        false => ObserverConfig::new(ObserverKind::Placeholder).module()?,
    };
    if is_smoothed {
        let what = join_path(&before.scope()?, "input");
        observer.set_attribute("observed", &what.as_str().into())?;
    }
    let name = (0..).map(|number| format!("{MARK}{number}")).find(|name| !module.has_attribute(name));
    let name = name.unwrap_or_default();
    module.register_submodule(&name, &observer)?;
    let object = before.insert_get_attribute(before.graph().inputs()[0], &name)?;
    let mark = before.insert_method_call(object, "forward", &[input])?;
    mark.node().copy_metadata(before)?;
    Ok(mark)
}

/// An observer of the range of each channel, the last dimension, that counts the rows that it has seen.
fn channels_and_rows() -> Result<Module> {
    let config = ObserverConfig { axis: -1, ..ObserverConfig::new(ObserverKind::PerChannelMinMax) };
    let observer = config.module_of_class("jitquant.PerChannelMinMaxObserver")?;
    observer.register_buffer(ROWS, Tensor::from_slice(&[0.0f32], &[])?)?;
    let observation = config.kind.observation();
    observer.define(&format!(
        "def forward(self, x: Tensor) -> Tensor:\n    \
         {observation}\n    \
         self.{ROWS}.add_(x.numel() // max(1, x.size(-1)))\n    \
         return x\n"
    ))?;
    observer.define(
        "def calculate_qparams(self) -> Tuple[Tensor, Tensor]:\n    \
         return ops.jitquant.qparams(self.min_val, self.max_val, self.dtype, self.qscheme, self.quant_min, \
         self.quant_max, self.reduce_range, self.eps, self.observed)\n",
    )?;
    Ok(observer)
}

/// The observer that marks `layer`, in `module`.
pub(super) fn mark_of(module: &Module, layer: Node<'_>) -> Option<Module> {
    let call = layer.input(0)?.node();
    let path = (call.kind() == "prim::CallMethod").then(|| call.input(0)?.attribute_path())??;
    let [name] = &path[..] else { return None };
    name.starts_with(MARK).then(|| module.submodule(name).ok())?
}

/// The layer norm whose result `value` is, dimensions where they are.
pub(super) fn norm_before(value: Value<'_>) -> Option<Node<'_>> {
    let node = value.node();
    match node.kind() {
        "aten::layer_norm" => Some(node),
        "aten::dropout" | "aten::contiguous" | "aten::detach" => norm_before(node.input(0)?),
        _ => None,
    }
}

/// What is INT8 around the layers `isolated`.
struct Surroundings<'g, 'a> {
    isolated: &'a HashSet<Node<'g>>,
}

impl<'g> Surroundings<'g, '_> {
    /// Whether the layer stands between float operators. (An input of the model is no operator: in a model of linear
    /// layers alone, results in INT8 are what the next layer takes.)
    fn are_float(&self, layer: Node<'g>) -> bool {
        let input = layer.inputs()[0];
        !self.is_model_input(input) && !self.is_int8(input) && !self.is_taken_as_int8(layer.outputs()[0], false)
    }

    fn is_model_input(&self, value: Value<'g>) -> bool {
        let node = value.node();
        value.is_block_input()
            || (self.passes_on(node) && node.input(0).is_some_and(|input| self.is_model_input(input)))
    }

    fn passes_on(&self, node: Node<'g>) -> bool {
        let passes_on = |row: &Operator| {
            node.output(0).is_some_and(|output| row.passes_on(output, Conditions::Asked))
                && row.pass_through.is_of_first()
        };
        Operator::of(node).is_some_and(passes_on)
    }

    fn has_kernel(&self, node: Node<'g>) -> bool {
        // What feeds a product of attention is better smoothed and quantized by the product than given as INT8.
        let is_float = matches!(node.kind(), "aten::layer_norm" | PRODUCT) || self.isolated.contains(&node);
        !is_float && Operator::of(node).is_some_and(|row| row.is_quantized(QuantType::Static))
    }

    fn is_int8(&self, value: Value<'g>) -> bool {
        let node = value.node();
        if self.passes_on(node) {
            return node.input(0).is_some_and(|input| self.is_int8(input));
        }
        let joins = Operator::of(node).is_some_and(|row| row.propagation.is_some());
        match joins {
            true => tensors(node).into_iter().any(|input| self.is_int8(input)),
            false => self.has_kernel(node),
        }
    }

    fn is_taken_as_int8(&self, value: Value<'g>, passed_on: bool) -> bool {
        value.uses().into_iter().map(|place| place.user).any(|user| {
            if self.has_kernel(user) {
                return true;
            }
            // linear, relu, linear: the two fuse into INT8 layers.
            if self.isolated.contains(&user) {
                return passed_on
                    && Operator::of(value.node()).is_some_and(|row| row.pass_through == PassThrough::Shape)
                    && value.node().kind().starts_with("aten::relu");
            }
            if self.passes_on(user) {
                return self.is_taken_as_int8(user.outputs()[0], true);
            }
            let joins = Operator::of(user).is_some_and(|row| row.propagation.is_some() && row.kernel == Kernel::Float);
            joins && self.is_taken_as_int8(user.outputs()[0], false)
        })
    }
}

/// The tensors that a node takes, those in lists included.
fn tensors(node: Node<'_>) -> Vec<Value<'_>> {
    let inputs = node.inputs().into_iter();
    inputs
        .flat_map(|input| match input.node().kind() {
            "prim::ListConstruct" => input.node().inputs(),
            _ => vec![input],
        })
        .filter(|input| input.type_of().is_tensor() && !input.is_constant())
        .collect()
}

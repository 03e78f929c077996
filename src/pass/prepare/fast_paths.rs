//! PyTorch's fast paths for transformers: one operator that is many layers, its weights arguments.
//!
//! A `torch.nn.MultiheadAttention` or `TransformerEncoderLayer` traced in evaluation mode is one
//! `aten::_native_multi_head_attention` or `aten::_transformer_encoder_layer_fwd`: it is written out, so that its linear layers
//! are linear layers. Scripted modules have both ways and choose by the reason, a text, that there is against the fast one: the
//! plain way is taken, so that no weight is there twice.

use super::nested::makes_nested;
use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, Module, Node, Value, join_path};

const ATTENTION: &str = "aten::_native_multi_head_attention";
const ENCODER_LAYER: &str = "aten::_transformer_encoder_layer_fwd";

/// How many values of a graph are followed back for a text.
const STEPS: usize = 16;

/// Decides each condition on a text that has a fast path in one of its blocks alone: for the other block. How many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn take_plain_paths(graph: &mut Graph) -> Result<usize> {
    let mut taken = 0;
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::If") {
        let is_fast = |node: Node<'_>| matches!(node.kind(), ATTENTION | ENCODER_LAYER);
        let blocks: Vec<bool> =
            node.blocks().into_iter().map(|block| block.all_nodes().into_iter().any(is_fast)).collect();
        let [when_true, when_false] = blocks[..] else { continue };
        if when_true != when_false && asks_for_text(node.inputs()[0], STEPS) {
            node.replace_input(0, node.insert_constant(when_false)?)?;
            taken += 1;
        }
    }
    if taken > 0 {
        graph.run(GeneralPass::ConstantPropagation)?;
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(taken)
}

/// Whether a condition asks whether a text is empty.
fn asks_for_text(condition: Value<'_>, steps: usize) -> bool {
    let node = condition.node();
    match node.kind() {
        _ if steps == 0 => false,
        "aten::len" | "aten::Bool" | "aten::eq" | "aten::ne" | "aten::gt" | "aten::__not__" => {
            let mut inputs = node.inputs().into_iter();
            inputs.any(|input| input.type_of().kind() == "StringType" || asks_for_text(input, steps - 1))
        }
        _ => false,
    }
}

/// What the operators compute, of libtorch's layers. Masks say what is left out; of kind 0 they are `T x T`, of kind 1 `B x T`, of
/// kind 2 `B x H x T x T`; 11 is the type of booleans.
const SOURCE: &str = "
def spread(self, mask: Tensor, kind: Optional[int]) -> Tensor:
    if kind is not None and kind == 1:
        mask = torch.unsqueeze(torch.unsqueeze(mask, 1), 1)
    return torch.to(mask, 11)

def parts(self, x: Tensor, parts: int, heads: int) -> Tensor:
    x = torch.reshape(x, [x.size(0), x.size(1), parts, heads, x.size(2) // (parts * heads)])
    return torch.permute(x, [2, 0, 3, 1, 4])

def joined(self, x: Tensor) -> Tensor:
    x = torch.transpose(x, 1, 2)
    return torch.reshape(x, [x.size(0), x.size(1), x.size(2) * x.size(3)])

def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], kind: Optional[int]) -> Tensor:
    if mask is None:
        return torch.scaled_dot_product_attention(q, k, v)
    return torch.scaled_dot_product_attention(q, k, v, torch.logical_not(self.spread(mask, kind)))

def weigh(self, q: Tensor, k: Tensor, mask: Optional[Tensor], kind: Optional[int]) -> Tensor:
    scores = torch.matmul(q * (1.0 / (float(q.size(-1)) ** 0.5)), torch.transpose(k, -2, -1))
    if mask is not None:
        scores = torch.masked_fill(scores, self.spread(mask, kind), float('-inf'))
    return torch.softmax(scores, -1)

def of_itself(self, x: Tensor, heads: int, w: Tensor, b: Tensor) -> Tensor:
    return self.parts(torch.linear(x, w, b), 3, heads)

def of_others(self, q: Tensor, k: Tensor, v: Tensor, size: int, heads: int, w: Tensor, b: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    q = self.parts(torch.linear(q, torch.slice(w, 0, 0, size), torch.slice(b, 0, 0, size)), 1, heads)
    k = self.parts(torch.linear(k, torch.slice(w, 0, size, 2 * size), torch.slice(b, 0, size, 2 * size)), 1, heads)
    v = self.parts(torch.linear(v, torch.slice(w, 0, 2 * size), torch.slice(b, 0, 2 * size)), 1, heads)
    return torch.select(q, 0, 0), torch.select(k, 0, 0), torch.select(v, 0, 0)

def self_attention(self, x: Tensor, heads: int, w: Tensor, b: Tensor, w_out: Tensor, b_out: Tensor, mask: Optional[Tensor], kind: Optional[int]) -> Tensor:
    qkv = self.of_itself(x, heads, w, b)
    y = self.attend(torch.select(qkv, 0, 0), torch.select(qkv, 0, 1), torch.select(qkv, 0, 2), mask, kind)
    return torch.linear(self.joined(y), w_out, b_out)

def self_attention_weights(self, x: Tensor, heads: int, w: Tensor, b: Tensor, w_out: Tensor, b_out: Tensor, mask: Optional[Tensor], kind: Optional[int], mean: bool) -> Tuple[Tensor, Tensor]:
    qkv = self.of_itself(x, heads, w, b)
    weights = self.weigh(torch.select(qkv, 0, 0), torch.select(qkv, 0, 1), mask, kind)
    y = torch.linear(self.joined(torch.matmul(weights, torch.select(qkv, 0, 2))), w_out, b_out)
    if mean:
        weights = torch.mean(weights, [1])
    return y, weights

def attention(self, q: Tensor, k: Tensor, v: Tensor, size: int, heads: int, w: Tensor, b: Tensor, w_out: Tensor, b_out: Tensor, mask: Optional[Tensor], kind: Optional[int]) -> Tensor:
    q, k, v = self.of_others(q, k, v, size, heads, w, b)
    return torch.linear(self.joined(self.attend(q, k, v, mask, kind)), w_out, b_out)

def attention_weights(self, q: Tensor, k: Tensor, v: Tensor, size: int, heads: int, w: Tensor, b: Tensor, w_out: Tensor, b_out: Tensor, mask: Optional[Tensor], kind: Optional[int], mean: bool) -> Tuple[Tensor, Tensor]:
    q, k, v = self.of_others(q, k, v, size, heads, w, b)
    weights = self.weigh(q, k, mask, kind)
    y = torch.linear(self.joined(torch.matmul(weights, v)), w_out, b_out)
    if mean:
        weights = torch.mean(weights, [1])
    return y, weights

def encoder_layer(self, x: Tensor, size: int, heads: int, w: Tensor, b: Tensor, w_out: Tensor, b_out: Tensor, gelu: bool, norm_first: bool, eps: float, w_norm1: Tensor, b_norm1: Tensor, w_norm2: Tensor, b_norm2: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Optional[Tensor], kind: Optional[int]) -> Tensor:
    y = x
    if norm_first:
        y = torch.layer_norm(y, [size], w_norm1, b_norm1, eps)
    y = self.self_attention(y, heads, w, b, w_out, b_out, mask, kind) + x
    if not norm_first:
        y = torch.layer_norm(y, [size], w_norm1, b_norm1, eps)
    z = y
    if norm_first:
        z = torch.layer_norm(z, [size], w_norm2, b_norm2, eps)
    z = torch.linear(z, w1, b1)
    if gelu:
        z = torch.gelu(z)
    else:
        z = torch.relu(z)
    z = torch.linear(z, w2, b2) + y
    if not norm_first:
        z = torch.layer_norm(z, [size], w_norm2, b_norm2, eps)
    return z
";

/// Writes the fast paths out that run on plain tensors; how many. Those on nested tensors stay.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn write_out(graph: &mut Graph) -> Result<usize> {
    let nodes = graph.all_nodes();
    let has_nested = nodes.iter().copied().any(makes_nested);
    let found = nodes.iter().filter(|node| matches!(node.kind(), ATTENTION | ENCODER_LAYER)).copied();
    let found: Vec<_> = found.filter(|_| !has_nested).collect();
    if found.is_empty() {
        return Ok(0);
    }
    let source = Module::new("jitquant.FastPaths")?;
    source.define(SOURCE)?;
    for node in &found {
        let form = match node.kind() {
            ATTENTION => Form::of_attention(*node)?,
            _ => Form { method: "encoder_layer", inputs: node.inputs(), parts: ENCODER_PARTS },
        };
        form.put_in_place_of(*node, &source)?;
    }
    let written = found.len();
    // Whether a mask is none.
    graph.run(GeneralPass::Peephole)?;
    graph.run(GeneralPass::ConstantPropagation)?;
    graph.run(GeneralPass::DeadCodeElimination)?;
    Ok(written)
}

/// What a fast path becomes.
struct Form<'g> {
    method: &'static str,
    inputs: Vec<Value<'g>>,
    /// The operators that belong to submodules, in order, and their names in the module.
    parts: &'static [(&'static str, &'static str)],
}

const SELF_PARTS: &[(&str, &str)] = &[("aten::linear", ""), ("aten::linear", "out_proj")];
const CROSS_PARTS: &[(&str, &str)] =
    &[("aten::linear", ""), ("aten::linear", ""), ("aten::linear", ""), ("aten::linear", "out_proj")];
const ENCODER_PARTS: &[(&str, &str)] = &[
    ("aten::linear", "self_attn"),
    ("aten::linear", "self_attn.out_proj"),
    ("aten::linear", "linear1"),
    ("aten::linear", "linear2"),
];

impl<'g> Form<'g> {
    /// `_native_multi_head_attention(q, k, v, size, heads, w, b, w_out, b_out, mask, need_weights, mean, mask_kind)`
    fn of_attention(node: Node<'g>) -> Result<Self> {
        let inputs = node.inputs();
        let [q, k, v, size, heads, w, b, w_out, b_out, mask, _, mean, kind] = inputs[..] else {
            return Err(Error::invalid(format!("{} with {} inputs", node.kind(), inputs.len())));
        };
        let wants_weights = node.outputs()[1].is_used();
        let itself = q == k && k == v;
        let mut inputs = match itself {
            true => vec![q, heads, w, b, w_out, b_out, mask, kind],
            false => vec![q, k, v, size, heads, w, b, w_out, b_out, mask, kind],
        };
        inputs.extend(wants_weights.then_some(mean));
        let method = match (itself, wants_weights) {
            (true, false) => "self_attention",
            (true, true) => "self_attention_weights",
            (false, false) => "attention",
            (false, true) => "attention_weights",
        };
        Ok(Self { method, inputs, parts: if itself { SELF_PARTS } else { CROSS_PARTS } })
    }

    fn put_in_place_of(&self, node: Node<'g>, source: &Module) -> Result<()> {
        let mut body = source.graph(self.method)?.deep_clone()?;
        body.run(GeneralPass::Inline)?;
        let inputs: Vec<_> = [&node.graph().inputs()[..1], &self.inputs].concat();
        let before = node.prev();
        let results = node.insert_graph(&body, &inputs)?;
        let mut made = Vec::new();
        let mut next = before.next();
        while next != node {
            made.push(next);
            made.extend(next.blocks().into_iter().flat_map(|block| block.all_nodes()));
            next = next.next();
        }
        let mut parts = self.parts.iter();
        let path = node.scope()?;
        for new in made {
            new.copy_metadata(node)?;
            if self.parts.first().is_some_and(|(kind, _)| *kind == new.kind())
                && let Some((_, name)) = parts.next().filter(|(_, name)| !name.is_empty())
            {
                new.set_scope(&join_path(&path, name))?;
            }
        }
        let mut results = results;
        if let [tuple] = results[..]
            && tuple.node().kind() == "prim::TupleConstruct"
        {
            results = tuple.node().inputs();
        }
        for (old, new) in std::iter::zip(node.outputs(), results) {
            old.replace_all_uses_with(new)?;
        }
        node.destroy()
    }
}

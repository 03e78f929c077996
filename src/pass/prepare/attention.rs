//! Products of two activations, as attention has them, where quantization was asked for.
//!
//! [`mark_products`] makes each of them a `jitquant::product`, which computes what `aten::matmul` does and has a row of its
//! own in the table of operators: it becomes `quantized::matmul`, and only where it was marked. What was marked and stays in
//! float becomes `aten::matmul` again with [`restore_products`].

use crate::error::Result;
use crate::ir::{GeneralPass, Graph, IValue, Module, Node};
use crate::pass::layers::layer_operator;

/// A product that quantization may take.
pub(crate) const PRODUCT: &str = "jitquant::product";

/// `softmax(q k^T scale + mask) v`, as `scaled_dot_product_attention` has it; 11 is the type of booleans. Masks are
/// subtracted: a sum would be quantized with its infinities.
const ATTENTION: &str = "
def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], is_causal: bool, scale: Optional[float]) -> Tensor:
    scores = torch.matmul(q, torch.transpose(k, -2, -1))
    if scale is None:
        scores = scores / (float(q.size(-1)) ** 0.5)
    else:
        scores = scores * scale
    if is_causal:
        scores = torch.sub(scores, torch.triu(torch.full_like(scores, float('inf')), 1))
    if mask is not None:
        if mask.dtype == 11:
            scores = torch.masked_fill(scores, torch.logical_not(mask), float('-inf'))
        else:
            scores = torch.sub(scores, torch.neg(mask))
    return torch.matmul(torch.softmax(scores, -1), v)
";

/// Marks the products of two activations in `method` of a flat module. `scaled_dot_product_attention` is written out first;
/// with dropout or fewer heads of keys than of queries (`enable_gqa`) it stays as it is. How many products were marked.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn mark_products(module: &Module, method: &str) -> Result<usize> {
    let mut graph = module.graph(method)?;
    let written_out = write_out_attention(&graph)?;
    let products = products(&graph);
    for product in &products {
        become_operator(*product, PRODUCT)?;
    }
    let marked = products.len();
    if written_out {
        // The branches of `ATTENTION` that constants decide.
        graph.run(GeneralPass::Peephole)?;
        graph.run(GeneralPass::ConstantPropagation)?;
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(marked)
}

/// Makes what is still marked `aten::matmul`, so that a portable model needs libtorch alone.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn restore_products(graph: &Graph) -> Result<()> {
    let marked = graph.all_nodes().into_iter().filter(|node| node.kind() == PRODUCT);
    marked.into_iter().try_for_each(|node| become_operator(node, "aten::matmul"))
}

fn products(graph: &Graph) -> Vec<Node<'_>> {
    let is_product = |node: &Node<'_>| {
        layer_operator(*node) == Some("matmul")
            && node.inputs().into_iter().all(|input| input.type_of().is_tensor() && !input.is_constant())
    };
    graph.all_nodes().into_iter().filter(is_product).collect()
}

/// Puts an operator of this kind, with the same inputs, in the place of `node`.
fn become_operator(node: Node<'_>, kind: &str) -> Result<()> {
    let made = node.insert_operator(kind, &node.inputs())?;
    made.node().copy_metadata(node)?;
    node.outputs()[0].replace_all_uses_with(made)?;
    node.destroy()
}

/// Whether there was any.
fn write_out_attention(graph: &Graph) -> Result<bool> {
    let is_plain = |node: &Node<'_>| {
        let constant = |name: &str| node.named_input(name).and_then(|value| value.constant());
        node.kind() == "aten::scaled_dot_product_attention"
            && constant("dropout_p").and_then(|p| p.as_number()) == Some(0.0)
            && matches!(constant("enable_gqa"), None | Some(IValue::Bool(false)))
    };
    let found: Vec<_> = graph.all_nodes().into_iter().filter(is_plain).collect();
    if found.is_empty() {
        return Ok(false);
    }
    let source = Module::new("Attention")?;
    source.define(ATTENTION)?;
    let body = source.graph("attention")?;
    for node in &found {
        let arguments = ["query", "key", "value", "attn_mask", "is_causal", "scale"];
        let mut inputs = vec![graph.inputs()[0]];
        for name in arguments {
            let given = node.named_input(name);
            inputs.push(match given {
                Some(value) => value,
                None => node.insert_constant(IValue::None)?,
            });
        }
        let first = node.prev();
        let results = node.insert_graph(&body, &inputs)?;
        let mut made = first.next();
        while made != *node {
            made.copy_metadata(*node)?;
            made.blocks().into_iter().flat_map(|block| block.all_nodes()).try_for_each(|n| n.copy_metadata(*node))?;
            made = made.next();
        }
        node.outputs()[0].replace_all_uses_with(results[0])?;
        node.destroy()?;
    }
    Ok(true)
}

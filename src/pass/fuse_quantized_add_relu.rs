//! Quantized sums take in the relu behind them: `FuseQuantizedAddRelu`.

use crate::error::Result;
use crate::ir::{Graph, Node, Value};

/// A quantized sum, and the operator that is the sum and a relu.
const SUMS: &[(&str, &str)] = &[
    ("quantized::add", "quantized::add_relu"),
    ("quantized::add_out", "quantized::add_relu_out"),
    ("quantized::add_scalar", "quantized::add_scalar_relu"),
    ("quantized::add_scalar_out", "quantized::add_scalar_relu_out"),
];

/// Puts `quantized::add_relu` in the place of `quantized::add` and a relu, in place or not, that alone uses the sum; so too
/// for the sum with a number and the forms that write into a tensor that is given. The contract is that of libtorch's
/// `FuseQuantizedAddRelu`: what calls the operators has to be inlined before.
///
/// ```
/// use jitquant::{ir::Graph, pass::fuse_quantized_add_relu};
/// let graph = Graph::parse(
///     "graph(%a : Tensor, %b : Tensor, %scale : float, %zero_point : int):
///        %sum : Tensor = quantized::add(%a, %b, %scale, %zero_point)
///        %y : Tensor = aten::relu(%sum)
///        return (%y)",
/// )?;
/// fuse_quantized_add_relu(&graph)?;
/// assert_eq!(graph.nodes().map(|node| node.kind()).collect::<Vec<_>>(), ["quantized::add_relu"]);
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn fuse_quantized_add_relu(graph: &Graph) -> Result<()> {
    for relu in graph.all_nodes() {
        if matches!(relu.kind(), "aten::relu" | "aten::relu_")
            && let Some((sum, fused)) = sum_before(relu)
        {
            replace(sum, relu, fused)?;
        }
    }
    Ok(())
}

/// The sum that the relu alone uses, and the operator for both.
fn sum_before(relu: Node<'_>) -> Option<(Node<'_>, &'static str)> {
    let sum = relu.input(0)?.node();
    let (_, fused) = SUMS.iter().find(|(kind, _)| *kind == sum.kind())?;
    (sum.owning_block() == relu.owning_block() && sum.output(0)?.uses().len() == 1).then_some((sum, *fused))
}

fn replace<'g>(sum: Node<'g>, relu: Node<'g>, fused: &str) -> Result<()> {
    let inputs: Vec<Value<'g>> = sum.inputs();
    // At the sum: what it reads may be changed between the two.
    let both = sum.graph().create(fused, &inputs, 1)?.insert_before(sum)?;
    both.copy_metadata(sum)?;
    let (old, new) = (relu.outputs()[0], both.outputs()[0]);
    new.set_type(&old.type_of())?;
    old.replace_all_uses_with(new)?;
    relu.destroy()?;
    sum.destroy()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fused(body: &str) -> Vec<String> {
        let arguments = "%a : Tensor, %b : Tensor, %out : Tensor, %c : float, %s : float, %z : int";
        let graph = Graph::parse(&format!("graph({arguments}):\n{body}\n  return (%y)")).unwrap();
        fuse_quantized_add_relu(&graph).unwrap();
        graph.nodes().map(|node| node.kind().to_owned()).collect()
    }

    #[test]
    fn every_sum_takes_in_a_relu() {
        for (sum, inputs) in [
            ("add", "%a, %b, %s, %z"),
            ("add_out", "%a, %b, %out"),
            ("add_scalar", "%a, %c"),
            ("add_scalar_out", "%a, %c, %out"),
        ] {
            for relu in ["aten::relu", "aten::relu_"] {
                let body = format!("  %x : Tensor = quantized::{sum}({inputs})\n  %y : Tensor = {relu}(%x)");
                let (_, expected) = SUMS.iter().find(|(kind, _)| kind.ends_with(&format!("::{sum}"))).unwrap();
                assert_eq!(fused(&body), [*expected]);
            }
        }
    }

    #[test]
    fn a_sum_with_another_use_stays() {
        let body = "  %x : Tensor = quantized::add(%a, %b, %s, %z)\n  %r : Tensor = aten::relu(%x)
  %y : Tensor = quantized::add(%x, %r, %s, %z)";
        assert_eq!(fused(body), ["quantized::add", "aten::relu", "quantized::add"]);
    }
}

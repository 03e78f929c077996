//! Matrix products that are linear layers become `aten::linear`.

use crate::error::{Error, Result};
use crate::ir::{Graph, IValue, Node, Type, Value};

/// Puts `aten::linear` in place of
/// - `addmm(bias, x, t(weight))` with both factors 1,
/// - `matmul(x, t(weight))`, with or without `.add_(bias)`,
/// - the called function `linear` (`torch.nn.functional.linear` of a scripted model).
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn fuse_linear(graph: &Graph) -> Result<()> {
    for node in graph.all_nodes() {
        match node.kind() {
            "aten::addmm" => fuse_addmm(node)?,
            "aten::matmul" => fuse_matmul(node)?,
            _ => {}
        }
    }
    swap_functional_linear(graph)
}

/// Puts `aten::linear` in place of the called function `linear`.
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn swap_functional_linear(graph: &Graph) -> Result<()> {
    for node in graph.all_nodes() {
        let callee = node.input(0).and_then(Value::function_name);
        if node.kind() == "prim::CallFunction" && callee.as_deref() == Some("linear") && node.inputs().len() == 4 {
            replace(node, node, node, &node.inputs()[1..])?;
        }
    }
    Ok(())
}

fn is_one(value: Value<'_>) -> bool {
    value.constant().and_then(|constant| constant.as_int()) == Some(1)
}

/// `weight` of `value = t(weight)`.
fn transposed(value: Value<'_>) -> Option<Value<'_>> {
    (value.node().kind() == "aten::t").then(|| value.node().input(0)).flatten()
}

fn fuse_addmm(addmm: Node<'_>) -> Result<()> {
    if let [bias, input, weight_t, beta, alpha] = addmm.inputs()[..]
        && is_one(beta)
        && is_one(alpha)
        && let Some(weight) = transposed(weight_t)
    {
        replace(addmm, addmm, addmm, &[input, weight, bias])?;
        drop_unused(weight_t.node())?;
    }
    Ok(())
}

fn fuse_matmul(matmul: Node<'_>) -> Result<()> {
    let [input, weight_t] = matmul.inputs()[..] else { return Ok(()) };
    let Some(weight) = transposed(weight_t) else { return Ok(()) };
    match added_in_place(matmul) {
        Some((add, bias)) => {
            // At the product where that sees the bias: `input` may be changed in place between product and sum.
            let at = if matmul.is_dominated_by(bias.node())? { matmul } else { add };
            replace(add, at, matmul, &[input, weight, bias])?;
            drop_unused(matmul)?;
        }
        None => {
            let bias = matmul.insert_constant(IValue::None)?;
            bias.set_type(&Type::parse("Optional[Tensor]")?)?;
            replace(matmul, matmul, matmul, &[input, weight, bias])?;
        }
    }
    drop_unused(weight_t.node())
}

/// The `add_` that is the only user of a product, and what it adds.
fn added_in_place(product: Node<'_>) -> Option<(Node<'_>, Value<'_>)> {
    let [place] = product.output(0)?.uses()[..] else { return None };
    let add = place.user;
    let inputs = add.inputs();
    let fits = add.kind() == "aten::add_"
        && place.offset == 0
        && inputs.len() == 3
        && is_one(inputs[2])
        && add.owning_block() == product.owning_block();
    fits.then(|| (add, inputs[1]))
}

/// Puts `aten::linear` of `arguments`, inserted before `at`, in place of `old`; its place in the source is that of `product`.
fn replace<'g>(old: Node<'g>, at: Node<'g>, product: Node<'g>, arguments: &[Value<'g>]) -> Result<()> {
    let linear = old.graph().create("aten::linear", arguments, 1)?.insert_before(at)?;
    linear.copy_metadata(product)?;
    let (Some(from), Some(to)) = (old.output(0), linear.output(0)) else {
        return Err(Error::invalid(format!("'{}' should have one output", old.kind())));
    };
    to.set_type(&from.type_of())?;
    from.replace_all_uses_with(to)?;
    old.destroy()
}

fn drop_unused(node: Node<'_>) -> Result<()> {
    match node.outputs().iter().any(|output| output.is_used()) {
        true => Ok(()),
        false => node.destroy(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fused(body: &str) -> Vec<String> {
        let graph =
            Graph::parse(&format!("graph(%x : Tensor, %w : Tensor, %b : Tensor):\n{body}\n  return (%y)")).unwrap();
        fuse_linear(&graph).unwrap();
        let mut kinds: Vec<_> = graph.nodes().map(|node| node.kind().to_owned()).collect();
        kinds.retain(|kind| kind != "prim::Constant");
        kinds
    }

    #[test]
    fn products_with_a_transposed_weight_become_linear() {
        let t = "  %one : int = prim::Constant[value=1]()\n  %t : Tensor = aten::t(%w)\n";
        assert_eq!(fused(&format!("{t}  %y : Tensor = aten::addmm(%b, %x, %t, %one, %one)")), ["aten::linear"]);
        assert_eq!(fused(&format!("{t}  %y : Tensor = aten::matmul(%x, %t)")), ["aten::linear"]);
        let added = format!("{t}  %m : Tensor = aten::matmul(%x, %t)\n  %y : Tensor = aten::add_(%m, %b, %one)");
        assert_eq!(fused(&added), ["aten::linear"]);
    }

    #[test]
    fn other_products_stay() {
        let two = "  %one : int = prim::Constant[value=1]()\n  %two : int = prim::Constant[value=2]()\n  %t : Tensor = aten::t(%w)\n";
        let scaled = fused(&format!("{two}  %y : Tensor = aten::addmm(%b, %x, %t, %two, %one)"));
        assert_eq!(scaled, ["aten::t", "aten::addmm"]);
        assert_eq!(fused("  %y : Tensor = aten::matmul(%x, %w)"), ["aten::matmul"]);
        let added_twice =
            format!("{two}  %m : Tensor = aten::matmul(%x, %t)\n  %y : Tensor = aten::add_(%m, %b, %two)");
        assert_eq!(fused(&added_twice), ["aten::linear", "aten::add_"]);
    }
}

//! Weights are packed once and kept: `FoldQuantizedPrepackingOps`.

use std::collections::HashMap;

use crate::error::{Context, Error, Result};
use crate::ir::{Graph, IValue, Module, Value};
use crate::pass::block_order::block_order;
use crate::pass::op_table::OPERATORS;
use crate::pass::source_of;

/// Runs each `quantized::…_prepack` whose inputs are constant, and keeps what it gives in an attribute
/// `quantized_{method}._jit_pass_packed_weight_{number}` of `module`, which its code reads from then on. It is meant for
/// a frozen module, where weights are constants.
///
/// # Errors
/// Where a weight cannot be packed.
pub fn fold_quantized_prepacking_ops(module: &Module) -> Result<()> {
    fold_prepacking(module, false)
}

/// As [`fold_quantized_prepacking_ops`]; where it `shares`, layers with the same weight and bias read one attribute.
pub(super) fn fold_prepacking(module: &Module, shares: bool) -> Result<()> {
    for method in module.method_names() {
        let packing = Packing { shares, passes_errors_over: false };
        pack(module, &method, packing, &|value| value.constant(), &mut free_names(module, &method))?;
    }
    Ok(())
}

/// Packs the weights of `forward` that are constants, before the module is frozen; the attributes that hold them, which
/// freezing has to preserve and [`name_packed`] gives their names afterwards.
///
/// Freezing compares each constant tensor with all others, so that its time grows with the square of their number. Packed
/// weights are not among them, nor are the scales and zero points, which are read here. Attributes in `preserved` are not.
pub(super) fn pack_early(module: &Module, preserved: &[String]) -> Result<Vec<String>> {
    let read = |value: Value<'_>| {
        let path = value.attribute_path()?;
        let [name] = &path[..] else { return None };
        module.attribute(name).ok().filter(|_| !preserved.contains(name))
    };
    // No dots: libtorch's freezing takes what is before one for a submodule.
    let names = (0..).map(|number: usize| format!("jitquant_packed_{number}"));
    let mut names = names.filter(|name| !module.has_attribute(name));
    let packing = Packing { shares: true, passes_errors_over: true };
    pack(module, "forward", packing, &|value| computed(value, &read), &mut names)
}

/// Gives what [`pack_early`] packed the names that packed weights have in a finished module. What freezing found to be
/// unused goes.
pub(super) fn name_packed(module: &Module, early: &[String]) -> Result<()> {
    let graph = module.graph("forward")?;
    let mut free = free_names(module, "forward");
    let mut finished: HashMap<&String, Option<String>> = early.iter().map(|name| (name, None)).collect();
    for node in block_order(&graph).into_iter().filter(|node| node.kind() == "prim::GetAttr") {
        let (Some(name), Some(output)) = (node.name_attribute(), node.output(0)) else { continue };
        let Some(finished) = finished.get_mut(&name) else { continue };
        if finished.is_none() {
            let new = free.next().unwrap_or_default();
            module.register_attribute(&new, &output.type_of(), &module.attribute(&name)?)?;
            *finished = Some(new);
        }
        let read = node.insert_get_attribute(graph.inputs()[0], finished.as_deref().unwrap_or_default())?;
        read.node().copy_metadata(node)?;
        output.replace_all_uses_with(read)?;
        node.destroy()?;
    }
    early.iter().filter(|name| module.has_attribute(name)).try_for_each(|name| module.remove_attribute(name))
}

/// Names for the packed weights of a method that `module` does not have yet.
fn free_names<'m>(module: &'m Module, method: &str) -> impl Iterator<Item = String> + use<'m> {
    let prefix = format!("quantized_{method}._jit_pass_packed_weight_");
    (0..).map(move |number: usize| format!("{prefix}{number}")).filter(move |name| !module.has_attribute(name))
}

#[derive(Clone, Copy)]
struct Packing {
    /// Layers with the same weight and bias read one attribute.
    shares: bool,
    /// A weight that cannot be packed is left as it is.
    passes_errors_over: bool,
}

/// Runs each prepack call of `method` whose inputs all have a value by `value_of`, and keeps what it gives in an attribute,
/// called by the next of `names`; the names.
fn pack(
    module: &Module,
    method: &str,
    packing: Packing,
    value_of: &dyn Fn(Value<'_>) -> Option<IValue>,
    names: &mut dyn Iterator<Item = String>,
) -> Result<Vec<String>> {
    let prepacks: Vec<_> = OPERATORS.iter().filter_map(|row| Some(row.packing?.prepack)).collect();
    let graph = module.graph(method)?;
    let mut kept: Vec<Packed> = Vec::new();
    for node in block_order(&graph).into_iter().filter(|node| prepacks.contains(&node.kind())) {
        let inputs = node.inputs();
        let Some(values) = inputs.iter().map(|input| value_of(*input)).collect::<Option<Vec<_>>>() else { continue };
        let output = node.output(0).ok_or_else(|| Error::invalid(format!("{} gives nothing", node.kind())))?;
        let same = kept.iter().find(|packed| packing.shares && packed.is_of(node.kind(), &values));
        let name = match same {
            Some(packed) => packed.attribute.clone(),
            None => {
                let results = node.run(&values);
                if results.is_err() && packing.passes_errors_over {
                    continue;
                }
                let results = results.context(|| format!("running {} ({})", node.kind(), source_of(node)))?;
                let packed = results.first().ok_or_else(|| Error::invalid("a packed weight is missing"))?;
                let name = names.next().unwrap_or_default();
                module.register_attribute(&name, &output.type_of(), packed)?;
                kept.push(Packed { operator: node.kind().to_owned(), inputs: values, attribute: name.clone() });
                name
            }
        };
        let read = node.insert_get_attribute(graph.inputs()[0], &name)?;
        read.node().copy_metadata(node)?;
        output.replace_all_uses_with(read)?;
        node.destroy()?;
        inputs.into_iter().try_for_each(destroy_unused)?;
    }
    Ok(kept.into_iter().map(|packed| packed.attribute).collect())
}

/// A packed weight that is kept, and what it was made of.
struct Packed {
    operator: String,
    inputs: Vec<IValue>,
    attribute: String,
}

impl Packed {
    /// Whether the operator would give the same of these inputs.
    fn is_of(&self, operator: &str, inputs: &[IValue]) -> bool {
        let is_same = |(one, other): (&IValue, &IValue)| match (one, other) {
            (IValue::Tensor(one), IValue::Tensor(other)) => {
                one.shape() == other.shape() && one.dtype() == other.dtype() && one.equal(other).unwrap_or(false)
            }
            (IValue::Tensor(_), _) | (_, IValue::Tensor(_)) => false,
            _ => format!("{one:?}") == format!("{other:?}"),
        };
        self.operator == operator && std::iter::zip(&self.inputs, inputs).all(is_same)
    }
}

/// Runs each `quantized::…_prepack` of a graph whose inputs are constant, or computed from constants by operators that
/// quantize, and puts the packed weight in its place as a constant. For graphs without a module that could keep it: those
/// that libtorch executes.
///
/// The number of prepack calls that are gone. A call that fails stays, and fails when the graph runs.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub fn fold_constant_prepacks(graph: &Graph) -> Result<usize> {
    let prepacks: Vec<_> = OPERATORS.iter().filter_map(|row| Some(row.packing?.prepack)).collect();
    let mut folded = 0;
    for node in block_order(graph).into_iter().filter(|node| prepacks.contains(&node.kind())) {
        let Some(constants) = node.inputs().into_iter().map(from_constants).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let packed = match node.run(&constants) {
            Ok(packed) => packed,
            Err(e) => {
                tracing::warn!("{} is left as it is: {e}", node.kind());
                continue;
            }
        };
        let (Some(packed), Some(output)) = (packed.into_iter().next(), node.output(0)) else { continue };
        let constant = node.insert_constant(packed)?;
        output.replace_all_uses_with(constant)?;
        let inputs = node.inputs();
        node.destroy()?;
        inputs.into_iter().try_for_each(destroy_unused)?;
        folded += 1;
    }
    Ok(folded)
}

/// What computes a quantized weight and its parameters, and has no other effect.
const OF_WEIGHTS: [&str; 3] = ["aten::quantize_per_tensor", "aten::quantize_per_channel", "prim::ListConstruct"];

fn from_constants(value: Value<'_>) -> Option<IValue> {
    computed(value, &|_| None)
}

/// What operators that quantize compute of constants; their parameters may also be attributes, which `read` reads.
fn computed(value: Value<'_>, read: &dyn Fn(Value<'_>) -> Option<IValue>) -> Option<IValue> {
    let node = value.node();
    if value.is_constant() || !OF_WEIGHTS.contains(&node.kind()) {
        return value.constant();
    }
    let input = |(index, input): (usize, Value<'_>)| match input.node().kind() {
        "prim::GetAttr" if index > 0 => read(input),
        _ => computed(input, read),
    };
    let inputs = node.inputs().into_iter().enumerate().map(input).collect::<Option<Vec<_>>>()?;
    if node.kind() == "prim::ListConstruct" {
        let element = value.type_of().contained().first()?.annotation();
        return Some(IValue::List { element, items: inputs });
    }
    node.run(&inputs).ok()?.into_iter().next()
}

/// Takes away what computes a value that nothing uses any more.
pub(super) fn destroy_unused(value: Value<'_>) -> Result<()> {
    let node = value.node();
    let is_ours = node.kind() == "prim::Constant" || OF_WEIGHTS.contains(&node.kind());
    if !is_ours || node.is_destroyed() || node.outputs().into_iter().any(Value::is_used) {
        return Ok(());
    }
    let inputs = node.inputs();
    node.destroy()?;
    inputs.into_iter().try_for_each(destroy_unused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;

    #[test]
    fn a_chain_of_constants_becomes_a_packed_constant() {
        crate::init().unwrap();
        let graph = Graph::parse(
            "graph(%x : Tensor, %scale : float):
  %one : int = prim::Constant[value=1]()
  %type : int = prim::Constant[value=12]()
  %zero : int = prim::Constant[value=0]()
  %step : float = prim::Constant[value=0.5]()
  %none : NoneType = prim::Constant()
  %false : bool = prim::Constant[value=0]()
  %sizes : int[] = prim::ListConstruct(%one, %one)
  %packed : __torch__.torch.classes.quantized.LinearPackedParamsBase = quantized::linear_prepack(%x, %none)
  %y : Tensor = quantized::linear_dynamic(%x, %packed, %false)
  return (%y)",
        )
        .unwrap();
        // A weight that is not constant is packed at each call.
        assert_eq!(fold_constant_prepacks(&graph).unwrap(), 0);
        let prepack = graph.nodes().find(|node| node.kind() == "quantized::linear_prepack").unwrap();
        let weight = prepack.insert_constant(Tensor::from_slice(&[1.0f32, -2.0], &[1, 2]).unwrap()).unwrap();
        let named = |name: &str| graph.nodes().flat_map(|n| n.outputs()).find(|v| v.debug_name() == name).unwrap();
        let quantized = prepack
            .insert_operator("aten::quantize_per_tensor", &[weight, named("step"), named("zero"), named("type")])
            .unwrap();
        prepack.replace_input(0, quantized).unwrap();
        assert_eq!(fold_constant_prepacks(&graph).unwrap(), 1);
        let text = graph.to_string();
        assert!(!text.contains("prepack") && !text.contains("quantize_per_tensor"), "{text}");
        let packed = graph.nodes().find(|node| node.kind() == "quantized::linear_dynamic").unwrap().input(1).unwrap();
        assert!(packed.is_constant(), "{text}");
    }
}

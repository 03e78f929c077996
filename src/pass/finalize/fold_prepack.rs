//! Weights are packed once and kept: `FoldQuantizedPrepackingOps`.

use crate::error::{Context, Error, Result};
use crate::ir::{Module, Value};
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
    let prepacks: Vec<_> = OPERATORS.iter().filter_map(|row| Some(row.packing?.prepack)).collect();
    for method in module.method_names() {
        let graph = module.graph(&method)?;
        let mut numbers = 0..;
        for node in block_order(&graph).into_iter().filter(|node| prepacks.contains(&node.kind())) {
            let inputs = node.inputs();
            let Some(constants) = inputs.iter().map(|input| input.constant()).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let packed = node.run(&constants).context(|| format!("running {} ({})", node.kind(), source_of(node)))?;
            let (Some(packed), Some(output)) = (packed.first(), node.output(0)) else {
                return Err(Error::invalid(format!("{} gives nothing", node.kind())));
            };
            let name = |number| format!("quantized_{method}._jit_pass_packed_weight_{number}");
            let free = numbers.by_ref().map(name).find(|name| !module.has_attribute(name));
            let name = free.unwrap_or_default();
            module.register_attribute(&name, &output.type_of(), packed)?;
            let kept = node.insert_get_attribute(graph.inputs()[0], &name)?;
            kept.node().copy_metadata(node)?;
            output.replace_all_uses_with(kept)?;
            node.destroy()?;
            for constant in inputs.into_iter().filter(|input| !input.is_used()).map(Value::node) {
                constant.destroy()?;
            }
        }
    }
    Ok(())
}

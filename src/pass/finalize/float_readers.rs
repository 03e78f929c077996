//! What computes in float reads float values.

use super::fold_prepack::destroy_unused;
use crate::error::Result;
use crate::ir::{Graph, Value};
use crate::pass::op_table::{Kernel, Operator};

/// Where a float value is quantized for INT8 operators, has the float operators read it as it was. Otherwise a comparison, an
/// index or a residual sum would see it rounded to 8 bits, though nothing before or after it is in INT8.
///
/// Results of operators that have an INT8 form are left alone: a clamp between them and their quantization may have become
/// part of the range ([`crate::pass::prepare::settle_clamps`]).
pub(super) fn read_in_float(graph: &Graph) -> Result<()> {
    for dequantize in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::dequantize") {
        let quantized = dequantize.inputs()[0];
        let quantize = quantized.node();
        if quantize.kind() != "aten::quantize_per_tensor" {
            continue;
        }
        let float = quantize.inputs()[0];
        if !float.type_of().is_tensor() || has_int8_form(float) {
            continue;
        }
        dequantize.outputs()[0].replace_all_uses_with(float)?;
        dequantize.destroy()?;
        destroy_unused(quantized)?;
    }
    Ok(())
}

fn has_int8_form(value: Value<'_>) -> bool {
    Operator::of(value.node()).is_some_and(|row| row.kernel != Kernel::Float || row.propagation.is_some())
}

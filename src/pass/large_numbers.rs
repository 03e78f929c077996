//! Numbers that libtorch's files do not keep.

use crate::error::Result;
use crate::ir::{IValue, Module, Type};

/// libtorch prints a float without a fraction as `5.` below the first of these, as `1e+17` from the second on, and in between
/// as `10000000000`, which it reads as an integer: a file that holds such a scale does not load.
const PRINTED_AS_INTEGERS: (f64, f64) = (1e10, 1e17);

/// Has the methods of a frozen module read such constants from attributes, which files keep as they are; how many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn keep_large_numbers(module: &Module) -> Result<usize> {
    let float = Type::parse("float")?;
    let mut kept = 0;
    for method in module.method_names() {
        let graph = module.graph(&method)?;
        let Some(this) = graph.inputs().first().copied() else { continue };
        for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::Constant") {
            let Some(output) = node.output(0) else { continue };
            let Some(IValue::Double(number)) = output.constant() else { continue };
            let (from, to) = PRINTED_AS_INTEGERS;
            if !(from..to).contains(&number.abs()) || number.fract() != 0.0 {
                continue;
            }
            let name = (0..).map(|n| format!("jitquant_number_{n}")).find(|name| !module.has_attribute(name));
            let name = name.unwrap_or_default();
            module.register_attribute(&name, &float, &IValue::Double(number))?;
            output.replace_all_uses_with(node.insert_get_attribute(this, &name)?)?;
            node.destroy()?;
            kept += 1;
        }
    }
    Ok(kept)
}

//! Each call of a submodule gets a submodule of its own.

use std::collections::HashSet;

use super::block_order::block_order;
use crate::error::{Context, Result};
use crate::ir::{Module, Node, Value};

/// Gives every call of a submodule, in the methods of `module` itself, a submodule of its own: the first one keeps the
/// module, each further one gets a copy of it, registered beside it as `name_0`, `name_1`, … The contract is that of
/// libtorch's function of this name. Afterwards each place can be configured and observed by itself.
///
/// Submodules that are not reached through attributes of `self` stay shared.
///
/// ```
/// use jitquant::{ir::Module, pass::dedup_module_uses};
/// let relu = Module::new("torch.nn.modules.activation.ReLU")?;
/// relu.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(x)")?;
/// let module = Module::new("Net")?;
/// module.register_submodule("relu", &relu)?;
/// module.define("def forward(self, x: Tensor) -> Tensor:\n    return self.relu.forward(self.relu.forward(x) - 1)")?;
/// dedup_module_uses(&module)?;
/// let names: Vec<_> = module.children().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["relu", "relu_0"]);
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where a submodule cannot be copied; nothing has changed then.
pub fn dedup_module_uses(module: &Module) -> Result<()> {
    let mut graphs = Vec::new();
    for method in module.method_names() {
        graphs.push(module.graph(&method)?);
    }
    let mut called = HashSet::new();
    let mut repeated = Vec::new();
    for graph in &graphs {
        for node in block_order(graph).into_iter().filter(|node| node.kind() == "prim::CallMethod") {
            let Some(path) = node.input(0).and_then(Value::attribute_path).filter(|path| !path.is_empty()) else {
                continue;
            };
            let callee = module.submodule(&path.join("."))?;
            if !called.insert(callee.id()) {
                let copy = callee.copy_instance().context(|| format!("copying submodule '{}'", path.join(".")))?;
                repeated.push((node, path, copy));
            }
        }
    }
    for (node, path, copy) in repeated {
        replace_callee(module, node, &path, &copy)?;
    }
    Ok(())
}

/// Registers `copy` beside the submodule at `path`, and has `node` call it.
fn replace_callee(module: &Module, node: Node<'_>, path: &[String], copy: &Module) -> Result<()> {
    let Some((name, above)) = path.split_last() else { return Ok(()) };
    let parent = module.submodule(&above.join("."))?;
    let free = |number: &usize| !parent.has_attribute(&format!("{name}_{number}"));
    let number = (0..).find(free).unwrap_or_default();
    let own_name = format!("{name}_{number}");
    parent.register_submodule(&own_name, copy)?;
    let Some(object) = node.input(0) else { return Ok(()) };
    // The value may serve further calls: this one reads its own.
    if let Some(holder) = object.node().input(0) {
        let own = object.node().insert_get_attribute(holder, &own_name)?;
        own.node().copy_metadata(object.node())?;
        node.replace_input(0, own)?;
        if !object.is_used() {
            object.node().destroy()?;
        }
    }
    Ok(())
}

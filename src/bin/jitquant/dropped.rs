//! What a quantized model lacks that the file had: a note each.

use std::collections::BTreeSet;

use jitquant::Result;
use jitquant::ir::{IValue, Module};

use crate::feed::FORWARD;

/// What to say before `module` is quantized, where `preserved` is kept.
///
/// # Errors
/// Where the module has no method `forward`.
pub fn notes(module: &Module, preserved: &[String]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    // A module without the attribute counts as being in training to libtorch, and says nothing.
    let says_training = |module: &Module| matches!(module.attribute("training"), Ok(IValue::Bool(true)));
    if module.has_attribute("training") && says_training(module) {
        notes.push(
            "the model was saved in training mode; it is quantized as in evaluation: no dropout, batch norms with their \
             stored statistics"
                .to_owned(),
        );
    }
    let called = called_from(module, FORWARD)?;
    let is_dropped = |name: &String| !called.contains(name) && !preserved.contains(name) && !name.starts_with("__");
    let dropped: Vec<String> = module.method_names().into_iter().filter(is_dropped).collect();
    if !dropped.is_empty() {
        notes.push(format!(
            "methods beside {FORWARD} are left out: {}; --preserve NAME keeps one",
            dropped.iter().take(20).cloned().collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(notes)
}

/// The methods of `module` itself that `method` comes to call, with it.
fn called_from(module: &Module, method: &str) -> Result<BTreeSet<String>> {
    let mut called = BTreeSet::new();
    let mut open = vec![method.to_owned()];
    while let Some(name) = open.pop() {
        if !called.insert(name.clone()) {
            continue;
        }
        let graph = module.graph(&name)?;
        let this = graph.inputs().into_iter().next();
        for node in graph.all_nodes() {
            let is_own = node.kind() == "prim::CallMethod" && node.input(0).is_some() && node.input(0) == this;
            if is_own
                && let Some(name) = node.name_attribute()
                && module.has_method(&name)
            {
                open.push(name);
            }
        }
    }
    Ok(called)
}

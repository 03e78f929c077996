//! Cloning a module tree with a say in which modules go on sharing a class.

use std::collections::HashMap;
use std::hash::Hash;

use super::block::Block;
use super::ffi::bridge as ffi;
use super::graph::Graph;
use super::module::{Module, join_path};
use crate::error::{Context, Error, Result};

impl Module {
    /// A module tree with classes, attributes and code of its own, a module for each path: what stood in two places is
    /// two modules in the clone.
    ///
    /// Modules that shared a class share the clone of it where `key` agrees for their paths and for those of all
    /// modules below them; else each gets its own. The clone's tensors are copies (which alias one another as the
    /// originals do), or with `share_tensors` the originals themselves.
    ///
    /// # Errors
    /// Where an attribute cannot be copied.
    pub fn clone_by<K: Eq + Hash>(&self, share_tensors: bool, key: impl Fn(&str) -> K) -> Result<Module> {
        let mut cloner = Cloner { share_tensors, key, memo: ffi::copy_memo_new(), kinds: HashMap::new() };
        Ok(cloner.copy(self, "")?.0)
    }
}

struct Cloner<K, F> {
    share_tensors: bool,
    key: F,
    memo: cxx::UniquePtr<ffi::CopyMemo>,
    /// What is alike, by original class, key and the children's kinds; and the first copy of that kind.
    kinds: HashMap<(usize, K, Vec<usize>), (usize, Module)>,
}

impl<K: Eq + Hash, F: Fn(&str) -> K> Cloner<K, F> {
    /// The copy of `source` and the number of its kind.
    fn copy(&mut self, source: &Module, path: &str) -> Result<(Module, usize)> {
        let mut children = Vec::new();
        let mut children_kinds = Vec::new();
        for (name, child) in source.children() {
            let (copy, kind) = self.copy(&child, &join_path(path, &name))?;
            children.push((name, copy));
            children_kinds.push(kind);
        }
        let kind = (source.type_of().id(), (self.key)(path), children_kinds);
        let known = self.kinds.get(&kind).map(|(number, module)| (*number, module.clone()));
        let target = Module::from_raw(match &known {
            Some((_, alike)) => ffi::module_of_class(alike.raw())?,
            None => ffi::module_of_new_class_like(source.raw())?,
        });
        self.copy_attributes(source, &target, children).context(|| format!("copying module '{path}'"))?;
        let number = match known {
            Some((number, _)) => number,
            None => {
                copy_code(source, &target).context(|| format!("copying the code of module '{path}'"))?;
                let number = self.kinds.len();
                self.kinds.insert(kind, (number, target.clone()));
                number
            }
        };
        Ok((target, number))
    }

    fn copy_attributes(&mut self, source: &Module, target: &Module, children: Vec<(String, Module)>) -> Result<()> {
        let mut children: HashMap<_, _> = children.into_iter().collect();
        for attribute in source.attributes() {
            let name = &attribute.name;
            match children.remove(name) {
                Some(child) => {
                    // A slot declared with an interface keeps it; one declared with a class gets the clone of that.
                    let declared = source.type_of().attribute(name)?;
                    let ty = if declared.kind() == "ClassType" { child.type_of() } else { declared };
                    ffi::module_set_submodule(target.raw(), name, &ty.0, child.raw())?;
                }
                None if self.share_tensors => ffi::module_copy_attribute(source.raw(), name, target.raw())?,
                None => ffi::module_deepcopy_attribute(source.raw(), name, target.raw(), self.memo.pin_mut())?,
            }
        }
        Ok(())
    }
}

fn copy_code(source: &Module, target: &Module) -> Result<()> {
    for name in source.constants() {
        ffi::module_copy_constant(source.raw(), &name, target.raw())?;
    }
    for method in source.method_names() {
        let graph = source.graph(&method)?.deep_clone()?;
        let this = graph.inputs().first().copied().ok_or_else(|| Error::invalid("a method has no `self`"))?;
        this.set_type(&target.type_of())?;
        retype(graph.block())?;
        ffi::module_copy_method(source.raw(), &method, target.raw(), &method, graph.raw())?;
    }
    if target.has_method("__setstate__") {
        let state = target.call::<super::IValue>("__getstate__", &[])?;
        target.call("__setstate__", &[state])?;
    }
    Ok(())
}

/// Gives every value that is a submodule the class that the submodule has now.
fn retype(block: Block<'_>) -> Result<()> {
    for node in block.nodes() {
        if let ("prim::GetAttr", Some(object), Some(value), Some(name)) =
            (node.kind(), node.input(0), node.output(0), node.name_attribute())
            && object.type_of().is_module()
            && let Ok(ty) = object.type_of().attribute(&name)
            && ty.is_module()
        {
            value.set_type(&ty)?;
        }
        if let Some(subgraph) = node.subgraph("Subgraph") {
            retype_subgraph(&subgraph, &node.inputs())?;
        }
        for inner in node.blocks() {
            retype(inner)?;
            if node.kind() == "prim::If" {
                for (output, result) in std::iter::zip(node.outputs(), inner.outputs()) {
                    if result.type_of().is_module() {
                        output.set_type(&result.type_of())?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// What `torch.jit.fork` runs is a graph of its own, with what it captures as arguments.
fn retype_subgraph(subgraph: &Graph, captured: &[super::Value<'_>]) -> Result<()> {
    for (argument, value) in subgraph.inputs().into_iter().zip(captured) {
        if value.type_of().is_module() {
            argument.set_type(&value.type_of())?;
        }
    }
    retype(subgraph.block())
}

//! Cloning a module tree with a say in which modules go on sharing a class.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use cxx::SharedPtr;

use super::block::Block;
use super::ffi::bridge as ffi;
use super::graph::Graph;
use super::module::{AttributeInfo, Module, join_path};
use super::types::Type;
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
        let shares: Shares = if share_tensors { |_, _| true } else { |_, _| false };
        Ok(Cloner::new(shares, key, None).copy(self, "")?.0)
    }

    /// A module with classes, attributes and code of its own, which go when it goes. Submodules that shared a class still
    /// do; tensors are copies.
    ///
    /// # Errors
    /// Where libtorch refuses to copy an attribute.
    pub fn deep_clone(&self) -> Result<Self> {
        self.clone_sharing(|_, _| false)
    }

    /// As [`Module::deep_clone`], with the parameters themselves: running it leaves the original's state as it is.
    ///
    /// # Errors
    /// Where libtorch refuses to copy an attribute.
    pub(crate) fn clone_with_own_state(&self) -> Result<Self> {
        self.clone_sharing(|_, attribute| attribute.is_parameter)
    }

    /// The same with the values themselves of the attributes that `shares` says, with the path of their module.
    pub(crate) fn clone_sharing(&self, shares: Shares) -> Result<Self> {
        let unit = ffi::unit_new(self.raw(), refers_to_unit(self)?)?;
        Ok(Cloner::new(shares, |_| (), Some(unit)).copy(self, "")?.0)
    }
}

/// Whether an attribute's value in the clone is the original's, by the path of its module.
type Shares = fn(&str, &AttributeInfo) -> bool;

/// Whether the code of a module or one below it names what its compilation unit holds: functions, classes that are no
/// modules, interfaces, enums. These do not move.
fn refers_to_unit(module: &Module) -> Result<bool> {
    let mut classes = HashSet::new();
    for (_, part) in module.modules() {
        if !classes.insert(part.type_of().id()) {
            continue;
        }
        for attribute in part.attributes() {
            if is_of_unit(&part.type_of().attribute(&attribute.name)?) {
                return Ok(true);
            }
        }
        for method in part.method_names() {
            if graph_refers_to_unit(&part.graph(&method)?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn graph_refers_to_unit(graph: &Graph) -> bool {
    let subgraphs = || graph.all_nodes().into_iter().filter_map(|node| node.subgraph("Subgraph"));
    graph.block().all_values().into_iter().any(|value| is_of_unit(&value.type_of()))
        || subgraphs().any(|subgraph| graph_refers_to_unit(&subgraph))
}

fn is_of_unit(ty: &Type) -> bool {
    match ty.kind().as_str() {
        "TensorType" | "IntType" | "FloatType" | "BoolType" | "NoneType" | "StringType" => false,
        "ClassType" => {
            !ty.is_module() && !ty.class_name().is_some_and(|name| name.starts_with("__torch__.torch.classes."))
        }
        "InterfaceType" | "EnumType" | "FunctionType" => true,
        _ => ty.contained().iter().any(is_of_unit),
    }
}

struct Cloner<K, F> {
    shares: Shares,
    /// A compilation unit for all of it, in which a class has one copy; else each class has copies beside it.
    unit: Option<SharedPtr<ffi::CompilationUnit>>,
    /// The classes' copies in that unit.
    classes: HashMap<usize, Type>,
    key: F,
    memo: cxx::UniquePtr<ffi::CopyMemo>,
    /// What is alike, by original class, key and the children's kinds; and the first copy of that kind.
    kinds: HashMap<(usize, K, Vec<usize>), (usize, Module)>,
}

impl<K: Eq + Hash, F: Fn(&str) -> K> Cloner<K, F> {
    fn new(shares: Shares, key: F, unit: Option<SharedPtr<ffi::CompilationUnit>>) -> Self {
        let memo = ffi::copy_memo_new();
        Self { shares, unit, classes: HashMap::new(), key, memo, kinds: HashMap::new() }
    }

    /// The copy of `source` and the number of its kind.
    fn copy(&mut self, source: &Module, path: &str) -> Result<(Module, usize)> {
        let mut children = Vec::new();
        let mut children_kinds = Vec::new();
        for (name, child) in source.children() {
            let (copy, kind) = self.copy(&child, &join_path(path, &name))?;
            children.push((name, copy));
            if self.unit.is_none() {
                children_kinds.push(kind);
            }
        }
        let kind = (source.type_of().id(), (self.key)(path), children_kinds);
        let known = self.kinds.get(&kind).map(|(number, module)| (*number, module.clone()));
        let target = Module::from_raw(match (&known, &self.unit) {
            (Some((_, alike)), _) => ffi::module_of_class(alike.raw())?,
            (None, Some(unit)) => ffi::module_of_new_class_in(source.raw(), unit)?,
            (None, None) => ffi::module_of_new_class_like(source.raw())?,
        });
        self.copy_attributes(source, path, &target, children).context(|| format!("copying module '{path}'"))?;
        let number = match known {
            Some((number, _)) => number,
            None => {
                if self.unit.is_some() {
                    self.classes.insert(source.type_of().id(), target.type_of());
                }
                self.copy_code(source, &target).context(|| format!("copying the code of module '{path}'"))?;
                let number = self.kinds.len();
                self.kinds.insert(kind, (number, target.clone()));
                number
            }
        };
        Ok((target, number))
    }

    fn copy_attributes(
        &mut self,
        source: &Module,
        path: &str,
        target: &Module,
        children: Vec<(String, Module)>,
    ) -> Result<()> {
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
                None if (self.shares)(path, &attribute) => {
                    ffi::module_copy_attribute(source.raw(), name, target.raw())?
                }
                None => ffi::module_deepcopy_attribute(source.raw(), name, target.raw(), self.memo.pin_mut())?,
            }
        }
        Ok(())
    }

    fn copy_code(&self, source: &Module, target: &Module) -> Result<()> {
        for name in source.constants() {
            ffi::module_copy_constant(source.raw(), &name, target.raw())?;
        }
        for method in source.method_names() {
            let graph = source.graph(&method)?.deep_clone()?;
            let this = graph.inputs().first().copied().ok_or_else(|| Error::invalid("a method has no `self`"))?;
            this.set_type(&target.type_of())?;
            match self.unit {
                Some(_) => self.take_classes(&graph)?,
                None => retype(graph.block())?,
            }
            ffi::module_copy_method(source.raw(), &method, target.raw(), &method, graph.raw())?;
        }
        if target.has_method("__setstate__") {
            let state = target.call::<super::IValue>("__getstate__", &[])?;
            target.call("__setstate__", &[state])?;
        }
        Ok(())
    }

    /// Gives every value of a class the copy of that class.
    fn take_classes(&self, graph: &Graph) -> Result<()> {
        for value in graph.block().all_values() {
            if let Some(class) = self.classes.get(&value.type_of().id()) {
                value.set_type(class)?;
            }
        }
        let subgraphs = graph.all_nodes().into_iter().filter_map(|node| node.subgraph("Subgraph"));
        subgraphs.into_iter().try_for_each(|subgraph| self.take_classes(&subgraph))
    }
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

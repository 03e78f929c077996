//! Operators that write into tensors.

use std::rc::Rc;

use super::state::{HEAP, Known, Object, Storage};
use super::views::{View, copy_of, operator};
use super::walk::{Step, Walker, source};
use crate::error::Error;
use crate::ir::{DType, IValue, Node, Schema, Value};

/// Operators that change sizes and strides of a tensor object, and the views that they make of it.
const RESHAPING: &[(&str, &str)] = &[
    ("aten::unsqueeze_", "aten::unsqueeze"),
    ("aten::squeeze_", "aten::squeeze"),
    ("aten::t_", "aten::t"),
    ("aten::transpose_", "aten::transpose"),
    ("aten::swapaxes_", "aten::swapaxes"),
    ("aten::swapdims_", "aten::swapdims"),
    ("aten::detach_", "aten::detach"),
];

/// Operators that put a tensor object on other memory, or give it other sizes.
const REBINDING: &[&str] = &["aten::set_", "aten::resize_", "aten::resize_as_", "aten::as_strided_", "aten::set_data"];

/// Whether `node` changes something that has other names: a tensor, a list, a dictionary, an attribute.
pub(super) fn changes_something(node: Node<'_>) -> bool {
    node.kind() == "prim::SetAttr" || writes(node)
}

/// Whether `node` writes into an argument.
pub fn writes(node: Node<'_>) -> bool {
    node.schema().is_some_and(|schema| schema.arguments.iter().any(|argument| argument.is_write))
}

/// The arguments that `node` writes into.
pub fn written<'g>(node: Node<'g>) -> Vec<Value<'g>> {
    let arguments = node.schema().map(|schema| schema.arguments).unwrap_or_default();
    let pairs = std::iter::zip(node.inputs(), arguments);
    pairs.filter(|(_, argument)| argument.is_write).map(|(value, _)| value).collect()
}

/// The operator that computes what `kind` writes.
fn functional_kind(kind: &str) -> String {
    let (namespace, name) = kind.split_once("::").unwrap_or(("aten", kind));
    let name = match name {
        "__iand__" => "__and__",
        "__ior__" => "__or__",
        "__ixor__" => "__xor__",
        "__ilshift__" => "__lshift__",
        "__irshift__" => "__rshift__",
        name => name.strip_suffix('_').unwrap_or(name),
    };
    format!("{namespace}::{name}")
}

impl<'g> Walker<'g, '_> {
    /// Replaces `node` where it writes into a tensor; whether it does.
    pub fn write(&mut self, node: Node<'g>) -> Step<bool> {
        let Some(schema) = node.schema() else { return Ok(false) };
        let written: Vec<usize> = (0..schema.arguments.len())
            .filter(|index| schema.arguments[*index].is_write && schema.arguments[*index].type_name == "Tensor")
            .collect();
        let [first, ..] = written[..] else { return Ok(false) };
        let inputs = node.inputs();
        let Known::Tensor(target) = self.known_of(inputs[first])? else { return Ok(false) };
        let reshaping = RESHAPING.iter().find(|(kind, _)| *kind == node.kind());
        if let Some((_, kind)) = reshaping {
            self.reshape(node, target, kind)?;
        } else if written.len() > 1 || REBINDING.contains(&node.kind()) {
            self.write_several(node, &written)?;
        } else {
            self.write_one(node, &schema, first, target)?;
        }
        for (output, result) in std::iter::zip(node.outputs(), &schema.returns) {
            let is_it = |index: &&usize| schema.arguments[**index].alias == result.alias;
            match written.iter().find(is_it) {
                Some(index) => {
                    let known = self.known_of(inputs[*index])?;
                    self.known.insert(output, known);
                }
                None => {
                    let site = self.site(output);
                    self.define(output, site, false, node.next())?;
                }
            }
        }
        Ok(true)
    }

    /// A write into one tensor, in its place or as `out=`.
    fn write_one(&mut self, node: Node<'g>, schema: &Schema, index: usize, target: usize) -> Step<()> {
        if let Some(Object::Pure { storage, .. }) = self.state.objects.get(&target)
            && self
                .state
                .storages
                .get(storage)
                .is_some_and(|storage| storage.current.type_of().kind() == "OptionalType")
        {
            let storage = *storage;
            return self.keep_written(storage, &format!("{} writes into what may be None", source(node)));
        }
        let is_out = schema.arguments[index].name == "out";
        let old = self.read(target, node)?;
        let mut inputs = Vec::new();
        for (place, input) in node.inputs().into_iter().enumerate().filter(|(place, _)| !(is_out && *place == index)) {
            let known = self.known_of(input)?;
            inputs.push(if place == index { old } else { self.value(&known, node, false)? });
        }
        let pure = self.graph.create(&functional_kind(node.kind()), &inputs, 1)?.insert_before(node)?;
        pure.copy_metadata(node)?;
        let fits = pure.schema().is_some_and(|found| {
            let is_tensor = matches!(&found.returns[..], [result] if result.type_name == "Tensor");
            is_tensor && found.arguments.iter().all(|argument| !argument.is_write)
        });
        let new = if fits {
            let new = pure.outputs()[0];
            if self.may_change_dtype(node, old, &inputs) {
                operator(node, node, "aten::type_as", &[new, old])?
            } else {
                new
            }
        } else {
            pure.destroy()?;
            if let Some(Object::Real { value, .. }) = self.state.objects.get(&target) {
                // It writes into the tensor itself.
                let value = *value;
                self.take_others(node, &[index])?;
                node.replace_input(index, value)?;
                self.state.real_writes += 1;
                return self.wrote_real(node);
            }
            let copy = copy_of(node, node, old)?;
            let written = node.copy()?.insert_before(node)?;
            for (place, input) in node.inputs().into_iter().enumerate() {
                let known = self.known_of(input)?;
                let value = if place == index { copy } else { self.value(&known, written, false)? };
                written.replace_input(place, value)?;
            }
            copy
        };
        self.dead.push(node);
        self.set(target, new, node)
    }

    /// A write of an operator that has no form without: into the tensors themselves, or into copies of them.
    fn write_several(&mut self, node: Node<'g>, written: &[usize]) -> Step<()> {
        let mut targets = Vec::new();
        for index in written {
            match self.known_of(node.inputs()[*index])? {
                Known::Tensor(target) => targets.push((*index, target)),
                _ => return Err(Error::invalid(format!("{} writes into what is no tensor", source(node))).into()),
            }
        }
        if REBINDING.contains(&node.kind()) {
            for (_, target) in &targets {
                if let Some(Object::Pure { storage, .. }) = self.state.objects.get(target) {
                    let storage = *storage;
                    return self.keep_written(storage, &format!("{} gives it other memory or sizes", source(node)));
                }
            }
        }
        self.take_others(node, written)?;
        let mut copies = Vec::new();
        for (index, target) in targets {
            match self.state.objects.get(&target) {
                Some(Object::Real { value, .. }) => {
                    let value = *value;
                    node.replace_input(index, value)?;
                    self.state.real_writes += 1;
                }
                _ => {
                    let old = self.read(target, node)?;
                    let copy = copy_of(node, node, old)?;
                    node.replace_input(index, copy)?;
                    copies.push((target, copy));
                }
            }
        }
        self.wrote_real(node)?;
        let next = node.next();
        copies.into_iter().try_for_each(|(target, copy)| self.set(target, copy, next))
    }

    /// Has `node` take the values of this time, but for the arguments `written`.
    fn take_others(&mut self, node: Node<'g>, written: &[usize]) -> Step<()> {
        for (index, input) in node.inputs().into_iter().enumerate().filter(|(index, _)| !written.contains(index)) {
            let known = self.known_of(input)?;
            let value = self.value(&known, node, false)?;
            node.replace_input(index, value)?;
        }
        Ok(())
    }

    /// A tensor that stays written in place was written.
    fn wrote_real(&mut self, _node: Node<'g>) -> Step<()> {
        self.log_write(HEAP);
        Ok(())
    }

    fn log_write(&mut self, thing: usize) {
        self.logs.iter_mut().for_each(|log| _ = log.writes.insert(thing));
    }

    /// `target` has the value `new` from now on, and so has all that shares its memory.
    pub fn set(&mut self, target: usize, new: Value<'g>, at: Node<'g>) -> Step<()> {
        match self.state.objects.get(&target).cloned() {
            Some(Object::Real { value, .. }) => {
                let waits = at.insert_constant(IValue::Bool(false))?;
                operator(at, at, "aten::copy_", &[value, new, waits])?;
                self.state.real_writes += 1;
                Ok(())
            }
            Some(Object::Pure { storage, chain, .. }) => {
                let base = self.scattered(storage, &chain, new, at)?;
                let version = self.number() as u64;
                let site = self.state.storages.get(&storage).map_or((0, 0), |storage| storage.site);
                self.state.storages.insert(storage, Storage { current: base, version, site, is_ghost: false });
                let cached = Some((version, new));
                self.state.objects.insert(target, Object::Pure { storage, chain, cached });
                self.log_write(storage);
                let why = format!("{} may write into it by another name", source(at));
                for other in self.state.linked(storage) {
                    self.state.stale.entry(other).or_insert_with(|| why.clone());
                }
                Ok(())
            }
            None => Err(Error::invalid("a tensor is written that is not known here").into()),
        }
    }

    /// The storage's value with `new` at the end of a chain of views.
    fn scattered(&mut self, storage: usize, chain: &[View<'g>], new: Value<'g>, at: Node<'g>) -> Step<Value<'g>> {
        let (_, mut base) = self.current(storage)?;
        let Some((last, before)) = chain.split_last() else { return Ok(new) };
        let mut bases = vec![base];
        for view in before {
            base = self.apply(view, base, at)?;
            bases.push(base);
        }
        let mut new = new;
        for (view, base) in std::iter::zip(before.iter().chain([last]), bases).collect::<Vec<_>>().into_iter().rev() {
            new = self.scatter(view, base, new, at)?;
        }
        Ok(new)
    }

    /// `unsqueeze_` and its like: the object is another view of its storage from now on.
    fn reshape(&mut self, node: Node<'g>, target: usize, kind: &str) -> Step<()> {
        match self.state.objects.get(&target).cloned() {
            Some(Object::Pure { storage, chain, .. }) => {
                let old = self.read(target, node)?;
                let inputs: Vec<_> = [old].into_iter().chain(node.inputs()[1..].iter().copied()).collect();
                let view = self.graph.create(kind, &inputs, 1)?.insert_before(node)?;
                view.copy_metadata(node)?;
                for (index, input) in node.inputs().into_iter().enumerate().skip(1) {
                    let known = self.known_of(input)?;
                    let value = self.value(&known, view, false)?;
                    view.replace_input(index, value)?;
                }
                let (version, _) = self.current(storage)?;
                let cached = Some((version, view.outputs()[0]));
                let chain: Rc<[_]> = chain.iter().cloned().chain([View { node: view, element: None }]).collect();
                self.state.objects.insert(target, Object::Pure { storage, chain, cached });
                self.dead.push(node);
                Ok(())
            }
            Some(Object::Real { value, .. }) => {
                self.take_others(node, &[0])?;
                node.replace_input(0, value)?;
                self.state.real_writes += 1;
                Ok(())
            }
            None => Err(Error::invalid("a tensor is written that is not known here").into()),
        }
    }

    /// Whether the operator's result may have another element type than the tensor that `node` writes it into. Models in
    /// float64 are refused, so that what is wider than float32 comes from a constant or a conversion.
    fn may_change_dtype(&self, node: Node<'g>, old: Value<'g>, inputs: &[Value<'g>]) -> bool {
        if matches!(node.kind(), "aten::copy_" | "aten::fill_" | "aten::zero_" | "aten::relu_" | "aten::clamp_") {
            return false;
        }
        let compares = ["aten::eq_", "aten::ne_", "aten::lt_", "aten::le_", "aten::gt_", "aten::ge_", "aten::logical"];
        if compares.iter().any(|kind| node.kind().starts_with(kind)) {
            return true;
        }
        let is_other = |value: &&Value<'g>| **value != old && value.type_of().is_tensor();
        inputs.iter().filter(is_other).any(|value| self.may_be_unusual(*value, 8)) || self.may_be_unusual(old, 8)
    }

    /// Whether a tensor may be something else than float32, as far as the graph tells.
    fn may_be_unusual(&self, value: Value<'g>, depth: usize) -> bool {
        let node = value.node();
        if let Some(constant) = value.constant() {
            // A number without dimensions widens nothing.
            return constant.as_tensor().is_some_and(|tensor| {
                !tensor.shape().is_empty() && !matches!(tensor.dtype(), Some(DType::F32 | DType::I64))
            });
        }
        let casts =
            ["aten::to", "aten::double", "aten::type_as", "aten::_to_copy", "aten::int", "aten::long", "aten::bool"];
        let makes = ["aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::arange", "aten::linspace"];
        let names_dtype = |index: usize| {
            let schema = node.schema();
            let place = schema.and_then(|schema| schema.arguments.iter().position(|argument| argument.name == "dtype"));
            let dtype = place.and_then(|place| node.input(place)).and_then(Value::constant);
            index == 0 && !matches!(dtype, Some(IValue::None | IValue::Int(6)))
        };
        if casts.contains(&node.kind()) || makes.iter().any(|kind| node.kind().starts_with(kind)) {
            return names_dtype(0);
        }
        let tensors = node.inputs().into_iter().filter(|input| input.type_of().is_tensor());
        depth > 0 && !value.is_block_input() && {
            let mut tensors = tensors;
            tensors.any(|input| self.may_be_unusual(input, depth - 1))
        }
    }
}

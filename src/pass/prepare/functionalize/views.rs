//! Operators that give a tensor in the memory of another: how to make the view again, and how to write through it.

use super::walk::{Step, Walker};
use crate::error::Error;
use crate::ir::{IValue, Node, Value};

/// A view that a node gives of its first input.
#[derive(Clone, Debug)]
pub(super) struct View<'g> {
    pub node: Node<'g>,
    /// Of a node that gives a list of views: which one.
    pub element: Option<i64>,
}

/// How a node's result shares memory with its first input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// It is a view, always.
    View,
    /// It is a list of views.
    Views,
    /// A view or a copy: that depends on sizes and strides.
    Perhaps,
    /// A new tensor.
    None,
}

/// Operators that give a view where they can and a copy where they cannot.
const PERHAPS: &[&str] = &[
    "aten::reshape",
    "aten::reshape_as",
    "aten::flatten",
    "aten::ravel",
    "aten::contiguous",
    "aten::to",
    "aten::type_as",
    "aten::float",
    "aten::half",
    "aten::double",
    "aten::int",
    "aten::cpu",
    "aten::cuda",
    "aten::_autocast_to_full_precision",
    "aten::_autocast_to_reduced_precision",
    "aten::conj",
    "aten::resolve_conj",
    "aten::resolve_neg",
    "aten::positive",
    // No annotation tells of these.
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
    "aten::atleast_1d",
    "aten::atleast_2d",
    "aten::atleast_3d",
];

/// Their lists of results are views of their lists of inputs, though no annotation tells.
pub(super) const SHARING_LISTS: &[&str] = &["aten::broadcast_tensors", "aten::meshgrid"];

/// Says that a value is no `None`, or of a narrower type.
pub(super) fn is_cast(kind: &str) -> bool {
    matches!(kind, "aten::_unwrap_optional" | "prim::unchecked_unwrap_optional" | "prim::unchecked_cast")
}

/// What a value is a view of, of views, and so on.
pub fn viewed(mut value: Value<'_>) -> Value<'_> {
    while sharing(value.node()) != Sharing::None
        && let Some(base) = value.node().input(0)
    {
        value = base;
    }
    value
}

/// How the result of `node`, which writes nothing, shares memory with its first input.
pub(super) fn sharing(node: Node<'_>) -> Sharing {
    if is_cast(node.kind()) {
        return Sharing::View;
    }
    if PERHAPS.contains(&node.kind()) {
        return Sharing::Perhaps;
    }
    let Some(schema) = node.schema() else { return Sharing::None };
    let ([first, ..], [result]) = (&schema.arguments[..], &schema.returns[..]) else { return Sharing::None };
    match (first.alias == result.alias && !first.alias.is_empty(), result.type_name.as_str()) {
        (true, "Tensor") if first.type_name == "Tensor" => Sharing::View,
        (true, "List[Tensor]") if first.type_name == "Tensor" => Sharing::Views,
        _ => Sharing::None,
    }
}

/// The order of dimensions that takes `permute` back.
fn inverse_order(dims: &IValue) -> Option<Vec<i64>> {
    let IValue::List { items, .. } = dims else { return None };
    let rank = items.len() as i64;
    let mut inverse = vec![-1; items.len()];
    for (to, from) in items.iter().enumerate() {
        let from = from.as_int()?.rem_euclid(rank.max(1));
        *inverse.get_mut(from as usize)? = to as i64;
    }
    inverse.iter().all(|place| *place >= 0).then_some(inverse)
}

impl<'g> Walker<'g, '_> {
    /// The view of `base`, made before `at`.
    pub fn apply(&mut self, view: &View<'g>, base: Value<'g>, at: Node<'g>) -> Step<Value<'g>> {
        let copy = view.node.copy()?.insert_before(at)?;
        copy.replace_input(0, base)?;
        match view.element {
            None => Ok(copy.outputs()[0]),
            Some(element) => self.item_of(copy.outputs()[0], element, at),
        }
    }

    /// `list[index]` before `at`.
    pub fn item_of(&mut self, list: Value<'g>, index: i64, at: Node<'g>) -> Step<Value<'g>> {
        let index = at.insert_constant(IValue::Int(index))?;
        Ok(at.insert_operator("aten::__getitem__", &[list, index])?)
    }

    /// `base` with `new` where `view` looks at it, made before `at`.
    pub fn scatter(&mut self, view: &View<'g>, base: Value<'g>, new: Value<'g>, at: Node<'g>) -> Step<Value<'g>> {
        let node = view.node;
        let rest = &node.inputs()[1..];
        let of = |kind: &str, rest: &[Value<'g>]| -> Step<Value<'g>> {
            let inputs: Vec<_> = [base, new].into_iter().chain(rest.iter().copied()).collect();
            operator(at, node, kind, &inputs)
        };
        let overload = node.schema().map(|schema| schema.overload).unwrap_or_default();
        match (node.kind(), view.element) {
            (kind, None) if is_cast(kind) => Ok(new),
            ("aten::detach" | "aten::alias" | "aten::lift_fresh", None) => Ok(new),
            ("aten::slice", None) => of("aten::slice_scatter", rest),
            ("aten::select", None) if overload == "int" => of("aten::select_scatter", rest),
            ("aten::diagonal", None) if overload.is_empty() => of("aten::diagonal_scatter", rest),
            ("aten::unbind", Some(element)) if overload == "int" => {
                let element = at.insert_constant(IValue::Int(element))?;
                of("aten::select_scatter", &[rest[0], element])
            }
            ("aten::contiguous", None) => Ok(new),
            ("aten::view" | "aten::squeeze", None) if overload != "dtype" && overload != "dimname" => {
                operator(at, node, "aten::reshape_as", &[new, base])
            }
            (
                "aten::view_as" | "aten::_unsafe_view" | "aten::unsqueeze" | "aten::reshape" | "aten::reshape_as"
                | "aten::flatten" | "aten::ravel",
                None,
            ) => operator(at, node, "aten::reshape_as", &[new, base]),
            ("aten::t" | "aten::transpose" | "aten::swapaxes" | "aten::swapdims" | "aten::mT", None) => {
                self.apply(view, new, at)
            }
            ("aten::permute", None) if rest[0].constant().is_some_and(|dims| inverse_order(&dims).is_some()) => {
                let order = rest[0].constant().and_then(|dims| inverse_order(&dims)).unwrap_or_default();
                let order = at.insert_constant(IValue::int_list(order))?;
                operator(at, node, "aten::permute", &[new, order])
            }
            // Whatever the view is: it is made of a copy, and written through.
            _ => {
                let copy = copy_of(at, node, base)?;
                let window = self.apply(view, copy, at)?;
                let in_place = at.insert_constant(false)?;
                operator(at, node, "aten::copy_", &[window, new, in_place])?;
                Ok(copy)
            }
        }
    }
}

/// Inserts an operator that gives one tensor before `at`, in the place of `origin`.
pub(super) fn operator<'g>(at: Node<'g>, origin: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Step<Value<'g>> {
    let node = at.graph().create(kind, inputs, 1)?.insert_before(at)?;
    node.copy_metadata(origin)?;
    if node.schema().is_none() {
        return Err(Error::invalid(format!("libtorch has no {kind} for these inputs")).into());
    }
    Ok(node.outputs()[0])
}

/// `base.clone()` before `at`.
pub(super) fn copy_of<'g>(at: Node<'g>, origin: Node<'g>, base: Value<'g>) -> Step<Value<'g>> {
    let format = at.insert_constant(IValue::None)?;
    operator(at, origin, "aten::clone", &[base, format])
}

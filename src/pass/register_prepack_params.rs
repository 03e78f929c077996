//! `RegisterPrePackParams`: packed weights become attributes of the module, and float weights are released.

use std::collections::{BTreeSet, HashMap};

use super::block_order::block_order;
use super::source_of;
use crate::error::{Context, Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Tensor, Type, Use, Value};

/// Operators that pack a quantized weight, their first input.
const PREPACK: &[&str] = &[
    "quantized::linear_prepack",
    "quantized::conv1d_prepack",
    "quantized::conv2d_prepack",
    "quantized::conv3d_prepack",
    "quantized::conv_transpose1d_prepack",
    "quantized::conv_transpose2d_prepack",
    "quantized::conv_transpose3d_prepack",
];

/// Operators that quantize a weight, their first input.
const QUANTIZE: &[&str] = &["aten::quantize_per_tensor", "aten::quantize_per_channel"];

/// Keeps each packed weight that `method` computes in an attribute of `module`, for a model that quantizes its own
/// weights when it is first run; what libtorch's function of that name does.
///
/// For each node that `is_packed_param` takes, `quantized::…_prepack` of a quantized attribute, `module` gets an
/// attribute `{attr_prefix}_{method}_ondevice_ptq_packed_weight_{number}`, without a value until the method has run.
/// After the node the packed weight is stored in the attribute (`prim::SetAttr`), what used it reads the attribute
/// (`prim::GetAttr`), and the float weight is replaced by an empty tensor. Nested blocks are included. The method should
/// have been inlined: nodes in the methods that it calls are not seen.
///
/// A weight that may still be read later in the same run (it is shared, or read inside a loop) is kept until its last
/// reader has run, or altogether where nothing packs it after that.
///
/// The result holds the names of the new attributes, and the path of each module whose weight was packed, with a dot
/// after each name: `a.b.`, or the empty string for `module` itself.
///
/// # Errors
/// Where there is no such method, or a node that `is_packed_param` takes is not a prepack operator, has a packed weight
/// that is not used exactly once, or packs anything but a quantized attribute reached from the method's `self`. The
/// module is left as it was.
///
/// ```
/// use jitquant::{ir::{Module, Tensor}, pass::register_prepack_params};
/// let module = Module::new("Linear")?;
/// module.register_parameter("weight", Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?)?;
/// module.define(r#"
/// def quantize_forward(self, x: Tensor) -> Tensor:
///     weight = torch.quantize_per_tensor(self.weight, 0.1, 0, 12)
///     packed = ops.quantized.linear_prepack(weight, None)
///     return ops.quantized.linear_dynamic(x, packed, False)
/// "#)?;
/// let is_packed_param = |node: jitquant::ir::Node<'_>| node.kind() == "quantized::linear_prepack";
/// let names = register_prepack_params(&module, "quantize_forward", is_packed_param, "_jit")?;
/// let names: Vec<_> = names.iter().map(String::as_str).collect();
/// assert_eq!(names, ["", "_jit_quantize_forward_ondevice_ptq_packed_weight_0"]);
/// # Ok::<(), jitquant::Error>(())
/// ```
pub fn register_prepack_params(
    module: &Module,
    method: &str,
    is_packed_param: impl FnMut(Node<'_>) -> bool,
    attr_prefix: &str,
) -> Result<BTreeSet<String>> {
    let graph = module.graph(method)?;
    let base = format!("{attr_prefix}_{method}_ondevice_ptq_packed_weight_");
    let plan = plan(module, &graph, &base, is_packed_param)
        .context(|| format!("registering the packed weights of method '{method}'"))?;
    let empty = IValue::Tensor(Tensor::from_slice::<f32>(&[], &[0])?);
    for packing in &plan {
        module.register_attribute(&packing.attribute, &packing.ty, &IValue::None)?;
    }
    for packing in &plan {
        packing.apply(&graph, &empty)?;
    }
    Ok(plan.into_iter().flat_map(|packing| [packing.attribute, packing.path]).collect())
}

/// What is to be done about one prepack node.
struct Packing<'g> {
    node: Node<'g>,
    packed: Value<'g>,
    ty: Type,
    /// The only place where the packed weight is used.
    user: Use<'g>,
    /// The name of the attribute that is to hold it.
    attribute: String,
    /// The module that holds the float weight.
    owner: Value<'g>,
    /// The path to that module, a dot after each name.
    path: String,
    /// The float weight's name there.
    weight: String,
    /// Whether nothing reads the float weight any more once the node has run.
    releases: bool,
}

fn plan<'g>(
    module: &Module,
    graph: &'g Graph,
    base: &str,
    mut is_packed_param: impl FnMut(Node<'_>) -> bool,
) -> Result<Vec<Packing<'g>>> {
    let readers = Readers::of(module, graph);
    let mut number = 0;
    let mut next = |separator: &str| {
        let name = format!("{base}{separator}{number}");
        number += 1;
        name
    };
    let mut plan = Vec::new();
    for node in block_order(graph).into_iter().filter(|node| is_packed_param(*node)) {
        let mut attribute = next("");
        while module.has_attribute(&attribute) {
            attribute = next("_");
        }
        let (packed, user) = only_use(node)?;
        let read = weight_of(node)?;
        let (Some(owner), Some(weight)) = (read.input(0), read.name_attribute()) else {
            return Err(Error::invalid(format!("{} reads an attribute without a name", described(read))));
        };
        let path = owner.attribute_path().ok_or_else(|| {
            Error::invalid(format!(
                "the module whose '{weight}' {} packs is not reached from the method's self by attributes alone",
                described(node)
            ))
        })?;
        let releases = !readers.may_read_after(module, &path, &weight, node)?;
        let path = path.iter().map(|name| format!("{name}.")).collect();
        plan.push(Packing { node, packed, ty: packed.type_of(), user, attribute, owner, path, weight, releases });
    }
    Ok(plan)
}

impl Packing<'_> {
    fn apply(&self, graph: &Graph, empty: &IValue) -> Result<()> {
        let this = graph.inputs()[0];
        let (before, end) = (self.node, self.node.next());
        end.insert_set_attribute(this, &self.attribute, self.packed)?;
        let stored = end.insert_get_attribute(this, &self.attribute)?;
        self.user.user.replace_input(self.user.offset, stored)?;
        if self.releases {
            let constant = graph.create("prim::Constant", &[], 1)?;
            constant.set_attribute("value", empty)?;
            let nothing = constant.insert_before(end)?.outputs()[0];
            end.insert_set_attribute(self.owner, &self.weight, nothing)?;
        }
        let mut inserted = before.next();
        while inserted != end {
            inserted.copy_metadata(before)?;
            inserted = inserted.next();
        }
        Ok(())
    }
}

fn described(node: Node<'_>) -> String {
    match source_of(node) {
        place if place.is_empty() => format!("'{}'", node.kind()),
        place => format!("'{}' ({place})", node.kind()),
    }
}

/// The node's packed weight and the only place where it is used.
fn only_use(node: Node<'_>) -> Result<(Value<'_>, Use<'_>)> {
    let outputs = node.outputs();
    let [packed] = outputs[..] else {
        return Err(Error::invalid(format!(
            "{} has {} outputs, not one packed weight",
            described(node),
            outputs.len()
        )));
    };
    match packed.uses()[..] {
        [user] => Ok((packed, user)),
        [] => Err(Error::invalid(format!("nothing uses the weight that {} packs", described(node)))),
        ref uses => {
            let users: Vec<_> = uses.iter().map(|each| described(each.user)).collect();
            Err(Error::invalid(format!(
                "the weight that {} packs is used in {} places, by {}; it must be used in one",
                described(node),
                users.len(),
                users.join(" and ")
            )))
        }
    }
}

/// The `prim::GetAttr` that reads the float weight of a prepack node.
fn weight_of(node: Node<'_>) -> Result<Node<'_>> {
    if !PREPACK.contains(&node.kind()) {
        let known = PREPACK.join(", ");
        return Err(Error::invalid(format!("{} packs no weight; the operators that do are {known}", described(node))));
    }
    let quantize = node.input(0).map(Value::node).filter(|quantize| QUANTIZE.contains(&quantize.kind()));
    let Some(quantize) = quantize else {
        return Err(Error::invalid(format!(
            "what {} packs was not quantized by {} in the same method",
            described(node),
            QUANTIZE.join(" or ")
        )));
    };
    match quantize.input(0).map(Value::node) {
        Some(read) if read.kind() == "prim::GetAttr" => Ok(read),
        other => Err(Error::invalid(format!(
            "the weight that {} packs is not an attribute of a module but comes from '{}', so it cannot be released",
            described(node),
            other.map_or("nothing", Node::kind)
        ))),
    }
}

/// Which nodes read which attribute: by the module's identity, `None` where it cannot be told, and the name.
struct Readers<'g>(HashMap<(Option<usize>, String), Vec<Node<'g>>>);

impl<'g> Readers<'g> {
    fn of(module: &Module, graph: &'g Graph) -> Self {
        let mut readers: HashMap<_, Vec<_>> = HashMap::new();
        for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::GetAttr") {
            if node.outputs().iter().any(|value| value.type_of().is_module()) {
                continue;
            }
            let path = node.input(0).and_then(|owner| owner.attribute_path());
            let owner = path.and_then(|path| module.submodule(&path.join(".")).ok()).map(|owner| owner.id());
            readers.entry((owner, node.name_attribute().unwrap_or_default())).or_default().push(node);
        }
        Self(readers)
    }

    /// Whether something may read attribute `name` of the module at `path` after `node` in the same run.
    fn may_read_after(&self, module: &Module, path: &[String], name: &str, node: Node<'_>) -> Result<bool> {
        let owner = module.submodule(&path.join(".")).ok().map(|owner| owner.id());
        let within = loops(node);
        for key in BTreeSet::from([owner, None]) {
            for reader in self.0.get(&(key, name.to_owned())).into_iter().flatten() {
                if loops(*reader).iter().any(|each| within.contains(each)) || node.is_before(*reader)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// The `prim::Loop`s that run the node.
fn loops(node: Node<'_>) -> Vec<Node<'_>> {
    std::iter::successors(Some(node), |node| node.owning_block()?.owner())
        .skip(1)
        .filter(|n| n.kind() == "prim::Loop")
        .collect()
}

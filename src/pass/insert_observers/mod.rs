//! Observers around what will be quantized.
//!
//! The steps, each on the clone that is returned:
//! 1. `Module::clone_by`: modules that share a class and are configured differently get classes of their own.
//! 2. `prepare`: every linear layer is `aten::linear`, every convolution names its dimensions, lists are not changed.
//! 3. `plan`: which values are observed, without touching the graphs.
//! 4. `attach`: observers become submodules `_observer_N`, and each planned value goes through one.

mod calls;
pub(super) mod facts;
mod plan;

pub(crate) use self::facts::observed_in_graph;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::calls::CalledGraphs;
use self::plan::{Configuration, Observation, plan};
use super::QuantType;
use super::fuse_linear::{fuse_linear, swap_functional_linear};
use super::replace_convolution::replace_convolution;
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, IValue, Module, Value, join_path};
use crate::qconfig::{QConfig, QConfigDict, unknown_path};

/// Inserts observers for what quantization of `method` needs to know: the inputs and results of operators that have a
/// quantized kernel, and their weights. The contract is that of libtorch's function of this name; `docs/differences.md`
/// lists where this one goes further.
///
/// The module returned is a new one and `module` stays as it is, whether this succeeds or fails. The new one's tensors
/// are copies, or with `inplace` the ones of `module`, which saves memory. A submodule that stands in two places, or is
/// shared by two parents, is two submodules in the result.
///
/// `qconfigs` gives observers by submodule path: a path without an entry has those of the nearest path above, `None`
/// leaves a part in float, paths that do not occur are named in a warning. The observers are copied; each needs a
/// method `forward(self, x: Tensor) -> Tensor` that returns `x`. An observer with a text attribute `observed` is told
/// there what it watches, for its error messages.
///
/// ```
/// use jitquant::ir::{Module, Tensor};
/// use jitquant::observer::{ObserverConfig, ObserverKind};
/// use jitquant::pass::{QuantType, insert_observers};
/// use jitquant::qconfig::{QConfig, QConfigDict};
///
/// let model = Module::new("Model")?;
/// model.register_parameter("weight", Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?)?;
/// model.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(torch.linear(x, self.weight))\n")?;
/// let qconfig = QConfig {
///     activation: ObserverConfig::new(ObserverKind::MinMax).module()?,
///     weight: ObserverConfig::weight(ObserverKind::PerChannelMinMax).module()?,
/// };
/// let qconfigs = QConfigDict::from([(String::new(), Some(qconfig))]);
/// let observed = insert_observers(&model, "forward", &qconfigs, false, QuantType::Static)?;
/// // The input, the weight, and what the relu gives.
/// assert_eq!(observed.children().len(), 3);
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where the module has no such method, or an observer's `forward` does not take a tensor.
pub fn insert_observers(
    module: &Module,
    method: &str,
    qconfigs: &QConfigDict,
    inplace: bool,
    quant_type: QuantType,
) -> Result<Module> {
    module.graph(method)?;
    let (clone, by_module) = clone_configured(module, qconfigs, inplace)?;
    observe(&clone, method, &by_module, quant_type, |_| true)?;
    Ok(clone)
}

/// The observers of modules, by [`Module::id`].
pub(super) type Configured = HashMap<usize, Option<QConfig>>;

/// A clone in which modules that are configured differently have classes of their own, and its modules' observers.
pub(super) fn clone_configured(module: &Module, qconfigs: &QConfigDict, inplace: bool) -> Result<(Module, Configured)> {
    let by_path = inherit(module, qconfigs);
    let identity = |path: &str| by_path.get(path).and_then(Option::as_ref).map(|q| (q.activation.id(), q.weight.id()));
    let clone = module.clone_by(inplace, identity)?;
    let modules = clone.modules().into_iter();
    let by_module = modules.map(|(path, part)| (part.id(), by_path.get(&path).cloned().flatten())).collect();
    Ok((clone, by_module))
}

/// Has `method` observe those of the values to observe that `is_wanted`; the modules that got observers, one of each
/// class, and the observers' names.
pub(super) fn observe(
    module: &Module,
    method: &str,
    qconfigs: &Configured,
    quant_type: QuantType,
    is_wanted: impl Fn(Value<'_>) -> bool,
) -> Result<Vec<(Module, Vec<String>)>> {
    let what = || format!("inserting observers for '{method}'");
    prepare(module, method).context(what)?;
    attach_planned(module, method, &Configuration::ByModule(qconfigs), quant_type, is_wanted).context(what)
}

/// As [`insert_observers`], in place, for a flat module ([`crate::pass::prepare::flatten`]): `qconfigs` holds for the
/// paths that its nodes record. A clamp by constants is observed instead of what it clamps; the nodes `elsewhere`
/// ([`crate::ir::Node::address`]) are left alone.
pub(crate) fn insert_observers_by_scope(
    flat: &Module,
    method: &str,
    qconfigs: &QConfigDict,
    quant_type: QuantType,
    elsewhere: &HashSet<usize>,
) -> Result<()> {
    attach_planned(flat, method, &Configuration::ByScope(qconfigs, elsewhere), quant_type, |_| true)
        .context(|| format!("inserting observers for '{method}'"))?;
    Ok(())
}

/// The observers of each submodule path.
fn inherit(module: &Module, qconfigs: &QConfigDict) -> BTreeMap<String, Option<QConfig>> {
    fn below(
        module: &Module,
        path: &str,
        above: &Option<QConfig>,
        qconfigs: &QConfigDict,
        found: &mut BTreeMap<String, Option<QConfig>>,
    ) {
        let own = qconfigs.get(path).unwrap_or(above);
        found.insert(path.to_owned(), own.clone());
        for (name, child) in module.children() {
            below(&child, &join_path(path, &name), own, qconfigs, found);
        }
    }
    let mut found = BTreeMap::new();
    below(module, "", &None, qconfigs, &mut found);
    for path in qconfigs.keys().filter(|path| !found.contains_key(*path)) {
        tracing::warn!("the configuration for '{path}' has no effect: {}", unknown_path(path, &module.modules()));
    }
    found
}

/// Brings the graphs into the form that the table of operators knows.
fn prepare(module: &Module, method: &str) -> Result<()> {
    let mut classes = HashSet::new();
    for (_, part) in module.modules() {
        if classes.insert(part.type_of().id()) {
            for method in part.method_names() {
                swap_functional_linear(&part.graph(&method)?)?;
            }
        }
    }
    for graph in CalledGraphs::of(module, method)?.methods_mut() {
        graph.run(GeneralPass::InlineForkWait)?;
    }
    for graph in CalledGraphs::of(module, method)?.methods_mut() {
        fuse_linear(graph)?;
        replace_convolution(graph)?;
        graph.run(GeneralPass::RemoveListMutation)?;
    }
    Ok(())
}

fn attach_planned(
    module: &Module,
    method: &str,
    qconfigs: &Configuration<'_>,
    quant_type: QuantType,
    is_wanted: impl Fn(Value<'_>) -> bool,
) -> Result<Vec<(Module, Vec<String>)>> {
    let graphs = CalledGraphs::of(module, method)?;
    let plan = plan(module, method, &graphs, qconfigs, quant_type)?;
    let mut instances: HashMap<usize, Vec<(String, Module)>> = HashMap::new();
    for (path, part) in module.modules() {
        instances.entry(part.type_of().id()).or_default().push((path, part));
    }
    let mut number = 0;
    let mut attached: Vec<(Module, Vec<String>)> = Vec::new();
    for observation in plan.observations.iter().filter(|observation| is_wanted(observation.value)) {
        let class = observation.module.type_of().id();
        let name = attach(observation, &instances[&class], &mut number)?;
        match attached.iter_mut().find(|(module, _)| module.type_of().id() == class) {
            Some((_, names)) => names.push(name),
            None => attached.push((observation.module.clone(), vec![name])),
        }
    }
    Ok(attached)
}

/// Gives each instance of the class an observer, and has the value go through it; the observer's name.
///
/// Instances whose code is not reached get one too: they share the class, and with it the attribute.
fn attach(observation: &Observation<'_>, instances: &[(String, Module)], number: &mut usize) -> Result<String> {
    let value = observation.value;
    let name = loop {
        let name = format!("_observer_{number}");
        *number += 1;
        if instances.iter().all(|(_, instance)| !instance.has_attribute(&name)) {
            break name;
        }
    };
    for (path, instance) in instances {
        let observer = observation.observer.copy_instance()?;
        if let Ok(IValue::Str(_)) = observer.attribute("observed") {
            observer.set_attribute("observed", &describe(value, path)?.into())?;
        }
        instance.register_submodule(&name, &observer)?;
    }
    let next = value.node().next();
    let this = value.graph().inputs()[0];
    let observer = next.insert_get_attribute(this, &name)?;
    observer.set_debug_name(&name)?;
    let observed = next.insert_method_call(observer, "forward", &[value])?;
    observed.node().copy_metadata(value.node())?;
    observed.set_type(&value.type_of())?;
    let debug_name = value.debug_name();
    if !debug_name.starts_with(|c: char| c.is_ascii_digit()) {
        observed.set_debug_name(&debug_name)?;
    }
    value.replace_all_uses_with(observed)?;
    observed.node().replace_input(1, value)?;
    Ok(name)
}

/// A value as a person finds it in the model: `layer1.0.conv1.weight`, `layer1.0: the result of aten::add (net.py:7)`.
fn describe(value: Value<'_>, path: &str) -> Result<String> {
    let node = value.node();
    if let ("prim::GetAttr", Some(name)) = (node.kind(), node.name_attribute()) {
        return Ok(join_path(path, &name));
    }
    let what = match node.kind() {
        "prim::Param" => format!("the argument '{}'", value.debug_name()),
        "prim::CallMethod" => {
            let callee = node.input(0).and_then(|object| object.node().name_attribute()).unwrap_or_default();
            format!("the result of {callee}")
        }
        "prim::CallFunction" => {
            format!("the result of {}", node.input(0).and_then(Value::function_name).unwrap_or_default())
        }
        kind => format!("the result of {kind}"),
    };
    let source = node.source_range()?;
    let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
    Ok(match source.file.is_empty() {
        true => format!("{place}{what}"),
        false => format!("{place}{what} ({}:{})", source.file, source.line),
    })
}

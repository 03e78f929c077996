//! The observers that a method runs, and what they found.

use std::collections::{HashMap, HashSet};

use crate::error::{Context, Error, Result};
use crate::ir::{DType, Graph, IValue, Module, Node, Tensor, Value};
use crate::pass::block_order::block_order;
use crate::pass::layers::called_method;

/// A method's code with the modules that run it: a graph belongs to a class, which may have many instances.
pub(in crate::pass) struct ObservedCode {
    pub graph: Graph,
    /// The modules on which the code is called, and after them the other instances of the class.
    pub instances: Vec<Module>,
    /// How many of the instances it is called on.
    pub called: usize,
}

/// A call of an observer.
pub(in crate::pass) struct Observer<'g> {
    pub call: Node<'g>,
    /// The observer's path, seen from the module that runs the code.
    path: Vec<String>,
    module: Module,
}

/// Whether `value` is an observer: `self._observer_3`.
fn is_observer(value: Value<'_>) -> bool {
    let read = value.node();
    read.kind() == "prim::GetAttr" && read.name_attribute().is_some_and(|name| name.contains("_observer_"))
}

/// The code that `method` of `module` runs, callees before callers.
pub(in crate::pass) fn observed_code(module: &Module, method: &str) -> Result<Vec<ObservedCode>> {
    let mut all = Vec::new();
    collect(module, method, &mut all, &mut HashMap::new(), &mut HashSet::new())?;
    for code in &mut all {
        let called: HashSet<_> = code.instances.iter().map(Module::id).collect();
        let idle = instances(module, &code.instances[0]).into_iter().filter(|other| !called.contains(&other.id()));
        code.called = code.instances.len();
        code.instances.extend(idle);
    }
    Ok(all)
}

fn collect(
    module: &Module,
    method: &str,
    all: &mut Vec<ObservedCode>,
    by_id: &mut HashMap<usize, usize>,
    seen: &mut HashSet<(usize, usize)>,
) -> Result<()> {
    let graph = module.graph(method)?;
    if !seen.insert((module.id(), graph.id())) {
        return Ok(());
    }
    for node in block_order(&graph).into_iter().filter(|node| node.kind() == "prim::CallMethod") {
        if node.input(0).is_some_and(is_observer) {
            continue;
        }
        // What is called on a module that no attributes lead to is not observed.
        let Some((path, method)) = called_method(node) else { continue };
        if let Ok(callee) = module.submodule(&path) {
            collect(&callee, &method, all, by_id, seen)?;
        }
    }
    match by_id.get(&graph.id()) {
        Some(index) => all[*index].instances.push(module.clone()),
        None => {
            by_id.insert(graph.id(), all.len());
            all.push(ObservedCode { graph, instances: vec![module.clone()], called: 1 });
        }
    }
    Ok(())
}

/// The modules below `root` of the class of `module`.
pub(in crate::pass) fn instances(root: &Module, module: &Module) -> Vec<Module> {
    let class = module.type_of().id();
    let mut seen = HashSet::new();
    let all = root.modules().into_iter().map(|(_, part)| part);
    all.filter(|part| part.type_of().id() == class && seen.insert(part.id())).collect()
}

impl ObservedCode {
    /// The observers that the code calls, in the order in which their parameters are named.
    pub fn observers(&self) -> Result<Vec<Observer<'_>>> {
        let mut observers = Vec::new();
        for call in block_order(&self.graph) {
            let is_forward = call.kind() == "prim::CallMethod" && call.name_attribute().as_deref() == Some("forward");
            let Some(object) = call.input(0).filter(|object| is_forward && is_observer(*object)) else { continue };
            let path = object.attribute_path().ok_or_else(|| {
                Error::invalid(format!("%{} is not reached through attributes of self", object.debug_name()))
            })?;
            observers.push(Observer { call, path, module: self.instances[0].clone() });
        }
        Ok(observers)
    }
}

impl<'g> Observer<'g> {
    /// The observer that watches in the code of `instance`.
    pub fn of(&self, instance: &Module) -> Result<Module> {
        instance.submodule(&self.path.join("."))
    }

    /// The observer of the first module that runs the code.
    pub fn first(&self) -> Result<Module> {
        self.of(&self.module)
    }

    /// The names of the attributes that lead to it from `self`.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Its name and a module that holds it.
    pub fn owner(&self) -> Result<(String, Module)> {
        match self.path.split_last() {
            Some((name, above)) => Ok((name.clone(), self.module.submodule(&above.join("."))?)),
            None => Err(Error::invalid("an observer has no name")),
        }
    }

    /// What is observed.
    pub fn original(&self) -> Result<Value<'g>> {
        self.call.input(1).ok_or_else(|| Error::invalid(format!("observer '{}' watches nothing", self.path.join("."))))
    }

    /// Takes the call out of the code, once nobody uses its output.
    pub fn remove_call(&self) -> Result<()> {
        let object = self.call.inputs()[0].node();
        self.call.destroy()?;
        match object.outputs().iter().all(|output| !output.is_used()) {
            true => object.destroy(),
            false => Ok(()),
        }
    }

    /// The observer's output, which the code goes on with.
    pub fn output(&self) -> Value<'g> {
        self.call.outputs()[0]
    }
}

/// Whether it keeps nothing: activations of dynamic quantization, weights and indices of embedding bags.
pub(in crate::pass) fn is_placeholder(observer: &Module) -> bool {
    observer.class_name().contains("PlaceholderObserver")
}

fn named(observer: &Module) -> String {
    observer.type_of().unmangled_class_name().unwrap_or_default()
}

/// The integer attribute `name` of an observer (`dtype`, `qscheme`, `ch_axis`).
fn integer(observer: &Module, name: &str) -> Result<i64> {
    observer
        .attribute(name)?
        .as_int()
        .ok_or_else(|| Error::invalid(format!("'{name}' of observer {} is not a number", named(observer))))
}

/// The element type that an observer asks for, as libtorch's number.
pub(in crate::pass) fn dtype(observer: &Module) -> Result<i64> {
    integer(observer, "dtype")
}

/// The quantization parameters of a value: a suffix of the attribute's name and its content each, in the order of the
/// arguments of `aten::quantize_per_tensor` and `aten::quantize_per_channel`.
#[derive(Clone)]
pub(in crate::pass) struct QParams {
    pub attributes: Vec<(&'static str, IValue)>,
    pub per_channel: bool,
}

/// libtorch's numbers of the schemes with a scale for each channel, affine and symmetric (`c10/core/QScheme.h`).
const PER_CHANNEL: [i64; 2] = [1, 3];

/// Whether an observer finds a scale for each channel.
pub(in crate::pass) fn is_per_channel(observer: &Module) -> Result<bool> {
    Ok(PER_CHANNEL.contains(&integer(observer, "qscheme")?))
}

impl QParams {
    /// What the observer found.
    pub fn of(observer: &Module) -> Result<Self> {
        Self::ask(observer).context(|| format!("asking observer {} for its parameters", named(observer)))
    }

    fn ask(observer: &Module) -> Result<Self> {
        let scalar_type = IValue::Int(dtype(observer)?);
        if is_placeholder(observer) {
            let is_dynamic = matches!(observer.attribute("is_dynamic"), Ok(IValue::Bool(true)));
            let computed = if is_dynamic { Some(scalar_type) } else { observer.attribute("compute_dtype").ok() };
            let attributes = computed.map(|value| ("_scalar_type", value)).into_iter().collect();
            return Ok(Self { attributes, per_channel: false });
        }
        if dtype(observer)? == DType::F16 as i64 {
            return Ok(Self { attributes: Vec::new(), per_channel: false });
        }
        let found = observer.call::<IValue>("calculate_qparams", &[])?;
        let (scale, zero_point) = match &found {
            IValue::Tuple(items) => match &items[..] {
                [IValue::Tensor(scale), IValue::Tensor(zero_point)] => (scale, zero_point),
                _ => return Err(wrong_qparams(&found)),
            },
            _ => return Err(wrong_qparams(&found)),
        };
        let scales = scale.to_f32_vec()?;
        let zero_points: Vec<i32> = zero_point.to_f32_vec()?.into_iter().map(|value| value as i32).collect();
        let per_channel = is_per_channel(observer)?;
        let mut attributes = match (per_channel, &scales[..], &zero_points[..]) {
            (true, ..) => vec![
                ("_scale", Tensor::from_slice(&scales, &scale.shape())?.into()),
                ("_zero_point", Tensor::from_slice(&zero_points, &zero_point.shape())?.into()),
                ("_axis", IValue::Int(integer(observer, "ch_axis")?)),
            ],
            (false, [scale], [zero_point]) => {
                vec![("_scale", f64::from(*scale).into()), ("_zero_point", i64::from(*zero_point).into())]
            }
            (false, scales, zero_points) => {
                return Err(Error::invalid(format!(
                    "one scale and one zero point are expected of a per-tensor observer, not {} and {}",
                    scales.len(),
                    zero_points.len()
                )));
            }
        };
        attributes.push(("_scalar_type", scalar_type));
        Ok(Self { attributes, per_channel })
    }
}

fn wrong_qparams(found: &IValue) -> Error {
    Error::invalid(format!("calculate_qparams should return (scale, zero_point), two tensors, not a {}", found.kind()))
}

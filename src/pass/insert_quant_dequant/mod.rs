//! Observers become quantization: `InsertQuantDeQuant`.
//!
//! The steps, each on the clone that is returned:
//! 1. `observed`: the observers that the method runs, and what they found.
//! 2. `weights`: in dynamic quantization the observers of weights have seen nothing yet and are run.
//! 3. `replace`: each observer's call becomes quantize and dequantize, its parameters attributes of the module.
//! 4. `replicate` and `propagate`, on the inlined method: quantize and dequantize move to where a quantized operator can
//!    take them in.

mod embedding_bag;
pub(super) mod observed;
mod propagate;
pub(super) mod replace;
mod replicate;
pub(super) mod weights;

use std::collections::{HashMap, HashSet};

use self::observed::{ObservedCode, observed_code};
pub use self::replicate::{replicate_dequant, replicate_quant};
use super::QuantType;
use super::fuse_linear::swap_functional_linear;
use super::op_table::Conditions;
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, Module};

/// Quantizes and dequantizes every value that `method` observes, with the parameters that its observer gives
/// (`calculate_qparams`), and takes the observers away. The contract is that of libtorch's function of this name;
/// `docs/differences.md` lists where this one goes further.
///
/// The parameters become attributes beside the code that reads them: `{value}_scale_0`, `{value}_zero_point_0`,
/// `{value}_scalar_type_0`, and `{value}_axis_0` per channel. With [`QuantType::Dynamic`] the observers of weights are
/// run first, and activations get `aten::_choose_qparams_per_tensor`; an observer whose `dtype` is float16 makes a
/// weight that is rounded to float16. `method` comes back inlined. Operators that move elements or keep their range
/// hand quantization on.
///
/// The module returned is a new one; its tensors are copies, or with `inplace` the ones of `module`. It computes in
/// float what an INT8 model would: [`finalize`](super::finalize) makes that of it. With `debug`, operators whose float
/// form computes something else (a scalar added or multiplied) are named in a warning.
///
/// ```
/// use jitquant::Quantizer;
/// use jitquant::ir::{Module, Tensor};
/// use jitquant::pass::{QuantType, insert_quant_dequant};
/// # let linear = Module::new("torch.nn.modules.linear.Linear")?;
/// # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&linear)?;
/// prepared.calibrate(&[Tensor::from_slice(&[0.0f32, 1.0], &[1, 2])?])?;
/// let quantized = insert_quant_dequant(prepared.module(), "forward", false, false, QuantType::Static)?;
/// let graph = quantized.graph("forward")?;
/// // The input, the weight and the result.
/// assert_eq!(graph.nodes().filter(|node| node.kind() == "aten::dequantize").count(), 3);
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where the module has no such method, or an observer has not what quantization asks of it; the message names the
/// observer.
pub fn insert_quant_dequant(
    module: &Module,
    method: &str,
    inplace: bool,
    debug: bool,
    quant_type: QuantType,
) -> Result<Module> {
    module.graph(method)?;
    let copy = module.clone_by(inplace, |_| ())?;
    let what = || format!("quantizing what '{method}' observes");
    quantize_observed(&copy, method, quant_type).context(what)?;
    propagate_quantization(&copy, method, debug, quant_type, Conditions::Ignored).context(what)?;
    Ok(copy)
}

/// As [`insert_quant_dequant`] on a copy of a flat module ([`crate::pass::prepare::flatten`]); operators hand quantization on
/// only where their arguments allow it.
pub(crate) fn insert_quant_dequant_by_conditions(
    module: &Module,
    method: &str,
    quant_type: QuantType,
) -> Result<Module> {
    let copy = module.clone_by(false, |_| ())?;
    let what = || format!("quantizing what '{method}' observes");
    quantize_observed(&copy, method, quant_type).context(what)?;
    propagate_quantization(&copy, method, false, quant_type, Conditions::Asked).context(what)?;
    Ok(copy)
}

fn quantize_observed(module: &Module, method: &str, quant_type: QuantType) -> Result<()> {
    let observed = observed_code(module, method)?;
    if quant_type == QuantType::Dynamic {
        for code in &observed {
            weights::run_observers(code)?;
        }
    }
    for code in &observed {
        replace::replace_observers(code, quant_type)?;
    }
    remove_observers(module, &observed)
}

/// Takes the calls of observers out of the code, and the observers away from the modules.
fn remove_observers(module: &Module, observed: &[ObservedCode]) -> Result<()> {
    let mut removed = HashSet::new();
    let mut instances: HashMap<usize, Vec<Module>> = HashMap::new();
    for code in observed {
        for observer in code.observers()? {
            observer.remove_call()?;
            let (name, owner) = observer.owner()?;
            let class = owner.type_of().id();
            if removed.insert((class, name.clone())) {
                let all = instances.entry(class).or_insert_with(|| observed::instances(module, &owner));
                Module::remove_attribute_of_class(all, &name)?;
            }
        }
    }
    Ok(())
}

/// Inlines the method and moves quantize and dequantize through it.
pub(super) fn propagate_quantization(
    module: &Module,
    method: &str,
    debug: bool,
    quant_type: QuantType,
    conditions: Conditions,
) -> Result<()> {
    let mut classes = HashSet::new();
    for (_, part) in module.modules() {
        if classes.insert(part.type_of().id()) {
            for method in part.method_names() {
                swap_functional_linear(&part.graph(&method)?)?;
            }
        }
    }
    let mut graph = module.graph(method)?;
    graph.run(GeneralPass::Inline)?;
    graph.run(GeneralPass::ConstantPropagation)?;
    if quant_type == QuantType::Dynamic {
        replicate::dynamic_quantization_per_use(&graph)?;
        replicate::drop_idle_dynamic_quantization(&graph)?;
    }
    replicate_quant(&graph)?;
    replicate_dequant(&graph)?;
    replicate::drop_idle_quantization(&graph)?;
    replicate::clamp_bounds_per_use(&graph)?;
    propagate::propagate(graph.block(), debug, conditions)?;
    propagate::drop_idle_dequantize(&graph)
}

//! Quantization on the device: the float model is shipped with methods that observe, quantize and run it there.
//!
//! For a method `forward` these are `observe_forward`, which runs in float and lets the observers watch,
//! `reset_observers_forward`, `quantize_forward`, which packs the weights with what was observed, and
//! `quantized_forward`, the INT8 model. They should start from a method that has been inlined.

use std::collections::BTreeSet;

use super::QuantType;
use super::finalize::{forget_shapes, insert_prepack_unpack, quant_fusion};
use super::fuse_linear::swap_functional_linear;
use super::insert_observers::{clone_configured, observe};
use super::insert_quant_dequant::observed::{Observer, dtype, is_per_channel, is_placeholder, observed_code};
use super::insert_quant_dequant::propagate_quantization;
use super::insert_quant_dequant::replace::{dequantize, insert, name_after};
use super::op_table::{Conditions, OPERATORS, Operator};
use super::register_prepack_params::register_prepack_params;
use crate::error::{Context, Error, Result};
use crate::ir::{DType, GeneralPass, Graph, IValue, Module, Node, Type, Value};
use crate::qconfig::QConfigDict;

/// Adds the method `observe_{method}`, a copy of `method` with observers, and `reset_observers_{method}`, which calls
/// `reset_min_max_vals` of each. With [`QuantType::Dynamic`] weights alone are observed. The contract is that of
/// libtorch's `InsertObserversForOnDevicePTQ`; see [`insert_observers`](super::insert_observers) for the rest.
///
/// # Errors
/// As [`insert_observers`](super::insert_observers), and where an observer has no method `reset_min_max_vals`.
pub fn insert_observers_for_on_device_ptq(
    module: &Module,
    method: &str,
    qconfigs: &QConfigDict,
    inplace: bool,
    quant_type: QuantType,
) -> Result<Module> {
    module.graph(method)?;
    let (clone, by_module) = clone_configured(module, qconfigs, inplace)?;
    swap_functional_linear(&clone.graph(method)?)?;
    let observing = format!("observe_{method}");
    clone.clone_method(method, &observing)?;
    let is_wanted = |value: Value<'_>| quant_type == QuantType::Static || is_weight(value);
    for (part, names) in observe(&clone, &observing, &by_module, quant_type, is_wanted)? {
        let calls: Vec<_> = names.iter().map(|name| format!("    self.{name}.reset_min_max_vals()\n")).collect();
        part.define(&format!("def reset_observers_{method}(self) -> None:\n{}", calls.concat()))
            .context(|| format!("making the method that resets the observers of '{method}'"))?;
    }
    Ok(clone)
}

fn is_weight(value: Value<'_>) -> bool {
    let mut uses = value.uses().into_iter().filter_map(Operator::of_use);
    uses.any(|(row, argument)| row.weight == Some(argument))
}

/// `x` of `{prefix}x`.
fn after_prefix<'a>(method: &'a str, prefix: &str, what: &str) -> Result<&'a str> {
    method.strip_prefix(prefix).ok_or_else(|| {
        Error::invalid(format!(
            "{what} starts from a method '{prefix}…', which the step before it makes, not '{method}'"
        ))
    })
}

/// Adds the method `quantize_x`, a copy of the method `observe_x`, in which each observer's call is replaced by
/// quantize and dequantize with what the observer's `calculate_qparams` gives when the method runs. The contract is
/// that of libtorch's `InsertQuantDeQuantOnDevicePTQ`, which also inlines `forward`.
///
/// # Errors
/// Where `method` does not begin with `observe_`, does not exist, or an observer has not what quantization asks of it.
pub fn insert_quant_dequant_on_device_ptq(
    module: &Module,
    method: &str,
    inplace: bool,
    debug: bool,
    quant_type: QuantType,
) -> Result<Module> {
    let original = after_prefix(method, "observe_", "quantization on the device")?;
    module.graph(method)?;
    let copy = module.clone_by(inplace, |_| ())?;
    let quantizing = format!("quantize_{original}");
    copy.clone_method(method, &quantizing)?;
    let what = || format!("quantizing what '{method}' observes");
    for code in observed_code(&copy, &quantizing)? {
        for observer in code.observers()? {
            replace_by_calculation(&code.graph, &observer, quant_type).context(what)?;
            observer.remove_call()?;
        }
    }
    if quant_type == QuantType::Static {
        // libtorch leaves this method as it is, and then fails to make an INT8 form of it.
        propagate_quantization(&copy, &quantizing, debug, quant_type, Conditions::Ignored).context(what)?;
    }
    if copy.has_method("forward") {
        propagate_quantization(&copy, "forward", debug, quant_type, Conditions::Ignored).context(what)?;
    }
    Ok(copy)
}

/// Puts quantize and dequantize in the observer's place, with parameters that it calculates when the code runs.
fn replace_by_calculation<'g>(graph: &'g Graph, observer: &Observer<'g>, quant_type: QuantType) -> Result<()> {
    let (at, original, module) = (observer.call.next(), observer.original()?, observer.first()?);
    let name = observer.owner()?.0;
    if is_placeholder(&module) {
        return Err(Error::invalid(format!("'{name}' is a placeholder, which observes nothing on the device")));
    }
    let is_half = dtype(&module)? == DType::F16 as i64;
    let dequantized = match (is_half, quant_type) {
        (true, QuantType::Dynamic) => insert(at, "aten::_saturate_weight_to_fp16", &[original])?,
        (true, QuantType::Static) => original,
        (false, _) => {
            let object = at.insert_attribute_path(graph.inputs()[0], observer.path())?;
            let qparams = at.insert_method_call(object, "calculate_qparams", &[])?;
            let unpacked = graph.create("prim::TupleUnpack", &[qparams], 2)?.insert_before(at)?;
            let per_channel = is_per_channel(&module)?;
            let mut inputs = vec![original];
            inputs.extend(unpacked.outputs());
            for name in ["ch_axis", "dtype"].into_iter().skip(usize::from(!per_channel)) {
                inputs.push(at.insert_get_attribute(object, name)?);
            }
            let kind = if per_channel { "aten::quantize_per_channel" } else { "aten::quantize_per_tensor" };
            let quantized = insert(at, kind, &inputs)?;
            name_after(quantized, original, "quant")?;
            dequantize(at, quantized, original, 0)?
        }
    };
    observer.output().replace_all_uses_with(original)?;
    match dequantized == original {
        true => Ok(()),
        false => original.replace_all_uses_after(dequantized.node(), dequantized),
    }
}

/// Makes INT8 methods of `quantize_x`: it packs the weights and keeps them in attributes of the module, and returns
/// nothing; `quantized_x` runs with them. The float weights are released when it runs. The contract is that of
/// libtorch's `FinalizeOnDevicePTQ`; see [`register_prepack_params`] for the attributes' names. `module` stays as it is.
///
/// # Errors
/// Where `method` does not begin with `quantize_` or does not exist, and as [`register_prepack_params`].
pub fn finalize_on_device_ptq(module: &Module, quant_type: QuantType, method: &str) -> Result<Module> {
    let original = after_prefix(method, "quantize_", "the INT8 form of a method")?;
    module.graph(method)?;
    let copy = module.clone_by(true, |_| ())?;
    forget_shapes(&copy)?;
    let mut graph = copy.graph(method)?;
    for pass in [
        GeneralPass::CommonSubexpressionElimination,
        GeneralPass::DeadCodeElimination,
        GeneralPass::Peephole,
        GeneralPass::ConstantPropagation,
        GeneralPass::UnrollConstantLoops,
        GeneralPass::ConstantPooling,
    ] {
        graph.run(pass)?;
    }
    insert_prepack_unpack(&graph)?;
    quant_fusion(&graph, quant_type)?;
    drop(graph);
    let prepacks: Vec<_> = OPERATORS.iter().filter_map(|row| Some(row.packing?.prepack)).collect();
    let names = register_prepack_params(&copy, method, |node| prepacks.contains(&node.kind()), "")?;
    let running = format!("quantized_{original}");
    copy.clone_method(method, &running)?;
    keep_running(copy.graph(&running)?, &names)?;
    keep_packing(copy.graph(method)?)?;
    copy.declare_returns_none(method)?;
    Ok(copy)
}

fn destroy_all(graph: &Graph, is_superfluous: impl Fn(Node<'_>) -> bool) -> Result<()> {
    graph.all_nodes().into_iter().filter(|node| is_superfluous(*node)).try_for_each(Node::destroy)
}

/// Takes the packing out: weights are neither packed nor released, and observers are not asked.
fn keep_running(mut graph: Graph, names: &BTreeSet<String>) -> Result<()> {
    destroy_all(&graph, |node| node.kind() == "prim::SetAttr" && stores_weight(node, names))?;
    graph.run(GeneralPass::ConstantPooling)?;
    graph.run(GeneralPass::DeadCodeElimination)?;
    destroy_all(&graph, |node| {
        let unused = node.outputs().into_iter().all(|output| !output.is_used());
        let asks = node.kind() == "prim::CallMethod" && node.name_attribute().as_deref() == Some("calculate_qparams");
        asks && unused
    })?;
    graph.run(GeneralPass::DeadCodeElimination)
}

/// Whether it keeps a packed weight, or puts an empty tensor in the place of a float one; `names` is what
/// [`register_prepack_params`] returned.
fn stores_weight(node: Node<'_>, names: &BTreeSet<String>) -> bool {
    if node.name_attribute().is_some_and(|name| names.contains(&name)) {
        return true;
    }
    let releases = node
        .input(1)
        .and_then(Value::constant)
        .is_some_and(|value| matches!(&value, IValue::Tensor(tensor) if tensor.shape() == [0]));
    let owner = node.input(0).and_then(Value::attribute_path);
    let path = owner.map(|path| path.iter().map(|name| format!("{name}.")).collect::<String>());
    releases && path.is_some_and(|path| names.contains(&path))
}

/// Takes everything out but the packing.
fn keep_packing(mut graph: Graph) -> Result<()> {
    let block = graph.block();
    for index in (0..block.outputs().len()).rev() {
        block.erase_output(index)?;
    }
    let none = graph.create("prim::Constant", &[], 1)?.insert_before(block.return_node())?.outputs()[0];
    none.set_type(&Type::parse("None")?)?;
    block.register_output(none)?;
    graph.run(GeneralPass::DeadCodeElimination)
}

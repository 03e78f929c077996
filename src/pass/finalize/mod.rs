//! The INT8 model: `Finalize`.
//!
//! The steps, each on the clone that is returned:
//! 1. `prepack`: quantized weights are packed and unpacked again before their operators.
//! 2. `fusion`: operators between dequantize and quantize become quantized operators, as `op_table` says.
//! 3. freezing (libtorch's): attributes become constants. Weights that are constants before are packed before.
//! 4. `fold_prepack`: weights are packed, and kept as attributes.

mod float_readers;
pub(super) mod fold_prepack;
mod fusion;
mod one_dimension;
mod prepack;

pub use fold_prepack::{fold_constant_prepacks, fold_quantized_prepacking_ops};
pub use fusion::quant_fusion;
pub use prepack::insert_prepack_unpack;

use self::float_readers::read_in_float;
use self::fold_prepack::{fold_prepacking, name_packed, pack_early};
use self::fusion::quant_fusion_by;
use self::prepack::{insert_prepack_unpack_by, restore_weights};
use super::QuantType;
use super::changed_attributes::changed_attributes;
use super::op_table::Conditions;
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, Module};

/// Makes an INT8 module of what [`insert_quant_dequant`](super::insert_quant_dequant) returned. The contract is that of
/// libtorch's function of this name; `docs/differences.md` lists where this one goes further.
///
/// The module returned is frozen: `forward` is inlined and has no attributes but packed weights,
/// `quantized_forward._jit_pass_packed_weight_0` and so on. `preserved` names methods and attributes to keep beside it.
/// It runs in any libtorch. `module` stays as it is.
///
/// ```
/// use jitquant::Quantizer;
/// use jitquant::ir::{Module, Tensor};
/// use jitquant::pass::{QuantType, finalize, insert_quant_dequant};
/// # let linear = Module::new("torch.nn.modules.linear.Linear")?;
/// # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&linear)?;
/// prepared.calibrate(&[Tensor::from_slice(&[0.0f32, 1.0], &[1, 2])?])?;
/// let quantized = insert_quant_dequant(prepared.module(), "forward", false, false, QuantType::Static)?;
/// let int8 = finalize(&quantized, QuantType::Static, &[])?;
/// assert!(int8.graph("forward")?.nodes().any(|node| node.kind() == "quantized::linear"));
/// assert!(int8.has_attribute("quantized_forward._jit_pass_packed_weight_0"));
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where the module has no `forward`, `preserved` names what it has not, or libtorch cannot freeze it.
pub fn finalize(module: &Module, quant_type: QuantType, preserved: &[String]) -> Result<Module> {
    finalize_by(module, quant_type, preserved, Conditions::Ignored)
}

/// As [`finalize`]; with conditions, the table's are asked.
pub(crate) fn finalize_by(
    module: &Module,
    quant_type: QuantType,
    preserved: &[String],
    conditions: Conditions,
) -> Result<Module> {
    module.graph("forward")?;
    let copy = module.clone_by(true, |_| ())?;
    forget_shapes(&copy)?;
    let graph = copy.graph("forward")?;
    insert_prepack_unpack_by(&graph, conditions)?;
    quant_fusion_by(&graph, quant_type, conditions)?;
    if conditions == Conditions::Asked {
        restore_weights(&graph)?;
        read_in_float(&graph)?;
    }
    drop(graph);
    let mut preserved = preserved.to_vec();
    let mut early = Vec::new();
    if conditions == Conditions::Asked {
        preserved.extend(changed_attributes(&copy, true)?);
        early = pack_early(&copy, &preserved)?;
        preserved.extend_from_slice(&early);
    }
    let frozen = copy.fold_attributes(&preserved).context(|| "freezing the quantized module".into())?;
    name_packed(&frozen, &early)?;
    fold_prepacking(&frozen, conditions == Conditions::Asked)?;
    Ok(frozen)
}

/// The shapes that tracing recorded are those of one input: freezing would take them for facts.
pub(super) fn forget_shapes(module: &Module) -> Result<()> {
    module.method_names().iter().try_for_each(|method| module.graph(method)?.run(GeneralPass::ClearProfiling))
}

//! From libtorch's quantized tensors to plain bytes: portable graphs become native ones.
//!
//! A portable graph computes with `quantized::` operators on tensors of quantized dtypes. A native one computes the same
//! with `jitquant::` operators on `uint8` tensors; scales and zero points are arguments. Native operators take in what
//! stands around them, which stock ones cannot: residual sums, clamps, functions of one value, the change to the next
//! layer's scale.
//!
//! 1. [`convert`]: each `quantized::` operator becomes its native one, value by value; what has none goes on with libtorch's
//!    tensors, made from the bytes and taken apart again.
//! 2. [`simplify`]: what is left of float between bytes goes: dequantize and quantize meet, functions become tables, zeros
//!    around an image become padding.
//! 3. [`fuse`]: layers take in what follows them.

mod call;
mod convert;
mod fuse;
mod operators;
mod simplify;
mod tables;
mod transposed;
mod weight_only;
mod weights;

use std::collections::BTreeMap;

use self::convert::convert;
pub(crate) use self::transposed::pack_transposed;
use self::weights::{Holder, Weights};
use crate::error::{Context, Result};
use crate::ir::{GeneralPass, Graph, Module};

/// How often [`simplify`](simplify::simplify) and [`fuse`](fuse::fuse) take turns at most; each makes room for the other.
const ROUNDS: usize = 16;

/// Makes a module in native form of one that [`finalize`](super::finalize) or libtorch's `Finalize` made; `module` stays as it is.
///
/// Every method is rewritten. Weights are repacked, and are attributes `jitquant_weight_0`, …; the stock packed ones are gone
/// where no code reads them any more. The module needs jitquant to load and to run, and uses none of libtorch's quantized
/// dtypes, except around operators that have no native form: see [`stock_operators`].
///
/// ```
/// use jitquant::Quantizer;
/// use jitquant::ir::{Module, Tensor};
/// use jitquant::pass::{stock_operators, to_native};
/// # let linear = Module::new("torch.nn.modules.linear.Linear")?;
/// # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&linear)?;
/// prepared.calibrate(&[Tensor::from_slice(&[0.0f32, 1.0], &[1, 2])?])?;
/// let native = to_native(&prepared.convert()?.module)?;
/// assert!(native.graph("forward")?.nodes().any(|node| node.kind() == "jitquant::linear_float"));
/// assert!(stock_operators(&native)?.is_empty());
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where a weight has no native form (its scales run along another axis than the outputs), or libtorch refuses to change the
/// code.
pub fn to_native(module: &Module) -> Result<Module> {
    crate::init()?;
    let native = module.clone_by(false, |_| ())?;
    let mut weights = Weights::new(Holder::Module(&native));
    for method in native.method_names() {
        let mut graph = native.graph(&method)?;
        super::exact::as_depthwise(&native, &graph)?;
        rewrite(&mut graph, &mut weights).context(|| format!("the native form of '{method}'"))?;
    }
    weights.release_unread()?;
    Ok(native)
}

/// Rewrites a graph that libtorch executes: constant packed weights become native ones, repacked once; others, which the
/// graph reads from its module, are looked up when it runs. How many layers became native.
pub(crate) fn rewrite_executed(graph: &mut Graph) -> Result<usize> {
    rewrite(graph, &mut Weights::new(Holder::Graph))
}

fn rewrite(graph: &mut Graph, weights: &mut Weights<'_>) -> Result<usize> {
    super::for_fbgemm(graph)?;
    let converted = convert(graph, weights)?;
    let small = weight_only::to_native(graph, weights)?;
    if small > 0 {
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    if converted > 0 {
        for _ in 0..ROUNDS {
            let mut changes = simplify::simplify(graph, weights)?;
            changes += fuse::fuse(graph)?;
            graph.run(GeneralPass::DeadCodeElimination)?;
            if changes == 0 {
                break;
            }
        }
        graph.run(GeneralPass::ConstantPooling)?;
    }
    Ok(converted + small)
}

/// The operators on libtorch's quantized tensors that a module calls, and how often: none in a module that is in native form
/// throughout.
///
/// # Errors
/// Where a graph cannot be read.
pub fn stock_operators(module: &Module) -> Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for method in module.method_names() {
        for node in module.graph(&method)?.all_nodes() {
            let kind = node.kind();
            if kind.starts_with("quantized::") || operators::makes_quantized(kind) {
                *found.entry(kind.to_owned()).or_default() += 1;
            }
        }
    }
    Ok(found)
}

//! The passes over one graph, for C++ programs that hold graphs of libtorch's.

use std::ffi::c_void;

use super::argument;
use super::module::{self, graph_turn, jq_module};
use super::quantizer::{jq_quant_type, quant_type};
use super::status::{Failure, Outcome, enter, jq_status};
use crate::error::Result;
use crate::ir::Graph;
use crate::pass;

/// Changes the host's graph, or nothing: where the pass fails on a copy, the graph is not touched.
///
/// # Safety
/// As the header asks for.
unsafe fn change(torch_graph: *mut c_void, pass: impl Fn(&Graph) -> Result<()>) -> Outcome<()> {
    let host = argument::host(torch_graph.cast_const(), "torch_graph", "std::shared_ptr<torch::jit::Graph>")?;
    let _turn = graph_turn()?;
    // SAFETY: the caller's promise.
    let Some(graph) = (unsafe { Graph::from_host(host) }) else {
        return Err(Failure::argument("'torch_graph' is an empty pointer; a graph is expected"));
    };
    pass(&graph.deep_clone()?)?;
    Ok(pass(&graph)?)
}

/// `FuseLinear`: products with a transposed weight, `addmm` and the function `linear` become `aten::linear`.
///
/// `torch_graph` is not null and the address of the host's `std::shared_ptr<torch::jit::Graph>`. A failed call leaves the
/// graph as it was. Any thread, as long as no other one uses the graph.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_fuse_linear(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::fuse_linear) })
}

/// `SwapFunctionalLinear`: calls of the function `linear` become `aten::linear`. The rest is as for `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_swap_functional_linear(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::swap_functional_linear) })
}

/// `ReplicateQuant`: what joins branches and is quantized then is quantized in each branch. The rest is as for
/// `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_replicate_quant(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::replicate_quant) })
}

/// `ReplicateDeQuant`: each use of a dequantized value gets a dequantize of its own. The rest is as for `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_replicate_dequant(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::replicate_dequant) })
}

/// `FuseQuantizedAddRelu`: `quantized::add` and its kin take in the relu behind them. The rest is as for `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_fuse_quantized_add_relu(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::fuse_quantized_add_relu) })
}

/// `InsertPrepackUnpack`: quantized weights are packed and unpacked again before their operators. The rest is as for
/// `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_insert_prepack_unpack(torch_graph: *mut c_void) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { change(torch_graph, pass::insert_prepack_unpack) })
}

/// `QuantFusion`: float operators between dequantize and quantize become quantized ones. The rest is as for
/// `jq_fuse_linear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quant_fusion(torch_graph: *mut c_void, quant_type: jq_quant_type) -> jq_status {
    enter(|| {
        let quant_type = self::quant_type(quant_type)?;
        // SAFETY: the caller's promise.
        unsafe { change(torch_graph, |graph| pass::quant_fusion(graph, quant_type)) }
    })
}

/// `FoldQuantizedPrepackingOps`: weights that `forward` of `module` packs at each run are packed now and kept in attributes.
/// Any thread, as long as no other one uses the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_fold_quantized_prepacking_ops(module: *mut jq_module) -> jq_status {
    enter(|| {
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        Ok(pass::fold_quantized_prepacking_ops(&module)?)
    })
}

//! Quantization passes over TorchScript modules.

mod any_engine;
mod block_order;
pub(crate) mod changed_attributes;
mod dedup_module_uses;
pub(crate) mod exact;
mod finalize;
mod float_results;
mod fold_conv_batch_norm;
mod fuse_linear;
mod fuse_quantized_add_relu;
mod insert_observers;
mod insert_quant_dequant;
mod large_numbers;
mod layers;
mod native;
mod on_device;
pub mod op_table;
pub mod prepare;
mod program;
mod register_prepack_params;
mod replace_convolution;
mod unfit_weight;
mod unquantized;
pub(crate) mod weight_only;

pub(crate) use any_engine::{for_any_engine, for_fbgemm};
pub use dedup_module_uses::dedup_module_uses;
pub(crate) use exact::exact_on;
pub use exact::{EngineForm, Inexact, inexact};
pub(crate) use finalize::finalize_by;
pub use finalize::{
    finalize, fold_constant_prepacks, fold_quantized_prepacking_ops, insert_prepack_unpack, quant_fusion,
};
pub use float_results::float_results;
pub use fold_conv_batch_norm::fold_conv_batch_norm;
pub use fuse_linear::{fuse_linear, swap_functional_linear};
pub use fuse_quantized_add_relu::fuse_quantized_add_relu;
pub use insert_observers::insert_observers;
pub(crate) use insert_observers::{insert_observers_by_scope, observed_in_graph};
pub(crate) use insert_quant_dequant::insert_quant_dequant_by_conditions;
pub use insert_quant_dequant::{insert_quant_dequant, replicate_dequant, replicate_quant};
pub(crate) use large_numbers::keep_large_numbers;
pub use layers::{Coverage, Layer, layer_operator, layers, source_of};
pub(crate) use layers::{computes_weight, layer_of, tag_layer, tag_of};
pub(crate) use native::{pack_transposed, rewrite_executed};
pub use native::{stock_operators, to_native};
pub use on_device::{finalize_on_device_ptq, insert_observers_for_on_device_ptq, insert_quant_dequant_on_device_ptq};
pub use program::{ProgramParts, export_program, program_parts, programs, set_programs};
pub(crate) use program::{compile_part, make_programs};
pub use register_prepack_params::register_prepack_params;
pub(crate) use unfit_weight::unfit_weight;
pub(crate) use unquantized::why_unquantized;
pub use weight_only::WeightOnly;

pub use crate::qconfig::QuantType;

/// The snippets of `docs/passes.md`.
#[cfg(doctest)]
#[doc = include_str!("../../docs/passes.md")]
struct Guide;

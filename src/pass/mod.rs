//! Quantization passes over TorchScript modules.

mod fuse_linear;
mod insert_observers;
mod layers;
pub mod op_table;
pub mod prepare;
mod register_prepack_params;
mod replace_convolution;

pub use insert_observers::insert_observers;
pub(crate) use insert_observers::insert_observers_by_scope;
pub use layers::{Coverage, Layer, layer_operator, layers, source_of};
pub(crate) use layers::{computes_weight, layer_of};
pub use register_prepack_params::register_prepack_params;

/// When activations are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// With ranges that calibration found.
    #[default]
    Static,
    /// With the range of each input as it comes.
    Dynamic,
}

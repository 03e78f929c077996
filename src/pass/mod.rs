//! Quantization passes over TorchScript modules.

mod fuse_linear;
mod insert_observers;
pub mod op_table;
mod register_prepack_params;
mod replace_convolution;

pub use insert_observers::insert_observers;

/// When activations are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// With ranges that calibration found.
    #[default]
    Static,
    /// With the range of each input as it comes.
    Dynamic,
}

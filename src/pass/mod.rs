//! Quantization passes over TorchScript modules.

mod insert_observers;
mod register_prepack_params;

/// When activations are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// With ranges that calibration found.
    #[default]
    Static,
    /// With the range of each input as it comes.
    Dynamic,
}

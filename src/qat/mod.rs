//! Quantization-aware training: a model is trained while it computes as its INT8 form will.
//!
//! [`prepare_qat`] makes of a float module a flat one that rounds every tensor to be quantized (fake quantization, with
//! gradients straight through the rounding), [`QatModule::convert`] makes the INT8 module of the trained one. In between
//! it is a TorchScript module like any other: any optimizer trains its parameters, it is saved and loaded.
//!
//! ```
//! use jitquant::ir::{Module, Tensor};
//! use jitquant::qat::prepare_qat;
//! use jitquant::qconfig::QConfigSpec;
//! # let linear = Module::new("torch.nn.modules.linear.Linear")?;
//! # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
//! # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
//! let x = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0], &[2, 2])?;
//! let qat = prepare_qat(&linear, &QConfigSpec::default())?;
//! qat.module().forward(&[x.clone()])?;   // ranges of activations
//! qat.fake_quantize(true)?;
//! qat.module().train(true)?;
//! // … train qat.parameters() with an optimizer, the outputs of qat.module().call_with_gradients("forward", …) …
//! qat.observe(false)?;
//! qat.module().train(false)?;
//! let int8 = qat.convert()?.module;
//! assert!(int8.forward(&[x])?.as_tensor().is_some());
//! # Ok::<(), jitquant::Error>(())
//! ```

mod batch_norm;
mod fake_quantize;
mod gradients;
mod operators;
mod prepare;
mod targets;

pub(crate) use operators::bridge::keep_fake_quantize_operators as keep_operators;
pub use prepare::{QatModule, prepare_qat};
pub use targets::Targets;

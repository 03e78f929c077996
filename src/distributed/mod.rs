//! One piece of work on many processes: calibration splits its data over them, training its batches.
//!
//! A [`Group`] is made of the variables that torchrun, Kubernetes operators and Slurm scripts set ([`Environment`]). Its
//! collectives go through `c10d::TCPStore`, libtorch's own store, which process 0 serves: values are added in the order of
//! the ranks, so that every process has the same bits. `docs/qat.md` is the guide.
//!
//! ```no_run
//! use jitquant::Quantizer;
//! use jitquant::distributed::{Calibration, Group};
//! use jitquant::ir::{Module, Tensor};
//!
//! let group = Group::from_environment()?; // None without the variables
//! let mut prepared = Quantizer::static_ptq().prepare(&Module::load("model.pt")?)?;
//! let mut calibration = Calibration::new(&mut prepared, group.as_ref())?;
//! for number in 0..16 {
//!     if calibration.wants(number) {
//!         let batch = Tensor::from_slice(&vec![number as f32; 3 * 224 * 224], &[1, 3, 224, 224])?; // your data
//!         calibration.run(number, &[batch])?;
//!     }
//! }
//! calibration.merge()?; // from here on every process has the ranges of all batches
//! if group.is_none_or(|group| group.rank() == 0) {
//!     prepared.convert()?.module.save("model.int8.pt")?;
//! }
//! # Ok::<(), jitquant::Error>(())
//! ```

mod calibration;
mod collectives;
mod environment;
mod group;
mod life;
#[allow(unsafe_code)]
mod store;
mod wire;

pub use calibration::Calibration;
pub use environment::Environment;
pub use group::Group;

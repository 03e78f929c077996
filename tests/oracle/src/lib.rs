//! libtorch's own quantization passes, for differential tests.
//!
//! Modules go in and out as the bytes of TorchScript files, so that nothing is shared with the implementation under
//! test but libtorch itself. The test's process has to have jitquant's operators registered where observers use them.
#![cfg(not(no_libtorch))]

#[cxx::bridge(namespace = "jitquant_oracle")]
mod ffi {
    /// The observers of one part of a model; no observers: the part stays in float.
    #[derive(Clone, Debug, Default)]
    pub struct QConfigEntry {
        /// Path of the submodule, `""` for all.
        pub path: String,
        /// The activation observer as a TorchScript file's bytes.
        pub activation: Vec<u8>,
        /// The weight observer as a TorchScript file's bytes.
        pub weight: Vec<u8>,
    }

    /// What libtorch's `RegisterPrePackParams` gives.
    #[derive(Clone, Debug)]
    pub struct Prepacked {
        /// The module as a TorchScript file's bytes.
        pub module: Vec<u8>,
        /// The returned names, sorted.
        pub names: Vec<String>,
    }

    unsafe extern "C++" {
        include!("oracle.h");

        /// libtorch's `InsertObservers`.
        fn insert_observers(
            module: &[u8],
            method: &str,
            qconfigs: &[QConfigEntry],
            inplace: bool,
            dynamic: bool,
        ) -> Result<Vec<u8>>;

        /// libtorch's `RegisterPrePackParams` with a filter that takes the nodes of `kinds`.
        fn register_prepack_params(module: &[u8], method: &str, kinds: &[String], prefix: &str) -> Result<Prepacked>;

        /// libtorch's `InsertQuantDeQuant`.
        fn insert_quant_dequant(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>>;

        /// libtorch's `FoldConvBatchNorm`.
        fn fold_conv_batch_norm(module: &[u8]) -> Result<Vec<u8>>;

        /// Whether models that run on this thread are optimized first, which libtorch does by default.
        fn optimize_on_this_thread(on: bool);

        /// libtorch's `DedupModuleUses`.
        fn dedup_module_uses(module: &[u8]) -> Result<Vec<u8>>;

        /// libtorch's `InsertObserversForOnDevicePTQ`.
        fn insert_observers_on_device(
            module: &[u8],
            method: &str,
            qconfigs: &[QConfigEntry],
            dynamic: bool,
        ) -> Result<Vec<u8>>;

        /// libtorch's `InsertQuantDeQuantOnDevicePTQ`.
        fn insert_quant_dequant_on_device(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>>;

        /// libtorch's `FinalizeOnDevicePTQ`.
        fn finalize_on_device(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>>;

        /// libtorch's `InsertQuantDeQuant` and `Finalize`, nothing saved in between.
        fn quantize(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>>;

        /// libtorch's `Finalize`.
        fn finalize(module: &[u8], dynamic: bool) -> Result<Vec<u8>>;

        /// See the function of this name.
        fn optimized(module: &[u8], sizes: &[i64]) -> Result<Vec<String>>;
    }
}

pub use ffi::{Prepacked, QConfigEntry};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// libtorch's passes grow lists in static memory without a lock (`isSingleInputGeneralCallFunction` in its
/// `quantization/helper.cpp`): from two threads at once they corrupt the heap.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// libtorch's `InsertObservers`.
///
/// # Errors
/// What libtorch throws.
pub fn insert_observers(
    module: &[u8],
    method: &str,
    qconfigs: &[QConfigEntry],
    inplace: bool,
    dynamic: bool,
) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::insert_observers(module, method, qconfigs, inplace, dynamic)
}

/// libtorch's `RegisterPrePackParams` with a filter that takes the nodes of `kinds`.
///
/// # Errors
/// What libtorch throws.
pub fn register_prepack_params(
    module: &[u8],
    method: &str,
    kinds: &[String],
    prefix: &str,
) -> Result<Prepacked, cxx::Exception> {
    let _turn = turn();
    ffi::register_prepack_params(module, method, kinds, prefix)
}

/// libtorch's `InsertQuantDeQuant`.
///
/// # Errors
/// What libtorch throws.
pub fn insert_quant_dequant(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::insert_quant_dequant(module, method, dynamic)
}

/// libtorch's `FoldConvBatchNorm`.
///
/// # Errors
/// What libtorch throws.
pub fn fold_conv_batch_norm(module: &[u8]) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::fold_conv_batch_norm(module)
}

/// Runs models as they are written: libtorch does not optimize them on this thread meanwhile.
pub fn unoptimized<T>(run: impl FnOnce() -> T) -> T {
    /// It optimizes again, even where `run` panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            ffi::optimize_on_this_thread(true);
        }
    }
    let _end = End;
    ffi::optimize_on_this_thread(false);
    run()
}

/// libtorch's `DedupModuleUses`.
///
/// # Errors
/// What libtorch throws.
pub fn dedup_module_uses(module: &[u8]) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::dedup_module_uses(module)
}

/// libtorch's `InsertObserversForOnDevicePTQ`.
///
/// # Errors
/// What libtorch throws.
pub fn insert_observers_on_device(
    module: &[u8],
    method: &str,
    qconfigs: &[QConfigEntry],
    dynamic: bool,
) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::insert_observers_on_device(module, method, qconfigs, dynamic)
}

/// libtorch's `InsertQuantDeQuantOnDevicePTQ`.
///
/// # Errors
/// What libtorch throws.
pub fn insert_quant_dequant_on_device(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::insert_quant_dequant_on_device(module, method, dynamic)
}

/// libtorch's `FinalizeOnDevicePTQ`.
///
/// # Errors
/// What libtorch throws.
pub fn finalize_on_device(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::finalize_on_device(module, method, dynamic)
}

/// libtorch's `InsertQuantDeQuant` and `Finalize`, nothing saved in between: a saved file's constants are shared, and
/// libtorch then fuses less.
///
/// # Errors
/// What libtorch throws.
pub fn quantize(module: &[u8], method: &str, dynamic: bool) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::quantize(module, method, dynamic)
}

/// What libtorch makes of `forward`, as text: frozen, after `optimize_for_inference`, and as the executor runs it after
/// some calls with an input of these sizes.
///
/// # Errors
/// What libtorch throws.
pub fn optimized(module: &[u8], sizes: &[i64]) -> Result<Vec<String>, cxx::Exception> {
    let _turn = turn();
    ffi::optimized(module, sizes)
}

/// libtorch's `Finalize`.
///
/// # Errors
/// What libtorch throws.
pub fn finalize(module: &[u8], dynamic: bool) -> Result<Vec<u8>, cxx::Exception> {
    let _turn = turn();
    ffi::finalize(module, dynamic)
}

/// A program that runs a TorchScript model with libtorch alone (`examples/stock/run.cpp`).
pub const STOCK_RUN: &str = env!("STOCK_RUN");

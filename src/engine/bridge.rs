//! The bridge between packed parameters (`cpp/packed.cpp`) and the kernels.

use super::conv::{ConvolutionWeight, convolution_weight};
use super::linear::{LinearWeight, linear_weight};
use super::threads::{Tasks, run_task};

#[cxx::bridge(namespace = "jitquant")]
#[allow(clippy::needless_lifetimes)]
pub(crate) mod ffi {
    /// What the bytes of a u8 tensor stand for, as libtorch has it.
    #[derive(Clone, Copy, Debug)]
    struct Affine {
        scale: f64,
        zero_point: i64,
    }

    /// How accumulators become u8: see `kernel::Requantize`.
    #[derive(Clone, Copy, Debug)]
    struct Requantization<'a> {
        output: Affine,
        /// The bounds of a clamp, as bytes.
        min: i64,
        max: i64,
        /// A tensor of the output's sizes that is added; empty for none.
        residual: &'a [u8],
        residual_affine: Affine,
        /// 256 bytes, or empty for none.
        table: &'a [u8],
    }

    /// How f32 activations are quantized on the fly.
    #[derive(Clone, Copy, Debug)]
    struct DynamicForm {
        /// A range for each row instead of one for the tensor.
        per_row: bool,
        /// 7 bits.
        reduce_range: bool,
    }

    /// The bounds of a clamp of f32 outputs; minus and plus infinity for none.
    #[derive(Clone, Copy, Debug)]
    struct Bounds {
        min: f32,
        max: f32,
    }

    /// A convolution's sizes, a number for each spatial dimension (2 or 3).
    #[derive(Clone, Debug)]
    struct ConvolutionSizes {
        /// The weight's: of a transposed convolution inputs first, else outputs.
        weight: Vec<i64>,
        stride: Vec<i64>,
        padding: Vec<i64>,
        dilation: Vec<i64>,
        output_padding: Vec<i64>,
        groups: i64,
        transposed: bool,
    }

    extern "Rust" {
        type Tasks<'a>;
        fn run_task(tasks: &Tasks, index: usize);

        type LinearWeight;
        /// Packs `weight`, `[n, k]`.
        fn linear_weight(
            weight: &[i8],
            n: usize,
            k: usize,
            scales: &[f32],
            zero_points: &[i32],
        ) -> Result<Box<LinearWeight>>;
        fn inputs(self: &LinearWeight) -> usize;
        fn outputs(self: &LinearWeight) -> usize;
        fn unpack(self: &LinearWeight, weight: &mut [i8]) -> Result<()>;
        fn run_u8(
            self: &LinearWeight,
            input: &[u8],
            affine: Affine,
            bias: &[f32],
            output: &mut [u8],
            form: Requantization,
        ) -> Result<()>;
        fn run_f32(
            self: &LinearWeight,
            input: &[u8],
            affine: Affine,
            bias: &[f32],
            output: &mut [f32],
            bounds: Bounds,
        ) -> Result<()>;
        fn run_dynamic(
            self: &LinearWeight,
            input: &[f32],
            form: DynamicForm,
            bias: &[f32],
            output: &mut [f32],
            bounds: Bounds,
        ) -> Result<()>;
        fn run_quantizing(
            self: &LinearWeight,
            input: &[f32],
            affine: Affine,
            bias: &[f32],
            output: &mut [f32],
            bounds: Bounds,
        ) -> Result<()>;

        type ConvolutionWeight;
        fn convolution_weight(
            weight: &[i8],
            sizes: &ConvolutionSizes,
            scales: &[f32],
            zero_points: &[i32],
        ) -> Result<Box<ConvolutionWeight>>;
        /// The sizes of the output for an input of sizes `[batch, channels, ...]`.
        fn output_sizes(self: &ConvolutionWeight, input: &[i64]) -> Result<Vec<i64>>;
        fn unpack(self: &ConvolutionWeight, weight: &mut [i8]) -> Result<()>;
        #[allow(clippy::too_many_arguments)]
        fn run_u8(
            self: &ConvolutionWeight,
            input: &[u8],
            sizes: &[i64],
            affine: Affine,
            bias: &[f32],
            output: &mut [u8],
            form: Requantization,
        ) -> Result<()>;
        #[allow(clippy::too_many_arguments)]
        fn run_f32(
            self: &ConvolutionWeight,
            input: &[u8],
            sizes: &[i64],
            affine: Affine,
            bias: &[f32],
            output: &mut [f32],
            bounds: Bounds,
        ) -> Result<()>;
        fn run_dynamic(
            self: &ConvolutionWeight,
            input: &[f32],
            sizes: &[i64],
            reduce_range: bool,
            bias: &[f32],
            output: &mut [f32],
        ) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("packed.h");

        type IValue = crate::ir::ffi::bridge::IValue;
        type Objects;

        fn host_threads() -> i32;
        fn host_parallel(count: usize, tasks: &Tasks) -> Result<()>;

        fn stock_engines() -> Vec<String>;
        fn stock_engine() -> String;
        fn set_stock_engine(name: &str) -> Result<()>;

        /// The objects of libtorch's packed-parameter classes that `objects_collect` found, each once.
        fn objects_new() -> UniquePtr<Objects>;
        /// Adds those in `value`, in its lists, tuples, dicts and objects; gives how many are new.
        fn objects_collect(objects: Pin<&mut Objects>, value: &IValue) -> Result<usize>;
        fn objects_class(objects: &Objects, index: usize) -> String;
        fn object_is_ours(objects: &Objects, index: usize) -> Result<bool>;
        /// Puts our packed parameters in the place of libtorch's; an error leaves them as they were.
        fn object_replace(objects: &Objects, index: usize) -> Result<()>;
    }
}

//! The bridge between packed parameters (`cpp/packed.cpp`) and the kernels.

use super::conv::{ConvolutionWeight, convolution_weight};
use super::elementwise::{
    add_u8, clamp_u8, dequantize_channels, dequantize_u8, lookup_u8, mul_u8, quantize_channels, quantize_u8,
    requantize_u8, tabulate,
};
use super::embedding::{
    embedding_bag_i32, embedding_bag_i64, embedding_columns, embedding_i32, embedding_i64, embedding_row_bytes,
    quantize_rows,
};
use super::linear::{LinearWeight, linear_weight};
use super::matmul::matmul_u8;
use super::norm::{batch_norm_u8, group_norm_u8, layer_norm_u8, softmax_u8};
use super::pool::{adaptive_avg_pool_u8, adaptive_sizes, avg_pool_u8, max_pool_u8, pool_sizes};
use super::program::{CompiledPart, compile_part, run_part};
use super::threads::{Tasks, run_task};
use super::upsample::{upsample_sizes, upsample_u8};

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

    /// A pooling window, a number for each spatial dimension; an empty dilation is 1.
    #[derive(Clone, Copy, Debug)]
    struct PoolWindow<'a> {
        kernel: &'a [i64],
        stride: &'a [i64],
        padding: &'a [i64],
        dilation: &'a [i64],
        ceil_mode: bool,
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
        fn outputs(self: &ConvolutionWeight) -> usize;
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

    /// The sizes of matrices: `[m, k]` times `[k, n]`.
    #[derive(Clone, Copy, Debug)]
    struct ProductSizes {
        m: i64,
        k: i64,
        n: i64,
    }

    // Operators without weights. Slices are tensors in the order of their memory; sizes are `[batch, channels, ...]`.
    #[allow(clippy::too_many_arguments)]
    extern "Rust" {
        fn quantize_u8(x: &[f32], to: Affine, out: &mut [u8]) -> Result<()>;
        fn dequantize_u8(x: &[u8], from: Affine, out: &mut [f32]) -> Result<()>;
        fn requantize_u8(x: &[u8], from: Affine, to: Affine, out: &mut [u8]) -> Result<()>;
        fn quantize_channels(
            x: &[f32],
            sizes: &[i64],
            axis: i64,
            scales: &[f32],
            zero_points: &[i32],
            out: &mut [i8],
        ) -> Result<()>;
        fn dequantize_channels(
            x: &[i8],
            sizes: &[i64],
            axis: i64,
            scales: &[f32],
            zero_points: &[i32],
            out: &mut [f32],
        ) -> Result<()>;
        fn clamp_u8(x: &[u8], min: i64, max: i64, out: &mut [u8]) -> Result<()>;
        fn lookup_u8(x: &[u8], table: &[u8], out: &mut [u8]) -> Result<()>;
        /// The table of the function `name`.
        fn tabulate(name: &str, parameters: &[f64], from: Affine, to: Affine, table: &mut [u8]) -> Result<()>;
        fn add_u8(
            a: &[u8],
            a_affine: Affine,
            b: &[u8],
            b_affine: Affine,
            to: Affine,
            min: i64,
            max: i64,
            out: &mut [u8],
        ) -> Result<()>;
        fn mul_u8(
            a: &[u8],
            a_affine: Affine,
            b: &[u8],
            b_affine: Affine,
            to: Affine,
            min: i64,
            max: i64,
            out: &mut [u8],
        ) -> Result<()>;

        /// As many products of matrices as there are; `b` is `[n, k]` where it is transposed.
        fn matmul_u8(
            a: &[u8],
            a_affine: Affine,
            b: &[u8],
            b_affine: Affine,
            transposed: bool,
            sizes: ProductSizes,
            to: Affine,
            out: &mut [u8],
        ) -> Result<()>;

        /// The spatial sizes of a pooled image, as many as the window has.
        fn pool_sizes(sizes: &[i64], window: PoolWindow) -> Result<Vec<i64>>;
        /// Those of an image averaged to `given` sizes.
        fn adaptive_sizes(sizes: &[i64], given: &[i64]) -> Result<Vec<i64>>;
        fn max_pool_u8(x: &[u8], sizes: &[i64], window: PoolWindow, out: &mut [u8]) -> Result<()>;
        fn avg_pool_u8(
            x: &[u8],
            sizes: &[i64],
            zero_point: i64,
            window: PoolWindow,
            count_include_pad: bool,
            divisor: i64,
            out: &mut [u8],
        ) -> Result<()>;
        fn adaptive_avg_pool_u8(
            x: &[u8],
            sizes: &[i64],
            zero_point: i64,
            out_sizes: &[i64],
            out: &mut [u8],
        ) -> Result<()>;

        fn softmax_u8(x: &[u8], scale: f64, columns: i64, to: Affine, out: &mut [u8]) -> Result<()>;
        fn layer_norm_u8(
            x: &[u8],
            from: Affine,
            columns: i64,
            weight: &[f32],
            bias: &[f32],
            eps: f64,
            to: Affine,
            out: &mut [u8],
        ) -> Result<()>;
        fn group_norm_u8(
            x: &[u8],
            from: Affine,
            sizes: &[i64],
            groups: i64,
            weight: &[f32],
            bias: &[f32],
            eps: f64,
            to: Affine,
            out: &mut [u8],
        ) -> Result<()>;
        /// `layout`: how many lie before the channels, channels, and behind them.
        fn batch_norm_u8(
            x: &[u8],
            from: Affine,
            layout: &[i64],
            weight: &[f32],
            bias: &[f32],
            mean: &[f32],
            var: &[f32],
            eps: f64,
            to: Affine,
            min: i64,
            max: i64,
            out: &mut [u8],
        ) -> Result<()>;
    }

    /// How an image gets another size: see `kernel::Upsampling`.
    #[derive(Clone, Copy, Debug)]
    struct Resizing<'a> {
        /// Bilinear instead of nearest.
        bilinear: bool,
        align_corners: bool,
        /// The factors that the caller gave instead of sizes, one for each of the last dimensions; empty for none.
        factors: &'a [f64],
    }

    extern "Rust" {
        /// The sizes of a resized image of spatial `sizes`: those given, or what the factors make of them where none are.
        fn upsample_sizes(sizes: &[i64], given: &[i64], factors: &[f64]) -> Result<Vec<i64>>;
        fn upsample_u8(x: &[u8], sizes: &[i64], form: Resizing, out_sizes: &[i64], out: &mut [u8]) -> Result<()>;
    }

    /// An embedding table as plain bytes: see `kernel::EmbeddingTable`.
    #[derive(Clone, Copy, Debug)]
    struct EmbeddingRows<'a> {
        bytes: &'a [u8],
        row_bytes: usize,
        bits: i64,
    }

    /// How bags are summed up: see `kernel::Bags`.
    #[derive(Clone, Copy, Debug)]
    struct BagForm<'a> {
        include_last_offset: bool,
        mean: bool,
        /// A factor for each index; empty for none.
        weights: &'a [f32],
        /// A row for each index; empty for a table that was not pruned.
        pruned_rows: &'a [i32],
    }

    extern "Rust" {
        /// Bytes of a row of `columns` values.
        fn embedding_row_bytes(columns: usize, bits: i64) -> Result<usize>;
        /// Values in a row of `row_bytes`.
        fn embedding_columns(row_bytes: usize, bits: i64) -> Result<usize>;
        fn quantize_rows(x: &[f32], columns: usize, bits: i64, out: &mut [u8]) -> Result<()>;
        fn embedding_i32(table: EmbeddingRows, indices: &[i32], out: &mut [f32]) -> Result<()>;
        fn embedding_i64(table: EmbeddingRows, indices: &[i64], out: &mut [f32]) -> Result<()>;
        fn embedding_bag_i32(
            table: EmbeddingRows,
            indices: &[i32],
            offsets: &[i32],
            form: BagForm,
            out: &mut [f32],
        ) -> Result<()>;
        fn embedding_bag_i64(
            table: EmbeddingRows,
            indices: &[i64],
            offsets: &[i64],
            form: BagForm,
            out: &mut [f32],
        ) -> Result<()>;
    }

    extern "Rust" {
        type CompiledPart;
        /// The Program of a part's graph.
        fn compile_part(graph: &SharedPtr<Graph>) -> Result<Box<CompiledPart>>;
        /// Runs it; false for a call that it does not take, of which nothing is written then.
        fn run_part(part: &CompiledPart, operands: &Operands, results: Pin<&mut Results>) -> bool;
    }

    unsafe extern "C++" {
        include!("program.h");

        fn keep_program_operators();

        type Graph = crate::ir::ffi::bridge::Graph;

        /// What a part is called with: tensors, numbers, weights.
        type Operands;
        /// Whether it is a tensor on the CPU that autograd does not follow, and nothing else.
        fn operand_is_plain(operands: &Operands, index: usize) -> bool;
        fn operand_type(operands: &Operands, index: usize) -> i32;
        fn operand_sizes<'a>(operands: &'a Operands, index: usize) -> &'a [i64];
        fn operand_strides<'a>(operands: &'a Operands, index: usize) -> &'a [i64];
        fn operand_data(operands: &Operands, index: usize) -> usize;
        fn operand_number(operands: &Operands, index: usize) -> Result<i64>;
        fn operand_conv<'a>(operands: &'a Operands, index: usize) -> Result<&'a ConvolutionWeight>;
        fn operand_linear<'a>(operands: &'a Operands, index: usize) -> Result<&'a LinearWeight>;
        fn operand_conv_bias<'a>(operands: &'a Operands, index: usize) -> Result<&'a [f32]>;
        fn operand_linear_bias<'a>(operands: &'a Operands, index: usize) -> Result<&'a [f32]>;

        type Results;
        /// Adds a tensor; the address of its memory.
        fn results_add(results: Pin<&mut Results>, element: i32, sizes: &[i64], strides: &[i64]) -> Result<usize>;
    }

    unsafe extern "C++" {
        include!("packed.h");

        /// Refers to the files that register the native operators, so that they are linked.
        fn keep_native_layers();
        fn keep_native_elements();
        fn keep_native_embeddings();

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

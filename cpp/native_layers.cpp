// Native layers: `jitquant::linear`, `jitquant::conv` and what belongs to them, on plain uint8 tensors.
#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include <limits>

#include "library.h"
#include "packed.h"
#include "weights.h"

namespace jitquant {

namespace {

using at::Tensor;
using LinearPtr = c10::intrusive_ptr<LinearLayer>;
using ConvPtr = c10::intrusive_ptr<ConvolutionLayer>;

constexpr float infinity = std::numeric_limits<float>::infinity();

void check(const Tensor &x, c10::ScalarType type, const char *op) {
  TORCH_CHECK(x.scalar_type() == type && (x.is_cpu() || x.is_meta()), op, ": the input is ", x.toString(),
              "; a tensor of ", type, " on the CPU is accepted");
}

Bounds bounds(std::optional<double> min, std::optional<double> max) {
  return {static_cast<float>(min.value_or(-infinity)), static_cast<float>(max.value_or(infinity))};
}

// A residual of the output's sizes, in the order of its memory; undefined for none.
Tensor residual_like(const std::optional<Tensor> &residual, c10::IntArrayRef sizes, c10::MemoryFormat format) {
  if (!residual)
    return Tensor();
  check(*residual, c10::kByte, "jitquant, a residual");
  return (residual->sizes() == sizes ? *residual : residual->expand(sizes)).contiguous(format);
}

// The sizes of a layer's output and its residual together. The output is expanded to the residual's sizes where those
// are larger, instead of the other way round.
std::vector<int64_t> sizes_with(const std::optional<Tensor> &residual, c10::IntArrayRef sizes, const char *op) {
  if (!residual)
    return sizes.vec();
  check(*residual, c10::kByte, op);
  TORCH_CHECK(at::are_expandable(residual->sizes(), sizes), op, ": a residual of sizes ", residual->sizes(),
              " for an output of sizes ", sizes, "; sizes that broadcast with the output's are accepted");
  return at::infer_size(residual->sizes(), sizes);
}

bool outgrows(const std::optional<Tensor> &residual, c10::IntArrayRef sizes, const char *op) {
  return residual && sizes_with(residual, sizes, op) != sizes.vec();
}

// `sums + residual` where the sums are broadcast, as the layer computes it otherwise.
Tensor add_apart(const Tensor &sums, const Tensor &residual, Affine residual_affine, Affine output, int64_t min,
                 int64_t max, const Tensor &table) {
  Tensor other = (residual.to(c10::kFloat) - residual_affine.zero_point) * residual_affine.scale;
  Tensor sum = (sums + other).contiguous(), bytes = at::empty_like(sum, sum.options().dtype(c10::kByte));
  Tensor clamped = at::empty_like(bytes);
  in_rust([&] {
    quantize_u8(values<float>(sum), output, writable<uint8_t>(bytes));
    clamp_u8(values<uint8_t>(bytes), min, max, writable<uint8_t>(clamped));
  });
  return table.defined() ? table.take(clamped.to(c10::kLong)) : clamped;
}

Tensor checked_table(const std::optional<Tensor> &table, const char *op) {
  if (!table)
    return Tensor();
  TORCH_CHECK(table->scalar_type() == c10::kByte && table->numel() == 256, op, ": the table is ", table->toString(),
              " of ", table->numel(), " elements; 256 bytes are accepted");
  return table->contiguous();
}

rust::Slice<const uint8_t> bytes(const Tensor &x) {
  return x.defined() ? values<uint8_t>(x) : rust::Slice<const uint8_t>();
}

// --- linear ---

c10::SmallVector<int64_t, 5> linear_sizes(const Tensor &x, const LinearLayer &layer, const char *op) {
  auto inputs = static_cast<int64_t>(layer.weight->inputs());
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == inputs, op, ": an input of sizes ", x.sizes(), " for a layer of ", inputs,
              " inputs");
  c10::SmallVector<int64_t, 5> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = static_cast<int64_t>(layer.weight->outputs());
  return sizes;
}

Tensor linear_float(const Tensor &x, const LinearPtr &layer, double x_scale, int64_t x_zero_point,
                    std::optional<double> min, std::optional<double> max);

Tensor linear(const Tensor &x, const LinearPtr &layer, double x_scale, int64_t x_zero_point, double scale,
              int64_t zero_point, int64_t min, int64_t max, const std::optional<Tensor> &residual,
              double residual_scale, int64_t residual_zero_point, const std::optional<Tensor> &table) {
  constexpr auto op = "jitquant::linear";
  check(x, c10::kByte, op);
  Tensor map = checked_table(table, op);
  auto sizes = linear_sizes(x, *layer, op);
  if (outgrows(residual, sizes, op)) {
    Tensor sums = linear_float(x, layer, x_scale, x_zero_point, std::nullopt, std::nullopt);
    return add_apart(sums, *residual, {residual_scale, residual_zero_point}, {scale, zero_point}, min, max, map);
  }
  Tensor output = at::empty(sizes, x.options());
  if (output.numel() == 0)
    return output;
  Tensor dense = x.contiguous(), added = residual_like(residual, sizes, c10::MemoryFormat::Contiguous);
  in_rust([&] {
    layer->weight->run_u8(
        values<uint8_t>(dense), {x_scale, x_zero_point}, layer->biases(), writable<uint8_t>(output),
        {{scale, zero_point}, min, max, bytes(added), {residual_scale, residual_zero_point}, bytes(map)});
  });
  return output;
}

Tensor linear_float(const Tensor &x, const LinearPtr &layer, double x_scale, int64_t x_zero_point,
                    std::optional<double> min, std::optional<double> max) {
  constexpr auto op = "jitquant::linear_float";
  check(x, c10::kByte, op);
  Tensor output = at::empty(linear_sizes(x, *layer, op), x.options().dtype(c10::kFloat));
  Tensor dense = x.contiguous();
  if (output.numel() > 0)
    in_rust([&] {
      layer->weight->run_f32(values<uint8_t>(dense), {x_scale, x_zero_point}, layer->biases(), writable<float>(output),
                             bounds(min, max));
    });
  return output;
}

Tensor linear_dynamic(const Tensor &x, const LinearPtr &layer, bool per_row, bool reduce_range,
                      std::optional<double> min, std::optional<double> max) {
  constexpr auto op = "jitquant::linear_dynamic";
  check(x, c10::kFloat, op);
  Tensor output = at::empty(linear_sizes(x, *layer, op), x.options());
  Tensor dense = x.contiguous();
  if (output.numel() > 0)
    in_rust([&] {
      layer->weight->run_dynamic(values<float>(dense), {per_row, reduce_range}, layer->biases(),
                                 writable<float>(output), bounds(min, max));
    });
  return output;
}

// --- conv ---

// Convolutions of one dimension run as ones of two, of height 1.
bool is_flat(const ConvolutionLayer &layer) { return layer.convolution.weight.size() == 3; }

c10::MemoryFormat format_of(const ConvolutionLayer &layer) {
  return layer.convolution.weight.size() == 5 ? c10::MemoryFormat::ChannelsLast3d : c10::MemoryFormat::ChannelsLast;
}

c10::SmallVector<int64_t, 5> conv_sizes(const Tensor &x, const ConvolutionLayer &layer) {
  auto sizes = in_rust([&] { return layer.weight->output_sizes({x.sizes().data(), x.sizes().size()}); });
  return {sizes.begin(), sizes.end()};
}

// Runs `run(input, sizes, output)` on memory in the kernels' order, whatever the number of dimensions.
template <class Run>
Tensor convolve(const Tensor &x, const ConvolutionLayer &layer, c10::ScalarType type, const Run &run) {
  auto sizes = conv_sizes(x, layer);
  auto format = format_of(layer);
  bool flat = is_flat(layer);
  Tensor dense = (flat ? x.unsqueeze(2) : x).contiguous(format);
  if (flat)
    sizes.insert(sizes.begin() + 2, 1);
  Tensor output = at::empty(sizes, x.options().dtype(type), format);
  rust::Slice<const int64_t> given{x.sizes().data(), x.sizes().size()};
  if (output.numel() > 0)
    in_rust([&] { run(dense, given, output); });
  return flat ? output.squeeze(2) : output;
}

Tensor conv_float(const Tensor &x, const ConvPtr &layer, double x_scale, int64_t x_zero_point,
                  std::optional<double> min, std::optional<double> max);

Tensor conv(const Tensor &x, const ConvPtr &layer, double x_scale, int64_t x_zero_point, double scale,
            int64_t zero_point, int64_t min, int64_t max, const std::optional<Tensor> &residual, double residual_scale,
            int64_t residual_zero_point, const std::optional<Tensor> &table) {
  constexpr auto op = "jitquant::conv";
  check(x, c10::kByte, op);
  Tensor map = checked_table(table, op);
  if (residual && outgrows(residual, conv_sizes(x, *layer), op)) {
    Tensor sums = conv_float(x, layer, x_scale, x_zero_point, std::nullopt, std::nullopt);
    return add_apart(sums, *residual, {residual_scale, residual_zero_point}, {scale, zero_point}, min, max, map);
  }
  return convolve(
      x, *layer, c10::kByte, [&](const Tensor &dense, rust::Slice<const int64_t> sizes, const Tensor &output) {
        std::optional<Tensor> other = residual;
        if (other && is_flat(*layer))
          other = other->expand(conv_sizes(x, *layer)).unsqueeze(2);
        Tensor added = residual_like(other, output.sizes(), format_of(*layer));
        layer->weight->run_u8(
            values<uint8_t>(dense), sizes, {x_scale, x_zero_point}, layer->biases(), writable<uint8_t>(output),
            {{scale, zero_point}, min, max, bytes(added), {residual_scale, residual_zero_point}, bytes(map)});
      });
}

Tensor conv_float(const Tensor &x, const ConvPtr &layer, double x_scale, int64_t x_zero_point,
                  std::optional<double> min, std::optional<double> max) {
  check(x, c10::kByte, "jitquant::conv_float");
  return convolve(x, *layer, c10::kFloat,
                  [&](const Tensor &dense, rust::Slice<const int64_t> sizes, const Tensor &output) {
                    layer->weight->run_f32(values<uint8_t>(dense), sizes, {x_scale, x_zero_point}, layer->biases(),
                                           writable<float>(output), bounds(min, max));
                  });
}

Tensor conv_dynamic(const Tensor &x, const ConvPtr &layer, bool reduce_range) {
  check(x, c10::kFloat, "jitquant::conv_dynamic");
  return convolve(
      x, *layer, c10::kFloat, [&](const Tensor &dense, rust::Slice<const int64_t> sizes, const Tensor &output) {
        layer->weight->run_dynamic(values<float>(dense), sizes, reduce_range, layer->biases(), writable<float>(output));
      });
}

// --- weights ---

using LinearState = std::tuple<Tensor, Tensor, Tensor, std::optional<Tensor>>;
using ConvState = std::tuple<Tensor, Tensor, Tensor, std::optional<Tensor>, std::vector<int64_t>, std::vector<int64_t>,
                             std::vector<int64_t>, std::vector<int64_t>, int64_t, bool>;

WeightScheme plain_scheme(const Tensor &weight, const Tensor &scales, const Tensor &zero_points, int64_t axis) {
  TORCH_CHECK(weight.scalar_type() == c10::kChar, "the weight is ", weight.toString(), "; int8 is accepted");
  TORCH_CHECK(scales.numel() == zero_points.numel() && scales.dim() <= 1, "scales of sizes ", scales.sizes(),
              " and zero points of sizes ", zero_points.sizes(), "; one, or one for each output channel, is accepted");
  for (const Tensor &given : {weight, scales, zero_points})
    TORCH_CHECK_VALUE(given.is_cpu() && given.layout() == c10::kStrided, "a weight or its parameters are ",
                      given.toString(), " on ", given.device(), "; dense tensors on the CPU are accepted");
  return {scales.reshape(-1).to(c10::kDouble).contiguous(), zero_points.reshape(-1).to(c10::kLong).contiguous(),
          scales.numel() == 1 ? -1 : axis, weight.sizes().vec()};
}

void check_bias(const std::optional<Tensor> &bias, int64_t outputs, const char *op) {
  TORCH_CHECK(!bias || bias->numel() == outputs, op, ": a bias of ", bias ? bias->numel() : 0, " elements for ",
              outputs, " outputs");
}

LinearPtr linear_prepack(const Tensor &weight, const Tensor &scales, const Tensor &zero_points,
                         std::optional<Tensor> bias) {
  TORCH_CHECK(weight.dim() == 2, "jitquant::linear_prepack: a weight of sizes ", weight.sizes(),
              "; [outputs, inputs] is accepted");
  WeightScheme scheme = plain_scheme(weight, scales, zero_points, 0);
  check_bias(bias, weight.size(0), "jitquant::linear_prepack");
  return make_linear_layer(weight.contiguous(), std::move(scheme), std::move(bias));
}

template <class Weight> Tensor plain_weight(const Layer<Weight> &layer) {
  Tensor weight = at::empty(layer.scheme.sizes, c10::kChar);
  in_rust([&] { layer.weight->unpack(writable<int8_t>(weight)); });
  return weight;
}

LinearState linear_unpack(const LinearPtr &layer) {
  return {plain_weight(*layer), layer->scheme.scales.to(c10::kFloat), layer->scheme.zero_points.to(c10::kInt),
          layer->bias};
}

ConvPtr conv_prepack(const Tensor &weight, const Tensor &scales, const Tensor &zero_points, std::optional<Tensor> bias,
                     c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                     c10::IntArrayRef output_padding, int64_t groups, bool transposed) {
  TORCH_CHECK(weight.dim() >= 3 && weight.dim() <= 5, "jitquant::conv_prepack: a weight of sizes ", weight.sizes(),
              "; 1 to 3 spatial dimensions are accepted");
  WeightScheme scheme = plain_scheme(weight, scales, zero_points, transposed ? 1 : 0);
  auto layer = make_conv_layer(weight.contiguous(), std::move(scheme), bias,
                               {list_of(weight.sizes()), list_of(stride), list_of(padding), list_of(dilation),
                                list_of(output_padding), groups, transposed});
  check_bias(bias, static_cast<int64_t>(layer->weight->outputs()), "jitquant::conv_prepack");
  return layer;
}

std::vector<int64_t> vector_of(const rust::Vec<int64_t> &numbers) { return {numbers.begin(), numbers.end()}; }

ConvState conv_unpack(const ConvPtr &layer) {
  const ConvolutionSizes &sizes = layer->convolution;
  return {plain_weight(*layer),
          layer->scheme.scales.to(c10::kFloat),
          layer->scheme.zero_points.to(c10::kInt),
          layer->bias,
          vector_of(sizes.stride),
          vector_of(sizes.padding),
          vector_of(sizes.dilation),
          vector_of(sizes.output_padding),
          sizes.groups,
          sizes.transposed};
}

// --- shapes ---

Tensor linear_like(const Tensor &x, const LinearLayer &layer, c10::ScalarType from, c10::ScalarType to,
                   const char *op) {
  check(x, from, op);
  return at::empty(linear_sizes(x, layer, op), x.options().dtype(to).device(c10::kMeta));
}

Tensor linear_shape(const Tensor &x, const LinearPtr &layer, double, int64_t, double, int64_t, int64_t, int64_t,
                    const std::optional<Tensor> &residual, double, int64_t, const std::optional<Tensor> &table) {
  constexpr auto op = "jitquant::linear";
  checked_table(table, op);
  Tensor output = linear_like(x, *layer, c10::kByte, c10::kByte, op);
  return outgrows(residual, output.sizes(), op) ? output.new_empty(sizes_with(residual, output.sizes(), op)) : output;
}

Tensor linear_float_shape(const Tensor &x, const LinearPtr &layer, double, int64_t, std::optional<double>,
                          std::optional<double>) {
  return linear_like(x, *layer, c10::kByte, c10::kFloat, "jitquant::linear_float");
}

Tensor linear_dynamic_shape(const Tensor &x, const LinearPtr &layer, bool, bool, std::optional<double>,
                            std::optional<double>) {
  return linear_like(x, *layer, c10::kFloat, c10::kFloat, "jitquant::linear_dynamic");
}

Tensor conv_like(const Tensor &x, const ConvolutionLayer &layer, c10::ScalarType from, c10::ScalarType to,
                 const char *op) {
  check(x, from, op);
  auto options = x.options().dtype(to).device(c10::kMeta);
  auto sizes = conv_sizes(x, layer);
  bool flat = is_flat(layer);
  if (flat)
    sizes.insert(sizes.begin() + 2, 1);
  Tensor output = at::empty(sizes, options, format_of(layer));
  return flat ? output.squeeze(2) : output;
}

Tensor conv_shape(const Tensor &x, const ConvPtr &layer, double, int64_t, double, int64_t, int64_t, int64_t,
                  const std::optional<Tensor> &residual, double, int64_t, const std::optional<Tensor> &table) {
  constexpr auto op = "jitquant::conv";
  checked_table(table, op);
  Tensor output = conv_like(x, *layer, c10::kByte, c10::kByte, op);
  return outgrows(residual, output.sizes(), op) ? output.new_empty(sizes_with(residual, output.sizes(), op)) : output;
}

Tensor conv_float_shape(const Tensor &x, const ConvPtr &layer, double, int64_t, std::optional<double>,
                        std::optional<double>) {
  return conv_like(x, *layer, c10::kByte, c10::kFloat, "jitquant::conv_float");
}

Tensor conv_dynamic_shape(const Tensor &x, const ConvPtr &layer, bool) {
  return conv_like(x, *layer, c10::kFloat, c10::kFloat, "jitquant::conv_dynamic");
}

} // namespace

// Keeps this file's registrations in whatever links the library.
void keep_native_layers() {}

#define W "__torch__.torch.classes.jitquant.LinearWeight"
#define C "__torch__.torch.classes.jitquant.ConvWeight"
#define STOCK "__torch__.torch.classes.quantized."
#define REQUANTIZED                                                                                                    \
  "float x_scale, int x_zero_point, float scale, int zero_point, int min=0, int max=255, Tensor? residual=None, "      \
  "float residual_scale=1., int residual_zero_point=0, Tensor? table=None) -> Tensor"
#define DEQUANTIZED "float x_scale, int x_zero_point, float? min=None, float? max=None) -> Tensor"

JITQUANT_DEFINITIONS(native_layer_definitions, m) {
  m.class_<LinearLayer>("LinearWeight")
      .def_pickle([](const LinearPtr &layer) { return linear_unpack(layer); },
                  [](LinearState state) {
                    auto [weight, scales, zero_points, bias] = std::move(state);
                    return linear_prepack(weight, scales, zero_points, std::move(bias));
                  });
  m.class_<ConvolutionLayer>("ConvWeight")
      .def_pickle([](const ConvPtr &layer) { return conv_unpack(layer); },
                  [](ConvState state) {
                    auto [weight, scales, zero_points, bias, stride, padding, dilation, output_padding, groups,
                          transposed] = std::move(state);
                    return conv_prepack(weight, scales, zero_points, std::move(bias), stride, padding, dilation,
                                        output_padding, groups, transposed);
                  });
  m.def("linear_prepack(Tensor weight, Tensor scales, Tensor zero_points, Tensor? bias=None) -> " W, linear_prepack);
  m.def("linear_unpack(" W " weight) -> (Tensor, Tensor, Tensor, Tensor?)", linear_unpack);
  m.def("conv_prepack(Tensor weight, Tensor scales, Tensor zero_points, Tensor? bias, int[] stride, int[] padding, "
        "int[] dilation, int[] output_padding, int groups=1, bool transposed=False) -> " C,
        conv_prepack);
  m.def("conv_unpack(" C " weight) -> (Tensor, Tensor, Tensor, Tensor?, int[], int[], int[], int[], int, bool)",
        conv_unpack);
  m.def("linear_from_packed(" STOCK "LinearPackedParamsBase packed) -> " W, linear_layer_of);
  m.def("conv_from_packed(" STOCK "Conv2dPackedParamsBase packed) -> " C, conv2d_layer_of);
  m.def("conv_from_packed.conv3d(" STOCK "Conv3dPackedParamsBase packed) -> " C, conv3d_layer_of);
  m.def("linear(Tensor x, " W " weight, " REQUANTIZED);
  m.def("linear_float(Tensor x, " W " weight, " DEQUANTIZED);
  m.def("linear_dynamic(Tensor x, " W " weight, bool per_row=False, bool reduce_range=False, float? min=None, "
        "float? max=None) -> Tensor");
  m.def("conv(Tensor x, " C " weight, " REQUANTIZED);
  m.def("conv_float(Tensor x, " C " weight, " DEQUANTIZED);
  m.def("conv_dynamic(Tensor x, " C " weight, bool reduce_range=False) -> Tensor");
}

JITQUANT_KERNELS(native_layer_kernels, CPU, m) {
  m.impl("linear", linear);
  m.impl("linear_float", linear_float);
  m.impl("linear_dynamic", linear_dynamic);
  m.impl("conv", conv);
  m.impl("conv_float", conv_float);
  m.impl("conv_dynamic", conv_dynamic);
}

JITQUANT_KERNELS(native_layer_shapes, Meta, m) {
  m.impl("linear", linear_shape);
  m.impl("linear_float", linear_float_shape);
  m.impl("linear_dynamic", linear_dynamic_shape);
  m.impl("conv", conv_shape);
  m.impl("conv_float", conv_float_shape);
  m.impl("conv_dynamic", conv_dynamic_shape);
}

} // namespace jitquant

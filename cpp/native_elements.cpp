// Native operators without weights, on plain uint8 tensors: element-wise ones, pooling, norms.
#include <ATen/WrapDimUtilsMulti.h>
#include <ATen/ATen.h>

#include "library.h"
#include "packed.h"
#include "tensors.h"

#include "jitquant/src/engine/bridge.rs.h"

namespace jitquant {

namespace {

using at::Tensor;
using Sizes = rust::Slice<const int64_t>;

void check(const Tensor &x, c10::ScalarType type, const char *op) {
  TORCH_CHECK(x.scalar_type() == type && (x.is_cpu() || x.is_meta()), op, ": an input is ", x.toString(),
              "; a tensor of ", type, " on the CPU is accepted");
}

Sizes sizes_of(const Tensor &x) { return {x.sizes().data(), x.sizes().size()}; }
Sizes sizes_of(c10::IntArrayRef numbers) { return {numbers.data(), numbers.size()}; }

// The tensor itself where its memory has no gaps, else a copy; its elements can be taken in the order of memory.
Tensor dense(const Tensor &x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

// --- element-wise ---

// A tensor of type `to` for one of type `from`, on any device; `given` becomes dense.
Tensor mapped_like(Tensor &given, c10::ScalarType from, c10::ScalarType to, const char *op) {
  check(given, from, op);
  given = dense(given);
  return at::empty_like(given, given.options().dtype(to));
}

template <class From, class To, class Run>
Tensor mapped(const Tensor &x, c10::ScalarType from, c10::ScalarType to, const char *op, const Run &run) {
  Tensor given = x, output = mapped_like(given, from, to, op);
  in_rust([&] { run(values<From>(given), writable<To>(output)); });
  return output;
}

using Bytes = rust::Slice<const uint8_t>;
using BytesOut = rust::Slice<uint8_t>;

Tensor quantize(const Tensor &x, double scale, int64_t zero_point) {
  return mapped<float, uint8_t>(x, c10::kFloat, c10::kByte, "jitquant::quantize",
                                [&](rust::Slice<const float> x, BytesOut out) {
                                  quantize_u8(x, {scale, zero_point}, out);
                                });
}

Tensor dequantize(const Tensor &x, double scale, int64_t zero_point) {
  return mapped<uint8_t, float>(x, c10::kByte, c10::kFloat, "jitquant::dequantize",
                                [&](Bytes x, rust::Slice<float> out) {
                                  dequantize_u8(x, {scale, zero_point}, out);
                                });
}

Tensor requantize(const Tensor &x, double x_scale, int64_t x_zero_point, double scale, int64_t zero_point) {
  return mapped<uint8_t, uint8_t>(x, c10::kByte, c10::kByte, "jitquant::requantize", [&](Bytes x, BytesOut out) {
    requantize_u8(x, {x_scale, x_zero_point}, {scale, zero_point}, out);
  });
}

Tensor clamp(const Tensor &x, int64_t min, int64_t max) {
  return mapped<uint8_t, uint8_t>(x, c10::kByte, c10::kByte, "jitquant::clamp",
                                  [&](Bytes x, BytesOut out) { clamp_u8(x, min, max, out); });
}

Tensor lookup(const Tensor &x, const Tensor &table) {
  check(table, c10::kByte, "jitquant::lookup, table");
  Tensor map = table.contiguous();
  return mapped<uint8_t, uint8_t>(x, c10::kByte, c10::kByte, "jitquant::lookup",
                                  [&](Bytes x, BytesOut out) { lookup_u8(x, values<uint8_t>(map), out); });
}

Tensor activation_table(c10::string_view name, c10::ArrayRef<double> parameters, double x_scale, int64_t x_zero_point,
                        double scale, int64_t zero_point) {
  Tensor table = at::empty({256}, c10::kByte);
  in_rust([&] {
    tabulate(rust::Str(name.data(), name.size()), {parameters.data(), parameters.size()}, {x_scale, x_zero_point},
             {scale, zero_point}, writable<uint8_t>(table));
  });
  return table;
}

// Zero points; those that are none stay none where they become smaller integers.
Tensor small_integers(const Tensor &x) { return x.to(c10::kLong).clamp(-1024, 1024).to(c10::kInt).contiguous(); }

Tensor per_channel(const Tensor &x, const Tensor &scales, const Tensor &zero_points, int64_t axis, bool quantizes) {
  const char *op = quantizes ? "jitquant::quantize_per_channel" : "jitquant::dequantize_per_channel";
  check(x, quantizes ? c10::kFloat : c10::kChar, op);
  Tensor given = x.contiguous(), steps = scales.to(c10::kFloat).contiguous(), zeros = small_integers(zero_points);
  Tensor output = at::empty(x.sizes(), x.options().dtype(quantizes ? c10::kChar : c10::kFloat));
  int64_t along = c10::maybe_wrap_dim(axis, x.dim());
  in_rust([&] {
    if (quantizes)
      quantize_channels(values<float>(given), sizes_of(x), along, values<float>(steps), values<int32_t>(zeros),
                        writable<int8_t>(output));
    else
      dequantize_channels(values<int8_t>(given), sizes_of(x), along, values<float>(steps), values<int32_t>(zeros),
                          writable<float>(output));
  });
  return output;
}

Tensor quantize_per_channel(const Tensor &x, const Tensor &scales, const Tensor &zero_points, int64_t axis) {
  return per_channel(x, scales, zero_points, axis, true);
}

Tensor dequantize_per_channel(const Tensor &x, const Tensor &scales, const Tensor &zero_points, int64_t axis) {
  return per_channel(x, scales, zero_points, axis, false);
}

// Two tensors that are broadcast, alike in memory, on any device.
struct Pair {
  Tensor x, y;

  Pair(const Tensor &a, const Tensor &b, const char *op) : x(a), y(b) {
    check(a, c10::kByte, op);
    check(b, c10::kByte, op);
    if (a.sizes() == b.sizes() && a.strides() == b.strides() && a.is_non_overlapping_and_dense())
      return;
    auto format = a.dim() >= b.dim() ? a.suggest_memory_format() : b.suggest_memory_format();
    auto broadcast = at::broadcast_tensors({a, b});
    x = broadcast[0].contiguous(format);
    y = broadcast[1].contiguous(format);
  }

  Tensor output() const { return at::empty_like(x); }
};

template <class Run> Tensor binary(const Tensor &a, const Tensor &b, const char *op, const Run &run) {
  Pair pair(a, b, op);
  Tensor output = pair.output();
  in_rust([&] { run(values<uint8_t>(pair.x), values<uint8_t>(pair.y), writable<uint8_t>(output)); });
  return output;
}

Tensor add(const Tensor &a, double a_scale, int64_t a_zero, const Tensor &b, double b_scale, int64_t b_zero,
           double scale, int64_t zero_point, int64_t min, int64_t max) {
  return binary(a, b, "jitquant::add", [&](Bytes x, Bytes y, BytesOut out) {
    add_u8(x, {a_scale, a_zero}, y, {b_scale, b_zero}, {scale, zero_point}, min, max, out);
  });
}

Tensor mul(const Tensor &a, double a_scale, int64_t a_zero, const Tensor &b, double b_scale, int64_t b_zero,
           double scale, int64_t zero_point, int64_t min, int64_t max) {
  return binary(a, b, "jitquant::mul", [&](Bytes x, Bytes y, BytesOut out) {
    mul_u8(x, {a_scale, a_zero}, y, {b_scale, b_zero}, {scale, zero_point}, min, max, out);
  });
}

// A matrix of a batch with its elements row by row; where it is the transpose of such a one, that, and `transposed`.
struct Matrices {
  Tensor values;
  bool transposed;

  explicit Matrices(const Tensor &x) : values(x), transposed(false) {
    Tensor other = x.transpose(-2, -1);
    transposed = !x.is_contiguous() && other.is_contiguous();
    values = transposed ? other : x.contiguous();
  }
};

// Operands and result of a product, on any device. As at::matmul: a vector is a matrix of one row or one column, other
// dimensions are broadcast.
struct Product {
  Tensor left, right, output;
  bool transposed;
  ProductSizes sizes;

  Product(const Tensor &a, const Tensor &b, const char *op) : a_(a), b_(b) {
    check(a, c10::kByte, op);
    check(b, c10::kByte, op);
    TORCH_CHECK(a.dim() >= 1 && b.dim() >= 1, op, ": an input without dimensions");
    Tensor rows = a.dim() == 1 ? a.unsqueeze(0) : a, columns = b.dim() == 1 ? b.unsqueeze(1) : b;
    sizes = {rows.size(-2), rows.size(-1), columns.size(-1)};
    TORCH_CHECK(columns.size(-2) == sizes.k, op, ": sizes ", a.sizes(), " and ", b.sizes(),
                "; the last dimension of the first and the one before the last of the second have to be the same");
    auto dims = [](const Tensor &x) { return x.sizes().slice(0, x.dim() - 2); };
    std::vector<int64_t> batch = at::infer_size(dims(rows), dims(columns));
    auto expanded = [&](const Tensor &x) {
      std::vector<int64_t> to = batch;
      to.insert(to.end(), {x.size(-2), x.size(-1)});
      return x.expand(to);
    };
    left = expanded(rows).contiguous();
    Matrices matrices(expanded(columns));
    right = matrices.values;
    transposed = matrices.transposed;
    batch.insert(batch.end(), {sizes.m, sizes.n});
    output = at::empty(batch, left.options());
  }

  // The output with the dimensions that at::matmul gives it.
  Tensor shaped() const {
    Tensor y = b_.dim() == 1 ? output.squeeze(-1) : output;
    return a_.dim() == 1 ? y.squeeze(b_.dim() == 1 ? -1 : -2) : y;
  }

private:
  const Tensor &a_, &b_;
};

constexpr auto kMatmul = "jitquant::matmul";

Tensor matmul(const Tensor &a, double a_scale, int64_t a_zero, const Tensor &b, double b_scale, int64_t b_zero,
              double scale, int64_t zero_point) {
  Product product(a, b, kMatmul);
  in_rust([&] {
    matmul_u8(values<uint8_t>(product.left), {a_scale, a_zero}, values<uint8_t>(product.right), {b_scale, b_zero},
              product.transposed, product.sizes, {scale, zero_point}, writable<uint8_t>(product.output));
  });
  return product.shaped();
}

// What static quantization may make a `matmul` above.
Tensor product(const Tensor &a, const Tensor &b) { return at::matmul(a, b); }

// Concatenates tensors, each one as it is where its bytes mean what the output's mean, or as `convert` makes it.
template <class Convert>
Tensor concatenated(at::TensorList tensors, c10::ArrayRef<double> scales, c10::IntArrayRef zero_points, int64_t dim,
                    double scale, int64_t zero_point, const Convert &convert) {
  constexpr auto op = "jitquant::cat";
  TORCH_CHECK(!tensors.empty() && tensors.size() == scales.size() && tensors.size() == zero_points.size(), op, ": ",
              tensors.size(), " tensors, ", scales.size(), " scales and ", zero_points.size(),
              " zero points; as many of each, and at least one, are accepted");
  std::vector<Tensor> same;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check(tensors[i], c10::kByte, op);
    bool fits = scales[i] == scale && zero_points[i] == zero_point;
    same.push_back(fits ? tensors[i] : convert(tensors[i], scales[i], zero_points[i]));
  }
  return at::cat(same, dim);
}

Tensor cat(at::TensorList tensors, c10::ArrayRef<double> scales, c10::IntArrayRef zero_points, int64_t dim,
           double scale, int64_t zero_point) {
  return concatenated(
      tensors, scales, zero_points, dim, scale, zero_point,
      [&](const Tensor &x, double from, int64_t zero) { return requantize(x, from, zero, scale, zero_point); });
}

// --- pooling ---

// An image of 1 to 3 spatial dimensions in the kernels' order of memory.
struct Image {
  Tensor values;
  int64_t dimensions;

  Image(const Tensor &x, int64_t dimensions, const char *op) : dimensions(dimensions) {
    check(x, c10::kByte, op);
    TORCH_CHECK(dimensions >= 1 && dimensions <= 3 && (x.dim() == dimensions + 2 || x.dim() == dimensions + 1), op,
                ": an input of sizes ", x.sizes(), " for ", dimensions,
                " spatial dimensions; [batch, channels, …] or [channels, …] is accepted");
    Tensor batch = x.dim() == dimensions + 1 ? x.unsqueeze(0) : x;
    values = (dimensions == 1 ? batch.unsqueeze(2) : batch).contiguous(format());
  }

  c10::MemoryFormat format() const {
    return dimensions == 3 ? c10::MemoryFormat::ChannelsLast3d : c10::MemoryFormat::ChannelsLast;
  }

  // The image's sizes, with those spatial ones only that it was given with.
  std::vector<int64_t> sizes() const {
    std::vector<int64_t> sizes = values.sizes().vec();
    if (dimensions == 1)
      sizes.erase(sizes.begin() + 2);
    return sizes;
  }

  // An output of these spatial sizes.
  Tensor output(const rust::Vec<int64_t> &spatial) const {
    std::vector<int64_t> sizes{values.size(0), values.size(1)};
    if (dimensions == 1)
      sizes.push_back(1);
    sizes.insert(sizes.end(), spatial.begin(), spatial.end());
    return at::empty(sizes, values.options(), format());
  }

  // The output with the dimensions that the input had.
  Tensor shaped(const Tensor &output, const Tensor &input) const {
    Tensor y = dimensions == 1 ? output.squeeze(2) : output;
    return input.dim() == dimensions + 1 ? y.squeeze(0) : y;
  }
};

PoolWindow window(c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                  bool ceil_mode) {
  return {sizes_of(kernel), sizes_of(stride.empty() ? kernel : stride), sizes_of(padding), sizes_of(dilation),
          ceil_mode};
}

// The output of a window that slides over an image, on any device.
Tensor pooled(const Image &image, const PoolWindow &pool) {
  auto sizes = image.sizes();
  return image.output(in_rust([&] { return pool_sizes({sizes.data(), sizes.size()}, pool); }));
}

constexpr auto kMaxPool = "jitquant::max_pool";
constexpr auto kAvgPool = "jitquant::avg_pool";
constexpr auto kAdaptive = "jitquant::adaptive_avg_pool";

Tensor max_pool(const Tensor &x, c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding,
                c10::IntArrayRef dilation, bool ceil_mode) {
  Image image(x, static_cast<int64_t>(kernel.size()), kMaxPool);
  PoolWindow pool = window(kernel, stride, padding, dilation, ceil_mode);
  Tensor output = pooled(image, pool);
  in_rust([&] { max_pool_u8(values<uint8_t>(image.values), sizes_of(image.values), pool, writable<uint8_t>(output)); });
  return image.shaped(output, x);
}

Tensor avg_pool(const Tensor &x, int64_t zero_point, c10::IntArrayRef kernel, c10::IntArrayRef stride,
                c10::IntArrayRef padding, bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor) {
  Image image(x, static_cast<int64_t>(kernel.size()), kAvgPool);
  PoolWindow pool = window(kernel, stride, padding, {}, ceil_mode);
  Tensor output = pooled(image, pool);
  in_rust([&] {
    avg_pool_u8(values<uint8_t>(image.values), sizes_of(image.values), zero_point, pool, count_include_pad,
                divisor.value_or(0), writable<uint8_t>(output));
  });
  return image.shaped(output, x);
}

Tensor adaptive_output(const Image &image, c10::IntArrayRef output_size) {
  auto sizes = image.sizes();
  return image.output(in_rust([&] { return adaptive_sizes({sizes.data(), sizes.size()}, sizes_of(output_size)); }));
}

Tensor adaptive_avg_pool(const Tensor &x, int64_t zero_point, c10::IntArrayRef output_size) {
  Image image(x, static_cast<int64_t>(output_size.size()), kAdaptive);
  Tensor output = adaptive_output(image, output_size);
  in_rust([&] {
    adaptive_avg_pool_u8(values<uint8_t>(image.values), sizes_of(image.values), zero_point, sizes_of(output),
                         writable<uint8_t>(output));
  });
  return image.shaped(output, x);
}

constexpr auto kMean = "jitquant::mean";

// Whether the mean is taken over all but the first two dimensions, of which there are one to three.
bool is_spatial(const Tensor &x, at::OptionalIntArrayRef dims) {
  if (!dims || x.dim() < 3 || x.dim() > 5 || static_cast<int64_t>(dims->size()) != x.dim() - 2)
    return false;
  auto named = at::dim_list_to_bitset(dims, x.dim());
  return !named[0] && !named[1];
}

Tensor mean(const Tensor &x, int64_t zero_point, at::OptionalIntArrayRef dims, bool keepdim) {
  check(x, c10::kByte, kMean);
  TORCH_CHECK(x.numel() > 0, kMean, ": a tensor of sizes ", x.sizes(), " has no mean");
  if (is_spatial(x, dims)) {
    auto window = x.sizes().slice(2);
    Tensor y = avg_pool(x, zero_point, window, {}, std::vector<int64_t>(window.size(), 0), false, false, std::nullopt);
    return keepdim ? y : y.reshape({x.size(0), x.size(1)});
  }
  Tensor centered = x.to(c10::kFloat).sub_(zero_point);
  return at::mean(centered, dims, keepdim).round_().add_(zero_point).clamp_(0, 255).to(c10::kByte);
}

// --- upsampling ---

using MaybeSizes = at::OptionalIntArrayRef;
using MaybeFactors = std::optional<c10::ArrayRef<double>>;

// How many spatial dimensions are resized.
int64_t resized_dimensions(MaybeSizes sizes, MaybeFactors factors, const char *op) {
  size_t dimensions = sizes ? sizes->size() : factors ? factors->size() : 0;
  TORCH_CHECK(dimensions >= 1 && dimensions <= 3 && (!factors || factors->size() == dimensions), op, ": ",
              sizes ? sizes->size() : 0, " output sizes and ", factors ? factors->size() : 0,
              " scale factors; one of them or both, for 1 to 3 spatial dimensions, are accepted");
  return static_cast<int64_t>(dimensions);
}

// The output of an image that is resized, on any device.
Tensor resized(const Image &image, MaybeSizes given, MaybeFactors factors) {
  auto sizes = image.sizes();
  Sizes spatial{sizes.data() + 2, sizes.size() - 2}, wanted = given ? sizes_of(*given) : Sizes();
  rust::Slice<const double> scales;
  if (factors)
    scales = {factors->data(), factors->size()};
  return image.output(in_rust([&] { return upsample_sizes(spatial, wanted, scales); }));
}

Tensor upsample(const Tensor &x, MaybeSizes sizes, MaybeFactors factors, bool bilinear, bool align_corners,
                const char *op) {
  Image image(x, resized_dimensions(sizes, factors, op), op);
  Tensor output = resized(image, sizes, factors);
  Resizing form{bilinear, align_corners, {}};
  if (factors)
    form.factors = {factors->data(), factors->size()};
  in_rust([&] {
    upsample_u8(values<uint8_t>(image.values), sizes_of(image.values), form, sizes_of(output),
                writable<uint8_t>(output));
  });
  return image.shaped(output, x);
}

constexpr auto kNearest = "jitquant::upsample_nearest";
constexpr auto kBilinear = "jitquant::upsample_bilinear";

Tensor upsample_nearest(const Tensor &x, MaybeSizes sizes, MaybeFactors factors) {
  return upsample(x, sizes, factors, false, false, kNearest);
}

void check_flat(MaybeSizes sizes, MaybeFactors factors) {
  int64_t dimensions = resized_dimensions(sizes, factors, kBilinear);
  TORCH_CHECK(dimensions == 2, kBilinear, ": ", dimensions, " spatial dimensions; 2 are accepted");
}

Tensor upsample_bilinear(const Tensor &x, MaybeSizes sizes, bool align_corners, MaybeFactors factors) {
  check_flat(sizes, factors);
  return upsample(x, sizes, factors, true, align_corners, kBilinear);
}

// --- norms ---

// A parameter of f32 values, kept alive; no values for none.
struct Parameter {
  Tensor held;
  explicit Parameter(const std::optional<Tensor> &given) {
    if (given)
      held = given->detach().to(c10::kFloat).contiguous();
  }
  rust::Slice<const float> get() const { return held.defined() ? values<float>(held) : rust::Slice<const float>(); }
};

// The dimension `dim` of an input of softmax as its last one.
Tensor softmax_rows(const Tensor &x, int64_t &dim) {
  check(x, c10::kByte, "jitquant::softmax");
  dim = c10::maybe_wrap_dim(dim, x.dim());
  return x.movedim(dim, -1).contiguous();
}

Tensor softmax(const Tensor &x, double x_scale, int64_t, int64_t dim, double scale, int64_t zero_point) {
  Tensor rows = softmax_rows(x, dim), output = at::empty_like(rows);
  in_rust([&] {
    softmax_u8(values<uint8_t>(rows), x_scale, rows.dim() == 0 ? 1 : rows.size(-1), {scale, zero_point},
               writable<uint8_t>(output));
  });
  return output.movedim(-1, dim);
}

Tensor layer_rows(const Tensor &x, c10::IntArrayRef shape) {
  constexpr auto op = "jitquant::layer_norm";
  check(x, c10::kByte, op);
  bool fits = x.dim() >= static_cast<int64_t>(shape.size()) && x.sizes().slice(x.dim() - shape.size()) == shape;
  TORCH_CHECK(fits, op, ": an input of sizes ", x.sizes(), " does not end in ", shape);
  return x.contiguous();
}

Tensor layer_norm(const Tensor &x, double x_scale, int64_t x_zero_point, c10::IntArrayRef shape,
                  const std::optional<Tensor> &weight, const std::optional<Tensor> &bias, double eps, double scale,
                  int64_t zero_point) {
  Tensor rows = layer_rows(x, shape), output = at::empty_like(rows);
  Parameter gain(weight), shift(bias);
  in_rust([&] {
    layer_norm_u8(values<uint8_t>(rows), {x_scale, x_zero_point}, c10::multiply_integers(shape), gain.get(),
                  shift.get(), eps, {scale, zero_point}, writable<uint8_t>(output));
  });
  return output;
}

void check_channels(const Tensor &x, const char *op) {
  check(x, c10::kByte, op);
  TORCH_CHECK(x.dim() >= 2, op, ": an input of sizes ", x.sizes(), "; [batch, channels, …] is accepted");
}

Tensor group_norm(const Tensor &x, double x_scale, int64_t x_zero_point, int64_t groups,
                  const std::optional<Tensor> &weight, const std::optional<Tensor> &bias, double eps, double scale,
                  int64_t zero_point) {
  check_channels(x, "jitquant::group_norm");
  Tensor given = x.contiguous(), output = at::empty_like(given);
  Parameter gain(weight), shift(bias);
  in_rust([&] {
    group_norm_u8(values<uint8_t>(given), {x_scale, x_zero_point}, sizes_of(given), groups, gain.get(), shift.get(),
                  eps, {scale, zero_point}, writable<uint8_t>(output));
  });
  return output;
}

Tensor instance_norm(const Tensor &x, double x_scale, int64_t x_zero_point, const std::optional<Tensor> &weight,
                     const std::optional<Tensor> &bias, double eps, double scale, int64_t zero_point) {
  check_channels(x, "jitquant::instance_norm");
  return group_norm(x, x_scale, x_zero_point, x.size(1), weight, bias, eps, scale, zero_point);
}

Tensor batch_norm(const Tensor &x, double x_scale, int64_t x_zero_point, const std::optional<Tensor> &weight,
                  const std::optional<Tensor> &bias, const Tensor &mean, const Tensor &var, double eps, double scale,
                  int64_t zero_point, int64_t min, int64_t max) {
  check_channels(x, "jitquant::batch_norm");
  // Channels last in memory where they are so now.
  auto format = x.suggest_memory_format();
  bool last = format != c10::MemoryFormat::Contiguous || x.dim() == 2;
  Tensor given = x.contiguous(format), output = at::empty_like(given);
  Parameter gain(weight), shift(bias), center(mean), spread(var);
  int64_t channels = x.size(1), count = channels == 0 ? 0 : x.numel() / channels;
  std::vector<int64_t> layout = last ? std::vector<int64_t>{count, channels, 1}
                                     : std::vector<int64_t>{x.size(0), channels, x.size(0) ? count / x.size(0) : 0};
  in_rust([&] {
    batch_norm_u8(values<uint8_t>(given), {x_scale, x_zero_point}, {layout.data(), layout.size()}, gain.get(),
                  shift.get(), center.get(), spread.get(), eps, {scale, zero_point}, min, max,
                  writable<uint8_t>(output));
  });
  return output;
}

// --- shapes ---

// The kernels of meta tensors: the checks of types and sizes above, and the output that comes of them.

template <c10::ScalarType from, c10::ScalarType to, class... Rest> Tensor mapped_shape(const Tensor &x, Rest...) {
  Tensor given = on_meta(x);
  return mapped_like(given, from, to, "jitquant, an element-wise operator");
}

template <c10::ScalarType from, c10::ScalarType to>
Tensor per_channel_shape(const Tensor &x, const Tensor &, const Tensor &, int64_t axis) {
  check(x, from, "jitquant, an operator by channel");
  c10::maybe_wrap_dim(axis, x.dim());
  return at::empty(x.sizes(), x.options().dtype(to).device(c10::kMeta));
}

Tensor lookup_shape(const Tensor &x, const Tensor &table) {
  check(table, c10::kByte, "jitquant::lookup, table");
  return mapped_shape<c10::kByte, c10::kByte>(x);
}

Tensor add_shape(const Tensor &a, double, int64_t, const Tensor &b, double, int64_t, double, int64_t, int64_t,
                 int64_t) {
  return Pair(on_meta(a), on_meta(b), "jitquant::add").output();
}

Tensor mul_shape(const Tensor &a, double, int64_t, const Tensor &b, double, int64_t, double, int64_t, int64_t,
                 int64_t) {
  return Pair(on_meta(a), on_meta(b), "jitquant::mul").output();
}

Tensor matmul_shape(const Tensor &a, double, int64_t, const Tensor &b, double, int64_t, double, int64_t) {
  Tensor left = on_meta(a), right = on_meta(b);
  return Product(left, right, kMatmul).shaped();
}

Tensor cat_shape(at::TensorList tensors, c10::ArrayRef<double> scales, c10::IntArrayRef zero_points, int64_t dim,
                 double scale, int64_t zero_point) {
  std::vector<Tensor> given;
  for (const Tensor &x : tensors)
    given.push_back(on_meta(x));
  return concatenated(given, scales, zero_points, dim, scale, zero_point,
                      [](const Tensor &x, double, int64_t) { return mapped_shape<c10::kByte, c10::kByte>(x); });
}

Tensor max_pool_shape(const Tensor &x, c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding,
                      c10::IntArrayRef dilation, bool ceil_mode) {
  Image image(on_meta(x), static_cast<int64_t>(kernel.size()), kMaxPool);
  return image.shaped(pooled(image, window(kernel, stride, padding, dilation, ceil_mode)), x);
}

Tensor avg_pool_shape(const Tensor &x, int64_t, c10::IntArrayRef kernel, c10::IntArrayRef stride,
                      c10::IntArrayRef padding, bool ceil_mode, bool, std::optional<int64_t>) {
  Image image(on_meta(x), static_cast<int64_t>(kernel.size()), kAvgPool);
  return image.shaped(pooled(image, window(kernel, stride, padding, {}, ceil_mode)), x);
}

Tensor adaptive_shape(const Tensor &x, int64_t, c10::IntArrayRef output_size) {
  Image image(on_meta(x), static_cast<int64_t>(output_size.size()), kAdaptive);
  return image.shaped(adaptive_output(image, output_size), x);
}

Tensor mean_shape(const Tensor &x, int64_t, at::OptionalIntArrayRef dims, bool keepdim) {
  check(x, c10::kByte, kMean);
  return at::mean(at::empty(x.sizes(), x.options().dtype(c10::kFloat).device(c10::kMeta)), dims, keepdim)
      .to(c10::kByte);
}

Tensor upsample_nearest_shape(const Tensor &x, MaybeSizes sizes, MaybeFactors factors) {
  Image image(on_meta(x), resized_dimensions(sizes, factors, kNearest), kNearest);
  return image.shaped(resized(image, sizes, factors), x);
}

Tensor upsample_bilinear_shape(const Tensor &x, MaybeSizes sizes, bool, MaybeFactors factors) {
  check_flat(sizes, factors);
  Image image(on_meta(x), resized_dimensions(sizes, factors, kBilinear), kBilinear);
  return image.shaped(resized(image, sizes, factors), x);
}

Tensor softmax_shape(const Tensor &x, double, int64_t, int64_t dim, double, int64_t) {
  return at::empty_like(softmax_rows(on_meta(x), dim)).movedim(-1, dim);
}

Tensor layer_norm_shape(const Tensor &x, double, int64_t, c10::IntArrayRef shape, const std::optional<Tensor> &,
                        const std::optional<Tensor> &, double, double, int64_t) {
  return at::empty_like(layer_rows(on_meta(x), shape));
}

Tensor group_norm_shape(const Tensor &x, double, int64_t, int64_t, const std::optional<Tensor> &,
                        const std::optional<Tensor> &, double, double, int64_t) {
  check_channels(x, "jitquant::group_norm");
  return at::empty_like(on_meta(x).contiguous());
}

Tensor instance_norm_shape(const Tensor &x, double, int64_t, const std::optional<Tensor> &,
                           const std::optional<Tensor> &, double, double, int64_t) {
  check_channels(x, "jitquant::instance_norm");
  return at::empty_like(on_meta(x).contiguous());
}

Tensor batch_norm_shape(const Tensor &x, double, int64_t, const std::optional<Tensor> &, const std::optional<Tensor> &,
                        const Tensor &, const Tensor &, double, double, int64_t, int64_t, int64_t) {
  check_channels(x, "jitquant::batch_norm");
  Tensor given = on_meta(x);
  return at::empty_like(given.contiguous(given.suggest_memory_format()));
}

} // namespace

// Keeps this file's registrations in whatever links the library.
void keep_native_elements() {}

#define TO "float scale, int zero_point"
#define FROM "float x_scale, int x_zero_point"
#define PAIR                                                                                                           \
  "(Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point, " TO                         \
  ", int min=0, int max=255) -> Tensor"
#define AFFINE "Tensor? weight, Tensor? bias"

JITQUANT_DEFINITIONS(native_element_definitions, m) {
  m.def("quantize(Tensor x, " TO ") -> Tensor");
  m.def("dequantize(Tensor x, " TO ") -> Tensor");
  m.def("requantize(Tensor x, " FROM ", " TO ") -> Tensor");
  m.def("quantize_per_channel(Tensor x, Tensor scales, Tensor zero_points, int axis) -> Tensor");
  m.def("dequantize_per_channel(Tensor x, Tensor scales, Tensor zero_points, int axis) -> Tensor");
  m.def("clamp(Tensor x, int min, int max) -> Tensor");
  m.def("lookup(Tensor x, Tensor table) -> Tensor");
  m.def("activation_table(str name, float[] parameters, " FROM ", " TO ") -> Tensor", activation_table);
  m.def("add" PAIR);
  m.def("mul" PAIR);
  m.def("matmul(Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point, " TO
        ") -> Tensor");
  m.def("product(Tensor a, Tensor b) -> Tensor", product);
  m.def("cat(Tensor[] tensors, float[] scales, int[] zero_points, int dim, " TO ") -> Tensor");
  m.def(
      "max_pool(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode=False) -> Tensor");
  m.def("avg_pool(Tensor x, int x_zero_point, int[] kernel, int[] stride, int[] padding, bool ceil_mode=False, "
        "bool count_include_pad=True, int? divisor_override=None) -> Tensor");
  m.def("adaptive_avg_pool(Tensor x, int x_zero_point, int[] output_size) -> Tensor");
  m.def("mean(Tensor x, int x_zero_point, int[]? dim, bool keepdim=False) -> Tensor");
  m.def("upsample_nearest(Tensor x, int[]? output_size, float[]? scale_factors=None) -> Tensor");
  m.def("upsample_bilinear(Tensor x, int[]? output_size, bool align_corners, float[]? scale_factors=None) -> Tensor");
  m.def("softmax(Tensor x, " FROM ", int dim, " TO ") -> Tensor");
  m.def("layer_norm(Tensor x, " FROM ", int[] normalized_shape, " AFFINE ", float eps, " TO ") -> Tensor");
  m.def("group_norm(Tensor x, " FROM ", int groups, " AFFINE ", float eps, " TO ") -> Tensor");
  m.def("instance_norm(Tensor x, " FROM ", " AFFINE ", float eps, " TO ") -> Tensor");
  m.def("batch_norm(Tensor x, " FROM ", " AFFINE ", Tensor mean, Tensor var, float eps, " TO
        ", int min=0, int max=255) -> Tensor");
}

JITQUANT_KERNELS(native_element_kernels, CPU, m) {
  m.impl("quantize", quantize);
  m.impl("dequantize", dequantize);
  m.impl("requantize", requantize);
  m.impl("quantize_per_channel", quantize_per_channel);
  m.impl("dequantize_per_channel", dequantize_per_channel);
  m.impl("clamp", clamp);
  m.impl("lookup", lookup);
  m.impl("add", add);
  m.impl("mul", mul);
  m.impl("matmul", matmul);
  m.impl("cat", cat);
  m.impl("max_pool", max_pool);
  m.impl("avg_pool", avg_pool);
  m.impl("adaptive_avg_pool", adaptive_avg_pool);
  m.impl("mean", mean);
  m.impl("upsample_nearest", upsample_nearest);
  m.impl("upsample_bilinear", upsample_bilinear);
  m.impl("softmax", softmax);
  m.impl("layer_norm", layer_norm);
  m.impl("group_norm", group_norm);
  m.impl("instance_norm", instance_norm);
  m.impl("batch_norm", batch_norm);
}

JITQUANT_KERNELS(native_element_shapes, Meta, m) {
  m.impl("quantize", mapped_shape<c10::kFloat, c10::kByte, double, int64_t>);
  m.impl("dequantize", mapped_shape<c10::kByte, c10::kFloat, double, int64_t>);
  m.impl("requantize", mapped_shape<c10::kByte, c10::kByte, double, int64_t, double, int64_t>);
  m.impl("quantize_per_channel", per_channel_shape<c10::kFloat, c10::kChar>);
  m.impl("dequantize_per_channel", per_channel_shape<c10::kChar, c10::kFloat>);
  m.impl("clamp", mapped_shape<c10::kByte, c10::kByte, int64_t, int64_t>);
  m.impl("lookup", lookup_shape);
  m.impl("add", add_shape);
  m.impl("mul", mul_shape);
  m.impl("matmul", matmul_shape);
  m.impl("cat", cat_shape);
  m.impl("max_pool", max_pool_shape);
  m.impl("avg_pool", avg_pool_shape);
  m.impl("adaptive_avg_pool", adaptive_shape);
  m.impl("mean", mean_shape);
  m.impl("upsample_nearest", upsample_nearest_shape);
  m.impl("upsample_bilinear", upsample_bilinear_shape);
  m.impl("softmax", softmax_shape);
  m.impl("layer_norm", layer_norm_shape);
  m.impl("group_norm", group_norm_shape);
  m.impl("instance_norm", instance_norm_shape);
  m.impl("batch_norm", batch_norm_shape);
}

} // namespace jitquant

// The operators `jitquant::observe_*`: they hand tensors' memory to the arithmetic in src/observer.
#include <ATen/ATen.h>

#include <array>
#include <functional>
#include <mutex>

#include "library.h"
#include "observers.h"
#include "tensors.h"

#include "jitquant/src/observer/operators.rs.h"

namespace jitquant {

namespace {

using at::Tensor;

bool is_observable(const Tensor &x) { return x.is_floating_point() && x.numel() > 0; }

// The values in one run of memory; in which order does not matter.
Tensor dense(const Tensor &x) {
  Tensor values = x.detach().to(c10::kCPU, c10::kFloat);
  return values.is_non_overlapping_and_dense() ? values : values.contiguous();
}

rust::Slice<const float> read(const Tensor &x) { return values<float>(x); }

rust::Slice<float> write(const Tensor &x, const char *buffer) {
  TORCH_CHECK(x.scalar_type() == c10::kFloat && x.is_contiguous() && x.is_cpu(), "an observer's ", buffer,
              " should be a contiguous f32 tensor on the CPU");
  return writable<float>(x);
}

float &scalar(const Tensor &x, const char *buffer) {
  auto values = write(x, buffer);
  TORCH_CHECK(values.size() == 1, "an observer's ", buffer, " should hold one value, it holds ", values.size());
  return values[0];
}

rust::Str str(const std::string &text) { return rust::Str(text); }

// One thread at a time changes an observer's state; different observers mostly have different locks.
std::mutex &turn(const Tensor &min) {
  static std::array<std::mutex, 64> turns;
  return turns[std::hash<const void *>()(min.unsafeGetTensorImpl()) / 64 % turns.size()];
}
using Turn = std::lock_guard<std::mutex>;

void observe_min_max(const Tensor &x, const Tensor &min, const Tensor &max, const std::string &name) {
  if (!is_observable(x))
    return;
  Tensor values = dense(x);
  Turn turn_of_this(turn(min));
  in_rust([&] { observe_range(read(values), scalar(min, "min_val"), scalar(max, "max_val"), str(name)); });
}

void observe_moving_average(const Tensor &x, const Tensor &min, const Tensor &max, double averaging_constant,
                            const std::string &name) {
  if (!is_observable(x))
    return;
  Tensor values = dense(x);
  Turn turn_of_this(turn(min));
  in_rust([&] {
    observe_average(read(values), scalar(min, "min_val"), scalar(max, "max_val"), averaging_constant, str(name));
  });
}

// Gives each channel a state where there is none yet.
void make_room(const Tensor &x, const Tensor &min, const Tensor &max, int64_t axis, const std::string &name) {
  TORCH_CHECK(axis >= -x.dim() && axis < x.dim(), name, ": has ", x.dim(), " dimensions, no channel axis ", axis);
  if (min.numel() == 0 && max.numel() == 0) {
    // The memory of an empty tensor that was loaded from a file cannot grow.
    min.set_(at::full({x.size(axis)}, std::numeric_limits<float>::infinity(), min.options()));
    max.set_(at::full({x.size(axis)}, -std::numeric_limits<float>::infinity(), max.options()));
  }
  TORCH_CHECK(min.numel() == x.size(axis) && max.numel() == x.size(axis), name, ": has ", x.size(axis),
              " channels along axis ", axis, ", but ", min.numel(), " were observed before");
}

void observe_min_max_per_channel(const Tensor &x, const Tensor &min, const Tensor &max, int64_t axis,
                                 const std::string &name) {
  if (!is_observable(x))
    return;
  Turn turn_of_this(turn(min));
  make_room(x, min, max, axis, name);
  Tensor values = x.detach().to(c10::kCPU, c10::kFloat).contiguous();
  auto sizes = values.sizes();
  in_rust([&] {
    observe_range_per_channel(read(values), {sizes.data(), sizes.size()}, axis, write(min, "min_val"),
                              write(max, "max_val"), str(name));
  });
}

void observe_moving_average_per_channel(const Tensor &x, const Tensor &min, const Tensor &max, int64_t axis,
                                        double averaging_constant, const std::string &name) {
  if (!is_observable(x))
    return;
  Turn turn_of_this(turn(min));
  make_room(x, min, max, axis, name);
  Tensor values = x.detach().to(c10::kCPU, c10::kFloat).contiguous();
  auto sizes = values.sizes();
  in_rust([&] {
    observe_average_per_channel(read(values), {sizes.data(), sizes.size()}, axis, averaging_constant,
                                write(min, "min_val"), write(max, "max_val"), str(name));
  });
}

void observe_histogram(const Tensor &x, const Tensor &histogram, const Tensor &min, const Tensor &max,
                       const std::string &name) {
  if (!is_observable(x))
    return;
  Tensor values = dense(x);
  Turn turn_of_this(turn(min));
  in_rust([&] {
    observe_counts(read(values), write(histogram, "histogram"), scalar(min, "min_val"), scalar(max, "max_val"),
                   str(name));
  });
}

std::tuple<Tensor, Tensor> histogram_range(const Tensor &histogram, const Tensor &min, const Tensor &max,
                                           const std::string &search, double percentile) {
  Tensor counts = histogram.clone(), low = min.clone(), high = max.clone();
  in_rust([&] {
    best_range(write(counts, "histogram"), scalar(low, "min_val"), scalar(high, "max_val"), str(search), percentile);
  });
  return {low, high};
}

std::tuple<Tensor, Tensor> qparams(const Tensor &min, const Tensor &max, int64_t dtype, int64_t qscheme,
                                   int64_t quant_min, int64_t quant_max, bool reduce_range, double eps,
                                   const std::string &name) {
  Tensor low = min.contiguous().reshape(-1), high = max.contiguous().reshape(-1);
  Tensor scale = at::empty_like(low), zero_point = at::empty(low.sizes(), c10::kInt);
  auto zero_points = writable<int32_t>(zero_point);
  in_rust([&] {
    range_to_qparams(read(low), read(high), QuantRange{dtype, qscheme, quant_min, quant_max, reduce_range, eps},
                     write(scale, "scale"), zero_points, str(name));
  });
  return {scale, zero_point};
}

// On meta tensors there is nothing to observe.
using Text = const std::string &;
template <class... Args> void skip(const Tensor &, const Tensor &, const Tensor &, Args...) {}

std::tuple<Tensor, Tensor> histogram_range_shape(const Tensor &, const Tensor &min, const Tensor &max, Text, double) {
  return {at::empty_like(on_meta(min)), at::empty_like(on_meta(max))};
}

std::tuple<Tensor, Tensor> qparams_shape(const Tensor &min, const Tensor &, int64_t, int64_t, int64_t, int64_t, bool,
                                         double, Text) {
  Tensor low = on_meta(min).reshape(-1);
  return {at::empty_like(low), at::empty_like(low, low.options().dtype(c10::kInt))};
}

} // namespace

std::unique_ptr<NormalMode> leave_inference_mode() { return std::make_unique<NormalMode>(false); }

std::unique_ptr<IValues> observer_take(const Module &observer) {
  NormalMode normal(false);
  auto min = observer.attr("min_val").toTensor(), max = observer.attr("max_val").toTensor();
  Turn turn_of_this(turn(min));
  IValues state{min.clone(), max.clone()};
  min.fill_(std::numeric_limits<float>::infinity());
  max.fill_(-std::numeric_limits<float>::infinity());
  for (const char *counts : {"histogram", "rows"})
    if (observer.hasattr(counts)) {
      state.emplace_back(observer.attr(counts).toTensor().clone());
      observer.attr(counts).toTensor().zero_();
    }
  return std::make_unique<IValues>(std::move(state));
}

// Keeps this file's registrations in whatever links the library.
void keep_observer_operators() {}

JITQUANT_DEFINITIONS(observer_definitions, m) {
  m.def("observe_min_max(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, str name='') -> ()");
  m.def("observe_moving_average(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, float averaging_constant=0.01, "
        "str name='') -> ()");
  m.def("observe_min_max_per_channel(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, int axis=0, str name='') -> ()");
  m.def("observe_moving_average_per_channel(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, int axis=0, "
        "float averaging_constant=0.01, str name='') -> ()");
  m.def("observe_histogram(Tensor x, Tensor(a!) histogram, Tensor(b!) min_val, Tensor(c!) max_val, str name='') -> ()");
  m.def("histogram_range(Tensor histogram, Tensor min_val, Tensor max_val, str search='histogram', "
        "float percentile=99.99) -> (Tensor, Tensor)");
  m.def("qparams(Tensor min_val, Tensor max_val, int dtype, int qscheme, int quant_min=0, int quant_max=0, "
        "bool reduce_range=False, float eps=1.1920928955078125e-07, str name='') -> (Tensor, Tensor)");
}

JITQUANT_KERNELS(observer_kernels, CPU, m) {
  m.impl("observe_min_max", observe_min_max);
  m.impl("observe_moving_average", observe_moving_average);
  m.impl("observe_min_max_per_channel", observe_min_max_per_channel);
  m.impl("observe_moving_average_per_channel", observe_moving_average_per_channel);
  m.impl("observe_histogram", observe_histogram);
  m.impl("histogram_range", histogram_range);
  m.impl("qparams", qparams);
}

JITQUANT_KERNELS(observer_shapes, Meta, m) {
  m.impl("observe_min_max", skip<Text>);
  m.impl("observe_moving_average", skip<double, Text>);
  m.impl("observe_min_max_per_channel", skip<int64_t, Text>);
  m.impl("observe_moving_average_per_channel", skip<int64_t, double, Text>);
  m.impl("observe_histogram", skip<const Tensor &, Text>);
  m.impl("histogram_range", histogram_range_shape);
  m.impl("qparams", qparams_shape);
}

} // namespace jitquant

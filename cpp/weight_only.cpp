// `jitquant::linear_weight_only`: float activations, weights of 8 or 4 bits that become float where they are used.
#include "weight_only.h"

#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include "jitquant/src/engine/weight_only.rs.h"
#include "library.h"
#include "tensors.h"

namespace jitquant {

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// A packed weight, with what unpacking gives back beside its bytes.
struct WeightOnlyLayer : torch::jit::CustomClassHolder {
  WeightOnlyLayer(rust::Box<WeightOnlyMatrix> matrix, Tensor scales, MaybeTensor offsets, MaybeTensor bias)
      : matrix(std::move(matrix)), scales(std::move(scales)), offsets(std::move(offsets)), bias(std::move(bias)) {}

  rust::Slice<const float> biases() const { return bias ? values<float>(*bias) : rust::Slice<const float>(); }

  rust::Box<WeightOnlyMatrix> matrix;
  Tensor scales;
  MaybeTensor offsets;
  MaybeTensor bias;
};

using LayerPtr = c10::intrusive_ptr<WeightOnlyLayer>;
using State = std::tuple<Tensor, Tensor, MaybeTensor, MaybeTensor>;

rust::Slice<const uint16_t> bits(const Tensor &x) { return values<uint16_t>(x); }

LayerPtr prepack(const Tensor &weight, const Tensor &scales, const MaybeTensor &offsets, const MaybeTensor &bias) {
  constexpr auto op = "jitquant::linear_weight_only_prepack";
  TORCH_CHECK(weight.dim() == 2, op, ": a weight of sizes ", weight.sizes(), "; two dimensions are accepted");
  TORCH_CHECK(weight.scalar_type() == (offsets ? c10::kByte : c10::kChar), op, ": the weight is ", weight.toString(),
              "; int8 with a scale a row, or uint8 with scales and offsets, is accepted");
  for (const Tensor &given : {weight, scales, offsets.value_or(scales), bias.value_or(scales)})
    TORCH_CHECK_VALUE(given.is_cpu() && given.layout() == c10::kStrided, op, ": an argument is ", given.toString(),
                      " on ", given.device(), "; dense tensors on the CPU are accepted");
  Tensor bytes = weight.contiguous();
  auto rows = static_cast<size_t>(weight.size(0)), columns = static_cast<size_t>(weight.size(1));
  MaybeTensor added =
      bias ? MaybeTensor(bias->detach().to(c10::kFloat, false, /*copy=*/true).contiguous()) : std::nullopt;
  TORCH_CHECK(!added || added->numel() == weight.size(0), op, ": a bias of ", added ? added->numel() : 0,
              " elements for ", rows, " outputs");
  if (!offsets) {
    Tensor scale = scales.reshape(-1).to(c10::kFloat).contiguous();
    auto matrix =
        in_rust([&] { return weight_only_channels(values<int8_t>(bytes), rows, columns, values<float>(scale)); });
    return c10::make_intrusive<WeightOnlyLayer>(std::move(matrix), scale, std::nullopt, added);
  }
  TORCH_CHECK(scales.numel() == offsets->numel(), op, ": ", scales.numel(), " scales and ", offsets->numel(),
              " offsets; as many, a row of them for each output, are accepted");
  Tensor scale = scales.to(c10::kBFloat16).contiguous(), offset = offsets->to(c10::kBFloat16).contiguous();
  auto matrix =
      in_rust([&] { return weight_only_groups(values<uint8_t>(bytes), rows, 2 * columns, bits(scale), bits(offset)); });
  return c10::make_intrusive<WeightOnlyLayer>(std::move(matrix), scale, offset, added);
}

State unpack(const LayerPtr &layer) {
  auto rows = static_cast<int64_t>(layer->matrix->outputs()), columns = static_cast<int64_t>(layer->matrix->inputs());
  Tensor weight = layer->offsets ? at::empty({rows, columns / 2}, c10::kByte) : at::empty({rows, columns}, c10::kChar);
  in_rust([&] { layer->matrix->unpack(writable<uint8_t>(weight)); });
  return {weight, layer->scales, layer->offsets, layer->bias};
}

c10::SmallVector<int64_t, 5> output_sizes(const Tensor &x, const WeightOnlyLayer &layer) {
  auto inputs = static_cast<int64_t>(layer.matrix->inputs());
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == inputs, "jitquant::linear_weight_only: an input of sizes ", x.sizes(),
              " for a layer of ", inputs, " inputs");
  c10::SmallVector<int64_t, 5> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = static_cast<int64_t>(layer.matrix->outputs());
  return sizes;
}

void check(const Tensor &x) {
  TORCH_CHECK(x.scalar_type() == c10::kFloat && (x.is_cpu() || x.is_meta()),
              "jitquant::linear_weight_only: the input is ", x.toString(),
              "; a tensor of float32 on the CPU is accepted");
}

Tensor linear(const Tensor &x, const LayerPtr &layer) {
  check(x);
  Tensor y = at::empty(output_sizes(x, *layer), x.options());
  if (y.numel() == 0)
    return y;
  Tensor dense = x.contiguous();
  in_rust([&] { layer->matrix->run(values<float>(dense), layer->biases(), writable<float>(y)); });
  return y;
}

Tensor linear_shape(const Tensor &x, const LayerPtr &layer) {
  check(x);
  return at::empty(output_sizes(x, *layer), x.options().device(c10::kMeta));
}

} // namespace

// Keeps this file's registrations in whatever links the library.
void keep_weight_only_operators() {}

#define W "__torch__.torch.classes.jitquant.WeightOnlyLinear"

JITQUANT_DEFINITIONS(weight_only_definitions, m) {
  m.class_<WeightOnlyLayer>("WeightOnlyLinear")
      .def_pickle([](const LayerPtr &layer) { return unpack(layer); },
                  [](State state) {
                    auto [weight, scales, offsets, bias] = std::move(state);
                    return prepack(weight, scales, offsets, bias);
                  });
  m.def("linear_weight_only_prepack(Tensor weight, Tensor scales, Tensor? offsets=None, Tensor? bias=None) -> " W,
        prepack);
  m.def("linear_weight_only_unpack(" W " weight) -> (Tensor, Tensor, Tensor?, Tensor?)", unpack);
  m.def("linear_weight_only(Tensor x, " W " weight) -> Tensor");
}

JITQUANT_KERNELS(weight_only_kernels, CPU, m) { m.impl("linear_weight_only", linear); }

JITQUANT_KERNELS(weight_only_shapes, Meta, m) { m.impl("linear_weight_only", linear_shape); }

} // namespace jitquant

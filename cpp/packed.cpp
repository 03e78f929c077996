// Packed parameters of our own classes: libtorch's `quantized::` operators call them, they call the kernels.
#include "packed.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/class_type.h>
#include <ATen/core/function.h>
#include <ATen/native/quantized/PackedParams.h>
#include <ATen/ops/_empty_affine_quantized_native.h>

#include <algorithm>
#include <limits>

#include "embedding.h"
#include "shared.h"
#include "weights.h"

namespace jitquant {

int32_t host_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void host_parallel(size_t count, const Tasks &tasks) {
  at::parallel_for(0, static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      run_task(tasks, static_cast<size_t>(i));
  });
}

rust::Vec<rust::String> stock_engines() {
  rust::Vec<rust::String> names;
  for (at::QEngine engine : at::globalContext().supportedQEngines())
    names.push_back(c10::toString(engine));
  return names;
}

rust::String stock_engine() { return c10::toString(at::globalContext().qEngine()); }

void set_stock_engine(rust::Str name) {
  for (at::QEngine engine : at::globalContext().supportedQEngines())
    if (c10::toString(engine) == text(name))
      return at::globalContext().setQEngine(engine);
  TORCH_CHECK_VALUE(false, "libtorch has no quantized engine '", text(name), "'");
}

rust::Vec<int64_t> list_of(c10::IntArrayRef numbers) {
  rust::Vec<int64_t> copied;
  std::copy(numbers.begin(), numbers.end(), std::back_inserter(copied));
  return copied;
}

// The zero points for the kernels: none where all are 0.
static at::Tensor kernel_zero_points(const WeightScheme &scheme) {
  // Those that are none stay none where they become smaller integers.
  at::Tensor zero_points = scheme.zero_points.clamp(-1024, 1024).to(c10::kInt).contiguous();
  return zero_points.count_nonzero().item<int64_t>() == 0 ? zero_points.slice(0, 0, 0) : zero_points;
}

c10::intrusive_ptr<LinearLayer> make_linear_layer(const at::Tensor &weight, WeightScheme scheme,
                                                  std::optional<at::Tensor> bias) {
  auto packed = in_rust([&] {
    TORCH_CHECK_VALUE(weight.dim() == 2, "a linear layer's weight of sizes ", weight.sizes());
    return linear_weight(values<int8_t>(weight), weight.size(0), weight.size(1),
                         values<float>(scheme.scales.to(c10::kFloat)), values<int32_t>(kernel_zero_points(scheme)));
  });
  return c10::make_intrusive<LinearLayer>(std::move(packed), std::move(scheme), std::move(bias));
}

c10::intrusive_ptr<ConvolutionLayer> make_conv_layer(const at::Tensor &weight, WeightScheme scheme,
                                                     std::optional<at::Tensor> bias, ConvolutionSizes sizes) {
  auto packed = in_rust([&] {
    return convolution_weight(values<int8_t>(weight), sizes, values<float>(scheme.scales.to(c10::kFloat)),
                              values<int32_t>(kernel_zero_points(scheme)));
  });
  return c10::make_intrusive<ConvolutionLayer>(std::move(packed), std::move(scheme), std::move(bias), std::move(sizes));
}

namespace {

using at::Tensor;

constexpr float infinity = std::numeric_limits<float>::infinity();

Bounds bounds(bool relu) { return {relu ? 0.0f : -infinity, infinity}; }

Affine affine_of(const Tensor &x) { return {x.q_scale(), x.q_zero_point()}; }

Requantization requantization(double scale, int64_t zero_point, bool relu) {
  int64_t least = relu ? std::clamp<int64_t>(zero_point, 0, 255) : 0;
  return {{scale, zero_point}, least, 255, {}, {1.0, 0}, {}};
}

void check_quantized(const Tensor &x, const char *op) {
  TORCH_CHECK(x.scalar_type() == c10::kQUInt8 && x.qscheme() == c10::kPerTensorAffine && x.is_cpu(), op,
              ": the input is ", x.toString(), "; quint8 with one scale, on the CPU, is accepted");
}

void check_float(const Tensor &x, const char *op) {
  TORCH_CHECK(x.scalar_type() == c10::kFloat && x.is_cpu(), op, ": the input is ", x.toString(),
              "; float32 on the CPU is accepted");
}

Tensor empty_quantized(c10::IntArrayRef sizes, double scale, int64_t zero_point, c10::MemoryFormat format) {
  return at::native::empty_affine_quantized(sizes, c10::kQUInt8, c10::kStrided, c10::kCPU, false, scale, zero_point,
                                            format);
}

WeightScheme scheme_of(const Tensor &weight) {
  WeightScheme scheme{{}, {}, -1, weight.sizes().vec()};
  if (weight.qscheme() == c10::kPerTensorAffine) {
    scheme.scales = at::scalar_tensor(weight.q_scale(), c10::kDouble).reshape(1);
    scheme.zero_points = at::scalar_tensor(weight.q_zero_point(), c10::kLong).reshape(1);
  } else {
    TORCH_CHECK(weight.qscheme() == c10::kPerChannelAffine, "the weight's scheme is ", toString(weight.qscheme()));
    scheme.scales = weight.q_per_channel_scales().to(c10::kDouble).contiguous();
    scheme.zero_points = weight.q_per_channel_zero_points().to(c10::kLong).contiguous();
    scheme.axis = weight.q_per_channel_axis();
  }
  return scheme;
}

template <class Weight> Tensor unpacked(const Layer<Weight> &layer) {
  const WeightScheme &scheme = layer.scheme;
  auto options = at::TensorOptions().dtype(c10::kQInt8);
  Tensor weight = scheme.axis < 0
                      ? at::_empty_affine_quantized(scheme.sizes, options, scheme.scales.template item<double>(),
                                                    scheme.zero_points.template item<int64_t>())
                      : at::_empty_per_channel_affine_quantized(scheme.sizes, scheme.scales, scheme.zero_points,
                                                                scheme.axis, options);
  in_rust([&] { layer.weight->unpack(writable<int8_t>(weight)); });
  return weight;
}

Tensor checked_weight(const Tensor &weight) {
  TORCH_CHECK(weight.scalar_type() == c10::kQInt8, "the weight is ", weight.toString(),
              "; qint8 is what jitquant's kernels take");
  return weight.contiguous();
}

// Stands in for libtorch's packed linear weights.
class Linear final : public LinearPackedParamsBase {
public:
  explicit Linear(c10::intrusive_ptr<LinearLayer> layer) : layer_(std::move(layer)) {}

  static c10::intrusive_ptr<Linear> pack(const Tensor &given, std::optional<Tensor> bias) {
    Tensor weight = checked_weight(given);
    WeightScheme scheme = scheme_of(weight);
    TORCH_CHECK(weight.dim() == 2 && scheme.axis <= 0, "a weight of sizes ", weight.sizes(), " with scales along axis ",
                scheme.axis, "; [outputs, inputs] and axis 0 are accepted");
    return c10::make_intrusive<Linear>(make_linear_layer(weight, std::move(scheme), std::move(bias)));
  }

  const c10::intrusive_ptr<LinearLayer> &layer() const { return layer_; }

  Tensor apply(Tensor input, double scale, int64_t zero_point) override {
    return quantized(input, scale, zero_point, false);
  }

  Tensor apply_relu(Tensor input, double scale, int64_t zero_point) override {
    return quantized(input, scale, zero_point, true);
  }

  Tensor &apply_out(const Tensor &input, double scale, int64_t zero_point, Tensor &output) override {
    return quantized_out(input, scale, zero_point, false, output);
  }

  Tensor &apply_relu_out(const Tensor &input, double scale, int64_t zero_point, Tensor &output) override {
    return quantized_out(input, scale, zero_point, true, output);
  }

  Tensor apply_with_input_q_dq_qweight_dq_output_fp32(Tensor input, double scale, int64_t zero_point) override {
    return quantizing(input, scale, zero_point, false);
  }

  Tensor apply_with_input_q_dq_qweight_dq_relu_output_fp32(Tensor input, double scale, int64_t zero_point) override {
    return quantizing(input, scale, zero_point, true);
  }

  Tensor apply_dynamic(Tensor input, bool reduce_range) override { return dynamic(input, reduce_range, false); }

  Tensor apply_dynamic_relu(Tensor input, bool reduce_range) override { return dynamic(input, reduce_range, true); }

  Tensor &apply_dynamic_out(const Tensor &input, Tensor &output, bool reduce_range) override {
    return dynamic_out(input, reduce_range, false, output);
  }

  Tensor &apply_dynamic_relu_out(const Tensor &input, Tensor &output, bool reduce_range) override {
    return dynamic_out(input, reduce_range, true, output);
  }

  std::tuple<Tensor, std::optional<Tensor>> unpack() override { return {unpacked(*layer_), layer_->bias}; }

  std::optional<Tensor> bias() override { return layer_->bias; }

  void set_bias(std::optional<Tensor> bias) override { layer_->set_bias(std::move(bias)); }

private:
  // The input's sizes with the outputs in place of the inputs.
  c10::SmallVector<int64_t, 5> output_sizes(const Tensor &input) const {
    auto inputs = static_cast<int64_t>(layer_->weight->inputs());
    TORCH_CHECK(input.dim() > 0 && input.size(-1) == inputs, "quantized::linear: an input of sizes ", input.sizes(),
                " for a layer of ", inputs, " inputs");
    c10::SmallVector<int64_t, 5> sizes(input.sizes().begin(), input.sizes().end());
    sizes.back() = static_cast<int64_t>(layer_->weight->outputs());
    return sizes;
  }

  void run(const Tensor &input, double scale, int64_t zero_point, bool relu, const Tensor &output) const {
    if (output.numel() == 0)
      return;
    Tensor dense = input.contiguous();
    in_rust([&] {
      layer_->weight->run_u8(values<uint8_t>(dense), affine_of(dense), layer_->biases(), writable<uint8_t>(output),
                             requantization(scale, zero_point, relu));
    });
  }

  Tensor quantized(const Tensor &input, double scale, int64_t zero_point, bool relu) const {
    check_quantized(input, "quantized::linear");
    Tensor output = empty_quantized(output_sizes(input), scale, zero_point, c10::MemoryFormat::Contiguous);
    run(input, scale, zero_point, relu, output);
    return output;
  }

  Tensor &quantized_out(const Tensor &input, double scale, int64_t zero_point, bool relu, Tensor &output) const {
    check_quantized(input, "quantized::linear_out");
    check_quantized(output, "quantized::linear_out, output");
    output.resize_(output_sizes(input));
    TORCH_CHECK(output.is_contiguous(), "quantized::linear_out: the output should be contiguous");
    run(input, scale, zero_point, relu, output);
    return output;
  }

  Tensor quantizing(const Tensor &input, double scale, int64_t zero_point, bool relu) const {
    check_float(input, "quantized::linear_with_input_q_dq_qweight_dq_output_fp32");
    Tensor output = at::empty(output_sizes(input), input.options());
    Tensor dense = input.contiguous();
    if (output.numel() > 0)
      in_rust([&] {
        layer_->weight->run_quantizing(values<float>(dense), {scale, zero_point}, layer_->biases(),
                                       writable<float>(output), bounds(relu));
      });
    return output;
  }

  Tensor &dynamic_out(const Tensor &input, bool reduce_range, bool relu, Tensor &output) const {
    check_float(input, "quantized::linear_dynamic");
    output.resize_(output_sizes(input));
    TORCH_CHECK(output.scalar_type() == c10::kFloat && output.is_contiguous(),
                "quantized::linear_dynamic_out: the output should be float32 and contiguous");
    Tensor dense = input.contiguous();
    if (output.numel() > 0)
      in_rust([&] {
        layer_->weight->run_dynamic(values<float>(dense), {false, reduce_range}, layer_->biases(),
                                    writable<float>(output), bounds(relu));
      });
    return output;
  }

  Tensor dynamic(const Tensor &input, bool reduce_range, bool relu) const {
    Tensor output = at::empty({0}, input.options());
    return dynamic_out(input, reduce_range, relu, output);
  }

  c10::intrusive_ptr<LinearLayer> layer_;
};

std::vector<int64_t> numbers(const torch::List<int64_t> &list) { return list.vec(); }

// Stands in for libtorch's packed convolution weights of `N` spatial dimensions.
template <int N> class Convolution final : public ConvPackedParamsBase<N> {
public:
  explicit Convolution(c10::intrusive_ptr<ConvolutionLayer> layer) : layer_(std::move(layer)) {}

  static c10::intrusive_ptr<Convolution> pack(ConvPackedParamsBase<N> &stock) {
    auto [given, bias] = stock.unpack();
    Tensor weight = checked_weight(given);
    WeightScheme scheme = scheme_of(weight);
    TORCH_CHECK(scheme.axis < 0 ||
                    (scheme.axis == (stock.transpose() ? 1 : 0) && (!stock.transpose() || stock.groups() == 1)),
                "its scales are along axis ", scheme.axis, " of the weight, which is not that of the output channels");
    ConvolutionSizes sizes{list_of(weight.sizes()),
                           list_of(numbers(stock.stride())),
                           list_of(numbers(stock.padding())),
                           list_of(numbers(stock.dilation())),
                           list_of(numbers(stock.output_padding())),
                           stock.groups(),
                           stock.transpose()};
    if (sizes.output_padding.empty())
      sizes.output_padding = list_of(std::vector<int64_t>(N, 0));
    return c10::make_intrusive<Convolution>(
        make_conv_layer(weight, std::move(scheme), std::move(bias), std::move(sizes)));
  }

  const c10::intrusive_ptr<ConvolutionLayer> &layer() const { return layer_; }

  Tensor apply(const Tensor &input, double scale, int64_t zero_point) override {
    return quantized(input, scale, zero_point, false);
  }

  Tensor apply_relu(const Tensor &input, double scale, int64_t zero_point) override {
    return quantized(input, scale, zero_point, true);
  }

  Tensor apply_dynamic(const Tensor &input, bool reduce_range) override {
    check_float(input, "quantized::conv_dynamic");
    Tensor output = at::empty(output_sizes(input), input.options(), format);
    Tensor dense = input.contiguous(format);
    if (output.numel() > 0)
      in_rust([&] {
        layer_->weight->run_dynamic(values<float>(dense), {dense.sizes().data(), dense.sizes().size()}, reduce_range,
                                    layer_->biases(), writable<float>(output));
      });
    return output;
  }

  std::tuple<Tensor, std::optional<Tensor>> unpack() override { return {unpacked(*layer_), layer_->bias}; }

  torch::List<int64_t> stride() const override { return list(layer_->convolution.stride); }
  torch::List<int64_t> padding() const override { return list(layer_->convolution.padding); }
  torch::List<int64_t> output_padding() const override { return list(layer_->convolution.output_padding); }
  torch::List<int64_t> dilation() const override { return list(layer_->convolution.dilation); }
  int64_t groups() const override { return layer_->convolution.groups; }
  bool transpose() const override { return layer_->convolution.transposed; }

private:
  static constexpr auto format = N == 2 ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::ChannelsLast3d;

  static torch::List<int64_t> list(const rust::Vec<int64_t> &numbers) {
    return torch::List<int64_t>(c10::IntArrayRef(numbers.data(), numbers.size()));
  }

  c10::SmallVector<int64_t, 5> output_sizes(const Tensor &input) const {
    auto sizes = in_rust([&] { return layer_->weight->output_sizes({input.sizes().data(), input.sizes().size()}); });
    return {sizes.begin(), sizes.end()};
  }

  Tensor quantized(const Tensor &input, double scale, int64_t zero_point, bool relu) const {
    check_quantized(input, "quantized::conv");
    Tensor output = empty_quantized(output_sizes(input), scale, zero_point, format);
    Tensor dense = input.contiguous(format);
    if (output.numel() > 0)
      in_rust([&] {
        layer_->weight->run_u8(values<uint8_t>(dense), {dense.sizes().data(), dense.sizes().size()}, affine_of(dense),
                               layer_->biases(), writable<uint8_t>(output), requantization(scale, zero_point, relu));
      });
    return output;
  }

  c10::intrusive_ptr<ConvolutionLayer> layer_;
};

const std::string kLinear = "__torch__.torch.classes.quantized.LinearPackedParamsBase";
const std::string kConv2d = "__torch__.torch.classes.quantized.Conv2dPackedParamsBase";
const std::string kConv3d = "__torch__.torch.classes.quantized.Conv3dPackedParamsBase";
const std::string kCell = "__torch__.torch.classes.rnn.CellParamsBase";
const std::string kEmbedding = "__torch__.torch.classes.quantized.EmbeddingPackedParamsBase";

using Object = c10::intrusive_ptr<c10::ivalue::Object>;

std::string class_of(const Object &object) { return object->type()->name()->qualifiedName(); }

template <class T> c10::intrusive_ptr<T> held(const Object &object) { return IValue(object).toCustomClass<T>(); }

bool is_packed(const std::string &name) {
  return name == kLinear || name == kConv2d || name == kConv3d || name == kCell || name == kEmbedding;
}

// The linear weights of a recurrent cell are the last part of its state.
std::vector<IValue> state_of_cell(const Object &cell) {
  torch::jit::Stack stack{IValue(cell)};
  cell->type()->getMethod("__getstate__").run(stack);
  return stack.back().toTupleRef().elements().vec();
}

bool is_our_linear(const c10::intrusive_ptr<LinearPackedParamsBase> &packed) {
  return dynamic_cast<Linear *>(packed.get()) != nullptr;
}

c10::intrusive_ptr<Linear> our_linear(LinearPackedParamsBase &stock) {
  auto [weight, bias] = stock.unpack();
  return Linear::pack(weight, bias);
}

void replace_in_cell(const Object &cell) {
  std::vector<IValue> state = state_of_cell(cell);
  const IValue &last = state.back();
  TORCH_CHECK(last.isList() && !last.toListRef().empty(), "a recurrent cell of an old form");
  c10::List<c10::intrusive_ptr<LinearPackedParamsBase>> replaced;
  for (const IValue &packed : last.toListRef())
    replaced.push_back(our_linear(*packed.toCustomClass<LinearPackedParamsBase>()));
  state.back() = std::move(replaced);
  torch::jit::Stack stack{IValue(cell), c10::ivalue::Tuple::create(std::move(state))};
  cell->type()->getMethod("__setstate__").run(stack);
}

} // namespace

std::unique_ptr<Objects> objects_new() { return std::make_unique<Objects>(); }

size_t objects_collect(Objects &objects, const IValue &value) {
  size_t before = objects.size();
  value.visit([&](const IValue &part) {
    if (!part.isObject() || !is_packed(class_of(part.toObject())))
      return false;
    Object object = part.toObject();
    if (std::find(objects.begin(), objects.end(), object) == objects.end())
      objects.push_back(object);
    return true;
  });
  return objects.size() - before;
}

rust::String objects_class(const Objects &objects, size_t index) {
  std::string name = class_of(objects.at(index));
  return name.substr(name.rfind('.') + 1);
}

bool object_is_ours(const Objects &objects, size_t index) {
  const Object &object = objects.at(index);
  std::string name = class_of(object);
  if (name == kLinear)
    return is_our_linear(held<LinearPackedParamsBase>(object));
  if (name == kConv2d)
    return dynamic_cast<Convolution<2> *>(held<ConvPackedParamsBase<2>>(object).get()) != nullptr;
  if (name == kConv3d)
    return dynamic_cast<Convolution<3> *>(held<ConvPackedParamsBase<3>>(object).get()) != nullptr;
  if (name == kCell) {
    IValue last = state_of_cell(object).back();
    return last.isList() && !last.toListRef().empty() &&
           std::all_of(last.toListRef().begin(), last.toListRef().end(), [](const IValue &packed) {
             return is_our_linear(packed.toCustomClass<LinearPackedParamsBase>());
           });
  }
  return is_our_embedding(*held<EmbeddingPackedParamsBase>(object));
}

void object_replace(const Objects &objects, size_t index) {
  const Object &object = objects.at(index);
  std::string name = class_of(object);
  // The object stays and its content changes: whoever holds the object sees it.
  auto fill = [&](c10::intrusive_ptr<torch::jit::CustomClassHolder> packed) {
    object->setSlot(0, IValue::make_capsule(std::move(packed)));
  };
  if (name == kLinear)
    fill(our_linear(*held<LinearPackedParamsBase>(object)));
  else if (name == kConv2d)
    fill(Convolution<2>::pack(*held<ConvPackedParamsBase<2>>(object)));
  else if (name == kConv3d)
    fill(Convolution<3>::pack(*held<ConvPackedParamsBase<3>>(object)));
  else if (name == kCell)
    replace_in_cell(object);
  else
    fill(our_embedding(*held<EmbeddingPackedParamsBase>(object)));
}

c10::intrusive_ptr<LinearLayer> linear_layer_of(const c10::intrusive_ptr<LinearPackedParamsBase> &packed) {
  if (auto *ours = dynamic_cast<Linear *>(packed.get()))
    return ours->layer();
  static auto *shared = new Shared<LinearPackedParamsBase, LinearLayer>;
  return shared->of(packed, [&] { return our_linear(*packed)->layer(); });
}

template <int N>
static c10::intrusive_ptr<ConvolutionLayer> conv_layer_of(const c10::intrusive_ptr<ConvPackedParamsBase<N>> &packed) {
  if (auto *ours = dynamic_cast<Convolution<N> *>(packed.get()))
    return ours->layer();
  static auto *shared = new Shared<ConvPackedParamsBase<N>, ConvolutionLayer>;
  return shared->of(packed, [&] { return Convolution<N>::pack(*packed)->layer(); });
}

c10::intrusive_ptr<ConvolutionLayer> conv2d_layer_of(const c10::intrusive_ptr<ConvPackedParamsBase<2>> &packed) {
  return conv_layer_of<2>(packed);
}

c10::intrusive_ptr<ConvolutionLayer> conv3d_layer_of(const c10::intrusive_ptr<ConvPackedParamsBase<3>> &packed) {
  return conv_layer_of<3>(packed);
}

} // namespace jitquant

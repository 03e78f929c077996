// Weights in the kernels' layout, as C++ holds them: packed parameters and native operators share them.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <ATen/native/quantized/PackedParams.h>

#include "rust/cxx.h"
#include "tensors.h"

#include "jitquant/src/engine/bridge.rs.h"

namespace jitquant {

// How an i8 weight was quantized, as libtorch keeps it.
struct WeightScheme {
  at::Tensor scales;      // f64: one, or one for each channel of `axis`
  at::Tensor zero_points; // i64: as many
  int64_t axis;           // -1: per tensor
  std::vector<int64_t> sizes;
};

// A weight, how it was quantized, and the layer's bias.
template <class Weight> struct Layer : torch::jit::CustomClassHolder {
  Layer(rust::Box<Weight> weight, WeightScheme scheme, std::optional<at::Tensor> bias)
      : weight(std::move(weight)), scheme(std::move(scheme)) {
    set_bias(std::move(bias));
  }

  void set_bias(std::optional<at::Tensor> value) {
    bias = std::move(value);
    // A copy: what is written into the given tensor later is none of the layer's.
    bias_values = bias ? bias->detach().to(c10::kCPU, c10::kFloat, false, /*copy=*/true).contiguous() : at::Tensor();
  }

  rust::Slice<const float> biases() const {
    return bias_values.defined() ? values<float>(bias_values) : rust::Slice<const float>();
  }

  rust::Box<Weight> weight;
  WeightScheme scheme;
  std::optional<at::Tensor> bias;

private:
  at::Tensor bias_values;
};

using LinearLayer = Layer<LinearWeight>;

struct ConvolutionLayer : Layer<ConvolutionWeight> {
  ConvolutionLayer(rust::Box<ConvolutionWeight> weight, WeightScheme scheme, std::optional<at::Tensor> bias,
                   ConvolutionSizes convolution)
      : Layer(std::move(weight), std::move(scheme), std::move(bias)), convolution(std::move(convolution)) {}

  ConvolutionSizes convolution;
};

rust::Vec<int64_t> list_of(c10::IntArrayRef numbers);

// Packs a contiguous weight.
c10::intrusive_ptr<LinearLayer> make_linear_layer(const at::Tensor &weight, WeightScheme scheme,
                                                  std::optional<at::Tensor> bias);
c10::intrusive_ptr<ConvolutionLayer> make_conv_layer(const at::Tensor &weight, WeightScheme scheme,
                                                     std::optional<at::Tensor> bias, ConvolutionSizes sizes);

// The native layer of packed parameters, libtorch's or ours.
c10::intrusive_ptr<LinearLayer> linear_layer_of(const c10::intrusive_ptr<LinearPackedParamsBase> &packed);
c10::intrusive_ptr<ConvolutionLayer> conv2d_layer_of(const c10::intrusive_ptr<ConvPackedParamsBase<2>> &packed);
c10::intrusive_ptr<ConvolutionLayer> conv3d_layer_of(const c10::intrusive_ptr<ConvPackedParamsBase<3>> &packed);

} // namespace jitquant

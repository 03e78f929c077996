// The operators `jitquant::fake_quantize*` and their gradients: they hand tensors' memory to src/qat/operators.rs.
#include "fake_quantize.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "library.h"
#include "tensors.h"

#include "jitquant/src/qat/operators.rs.h"

namespace jitquant {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

void check_float(const Tensor &tensor, const char *name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == c10::kFloat, "jitquant::fake_quantize takes float32 tensors on the CPU; ",
                   name, " is ", tensor.scalar_type(), ". Convert it with .to(torch.float32)");
  TORCH_CHECK_TYPE(tensor.is_cpu(), "jitquant::fake_quantize takes float32 tensors on the CPU; ", name, " is on ",
                   tensor.device());
}

// The arguments of an operator as slices; it owns what they point into.
struct Arguments {
  Tensor x, scale, zero_point;
  int64_t axis, quant_min, quant_max;

  Arguments(const Tensor &given, const Tensor &scales, const Tensor &zero_points, int64_t axis, int64_t quant_min,
            int64_t quant_max)
      : axis(axis), quant_min(quant_min), quant_max(quant_max) {
    check_float(given, "x");
    check_float(scales, "scale");
    // Where one scale serves all elements, their order does not matter.
    bool any_order = axis == -1 && given.is_non_overlapping_and_dense();
    x = any_order ? given : given.contiguous();
    scale = scales.contiguous();
    zero_point = zero_points.to(c10::kFloat).contiguous();
  }

  FakeQuantizeForm form() const {
    auto sizes = x.sizes();
    return {values<float>(scale), values<float>(zero_point), {sizes.data(), sizes.size()}, axis, quant_min, quant_max};
  }

  // A gradient of x in the order of x's memory.
  Tensor in_order(const Tensor &gradient) const {
    check_float(gradient, "the gradient");
    return gradient.strides() == x.strides() ? gradient : at::empty_like(x).copy_(gradient);
  }
};

Tensor fake_quantize(const Tensor &x, const Tensor &scale, const Tensor &zero_point, int64_t axis, int64_t quant_min,
                     int64_t quant_max) {
  Arguments arguments(x, scale, zero_point, axis, quant_min, quant_max);
  Tensor y = at::empty_like(arguments.x);
  in_rust([&] { fake_quantize_forward(values<float>(arguments.x), writable<float>(y), arguments.form()); });
  return y;
}

Tensor fake_quantize_learned(const Tensor &x, const Tensor &scale, const Tensor &zero_point, int64_t axis,
                             int64_t quant_min, int64_t quant_max, double) {
  return fake_quantize(x, scale, zero_point, axis, quant_min, quant_max);
}

Tensor fake_quantize_backward(const Tensor &gradient, const Tensor &x, const Tensor &scale, const Tensor &zero_point,
                              int64_t axis, int64_t quant_min, int64_t quant_max) {
  Arguments arguments(x, scale, zero_point, axis, quant_min, quant_max);
  Tensor dy = arguments.in_order(gradient), dx = at::empty_like(arguments.x);
  in_rust([&] {
    fake_quantize_gradient(values<float>(dy), values<float>(arguments.x), writable<float>(dx), arguments.form());
  });
  return dx;
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_learned_backward(const Tensor &gradient, const Tensor &x,
                                                                  const Tensor &scale, const Tensor &zero_point,
                                                                  int64_t axis, int64_t quant_min, int64_t quant_max,
                                                                  double grad_factor) {
  Arguments arguments(x, scale, zero_point, axis, quant_min, quant_max);
  Tensor dy = arguments.in_order(gradient), dx = at::empty_like(arguments.x);
  Tensor dscale = at::empty_like(arguments.scale), dzero = at::empty_like(arguments.zero_point);
  in_rust([&] {
    fake_quantize_gradients(values<float>(dy), values<float>(arguments.x), writable<float>(dx), writable<float>(dscale),
                            writable<float>(dzero), arguments.form());
  });
  return {dx, dscale.mul_(grad_factor), dzero.mul_(grad_factor)};
}

// --- shapes ---

Tensor fake_quantize_shape(const Tensor &x, const Tensor &, const Tensor &, int64_t axis, int64_t, int64_t) {
  Tensor given = on_meta(x);
  return at::empty_like(axis == -1 && given.is_non_overlapping_and_dense() ? given : given.contiguous());
}

Tensor fake_quantize_learned_shape(const Tensor &x, const Tensor &scale, const Tensor &zero_point, int64_t axis,
                                   int64_t quant_min, int64_t quant_max, double) {
  return fake_quantize_shape(x, scale, zero_point, axis, quant_min, quant_max);
}

Tensor fake_quantize_backward_shape(const Tensor &, const Tensor &x, const Tensor &scale, const Tensor &zero_point,
                                    int64_t axis, int64_t quant_min, int64_t quant_max) {
  return fake_quantize_shape(x, scale, zero_point, axis, quant_min, quant_max);
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_learned_backward_shape(const Tensor &, const Tensor &x,
                                                                        const Tensor &scale, const Tensor &zero_point,
                                                                        int64_t axis, int64_t quant_min,
                                                                        int64_t quant_max, double) {
  Tensor step = on_meta(scale).contiguous(), zero = on_meta(zero_point).contiguous();
  return {fake_quantize_shape(x, scale, zero_point, axis, quant_min, quant_max), at::empty_like(step),
          at::empty_like(zero, zero.options().dtype(c10::kFloat))};
}

// --- gradients ---

// The operators as whoever calls them by name finds them: fake tensors and modes of dispatch have their say below
// autograd.
template <class Signature> auto operator_of(const char *name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using Plain = Tensor(const Tensor &, const Tensor &, const Tensor &, int64_t, int64_t, int64_t);
using Learned = Tensor(const Tensor &, const Tensor &, const Tensor &, int64_t, int64_t, int64_t, double);
using PlainBackward = Tensor(const Tensor &, const Tensor &, const Tensor &, const Tensor &, int64_t, int64_t, int64_t);
using LearnedBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor &, const Tensor &, const Tensor &,
                                                           const Tensor &, int64_t, int64_t, int64_t, double);

void remember(AutogradContext *context, variable_list tensors, int64_t axis, int64_t quant_min, int64_t quant_max) {
  context->save_for_backward(std::move(tensors));
  context->saved_data["axis"] = axis;
  context->saved_data["quant_min"] = quant_min;
  context->saved_data["quant_max"] = quant_max;
}

int64_t number(AutogradContext *context, const char *name) { return context->saved_data[name].toInt(); }

struct WithGradient : Function<WithGradient> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &scale, const Tensor &zero_point,
                        int64_t axis, int64_t quant_min, int64_t quant_max) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto forward_below = operator_of<Plain>("jitquant::fake_quantize");
    Tensor y = forward_below.call(x, scale, zero_point, axis, quant_min, quant_max);
    // An observer may change its scale before the gradient is asked for.
    remember(context, {x, scale.detach().clone(), zero_point.detach().clone()}, axis, quant_min, quant_max);
    return y;
  }
  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    auto saved = context->get_saved_variables();
    static auto backward_below = operator_of<PlainBackward>("jitquant::fake_quantize_backward");
    Tensor dx =
        backward_below.call(gradients[0].detach(), saved[0].detach(), saved[1], saved[2], number(context, "axis"),
                            number(context, "quant_min"), number(context, "quant_max"));
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct WithLearnedStep : Function<WithLearnedStep> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &scale, const Tensor &zero_point,
                        int64_t axis, int64_t quant_min, int64_t quant_max, double grad_factor) {
    at::AutoDispatchBelowADInplaceOrView below;
    static auto forward_below = operator_of<Learned>("jitquant::fake_quantize_learned");
    Tensor y = forward_below.call(x, scale, zero_point, axis, quant_min, quant_max, grad_factor);
    remember(context, {x, scale, zero_point}, axis, quant_min, quant_max);
    context->saved_data["grad_factor"] = grad_factor;
    return y;
  }
  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    auto saved = context->get_saved_variables();
    static auto backward_below = operator_of<LearnedBackward>("jitquant::fake_quantize_learned_backward");
    auto [dx, dscale, dzero] = backward_below.call(
        gradients[0].detach(), saved[0].detach(), saved[1].detach(), saved[2].detach(), number(context, "axis"),
        number(context, "quant_min"), number(context, "quant_max"), context->saved_data["grad_factor"].toDouble());
    // An integer zero point has no gradient.
    Tensor dzero_point = saved[2].is_floating_point() ? dzero.reshape(saved[2].sizes()) : Tensor();
    return {dx, dscale.reshape(saved[1].sizes()), dzero_point, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor fake_quantize_autograd(const Tensor &x, const Tensor &scale, const Tensor &zero_point, int64_t axis,
                              int64_t quant_min, int64_t quant_max) {
  return WithGradient::apply(x, scale, zero_point, axis, quant_min, quant_max);
}

Tensor fake_quantize_learned_autograd(const Tensor &x, const Tensor &scale, const Tensor &zero_point, int64_t axis,
                                      int64_t quant_min, int64_t quant_max, double grad_factor) {
  return WithLearnedStep::apply(x, scale, zero_point, axis, quant_min, quant_max, grad_factor);
}

} // namespace

// Keeps this file's registrations in whatever links the library.
void keep_fake_quantize_operators() {}

void tensor_require_gradient(const Tensor &tensor, bool on) { tensor.set_requires_grad(on); }

std::unique_ptr<Tensor> tensor_gradient(const Tensor &tensor) { return std::make_unique<Tensor>(tensor.grad()); }

void tensor_set_gradient(const Tensor &tensor, const Tensor &gradient) { tensor.mutable_grad() = gradient; }

JITQUANT_DEFINITIONS(fake_quantize_definitions, m) {
  m.def("fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, int quant_min, int quant_max) -> Tensor");
  m.def("fake_quantize_backward(Tensor gradient, Tensor x, Tensor scale, Tensor zero_point, int axis, int quant_min, "
        "int quant_max) -> Tensor");
  m.def("fake_quantize_learned(Tensor x, Tensor scale, Tensor zero_point, int axis, int quant_min, int quant_max, "
        "float grad_factor=1.0) -> Tensor");
  m.def("fake_quantize_learned_backward(Tensor gradient, Tensor x, Tensor scale, Tensor zero_point, int axis, "
        "int quant_min, int quant_max, float grad_factor=1.0) -> (Tensor, Tensor, Tensor)");
}

JITQUANT_KERNELS(fake_quantize_kernels, CPU, m) {
  m.impl("fake_quantize", fake_quantize);
  m.impl("fake_quantize_backward", fake_quantize_backward);
  m.impl("fake_quantize_learned", fake_quantize_learned);
  m.impl("fake_quantize_learned_backward", fake_quantize_learned_backward);
}

JITQUANT_KERNELS(fake_quantize_gradients_of, Autograd, m) {
  m.impl("fake_quantize", fake_quantize_autograd);
  m.impl("fake_quantize_learned", fake_quantize_learned_autograd);
}

JITQUANT_KERNELS(fake_quantize_shapes, Meta, m) {
  m.impl("fake_quantize", fake_quantize_shape);
  m.impl("fake_quantize_backward", fake_quantize_backward_shape);
  m.impl("fake_quantize_learned", fake_quantize_learned_shape);
  m.impl("fake_quantize_learned_backward", fake_quantize_learned_backward_shape);
}

} // namespace jitquant

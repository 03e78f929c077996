// Fake quantization's operators; what they do stands in src/qat and crates/kernels/src/fake_quantize.rs.
#pragma once

#include "torch.h"

namespace jitquant {

void keep_fake_quantize_operators();
void tensor_require_gradient(const Tensor &tensor, bool on);
// Undefined where there is none.
std::unique_ptr<Tensor> tensor_gradient(const Tensor &tensor);
void tensor_set_gradient(const Tensor &tensor, const Tensor &gradient);

} // namespace jitquant

// libtorch's own quantization passes, as far as the pipeline still calls them.
#pragma once

#include "torch.h"

namespace jitquant {

std::unique_ptr<Module> libtorch_insert_quant_dequant(const Module &module, rust::Str method, bool dynamic);
std::unique_ptr<Module> libtorch_finalize(const Module &module, bool dynamic,
                                          rust::Slice<const rust::String> preserved);
std::unique_ptr<Module> libtorch_fold_conv_batch_norm(const Module &module);

} // namespace jitquant

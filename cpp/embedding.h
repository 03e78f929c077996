// Packed embedding tables of our own class.
#pragma once

#include <ATen/native/quantized/cpu/EmbeddingPackedParams.h>

namespace jitquant {

// Stands in for libtorch's packed table; an error where the kernels do not take it.
c10::intrusive_ptr<EmbeddingPackedParamsBase> our_embedding(EmbeddingPackedParamsBase &stock);
bool is_our_embedding(EmbeddingPackedParamsBase &packed);

} // namespace jitquant

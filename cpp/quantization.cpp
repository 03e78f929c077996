#include "quantization.h"

#include <torch/csrc/jit/passes/fold_conv_bn.h>
#include <torch/csrc/jit/passes/quantization/finalize.h>
#include <torch/csrc/jit/passes/quantization/insert_quant_dequant.h>

#include "jitquant/src/ir/ffi.rs.h"

namespace jitquant {

namespace jit = torch::jit;

static jit::QuantType quant_type(bool dynamic) { return dynamic ? jit::QuantType::DYNAMIC : jit::QuantType::STATIC; }

std::unique_ptr<Module> libtorch_insert_quant_dequant(const Module &module, rust::Str method, bool dynamic) {
  return std::make_unique<Module>(
      jit::InsertQuantDeQuant(*edit(module), text(method), /*inplace=*/false, /*debug=*/false, quant_type(dynamic)));
}

std::unique_ptr<Module> libtorch_finalize(const Module &module, bool dynamic,
                                          rust::Slice<const rust::String> preserved) {
  std::vector<std::string> names;
  for (const rust::String &name : preserved)
    names.emplace_back(name);
  return std::make_unique<Module>(jit::Finalize(*edit(module), quant_type(dynamic), names));
}

std::unique_ptr<Module> libtorch_fold_conv_batch_norm(const Module &module) {
  return std::make_unique<Module>(jit::FoldConvBatchNorm(module));
}

} // namespace jitquant

// A program that moves over from libtorch's passes: it includes libtorch's headers and ours, and calls both.
#include <torch/csrc/jit/passes/quantization/dedup_module_uses.h>
#include <torch/csrc/jit/passes/quantization/finalize.h>
#include <torch/csrc/jit/passes/quantization/fusion_passes.h>
#include <torch/csrc/jit/passes/quantization/helper.h>
#include <torch/csrc/jit/passes/quantization/insert_observers.h>
#include <torch/csrc/jit/passes/quantization/insert_quant_dequant.h>
#include <torch/csrc/jit/passes/quantization/quantization_type.h>
#include <torch/csrc/jit/passes/quantization/register_packed_params.h>

#include <jitquant.hpp>

void prepack(torch::jit::Module &module) {
  jitquant::InsertPrepackUnpack(module);
  jitquant::SwapFunctionalLinear(module);
  torch::jit::InsertPrepackUnpack(module);
}

torch::jit::Module convert(torch::jit::Module &module, const at::Tensor &batch) {
  auto prepared = jitquant::Quantizer::static_ptq().check(false).prepare(module);
  prepared.calibrate(batch);
  torch::jit::Module observed = prepared.module();
  return jitquant::Finalize(observed);
}

#include "oracle.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/fold_conv_bn.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/quantization/dedup_module_uses.h>
#include <torch/csrc/jit/passes/quantization/finalize.h>
#include <torch/csrc/jit/passes/quantization/insert_observers.h>
#include <torch/csrc/jit/passes/quantization/insert_quant_dequant.h>
#include <torch/csrc/jit/passes/quantization/register_packed_params.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <sstream>

#include "jitquant-oracle/src/lib.rs.h"

namespace jitquant_oracle {

namespace jit = torch::jit;

static std::string text(rust::Str s) { return std::string(s.data(), s.size()); }

template <class Bytes> static jit::Module load(const Bytes &bytes) {
  std::istringstream in(std::string(reinterpret_cast<const char *>(bytes.data()), bytes.size()));
  return jit::load(in);
}

static rust::Vec<uint8_t> save(const jit::Module &module) {
  std::ostringstream out;
  module.save(out);
  rust::Vec<uint8_t> bytes;
  for (char c : out.str())
    bytes.push_back(static_cast<uint8_t>(c));
  return bytes;
}

static jit::QuantType quant_type(bool dynamic) { return dynamic ? jit::QuantType::DYNAMIC : jit::QuantType::STATIC; }

static jit::QConfigDict qconfig_dict(rust::Slice<const QConfigEntry> qconfigs) {
  jit::QConfigDict dict;
  for (const QConfigEntry &entry : qconfigs) {
    std::optional<jit::QConfig> qconfig;
    if (!entry.activation.empty())
      qconfig = jit::QConfig(load(entry.activation), load(entry.weight));
    dict.emplace(std::string(entry.path), qconfig);
  }
  return dict;
}

rust::Vec<uint8_t> insert_observers(rust::Slice<const uint8_t> bytes, rust::Str method,
                                    rust::Slice<const QConfigEntry> qconfigs, bool inplace, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::InsertObservers(module, text(method), qconfig_dict(qconfigs), inplace, quant_type(dynamic)));
}

rust::Vec<uint8_t> insert_observers_on_device(rust::Slice<const uint8_t> bytes, rust::Str method,
                                              rust::Slice<const QConfigEntry> qconfigs, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::InsertObserversForOnDevicePTQ(module, text(method), qconfig_dict(qconfigs), /*inplace=*/false,
                                                 quant_type(dynamic)));
}

rust::Vec<uint8_t> insert_quant_dequant_on_device(rust::Slice<const uint8_t> bytes, rust::Str method, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::InsertQuantDeQuantOnDevicePTQ(module, text(method), /*inplace=*/false, /*debug=*/false,
                                                 quant_type(dynamic)));
}

rust::Vec<uint8_t> finalize_on_device(rust::Slice<const uint8_t> bytes, rust::Str method, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::FinalizeOnDevicePTQ(module, quant_type(dynamic), text(method)));
}

rust::Vec<uint8_t> fold_conv_batch_norm(rust::Slice<const uint8_t> bytes) {
  return save(jit::FoldConvBatchNorm(load(bytes)));
}

void optimize_on_this_thread(bool on) { jit::setGraphExecutorOptimize(on); }

rust::Vec<uint8_t> dedup_module_uses(rust::Slice<const uint8_t> bytes) {
  jit::Module module = load(bytes);
  jit::DedupModuleUses(module);
  return save(module);
}

Prepacked register_prepack_params(rust::Slice<const uint8_t> bytes, rust::Str method,
                                  rust::Slice<const rust::String> kinds, rust::Str prefix) {
  jit::Module module = load(bytes);
  auto filter = [&](jit::Node *node) {
    return std::any_of(kinds.begin(), kinds.end(),
                       [&](const rust::String &kind) { return std::string(kind) == node->kind().toQualString(); });
  };
  auto names = jit::RegisterPrePackParams(module, text(method), filter, text(prefix));
  Prepacked result{save(module), {}};
  std::vector<std::string> sorted(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  for (const std::string &name : sorted)
    result.names.push_back(name);
  return result;
}

rust::Vec<uint8_t> insert_quant_dequant(rust::Slice<const uint8_t> bytes, rust::Str method, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::InsertQuantDeQuant(module, text(method), false, false, quant_type(dynamic)));
}

rust::Vec<uint8_t> quantize(rust::Slice<const uint8_t> bytes, rust::Str method, bool dynamic) {
  jit::Module module = load(bytes);
  jit::Module quantized = jit::InsertQuantDeQuant(module, text(method), false, false, quant_type(dynamic));
  return save(jit::Finalize(quantized, quant_type(dynamic)));
}

rust::Vec<rust::String> optimized(rust::Slice<const uint8_t> bytes, rust::Slice<const int64_t> sizes) {
  jit::Module module = load(bytes);
  module.eval();
  rust::Vec<rust::String> graphs;
  graphs.push_back(jit::freeze_module(module).get_method("forward").graph()->toString(false));
  graphs.push_back(jit::optimize_for_inference(module).get_method("forward").graph()->toString(false));
  for (int i = 0; i < 4; ++i)
    module.forward({at::ones({sizes.data(), sizes.size()})});
  graphs.push_back(jit::lastExecutedOptimizedGraph()->toString(false));
  return graphs;
}

rust::Vec<uint8_t> finalize(rust::Slice<const uint8_t> bytes, bool dynamic) {
  jit::Module module = load(bytes);
  return save(jit::Finalize(module, quant_type(dynamic)));
}

} // namespace jitquant_oracle

// Stands before libtorch: its quantization passes are jitquant's, for whatever the process calls them from.
//
// Preloaded into Python by run.sh, so that torch._C._jit_pass_insert_observers and the others land here:
// libtorch_python calls the passes of libtorch_cpu through symbols, and the first definition is taken.
//
// CONFORMITY_CALLS names a file to which each pass adds a line, so that a run can show that the passes were reached.
#include <jitquant.hpp>

#include <cstdlib>
#include <fstream>

static void note(const char *pass) {
  if (const char *file = std::getenv("CONFORMITY_CALLS"))
    std::ofstream(file, std::ios::app) << pass << '\n';
}

#define INTERPOSED __attribute__((visibility("default")))

namespace torch::jit {

INTERPOSED Module InsertObservers(Module &module, const std::string &method_name, const QConfigDict &qconfig_dict,
                                  bool inplace, QuantType quant_type) {
  note("InsertObservers");
  return jitquant::InsertObservers(module, method_name, qconfig_dict, inplace, quant_type);
}

INTERPOSED Module InsertObserversForOnDevicePTQ(Module &module, const std::string &method_name,
                                                const QConfigDict &qconfig_dict, bool inplace, QuantType quant_type) {
  note("InsertObserversForOnDevicePTQ");
  return jitquant::InsertObserversForOnDevicePTQ(module, method_name, qconfig_dict, inplace, quant_type);
}

INTERPOSED Module InsertQuantDeQuant(Module &module, const std::string &method_name, bool inplace, bool debug,
                                     QuantType quant_type) {
  note("InsertQuantDeQuant");
  return jitquant::InsertQuantDeQuant(module, method_name, inplace, debug, quant_type);
}

INTERPOSED Module InsertQuantDeQuantOnDevicePTQ(Module &module, const std::string &method_name, bool inplace,
                                                bool debug, QuantType quant_type) {
  note("InsertQuantDeQuantOnDevicePTQ");
  return jitquant::InsertQuantDeQuantOnDevicePTQ(module, method_name, inplace, debug, quant_type);
}

INTERPOSED Module Finalize(Module &module, QuantType quant_type, const std::vector<std::string> &preserved_attrs) {
  note("Finalize");
  return jitquant::Finalize(module, quant_type, preserved_attrs);
}

INTERPOSED Module FinalizeOnDevicePTQ(Module &module, QuantType quant_type, const std::string &method_name) {
  note("FinalizeOnDevicePTQ");
  return jitquant::FinalizeOnDevicePTQ(module, quant_type, method_name);
}

INTERPOSED Module FoldConvBatchNorm(const Module &module) {
  note("FoldConvBatchNorm");
  return jitquant::FoldConvBatchNorm(module);
}

INTERPOSED void DedupModuleUses(Module &module) {
  note("DedupModuleUses");
  jitquant::DedupModuleUses(module);
}

INTERPOSED void FuseLinear(std::shared_ptr<Graph> &graph) {
  note("FuseLinear");
  jitquant::FuseLinear(graph);
}

INTERPOSED void SwapFunctionalLinear(std::shared_ptr<Graph> &graph) {
  note("SwapFunctionalLinear");
  jitquant::SwapFunctionalLinear(graph);
}

INTERPOSED void SwapFunctionalLinear(Module &module) {
  note("SwapFunctionalLinear");
  jitquant::SwapFunctionalLinear(module);
}

INTERPOSED void ReplicateQuant(std::shared_ptr<Graph> &graph) {
  note("ReplicateQuant");
  jitquant::ReplicateQuant(graph);
}

INTERPOSED void ReplicateDeQuant(std::shared_ptr<Graph> &graph) {
  note("ReplicateDeQuant");
  jitquant::ReplicateDeQuant(graph);
}

INTERPOSED void FuseQuantizedAddRelu(std::shared_ptr<Graph> &graph) {
  note("FuseQuantizedAddRelu");
  jitquant::FuseQuantizedAddRelu(graph);
}

} // namespace torch::jit

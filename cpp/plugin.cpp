#include "plugin.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/passes/pass_manager.h>

#include "jitquant/src/plugin/bridge.rs.h"
#include "library.h"

namespace jitquant {

namespace jit = torch::jit;

uint32_t pass_register(bool before_fusion, uint32_t pass) {
  auto run = [pass](std::shared_ptr<Graph> &graph) { run_graph_pass(graph, pass); };
  return before_fusion ? jit::registerPrePass(run) : jit::registerPostPass(run);
}

void pass_clear(bool before_fusion, uint32_t registered) {
  before_fusion ? jit::clearPrePass(registered) : jit::clearPostPass(registered);
}

// Hands the values to src/plugin/observe.rs, and the tensor on.
static Tensor observe(const Tensor &x, int64_t graph, const std::string &value) {
  if (x.is_floating_point() && x.is_cpu() && x.numel() > 0) {
    Tensor values = x.detach().to(c10::kFloat).contiguous();
    record_range({values.const_data_ptr<float>(), static_cast<size_t>(values.numel())}, graph, rust::Str(value));
  }
  return x;
}

// As soon as the library is loaded: who asks for passes by the environment makes no call.
static const bool asked = [] {
  if (host_refusal().empty())
    register_passes_from_environment();
  return true;
}();

JITQUANT_DEFINITIONS(plugin_definitions, m) {
  m.def("observe(Tensor(a) x, int graph, str value) -> Tensor(a)", observe);
}

} // namespace jitquant

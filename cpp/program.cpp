#include "program.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/custom_class.h>

#include "library.h"
#include "tensors.h"
#include "weights.h"

#include "jitquant/src/engine/bridge.rs.h"

namespace jitquant {

namespace jit = torch::jit;

static const Tensor &tensor(const Operands &operands, size_t index) { return operands.values[index].toTensor(); }

// A tensor on the CPU that is nothing else as well (no subclass, not lazily negated), and that autograd does not
// follow.
bool operand_is_plain(const Operands &operands, size_t index) {
  const IValue &value = operands.values[index];
  if (!value.isTensor() || !value.toTensor().defined())
    return false;
  const Tensor &x = value.toTensor();
  constexpr auto plain = c10::DispatchKeySet(c10::DispatchKey::CPU) | c10::autograd_dispatch_keyset |
                         c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView) | c10::autocast_dispatch_keyset;
  bool recorded = c10::GradMode::is_enabled() && x.requires_grad();
  bool more = (x.key_set() - plain).highestFunctionalityKey() != c10::DispatchKey::Undefined;
  return x.is_cpu() && x.layout() == c10::kStrided && !more && !recorded;
}

int32_t operand_type(const Operands &operands, size_t index) {
  return static_cast<int32_t>(tensor(operands, index).scalar_type());
}

static rust::Slice<const int64_t> slice(c10::IntArrayRef numbers) { return {numbers.data(), numbers.size()}; }

rust::Slice<const int64_t> operand_sizes(const Operands &operands, size_t index) {
  return slice(tensor(operands, index).sizes());
}

rust::Slice<const int64_t> operand_strides(const Operands &operands, size_t index) {
  return slice(tensor(operands, index).strides());
}

size_t operand_data(const Operands &operands, size_t index) {
  return reinterpret_cast<size_t>(tensor(operands, index).const_data_ptr());
}

int64_t operand_number(const Operands &operands, size_t index) { return operands.values[index].toInt(); }

// The stack holds the layer meanwhile.
template <class T> static T &layer(const Operands &operands, size_t index) {
  return *operands.values[index].toCustomClass<T>();
}

const ConvolutionWeight &operand_conv(const Operands &operands, size_t index) {
  return *layer<ConvolutionLayer>(operands, index).weight;
}

const LinearWeight &operand_linear(const Operands &operands, size_t index) {
  return *layer<LinearLayer>(operands, index).weight;
}

rust::Slice<const float> operand_conv_bias(const Operands &operands, size_t index) {
  return layer<ConvolutionLayer>(operands, index).biases();
}

rust::Slice<const float> operand_linear_bias(const Operands &operands, size_t index) {
  return layer<LinearLayer>(operands, index).biases();
}

size_t results_add(Results &results, int32_t type, rust::Slice<const int64_t> sizes,
                   rust::Slice<const int64_t> strides) {
  auto numbers = [](rust::Slice<const int64_t> slice) { return c10::IntArrayRef(slice.data(), slice.size()); };
  results.tensors.push_back(
      at::empty_strided(numbers(sizes), numbers(strides), at::dtype(static_cast<c10::ScalarType>(type))));
  return reinterpret_cast<size_t>(results.tensors.back().mutable_data_ptr());
}

namespace {

// A part as libtorch's interpreter runs it: its Program, or its operators for calls that the Program does not take.
struct Part {
  explicit Part(const std::shared_ptr<Graph> &graph)
      : operators(graph, "part of a model"), inputs(graph->inputs().size()) {
    try {
      program.emplace(compile_part(graph));
    } catch (const rust::Error &) {
      // src/pass/program has said why.
    }
  }

  void run(jit::Stack &stack) const {
    RECORD_FUNCTION("jitquant::run", std::vector<IValue>());
    Results results;
    if (program && watched_by_nobody() && run_part(**program, {jit::last(stack, inputs)}, results)) {
      jit::drop(stack, inputs);
      for (Tensor &tensor : results.tensors)
        stack.emplace_back(std::move(tensor));
      return;
    }
    jit::InterpreterState(operators).run(stack);
  }

private:
  // Modes of dispatch (fake tensors, functorch) see each operator.
  static bool watched_by_nobody() {
    constexpr auto modes = c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                                                c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                                c10::DispatchKey::FuncTorchDynamicLayerBackMode});
    return (c10::impl::tls_local_dispatch_key_set().included_ & modes).empty();
  }

  std::optional<rust::Box<CompiledPart>> program;
  Code operators;
  size_t inputs;
};

jit::Operation operation(const Node *node) {
  auto part = std::make_shared<const Part>(node->g(jit::attr::Subgraph));
  return [part](jit::Stack &stack) { part->run(stack); };
}

} // namespace

// Keeps this file's registrations in whatever links the library.
void keep_program_operators() {}

JITQUANT_DEFINITIONS(program_definitions, m) {
  (void)m;
  jit::registerOperator(
      jit::Operator(c10::Symbol::fromQualString("jitquant::run"), operation, c10::AliasAnalysisKind::PURE_FUNCTION));
}

} // namespace jitquant

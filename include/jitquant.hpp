// jitquant for C++: libtorch's quantization passes under their own names in namespace jitquant, and a Quantizer. Header
// only, over the C ABI in jitquant.h. Guide: docs/cpp.md
//
// A program that used torch::jit's passes includes this header, changes the namespace and links -ljitquant. The
// functions throw c10::Error. Modules may be shared between threads as libtorch's own may; functions that work on
// graphs wait for each other.
#pragma once

#include <jitquant.h>

#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/quantization/insert_observers.h>
#include <torch/csrc/jit/passes/quantization/quantization_type.h>
#include <torch/csrc/jit/passes/quantization/register_packed_params.h>
#include <torch/version.h>

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

namespace jitquant {

using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::PrePackParamFilterFn;
using torch::jit::QConfig;
using torch::jit::QConfigDict;
using torch::jit::QuantType;

namespace detail {

// Throws what a failed call says.
inline void check(jq_status status) {
  if (status != JQ_OK)
    throw c10::Error(std::string(jq_last_error()));
}

// Throws where the library does not fit this program; looks once.
inline void check_library() {
  static const bool fits = [] {
    if (jq_abi_version() != JQ_ABI_VERSION)
      throw c10::Error("libjitquant.so (" + std::string(jq_version()) +
                       ") is of another version than the jitquant.h that this program was compiled with");
    // Patch releases have the same ABI.
    std::string built_for = jq_torch_version();
    if (built_for.substr(0, built_for.rfind('.')) !=
        std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR))
      throw c10::Error("libjitquant.so was built for libtorch " + built_for + ", this program for " TORCH_VERSION);
    return true;
  }();
  (void)fits;
}

// Owns a handle.
template <class T, jq_status (*free_handle)(T *)> class Handle {
public:
  Handle() = default;
  Handle(Handle &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle &operator=(Handle &&other) noexcept {
    // Freed here and not by `other`, which would still be usable, without what its owner has given away.
    Handle taken(std::move(other));
    std::swap(handle_, taken.handle_);
    return *this;
  }
  ~Handle() { free_handle(handle_); }
  T *get() const { return handle_; }
  // Where a function stores a new handle.
  T **out() { return &handle_; }

private:
  T *handle_ = nullptr;
};

using ModuleHandle = Handle<jq_module, jq_module_free>;
using ValueHandle = Handle<jq_value, jq_value_free>;
using StringsHandle = Handle<jq_strings, jq_strings_free>;
using ReportHandle = Handle<jq_report, jq_report_free>;
using QuantizerHandle = Handle<jq_quantizer, jq_quantizer_free>;
using PreparedHandle = Handle<jq_prepared, jq_prepared_free>;
using QatHandle = Handle<jq_qat, jq_qat_free>;
using DataHandle = Handle<jq_data, jq_data_free>;

inline ModuleHandle share(const Module &module) {
  detail::check_library();
  ModuleHandle handle;
  detail::check(jq_module_from_torch(&module, handle.out()));
  return handle;
}

inline Module module_of(const ModuleHandle &handle) {
  Module module;
  detail::check(jq_module_to_torch(handle.get(), &module));
  return module;
}

inline std::vector<std::string> texts(const StringsHandle &strings) {
  size_t count = 0;
  detail::check(jq_strings_count(strings.get(), &count));
  std::vector<std::string> all(count);
  for (size_t i = 0; i < count; ++i) {
    const char *text = nullptr;
    detail::check(jq_strings_get(strings.get(), i, &text));
    all[i] = text;
  }
  return all;
}

inline ValueHandle share(const c10::IValue &value) {
  ValueHandle handle;
  detail::check(jq_value_from_torch(&value, handle.out()));
  return handle;
}

inline c10::IValue ivalue_of(const ValueHandle &handle) {
  c10::IValue value;
  detail::check(jq_value_to_torch(handle.get(), &value));
  return value;
}

// What a function of the program's threw while the library called it. The library calls on the thread that made the
// call, so that each thread has its own.
inline std::exception_ptr &thrown() {
  static thread_local std::exception_ptr exception;
  return exception;
}

// Calls a function of the program's. An exception of its ends the library's call, and is thrown after it.
template <class Function, class... Args>
int32_t call_back(int32_t if_thrown, const Function &function, Args &&...args) noexcept {
  try {
    return function(std::forward<Args>(args)...) ? 1 : 0;
  } catch (...) {
    detail::thrown() = std::current_exception();
    return if_thrown;
  }
}

// Throws what a function of the program's threw in a call, else what the failed call says.
inline void check_call(jq_status status) {
  if (std::exception_ptr exception = std::exchange(detail::thrown(), nullptr))
    std::rethrow_exception(exception);
  detail::check(status);
}

inline int32_t ask_filter(const jq_node *node, void *user_data) {
  void *torch_node = nullptr;
  if (jq_node_to_torch(node, &torch_node) != JQ_OK)
    return -1;
  const auto &filter = *static_cast<const PrePackParamFilterFn *>(user_data);
  return detail::call_back(-1, filter, static_cast<torch::jit::Node *>(torch_node));
}

template <class Pass>
Module observe(Pass pass, const Module &module, const std::string &method, const QConfigDict &qconfig_dict,
               bool inplace, QuantType quant_type) {
  auto input = detail::share(module);
  std::vector<ModuleHandle> observers;
  std::vector<jq_qconfig> qconfigs;
  for (const auto &[path, qconfig] : qconfig_dict) {
    jq_qconfig entry{path.c_str(), nullptr, nullptr};
    if (qconfig) {
      observers.push_back(detail::share(std::get<0>(*qconfig)));
      entry.activation = observers.back().get();
      observers.push_back(detail::share(std::get<1>(*qconfig)));
      entry.weight = observers.back().get();
    }
    qconfigs.push_back(entry);
  }
  ModuleHandle observed;
  detail::check(
      pass(input.get(), method.c_str(), qconfigs.data(), qconfigs.size(), inplace, quant_type, observed.out()));
  return detail::module_of(observed);
}

template <class Pass>
Module quantize(Pass pass, const Module &module, const std::string &method, bool inplace, bool debug,
                QuantType quant_type) {
  ModuleHandle quantized;
  detail::check(pass(detail::share(module).get(), method.c_str(), inplace, debug, quant_type, quantized.out()));
  return detail::module_of(quantized);
}

template <class Pass> void change(Pass &&pass, std::shared_ptr<Graph> &graph) {
  detail::check_library();
  detail::check(pass(&graph));
}

template <class Pass> void change_methods(const Module &module, Pass &&pass) {
  for (const Module &part : module.modules())
    for (const auto &method : part.get_methods()) {
      std::shared_ptr<Graph> graph = method.graph();
      pass(graph);
    }
}

} // namespace detail

// The version of the library.
inline std::string version() { return jq_version(); }

// Loads a library that defines operators or classes of its own, for models that use them.
inline void load_library(const std::string &path) {
  detail::check_library();
  detail::check(jq_load_library(path.c_str()));
}

// torch::jit::load for files that may be damaged: they are checked before libtorch reads them. Programs that
// torch.export.save wrote (.pt2) become modules. Tensors go to the CPU.
inline Module load(const std::string &path) {
  detail::check_library();
  detail::ModuleHandle module;
  detail::check(jq_module_load(path.c_str(), module.out()));
  return detail::module_of(module);
}

// A copy of `module` whose `method_name` is watched by the observers of `qconfig_dict`. With `inplace` its tensors are
// those of `module`.
inline Module InsertObservers(Module &module, const std::string &method_name, const QConfigDict &qconfig_dict,
                              bool inplace, QuantType quant_type = QuantType::STATIC) {
  return detail::observe(jq_insert_observers, module, method_name, qconfig_dict, inplace, quant_type);
}

// The same in a method observe_… that is added, for models that are quantized where they run.
inline Module InsertObserversForOnDevicePTQ(Module &module, const std::string &method_name,
                                            const QConfigDict &qconfig_dict, bool inplace,
                                            QuantType quant_type = QuantType::STATIC) {
  return detail::observe(jq_insert_observers_for_on_device_ptq, module, method_name, qconfig_dict, inplace, quant_type);
}

// A copy of `module`, which was observed, that rounds as INT8 does.
inline Module InsertQuantDeQuant(Module &module, const std::string &method_name, bool inplace, bool debug,
                                 QuantType quant_type = QuantType::STATIC) {
  return detail::quantize(jq_insert_quant_dequant, module, method_name, inplace, debug, quant_type);
}

// The same for a method observe_…; the result is in a method quantize_….
inline Module InsertQuantDeQuantOnDevicePTQ(Module &module, const std::string &method_name, bool inplace, bool debug,
                                            QuantType quant_type = QuantType::STATIC) {
  return detail::quantize(jq_insert_quant_dequant_on_device_ptq, module, method_name, inplace, debug, quant_type);
}

// A copy of `module` with methods that pack weights and that run in INT8 beside the method quantize_… that is named.
inline Module FinalizeOnDevicePTQ(Module &module, QuantType quant_type, const std::string &method_name) {
  detail::ModuleHandle finalized;
  detail::check(
      jq_finalize_on_device_ptq(detail::share(module).get(), quant_type, method_name.c_str(), finalized.out()));
  return detail::module_of(finalized);
}

// A copy of `module`, which InsertQuantDeQuant gave, with quantized:: operators and packed weights, frozen.
// `preserved_attrs` are methods and attributes that stay beside forward.
inline Module Finalize(Module &module, QuantType quant_type = QuantType::STATIC,
                       const std::vector<std::string> &preserved_attrs = std::vector<std::string>()) {
  std::vector<const char *> preserved;
  for (const auto &name : preserved_attrs)
    preserved.push_back(name.c_str());
  detail::ModuleHandle finalized;
  detail::check(
      jq_finalize(detail::share(module).get(), quant_type, preserved.data(), preserved.size(), finalized.out()));
  return detail::module_of(finalized);
}

// A copy of `module` whose convolutions have taken over the batch norms behind them.
inline Module FoldConvBatchNorm(const Module &module) {
  detail::ModuleHandle folded;
  detail::check(jq_fold_conv_batch_norm(detail::share(module).get(), folded.out()));
  return detail::module_of(folded);
}

// Gives each use of a submodule that is used more than once a submodule of its own.
inline void DedupModuleUses(Module &module) { detail::check(jq_dedup_module_uses(detail::share(module).get())); }

// Passes over one graph, which they change in place, or not at all where they throw.

// Products with a transposed weight, addmm and the function linear become aten::linear.
inline void FuseLinear(std::shared_ptr<Graph> &graph) { detail::change(jq_fuse_linear, graph); }

// Calls of the function linear become aten::linear.
inline void SwapFunctionalLinear(std::shared_ptr<Graph> &graph) { detail::change(jq_swap_functional_linear, graph); }

// The same in every method of `module` and of the modules in it.
inline void SwapFunctionalLinear(Module &module) {
  detail::change_methods(module, [](std::shared_ptr<Graph> &graph) { jitquant::SwapFunctionalLinear(graph); });
}

// What joins branches and is quantized then is quantized in each branch.
inline void ReplicateQuant(std::shared_ptr<Graph> &graph) { detail::change(jq_replicate_quant, graph); }

// Each use of a dequantized value gets a dequantize of its own.
inline void ReplicateDeQuant(std::shared_ptr<Graph> &graph) { detail::change(jq_replicate_dequant, graph); }

// quantized::add and its kin take in the relu behind them.
inline void FuseQuantizedAddRelu(std::shared_ptr<Graph> &graph) { detail::change(jq_fuse_quantized_add_relu, graph); }

// Quantized weights are packed and unpacked again before their operators.
inline void InsertPrepackUnpack(std::shared_ptr<Graph> &graph) { detail::change(jq_insert_prepack_unpack, graph); }

// The same in every method of `module` and of the modules in it.
inline void InsertPrepackUnpack(Module &module) {
  detail::change_methods(module, [](std::shared_ptr<Graph> &graph) { jitquant::InsertPrepackUnpack(graph); });
}

// Float operators between dequantize and quantize become quantized ones.
inline void QuantFusion(std::shared_ptr<Graph> &graph, QuantType quant_type = QuantType::STATIC) {
  detail::change([&](void *host) { return jq_quant_fusion(host, quant_type); }, graph);
}

// Weights that forward packs at each run are packed now, and kept in attributes.
inline void FoldQuantizedPrepackingOps(Module &module) {
  detail::check(jq_fold_quantized_prepacking_ops(detail::share(module).get()));
}

// Has libtorch's `quantized::` operators in `module` run on jitquant's kernels; how many weights these run then. A line
// for each that stays with libtorch goes to `left`.
inline size_t accelerate(Module &module, std::vector<std::string> *left = nullptr) {
  size_t count = 0;
  detail::StringsHandle lines;
  detail::check(jq_accelerate(detail::share(module).get(), &count, lines.out()));
  if (left != nullptr)
    *left = detail::texts(lines);
  return count;
}

// An INT8 module with jitquant's own operators in the place of libtorch's `quantized::` ones.
inline Module to_native(const Module &module) {
  detail::ModuleHandle native;
  detail::check(jq_to_native(detail::share(module).get(), native.out()));
  return detail::module_of(native);
}

// Keeps each packed weight that `method_name` computes, in a node that `is_packed_param` takes, in an attribute of
// `module`. Returns the attributes' names and the paths of the modules whose weights are packed.
inline std::unordered_set<std::string> RegisterPrePackParams(Module &module, const std::string &method_name,
                                                             const PrePackParamFilterFn &is_packed_param,
                                                             const std::string &attr_prefix) {
  detail::StringsHandle strings;
  auto *filter = const_cast<PrePackParamFilterFn *>(&is_packed_param);
  detail::check_call(jq_register_prepack_params(detail::share(module).get(), method_name.c_str(), detail::ask_filter,
                                                filter, attr_prefix.c_str(), strings.out()));
  std::vector<std::string> names = detail::texts(strings);
  return {names.begin(), names.end()};
}

// A layer of a model.
struct Layer {
  std::string path;      // of its module; empty where it is not known
  std::string operation; // e.g. conv2d
  std::string source;    // its place in the TorchScript source, where that is recorded
  std::string reason;    // why it stays in float; empty where it is quantized
};

// What becomes, or became, of a model's layers.
struct Report {
  size_t quantized_layers = 0;
  std::vector<Layer> layers;                             // of inspect all, of convert those that stayed in float
  std::vector<std::pair<std::string, size_t>> operators; // the quantized:: ones of a converted module
  // What the check at the end of a conversion measured; samples is 0 where there were none.
  jq_check check{};

  explicit Report(const detail::ReportHandle &report) {
    size_t count = 0;
    detail::check(jq_report_quantized_layers(report.get(), &quantized_layers));
    detail::check(jq_report_layer_count(report.get(), &count));
    for (size_t i = 0; i < count; ++i) {
      jq_layer layer;
      detail::check(jq_report_layer(report.get(), i, &layer));
      layers.push_back({layer.path, layer.operation, layer.source, layer.reason ? layer.reason : ""});
    }
    detail::check(jq_report_operator_count(report.get(), &count));
    for (size_t i = 0; i < count; ++i) {
      const char *name = nullptr;
      size_t nodes = 0;
      detail::check(jq_report_operator(report.get(), i, &name, &nodes));
      operators.emplace_back(name, nodes);
    }
    detail::check(jq_report_check(report.get(), &check));
  }
};

// An INT8 module, and what became of its layers.
struct Converted {
  Module module;
  Report report;
};

// Told where a long call is: the stage, how many stages are done, and how many there are (0 while a model runs). False
// ends the call.
using Progress = std::function<bool(const std::string &stage, size_t done, size_t total)>;

namespace detail {

// The function that is told, which may set another one while it runs.
class ProgressCallback {
public:
  void set(Progress function) {
    auto shared = function ? std::make_shared<const Progress>(std::move(function)) : nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    function_ = std::move(shared);
  }
  std::shared_ptr<const Progress> get() {
    std::lock_guard<std::mutex> lock(mutex_);
    return function_;
  }

private:
  std::mutex mutex_;
  std::shared_ptr<const Progress> function_;
};

inline int32_t ask_progress(const char *stage, size_t done, size_t total, void *user_data) {
  // The C ABI asks "end it?", the function answers "go on?": an exception ends it.
  const std::shared_ptr<const Progress> progress = static_cast<ProgressCallback *>(user_data)->get();
  return progress != nullptr && detail::call_back(0, *progress, stage, done, total) == 0;
}

} // namespace detail

// A module with observers.
class Prepared {
public:
  // Runs the model on the arguments of its forward and lets the observers watch; returns the model's result.
  c10::IValue calibrate(const std::vector<c10::IValue> &inputs) {
    std::vector<detail::ValueHandle> handles;
    std::vector<const jq_value *> values;
    for (const auto &input : inputs) {
      handles.push_back(detail::share(input));
      values.push_back(handles.back().get());
    }
    detail::ValueHandle output;
    detail::check_call(jq_prepared_calibrate_values(prepared_.get(), values.data(), values.size(), output.out()));
    return detail::ivalue_of(output);
  }

  // The same, for a model of one argument.
  c10::IValue calibrate(const at::Tensor &input) { return calibrate(std::vector<c10::IValue>{input}); }

  // The module with its observers: to save it and resume later, or to run it elsewhere.
  Module module() const {
    detail::ModuleHandle module;
    detail::check(jq_prepared_module(prepared_.get(), module.out()));
    return detail::module_of(module);
  }

  // Makes the INT8 module; the prepared one stays as it is.
  Converted convert() const {
    detail::ModuleHandle module;
    detail::ReportHandle report;
    detail::check_call(jq_prepared_convert(prepared_.get(), module.out(), report.out()));
    return {detail::module_of(module), Report(report)};
  }

private:
  friend class Quantizer;
  explicit Prepared(std::shared_ptr<detail::ProgressCallback> progress) : progress_(std::move(progress)) {}
  // The handle goes before the function that it may still call.
  std::shared_ptr<detail::ProgressCallback> progress_;
  detail::PreparedHandle prepared_;
};

// Samples to calibrate with and to measure on, held in memory.
class Data {
public:
  Data() { detail::check(jq_data_new(data_.out())); }

  // A batch to find ranges on: the arguments of forward.
  Data &calibrate(const std::vector<c10::IValue> &inputs) { return add(JQ_CALIBRATE, inputs); }
  Data &calibrate(const at::Tensor &input) { return calibrate(std::vector<c10::IValue>{input}); }
  // A batch to measure accuracy on. Where there is none, every fourth of the others is held out for it.
  Data &measure(const std::vector<c10::IValue> &inputs) { return add(JQ_MEASURE, inputs); }
  Data &measure(const at::Tensor &input) { return measure(std::vector<c10::IValue>{input}); }
  // The classes of the samples to measure on, or of all where none was given to measure on.
  Data &labels(const std::vector<int64_t> &classes) {
    detail::check(jq_data_set_labels(data_.get(), classes.data(), classes.size()));
    return *this;
  }

private:
  friend class Quantizer;
  friend class QatModule;
  Data &add(jq_data_use purpose, const std::vector<c10::IValue> &inputs) {
    std::vector<detail::ValueHandle> handles;
    std::vector<const jq_value *> values;
    for (const auto &input : inputs) {
      handles.push_back(detail::share(input));
      values.push_back(handles.back().get());
    }
    detail::check(jq_data_add(data_.get(), purpose, values.data(), values.size()));
    return *this;
  }
  detail::DataHandle data_;
};

// A module that is trained for quantization: its tensors are rounded as INT8 will round them, with gradients straight
// through. Any optimizer trains it:
//
//   auto qat = jitquant::Quantizer::static_ptq().prepare_qat(model);
//   for (const at::Tensor &batch : batches)
//     qat.calibrate(batch);
//   qat.fake_quantize(true);
//   torch::optim::Adam optimizer(qat.parameters());
//   ... qat.module().forward({batch}), loss.backward(), optimizer.step() ...
//   qat.observe(false);
//   qat.convert().module.save("model.int8.pt");
class QatModule {
public:
  // Runs the model on the arguments of its forward, for the ranges of activations.
  void calibrate(const std::vector<c10::IValue> &inputs) {
    std::vector<detail::ValueHandle> handles;
    std::vector<const jq_value *> values;
    for (const auto &input : inputs) {
      handles.push_back(detail::share(input));
      values.push_back(handles.back().get());
    }
    detail::check_call(jq_qat_calibrate_values(qat_.get(), values.data(), values.size()));
  }

  // The same, for a model of one argument.
  void calibrate(const at::Tensor &input) { calibrate(std::vector<c10::IValue>{input}); }

  // Has observers that leave the choice of their range (auto, the default) take what loses less at the outputs on the
  // samples to calibrate with of `data`; without it they take all that they have seen.
  void choose_ranges(const Data &data) { detail::check_call(jq_qat_choose_ranges(qat_.get(), data.data_.get())); }

  // The module that is trained, in training or evaluation mode as module().train() says; to save it and go on later
  // with Quantizer::resume_qat.
  Module module() const {
    detail::ModuleHandle module;
    detail::check(jq_qat_module(qat_.get(), module.out()));
    return detail::module_of(module);
  }

  // What an optimizer trains, by name: weights, biases, batch norms, and steps where they are learned.
  std::vector<std::pair<std::string, at::Tensor>> named_parameters() const {
    detail::StringsHandle names;
    detail::check(jq_qat_parameter_names(qat_.get(), names.out()));
    std::vector<std::pair<std::string, at::Tensor>> all;
    for (const std::string &name : detail::texts(names)) {
      detail::ValueHandle value;
      detail::check(jq_qat_parameter(qat_.get(), name.c_str(), value.out()));
      all.emplace_back(name, detail::ivalue_of(value).toTensor());
    }
    return all;
  }

  // The same without names, as torch::optim takes them.
  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (auto &[name, tensor] : named_parameters())
      all.push_back(tensor);
    return all;
  }

  // Whether activations' ranges follow the data. Weights' always follow the weights.
  void observe(bool on) { detail::check(jq_qat_observe(qat_.get(), on)); }
  // Whether tensors are rounded. Switching it on takes the ranges observed so far.
  void fake_quantize(bool on) { detail::check(jq_qat_fake_quantize(qat_.get(), on)); }
  // Whether batch norms go on with the running statistics that they have, in training too.
  void freeze_batch_norms(bool on) { detail::check(jq_qat_freeze_batch_norms(qat_.get(), on)); }
  // Makes the steps of activations trained parameters, from what they are now.
  void learn_steps() { detail::check(jq_qat_learn_steps(qat_.get())); }

  // Makes the INT8 module; this one stays as it is.
  Converted convert() const {
    detail::ModuleHandle module;
    detail::ReportHandle report;
    detail::check_call(jq_qat_convert(qat_.get(), module.out(), report.out()));
    return {detail::module_of(module), Report(report)};
  }

private:
  friend class Quantizer;
  explicit QatModule(std::shared_ptr<detail::ProgressCallback> progress) : progress_(std::move(progress)) {}
  // The handle goes before the function that it may still call.
  std::shared_ptr<detail::ProgressCallback> progress_;
  detail::QatHandle qat_;
};

// How accurate an INT8 model has to be; all that is given has to hold.
struct Goal {
  // The least share of samples for which float and INT8 model put the same class first, e.g. 0.99.
  std::optional<double> min_agreement;
  // The least signal to quantization noise ratio of the outputs, in dB.
  std::optional<double> min_sqnr_db;
  // How much of the accuracy on labels may be lost at most, e.g. 0.005.
  std::optional<double> max_drop;
};

// What Quantizer::tune found: the module, the layers left in float with their share of the loss, and how close it is.
struct Tuned {
  Module module;
  Report report;
  jq_figures figures;
};

// Quantizes modules: which way, with which observers, and which parts.
//
//   auto prepared = jitquant::Quantizer::static_ptq().skip("head").prepare(model);
//   for (const at::Tensor &batch : batches)
//     prepared.calibrate(batch);
//   prepared.convert().module.save("model.int8.pt");
class Quantizer {
public:
  explicit Quantizer(QuantType quant_type) {
    detail::check_library();
    detail::check(jq_quantizer_new(quant_type, quantizer_.out()));
  }
  // With ranges that calibration finds.
  static Quantizer static_ptq() { return Quantizer(QuantType::STATIC); }
  // With the range of each input as it comes.
  static Quantizer dynamic() { return Quantizer(QuantType::DYNAMIC); }
  // Weights alone, in 8 or 4 bits; needs no data. In 4 bits, `group` (32, 64 or 128) inputs share scale and offset.
  static Quantizer weight_only(size_t bits = 8, size_t group = 64) {
    detail::check_library();
    Quantizer quantizer;
    detail::check(jq_quantizer_new(JQ_WEIGHT_ONLY, quantizer.quantizer_.out()));
    detail::check(jq_quantizer_set_weight_bits(quantizer.quantizer_.get(), bits, group));
    return quantizer;
  }

  // Takes the observers that a TOML text gives for the parts of a model: docs/configuration.md.
  Quantizer &qconfig(const std::string &toml) & {
    detail::check(jq_quantizer_set_qconfig(quantizer_.get(), toml.c_str()));
    return *this;
  }
  // Leaves a submodule, and all below it, in float.
  Quantizer &skip(const std::string &path) & {
    detail::check(jq_quantizer_skip(quantizer_.get(), path.c_str()));
    return *this;
  }
  // Keeps a method or an attribute beside forward.
  Quantizer &preserve(const std::string &name) & {
    detail::check(jq_quantizer_preserve(quantizer_.get(), name.c_str()));
    return *this;
  }
  // Makes models of jitquant's own operators: faster; jitquant has to be loaded where they run.
  Quantizer &native() & {
    detail::check(jq_quantizer_set_form(quantizer_.get(), JQ_NATIVE));
    return *this;
  }
  // Whether Prepared::convert ends with a check of the INT8 model beside the float one (it does by default): layers
  // that break the model stay in float, and where that does not help the conversion throws.
  Quantizer &check(bool on) & {
    detail::check(jq_quantizer_set_check(quantizer_.get(), on));
    return *this;
  }
  // Has `progress` told of the stages of every call that takes the quantizer or what it prepared.
  Quantizer &on_progress(Progress progress) & {
    const bool is_set = static_cast<bool>(progress);
    if (progress_ == nullptr) // moved from
      progress_ = std::make_shared<detail::ProgressCallback>();
    progress_->set(std::move(progress));
    auto callback = is_set ? detail::ask_progress : nullptr;
    detail::check(jq_quantizer_set_progress(quantizer_.get(), callback, progress_.get()));
    return *this;
  }
  Quantizer qconfig(const std::string &toml) && { return std::move(this->qconfig(toml)); }
  Quantizer skip(const std::string &path) && { return std::move(this->skip(path)); }
  Quantizer preserve(const std::string &name) && { return std::move(this->preserve(name)); }
  Quantizer native() && { return std::move(this->native()); }
  Quantizer check(bool on) && { return std::move(this->check(on)); }
  Quantizer on_progress(Progress progress) && { return std::move(on_progress(std::move(progress))); }

  // Ends the call in progress, or the next one; from any thread.
  void cancel() { detail::check(jq_quantizer_cancel(quantizer_.get())); }

  // The layers of `module`, each with why it would stay in float.
  Report inspect(const Module &module) const {
    detail::ReportHandle report;
    detail::check_call(jq_quantizer_inspect(quantizer_.get(), detail::share(module).get(), report.out()));
    return Report(report);
  }

  // Puts observers into a copy of `module`.
  Prepared prepare(const Module &module) const {
    Prepared prepared(progress_);
    detail::check_call(jq_quantizer_prepare(quantizer_.get(), detail::share(module).get(), prepared.prepared_.out()));
    return prepared;
  }

  // Goes on with what Prepared::module gave, saved and loaded since.
  Prepared resume(const Module &observed) const {
    Prepared prepared(progress_);
    detail::check_call(jq_quantizer_resume(quantizer_.get(), detail::share(observed).get(), prepared.prepared_.out()));
    return prepared;
  }

  // Makes a copy of `module` for quantization-aware training.
  QatModule prepare_qat(const Module &module) const {
    QatModule qat(progress_);
    detail::check_call(jq_quantizer_prepare_qat(quantizer_.get(), detail::share(module).get(), qat.qat_.out()));
    return qat;
  }

  // Goes on with what QatModule::module gave, saved and loaded since.
  QatModule resume_qat(const Module &module) const {
    QatModule qat(progress_);
    detail::check_call(jq_quantizer_resume_qat(quantizer_.get(), detail::share(module).get(), qat.qat_.out()));
    return qat;
  }

  // All at once: `data` is a range of tensors, or of vectors of arguments.
  template <class Data> Converted quantize(const Module &module, Data &&data) const {
    Prepared prepared = prepare(module);
    for (auto &&inputs : data)
      prepared.calibrate(inputs);
    return prepared.convert();
  }

  // Makes an INT8 module that reaches `goal`, with as few layers in float as can be found in `minutes`. A goal out of
  // reach is no error: `figures.reached` tells. `state` names a file from which a later call goes on; empty: none.
  Tuned tune(const Module &module, const Data &data, const Goal &goal, double minutes = 10,
             const std::string &state = "") const {
    jq_goal wanted{goal.min_agreement.value_or(-1), goal.min_sqnr_db.value_or(-1), goal.max_drop.value_or(-1)};
    detail::ModuleHandle converted;
    detail::ReportHandle report;
    jq_figures figures{};
    detail::check_call(jq_quantizer_tune(quantizer_.get(), detail::share(module).get(), data.data_.get(), &wanted,
                                         minutes, state.empty() ? nullptr : state.c_str(), converted.out(),
                                         report.out(), &figures));
    return {detail::module_of(converted), Report(report), figures};
  }

  // Leaves in float, in what this quantizer makes from now on, the layers that INT8 would slow down on this machine,
  // timed with `samples` at once; how many. `accelerated`: on jitquant's kernels. Layers in branches and loops
  // stay in INT8.
  size_t only_faster(const Module &module, const Data &data, size_t samples = 1, bool accelerated = false) {
    size_t left = 0;
    detail::check_call(jq_quantizer_only_faster(quantizer_.get(), detail::share(module).get(), data.data_.get(),
                                                samples, accelerated, &left));
    return left;
  }

private:
  Quantizer() = default;
  std::shared_ptr<detail::ProgressCallback> progress_ = std::make_shared<detail::ProgressCallback>();
  detail::QuantizerHandle quantizer_;
};

} // namespace jitquant

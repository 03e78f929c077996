#include "module.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/version.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "jitquant/src/ir/ffi.rs.h"
#include "tensors.h"

namespace jitquant {

namespace jit = torch::jit;

template <class T> static std::unique_ptr<T> own(T value) { return std::make_unique<T>(std::move(value)); }

// Lets TorchScript source name operators of any namespace as TorchScript prints them: `ops.quantized.linear(...)`.
struct OperatorNamespaces : jit::SugaredValue {
  std::string kind() const override { return "operator namespaces"; }
  std::shared_ptr<jit::SugaredValue> attr(const jit::SourceRange &, jit::GraphFunction &,
                                          const std::string &field) override {
    return std::make_shared<jit::BuiltinModule>(field);
  }
};

struct OperatorResolver : jit::Resolver {
  std::shared_ptr<jit::SugaredValue> resolveValue(const std::string &name, jit::GraphFunction &,
                                                  const jit::SourceRange &) override {
    if (name == "torch")
      return std::make_shared<jit::BuiltinModule>("aten");
    if (name == "ops")
      return std::make_shared<OperatorNamespaces>();
    return nullptr;
  }
  c10::TypePtr resolveType(const std::string &, const jit::SourceRange &) override { return nullptr; }
};

std::unique_ptr<Module> module_new(rust::Str name) { return std::make_unique<Module>(c10::QualifiedName(text(name))); }

std::unique_ptr<Module> module_load_file(rust::Str path) { return own(jit::load(text(path), c10::kCPU)); }

std::unique_ptr<Module> module_load_bytes(rust::Slice<const uint8_t> bytes) {
  std::istringstream in(std::string(reinterpret_cast<const char *>(bytes.data()), bytes.size()));
  return own(jit::load(in, c10::kCPU));
}

rust::Vec<ExtraFile> module_extra_files(rust::Str path) {
  caffe2::serialize::PyTorchStreamReader reader(text(path));
  rust::Vec<ExtraFile> files;
  const std::string folder = "extra/";
  for (const std::string &record : reader.getAllRecords()) {
    if (record.rfind(folder, 0) != 0)
      continue;
    auto [data, size] = reader.getRecord(record);
    ExtraFile file{readable(record.substr(folder.size())), {}};
    const auto *begin = static_cast<const uint8_t *>(data.get());
    std::copy(begin, begin + size, std::back_inserter(file.content));
    files.push_back(std::move(file));
  }
  return files;
}

void module_save_file(const Module &module, rust::Str path, rust::Slice<const ExtraFile> extra) {
  jit::ExtraFilesMap files;
  for (const ExtraFile &file : extra)
    files[std::string(file.name)] = std::string(file.content.begin(), file.content.end());
  std::unique_ptr<FILE, int (*)(FILE *)> out(std::fopen(text(path).c_str(), "wb"), std::fclose);
  TORCH_CHECK(out, std::strerror(errno));
  // libtorch's writer throws from its destructor where a write fails: it is told that all went well.
  int failure = 0;
  auto write = [&](const void *data, size_t size) {
    if (failure == 0 && std::fwrite(data, 1, size, out.get()) != size)
      failure = errno;
    return size;
  };
  jit::ExportModule(module, write, files);
  if (std::fclose(out.release()) != 0 && failure == 0)
    failure = errno;
  TORCH_CHECK(failure == 0, std::strerror(failure));
}

rust::Vec<uint8_t> module_save_bytes(const Module &module) {
  std::ostringstream out;
  module.save(out);
  const std::string bytes = out.str();
  rust::Vec<uint8_t> copy;
  copy.reserve(bytes.size());
  std::copy(bytes.begin(), bytes.end(), std::back_inserter(copy));
  return copy;
}

std::unique_ptr<Module> module_handle(const Module &module) { return own(Module(module)); }
std::unique_ptr<Module> module_from_address(size_t address) {
  const auto &host = *reinterpret_cast<const Module *>(address);
  // libtorch has no other way to ask whether there is an object behind a module.
  try {
    host._ivalue();
  } catch (const c10::Error &) {
    return nullptr;
  }
  return own(Module(host));
}
void module_store(const Module &module, size_t address) { *reinterpret_cast<Module *>(address) = module; }
std::unique_ptr<Module> module_deepcopy(const Module &module) { return own(module.deepcopy()); }
std::unique_ptr<Module> module_shallow_copy(const Module &module) { return own(module.copy()); }

std::unique_ptr<IValue> module_default_argument(const Module &module, rust::Str method, size_t index) {
  const auto &argument = module.get_method(text(method)).function().getSchema().arguments().at(index);
  TORCH_CHECK(argument.default_value().has_value(), "argument '", argument.name(), "' has no default value");
  return own(IValue(*argument.default_value()));
}

std::unique_ptr<Module> module_of_new_class_like(const Module &module) {
  return own(Module(*module.type()->name(), module._ivalue()->compilation_unit(), /*shouldMangle=*/true));
}

std::shared_ptr<CompilationUnit> unit_new(const Module &source, bool keeps_source) {
  auto kept = keeps_source ? source._ivalue()->compilation_unit() : nullptr;
  return std::shared_ptr<CompilationUnit>(new CompilationUnit, [kept](CompilationUnit *unit) { delete unit; });
}

std::unique_ptr<Module> module_of_new_class_in(const Module &module, const std::shared_ptr<CompilationUnit> &unit) {
  return own(Module(*module.type()->name(), unit, /*shouldMangle=*/true));
}

std::unique_ptr<Module> module_of_class(const Module &module) {
  return own(Module(module._ivalue()->compilation_unit(), module.type()));
}

std::unique_ptr<CopyMemo> copy_memo_new() { return std::make_unique<CopyMemo>(); }

static void register_like(const Module &source, const std::string &name, const Module &target, IValue value) {
  auto cls = source.type();
  auto slot = cls->getAttributeSlot(name);
  edit(target)->register_attribute(name, cls->getAttribute(slot), std::move(value), cls->is_parameter(slot),
                                   cls->is_buffer(slot));
}

void module_copy_attribute(const Module &source, rust::Str name, const Module &target) {
  register_like(source, text(name), target, source.attr(text(name)));
}

void module_deepcopy_attribute(const Module &source, rust::Str name, const Module &target, CopyMemo &memo) {
  register_like(source, text(name), target, source.attr(text(name)).deepcopy(memo));
}

void module_set_submodule(const Module &module, rust::Str name, const Type &type, const Module &submodule) {
  module.type()->addOrCheckAttribute(text(name), type.ptr);
  module._ivalue()->setAttr(text(name), submodule._ivalue());
}

void module_copy_constant(const Module &source, rust::Str name, const Module &target) {
  target.type()->addConstant(text(name), source.type()->getConstant(text(name)));
}

// What stands for a function in a call stack. Nodes that were inlined know theirs by address, which libtorch reads
// where an exception passes, and a function goes with its compilation unit, or where freezing removes it.
static jit::Function *lasting_function(const std::string &name) {
  static std::mutex mutex;
  static auto *functions = new std::unordered_map<std::string, std::unique_ptr<jit::GraphFunction>>;
  std::lock_guard<std::mutex> turn(mutex);
  auto &function = (*functions)[name];
  if (!function)
    function = std::make_unique<jit::GraphFunction>(c10::QualifiedName(name.empty() ? "function" : name),
                                                    std::make_shared<Graph>(), nullptr);
  return function.get();
}

// Call stacks and what stands for them; both are held, so that no address comes twice.
using CallStack = jit::InlinedCallStackPtr;
using CallStacks = std::unordered_map<jit::InlinedCallStack *, std::pair<CallStack, CallStack>>;

static CallStack lasting_stack(const CallStack &stack, CallStacks &known) {
  if (auto found = known.find(stack.get()); found != known.end())
    return found->second.second;
  auto *function = lasting_function(stack->function_name());
  auto callee = stack->callee();
  auto copy = callee && *callee ? c10::make_intrusive<jit::InlinedCallStack>(lasting_stack(*callee, known), function,
                                                                             stack->source_range())
                                : c10::make_intrusive<jit::InlinedCallStack>(function, stack->source_range());
  known.emplace(stack.get(), std::pair(stack, copy));
  return copy;
}

static void let_call_stacks_last(Block *block, CallStacks &known) {
  for (Node *node : block->nodes()) {
    if (auto stack = node->callstack(); stack && *stack)
      node->setCallStack(lasting_stack(*stack, known));
    for (Block *inner : node->blocks())
      let_call_stacks_last(inner, known);
    if (node->hasAttribute(c10::attr::Subgraph))
      let_call_stacks_last(node->g(c10::attr::Subgraph)->block(), known);
  }
}

static void let_call_stacks_last(const Module &module) {
  CallStacks known;
  for (const auto &part : module.modules())
    for (jit::Function *method : part.type()->methods())
      if (jit::GraphFunction *with_graph = jit::tryToGraphFunction(*method))
        let_call_stacks_last(with_graph->graph()->block(), known);
}

void module_copy_method(const Module &source, rust::Str method, const Module &target, rust::Str name,
                        const Graph &graph) {
  const auto &function = source.get_method(text(method)).function();
  auto to_target = [&](c10::TypePtr type) -> c10::TypePtr { return *type == *source.type() ? target.type() : type; };
  auto schema = function.getSchema().cloneWithRemappedTypes(to_target);
  CallStacks known;
  let_call_stacks_last(edit(graph)->block(), known);
  auto copied = target._ivalue()->compilation_unit()->create_function(
      c10::QualifiedName(*target.type()->name(), text(name)), edit(graph)->shared_from_this());
  target.type()->addMethod(copied);
  copied->setSchema(std::move(schema));
}

size_t module_address(const Module &module) { return reinterpret_cast<size_t>(module._ivalue().get()); }

static void fit_own_slots(c10::ivalue::Object &object) {
  // setSlot makes room; getSlot does not look how much there is.
  size_t wanted = object.type()->numAttributes();
  if (object.slots().size() < wanted)
    object.setSlot(wanted - 1, IValue());
}
static void fit_slots(c10::ivalue::Object &object) {
  fit_own_slots(object);
  for (const IValue &slot : object.slots())
    if (slot.isModule())
      fit_slots(slot.toObjectRef());
}
void module_fit_slots(const Module &module) { fit_slots(*module._ivalue()); }
void module_fit_own_slots(const Module &module) { fit_own_slots(*module._ivalue()); }

std::unique_ptr<Type> module_type(const Module &module) { return own(Type{module.type()}); }

rust::Vec<rust::String> module_method_names(const Module &module) {
  rust::Vec<rust::String> names;
  for (torch::jit::Function *method : module.type()->methods())
    names.push_back(readable(method->name()));
  return names;
}

std::shared_ptr<Graph> module_method_graph(const Module &module, rust::Str method) {
  return module.get_method(text(method)).graph();
}

Schema module_method_schema(const Module &module, rust::Str method) {
  return describe(module.get_method(text(method)).function().getSchema());
}

std::unique_ptr<IValue> module_method_default(const Module &module, rust::Str method, size_t argument) {
  auto value = module.get_method(text(method)).function().getSchema().arguments().at(argument).default_value();
  TORCH_CHECK(value.has_value(), "the argument has no default value");
  return own(*value);
}

static bool is_other_float(int64_t dtype) {
  auto type = static_cast<at::ScalarType>(dtype);
  return type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// The tensors themselves are changed: who shares one shares it still.
static size_t change_to_float(const IValue &value) {
  size_t changed = 0;
  value.visit([&](const IValue &part) {
    if (part.isTensor() && part.toTensor().defined() && is_other_float(int64_t(part.toTensor().scalar_type()))) {
      at::Tensor tensor = part.toTensor();
      tensor.set_data(tensor.detach().to(at::kFloat));
      ++changed;
    }
    return false;
  });
  return changed;
}

static void change_code_to_float(jit::Block *block, FloatChanges &changes) {
  for (jit::Node *node : block->nodes()) {
    for (jit::Block *inner : node->blocks())
      change_code_to_float(inner, changes);
    if (node->kind() == jit::prim::Constant) {
      if (std::optional<IValue> value = jit::toIValue(node->output()))
        changes.constants += change_to_float(*value);
      continue;
    }
    const c10::FunctionSchema *schema = node->maybeSchema();
    for (size_t i = 0; schema != nullptr && i < schema->arguments().size() && i < node->inputs().size(); ++i) {
      if (schema->arguments()[i].name() != "dtype" && schema->arguments()[i].name() != "out_dtype")
        continue;
      std::optional<IValue> dtype = jit::toIValue(node->input(i));
      if (dtype && dtype->isInt() && is_other_float(dtype->toInt())) {
        jit::WithInsertPoint before(node);
        node->replaceInput(i, node->owningGraph()->insertConstant(int64_t(at::kFloat)));
        ++changes.casts;
      }
    }
  }
}

FloatChanges module_to_float(const Module &module) {
  at::NoGradGuard no_gradients;
  FloatChanges changes{};
  changes.tensors = change_to_float(IValue(module._ivalue()));
  for (jit::Function *function : module._ivalue()->compilation_unit()->get_functions())
    if (jit::GraphFunction *with_graph = jit::tryToGraphFunction(*function))
      change_code_to_float(with_graph->graph()->block(), changes);
  return changes;
}

void module_define(const Module &module, rust::Str source) {
  edit(module)->define(text(source), std::make_shared<OperatorResolver>());
}

void module_return_none(const Module &module, rust::Str method) {
  auto &function = module.get_method(text(method)).function();
  function.setSchema(function.getSchema().cloneWithReturns({c10::Argument("", c10::NoneType::get())}));
}

void module_remove_method(const Module &module, rust::Str method) { module.type()->unsafeRemoveMethod(text(method)); }

void module_create_method(const Module &module, rust::Str name, const Graph &graph) {
  auto cls = module.type();
  auto function = module._ivalue()->compilation_unit()->create_function(c10::QualifiedName(*cls->name(), text(name)),
                                                                        edit(graph)->copy());
  cls->addMethod(function);
}

rust::Vec<AttributeInfo> module_attributes(const Module &module) {
  rust::Vec<AttributeInfo> attributes;
  auto cls = module.type();
  for (size_t slot = 0; slot < cls->numAttributes(); ++slot) {
    auto type = cls->getAttribute(slot);
    attributes.push_back(AttributeInfo{readable(cls->getAttributeName(slot)), readable(type->annotation_str()),
                                       cls->is_parameter(slot), cls->is_buffer(slot), type->is_module()});
  }
  return attributes;
}

std::unique_ptr<Module> module_in_slot(const Module &module, size_t slot) {
  const auto &slots = module._ivalue()->slots();
  return slot < slots.size() && slots[slot].isModule() ? own(slots[slot].toModule()) : nullptr;
}

rust::Vec<rust::String> module_constants(const Module &module) {
  rust::Vec<rust::String> names;
  auto cls = module.type();
  for (size_t slot = 0; slot < cls->numConstants(); ++slot)
    names.push_back(readable(cls->getConstantName(slot)));
  return names;
}

bool module_has_attribute(const Module &module, rust::Str name) { return module.hasattr(text(name)); }
std::unique_ptr<IValue> module_attribute(const Module &module, rust::Str name) { return own(module.attr(text(name))); }
void module_set_attribute(const Module &module, rust::Str name, const IValue &value) {
  edit(module)->setattr(text(name), value);
}
void module_register_attribute(const Module &module, rust::Str name, const Type &type, const IValue &value,
                               bool is_parameter, bool is_buffer) {
  // None: declared now, given a value when the model runs.
  TORCH_CHECK(value.isNone() || value.type()->isSubtypeOf(*type.ptr), "attribute '", text(name), "' is declared as ",
              type.ptr->repr_str(), " but its value is ", value.type()->repr_str());
  edit(module)->register_attribute(text(name), type.ptr, value, is_parameter, is_buffer);
}
void module_register_submodule(const Module &module, rust::Str name, const Module &submodule) {
  edit(module)->register_module(text(name), submodule);
}
void module_remove_slot(const Module &module, rust::Str name) { module._ivalue()->unsafeRemoveAttr(text(name)); }

void module_train(const Module &module, bool on) { edit(module)->train(on); }
bool module_is_training(const Module &module) {
  IValue training = module.attr("training", true);
  return training.isBool() && training.toBool();
}

// A plain tuple is no named tuple for libtorch, whatever its elements are.
static IValue with_names(const IValue &value, const c10::TypePtr &type) {
  const auto tuple = type->cast<c10::TupleType>();
  if (!tuple || !value.isTuple() || value.toTupleRef().size() != tuple->elements().size())
    return value;
  std::vector<IValue> items;
  for (size_t i = 0; i < tuple->elements().size(); ++i)
    items.push_back(with_names(value.toTupleRef().elements()[i], tuple->elements()[i]));
  return tuple->schema() ? c10::ivalue::Tuple::createNamed(std::move(items), tuple)
                         : c10::ivalue::Tuple::create(std::move(items));
}

std::unique_ptr<IValue> module_run(const Module &module, rust::Str method, std::unique_ptr<IValues> args,
                                   bool gradients) {
  c10::AutoGradMode mode(gradients);
  const auto function = module.get_method(text(method));
  const auto &arguments = function.function().getSchema().arguments();
  for (size_t i = 0; i < args->size() && i + 1 < arguments.size(); ++i)
    (*args)[i] = with_names((*args)[i], arguments[i + 1].type());
  return own(function(std::move(*args)));
}

std::unique_ptr<IValue> module_run_once(const Module &module, rust::Str method, std::unique_ptr<IValues> args) {
  jit::GraphOptimizerEnabledGuard as_it_is(false);
  return module_run(module, method, std::move(args), false);
}

std::unique_ptr<Module> module_freeze(const Module &module, rust::Slice<const rust::String> preserved,
                                      bool optimize_numerics) {
  std::vector<std::string> names;
  for (const rust::String &name : preserved)
    names.emplace_back(name);
  Module frozen = jit::freeze(module, names, optimize_numerics);
  let_call_stacks_last(frozen);
  return own(std::move(frozen));
}

std::unique_ptr<Module> module_fold_attributes(const Module &module, rust::Slice<const rust::String> preserved) {
  std::vector<std::string> names;
  for (const rust::String &name : preserved)
    names.emplace_back(name);
  Module frozen = jit::freeze_module(module, names);
  let_call_stacks_last(frozen);
  return own(std::move(frozen));
}

std::unique_ptr<IValue> ivalue_none() { return own(IValue()); }
std::unique_ptr<IValue> ivalue_from_tensor(const Tensor &tensor) { return own(IValue(tensor)); }
std::unique_ptr<IValue> ivalue_from_int(int64_t value) { return own(IValue(value)); }
std::unique_ptr<IValue> ivalue_from_double(double value) { return own(IValue(value)); }
std::unique_ptr<IValue> ivalue_from_bool(bool value) { return own(IValue(value)); }
std::unique_ptr<IValue> ivalue_from_string(rust::Str value) { return own(IValue(text(value))); }
std::unique_ptr<IValue> ivalue_from_device(rust::Str value) { return own(IValue(c10::Device(text(value)))); }
std::unique_ptr<IValue> ivalue_from_module(const Module &module) { return own(IValue(module._ivalue())); }
std::unique_ptr<IValue> ivalue_tuple(std::unique_ptr<IValues> items) {
  return own(IValue(c10::ivalue::Tuple::create(std::move(*items))));
}

std::unique_ptr<IValue> ivalue_list(const Type &element, std::unique_ptr<IValues> items) {
  c10::impl::GenericList list(element.ptr);
  for (IValue &item : *items) {
    TORCH_CHECK(item.type()->isSubtypeOf(*element.ptr), "a list of ", element.ptr->repr_str(), " cannot hold a ",
                item.type()->repr_str());
    list.push_back(std::move(item));
  }
  return own(IValue(std::move(list)));
}

std::unique_ptr<IValue> ivalue_dict(const Type &key, const Type &value, std::unique_ptr<IValues> keys,
                                    std::unique_ptr<IValues> values) {
  TORCH_CHECK(keys->size() == values->size(), keys->size(), " keys and ", values->size(), " values");
  c10::impl::GenericDict dict(key.ptr, value.ptr);
  for (size_t i = 0; i < keys->size(); ++i) {
    TORCH_CHECK((*keys)[i].type()->isSubtypeOf(*key.ptr) && (*values)[i].type()->isSubtypeOf(*value.ptr),
                "a dictionary from ", key.ptr->repr_str(), " to ", value.ptr->repr_str(), " cannot hold ",
                (*keys)[i].type()->repr_str(), " and ", (*values)[i].type()->repr_str());
    dict.insert((*keys)[i], (*values)[i]);
  }
  return own(IValue(std::move(dict)));
}

std::unique_ptr<IValue> ivalue_copy(const IValue &value) { return own(IValue(value)); }
std::unique_ptr<IValue> ivalue_deepcopy(const IValue &value) { return own(value.deepcopy()); }
std::unique_ptr<IValue> ivalue_from_address(size_t address) {
  return own(IValue(*reinterpret_cast<const IValue *>(address)));
}
void ivalue_store(const IValue &value, size_t address) { *reinterpret_cast<IValue *>(address) = value; }
// Tells an object from others while it lives; 0 for what is none.
size_t ivalue_object(const IValue &value) {
  return value.isObject() ? reinterpret_cast<size_t>(value.internalToPointer()) : 0;
}

rust::String ivalue_tag(const IValue &value) { return value.isModule() ? "Module" : value.tagKind(); }
std::unique_ptr<Type> ivalue_type(const IValue &value) { return own(Type{value.type()}); }
std::unique_ptr<Tensor> ivalue_to_tensor(const IValue &value) { return own(Tensor(value.toTensor())); }
int64_t ivalue_to_int(const IValue &value) { return value.toInt(); }
double ivalue_to_double(const IValue &value) { return value.toDouble(); }
bool ivalue_to_bool(const IValue &value) { return value.toBool(); }
rust::String ivalue_to_string(const IValue &value) {
  if (!value.isDevice())
    return rust::String(value.toStringRef());
  return value.toDevice().str();
}
std::unique_ptr<Module> ivalue_to_module(const IValue &value) { return own(value.toModule()); }

std::unique_ptr<IValues> ivalue_items(const IValue &value) {
  if (value.isTuple())
    return own(value.toTupleRef().elements().vec());
  if (value.isList())
    return own(value.toListRef().vec());
  TORCH_CHECK(value.isGenericDict(), "a ", value.tagKind(), " holds no items");
  IValues items;
  for (const auto &entry : value.toGenericDict()) {
    items.push_back(entry.key());
    items.push_back(entry.value());
  }
  return own(std::move(items));
}

std::unique_ptr<IValues> ivalues_new() { return std::make_unique<IValues>(); }
void ivalues_push(IValues &items, const IValue &value) { items.push_back(value); }
size_t ivalues_len(const IValues &items) { return items.size(); }
std::unique_ptr<IValue> ivalues_get(const IValues &items, size_t index) { return own(IValue(items.at(index))); }

std::unique_ptr<Tensor> tensor_from_bytes(int32_t dtype, rust::Slice<const int64_t> shape,
                                          rust::Slice<const uint8_t> bytes) {
  auto tensor = at::empty(at::IntArrayRef(shape.data(), shape.size()), static_cast<at::ScalarType>(dtype));
  TORCH_CHECK(tensor.nbytes() == bytes.size(), "a tensor of ", tensor.nbytes(), " bytes made from ", bytes.size());
  if (!bytes.empty())
    std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return own(std::move(tensor));
}

std::unique_ptr<Tensor> tensor_zeros(size_t bytes) { return own(at::zeros({int64_t(bytes)}, at::kByte)); }

std::unique_ptr<Tensor> tensor_on_memory(const Tensor &memory, int32_t dtype, rust::Slice<const int64_t> sizes,
                                         rust::Slice<const int64_t> strides, int64_t offset) {
  auto tensor = at::empty({0}, static_cast<at::ScalarType>(dtype));
  return own(tensor.set_(memory.storage(), offset, at::IntArrayRef(sizes.data(), sizes.size()),
                         at::IntArrayRef(strides.data(), strides.size())));
}

std::unique_ptr<Tensor> tensor_handle(const Tensor &tensor) { return own(Tensor(tensor)); }
std::unique_ptr<Tensor> tensor_from_address(size_t address) {
  return own(Tensor(*reinterpret_cast<Tensor *>(address)));
}
size_t tensor_address(const Tensor &tensor) { return reinterpret_cast<size_t>(&tensor); }
void tensor_store(const Tensor &tensor, size_t address) { *reinterpret_cast<Tensor *>(address) = tensor; }
bool tensor_defined(const Tensor &tensor) { return tensor.defined(); }
int32_t tensor_dtype(const Tensor &tensor) { return static_cast<int32_t>(tensor.scalar_type()); }
rust::Vec<int64_t> tensor_shape(const Tensor &tensor) {
  rust::Vec<int64_t> shape;
  if (!tensor.is_nested())
    for (int64_t size : tensor.sizes())
      shape.push_back(size);
  return shape;
}
size_t tensor_bytes_len(const Tensor &tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && !tensor.is_nested() ? tensor.nbytes() : 0;
}

// The elements (of a quantized tensor its integers) one after the other in the CPU's memory.
std::unique_ptr<Tensor> tensor_plain(const Tensor &tensor) {
  TORCH_CHECK(tensor.defined() && tensor.layout() == c10::kStrided && !tensor.is_nested(),
              "a sparse, nested or undefined tensor has no plain elements");
  auto plain = tensor.is_quantized() ? tensor.int_repr() : tensor;
  return own(plain.detach().cpu().contiguous());
}
size_t tensor_data(const Tensor &tensor) { return reinterpret_cast<size_t>(tensor.const_data_ptr()); }

rust::Slice<const float> tensor_floats(const Tensor &plain) {
  TORCH_CHECK(plain.is_cpu() && plain.is_contiguous() && plain.scalar_type() == at::kFloat,
              "not a plain tensor of f32");
  return values<float>(plain);
}

void tensor_read(const Tensor &plain, rust::Slice<uint8_t> into) {
  TORCH_CHECK(plain.is_cpu() && plain.is_contiguous() && plain.nbytes() == into.size(), "a tensor of ", plain.nbytes(),
              " bytes is read into ", into.size());
  if (!into.empty())
    std::memcpy(into.data(), plain.const_data_ptr(), into.size());
}

std::unique_ptr<Tensor> tensor_to_f32(const Tensor &tensor) {
  auto plain = tensor.is_quantized() ? tensor.dequantize() : tensor;
  return own(plain.detach().to(c10::kCPU, c10::kFloat).contiguous());
}

bool tensor_is_quantized(const Tensor &tensor) { return tensor.is_quantized(); }
bool tensor_is_cpu(const Tensor &tensor) { return tensor.is_cpu(); }
bool tensor_equal(const Tensor &tensor, const Tensor &other) { return tensor.equal(other); }
size_t tensor_storage(const Tensor &tensor) {
  bool has_one = tensor.defined() && tensor.has_storage() && tensor.numel() > 0;
  return has_one ? reinterpret_cast<size_t>(tensor.storage().unsafeGetStorageImpl()) : 0;
}
std::unique_ptr<Tensor> tensor_copy(const Tensor &tensor) { return own(tensor.detach().clone()); }

rust::String torch_version() { return TORCH_VERSION; }
void torch_set_threads(int32_t threads) { at::set_num_threads(std::max(threads, 1)); }
int32_t torch_threads() { return at::get_num_threads(); }

struct SilentWarnings : c10::WarningHandler {
  void process(const c10::Warning &) override {}
};
void torch_silence_warnings() {
  static SilentWarnings silent;
  c10::WarningUtils::set_warning_handler(&silent);
}

} // namespace jitquant

// TorchScript modules, run-time values and tensors for src/ir: thin functions over torch/csrc/jit/api/module.h.
#pragma once

#include "torch.h"

namespace jitquant {

struct FloatChanges;

std::unique_ptr<Module> module_new(rust::Str name);
std::unique_ptr<Module> module_load_file(rust::Str path);
std::unique_ptr<Module> module_load_bytes(rust::Slice<const uint8_t> bytes);
rust::Vec<ExtraFile> module_extra_files(rust::Str path);
void module_save_file(const Module &module, rust::Str path, rust::Slice<const ExtraFile> extra);
rust::Vec<uint8_t> module_save_bytes(const Module &module);
std::unique_ptr<Module> module_handle(const Module &module);
std::unique_ptr<Module> module_from_address(size_t address);
void module_store(const Module &module, size_t address);
std::unique_ptr<Module> module_deepcopy(const Module &module);
std::unique_ptr<Module> module_shallow_copy(const Module &module);
std::unique_ptr<IValue> module_default_argument(const Module &module, rust::Str method, size_t index);
std::unique_ptr<Module> module_of_new_class_like(const Module &module);
std::shared_ptr<CompilationUnit> unit_new(const Module &source, bool keeps_source);
std::unique_ptr<Module> module_of_new_class_in(const Module &module, const std::shared_ptr<CompilationUnit> &unit);
std::unique_ptr<Module> module_of_class(const Module &module);
std::unique_ptr<CopyMemo> copy_memo_new();
void module_copy_attribute(const Module &source, rust::Str name, const Module &target);
void module_deepcopy_attribute(const Module &source, rust::Str name, const Module &target, CopyMemo &memo);
void module_set_submodule(const Module &module, rust::Str name, const Type &type, const Module &submodule);
void module_copy_constant(const Module &source, rust::Str name, const Module &target);
void module_copy_method(const Module &source, rust::Str method, const Module &target, rust::Str name,
                        const Graph &graph);
size_t module_address(const Module &module);
void module_fit_slots(const Module &module);
void module_fit_own_slots(const Module &module);
std::unique_ptr<Type> module_type(const Module &module);
rust::Vec<rust::String> module_method_names(const Module &module);
std::shared_ptr<Graph> module_method_graph(const Module &module, rust::Str method);
Schema module_method_schema(const Module &module, rust::Str method);
FloatChanges module_to_float(const Module &module);
std::unique_ptr<IValue> module_method_default(const Module &module, rust::Str method, size_t argument);
void module_define(const Module &module, rust::Str source);
void module_return_none(const Module &module, rust::Str method);
void module_remove_method(const Module &module, rust::Str method);
void module_create_method(const Module &module, rust::Str name, const Graph &graph);
rust::Vec<AttributeInfo> module_attributes(const Module &module);
std::unique_ptr<Module> module_in_slot(const Module &module, size_t slot);
rust::Vec<rust::String> module_constants(const Module &module);
bool module_has_attribute(const Module &module, rust::Str name);
std::unique_ptr<IValue> module_attribute(const Module &module, rust::Str name);
void module_set_attribute(const Module &module, rust::Str name, const IValue &value);
void module_register_attribute(const Module &module, rust::Str name, const Type &type, const IValue &value,
                               bool is_parameter, bool is_buffer);
void module_register_submodule(const Module &module, rust::Str name, const Module &submodule);
void module_remove_slot(const Module &module, rust::Str name);
void module_train(const Module &module, bool on);
bool module_is_training(const Module &module);
std::unique_ptr<IValue> module_run(const Module &module, rust::Str method, std::unique_ptr<IValues> args,
                                   bool gradients);
// The same without gradients, as the code stands: libtorch's executor optimizes nothing.
std::unique_ptr<IValue> module_run_once(const Module &module, rust::Str method, std::unique_ptr<IValues> args);
std::unique_ptr<Module> module_freeze(const Module &module, rust::Slice<const rust::String> preserved,
                                      bool optimize_numerics);
std::unique_ptr<Module> module_fold_attributes(const Module &module, rust::Slice<const rust::String> preserved);

std::unique_ptr<IValue> ivalue_none();
std::unique_ptr<IValue> ivalue_from_tensor(const Tensor &tensor);
std::unique_ptr<IValue> ivalue_from_int(int64_t value);
std::unique_ptr<IValue> ivalue_from_double(double value);
std::unique_ptr<IValue> ivalue_from_bool(bool value);
std::unique_ptr<IValue> ivalue_from_string(rust::Str value);
std::unique_ptr<IValue> ivalue_from_device(rust::Str value);
std::unique_ptr<IValue> ivalue_from_module(const Module &module);
std::unique_ptr<IValue> ivalue_tuple(std::unique_ptr<IValues> items);
std::unique_ptr<IValue> ivalue_list(const Type &element, std::unique_ptr<IValues> items);
std::unique_ptr<IValue> ivalue_dict(const Type &key, const Type &value, std::unique_ptr<IValues> keys,
                                    std::unique_ptr<IValues> values);
std::unique_ptr<IValue> ivalue_copy(const IValue &value);
std::unique_ptr<IValue> ivalue_deepcopy(const IValue &value);
std::unique_ptr<IValue> ivalue_from_address(size_t address);
void ivalue_store(const IValue &value, size_t address);
rust::String ivalue_tag(const IValue &value);
size_t ivalue_object(const IValue &value);
std::unique_ptr<Type> ivalue_type(const IValue &value);
std::unique_ptr<Tensor> ivalue_to_tensor(const IValue &value);
int64_t ivalue_to_int(const IValue &value);
double ivalue_to_double(const IValue &value);
bool ivalue_to_bool(const IValue &value);
rust::String ivalue_to_string(const IValue &value);
std::unique_ptr<Module> ivalue_to_module(const IValue &value);
std::unique_ptr<IValues> ivalue_items(const IValue &value);
std::unique_ptr<IValues> ivalues_new();
void ivalues_push(IValues &items, const IValue &value);
size_t ivalues_len(const IValues &items);
std::unique_ptr<IValue> ivalues_get(const IValues &items, size_t index);

std::unique_ptr<Tensor> tensor_from_bytes(int32_t dtype, rust::Slice<const int64_t> shape,
                                          rust::Slice<const uint8_t> bytes);
std::unique_ptr<Tensor> tensor_zeros(size_t bytes);
std::unique_ptr<Tensor> tensor_on_memory(const Tensor &memory, int32_t dtype, rust::Slice<const int64_t> sizes,
                                         rust::Slice<const int64_t> strides, int64_t offset);
std::unique_ptr<Tensor> tensor_handle(const Tensor &tensor);
std::unique_ptr<Tensor> tensor_from_address(size_t address);
size_t tensor_address(const Tensor &tensor);
void tensor_store(const Tensor &tensor, size_t address);
std::unique_ptr<Tensor> tensor_plain(const Tensor &tensor);
size_t tensor_data(const Tensor &tensor);
bool tensor_defined(const Tensor &tensor);
int32_t tensor_dtype(const Tensor &tensor);
rust::Vec<int64_t> tensor_shape(const Tensor &tensor);
size_t tensor_bytes_len(const Tensor &tensor);
rust::Slice<const float> tensor_floats(const Tensor &plain);
void tensor_read(const Tensor &plain, rust::Slice<uint8_t> into);
std::unique_ptr<Tensor> tensor_to_f32(const Tensor &tensor);
bool tensor_is_quantized(const Tensor &tensor);
bool tensor_is_cpu(const Tensor &tensor);
bool tensor_equal(const Tensor &tensor, const Tensor &other);
size_t tensor_storage(const Tensor &tensor);
std::unique_ptr<Tensor> tensor_copy(const Tensor &tensor);

rust::String torch_version();
void torch_set_threads(int32_t threads);
int32_t torch_threads();
void torch_silence_warnings();

} // namespace jitquant

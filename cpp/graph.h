// TorchScript graphs for src/ir: thin functions over torch/csrc/jit/ir/ir.h.
#pragma once

#include "torch.h"

namespace jitquant {

std::shared_ptr<Graph> graph_new();
std::shared_ptr<Graph> graph_from_address(size_t address);
std::shared_ptr<Graph> graph_parse(rust::Str text);
std::shared_ptr<Graph> graph_copy(const Graph &graph);
rust::String graph_to_string(const Graph &graph, bool source_locations);
const Block &graph_block(const Graph &graph);
const Node &graph_create(const Graph &graph, rust::Str kind, size_t outputs);
const Node &graph_copy_node(const Graph &graph, const Node &node);
const Value &graph_insert_constant(const Graph &graph, const Node &before, const IValue &value);
const Value &graph_insert_operator(const Graph &graph, const Node &before, rust::Str name,
                                   rust::Slice<const ValueRef> inputs);
const Value &graph_insert_method_call(const Graph &graph, const Node &before, const Value &object, rust::Str method,
                                      rust::Slice<const ValueRef> inputs);
rust::Vec<ValueRef> graph_insert_graph(const Graph &graph, const Node &before, const Graph &callee,
                                       rust::Slice<const ValueRef> inputs);
void graph_lint(const Graph &graph);
void graph_run_pass(const Graph &graph, rust::Str name);
std::shared_ptr<Graph> graph_of_nodes(rust::Slice<const NodeRef> nodes, rust::Slice<const ValueRef> inputs,
                                      rust::Slice<const ValueRef> outputs);
std::unique_ptr<Code> code_of_graph(const Graph &graph);
void code_run(const Code &code, IValues &stack);

size_t block_inputs_len(const Block &block);
const Value &block_input(const Block &block, size_t index);
const Value &block_add_input(const Block &block, rust::Str name);
size_t block_register_output(const Block &block, const Value &value);
void block_erase_output(const Block &block, size_t index);
const Node &block_return_node(const Block &block);
const Node &block_param_node(const Block &block);
bool block_has_owner(const Block &block);
const Node &block_owner(const Block &block);
void block_append(const Block &block, const Node &node);
void block_prepend(const Block &block, const Node &node);
void block_copy_from(const Block &block, const Block &source);

rust::Str node_kind(const Node &node);
const Node &node_next(const Node &node);
const Node &node_prev(const Node &node);
bool node_has_owning_block(const Node &node);
const Block &node_owning_block(const Node &node);
size_t node_inputs_len(const Node &node);
const Value &node_input(const Node &node, size_t index);
size_t node_outputs_len(const Node &node);
const Value &node_output(const Node &node, size_t index);
const Value &node_add_output(const Node &node);
size_t node_blocks_len(const Node &node);
const Block &node_block(const Node &node, size_t index);
const Block &node_add_block(const Node &node);
void node_add_input(const Node &node, const Value &value);
void node_insert_input(const Node &node, size_t index, const Value &value);
void node_replace_input(const Node &node, size_t index, const Value &value);
void node_replace_input_with(const Node &node, const Value &from, const Value &to);
void node_remove_input(const Node &node, size_t index);
void node_remove_all_inputs(const Node &node);
void node_insert_before(const Node &node, const Node &other);
void node_insert_after(const Node &node, const Node &other);
void node_move_before(const Node &node, const Node &other);
void node_move_after(const Node &node, const Node &other);
bool node_is_before(const Node &node, const Node &other);
bool node_is_dominated_by(const Node &node, const Node &other);
bool node_has_side_effects(const Node &node);
bool node_is_nondeterministic(const Node &node);
void node_copy_metadata(const Node &node, const Node &from);
SourceRange node_source_range(const Node &node);
void node_set_source(const Node &node, rust::Str file, size_t line, rust::Str code);
rust::String node_scope(const Node &node);
void node_set_scope(const Node &node, rust::Str path);
bool node_has_schema(const Node &node);
Schema node_schema(const Node &node);
rust::String node_to_string(const Node &node);
rust::Vec<rust::String> node_attribute_names(const Node &node);
bool node_has_attribute(const Node &node, rust::Str name);
std::unique_ptr<IValue> node_attribute(const Node &node, rust::Str name);
void node_set_attribute(const Node &node, rust::Str name, const IValue &value);
void node_remove_attribute(const Node &node, rust::Str name);
bool node_has_subgraph(const Node &node, rust::Str name);
std::shared_ptr<Graph> node_subgraph(const Node &node, rust::Str name);
void node_set_subgraph(const Node &node, rust::Str name, std::shared_ptr<Graph> graph);
void node_retire(const Node &node, const Block &graveyard);
void node_destroy(const Node &node);

std::unique_ptr<IValues> node_run(const Node &node, std::unique_ptr<IValues> inputs);

rust::String value_debug_name(const Value &value);
void value_set_debug_name(const Value &value, rust::Str name);
size_t value_unique(const Value &value);
const Node &value_node(const Value &value);
size_t value_offset(const Value &value);
std::unique_ptr<Type> value_type(const Value &value);
void value_set_type(const Value &value, const Type &type);
size_t value_uses_len(const Value &value);
const Node &value_use_node(const Value &value, size_t index);
size_t value_use_offset(const Value &value, size_t index);
void value_replace_all_uses_with(const Value &value, const Value &other);
bool value_is_constant(const Value &value);
std::unique_ptr<IValue> value_constant(const Value &value);
bool value_has_function(const Value &value);
rust::String value_function_name(const Value &value);
std::shared_ptr<Graph> value_function_graph(const Value &value);

std::unique_ptr<Type> type_parse(rust::Str text);
rust::String type_text(const Type &type);
rust::String type_annotation(const Type &type);
rust::String type_kind(const Type &type);
rust::String type_class_name(const Type &type);
bool type_is_module(const Type &type);
size_t type_contained_len(const Type &type);
std::unique_ptr<Type> type_contained(const Type &type, size_t index);
rust::Vec<rust::String> type_field_names(const Type &type);
bool type_is_subtype_of(const Type &type, const Type &other);
bool type_equals(const Type &type, const Type &other);
int32_t type_tensor_dtype(const Type &type);
std::unique_ptr<Type> type_attribute(const Type &type, rust::Str name);
std::shared_ptr<Graph> type_method_graph(const Type &type, rust::Str method);
rust::Vec<rust::String> type_method_names(const Type &type);
void type_remove_attribute(const Type &type, rust::Str name);
size_t type_address(const Type &type);
std::shared_ptr<CompilationUnit> type_unit(const Type &type);

} // namespace jitquant

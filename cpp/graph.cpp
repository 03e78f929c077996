#include "graph.h"

#include <ATen/core/function.h>
#include <ATen/core/jit_type.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/frontend/schema_matching.h>
#include <torch/csrc/jit/frontend/script_type_parser.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/irparser.h>
#include <torch/csrc/jit/passes/clear_profiling.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inline_fork_wait.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/loop_unrolling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_mutation.h>

#include <functional>
#include <sstream>
#include <string_view>
#include <unordered_map>

#include "jitquant/src/ir/ffi.rs.h"

namespace jitquant {

namespace jit = torch::jit;

std::vector<Value *> values(rust::Slice<const ValueRef> inputs) {
  std::vector<Value *> out;
  for (const ValueRef &input : inputs)
    out.push_back(edit(input.value));
  return out;
}

// The names of the alias sets that a schema gives an argument or a result: those of a list's elements included.
static void alias_sets(const c10::AliasInfo &info, std::string &out) {
  for (const c10::Symbol &set : info.beforeSets())
    out += (out.empty() ? "" : "|") + std::string(set.toUnqualString());
  for (const c10::AliasInfo &contained : info.containedTypes())
    alias_sets(contained, out);
}

Schema describe(const c10::FunctionSchema &schema) {
  auto list = [](const std::vector<c10::Argument> &arguments) {
    rust::Vec<Argument> out;
    for (const c10::Argument &argument : arguments) {
      std::string sets;
      if (argument.alias_info() != nullptr)
        alias_sets(*argument.alias_info(), sets);
      bool is_write = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
      out.push_back(Argument{readable(argument.name()), readable(argument.type()->annotation_str()),
                             argument.default_value().has_value(), argument.kwarg_only(), sets, is_write});
    }
    return out;
  };
  return Schema{readable(schema.name()), readable(schema.overload_name()), list(schema.arguments()),
                list(schema.returns())};
}

static std::shared_ptr<Graph> graph_of(jit::Function &function) {
  jit::GraphFunction *with_graph = jit::tryToGraphFunction(function);
  TORCH_CHECK(with_graph != nullptr, "function '", function.name(), "' has no graph");
  return with_graph->graph();
}

// A class knows its methods by their addresses, and they go with the module's code; those of classes that C++ registers
// stay.
static bool is_gone(const c10::TypePtr &type) {
  auto cls = type->cast<c10::ClassType>();
  return cls && !cls->compilation_unit() && cls->name()->qualifiedName().rfind("__torch__.torch.classes.", 0) != 0;
}

static c10::ClassTypePtr live_class(const c10::TypePtr &type) {
  TORCH_CHECK(!is_gone(type), "the module with the code of class ", type->repr_str(), " is gone");
  return type->expect<c10::ClassType>();
}

std::shared_ptr<Graph> graph_new() { return std::make_shared<Graph>(); }
std::shared_ptr<Graph> graph_from_address(size_t address) {
  return *reinterpret_cast<const std::shared_ptr<Graph> *>(address);
}

std::shared_ptr<Graph> graph_parse(rust::Str source) {
  auto graph = std::make_shared<Graph>();
  jit::parseIR(text(source), graph.get());
  return graph;
}

std::shared_ptr<Graph> graph_copy(const Graph &graph) { return edit(graph)->copy(); }
rust::String graph_to_string(const Graph &graph, bool source_locations) {
  return rust::String::lossy(graph.toString(source_locations));
}
const Block &graph_block(const Graph &graph) { return *graph.block(); }

const Node &graph_create(const Graph &graph, rust::Str kind, size_t outputs) {
  return *edit(graph)->create(c10::Symbol::fromQualString(text(kind)), outputs);
}

const Node &graph_copy_node(const Graph &graph, const Node &node) {
  return *edit(graph)->createClone(edit(node), [](Value *value) { return value; });
}

const Value &graph_insert_constant(const Graph &graph, const Node &before, const IValue &value) {
  jit::WithInsertPoint guard(edit(before));
  return *edit(graph)->insertConstant(value, before.sourceRange());
}

const Value &graph_insert_operator(const Graph &graph, const Node &before, rust::Str name,
                                   rust::Slice<const ValueRef> inputs) {
  jit::WithInsertPoint guard(edit(before));
  std::vector<jit::NamedValue> arguments;
  for (Value *value : values(inputs))
    arguments.emplace_back(value);
  return *edit(graph)->insert(c10::Symbol::fromQualString(text(name)), arguments, {}, before.sourceRange());
}

const Value &graph_insert_method_call(const Graph &graph, const Node &before, const Value &object, rust::Str method,
                                      rust::Slice<const ValueRef> inputs) {
  auto type = live_class(object.type());
  std::vector<jit::NamedValue> arguments{edit(object)};
  for (Value *value : values(inputs))
    arguments.emplace_back(value);
  jit::WithInsertPoint guard(edit(before));
  auto schema = type->getMethod(text(method)).getSchema();
  auto matched = jit::matchSchema(schema, before.sourceRange(), *edit(graph), arguments, {});
  return *edit(graph)->insertMethodCall(text(method), matched);
}

rust::Vec<ValueRef> graph_insert_graph(const Graph &graph, const Node &before, const Graph &callee,
                                       rust::Slice<const ValueRef> inputs) {
  jit::WithInsertPoint guard(edit(before));
  rust::Vec<ValueRef> outputs;
  for (Value *output : jit::insertGraph(*edit(graph), *edit(callee), values(inputs)))
    outputs.push_back(ValueRef{*output});
  return outputs;
}

void graph_lint(const Graph &graph) { graph.lint(); }

static size_t content_hash(const at::Tensor &tensor) {
  size_t hash = c10::hash_combine(tensor.numel(), static_cast<size_t>(tensor.scalar_type()));
  if (tensor.layout() != at::kStrided || !tensor.device().is_cpu() || tensor.is_quantized() || !tensor.has_storage())
    return hash;
  at::Tensor dense = tensor.contiguous();
  const char *bytes = static_cast<const char *>(dense.const_data_ptr());
  return c10::hash_combine(hash, std::hash<std::string_view>()(std::string_view(bytes, dense.nbytes())));
}

static void constant_tensors(jit::Block *block, std::vector<Node *> &found) {
  for (Node *node : block->nodes()) {
    if (node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value) &&
        node->kindOf(c10::attr::value) == jit::AttributeKind::t)
      found.push_back(node);
    for (jit::Block *inner : node->blocks())
      constant_tensors(inner, found);
  }
}

// libtorch puts nodes into a hash table where all constant tensors have one hash, so that each is compared with all
// others before it. Its hash looks at a node's inputs: while it works, each constant tensor has one that stands for its
// content.
class TensorHashes {
public:
  explicit TensorHashes(Graph &graph) {
    std::vector<Node *> constants;
    constant_tensors(graph.block(), constants);
    std::unordered_map<size_t, std::vector<Node *>> by_content;
    for (Node *node : constants)
      by_content[content_hash(node->t(c10::attr::value))].push_back(node);
    marks = graph.create(c10::prim::Uninitialized, by_content.size())->insertBefore(*graph.nodes().begin());
    size_t number = 0;
    for (auto &[hash, nodes] : by_content) {
      for (Node *node : nodes)
        node->addInput(marks->output(number));
      ++number;
    }
  }
  ~TensorHashes() {
    for (Value *mark : marks->outputs())
      while (!mark->uses().empty())
        mark->uses().front().user->removeAllInputs();
    marks->destroy();
  }
  TensorHashes(const TensorHashes &) = delete;
  TensorHashes &operator=(const TensorHashes &) = delete;

private:
  Node *marks;
};

void graph_run_pass(const Graph &graph, rust::Str name) {
  static const std::unordered_map<std::string, std::function<void(std::shared_ptr<Graph> &)>> passes = {
      {"clear_profiling", [](auto &g) { jit::ClearProfilingInformation(g); }},
      {"constant_pooling", [](auto &g) { jit::ConstantPooling(g); }},
      {"constant_propagation", [](auto &g) { jit::ConstantPropagation(g, true); }},
      {"cse",
       [](auto &g) {
         TensorHashes hashes(*g);
         jit::EliminateCommonSubexpression(g);
       }},
      {"dead_code_elimination", [](auto &g) { jit::EliminateDeadCode(g); }},
      {"inline", [](auto &g) { jit::Inline(*g); }},
      {"inline_fork_wait", [](auto &g) { jit::InlineForkWait(g); }},
      {"lower_simple_tuples", [](auto &g) { jit::LowerSimpleTuples(g); }},
      {"peephole", [](auto &g) { jit::PeepholeOptimize(g); }},
      {"remove_list_mutation", [](auto &g) { jit::RemoveListMutation(g); }},
      {"remove_tensor_mutation", [](auto &g) { jit::RemoveTensorMutation(g); }},
      {"unroll_constant_loops", [](auto &g) { jit::UnrollConstantLoops(g); }},
  };
  auto pass = passes.find(text(name));
  TORCH_CHECK(pass != passes.end(), "no general pass is called '", text(name), "'");
  auto shared = edit(graph)->shared_from_this();
  pass->second(shared);
}

std::shared_ptr<Graph> graph_of_nodes(rust::Slice<const NodeRef> nodes, rust::Slice<const ValueRef> inputs,
                                      rust::Slice<const ValueRef> outputs) {
  auto part = std::make_shared<Graph>();
  std::unordered_map<Value *, Value *> copies;
  auto copy_of = [&](Value *value) { return copies.at(value); };
  for (Value *input : values(inputs))
    copies[input] = part->addInput()->setType(input->type());
  for (const NodeRef &node : nodes) {
    Node *copy = part->appendNode(part->createClone(edit(node.node), copy_of));
    for (size_t i = 0; i < copy->outputs().size(); ++i)
      copies[edit(node.node)->outputs()[i]] = copy->outputs()[i];
  }
  for (Value *output : values(outputs))
    part->registerOutput(copy_of(output));
  return part;
}

std::unique_ptr<Code> code_of_graph(const Graph &graph) {
  return std::make_unique<Code>(edit(graph)->shared_from_this(), "part of a model");
}

void code_run(const Code &code, IValues &stack) {
  c10::AutoGradMode no_gradients(false);
  jit::InterpreterState(code).run(stack);
}

size_t block_inputs_len(const Block &block) { return block.inputs().size(); }
const Value &block_input(const Block &block, size_t index) { return *block.inputs().at(index); }
const Value &block_add_input(const Block &block, rust::Str name) { return *edit(block)->addInput(text(name)); }
size_t block_register_output(const Block &block, const Value &value) {
  return edit(block)->registerOutput(edit(value));
}
void block_erase_output(const Block &block, size_t index) { edit(block)->eraseOutput(index); }
const Node &block_return_node(const Block &block) { return *block.return_node(); }
const Node &block_param_node(const Block &block) { return *block.param_node(); }
bool block_has_owner(const Block &block) { return block.owningNode() != nullptr; }
const Node &block_owner(const Block &block) {
  TORCH_CHECK(block.owningNode() != nullptr, "a graph's top block belongs to no node");
  return *block.owningNode();
}
void block_append(const Block &block, const Node &node) { edit(block)->appendNode(edit(node)); }
void block_prepend(const Block &block, const Node &node) { edit(block)->prependNode(edit(node)); }
void block_copy_from(const Block &block, const Block &source) {
  edit(block)->cloneFrom(edit(source), [](Value *value) { return value; });
}

rust::Str node_kind(const Node &node) { return node.kind().toQualString(); }
const Node &node_next(const Node &node) { return *node.next(); }
const Node &node_prev(const Node &node) { return *node.prev(); }
bool node_has_owning_block(const Node &node) { return node.owningBlock() != nullptr; }
const Block &node_owning_block(const Node &node) {
  TORCH_CHECK(node.owningBlock() != nullptr, "the node is in no block");
  return *node.owningBlock();
}
size_t node_inputs_len(const Node &node) { return node.inputs().size(); }
const Value &node_input(const Node &node, size_t index) { return *node.inputs().at(index); }
size_t node_outputs_len(const Node &node) { return node.outputs().size(); }
const Value &node_output(const Node &node, size_t index) { return *node.outputs().at(index); }
const Value &node_add_output(const Node &node) { return *edit(node)->addOutput(); }
size_t node_blocks_len(const Node &node) { return node.blocks().size(); }
const Block &node_block(const Node &node, size_t index) { return *node.blocks().at(index); }
const Block &node_add_block(const Node &node) { return *edit(node)->addBlock(); }
void node_add_input(const Node &node, const Value &value) { edit(node)->addInput(edit(value)); }
void node_insert_input(const Node &node, size_t index, const Value &value) {
  TORCH_CHECK(index <= node.inputs().size(), "input ", index, " of a node with ", node.inputs().size(), " inputs");
  edit(node)->insertInput(index, edit(value));
}
void node_replace_input(const Node &node, size_t index, const Value &value) {
  TORCH_CHECK(index < node.inputs().size(), "input ", index, " of a node with ", node.inputs().size(), " inputs");
  edit(node)->replaceInput(index, edit(value));
}
void node_replace_input_with(const Node &node, const Value &from, const Value &to) {
  edit(node)->replaceInputWith(edit(from), edit(to));
}
void node_remove_input(const Node &node, size_t index) {
  TORCH_CHECK(index < node.inputs().size(), "input ", index, " of a node with ", node.inputs().size(), " inputs");
  edit(node)->removeInput(index);
}
void node_remove_all_inputs(const Node &node) { edit(node)->removeAllInputs(); }
void node_insert_before(const Node &node, const Node &other) { edit(node)->insertBefore(edit(other)); }
void node_insert_after(const Node &node, const Node &other) { edit(node)->insertAfter(edit(other)); }
void node_move_before(const Node &node, const Node &other) { edit(node)->moveBefore(edit(other)); }
void node_move_after(const Node &node, const Node &other) { edit(node)->moveAfter(edit(other)); }
bool node_is_before(const Node &node, const Node &other) { return node.isBefore(&other); }
bool node_is_dominated_by(const Node &node, const Node &other) { return node.isDominatedBy(&other); }
bool node_has_side_effects(const Node &node) { return node.hasSideEffects(); }
bool node_is_nondeterministic(const Node &node) { return node.isNondeterministic(); }
void node_copy_metadata(const Node &node, const Node &from) { edit(node)->copyMetadata(edit(from)); }

SourceRange node_source_range(const Node &node) {
  auto range = node.sourceRange();
  SourceRange out{"", 0, 0, ""};
  if (!range.source())
    return out;
  if (auto place = range.file_line_col()) {
    out.file = std::get<0>(*place);
    out.line = std::get<1>(*place);
    out.column = std::get<2>(*place);
  }
  out.text = rust::String::lossy(range.text().str());
  return out;
}

void node_set_source(const Node &node, rust::Str file, size_t line, rust::Str code) {
  auto source = std::make_shared<jit::Source>(text(code), text(file), line);
  edit(node)->setSourceRange(jit::SourceRange(std::move(source), 0, code.size()));
}

rust::String node_scope(const Node &node) { return node.scopeName(); }
void node_set_scope(const Node &node, rust::Str path) {
  auto root = c10::make_intrusive<jit::Scope>();
  edit(node)->setScope(path.empty() ? root : root->push(c10::Symbol::scope(text(path))));
}
bool node_has_schema(const Node &node) { return node.maybeSchema() != nullptr; }
Schema node_schema(const Node &node) { return describe(node.schema()); }

rust::String node_to_string(const Node &node) {
  std::ostringstream out;
  node.print(out, 0, nullptr, false, true, false, true);
  return rust::String::lossy(out.str());
}

rust::Vec<rust::String> node_attribute_names(const Node &node) {
  rust::Vec<rust::String> names;
  for (const char *name : node.attributeNamesS())
    names.push_back(readable(name));
  return names;
}

bool node_has_attribute(const Node &node, rust::Str name) { return node.hasAttributeS(text(name)); }

std::unique_ptr<IValue> node_attribute(const Node &node, rust::Str name) {
  auto symbol = c10::Symbol::attr(text(name));
  TORCH_CHECK(node.hasAttribute(symbol), "a '", node.kind().toQualString(), "' node has no attribute '", text(name),
              "'");
  auto wrap = [](auto &&value) { return std::make_unique<IValue>(value); };
  switch (node.kindOf(symbol)) {
  case jit::AttributeKind::f:
    return wrap(node.f(symbol));
  case jit::AttributeKind::fs:
    return wrap(node.fs(symbol));
  case jit::AttributeKind::i:
    return wrap(node.i(symbol));
  case jit::AttributeKind::is:
    return wrap(node.is(symbol));
  case jit::AttributeKind::s:
    return wrap(node.s(symbol));
  case jit::AttributeKind::ss:
    return wrap(node.ss(symbol));
  case jit::AttributeKind::t:
    return wrap(node.t(symbol));
  case jit::AttributeKind::ts:
    return wrap(node.ts(symbol));
  case jit::AttributeKind::ival:
    return wrap(node.ival(symbol));
  default:
    TORCH_CHECK(false, "attribute '", text(name), "' is of kind ", jit::toString(node.kindOf(symbol)),
                ", which is not a value");
  }
}

void node_set_attribute(const Node &node, rust::Str name, const IValue &value) {
  auto symbol = c10::Symbol::attr(text(name));
  Node *target = edit(node);
  if (value.isTensor())
    target->t_(symbol, value.toTensor());
  else if (value.isInt())
    target->i_(symbol, value.toInt());
  else if (value.isDouble())
    target->f_(symbol, value.toDouble());
  else if (value.isString())
    target->s_(symbol, value.toStringRef());
  else
    target->ival_(symbol, value);
}

void node_remove_attribute(const Node &node, rust::Str name) { edit(node)->removeAttributeS(text(name)); }

bool node_has_subgraph(const Node &node, rust::Str name) {
  auto symbol = c10::Symbol::attr(text(name));
  return node.hasAttribute(symbol) && node.kindOf(symbol) == jit::AttributeKind::g;
}
std::shared_ptr<Graph> node_subgraph(const Node &node, rust::Str name) { return node.g(c10::Symbol::attr(text(name))); }
void node_set_subgraph(const Node &node, rust::Str name, std::shared_ptr<Graph> graph) {
  edit(node)->g_(c10::Symbol::attr(text(name)), std::move(graph));
}

static void let_go_of_inputs(Node *node) {
  node->removeAllInputs();
  for (Block *block : node->blocks()) {
    block->removeAllOutputs();
    for (Node *inner : block->nodes())
      let_go_of_inputs(inner);
  }
}

void node_retire(const Node &node, const Block &graveyard) {
  TORCH_CHECK(!node.hasUses(), "an output of '", node.kind().toQualString(), "' is still used");
  let_go_of_inputs(edit(node));
  for (const char *name : edit(node)->attributeNamesS())
    if (edit(node)->kindOfS(name) == jit::AttributeKind::t)
      edit(node)->t_(c10::Symbol::attr(name), at::Tensor());
  if (node.next() != nullptr)
    edit(node)->moveBefore(edit(graveyard)->return_node());
  else
    edit(graveyard)->appendNode(edit(node));
}

void node_destroy(const Node &node) { edit(node)->destroy(); }

std::unique_ptr<IValues> node_run(const Node &node, std::unique_ptr<IValues> inputs) {
  // As a stack: the operator takes its inputs off the end and leaves its outputs there.
  node.getOperation()(*inputs);
  return inputs;
}

rust::String value_debug_name(const Value &value) { return readable(value.debugName()); }
void value_set_debug_name(const Value &value, rust::Str name) { edit(value)->setDebugName(text(name)); }
size_t value_unique(const Value &value) { return value.unique(); }
const Node &value_node(const Value &value) { return *value.node(); }
size_t value_offset(const Value &value) { return value.offset(); }
std::unique_ptr<Type> value_type(const Value &value) { return std::make_unique<Type>(Type{value.type()}); }
void value_set_type(const Value &value, const Type &type) { edit(value)->setType(type.ptr); }
size_t value_uses_len(const Value &value) { return value.uses().size(); }
const Node &value_use_node(const Value &value, size_t index) { return *value.uses().at(index).user; }
size_t value_use_offset(const Value &value, size_t index) { return value.uses().at(index).offset; }
void value_replace_all_uses_with(const Value &value, const Value &other) {
  edit(value)->replaceAllUsesWith(edit(other));
}
bool value_is_constant(const Value &value) { return value.node()->kind() == c10::prim::Constant; }
std::unique_ptr<IValue> value_constant(const Value &value) {
  auto constant = jit::toIValue(&value);
  TORCH_CHECK(constant.has_value(), "%", value.debugName(), " is not a constant");
  return std::make_unique<IValue>(std::move(*constant));
}
bool value_has_function(const Value &value) { return value.type()->cast<c10::FunctionType>() != nullptr; }
rust::String value_function_name(const Value &value) {
  return value.type()->expect<c10::FunctionType>()->function()->name();
}
std::shared_ptr<Graph> value_function_graph(const Value &value) {
  return graph_of(*value.type()->expect<c10::FunctionType>()->function());
}

static std::unique_ptr<Type> own(c10::TypePtr ptr) { return std::make_unique<Type>(Type{std::move(ptr)}); }

std::unique_ptr<Type> type_parse(rust::Str source) { return own(jit::ScriptTypeParser().parseType(text(source))); }
rust::String type_text(const Type &type) { return readable(type.ptr->str()); }
rust::String type_annotation(const Type &type) { return readable(type.ptr->annotation_str()); }
rust::String type_kind(const Type &type) { return c10::typeKindToString(type.ptr->kind()); }
rust::String type_class_name(const Type &type) {
  const auto *named = dynamic_cast<const c10::NamedType *>(type.ptr.get());
  TORCH_CHECK(named && named->name(), "type '", type.ptr->str(), "' has no class name");
  return readable(named->name()->qualifiedName());
}
bool type_is_module(const Type &type) { return type.ptr->is_module(); }
size_t type_contained_len(const Type &type) { return type.ptr->containedTypes().size(); }
std::unique_ptr<Type> type_contained(const Type &type, size_t index) {
  return own(type.ptr->containedTypes().at(index));
}
rust::Vec<rust::String> type_field_names(const Type &type) {
  rust::Vec<rust::String> names;
  if (const auto tuple = type.ptr->cast<c10::TupleType>(); tuple && tuple->schema())
    for (const auto &field : tuple->schema()->arguments())
      names.push_back(field.name());
  return names;
}
bool type_is_subtype_of(const Type &type, const Type &other) {
  if (is_gone(type.ptr) || is_gone(other.ptr))
    return type.ptr == other.ptr;
  return type.ptr->isSubtypeOf(*other.ptr);
}
bool type_equals(const Type &type, const Type &other) { return *type.ptr == *other.ptr; }
int32_t type_tensor_dtype(const Type &type) {
  auto tensor = type.ptr->cast<c10::TensorType>();
  return tensor && tensor->scalarType() ? static_cast<int32_t>(*tensor->scalarType()) : -1;
}
std::unique_ptr<Type> type_attribute(const Type &type, rust::Str name) {
  return own(type.ptr->expect<c10::ClassType>()->getAttribute(text(name)));
}
std::shared_ptr<Graph> type_method_graph(const Type &type, rust::Str method) {
  return graph_of(live_class(type.ptr)->getMethod(text(method)));
}
rust::Vec<rust::String> type_method_names(const Type &type) {
  rust::Vec<rust::String> names;
  if (auto cls = type.ptr->cast<c10::ClassType>(); cls && !is_gone(cls))
    for (torch::jit::Function *method : cls->methods())
      names.push_back(readable(method->name()));
  return names;
}
void type_remove_attribute(const Type &type, rust::Str name) {
  type.ptr->expect<c10::ClassType>()->unsafeRemoveAttribute(text(name));
}
size_t type_address(const Type &type) { return reinterpret_cast<size_t>(type.ptr.get()); }
std::shared_ptr<CompilationUnit> type_unit(const Type &type) {
  auto cls = type.ptr->cast<c10::ClassType>();
  return cls ? cls->compilation_unit() : nullptr;
}

} // namespace jitquant

#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "jitquant/src/ir/operators.rs.h"

namespace jitquant {

static OperatorSchema described(const c10::FunctionSchema &schema) {
  OperatorSchema out{schema.name(), schema.overload_name(), {}, {}, {}, {}};
  for (const c10::Argument &argument : schema.arguments()) {
    out.names.push_back(argument.name());
    out.types.push_back(argument.type()->annotation_str());
    out.has_default.push_back(argument.default_value().has_value());
  }
  for (const c10::Argument &result : schema.returns())
    out.returns.push_back(result.type()->annotation_str());
  return out;
}

rust::Vec<OperatorSchema> operator_schemas(rust::Str prefix) {
  rust::Vec<OperatorSchema> schemas;
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
    if (name.name.rfind(text(prefix), 0) != 0)
      continue;
    auto handle = dispatcher.findSchema(name);
    if (!handle)
      continue;
    schemas.push_back(described(handle->schema()));
  }
  return schemas;
}

OperatorSchema operator_schema(rust::Str name, rust::Str overload) {
  return described(c10::Dispatcher::singleton().findSchemaOrThrow(text(name).c_str(), text(overload).c_str()).schema());
}

std::unique_ptr<IValue> operator_default(rust::Str name, rust::Str overload, size_t argument) {
  auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(text(name).c_str(), text(overload).c_str());
  return std::make_unique<IValue>(handle.schema().arguments().at(argument).default_value().value());
}

std::unique_ptr<IValues> operator_call(rust::Str name, rust::Str overload, std::unique_ptr<IValues> arguments) {
  auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(text(name).c_str(), text(overload).c_str());
  size_t wanted = handle.schema().arguments().size();
  TORCH_CHECK_VALUE(arguments->size() == wanted, text(name), ": ", arguments->size(), " arguments; ", wanted,
                    " are accepted");
  // As a stack: the operator takes its arguments off the end and leaves its results there.
  handle.callBoxed(*arguments);
  return arguments;
}

} // namespace jitquant

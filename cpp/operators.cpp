#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "jitquant/src/ir/operators.rs.h"

namespace jitquant {

rust::Vec<OperatorSchema> operator_schemas(rust::Str prefix) {
  rust::Vec<OperatorSchema> schemas;
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
    if (name.name.rfind(text(prefix), 0) != 0)
      continue;
    auto handle = dispatcher.findSchema(name);
    if (!handle)
      continue;
    OperatorSchema described{name.name, name.overload_name, {}, {}};
    for (const c10::Argument &argument : handle->schema().arguments()) {
      described.names.push_back(argument.name());
      described.types.push_back(argument.type()->annotation_str());
    }
    schemas.push_back(std::move(described));
  }
  return schemas;
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

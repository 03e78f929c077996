// Operators by name, called as the dispatcher's boxed callers do.
#pragma once

#include "torch.h"

namespace jitquant {

struct OperatorSchema;

rust::Vec<OperatorSchema> operator_schemas(rust::Str prefix);
OperatorSchema operator_schema(rust::Str name, rust::Str overload);
std::unique_ptr<IValue> operator_default(rust::Str name, rust::Str overload, size_t argument);
std::unique_ptr<IValues> operator_call(rust::Str name, rust::Str overload, std::unique_ptr<IValues> arguments);

} // namespace jitquant

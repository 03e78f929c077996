// Registering operators: as TORCH_LIBRARY does, but not in a libtorch that the library was not built for, and not a
// second time where another copy of the library is in the process.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>

#include "host.h"

namespace jitquant {

// Whether this copy of the library registers operators; decided at the first registration.
inline bool registers_operators() {
  static const bool decision = [] {
    if (!host_refusal().empty() || c10::Dispatcher::singleton().findSchema({"jitquant::registered", ""}))
      return false;
    static torch::Library marker(torch::Library::FRAGMENT, "jitquant", std::nullopt, __FILE__, __LINE__);
    marker.def("registered() -> ()");
    return true;
  }();
  return decision;
}

struct Registration {
  std::optional<torch::Library> library;
  Registration(torch::Library::Kind kind, std::optional<c10::DispatchKey> key, void (*fill)(torch::Library &)) {
    if (!registers_operators())
      return;
    library.emplace(kind, "jitquant", key, __FILE__, __LINE__);
    fill(*library);
  }
};

} // namespace jitquant

// JITQUANT_DEFINITIONS(name, m) { m.def(…); }   and   JITQUANT_KERNELS(name, CPU, m) { m.impl(…); }
#define JITQUANT_DEFINITIONS(name, m)                                                                                  \
  static void name(torch::Library &m);                                                                                 \
  static const jitquant::Registration name##_registration(torch::Library::FRAGMENT, std::nullopt, name);               \
  static void name(torch::Library &m)
#define JITQUANT_KERNELS(name, key, m)                                                                                 \
  static void name(torch::Library &m);                                                                                 \
  static const jitquant::Registration name##_registration(torch::Library::IMPL, c10::DispatchKey::key, name);          \
  static void name(torch::Library &m)

// The libtorch that this library was loaded into.
#pragma once

#include "rust/cxx.h"

namespace jitquant {

// Why the library cannot work in it; empty where it can.
rust::Str host_refusal();

// Loads a shared library into the process.
void library_open(rust::Str path);

} // namespace jitquant

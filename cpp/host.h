// The libtorch that this library was loaded into.
#pragma once

#include "rust/cxx.h"

namespace jitquant {

// Why the library cannot work in it; empty where it can.
rust::Str host_refusal();

} // namespace jitquant

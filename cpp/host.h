// The libtorch that this library was loaded into.
#pragma once

#include "rust/cxx.h"

namespace jitquant {

// Why the library cannot work in it; empty where it can.
rust::Str host_refusal();

// Whether this process is a child that was forked off the one which loaded the library.
bool host_is_forked();

// Loads a shared library into the process.
void library_open(rust::Str path);

} // namespace jitquant

// Which libtorch the library was built for, and which one it was loaded into. Nothing here needs libtorch's C++ ABI,
// which differs between versions.
#include "host.h"

#include <torch/version.h>

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace jitquant {

#define JITQUANT_TEXT(x) #x
#define JITQUANT_NUMBER(x) JITQUANT_TEXT(x)

// In the library as one piece of text, so that it can be read off the file; patch releases have the same ABI.
static const volatile char built_for[] =
    "jitquant is built for libtorch " JITQUANT_NUMBER(TORCH_VERSION_MAJOR) "." JITQUANT_NUMBER(TORCH_VERSION_MINOR);

static std::string built_for_version() {
  std::string text;
  for (const volatile char *c = built_for; *c != '\0'; ++c)
    text.push_back(*c);
  return text.substr(text.rfind(' ') + 1);
}

// The version of the libtorch in this process; empty where it does not say (before 2.10).
static std::string loaded_version() {
  using AbiVersion = uint64_t (*)();
  auto abi_version = reinterpret_cast<AbiVersion>(dlsym(RTLD_DEFAULT, "aoti_torch_abi_version"));
  if (abi_version == nullptr)
    if (void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD))
      abi_version = reinterpret_cast<AbiVersion>(dlsym(library, "aoti_torch_abi_version"));
  if (abi_version == nullptr)
    return "";
  uint64_t version = abi_version();
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 0xff);
}

// The process that loaded the library: a child that it forks is another one.
static const pid_t loaded_in = getpid();

static std::string find_refusal() {
  std::string ours = built_for_version(), theirs = loaded_version();
  if (ours == theirs || (theirs.empty() && TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 10))
    return "";
  return "this jitquant library was built for libtorch " + ours + ", but the process has libtorch " +
         (theirs.empty() ? "2.9 or older" : theirs) +
         "; use a jitquant that was built for that version (LIBTORCH=… make)";
}

rust::Str host_refusal() {
  static const std::string refusal = find_refusal();
  return rust::Str(refusal.data(), refusal.size());
}

bool host_is_forked() {
  // Zero: another file's static initialiser asks first.
  return loaded_in != 0 && loaded_in != getpid();
}

void library_open(rust::Str path) {
  // Whoever defines operators stays: libtorch keeps pointers to them.
  if (dlopen(std::string(path).c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) {
    const char *why = dlerror();
    throw std::runtime_error(why == nullptr ? "the system does not say why" : why);
  }
}

// Says it as soon as the library is loaded: who only loads operators makes no call that could return it.
static const bool told = [] {
  rust::Str refusal = host_refusal();
  if (!refusal.empty())
    std::fprintf(stderr, "jitquant: %.*s\n", static_cast<int>(refusal.size()), refusal.data());
  return true;
}();

} // namespace jitquant

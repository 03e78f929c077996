// libjitquant_preload.so: stands before libtorch's torch::jit::load, and has libjitquant.so, which lies beside it, look
// at each module that a program loads. docs/zero-touch.md is the guide.
//
//   LD_PRELOAD=libjitquant_preload.so JITQUANT=observe:calib.jq ./app
//
// It is loaded into every process that the program starts, most of which know nothing of libtorch. So it needs none:
// libtorch's types appear as their memory, functions as their symbols, and libjitquant.so is opened when a module is
// loaded.
#include <jitquant.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#define JITQUANT_TEXT(x) #x
#define JITQUANT_NUMBER(x) JITQUANT_TEXT(x)
#define JITQUANT_LIBRARY "libjitquant.so." JITQUANT_NUMBER(JQ_ABI_VERSION)

namespace jitquant_preload {

// The memory of c10::Device.
struct Device {
  int8_t type;
  int8_t index;
};

// The memory of torch::jit::Module: a counted pointer, so not passed in a register.
struct Module {
  void *object;
  Module(Module &&other) noexcept : object(std::exchange(other.object, nullptr)) {}
  ~Module() {} // An exception of libtorch's comes before there is an object; all else is handed on.
};

using ZeroTouch = int32_t (*)(void *);
using LastError = const char *(*)();

// Functions that interpose have to be told from libjitquant's own use of libtorch.
static thread_local bool inside = false;

// libjitquant.so's function, opened at the first call; null where it cannot be.
static void *symbol(const char *name) {
  static void *const library = []() -> void * {
    Dl_info self;
    if (dladdr(reinterpret_cast<void *>(&symbol), &self) == 0)
      return nullptr;
    std::string path = self.dli_fname;
    path = path.substr(0, path.find_last_of('/') + 1) + JITQUANT_LIBRARY;
    void *opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr)
      std::fprintf(stderr, "jitquant: models run in float: %s\n", dlerror());
    return opened;
  }();
  return library == nullptr ? nullptr : dlsym(library, name);
}

static void look_at(Module &module) {
  if (inside || std::getenv("JITQUANT") == nullptr)
    return;
  inside = true;
  static const auto zero_touch = reinterpret_cast<ZeroTouch>(symbol("jq_zero_touch"));
  if (zero_touch != nullptr && zero_touch(&module) != 0)
    std::fprintf(stderr, "jitquant: a model runs in float: %s\n",
                 reinterpret_cast<LastError>(symbol("jq_last_error"))());
  inside = false;
}

// What the symbol means without this library. A program that opened libtorch for itself alone (RTLD_LOCAL) has it
// behind none that this library could name: it is looked for in libtorch.
template <class Function> static Function *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (found == nullptr)
    if (void *libtorch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD))
      found = dlsym(libtorch, name);
  auto *function = reinterpret_cast<Function *>(found);
  if (function == nullptr) {
    std::fprintf(stderr, "jitquant: no libtorch behind libjitquant_preload.so: %s\n", dlerror());
    std::abort();
  }
  return function;
}

} // namespace jitquant_preload

using namespace jitquant_preload;

// torch::jit::load(SOURCE, std::optional<c10::Device>, bool) and with an ExtraFilesMap & before the last argument.
// SOURCE is a reference, or a shared_ptr, which is passed as one.
#define INTERPOSE_PLAIN(name, symbol)                                                                                  \
  __attribute__((visibility("default"))) Module name(void *source, std::optional<Device> device,                       \
                                                     bool debug) __asm__(symbol);                                      \
  Module name(void *source, std::optional<Device> device, bool debug) {                                                \
    static const auto load = next<Module(void *, std::optional<Device>, bool)>(symbol);                                \
    Module module = load(source, device, debug);                                                                       \
    look_at(module);                                                                                                   \
    return module;                                                                                                     \
  }
#define INTERPOSE_EXTRA(name, symbol)                                                                                  \
  __attribute__((visibility("default"))) Module name(void *source, std::optional<Device> device, void *extra,          \
                                                     bool debug) __asm__(symbol);                                      \
  Module name(void *source, std::optional<Device> device, void *extra, bool debug) {                                   \
    static const auto load = next<Module(void *, std::optional<Device>, void *, bool)>(symbol);                        \
    Module module = load(source, device, extra, debug);                                                                \
    look_at(module);                                                                                                   \
    return module;                                                                                                     \
  }

#define LOAD "_ZN5torch3jit4loadE"
#define DEVICE "St8optionalIN3c106DeviceEE"
#define STRING "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"

INTERPOSE_PLAIN(load_path, LOAD "RK" STRING DEVICE "b")
INTERPOSE_EXTRA(load_path_extra,
                LOAD "RK" STRING DEVICE "RSt13unordered_mapIS6_S6_St4hashIS6_ESt8equal_toIS6_ESaISt4pairIS7_S6_EEEb")
INTERPOSE_PLAIN(load_stream, LOAD "RSi" DEVICE "b")
INTERPOSE_EXTRA(load_stream_extra,
                LOAD "RSi" DEVICE "RSt13unordered_mapI" STRING "SC_St4hashISC_ESt8equal_toISC_ESaISt4pairIKSC_SC_EEEb")
INTERPOSE_PLAIN(load_adapter, LOAD "St10shared_ptrIN6caffe29serialize20ReadAdapterInterfaceEE" DEVICE "b")
INTERPOSE_EXTRA(load_adapter_extra,
                LOAD "St10shared_ptrIN6caffe29serialize20ReadAdapterInterfaceEE" DEVICE "RSt13unordered_mapI" STRING
                     "SG_St4hashISG_ESt8equal_toISG_ESaISt4pairIKSG_SG_EEEb")

// Loads libjitquant.so as a plugin, as torch.ops.load_library does: the program is compiled without its headers and not
// linked with it.
//
//   plugin libjitquant.so [MORE.so …]
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DispatchKeySet.h>
#include <torch/torch.h>

#include <dlfcn.h>
#include <iostream>

static auto find(const char *name) { return c10::Dispatcher::singleton().findSchema({name, ""}); }

int main(int argc, char **argv) {
  std::cout << "before: " << find("jitquant::qparams").has_value() << "\n";
  void *library = nullptr;
  for (int i = 1; i < argc; ++i) {
    library = dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
      std::cout << "dlopen: " << dlerror() << "\n";
      return 1;
    }
  }
  auto op = find("jitquant::qparams");
  std::cout << "after: " << op.has_value() << "\n";
  if (op) {
    std::cout << "CPU " << op->hasKernelForDispatchKey(c10::DispatchKey::CPU) << ", Meta "
              << find("jitquant::observe_min_max")->hasKernelForDispatchKey(c10::DispatchKey::Meta) << "\n";
    auto low = torch::full({}, -1.0), high = torch::full({}, 3.0);
    torch::jit::Stack stack{low, high, 13, 0, 0, 0, false, 1e-7, "x"};
    op->callBoxed(stack);
    std::cout << "scale " << 255 * stack[0].toTensor().item<float>() << ", zero point "
              << stack[1].toTensor().item<int>() << "\n";
  }
  using Init = int (*)();
  using Message = const char *(*)();
  std::cout << "jq_init " << reinterpret_cast<Init>(dlsym(library, "jq_init"))() << ": "
            << reinterpret_cast<Message>(dlsym(library, "jq_last_error"))() << "\n";
}

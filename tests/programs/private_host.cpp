// A program that has libtorch only through a plugin which it opens for itself alone.
//
//   private_host PLUGIN.so MODEL.pt
#include <dlfcn.h>
#include <iostream>

int main(int, char **arguments) {
  void *plugin = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  using Answer = int (*)(const char *);
  std::cout << reinterpret_cast<Answer>(dlsym(plugin, "answer"))(arguments[2]) << "\n";
}

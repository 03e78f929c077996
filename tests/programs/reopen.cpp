// reopen LIBRARY   opens the library, closes it and opens it again, and calls it each time. Prints "ok".
#include <ATen/Parallel.h>

#include <dlfcn.h>
#include <iostream>

int main(int, char **arguments) {
  at::get_num_threads();
  for (int round = 0; round < 3; ++round) {
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      std::cout << dlerror() << "\n";
      return 1;
    }
    using Init = int (*)();
    if (int status = reinterpret_cast<Init>(dlsym(library, "jq_init"))()) {
      std::cout << "jq_init: " << status << "\n";
      return 1;
    }
    dlclose(library);
  }
  std::cout << "ok\n";
}

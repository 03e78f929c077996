// The plugin of private_host.cpp: what the model at `path` answers to an image of ones; -1 where it throws.
#include <torch/script.h>

#include <iostream>

extern "C" int answer(const char *path) {
  try {
    torch::jit::Module model = torch::jit::load(std::string(path));
    return model.forward({torch::ones({1, 1, 28, 28})}).toTensor().argmax(1).item<int>();
  } catch (const std::exception &e) {
    std::cerr << e.what() << "\n";
    return -1;
  }
}

// Runs a TorchScript model on an array, with libtorch alone: no jitquant, no Python.
//
//   g++ -std=c++17 run.cpp -o run -I$LIBTORCH/include -I$LIBTORCH/include/torch/csrc/api/include \
//       -L$LIBTORCH/lib -Wl,-rpath,$LIBTORCH/lib -Wl,--no-as-needed -ltorch_cpu -lc10
//   ./run model.int8.pt x.npy y.npy
//
// x.npy is a float32 array in C order, one sample after the other; the model's output goes to y.npy. On stdout: the
// output's shape, the time of a run, and whether any part of jitquant is in the process.
#include <torch/script.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>

static at::Tensor read_npy(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8];
  uint16_t length = 0;
  file.read(magic, sizeof magic).read(reinterpret_cast<char *>(&length), sizeof length);
  std::string header(length, ' ');
  file.read(header.data(), length);
  std::smatch shape;
  TORCH_CHECK(file && header.find("'<f4'") != std::string::npos && header.find("False") != std::string::npos &&
                  std::regex_search(header, shape, std::regex("'shape': \\(([^)]*)\\)")),
              path, ": not a float32 .npy array in C order");
  std::vector<int64_t> sizes;
  std::istringstream numbers(shape[1].str());
  for (std::string number; std::getline(numbers, number, ',');)
    if (number.find_first_of("0123456789") != std::string::npos)
      sizes.push_back(std::stoll(number));
  at::Tensor x = at::empty(sizes, at::kFloat);
  file.read(static_cast<char *>(x.mutable_data_ptr()), static_cast<std::streamsize>(x.nbytes()));
  TORCH_CHECK(file, path, ": shorter than its header says");
  return x;
}

static void write_npy(const std::string &path, const at::Tensor &y) {
  std::ostringstream header;
  header << "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int64_t size : y.sizes())
    header << size << ",";
  header << ")}";
  std::string text = header.str();
  text.append(63 - (10 + text.size()) % 64, ' ').push_back('\n');
  const auto length = static_cast<uint16_t>(text.size());
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).write(reinterpret_cast<const char *>(&length), 2) << text;
  file.write(static_cast<const char *>(y.const_data_ptr()), static_cast<std::streamsize>(y.nbytes()));
}

static bool has_jitquant() {
  std::ifstream maps("/proc/self/maps");
  std::stringstream text;
  text << maps.rdbuf();
  return text.str().find("libjitquant") != std::string::npos ||
         c10::Dispatcher::singleton().findSchema({"jitquant::observe_min_max", ""}).has_value();
}

int main(int argc, char **argv) try {
  if (argc != 4) {
    std::cerr << "usage: run MODEL.pt X.npy Y.npy\n";
    return 2;
  }
  torch::NoGradGuard no_gradients;
  torch::jit::Module model = torch::jit::load(argv[1], at::kCPU);
  const at::Tensor x = read_npy(argv[2]);
  at::Tensor y;
  double best = 1e9;
  for (int run = 0; run < 5; ++run) {
    const auto start = std::chrono::steady_clock::now();
    y = model.forward({x}).toTensor();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  write_npy(argv[3], y.contiguous().to(at::kFloat));
  std::cout << "output " << y.sizes() << " in " << best * 1e3
            << " ms, jitquant in the process: " << (has_jitquant() ? "yes" : "no") << "\n";
  return 0;
} catch (const c10::Error &e) {
  std::cerr << e.what_without_backtrace() << "\n";
  return 1;
} catch (const std::exception &e) {
  std::cerr << e.what() << "\n";
  return 1;
}

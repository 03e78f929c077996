// A plain libtorch program that knows nothing of jitquant: it loads a classifier, runs it on samples, and prints what
// it answers, how sure it is of the last answer, and how long that takes.
//
//   g++ -std=c++20 -O1 app.cpp -o app -I$LIBTORCH/include -I$LIBTORCH/include/torch/csrc/api/include \
//       -L$LIBTORCH/lib -Wl,-rpath,$LIBTORCH/lib -ltorch_cpu -lc10
//   ./app model.pt N C H W [ROUNDS]
//
// The samples are N tensors of C x H x W with repeatable noise, one run for each.
#include <torch/script.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>

// Samples that look like images: smooth waves of all lengths, so that a model's answers differ from one to the next.
static at::Tensor sample(int64_t number, int64_t channels, int64_t height, int64_t width) {
  torch::manual_seed(static_cast<uint64_t>(number));
  at::Tensor x = at::zeros({1, channels, height, width});
  for (int64_t size = 2; size <= std::min(height, width); size *= 2)
    x += at::upsample_bilinear2d(at::randn({1, channels, size, size}), {height, width}, false) / std::sqrt(size);
  return x;
}

int main(int argc, char **argv) {
  if (argc < 6) {
    std::cerr << "usage: app MODEL.pt N C H W [ROUNDS]\n";
    return 2;
  }
  int64_t count = std::atoll(argv[2]);
  c10::InferenceMode no_gradients;
  // From a stream, and with a device: any of torch::jit::load's forms will do.
  std::ifstream file(argv[1], std::ios::binary);
  torch::jit::Module model = torch::jit::load(file, at::kCPU);
  model.eval();
  double score = 0;
  std::cout << "answers:";
  for (int64_t i = 0; i < count; ++i) {
    at::Tensor scores =
        model.forward({sample(i, std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[5]))}).toTensor();
    std::cout << " " << scores.argmax(1).item<int64_t>();
    score = scores.max().item<double>();
  }
  std::cout << "\nscore: " << score << "\n";
  at::Tensor x = sample(0, std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[5]));
  double least = 1e9;
  for (int64_t i = 0; i < (argc > 6 ? std::atoll(argv[6]) : 30); ++i) {
    auto start = std::chrono::steady_clock::now();
    model.forward({x});
    least =
        std::min(least, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::cout << "milliseconds: " << least << "\n";
}

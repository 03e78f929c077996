// Quantizes a TorchScript classifier in C++ with its own data loop, saves it, runs it, and compares it with the float
// one.
//
//   ./cpp-app digits.pt sixteen.npy digits.int8.pt
//
// The array holds f32 samples in C order, the first dimension counting them; the first half calibrates, the second one
// compares.
#include <jitquant.hpp>

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

// Microseconds that one run takes, the least of many.
static double microseconds(torch::jit::Module &model, const at::Tensor &x) {
  double least = 1e9;
  for (int i = 0; i < 30; ++i) {
    auto start = std::chrono::steady_clock::now();
    model.forward({x});
    least =
        std::min(least, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

static void quantize(const std::string &model_path, const std::string &samples_path, const std::string &out_path) {
  c10::InferenceMode no_gradients;
  torch::jit::Module model = torch::jit::load(model_path, at::kCPU);
  at::Tensor samples = read_npy(samples_path);
  int64_t half = samples.size(0) / 2;

  auto prepared = jitquant::Quantizer::static_ptq().prepare(model);
  for (const at::Tensor &batch : samples.slice(0, 0, half).split(4))
    prepared.calibrate(batch);
  auto [int8, report] = prepared.convert();
  std::cout << "jitquant " << jitquant::version() << ": " << report.quantized_layers << " layers are INT8, "
            << report.layers.size() << " stay in float\n";
  for (const auto &layer : report.layers)
    std::cout << "  " << layer.path << " (" << layer.operation << "): " << layer.reason << "\n";
  int8.save(out_path);

  torch::jit::Module saved = torch::jit::load(out_path, at::kCPU);
  at::Tensor x = samples.slice(0, half);
  at::Tensor want = model.forward({x}).toTensor(), have = saved.forward({x}).toTensor();
  auto agree = (want.argmax(1) == have.argmax(1)).sum().item<int64_t>();
  auto sqnr = 10 * std::log10(want.square().sum().item<double>() / (want - have).square().sum().item<double>());
  std::cout << "same answer as float: " << agree << " of " << x.size(0) << "; SQNR " << sqnr << " dB\n"
            << "float " << microseconds(model, x) << " us, INT8 " << microseconds(saved, x) << " us for " << x.size(0)
            << " samples\n";
}

int main(int argc, char **argv) {
  if (argc != 4) {
    std::cerr << "usage: cpp-app MODEL.pt SAMPLES.npy OUT.pt\n";
    return 2;
  }
  try {
    quantize(argv[1], argv[2], argv[3]);
  } catch (const c10::Error &e) {
    std::cerr << e.what_without_backtrace() << "\n";
    return 1;
  }
}

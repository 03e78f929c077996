// Trains a TorchScript classifier while its weights round to few bits, with torch::optim, and compares it with what
// post-training quantization makes of it.
//
//   ./qat-cpp digits.pt calibration/ heldout/ digits.int8.pt [BITS [EPOCHS]]
//
// Each folder holds x.npy (f32, the first dimension counting samples) and labels.npy (i64).
#include <jitquant.hpp>

#include <torch/script.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <numbers>
#include <regex>
#include <sstream>

// Weights of `bits` bits, activations of eight.
static std::string qconfig(int bits, const std::string &rounding = "auto") {
  int half = 1 << (bits - 1);
  return "[default.activation]\nobserver = \"moving-average-min-max\"\n"
         "[default.weight]\nobserver = \"per-channel-min-max\"\ndtype = \"i8\"\nquant-min = " +
         std::to_string(-half) + "\nquant-max = " + std::to_string(half - 1) + "\n[methods]\nrounding = \"" + rounding +
         "\"\n";
}

static at::Tensor read_npy(const std::string &path, const std::string &descr, at::ScalarType type) {
  std::ifstream file(path, std::ios::binary);
  char magic[8];
  uint16_t length = 0;
  file.read(magic, sizeof magic).read(reinterpret_cast<char *>(&length), sizeof length);
  std::string header(length, ' ');
  file.read(header.data(), length);
  std::smatch shape;
  TORCH_CHECK(file && header.find(descr) != std::string::npos && header.find("False") != std::string::npos &&
                  std::regex_search(header, shape, std::regex("'shape': \\(([^)]*)\\)")),
              path, ": not a .npy array of ", descr, " in C order");
  std::vector<int64_t> sizes;
  std::istringstream numbers(shape[1].str());
  for (std::string number; std::getline(numbers, number, ',');)
    if (number.find_first_of("0123456789") != std::string::npos)
      sizes.push_back(std::stoll(number));
  at::Tensor tensor = at::empty(sizes, type);
  file.read(static_cast<char *>(tensor.mutable_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  TORCH_CHECK(file, path, ": shorter than its header says");
  return tensor;
}

struct Digits {
  at::Tensor x, labels;

  explicit Digits(const std::string &folder)
      : x(read_npy(folder + "/x.npy", "<f4", at::kFloat)), labels(read_npy(folder + "/labels.npy", "<i8", at::kLong)) {}
};

static double accuracy(torch::jit::Module model, const Digits &digits) {
  torch::NoGradGuard no_gradients;
  at::Tensor found = model.forward({digits.x}).toTensor().argmax(1);
  return 100 * found.eq(digits.labels).to(at::kDouble).mean().item<double>();
}

// Trains what `qat` says; batch norms learn their statistics in the first half and keep them in the second one.
static void train(jitquant::QatModule &qat, const Digits &digits, int epochs) {
  const double rate = 2e-3;
  torch::optim::SGD optimizer(qat.parameters(), torch::optim::SGDOptions(rate).momentum(0.9));
  torch::jit::Module module = qat.module();
  for (int epoch = 0; epoch < epochs; ++epoch) {
    module.train();
    qat.freeze_batch_norms(2 * epoch >= epochs);
    static_cast<torch::optim::SGDOptions &>(optimizer.param_groups()[0].options())
        .lr(rate * 0.5 * (1 + std::cos(std::numbers::pi * epoch / epochs)));
    double total = 0;
    for (const at::Tensor &batch : at::randperm(digits.x.size(0), at::kLong).split(25)) {
      optimizer.zero_grad();
      at::Tensor logits = module.forward({digits.x.index_select(0, batch)}).toTensor();
      at::Tensor loss = at::cross_entropy_loss(logits, digits.labels.index_select(0, batch));
      loss.backward();
      optimizer.step();
      total += loss.item<double>() * static_cast<double>(batch.size(0)) / static_cast<double>(digits.x.size(0));
    }
    std::cout << "epoch " << epoch + 1 << ": loss " << total << "\n";
  }
  module.eval();
}

static void run(const std::string &model_path, const Digits &calibration, const Digits &heldout,
                const std::string &out_path, int bits, int epochs) {
  torch::manual_seed(1);
  torch::jit::Module model = torch::jit::load(model_path, at::kCPU);
  auto quantizer = jitquant::Quantizer::static_ptq().qconfig(qconfig(bits));
  // Unchecked: the check would leave in float what two bits ruin, and that is what is to be seen here.
  quantizer.check(false);
  auto [post_training, report] = quantizer.quantize(model, std::vector<at::Tensor>{calibration.x});
  auto to_nearest = jitquant::Quantizer::static_ptq().qconfig(qconfig(bits, "nearest")).check(false);
  auto [nearest, nearest_report] = to_nearest.quantize(model, std::vector<at::Tensor>{calibration.x});

  auto qat = quantizer.prepare_qat(model);
  qat.calibrate(calibration.x);
  qat.choose_ranges(jitquant::Data().calibrate(calibration.x));
  qat.fake_quantize(true);
  train(qat, calibration, epochs);
  qat.observe(false);
  auto [trained, trained_report] = qat.convert();
  trained.save(out_path);

  std::cout << "accuracy on " << heldout.x.size(0) << " held-out digits, " << bits
            << "-bit weights and 8-bit activations\n"
            << "float                       " << accuracy(model, heldout) << " %\n"
            << "each weight to the nearest  " << accuracy(nearest, heldout) << " %\n"
            << "post-training quantization  " << accuracy(post_training, heldout) << " %\n"
            << "after " << epochs << " epochs             " << accuracy(torch::jit::load(out_path, at::kCPU), heldout)
            << " %\n";
}

int main(int argc, char **argv) {
  int bits = argc > 5 ? std::atoi(argv[5]) : 2;
  int epochs = argc > 6 ? std::atoi(argv[6]) : 12;
  if (argc < 5 || argc > 7 || bits < 2 || bits > 8 || epochs < 1) {
    std::cerr << "usage: qat-cpp MODEL.pt CALIBRATION/ HELDOUT/ OUT.pt [BITS [EPOCHS]]\n";
    return 2;
  }
  try {
    run(argv[1], Digits(argv[2]), Digits(argv[3]), argv[4], bits, epochs);
  } catch (const c10::Error &e) {
    std::cerr << e.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception &e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}

// Runs an INT8 model as an application does that knows of jitquant's passes only by JITQUANT_PASSES: under the
// profiling executor or the simple one, frozen or not, from one thread or many.
//
//   executor libjitquant.so MODEL.pt FLAVOUR THREADS ROUNDS
//
// FLAVOUR: plain, frozen, optimized (optimize_for_inference), simple (the simple executor), inference (inference mode).
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <dlfcn.h>
#include <iostream>
#include <thread>

// Operators of a graph by namespace, those in parts that run as Programs among them.
struct Operators {
  size_t native = 0, stock = 0;

  void count(const torch::jit::Graph &graph) {
    for (auto *node : graph.nodes()) {
      std::string kind = node->kind().toQualString();
      if (node->hasAttribute(torch::jit::attr::Subgraph)) {
        count(*node->g(torch::jit::attr::Subgraph));
        continue;
      }
      native += kind.rfind("jitquant::", 0) == 0;
      stock += kind.rfind("quantized::", 0) == 0;
    }
  }
};

int main(int argc, char **argv) {
  if (argc < 6 || dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << "cannot open the library: " << dlerror() << "\n";
    return 1;
  }
  std::string flavour = argv[3];
  torch::jit::getExecutorMode() = flavour != "simple";
  std::optional<c10::InferenceMode> inference;
  if (flavour == "inference")
    inference.emplace();
  torch::jit::Module model = torch::jit::load(argv[2]);
  model.eval();
  if (flavour == "frozen")
    model = torch::jit::freeze(model);
  if (flavour == "optimized")
    model = torch::jit::optimize_for_inference(model);
  torch::manual_seed(1);
  at::Tensor x = torch::rand({4, 1, 28, 28});
  at::Tensor want = model.forward({x}).toTensor().clone();
  int rounds = std::atoi(argv[5]);
  std::vector<std::thread> threads;
  std::vector<double> differences(std::atoi(argv[4]));
  for (size_t i = 0; i < differences.size(); ++i)
    threads.emplace_back([&, i] {
      std::optional<c10::InferenceMode> mode;
      if (flavour == "inference")
        mode.emplace();
      torch::jit::getExecutorMode() = flavour != "simple";
      for (int round = 0; round < rounds; ++round) {
        double difference = (model.forward({x}).toTensor() - want).abs().max().item<double>();
        differences[i] = std::max(differences[i], difference);
      }
    });
  for (auto &thread : threads)
    thread.join();
  std::cout << "largest difference " << *std::max_element(differences.begin(), differences.end()) << " of "
            << want.abs().max().item<double>() << "\n";
  // Each thread remembers its own.
  model.forward({x});
  Operators operators;
  operators.count(*torch::jit::lastExecutedOptimizedGraph());
  std::cout << "native " << operators.native << ", stock " << operators.stock << "\n";
}

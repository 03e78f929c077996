// Runs one model in many threads under libtorch's executors and compares every result with the first one's.
//
//   app MODEL MODE SECONDS THREADS
//
// MODE is words joined by '+': simple (the simple executor; without it the profiling one), frozen, optimized
// (optimize_for_inference), inference (InferenceMode), accelerated (jq_accelerate), passes (the passes that run while
// libtorch optimizes a graph). On stdout: the calls made, and the results that differed; ends with 1 where any did.
#include <jitquant.hpp>

#include <ATen/Parallel.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/profiling_graph_executor_impl.h>
#include <torch/script.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <optional>
#include <thread>

static bool close(const at::Tensor &a, const at::Tensor &b, double tolerance) {
  return a.sizes() == b.sizes() && (a - b).abs().max().item<double>() <= tolerance;
}

int main(int argc, char **argv) try {
  TORCH_CHECK(argc == 5, "usage: app MODEL MODE SECONDS THREADS");
  const std::string mode = "+" + std::string(argv[2]) + "+";
  const auto is = [&](const char *word) { return mode.find("+" + std::string(word) + "+") != std::string::npos; };
  const double seconds = std::stod(argv[3]);
  const int threads = std::stoi(argv[4]);
  at::set_num_threads(1);

  if (is("simple")) {
    torch::jit::getProfilingMode() = false;
    torch::jit::getExecutorMode() = false;
  }
  torch::jit::Module model = torch::jit::load(argv[1]);
  model.eval();
  const at::Tensor input = torch::randn({2, 1, 28, 28});
  // What the file gives before anything of jitquant's runs it.
  at::Tensor expected;
  {
    torch::NoGradGuard no_grad;
    expected = model.forward({input}).toTensor();
  }
  if (is("passes"))
    jitquant::detail::check(jq_register_passes(JQ_PASS_ACCELERATE | JQ_PASS_PREPACK));
  if (is("accelerated"))
    TORCH_CHECK(jitquant::accelerate(model) > 0, "nothing was accelerated");
  if (is("frozen"))
    model = torch::jit::freeze(model);
  if (is("optimized"))
    model = torch::jit::optimize_for_inference(model);
  // A step of INT8 at the end of the network: kernels may round a sum to the other side.
  const double tolerance = expected.abs().max().item<double>() * 0.05;

  std::atomic<size_t> calls{0}, different{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  const auto serve = [&] {
    std::optional<c10::InferenceMode> inference;
    std::optional<torch::NoGradGuard> no_grad;
    if (is("inference"))
      inference.emplace();
    else
      no_grad.emplace();
    // At least five calls: the profiling executor optimizes at the third.
    for (int i = 0; i < 5 || std::chrono::steady_clock::now() < end; ++i) {
      const at::Tensor output = model.forward({input}).toTensor();
      ++calls;
      if (!close(output, expected, tolerance))
        ++different;
    }
  };
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back(serve);
  for (auto &thread : pool)
    thread.join();
  std::cout << "calls: " << calls << "\ndifferent: " << different << std::endl;
  return different == 0 ? 0 : 1;
} catch (const std::exception &error) {
  std::cerr << error.what() << std::endl;
  return 2;
}

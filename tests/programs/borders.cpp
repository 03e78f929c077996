// What a careless C++ program may do at the borders of jitquant: one thing a run, by name. Prints "ok" where it ended
// well.
#include <jitquant.hpp>

#include <ATen/Parallel.h>
#include <torch/script.h>

#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <iostream>
#include <map>
#include <thread>

namespace jit = torch::jit;

#define EXPECT(condition) TORCH_CHECK(condition, "line ", __LINE__, ": not so: " #condition)

static jit::Module model() {
  torch::manual_seed(7);
  jit::Module net("Net");
  net.register_parameter("weight", torch::randn({64, 64}), false);
  net.register_attribute("training", c10::BoolType::get(), false);
  net.define("def forward(self, x):\n    return torch.linear(x, self.weight)\n");
  return net;
}

static jitquant::Quantizer quantizer() { return jitquant::Quantizer::static_ptq(); }

static at::Tensor batch() { return torch::randn({256, 64}); }

static jitquant::Converted quantize() { return quantizer().quantize(model(), std::vector<at::Tensor>{batch()}); }

// The call throws a c10::Error that says `part`.
template <class Call> static void refused(const std::string &part, Call &&call) {
  std::string said = "nothing was thrown";
  try {
    call();
  } catch (const c10::Error &e) {
    said = e.what_without_backtrace();
  }
  TORCH_CHECK(said.find(part) != std::string::npos, "'", said, "' does not say '", part, "'");
}

static void empty_modules() {
  jit::Module none, net = model();
  const jitquant::QConfigDict qconfigs{{"", std::make_tuple(none, none)}}, of_net{{"", std::nullopt}};
  const char *empty = "the torch::jit::Module is empty";
  auto quantizer = ::quantizer();
  refused(empty, [&] { quantizer.inspect(none); });
  refused(empty, [&] { quantizer.prepare(none); });
  refused(empty, [&] { quantizer.prepare_qat(none); });
  refused(empty, [&] { quantizer.resume(none); });
  refused(empty, [&] { quantizer.resume_qat(none); });
  refused(empty, [&] { quantizer.only_faster(none, jitquant::Data()); });
  refused(empty, [&] { jitquant::accelerate(none); });
  refused(empty, [&] { jitquant::to_native(none); });
  refused(empty, [&] { jitquant::FoldConvBatchNorm(none); });
  refused(empty, [&] { jitquant::Finalize(none); });
  refused(empty, [&] { jitquant::FinalizeOnDevicePTQ(none, jit::QuantType::DYNAMIC, "forward"); });
  refused(empty, [&] { jitquant::DedupModuleUses(none); });
  refused(empty, [&] { jitquant::FoldQuantizedPrepackingOps(none); });
  refused(empty, [&] { jitquant::InsertObservers(none, "forward", of_net, false); });
  refused(empty, [&] { jitquant::InsertObservers(net, "forward", qconfigs, false); });
  refused(empty, [&] { jitquant::InsertQuantDeQuant(none, "forward", false, false); });
}

// Names that are no UTF-8, which Rust's texts are.
static void odd_names() {
  jit::Module net = model();
  net.register_attribute("\xff", c10::IntType::get(), 3);
  refused("does not have an attribute", [&] { quantizer().inspect(net); });
}

static void moved_objects() {
  auto used = quantizer(), taken = std::move(used);
  refused("'quantizer' is null", [&] { used.prepare(model()); });
  refused("'quantizer' is null", [&] { used.on_progress(nullptr); });
  refused("'quantizer' is null", [&] { used.cancel(); });
  auto prepared = taken.prepare(model()), other = std::move(prepared);
  refused("'prepared' is null", [&] { prepared.calibrate(batch()); });
  refused("'prepared' is null", [&] { prepared.convert(); });
  refused("'prepared' is null", [&] { prepared.module(); });
  // What was assigned to keeps nothing of what it was before, and leaves nothing of it behind.
  auto watched = quantizer();
  watched.on_progress([](const std::string &, size_t, size_t) { return true; });
  watched = std::move(taken);
  refused("'quantizer' is null", [&] { taken.prepare(model()); });
  watched.prepare(model());
}

static void callbacks() {
  jit::Module net = model();
  auto quantizer = ::quantizer(), other = ::quantizer();
  auto prepared = other.prepare(net);
  const auto handle = jitquant::detail::share(net);
  size_t asked = 0;
  quantizer.on_progress([&](const std::string &, size_t, size_t) {
    const char *busy = "called from a callback";
    refused(busy, [&] { other.inspect(net); });
    refused(busy, [&] { other.prepare(net); });
    refused(busy, [&] { prepared.calibrate(batch()); });
    refused(busy, [&] { prepared.convert(); });
    jitquant::detail::StringsHandle text;
    EXPECT(jq_module_graph(handle.get(), "forward", text.out()) == JQ_ERROR_BUSY);
    EXPECT(jq_module_save(handle.get(), "/dev/null") == JQ_ERROR_BUSY);
    EXPECT(jq_module_methods(handle.get(), text.out()) == JQ_OK);
    ++asked;
    // Another function from now on, set by this one.
    quantizer.on_progress([&](const std::string &, size_t, size_t) { return ++asked > 0; });
    return true;
  });
  quantizer.prepare(net);
  EXPECT(asked > 3);
  // Afterwards all is as ever.
  other.inspect(net);
}

// Its destructor runs after those of what the library keeps for a thread, which was used later.
struct AtThreadsEnd {
  ~AtThreadsEnd() {
    jq_quantizer *quantizer = nullptr;
    jq_report *report = nullptr;
    const bool as_ever = jq_module_load("/nowhere.pt", nullptr) == JQ_ERROR_ARGUMENT &&
                         jq_quantizer_new(JQ_STATIC, &quantizer) == JQ_OK &&
                         jq_quantizer_inspect(quantizer, nullptr, &report) == JQ_ERROR_ARGUMENT &&
                         jq_quantizer_free(quantizer) == JQ_OK && std::string(jq_last_error()).empty();
    if (!as_ever)
      std::abort();
  }
};

static void ending_threads() {
  std::thread([] {
    static thread_local AtThreadsEnd last;
    (void)&last;
    refused("/nowhere.pt", [] { jitquant::load("/nowhere.pt"); });
    quantize();
  }).join();
}

static void forked_children() {
  quantize();
  pid_t child = fork();
  if (child == 0) {
    alarm(120);
    try {
      quantize();
    } catch (...) {
      _exit(1);
    }
    // One thread, until the child says otherwise.
    _exit(at::get_num_threads() == 1 ? 0 : 2);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void refused_batches() {
  auto prepared = quantizer().prepare(model());
  refused("shapes cannot be multiplied", [&] { prepared.calibrate(torch::randn({64, 63})); });
  refused("no batch was taken in", [&] { prepared.convert(); });
  refused("no activation has a range", [&] { quantizer().prepare_qat(model()).convert(); });
}

int main(int, char **arguments) {
  const std::map<std::string, std::function<void()>> all{
      {"empty modules", empty_modules},     {"odd names", odd_names},
      {"moved objects", moved_objects},     {"callbacks", callbacks},
      {"ending threads", ending_threads},   {"forked children", forked_children},
      {"refused batches", refused_batches},
  };
  all.at(arguments[1])();
  std::cout << "ok\n";
}

// What include/jitquant.hpp promises: libtorch's signatures, results and exceptions. Prints "ok" at the end.
#include <jitquant.hpp>

#include <torch/csrc/jit/ir/irparser.h>
#include <torch/csrc/jit/passes/fold_conv_bn.h>
#include <torch/csrc/jit/passes/fuse_linear.h>
#include <torch/csrc/jit/passes/quantization/dedup_module_uses.h>
#include <torch/csrc/jit/passes/quantization/finalize.h>
#include <torch/csrc/jit/passes/quantization/fusion_passes.h>
#include <torch/csrc/jit/passes/quantization/insert_quant_dequant.h>
#include <torch/script.h>

#include <algorithm>
#include <iostream>

namespace jit = torch::jit;

// The same types, so a program moves over by changing the namespace.
static_assert(std::is_same_v<decltype(jitquant::InsertObservers), decltype(jit::InsertObservers)>);
static_assert(std::is_same_v<decltype(jitquant::InsertQuantDeQuant), decltype(jit::InsertQuantDeQuant)>);
static_assert(
    std::is_same_v<decltype(jitquant::InsertObserversForOnDevicePTQ), decltype(jit::InsertObserversForOnDevicePTQ)>);
static_assert(
    std::is_same_v<decltype(jitquant::InsertQuantDeQuantOnDevicePTQ), decltype(jit::InsertQuantDeQuantOnDevicePTQ)>);
static_assert(std::is_same_v<decltype(jitquant::FinalizeOnDevicePTQ), decltype(jit::FinalizeOnDevicePTQ)>);
static_assert(std::is_same_v<decltype(jitquant::Finalize), decltype(jit::Finalize)>);
static_assert(std::is_same_v<decltype(jitquant::FoldConvBatchNorm), decltype(jit::FoldConvBatchNorm)>);
static_assert(std::is_same_v<decltype(jitquant::DedupModuleUses), decltype(jit::DedupModuleUses)>);
static_assert(std::is_same_v<decltype(jitquant::RegisterPrePackParams), decltype(jit::RegisterPrePackParams)>);

static_assert(std::is_same_v<decltype(jitquant::FuseLinear), decltype(jit::FuseLinear)>);
static_assert(std::is_same_v<decltype(jitquant::ReplicateQuant), decltype(jit::ReplicateQuant)>);
static_assert(std::is_same_v<decltype(jitquant::ReplicateDeQuant), decltype(jit::ReplicateDeQuant)>);
static_assert(std::is_same_v<decltype(jitquant::FuseQuantizedAddRelu), decltype(jit::FuseQuantizedAddRelu)>);
static_assert(std::is_same_v<decltype(jitquant::QuantFusion), decltype(jit::QuantFusion)>);
static_assert(
    std::is_same_v<decltype(jitquant::FoldQuantizedPrepackingOps), decltype(jit::FoldQuantizedPrepackingOps)>);

#define EXPECT(condition) TORCH_CHECK(condition, "line ", __LINE__, ": not so: " #condition)

template <class Call> static std::string message_of(Call &&call) {
  try {
    call();
  } catch (const c10::Error &e) {
    return e.what_without_backtrace();
  }
  return "nothing was thrown";
}

static bool says(const std::string &text, const char *part) {
  if (text.find(part) == std::string::npos)
    std::cerr << text << "\n";
  return text.find(part) != std::string::npos;
}

// An observer of the program's own.
static jit::Module observer(int64_t dtype) {
  jit::Module module("Range");
  module.register_buffer("low", torch::zeros({}));
  module.register_buffer("high", torch::zeros({}));
  module.register_attribute("dtype", c10::IntType::get(), dtype);
  module.register_attribute("qscheme", c10::IntType::get(), int64_t(0));
  module.define(R"(
    def forward(self, x):
        self.low = torch.minimum(self.low, torch.min(x))
        self.high = torch.maximum(self.high, torch.max(x))
        return x
    def reset_min_max_vals(self):
        self.low = torch.zeros([])
        self.high = torch.zeros([])
    def calculate_qparams(self):
        scale = torch.div(torch.sub(self.high, self.low), 200.0)
        return scale, torch.zeros([1], dtype=3)
  )");
  return module;
}

static jit::Module model() {
  torch::manual_seed(7);
  jit::Module linear("torch.nn.modules.linear.Linear");
  linear.register_parameter("weight", torch::randn({3, 8}), false);
  linear.register_parameter("bias", torch::randn({3}), false);
  linear.define("def forward(self, x):\n    return torch.linear(x, self.weight, self.bias)\n");
  jit::Module net("Net");
  net.register_module("fc", linear);
  net.register_attribute("training", c10::BoolType::get(), false);
  net.define("def forward(self, x):\n    return self.fc.forward(x)\n");
  return net;
}

static std::vector<std::string> observers(const jit::Module &module) {
  std::vector<std::string> paths;
  for (const auto &part : module.named_modules())
    if (part.name.find("_observer_") != std::string::npos)
      paths.push_back(part.name);
  std::sort(paths.begin(), paths.end());
  return paths;
}

static std::string changed(void (*pass)(std::shared_ptr<jit::Graph> &), const std::string &body) {
  auto graph = std::make_shared<jit::Graph>();
  jit::parseIR("graph(%x : Tensor, %w : Tensor, %b : Tensor, %s : float, %z : int, %one : bool):\n" + body,
               graph.get());
  pass(graph);
  graph->lint();
  return graph->toString(false);
}

// The passes over one graph, next to libtorch's.
static void graph_passes() {
  using Pass = void (*)(std::shared_ptr<jit::Graph> &);
  const Pass swap = jitquant::SwapFunctionalLinear, stock_swap = jit::SwapFunctionalLinear;
  const Pass prepack = jitquant::InsertPrepackUnpack, stock_prepack = jit::InsertPrepackUnpack;
  const std::string product = R"(
  %t : Tensor = aten::t(%w)
  %y : Tensor = aten::matmul(%x, %t)
  return (%y))";
  const std::string sum = R"(
  %a : Tensor = quantized::add(%x, %w, %s, %z)
  %y : Tensor = aten::relu(%a)
  return (%y))";
  const std::string twice = R"(
  %f : Tensor = aten::dequantize(%x)
  %r : Tensor = aten::relu(%f)
  %y : Tensor = aten::add(%r, %f, %z)
  return (%y))";
  const std::string branches = R"(
  %j : Tensor = prim::If(%one)
    block0():
      -> (%x)
    block1():
      -> (%w)
  %dtype : int = prim::Constant[value=13]()
  %scale : float = prim::Constant[value=0.5]()
  %zero_point : int = prim::Constant[value=3]()
  %y : Tensor = aten::quantize_per_tensor(%j, %scale, %zero_point, %dtype)
  return (%y))";
  const std::string weight = R"(
  %dtype : int = prim::Constant[value=12]()
  %q : Tensor = aten::quantize_per_tensor(%w, %s, %z, %dtype)
  %f : Tensor = aten::dequantize(%q)
  %y : Tensor = aten::linear(%x, %f, %b)
  return (%y))";
  const std::tuple<Pass, Pass, std::string, const char *> rows[] = {
      {jitquant::FuseLinear, jit::FuseLinear, product, "aten::linear"},
      {swap, stock_swap, product, "aten::matmul"},
      {jitquant::FuseQuantizedAddRelu, jit::FuseQuantizedAddRelu, sum, "quantized::add_relu"},
      {jitquant::ReplicateDeQuant, jit::ReplicateDeQuant, twice, "aten::dequantize"},
      {jitquant::ReplicateQuant, jit::ReplicateQuant, branches, "aten::quantize_per_tensor"},
      {prepack, stock_prepack, weight, "quantized::linear_prepack"},
  };
  const auto kinds = [](const std::string &text) {
    std::vector<std::string> kinds;
    for (size_t at = 0; (at = text.find("::", at)) != std::string::npos; at += 2) {
      const size_t begin = text.find_last_of(" ", at) + 1;
      kinds.push_back(text.substr(begin, text.find_first_of("([", at) - begin));
    }
    std::sort(kinds.begin(), kinds.end());
    return kinds;
  };
  for (const auto &[ours, stock, body, expected] : rows) {
    const std::string text = changed(ours, body);
    EXPECT(text.find(expected) != std::string::npos);
    if (kinds(text) != kinds(changed(stock, body)))
      std::cerr << text << changed(stock, body);
    EXPECT(kinds(text) == kinds(changed(stock, body)));
  }

  std::shared_ptr<jit::Graph> none;
  EXPECT(says(message_of([&] { jitquant::FuseLinear(none); }), "'torch_graph' is an empty pointer"));
}

static void passes() {
  jit::Module net = model();
  jitquant::QConfigDict qconfigs{{"", std::make_tuple(observer(13), observer(12))}};
  jit::Module ours = jitquant::InsertObservers(net, "forward", qconfigs, false);
  jit::Module theirs = jit::InsertObservers(net, "forward", qconfigs, false);
  EXPECT(observers(net).empty() && observers(ours).size() == 3 && observers(ours) == observers(theirs));
  auto x = torch::randn({16, 8});
  EXPECT(torch::equal(ours.forward({x}).toTensor(), net.forward({x}).toTensor()));
  theirs.forward({x});
  ours = jitquant::InsertQuantDeQuant(ours, "forward", false, false);
  theirs = jit::InsertQuantDeQuant(theirs, "forward", false, false);
  auto a = ours.forward({x}).toTensor(), b = theirs.forward({x}).toTensor();
  EXPECT(torch::equal(a, b) && !torch::equal(a, net.forward({x}).toTensor()));
  a = jitquant::Finalize(ours, jit::QuantType::STATIC, {"training"}).forward({x}).toTensor();
  b = jit::Finalize(theirs, jit::QuantType::STATIC, {"training"}).forward({x}).toTensor();
  EXPECT(torch::equal(a, b));
  EXPECT(torch::equal(jitquant::FoldConvBatchNorm(net).forward({x}).toTensor(), net.forward({x}).toTensor()));
  jitquant::DedupModuleUses(net);

  auto dynamic = jit::QuantType::DYNAMIC;
  jit::Module device = jitquant::InsertObserversForOnDevicePTQ(net, "forward", qconfigs, false, dynamic);
  device.get_method("observe_forward")({x});
  device = jitquant::InsertQuantDeQuantOnDevicePTQ(device, "observe_forward", false, false, dynamic);
  device = jitquant::FinalizeOnDevicePTQ(device, dynamic, "quantize_forward");
  EXPECT(device.find_method("quantized_forward") && !net.find_method("quantized_forward"));

  jitquant::QConfigDict float_only{{"", std::nullopt}};
  EXPECT(observers(jitquant::InsertObservers(net, "forward", float_only, true, jit::QuantType::DYNAMIC)).empty());
  EXPECT(says(message_of([&] { jitquant::InsertObservers(net, "backward", qconfigs, false); }), "'backward'"));
  EXPECT(says(message_of([] { jitquant::Quantizer::static_ptq().qconfig("nonsense = 1"); }), "nonsense"));
}

// Two layers, the first with weights that 8 bits for a channel with an outlier spoil.
static void control() {
  torch::manual_seed(5);
  jit::Module net("Net");
  auto first = torch::randn({16, 8});
  first.index_put_({torch::indexing::Slice(), 0}, 60.0);
  net.register_parameter("first", first, false);
  net.register_parameter("second", torch::randn({4, 16}), false);
  net.define("def forward(self, x):\n    return torch.linear(torch.relu(torch.linear(x, self.first)), self.second)\n");
  jitquant::Data data;
  std::vector<int64_t> classes;
  for (int i = 0; i < 8; ++i) {
    auto batch = torch::randn({16, 8});
    batch.select(1, 0).mul_(0.01);
    data.calibrate(batch);
    auto best = net.forward({batch}).toTensor().argmax(1);
    classes.insert(classes.end(), best.data_ptr<int64_t>(), best.data_ptr<int64_t>() + best.numel());
  }
  data.labels(classes);
  auto quantizer = jitquant::Quantizer::static_ptq();
  jitquant::Goal goal;
  EXPECT(says(message_of([&] { quantizer.tune(net, data, goal); }), "goal"));
  goal.min_sqnr_db = 1.0;
  auto easy = quantizer.tune(net, data, goal, 0.2);
  EXPECT(easy.figures.reached && easy.report.layers.empty() && easy.figures.samples == 32);
  EXPECT(easy.figures.sqnr_db > 1 && easy.figures.agreement >= 0 && easy.figures.float_accuracy == 1);
  goal.min_sqnr_db = easy.figures.sqnr_db + 6;
  auto hard = quantizer.tune(net, data, goal, 0.5);
  EXPECT(!hard.report.layers.empty() && hard.figures.sqnr_db > easy.figures.sqnr_db);
  goal.min_sqnr_db = 300;
  auto impossible = quantizer.tune(net, data, goal, 0.05);
  EXPECT(!impossible.figures.reached);
  quantizer.on_progress(
      [](const std::string &stage, size_t, size_t) { return stage.find("float model") == stage.npos; });
  EXPECT(message_of([&] { quantizer.tune(net, data, goal); }) == "cancelled");
  quantizer.on_progress(nullptr);
  EXPECT(says(message_of([&] { quantizer.tune(net, jitquant::Data(), goal); }), "two batches"));
  // Whether INT8 is faster at all for layers this small depends on the machine.
  size_t left = 0;
  auto answer = message_of([&] { left = jitquant::Quantizer::static_ptq().only_faster(net, data, 16); });
  EXPECT(left <= 1 && (answer == "nothing was thrown" || says(answer, "is faster in INT8")));
  data.measure(torch::randn({16, 8})).labels({1, 2});
  goal.max_drop = 0.1;
  EXPECT(says(message_of([&] { quantizer.tune(net, data, goal); }), "labels"));
}

static void prepacking() {
  jit::Module module("Linear");
  module.register_parameter("weight", torch::randn({1, 2}), false);
  module.define("def first(self, x):\n    return x\n");
  // TorchScript's front end in C++ knows no namespace but aten: the graph is parsed.
  auto graph = std::make_shared<jit::Graph>();
  auto *self = graph->addInput("self")->setType(module.type());
  auto *x = graph->addInput("x");
  auto *weight = graph->insertGetAttr(self, "weight");
  auto constant = [&](const c10::IValue &value) { return graph->insertConstant(value); };
  auto *quantized = graph->insert(c10::Symbol::fromQualString("aten::quantize_per_tensor"),
                                  {weight, constant(0.1), constant(0), constant(c10::kQInt8)});
  auto *packed = graph->insert(c10::Symbol::fromQualString("quantized::linear_prepack"), {quantized, constant({})});
  graph->registerOutput(graph->insert(c10::Symbol::fromQualString("quantized::linear_dynamic"), {x, packed}));
  module.type()->addMethod(module._ivalue()->compilation_unit()->create_function(
      c10::QualifiedName(*module.type()->name(), "quantize_forward"), graph));

  auto throws = [](jit::Node *) -> bool { throw std::runtime_error("not today"); };
  try {
    jitquant::RegisterPrePackParams(module, "quantize_forward", throws, "_p");
    EXPECT(false);
  } catch (const std::runtime_error &e) {
    EXPECT(std::string(e.what()) == "not today");
  }
  EXPECT(module.attributes(false).size() == 1);
  auto is_prepack = [](jit::Node *n) { return n->kind() == c10::Symbol::fromQualString("quantized::linear_prepack"); };
  auto names = jitquant::RegisterPrePackParams(module, "quantize_forward", is_prepack, "_p");
  EXPECT(names == (std::unordered_set<std::string>{"", "_p_quantize_forward_ondevice_ptq_packed_weight_0"}));
  EXPECT(module.hasattr("_p_quantize_forward_ondevice_ptq_packed_weight_0"));
}

static void quantizer() {
  jit::Module net = model();
  std::vector<at::Tensor> batches{torch::randn({16, 8}), torch::randn({16, 8})};
  size_t stages = 0;
  auto count = [&](const std::string &, size_t, size_t total) { return total == 0 || ++stages; };
  auto converted = jitquant::Quantizer::static_ptq().on_progress(count).quantize(net, batches);
  // More than the seven stages of all quantizations: layers are fitted to the data.
  EXPECT(stages > 7 && converted.report.quantized_layers == 1 && converted.report.layers.empty());
  EXPECT(converted.report.operators.size() == 1 && converted.report.operators[0].second == 1);
  auto want = net.forward({batches[0]}).toTensor(), have = converted.module.forward({batches[0]}).toTensor();
  EXPECT((want - have).abs().max().item<float>() < 0.1);

  auto small = jitquant::Quantizer::weight_only().prepare(net).convert();
  EXPECT(small.report.operators.at(0).first == "linear_8bit");
  EXPECT((want - small.module.forward({batches[0]}).toTensor()).abs().max().item<float>() < 0.1);
  EXPECT(says(message_of([] { jitquant::Quantizer::weight_only(3); }), "8 and 4 are accepted"));

  auto quantizer = jitquant::Quantizer::dynamic();
  EXPECT(quantizer.inspect(net).layers.at(0).path == "fc");
  quantizer.on_progress([](const std::string &, size_t, size_t) { return false; });
  EXPECT(message_of([&] { quantizer.prepare(net); }) == "cancelled");
  quantizer.on_progress([](const std::string &stage, size_t, size_t) -> bool { throw std::out_of_range(stage); });
  try {
    quantizer.prepare(net);
    EXPECT(false);
  } catch (const std::out_of_range &e) {
    EXPECT(std::string(e.what()) == "reading the model");
  }
  quantizer.on_progress(nullptr);
  auto prepared = quantizer.prepare(net);
  auto moved = std::move(prepared);
  EXPECT(moved.convert().report.quantized_layers == 1);
}

int main() {
  passes();
  graph_passes();
  control();
  prepacking();
  quantizer();
  std::cout << "ok\n";
}

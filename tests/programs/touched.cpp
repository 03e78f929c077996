// What a program may ask of a module that it loaded, whoever stands between: methods, attributes, train and eval.
//
//   touched MODEL.pt some|all
//
// All: submodules, copies, files, training and other types, too.
#include <torch/script.h>

#include <iostream>
#include <sstream>

int main(int, char **arguments) {
  torch::jit::Module model = torch::jit::load(arguments[1]);
  auto x = torch::ones({1, 1, 12, 12});
  std::cout << "training " << model.is_training() << "\n";
  model.train();
  std::cout << "train " << model.is_training() << "\n";
  model.eval();
  std::cout << "eval " << model.is_training() << "\n";
  std::cout << "classes " << model.attr("classes").toListRef().size() << ", scale " << model.attr("scale").toDouble()
            << "\n";
  std::cout << "version " << model.get_method("version")({}).toInt() << "\n";
  std::cout << "scores " << model.forward({x}).toTensor().numel() << "\n";
  if (std::string(arguments[2]) != "all")
    return 0;
  std::cout << "convolution " << model.attr("conv1").toModule().attr("weight").toTensor().numel() << "\n";
  std::cout << "copies " << model.clone().forward({x}).toTensor().equal(model.deepcopy().forward({x}).toTensor())
            << "\n";
  std::stringstream file;
  model.save(file);
  std::cout << "saved " << torch::jit::load(file).forward({x}).toTensor().numel() << "\n";
  model.train();
  std::cout << "trains " << model.forward({x}).toTensor().numel() << "\n";
  model.eval();
  model.to(at::kBFloat16);
  std::cout << "type " << model.forward({x.to(at::kBFloat16)}).toTensor().scalar_type() << "\n";
}

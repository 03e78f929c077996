// What a program may ask of a module that it loaded, whoever stands between: methods, attributes, train and eval.
//
//   touched MODEL.pt
#include <torch/script.h>

#include <iostream>

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
}

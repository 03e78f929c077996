// A library of one operator, as users of `--library` have them.
#include <ATen/ATen.h>
#include <torch/library.h>

static at::Tensor twice(const at::Tensor &x) { return x * 2; }

TORCH_LIBRARY(jitquant_test_library, library) { library.def("twice(Tensor x) -> Tensor", twice); }

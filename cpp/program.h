// `jitquant::run`: a part of a graph as a Program, see src/pass/program.
#pragma once

#include <ATen/core/stack.h>

#include "torch.h"

namespace jitquant {

struct ConvolutionWeight;
struct LinearWeight;

// What a part is called with.
struct Operands {
  c10::ArrayRef<IValue> values;
};

// Tensors that a part gives.
struct Results {
  std::vector<Tensor> tensors;
};

bool operand_is_plain(const Operands &operands, size_t index);
int32_t operand_type(const Operands &operands, size_t index);
rust::Slice<const int64_t> operand_sizes(const Operands &operands, size_t index);
rust::Slice<const int64_t> operand_strides(const Operands &operands, size_t index);
size_t operand_data(const Operands &operands, size_t index);
int64_t operand_number(const Operands &operands, size_t index);
const ConvolutionWeight &operand_conv(const Operands &operands, size_t index);
const LinearWeight &operand_linear(const Operands &operands, size_t index);
rust::Slice<const float> operand_conv_bias(const Operands &operands, size_t index);
rust::Slice<const float> operand_linear_bias(const Operands &operands, size_t index);
size_t results_add(Results &results, int32_t type, rust::Slice<const int64_t> sizes,
                   rust::Slice<const int64_t> strides);

void keep_program_operators();

} // namespace jitquant

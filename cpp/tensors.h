// Tensors' memory as slices, and Rust's errors as libtorch's.
#pragma once

#include <ATen/core/Tensor.h>

#include "rust/cxx.h"

namespace jitquant {

// Runs Rust code; its errors become libtorch's ValueError.
template <class Call> auto in_rust(Call &&call) {
  try {
    return call();
  } catch (const rust::Error &e) {
    TORCH_CHECK_VALUE(false, e.what());
  }
}

// A contiguous tensor's elements, in the order of its memory.
template <class T> rust::Slice<const T> values(const at::Tensor &x) {
  return {static_cast<const T *>(x.const_data_ptr()), static_cast<size_t>(x.numel())};
}

template <class T> rust::Slice<T> writable(const at::Tensor &x) {
  return {static_cast<T *>(x.mutable_data_ptr()), static_cast<size_t>(x.numel())};
}

} // namespace jitquant

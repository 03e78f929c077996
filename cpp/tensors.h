// Tensors' memory as slices, and Rust's errors as libtorch's.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>

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

// What makes a slice of a tensor, and no other function does: a tensor whose memory can be read here as `size` bytes an
// element, without gaps. Tensors on other devices, meta tensors and fake ones have none.
inline void check_memory(const at::Tensor &x, size_t size) {
  TORCH_CHECK_VALUE(x.defined(), "a tensor is missing");
  TORCH_CHECK_VALUE(x.layout() == c10::kStrided && x.is_cpu(), "a tensor is ", x.toString(), " on ", x.device(),
                    "; a dense one on the CPU is accepted");
  TORCH_CHECK_VALUE(x.element_size() == static_cast<int64_t>(size), "a tensor of ", x.scalar_type(),
                    " where elements of ", size, " bytes are accepted");
  TORCH_CHECK_VALUE(x.numel() == 0 || x.is_non_overlapping_and_dense(), "a tensor of sizes ", x.sizes(),
                    " and strides ", x.strides(), " where one without gaps is accepted");
}

inline void check_data(const void *data, const at::Tensor &x) {
  TORCH_CHECK_VALUE(data || x.numel() == 0, "a tensor of sizes ", x.sizes(),
                    " has no data: it is a meta tensor or a fake one");
}

// A dense tensor's elements, in the order of its memory.
template <class T> rust::Slice<const T> values(const at::Tensor &x) {
  check_memory(x, sizeof(T));
  auto *data = static_cast<const T *>(x.const_data_ptr());
  check_data(data, x);
  return {data, static_cast<size_t>(x.numel())};
}

template <class T> rust::Slice<T> writable(const at::Tensor &x) {
  check_memory(x, sizeof(T));
  auto *data = static_cast<T *>(x.mutable_data_ptr());
  check_data(data, x);
  return {data, static_cast<size_t>(x.numel())};
}

// For the kernels of meta tensors: a tensor of the same sizes, strides and type without data. Another argument may be
// the meta tensor, and this one not.
inline at::Tensor on_meta(const at::Tensor &x) {
  return x.is_meta() ? x : at::empty_strided(x.sizes(), x.strides(), x.options().device(c10::kMeta));
}

} // namespace jitquant

// Names of libtorch's types as the bridge sees them, and how their exceptions become Rust errors.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "rust/cxx.h"

namespace jitquant {

using Graph = torch::jit::Graph;
using Block = torch::jit::Block;
using Node = torch::jit::Node;
using Value = torch::jit::Value;
using Module = torch::jit::Module;
using CompilationUnit = torch::jit::CompilationUnit;
using Code = torch::jit::Code;
using IValue = c10::IValue;
using IValues = std::vector<c10::IValue>;
using Tensor = at::Tensor;

// c10::TypePtr is a smart pointer of its own kind; cxx wants a struct.
struct Type {
  c10::TypePtr ptr;
};

// What deep copies made so far, so that tensors which share memory still do among the copies.
using CopyMemo = c10::IValue::HashIdentityIValueMap;

struct NodeRef;
struct ValueRef;
struct Schema;
struct SourceRange;
struct AttributeInfo;
struct ExtraFile;

// The bridge hands out `const T&`; changing a graph goes through here.
template <class T> T *edit(const T &object) { return const_cast<T *>(&object); }

inline std::string text(rust::Str s) { return std::string(s.data(), s.size()); }

// A name for Rust, whose texts are UTF-8: a host's own names may be anything, and cxx throws where nothing catches it.
inline rust::String readable(const std::string &name) { return rust::String::lossy(name); }

std::vector<Value *> values(rust::Slice<const ValueRef> inputs);
Schema describe(const c10::FunctionSchema &schema);

} // namespace jitquant

namespace rust::behavior {

template <class Try, class Fail> static void trycatch(Try &&func, Fail &&fail) noexcept try {
  func();
} catch (const c10::Error &e) {
  fail(e.what_without_backtrace());
} catch (const std::exception &e) {
  fail(e.what());
} catch (...) {
  fail("libtorch threw something that is not a std::exception");
}

} // namespace rust::behavior

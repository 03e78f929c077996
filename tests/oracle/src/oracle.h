#pragma once

#include <c10/util/Exception.h>

#include "rust/cxx.h"

namespace rust::behavior {
template <class Try, class Fail> static void trycatch(Try &&func, Fail &&fail) noexcept try {
  func();
} catch (const c10::Error &e) {
  fail(e.what_without_backtrace());
} catch (const std::exception &e) {
  fail(e.what());
}
} // namespace rust::behavior

namespace jitquant_oracle {

struct QConfigEntry;
struct Prepacked;

rust::Vec<uint8_t> insert_observers(rust::Slice<const uint8_t> module, rust::Str method,
                                    rust::Slice<const QConfigEntry> qconfigs, bool inplace, bool dynamic);
Prepacked register_prepack_params(rust::Slice<const uint8_t> module, rust::Str method,
                                  rust::Slice<const rust::String> kinds, rust::Str prefix);
rust::Vec<uint8_t> insert_quant_dequant(rust::Slice<const uint8_t> module, rust::Str method, bool dynamic);
rust::Vec<uint8_t> fold_conv_batch_norm(rust::Slice<const uint8_t> module);
void optimize_on_this_thread(bool on);
rust::Vec<uint8_t> dedup_module_uses(rust::Slice<const uint8_t> module);
rust::Vec<uint8_t> insert_observers_on_device(rust::Slice<const uint8_t> module, rust::Str method,
                                              rust::Slice<const QConfigEntry> qconfigs, bool dynamic);
rust::Vec<uint8_t> insert_quant_dequant_on_device(rust::Slice<const uint8_t> module, rust::Str method, bool dynamic);
rust::Vec<uint8_t> finalize_on_device(rust::Slice<const uint8_t> module, rust::Str method, bool dynamic);
rust::Vec<uint8_t> quantize(rust::Slice<const uint8_t> module, rust::Str method, bool dynamic);
rust::Vec<rust::String> optimized(rust::Slice<const uint8_t> module, rust::Slice<const int64_t> sizes);
rust::Vec<uint8_t> finalize(rust::Slice<const uint8_t> module, bool dynamic);

} // namespace jitquant_oracle

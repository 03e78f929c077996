// c10d's TCPStore, as src/distributed uses it.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "torch.h"

namespace jitquant {

struct Store {
  c10::intrusive_ptr<c10d::Store> store;
};

// Connects to the store at the address, after starting to serve it where `serves` says so.
std::unique_ptr<Store> store_open(rust::Str address, uint16_t port, bool serves, uint64_t milliseconds);
// A second connection, for another thread.
std::unique_ptr<Store> store_clone(const Store &store);
void store_set(const Store &store, rust::Str key, rust::Slice<const uint8_t> value);
bool store_has(const Store &store, rust::Str key);
std::unique_ptr<std::vector<uint8_t>> store_get(const Store &store, rust::Str key);
int64_t store_add(const Store &store, rust::Str key, int64_t amount);
void store_delete(const Store &store, rust::Str key);

} // namespace jitquant

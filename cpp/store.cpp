#include "store.h"

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "jitquant/src/distributed/store.rs.h"

namespace jitquant {

std::unique_ptr<Store> store_open(rust::Str address, uint16_t port, bool serves, uint64_t milliseconds) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = serves;
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(milliseconds);
  return std::make_unique<Store>(Store{c10::make_intrusive<c10d::TCPStore>(text(address), options)});
}

std::unique_ptr<Store> store_clone(const Store &store) { return std::make_unique<Store>(Store{store.store->clone()}); }

void store_set(const Store &store, rust::Str key, rust::Slice<const uint8_t> value) {
  store.store->set(text(key), std::vector<uint8_t>(value.begin(), value.end()));
}

bool store_has(const Store &store, rust::Str key) { return store.store->check({text(key)}); }

std::unique_ptr<std::vector<uint8_t>> store_get(const Store &store, rust::Str key) {
  return std::make_unique<std::vector<uint8_t>>(store.store->get(text(key)));
}

int64_t store_add(const Store &store, rust::Str key, int64_t amount) { return store.store->add(text(key), amount); }

void store_delete(const Store &store, rust::Str key) { store.store->deleteKey(text(key)); }

} // namespace jitquant

// What is made of packed parameters, kept beside them.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <iterator>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace jitquant {

// The native form of each packed parameter that was asked for, as long as that lives: repacked once, shared by all.
template <class Packed, class Made> class Shared {
public:
  template <class Make> c10::intrusive_ptr<Made> of(const c10::intrusive_ptr<Packed> &packed, const Make &make) {
    std::lock_guard<std::mutex> turn(mutex_);
    auto found = known_.find(packed.get());
    // An address may come again after its object is gone.
    if (found != known_.end() && !found->second.first.expired())
      return found->second.second;
    for (auto i = known_.begin(); i != known_.end();)
      i = i->second.first.expired() ? known_.erase(i) : std::next(i);
    c10::intrusive_ptr<Made> layer = make();
    known_.insert_or_assign(packed.get(), std::pair(c10::weak_intrusive_ptr<Packed>(packed), layer));
    return layer;
  }

private:
  std::mutex mutex_;
  std::unordered_map<Packed *, std::pair<c10::weak_intrusive_ptr<Packed>, c10::intrusive_ptr<Made>>> known_;
};

} // namespace jitquant

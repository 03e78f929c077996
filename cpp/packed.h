// What src/engine asks of libtorch: threads, and packed parameters in modules.
#pragma once

#include "torch.h"

namespace jitquant {

struct Tasks;

int32_t host_threads();
void host_parallel(size_t count, const Tasks &tasks);

rust::Vec<rust::String> stock_engines();
rust::String stock_engine();
void set_stock_engine(rust::Str name);

// Objects of libtorch's packed-parameter classes.
using Objects = std::vector<c10::intrusive_ptr<c10::ivalue::Object>>;

std::unique_ptr<Objects> objects_new();
size_t objects_collect(Objects &objects, const IValue &value);
rust::String objects_class(const Objects &objects, size_t index);
bool object_is_ours(const Objects &objects, size_t index);
void object_replace(const Objects &objects, size_t index);

void keep_native_layers();
void keep_native_elements();
void keep_native_embeddings();

} // namespace jitquant

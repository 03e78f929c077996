// Observers' operators; what they do stands in src/observer.
#pragma once

#include <c10/core/InferenceMode.h>

#include "torch.h"

namespace jitquant {

void keep_observer_operators();
// While it lives, tensors are made that may be changed whether or not inference mode is on then.
using NormalMode = c10::InferenceMode;
std::unique_ptr<NormalMode> leave_inference_mode();
// The observer's buffers min_val, max_val and (where it has one) histogram; its own are as before the first
// observation.
std::unique_ptr<IValues> observer_take(const Module &observer);

} // namespace jitquant

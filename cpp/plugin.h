// Passes of ours in libtorch's pass manager; what they do stands in src/plugin.
#pragma once

#include "torch.h"

namespace jitquant {

uint32_t pass_register(bool before_fusion, uint32_t pass);
void pass_clear(bool before_fusion, uint32_t registered);

} // namespace jitquant

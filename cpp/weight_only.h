// Linear layers with weights of 8 or 4 bits and float activations: operators over crates/kernels/src/weight_only.
#pragma once

namespace jitquant {

void keep_weight_only_operators();

} // namespace jitquant

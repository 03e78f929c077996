// Observers' operators; what they do stands in src/observer.
#pragma once

namespace jitquant {

void keep_observer_operators();

} // namespace jitquant

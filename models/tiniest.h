// Tiniest of ThalesGroup/scio: 97,530 parameters for CIFAR-10.
#pragma once
#include "models.h"

namespace pupil::models {

// Taps: stem, l1 to l6 (blocks), pooled.
Model make_tiniest(int64_t classes, const nn::Scope&);

std::vector<Entry> tiniests();

}  // namespace pupil::models

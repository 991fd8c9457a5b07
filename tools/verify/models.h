// What the adapters of whole networks share.
#pragma once
#include "../../models/models.h"
#include "case.h"

namespace pupil::verify {

// Hands back the updated buffers and lets the gradients of the parameters be compared.
void finish(Case&, nn::Store&);

}  // namespace pupil::verify

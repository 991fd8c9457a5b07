// What the adapters of whole networks share.
#pragma once
#include "../../models/models.h"
#include "case.h"

namespace pupil::verify {

// Hands back the updated buffers and lets the gradients of the parameters be compared.
void finish(Case&, nn::Store&);

// Builds a network on the parameters of the case, runs in.x through it (attribute train) and hands
// back logits, pre_logits, buffers, gradients, the taps pooled and features, and those that the
// case wants: `prefix` + NAME is the tap NAME, NAME.mean_c and NAME.mean_hw are means of it.
void run_network(Case&, const std::function<models::Model(const nn::Scope&)>& make,
                 const std::string& prefix = "tap.");

// Lets the gradients of parameters that lie in the store under our names be compared under those of
// the case, which are another library's.
void track_translated(Case&, const nn::Store&);

}  // namespace pupil::verify

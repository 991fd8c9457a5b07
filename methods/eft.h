// Arithmetic on logits: a strong model is steered by what fine-tuning changed in a weak one, with
// no training. Emulated fine-tuning (EFT, Mitchell et al. 2024, arXiv 2310.12962; proxy tuning, Liu
// et al. 2024, arXiv 2401.08565) and the other combinations of mlvlab/TransMiter@f58085c.
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

//   proxy          strong_pt + alpha (weak_ft - weak_pt), which is EFT
//   base_change    weak_ft + alpha (strong_pt - weak_pt)
//   ensemble       alpha weak_ft + (1 - alpha) strong_pt
//   self_ensemble  alpha weak_ft + (1 - alpha) weak_pt
enum class LogitMode { proxy, base_change, ensemble, self_ensemble };
LogitMode logit_mode_named(const std::string&);  // InputError with the nearest name

// Logits of the pre-trained and fine-tuned weak and the pre-trained strong model over the same
// classes, each (N, C); the one that the mode does not use may be empty. log_softmax: every input
// goes through it first. Not normalised again.
Tensor eft_logits(const Tensor& weak_pt, const Tensor& weak_ft, const Tensor& strong_pt,
                  LogitMode = LogitMode::proxy, double alpha = 1, bool log_softmax = true);

// teachers (K, N, C), several fine-tuned models -> (N, C): their mean; or weighted for each sample
// by the softmax over k of the largest class probability of teacher k.
Tensor combine_teachers(const Tensor& teachers, bool confidence_weighted = false);

// Dynamic logit fusion (Fan et al. 2024, arXiv 2406.15480): z = strong_pt + alpha (weak_ft_k -
// weak_pt) with, for each sample, one expert k and alpha in [0, 2] that minimise
//   (KL(p || strong) - KL(ft_k || weak))^2 + (KL(strong || p) - KL(weak || ft_k))^2, p = softmax(z)
// summed over the experts k. weak_fts (K, N, C). Search: steps of 0.1, then golden section in the
// best bracket to 1e-3; the smaller alpha on ties. In f64; no gradient.
struct DynamicFusion {
  Tensor logits;              // (N, C) f64
  std::vector<double> alpha;  // of each sample
  std::vector<int64_t> expert;
  std::vector<double> objective;
};
DynamicFusion dynamic_fusion(const Tensor& weak_pt, const Tensor& weak_fts,
                             const Tensor& strong_pt);

}  // namespace pupil::methods

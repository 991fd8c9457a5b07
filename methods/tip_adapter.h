// Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519, equations 5 and 6): zero-shot logits plus votes
// of a cache of few-shot features, no training. With trained keys it is Tip-Adapter-F.
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

struct TipAdapterOptions {
  double alpha = 1, beta = 5.5;  // weight of the cache, sharpness of its kernel
  double logit_scale = 100;      // of the zero-shot part
};

// features (N, d), keys (n, d), head (C, d): all rows of length 1; values (n, C): one-hot or soft
// labels of the keys, a constant. (N, C) = logit_scale f head^T + alpha exp(-beta (1 - f keys^T))
// values.
Tensor tip_adapter_logits(const Tensor& features, const Tensor& keys, const Tensor& values,
                          const Tensor& head, const TipAdapterOptions& = {});

}  // namespace pupil::methods

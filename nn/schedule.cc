#include "optim.h"

namespace pupil::nn {

double Schedule::operator()(int64_t t) const {
  if (t < warmup) return warmup_start + (1 - warmup_start) * double(t) / double(warmup);
  int64_t after = t - warmup;
  switch (kind) {
    case constant:
      return 1;
    case multistep: {
      double factor = 1;
      for (int64_t milestone : milestones)
        if (milestone <= after) factor *= gamma;
      return factor;
    }
    case cosine: {
      double share = double(after) / double(std::max<int64_t>(1, total - warmup));
      return floor + (1 - floor) * 0.5 * (1 + std::cos(2 * M_PI * cycles * share));
    }
  }
  return 1;
}

}  // namespace pupil::nn

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
    case linear:
      return std::max(0.0, 1 - double(after) / double(std::max<int64_t>(1, total - warmup)));
  }
  return 1;
}

double CosineCycles::operator()(int64_t t) const {
  if (t < warmup) return warmup_start + (1 - warmup_start) * double(t) / double(warmup);
  double u = double(after_warmup ? t - warmup : t), cycle = length, peak = 1;
  for (int64_t i = 0; i < limit; i++) {
    if (u < cycle)
      return floor + 0.5 * (peak - floor) * (1 + std::cos(M_PI * std::pow(u / cycle, power)));
    u -= cycle;
    cycle *= length_factor;
    peak *= peak_factor;
  }
  return floor;
}

double OneCycle::between(int64_t t, double initial, double peak, double last) const {
  t = std::min(t, total - 1);
  struct Turn {
    double step, value;
  };
  double top = rise * double(total) - 1;
  std::vector<Turn> turns = {{0, initial}, {top, peak}};
  if (three_phase) turns.push_back({2 * top, initial});
  turns.push_back({double(total) - 1, last});
  size_t k = 1;
  while (k + 1 < turns.size() && double(t) > turns[k].step) k++;
  Turn from = turns[k - 1], to = turns[k];
  double share = (double(t) - from.step) / (to.step - from.step);
  if (cosine) share = 0.5 * (1 - std::cos(M_PI * share));
  return (1 - share) * from.value + share * to.value;
}

double OneCycle::operator()(int64_t t) const { return between(t, start, 1, start * end); }
double OneCycle::momentum(int64_t t) const {
  return between(t, high_momentum, low_momentum, high_momentum);
}

}  // namespace pupil::nn

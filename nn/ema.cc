#include <algorithm>

#include "../tensor/launch.h"
#include "../tensor/memory.h"
#include "optim.h"

namespace pupil::nn {

template <class T>
struct MoveTowards {
  T* average;
  const T* weight;
  T share;
  PUPIL_HD void operator()(int64_t i) const {
    average[i] = share == T(1) ? weight[i] : average[i] + share * (weight[i] - average[i]);
  }
};

Ema::Ema(std::vector<Tensor> weights, EmaOptions options)
    : weights_(std::move(weights)), options_(options) {
  ModelScope keep;
  for (const Tensor& w : weights_) {
    PUPIL_CHECK(w.dtype() == DType::f32 || w.dtype() == DType::f64, "ema: weight ", w.name(),
                w.shape(), " is ", name_of(w.dtype()), "; f32 or f64 expected");
    averages_.push_back(w.clone());
  }
}

double Ema::update(int64_t t) {
  const EmaOptions& o = options_;
  double s = double(t - o.after - 1), decay = o.decay;
  if (o.warmup)
    decay = std::clamp(1 - std::pow(1 + s / o.warmup_gamma, -o.warmup_power), o.min_decay, o.decay);
  if (s <= 0) decay = 0;
  for (size_t k = 0; k < weights_.size(); k++) {
    Tensor w = weights_[k].contiguous();
    auto move = [&](auto tag) {
      using T = typename decltype(tag)::type;
      map(w.device(), w.numel(), MoveTowards<T>{averages_[k].data<T>(), w.data<T>(), T(1 - decay)});
    };
    w.dtype() == DType::f64 ? move(tag<double>{}) : move(tag<float>{});
  }
  return decay;
}

void Ema::exchange() {
  for (size_t k = 0; k < weights_.size(); k++) {
    Tensor weight = weights_[k].clone();
    copy_into(weights_[k], averages_[k]);
    copy_into(averages_[k], weight);
  }
}

}  // namespace pupil::nn

#include "eft.h"

#include <algorithm>

#include "../autograd/samples.h"
#include "method.h"

namespace pupil::methods {

LogitMode logit_mode_named(const std::string& name) {
  const std::vector<std::string> names = {"proxy", "base_change", "ensemble", "self_ensemble"};
  for (size_t i = 0; i < names.size(); i++)
    if (names[i] == name) return LogitMode(i);
  fail_input("unknown mode '", name, "'", did_you_mean(name, names));
}

Tensor eft_logits(const Tensor& weak_pt, const Tensor& weak_ft, const Tensor& strong_pt,
                  LogitMode mode, double alpha, bool log_softmax) {
  auto input = [&](const char* what, const Tensor& z) {
    PUPIL_CHECK(z && z.rank() == 2 && z.shape() == weak_ft.shape(), "eft_logits: ", what,
                " must be ", weak_ft.shape(), ", got ", z ? z.shape() : Shape());
    return log_softmax ? pupil::log_softmax(z) : z;
  };
  auto blend = [&](const Tensor& a, const Tensor& b) {  // [eft 3]
    return add(scale(a, alpha), scale(b, 1 - alpha));
  };
  Tensor ft = input("weak_ft", weak_ft);
  switch (mode) {
    case LogitMode::proxy:  // [eft 1]
      return add(input("strong_pt", strong_pt), scale(sub(ft, input("weak_pt", weak_pt)), alpha));
    case LogitMode::base_change:  // [eft 2]
      return add(ft, scale(sub(input("strong_pt", strong_pt), input("weak_pt", weak_pt)), alpha));
    case LogitMode::ensemble:
      return blend(ft, input("strong_pt", strong_pt));
    default:
      return blend(ft, input("weak_pt", weak_pt));
  }
}

Tensor combine_teachers(const Tensor& teachers, bool confidence_weighted) {
  PUPIL_CHECK(teachers.rank() == 3 && teachers.numel() > 0,
              "combine_teachers: (teachers, n, classes) expected, got ", teachers.shape());
  if (!confidence_weighted) return mean(teachers, {0});  // [eft 4]
  int64_t count = teachers.dim(0), n = teachers.dim(1), classes = teachers.dim(2);
  std::vector<double> z = teachers.values(), p = softmax(teachers.detach()).values();
  std::vector<double> out(size_t(n * classes));
  for (int64_t i = 0; i < n; i++) {
    std::vector<double> weight;
    double total = 0;
    for (int64_t k = 0; k < count; k++) {
      auto row = p.begin() + (k * n + i) * classes;
      weight.push_back(std::exp(*std::max_element(row, row + classes)));
      total += weight.back();
    }
    for (int64_t k = 0; k < count; k++)
      for (int64_t j = 0; j < classes; j++)
        out[size_t(i * classes + j)] +=
            weight[size_t(k)] / total * z[size_t((k * n + i) * classes + j)];
  }
  return from(std::span<const double>(out), {n, classes}, teachers.dtype());
}

namespace {

using Row = std::vector<double>;

Row log_probabilities(const double* z, size_t classes) {
  double top = *std::max_element(z, z + classes), sum = 0;
  for (size_t j = 0; j < classes; j++) sum += std::exp(z[j] - top);
  Row row(classes);
  for (size_t j = 0; j < classes; j++) row[j] = z[j] - top - std::log(sum);
  return row;
}

double divergence(const Row& log_p, const Row& log_q) {
  double sum = 0;
  for (size_t j = 0; j < log_p.size(); j++) sum += std::exp(log_p[j]) * (log_p[j] - log_q[j]);
  return sum;
}

struct Minimum {
  double at, value;
};

// The smallest value of f on [0, 2]: a grid of step 0.1, then golden section around its best point.
template <class F>
Minimum search(const F& f) {
  constexpr double kGolden = 0.61803398874989485;
  Minimum best{0, f(0)};
  auto consider = [&](double at) {
    double value = f(at);
    if (value < best.value || (value == best.value && at < best.at)) best = {at, value};
    return value;
  };
  for (int step = 1; step <= 20; step++) consider(0.1 * step);
  double low = std::max(0.0, best.at - 0.1), high = std::min(2.0, best.at + 0.1);
  double a = high - kGolden * (high - low), b = low + kGolden * (high - low);
  double fa = consider(a), fb = consider(b);
  while (high - low > 1e-3) {
    if (fa <= fb) {
      high = b;
      b = a;
      fb = fa;
      fa = consider(a = high - kGolden * (high - low));
    } else {
      low = a;
      a = b;
      fa = fb;
      fb = consider(b = low + kGolden * (high - low));
    }
  }
  return best;
}

}  // namespace

DynamicFusion dynamic_fusion(const Tensor& weak_pt, const Tensor& weak_fts,
                             const Tensor& strong_pt) {
  PUPIL_CHECK(weak_pt.rank() == 2 && weak_pt.shape() == strong_pt.shape() && weak_fts.rank() == 3 &&
                  weak_fts.dim(0) > 0 && weak_fts.dim(1) == weak_pt.dim(0) &&
                  weak_fts.dim(2) == weak_pt.dim(1) && weak_pt.dim(1) > 0,
              "dynamic_fusion: weak ", weak_pt.shape(), ", fine-tuned ", weak_fts.shape(),
              ", strong ", strong_pt.shape());
  int64_t n = weak_pt.dim(0);
  size_t classes = size_t(weak_pt.dim(1)), experts = size_t(weak_fts.dim(0));
  std::vector<double> weak = weak_pt.values(), tuned = weak_fts.values(),
                      strong = strong_pt.values(), fused(weak.size());
  DynamicFusion result;
  for (int64_t i = 0; i < n; i++) {
    const double *large = strong.data() + size_t(i) * classes,
                 *small = weak.data() + size_t(i) * classes;
    Row log_large = log_probabilities(large, classes),
        log_small = log_probabilities(small, classes);
    std::vector<const double*> expert(experts);
    std::vector<double> forward(experts), reverse(experts);  // how far fine-tuning moved expert k
    for (size_t k = 0; k < experts; k++) {
      expert[k] = tuned.data() + (k * size_t(n) + size_t(i)) * classes;
      Row log_tuned = log_probabilities(expert[k], classes);
      forward[k] = divergence(log_tuned, log_small);
      reverse[k] = divergence(log_small, log_tuned);
    }
    auto fuse = [&](size_t k, double alpha) {
      Row z(large, large + classes);
      for (size_t j = 0; j < classes; j++) z[j] += alpha * (expert[k][j] - small[j]);
      return z;
    };
    Minimum best{0, INFINITY};
    size_t chosen = 0;
    for (size_t k = 0; k < experts; k++) {
      Minimum found = search([&](double alpha) {  // [eft 5]
        Row log_p = log_probabilities(fuse(k, alpha).data(), classes);
        double there = divergence(log_p, log_large), back = divergence(log_large, log_p), sum = 0;
        for (size_t t = 0; t < experts; t++)
          sum += (there - forward[t]) * (there - forward[t]) +
                 (back - reverse[t]) * (back - reverse[t]);
        return sum;
      });
      if (found.value < best.value || (found.value == best.value && found.at < best.at)) {
        best = found;
        chosen = k;
      }
    }
    Row z = fuse(chosen, best.at);
    std::copy(z.begin(), z.end(), fused.begin() + i * int64_t(classes));
    result.alpha.push_back(best.at);
    result.expert.push_back(int64_t(chosen));
    result.objective.push_back(best.value);
  }
  result.logits = from(std::span<const double>(fused), weak_pt.shape());
  return result;
}

Method eft_pipeline() {
  Method m;
  m.name = "eft";
  m.summary = "a strong model's logits moved as fine-tuning moved a weak one's, without training";
  m.source = "Mitchell et al. 2024, arXiv 2310.12962; Liu et al. 2024, arXiv 2401.08565";
  m.options = {{"eft.mode", std::string("proxy"), "proxy, base_change, ensemble, self_ensemble",
                "official TransMiter code"},
               {"eft.alpha", 1.0, "strength", "Mitchell et al."},
               {"eft.dynamic", true, "also 5", "Fan et al. 2024, arXiv 2406.15480"},
               {"weak.confidence_weighted", false, "how 4 combines", "official TransMiter code"}};
  m.explanation.symbols = {{"s, s_ft, t", "(N, C)",
                            "log-softmax of the logits of the weak model, the fine-tuned weak "
                            "one, the strong one"}};
  m.explanation.equations = {
      {"1", "proxy (EFT): t + alpha (s_ft - s)"},
      {"2", "base_change: s_ft + alpha (t - s)"},
      {"3", "ensemble: alpha s_ft + (1 - alpha) t; self_ensemble: alpha s_ft + (1 - alpha) s"},
      {"4",
       "several fine-tuned models: mean of logits; confidence_weighted: sum_k w_k z_k, "
       "w = softmax_k(max_c softmax(z_k)_c) of each sample"},
      {"5",
       "dynamic fusion: z = t + alpha (s_ft - s), alpha in [0, 2] of each sample minimises "
       "(KL(p | t) - KL(s_ft | s))^2 + (KL(t | p) - KL(s | s_ft))^2, p = softmax(z)"}};
  m.explanation.cases = {"eft.logits", "transmiter.combine_teachers"};
  return m;
}

PUPIL_SAMPLES(eft_logits) {
  for (auto mode :
       {LogitMode::proxy, LogitMode::base_change, LogitMode::ensemble, LogitMode::self_ensemble})
    for (bool log_softmax : {true, false})
      s.add(concat("mode ", int(mode), log_softmax ? "" : " raw"), {{3, 5}, {3, 5}, {3, 5}},
            [=](auto& v) { return eft_logits(v[0], v[1], v[2], mode, 0.3, log_softmax); });
  s.add_error("other classes", {{3, 5}, {3, 5}, {3, 4}},
              [](auto& v) { return eft_logits(v[0], v[1], v[2]); });
}

}  // namespace pupil::methods

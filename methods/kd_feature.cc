// Feature regression, called KD in the figures of the AFT paper: a linear map of the student's
// features should be the teachers' features, nothing centred or normalised.
#include "../autograd/samples.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {

Tensor kd_feature_loss(const Tensor& phi, const Tensor& psi, const std::vector<nn::Linear>& maps) {
  require_finite("kd_feature", "teacher features", psi);
  int64_t p = 0, q = 0;
  for (const nn::Linear& map : maps) {
    p += map.weight.dim(1);
    q += map.weight.dim(0);
  }
  PUPIL_CHECK(!maps.empty() && phi.rank() == 2 && psi.rank() == 2 && phi.dim(0) == psi.dim(0) &&
                  phi.dim(1) == p && psi.dim(1) == q,
              "kd_feature: student features ", phi.shape(), ", teacher features ", psi.shape(),
              " and maps from ", p, " to ", q, " values do not fit");
  DType dtype = maps[0].weight.dtype();
  Tensor student = to_dtype(phi, dtype), target = psi.detach().to(dtype), total;
  p = q = 0;
  for (const nn::Linear& map : maps) {
    int64_t from = map.weight.dim(1), to = map.weight.dim(0);
    Tensor error = sub(map(slice(student, 1, p, p + from)), slice(target, 1, q, q + to));
    Tensor mse = mean(square(error));  // [kd_feature 1]
    total = total ? add(total, mse) : mse;
    p += from;
    q += to;
  }
  return maps.size() == 1 ? total : scale(total, 1 / double(maps.size()));
}

Method kd_feature_method() {
  Method method;
  method.name = "kd_feature";
  method.summary = "a linear map of the student's features regresses the teachers' features";
  method.source = "Qiu et al. 2024, arXiv 2406.07337, baseline KD";
  method.options = {
      {"beta", 10.0, "strength of the regulariser", "official code: prec"},
      {"modalities", int64_t(1), "above 1: network m of a student A+B regresses teacher m alone"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"V, c", "(q, p), (q)", "trained linear map, uniform +-1 / sqrt(p) at the start"}};
  method.explanation.equations = {
      {"1", "R = 1/(n q) sum (Phi V^T + c - Psi)^2; several modalities: the mean of their R"}};
  method.explanation.cases = {"aft.kd_feature_loss", "aft.trajectory"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta");
    int64_t q = total_width(setup), modalities = options.integer("modalities");
    std::vector<int64_t> widths{setup.student_width}, targets{q};
    std::vector<nn::Linear> maps;
    if (modalities != 1) {
      widths = setup.student_widths;
      targets = setup.teacher_widths;
      if (modalities < 1 || int64_t(widths.size()) != modalities || targets.size() != widths.size())
        fail_input("modalities is ", modalities, ", but the student is of ",
                   std::max<size_t>(widths.size(), 1), " networks and there are ", targets.size(),
                   " teachers; give that many of both, the student's as model = \"A+B\"");
    }
    for (size_t m = 0; m < widths.size(); m++) {
      nn::Scope proj = scope / "proj";
      maps.emplace_back(modalities == 1 ? proj : proj / int(m), widths[m], targets[m]);
    }
    Instance instance;
    instance.groups.push_back(own_group(scope, setup.lr));
    instance.loss = [=](const Step& step) {
      Tensor psi = teacher_features("kd_feature", step);
      return scale(kd_feature_loss(step.student.features, psi, maps), beta);
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(kd_feature) {
  auto map = [](const Tensor& weight, const Tensor& bias) {
    nn::Store store(0, weight.dtype());
    nn::Linear linear(nn::Scope(store), weight.dim(1), weight.dim(0));
    linear.weight = weight;
    linear.bias = bias;
    return linear;
  };
  s.add("one", {{5, 3}, {5, 4}, {4, 3}, {4}},
        [=](auto& v) { return kd_feature_loss(v[0], v[1], {map(v[2], v[3])}); },
        {.bf16 = false, .constants = {1}});
  s.add("two modalities", {{5, 5}, {5, 6}, {4, 3}, {4}, {2, 2}, {2}},
        [=](auto& v) {
          return kd_feature_loss(v[0], v[1], {map(v[2], v[3]), map(v[4], v[5])});
        },
        {.bf16 = false, .constants = {1}});
  s.add_error("rows", {{5, 3}, {4, 4}, {4, 3}, {4}},
              [=](auto& v) { return kd_feature_loss(v[0], v[1], {map(v[2], v[3])}); });
}

}  // namespace pupil::methods

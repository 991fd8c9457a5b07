// Feature regression, called KD in the figures of the AFT paper: a linear map of the student's
// features should be the teachers' features, nothing centred or normalised.
#include "../autograd/samples.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {

Tensor kd_feature_loss(const std::vector<Tensor>& phi, const Tensor& psi,
                       const std::vector<nn::Linear>& maps) {
  PUPIL_CHECK(!maps.empty() && phi.size() == maps.size(), "kd_feature: ", phi.size(),
              " student features for ", maps.size(), " maps");
  require_finite("kd_feature", "teacher features", psi);
  DType dtype = maps[0].weight.dtype();
  Tensor target = psi.detach().to(dtype), total;
  int64_t begin = 0;
  for (size_t m = 0; m < maps.size(); m++) {
    int64_t width = maps[m].weight.dim(0);
    PUPIL_CHECK(phi[m].rank() == 2 && psi.rank() == 2 && phi[m].dim(0) == psi.dim(0) &&
                    phi[m].dim(1) == maps[m].weight.dim(1) && begin + width <= psi.dim(1),
                "kd_feature: student features ", phi[m].shape(), ", teacher features ", psi.shape(),
                " and the map ", maps[m].weight.shape(), " do not fit");
    Tensor error = sub(maps[m](to_dtype(phi[m], dtype)), slice(target, 1, begin, begin + width));
    Tensor mse = mean(square(error));  // [kd_feature 1]
    total = total ? add(total, mse) : mse;
    begin += width;
  }
  PUPIL_CHECK(begin == psi.dim(1), "kd_feature: maps to ", begin, " values for teacher features ",
              psi.shape());
  return maps.size() == 1 ? total : scale(total, 1 / double(maps.size()));
}

Method kd_feature_method() {
  Method method;
  method.name = "kd_feature";
  method.summary = "a linear map of the student's features regresses the teachers' features";
  method.source = "Qiu et al. 2024, arXiv 2406.07337, baseline KD";
  method.options = {{"beta", 10.0, "strength of the regulariser", "official code: prec"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"V, c", "(q, p), (q)", "trained linear map, uniform +-1 / sqrt(p) at the start"}};
  method.explanation.equations = {
      {"1", "R = 1/(n q) sum (Phi V^T + c - Psi)^2; several modalities: the mean of their R"}};
  method.explanation.cases = {"aft.kd_feature_loss", "aft.trajectory"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta");
    nn::Linear proj(scope / "proj", setup.student_width, total_width(setup));
    Instance instance;
    instance.groups.push_back(own_group(scope, setup.lr));
    instance.loss = [=](const Step& step) {
      Tensor psi = teacher_features("kd_feature", step);
      return scale(kd_feature_loss({step.student.features}, psi, {proj}), beta);
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
        [=](auto& v) { return kd_feature_loss({v[0]}, v[1], {map(v[2], v[3])}); },
        {.bf16 = false, .constants = {1}});
  s.add("two modalities", {{5, 3}, {5, 6}, {4, 3}, {4}, {2, 3}, {2}},
        [=](auto& v) {
          return kd_feature_loss({v[0], v[0]}, v[1], {map(v[2], v[3]), map(v[4], v[5])});
        },
        {.bf16 = false, .constants = {1}});
  s.add_error("rows", {{5, 3}, {4, 4}, {4, 3}, {4}},
              [=](auto& v) { return kd_feature_loss({v[0]}, v[1], {map(v[2], v[3])}); });
}

}  // namespace pupil::methods

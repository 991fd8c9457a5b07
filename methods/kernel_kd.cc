// The ablation of AFT with its map on the student's side: similarities of phi W^T + b against those
// of the unweighted teacher features.
#include "../autograd/samples.h"
#include "aft.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {

Tensor kernel_kd_delta(const Tensor& phi, const Tensor& psi, const nn::Linear& proj) {
  PUPIL_CHECK(phi.rank() == 2 && proj.weight.shape() == Shape({phi.dim(1), phi.dim(1)}),
              "kernel_kd: student features ", phi.shape(), " and the map ", proj.weight.shape(),
              " do not fit");
  // [kernel_kd 1]
  return aft_delta(proj(to_dtype(phi, proj.weight.dtype())), psi, {});
}

Method kernel_kd_method() {
  Method method;
  method.name = "kernel_kd";
  method.summary = "AFT with the linear map on the student's side, teacher features unweighted";
  method.source = "Qiu et al. 2024, arXiv 2406.07337, ablation (kkd in the official code)";
  method.options = {{"beta", 10.0, "strength of the regulariser", "official code: prec"},
                    {"s_lr", 1e-2, "learning rate of the map (its weight decay is 0)"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"W, b", "(p, p), (p)",
       "trained linear map, uniform +-1 / sqrt(p) at the start; b has no effect"}};
  method.explanation.equations = {
      {"1", "R = delta of aft between Phi W^T + b and Psi without weights"}};
  method.explanation.cases = {"aft.kernel_kd_loss"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta"), s_lr = above_zero(options, "s_lr");
    total_width(setup);
    nn::Linear proj(scope / "proj", setup.student_width, setup.student_width);
    Instance instance;
    instance.groups.push_back(own_group(scope, s_lr));
    instance.loss = [=](const Step& step) {
      Tensor psi = teacher_features("kernel_kd", step);
      return scale(kernel_kd_delta(step.student.features, psi, proj), beta);
    };
    instance.warnings = idle_warnings(setup);
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(kernel_kd) {
  auto f = [](auto& v) {
    nn::Store store(0, v[2].dtype());
    nn::Linear proj(nn::Scope(store), v[2].dim(1), v[2].dim(0));
    proj.weight = v[2];
    proj.bias = v[3];
    return kernel_kd_delta(v[0], v[1], proj);
  };
  s.add("6x3 6x4", {{6, 3}, {6, 4}, {3, 3}, {3}}, f, {.bf16 = false, .constants = {1}});
  s.add_error("map", {{5, 3}, {5, 4}, {4, 4}, {3}}, f);
}

}  // namespace pupil::methods

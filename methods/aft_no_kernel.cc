// The ablation of AFT without its kernel: a linear map of the teacher features should be the
// student's features up to a shift.
#include "../autograd/samples.h"
#include "baselines.h"
#include "method.h"

namespace pupil::methods {
namespace {

Tensor centred(const Tensor& x) { return sub(x, mean(x, {0}, true)); }

}  // namespace

Tensor aft_no_kernel_loss(const Tensor& phi, const Tensor& psi, const nn::Linear& proj) {
  PUPIL_CHECK(phi.rank() == 2 && psi.rank() == 2 && phi.dim(0) == psi.dim(0) &&
                  proj.weight.shape() == Shape({phi.dim(1), psi.dim(1)}),
              "aft_no_kernel: student features ", phi.shape(), ", teacher features ", psi.shape(),
              " and the map ", proj.weight.shape(), " do not fit");
  require_finite("aft_no_kernel", "teacher features", psi);
  DType dtype = proj.weight.dtype();
  Tensor mapped = proj(psi.detach().to(dtype));  // [aft_no_kernel 1]
  // [aft_no_kernel 2]
  return mean(square(sub(centred(mapped), centred(to_dtype(phi, dtype)))));
}

Method aft_no_kernel_method() {
  Method method;
  method.name = "aft_no_kernel";
  method.summary = "AFT without its kernel: mapped teacher features against the student's";
  method.source = "Qiu et al. 2024, arXiv 2406.07337, ablation";
  method.options = {{"beta", 10.0, "strength of the regulariser", "official code: prec"},
                    {"s_lr", 1e-2, "learning rate of the map (its weight decay is 0)"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"V, c", "(p, q), (p)",
       "trained linear map, uniform +-1 / sqrt(q) at the start; c has no effect"}};
  method.explanation.equations = {
      {"1", "P = Psi V^T + c"},
      {"2", "R = 1/(n p) sum ((P - mean over the batch) - (Phi - mean over the batch))^2"}};
  method.explanation.cases = {"aft.no_kernel_loss"};
  method.make = [](const Options& options, const nn::Scope& scope, const Setup& setup) {
    double beta = at_least_zero(options, "beta"), s_lr = above_zero(options, "s_lr");
    nn::Linear proj(scope / "proj", total_width(setup), setup.student_width);
    Instance instance;
    instance.groups.push_back(own_group(scope, s_lr));
    if (setup.batch == 1)
      instance.warnings.push_back("a batch of 1 leaves the regulariser 0: it centres the batch");
    instance.loss = [=](const Step& step) {
      Tensor psi = teacher_features("aft_no_kernel", step);
      return scale(aft_no_kernel_loss(step.student.features, psi, proj), beta);
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(aft_no_kernel) {
  auto f = [](auto& v) {
    nn::Store store(0, v[2].dtype());
    nn::Linear proj(nn::Scope(store), v[2].dim(1), v[2].dim(0));
    proj.weight = v[2];
    proj.bias = v[3];
    return aft_no_kernel_loss(v[0], v[1], proj);
  };
  s.add("5x3 5x4", {{5, 3}, {5, 4}, {3, 4}, {3}}, f, {.bf16 = false, .constants = {1}});
  s.add_error("rows", {{5, 3}, {4, 4}, {3, 4}, {3}}, f);
}

}  // namespace pupil::methods

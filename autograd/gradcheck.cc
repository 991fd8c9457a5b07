#include <cmath>

#include "../tensor/random.h"
#include "autograd.h"

namespace pupil {
namespace {

double dot(const Tensor& y, const std::vector<double>& w) {
  std::vector<double> v = y.values();
  double sum = 0;
  for (size_t i = 0; i < v.size(); i++) sum += v[i] * w[i];
  return sum;
}

}  // namespace

std::string gradcheck(const Fn& f, std::vector<Tensor> inputs, GradcheckOptions options) {
  for (auto& t : inputs) {
    if (!t.requires_grad()) continue;
    PUPIL_CHECK(t.dtype() == DType::f64, "gradcheck: inputs must be f64, got ", name_of(t.dtype()));
    t = t.clone().requires_grad_();
  }
  Tensor y = f(inputs);
  std::vector<double> projection(size_t(y.numel()));
  for (size_t i = 0; i < projection.size(); i++)
    projection[i] = 2 * double(uniform({0x9c4ec, 0, 0}, int64_t(i))) - 1;
  backward(y, from(projection, y.shape()));
  std::string worst;
  double worst_excess = 1;
  NoGrad no_grad;
  for (size_t k = 0; k < inputs.size(); k++) {
    if (!inputs[k].requires_grad()) continue;
    Tensor gradient = inputs[k].grad();
    std::vector<double> analytic =
        gradient ? gradient.values() : std::vector<double>(size_t(inputs[k].numel()));
    double* x = inputs[k].data<double>();
    int64_t n = inputs[k].numel(), stride = n / options.max_elements + 1;
    for (int64_t i = 0; i < n; i += stride) {
      double saved = x[i];
      x[i] = saved + options.eps;
      double above = dot(f(inputs), projection);
      x[i] = saved - options.eps;
      double below = dot(f(inputs), projection);
      x[i] = saved;
      double numeric = (above - below) / (2 * options.eps), a = analytic[size_t(i)];
      double excess = std::fabs(numeric - a) / (options.atol + options.rtol * std::fabs(numeric));
      if (!(excess <= worst_excess)) {
        worst_excess = std::isnan(excess) ? INFINITY : excess;
        worst = concat("input ", k, " element ", i, ": analytic ", a, ", numeric ", numeric);
      }
    }
  }
  return worst;
}

}  // namespace pupil

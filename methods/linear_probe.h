// Logistic regression on frozen features: the baseline of CLIP (Radford et al. 2021, arXiv
// 2103.00020, section 3.2) with scikit-learn's objective, solved to its one optimum.
#pragma once
#include <functional>

#include "../tensor/ops.h"

namespace pupil::methods {

struct LinearProbe {
  Tensor weight;         // (K, d) f64
  Tensor bias;           // (K) f64, mean 0 up to rounding, since no step leaves it
  double objective = 0;  // at the solution
  double gradient_norm = 0;
  int64_t iterations = 0;
};

struct LinearProbeOptions {
  double c = 1;             // weight of the data against the penalty
  double tolerance = 1e-7;  // of the gradient's norm, relative to that at zero (at least 1)
  int64_t max_iterations = 20000;
};

// Minimises 0.5 |W|^2 + c sum_i CE(W x_i + b, y_i) from zero, in f64, by L-BFGS (Nocedal and Wright
// 2006, algorithm 7.5). features (n, d), labels i64 (n) in 0 ... classes - 1. Throws Error for
// wrong shapes and when the tolerance is not reached.
LinearProbe fit_linear_probe(const Tensor& features, const Tensor& labels, int64_t classes,
                             const LinearProbeOptions& = {});

// c between 1e-7 and 1e7: the best of 1e6, 1e4 ... 1e-6 by accuracy(c), then eight bisection steps
// in log10(c) between a tenth and ten times of it (the code of CoOp, KaiyangZhou/CoOp, has this
// form).
double choose_c(const std::function<double(double c)>& accuracy);

}  // namespace pupil::methods

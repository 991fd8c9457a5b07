#include "linear_probe.h"

#include <deque>

#include "../tensor/lapack.h"
#include "../tensor/launch.h"
#include "method.h"

namespace pupil::methods {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
  return sum;
}

Vector moved(const Vector& from, double step, const Vector& direction) {
  Vector to(from.size());
  for (size_t i = 0; i < to.size(); i++) to[i] = from[i] + step * direction[i];
  return to;
}

// The objective and its gradient at v = [W row by row, b].
struct ProbeObjective {
  Tensor x, labels;  // (n, d) f64; i64 (n)
  int64_t classes;
  double c;

  double operator()(const Vector& v, Vector& gradient) const {
    int64_t n = x.dim(0), d = x.dim(1), k = classes;
    Tensor weight = map_memory(const_cast<double*>(v.data()), {k, d}, DType::f64, nullptr);
    Tensor z = empty({n, k}, DType::f64);
    lapack::product(x, alias(weight, {d, k}, {1, d}), z);
    Vector losses(static_cast<size_t>(n));
    const double* bias = v.data() + k * d;
    const int64_t* label = labels.data<int64_t>();
    double *zs = z.data<double>(), *loss = losses.data(), weight_of_data = c;
    parallel_for(n, n * k * 8, [=](int64_t i) {  // [linear_probe 2]
      double* row = zs + i * k;
      double top = -INFINITY, sum = 0;
      for (int64_t j = 0; j < k; j++) top = std::max(top, row[j] += bias[j]);
      double own = row[label[i]];
      for (int64_t j = 0; j < k; j++) sum += row[j] = std::exp(row[j] - top);
      loss[i] = std::log(sum) + top - own;
      for (int64_t j = 0; j < k; j++) row[j] *= weight_of_data / sum;
      row[label[i]] -= weight_of_data;
    });
    gradient.assign(v.size(), 0);
    Tensor to = map_memory(gradient.data(), {k, d}, DType::f64, nullptr);
    lapack::product(alias(z, {k, n}, {1, k}), x, to);
    double value = 0;
    for (int64_t i = 0; i < n; i++) {
      value += c * losses[size_t(i)];
      for (int64_t j = 0; j < k; j++) gradient[size_t(k * d + j)] += zs[i * k + j];
    }
    for (size_t i = 0; i < size_t(k * d); i++) {
      value += 0.5 * v[i] * v[i];  // [linear_probe 1]
      gradient[i] += v[i];
    }
    return value;
  }
};

// The inverse Hessian of the last steps times -gradient: the two-loop recursion.
struct Memory {
  struct Pair {
    Vector step, change;
    double inverse;  // 1 / <step, change>
  };
  std::deque<Pair> pairs;

  void add(Vector step, Vector change) {
    double product = dot(step, change);
    if (!(product > 0)) return;
    pairs.push_back({std::move(step), std::move(change), 1 / product});
    if (pairs.size() > 20) pairs.pop_front();
  }

  Vector direction(const Vector& gradient) const {
    Vector r = moved(Vector(gradient.size(), 0), -1, gradient);
    Vector weight(pairs.size());
    for (size_t i = pairs.size(); i-- > 0;) {
      weight[i] = pairs[i].inverse * dot(pairs[i].step, r);
      r = moved(r, -weight[i], pairs[i].change);
    }
    double first = pairs.empty()
                       ? 1 / std::sqrt(dot(gradient, gradient))
                       : 1 / (pairs.back().inverse * dot(pairs.back().change, pairs.back().change));
    for (double& value : r) value *= first;
    for (size_t i = 0; i < pairs.size(); i++)
      r = moved(r, weight[i] - pairs[i].inverse * dot(pairs[i].change, r), pairs[i].step);
    return r;
  }
};

}  // namespace

LinearProbe fit_linear_probe(const Tensor& features, const Tensor& labels, int64_t classes,
                             const LinearProbeOptions& o) {
  PUPIL_CHECK(features.rank() == 2 && features.numel() > 0 && labels.rank() == 1 &&
                  labels.dim(0) == features.dim(0) && classes > 0 && o.c > 0,
              "linear_probe: features ", features.shape(), ", labels ", labels.shape(), ", ",
              classes, " classes, c ", o.c);
  ProbeObjective objective{features.detach().to(DType::f64).contiguous(), labels.contiguous(),
                           classes, o.c};
  for (double label : labels.values())
    PUPIL_CHECK(label >= 0 && label < double(classes), "linear_probe: label ", label, " of ",
                classes, " classes");
  int64_t d = features.dim(1);
  Vector v(size_t(classes * d + classes), 0), gradient, next_gradient;
  double value = objective(v, gradient), norm = std::sqrt(dot(gradient, gradient));
  double enough = o.tolerance * norm;
  Memory memory;
  LinearProbe result;
  while (norm > enough) {
    PUPIL_CHECK(result.iterations++ < o.max_iterations, "linear_probe: after ", o.max_iterations,
                " iterations the gradient is ", norm, ", wanted ", enough);
    Vector direction = memory.direction(gradient);
    double slope = dot(direction, gradient);
    // Bisection to a step with the weak Wolfe conditions (Lewis and Overton 2013).
    double low = 0, high = INFINITY, step = 1, next = value;
    double noise = 1e-15 * (1 + std::fabs(value));  // of the objective in f64
    Vector at;
    for (int trial = 0; trial < 60; trial++) {
      at = moved(v, step, direction);
      next = objective(at, next_gradient);
      if (!(next <= value + 1e-4 * step * slope + noise))
        high = step;
      else if (dot(next_gradient, direction) < 0.9 * slope)
        low = step;
      else
        break;
      step = high < INFINITY ? (low + high) / 2 : 2 * low;
    }
    // [linear_probe 3]
    memory.add(moved(at, -1, v), moved(next_gradient, -1, gradient));
    v = std::move(at);
    value = next;
    std::swap(gradient, next_gradient);
    norm = std::sqrt(dot(gradient, gradient));
  }
  std::span<const double> all(v);
  result.weight = from(all.subspan(0, size_t(classes * d)), {classes, d});
  result.bias = from(all.subspan(size_t(classes * d)), {classes});
  result.objective = value;
  result.gradient_norm = norm;
  return result;
}

double choose_c(const std::function<double(double c)>& accuracy) {
  std::map<double, double> known;  // by log10(c): an end of the interval stays for a step
  auto at = [&](double log_c) {
    auto [entry, fresh] = known.try_emplace(log_c, 0);
    if (fresh) entry->second = accuracy(std::pow(10, log_c));
    return entry->second;
  };
  double best = 6;
  for (double log_c = 4; log_c >= -6; log_c -= 2)
    if (at(log_c) > at(best)) best = log_c;
  double left = best - 1, right = best + 1;
  for (int step = 0; step < 8; step++) {  // [linear_probe 4]
    best = at(left) < at(right) ? right : left;
    (best == right ? left : right) = (left + right) / 2;
  }
  return std::pow(10, best);
}

Method linear_probe_pipeline() {
  Method m;
  m.name = "linear_probe";
  m.summary = "logistic regression on frozen features, solved to its one optimum";
  m.source = "Radford et al. 2021, arXiv 2103.00020, section 3.2; objective of scikit-learn";
  m.options = {
      {"linear_probe.c", LinearProbeOptions().c, "weight of the data against the penalty",
       "scikit-learn"},
      {"linear_probe.choose_c", false,
       "also with c chosen on validation shots: up to 4 of a class beyond data.shots", "CoOp"}};
  m.explanation.symbols = {{"x, y", "(n, d), (n)", "features and labels"},
                           {"W, b", "(K, d), (K)", "the classifier, f64"}};
  m.explanation.equations = {
      {"1", "J = |W|^2 / 2 + c sum_i CE(W x_i + b, y_i): a sum, and b is free"},
      {"2", "dJ/dz_i = c (softmax(z_i) - onehot(y_i)), z = x W' + b; dJ/dW adds W"},
      {"3", "L-BFGS from 0 until |dJ| <= 1e-7 of its first value"},
      {"4",
       "c chosen: the best of 1e6, 1e4 ... 1e-6, then 8 times the better end of [c/10, 10c] in "
       "log c, and its half"}};
  m.explanation.cases = {"linear_probe.fit"};
  return m;
}

}  // namespace pupil::methods

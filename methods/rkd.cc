// Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068) as in the AFT code:
//   distance  d^_ij = |f_i - f_j| / mean of those above 0; mean of huber(d^S_ij - d^T_ij)
//   angle     a_ijk = <e_ij, e_ik>, e_ij = (f_j - f_i) / |f_j - f_i|; mean of huber(a^S - a^T)
//   loss      (distance + 2 angle) / 2
// with huber(u) = u^2/2 for |u| < 1, else |u| - 1/2. The derivative of a zero distance is 0.
//
// The fused node uses that a_ijk = (Q_ij + Q_ik - Q_jk) / (2 |..| |..|) with Q_ij = |f_i - f_j|^2:
// the loss is a function of Q alone, so nothing larger than n x n is ever stored, and with
// R = dL/dQ the gradient of row i is sum_j 2 (R_ij + R_ji) (f_i - f_j). Distances and angles are in
// f64: their cancellation would cost f32 half its digits.
#include "../autograd/samples.h"
#include "../tensor/launch.h"
#include "baselines.h"
#include "method.h"
#include "row_loss.h"

namespace pupil::methods {

constexpr double kTiny = 1e-12;  // lower bound of a length that divides

PUPIL_HD inline double huber(double u) {
  double a = u < 0 ? -u : u;
  return a < 1 ? 0.5 * u * u : a - 0.5;
}
PUPIL_HD inline double huber_slope(double u) { return u > 1 ? 1 : u < -1 ? -1 : u; }

template <class T>
struct SquaredDistances {  // Q_ij by exact differences: the diagonal is exactly 0
  const T* f;
  double* q;
  int64_t n, columns;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    const T* a = f + i * columns;
    team.each(n, [&](int64_t j) {
      const T* b = f + j * columns;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < columns; c++) {
        double d = double(a[c]) - double(b[c]);
        sum += d * d;
      }
      q[i * n + j] = sum;
    });
  }
};

// Lengths, their inverses (0 for a zero distance) and, per row, sum and count of those above 0.
struct Lengths {
  const double* q;
  double *length, *inverse, *sum, *count;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    team.each(n, [&](int64_t j) {
      double d = sqrt(q[i * n + j]);
      length[i * n + j] = d;
      inverse[i * n + j] = d > 0 ? 1 / (d > kTiny ? d : kTiny) : 0;
    });
    double total = team.reduce(n, 0.0, Add{}, [&](int64_t j) { return length[i * n + j]; });
    double positive =
        team.reduce(n, 0.0, Add{}, [&](int64_t j) { return length[i * n + j] > 0 ? 1.0 : 0.0; });
    team.each(1, [&](int64_t) {
      sum[i] = total;
      count[i] = positive;
    });
  }
};

struct MeanLength {  // (mean of the positive distances, how many); 1 when there are none
  const double *sum, *count;
  double* out;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t) const {
    double s = team.reduce(n, 0.0, Add{}, [&](int64_t i) { return sum[i]; });
    double c = team.reduce(n, 0.0, Add{}, [&](int64_t i) { return count[i]; });
    team.each(1, [&](int64_t) {
      out[0] = c > 0 ? s / c : 1;
      out[1] = c;
    });
  }
};

// Row i of the loss, and of its derivative by Q up to what the student's mean distance adds.
struct CompareRelations {
  const double *qs, *qt, *ds, *dt, *is, *it;  // squared distances, lengths, inverse lengths
  const double *mean_s, *mean_t;
  double *loss, *slope, *along;  // per row; (n, n): dL/d(d^_ij); per row: sum of slope * length
  double* r;                     // (n, n): the angles' part of dL/dQ
  int64_t n;

  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    double pairs = 1 / (double(n) * double(n)), triples = pairs / double(n);
    double unit_s = 1 / mean_s[0], unit_t = 1 / mean_t[0];
    // [rkd 2]
    double distance = team.reduce(n, 0.0, Add{}, [&](int64_t j) {
      return huber(ds[i * n + j] * unit_s - dt[i * n + j] * unit_t);
    });
    team.each(n, [&](int64_t j) {
      slope[i * n + j] = 0.5 * pairs * huber_slope(ds[i * n + j] * unit_s - dt[i * n + j] * unit_t);
    });
    double dot =
        team.reduce(n, 0.0, Add{}, [&](int64_t j) { return slope[i * n + j] * ds[i * n + j]; });
    // As the first side (i, j) of the angles at i, and as the opposite side of those at every k.
    double angles = team.reduce(n, 0.0, Add{}, [&](int64_t j) {
      double total = 0, side = 0, opposite = 0;
      double qij = qs[i * n + j], tij = qt[i * n + j], sij = is[i * n + j], uij = it[i * n + j];
      const double *qi = qs + i * n, *qj = qs + j * n, *ti = qt + i * n, *tj = qt + j * n;
      const double *si = is + i * n, *sj = is + j * n, *ui = it + i * n, *uj = it + j * n;
      // |..| below kTiny is a constant divisor: then only the numerator moves
      double moves = ds[i * n + j] > kTiny ? sij * sij : 0;
#pragma omp simd reduction(+ : total, side, opposite)
      for (int64_t k = 0; k < n; k++) {
        // [rkd 3]
        double a = 0.5 * (qij + qi[k] - qj[k]) * sij * si[k];
        double u = a - 0.5 * (tij + ti[k] - tj[k]) * uij * ui[k];
        total += huber(u);  // [rkd 4]
        side += huber_slope(u) * (sij * si[k] - a * moves);
        double at_k = 0.5 * (qi[k] + qj[k] - qij) * si[k] * sj[k];
        double v = at_k - 0.5 * (ti[k] + tj[k] - tij) * ui[k] * uj[k];
        opposite -= 0.5 * huber_slope(v) * si[k] * sj[k];
      }
      r[i * n + j] = triples * (side + opposite);
      return total;
    });
    team.each(1, [&](int64_t) {
      loss[i] = 0.5 * pairs * distance + triples * angles;  // [rkd 5]
      along[i] = dot;
    });
  }
};

// M with dL/dphi = M phi: M_ij = -S_ij, M_ii = sum_j S_ij, S = 2 (R + R^T).
struct GradientMatrix {
  const double *length, *inverse, *slope, *r, *mean_s, *along;
  double* m;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    double total = team.reduce(n, 0.0, Add{}, [&](int64_t j) { return along[j]; });
    double mean = mean_s[0], count = mean_s[1];
    double shared = count > 0 ? total / (mean * mean * count) : 0;
    auto by_q = [&](int64_t a, int64_t b) {  // dL/dQ_ab; d|..|/dQ = 1 / (2 |..|)
      int64_t at = a * n + b;
      double d = length[at];
      return r[at] + (d > 0 ? 0.5 * (slope[at] / mean - shared) / d : 0);
    };
    auto pair = [&](int64_t j) { return i == j ? 0.0 : 2 * (by_q(i, j) + by_q(j, i)); };
    double diagonal = team.reduce(n, 0.0, Add{}, [&](int64_t j) { return pair(j); });
    team.each(n, [&](int64_t j) { m[i * n + j] = i == j ? diagonal : -pair(j); });
  }
};

namespace {

struct Relations {  // of one side
  Tensor squared, length, inverse, mean;
  explicit Relations(const Tensor& f) {
    int64_t n = f.dim(0), d = f.dim(1);
    Device device = f.device();
    auto matrix = [&] { return empty({n, n}, DType::f64, device); };
    squared = matrix();
    length = matrix();
    inverse = matrix();
    mean = empty({2}, DType::f64, device);
    Tensor sum = empty({n}, DType::f64, device), count = empty({n}, DType::f64, device);
    dispatch(f.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(device, n, SquaredDistances<T>{f.data<T>(), squared.data<double>(), n, d}, n * d);
    });
    rows(device, n,
         Lengths{squared.data<double>(), length.data<double>(), inverse.data<double>(),
                 sum.data<double>(), count.data<double>(), n},
         n);
    rows(device, 1, MeanLength{sum.data<double>(), count.data<double>(), mean.data<double>(), n});
  }
};

void check(const Tensor& phi, const Tensor& psi) {
  PUPIL_CHECK(phi.rank() == 2 && psi.rank() == 2 && phi.dim(0) == psi.dim(0) && phi.numel() > 0 &&
                  psi.numel() > 0,
              "rkd: student features ", phi.shape(), " and teacher features ", psi.shape(),
              " must be (n, p) and (n, q) with the same n > 0");
  require_finite("rkd", "teacher features", psi);
}

Tensor fused(const Tensor& phi, const Tensor& psi) {
  Tensor f = phi.detach().contiguous();
  int64_t n = f.dim(0);
  Device device = f.device();
  Relations s(f), t(psi.detach().contiguous());
  auto make = [&](const Shape& shape) { return empty(shape, DType::f64, device); };
  Tensor loss = make({n}), along = make({n}), slope = make({n, n}), r = make({n, n});
  Tensor m = make({n, n}), total = make({});
  auto p = [](const Tensor& x) { return x.data<double>(); };
  rows(device, n,
       CompareRelations{p(s.squared), p(t.squared), p(s.length), p(t.length), p(s.inverse),
                        p(t.inverse), p(s.mean), p(t.mean), p(loss), p(slope), p(along), p(r), n},
       8 * n * n);
  rows(device, 1, SumOfRows<double>{p(loss), p(total), n});
  rows(device, n,
       GradientMatrix{p(s.length), p(s.inverse), p(slope), p(r), p(s.mean), p(along), p(m), n}, n);
  DType dtype = acc_dtype(phi.dtype());
  Tensor gradient = m.to(dtype);
  return record("rkd", total.to(dtype), {phi, psi}, [=](Backward& b) {
    b[1].none();  // a teacher is constant
    if (!b[0].needed) return b[0].none();
    // The rows of M add up to 0, so phi may be taken from its mean, where it has the most digits.
    Tensor centred = sub(f.to(dtype), mean(f.to(dtype), {0}, true));
    b[0].give(mul(matmul(gradient, centred), b.gy).to(f.dtype()));
  });
}

Tensor differences(const Tensor& f) {  // (n, n, d): row (i, j) is f_j - f_i
  int64_t n = f.dim(0), d = f.dim(1);
  return sub(view(f, {1, n, d}), view(f, {n, 1, d}));
}

Tensor smooth_l1(const Tensor& a, const Tensor& b) {  // mean of huber(a - b)
  Tensor u = abs(sub(a, b)), low = clamp(u, 0, 1);    // low^2/2 + (u - low)
  return mean(add(scale(square(low), 0.5), sub(u, low)));
}

// [rkd 1]
Tensor relative_distances(const Tensor& f) {
  Tensor d = sqrt(sum(square(differences(f)), {2}));
  double positive = 0;
  for (double value : d.values()) positive += value > 0;
  return positive > 0 ? div(d, scale(sum(d), 1 / positive)) : d;
}

Tensor angles(const Tensor& f) {
  Tensor e = normalize(differences(f), kTiny);
  return matmul(e, e, false, true);  // [rkd 3]
}

}  // namespace

Tensor rkd_distance_plain(const Tensor& phi, const Tensor& psi) {
  check(phi, psi);
  Tensor f = to_dtype(phi, acc_dtype(phi.dtype()));
  // [rkd 2]
  return smooth_l1(relative_distances(f), relative_distances(psi.detach().to(f.dtype())));
}

Tensor rkd_angle_plain(const Tensor& phi, const Tensor& psi) {
  check(phi, psi);
  Tensor f = to_dtype(phi, acc_dtype(phi.dtype()));
  // [rkd 4]
  return smooth_l1(angles(f), angles(psi.detach().to(f.dtype())));
}

Tensor rkd_loss(const Tensor& phi, const Tensor& psi) {
  if (plain_mode())
    return scale(add(rkd_distance_plain(phi, psi), scale(rkd_angle_plain(phi, psi), 2)), 0.5);
  check(phi, psi);
  return fused(phi, psi);
}

Method rkd_method() {
  Method method;
  method.name = "rkd";
  method.summary = "distances and angles between the samples of a batch match the teachers'";
  method.source = "Park et al. 2019, arXiv 1904.05068, weighted as in arXiv 2406.07337";
  method.options = {{"beta", 10.0, "strength of the regulariser", "official code: prec"}};
  method.explanation.symbols = {
      {"Phi", "(n, p)", "student features: what enters its last linear layer"},
      {"Psi", "(n, q)", "teacher features side by side, unscaled; a constant"},
      {"f_i", "", "a row of Phi or of Psi"},
      {"h", "", "h(u) = u^2/2 for |u| < 1, else |u| - 1/2"}};
  method.explanation.equations = {{"1", "d_ij = |f_i - f_j|, divided by the mean of those above 0"},
                                  {"2", "distance = 1/n^2 sum_ij h(d_ij - d'_ij)"},
                                  {"3", "a_ijk = <e_ij, e_ik>, e_ij = (f_j - f_i) / |f_j - f_i|"},
                                  {"4", "angle = 1/n^3 sum_ijk h(a_ijk - a'_ijk)"},
                                  {"5", "R = (distance + 2 angle) / 2"}};
  method.explanation.cases = {"aft.rkd_loss"};
  method.make = [](const Options& options, const nn::Scope&, const Setup& setup) {
    double beta = at_least_zero(options, "beta");
    total_width(setup);
    Instance instance;
    instance.warnings = idle_warnings(setup);
    instance.loss = [=](const Step& step) {
      return scale(rkd_loss(step.student.features, teacher_features("rkd", step)), beta);
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(rkd) {
  auto f = [](auto& v) { return rkd_loss(v[0], v[1]); };
  test::SampleOptions teacher{.constants = {1}};
  s.add("5x3 5x4", {{5, 3}, {5, 4}}, f, teacher);
  s.add("9x40 9x2", {{9, 40}, {9, 2}}, f, teacher);
  s.add("two rows", {{2, 3}, {2, 4}}, f, teacher);
  s.add(
      "plain", {{5, 3}, {5, 4}},
      [](auto& v) { return add(rkd_distance_plain(v[0], v[1]), rkd_angle_plain(v[0], v[1])); },
      teacher);
  s.add_error("rows", {{5, 3}, {4, 4}}, f);
}

}  // namespace pupil::methods

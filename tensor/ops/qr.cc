// Thin A = Q R with diag(R) >= 0, unique for full column rank. With X = R R-bar^T - Q-bar^T Q and C
// the symmetric matrix that has the lower triangle of X: A-bar = (Q-bar + Q C) R^-T (Walter et al.
// 2012). It is linear in (Q-bar, R-bar), so that Q and R each add their part.
#include <cfloat>

#include "../../autograd/samples.h"
#include "../lapack.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"

namespace pupil {
namespace {

// The part of one cotangent; the other is empty.
Tensor qr_gradient(const Tensor& q, const Tensor& r, const Tensor& gq, const Tensor& gr) {
  int64_t n = r.dim(0);
  double least = INFINITY, largest = 0;
  for (int64_t i = 0; i < n; i++) {
    least = std::min(least, r.data<double>()[i * (n + 1)]);
    largest = std::max(largest, r.data<double>()[i * (n + 1)]);
  }
  PUPIL_CHECK(n == 0 || least > double(n) * DBL_EPSILON * largest, "qr: no gradient, the matrix ",
              q.shape(), " lacks full column rank");
  Tensor c;
  if (gq) {
    c = product(transposed(gq), q);
    c = combine({{-1, c}});
  } else {  // r is upper triangular: what lies below the diagonal of gr moves nothing
    Tensor upper = gr.clone();
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < i; j++) upper.data<double>()[i * n + j] = 0;
    c = product(r, transposed(upper));
  }
  double* x = c.data<double>();
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < i; j++) x[j * n + i] = x[i * n + j];
  Tensor sum = product(q, c);
  if (gq) sum = combine({{1, sum}, {1, gq}});
  return lapack::solve_upper_transposed(sum, r);
}

}  // namespace

Qr qr(const Tensor& a) {
  Tensor x = host_matrix("qr", a).to(DType::f64);
  int64_t m = x.dim(0), n = x.dim(1);
  PUPIL_CHECK(m >= n, "qr: at least as many rows as columns expected, got ", a.shape());
  Tensor q = empty({m, n}, DType::f64), r = empty({n, n}, DType::f64);
  if (n > 0) lapack::qr(x, q, r);
  DType dtype = a.dtype();
  Device device = a.device();
  auto part = [=](bool of_q) {
    return [=](Backward& b) {
      Tensor g = host_gradient(b.gy).to(DType::f64);
      b[0].give(qr_gradient(q, r, of_q ? g : Tensor(), of_q ? Tensor() : g).to(dtype).to(device));
    };
  };
  return {record("qr", q.to(dtype).to(device), {a}, part(true)),
          record("qr", r.to(dtype).to(device), {a}, part(false))};
}

PUPIL_SAMPLES(qr) {
  auto both = [](auto& v) {
    Qr f = qr(v[0]);
    return cat({f.q, f.r}, 0);
  };
  auto q = [](auto& v) { return qr(v[0]).q; };
  test::SampleOptions floats{.bf16 = false};
  s.add("square", {{4, 4}}, both, floats);
  s.add("tall", {{7, 3}}, both, floats);
  s.add("q alone", {{5, 3}}, q, floats);
  s.add(
      "r alone", {{5, 3}}, [](auto& v) { return qr(v[0]).r; }, floats);
  s.add(
      "transposed", {{3, 5}},
      [](auto& v) {
        return qr(permute(v[0], {1, 0})).q;
      },
      floats);
  s.add("one element", {{1, 1}}, both, floats);
  s.add("no columns", {{3, 0}}, both, floats);
  s.add_error("wide", {{2, 3}}, q);
  s.add_error("vector", {{3}}, q);
  s.add_error("rank", {{3, 2}}, [](auto& v) {  // two equal columns
    Tensor y = qr(v[0]).q;
    backward(y, y.detach());
    return y;
  });
  s.add_error("a column that vanishes beside the others", {{3, 3}}, [](auto& v) {
    Tensor y = qr(cat({scale(slice(v[0], 1, 0, 1), 1e-18), slice(v[0], 1, 1, 3)}, 1)).q;
    backward(y, y.detach());
    return y;
  });
}

}  // namespace pupil

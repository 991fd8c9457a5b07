// A = U diag(s) V^T. With the singular vectors held constant ds = diag(U^T dA V), so
// A-bar = U diag(s-bar) V^T: no division by s or by differences of s.
#include "../../autograd/samples.h"
#include "../lapack.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"

namespace pupil {

Svd svd(const Tensor& a) {
  Tensor x = host_matrix("svd", a).to(DType::f64);
  int64_t m = x.dim(0), n = x.dim(1), k = std::min(m, n);
  Tensor u = empty({m, k}, DType::f64), s = empty({k}, DType::f64), vt = empty({k, n}, DType::f64);
  if (k > 0) lapack::svd(x, u, s, vt);
  DType dtype = a.dtype();
  Device device = a.device();
  auto result = [&](const Tensor& t) { return t.to(dtype).to(device); };
  const char* why = "the gradient flows through the singular values only";
  return {without_gradient("svd", why, result(u), a),
          record("svd", result(s), {a},
                 [=](Backward& b) {
                   Tensor g = host_gradient(b.gy).to(DType::f64), left = u.clone();
                   double *row = left.data<double>(), *factor = g.data<double>();
                   for (int64_t i = 0; i < m * k; i++) row[i] *= factor[i % k];
                   b[0].give(product(left, vt).to(dtype).to(device));
                 }),
          without_gradient("svd", why, result(vt), a)};
}

PUPIL_SAMPLES(svd) {
  auto values = [](auto& v) { return svd(v[0]).s; };
  test::SampleOptions floats{.bf16 = false};
  s.add("square", {{5, 5}}, values, floats);
  s.add("tall", {{7, 3}}, values, floats);
  s.add("wide", {{3, 6}}, values, floats);
  s.add("product", {{4, 6}, {1}},
        [](auto& v) {
          Svd d = svd(v[0]);
          return mul(matmul(mul(d.u, d.s), d.vt), v[1]);
        },
        {.bf16 = false, .constants = {0}});
  s.add(
      "transposed", {{4, 6}},
      [](auto& v) {
        return svd(permute(v[0], {1, 0})).s;
      },
      floats);
  s.add("one element", {{1, 1}}, values, floats);
  s.add("empty", {{0, 3}}, values, floats);
  s.add_error("vector", {{3}}, values);
  s.add_error("batch", {{2, 3, 3}}, values);
  s.add_error("gradient of u", {{3, 3}}, [](auto& v) {
    Tensor u = svd(v[0]).u;
    backward(u, u.detach());
    return u;
  });
}

}  // namespace pupil

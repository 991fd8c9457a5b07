// A = U H from the SVD: U = U_s V^T, H = V diag(s) V^T, also for zero and equal singular values.
// Newton's iteration (Higham 1986) would be no faster at 1024, by the measured time of its eight
// inverses.
#include "../../autograd/samples.h"
#include "../lapack.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"

namespace pupil {

Polar polar(const Tensor& a) {
  Tensor x = host_matrix("polar", a).to(DType::f64);
  int64_t m = x.dim(0), n = x.dim(1);
  PUPIL_CHECK(m >= n, "polar: at least as many rows as columns expected, got ", a.shape());
  Tensor u = empty({m, n}, DType::f64), h = empty({n, n}, DType::f64);
  if (n > 0) {
    Tensor left = empty({m, n}, DType::f64), s = empty({n}, DType::f64), vt = empty_like(h);
    lapack::svd(x, left, s, vt);
    product_into(u, left, vt);
    Tensor root = vt.clone();  // H = root^T root
    for (int64_t i = 0; i < n * n; i++)
      root.data<double>()[i] *= std::sqrt(s.data<double>()[i / n]);
    product_into(h, transposed(root), root);
  }
  const char* why = "it has no gradient";
  return {without_gradient("polar", why, u.to(a.dtype()).to(a.device()), a),
          without_gradient("polar", why, h.to(a.dtype()).to(a.device()), a)};
}

PUPIL_SAMPLES(polar) {
  auto both = [](const std::vector<Tensor>& v) {  // a gradient for v[1] alone
    Polar p = polar(v[0]);
    return mul(cat({p.u, p.h}, 0), v[1]);
  };
  test::SampleOptions constant{.bf16 = false, .constants = {0}};
  s.add("square", {{5, 5}, {1}}, both, constant);
  s.add("tall", {{7, 3}, {1}}, both, constant);
  s.add(
      "transposed", {{3, 5}, {1}},
      [both](auto& v) {
        return both(std::vector{permute(v[0], {1, 0}), v[1]});
      },
      constant);
  s.add(
      "rank deficient", {{4, 2}, {1}},
      [](auto& v) {  // H is unique all the same
        return mul(polar(cat({v[0], v[0]}, 1)).h, v[1]);
      },
      constant);
  s.add("one element", {{1, 1}, {1}}, both, constant);
  s.add("no columns", {{3, 0}, {1}}, both, constant);
  s.add_error("wide", {{2, 3}, {1}}, both);
  s.add_error("vector", {{3}, {1}}, both);
  s.add_error("gradient", {{3, 3}}, [](auto& v) {
    Tensor u = polar(v[0]).u;
    backward(u, u.detach());
    return u;
  });
}

}  // namespace pupil

// Mezzadri 2007, "How to generate random matrices from the classical compact groups": the Q of
// standard normal numbers, with diag(R) >= 0, is Haar distributed. A reflection becomes a rotation
// by the sign of its first column.
#include "../../autograd/samples.h"
#include "../lapack.h"
#include "../ops.h"
#include "host_matrix.h"

namespace pupil {

Tensor haar(const Tensor& normal) {
  Tensor x = host_matrix("haar", normal).to(DType::f64);
  int64_t n = x.dim(0), k = x.dim(1);
  PUPIL_CHECK(n >= k, "haar: at least as many rows as columns expected, got ", normal.shape());
  Tensor q = empty({n, k}, DType::f64), r = empty({k, k}, DType::f64);
  if (k > 0 && lapack::qr(x, q, r) < 0 && n == k)
    for (int64_t i = 0; i < n; i++) q.data<double>()[i * k] *= -1;
  return without_gradient("haar", "a random rotation has no gradient",
                          q.to(normal.dtype()).to(normal.device()), normal);
}

PUPIL_SAMPLES(haar) {
  auto f = [](auto& v) { return mul(haar(v[0]), v[1]); };  // a gradient for v[1] alone
  test::SampleOptions constant{.bf16 = false, .constants = {0}};
  s.add("square", {{5, 5}, {1}}, f, constant);
  s.add("tall", {{6, 4}, {1}}, f, constant);
  s.add(
      "transposed", {{4, 6}, {1}},
      [](auto& v) {
        return mul(haar(permute(v[0], {1, 0})), v[1]);
      },
      constant);
  s.add("one element", {{1, 1}, {1}}, f, constant);
  s.add("no columns", {{3, 0}, {1}}, f, constant);
  s.add_error("wide", {{3, 4}, {1}}, f);
  s.add_error("vector", {{3}, {1}}, f);
  s.add_error("gradient", {{3, 3}}, [](auto& v) {
    Tensor q = haar(v[0]);
    backward(q, q.detach());
    return q;
  });
}

}  // namespace pupil

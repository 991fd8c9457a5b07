// A X = B by LU with row exchanges. B-bar = A^-T X-bar, A-bar = -B-bar X^T.
#include "../../autograd/samples.h"
#include "../lapack.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"

namespace pupil {

Tensor solve(const Tensor& a, const Tensor& b) {
  require_square("solve", a);
  Tensor left = host_matrix("solve", a), right = host_matrix("solve", b);
  PUPIL_CHECK(left.dtype() == right.dtype() && left.dim(0) == right.dim(0),
              "solve: A and B do not fit: ", name_of(a.dtype()), " ", a.shape(), " and ",
              name_of(b.dtype()), " ", b.shape());
  auto lu = std::make_shared<lapack::Lu>(left);
  PUPIL_CHECK(!lu->singular, "solve: the matrix ", a.shape(), " is singular");
  Tensor x = lu->solve(right).contiguous();
  Tensor saved_x = a.requires_grad() ? x : Tensor();
  Device device = a.device();
  return record("solve", x.to(device), {a, b}, [=](Backward& grad) {
    Tensor gb = lu->solve(host_gradient(grad.gy), true).contiguous();
    if (grad[0].needed)
      grad[0].give(combine({{-1, product(gb, transposed(saved_x))}}).to(device));
    else
      grad[0].none();
    if (grad[1].needed)
      grad[1].give(gb.to(device));
    else
      grad[1].none();
  });
}

PUPIL_SAMPLES(solve) {
  auto f = [](const std::vector<Tensor>& v) {  // + 3 I: far from singular
    int64_t n = v[0].dim(0);
    std::vector<double> shift(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; i++) shift[size_t(i * (n + 1))] = 3;
    return solve(add(v[0], from(shift, {n, n}, v[0].dtype()).to(v[0].device())), v[1]);
  };
  test::SampleOptions floats{.bf16 = false};
  s.add("square", {{4, 4}, {4, 4}}, f, floats);
  s.add("columns", {{5, 5}, {5, 2}}, f, floats);
  s.add(
      "transposed", {{4, 4}, {3, 4}},
      [f](auto& v) {
        return f(std::vector{permute(v[0], {1, 0}), permute(v[1], {1, 0})});
      },
      floats);
  s.add("one element", {{1, 1}, {1, 1}}, f, floats);
  s.add("empty", {{0, 0}, {0, 2}}, f, floats);
  s.add("no columns", {{3, 3}, {3, 0}}, f, floats);
  auto plain = [](auto& v) { return solve(v[0], v[1]); };
  s.add_error("not square", {{3, 4}, {3, 1}}, plain);
  s.add_error("rows", {{3, 3}, {4, 1}}, plain);
  s.add_error("vector", {{3, 3}, {3}}, plain);
  s.add_error("singular", {{3, 3}, {3, 1}}, plain);  // all elements equal
}

}  // namespace pupil

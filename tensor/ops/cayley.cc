// E = (I - A/2)^-1 (I + A/2); the factors commute. A-bar = 1/2 (I - A/2)^-T G (I + E)^T.
#include "../../autograd/samples.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"
#include "matrix_map.h"

namespace pupil {

Cayley::Cayley(const Tensor& a) {
  denominator_.emplace(combine({{-0.5, a}}, 1));
  PUPIL_CHECK(!denominator_->singular, "cayley: I - A/2 of ", a.shape(), " is singular");
  value_ = denominator_->solve(combine({{0.5, a}}, 1)).contiguous();
}

Tensor Cayley::gradient(const Tensor& g) const {
  return denominator_->solve(product(g, transposed(combine({{0.5, value_}}, 0.5))), true)
      .contiguous();
}

Tensor cayley(const Tensor& a) {
  require_square("cayley", a);
  Device device = a.device();
  auto map = std::make_shared<Cayley>(host_matrix("cayley", a));
  Tensor value = map->value().to(device);
  return record("cayley", value, {a}, [map, device](Backward& b) {
    b[0].give(map->gradient(host_gradient(b.gy)).to(device));
  });
}

PUPIL_SAMPLES(cayley) {
  auto f = [](auto& v) { return cayley(v[0]); };
  test::SampleOptions floats{.bf16 = false};
  s.add("square", {{4, 4}}, f, floats);
  s.add(
      "skew", {{5, 5}},
      [](auto& v) {
        return cayley(sub(v[0], permute(v[0], {1, 0})));
      },
      floats);
  s.add("one element", {{1, 1}}, f, floats);
  s.add("empty", {{0, 0}}, f, floats);
  s.add_error("not square", {{2, 3}}, f);
  s.add_error("vector", {{3}}, f);
  s.add_error("singular", {{1, 1}}, [](auto& v) { return cayley(scale(v[0], 4)); });  // A = 2
}

}  // namespace pupil

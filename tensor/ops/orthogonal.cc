// W = (B map(A))[:, :M], A = L - L^T. Closed-form backward: G_E = B^T G_W (zero columns beyond M),
// G_A by the rule of the map, G_x = the strictly lower part of G_A - G_A^T, first M columns.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"
#include "matrix_map.h"

namespace pupil {
namespace {

// The definition in ordinary operations: what PUPIL_PLAIN=1 runs.
Tensor orthogonal_plain(const Tensor& x, const Tensor& base, OrthogonalMap map) {
  int64_t d = x.dim(0), m = x.dim(1);
  Tensor below = zeros({d, m}, DType::f64);
  for (int64_t i = 0; i < d; i++)
    for (int64_t j = 0; j < std::min(i, m); j++) below.data<double>()[i * m + j] = 1;
  Tensor lower = cat(
      {mul(x, below.to(x.dtype()).to(x.device())), zeros({d, d - m}, x.dtype(), x.device())}, 1);
  Tensor a = sub(lower, permute(lower, {1, 0}));
  Tensor e = map == OrthogonalMap::expm ? expm(a) : cayley(a);
  return slice(matmul(base.detach(), e), 1, 0, m);
}

Tensor skew(const Tensor& x) {  // L - L^T, (d, d)
  int64_t d = x.dim(0), m = x.dim(1);
  Tensor a = zeros({d, d}, x.dtype());
  lapack::f64_or_f32(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    for (int64_t i = 0; i < d; i++)
      for (int64_t j = 0; j < std::min(i, m); j++) {
        T value = x.data<T>()[i * m + j];
        a.data<T>()[i * d + j] = value;
        a.data<T>()[j * d + i] = -value;
      }
  });
  return a;
}

Tensor skew_gradient(const Tensor& ga, int64_t m) {  // (d, m)
  int64_t d = ga.dim(0);
  Tensor gx = zeros({d, m}, ga.dtype());
  lapack::f64_or_f32(ga.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* g = ga.data<T>();
    for (int64_t i = 0; i < d; i++)
      for (int64_t j = 0; j < std::min(i, m); j++)
        gx.data<T>()[i * m + j] = g[i * d + j] - g[j * d + i];
  });
  return gx;
}

template <class Map>
Tensor orthogonal_by(const Tensor& x, const Tensor& base, const Tensor& input) {
  int64_t d = x.dim(0), m = x.dim(1);
  Device device = input.device();
  auto map = std::make_shared<Map>(skew(x));
  Tensor w = empty({d, m}, x.dtype());
  Tensor value = map->value();
  product_into(w, base, alias(value, {d, m}, {d, 1}));
  return record("orthogonal", w.to(device), {input}, [=](Backward& b) {
    Tensor ge = zeros({d, d}, base.dtype());
    product_into(alias(ge, {d, m}, {d, 1}), transposed(base), host_gradient(b.gy));
    b[0].give(skew_gradient(map->gradient(ge), m).to(device));
  });
}

}  // namespace

Tensor orthogonal(const Tensor& x, const Tensor& base, OrthogonalMap map) {
  Tensor lower = host_matrix("orthogonal", x), b = host_matrix("orthogonal", base);
  PUPIL_CHECK(x.dim(0) >= x.dim(1) && b.dim(0) == x.dim(0) && b.dim(1) == x.dim(0) &&
                  b.dtype() == lower.dtype(),
              "orthogonal: x (D, M) with D >= M and base (D, D) of one dtype expected, got ",
              name_of(x.dtype()), " ", x.shape(), " and ", name_of(base.dtype()), " ",
              base.shape());
  if (plain_mode()) return orthogonal_plain(x, base, map);
  return map == OrthogonalMap::expm ? orthogonal_by<Exponential>(lower, b, x)
                                    : orthogonal_by<Cayley>(lower, b, x);
}

PUPIL_SAMPLES(orthogonal) {
  test::SampleOptions options{.bf16 = false, .constants = {1}};
  for (OrthogonalMap map : {OrthogonalMap::expm, OrthogonalMap::cayley}) {
    std::string name = map == OrthogonalMap::expm ? "expm " : "cayley ";
    auto f = [map](auto& v) { return orthogonal(v[0], v[1], map); };
    s.add(name + "square", {{5, 5}, {5, 5}}, f, options);
    s.add(name + "tall", {{6, 3}, {6, 6}}, f, options);
    s.add(
        name + "large", {{6, 4}, {6, 6}},
        [map](auto& v) { return orthogonal(scale(v[0], 4), v[1], map); }, options);
    s.add(name + "one element", {{1, 1}, {1, 1}}, f, options);
    s.add(name + "no columns", {{3, 0}, {3, 3}}, f, options);
    s.add_error(name + "wide", {{3, 4}, {3, 3}}, f);
    s.add_error(name + "base", {{4, 3}, {3, 3}}, f);
    s.add_error(name + "vector", {{3}, {3, 3}}, f);
  }
}

}  // namespace pupil

// Rows x / max(|x|_2, eps) along the last axis. Backward: (gy - y <gy, y>) / |x|, and gy / eps
// where the norm is below eps, since the divisor is a constant there.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct NormalizeForward {
  const T* x;
  T* y;
  acc_t<T>* norms;
  int64_t n;
  double eps;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* in = x + row * n;
    T* out = y + row * n;
    A sum = team.reduce(n, A(0), Add{}, [&](int64_t j) { return A(in[j]) * A(in[j]); });
    A norm = sqrt(sum), *stored = norms + row, divisor = norm > A(eps) ? norm : A(eps);
    team.each(n, [&](int64_t j) { out[j] = T(A(in[j]) / divisor); });
    team.each(1, [&](int64_t) { *stored = norm; });
  }
};

// Works from x, not from the rounded y: with bf16 the projection would lose its zero.
template <class T>
struct NormalizeBackward {
  const T *x, *gy;
  const acc_t<T>* norms;
  T* gx;
  int64_t n;
  double eps;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T *in = x + row * n, *g = gy + row * n;
    T* out = gx + row * n;
    A norm = norms[row];
    bool small = !(norm > A(eps));
    A divisor = small ? A(eps) : norm;
    A dot = team.reduce(n, A(0), Add{}, [&](int64_t j) { return A(g[j]) * A(in[j]) / divisor; });
    A along = small ? A(0) : dot;
    team.each(n, [&](int64_t j) { out[j] = T((A(g[j]) - A(in[j]) / divisor * along) / divisor); });
  }
};

Tensor normalize(const Tensor& input, double eps) {
  require_floating("normalize", input);
  PUPIL_CHECK(input.rank() >= 1, "normalize: at least one axis expected, got ", input.shape());
  PUPIL_CHECK(eps > 0, "normalize: eps ", eps);
  Tensor x = input.contiguous().detach(), y = empty_like(x);
  int64_t n = x.dim(-1), count = n ? x.numel() / n : 0;
  Tensor norms = empty({count}, acc_dtype(x.dtype()), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), count,
         NormalizeForward<T>{x.data<T>(), y.data<T>(), norms.data<acc_t<T>>(), n, eps}, n);
  });
  return record("normalize", y, {input}, {{"eps", eps}}, [x, norms, n, count, eps](Backward& b) {
    Tensor gy = b.gy.contiguous(), gx = empty_like(gy);
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(x.device(), count,
           NormalizeBackward<T>{x.data<T>(), gy.data<T>(), norms.data<acc_t<T>>(), gx.data<T>(), n,
                                eps},
           n);
    });
    b[0].give(std::move(gx));
  });
}

PUPIL_SAMPLES(normalize) {
  auto f = [](auto& v) { return normalize(v[0]); };
  s.add("rows", {{4, 6}}, f);
  s.add("long rows", {{2, 301}}, f);
  s.add("batch", {{2, 3, 4}}, f);
  s.add("vector", {{5}}, f);
  s.add("one element", {{1, 1}}, f, {.low = 0.5, .high = 1});
  s.add("empty", {{0, 3}}, f);
  s.add("no columns", {{3, 0}}, f);
  s.add("below eps", {{3, 4}}, [](auto& v) { return normalize(v[0], 10); });
  s.add("transposed", {{4, 3}}, [](auto& v) { return normalize(permute(v[0], {1, 0})); });
  s.add_error("scalar", {{}}, f);
}

}  // namespace pupil

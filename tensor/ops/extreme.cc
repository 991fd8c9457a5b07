// The largest or smallest element of each row, after the reduced axes were moved to the end.
// Backward: equal ones share the cotangent evenly.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

template <bool largest, class T>
struct ExtremeForward {
  const T* x;
  T* y;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* in = x + row * n;
    A first = A(in[0]);
    A best = team.reduce(n, first, Choose<largest>{}, [&](int64_t j) { return A(in[j]); });
    T* out = y + row;
    team.each(1, [&](int64_t) { *out = T(best); });
  }
};

template <class T>
struct ExtremeBackward {
  const T *x, *y, *gy;
  T* gx;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* in = x + row * n;
    T* out = gx + row * n;
    A best = A(y[row]);
    A ties = team.reduce(n, A(0), Add{}, [&](int64_t j) { return A(in[j]) == best ? A(1) : A(0); });
    A share = A(gy[row]) / ties;
    team.each(n, [&](int64_t j) { out[j] = A(in[j]) == best ? T(share) : T(0.0f); });
  }
};

namespace {

template <bool largest>
Tensor extreme(const char* op, const Tensor& input, const std::vector<int>& axes, bool keep) {
  require_floating(op, input);
  ReducedAxes to = reduced_axes(op, input.shape(), axes);
  PUPIL_CHECK(to.count > 0, op, ": of no elements, ", input.shape());
  std::vector<int> order;
  for (bool last : {false, true})
    for (int d = 0; d < input.rank(); d++)
      if (to.marked[d] == last) order.push_back(d);
  int64_t n = to.count, count = input.numel() / n;
  Tensor table = view(permute(input, order), {count, n}), x = table.detach();
  Tensor y = empty({count}, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), count, ExtremeForward<largest, T>{x.data<T>(), y.data<T>(), n}, n);
  });
  Tensor saved = y.detach();
  y = record(op, y, {table}, [x, saved, n, count](Backward& b) {
    Tensor gy = b.gy.contiguous(), gx = empty_like(x);
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(x.device(), count,
           ExtremeBackward<T>{x.data<T>(), saved.data<T>(), gy.data<T>(), gx.data<T>(), n}, n);
    });
    b[0].give(std::move(gx));
  });
  return view(y, keep ? to.kept : to.dropped);
}

}  // namespace

Tensor amax(const Tensor& x, std::vector<int> axes, bool keep) {
  return extreme<true>("amax", x, axes, keep);
}
Tensor amin(const Tensor& x, std::vector<int> axes, bool keep) {
  return extreme<false>("amin", x, axes, keep);
}

namespace {

[[maybe_unused]] void extreme_samples(auto& s, Tensor (*f)(const Tensor&, std::vector<int>, bool)) {
  auto over = [f](std::vector<int> axes, bool keep = false) {
    return [=](auto& v) { return f(v[0], axes, keep); };
  };
  s.add("all", {{3, 4}}, over({}));
  s.add("long rows", {{3, 301}}, over({-1}));
  s.add("columns", {{5, 3}}, over({0}));
  s.add("gaps, kept", {{2, 3, 4}}, over({0, 2}, true));
  s.add("transposed", {{4, 3}}, [f](auto& v) { return f(permute(v[0], {1, 0}), {1}, false); });
  s.add("scalar", {{}}, over({}));
  s.add("one element", {{1, 1}}, over({0}));
  s.add("empty", {{0, 3}}, over({1}));
  s.add_error("of nothing", {{0, 3}}, over({0}));
  s.add_error("axis", {{2, 3}}, over({2}));
  s.add_error("integers", {{3}}, [f](auto& v) { return f(v[0].to(DType::i64), {}, false); });
}

}  // namespace

PUPIL_SAMPLES(amax) { extreme_samples(s, amax); }
PUPIL_SAMPLES(amin) { extreme_samples(s, amin); }

}  // namespace pupil

// y_k = x_1 + .. + x_k along one axis; backward is the same sum from the other end.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct CumulativeSum {
  const T* x;
  T* y;
  int64_t length, inner;
  bool from_end;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t begin = i / inner * length * inner + i % inner;
    acc_t<T> sum = 0;
    for (int64_t k = 0; k < length; k++) {
      int64_t at = begin + (from_end ? length - 1 - k : k) * inner;
      sum += acc_t<T>(x[at]);
      y[at] = T(sum);
    }
  }
};

namespace {

Tensor running_sum(const Tensor& input, int axis, bool from_end) {
  Tensor x = input.contiguous().detach(), y = empty(x.shape(), x.dtype(), x.device());
  int64_t inner = 1;
  for (int d = axis + 1; d < x.rank(); d++) inner *= x.dim(d);
  if (x.numel() == 0) return y;
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), x.numel() / x.dim(axis),
        CumulativeSum<T>{x.data<T>(), y.data<T>(), x.dim(axis), inner, from_end});
  });
  return y;
}

}  // namespace

Tensor cumsum(const Tensor& x, int axis) {
  require_floating("cumsum", x);
  int d = checked_axis("cumsum", x.shape(), axis);
  return record("cumsum", running_sum(x, d, false), {x},
                [d](Backward& b) { b[0].give(running_sum(b.gy, d, true)); });
}

PUPIL_SAMPLES(cumsum) {
  auto along = [](int axis) { return [=](auto& v) { return cumsum(v[0], axis); }; };
  s.add("rows", {{3, 6}}, along(1));
  s.add("columns", {{5, 3}}, along(0));
  s.add("middle", {{2, 4, 3}}, along(-2));
  s.add("transposed", {{4, 3}}, [](auto& v) { return cumsum(permute(v[0], {1, 0}), 0); });
  s.add("one element", {{1}}, along(0));
  s.add("empty", {{0, 3}}, along(0));
  s.add("empty rows", {{3, 0}}, along(0));
  s.add_error("axis", {{2, 3}}, along(2));
  s.add_error("scalar", {{}}, along(0));
}

}  // namespace pupil

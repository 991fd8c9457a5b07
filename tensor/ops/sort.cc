// Orders along one axis, found on the host; values are gathered, so that gradients go back to where
// they came from.
#include <algorithm>
#include <numeric>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

namespace {

// The places of the first k elements in order; equal ones keep theirs, NaN is larger than all.
Tensor places(const char* op, const Tensor& x, int axis, int64_t k, bool descending) {
  require_floating(op, x);
  int d = checked_axis(op, x.shape(), axis);
  int64_t n = x.dim(d), inner = 1;
  if (k < 0) k = n;
  PUPIL_CHECK(k <= n, op, ": ", k, " elements of axis ", axis, " of ", x.shape());
  for (int j = d + 1; j < x.rank(); j++) inner *= x.dim(j);
  Tensor wide = x.detach().to(Device{}).to(DType::f64).contiguous();
  Shape shape = x.shape();
  shape[d] = k;
  Tensor index = empty(shape, DType::i64);
  const double* values = wide.data<double>();
  int64_t* out = index.data<int64_t>();
  parallel_for(k ? index.numel() / k : 0, x.numel(), [=](int64_t line) {
    const double* in = values + line / inner * n * inner + line % inner;
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    auto before = [=](int64_t i, int64_t j) {
      double a = in[i * inner], b = in[j * inner];
      bool larger = a > b || (a != a && b == b), smaller = a < b || (b != b && a == a);
      return larger || smaller ? (descending ? larger : smaller) : i < j;
    };
    std::partial_sort(order.begin(), order.begin() + k, order.end(), before);
    for (int64_t j = 0; j < k; j++)
      out[line / inner * k * inner + j * inner + line % inner] = order[size_t(j)];
  });
  return index.to(x.device());
}

}  // namespace

Sorted sort(const Tensor& x, int axis, bool descending) {
  Tensor index = places("sort", x, axis, -1, descending);
  return {gather(x, axis, index), index};
}

Sorted topk(const Tensor& x, int64_t k, int axis) {
  PUPIL_CHECK(k >= 0, "topk: ", k, " elements of ", x.shape());
  Tensor index = places("topk", x, axis, k, true);
  return {gather(x, axis, index), index};
}

Tensor argmax(const Tensor& x, int axis) {
  Tensor index = places("argmax", x, axis, 1, true);
  return view(index, reduced_axes("argmax", x.shape(), {axis}).dropped);
}

PUPIL_SAMPLES(sort) {
  auto along = [](int axis, bool descending) {
    return [=](auto& v) { return sort(v[0], axis, descending).values; };
  };
  s.add("rows", {{3, 7}}, along(1, false));
  s.add("columns, descending", {{5, 3}}, along(0, true));
  s.add("middle", {{2, 4, 3}}, along(-2, false));
  s.add("transposed", {{4, 3}}, [](auto& v) { return sort(permute(v[0], {1, 0}), 0).values; });
  s.add("one element", {{1}}, along(0, false));
  s.add("empty", {{0, 3}}, along(0, false));
  s.add_error("axis", {{2, 3}}, along(2, false));
}
PUPIL_SAMPLES(topk) {
  auto of = [](int64_t k, int axis) { return [=](auto& v) { return topk(v[0], k, axis).values; }; };
  s.add("rows", {{3, 8}}, of(3, 1));
  s.add("columns", {{5, 3}}, of(2, 0));
  s.add("none", {{3, 2}}, of(0, 1));
  s.add("one element", {{1}}, of(1, -1));
  s.add("empty", {{0, 3}}, of(2, 1));
  s.add_error("too many", {{2, 3}}, of(4, 1));
  s.add_error("negative", {{2, 3}}, of(-1, 1));
  s.add_error("axis", {{2, 3}}, of(1, 2));
}
PUPIL_SAMPLES(argmax) {
  auto at = [](int axis) {
    return [=](auto& v) {
      Tensor largest = one_hot(argmax(v[0], axis), v[0].dim(axis), v[0].dtype());
      return mul(largest, v[0]);
    };
  };
  s.add("rows", {{3, 8}}, at(-1));
  s.add("one element", {{1}}, at(-1));
  s.add("empty", {{0, 3}}, at(-1));
  s.add_error("of nothing", {{2, 0}}, at(-1));
  s.add_error("axis", {{2, 3}}, [](auto& v) { return argmax(v[0], 2); });
}

}  // namespace pupil

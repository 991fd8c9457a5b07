// Views, which share memory, and copies in another layout or dtype; every gradient goes back to
// where the values came from.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"
#include "part.h"

namespace pupil {

Tensor view(const Tensor& x, const Shape& shape) {
  PUPIL_CHECK(shape.numel() == x.numel(), "view: ", x.shape(), " as ", shape);
  Tensor y = alias(x.contiguous(), shape, row_major_strides(shape));
  Shape old = x.shape();
  return record("view", y, {x}, [old](Backward& b) {
    b[0].give(alias(b.gy.contiguous(), old, row_major_strides(old)));
  });
}

namespace {

Tensor permuted(const Tensor& x, const std::vector<int>& order) {
  Shape shape = x.shape(), strides = x.strides();
  for (int d = 0; d < x.rank(); d++) {
    shape[d] = x.dim(order[size_t(d)]);
    strides[d] = x.strides()[order[size_t(d)]];
  }
  return alias(x, shape, strides);
}

Tensor strided(const Tensor& x) { return x.layout() == Layout::strided ? x : x.contiguous(); }

}  // namespace

Tensor permute(const Tensor& x, std::vector<int> order) {
  PUPIL_CHECK(order.size() == size_t(x.rank()), "permute: ", order.size(), " axes for ", x.shape());
  std::vector<int> inverse(order.size(), -1);
  Shape axes = x.shape();
  for (size_t d = 0; d < order.size(); d++) {
    order[d] = checked_axis("permute", x.shape(), order[d]);
    PUPIL_CHECK(inverse[size_t(order[d])] < 0, "permute: axis ", order[d], " twice for ",
                x.shape());
    inverse[size_t(order[d])] = int(d);
    axes[int(d)] = order[d];
  }
  return record("permute", permuted(strided(x), order), {x}, {{"order", axes}},
                [inverse](Backward& b) { b[0].give(permuted(b.gy, inverse)); });
}

Tensor slice(const Tensor& x, int axis, int64_t begin, int64_t end, int64_t step) {
  int d = checked_axis("slice", x.shape(), axis);
  PUPIL_CHECK(0 <= begin && begin <= end && end <= x.dim(d) && step >= 1, "slice: ", begin, ":",
              end, ":", step, " of axis ", axis, " of ", x.shape());
  int64_t count = (end - begin + step - 1) / step;
  Shape whole = x.shape();
  return record("slice", part(strided(x), d, begin, count, step), {x},
                {{"at", Shape{d, begin, end, step}}}, [whole, d, begin, count, step](Backward& b) {
                  Tensor gx = zeros(whole, b.gy.dtype(), b.gy.device());
                  copy_into(part(gx, d, begin, count, step), b.gy);
                  b[0].give(std::move(gx));
                });
}

Tensor expand(const Tensor& x, const Shape& shape) {
  Tensor source = strided(x);
  const Tensor* one[1] = {&source};
  NdIndex<1> index = broadcast_index("expand", shape, one);
  Shape strides = shape, old = x.shape();
  for (int d = 0; d < shape.rank; d++) strides[d] = index.strides[0][d];
  return record("expand", alias(source, shape, strides), {x},
                [old](Backward& b) { b[0].give(sum_to(b.gy, old)); });
}

Tensor to_strided(const Tensor& x) {
  if (x.layout() == Layout::strided) return x;
  Layout layout = x.layout();
  return record("to_strided", x.contiguous(), {x},
                [layout](Backward& b) { b[0].give(b.gy.to(layout)); });
}

Tensor to_dtype(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  require_floating("to_dtype", x);
  PUPIL_CHECK(is_floating(dtype) && dtype != DType::f16, "to_dtype: ", name_of(dtype),
              " carries no gradient; use Tensor::to for ", x.shape());
  DType old = x.dtype();
  return record("to_dtype", x.to(dtype), {x}, [old](Backward& b) { b[0].give(b.gy.to(old)); });
}

PUPIL_SAMPLES(view) {
  s.add("flat", {{3, 4}}, [](auto& v) { return view(v[0], {12}); });
  s.add("scalar", {{1, 1}}, [](auto& v) { return view(v[0], {}); });
  s.add("empty", {{0, 3}}, [](auto& v) { return view(v[0], {3, 0}); });
  s.add("of a transposed", {{3, 4}}, [](auto& v) { return view(permute(v[0], {1, 0}), {2, 6}); });
  s.add("reused", {{3, 4}}, [](auto& v) { return mul(view(v[0], {4, 3}), view(v[0], {4, 3})); });
  s.add_error("count", {{3, 4}}, [](auto& v) { return view(v[0], {5}); });
}
PUPIL_SAMPLES(permute) {
  s.add("matrix", {{3, 4}}, [](auto& v) { return permute(v[0], {1, 0}); });
  s.add("heads", {{2, 3, 4, 5}}, [](auto& v) { return permute(v[0], {0, 2, 1, 3}); });
  s.add("negative", {{2, 3, 4}}, [](auto& v) { return permute(v[0], {-1, 0, 1}); });
  s.add("scalar", {{}}, [](auto& v) { return permute(v[0], {}); });
  s.add("one element", {{1, 1}}, [](auto& v) { return permute(v[0], {1, 0}); });
  s.add("empty", {{0, 3}}, [](auto& v) { return permute(v[0], {1, 0}); });
  s.add_error("axes", {{2, 3}}, [](auto& v) { return permute(v[0], {0}); });
  s.add_error("twice", {{2, 3}}, [](auto& v) { return permute(v[0], {1, 1}); });
}
PUPIL_SAMPLES(slice) {
  s.add("rows", {{5, 3}}, [](auto& v) { return slice(v[0], 0, 1, 4); });
  s.add("columns", {{5, 7}}, [](auto& v) { return slice(v[0], -1, 2, 5); });
  s.add("step", {{2, 7}}, [](auto& v) { return slice(v[0], 1, 1, 7, 3); });
  s.add("one element", {{1}}, [](auto& v) { return slice(v[0], 0, 0, 1); });
  s.add("empty", {{5, 3}}, [](auto& v) { return slice(v[0], 0, 5, 5); });
  s.add("of nothing", {{0, 3}}, [](auto& v) { return slice(v[0], 1, 0, 2); });
  s.add("overlapping", {{5}},
        [](auto& v) { return mul(slice(v[0], 0, 0, 4), slice(v[0], 0, 1, 5)); });
  s.add_error("range", {{5}}, [](auto& v) { return slice(v[0], 0, 2, 6); });
}
PUPIL_SAMPLES(expand) {
  s.add("rows", {{1, 3}}, [](auto& v) { return expand(v[0], {4, 3}); });
  s.add("new axes", {{3}}, [](auto& v) { return expand(v[0], {2, 4, 3}); });
  s.add("scalar", {{}}, [](auto& v) { return expand(v[0], {2, 3}); });
  s.add("from nothing", {{0, 1}}, [](auto& v) { return expand(v[0], {0, 3}); });
  s.add("to nothing", {{1, 3}}, [](auto& v) { return expand(v[0], {0, 3}); });
  s.add("one element", {{1}}, [](auto& v) { return expand(v[0], {1, 1}); });
  s.add_error("shape", {{2, 3}}, [](auto& v) { return expand(v[0], {4, 3}); });
}
PUPIL_SAMPLES(to_strided) {
  s.add("already", {{2, 3}}, [](auto& v) { return to_strided(v[0]); });
  s.add("one element", {{1}}, [](auto& v) { return to_strided(v[0]); });
  s.add("empty", {{0, 3}}, [](auto& v) { return to_strided(v[0]); });
}
PUPIL_SAMPLES(to_dtype) {
  s.add("to f32 and back", {{2, 3}},
        [](auto& v) { return to_dtype(to_dtype(v[0], DType::f64), v[0].dtype()); });
  s.add_error("to integers", {{2}}, [](auto& v) { return to_dtype(v[0], DType::i64); });
  for (Shape shape : {Shape{5}, Shape{1}, Shape{0, 2}})
    s.add(concat("to f64 ", shape), {shape}, [](auto& v) { return to_dtype(v[0], DType::f64); });
}

}  // namespace pupil

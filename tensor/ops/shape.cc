// Views and joins. Views share memory; every gradient goes back to where the values came from.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct SelectRows {
  const T* x;
  const int64_t* index;
  T* y;
  int64_t width;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const T* in = x + index[row] * width;
    T* out = y + row * width;
    team.each(width, [&](int64_t j) { out[j] = in[j]; });
  }
};

// The adjoint: row r of x sums the rows of gy whose index is r, in their order, without atomics.
template <class T>
struct CollectRows {
  const T* gy;
  const int64_t* index;
  T* gx;
  int64_t width, count;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* g = gy;
    const int64_t* at = index;
    int64_t w = width, n = count;
    T* out = gx + row * width;
    team.each(w, [&](int64_t j) {
      A sum = 0;
      for (int64_t k = 0; k < n; k++)
        if (at[k] == row) sum += A(g[k * w + j]);
      out[j] = T(sum);
    });
  }
};

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

// Elements begin, begin + step, ... of one axis; shares memory, not recorded.
Tensor part(const Tensor& x, int axis, int64_t begin, int64_t count, int64_t step = 1) {
  Shape shape = x.shape(), strides = x.strides();
  int64_t offset = count ? begin * strides[axis] : 0;
  shape[axis] = count;
  strides[axis] *= step;
  return alias(x, shape, strides, offset);
}

int checked_axis(const char* op, const Tensor& x, int axis) {
  int d = axis < 0 ? axis + x.rank() : axis;
  PUPIL_CHECK(d >= 0 && d < x.rank(), op, ": axis ", axis, " of ", x.shape());
  return d;
}

Tensor strided(const Tensor& x) { return x.layout() == Layout::strided ? x : x.contiguous(); }

}  // namespace

Tensor permute(const Tensor& x, std::vector<int> order) {
  PUPIL_CHECK(order.size() == size_t(x.rank()), "permute: ", order.size(), " axes for ", x.shape());
  std::vector<int> inverse(order.size(), -1);
  for (size_t d = 0; d < order.size(); d++) {
    order[d] = checked_axis("permute", x, order[d]);
    PUPIL_CHECK(inverse[size_t(order[d])] < 0, "permute: axis ", order[d], " twice for ",
                x.shape());
    inverse[size_t(order[d])] = int(d);
  }
  return record("permute", permuted(strided(x), order), {x},
                [inverse](Backward& b) { b[0].give(permuted(b.gy, inverse)); });
}

Tensor slice(const Tensor& x, int axis, int64_t begin, int64_t end, int64_t step) {
  int d = checked_axis("slice", x, axis);
  PUPIL_CHECK(0 <= begin && begin <= end && end <= x.dim(d) && step >= 1, "slice: ", begin, ":",
              end, ":", step, " of axis ", axis, " of ", x.shape());
  int64_t count = (end - begin + step - 1) / step;
  Shape whole = x.shape();
  return record("slice", part(strided(x), d, begin, count, step), {x},
                [whole, d, begin, count, step](Backward& b) {
                  Tensor gx = zeros(whole, b.gy.dtype(), b.gy.device());
                  copy_into(part(gx, d, begin, count, step), b.gy);
                  b[0].give(std::move(gx));
                });
}

Tensor cat(const std::vector<Tensor>& parts, int axis) {
  PUPIL_CHECK(!parts.empty(), "cat: no parts");
  // As in PyTorch, a part of shape (0) fits beside anything.
  auto counts = [](const Tensor& t) { return !(t.rank() == 1 && t.dim(0) == 0); };
  const Tensor* first = &parts[0];
  for (auto& t : parts)
    if (counts(t)) {
      first = &t;
      break;
    }
  int d = checked_axis("cat", *first, axis);
  Shape shape = first->shape();
  shape[d] = 0;
  for (auto& t : parts) {
    if (!counts(t)) continue;
    Shape other = t.shape();
    if (other.rank == shape.rank) other[d] = shape[d];
    PUPIL_CHECK(other == shape && t.dtype() == first->dtype(), "cat: ", t.shape(), " ",
                name_of(t.dtype()), " beside ", first->shape(), " ", name_of(first->dtype()),
                " along axis ", axis);
    shape[d] += t.dim(d);
  }
  Tensor y = empty(shape, first->dtype(), first->device());
  std::vector<int64_t> sizes;  // along the axis; -1: a part of shape (0)
  int64_t begin = 0;
  for (auto& t : parts) {
    sizes.push_back(counts(t) ? t.dim(d) : -1);
    if (sizes.back() <= 0) continue;
    copy_into(part(y, d, begin, sizes.back()), strided(t));
    begin += sizes.back();
  }
  return record("cat", y, parts, [sizes, d](Backward& b) {
    int64_t at = 0;
    for (size_t k = 0; k < sizes.size(); k++) {
      int64_t size = sizes[k];
      b[int(k)].give(size < 0 ? zeros({0}, b.gy.dtype(), b.gy.device()) : part(b.gy, d, at, size));
      at += std::max<int64_t>(size, 0);
    }
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

Tensor index_select(const Tensor& x, const Tensor& index) {
  require_floating("index_select", x);
  PUPIL_CHECK(x.rank() >= 1 && index.rank() == 1 && index.dtype() == DType::i64,
              "index_select: rows of ", x.shape(), " by ", index.shape(), " ",
              name_of(index.dtype()));
  Tensor source = x.contiguous(), at = index.contiguous();
  int64_t n = at.numel(), whole = x.dim(0), width = whole ? x.numel() / whole : 0;
  if (!at.device().is_cuda())
    for (int64_t k = 0; k < n; k++)
      PUPIL_CHECK(at.data<int64_t>()[k] >= 0 && at.data<int64_t>()[k] < whole,
                  "index_select: index ", at.data<int64_t>()[k], " into ", x.shape());
  Shape shape = x.shape(), old = x.shape();
  shape[0] = n;
  Tensor y = empty(shape, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), n, SelectRows<T>{source.data<T>(), at.data<int64_t>(), y.data<T>(), width},
         width);
  });
  return record("index_select", y, {x}, [old, at, n, whole, width](Backward& b) {
    Tensor gy = b.gy.contiguous(), gx = empty(old, gy.dtype(), gy.device());
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(gy.device(), whole,
           CollectRows<T>{gy.data<T>(), at.data<int64_t>(), gx.data<T>(), width, n}, width * n);
    });
    b[0].give(std::move(gx));
  });
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
PUPIL_SAMPLES(cat) {
  s.add("rows", {{2, 3}, {1, 3}}, [](auto& v) { return cat(v, 0); });
  s.add("columns", {{2, 3}, {2, 1}, {2, 2}}, [](auto& v) { return cat(v, -1); });
  s.add("middle", {{2, 1, 3}, {2, 2, 3}}, [](auto& v) { return cat(v, 1); });
  s.add("empty parts", {{2, 3}, {0}, {0, 3}}, [](auto& v) { return cat(v, 0); });
  s.add("one part", {{1}}, [](auto& v) { return cat(v, 0); });
  s.add("the same twice", {{2, 3}}, [](auto& v) { return cat({v[0], v[0]}, 1); });
  s.add_error("shapes", {{2, 3}, {3, 2}}, [](auto& v) { return cat(v, 0); });
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
PUPIL_SAMPLES(index_select) {
  auto rows_of = [](std::vector<int64_t> index) {
    return [=](auto& v) {
      return index_select(v[0], from(index, {int64_t(index.size())}).to(v[0].device()));
    };
  };
  s.add("repeated", {{4, 3}}, rows_of({3, 0, 3, 2, 3}));
  s.add("vector", {{4}}, rows_of({1}));
  s.add("wide", {{3, 2, 70}}, rows_of({2, 2, 0}));
  s.add("none", {{4, 3}}, rows_of({}));
  s.add("of no columns", {{4, 0}}, rows_of({1, 2}));
  s.add("one element", {{1}}, rows_of({0, 0}));
  s.add_error("range", {{4, 3}}, rows_of({4}));
  s.add_error("negative", {{4, 3}}, rows_of({-1}));
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

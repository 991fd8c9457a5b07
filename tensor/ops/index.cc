// Slices of one axis chosen or summed by index, without atomics.
#include "index.h"

#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

// x (outer, whole, width) -> y (outer, count, width), y[o, k] = x[o, index[k]].
template <class T>
struct SelectRows {
  const T* x;
  const int64_t* index;
  T* y;
  int64_t count, whole, width;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    const T* in = x + (row / count * whole + index[row % count]) * width;
    T* out = y + row * width;
    team.each(width, [&](int64_t j) { out[j] = in[j]; });
  }
};

// The adjoint: row r sums the rows y[o, entry[k]] for start[r] <= k < start[r + 1], in this order.
template <class T>
struct CollectRows {
  const T* y;
  const int64_t *start, *entry;
  T* x;
  int64_t count, whole, width;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T* in = y + row / whole * count * width;
    T* out = x + row * width;
    int64_t begin = start[row % whole], end = start[row % whole + 1], w = width;
    const int64_t* at = entry;
    team.each(w, [&](int64_t j) {
      A sum = 0;
      for (int64_t k = begin; k < end; k++) sum += A(in[at[k] * w + j]);
      out[j] = T(sum);
    });
  }
};

Tensor checked_index(const char* op, const Tensor& index, int64_t whole) {
  PUPIL_CHECK(index.dtype() == DType::i64, op, ": index ", index.shape(), " is ",
              name_of(index.dtype()), ", i64 expected");
  Tensor at = index.contiguous();
  if (!at.device().is_cuda())
    for (int64_t k = 0; k < at.numel(); k++)
      PUPIL_CHECK(at.data<int64_t>()[k] >= 0 && at.data<int64_t>()[k] < whole, op, ": index ",
                  at.data<int64_t>()[k], " of an axis of ", whole);
  return at;
}

namespace {

// One axis of a shape between what lies before and behind it.
struct Axis {
  int64_t outer = 1, whole, width = 1;
  Axis(const Shape& shape, int axis) : whole(shape[axis]) {
    for (int d = 0; d < axis; d++) outer *= shape[d];
    for (int d = axis + 1; d < shape.rank; d++) width *= shape[d];
  }
};

Tensor selected(const Tensor& x, const Tensor& index, int axis) {
  Tensor source = x.contiguous();
  Axis a(x.shape(), axis);
  Shape shape = x.shape();
  int64_t n = shape[axis] = index.numel();
  Tensor y = empty(shape, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), a.outer * n,
         SelectRows<T>{source.data<T>(), index.data<int64_t>(), y.data<T>(), n, a.whole, a.width},
         a.width);
  });
  return y;
}

// `parts` summed into the rows of a tensor of `shape`; row `skip` stays 0. The host sorts the
// index.
Tensor collected(const char* op, const Tensor& parts, const Tensor& index, const Shape& shape,
                 int axis, int64_t skip = -1) {
  Axis a(shape, axis);
  int64_t n = index.numel();
  Tensor at = checked_index(op, index.to(Device{}), a.whole);
  Tensor start = zeros({a.whole + 1}, DType::i64), entry = empty({n}, DType::i64);
  int64_t *first = start.data<int64_t>(), *sorted = entry.data<int64_t>();
  const int64_t* row = at.data<int64_t>();
  for (int64_t k = 0; k < n; k++) first[row[k] + 1] += row[k] != skip;
  for (int64_t r = 0; r < a.whole; r++) first[r + 1] += first[r];
  std::vector<int64_t> next(first, first + a.whole);
  for (int64_t k = 0; k < n; k++)
    if (row[k] != skip) sorted[next[size_t(row[k])]++] = k;
  start = start.to(parts.device());
  entry = entry.to(parts.device());
  Tensor source = parts.contiguous(), x = empty(shape, parts.dtype(), parts.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), a.outer * a.whole,
         CollectRows<T>{source.data<T>(), start.data<int64_t>(), entry.data<int64_t>(), x.data<T>(),
                        n, a.whole, a.width},
         a.width);
  });
  return x;
}

}  // namespace

Tensor select_slices(const char* op, const Tensor& x, const Tensor& index, int axis, int64_t skip) {
  require_floating(op, x);
  int d = checked_axis(op, x.shape(), axis);
  PUPIL_CHECK(index.rank() == 1, op, ": index of one axis expected, got ", index.shape());
  Tensor at = checked_index(op, index, x.dim(d));
  Shape shape = x.shape();
  return record(op, selected(x, at, d), {x}, {{"index", index}, {"axis", d}},
                [=](Backward& b) { b[0].give(collected(op, b.gy, at, shape, d, skip)); });
}

Tensor add_slices(const char* op, const Tensor& x, int d, const Tensor& index, const Tensor& src) {
  Tensor at = checked_index(op, index, x.dim(d));
  Tensor summed = record(op, collected(op, src, at, x.shape(), d), {src},
                         [=](Backward& b) { b[0].give(selected(b.gy, at, d)); });
  return add(x, summed);
}

Tensor index_select(const Tensor& x, const Tensor& index, int axis) {
  return select_slices("index_select", x, index, axis);
}

Tensor index_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src) {
  require_floating("index_add", x);
  int d = checked_axis("index_add", x.shape(), axis);
  Shape expected = x.shape();
  expected[d] = index.numel();
  PUPIL_CHECK(index.rank() == 1 && src.shape() == expected && src.dtype() == x.dtype(),
              "index_add: ", src.shape(), " ", name_of(src.dtype()), " to ", x.shape(), " ",
              name_of(x.dtype()), " by index ", index.shape(), " along axis ", axis);
  return add_slices("index_add", x, d, index, src);
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
  s.add("columns", {{2, 4}}, [](auto& v) {
    return index_select(v[0], from(std::vector<int64_t>{3, 3, 1}, {3}).to(v[0].device()), -1);
  });
  s.add("none", {{4, 3}}, rows_of({}));
  s.add("of no columns", {{4, 0}}, rows_of({1, 2}));
  s.add("one element", {{1}}, rows_of({0, 0}));
  s.add_error("range", {{4, 3}}, rows_of({4}));
  s.add_error("axis", {{4}}, [](auto& v) {
    return index_select(v[0], from(std::vector<int64_t>{0}, {1}).to(v[0].device()), 1);
  });
  s.add_error("negative", {{4, 3}}, rows_of({-1}));
}
PUPIL_SAMPLES(index_add) {
  auto add_to = [](int axis, std::vector<int64_t> index) {
    return [=](auto& v) {
      return index_add(v[0], axis, from(index, {int64_t(index.size())}).to(v[0].device()), v[1]);
    };
  };
  s.add("repeated rows", {{4, 3}, {5, 3}}, add_to(0, {1, 3, 1, 1, 0}));
  s.add("columns", {{2, 4}, {2, 3}}, add_to(-1, {3, 3, 0}));
  s.add("one element", {{1}, {1}}, add_to(0, {0}));
  s.add("empty", {{4, 3}, {0, 3}}, add_to(0, {}));
  s.add_error("shapes", {{4, 3}, {2, 2}}, add_to(0, {1, 1}));
  s.add_error("range", {{4, 3}, {1, 3}}, add_to(0, {4}));
}
}  // namespace pupil

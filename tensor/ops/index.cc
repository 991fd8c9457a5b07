// Slices of one axis chosen or summed by index, without atomics; single elements (gather,
// scatter_add) are slices of the flattened tensor.
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

struct FlatPosition {
  const int64_t* index;
  int64_t* flat;
  int64_t stride;
  PUPIL_HD void operator()(int64_t i, const int64_t (&at)[1]) const {
    flat[i] = at[0] + index[i] * stride;
  }
};

template <class T>
struct OneHot {
  const int64_t* index;
  T* y;
  int64_t classes;
  PUPIL_HD void operator()(int64_t i) const {
    y[i] = index[i / classes] == i % classes ? T(1.0f) : T(0.0f);
  }
};

namespace {

// One axis of a shape between what lies before and behind it.
struct Axis {
  int64_t outer = 1, whole, width = 1;
  Axis(const Shape& shape, int axis) : whole(shape[axis]) {
    for (int d = 0; d < axis; d++) outer *= shape[d];
    for (int d = axis + 1; d < shape.rank; d++) width *= shape[d];
  }
};

int index_axis(const char* op, const Tensor& x, int axis) {
  int d = axis < 0 ? axis + x.rank() : axis;
  PUPIL_CHECK(d >= 0 && d < x.rank(), op, ": axis ", axis, " of ", x.shape());
  return d;
}

// Dense and, where the host can look, within 0 .. whole - 1.
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

Tensor select(const char* op, const Tensor& x, const Tensor& index, int axis, int64_t skip = -1) {
  require_floating(op, x);
  int d = index_axis(op, x, axis);
  PUPIL_CHECK(index.rank() == 1, op, ": index of one axis expected, got ", index.shape());
  Tensor at = checked_index(op, index, x.dim(d));
  Shape shape = x.shape();
  return record(op, selected(x, at, d), {x},
                [=](Backward& b) { b[0].give(collected(op, b.gy, at, shape, d, skip)); });
}

// y = x with the slices of src added where index says.
Tensor add_at(const char* op, const Tensor& x, int d, const Tensor& index, const Tensor& src) {
  Tensor at = checked_index(op, index, x.dim(d));
  Tensor summed = record(op, collected(op, src, at, x.shape(), d), {src},
                         [=](Backward& b) { b[0].give(selected(b.gy, at, d)); });
  return add(x, summed);
}

// Where in the flattened x the elements lie that `index` names along axis d.
Tensor flat_positions(const char* op, const Tensor& x, int d, const Tensor& index) {
  PUPIL_CHECK(index.rank() == x.rank(), op, ": index ", index.shape(), " for ", x.shape());
  Shape strides = row_major_strides(x.shape());
  NdIndex<1> walk;
  walk.rank = x.rank();
  for (int k = 0; k < x.rank(); k++) {
    PUPIL_CHECK(k == d || index.dim(k) <= x.dim(k), op, ": index ", index.shape(), " for ",
                x.shape(), " along axis ", d);
    walk.dims[k] = index.dim(k);
    walk.strides[0][k] = k == d ? 0 : strides[k];
  }
  Tensor at = checked_index(op, index, x.dim(d)),
         flat = empty({at.numel()}, DType::i64, at.device());
  map(at.device(), at.numel(),
      MapNd<1, FlatPosition>{walk, {at.data<int64_t>(), flat.data<int64_t>(), strides[d]}});
  return flat;
}

}  // namespace

Tensor index_select(const Tensor& x, const Tensor& index, int axis) {
  return select("index_select", x, index, axis);
}

Tensor index_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src) {
  require_floating("index_add", x);
  int d = index_axis("index_add", x, axis);
  Shape expected = x.shape();
  expected[d] = index.numel();
  PUPIL_CHECK(index.rank() == 1 && src.shape() == expected && src.dtype() == x.dtype(),
              "index_add: ", src.shape(), " ", name_of(src.dtype()), " to ", x.shape(), " ",
              name_of(x.dtype()), " by index ", index.shape(), " along axis ", axis);
  return add_at("index_add", x, d, index, src);
}

Tensor embedding(const Tensor& weight, const Tensor& index, std::optional<int64_t> padding_index) {
  PUPIL_CHECK(weight.rank() == 2 && index.rank() < kMaxRank,
              "embedding: weight (rows, width) expected, got ", weight.shape(), " for index ",
              index.shape());
  int64_t skip = -1, count = weight.dim(0);
  if (padding_index) {
    skip = *padding_index < 0 ? *padding_index + count : *padding_index;
    PUPIL_CHECK(skip >= 0 && skip < count, "embedding: padding index ", *padding_index, " for ",
                weight.shape());
  }
  Shape shape = index.shape();
  shape[shape.rank++] = weight.dim(1);
  return view(select("embedding", weight, view(index, {index.numel()}), 0, skip), shape);
}

Tensor gather(const Tensor& x, int axis, const Tensor& index) {
  Tensor flat = flat_positions("gather", x, index_axis("gather", x, axis), index);
  return view(select("gather", view(x, {x.numel()}), flat, 0), index.shape());
}

Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src) {
  require_floating("scatter_add", x);
  int d = index_axis("scatter_add", x, axis);
  Tensor flat = flat_positions("scatter_add", x, d, index), part = src;
  PUPIL_CHECK(src.rank() == x.rank() && src.dtype() == x.dtype(), "scatter_add: ", src.shape(), " ",
              name_of(src.dtype()), " to ", x.shape(), " ", name_of(x.dtype()));
  for (int k = 0; k < x.rank(); k++) {
    PUPIL_CHECK(index.dim(k) <= src.dim(k), "scatter_add: index ", index.shape(), " for ",
                src.shape());
    if (index.dim(k) < src.dim(k)) part = slice(part, k, 0, index.dim(k));
  }
  Tensor y = add_at("scatter_add", view(x, {x.numel()}), 0, flat, view(part, {flat.numel()}));
  return view(y, x.shape());
}

Tensor one_hot(const Tensor& index, int64_t classes, DType dtype) {
  PUPIL_CHECK(index.rank() < kMaxRank && classes > 0, "one_hot: index ", index.shape(), " of ",
              classes, " classes");
  Tensor at = checked_index("one_hot", index, classes);
  Shape shape = index.shape();
  shape[shape.rank++] = classes;
  Tensor y = empty(shape, dtype, at.device());
  dispatch(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    map(y.device(), y.numel(), OneHot<T>{at.data<int64_t>(), y.data<T>(), classes});
  });
  return y;
}

namespace {

[[maybe_unused]] Tensor sample_index(const Tensor& beside, const std::vector<int64_t>& values,
                                     const Shape& shape) {
  return from(values, shape).to(beside.device());
}

}  // namespace

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
      return index_add(v[0], axis, sample_index(v[0], index, {int64_t(index.size())}), v[1]);
    };
  };
  s.add("repeated rows", {{4, 3}, {5, 3}}, add_to(0, {1, 3, 1, 1, 0}));
  s.add("columns", {{2, 4}, {2, 3}}, add_to(-1, {3, 3, 0}));
  s.add("one element", {{1}, {1}}, add_to(0, {0}));
  s.add("empty", {{4, 3}, {0, 3}}, add_to(0, {}));
  s.add_error("shapes", {{4, 3}, {2, 2}}, add_to(0, {1, 1}));
  s.add_error("range", {{4, 3}, {1, 3}}, add_to(0, {4}));
}
PUPIL_SAMPLES(embedding) {
  auto of = [](std::vector<int64_t> index, Shape shape, std::optional<int64_t> padding = {}) {
    return [=](auto& v) { return embedding(v[0], sample_index(v[0], index, shape), padding); };
  };
  s.add("repeated", {{6, 4}}, of({5, 0, 5, 2, 2, 5}, {2, 3}));
  s.add("one element", {{1, 1}}, of({0}, {}));
  s.add("empty", {{3, 0}}, of({2, 1}, {2}));
  s.add_error("range", {{3, 2}}, of({3}, {1}));
  s.add_error("padding", {{3, 2}}, of({0}, {1}, 3));
  s.add_error("rank", {{3}}, of({0}, {1}));
}
PUPIL_SAMPLES(gather) {
  auto along = [](int axis, std::vector<int64_t> index, Shape shape) {
    return [=](auto& v) { return gather(v[0], axis, sample_index(v[0], index, shape)); };
  };
  s.add("labels", {{4, 6}}, along(1, {5, 0, 3, 3}, {4, 1}));
  s.add("smaller, repeated", {{3, 4}}, along(0, {2, 2, 2, 0, 1, 2}, {3, 2}));
  s.add("middle", {{2, 3, 2}}, along(1, {2, 0, 0, 1}, {2, 1, 2}));
  s.add("one element", {{1}}, along(0, {0, 0}, {2}));
  s.add("empty", {{0, 3}}, along(1, {}, {0, 2}));
  s.add_error("range", {{2, 3}}, along(1, {3, 0}, {2, 1}));
  s.add_error("shape", {{2, 3}}, along(1, {0, 0, 0}, {3, 1}));
  s.add_error("rank", {{2, 3}}, along(1, {0}, {1}));
}
PUPIL_SAMPLES(scatter_add) {
  auto along = [](int axis, std::vector<int64_t> index, Shape shape) {
    return [=](auto& v) { return scatter_add(v[0], axis, sample_index(v[0], index, shape), v[1]); };
  };
  s.add("collisions", {{3, 5}, {3, 4}}, along(1, {0, 0, 4, 0, 1, 2, 3, 4, 2, 2, 2, 2}, {3, 4}));
  s.add("part of src", {{3, 3}, {4, 3}}, along(0, {2, 2, 0, 2}, {2, 2}));
  s.add("one element", {{1}, {1}}, along(0, {0}, {1}));
  s.add("empty", {{2, 3}, {2, 0}}, along(1, {}, {2, 0}));
  s.add_error("range", {{2, 3}, {2, 1}}, along(1, {3, 0}, {2, 1}));
  s.add_error("src", {{2, 3}, {1, 1}}, along(1, {0, 0}, {2, 1}));
}
PUPIL_SAMPLES(one_hot) {
  auto times = [](std::vector<int64_t> index, Shape shape, int64_t classes) {
    return [=](auto& v) {
      return mul(one_hot(sample_index(v[0], index, shape), classes, v[0].dtype()), v[0]);
    };
  };
  s.add("rows", {{2, 3}}, times({2, 0}, {2}, 3));
  s.add("one element", {{1}}, times({0}, {}, 1));
  s.add("empty", {{0, 3}}, times({}, {0}, 3));
  s.add_error("range", {{1, 3}}, times({3}, {1}, 3));
  s.add_error("classes", {{1, 3}}, times({0}, {1}, 0));
}

}  // namespace pupil

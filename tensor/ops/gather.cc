// Single elements chosen or added by index: slices of the flattened tensor.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "index.h"

namespace pupil {

struct FlatPosition {
  const int64_t* index;
  int64_t* flat;
  int64_t stride;
  PUPIL_HD void operator()(int64_t i, const int64_t (&at)[1]) const {
    flat[i] = at[0] + index[i] * stride;
  }
};

namespace {

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

Tensor gather(const Tensor& x, int axis, const Tensor& index) {
  Tensor flat = flat_positions("gather", x, checked_axis("gather", x.shape(), axis), index);
  return view(select_slices("gather", view(x, {x.numel()}), flat, 0), index.shape());
}

Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& src) {
  require_floating("scatter_add", x);
  int d = checked_axis("scatter_add", x.shape(), axis);
  Tensor flat = flat_positions("scatter_add", x, d, index), part = src;
  PUPIL_CHECK(src.rank() == x.rank() && src.dtype() == x.dtype(), "scatter_add: ", src.shape(), " ",
              name_of(src.dtype()), " to ", x.shape(), " ", name_of(x.dtype()));
  for (int k = 0; k < x.rank(); k++) {
    PUPIL_CHECK(index.dim(k) <= src.dim(k), "scatter_add: index ", index.shape(), " for ",
                src.shape());
    if (index.dim(k) < src.dim(k)) part = slice(part, k, 0, index.dim(k));
  }
  Tensor y = add_slices("scatter_add", view(x, {x.numel()}), 0, flat, view(part, {flat.numel()}));
  return view(y, x.shape());
}

PUPIL_SAMPLES(gather) {
  auto along = [](int axis, std::vector<int64_t> index, Shape shape) {
    return [=](auto& v) { return gather(v[0], axis, from(index, shape).to(v[0].device())); };
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
    return [=](auto& v) {
      return scatter_add(v[0], axis, from(index, shape).to(v[0].device()), v[1]);
    };
  };
  s.add("collisions", {{3, 5}, {3, 4}}, along(1, {0, 0, 4, 0, 1, 2, 3, 4, 2, 2, 2, 2}, {3, 4}));
  s.add("part of src", {{3, 3}, {4, 3}}, along(0, {2, 2, 0, 2}, {2, 2}));
  s.add("one element", {{1}, {1}}, along(0, {0}, {1}));
  s.add("empty", {{2, 3}, {2, 0}}, along(1, {}, {2, 0}));
  s.add_error("range", {{2, 3}, {2, 1}}, along(1, {3, 0}, {2, 1}));
  s.add_error("src", {{2, 3}, {1, 1}}, along(1, {0, 0}, {2, 1}));
}

}  // namespace pupil

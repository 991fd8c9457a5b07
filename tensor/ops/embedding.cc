// Rows of a table by index, and their opposite: an index as a row of zeros with a one.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "index.h"

namespace pupil {

template <class T>
struct OneHot {
  const int64_t* index;
  T* y;
  int64_t classes;
  PUPIL_HD void operator()(int64_t i) const {
    y[i] = index[i / classes] == i % classes ? T(1.0f) : T(0.0f);
  }
};

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
  return view(select_slices("embedding", weight, view(index, {index.numel()}), 0, skip), shape);
}

Tensor one_hot(const Tensor& index, int64_t classes, DType dtype) {
  PUPIL_CHECK(index.rank() < kMaxRank && classes > 0, "one_hot: index ", index.shape(), " of ",
              classes, " classes");
  Tensor at = checked_index("one_hot", index, classes);
  Shape shape = index.shape();
  shape[shape.rank++] = classes;
  Tensor y = empty(shape, dtype, at.device());
  require_floating("one_hot", y);
  dispatch(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    map(y.device(), y.numel(), OneHot<T>{at.data<int64_t>(), y.data<T>(), classes});
  });
  return y;
}

PUPIL_SAMPLES(embedding) {
  auto of = [](std::vector<int64_t> index, Shape shape, std::optional<int64_t> padding = {}) {
    return [=](auto& v) { return embedding(v[0], from(index, shape).to(v[0].device()), padding); };
  };
  s.add("repeated", {{6, 4}}, of({5, 0, 5, 2, 2, 5}, {2, 3}));
  s.add("one element", {{1, 1}}, of({0}, {}));
  s.add("empty", {{3, 0}}, of({2, 1}, {2}));
  s.add_error("range", {{3, 2}}, of({3}, {1}));
  s.add_error("padding", {{3, 2}}, of({0}, {1}, 3));
  s.add_error("rank", {{3}}, of({0}, {1}));
}
PUPIL_SAMPLES(one_hot) {
  auto times = [](std::vector<int64_t> index, Shape shape, int64_t classes) {
    return [=](auto& v) {
      return mul(one_hot(from(index, shape).to(v[0].device()), classes, v[0].dtype()), v[0]);
    };
  };
  s.add("rows", {{2, 3}}, times({2, 0}, {2}, 3));
  s.add("one element", {{1}}, times({0}, {}, 1));
  s.add("empty", {{0, 3}}, times({}, {0}, 3));
  s.add_error("range", {{1, 3}}, times({3}, {1}, 3));
  s.add_error("classes", {{1, 3}}, times({0}, {1}, 0));
}

}  // namespace pupil

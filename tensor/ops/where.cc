// y = a where cond, else b. Backward: the same choice between the cotangent and 0.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

template <class T>
struct Where {
  const int64_t* cond;
  const T *a, *b;
  T* y;
  PUPIL_HD void operator()(int64_t i, const int64_t (&at)[3]) const {
    y[i] = cond[at[0]] ? a[at[1]] : b[at[2]];
  }
};

namespace {

Tensor chosen(const Tensor& cond, const Tensor& a, const Tensor& b) {
  Shape shape =
      broadcast_shape("where", cond.shape(), broadcast_shape("where", a.shape(), b.shape()));
  Tensor y = empty(shape, a.dtype(), a.device());
  const Tensor* all[3] = {&cond, &a, &b};
  dispatch(a.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map_nd("where", y.device(), shape, all,
           Where<T>{cond.data<int64_t>(), a.data<T>(), b.data<T>(), y.data<T>()});
  });
  return y;
}

}  // namespace

Tensor where(const Tensor& cond, const Tensor& a, const Tensor& b) {
  require_floating("where", a);
  PUPIL_CHECK(cond.dtype() == DType::i64 && a.dtype() == b.dtype(),
              "where: i64 and two equal dtypes expected, got ", cond.shape(), " ",
              name_of(cond.dtype()), ", ", a.shape(), " ", name_of(a.dtype()), ", ", b.shape(), " ",
              name_of(b.dtype()));
  Tensor x = to_strided(a), z = to_strided(b), c = cond;
  return record("where", chosen(c, x, z), {x, z}, [c, sa = a.shape(), sb = b.shape()](Backward& g) {
    Tensor zero = zeros({}, g.gy.dtype(), g.gy.device());
    if (g[0].needed)
      g[0].give(sum_to(chosen(c, g.gy, zero), sa));
    else
      g[0].none();
    if (g[1].needed)
      g[1].give(sum_to(chosen(c, zero, g.gy), sb));
    else
      g[1].none();
  });
}

PUPIL_SAMPLES(where) {
  auto by = [](std::vector<int64_t> cond, Shape shape) {
    return [=](auto& v) { return where(from(cond, shape).to(v[0].device()), v[0], v[1]); };
  };
  s.add("same", {{2, 3}, {2, 3}}, by({1, 0, 0, 2, 1, 0}, {2, 3}));
  s.add("broadcast", {{3, 4}, {4}}, by({1, 0, -1}, {3, 1}));
  s.add("broadcast values", {{2, 1}, {}}, by({1, 0, 0}, {3}));
  s.add("transposed", {{3, 2}, {2, 3}}, [=](auto& v) {
    std::vector<Tensor> both{permute(v[0], {1, 0}), v[1]};
    return by({1, 0, 1}, {3})(both);
  });
  s.add("one element", {{1}, {1}}, by({0}, {1}));
  s.add("empty", {{0, 3}, {3}}, by({1, 0, 1}, {3}));
  s.add("not chosen NaN", {{3}, {3}},
        [=](auto& v) {
          std::vector<Tensor> both{log(scale(square(v[0]), -1)), v[1]};
          return by({0, 0, 0}, {3})(both);
        },
        {.low = 0.1, .high = 1});
  s.add_error("shapes", {{2, 3}, {2, 4}}, by({1}, {1}));
  s.add_error("condition", {{2, 3}, {2, 3}}, by({1, 1}, {2}));
  s.add_error("dtype", {{3}, {3}}, [](auto& v) { return where(v[0], v[0], v[1]); });
}

}  // namespace pupil

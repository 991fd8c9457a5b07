// Angles and distances between rows, composed of other ops.
#include "../../autograd/samples.h"
#include "broadcast.h"

namespace pupil {

Tensor cosine_similarity(const Tensor& a, const Tensor& b, int axis, double eps) {
  require_floating("cosine_similarity", a);
  require_floating("cosine_similarity", b);
  Shape common = broadcast_shape("cosine_similarity", a.shape(), b.shape());
  int from_end = axis < 0 ? axis : axis - common.rank;
  PUPIL_CHECK(from_end < 0 && from_end >= -common.rank && eps > 0, "cosine_similarity: axis ", axis,
              ", eps ", eps, " for ", a.shape(), " and ", b.shape());
  // Other axes are broadcast by the product: every row has its norm once.
  auto unit = [=](const Tensor& t) {
    bool whole = t.rank() >= -from_end && t.dim(from_end) == common[from_end];
    Tensor x = whole ? t : expand(t, common);
    return div(x, clamp(sqrt(sum(square(x), {from_end}, true)), eps, INFINITY));
  };
  return sum(mul(unit(a), unit(b)), {from_end});
}

Tensor cdist(const Tensor& a, const Tensor& b, double p) {
  require_floating("cdist", a);
  require_floating("cdist", b);
  PUPIL_CHECK(a.rank() >= 2 && b.rank() >= 2 && a.dim(-1) == b.dim(-1), "cdist: rows of one width",
              " expected, got ", a.shape(), " and ", b.shape());
  PUPIL_CHECK(p == 1 || p == 2, "cdist: p = ", p, " for ", a.shape());
  auto with_axis = [](const Tensor& x, int at) {  // a new one of size 1
    std::vector<int64_t> dims(x.shape().dims, x.shape().dims + x.rank());
    dims.insert(dims.end() + at, 1);
    PUPIL_CHECK(dims.size() <= size_t(kMaxRank), "cdist: too many axes: ", x.shape());
    return view(x, Shape(std::span<const int64_t>(dims)));
  };
  // Not |a|^2 + |b|^2 - 2 a b: close rows would cancel.
  Tensor d = sub(with_axis(a, -1), with_axis(b, -2));
  return p == 1 ? sum(abs(d), {-1}) : sqrt(sum(square(d), {-1}));
}

PUPIL_SAMPLES(cosine_similarity) {
  auto along = [](int axis, double eps = 1e-8) {
    return [=](auto& v) { return cosine_similarity(v[0], v[1], axis, eps); };
  };
  s.add("rows", {{4, 6}, {4, 6}}, along(1));
  s.add("columns", {{4, 3, 2}, {4, 3, 2}}, along(-2));
  s.add("pairs", {{3, 1, 5}, {1, 4, 5}}, along(-1));
  s.add("one row with all", {{5}, {3, 5}}, along(1));
  test::SampleOptions no_gradient{.constants = {0}};  // of a constant row: it is 0
  s.add("along a broadcast axis", {{3, 1}, {3, 5}}, along(1), no_gradient);
  s.add("one row along its missing axis", {{5}, {3, 5}}, along(0), no_gradient);
  s.add("below eps", {{3, 4}, {3, 4}}, along(1, 10));
  s.add("transposed", {{6, 4}, {4, 6}}, [](auto& v) {
    return cosine_similarity(permute(v[0], {1, 0}), v[1], 1);
  });
  s.add("one element", {{1}, {1}}, along(0, 2));
  s.add("empty", {{0, 3}, {3}}, along(1));
  s.add_error("shapes", {{2, 3}, {2, 4}}, along(1));
  s.add_error("axis", {{2, 3}, {2, 3}}, along(2));
}
PUPIL_SAMPLES(cdist) {
  auto with = [](double p) { return [=](auto& v) { return cdist(v[0], v[1], p); }; };
  s.add("euclid", {{4, 3}, {5, 3}}, with(2));
  s.add("manhattan", {{4, 3}, {5, 3}}, with(1));
  s.add("batch", {{2, 1, 4, 3}, {3, 2, 3}}, with(2));
  s.add("with itself", {{4, 3}}, [](auto& v) {  // gradient 0 at distance 0
    Tensor rows = cat({v[0], scale(v[0], 3)}, 0);
    return slice(cdist(rows, v[0], 2), 0, 4, 8);
  });
  s.add("transposed", {{3, 4}, {5, 3}}, [](auto& v) {
    return cdist(permute(v[0], {1, 0}), v[1], 2);
  });
  s.add("one element", {{1, 1}, {1, 1}}, with(1));
  s.add("no rows", {{0, 3}, {5, 3}}, with(2));
  s.add_error("width", {{4, 3}, {5, 2}}, with(2));
  s.add_error("p", {{4, 3}, {5, 3}}, with(3));
  s.add_error("vector", {{3}, {3}}, with(2));
}

}  // namespace pupil

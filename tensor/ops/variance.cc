// Composed. The mean is subtracted twice: far from 0 the first one, in float32, is itself rounded.
#include "../../autograd/samples.h"
#include "broadcast.h"

namespace pupil {

namespace {

Tensor variance_of(const char* op, const Tensor& x, const std::vector<int>& axes, double correction,
                   bool keep) {
  require_floating(op, x);
  double count = double(reduced_axes(op, x.shape(), axes).count);
  PUPIL_CHECK(count > 0 && count > correction, op, ": of ", count, " elements with correction ",
              correction, ", ", x.shape());
  Tensor shifted = sub(x, mean(x.detach(), axes, true));
  Tensor centred = sub(shifted, mean(shifted, axes, true));
  return scale(sum(square(centred), axes, keep), 1 / (count - correction));
}

}  // namespace

Tensor variance(const Tensor& x, std::vector<int> axes, double correction, bool keep) {
  return variance_of("variance", x, axes, correction, keep);
}
Tensor standard_deviation(const Tensor& x, std::vector<int> axes, double correction, bool keep) {
  return sqrt(variance_of("standard_deviation", x, axes, correction, keep));
}

namespace {

[[maybe_unused]] void variance_samples(auto& s,
                                       Tensor (*f)(const Tensor&, std::vector<int>, double, bool)) {
  auto over = [f](std::vector<int> axes, double correction = 1, bool keep = false) {
    return [=](auto& v) { return f(v[0], axes, correction, keep); };
  };
  s.add("rows", {{3, 7}}, over({1}));
  s.add("all", {{3, 4}}, over({}));
  s.add("channels", {{2, 3, 4}}, over({0, 2}, 0, true));
  s.add("transposed", {{5, 3}}, [f](auto& v) { return f(permute(v[0], {1, 0}), {1}, 1, false); });
  s.add("one element", {{1}}, over({0}, 0));
  s.add("empty", {{0, 3}}, over({1}));
  s.add_error("of nothing", {{0, 3}}, over({0}, 0));
  s.add_error("axis", {{2, 3}}, over({2}));
  s.add_error("correction", {{1, 3}}, over({0}));
  s.add_error("integers", {{3}}, [f](auto& v) { return f(v[0].to(DType::i64), {}, 0, false); });
}

}  // namespace

PUPIL_SAMPLES(variance) {
  variance_samples(s, variance);
  s.add("far from 0", {{2, 9}}, [](auto& v) { return variance(v[0], {1}); },
        {.low = 4096, .high = 4100, .bf16 = false});
}
PUPIL_SAMPLES(standard_deviation) { variance_samples(s, standard_deviation); }

}  // namespace pupil

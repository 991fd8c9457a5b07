// m + log sum e^(x - m), composed, with m the largest element: the gradient is the soft-max.
#include "../../autograd/samples.h"
#include "broadcast.h"

namespace pupil {

Tensor logsumexp(const Tensor& x, std::vector<int> axes, bool keep) {
  require_floating("logsumexp", x);
  ReducedAxes to = reduced_axes("logsumexp", x.shape(), axes);
  PUPIL_CHECK(to.count > 0, "logsumexp: of no elements, ", x.shape());
  Tensor m = amax(x.detach(), axes, true);
  PUPIL_CHECK(m.numel() == 0 || amin(m).item() != -INFINITY,
              "logsumexp: nothing but -inf to add in ", x.shape());
  Tensor y = add(log(sum(exp(sub(x, m)), axes, true)), m);
  return keep ? y : view(y, to.dropped);
}

PUPIL_SAMPLES(logsumexp) {
  auto over = [](std::vector<int> axes, bool keep = false) {
    return [=](auto& v) { return logsumexp(v[0], axes, keep); };
  };
  s.add("rows", {{3, 5}}, over({1}), {.low = -3, .high = 3});
  s.add("all", {{3, 5}}, over({}), {.low = 500, .high = 501, .bf16 = false});
  s.add("channels, kept", {{2, 3, 4}}, over({0, 2}, true));
  s.add("transposed", {{4, 3}}, [](auto& v) { return logsumexp(permute(v[0], {1, 0}), {1}); });
  s.add("one element", {{1}}, over({0}));
  s.add("empty", {{0, 3}}, over({1}));
  s.add("one -inf", {{4}}, [](auto& v) {
    return logsumexp(cat({v[0], full({1}, -INFINITY, v[0].dtype(), v[0].device())}, 0));
  });
  s.add_error("only -inf", {{2, 2}}, [](auto& v) { return logsumexp(log(scale(v[0], 0)), {1}); });
  s.add_error("of nothing", {{0, 3}}, over({0}));
  s.add_error("axis", {{2, 3}}, over({-3}));
}

}  // namespace pupil

// layer_norm over the channels of a group and its pixels, then one factor and summand a channel.
#include "../../autograd/samples.h"
#include "broadcast.h"

namespace pupil {

Tensor group_norm(const Tensor& input, int groups, const Tensor& weight, const Tensor& bias,
                  double eps) {
  require_floating("group_norm", input);
  PUPIL_CHECK(input.rank() >= 2 && groups > 0 && input.dim(1) % groups == 0,
              "group_norm: (n,c,...) with channels of ", groups, " groups expected, got ",
              input.shape());
  int64_t channels = input.dim(1), width = channels / groups;
  Shape each = input.shape();  // of weight and bias
  for (int d = 0; d < each.rank; d++) {
    if (d > 1) width *= each[d];
    if (d != 1) each[d] = 1;
  }
  for (const Tensor* p : {&weight, &bias})
    PUPIL_CHECK(!*p || p->shape() == Shape{channels}, "group_norm: ", p->shape(), " for x ",
                input.shape());
  Tensor x = view(to_strided(input), {input.dim(0) * groups, width});
  Tensor y = view(layer_norm(x, {}, {}, eps), input.shape());
  if (weight) y = mul(y, view(to_dtype(weight, y.dtype()), each));
  return bias ? add(y, view(to_dtype(bias, y.dtype()), each)) : y;
}

PUPIL_SAMPLES(group_norm) {
  auto with = [](int groups) {
    return [=](auto& v) {
      return group_norm(v[0], groups, v.size() > 1 ? v[1] : Tensor(),
                        v.size() > 2 ? v[2] : Tensor(), 1e-5);
    };
  };
  s.add("images", {{2, 6, 3, 4}, {6}, {6}}, with(2));
  s.add("instances", {{2, 3, 4, 4}}, with(3));
  s.add("one group, no bias", {{3, 4}, {4}}, with(1));
  s.add("sequences", {{2, 4, 5}, {4}, {4}}, with(2));
  s.add("permuted", {{2, 3, 3, 4}, {4}, {4}}, [](auto& v) {
    return group_norm(permute(v[0], {0, 3, 1, 2}), 2, v[1], v[2]);
  });
  s.add("one element", {{1, 1, 1}, {1}, {1}}, with(1));
  s.add("empty", {{0, 4, 3}, {4}, {4}}, with(2));
  s.add_error("groups", {{2, 6, 3}}, with(4));
  s.add_error("weight", {{2, 6, 3}, {3}, {3}}, with(2));
  s.add_error("vector", {{6}}, with(2));
}

}  // namespace pupil

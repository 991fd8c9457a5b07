// Channels to pixels (Shi et al. 2016) and back, as views and one permutation.
#include "../../autograd/samples.h"
#include "../ops.h"

namespace pupil {

namespace {

// One view of rank 6 between the two shapes; leading axes are one.
Tensor shuffled(const Tensor& x, const Shape& between, const std::vector<int>& order,
                const int64_t (&last)[3]) {
  Shape shape = x.shape();
  for (int d = 0; d < 3; d++) shape[d - 3] = last[d];
  return view(permute(view(to_strided(x), between), order), shape);
}

}  // namespace

Tensor pixel_shuffle(const Tensor& x, int r) {
  PUPIL_CHECK(x.rank() >= 3 && r > 0 && x.dim(-3) % (int64_t(r) * r) == 0,
              "pixel_shuffle: (...,c*r*r,h,w) with r = ", r, " expected, got ", x.shape());
  int64_t c = x.dim(-3) / r / r, h = x.dim(-2), w = x.dim(-1), n = 1;
  for (int d = 0; d < x.rank() - 3; d++) n *= x.dim(d);
  return shuffled(x, {n, c, r, r, h, w}, {0, 1, 4, 2, 5, 3}, {c, h * r, w * r});
}

Tensor pixel_unshuffle(const Tensor& x, int r) {
  PUPIL_CHECK(x.rank() >= 3 && r > 0 && x.dim(-2) % r == 0 && x.dim(-1) % r == 0,
              "pixel_unshuffle: (...,c,h*r,w*r) with r = ", r, " expected, got ", x.shape());
  int64_t c = x.dim(-3), h = x.dim(-2) / r, w = x.dim(-1) / r, n = 1;
  for (int d = 0; d < x.rank() - 3; d++) n *= x.dim(d);
  return shuffled(x, {n, c, h, r, w, r}, {0, 1, 3, 5, 2, 4}, {c * r * r, h, w});
}

PUPIL_SAMPLES(pixel_shuffle) {
  auto by = [](int r) { return [=](auto& v) { return pixel_shuffle(v[0], r); }; };
  s.add("2", {{2, 8, 3, 2}}, by(2));
  s.add("3, no batch", {{9, 2, 1}}, by(3));
  s.add("two leading axes", {{2, 1, 4, 2, 3}}, by(2));
  s.add("one element", {{1, 1, 1}}, by(1));
  s.add("empty", {{0, 4, 2, 2}}, by(2));
  s.add("permuted", {{2, 3, 8}}, [](auto& v) {
    return pixel_shuffle(permute(v[0], {2, 0, 1}), 2);
  });
  s.add_error("channels", {{1, 6, 2, 2}}, by(2));
  s.add_error("r", {{1, 4, 2, 2}}, by(0));
}
PUPIL_SAMPLES(pixel_unshuffle) {
  auto by = [](int r) { return [=](auto& v) { return pixel_unshuffle(v[0], r); }; };
  s.add("2", {{2, 2, 6, 4}}, by(2));
  s.add("there and back", {{8, 3, 2}},
        [](auto& v) { return pixel_unshuffle(pixel_shuffle(v[0], 2), 2); });
  s.add("one element", {{1, 1, 1}}, by(1));
  s.add("empty", {{0, 1, 2, 2}}, by(2));
  s.add_error("side", {{1, 1, 3, 2}}, by(2));
}

}  // namespace pupil

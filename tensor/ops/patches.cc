// Images cut into square patches: the im2col of a convolution whose stride equals its kernel.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

// Patches, row-major (n, patch row, patch column, c, y, x), from images, or images from patches.
// One team per line of an image.
template <class T, bool kGather>
struct Patches {
  int64_t channels, height, width, side;
  T* to;
  const T* from;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t line) const {
    int64_t y = line % height, c = line / height % channels, n = line / height / channels;
    int64_t columns = width / side, area = side * side, row = n * (height / side) + y / side;
    for (int64_t column = 0; column < columns; column++) {
      int64_t patch = ((row * columns + column) * channels + c) * area + y % side * side;
      int64_t pixel = line * width + column * side;
      team.each(side, [&](int64_t x) {
        if (kGather)
          to[patch + x] = from[pixel + x];
        else
          to[pixel + x] = from[patch + x];
      });
    }
  }
};

Tensor patches(const Tensor& images, int side) {
  require_floating("patches", images);
  PUPIL_CHECK(
      images.rank() == 4 && side > 0 && images.dim(2) % side == 0 && images.dim(3) % side == 0,
      "patches: images ", images.shape(), " cannot be cut into patches of side ", side);
  Tensor x = images.contiguous().detach();
  int64_t c = x.dim(1), h = x.dim(2), w = x.dim(3);
  Tensor out = empty({x.dim(0), (h / side) * (w / side), c * side * side}, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(x.device(), x.dim(0) * c * h, Patches<T, true>{c, h, w, side, out.data<T>(), x.data<T>()},
         w);
  });
  const Attributes said{{"side", side}};
  return record("patches", out, {images}, said, [side, shape = x.shape()](Backward& b) {
    if (!b[0].needed) return b[0].none();
    Tensor gy = b.gy.contiguous(), gx = empty(shape, gy.dtype(), gy.device());
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      rows(gx.device(), shape[0] * shape[1] * shape[2],
           Patches<T, false>{shape[1], shape[2], shape[3], side, gx.data<T>(), gy.data<T>()},
           shape[3]);
    });
    b[0].give(gx);
  });
}

PUPIL_SAMPLES(patches) {
  s.add("two images", {{2, 3, 4, 6}}, [](auto& v) { return patches(v[0], 2); });
  s.add("one patch", {{1, 1, 3, 3}}, [](auto& v) { return patches(v[0], 3); });
  s.add("pixels", {{2, 2, 2, 1}}, [](auto& v) { return patches(v[0], 1); });
  s.add("empty", {{0, 3, 4, 4}}, [](auto& v) { return patches(v[0], 2); });
  s.add("transposed", {{1, 2, 4, 2}}, [](auto& v) {
    return patches(permute(v[0], {0, 1, 3, 2}), 2);
  });
  s.add_error("side", {{1, 3, 5, 4}}, [](auto& v) { return patches(v[0], 2); });
}

}  // namespace pupil

// Images cut into square patches: the im2col of a convolution whose stride equals its kernel.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"

namespace pupil {

// Element i of the patches, row-major (n, patch row, patch column, c, y, x), and its pixel.
struct PatchIndex {
  int64_t channels, height, width, side;
  PUPIL_HD int64_t pixel(int64_t i) const {
    int64_t x = i % side, y = i / side % side;
    i /= side * side;
    int64_t c = i % channels;
    i /= channels;
    int64_t columns = width / side, rows = height / side;
    int64_t column = i % columns, row = i / columns % rows, n = i / columns / rows;
    return ((n * channels + c) * height + row * side + y) * width + column * side + x;
  }
};

template <class T, bool kGather>
struct Patches {
  PatchIndex index;
  T* to;
  const T* from;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t p = index.pixel(i);
    if (kGather)
      to[i] = from[p];
    else
      to[p] = from[i];
  }
};

Tensor patches(const Tensor& images, int side) {
  PUPIL_CHECK(
      images.rank() == 4 && side > 0 && images.dim(2) % side == 0 && images.dim(3) % side == 0,
      "patches: images ", images.shape(), " cannot be cut into patches of side ", side);
  Tensor x = images.contiguous().detach();
  int64_t c = x.dim(1), h = x.dim(2), w = x.dim(3);
  PatchIndex index{c, h, w, side};
  Tensor out = empty({x.dim(0), (h / side) * (w / side), c * side * side}, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), out.numel(), Patches<T, true>{index, out.data<T>(), x.data<T>()});
  });
  const Attributes said{{"side", side}};
  return record("patches", out, {images}, said, [index, shape = x.shape()](Backward& b) {
    if (!b[0].needed) return b[0].none();
    Tensor gy = b.gy.contiguous(), gx = empty(shape, gy.dtype(), gy.device());
    dispatch(gy.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      map(gy.device(), gy.numel(), Patches<T, false>{index, gx.data<T>(), gy.data<T>()});
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

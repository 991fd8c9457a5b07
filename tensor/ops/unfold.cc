// Windows of an image as columns (im2col) and, its adjoint, columns added back into an image.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"
#include "window.h"

namespace pupil {

template <class T>
struct Unfold {
  Windows s;
  const T* x;
  T* y;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t ox = i % s.out_width, oy = i / s.out_width % s.out_height,
            k = i / s.out_width / s.out_height;
    int64_t kx = k % s.kernel_w, ky = k / s.kernel_w % s.kernel_h;
    int64_t plane = k / s.kernel_w / s.kernel_h;
    int64_t in_y = oy * s.stride_h - s.padding_h + ky * s.dilation_h;
    int64_t in_x = ox * s.stride_w - s.padding_w + kx * s.dilation_w;
    bool inside = in_y >= 0 && in_y < s.height && in_x >= 0 && in_x < s.width;
    y[i] = inside ? x[(plane * s.height + in_y) * s.width + in_x] : T(0);
  }
};

// A pixel sums the windows that contain it.
template <class T>
struct Fold {
  Windows s;
  const T* columns;
  T* image;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t x = i % s.width, y = i / s.width % s.height, plane = i / s.width / s.height;
    A sum = 0;
    s.each_around(y, x, [&](int64_t ky, int64_t kx, int64_t out_y, int64_t out_x) {
      int64_t row = (plane * s.kernel_h + ky) * s.kernel_w + kx;
      sum = sum + A(columns[(row * s.out_height + out_y) * s.out_width + out_x]);
    });
    image[i] = T(sum);
  }
};

namespace {

template <template <class> class Kernel>
Tensor apply(const Windows& s, const Tensor& from, const Shape& shape) {
  Tensor x = from.contiguous(), y = empty(shape, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(y.device(), y.numel(), Kernel<T>{s, x.data<T>(), y.data<T>()});
  });
  return y;
}

}  // namespace

Tensor unfold(const Tensor& input, const WindowOptions& options) {
  require_floating("unfold", input);
  PUPIL_CHECK(input.rank() == 4, "unfold: (n,c,h,w) expected, got ", input.shape());
  Windows s = windows("unfold", input.dim(2), input.dim(3), options);
  Tensor x = to_strided(input);
  Shape columns{x.dim(0), x.dim(1) * s.kernel_h * s.kernel_w, s.out_height * s.out_width};
  return record("unfold", apply<Unfold>(s, x, columns), {x},
                [s, image = x.shape()](Backward& b) { b[0].give(apply<Fold>(s, b.gy, image)); });
}

Tensor fold(const Tensor& x, Pair size, const WindowOptions& options) {
  require_floating("fold", x);
  Windows s = windows("fold", size.h, size.w, options);
  PUPIL_CHECK(x.rank() == 3 && x.dim(1) % (s.kernel_h * s.kernel_w) == 0 &&
                  x.dim(2) == s.out_height * s.out_width,
              "fold: (n, c * ", s.kernel_h * s.kernel_w, ", ", s.out_height * s.out_width,
              ") expected for an image of ", size.h, " x ", size.w, ", got ", x.shape());
  Shape image{x.dim(0), x.dim(1) / (s.kernel_h * s.kernel_w), size.h, size.w};
  return record("fold", apply<Fold>(s, x, image), {x}, [s, columns = x.shape()](Backward& b) {
    b[0].give(apply<Unfold>(s, b.gy, columns));
  });
}

PUPIL_SAMPLES(unfold) {
  auto with = [](WindowOptions o) { return [=](auto& v) { return unfold(v[0], o); }; };
  s.add("3x3", {{2, 3, 5, 6}}, with({.kernel = 3, .padding = 1, .stride = 2}));
  s.add("asymmetric", {{1, 2, 6, 9}},
        with({.kernel = {2, 3}, .dilation = {1, 2}, .padding = {0, 1}, .stride = {1, 2}}));
  s.add("one pixel", {{1, 1, 1, 1}}, with({.kernel = 1}));
  s.add("empty", {{0, 2, 4, 4}}, with({.kernel = 2}));
  s.add("permuted", {{2, 4, 5, 3}}, [](auto& v) {
    return unfold(permute(v[0], {0, 3, 1, 2}), {.kernel = 2});
  });
  s.add_error("window", {{1, 1, 2, 2}}, with({.kernel = 3}));
  for (Pair wrong : {Pair{0, 1}, Pair{1, 0}}) {
    s.add_error("no kernel", {{1, 1, 4, 4}}, with({.kernel = wrong}));
    s.add_error("no stride", {{1, 1, 4, 4}}, with({.kernel = 1, .stride = wrong}));
    s.add_error("no dilation", {{1, 1, 4, 4}}, with({.kernel = 1, .dilation = wrong}));
  }
  for (Pair wrong : {Pair{-1, 0}, Pair{0, -1}})
    s.add_error("negative padding", {{1, 1, 4, 4}}, with({.kernel = 1, .padding = wrong}));
  s.add_error("rank", {{2, 2}}, with({.kernel = 1}));
}
PUPIL_SAMPLES(fold) {
  auto to = [](Pair size, WindowOptions o) { return [=](auto& v) { return fold(v[0], size, o); }; };
  s.add("3x3", {{1, 18, 12}}, to({6, 7}, {.kernel = 3, .padding = 1, .stride = 2}));
  s.add("asymmetric", {{2, 6, 15}},
        to({6, 7}, {.kernel = {3, 1}, .dilation = {1, 2}, .padding = {1, 1}, .stride = {2, 2}}));
  s.add("overlapping", {{1, 4, 9}}, to(4, {.kernel = 2}));
  s.add("one pixel", {{1, 1, 1}}, to(1, {.kernel = 1}));
  s.add("empty", {{0, 4, 9}}, to(4, {.kernel = 2}));
  s.add("transposed", {{1, 9, 4}}, [](auto& v) {
    return fold(permute(v[0], {0, 2, 1}), 4, {.kernel = 2});
  });
  s.add_error("columns", {{1, 4, 8}}, to(4, {.kernel = 2}));
  s.add_error("rows", {{1, 3, 9}}, to(4, {.kernel = 2}));
}

}  // namespace pupil

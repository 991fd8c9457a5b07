// Windows of an image as columns (im2col) and, its adjoint, columns added back into an image.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

// Planes (height, width) and columns (kernel_h kernel_w, out_h out_w) of each.
struct WindowGeometry {
  int64_t height, width, out_h, out_w, kernel_h, kernel_w;
  int64_t dilation_h, dilation_w, padding_h, padding_w, stride_h, stride_w;
};

template <class T>
struct Unfold {
  WindowGeometry s;
  const T* x;
  T* y;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t ox = i % s.out_w, oy = i / s.out_w % s.out_h, k = i / s.out_w / s.out_h;
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
  WindowGeometry s;
  const T* columns;
  T* image;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t x = i % s.width, y = i / s.width % s.height, plane = i / s.width / s.height;
    A sum = 0;
    for (int64_t ky = 0; ky < s.kernel_h; ky++) {
      int64_t from_y = y + s.padding_h - ky * s.dilation_h, oy = from_y / s.stride_h;
      if (from_y < 0 || from_y % s.stride_h || oy >= s.out_h) continue;
      for (int64_t kx = 0; kx < s.kernel_w; kx++) {
        int64_t from_x = x + s.padding_w - kx * s.dilation_w, ox = from_x / s.stride_w;
        if (from_x < 0 || from_x % s.stride_w || ox >= s.out_w) continue;
        int64_t row = (plane * s.kernel_h + ky) * s.kernel_w + kx;
        sum = sum + A(columns[(row * s.out_h + oy) * s.out_w + ox]);
      }
    }
    image[i] = T(sum);
  }
};

namespace {

WindowGeometry windows(const char* op, int64_t height, int64_t width, const WindowOptions& o) {
  PUPIL_CHECK(o.kernel.h > 0 && o.kernel.w > 0 && o.stride.h > 0 && o.stride.w > 0 &&
                  o.dilation.h > 0 && o.dilation.w > 0 && o.padding.h >= 0 && o.padding.w >= 0,
              op, ": kernel, stride and dilation must be positive, padding not negative");
  auto count = [](int64_t side, int kernel, int dilation, int padding, int stride) {
    int64_t reach = side + 2 * padding - int64_t(dilation) * (kernel - 1) - 1;
    return reach < 0 ? 0 : reach / stride + 1;
  };
  WindowGeometry s{height,       width,        0,           0,           o.kernel.h, o.kernel.w,
                   o.dilation.h, o.dilation.w, o.padding.h, o.padding.w, o.stride.h, o.stride.w};
  s.out_h = count(height, o.kernel.h, o.dilation.h, o.padding.h, o.stride.h);
  s.out_w = count(width, o.kernel.w, o.dilation.w, o.padding.w, o.stride.w);
  PUPIL_CHECK(s.out_h > 0 && s.out_w > 0, op, ": the window is larger than the padded image, ",
              height, " x ", width);
  return s;
}

template <template <class> class Kernel>
Tensor apply(const WindowGeometry& s, const Tensor& from, const Shape& shape) {
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
  WindowGeometry s = windows("unfold", input.dim(2), input.dim(3), options);
  Tensor x = to_strided(input);
  Shape columns{x.dim(0), x.dim(1) * s.kernel_h * s.kernel_w, s.out_h * s.out_w};
  return record("unfold", apply<Unfold>(s, x, columns), {x},
                [s, image = x.shape()](Backward& b) { b[0].give(apply<Fold>(s, b.gy, image)); });
}

Tensor fold(const Tensor& x, Pair size, const WindowOptions& options) {
  require_floating("fold", x);
  WindowGeometry s = windows("fold", size.h, size.w, options);
  PUPIL_CHECK(
      x.rank() == 3 && x.dim(1) % (s.kernel_h * s.kernel_w) == 0 && x.dim(2) == s.out_h * s.out_w,
      "fold: (n, c * ", s.kernel_h * s.kernel_w, ", ", s.out_h * s.out_w,
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

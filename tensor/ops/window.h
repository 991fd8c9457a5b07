// Windows that slide over the planes of row-major images: of pooling, unfold and fold.
#pragma once
#include "../ops.h"

namespace pupil {

// One window per output pixel.
struct Windows {
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  // f(kernel row, kernel column, out_y, out_x) for every window that contains the input pixel.
  template <class F>
  PUPIL_HD void each_around(int64_t y, int64_t x, const F& f) const {
    for (int64_t ky = 0; ky < kernel_h; ky++) {
      int64_t from_y = y + padding_h - ky * dilation_h, out_y = from_y / stride_h;
      if (from_y < 0 || from_y % stride_h || out_y >= out_height) continue;
      for (int64_t kx = 0; kx < kernel_w; kx++) {
        int64_t from_x = x + padding_w - kx * dilation_w, out_x = from_x / stride_w;
        if (from_x < 0 || from_x % stride_w || out_x >= out_width) continue;
        f(ky, kx, out_y, out_x);
      }
    }
  }
};

// Throws with the op's name when an option is wrong or no window fits. ceil_mode: see PoolOptions.
inline Windows windows(const char* op, int64_t height, int64_t width, const WindowOptions& o,
                       bool ceil_mode = false) {
  PUPIL_CHECK(o.kernel.h > 0 && o.kernel.w > 0 && o.stride.h > 0 && o.stride.w > 0 &&
                  o.dilation.h > 0 && o.dilation.w > 0 && o.padding.h >= 0 && o.padding.w >= 0,
              op, ": kernel, stride and dilation must be positive, padding not negative");
  auto count = [=](int64_t side, int kernel, int stride, int padding, int dilation) -> int64_t {
    int64_t reach = side + 2 * padding - int64_t(dilation) * (kernel - 1) - 1;
    if (reach < 0) return 0;
    int64_t n = (reach + (ceil_mode ? stride - 1 : 0)) / stride + 1;
    return ceil_mode && (n - 1) * stride >= side + padding ? n - 1 : n;
  };
  int64_t rows = count(height, o.kernel.h, o.stride.h, o.padding.h, o.dilation.h);
  int64_t columns = count(width, o.kernel.w, o.stride.w, o.padding.w, o.dilation.w);
  PUPIL_CHECK(rows > 0 && columns > 0, op, ": the window is larger than the padded image, ", height,
              " x ", width);
  return {height,     width,      rows,        columns,     o.kernel.h,   o.kernel.w,
          o.stride.h, o.stride.w, o.padding.h, o.padding.w, o.dilation.h, o.dilation.w};
}

}  // namespace pupil

// What pooling by windows and by the whole image share: geometry, and the CPU's kernels for every
// layout.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../launch.h"
#include "image.h"
#include "window.h"

namespace pupil {

struct PoolGeometry : Windows {
  bool count_include_pad;

  // How many positions the average divides by.
  PUPIL_HD int64_t divisor(int64_t out_y, int64_t out_x) const {
    int64_t top = out_y * stride_h - padding_h, left = out_x * stride_w - padding_w;
    int64_t bottom = top + kernel_h, right = left + kernel_w;
    int64_t margin_h = count_include_pad ? padding_h : 0,
            margin_w = count_include_pad ? padding_w : 0;
    if (bottom > height + margin_h) bottom = height + margin_h;
    if (right > width + margin_w) right = width + margin_w;
    if (top < -margin_h) top = -margin_h;
    if (left < -margin_w) left = -margin_w;
    return (bottom - top) * (right - left);
  }

  // f(pixel) for every pixel of an image plane that a window contains.
#ifdef __CUDACC__
#pragma nv_exec_check_disable  // f of the CPU's twin runs on the host alone
#endif
  template <class F>
  PUPIL_HD void each_inside(int64_t out_y, int64_t out_x, const F& f) const {
    for (int64_t ky = 0; ky < kernel_h; ky++) {
      int64_t y = out_y * stride_h - padding_h + ky * dilation_h;
      if (y < 0 || y >= height) continue;
      for (int64_t kx = 0; kx < kernel_w; kx++) {
        int64_t x = out_x * stride_w - padding_w + kx * dilation_w;
        if (x >= 0 && x < width) f(y * width + x);
      }
    }
  }
};

// The float32 and bf16 twin on the CPU, for every layout: an image has `block` channels side by
// side, of which up to 16 are done at once.
struct BlockPool {
  PoolGeometry s;
  int64_t images, block;

  BlockPool(const PoolGeometry& s, const Tensor& x) : s(s), block(ImageIndex(x).block) {
    images = x.dim(0) * x.dim(1) / block;
  }

  // f(first channel, how many): 16 as a constant, so that loops become vector code.
  template <class F>
  void each_run(const F& f) const {
    for (int64_t first = 0; first < block; first += 16)
      if (block - first >= 16)
        f(first, std::integral_constant<int64_t, 16>{});
      else
        f(first, block - first);
  }

  // where: gets the pixels that won; null when nobody asks.
  template <class T>
  void forward(const T* x, T* y, int32_t* where, bool maximum) const {
    BlockPool p = *this;
    parallel_for(images * s.out_height, images * s.out_height * s.out_width * block,
                 [=](int64_t row) {
                   const T* image = x + row / p.s.out_height * p.s.height * p.s.width * p.block;
                   int64_t out_y = row % p.s.out_height;
                   for (int64_t out_x = 0; out_x < p.s.out_width; out_x++)
                     p.each_run([&](int64_t first, auto width) {
                       float value[16];
                       int32_t winner[16];
                       for (int64_t c = 0; c < width; c++)
                         value[c] = maximum ? -INFINITY : 0, winner[c] = -1;
                       p.s.each_inside(out_y, out_x, [&](int64_t pixel) {
                         const T* from = image + pixel * p.block + first;
                         if (maximum && !where) {
#pragma omp simd
                           for (int64_t c = 0; c < width; c++) {
                             float v = float(from[c]);
                             value[c] = v > value[c] || v != v ? v : value[c];
                           }
                         } else if (maximum) {
#pragma omp simd
                           for (int64_t c = 0; c < width; c++) {
                             float v = float(from[c]);
                             bool better = winner[c] < 0 || v > value[c] || v != v;
                             value[c] = better ? v : value[c];
                             winner[c] = better ? int32_t(pixel) : winner[c];
                           }
                         } else {
#pragma omp simd
                           for (int64_t c = 0; c < width; c++) value[c] += float(from[c]);
                         }
                       });
                       int64_t at = (row * p.s.out_width + out_x) * p.block + first;
                       float divisor = maximum ? 1.0f : float(p.s.divisor(out_y, out_x));
#pragma omp simd
                       for (int64_t c = 0; c < width; c++) y[at + c] = T(value[c] / divisor);
                       if (where)
                         for (int64_t c = 0; c < width; c++) where[at + c] = winner[c];
                     });
                 });
  }

  // Every window gives its share to its pixels, in float32: bf16 is rounded when all have given.
  template <class T>
  void backward(const T* gy, const int32_t* where, T* gx) const {
    BlockPool p = *this;
    int64_t size = s.height * s.width * block;
    parallel_for(images, images * size, [=](int64_t i) {
      std::vector<float> rounded_later(std::is_same_v<T, float> ? 0 : size_t(size));
      float* image = rounded_later.data();
      if constexpr (std::is_same_v<T, float>) {
        image = gx + i * size;
        std::fill(image, image + size, 0.0f);
      }
      for (int64_t out_y = 0; out_y < p.s.out_height; out_y++)
        for (int64_t out_x = 0; out_x < p.s.out_width; out_x++)
          p.each_run([&](int64_t first, auto width) {
            int64_t at = ((i * p.s.out_height + out_y) * p.s.out_width + out_x) * p.block + first;
            const T* share = gy + at;
            if (where) {
              for (int64_t c = 0; c < width; c++)
                if (where[at + c] >= 0)
                  image[where[at + c] * p.block + first + c] += float(share[c]);
              return;
            }
            float divisor = float(p.s.divisor(out_y, out_x));
            p.s.each_inside(out_y, out_x, [&](int64_t pixel) {
              float* to = image + pixel * p.block + first;
#pragma omp simd
              for (int64_t c = 0; c < width; c++) to[c] += float(share[c]) / divisor;
            });
          });
      for (size_t k = 0; k < rounded_later.size(); k++)
        gx[i * size + int64_t(k)] = T(rounded_later[k]);
    });
  }
};

inline Tensor empty_in(Layout layout, const Shape& shape, DType dtype, Device device) {
  return layout == Layout::strided ? empty(shape, dtype, device)
                                   : empty_image(shape, dtype, layout);
}

}  // namespace pupil

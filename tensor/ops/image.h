// Where a value of an image lies in memory, for kernels that serve every layout.
#pragma once
#include "../tensor.h"

namespace pupil {

// Pixel (h, w) of channel c of sample n lies at
// n * channels * pixels + c / block * pixels * block + (h * width + w) * block + c % block.
struct ImageIndex {
  int64_t channels, height, width, block;
  explicit ImageIndex(const Tensor& x)
      : channels(x.dim(1)),
        height(x.dim(2)),
        width(x.dim(3)),
        block(x.layout() == Layout::nhwc      ? channels
              : x.layout() == Layout::nchw16c ? 16
                                              : 1) {}
  PUPIL_HD int64_t operator()(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return (n * channels + c / block * block) * height * width + (h * width + w) * block +
           c % block;
  }
  // The inverse: i counts memory.
  PUPIL_HD void where(int64_t i, int64_t& n, int64_t& c, int64_t& h, int64_t& w) const {
    int64_t inner = i % block, pixel = i / block % (height * width);
    int64_t blocks = i / block / (height * width);
    c = blocks % (channels / block) * block + inner;
    n = blocks / (channels / block);
    h = pixel / width;
    w = pixel % width;
  }
};

// f(tag) for the dtypes of the fast paths on the CPU (cpu_fast of acc_dtype): float and bf16.
template <class F>
void dispatch_fast(DType dtype, const F& f) {
  dtype == DType::bf16 ? f(tag<bf16>{}) : f(tag<float>{});
}

// A dense tensor in `layout` without a graph change; the same tensor when it already is one.
inline Tensor in_layout(const Tensor& x, Layout layout) {
  return x.layout() != layout ? x.to(layout) : layout == Layout::strided ? x.contiguous() : x;
}

// The memory of an image in a layout as a row-major tensor, (n, h, w, c) or (n, c / 16, h, w, 16);
// of a row-major (n, c, 1, 1), a value for every channel, alike. image_of: back.
inline Tensor memory_of(const Tensor& x, Layout layout) {
  int64_t n = x.dim(0), c = x.dim(1), h = x.dim(2), w = x.dim(3);
  Shape shape = layout == Layout::nhwc ? Shape{n, h, w, c} : Shape{n, c / 16, h, w, 16};
  return alias(x, shape, row_major_strides(shape));
}
inline Tensor image_of(const Tensor& memory, Layout layout) {
  const Shape m = memory.shape();
  Tensor image = memory.detach();
  image.impl()->layout = layout;
  image.impl()->shape =
      layout == Layout::nhwc ? Shape{m[0], m[3], m[1], m[2]} : Shape{m[0], 16 * m[1], m[2], m[3]};
  return image;
}

}  // namespace pupil

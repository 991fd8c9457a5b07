#include <numeric>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "image.h"
#include "unary.h"

namespace pupil {

// Both passes run over the memory of what they write. `front` zero channels come first.
template <class T>
struct ShortcutForward {
  ImageIndex in, out;
  int64_t stride, front;
  const T* x;
  T* y;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t n, c, h, w;
    out.where(i, n, c, h, w);
    c -= front;
    y[i] = c >= 0 && c < in.channels ? x[in(n, c, h * stride, w * stride)] : T(0.f);
  }
};

template <class T>
struct ShortcutBackward {
  ImageIndex in, out;
  int64_t stride, front;
  const T* gy;
  T* gx;
  bool add;  // to what gx holds, the gradient of the other path
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t n, c, h, w;
    in.where(i, n, c, h, w);
    bool kept = h % stride == 0 && w % stride == 0;
    A g = kept ? A(gy[out(n, c + front, h / stride, w / stride)]) : A(0);
    gx[i] = T(add ? A(gx[i]) + g : g);
  }
};

namespace {

// The CPU twin of float32 and bf16 copies runs of channels that lie side by side in both images.
struct ShortcutRuns {
  ImageIndex in, out;
  int64_t stride, front, length;
  ShortcutRuns(const ImageIndex& from, const ImageIndex& to, int64_t stride, int64_t front)
      : in(from), out(to), stride(stride), front(front) {
    int64_t common = std::gcd(std::gcd(in.block, out.block), front);
    length = in.block == in.channels && out.block == out.channels ? in.channels
             : in.channels % common                               ? 1
                                                                  : common;
  }

  // copy(offset in x, offset in y) for every run of sample n
  template <class F>
  void each(int64_t n, F copy) const {
    for (int64_t c = 0; c < in.channels; c += length)
      for (int64_t h = 0; h < out.height; h++) {
        int64_t from = in(n, c, h * stride, 0), to = out(n, c + front, h, 0);
        for (int64_t w = 0; w < out.width; w++)
          copy(from + w * stride * in.block, to + w * out.block);
      }
  }

  template <class T>
  void forward(int64_t batch, const T* x, T* y) const {
    int64_t sample = out.channels * out.height * out.width;
#pragma omp parallel for schedule(static) if (batch * sample > kParallelWork)
    for (int64_t n = 0; n < batch; n++) {
      std::fill_n(y + n * sample, sample, T(0.0f));
      if (length == 8)  // 16 channels more in blocks of 16
        each(n, [&](int64_t i, int64_t o) { std::copy_n(x + i, 8, y + o); });
      else
        each(n, [&](int64_t i, int64_t o) { std::copy_n(x + i, length, y + o); });
    }
  }

  // gx: zeroed first, unless it holds the gradient of the other path.
  template <class T>
  void backward(int64_t batch, const T* gy, T* gx, bool add) const {
    int64_t sample = in.channels * in.height * in.width;
#pragma omp parallel for schedule(static) if (batch * sample > kParallelWork)
    for (int64_t n = 0; n < batch; n++) {
      if (!add) std::fill_n(gx + n * sample, sample, T(0.0f));
      auto run = [&](int64_t i, int64_t o, int64_t count) {
        for (int64_t k = 0; k < count; k++) gx[i + k] = T(float(gx[i + k]) + float(gy[o + k]));
      };
      if (length == 8)
        each(n, [&](int64_t i, int64_t o) { run(i, o, 8); });
      else
        each(n, [&](int64_t i, int64_t o) { run(i, o, length); });
    }
  }
};

}  // namespace

Tensor shortcut_a(const Tensor& input, int stride, int64_t out_channels) {
  require_floating("shortcut_a", input);
  PUPIL_CHECK(input.rank() == 4 && stride > 0 && out_channels >= input.dim(1), "shortcut_a: x ",
              input.shape(), ", stride ", stride, ", to ", out_channels, " channels");
  Tensor x = dense(input).detach();
  Shape shape{x.dim(0), out_channels, (x.dim(2) + stride - 1) / stride,
              (x.dim(3) + stride - 1) / stride};
  bool blocks = out_channels % 16 == 0;
  Tensor y = x.layout() == Layout::strided ? empty(shape, x.dtype(), x.device())
             : blocks                      ? empty_image(shape, x.dtype(), x.layout())
                                           : empty_image(shape, x.dtype(), Layout::nhwc);
  ImageIndex in(x), out(y);
  int64_t front = (out_channels - x.dim(1)) / 2;
  if (cpu_fast(acc_dtype(x.dtype()), x.device()))
    dispatch_fast(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      ShortcutRuns(in, out, stride, front).forward(shape[0], x.data<T>(), y.data<T>());
    });
  else
    dispatch(x.dtype(), [&](auto t) {
      using T = typename decltype(t)::type;
      map(x.device(), y.numel(),
          ShortcutForward<T>{in, out, stride, front, x.data<T>(), y.data<T>()});
    });
  return record(
      "shortcut_a", y, {input}, {{"stride", stride}},
      [in, out, stride, front, batch = shape[0], layout = x.layout(),
       y_layout = y.layout()](Backward& grad) {
        Tensor gy = dense(grad.gy.to(y_layout));
        float beta;
        Tensor gx = grad[0].into(beta, layout);
        if (cpu_fast(acc_dtype(gy.dtype()), gy.device()))
          dispatch_fast(gy.dtype(), [&](auto t) {
            using T = typename decltype(t)::type;
            ShortcutRuns(in, out, stride, front)
                .backward(batch, gy.data<T>(), gx.data<T>(), beta != 0);
          });
        else
          dispatch(gy.dtype(), [&](auto t) {
            using T = typename decltype(t)::type;
            map(gy.device(), gx.numel(),
                ShortcutBackward<T>{in, out, stride, front, gy.data<T>(), gx.data<T>(), beta != 0});
          });
      });
}

PUPIL_SAMPLES(shortcut_a) {
  auto with = [](int stride, int64_t channels) {
    return [=](auto& v) { return shortcut_a(v[0], stride, channels); };
  };
  s.add("stride 2", {{2, 3, 6, 8}}, with(2, 7));
  s.add("odd side", {{2, 2, 5, 7}}, with(2, 4));
  s.add("stride 1", {{2, 4, 3, 3}}, with(1, 8));
  s.add("identity", {{1, 1, 1, 1}}, with(1, 1));
  // On the float32 path of the CPU a convolution's output is in an image layout.
  for (int64_t channels : {16, 12})
    for (int64_t out : {channels, 2 * channels, 2 * channels + 1})
      s.add(concat("after conv2d ", channels, " to ", out), {{2, 3, 6, 5}, {channels, 3, 3, 3}},
            [=](auto& v) {
              return to_strided(shortcut_a(conv2d(v[0], v[1], Tensor(), {1, 1}), 2, out));
            });
  s.add("empty batch", {{0, 2, 4, 4}}, with(2, 4));
  s.add("permuted", {{2, 4, 6, 3}}, [](auto& v) {
    return shortcut_a(permute(v[0], {0, 3, 1, 2}), 2, 5);
  });
  s.add_error("fewer channels", {{2, 4, 3, 3}}, with(1, 3));
}

}  // namespace pupil

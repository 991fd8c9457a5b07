#include "convolution.h"

#include "../launch.h"
#include "../tensor.h"
#include "image.h"

namespace pupil {

// Plain loops over row-major (n, c, h, w) and weights (o, c / groups, kh, kw).
template <class T>
struct ConvForward {
  ConvGeometry s;
  const T *x, *weight, *bias;
  T* y;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t out_x = i % s.out_width, out_y = i / s.out_width % s.out_height,
            o = i / s.out_width / s.out_height % s.outputs,
            n = i / s.out_width / s.out_height / s.outputs;
    const T* image =
        x + (n * s.channels + o / s.group_outputs * s.group_channels) * s.height * s.width;
    const T* kernel = weight + o * s.group_channels * s.kernel_height * s.kernel_width;
    A sum = bias ? A(bias[o]) : A(0);
    for (int64_t c = 0; c < s.group_channels; c++)
      for (int64_t ky = 0; ky < s.kernel_height; ky++) {
        int64_t in_y = out_y * s.stride_h - s.padding_h + ky * s.dilation_h;
        if (in_y < 0 || in_y >= s.height) continue;
        for (int64_t kx = 0; kx < s.kernel_width; kx++) {
          int64_t in_x = out_x * s.stride_w - s.padding_w + kx * s.dilation_w;
          if (in_x < 0 || in_x >= s.width) continue;
          sum = sum + A(image[(c * s.height + in_y) * s.width + in_x]) *
                          A(kernel[(c * s.kernel_height + ky) * s.kernel_width + kx]);
        }
      }
    y[i] = T(sum);
  }
};

// One input pixel gathers from every output pixel that read it.
template <class T>
struct ConvInputGradient {
  ConvGeometry s;
  const T *gy, *weight;
  T* gx;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    int64_t in_x = i % s.width, in_y = i / s.width % s.height,
            c = i / s.width / s.height % s.channels, n = i / s.width / s.height / s.channels;
    int64_t first_output = c / s.group_channels * s.group_outputs;
    A sum = 0;
    for (int64_t ky = 0; ky < s.kernel_height; ky++) {
      int64_t from_y = in_y + s.padding_h - ky * s.dilation_h, out_y = from_y / s.stride_h;
      if (from_y < 0 || from_y % s.stride_h || out_y >= s.out_height) continue;
      for (int64_t kx = 0; kx < s.kernel_width; kx++) {
        int64_t from_x = in_x + s.padding_w - kx * s.dilation_w, out_x = from_x / s.stride_w;
        if (from_x < 0 || from_x % s.stride_w || out_x >= s.out_width) continue;
        for (int64_t o = first_output; o < first_output + s.group_outputs; o++)
          sum =
              sum +
              A(gy[((n * s.outputs + o) * s.out_height + out_y) * s.out_width + out_x]) *
                  A(weight[((o * s.group_channels + c % s.group_channels) * s.kernel_height + ky) *
                               s.kernel_width +
                           kx]);
      }
    }
    gx[i] = T(sum);
  }
};

// One team per weight.
template <class T>
struct ConvWeightGradient {
  ConvGeometry s;
  const T *x, *gy;
  T* gw;
  float beta;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t i) const {
    using A = acc_t<T>;
    int64_t kx = i % s.kernel_width, ky = i / s.kernel_width % s.kernel_height,
            c = i / s.kernel_width / s.kernel_height % s.group_channels,
            o = i / s.kernel_width / s.kernel_height / s.group_channels;
    int64_t channel = o / s.group_outputs * s.group_channels + c;
    A sum = team.reduce(s.batch * s.out_height * s.out_width, A(0), Add{}, [&](int64_t p) {
      int64_t out_x = p % s.out_width, out_y = p / s.out_width % s.out_height,
              n = p / s.out_width / s.out_height;
      int64_t in_y = out_y * s.stride_h - s.padding_h + ky * s.dilation_h,
              in_x = out_x * s.stride_w - s.padding_w + kx * s.dilation_w;
      if (in_y < 0 || in_y >= s.height || in_x < 0 || in_x >= s.width) return A(0);
      return A(x[((n * s.channels + channel) * s.height + in_y) * s.width + in_x]) *
             A(gy[((n * s.outputs + o) * s.out_height + out_y) * s.out_width + out_x]);
    });
    team.each(1, [&](int64_t) { gw[i] = T(beta == 0 ? sum : sum + A(beta) * A(gw[i])); });
  }
};

namespace {

// What oneDNN does in nhwc, or nothing.
std::optional<onednn::Convolution> in_nhwc(const ConvGeometry& s, const Tensor& x) {
  onednn::Convolution conv{s, Layout::nhwc, Layout::nhwc};
  if (!cpu_fast(x.dtype(), x.device()) || s.batch == 0 || !onednn::has_convolution(conv)) return {};
  return conv;
}

}  // namespace

Tensor convolution(const ConvGeometry& s, const Tensor& image, const Tensor& weight,
                   const Tensor& bias) {
  Tensor w = weight.contiguous(), b = bias ? bias.contiguous() : bias;
  Shape shape{s.batch, s.outputs, s.out_height, s.out_width};
  if (auto conv = in_nhwc(s, image)) {
    Tensor x = in_layout(image, Layout::nhwc), y = empty_image(shape, DType::f32, Layout::nhwc);
    if (onednn::convolution(*conv, x.data<float>(), w.data<float>(), data_or_null<float>(b),
                            y.data<float>()))
      return y.contiguous();
  }
  Tensor x = image.contiguous(), y = empty(shape, x.dtype(), x.device());
  dispatch(x.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), y.numel(),
        ConvForward<T>{s, x.data<T>(), w.data<T>(), data_or_null<T>(b), y.data<T>()});
  });
  return y;
}

Tensor convolution_input_gradient(const ConvGeometry& s, const Tensor& output,
                                  const Tensor& weight) {
  Tensor w = weight.contiguous();
  Shape shape{s.batch, s.channels, s.height, s.width};
  if (auto conv = in_nhwc(s, output)) {
    Tensor gy = in_layout(output, Layout::nhwc), gx = empty_image(shape, DType::f32, Layout::nhwc);
    if (onednn::convolution_input_gradient(*conv, gy.data<float>(), w.data<float>(),
                                           gx.data<float>()))
      return gx.contiguous();
  }
  Tensor gy = output.contiguous(), gx = empty(shape, gy.dtype(), gy.device());
  dispatch(gy.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(gy.device(), gx.numel(), ConvInputGradient<T>{s, gy.data<T>(), w.data<T>(), gx.data<T>()});
  });
  return gx;
}

void convolution_weight_gradient(const ConvGeometry& s, const Tensor& image, const Tensor& output,
                                 const Tensor& to, float beta) {
  if (auto conv = in_nhwc(s, image)) {
    Tensor x = in_layout(image, Layout::nhwc), gy = in_layout(output, Layout::nhwc);
    if (onednn::convolution_weight_gradient(*conv, x.data<float>(), gy.data<float>(),
                                            to.data<float>(), beta))
      return;
  }
  Tensor x = image.contiguous(), gy = output.contiguous();
  dispatch(gy.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    rows(gy.device(), to.numel(),
         ConvWeightGradient<T>{s, x.data<T>(), gy.data<T>(), to.data<T>(), beta},
         s.batch * s.out_height * s.out_width);
  });
}

}  // namespace pupil

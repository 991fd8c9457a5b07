// Convolutions of which each is the only reader of the one before. A block of MobileNetV2 (Sandler
// et al. 2018, arXiv 1801.04381) makes six times as many channels as it takes and gives: where they
// are written to memory and read again, that is most of its time.
#include "../launch.h"
#include "convolution.h"
#include "image.h"

namespace pupil {

Tensor conv2d_chain(const Tensor& x, const std::vector<ConvLayer>& layers, const Tensor& residual) {
  NoGrad unrecorded;
  auto one_by_one = [&] {
    Tensor y = x;
    for (const ConvLayer& layer : layers)
      y = conv2d_tail(y, layer, &layer == &layers.back() ? residual : Tensor());
    return y;
  };
  bool fits = x.layout() == Layout::nhwc && x.numel() && cpu_fast(acc_dtype(x.dtype()), x.device());
  if (layers.size() < 2 || !fits || observed() || exact_mode()) return one_by_one();
  std::vector<onednn::Link> links;
  std::vector<Tensor> wide;  // weights and biases
  Shape shape = x.shape();
  for (const auto& [weight, bias, options, activation] : layers) {
    if (!onednn::follows_convolution(activation)) return one_by_one();
    ConvGeometry s = conv_geometry(shape, x.dtype(), weight, bias, options);
    shape = {s.batch, s.outputs, s.out_height, s.out_width};
    wide.push_back(weight.contiguous().to(acc_dtype(x.dtype())));
    const float* kernels = wide.back().data<float>();
    wide.push_back(bias ? bias.contiguous().to(acc_dtype(x.dtype())) : bias);
    links.push_back({{s, Layout::nhwc, Layout::nhwc, x.dtype()},
                     kernels,
                     data_or_null<float>(wide.back()),
                     activation});
  }
  Tensor y = empty_image(shape, x.dtype(), Layout::nhwc);
  Tensor added = residual ? in_layout(residual, Layout::nhwc) : residual;
  bool done = onednn::convolution_chain(links, x.raw(), added ? added.raw() : nullptr, y.raw());
  return done ? y : one_by_one();
}

}  // namespace pupil

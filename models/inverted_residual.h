// Networks of inverted residuals, Sandler et al. 2018 (arXiv 1801.04381), one block for all of
// them: MobileNetV2, MobileNetV3 (Howard et al. 2019, arXiv 1905.02244), EfficientNet (Tan and Le
// 2019, arXiv 1905.11946) and its Lite form, with the names of torchvision, timm or, for
// MobileNetV2 on images of CIFAR, RepDistiller.
#pragma once
#include "conv_norm.h"

namespace pupil::models {

struct InvertedResidual {
  enum Kind {
    inverted,   // 1x1 to `inner` channels, depthwise, 1x1 to `out`
    separable,  // the same without the first
    plain       // one convolution
  } kind = inverted;
  int kernel = 3, stride = 1;
  int64_t in = 0, inner = 0, out = 0;
  int64_t squeeze =
      0;  // channels inside squeeze and excitation before the last convolution; 0: none
  Activation activation = Activation::relu6;  // of all but the last convolution; of the only one
  bool skip = false;                          // y + x
};

struct InvertedResidualConfig {
  enum class Names {
    mobilenet_v2,
    mobilenet_v3,
    efficientnet,
    timm,
    kd
  };  // first three: torchvision
  Names names = Names::timm;
  int64_t stem = 32;  // channels of the first 3x3 convolution, whose stride is 2
  Activation stem_activation = Activation::relu6;
  // Of torchvision's MobileNets, whose blocks are numbered through, each block is a stage.
  std::vector<std::vector<InvertedResidual>> stages{};
  int64_t head = 1280;  // channels of a last 1x1 convolution before the mean; 0: none
  Activation head_activation = Activation::relu6;
  int64_t hidden = 0;  // width of a layer between mean and classifier; 0: none
  Activation hidden_activation = Activation::hard_swish, squeeze_activation = Activation::relu;
  bool hard_gate = false;  // of squeeze and excitation
  bool same_padding = false;
  double bn_eps = 1e-5, bn_momentum = 0.1;
  // In training: before the classifier; of whole blocks, growing from 0 in the first on.
  double dropout = 0, drop_path = 0;
  int64_t classes = 1000;
};
// Taps: torchvision: features.0 (stem) and so on, a stage each; timm: stem, blocks.0 and so on
// (stages), head; kd: f0 (stem), f1 to f4 (after stages 1, 2, 4, 6). All: pooled.
Model make_inverted_residual(const InvertedResidualConfig&, const nn::Scope&);

std::vector<Entry> inverted_residuals();

}  // namespace pupil::models

// SqueezeNet 1.1, Iandola et al. 2016 (arXiv 1602.07360).
#pragma once
#include "models.h"

namespace pupil::models {

// caffe: names and arithmetic of the published Caffe model (conv1, fire2.squeeze1x1, .., conv10):
// pictures in the order blue, green, red (`forward` turns them round) with values 0 to 255 less
// their mean, and a border of one pixel around the last convolution. Else torchvision's
// (squeezenet.py). Taps: fire2 and so on to fire9, pooled. The features are the mean of fire9; the
// classifier acts before the mean, with a ReLU between.
Model make_squeezenet(bool caffe, int64_t classes, const nn::Scope&);

std::vector<Entry> squeezenets();

}  // namespace pupil::models

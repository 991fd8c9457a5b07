// ShuffleNets: version 1 of Zhang et al. 2018 (arXiv 1707.01083), version 2 of Ma et al. 2018
// (arXiv 1807.11164), for ImageNet with names of torchvision, for CIFAR with those of RepDistiller.
#pragma once
#include "models.h"

namespace pupil::models {

struct ShufflenetV2Config {
  bool cifar = false;  // a 1x1 stem without pooling, names of RepDistiller
  std::vector<int> repeats{4, 8, 4};
  std::vector<int64_t> channels{24, 116, 232, 464, 1024};  // stem, stages, last convolution
  double bn_eps = 1e-5, bn_momentum = 0.1;
  int64_t classes = 1000;
};
// Taps: stem (after its pooling), stage2.0 and so on, conv5, pooled; of cifar f0 (stem), pre1, f1
// to f3 (stages; preN: halves joined, before the last ReLU and the shuffle), pooled.
Model make_shufflenet_v2(const ShufflenetV2Config&, const nn::Scope&);

// For CIFAR, three groups. Taps: f0 (stem), pre1, f1 to f3 (stages), pooled.
Model make_shufflenet_v1(int64_t classes, const nn::Scope&);

std::vector<Entry> shufflenets();

}  // namespace pupil::models

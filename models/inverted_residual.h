#pragma once
#include "models.h"

namespace pupil::models {

// Names of torchvision (models/mobilenetv2.py). Taps: features.0 and so on, pooled.
struct MobilenetV2Config {
  struct Block {
    int64_t expansion, outputs;
    int stride;
  };
  int64_t stem = 32, head = 1280;
  std::vector<Block> blocks;
  int64_t classes = 1000;
  double dropout = 0.2;  // before the classifier, in training
};
Model make_mobilenet_v2(const MobilenetV2Config&, const nn::Scope&);

std::vector<Entry> inverted_residuals();

}  // namespace pupil::models

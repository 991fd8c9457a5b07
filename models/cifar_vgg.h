// VGG with batch norm for 32 x 32 images, Simonyan and Zisserman 2015 (arXiv 1409.1556), names of
// RepDistiller (vgg.py).
#pragma once
#include "models.h"

namespace pupil::models {

// Five blocks of `convolutions` each, the depth is 5 convolutions + 3. Taps: f0, pre1, f1 to pre4,
// f4 (blocks; preN: before the last ReLU), pooled.
Model make_cifar_vgg(int convolutions, int64_t classes, const nn::Scope&);

std::vector<Entry> cifar_vggs();

}  // namespace pupil::models

// Wide residual networks for 32 x 32 images, Zagoruyko and Komodakis 2016 (arXiv 1605.07146), names
// of RepDistiller (wrn.py).
#pragma once
#include "models.h"

namespace pupil::models {

// depth 6 n + 4; stages of 16, 32 and 64 channels times `width`. Taps: f0 (stem, before any norm),
// f1 to f3 (stages, before the next norm), pre1 to pre3 (behind that norm, before its ReLU),
// pooled.
Model make_cifar_wide_resnet(int depth, int width, int64_t classes, const nn::Scope&);

std::vector<Entry> cifar_wide_resnets();

}  // namespace pupil::models

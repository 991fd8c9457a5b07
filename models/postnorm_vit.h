// A small ViT for 32 x 32 images whose blocks are torch.nn.TransformerEncoderLayer as it is by
// default: the norms behind the sums, ReLU (Vaswani et al. 2017, arXiv 1706.03762). Names of
// smmk47/CIFAR10-Classification.
#pragma once
#include "models.h"

namespace pupil::models {

// Width 128, 6 blocks, 8 heads, patches of 4. Taps: blocks.0 and so on (n, 65, 128).
Model make_postnorm_vit(int64_t classes, const nn::Scope&);

std::vector<Entry> postnorm_vits();

}  // namespace pupil::models

// MLP-Mixer, Tolstikhin et al. 2021 (arXiv 2105.01601), names of timm's mlp_mixer.py.
#pragma once
#include "models.h"

namespace pupil::models {

// Taps: stem, blocks.0 and so on (n, patches, dim), norm.
struct MixerConfig {
  int image = 224, patch = 16, dim = 768, depth = 12;
  double token_ratio = 0.5, channel_ratio = 4;  // hidden widths of the two, both times dim
  int64_t classes = 1000;                       // 0: no head, logits = features
  double norm_eps = 1e-6, dropout = 0, drop_path = 0;
};
Model make_mixer(const MixerConfig&, const nn::Scope&);

std::vector<Entry> mixers();

}  // namespace pupil::models

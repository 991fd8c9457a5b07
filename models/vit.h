// Vision Transformer, Dosovitskiy et al. 2021 (arXiv 2010.11929), with the parameter names, the
// initialisation and the pooling rules of timm's vision_transformer.py.
#pragma once
#include "models.h"

namespace pupil::models {

// ViT of timm (vision_transformer.py): the constructor names of model.vit in the catalogue.
// Taps: patch_embed, blocks.0 and so on (n, tokens, dim), norm (all tokens after the final norm).
// An input of another size than `image` has its position embeddings resampled.
struct VitConfig {
  int image = 224, patch = 16, dim = 192, depth = 12, heads = 3;
  double mlp_ratio = 4;
  int64_t classes = 1000;  // 0: no head, logits = features
  bool class_token = true, global_pool_avg = false, qkv_bias = true;
  double dropout = 0, drop_path = 0;
};
Model make_vit(const VitConfig&, const nn::Scope&);

}  // namespace pupil::models

// DINOv3 (Simeoni et al. 2025, arXiv 2508.10104) and EUPE with the parameter names of timm's
// eva.py: Vision Transformers with rotary positions.
#pragma once
#include "models.h"
#include "transformer.h"

namespace pupil::models {

// Prefix tokens: class token, registers (storage tokens); they are not turned. Taps: patch_embed,
// embeddings, blocks.0 and so on (n, tokens, dim), norm (all tokens after the final norm). Images
// of any size that patches divide: the positions are those of their own grid.
struct EvaConfig {
  int image = 256, patch = 16, dim = 384, depth = 12, heads = 6, registers = 4;
  int64_t hidden = 1536;                                // rows of mlp.fc1
  int64_t classes = 0;                                  // 0: no head, logits = features
  bool q_bias = false, k_bias = false, v_bias = false;  // timm: q and v, or none
  bool proj_bias = true, mlp_bias = true;
  Activation activation = Activation::gelu;
  Gate gate = Gate::none;
  std::optional<double> layer_scale = 1e-5;  // its first value
  double rope_temperature = 100;
  bool avg = true;       // pooling: the mean of the patches, else the class token
  bool fc_norm = false;  // the norm behind the pooling
  double norm_eps = 1e-5, dropout = 0, drop_path = 0;
};
Model make_eva(const EvaConfig&, const nn::Scope&);

// Tables (h w, width) of a grid of h x w patches: 2 pi y / period_k and then 2 pi x / period_k for
// all k, twice, with period_k = temperature^(4 k / width) and the centres of the patches in [-1,
// 1].
Rotary grid_rotary(int h, int w, int64_t width, double temperature, DType);

std::vector<Entry> evas();

}  // namespace pupil::models

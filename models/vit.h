// Vision Transformer, Dosovitskiy et al. 2021 (arXiv 2010.11929), with the parameter names, the
// initialisation and the pooling rules of timm's vision_transformer.py: ViT, DeiT (Touvron et al.
// 2020, arXiv 2012.12877), DINOv2 (Oquab et al. 2023, arXiv 2304.07193), the image towers of CLIP
// and SigLIP.
#pragma once
#include "models.h"
#include "transformer.h"

namespace pupil::models {

// What the classifier sees: the class token, the mean of the patches, both side by side (Hugging
// Face's DINOv2), or what a learned query gathers from all tokens (`attn_pool`, SigLIP).
enum class VitPool { token, avg, token_and_avg, map };
// Which tokens have a position of their own besides the patches.
enum class VitPositions { all, no_registers, patches };  // Hugging Face; no_embed_class of timm

// The constructor names of model.vit in the catalogue. Prefix tokens are, in this order, the class
// token, the distillation token, the registers. Taps: patch_embed, embeddings (the tokens before
// the blocks), blocks.0 and so on (n, tokens, dim), norm (all tokens after the final norm);
// logits_cls and logits_dist of a network with two classifiers, whose logits are their mean and
// features the mean of the two tokens. An input of another size than `image` has its position
// embeddings resampled.
struct VitConfig {
  int image = 224, patch = 16, dim = 192, depth = 12, heads = 3;
  double mlp_ratio = 4;
  int64_t hidden = 0;      // rows of mlp.fc1; 0: dim * mlp_ratio, rounded down
  int64_t classes = 1000;  // 0: no head, logits = features
  bool class_token = true, qkv_bias = true, qk_norm = false;
  bool distilled = false;   // a second token, and ..
  bool second_head = true;  // .. a classifier for it, head_dist
  bool pre_norm = false;    // a norm before the blocks, and patches without a bias
  int registers = 0;
  VitPositions positions = VitPositions::all;
  VitPool pool = VitPool::token;
  bool pooler = false;    // features = tanh(pooler(class token)), Hugging Face's ViTModel
  bool antialias = true;  // of resampled positions; false: bicubic with a = -0.75
  Activation activation = Activation::gelu;
  Gate gate = Gate::none;
  std::optional<double> layer_scale{};  // its first value (timm: init_values)
  double norm_eps = 1e-6, dropout = 0, drop_path = 0;

  bool operator==(const VitConfig&) const = default;
};
Model make_vit(const VitConfig&, const nn::Scope&);

std::vector<Entry> vits();

// Patches with a position that depends on the grid: an error for images that cannot be cut.
void require_patches(const char* model, const Tensor& images, int patch);

}  // namespace pupil::models

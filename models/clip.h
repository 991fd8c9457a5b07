// Two towers that put images and texts into one space, with the parameter names of open_clip: CLIP
// (Radford et al. 2021, arXiv 2103.00020; OpenAI's names are the same) and SigLIP (Zhai et al.
// 2023, arXiv 2303.15343).
#pragma once
#include "models.h"
#include "transformer.h"

namespace pupil::models {

struct ClipTransformer {
  int64_t width = 768, hidden = 3072;  // hidden: between the two layers of an MLP
  int heads = 12, layers = 12;
  Activation activation = Activation::gelu;  // OpenAI's own weights need quick_gelu
  double norm_eps = 1e-5;
};

struct ClipConfig {
  int image = 224, patch = 32;
  ClipTransformer vision;
  // Not empty: instead of a ViT a ResNet with these blocks in its four stages, its first stage
  // vision.width wide inside; of `vision` only the heads (of the attention that pools) count too.
  std::vector<int> resnet{};
  int64_t context = 77, vocabulary = 49408;
  ClipTransformer text{.width = 512, .hidden = 2048, .heads = 8};
  int64_t embed_dim = 512;
  bool custom_text = false;  // the names of the text tower begin with "text."
  // SigLIP: the image tower is timm's ViT with attention pooling; the text tower has custom names,
  // sees all of a text and ends with a linear layer on its last token; cosines get a bias.
  bool siglip = false;
  int64_t classes = 0;  // of a linear layer `head` on image embeddings; 0: none
};

struct Clip {
  // features: image embeddings (n, embed_dim), not normalised. Taps: ln_pre, visual.0 and so on;
  // with a ResNet stem (after its pooling), layer1 to layer4; SigLIP's are those of make_vit.
  Model image;
  // ids i64 (n, tokens), at most `context` tokens -> (n, embed_dim), not normalised, taken at the
  // first of the largest ids of a row (SigLIP: at the last one). Taps: text.0 and so on,
  // text.ln_final (all tokens).
  std::function<Tensor(const Tensor& ids, const nn::Call&)> text;
  int64_t context = 0;
  Tensor logit_scale, logit_bias;  // the logarithm of the scale, (); SigLIP: (1), else no bias

  // (images, texts): cosines times exp(logit_scale), plus the bias.
  Tensor logits(const Tensor& image_features, const Tensor& text_features) const;
};
Clip make_clip(const ClipConfig&, const nn::Scope&);

// open_clip's names: "ViT-B-32-quickgelu".
std::optional<ClipConfig> clip_named(std::string_view name);
std::vector<Entry> clips();

// The image tower alone: a ResNet with three convolutions as its stem, average pooling instead of
// strides, and attention of the mean over the last map as its pooling (section 2.4 of the paper).
// Parameters conv1 and so on, attnpool.
std::function<Tensor(const Tensor& images, const nn::Call&)> make_clip_resnet(const ClipConfig&,
                                                                              const nn::Scope&);

}  // namespace pupil::models

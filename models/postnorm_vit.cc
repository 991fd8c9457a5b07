#include "postnorm_vit.h"

#include "transformer.h"
#include "vit.h"

namespace pupil::models {
namespace {

constexpr int kImage = 32, kPatch = 4, kDim = 128, kDepth = 6;

BlockOptions postnorm_options() {
  return {.dim = kDim,
          .heads = 8,
          .norm_eps = 1e-5,
          .names = {.qkv = "self_attn.in_proj_", .proj = "self_attn.out_proj"}};
}

struct PostNormBlock {
  SelfAttention attention;
  nn::Linear linear1, linear2;
  nn::LayerNorm norm1, norm2;
  explicit PostNormBlock(const nn::Scope& scope)
      : attention(scope, postnorm_options()),
        linear1(scope / "linear1", kDim, 256),
        linear2(scope / "linear2", 256, kDim),
        norm1(scope / "norm1", kDim, 1e-5),
        norm2(scope / "norm2", kDim, 1e-5) {}
  Tensor operator()(const Tensor& x) const {
    Tensor middle = norm1(add(x, attention(x)));
    return norm2(add(middle, linear2(relu(linear1(middle)))));
  }
};

struct PostNormVit {
  Tensor class_token, positions;
  nn::PatchEmbed patch_embed;
  std::vector<PostNormBlock> blocks;
  std::optional<nn::LayerNorm> norm;
  std::optional<nn::Linear> head;

  PostNormVit(int64_t classes, const nn::Scope& scope)
      : class_token(scope.param("cls_token", {1, 1, kDim}, {nn::Init::normal, 0.02})),
        positions(scope.param("pos_embed", {1, 1 + kImage * kImage / kPatch / kPatch, kDim},
                              {nn::Init::normal, 0.02})),
        patch_embed(scope / "patch_embed" / "proj", 3, kDim, kPatch) {
    for (int i = 0; i < kDepth; i++) blocks.emplace_back(scope / "transformer" / "layers" / i);
    norm.emplace(scope / "mlp_head" / 0, kDim, 1e-5);
    if (classes) head.emplace(scope / "mlp_head" / 1, kDim, classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    require_patches("vit_postnorm", images, kPatch);
    if (images.dim(2) != kImage || images.dim(3) != kImage)
      fail_input("vit_postnorm: images of ", images.dim(2), "x", images.dim(3), "; it takes ",
                 kImage, "x", kImage);
    Tensor x = embed_tokens(patch_embed(images), class_token, positions);
    for (size_t i = 0; i < blocks.size(); i++) {
      x = blocks[i](x);
      call.see("blocks." + std::to_string(i), x);
    }
    Tensor features = (*norm)(view(slice(x, 1, 0, 1), {x.dim(0), kDim}));
    return {head ? (*head)(features) : features, features};
  }
};

}  // namespace

Model make_postnorm_vit(int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<const PostNormVit>(classes, scope);
  Model model;
  model.classes = classes;
  model.width = kDim;
  model.head = "mlp_head.1";
  model.input = {kImage, 3, {0.4914f, 0.4822f, 0.4465f}, {0.2023f, 0.1994f, 0.2010f}};
  for (int i = 0; i < kDepth; i++) model.taps.push_back("blocks." + std::to_string(i));
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> postnorm_vits() {
  return {{{"vit_postnorm_cifar", "small ViT, norms behind the sums, 32x32 images"},
           [](const nn::Scope& scope, const Options& options) {
             return make_postnorm_vit(options.classes, scope);
           }}};
}

}  // namespace pupil::models

#include "vit.h"

#include "transformer.h"

namespace pupil::models {
namespace {

const nn::Init kTrunc{nn::Init::normal, 0.02};

struct Vit {
  VitConfig config;
  int prefix;
  nn::PatchEmbed patch_embed;
  Tensor class_token, positions;
  std::vector<Block> blocks;
  std::optional<nn::LayerNorm> norm;  // "norm" over all tokens, or "fc_norm" after the average
  std::optional<nn::Linear> head;

  Vit(const VitConfig& c, const nn::Scope& scope)
      : config(c),
        prefix(c.class_token),
        patch_embed(scope / "patch_embed" / "proj", 3, c.dim, c.patch) {
    if (c.class_token)
      class_token = scope.param("cls_token", {1, 1, c.dim}, {nn::Init::normal, 1e-6});
    int grid = c.image / c.patch;
    positions =
        scope.param("pos_embed", {1, prefix + grid * grid, c.dim}, kTrunc,
                    [&](const Tensor& stored) { return from_other_grid(stored, prefix, grid); });
    blocks = make_blocks(scope / "blocks", c.depth,
                         {.dim = c.dim,
                          .hidden = int64_t(double(c.dim) * c.mlp_ratio),
                          .heads = c.heads,
                          .qkv_bias = c.qkv_bias,
                          .dropout = c.dropout,
                          .drop_path = c.drop_path});
    norm.emplace(scope / (c.global_pool_avg ? "fc_norm" : "norm"), c.dim);
    if (c.classes) head.emplace(scope / "head", c.dim, c.classes, kTrunc, nn::Init{});
  }

  // Position embeddings of a checkpoint that was trained on another (square) grid.
  static Tensor from_other_grid(const Tensor& stored, int prefix, int grid) {
    if (stored.rank() != 3 || stored.dim(0) != 1) return {};
    int old = int(std::lround(std::sqrt(double(stored.dim(1) - prefix))));
    if (old < 1 || stored.dim(1) != prefix + int64_t(old) * old) return {};
    return resample_pos_embed(stored, prefix, old, old, grid, grid);
  }

  Tensor embed(const Tensor& images, const nn::Call& call) const {
    Tensor x = patch_embed(images);
    if (call.taps) call.taps->see("patch_embed", x);
    int grid = config.image / config.patch;
    int rows = int(images.dim(2)) / config.patch, columns = int(images.dim(3)) / config.patch;
    Tensor place = rows == grid && columns == grid
                       ? positions
                       : resample_pos_embed(positions, prefix, grid, grid, rows, columns);
    x = embed_tokens(x, class_token, place);
    if (call.train && config.dropout > 0) x = dropout(x, config.dropout, call.rng->next());
    return x;
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    PUPIL_CHECK(images.rank() == 4 && images.dim(1) == 3, "vit: images (n,3,h,w), got ",
                images.shape());
    if (images.dim(2) % config.patch || images.dim(3) % config.patch)
      fail_input("vit: images of ", images.dim(2), "x", images.dim(3),
                 " cannot be cut into patches of ", config.patch, "x", config.patch);
    PUPIL_CHECK(!call.train || call.rng || (config.dropout == 0 && config.drop_path == 0),
                "vit: dropout in training needs Call::rng");
    Tensor x = embed(images, call);
    for (size_t i = 0; i < blocks.size(); i++) {
      x = blocks[i](x, call);
      if (call.taps) call.taps->see("blocks." + std::to_string(i), x);
    }
    Tensor features = config.global_pool_avg ? average(x, call) : first_token(x, call);
    return {head ? (*head)(features) : features, features};
  }

  Tensor average(const Tensor& x, const nn::Call& call) const {
    if (call.taps) call.taps->see("norm", x);
    return (*norm)(mean(prefix ? slice(x, 1, prefix, x.dim(1)) : x, {1}));
  }

  // The norm of the other tokens is computed only for those who ask, and beside the classifier's:
  // what is announced never changes a bit of the output.
  Tensor first_token(const Tensor& x, const nn::Call& call) const {
    if (call.taps && call.taps->wants("norm")) call.taps->see("norm", (*norm)(x));
    return view((*norm)(slice(x, 1, 0, 1)), {x.dim(0), config.dim});
  }
};

}  // namespace

Model make_vit(const VitConfig& config, const nn::Scope& scope) {
  auto require = [](bool fine, const auto&... message) {
    if (!fine) fail_input("vit: ", message...);
  };
  require(config.patch > 0 && config.image > 0 && config.image % config.patch == 0, "image ",
          config.image, " is not a multiple of patch ", config.patch);
  require(config.heads > 0 && config.dim > 0 && config.dim % config.heads == 0, "dim ", config.dim,
          " is not a multiple of heads ", config.heads);
  require(config.depth > 0, "depth must be at least 1");
  require(config.mlp_ratio * config.dim >= 1, "mlp_ratio must be positive");
  require(config.class_token || config.global_pool_avg,
          "pooling by class token needs one; use pool=avg");
  require(
      config.dropout >= 0 && config.dropout < 1 && config.drop_path >= 0 && config.drop_path < 1,
      "dropout and drop_path lie in [0, 1)");
  auto net = std::make_shared<const Vit>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.dim;
  model.head = "head";
  model.input = {config.image, 3, {0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
  model.taps = {"patch_embed"};
  for (int i = 0; i < config.depth; i++) model.taps.push_back("blocks." + std::to_string(i));
  model.taps.push_back("norm");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

}  // namespace pupil::models

#include "eva.h"

#include <numbers>

#include "vit.h"

namespace pupil::models {
namespace {

struct Eva {
  EvaConfig config;
  int prefix;
  nn::PatchEmbed patch_embed;
  Tensor class_token, registers;
  std::vector<Block> blocks;
  nn::LayerNorm norm;  // "norm" over all tokens, or "fc_norm" after the pooling
  std::optional<nn::Linear> head;

  Eva(const EvaConfig& c, const nn::Scope& scope)
      : config(c),
        prefix(1 + c.registers),
        patch_embed(scope / "patch_embed" / "proj", 3, c.dim, c.patch),
        class_token(scope.param("cls_token", {1, 1, c.dim}, kTrunc)),
        registers(c.registers ? scope.param("reg_token", {1, c.registers, c.dim}, kTrunc)
                              : Tensor()),
        blocks(make_blocks(scope / "blocks", c.depth,
                           {.dim = c.dim,
                            .hidden = c.hidden,
                            .heads = c.heads,
                            .qkv_bias = false,
                            .q_bias = c.q_bias,
                            .k_bias = c.k_bias,
                            .v_bias = c.v_bias,
                            .proj_bias = c.proj_bias,
                            .mlp_bias = c.mlp_bias,
                            .activation = c.activation,
                            .gate = c.gate,
                            .layer_scale = c.layer_scale,
                            .norm_eps = c.norm_eps,
                            .dropout = c.dropout,
                            .drop_path = c.drop_path,
                            .names = {.scale1 = "gamma_1", .scale2 = "gamma_2"}})),
        norm(scope / (c.fc_norm ? "fc_norm" : "norm"), c.dim, c.norm_eps) {
    if (c.classes) head.emplace(scope / "head", c.dim, c.classes, kTrunc, nn::Init{});
  }

  // One more row for each prefix token, of angle 0.
  Rotary rotary(int h, int w, DType dtype, Device device) const {
    int64_t width = config.dim / config.heads;
    Rotary grid = grid_rotary(h, w, width, config.rope_temperature, dtype);
    return {cat({full({prefix, width}, 1, dtype), grid.cos}, 0).to(device),
            cat({zeros({prefix, width}, dtype), grid.sin}, 0).to(device)};
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    require_patches("eva", images, config.patch);
    int64_t batch = images.dim(0);
    int h = int(images.dim(2)) / config.patch, w = int(images.dim(3)) / config.patch;
    Tensor x = patch_embed(images);
    call.see("patch_embed", x);
    Tensor first = to_dtype(registers ? cat({class_token, registers}, 1) : class_token, x.dtype());
    x = cat({expand(first, {batch, prefix, config.dim}), x}, 1);
    x = call.dropout(x, config.dropout);
    call.see("embeddings", x);
    Rotary turns = rotary(h, w, x.dtype(), x.device());
    Tokens tokens =
        run_blocks(blocks, x, "blocks", call, config.avg ? 0 : 1, call.wants("norm"), &turns);
    auto normed = [&](const Tensor& t) { return config.fc_norm ? t : norm(t); };
    if (config.avg || call.wants("norm")) {
      x = normed(tokens.all);
      call.see("norm", x);
    }
    Tensor features = config.avg ? mean(slice(x, 1, prefix, x.dim(1)), {1})
                                 : view(normed(tokens.first), {batch, config.dim});
    if (config.fc_norm) features = norm(features);
    return {head ? (*head)(features) : features, features};
  }
};

}  // namespace

Rotary grid_rotary(int h, int w, int64_t width, double temperature, DType dtype) {
  int64_t periods = width / 4, half = width / 2;
  std::vector<double> cos(size_t(h * w * width)), sin(cos.size());
  for (int64_t row = 0; row < int64_t(h) * w; row++) {
    double y = 2 * (double(row / w) + 0.5) / h - 1, x = 2 * (double(row % w) + 0.5) / w - 1;
    for (int64_t j = 0; j < width; j++) {
      int64_t k = j % half;
      double period = std::pow(temperature, 4.0 * double(k % periods) / double(width));
      double angle = 2 * std::numbers::pi * (k < periods ? y : x) / period;
      cos[size_t(row * width + j)] = std::cos(angle);
      sin[size_t(row * width + j)] = j < half ? -std::sin(angle) : std::sin(angle);
    }
  }
  Shape shape{int64_t(h) * w, width};
  return {from(cos, shape, dtype), from(sin, shape, dtype)};
}

Model make_eva(const EvaConfig& config, const nn::Scope& scope) {
  auto require = [](bool fine, const auto&... message) {
    if (!fine) fail_input("eva: ", message...);
  };
  require(config.patch > 0 && config.image > 0 && config.image % config.patch == 0, "image ",
          config.image, " is not a multiple of patch ", config.patch);
  require(config.heads > 0 && config.dim > 0 && config.dim % (4 * config.heads) == 0, "dim ",
          config.dim, " is not a multiple of four times the ", config.heads, " heads");
  require(config.depth > 0 && config.hidden > 0 && config.registers >= 0,
          "depth and hidden must be at least 1, registers at least 0");
  auto net = std::make_shared<const Eva>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.dim;
  model.head = "head";
  model.eva = std::make_shared<const EvaConfig>(config);
  model.input = imagenet_preprocessing();
  model.input.size = config.image;
  model.input.filter = Filter::bicubic;
  model.input.crop_pct = 1;
  model.taps = {"patch_embed", "embeddings"};
  for (int i = 0; i < config.depth; i++) model.taps.push_back("blocks." + std::to_string(i));
  model.taps.push_back("norm");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> evas() {
  struct Public {
    const char *name, *title;
    int dim, depth, heads;
    int64_t hidden;
    bool biases, gated;
  };
  static const Public published[] = {
      {"vit_small_patch16_dinov3", "DINOv3 ViT-S/16", 384, 12, 6, 1536, false, false},
      {"vit_small_patch16_dinov3_qkvb", "DINOv3 ViT-S/16", 384, 12, 6, 1536, true, false},
      {"vit_small_plus_patch16_dinov3", "DINOv3 ViT-S+/16", 384, 12, 6, 1536, false, true},
      {"vit_base_patch16_dinov3", "DINOv3 ViT-B/16", 768, 12, 12, 3072, false, false},
      {"vit_large_patch16_dinov3", "DINOv3 ViT-L/16", 1024, 24, 16, 4096, false, false},
      {"vit_tiny_patch16_dinov3_qkvb", "EUPE ViT-T/16", 192, 12, 3, 768, true, false}};
  std::vector<Entry> all;
  for (const Public& p : published)
    all.push_back(
        {{p.name, concat(p.title, p.biases ? ", biases of q and v" : "", ", 256x256 images")},
         [&p](const nn::Scope& scope, const Options& options) {
           EvaConfig config;
           config.dim = p.dim, config.depth = p.depth, config.heads = p.heads;
           config.hidden = p.hidden;
           config.q_bias = config.v_bias = p.biases;
           if (p.gated) config.gate = Gate::apart, config.activation = Activation::silu;
           config.classes = options.classes;
           if (options.image) config.image = options.image;
           config.dropout = options.dropout;
           config.drop_path = options.drop_path;
           return make_eva(config, scope);
         }});
  return all;
}

}  // namespace pupil::models

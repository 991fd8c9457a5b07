#include "mixer.h"

#include "transformer.h"
#include "vit.h"

namespace pupil::models {
namespace {

struct MixerBlock {
  nn::LayerNorm norm1;
  Mlp tokens;
  nn::LayerNorm norm2;
  Mlp channels;
  double drop_path_rate;

  MixerBlock(const nn::Scope& scope, const MixerConfig& c, int64_t patches, double rate)
      : norm1(scope / "norm1", c.dim, c.norm_eps),
        tokens(scope, patches, options(c, "mlp_tokens", c.token_ratio)),
        norm2(scope / "norm2", c.dim, c.norm_eps),
        channels(scope, c.dim, options(c, "mlp_channels", c.channel_ratio)),
        drop_path_rate(rate) {}

  static BlockOptions options(const MixerConfig& c, const std::string& name, double ratio) {
    return {.hidden = int64_t(double(c.dim) * ratio),
            .dropout = c.dropout,
            .names = {.fc1 = name + ".fc1", .fc2 = name + ".fc2"}};
  }

  Tensor operator()(const Tensor& x, const nn::Call& call) const {
    auto turned = [](const Tensor& y) { return permute(y, {0, 2, 1}); };
    Tensor middle = add(x, call.drop_path(turned(tokens(turned(norm1(x)), call)), drop_path_rate));
    return add(middle, call.drop_path(channels(norm2(middle), call), drop_path_rate));
  }
};

struct Mixer {
  MixerConfig config;
  nn::PatchEmbed stem;
  std::vector<MixerBlock> blocks;
  nn::LayerNorm norm;
  std::optional<nn::Linear> head;

  Mixer(const MixerConfig& c, const nn::Scope& scope)
      : config(c),
        stem(scope / "stem" / "proj", 3, c.dim, c.patch),
        blocks(make(c, scope / "blocks")),
        norm(scope / "norm", c.dim, c.norm_eps) {
    if (c.classes) head.emplace(scope / "head", c.dim, c.classes, nn::Init{}, nn::Init{});
  }

  static std::vector<MixerBlock> make(const MixerConfig& c, const nn::Scope& scope) {
    std::vector<MixerBlock> all;
    int64_t side = c.image / c.patch;
    for (int i = 0; i < c.depth; i++)
      all.emplace_back(scope / i, c, side * side,
                       c.depth > 1 ? c.drop_path * i / (c.depth - 1) : 0);
    return all;
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    require_patches("mixer", images, config.patch);
    if (images.dim(2) != config.image || images.dim(3) != config.image)
      fail_input("mixer: images of ", images.dim(2), "x", images.dim(3),
                 "; its layers over the patches fit only ", config.image, "x", config.image);
    Tensor x = stem(images);
    call.see("stem", x);
    for (size_t i = 0; i < blocks.size(); i++) {
      x = blocks[i](x, call);
      call.see("blocks." + std::to_string(i), x);
    }
    x = norm(x);
    call.see("norm", x);
    Tensor features = mean(x, {1});
    return {head ? (*head)(features) : features, features};
  }
};

}  // namespace

Model make_mixer(const MixerConfig& config, const nn::Scope& scope) {
  if (config.patch < 1 || config.image < config.patch || config.image % config.patch)
    fail_input("mixer: image ", config.image, " is not a multiple of patch ", config.patch);
  if (config.dim < 1 || config.depth < 1 || config.token_ratio * config.dim < 1 ||
      config.channel_ratio * config.dim < 1)
    fail_input("mixer: dim, depth and the hidden widths must be at least 1");
  auto net = std::make_shared<const Mixer>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.dim;
  model.head = "head";
  model.input = {config.image, 3, {0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}, Filter::bicubic};
  model.taps = {"stem"};
  for (int i = 0; i < config.depth; i++) model.taps.push_back("blocks." + std::to_string(i));
  model.taps.push_back("norm");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> mixers() {
  return {{{"mixer_b16_224", "MLP-Mixer B/16, 224x224 images"},
           [](const nn::Scope& scope, const Options& options) {
             MixerConfig config;
             int side = config.image;
             config.classes = options.classes;
             if (options.image) config.image = options.image;
             config.dropout = options.dropout;
             config.drop_path = options.drop_path;
             Model model = make_mixer(config, scope);
             if (config.image == side) model.input.crop_pct = 0.875;
             return model;
           }}};
}

}  // namespace pupil::models

#include "convnext.h"

namespace pupil::models {
namespace {

constexpr nn::Init kWeight{nn::Init::normal, 0.02}, kZeros{nn::Init::zeros};

Tensor channels_last(const Tensor& x) { return permute(x, {0, 2, 3, 1}); }
Tensor channels_first(const Tensor& x) { return permute(x, {0, 3, 1, 2}); }

struct ConvnextBlock {
  nn::Conv2d depthwise;
  nn::LayerNorm norm;
  nn::Linear fc1, fc2;
  Tensor response_weight, response_bias, gamma;
  double response_eps;

  ConvnextBlock(const ConvnextConfig& c, const nn::Scope& scope, int64_t width)
      : depthwise(scope / "conv_dw", width, width, 7, {.padding = 3, .groups = int(width)}, true,
                  kWeight),
        norm(scope / "norm", width, c.norm_eps),
        fc1(scope / "mlp" / "fc1", width, hidden(c, width), kWeight, kZeros),
        fc2(scope / "mlp" / "fc2", hidden(c, width), width, kWeight, kZeros),
        response_eps(c.response_eps) {
    if (c.response_norm) {
      nn::Scope response = scope / "mlp" / "grn";
      response_weight = response.param("weight", {hidden(c, width)}, kZeros);
      response_bias = response.param("bias", {hidden(c, width)}, kZeros);
    }
    if (c.layer_scale > 0)
      gamma = scope.param("gamma", {width}, {nn::Init::constant, c.layer_scale});
  }
  static int64_t hidden(const ConvnextConfig& c, int64_t width) {
    return int64_t(c.mlp_ratio * double(width));
  }

  // Section 3 of version 2: each channel by its norm over the image, relative to their mean.
  Tensor respond(const Tensor& x) const {
    Tensor norms = sqrt(sum(square(x), {1, 2}, true));
    Tensor share = div(norms, add_scalar(mean(norms, {3}, true), response_eps));
    Tensor weight = to_dtype(response_weight, x.dtype()), bias = to_dtype(response_bias, x.dtype());
    return add(x, add(mul(weight, mul(x, share)), bias));
  }

  Tensor operator()(const Tensor& x) const {
    Tensor y = gelu(fc1(norm(channels_last(depthwise(x)))));
    if (response_weight) y = respond(y);
    y = fc2(y);
    if (gamma) y = mul(y, to_dtype(gamma, y.dtype()));
    return add(x, channels_first(y));
  }
};

// Squares of `side` pixels, each one result; the first norm is over channels.
struct Downsample {
  nn::LayerNorm norm;
  nn::Conv2d conv;
  Downsample(const ConvnextConfig& c, const nn::Scope& norm_scope, const nn::Scope& conv_scope,
             int64_t normed, int64_t in, int64_t out, int side)
      : norm(norm_scope, normed, c.norm_eps),
        conv(conv_scope, in, out, side, {.stride = side}, true, kWeight) {}
  Tensor normalised(const Tensor& x) const { return channels_first(norm(channels_last(x))); }
};

struct Convnext {
  Downsample stem;
  std::vector<Downsample> downsamples;  // before stages 1 and on
  std::vector<std::vector<ConvnextBlock>> stages;
  nn::LayerNorm norm;
  std::optional<nn::Linear> fc;

  Convnext(const ConvnextConfig& c, const nn::Scope& scope)
      : stem(c, scope / "stem" / 1, scope / "stem" / 0, c.widths[0], 3, c.widths[0], 4),
        norm(scope / "head" / "norm", c.widths.back(), c.norm_eps) {
    for (size_t stage = 0; stage < c.depths.size(); stage++) {
      nn::Scope at = scope / "stages" / int(stage), down = at / "downsample";
      if (stage)
        downsamples.emplace_back(c, down / 0, down / 1, c.widths[stage - 1], c.widths[stage - 1],
                                 c.widths[stage], 2);
      stages.emplace_back();
      for (int i = 0; i < c.depths[stage]; i++)
        stages.back().emplace_back(c, at / "blocks" / i, c.widths[stage]);
    }
    if (c.classes) fc.emplace(scope / "head" / "fc", c.widths.back(), c.classes, kWeight, kZeros);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = stem.normalised(stem.conv(images));
    call.see("stem", x);
    for (size_t stage = 0; stage < stages.size(); stage++) {
      if (stage) x = downsamples[stage - 1].conv(downsamples[stage - 1].normalised(x));
      for (size_t i = 0; i < stages[stage].size(); i++) {
        x = stages[stage][i](x);
        call.see(concat("stages.", stage, ".", i), x);
      }
    }
    call.see("features", x);
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    Tensor features = norm(pooled);
    return {fc ? (*fc)(features) : features, features};
  }
};

}  // namespace

Model make_convnext(const ConvnextConfig& config, const nn::Scope& scope) {
  auto net = std::make_shared<Convnext>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.widths.back();
  model.head = "head.fc";
  model.input = imagenet_preprocessing();
  model.taps = {"stem"};
  for (size_t stage = 0; stage < config.depths.size(); stage++)
    for (int i = 0; i < config.depths[stage]; i++)
      model.taps.push_back(concat("stages.", stage, ".", i));
  model.taps.insert(model.taps.end(), {"features", "pooled"});
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> convnexts() {
  std::vector<Entry> all;
  auto add = [&](const char* name, const char* title, const ConvnextConfig& config, double crop) {
    all.push_back({{name, concat(title, ", 224x224 images")},
                   [=](const nn::Scope& scope, const Options& options) {
                     ConvnextConfig own = config;
                     own.classes = options.classes;
                     Model model = make_convnext(own, scope);
                     model.input.filter = Filter::bicubic;
                     model.input.crop_pct = crop;
                     return model;
                   }});
  };
  add("convnext_tiny", "ConvNeXt-T", {}, 0.95);
  add("convnextv2_tiny", "ConvNeXtV2-T", {.layer_scale = 0, .response_norm = true}, 0.875);
  return all;
}

}  // namespace pupil::models

#include "resnetv2.h"

#include "conv_norm.h"

namespace pupil::models {
namespace {

// A convolution whose filters have mean 0 and variance 1 over all that an output adds up.
struct StandardConv {
  nn::Conv2d conv;
  double eps;

  StandardConv(const nn::Scope& scope, int64_t in, int64_t out, int kernel, int stride, double eps,
               nn::Init weight)
      : conv(scope, in, out, kernel, {stride, (kernel - 1) / 2}, false, weight), eps(eps) {}
  Tensor operator()(const Tensor& x) const {
    const Shape& s = conv.weight.shape();
    Tensor filters = layer_norm(view(conv.weight, {s[0], s[1] * s[2] * s[3]}), {}, {}, eps);
    return conv2d(x, view(filters, s), {}, conv.options);
  }
};

StandardConv standard_convolution(const Resnetv2Config& c, const nn::Scope& scope, int64_t in,
                                  int64_t out, int kernel, int stride, bool zero = false) {
  return StandardConv(
      scope, in, out, kernel, stride, c.weight_eps,
      zero ? nn::Init{nn::Init::zeros} : nn::kaiming_normal(int64_t(kernel) * kernel * out));
}

struct PreactivationBlock {
  nn::GroupNorm norm1, norm2, norm3;
  StandardConv conv1, conv2, conv3;
  std::optional<StandardConv> projection;

  PreactivationBlock(const Resnetv2Config& c, const nn::Scope& scope, int64_t in, int64_t inner,
                     int64_t out, int stride, bool projects)
      : norm1(scope / "norm1", in, c.groups, c.norm_eps),
        norm2(scope / "norm2", inner, c.groups, c.norm_eps),
        norm3(scope / "norm3", inner, c.groups, c.norm_eps),
        conv1(standard_convolution(c, scope / "conv1", in, inner, 1, 1)),
        conv2(standard_convolution(c, scope / "conv2", inner, inner, 3, stride)),
        conv3(standard_convolution(c, scope / "conv3", inner, out, 1, 1, true)) {
    if (projects)
      projection = standard_convolution(c, scope / "downsample" / "conv", in, out, 1, stride);
  }

  Tensor operator()(const Tensor& x) const {
    Tensor y = relu(norm1(x));
    Tensor residual = projection ? (*projection)(y) : x;
    return add(conv3(relu(norm3(conv2(relu(norm2(conv1(y))))))), residual);
  }
};

struct Resnetv2 {
  StandardConv stem;
  std::vector<std::pair<std::string, PreactivationBlock>> blocks;  // with the names of their taps
  std::optional<nn::GroupNorm> norm;
  std::optional<nn::Conv2d> fc;

  Resnetv2(const Resnetv2Config& c, const nn::Scope& scope)
      : stem(standard_convolution(c, scope / "stem" / "conv", 3, c.stem, 7, 2)) {
    int64_t in = c.stem;
    for (size_t stage = 0; stage < c.layers.size(); stage++)
      for (int i = 0; i < c.layers[stage]; i++) {
        nn::Scope at = scope / concat("stages.", stage, ".blocks.", i);
        blocks.emplace_back(concat("stages.", stage, ".", i),
                            PreactivationBlock(c, at, in, c.inner[stage], c.channels[stage],
                                               i == 0 && stage > 0 ? 2 : 1, i == 0));
        in = c.channels[stage];
      }
    norm.emplace(scope / "norm", in, c.groups, c.norm_eps);
    if (c.classes)
      fc.emplace(scope / "head" / "fc", in, c.classes, 1, ConvOptions{}, true,
                 nn::Init{nn::Init::normal, 0.01});
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    // A border of zeros that can be the largest.
    Tensor x = max_pool2d(pad(stem(images), {1, 1, 1, 1}), {3, 2});
    call.see("stem", x);
    for (auto& [name, block] : blocks) {
      x = block(x);
      call.see(name, x);
    }
    x = relu((*norm)(x));
    call.see("features", x);
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {fc ? pointwise(*fc, pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_resnetv2(const Resnetv2Config& config, const nn::Scope& scope) {
  auto net = std::make_shared<Resnetv2>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.channels.back();
  model.head = "head.fc";
  model.input = imagenet_preprocessing();
  model.taps = {"stem"};
  for (auto& [name, block] : net->blocks) model.taps.push_back(name);
  model.taps.insert(model.taps.end(), {"features", "pooled"});
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> resnetv2s() {
  std::vector<Entry> all;
  auto add = [&](const char* name, const char* title, const std::vector<int>& layers, int width) {
    all.push_back(
        {{name, concat(title, ", 224x224 images")},
         [=](const nn::Scope& scope, const Options& options) {
           Resnetv2Config config;
           config.layers = layers;
           for (auto* widths : {&config.channels, &config.inner})
             for (int64_t& channels : *widths) channels *= width;
           config.stem *= width;
           config.classes = options.classes;
           Model model = make_resnetv2(config, scope);
           model.input = {224, 3, {.5f, .5f, .5f}, {.5f, .5f, .5f}, Filter::bicubic, 0.875};
           return model;
         }});
  };
  add("resnetv2_50x1_bit", "BiT, ResNetV2-50", {3, 4, 6, 3}, 1);
  add("resnetv2_152x2_bit", "BiT, ResNetV2-152, twice as wide", {3, 8, 36, 3}, 2);
  return all;
}

}  // namespace pupil::models

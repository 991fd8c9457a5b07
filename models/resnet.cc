// The residual networks of He et al. 2015 (arXiv 1512.03385) and their relatives of wider or
// grouped bottlenecks: a bottleneck's stride is that of its 3x3 convolution.
#include "resnet.h"

#include "conv_norm.h"

namespace pupil::models {
namespace {

ConvNormOptions resnet_options(const ResnetConfig& c, int kernel, int stride, Activation activation,
                               int groups = 1) {
  return {.kernel = kernel,
          .stride = stride,
          .groups = groups,
          .activation = activation,
          .eps = c.bn_eps,
          .momentum = c.bn_momentum};
}

struct ResnetBlock {
  std::vector<ConvNorm> units;
  std::optional<ConvNorm> projection;
  bool pooled_projection;

  ResnetBlock(const ResnetConfig& c, const nn::Scope& scope, int64_t in, int64_t planes, int stride)
      : pooled_projection(c.avg_down && stride > 1) {
    int64_t out = c.bottleneck ? 4 * planes : planes;
    auto add = [&](int64_t from, int64_t to, int kernel, int step, int groups, bool last) {
      std::string number = std::to_string(units.size() + 1);
      ConvNormOptions o = resnet_options(c, kernel, step, Activation::relu, groups);
      o.zero_scale = last && c.zero_last_scale;
      units.emplace_back(scope / ("conv" + number), scope / ("bn" + number), from, to, o);
    };
    if (c.bottleneck) {
      int64_t width = planes * c.width_per_group / 64 * c.groups;
      add(in, width, 1, 1, 1, false);
      add(width, width, 3, stride, c.groups, false);
      add(width, out, 1, 1, 1, true);
    } else {
      add(in, out, 3, stride, 1, false);
      add(out, out, 3, 1, 1, true);
    }
    if (stride == 1 && in == out) return;
    nn::Scope down = scope / "downsample";
    int first = c.avg_down ? 1 : 0;  // 0 is the pooling
    projection.emplace(down / first, down / (first + 1), in, out,
                       resnet_options(c, 1, pooled_projection ? 1 : stride, Activation::none));
  }

  Tensor operator()(const Tensor& input, const nn::Call& call) {
    Tensor residual = input, x = input;
    if (pooled_projection)
      residual = avg_pool2d(input, {.ceil_mode = true, .count_include_pad = false});
    if (projection) residual = (*projection)(residual, call);
    for (ConvNorm& unit : units) x = unit(x, call, &unit == &units.back() ? residual : Tensor());
    return x;
  }
};

struct Resnet {
  std::vector<ConvNorm> stem;
  std::vector<std::pair<std::string, ResnetBlock>> blocks;
  std::optional<nn::Linear> fc;

  Resnet(const ResnetConfig& c, const nn::Scope& scope) {
    nn::Scope conv = scope / "conv1", norm = scope / "bn1";
    if (c.deep_stem) {
      int64_t half = c.stem / 2;
      stem.emplace_back(conv / 0, conv / 1, 3, half, resnet_options(c, 3, 2, Activation::relu));
      stem.emplace_back(conv / 3, conv / 4, half, half, resnet_options(c, 3, 1, Activation::relu));
      stem.emplace_back(conv / 6, norm, half, c.stem, resnet_options(c, 3, 1, Activation::relu));
    } else {
      stem.emplace_back(conv, norm, 3, c.stem, resnet_options(c, 7, 2, Activation::relu));
    }
    int64_t in = c.stem;
    for (size_t stage = 0; stage < 4; stage++)
      for (int i = 0; i < c.layers[stage]; i++) {
        std::string name = concat("layer", stage + 1, ".", i);
        blocks.emplace_back(
            name, ResnetBlock(c, scope / name, in, c.planes[stage], i == 0 && stage > 0 ? 2 : 1));
        in = c.planes[stage] * (c.bottleneck ? 4 : 1);
      }
    if (c.classes) fc.emplace(scope / "fc", in, c.classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = images;
    for (ConvNorm& unit : stem) x = unit(x, call);
    x = max_pool2d(x, {3, 2, 1});
    call.see("stem", x);
    for (auto& [name, block] : blocks) {
      x = block(x, call);
      call.see(name, x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {fc ? (*fc)(pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_resnet(const ResnetConfig& config, const nn::Scope& scope) {
  auto net = std::make_shared<Resnet>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.planes[3] * (config.bottleneck ? 4 : 1);
  model.head = "fc";
  model.input = imagenet_preprocessing();
  model.taps = {"stem"};
  for (auto& [name, block] : net->blocks) model.taps.push_back(name);
  model.taps.push_back("pooled");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> resnets() {
  std::vector<Entry> all;
  auto add = [&](const char* name, const char* title, const ResnetConfig& config,
                 const Preprocessing& input = imagenet_preprocessing()) {
    all.push_back({{name, concat(title, ", ", input.size, "x", input.size, " images")},
                   [config, input](const nn::Scope& scope, const Options& options) {
                     ResnetConfig own = config;
                     own.classes = options.classes;
                     Model model = make_resnet(own, scope);
                     model.input = input;
                     return model;
                   }});
  };
  add("resnet18", "ResNet-18", {.layers = {2, 2, 2, 2}});
  add("resnet34", "ResNet-34", {.layers = {3, 4, 6, 3}});
  add("resnet50", "ResNet-50", {.bottleneck = true, .layers = {3, 4, 6, 3}});
  add("resnet101", "ResNet-101", {.bottleneck = true, .layers = {3, 4, 23, 3}});
  add("resnet152", "ResNet-152", {.bottleneck = true, .layers = {3, 8, 36, 3}});
  add("resnext50_32x4d", "ResNeXt-50, 32 groups",
      {.bottleneck = true, .layers = {3, 4, 6, 3}, .groups = 32, .width_per_group = 4});
  add("wide_resnet50_2", "ResNet-50, twice as wide inside",
      {.bottleneck = true, .layers = {3, 4, 6, 3}, .width_per_group = 128});
  Preprocessing timm = imagenet_preprocessing();
  timm.filter = Filter::bicubic;
  add("resnet50d", "ResNet-50-D of timm",
      {.bottleneck = true,
       .layers = {3, 4, 6, 3},
       .deep_stem = true,
       .avg_down = true,
       .zero_last_scale = true},
      timm);
  timm.crop_pct = 0.95;
  add("resnet18.a1_in1k", "ResNet-18 of timm", {.layers = {2, 2, 2, 2}, .zero_last_scale = true},
      timm);
  add("resnet50.a1_in1k", "ResNet-50 of timm",
      {.bottleneck = true, .layers = {3, 4, 6, 3}, .zero_last_scale = true}, timm);
  return all;
}

}  // namespace pupil::models

// The residual networks of He et al. 2015 (arXiv 1512.03385) and their relatives of wider or
// grouped bottlenecks, as torchvision has them: a bottleneck's stride is that of its 3x3
// convolution.
#include "resnet.h"

namespace pupil::models {
namespace {

struct Unit {  // a convolution and its batch norm
  nn::Conv2d conv;
  nn::BatchNorm norm;

  Unit(const nn::Scope& conv_scope, const nn::Scope& norm_scope, int64_t in, int64_t out,
       int kernel, int stride, int groups = 1)
      : conv(conv_scope, in, out, kernel, {stride, (kernel - 1) / 2, 1, groups}, false,
             nn::kaiming_normal(int64_t(kernel) * kernel * out / groups)),
        norm(norm_scope, out) {}
  Unit(const nn::Scope& scope, int number, int64_t in, int64_t out, int kernel, int stride,
       int groups = 1)
      : Unit(scope / concat("conv", number), scope / concat("bn", number), in, out, kernel, stride,
             groups) {}
  Tensor operator()(const Tensor& x, const nn::Call& call, bool relu, const Tensor& residual = {}) {
    return norm(conv(x), call, relu, residual);
  }
};

struct Block {
  std::vector<Unit> units;
  std::optional<Unit> projection;

  Block(const ResnetConfig& c, const nn::Scope& scope, int64_t in, int64_t planes, int stride) {
    int64_t out = c.bottleneck ? 4 * planes : planes;
    if (c.bottleneck) {
      int64_t width = planes * c.width_per_group / 64 * c.groups;
      units = {Unit(scope, 1, in, width, 1, 1), Unit(scope, 2, width, width, 3, stride, c.groups),
               Unit(scope, 3, width, out, 1, 1)};
    } else {
      units = {Unit(scope, 1, in, out, 3, stride), Unit(scope, 2, out, out, 3, 1)};
    }
    nn::Scope down = scope / "downsample";
    if (stride != 1 || in != out) projection.emplace(down / 0, down / 1, in, out, 1, stride);
  }

  Tensor operator()(const Tensor& input, const nn::Call& call) {
    Tensor residual = projection ? (*projection)(input, call, false) : input, x = input;
    for (Unit& unit : units) x = unit(x, call, true, &unit == &units.back() ? residual : Tensor());
    return x;
  }
};

struct Resnet {
  Unit stem;
  std::vector<std::pair<std::string, Block>> blocks;
  std::optional<nn::Linear> fc;

  Resnet(const ResnetConfig& c, const nn::Scope& scope) : stem(scope, 1, 3, c.planes[0], 7, 2) {
    int64_t in = c.planes[0];
    for (size_t stage = 0; stage < 4; stage++)
      for (int i = 0; i < c.layers[stage]; i++) {
        std::string name = concat("layer", stage + 1, ".", i);
        blocks.emplace_back(
            name, Block(c, scope / name, in, c.planes[stage], i == 0 && stage > 0 ? 2 : 1));
        in = c.planes[stage] * (c.bottleneck ? 4 : 1);
      }
    if (c.classes) fc.emplace(scope / "fc", in, c.classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    auto see = [&](const std::string& name, const Tensor& value) {
      if (call.taps) call.taps->see(name, value);
    };
    Tensor x = max_pool2d(stem(images, call, true), {3, 2, 1});
    see("stem", x);
    for (auto& [name, block] : blocks) {
      x = block(x, call);
      see(name, x);
    }
    Tensor pooled = global_avg_pool(x);
    see("pooled", pooled);
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
  auto add = [&](const char* name, const char* title, const ResnetConfig& config) {
    all.push_back({{name, concat(title, ", 224x224 images")},
                   [config](const nn::Scope& scope, const Options& options) {
                     ResnetConfig own = config;
                     own.classes = options.classes;
                     return make_resnet(own, scope);
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
  return all;
}

}  // namespace pupil::models

// MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381) as torchvision has it: inverted residuals,
// whose 3x3 convolutions are depthwise, with ReLU6.
#include <array>

#include "inverted_residual.h"

namespace pupil::models {
namespace {

struct Unit {  // a convolution, its batch norm and ReLU6 or nothing
  nn::Conv2d conv;
  nn::BatchNorm norm;
  bool activation;

  Unit(const nn::Scope& conv_scope, const nn::Scope& norm_scope, int64_t in, int64_t out,
       int kernel, int stride, int groups, bool activation)
      : conv(conv_scope, in, out, kernel, {stride, (kernel - 1) / 2, 1, groups}, false,
             nn::kaiming_normal(int64_t(kernel) * kernel * out / groups)),
        norm(norm_scope, out),
        activation(activation) {}
  Unit(const nn::Scope& scope, int64_t in, int64_t out, int kernel, int stride, int groups = 1)
      : Unit(scope / 0, scope / 1, in, out, kernel, stride, groups, true) {}
  Tensor operator()(const Tensor& x, const nn::Call& call) {
    Tensor y = norm(conv(x), call, activation);
    return activation ? clamp(y, 0, 6) : y;
  }
};

struct Block {
  std::vector<Unit> units;
  bool skip;

  Block(const MobilenetV2Config::Block& c, const nn::Scope& scope, int64_t in)
      : skip(c.stride == 1 && in == c.outputs) {
    int64_t width = in * c.expansion;
    int i = 0;
    if (c.expansion != 1) units.emplace_back(scope / i++, in, width, 1, 1);
    units.emplace_back(scope / i++, width, width, 3, c.stride, int(width));
    units.emplace_back(scope / i, scope / (i + 1), width, c.outputs, 1, 1, 1, false);
  }

  Tensor operator()(const Tensor& input, const nn::Call& call) {
    Tensor x = input;
    for (Unit& unit : units) x = unit(x, call);
    return skip ? add(x, input) : x;
  }
};

struct MobilenetV2 {
  Unit stem;
  std::vector<Block> blocks;
  std::optional<Unit> last;
  std::optional<nn::Linear> classifier;
  double rate;

  MobilenetV2(const MobilenetV2Config& c, const nn::Scope& scope)
      : stem(scope / "features" / 0, 3, c.stem, 3, 2), rate(c.dropout) {
    int64_t in = c.stem;
    nn::Scope features = scope / "features";
    for (const auto& block : c.blocks) {
      blocks.emplace_back(block, features / int(blocks.size() + 1) / "conv", in);
      in = block.outputs;
    }
    last.emplace(features / int(blocks.size() + 1), in, c.head, 1, 1);
    if (c.classes)
      classifier.emplace(scope / "classifier" / 1, c.head, c.classes,
                         nn::Init{nn::Init::normal, 0.01}, nn::Init{nn::Init::zeros});
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    int i = 0;
    auto see = [&](const Tensor& value) {
      if (call.taps) call.taps->see(concat("features.", i++), value);
      return value;
    };
    Tensor x = see(stem(images, call));
    for (Block& block : blocks) x = see(block(x, call));
    x = see((*last)(x, call));
    Tensor pooled = global_avg_pool(x);
    if (call.taps) call.taps->see("pooled", pooled);
    if (!classifier) return {pooled, pooled};
    bool drop = call.train && rate > 0;
    return {(*classifier)(drop ? dropout(pooled, rate, call.rng->next()) : pooled), pooled};
  }
};

}  // namespace

Model make_mobilenet_v2(const MobilenetV2Config& config, const nn::Scope& scope) {
  auto net = std::make_shared<MobilenetV2>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.head;
  model.head = "classifier.1";
  model.input = imagenet_preprocessing();
  for (size_t i = 0; i < config.blocks.size() + 2; i++)
    model.taps.push_back(concat("features.", i));
  model.taps.push_back("pooled");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

// Table 2 of its paper: expansion, channels, blocks, stride of the first.
std::vector<Entry> inverted_residuals() {
  MobilenetV2Config config;
  for (auto [expansion, outputs, count, stride] :
       std::initializer_list<std::array<int, 4>>{{1, 16, 1, 1},
                                                 {6, 24, 2, 2},
                                                 {6, 32, 3, 2},
                                                 {6, 64, 4, 2},
                                                 {6, 96, 3, 1},
                                                 {6, 160, 3, 2},
                                                 {6, 320, 1, 1}})
    for (int i = 0; i < count; i++)
      config.blocks.push_back({expansion, outputs, i == 0 ? stride : 1});
  return {{{"mobilenet_v2", "MobileNetV2, 224x224 images"},
           [config](const nn::Scope& scope, const Options& options) {
             MobilenetV2Config own = config;
             own.classes = options.classes;
             return make_mobilenet_v2(own, scope);
           }}};
}

}  // namespace pupil::models

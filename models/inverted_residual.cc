#include "inverted_residual.h"

#include <algorithm>
#include <array>

namespace pupil::models {
namespace {

using Names = InvertedResidualConfig::Names;
using Kind = InvertedResidual::Kind;

struct Unit {  // a convolution and its norm
  std::string conv, norm;
};

// How each library names the parts outside the blocks. `last` counts the stages.
struct Naming {
  Names names;

  Unit stem() const {
    if (names == Names::timm) return {"conv_stem", "bn1"};
    return pair(names == Names::kd ? "conv1" : "features.0");
  }
  Unit head(size_t last) const {
    if (names == Names::timm) return {"conv_head", "bn2"};
    return pair(names == Names::kd ? "conv2" : concat("features.", last + 1));
  }
  std::string block(size_t stage, size_t index) const {
    switch (names) {
      case Names::mobilenet_v2:
        return concat("features.", stage + 1, ".conv");
      case Names::mobilenet_v3:
        return concat("features.", stage + 1, ".block");
      case Names::efficientnet:
        return concat("features.", stage + 1, ".", index, ".block");
      case Names::timm:
        return concat("blocks.", stage, ".", index);
      case Names::kd:
        return concat("blocks.", stage, ".", index, ".conv");
    }
    return "";
  }
  std::string classifier() const {
    switch (names) {
      case Names::timm:
        return "classifier";
      case Names::kd:
        return "classifier.0";
      case Names::mobilenet_v3:
        return "classifier.3";
      default:
        return "classifier.1";
    }
  }
  // Stage -1 is the stem, stage `last` the head. Empty: not announced.
  std::string tap(int stage, int last) const {
    if (names == Names::timm)
      return stage < 0 ? "stem" : stage < last ? concat("blocks.", stage) : "head";
    if (names != Names::kd) return concat("features.", stage + 1);
    constexpr std::array after{-1, 1, 2, 4, 6};
    auto at = std::find(after.begin(), after.end(), stage);
    return at == after.end() ? "" : concat("f", at - after.begin());
  }

 private:
  static Unit pair(const std::string& of) { return {of + ".0", of + ".1"}; }
};

// Names the parts of a block in their order.
struct BlockNaming {
  Names names;
  Kind kind;
  int index = 0;

  Unit convolution(bool depthwise, bool last) {
    int i = index++;
    switch (names) {
      case Names::mobilenet_v2:
        if (last) return {concat(i), concat(i + 1)};
        [[fallthrough]];
      case Names::mobilenet_v3:
      case Names::efficientnet:
        return {concat(i, ".0"), concat(i, ".1")};
      case Names::kd:
        return {concat(3 * i), concat(3 * i + 1)};
      case Names::timm:
        break;
    }
    const char* conv = kind == Kind::plain              ? "conv"
                       : depthwise                      ? "conv_dw"
                       : last && kind == Kind::inverted ? "conv_pwl"
                                                        : "conv_pw";
    return {conv, concat("bn", i + 1)};
  }
  std::pair<std::string, std::string> squeeze() {
    if (names == Names::timm) return {"se.conv_reduce", "se.conv_expand"};
    int i = index++;
    return {concat(i, ".fc1"), concat(i, ".fc2")};
  }
};

// torchvision draws weights by the outputs of a convolution, timm by those of a group.
ConvNormOptions options(const InvertedResidualConfig& c, int kernel, int stride, int64_t out,
                        int64_t groups, Activation activation) {
  int64_t fan = int64_t(kernel) * kernel * out / (c.names == Names::timm ? groups : 1);
  return {kernel,         stride,   int(groups),   activation,
          c.same_padding, c.bn_eps, c.bn_momentum, nn::kaiming_normal(fan)};
}

struct InvertedBlock {
  std::vector<ConvNorm> units;
  std::optional<SqueezeExcite> squeeze;  // before the last unit
  bool skip;
  double drop_path_rate;

  InvertedBlock(const InvertedResidualConfig& c, const InvertedResidual& b, const nn::Scope& scope,
                double drop_path_rate)
      : skip(b.skip), drop_path_rate(b.skip ? drop_path_rate : 0) {
    BlockNaming naming{c.names, b.kind};
    auto add = [&](int64_t in, int64_t out, int kernel, int stride, int64_t groups, bool last) {
      Unit unit = naming.convolution(groups > 1, last);
      bool linear = last && b.kind != Kind::plain;
      units.emplace_back(
          scope / unit.conv, scope / unit.norm, in, out,
          options(c, kernel, stride, out, groups, linear ? Activation::none : b.activation));
    };
    if (b.kind == Kind::plain) {
      add(b.in, b.out, b.kernel, b.stride, 1, true);
      return;
    }
    if (b.kind == Kind::inverted) add(b.in, b.inner, 1, 1, 1, false);
    add(b.inner, b.inner, b.kernel, b.stride, b.inner, false);
    if (b.squeeze) {
      auto [reduce, expand] = naming.squeeze();
      squeeze.emplace(scope / reduce, scope / expand, b.inner, b.squeeze, c.squeeze_activation,
                      c.hard_gate);
    }
    add(b.inner, b.out, 1, 1, 1, true);
  }

  Tensor operator()(const Tensor& input, const nn::Call& call) {
    bool drops = call.train && drop_path_rate > 0;
    bool fused = skip && !drops && units.back().activation == Activation::none;
    Tensor x = input;
    std::span<ConvNorm> left(units);
    if (squeeze) {
      x = (*squeeze)(in_turn(left.first(left.size() - 1), x, call));
      left = left.last(1);
    }
    x = in_turn(left, x, call, fused ? input : Tensor());
    return skip && !fused ? add(call.drop_path(x, drop_path_rate), input) : x;
  }
};

struct InvertedResidualNet {
  Naming naming;
  std::vector<std::vector<InvertedBlock>> stages;
  std::optional<ConvNorm> stem, head;
  std::optional<nn::Linear> hidden, classifier;
  std::optional<nn::Conv2d> hidden_convolution;  // as timm stores the hidden layer
  Activation hidden_activation;
  double dropout_rate, drop_path_rate;
  int64_t width;  // of the vector that enters the classifier

  InvertedResidualNet(const InvertedResidualConfig& c, const nn::Scope& scope)
      : naming{c.names},
        hidden_activation(c.hidden_activation),
        dropout_rate(c.dropout),
        drop_path_rate(c.drop_path),
        width(c.stem) {
    auto unit = [&](const Unit& names, int64_t in, int64_t out, int kernel, int stride,
                    Activation activation) {
      return ConvNorm(scope / names.conv, scope / names.norm, in, out,
                      options(c, kernel, stride, out, 1, activation));
    };
    stem = unit(naming.stem(), 3, c.stem, 3, 2, c.stem_activation);
    stem->conv.options.channels_last = true;
    size_t count = 0, index = 0;
    for (auto& stage : c.stages) count += stage.size();
    for (auto& stage : c.stages) {
      std::vector<InvertedBlock>& blocks = stages.emplace_back();
      for (const InvertedResidual& block : stage)
        blocks.emplace_back(c, block, scope / naming.block(stages.size() - 1, blocks.size()),
                            c.drop_path * double(index++) / double(count));
      width = stage.back().out;
    }
    if (c.head) {
      head = unit(naming.head(stages.size()), width, c.head, 1, 1, c.head_activation);
      width = c.head;
    }
    nn::Init normal{nn::Init::normal, 0.01}, zero{nn::Init::zeros};
    if (c.hidden && c.names == Names::timm)
      hidden_convolution.emplace(scope / "conv_head", width, c.hidden, 1, ConvOptions{}, true,
                                 nn::kaiming_normal(c.hidden));
    else if (c.hidden)
      hidden.emplace(scope / "classifier.0", width, c.hidden, normal, zero);
    if (c.hidden) width = c.hidden;
    bool uniform = c.names == Names::timm || c.names == Names::efficientnet;
    if (c.classes)
      classifier.emplace(scope / naming.classifier(), width, c.classes,
                         uniform ? nn::fan_in_uniform(c.classes) : normal, zero);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    int count = int(stages.size());
    Tensor x = (*stem)(images, call);
    call.see(naming.tap(-1, count), x);
    for (int i = 0; i < count; i++) {
      for (InvertedBlock& block : stages[size_t(i)]) x = block(x, call);
      call.see(naming.tap(i, count), x);
    }
    if (head) {
      x = (*head)(x, call);
      call.see(naming.tap(count, count), x);
    }
    Tensor features = global_avg_pool(x);
    call.see("pooled", features);
    if (hidden || hidden_convolution)
      features = activate(hidden ? (*hidden)(features) : pointwise(*hidden_convolution, features),
                          hidden_activation);
    if (!classifier) return {features, features};
    return {(*classifier)(call.dropout(features, dropout_rate)), features};
  }
};

}  // namespace

Model make_inverted_residual(const InvertedResidualConfig& config, const nn::Scope& scope) {
  auto net = std::make_shared<InvertedResidualNet>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = net->width;
  model.head = net->naming.classifier();
  model.input = imagenet_preprocessing();
  int count = int(net->stages.size());
  for (int stage = -1; stage < count + (net->head ? 1 : 0); stage++)
    if (std::string name = net->naming.tap(stage, count); !name.empty()) model.taps.push_back(name);
  model.taps.push_back("pooled");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

namespace {

using Stages = std::vector<std::vector<InvertedResidual>>;

// Howard et al. 2017 (arXiv 1704.04861) as every library rounds: to a multiple of 8, down by at
// most a tenth.
int64_t rounded(double channels) {
  int64_t nearest = std::max<int64_t>(8, int64_t(channels + 4) / 8 * 8);
  return double(nearest) < 0.9 * channels ? nearest + 8 : nearest;
}

struct Row {  // a stage of equal blocks
  int64_t expansion, out;
  int count, stride, kernel;
};
Stages stages_of(const std::vector<Row>& rows, int64_t in, Activation activation, bool squeeze) {
  Stages stages;
  for (const Row& row : rows) {
    auto& stage = stages.emplace_back();
    for (int i = 0; i < row.count; i++) {
      int stride = i == 0 ? row.stride : 1;
      stage.push_back({row.expansion == 1 ? Kind::separable : Kind::inverted, row.kernel, stride,
                       in, in * row.expansion, row.out, squeeze ? in / 4 : 0, activation,
                       stride == 1 && in == row.out});
      in = row.out;
    }
  }
  return stages;
}

// Table 2 of its paper.
Stages mobilenet_v2() {
  return stages_of({{1, 16, 1, 1, 3},
                    {6, 24, 2, 2, 3},
                    {6, 32, 3, 2, 3},
                    {6, 64, 4, 2, 3},
                    {6, 96, 3, 1, 3},
                    {6, 160, 3, 2, 3},
                    {6, 320, 1, 1, 3}},
                   32, Activation::relu6, false);
}

// Table 1 of its paper; between the first and the last stage scaled for the Lite family.
Stages efficientnet(double width, double depth, Activation activation, bool squeeze) {
  std::vector<Row> rows{{1, 16, 1, 1, 3},  {6, 24, 2, 2, 3},  {6, 40, 2, 2, 5}, {6, 80, 3, 2, 3},
                        {6, 112, 3, 1, 5}, {6, 192, 4, 2, 5}, {6, 320, 1, 1, 3}};
  for (size_t i = 0; i < rows.size(); i++) {
    rows[i].out = rounded(width * double(rows[i].out));
    if (i > 0 && i + 1 < rows.size()) rows[i].count = int(std::ceil(depth * rows[i].count));
  }
  return stages_of(rows, 32, activation, squeeze);
}

// Tables 1 and 2 of the paper of MobileNetV3.
Stages mobilenet_v3(bool large) {
  struct Line {
    size_t stage;
    int kernel, stride;
    int64_t inner, out;
    bool squeeze, hard_swish;
  };
  const std::vector<Line> of_large{{0, 3, 1, 16, 16, false, false}, {1, 3, 2, 64, 24, false, false},
                                   {1, 3, 1, 72, 24, false, false}, {2, 5, 2, 72, 40, true, false},
                                   {2, 5, 1, 120, 40, true, false}, {2, 5, 1, 120, 40, true, false},
                                   {3, 3, 2, 240, 80, false, true}, {3, 3, 1, 200, 80, false, true},
                                   {3, 3, 1, 184, 80, false, true}, {3, 3, 1, 184, 80, false, true},
                                   {4, 3, 1, 480, 112, true, true}, {4, 3, 1, 672, 112, true, true},
                                   {5, 5, 2, 672, 160, true, true}, {5, 5, 1, 960, 160, true, true},
                                   {5, 5, 1, 960, 160, true, true}},
      of_small{{0, 3, 2, 16, 16, true, false},  {1, 3, 2, 72, 24, false, false},
               {1, 3, 1, 88, 24, false, false}, {2, 5, 2, 96, 40, true, true},
               {2, 5, 1, 240, 40, true, true},  {2, 5, 1, 240, 40, true, true},
               {3, 5, 1, 120, 48, true, true},  {3, 5, 1, 144, 48, true, true},
               {4, 5, 2, 288, 96, true, true},  {4, 5, 1, 576, 96, true, true},
               {4, 5, 1, 576, 96, true, true}};
  Stages stages;
  int64_t in = 16;
  for (const Line& b : large ? of_large : of_small) {
    stages.resize(b.stage + 1);
    stages.back().push_back({b.inner == in ? Kind::separable : Kind::inverted, b.kernel, b.stride,
                             in, b.inner, b.out, b.squeeze ? rounded(double(b.inner) / 4) : 0,
                             b.hard_swish ? Activation::hard_swish : Activation::relu,
                             b.stride == 1 && in == b.out});
    in = b.out;
  }
  return stages;
}

Stages one_block_a_stage(const Stages& stages) {
  Stages flat;
  for (auto& stage : stages)
    for (auto& block : stage) flat.push_back({block});
  return flat;
}

InvertedResidualConfig mobilenet_v3_config(bool large, bool timm) {
  InvertedResidualConfig c{.names = timm ? Names::timm : Names::mobilenet_v3,
                           .stem = 16,
                           .stem_activation = Activation::hard_swish,
                           .stages = mobilenet_v3(large),
                           .head = large ? 960 : 576,
                           .head_activation = Activation::hard_swish,
                           .hidden = large ? 1280 : 1024,
                           .hard_gate = true};
  if (timm) {  // the last convolution is a stage there
    int64_t in = c.stages.back().back().out;
    c.stages.push_back({{Kind::plain, 1, 1, in, 0, c.head, 0, Activation::hard_swish, false}});
    c.head = 0;
    return c;
  }
  c.stages = one_block_a_stage(c.stages);
  c.bn_eps = 1e-3;
  c.bn_momentum = 0.01;
  c.dropout = 0.2;
  return c;
}

InvertedResidualConfig efficientnet_b0(Names names) {
  return {.names = names,
          .stem_activation = Activation::silu,
          .stages = efficientnet(1, 1, Activation::silu, true),
          .head_activation = Activation::silu,
          .squeeze_activation = Activation::silu};
}

// Of the benchmark of RepDistiller: half as wide, its first expansion of 1 a convolution too.
InvertedResidualConfig mobilenet_v2_cifar() {
  InvertedResidualConfig c{.names = Names::kd, .stem = 16, .stem_activation = Activation::relu};
  c.stages = stages_of({{1, 8, 1, 1, 3},
                        {6, 12, 2, 1, 3},
                        {6, 16, 3, 2, 3},
                        {6, 32, 4, 2, 3},
                        {6, 48, 3, 1, 3},
                        {6, 80, 3, 2, 3},
                        {6, 160, 1, 1, 3}},
                       16, Activation::relu, false);
  c.stages[0][0].kind = Kind::inverted;
  c.head_activation = Activation::relu;
  return c;
}

}  // namespace

std::vector<Entry> inverted_residuals() {
  std::vector<Entry> all;
  auto add = [&](const std::string& name, const std::string& title,
                 const InvertedResidualConfig& config, const Preprocessing& input) {
    all.push_back({{name, concat(title, ", ", input.size, "x", input.size, " images")},
                   [config, input](const nn::Scope& scope, const Options& options) {
                     InvertedResidualConfig own = config;
                     own.classes = options.classes;
                     Model model = make_inverted_residual(own, scope);
                     model.input = input;
                     return model;
                   }});
  };
  Preprocessing torchvision = imagenet_preprocessing(), timm = imagenet_preprocessing();
  timm.filter = Filter::bicubic;
  add("mobilenet_v2", "MobileNetV2",
      {.names = Names::mobilenet_v2, .stages = one_block_a_stage(mobilenet_v2()), .dropout = 0.2},
      torchvision);
  add("mobilenetv2_100", "MobileNetV2 of timm", {.stages = mobilenet_v2()}, timm);
  for (bool large : {false, true}) {
    const char* size = large ? "large" : "small";
    add(concat("mobilenet_v3_", size), concat("MobileNetV3 ", size),
        mobilenet_v3_config(large, false), torchvision);
    add(concat("mobilenetv3_", size, "_100"), concat("MobileNetV3 ", size, " of timm"),
        mobilenet_v3_config(large, true), timm);
  }
  InvertedResidualConfig b0 = efficientnet_b0(Names::efficientnet);
  b0.dropout = b0.drop_path = 0.2;
  add("efficientnet_b0", "EfficientNet-B0", b0, timm);  // bicubic in torchvision too
  add("efficientnet_b0.ra_in1k", "EfficientNet-B0 of timm", efficientnet_b0(Names::timm), timm);
  struct Lite {
    double width, depth;
    int size;
    double crop;
    Filter filter;
  };
  const Lite lites[] = {{1, 1, 224, 0.875, Filter::bicubic},
                        {1, 1.1, 240, 0.882, Filter::bicubic},
                        {1.1, 1.2, 260, 0.89, Filter::bicubic},
                        {1.2, 1.4, 300, 0.904, Filter::bilinear},
                        {1.4, 1.8, 380, 0.92, Filter::bilinear}};
  for (size_t i = 0; i < std::size(lites); i++) {
    const Lite& lite = lites[i];
    add(concat("tf_efficientnet_lite", i), concat("EfficientNet-Lite", i, " of timm"),
        {.stages = efficientnet(lite.width, lite.depth, Activation::relu6, false),
         .same_padding = true,
         .bn_eps = 1e-3},
        {lite.size, 3, {.5f, .5f, .5f}, {.5f, .5f, .5f}, lite.filter, lite.crop});
  }
  add("mobilenetv2_kd", "MobileNetV2, half as wide", mobilenet_v2_cifar(),
      cifar100_preprocessing());
  return all;
}

}  // namespace pupil::models

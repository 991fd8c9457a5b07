// The residual networks for CIFAR of He et al. 2015 (arXiv 1512.03385), section 4.2, in the forms
// whose checkpoints are around.
#include "cifar_resnet.h"

#include "conv_norm.h"

namespace pupil::models {
namespace {

nn::Conv2d conv3x3(const nn::Scope& scope, int64_t in, int64_t out, int stride, bool option_a) {
  // akamaster: kaiming_normal_ over the fan-in; RepDistiller: over the fan-out.
  return nn::Conv2d(scope, in, out, 3, {stride, 1}, false,
                    nn::kaiming_normal(9 * (option_a ? in : out)));
}

struct CifarBlock {
  nn::Conv2d conv1, conv2;
  nn::BatchNorm bn1, bn2;
  std::optional<nn::Conv2d> projection;
  std::optional<nn::BatchNorm> projection_norm;
  int stride;
  int64_t out;
  bool changes_shape;

  CifarBlock(const nn::Scope& scope, int64_t in, int64_t out, int stride, bool option_a)
      : conv1(conv3x3(scope / "conv1", in, out, stride, option_a)),
        conv2(conv3x3(scope / "conv2", out, out, 1, option_a)),
        bn1(scope / "bn1", out),
        bn2(scope / "bn2", out),
        stride(stride),
        out(out),
        changes_shape(stride != 1 || in != out) {
    if (!changes_shape || option_a) return;
    projection.emplace(scope / "downsample" / 0, in, out, 1, ConvOptions{stride, 0}, false,
                       nn::kaiming_normal(out));
    projection_norm.emplace(scope / "downsample" / 1, out);
  }

  Tensor shortcut(const Tensor& x, const nn::Call& call) {
    if (projection) return conv_norm(*projection, *projection_norm, x, call);
    return changes_shape ? shortcut_a(x, stride, out) : x;
  }

  // relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut x). `pre`: the name under which the sum before
  // the last ReLU is announced; the two are one pass unless somebody asks for it.
  Tensor operator()(const Tensor& x, const nn::Call& call, const std::string& pre) {
    Tensor residual = shortcut(x, call);
    Tensor y = conv_norm(conv1, bn1, x, call, Activation::relu);
    if (pre.empty() || !call.wants(pre))
      return conv_norm(conv2, bn2, y, call, Activation::relu, residual);
    Tensor sum = conv_norm(conv2, bn2, y, call, Activation::none, residual);
    call.see(pre, sum);
    return relu(sum);
  }
};

struct CifarResnet {
  nn::Conv2d conv1;
  nn::BatchNorm bn1;
  std::vector<CifarBlock> stages[3];
  std::optional<nn::Linear> head;

  CifarResnet(const CifarResnetConfig& config, const nn::Scope& scope)
      : conv1(conv3x3(scope / "conv1", 3, config.widths[0], 1, config.option_a)),
        bn1(scope / "bn1", config.widths[0]) {
    const auto& widths = config.widths;
    for (int stage = 0; stage < 3; stage++)
      for (int i = 0; i < (config.depth - 2) / 6; i++)
        stages[stage].emplace_back(scope / ("layer" + std::to_string(stage + 1)) / i,
                                   widths[size_t(i ? stage + 1 : stage)], widths[size_t(stage + 1)],
                                   i == 0 && stage > 0 ? 2 : 1, config.option_a);
    int64_t width = widths[3];
    if (config.classes && config.option_a)
      head.emplace(scope / "linear", width, config.classes, nn::kaiming_normal(width),
                   nn::fan_in_uniform(width));
    else if (config.classes)
      head.emplace(scope / "fc", width, config.classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = conv_norm(conv1, bn1, images, call, Activation::relu);
    call.see("f0", x);
    for (int stage = 0; stage < 3; stage++) {
      std::string number = std::to_string(stage + 1);
      for (CifarBlock& block : stages[stage])
        x = block(x, call, &block == &stages[stage].back() ? "pre" + number : "");
      call.see("f" + number, x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {head ? (*head)(pooled) : pooled, pooled};
  }
};

// Keras' form: convolutions with bias, numbered through the network, a shortcut without norm.
struct MlperfResnet {
  struct Block {
    ConvNorm first, second;
    std::optional<nn::Conv2d> shortcut;
  };
  ConvNorm stem;
  std::vector<Block> blocks;
  std::optional<nn::Linear> fc;

  MlperfResnet(int64_t classes, const nn::Scope& scope) : stem(unit(scope, 0, 0, 3, 16, 1)) {
    int conv = 0, norm = 0;
    int64_t in = 16;
    for (int64_t out : {16, 32, 64}) {
      int stride = out == in ? 1 : 2;
      blocks.push_back({unit(scope, conv + 1, norm + 1, in, out, stride),
                        unit(scope, conv + 2, norm + 2, out, out, 1),
                        {}});
      conv += 2;
      norm += 2;
      if (stride == 2)
        blocks.back().shortcut.emplace(scope / concat("conv", ++conv), in, out, 1,
                                       ConvOptions{stride, 0}, true, nn::kaiming_normal(in));
      in = out;
    }
    if (classes) fc.emplace(scope / "fc", in, classes);
  }

  static ConvNorm unit(const nn::Scope& scope, int conv, int norm, int64_t in, int64_t out,
                       int stride) {
    return {scope / concat("conv", conv),
            scope / concat("bn", norm),
            in,
            out,
            {.kernel = 3,
             .stride = stride,
             .activation = Activation::relu,
             .same_padding = true,
             .eps = 1e-3,
             .momentum = 0.01,
             .weight = nn::kaiming_normal(9 * in),
             .bias = true}};
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = stem(images, call);
    call.see("f0", x);
    for (size_t i = 0; i < blocks.size(); i++) {
      Block& block = blocks[i];
      Tensor residual = block.shortcut ? (*block.shortcut)(x) : x;
      x = block.second(block.first(x, call), call, residual);
      call.see(concat("f", i + 1), x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {fc ? (*fc)(pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_mlperf_resnet8(int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<MlperfResnet>(classes, scope);
  Model model;
  model.classes = classes;
  model.width = 64;
  model.head = "fc";
  model.input = {32, 3, {0, 0, 0}, {kCaffeScale, kCaffeScale, kCaffeScale}};
  model.taps = {"f0", "f1", "f2", "f3", "pooled"};
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

Model make_cifar_resnet(const CifarResnetConfig& config, const nn::Scope& scope) {
  PUPIL_CHECK(config.depth >= 8 && config.depth % 6 == 2, "resnet: the depth is 6 n + 2, not ",
              config.depth);
  PUPIL_CHECK(config.widths.size() == 4, "resnet: widths of the stem and three stages");
  auto net = std::make_shared<CifarResnet>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.widths[3];
  model.head = config.option_a ? "linear" : "fc";
  // ImageNet's in akamaster's training code, CIFAR-100's in RepDistiller's.
  model.input = config.option_a
                    ? Preprocessing{32, 3, {0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}}
                    : cifar100_preprocessing();
  model.taps = {"f0", "pre1", "f1", "pre2", "f2", "pre3", "f3", "pooled"};
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> cifar_resnets() {
  const std::vector<int64_t> narrow{16, 16, 32, 64}, wide{32, 64, 128, 256};
  std::vector<Entry> all;
  auto add = [&](const std::string& name, int depth, const std::vector<int64_t>& widths,
                 bool option_a) {
    std::string summary =
        concat("ResNet-", depth, widths[1] == 64 ? " x4" : "",
               option_a ? ", option-A shortcuts" : ", 1x1 shortcuts", ", 32x32 images");
    all.push_back({{name, summary}, [=](const nn::Scope& scope, const Options& options) {
                     return make_cifar_resnet({depth, widths, option_a, options.classes}, scope);
                   }});
  };
  for (int depth : {20, 32, 44, 56, 110})
    add(concat("resnet", depth, "_cifar"), depth, narrow, true);
  for (int depth : {8, 14, 20, 32, 56, 110})
    add(concat("resnet", depth, "_kd"), depth, narrow, false);
  for (int depth : {8, 32}) add(concat("resnet", depth, "x4_kd"), depth, wide, false);
  all.push_back({{"resnet8_mlperf", "ResNet-8 of MLPerf Tiny, 32x32 images"},
                 [](const nn::Scope& scope, const Options& options) {
                   return make_mlperf_resnet8(options.classes, scope);
                 }});
  return all;
}

}  // namespace pupil::models

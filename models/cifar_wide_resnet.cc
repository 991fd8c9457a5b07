#include "cifar_wide_resnet.h"

namespace pupil::models {
namespace {

nn::Conv2d wide_convolution(const nn::Scope& scope, int64_t in, int64_t out, int kernel,
                            int stride) {
  return nn::Conv2d(scope, in, out, kernel, {stride, kernel / 2}, false,
                    nn::kaiming_normal(int64_t(kernel) * kernel * out));
}

// relu(norm(x)); what comes before the ReLU is announced as `pre`.
Tensor activated(nn::BatchNorm& norm, const Tensor& x, const nn::Call& call,
                 const std::string& pre) {
  if (pre.empty() || !call.wants(pre)) return norm(x, call, Activation::relu);
  Tensor y = norm(x, call);
  call.see(pre, y);
  return relu(y);
}

struct WideBlock {
  nn::BatchNorm bn1, bn2;
  nn::Conv2d conv1, conv2;
  std::optional<nn::Conv2d> projection;

  WideBlock(const nn::Scope& scope, int64_t in, int64_t out, int stride)
      : bn1(scope / "bn1", in),
        bn2(scope / "bn2", out),
        conv1(wide_convolution(scope / "conv1", in, out, 3, stride)),
        conv2(wide_convolution(scope / "conv2", out, out, 3, 1)) {
    if (in != out) projection = wide_convolution(scope / "convShortcut", in, out, 1, stride);
  }

  Tensor operator()(const Tensor& x, const nn::Call& call, const std::string& pre) {
    Tensor y = activated(bn1, x, call, pre);
    return add(conv2(bn2(conv1(y), call, Activation::relu)), projection ? (*projection)(y) : x);
  }
};

struct CifarWideResnet {
  nn::Conv2d conv1;
  std::vector<WideBlock> stages[3];
  nn::BatchNorm bn1;
  std::optional<nn::Linear> fc;

  CifarWideResnet(int depth, int width, int64_t classes, const nn::Scope& scope)
      : conv1(wide_convolution(scope / "conv1", 3, 16, 3, 1)), bn1(scope / "bn1", 64 * width) {
    int64_t in = 16;
    for (int stage = 0; stage < 3; stage++)
      for (int i = 0; i < (depth - 4) / 6; i++) {
        int64_t out = int64_t(16 << stage) * width;
        stages[stage].emplace_back(scope / concat("block", stage + 1, ".layer") / i, in, out,
                                   i == 0 && stage > 0 ? 2 : 1);
        in = out;
      }
    if (classes)
      fc.emplace(scope / "fc", in, classes, nn::fan_in_uniform(in), nn::Init{nn::Init::zeros});
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = conv1(images);
    call.see("f0", x);
    for (int stage = 0; stage < 3; stage++) {
      for (WideBlock& block : stages[stage])
        x = block(x, call, stage && &block == &stages[stage][0] ? concat("pre", stage) : "");
      call.see(concat("f", stage + 1), x);
    }
    Tensor pooled = global_avg_pool(activated(bn1, x, call, "pre3"));
    call.see("pooled", pooled);
    return {fc ? (*fc)(pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_cifar_wide_resnet(int depth, int width, int64_t classes, const nn::Scope& scope) {
  PUPIL_CHECK(depth >= 10 && depth % 6 == 4, "wide resnet: the depth is 6 n + 4, not ", depth);
  auto net = std::make_shared<CifarWideResnet>(depth, width, classes, scope);
  Model model;
  model.classes = classes;
  model.width = 64 * width;
  model.head = "fc";
  model.input = cifar100_preprocessing();
  model.taps = {"f0", "f1", "pre1", "f2", "pre2", "f3", "pre3", "pooled"};
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> cifar_wide_resnets() {
  std::vector<Entry> all;
  for (int depth : {16, 40})
    for (int width : {1, 2})
      all.push_back({{concat("wrn_", depth, "_", width, "_kd"),
                      concat("wide ResNet-", depth, ", ", width, " times as wide, 32x32 images")},
                     [=](const nn::Scope& scope, const Options& options) {
                       return make_cifar_wide_resnet(depth, width, options.classes, scope);
                     }});
  return all;
}

}  // namespace pupil::models

#include "shufflenet.h"

#include "conv_norm.h"

namespace pupil::models {
namespace {

// Channel i of group j becomes channel i * groups + j.
Tensor shuffle(const Tensor& x, int64_t groups) {
  if (groups == 1) return x;
  const Shape& s = x.shape();
  Tensor split = view(x, {s[0], groups, s[1] / groups, s[2], s[3]});
  return view(permute(split, {0, 2, 1, 3, 4}), s);
}

ConvNorm shuffle_unit(const nn::Scope& conv, const nn::Scope& norm, int64_t in, int64_t out,
                      int kernel, int stride, int64_t groups, Activation activation,
                      double eps = 1e-5, double momentum = 0.1) {
  return ConvNorm(conv, norm, in, out,
                  {.kernel = kernel,
                   .stride = stride,
                   .groups = int(groups),
                   .activation = activation,
                   .eps = eps,
                   .momentum = momentum,
                   .weight = nn::fan_in_uniform(in / groups * kernel * kernel)});
}

// With stride 2: [left(x), right(x)], else [a, right(b)] of the halves a and b; then a shuffle.
struct BlockV2 {
  std::vector<ConvNorm> left, right;

  BlockV2(const ShufflenetV2Config& c, const nn::Scope& scope, int64_t in, int64_t out,
          int stride) {
    int64_t half = out / 2, from = stride == 2 ? in : half;
    int number = 0;
    // torchvision counts the ReLUs too.
    auto add = [&](std::vector<ConvNorm>& branch, int position, int64_t inputs, int64_t outputs,
                   bool depthwise) {
      nn::Scope at = scope / (&branch == &left ? "branch1" : "branch2");
      number++;
      branch.push_back(
          shuffle_unit(c.cifar ? scope / concat("conv", number) : at / position,
                       c.cifar ? scope / concat("bn", number) : at / (position + 1), inputs,
                       outputs, depthwise ? 3 : 1, depthwise ? stride : 1, depthwise ? outputs : 1,
                       depthwise ? Activation::none : Activation::relu, c.bn_eps, c.bn_momentum));
    };
    if (stride == 2) {
      add(left, 0, in, in, true);
      add(left, 2, in, half, false);
    }
    add(right, 0, from, half, false);
    add(right, 3, half, half, true);
    add(right, 5, half, half, false);
  }

  // `pre`: the name of the joined halves before the last ReLU.
  Tensor operator()(const Tensor& x, const nn::Call& call, const std::string& pre = "") {
    int64_t channels = x.dim(1);
    Tensor a = left.empty() ? slice(x, 1, 0, channels / 2) : x;
    Tensor b = left.empty() ? slice(x, 1, channels / 2, channels) : x;
    for (ConvNorm& u : left) a = u(a, call);
    bool announced = !pre.empty() && call.wants(pre);
    for (ConvNorm& u : right)
      b = announced && &u == &right.back() ? u.norm(u.conv(b), call) : u(b, call);
    if (announced) {
      call.see(pre, cat({a, b}, 1));
      b = relu(b);
    }
    return shuffle(cat({a, b}, 1), 2);
  }
};

struct ShufflenetV2 {
  bool cifar;
  ConvNorm stem;
  std::vector<std::vector<BlockV2>> stages;
  std::optional<ConvNorm> last;
  std::optional<nn::Linear> classifier;

  ShufflenetV2(const ShufflenetV2Config& c, const nn::Scope& scope)
      : cifar(c.cifar),
        stem(whole(c, scope, cifar ? "conv1" : "conv1.0", cifar ? "bn1" : "conv1.1", 3,
                   c.channels[0], cifar ? 1 : 3, cifar ? 1 : 2)) {
    int64_t in = c.channels[0];
    for (size_t stage = 0; stage < c.repeats.size(); stage++) {
      nn::Scope at = scope / (cifar ? concat("layer", stage + 1) : concat("stage", stage + 2));
      stages.emplace_back();
      for (int i = 0; i < c.repeats[stage]; i++) {
        stages.back().emplace_back(c, at / i, in, c.channels[stage + 1], i == 0 ? 2 : 1);
        in = c.channels[stage + 1];
      }
    }
    last = whole(c, scope, cifar ? "conv2" : "conv5.0", cifar ? "bn2" : "conv5.1", in,
                 c.channels.back(), 1, 1);
    if (c.classes)
      classifier.emplace(scope / (cifar ? "linear" : "fc"), c.channels.back(), c.classes);
  }
  static ConvNorm whole(const ShufflenetV2Config& c, const nn::Scope& scope, const char* conv,
                        const char* norm, int64_t in, int64_t out, int kernel, int stride) {
    return shuffle_unit(scope / conv, scope / norm, in, out, kernel, stride, 1, Activation::relu,
                        c.bn_eps, c.bn_momentum);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = stem(images, call);
    if (!cifar) x = max_pool2d(x, {3, 2, 1});
    call.see(cifar ? "f0" : "stem", x);
    for (size_t stage = 0; stage < stages.size(); stage++) {
      std::string number = std::to_string(stage + 1);
      for (size_t i = 0; i < stages[stage].size(); i++) {
        bool ends = i + 1 == stages[stage].size();
        x = stages[stage][i](x, call, cifar && ends ? "pre" + number : "");
        if (!cifar) call.see(concat("stage", stage + 2, ".", i), x);
      }
      if (cifar) call.see("f" + number, x);
    }
    x = (*last)(x, call);
    if (!cifar) call.see("conv5", x);
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {classifier ? (*classifier)(pooled) : pooled, pooled};
  }
};

struct BlockV1 {
  ConvNorm first, depthwise, last;
  int groups, stride;

  BlockV1(const nn::Scope& scope, int64_t in, int64_t out, int groups, int stride)
      : first(shuffle_unit(scope / "conv1", scope / "bn1", in, out / 4, 1, 1, groups,
                           Activation::relu)),
        depthwise(shuffle_unit(scope / "conv2", scope / "bn2", out / 4, out / 4, 3, stride, out / 4,
                               Activation::relu)),
        last(shuffle_unit(scope / "conv3", scope / "bn3", out / 4, out, 1, 1, 3, Activation::none)),
        groups(groups),
        stride(stride) {}

  Tensor operator()(const Tensor& x, const nn::Call& call, const std::string& pre) {
    Tensor y = depthwise(shuffle(first(x, call), groups), call);
    y = stride == 2 ? cat({to_strided(last(y, call)), to_strided(avg_pool2d(x, {3, 2, 1}))}, 1)
                    : last(y, call, x);
    call.see(pre, y);
    return relu(y);
  }
};

struct ShufflenetV1 {
  ConvNorm stem;
  std::vector<BlockV1> stages[3];
  std::optional<nn::Linear> classifier;

  ShufflenetV1(int64_t classes, const nn::Scope& scope)
      : stem(shuffle_unit(scope / "conv1", scope / "bn1", 3, 24, 1, 1, 1, Activation::relu)) {
    constexpr int64_t channels[3]{240, 480, 960};
    constexpr int counts[3]{4, 8, 4};
    int64_t in = 24;
    for (int stage = 0; stage < 3; stage++)
      for (int i = 0; i < counts[stage]; i++) {
        // What comes through the pooling makes up the channels of a stage.
        int64_t out = channels[stage] - (i == 0 ? in : 0);
        stages[stage].emplace_back(scope / concat("layer", stage + 1) / i, in, out,
                                   in == 24 ? 1 : 3, i == 0 ? 2 : 1);
        in = channels[stage];
      }
    if (classes) classifier.emplace(scope / "linear", in, classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = stem(images, call);
    call.see("f0", x);
    for (int stage = 0; stage < 3; stage++) {
      std::string number = std::to_string(stage + 1);
      for (BlockV1& block : stages[stage])
        x = block(x, call, &block == &stages[stage].back() ? "pre" + number : "");
      call.see("f" + number, x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {classifier ? (*classifier)(pooled) : pooled, pooled};
  }
};

Model described(int64_t classes, int64_t width, bool cifar) {
  Model model;
  model.classes = classes;
  model.width = width;
  model.head = cifar ? "linear" : "fc";
  model.input = cifar ? cifar100_preprocessing() : imagenet_preprocessing();
  if (cifar) model.taps = {"f0", "pre1", "f1", "pre2", "f2", "pre3", "f3", "pooled"};
  return model;
}

}  // namespace

Model make_shufflenet_v2(const ShufflenetV2Config& config, const nn::Scope& scope) {
  auto net = std::make_shared<ShufflenetV2>(config, scope);
  Model model = described(config.classes, config.channels.back(), config.cifar);
  if (!config.cifar) {
    model.taps = {"stem"};
    for (size_t stage = 0; stage < config.repeats.size(); stage++)
      for (int i = 0; i < config.repeats[stage]; i++)
        model.taps.push_back(concat("stage", stage + 2, ".", i));
    model.taps.insert(model.taps.end(), {"conv5", "pooled"});
  }
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

Model make_shufflenet_v1(int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<ShufflenetV1>(classes, scope);
  Model model = described(classes, 960, true);
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> shufflenets() {
  std::vector<Entry> all{{{"shufflenet_v2_x1_0", "ShuffleNetV2, 224x224 images"},
                          [](const nn::Scope& scope, const Options& o) {
                            return make_shufflenet_v2({.classes = o.classes}, scope);
                          }},
                         {{"shufflev1_kd", "ShuffleNetV1, 32x32 images"},
                          [](const nn::Scope& scope, const Options& o) {
                            return make_shufflenet_v1(o.classes, scope);
                          }},
                         {{"shufflev2_kd", "ShuffleNetV2, 32x32 images"},
                          [](const nn::Scope& scope, const Options& o) {
                            return make_shufflenet_v2({.cifar = true, .classes = o.classes}, scope);
                          }}};
  return all;
}

}  // namespace pupil::models

#include "tiniest.h"

namespace pupil::models {
namespace {

nn::Conv2d tiny_convolution(const nn::Scope& scope, int64_t in, int64_t out, int kernel,
                            ConvOptions options) {
  return {scope,
          in,
          out,
          kernel,
          options,
          true,
          nn::fan_in_uniform(in / options.groups * kernel * kernel)};
}

struct ChannelNorm {  // LayerNorm over the channels of each pixel
  nn::LayerNorm norm;
  ChannelNorm(const nn::Scope& scope, int64_t channels) : norm(scope / "ln", channels, 1e-5) {}
  Tensor operator()(const Tensor& x) const {
    return permute(norm(permute(to_strided(x), {0, 2, 3, 1})), {0, 3, 1, 2});
  }
};

struct TiniestBlock {
  Tensor scale;
  nn::Conv2d near, wide, far;  // on a quarter of the channels each
  ChannelNorm norm;
  nn::Conv2d fc1, fc2;

  TiniestBlock(const nn::Scope& scope, int64_t channels)
      : scale(scope.param("rs", {1, channels, 1, 1}, {nn::Init::ones})),
        near(depthwise(scope / "dwconv1", channels, 3, 1)),
        wide(depthwise(scope / "dwconv2", channels, 7, 1)),
        far(depthwise(scope / "dwconv3", channels, 7, 3)),
        norm(scope / "ln", channels),
        fc1(tiny_convolution(scope / "fc1", channels, 2 * channels, 1, {})),
        fc2(tiny_convolution(scope / "fc2", channels, channels, 1, {})) {}

  static nn::Conv2d depthwise(const nn::Scope& scope, int64_t channels, int kernel, int dilation) {
    int quarter = int(channels / 4);
    return tiny_convolution(
        scope, quarter, quarter, kernel,
        {.padding = kernel / 2 * dilation, .dilation = dilation, .groups = quarter});
  }

  Tensor operator()(const Tensor& x) const {
    int64_t quarter = x.dim(1) / 4;
    Tensor strided = to_strided(x);
    auto chunk = [&](int64_t i) { return slice(strided, 1, i * quarter, (i + 1) * quarter); };
    Tensor around = avg_pool2d(chunk(3), {.kernel = 3, .stride = 1, .padding = 1});
    Tensor y = cat({chunk(0), to_strided(near(chunk(1))), to_strided(wide(chunk(2))),
                    to_strided(far(to_strided(around)))},
                   1);
    Tensor both = to_strided(fc1(norm(y)));
    Tensor u = slice(both, 1, 0, 4 * quarter), v = slice(both, 1, 4 * quarter, 8 * quarter);
    Tensor out = to_strided(fc2(mul(mul(tanh(exp(u)), u), v)));
    return add(out, mul(strided, to_dtype(scale, x.dtype())));
  }
};

struct Tiniest {
  nn::Conv2d conv1;
  ChannelNorm ln1;
  std::vector<TiniestBlock> blocks;
  std::optional<nn::Conv2d> reduce;
  std::optional<ChannelNorm> ln2;
  std::optional<nn::Linear> fc;

  Tiniest(int64_t classes, const nn::Scope& scope)
      : conv1(tiny_convolution(scope / "conv1", 3, 48, 3, {.padding = 1})), ln1(scope / "ln1", 48) {
    for (int i = 1; i <= 3; i++) blocks.emplace_back(scope / concat("l", i), 48);
    reduce.emplace(
        tiny_convolution(scope / "dsconv", 48, 80, 4, {.stride = 2, .padding = 1, .groups = 16}));
    ln2.emplace(scope / "ln2", 80);
    for (int i = 4; i <= 6; i++) blocks.emplace_back(scope / concat("l", i), 80);
    if (classes) fc.emplace(scope / "fc", 80, classes);
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    PUPIL_CHECK(images.rank() == 4 && images.dim(1) == 3, "tiniest: images (n,3,h,w), got ",
                images.shape());
    Tensor x = ln1(conv1(images));
    call.see("stem", x);
    for (size_t i = 0; i < blocks.size(); i++) {
      if (i == 3) x = (*ln2)((*reduce)(x));
      x = blocks[i](x);
      call.see(concat("l", i + 1), x);
    }
    Tensor features = global_avg_pool(x);
    call.see("pooled", features);
    return {fc ? (*fc)(features) : features, features};
  }
};

}  // namespace

Model make_tiniest(int64_t classes, const nn::Scope& scope) {
  auto net = std::make_shared<const Tiniest>(classes, scope);
  Model model;
  model.classes = classes;
  model.width = 80;
  model.head = "fc";
  model.input = {32, 3, {0.5f, 0.5f, 0.5f}, {1, 1, 1}};
  model.taps = {"stem", "l1", "l2", "l3", "l4", "l5", "l6", "pooled"};
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

std::vector<Entry> tiniests() {
  return {
      {{"tiniest", "Tiniest, 32x32 images"}, [](const nn::Scope& scope, const Options& options) {
         return make_tiniest(options.classes, scope);
       }}};
}

}  // namespace pupil::models

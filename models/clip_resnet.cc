#include "clip.h"
#include "conv_norm.h"

namespace pupil::models {
namespace {

ConvNorm clip_unit(const nn::Scope& conv, const nn::Scope& norm, int64_t in, int64_t out,
                   int kernel, int stride = 1, Activation activation = Activation::relu) {
  ConvNormOptions options{.kernel = kernel, .stride = stride, .activation = activation};
  options.weight = nn::kaiming_normal(in * kernel * kernel);
  return {conv, norm, in, out, options};
}
ConvNorm clip_unit(const nn::Scope& scope, int number, int64_t in, int64_t out, int kernel,
                   int stride = 1) {
  return clip_unit(scope / concat("conv", number), scope / concat("bn", number), in, out, kernel,
                   stride);
}

// Strides are average pooling, behind the ReLU of the 3x3 convolution and before the shortcut's.
struct Bottleneck {
  int stride;
  ConvNorm first, second, third;
  std::optional<ConvNorm> shortcut;

  Bottleneck(const nn::Scope& scope, int64_t in, int64_t planes, int stride)
      : stride(stride),
        first(clip_unit(scope, 1, in, planes, 1)),
        second(clip_unit(scope, 2, planes, planes, 3)),
        third(clip_unit(scope, 3, planes, 4 * planes, 1)) {
    nn::Scope down = scope / "downsample";
    if (stride > 1 || in != 4 * planes)
      shortcut = clip_unit(down / 0, down / 1, in, 4 * planes, 1, 1, Activation::none);
  }

  Tensor pool(const Tensor& x) const { return stride > 1 ? avg_pool2d(x, {stride, stride}) : x; }
  Tensor operator()(const Tensor& x, const nn::Call& call) {
    Tensor residual = shortcut ? (*shortcut)(pool(x), call) : x;
    return third(pool(second(first(x, call), call)), call, residual);
  }
};

// One query, the mean, over itself and all places of the map.
struct AttentionPool2d {
  int heads;
  Tensor positions;
  nn::Linear q, k, v, projection;

  AttentionPool2d(const nn::Scope& scope, int64_t places, int64_t width, int heads, int64_t out)
      : heads(heads),
        positions(scope.param("positional_embedding", {places + 1, width},
                              {nn::Init::normal, 1 / std::sqrt(double(width))})),
        q(scope / "q_proj", width, width),
        k(scope / "k_proj", width, width),
        v(scope / "v_proj", width, width),
        projection(scope / "c_proj", width, out) {}

  Tensor by_head(const Tensor& x) const {
    return permute(view(x, {x.dim(0), x.dim(1), heads, x.dim(2) / heads}), {0, 2, 1, 3});
  }
  Tensor operator()(const Tensor& map) const {
    int64_t n = map.dim(0), width = map.dim(1);
    Tensor places = view(permute(map, {0, 2, 3, 1}), {n, map.dim(2) * map.dim(3), width});
    Tensor tokens =
        add(cat({mean(places, {1}, true), places}, 1), to_dtype(positions, map.dtype()));
    Tensor y = attention(by_head(q(slice(tokens, 1, 0, 1))), by_head(k(tokens)), by_head(v(tokens)),
                         1 / std::sqrt(double(width / heads)));
    return projection(view(permute(y, {0, 2, 1, 3}), {n, width}));
  }
};

struct ModifiedResnet {
  std::vector<ConvNorm> stem;
  std::vector<std::vector<Bottleneck>> stages;
  std::optional<AttentionPool2d> pool;

  ModifiedResnet(const ClipConfig& c, const nn::Scope& scope) {
    int64_t width = c.vision.width, in = width;
    stem = {clip_unit(scope, 1, 3, width / 2, 3, 2), clip_unit(scope, 2, width / 2, width / 2, 3),
            clip_unit(scope, 3, width / 2, width, 3)};
    for (int stage = 0; stage < 4; stage++) {
      stages.emplace_back();
      int64_t planes = width << stage;
      for (int i = 0; i < c.resnet[size_t(stage)]; i++) {
        stages.back().emplace_back(scope / concat("layer", stage + 1) / i, in, planes,
                                   i == 0 && stage > 0 ? 2 : 1);
        in = 4 * planes;
      }
    }
    int64_t side = c.image / 32;
    pool.emplace(scope / "attnpool", side * side, in, c.vision.heads, c.embed_dim);
  }

  Tensor operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = images;
    for (ConvNorm& layer : stem) x = layer(x, call);
    x = avg_pool2d(x, {2, 2});
    call.see("stem", x);
    for (size_t stage = 0; stage < stages.size(); stage++) {
      for (Bottleneck& block : stages[stage]) x = block(x, call);
      call.see(concat("layer", stage + 1), x);
    }
    return (*pool)(x);
  }
};

}  // namespace

std::function<Tensor(const Tensor&, const nn::Call&)> make_clip_resnet(const ClipConfig& config,
                                                                       const nn::Scope& scope) {
  PUPIL_CHECK(config.resnet.size() == 4, "clip: a ResNet has four stages, not ",
              config.resnet.size());
  auto net = std::make_shared<ModifiedResnet>(config, scope);
  return [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
}

}  // namespace pupil::models

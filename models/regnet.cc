#include "regnet.h"

#include "conv_norm.h"

namespace pupil::models {
namespace {

ConvNorm regnet_unit(const RegnetConfig& c, const nn::Scope& scope, int64_t in, int64_t out,
                     int kernel, int stride, int groups, Activation activation, bool last = false) {
  // torchvision draws weights by the outputs of a convolution, timm by those of a group.
  int64_t fan = int64_t(kernel) * kernel * out / (c.timm ? groups : 1);
  return ConvNorm(scope / (c.timm ? "conv" : "0"), scope / (c.timm ? "bn" : "1"), in, out,
                  {.kernel = kernel,
                   .stride = stride,
                   .groups = groups,
                   .activation = activation,
                   .eps = c.bn_eps,
                   .momentum = c.bn_momentum,
                   .weight = nn::kaiming_normal(fan),
                   .zero_scale = last && c.timm});
}

struct ResidualBlock {
  ConvNorm first, grouped, last;
  std::optional<SqueezeExcite> squeeze;
  std::optional<ConvNorm> projection;

  ResidualBlock(const RegnetConfig& c, const RegnetBlock& b, const nn::Scope& scope)
      : ResidualBlock(c, b, scope, c.timm ? scope : scope / "f") {}
  ResidualBlock(const RegnetConfig& c, const RegnetBlock& b, const nn::Scope& scope,
                const nn::Scope& trunk)
      : first(regnet_unit(c, trunk / (c.timm ? "conv1" : "a"), b.in, b.inner, 1, 1, 1,
                          Activation::relu)),
        grouped(regnet_unit(c, trunk / (c.timm ? "conv2" : "b"), b.inner, b.inner, 3, b.stride,
                            b.groups, Activation::relu)),
        last(regnet_unit(c, trunk / (c.timm ? "conv3" : "c"), b.inner, b.out, 1, 1, 1,
                         Activation::relu, true)) {
    nn::Scope se = trunk / "se";
    if (b.squeeze)
      squeeze.emplace(se / "fc1", se / "fc2", b.inner, b.squeeze, Activation::relu, false);
    if (b.projection)
      projection.emplace(regnet_unit(c, scope / (c.timm ? "downsample" : "proj"), b.in, b.out, 1,
                                     b.stride, 1, Activation::none));
  }

  Tensor operator()(const Tensor& input, const nn::Call& call) {
    Tensor residual = projection ? (*projection)(input, call) : input;
    Tensor x = grouped(first(input, call), call);
    return last(squeeze ? (*squeeze)(x) : x, call, residual);
  }
};

struct Regnet {
  ConvNorm stem;
  std::vector<std::pair<std::string, ResidualBlock>> blocks;  // with the names of their taps
  std::optional<nn::Linear> classifier;

  Regnet(const RegnetConfig& c, const nn::Scope& scope)
      : stem(regnet_unit(c, scope / "stem", 3, c.stem, 3, 2, 1, Activation::relu)) {
    for (size_t stage = 0; stage < c.stages.size(); stage++)
      for (size_t i = 0; i < c.stages[stage].size(); i++) {
        std::string number = std::to_string(stage + 1);
        std::string tap =
            c.timm ? concat("s", number, ".b", i + 1) : concat("block", number, ".", i);
        std::string name =
            c.timm ? tap : concat("trunk_output.block", number, ".block", number, "-", i);
        blocks.emplace_back(tap, ResidualBlock(c, c.stages[stage][i], scope / name));
      }
    if (c.classes)
      classifier.emplace(scope / (c.timm ? "head.fc" : "fc"), c.stages.back().back().out, c.classes,
                         nn::Init{nn::Init::normal, 0.01}, nn::Init{nn::Init::zeros});
  }

  Output operator()(const Tensor& images, const nn::Call& call) {
    Tensor x = stem(images, call);
    call.see("stem", x);
    for (auto& [name, block] : blocks) {
      x = block(x, call);
      call.see(name, x);
    }
    Tensor pooled = global_avg_pool(x);
    call.see("pooled", pooled);
    return {classifier ? (*classifier)(pooled) : pooled, pooled};
  }
};

}  // namespace

Model make_regnet(const RegnetConfig& config, const nn::Scope& scope) {
  auto net = std::make_shared<Regnet>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.stages.back().back().out;
  model.head = config.timm ? "head.fc" : "fc";
  model.input = imagenet_preprocessing();
  model.taps = {"stem"};
  for (auto& [name, block] : net->blocks) model.taps.push_back(name);
  model.taps.push_back("pooled");
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

namespace {

// Section 3.3 of the paper: widths grow linearly by block, rounded to powers of a factor, then to
// multiples of the width of a group.
struct Design {
  int depth;
  double first_width, slope, factor;
  int64_t group_width;
};
RegnetConfig designed(const Design& d, bool timm) {
  RegnetConfig config{.timm = timm};
  int64_t in = config.stem, before = 0;
  for (int i = 0; i < d.depth; i++) {
    double power =
        std::round(std::log((d.first_width + d.slope * i) / d.first_width) / std::log(d.factor));
    int64_t width = int64_t(std::round(d.first_width * std::pow(d.factor, power) / 8)) * 8;
    bool begins = width != before;  // a stage
    before = width;
    int64_t out = int64_t(std::round(double(width) / double(d.group_width))) * d.group_width;
    if (begins) config.stages.emplace_back();
    config.stages.back().push_back({in, out, out, begins ? 2 : 1, int(out / d.group_width),
                                    int64_t(std::lround(0.25 * double(in))), begins});
    in = out;
  }
  return config;
}

}  // namespace

std::vector<Entry> regnets() {
  std::vector<Entry> all;
  auto add = [&](const char* name, const char* title, const RegnetConfig& config,
                 const Preprocessing& input) {
    all.push_back({{name, concat(title, ", ", input.size, "x", input.size, " images")},
                   [config, input](const nn::Scope& scope, const Options& options) {
                     RegnetConfig own = config;
                     own.classes = options.classes;
                     Model model = make_regnet(own, scope);
                     model.input = input;
                     return model;
                   }});
  };
  const Design y400{16, 48, 27.89, 2.09, 8};  // table 12 of the paper, 400 MF
  Preprocessing timm = imagenet_preprocessing();
  timm.filter = Filter::bicubic;
  timm.crop_pct = 0.965;
  add("regnet_y_400mf", "RegNetY-400MF", designed(y400, false), imagenet_preprocessing());
  add("regnety_004", "RegNetY-400MF of timm", designed(y400, true), timm);
  return all;
}

}  // namespace pupil::models

// model.*: convolutional networks under their public parameter names.
#include <nlohmann/json.hpp>

#include "../../models/convnext.h"
#include "../../models/inverted_residual.h"
#include "../../models/regnet.h"
#include "../../models/resnet.h"
#include "../../models/resnetv2.h"
#include "../../models/shufflenet.h"
#include "models.h"

namespace pupil::verify {
namespace {

using nlohmann::json;

void norm_options(Case& c, auto& config) {
  config.bn_eps = c.number("bn_eps", 1e-5);
  config.bn_momentum = c.number("bn_momentum", 0.1);
  config.classes = c.integer("num_classes");
}

// channels: the attribute that lists those of the stages.
models::ResnetConfig resnet_config(Case& c, const char* channels) {
  models::ResnetConfig config;
  config.bottleneck = c.text("block", "basic") == "bottleneck";
  std::vector<int64_t> layers = c.integers("layers");
  config.layers.assign(layers.begin(), layers.end());
  config.planes = c.integers(channels);
  norm_options(c, config);
  return config;
}

void resnet(Case& c) {
  models::ResnetConfig config = resnet_config(c, "planes");
  config.stem = config.planes[0];
  config.groups = int(c.integer("groups", 1));
  config.width_per_group = c.integer("width_per_group", 64);
  run_network(c, [&](auto& scope) { return models::make_resnet(config, scope); });
}

void timm_resnet(Case& c) {
  models::ResnetConfig config = resnet_config(c, "channels");
  config.stem = c.integer("stem", 64);
  std::string stem = c.text("stem_type", "");
  if (!stem.empty() && stem != "deep") throw Unsupported("stem_type = " + stem);
  config.deep_stem = stem == "deep";
  config.avg_down = c.flag("avg_down", false);
  run_network(c, [&](auto& scope) { return models::make_resnet(config, scope); });
}

template <bool timm>
void regnet(Case& c) {
  models::RegnetConfig config;
  config.timm = timm;
  config.stem = c.integer("stem");
  for (const json& stage : c.attribute("stages")) {
    auto& blocks = config.stages.emplace_back();
    for (const json& b : stage)
      blocks.push_back({b.at("in"), b.at("mid"), b.at("out"), b.at("stride"), b.at("groups"),
                        b.at("se"), b.at("down")});
  }
  norm_options(c, config);
  run_network(c, [&](auto& scope) { return models::make_regnet(config, scope); });
}

void resnetv2(Case& c) {
  models::Resnetv2Config config;
  std::vector<int64_t> layers = c.integers("layers");
  config.layers.assign(layers.begin(), layers.end());
  config.channels = c.integers("channels");
  config.inner.clear();
  for (const json& stage : c.attribute("mid_chs")) {
    const json& first = stage.is_array() ? stage.at(0) : stage;
    for (const json& other : stage)
      if (other != first) throw Unsupported("mid_chs = " + stage.dump());
    config.inner.push_back(first);
  }
  config.stem = c.integer("stem_chs");
  config.groups = int(c.integer("num_groups", 32));
  config.norm_eps = c.number("gn_eps", 1e-5);
  config.weight_eps = c.number("std_eps", 1e-8);
  config.classes = c.integer("num_classes");
  run_network(c, [&](auto& scope) { return models::make_resnetv2(config, scope); });
}

void convnext(Case& c) {
  models::ConvnextConfig config;
  std::vector<int64_t> depths = c.integers("depths");
  config.depths.assign(depths.begin(), depths.end());
  config.widths = c.integers("dims");
  config.layer_scale = c.number("ls_init_value", 0);
  config.response_norm = c.flag("use_grn", false);
  config.mlp_ratio = c.number("mlp_ratio", 4);
  config.norm_eps = c.number("norm_eps", 1e-6);
  config.response_eps = c.number("grn_eps", 1e-6);
  config.classes = c.integer("num_classes");
  run_network(c, [&](auto& scope) { return models::make_convnext(config, scope); });
}

void shufflenet_v2(Case& c) {
  models::ShufflenetV2Config config;
  std::vector<int64_t> repeats = c.integers("stages_repeats");
  config.repeats.assign(repeats.begin(), repeats.end());
  config.channels = c.integers("stages_out_channels");
  norm_options(c, config);
  run_network(c, [&](auto& scope) { return models::make_shufflenet_v2(config, scope); });
}

Activation activation(const std::string& name) {
  std::optional<Activation> known = models::activation_named(name);
  if (!known) throw Unsupported("activation " + name);
  return *known;
}

models::InvertedResidual inverted_residual(const json& b) {
  using Kind = models::InvertedResidual::Kind;
  static const std::map<std::string, Kind> kinds{
      {"ir", Kind::inverted}, {"ds", Kind::separable}, {"cn", Kind::plain}};
  std::string kind = b.at("kind");
  if (!kinds.count(kind)) throw Unsupported("a block of kind " + kind);
  return {kinds.at(kind), b.at("kernel"), b.at("stride"),          b.at("in"),  b.at("mid"),
          b.at("out"),    b.at("se"),     activation(b.at("act")), b.at("skip")};
}

using Names = models::InvertedResidualConfig::Names;

// hidden: the layer between mean and classifier is called `head` in the case.
template <Names names, bool hidden_head = false>
void inverted_residuals(Case& c) {
  models::InvertedResidualConfig config;
  config.names = names;
  config.stem = c.integer("stem");
  config.stem_activation = activation(c.text("stem_act", "relu"));
  for (const json& stage : c.attribute("blocks")) {
    auto& blocks = config.stages.emplace_back();
    if (stage.is_object())
      blocks.push_back(inverted_residual(stage));
    else
      for (const json& block : stage) blocks.push_back(inverted_residual(block));
  }
  config.head = c.integer("head");
  config.head_activation = activation(c.text("head_act", "relu"));
  config.hidden = c.integer("hidden", 0);
  config.hidden_activation = activation(c.text("hidden_act", "relu"));
  if (hidden_head) {
    config.hidden = std::exchange(config.head, 0);
    config.hidden_activation = config.head_activation;
  }
  config.squeeze_activation = activation(c.text("se_act", "relu"));
  std::string gate = c.text("se_gate", "sigmoid"), padding = c.text("pad", "symmetric");
  if (gate != "sigmoid" && gate != "hard_sigmoid") throw Unsupported("se_gate = " + gate);
  if (padding != "symmetric" && padding != "same") throw Unsupported("pad = " + padding);
  config.hard_gate = gate == "hard_sigmoid";
  config.same_padding = padding == "same";
  norm_options(c, config);
  run_network(c, [&](auto& scope) { return models::make_inverted_residual(config, scope); });
}

// A network of the benchmark of CIFAR.
void listed(Case& c) {
  c.only("bn_eps", 1e-5);
  c.only("bn_momentum", 0.1);
  std::string name = c.function().substr(std::string_view("model.cifar_").size()) + "_kd";
  models::Options options{.classes = c.integer("num_classes")};
  run_network(
      c, [&](auto& scope) { return models::make_model(name, scope, options); }, "");
}

}  // namespace

void add_convolutional(Adapters& all) {
  all["model.resnet"] = resnet;
  all["model.timm_resnet"] = timm_resnet;
  all["model.timm_regnet"] = regnet<true>;
  all["model.tv_regnet"] = regnet<false>;
  all["model.resnetv2"] = resnetv2;
  all["model.convnext"] = convnext;
  all["model.tv_shufflenetv2"] = shufflenet_v2;
  all["model.tv_mobilenetv2"] = inverted_residuals<Names::mobilenet_v2>;
  all["model.tv_mobilenetv3"] = inverted_residuals<Names::mobilenet_v3>;
  all["model.tv_efficientnet"] = inverted_residuals<Names::efficientnet>;
  all["model.timm_efficientnet"] = inverted_residuals<Names::timm>;
  all["model.timm_mobilenetv3"] = inverted_residuals<Names::timm, true>;
  for (const models::ModelInfo& info : models::list_models())
    if (info.name.ends_with("_kd"))
      all["model.cifar_" + info.name.substr(0, info.name.size() - 3)] = listed;
}

}  // namespace pupil::verify

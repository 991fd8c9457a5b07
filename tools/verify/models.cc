// model.*: whole networks under their public parameter names.
#include "models.h"

#include <nlohmann/json.hpp>

#include "../../models/cifar_resnet.h"
#include "../../models/inverted_residual.h"
#include "../../models/resnet.h"

namespace pupil::verify {
namespace {

std::string without(const std::string& name, std::string_view end) {
  return name.ends_with(end) ? name.substr(0, name.size() - end.size()) : name;
}

template <int depth, bool x4>
void cifar_resnet(Case& c) {
  c.only("bn_eps", 1e-5);
  c.only("bn_momentum", 0.1);
  bool train = c.flag("train", false);
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::CifarResnetConfig config;
  config.depth = depth;
  if (x4) config.widths = {32, 64, 128, 256};
  config.option_a = false;
  config.classes = c.integer("num_classes");
  models::Model model = models::make_cifar_resnet(config, nn::Scope(store));
  store.require_complete();
  std::vector<std::string> wanted;
  for (const std::string& name : c.names("out."))
    wanted.push_back(without(without(name, ".mean_c"), ".mean_hw"));
  nn::Taps taps(wanted);
  models::Output out = model.forward(c.get("in.x"), {train, nullptr, &taps});
  c.result("logits", out.logits);
  c.result("pooled", out.features);
  finish(c, store);
  for (const std::string& name : c.names("out.")) {
    std::string tap = without(without(name, ".mean_c"), ".mean_hw");
    if (tap == "logits" || tap == "pooled" || tap.starts_with("state.")) continue;
    Tensor map = taps[tap];
    c.result(name, name == tap                  ? map
                   : name.ends_with(".mean_hw") ? mean(map, {2, 3})
                                                : mean(map, {1}));
  }
}

// Taps of a network are called tap.NAME in its cases.
void compare_network(Case& c, nn::Store& store, const models::Model& model, bool train) {
  store.require_complete();
  nn::Taps taps(c.names("out.tap."));
  models::Output out = model.forward(c.get("in.x"), {train, nullptr, &taps});
  c.result("logits", out.logits);
  c.result("pooled", out.features);
  finish(c, store);
  for (const std::string& name : c.names("out.tap.")) c.result("tap." + name, taps[name]);
}

void resnet(Case& c) {
  c.only("bn_eps", 1e-5);
  c.only("bn_momentum", 0.1);
  models::ResnetConfig config;
  config.bottleneck = c.text("block", "basic") == "bottleneck";
  std::vector<int64_t> layers = c.integers("layers");
  config.layers.assign(layers.begin(), layers.end());
  config.planes = c.integers("planes");
  config.groups = int(c.integer("groups", 1));
  config.width_per_group = c.integer("width_per_group", 64);
  config.classes = c.integer("num_classes");
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Model model = models::make_resnet(config, nn::Scope(store));
  compare_network(c, store, model, c.flag("train", false));
}

void mobilenet_v2(Case& c) {
  c.only("bn_eps", 1e-5);
  c.only("bn_momentum", 0.1);
  c.only("pad", std::string("symmetric"));
  for (const char* name : {"stem_act", "head_act"}) c.only(name, std::string("relu6"));
  models::MobilenetV2Config config;
  config.stem = c.integer("stem");
  config.head = c.integer("head");
  config.classes = c.integer("num_classes");
  config.dropout = 0;
  for (const nlohmann::json& b : c.attribute("blocks")) {
    if (b.at("kernel") != 3 || b.at("se") != 0 || b.at("act") != "relu6" ||
        b.at("mid").get<int64_t>() % b.at("in").get<int64_t>() ||
        (b.at("kind") == "ds") != (b.at("mid") == b.at("in")))
      throw Unsupported("a block " + b.dump());
    config.blocks.push_back({b.at("mid").get<int64_t>() / b.at("in").get<int64_t>(),
                             b.at("out").get<int64_t>(), b.at("stride").get<int>()});
  }
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Model model = models::make_mobilenet_v2(config, nn::Scope(store));
  compare_network(c, store, model, c.flag("train", false));
}

}  // namespace

void finish(Case& c, nn::Store& store) {
  for (const nn::Param& p : store.params()) {
    if (p.buffer)
      c.result("state." + p.name, p.value);
    else
      c.track(p.name, p.value);
  }
}

void add_models(Adapters& all) {
  all["model.cifar_resnet8"] = cifar_resnet<8, false>;
  all["model.cifar_resnet14"] = cifar_resnet<14, false>;
  all["model.cifar_resnet20"] = cifar_resnet<20, false>;
  all["model.cifar_resnet32"] = cifar_resnet<32, false>;
  all["model.cifar_resnet56"] = cifar_resnet<56, false>;
  all["model.cifar_resnet110"] = cifar_resnet<110, false>;
  all["model.cifar_resnet8x4"] = cifar_resnet<8, true>;
  all["model.cifar_resnet32x4"] = cifar_resnet<32, true>;
  all["model.resnet"] = resnet;
  all["model.tv_mobilenetv2"] = mobilenet_v2;
}

}  // namespace pupil::verify

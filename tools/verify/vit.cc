// model.*: transformers and MLP-Mixers, with the parameter names of timm and of Hugging Face.
#include "../../models/vit.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "../../models/eva.h"
#include "../../models/layout.h"
#include "../../models/mixer.h"
#include "../hf_config.h"
#include "models.h"

namespace pupil::verify {
namespace {

Activation activation(Case& c, const std::string& otherwise) {
  std::string name = c.text("act_layer", otherwise);
  std::optional<Activation> known = models::activation_named(name);
  if (!known) throw Unsupported("act_layer = " + name);
  return *known;
}

// Runs the network on x; taps of a network are called tap.NAME in its cases. grid: timm hands out
// the patches as (n, h, w, dim).
void compare(Case& c, const Tensor& x, nn::Store& store, const models::Model& model, int patch,
             bool grid) {
  store.require_complete();
  std::vector<std::string> wanted = c.names("out.tap.");
  wanted.insert(wanted.end(), {"norm", "logits_cls", "logits_dist"});
  nn::Taps taps(wanted);
  models::Output out = model.forward(x, {false, nullptr, &taps});
  c.result("logits", out.logits);
  c.result("pre_logits", out.features);
  c.result("features", taps["norm"]);
  finish(c, store);
  for (const char* name : {"logits_cls", "logits_dist"})
    if (c.has(concat("out.", name))) c.result(name, taps[name]);
  for (const std::string& name : c.names("out.tap.")) {
    Tensor value = taps[name];
    if (name == "patch_embed" && grid)
      value = view(value, {x.dim(0), x.dim(2) / patch, x.dim(3) / patch, value.dim(2)});
    c.result("tap." + name, value);
  }
}

void vit(Case& c) {
  models::VitConfig config;
  config.image = int(c.both("img_size"));
  config.patch = int(c.both("patch_size"));
  config.dim = int(c.integer("embed_dim"));
  config.depth = int(c.integer("depth"));
  config.heads = int(c.integer("num_heads"));
  config.mlp_ratio = c.number("mlp_ratio", 4);
  config.classes = c.integer("num_classes");
  config.class_token = c.flag("class_token", true);
  config.distilled = c.flag("distilled", false);
  config.qkv_bias = c.flag("qkv_bias", true);
  config.qk_norm = c.flag("qk_norm", false);
  config.pre_norm = c.flag("pre_norm", false);
  config.registers = int(c.integer("reg_tokens", 0));
  if (c.flag("no_embed_class", false)) config.positions = models::VitPositions::patches;
  std::string pool = c.text("global_pool", "token");
  if (pool == "avg")
    config.pool = models::VitPool::avg;
  else if (pool == "map")
    config.pool = models::VitPool::map;
  else if (pool != "token")
    throw Unsupported("global_pool = " + pool);
  std::string mlp = c.text("mlp_layer", "mlp");
  if (mlp == "swiglu_packed")
    config.gate = models::Gate::packed;
  else if (mlp != "mlp")
    throw Unsupported("mlp_layer = " + mlp);
  config.activation = activation(c, mlp == "mlp" ? "gelu" : "silu");
  if (c.has_attribute("init_values")) config.layer_scale = c.number("init_values");
  config.norm_eps = c.number("norm_eps", c.number("final_norm_eps", 1e-6));
  c.only("final_norm_eps", config.norm_eps);
  c.ignore("run_size");  // the size of in.x

  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Model model = models::make_vit(config, nn::Scope(store));
  Tensor x = c.get("in.x");
  compare(c, x, store, model, config.patch, x.dim(2) != config.image || x.dim(3) != config.image);
}

void eva(Case& c) {
  c.only("rope_type", std::string("dinov3"));
  c.only("rope_rotate_half", true);
  models::EvaConfig config;
  config.image = int(c.both("img_size"));
  config.patch = int(c.both("patch_size"));
  config.dim = int(c.integer("embed_dim"));
  config.depth = int(c.integer("depth"));
  config.heads = int(c.integer("num_heads"));
  config.registers = int(c.integer("num_reg_tokens", 0));
  config.classes = c.integer("num_classes");
  config.q_bias = config.v_bias = c.flag("qkv_bias", true);
  config.hidden = int64_t(double(config.dim) * c.number("mlp_ratio", 4));
  int64_t align = c.integer("swiglu_align_to", 0);
  if (c.flag("swiglu_mlp", false)) {
    config.activation = Activation::silu;
    config.gate = align ? models::Gate::apart : models::Gate::packed;
    config.hidden = align ? (config.hidden + align - 1) / align * align : 2 * config.hidden;
  }
  config.layer_scale.reset();
  if (c.has_attribute("init_values")) config.layer_scale = c.number("init_values");
  config.rope_temperature = c.number("rope_temperature", 100);
  std::string pool = c.text("global_pool", "avg");
  if (pool != "avg" && pool != "token") throw Unsupported("global_pool = " + pool);
  config.avg = pool == "avg";
  config.fc_norm = c.flag("use_fc_norm", false);
  config.norm_eps = c.number("norm_eps", 1e-5);
  c.ignore("run_size");

  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Model model = models::make_eva(config, nn::Scope(store));
  Tensor x = c.get("in.x");
  compare(c, x, store, model, config.patch, true);
  int64_t width = config.dim / config.heads;
  models::Rotary rotary =
      models::grid_rotary(int(x.dim(2)) / config.patch, int(x.dim(3)) / config.patch, width,
                          config.rope_temperature, c.dtype());
  c.result("rope_cos", rotary.cos);
  c.result("rope_sin", cat({scale(slice(rotary.sin, 1, 0, width / 2), -1),
                            slice(rotary.sin, 1, width / 2, width)},
                           1));
}

void mixer(Case& c) {
  models::MixerConfig config;
  config.image = int(c.both("img_size"));
  config.patch = int(c.both("patch_size"));
  config.dim = int(c.integer("embed_dim"));
  config.depth = int(c.integer("num_blocks"));
  if (c.has_attribute("mlp_ratio")) {
    std::vector<double> ratios = c.numbers("mlp_ratio");
    config.token_ratio = ratios.at(0);
    config.channel_ratio = ratios.at(1);
  }
  config.classes = c.integer("num_classes");
  config.norm_eps = c.number("norm_eps", 1e-6);
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  compare(c, c.get("in.x"), store, models::make_mixer(config, nn::Scope(store)), config.patch,
          false);
}

void hugging_face(Case& c) {
  nlohmann::json config = nlohmann::json::object();
  for (const std::string& name : hf_config_fields())
    if (c.has_attribute(name)) config[name] = c.attribute(name);
  c.ignore("run_size");
  std::shared_ptr<const data::Weights> weights = models::in_our_names(c.parameters());
  nn::Store store(0, c.dtype(), c.device());
  store.source(weights);
  models::Model model =
      make_hf(config, c.function(), nn::Scope(store), weights->has("pooler.weight"));
  store.require_complete();
  auto tap_of = [](const std::string& name) {
    return name == "final_norm"         ? "norm"
           : name.starts_with("layer.") ? "blocks." + name.substr(6)
                                        : name;
  };
  std::vector<std::string> wanted{"norm", "logits_cls", "logits_dist"};
  for (const std::string& name : c.names("out.tap.")) wanted.push_back(tap_of(name));
  nn::Taps taps(wanted);
  models::Output out = model.forward(c.get("in.x"), {false, nullptr, &taps});
  if (model.classes) {
    c.result("logits", out.logits);
  } else {
    c.result("last_hidden_state", taps["norm"]);
    c.result("pooler_output", out.features);
  }
  for (const char* name : {"logits_cls", "logits_dist"})
    if (c.has(concat("out.", name))) c.result(name, taps[name]);
  for (const std::string& name : c.names("out.tap.")) c.result("tap." + name, taps[tap_of(name)]);
  track_translated(c, store);
}

void hf_folder(Case& c) {
  std::filesystem::path beside = std::filesystem::absolute(c.path()).parent_path();
  HfFolder folder = open_hf_folder((beside / c.text("folder", "")).string());
  nn::Store store(0, c.dtype(), c.device());
  store.source(folder.weights);
  models::Model model = folder.make(nn::Scope(store));
  store.require_complete();
  c.result("logits", model.forward(c.get("in.x"), {}).logits);
}

}  // namespace

void track_translated(Case& c, const nn::Store& store) {
  std::vector<std::string> theirs = c.names("param.");
  const models::Layout* layout = models::layout_of(theirs);
  PUPIL_CHECK(layout, "verify: ", c.function(), ": the names are of no known layout");
  models::Translation translation(*layout, theirs);
  std::map<std::string, Tensor> values;
  for (const nn::Param& p : store.params()) values[p.name] = p.value;
  for (const models::Translation::Entry& entry : translation.entries)
    for (size_t i = 0; i < entry.theirs.size(); i++) {
      Shape shape = c.get("param." + entry.theirs[i]).shape();  // (1, n, d) may be stored as (n, d)
      c.track(entry.theirs[i], [entry, i, values, shape] {
        for (const std::string& name : entry.ours)
          if (!values.at(name).grad()) return Tensor();
        return view(models::to_theirs(
                        entry, i, [&](const std::string& name) { return values.at(name).grad(); }),
                    shape);
      });
    }
  for (const std::string& name : translation.dropped)  // takes no part
    c.track(name, [like = c.get("param." + name)] {
      return zeros(like.shape(), like.dtype(), like.device());
    });
}

void add_vit(Adapters& all) {
  all["model.vit"] = vit;
  all["model.eva"] = eva;
  all["model.mixer"] = mixer;
  for (const char* name : {"model.hf_vit", "model.hf_dinov2", "model.hf_dinov3"})
    all[name] = hugging_face;
  all["model.hf_folder"] = hf_folder;
}

}  // namespace pupil::verify

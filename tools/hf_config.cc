#include "hf_config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "../models/clip.h"
#include "../models/eva.h"
#include "../models/layout.h"
#include "../models/vit.h"

namespace pupil {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"gelu", Activation::gelu},          {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_new", Activation::gelu_tanh}, {"quick_gelu", Activation::quick_gelu},
    {"silu", Activation::silu},          {"swish", Activation::silu},
    {"relu", Activation::relu}};

constexpr std::pair<int, models::Filter> kPillow[] = {
    {0, models::Filter::nearest}, {1, models::Filter::lanczos}, {2, models::Filter::bilinear},
    {3, models::Filter::bicubic}, {4, models::Filter::box},     {5, models::Filter::hamming}};

// Fields with the class's default; a value of another kind is an error that names the field.
class ConfigFields {
 public:
  ConfigFields(const json& values, std::string where) : values_(values), where_(std::move(where)) {}

  template <class T>
  T get(const char* name, T otherwise) const {
    if (!values_.contains(name) || values_[name].is_null()) return otherwise;
    try {
      return values_[name].get<T>();
    } catch (const json::exception&) {
      fail_input(where_, ": ", name, " is ", values_[name].dump());
    }
  }
  int count(const char* name, int otherwise) const {
    int64_t value = get<int64_t>(name, otherwise);
    if (value < 0 || value > 1 << 20) fail_input(where_, ": ", name, " is ", value);
    return int(value);
  }
  // One number, or [n, n].
  int side(const char* name, int otherwise) const {
    if (!values_.contains(name) || !values_[name].is_array()) return count(name, otherwise);
    std::vector<int64_t> both = get<std::vector<int64_t>>(name, {});
    if (both.size() != 2 || both[0] != both[1] || both[0] < 1 || both[0] > 1 << 20)
      fail_input(where_, ": ", name, " is ", values_[name].dump(), "; only squares are known");
    return int(both[0]);
  }
  Activation activation(const char* otherwise = "gelu") const {
    std::string name = get<std::string>("hidden_act", otherwise);
    for (auto [known, activation] : kActivations)
      if (name == known) return activation;
    fail_input(where_, ": hidden_act ", name, " is not known");
  }
  int64_t labels() const {
    if (values_.contains("id2label")) return int64_t(values_["id2label"].size());
    return count("num_labels", 2);
  }
  const json& values() const { return values_; }
  const std::string& where() const { return where_; }

 private:
  const json& values_;
  std::string where_;
};

// What VitConfig and EvaConfig share.
template <class Config>
Config sized(const ConfigFields& f, int dim, int heads) {
  Config c;
  c.image = f.side("image_size", 224);
  c.patch = f.side("patch_size", 16);
  c.dim = f.count("hidden_size", dim);
  c.depth = f.count("num_hidden_layers", 12);
  c.heads = f.count("num_attention_heads", heads);
  c.activation = f.activation();
  c.classes = 0;
  return c;
}

models::VitConfig any_vit(const ConfigFields& f) {
  models::VitConfig c = sized<models::VitConfig>(f, 768, 12);
  c.qkv_bias = f.get<bool>("qkv_bias", true);
  return c;
}

models::VitConfig vit_or_deit(const ConfigFields& f, bool deit) {
  models::VitConfig c = any_vit(f);
  c.hidden = f.count("intermediate_size", 3072);
  c.norm_eps = f.get<double>("layer_norm_eps", 1e-12);
  c.distilled = deit;
  c.second_head = false;
  return c;
}

models::VitConfig dinov2(const ConfigFields& f, bool registers) {
  models::VitConfig c = any_vit(f);
  c.patch = f.side("patch_size", registers ? 16 : 14);
  c.norm_eps = f.get<double>("layer_norm_eps", 1e-6);
  c.layer_scale = f.get<double>("layerscale_value", 1);
  c.mlp_ratio = f.get<double>("mlp_ratio", 4);
  if (f.get<bool>("use_swiglu_ffn", false)) {
    c.gate = models::Gate::packed;
    c.activation = Activation::silu;
    // transformers: a multiple of 8 of two thirds of what the ratio says.
    int64_t wide = int64_t(double(c.dim) * c.mlp_ratio);
    c.hidden = 2 * ((int64_t(double(wide) * 2 / 3) + 7) / 8 * 8);
  }
  c.registers = registers ? f.count("num_register_tokens", 4) : 0;
  c.positions = models::VitPositions::no_registers;
  c.antialias = registers;
  return c;
}

models::EvaConfig dinov3(const ConfigFields& f) {
  models::EvaConfig c = sized<models::EvaConfig>(f, 384, 6);
  c.hidden = f.count("intermediate_size", 1536);
  c.registers = f.count("num_register_tokens", 0);
  c.q_bias = f.get<bool>("query_bias", true);
  c.k_bias = f.get<bool>("key_bias", false);
  c.v_bias = f.get<bool>("value_bias", true);
  c.proj_bias = f.get<bool>("proj_bias", true);
  c.mlp_bias = f.get<bool>("mlp_bias", true);
  if (f.get<bool>("use_gated_mlp", false)) c.gate = models::Gate::apart;
  c.layer_scale = f.get<double>("layerscale_value", 1);
  json rope = f.get<json>("rope_parameters", json::object());
  c.rope_temperature =
      f.get<double>("rope_theta", ConfigFields(rope, f.where()).get<double>("rope_theta", 100));
  c.avg = false;
  c.norm_eps = f.get<double>("layer_norm_eps", 1e-5);
  return c;
}

models::ClipTransformer tower(const ConfigFields& f, bool siglip, models::ClipTransformer t) {
  t.width = f.count("hidden_size", int(t.width));
  t.hidden = f.count("intermediate_size", int(t.hidden));
  t.layers = f.count("num_hidden_layers", t.layers);
  t.heads = f.count("num_attention_heads", t.heads);
  t.norm_eps = f.get<double>("layer_norm_eps", siglip ? 1e-6 : 1e-5);
  t.activation = f.activation(siglip ? "gelu_pytorch_tanh" : "quick_gelu");
  if (f.count("num_channels", 3) != 3) fail_input(f.where(), ": num_channels is not 3");
  return t;
}

json read_json(const fs::path& path) {
  std::ifstream file(path);
  if (!file) fail_input(path.string(), ": cannot be read");
  json config = json::parse(file, nullptr, false);
  if (!config.is_object()) fail_input(path.string(), ": is not a JSON object");
  return config;
}

// Sizes are {"height": n, "width": n}, {"shortest_edge": n} or n.
int side_of(const ConfigFields& f, const char* name, int otherwise) {
  if (!f.values().contains(name) || !f.values()[name].is_object()) return f.side(name, otherwise);
  ConfigFields inner(f.values()[name], concat(f.where(), ": ", name));
  int height = inner.count("height", inner.count("shortest_edge", otherwise));
  if (inner.count("width", height) != height)
    fail_input(f.where(), ": ", name, " is ", f.values()[name].dump(), "; only squares are known");
  return height;
}

void read_preprocessing(const fs::path& path, models::Model& model) {
  json config = read_json(path);
  ConfigFields f(config, path.string());
  models::Preprocessing& p = model.input;
  p.mean = f.get<std::vector<float>>("image_mean", {0.5f, 0.5f, 0.5f});
  p.std = f.get<std::vector<float>>("image_std", {0.5f, 0.5f, 0.5f});
  if (p.mean.size() != 3 || p.std.size() != 3)
    fail_input(path.string(), ": image_mean and image_std need three numbers each");
  int resample = f.count("resample", 2);
  auto filter = std::find_if(std::begin(kPillow), std::end(kPillow),
                             [&](auto& known) { return known.first == resample; });
  if (filter == std::end(kPillow)) fail_input(path.string(), ": resample is ", resample);
  p.filter = filter->second;
  int resized = side_of(f, "size", p.size);
  p.size = f.get<bool>("do_center_crop", false) ? side_of(f, "crop_size", resized) : resized;
  if (p.size < 1 || p.size > resized)
    fail_input(path.string(), ": a crop of ", p.size, " does not fit images of ", resized);
  p.crop_pct = double(p.size) / resized;
}

}  // namespace

const std::vector<std::string>& hf_config_fields() {
  static const std::vector<std::string> all{"architecture",
                                            "architectures",
                                            "hidden_act",
                                            "hidden_size",
                                            "id2label",
                                            "image_size",
                                            "intermediate_size",
                                            "key_bias",
                                            "layer_norm_eps",
                                            "layerscale_value",
                                            "mlp_bias",
                                            "mlp_ratio",
                                            "num_attention_heads",
                                            "num_channels",
                                            "num_hidden_layers",
                                            "num_labels",
                                            "num_register_tokens",
                                            "patch_size",
                                            "proj_bias",
                                            "qkv_bias",
                                            "query_bias",
                                            "rope_parameters",
                                            "rope_theta",
                                            "use_gated_mlp",
                                            "use_swiglu_ffn",
                                            "value_bias"};
  return all;
}

const char* hf_activation(Activation activation) {
  for (auto [name, known] : kActivations)
    if (known == activation) return name;
  fail_input("convert: transformers has no name for an activation of this network");
}

int hf_resample(models::Filter filter) {
  auto found = std::find_if(std::begin(kPillow), std::end(kPillow),
                            [&](auto& known) { return known.second == filter; });
  PUPIL_CHECK(found != std::end(kPillow), "a filter without a number");
  return found->first;
}

models::ClipConfig hf_clip(const json& config, const std::string& where, bool siglip) {
  models::ClipConfig c;
  c.siglip = siglip;
  ConfigFields all(config, where);
  json vision = all.get<json>("vision_config", json::object()),
       text = all.get<json>("text_config", json::object());
  ConfigFields v(vision, where + ": vision_config"), t(text, where + ": text_config");
  models::ClipTransformer text_defaults = c.text;
  c.vision = tower(v, siglip, c.vision);
  c.text = tower(t, siglip, siglip ? models::ClipTransformer() : text_defaults);
  c.image = v.side("image_size", 224);
  c.patch = v.side("patch_size", siglip ? 16 : 32);
  c.context = t.count("max_position_embeddings", siglip ? 64 : 77);
  c.vocabulary = t.count("vocab_size", siglip ? 32000 : 49408);
  c.embed_dim =
      siglip ? t.count("projection_size", int(c.text.width)) : all.count("projection_dim", 512);
  return c;
}

models::Model make_hf(const json& config, const std::string& where, const nn::Scope& scope,
                      bool has_pooler) {
  ConfigFields f(config, where);
  std::vector<std::string> named = f.get<std::vector<std::string>>("architectures", {});
  std::string name = f.get<std::string>("architecture", named.empty() ? "" : named[0]);
  if (f.count("num_channels", 3) != 3) fail_input(where, ": num_channels is not 3");
  std::string family;
  auto ends = [&](std::string_view end) {
    if (!name.ends_with(end)) return false;
    family = name.substr(0, name.size() - end.size());
    return true;
  };
  bool teacher = ends("ForImageClassificationWithTeacher"),
       classifies = teacher || ends("ForImageClassification"), fits = classifies || ends("Model");
  auto named_model = [&](models::Model model) {
    model.name = name;
    return model;
  };
  if (fits && ((family == "ViT" && !teacher) || family == "DeiT")) {
    models::VitConfig c = vit_or_deit(f, family == "DeiT");
    c.second_head = teacher;
    c.pooler = has_pooler;
    if (classifies) c.classes = f.labels();
    return named_model(make_vit(c, scope));
  }
  if (fits && !teacher && (family == "Dinov2" || family == "Dinov2WithRegisters")) {
    models::VitConfig c = dinov2(f, family != "Dinov2");
    if (classifies) {
      c.pool = models::VitPool::token_and_avg;
      c.classes = f.labels();
    }
    return named_model(make_vit(c, scope));
  }
  if (name == "DINOv3ViTModel") return named_model(make_eva(dinov3(f), scope));
  if (name == "CLIPModel" || name == "SiglipModel")
    return named_model(make_clip(hf_clip(config, where, name == "SiglipModel"), scope).image);
  fail_input(where, ": the architecture \"", name,
             "\" is not known; known are ViT, DeiT, Dinov2 and ",
             "Dinov2WithRegisters, each as Model or ForImageClassification, DINOv3ViTModel, ",
             "CLIPModel and SiglipModel");
}

bool is_hf_folder(const std::string& path) {
  std::error_code none;
  return fs::is_regular_file(fs::path(path) / "config.json", none);
}

HfFolder open_hf_folder(const std::string& path) {
  std::string where = (fs::path(path) / "config.json").string();
  auto config = std::make_shared<const json>(read_json(where));
  std::shared_ptr<const data::Weights> weights = models::in_our_names(data::open_weights(path));
  bool has_pooler = weights->has("pooler.weight");
  fs::path images = fs::path(path) / "preprocessor_config.json";
  return {weights, [=](const nn::Scope& scope) {
            models::Model model = make_hf(*config, where, scope, has_pooler);
            if (std::error_code none; fs::exists(images, none)) read_preprocessing(images, model);
            return model;
          }};
}

}  // namespace pupil

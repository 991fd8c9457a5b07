// model.clip, model.hf_clip, model.hf_siglip: image and text towers under their public names.
#include "../../models/clip.h"

#include <nlohmann/json.hpp>

#include "../../models/layout.h"
#include "../hf_config.h"
#include "models.h"

namespace pupil::verify {
namespace {

using nlohmann::json;

// Every key of `object` must be read; a null counts as absent.
class Fields {
 public:
  Fields(Case& c, const std::string& name) : name_(name), object_(c.attribute(name)) {}
  bool has(const std::string& key) {
    read_.insert(key);
    return object_.contains(key) && !object_[key].is_null();
  }
  template <class T>
  T get(const std::string& key, T otherwise) {
    return has(key) ? object_[key].get<T>() : otherwise;
  }
  const json& operator[](const std::string& key) {
    if (!has(key)) throw Missing(name_, key, false);
    return object_[key];
  }
  void require_read() const {
    for (auto& [key, value] : object_.items())
      if (!value.is_null() && !read_.count(key))
        throw Unsupported(concat(name_, ".", key, " = ", value.dump()));
  }

 private:
  std::string name_;
  const json& object_;
  std::set<std::string> read_;
};

models::ClipTransformer openai_transformer(Fields& f, Activation activation) {
  models::ClipTransformer t;
  t.width = f["width"];
  t.hidden = int64_t(double(t.width) * f.get<double>("mlp_ratio", 4));
  t.activation = activation;
  return t;
}

models::ClipConfig clip_config(Case& c) {
  models::ClipConfig config;
  Activation activation = c.flag("quick_gelu", false) ? Activation::quick_gelu : Activation::gelu;
  config.embed_dim = c.integer("embed_dim");
  config.custom_text = c.flag("custom_text", false);
  Fields vision(c, "vision_cfg"), text(c, "text_cfg");
  config.vision = openai_transformer(vision, activation);
  config.image = vision["image_size"];
  int64_t head_width = vision.get<int64_t>("head_width", 64);
  if (vision["layers"].is_array()) {
    config.resnet = vision["layers"].get<std::vector<int>>();
    config.vision.heads = int(config.vision.width * 32 / head_width);
    vision.has("patch_size");
  } else {
    config.vision.layers = vision["layers"];
    config.vision.heads = int(config.vision.width / head_width);
    config.patch = vision["patch_size"];
  }
  config.text = openai_transformer(text, activation);
  config.text.heads = text["heads"];
  config.text.layers = text["layers"];
  config.context = text.get<int64_t>("context_length", 77);
  config.vocabulary = text.get<int64_t>("vocab_size", 49408);
  vision.require_read();
  text.require_read();
  return config;
}

void openai_clip(Case& c) {
  bool train = c.flag("train", false);
  nn::Store store(0, c.dtype(), c.device());
  store.source(c.parameters());
  models::Clip clip = models::make_clip(clip_config(c), nn::Scope(store));
  store.require_complete();
  nn::Taps taps(c.names("out.tap."));
  Tensor image = clip.image.forward(c.get("in.image"), {train, nullptr, &taps}).features;
  Tensor text = clip.text(c.get("in.text"), {train, nullptr, &taps});
  c.result("image_features", image);
  c.result("text_features", text);
  c.result("logits_per_image", clip.logits(image, text));
  for (const std::string& name : c.names("out.tap.")) c.result("tap." + name, taps[name]);
  finish(c, store);
}

// CLIPModel and SiglipModel of transformers; what a configuration leaves out has their defaults.
template <bool siglip>
void hugging_face_towers(Case& c) {
  json settings = {{"projection_dim", siglip ? 0 : c.integer("projection_dim", 512)}};
  for (const char* part : {"vision_config", "text_config"}) {
    Fields fields(c, part);
    for (const char* known :
         {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
          "layer_norm_eps", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id",
          "projection_dim", "image_size", "patch_size", "num_channels", "max_position_embeddings",
          "vocab_size", "projection_size"})
      fields.has(known);
    fields.require_read();
    settings[part] = c.attribute(part);
  }
  models::ClipConfig config = hf_clip(settings, c.function(), siglip);

  nn::Store store(0, c.dtype(), c.device());
  store.source(models::in_our_names(c.parameters()));
  models::Clip clip = models::make_clip(config, nn::Scope(store));
  store.require_complete();
  auto tap_of = [](const std::string& name) {
    if (name == "vision.pre") return std::string("ln_pre");
    size_t number = name.rfind('.') + 1;
    return (name.starts_with("text") ? "text."
            : siglip                 ? "blocks."
                                     : "visual.") +
           name.substr(number);
  };
  const std::string last = siglip ? "norm" : concat("visual.", config.vision.layers - 1);
  std::vector<std::string> wanted{last, "text.ln_final"};
  for (const std::string& name : c.names("out.tap.")) wanted.push_back(tap_of(name));
  nn::Taps taps(wanted);
  Tensor image = clip.image.forward(c.get("in.image"), {false, nullptr, &taps}).features;
  Tensor words = clip.text(c.get("in.text"), {false, nullptr, &taps});
  Tensor logits = clip.logits(image, words);
  c.result("image_features", image);
  c.result("text_features", words);
  c.result("image_embeds", normalize(image));
  c.result("text_embeds", normalize(words));
  c.result("image_last_hidden_state", taps[last]);
  c.result("text_last_hidden_state", taps["text.ln_final"]);
  c.result("logits_per_image", logits);
  c.result("logits_per_text", permute(logits, {1, 0}));
  for (const std::string& name : c.names("out.tap.")) c.result("tap." + name, taps[tap_of(name)]);
  track_translated(c, store);
}

}  // namespace

void add_clip(Adapters& all) {
  all["model.clip"] = openai_clip;
  all["model.hf_clip"] = hugging_face_towers<false>;
  all["model.hf_siglip"] = hugging_face_towers<true>;
}

}  // namespace pupil::verify

// model.clip: image and text towers under their public names.
#include "../../models/clip.h"

#include <nlohmann/json.hpp>

#include "case.h"

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

models::ClipTransformer transformer(Fields& f, models::Activation activation) {
  models::ClipTransformer t;
  t.width = f["width"];
  t.hidden = int64_t(double(t.width) * f.get<double>("mlp_ratio", 4));
  t.activation = activation;
  return t;
}

models::ClipConfig clip_config(Case& c) {
  models::ClipConfig config;
  models::Activation activation =
      c.flag("quick_gelu", false) ? models::Activation::quick_gelu : models::Activation::gelu;
  config.embed_dim = c.integer("embed_dim");
  config.custom_text = c.flag("custom_text", false);
  Fields vision(c, "vision_cfg"), text(c, "text_cfg");
  config.vision = transformer(vision, activation);
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
  config.text = transformer(text, activation);
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
  for (const nn::Param& p : store.params()) {
    if (p.buffer)
      c.result("state." + p.name, p.value);
    else
      c.track(p.name, p.value);
  }
}

}  // namespace

void add_clip(Adapters& all) { all["model.clip"] = openai_clip; }

}  // namespace pupil::verify

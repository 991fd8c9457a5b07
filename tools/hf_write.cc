#include "hf_write.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "../models/clip.h"
#include "../models/eva.h"
#include "../models/layout.h"
#include "../models/vit.h"
#include "hf_config.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

// How a network is called there, and what has to be changed in its tensors.
struct HfForm {
  std::string layout, prefix;
  Json config;
  std::map<std::string, Tensor> ours, theirs;  // instead of those in the file; besides them
};

[[noreturn]] void without_form(const models::Model& model, const std::string& why) {
  fail_input("convert: transformers has no class for ", model.name, ": ", why,
             "; its own library reads the file without --layout hf");
}

// Fields that VitConfig and EvaConfig share.
template <class Config>
Json sizes_in_hf(const char* class_name, const char* type, const Config& c) {
  return {{"architectures", {class_name}},  {"model_type", type},
          {"hidden_size", c.dim},           {"num_hidden_layers", c.depth},
          {"num_attention_heads", c.heads}, {"image_size", c.image},
          {"patch_size", c.patch},          {"num_channels", 3},
          {"layer_norm_eps", c.norm_eps},   {"hidden_act", hf_activation(c.activation)}};
}

HfForm plain_vit(const models::Model& model, const models::VitConfig& c) {
  if (c.pool != models::VitPool::token || c.positions != models::VitPositions::all || c.registers ||
      c.layer_scale || c.gate != models::Gate::none)
    without_form(model, "a Vision Transformer there pools by class token, without registers");
  HfForm form{"hf_vit", c.distilled ? "deit." : "vit.", {}, {}, {}};
  std::string name = c.distilled ? "DeiT" : "ViT";
  if (c.classes && c.distilled && c.second_head) {
    form.layout = "hf_deit_with_teacher";
    name += "ForImageClassificationWithTeacher";
  } else if (c.classes) {
    name += "ForImageClassification";
  } else {
    form.prefix = "";
    name += "Model";
  }
  form.config = sizes_in_hf(name.c_str(), c.distilled ? "deit" : "vit", c);
  form.config["intermediate_size"] = c.hidden ? c.hidden : int64_t(c.dim * c.mlp_ratio);
  form.config["qkv_bias"] = c.qkv_bias;
  return form;
}

HfForm dinov2_form(const models::Model& model, const models::VitConfig& c,
                   const data::Weights& file) {
  bool gated = c.gate == models::Gate::packed;
  if (c.distilled || (gated && c.activation != Activation::silu))
    without_form(model, "its blocks are not those of DINOv2");
  if (c.classes && c.pool != models::VitPool::token_and_avg)
    without_form(model,
                 "the classifier of DINOv2 there sees the class token and the mean of the "
                 "patches side by side");
  std::string name = c.registers ? "Dinov2WithRegisters" : "Dinov2";
  HfForm form{gated ? "hf_dinov2_swiglu" : "hf_dinov2",
              !c.classes    ? ""
              : c.registers ? "dinov2_with_registers."
                            : "dinov2.",
              {},
              {},
              {}};
  form.theirs = {{form.prefix + "embeddings.mask_token", zeros({1, c.dim})}};
  name += c.classes ? "ForImageClassification" : "Model";
  form.config = sizes_in_hf(name.c_str(), c.registers ? "dinov2_with_registers" : "dinov2", c);
  // transformers wants a whole ratio; see hf_config.cc for the width of gated ones.
  int64_t hidden = c.hidden ? c.hidden : int64_t(c.dim * c.mlp_ratio), ratio = 0;
  auto hidden_of = [&](int64_t r) {
    return gated ? 2 * ((r * c.dim * 2 / 3 + 7) / 8 * 8) : r * c.dim;
  };
  while (hidden_of(ratio) < hidden) ratio++;
  if (hidden_of(ratio) != hidden) without_form(model, "its MLPs have a width that is not there");
  form.config["mlp_ratio"] = ratio;
  form.config["use_swiglu_ffn"] = gated;
  form.config["qkv_bias"] = c.qkv_bias;
  if (c.registers) form.config["num_register_tokens"] = c.registers;
  // timm adds the position of the class token to the token itself where it has registers.
  if (c.positions == models::VitPositions::patches)
    form.ours["pos_embed"] = cat({zeros({1, 1, c.dim}), file.read("pos_embed", DType::f32)}, 1);
  return form;
}

HfForm dinov3_form(const models::Model& model, const models::EvaConfig& c) {
  if (c.classes) without_form(model, "DINOv3 has no classifier there");
  if (c.fc_norm || !c.layer_scale) without_form(model, "its blocks are not those of DINOv3");
  bool gated = c.gate == models::Gate::apart;
  HfForm form{gated ? "hf_dinov3_gated" : "hf_dinov3",
              "",
              sizes_in_hf("DINOv3ViTModel", "dinov3_vit", c),
              {},
              {{"embeddings.mask_token", zeros({1, 1, c.dim})}}};
  form.config.update({{"intermediate_size", c.hidden},
                      {"num_register_tokens", c.registers},
                      {"query_bias", c.q_bias},
                      {"key_bias", c.k_bias},
                      {"value_bias", c.v_bias},
                      {"proj_bias", c.proj_bias},
                      {"mlp_bias", c.mlp_bias},
                      {"use_gated_mlp", gated},
                      {"layerscale_value", *c.layer_scale},
                      {"rope_theta", c.rope_temperature}});
  return form;
}

HfForm clip_form(const models::Model& model, const models::ClipConfig& c,
                 const data::Weights& file) {
  if (!c.resnet.empty()) without_form(model, "CLIP's residual networks are not there");
  if (c.classes) without_form(model, "CLIP has no classifier there");
  if (c.custom_text) without_form(model, "its text tower has names of its own");
  auto tower = [](const models::ClipTransformer& t, const char* type) {
    return Json{{"model_type", type},
                {"hidden_size", t.width},
                {"intermediate_size", t.hidden},
                {"num_hidden_layers", t.layers},
                {"num_attention_heads", t.heads},
                {"hidden_act", hf_activation(t.activation)},
                {"layer_norm_eps", t.norm_eps}};
  };
  Json vision = tower(c.vision, c.siglip ? "siglip_vision_model" : "clip_vision_model"),
       text = tower(c.text, c.siglip ? "siglip_text_model" : "clip_text_model");
  vision.update({{"image_size", c.image}, {"patch_size", c.patch}, {"num_channels", 3}});
  text.update({{"max_position_embeddings", c.context}, {"vocab_size", c.vocabulary}});
  if (c.siglip)
    text["projection_size"] = c.embed_dim;
  else  // transformers takes the largest id of a text for its end where this says 2
    text.update({{"eos_token_id", 2}, {"projection_dim", c.embed_dim}});
  HfForm form{c.siglip ? "hf_siglip" : "hf_clip", "", {}, {}, {}};
  form.config = {{"architectures", {c.siglip ? "SiglipModel" : "CLIPModel"}},
                 {"model_type", c.siglip ? "siglip" : "clip"},
                 {"text_config", text},
                 {"vision_config", vision}};
  if (!c.siglip) {
    form.config["projection_dim"] = form.config["vision_config"]["projection_dim"] = c.embed_dim;
    return form;
  }
  // Without timm's axis of size 1, and with one where open_clip has none.
  const int64_t side = c.image / c.patch;
  const std::string positions = "visual.trunk.pos_embed";
  form.ours[positions] = view(file.read(positions, DType::f32), {side * side, c.vision.width});
  for (const char* name : {"logit_scale", "logit_bias"})
    form.ours[name] = view(file.read(name, DType::f32), {1});
  return form;
}

HfForm form_of(const models::Model& model, const data::Weights& file) {
  if (model.clip) return clip_form(model, *model.clip, file);
  if (model.eva) return dinov3_form(model, *model.eva);
  if (!model.vit) without_form(model, "Pupil writes ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP");
  const models::VitConfig& c = *model.vit;
  if (!c.class_token || c.pre_norm || c.qk_norm)
    without_form(model, "it has no class token, or norms that are not there");
  return c.layer_scale ? dinov2_form(model, c, file) : plain_vit(model, c);
}

Json preprocessor(const models::Preprocessing& p) {
  int resized = int(std::floor(p.size / p.crop_pct + 1e-9));
  return {{"image_processor_type", "CLIPImageProcessor"},
          {"do_convert_rgb", true},
          {"do_resize", true},
          {"size", {{"shortest_edge", resized}}},
          {"resample", hf_resample(p.filter)},
          {"do_center_crop", true},
          {"crop_size", {{"height", p.size}, {"width", p.size}}},
          {"do_rescale", true},
          {"rescale_factor", 1 / 255.0},
          {"do_normalize", true},
          {"image_mean", p.mean},
          {"image_std", p.std}};
}

}  // namespace

std::shared_ptr<const data::Weights> in_form_of_hf(const Network& network,
                                                   std::shared_ptr<const data::Weights> file) {
  const models::Model& model = network.model;
  HfForm form = form_of(model, *file);
  if (model.classes) {
    Json names, numbers;
    for (int64_t k = 0; k < model.classes; k++) {
      bool named = network.class_names.size() == size_t(model.classes);
      std::string name = named ? network.class_names[size_t(k)] : concat("LABEL_", k);
      names[std::to_string(k)] = name;
      numbers[name] = k;
    }
    form.config.update({{"id2label", names}, {"label2id", numbers}});
  }
  std::map<std::string, std::string> metadata = file->metadata();
  metadata["config.json"] = form.config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  metadata["preprocessor_config.json"] = preprocessor(model.input).dump(2) + "\n";
  file = data::amend_weights(file, form.ours, {});
  return data::amend_weights(
      models::in_names_of(models::layout_named(form.layout), form.prefix, file), form.theirs,
      metadata);
}

}  // namespace pupil

// What config.json of Hugging Face's transformers says about a network.
#pragma once
#include <nlohmann/json_fwd.hpp>

#include "../models/clip.h"

namespace pupil {

// The fields that are read; those of a class that a file leaves out have the defaults of
// transformers 5.
const std::vector<std::string>& hf_config_fields();

// ViT, DeiT, DINOv2 (with registers), DINOv3: `architectures` (or `architecture`) names the class,
// without a head or for image classification; CLIPModel, SiglipModel: the image tower. Taps as in
// make_vit, make_eva, make_clip. InputError for
// another class or a field that Pupil cannot follow; `where` is the file.
models::Model make_hf(const nlohmann::json& config, const std::string& where, const nn::Scope&,
                      bool has_pooler);

const char* hf_activation(Activation);  // its name there
int hf_resample(models::Filter);        // Pillow's number

// The two towers of CLIPModel or SiglipModel.
models::ClipConfig hf_clip(const nlohmann::json& config, const std::string& where, bool siglip);

// A folder as transformers writes it: config.json, model.safetensors and, for the preprocessing,
// preprocessor_config.json where there is one. The weights have our names. InputError when one of
// the first two is missing or cannot be read.
struct HfFolder {
  std::shared_ptr<const data::Weights> weights;
  std::function<models::Model(const nn::Scope&)> make;
};
bool is_hf_folder(const std::string& path);  // it holds a config.json
HfFolder open_hf_folder(const std::string& path);

}  // namespace pupil

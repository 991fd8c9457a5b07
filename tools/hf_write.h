// A network as Hugging Face's transformers keeps it.
#pragma once
#include "network.h"

namespace pupil {

// The network's file (under our names) under those of transformers; config.json and
// preprocessor_config.json are in the metadata, as data::convert_weights wants them for a folder.
// ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP; InputError for a network that transformers has not.
std::shared_ptr<const data::Weights> in_form_of_hf(const Network&,
                                                   std::shared_ptr<const data::Weights>);

}  // namespace pupil

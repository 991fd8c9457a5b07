// Class names as the texts of a vision-language model: the way from a CLIP checkpoint to the
// classifier of zero_shot.h.
#pragma once
#include "../data/clip_tokenizer.h"
#include "../models/clip.h"

namespace pupil::methods {

// Features of every class name in every template (fill_template), (C, K, d), not normalised: what
// zero_shot_head takes, with the model's logit_scale. Texts longer than the model's context are
// cut.
Tensor class_text_features(const models::Clip&, const data::ClipTokenizer&,
                           std::span<const std::string> names,
                           std::span<const std::string> templates);

}  // namespace pupil::methods

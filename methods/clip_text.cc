#include "clip_text.h"

#include "zero_shot.h"

namespace pupil::methods {
namespace {

// Without the columns that no text needs: a text does not see what comes behind it.
Tensor trimmed(const Tensor& ids) {
  int64_t longest = 1;
  for (int64_t i = 0; i < ids.dim(0); i++) {
    const int64_t* row = ids.data<int64_t>() + i * ids.dim(1);
    for (int64_t k = ids.dim(1); k > longest; k--)
      if (row[k - 1]) longest = k;
  }
  return slice(ids, 1, 0, longest).contiguous();
}

}  // namespace

Tensor class_text_features(const models::Clip& clip, const data::ClipTokenizer& tokenizer,
                           std::span<const std::string> names,
                           std::span<const std::string> templates) {
  if (names.empty()) fail_input("zero-shot: no class names");
  if (templates.empty()) fail_input("zero-shot: no template such as \"a photo of a {}.\"");
  if (clip.logit_bias)
    fail_input("zero-shot: SigLIP reads the ids of another tokenizer, which is not here");
  NoGrad no_grad;
  std::vector<Tensor> classes;
  for (const std::string& name : names) {
    std::vector<std::string> texts;
    for (const std::string& prompt : templates) texts.push_back(fill_template(prompt, name));
    classes.push_back(clip.text(trimmed(tokenizer.tokens(texts, clip.context)), {}));
  }
  return stack(classes, 0);
}

}  // namespace pupil::methods

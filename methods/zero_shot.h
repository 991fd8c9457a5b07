// Zero-shot classification with a vision-language model: a classifier made of text features
// (Radford et al. 2021, arXiv 2103.00020, section 3.1.2; OpenAI CLIP and
// mlvlab/TransMiter@f58085c).
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

// "a photo of a {}." with the class name in place of {}; underscores of the name become spaces.
// InputError for a template without exactly one {} and for an empty name.
std::string fill_template(const std::string& prompt, const std::string& name);

// text (C, K, d): features of C classes under K templates, not normalised; auxiliary (A, K2, d) or
// empty. Each is normalised, the K are averaged, normalised again and multiplied by
// exp(logit_scale): (C + A, d), task rows first. OpenAI CLIP: logit_scale = ln 100.
Tensor zero_shot_head(const Tensor& text, double logit_scale, const Tensor& auxiliary = {});

// features (N, d), head (M, d) -> (N, M): normalised features times head^T.
Tensor zero_shot_logits(const Tensor& features, const Tensor& head);

// A classifier for the same features, trained from the zero-shot one: cross-entropy of
// logit_scale * f W^T over the classes `columns` on all rows at once, `steps` updates of Adam.
// features (N, d), normalised here; labels i64 (N), positions in `columns`; start (C, d), rows of
// length 1. Returns W (C, d), rows not normalised again.
struct HeadOptions {
  double logit_scale = 100, lr = 1e-3;
  int64_t steps = 200;
};
Tensor fine_tune_head(const Tensor& features, const Tensor& labels, const Tensor& start,
                      std::span<const int64_t> columns, const HeadOptions& = {});

// Percent of rows whose label is among the k largest logits, for each k. A tie counts for the class
// of the lower number.
std::vector<double> top_k(const Tensor& logits, const Tensor& labels, std::span<const int64_t> k);

// Rows whose label is in `classes`, in percent correct when only the columns `classes` compete;
// empty when there is no such row.
std::optional<double> accuracy_among(const Tensor& logits, const Tensor& labels,
                                     std::span<const int64_t> classes);

struct BaseNovel {  // percent; empty: no row of that kind
  std::optional<double> base, novel, harmonic_mean;
};
std::optional<double> harmonic_mean(std::optional<double> a, std::optional<double> b);
BaseNovel base_to_novel(const Tensor& logits, const Tensor& labels, std::span<const int64_t> base,
                        std::span<const int64_t> novel);

}  // namespace pupil::methods

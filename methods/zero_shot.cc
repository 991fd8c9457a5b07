#include "zero_shot.h"

#include <algorithm>

#include "../autograd/samples.h"
#include "../nn/optim.h"
#include "../tensor/memory.h"
#include "method.h"

namespace pupil::methods {

std::string fill_template(const std::string& prompt, const std::string& name) {
  size_t at = prompt.find("{}");  // [zero_shot 1]
  if (at == std::string::npos || prompt.find("{}", at + 2) != std::string::npos)
    fail_input("the template \"", prompt, "\" must have exactly one {}, where the class name goes");
  if (name.empty()) fail_input("an empty class name for the template \"", prompt, "\"");
  std::string text = name;
  std::replace(text.begin(), text.end(), '_', ' ');
  return prompt.substr(0, at) + text + prompt.substr(at + 2);
}

namespace {

Tensor class_directions(const Tensor& text) {
  PUPIL_CHECK(text.rank() == 3 && text.dim(1) > 0,
              "zero_shot_head: text features (classes, templates, width) expected, got ",
              text.shape());
  return normalize(mean(normalize(text), {1}));  // [zero_shot 2]
}

}  // namespace

Tensor zero_shot_head(const Tensor& text, double logit_scale, const Tensor& auxiliary) {
  Tensor rows = class_directions(text);
  if (auxiliary) {
    PUPIL_CHECK(auxiliary.rank() == 3 && auxiliary.dim(2) == text.dim(2),
                "zero_shot_head: ", text.shape(), " and auxiliary ", auxiliary.shape(),
                " differ in width");
    rows = cat({rows, class_directions(auxiliary)}, 0);
  }
  return scale(rows, std::exp(logit_scale));  // [zero_shot 3]
}

Tensor zero_shot_logits(const Tensor& features, const Tensor& head) {
  PUPIL_CHECK(features.rank() == 2 && head.rank() == 2 && features.dim(1) == head.dim(1),
              "zero_shot_logits: features ", features.shape(), " and head ", head.shape(),
              " differ in width");
  return linear(normalize(features), head, {});  // [zero_shot 4]
}

Tensor fine_tune_head(const Tensor& features, const Tensor& labels, const Tensor& start,
                      std::span<const int64_t> columns, const HeadOptions& o) {
  PUPIL_CHECK(features.rank() == 2 && start.rank() == 2 && features.dim(1) == start.dim(1) &&
                  labels.shape() == Shape{features.dim(0)},
              "fine_tune_head: features ", features.shape(), ", labels ", labels.shape(),
              ", start ", start.shape());
  nn::Store store(0, features.dtype());
  Tensor weight = nn::Scope(store).param("weight", start.shape(), {nn::Init::zeros});
  copy_into(weight, start);
  nn::OptimizerOptions adam;
  adam.algorithm = nn::Algorithm::adam;
  nn::Optimizer optimizer(store, {{{"weight"}, o.lr, 0}}, adam);
  Tensor x = normalize(features.detach());
  Tensor kept = from(columns, {int64_t(columns.size())});
  for (int64_t step = 0; step < o.steps; step++) {
    StepScope arena;
    optimizer.zero_grad();
    backward(  // [zero_shot 5]
        cross_entropy(scale(linear(x, index_select(weight, kept), {}), o.logit_scale), labels));
    optimizer.step();
  }
  return weight.detach().clone();
}

namespace {

void check_rows(const char* what, const Tensor& logits, const Tensor& labels) {
  PUPIL_CHECK(logits.rank() == 2 && labels.rank() == 1 && logits.dim(0) == labels.dim(0), what,
              ": logits ", logits.shape(), " and labels ", labels.shape());
}

int64_t label_at(const Tensor& labels, int64_t i) { return labels.data<int64_t>()[i]; }

}  // namespace

std::vector<double> top_k(const Tensor& logits, const Tensor& labels, std::span<const int64_t> k) {
  check_rows("top_k", logits, labels);
  int64_t n = logits.dim(0), classes = logits.dim(1);
  std::vector<double> values = logits.values();
  std::vector<int64_t> rank(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) {
    int64_t label = label_at(labels, i);
    PUPIL_CHECK(label >= 0 && label < classes, "top_k: label ", label, " of ", classes, " classes");
    const double* row = values.data() + i * classes;
    for (int64_t j = 0; j < classes; j++)
      rank[size_t(i)] += row[j] > row[label] || (row[j] == row[label] && j < label);
  }
  std::vector<double> percent;
  for (int64_t limit : k)
    percent.push_back(
        n ? 100.0 *
                double(std::count_if(rank.begin(), rank.end(), [=](auto r) { return r < limit; })) /
                double(n)
          : 0);
  return percent;
}

std::optional<double> accuracy_among(const Tensor& logits, const Tensor& labels,
                                     std::span<const int64_t> classes) {
  check_rows("accuracy_among", logits, labels);
  std::vector<double> values = logits.values();
  int64_t rows = 0, right = 0;
  for (int64_t i = 0; i < logits.dim(0); i++) {
    int64_t label = label_at(labels, i);
    if (std::find(classes.begin(), classes.end(), label) == classes.end()) continue;
    const double* row = values.data() + i * logits.dim(1);
    auto best = std::max_element(classes.begin(), classes.end(), [&](int64_t a, int64_t b) {
      return row[a] < row[b] || (row[a] == row[b] && a > b);
    });
    rows++;
    right += *best == label;
  }
  if (rows == 0) return {};  // [zero_shot 6]
  return 100 * double(right) / double(rows);
}

std::optional<double> harmonic_mean(std::optional<double> a, std::optional<double> b) {
  if (!a || !b) return {};
  return *a + *b == 0 ? 0 : 2 * *a * *b / (*a + *b);  // [zero_shot 7]
}

BaseNovel base_to_novel(const Tensor& logits, const Tensor& labels, std::span<const int64_t> base,
                        std::span<const int64_t> novel) {
  BaseNovel r{accuracy_among(logits, labels, base), accuracy_among(logits, labels, novel), {}};
  r.harmonic_mean = harmonic_mean(r.base, r.novel);
  return r;
}

Method zero_shot_pipeline() {
  Method m;
  m.name = "zero_shot";
  m.summary = "a classifier made of text features, a head trained from it, base-to-novel accuracy";
  m.source = "Radford et al. 2021, arXiv 2103.00020, section 3.1.2; mlvlab/TransMiter@f58085c";
  m.options = {
      {"weak.logit_scale", HeadOptions().logit_scale, "exp of the weak model's logit_scale",
       "OpenAI CLIP"},
      {"strong.logit_scale", HeadOptions().logit_scale, "of the strong model's", "OpenAI CLIP"},
      {"data.protocol", std::string("base_to_base"), "base_to_base or base_to_novel", "paper"},
      {"data.shots", int64_t(0), "labelled samples of a class; 0: all", "16 in the paper"}};
  m.explanation.symbols = {{"t_ck", "(d)", "text feature of class c in template k"},
                           {"f", "(N, d)", "image features"},
                           {"head", "(M, d)", "task classes, then auxiliary ones"}};
  m.explanation.equations = {
      {"1", "text of class c = template with c in place of {}, underscores as spaces"},
      {"2", "t_c = normalise(mean_k normalise(t_ck))"},
      {"3", "head_c = exp(logit_scale) t_c"},
      {"4", "z = normalise(f) head'"},
      {"5",
       "fine-tuned: head from 3, 200 steps of Adam 1e-3 on all rows, CE(logit_scale normalise(f) "
       "W', y)"},
      {"6", "accuracy of base rows among base columns, of novel rows among novel columns"},
      {"7", "HM = 2 B N / (B + N)"}};
  m.explanation.cases = {"clip.zero_shot_head", "clip.zero_shot_logits", "metrics.topk",
                         "metrics.base_novel"};
  return m;
}

PUPIL_SAMPLES(zero_shot_head) {
  s.add("ensemble", {{4, 3, 6}}, [](auto& v) { return zero_shot_head(v[0], std::log(100.0)); });
  s.add("auxiliary", {{4, 1, 6}, {5, 2, 6}}, [](auto& v) { return zero_shot_head(v[0], 1, v[1]); });
  s.add_error("matrix", {{4, 6}}, [](auto& v) { return zero_shot_head(v[0], 1); });
  s.add_error("other width", {{4, 1, 6}, {5, 1, 7}},
              [](auto& v) { return zero_shot_head(v[0], 1, v[1]); });
}
PUPIL_SAMPLES(zero_shot_logits) {
  s.add("rows", {{3, 6}, {5, 6}}, [](auto& v) { return zero_shot_logits(v[0], v[1]); });
  s.add_error("other width", {{3, 6}, {5, 7}},
              [](auto& v) { return zero_shot_logits(v[0], v[1]); });
}

}  // namespace pupil::methods

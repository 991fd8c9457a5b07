#include "program.h"
#include "toml_fields.h"
#include "transmiter_job.h"

namespace pupil {

using namespace toml_fields;

namespace {

template <class V, class C>
void class_fields(V& v, C& c) {
  v("names", c.names, "text file: a class name a line, in the order of the text features");
  v("task", c.task, "task classes in the order of the labels");
  v("templates", c.templates, "of the stored text features, {} for the class name");
  v("auxiliary", c.auxiliary,
    "random, hard_neg, fps, easy_fps, mix_fps, top_std, std_fps, random_vectors",
    OneOf{{"random", "hard_neg", "fps", "easy_fps", "mix_fps", "top_std", "std_fps",
           "random_vectors"}});
  v("order", c.order, "instead: .npy with the row of each class, task classes first");
  v("seed", c.seed, "of the auxiliary classes", Range{0});
  v("clean_names", c.clean_names, "repair UTF-8 that was read as Latin-1, straighten quotes");
  v("vocabulary", c.vocabulary, "of CLIP checkpoints; \"\": merges.txt and the like beside them");
}

template <class V, class C>
void sample_fields(V& v, C& c) {
  v("train_images", c.train_images, "for CLIP checkpoints: KIND:PATH[:SPLIT], with its labels");
  v("test_images", c.test_images, "the same");
  v("train_labels", c.train_labels, "of stored features: .npy, whole numbers (N)");
  v("test_labels", c.test_labels, ".npy");
  v("train_rows", c.train_rows, ".npy: rows to use, or \"\" for all");
  v("test_rows", c.test_rows, ".npy: rows to use, or \"\" for all");
  v("labels", c.labels, "label of each task class in the files; []: 0, 1, 2, ...");
  v("shots", c.shots, "labelled samples of a class, drawn by the seed; 0: all", Range{0});
  v("unlabelled", c.unlabelled, "train, or few_shot: the labelled samples without their labels",
    OneOf{{"train", "few_shot"}});
  v("protocol", c.protocol, "base_to_base, base_to_novel",
    OneOf{{"base_to_base", "base_to_novel"}});
  v("base", c.base, "base classes of base_to_novel; []: the first half");
}

template <class V, class C>
void model_fields(V& v, C& c) {
  v("model", c.model, "of a CLIP checkpoint, as pupil models names it; \"\": the file says it");
  v("weights", c.weights, "the checkpoint, instead of text, train and test");
  v("text", c.text, ".npy: text features (names, d) or (names, templates, d)");
  v("train", c.train, "image features (N, d): .npy, or a file of `pupil features`");
  v("test", c.test, "image features");
  v("head", c.head, ".npy: fine-tuned classifier (classes, d), or");
  v("train_logits", c.train_logits, ".npy files: logits (N, classes) of fine-tuned models");
  v("test_logits", c.test_logits, ".npy files");
  v("confidence_weighted", c.confidence_weighted, "several models: by confidence, not the mean");
  v("logit_scale", c.logit_scale, "exp of the model's logit_scale", Range{0, kInf, true});
}

template <class V, class C>
void transmiter_fields(V& v, C& c) {
  v("adapter", c.adapter, "use this extracted adapter instead of training one");
  v("logits", c.logits, "M: task and auxiliary classes", Range{2, 65536});
  v("latent", c.latent, "D, at least M; 0: M", Range{0, 65536});
  v("hidden", c.hidden, "H; 0: 4 D", Range{0, 1e6});
  v("basis", c.basis, "expm, cayley, frozen", OneOf{{"expm", "cayley", "frozen"}});
  v("alpha", c.alpha, "factor of the MLP");
  v("temperature", c.temperature, "tau", Range{0, kInf, true});
  v("teacher_temperature", c.teacher_temperature, "tau', sharpens the target",
    Range{0, kInf, true});
  v("noise", c.noise, "share of a row's deviation, in half of the batches", Range{0});
  v("lr", c.lr, "of AdamW", Range{0, kInf, true});
  v("weight_decay", c.weight_decay, "of every parameter", Range{0});
  v("warmup", c.warmup, "share of all steps", Range{0, 1});
  v("epochs", c.epochs, "0: the adapter stays the identity", Range{0, 1e6});
  v("batch", c.batch, "samples in a step", Range{1, 1e6});
  v("beta", c.beta, "pull of the basis change to the identity; each is reported, the first kept",
    Range{0});
  v("rotation", c.rotation, "no reflections in the basis change");
}

template <class V, class C>
void plus_fields(V& v, C& c) {
  v("modes", c.modes, "TransMiter+: orthogonal, free, mlp_only; []: none",
    OneOf{{"orthogonal", "free", "mlp_only"}});
  v("lr", c.lr, "of AdamW", Range{0, kInf, true});
  v("weight_decay", c.weight_decay, "", Range{0});
  v("epochs", c.epochs, "", Range{0, 1e6});
  v("batch", c.batch, "samples in a step", Range{1, 1e6});
  v("from_scratch", c.from_scratch, "also on the strong model without extraction");
}

template <class V, class C>
void eft_fields(V& v, C& c) {
  v("mode", c.mode, "proxy, base_change, ensemble, self_ensemble",
    OneOf{{"proxy", "base_change", "ensemble", "self_ensemble"}});
  v("alpha", c.alpha, "each is reported; []: none");
  v("dynamic", c.dynamic, "also dynamic logit fusion");
}

template <class V, class C>
void tip_adapter_fields(V& v, C& c) {
  v("alpha", c.alpha, "weight of the cache, in pairs with beta; []: none", Range{0});
  v("beta", c.beta, "sharpness of the cache", Range{0});
}

template <class V, class C>
void linear_probe_fields(V& v, C& c) {
  v("c", c.c, "weight of the data against the penalty; each is reported; []: none",
    Range{0, kInf, true});
  v("choose_c", c.choose_c, "also c chosen on up to 4 samples of a class beyond data.shots");
}

// f(section, fields of the section) for every section.
template <class C, class F>
void each_section(C& c, const F& f) {
  f("classes", [&](auto& v) { class_fields(v, c.classes); });
  f("data", [&](auto& v) { sample_fields(v, c.data); });
  f("weak", [&](auto& v) { model_fields(v, c.weak); });
  f("strong", [&](auto& v) { model_fields(v, c.strong); });
  f("transmiter", [&](auto& v) { transmiter_fields(v, c.transmiter); });
  f("plus", [&](auto& v) { plus_fields(v, c.plus); });
  f("eft", [&](auto& v) { eft_fields(v, c.eft); });
  f("tip_adapter", [&](auto& v) { tip_adapter_fields(v, c.tip_adapter); });
  f("linear_probe", [&](auto& v) { linear_probe_fields(v, c.linear_probe); });
  f("run", [&](auto& v) { v("seeds", c.seeds, "one run each", Range{0}); });
}

// What no single key can say.
void check(const TransmiterConfig& c, const std::string& file) {
  auto given = [&](const std::string& key, const std::string& value) {
    if (value.empty()) fail_input(file, ": ", key, " is missing");
  };
  given("classes.names", c.classes.names);
  const bool images = !c.data.train_images.empty();
  if (images != !c.data.test_images.empty())
    fail_input(file, ": give data.train_images and data.test_images, or neither");
  for (auto& [key, labels] : {std::pair{"data.train_labels", &c.data.train_labels},
                              {"data.test_labels", &c.data.test_labels}}) {
    if (images && !labels->empty())
      fail_input(file, ": ", key, " is given, but the images have their own labels");
    if (!images) given(key, *labels);
  }
  for (const auto* model : {&c.weak, &c.strong}) {
    std::string section = model == &c.weak ? "weak" : "strong";
    if (images && model->train.empty() && model->test.empty() && model->text.empty()) {
      given(section + ".weights", model->weights);
    } else {
      if (!model->weights.empty())
        fail_input(file, ": ", section, images ? ".weights and stored features" : ".weights",
                   images ? ", one of them" : " needs data.train_images and data.test_images");
      given(section + ".text", model->text);
      given(section + ".train", model->train);
      given(section + ".test", model->test);
    }
    if (!model->head.empty() && !model->train_logits.empty())
      fail_input(file, ": give ", section, ".head or ", section, ".train_logits, not both");
    if (model->train_logits.size() != model->test_logits.size())
      fail_input(file, ": ", section, ".train_logits and ", section,
                 ".test_logits must name the same fine-tuned models");
  }
  if (c.classes.task.empty())
    fail_input(file, ": classes.task is missing: the names of the classes");
  int64_t classes = int64_t(c.classes.task.size()), m = c.transmiter.logits;
  if (m < classes)
    fail_input(file, ": transmiter.logits is ", m, ", but there are ", classes, " task classes");
  if (c.transmiter.latent && c.transmiter.latent < m)
    fail_input(file, ": transmiter.latent is ", c.transmiter.latent,
               ", less than transmiter.logits, ", m);
  if (!c.data.labels.empty() && c.data.labels.size() != c.classes.task.size())
    fail_input(file, ": data.labels has ", c.data.labels.size(), " labels for ", classes,
               " task classes");
  if (c.transmiter.beta.empty()) fail_input(file, ": transmiter.beta is empty");
  if (c.tip_adapter.alpha.size() != c.tip_adapter.beta.size())
    fail_input(file, ": tip_adapter.alpha and tip_adapter.beta must be equally long");
  if (c.linear_probe.choose_c && c.data.shots == 0)
    fail_input(file, ": linear_probe.choose_c takes the samples that data.shots leaves: give it");
  check_seeds("run.seeds", c.seeds, file);
}

}  // namespace

TransmiterConfig read_transmiter_config(const std::string& path,
                                        const std::vector<std::string>& settings) {
  toml::table root = parse_with_recipe(path);
  for (const std::string& setting : settings) apply_setting(root, setting);
  TransmiterConfig config;
  std::vector<std::string> sections;
  each_section(config, [&](const char* name, const auto& fields) {
    sections.push_back(name);
    const toml::table* table = section_of(root, name, path);
    if (!table) return;
    Reader reader(*table, name, path);
    fields(reader);
    reader.finish();
  });
  if (root.contains("student")) fail_input(path, " is a configuration of `pupil train`");
  require_sections(root, sections, path);
  check(config, path);
  return config;
}

namespace {

// Puts the seed in place of {seed} in every text.
struct SeedFiller {
  std::string seed;

  void fill(std::string& text) const {
    size_t at = text.find("{seed}");
    if (at != std::string::npos) text.replace(at, 6, seed);
  }
  template <class T, class Limit = Any>
  void operator()(const char*, T& field, const char*, const Limit& = {}) const {
    if constexpr (std::is_same_v<T, std::string>) fill(field);
    if constexpr (std::is_same_v<T, std::vector<std::string>>)
      for (std::string& text : field) fill(text);
  }
};

}  // namespace

TransmiterConfig for_seed(TransmiterConfig config, int64_t seed) {
  SeedFiller filler{std::to_string(seed)};
  sample_fields(filler, config.data);
  model_fields(filler, config.weak);
  model_fields(filler, config.strong);
  return config;
}

bool is_transmiter(const std::string& path) { return parse_with_recipe(path).contains("classes"); }

std::string to_toml(const TransmiterConfig& config) {
  std::ostringstream out;
  Writer writer(out, false);
  out << "# TransMiter on stored features, pupil " << version()
      << ". Paths are relative to where it starts.\n";
  each_section(config, [&](const std::string& name, const auto& fields) {
    writer.section("[" + name + "]");
    fields(writer);
  });
  return out.str();
}

}  // namespace pupil

#include "config.h"

#include "program.h"
#include "toml_fields.h"

namespace pupil {

using namespace toml_fields;

namespace {

// Every key once: name, field, help, limit. V is the reader or the writer.
template <class V, class C>
void data_fields(V& v, C& c) {
  v("train", c.train, "KIND:PATH[:SPLIT[N]]; [N]: a stratified subset of N samples");
  v("validation", c.validation, "a data set of its own for choosing the best epoch, or \"\"");
  v("validation_share", c.validation_share, "or this share of train", Range{0, 0.9});
  v("test", c.test, "used once, after training, or \"\"");
  v("seed", c.seed, "of subsets and the validation share", Range{0});
  v("strict", c.strict, "an unreadable image is an error");
  v("workers", c.workers, "threads that decode images", Range{0, 64});
}

template <class V, class C>
void network_fields(V& v, C& c) {
  v("model", c.model, "`pupil models` lists them");
  v("weights", c.weights, "safetensors, .pth or .th file, or \"\"; of networks A+B: FILE+FILE");
  v("image", c.image, "side in pixels; 0: the model's own", Range{0, 4096});
  v("mean", c.mean, "of pixels in [0, 1], per channel; []: as trained");
  v("std", c.std, "of pixels in [0, 1], per channel; []: as trained");
}

template <class V, class C>
void student_fields(V& v, C& c) {
  network_fields(v, c);
  v("head", c.head, "keep; new: a fresh classifier on given weights", OneOf{{"keep", "new"}});
  v("freeze", c.freeze, "patterns of parameters that stay, as [\"layer1.*\"]");
  v("dropout", c.dropout, "of vision transformers", Range{0, 0.999});
  v("drop_path", c.drop_path, "stochastic depth of vision transformers", Range{0, 0.999});
}

template <class V, class C>
void teacher_fields(V& v, C& c) {
  v("name", c.name, "in messages");
  network_fields(v, c);
  v("features", c.features, "files of `pupil features`, in place of model and weights");
  v("test_features", c.test_features, "the same of data.test, for ft with early_stop_on = test");
}

template <class V, class C>
void train_fields(V& v, C& c) {
  v("epochs", c.epochs, "passes over the training data, or", Range{0, 1e6});
  v("steps", c.steps, "updates", Range{0, 1e9});
  v("batch", c.batch, "samples in a batch", Range{1, 1e6});
  v("accumulate", c.accumulate,
    "batches in an update; batch norm and losses over pairs see each alone", Range{1, 1e6});
  v("optimizer", c.optimizer, "sgd, adam, adamw, rmsprop, lamb",
    OneOf{{"sgd", "adam", "adamw", "rmsprop", "lamb"}});
  v("lr", c.lr, "learning rate", Range{0, kInf, true});
  v("weight_decay", c.weight_decay, "L2 for sgd, adam and rmsprop, decoupled for adamw and lamb",
    Range{0});
  v("momentum", c.momentum, "of sgd and rmsprop", Range{0, 1});
  v("nesterov", c.nesterov, "of sgd");
  v("beta1", c.beta1, "of adam, adamw and lamb", Range{0, 0.999999});
  v("beta2", c.beta2, "of adam, adamw and lamb", Range{0, 0.999999});
  v("eps", c.eps, "of adam, adamw, rmsprop and lamb (timm's lamb: 1e-6)", Range{0, 1, true});
  v("alpha", c.alpha, "of rmsprop: keeps this share of the mean square", Range{0, 0.999999});
  v("centered", c.centered, "of rmsprop: divides by the variance");
  v("trust_clip", c.trust_clip, "of lamb: trust ratio at most 1");
  v("always_adapt", c.always_adapt, "of lamb: trust ratio without weight decay too");
  v("schedule", c.schedule,
    "constant, multistep, step, cosine, cosine_cycles, linear (to 0), onecycle",
    OneOf{{"constant", "multistep", "step", "cosine", "cosine_cycles", "linear", "onecycle"}});
  v("warmup", c.warmup, "epochs of linear warm-up; not of onecycle", Range{0, 1e6});
  v("warmup_start", c.warmup_start, "share of lr that it begins with", Range{0, 1});
  v("floor", c.floor, "cosine, cosine_cycles: lowest share of lr", Range{0, 1});
  v("milestones", c.milestones, "multistep: epochs after which lr *= gamma", Range{0});
  v("step_size", c.step_size, "step: lr *= gamma every so many epochs", Range{1, 1e6});
  v("gamma", c.gamma, "of multistep and step", Range{0, 1});
  v("cycle", c.cycle, "cosine_cycles: epochs of the first cycle", Range{0, 1e6});
  v("cycle_mul", c.cycle_mul, "cosine_cycles: length of a cycle by that before", Range{1, 1e6});
  v("cycle_decay", c.cycle_decay, "cosine_cycles: peak of a cycle by that before", Range{0, 1});
  v("pct_start", c.pct_start, "onecycle: share of the training in which lr rises", Range{0, 1});
  v("div_factor", c.div_factor, "onecycle: it begins with lr / this", Range{1});
  v("final_div_factor", c.final_div_factor, "onecycle: and ends with the first lr / this",
    Range{1});
  v("base_momentum", c.base_momentum, "onecycle: momentum or beta1 at the peak, if it is smaller",
    Range{0, 1, true});
  v("schedule_per", c.schedule_per,
    "step, or epoch: lr changes between epochs, steps become whole epochs",
    OneOf{{"step", "epoch"}});
  v("freeze_batches", c.freeze_batches,
    "never, always: each epoch has the batches of the first; auto: up to 100 of them",
    OneOf{{"never", "always", "auto"}});
  v("prior_freq", c.prior_freq,
    "the student learns in every k-th step of an epoch, else what the methods train alone",
    Range{1, 1e6});
  v("precision", c.precision,
    "of activations and products, weights and sums stay f32; auto: bf16 where it is faster",
    OneOf{{"f32", "bf16", "auto"}});
  v("clip_norm", c.clip_norm, "largest norm of the gradient; 0: any (timm's lamb: 1)", Range{0});
  v("ema_decay", c.ema_decay, "the moving average of the weights is tested and kept; 0: off",
    Range{0, 0.999999});
  v("ema_warmup", c.ema_warmup, "decay of step t at most 1 - t^(-2/3)");
  v("label_smoothing", c.label_smoothing, "of the cross-entropy", Range{0, 0.999});
  v("ce_weight", c.ce_weight, "factor of the cross-entropy beside the methods", Range{0});
  v("seed", c.seed, "of weights, order, augmentation, dropout", Range{0});
  v("patience", c.patience,
    "stop after so many epochs that are not the best on validation samples; 0: never",
    Range{0, 1e6});
  v("checkpoint_every", c.checkpoint_every, "steps; 0: every epoch", Range{0});
}

template <class V, class C>
void augment_fields(V& v, C& c) {
  v("crop_padding", c.crop_padding, "pixels of zeros around, then a random crop", Range{0, 1024});
  v("flip", c.flip, "left-right, half of the time");
  v("random_resized_crop", c.random_resized_crop, "smallest share of the area; 0: off",
    Range{0, 1});
  v("mixup", c.mixup, "a of Beta(a, a); 0: off", Range{0});
  v("cutmix", c.cutmix, "a of Beta(a, a); 0: off", Range{0});
  v("views", c.views, "every so many epochs show each image the same way again; 0: never",
    Range{0, 1e6});
}

// A method's keys besides name and weight are the options that it declares.
methods::Choice read_method(const toml::table& table, const std::string& file) {
  methods::Choice choice;
  double weight = 0;
  {
    Reader name_only(table, "method", file);
    name_only("name", choice.method, "");
    if (choice.method.empty()) fail_input(where(table, file), ": [[method]] needs a name");
  }
  const methods::Method* method = nullptr;
  try {
    method = &methods::find_method(choice.method);
  } catch (const InputError& error) {
    fail_input(where(*table.get("name"), file), ": ", error.what());
  }
  Reader reader(table, "method." + choice.method, file);
  weight = method->weight;
  reader("name", choice.method, "");
  reader("weight", weight, "", Range{0});
  choice.weight = weight;
  for (const methods::Option& option : method->options)
    std::visit(
        [&](auto value) {
          reader(option.name.c_str(), value, "");
          choice.options.emplace_back(option.name, value);
        },
        option.value);
  reader.finish();
  return choice;
}

Config read_table(const toml::table& root, const std::string& file) {
  Config config;
  if (root.contains("classes") && !root.contains("train"))
    fail_input(file, " is a configuration of `pupil transmiter`");
  require_sections(root, {"data", "student", "teacher", "method", "train", "augment"}, file);
  auto read = [&](const char* name, auto fields, auto& section) {
    const toml::table* table = section_of(root, name, file);
    if (!table) return;
    Reader reader(*table, name, file);
    fields(reader, section);
    reader.finish();
  };
  read(
      "data", [](auto& v, auto& c) { data_fields(v, c); }, config.data);
  read(
      "student", [](auto& v, auto& c) { student_fields(v, c); }, config.student);
  read(
      "train", [](auto& v, auto& c) { train_fields(v, c); }, config.train);
  read(
      "augment", [](auto& v, auto& c) { augment_fields(v, c); }, config.augment);
  for (const toml::table* table : list_of(root, "teacher", file)) {
    TeacherConfig teacher;
    Reader reader(*table, "teacher", file);
    teacher_fields(reader, teacher);
    reader.finish();
    if (teacher.name.empty()) teacher.name = concat("teacher", config.teachers.size());
    config.teachers.push_back(std::move(teacher));
  }
  for (const toml::table* table : list_of(root, "method", file))
    config.methods.push_back(read_method(*table, file));
  if (!config.train.ce_weight)
    config.train.ce_weight =
        config.methods.empty() ? 1 : methods::find_method(config.methods[0].method).ce_weight;
  return config;
}

// What no single key can say.
void check(const Config& c, const std::string& file) {
  if (c.data.train.empty())
    fail_input(file, ": data.train is missing: where are the training samples? KIND:PATH[:SPLIT]");
  if (!c.data.validation.empty() && c.data.validation_share > 0)
    fail_input(file, ": give data.validation or data.validation_share, not both");
  if (c.student.model.empty() && c.student.weights.empty())
    fail_input(file, ": student.model is missing; `pupil models` lists the names");
  if (c.student.head == "new" && c.student.weights.empty())
    fail_input(file, ": student.head = \"new\" needs student.weights");
  if (c.train.epochs > 0 && c.train.steps > 0)
    fail_input(file, ": give train.epochs or train.steps, not both");
  if (c.train.epochs == 0 && c.train.steps == 0)
    fail_input(file, ": train.epochs is 0: nothing to train; set it (or train.steps) to 1 or more");
  for (const TeacherConfig& t : c.teachers) {
    if (!t.features.empty() && !(t.model.empty() && t.weights.empty()))
      fail_input(file, ": teacher ", t.name, ": give model and weights, or features, not both");
    if (t.features.empty() && t.weights.empty())
      fail_input(file, ": teacher ", t.name, ": weights (of a trained network) or features (files ",
                 "of `pupil features`) are missing");
  }
  for (const TeacherConfig& t : c.teachers)
    if (!t.test_features.empty() && (t.features.empty() || c.data.test.empty()))
      fail_input(file, ": teacher ", t.name, ": test_features go with features and data.test");
  if (c.train.patience && c.data.validation.empty() && c.data.validation_share == 0)
    fail_input(file, ": train.patience waits for a better epoch on validation samples; give ",
               "data.validation or data.validation_share");
  for (const methods::Choice& m : c.methods)
    if (methods::find_method(m.method).needs_teacher && c.teachers.empty())
      fail_input(file, ": method ", m.method, " needs a teacher: add a [[teacher]] section");
}

Config config_of(toml::table root, const std::string& name,
                 const std::vector<std::string>& settings) {
  for (const std::string& setting : settings) apply_setting(root, setting);
  Config config = read_table(root, name);
  check(config, name);
  return config;
}

}  // namespace

Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& settings) {
  return config_of(parse_table(text, name), name, settings);
}

Config read_config(const std::string& path, const std::vector<std::string>& settings) {
  return parse_config(read_text(path), path, settings);
}

namespace {

// `parse` is called anew for every arm: a copied value forgets the line that messages name.
Study study_of(const std::function<toml::table()>& parse, const std::string& path,
               const std::vector<std::string>& settings) {
  toml::table root = parse();
  Study study;
  study.seeds = {0};
  if (const toml::table* table = section_of(root, "study", path)) {
    Reader reader(*table, "study", path);
    reader("seeds", study.seeds, "", Range{0});
    reader("lr", study.lr, "", Range{0, kInf, true});
    reader("lr_epochs", study.lr_epochs, "", Range{0});
    reader("retrain", study.retrain, "");
    reader.finish();
    if (!root.contains("arm")) fail_input(path, ": [study] needs at least one [[arm]]");
  }
  check_seeds("study.seeds", study.seeds, path);
  for (size_t i = 0; i < list_of(root, "arm", path).size(); i++) {
    toml::table merged = parse(), arm = std::move(*merged["arm"][i].as_table());
    merged.erase("study");
    merged.erase("arm");
    std::string name = arm["name"].value_or(std::string());
    bool plain = !name.empty() && name.find('/') == std::string::npos && name[0] != '.';
    if (!plain) fail_input(where(arm, path), ": every [[arm]] needs a name, as name = \"kd\"");
    for (const Study::Arm& other : study.arms)
      if (other.name == name) fail_input(where(arm, path), ": two arms are called ", name);
    arm.erase("name");
    merge(merged, std::move(arm));
    study.arms.push_back({name, config_of(std::move(merged), path, settings)});
    const Config& config = study.arms.back().config;
    if (study.lr.size() > 1 && config.data.validation.empty() && config.data.validation_share == 0)
      fail_input(path, ": study.lr chooses on validation samples: give data.validation_share");
    if (study.retrain && (study.lr.size() < 2 || config.data.validation_share == 0))
      fail_input(path, ": study.retrain trains on the samples that chose the learning rate too: ",
                 "give two of study.lr or more, and data.validation_share");
  }
  return study;
}

template <class V>
void reproduction_fields(V& v, Reproduction& r) {
  v("title", r.title, "");
  v("source", r.source, "");
  v("protocol", r.protocol, "");
  v("differs", r.differs, "");
  v("recipe", r.recipe, "");
  v("teacher", r.teacher, "");
}

template <class V>
void need_fields(V& v, Reproduction::Need& n) {
  v("setting", n.setting, "");
  v("path", n.path, "");
  v("what", n.what, "");
  v("make", n.make, "");
}

template <class V>
void result_fields(V& v, Reproduction::Result& r) {
  v("arm", r.arm, "");
  v("minus", r.minus, "");
  v("error_over", r.error_over, "");
  v("score", r.score, "", OneOf{{"accuracy", "base", "novel", "harmonic_mean"}});
  v("weights", r.weights, "", OneOf{{"last", "best"}});
  v("published", r.published, "");
  v("source", r.source, "");
  v("band", r.band, "", Range{-100, 100});
  v("seed_band", r.seed_band, "", Range{-100, 100});
  v("sigma", r.sigma, "", Range{0, 100});
}

}  // namespace

Study read_study(const std::string& path, const std::vector<std::string>& settings) {
  std::string text = read_text(path);
  return study_of([&] { return parse_table(text, path); }, path, settings);
}

Reproduction read_reproduction(const std::string& path) {
  toml::table root = parse_table(read_text(path), path);
  const toml::table* section = section_of(root, "reproduce", path);
  if (!section) fail_input(path, ": a reproduction needs a section [reproduce]");
  Reproduction r;
  Reader reader(*section, "reproduce", path);
  reproduction_fields(reader, r);
  reader.known("needs");
  reader.known("result");
  reader.finish();
  for (const toml::table* table : list_of(*section, "needs", path)) {
    Reader fields(*table, "reproduce.needs", path);
    need_fields(fields, r.needs.emplace_back());
    fields.finish();
  }
  for (const toml::table* table : list_of(*section, "result", path)) {
    Reader fields(*table, "reproduce.result", path);
    Reproduction::Result& result = r.results.emplace_back();
    result_fields(fields, result);
    fields.finish();
    auto is_band = [](const std::vector<double>& b) { return b.size() == 2 && b[0] <= b[1]; };
    if (result.arm.empty() || !is_band(result.band) ||
        !(result.seed_band.empty() || is_band(result.seed_band)))
      fail_input(where(*table, path), ": every [[reproduce.result]] needs an arm and a band, as ",
                 "band = [90.0, 91.5]");
    if (!result.minus.empty() && !result.error_over.empty())
      fail_input(where(*table, path), ": a [[reproduce.result]] has minus or error_over, not both");
  }
  if (r.results.empty()) fail_input(path, ": a reproduction needs a [[reproduce.result]]");
  for (std::string* file : {&r.recipe, &r.teacher})
    if (!file->empty()) *file = beside(path, *file);
  return r;
}

Study read_reproduced_study(const std::string& path, const std::vector<std::string>& settings) {
  Reproduction r = read_reproduction(path);
  auto parse = [&] { return parse_with_recipe(path); };
  Study study = study_of(parse, path, settings);
  if (study.arms.empty()) study.arms.push_back({"student", config_of(parse(), path, settings)});
  for (const Reproduction::Result& result : r.results) {
    if (result.score != "accuracy")
      fail_input(path, ": reproduce.result.score \"", result.score, "\" is for base_to_novel");
    for (const std::string& arm : {result.arm, result.minus, result.error_over})
      if (!arm.empty() && std::none_of(study.arms.begin(), study.arms.end(),
                                       [&](const Study::Arm& a) { return a.name == arm; }))
        fail_input(path, ": reproduce.result names the arm ", arm, ", which the study lacks");
  }
  return study;
}

namespace {

void write(Writer& writer, const Config& config, const std::string& parent = "") {
  writer.section("[" + parent + "data]");
  data_fields(writer, config.data);
  writer.section("[" + parent + "student]");
  student_fields(writer, config.student);
  for (const TeacherConfig& teacher : config.teachers) {
    writer.section("[[" + parent + "teacher]]", "frozen; several may be given");
    teacher_fields(writer, teacher);
  }
  for (const methods::Choice& choice : config.methods) {
    const methods::Method& method = methods::find_method(choice.method);
    writer.section("[[" + parent + "method]]", method.summary + "; " + method.source);
    writer("name", choice.method, "");
    writer("weight", choice.weight.value_or(method.weight), "factor of this loss in the total");
    for (auto& [name, value] : choice.options) {
      std::string help;
      for (const methods::Option& option : method.options)
        if (option.name == name) help = option.help;
      writer(name, value, help);
    }
  }
  writer.section("[" + parent + "train]");
  train_fields(writer, config.train);
  writer.section("[" + parent + "augment]", "of the training images");
  augment_fields(writer, config.augment);
}

void write_title(std::ostream& out, const char* what) {
  out << "# A " << what << " of pupil " << version()
      << ". Paths are relative to where it starts.\n";
}

}  // namespace

std::string to_toml(const Config& config, bool commented) {
  std::ostringstream out;
  Writer writer(out, commented);
  write_title(out, "training run");
  write(writer, config);
  return out.str();
}

std::string to_toml(const Study& study) {
  std::ostringstream out;
  Writer writer(out, false);
  write_title(out, "study");
  writer.section("[study]");
  writer("seeds", study.seeds, "");
  writer("lr", study.lr, "");
  writer("lr_epochs", study.lr_epochs, "");
  writer("retrain", study.retrain, "");
  for (const Study::Arm& arm : study.arms) {
    writer.section("[[arm]]");
    writer("name", arm.name, "");
    write(writer, arm.config, "arm.");
  }
  return out.str();
}

}  // namespace pupil

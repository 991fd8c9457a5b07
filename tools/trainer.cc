#include <algorithm>
#include <nlohmann/json.hpp>

#include "../tensor/memory.h"
#include "machine.h"
#include "program.h"
#include "train.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kDiverged =
    "; if the training diverges, try a smaller train.lr or set train.clip_norm";

struct LiveOrStored {
  std::string name;
  std::optional<Network> network;
  mutable nn::Prepared prepared;                     // of the network, which never learns
  size_t input = 0;                                  // of a live one: which of the loader's images
  std::vector<data::FeatureFile> files, test_files;  // of the training and of the test samples
};

nn::OptimizerOptions optimizer_options(const TrainConfig& c) {
  static const std::map<std::string, nn::Algorithm> algorithms = {
      {"sgd", nn::Algorithm::sgd},
      {"adam", nn::Algorithm::adam},
      {"adamw", nn::Algorithm::adamw},
      {"rmsprop", nn::Algorithm::rmsprop},
      {"lamb", nn::Algorithm::lamb}};
  nn::OptimizerOptions o;
  o.algorithm = algorithms.at(c.optimizer);
  o.momentum = c.optimizer == "sgd" || c.optimizer == "rmsprop" ? c.momentum : 0;
  o.nesterov = c.nesterov;
  o.beta1 = c.beta1;
  o.beta2 = c.beta2;
  o.eps = c.eps;
  o.alpha = c.alpha;
  o.centered = c.centered;
  o.max_grad_norm = 0;  // that is train.clip_norm
  o.trust_clip = c.trust_clip;
  o.always_adapt = c.always_adapt;
  return o;
}

struct Schedules {
  std::function<double(int64_t)> lr, momentum;  // momentum: null where it stays
};

// total, and `epoch`, in the unit of the schedule: steps or epochs.
Schedules schedules_of(const TrainConfig& c, int64_t total, int64_t epoch) {
  int64_t warmup = std::llround(c.warmup * double(epoch));
  if (warmup >= total && warmup > 0)
    fail_input("train.warmup is ", c.warmup, " epochs, as long as the whole training");
  if (c.schedule == "onecycle") {
    if (warmup > 0) fail_input("train.warmup: onecycle has a rise of its own, train.pct_start");
    if (c.pct_start * double(total) <= 1)
      fail_input("train.pct_start is ", c.pct_start, " of ", total, " ", c.schedule_per,
                 "s; onecycle rises for more than one");
    nn::OneCycle s{.total = total,
                   .rise = c.pct_start,
                   .start = 1 / c.div_factor,
                   .end = 1 / c.final_div_factor};
    s.high_momentum = c.optimizer == "sgd" || c.optimizer == "rmsprop" ? c.momentum : c.beta1;
    s.low_momentum = std::min(c.base_momentum, s.high_momentum);
    return {s, [s](int64_t t) { return s.momentum(t); }};
  }
  if (c.schedule == "cosine_cycles") {
    nn::CosineCycles s;
    s.length = c.cycle * double(epoch);
    if (s.length < 1)
      fail_input("train.cycle is ", c.cycle, " epochs, less than one ", c.schedule_per,
                 ", and cosine_cycles repeats it; set it to the epochs of the first cycle");
    s.length_factor = c.cycle_mul;
    s.peak_factor = c.cycle_decay;
    s.floor = c.floor;
    s.limit = total;
    s.warmup = warmup;
    s.warmup_start = c.warmup_start;
    s.after_warmup = true;
    return {s, {}};
  }
  nn::Schedule s;
  s.total = total;
  s.warmup = warmup;
  s.warmup_start = c.warmup_start;
  s.floor = c.floor;
  s.gamma = c.gamma;
  if (c.schedule == "cosine") s.kind = nn::Schedule::cosine;
  if (c.schedule == "linear") s.kind = nn::Schedule::linear;
  if (c.schedule == "multistep" || c.schedule == "step") s.kind = nn::Schedule::multistep;
  if (c.schedule == "multistep")
    for (int64_t m : c.milestones) s.milestones.push_back(m * epoch - warmup);
  if (c.schedule == "step")
    for (int64_t t = c.step_size * epoch; t < total; t += c.step_size * epoch)
      s.milestones.push_back(t - warmup);
  return {s, {}};
}

using Parts = std::vector<std::pair<std::string, double>>;

std::string names_of(const Parts& parts) {
  std::string list;
  for (auto& [name, value] : parts) list += (list.empty() ? "" : ", ") + name;
  return list;
}

Json source_of(const data::Dataset& set) {
  Json j{
      {"spec", set.spec}, {"samples", set.size()}, {"classes", set.classes}, {"sha256", set.hash}};
  if (!set.made_by.empty()) j["made_by"] = set.made_by;
  return j;
}

// Two files of one [[teacher]] are two taps of one network on the same images.
void require_one_teacher(const data::FeatureFile& a, const data::FeatureFile& b) {
  const data::FeatureHeader &x = a.header(), &y = b.header();
  auto refuse = [&](const char* what, const std::string& of_a, const std::string& of_b) {
    fail_input("features: ", a.path(), " and ", b.path(), " of one [[teacher]] ", what, ": ", of_a,
               " and ", of_b, "; give each teacher a [[teacher]] section of its own");
  };
  if (x.tap == y.tap && x.view == y.view) refuse("hold the same tap", x.tap, y.tap);
  if (x.weight_hash != y.weight_hash)
    refuse("come from different weights", x.weight_hash, y.weight_hash);
  if (x.preprocessing != y.preprocessing)
    refuse("saw different images", x.preprocessing, y.preprocessing);
}

// Reads every row once: values that are not finite, and rows that are all the same, are found
// before the run begins.
void require_rows(const data::FeatureFile& file, const data::Dataset& set) {
  constexpr int64_t kAtOnce = 4096;
  Tensor first;
  bool differ = set.size() < 2;
  for (int64_t i = 0; i < set.size(); i += kAtOnce) {
    int64_t n = std::min(kAtOnce, set.size() - i);
    Tensor rows = file.gather(from(std::span(set.rows).subspan(size_t(i), size_t(n)), {n}));
    if (!first) first = rows;
    for (int64_t k = 0; k < n && !differ; k++)
      differ = !std::equal(first.data<float>(), first.data<float>() + rows.dim(1),
                           rows.data<float>() + k * rows.dim(1));
  }
  if (!differ)
    fail_input("features: ", file.path(), " hold one and the same row for every sample of ",
               set.spec, "; nothing can be learned from that, write them again");
}

// Of samples that nobody labelled: the class that the stored teacher's logits prefer.
void label(data::Dataset& set, const data::FeatureFile& logits) {
  constexpr int64_t kAtOnce = 4096;
  set.classes = logits.header().width;
  for (int64_t i = 0; i < set.size(); i += kAtOnce) {
    int64_t n = std::min(kAtOnce, set.size() - i);
    Tensor rows = logits.gather(from(std::span(set.rows).subspan(size_t(i), size_t(n)), {n}));
    for (int64_t k = 0; k < n; k++) {
      const float* row = rows.data<float>() + k * set.classes;
      set.labels[size_t(i + k)] = std::max_element(row, row + set.classes) - row;
    }
  }
  set.class_names.clear();
  std::istringstream names(logits.header().class_names);
  for (std::string name; std::getline(names, name);) set.class_names.push_back(name);
}

// The tensors of one step under their names, in forward order.
struct Trace {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::string batch;  // "0.", "1.", .. where a step accumulates several

  void add(const std::string& name, const Tensor& value) {
    if (value) tensors.emplace_back(batch + name, value.detach().contiguous());
  }
  void add(const std::string& prefix, const nn::Taps& taps, const std::vector<std::string>& names) {
    for (const std::string& name : names) add(prefix + name, taps[name]);
  }
};

std::string where(const Position& p) {
  return concat("step ", p.step + 1, " (epoch ", p.epoch + 1, ")");
}

void require_finite(double value, const char* what, const Parts& parts, const Position& p) {
  if (std::isfinite(value)) return;
  std::string list;
  for (auto& [name, part] : parts) list += concat(" ", name, " ", part);
  throw Error(concat(what, " is not finite in ", where(p), ":", list, kDiverged));
}

}  // namespace

struct Trainer::State {
  Config config;
  data::Dataset train;
  std::optional<data::Dataset> validation, test;
  Network student;
  int64_t parameters = 0;
  std::vector<LiveOrStored> teachers;
  methods::Setup setup;
  std::optional<methods::Objective> objective;
  std::unique_ptr<nn::Optimizer> optimizer;
  std::unique_ptr<data::Loader> loader;
  std::optional<nn::Ema> average;
  std::vector<std::string> averaged;  // names of average->averages()
  Schedules schedules;
  int64_t epoch_steps = 0, total_steps = 0;
  DType compute = DType::f32;  // of the networks in training; they are tested in f32
  Position position;
  bool reading = false;  // the loader stands at the position
  std::vector<std::string> without_gradient;

  void open_data();
  void label_by_teacher();
  void open_teachers();
  void make_objective();
  void make_optimizer();
  void make_loader();
  Tensor features(size_t network, const data::Dataset&) const;
  Tensor features(const LiveOrStored&, const data::Dataset&,
                  const std::vector<data::FeatureFile>&) const;
  void prepare();
  std::function<void(const std::string&)> progress = [](const std::string&) {};
  void make_average();
  int64_t schedule_time() const;
  // Which images an epoch shows: 0 those without augmentation, else as FeatureHeader::view.
  int64_t view_of(int64_t epoch) const {
    bool repeated = config.augment.any() && config.augment.views;
    return repeated ? 1 + epoch % config.augment.views : 0;
  }
  methods::Teacher ask(const LiveOrStored&, const data::Batch&, int64_t epoch, bool all_taps) const;
  Parts learn(Position&, double share, uint64_t draw, Trace*);
  void step(const std::string& trace);
};

void Trainer::State::open_data() {
  const DataConfig& c = config.data;
  uint64_t seed = uint64_t(c.seed);
  train = data::open_dataset(c.train, c.strict, seed);
  if (!c.validation.empty()) validation = data::open_dataset(c.validation, c.strict, seed);
  if (!c.test.empty()) test = data::open_dataset(c.test, c.strict, seed);
  if (c.validation_share > 0) {
    auto [rest, share] = data::split_validation(train, c.validation_share, seed);
    train = std::move(rest);
    validation = std::move(share);
  }
  if (train.classes == 0) label_by_teacher();
  for (const auto* other : {&validation, &test})
    if (*other && (*other)->classes != train.classes)
      fail_input("data: ", (*other)->spec, " has ", (*other)->classes, " classes and ", train.spec,
                 " has ", train.classes);
  for (const auto* other : {&validation, &test})
    if (*other && (*other)->size() == 0) fail_input("data: ", (*other)->spec, " has no samples");
  if (config.train.batch > train.size())
    fail_input("train.batch is ", config.train.batch, ", but the training data ", train.spec,
               " has only ", train.size(), " samples; choose a smaller train.batch");
}

// Accuracy is then agreement with the teacher's answers to the images without augmentation.
void Trainer::State::label_by_teacher() {
  for (const TeacherConfig& c : config.teachers)
    for (const std::string& path : c.features) {
      data::FeatureFile file(path);
      if (file.header().tap != "logits" || file.header().view != 0) continue;
      for (data::Dataset* set :
           {&train, validation ? &*validation : nullptr, test ? &*test : nullptr}) {
        if (!set) continue;
        file.require(*set, config.augment, uint64_t(config.train.seed));
        label(*set, file);
      }
      return;
    }
  fail_input("data: ", train.spec, " has no labels; store a teacher's logits with pupil features ",
             "and name the file as features of a [[teacher]]: its answers are the labels");
}

void Trainer::State::open_teachers() {
  size_t live = 0;
  for (const TeacherConfig& c : config.teachers) {
    LiveOrStored teacher;
    teacher.name = c.name;
    if (c.features.empty()) {
      teacher.network = load_network(c);
      teacher.input = ++live;
    }
    for (const std::string& path : c.features) {
      data::FeatureFile file(path);
      file.require(train, config.augment, uint64_t(config.train.seed));
      for (const data::FeatureFile& other : teacher.files) require_one_teacher(other, file);
      require_rows(file, train);
      teacher.files.push_back(std::move(file));
    }
    for (const std::string& path : test ? c.test_features : std::vector<std::string>()) {
      data::FeatureFile file(path);
      file.require(*test);
      require_rows(file, *test);
      teacher.test_files.push_back(std::move(file));
    }
    for (int64_t epoch = 0; epoch < config.augment.views && !teacher.files.empty(); epoch++)
      if (std::none_of(teacher.files.begin(), teacher.files.end(),
                       [&](const auto& f) { return f.header().view == view_of(epoch); }))
        fail_input("teacher ", c.name, ": augment.views is ", config.augment.views,
                   ", but none of its features holds view ", view_of(epoch));
    teachers.push_back(std::move(teacher));
  }
}

void Trainer::State::make_objective() {
  setup.classes = train.classes;
  setup.student_width = student.model.width;
  setup.student_widths = student.model.widths;
  setup.batch = config.train.batch;
  setup.lr = config.train.lr;
  setup.student_taps = student.model.taps;
  for (const LiveOrStored& teacher : teachers) {
    int64_t width = teacher.network ? teacher.network->model.width : 0;
    for (const data::FeatureFile& file : teacher.files)
      if (file.header().tap == "features") width = file.header().width;
    setup.teacher_widths.push_back(width);
  }
  parameters = student.store->count();
  objective.emplace(config.methods, nn::Scope(*student.store), setup, config.train.ce_weight,
                    config.train.label_smoothing);
  auto require = [](const std::string& tap, const std::vector<std::string>& known,
                    const std::string& whose) {
    if (std::find(known.begin(), known.end(), tap) == known.end())
      fail_input("method: ", whose, " has no tap \"", tap, "\"", did_you_mean(tap, known));
  };
  for (const std::string& tap : objective->student_taps())
    require(tap, student.model.taps, "the student " + student.model.name);
  for (const std::string& tap : objective->teacher_taps())
    for (const LiveOrStored& teacher : teachers) {
      std::vector<std::string> known;
      if (teacher.network) known = teacher.network->model.taps;
      for (const data::FeatureFile& file : teacher.files) known.push_back(file.header().tap);
      require(tap, known, "teacher " + teacher.name);
    }
}

void Trainer::State::make_optimizer() {
  std::vector<nn::Group> groups{{{}, config.train.lr, config.train.weight_decay}};
  std::vector<nn::Group> asked = objective->groups();
  for (const nn::Param& p : student.store->params()) {
    bool taken = p.buffer || !p.trainable;
    for (const nn::Group& g : asked)
      taken |= std::find(g.names.begin(), g.names.end(), p.name) != g.names.end();
    if (!taken) groups[0].names.push_back(p.name);
  }
  if (groups[0].names.empty() && asked.empty())
    fail_input("student.freeze leaves no parameter to train");
  groups.insert(groups.end(), asked.begin(), asked.end());
  optimizer =
      std::make_unique<nn::Optimizer>(*student.store, groups, optimizer_options(config.train));
}

void Trainer::State::make_loader() {
  for (const data::Dataset* set :
       {&train, validation ? &*validation : nullptr, test ? &*test : nullptr})
    if (set) require_input(student.model, *set);
  for (const LiveOrStored& teacher : teachers)
    if (teacher.network) require_input(teacher.network->model, train);
  if (student.model.fit_inputs && train.values && config.student.weights.empty())
    student.model.fit_inputs(train.values);
  std::vector<models::Preprocessing> inputs{student.model.input};
  for (const LiveOrStored& teacher : teachers)
    if (teacher.network) inputs.push_back(teacher.network->model.input);
  data::LoaderOptions options;
  options.batch = config.train.batch;
  options.shuffle = true;
  options.seed = uint64_t(config.train.seed);
  options.workers = int(config.data.workers);
  options.augment = config.augment;
  const TrainConfig& c = config.train;
  EpochPlan plan(c.steps, train.size(), c.batch * c.accumulate);
  epoch_steps = plan.batches;
  options.frozen = c.freeze_batches == "always" || (c.freeze_batches == "auto" && plan.few());
  loader = std::make_unique<data::Loader>(train, inputs, options);
  if (c.schedule_per == "step") {
    total_steps = c.steps ? c.steps : c.epochs * epoch_steps;
    schedules = schedules_of(c, total_steps, epoch_steps);
    return;
  }
  int64_t epochs = c.steps ? plan.epochs : c.epochs;
  if (epochs < 1)
    fail_input("train.steps is ", c.steps, ", less than half of an epoch of ", epoch_steps,
               " steps; with schedule_per = \"epoch\" a run has whole epochs");
  total_steps = epochs * epoch_steps;
  schedules = schedules_of(c, epochs, 1);
}

void Trainer::State::make_average() {
  if (config.train.ema_decay == 0) return;
  std::vector<Tensor> weights;
  for (const nn::Param& p : student.store->params())
    if (!p.name.starts_with("loss.") && is_floating(p.value.dtype())) {
      averaged.push_back(p.name);
      weights.push_back(p.value);
    }
  average.emplace(std::move(weights), nn::EmaOptions{.decay = config.train.ema_decay,
                                                     .warmup = config.train.ema_warmup});
}

int64_t Trainer::State::schedule_time() const {
  return config.train.schedule_per == "epoch" ? position.epoch : position.step;
}

// What a network, 0 the student or a teacher's `input`, makes of samples in order.
Tensor Trainer::State::features(size_t network, const data::Dataset& set) const {
  const models::Model* model = &student.model;
  for (const LiveOrStored& teacher : teachers)
    if (network > 0 && teacher.input == network) model = &teacher.network->model;
  data::LoaderOptions options;
  options.batch = config.train.batch;
  options.workers = int(config.data.workers);
  data::Loader in_order(set, {model->input}, options);
  Tensor all = empty({set.size(), model->width});
  int64_t done = 0;
  NoGrad no_grad;
  nn::Prepared prepared;
  for (data::Batch batch; in_order.next(batch);) {
    StepScope scope;
    Tensor rows = model->forward(batch.x[0], {.prepared = &prepared}).features;
    copy_into(alias(all, rows.shape(), row_major_strides(rows.shape()), done * model->width), rows);
    done += rows.dim(0);
  }
  return all;
}

// The same of a teacher, from `files` if it is stored.
Tensor Trainer::State::features(const LiveOrStored& teacher, const data::Dataset& set,
                                const std::vector<data::FeatureFile>& files) const {
  if (teacher.network) return features(teacher.input, set);
  for (const data::FeatureFile& file : files)
    if (file.header().tap == "features" && file.header().view == 0)
      return file.gather(from(std::span<const int64_t>(set.rows), {set.size()}));
  fail_input("teacher ", teacher.name, ": no file of test_features holds the tap features");
}

void Trainer::State::prepare() {
  methods::Survey survey;
  survey.labels = from(std::span<const int64_t>(train.labels), {train.size()});
  survey.progress = progress;
  survey.student = [this] { return features(0, train); };
  survey.teacher = [this](size_t m) {
    return features(teachers.at(m), train, teachers.at(m).files);
  };
  survey.teacher_on_test = [this](size_t m) {
    if (!test)
      fail_input("early_stop_on is test, but there is no data.test (a study chooses without it)");
    const LiveOrStored& teacher = teachers.at(m);
    Tensor rows = features(teacher, *test, teacher.test_files);
    if (rows.dim(1) != setup.teacher_widths.at(m))
      fail_input("teacher ", teacher.name, ": test_features are ", rows.dim(1), " wide, features ",
                 setup.teacher_widths.at(m));
    return rows;
  };
  for (const methods::Term& term : objective->terms())
    if (term.instance.prepare) term.instance.prepare(survey);
}

// What one teacher says about the batch.
methods::Teacher Trainer::State::ask(const LiveOrStored& teacher, const data::Batch& batch,
                                     int64_t epoch, bool all_taps) const {
  NoGrad no_grad;
  methods::Teacher said;
  said.name = teacher.name;
  said.taps = nn::Taps(all_taps && teacher.network ? teacher.network->model.taps
                                                   : objective->teacher_taps());
  if (teacher.network) {
    nn::Call call{.taps = &said.taps, .prepared = &teacher.prepared};
    models::Output out =
        models::forward_in(compute, teacher.network->model, batch.x[teacher.input], call);
    said.logits = out.logits;
    said.features = out.features;
  }
  for (const data::FeatureFile& file : teacher.files) {
    if (file.header().view != view_of(epoch)) continue;
    Tensor rows = file.gather(batch.index);
    if (file.header().tap == "logits") said.logits = rows;
    if (file.header().tap == "features") said.features = rows;
    said.taps.see(file.header().tap, rows);
  }
  return said;
}

// Adds the gradient of the next batch, whose samples are this share of those of the step.
Parts Trainer::State::learn(Position& p, double share, uint64_t draw, Trace* trace) {
  data::Batch batch;
  PUPIL_CHECK(loader->next(batch), "trainer: no batch ", p.batch, " in epoch ", p.epoch);
  const TrainConfig& c = config.train;
  bool student_learns = p.batch / c.accumulate % c.prior_freq == 0;
  std::vector<methods::Teacher> said;
  if (objective->needs_teacher())
    for (const LiveOrStored& teacher : teachers)
      said.push_back(ask(teacher, batch, p.epoch, trace != nullptr));
  nn::Taps taps(trace ? student.model.taps : objective->student_taps());
  Rng rng(uint64_t(c.seed), draw);
  nn::Call call;
  call.train = true;
  call.rng = &rng;
  call.taps = &taps;
  models::Output out;
  methods::Loss loss;
  methods::Batch labels{batch.labels, batch.targets, batch.index};
  try {
    {
      std::optional<NoGrad> no_grad;
      if (!student_learns) no_grad.emplace();
      out = models::forward_in(compute, student.model, batch.x[0], call);
    }
    loss = (*objective)(methods::Step{labels, out, taps, said, call});
  } catch (const InputError&) {
    throw;  // a method that does not go with this run: no logits, other classes
  } catch (const Error& error) {  // mostly numbers that have grown beyond all bounds
    throw Error(concat(where(p), ": ", error.what(), kDiverged));
  }
  if (trace) {
    for (auto& [name, value] : {std::pair{"batch.x", batch.x[0]},
                                {"batch.labels", batch.labels},
                                {"batch.targets", batch.targets},
                                {"batch.index", batch.index}})
      if (value) trace->add(name, value.clone());  // the loader uses its memory again
    for (size_t i = 0; i < said.size(); i++) {
      std::string prefix = "teacher." + said[i].name + ".";
      if (teachers[i].network) trace->add(prefix, said[i].taps, teachers[i].network->model.taps);
      trace->add(prefix + "features", said[i].features);
      trace->add(prefix + "logits", said[i].logits);
    }
    trace->add("student.", taps, student.model.taps);
    trace->add("student.features", out.features);
    trace->add("student.logits", out.logits);
    for (const methods::Part& part : loss.parts) trace->add("loss." + part.name, part.value);
    trace->add("loss.total", loss.total);
  }
  Parts values{{"total", loss.total.item()}};
  for (const methods::Part& part : loss.parts) values.emplace_back(part.name, part.value.item());
  require_finite(values[0].second, "the loss", values, p);
  if (p.losses.empty())
    for (auto& [name, value] : values) p.losses.emplace_back(name, 0);
  if (names_of(p.losses) != names_of(values))  // of a resumed epoch
    fail_input("--resume: the checkpoint remembers the parts ", names_of(p.losses),
               " of the loss, the run has ", names_of(values));
  int64_t n = batch.labels.dim(0);
  for (size_t i = 0; i < values.size(); i++) p.losses[i].second += values[i].second * double(n);
  p.samples += n;
  p.correct += count_correct(out.logits, batch.labels);
  p.batch++;
  if (student_learns || loss.total.requires_grad())
    backward(loss.total, full(loss.total.shape(), share, loss.total.dtype()));
  return values;
}

void Trainer::State::step(const std::string& trace_file) {
  const TrainConfig& c = config.train;
  Position p = position;  // becomes that of the run when all is well
  bool traced = !trace_file.empty();
  if (!reading) loader->start(p.epoch, p.batch);
  reading = true;
  int64_t batches = std::min(c.accumulate, loader->batches() - p.batch);
  int64_t samples = std::min(batches * c.batch, train.size() - p.batch * c.batch);

  StepScope scope;
  Trace trace;
  Parts values;
  optimizer->zero_grad();
  for (int64_t k = 0; k < batches; k++) {
    if (c.accumulate > 1) trace.batch = concat(k, ".");
    int64_t n = std::min(c.batch, train.size() - p.batch * c.batch);
    values = learn(p, double(n) / double(samples), uint64_t(p.step * c.accumulate + k),
                   traced ? &trace : nullptr);
  }
  trace.batch = "";
  if (p.step == 0)
    for (const nn::Param& param : student.store->params())
      if (param.trainable && !param.value.grad()) without_gradient.push_back(param.name);
  if (traced)
    for (const nn::Param& param : student.store->params())
      if (param.value.grad()) trace.add("grad." + param.name, param.value.grad().clone());
  if (c.clip_norm > 0)
    require_finite(optimizer->clip_grad_norm(c.clip_norm), "the gradient", values, p);
  if (schedules.momentum) optimizer->set_momentum(schedules.momentum(schedule_time()));
  optimizer->step(schedules.lr(schedule_time()));
  p.step++;
  if (average) average->update(p.step);
  position = p;
  if (!traced) return;
  for (const nn::Param& param : student.store->params())
    trace.add("param." + param.name, param.value);
  data::save_safetensors(trace_file, trace.tensors,
                         {{"format", "pupil-trace-1"}, {"step", std::to_string(p.step)}});
}

EpochPlan::EpochPlan(int64_t steps, int64_t samples, int64_t batch)
    : batches((samples + batch - 1) / batch),
      epochs(int64_t(std::floor(double(steps) / double(batches) + 0.5))),
      last(samples - (batches - 1) * batch) {}

Trainer::Trainer(const Config& config) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.config = config;
  std::string& precision = s.config.train.precision;
  if (precision == "auto") precision = faster_precision();
  s.compute = precision == "bf16" ? DType::bf16 : DType::f32;
  s.open_data();
  s.student = make_student(config.student, s.train.classes, uint64_t(config.train.seed));
  s.open_teachers();
  s.make_objective();
  s.make_optimizer();
  s.make_loader();
  s.make_average();
}
Trainer::~Trainer() = default;

void Trainer::step(const std::string& trace) {
  if (state_->position.step == 0) state_->prepare();
  state_->step(trace);
}

void Trainer::on_preparation(std::function<void(const std::string&)> progress) {
  state_->progress = std::move(progress);
}

bool Trainer::epoch_done() const {
  const Position& p = state_->position;
  return p.batch == state_->loader->batches() || p.step == total_steps();
}

void Trainer::next_epoch() {
  Position& p = state_->position;
  p.epoch++;
  p.batch = p.samples = p.correct = 0;
  p.losses.clear();
  state_->reading = false;
}

const Config& Trainer::config() const { return state_->config; }
Position& Trainer::position() { return state_->position; }
int64_t Trainer::total_steps() const { return state_->total_steps; }
int64_t Trainer::epoch_steps() const { return state_->epoch_steps; }
double Trainer::learning_rate() const {
  return state_->config.train.lr * state_->schedules.lr(state_->schedule_time());
}
double Trainer::wait_seconds() const {
  return state_->reading ? state_->loader->wait_seconds() : 0;
}
const models::Model& Trainer::model() const { return state_->student.model; }
nn::Store& Trainer::store() { return *state_->student.store; }
int64_t Trainer::parameters() const { return state_->parameters; }
const data::Dataset& Trainer::train_data() const { return state_->train; }
const data::Dataset* Trainer::validation_data() const {
  return state_->validation ? &*state_->validation : nullptr;
}
const data::Dataset* Trainer::test_data() const { return state_->test ? &*state_->test : nullptr; }
std::vector<std::pair<std::string, std::vector<std::pair<std::string, double>>>>
Trainer::statistics() const {
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, double>>>> all;
  for (const methods::Term& term : state_->objective->terms())
    if (term.instance.statistics) all.emplace_back(term.name, term.instance.statistics());
  return all;
}
std::vector<std::string> Trainer::warnings() const {
  std::vector<std::string> all;
  for (const methods::Term& term : state_->objective->terms())
    for (const std::string& text : term.instance.warnings)
      all.push_back(concat("method ", term.name, ": ", text));
  return all;
}
const std::vector<std::string>& Trainer::without_gradient() const {
  return state_->without_gradient;
}

std::string Trainer::sources() const {
  const State& s = *state_;
  Json j;
  j["data"]["train"] = source_of(s.train);
  if (s.validation) j["data"]["validation"] = source_of(*s.validation);
  if (s.test) j["data"]["test"] = source_of(*s.test);
  j["student"] = {{"model", s.student.model.name},
                  {"parameters", s.parameters},
                  {"weights_sha256", s.student.weights ? s.student.weights->hash() : ""}};
  j["teachers"] = Json::array();
  for (const LiveOrStored& teacher : s.teachers) {
    Json t{{"name", teacher.name}};
    t["width"] = s.setup.teacher_widths[j["teachers"].size()];
    if (teacher.network) {
      t["model"] = teacher.network->model.name;
      t["parameters"] = teacher.network->store->count();
      t["weights_sha256"] = teacher.network->weights->hash();
    }
    for (auto* files : {&teacher.files, &teacher.test_files})
      for (const data::FeatureFile& file : *files)
        t["features"].push_back({{"file", file.path()},
                                 {"teacher", file.header().teacher},
                                 {"tap", file.header().tap},
                                 {"weights_sha256", file.header().weight_hash}});
    j["teachers"].push_back(t);
  }
  return j.dump(2);
}

void Trainer::save(const std::string& path) {
  State& s = *state_;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : s.student.store->params()) {
    if (!finite(p.value))
      throw Error(
          concat("parameter ", p.name, " is not finite after step ", s.position.step, kDiverged));
    tensors.emplace_back(p.name, p.value);
  }
  for (size_t k = 0; k < s.averaged.size(); k++)
    tensors.emplace_back("ema." + s.averaged[k], s.average->averages()[k]);
  for (auto& [name, value] : s.optimizer->state()) tensors.emplace_back("optimizer." + name, value);
  const Position& p = s.position;
  Json j{{"step", p.step},           {"epoch", p.epoch},
         {"batch", p.batch},         {"samples", p.samples},
         {"correct", p.correct},     {"losses", p.losses},
         {"best_top1", p.best_top1}, {"best_epoch", p.best_epoch},
         {"finished", p.finished},   {"metrics_bytes", p.metrics_bytes}};
  auto metadata = network_metadata(s.student.model);
  metadata["position"] = j.dump();
  data::save_safetensors(path, tensors, metadata);
}

void Trainer::load(const std::string& path) {
  State& s = *state_;
  std::shared_ptr<const data::Weights> file = data::open_safetensors(path);
  auto position = file->metadata().find("position");
  if (position == file->metadata().end())
    fail_input(path, " is not a checkpoint of a run: it does not say where the run stood");
  auto restore = [&](const std::string& name, const Tensor& value) {
    Tensor stored = file->read(name, value.dtype());
    if (stored.shape() != value.shape())
      fail_input(path, ": ", name, " is ", stored.shape(), ", the run has ", value.shape());
    copy_into(value, stored);
  };
  for (const nn::Param& p : s.student.store->params()) restore(p.name, p.value);
  for (size_t k = 0; k < s.averaged.size(); k++)
    restore("ema." + s.averaged[k], s.average->averages()[k]);
  s.optimizer->load_state([&](const std::string& name) {
    std::string stored = "optimizer." + name;
    if (!file->has(stored)) return Tensor();
    return file->read(stored, name.ends_with(".step") ? DType::i64 : DType::f32);
  });
  try {
    Json j = Json::parse(position->second);
    Position& p = s.position;
    j.at("step").get_to(p.step);
    j.at("epoch").get_to(p.epoch);
    j.at("batch").get_to(p.batch);
    j.at("samples").get_to(p.samples);
    j.at("correct").get_to(p.correct);
    j.at("losses").get_to(p.losses);
    j.at("best_top1").get_to(p.best_top1);
    j.at("best_epoch").get_to(p.best_epoch);
    j.at("finished").get_to(p.finished);
    j.at("metrics_bytes").get_to(p.metrics_bytes);
  } catch (const Json::exception& error) {
    fail_input(path, ": its position cannot be read: ", error.what());
  }
  s.reading = false;
}

void Trainer::save_student(const std::string& path) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store().params())
    if (!p.name.starts_with("loss.")) tensors.emplace_back(p.name, p.value);
  auto metadata = network_metadata(model());
  std::string labels;
  for (const std::string& name : state_->train.class_names)
    labels += (labels.empty() ? "" : "\n") + name;
  if (!labels.empty()) metadata["labels"] = labels;  // for pupil predict
  with_averages([&] { data::save_safetensors(path, tensors, metadata); });
}

void Trainer::with_averages(const std::function<void()>& f) {
  std::optional<nn::Ema>& average = state_->average;
  if (!average) return f();
  average->exchange();
  struct Back {
    nn::Ema& average;
    ~Back() { average.exchange(); }
  } back{*average};
  f();
}

}  // namespace pupil

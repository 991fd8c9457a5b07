#include "transmiter.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "../data/file.h"
#include "../data/python_random.h"
#include "../methods/eft.h"
#include "../methods/linear_probe.h"
#include "../methods/procrustes.h"
#include "../methods/tip_adapter.h"
#include "../methods/zero_shot.h"
#include "../tensor/runtime.h"
#include "interrupt.h"
#include "program.h"
#include "run_folder.h"
#include "text.h"
#include "transmiter_job.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;
using methods::Adapter;
using methods::BaseNovel;
using methods::Basis;
using Rows = std::vector<int64_t>;

double stopwatch() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Tensor as_tensor(const Rows& rows) {
  return from(std::span<const int64_t>(rows), {int64_t(rows.size())});
}

// An adapter and the store that holds its parameters.
struct AdapterModel {
  nn::Store store;
  std::optional<Adapter> adapter;
  explicit AdapterModel(uint64_t seed) : store(seed) {}

  Tensor logits(const Tensor& z, int64_t classes) const {
    NoGrad no_grad;
    constexpr int64_t kBlock = 8192;
    std::vector<Tensor> blocks;
    for (int64_t begin = 0; begin < z.dim(0); begin += kBlock)
      blocks.push_back(
          slice((*adapter)(slice(z, 0, begin, std::min(z.dim(0), begin + kBlock))), 1, 0, classes));
    return cat(blocks, 0);
  }
};

struct ScoreSummary {
  double mean = 0, deviation = 0;
  int64_t count = 0;
};

std::optional<ScoreSummary> summary(const ScoreLine& line, std::optional<double> BaseNovel::*part) {
  ScoreSummary s;
  for (const BaseNovel& score : line.scores) {
    if (!(score.*part)) return {};
    s.mean += *(score.*part) / double(line.scores.size());
  }
  s.count = int64_t(line.scores.size());
  for (const BaseNovel& score : line.scores)
    s.deviation += (*(score.*part) - s.mean) * (*(score.*part) - s.mean);
  if (s.count > 1) s.deviation = std::sqrt(s.deviation / double(s.count - 1));
  return s;
}

std::string two_digits(double value) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << value;
  return out.str();
}

std::string shown_score(const std::optional<ScoreSummary>& s) {
  if (!s) return "n/a";
  return s->count > 1 ? two_digits(s->mean) + " ± " + two_digits(s->deviation)
                      : two_digits(s->mean);
}

std::string table_of(const std::vector<ScoreLine>& lines, bool novel) {
  std::vector<std::vector<std::string>> cells;
  cells.push_back(novel ? std::vector<std::string>{"", "base %", "novel %", "HM %"}
                        : std::vector<std::string>{"", "accuracy %"});
  cells[0].push_back("seeds");
  for (const ScoreLine& line : lines) {
    std::vector<std::string> row{line.model, shown_score(summary(line, &BaseNovel::base))};
    if (novel) {
      row.push_back(shown_score(summary(line, &BaseNovel::novel)));
      auto base = summary(line, &BaseNovel::base), other = summary(line, &BaseNovel::novel);
      std::optional<double> of_means;  // as in Tables 2 and 3 of the paper
      if (base && other) of_means = methods::harmonic_mean(base->mean, other->mean);
      row.push_back(of_means ? two_digits(*of_means) : "n/a");
    }
    std::string seeds;
    for (const BaseNovel& score : line.scores) {
      auto value = novel ? score.harmonic_mean : score.base;
      if (line.scores.size() > 1)
        seeds += (seeds.empty() ? "" : " / ") + (value ? two_digits(*value) : std::string("n/a"));
    }
    row.push_back(seeds);
    cells.push_back(row);
  }
  return aligned(cells, {0, cells[0].size() - 1});
}

// One score; `novel`: of base-to-novel.
Json score_json(const std::string& model, const BaseNovel& score, bool novel) {
  auto value = [](std::optional<double> x) { return x ? Json(*x) : Json(nullptr); };
  Json j{{"model", model}};
  if (!novel)
    j["accuracy"] = value(score.base);
  else
    j.update({{"base", value(score.base)},
              {"novel", value(score.novel)},
              {"harmonic_mean", value(score.harmonic_mean)}});
  return j;
}

void stop_if_interrupted() {
  if (interrupted()) throw Interrupted("stopped");
}

class TransmiterJob {
 public:
  TransmiterJob(const TransmiterConfig& config, const RunOptions& options, bool quiet)
      : c_(config),
        seeds_differ_(to_toml(for_seed(config, 0)) != to_toml(config)),
        m_(config.transmiter.logits),
        latent_(config.transmiter.latent ? config.transmiter.latent : m_),
        hidden_(config.transmiter.hidden ? config.transmiter.hidden : 4 * latent_),
        quiet_(quiet) {
    std::map<std::string, std::string> files;
    for (size_t i = c_.seeds.size(); i-- > 0;) {  // all of them, before anything is trained
      if (i > 0 && !seeds_differ_) continue;
      open(c_.seeds[i]);
      files.insert(d_.sources.begin(), d_.sources.end());
    }
    if (!c_.transmiter.adapter.empty()) check_adapter_file();
    if (options.folder.empty()) return;
    folder_.emplace(options.folder, options.resume);
    std::string sources = Json(files).dump();
    if (folder_->has("config.toml")) {
      folder_->require_config(to_toml(c_), [](const std::string& path) {
        return to_toml(read_transmiter_config(path));
      });
      folder_->require_environment(sources);
    } else {
      folder_->write_environment(sources);
      folder_->write_config(to_toml(c_));
    }
  }

  void go() {
    say(concat(d_.classes, " task and ", m_ - d_.classes, " auxiliary classes, ",
               d_.train_labels.dim(0), " training and ", d_.test_labels.dim(0),
               " test samples, latent ", latent_, ", hidden ", hidden_));
    warn_about_shots();
    try {
      for (int64_t seed : c_.seeds)
        if (folder_ && folder_->has(results_of(uint64_t(seed))))
          take_results(uint64_t(seed));
        else
          one_seed(uint64_t(seed));
    } catch (const InputError&) {
      if (folder_) folder_->discard();
      throw;
    }
    if (folder_) data::write_file(folder_->file("table.txt"), table_of(lines_, !d_.novel.empty()));
  }

  const std::vector<ScoreLine>& lines() const { return lines_; }

  TransmiterTrial trial() {
    uint64_t seed = uint64_t(c_.seeds[0]);
    Rows labelled = labelled_rows(seed), rows = unlabelled_rows(labelled);
    if (!d_.weak.tuned_train) fine_tune(labelled);
    AdapterModel weak(seed);
    new_adapter(weak);
    TransmiterTrial t;
    t.parameters = weak.store.count();
    t.samples = int64_t(rows.size());
    // What two steps of train(before_step, batches), after two that warm up, say about `epochs`.
    auto try_steps = [&](size_t n, int64_t batch, int64_t epochs, const auto& train) {
      double begin = 0;
      int64_t count = 0;
      Tensor one = methods::shuffled_batches(int64_t(n), batch, seed)(0)[0];
      train(
          [&] {
            if (count++ == 2) begin = stopwatch();
          },
          [&](int64_t) { return std::vector<Tensor>(4, one); });
      int64_t steps = epochs * ((int64_t(n) + batch - 1) / batch);
      t.steps += steps;
      t.seconds += (stopwatch() - begin) / 2 * double(steps);
    };
    if (c_.transmiter.adapter.empty())
      try_steps(rows.size(), c_.transmiter.batch, c_.transmiter.epochs,
                [&](const auto& before_step, const methods::Batches& batches) {
                  methods::ExtractionOptions o = extraction_options(seed);
                  o.epochs = 1;
                  o.before_step = before_step;
                  Tensor which = as_tensor(rows);
                  methods::extract(weak.store, *weak.adapter, index_select(weak_train_, which),
                                   index_select(d_.weak.tuned_train, which), o, batches);
                });
    Tensor still = zeros({m_, m_}, DType::f64);
    for (int64_t i = 0; i < m_; i++) still.data<double>()[i * m_ + i] = 1;
    for (const std::string& mode : plus_modes())
      try_steps(labelled.size(), c_.plus.batch, c_.plus.epochs,
                [&](const auto& before_step, const methods::Batches& batches) {
                  AdapterModel plus(seed);
                  begin_plus(plus, mode, weak, still);
                  methods::PolishOptions o = polish_options();
                  o.epochs = 1;
                  o.before_step = before_step;
                  methods::polish(plus.store, *plus.adapter,
                                  index_select(strong_train_, as_tensor(labelled)),
                                  base_labels(labelled), d_.classes, o, batches);
                });
    return t;
  }

 private:
  void open(int64_t seed) {
    d_ = open_transmiter_data(for_seed(c_, seed));
    weak_train_ = d_.weak.zero_shot(d_.weak.train);
    weak_test_ = d_.weak.zero_shot(d_.weak.test);
    strong_train_ = d_.strong.zero_shot(d_.strong.train);
    strong_test_ = d_.strong.zero_shot(d_.strong.test);
  }

  void say(const std::string& line) const {
    if (!quiet_) std::cout << line << std::endl;
  }

  void add(const std::string& model, const Tensor& logits, const std::optional<uint64_t>& seed,
           bool base_only = false) {
    BaseNovel score = methods::base_to_novel(logits, d_.test_labels, d_.base, d_.novel);
    if (base_only) score.novel = score.harmonic_mean = {};
    take(model, score);
    Json j = score_json(model, score, !d_.novel.empty());
    j["seed"] = seed ? Json(*seed) : Json(nullptr);
    results_ += j.dump() + "\n";
    stop_if_interrupted();
  }

  void take(const std::string& model, const BaseNovel& score) {
    auto line = std::find_if(lines_.begin(), lines_.end(),
                             [&](const ScoreLine& l) { return l.model == model; });
    if (line == lines_.end()) line = lines_.insert(lines_.end(), {model, {}});
    line->scores.push_back(score);
  }

  // The scores of a seed: written whole when it is finished, so that it is there or to be done.
  static std::string results_of(uint64_t seed) { return concat("seed", seed, "/metrics.jsonl"); }

  void take_results(uint64_t seed) {
    std::istringstream text(read_file(folder_->file(results_of(seed))));
    for (std::string line; std::getline(text, line);) {
      Json j = Json::parse(line, nullptr, false);
      if (!j.is_object() || !j.contains("model"))
        fail_input("--resume: cannot read ", folder_->file(results_of(seed)));
      auto value = [&](const char* key) {
        return j.contains(key) && j[key].is_number() ? std::optional(j[key].get<double>())
                                                     : std::nullopt;
      };
      bool novel = !d_.novel.empty();
      take(j["model"],
           {value(novel ? "base" : "accuracy"), value("novel"), value("harmonic_mean")});
    }
    say(concat("seed ", seed, ": finished before"));
  }

  void one_seed(uint64_t seed) {
    results_.clear();
    bool first = seed == uint64_t(c_.seeds[0]), depends = c_.data.shots > 0 || seeds_differ_;
    if (seeds_differ_) open(int64_t(seed));
    Rows labelled = labelled_rows(seed);
    if (depends || !d_.weak.tuned_train) fine_tune(labelled);
    if (first || depends) baselines(labelled, depends ? std::optional(seed) : std::nullopt);
    transmiter(labelled, unlabelled_rows(labelled), seed);
    if (!folder_) return;
    std::filesystem::create_directories(folder_->file(concat("seed", seed)));
    data::write_file(folder_->file(results_of(seed)), results_);
  }

  // Training rows of base classes.
  Rows base_rows() const {
    Rows rows;
    for (int64_t i = 0; i < d_.train_labels.dim(0); i++)
      if (std::find(d_.base.begin(), d_.base.end(), d_.train_labels.data<int64_t>()[i]) !=
          d_.base.end())
        rows.push_back(i);
    if (rows.empty()) fail_input("no training sample of a base class");
    return rows;
  }

  // `shots` of the rows of each class.
  Rows few(const Rows& rows, int64_t shots, uint64_t seed) const {
    Rows labels, chosen;
    for (int64_t row : rows) labels.push_back(d_.train_labels.data<int64_t>()[row]);
    for (int64_t i : data::few_shot(labels, shots, seed)) chosen.push_back(rows[size_t(i)]);
    return chosen;
  }

  Rows labelled_rows(uint64_t seed) const {
    return c_.data.shots ? few(base_rows(), c_.data.shots, seed) : base_rows();
  }

  void warn_about_shots() const {
    std::map<int64_t, int64_t> counts;
    for (int64_t label : d_.base) counts[label] = 0;
    for (int64_t row : base_rows()) counts[d_.train_labels.data<int64_t>()[row]]++;
    auto fewest = std::min_element(counts.begin(), counts.end(),
                                   [](auto& a, auto& b) { return a.second < b.second; });
    if (fewest->second < c_.data.shots)
      std::cerr << "pupil: warning: data.shots is " << c_.data.shots << ", but "
                << d_.names[size_t(fewest->first)] << " has only "
                << counted(fewest->second, "sample") << "; of a class with fewer all are taken\n";
  }

  // Up to four of each class beyond the labelled ones, as the validation shots of CoOp.
  Rows validation_rows(const Rows& labelled, uint64_t seed) const {
    Rows rest;
    for (int64_t row : base_rows())
      if (std::find(labelled.begin(), labelled.end(), row) == labelled.end()) rest.push_back(row);
    if (rest.empty())
      fail_input("linear_probe.choose_c: data.shots = ", c_.data.shots, " takes all ",
                 labelled.size(), " samples, so that none is left to choose c on; take fewer");
    return few(rest, std::min<int64_t>(c_.data.shots, 4), seed);
  }

  Rows unlabelled_rows(const Rows& labelled) const {
    if (c_.data.unlabelled == "few_shot") return labelled;
    Rows all(size_t(d_.train_labels.dim(0)));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  // Labels of these rows as positions in `base`.
  Tensor base_labels(const Rows& rows) const {
    Rows labels;
    for (int64_t row : rows) {
      int64_t label = d_.train_labels.data<int64_t>()[row];
      labels.push_back(std::find(d_.base.begin(), d_.base.end(), label) - d_.base.begin());
    }
    return as_tensor(labels);
  }

  Tensor directions(const ModelData& model) const {  // (C, d) rows of length 1
    return normalize(slice(model.head, 0, 0, d_.classes));
  }

  // Fine-tuned logits of a model that came without: a linear head on its features.
  void fine_tune(const Rows& labelled) {
    for (auto [model, files] : {std::pair{&d_.weak, &c_.weak}, std::pair{&d_.strong, &c_.strong}}) {
      bool upper_bound =
          model == &d_.strong && (!c_.weak.head.empty() || !c_.weak.train_logits.empty());
      if (!files->head.empty() || !files->train_logits.empty() || upper_bound) continue;
      methods::HeadOptions o;
      o.logit_scale = model->logit_scale;
      Tensor head = methods::fine_tune_head(index_select(model->train, as_tensor(labelled)),
                                            base_labels(labelled), directions(*model), d_.base, o);
      head = scale(head, o.logit_scale);
      model->tuned_train = methods::zero_shot_logits(model->train, head);
      model->tuned_test = methods::zero_shot_logits(model->test, head);
    }
  }

  void baselines(const Rows& labelled, const std::optional<uint64_t>& seed) {
    NoGrad no_grad;
    int64_t classes = d_.classes;
    Tensor weak = slice(weak_test_, 1, 0, classes), strong = slice(strong_test_, 1, 0, classes);
    add("weak, zero-shot", weak, seed);
    add("weak, fine-tuned", d_.weak.tuned_test, seed);
    add("strong, zero-shot", strong, seed);
    if (d_.strong.tuned_test) add("strong, fine-tuned (upper bound)", d_.strong.tuned_test, seed);
    for (double alpha : c_.eft.alpha)
      add(concat(c_.eft.mode == "proxy" ? "EFT" : c_.eft.mode, ", alpha ", alpha),
          methods::eft_logits(weak, d_.weak.tuned_test, strong,
                              methods::logit_mode_named(c_.eft.mode), alpha),
          seed);
    if (c_.eft.dynamic) {
      Tensor experts = view(d_.weak.tuned_test.contiguous(), {1, weak.dim(0), classes});
      add("dynamic logit fusion", methods::dynamic_fusion(weak, experts, strong).logits, seed);
    }
    Tensor labels = base_labels(labelled), values = zeros({int64_t(labelled.size()), classes});
    for (size_t i = 0; i < labelled.size(); i++)
      values.data<float>()[int64_t(i) * classes + d_.train_labels.data<int64_t>()[labelled[i]]] = 1;
    for (const ModelData* model : {&d_.weak, &d_.strong}) {
      std::string name = model == &d_.weak ? "weak" : "strong";
      Tensor keys = normalize(index_select(model->train, as_tensor(labelled)));
      Tensor test = normalize(model->test);
      for (size_t k = 0; k < c_.tip_adapter.alpha.size(); k++) {
        methods::TipAdapterOptions o{c_.tip_adapter.alpha[k], c_.tip_adapter.beta[k],
                                     model->logit_scale};
        add(concat(name, ", Tip-Adapter, alpha ", o.alpha, ", beta ", o.beta),
            methods::tip_adapter_logits(test, keys, values, directions(*model), o), seed);
      }
      auto answers = [&](double c, const Tensor& x) {
        methods::LinearProbeOptions o;
        o.c = c;
        methods::LinearProbe probe =
            methods::fit_linear_probe(keys, labels, int64_t(d_.base.size()), o);
        return linear(x.to(DType::f64), probe.weight, probe.bias);
      };
      auto add_probe = [&](const std::string& which, double c) {
        Tensor z = answers(c, test);
        Tensor wide = full({z.dim(0), classes}, -INFINITY, DType::f64);
        for (int64_t i = 0; i < z.dim(0); i++)
          for (size_t j = 0; j < d_.base.size(); j++)
            wide.data<double>()[i * classes + d_.base[j]] =
                z.data<double>()[i * z.dim(1) + int64_t(j)];
        add(concat(name, ", linear probe, c ", which), wide, seed, true);
      };
      for (double c : c_.linear_probe.c) add_probe(concat(c), c);
      if (!c_.linear_probe.choose_c) continue;
      Rows shots = validation_rows(labelled, *seed);
      Tensor x = normalize(index_select(model->train, as_tensor(shots))), y = base_labels(shots);
      double c = methods::choose_c([&](double c) {
        stop_if_interrupted();
        return double(count_correct(answers(c, x), y));
      });
      say(concat("seed ", *seed, ": ", name, ", linear probe: c ", c, " chosen on ",
                 counted(int64_t(shots.size()), "validation sample")));
      add_probe("chosen", c);
    }
  }

  methods::AdapterOptions adapter_options() const {
    return {m_, latent_, hidden_, methods::basis_named(c_.transmiter.basis), c_.transmiter.alpha};
  }

  methods::ExtractionOptions extraction_options(uint64_t seed) const {
    const auto& t = c_.transmiter;
    methods::ExtractionOptions o;
    o.loss.temperature = t.temperature;
    o.loss.teacher_temperature = t.teacher_temperature;
    o.noise = t.noise;
    o.lr = t.lr;
    o.weight_decay = t.weight_decay;
    o.warmup = t.warmup;
    o.epochs = t.epochs;
    o.seed = seed;
    o.before_step = stop_if_interrupted;
    return o;
  }

  void new_adapter(AdapterModel& model) const {
    model.adapter.emplace(nn::Scope(model.store), adapter_options());
    model.adapter->draw_base();
  }

  void transmiter(const Rows& labelled, const Rows& unlabelled, uint64_t seed) {
    const auto& t = c_.transmiter;
    double begin = stopwatch();
    AdapterModel weak(seed);
    Tensor rows = as_tensor(unlabelled), z_weak = index_select(weak_train_, rows);
    std::string news = concat("seed ", seed, ": ");
    if (t.adapter.empty()) {
      new_adapter(weak);
      methods::Curve curve = methods::extract(
          weak.store, *weak.adapter, z_weak, index_select(d_.weak.tuned_train, rows),
          extraction_options(seed), methods::shuffled_batches(rows.dim(0), t.batch, seed));
      news += concat("extracted in ", two_digits(stopwatch() - begin), " s");
      if (!curve.loss.empty())
        news += concat(", loss ", curve.loss.front(), " -> ", curve.loss.back());
      save(weak, seed, "weak");
    } else {
      weak.store.source(data::open_safetensors(t.adapter));
      weak.adapter.emplace(nn::Scope(weak.store), adapter_options());
      weak.store.require_complete();
      news += "adapter from " + t.adapter;
    }
    add("weak, adapter", weak.logits(weak_test_, d_.classes), seed);
    add("strong, adapter without basis change", weak.logits(strong_test_, d_.classes), seed);

    double extracted = stopwatch();
    std::vector<Tensor> rotations;
    Tensor z_strong = index_select(strong_train_, rows);
    for (double beta : t.beta) {
      methods::ProcrustesOptions o;
      o.beta = beta;
      o.rotation = t.rotation;
      rotations.push_back(methods::logit_rotation(z_weak, z_strong, o));
      AdapterModel moved(seed);
      moved.adapter = weak.adapter->rotated(nn::Scope(moved.store), rotations.back(), Basis::free);
      add(concat("TransMiter, beta ", beta), moved.logits(strong_test_, d_.classes), seed);
      if (beta == t.beta[0]) {
        news += concat("; transferred in ", two_digits(stopwatch() - extracted),
                       " s, beta / (n (M - 1)) = ", beta / (double(rows.dim(0)) * double(m_ - 1)));
        if (beta == 0 && rows.dim(0) < latent_)
          std::cerr << "pupil: warning: transmiter.beta = 0 with " << rows.dim(0) << " samples for "
                    << latent_
                    << " dimensions: the basis change is arbitrary where there are no samples\n";
        save(moved, seed, "transferred");
      }
    }
    double transferred = stopwatch();
    Tensor strong_rows = index_select(strong_train_, as_tensor(labelled));
    Tensor labels = base_labels(labelled);
    for (const std::string& mode : plus_modes()) {
      AdapterModel plus(seed);
      begin_plus(plus, mode, weak, rotations[0]);
      methods::polish(plus.store, *plus.adapter, strong_rows, labels, d_.classes, polish_options(),
                      methods::shuffled_batches(strong_rows.dim(0), c_.plus.batch, seed));
      bool scratch = mode == kFromScratch;
      add(scratch ? "TransMiter+ without extraction" : "TransMiter+, " + mode,
          plus.logits(strong_test_, d_.classes), seed);
      if (!scratch) save(plus, seed, "plus_" + mode);
    }
    if (!plus_modes().empty())
      news += concat("; TransMiter+ in ", two_digits(stopwatch() - transferred), " s");
    say(news);
    if (folder_)
      folder_->append("timing.jsonl", Json{{"seed", seed},
                                           {"extraction_seconds", extracted - begin},
                                           {"transfer_seconds", transferred - extracted},
                                           {"plus_seconds", stopwatch() - transferred}}
                                          .dump());
  }

  static constexpr const char* kFromScratch = "from_scratch";

  std::vector<std::string> plus_modes() const {
    std::vector<std::string> modes = c_.plus.modes;
    if (c_.plus.from_scratch) modes.push_back(kFromScratch);
    return modes;
  }

  // The model that TransMiter+ begins with.
  void begin_plus(AdapterModel& plus, const std::string& mode, const AdapterModel& weak,
                  const Tensor& rotation) const {
    if (mode == kFromScratch) return new_adapter(plus);
    Basis form = mode == "orthogonal" ? adapter_options().basis : Basis::free;
    plus.adapter = weak.adapter->rotated(nn::Scope(plus.store), rotation, form);
    if (mode == "mlp_only") plus.store.freeze("network.0.*_proj.*");
  }

  methods::PolishOptions polish_options() const {
    methods::PolishOptions o;
    o.lr = c_.plus.lr;
    o.weight_decay = c_.plus.weight_decay;
    o.epochs = c_.plus.epochs;
    o.columns = d_.base;
    o.before_step = stop_if_interrupted;
    return o;
  }

  // What an adapter was made for: it fits only the same classes in the same order.
  Json identity() const {
    Json j;
    j["classes"] = d_.classes;
    j["logits"] = m_;
    j["latent"] = latent_;
    j["hidden"] = hidden_;
    j["basis"] = c_.transmiter.basis;
    j["names"] = d_.names;
    j["templates"] = c_.classes.templates;
    return j;
  }

  void save(const AdapterModel& model, uint64_t seed, const std::string& name) const {
    if (!folder_) return;
    std::string folder = folder_->file(concat("seed", seed));
    std::filesystem::create_directories(folder);
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const nn::Param& p : model.store.params()) tensors.emplace_back(p.name, p.value.detach());
    data::save_safetensors(folder + "/" + name + ".safetensors", tensors,
                           {{"transmiter", identity().dump()},
                            {"seed", std::to_string(seed)},
                            {"config", to_toml(c_)}});
  }

  void check_adapter_file() const {
    const std::string& path = c_.transmiter.adapter;
    auto file = data::open_safetensors(path);
    if (file->has("network.0.in_proj.weight"))
      fail_input(path,
                 " is an adapter after its transfer; transmiter.adapter needs one before it "
                 "(weak.safetensors)");
    auto text = file->metadata().find("transmiter");
    if (text == file->metadata().end()) {
      std::cerr << "pupil: warning: " << path
                << " does not say for which classes it was made; taken as it is\n";
      return;
    }
    Json then = Json::parse(text->second, nullptr, false), here = identity();
    if (!then.is_object()) fail_input(path, ": its metadata is not readable");
    std::string differences;
    for (auto& [key, value] : here.items()) {
      if (then.contains(key) && then[key] == value) continue;
      differences += (differences.empty() ? "" : ", ") + key;
      if (value.is_primitive())
        differences +=
            concat(" ", then.value(key, Json(nullptr)).dump(), " (here ", value.dump(), ")");
    }
    if (!differences.empty())
      fail_input(path, " was made for another job; these differ: ", differences);
  }

  TransmiterConfig c_;
  bool seeds_differ_;  // in their files
  TransmiterData d_;   // of one seed
  int64_t m_, latent_, hidden_;
  Tensor weak_train_, weak_test_, strong_train_, strong_test_;  // zero-shot logits (N, M)
  std::optional<RunFolder> folder_;
  std::vector<ScoreLine> lines_;
  std::string results_;  // lines for the seed's metrics.jsonl
  bool quiet_;
};

struct TransmiterArguments {
  std::string config;
  std::vector<std::string> settings;
  RunOptions options;
  bool json = false;
};

void transmiter_command(const TransmiterArguments& a) {
  std::string path = a.config;
  if (path.empty() && a.options.resume && !a.options.folder.empty())
    path = a.options.folder + "/config.toml";
  if (path.empty())
    fail_input(
        "transmiter: which configuration? pupil transmiter CONFIG.toml, or --run DIR --resume");
  TransmiterConfig config = read_transmiter_config(path, a.settings);
  std::vector<ScoreLine> lines = run_transmiter(config, a.options, a.json);
  bool novel = config.data.protocol == "base_to_novel";
  if (!a.json) {
    std::cout << table_of(lines, novel) << std::flush;
    return;
  }
  Json list = Json::array();
  for (const ScoreLine& line : lines)
    for (const BaseNovel& score : line.scores) list.push_back(score_json(line.model, score, novel));
  std::cout << list.dump(1) << std::endl;
}

}  // namespace

std::vector<ScoreLine> run_transmiter(const TransmiterConfig& config, RunOptions options,
                                      bool quiet) {
  use_threads(options);
  TransmiterJob job(config, options, quiet);
  Signals signals;
  try {
    job.go();
  } catch (const Interrupted&) {
    throw Interrupted(options.folder.empty()
                          ? "stopped; nothing is saved without --run DIR"
                          : concat("stopped; finished seeds are saved, go on with: pupil "
                                   "transmiter --run ",
                                   options.folder, " --resume"));
  }
  return job.lines();
}

TransmiterTrial try_transmiter(const TransmiterConfig& config) {
  return TransmiterJob(config, {}, true).trial();
}

void add_transmiter_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "transmiter", "carry the adaptation of a weak vision-language model to a strong one");
  command->footer(
      "Works on stored features: zero-shot heads, extraction, transfer, TransMiter+, and as\n"
      "baselines EFT, dynamic logit fusion, Tip-Adapter and the linear probe.\n"
      "Example:\n  pupil transmiter tools/recipes/caltech_transmiter.toml --run runs/transmiter\n"
      "  pupil transmiter --run runs/transmiter --resume");
  auto a = std::make_shared<TransmiterArguments>();
  command->add_option("CONFIG", a->config, "TOML file");
  command->add_option("--set", a->settings, "section.key=value, replaces what the file says");
  command->add_option("--run", a->options.folder,
                      "folder for results and adapters; without: only the table");
  command->add_flag("--resume", a->options.resume, "go on in that folder, finished seeds stay");
  command->add_flag("--json", a->json, "for machines");
  add_threads_option(*command, a->options.threads);
  command->callback([a] { transmiter_command(*a); });
}

}  // namespace pupil

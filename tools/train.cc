#include "train.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../tensor/runtime.h"
#include "interrupt.h"
#include "program.h"
#include "run_folder.h"
#include "study.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

struct OutOfTime {};

// One run from its first or its last checkpoint to the end.
class Run {
 public:
  Run(const Config& config, const RunOptions& options, Trainer& trainer, RunFolder& folder)
      : config_(config),
        trainer_(trainer),
        folder_(folder),
        trace_(options.trace),
        time_is_over_(options.time_is_over),
        terminal_(::isatty(STDOUT_FILENO)) {
    if (!trace_.empty() && *trace_.rbegin() > trainer.total_steps())
      fail_input("--trace ", *trace_.rbegin(), ": the run has ", trainer.total_steps(), " steps");
    std::string toml = to_toml(config, false);
    if (options.resume && folder.has(kCheckpoint)) {
      folder.require_config(
          toml, [](const std::string& path) { return to_toml(read_config(path), false); });
      folder.require_environment(trainer.sources());
      trainer.load(folder.file(kCheckpoint));
      folder.truncate(kMetrics, trainer.position().metrics_bytes);
      saved_step_ = trainer.position().step;
    } else {
      folder.write_config(toml);
      folder.write_environment(trainer.sources());
      folder.truncate(kMetrics, 0);
    }
  }

  bool saved() const { return saved_step_ >= 0; }

  void go() {
    Position& p = trainer_.position();
    if (p.finished) {
      say("this run is finished; its results are in " + folder_.path());
      return;
    }
    if (!trace_.empty() && *trace_.begin() <= p.step)
      fail_input("--trace ", *trace_.begin(), ": the run is past that step; use a new --run DIR");
    introduce();
    trainer_.on_preparation([this, shown = now()](const std::string& state) mutable {
      if (interrupted()) throw Interrupted("stopped");
      if (now() - shown < 5) return;
      shown = now();
      say(state);
    });
    while (!(p.step == trainer_.total_steps() && p.batch == 0) && !gave_up()) one_epoch();
    finish();
  }

  // Saves what a stopped run can go on from.
  void stop() {
    save();
    throw Interrupted(concat("stopped in step ", trainer_.position().step,
                             " and saved; go on with: pupil train --run ", folder_.path(),
                             " --resume"));
  }

  void end_of_time() {
    save();
    if (!trainer_.position().best_epoch) trainer_.save_student(folder_.file("last.safetensors"));
    say(concat("the time is over: stopped in step ", trainer_.position().step, " and saved"));
  }

  std::string last_checkpoint() const {
    if (!saved()) return "no checkpoint was written yet";
    return concat(folder_.file(kCheckpoint), " of step ", saved_step_, " is intact");
  }

 private:
  static constexpr const char* kCheckpoint = "checkpoint.safetensors";
  static constexpr const char* kMetrics = "metrics.jsonl";

  bool gave_up() const {
    const Position& p = trainer_.position();
    return config_.train.patience && p.epoch - p.best_epoch >= config_.train.patience;
  }

  void introduce() {
    const Position& p = trainer_.position();
    std::string line =
        concat(trainer_.model().name, ", ", counted(trainer_.parameters(), "parameter"), ", ",
               counted(trainer_.train_data().size(), "sample"), ", ",
               counted(trainer_.total_steps(), "step"), ", ", counted(cpu_threads(), "thread"),
               ", run ", folder_.path());
    if (p.step) line += concat("; resumed after step ", p.step);
    say(line);
    for (const std::string& warning : trainer_.warnings())
      std::cerr << "pupil: warning: " << warning << "\n";
  }

  void one_epoch() {
    Position& p = trainer_.position();
    int64_t every = config_.train.checkpoint_every;
    first_sample_ = p.samples;
    epoch_start_ = last_shown_ = now();
    while (!trainer_.epoch_done()) {
      bool very_first = p.step == 0;
      trainer_.step(trace_.count(p.step + 1)
                        ? folder_.file(concat("trace-", p.step + 1, ".safetensors"))
                        : "");
      if (very_first) report_without_gradient();
      if (interrupted()) throw Interrupted("stopped");
      if (time_is_over_ && time_is_over_()) throw OutOfTime();
      if (every && p.step % every == 0) save();
      show();
    }
    double train_seconds = now() - epoch_start_, wait = trainer_.wait_seconds();

    Json line{{"epoch", p.epoch + 1}, {"step", p.step}, {"lr", trainer_.learning_rate()}};
    line["train"] = {{"loss", mean_loss("total")}};
    for (auto& [name, sum] : p.losses)
      if (name != "total") line["train"]["parts"][name] = mean_loss(name);
    line["train"]["top1"] = double(p.correct) / double(p.samples);
    for (auto& [method, numbers] : trainer_.statistics())
      for (auto& [name, value] : numbers) line["methods"][method][name] = value;
    std::string accuracy;
    if (const data::Dataset* validation = trainer_.validation_data()) {
      Scores scores = score_student(*validation);
      line["validation"] = as_json(scores);
      if (scores.top1 > p.best_top1) {
        p.best_top1 = scores.top1;
        p.best_epoch = p.epoch + 1;
        trainer_.save_student(folder_.file("best.safetensors"));
      }
      line["best"] = {{"epoch", p.best_epoch}, {"top1", p.best_top1}};
      accuracy = concat("  validation ", fixed(100 * scores.top1, 2), " % (best ",
                        fixed(100 * p.best_top1, 2), ")");
    }
    show(train_seconds, accuracy);
    Json timing{{"epoch", p.epoch + 1},
                {"images", p.samples - first_sample_},
                {"train_seconds", train_seconds},
                {"wait_seconds", wait},
                {"seconds", now() - epoch_start_}};
    folder_.append("timing.jsonl", timing.dump());
    folder_.append(kMetrics, line.dump());
    p.metrics_bytes = folder_.size(kMetrics);
    trainer_.next_epoch();
    save();
  }

  // The test set is used here and nowhere else, but for ft's early_stop_on = "test".
  void finish() {
    Position& p = trainer_.position();
    Json line{{"final", true}, {"epochs", p.epoch}, {"step", p.step}};
    std::string result;
    if (const data::Dataset* test = trainer_.test_data()) {
      Scores last = score_student(*test);
      line["test"]["last"] = as_json(last);
      result = concat("test: last ", fixed(100 * last.top1, 2), " %");
      if (p.best_epoch) {
        Network best = load_network(parse_network(folder_.file("best.safetensors")));
        Scores scores = score(best.model, *test);
        line["test"]["best"] = as_json(scores);
        line["test"]["best"]["epoch"] = p.best_epoch;
        result += concat(", best (epoch ", p.best_epoch, ") ", fixed(100 * scores.top1, 2), " %");
      }
    }
    trainer_.save_student(folder_.file("last.safetensors"));
    folder_.append(kMetrics, line.dump());
    p.metrics_bytes = folder_.size(kMetrics);
    p.finished = true;
    save();
    std::string why;
    if (p.step < trainer_.total_steps())
      why = concat(" after epoch ", p.epoch, ", since none was better than epoch ", p.best_epoch);
    say(concat(result, result.empty() ? "" : "; ", "finished", why, ", results in ",
               folder_.path()));
  }

  void save() {
    trainer_.save(folder_.file(kCheckpoint));
    saved_step_ = trainer_.position().step;
  }

  Scores score(const models::Model& model, const data::Dataset& set) const {
    return evaluate(model, set, config_.train.batch, int(config_.data.workers),
                    [] { return !interrupted(); });
  }

  Scores score_student(const data::Dataset& set) {
    Scores scores;
    trainer_.with_averages([&] { scores = score(trainer_.model(), set); });
    return scores;
  }

  static Json as_json(const Scores& s) {
    return {{"loss", s.loss}, {"top1", s.top1}, {"top5", s.top5}};
  }

  double mean_loss(const std::string& part) const {
    const Position& p = trainer_.position();
    for (auto& [name, sum] : p.losses)
      if (name == part) return sum / double(p.samples);
    return 0;
  }

  void report_without_gradient() {
    const std::vector<std::string>& names = trainer_.without_gradient();
    if (names.empty()) return;
    std::string list;
    for (size_t i = 0; i < std::min<size_t>(names.size(), 8); i++) list += " " + names[i];
    if (names.size() > 8) list += concat(" and ", names.size() - 8, " more");
    say(concat(counted(int64_t(names.size()), "parameter"), " got no gradient in step 1:", list));
  }

  // The line of the epoch: on a terminal it is renewed, elsewhere printed every 20 s. At the end of
  // the epoch it says how long the steps took, and the accuracy.
  void show(std::optional<double> train_seconds = {}, const std::string& accuracy = "") {
    double time = now();
    bool done = train_seconds.has_value();
    if (!done && time - last_shown_ < (terminal_ ? 0.2 : 20)) return;
    last_shown_ = time;
    Position& p = trainer_.position();
    double in_epoch = std::max(done ? *train_seconds : time - epoch_start_, 1e-9);
    double images = double(p.samples - first_sample_);
    double left = double(trainer_.total_steps() - p.step) * in_epoch /
                  std::max(images / double(config_.train.batch * config_.train.accumulate), 1.0);
    std::string line =
        concat("epoch ", p.epoch + 1, "/",
               (trainer_.total_steps() + trainer_.epoch_steps() - 1) / trainer_.epoch_steps(),
               "  loss ", fixed(mean_loss("total"), 4), " (");
    for (size_t i = 1; i < p.losses.size(); i++)
      line += concat(i > 1 ? ", " : "", p.losses[i].first, " ",
                     fixed(p.losses[i].second / double(p.samples), 4));
    line +=
        concat(")  train ", fixed(100 * double(p.correct) / double(p.samples), 2), " %", accuracy);
    if (images > 0)  // none: resumed where the epoch ends
      line +=
          concat("  ", std::llround(images / in_epoch), " images/s  waited ",
                 fixed(100 * trainer_.wait_seconds() / in_epoch, 1), " %  left ", duration(left));
    if (terminal_)
      std::cout << "\r" << line << "\033[K" << (done ? "\n" : "") << std::flush;
    else
      std::cout << line << std::endl;
  }

  void say(const std::string& line) {
    if (terminal_) std::cout << "\r\033[K";
    std::cout << line << std::endl;
  }

  const Config& config_;
  Trainer& trainer_;
  RunFolder& folder_;
  std::set<int64_t> trace_;
  std::function<bool()> time_is_over_;
  bool terminal_;
  int64_t saved_step_ = -1, first_sample_ = 0;  // first_sample_: of this epoch in this process
  double epoch_start_ = 0, last_shown_ = 0;
};

// "1,5" or "1-3,10": steps from 1.
std::set<int64_t> parse_steps(const std::string& text) {
  std::set<int64_t> steps;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int64_t first = 0, last = 0;
    int used = 0, size = int(part.size());
    bool one = std::sscanf(part.c_str(), "%9ld%n", &first, &used) == 1 && used == size;
    bool range =
        !one && std::sscanf(part.c_str(), "%9ld-%9ld%n", &first, &last, &used) == 2 && used == size;
    if (one) last = first;
    if (!(one || range) || first < 1 || last < first || last - first >= 1000)
      fail_input("--trace ", text, ": expected steps from 1, as 1,5 or 1-3 (at most 1000)");
    for (int64_t step = first; step <= last; step++) steps.insert(step);
  }
  return steps;
}

struct TrainArguments {
  std::string config, folder, device = "cpu", trace;
  std::vector<std::string> settings;
  bool resume = false;
  int threads = -1;
};

void train(const TrainArguments& a) {
  if (a.config.empty() && !(a.resume && !a.folder.empty()))
    fail_input("train: which configuration? pupil train CONFIG.toml, or --run DIR --resume");
  RunOptions options{a.folder, a.resume, a.threads, parse_steps(a.trace)};
  std::string path = a.config;
  if (options.folder.empty())
    options.folder = "runs/" + std::filesystem::path(a.config).stem().string();
  for (const char* name : {"config.toml", kStudyConfig}) {
    std::error_code error;
    std::string stored = concat(a.folder, "/", name);
    if (path.empty() && std::filesystem::exists(stored, error)) path = stored;
  }
  if (path.empty())
    fail_input("--resume: there is no run in ", a.folder, " (no config.toml, no ", kStudyConfig,
               ")");
  Study study = read_study(path, a.settings);
  if (study.arms.empty())
    run(read_config(path, a.settings), options);
  else
    run_study(study, options);
}

}  // namespace

void use_threads(RunOptions& options) {
  std::string path = options.folder + "/environment.json";
  std::error_code error;
  Json stored;
  if (options.resume && std::filesystem::exists(path, error))
    stored = Json::parse(read_file(path), nullptr, false);
  if (!stored.is_object()) stored = Json::object();
  if (options.threads < 0 && stored.contains("threads") && stored["threads"].is_number_integer())
    options.threads = stored["threads"].get<int>();
  if (stored.contains("exact_mode") && stored["exact_mode"] == true) set_exact_mode(true);
  options.threads = std::max(options.threads, 0);
  use_threads(options.threads);
}

bool run(const Config& given, RunOptions options) {
  use_threads(options);
  Config asked = given;
  std::string begun = options.folder + "/config.toml";
  std::error_code error;
  if (asked.train.precision == "auto" && options.resume && std::filesystem::exists(begun, error))
    asked.train.precision = read_config(begun).train.precision;
  Trainer trainer(asked);
  const Config& config = trainer.config();
  RunFolder folder(options.folder, options.resume);
  Signals signals;
  std::optional<Run> run;
  try {
    run.emplace(config, options, trainer, folder);
    run->go();
  } catch (const OutOfTime&) {
    run->end_of_time();
    return false;
  } catch (const Interrupted&) {
    run->stop();
  } catch (const InputError&) {
    if (!run || !run->saved()) folder.discard();
    throw;
  } catch (const std::exception& error) {
    throw Error(
        concat(error.what(), "; ", run ? run->last_checkpoint() : "no checkpoint was written"));
  }
  return true;
}

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "train a student");
  command->footer(
      "Examples:\n  pupil train kd.toml --set train.lr=0.1 --run runs/kd-0.1\n"
      "  pupil train --run runs/kd-0.1 --resume");
  auto a = std::make_shared<TrainArguments>();
  command->add_option("config", a->config, "CONFIG.toml, as `pupil init` prints it");
  command
      ->add_option("--set", a->settings, "SECTION.KEY=VALUE instead of the file's; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--run", a->folder, "folder of the run (default: runs/CONFIG)");
  command->add_flag("--resume", a->resume, "go on from the folder's checkpoint, if it has one");
  command->add_option("--trace", a->trace,
                      "steps (1,5 or 1-3) whose tensors go into trace-STEP.safetensors of the run");
  command->add_option("--device", a->device, "cpu")->check(CLI::IsMember({"cpu"}));
  add_threads_option(*command, a->threads);
  command->callback([a] { train(*a); });
}

}  // namespace pupil

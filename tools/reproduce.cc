#include "reproduce.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../tensor/runtime.h"
#include "program.h"
#include "report.h"
#include "run_folder.h"
#include "study.h"
#include "transmiter_job.h"

namespace pupil {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Arguments {
  std::string name, folder;
  std::vector<std::string> settings;
  bool dry_run = false, resume = false, json = false;
  int threads = -1;
};

// The reproductions that belong to this program, by name: of an installation, or of the source tree
// it was built in.
std::map<std::string, std::string> installed() {
  std::map<std::string, std::string> found;
  fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  for (const char* place : {"../share/pupil/reproduce", "../tools/reproduce"}) {
    if (!fs::is_directory(here / place)) continue;
    for (auto& entry : fs::directory_iterator(here / place))
      if (entry.path().extension() == ".toml")
        found[entry.path().stem().string()] = entry.path().lexically_normal().string();
    break;
  }
  return found;
}

std::string find(const std::string& name) {
  if (name.ends_with(".toml")) return name;
  auto all = installed();
  auto at = all.find(name);
  if (at != all.end()) return at->second;
  std::vector<std::string> names;
  for (auto& [known, path] : all) names.push_back(known);
  if (names.empty()) fail_input("reproduce: no reproductions are installed; name a .toml file");
  fail_input("unknown reproduction '", name, "'", did_you_mean(name, names),
             " (`pupil reproduce` lists them, a file of your own ends with .toml)");
}

void list(bool as_json) {
  Json j = Json::array();
  for (auto& [name, path] : installed()) {
    Reproduction r = read_reproduction(path);
    j.push_back({{"name", name}, {"title", r.title}, {"source", r.source}, {"file", path}});
    if (!as_json) std::cout << fmt::format("{:<33} {}\n", name, r.title);
  }
  if (as_json) std::cout << j.dump(1) << "\n";
}

// What is not there, unless a --set names another place for it.
void require_present(const std::string& name, const Reproduction& r, const Arguments& a) {
  std::string missing;
  for (const Reproduction::Need& need : r.needs) {
    bool elsewhere = std::any_of(a.settings.begin(), a.settings.end(), [&](const std::string& s) {
      return s.starts_with(need.setting + "=");
    });
    if (elsewhere || fs::exists(need.path)) continue;
    missing += concat(missing.empty() ? "" : "; ", need.path, " (", need.what, ")");
    if (!need.make.empty()) missing += concat(", made by: ", need.make);
    if (!need.setting.empty()) missing += concat(", or --set ", need.setting, "=...");
  }
  if (!missing.empty()) fail_input("reproduce ", name, ": put these in place first: ", missing);
}

double clock_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string minutes(double seconds) {
  return seconds < 100    ? fmt::format("{:.0f} s", seconds)
         : seconds < 6000 ? fmt::format("{:.0f} min", seconds / 60)
                          : fmt::format("{:.1f} h", seconds / 3600);
}

// A line about trainings that are to come; how many seconds they take together.
double announce(const std::string& name, int64_t parameters, int64_t samples, int64_t steps,
                int64_t runs, double step_seconds) {
  double seconds = step_seconds * double(steps * runs);
  std::cout << fmt::format(
      "{}: {} parameters, {} samples, {} steps x {} runs, {:.0f} ms a step, {}\n", name, parameters,
      samples, steps, runs, 1e3 * step_seconds, minutes(seconds));
  return seconds;
}

// Loads everything; the time of `runs` whole trainings follows from the fastest of some steps after
// two that touch memory for the first time.
double try_out(const std::string& name, const Config& config, int64_t runs,
               const std::string& student_to = "") {
  Trainer trainer(config);
  double begin = clock_seconds(), step = 0;
  for (int64_t i = 0; i < std::min<int64_t>(12, trainer.total_steps()); i++) {
    if (i > 2 && clock_seconds() - begin > 1) break;
    if (trainer.epoch_done()) trainer.next_epoch();
    double start = clock_seconds();
    trainer.step();
    double seconds = clock_seconds() - start;
    step = i > 2 ? std::min(step, seconds) : seconds;
  }
  if (!student_to.empty()) trainer.save_student(student_to);
  return announce(name, trainer.parameters(), trainer.train_data().size(), trainer.total_steps(),
                  runs, step);
}

void teach(Study& study, const std::string& weights) {
  for (Study::Arm& arm : study.arms) {
    if (arm.config.teachers.empty()) continue;
    arm.config.teachers[0].weights = weights;
    arm.config.teachers[0].features.clear();
  }
}

void say_total(double seconds) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::cout << fmt::format(
      "all: {} of training steps on {} threads (evaluation is not in it), "
      "peak memory {:.0f} MB; a few steps of each were run\n",
      minutes(seconds), cpu_threads(), double(usage.ru_maxrss) / 1024);
}

void dry_run(const Reproduction& r, Study study) {
  data::ScratchFolder scratch;
  double seconds = 0;
  if (!r.teacher.empty()) {
    std::string weights = scratch.path + "/teacher.safetensors";
    seconds += try_out("teacher", read_config(r.teacher), 1, weights);
    teach(study, weights);
  }
  for (const Study::Arm& arm : study.arms) {
    Config config = arm.config;
    config.train.seed = study.seeds[0];
    if (!study.lr.empty()) config.train.lr = study.lr[0];
    size_t trials = study.lr.size() > 1 ? study.lr.size() : 0;
    seconds += try_out(arm.name, config, int64_t(study.seeds.size() + trials));
  }
  say_total(seconds);
}

// Test accuracies of an arm in percent, a value per seed; `weights` is last or best.
std::vector<double> accuracies(const std::string& folder, const Study& study,
                               const std::string& arm, const std::string& weights) {
  std::vector<double> values;
  for (int64_t seed : study.seeds) {
    std::istringstream lines(read_file(concat(folder, "/", arm, "/seed", seed, "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      Json j = Json::parse(line, nullptr, false);
      if (j.is_object() && j.contains("test") && j["test"].contains(weights))
        values.push_back(100 * j["test"][weights]["top1"].get<double>());
    }
  }
  return values;
}

std::string spread(const std::vector<double>& x) {
  if (x.empty()) return "-";
  return fmt::format("{:.2f} ± {:.2f}", mean(x), deviation(x));
}

// The values of an arm, one per seed; `weights` is last or best.
using Values = std::function<std::vector<double>(const std::string& arm, const std::string& weights,
                                                 const std::string& score)>;

// From the table of TransMiter: there is no best epoch. One value: no seed matters.
std::vector<double> scores(const std::vector<ScoreLine>& lines, const std::string& model,
                           const std::string& weights, const std::string& score) {
  std::vector<std::string> names;
  for (const ScoreLine& line : lines) names.push_back(line.model);
  auto at = std::find(names.begin(), names.end(), model);
  if (at == names.end())
    fail_input("reproduce.result: there is no row \"", model, "\"", did_you_mean(model, names));
  std::vector<double> values;
  if (weights == "best") return values;
  for (const methods::BaseNovel& s : lines[size_t(at - names.begin())].scores) {
    auto value = score == "novel" ? s.novel : score == "harmonic_mean" ? s.harmonic_mean : s.base;
    if (value) values.push_back(*value);
  }
  return values;
}

struct Judged {
  std::string what;
  const Reproduction::Result* result;
  std::vector<double> last, best;
  bool inside = false;
};

Judged judge(const Reproduction::Result& result, const Values& values_of) {
  Judged judged{result.arm, &result, {}, {}, false};
  const std::string& other = result.minus.empty() ? result.error_over : result.minus;
  for (auto [weights, values] : {std::pair{"last", &judged.last}, {"best", &judged.best}}) {
    *values = values_of(result.arm, weights, result.score);
    if (other.empty()) continue;
    std::vector<double> base = values_of(other, weights, result.score);
    if (base.size() == 1) base.resize(values->size(), base[0]);
    if (base.size() != values->size()) values->clear();
    for (size_t i = 0; i < values->size(); i++)
      (*values)[i] =
          result.minus.empty() ? (100 - (*values)[i]) / (100 - base[i]) : (*values)[i] - base[i];
  }
  if (!result.minus.empty()) judged.what += " minus " + result.minus;
  if (!result.error_over.empty())
    judged.what = concat("error of ", result.arm, " / error of ", result.error_over);
  if (result.score != "accuracy") judged.what += ", " + result.score;
  const std::vector<double>& ours = result.weights == "best" ? judged.best : judged.last;
  if (ours.empty())
    fail_input("reproduce: the runs of ", result.arm, " have no test accuracy of their ",
               result.weights, " weights: give data.test",
               result.weights == "best" ? " and validation samples" : "");
  auto in = [](double x, const std::vector<double>& band) { return x >= band[0] && x <= band[1]; };
  judged.inside = in(mean(ours), result.band) && deviation(ours) <= result.sigma &&
                  (result.seed_band.empty() || std::all_of(ours.begin(), ours.end(), [&](double x) {
                     return in(x, result.seed_band);
                   }));
  return judged;
}

std::string shown_band(const Reproduction::Result& r) {
  std::string text = fmt::format("{:.2f} to {:.2f}", r.band[0], r.band[1]);
  if (!r.seed_band.empty())
    text += fmt::format(", each seed {:.2f} to {:.2f}", r.seed_band[0], r.seed_band[1]);
  if (r.sigma < 100) text += fmt::format(", deviation at most {:.2f}", r.sigma);
  return text;
}

std::string markdown(const std::string& name, const Reproduction& r,
                     const std::vector<int64_t>& seeds, const std::vector<Judged>& results,
                     bool reproduced) {
  std::string text = fmt::format("# {}: {}\n\n", name, r.title);
  for (auto [label, value] : {std::pair{"Source", &r.source},
                              {"Protocol", &r.protocol},
                              {"What differs here", &r.differs}})
    if (!value->empty()) text += fmt::format("{}: {}\n\n", label, *value);
  text += fmt::format(
      "Test accuracy in percent, mean ± deviation over {} seeds, pupil {}, {} threads.\n\n"
      "| arm | published | band | judged | last | best | verdict "
      "|\n|---|---|---|---|---|---|---|\n",
      seeds.size(), version(), cpu_threads());
  for (const Judged& j : results)
    text += fmt::format(
        "| {} | {} | {} | {} | {} | {} | {} |\n", j.what,
        j.result->published.empty()
            ? "-"
            : j.result->published + (j.result->source.empty() ? "" : " (" + j.result->source + ")"),
        shown_band(*j.result), j.result->weights, spread(j.last), spread(j.best),
        j.inside ? "inside" : "**outside**");
  return text + fmt::format("\n{}\n", reproduced ? "Reproduced." : "Not reproduced.");
}

Json as_json(const std::string& name, const Reproduction& r, const std::vector<int64_t>& seeds,
             const std::vector<Judged>& results, bool reproduced) {
  Json j{{"name", name},           {"title", r.title},         {"source", r.source},
         {"protocol", r.protocol}, {"differs", r.differs},     {"seeds", seeds},
         {"version", version()},   {"threads", cpu_threads()}, {"reproduced", reproduced}};
  auto numbers = [](const std::vector<double>& x) {
    return x.empty() ? Json() : Json{{"mean", mean(x)}, {"sigma", deviation(x)}, {"values", x}};
  };
  for (const Judged& judged : results)
    j["results"].push_back({{"arm", judged.result->arm},
                            {"minus", judged.result->minus},
                            {"error_over", judged.result->error_over},
                            {"score", judged.result->score},
                            {"published", judged.result->published},
                            {"source", judged.result->source},
                            {"band", judged.result->band},
                            {"seed_band", judged.result->seed_band},
                            {"largest_sigma", judged.result->sigma},
                            {"weights", judged.result->weights},
                            {"last", numbers(judged.last)},
                            {"best", numbers(judged.best)},
                            {"inside", judged.inside}});
  return j;
}

// Trains what is not trained yet.
void train_all(const Reproduction& r, Study& study, const Arguments& a, const std::string& folder) {
  RunOptions options{folder + "/study", a.resume, a.threads};
  if (!r.teacher.empty()) {
    std::string teacher = folder + "/teacher";
    bool begun = fs::exists(teacher + "/config.toml");
    run(read_config(r.teacher), {teacher, begun, a.threads});
    teach(study, teacher + "/last.safetensors");
  }
  options.resume = fs::exists(options.folder);
  run_study(study, options);
}

// What is reproduced: a study, or a table of TransMiter.
struct Job {
  std::vector<int64_t> seeds;
  std::function<void()> dry_run;
  std::function<Values(const std::string& folder)> run;
};

Job study_job(const Reproduction& r, const std::string& path, const Arguments& a) {
  Study study = read_reproduced_study(path, a.settings);
  return {study.seeds, [=] { dry_run(r, study); },
          [=](const std::string& folder) -> Values {
            Study trained = study;
            train_all(r, trained, a, folder);
            return [=](auto& arm, auto& weights, auto&) {
              return accuracies(folder + "/study", study, arm, weights);
            };
          }};
}

Job transmiter_job(const Reproduction& r, const std::string& path, const Arguments& a) {
  TransmiterConfig config = read_transmiter_config(path, a.settings);
  for (const Reproduction::Result& result : r.results)
    if ((result.score == "accuracy") != (config.data.protocol == "base_to_base"))
      fail_input(path, ": reproduce.result.score \"", result.score, "\" is not reported by the ",
                 "protocol ", config.data.protocol);
  return {config.seeds,
          [=] {
            TransmiterTrial t = try_transmiter(config);
            say_total(announce("transmiter", t.parameters, t.samples, t.steps,
                               int64_t(config.seeds.size()),
                               t.seconds / double(std::max<int64_t>(t.steps, 1))));
          },
          [=](const std::string& folder) -> Values {
            std::string study = folder + "/study";
            auto lines = run_transmiter(config, {study, fs::exists(study), a.threads});
            return [=](auto& arm, auto& weights, auto& score) {
              return scores(lines, arm, weights, score);
            };
          }};
}

void reproduce(const Arguments& a) {
  if (a.name.empty()) return list(a.json);
  std::string path = find(a.name), name = fs::path(path).stem().string();
  Reproduction r = read_reproduction(path);
  require_present(name, r, a);
  Job job = is_transmiter(path) ? transmiter_job(r, path, a) : study_job(r, path, a);
  if (a.dry_run) {
    use_threads(std::max(a.threads, 0));
    return job.dry_run();
  }
  std::string folder = a.folder.empty() ? "runs/reproduce/" + name : a.folder;
  if (fs::exists(folder) && !a.resume)
    fail_input("reproduce: ", folder, " exists; go on with --resume, or name another --run DIR");
  Values values;
  try {
    values = job.run(folder);
  } catch (const Interrupted&) {
    throw Interrupted(concat("stopped and saved; go on with: pupil reproduce ", a.name, " --run ",
                             folder, " --resume"));
  }
  std::vector<Judged> results;
  for (const Reproduction::Result& result : r.results) results.push_back(judge(result, values));
  bool reproduced =
      std::all_of(results.begin(), results.end(), [](const Judged& j) { return j.inside; });
  std::string text = markdown(name, r, job.seeds, results, reproduced);
  data::write_file(folder + "/reproduction.md", text);
  data::write_file(folder + "/reproduction.json",
                   as_json(name, r, job.seeds, results, reproduced).dump(2) + "\n");
  std::cout << text << "written to " << folder << "/reproduction.md and .json" << std::endl;
  if (!reproduced) throw Error(concat("reproduce: ", name, " is not inside its acceptance band"));
}

}  // namespace

void add_reproduce_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("reproduce", "run a published experiment again and judge the result");
  command->footer(
      "Without NAME the reproductions are listed. Exit code 1: a result is outside its band.\n"
      "Example:\n  pupil reproduce quickstart --dry-run\n  pupil reproduce quickstart");
  auto a = std::make_shared<Arguments>();
  command->add_option("NAME", a->name, "of the list, or a file of your own, FILE.toml");
  command->add_flag("--dry-run", a->dry_run, "load everything, run a few steps, estimate the time");
  command->add_option("--run", a->folder, "folder of the runs (default: runs/reproduce/NAME)");
  command->add_flag("--resume", a->resume, "go on in that folder");
  command->add_option("--set", a->settings, "SECTION.KEY=VALUE instead of the study's")
      ->allow_extra_args(false);
  add_threads_option(*command, a->threads);
  command->add_flag("--json", a->json, "the list, for machines");
  command->callback([a] { reproduce(*a); });
}

}  // namespace pupil

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
  fail_input("unknown reproduction '", name, "': did you mean '", nearest_name(name, names),
             "'? `pupil reproduce` lists them, a file of your own ends with .toml");
}

void list(bool as_json) {
  Json j = Json::array();
  for (auto& [name, path] : installed()) {
    Reproduction r = read_reproduction(path);
    j.push_back({{"name", name}, {"title", r.title}, {"source", r.source}, {"file", path}});
    if (!as_json) std::cout << fmt::format("{:<24} {}\n", name, r.title);
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
    missing += concat(missing.empty() ? "" : "; ", need.path, " (", need.what, "), or --set ",
                      need.setting, "=...");
  }
  if (!missing.empty()) fail_input("reproduce ", name, ": put these in place first: ", missing);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string minutes(double seconds) {
  return seconds < 100    ? fmt::format("{:.0f} s", seconds)
         : seconds < 6000 ? fmt::format("{:.0f} min", seconds / 60)
                          : fmt::format("{:.1f} h", seconds / 3600);
}

// Loads everything, runs two steps; the time of `runs` whole trainings follows from the second.
double try_out(const std::string& name, const Config& config, int64_t runs,
               const std::string& student_to = "") {
  Trainer trainer(config);
  trainer.step();
  if (trainer.epoch_done()) trainer.next_epoch();
  double start = now(), step = 0;
  if (trainer.position().step < trainer.total_steps()) {
    trainer.step();
    step = now() - start;
  }
  if (!student_to.empty()) trainer.save_student(student_to);
  double seconds = step * double(trainer.total_steps() * runs);
  std::cout << fmt::format(
      "{}: {} parameters, {} samples, {} steps x {} runs, {:.0f} ms a step, {}\n", name,
      trainer.parameters(), trainer.train_data().size(), trainer.total_steps(), runs, 1e3 * step,
      minutes(seconds));
  return seconds;
}

// A folder that is gone when this ends.
struct Scratch {
  std::string path = (fs::temp_directory_path() / "pupil-dry-XXXXXX").string();
  Scratch() {
    if (!mkdtemp(path.data())) fail_input("reproduce: cannot make a folder ", path);
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

void teach(Study& study, const std::string& weights) {
  for (Study::Arm& arm : study.arms) {
    if (arm.config.teachers.empty()) continue;
    arm.config.teachers[0].weights = weights;
    arm.config.teachers[0].features.clear();
  }
}

void dry_run(const Reproduction& r, Study study) {
  Scratch scratch;
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
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::cout << fmt::format(
      "all: {} of training steps on {} threads (evaluation is not in it), "
      "peak memory {:.0f} MB; two steps of each were run\n",
      minutes(seconds), cpu_threads(), double(usage.ru_maxrss) / 1024);
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

struct Judged {
  std::string what;
  const Reproduction::Result* result;
  std::vector<double> last, best;
  bool inside = false;
};

Judged judge(const Reproduction::Result& result, const std::string& folder, const Study& study) {
  Judged judged{result.arm, &result, {}, {}, false};
  for (auto [weights, values] : {std::pair{"last", &judged.last}, {"best", &judged.best}}) {
    *values = accuracies(folder, study, result.arm, weights);
    if (result.minus.empty()) continue;
    std::vector<double> other = accuracies(folder, study, result.minus, weights);
    if (other.size() != values->size()) values->clear();
    for (size_t i = 0; i < values->size(); i++) (*values)[i] -= other[i];
  }
  if (!result.minus.empty()) judged.what += " minus " + result.minus;
  const std::vector<double>& ours = result.weights == "best" ? judged.best : judged.last;
  if (ours.empty())
    fail_input("reproduce: the runs of ", result.arm, " have no test accuracy of their ",
               result.weights, " weights: give data.test",
               result.weights == "best" ? " and validation samples" : "");
  judged.inside = mean(ours) >= result.band[0] && mean(ours) <= result.band[1];
  return judged;
}

std::string markdown(const std::string& name, const Reproduction& r, const Study& study,
                     const std::vector<Judged>& results, bool reproduced) {
  std::string text = fmt::format("# {}: {}\n\n", name, r.title);
  for (auto [label, value] : {std::pair{"Source", &r.source},
                              {"Protocol", &r.protocol},
                              {"What differs here", &r.differs}})
    if (!value->empty()) text += fmt::format("{}: {}\n\n", label, *value);
  text += fmt::format(
      "Test accuracy in percent, mean ± deviation over {} seeds, pupil {}, {} threads.\n\n"
      "| arm | published | band | judged | last | best | verdict "
      "|\n|---|---|---|---|---|---|---|\n",
      study.seeds.size(), version(), cpu_threads());
  for (const Judged& j : results)
    text += fmt::format(
        "| {} | {} | {:.2f} to {:.2f} | {} | {} | {} | {} |\n", j.what,
        j.result->published.empty()
            ? "-"
            : j.result->published + (j.result->source.empty() ? "" : " (" + j.result->source + ")"),
        j.result->band[0], j.result->band[1], j.result->weights, spread(j.last), spread(j.best),
        j.inside ? "inside" : "**outside**");
  return text + fmt::format("\n{}\n", reproduced ? "Reproduced." : "Not reproduced.");
}

Json as_json(const std::string& name, const Reproduction& r, const Study& study,
             const std::vector<Judged>& results, bool reproduced) {
  Json j{{"name", name},           {"title", r.title},         {"source", r.source},
         {"protocol", r.protocol}, {"differs", r.differs},     {"seeds", study.seeds},
         {"version", version()},   {"threads", cpu_threads()}, {"reproduced", reproduced}};
  auto numbers = [](const std::vector<double>& x) {
    return x.empty() ? Json() : Json{{"mean", mean(x)}, {"sigma", deviation(x)}, {"values", x}};
  };
  for (const Judged& judged : results)
    j["results"].push_back({{"arm", judged.result->arm},
                            {"minus", judged.result->minus},
                            {"published", judged.result->published},
                            {"source", judged.result->source},
                            {"band", judged.result->band},
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

void reproduce(const Arguments& a) {
  if (a.name.empty()) return list(a.json);
  std::string path = find(a.name), name = fs::path(path).stem().string();
  Reproduction r = read_reproduction(path);
  require_present(name, r, a);
  Study study = read_reproduced_study(path, a.settings);
  if (a.dry_run) {
    use_threads(std::max(a.threads, 0));
    return dry_run(r, study);
  }
  std::string folder = a.folder.empty() ? "runs/reproduce/" + name : a.folder;
  if (fs::exists(folder) && !a.resume)
    fail_input("reproduce: ", folder, " exists; go on with --resume, or name another --run DIR");
  try {
    train_all(r, study, a, folder);
  } catch (const Interrupted&) {
    throw Interrupted(concat("stopped and saved; go on with: pupil reproduce ", a.name, " --run ",
                             folder, " --resume"));
  }
  std::vector<Judged> results;
  for (const Reproduction::Result& result : r.results)
    results.push_back(judge(result, folder + "/study", study));
  bool reproduced =
      std::all_of(results.begin(), results.end(), [](const Judged& j) { return j.inside; });
  std::string text = markdown(name, r, study, results, reproduced);
  data::write_file(folder + "/reproduction.md", text);
  data::write_file(folder + "/reproduction.json",
                   as_json(name, r, study, results, reproduced).dump(2) + "\n");
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
  command->add_flag("--dry-run", a->dry_run, "load everything, run two steps, estimate the time");
  command->add_option("--run", a->folder, "folder of the runs (default: runs/reproduce/NAME)");
  command->add_flag("--resume", a->resume, "go on in that folder");
  command->add_option("--set", a->settings, "SECTION.KEY=VALUE instead of the study's")
      ->allow_extra_args(false);
  command->add_option("--threads", a->threads, "CPU threads (0: all)")->check(CLI::Range(0, 1024));
  command->add_flag("--json", a->json, "the list, for machines");
  command->callback([a] { reproduce(*a); });
}

}  // namespace pupil

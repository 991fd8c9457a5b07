#include "study.h"

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../tensor/runtime.h"
#include "machine.h"
#include "program.h"
#include "run_folder.h"
#include "text.h"

namespace pupil {
namespace {

// One run in a folder of its own; an earlier one there is finished or continued.
void run_in(const Config& config, const RunOptions& options, const std::string& name) {
  RunOptions one = options;
  one.folder = options.folder + "/" + name;
  one.resume = std::filesystem::exists(one.folder + "/config.toml");
  run(config, one);
}

// The best accuracy on the validation samples, as the last epoch's line of metrics.jsonl says.
double best_validation(const std::string& folder) {
  std::istringstream lines(read_file(folder + "/metrics.jsonl"));
  double best = -1;
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    if (j.is_object() && j.contains("best")) best = j["best"].value("top1", best);
  }
  return best;
}

// The learning rate whose run with the first seed is best on the validation samples.
double choose_lr(const Study& study, const Study::Arm& arm, const RunOptions& options) {
  if (study.lr.empty()) return arm.config.train.lr;
  if (study.lr.size() == 1) return study.lr[0];
  double chosen = 0, best = -1;
  std::string tried;
  for (double lr : study.lr) {
    Config config = arm.config;
    config.data.test.clear();
    config.train.lr = lr;
    config.train.seed = study.seeds[0];
    if (study.lr_epochs) config.train.epochs = study.lr_epochs;
    std::string name = concat(arm.name, "/lr", lr);
    run_in(config, options, name);
    double top1 = best_validation(options.folder + "/" + name);
    tried += concat(tried.empty() ? "" : ", ", "lr ", lr, " ", percent(top1));
    if (top1 > best) {
      best = top1;
      chosen = lr;
    }
  }
  std::cout << arm.name << ": on the validation samples " << tried << "; taking lr " << chosen
            << std::endl;
  return chosen;
}

bool holds_runs(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_directory()) return true;
  return false;
}

}  // namespace

void run_study(const Study& given, RunOptions options) {
  use_threads(options);
  RunFolder folder(options.folder, options.resume, kStudyConfig);
  Study study = given, begun;
  if (folder.has(kStudyConfig)) begun = read_study(folder.file(kStudyConfig));
  for (size_t i = 0; i < study.arms.size(); i++) {
    std::string& precision = study.arms[i].config.train.precision;
    if (precision == "auto")
      precision = i < begun.arms.size() ? begun.arms[i].config.train.precision : faster_precision();
  }
  std::string toml = to_toml(study);
  if (folder.has(kStudyConfig)) {
    folder.require_config(toml, [](const std::string& path) { return to_toml(read_study(path)); });
  } else {
    data::write_file(
        folder.file("environment.json"),
        nlohmann::json{{"threads", cpu_threads()}, {"exact_mode", exact_mode()}}.dump() + "\n");
    folder.write_config(toml);
  }
  try {
    for (const Study::Arm& arm : study.arms) {
      Config config = arm.config;
      config.train.lr = choose_lr(study, arm, options);
      if (study.retrain) config.data.validation_share = 0;
      for (int64_t seed : study.seeds) {
        config.train.seed = seed;
        run_in(config, options, concat(arm.name, "/seed", seed));
      }
    }
  } catch (const Interrupted&) {
    throw Interrupted(
        concat("stopped and saved; go on with: pupil train --run ", options.folder, " --resume"));
  } catch (const InputError&) {
    if (!holds_runs(options.folder)) folder.discard();
    throw;
  }
  std::cout << "finished; `pupil report " << options.folder << "` shows all arms" << std::endl;
}

}  // namespace pupil

#include "init.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "../data/weights.h"
#include "network.h"
#include "run_folder.h"

namespace fs = std::filesystem;

namespace pupil {
namespace {

struct InitArguments {
  std::string student = "resnet8x4_kd", data = "fashion_mnist:/usr/share/datasets/fashion-mnist";
  std::vector<std::string> teachers, methods;
};

void require_model(const std::string& name) {
  nn::Store plan = nn::Store::blueprint();
  models::make_model(name, nn::Scope(plan));
}

// [MODEL:]CHECKPOINT, the folder of a run, or a file of `pupil features`. What does not exist yet
// is taken as it is.
TeacherConfig teacher_of(const std::string& text) {
  TeacherConfig teacher;
  static_cast<NetworkConfig&>(teacher) = parse_network(text);
  std::error_code error;
  if (fs::is_directory(teacher.weights, error)) teacher.weights = best_checkpoint(teacher.weights);
  if (!teacher.model.empty()) {
    require_model(teacher.model);
  } else if (fs::exists(teacher.weights, error)) {
    auto file = data::open_weights(teacher.weights);
    if (file->metadata().contains("data_hash"))
      teacher.features = {std::exchange(teacher.weights, "")};
    else if (!file->metadata().contains("model"))
      fail_input("init: ", teacher.weights,
                 " does not name its model; write --teacher MODEL:", teacher.weights,
                 " (`pupil models` lists them)");
  }
  return teacher;
}

void init(const InitArguments& arguments) {
  Config config;
  std::tie(config.data.train, config.data.test) = data::train_and_test(arguments.data);
  config.data.validation_share = 0.1;
  require_model(arguments.student);
  config.student.model = arguments.student;
  for (const std::string& given : arguments.teachers) {
    TeacherConfig teacher = teacher_of(given);
    teacher.name = concat("teacher", config.teachers.size());
    config.teachers.push_back(teacher);
  }
  for (const std::string& name : arguments.methods) {
    const methods::Method& method = methods::find_method(name);
    if (method.needs_teacher && config.teachers.empty())
      fail_input("init: method ", name, " needs a teacher: add --teacher MODEL:CHECKPOINT");
    methods::Choice choice{name, method.weight, {}};
    for (const methods::Option& option : method.options)
      choice.options.emplace_back(option.name, option.value);
    config.methods.push_back(choice);
    if (config.methods.size() == 1) config.train.ce_weight = method.ce_weight;
  }
  bool asked = config.teachers.empty();
  for (const methods::Choice& choice : config.methods)
    asked |= methods::find_method(choice.method).needs_teacher;
  if (!asked) fail_input("init: nothing asks the teacher: add --method, for example --method kd");
  config.train.epochs = 20;
  std::cout << to_toml(config, true);
}

}  // namespace

void add_init_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("init", "print a commented configuration");
  command->footer(
      "Example:\n  pupil init --student resnet8x4_kd --data fashion_mnist:DIR \\\n"
      "    --teacher runs/teacher/best.safetensors --method kd > kd.toml");
  auto a = std::make_shared<InitArguments>();
  command->add_option("--student", a->student, "network to train")->capture_default_str();
  command->add_option("--data", a->data, "KIND:PATH")->capture_default_str();
  command->add_option("--teacher", a->teachers, "[MODEL:]CHECKPOINT; may be repeated");
  command->add_option("--method", a->methods, "transfer method; may be repeated");
  command->callback([a] { init(*a); });
}

}  // namespace pupil

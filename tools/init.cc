#include "init.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "config.h"

namespace pupil {
namespace {

struct InitArguments {
  std::string student = "resnet8x4_kd", data = "fashion_mnist:/usr/share/datasets/fashion-mnist";
  std::vector<std::string> teachers, methods;
};

void init(const InitArguments& arguments) {
  Config config;
  // A set with a train and a test part is named once: KIND:PATH. With a split it is taken as it is.
  bool split = std::count(arguments.data.begin(), arguments.data.end(), ':') > 1;
  config.data.train = split ? arguments.data : arguments.data + ":train";
  config.data.test = split ? "" : arguments.data + ":test";
  config.data.validation_share = 0.1;
  config.student.model = arguments.student;
  for (const std::string& given : arguments.teachers) {
    TeacherConfig teacher;
    teacher.name = concat("teacher", config.teachers.size());
    size_t colon = given.find(':');
    teacher.model = colon == std::string::npos ? "" : given.substr(0, colon);
    teacher.weights = colon == std::string::npos ? given : given.substr(colon + 1);
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

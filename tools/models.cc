#include "models.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../models/models.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

struct Built {
  nn::Store store = nn::Store::blueprint();
  models::Model model;
  Built(const std::string& name, int64_t classes)
      : model(models::make_model(name, nn::Scope(store), {.classes = classes})) {}
};

void list(int64_t classes, bool as_json) {
  Json all = Json::array();
  if (!as_json)
    std::cout << padded("name", 24) << padded("parameters", 14) << "(with " << classes
              << " classes)\n";
  for (const models::ModelInfo& info : models::list_models()) {
    Built built(info.name, classes);
    if (as_json)
      all.push_back({{"name", info.name},
                     {"summary", info.summary},
                     {"parameters", built.store.count()},
                     {"classes", classes},
                     {"input", models::describe(built.model.input)}});
    else
      std::cout << padded(info.name, 24) << padded(std::to_string(built.store.count()), 14)
                << info.summary << "\n";
  }
  if (as_json) std::cout << all.dump(2) << "\n";
}

void show(const std::string& name, int64_t classes, bool as_json) {
  Built built(name, classes);
  const models::Model& model = built.model;
  if (as_json) {
    Json tensors = Json::array();
    for (const nn::Param& p : built.store.params())
      tensors.push_back(
          {{"name", p.name}, {"shape", sizes_of(p.value.shape())}, {"buffer", p.buffer}});
    std::cout << Json({{"name", model.name},
                       {"parameters", built.store.count()},
                       {"classes", model.classes},
                       {"features", model.width},
                       {"head", model.head},
                       {"input", models::describe(model.input)},
                       {"taps", model.taps},
                       {"tensors", tensors}})
                     .dump(2)
              << "\n";
    return;
  }
  std::cout << model.name << ": " << built.store.count() << " parameters, " << model.classes
            << " classes, features of width " << model.width << ", classifier \"" << model.head
            << "\"\ninput: " << models::describe(model.input) << "\ntaps:";
  for (const std::string& tap : model.taps) std::cout << " " << tap;
  std::cout << "\n";
  for (const nn::Param& p : built.store.params())
    std::cout << "  " << padded(p.name, 44) << p.value.shape() << (p.buffer ? "  buffer" : "")
              << "\n";
}

}  // namespace

void add_models_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("models", "the networks, or the parameters and taps of one");
  command->footer("Example:\n  pupil models resnet8x4_kd --classes 100");
  struct Arguments {
    std::string name;
    int64_t classes = 10;
    bool as_json = false;
  };
  auto a = std::make_shared<Arguments>();
  command->add_option("NAME", a->name, "a network, for its parameters, shapes and taps");
  command->add_option("--classes", a->classes, "classes of the classifier")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 31))
      ->capture_default_str();
  command->add_flag("--json", a->as_json, "for machines");
  command->callback([a] {
    if (a->name.empty())
      list(a->classes, a->as_json);
    else
      show(a->name, a->classes, a->as_json);
  });
}

}  // namespace pupil

#include "models.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../autograd/autograd.h"
#include "../models/models.h"
#include "../tensor/memory.h"
#include "../tensor/runtime.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

// Multiplications of a forward pass, of one sample even when the batch has none: then only shapes
// are computed.
class MacCounter : public Listener {
 public:
  int64_t macs = 0;
  void hear(const char* op, const Tensor& out, const std::vector<Tensor>& inputs,
            Attributes attributes) override {
    std::string_view name = op;
    int64_t values = 1;
    for (int d = 0; d < out.rank(); d++) values *= std::max<int64_t>(out.dim(d), 1);
    if (name == "conv2d" || name == "conv2d_tail") {
      macs += values * (inputs[1].numel() / inputs[1].dim(0));
    } else if (name == "linear") {
      macs += values * inputs[1].dim(1);
    } else if (name == "matmul") {
      bool transposed = attributes.begin()->number != 0;
      macs += values * inputs[0].dim(transposed ? -2 : -1);
    } else if (name == "qkv_attention") {  // (n, tokens, 3 dim): scores and their mean
      macs += 2 * values * inputs[0].dim(1);
    }
  }
};

int64_t macs_of(const models::Model& model) {
  NoGrad no_grad;
  StepScope step;
  ThreadLimit alone(1);  // waiting for others would be all of the time
  MacCounter counter;
  const models::Preprocessing& p = model.input;
  model.forward(model.inputs ? zeros({1, model.inputs}) : empty({0, p.channels, p.size, p.size}),
                {.every_token = true});
  return counter.macs;
}

// 1814073344 -> "1.81 G"
std::string in_units(int64_t count) {
  std::ostringstream out;
  bool millions = count < 100000000;
  out << std::fixed << std::setprecision(2) << double(count) / (millions ? 1e6 : 1e9)
      << (millions ? " M" : " G");
  return out.str();
}

struct Built {
  nn::Store store = nn::Store::blueprint();
  models::Model model;
  Built(const std::string& name, int64_t classes)
      : model(models::make_model(name, nn::Scope(store), {.classes = classes})) {}
};

void list(int64_t classes, bool as_json) {
  Json all = Json::array();
  std::vector<std::vector<std::string>> rows{
      {"name", concat("parameters with ", classes, " classes"), "MACs", "what", "input"}};
  for (const models::ModelInfo& info : models::list_models()) {
    Built built(info.name, classes);
    int64_t macs = macs_of(built.model);
    std::string input = models::describe(built.model.input);
    if (as_json)
      all.push_back({{"name", info.name},
                     {"summary", info.summary},
                     {"parameters", built.store.count()},
                     {"macs", macs},
                     {"classes", classes},
                     {"input", input}});
    else
      rows.push_back({info.name, std::to_string(built.store.count()), in_units(macs), info.summary,
                      built.model.inputs ? "rows" : input});
  }
  std::cout << (as_json ? all.dump(2) + "\n" : aligned(rows, {0, 3, 4}));
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
                       {"macs", macs_of(model)},
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
  std::cout << model.name << ": " << built.store.count() << " parameters, "
            << in_units(macs_of(model)) << "MACs, " << model.classes
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

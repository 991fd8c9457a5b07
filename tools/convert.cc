#include "convert.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "../data/convert.h"
#include "../data/file.h"
#include "../models/layout.h"
#include "hf_write.h"
#include "text.h"

namespace pupil {
namespace {

struct ConvertArguments {
  std::string in, out, dtype, layout, model;
};

// The file under the names of the library asked for.
std::shared_ptr<const data::Weights> in_layout(const ConvertArguments& a,
                                               std::shared_ptr<const data::Weights> file) {
  auto is_named_as = [&](const data::Weights& weights) {
    std::vector<std::string> libraries = models::libraries_of(models::names_of(weights));
    return std::find(libraries.begin(), libraries.end(), a.layout) != libraries.end();
  };
  if (a.layout.empty() || is_named_as(*file)) return file;
  std::shared_ptr<const data::Weights> ours = models::in_our_names(file);
  if (!is_named_as(*ours)) {
    if (a.layout == "openai")
      fail_input("convert: ", data::printable(a.in), " holds no CLIP; without --layout its names ",
                 "stay");
    NetworkConfig config;
    config.model = a.model;
    config.weights = a.in;
    Network network = load_network(config);
    if (a.layout == "hf") return in_form_of_hf(network, ours);
    ours = models::in_names_of_library(a.layout, network.model, ours);
  }
  std::map<std::string, std::string> metadata = ours->metadata();
  metadata.erase("config.json");  // of the other library
  metadata.erase("preprocessor_config.json");
  return data::amend_weights(ours, {}, metadata);
}

}  // namespace

void add_convert_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "convert", "copy every tensor of a checkpoint into another container or type");
  command->footer(
      "Examples:\n  pupil convert model.pth model.safetensors\n"
      "  pupil convert checkpoints/vit model.npz --dtype f32\n"
      "  pupil convert runs/kd/best.safetensors student --layout hf\n"
      "  pupil convert ViT-B-32.pt clip --layout hf --model ViT-B-32-quickgelu\n"
      "  pupil convert mobilenet_v2.pth for_timm.safetensors --layout timm\n"
      "  pupil convert clip clip.safetensors --layout openai\n"
      "The network need not be known where names stay. Prefixes \"module.\" and \"backbone.\" "
      "are removed.");
  auto a = std::make_shared<ConvertArguments>();
  command->add_option("IN", a->in, "any file or folder that pupil inspect reads")->required();
  command
      ->add_option(
          "OUT", a->out,
          "FILE.safetensors, FILE.npz, or a new folder: model.safetensors and the settings "
          "of IN, as Hugging Face has them")
      ->required();
  command->add_option("--dtype", a->dtype, "of floating tensors (default: as they are)")
      ->check(CLI::IsMember({"f64", "f32", "f16", "bf16"}));
  command
      ->add_option("--layout", a->layout,
                   "names of this library (default: as they are); hf: with config.json and "
                   "preprocessor_config.json when OUT is a folder")
      ->check(CLI::IsMember({"timm", "hf", "openai", "torchvision"}));
  command->add_option("--model", a->model,
                      "the network in IN, of pupil models, where its file does not tell it");
  command->callback([a] {
    std::string dtype = a->dtype;
    for (char& c : dtype) c = char(std::toupper(uint8_t(c)));
    auto weights = in_layout(*a, data::open_weights(a->in));
    data::convert_weights(*weights, a->out, dtype);
    std::cout << data::printable(a->out) << ": "
              << counted(int64_t(weights->list().size()), "tensor") << " of "
              << data::printable(a->in) << " (" << weights->container() << ")\n";
  });
}

}  // namespace pupil

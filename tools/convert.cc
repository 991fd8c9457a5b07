#include "convert.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "../data/convert.h"
#include "../data/file.h"
#include "text.h"

namespace pupil {

void add_convert_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "convert", "copy every tensor of a checkpoint into another container or type");
  command->footer(
      "Examples:\n  pupil convert model.pth model.safetensors\n"
      "  pupil convert checkpoints/vit model.npz --dtype f32\n"
      "The network need not be known. Prefixes \"module.\" and \"backbone.\" are removed.");
  struct Arguments {
    std::string in, out, dtype;
  };
  auto a = std::make_shared<Arguments>();
  command->add_option("IN", a->in, "any file or folder that pupil inspect reads")->required();
  command
      ->add_option(
          "OUT", a->out,
          "FILE.safetensors, FILE.npz, or a new folder: model.safetensors and the settings "
          "of IN, as Hugging Face has them")
      ->required();
  command->add_option("--dtype", a->dtype, "of floating tensors (default: as they are)")
      ->check(CLI::IsMember({"f64", "f32", "f16", "bf16"}));
  command->callback([a] {
    std::string dtype = a->dtype;
    for (char& c : dtype) c = char(std::toupper(uint8_t(c)));
    auto weights = data::open_weights(a->in);
    data::convert_weights(*weights, a->out, dtype);
    std::cout << data::printable(a->out) << ": "
              << counted(int64_t(weights->list().size()), "tensor") << " of "
              << data::printable(a->in) << " (" << weights->container() << ")\n";
  });
}

}  // namespace pupil

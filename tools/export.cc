#include "export.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>

#include "../data/file.h"
#include "onnx_graph.h"
#include "program.h"
#include "zero_shot.h"

namespace pupil {
namespace {

struct ExportArguments {
  std::string out, model, weights, labels;
  int64_t image = 0;
  int threads = 0;
  bool with_preprocess = false, text = false;
  ZeroShotArguments zero_shot;
};

std::string export_texts(const ExportArguments& a, const Network& network) {
  { data::FileWriter probe(a.out); }
  const models::Clip& clip = *network.clip;
  data::onnx::Graph graph = onnx_text_graph(clip, *network.store);
  graph.metadata = {{"model", network.model.name},
                    {"logit_scale", fmt::format("{}", std::exp(clip.logit_scale.item()))}};
  if (clip.logit_bias)
    graph.metadata.emplace_back("logit_bias", fmt::format("{}", clip.logit_bias.item()));
  data::onnx::save(a.out, graph);
  return concat("text tower; up to ", clip.context, " token ids in");
}

std::string export_images(const ExportArguments& a, const Network& network) {
  const models::Model& model = network.model;
  ExportOptions options{a.with_preprocess, network.class_names};
  if (!a.labels.empty()) options.class_names = read_names(a.labels);
  if (!options.class_names.empty() && int64_t(options.class_names.size()) != model.classes) {
    if (!a.labels.empty())
      fail_input("export: ", a.labels, " has ", options.class_names.size(), " names, the network ",
                 model.classes, " classes; give one name a line in the order of the classes");
    options.class_names.clear();  // of another classifier
  }
  export_onnx(a.out, model, *network.store, options);
  return a.with_preprocess ? "8-bit pixels in" : model.inputs ? "rows in" : "images in";
}

void export_command(const ExportArguments& a) {
  use_threads(a.threads);
  NetworkConfig config;
  config.model = a.model;
  config.weights = a.weights;
  config.image = a.image;
  ZeroShot texts = read_zero_shot(a.zero_shot);
  texts.towers = a.text;
  Network network = load_network(config, texts);
  std::string what = a.text ? export_texts(a, network) : export_images(a, network);
  int64_t classes = a.text ? 0 : network.model.classes;
  std::cout << a.out << ": " << network.model.name << ", " << what << ", "
            << (classes ? concat("logits of ", classes, " classes")
                        : concat("features of width ", network.model.width))
            << " out" << std::endl;
}

}  // namespace

void export_onnx(const std::string& path, const models::Model& model, const nn::Store& store,
                 const ExportOptions& options) {
  { data::FileWriter probe(path); }  // an unwritable place is known before the work
  data::onnx::Graph graph = onnx_graph(model, store, options.with_preprocess);
  for (auto& entry : network_metadata(model)) graph.metadata.push_back(entry);
  if (!model.inputs) {
    const models::Preprocessing& in = model.input;
    for (auto& [key, value] : std::vector<std::pair<const char*, std::string>>{
             {"mean", fmt::format("{}", fmt::join(in.mean, " "))},
             {"std", fmt::format("{}", fmt::join(in.std, " "))},
             {"size", std::to_string(in.size)},
             {"filter", models::name_of(in.filter)},
             {"crop_pct", fmt::format("{}", in.crop_pct)}})
      graph.metadata.emplace_back(key, value);
  }
  std::string labels;
  for (const std::string& name : options.class_names) labels += name + "\n";
  if (!labels.empty()) graph.metadata.emplace_back("labels", labels);
  data::onnx::save(path, graph);
}

void add_export_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("export", "write a network as an ONNX file");
  command->footer(
      "Examples:\n"
      "  pupil export vit.onnx --weights vit.safetensors\n"
      "  pupil export student.onnx --weights runs/kd/best.safetensors --with-preprocess\n"
      "  pupil export cats.onnx --model ViT-B-32-quickgelu --weights ViT-B-32.pt \\\n"
      "    --classes cat,dog --vocab bpe_simple_vocab_16e6.txt.gz\n"
      "Batches may have any size. Resizing and cropping stay with the program that calls the "
      "network;\n"
      "the file's metadata says how (size, filter, crop_pct, mean, std).");
  auto a = std::make_shared<ExportArguments>();
  command->add_option("OUT", a->out, "the .onnx file to write")->required();
  command->add_option("--model", a->model,
                      "a network of pupil models; may be left out when the weights tell");
  command->add_option("--weights", a->weights, "its checkpoint, or a folder of Hugging Face")
      ->required();
  command->add_option("--image", a->image, "side in pixels (0: as the model or the file says)")
      ->check(CLI::Range(0, 8192));
  command->add_flag("--with-preprocess", a->with_preprocess,
                    "take 8-bit pixels (batch, side, side, channels) and normalise them inside; "
                    "resizing and cropping stay outside");
  auto* labels =
      command->add_option("--labels", a->labels,
                          "class names for the metadata, one a line (default: as the weights say)");
  add_zero_shot_options(*command, a->zero_shot);
  labels->excludes("--classes");
  command
      ->add_flag("--text", a->text,
                 "the text tower of CLIP: token ids (batch, context), padded with zeros, in")
      ->excludes("--classes", "--labels", "--with-preprocess");
  add_threads_option(*command, a->threads);
  command->callback([a] { export_command(*a); });
}

}  // namespace pupil

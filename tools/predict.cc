#include "predict.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/data.h"
#include "../data/file.h"
#include "../tensor/memory.h"
#include "../tensor/runtime.h"
#include "program.h"
#include "text.h"
#include "zero_shot.h"

namespace pupil {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct PredictArguments {
  std::string model, weights, labels, csv;
  std::vector<std::string> images;
  int64_t batch = 32, top = 5;
  int threads = 0;
  bool json = false, exif = false;
  ZeroShotArguments zero_shot;
};

struct Prediction {
  int64_t number;
  double probability;
};
struct Picture {
  std::string path, problem;  // of one that could not be read
  std::vector<Prediction> answers;
};

// The files named, and those below the folders named in the order of their names, by their suffix.
std::vector<Picture> pictures_of(const std::vector<std::string>& names) {
  std::vector<Picture> all;
  for (const std::string& name : names) {
    std::error_code error;
    if (!fs::is_directory(name, error)) {
      all.push_back({name, "", {}});
      continue;
    }
    std::vector<std::string> found;
    for (fs::recursive_directory_iterator it(name, error), end; !error && it != end;
         it.increment(error)) {
      std::string suffix = it->path().extension().string();
      for (char& c : suffix) c = char(std::tolower(uint8_t(c)));
      if (!it->is_directory(error) && (suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png"))
        found.push_back(it->path().string());
    }
    if (error) fail_input("predict: cannot list ", name, ": ", error.message());
    if (found.empty()) fail_input("predict: ", name, " has no .jpg, .jpeg or .png files");
    std::sort(found.begin(), found.end());
    for (std::string& path : found) all.push_back({std::move(path), "", {}});
  }
  return all;
}

// Softmax, the `top` most likely; of equal ones the first class comes first.
std::vector<Prediction> best(const float* row, int64_t classes, int64_t top) {
  std::vector<Prediction> all;
  double most = *std::max_element(row, row + classes), sum = 0;
  for (int64_t c = 0; c < classes; c++) {
    all.push_back({c, std::exp(double(row[c]) - most)});
    sum += all.back().probability;
  }
  top = std::min(top, classes);
  std::partial_sort(all.begin(), all.begin() + top, all.end(),
                    [](const Prediction& a, const Prediction& b) {
                      return a.probability > b.probability ||
                             (a.probability == b.probability && a.number < b.number);
                    });
  all.resize(size_t(top));
  for (Prediction& a : all) a.probability /= sum;
  return all;
}

// Fills in answers and problems, as many images at a time as a batch holds.
void look(const models::Model& model, const PredictArguments& a, std::vector<Picture>& pictures) {
  data::Dataset set;
  set.spec = "the images";
  set.classes = model.classes;
  set.whole = int64_t(pictures.size());
  for (int64_t i = 0; i < set.whole; i++) set.rows.push_back(i);
  set.labels.assign(pictures.size(), 0);
  // Each is decoded once, by one thread. A bad one becomes a black pixel, whose answer is dropped.
  set.image = [&](int64_t i, data::Image& out) {
    Picture& p = pictures[size_t(i)];
    try {
      data::MappedFile file(p.path);
      out = data::decode_image({file.data(), file.size()}, p.path, a.exif);
    } catch (const InputError& error) {
      p.problem = error.what();
      out = {1, 1, 3, {0, 0, 0}};
    }
  };
  data::LoaderOptions options;
  options.batch = a.batch;
  data::Loader loader(set, {model.input}, options);
  NoGrad no_grad;
  nn::Prepared prepared;
  for (data::Batch batch; loader.next(batch);) {
    StepScope step;
    Tensor logits = model.forward(batch.x[0], {.prepared = &prepared})
                        .logits.to(Device{})
                        .to(DType::f32)
                        .contiguous();
    for (int64_t i = 0; i < logits.dim(0); i++) {
      Picture& p = pictures[size_t(batch.index.data<int64_t>()[i])];
      if (p.problem.empty())
        p.answers = best(logits.data<float>() + i * model.classes, model.classes, a.top);
    }
  }
}

void predict(const PredictArguments& a) {
  use_threads(a.threads);
  std::vector<Picture> pictures = pictures_of(a.images);
  NetworkConfig config;
  config.model = a.model;
  config.weights = a.weights;
  Network network = load_network(config, read_zero_shot(a.zero_shot));
  const models::Model& model = network.model;
  if (model.inputs) fail_input("predict: ", model.name, " takes rows of features, not images");
  if (!model.classes)
    fail_input("predict: ", a.weights, " has no classifier",
               model.clip ? "; name classes for it: --classes a,b,c" : "");
  std::vector<std::string> names = a.labels.empty() ? network.class_names : read_names(a.labels);
  if (!a.labels.empty() && int64_t(names.size()) != model.classes)
    fail_input("predict: ", a.labels, " has ", names.size(), " names, the network ", model.classes,
               " classes; give one name a line in the order of the classes");
  auto name_of_class = [&](int64_t c) {
    return size_t(c) < names.size() ? data::printable(names[size_t(c)]) : std::to_string(c);
  };

  look(model, a, pictures);

  Json list = Json::array();
  std::string csv = "file";
  for (int64_t k = 1; k <= std::min(a.top, model.classes); k++)
    csv += concat(",top", k, ",probability", k);
  csv += "\n";
  int64_t bad = 0;
  for (const Picture& p : pictures) {
    if (!p.problem.empty()) {
      bad++;
      std::cerr << "pupil: " << p.problem << std::endl;
      if (a.json) list.push_back({{"file", p.path}, {"error", p.problem}});
      continue;
    }
    Json answers = Json::array();
    csv += csv_field(p.path);
    for (const Prediction& answer : p.answers) {
      std::string name = name_of_class(answer.number);
      answers.push_back(
          {{"class", answer.number}, {"name", name}, {"probability", answer.probability}});
      csv += concat(",", csv_field(name), ",", answer.probability);
    }
    csv += "\n";
    if (a.json) {
      list.push_back({{"file", p.path}, {"top", answers}});
      continue;
    }
    std::cout << data::printable(p.path) << "\n";
    for (const Prediction& answer : p.answers)
      std::cout << std::setw(10) << percent(answer.probability) << "  "
                << name_of_class(answer.number) << "\n";
  }
  if (a.json) std::cout << list.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
  if (!a.csv.empty()) data::write_file(a.csv, csv);
  if (bad)
    fail_input("predict: ", counted(bad, "image"), " of ", pictures.size(), " could not be read");
}

}  // namespace

void add_predict_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("predict", "what a network sees in photographs");
  command->footer(
      "Examples:\n"
      "  pupil predict --weights vit.safetensors --labels imagenet1k_label.txt cat.jpg\n"
      "  pupil predict --weights runs/kd/best.safetensors photos --csv answers.csv\n"
      "  pupil predict --model ViT-B-32-quickgelu --weights ViT-B-32.pt --classes cat,dog \\\n"
      "    --template \"a photo of a {}.\" --vocab bpe_simple_vocab_16e6.txt.gz photos");
  auto a = std::make_shared<PredictArguments>();
  command->add_option("--model", a->model,
                      "a network of pupil models; may be left out when the weights tell");
  command->add_option("--weights", a->weights, "its checkpoint")->required();
  command
      ->add_option("IMAGE", a->images, "PNG or JPEG files, or folders of them (also those inside)")
      ->required();
  auto* labels =
      command->add_option("--labels", a->labels,
                          "class names, one a line (default: what the weights say, else numbers)");
  add_zero_shot_options(*command, a->zero_shot);
  labels->excludes("--classes");
  command->add_option("--top", a->top, "answers of an image")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_flag("--json", a->json, "for machines");
  command->add_option("--csv", a->csv, "write a table of all images to this file, too");
  command->add_flag("--exif", a->exif,
                    "turn photographs upright first, which the evaluation of the public "
                    "checkpoints does not");
  command->add_option("--batch", a->batch, "images at a time")->check(CLI::Range(1, 1000000));
  add_threads_option(*command, a->threads);
  command->callback([a] { predict(*a); });
}

}  // namespace pupil

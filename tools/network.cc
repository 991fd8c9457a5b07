#include "network.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../methods/clip_text.h"
#include "../methods/zero_shot.h"
#include "../models/layout.h"
#include "../tensor/launch.h"
#include "hf_config.h"
#include "recognise.h"

namespace pupil {
namespace {

std::string metadata(const data::Weights& weights, const char* key) {
  auto at = weights.metadata().find(key);
  return at == weights.metadata().end() ? "" : at->second;
}

void apply_preprocessing(models::Model& model, const NetworkConfig& config,
                         const data::Weights* weights, const std::string& role) {
  int size = model.input.size;  // as the model was built
  model.input = models::preprocessing_of(model, weights);
  if (model.input.size != size) model.input.crop_pct = 1;  // the crop belongs to the other size
  model.input.size = size;
  for (auto [name, from, to] : {std::tuple{"mean", &config.mean, &model.input.mean},
                                {"std", &config.std, &model.input.std}}) {
    if (from->empty()) continue;
    if (from->size() != 1 && from->size() != size_t(model.input.channels))
      fail_input(role, ".", name, " has ", from->size(), " numbers; the model has ",
                 model.input.channels, " channels");
    for (size_t c = 0; c < to->size(); c++) (*to)[c] = float((*from)[from->size() == 1 ? 0 : c]);
  }
  for (float s : model.input.std)
    if (!(s > 0)) fail_input(role, ".std must be above 0");
}

std::string model_name(const NetworkConfig& config, const data::Weights* weights) {
  if (!config.model.empty()) return config.model;
  PUPIL_CHECK(weights, "a network without name and weights");
  return recognise(*weights);
}

// The side that the configuration asks for, or that this very model was trained at; 0: neither
// says.
int image_size(const NetworkConfig& config, const data::Weights* weights, const std::string& name) {
  if (config.image || !weights || metadata(*weights, "model") != name) return int(config.image);
  nn::Store plan = nn::Store::blueprint();
  return models::preprocessing_of(models::make_model(name, nn::Scope(plan)), weights).size;
}

// Without `make` where the file does not say how its network is built.
HfFolder open_network(const std::string& path) {
  if (is_hf_folder(path)) return open_hf_folder(path);
  std::shared_ptr<const data::Weights> weights = models::in_our_names(data::open_weights(path));
  if (!metadata(*weights, "position").empty())
    fail_input("weights: ", path, " is where a run stood, for --resume, and no network by itself; ",
               "give the run's folder to pupil eval, or its best.safetensors or last.safetensors");
  return {weights, nullptr};
}

// Class names as the metadata has them: `labels`, one a line, or Hugging Face's config.json.
std::vector<std::string> stored_class_names(const data::Weights& weights) {
  std::vector<std::string> names;
  if (std::string labels = metadata(weights, "labels"); !labels.empty()) {
    std::istringstream text(labels);
    for (std::string line; std::getline(text, line);) names.push_back(line);
  } else if (std::string config = metadata(weights, "config.json"); !config.empty()) {
    nlohmann::json settings = nlohmann::json::parse(config, nullptr, false);
    if (!settings.is_object() || !settings.contains("id2label")) return names;
    const nlohmann::json& list = settings["id2label"];
    for (size_t k = 0; k < list.size(); k++) {
      if (!list.is_object() || !list.contains(std::to_string(k)) ||
          !list[std::to_string(k)].is_string())
        return {};
      names.push_back(list[std::to_string(k)]);
    }
  }
  return names;
}

std::string beside(const std::string& weights) {
  namespace fs = std::filesystem;
  fs::path folder = fs::is_directory(weights) ? fs::path(weights) : fs::path(weights).parent_path();
  for (const char* name :
       {"merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"})
    if (fs::exists(folder / name)) return (folder / name).string();
  fail_input("zero-shot: there is no vocabulary beside ", data::printable(weights),
             "; give --vocab FILE, OpenAI's bpe_simple_vocab_16e6.txt.gz or Hugging Face's "
             "merges.txt");
}

// `model`, its logits from the texts.
void classify_by_texts(models::Model& model, const models::Clip& clip, const ZeroShot& texts,
                       const std::string& weights) {
  NoGrad no_grad;
  Tensor head =
      methods::zero_shot_head(text_features(clip, texts, weights), clip.logit_scale.item());
  model.classes = head.dim(0);
  model.forward = [tower = model.forward, head](const Tensor& x, const nn::Call& call) {
    Tensor features = tower(x, call).features;
    return models::Output{methods::zero_shot_logits(features, head), features};
  };
}

// How many outputs the stored classifier has; 0 when it has none.
int64_t stored_classes(const data::Weights& weights, const std::string& model) {
  nn::Store plan = nn::Store::blueprint();
  std::string head = models::make_model(model, nn::Scope(plan)).head + ".weight";
  for (const data::TensorInfo& info : weights.list())
    if (info.name == head && info.shape.rank > 1) return info.shape[0];  // linear, or 1x1 of a map
  return 0;
}

// The file, or for networks side by side FILE+FILE, one for each. `heads` gets the classifiers of
// these networks, which have none together.
std::shared_ptr<const data::Weights> open_student(const NetworkConfig& config,
                                                  std::vector<std::string>& heads) {
  std::vector<std::string> names = models::networks_of(config.model);
  std::vector<std::string> paths = models::networks_of(config.weights);
  if (names.size() < 2 || paths.size() != names.size()) return open_network(config.weights).weights;
  std::vector<std::shared_ptr<const data::Weights>> files;
  std::string expected;
  for (size_t k = 0; k < names.size(); k++) {
    files.push_back(open_network(paths[k]).weights);
    nn::Store plan = nn::Store::blueprint();
    models::Model model = models::make_model(names[k], nn::Scope(plan));
    heads.push_back(concat(k, ".", model.head, ".*"));
    std::string input = models::describe(models::preprocessing_of(model, files[k].get()));
    if (k && input != expected && !model.inputs)
      fail_input("student.weights: ", paths[0], " and ", paths[k], " side by side see the same ",
                 "image, but want ", expected, " and ", input);
    expected = input;
  }
  return data::join_weights(std::move(files), {{"input", expected}});
}

void require_finite(const nn::Store& store, const std::string& path) {
  for (const nn::Param& p : store.params())
    if (!finite(p.value))
      fail_input("weights: ", path, ": ", p.name,
                 " holds values that are not finite; a network with ",
                 "them answers nothing but NaN, take another checkpoint");
}

}  // namespace

bool finite(const Tensor& t) {
  if (!is_floating(t.dtype())) return true;
  return dispatch(t.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* x = t.data<T>();  // a parameter is contiguous
    int64_t n = t.numel(), bad = 0;
#pragma omp parallel for reduction(+ : bad) if (n > kParallelWork)
    for (int64_t i = 0; i < n; i++) bad += !std::isfinite(acc_t<T>(x[i]));
    return bad == 0;
  });
}

Tensor text_features(const models::Clip& clip, const ZeroShot& texts, const std::string& weights) {
  data::ClipTokenizer tokenizer(texts.vocabulary.empty() ? beside(weights) : texts.vocabulary);
  return methods::class_text_features(clip, tokenizer, texts.classes, texts.templates);
}

Network load_network(const NetworkConfig& config, const ZeroShot& texts) {
  HfFolder file = open_network(config.weights);
  const data::Weights& weights = *file.weights;
  std::function<models::Model(const nn::Scope&)> make = file.make;
  if (!config.model.empty() || !make) {
    std::string name = model_name(config, &weights);
    models::Options options;
    options.image = image_size(config, &weights, name);
    options.classes = stored_classes(weights, name);
    make = [=](const nn::Scope& scope) { return models::make_model(name, scope, options); };
  }
  Network network;
  network.weights = file.weights;
  network.class_names = stored_class_names(weights);
  network.store = std::make_unique<nn::Store>(0);
  network.store->borrow(file.weights);
  nn::Scope scope(*network.store);
  std::optional<models::Clip>& clip = network.clip;
  if (texts.classes.empty() && !texts.towers) {
    network.model = make(scope);
  } else {
    nn::Store plan = nn::Store::blueprint();
    network.model = make(nn::Scope(plan));
    if (!network.model.clip)
      fail_input("zero-shot: ", network.model.name, " reads no texts; give a CLIP network");
    clip = models::make_clip(*network.model.clip, scope);
    network.model.forward = clip->image.forward;
  }
  if (config.image) network.model.input.size = int(config.image);
  const std::string name = network.model.name;
  network.store->require_complete();
  require_finite(*network.store, config.weights);
  if (!network.store->params().empty()) network.store->freeze("*");
  if (!texts.classes.empty()) {
    classify_by_texts(network.model, *clip, texts, config.weights);
    network.class_names = texts.classes;
  }
  apply_preprocessing(network.model, config, &weights, name);
  return network;
}

NetworkConfig parse_network(const std::string& text) {
  NetworkConfig config;
  // A model's name has no slash, so "runs/a:b.safetensors" is a path.
  size_t colon = text.find(':');
  bool named = colon != std::string::npos && text.find('/') > colon;
  if (named) config.model = text.substr(0, colon);
  config.weights = named ? text.substr(colon + 1) : text;
  return config;
}

Network make_student(const StudentConfig& config, int64_t classes, uint64_t seed) {
  Network network;
  network.store = std::make_unique<nn::Store>(seed);
  std::shared_ptr<const data::Weights> weights;
  std::vector<std::string> fresh;
  if (!config.weights.empty()) weights = open_student(config, fresh);
  std::string name = model_name(config, weights.get());
  if (weights) {
    network.weights = weights;
    if (config.head == "new") {
      nn::Store plan = nn::Store::blueprint();
      std::string head = models::make_model(name, nn::Scope(plan)).head;
      fresh.insert(fresh.end(), {head + ".*", head + "_dist.*"});  // DeiT has two
    }
    network.store->source(weights, fresh);
  }
  models::Options options{classes, image_size(config, weights.get(), name), config.dropout,
                          config.drop_path};
  network.model = models::make_model(name, nn::Scope(*network.store), options);
  network.store->require_complete();
  require_finite(*network.store, config.weights);
  network.store->source(nullptr);  // what methods declare later is their own
  for (const std::string& pattern : config.freeze) network.store->freeze(pattern);
  apply_preprocessing(network.model, config, weights.get(), "student");
  return network;
}

void require_input(const models::Model& model, const data::Dataset& set) {
  if (!set.values) return;
  const Shape& shape = set.values.shape();
  int64_t row = set.values.numel() / shape[0];
  if (model.inputs && row != model.inputs)
    fail_input("data: ", set.spec, " has rows of ", row, " values, the network ", model.name,
               " takes ", model.inputs);
  if (model.inputs) return;
  if (shape.rank != 4 || shape[1] != model.input.channels)
    fail_input("data: ", set.spec, " holds floats of the shape ", shape, ", the network ",
               model.name, " takes images (n,", model.input.channels,
               ",h,w); save them so, or as 8-bit images");
}

std::map<std::string, std::string> network_metadata(const models::Model& model) {
  return {{"model", model.name},
          {"classes", std::to_string(model.classes)},
          {"input", models::describe(model.input)}};
}

}  // namespace pupil

#include "models.h"

#include <charconv>
#include <cstdio>

#include "cifar_resnet.h"
#include "cifar_vgg.h"
#include "cifar_wide_resnet.h"
#include "clip.h"
#include "convnext.h"
#include "eva.h"
#include "inverted_residual.h"
#include "mixer.h"
#include "postnorm_vit.h"
#include "regnet.h"
#include "resnet.h"
#include "resnetv2.h"
#include "shufflenet.h"
#include "squeezenet.h"
#include "tiniest.h"
#include "vit.h"

namespace pupil::models {
namespace {

// Networks without arguments.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> joined;
    for (auto family : {cifar_resnets, cifar_vggs, cifar_wide_resnets, resnets, resnetv2s, regnets,
                        convnexts, inverted_residuals, shufflenets, squeezenets, clips, vits, evas,
                        mixers, tiniests, postnorm_vits})
      for (Entry& entry : family()) joined.push_back(std::move(entry));
    return joined;
  }();
  return all;
}

double number(const std::string& text, const std::string& what) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail_input("model ", what, ": \"", text, "\" is not a number");
  return value;
}

int whole(const std::string& text, const std::string& what) {
  double value = number(text, what);
  if (value != std::floor(value) || value < 0 || value > 1 << 20)
    fail_input("model ", what, ": \"", text, "\" is not a whole number up to ", 1 << 20);
  return int(value);
}

using Keys = std::map<std::string, std::function<void(const std::string&)>>;

// The keys of "vit(dim=192,depth=12)".
void read_keys(const std::string& name, const Keys& keys) {
  size_t begin_of_keys = name.find('(') + 1;
  if (name.back() != ')') fail_input("model ", name, ": the closing parenthesis is missing");
  std::string list = name.substr(begin_of_keys, name.size() - begin_of_keys - 1);
  for (size_t begin = 0; begin < list.size();) {
    size_t end = std::min(list.find(',', begin), list.size());
    std::string item = list.substr(begin, end - begin);
    std::erase(item, ' ');
    size_t equals = item.find('=');
    std::string key = item.substr(0, equals);
    if (!keys.count(key)) {
      std::vector<std::string> known;
      for (auto& [k, set] : keys) known.push_back(k);
      fail_input("model ", name, ": unknown key \"", key, "\"", did_you_mean(key, known));
    }
    if (equals == std::string::npos) fail_input("model ", name, ": ", key, " needs a value");
    keys.at(key)(item.substr(equals + 1));
    begin = end + 1;
  }
}

// "vit(dim=192,depth=12,heads=3,patch=4,image=32)": what is not given keeps VitConfig's default.
VitConfig parse_vit(const std::string& name) {
  VitConfig config;
  Keys keys;
  for (auto [key, field] : {std::pair{"dim", &config.dim},
                            {"depth", &config.depth},
                            {"heads", &config.heads},
                            {"patch", &config.patch},
                            {"image", &config.image}})
    keys[key] = [field = field, &name](auto& v) { *field = whole(v, name); };
  keys["mlp_ratio"] = [&](auto& v) { config.mlp_ratio = number(v, name); };
  keys["class_token"] = [&](auto& v) { config.class_token = whole(v, name) != 0; };
  keys["qkv_bias"] = [&](auto& v) { config.qkv_bias = whole(v, name) != 0; };
  keys["pool"] = [&](auto& v) {
    if (v != "avg" && v != "token") fail_input("model ", name, ": pool is avg or token");
    config.pool = v == "avg" ? VitPool::avg : VitPool::token;
  };
  read_keys(name, keys);
  return config;
}

// "mlp(inputs=192,hidden=256x256,standardize=1)"
MlpConfig parse_mlp(const std::string& name) {
  MlpConfig config;
  Keys keys;
  keys["inputs"] = [&](auto& v) { config.inputs = whole(v, name); };
  keys["standardize"] = [&](auto& v) { config.standardize = whole(v, name) != 0; };
  keys["hidden"] = [&](auto& v) {
    std::istringstream widths(v);
    for (std::string width; std::getline(widths, width, 'x');)
      config.hidden.push_back(whole(width, name));
  };
  read_keys(name, keys);
  return config;
}

// What people call them, and the name in their library.
constexpr std::pair<const char*, const char*> kShortNames[] = {
    {"mobilenetv3_small", "mobilenetv3_small_100"}, {"mobilenetv3_large", "mobilenetv3_large_100"}};

Model build(const std::string& name, const nn::Scope& scope, const Options& options) {
  for (const Entry& entry : entries())
    if (name == entry.name) return entry.make(scope, options);
  if (name.starts_with("mlp(")) {
    MlpConfig config = parse_mlp(name);
    config.classes = options.classes;
    return make_mlp(config, scope);
  }
  if (name.starts_with("vit(")) {
    VitConfig config = parse_vit(name);
    config.classes = options.classes;
    if (options.image) config.image = options.image;
    config.dropout = options.dropout;
    config.drop_path = options.drop_path;
    return make_vit(config, scope);
  }
  std::vector<std::string> names;
  for (const ModelInfo& info : list_models()) names.push_back(info.name);
  for (const auto& [shorter, full] : kShortNames) names.push_back(shorter);
  fail_input("model: unknown name \"", name, "\"", did_you_mean(name, names),
             " (`pupil models` lists all)");
}

constexpr std::pair<const char*, Filter> kFilters[] = {
    {"nearest", Filter::nearest}, {"box", Filter::box},         {"bilinear", Filter::bilinear},
    {"hamming", Filter::hamming}, {"bicubic", Filter::bicubic}, {"lanczos", Filter::lanczos}};

}  // namespace

const char* name_of(Filter filter) {
  for (auto& [name, known] : kFilters)
    if (known == filter) return name;
  PUPIL_CHECK(false, "models: a filter without a name");
}

std::optional<Filter> filter_named(std::string_view name) {
  for (auto& [known, filter] : kFilters)
    if (name == known) return filter;
  return std::nullopt;
}

Model make_model(const std::string& given, const nn::Scope& scope, const Options& options) {
  std::string name = given;
  for (auto& [shorter, full] : kShortNames)
    if (given == shorter) name = full;
  std::vector<std::string> names = networks_of(name);
  Model model =
      names.size() > 1 ? make_side_by_side(names, scope, options) : build(name, scope, options);
  model.name = name;
  if (options.image) model.input.size = options.image;
  return model;
}

std::vector<ModelInfo> list_models() {
  std::vector<ModelInfo> all(entries().begin(), entries().end());
  all.push_back({"vit(dim=192,depth=12,heads=3,patch=4,image=32)",
                 "any Vision Transformer; also mlp_ratio=, class_token=, qkv_bias=, pool="});
  all.push_back({"mlp(inputs=192,hidden=256x256,standardize=1)",
                 "linear layers with ReLU on rows of features; without hidden=: a linear probe"});
  all.push_back({"resnet20_cifar+resnet56_cifar",
                 "any networks side by side under one classifier, each row cut between them"});
  return all;
}

Preprocessing imagenet_preprocessing() {
  return {224, 3, {0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}, Filter::bilinear, 0.875};
}

Preprocessing cifar100_preprocessing() {
  return {32, 3, {0.5071f, 0.4867f, 0.4408f}, {0.2675f, 0.2565f, 0.2761f}};
}

std::string describe(const Preprocessing& p) {
  auto number = [](auto v) {
    char digits[32];  // the shortest that reads back
    *std::to_chars(digits, digits + sizeof digits - 1, v).ptr = 0;
    return concat(" ", digits);
  };
  auto list = [&](const std::vector<float>& values) {
    std::string text;
    for (float v : values) text += number(v);
    return text;
  };
  return concat("RGB/255, mean", list(p.mean), " std", list(p.std), ", ", p.size, "x", p.size, ", ",
                name_of(p.filter), ", crop", number(p.crop_pct));
}

Preprocessing preprocessing_of(const Model& model, const data::Weights* weights) {
  Preprocessing p = model.input;
  if (!weights || !weights->metadata().count("input")) return p;
  const std::string& text = weights->metadata().at("input");
  auto refuse = [&]() {
    fail_input("weights: ", weights->path(), ": cannot read the metadata key input \"", text,
               "\"; expected \"", describe(p), "\"");
  };
  float mean[3], std[3];
  int height = 0, width = 0, begin = 0, end = 0;
  std::sscanf(text.c_str(), "%dx%d, %n", &height, &width, &begin);  // the size may come first
  const char* at = text.c_str() + begin;
  // One number per channel, or one for all.
  if (std::sscanf(at, "RGB/255, mean %f %f %f%*[, ]std %f %f %f%n", mean, mean + 1, mean + 2, std,
                  std + 1, std + 2, &end) == 6) {
    p.mean.assign(mean, mean + 3);
    p.std.assign(std, std + 3);
  } else if (std::sscanf(at, "RGB/255, mean %f%*[, ]std %f%n", mean, std, &end) == 2) {
    p.mean.assign(3, mean[0]);
    p.std.assign(3, std[0]);
  } else if (std::sscanf(at, "RGB/255 - %f%n", mean, &end) == 1) {
    p.mean.assign(3, mean[0]);
    p.std.assign(3, 1);
  } else if (model.input.std[0] == kCaffeScale && text.starts_with("RGB 0..255 (no scaling)")) {
    return p;  // what follows there is about the layers
  } else if (model.input.std[0] == kCaffeScale &&
             std::sscanf(at, "BGR 0..255 minus %f,%f,%f%n", mean + 2, mean + 1, mean, &end) == 3) {
    for (size_t c = 0; c < 3; c++) p.mean[c] = mean[c] * kCaffeScale;
  } else {
    refuse();
  }
  std::string rest = at + end;
  if (begin) {
    if (height != width || height < 1) refuse();
    p.size = height;
  }
  if (rest.empty()) return p;
  int used = 0;
  char filter[16] = "";
  double crop = 0;
  int fields = std::sscanf(rest.c_str(), "%*[,;] %dx%d%n, %15[a-z], crop %lf%n", &height, &width,
                           &used, filter, &crop, &used);
  if (size_t(used) != rest.size() || height != width || height < 1) refuse();
  p.size = height;
  if (fields > 2) {
    std::optional<Filter> named = filter_named(filter);
    if (!named || !(crop > 0 && crop <= 1)) refuse();
    p.filter = *named;
    p.crop_pct = crop;
  }
  return p;
}

Output forward_in(DType compute, const Model& model, const Tensor& x, const nn::Call& call) {
  if (compute == x.dtype()) return model.forward(x, call);
  Output out = model.forward(x.to(compute), call);
  return {to_dtype(out.logits, x.dtype()), to_dtype(out.features, x.dtype())};
}

}  // namespace pupil::models

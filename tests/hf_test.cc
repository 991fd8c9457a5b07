// Networks written for transformers and read again; CLIP asked about classes that are only named.
#include <nlohmann/json.hpp>
#include <numeric>

#include "clip_vocabulary.h"
#include "data/clip_tokenizer.h"
#include "data/convert.h"
#include "data_files.h"
#include "models/clip.h"
#include "models/convnext.h"
#include "models/eva.h"
#include "models/layout.h"
#include "models/vit.h"
#include "tools/hf_write.h"
#include "tools/transmiter_job.h"

namespace pupil {
namespace {

using models::Model;
using models::VitConfig;
using nlohmann::json;
using Make = std::function<Model(const nn::Scope&)>;

Tensor waves(const Shape& shape, double phase, double offset = 0) {
  Tensor t = empty(shape);
  for (int64_t i = 0; i < t.numel(); i++)
    t.data<float>()[i] = float(offset + 0.3 * std::sin(1.7 * double(i) + phase));
  return t;
}

// A network whose every tensor matters, and its file under our names.
struct Written {
  Network network;
  std::shared_ptr<const data::Weights> file;
};
Written written(const Make& make, const std::string& path,
                const std::map<std::string, std::string>& metadata = {}) {
  Written w;
  w.network.store = std::make_unique<nn::Store>(1);
  w.network.model = make(nn::Scope(*w.network.store));
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : w.network.store->params()) {
    bool norm = p.name.find("norm") != std::string::npos && p.name.ends_with("weight");
    Tensor value = waves(p.value.shape(), double(tensors.size()),
                         norm                      ? 1
                         : p.name == "logit_scale" ? 3
                                                   : 0);
    Tensor to = p.value;
    copy_into(to, value);
    tensors.emplace_back(p.name, value);
  }
  data::save_safetensors(path, tensors, metadata);
  w.file = data::open_weights(path);
  return w;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  std::vector<double> x = a.values(), y = b.values();
  double largest = 0;
  for (size_t i = 0; i < x.size(); i++) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

VitConfig tiny_vit() {
  VitConfig c;
  c.image = 8, c.patch = 4, c.dim = 8, c.depth = 2, c.heads = 2, c.classes = 3;
  return c;
}

models::ClipConfig tiny_clip(bool siglip = false) {
  models::ClipConfig c;
  c.image = 8, c.patch = 4;
  c.vision = {.width = 8, .hidden = 16, .heads = 2, .layers = 2};
  c.text = {.width = 8, .hidden = 12, .heads = 2, .layers = 1};
  c.text.activation = c.vision.activation = Activation::quick_gelu;
  c.context = 12;
  c.embed_dim = 6;
  if (siglip) {
    c.siglip = true;
    c.vocabulary = 40;
    c.vision.norm_eps = c.text.norm_eps = 1e-6;
  }
  return c;
}

std::map<std::string, Make> networks() {
  auto vit = [](auto change) {
    VitConfig c = tiny_vit();
    change(c);
    return [c](const nn::Scope& scope) { return make_vit(c, scope); };
  };
  auto dino = [](VitConfig& c) {
    c.layer_scale = 1;
    c.pool = models::VitPool::token_and_avg;
  };
  auto eva = [](auto change) {
    models::EvaConfig c;
    c.image = 8, c.patch = 4, c.dim = 16, c.depth = 2, c.heads = 2, c.hidden = 24, c.registers = 2;
    c.avg = false;
    change(c);
    return [c](const nn::Scope& scope) { return make_eva(c, scope); };
  };
  auto clip = [](bool siglip) {
    return [siglip](const nn::Scope& scope) { return make_clip(tiny_clip(siglip), scope).image; };
  };
  return {{"ViTForImageClassification", vit([](VitConfig& c) { c.norm_eps = 1e-12; })},
          {"ViTModel", vit([](VitConfig& c) {
             c.classes = 0, c.pooler = true, c.qkv_bias = false;
             c.activation = Activation::gelu_tanh;
           })},
          {"DeiTForImageClassificationWithTeacher", vit([](VitConfig& c) { c.distilled = true; })},
          {"DeiTForImageClassification",
           vit([](VitConfig& c) { c.distilled = true, c.second_head = false; })},
          {"Dinov2ForImageClassification", vit(dino)},
          {"Dinov2Model", vit([](VitConfig& c) {
             c.layer_scale = 1e-5, c.classes = 0, c.gate = models::Gate::packed;
             c.activation = Activation::silu;
             c.hidden = 32;
           })},
          {"Dinov2WithRegistersForImageClassification", vit([=](VitConfig& c) {
             dino(c);
             c.registers = 2, c.positions = models::VitPositions::no_registers;
           })},
          {"Dinov2WithRegistersModel", vit([](VitConfig& c) {
             c.layer_scale = 1e-5, c.classes = 0;
             c.registers = 2, c.positions = models::VitPositions::patches;
           })},
          {"DINOv3ViTModel", eva([](models::EvaConfig& c) {
             c.gate = models::Gate::apart, c.activation = Activation::silu;
             c.q_bias = c.v_bias = true;
           })},
          {"CLIPModel", clip(false)},
          {"SiglipModel", clip(true)}};
}

TEST(HuggingFace, WhatIsWrittenIsReadAgainWithTheSameAnswers) {
  NoGrad no_grad;
  test::TemporaryFolder folder;
  for (auto& [name, make] : networks()) {
    SCOPED_TRACE(name);
    Written w = written(make, folder / (name + ".safetensors"));
    w.network.class_names = {"one", "two", "three"};
    w.network.model.input.crop_pct = 0.8;
    data::convert_weights(*in_form_of_hf(w.network, w.file), folder / name);
    json config = json::parse(test::read_text(folder / name + "/config.json"));
    EXPECT_EQ(config["architectures"], json::array({name}));
    EXPECT_TRUE(config.contains("model_type"));
    Network read = load_network({"", folder / name, 0, {}, {}});
    EXPECT_EQ(models::describe(read.model.input), models::describe(w.network.model.input));
    EXPECT_EQ(read.class_names.size(), size_t(read.model.classes));
    Tensor x = waves({2, 3, 8, 8}, 0.5);
    models::Output before = w.network.model.forward(x, {}), after = read.model.forward(x, {});
    EXPECT_LE(largest_difference(before.logits, after.logits), 1e-6);
    EXPECT_LE(largest_difference(before.features, after.features), 1e-6);
  }
}

TEST(HuggingFace, NetworksThatTransformersLacksAreRefused) {
  test::TemporaryFolder folder;
  auto refused = [&](const Make& make, const std::string& why) {
    Written w = written(make, folder / "x.safetensors");
    test::expect_refused([&] { in_form_of_hf(w.network, w.file); }, {"transformers", why});
  };
  auto vit = [&](auto change, const std::string& why) {
    VitConfig c = tiny_vit();
    change(c);
    refused([c](const nn::Scope& scope) { return make_vit(c, scope); }, why);
  };
  vit([](VitConfig& c) { c.pool = models::VitPool::avg; }, "pools by class token");
  vit([](VitConfig& c) { c.pre_norm = true; }, "norms");
  vit([](VitConfig& c) { c.layer_scale = 1; }, "side by side");
  refused(
      [](const nn::Scope& scope) {
        return models::make_model("resnet8_kd", scope, {.classes = 3});
      },
      "Pupil writes ViT");
  models::ClipConfig clip = tiny_clip();
  clip.classes = 2;
  refused([&](const nn::Scope& scope) { return make_clip(clip, scope).image; }, "no classifier");
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  auto weights = data::open_weights(path);
  for (const data::TensorInfo& info : weights->list()) names.push_back(info.name);
  return names;
}

TEST(Convert, FromLibraryToLibraryAndBack) {
  test::TemporaryFolder folder;
  const std::string model = "vit(dim=8,depth=1,heads=2,patch=4,image=8)",
                    ours = folder / "a.safetensors";
  Written w = written(
      [&](const nn::Scope& scope) { return models::make_model(model, scope, {.classes = 2}); },
      ours, {{"model", model}, {"labels", "cat\ndog"}});
  test::Outcome done = test::run({"convert", ours, folder / "hf", "--layout", "hf"});
  EXPECT_EQ(done.code, 0) << done.err;
  json config = json::parse(test::read_text(folder / "hf/config.json"));
  EXPECT_EQ(config["id2label"]["1"], "dog");
  EXPECT_EQ(test::run({"convert", folder / "hf", folder / "again", "--layout", "hf"}).code, 0);
  EXPECT_EQ(names_in(folder / "again"), names_in(folder / "hf"));

  done = test::run({"convert", folder / "hf", folder / "b.safetensors", "--layout", "timm"});
  EXPECT_EQ(done.code, 0) << done.err;
  auto back = data::open_weights(folder / "b.safetensors");
  EXPECT_FALSE(back->metadata().count("config.json"));
  EXPECT_EQ(back->list().size(), w.file->list().size());
  for (const data::TensorInfo& info : w.file->list())
    EXPECT_EQ(back->read(info.name, DType::f32).values(),
              w.file->read(info.name, DType::f32).values())
        << info.name;
  EXPECT_EQ(test::run({"convert", ours, folder / "half", "--layout", "hf", "--dtype", "f16"}).code,
            0);
  auto half = data::open_weights(folder / "half");
  for (const data::TensorInfo& info : half->list()) EXPECT_EQ(info.dtype, "F16") << info.name;

  test::Outcome refused = test::run({"convert", ours, folder / "no.npz", "--layout", "openai"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("holds no CLIP"), std::string::npos) << refused.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "no.npz"));
}

// ---- timm and torchvision

// Names and shapes of the parameters that these libraries give to a network.
json names_of_library(const std::string& network) {
  const char* source = std::getenv("PUPIL_SOURCE");
  return json::parse(test::read_text(
      concat(source ? source : ".", "/tests/golden/files/library_names.json")))[network];
}

json names_and_shapes(const data::Weights& file) {
  json all = json::object();
  for (const data::TensorInfo& info : file.list())
    all[info.name] = std::vector<int64_t>(info.shape.dims, info.shape.dims + info.shape.rank);
  return all;
}

// The file of a network of these libraries: every tensor matters, no variance is negative.
Written settled(const Make& make, const std::string& path,
                const std::map<std::string, std::string>& metadata = {}) {
  Written w;
  w.network.store = std::make_unique<nn::Store>(3);
  w.network.model = make(nn::Scope(*w.network.store));
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : w.network.store->params()) {
    Tensor to = p.value;
    if (to.dtype() == DType::f32)
      copy_into(to, add(to.clone(), scale(waves(to.shape(), double(tensors.size())), 0.3)));
    tensors.emplace_back(p.name, to.clone());
  }
  data::save_safetensors(path, tensors, metadata);
  w.file = data::open_weights(path);
  return w;
}

void expect_same_file(const data::Weights& a, const data::Weights& b) {
  EXPECT_EQ(names_and_shapes(a), names_and_shapes(b));
  for (const data::TensorInfo& info : a.list())
    EXPECT_EQ(a.read(info.name, DType::f32).values(), b.read(info.name, DType::f32).values())
        << info.name;
}

TEST(Convert, TimmAndTorchvisionNameTheSameNetworks) {
  NoGrad no_grad;
  Tensor x = waves({2, 3, 32, 32}, 0.5);
  for (auto [torchvision, timm] : {std::pair{"mobilenet_v2", "mobilenetv2_100"},
                                   {"efficientnet_b0", "efficientnet_b0.ra_in1k"},
                                   {"regnet_y_400mf", "regnety_004"}})
    for (bool back : {false, true}) {
      test::TemporaryFolder folder;
      const std::string from = back ? timm : torchvision, to = back ? torchvision : timm,
                        a = folder / "a.safetensors", b = folder / "b.safetensors";
      Written w = settled(
          [&](const nn::Scope& scope) { return models::make_model(from, scope, {.classes = 3}); },
          a);
      const std::string layout = back ? "torchvision" : "timm",
                        other = back ? "timm" : "torchvision";
      test::Outcome done = test::run({"convert", a, b, "--layout", layout});
      ASSERT_EQ(done.code, 0) << done.err;
      std::vector<std::string> names = names_in(b);
      std::sort(names.begin(), names.end());
      EXPECT_EQ(json(names), names_of_library(to)) << to;

      NetworkConfig config;
      config.weights = b;
      Network read = load_network(config);
      EXPECT_EQ(read.model.name, to);
      EXPECT_EQ(describe(read.model.input), describe(w.network.model.input));
      EXPECT_EQ(read.model.forward(x, {}).logits.values(),
                w.network.model.forward(x, {}).logits.values())
          << to;

      ASSERT_EQ(test::run({"convert", b, folder / "c.safetensors", "--layout", other}).code, 0);
      expect_same_file(*data::open_weights(folder / "c.safetensors"), *w.file);
    }
}

TEST(Convert, VisionTransformersInTorchvisionsNames) {
  test::TemporaryFolder folder;
  const std::string model = "vit(dim=8,depth=2,heads=2,patch=4,image=8)",
                    ours = folder / "a.safetensors", theirs = folder / "b.safetensors";
  Written w = settled(
      [&](const nn::Scope& scope) { return models::make_model(model, scope, {.classes = 2}); },
      ours, {{"model", model}});
  test::Outcome done = test::run({"convert", ours, theirs, "--layout", "torchvision"});
  ASSERT_EQ(done.code, 0) << done.err;
  auto written = data::open_weights(theirs);
  EXPECT_EQ(names_and_shapes(*written), names_of_library("torchvision vit"));
  EXPECT_EQ(written->metadata().at("model"), model);
  expect_same_file(*models::in_our_names(written), *w.file);
  ASSERT_EQ(test::run({"convert", theirs, folder / "c.npz", "--layout", "timm"}).code, 0);
  expect_same_file(*data::open_weights(folder / "c.npz"), *w.file);
  done = test::run({"convert", theirs, folder / "hf", "--layout", "hf"});
  EXPECT_EQ(done.code, 0) << done.err;

  // As torchvision's first files name the layers of a block's MLP.
  std::vector<std::pair<std::string, Tensor>> older;
  for (const data::TensorInfo& info : written->list()) {
    std::string name = info.name;
    for (auto [now, then] : {std::pair{"mlp.0.", "mlp.linear_1."}, {"mlp.3.", "mlp.linear_2."}})
      if (size_t at = name.find(now); at != name.npos) name.replace(at, 6, then);
    older.emplace_back(name, written->read(info.name, DType::f32));
  }
  data::save_safetensors(folder / "older.safetensors", older);
  expect_same_file(*models::in_our_names(data::open_weights(folder / "older.safetensors")),
                   *w.file);
}

// What the images must look like is torchvision's, so it does not matter that two networks of timm
// have these parameters.
TEST(Convert, AVisionTransformerOfTorchvisionIsRecognised) {
  test::TemporaryFolder folder;
  Written w = settled(
      [](const nn::Scope& scope) { return models::make_model("deit_tiny_patch16_224", scope); },
      folder / "a.safetensors");
  auto named = models::in_names_of(models::layout_named("torchvision_vit"), "", w.file);
  data::convert_weights(*named, folder / "b.safetensors");
  NetworkConfig config;
  config.weights = folder / "b.safetensors";
  Network read = load_network(config);
  EXPECT_EQ(read.model.input.filter, models::Filter::bilinear);
  EXPECT_EQ(read.model.input.mean, w.network.model.input.mean);
  EXPECT_EQ(read.model.input.crop_pct, 0.875);
  config.weights = folder / "a.safetensors";  // timm's names: one of two, with other images
  test::expect_refused([&] { load_network(config); }, {"several networks", "deit_tiny"});
}

TEST(Convert, ConvnextInTorchvisionsNames) {
  test::TemporaryFolder folder;
  auto make = [](bool second) {
    return [second](const nn::Scope& scope) {
      models::ConvnextConfig c{.depths = {1, 2, 1, 1}, .widths = {4, 6, 8, 10}, .classes = 3};
      c.response_norm = second;
      return make_convnext(c, scope);
    };
  };
  Written w = settled(make(false), folder / "a.safetensors");
  const models::Layout& layout = models::layout_named("torchvision_convnext");
  auto theirs = models::in_names_of(layout, "", w.file);
  EXPECT_EQ(names_and_shapes(*theirs), names_of_library("torchvision convnext"));
  data::convert_weights(*theirs, folder / "b.npz");
  expect_same_file(*models::in_our_names(data::open_weights(folder / "b.npz")), *w.file);
  Written second = settled(make(true), folder / "c.safetensors");
  test::expect_refused([&] { models::in_names_of(layout, "", second.file); },
                       {"mlp.grn", "no place"});
}

TEST(Convert, NetworksThatComputeOtherThingsThereAreRefused) {
  test::TemporaryFolder folder;
  auto refused = [&](const std::string& model, const std::string& layout,
                     std::initializer_list<std::string> words) {
    settled([&](const nn::Scope& s) { return models::make_model(model, s, {.classes = 2}); },
            folder / "a.safetensors", {{"model", model}});
    test::Outcome done = test::run(
        {"convert", folder / "a.safetensors", folder / "b.safetensors", "--layout", layout});
    EXPECT_EQ(done.code, 2) << model;
    for (const std::string& word : words)
      EXPECT_NE(done.err.find(word), std::string::npos) << word << ": " << done.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "b.safetensors"));
  };
  refused("mobilenet_v3_small", "timm", {"mobilenet_v3_small", "0.001", "variance"});
  refused("mobilenetv3_small_100", "torchvision", {"0.001"});
  refused("tf_efficientnet_lite0", "torchvision", {"torchvision has no network"});
  refused("resnet8_kd", "timm", {"not among its families"});
  refused("vit(dim=8,depth=1,heads=2,patch=4,image=8,pool=avg)", "torchvision", {"class token"});
  refused("vit(dim=8,depth=1,heads=2,patch=4,image=8,qkv_bias=0)", "torchvision", {"blocks"});

  // timm's tf_ networks have the names of others, but pad as TensorFlow does.
  settled([](const nn::Scope& s) { return models::make_model("mobilenetv3_small_100", s); },
          folder / "tf_mobilenetv3_small_100.safetensors");
  NetworkConfig config;
  config.weights = folder / "tf_mobilenetv3_small_100.safetensors";
  test::expect_refused([&] { load_network(config); }, {"tf_mobilenetv3_small_100", "padding"});
}

// ---- zero-shot

struct ClipFolder {
  test::TemporaryFolder folder;
  std::string path = folder / "clip", photos = folder / "photos";
  explicit ClipFolder(const models::ClipConfig& config = tiny_clip()) {
    Written w = written([&](const nn::Scope& scope) { return make_clip(config, scope).image; },
                        folder / "x.safetensors");
    data::convert_weights(*in_form_of_hf(w.network, w.file), path);
    test::write_text(path + "/merges.txt", test::clip_vocabulary("d o\ndo g</w>\n"));
    int k = 0;
    for (const char* name : {"dog", "sea_dog", "x"}) {
      std::filesystem::create_directories(photos + "/" + name);
      for (int i = 0; i < 3; i++)
        test::write_bytes(concat(photos, "/", name, "/", i, ".png"),
                          test::png(test::noise_image(11, 9, 3, uint64_t(++k))));
    }
  }
};

std::vector<double> unit(std::vector<double> v) {
  double squares = 0;
  for (double a : v) squares += a * a;
  for (double& a : v) a /= std::sqrt(squares);
  return v;
}

// The probabilities of these classes for every image, from the features of both towers in f64.
std::vector<std::vector<double>> expected(const ClipFolder& scene,
                                          const std::vector<std::string>& names,
                                          const std::vector<std::string>& prompts) {
  NoGrad no_grad;
  nn::Store store(0, DType::f64);
  store.source(data::open_weights(scene.folder / "x.safetensors"));
  models::Clip clip = make_clip(tiny_clip(), nn::Scope(store));
  store.require_complete();
  data::ClipTokenizer tokenizer(scene.path + "/merges.txt");
  std::vector<std::vector<double>> heads;
  for (std::string name : names) {
    std::replace(name.begin(), name.end(), '_', ' ');
    std::vector<double> sum(6);
    for (std::string prompt : prompts) {
      prompt.replace(prompt.find("{}"), 2, name);
      Tensor ids = tokenizer.tokens(std::vector<std::string>{prompt}, clip.context);
      std::vector<double> text = unit(clip.text(ids, {}).values());
      for (size_t i = 0; i < 6; i++) sum[i] += text[i];
    }
    heads.push_back(unit(sum));
  }
  data::Dataset set = data::open_dataset("folder:" + scene.photos);
  data::LoaderOptions options;
  options.batch = set.size();
  data::Loader loader(set, {clip.image.input}, options);
  data::Batch batch;
  EXPECT_TRUE(loader.next(batch));
  Tensor images = clip.image.forward(batch.x[0].to(DType::f64), {}).features;
  std::vector<std::vector<double>> all;
  for (int64_t i = 0; i < set.size(); i++) {
    std::vector<double> image = unit(slice(images, 0, i, i + 1).values()), p;
    double total = 0;
    for (const std::vector<double>& head : heads) {
      double cosine = std::inner_product(image.begin(), image.end(), head.begin(), 0.0);
      p.push_back(std::exp(cosine * std::exp(clip.logit_scale.item())));
      total += p.back();
    }
    for (double& v : p) v /= total;
    all.push_back(p);
  }
  return all;
}

TEST(ZeroShot, PredictAnswersAsTheTowersSay) {
  ClipFolder scene;
  std::vector<std::string> names{"dog", "sea_dog", "x", "cow"}, prompts{"a {}.", "{}", "is it {}?"};
  std::vector<std::vector<double>> all = expected(scene, names, prompts);
  std::vector<std::string> arguments{"predict", "--weights", scene.path,          scene.photos,
                                     "--json",  "--classes", "dog, sea_dog,x,cow"};
  for (const std::string& prompt : prompts)
    arguments.insert(arguments.end(), {"--template", prompt});
  test::Outcome out = test::run(arguments);
  ASSERT_EQ(out.code, 0) << out.err;
  json list = json::parse(out.out);
  ASSERT_EQ(list.size(), all.size());
  double spread = 0;
  for (size_t i = 0; i < all.size(); i++)
    for (const json& answer : list[i]["top"]) {
      size_t c = answer["class"];
      EXPECT_EQ(answer["name"], names[c]);
      EXPECT_NEAR(answer["probability"].get<double>(), all[i][c], 1e-5) << i;
      spread = std::max(spread, all[i][c]);
    }
  EXPECT_GT(spread, 0.26);  // otherwise every classifier passes

  // Names and templates from files, the vocabulary by its path: the same answers.
  test::write_text(scene.folder / "names.txt", "dog\nsea_dog\r\nx\ncow\n");
  test::write_text(scene.folder / "prompts.txt", "a {}.\n{}\nis it {}?\n");
  std::filesystem::rename(scene.path + "/merges.txt", scene.folder / "merges.txt");
  test::Outcome again =
      test::run({"predict", "--weights", scene.path, scene.photos, "--json", "--classes",
                 scene.folder / "names.txt", "--template", scene.folder / "prompts.txt", "--vocab",
                 scene.folder / "merges.txt"});
  EXPECT_EQ(again.out, out.out) << again.err;
}

TEST(ZeroShot, EvalCountsRightAnswersOfAnEnsemble) {
  ClipFolder scene;
  std::vector<std::vector<double>> all = expected(scene, {"dog", "sea_dog", "x"}, {"a {}.", "{}"});
  int right = 0;
  for (size_t i = 0; i < all.size(); i++)
    right += std::max_element(all[i].begin(), all[i].end()) - all[i].begin() == int64_t(i / 3);
  ASSERT_GT(right, 0);
  test::Outcome out = test::run({"eval", scene.path, "--data", "folder:" + scene.photos, "--json",
                                 "--template", "a {}.", "--template", "{}"});
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NEAR(json::parse(out.out)["top1"].get<double>(), right / 9.0, 1e-9);
}

TEST(ZeroShot, WhatItCannotDo) {
  ClipFolder scene;
  auto refused = [&](std::vector<std::string> more, const std::string& word) {
    std::vector<std::string> arguments{"predict", "--weights", scene.path, scene.photos};
    arguments.insert(arguments.end(), more.begin(), more.end());
    test::Outcome out = test::run(arguments);
    EXPECT_EQ(out.code, 2) << word;
    EXPECT_NE(out.err.find(word), std::string::npos) << out.err;
    EXPECT_EQ(std::count(out.err.begin(), out.err.end(), '\n'), 1) << out.err;
  };
  refused({}, "--classes a,b,c");
  refused({"--template", "a {}."}, "name the classes");
  refused({"--classes", "a,b,a"}, "there twice");
  refused({"--classes", "a,,b"}, "no name");
  refused({"--classes", "a", "--template", "a photo"}, "exactly one {}");
  refused({"--classes", "a", "--vocab", scene.folder / "none"}, "none");
  refused({"--classes", "a", "--labels", "x"}, "--labels");
  std::filesystem::remove(scene.path + "/merges.txt");
  refused({"--classes", "a"}, "--vocab");
  test::Outcome out = test::run({"eval", scene.path, "--data", "folder:" + scene.photos});
  EXPECT_EQ(out.code, 2);
  EXPECT_NE(out.err.find("--template"), std::string::npos) << out.err;
}

// ---- TransMiter on images

TEST(Transmiter, ImagesGiveTheNumbersOfStoredFeatures) {
  models::ClipConfig wider = tiny_clip();
  wider.embed_dim = 7;
  ClipFolder weak, strong(wider);
  test::TemporaryFolder folder;
  test::write_text(folder / "names.txt", "dog\nsea_dog\nx\ncow\nox\n");
  ZeroShot texts{{"dog", "sea_dog", "x", "cow", "ox"}, {"a {}.", "{}"}, "", false};
  std::string photos = "folder:" + weak.photos;
  data::Dataset set = data::open_dataset(photos);
  data::save_npy(folder / "labels.npy", from(set.labels, {set.size()}));
  std::string shared = concat("[classes]\nnames = \"", folder / "names.txt",
                              "\"\ntask = [\"dog\", \"sea_dog\", \"x\"]\n",
                              "templates = [\"a {}.\", \"{}\"]\n"),
              tail = "[transmiter]\nlogits = 5\n", images = shared, stored = shared;
  images += concat("[data]\ntrain_images = \"", photos, "\"\ntest_images = \"", photos, "\"\n");
  stored += concat("[data]\ntrain_labels = \"", folder / "labels.npy", "\"\ntest_labels = \"",
                   folder / "labels.npy", "\"\n");
  for (auto& [name, scene] : {std::pair{"weak", &weak}, {"strong", &strong}}) {
    images += concat("[", name, "]\nweights = \"", scene->path, "\"\n");
    std::string features = folder / (std::string(name) + ".safetensors"),
                text = folder / (std::string(name) + ".npy");
    test::Outcome out = test::run({"features", "--teacher", scene->path, "--data", photos, "--tap",
                                   "features", "--out", features});
    ASSERT_EQ(out.code, 0) << out.err;
    Network net = load_network({"", scene->path, 0, {}, {}}, {{}, {}, "", true});
    data::save_npy(text, text_features(*net.clip, texts, scene->path));
    stored += concat("[", name, "]\ntext = \"", text, "\"\ntrain = \"", features, "\"\ntest = \"",
                     features, "\"\nlogit_scale = ", std::exp(net.clip->logit_scale.item()), "\n");
  }
  auto open = [&](const std::string& text) {
    test::write_text(folder / "job.toml", text);
    return open_transmiter_data(read_transmiter_config(folder / "job.toml"));
  };
  TransmiterData a = open(images + tail), b = open(stored + tail);
  EXPECT_EQ(a.names, b.names);
  EXPECT_EQ(a.train_labels.values(), b.train_labels.values());
  for (auto member : {&TransmiterData::weak, &TransmiterData::strong}) {
    const ModelData &x = a.*member, &y = b.*member;
    EXPECT_EQ(x.train.values(), y.train.values());
    EXPECT_EQ(x.test.values(), y.test.values());
    EXPECT_LE(largest_difference(x.head, y.head), 1e-4);  // the scale went through a decimal text
    EXPECT_GT(sum(square(x.head)).item(), 1);
    EXPECT_LE(largest_difference(x.zero_shot(x.test), y.zero_shot(y.test)), 1e-4);
  }
  EXPECT_NE(a.weak.train.values(), a.strong.train.values());
  EXPECT_TRUE(a.sources.count(weak.path));

  auto refused = [&](const std::string& text, const std::string& word) {
    test::expect_refused([&] { open(text + tail); }, {word});
  };
  refused(shared + "[data]\ntrain_images = \"x\"\n", "test_images");
  refused(images.substr(0, images.find("[strong]")) + "[strong]\n", "strong.weights");
  refused(stored + concat("weights = \"", weak.path, "\"\n"), "train_images");
}

}  // namespace
}  // namespace pupil

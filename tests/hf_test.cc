// Networks written for transformers and read again; CLIP asked about classes that are only named.
#include <nlohmann/json.hpp>
#include <numeric>

#include "clip_vocabulary.h"
#include "data/clip_tokenizer.h"
#include "data/convert.h"
#include "data_files.h"
#include "models/clip.h"
#include "models/eva.h"
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
  c.text.activation = c.vision.activation = models::Activation::quick_gelu;
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
             c.activation = models::Activation::gelu_tanh;
           })},
          {"DeiTForImageClassificationWithTeacher", vit([](VitConfig& c) { c.distilled = true; })},
          {"DeiTForImageClassification",
           vit([](VitConfig& c) { c.distilled = true, c.second_head = false; })},
          {"Dinov2ForImageClassification", vit(dino)},
          {"Dinov2Model", vit([](VitConfig& c) {
             c.layer_scale = 1e-5, c.classes = 0, c.gate = models::Gate::packed;
             c.activation = models::Activation::silu;
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
             c.gate = models::Gate::apart, c.activation = models::Activation::silu;
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

  for (const char* layout : {"torchvision", "openai"}) {
    test::Outcome refused = test::run({"convert", ours, folder / "no.npz", "--layout", layout});
    EXPECT_EQ(refused.code, 2);
    EXPECT_NE(refused.err.find(layout), std::string::npos) << refused.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "no.npz"));
  }
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

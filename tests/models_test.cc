#include "models/models.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/data.h"
#include "models/convnext.h"
#include "models/inverted_residual.h"
#include "models/resnet.h"
#include "models/resnetv2.h"
#include "nn/optim.h"
#include "support.h"
#include "tensor/memory.h"
#include "tensor/runtime.h"

namespace pupil::models {
namespace {

template <class F>
std::string input_error(F&& f) {
  try {
    f();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string shared(const std::string& path) { return test::shared_folder() + "/data/" + path; }

Tensor random_images(const Shape& shape, DType dtype = DType::f32) {
  nn::Store store(99, dtype);
  return nn::Scope(store).buffer("images", shape, {nn::Init::normal, 1});
}

TEST(Models, ParameterCountsOfTheirSources) {
  struct {
    const char* name;
    int64_t classes, count;
  } table[] = {{"resnet20_cifar", 10, 269722},
               {"resnet32_cifar", 10, 464154},
               {"resnet44_cifar", 10, 658586},
               {"resnet56_cifar", 10, 853018},
               {"resnet110_cifar", 10, 1727962},
               {"resnet8_kd", 100, 83892},
               {"resnet14_kd", 100, 181108},
               {"resnet20_kd", 100, 278324},
               {"resnet32_kd", 100, 472756},
               {"resnet56_kd", 100, 861620},
               {"resnet110_kd", 100, 1736564},
               {"resnet8x4_kd", 100, 1233540},
               {"resnet32x4_kd", 100, 7433860},
               {"resnet18", 1000, 11689512},
               {"resnet34", 1000, 21797672},
               {"resnet50", 1000, 25557032},
               {"resnet101", 1000, 44549160},
               {"resnet152", 1000, 60192808},
               {"resnext50_32x4d", 1000, 25028904},
               {"wide_resnet50_2", 1000, 68883240},
               {"resnet50d", 1000, 25576264},
               {"resnet18.a1_in1k", 1000, 11689512},
               {"resnet50.a1_in1k", 1000, 25557032},
               {"resnetv2_50x1_bit", 1000, 25549352},
               {"resnetv2_152x2_bit", 1000, 236335208},
               {"regnet_y_400mf", 1000, 4344144},
               {"regnety_004", 1000, 4344144},
               {"convnext_tiny", 1000, 28589128},
               {"convnextv2_tiny", 1000, 28635496},
               {"mobilenet_v2", 1000, 3504872},
               {"mobilenetv2_100", 1000, 3504872},
               {"mobilenet_v3_small", 1000, 2542856},
               {"mobilenet_v3_large", 1000, 5483032},
               {"mobilenetv3_small_100", 1000, 2542856},
               {"mobilenetv3_large_100", 1000, 5483032},
               {"efficientnet_b0", 1000, 5288548},
               {"efficientnet_b0.ra_in1k", 1000, 5288548},
               {"tf_efficientnet_lite0", 1000, 4652008},
               {"tf_efficientnet_lite1", 1000, 5416680},
               {"tf_efficientnet_lite2", 1000, 6092072},
               {"tf_efficientnet_lite3", 1000, 8197096},
               {"tf_efficientnet_lite4", 1000, 13006568},
               {"shufflenet_v2_x1_0", 1000, 2278604},
               {"squeezenet1_1", 1000, 1235496},
               {"squeezenet1_1.caffe", 1000, 1235496},
               {"mobilenetv2_kd", 100, 812836},
               {"shufflev1_kd", 100, 949258},
               {"shufflev2_kd", 100, 1355528},
               {"vgg8_kd", 100, 3965028},
               {"vgg13_kd", 100, 9462180},
               {"wrn_16_1_kd", 100, 180916},
               {"wrn_16_2_kd", 100, 703284},
               {"wrn_40_1_kd", 100, 569780},
               {"wrn_40_2_kd", 100, 2255156},
               {"vit_tiny_patch16_224", 1000, 5717416},
               {"vit_small_patch16_224", 1000, 22050664},
               {"vit_base_patch16_224", 1000, 86567656},
               {"RN50", 0, 102007137},
               {"RN50-quickgelu", 0, 102007137},
               {"RN101", 0, 119688033},
               {"RN101-quickgelu", 0, 119688033},
               {"RN50x4", 0, 178300601},
               {"RN50x4-quickgelu", 0, 178300601},
               {"RN50x16", 0, 290979217},
               {"RN50x16-quickgelu", 0, 290979217},
               {"RN50x64", 0, 623258305},
               {"RN50x64-quickgelu", 0, 623258305},
               {"ViT-B-32", 0, 151277313},
               {"ViT-B-32-quickgelu", 0, 151277313},
               {"ViT-B-16", 0, 149620737},
               {"ViT-B-16-quickgelu", 0, 149620737},
               {"ViT-L-14", 0, 427616513},
               {"ViT-L-14-quickgelu", 0, 427616513},
               {"ViT-L-14-336", 0, 427944193},
               {"ViT-L-14-336-quickgelu", 0, 427944193},
               {"ViT-H-14", 0, 986109441},
               {"ViT-H-14-quickgelu", 0, 986109441},
               {"ViT-g-14", 0, 1366678273},
               {"ViT-B-16-SigLIP", 0, 203155970}};
  for (auto& row : table) {
    nn::Store store = nn::Store::blueprint();
    Model model = make_model(row.name, nn::Scope(store), {.classes = row.classes});
    EXPECT_EQ(store.count(), row.count) << row.name;
    EXPECT_EQ(model.name, row.name);
    EXPECT_EQ(model.classes, row.classes);
    EXPECT_EQ(bool(store.find(model.head + ".weight")), row.classes > 0) << row.name;
  }
}

nlohmann::json read_reference(const std::string& name) {
  std::ifstream file(test::shared_folder() + "/reference/" + name);
  return nlohmann::json::parse(file);
}

nlohmann::json names_and_shapes(const std::string& model, int64_t classes) {
  nn::Store store = nn::Store::blueprint();
  make_model(model, nn::Scope(store), {.classes = classes});
  nlohmann::json all = nlohmann::json::object();
  for (const nn::Param& p : store.params()) {
    const Shape& s = p.value.shape();
    all[p.name] = std::vector<int64_t>(s.dims, s.dims + s.rank);
  }
  return all;
}

TEST(Models, NamesAndShapesOfTheKdBenchmark) {
  PUPIL_NEEDS_SHARED();
  nlohmann::json nets = read_reference("kd/cifar_nets.json");
  int checked = 0;
  for (const ModelInfo& info : list_models()) {
    if (!info.name.ends_with("_kd")) continue;
    EXPECT_EQ(names_and_shapes(info.name, 100),
              nets.at(info.name.substr(0, info.name.size() - 3)).at("tensors"))
        << info.name;
    checked++;
  }
  EXPECT_EQ(checked, 17);
}

// What a library does with images before this model, as far as its entry says.
void expect_input(const std::string& name, const nlohmann::json& entry) {
  nn::Store store = nn::Store::blueprint();
  Preprocessing input = make_model(name, nn::Scope(store)).input;
  nlohmann::json said = entry.contains("weights") ? entry["weights"]["IMAGENET1K_V1"] : entry;
  if (!said.contains("crop_pct") && !said.contains("crop")) return;
  double crop = said.contains("crop_pct")
                    ? said["crop_pct"].get<double>()
                    : said["crop"].get<double>() / said["resize"].get<double>();
  EXPECT_EQ(input.size, said.contains("crop") ? said["crop"] : said["input_size"][1]) << name;
  EXPECT_NEAR(input.crop_pct, crop, 1e-9) << name;
  EXPECT_EQ(input.filter, filter_named(said["interpolation"].get<std::string>())) << name;
  EXPECT_EQ(input.mean, said["mean"].get<std::vector<float>>()) << name;
  EXPECT_EQ(input.std, said["std"].get<std::vector<float>>()) << name;
}

// "resnet18" is torchvision's where both have it, "resnet18.a1_in1k" timm's with its tag.
TEST(Models, NamesShapesAndPreprocessingOfPublicCheckpoints) {
  PUPIL_NEEDS_SHARED();
  nlohmann::json published = read_reference("models/geometry.json");
  int checked = 0;
  for (const ModelInfo& info : list_models()) {
    size_t dot = info.name.find('.');
    auto entry = published.find("torchvision/" + info.name);
    if (entry == published.end()) entry = published.find("open_clip/" + info.name);
    if (entry == published.end()) entry = published.find("timm/" + info.name);
    if (entry == published.end()) {
      entry = published.find("timm/" + info.name.substr(0, dot));
      if (entry == published.end()) continue;
      EXPECT_EQ(info.name.substr(dot + 1), entry->at("tag"));
    }
    EXPECT_EQ(names_and_shapes(info.name, entry->value("num_classes", 0)), entry->at("shapes"))
        << info.name;
    expect_input(info.name, *entry);
    checked++;
  }
  EXPECT_GE(checked, 50);
}

TEST(Models, UnknownNamesAndKeysNameTheNearest) {
  nn::Store store = nn::Store::blueprint();
  nn::Scope root(store);
  auto error = [&](const std::string& name) {
    return input_error([&] { make_model(name, root); });
  };
  EXPECT_TRUE(contains(error("resnet20_cifer"), "resnet20_cifar"));
  EXPECT_TRUE(contains(error("vit(dims=12)"), "did you mean dim?"));
  EXPECT_TRUE(contains(error("vit(dim=13,heads=2)"), "multiple of heads"));
  EXPECT_TRUE(contains(error("vit(dim=x)"), "not a number"));
  EXPECT_TRUE(contains(error("vit(dim=2.5)"), "whole number"));
  EXPECT_TRUE(contains(error("vit(dim=12"), "parenthesis"));
  EXPECT_TRUE(contains(error("vit(image=30,patch=4)"), "multiple of patch"));
  EXPECT_TRUE(contains(error("vit(pool=max)"), "avg or token"));
  EXPECT_TRUE(contains(error("vit(class_token=0)"), "pool=avg"));
  EXPECT_NE(error("vit(heads=0)"), "");
  EXPECT_NE(error(""), "");
  EXPECT_EQ(store.params().size(), 0u);  // refused before anything was declared
}

// --- numerics of small networks, without reference files ---

using Make = std::function<Model(const nn::Scope&)>;
struct Small {
  std::string name;
  Shape images;
  Make own{};  // else a network of that name
  Model make(const nn::Scope& scope) const { return own ? own(scope) : make_model(name, scope); }
};
using Block = InvertedResidual;
const Small kSmall[] = {
    {"resnet8_kd", {3, 3, 8, 8}},
    {"resnet20_cifar", {2, 3, 8, 8}},
    {"vit(dim=12,depth=2,heads=2,patch=4,image=8)", {2, 3, 8, 8}},
    {"vit(dim=12,depth=2,heads=3,patch=2,image=4,class_token=0,pool=avg,qkv_bias=0)", {2, 3, 4, 4}},
    {"inverted residuals",
     {3, 3, 9, 12},
     [](auto& scope) {
       return make_inverted_residual(
           {.stem = 4,
            .stages = {{{Block::separable, 3, 1, 4, 4, 4, 2, Activation::silu, true}},
                       {{Block::inverted, 5, 2, 4, 8, 6, 0, Activation::hard_swish, false},
                        {Block::plain, 1, 1, 6, 0, 6, 0, Activation::silu, true}}},
            .head = 0,
            .hidden = 5,
            .squeeze_activation = Activation::silu,
            .hard_gate = true,
            .same_padding = true,
            .classes = 10},
           scope);
     }},
    {"resnet-d",
     {2, 3, 33, 32},
     [](auto& scope) {
       return make_resnet({.layers = {1, 1, 1, 1},
                           .planes = {4, 4, 6, 6},
                           .stem = 4,
                           .deep_stem = true,
                           .avg_down = true,
                           .classes = 10},
                          scope);
     }},
    {"bit",
     {2, 3, 32, 32},
     [](auto& scope) {
       return make_resnetv2({.layers = {2, 1},
                             .channels = {8, 12},
                             .inner = {4, 4},
                             .stem = 4,
                             .groups = 2,
                             .weight_eps = 0.01,  // filters that are zero at first bend less
                             .classes = 10},
                            scope);
     }},
    {"convnext",
     {2, 3, 17, 16},
     [](auto& scope) {
       return make_convnext({.depths = {1, 1},
                             .widths = {4, 6},
                             .layer_scale = 0.5,
                             .response_norm = true,
                             .classes = 10},
                            scope);
     }},
    {"wrn_16_1_kd", {2, 3, 8, 8}},
    {"vit(dim=12,depth=1,heads=3,patch=2,image=4,pool=avg)", {2, 3, 6, 4}}};  // resampled

TEST(Models, GradientsOfWholeNetworksMatchFiniteDifferences) {
  for (const Small& small : kSmall)
    for (bool train : {false, true}) {
      nn::Store store(5, DType::f64);
      Model model = small.make(nn::Scope(store));
      Tensor x = random_images(small.images, DType::f64),
             labels = zeros({small.images[0]}, DType::i64);
      auto loss = [&] { return cross_entropy(model.forward(x, {.train = train}).logits, labels); };
      backward(loss());
      // The derivative along one random direction in the space of all parameters.
      double slope = 0;
      nn::Store directions(17, DType::f64);
      std::vector<std::pair<Tensor, Tensor>> moves;
      for (nn::Param& p : store.params()) {
        if (p.buffer) continue;
        Tensor d = nn::Scope(directions).buffer(p.name, p.value.shape(), {nn::Init::normal, 1});
        ASSERT_TRUE(p.value.grad()) << small.name << " " << p.name;
        std::vector<double> g = p.value.grad().values(), v = d.values();
        for (size_t i = 0; i < g.size(); i++) slope += g[i] * v[i];
        moves.emplace_back(p.value, d);
        p.value.zero_grad();
      }
      auto move = [&](double by) {
        for (auto& [value, d] : moves)
          for (int64_t i = 0; i < value.numel(); i++)
            value.data<double>()[i] += by * d.data<double>()[i];
      };
      constexpr double kStep = 1e-6;
      NoGrad no_grad;
      move(kStep);
      double up = loss().item();
      move(-2 * kStep);
      double down = loss().item();
      EXPECT_NEAR((up - down) / (2 * kStep), slope, 1e-4 * std::max(1.0, std::abs(slope)))
          << small.name << (train ? " train" : " eval");
    }
}

TEST(Models, EveryTapIsSeenAndChangesNothing) {
  NoGrad no_grad;
  for (const Small& small : kSmall) {
    nn::Store store(5);
    Model model = small.make(nn::Scope(store));
    Tensor x = random_images(small.images);
    Output plain = model.forward(x, {});
    nn::Taps taps(model.taps);
    Output tapped = model.forward(x, {.taps = &taps});
    EXPECT_LE(test::largest_difference(plain.logits, tapped.logits), 1e-5) << small.name;
    EXPECT_EQ(plain.features.shape(), (Shape{small.images[0], model.width}));
    for (const std::string& name : model.taps) EXPECT_EQ(taps[name].layout(), Layout::strided);
    if (small.name.starts_with("resnet") && !small.own)
      for (std::string stage : {"1", "2", "3"}) {
        EXPECT_EQ(test::largest_difference(relu(taps["pre" + stage]), taps["f" + stage]), 0);
        std::vector<double> sums = taps["pre" + stage].values();
        EXPECT_LT(*std::min_element(sums.begin(), sums.end()), 0);  // really before the ReLU
      }
  }
}

TEST(Models, SideBySideIsEachOfThem) {
  NoGrad no_grad;
  test::TemporaryFolder folder;
  std::vector<std::shared_ptr<const data::Weights>> files;
  std::vector<std::shared_ptr<nn::Store>> stores;
  std::vector<Model> alone;
  for (const char* name : {"resnet8_kd", "resnet14_kd"}) {
    stores.push_back(std::make_shared<nn::Store>(stores.size()));
    alone.push_back(make_model(name, nn::Scope(*stores.back()), {.classes = 0}));
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const nn::Param& p : stores.back()->params()) tensors.emplace_back(p.name, p.value);
    data::save_safetensors(folder / name, tensors);
    files.push_back(data::open_safetensors(folder / name));
  }
  nn::Store store(7);
  store.source(data::join_weights(files, {}), {"head.*"});
  Model both = make_model("resnet8_kd+resnet14_kd", nn::Scope(store), {.classes = 5});
  store.require_complete();
  EXPECT_EQ(both.widths, (std::vector<int64_t>{64, 64}));
  EXPECT_EQ(both.width, 128);
  EXPECT_EQ(store.count(), stores[0]->count() + stores[1]->count() + 128 * 5 + 5);
  Tensor x = random_images({3, 3, 32, 32});
  nn::Taps taps({"1.f2"}), taps_alone({"f2"});
  Output out = both.forward(x, {.taps = &taps});
  Output first = alone[0].forward(x, {}), second = alone[1].forward(x, {.taps = &taps_alone});
  EXPECT_EQ(test::largest_difference(out.features, cat({first.features, second.features}, 1)), 0);
  EXPECT_EQ(test::largest_difference(taps["1.f2"], taps_alone["f2"]), 0);
  EXPECT_EQ(out.logits.shape(), (Shape{3, 5}));
  EXPECT_EQ(test::largest_difference(first.logits, first.features), 0);  // without a classifier

  nn::Store rows(3);
  Model towers = make_model("mlp(inputs=2,hidden=4)+mlp(inputs=3,hidden=5,standardize=1)",
                            nn::Scope(rows), {.classes = 2});
  EXPECT_EQ(towers.inputs, 5);
  Tensor values = random_images({6, 5});
  towers.fit_inputs(values);
  EXPECT_NE(rows.find("1.input_std")->value.values()[0], 1);
  Tensor before = towers.forward(values, {}).features;
  EXPECT_EQ(before.shape(), (Shape{6, 9}));
  for (int64_t i = 0; i < 6; i++) values.data<float>()[i * 5 + 3] += 1;  // of the second tower
  Tensor after = towers.forward(values, {}).features;
  EXPECT_EQ(test::largest_difference(slice(before, 1, 0, 4), slice(after, 1, 0, 4)), 0);
  EXPECT_GT(test::largest_difference(slice(before, 1, 4, 9), slice(after, 1, 4, 9)), 0);

  auto refused = [](const std::string& name, std::initializer_list<std::string> words) {
    nn::Store plan = nn::Store::blueprint();
    test::expect_refused([&] { make_model(name, nn::Scope(plan)); }, words);
  };
  refused("resnet8_kd+resnet20_cifar", {"resnet8_kd", "resnet20_cifar", "0.5071", "0.485"});
  refused("mlp(inputs=3)+resnet8_kd", {"images", "rows"});
  refused("resnet8_kd+", {"unknown name"});
  test::expect_refused([&] { towers.forward(random_images({6, 4}), {}); }, {"rows of 5", "(6,4)"});
}

TEST(Models, DropoutAndStochasticDepthFollowTheSeed) {
  NoGrad no_grad;
  nn::Store store(5);
  Model model = make_model("vit(dim=12,depth=3,heads=2,patch=4,image=8)", nn::Scope(store),
                           {.dropout = 0.2, .drop_path = 0.5});
  Tensor x = random_images({4, 3, 8, 8});
  auto run = [&](uint64_t seed) {
    Rng rng(seed);
    return model.forward(x, {.train = true, .rng = &rng}).features;
  };
  EXPECT_EQ(run(1).values(), run(1).values());
  EXPECT_NE(run(1).values(), run(2).values());
  EXPECT_NE(run(1).values(), model.forward(x, {}).features.values());
  EXPECT_THROW(model.forward(x, {.train = true}), Error);
}

TEST(Models, PreprocessingIsReadFromTheCheckpoint) {
  nn::Store store = nn::Store::blueprint();
  Model model = make_model("resnet20_cifar", nn::Scope(store));
  std::string path = testing::TempDir() + "preprocessing.safetensors";
  auto read = [&](const std::string& text) {
    data::save_safetensors(path, {{"x", zeros({1})}}, {{"input", text}});
    return preprocessing_of(model, data::open_safetensors(path).get());
  };
  EXPECT_EQ(preprocessing_of(model).mean[1], 0.456f);
  Preprocessing p = read("RGB/255, mean .1 .2 .3 std 1 2 3");
  EXPECT_EQ(p.mean, (std::vector<float>{.1f, .2f, .3f}));
  EXPECT_EQ(p.std, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(p.size, 32);
  p = read("RGB/255, mean 0.5, std 0.25, 64x64");
  EXPECT_EQ(p.std, (std::vector<float>{.25f, .25f, .25f}));
  EXPECT_EQ(p.size, 64);
  Preprocessing again = read(describe(p));
  EXPECT_EQ(describe(again), describe(p));
  EXPECT_EQ(p.filter, Filter::bilinear);
  EXPECT_EQ(p.crop_pct, 1);
  EXPECT_EQ(describe(read("RGB/255 - 0.5")), describe(read("RGB/255, mean 0.5 std 1")));
  EXPECT_EQ(describe(read("64x64, RGB/255, mean 0.5, std 0.25")), describe(p));
  p = read("RGB/255, mean 0.5, std 0.25, 64x64, lanczos, crop 0.875");
  EXPECT_EQ(p.filter, Filter::lanczos);
  EXPECT_EQ(p.crop_pct, 0.875);
  EXPECT_EQ(describe(read(describe(p))), describe(p));
  for (auto [image, crop] : {std::pair{0, 0.9}, {224, 0.9}, {32, 1.0}}) {
    nn::Store plan = nn::Store::blueprint();
    Options options;
    options.image = image;
    Preprocessing vit = make_model("vit_small_patch16_224", nn::Scope(plan), options).input;
    EXPECT_EQ(vit.filter, Filter::bicubic);
    EXPECT_EQ(vit.crop_pct, crop);
  }
  for (const char* bad :
       {"BGR 0..255", "BGR 0..255 minus 104,117,123; 227x227", "RGB/255, mean .1 .2",
        "3x4, RGB/255, mean .1 std .2", "RGB/255, mean .1 std .2, 3x4",
        "RGB/255, mean .1 std .2, 32x32 and more", "RGB/255, mean .1 std .2, 32x32, bicubic",
        "RGB/255, mean .1 std .2, 32x32, cubic, crop 1",
        "RGB/255, mean .1 std .2, 32x32, bicubic, crop 0",
        "RGB/255, mean .1 std .2, 32x32, bicubic, crop 1.5"})
    EXPECT_TRUE(contains(input_error([&] { read(bad); }), "preprocessing.safetensors")) << bad;
  std::filesystem::remove(path);
}

// --- public checkpoints ---

struct Loaded {
  nn::Store store{0};
  Model model;
  Preprocessing input;
  Loaded(const std::string& name, const std::string& file, const Options& options) {
    auto weights = data::open_weights(shared("weights/" + file));
    store.source(weights);
    model = make_model(name, nn::Scope(store), options);
    store.require_complete();
    input = preprocessing_of(model, weights.get());
  }
};

// Of the first `count` test images.
void check_cifar10(const std::string& name, const std::string& file, const std::string& logits,
                   int right, int64_t count = 10000) {
  Loaded net(name, file, {});
  data::Dataset test = data::open_dataset("cifar10:" + shared("cifar10") + ":test");
  ASSERT_EQ(test.size(), 10000);
  Tensor expected = data::read_npy(shared("reference/cifar10/" + logits));
  data::Loader loader(test, {net.input}, {.batch = 500, .workers = 0, .augment = {}});
  NoGrad no_grad;
  int correct = 0;
  int64_t row = 0;
  double worst = 0;
  data::Batch batch;
  loader.start(0);
  while (row < count && loader.next(batch)) {
    StepScope step;
    Tensor out = net.model.forward(batch.x[0], {}).logits;
    const float* got = out.data<float>();
    const float* wanted = expected.data<float>() + row * 10;
    for (int64_t i = 0; i < out.dim(0); i++) {
      const float* z = got + i * 10;
      correct += std::max_element(z, z + 10) - z == batch.labels.data<int64_t>()[i];
      for (int c = 0; c < 10; c++)
        worst = std::max(worst, std::abs(double(z[c]) - wanted[i * 10 + c]) /
                                    (1e-4 + 1e-5 * std::abs(double(wanted[i * 10 + c]))));
    }
    row += out.dim(0);
  }
  EXPECT_EQ(row, count);
  EXPECT_EQ(correct, right) << name;
  EXPECT_LE(worst, 1) << name << ": logits, in units of the tolerance";
}

TEST(PublicCheckpoints, ResNet20Cifar10) {
  PUPIL_NEEDS_SHARED();
  check_cifar10("resnet20_cifar", "cifar10_resnet20.safetensors", "test_logits_resnet20.npy", 9173);
}

TEST(PublicCheckpoints, ResNet56Cifar10FromLegacyPickle) {
  PUPIL_NEEDS_SHARED();
  check_cifar10("resnet56_cifar", "resnet56-4bfd9763.th", "test_logits_resnet56.npy", 9339);
}

TEST(PublicCheckpoints, MlperfResNet8Cifar10) {
  PUPIL_NEEDS_SHARED();
  check_cifar10("resnet8_mlperf", "cifar10_mlperf_resnet8.safetensors",
                "test_logits_mlperf_resnet8.npy", 8719);
}

TEST(PublicCheckpoints, TiniestCifar10) {
  PUPIL_NEEDS_SHARED();
  check_cifar10("tiniest", "cifar10_tiniest.safetensors", "test_logits_tiniest.npy", 942, 1000);
}

TEST(PublicCheckpoints, PostNormVitCifar10) {
  PUPIL_NEEDS_SHARED();
  check_cifar10("vit_postnorm_cifar", "cifar10_vit_small_postnorm.safetensors",
                "test_logits_vit_small_postnorm.npy", 7372);
}

TEST(PublicCheckpoints, ANewClassifierOnATrainedTrunk) {
  PUPIL_NEEDS_SHARED();
  auto weights = data::open_weights(shared("weights/cifar10_resnet20.safetensors"));
  auto build = [&](std::vector<std::string> fresh) {
    nn::Store store(0);
    store.source(weights, fresh);
    make_model("resnet20_cifar", nn::Scope(store), {.classes = 7});
    return input_error([&] { store.require_complete(); });
  };
  std::string message = build({});
  EXPECT_TRUE(contains(message, "linear.weight (file (10,64), model (7,64))")) << message;
  EXPECT_EQ(build({"linear.*"}), "");
}

// 24 photographs of 227 x 227 pixels; the middle `side` x `side`.
Tensor photographs(const Preprocessing& input, int64_t count, int side = 224) {
  Tensor pixels = data::read_npy(shared("reference/imagenet_models/inputs227_u8.npy"));
  Tensor x = empty({count, 3, side, side});
  const uint8_t* from = pixels.data<uint8_t>();
  float* to = x.data<float>();
  int begin = (227 - side) / 2;
  for (int64_t n = 0; n < count; n++)
    for (int c = 0; c < 3; c++)
      for (int row = begin; row < begin + side; row++)
        for (int column = begin; column < begin + side; column++)
          *to++ = (float(from[((n * 227 + row) * 227 + column) * 3 + c]) / 255 -
                   input.mean[size_t(c)]) /
                  input.std[size_t(c)];
  return x;
}

// Within atol + 1e-5 of the value.
void expect_close(const Tensor& got, const Tensor& expected, const std::string& what,
                  double atol = 1e-4) {
  ASSERT_EQ(got.shape(), expected.shape()) << what;
  std::vector<double> a = got.values(), b = expected.values();
  double worst = 0;
  for (size_t i = 0; i < a.size(); i++)
    worst = std::max(worst, std::abs(a[i] - b[i]) / (atol + 1e-5 * std::abs(b[i])));
  EXPECT_LE(worst, 1) << what << ": the difference, in units of the tolerance";
}

TEST(PublicCheckpoints, SqueezenetImageNet) {
  PUPIL_NEEDS_SHARED();
  Loaded net("squeezenet1_1.caffe", "squeezenet1_1_in1k.safetensors", {.classes = 1000});
  EXPECT_EQ(net.input.size, 227);
  EXPECT_NEAR(net.input.mean[0] * 255, 123, 1e-4);
  NoGrad no_grad;
  Output out = net.model.forward(photographs(net.input, 24, 227), {});
  std::string folder = "reference/imagenet_models/squeezenet_";
  expect_close(out.logits, data::read_npy(shared(folder + "logits.npy")), "logits");
  expect_close(out.features, data::read_npy(shared(folder + "fire9_gap.npy")), "features");
}

// Files of mixed f16 and f32; `taps` and how they are called in the reference, whose maps (of
// float32 too) are as far as `map_error` from those in f64.
void check_features(const std::string& name, const std::string& file, const std::string& reference,
                    int64_t classes, double map_error,
                    const std::map<std::string, std::string>& taps) {
  Loaded net(name, file, {.classes = classes});
  auto expected = data::open_safetensors(shared("reference/" + reference));
  std::vector<std::string> wanted;
  for (auto& [tap, stored] : taps) wanted.push_back(tap);
  nn::Taps seen(wanted);
  NoGrad no_grad;
  Output out = net.model.forward(photographs(net.input, 8), {.taps = &seen});
  auto stored = [&](const std::string& key) { return expected->read("out." + key, DType::f32); };
  expect_close(out.features, stored("feature"), name + " features");
  if (classes) expect_close(out.logits, stored("logits"), name + " logits");
  for (auto& [tap, key] : taps) {
    Tensor want = stored(key);
    expect_close(slice(seen[tap], 0, 0, want.dim(0)), want, name + " " + tap, map_error);
  }
}

TEST(PublicCheckpoints, EfficientNetLite) {
  PUPIL_NEEDS_SHARED();
  for (std::string number : {"0", "2"})
    check_features("tf_efficientnet_lite" + number,
                   "efficientnet_lite" + number + "_in1k_f16.safetensors",
                   "efficientnet_lite" + number + "_features.safetensors", 1000, 2e-4,
                   {{"blocks.1", "stage1_first1"},
                    {"blocks.3", "stage3_first2"},
                    {"blocks.6", "stage6_first2"}});
}

TEST(PublicCheckpoints, MobileNetV2WithoutClassifier) {
  PUPIL_NEEDS_SHARED();
  check_features("mobilenet_v2", "mobilenetv2_in1k_features_f16.safetensors",
                 "mobilenetv2_features.safetensors", 0, 1e-4,
                 {{"features.3", "features3_first1"},
                  {"features.6", "features6_first2"},
                  {"features.17", "features17_first2"}});
}

TEST(PublicCheckpoints, VitTinyImageNet) {
  PUPIL_NEEDS_SHARED();
  Loaded net("vit_tiny_patch16_224", "vit_tiny_patch16_224_in1k.safetensors", {.classes = 1000});
  EXPECT_EQ(net.input.mean[0], 0.5f);
  EXPECT_EQ(net.input.size, 224);
  std::string folder = "reference/imagenet_models/";
  Tensor logits = data::read_npy(shared(folder + "vit_tiny_logits.npy"));
  Tensor features = data::read_npy(shared(folder + "vit_tiny_feature.npy"));
  NoGrad no_grad;
  Output out = net.model.forward(photographs(net.input, 24), {});
  EXPECT_LE(test::largest_difference(out.logits, logits), 1e-4);
  EXPECT_LE(test::largest_difference(out.features, features), 1e-4);
  std::vector<double> a = out.logits.values(), b = logits.values();
  for (int64_t n = 0; n < 24; n++)
    EXPECT_EQ(std::max_element(&a[size_t(n * 1000)], &a[size_t(n * 1000 + 999)] + 1) - &a[0],
              std::max_element(&b[size_t(n * 1000)], &b[size_t(n * 1000 + 999)] + 1) - &b[0]);
  nn::Taps taps({"blocks.0", "blocks.5", "blocks.11"});
  net.model.forward(photographs(net.input, 2), {.taps = &taps});
  for (std::string block : {"0", "5", "11"}) {
    Tensor tokens =
        data::read_npy(shared(folder + "vit_tiny_tokens_after_block" + block + "_first2.npy"));
    std::vector<double> got = taps["blocks." + block].values(), wanted = tokens.values();
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); i++)  // values reach 8, 8 and 544
      ASSERT_NEAR(got[i], wanted[i], 1e-4 + 1e-5 * std::abs(wanted[i])) << block;
  }
}

TEST(PublicCheckpoints, PositionEmbeddingsAreResampledForAnotherImageSize) {
  PUPIL_NEEDS_SHARED();
  auto weights = data::open_weights(shared("weights/vit_tiny_patch16_224_in1k.safetensors"));
  nn::Store store(0);
  store.source(weights);
  Model model =
      make_model("vit_tiny_patch16_224", nn::Scope(store), {.classes = 1000, .image = 112});
  store.require_complete();
  EXPECT_EQ(model.input.size, 112);
  Tensor stored = weights->read("pos_embed", DType::f32);
  Tensor positions = store.find("pos_embed")->value;
  EXPECT_EQ(positions.shape(), (Shape{1, 50, 192}));
  EXPECT_EQ(
      test::largest_difference(positions.detach(), resample_pos_embed(stored, 1, 14, 14, 7, 7)), 0);
}

// Logits and all gradients of one training step, one behind the other.
std::vector<double> training_step(const std::string& name, const Tensor& x) {
  nn::Store store(3);
  Model model = make_model(name, nn::Scope(store), {.classes = 10, .image = int(x.dim(2))});
  Rng rng(4);
  Tensor logits = model.forward(x, {true, &rng}).logits;
  backward(cross_entropy(logits, from(std::vector<int64_t>(size_t(x.dim(0)), 3), {x.dim(0)})));
  std::vector<double> all = logits.values();
  for (const nn::Param& p : store.params())
    if (p.value.grad())
      for (double g : p.value.grad().values()) all.push_back(g);
  return all;
}

TEST(Models, ExactModeGivesTheSameBitsForAnyNumberOfThreads) {
  set_exact_mode(true);
  for (const char* name :
       {"resnet20_cifar", "vit(dim=64,depth=2,heads=2,patch=4,image=32)", "mobilenet_v2"}) {
    Tensor x = random_images({4, 3, 32, 32});
    set_cpu_threads(1, false);
    std::vector<double> one = training_step(name, x);
    for (int threads : {2, 5}) {
      set_cpu_threads(threads, false);
      EXPECT_TRUE(training_step(name, x) == one) << name << ", " << threads << " threads";
    }
  }
  set_exact_mode(false);
  set_cpu_threads(0);
}

}  // namespace
}  // namespace pupil::models

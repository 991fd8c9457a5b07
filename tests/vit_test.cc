// The transformer families: names, shapes and preprocessing of the public checkpoints, and the
// translation of Hugging Face's names.
#include "models/vit.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/eva.h"
#include "models/layout.h"
#include "models/mixer.h"
#include "models/transformer.h"
#include "support.h"
#include "tools/hf_config.h"

namespace pupil::models {
namespace {

using nlohmann::json;

json geometry() {
  std::ifstream file(test::shared_folder() + "/reference/models/geometry.json");
  return json::parse(file);
}

json sizes(const Shape& s) { return std::vector<int64_t>(s.dims, s.dims + s.rank); }

json names_and_shapes(const nn::Store& store) {
  json all = json::object();
  for (const nn::Param& p : store.params()) all[p.name] = sizes(p.value.shape());
  return all;
}

bool is_transformer(const std::string& timm) {
  return timm.starts_with("vit_") || timm.starts_with("deit") || timm.starts_with("mixer");
}

void expect_close(const std::vector<double>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); i++)
    ASSERT_NEAR(got[i], expected[i], 1e-11 * (1 + std::abs(expected[i]))) << i;
}

// Blocks with their gradients, of which only the first tokens are read or all.
struct BlockRun {
  std::vector<double> first, gradients;
  Tokens tokens;
  nn::Taps taps;

  BlockRun(const BlockOptions& options, bool turn, int64_t read, bool all,
           std::vector<std::string> wanted = {}, bool every_token = false)
      : taps(std::move(wanted)) {
    nn::Store store(7, DType::f64);
    nn::Scope scope(store);
    std::vector<Block> blocks = make_blocks(scope, 2, options);
    Tensor x = scope.buffer("x", {6, 5, options.dim}, {nn::Init::normal, 1});
    Tensor weight = scope.buffer("weight", {6, 2, options.dim}, {nn::Init::normal, 1});
    Rotary rotary{scope.buffer("cos", {5, options.dim / 2}, {nn::Init::normal, 1}),
                  scope.buffer("sin", {5, options.dim / 2}, {nn::Init::normal, 1})};
    Rng rng(3);
    nn::Call call{.train = true, .rng = &rng, .taps = &taps, .every_token = every_token};
    tokens = run_blocks(blocks, x, "b", call, read, all, turn ? &rotary : nullptr);
    Tensor part = read ? tokens.first : slice(tokens.all, 1, 0, 2);
    first = part.values();
    backward(sum(mul(part, weight)));
    for (const nn::Param& p : store.params())
      if (p.value.requires_grad())
        for (double g : p.value.grad().values()) gradients.push_back(g);
  }
};

TEST(Blocks, FirstTokensAreThoseOfAllTokens) {
  BlockOptions plain{.dim = 8, .hidden = 12, .heads = 2};
  auto with = [&](auto change) {
    BlockOptions o = plain;
    change(o);
    return o;
  };
  struct {
    const char* name;
    BlockOptions options;
    bool turn = false;
  } table[] = {{"plain", plain},
               {"turned", plain, true},
               {"causal", with([](BlockOptions& o) { o.causal = true; })},
               {"without bias", with([](BlockOptions& o) { o.qkv_bias = false; })},
               {"two biases", with([](BlockOptions& o) {
                  o.qkv_bias = false;
                  o.q_bias = o.v_bias = true;
                })},
               {"norms of q and k", with([](BlockOptions& o) { o.qk_norm = true; }), true},
               {"scaled", with([](BlockOptions& o) { o.layer_scale = 0.5; })},
               {"stochastic depth", with([](BlockOptions& o) { o.drop_path = 0.5; })},
               {"dropout", with([](BlockOptions& o) { o.dropout = 0.5; })}};
  for (auto& row : table) {
    SCOPED_TRACE(row.name);
    BlockRun full(row.options, row.turn, 0, false), first(row.options, row.turn, 2, false),
        both(row.options, row.turn, 2, true),
        tapped(row.options, row.turn, 2, false, {"b.0", "b.1"}),
        counted(row.options, row.turn, 2, false, {}, true);
    EXPECT_EQ(first.tokens.first.shape(), (Shape{6, 2, 8}));
    // Elsewhere the other tokens would be computed for nobody.
    EXPECT_EQ(bool(first.tokens.all), row.options.dropout > 0);
    expect_close(first.first, full.first);
    expect_close(first.gradients, full.gradients);
    // Who asks for all gets them, and changes nothing.
    for (const BlockRun* asked : {&both, &tapped}) {
      EXPECT_EQ(asked->tokens.all.values(), full.tokens.all.values());
      EXPECT_EQ(asked->first, first.first);
      EXPECT_EQ(asked->gradients, first.gradients);
    }
    EXPECT_EQ(tapped.taps["b.1"].values(), full.tokens.all.values());
    EXPECT_EQ(counted.first, full.first);
  }
}

TEST(Vit, PublicCheckpointsHaveTheseNamesShapesAndPreprocessing) {
  PUPIL_NEEDS_SHARED();
  int checked = 0;
  const json published = geometry();
  for (auto& [key, entry] : published.items()) {
    if (!key.starts_with("timm/")) continue;
    std::string name = key.substr(5);
    name.resize(std::min(name.find('.'), name.size()));  // without the tag of the weights
    if (!is_transformer(name)) continue;
    nn::Store store = nn::Store::blueprint();
    Model model =
        make_model(name, nn::Scope(store), {.classes = entry.at("num_classes").get<int64_t>()});
    EXPECT_EQ(names_and_shapes(store), entry.at("shapes")) << key;
    EXPECT_EQ(store.count(), entry.at("parameters")) << key;
    EXPECT_EQ(model.input.size, entry.at("input_size")[1]) << key;
    EXPECT_EQ(model.input.crop_pct, entry.at("crop_pct")) << key;
    EXPECT_EQ(model.input.filter, filter_named(entry.at("interpolation").get<std::string>()));
    EXPECT_EQ(model.input.mean, entry.at("mean").get<std::vector<float>>()) << key;
    EXPECT_EQ(model.input.std, entry.at("std").get<std::vector<float>>()) << key;
    checked++;
  }
  EXPECT_GE(checked, 30);
}

TEST(Vit, EveryListedNetworkCanBeBuilt) {
  for (auto family : {vits, evas, mixers})
    for (const Entry& entry : family()) {
      nn::Store store = nn::Store::blueprint();
      Model model = make_model(entry.name, nn::Scope(store), {.classes = 7});
      ASSERT_TRUE(store.find("head.weight")) << entry.name;
      EXPECT_EQ(store.find("head.weight")->value.shape(), (Shape{7, model.width})) << entry.name;
    }
}

// Class and fields of the published config.json.
json published_config(const std::string& key, json config) {
  for (auto [part, name] : {std::pair{"deit", "DeiTForImageClassificationWithTeacher"},
                            {"with-registers", "Dinov2WithRegistersModel"},
                            {"dinov2", "Dinov2Model"},
                            {"dinov3", "DINOv3ViTModel"},
                            {"google/vit", "ViTForImageClassification"}})
    if (key.find(part) != key.npos) {
      config["architectures"] = json::array({name});
      break;
    }
  if (key.find("deit-tiny") != key.npos)
    config.update({{"hidden_size", 192}, {"num_attention_heads", 3}, {"intermediate_size", 768}});
  config["num_labels"] = 1000;
  return config;
}

TEST(Layout, PublishedNamesOfHuggingFaceTranslateToOursAndBack) {
  PUPIL_NEEDS_SHARED();
  int checked = 0;
  const json published = geometry();
  for (auto& [key, entry] : published.items()) {
    if (!key.starts_with("hf/") || key.find("clip") != key.npos || key.find("siglip") != key.npos)
      continue;
    std::vector<std::string> theirs;
    for (auto& [name, shape] : entry.at("shapes").items()) theirs.push_back(name);
    const Layout* layout = layout_of(theirs);
    ASSERT_TRUE(layout) << key;
    Translation translation(*layout, theirs);
    EXPECT_TRUE(translation.unknown.empty()) << key << " " << translation.unknown[0];

    nn::Store store = nn::Store::blueprint();
    make_hf(published_config(key, entry.value("config", json::object())), key, nn::Scope(store),
            false);
    std::vector<std::string> ours;
    std::map<std::string, Tensor> values;
    for (const nn::Param& p : store.params()) {
      ours.push_back(p.name);
      values[p.name] = p.value;
    }
    std::string prefix;
    for (const std::string& known : layout->prefixes)
      for (const std::string& name : theirs)
        if (name.starts_with(known)) prefix = known;
    Translation back = Translation::from_ours(*layout, ours, prefix);
    EXPECT_TRUE(back.unknown.empty()) << key << " " << back.unknown[0];
    json written = json::object();
    for (const std::string& name : translation.dropped) written[name] = entry.at("shapes").at(name);
    bool small = entry.at("parameters") < 100000000;
    for (const Translation::Entry& e : back.entries)
      for (size_t i = 0; i < e.theirs.size(); i++)
        written[e.theirs[i]] =
            small
                ? sizes(to_theirs(e, i, [&](const std::string& n) { return values.at(n); }).shape())
                : entry.at("shapes").value(e.theirs[i], json());
    EXPECT_EQ(written, entry.at("shapes")) << key;
    checked++;
  }
  EXPECT_GE(checked, 6);
}

TEST(Layout, AFileIsReadUnderOurNamesAndRefusedWhereItDoesNotFit) {
  test::TemporaryFolder folder;
  json config = {{"architectures", json::array({"ViTForImageClassification"})},
                 {"hidden_size", 8},
                 {"intermediate_size", 16},
                 {"num_attention_heads", 2},
                 {"num_hidden_layers", 1},
                 {"image_size", 8},
                 {"patch_size", 4},
                 {"num_labels", 3}};
  nn::Store original(4);
  Model model = make_hf(config, "config.json", nn::Scope(original), false);
  std::vector<std::string> ours;
  for (const nn::Param& p : original.params()) ours.push_back(p.name);
  const Layout* layout = layout_of({"vit.encoder.layer.0.layernorm_before.weight"});
  ASSERT_TRUE(layout);
  std::vector<std::pair<std::string, Tensor>> written;
  for (const Translation::Entry& e : Translation::from_ours(*layout, ours, "vit.").entries)
    for (size_t i = 0; i < e.theirs.size(); i++)
      written.emplace_back(e.theirs[i], to_theirs(e, i, [&](const std::string& name) {
                             return original.find(name)->value;
                           }));
  data::save_safetensors(folder / "model.safetensors", written);
  std::ofstream(folder / "config.json") << config;
  ASSERT_TRUE(is_hf_folder(folder.path()));

  HfFolder read = open_hf_folder(folder.path());
  nn::Store store(5);
  store.source(read.weights);
  Model again = read.make(nn::Scope(store));
  store.require_complete();
  for (const nn::Param& p : original.params())
    EXPECT_EQ(store.find(p.name)->value.values(), p.value.values()) << p.name;
  EXPECT_EQ(again.classes, 3);
  EXPECT_EQ(read.weights->bytes("blocks.0.attn.qkv.weight").size(), 0u);  // three in the file
  EXPECT_EQ(read.weights->bytes("norm.weight").size(), 8 * sizeof(float));

  written.emplace_back("vit.encoder.layer.0.extra", zeros({2}));
  data::save_safetensors(folder / "model.safetensors", written);
  nn::Store other(5);
  read = open_hf_folder(folder.path());
  other.source(read.weights);
  read.make(nn::Scope(other));
  test::expect_refused([&] { other.require_complete(); },
                       {"unexpected", "vit.encoder.layer.0.extra"});

  // The parts of one of our tensors must fit together.
  for (const Shape& shape : {Shape{}, Shape{8}, Shape{8, 9}}) {
    auto parts = written;
    for (auto& [name, value] : parts)
      if (name.ends_with("attention.key.weight")) value = zeros(shape);
    data::save_safetensors(folder / "model.safetensors", parts);
    test::expect_refused([&] { open_hf_folder(folder.path()); },
                         {folder.path(), "attention.query.weight", "blocks.0.attn.qkv"});
  }

  // The same network in two files.
  written.pop_back();
  std::filesystem::remove(folder / "model.safetensors");
  json map;
  for (size_t k = 0; k < written.size(); k++)
    map[written[k].first] = k < 5 ? "a.safetensors" : "b.safetensors";
  data::save_safetensors(folder / "a.safetensors", {written.begin(), written.begin() + 5});
  data::save_safetensors(folder / "b.safetensors", {written.begin() + 5, written.end()});
  std::ofstream(folder / "model.safetensors.index.json") << json{{"weight_map", map}};
  read = open_hf_folder(folder.path());
  for (const nn::Param& p : original.params())
    EXPECT_EQ(read.weights->read(p.name, DType::f32).values(), p.value.values()) << p.name;

  auto refused = [&](const char* field, const json& value, const std::string& word) {
    json bad = config;
    bad[field] = value;
    nn::Store plan = nn::Store::blueprint();
    test::expect_refused([&] { make_hf(bad, "config.json", nn::Scope(plan), false); },
                         {"config.json", word});
  };
  refused("architectures", json::array({"BertModel"}), "BertModel");
  refused("architectures", "ViTModel", "architectures");
  refused("hidden_act", "relu6", "relu6");
  refused("image_size", json::array({8, 16}), "squares");
  refused("num_channels", 1, "num_channels");
  refused("hidden_size", "wide", "hidden_size");
  refused("num_hidden_layers", -1, "num_hidden_layers");
  std::ofstream(folder / "config.json") << "[1, 2]";
  test::expect_refused([&] { open_hf_folder(folder.path()); }, {"config.json", "JSON object"});
}

// The names of the files that facebookresearch/dinov2 and dinov3 publish.
TEST(Layout, MetasOwnFilesOfDinoAreRead) {
  NoGrad no_grad;
  test::TemporaryFolder folder;
  auto check = [&](const auto& make, const std::map<std::string, std::string>& renamed,
                   auto change) {
    nn::Store store(6);
    Model model = make(nn::Scope(store));
    std::vector<std::pair<std::string, Tensor>> tensors{{"mask_token", zeros({1, 16})}};
    for (nn::Param& p : store.params()) {
      for (int64_t i = 0; i < p.value.numel(); i++)
        p.value.data<float>()[i] += float(0.2 * std::sin(1.3 * double(i) + double(tensors.size())));
      std::string name = p.name;
      for (auto& [ours, theirs] : renamed)
        if (size_t at = name.find(ours); at != name.npos) name.replace(at, ours.size(), theirs);
      tensors.emplace_back(name, p.value.clone());
    }
    change(tensors);
    data::save_safetensors(folder / "dino.safetensors", tensors);
    nn::Store again(7);
    again.source(in_our_names(data::open_weights(folder / "dino.safetensors")));
    Model read = make(nn::Scope(again));
    again.require_complete();
    Tensor x = zeros({1, 3, 8, 8});
    for (int64_t i = 0; i < x.numel(); i++) x.data<float>()[i] = float(std::sin(double(i)));
    std::vector<double> a = model.forward(x, {}).features.values(),
                        b = read.forward(x, {}).features.values();
    for (size_t i = 0; i < a.size(); i++) EXPECT_NEAR(a[i], b[i], 1e-5);
  };
  VitConfig c;
  c.image = 8, c.patch = 4, c.dim = 16, c.depth = 1, c.heads = 2, c.classes = 0;
  c.layer_scale = 1, c.registers = 2, c.positions = VitPositions::patches;
  c.gate = Gate::packed, c.activation = Activation::silu;
  check([&](const nn::Scope& scope) { return make_vit(c, scope); },
        {{"reg_token", "register_tokens"}, {"mlp.fc1", "mlp.w12"}, {"mlp.fc2", "mlp.w3"}},
        [](auto& tensors) {  // the class token without its position
          Tensor place = zeros({1, 1, 16});
          for (int i = 0; i < 16; i++) place.template data<float>()[i] = float(i);
          for (auto& [name, value] : tensors) {
            if (name == "cls_token") value = sub(value, place);
            if (name == "pos_embed") value = cat({place, value}, 1);
          }
        });
  EvaConfig e;
  e.image = 8, e.patch = 4, e.dim = 16, e.depth = 1, e.heads = 2, e.hidden = 24;
  e.q_bias = e.v_bias = true, e.gate = Gate::apart, e.activation = Activation::silu;
  check([&](const nn::Scope& scope) { return make_eva(e, scope); },
        {{"reg_token", "storage_tokens"},
         {"gamma_1", "ls1.gamma"},
         {"gamma_2", "ls2.gamma"},
         {"mlp.fc1_g", "mlp.w1"},
         {"mlp.fc1_x", "mlp.w2"},
         {"mlp.fc2", "mlp.w3"}},
        [](auto& tensors) {  // biases of q, k and v in one
          Tensor q, v;
          std::erase_if(tensors, [&](auto& entry) {
            if (entry.first == "blocks.0.attn.q_bias") q = entry.second;
            if (entry.first == "blocks.0.attn.v_bias") v = entry.second;
            return entry.first.ends_with("_bias");
          });
          tensors.emplace_back("blocks.0.attn.qkv.bias", cat({q, full({16}, 7), v}, 0));
          tensors.emplace_back("blocks.0.attn.qkv.bias_mask", zeros({48}));
          tensors.emplace_back("rope_embed.periods", zeros({2}));
        });
}

TEST(Mixer, OtherImageSizesAreRefused) {
  nn::Store store(3);
  Model model = make_mixer({.image = 8, .patch = 4, .dim = 4, .depth = 1}, nn::Scope(store));
  test::expect_refused([&] { model.forward(zeros({1, 3, 8, 12}), {}); }, {"8x12", "8x8"});
}

}  // namespace
}  // namespace pupil::models

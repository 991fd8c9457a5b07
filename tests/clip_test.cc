// CLIP's towers where no reference case looks, and classifiers from class names.
#include "models/clip.h"

#include <nlohmann/json.hpp>
#include <set>

#include "autograd/autograd.h"
#include "clip_vocabulary.h"
#include "methods/clip_text.h"
#include "models/layout.h"

namespace pupil {
namespace {

using models::Clip;
using models::ClipConfig;
using test::expect_refused;

ClipConfig tiny() {
  ClipConfig config;
  config.image = 8;
  config.patch = 4;
  config.vision = {.width = 8, .hidden = 16, .heads = 2, .layers = 1};
  config.text = {.width = 8, .hidden = 16, .heads = 2, .layers = 2};
  config.context = 12;
  config.embed_dim = 6;
  return config;
}

TEST(Clip, WhatComesBehindTheEndOfATextDoesNotCount) {
  NoGrad no_grad;
  nn::Store store(3);
  Clip clip = models::make_clip(tiny(), nn::Scope(store));
  std::vector<int64_t> ids{49406, 7, 49407, 0, 0, 49406, 7, 49407, 9, 49407}, word{49406, 8, 49407};
  Tensor texts = clip.text(from(ids, {2, 5}), {});
  EXPECT_LE(test::largest_difference(slice(texts, 0, 0, 1), slice(texts, 0, 1, 2)), 1e-6);
  EXPECT_GT(test::largest_difference(slice(texts, 0, 0, 1), clip.text(from(word, {1, 3}), {})),
            1e-3);
  EXPECT_THROW(clip.text(zeros({1, 13}, DType::i64), {}), Error);
  expect_refused([&] { clip.image.forward(zeros({1, 3, 12, 12}), {}); }, {"12x12", "reads 8x8"});
}

TEST(Clip, PositionsOfAnotherImageSizeAreResampled) {
  NoGrad no_grad;
  test::TemporaryFolder folder;
  nn::Store store(3);
  models::make_clip(tiny(), nn::Scope(store));
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const nn::Param& p : store.params()) {
    Tensor value = p.value.clone();
    if (p.name == "visual.positional_embedding")  // the class token, then the same for all patches
      for (int64_t i = 0; i < value.numel(); i++)
        value.data<float>()[i] = float(i < 8 ? -i : i % 8);
    tensors.emplace_back(p.name, value);
  }
  data::save_safetensors(folder / "clip.safetensors", tensors);
  ClipConfig larger = tiny();
  larger.image = 12;
  nn::Store other(4);
  other.source(data::open_weights(folder / "clip.safetensors"));
  Clip clip = models::make_clip(larger, nn::Scope(other));
  other.require_complete();
  std::vector<double> values = other.find("visual.positional_embedding")->value.values();
  ASSERT_EQ(values.size(), 10u * 8);
  for (int i = 0; i < 80; i++) EXPECT_NEAR(values[size_t(i)], i < 8 ? -i : i % 8, 1e-5) << i;
  EXPECT_EQ(clip.image.forward(zeros({1, 3, 12, 12}), {}).features.shape(), (Shape{1, 6}));
}

TEST(Clip, ClassNamesBecomeAClassifier) {
  test::TemporaryFolder folder;
  test::write_text(folder / "merges.txt", test::clip_vocabulary("d o\ndo g</w>\n"));
  data::ClipTokenizer tokenizer(folder / "merges.txt");
  nn::Store store(3);
  Clip clip = models::make_clip(tiny(), nn::Scope(store));
  std::vector<std::string> names{"dog", "sea_dog"}, prompts{"a {}.", "{}"};
  Tensor text = methods::class_text_features(clip, tokenizer, names, prompts);
  ASSERT_EQ(text.shape(), (Shape{2, 2, 6}));
  EXPECT_FALSE(text.requires_grad());
  NoGrad no_grad;
  Tensor alone =
      clip.text(tokenizer.tokens(std::vector<std::string>{"a dog.", "dog", "a sea dog.", "sea dog"},
                                 clip.context),
                {});
  EXPECT_LE(test::largest_difference(view(text, {4, 6}), alone), 1e-6);

  auto features = [&](std::vector<std::string> classes, std::vector<std::string> templates) {
    methods::class_text_features(clip, tokenizer, classes, templates);
  };
  expect_refused([&] { features({}, prompts); }, {"no class names"});
  expect_refused([&] { features(names, {}); }, {"no template"});
  expect_refused([&] { features(names, {"a photo"}); }, {"exactly one {}"});
  expect_refused([&] { features({""}, prompts); }, {"empty class name"});
  ClipConfig other = tiny();
  other.siglip = true;
  clip = models::make_clip(other, nn::Scope(store, "siglip"));
  expect_refused([&] { features(names, prompts); }, {"another tokenizer"});
}

// Every tensor that transformers publishes goes into one of ours, and all of ours are filled.
TEST(Clip, PublishedNamesOfHuggingFace) {
  PUPIL_NEEDS_SHARED();
  nlohmann::json geometry = nlohmann::json::parse(
      test::read_text(test::shared_folder() + "/reference/models/geometry.json"));
  for (auto [published, name] : {std::pair{"openai/clip-vit-base-patch32", "ViT-B-32-quickgelu"},
                                 {"openai/clip-vit-base-patch16", "ViT-B-16-quickgelu"},
                                 {"openai/clip-vit-large-patch14", "ViT-L-14-quickgelu"},
                                 {"google/siglip-base-patch16-224", "ViT-B-16-SigLIP"}}) {
    const nlohmann::json& shapes = geometry.at(concat("hf/", published)).at("shapes");
    std::vector<std::string> theirs;
    for (auto& [key, shape] : shapes.items()) theirs.push_back(key);
    const models::Layout* layout = models::layout_of(theirs);
    ASSERT_TRUE(layout) << published;
    models::Translation translation(*layout, theirs);
    EXPECT_TRUE(translation.unknown.empty()) << published << " " << translation.unknown[0];
    nn::Store store = nn::Store::blueprint();
    models::make_model(name, nn::Scope(store), {.classes = 0});
    std::set<std::string> filled, ours;
    for (const nn::Param& p : store.params()) ours.insert(p.name);
    for (const models::Translation::Entry& entry : translation.entries) {
      int64_t here = 0, there = 0;
      for (const std::string& key : entry.ours) {
        filled.insert(key);
        if (const nn::Param* p = store.find(key)) here += p->value.numel();
      }
      for (const std::string& key : entry.theirs) {
        int64_t elements = 1;
        for (int64_t side : shapes.at(key)) elements *= side;
        there += elements;
      }
      EXPECT_EQ(here, there) << published << " " << entry.theirs[0];
    }
    EXPECT_EQ(filled, ours) << published;
  }
}

}  // namespace
}  // namespace pupil

// CLIP's towers where no reference case looks, and classifiers from class names.
#include "models/clip.h"

#include "autograd/autograd.h"
#include "clip_vocabulary.h"
#include "methods/clip_text.h"

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

double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  std::vector<double> x = a.values(), y = b.values();
  double largest = 0;
  for (size_t i = 0; i < x.size(); i++) largest = std::max(largest, std::abs(x[i] - y[i]));
  return largest;
}

TEST(Clip, WhatComesBehindTheEndOfATextDoesNotCount) {
  NoGrad no_grad;
  nn::Store store(3);
  Clip clip = models::make_clip(tiny(), nn::Scope(store));
  std::vector<int64_t> ids{49406, 7, 49407, 0, 0, 49406, 7, 49407, 9, 49407}, word{49406, 8, 49407};
  Tensor texts = clip.text(from(ids, {2, 5}), {});
  EXPECT_LE(largest_difference(slice(texts, 0, 0, 1), slice(texts, 0, 1, 2)), 1e-6);
  EXPECT_GT(largest_difference(slice(texts, 0, 0, 1), clip.text(from(word, {1, 3}), {})), 1e-3);
  EXPECT_THROW(clip.text(zeros({1, 13}, DType::i64), {}), Error);
  expect_refused([&] { clip.image.forward(zeros({1, 3, 12, 12}), {}); }, {"12x12", "reads 8x8"});
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
  EXPECT_LE(largest_difference(view(text, {4, 6}), alone), 1e-6);

  auto features = [&](std::vector<std::string> classes, std::vector<std::string> templates) {
    methods::class_text_features(clip, tokenizer, classes, templates);
  };
  expect_refused([&] { features({}, prompts); }, {"no class names"});
  expect_refused([&] { features(names, {}); }, {"no template"});
  expect_refused([&] { features(names, {"a photo"}); }, {"exactly one {}"});
  expect_refused([&] { features({""}, prompts); }, {"empty class name"});
}

}  // namespace
}  // namespace pupil

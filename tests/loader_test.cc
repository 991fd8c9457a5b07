#include <algorithm>
#include <numeric>
#include <set>

#include "data/augment.h"
#include "data_files.h"
#include "tensor/memory.h"

namespace pupil::data {
namespace {

using namespace test;

// n images of noise, `side` pixels a side; rows are numbered from `first_row`.
Dataset noise_set(int64_t n, int side, int channels, int64_t first_row = 0) {
  Dataset set;
  set.spec = "noise";
  set.classes = 10;
  set.hash = std::string(64, 'a');
  for (int64_t i = 0; i < n; i++) set.labels.push_back(i % 10);
  number_rows(set);
  for (int64_t& row : set.rows) row += first_row;
  set.whole = n + first_row;
  set.image = [=](int64_t i, Image& out) {
    out = noise_image(side, side, channels, uint64_t(i + first_row));
  };
  return set;
}

models::Preprocessing plain(int size, int channels = 3) {
  models::Preprocessing p;
  p.size = size;
  p.channels = channels;
  p.mean.assign(size_t(channels), 0.5f);
  p.std.assign(size_t(channels), 0.25f);
  return p;
}

struct Copy {
  std::vector<double> x, labels, targets, index;
  bool operator==(const Copy&) const = default;
};

std::vector<Copy> rest_of_epoch(Loader& loader) {
  std::vector<Copy> all;
  for (Batch batch; loader.next(batch);) {
    Copy copy;
    for (const Tensor& x : batch.x) {
      std::vector<double> values = x.values();
      copy.x.insert(copy.x.end(), values.begin(), values.end());
    }
    copy.labels = batch.labels.values();
    if (batch.targets) copy.targets = batch.targets.values();
    copy.index = batch.index.values();
    all.push_back(copy);
  }
  return all;
}

LoaderOptions everything_on() {
  LoaderOptions options;
  options.batch = 8;
  options.shuffle = true;
  options.seed = 11;
  options.augment.crop_padding = 2;
  options.augment.flip = true;
  options.augment.mixup = 0.4;
  options.augment.cutmix = 1;
  return options;
}

TEST(Loader, WorkersDoNotChangeABit) {
  Dataset set = noise_set(45, 10, 3);
  for (bool resized_crop : {false, true}) {
    LoaderOptions options = everything_on();
    if (resized_crop) {
      options.augment.crop_padding = 0;
      options.augment.random_resized_crop = 0.2;
    }
    std::vector<std::vector<Copy>> seen;
    for (int workers : {0, 1, 3}) {
      options.workers = workers;
      Loader loader(set, {plain(10), plain(7)}, options);
      std::vector<Copy> both;
      for (int64_t epoch : {0, 1}) {
        loader.start(epoch);
        std::vector<Copy> one = rest_of_epoch(loader);
        EXPECT_EQ(one.size(), 6u);
        both.insert(both.end(), one.begin(), one.end());
      }
      EXPECT_EQ(both[5].labels.size(), 5u);  // what is left over
      seen.push_back(both);
    }
    EXPECT_TRUE(seen[0] == seen[1]);
    EXPECT_TRUE(seen[0] == seen[2]);
    EXPECT_FALSE(seen[0][0] == seen[0][6]);  // another epoch, other batches
  }
}

TEST(Loader, GoesOnInTheMiddleOfAnEpoch) {
  Dataset set = noise_set(40, 6, 1);
  for (int workers : {0, 2}) {
    LoaderOptions options = everything_on();
    options.workers = workers;
    Loader loader(set, {plain(6)}, options);
    loader.start(3);
    std::vector<Copy> whole = rest_of_epoch(loader);
    for (int64_t first : {0, 2, 4, 5}) {
      Loader resumed(set, {plain(6)}, options);
      Batch batch;
      resumed.next(batch);  // leaves epoch 0 while workers are at it
      resumed.start(3, first);
      EXPECT_TRUE(rest_of_epoch(resumed) == std::vector<Copy>(whole.begin() + first, whole.end()));
      EXPECT_FALSE(resumed.next(batch));
    }
  }
}

TEST(Loader, EverySampleOnceInAnOrderOfItsOwn) {
  Dataset set = noise_set(100, 4, 1, 1000);
  LoaderOptions options;
  options.batch = 7;
  options.shuffle = true;
  auto order = [&](int64_t epoch, uint64_t seed) {
    options.seed = seed;
    Loader loader(set, {plain(4)}, options);
    loader.start(epoch);
    std::vector<double> rows;
    for (const Copy& c : rest_of_epoch(loader))
      rows.insert(rows.end(), c.index.begin(), c.index.end());
    return rows;
  };
  std::vector<double> a = order(0, 1), sorted = a;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, std::vector<double>(set.rows.begin(), set.rows.end()));
  EXPECT_NE(a, sorted);
  EXPECT_NE(a, order(1, 1));
  EXPECT_NE(a, order(0, 2));
  EXPECT_EQ(a, order(0, 1));
  options.shuffle = false;
  EXPECT_EQ(order(0, 1), sorted);
  options.drop_last = true;
  EXPECT_EQ(order(0, 1).size(), 98u);
  options.batch = 101;
  expect_refused([&] { order(0, 1); }, {"101", "100", "smaller batch"});
}

// A sample's augmentation follows its row, not its place: a subset sees the same images.
TEST(Loader, AugmentationBelongsToTheRow) {
  Dataset whole = noise_set(30, 8, 3), part = stratified_subset(whole, 10, 5);
  LoaderOptions options;
  options.augment.crop_padding = 3;
  options.augment.flip = true;
  options.batch = 30;
  Batch all, some;
  Loader a(whole, {plain(8)}, options);
  a.next(all);
  options.batch = 4;
  options.shuffle = true;
  Loader b(part, {plain(8)}, options);
  while (b.next(some))
    for (int64_t k = 0; k < some.index.dim(0); k++) {
      int64_t row = some.index.data<int64_t>()[k];
      EXPECT_EQ(memcmp(some.x[0].data<float>() + k * 192, all.x[0].data<float>() + row * 192, 768),
                0);
    }
}

// With `views` 3, epochs 1 and 4 show the same crops, in another order.
TEST(Loader, RepeatsItsViews) {
  Dataset set = noise_set(12, 8, 3);
  LoaderOptions options;
  options.batch = 12;
  options.shuffle = true;
  options.augment.random_resized_crop = 0.3;
  options.augment.flip = true;
  auto pixels = [&](int64_t epoch) {
    Loader loader(set, {plain(8)}, options);
    loader.start(epoch);
    Batch batch;
    loader.next(batch);
    std::vector<std::vector<float>> all(12);
    for (int64_t k = 0; k < 12; k++) {
      const float* x = batch.x[0].data<float>() + k * 192;
      all[size_t(batch.index.data<int64_t>()[k])].assign(x, x + 192);
    }
    return all;
  };
  auto fourth = pixels(4), first = pixels(1);
  EXPECT_NE(first, fourth);
  options.augment.views = 3;
  EXPECT_EQ(pixels(4), first);
  EXPECT_EQ(pixels(1), first);
  EXPECT_NE(pixels(2), first);
  options.augment.mixup = 0.2;
  expect_refused([&] { Loader(set, {plain(8)}, options); }, {"mixup", "views"});
}

TEST(Loader, PixelsAreNormalisedAfterPadding) {
  Dataset set = noise_set(20, 5, 1);
  LoaderOptions options;
  options.augment.crop_padding = 2;
  options.augment.flip = true;
  Loader loader(set, {plain(5)}, options);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  ASSERT_EQ(batch.x[0].shape(), (Shape{20, 3, 5, 5}));
  int moved = 0, flipped = 0;
  for (int64_t k = 0; k < 20; k++) {
    View view = draw_view(options.augment, 0, 0, k, 5, 5);
    moved += view.shift_x != 0 || view.shift_y != 0;
    flipped += view.flip;
    for (int y = 0; y < 5; y++)
      for (int x = 0; x < 5; x++) {
        int from_y = y + view.shift_y, from_x = (view.flip ? 4 - x : x) + view.shift_x;
        bool inside = from_y >= 0 && from_y < 5 && from_x >= 0 && from_x < 5;
        float pixel = inside ? noise(uint64_t(k), from_y * 5 + from_x) / 255.0f : 0;
        for (int64_t c = 0; c < 3; c++)  // one channel, three times
          EXPECT_EQ(batch.x[0].data<float>()[((k * 3 + c) * 5 + y) * 5 + x],
                    (pixel - 0.5f) / 0.25f);
      }
  }
  EXPECT_GT(moved, 10);
  EXPECT_GT(flipped, 3);
}

TEST(Loader, EachNetworkGetsItsOwnSize) {
  Dataset set = noise_set(4, 12, 3);
  models::Preprocessing other = plain(12);
  other.mean[1] = 0.1f;
  Loader loader(set, {plain(12), plain(8), plain(12), other}, {});
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_EQ(batch.x[0].raw(), batch.x[2].raw());
  EXPECT_NE(batch.x[0].raw(), batch.x[3].raw());
  EXPECT_EQ(batch.x[1].shape(), (Shape{4, 3, 8, 8}));
  Image small = resize(noise_image(12, 12, 3, 2), 8, 8, Filter::bilinear);
  for (int64_t c = 0; c < 3; c++)
    for (int64_t p = 0; p < 64; p++)
      EXPECT_EQ(batch.x[1].data<float>()[(2 * 3 + c) * 64 + p],
                (float(small.pixels[size_t(p * 3 + c)]) / 255.0f - 0.5f) / 0.25f);
}

TEST(Loader, WhatDoesNotFitIsRefused) {
  Dataset set = noise_set(4, 6, 3);
  auto load = [&](models::Preprocessing p, LoaderOptions options = {}) {
    Loader loader(set, {p}, options);
    Batch batch;
    loader.next(batch);
  };
  expect_refused([&] { load(plain(6, 1)); }, {"noise", "3 channels", "expects 1"});
  models::Preprocessing bad = plain(6);
  bad.std[2] = 0;
  expect_refused([&] { load(bad); }, {"standard deviation 0", "channel 2"});
  LoaderOptions options;
  options.batch = 0;
  expect_refused([&] { load(plain(6), options); }, {"batch of 0"});
  options = {};
  options.augment.crop_padding = 2;
  options.augment.random_resized_crop = 0.5;
  expect_refused([&] { load(plain(6), options); }, {"one of"});
  options.augment = {};
  options.augment.random_resized_crop = 1.5;
  expect_refused([&] { load(plain(6), options); }, {"1.5"});
  // An image that cannot be read when its turn comes, in the caller's thread and in a worker's.
  set.image = [](int64_t, Image&) { fail_input("gone.png is gone"); };
  for (int workers : {0, 2}) {
    options = {};
    options.workers = workers;
    expect_refused([&] { load(plain(6), options); }, {"gone.png"});
  }
}

TEST(Loader, FloatsPassThrough) {
  Dataset set = noise_set(10, 4, 1);
  set.image = nullptr;
  set.values = zeros({10, 6});
  for (int64_t i = 0; i < 60; i++) set.values.data<float>()[i] = float(i);
  LoaderOptions options;
  options.batch = 4;
  options.shuffle = true;
  Loader loader(set, {plain(32), plain(8)}, options);
  int64_t samples = 0;
  for (Batch batch; loader.next(batch);)
    for (int64_t k = 0; k < batch.index.dim(0); k++, samples++)
      for (const Tensor& x : batch.x)
        for (int64_t j = 0; j < 6; j++)
          EXPECT_EQ(x.data<float>()[k * 6 + j], float(batch.index.data<int64_t>()[k] * 6 + j));
  EXPECT_EQ(samples, 10);
  options.augment.flip = true;
  expect_refused([&] { Loader(set, {plain(8)}, options); }, {"floats", "turn them off"});
}

TEST(Loader, NoMemoryIsTakenAfterTheFirstEpoch) {
  Dataset set = noise_set(64, 8, 3);
  LoaderOptions options = everything_on();
  options.workers = 2;
  Loader loader(set, {plain(8)}, options);
  rest_of_epoch(loader);
  size_t before = Arena::model({}).stats().allocations;
  for (int64_t epoch = 1; epoch < 4; epoch++) {
    loader.start(epoch);
    for (Batch batch; loader.next(batch);) {
    }
  }
  EXPECT_EQ(Arena::model({}).stats().allocations, before);
}

TEST(Augmentation, Statistics) {
  Augmentation a;
  a.crop_padding = 4;
  a.flip = true;
  constexpr int n = 40000;
  std::vector<int> y(9), x(9);
  int flips = 0, flips_of_centre = 0;
  for (int64_t row = 0; row < n; row++) {
    View view = draw_view(a, 3, 5, row, 32, 32);
    y.at(size_t(view.shift_y + 4))++;
    x.at(size_t(view.shift_x + 4))++;
    flips += view.flip;
    if (view.shift_y == 0) flips_of_centre += view.flip;
  }
  double sigma = std::sqrt(n / 9.0 * (8.0 / 9));
  for (int count : y) EXPECT_NEAR(count, n / 9.0, 4.5 * sigma);
  for (int count : x) EXPECT_NEAR(count, n / 9.0, 4.5 * sigma);
  EXPECT_NEAR(flips, n / 2.0, 4.5 * std::sqrt(n) / 2);
  EXPECT_NEAR(flips_of_centre, y[4] / 2.0, 4.5 * std::sqrt(y[4]) / 2);  // independent draws

  a = {};
  a.random_resized_crop = 0.3;
  double share = 0, log_ratio = 0;
  for (int64_t row = 0; row < n; row++) {
    View view = draw_view(a, 3, 5, row, 200, 200);
    ASSERT_TRUE(view.box);
    const Box& b = *view.box;
    ASSERT_GE(b.top, 0);
    ASSERT_GE(b.left, 0);
    ASSERT_LE(b.top + b.height, 200);
    ASSERT_LE(b.left + b.width, 200);
    double area = double(b.height) * b.width / 40000;
    ASSERT_GT(area, 0.29);
    ASSERT_GT(double(b.width) / b.height, 0.73);
    ASSERT_LT(double(b.width) / b.height, 1.36);
    share += area;
    log_ratio += std::log(double(b.width) / b.height);
  }
  EXPECT_NEAR(log_ratio / n, 0, 0.005);
  EXPECT_GT(share / n, 0.58);  // uniform in (0.3, 1) would be 0.65; large boxes are rejected more
  EXPECT_LT(share / n, 0.65);

  for (double alpha : {0.2, 1.0, 4.0}) {
    a = {};
    a.mixup = alpha;
    double sum = 0, squares = 0;
    for (int64_t batch = 0; batch < n; batch++) {
      Mix mix = draw_mix(a, 1, 2, batch);
      EXPECT_FALSE(mix.cut);
      ASSERT_GE(mix.lambda, 0);
      ASSERT_LE(mix.lambda, 1);
      sum += mix.lambda;
      squares += (mix.lambda - 0.5) * (mix.lambda - 0.5);
    }
    double variance = 1 / (4 * (2 * alpha + 1));
    EXPECT_NEAR(sum / n, 0.5, 4.5 * std::sqrt(variance / n)) << alpha;
    EXPECT_NEAR(squares / n, variance, 0.03 * variance) << alpha;
  }
  a.cutmix = 1;
  int cuts = 0;
  for (int64_t batch = 0; batch < n; batch++) cuts += draw_mix(a, 1, 2, batch).cut;
  EXPECT_NEAR(cuts, n / 2.0, 4.5 * std::sqrt(n) / 2);
}

TEST(Augmentation, MixesSamplesAndTargetsAlike) {
  // Every image is constant with its own value, so its content tells the shares.
  constexpr int64_t n = 5, side = 16;
  std::vector<int64_t> labels{3, 1, 4, 1, 0};
  for (bool cut : {false, true}) {
    Tensor large = zeros({n, 2, side, side}), small = zeros({n, 2, side / 2, side / 2});
    for (Tensor* t : {&large, &small})
      for (int64_t i = 0; i < t->numel(); i++)
        t->data<float>()[i] = float(1 << (i / (t->numel() / n)));
    std::vector<Tensor> x{large, small, large};  // the same memory twice is mixed once
    Tensor targets = full({n, 6}, 7);
    Mix mix{cut, 0.7, 0.4, 0.6};
    apply_mix(mix, {4, 3, 2, 1, 0}, from(std::span<const int64_t>(labels), {n}), x, targets);
    Box box = cut_box(mix, side, side);
    EXPECT_EQ(box.height, 8);  // int(16 sqrt(0.3))
    double lambda = cut ? 1 - double(box.height * box.width) / (side * side) : 0.7;
    for (int64_t k = 0; k < n; k++) {
      double mean = 0;
      for (int64_t i = 0; i < 2 * side * side; i++)
        mean += large.data<float>()[k * 2 * side * side + i] / double(2 * side * side);
      EXPECT_NEAR(mean, lambda * (1 << k) + (1 - lambda) * (1 << (n - 1 - k)), 1e-5);
      std::vector<double> expected(6);
      expected[size_t(labels[size_t(k)])] += lambda;
      expected[size_t(labels[size_t(n - 1 - k)])] += 1 - lambda;
      for (int64_t c = 0; c < 6; c++)
        EXPECT_NEAR(targets.data<float>()[k * 6 + c], expected[size_t(c)], 1e-6);
    }
  }
}

Tensor index_of(int64_t row) { return from(std::span<const int64_t>(&row, 1), {1}); }

TEST(Features, RowsComeBackBySample) {
  TemporaryFolder folder;
  Dataset whole = noise_set(20, 4, 1), part = stratified_subset(whole, 9, 1);
  Tensor rows = zeros({9, 3});
  for (int64_t k = 0; k < 9; k++)
    for (int64_t j = 0; j < 3; j++)
      rows.data<float>()[k * 3 + j] = float(part.rows[size_t(k)] * 10 + j);
  std::string path = folder / "f.safetensors";
  FeatureHeader header{"resnet", "weights", "RGB/255", "logits", "f32", ""};
  write_features(path, header, rows, part);
  FeatureFile file(path);
  EXPECT_EQ(file.header().teacher, "resnet");
  EXPECT_EQ(file.header().tap, "logits");
  EXPECT_EQ(file.header().samples, 20);
  EXPECT_EQ(file.header().width, 3);
  file.require(part);
  std::vector<int64_t> wanted{part.rows[8], part.rows[0], part.rows[3], part.rows[8]};
  Tensor got = file.gather(from(std::span<const int64_t>(wanted), {4}));
  for (int64_t k = 0; k < 4; k++)
    for (int64_t j = 0; j < 3; j++)
      EXPECT_EQ(got.data<float>()[k * 3 + j], float(wanted[size_t(k)] * 10 + j));

  expect_refused([&] { file.require(part, {.flip = true}); }, {path, "augments"});
  expect_refused([&] { file.require(whole); }, {path, "no row for sample"});
  Dataset other = part;
  other.hash = std::string(64, 'b');
  expect_refused([&] { file.require(other); }, {path, part.hash, other.hash});
  // A view is of one augmentation and seed, and for runs that repeat their views.
  header.view = 2;
  header.drawn = describe({.flip = true}, 7);
  write_features(folder / "view", header, rows, part);
  FeatureFile view(folder / "view");
  EXPECT_EQ(view.header().view, 2);
  view.require(part, {.flip = true, .views = 3}, 7);
  file.require(part, {.flip = true, .views = 3}, 7);
  auto other_views = [&](const Augmentation& augment, uint64_t seed) {
    expect_refused([&] { view.require(part, augment, seed); }, {"view 2", "does not show"});
  };
  other_views({.flip = true, .views = 3}, 8);
  other_views({.crop_padding = 1, .flip = true, .views = 3}, 7);
  other_views({.flip = true}, 7);
  other_views({}, 7);
  header.view = 0;
  std::vector<int64_t> absent;
  for (int64_t row = 0; row < 20; row++)
    if (!std::binary_search(part.rows.begin(), part.rows.end(), row)) absent.push_back(row);
  for (int64_t row : {absent[0], int64_t(20), int64_t(-1)})
    expect_refused([&] { file.gather(index_of(row)); }, {path, concat("sample ", row)});

  rows.data<float>()[5] = std::numeric_limits<float>::infinity();
  expect_refused([&] { write_features(folder / "bad", header, rows, part); },
                 {"inf", concat("row ", part.rows[1]), "column 2"});
  EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
}

// features:FILE+FILE: the rows of these files with the labels of the data they were computed from.
TEST(Features, AreADataSet) {
  TemporaryFolder folder;
  Dataset whole = noise_set(20, 4, 1), part = stratified_subset(whole, 9, 1);
  Tensor a = zeros({9, 3}), b = zeros({20, 2});
  for (int64_t i = 0; i < 27; i++) a.data<float>()[i] = float(i);
  for (int64_t i = 0; i < 40; i++) b.data<float>()[i] = float(100 + i);
  std::string of_part = folder / "a.safetensors", of_whole = folder / "b.safetensors";
  write_features(of_part, {"resnet", "weights a", "RGB/255", "features", "f32", ""}, a, part);
  write_features(of_whole, {"vit", "weights b", "RGB/255", "features", "f32", ""}, b, whole);
  Dataset set = open_dataset("features:" + of_part + "+" + of_whole);
  EXPECT_EQ(set.labels, part.labels);
  EXPECT_EQ(set.rows, part.rows);
  EXPECT_EQ(set.hash, whole.hash);
  EXPECT_EQ(set.whole, 20);
  EXPECT_EQ(set.classes, whole.classes);
  EXPECT_NE(set.made_by.find("weights a"), std::string::npos);
  EXPECT_NE(set.made_by.find("weights b"), std::string::npos);
  ASSERT_EQ(set.values.shape(), (Shape{9, 5}));
  for (int64_t k = 0; k < 9; k++) {
    EXPECT_EQ(set.values.data<float>()[k * 5 + 2], float(k * 3 + 2));
    EXPECT_EQ(set.values.data<float>()[k * 5 + 4], float(100 + 2 * part.rows[size_t(k)] + 1));
  }
  FeatureFile(of_whole).require(set);  // a teacher's rows of the same samples fit
  EXPECT_EQ(open_dataset("features:" + of_whole + ":[:5]").rows,
            (std::vector<int64_t>{0, 1, 2, 3, 4}));

  expect_refused([&] { open_dataset("features:" + of_whole + "+" + of_part); },
                 {of_part, "no row for sample"});
  expect_refused([&] { open_dataset("features:" + of_whole + ":test"); }, {"one split"});
  expect_refused([&] { open_dataset("features:" + (folder / "absent")); }, {"absent"});
  Dataset other = whole;
  other.hash = std::string(64, 'b');
  std::string of_other = folder / "c.safetensors";
  write_features(of_other, {"vit", "weights b", "RGB/255", "features", "f32", ""}, b, other);
  expect_refused([&] { open_dataset("features:" + of_whole + "+" + of_other); },
                 {of_other, whole.hash, other.hash});
  auto file = open_safetensors(of_whole);
  save_safetensors(
      of_other,
      {{"rows", file->read("rows", DType::f32)}, {"present", file->read("present", DType::u8)}},
      file->metadata());
  expect_refused([&] { open_dataset("features:" + of_other); }, {of_other, "no labels"});
}

TEST(Features, DamagedFilesAreRefused) {
  TemporaryFolder folder;
  std::string path = folder / "f.safetensors";
  expect_refused([&] { FeatureFile file(path); }, {path});
  save_safetensors(path, {{"rows", zeros({4, 1, 2})}});
  expect_refused([&] { FeatureFile file(path); }, {path, "pupil-features-1"});
  std::map<std::string, std::string> metadata{{"format", "pupil-features-1"},
                                              {"dtype", "f32"},
                                              {"samples", "4"},
                                              {"views", "1"},
                                              {"width", "3"}};
  Tensor present = zeros({1}, DType::u8);
  present.data<uint8_t>()[0] = 0x0f;
  save_safetensors(path, {{"rows", zeros({4, 1, 2})}, {"present", present}}, metadata);
  expect_refused([&] { FeatureFile file(path); }, {path, "width 3"});
  for (const char* bad : {"", "-4", "4x", "99999999999999999999"}) {
    metadata["samples"] = bad;
    save_safetensors(path, {{"rows", zeros({4, 1, 2})}, {"present", present}}, metadata);
    expect_refused([&] { FeatureFile file(path); }, {path, "samples"});
  }
  metadata["samples"] = "4";
  metadata["width"] = "2";
  Tensor rows = zeros({4, 1, 2});
  rows.data<float>()[5] = std::nanf("");
  save_safetensors(path, {{"rows", rows}, {"present", present}}, metadata);
  FeatureFile file(path);
  expect_refused([&] { file.gather(index_of(2)); }, {path, "row 2, column 1", "nan"});
}

}  // namespace
}  // namespace pupil::data

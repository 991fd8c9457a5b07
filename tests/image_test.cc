#include <nlohmann/json.hpp>

#include "data/augment.h"
#include "data/file.h"
#include "data_files.h"
#include "tensor/random.h"
#include "tensor/runtime.h"

namespace pupil::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Every case of one image function: its attributes, its tensors, whether an error is expected.
struct Case {
  std::string name;
  Json attrs;
  bool error;
  std::shared_ptr<const Weights> file;
};
std::vector<Case> cases(const std::string& function) {
  std::vector<Case> list;
  for (const auto& entry : fs::directory_iterator(test::shared_folder() + "/reference/image")) {
    std::string name = entry.path().filename().string();
    if (!name.starts_with("image_" + function + "__")) continue;
    auto file = open_safetensors(entry.path().string());
    list.push_back({name, Json::parse(file->metadata().at("attrs")),
                    file->metadata().count("expect") > 0, file});
  }
  return list;
}

Image image_of(const Weights& file, const char* name) {
  Tensor t = file.read(name, DType::u8);
  Image image{int(t.dim(0)), int(t.dim(1)), int(t.dim(2)), {}};
  image.pixels.assign(t.data<uint8_t>(), t.data<uint8_t>() + t.numel());
  return image;
}

std::optional<Filter> filter_of(const Json& attrs) {
  return models::filter_named(attrs["filter"].get<std::string>());
}

TEST(Image, DecodesTheReferenceFiles) {
  PUPIL_NEEDS_SHARED();
  int decoded = 0, refused = 0;
  for (const Case& c : cases("decode")) {
    SCOPED_TRACE(c.name);
    MappedFile file(test::shared_folder() + "/reference/image/" +
                    c.attrs["file"].get<std::string>());
    std::span<const uint8_t> bytes(file.data(), file.size());
    if (c.error) {
      EXPECT_THROW(decode_image(bytes, file.path()), InputError);
      EXPECT_NE(image_defect(bytes), "");
      refused++;
      continue;
    }
    EXPECT_EQ(image_defect(bytes), "");
    Image image = decode_image(bytes, file.path(), c.attrs["apply_exif"]),
          expected = image_of(*c.file, "out.image");
    ASSERT_EQ(image.height, expected.height);
    ASSERT_EQ(image.width, expected.width);
    ASSERT_EQ(image.channels, 3);
    int largest = 0;
    double sum = 0;
    for (size_t i = 0; i < image.pixels.size(); i++) {
      int difference = std::abs(int(image.pixels[i]) - int(expected.pixels[i]));
      largest = std::max(largest, difference);
      sum += difference;
    }
    EXPECT_LE(largest, c.attrs["max_abs"].get<int>());
    EXPECT_LE(sum / double(image.pixels.size()), c.attrs["mean_abs"].get<double>());
    decoded++;
  }
  EXPECT_GE(decoded, 19);
  EXPECT_GE(refused, 5);
}

TEST(Image, ResizesAsPillow) {
  PUPIL_NEEDS_SHARED();
  int replayed = 0;
  for (const Case& c : cases("resize")) {
    SCOPED_TRACE(c.name);
    std::optional<Filter> filter = filter_of(c.attrs);
    ASSERT_TRUE(filter);
    if (!c.attrs["box"].is_null()) continue;  // pupil verify replays it
    Image result =
        resize(image_of(*c.file, "in.image"), c.attrs["size"][0], c.attrs["size"][1], *filter);
    EXPECT_EQ(result.pixels, image_of(*c.file, "out.image").pixels);
    replayed++;
  }
  for (const Case& c : cases("resized_crop")) {
    SCOPED_TRACE(c.name);
    Box box{c.attrs["top"], c.attrs["left"], c.attrs["height"], c.attrs["width"]};
    Image result;
    Resizer().resize(image_of(*c.file, "in.image"), &box, c.attrs["size"][0], c.attrs["size"][1],
                     *filter_of(c.attrs), result);
    EXPECT_EQ(result.pixels, image_of(*c.file, "out.image").pixels);
    replayed++;
  }
  EXPECT_GE(replayed, 12);
}

TEST(Image, PlainAndPartialResizingGiveTheSamePixels) {
  for (uint64_t trial = 0; trial < 60; trial++) {
    auto draw = [&, k = 0](int below) mutable {
      return 1 + int(random_bits({trial, 1, 0}, k++) % uint32_t(below));
    };
    int in_height = draw(40), in_width = draw(60), height = draw(40), width = draw(60);
    Image image = test::noise_image(in_height, in_width, trial % 4 ? 3 : 1, trial);
    Region from{0.3 * (in_height - 1), 0.2 * (in_width - 1), double(in_height), double(in_width)};
    if (trial % 3) from = {0, 0, from.bottom, from.right};
    for (Filter filter : {Filter::nearest, Filter::box, Filter::bilinear, Filter::hamming,
                          Filter::bicubic, Filter::lanczos}) {
      SCOPED_TRACE(concat(in_height, "x", in_width, " to ", height, "x", width, " ", int(filter)));
      Image whole = resize(image, height, width, filter, from), part, cut;
      set_plain_mode(true);
      EXPECT_EQ(resize(image, height, width, filter, from).pixels, whole.pixels);
      set_plain_mode(false);
      Box box{height / 3, width / 4, height - height / 2, width - width / 2};
      Resizer().resize(image, from, height, width, box, filter, part);
      crop(whole, box, {0}, cut);
      EXPECT_EQ(part.pixels, cut.pixels);
      EXPECT_EQ(part.width, box.width);
    }
  }
}

TEST(Image, ShiftIsThePaddedCrop) {
  PUPIL_NEEDS_SHARED();
  for (const Case& c : cases("pad_crop")) {
    SCOPED_TRACE(c.name);
    int padding = c.attrs["padding"], top = c.attrs["top"], left = c.attrs["left"];
    Image result;
    Image image = image_of(*c.file, "in.image");
    crop(image, {top - padding, left - padding, image.height, image.width}, {0}, result);
    EXPECT_EQ(result.pixels, image_of(*c.file, "out.image").pixels);
  }
}

TEST(Image, EveryOrientationIsTurnedUpright) {
  Image stored = test::noise_image(2, 3, 3, 5);
  auto at = [&](int y, int x) {
    auto first = stored.pixels.begin() + (y * 3 + x) * 3;
    return std::vector<uint8_t>(first, first + 3);
  };
  // Which stored pixel is shown in the upper left and in the upper right corner.
  const int upper_left[9][2] = {{}, {0, 0}, {0, 2}, {1, 2}, {1, 0}, {0, 0}, {1, 0}, {1, 2}, {0, 2}};
  const int upper_right[9][2] = {{},     {0, 2}, {0, 0}, {1, 0}, {1, 2},
                                 {1, 0}, {0, 0}, {0, 2}, {1, 2}};
  for (bool little : {false, true})
    for (int k = 1; k <= 8; k++) {
      test::Bytes file = test::turned_png(stored, k, little);
      EXPECT_EQ(decode_image(file, "a.png").pixels, stored.pixels);
      Image shown = decode_image(file, "a.png", true);
      ASSERT_EQ(shown.width, k < 5 ? 3 : 2);
      auto first = shown.pixels.begin(), last = first + (shown.width - 1) * 3;
      EXPECT_EQ(std::vector<uint8_t>(first, first + 3), at(upper_left[k][0], upper_left[k][1]))
          << k;
      EXPECT_EQ(std::vector<uint8_t>(last, last + 3), at(upper_right[k][0], upper_right[k][1]))
          << k;
    }
  for (int wrong : {0, 9})
    EXPECT_EQ(decode_image(test::turned_png(stored, wrong, true), "a.png", true).pixels,
              stored.pixels);
  test::Bytes damaged = test::turned_png(stored, 6, true);  // its directory lies outside
  damaged[33 + 8 + 4] = 0xff;
  uint32_t sum = uint32_t(crc32(0, &damaged[33 + 4], 4 + 22));
  for (int i = 0; i < 4; i++) damaged[size_t(33 + 8 + 22 + i)] = uint8_t(sum >> (24 - 8 * i));
  EXPECT_EQ(decode_image(damaged, "a.png", true).pixels, stored.pixels);
}

TEST(Image, TurnsAndMirrors) {
  Image square = test::noise_image(5, 5, 3, 1), wide = test::noise_image(4, 7, 1, 2);
  Image quarter = rotate(square, 90, Filter::nearest, {0});
  EXPECT_EQ(quarter.pixels[0], square.pixels[4 * 3]);  // counter-clockwise: the upper right corner
  EXPECT_EQ(rotate(quarter, -90, Filter::bicubic, {0}).pixels, square.pixels);
  EXPECT_EQ(rotate(wide, 180, Filter::bilinear, {0}).pixels,
            flip_vertically(flip_horizontally(wide)).pixels);
  EXPECT_EQ(rotate(wide, -360, Filter::nearest, {0}).pixels, wide.pixels);
  for (Filter f : {Filter::nearest, Filter::bilinear, Filter::bicubic})
    EXPECT_EQ(affine(wide, {1, 0, 0, 0, 1, 0}, f, {9}).pixels, wide.pixels);
  // What lies outside is filled; a map that leaves the fixed-point range too.
  EXPECT_EQ(affine(square, {1, 1, 1e6, 0, 1, 0}, Filter::nearest, {1, 2, 3}).pixels[2], 3);
}

TEST(Image, CropsBeyondTheBorderAreFilled) {
  Image image = test::noise_image(3, 4, 3, 1), out;
  crop(image, center_box(image.height, image.width, 4, 7), {7, 8, 9},
       out);  // a column more on the right
  ASSERT_EQ(out.pixels.size(), 4u * 7 * 3);
  EXPECT_EQ(out.pixels[1 * 3], image.pixels[0]);
  EXPECT_EQ(out.pixels[6 * 3 + 1], 8);
  EXPECT_EQ(out.pixels[3 * 7 * 3 + 2], 9);
  crop(image, {-9, -9, 2, 2}, {5}, out);
  EXPECT_EQ(out.pixels, std::vector<uint8_t>(12, 5));
}

TEST(Image, WhatMakesNoSenseIsRefused) {
  Image image = test::noise_image(4, 4, 3, 1);
  EXPECT_THROW(adjust_hue(image, 0.6), InputError);
  EXPECT_THROW(adjust_hue(image, NAN), InputError);
  EXPECT_THROW(posterize(image, 9), InputError);
  EXPECT_THROW(affine(image, {1, 0, 0, 0, 1, 0}, Filter::lanczos, {0}), InputError);
  EXPECT_THROW(rotate(image, 10, Filter::nearest, {0, 0}), InputError);
  EXPECT_THROW(resize(image, 2, 2, Filter::nearest, Region{0, 0, 4, 5}), InputError);
  EXPECT_THROW(resize(image, 2, 2, Filter::box, Region{2, 0, 2, 4}), InputError);
  Tensor x = zeros({3, 4, 4});
  EXPECT_THROW(erase(x, zeros({3, 2, 2}), 3, 0), InputError);
  EXPECT_THROW(erase(x, zeros({2, 2, 2}), 0, 0), InputError);
  std::vector<Tensor> batch{zeros({2, 1, 2, 2})};
  Tensor targets = zeros({2, 3}), labels = zeros({2}, DType::i64);
  EXPECT_THROW(apply_mix({}, {0, 0}, labels, batch, targets), InputError);
  EXPECT_THROW(apply_mix({}, {0, 2}, labels, batch, targets), InputError);
}

}  // namespace
}  // namespace pupil::data

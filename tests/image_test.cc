#include <nlohmann/json.hpp>

#include "data/augment.h"
#include "data/file.h"
#include "support.h"

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
    if (c.attrs["apply_exif"]) continue;  // we never apply it
    EXPECT_EQ(image_defect(bytes), "");
    Image image = decode_image(bytes, file.path()), expected = image_of(*c.file, "out.image");
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
    if (!filter || !c.attrs["box"].is_null()) continue;
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

TEST(Image, ShiftIsThePaddedCrop) {
  PUPIL_NEEDS_SHARED();
  for (const Case& c : cases("pad_crop")) {
    SCOPED_TRACE(c.name);
    int padding = c.attrs["padding"], top = c.attrs["top"], left = c.attrs["left"];
    Image result;
    shift(image_of(*c.file, "in.image"), top - padding, left - padding, result);
    EXPECT_EQ(result.pixels, image_of(*c.file, "out.image").pixels);
  }
}

}  // namespace
}  // namespace pupil::data

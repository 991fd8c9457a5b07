// Adapters of the image functions. `preprocess`, mixup and cutmix go the way of every batch.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "../../data/data.h"
#include "../../data/file.h"
#include "case.h"

namespace pupil::verify {
namespace {

using data::Image;

Image image_of(Case& c) {
  Tensor pixels = c.get("in.image");
  Image image{int(pixels.dim(0)), int(pixels.dim(1)), int(pixels.dim(2)), {}};
  for (double v : pixels.values()) image.pixels.push_back(uint8_t(v));
  return image;
}

void give(Case& c, const Image& image) {
  Tensor y = empty({image.height, image.width, image.channels}, DType::u8);
  std::copy(image.pixels.begin(), image.pixels.end(), y.data<uint8_t>());
  c.result("image", y.to(DType::i64));
}

models::Filter filter_of(Case& c) {
  std::string name = c.text("filter", "bilinear");
  std::optional<models::Filter> filter = models::filter_named(name);
  if (!filter) throw Unsupported("filter = " + name);
  return *filter;
}

data::Fill fill_of(Case& c) {
  data::Fill fill;
  for (double v : c.has_attribute("fill") ? c.numbers("fill") : std::vector<double>{0})
    fill.push_back(uint8_t(v));
  c.ignore("fill");
  return fill;
}

// "size" as (height, width); one number is a square.
std::pair<int, int> size_of(Case& c) {
  std::vector<int64_t> size = c.integers("size");
  return {int(size.front()), int(size.back())};
}

data::Box box_of(Case& c) {
  return {int(c.integer("top")), int(c.integer("left")), int(c.integer("height")),
          int(c.integer("width"))};
}

void decode(Case& c) {
  for (const char* name : {"mode", "max_abs", "mean_abs", "in.none"}) c.ignore(name);
  data::MappedFile file(
      (std::filesystem::path(c.path()).parent_path() / c.text("file", "")).string());
  give(c, data::decode_image({file.data(), file.size()}, file.path(), c.flag("apply_exif", false)));
}

void resize(Case& c) {
  auto [height, width] = size_of(c);
  std::optional<data::Region> region;
  if (c.has_attribute("box")) {
    std::vector<double> box = c.numbers("box");  // left, top, right, bottom
    region = {box.at(1), box.at(0), box.at(3), box.at(2)};
  }
  give(c, data::resize(image_of(c), height, width, filter_of(c), region));
}

void resized_crop(Case& c) {
  auto [height, width] = size_of(c);
  Image part;
  data::crop(image_of(c), box_of(c), {0}, part);
  give(c, data::resize(part, height, width, filter_of(c)));
}

void pad_crop(Case& c) {
  auto [height, width] = size_of(c);
  int padding = int(c.integer("padding"));
  Image out;
  data::crop(image_of(c),
             {int(c.integer("top")) - padding, int(c.integer("left")) - padding, height, width},
             fill_of(c), out);
  give(c, out);
}

void center_crop(Case& c) {
  auto [height, width] = size_of(c);
  Image image = image_of(c), out;
  data::crop(image, data::center_box(image.height, image.width, height, width), {0}, out);
  give(c, out);
}

void preprocess(Case& c) {
  models::Preprocessing p;
  int64_t side = c.both("crop"), shorter = c.integer("resize_shorter");
  p.size = int(side);
  p.crop_pct = double(side) / double(shorter);
  p.filter = filter_of(c);
  c.attribute("mean").get_to(p.mean);
  c.attribute("std").get_to(p.std);
  data::Dataset one;
  one.spec = "image";
  one.classes = one.whole = 1;
  one.labels = one.rows = {0};
  one.image = [image = image_of(c)](int64_t, Image& out) { out = image; };
  data::LoaderOptions options;
  options.workers = 0;
  data::Loader loader(one, {p}, options);
  data::Batch batch;
  PUPIL_CHECK(loader.next(batch), "image.preprocess: no batch");
  c.result("x", view(batch.x[0], {3, side, side}).clone());
}

void affine(Case& c) {
  std::vector<double> numbers = c.numbers("matrix");
  std::array<double, 6> matrix{};
  PUPIL_CHECK(numbers.size() == 6, "image.affine: a matrix of ", numbers.size(), " numbers");
  std::copy(numbers.begin(), numbers.end(), matrix.begin());
  give(c, data::affine(image_of(c), matrix, filter_of(c), fill_of(c)));
}

void rotate(Case& c) {
  give(c, data::rotate(image_of(c), c.number("angle"), filter_of(c), fill_of(c)));
}

// A function that changes an image in place, with its one number.
template <auto change>
void in_place(Case& c) {
  Image image = image_of(c);
  if constexpr (std::is_invocable_v<decltype(change), Image&>)
    change(image);
  else if constexpr (std::is_same_v<decltype(change), void (*)(Image&, int)>)
    change(image, int(c.integer(c.has_attribute("bits") ? "bits" : "threshold")));
  else if constexpr (std::is_same_v<decltype(change), void (*)(Image&, float)>)
    change(image, float(c.number("factor")));
  else
    change(image, c.number("factor"));
  give(c, image);
}

template <auto make>
void made(Case& c) {
  give(c, make(image_of(c)));
}

// What apply_mix gives for the case's x, labels and perm.
void mix(Case& c, const data::Mix& how) {
  std::vector<Tensor> x{c.get("in.x").clone()};
  std::vector<int64_t> partner;
  for (double k : c.get("in.perm").values()) partner.push_back(int64_t(k));
  Tensor targets = zeros({x[0].dim(0), c.integer("num_classes")}, c.dtype());
  double lambda =
      data::apply_mix(how, partner, c.get("in.labels"), x, targets, c.number("smoothing", 0));
  c.result("x", x[0]);
  c.result("target", targets);
  if (how.cut) c.result("lam", full({}, lambda, DType::f64));
}

void mixup(Case& c) { mix(c, {.lambda = c.number("lam")}); }

void cutmix(Case& c) {
  Tensor x = c.get("in.x");
  int height = int(x.dim(2)), width = int(x.dim(3));
  data::Mix how{true, c.number("lam"), (double(c.integer("cy")) + 0.5) / height,
                (double(c.integer("cx")) + 0.5) / width};
  data::Box b = data::cut_box(how, height, width);
  std::vector<int64_t> box{b.top, b.top + b.height, b.left, b.left + b.width};
  c.result("box", from(std::span<const int64_t>(box), {4}));
  mix(c, how);
}

void erase(Case& c) {
  Tensor x = c.get("in.x").clone(), value = c.get("in.value").contiguous();
  c.only("height", value.dim(value.rank() - 2));
  c.only("width", value.dim(value.rank() - 1));
  data::erase(x, value, c.integer("top"), c.integer("left"));
  c.result("x", x);
}

}  // namespace

void add_image(Adapters& all) {
  all["image.decode"] = decode;
  all["image.resize"] = resize;
  all["image.resized_crop"] = resized_crop;
  all["image.pad_crop"] = pad_crop;
  all["image.center_crop"] = center_crop;
  all["image.hflip"] = made<data::flip_horizontally>;
  all["image.vflip"] = made<data::flip_vertically>;
  all["image.preprocess"] = preprocess;
  all["image.adjust_brightness"] = in_place<data::adjust_brightness>;
  all["image.adjust_contrast"] = in_place<data::adjust_contrast>;
  all["image.adjust_saturation"] = in_place<data::adjust_saturation>;
  all["image.adjust_sharpness"] = in_place<data::adjust_sharpness>;
  all["image.adjust_hue"] = in_place<data::adjust_hue>;
  all["image.posterize"] = in_place<data::posterize>;
  all["image.solarize"] = in_place<data::solarize>;
  all["image.invert"] = in_place<data::invert>;
  all["image.grayscale3"] = made<data::grayscale3>;
  all["image.autocontrast"] = in_place<data::autocontrast>;
  all["image.equalize"] = in_place<data::equalize>;
  all["image.affine"] = affine;
  all["image.rotate"] = rotate;
  all["image.mixup"] = mixup;
  all["image.cutmix"] = cutmix;
  all["image.erase"] = erase;
}

}  // namespace pupil::verify

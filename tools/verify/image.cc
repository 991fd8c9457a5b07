// Adapters of the image functions, through the loader that feeds every network.
#include <nlohmann/json.hpp>

#include "../../data/data.h"
#include "case.h"

namespace pupil::verify {
namespace {

data::Image image_of(Case& c) {
  Tensor pixels = c.get("in.image");
  data::Image image{int(pixels.dim(0)), int(pixels.dim(1)), int(pixels.dim(2)), {}};
  for (double v : pixels.values()) image.pixels.push_back(uint8_t(v));
  return image;
}

models::Filter filter_of(Case& c) {
  std::string name = c.text("filter", "bilinear");
  std::optional<models::Filter> filter = models::filter_named(name);
  if (!filter) throw Unsupported("filter = " + name);
  return *filter;
}

void resize(Case& c) {
  if (c.has_attribute("box")) throw Unsupported("box");
  std::vector<int64_t> size = c.integers("size");
  data::Image image = data::resize(image_of(c), int(size[0]), int(size[1]), filter_of(c));
  Tensor y = empty({image.height, image.width, image.channels}, DType::u8);
  std::copy(image.pixels.begin(), image.pixels.end(), y.data<uint8_t>());
  c.result("image", y.to(DType::i64));
}

void preprocess(Case& c) {
  models::Preprocessing p;
  int64_t side = c.both("crop"), shorter = c.integer("resize_shorter");
  if (shorter < side) throw Unsupported("a crop beyond the border");
  p.size = int(side);
  p.crop_pct = double(side) / double(shorter);
  p.filter = filter_of(c);
  c.attribute("mean").get_to(p.mean);
  c.attribute("std").get_to(p.std);
  data::Dataset one;
  one.spec = "image";
  one.classes = one.whole = 1;
  one.labels = one.rows = {0};
  one.image = [image = image_of(c)](int64_t, data::Image& out) { out = image; };
  data::LoaderOptions options;
  options.workers = 0;
  data::Loader loader(one, {p}, options);
  data::Batch batch;
  PUPIL_CHECK(loader.next(batch), "image.preprocess: no batch");
  c.result("x", view(batch.x[0], {3, side, side}).clone());
}

}  // namespace

void add_image(Adapters& all) {
  all["image.resize"] = resize;
  all["image.preprocess"] = preprocess;
}

}  // namespace pupil::verify

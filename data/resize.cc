// Pillow's resampling (src/libImaging/Resample.c describes the arithmetic): a separable filter in
// 8-bit fixed point, horizontal pass first, each pass rounded and clipped to a byte.
#include <algorithm>

#include "augment.h"

namespace pupil::data {
namespace {

constexpr int kFraction = 22;  // bits of a weight behind the binary point

double support_of(Filter filter) {
  switch (filter) {
    case Filter::box:
      return 0.5;
    case Filter::bilinear:
      return 1;
    case Filter::bicubic:
      return 2;
    case Filter::lanczos:
      return 3;
    case Filter::hamming:
      return 1;
    case Filter::nearest:
      break;
  }
  return 0;
}

double sinc(double x) { return x == 0 ? 1 : std::sin(M_PI * x) / (M_PI * x); }

double value_of(Filter filter, double x) {
  switch (filter) {
    case Filter::box:
      return x > -0.5 && x <= 0.5 ? 1 : 0;
    case Filter::bilinear:
      x = std::fabs(x);
      return x < 1 ? 1 - x : 0;
    case Filter::bicubic: {
      constexpr double a = -0.5;  // Keys 1981
      x = std::fabs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
      return 0;
    }
    case Filter::lanczos:
      return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    case Filter::hamming:  // with Pillow's constants in single precision
      return std::fabs(x) < 1 ? sinc(x) * double(0.54f + 0.46f * std::cos(M_PI * x)) : 0;
    case Filter::nearest:
      break;
  }
  return 0;
}

uint8_t to_byte(int32_t sum) { return uint8_t(std::clamp(sum >> kFraction, 0, 255)); }

}  // namespace

void Resizer::make_weights(int in_size, double from, double to, int out_size, Filter filter,
                           Weights& w) {
  double scale = (to - from) / out_size, stretch = std::max(scale, 1.0);
  double support = support_of(filter) * stretch;
  w.stride = int(std::ceil(support)) * 2 + 1;
  w.first.resize(size_t(out_size));
  w.count.resize(size_t(out_size));
  w.values.assign(size_t(out_size) * size_t(w.stride), 0);
  std::vector<double> raw(static_cast<size_t>(w.stride));
  for (int i = 0; i < out_size; i++) {
    double centre = from + (i + 0.5) * scale;
    int first = std::max(0, int(centre - support + 0.5));
    int end = std::min(in_size, int(centre + support + 0.5));
    double sum = 0;
    for (int k = 0; k < end - first; k++)
      sum += raw[size_t(k)] = value_of(filter, (k + first - centre + 0.5) * (1 / stretch));
    int32_t* values = w.values.data() + size_t(i) * size_t(w.stride);
    for (int k = 0; k < end - first; k++) {
      double weight = sum != 0 ? raw[size_t(k)] / sum : raw[size_t(k)];
      values[k] = int32_t(weight * (1 << kFraction) + (weight < 0 ? -0.5 : 0.5));
    }
    w.first[size_t(i)] = first;
    w.count[size_t(i)] = end - first;
  }
}

struct Resizer::Source {
  const uint8_t* first;
  int height, width;
  size_t channels, row;  // bytes of a pixel, and from one row to the next
};

void Resizer::resize(const Image& image, const Box* box, int height, int width, Filter filter,
                     Image& out) {
  Box all{0, 0, image.height, image.width};
  if (!box) box = &all;
  size_t channels = size_t(image.channels), row = size_t(image.width) * channels;
  const uint8_t* first =
      image.pixels.data() + size_t(box->top) * row + size_t(box->left) * channels;
  resample({first, box->height, box->width, channels, row},
           {0, 0, double(box->height), double(box->width)}, height, width, filter, out);
}

void Resizer::resize(const Image& image, const Region& region, int height, int width, Filter filter,
                     Image& out) {
  size_t channels = size_t(image.channels);
  resample(
      {image.pixels.data(), image.height, image.width, channels, size_t(image.width) * channels},
      region, height, width, filter, out);
}

void Resizer::resample(Source source, const Region& from, int height, int width, Filter filter,
                       Image& out) {
  size_t channels = source.channels;
  auto prepare = [&](Image& i, int h, int w) {
    i.height = h;
    i.width = w;
    i.channels = int(channels);
    i.pixels.resize(size_t(h) * size_t(w) * channels);
  };
  bool across = width != source.width || from.left != 0 || from.right != width;
  bool down = height != source.height || from.top != 0 || from.bottom != height;
  if (filter == Filter::nearest) {
    // The place of a pixel is a running sum, as in Pillow: its rounding decides between neighbours.
    std::vector<size_t> columns(static_cast<size_t>(width));
    double step = (from.right - from.left) / width, at = from.left + step * 0.5;
    for (size_t& column : columns) {
      column = size_t(std::min(int(at), source.width - 1)) * channels;
      at += step;
    }
    prepare(out, height, width);
    uint8_t* to = out.pixels.data();
    step = (from.bottom - from.top) / height;
    at = from.top + step * 0.5;
    for (int y = 0; y < height; y++, at += step) {
      const uint8_t* line =
          source.first + size_t(std::min(int(at), source.height - 1)) * source.row;
      for (size_t column : columns) to = std::copy_n(line + column, channels, to);
    }
    return;
  }
  if (across) {
    make_weights(source.width, from.left, from.right, width, filter, weights_);
    Image& target = down ? between_ : out;
    prepare(target, source.height, width);
    for (int y = 0; y < source.height; y++) {
      const uint8_t* in = source.first + size_t(y) * source.row;
      uint8_t* to = target.pixels.data() + size_t(y) * size_t(width) * channels;
      for (int x = 0; x < width; x++) {
        const int32_t* weight = weights_.values.data() + size_t(x) * size_t(weights_.stride);
        const uint8_t* first = in + size_t(weights_.first[size_t(x)]) * channels;
        int count = weights_.count[size_t(x)];
        for (size_t c = 0; c < channels; c++) {
          int32_t sum = 1 << (kFraction - 1);
          for (int k = 0; k < count; k++) sum += first[size_t(k) * channels + c] * weight[k];
          *to++ = to_byte(sum);
        }
      }
    }
    source.first = target.pixels.data();
    source.row = size_t(width) * channels;
  }
  if (down) {
    make_weights(source.height, from.top, from.bottom, height, filter, weights_);
    prepare(out, height, width);
    size_t row = size_t(width) * channels;
    for (int y = 0; y < height; y++) {
      const int32_t* weight = weights_.values.data() + size_t(y) * size_t(weights_.stride);
      const uint8_t* first = source.first + size_t(weights_.first[size_t(y)]) * source.row;
      int count = weights_.count[size_t(y)];
      uint8_t* to = out.pixels.data() + size_t(y) * row;
      for (size_t x = 0; x < row; x++) {
        int32_t sum = 1 << (kFraction - 1);
        for (int k = 0; k < count; k++) sum += first[size_t(k) * source.row + x] * weight[k];
        to[x] = to_byte(sum);
      }
    }
  } else if (!across) {
    prepare(out, height, width);
    for (int y = 0; y < height; y++)
      std::copy_n(source.first + size_t(y) * source.row, size_t(width) * channels,
                  out.pixels.data() + size_t(y) * size_t(width) * channels);
  }
}

const Image& Resizer::fit(const Image& image, const Box* box, const models::Preprocessing& p,
                          Image& out) {
  if (box) {
    resize(image, box, p.size, p.size, p.filter, out);
    return out;
  }
  // A quotient that is whole up to rounding counts as whole.
  int shorter = int(std::floor(p.size / p.crop_pct + 1e-9)), height = shorter, width = shorter;
  if (image.height < image.width)  // the longer side is cut, not rounded, as in torchvision
    width = int(int64_t(shorter) * image.width / image.height);
  else
    height = int(int64_t(shorter) * image.height / image.width);
  bool resized = height != image.height || width != image.width;
  bool cropped = height != p.size || width != p.size;
  if (resized) resize(image, nullptr, height, width, p.filter, cropped ? whole_ : out);
  if (!cropped) return resized ? out : image;
  crop(resized ? whole_ : image, center_box(resized ? whole_ : image, p.size, p.size), {0}, out);
  return out;
}

Image resize(const Image& image, int height, int width, Filter filter,
             const std::optional<Region>& region) {
  PUPIL_CHECK(height > 0 && width > 0 && image.height > 0 && image.width > 0,
              "resize: ", image.height, " x ", image.width, " to ", height, " x ", width);
  Region from = region.value_or(Region{0, 0, double(image.height), double(image.width)});
  if (!(from.top >= 0 && from.left >= 0 && from.bottom <= image.height &&
        from.right <= image.width && from.top < from.bottom && from.left < from.right))
    fail_input("resize: the region of rows ", from.top, " to ", from.bottom, ", columns ",
               from.left, " to ", from.right, " is no part of an image of ", image.height, " x ",
               image.width);
  Image out;
  Resizer().resize(image, from, height, width, filter, out);
  return out;
}

}  // namespace pupil::data

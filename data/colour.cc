// What changes the colours of an image (Pillow's ImageEnhance and ImageOps, ConvertHSV). This file
// is compiled without contraction to fused multiply-add: the results are truncated.
#include <algorithm>

#include "image.h"

namespace pupil::data {
namespace {

uint8_t grey_of(const uint8_t* p) {
  return uint8_t((19595 * p[0] + 38470 * p[1] + 7471 * p[2] + 32768) >> 16);
}

size_t pixels_of(const Image& image) { return size_t(image.height) * size_t(image.width); }

// The grey value of each pixel.
std::vector<uint8_t> grey_plane(const Image& image) {
  std::vector<uint8_t> grey(pixels_of(image));
  size_t channels = size_t(image.channels);
  for (size_t i = 0; i < grey.size(); i++) {
    const uint8_t* p = &image.pixels[i * channels];
    grey[i] = channels == 3 ? grey_of(p) : *p;
  }
  return grey;
}

uint8_t blend(uint8_t d, uint8_t x, float factor) {
  float value = float(d) + factor * float(int(x) - int(d));
  return uint8_t(std::clamp(value, 0.0f, 255.0f));
}

template <class F>  // f(index of the pixel, channel, value) -> value
void map(Image& image, F&& f) {
  size_t channels = size_t(image.channels);
  for (size_t i = 0; i < image.pixels.size(); i++)
    image.pixels[i] = f(i / channels, i % channels, image.pixels[i]);
}

// Replaces the levels of each channel; f(counts of the 256 levels) gives the new ones.
template <class F>
void map_levels(Image& image, F&& f) {
  size_t channels = size_t(image.channels);
  for (size_t c = 0; c < channels; c++) {
    std::array<int64_t, 256> counts{};
    for (size_t i = c; i < image.pixels.size(); i += channels) counts[image.pixels[i]]++;
    std::array<uint8_t, 256> levels = f(counts);
    for (size_t i = c; i < image.pixels.size(); i += channels)
      image.pixels[i] = levels[image.pixels[i]];
  }
}

std::array<uint8_t, 256> unchanged() {
  std::array<uint8_t, 256> levels;
  for (size_t v = 0; v < 256; v++) levels[v] = uint8_t(v);
  return levels;
}

}  // namespace

void adjust_brightness(Image& image, float factor) {
  map(image, [&](size_t, size_t, uint8_t x) { return blend(0, x, factor); });
}

void adjust_contrast(Image& image, float factor) {
  std::vector<uint8_t> grey = grey_plane(image);
  double sum = 0;
  for (uint8_t v : grey) sum += v;
  uint8_t mean = grey.empty() ? 0 : uint8_t(sum / double(grey.size()) + 0.5);
  map(image, [&](size_t, size_t, uint8_t x) { return blend(mean, x, factor); });
}

void adjust_saturation(Image& image, float factor) {
  std::vector<uint8_t> grey = grey_plane(image);
  map(image, [&](size_t i, size_t, uint8_t x) { return blend(grey[i], x, factor); });
}

void adjust_sharpness(Image& image, float factor) {
  const Image old = image;
  size_t width = size_t(image.width), height = size_t(image.height), step = size_t(image.channels);
  map(image, [&](size_t i, size_t c, uint8_t x) {
    size_t row = i / width, column = i % width;
    if (!row || !column || row + 1 == height || column + 1 == width) return x;
    int sum = 4 * x;
    for (size_t j = i - width; j <= i + width; j += width)
      for (size_t k = j - 1; k <= j + 1; k++) sum += old.pixels[k * step + c];
    return blend(uint8_t((2 * sum + 13) / 26), x, factor);
  });
}

void adjust_hue(Image& image, double factor) {
  if (!(factor >= -0.5 && factor <= 0.5))
    fail_input("image: a hue factor of ", factor, " is outside -0.5 ... 0.5");
  if (image.channels != 3) return;
  uint8_t turn = uint8_t(int(factor * 255));
  for (size_t i = 0; i < image.pixels.size(); i += 3) {
    uint8_t* p = &image.pixels[i];
    int r = p[0], g = p[1], b = p[2], most = std::max({r, g, b}), least = std::min({r, g, b});
    if (most == least) continue;  // no saturation
    float range = float(most - least);
    float rc = float(most - r) / range, gc = float(most - g) / range, bc = float(most - b) / range;
    float h = most == r ? bc - gc : most == g ? 2 + rc - bc : 4 + gc - rc;
    h = float(std::fmod(double(h) / 6 + 1, 1.0));
    uint8_t hue = uint8_t(uint8_t(double(h) * 255) + turn);
    int saturation = int(double(range / float(most)) * 255);
    if (!saturation) {
      p[0] = p[1] = p[2] = uint8_t(most);
      continue;
    }
    float sector = float(hue) * 6 / 255, share = float(saturation) / 255;
    int part = int(sector);
    float f = sector - float(part), v = float(most);
    uint8_t low = uint8_t(std::round(v * (1 - share))),
            falling = uint8_t(std::round(v * (1 - share * f))),
            rising = uint8_t(std::round(v * (1 - share * (1 - f)))), high = uint8_t(most);
    const uint8_t colours[6][3] = {{high, rising, low}, {falling, high, low},
                                   {low, high, rising}, {low, falling, high},
                                   {rising, low, high}, {high, low, falling}};
    std::copy_n(colours[part % 6], 3, p);
  }
}

Image grayscale3(const Image& image) {
  Image out{image.height, image.width, 3, {}};
  for (uint8_t v : grey_plane(image)) out.pixels.insert(out.pixels.end(), 3, v);
  return out;
}

void posterize(Image& image, int bits) {
  if (bits < 0 || bits > 8) fail_input("image: posterize to ", bits, " bits; give 0 to 8");
  map(image, [mask = 0xff << (8 - bits)](size_t, size_t, uint8_t x) { return uint8_t(x & mask); });
}

void solarize(Image& image, int threshold) {
  map(image, [&](size_t, size_t, uint8_t x) { return uint8_t(x >= threshold ? 255 - x : x); });
}

void invert(Image& image) { solarize(image, 0); }

void autocontrast(Image& image) {
  map_levels(image, [](const std::array<int64_t, 256>& counts) {
    std::array<uint8_t, 256> levels = unchanged();
    int low = 0, high = 255;
    while (low < 255 && !counts[size_t(low)]) low++;
    while (high > 0 && !counts[size_t(high)]) high--;
    if (high <= low) return levels;
    double scale = 255.0 / (high - low), offset = -low * scale;
    for (int v = 0; v < 256; v++)
      levels[size_t(v)] = uint8_t(std::clamp(int(v * scale + offset), 0, 255));
    return levels;
  });
}

void equalize(Image& image) {
  map_levels(image, [](const std::array<int64_t, 256>& counts) {
    std::array<uint8_t, 256> levels = unchanged();
    int64_t all = 0, brightest = 0;
    for (int64_t n : counts) {
      all += n;
      if (n) brightest = n;
    }
    int64_t step = (all - brightest) / 255, below = step / 2;
    if (!step) return levels;
    for (size_t v = 0; v < 256; v++) {
      levels[v] = uint8_t(std::min<int64_t>(below / step, 255));
      below += counts[v];
    }
    return levels;
  });
}

}  // namespace pupil::data

// Pillow's resampling (src/libImaging/Resample.c describes the arithmetic): a separable filter in
// 8-bit fixed point, horizontal pass first, each pass rounded and clipped to a byte.
#include <immintrin.h>

#include <algorithm>

#include "../tensor/runtime.h"
#include "augment.h"

namespace pupil::data {
namespace {

constexpr int kFraction = 22;  // bits of a weight behind the binary point
constexpr int32_t kHalf = 1 << (kFraction - 1);

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

// The horizontal pass over pixels of three colours, four taps at a time.
class RgbRows {
 public:
  // Of each result the taps from `first` on, in groups of four. Weights lie as their multiplication
  // takes them, high bits and low bits apart: pairs for two taps, once a colour, then for two more.
  // Taps that a result does not have weigh 0; groups that would reach beyond the row begin earlier.
  template <class Weights>
  void prepare(const Weights& w, int taps, int in_width) {
    groups_ = (taps + 3) / 4;
    first_.clear();
    parts_.assign(w.first.size() * size_t(groups_) * 32, 0);
    int16_t* part = parts_.data();
    for (size_t x = 0; x < w.first.size(); x++, part += groups_ * 32) {
      int first = std::min(w.first[x], in_width - 4 * groups_), late = w.first[x] - first;
      first_.push_back(first * 3);
      for (int k = 0; k < w.count[x]; k++) {
        int32_t weight = w.values[x * size_t(w.stride) + size_t(k)];
        int tap = k + late, place = tap / 4 * 32 + tap % 4 / 2 * 8 + tap % 2;
        for (int colour = 0; colour < 3; colour++) {
          part[place + 2 * colour] = int16_t(weight >> kLow);
          part[place + 2 * colour + 16] = int16_t(weight & ((1 << kLow) - 1));
        }
      }
    }
  }

  void operator()(const uint8_t* in, uint8_t* to) const {
    const __m128i four_pixels = _mm_setr_epi32(-1, -1, -1, 0);
    const __m256i pairs =
        _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i* part = reinterpret_cast<const __m256i*>(parts_.data());
    for (int first : first_) {
      __m256i high = _mm256_setzero_si256(), low = high;
      const uint8_t* from = in + first;
      for (int group = 0; group < groups_; group++, from += 12, part += 2) {
        __m128i pixels = _mm_maskload_epi32(reinterpret_cast<const int*>(from), four_pixels);
        __m256i taps = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), pairs);
        high = _mm256_add_epi32(high, _mm256_madd_epi16(taps, _mm256_loadu_si256(part)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(taps, _mm256_loadu_si256(part + 1)));
      }
      __m256i halves = _mm256_add_epi32(_mm256_slli_epi32(high, kLow), low);
      __m128i sum =
          _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kFraction);
      sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);  // cuts to a byte
      int pixel = _mm_cvtsi128_si32(sum);
      memcpy(to, &pixel, 3);
      to += 3;
    }
  }

 private:
  static constexpr int kLow = 11;  // bits; the others and their sign fit into 16 too
  int groups_ = 0;
  std::vector<int> first_;  // bytes of a row before the first tap
  std::vector<int16_t> parts_;
};

}  // namespace

void Resizer::make_weights(int in_size, double from, double to, int out_size, int begin, int end,
                           Filter filter, Weights& w) {
  double scale = (to - from) / out_size, stretch = std::max(scale, 1.0);
  double support = support_of(filter) * stretch;
  w.stride = int(std::ceil(support)) * 2 + 1;
  w.first.clear();
  w.count.clear();
  w.values.assign(size_t(end - begin) * size_t(w.stride), 0);
  std::vector<double> raw(static_cast<size_t>(w.stride));
  int32_t* values = w.values.data();
  for (int i = begin; i < end; i++, values += w.stride) {
    double centre = from + (i + 0.5) * scale;
    int first = std::max(0, int(centre - support + 0.5));
    int count = std::min(in_size, int(centre + support + 0.5)) - first;
    double sum = 0;
    for (int k = 0; k < count; k++)
      sum += raw[size_t(k)] = value_of(filter, (k + first - centre + 0.5) * (1 / stretch));
    for (int k = 0; k < count; k++) {
      double weight = sum != 0 ? raw[size_t(k)] / sum : raw[size_t(k)];
      values[k] = int32_t(weight * (1 << kFraction) + (weight < 0 ? -0.5 : 0.5));
    }
    w.first.push_back(first);
    w.count.push_back(count);
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
           {0, 0, double(box->height), double(box->width)}, height, width, {0, 0, height, width},
           filter, out);
}

void Resizer::resize(const Image& image, const Region& region, int height, int width,
                     const Box& wanted, Filter filter, Image& out) {
  size_t channels = size_t(image.channels);
  resample(
      {image.pixels.data(), image.height, image.width, channels, size_t(image.width) * channels},
      region, height, width, wanted, filter, out);
}

void Resizer::resample(Source source, const Region& from, int height, int width, const Box& wanted,
                       Filter filter, Image& out) {
  size_t channels = source.channels;
  auto prepare = [&](Image& i, int h) {
    i.height = h;
    i.width = wanted.width;
    i.channels = int(channels);
    i.pixels.resize(size_t(h) * size_t(wanted.width) * channels);
    return i.pixels.data();
  };
  if (filter == Filter::nearest) {
    // The place of a pixel is a running sum, as in Pillow: its rounding decides between neighbours.
    auto places = [](double begin, double end, int size, int first, int count, int last) {
      std::vector<size_t> all;
      double step = (end - begin) / size, at = begin + step * 0.5;
      for (int i = 0; i < first + count; i++, at += step)
        if (i >= first) all.push_back(size_t(std::min(int(at), last)));
      return all;
    };
    std::vector<size_t> columns =
        places(from.left, from.right, width, wanted.left, wanted.width, source.width - 1);
    uint8_t* to = prepare(out, wanted.height);
    for (size_t y :
         places(from.top, from.bottom, height, wanted.top, wanted.height, source.height - 1))
      for (size_t x : columns)
        to = std::copy_n(source.first + y * source.row + x * channels, channels, to);
    return;
  }
  bool across = width != source.width || from.left != 0 || from.right != width;
  bool down = height != source.height || from.top != 0 || from.bottom != height;
  int top = wanted.top, rows = wanted.height;  // that are needed of the source
  if (down) {
    make_weights(source.height, from.top, from.bottom, height, top, top + rows, filter, down_);
    top = down_.first.front();
    rows = down_.first.back() + down_.count.back() - top;
  }
  source.first += size_t(top) * source.row;
  if (across) {
    make_weights(source.width, from.left, from.right, width, wanted.left,
                 wanted.left + wanted.width, filter, across_);
    uint8_t* to = prepare(down ? between_ : out, rows);
    resample_rows(source, rows, to);
    source.first = to;
    source.row = size_t(wanted.width) * channels;
  } else {
    source.first += size_t(wanted.left) * channels;
  }
  if (down) {
    constexpr size_t kBlock = 256;  // sums that stay near
    size_t row = size_t(wanted.width) * channels;
    uint8_t* to = prepare(out, wanted.height);
    for (size_t y = 0; y < size_t(wanted.height); y++, to += row) {
      const int32_t* weight = down_.values.data() + y * size_t(down_.stride);
      const uint8_t* first = source.first + size_t(down_.first[y] - top) * source.row;
      for (size_t begin = 0; begin < row; begin += kBlock) {
        size_t n = std::min(kBlock, row - begin);
        int32_t sums[kBlock];
        std::fill_n(sums, n, kHalf);
        for (int k = 0; k < down_.count[y]; k++) {
          const uint8_t* line = first + size_t(k) * source.row + begin;
          for (size_t x = 0; x < n; x++) sums[x] += line[x] * weight[k];
        }
        for (size_t x = 0; x < n; x++) to[begin + x] = to_byte(sums[x]);
      }
    }
  } else if (!across) {
    uint8_t* to = prepare(out, wanted.height);
    for (int y = 0; y < wanted.height; y++)
      to = std::copy_n(source.first + size_t(y) * source.row, size_t(wanted.width) * channels, to);
  }
}

// Rows of the source to the pixels that across_ has weights for.
void Resizer::resample_rows(const Source& source, int rows, uint8_t* to) {
  size_t width = across_.first.size(), channels = source.channels;
  int taps = *std::max_element(across_.count.begin(), across_.count.end());
  if (channels == 3 && source.width >= taps + 3 && !plain_mode()) {
    thread_local RgbRows rgb;
    rgb.prepare(across_, taps, source.width);
    for (int y = 0; y < rows; y++, to += width * 3) rgb(source.first + size_t(y) * source.row, to);
    return;
  }
  for (int y = 0; y < rows; y++)
    for (size_t x = 0; x < width; x++) {
      const int32_t* weight = across_.values.data() + x * size_t(across_.stride);
      const uint8_t* first =
          source.first + size_t(y) * source.row + size_t(across_.first[x]) * channels;
      for (size_t c = 0; c < channels; c++) {
        int32_t sum = kHalf;
        for (int k = 0; k < across_.count[x]; k++)
          sum += first[size_t(k) * channels + c] * weight[k];
        *to++ = to_byte(sum);
      }
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
  if (image.height == p.size && image.width == p.size && shorter == p.size) return image;
  // Only what the crop keeps is computed.
  resize(image, {0, 0, double(image.height), double(image.width)}, height, width,
         center_box(height, width, p.size, p.size), p.filter, out);
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
  Resizer().resize(image, from, height, width, {0, 0, height, width}, filter, out);
  return out;
}

}  // namespace pupil::data

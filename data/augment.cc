// Random geometry and mixing. Every draw is element (row * 32 + k) of a stream that (seed, epoch)
// name, so it depends neither on the order of the samples nor on the threads that make them.
#include "augment.h"

#include <algorithm>

namespace pupil::data {
namespace {

constexpr int64_t kDraws = 32;  // per sample

// An integer in 0 ... n - 1.
int below(const RngKey& key, int64_t i, int n) {
  return int(uint64_t(random_bits(key, i)) * uint64_t(n) >> 32);
}

// torchvision.transforms.RandomResizedCrop.get_params: ten tries for a box with a share of the area
// in (smallest, 1) and a ratio in (3/4, 4/3), else the largest central box with an allowed ratio.
Box random_box(const RngKey& key, int64_t base, double smallest, int height, int width) {
  const double low = 3.0 / 4.0, high = 4.0 / 3.0, log_low = std::log(low),
               log_high = std::log(high);
  double area = double(height) * double(width);
  for (int attempt = 0; attempt < 6; attempt++, base += 4) {
    double share = smallest + (1 - smallest) * double(uniform(key, base));
    double ratio = std::exp(log_low + (log_high - log_low) * double(uniform(key, base + 1)));
    int w = int(std::lrint(std::sqrt(area * share * ratio)));
    int h = int(std::lrint(std::sqrt(area * share / ratio)));
    if (w > 0 && w <= width && h > 0 && h <= height)
      return {below(key, base + 2, height - h + 1), below(key, base + 3, width - w + 1), h, w};
  }
  double ratio = double(width) / double(height);
  int w = width, h = height;
  if (ratio < low)
    h = int(std::lrint(w / low));
  else if (ratio > high)
    w = int(std::lrint(h * high));
  return {(height - h) / 2, (width - w) / 2, h, w};
}

}  // namespace

View draw_view(const Augmentation& a, uint64_t seed, int64_t epoch, int64_t row, int height,
               int width) {
  View view;
  RngKey key{seed, stream_id("data.view"), uint64_t(epoch)};
  int64_t base = row * kDraws;
  if (a.crop_padding) {
    view.shift_y = below(key, base, 2 * a.crop_padding + 1) - a.crop_padding;
    view.shift_x = below(key, base + 1, 2 * a.crop_padding + 1) - a.crop_padding;
  }
  if (a.flip) view.flip = random_bits(key, base + 2) >> 31;
  if (a.random_resized_crop > 0)
    view.box = random_box(key, base + 4, a.random_resized_crop, height, width);
  return view;
}

void shift(const Image& from, int shift_y, int shift_x, Image& to) {
  to.height = from.height;
  to.width = from.width;
  to.channels = from.channels;
  to.pixels.resize(from.pixels.size());
  size_t channels = size_t(from.channels), row = size_t(from.width) * channels;
  // Of each row the columns that show something: x + shift_x in 0 ... width - 1.
  int begin = std::clamp(-shift_x, 0, from.width);
  int end = std::clamp(from.width - shift_x, begin, from.width);
  for (int y = 0; y < to.height; y++) {
    uint8_t* out = to.pixels.data() + size_t(y) * row;
    int source = y + shift_y;
    if (source < 0 || source >= from.height || begin == end) {
      std::fill_n(out, row, uint8_t(0));
      continue;
    }
    std::fill_n(out, size_t(begin) * channels, uint8_t(0));
    std::copy_n(from.pixels.data() + size_t(source) * row + size_t(begin + shift_x) * channels,
                size_t(end - begin) * channels, out + size_t(begin) * channels);
    std::fill(out + size_t(end) * channels, out + row, uint8_t(0));
  }
}

std::vector<int64_t> epoch_order(int64_t n, bool shuffle, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); i++) order[i] = int64_t(i);
  if (!shuffle) return order;
  RngKey key{seed, stream_id("data.order"), uint64_t(epoch)};
  for (size_t i = order.size(); i > 1; i--)  // Fisher-Yates
    std::swap(order[i - 1], order[size_t(uint64_t(random_bits(key, int64_t(i))) * i >> 32)]);
  return order;
}

void mix_batch(const Augmentation&, uint64_t, int64_t, int64_t, int64_t, const Tensor&,
               std::vector<Tensor>&, Tensor&) {
  fail_input("data: mixup and cutmix are not ready yet");
}

void check_augmentation(const Augmentation& a, const Dataset& set) {
  if (a.crop_padding < 0 || a.crop_padding > 1024)
    fail_input("data: crop padding ", a.crop_padding, " is outside 0 ... 1024");
  if (!(a.random_resized_crop >= 0 && a.random_resized_crop <= 1))
    fail_input("data: random resized crop ", a.random_resized_crop,
               " is not a share of the image's area; give 0 (off) to 1, for example 0.08");
  if (!(a.mixup >= 0 && a.mixup <= 1000) || !(a.cutmix >= 0 && a.cutmix <= 1000))
    fail_input("data: mixup ", a.mixup, " and cutmix ", a.cutmix,
               " must be 0 (off) or above, for example 0.2");
  if (a.crop_padding && a.random_resized_crop > 0)
    fail_input("data: choose one of crop padding and random resized crop");
  if (set.values && (a.crop_padding || a.flip || a.random_resized_crop > 0))
    fail_input("data: ", set.spec, " holds floats, which are used as they are; crop, flip and ",
               "random resized crop need 8-bit images; turn them off");
  if (set.values && a.cutmix > 0 && set.values.rank() != 4)
    fail_input("data: ", set.spec, " holds vectors; cutmix needs images, turn it off");
}

}  // namespace pupil::data

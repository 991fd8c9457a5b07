// What is drawn at random for samples and batches. Every draw is element (row * 64 + k) of a stream
// that (seed, epoch) name, so it depends neither on the order of the samples nor on the threads
// that make them.
#include "augment.h"

#include <algorithm>

namespace pupil::data {
namespace {

constexpr int64_t kDraws = 64;  // per sample

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
  for (int attempt = 0; attempt < 10; attempt++, base += 4) {
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

// The draws of one batch, in the order in which they are asked for.
class Draws {
 public:
  Draws(uint64_t seed, int64_t epoch, int64_t batch)
      : uniform_{seed, stream_id("data.mix"), uint64_t(epoch)},
        normal_{seed, stream_id("data.mix.normal"), uint64_t(epoch)},
        next_(batch << 20) {}
  double uniform() { return double(pupil::uniform(uniform_, next_++)); }

  // Beta(a, a) as g / (g + h) of two Gamma(a) numbers, whose logarithms cannot underflow.
  double beta(double a) {
    double g = log_gamma(a), h = log_gamma(a);
    return 1 / (1 + std::exp(h - g));
  }

 private:
  // Marsaglia and Tsang 2000: Gamma(a + 1), then times U^(1/a).
  double log_gamma(double a) {
    double d = a + 1 - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
      double z = normal(normal_, next_), u = 1 - uniform(), v = 1 + c * z;
      if (v <= 0) continue;
      v = v * v * v;
      if (std::log(u) < 0.5 * z * z + d - d * v + d * std::log(v))
        return std::log(d * v) + std::log(1 - uniform()) / a;
    }
  }

  RngKey uniform_, normal_;
  int64_t next_;
};

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

std::vector<int64_t> epoch_order(int64_t n, bool shuffle, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); i++) order[i] = int64_t(i);
  if (!shuffle) return order;
  RngKey key{seed, stream_id("data.order"), uint64_t(epoch)};
  for (size_t i = order.size(); i > 1; i--)  // Fisher-Yates
    std::swap(order[i - 1], order[size_t(uint64_t(random_bits(key, int64_t(i))) * i >> 32)]);
  return order;
}

Mix draw_mix(const Augmentation& a, uint64_t seed, int64_t epoch, int64_t batch) {
  Draws draws(seed, epoch, batch);
  Mix mix;
  mix.cut = a.cutmix > 0 && (!(a.mixup > 0) || draws.uniform() < 0.5);
  mix.lambda = draws.beta(mix.cut ? a.cutmix : a.mixup);
  mix.y = draws.uniform();
  mix.x = draws.uniform();
  return mix;
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
  if (a.views < 0) fail_input("data: ", a.views, " views of a sample; give 0 or more");
  if (a.views && (a.mixup > 0 || a.cutmix > 0))
    fail_input("data: mixup and cutmix mix other samples in every epoch, which repeated views do ",
               "not; turn them or views off");
  if (a.crop_padding && a.random_resized_crop > 0)
    fail_input("data: choose one of crop padding and random resized crop");
  if (set.values && (a.crop_padding || a.flip || a.random_resized_crop > 0))
    fail_input("data: ", set.spec, " holds floats, which are used as they are; crop, flip and ",
               "random resized crop need 8-bit images; turn them off");
  if (set.values && a.cutmix > 0 && set.values.rank() != 4)
    fail_input("data: ", set.spec, " holds vectors; cutmix needs images, turn it off");
}

}  // namespace pupil::data

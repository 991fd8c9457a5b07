// What happens to one sample on its way into a batch; only data/*.cc includes this.
#pragma once
#include "sources.h"

namespace pupil::data {

struct Box {
  int top = 0, left = 0, height = 0, width = 0;
};

// The random geometry of one sample in one epoch, shared by all networks.
struct View {
  int shift_y = 0, shift_x = 0;  // of crop_padding: output (y, x) shows (y + shift_y, x + shift_x)
  std::optional<Box> box;        // of random_resized_crop
  bool flip = false;
};
View draw_view(const Augmentation&, uint64_t seed, int64_t epoch, int64_t row, int height,
               int width);

// `to` has the size of `from`; places outside of `from` are 0.
void shift(const Image& from, int shift_y, int shift_x, Image& to);

// The samples 0 ... n - 1 in the order of this epoch.
std::vector<int64_t> epoch_order(int64_t n, bool shuffle, uint64_t seed, int64_t epoch);

// How the samples of one batch are mixed; sample k meets sample n - 1 - k, as in timm.
struct Mix {
  bool cut = false;     // cutmix instead of mixup
  double lambda = 1;    // share that a sample keeps of itself
  double y = 0, x = 0;  // centre of the cut box in [0, 1)
};
Mix draw_mix(const Augmentation&, uint64_t seed, int64_t epoch, int64_t batch);
// The box that cutmix exchanges in an image, clipped at the border.
Box cut_box(const Mix&, int height, int width);
// In place for the first n rows of every tensor (n, ...); tensors that are the same memory are
// mixed once. A cut box scales with each tensor's size; the targets follow its area in the first.
void apply_mix(const Mix&, int64_t n, const Tensor& labels, std::vector<Tensor>& x,
               Tensor& targets);

// InputError for values out of range and for settings that do not go with the data.
void check_augmentation(const Augmentation&, const Dataset&);

// Pillow's resize with buffers that are kept from call to call.
class Resizer {
 public:
  // The part `box` of the image (all of it when null), resampled to height x width.
  void resize(const Image&, const Box* box, int height, int width, Filter, Image& out);
  // One network's square: `box` resized to it, or without one the evaluation transform, the shorter
  // side resized to floor(size / crop_pct) and the centre cut out. Returns `out`, or `image` itself
  // where nothing changes.
  const Image& fit(const Image& image, const Box* box, const models::Preprocessing&, Image& out);

 private:
  struct Weights {  // of one axis
    std::vector<int> first, count;
    std::vector<int32_t> values;
    int stride = 0;
  };
  static void make_weights(int in_size, double from, double to, int out_size, Filter, Weights&);
  Weights weights_;
  Image between_, whole_;
};

}  // namespace pupil::data

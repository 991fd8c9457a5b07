// What happens to one sample on its way into a batch; only data/*.cc includes this.
#pragma once
#include "sources.h"

namespace pupil::data {

// The random geometry of one sample in one epoch, shared by all networks.
struct View {
  int shift_y = 0, shift_x = 0;  // of crop_padding: output (y, x) shows (y + shift_y, x + shift_x)
  std::optional<Box> box;        // of random_resized_crop
  bool flip = false;
};
View draw_view(const Augmentation&, uint64_t seed, int64_t epoch, int64_t row, int height,
               int width);

// The samples 0 ... n - 1 in the order of this epoch.
std::vector<int64_t> epoch_order(int64_t n, bool shuffle, uint64_t seed, int64_t epoch);

Mix draw_mix(const Augmentation&, uint64_t seed, int64_t epoch, int64_t batch);

// InputError for values out of range and for settings that do not go with the data.
void check_augmentation(const Augmentation&, const Dataset&);

// Pillow's resize with buffers that are kept from call to call.
class Resizer {
 public:
  // The part `box` of the image (all of it when null), resampled to height x width.
  void resize(const Image&, const Box* box, int height, int width, Filter, Image& out);
  // The same of a region of the image, whose pixels beside it count as neighbours; of the result
  // only the box `wanted`.
  void resize(const Image&, const Region&, int height, int width, const Box& wanted, Filter,
              Image& out);
  // One network's square: `box` resized to it, or without one the evaluation transform, the shorter
  // side resized to floor(size / crop_pct) and the centre cut out. Returns `out`, or `image` itself
  // where nothing changes.
  const Image& fit(const Image& image, const Box* box, const models::Preprocessing&, Image& out);

 private:
  struct Weights {  // of one axis: what each result is a sum of
    std::vector<int> first, count;
    std::vector<int32_t> values;
    int stride = 0;
  };
  static void make_weights(int in_size, double from, double to, int out_size, int begin, int end,
                           Filter, Weights&);
  struct Source;  // the pixels to resample
  void resample(Source, const Region&, int height, int width, const Box& wanted, Filter,
                Image& out);
  void resample_rows(const Source&, int rows, uint8_t* to);
  Weights across_, down_;
  Image between_;
};

}  // namespace pupil::data

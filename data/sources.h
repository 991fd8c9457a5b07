// What the readers of one kind of data set each share; only data/*.cc includes this.
#pragma once
#include "data.h"

namespace pupil::data {

// KIND:PATH[:SPLIT[N]] taken apart. split is "" where none was given; count -1 means all.
struct Spec {
  std::string text, kind, path, split;
  int64_t count = -1;
  bool in_order = false;  // of the count: as they lie in the files, else stratified
};
Spec parse_spec(const std::string& text);

Dataset open_idx(const Spec&);                  // mnist, fashion_mnist
Dataset open_cifar(const Spec&);                // cifar10, cifar100
Dataset open_folder(const Spec&, bool strict);  // folder
Dataset open_unlabeled(const Spec&, bool strict);
Dataset open_arrays(const Spec&);               // npy, safetensors
Dataset open_features(const Spec&);             // features

// A line on stderr; of each text the first only, since several trainings open the same data.
void say_once(const std::string& line);

using Bytes = std::vector<uint8_t>;

// decode_image into memory that is kept from call to call.
void decode_image(std::span<const uint8_t> file, const std::string& path, bool upright, Image& out);
// Why this file cannot be an image, "" when its structure is whole: the header is sound and nothing
// is cut off. Costs a pass over the bytes, not a decoding.
std::string image_defect(std::span<const uint8_t> file);

// 8-bit pixels in memory: sample i begins at first + i * height * width * channels, as interleaved
// channels or as planes.
struct PixelArray {
  std::shared_ptr<const void> owner;
  const uint8_t* first = nullptr;
  int height = 0, width = 0, channels = 1;
  bool planes = false;
};
// The data set of these pixels with rows, classes and hash. InputError for a label outside 0 ...
// classes - 1; `label_file` is where they come from.
Dataset from_pixels(PixelArray, std::vector<int64_t> labels, int64_t classes,
                    const std::string& label_file);

Dataset select(const Dataset& whole, const std::vector<int64_t>& chosen);
void number_rows(Dataset&);  // rows and whole of a data set that is whole

// What `hash` is computed from: the geometry, the sample bytes in order, then the labels.
std::string hash_samples(const std::string& geometry, std::span<const uint8_t> bytes,
                         std::span<const int64_t> labels);

void check_labels(std::span<const int64_t> labels, int64_t classes, const std::string& file);

}  // namespace pupil::data

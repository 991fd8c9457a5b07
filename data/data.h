// Files in, batches out. Order, subsets and augmentation are functions of (seed, epoch, index),
// never of thread timing. Bad files throw InputError with path, what is wrong and what to do.
#pragma once
#include "../tensor/random.h"
#include "image.h"

namespace pupil::data {

// A labelled collection. Images are decoded on demand by `image`, which is safe to call from any
// thread; float arrays (features, already normalised pixels) are given by `values` instead.
struct Dataset {
  std::string spec;     // as given: "cifar10:DIR:train[1000]"
  std::string hash;     // SHA-256 of the whole data set's samples and labels in order, hex
  int64_t classes = 0;  // 0: nobody said what the samples are
  std::vector<std::string> class_names;  // may be empty
  std::vector<int64_t> labels;           // one per sample; 0 where there are no classes
  std::vector<int64_t> rows;             // position of each sample in the whole data set
  std::vector<std::string> paths;        // of a folder's images, one per sample; else empty
  int64_t whole = 0;                     // samples of the whole data set
  std::function<void(int64_t i, Image&)> image;
  Tensor values;        // f32 (n, features) or (n, c, h, w); empty for images
  std::string made_by;  // of stored features: taps and weight hashes; else empty
  int unreadable = 0;   // files of a folder that were skipped (reported on stderr)
  int64_t size() const { return int64_t(labels.size()); }
};

// KIND:PATH[:SPLIT[N]]. SPLIT: train (the default), test or val. [N]: the first N samples of a
// stratified, seeded permutation; [:N]: the first N in their order.
//   mnist, fashion_mnist   a folder of idx files, plain or .gz
//   cifar10, cifar100      a folder of the binary records or of the Python batches
//   folder                 one sub-folder of PNG and JPEG files per class, below PATH/SPLIT or
//   PATH;
//                          strict: an unreadable file is an error instead of a warning
//   unlabeled              all PNG and JPEG files below PATH, as *.png, *.jpg or *.jpeg. val: a
//   tenth
//                          of them, chosen by the SHA-256 of each file, so that copies of a photo
//                          are on one side; train: the others; no SPLIT: all
//   npy                    IMAGES.npy+LABELS.npy, or a folder with SPLIT_images.npy and
//                          SPLIT_labels.npy; FILE.npy[ROWS.npy] takes those rows of a file
//   safetensors            a file with the tensors images (or x) and labels, or a folder with
//                          SPLIT.safetensors
//   features               FILE+FILE of `pupil features`, one or several: their rows side by side.
//                          Hash, labels and rows are those of the data set that they were computed
//                          from, so that teacher features of the same samples fit
// Arrays are u8 (n, h, w) or (n, h, w, c), or f32 (n, features), (n, h, w) or (n, c, h, w) taken as
// they are; labels are integers, classes the largest + 1.
Dataset open_dataset(const std::string& spec, bool strict = false, uint64_t seed = 0);

// The training and the test data of KIND:PATH. What is named with its split or subset, or has no
// test part, is all training data: the second is "".
std::pair<std::string, std::string> train_and_test(const std::string& spec);

// n samples with the class shares of `whole`; the same for (whole, n, seed).
Dataset stratified_subset(const Dataset& whole, int64_t n, uint64_t seed);
// (the rest, a stratified share for validation): disjoint, together everything.
std::pair<Dataset, Dataset> split_validation(const Dataset& whole, double fraction, uint64_t seed);

struct Augmentation {
  int crop_padding = 0;            // pad with zeros on all sides, then crop to the old size
  bool flip = false;               // left-right with probability 1/2
  double random_resized_crop = 0;  // smallest area share; 0: off. torchvision RandomResizedCrop
  double mixup = 0, cutmix = 0;    // Beta(a, a); 0: off. One choice per batch when both are on
  // Each sample is seen in so many ways, epoch e shows way e modulo views, so that a teacher's
  // answers to all of them can be stored; 0: drawn anew in every epoch.
  int64_t views = 0;
  bool any() const {
    return crop_padding || flip || random_resized_crop > 0 || mixup > 0 || cutmix > 0;
  }
};

// Pixels of one network's input: resized and cropped as its evaluation transform does, channels
// repeated or refused, x = (p/255 - mean)/std.
struct Batch {
  std::vector<Tensor> x;  // one per Preprocessing, f32 (n, c, h, w); equal ones share memory
  Tensor labels;          // i64 (n)
  Tensor targets;         // f32 (n, classes) with mixup or cutmix, else empty
  Tensor index;           // i64 (n): rows in the whole data set
};

struct LoaderOptions {
  int64_t batch = 128;
  bool shuffle = false, drop_last = false;
  bool frozen = false;  // every epoch has the order of epoch 0
  uint64_t seed = 0;
  int workers = 1;  // decoding threads; 0: in the calling thread
  Augmentation augment;
};

class Loader {
 public:
  Loader(const Dataset&, std::vector<models::Preprocessing>, LoaderOptions);
  ~Loader();
  int64_t batches() const;  // per epoch
  // Starts epoch `epoch` at batch `first`: a resumed run continues in the middle of an epoch.
  void start(int64_t epoch, int64_t first = 0);
  bool next(Batch&);  // false at the end of the epoch; the tensors are reused by the next call
  double wait_seconds() const;  // time that next() waited for data since start()

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// One file of stored teacher outputs: a safetensors file with the header as metadata, `rows` f32
// (samples, 1, width), `present`, one bit per sample, and `labels` i64 (samples), -1 where there is
// no row. Samples are those of the whole data set.
struct FeatureHeader {
  std::string teacher, weight_hash, preprocessing, tap, dtype, data_hash;
  int64_t samples = 0, views = 1, width = 0;
  int64_t view = 0;           // 0: the evaluation transform; v: what epoch v - 1 shows
  std::string drawn{};        // describe(augmentation, seed) of a view above 0
  std::string class_names{};  // of logits, one a line; may be empty
};
std::string describe(const Augmentation&, uint64_t seed);  // without `views`
// The samples of this data set: rows f32 (set.size(), width). Of the header the data's hash,
// samples and width are filled in. Throws InputError for a value that is not finite.
void write_features(const std::string& path, FeatureHeader, const Tensor& rows, const Dataset& set);
class FeatureFile {  // memory-mapped, read-only
 public:
  explicit FeatureFile(const std::string& path);
  const FeatureHeader& header() const;
  // Throws InputError unless there is a row for every sample of this data set, in its order, and
  // they are of images that a run with this augmentation and seed sees (any such run evaluates view
  // 0); the message shows both values.
  void require(const Dataset&, const Augmentation& = {}, uint64_t seed = 0) const;
  bool has(int64_t row) const;  // of the whole data set
  // These rows of the whole data set: i64 (n) -> f32 (n, width). Throws InputError for a row that
  // is absent or not finite.
  Tensor gather(const Tensor& index) const;
  const std::string& path() const;
  // Labels, rows, hash and classes of the samples that have a row; no values. Throws InputError for
  // a file without labels.
  Dataset samples() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace pupil::data

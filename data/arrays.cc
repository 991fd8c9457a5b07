// Arrays that somebody's script has written: .npy files and safetensors.
#include <algorithm>
#include <filesystem>

#include "file.h"
#include "sources.h"
#include "weights.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

constexpr int64_t kMaxClasses = 1 << 20;

std::vector<int64_t> to_labels(const Tensor& t, int64_t samples, const std::string& where) {
  if (t.dtype() != DType::i64 && t.dtype() != DType::u8)
    fail_input("data: ", where, ": labels are ", name_of(t.dtype()), "; save them as integers");
  if (t.rank() != 1 || t.dim(0) != samples)
    fail_input("data: ", where, ": labels have the shape ", t.shape(), ", the ", samples,
               " samples need (", samples, ")");
  std::vector<int64_t> labels;
  labels.reserve(size_t(samples));
  for (int64_t i = 0; i < samples; i++)
    labels.push_back(t.dtype() == DType::u8 ? t.data<uint8_t>()[i] : t.data<int64_t>()[i]);
  return labels;
}

int64_t count_classes(const Tensor& labels, const std::string& where) {
  std::vector<int64_t> all = to_labels(labels, labels.rank() ? labels.dim(0) : 0, where);
  int64_t largest = all.empty() ? -1 : *std::max_element(all.begin(), all.end());
  int64_t classes = 1 + std::min(largest, kMaxClasses);  // the largest may be INT64_MAX
  check_labels(all, std::clamp<int64_t>(classes, 1, kMaxClasses), where);
  return classes;
}

void check_finite(const Tensor& t, const std::string& where) {
  int64_t width = t.numel() / t.dim(0);
  const float* value = t.data<float>();
  for (int64_t i = 0; i < t.numel(); i++)
    if (!std::isfinite(value[i]))
      fail_input("data: ", where, ": value ", i % width, " of sample ", i / width, " is ", value[i],
                 "; clean the array before it is used");
}

Dataset from_arrays(Tensor x, const Tensor& label_tensor, const std::string& where,
                    const std::string& label_file) {
  if (x.rank() < 2 || x.numel() == 0)
    fail_input(
        "data: ", where, ": samples have the shape ", x.shape(),
        "; 8-bit images are (n, h, w) or (n, h, w, c), floats (n, features) or (n, c, h, w)");
  std::vector<int64_t> labels = to_labels(label_tensor, x.dim(0), label_file);
  int64_t classes = count_classes(label_tensor, label_file);
  if (x.dtype() == DType::u8) {
    if ((x.rank() != 3 && x.rank() != 4) || std::max(x.dim(1), x.dim(2)) > 65535 ||
        (x.rank() == 4 && x.dim(3) > 4096))
      fail_input("data: ", where, ": 8-bit images have the shape ", x.shape(),
                 "; (n, h, w) or (n, h, w, c) are expected");
    auto owner = std::make_shared<Tensor>(x);
    return from_pixels({owner, x.data<uint8_t>(), int(x.dim(1)), int(x.dim(2)),
                        x.rank() == 4 ? int(x.dim(3)) : 1, false},
                       std::move(labels), classes, label_file);
  }
  if (x.dtype() != DType::f32)
    fail_input("data: ", where, ": samples are ", name_of(x.dtype()),
               "; save images as uint8, other values as float32");
  if (x.rank() == 3)
    x = alias(x, {x.dim(0), 1, x.dim(1), x.dim(2)},
              row_major_strides({x.dim(0), 1, x.dim(1), x.dim(2)}));
  if (x.rank() != 2 && x.rank() != 4)
    fail_input("data: ", where, ": floats have the shape ", x.shape(),
               "; (n, features) or (n, c, h, w) are expected");
  check_finite(x, where);
  Dataset set;
  set.classes = classes;
  set.hash = hash_samples(concat("floats ", x.shape()),
                          {reinterpret_cast<const uint8_t*>(x.data<float>()), x.bytes()}, labels);
  set.values = x;
  set.labels = std::move(labels);
  number_rows(set);
  return set;
}

Dataset open_npy(const std::string& images, const std::string& labels) {
  Tensor x = read_npy_rows(images);
  return from_arrays(x.dtype() == DType::f64 ? x.to(DType::f32) : x, read_npy_rows(labels), images,
                     labels);
}

Dataset open_named(const std::string& path) {
  auto file = open_safetensors(path);
  const TensorInfo *x = nullptr, *labels = nullptr;
  for (const TensorInfo& t : file->list()) {
    if (t.name == "images" || (t.name == "x" && !x)) x = &t;
    if (t.name == "labels") labels = &t;
  }
  if (!x || !labels)
    fail_input("data: ", path, " has no ", x ? "'labels'" : "'images' or 'x'",
               "; write the samples under 'images' or 'x' and their classes under 'labels'");
  return from_arrays(file->read(x->name, x->dtype == "U8" ? DType::u8 : DType::f32),
                     file->read("labels", DType::i64), concat(path, ": ", x->name),
                     concat(path, ": labels"));
}

}  // namespace

Dataset open_arrays(const Spec& spec) {
  std::error_code error;
  bool npy = spec.kind == "npy";
  if (fs::is_directory(spec.path, error)) {
    std::string stem = (fs::path(spec.path) / (spec.split.empty() ? "train" : spec.split)).string();
    Dataset set = npy ? open_npy(stem + "_images.npy", stem + "_labels.npy")
                      : open_named(stem + ".safetensors");
    // A test set without a sample of the last class has the classes of train all the same.
    std::string labels =
        (fs::path(spec.path) / (npy ? "train_labels.npy" : "train.safetensors")).string();
    if (spec.split == "test" || spec.split == "val")
      if (fs::exists(labels, error))
        set.classes = std::max(
            set.classes, count_classes(npy ? read_npy(labels)
                                           : open_safetensors(labels)->read("labels", DType::i64),
                                       labels));
    return set;
  }
  if (!spec.split.empty())
    fail_input("data: '", spec.text, "': a file has no splits; name a folder with ",
               npy ? "train_images.npy, train_labels.npy, test_images.npy, test_labels.npy"
                   : "train.safetensors and test.safetensors",
               ", or leave :", spec.split, " out");
  if (!npy) return open_named(spec.path);
  size_t plus = spec.path.find(".npy+");
  if (plus == std::string::npos) plus = spec.path.find(".npy]+");
  if (plus == std::string::npos)
    fail_input("data: ", spec.path,
               fs::exists(spec.path, error) ? " is no folder" : " does not exist", ", and '",
               spec.text,
               "' names no labels; write npy:IMAGES.npy+LABELS.npy, or npy:DIR:SPLIT for ",
               "SPLIT_images.npy and SPLIT_labels.npy in DIR");
  plus = spec.path.find('+', plus);
  return open_npy(spec.path.substr(0, plus), spec.path.substr(plus + 1));
}

}  // namespace pupil::data

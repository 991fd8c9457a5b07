// Stored teacher outputs: computed once, mapped by every later run.
#include <charconv>

#include "../tensor/memory.h"
#include "file.h"
#include "sources.h"
#include "weights.h"

namespace pupil::data {
namespace {

constexpr const char* kFormat = "pupil-features-1";

int64_t number(const std::map<std::string, std::string>& metadata, const std::string& key,
               const std::string& path) {
  auto found = metadata.find(key);
  int64_t value = -1;
  if (found != metadata.end()) {
    const std::string& text = found->second;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) value = -1;
  }
  if (value < 1)
    fail_input("features: ", printable(path), ": the header's ", key,
               " is missing or not a positive number; write the file again with pupil features");
  return value;
}

// The column of the first value that is not finite, or -1.
int64_t bad_column(const float* row, int64_t width) {
  for (int64_t j = 0; j < width; j++)
    if (!std::isfinite(row[j])) return j;
  return -1;
}

}  // namespace

void write_features(const std::string& path, FeatureHeader header, const Tensor& rows,
                    const Dataset& set) {
  PUPIL_CHECK(rows.rank() == 2 && rows.dim(0) == set.size() && header.views == 1,
              "write_features: rows ", rows.shape(), " for ", set.size(), " samples in ",
              header.views, " views");
  header.data_hash = set.hash;
  header.samples = set.whole;
  header.width = rows.dim(1);
  Tensor all = zeros({header.samples, header.views, header.width});
  Tensor present = zeros({(header.samples * header.views + 7) / 8}, DType::u8);
  std::vector<int64_t> labels(static_cast<size_t>(header.samples), -1);
  const float* from = rows.data<float>();
  for (size_t k = 0; k < set.rows.size(); k++, from += header.width) {
    int64_t sample = set.rows[k];
    PUPIL_CHECK(sample >= 0 && sample < header.samples, "write_features: sample ", sample, " of ",
                header.samples);
    if (int64_t j = bad_column(from, header.width); j >= 0)
      fail_input("features: ", header.teacher, " gives ", from[j], " at row ", sample, ", column ",
                 j, " of ", header.tap, "; nothing was written; check where they come from");
    std::copy_n(from, header.width, all.data<float>() + sample * header.width);
    present.data<uint8_t>()[sample / 8] |= uint8_t(1 << (sample % 8));
    labels[size_t(sample)] = set.labels[k];
  }
  Tensor label_tensor = pupil::from(std::span<const int64_t>(labels), {header.samples});
  save_safetensors(path, {{"rows", all}, {"present", present}, {"labels", label_tensor}},
                   {{"format", kFormat},
                    {"teacher", header.teacher},
                    {"weight_hash", header.weight_hash},
                    {"preprocessing", header.preprocessing},
                    {"tap", header.tap},
                    {"dtype", "f32"},
                    {"data_hash", header.data_hash},
                    {"samples", std::to_string(header.samples)},
                    {"classes", std::to_string(set.classes)},
                    {"views", std::to_string(header.views)},
                    {"view", std::to_string(header.view)},
                    {"drawn", header.drawn},
                    {"class_names", header.class_names},
                    {"width", std::to_string(header.width)}});
}

std::string describe(const Augmentation& a, uint64_t seed) {
  return concat("crop_padding ", a.crop_padding, ", flip ", a.flip, ", random_resized_crop ",
                a.random_resized_crop, ", mixup ", a.mixup, ", cutmix ", a.cutmix, ", seed ", seed);
}

struct FeatureFile::State {
  std::shared_ptr<const Weights> file;
  FeatureHeader header;
  const uint8_t *rows, *present;
  bool has(int64_t sample) const {
    int64_t bit = sample * header.views;  // of view 0
    return present[bit / 8] >> (bit % 8) & 1;
  }
};

FeatureFile::FeatureFile(const std::string& path) : state_(std::make_shared<State>()) {
  State& s = *state_;
  s.file = open_safetensors(path);
  const auto& metadata = s.file->metadata();
  auto text = [&](const char* key) {
    auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (text("format") != kFormat)
    fail_input("features: ", printable(path), " is not a feature file of this version (format '",
               printable(text("format")), "', expected ", kFormat,
               "); write one with pupil features");
  FeatureHeader& h = s.header;
  h = {text("teacher"), text("weight_hash"), text("preprocessing"),
       text("tap"),     text("dtype"),       text("data_hash")};
  h.samples = number(metadata, "samples", path);
  h.views = number(metadata, "views", path);
  h.width = number(metadata, "width", path);
  // Files of older versions have no key `view`; that of view 0 is 0, which is not positive.
  if (!text("view").empty() && text("view") != "0") h.view = number(metadata, "view", path);
  h.drawn = text("drawn");
  h.class_names = text("class_names");
  const TensorInfo *rows = nullptr, *present = nullptr;
  for (const TensorInfo& t : s.file->list()) {
    if (t.name == "rows") rows = &t;
    if (t.name == "present") present = &t;
  }
  if (!rows || !present || h.dtype != "f32" || rows->dtype != "F32" || present->dtype != "U8" ||
      rows->shape != Shape{h.samples, h.views, h.width} ||
      present->shape != Shape{(h.samples * h.views + 7) / 8})
    fail_input("features: ", printable(path), ": its tensors do not fit its header (", h.samples,
               " samples, ", h.views, " views, width ", h.width, ", ", printable(h.dtype),
               "); write the file again with pupil features");
  s.rows = s.file->bytes("rows").data();
  s.present = s.file->bytes("present").data();
}

const FeatureHeader& FeatureFile::header() const { return state_->header; }
const std::string& FeatureFile::path() const { return state_->file->path(); }

void FeatureFile::require(const Dataset& set, const Augmentation& augment, uint64_t seed) const {
  const FeatureHeader& h = state_->header;
  auto refuse = [&](const auto&... why) {
    fail_input("features: ", printable(path()), why..., "; write them again with pupil features ",
               "--data ", set.spec, " and the seed of this run's data.seed");
  };
  if (h.data_hash != set.hash || h.samples != set.whole)
    refuse(" belong to other data or another order: hash ", printable(h.data_hash), " of ",
           h.samples, " samples, ", set.spec, " has hash ", set.hash, " of ", set.whole);
  for (int64_t row : set.rows)
    if (!state_->has(row))
      refuse(" have no row for sample ", row, " of ", set.spec, ": they were computed for a part");
  if (h.view) {
    std::string drawn = describe(augment, seed);
    if (!augment.any() || !augment.views || h.drawn != drawn)
      fail_input("features: ", printable(path()), " hold view ", h.view, " of \"",
                 printable(h.drawn), "\", which this run, \"", drawn, "\" with ", augment.views,
                 " views, does not show");
  } else if (augment.any() && !augment.views) {
    fail_input("features: ", printable(path()), " hold view 0, images without augmentation, but ",
               "this run augments; leave [augment] out, or give the [[teacher]] model and weights ",
               "instead of features: a live one sees what the student sees");
  }
}

bool FeatureFile::has(int64_t row) const { return state_->has(row); }

Tensor FeatureFile::gather(const Tensor& index) const {
  const State& s = *state_;
  PUPIL_CHECK(index.rank() == 1, "gather: index ", index.shape(), " is not a vector");
  int64_t n = index.dim(0), width = s.header.width;
  Tensor result = empty({n, width});
  const int64_t* from = index.data<int64_t>();
  float* to = result.data<float>();
  for (int64_t k = 0; k < n; k++, to += width) {
    int64_t row = from[k];
    if (row < 0 || row >= s.header.samples || !s.has(row))
      fail_input("features: ", printable(path()), " have no row for sample ", row,
                 "; write them again with pupil features for the data of this run");
    // The file's rows may lie at any alignment.
    memcpy(to, s.rows + size_t(row * s.header.views * width) * sizeof(float),
           size_t(width) * sizeof(float));
    if (int64_t j = bad_column(to, width); j >= 0)
      fail_input("features: ", printable(path()), ": row ", row, ", column ", j, " is ", to[j],
                 "; the file is damaged, write it again with pupil features");
  }
  return result;
}

Dataset FeatureFile::samples() const {
  const State& s = *state_;
  Dataset set;
  set.hash = s.header.data_hash;
  set.whole = s.header.samples;
  if (!s.file->has("labels") || !s.file->metadata().count("classes"))
    fail_input("features: ", printable(path()), " hold no labels, as an older version wrote them; ",
               "write them again with pupil features");
  set.classes = number(s.file->metadata(), "classes", path());
  Tensor labels = s.file->read("labels", DType::i64);
  if (labels.shape() != Shape{set.whole})
    fail_input("features: ", printable(path()), ": labels have the shape ", labels.shape(),
               ", the ", set.whole, " samples need (", set.whole, ")");
  for (int64_t i = 0; i < set.whole; i++)
    if (s.has(i)) {
      set.rows.push_back(i);
      set.labels.push_back(labels.data<int64_t>()[i]);
    }
  check_labels(set.labels, set.classes, path());
  return set;
}

Dataset open_features(const Spec& spec) {
  if (!spec.split.empty())
    fail_input("data: '", spec.text, "': a feature file holds one split; leave :", spec.split,
               " out and name the file of that split");
  ModelScope keep;
  Dataset set;
  std::vector<Tensor> parts;
  std::istringstream names(spec.path);
  for (std::string name; std::getline(names, name, '+');) {
    FeatureFile file(name);
    if (parts.empty()) set = file.samples();
    set.spec = spec.text;
    file.require(set);
    parts.push_back(file.gather(from(std::span<const int64_t>(set.rows), {set.size()})));
    set.made_by += concat(set.made_by.empty() ? "" : " + ", file.header().tap, " of ",
                          file.header().weight_hash);
  }
  set.values = parts.size() == 1 ? parts[0] : cat(parts, 1);
  return set;
}

}  // namespace pupil::data

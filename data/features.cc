// Stored teacher outputs: computed once, mapped by every later run.
#include <charconv>

#include "data.h"
#include "file.h"
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

void write_features(const std::string& path, const FeatureHeader& header, const Tensor& rows,
                    std::span<const int64_t> samples) {
  PUPIL_CHECK(rows.rank() == 2 && rows.dim(0) == int64_t(samples.size()) &&
                  rows.dim(1) == header.width && header.views == 1,
              "write_features: rows ", rows.shape(), " for ", samples.size(), " samples of width ",
              header.width, " in ", header.views, " views");
  Tensor all = zeros({header.samples, header.views, header.width});
  Tensor present = zeros({(header.samples * header.views + 7) / 8}, DType::u8);
  const float* from = rows.data<float>();
  for (size_t k = 0; k < samples.size(); k++, from += header.width) {
    int64_t sample = samples[k];
    PUPIL_CHECK(sample >= 0 && sample < header.samples, "write_features: sample ", sample, " of ",
                header.samples);
    if (int64_t j = bad_column(from, header.width); j >= 0)
      fail_input("features: ", header.teacher, " gives ", from[j], " at row ", sample, ", column ",
                 j, " of ", header.tap, "; nothing was written; check the checkpoint");
    std::copy_n(from, header.width, all.data<float>() + sample * header.width);
    present.data<uint8_t>()[sample / 8] |= uint8_t(1 << (sample % 8));
  }
  save_safetensors(path, {{"rows", all}, {"present", present}},
                   {{"format", kFormat},
                    {"teacher", header.teacher},
                    {"weight_hash", header.weight_hash},
                    {"preprocessing", header.preprocessing},
                    {"tap", header.tap},
                    {"dtype", "f32"},
                    {"data_hash", header.data_hash},
                    {"samples", std::to_string(header.samples)},
                    {"views", std::to_string(header.views)},
                    {"width", std::to_string(header.width)}});
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

void FeatureFile::require(const Dataset& set, bool augmented) const {
  const FeatureHeader& h = state_->header;
  auto refuse = [&](const auto&... why) {
    fail_input("features: ", printable(path()), why..., "; write them again with pupil features ",
               "--data ", set.spec);
  };
  if (h.data_hash != set.hash || h.samples != set.whole)
    refuse(" belong to other data or another order: hash ", printable(h.data_hash), " of ",
           h.samples, " samples, ", set.spec, " has hash ", set.hash, " of ", set.whole);
  for (int64_t row : set.rows)
    if (!state_->has(row))
      refuse(" have no row for sample ", row, " of ", set.spec, ": they were computed for a part");
  if (augmented)
    fail_input("features: ", printable(path()), " hold view 0, images without augmentation, but ",
               "this run augments; leave [augment] out, or give the [[teacher]] model and weights ",
               "instead of features: a live one sees what the student sees");
}

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

}  // namespace pupil::data

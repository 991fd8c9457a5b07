// safetensors: 8 bytes with the length of a JSON header, the header, then the values without gaps.
// https://github.com/huggingface/safetensors#format
#include <algorithm>
#include <nlohmann/json.hpp>

#include "stored.h"

namespace pupil::data {
namespace {

static_assert(std::endian::native == std::endian::little, "values are copied as they lie");

using Json = nlohmann::json;

struct Entry {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Takes the header's events as they come: no tree is built, so depth and repetition in a hostile
// header cost nothing, and a name that occurs twice is seen.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(const std::string& where) : where_(where) {}
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(size_t) override {
    if (depth_ < 2) {
      depth_++;
      return true;
    }
    return unexpected();
  }
  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      const Entry& e = entries.back();
      for (auto [present, field] : {std::pair{e.has_dtype, "dtype"},
                                    {e.has_shape, "shape"},
                                    {e.has_offsets, "data_offsets"}})
        if (!present)
          fail_input(where_, "tensor '", printable(e.name), "': ", field, " is missing");
    }
    depth_--;
    in_metadata_ = false;
    return true;
  }
  bool key(std::string& name) override {
    key_ = name;
    if (depth_ == 1) {
      if (name == "__metadata__") {
        if (seen_metadata_) fail_input(where_, "__metadata__ occurs twice");
        in_metadata_ = seen_metadata_ = true;
      } else {
        entries.emplace_back().name = name;
      }
    } else if (in_metadata_) {
      if (metadata.contains(name))
        fail_input(where_, "metadata key '", printable(name), "' occurs twice");
    } else {
      Entry& e = entries.back();
      bool* seen = name == "dtype"          ? &e.has_dtype
                   : name == "shape"        ? &e.has_shape
                   : name == "data_offsets" ? &e.has_offsets
                                            : nullptr;
      if (!seen || *seen)
        fail_input(where_, "tensor '", printable(e.name), "': field '", printable(name), "' is ",
                   seen ? "given twice" : "unknown");
      *seen = true;
    }
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_array_ || key_ == "dtype") return unexpected();
    return in_array_ = true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }
  bool string(std::string& value) override {
    if (depth_ == 2 && in_metadata_)
      metadata[key_] = value;
    else if (depth_ == 2 && key_ == "dtype")
      entries.back().dtype = value;
    else
      return unexpected();
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (!in_array_) return unexpected();
    Entry& e = entries.back();
    if (key_ == "data_offsets") {
      e.offsets.push_back(value);
    } else {
      if (value > uint64_t(INT64_MAX))
        fail_input(where_, "tensor '", printable(e.name), "': dimension ", value, " is too large");
      e.shape.push_back(int64_t(value));
    }
    return true;
  }
  bool number_integer(int64_t value) override {
    if (in_array_)
      fail_input(where_, "tensor '", printable(entries.back().name), "': negative number ", value,
                 " in ", key_);
    return unexpected();
  }
  bool number_float(double, const std::string&) override { return unexpected(); }
  bool binary(Json::binary_t&) override { return unexpected(); }
  bool null() override { return unexpected(); }
  bool boolean(bool) override { return unexpected(); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    fail_input(where_, "the header is not valid JSON in UTF-8 (byte ", position, " of it)");
  }

 private:
  bool unexpected() {
    if (depth_ == 0) fail_input(where_, "the header is not a JSON object");
    if (in_metadata_) fail_input(where_, "__metadata__ must map names to strings");
    fail_input(where_, "tensor '", printable(entries.back().name),
               "': dtype, shape and data_offsets expected as name and lists of whole numbers");
  }

  const std::string& where_;
  int depth_ = 0;
  bool in_array_ = false, in_metadata_ = false, seen_metadata_ = false;
  std::string key_;
};

}  // namespace

Contents read_safetensors(const std::string& path) {
  auto file = std::make_shared<MappedFile>(path);
  const std::string where = concat("weights: ", printable(path), ": ");
  if (file->size() < 8) fail_input(where, "not a safetensors file: only ", file->size(), " bytes");
  uint64_t header;
  memcpy(&header, file->data(), 8);
  if (header > file->size() - 8)
    fail_input(where, "not a safetensors file, or cut off: a header of ", header,
               " bytes is announced in a file of ", file->size());
  const uint8_t* values = file->data() + 8 + header;
  const uint64_t value_bytes = file->size() - 8 - header;

  HeaderReader reader(where);
  const char* text = reinterpret_cast<const char*>(file->data() + 8);
  if (header == 0) fail_input(where, "the header is empty");
  Json::sax_parse(text, text + header, &reader);

  std::vector<StoredTensor> tensors;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const Entry& e : reader.entries) {
    std::string what = concat(where, "tensor '", printable(e.name), "': ");
    auto type = stored_named(e.dtype);
    if (!type)
      fail_input(what, "type ", printable(e.dtype), " is not supported; known are ",
                 stored_names());
    Shape shape = checked_shape(e.shape, what);
    uint64_t bytes = checked_bytes(shape, size_of(*type), what);
    if (e.offsets.size() != 2) fail_input(what, "data_offsets must be [begin, end]");
    auto [begin, end] = std::pair(e.offsets[0], e.offsets[1]);
    if (begin > end) fail_input(what, "begins at byte ", begin, " after its end ", end);
    if (end > value_bytes)
      fail_input(what, "ends at byte ", end, " of ", value_bytes, "; the file is cut off");
    if (end - begin != bytes)
      fail_input(what, "shape ", shape, " of ", e.dtype, " needs ", bytes, " bytes, not ",
                 end - begin);
    ranges.emplace_back(begin, end);
    tensors.push_back({e.name, *type, shape, row_major_strides(shape), values + begin});
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (auto [begin, end] : ranges) {
    if (begin < at) fail_input(where, "two tensors share the bytes from ", begin);
    if (begin > at) fail_input(where, "bytes ", at, " to ", begin, " belong to no tensor");
    at = end;
  }
  if (at != value_bytes)
    fail_input(where, value_bytes - at, " bytes after the last tensor belong to no tensor");
  return {{std::move(file)}, {}, std::move(tensors), std::move(reader.metadata), "safetensors"};
}

std::shared_ptr<const Weights> open_safetensors(const std::string& path) {
  return make_weights(path, read_safetensors(path));
}

void write_safetensors(const std::string& path, const std::vector<Described>& tensors,
                       const ValuesOf& values, const std::map<std::string, std::string>& metadata) {
  // Values begin at a multiple of 64 bytes, in order of falling element size: every tensor is
  // aligned in the mapped file, most to a line of the cache.
  std::vector<size_t> order;
  for (size_t i = 0; i < tensors.size(); i++) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return size_of(tensors[a].type) > size_of(tensors[b].type);
  });
  std::vector<uint64_t> begin(tensors.size());
  uint64_t at = 0;
  for (size_t i : order) {
    begin[i] = at;
    at += tensors[i].bytes();
  }

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::map<std::string_view, int> seen;
  for (size_t i = 0; i < tensors.size(); i++) {
    const Described& t = tensors[i];
    PUPIL_CHECK(!seen[t.name]++ && t.name != "__metadata__", "save: ", path, ": the name '", t.name,
                "' cannot be used twice");
    std::vector<int64_t> dims(t.shape.dims, t.shape.dims + t.shape.rank);
    nlohmann::ordered_json entry;
    entry["dtype"] = name_of(t.type);
    entry["shape"] = dims;
    entry["data_offsets"] = {begin[i], begin[i] + t.bytes()};
    header.push_back({t.name, entry});
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error&) {
    fail_input(printable(path), ": a name or note that is not UTF-8 cannot be written");
  }
  text.resize((8 + text.size() + 63) / 64 * 64 - 8, ' ');

  FileWriter file(path);
  uint64_t length = text.size();
  file.write(&length, 8);
  file.write(text);
  for (size_t i : order) {
    Values v = values(i);
    file.write(v.bytes.data(), v.bytes.size());
  }
  file.commit();
}

void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  auto stored = [](DType dtype) {
    switch (dtype) {
      case DType::f64:
        return Stored::F64;
      case DType::f32:
        return Stored::F32;
      case DType::bf16:
        return Stored::BF16;
      case DType::f16:
        return Stored::F16;
      case DType::i64:
        return Stored::I64;
      case DType::i32:
        return Stored::I32;
      case DType::u8:
        break;
    }
    return Stored::U8;
  };
  std::vector<Described> list;
  for (const auto& [name, t] : tensors) list.push_back({name, stored(t.dtype()), t.shape()});
  auto values = [&](size_t i) -> Values {
    auto t = std::make_shared<Tensor>(tensors[i].second.contiguous().to(Device{}));
    return {{static_cast<const uint8_t*>(t->raw()), t->bytes()}, t};
  };
  write_safetensors(path, list, values, metadata);
}

}  // namespace pupil::data

#include "convert.h"

#include <immintrin.h>

#include <algorithm>
#include <filesystem>

#include "stored.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }

bool is_float(Stored type) {
  return type == Stored::F64 || type == Stored::F32 || type == Stored::F16 || type == Stored::BF16;
}

// Calls f(pointer to the first value, function from a value to double) for values of this type.
template <class F>
void with_type(Stored type, const uint8_t* first, F&& f) {
  auto plain = [&](auto* p) { f(p, [](auto v) { return double(v); }); };
  switch (type) {
    case Stored::F64:
      return plain(reinterpret_cast<const double*>(first));
    case Stored::F32:
      return plain(reinterpret_cast<const float*>(first));
    case Stored::F16:
      return f(reinterpret_cast<const uint16_t*>(first),
               [](uint16_t v) { return double(half_to_float(v)); });
    case Stored::BF16:
      return f(reinterpret_cast<const bf16*>(first), [](bf16 v) { return double(float(v)); });
    case Stored::I64:
      return plain(reinterpret_cast<const int64_t*>(first));
    case Stored::I32:
      return plain(reinterpret_cast<const int32_t*>(first));
    case Stored::I16:
      return plain(reinterpret_cast<const int16_t*>(first));
    case Stored::I8:
      return plain(reinterpret_cast<const int8_t*>(first));
    case Stored::U64:
      return plain(reinterpret_cast<const uint64_t*>(first));
    case Stored::U32:
      return plain(reinterpret_cast<const uint32_t*>(first));
    case Stored::U16:
      return plain(reinterpret_cast<const uint16_t*>(first));
    case Stored::U8:
    case Stored::BOOL:
      return plain(first);
  }
}

// The values in the type `to`; of values in a mapped file and in that type the bytes themselves.
Values values_as(const Weights& weights, const TensorInfo& info, Stored to) {
  Stored from = *stored_named(info.dtype);
  std::span<const uint8_t> bytes = weights.bytes(info.name);
  if (from == to && (!bytes.empty() || info.shape.numel() == 0)) return {bytes, nullptr};
  std::string what = concat(printable(weights.path()), ": tensor '", printable(info.name), "': ");
  // Every type but F64 and the wide integers is exact in f32 or i64.
  DType read = !is_float(from) ? DType::i64 : to == Stored::F64 ? DType::f64 : DType::f32;
  Tensor t = weights.read(info.name, read);
  if (to == Stored::BF16) t = t.to(DType::bf16);
  if (to == Stored::F64 || to == Stored::F32 || to == Stored::BF16 || to == Stored::I64) {
    auto owner = std::make_shared<Tensor>(t);
    return {{static_cast<const uint8_t*>(t.raw()), t.bytes()}, owner};
  }
  auto owner = std::make_shared<std::vector<uint8_t>>(size_t(t.numel()) * size_of(to));
  for (int64_t i = 0; i < t.numel(); i++) {
    uint8_t* out = owner->data() + size_t(i) * size_of(to);
    if (to == Stored::F16) {
      float value = t.data<float>()[i];
      uint16_t half = uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
      if (std::isfinite(value) && !std::isfinite(half_to_float(half)))
        fail_input(what, value, " does not fit into f16; use bf16");
      memcpy(out, &half, 2);
    } else {  // little-endian: the low bytes of the same number
      memcpy(out, t.data<int64_t>() + i, size_of(to));
    }
  }
  return {{owner->data(), owner->size()}, owner};
}

void write_folder(const std::string& target, const std::vector<Described>& list,
                  const ValuesOf& values, std::map<std::string, std::string> metadata) {
  fs::path folder =
      fs::path(target).has_filename() ? fs::path(target) : fs::path(target).parent_path();
  std::error_code error;
  if (fs::exists(folder, error) &&
      !(fs::is_directory(folder, error) && fs::is_empty(folder, error)))
    fail_input(printable(target),
               ": exists; give a new folder, or a file that ends in .safetensors or .npz");
  fs::path temporary = folder.string() + ".tmp";
  if (fs::exists(temporary, error))
    fail_input(printable(temporary.string()),
               ": is in the way, perhaps left behind by a stopped conversion; remove it");
  if (!fs::create_directory(temporary, error))
    fail_input(printable(target), ": cannot be created: ", error.message());
  try {
    for (const char* name : {"config.json", "preprocessor_config.json", "open_clip_config.json"})
      if (auto settings = metadata.extract(name))
        write_file((temporary / name).string(), settings.mapped());
    metadata["format"] = "pt";  // which transformers asks for
    write_safetensors((temporary / "model.safetensors").string(), list, values, metadata);
    fs::rename(temporary, folder);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace

Statistics statistics_of(const Weights& weights, const TensorInfo& info) {
  Stored type = *stored_named(info.dtype);
  Values values = values_as(weights, info, type);
  Statistics s;
  int64_t finite = 0;
  double origin = 0, sum = 0, squares = 0;  // of distances from the first value
  with_type(type, values.bytes.data(), [&](auto* first, auto&& number) {
    using T = std::remove_cvref_t<decltype(*first)>;
    for (size_t i = 0; i < values.bytes.size() / sizeof(T); i++) {
      T stored;
      memcpy(&stored, values.bytes.data() + i * sizeof(T), sizeof stored);  // at any alignment
      double v = number(stored);
      s.zero += v == 0;
      if (!std::isfinite(v)) {
        (std::isnan(v) ? s.nan : s.infinite)++;
        continue;
      }
      if (!finite++) origin = s.least = s.most = v;
      s.least = std::min(s.least, v);
      s.most = std::max(s.most, v);
      sum += v - origin;
      squares += (v - origin) * (v - origin);
    }
  });
  if (!finite) return s;
  double mean = sum / double(finite);
  s.mean = origin + mean;
  s.deviation = std::sqrt(std::max(squares / double(finite) - mean * mean, 0.0));
  return s;
}

void convert_weights(const Weights& weights, const std::string& target, const std::string& dtype) {
  std::vector<Described> list;
  for (const TensorInfo& info : weights.list()) {
    Stored type = *stored_named(info.dtype);
    if (!dtype.empty() && is_float(type)) type = *stored_named(dtype);
    list.push_back({info.name, type, info.shape});
  }
  auto values = [&](size_t i) { return values_as(weights, weights.list()[i], list[i].type); };
  if (target.ends_with(".npz"))
    write_npz(target, list, values);
  else if (target.ends_with(".safetensors"))
    write_safetensors(target, list, values, weights.metadata());
  else
    write_folder(target, list, values, weights.metadata());
}

}  // namespace pupil::data

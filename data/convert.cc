#include "convert.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "../tensor/launch.h"
#include "stored.h"

namespace fs = std::filesystem;

namespace pupil::data {
namespace {

bool is_float(Stored type) {
  return type == Stored::F64 || type == Stored::F32 || type == Stored::F16 || type == Stored::BF16;
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
      Half half{uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
      if (std::isfinite(value) && !std::isfinite(float(half)))
        fail_input(what, value, " does not fit into f16; use bf16");
      memcpy(out, &half, 2);
    } else {  // little-endian: the low bytes of the same number
      memcpy(out, t.data<int64_t>() + i, size_of(to));
    }
  }
  return {{owner->data(), owner->size()}, owner};
}

// What statistics are made of; sums are of distances from `origin`, a value near the others.
struct Moments {
  Statistics counts;
  int64_t finite = 0;
  double origin = 0, sum = 0, squares = 0;
  double least = std::numeric_limits<double>::infinity(), most = -least;

  void add(double v) {
    bool is_finite = std::isfinite(v);
    counts.zero += v == 0;
    counts.nan += v != v;
    finite += is_finite;
    counts.infinite += !is_finite && v == v;
    double d = is_finite ? v - origin : 0;
    sum += d;
    squares += d * d;
    least = is_finite && v < least ? v : least;
    most = is_finite && v > most ? v : most;
  }
  void add(const Moments& m) {
    counts.zero += m.counts.zero;
    counts.nan += m.counts.nan;
    counts.infinite += m.counts.infinite;
    finite += m.finite;
    sum += m.sum;
    squares += m.squares;
    least = std::min(least, m.least);
    most = std::max(most, m.most);
  }
};

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
    for (const char* name : kSettings)
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
  Moments all;
  dispatch_stored(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const uint8_t* first = values.bytes.data();
    auto value = [first](int64_t i) {
      T stored;  // at any alignment
      memcpy(static_cast<void*>(&stored), first + size_t(i) * sizeof(T), sizeof stored);
      return double(stored);
    };
    const int64_t n = int64_t(values.bytes.size() / sizeof(T));
    int64_t known = 0;
    while (known < n && !std::isfinite(value(known))) known++;
    all.origin = known < n ? value(known) : 0;
    // Pieces, so that sums do not depend on the number of threads.
    constexpr int64_t kPiece = 1 << 16;
    std::vector<Moments> pieces(size_t((n + kPiece - 1) / kPiece), all);
    Moments* piece = pieces.data();
    parallel_for(int64_t(pieces.size()), n, [=](int64_t k) {
      Moments m = piece[k];
      for (int64_t i = k * kPiece; i < std::min(n, (k + 1) * kPiece); i++) m.add(value(i));
      piece[k] = m;
    });
    for (const Moments& m : pieces) all.add(m);
  });
  Statistics s = all.counts;
  if (!all.finite) return s;
  s.least = all.least;
  s.most = all.most;
  double mean = all.sum / double(all.finite);
  s.mean = all.origin + mean;
  s.deviation = std::sqrt(std::max(all.squares / double(all.finite) - mean * mean, 0.0));
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

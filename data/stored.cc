#include "stored.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "../tensor/launch.h"
#include "sha256.h"

namespace pupil::data {
namespace {

struct Element {
  const char* name;
  uint8_t bytes;
};
constexpr Element kElements[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                 {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U64", 8},  {"U32", 4},
                                 {"U16", 2}, {"U8", 1},  {"BOOL", 1}};

bool row_major(const StoredTensor& t) {
  int64_t expected = 1;
  for (int d = t.shape.rank - 1; d >= 0; d--) {
    if (t.shape.dims[d] != 1 && t.strides.dims[d] != expected) return false;
    expected *= t.shape.dims[d];
  }
  return true;
}

uint64_t bytes_of(const StoredTensor& t) { return uint64_t(t.shape.numel()) * size_of(t.type); }

// Calls f(first byte, number of elements, bytes from one to the next) for rows in row-major order;
// where they lie without gaps for pieces of them, whose pages of the mapped file it then gives
// back.
template <class F>
void for_rows(const StoredTensor& t, F&& f) {
  int64_t n = t.shape.numel(), size = int64_t(size_of(t.type));
  if (n == 0) return;
  if (row_major(t)) {
    constexpr int64_t kPiece = 1 << 22;
    for (int64_t at = 0; at < n; at += kPiece) {
      int64_t count = std::min(kPiece, n - at);
      f(t.first + at * size, count, size);
      if (t.file) t.file->give_back(t.first + at * size, size_t(count * size));
    }
    return;
  }
  int last = t.shape.rank - 1;
  int64_t at[kMaxRank] = {}, offset = 0;
  for (int64_t row = 0; row < n / t.shape.dims[last]; row++) {
    f(t.first + offset * size, t.shape.dims[last], t.strides.dims[last] * size);
    for (int d = last - 1; d >= 0; d--) {
      offset += t.strides.dims[d];
      if (++at[d] < t.shape.dims[d]) break;
      offset -= at[d] * t.strides.dims[d];
      at[d] = 0;
    }
  }
}

// Every number becomes a float; integers widen to i64; the rest is read as what it is.
template <class From, class To>
constexpr bool converts = std::is_floating_point_v<To> || std::is_same_v<From, To> ||
                          (std::is_same_v<To, int64_t> &&
                           (std::is_integral_v<From> || std::is_same_v<From, Bool>)) ||
                          (std::is_same_v<To, uint8_t> && std::is_same_v<From, Bool>);

template <class To>
Tensor convert_to(const StoredTensor& t, const std::string& what) {
  Tensor result = empty(t.shape, dtype_of<To>::value);
  To* out = result.data<To>();
  dispatch_stored(t.type, [&](auto g) {
    using From = typename decltype(g)::type;
    if constexpr (!converts<From, To>)
      fail_input(what, "is stored as ", name_of(t.type), " and cannot be read as ",
                 name_of(dtype_of<To>::value));
    else
      for_rows(t, [&](const uint8_t* p, int64_t n, int64_t step) {
        auto convert_every = [&](auto step) {
          auto number = [p, step](int64_t i) {
            From value;
            memcpy(static_cast<void*>(&value), p + i * step, sizeof value);
            return value;
          };
          if constexpr (std::is_same_v<From, uint64_t> && std::is_same_v<To, int64_t>)
            for (int64_t i = 0; i < n; i++)
              if (number(i) > uint64_t(INT64_MAX))
                fail_input(what, "a value does not fit into int64");
          parallel_for(n, n, [number, out](int64_t i) {
            if constexpr (std::is_same_v<From, bf16> && !std::is_same_v<To, bf16>)
              out[i] = To(float(number(i)));
            else
              out[i] = To(number(i));
          });
        };
        if (step == int64_t(sizeof(From)))
          convert_every(std::integral_constant<int64_t, sizeof(From)>());  // vectors
        else
          convert_every(step);
        out += n;
      });
  });
  return result;
}

// The type of tensors with these very values, if there is one.
std::optional<DType> dtype_of_stored(Stored type) {
  std::optional<DType> same;
  dispatch_stored(type, [&](auto g) {
    using T = typename decltype(g)::type;
    if constexpr (requires { dtype_of<T>::value; }) same = dtype_of<T>::value;
  });
  return same;
}

class StoredWeights final : public Weights {
 public:
  StoredWeights(const std::string& path, Contents contents)
      : path_(path),
        owners_(std::move(contents.owners)),
        tensors_(std::move(contents.tensors)),
        metadata_(std::move(contents.metadata)),
        container_(std::move(contents.container)) {
    remove_prefix("module.", true);
    remove_prefix("backbone.", false);
    list_.reserve(tensors_.size());
    for (StoredTensor& t : tensors_) {
      for (auto& file : contents.files)
        if (file->holds(t.first)) t.file = file;
      if (!index_.emplace(t.name, list_.size()).second)
        fail_input(where(), "the name '", printable(t.name), "' occurs twice");
      list_.push_back({t.name, t.shape, name_of(t.type)});
    }
  }

  const std::vector<TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override { return index_.contains(std::string(name)); }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }
  std::string container() const override { return container_; }

  Tensor view(std::string_view name, DType dtype) const override {
    const StoredTensor& t = find(name);
    void* first = const_cast<uint8_t*>(t.first);
    bool aligned = uintptr_t(first) % size_of(t.type) == 0;
    if (t.file && aligned && row_major(t) && dtype_of_stored(t.type) == dtype) {
      auto give_back = [file = t.file, bytes = bytes_of(t)](void* p) { file->give_back(p, bytes); };
      return map_memory(first, t.shape, dtype, std::shared_ptr<void>(first, give_back));
    }
    return convert(t, dtype, concat(where(), "tensor '", printable(t.name), "': "));
  }

  std::span<const uint8_t> bytes(std::string_view name) const override {
    const StoredTensor& t = find(name);
    if (!row_major(t)) return {};
    return {t.first, bytes_of(t)};
  }

  std::string hash() const override {
    std::call_once(hashed_, [&] { hash_ = computed_hash(); });
    return hash_;
  }

 private:
  std::string computed_hash() const {
    std::vector<const StoredTensor*> sorted;
    for (const StoredTensor& t : tensors_) sorted.push_back(&t);
    std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->name < b->name; });
    Sha256 sum;
    std::vector<uint8_t> row;
    for (const StoredTensor* t : sorted) {
      std::string head =
          concat(t->name.size(), ':', t->name, ' ', name_of(t->type), ' ', t->shape, '\n');
      sum.add(head.data(), head.size());
      int64_t size = int64_t(size_of(t->type));
      for_rows(*t, [&](const uint8_t* p, int64_t n, int64_t step) {
        if (step != size) {
          row.resize(size_t(n * size));
          for (int64_t i = 0; i < n; i++)
            memcpy(&row[size_t(i * size)], p + i * step, size_t(size));
          p = row.data();
        }
        sum.add(p, size_t(n * size));
      });
    }
    return sum.hex();
  }

  void remove_prefix(std::string_view prefix, bool only_from_all) {
    std::unordered_set<std::string> names;
    for (const StoredTensor& t : tensors_) {
      bool has = t.name.starts_with(prefix);
      if (only_from_all && !has) return;
      if (!names.insert(has ? t.name.substr(prefix.size()) : t.name).second) return;
    }
    for (StoredTensor& t : tensors_)
      if (t.name.starts_with(prefix)) t.name.erase(0, prefix.size());
  }
  std::string where() const { return concat("weights: ", printable(path()), ": "); }
  const StoredTensor& find(std::string_view name) const {
    auto found = index_.find(std::string(name));
    if (found == index_.end()) fail_input(where(), "holds no tensor '", printable(name), "'");
    return tensors_[found->second];
  }

  std::string path_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::vector<StoredTensor> tensors_;
  std::vector<TensorInfo> list_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
  std::string container_;
  mutable std::once_flag hashed_;
  mutable std::string hash_;
};

}  // namespace

size_t size_of(Stored type) { return kElements[size_t(type)].bytes; }
const char* name_of(Stored type) { return kElements[size_t(type)].name; }

std::optional<Stored> stored_named(std::string_view name) {
  for (size_t i = 0; i < std::size(kElements); i++)
    if (name == kElements[i].name) return Stored(i);
  return std::nullopt;
}

std::string stored_names() {
  std::string out;
  for (const Element& e : kElements) out += concat(out.empty() ? "" : ", ", e.name);
  return out;
}

Shape checked_shape(const std::vector<int64_t>& dims, const std::string& what) {
  for (int64_t d : dims)
    if (d < 0) fail_input(what, "negative dimension ", d);
  if (dims.size() > size_t(kMaxRank))
    fail_input(what, dims.size(), " dimensions; at most ", kMaxRank, " are supported");
  return Shape(std::span<const int64_t>(dims));
}

uint64_t checked_bytes(const Shape& shape, size_t element, const std::string& what) {
  // Strides are products too, also where another dimension is 0: no product may overflow.
  int64_t product = int64_t(element);
  for (int d = 0; d < shape.rank; d++)
    if (__builtin_mul_overflow(product, std::max<int64_t>(shape.dims[d], 1), &product))
      fail_input(what, "the size of shape ", shape, " overflows");
  return shape.numel() == 0 ? 0 : uint64_t(product);
}

Tensor convert(const StoredTensor& t, DType dtype, const std::string& what) {
  switch (dtype) {
    case DType::f64:
      return convert_to<double>(t, what);
    case DType::f32:
      return convert_to<float>(t, what);
    case DType::i64:
      return convert_to<int64_t>(t, what);
    case DType::i32:
      return convert_to<int32_t>(t, what);
    case DType::u8:
      return convert_to<uint8_t>(t, what);
    default:
      return convert_to<bf16>(t, what);
  }
}

std::shared_ptr<const Weights> make_weights(const std::string& path, Contents contents) {
  return std::make_shared<StoredWeights>(path, std::move(contents));
}

}  // namespace pupil::data

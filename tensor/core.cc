#include "core.h"

#include <algorithm>
#include <ostream>

#include "random.h"

namespace pupil {

size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

const char* name_of(DType t) {
  switch (t) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

bool is_floating(DType t) {
  return t == DType::f64 || t == DType::f32 || t == DType::bf16 || t == DType::f16;
}

const char* name_of(Layout layout) {
  switch (layout) {
    case Layout::strided:
      return "strided";
    case Layout::nhwc:
      return "nhwc";
    case Layout::nchw16c:
      return "nchw16c";
  }
  return "?";
}

Shape::Shape(std::initializer_list<int64_t> list)
    : Shape(std::span<const int64_t>(list.begin(), list.size())) {}

Shape::Shape(std::span<const int64_t> list) {
  PUPIL_CHECK(list.size() <= size_t(kMaxRank), "shape: rank ", list.size(), " is above ", kMaxRank);
  for (int64_t d : list) {
    PUPIL_CHECK(d >= 0, "shape: negative dimension ", d);
    dims[rank++] = d;
  }
}

Shape row_major_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int d = shape.rank - 1; d >= 0; d--) {
    strides.dims[d] = step;
    step *= shape.dims[d];
  }
  return strides;
}

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << '(';
  for (int d = 0; d < s.rank; d++) out << (d ? "," : "") << s.dims[d];
  return out << ')';
}

double normal(const RngKey& key, int64_t i) {
  // Box-Muller: element i uses uniforms 2i and 2i + 1; 1 - u lies in (0, 1].
  double u = 1.0 - double(uniform(key, 2 * i)), v = double(uniform(key, 2 * i + 1));
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v);
}

uint32_t stream_id(std::string_view name) {
  uint32_t hash = 2166136261u;
  for (char c : name) hash = (hash ^ uint8_t(c)) * 16777619u;
  return hash;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates,
                         const std::string& prefix) {
  constexpr size_t kFew = 12;
  std::string best, all;
  size_t best_distance = size_t(-1);
  for (const std::string& candidate : candidates) {
    all += concat(all.empty() ? "" : ", ", prefix, candidate);
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); j++) row[j] = j;
    for (size_t i = 0; i < name.size(); i++) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); j++) {
        size_t replace = diagonal + (name[i] != candidate[j]);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replace, row[j] + 1, row[j + 1] + 1});
      }
    }
    size_t distance = row.back();
    bool beginning = name.size() > 1 && candidate.starts_with(name);
    bool near = 2 * distance <= std::max(name.size(), candidate.size()) || beginning;
    if (near && distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  if (!best.empty()) return concat("; did you mean ", prefix, best, "?");
  return all.empty() || candidates.size() > kFew ? "" : concat("; known: ", all);
}

}  // namespace pupil

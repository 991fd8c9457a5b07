// Small pieces of what the commands print.
#pragma once
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "../tensor/core.h"

namespace pupil {

// `text` filled up with spaces: to `width` characters, or two more when it is longer.
inline std::string padded(std::string text, size_t width) {
  text.resize(std::max(width, text.size() + 2), ' ');
  return text;
}

inline std::string percent(double share) {  // 0.9133 -> "91.33 %"
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << 100 * share << " %";
  return out.str();
}

inline std::vector<int64_t> sizes_of(const Shape& shape) {
  return {shape.dims, shape.dims + shape.rank};
}

}  // namespace pupil

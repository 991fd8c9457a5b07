// Small pieces of what the commands print.
#pragma once
#include <algorithm>
#include <cmath>
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

// Rows of cells as lines, two spaces between columns; those in `left` begin, others end together.
inline std::string aligned(const std::vector<std::vector<std::string>>& rows,
                           const std::vector<size_t>& left) {
  auto width_of = [](const std::string& utf8) {
    return size_t(
        std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xc0) != 0x80; }));
  };
  std::vector<size_t> widths(rows.empty() ? 0 : rows[0].size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); c++) widths[c] = std::max(widths[c], width_of(row[c]));
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); c++) {
      std::string gap(widths[c] - width_of(row[c]), ' ');
      bool begins = std::find(left.begin(), left.end(), c) != left.end();
      line += (c ? "  " : "") + (begins ? row[c] + gap : gap + row[c]);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

inline std::string percent(double share) {  // 0.9133 -> "91.33 %"
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << 100 * share << " %";
  return out.str();
}

inline std::string duration(double seconds) {
  int64_t s = std::llround(seconds);
  if (s < 100) return concat(s, " s");
  if (s < 6000) return concat(s / 60, " min ", s % 60, " s");
  return concat(s / 3600, " h ", s / 60 % 60, " min");
}

inline std::string csv_field(const std::string& text) {  // RFC 4180
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

inline std::string html_escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    const char* special = c == '<'   ? "&lt;"
                          : c == '>' ? "&gt;"
                          : c == '&' ? "&amp;"
                          : c == '"' ? "&quot;"
                                     : nullptr;
    if (special)
      out += special;
    else
      out += c;
  }
  return out;
}

inline std::string counted(int64_t n, const std::string& what) {  // "1 case", "2 cases"
  return concat(n, " ", what, n == 1 ? "" : "s");
}

inline std::vector<int64_t> sizes_of(const Shape& shape) {
  return {shape.dims, shape.dims + shape.rank};
}

}  // namespace pupil

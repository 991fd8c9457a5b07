#include "clean_name.h"

#include <algorithm>
#include <optional>

namespace pupil::data {
namespace {

// What Windows-1252 has in the places of the control characters 0x80 to 0x9F; 0: nothing.
constexpr char32_t kWindows[32] = {0x20AC, 0,      0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                   0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0,      0x017D, 0,
                                   0,      0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                   0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0,      0x017E, 0x0178};

// The code points of UTF-8; nothing when it is none.
std::optional<std::u32string> decode(const std::string& text) {
  std::u32string points;
  for (size_t i = 0; i < text.size();) {
    auto byte = [&](size_t k) { return k < text.size() ? uint8_t(text[k]) : 0; };
    char32_t point = byte(i++);
    int more = point < 0x80 ? 0 : point < 0xC2 ? -1 : point < 0xE0 ? 1 : point < 0xF0 ? 2 : 3;
    if (more < 0 || point > 0xF4) return {};
    if (more) point &= 0x3F >> more;
    for (int k = 0; k < more; k++, i++) {
      if ((byte(i) & 0xC0) != 0x80) return {};
      point = point << 6 | (byte(i) & 0x3F);
    }
    bool longer_than_needed = (more == 2 && point < 0x800) || (more == 3 && point < 0x10000);
    if (longer_than_needed || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return {};
    points += point;
  }
  return points;
}

std::string repaired(const std::string& text) {
  std::optional<std::u32string> points = decode(text);
  if (!points) return text;
  std::string bytes;
  for (char32_t point : *points) {
    const char32_t* place = std::find(std::begin(kWindows), std::end(kWindows), point);
    if (point != 0 && place != std::end(kWindows)) point = 0x80 + char32_t(place - kWindows);
    if (point > 0xFF) return text;
    bytes += char(point);
  }
  return bytes != text && decode(bytes) ? repaired(bytes) : text;
}

std::string with_straight_quotes(const std::string& text) {
  std::string straight;
  for (size_t i = 0; i < text.size(); i++) {
    std::string three = text.substr(i, 3);
    bool quote = three >= "\u2018" && three <= "\u201F" && three.size() == 3;
    if (quote) {
      straight += three <= "\u201B" ? '\'' : '"';
      i += 2;
    } else {
      straight += text[i];
    }
  }
  return straight;
}

}  // namespace

std::string clean_name(const std::string& name) {
  return repaired(with_straight_quotes(repaired(name)));
}

}  // namespace pupil::data

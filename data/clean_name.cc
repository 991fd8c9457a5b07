#include "clean_name.h"

#include <algorithm>

#include "unicode.h"

namespace pupil::data {
namespace {

std::string repaired(const std::string& text) {
  std::optional<std::u32string> points = decode_utf8(text);
  if (!points) return text;
  std::string bytes;
  for (char32_t point : *points) {
    const char32_t* place = std::find(std::begin(kWindows1252), std::end(kWindows1252), point);
    if (point != 0 && place != std::end(kWindows1252))
      point = 0x80 + char32_t(place - kWindows1252);
    if (point > 0xFF) return text;
    bytes += char(point);
  }
  return bytes != text && decode_utf8(bytes) ? repaired(bytes) : text;
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

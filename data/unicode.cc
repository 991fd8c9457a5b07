#include "unicode.h"

#include <utf8proc.h>

#include <algorithm>

namespace pupil::data {

std::optional<std::u32string> decode_utf8(std::string_view text) {
  std::u32string points;
  const auto* next = reinterpret_cast<const uint8_t*>(text.data());
  for (auto left = utf8proc_ssize_t(text.size()); left > 0;) {
    utf8proc_int32_t point;
    utf8proc_ssize_t used = utf8proc_iterate(next, left, &point);
    if (used <= 0) return {};
    points += char32_t(point);
    next += used;
    left -= used;
  }
  return points;
}

std::string encode_utf8(std::u32string_view points) {
  std::string text;
  for (char32_t point : points) {
    uint8_t bytes[4];
    utf8proc_ssize_t used = utf8proc_encode_char(utf8proc_int32_t(point), bytes);
    text.append(bytes, bytes + used);
  }
  return text;
}

namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(utf8proc_int32_t(c)); }
char32_t simple_lower(char32_t c) { return char32_t(utf8proc_tolower(utf8proc_int32_t(c))); }
char32_t simple_upper(char32_t c) { return char32_t(utf8proc_toupper(utf8proc_int32_t(c))); }

bool between(utf8proc_category_t first, char32_t c, utf8proc_category_t last) {
  return category(c) >= first && category(c) <= last;
}

// Property Cased. The letters of the enclosed alphabets and two ordinals have no other case.
bool cased(char32_t c) {
  return between(UTF8PROC_CATEGORY_LU, c, UTF8PROC_CATEGORY_LT) || simple_lower(c) != c ||
         simple_upper(c) != c || c == 0xAA || c == 0xBA || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

// Property Case_Ignorable: these categories and the punctuation of the middle of words.
bool case_ignorable(char32_t c) {
  constexpr std::u32string_view kInsideWords =
      U"'.:\u00B7\u0387\u055F\u05F4\u2018\u2019\u2024\u2027\uFE13\uFE52\uFE55\uFF07\uFF0E\uFF1A";
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return kInsideWords.find(c) != kInsideWords.npos;
  }
}

// Condition Final_Sigma of table 3-17: behind a cased letter, and before none.
bool ends_word(std::u32string_view text, size_t i) {
  auto first = std::find_if_not(text.rend() - ptrdiff_t(i), text.rend(), case_ignorable);
  auto next = std::find_if_not(text.begin() + ptrdiff_t(i) + 1, text.end(), case_ignorable);
  return first != text.rend() && cased(*first) && (next == text.end() || !cased(*next));
}

}  // namespace

bool is_letter(char32_t c) { return between(UTF8PROC_CATEGORY_LU, c, UTF8PROC_CATEGORY_LO); }
bool is_number(char32_t c) { return between(UTF8PROC_CATEGORY_ND, c, UTF8PROC_CATEGORY_NO); }
bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x1F) || c == 0x85 ||
         between(UTF8PROC_CATEGORY_ZS, c, UTF8PROC_CATEGORY_ZP);
}

std::u32string lower_case(std::u32string_view text) {
  std::u32string lower;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == 0x130)
      lower += U"i\u0307";
    else if (text[i] == 0x3A3 && ends_word(text, i))
      lower += char32_t(0x3C2);
    else
      lower += simple_lower(text[i]);
  }
  return lower;
}

}  // namespace pupil::data

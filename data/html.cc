// Character references as HTML 5 reads them (html.spec.whatwg.org, section 13.2.5.72 on).
#include <algorithm>
#include <charconv>
#include <vector>

#include "unicode.h"

namespace pupil::data {
namespace {

struct Entity {
  std::string_view name;
  bool bare;  // counts without a semicolon too
  std::u32string_view text() const { return {points, points[1] ? 2u : 1u}; }
  char32_t points[2];
};

const std::vector<Entity>& entities() {
  static const std::vector<Entity> all = [] {
    constexpr std::string_view table =
#include "html_entities.inc"
        ;
    std::vector<Entity> list;
    for (size_t at = 0; at < table.size();) {
      size_t mark = table.find_first_of(",;", at);
      size_t end = std::min(table.find_first_of(" \n", mark), table.size());
      uint32_t first = 0, second = 0;
      const char* next = std::from_chars(&table[mark + 1], table.data() + end, first, 16).ptr;
      if (next < table.data() + end) std::from_chars(next + 1, table.data() + end, second, 16);
      list.push_back({table.substr(at, mark - at), table[mark] == ',', {first, second}});
      at = end + 1;
    }
    return list;
  }();
  return all;
}

const Entity* find_entity(std::string_view name) {
  auto at = std::lower_bound(entities().begin(), entities().end(), name,
                             [](const Entity& e, std::string_view n) { return e.name < n; });
  return at != entities().end() && at->name == name ? &*at : nullptr;
}

// What "&#NUMBER;" stands for: one character or none.
std::u32string numbered(uint32_t c) {
  if (c >= 0x80 && c <= 0x9F) return {kWindows1252[c - 0x80] ? kWindows1252[c - 0x80] : c};
  if (c == 0 || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return U"\uFFFD";
  bool control = (c < 0x20 && !(c >= 0x9 && c <= 0xD && c != 0xB)) || c == 0x7F;
  bool no_character = (c >= 0xFDD0 && c <= 0xFDEF) || (c & 0xFFFE) == 0xFFFE;
  if (control || no_character) return {};
  return {char32_t(c)};
}

// `text` begins behind "&#". Returns how much of it belongs to the reference; 0: it is none.
size_t read_number(std::u32string_view text, std::u32string& out) {
  bool hex = !text.empty() && (text[0] | 0x20) == 'x';
  size_t at = hex;
  uint32_t number = 0;
  for (; at < text.size(); at++) {
    char32_t c = text[at], letter = c | 0x20;
    uint32_t digit = c >= '0' && c <= '9'                    ? c - '0'
                     : hex && letter >= 'a' && letter <= 'f' ? letter - 'a' + 10
                                                             : 99;
    if (digit == 99) break;
    number = std::min<uint32_t>(number * (hex ? 16 : 10) + digit, 0x110000);
  }
  if (at == size_t(hex)) return 0;
  out += numbered(number);
  return at + (at < text.size() && text[at] == ';');
}

// The same behind "&".
size_t read_name(std::u32string_view text, std::u32string& out) {
  std::string name;
  while (name.size() < text.size() && name.size() < 32 && text[name.size()] < 0x80 &&
         std::isalnum(int(text[name.size()])))
    name += char(text[name.size()]);
  const Entity* whole = find_entity(name);
  if (whole && name.size() < text.size() && text[name.size()] == ';') {
    out += whole->text();
    return name.size() + 1;
  }
  for (; !name.empty(); name.pop_back())
    if (const Entity* entity = find_entity(name); entity && entity->bare) {
      out += entity->text();
      return name.size();
    }
  return 0;
}

}  // namespace

std::u32string html_unescape(std::u32string_view text) {
  std::u32string out;
  for (size_t i = 0; i < text.size();) {
    size_t used = 0;
    if (text[i] == '&') {
      bool number = i + 1 < text.size() && text[i + 1] == '#';
      used = number ? read_number(text.substr(i + 2), out) : read_name(text.substr(i + 1), out);
      if (used) used += number;
    }
    if (!used) out += text[i];
    i += 1 + used;
  }
  return out;
}

}  // namespace pupil::data

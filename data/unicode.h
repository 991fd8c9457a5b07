// Text as code points: class names and the tokenizer. Properties of characters are utf8proc's.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace pupil::data {

// The code points of UTF-8; nothing when it is none.
std::optional<std::u32string> decode_utf8(std::string_view);
std::string encode_utf8(std::u32string_view);

bool is_letter(char32_t);  // general category L
bool is_number(char32_t);  // general category N
bool is_space(char32_t);   // White_Space and the separators U+001C to U+001F

// The lower case of the Unicode standard, section 3.13, without a language: "İ" becomes two code
// points, a "Σ" that ends a word "ς".
std::u32string lower_case(std::u32string_view);

// What Windows-1252 has in the places of the control characters 0x80 to 0x9F; 0: nothing.
constexpr char32_t kWindows1252[32] = {
    0x20AC, 0,      0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160,
    0x2039, 0x0152, 0,      0x017D, 0,      0,      0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
    0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0,      0x017E, 0x0178};

// Character references of HTML 5 ("&eacute;", "&#39;", "&copy" too) replaced by what they stand
// for, once. The name may go on behind a reference without semicolon: "&notit;" is "¬it;".
std::u32string html_unescape(std::u32string_view);

}  // namespace pupil::data

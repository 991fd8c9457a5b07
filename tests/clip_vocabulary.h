// A vocabulary for the tokenizer where the real one is not at hand.
#pragma once
#include <algorithm>

#include "data/unicode.h"
#include "program.h"

namespace pupil::test {

// A vocabulary of the right size whose first merges are `merges`; then pairs of bytes that no text
// has, U+0100 + k for the bytes 0 to 32 and 127 to 160.
inline std::string clip_vocabulary(std::string merges, const std::string& line_end = "\n") {
  std::string text = "#version: test" + line_end + merges;
  int64_t missing = 48894 - std::count(merges.begin(), merges.end(), '\n');
  std::vector<std::string> symbols;
  for (char32_t c = 0x100; c < 0x144; c++) {
    symbols.push_back(data::encode_utf8(std::u32string(1, c)));
    symbols.push_back(symbols.back() + "</w>");
  }
  auto add = [&](const std::string& a, const std::string& b) {
    if (missing-- > 0) text += a + " " + b + line_end;
  };
  std::vector<std::string> pairs;
  for (size_t i = 0; i < symbols.size(); i += 2)
    for (size_t j = 0; j < symbols.size(); j++) {
      add(symbols[i], symbols[j]);
      if (j % 2 == 0) pairs.push_back(symbols[i] + symbols[j]);
    }
  for (size_t i = 0; missing > 0; i++)
    for (size_t j = 0; j < symbols.size(); j++) add(pairs[i], symbols[j]);
  return text;
}

}  // namespace pupil::test

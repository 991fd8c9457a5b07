#include "clip_tokenizer.h"

#include <algorithm>
#include <queue>

#include "file.h"
#include "gzip.h"
#include "unicode.h"

namespace pupil::data {
namespace {

constexpr int64_t kMerges = ClipTokenizer::kStart - 512;
constexpr std::string_view kWordEnd = "</w>";
constexpr size_t kLargestFile = 16 << 20;  // OpenAI's has 3.1 MB

// Every byte has a visible character: its own in Latin-1, or one from U+0100 on. Ids follow: first
// the 188 bytes that stand for themselves, then the others.
bool stands_for_itself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::string& path) {
  std::unordered_map<std::string, int64_t> ids;
  int64_t next = 0;
  for (bool itself : {true, false})
    for (int byte = 0; byte < 256; byte++)
      if (stands_for_itself(byte) == itself) {
        std::string symbol = encode_utf8(std::u32string(1, char32_t(itself ? byte : 68 + next)));
        byte_id_[byte] = ids[symbol] = next;
        ids[symbol + std::string(kWordEnd)] = 256 + next++;
      }

  const std::string text = GzipFile(path, "a vocabulary of CLIP").rest(kLargestFile);
  auto refuse = [&](int64_t line, const auto&... what) {
    fail_input("tokenizer: ", path, ", line ", line, ": ", what...,
               "; expected OpenAI's bpe_simple_vocab_16e6.txt.gz or Hugging Face's merges.txt");
  };
  size_t at = 0;
  auto next_line = [&] {
    size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line(text.data() + at, end - at);
    at = std::min(end + 1, text.size());
    if (line.ends_with('\r')) line.remove_suffix(1);
    return line;
  };
  if (next_line().find("#version") == std::string_view::npos) refuse(1, "no \"#version\"");
  for (int64_t rank = 0; rank < kMerges; rank++) {
    if (at == text.size())
      refuse(rank + 2, "the file ends after ", rank, " of ", kMerges, " merges");
    std::string_view line = next_line();
    size_t gap = std::min(line.find(' '), line.size());
    std::string left(line.substr(0, gap)), right(line.substr(std::min(gap + 1, line.size())));
    auto first = ids.find(left), second = ids.find(right);
    if (first == ids.end() || second == ids.end())
      refuse(rank + 2, "\"", printable(line), "\" is not a pair of earlier symbols");
    merges_[uint64_t(first->second) << 32 | uint64_t(second->second)] = 512 + rank;
    if (!ids.emplace(left + right, 512 + rank).second)
      refuse(rank + 2, "\"", printable(line), "\" makes a symbol that there is already");
  }
}

int64_t ClipTokenizer::merged(int64_t left, int64_t right) const {
  auto at = merges_.find(uint64_t(left) << 32 | uint64_t(right));
  return at == merges_.end() ? -1 : at->second;
}

// Again and again all pairs of lowest rank become one symbol, from left to right.
void ClipTokenizer::append_word(std::string_view bytes, std::vector<int64_t>& ids) const {
  const int64_t n = int64_t(bytes.size());
  std::vector<int64_t> symbols, next, previous;
  for (int64_t i = 0; i < n; i++) {
    symbols.push_back(byte_id_[uint8_t(bytes[size_t(i)])] + (i == n - 1 ? 256 : 0));
    next.push_back(i + 1);
    previous.push_back(i - 1);
  }
  auto merge_at = [&](int64_t i) {  // -1 also where a symbol has gone into its neighbour
    return i < 0 || symbols[i] < 0 || next[i] == n ? -1 : merged(symbols[i], symbols[next[i]]);
  };
  using Place = std::pair<int64_t, int64_t>;  // the symbol that it would become, its position
  std::priority_queue<Place, std::vector<Place>, std::greater<>> pairs;
  std::vector<int64_t> changed(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) changed[i] = i;
  for (;;) {
    for (int64_t i : changed)
      if (int64_t symbol = merge_at(i); symbol >= 0) pairs.emplace(symbol, i);
    changed.clear();
    if (pairs.empty()) break;
    for (int64_t symbol = pairs.top().first; !pairs.empty() && pairs.top().first == symbol;) {
      int64_t i = pairs.top().second;
      pairs.pop();
      if (merge_at(i) != symbol) continue;
      symbols[i] = symbol;
      symbols[next[i]] = -1;
      next[i] = next[next[i]];
      if (next[i] < n) previous[next[i]] = i;
      changed.push_back(previous[i]);
      changed.push_back(i);
    }
  }
  for (int64_t symbol : symbols)
    if (symbol >= 0) ids.push_back(symbol);
}

namespace {

// HTML references resolved twice, white space as single spaces, lower case.
std::u32string cleaned(std::u32string_view text) {
  std::u32string plain = html_unescape(html_unescape(text)), words;
  for (size_t i = 0; i < plain.size(); i++)
    if (!is_space(plain[i])) {
      if (i && is_space(plain[i - 1]) && !words.empty()) words += U' ';
      words += plain[i];
    }
  return lower_case(words);
}

// Lower-case text against lower-case text, ignoring case: "ſ" is an "s" too.
bool begins_with(std::u32string_view text, std::u32string_view beginning) {
  return text.size() >= beginning.size() &&
         std::equal(beginning.begin(), beginning.end(), text.begin(),
                    [](char32_t a, char32_t b) { return a == b || (a == U's' && b == U'ſ'); });
}

// Between tokens. The reference's pattern ignores case and so leaves out U+0345 as well: it is no
// letter, but its upper case is.
bool separates(char32_t c) { return is_space(c) || c == 0x345; }

// The length of the first token of `text`, which begins with no separator.
size_t token_length(std::u32string_view text) {
  for (std::u32string_view word :
       {U"<start_of_text>", U"<end_of_text>", U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
    if (begins_with(text, word)) return word.size();
  if (is_number(text[0])) return 1;
  auto other_kind = [letters = is_letter(text[0])](char32_t c) {
    return is_letter(c) != letters || is_number(c) || separates(c);
  };
  return size_t(std::find_if(text.begin(), text.end(), other_kind) - text.begin());
}

}  // namespace

std::vector<int64_t> ClipTokenizer::encode(std::string_view text, int64_t context) const {
  if (context < 1) fail_input("tokenizer: a context length of ", context, "; at least 1 is needed");
  std::optional<std::u32string> points = decode_utf8(text);
  if (!points) fail_input("tokenizer: the text \"", printable(text), "\" is not UTF-8");
  const std::u32string clean = cleaned(*points);
  std::vector<int64_t> ids{kStart};
  for (std::u32string_view left = clean; !left.empty();) {
    if (separates(left[0])) {
      left.remove_prefix(1);
      continue;
    }
    std::u32string_view token = left.substr(0, token_length(left));
    left.remove_prefix(token.size());
    if (token == U"<start_of_text>")
      ids.push_back(kStart);
    else if (token == U"<end_of_text>")
      ids.push_back(kEnd);
    else
      append_word(encode_utf8(token), ids);
  }
  ids.push_back(kEnd);
  if (int64_t(ids.size()) > context) {
    ids.resize(size_t(context));
    ids.back() = kEnd;
  }
  return ids;
}

Tensor ClipTokenizer::tokens(std::span<const std::string> texts, int64_t context) const {
  Tensor all = zeros({int64_t(texts.size()), context}, DType::i64);
  for (size_t i = 0; i < texts.size(); i++) {
    std::vector<int64_t> ids = encode(texts[i], context);
    std::copy(ids.begin(), ids.end(), all.data<int64_t>() + int64_t(i) * context);
  }
  return all;
}

}  // namespace pupil::data

// The tokenizer of CLIP (Radford et al. 2021, arXiv 2103.00020, section 2.4): byte-pair encoding of
// lower-cased text, as open_clip's SimpleTokenizer does it without ftfy's repair of broken text
// (clean_name.h repairs class names).
#pragma once
#include <unordered_map>

#include "../tensor/tensor.h"

namespace pupil::data {

class ClipTokenizer {
 public:
  static constexpr int64_t kStart = 49406, kEnd = 49407, kContext = 77;

  // OpenAI's bpe_simple_vocab_16e6.txt.gz, or the same unpacked, or Hugging Face's merges.txt.
  // Throws InputError for any other file.
  explicit ClipTokenizer(const std::string& path);

  // kStart, the text, kEnd. What is longer than `context` ids is cut, with kEnd last. Throws
  // InputError for text that is not UTF-8 and for context < 1.
  std::vector<int64_t> encode(std::string_view text, int64_t context = kContext) const;
  // i64 (texts, context), filled up with zeros.
  Tensor tokens(std::span<const std::string> texts, int64_t context = kContext) const;

 private:
  // Ids are those of the vocabulary: 256 bytes, the same at the end of a word, then one for each
  // merge of two symbols in the order of their ranks.
  int64_t merged(int64_t left, int64_t right) const;  // -1: they do not merge
  void append_word(std::string_view bytes, std::vector<int64_t>& ids) const;

  int64_t byte_id_[256];
  std::unordered_map<uint64_t, int64_t> merges_;  // left << 32 | right
};

}  // namespace pupil::data

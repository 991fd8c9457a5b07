// CLIP's tokenizer: reference lines, Unicode rules, damaged vocabularies, `pupil tokenize`.
#include <zlib.h>

#include <nlohmann/json.hpp>

#include "clip_vocabulary.h"
#include "data/clip_tokenizer.h"

namespace pupil {
namespace {

using data::ClipTokenizer;
using Ids = std::vector<int64_t>;
using test::clip_vocabulary;
using test::expect_refused;

std::string real_vocabulary() {
  return test::shared_folder() + "/data/clip/bpe_simple_vocab_16e6.txt.gz";
}

TEST(Tokenizer, ReferenceLines) {
  PUPIL_NEEDS_SHARED();
  ClipTokenizer tokenizer(real_vocabulary());
  std::ifstream file(test::shared_folder() + "/reference/tokenizer/clip_bpe.jsonl");
  int lines = 0, as_written = 0;
  for (std::string line; std::getline(file, line); lines++) {
    nlohmann::json j = nlohmann::json::parse(line);
    int64_t context = j.at("context_length");
    Ids expected = j.at("ids");
    EXPECT_EQ(tokenizer.encode(j.at("cleaned").get<std::string>(), context), expected) << line;
    if (j.at("ftfy_changes")) continue;
    EXPECT_EQ(tokenizer.encode(j.at("text").get<std::string>(), context), expected) << line;
    as_written++;
  }
  EXPECT_EQ(lines, 150);
  EXPECT_EQ(as_written, 123);
}

TEST(Tokenizer, Tokens) {
  PUPIL_NEEDS_SHARED();
  ClipTokenizer tokenizer(real_vocabulary());
  std::string words;
  for (int i = 0; i < 100; i++) words += "dog ";
  Tensor t = tokenizer.tokens(std::vector<std::string>{"café", words, ""});
  ASSERT_EQ(t.shape(), (Shape{3, 77}));
  const int64_t* id = t.data<int64_t>();
  EXPECT_EQ(Ids(id, id + 4), (Ids{49406, 15304, 49407, 0}));
  EXPECT_EQ(Ids(id + 77 + 74, id + 2 * 77 + 3), (Ids{1929, 1929, 49407, 49406, 49407, 0}));
  // A million letters without a space.
  EXPECT_EQ(tokenizer.encode(std::string(1 << 20, 'a')).size(), 77u);
}

TEST(Tokenizer, MergesInTheOrderOfTheirRanks) {
  test::TemporaryFolder folder;
  for (const char* end : {"\n", "\r\n"}) {
    test::write_text(folder / "merges.txt", clip_vocabulary("b c\na b\na a\nbc d</w>\n", end));
    ClipTokenizer t(folder / "merges.txt");
    auto byte = [](char c) { return int64_t(c - 33); };
    // "a a" from left to right; "b c" before "a b".
    EXPECT_EQ(t.encode("aaaaax"), (Ids{49406, 514, 514, byte('a'), byte('x') + 256, 49407}));
    EXPECT_EQ(t.encode("abcd"), (Ids{49406, byte('a'), 515, 49407}));
    EXPECT_EQ(t.encode("abx"), (Ids{49406, 513, byte('x') + 256, 49407}));
    EXPECT_EQ(t.encode("<START_OF_TEXT> <end_of_text>"), (Ids{49406, 49406, 49407, 49407}));
    EXPECT_EQ(t.encode("12", 3), (Ids{49406, byte('1') + 256, 49407}));
    EXPECT_EQ(t.encode("12", 1), Ids{49407});
    expect_refused([&] { t.encode("\xff"); }, {"not UTF-8"});
    expect_refused([&] { t.encode("a", 0); }, {"context length of 0"});
  }
}

TEST(Tokenizer, DamagedVocabularies) {
  test::TemporaryFolder folder;
  std::string path = folder / "vocabulary", good = clip_vocabulary("");
  auto refused = [&](const std::string& content, std::initializer_list<std::string> words) {
    test::write_text(path, content);
    expect_refused([&] { ClipTokenizer t(path); }, {path});
    expect_refused([&] { ClipTokenizer t(path); }, words);
  };
  expect_refused([&] { ClipTokenizer t(folder / "none"); }, {"none", "No such file"});
  expect_refused([&] { ClipTokenizer t(folder.path()); }, {"folder", "a vocabulary of CLIP"});
  refused("", {"line 1", "#version"});
  refused("a photo of a cat\n", {"line 1", "merges.txt"});
  refused("#version\ni n\n", {"line 3", "ends after 1 of 48894 merges"});
  refused("#version\ni n\nin g h\n", {"line 3", "not a pair"});
  refused("#version\ni n\n\n", {"line 3", "not a pair"});
  refused("#version\ni n\ning t\n", {"line 3", "not a pair of earlier symbols"});
  refused("#version\ni n\ni n\n", {"line 3", "already"});
  refused("#version\n\x01\xff\n", {"line 2", "\\x01"});
  refused(good.substr(0, good.size() - 200), {"ends after"});
  gzFile packed = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(packed, good.data(), unsigned(good.size())), int(good.size()));
  ASSERT_EQ(gzclose(packed), Z_OK);
  ClipTokenizer fine(path);
  std::string bytes = test::read_text(path);
  refused(bytes.substr(0, bytes.size() / 2), {"ends too early"});
  bytes[bytes.size() / 2] ^= 0x55;
  refused(bytes, {"fetch the file again"});
  packed = gzopen(path.c_str(), "wb");  // a small file that unpacks to 32 MiB
  std::string line(1 << 20, 'a');
  for (int i = 0; i < 32; i++) gzwrite(packed, line.data(), unsigned(line.size()));
  ASSERT_EQ(gzclose(packed), Z_OK);
  expect_refused([&] { ClipTokenizer t(path); }, {"longer than"});
}

std::string lower(const std::string& text) {
  return data::encode_utf8(data::lower_case(*data::decode_utf8(text)));
}

TEST(Unicode, LowerCase) {
  EXPECT_EQ(lower("ÀÉÎ ŠKODA ǅ Ⅷ Ⓐ ẞ K Å"), "àéî škoda ǆ ⅷ ⓐ ß k å");
  EXPECT_EQ(lower("İ"), "i\u0307");
  EXPECT_EQ(lower("ΟΔΥΣΣΕΥΣ ΣΑΣ. Σ ΑΣ'Α ΑΣ'' ªΣ \U0001F130Σ ⅠΣ 1Σ"),
            "οδυσσευς σας. σ ασ'α ας'' ªς \U0001F130ς ⅰς 1σ");
}

TEST(Unicode, DecodesOnlyUtf8) {
  for (const char* bad : {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xc3", "a\xe2\x82", "\xff"})
    EXPECT_FALSE(data::decode_utf8(bad)) << bad;
  std::string good = "\0a\x7fé\u0800\uffff\U0010ffff";
  EXPECT_EQ(data::encode_utf8(*data::decode_utf8(good)), good);
}

TEST(Unicode, HtmlReferences) {
  auto unescape = [](const std::string& text) {
    return data::encode_utf8(data::html_unescape(*data::decode_utf8(text)));
  };
  for (auto [text, plain] : std::initializer_list<std::pair<std::string, std::string>>{
           {"&amp;amp; &lt;b&gt;", "&amp; <b>"},
           {"&copy &copyx &notit; &notin; &rock&roll", "© ©x ¬it; ∉ &rock&roll"},
           {"&acE; &CounterClockwiseContourIntegral;", "\u223e\u0333 ∳"},
           {"&#39;&#x27;&#X27 &#8364x", "'''\u0020€x"},
           {"&#0;&#128;&#129;&#xD800;&#x110000;&#99999999999999999999;",
            "\ufffd€\u0081\ufffd\ufffd\ufffd"},
           {"a&#1;b&#xFDD0;c&#xFFFF;d&#127;e&#11;f&#12;", "abcdef\f"},
           {"& && &; &# &#; &#x &#xg &é; &am", "& && &; &# &#; &#x &#xg &é; &am"}})
    EXPECT_EQ(unescape(text), plain) << text;
}

TEST(TokenizeProgram, TextsAndLines) {
  test::TemporaryFolder folder;
  test::write_text(folder / "vocab", clip_vocabulary("d o\ndo g</w>\n"));
  test::Outcome texts = test::run_program({"tokenize", "--vocab", "vocab", "Dog  DOG", ""}, folder);
  EXPECT_EQ(texts.code, 0) << texts.err;
  EXPECT_EQ(texts.out, "49406 513 513 49407\n49406 49407\n");
  auto lines = [&](const std::string& input) {
    test::write_text(folder / "in", input);
    std::string command = concat("cd ", folder.path(), " && '", std::getenv("PUPIL_PROGRAM"),
                                 "' tokenize --vocab vocab --jsonl <in >out 2>err");
    int status = std::system(command.c_str());
    return test::Outcome{WEXITSTATUS(status), test::read_text(folder / "out"),
                         test::read_text(folder / "err")};
  };
  test::Outcome fine = lines(
      "{\"text\": \"dog dog\", \"context_length\": 3}\n{\"ids\": 0, \"text\": "
      "\"\\u0130\\u0345\"}\n");
  EXPECT_EQ(fine.code, 0) << fine.err;
  EXPECT_EQ(fine.out, "{\"ids\":[49406,513,49407]}\n{\"ids\":[49406,328,136,485,49407]}\n");
  for (const char* bad :
       {"{\"text\": 1}", "[]", "{", "", "{\"text\": \"a\", \"context_length\": 0}",
        "{\"text\": \"a\", \"context_length\": 2.5}", "{\"text\": \"\\ud800\"}",
        "{\"text\": \"\xff\"}", "{\"context_length\": 77}"}) {
    test::Outcome refused = lines(std::string(bad) + "\n");
    EXPECT_EQ(refused.code, 2) << bad;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
  EXPECT_EQ(test::run_program({"tokenize", "--vocab", "vocab"}, folder).code, 2);
  EXPECT_EQ(test::run_program({"tokenize", "--vocab", "vocab", "--jsonl", "a"}, folder).code, 2);
  EXPECT_EQ(test::run_program({"tokenize", "a"}, folder).code, 2);
}

}  // namespace
}  // namespace pupil

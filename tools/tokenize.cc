#include "tokenize.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/clip_tokenizer.h"

namespace pupil {
namespace {

struct TokenizeArguments {
  std::string vocabulary;
  std::vector<std::string> texts;
  bool as_jsonl = false;
};

void tokenize_lines(const data::ClipTokenizer& tokenizer) {
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    number++;
    nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    auto text = j.find("text"), context = j.find("context_length");
    if (!j.is_object() || text == j.end() || !text->is_string() ||
        (context != j.end() && !context->is_number_integer()))
      fail_input("tokenize: line ", number,
                 " is no JSON object {\"text\": \"...\", \"context_length\": 77}");
    int64_t length = context == j.end() ? data::ClipTokenizer::kContext : context->get<int64_t>();
    std::cout << nlohmann::json{{"ids", tokenizer.encode(text->get<std::string>(), length)}}
              << "\n";
  }
}

void tokenize(const TokenizeArguments& arguments) {
  if (arguments.as_jsonl != arguments.texts.empty())
    fail_input("tokenize: give texts as arguments, or --jsonl and lines at standard input");
  data::ClipTokenizer tokenizer(arguments.vocabulary);
  if (arguments.as_jsonl) return tokenize_lines(tokenizer);
  for (const std::string& text : arguments.texts) {
    const char* gap = "";
    for (int64_t id : tokenizer.encode(text)) std::cout << std::exchange(gap, " ") << id;
    std::cout << "\n";
  }
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenize", "text as the ids of CLIP's vocabulary");
  command->footer(
      "Example:\n  pupil tokenize --vocab bpe_simple_vocab_16e6.txt.gz \"a photo of a cat.\"");
  auto a = std::make_shared<TokenizeArguments>();
  command->add_option("--vocab", a->vocabulary, "bpe_simple_vocab_16e6.txt.gz or merges.txt")
      ->required();
  command->add_option("TEXT", a->texts, "a line of ids for each");
  command->add_flag("--jsonl", a->as_jsonl,
                    "lines {\"text\": ..., \"context_length\": ...} from standard input, lines "
                    "{\"ids\": [...]} out");
  command->callback([a] { tokenize(*a); });
}

}  // namespace pupil

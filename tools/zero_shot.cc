#include "zero_shot.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <set>

#include "../data/file.h"

namespace pupil {
namespace {

bool is_file(const std::string& path) {
  std::error_code none;
  return std::filesystem::is_regular_file(path, none);
}

std::string without_spaces_around(const std::string& text) {
  size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  return begin == text.npos ? "" : text.substr(begin, end - begin + 1);
}

}  // namespace

std::vector<std::string> read_names(const std::string& path) {
  data::MappedFile file(path);
  std::istringstream text(std::string(file.text()));
  std::vector<std::string> names;
  for (std::string line; std::getline(text, line);) {
    while (!line.empty() && std::isspace(uint8_t(line.back()))) line.pop_back();
    if (line.size() > 10 && line[0] == 'n' && line[9] == ' ' &&
        std::all_of(line.begin() + 1, line.begin() + 9,
                    [](char c) { return std::isdigit(uint8_t(c)); }))
      line.erase(0, 10);
    names.push_back(line);
  }
  while (!names.empty() && names.back().empty()) names.pop_back();
  return names;
}

void add_zero_shot_options(CLI::App& command, ZeroShotArguments& a) {
  command.add_option("--classes", a.classes,
                     "ask CLIP about these: a,b,c, or a file with one name a line");
  command
      .add_option_function<std::string>(
          "--template", [&a](const std::string& text) { a.templates.push_back(text); },
          "text with {} for a class name, or a file of such lines; several are averaged (default: "
          "\"a photo of a {}.\")")
      ->trigger_on_parse()
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->type_name("TEXT");
  command.add_option("--vocab", a.vocabulary,
                     "CLIP's vocabulary (default: merges.txt or bpe_simple_vocab_16e6.txt.gz "
                     "beside the weights)");
}

ZeroShot read_zero_shot(const ZeroShotArguments& a, const std::vector<std::string>& names) {
  ZeroShot texts;
  if (!a.given()) return texts;
  texts.vocabulary = a.vocabulary;
  if (a.classes.empty()) {
    texts.classes = names;
  } else if (is_file(a.classes)) {
    texts.classes = read_names(a.classes);
  } else {
    std::istringstream list(a.classes);
    for (std::string name; std::getline(list, name, ',');)
      texts.classes.push_back(without_spaces_around(name));
  }
  if (texts.classes.empty()) fail_input("--classes: name the classes, as a,b,c or in a file");
  std::set<std::string> seen;
  for (const std::string& name : texts.classes)
    if (name.empty() || !seen.insert(name).second)
      fail_input("--classes: \"", data::printable(name), "\" is ",
                 name.empty() ? "no name" : "there twice");
  if (!a.templates.empty()) texts.templates.clear();
  for (const std::string& given : a.templates) {
    std::vector<std::string> lines{given};
    if (given.find("{}") == given.npos && is_file(given)) lines = read_names(given);
    texts.templates.insert(texts.templates.end(), lines.begin(), lines.end());
  }
  return texts;
}

}  // namespace pupil

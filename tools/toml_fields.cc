#include "toml_fields.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <fstream>

#include "../data/file.h"
#include "run_folder.h"

namespace pupil::toml_fields {

std::string where(const toml::node& node, const std::string& file) {
  const toml::source_region& source = node.source();
  if (source.path && source.path->starts_with("--set")) return *source.path;
  return source.begin ? concat(file, ":", source.begin.line) : file;
}

toml::table parse_table(const std::string& text, const std::string& name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    fail_input(name, ":", error.source().begin.line, ": ", data::printable(error.description()));
  }
}

std::string read_text(const std::string& path) {
  if (std::filesystem::is_directory(path))
    fail_input("the configuration ", path, " is a folder; name a .toml file");
  std::ifstream file(path);
  std::stringstream text;
  if (!file || !(text << file.rdbuf()))
    fail_input("cannot read the configuration ", path, "; `pupil init > ", path, "` writes one");
  return text.str();
}

std::string beside(const std::string& path, const std::string& file) {
  return (std::filesystem::path(path).parent_path() / file).lexically_normal().string();
}

toml::table parse_with_recipe(const std::string& path) {
  toml::table own = parse_table(read_file(path), path);
  std::string recipe = own["reproduce"]["recipe"].value_or(std::string());
  own.erase("reproduce");
  if (recipe.empty()) return own;
  recipe = beside(path, recipe);
  toml::table root = parse_table(read_file(recipe), recipe);
  root.erase("reproduce");
  merge(root, std::move(own));
  return root;
}

void apply_setting(toml::table& root, const std::string& setting) {
  size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0)
    fail_input("--set ", setting, ": expected section.key=value");
  std::string text = setting.substr(equals + 1), source = "--set " + setting;
  toml::table parsed;
  try {
    parsed = toml::parse("value = " + text, source);
  } catch (const toml::parse_error&) {  // not TOML: a text without its quotes
    std::ostringstream quoted;
    quoted << "value = " << toml::value<std::string>(text);
    parsed = toml::parse(quoted.str(), source);
  }
  std::vector<std::string> path;
  std::istringstream parts(setting.substr(0, equals));
  for (std::string part; std::getline(parts, part, '.');) path.push_back(part);

  toml::node* at = &root;
  for (size_t i = 0; i < path.size(); i++) {
    bool last = i + 1 == path.size();
    if (toml::table* table = at->as_table()) {
      if (last) {
        std::move(*parsed.get("value")).visit([&](auto&& node) {
          table->insert_or_assign(path[i], std::move(node));
        });
        return;
      }
      if (!table->contains(path[i])) {
        if (i == 0 && (path[i] == "teacher" || path[i] == "method"))
          table->insert(path[i], toml::array());
        else
          table->insert(path[i], toml::table(toml::parse("", source)));  // knows where it is from
      }
      at = table->get(path[i]);
    } else if (toml::array* list = at->as_array(); list && !last) {
      toml::node* found = nullptr;
      for (size_t k = 0; k < list->size(); k++)
        if (toml::table* item = list->get(k)->as_table())
          if (path[i] == std::to_string(k) || path[i] == (*item)["name"].value_or(std::string()))
            found = item;
      if (!found && path[i] == std::to_string(list->size())) {
        list->push_back(toml::table());
        found = &list->back();
      }
      if (!found)
        fail_input(source, ": there is no ", path[i - 1], " \"", path[i],
                   "\"; use its name or its number from 0");
      at = found;
    } else {
      if (at->is_array())
        fail_input(source, ": ", path[i - 1], " is a list; write ", path[i - 1], ".0.", path[i],
                   " for its first");
      fail_input(source, ": ", path[i - 1], " is a value, not a section");
    }
  }
}

const toml::table* section_of(const toml::table& root, const char* name, const std::string& file) {
  const toml::node* node = root.get(name);
  if (!node) return nullptr;
  if (!node->is_table())
    fail_input(where(*node, file), ": ", name, " must be a section, as [", name, "]");
  return node->as_table();
}

std::vector<const toml::table*> list_of(const toml::table& root, const char* name,
                                        const std::string& file) {
  std::vector<const toml::table*> tables;
  const toml::node* node = root.get(name);
  if (!node) return tables;
  const toml::array* list = node->as_array();
  if (!list)
    fail_input(where(*node, file), ": ", name, " is a list: write [[", name,
               "]] with two brackets");
  for (const toml::node& item : *list) {
    if (!item.is_table())
      fail_input(where(item, file), ": every ", name, " is a table: write [[", name, "]]");
    tables.push_back(item.as_table());
  }
  return tables;
}

void require_sections(const toml::table& root, const std::vector<std::string>& known,
                      const std::string& file) {
  for (auto&& [key, node] : root) {
    std::string name(key.str());
    if (std::find(known.begin(), known.end(), name) == known.end())
      fail_input(where(node, file), ": unknown section ", name, "; the sections are ",
                 fmt::format("{}", fmt::join(known, ", ")));
  }
}

void check_seeds(const char* key, const std::vector<int64_t>& seeds, const std::string& file) {
  if (seeds.empty()) fail_input(file, ": ", key, " is empty");
  for (size_t i = 1; i < seeds.size(); i++)
    if (std::find(seeds.begin(), seeds.begin() + int64_t(i), seeds[i]) < seeds.begin() + int64_t(i))
      fail_input(file, ": ", key, " has ", seeds[i], " twice; a run of the same seed is the same");
}

void merge(toml::table& base, toml::table&& over) {
  for (auto&& [key, node] : over) {
    std::string name(key.str());  // clang 14 does not capture a structured binding
    toml::table* below = base[name].as_table();
    if (below && node.is_table())
      merge(*below, std::move(*node.as_table()));
    else
      node.visit([&](auto& value) { base.insert_or_assign(name, std::move(value)); });
  }
}

}  // namespace pupil::toml_fields

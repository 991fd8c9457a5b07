// TOML sections whose keys are declared once: a function gets a Reader or a Writer and calls it
// with name, field, help and limit of every key. Only .cc files include this.
#pragma once
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "../methods/method.h"

namespace pupil::toml_fields {

constexpr double kInf = std::numeric_limits<double>::infinity();

// What a value may be, beyond its type.
struct Any {};
struct Range {
  double low, high = kInf;
  bool low_open = false;
};
struct OneOf {
  std::vector<std::string> names;
};

// "kd.toml:12" or the setting of the command line that the node came from.
std::string where(const toml::node& node, const std::string& file);

// Throws InputError with the line for a text that is not TOML.
toml::table parse_table(const std::string& text, const std::string& name);
std::string read_text(const std::string& path);

// The file's table; of a reproduction, without [reproduce] and merged over its recipe's table.
toml::table parse_with_recipe(const std::string& path);
// `file` as a file at `path` names it.
std::string beside(const std::string& path, const std::string& file);

// Puts `value` at the dotted path of a "--set" argument; lists are addressed by number or name.
void apply_setting(toml::table& root, const std::string& setting);

// The table or the tables called `name`; null or none when absent, InputError when it is no table.
const toml::table* section_of(const toml::table& root, const char* name, const std::string& file);
std::vector<const toml::table*> list_of(const toml::table& root, const char* name,
                                        const std::string& file);
// InputError for a section of another name, with the nearest.
void require_sections(const toml::table& root, const std::vector<std::string>& known,
                      const std::string& file);

// InputError for no seed, or one that is there twice.
void check_seeds(const char* key, const std::vector<int64_t>& seeds, const std::string& file);

// The tables of `over` replace or extend those of `base`; lists are replaced whole.
void merge(toml::table& base, toml::table&& over);

template <class T>
constexpr const char* kTypeName = "";
template <>
inline constexpr const char* kTypeName<bool> = "true or false";
template <>
inline constexpr const char* kTypeName<int64_t> = "a whole number";
template <>
inline constexpr const char* kTypeName<double> = "a number";
template <>
inline constexpr const char* kTypeName<std::string> = "a text in quotes";

// One table: takes the keys that are declared, then complains about any other.
class Reader {
 public:
  Reader(const toml::table& table, std::string section, const std::string& file)
      : table_(table), section_(std::move(section)), file_(file) {}

  template <class T, class Limit = Any>
  void operator()(const char* key, T& field, const char*, const Limit& limit = {}) {
    known_.push_back(key);
    if (const toml::node* node = table_.get(key)) read(*node, key, field, limit);
  }

  void known(std::string key) { known_.push_back(std::move(key)); }

  void finish() const {
    for (auto&& [key, node] : table_) {
      std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) == known_.end())
        fail_input(where(node, file_), ": unknown key ", path(name),
                   did_you_mean(name, known_, path("")));
    }
  }

 private:
  std::string path(const std::string& key) const {
    return section_.empty() ? key : concat(section_, ".", key);
  }

  template <class T, class Limit>
  void read(const toml::node& node, const std::string& key, T& field, const Limit& limit) const {
    std::optional<T> value;
    if constexpr (std::is_same_v<T, double>) {
      if (node.is_number()) value = node.value<double>();
    } else {
      value = node.value_exact<T>();
    }
    if (!value) fail_input(where(node, file_), ": ", path(key), " must be ", kTypeName<T>);
    check(node, key, *value, limit);
    field = *value;
  }

  template <class Limit>
  void read(const toml::node& node, const std::string& key, int& field, const Limit& limit) const {
    int64_t value = field;
    read(node, key, value, limit);
    field = int(value);
  }

  template <class T, class Limit>
  void read(const toml::node& node, const std::string& key, std::optional<T>& field,
            const Limit& limit) const {
    T value{};
    read(node, key, value, limit);
    field = value;
  }

  template <class T, class Limit>
  void read(const toml::node& node, const std::string& key, std::vector<T>& field,
            const Limit& limit) const {
    field.clear();
    const toml::array* list = node.as_array();
    if (!list) fail_input(where(node, file_), ": ", path(key), " must be a list, as [...]");
    for (const toml::node& item : *list) {
      T value{};
      read(item, key, value, limit);
      field.push_back(value);
    }
  }

  template <class T>
  void check(const toml::node& node, const std::string& key, const T& value,
             const Range& range) const {
    double x = double(value);
    if (!std::isfinite(x) || x < range.low || x > range.high || (range.low_open && x == range.low))
      fail_input(where(node, file_), ": ", path(key), " is ", value, "; it must be ",
                 range.low_open ? "above " : "at least ", range.low,
                 range.high < kInf ? concat(" and at most ", range.high) : "");
  }
  void check(const toml::node& node, const std::string& key, const std::string& value,
             const OneOf& choices) const {
    if (std::find(choices.names.begin(), choices.names.end(), value) != choices.names.end()) return;
    std::string list;
    for (const std::string& name : choices.names) list += (list.empty() ? "" : ", ") + name;
    fail_input(where(node, file_), ": ", path(key), " is \"", value, "\"; it is one of ", list);
  }
  template <class T>
  void check(const toml::node& node, const std::string& key, const T& value, const Any&) const {
    if constexpr (std::is_same_v<T, double>)
      if (!std::isfinite(value))
        fail_input(where(node, file_), ": ", path(key), " is not a finite number");
  }

  const toml::table& table_;
  std::string section_;
  const std::string& file_;
  std::vector<std::string> known_;
};

class Writer {
 public:
  Writer(std::ostream& out, bool commented) : out_(out), commented_(commented) {}

  template <class T, class Limit = Any>
  void operator()(const std::string& key, const T& field, const std::string& help,
                  const Limit& = {}) {
    std::ostringstream line;
    line << key << " = ";
    write(line, field);
    out_ << line.str();
    if (commented_ && !help.empty()) {
      size_t column = line.str().size();
      out_ << std::string(column < 34 ? 34 - column : 2, ' ') << "# " << help;
    }
    out_ << "\n";
  }

  void section(const std::string& header, const std::string& help = "") {
    out_ << "\n" << header;
    if (commented_ && !help.empty()) out_ << "  # " << help;
    out_ << "\n";
  }

 private:
  static void write(std::ostream& out, bool value) { out << (value ? "true" : "false"); }
  static void write(std::ostream& out, int64_t value) { out << value; }
  static void write(std::ostream& out, int value) { out << value; }
  static void write(std::ostream& out, double value) {
    char digits[32];  // the shortest text that reads back to the same number
    std::string text(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
    out << text << (text.find_first_of(".e") == std::string::npos ? ".0" : "");
  }
  static void write(std::ostream& out, const std::string& value) {
    toml::value<std::string> node(value);
    out << toml::toml_formatter(node, toml::format_flags::none);
  }
  template <class T>
  static void write(std::ostream& out, const std::vector<T>& list) {
    out << "[";
    for (size_t i = 0; i < list.size(); i++) {
      if (i) out << ", ";
      write(out, list[i]);
    }
    out << "]";
  }
  static void write(std::ostream& out, const std::optional<double>& value) {
    write(out, value.value_or(1));
  }
  static void write(std::ostream& out, const methods::Value& value) {
    std::visit([&](const auto& v) { write(out, v); }, value);
  }

  std::ostream& out_;
  bool commented_;
};

}  // namespace pupil::toml_fields

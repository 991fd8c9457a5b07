#include "../tensor/launch.h"
#include "method.h"

namespace pupil::methods {

// The built-in methods: one function per file of this folder, named here once. (A static object in
// each file would be dropped by the linker from a static library.)
Method none_method();
Method kd_method();
Method aft_method();

namespace {

std::map<std::string, Method>& registry() {
  static std::map<std::string, Method> methods = [] {
    std::map<std::string, Method> list;
    for (auto make : {none_method, kd_method, aft_method}) {
      Method method = make();
      std::string name = method.name;
      list.emplace(name, std::move(method));
    }
    return list;
  }();
  return methods;
}

const char* type_of(const Value& value) {
  constexpr const char* names[] = {"true or false", "an integer", "a number", "a text"};
  return names[value.index()];
}

// A TOML integer is a fine number; nothing else converts.
std::optional<Value> convert(const Value& value, const Value& as) {
  if (value.index() == as.index()) return value;
  if (std::holds_alternative<int64_t>(value) && std::holds_alternative<double>(as))
    return double(std::get<int64_t>(value));
  return {};
}

template <class T>
const T& get(const std::map<std::string, Value, std::less<>>& values, std::string_view name) {
  auto at = values.find(name);
  PUPIL_CHECK(at != values.end() && std::holds_alternative<T>(at->second), "options: no option '",
              name, "' of this type was declared");
  return std::get<T>(at->second);
}

}  // namespace

Options::Options(const std::vector<Option>& declared) {
  for (const Option& option : declared) values_[option.name] = option.value;
}

void Options::set(const std::string& name, const Value& value) {
  auto at = values_.find(name);
  if (at == values_.end()) {
    std::vector<std::string> names;
    for (auto& [key, unused] : values_) names.push_back(key);
    if (names.empty()) fail_input("option '", name, "': this method has no options");
    fail_input("unknown option '", name, "': did you mean '", nearest_name(name, names), "'?");
  }
  auto converted = convert(value, at->second);
  if (!converted)
    fail_input("option '", name, "' must be ", type_of(at->second), ", got ", type_of(value));
  at->second = *converted;
}

bool Options::flag(std::string_view name) const { return get<bool>(values_, name); }
int64_t Options::integer(std::string_view name) const { return get<int64_t>(values_, name); }
double Options::number(std::string_view name) const { return get<double>(values_, name); }
const std::string& Options::text(std::string_view name) const {
  return get<std::string>(values_, name);
}

template <class T>
struct CountNonFinite {
  const T* x;
  int64_t* count;
  int64_t columns;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    int64_t bad = team.reduce(columns, int64_t(0), Add{}, [&](int64_t i) {
      auto v = acc_t<T>(x[row * columns + i]);
      return int64_t(!(v - v == 0));  // NaN for NaN and for infinities
    });
    team.each(1, [&](int64_t) { count[row] = bad; });
  }
};

void require_finite(const char* loss, const char* what, const Tensor& values) {
  if (values.numel() == 0) return;
  Tensor x = values.detach().contiguous();
  int64_t columns = x.rank() ? x.dim(-1) : 1, n = x.numel() / columns;
  Tensor counts = empty({n}, DType::i64, x.device());
  dispatch(x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    rows(x.device(), n, CountNonFinite<T>{x.data<T>(), counts.data<int64_t>(), columns}, columns);
  });
  std::vector<double> bad = counts.values();
  for (size_t row = 0; row < bad.size(); row++)
    PUPIL_CHECK(bad[row] == 0, loss, ": ", what, " ", values.shape(), " hold ", bad[row],
                " NaN or infinite values in row ", row);
}

void add_method(Method method) {
  PUPIL_CHECK(!method.name.empty() && method.make, "add_method: a method needs a name and `make`");
  std::string name = method.name;
  bool added = registry().emplace(name, std::move(method)).second;
  PUPIL_CHECK(added, "add_method: there is already a method '", name, "'");
}

const Method& find_method(const std::string& name) {
  auto at = registry().find(name);
  if (at != registry().end()) return at->second;
  std::vector<std::string> names;
  for (auto& [key, unused] : registry()) names.push_back(key);
  fail_input("unknown method '", name, "': did you mean '", nearest_name(name, names), "'?");
}

std::vector<const Method*> list_methods() {
  std::vector<const Method*> list;
  for (auto& [name, method] : registry()) list.push_back(&method);
  return list;
}

}  // namespace pupil::methods

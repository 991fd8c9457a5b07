#include "../tensor/launch.h"
#include "method.h"

namespace pupil::methods {

// The built-in methods: one function per file of this folder, named here once. (A static object in
// each file would be dropped by the linker from a static library.)
Method none_method();
Method kd_method();
Method aft_method();
Method aft_no_kernel_method();
Method kernel_kd_method();
Method kd_feature_method();
Method rkd_method();
Method factor_transfer_method();
Method btuning_method();
Method transmiter_pipeline();
Method procrustes_pipeline();
Method zero_shot_pipeline();
Method auxiliary_classes_pipeline();
Method eft_pipeline();
Method tip_adapter_pipeline();
Method linear_probe_pipeline();

namespace {

std::map<std::string, Method>& registry() {
  static std::map<std::string, Method> methods = [] {
    std::map<std::string, Method> list;
    for (auto make : {none_method, kd_method, aft_method, aft_no_kernel_method, kernel_kd_method,
                      kd_feature_method, rkd_method, factor_transfer_method, btuning_method}) {
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
    fail_input("unknown option '", name, "'", did_you_mean(name, names));
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

double at_least_zero(const Options& options, std::string_view name) {
  double value = options.number(name);
  if (!(value >= 0) || std::isinf(value)) fail_input(name, " must be finite and >= 0, got ", value);
  return value;
}

double above_zero(const Options& options, std::string_view name) {
  double value = options.number(name);
  if (!(value > 0) || std::isinf(value)) fail_input(name, " must be finite and > 0, got ", value);
  return value;
}

int64_t total_width(const Setup& setup) {
  int64_t total = 0;
  for (int64_t width : setup.teacher_widths) {
    if (width < 1)
      fail_input("a teacher gives no features (width ", width, "); store them with pupil features ",
                 "--tap features");
    total += width;
  }
  return total;
}

nn::Group own_group(const nn::Scope& scope, double lr) {
  nn::Group group{{}, lr, 0};
  for (const nn::Param& p : scope.store.params())
    if (!p.buffer && p.name.starts_with(scope.path + ".")) group.names.push_back(p.name);
  return group;
}

std::vector<std::string> idle_warnings(const Setup& setup) {
  if (setup.batch != 1 && setup.batch != 2) return {};
  return {concat("a batch of ", setup.batch, " leaves the regulariser constant: it compares ",
                 "samples with each other, and two are always opposite")};
}

Tensor teacher_features(const char* method, const Step& step) {
  std::vector<Tensor> parts;
  for (const Teacher& teacher : step.teachers) {
    if (!teacher.features)
      fail_input(method, ": teacher '", teacher.name,
                 "' gives no features; store them or choose another method");
    parts.push_back(teacher.features.detach().to(acc_dtype(teacher.features.dtype())));
  }
  return parts.size() == 1 ? parts[0] : cat(parts, 1);
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
  for (const Method* pipeline : list_pipelines())
    if (pipeline->name == name)
      fail_input("method '", name,
                 "' is no loss of a training run; `pupil transmiter` computes it");
  std::vector<std::string> names;
  for (auto& [key, unused] : registry()) names.push_back(key);
  fail_input("unknown method '", name, "'", did_you_mean(name, names));
}

std::vector<const Method*> list_methods() {
  std::vector<const Method*> list;
  for (auto& [name, method] : registry()) list.push_back(&method);
  return list;
}

std::vector<const Method*> list_pipelines() {
  static const std::vector<Method> pipelines = {
      transmiter_pipeline(),        procrustes_pipeline(), zero_shot_pipeline(),
      auxiliary_classes_pipeline(), eft_pipeline(),        tip_adapter_pipeline(),
      linear_probe_pipeline()};
  std::vector<const Method*> list;
  for (const Method& p : pipelines) list.push_back(&p);
  return list;
}

}  // namespace pupil::methods

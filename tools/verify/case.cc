#include "case.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "../../autograd/autograd.h"

namespace pupil::verify {

using nlohmann::json;

struct Case::Attributes {
  json values, tolerance;
};

namespace {

Shape shape_of(const json& list) {
  std::vector<int64_t> dims = list.get<std::vector<int64_t>>();
  return Shape(std::span<const int64_t>(dims));
}

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// Value i of a parameter by the rule "hash-v1" of the catalogue of the CIFAR networks.
struct HashedValue {
  static constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
  uint64_t base;
  double low, high;

  HashedValue(const std::string& name, const Shape& shape, uint64_t seed) {
    uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    for (char c : name) hash = (hash ^ uint8_t(c)) * 0x100000001b3ull;
    base = hash ^ (seed * kGolden);
    auto ends_with = [&](std::string_view end) { return std::string_view(name).ends_with(end); };
    low = -0.3;
    high = 0.3;
    if (ends_with("running_mean")) {
      low = -0.2;
      high = 0.2;
    } else if (ends_with("running_var")) {
      low = 0.5;
      high = 1.5;
    } else if (shape.rank >= 2) {
      high = std::sqrt(6 / double(shape.numel() / shape[0]));
      low = -high;
    } else if (ends_with("weight")) {
      low = 0.25;
      high = 0.75;
    }
  }

  float operator()(int64_t i) const {
    uint64_t x = base + uint64_t(i + 1) * kGolden;  // splitmix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    return float(low + (high - low) * (double(x >> 40) * 0x1p-24));
  }
};

// Some tensors of a case as a source of parameters.
class Parameters : public data::Weights {
 public:
  Parameters(std::shared_ptr<const data::Weights> file, const std::string& prefix)
      : file_(std::move(file)), prefix_(prefix) {
    for (const data::TensorInfo& info : file_->list())
      if (starts_with(info.name, prefix))
        list_.push_back({info.name.substr(prefix.size()), info.shape, info.dtype});
  }
  Parameters(std::shared_ptr<const data::Weights> file, const json& shapes, uint64_t seed)
      : file_(std::move(file)), hashed_(true), seed_(seed) {
    for (auto& [name, dims] : shapes.items()) list_.push_back({name, shape_of(dims), "F32"});
  }
  const std::vector<data::TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override {
    return std::any_of(list_.begin(), list_.end(), [&](auto& info) { return info.name == name; });
  }
  Tensor view(std::string_view name, DType dtype) const override {
    if (!hashed_) return file_->view(prefix_ + std::string(name), dtype);
    auto info = std::find_if(list_.begin(), list_.end(), [&](auto& i) { return i.name == name; });
    PUPIL_CHECK(info != list_.end(), "verify: no parameter ", name);
    Tensor values = zeros(info->shape, DType::f32);
    if (name.ends_with("num_batches_tracked")) return values.to(dtype);
    HashedValue value(info->name, info->shape, seed_);
    for (int64_t i = 0; i < values.numel(); i++) values.data<float>()[i] = value(i);
    return values.to(dtype);
  }
  std::span<const uint8_t> bytes(std::string_view name) const override {
    PUPIL_CHECK(!hashed_, "verify: parameter ", name, " is computed, not stored");
    return file_->bytes(prefix_ + std::string(name));
  }
  const std::map<std::string, std::string>& metadata() const override { return file_->metadata(); }
  const std::string& path() const override { return file_->path(); }
  std::string hash() const override { return file_->hash(); }

 private:
  std::shared_ptr<const data::Weights> file_;
  std::string prefix_;
  bool hashed_ = false;
  uint64_t seed_ = 0;
  std::vector<data::TensorInfo> list_;
};

}  // namespace

Case::Case(std::shared_ptr<const data::Weights> file, DType dtype, Device device)
    : file_(std::move(file)),
      attributes_(std::make_unique<Attributes>()),
      dtype_(dtype),
      device_(device) {
  const auto& metadata = file_->metadata();
  auto text = [&](const char* key) {
    auto at = metadata.find(key);
    return at == metadata.end() ? std::string() : at->second;
  };
  function_ = text("fn");
  expects_error_ = text("expect") == "error";
  auto object = [&](const char* key) {
    json values = json::parse(text(key).empty() ? "{}" : text(key), nullptr, false);
    if (!values.is_object())
      fail_input("verify: ", file_->path(), ": ", key, " is not a JSON object");
    return values;
  };
  attributes_->values = object("attrs");
  attributes_->tolerance = object("tol");
  for (const data::TensorInfo& info : file_->list()) tensors_[info.name] = info;
}

Case::~Case() = default;

bool Case::has(const std::string& name) const {
  asked_.insert(name);
  return tensors_.count(name) > 0;
}

Tensor Case::load(const std::string& name) {
  auto at = tensors_.find(name);
  if (at == tensors_.end()) throw Missing(function_, name, true);
  ignore(name);
  const std::string& stored = at->second.dtype;
  bool floating = stored[0] == 'F' || stored == "BF16";
  return file_->read(name, floating ? dtype_ : DType::i64).to(device_);
}

Tensor Case::get(const std::string& name) {
  Tensor t = load(name);
  if (has("grad." + name)) {
    t.requires_grad_();
    leaves_[name] = t;
  }
  return t;
}

Tensor Case::get_if(const std::string& name) { return has(name) ? get(name) : Tensor(); }

Tensor Case::constant(const std::string& name) {
  Tensor t = load(name).requires_grad_();
  constants_[name] = t;
  return t;
}

std::vector<std::string> Case::names(const std::string& prefix) const {
  std::vector<std::string> found;
  for (const data::TensorInfo& info : file_->list())
    if (starts_with(info.name, prefix)) found.push_back(info.name.substr(prefix.size()));
  return found;
}

void Case::ignore(const std::string& name) {
  read_.insert(name);
  asked_.insert(name);
}

std::shared_ptr<const data::Weights> Case::parameters(const std::string& prefix) {
  for (const std::string& name : names("param." + prefix)) ignore("param." + prefix + name);
  if (!has_attribute("param_init")) return std::make_shared<Parameters>(file_, "param." + prefix);
  const json& init = attribute("param_init");
  if (init.value("kind", "") != "hash-v1") throw Unsupported(concat("param_init = ", init.dump()));
  return std::make_shared<Parameters>(file_, attribute("param_shapes"),
                                      init.at("seed").get<uint64_t>());
}

void Case::track(const std::string& name, const Tensor& t) { leaves_["param." + name] = t; }
void Case::track(const std::string& name, std::function<Tensor()> gradient) {
  made_["param." + name] = std::move(gradient);
}

bool Case::has_attribute(const std::string& name) const {
  asked_.insert(name);
  const json& values = attributes_->values;
  return values.contains(name) && !values[name].is_null();
}

const json& Case::attribute(const std::string& name) {
  ignore(name);
  if (!has_attribute(name)) throw Missing(function_, name, false);
  return attributes_->values[name];
}

double Case::number(const std::string& name) { return attribute(name).get<double>(); }
double Case::number(const std::string& name, double otherwise) {
  ignore(name);
  return has_attribute(name) ? number(name) : otherwise;
}
int64_t Case::integer(const std::string& name) { return attribute(name).get<int64_t>(); }
int64_t Case::integer(const std::string& name, int64_t otherwise) {
  ignore(name);
  return has_attribute(name) ? integer(name) : otherwise;
}
bool Case::flag(const std::string& name, bool otherwise) {
  ignore(name);
  return has_attribute(name) ? attribute(name).get<bool>() : otherwise;
}
std::string Case::text(const std::string& name, const std::string& otherwise) {
  ignore(name);
  return has_attribute(name) ? attribute(name).get<std::string>() : otherwise;
}

std::vector<int64_t> Case::integers(const std::string& name) {
  const json& value = attribute(name);
  if (value.is_array()) return value.get<std::vector<int64_t>>();
  return {value.get<int64_t>()};
}

std::vector<double> Case::numbers(const std::string& name) {
  const json& value = attribute(name);
  if (value.is_array()) return value.get<std::vector<double>>();
  return {value.get<double>()};
}

int64_t Case::both(const std::string& name) {
  std::vector<int64_t> values = integers(name);
  for (int64_t v : values)
    if (v != values[0]) throw Unsupported(concat(name, " = ", attribute(name).dump()));
  return values.at(0);
}

template <class T>
void Case::only(const std::string& name, const T& value) {
  ignore(name);
  if (has_attribute(name) && attribute(name) != json(value))
    throw Unsupported(concat(name, " = ", attribute(name).dump()));
}
template void Case::only(const std::string&, const bool&);
template void Case::only(const std::string&, const int64_t&);
template void Case::only(const std::string&, const double&);
template void Case::only(const std::string&, const std::string&);

void Case::result(const std::string& name, const Tensor& t) { results_[name] = t; }
void Case::result(const std::string& name, const std::vector<double>& values) {
  results_[name] = from(std::span<const double>(values), Shape{int64_t(values.size())});
}

std::vector<std::string> Case::unread() const {
  std::vector<std::string> names;
  for (auto& [name, info] : tensors_)
    if ((starts_with(name, "in.") || starts_with(name, "param.")) && !read_.count(name))
      names.push_back(name);
  for (auto& [name, value] : attributes_->values.items())
    if (!value.is_null() && !read_.count(name)) names.push_back(concat(name, " = ", value.dump()));
  return names;
}

Tensor Case::output(const std::string& name) const {
  auto at = results_.find(name);
  return at == results_.end() ? Tensor() : at->second;
}

Tensor Case::gradient(const std::string& name) const {
  if (auto made = made_.find(name); made != made_.end()) return made->second();
  auto at = leaves_.find(name);
  return at == leaves_.end() ? Tensor() : at->second.grad();
}

// |got - want| <= atol + rtol * max |want|, the maximum over the tensor; integers must be equal.
void Case::judge(const std::string& name, const Tensor& got, Worst& worst) const {
  const data::TensorInfo& info = tensors_.at(name);
  auto problem = [&](const std::string& text) {
    if (worst.problem.empty()) worst = {name, text, 0, 0, INFINITY};
  };
  if (!got) return problem("missing");
  if (got.shape() != info.shape)
    return problem(concat("shape ", got.shape(), ", expected ", info.shape));
  Tensor stored = file_->read(name, DType::f64);
  std::vector<double> want = stored.values(), have = got.values();
  const json& tolerance = attributes_->tolerance;
  double rtol = tolerance.value("rtol", 0.0), atol = tolerance.value("atol", 0.0);
  if (tolerance.contains("per") && tolerance["per"].contains(name)) {
    const json& per = tolerance["per"][name];
    atol = per.is_number() ? per.get<double>() : per.value("atol", atol);
    if (per.is_object()) rtol = per.value("rtol", rtol);
  }
  if (dtype_ == DType::f64 && info.dtype == "F64") {
    rtol = 1e-9;
    atol = 1e-10;
  }
  double largest = 0, error = 0;
  for (double v : want)
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
  for (size_t i = 0; i < want.size(); i++) {
    if (have[i] == want[i] || (std::isnan(have[i]) && std::isnan(want[i]))) continue;
    double difference = std::fabs(have[i] - want[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  double allowed = info.dtype[0] == 'I' ? 0 : atol + rtol * largest;
  double ratio = error == 0 ? 0 : error / allowed;  // infinite when nothing is allowed
  if (ratio > worst.ratio) worst = {name, "", error, allowed, ratio};
}

// S = sum of <out, cot> over the outputs that have a cotangent, or out.loss.
void Case::differentiate() {
  std::vector<Tensor> outputs, cotangents;
  for (const std::string& name : names("cot.")) {
    auto at = results_.find(name);
    if (at == results_.end()) continue;  // reported as a missing output
    PUPIL_CHECK(at->second.requires_grad(), "verify: ", function_, ": output ", name,
                " was computed without a gradient");
    outputs.push_back(at->second);
    cotangents.push_back(load("cot." + name).to(at->second.dtype()).to(at->second.layout()));
  }
  if (names("cot.").empty() && results_.count("loss")) {
    outputs.push_back(results_.at("loss"));
    cotangents.push_back(full(outputs[0].shape(), 1, outputs[0].dtype(), device_));
  }
  PUPIL_CHECK(!outputs.empty(), "verify: ", function_, ": no output to differentiate");
  Tensor total = record("verify", zeros({}, dtype_, device_), outputs, [cotangents](Backward& b) {
    for (size_t i = 0; i < cotangents.size(); i++) b[int(i)].give(cotangents[i]);
  });
  backward(total);
}

Case::Worst Case::compare() {
  Worst worst;
  std::vector<std::string> outputs = names("out."), gradients = names("grad.");
  if (outputs.empty() && gradients.empty()) return {"", "the case expects nothing", 0, 0, INFINITY};
  for (const std::string& name : outputs) judge("out." + name, output(name), worst);
  if (gradients.empty()) return worst;
  differentiate();
  for (const std::string& name : gradients) judge("grad." + name, gradient(name), worst);
  for (auto& [name, teacher] : constants_)
    if (teacher.grad() && worst.problem.empty())
      worst = {name, "a teacher received a gradient", 0, 0, INFINITY};
  return worst;
}

}  // namespace pupil::verify

#include <algorithm>

#include "../tensor/launch.h"
#include "../tensor/memory.h"
#include "nn.h"

namespace pupil::nn {
namespace {

struct Uniform {
  RngKey key;
  double bound;
  double operator()(int64_t i) const { return bound * (2.0 * uniform(key, i) - 1.0); }
};

struct Normal {
  RngKey key;
  double deviation;
  double operator()(int64_t i) const { return deviation * normal(key, i); }
};

template <class T, class Draw>
struct Fill {
  T* to;
  Draw draw;
  void operator()(int64_t i) const { to[i] = T(draw(i)); }
};

Tensor initial(const Shape& shape, Init init, DType dtype, const RngKey& key) {
  if (init.kind == Init::zeros) return zeros(shape, dtype);
  if (init.kind == Init::ones) return full(shape, 1, dtype);
  if (init.kind == Init::constant) return full(shape, init.a, dtype);
  Tensor t = empty(shape, dtype);
  dispatch(dtype, [&](auto g) {
    using T = typename decltype(g)::type;
    if (init.kind == Init::uniform)
      map({}, t.numel(), Fill<T, Uniform>{t.data<T>(), {key, init.a}});
    else
      map({}, t.numel(), Fill<T, Normal>{t.data<T>(), {key, init.a}});
  });
  return t;
}

// "3 missing: a, b, c; "; long lists are cut.
std::string listed(const char* what, const std::vector<std::string>& names) {
  if (names.empty()) return "";
  constexpr size_t kShown = 10;
  std::string text = concat(names.size(), " ", what, ": ");
  for (size_t i = 0; i < std::min(names.size(), kShown); i++) text += (i ? ", " : "") + names[i];
  if (names.size() > kShown) text += concat(" and ", names.size() - kShown, " more");
  return text + "; ";
}

bool matches_any(const std::vector<std::string>& patterns, std::string_view name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](auto& p) { return matches(p, name); });
}

std::string join(std::string_view path, std::string_view name) {
  return path.empty() ? std::string(name) : concat(path, ".", name);
}

}  // namespace

bool matches(std::string_view pattern, std::string_view name) {
  // Where a letter differs, only the last star can take in more: at most pattern * name steps.
  size_t p = 0, n = 0, star = pattern.npos, taken = 0;  // the last star and where its run ends
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      p++, n++;
    } else if (star != pattern.npos) {
      p = star + 1;
      n = ++taken;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == pattern.npos;
}

Store::Store(uint64_t seed, DType dtype, Device device)
    : seed_(seed), dtype_(dtype), device_(device) {}

Store Store::blueprint() {
  Store store(0);
  store.blueprint_ = true;
  return store;
}

void Store::source(std::shared_ptr<const data::Weights> weights, std::vector<std::string> fresh) {
  weights_ = std::move(weights);
  borrowed_ = false;
  fresh_ = std::move(fresh);
  missing_.clear();
  mis_shaped_.clear();
  declared_before_source_ = params_.size();
}

void Store::borrow(std::shared_ptr<const data::Weights> weights) {
  source(std::move(weights));
  borrowed_ = true;
}

void Store::require_complete() const {
  if (!weights_) return;
  std::vector<std::string> unexpected;
  for (const data::TensorInfo& info : weights_->list()) {
    if (!info.shape.numel())
      continue;  // transformers keeps its register tokens where there are none
    auto declared = std::find_if(params_.begin() + int64_t(declared_before_source_), params_.end(),
                                 [&](const Param& p) { return p.name == info.name; });
    if (declared == params_.end() && !matches_any(fresh_, info.name))
      unexpected.push_back(info.name);
  }
  if (missing_.empty() && mis_shaped_.empty() && unexpected.empty()) return;
  fail_input("weights: ", weights_->path(),
             " does not fit this model: ", listed("of another shape", mis_shaped_),
             listed("missing", missing_), listed("unexpected", unexpected),
             "if only the classifier differs, use head = \"new\"");
}

Tensor Store::add(const std::string& name, Tensor value, bool buffer) {
  PUPIL_CHECK(!find(name), "parameter ", name, " is declared twice");
  value.named(name);
  if (!buffer) value.requires_grad_();
  params_.push_back({name, value, !buffer, buffer});
  return value;
}

Tensor Store::declare(const std::string& name, const Shape& shape, Init init, bool buffer,
                      const Adapt& adapt) {
  ModelScope keep;
  if (blueprint_) {  // all parameters share the memory of the largest, which nobody writes
    auto room = std::find_if(params_.begin(), params_.end(), [&](const Param& p) {
      return p.value.dtype() == dtype_ && p.value.numel() >= shape.numel();
    });
    return add(name,
               room == params_.end() ? empty(shape, dtype_)
                                     : alias(room->value, shape, row_major_strides(shape)),
               buffer);
  }
  Tensor value;
  if (weights_ && !matches_any(fresh_, name)) {
    if (!weights_->has(name)) {
      missing_.push_back(name);
    } else {
      Tensor stored = borrowed_ ? weights_->view(name, dtype_) : weights_->read(name, dtype_);
      value = stored.shape() == shape || !adapt ? stored : adapt(stored);
      if (!value || value.shape() != shape) {
        mis_shaped_.push_back(concat(name, " (file ", stored.shape(), ", model ", shape, ")"));
        value = Tensor();
      }
    }
  }
  if (!value) value = initial(shape, init, dtype_, RngKey{seed_, stream_id(name), 0});
  return add(name, value.to(device_), buffer);
}

Tensor Store::declare_counter(const std::string& name) {
  ModelScope keep;
  Tensor value = zeros({}, DType::i64);
  if (weights_ && weights_->has(name) && !matches_any(fresh_, name))
    value = weights_->read(name, DType::i64);
  if (value.rank() != 0) {
    mis_shaped_.push_back(concat(name, " (file ", value.shape(), ", model ())"));
    value = zeros({}, DType::i64);
  }
  return add(name, value, true);
}

Param* Store::find(std::string_view name) {
  auto at = std::find_if(params_.begin(), params_.end(), [&](auto& p) { return p.name == name; });
  return at == params_.end() ? nullptr : &*at;
}

void Store::freeze(std::string_view pattern) {
  bool any = false;
  for (Param& p : params_) {
    if (p.buffer || !matches(pattern, p.name)) continue;
    p.trainable = false;
    p.value.requires_grad_(false);
    any = true;
  }
  if (any) return;
  std::vector<std::string> names;
  for (const Param& p : params_)
    if (!p.buffer) names.push_back(p.name);
  fail_input("freeze: no parameter matches \"", pattern, "\"", did_you_mean(pattern, names));
}

int64_t Store::count() const {
  int64_t n = 0;
  for (const Param& p : params_)
    if (!p.buffer) n += p.value.numel();
  return n;
}

Scope Scope::operator/(std::string_view name) const { return Scope(store, join(path, name)); }
Scope Scope::operator/(int index) const { return *this / std::to_string(index); }

Tensor Scope::param(std::string_view name, const Shape& shape, Init init,
                    const Adapt& adapt) const {
  return store.declare(join(path, name), shape, init, false, adapt);
}

Tensor Scope::buffer(std::string_view name, const Shape& shape, Init init) const {
  return store.declare(join(path, name), shape, init, true);
}

Tensor Scope::counter(std::string_view name) const {
  return store.declare_counter(join(path, name));
}

void Taps::see(std::string_view name, const Tensor& value) {
  if (wants(name)) seen_.insert_or_assign(std::string(name), value);
}

bool Taps::wants(std::string_view name) const {
  return std::find(wanted_.begin(), wanted_.end(), name) != wanted_.end();
}

Tensor Taps::operator[](std::string_view name) const {
  auto at = seen_.find(name);
  PUPIL_CHECK(at != seen_.end(), "taps: the model did not announce \"", name, "\"");
  return to_dtype(to_strided(at->second), acc_dtype(at->second.dtype()));
}

}  // namespace pupil::nn

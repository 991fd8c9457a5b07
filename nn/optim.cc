#include "optim.h"

#include <algorithm>
#include <unordered_set>

#include "../tensor/launch.h"
#include "../tensor/memory.h"

namespace pupil::nn {

// One group's parameters, gradients and state, each in one block of memory. A parameter begins at a
// multiple of 64 bytes; the gaps stay zero, so that a pass may run over them.
struct Optimizer::Slab {
  struct Entry {
    std::string name;
    Tensor value;
    int64_t begin, end;  // elements in the slab, the gap behind it included
    int64_t steps = 0;   // updates so far: t in Adam; 0: momentum buffer not started
  };
  std::vector<Entry> entries;
  Tensor values, gradients;
  std::vector<Tensor> states;  // one for each of state_names()

  Tensor part(const Tensor& slab, const Entry& e) const {
    return alias(slab, e.value.shape(), row_major_strides(e.value.shape()), e.begin);
  }
};

// torch.optim.SGD: g += decay p; buffer = g at first, then momentum buffer + (1 - dampening) g;
// p -= lr (g + momentum buffer with Nesterov, else buffer). lr does not enter the buffer.
template <class T>
struct SgdUpdate {
  T *p, *buffer;
  const T* g;
  T lr, decay, momentum, fresh;  // fresh: 1 - dampening, or 1 when the buffer is started
  bool nesterov, start;
  PUPIL_HD void operator()(int64_t i) const {
    T gradient = g[i] + decay * p[i];
    T moved = start ? gradient : momentum * buffer[i] + fresh * gradient;
    buffer[i] = moved;
    p[i] -= lr * (nesterov ? gradient + momentum * moved : moved);
  }
};

template <class T>
struct PlainSgdUpdate {  // no momentum, no state
  T* p;
  const T* g;
  T lr, decay;
  PUPIL_HD void operator()(int64_t i) const { p[i] -= lr * (g[i] + decay * p[i]); }
};

// Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1; weight decay added to the gradient (coupled),
// or p *= 1 - lr decay (Loshchilov and Hutter 2019, arXiv 1711.05101). As torch.optim computes it:
// p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
template <class T>
struct AdamUpdate {
  T *p, *m, *v;
  const T* g;
  T coupled_decay, keep, beta1, beta2, one_minus_beta1, one_minus_beta2, step_size, root, eps;
  PUPIL_HD void operator()(int64_t i) const {
    T gradient = g[i] + coupled_decay * p[i];
    T mean = beta1 * m[i] + one_minus_beta1 * gradient;
    T square = beta2 * v[i] + one_minus_beta2 * gradient * gradient;
    m[i] = mean;
    v[i] = square;
    p[i] = keep * p[i] - step_size * mean / (sqrt(square) / root + eps);
  }
};

// Tieleman and Hinton 2012 (Coursera lecture 6.5) as torch.optim.RMSprop has it: v = alpha v +
// (1 - alpha) g^2, centred: v - (moving average of g)^2 in the root; p -= lr g / (sqrt(v) + eps),
// with momentum through a buffer.
template <class T>
struct RmsPropUpdate {
  T *p, *square, *average, *buffer;  // average: centred only; buffer: with momentum only
  const T* g;
  T lr, decay, alpha, one_minus_alpha, eps, momentum;
  PUPIL_HD void operator()(int64_t i) const {
    T gradient = g[i] + decay * p[i];
    T v = square[i] = alpha * square[i] + one_minus_alpha * gradient * gradient;
    if (average) {
      average[i] += one_minus_alpha * (gradient - average[i]);
      v -= average[i] * average[i];
    }
    T update = gradient / (sqrt(v) + eps);
    if (buffer) update = buffer[i] = momentum * buffer[i] + update;
    p[i] -= lr * update;
  }
};

// You et al. 2020 (arXiv 1904.00962), algorithm 2, as timm's Lamb: Adam's direction plus decay p.
template <class T>
struct LambDirection {
  const T* p;
  T *m, *v, *direction;
  const T* g;
  T clip, decay, beta1, beta2, fresh, one_minus_beta2, mean_root, square_root, eps;
  PUPIL_HD void operator()(int64_t i) const {
    T gradient = g[i] / clip;
    T mean = m[i] = beta1 * m[i] + fresh * gradient;
    T square = v[i] = beta2 * v[i] + one_minus_beta2 * gradient * gradient;
    direction[i] = mean / mean_root / (sqrt(square) / square_root + eps) + decay * p[i];
  }
};

template <class T>
struct ScaleInPlace {
  T* x;
  acc_t<T> factor;
  PUPIL_HD void operator()(int64_t i) const { x[i] = T(acc_t<T>(x[i]) * factor); }
};

template <class T>
struct SquareSum {  // one partial sum, in f64, for every block of kBlock elements
  static constexpr int64_t kBlock = 4096;
  const T* x;
  int64_t n;
  double* partial;
  PUPIL_HD void operator()(int64_t block) const {
    double sum = 0;
    for (int64_t i = block * kBlock; i < n && i < (block + 1) * kBlock; i++)
      sum += double(x[i]) * double(x[i]);
    partial[block] = sum;
  }
};

namespace {

std::vector<std::string> state_names(const OptimizerOptions& o) {
  if (o.algorithm == Algorithm::sgd)
    return o.momentum != 0 ? std::vector<std::string>{"momentum_buffer"}
                           : std::vector<std::string>{};
  if (o.algorithm != Algorithm::rmsprop) return {"exp_avg", "exp_avg_sq"};
  std::vector<std::string> names = {"square_avg"};
  if (o.centered) names.push_back("grad_avg");
  if (o.momentum != 0) names.push_back("momentum_buffer");
  return names;
}

template <class T>
double square_sum(const T* x, int64_t n, Device device) {
  int64_t blocks = (n + SquareSum<T>::kBlock - 1) / SquareSum<T>::kBlock;
  Tensor partial = empty({blocks}, DType::f64, device);
  map(device, blocks, SquareSum<T>{x, n, partial.data<double>()});
  double total = 0;
  for (double sum : partial.values()) total += sum;
  return total;
}

template <class T>
void lamb_update(const OptimizerOptions& o, LambDirection<T> update, T* p, int64_t n, Device device,
                 double lr) {
  Tensor direction = empty({n}, dtype_of<T>::value, device);
  update.direction = direction.data<T>();
  map(device, n, update);
  double ratio = 1;
  if (update.decay != 0 || o.always_adapt) {
    double size = std::sqrt(square_sum(p, n, device));
    double length = std::sqrt(square_sum(update.direction, n, device));
    if (size > 0 && length > 0) ratio = size / length;
    if (o.trust_clip) ratio = std::min(ratio, 1.0);
  }
  map(device, n, PlainSgdUpdate<T>{p, update.direction, T(lr * ratio), T(0)});
}

}  // namespace

Optimizer::Optimizer(Store& store, std::vector<Group> groups, OptimizerOptions options)
    : groups_(std::move(groups)), options_(options) {
  ModelScope keep;
  std::unordered_set<std::string> seen;
  for (const Group& group : groups_) {
    Slab slab;
    int64_t size = 0;
    for (const std::string& name : group.names) {
      Param* param = store.find(name);
      PUPIL_CHECK(param && !param->buffer, "optimizer: no parameter ", name);
      PUPIL_CHECK(seen.insert(name).second, "optimizer: parameter ", name, " is in two groups");
      if (!param->trainable) continue;
      const Tensor& value = param->value;
      if (!slab.entries.empty())
        PUPIL_CHECK(value.dtype() == slab.entries[0].value.dtype() &&
                        value.device() == slab.entries[0].value.device(),
                    "optimizer: ", name, " has another dtype or device than its group");
      int64_t line = int64_t(64 / size_of(value.dtype()));
      int64_t end = size + (value.numel() + line - 1) / line * line;
      slab.entries.push_back({name, value, size, end});
      size = end;
    }
    if (!slab.entries.empty()) {
      DType dtype = slab.entries[0].value.dtype();
      Device device = slab.entries[0].value.device();
      slab.values = zeros({size}, dtype, device);
      slab.gradients = zeros({size}, dtype, device);
      for (size_t k = state_names(options).size(); k > 0; k--)
        slab.states.push_back(zeros({size}, dtype, device));
    }
    for (Slab::Entry& e : slab.entries) {
      Tensor place = slab.part(slab.values, e);
      copy_into(place, e.value);
      TensorImpl* impl = e.value.impl();  // the tensor that the model holds: only its memory moves
      impl->storage = place.impl()->storage;
      impl->offset = place.impl()->offset;
      impl->strides = place.impl()->strides;
      impl->grad = slab.part(slab.gradients, e).pointer();
      impl->grad_is_set = false;
    }
    slabs_.push_back(std::move(slab));
  }
}

Optimizer::~Optimizer() {
  for (Slab& slab : slabs_)
    for (Slab::Entry& e : slab.entries) e.value.zero_grad();
}

std::vector<Group>& Optimizer::groups() { return groups_; }

void Optimizer::set_momentum(double momentum) {
  bool by_beta = options_.algorithm != Algorithm::sgd && options_.algorithm != Algorithm::rmsprop;
  double& place = by_beta ? options_.beta1 : options_.momentum;
  PUPIL_CHECK(by_beta || (momentum != 0) == (place != 0), "optimizer: momentum ", place,
              " cannot become ", momentum, ": only one of them has a buffer");
  place = momentum;
}

void Optimizer::zero_grad() {
  for (Slab& slab : slabs_)
    for (Slab::Entry& e : slab.entries) e.value.impl()->grad_is_set = false;
}

void Optimizer::step(double lr_scale) {
  const OptimizerOptions& o = options_;
  double clip = 1;
  if (o.algorithm == Algorithm::lamb && o.max_grad_norm > 0)
    clip = std::max(1.0, grad_norm() / o.max_grad_norm);
  for (size_t k = 0; k < slabs_.size(); k++) {
    Slab& slab = slabs_[k];
    double lr = groups_[k].lr * lr_scale, decay = groups_[k].weight_decay;
    // One pass for each longest run of neighbours that have a gradient and the same age.
    for (size_t i = 0, j; i < slab.entries.size(); i = j) {
      j = i + 1;
      int64_t steps = slab.entries[i].steps;
      if (!slab.entries[i].value.impl()->grad_is_set) continue;
      while (j < slab.entries.size() && slab.entries[j].value.impl()->grad_is_set &&
             slab.entries[j].steps == steps && o.algorithm != Algorithm::lamb)
        j++;  // Lamb: one parameter at a time
      int64_t begin = slab.entries[i].begin, n = slab.entries[j - 1].end - begin;
      for (size_t e = i; e < j; e++) slab.entries[e].steps++;
      int64_t t = steps + 1;
      dispatch(slab.values.dtype(), [&](auto g) {
        using T = typename decltype(g)::type;
        if constexpr (std::is_same_v<T, bf16>) {
          throw Error("optimizer: parameters are f32 or f64, not bf16");
        } else {
          T* p = slab.values.data<T>() + begin;
          const T* gradient = slab.gradients.data<T>() + begin;
          auto state = [&](size_t k) {
            return k < slab.states.size() ? slab.states[k].data<T>() + begin : nullptr;
          };
          T* m = state(0);
          Device device = slab.values.device();
          double mean_root = 1 - std::pow(o.beta1, double(t));
          double square_root = std::sqrt(1 - std::pow(o.beta2, double(t)));
          if (o.algorithm == Algorithm::rmsprop) {
            map(device, n,
                RmsPropUpdate<T>{p, m, o.centered ? state(1) : nullptr,
                                 o.momentum != 0 ? state(o.centered ? 2 : 1) : nullptr, gradient,
                                 T(lr), T(decay), T(o.alpha), T(1 - o.alpha), T(o.eps),
                                 T(o.momentum)});
          } else if (o.algorithm == Algorithm::lamb) {
            lamb_update(
                o,
                LambDirection<T>{p, m, state(1), nullptr, gradient, T(clip), T(decay), T(o.beta1),
                                 T(o.beta2), T(o.grad_averaging ? 1 - o.beta1 : 1), T(1 - o.beta2),
                                 T(mean_root), T(square_root), T(o.eps)},
                p, n, device, lr);
          } else if (o.algorithm != Algorithm::sgd) {
            bool decoupled = o.algorithm == Algorithm::adamw;
            AdamUpdate<T> update{p,
                                 m,
                                 state(1),
                                 gradient,
                                 T(decoupled ? 0 : decay),
                                 T(decoupled ? 1 - lr * decay : 1),
                                 T(o.beta1),
                                 T(o.beta2),
                                 T(1 - o.beta1),
                                 T(1 - o.beta2),
                                 T(lr / mean_root),
                                 T(square_root),
                                 T(o.eps)};
            map(device, n, update);
          } else if (m) {
            map(device, n,
                SgdUpdate<T>{p, m, gradient, T(lr), T(decay), T(o.momentum), T(1 - o.dampening),
                             o.nesterov, steps == 0});
          } else {
            map(device, n, PlainSgdUpdate<T>{p, gradient, T(lr), T(decay)});
          }
        }
      });
    }
  }
}

double Optimizer::grad_norm() const {
  double total = 0;
  each_gradient([&](const Tensor& gradient) {
    dispatch(gradient.dtype(), [&](auto g) {
      using T = typename decltype(g)::type;
      total += square_sum(gradient.data<T>(), gradient.numel(), gradient.device());
    });
  });
  return std::sqrt(total);
}

double Optimizer::clip_grad_norm(double max_norm) {
  double norm = grad_norm(), factor = max_norm / (norm + 1e-6);
  if (!(factor < 1)) return norm;  // a NaN norm scales nothing; the caller sees it
  each_gradient([&](const Tensor& gradient) {
    dispatch(gradient.dtype(), [&](auto g) {
      using T = typename decltype(g)::type;
      map(gradient.device(), gradient.numel(),
          ScaleInPlace<T>{gradient.data<T>(), acc_t<T>(factor)});
    });
  });
  return norm;
}

void Optimizer::each_gradient(const std::function<void(const Tensor&)>& f) const {
  for (const Slab& slab : slabs_)
    for (const Slab::Entry& e : slab.entries)
      if (e.value.impl()->grad_is_set) f(Tensor(e.value.impl()->grad));
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> all;
  std::vector<std::string> names = state_names(options_);
  for (const Slab& slab : slabs_)
    for (const Slab::Entry& e : slab.entries) {
      if (slab.states.empty() || !e.steps) continue;
      for (size_t k = 0; k < names.size(); k++)
        all.emplace_back(concat(e.name, ".", names[k]), slab.part(slab.states[k], e));
      if (options_.algorithm != Algorithm::sgd)
        all.emplace_back(e.name + ".step", from(std::span(&e.steps, 1), Shape{}));
    }
  return all;
}

void Optimizer::load_state(const std::function<Tensor(const std::string&)>& read) {
  std::vector<std::string> names = state_names(options_);
  auto load = [&](const std::string& name, const Tensor& place) {
    Tensor stored = read(name);
    if (!stored) {
      copy_into(place, zeros(place.shape(), place.dtype()).to(place.device()));
      return false;
    }
    if (stored.shape() != place.shape())
      fail_input("optimizer state: ", name, " is ", stored.shape(), ", expected ", place.shape());
    copy_into(place, stored.to(place.device()));
    return true;
  };
  for (Slab& slab : slabs_)
    for (Slab::Entry& e : slab.entries) {
      if (slab.states.empty()) continue;
      for (size_t k = 0; k < names.size(); k++) {
        bool found = load(concat(e.name, ".", names[k]), slab.part(slab.states[k], e));
        if (k == 0) e.steps = found;
      }
      if (options_.algorithm == Algorithm::sgd) continue;
      Tensor step = read(e.name + ".step");
      if (bool(step) != bool(e.steps))
        fail_input("optimizer state: ", e.name, " has only one of .", names[0], " and .step");
      if (step) e.steps = int64_t(step.item());
    }
}

}  // namespace pupil::nn

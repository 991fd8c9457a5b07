#include "autograd.h"

#include <algorithm>
#include <atomic>
#include <unordered_set>

#include "../tensor/launch.h"
#include "../tensor/memory.h"

namespace pupil {
namespace {

std::atomic<uint64_t> g_sequence = 0;
thread_local bool g_grad_enabled = true;
thread_local Listener* g_listener = nullptr;

std::atomic<int>& watchers() {
  static std::atomic<int> count = [] {
    const char* v = std::getenv("PUPIL_ANOMALY");
    return v && *v && *v != '0';
  }();
  return count;
}

void watch(const char* op, const std::string& what, const Tensor& t) {
  if (watchers() == 0 || !t || !is_floating(t.dtype())) return;
  std::vector<double> values = t.values();
  for (size_t i = 0; i < values.size(); i++)
    PUPIL_CHECK(std::isfinite(values[i]), "anomaly: ", op, ": ", what, " ", t.shape(), " is ",
                values[i], " at element ", i);
}

bool same_geometry(const Tensor& a, const Tensor& b) {
  return a.layout() == b.layout() &&
         (a.layout() != Layout::strided || (a.is_contiguous() && b.is_contiguous()));
}

// slot += g, in place where nobody else sees one of the two buffers.
void add_gradient(Tensor& slot, Tensor g) {
  if (!slot) {
    slot = std::move(g);
    return;
  }
  if (g.layout() != slot.layout()) g = g.to(slot.layout());
  if (!slot.sole_owner() || !same_geometry(slot, slot)) {
    if (g.sole_owner() && same_geometry(g, g))
      std::swap(slot, g);
    else {
      Tensor sum = empty_like(slot);
      copy_into(sum, slot);
      slot = std::move(sum);
    }
  }
  add_in_place(slot, same_geometry(slot, g) ? g : g.contiguous());
}

// The first gradient of an optimizer's buffer overwrites it, later ones are added.
void accumulate_leaf(TensorImpl* leaf, Tensor g) {
  if (!leaf->grad) {
    leaf->grad = (g.sole_owner() && g.is_contiguous() ? g : g.clone()).pointer();
    leaf->grad_is_set = true;
    return;
  }
  Tensor slot(leaf->grad);
  if (leaf->grad_is_set)
    add_in_place(slot, g.contiguous());
  else
    copy_into(slot, g);
  leaf->grad_is_set = true;
}

}  // namespace

bool grad_enabled() { return g_grad_enabled; }
NoGrad::NoGrad() : outer_(g_grad_enabled) { g_grad_enabled = false; }
NoGrad::~NoGrad() { g_grad_enabled = outer_; }
WithGrad::WithGrad() : outer_(g_grad_enabled) { g_grad_enabled = true; }
WithGrad::~WithGrad() { g_grad_enabled = outer_; }

Anomaly::Anomaly() { watchers()++; }
Anomaly::~Anomaly() { watchers()--; }
bool anomaly_mode() { return watchers() != 0; }

void Grad::give(Tensor gradient) {
  PUPIL_CHECK(!answered, "backward: two answers for one input");
  PUPIL_CHECK(!needed || gradient, "backward: an empty gradient; say none() if that is meant");
  answered = true;
  if (needed) value = std::move(gradient);
}

void Grad::none() { answered = true; }

Tensor Grad::into(float& beta, Layout layout) {
  PUPIL_CHECK(needed, "Grad::into: nobody asks for this gradient; call none()");
  PUPIL_CHECK(!answered, "backward: two answers for one input");
  answered = true;
  beta = 0;
  TensorImpl* leaf = target->leaf.get();
  if (leaf && leaf->grad) {  // a buffer of its own
    beta = leaf->grad_is_set ? 1 : 0;
    leaf->grad_is_set = true;
    return Tensor(leaf->grad);
  }
  if (target->node && target->node->gradient) {
    const Tensor& sum = target->node->gradient;
    if (sum.layout() == layout && sum.sole_owner() && same_geometry(sum, sum)) {
      beta = 1;
      return sum;
    }
  }
  value = layout == Layout::strided ? empty(target->shape, target->dtype, target->device)
                                    : empty_image(target->shape, target->dtype, layout);
  return value;
}

Node::~Node() {  // iterative: freeing a chain of 100,000 ops must not overflow the stack
  std::vector<std::shared_ptr<Node>> work;
  auto take = [&](Node& node) {
    for (auto& input : node.inputs)
      if (input.node) work.push_back(std::move(input.node));
    node.inputs.clear();
  };
  take(*this);
  while (!work.empty()) {
    auto node = std::move(work.back());
    work.pop_back();
    if (node.use_count() == 1) take(*node);
  }
}

void add_in_place(const Tensor& to, const Tensor& from) {
  PUPIL_CHECK(to.shape() == from.shape() && to.dtype() == from.dtype() && same_geometry(to, from),
              "add_in_place: ", to.shape(), " ", name_of(to.dtype()), " ", name_of(to.layout()),
              " += ", from.shape(), " ", name_of(from.dtype()), " ", name_of(from.layout()));
  dispatch(to.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    map(to.device(), to.numel(), AddInto<T>{to.data<T>(), from.data<T>()});
  });
}

Listener::Listener() {
  PUPIL_CHECK(!g_listener, "Listener: a second one on this thread");
  g_listener = this;
}
Listener::~Listener() { g_listener = nullptr; }
bool observed() { return g_listener || watchers() != 0; }

Tensor announce(const char* op, Tensor out, const std::vector<Tensor>& inputs,
                Attributes attributes) {
  if (g_listener) g_listener->hear(op, out, inputs, attributes);
  return out;
}

Tensor record(const char* op, Tensor out, std::vector<Tensor> inputs, Attributes attributes,
              BackwardFn backward) {
  PUPIL_CHECK(bool(backward), op, ": an op without a backward cannot be recorded");
  if (g_listener) g_listener->hear(op, out, inputs, attributes);
  if (out.impl()->storage->arena)
    out.impl()->storage->arena->label(out.raw(), out.shape(), out.dtype(), op);
  watch(op, "output", out);
  bool any = false;
  for (auto& input : inputs) {
    PUPIL_CHECK(input.impl() != out.impl(), op, ": recorded its own input ", out.shape());
    any |= input.requires_grad();
  }
  if (!any || !g_grad_enabled) return out;
  auto node = std::make_shared<Node>();
  node->op = op;
  node->sequence = ++g_sequence;
  node->backward = std::move(backward);
  node->inputs.reserve(inputs.size());
  for (auto& input : inputs) {
    Edge& edge = node->inputs.emplace_back();
    if (!input.requires_grad()) continue;
    if (input.impl()->node)
      edge.node = input.impl()->node;
    else
      edge.leaf = input.pointer();
    edge.shape = input.shape();
    edge.dtype = input.dtype();
    edge.layout = input.layout();
    edge.device = input.device();
  }
  out.impl()->node = std::move(node);
  return out;
}

void backward(const Tensor& loss, Tensor seed) {
  PUPIL_CHECK(loss.requires_grad(), "backward: nothing in this graph requires a gradient");
  if (!seed) seed = full(loss.shape(), 1, loss.dtype(), loss.device());
  PUPIL_CHECK(seed.shape() == loss.shape() && seed.dtype() == loss.dtype(), "backward: seed ",
              seed.shape(), " for a loss of shape ", loss.shape());
  NoGrad no_grad;
  if (!loss.impl()->node) {
    accumulate_leaf(loss.impl(), seed);
    return;
  }
  std::vector<std::shared_ptr<Node>> todo{loss.impl()->node}, order;
  std::unordered_set<Node*> seen;
  while (!todo.empty()) {
    auto node = std::move(todo.back());
    todo.pop_back();
    if (!seen.insert(node.get()).second) continue;
    for (auto& input : node->inputs)
      if (input.node) todo.push_back(input.node);
    order.push_back(std::move(node));
  }
  std::sort(order.begin(), order.end(), [](auto& a, auto& b) { return a->sequence > b->sequence; });
  order.front()->gradient = std::move(seed);
  for (auto& node : order) {
    Backward b;
    b.gy = std::move(node->gradient);
    if (!b.gy) continue;
    PUPIL_CHECK(bool(node->backward), node->op, ": backward called twice on the same graph");
    b.inputs.resize(node->inputs.size());
    for (size_t k = 0; k < node->inputs.size(); k++) {
      b.inputs[k].needed = node->inputs[k].needed();
      b.inputs[k].target = &node->inputs[k];
    }
    node->backward(b);
    node->backward = nullptr;  // frees what it saved, now
    b.gy = Tensor();
    for (size_t k = 0; k < node->inputs.size(); k++) {
      Edge& input = node->inputs[k];
      PUPIL_CHECK(b.inputs[k].answered, node->op, ": backward said nothing about input ", k);
      Tensor g = std::move(b.inputs[k].value);
      if (watchers() != 0) {  // also what was written into a buffer that was there
        Tensor sum = input.node ? input.node->gradient : Tensor();
        if (input.leaf && input.leaf->grad_is_set) sum = Tensor(input.leaf->grad);
        watch(node->op, concat("gradient of input ", k), g ? g : sum);
      }
      if (!g) continue;
      PUPIL_CHECK(g.shape() == input.shape && g.dtype() == input.dtype, node->op, ": gradient ",
                  g.shape(), " ", name_of(g.dtype()), " for input ", k, " of shape ", input.shape,
                  " ", name_of(input.dtype));
      if (g.layout() != input.layout) g = g.to(input.layout);
      if (input.node)
        add_gradient(input.node->gradient, std::move(g));
      else
        accumulate_leaf(input.leaf.get(), std::move(g));
    }
    node->inputs.clear();
  }
}

Tensor checkpoint(const Fn& f, std::vector<Tensor> inputs) {
  // Without an input that asks for a gradient nothing would be recorded, and the parameters inside
  // f would silently get none.
  bool any = false;
  for (auto& t : inputs) any |= t.requires_grad();
  if (!any || !g_grad_enabled) return f(inputs);
  Tensor out;
  {
    NoGrad no_grad;
    out = f(inputs).detach();
  }
  return record("checkpoint", out, inputs, [f, inputs](Backward& b) {
    std::vector<Tensor> leaves;
    for (auto& t : inputs) leaves.push_back(t.detach().requires_grad_(t.requires_grad()));
    {
      WithGrad with_grad;
      backward(f(leaves), b.gy);
    }
    for (size_t i = 0; i < leaves.size(); i++) {
      if (leaves[i].grad())
        b[int(i)].give(leaves[i].grad());
      else
        b[int(i)].none();
    }
  });
}

}  // namespace pupil

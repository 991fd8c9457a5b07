// Reverse-mode differentiation: a tape of closures. An op computes its output and calls record()
// with a closure that answers, for every input, what its gradient is.
#pragma once
#include "../tensor/tensor.h"

namespace pupil {

// An input of a recorded op as the tape keeps it: the tensor itself is not held, so that
// activations which no backward reads are freed at once.
struct Edge {
  std::shared_ptr<Node> node;        // the op that made the input, or
  std::shared_ptr<TensorImpl> leaf;  // the leaf; both null: nobody asks for this gradient
  Shape shape;
  DType dtype = DType::f32;
  Layout layout = Layout::strided;
  Device device;
  bool needed() const { return node || leaf; }
};

// Where the gradient (cotangent) of one input goes. A backward must call give, into or none on
// each; the engine throws if it says nothing.
class Grad {
 public:
  bool needed = false;  // false: nobody asks for it, do not compute it

  void give(Tensor gradient);  // hand over a tensor: kept if it is the first, else added
  void none();                 // "no gradient here", said on purpose
  // The dense buffer to write to, in `layout`, and beta: 0 overwrite, 1 add. For a parameter this
  // is the optimizer's own memory, for a value with several readers the sum so far, so that a
  // kernel accumulates without a temporary.
  Tensor into(float& beta, Layout layout = Layout::strided);

 private:
  friend void backward(const Tensor&, Tensor);
  const Edge* target = nullptr;
  bool answered = false;
  Tensor value;
};

struct Backward {
  Tensor gy;  // cotangent of the output, same shape and layout; may be overwritten if sole_owner()
  std::vector<Grad> inputs;
  Grad& operator[](int input) { return inputs[size_t(input)]; }
};
using BackwardFn = std::function<void(Backward&)>;

struct Node {
  const char* op;
  uint64_t sequence;  // creation order is a topological order: inputs are always older
  std::vector<Edge> inputs;
  BackwardFn backward;
  Tensor gradient;
  ~Node();
};

// What an op says of itself to a Listener, beside its inputs and the shape of its output: a number,
// sizes, or a tensor that gets no gradient.
struct Attribute {
  template <class N>
  requires std::is_arithmetic_v<N> Attribute(const char* name, N number)
      : name(name), number(double(number)) {}
  Attribute(const char* name, const Shape& sizes) : name(name), sizes(sizes) {}
  Attribute(const char* name, const Tensor& tensor) : name(name), tensor(&tensor) {}
  const char* name;
  double number = 0;
  Shape sizes;
  const Tensor* tensor = nullptr;
};
using Attributes = std::initializer_list<Attribute>;

// The only way to make an output differentiable. There is no overload without a backward, so a
// fused forward cannot silently cut the graph. Returns `out`.
Tensor record(const char* op, Tensor out, std::vector<Tensor> inputs, Attributes, BackwardFn);
inline Tensor record(const char* op, Tensor out, std::vector<Tensor> inputs, BackwardFn backward) {
  return record(op, std::move(out), std::move(inputs), {}, std::move(backward));
}

// Hears of every op that runs on this thread while it lives, whether a gradient is wanted or not:
// how the graph of a network is written down. One at a time.
class Listener {
 public:
  Listener();
  virtual ~Listener();
  Listener(const Listener&) = delete;
  virtual void hear(const char* op, const Tensor& out, const std::vector<Tensor>& inputs,
                    Attributes) = 0;
};
// Somebody hears of every op, or searches its output: an op that makes several of them one, as mlp
// does, then runs them one by one.
bool observed();
// For an op without a backward, which record() would refuse. Returns `out`.
Tensor announce(const char* op, Tensor out, const std::vector<Tensor>& inputs, Attributes);

// Adds the gradient of <loss, seed> to grad() of every leaf that asks for one. seed: the cotangent
// of `loss`, ones when empty. The graph is freed as it is walked.
void backward(const Tensor& loss, Tensor seed = {});

bool grad_enabled();
struct NoGrad {  // inside it nothing is recorded
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;

 private:
  bool outer_;
};
struct WithGrad {
  WithGrad();
  ~WithGrad();
  WithGrad(const WithGrad&) = delete;

 private:
  bool outer_;
};

// While one lives, or with the environment variable PUPIL_ANOMALY=1, every output and every
// gradient is searched for NaN and infinity; the Error names op, shape and element. Slow.
struct Anomaly {
  Anomaly();
  ~Anomaly();
  Anomaly(const Anomaly&) = delete;
};
bool anomaly_mode();  // for what is finite, but deserves a line on stderr

using Fn = std::function<Tensor(const std::vector<Tensor>&)>;

// f(inputs) without keeping its intermediate values: backward runs f again. Random bits repeat,
// since they are a function of (seed, op, step, element). Chen et al. 2016, arXiv 1604.06174.
Tensor checkpoint(const Fn& f, std::vector<Tensor> inputs);

struct GradcheckOptions {
  double eps = 1e-6, atol = 1e-5, rtol = 1e-3;
  int64_t max_elements = 4000;  // per input; above it, evenly spaced elements are checked
};

// Compares the gradients of f with central differences along a random projection of its output.
// Inputs must be f64; those with requires_grad() are checked. Returns "" or the worst element.
std::string gradcheck(const Fn& f, std::vector<Tensor> inputs, GradcheckOptions = {});

// to += from, element by element; same shape, dtype, layout.
void add_in_place(const Tensor& to, const Tensor& from);

}  // namespace pupil

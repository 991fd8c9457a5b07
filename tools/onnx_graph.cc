#include "onnx_graph.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>

#include "../tensor/random.h"

namespace pupil {
namespace {

namespace onnx = data::onnx;

// An input of an op: a value that depends on the images, by its number (0: the images themselves),
// else a constant, by its number; neither: left out.
struct Operand {
  int value = -1, constant = -1;
  bool operator==(const Operand&) const = default;
};

struct Constant {
  Tensor tensor;
  std::string name;         // of the parameter that it is or was computed from; may be empty
  bool parameter = false;   // the parameter's own values, perhaps in another shape
  bool per_sample = false;  // repeated for every sample of the batch along the first axis
};

struct KeptAttribute {
  std::string name;
  double number;
  Shape sizes;
  Operand tensor;
  bool operator==(const KeptAttribute&) const = default;
};

struct Step {
  std::string op;
  std::vector<Operand> inputs;
  std::vector<KeptAttribute> attributes;
  int output;
  bool operator==(const Step&) const = default;
};

constexpr const char* kComputed = ".computed";

bool same_values(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         !memcmp(a.raw(), b.raw(), a.numel() ? a.bytes() : 0);
}

// One pass: the ops that depend on the images.
struct GraphTrace {
  std::vector<Step> steps;
  std::vector<Constant> constants;  // of the first pass only
  std::vector<Shape> shapes;        // of values
  int result = -1;                  // the value that is the network's output
};

// Writes down a pass. A second one is given the first, to be compared as it runs.
class GraphListener : public Listener {
 public:
  GraphListener(const nn::Store& store, const Tensor& images, GraphTrace* first) : first_(first) {
    for (const nn::Param& p : store.params()) parameters_[p.name] = p.value;
    number(images);
  }

  GraphTrace trace;

  void hear(const char* op, const Tensor& out, const std::vector<Tensor>& inputs,
            Attributes attributes) override {
    bool depends = false;
    std::string origin;
    for (const Tensor& t : inputs) {
      depends |= value_of(t) >= 0;
      if (t && origin.empty()) origin = t.name();
    }
    for (const Attribute& a : attributes) depends |= a.tensor && value_of(*a.tensor) >= 0;
    if (!depends) {
      if (out.name().empty() && !origin.empty())
        out.impl()->name = origin.ends_with(kComputed) ? origin : origin + kComputed;
      return;
    }
    op_ = op;
    if (op_ == "to_strided") {  // layouts are our own
      numbers_[out.impl()] = {out.pointer(), value_of(inputs[0])};
      return;
    }
    Step step{op, {}, {}, 0};
    for (const Tensor& t : inputs) step.inputs.push_back(operand(t));
    for (const Attribute& a : attributes)
      step.attributes.push_back(
          {a.name, a.number, a.sizes, a.tensor ? operand(*a.tensor) : Operand{}});
    step.output = number(out);
    if (first_) {
      size_t k = trace.steps.size();
      PUPIL_CHECK(k < first_->steps.size() && first_->steps[k] == step, "export: ", op,
                  ": another op, other inputs or options with other images or another batch size");
    }
    trace.steps.push_back(std::move(step));
  }

  int value_of(const Tensor& t) const {
    auto at = numbers_.find(t.impl());
    return at == numbers_.end() ? -1 : at->second.number;
  }

 private:
  // While somebody holds `alive`, the address is not used again, though the values are freed.
  struct Number {
    std::weak_ptr<TensorImpl> alive;
    int number;
  };
  std::unordered_map<const TensorImpl*, Number> numbers_;
  std::map<std::string, Tensor, std::less<>> parameters_;
  GraphTrace* first_;
  std::string op_;
  int constants_seen_ = 0;

  int number(const Tensor& t) {
    int next = int(trace.shapes.size());
    numbers_[t.impl()] = {t.pointer(), next};
    trace.shapes.push_back(t.shape());
    return next;
  }

  Operand operand(const Tensor& t) {
    if (!t) return {};
    if (int value = value_of(t); value >= 0) return {value, -1};
    Constant c{t.to(Device{}).contiguous(), t.name()};
    if (auto at = parameters_.find(c.name); at != parameters_.end())
      c.parameter = at->second.raw() == c.tensor.raw() && at->second.numel() == t.numel();
    if (first_)
      compare(c);
    else
      trace.constants.push_back(std::move(c));
    return {-1, constants_seen_++};
  }

  void compare(const Constant& c) {
    auto& known = first_->constants;
    bool same = size_t(constants_seen_) < known.size();
    if (same) {
      Constant& other = known[size_t(constants_seen_)];
      const Tensor &a = other.tensor, &b = c.tensor;
      same = c.parameter ? other.parameter && a.raw() == b.raw() : same_values(a, b);
      // One for a sample: the first pass has one, of two samples each must have the same.
      if (!same && a.rank() && a.dim(0) == 1 && b.rank() == a.rank() && b.dim(0) == 2) {
        Shape strides = row_major_strides(b.shape());
        same = other.per_sample = same_values(a, alias(b, a.shape(), strides)) &&
                                  same_values(a, alias(b, a.shape(), strides, strides[0]));
      }
    }
    PUPIL_CHECK(same, "export: ", op_, ": its input ", c.name, c.tensor.shape(),
                " depends on the images in a way that no op announced");
  }
};

using Names = std::vector<std::string>;
using Ints = std::vector<int64_t>;

Ints list(const Shape& shape) { return {shape.dims, shape.dims + shape.rank}; }

// Ops of one or two inputs that ONNX has as they are.
const std::map<std::string_view, const char*> kSame{
    {"relu", "Relu"},         {"exp", "Exp"},
    {"log", "Log"},           {"sqrt", "Sqrt"},
    {"sigmoid", "Sigmoid"},   {"tanh", "Tanh"},
    {"abs", "Abs"},           {"erf", "Erf"},
    {"softplus", "Softplus"}, {"hard_swish", "HardSwish"},
    {"add", "Add"},           {"sub", "Sub"},
    {"mul", "Mul"},           {"div", "Div"},
    {"maximum", "Max"},       {"minimum", "Min"}};

// Writes the steps as nodes.
class GraphWriter {
 public:
  GraphWriter(const GraphTrace& one, const GraphTrace& two, std::string images)
      : one_(one), two_(two), images_(images) {
    names_.assign(one.shapes.size(), "");
    names_[0] = std::move(images);
  }

  onnx::Graph graph;

  // 8-bit pixels (n, h, w, c) -> images: (p / 255 - mean) / std
  void normalise(const models::Preprocessing& in) {
    std::vector<float> factor, summand;
    for (size_t c = 0; c < size_t(in.channels); c++) {
      factor.push_back(float(1 / (255 * double(in.std[c]))));
      summand.push_back(float(-double(in.mean[c]) / double(in.std[c])));
    }
    Shape channels{in.channels, 1, 1};
    std::string x = transposed(add("Cast", {images_}, {{"to", int64_t(1)}}), {0, 3, 1, 2});
    x = add("Mul", {x, initializer("constant", from(factor, channels))});
    names_[0] = add("Add", {x, initializer("constant", from(summand, channels))});
  }

  void write(const Step& step) {
    step_ = &step;
    if (step.op == "patches")  // a convolution, if a linear layer reads it
      patches_[step.output] = &step;
    else
      names_[size_t(step.output)] = written();
  }

  std::string value(int number) {
    if (auto at = patches_.find(number); at != patches_.end() && names_[size_t(number)].empty()) {
      const Step* reader = std::exchange(step_, at->second);
      names_[size_t(number)] = cut_patches();
      step_ = reader;
    }
    return names_[size_t(number)];
  }

  std::string add(const char* type, Names inputs, std::vector<onnx::Attribute> attributes = {}) {
    std::string name = concat(type, "_", ++counts_[type]);
    graph.nodes.push_back({type, std::move(inputs), {name}, std::move(attributes)});
    return name;
  }
  // Equal ones are stored once.
  std::string initializer(const std::string& wish, const Tensor& tensor) {
    std::string_view bytes(static_cast<const char*>(tensor.raw()),
                           tensor.numel() ? tensor.bytes() : 0);
    auto [begin, end] = by_content_.equal_range(std::hash<std::string_view>()(bytes));
    for (auto at = begin; at != end; ++at)
      if (same_values(graph.initializers[at->second].value, tensor))
        return graph.initializers[at->second].name;
    int& used = counts_[wish];
    std::string name = wish == "constant" || used ? concat(wish, "_", used + 1) : wish;
    used++;
    by_content_.emplace(std::hash<std::string_view>()(bytes), graph.initializers.size());
    graph.initializers.push_back({name, tensor});
    return name;
  }
  std::string ints(const Ints& values) {
    return initializer("constant", from(values, {int64_t(values.size())}));
  }
  std::string scalar(int64_t value) {
    return initializer("constant", alias(from(Ints{value}, {1}), {}, {}));
  }
  std::string number(double value) { return initializer("constant", full({}, value)); }

 private:
  const GraphTrace &one_, &two_;
  std::string images_, batch_, zero_;
  Names names_;  // of values
  std::map<int, const Step*> patches_;
  std::map<std::string, int> counts_;
  std::unordered_multimap<size_t, size_t> by_content_;
  const Step* step_ = nullptr;

  const KeptAttribute& attribute(std::string_view name) const {
    for (const KeptAttribute& a : step_->attributes)
      if (a.name == name) return a;
    PUPIL_CHECK(false, "export: ", step_->op, " does not announce its ", name);
  }
  double real(std::string_view name) const { return attribute(name).number; }
  int64_t whole(std::string_view name) const { return int64_t(real(name)); }
  const Shape& sizes(std::string_view name) const { return attribute(name).sizes; }

  bool has(size_t input) const {
    return input < step_->inputs.size() && !(step_->inputs[input] == Operand{});
  }
  std::string input(size_t k) { return name_of(step_->inputs.at(k)); }
  std::string name_of(const Operand& o) {
    if (o.constant < 0) return value(o.value);
    const Constant& c = one_.constants[size_t(o.constant)];
    std::string name = constant(c, c.tensor);
    return c.per_sample ? expanded(name, c.tensor.shape()) : name;
  }
  // A constant in the shape of `tensor`, which is its own or another of as many elements.
  std::string constant(const Constant& c, const Tensor& tensor) {
    if (c.name.empty()) return initializer("constant", tensor);
    return initializer(c.parameter || c.name.ends_with(kComputed) ? c.name : c.name + kComputed,
                       tensor);
  }
  const Shape& shape(const Operand& o) const {
    return o.constant < 0 ? one_.shapes[size_t(o.value)]
                          : one_.constants[size_t(o.constant)].tensor.shape();
  }
  const Shape& in_shape(size_t k = 0) const { return shape(step_->inputs.at(k)); }
  const Shape& out_shape() const { return one_.shapes[size_t(step_->output)]; }
  // The output's sizes, -1 on the axis that grows with the batch.
  Ints out_sizes() const {
    Ints sizes = list(out_shape());
    const Shape& other = two_.shapes[size_t(step_->output)];
    int growing = 0;
    for (size_t d = 0; d < sizes.size(); d++) {
      if (sizes[d] == other[int(d)]) continue;
      growing++;
      PUPIL_CHECK(other[int(d)] == 2 * sizes[d] && growing == 1, "export: ", step_->op, ": ",
                  out_shape(), " of one image, ", other, " of two");
      sizes[d] = -1;
    }
    return sizes;
  }

  std::string batch() {  // its size, as a list of one
    if (batch_.empty())
      batch_ = add("Shape", {images_}, {{"start", int64_t(0)}, {"end", int64_t(1)}});
    return batch_;
  }
  // (1, ..) repeated for every sample.
  std::string expanded(const std::string& x, const Shape& one) {
    Ints rest = list(one);
    rest.erase(rest.begin());
    std::string sizes =
        rest.empty() ? batch() : add("Concat", {batch(), ints(rest)}, {{"axis", int64_t(0)}});
    return add("Expand", {x, sizes});
  }
  std::string reshaped(const std::string& x, const Ints& sizes) {
    return add("Reshape", {x, ints(sizes)});
  }
  std::string transposed(const std::string& x, Ints order) {
    return add("Transpose", {x}, {{"perm", std::move(order)}});
  }
  std::string last_two_swapped(const std::string& x, int rank) {
    Ints order;
    for (int d = 0; d < rank; d++) order.push_back(d);
    std::swap(order[size_t(rank) - 1], order[size_t(rank) - 2]);
    return transposed(x, order);
  }
  std::string slice(const std::string& x, const Ints& begin, const Ints& end, const Ints& axes,
                    const Ints& steps) {
    return add("Slice", {x, ints(begin), ints(end), ints(axes), ints(steps)});
  }

  std::string cut_patches() {  // (n, c, h, w) -> (n, h/s w/s, c s s)
    int64_t side = whole("side"), c = in_shape()[1], h = in_shape()[2] / side,
            w = in_shape()[3] / side;
    std::string squares = reshaped(input(0), {0, c, h, side, w, side});
    return reshaped(transposed(squares, {0, 2, 4, 1, 3, 5}), {0, h * w, c * side * side});
  }

  std::string linear() {
    auto cut = patches_.find(step_->inputs[0].value);
    const Operand& weights = step_->inputs[1];
    if (cut != patches_.end() && weights.constant >= 0) {
      const Constant& c = one_.constants[size_t(weights.constant)];
      const Step* reader = std::exchange(step_, cut->second);
      int64_t side = whole("side");
      Shape kernel{c.tensor.dim(0), in_shape()[1], side, side};
      Names inputs{input(0), constant(c, alias(c.tensor, kernel, row_major_strides(kernel)))};
      step_ = reader;
      if (has(2)) inputs.push_back(input(2));
      std::string y =
          add("Conv", inputs, {{"kernel_shape", Ints{side, side}}, {"strides", Ints{side, side}}});
      return transposed(reshaped(y, {0, kernel[0], -1}), {0, 2, 1});
    }
    if (in_shape().rank == 2) {
      Names inputs{input(0), input(1)};
      if (has(2)) inputs.push_back(input(2));
      return add("Gemm", inputs, {{"transB", int64_t(1)}});
    }
    std::string y = add("MatMul", {input(0), transposed(input(1), {1, 0})});
    return has(2) ? add("Add", {y, input(2)}) : y;
  }

  std::string convolution() {
    const Shape& w = sizes("window");
    Names inputs{input(0), input(1)};
    if (has(2)) inputs.push_back(input(2));
    return add("Conv", inputs,
               {{"kernel_shape", Ints{in_shape(1)[2], in_shape(1)[3]}},
                {"strides", Ints{w[0], w[1]}},
                {"pads", Ints{w[2], w[3], w[2], w[3]}},
                {"dilations", Ints{w[4], w[5]}},
                {"group", in_shape()[1] / in_shape(1)[1]}});
  }

  // The padding behind is what the last window needs: rules of rounding differ between programs.
  std::string pooling(bool maximum) {
    const Shape &w = sizes("window"), &kernel = sizes("kernel");
    Ints pads{w[2], w[3], 0, 0};
    for (int d = 0; d < 2; d++) {
      int64_t reach = w[4 + d] * (kernel[d] - 1) + 1;
      int64_t behind = (out_shape()[2 + d] - 1) * w[d] + reach - in_shape()[2 + d] - w[2 + d];
      PUPIL_CHECK(maximum || !real("include_pad") || behind <= w[2 + d],
                  "export: avg_pool2d: a window that reaches beyond its padding cannot be written");
      pads[size_t(2 + d)] = std::max<int64_t>(behind, 0);
    }
    std::vector<onnx::Attribute> attributes{
        {"kernel_shape", list(kernel)}, {"strides", Ints{w[0], w[1]}}, {"pads", pads}};
    std::string x = input(0);
    if (!maximum) {
      attributes.push_back({"count_include_pad", whole("include_pad")});
      return add("AveragePool", {x}, attributes);
    }
    attributes.push_back({"dilations", Ints{w[4], w[5]}});
    // onnxruntime 1.31 merges zeros of a Pad into the pool, where they count as -infinity (BiT's
    // logits were 1e-3 off); the smallest number above zero stays out of it.
    for (onnx::Node& n : graph.nodes)
      if (n.outputs[0] == x && n.type == "Pad" && n.inputs.back() == zero_)
        n.inputs[2] = number(double(std::numeric_limits<float>::min()));
    return add("MaxPool", {x}, attributes);
  }

  std::string layer_norm() {
    std::string x = input(0);
    if (has(1))
      return add("LayerNormalization", {x, input(1), input(2)},
                 {{"axis", int64_t(-1)}, {"epsilon", float(real("eps"))}});
    // Groups of channels are long rows. Runtimes sum the squares of those in float32 before the
    // mean is gone, 1e-3 off; hence written out.
    const std::vector<onnx::Attribute> along{{"axes", Ints{-1}}, {"keepdims", int64_t(1)}};
    std::string centred = add("Sub", {x, add("ReduceMean", {x}, along)});
    std::string variance = add("ReduceMean", {add("Mul", {centred, centred})}, along);
    return add("Div", {centred, add("Sqrt", {add("Add", {variance, number(real("eps"))})})});
  }

  std::string batch_norm() {
    int64_t channels = in_shape()[1];
    bool own = has(2);
    Names inputs{input(0), own ? input(1) : initializer("constant", full({channels}, 1)),
                 own ? input(2) : initializer("constant", zeros({channels}))};
    for (const char* statistic : {"mean", "variance"})
      inputs.push_back(name_of(attribute(statistic).tensor));
    std::string y = add("BatchNormalization", inputs, {{"epsilon", float(real("eps"))}});
    size_t last = step_->inputs.size() - 1;
    if (last == 1 || last == 3) y = add("Add", {y, input(last)});
    return real("relu") ? add("Relu", {y}) : y;
  }

  std::string attention() {
    int64_t heads = whole("heads"), width = out_shape()[2] / heads;
    std::string packed = transposed(reshaped(input(0), {0, 0, 3, heads, width}), {2, 0, 3, 1, 4});
    std::string parts[3];
    for (int64_t k = 0; k < 3; k++)
      parts[k] = add("Gather", {packed, scalar(k)}, {{"axis", int64_t(0)}});
    std::string q = add("Mul", {parts[0], number(1 / std::sqrt(double(width)))});
    std::string scores = add("MatMul", {q, transposed(parts[1], {0, 1, 3, 2})});
    std::string y = add("MatMul", {add("Softmax", {scores}, {{"axis", int64_t(-1)}}), parts[2]});
    return reshaped(transposed(y, {0, 2, 1, 3}), {0, 0, heads * width});
  }

  std::string gelu() {
    std::string x = input(0), inner;
    if (real("tanh")) {
      std::string cube = add("Mul", {add("Mul", {x, x}), x});
      std::string sum = add("Add", {x, add("Mul", {cube, number(0.044715)})});
      inner = add("Tanh", {add("Mul", {sum, number(std::sqrt(2 / M_PI))})});
    } else {
      inner = add("Erf", {add("Div", {x, number(std::sqrt(2.0))})});
    }
    return add("Mul", {add("Mul", {x, add("Add", {inner, number(1)})}), number(0.5)});
  }

  std::string pad() {
    Ints pads = list(sizes("begin"));
    for (int d = 0; d < in_shape().rank; d++)
      pads.push_back(out_shape()[d] - in_shape()[d] - pads[size_t(d)]);
    std::string value = number(real("value"));
    if (real("value") == 0) zero_ = value;
    return add("Pad", {input(0), ints(pads), value});
  }

  std::string shortcut() {
    int64_t stride = whole("stride"), more = out_shape()[1] - in_shape()[1], front = more / 2;
    std::string x = input(0);
    if (stride > 1) x = slice(x, {0, 0}, {in_shape()[2], in_shape()[3]}, {2, 3}, {stride, stride});
    return more ? add("Pad", {x, ints({0, front, 0, 0, 0, more - front, 0, 0})}) : x;
  }

  std::string written() {
    const std::string& op = step_->op;
    if (auto same = kSame.find(op); same != kSame.end()) {
      Names inputs{input(0)};
      if (step_->inputs.size() > 1) inputs.push_back(input(1));
      return add(same->second, inputs);
    }
    if (op == "linear") return linear();
    if (op == "conv2d") return convolution();
    if (op == "conv2d_tail") {
      std::string y = convolution();
      if (has(3)) y = add("Add", {y, input(3)});
      switch (Activation(whole("activation"))) {
        case Activation::relu:
          return add("Relu", {y});
        case Activation::relu6:
          return add("Clip", {y, number(0), number(6)});
        case Activation::hard_swish:
          return add("HardSwish", {y});
        default:
          return y;
      }
    }
    if (op == "batch_norm") return batch_norm();
    if (op == "max_pool2d" || op == "avg_pool2d") return pooling(op == "max_pool2d");
    if (op == "global_avg_pool")
      return add("Flatten", {add("GlobalAveragePool", {input(0)})}, {{"axis", int64_t(1)}});
    if (op == "qkv_attention") return attention();
    if (op == "layer_norm") return layer_norm();
    if (op == "matmul") {
      Names inputs{input(0), input(1)};
      for (size_t k : {0, 1})
        if (real(k ? "tb" : "ta")) inputs[k] = last_two_swapped(inputs[k], in_shape(k).rank);
      return add("MatMul", inputs);
    }
    if (op == "softmax" || op == "log_softmax") {
      std::string x = input(0);
      if (real("temperature") != 1) x = add("Div", {x, number(real("temperature"))});
      return add(op == "softmax" ? "Softmax" : "LogSoftmax", {x}, {{"axis", int64_t(-1)}});
    }
    if (op == "normalize") {
      std::string x = input(0);
      std::string norm = add("ReduceL2", {x}, {{"axes", Ints{-1}}, {"keepdims", int64_t(1)}});
      return add("Div", {x, add("Max", {norm, number(real("eps"))})});
    }
    if (op == "gelu") return gelu();
    if (op == "silu" || op == "quick_gelu") {
      std::string x = input(0);
      std::string gate = op == "silu" ? x : add("Mul", {x, number(1.702)});
      return add("Mul", {x, add("Sigmoid", {gate})});
    }
    if (op == "square") return add("Mul", {input(0), input(0)});
    if (op == "scale") return add("Mul", {input(0), number(real("factor"))});
    if (op == "add_scalar") return add("Add", {input(0), number(real("summand"))});
    if (op == "pow") return add("Pow", {input(0), number(real("exponent"))});
    if (op == "leaky_relu") return add("LeakyRelu", {input(0)}, {{"alpha", float(real("slope"))}});
    if (op == "clamp") return add("Clip", {input(0), number(real("low")), number(real("high"))});
    if (op == "mean" || op == "sum") {
      onnx::Attribute keep{"keepdims", int64_t(out_shape().rank == in_shape().rank)};
      Ints axes = list(sizes("axes"));
      if (op == "mean") return add("ReduceMean", {input(0)}, {{"axes", axes}, keep});
      return add("ReduceSum", {input(0), ints(axes)}, {keep});
    }
    if (op == "view") return reshaped(input(0), out_sizes());
    if (op == "permute") return transposed(input(0), list(sizes("order")));
    if (op == "slice") {
      const Shape& at = sizes("at");
      return slice(input(0), {at[1]}, {at[2]}, {at[0]}, {at[3]});
    }
    if (op == "cat") {
      Names inputs;
      for (size_t k = 0; k < step_->inputs.size(); k++) inputs.push_back(input(k));
      return add("Concat", inputs, {{"axis", whole("axis")}});
    }
    if (op == "expand") {
      Ints sizes = out_sizes();
      bool per_sample = !sizes.empty() && sizes[0] < 0;
      return per_sample ? expanded(input(0), out_shape()) : add("Expand", {input(0), ints(sizes)});
    }
    if (op == "embed_tokens") {
      std::string x = input(0);
      if (has(1)) x = add("Concat", {expanded(input(1), in_shape(1)), x}, {{"axis", int64_t(1)}});
      return add("Add", {x, input(2)});
    }
    if (op == "index_select" || op == "embedding")
      return add("Gather", {input(0), name_of(attribute("index").tensor)},
                 {{"axis", whole("axis")}});
    if (op == "text_ends") {  // the first of the largest ids of each text, as rows of all tokens
      int64_t length = in_shape()[1];
      std::string ids = add("Cast", {input(0)}, {{"to", int64_t(6)}});  // not all runtimes have i64
      std::string end = add("ArgMax", {ids}, {{"axis", int64_t(1)}, {"keepdims", int64_t(0)}});
      std::string all = add("Mul", {add("Squeeze", {batch()}), scalar(length)});
      return add("Add", {end, add("Range", {scalar(0), all, scalar(length)})});
    }
    if (op == "pad") return pad();
    if (op == "shortcut_a") return shortcut();
    PUPIL_CHECK(false, "export: ", op, " has no counterpart in ONNX yet");
  }
};

Tensor random_images(const Shape& shape) {
  std::vector<float> values(size_t(shape.numel()));
  for (size_t i = 0; i < values.size(); i++)
    values[i] = float(normal({uint64_t(shape[0])}, int64_t(i)));
  return from(values, shape);
}

struct Pass {
  std::string name;
  std::function<Tensor(int64_t n)> sample;  // n random inputs, other ones for another n
  std::function<Tensor(const Tensor&)> forward;
  onnx::Port input;  // without its shape: that of `sample`
  std::string output;
  const models::Preprocessing* normalise = nullptr;  // of 8-bit pixels, which are the input then
};

onnx::Graph graph_of(const Pass& pass, const nn::Store& store) {
  NoGrad no_grad;
  auto run = [&](int64_t n, GraphTrace* first) {
    Tensor x = pass.sample(n);
    GraphListener listener(store, x, first);
    int result = listener.value_of(pass.forward(x));
    GraphTrace& trace = listener.trace;
    PUPIL_CHECK(result >= 0 && (!first || trace.steps.size() == first->steps.size()),
                "export: ", pass.name,
                ": the output does not follow from the ops that were announced");
    trace.result = result;
    return std::move(trace);
  };
  GraphTrace one = run(1, nullptr), two = run(2, &one);
  PUPIL_CHECK(one.result == two.result, "export: ", pass.name, ": another output of two inputs");

  auto port = [&](onnx::Port port, int value) {
    if (!port.shape.empty()) return port;
    port.shape = list(one.shapes[size_t(value)]);
    port.shape[0] = -1;
    return port;
  };
  GraphWriter writer(one, two, pass.input.name);
  if (pass.normalise) writer.normalise(*pass.normalise);
  for (const Step& step : one.steps) writer.write(step);
  std::string last = writer.value(one.result);
  onnx::Graph& graph = writer.graph;
  graph.nodes.push_back({"Identity", {last}, {pass.output}, {}});
  std::set<std::string> read;
  for (const onnx::Node& n : graph.nodes) read.insert(n.inputs.begin(), n.inputs.end());
  std::erase_if(graph.initializers, [&](auto& t) { return !read.count(t.name); });
  graph.name = pass.name;
  graph.inputs = {port(pass.input, 0)};
  graph.outputs = {port({pass.output}, one.result)};
  return std::move(graph);
}

}  // namespace

onnx::Graph onnx_graph(const models::Model& model, const nn::Store& store, bool with_preprocess) {
  const models::Preprocessing& in = model.input;
  if (with_preprocess && model.inputs)
    fail_input("export: ", model.name, " takes rows of features, not images; there is nothing to ",
               "preprocess");
  Pass pass{.name = model.name,
            .sample =
                [&](int64_t n) {
                  return random_images(model.inputs ? Shape{n, model.inputs}
                                                    : Shape{n, in.channels, in.size, in.size});
                },
            .forward = [&](const Tensor& x) { return model.forward(x, {}).logits; },
            .input = {model.inputs ? "rows" : "images"},
            .output = model.classes ? "logits" : "features"};
  if (with_preprocess) {
    pass.input = {"pixels", DType::u8, {-1, in.size, in.size, in.channels}};
    pass.normalise = &in;
  }
  return graph_of(pass, store);
}

onnx::Graph onnx_text_graph(const models::Clip& clip, const nn::Store& store) {
  int64_t words = 0;
  for (const nn::Param& p : store.params())
    if (p.name.ends_with("token_embedding.weight")) words = p.value.dim(0);
  PUPIL_CHECK(words > 0, "export: no text tower");
  return graph_of({.name = clip.image.name + " text tower",
                   .sample =
                       [&](int64_t n) {
                         std::vector<int64_t> ids(size_t(n * clip.context));
                         for (size_t i = 0; i < ids.size(); i++)
                           ids[i] = random_bits({uint64_t(n)}, int64_t(i)) % words;
                         return from(ids, {n, clip.context});
                       },
                   .forward = [&](const Tensor& ids) { return clip.text(ids, {}); },
                   .input = {"ids", DType::i64},
                   .output = "features"},
                  store);
}

}  // namespace pupil

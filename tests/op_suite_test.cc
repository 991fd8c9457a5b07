// Every op and method declares samples (autograd/samples.h); here every check runs on every sample.
// One test per op. The second half proves that each check can fail.
#include <set>

#include "autograd/samples.h"
#include "support.h"
#include "tensor/launch.h"
#include "tensor/memory.h"
#include "tensor/ops.h"

namespace pupil::test {

// A kernel that reads what a neighbour wrote in the same `each`: right in serial order only.
struct ReadsNeighbour {
  const float* x;
  float* y;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t) const {
    const float* in = x;
    float* out = y;
    team.each(n, [&](int64_t i) { out[i] = in[i] + (i > 0 ? out[i - 1] : 0); });
  }
};

namespace {

struct PlainMode {
  explicit PlainMode(bool on) : outer(plain_mode()) { set_plain_mode(on); }
  ~PlainMode() { set_plain_mode(outer); }
  bool outer;
};

struct LaneOrder {
  LaneOrder() { cpu_team() = CpuTeam::lanes; }
  ~LaneOrder() { cpu_team() = CpuTeam::serial; }
};

// The same numbers for every dtype; round: exact in bf16.
std::vector<double> random_values(int64_t n, uint32_t stream, double low, double high, bool round) {
  std::vector<double> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) {
    float value = float(low + (high - low) * double(uniform({123, stream, 0}, i)));
    v[size_t(i)] = double(round ? float(bf16(value)) : value);
  }
  return v;
}

// The tensor's values in memory with gaps and swapped axes.
Tensor scattered(const Tensor& t) {
  if (t.rank() == 0) return t;
  Shape padded = t.shape();
  std::swap(padded[0], padded[-1]);
  padded[-1] *= 2;
  Tensor memory = full(padded, NAN, t.dtype());
  Shape strides = row_major_strides(padded);
  std::swap(strides[0], strides[-1]);
  strides[t.rank() == 1 ? -1 : 0] *= 2;
  Tensor out = alias(memory, t.shape(), strides);
  copy_into(out, t);
  return out;
}

struct How {
  DType dtype = DType::f32;
  int scatter = kMaxRank + 1;  // inputs of this rank and above are not contiguous
  bool round = false;          // inputs are exact in bf16
  int only = -1;               // only this input asks for a gradient; -2: none does
  double prefill = 0;          // the leaves already hold this gradient
  bool stale_buffer = false;   // the leaves own a buffer of old values, as an optimizer's do
};

struct Outcome {
  std::vector<std::vector<double>> tensors;  // the value, then the gradient of each input
  std::vector<bool> present;
  bool recorded = false;
  size_t backward_allocations = 0;
  uint64_t trace = 0;
};

bool constant(const Sample& sample, size_t input) {
  for (int k : sample.options.constants)
    if (size_t(k) == input) return true;
  return false;
}

Outcome run(const Sample& sample, const How& how = {}) {
  Outcome out;
  StepScope step;  // also: whatever outlives the call is an error with its name
  {
    std::vector<Tensor> inputs;
    for (size_t k = 0; k < sample.inputs.size(); k++) {
      const Shape& shape = sample.inputs[k];
      Tensor t = from(random_values(shape.numel(), uint32_t(k + 1), sample.options.low,
                                    sample.options.high, how.round),
                      shape, how.dtype);
      if (t.rank() >= how.scatter) t = scattered(t);
      t = t.detach();
      t.requires_grad_(!constant(sample, k) && (how.only == -1 || how.only == int(k)));
      if (how.prefill != 0 || how.stale_buffer) {
        double old = how.stale_buffer ? NAN : how.prefill;
        t.impl()->grad = full(shape, old, how.dtype).pointer();
        t.impl()->grad_is_set = !how.stale_buffer;
      }
      inputs.push_back(t);
    }
    std::vector<void*> buffers;
    for (auto& t : inputs)
      buffers.push_back(t.impl()->grad ? Tensor(t.impl()->grad).raw() : nullptr);
    Tensor y = sample.f(inputs);
    out.recorded = y.requires_grad();
    out.tensors.push_back(y.values());
    out.present.push_back(true);
    if (out.recorded) {
      Tensor cotangent = from(random_values(y.numel(), 99, -1, 1, true), y.shape(), y.dtype());
      size_t before = Arena::step({}).stats().allocations;
      backward(y, cotangent);
      out.backward_allocations = Arena::step({}).stats().allocations - before;
    }
    for (size_t k = 0; k < inputs.size(); k++) {
      Tensor g = inputs[k].grad();
      out.present.push_back(bool(g));
      out.tensors.push_back(g ? g.values() : std::vector<double>());
      if (g && buffers[k])
        PUPIL_CHECK(g.raw() == buffers[k], "the gradient left the buffer of its leaf");
    }
  }
  out.trace = Arena::step({}).trace();
  return out;
}

std::string label(size_t tensor) {
  return tensor == 0 ? "value" : concat("gradient of input ", tensor - 1);
}

// |a - b| <= atol + rtol max|b| for every element of every tensor, or which one is worst.
std::string compare(const Outcome& a, const Outcome& b, double rtol, double atol) {
  for (size_t k = 0; k < b.tensors.size(); k++) {
    if (a.present[k] != b.present[k])
      return concat(label(k), a.present[k] ? " should not exist" : " is missing");
    if (a.tensors[k].size() != b.tensors[k].size()) return label(k) + " has another size";
    double largest = 0, worst = 0;
    size_t at = 0;
    for (double v : b.tensors[k]) largest = std::max(largest, std::fabs(v));
    for (size_t i = 0; i < b.tensors[k].size(); i++) {
      double d = std::fabs(a.tensors[k][i] - b.tensors[k][i]);
      if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d, at = i;
    }
    if (!(worst <= atol + rtol * largest))
      return concat(label(k), " element ", at, ": ", a.tensors[k][at], " for ", b.tensors[k][at]);
  }
  return "";
}

// Squared error over squared size; `floor` per element keeps results of exactly 0 comparable.
std::string compare_nmse(const Outcome& a, const Outcome& b, double limit, double floor) {
  for (size_t k = 0; k < b.tensors.size(); k++) {
    if (a.present[k] != b.present[k] || a.tensors[k].size() != b.tensors[k].size())
      return label(k) + " differs in size";
    double error = 0, size = 0;
    for (size_t i = 0; i < b.tensors[k].size(); i++) {
      double d = a.tensors[k][i] - b.tensors[k][i];
      error += d * d;
      size += b.tensors[k][i] * b.tensors[k][i] + floor;
    }
    if (size > 0 && !(error / size <= limit))
      return concat(label(k), ": NMSE ", error / size, " above ", limit);
  }
  return "";
}

bool same_bits(const Outcome& a, const Outcome& b) {
  if (a.present != b.present) return false;
  for (size_t k = 0; k < a.tensors.size(); k++) {
    size_t n = a.tensors[k].size();  // memcmp must not see the null pointer of an empty vector
    if (n != b.tensors[k].size() ||
        (n && memcmp(a.tensors[k].data(), b.tensors[k].data(), n * sizeof(double)) != 0))
      return false;
  }
  return true;
}

constexpr double kRelative = 1e-5, kAbsolute = 2e-6;  // float32 against float32 or f64

// ---- the checks: "" or what is wrong ----

std::string check_gradient(const Sample& s) {
  std::vector<Tensor> inputs;
  for (size_t k = 0; k < s.inputs.size(); k++)
    inputs.push_back(from(random_values(s.inputs[k].numel(), uint32_t(k + 1), s.options.low,
                                        s.options.high, false),
                          s.inputs[k])
                         .requires_grad_(!constant(s, k)));
  GradcheckOptions options;
  options.max_elements = 400;
  return gradcheck(s.f, inputs, options);
}

std::string check_lane_order(const Sample& s) {
  PlainMode plain(true);
  Outcome serial = run(s);
  LaneOrder lanes;
  return compare(run(s), serial, kRelative, kAbsolute);
}

std::string check_repeats(const Sample& s) {
  run(s);  // caches fill
  Outcome first = run(s), second = run(s);
  if (!same_bits(first, second)) return "two runs give different bits";
  if (first.trace != second.trace) return "two runs allocate differently";
  return "";
}

std::string check_bf16(const Sample& s) {
  if (!s.options.bf16) return "";
  Outcome low = run(s, {.dtype = DType::bf16, .round = true});
  Outcome high = run(s, {.dtype = DType::f64, .round = true});
  return compare_nmse(low, high, 3e-4, 1e-5);
}

std::string check_fast(const Sample& s) {
  PlainMode fast(false);
  Outcome f32 = run(s), f64 = run(s, {.dtype = DType::f64});
  std::string problem = compare(f32, f64, kRelative, kAbsolute);
  if (!problem.empty()) return "against f64: " + problem;
  PlainMode plain(true);
  problem = compare(run(s), f64, kRelative, kAbsolute);
  if (!problem.empty()) return "plain against f64: " + problem;
  problem = compare(f32, run(s), kRelative, kAbsolute);
  return problem.empty() ? "" : "against plain: " + problem;
}

// Vectors of parameters (weight, bias) may be refused by name, loudly; other inputs must work.
std::string check_scattered(const Sample& s) {
  for (bool plain : {false, true}) {
    PlainMode mode(plain);
    Outcome expected = run(s);
    std::string problem = compare(run(s, {.scatter = 2}), expected, kRelative, kAbsolute);
    if (!problem.empty()) return problem;
    try {
      problem = compare(run(s, {.scatter = 1}), expected, kRelative, kAbsolute);
    } catch (const Error& e) {
      if (std::string(e.what()).find(s.op) != 0) throw;
    }
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string check_accumulation(const Sample& s) {
  Outcome fresh = run(s), expected = fresh;
  for (size_t k = 1; k < expected.tensors.size(); k++) {
    expected.present[k] = true;
    if (!fresh.present[k]) expected.tensors[k].assign(size_t(s.inputs[k - 1].numel()), 0);
    for (double& v : expected.tensors[k]) v += 0.5;
  }
  std::string problem = compare(run(s, {.prefill = 0.5}), expected, kRelative, kAbsolute);
  if (!problem.empty()) return "onto a gradient: " + problem;
  problem = compare(run(s, {.stale_buffer = true}), fresh, kRelative, kAbsolute);
  return problem.empty() ? "" : "over an old buffer: " + problem;
}

std::string check_frozen(const Sample& s) {
  run(s);
  Outcome all = run(s);
  if (run(s, {.only = -2}).recorded) return "recorded though no input asks for a gradient";
  for (size_t k = 0; k < s.inputs.size(); k++) {
    if (constant(s, k)) continue;
    Outcome one = run(s, {.only = int(k)}), expected = all;
    for (size_t j = 0; j < s.inputs.size(); j++)
      if (j != k) expected.present[j + 1] = false, expected.tensors[j + 1].clear();
    std::string problem = compare(one, expected, kRelative, kAbsolute);
    if (!problem.empty()) return concat("only input ", k, " trained: ", problem);
    if (s.inputs.size() > 1 && one.backward_allocations > all.backward_allocations)
      return concat("only input ", k, " trained: more memory in backward than for all");
  }
  return "";
}

// What the tape keeps alive when a forward pass is over. The inputs are values on the way, so that
// no leaf holds their memory.
struct Kept {
  std::vector<bool> storages;                // of each input, then of the output
  size_t bytes = 0, inputs = 0, output = 0;  // kept; of all inputs and of the output
  std::vector<std::vector<double>> gradients;
};

// `only`: as in How. `overwrite`: before the backward pass every byte of this input, or of the
// output (the number of inputs), becomes `byte`.
Kept keep(const Sample& sample, int only, int overwrite = -1, int byte = 0) {
  StepScope step;
  Kept kept;
  auto live = [] { return Arena::step({}).stats().live; };
  std::vector<Tensor> leaves, inputs;
  std::vector<std::weak_ptr<Storage>> storages;
  for (size_t k = 0; k < sample.inputs.size(); k++) {
    const Shape& shape = sample.inputs[k];
    inputs.push_back(from(random_values(shape.numel(), uint32_t(k + 1), sample.options.low,
                                        sample.options.high, false),
                          shape, DType::f32));
    storages.push_back(inputs[k].impl()->storage);
    kept.inputs += inputs[k].bytes();
    if (constant(sample, k) || (only != -1 && only != int(k))) continue;
    leaves.push_back(empty(shape).requires_grad_());
    record("input", inputs[k], {leaves.back()}, [](Backward& b) { b[0].give(b.gy); });
  }
  size_t of_leaves = live() - kept.inputs;
  Tensor y = sample.f(inputs);
  inputs.clear();
  kept.output = y.impl()->storage->bytes;
  storages.push_back(y.impl()->storage);
  if (!y.requires_grad()) {
    kept.bytes = live() - of_leaves - kept.output;
    return kept;
  }
  Tensor cotangent =
      from(random_values(y.numel(), 99, -1, 1, true), y.shape(), DType::f32).to(y.layout());
  Tensor end = empty_like(cotangent);
  size_t of_end = cotangent.impl()->storage->bytes + end.impl()->storage->bytes;
  end.impl()->node = y.impl()->node;
  y = Tensor();
  kept.bytes = live() - of_leaves - of_end;
  for (size_t k = 0; k < storages.size(); k++) {
    std::shared_ptr<Storage> storage = storages[k].lock();
    bool an_input = false;  // the output of a view
    for (size_t j = 0; j < k; j++) an_input |= storage && storages[j].lock() == storage;
    kept.storages.push_back(storage && !an_input && storage->bytes > 0);
    if (int(k) == overwrite) memset(storage->data, byte, storage->bytes);
  }
  backward(end, cotangent);
  for (Tensor& leaf : leaves)
    kept.gradients.push_back(leaf.grad() ? leaf.grad().values() : std::vector<double>());
  return kept;
}

// Times the bytes of inputs and output that compositions, and ops with tables, factors of a matrix,
// values between two layers or products of all pairs of rows, may keep. All others: once, and 128
// for statistics.
const std::map<std::string, double> kKeepsMore = {{"adaptive_avg_pool2d", 2},
                                                  {"interpolate", 4},
                                                  {"resample_pos_embed", 2},
                                                  {"attention", 2},
                                                  {"batch_norm", 2},
                                                  {"conv2d", 2},
                                                  {"mlp", 2},
                                                  {"expm", 4},
                                                  {"orthogonal", 4},
                                                  {"svd", 3},
                                                  {"cdist", 3},
                                                  {"rkd", 20},
                                                  {"aft_delta", 22},
                                                  {"kernel_kd", 3},
                                                  {"huber_loss", 2},
                                                  {"smooth_l1_loss", 2},
                                                  {"cosine_similarity", 2},
                                                  {"tip_adapter_logits", 2}};
// One pass makes all gradients of these, also where only one is asked for.
const std::set<std::string> kOnePass = {"batch_norm", "layer_norm", "cross_entropy"};

// Nothing is kept when nobody asks for a gradient, and else nothing that the gradients do not
// depend on.
std::string check_kept(const Sample& s) {
  PlainMode fast(false);
  if (size_t bytes = keep(s, -2).bytes) return concat(bytes, " bytes kept without a gradient");
  for (int only = -1; only < int(s.inputs.size()); only++) {
    if (only >= 0 && (constant(s, size_t(only)) || kOnePass.count(s.op))) continue;
    Kept kept = keep(s, only);
    if (kept.output == 0) continue;
    std::string where = only < 0 ? "" : concat(" for the gradient of input ", only, " alone");
    auto more = kKeepsMore.find(s.op);
    double limit = more == kKeepsMore.end() ? 1 : more->second;
    if (double(kept.bytes) > limit * double(kept.inputs + kept.output) + 128)
      return concat("keeps ", kept.bytes, " bytes of ", kept.inputs, " + ", kept.output, where);
    bool zero = true;
    for (auto& gradient : kept.gradients)
      for (double v : gradient) zero &= v == 0;
    if (zero) continue;  // they depend on nothing
    for (size_t k = 0; k < kept.storages.size(); k++) {
      bool read = !kept.storages[k];
      for (int byte : {0xff, 0x40, 0xc0})  // NaN, 3 and -6
        read = read || keep(s, only, int(k), byte).gradients != kept.gradients;
      if (!read)
        return concat("keeps ", k < s.inputs.size() ? concat("input ", k) : "the output", " unread",
                      where);
    }
  }
  return "";
}

std::string check_error(const Sample& s) {
  std::vector<Tensor> inputs;
  for (auto& shape : s.inputs) inputs.push_back(full(shape, 0.5).requires_grad_());
  try {
    s.f(inputs);
  } catch (const Error& e) {
    if (std::string(e.what()).find(s.op) == std::string::npos)
      return concat("the message does not name the op: ", e.what());
    return "";
  }
  return "nothing was thrown";
}

struct Check {
  const char* name;
  std::string (*run)(const Sample&);
};
constexpr Check kChecks[] = {
    {"gradient check in f64", check_gradient},
    {"serial against lane order", check_lane_order},
    {"the same bits again", check_repeats},
    {"bf16 against f64", check_bf16},
    {"fast twin", check_fast},
    {"inputs that are not contiguous", check_scattered},
    {"adding to a gradient", check_accumulation},
    {"frozen inputs", check_frozen},
    {"memory kept for the backward pass", check_kept},
};

// "" or what the check found; an exception is a finding too.
std::string outcome(const Check& check, const Sample& sample) {
  try {
    return check.run(sample);
  } catch (const std::exception& e) {
    return concat("threw ", e.what());
  }
}

std::vector<std::string> op_names() {
  std::set<std::string> names;
  for (auto& s : samples()) names.insert(s.op);
  return {names.begin(), names.end()};
}

class OpSuite : public testing::TestWithParam<std::string> {};

TEST_P(OpSuite, Samples) {
  int errors = 0, values = 0;
  for (auto& s : samples()) {
    if (s.op != GetParam()) continue;
    (s.must_throw ? errors : values)++;
    if (s.must_throw) {
      std::string problem = outcome({"wrong input throws", check_error}, s);
      EXPECT_EQ(problem, "") << s.op << ", sample \"" << s.name << "\": wrong input throws";
    } else {
      for (auto& check : kChecks)
        EXPECT_EQ(outcome(check, s), "") << s.op << ", sample \"" << s.name << "\": " << check.name;
    }
  }
  EXPECT_GT(values, 0) << GetParam() << " declares no sample with a value";
}
INSTANTIATE_TEST_SUITE_P(Ops, OpSuite, testing::ValuesIn(op_names()),
                         [](const auto& info) { return info.param; });

const char* const kHeaderOps[] = {"relu",
                                  "mlp",
                                  "exp",
                                  "log",
                                  "sqrt",
                                  "sigmoid",
                                  "tanh",
                                  "abs",
                                  "erf",
                                  "silu",
                                  "quick_gelu",
                                  "softplus",
                                  "leaky_relu",
                                  "pow",
                                  "square",
                                  "scale",
                                  "add_scalar",
                                  "clamp",
                                  "gelu",
                                  "add",
                                  "sub",
                                  "mul",
                                  "div",
                                  "maximum",
                                  "minimum",
                                  "where",
                                  "sum",
                                  "mean",
                                  "variance",
                                  "standard_deviation",
                                  "amax",
                                  "amin",
                                  "logsumexp",
                                  "cumsum",
                                  "softmax",
                                  "log_softmax",
                                  "cross_entropy",
                                  "mse_loss",
                                  "l1_loss",
                                  "huber_loss",
                                  "smooth_l1_loss",
                                  "kl_div",
                                  "bce_with_logits",
                                  "nll_loss",
                                  "cosine_similarity",
                                  "cdist",
                                  "group_norm",
                                  "conv_transpose2d",
                                  "unfold",
                                  "fold",
                                  "pixel_shuffle",
                                  "pixel_unshuffle",
                                  "adaptive_max_pool2d",
                                  "adaptive_avg_pool2d",
                                  "interpolate",
                                  "einsum",
                                  "matmul",
                                  "linear",
                                  "conv2d",
                                  "batch_norm",
                                  "layer_norm",
                                  "attention",

                                  "max_pool2d",
                                  "avg_pool2d",
                                  "global_avg_pool",
                                  "shortcut_a",
                                  "view",
                                  "permute",
                                  "slice",
                                  "cat",
                                  "expand",
                                  "stack",
                                  "roll",
                                  "flip",
                                  "index_select",
                                  "index_add",
                                  "gather",
                                  "scatter_add",
                                  "embedding",
                                  "one_hot",
                                  "sort",
                                  "topk",
                                  "argmax",
                                  "pad",
                                  "to_strided",
                                  "to_dtype",
                                  "dropout",
                                  "drop_path",
                                  "normalize",
                                  "resample_pos_embed",
                                  "svd",
                                  "polar",
                                  "qr",
                                  "haar",
                                  "solve",
                                  "expm",
                                  "cayley",
                                  "orthogonal"};

// Ops that drop out of the link or lose their samples would vanish without this count.
TEST(OpSuiteCoverage, EveryOpOfTheHeaderHasSamples) {
  auto names = op_names();
  std::set<std::string> have(names.begin(), names.end());
  for (const char* op : kHeaderOps) EXPECT_TRUE(have.count(op)) << op << " has no samples";
}

// An op either computes empty and one-element inputs or says by a sample that it refuses them.
TEST(OpSuiteCoverage, EmptyAndOneElement) {
  for (std::string op : kHeaderOps) {
    bool empty = false, one = false;
    for (auto& s : samples()) {
      if (s.op != op) continue;
      for (auto& shape : s.inputs) {
        empty |= shape.numel() == 0;
        one |= shape.numel() == 1;
      }
    }
    EXPECT_TRUE(empty) << op << " has no sample with an empty input";
    EXPECT_TRUE(one) << op << " has no sample with an input of one element";
  }
}

// These only move values, of any dtype.
const std::set<std::string> kTakesIntegers = {
    "view", "permute", "slice",      "cat",           "expand",         "stack",
    "roll", "flip",    "to_strided", "pixel_shuffle", "pixel_unshuffle"};
// The error may be that of an op which they, or their samples, are made of.
const std::set<std::string> kNamesAnother = {"attention",  "einsum", "expm",  "solve",
                                             "group_norm", "haar",   "polar", "conv_transpose2d"};

// An op that computes refuses integers by its name, whichever input they are.
TEST(OpSuiteCoverage, IntegersAreRefused) {
  for (std::string op : kHeaderOps) {
    if (kTakesIntegers.count(op)) continue;
    auto first = std::find_if(samples().begin(), samples().end(),
                              [&](const Sample& s) { return s.op == op && !s.must_throw; });
    ASSERT_NE(first, samples().end());
    for (size_t k = 0; k < first->inputs.size(); k++) {
      if (constant(*first, k)) continue;
      Sample wrong = *first;
      wrong.f = [first, k](const std::vector<Tensor>& inputs) {
        std::vector<Tensor> v;
        for (const Tensor& x : inputs) v.push_back(x.detach());
        v[k] = v[k].to(DType::i64);
        return first->f(v);
      };
      std::string problem = outcome({"wrong input throws", check_error}, wrong);
      if (kNamesAnother.count(op)) {
        EXPECT_NE(problem, "nothing was thrown") << op << ", input " << k;
      } else {
        EXPECT_EQ(problem, "") << op << ", input " << k;
      }
    }
  }
}

// ---- the checks themselves can fail ----

Sample sample_of(Fn f, std::vector<Shape> inputs = {{4, 3}}) {
  return {"broken", "sample", std::move(inputs), std::move(f), {}, false};
}

// y = 2x with a backward of one's own.
Tensor doubled(const Tensor& x, BackwardFn backward) {
  Tensor y = scale(x.detach(), 2);
  return record("broken", y, {x}, std::move(backward));
}
Tensor doubled_gradient(const Tensor& gy) { return scale(gy, 2); }

TEST(ChecksCanFail, ARightOpPassesAll) {
  Sample s = sample_of([](auto& v) {
    return doubled(v[0], [](Backward& b) { b[0].give(doubled_gradient(b.gy)); });
  });
  for (auto& check : kChecks) EXPECT_EQ(outcome(check, s), "") << check.name;
}

TEST(ChecksCanFail, WrongBackward) {
  Sample s = sample_of(
      [](auto& v) { return doubled(v[0], [](Backward& b) { b[0].give(scale(b.gy, 2.01)); }); });
  EXPECT_NE(check_gradient(s), "");
}

TEST(ChecksCanFail, NoGradientWhereThereIsOne) {
  Sample s = sample_of([](auto& v) { return doubled(v[0], [](Backward& b) { b[0].none(); }); });
  EXPECT_NE(check_gradient(s), "");
}

TEST(ChecksCanFail, MissingAnswerThrows) {
  Sample s = sample_of([](auto& v) { return doubled(v[0], [](Backward&) {}); });
  EXPECT_NE(outcome(kChecks[0], s).find("broken: backward said nothing about input 0"),
            std::string::npos);
}

TEST(ChecksCanFail, TwoAnswersAndEmptyAnswersThrow) {
  Sample twice = sample_of([](auto& v) {
    return doubled(v[0], [](Backward& b) {
      b[0].give(doubled_gradient(b.gy));
      b[0].give(doubled_gradient(b.gy));
    });
  });
  EXPECT_NE(outcome(kChecks[0], twice).find("two answers"), std::string::npos);
  Sample empty =
      sample_of([](auto& v) { return doubled(v[0], [](Backward& b) { b[0].give(Tensor()); }); });
  EXPECT_NE(outcome(kChecks[0], empty).find("empty gradient"), std::string::npos);
}

TEST(ChecksCanFail, RecordWithoutBackwardThrows) {
  Tensor x = zeros({2}).requires_grad_();
  EXPECT_THROW(record("broken", zeros({2}), {x}, nullptr), Error);
  NoGrad no_grad;
  EXPECT_THROW(record("broken", zeros({2}), {x}, nullptr), Error);
}

TEST(ChecksCanFail, WrongGradientShapeThrows) {
  Sample s = sample_of([](auto& v) {
    return doubled(v[0], [](Backward& b) { b[0].give(zeros({3, 4}, b.gy.dtype())); });
  });
  EXPECT_NE(outcome(kChecks[0], s).find("gradient (3,4)"), std::string::npos);
}

TEST(ChecksCanFail, MemoryKeptForNothing) {
  auto keeps = [](auto what) {
    return check_kept(sample_of([what](auto& v) {
      Tensor x = v[0], y = scale(x.detach(), 2), saved = what(x, y);
      return record("broken", y, {x}, [saved](Backward& b) { b[0].give(scale(b.gy, 2)); });
    }));
  };
  EXPECT_EQ(keeps([](const Tensor&, const Tensor&) { return Tensor(); }), "");
  EXPECT_EQ(keeps([](const Tensor& x, const Tensor&) { return x.detach(); }),
            "keeps input 0 unread");
  EXPECT_EQ(keeps([](const Tensor&, const Tensor& y) { return y.detach(); }),
            "keeps the output unread");
  EXPECT_EQ(keeps([](const Tensor&, const Tensor&) { return zeros({90}); }),
            "keeps 360 bytes of 48 + 48");
  Sample hoards = sample_of([](auto& v) {
    auto own = std::make_shared<Tensor>(zeros({5}));
    Tensor x = v[0], y = scale(x.detach(), 2);
    y.impl()->storage->keep_alive = own;
    return record("broken", y, {x}, [](Backward& b) { b[0].give(scale(b.gy, 2)); });
  });
  EXPECT_EQ(check_kept(hoards), "20 bytes kept without a gradient");
}

TEST(ChecksCanFail, LaneOrderNoticesANeighbourRead) {
  Sample s = sample_of(
      [](auto& v) {
        Tensor x = v[0].contiguous().detach(), y = zeros(x.shape());
        rows({}, 1, ReadsNeighbour{x.data<float>(), y.data<float>(), x.numel()});
        return record("broken", y, {v[0]}, [](Backward& b) { b[0].give(b.gy); });
      },
      {{300}});
  EXPECT_NE(check_lane_order(s), "");
}

TEST(ChecksCanFail, DifferentBits) {
  auto calls = std::make_shared<int>(0);
  Sample s = sample_of([calls](auto& v) { return add_scalar(v[0], 1e-4 * ++*calls); });
  EXPECT_NE(check_repeats(s), "");
}

TEST(ChecksCanFail, LowPrecisionSum) {
  Sample s = sample_of(
      [](auto& v) {  // rounds to bf16 after every addition
        Tensor total = slice(v[0], 0, 0, 1);
        for (int64_t i = 1; i < v[0].dim(0); i++) total = add(total, slice(v[0], 0, i, i + 1));
        return total;
      },
      {{400}});
  s.options.low = 0.5;
  EXPECT_NE(check_bf16(s), "");
}

TEST(ChecksCanFail, FastTwinThatDiffers) {
  Sample s = sample_of(
      [](auto& v) { return scale(v[0], cpu_fast(v[0].dtype(), v[0].device()) ? 2.0001 : 2); });
  EXPECT_NE(check_fast(s).find("against f64"), std::string::npos);
}

TEST(ChecksCanFail, StridesIgnored) {
  Sample s = sample_of([](auto& v) {
    Tensor dense = alias(v[0], v[0].shape(), row_major_strides(v[0].shape())), x = v[0];
    return record("broken", scale(dense, 2), {x}, [](Backward& b) { b[0].give(scale(b.gy, 2)); });
  });
  EXPECT_NE(check_scattered(s), "");
}

TEST(ChecksCanFail, BetaIgnored) {
  Sample s = sample_of([](auto& v) {
    return doubled(v[0], [](Backward& b) {
      float beta;
      copy_into(b[0].into(beta), doubled_gradient(b.gy));
    });
  });
  EXPECT_NE(check_accumulation(s).find("onto a gradient"), std::string::npos);
}

TEST(ChecksCanFail, AlwaysAdding) {
  Sample s = sample_of([](auto& v) {
    return doubled(v[0], [](Backward& b) {
      float beta;
      Tensor buffer = b[0].into(beta);
      add_in_place(buffer, doubled_gradient(b.gy));
    });
  });
  EXPECT_NE(check_accumulation(s), "");
}

TEST(ChecksCanFail, GradientForAFrozenInput) {
  Sample s = sample_of(
      [](auto& v) {
        Tensor a = v[0], b = v[1];
        return record("broken", mul(a.detach(), b.detach()), {a, b}, [a, b](Backward& g) {
          if (g[0].needed && g[1].needed) {
            g[0].give(mul(g.gy, b.detach()));
            g[1].give(mul(g.gy, a.detach()));
            return;
          }
          Tensor waste = zeros(a.shape(), a.dtype()), more = zeros(a.shape(), a.dtype());
          g[0].give(mul(g.gy, b.detach()));
          g[1].give(mul(g.gy, a.detach()));
        });
      },
      {{4, 3}, {4, 3}});
  EXPECT_NE(check_frozen(s), "");
}

TEST(ChecksCanFail, OutputThatCutsTheGraph) {
  Sample s = sample_of([](auto& v) { return add(v[0], scale(v[0], 2).detach()); });
  EXPECT_NE(check_gradient(s), "");
}

TEST(ChecksCanFail, LeakedTensor) {
  auto keep = std::make_shared<std::vector<Tensor>>();
  Sample s = sample_of([keep](auto& v) {
    keep->push_back(scale(v[0], 2));
    return scale(v[0], 2);
  });
  EXPECT_NE(outcome({"fast twin", check_fast}, s).find("outlive"), std::string::npos);
}

TEST(ChecksCanFail, WrongInputAccepted) {
  EXPECT_EQ(check_error(sample_of([](auto& v) { return v[0]; })), "nothing was thrown");
  EXPECT_NE(check_error(sample_of([](auto&) -> Tensor { throw Error("other: bad"); })), "");
  EXPECT_EQ(check_error(sample_of([](auto&) -> Tensor { throw Error("broken: bad"); })), "");
}

}  // namespace
}  // namespace pupil::test

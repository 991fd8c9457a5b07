#include "nn/nn.h"

#include <gtest/gtest.h>

#include "nn/optim.h"
#include "tensor/memory.h"
#include "tensor/ops/convolution.h"
#include "tensor/runtime.h"
#include "tests/support.h"

namespace pupil::nn {
namespace {

// Named tensors in memory.
class MemoryWeights : public data::Weights {
 public:
  explicit MemoryWeights(std::vector<std::pair<std::string, Tensor>> tensors)
      : tensors_(std::move(tensors)) {
    for (auto& [name, t] : tensors_) list_.push_back({name, t.shape(), "F32"});
  }
  const std::vector<data::TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override {
    for (auto& [n, t] : tensors_)
      if (n == name) return true;
    return false;
  }
  Tensor view(std::string_view name, DType dtype) const override {
    for (auto& [n, t] : tensors_)
      if (n == name) return t.to(dtype);
    fail_input("no tensor ", name);
  }
  std::span<const uint8_t> bytes(std::string_view) const override { return {}; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }
  std::string hash() const override { return ""; }

 private:
  std::vector<std::pair<std::string, Tensor>> tensors_;
  std::vector<data::TensorInfo> list_;
  std::map<std::string, std::string> metadata_;
  std::string path_ = "memory.safetensors";
};

template <class F>
std::string input_error(F&& f) {
  try {
    f();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Matches, StarStandsForAnyRun) {
  EXPECT_TRUE(matches("blocks.*", "blocks.3.attn.qkv.weight"));
  EXPECT_TRUE(matches("*.bias", "blocks.3.attn.qkv.bias"));
  EXPECT_TRUE(matches("blocks.*.mlp.*", "blocks.11.mlp.fc1.weight"));
  EXPECT_TRUE(matches("head", "head"));
  EXPECT_TRUE(matches("*", ""));
  EXPECT_FALSE(matches("head", "head.weight"));
  EXPECT_FALSE(matches("blocks.*", "block.3"));
  EXPECT_FALSE(matches("", "x"));
  EXPECT_TRUE(matches("", ""));
  EXPECT_TRUE(matches("**", ""));
  EXPECT_TRUE(matches("a*bc*", "abbcbc"));
  EXPECT_TRUE(matches("*ab", "aab"));
  EXPECT_FALSE(matches("*ab", "aba"));
  EXPECT_FALSE(matches("a*b*c", "acb"));
  EXPECT_FALSE(matches("ab", "a"));
  // Would not end in this century if every star tried every run.
  std::string many;
  for (int i = 0; i < 40; i++) many += "*a";
  EXPECT_FALSE(matches(many + "b", std::string(200, 'a')));
  EXPECT_TRUE(matches(many, std::string(200, 'a')));
}

TEST(Store, InitialValuesDependOnNameAndSeedNotOnOrder) {
  Store a(7), b(7), c(8);
  Tensor x = Scope(a, "one").param("weight", {64}, {Init::normal, 1});
  Tensor y = Scope(a, "two").param("weight", {64}, {Init::normal, 1});
  Tensor y2 = Scope(b, "two").param("weight", {64}, {Init::normal, 1});
  Tensor x2 = Scope(b, "one").param("weight", {64}, {Init::normal, 1});
  Tensor x3 = Scope(c, "one").param("weight", {64}, {Init::normal, 1});
  EXPECT_EQ(x.values(), x2.values());
  EXPECT_EQ(y.values(), y2.values());
  EXPECT_NE(x.values(), y.values());
  EXPECT_NE(x.values(), x3.values());
  EXPECT_EQ(a.params()[0].name, "one.weight");
  EXPECT_THROW(Scope(a, "one").param("weight", {64}, {}), Error);
}

TEST(Store, InitialValuesHaveTheAskedDistribution) {
  Store store(1);
  Scope root(store);
  std::vector<double> u = root.param("u", {20000}, {Init::uniform, 0.5}).values();
  std::vector<double> g = root.param("g", {20000}, {Init::normal, 3}).values();
  double mean_u = 0, square_u = 0, largest = 0, mean_g = 0, square_g = 0;
  for (double v : u) mean_u += v / 20000, square_u += v * v / 20000, largest = std::max(largest, v);
  for (double v : g) mean_g += v / 20000, square_g += v * v / 20000;
  EXPECT_NEAR(mean_u, 0, 0.01);
  EXPECT_NEAR(square_u, 0.25 / 3, 0.002);
  EXPECT_LE(largest, 0.5);
  EXPECT_NEAR(mean_g, 0, 0.07);
  EXPECT_NEAR(square_g, 9, 0.3);
  EXPECT_EQ(root.param("one", {3}, {Init::ones}).values(), (std::vector<double>{1, 1, 1}));
  EXPECT_EQ(kaiming_normal(8).a, 0.5);
  EXPECT_EQ(fan_in_uniform(16).a, 0.25);
}

TEST(Store, CountsParametersAndNotBuffers) {
  for (bool blueprint : {false, true}) {
    Store store = blueprint ? Store::blueprint() : Store(0);
    Scope root(store);
    Linear linear(root / "fc", 10, 5);
    BatchNorm norm(root / "bn", 4);
    EXPECT_EQ(store.count(), 55 + 8);
    EXPECT_TRUE(store.find("bn.running_var")->buffer);
    EXPECT_FALSE(store.find("bn.running_var")->value.requires_grad());
    EXPECT_TRUE(store.find("fc.weight")->value.requires_grad());
    EXPECT_EQ(store.find("fc.weight")->value.shape(), (Shape{5, 10}));
    EXPECT_EQ(store.find("nothing"), nullptr);
  }
}

TEST(Store, FreezesByPattern) {
  Store store(0);
  Scope root(store);
  Linear trunk(root / "trunk", 2, 2), head(root / "head", 2, 2);
  store.freeze("trunk.*");
  EXPECT_FALSE(store.find("trunk.weight")->trainable);
  EXPECT_FALSE(trunk.weight.requires_grad());
  EXPECT_TRUE(store.find("head.bias")->trainable);
  std::string message = input_error([&] { store.freeze("trunc.weight"); });
  EXPECT_TRUE(contains(message, "trunk.weight")) << message;
}

TEST(Store, ReadsItsSource) {
  auto file = std::make_shared<MemoryWeights>(std::vector<std::pair<std::string, Tensor>>{
      {"fc.weight", full({2, 3}, 5)}, {"fc.bias", full({2}, 6)}});
  Store store(0, DType::f64);
  store.source(file);
  Linear fc(Scope(store) / "fc", 3, 2);
  store.require_complete();
  EXPECT_EQ(fc.bias.values(), (std::vector<double>{6, 6}));
  EXPECT_EQ(fc.weight.dtype(), DType::f64);
  store.source(nullptr);  // what follows is new
  Linear other(Scope(store) / "other", 3, 2);
  store.require_complete();
}

TEST(Store, BorrowsTheFileOrHasACopyToTrain) {
  test::TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  data::save_safetensors(path, {{"fc.weight", full({2, 3}, 5)}, {"fc.bias", full({2}, 6)}});
  auto file = data::open_weights(path);
  Store kept(0), trained(0), wide(0, DType::f64);
  kept.borrow(file);
  trained.source(file);
  wide.borrow(file);
  Linear a(Scope(kept) / "fc", 3, 2), b(Scope(trained) / "fc", 3, 2), c(Scope(wide) / "fc", 3, 2);
  for (Store* store : {&kept, &trained, &wide}) store->require_complete();
  EXPECT_EQ(a.weight.raw(), static_cast<const void*>(file->bytes("fc.weight").data()));
  Optimizer optimizer(trained, {{{"fc.weight", "fc.bias"}, 0.5, 0}}, {});
  backward(sum(b(full({1, 3}, 1))));
  optimizer.step();
  copy_into(b.weight, full({2, 3}, 7));
  EXPECT_NE(b.weight.values(), a.weight.values());
  EXPECT_NE(b.bias.values(), a.bias.values());
  EXPECT_EQ(a.weight.values(), std::vector<double>(6, 5));
  EXPECT_EQ(c.weight.values(), std::vector<double>(6, 5));
  EXPECT_EQ(data::open_weights(path)->hash(), file->hash());
}

TEST(Store, ReportsWhatDoesNotFit) {
  auto file = std::make_shared<MemoryWeights>(
      std::vector<std::pair<std::string, Tensor>>{{"trunk.weight", zeros({3, 3})},
                                                  {"trunk.bias", zeros({3})},
                                                  {"head.weight", zeros({10, 3})},
                                                  {"extra.scale", zeros({1})}});
  auto build = [&](std::vector<std::string> fresh) {
    Store store(0);
    store.source(file, fresh);
    Linear trunk(Scope(store) / "trunk", 3, 3), head(Scope(store) / "head", 3, 7);
    BatchNorm norm(Scope(store) / "norm", 1);  // its counter may be absent from a file
    return input_error([&] { store.require_complete(); });
  };
  std::string message = build({});
  for (const char* part :
       {"memory.safetensors", "head.weight (file (10,3), model (7,3))", "head.bias",
        "norm.running_mean", "1 unexpected: extra.scale", "head = \"new\""})
    EXPECT_TRUE(contains(message, part)) << part << " in " << message;
  EXPECT_FALSE(contains(message, "num_batches_tracked")) << message;
  EXPECT_FALSE(contains(message, "\n"));
  EXPECT_EQ(build({"head.*", "extra.*", "norm.*"}), "");
}

TEST(Store, AdaptsAStoredTensorOfAnotherShape) {
  auto file = std::make_shared<MemoryWeights>(
      std::vector<std::pair<std::string, Tensor>>{{"p", full({4}, 2)}, {"q", full({4}, 2)}});
  Store store(0);
  store.source(file);
  Scope root(store);
  Tensor p = root.param("p", {2}, {}, [](const Tensor& t) { return full({2}, t.values()[0]); });
  EXPECT_EQ(p.values(), (std::vector<double>{2, 2}));
  root.param("q", {2}, {}, [](const Tensor&) { return Tensor(); });  // cannot be adapted
  std::string message = input_error([&] { store.require_complete(); });
  EXPECT_TRUE(contains(message, "1 of another shape: q (file (4), model (2))")) << message;
}

TEST(Taps, KeepWhatWasAskedFor) {
  Taps taps({"b"});
  taps.see("a", full({1}, 1));
  taps.see("b", full({1}, 2));
  EXPECT_FALSE(taps.wants("a"));
  EXPECT_EQ(taps["b"].item(), 2);
  EXPECT_THROW(taps["a"], Error);
}

// --- optimizers ---

// Four steps of PyTorch 2.x in float64 from p = (1, -2, 0.5), q = 0.25; q has no gradient in
// step 2.
struct Trajectory {
  OptimizerOptions options;
  std::vector<double> expected;  // p and q after the last step
};
const Trajectory kTrajectories[] = {
    {{}, {0.916225816051, -1.892411642102, -0.3007978017995, 0.3}},
    {{.momentum = 0.9, .dampening = 0.5},
     {0.776918388456375, -1.60137227816275, -0.750776453249938, 0.1645}},
    {{.momentum = 0.9, .nesterov = true},
     {0.673229166521337, -1.49187322163267, -1.92801808700121, 0.26805}},
    {{.algorithm = Algorithm::adam, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6},
     {0.672212721038175, -1.71734239270685, 0.100018546768183, 0.189420318574836}},
    {{.algorithm = Algorithm::adamw, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6},
     {0.671314292136107, -1.71431321441842, 0.0986027978006001, 0.189420318574836}}};

struct Problem {
  Store store;
  Tensor p, q;
  explicit Problem(DType dtype) : store(0, dtype) {
    Scope root(store);
    p = root.param("p", {3}, {});
    q = root.param("q", {1}, {});
    copy_into(p, from(std::vector<double>{1, -2, 0.5}, {3}));
    copy_into(q, from(std::vector<double>{0.25}, {1}));
  }
  std::vector<Group> groups() const { return {{{"p"}, 0.1, 0.01}, {{"q"}, 0.05, 0}}; }
  void step(Optimizer& optimizer, int t, double lr_scale = 1) {
    optimizer.zero_grad();
    Tensor gp = from(std::vector<double>{0.5 - 0.2 * t, -1.0 + 0.5 * t, 2.0}, {3}, p.dtype());
    Tensor gq = full({1}, 1.0 - t, q.dtype());
    Tensor loss = sum(mul(p, gp));
    if (t != 2) loss = add(loss, sum(mul(q, gq)));
    backward(loss);
    optimizer.step(lr_scale);
  }
  std::vector<double> values() const {
    std::vector<double> all = p.values();
    all.push_back(q.item());
    return all;
  }
};

TEST(Optimizer, FollowsPyTorch) {
  for (DType dtype : {DType::f64, DType::f32})
    for (const Trajectory& trajectory : kTrajectories) {
      Problem problem(dtype);
      Optimizer optimizer(problem.store, problem.groups(), trajectory.options);
      for (int t = 0; t < 4; t++) problem.step(optimizer, t);
      double tolerance = dtype == DType::f64 ? 1e-13 : 2e-6;
      for (size_t i = 0; i < 4; i++)
        EXPECT_NEAR(problem.values()[i], trajectory.expected[i], tolerance)
            << int(trajectory.options.algorithm) << " " << trajectory.options.momentum << " " << i;
    }
}

TEST(Optimizer, ResumesBitForBit) {
  for (const Trajectory& trajectory : kTrajectories) {
    Problem whole(DType::f32), first(DType::f32), second(DType::f32);
    Optimizer a(whole.store, whole.groups(), trajectory.options);
    Optimizer b(first.store, first.groups(), trajectory.options);
    Optimizer c(second.store, second.groups(), trajectory.options);
    for (int t = 0; t < 4; t++) whole.step(a, t);
    for (int t = 0; t < 2; t++) first.step(b, t);
    std::map<std::string, Tensor> saved;
    for (auto& [name, tensor] : b.state()) saved[name] = tensor.clone();
    c.load_state([&](const std::string& name) { return saved[name]; });
    copy_into(second.p, first.p);
    copy_into(second.q, first.q);
    for (int t = 2; t < 4; t++) second.step(c, t);
    EXPECT_EQ(whole.values(), second.values());
  }
}

TEST(Optimizer, RefusesAStateOfAnotherModel) {
  Problem problem(DType::f32);
  Optimizer optimizer(problem.store, problem.groups(), {.momentum = 0.9});
  EXPECT_TRUE(contains(input_error([&] { optimizer.load_state([](auto&) { return zeros({7}); }); }),
                       "p.momentum"));
}

TEST(Optimizer, MovesParametersButKeepsTheirIdentity) {
  Store store(3);
  Scope root(store);
  Linear fc(root / "fc", 5, 3);
  std::vector<double> before = fc.weight.values();
  TensorImpl* identity = fc.weight.impl();
  {
    Optimizer optimizer(store, {{{"fc.weight", "fc.bias"}, 0.5}}, {});
    EXPECT_EQ(fc.weight.impl(), identity);
    EXPECT_EQ(fc.weight.values(), before);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(fc.bias.raw()) % 64, 0u);
    const void* gradient_buffer = fc.weight.impl()->grad->storage->data;
    optimizer.zero_grad();
    EXPECT_FALSE(fc.weight.grad());
    backward(sum(fc.weight));
    EXPECT_EQ(fc.weight.impl()->grad->storage->data, gradient_buffer);
    optimizer.step();
    EXPECT_NEAR(fc.weight.values()[0], before[0] - 0.5, 1e-7);
    optimizer.zero_grad();  // the first gradient after it overwrites
    backward(sum(fc.weight));
    EXPECT_EQ(fc.weight.grad().values()[0], 1);
  }
  backward(sum(fc.bias));  // without an optimizer a parameter is an ordinary leaf again
  EXPECT_EQ(fc.bias.grad().values()[0], 1);
  fc.bias.zero_grad();
}

TEST(Optimizer, LeavesParametersWithoutGradientAlone) {
  Problem problem(DType::f32);
  Optimizer optimizer(problem.store, {{{"p", "q"}, 0.1, 0.5}}, {.momentum = 0.9});
  for (int t = 0; t < 3; t++) {
    optimizer.zero_grad();
    backward(sum(problem.p));
    optimizer.step();
  }
  EXPECT_EQ(problem.q.item(), 0.25);  // not even decayed
  for (auto& [name, tensor] : optimizer.state()) EXPECT_NE(name, "q.momentum_buffer");
  optimizer.zero_grad();
  backward(sum(problem.q));  // now it starts its buffer, beside an older one
  optimizer.step();
  EXPECT_NEAR(problem.q.item(), 0.25 - 0.1 * (1 + 0.5 * 0.25), 1e-7);
}

TEST(Optimizer, SkipsFrozenParametersAndRefusesWrongGroups) {
  Problem problem(DType::f32);
  problem.store.freeze("q");
  Optimizer optimizer(problem.store, problem.groups(), {});
  EXPECT_FALSE(problem.q.impl()->grad);
  EXPECT_THROW(Optimizer(problem.store, {{{"p"}}, {{"p"}}}, {}), Error);
  EXPECT_THROW(Optimizer(problem.store, {{{"none"}}}, {}), Error);
}

TEST(Optimizer, LearningRatesCanChange) {
  Problem problem(DType::f64);
  Optimizer optimizer(problem.store, {{{"q"}, 1, 0}}, {});
  optimizer.groups()[0].lr = 0.5;
  problem.step(optimizer, 0, 0.1);  // gradient of q is 1
  EXPECT_DOUBLE_EQ(problem.q.item(), 0.25 - 0.05);
}

TEST(Optimizer, ClipsTheNormOfAllGradientsTogether) {
  for (double limit : {1.0, 100.0}) {
    Problem problem(DType::f64);
    Optimizer optimizer(problem.store, problem.groups(), {});
    optimizer.zero_grad();
    backward(add(sum(scale(problem.p, 3)), sum(scale(problem.q, 4))));
    double norm = optimizer.clip_grad_norm(limit), expected = std::sqrt(3 * 9 + 16);
    EXPECT_DOUBLE_EQ(norm, expected);
    double factor = std::min(1.0, limit / (expected + 1e-6));
    EXPECT_DOUBLE_EQ(problem.p.grad().values()[1], 3 * factor);
    EXPECT_DOUBLE_EQ(problem.q.grad().item(), 4 * factor);
  }
}

// More elements than one block of the norm and one OpenMP region.
TEST(Optimizer, LargeParameters) {
  constexpr int64_t kSize = 100003;
  Store store(0);
  Tensor w = Scope(store).param("w", {kSize}, {Init::ones});
  Optimizer optimizer(store, {{{"w"}, 0.25, 0}}, {.momentum = 0.5});
  optimizer.zero_grad();
  backward(sum(w));
  EXPECT_NEAR(optimizer.clip_grad_norm(1e9), std::sqrt(double(kSize)), 1e-9);
  optimizer.step();
  for (double v : w.values()) ASSERT_EQ(v, 0.75);
}

TEST(Optimizer, RmsPropCentredWithMomentum) {
  Store store(0, DType::f64);
  Tensor w = Scope(store).param("w", {1}, {Init::ones});
  Optimizer optimizer(
      store, {{{"w"}, 0.1, 0}},
      {.algorithm = Algorithm::rmsprop, .momentum = 0.5, .alpha = 0.75, .centered = true});
  double p = 1, square = 0, average = 0, buffer = 0;
  for (double g : {2.0, -1.0, 3.0}) {
    optimizer.zero_grad();
    backward(sum(scale(w, g)));
    optimizer.step();
    square = 0.75 * square + 0.25 * g * g;
    average = 0.75 * average + 0.25 * g;
    buffer = 0.5 * buffer + g / (std::sqrt(square - average * average) + 1e-8);
    p -= 0.1 * buffer;
    EXPECT_NEAR(w.item(), p, 1e-12);
  }
  EXPECT_EQ(optimizer.state().size(), 4u);  // square_avg, grad_avg, momentum_buffer, step
}

// After one step Adam's direction is the sign of the gradient.
TEST(Optimizer, LambAdaptsToTheSizeOfTheParameter) {
  OptimizerOptions plain{.algorithm = Algorithm::lamb, .eps = 1e-15}, adapts = plain,
                                                                      trusts = plain;
  adapts.always_adapt = trusts.always_adapt = trusts.trust_clip = true;
  OptimizerOptions sums = plain;
  sums.grad_averaging = false;  // m is 10 times as large
  const std::vector<std::pair<OptimizerOptions, double>> cases = {
      {plain, 1}, {adapts, 2}, {trusts, 1}, {sums, 10}};
  for (auto& [options, moved] : cases) {
    Store store(0, DType::f64);
    Tensor w = Scope(store).param("w", {4}, {Init::ones});
    copy_into(w, full({4}, 2, DType::f64));
    Optimizer optimizer(store, {{{"w"}, 0.1, 0}}, options);
    optimizer.zero_grad();
    backward(sum(scale(w, 3)));  // norm 6: divided by it, which the direction does not show
    optimizer.step();
    for (double v : w.values()) EXPECT_NEAR(v, 2 - 0.1 * moved, 1e-12);
  }
}

TEST(Ema, CopiesThenWarmsUp) {
  Tensor w = full({2}, 1, DType::f64);
  Ema ema({w}, {.decay = 0.6, .after = 1, .warmup = true, .warmup_power = 1});
  const std::vector<std::pair<double, double>> steps = {{2, 0}, {3, 0}, {4, 0.5}, {5, 0.6}};
  int64_t t = 0;
  for (auto& [value, decay] : steps) {
    double before = ema.averages()[0].values()[1];
    copy_into(w, full({2}, value, DType::f64));
    EXPECT_DOUBLE_EQ(ema.update(++t), decay);
    EXPECT_DOUBLE_EQ(ema.averages()[0].values()[1], decay * before + (1 - decay) * value);
  }
  double average = ema.averages()[0].values()[0];
  ema.exchange();
  EXPECT_EQ(w.values()[0], average);
  EXPECT_EQ(ema.averages()[0].values()[0], 5);
}

// --- schedules ---

TEST(Schedule, LinearEndsAtZero) {
  Schedule s{.kind = Schedule::linear, .total = 12, .warmup = 2};
  EXPECT_DOUBLE_EQ(s(1), 0.5);
  EXPECT_DOUBLE_EQ(s(7), 0.5);
  EXPECT_DOUBLE_EQ(s(20), 0);
}

TEST(Schedule, CyclesOfACosine) {
  CosineCycles s{.length = 4, .length_factor = 2, .peak_factor = 0.5, .floor = 0.1, .limit = 2};
  EXPECT_DOUBLE_EQ(s(0), 1);
  EXPECT_DOUBLE_EQ(s(2), 0.55);
  EXPECT_DOUBLE_EQ(s(4), 0.5);
  EXPECT_DOUBLE_EQ(s(8), 0.3);
  EXPECT_DOUBLE_EQ(s(12), 0.1);
  s.warmup = 2;
  EXPECT_DOUBLE_EQ(s(1), 0.5);
  EXPECT_DOUBLE_EQ(s(2), 0.55);  // inside its cycle
  s.after_warmup = true;
  EXPECT_DOUBLE_EQ(s(4), 0.55);
}

TEST(Schedule, OneCycleOfThreeLines) {
  OneCycle s{
      .total = 11, .rise = 0.4, .start = 0.5, .end = 0.01, .cosine = false, .three_phase = true};
  EXPECT_DOUBLE_EQ(s(0), 0.5);
  EXPECT_DOUBLE_EQ(s(3), 0.5 + 0.5 * 3 / 3.4);
  EXPECT_DOUBLE_EQ(s(5), 1 - 0.5 * 1.6 / 3.4);
  EXPECT_DOUBLE_EQ(s(10), 0.005);
  EXPECT_DOUBLE_EQ(s.momentum(0), 0.95);
  EXPECT_DOUBLE_EQ(s.momentum(10), 0.95);
  EXPECT_NEAR(s.momentum(3), 0.95 - 0.1 * 3 / 3.4, 1e-15);
}

TEST(Schedule, ConstantMultistepCosineWarmup) {
  EXPECT_EQ(Schedule()(17), 1);
  Schedule steps{.kind = Schedule::multistep, .milestones = {3, 7, 7}, .gamma = 0.1};
  EXPECT_DOUBLE_EQ(steps(2), 1);
  EXPECT_DOUBLE_EQ(steps(3), 0.1);
  EXPECT_NEAR(steps(7), 1e-3, 1e-15);  // a repeated milestone counts twice
  Schedule cosine{.kind = Schedule::cosine, .total = 12, .warmup = 2, .floor = 0.1};
  EXPECT_DOUBLE_EQ(cosine(0), 0);
  EXPECT_DOUBLE_EQ(cosine(1), 0.5);
  EXPECT_DOUBLE_EQ(cosine(2), 1);
  EXPECT_DOUBLE_EQ(cosine(7), 0.55);
  EXPECT_DOUBLE_EQ(cosine(12), 0.1);
  Schedule line{.warmup = 4, .warmup_start = 0.2};
  EXPECT_DOUBLE_EQ(line(1), 0.4);
  EXPECT_DOUBLE_EQ(line(4), 1);
}

// --- layers ---

// The gradient of a value with two readers: the second kernel adds to the first one's result. The
// sum must also be right where the first result is still somebody else's.
TEST(Residual, GradientsOfBothPathsAreAdded) {
  Tensor x = from(std::vector<double>{0.3, -1.2, 0.7, 2, 0.1, -0.4}, {2, 3}).requires_grad_();
  Tensor w = full({3}, 1.5, DType::f64).requires_grad_(), b = full({3}, 0.5, DType::f64);
  auto pre_norm = [&](auto& v) {
    Tensor h = square(v[0]);
    return add(h, square(layer_norm(h, v[1], b, 1e-6)));
  };
  EXPECT_EQ(gradcheck(pre_norm, {x, w}), "");
  auto same_twice = [&](auto& v) {
    Tensor h = square(v[0]);
    return add(layer_norm(h, v[1], b, 1e-6), layer_norm(add(h, h), v[1], b, 1e-6));
  };
  EXPECT_EQ(gradcheck(same_twice, {x, w}), "");
  Tensor image = view(from(std::vector<double>{1, 2, 3, 4, 5, 6, 7, 8, 9}, {9}), {1, 1, 3, 3});
  auto shortcut = [](auto& v) {
    Tensor h = square(v[0]);
    Tensor strided = slice(slice(h, 2, 0, 3, 2), 3, 0, 3, 2);
    return add(shortcut_a(h, 2, 3), square(strided));
  };
  EXPECT_EQ(gradcheck(shortcut, {image.requires_grad_()}), "");
}

TEST(BatchNorm, CountsBatchesInTrainingOnly) {
  Store store(0);
  BatchNorm norm(Scope(store) / "bn", 2);
  Tensor x = from(std::vector<float>{1, 2, 3, 4}, {2, 2});
  norm(x, {.train = true});
  norm(x, {});
  EXPECT_EQ(norm.num_batches_tracked.item(), 1);
  EXPECT_NEAR(norm.running_mean.values()[0], 0.2, 1e-6);
}

TEST(GroupNorm, NormalisesEveryGroupOfASample) {
  Store store(3, DType::f64);
  GroupNorm norm(Scope(store), 4, 2, 1e-3);
  Tensor x = Scope(store).param("x", {2, 4, 3}, {Init::normal, 2});
  copy_into(norm.weight, from(std::vector<double>{1, 2, 3, 4}, {4}));
  std::vector<double> v = x.values(), y = norm(x).values();
  for (size_t group = 0; group < 4; group++) {  // of both samples
    double mean = 0, square = 0;
    for (size_t i = 6 * group; i < 6 * group + 6; i++) mean += v[i] / 6;
    for (size_t i = 6 * group; i < 6 * group + 6; i++) square += (v[i] - mean) * (v[i] - mean) / 6;
    for (size_t i = 6 * group; i < 6 * group + 6; i++)
      EXPECT_NEAR(y[i], (v[i] - mean) / std::sqrt(square + 1e-3) * double(1 + i / 3 % 4), 1e-12);
  }
  EXPECT_EQ(gradcheck([&](auto&) { return norm(x); }, {x, norm.weight, norm.bias}), "");
}

TEST(Embedding, TakesRowsAndAddsTheirGradients) {
  Store store(3, DType::f64);
  Embedding table(Scope(store) / "token", 5, 3);
  std::vector<double> rows = store.find("token.weight")->value.values();
  Tensor index = from(std::vector<int64_t>{4, 0, 4, 2}, {2, 2}), y = table(index);
  EXPECT_EQ(y.shape(), (Shape{2, 2, 3}));
  for (size_t i = 0; i < 3; i++) EXPECT_EQ(y.values()[6 + i], rows[12 + i]);
  EXPECT_EQ(gradcheck([&](auto&) { return table(index); }, {table.weight}), "");
}

TEST(Conv2d, OfAsManyGroupsAsChannelsIsDepthwise) {
  Store store(3, DType::f64);
  Conv2d conv(Scope(store), 3, 3, 2, {.groups = 3}, true, fan_in_uniform(4));
  EXPECT_EQ(conv.weight.shape(), (Shape{3, 1, 2, 2}));
  Tensor x = Scope(store).param("x", {1, 3, 2, 2}, {Init::normal, 1});
  std::vector<double> v = x.values(), w = conv.weight.values(), y = conv(x).values();
  for (size_t c = 0; c < 3; c++) {
    double expected = conv.bias.values()[c];
    for (size_t i = 4 * c; i < 4 * c + 4; i++) expected += v[i] * w[i];
    EXPECT_NEAR(y[c], expected, 1e-14);
  }
}

// The changed layer is the merged one; at first it is the frozen one.
template <class Layer, class Merged>
void check_lora(Store& store, Layer& layer, const Tensor& x, const Merged& with) {
  EXPECT_EQ(layer(x).values(), layer.base(x).values());
  copy_into(layer.b, Scope(store).param("b", layer.b.shape(), {Init::normal, 1}));
  std::vector<double> y = layer(x).values(), merged = with(layer.merged()).values();
  double moved = 0;
  for (size_t i = 0; i < y.size(); i++) {
    EXPECT_NEAR(y[i], merged[i], 1e-12);
    moved = std::max(moved, std::abs(y[i] - layer.base(x).values()[i]));
  }
  EXPECT_GT(moved, 0.1);
  EXPECT_EQ(gradcheck([&](auto&) { return layer(x); }, {x, layer.a, layer.b}), "");
  EXPECT_FALSE(store.find("weight")->trainable);
  EXPECT_FALSE(store.find("bias")->trainable);
  EXPECT_FALSE(layer.base.weight.requires_grad());
  double bound = fan_in_uniform(layer.a.numel() / layer.a.dim(0)).a;
  for (double v : layer.a.values()) EXPECT_LE(std::abs(v), bound);
}

TEST(Lora, IsAFrozenLayerWithAChangeOfLowRank) {
  Store store(3, DType::f64);
  Scope root(store);
  LoraLinear layer(root, Linear(root, 5, 4), 2, 8);
  Tensor x = root.param("x", {3, 5}, {Init::normal, 1});
  EXPECT_EQ(layer.factor, 4);
  check_lora(store, layer, x, [&](const Tensor& w) { return linear(x, w, layer.base.bias); });
  std::vector<double> a = layer.a.values(), b = layer.b.values(), w = layer.base.weight.values();
  for (size_t o = 0; o < 4; o++)
    for (size_t i = 0; i < 5; i++)
      EXPECT_NEAR(layer.merged().values()[5 * o + i],
                  w[5 * o + i] + 4 * (b[2 * o] * a[i] + b[2 * o + 1] * a[5 + i]), 1e-13);
}

TEST(Lora, OfAConvolution) {
  Store store(3, DType::f64);
  Scope root(store);
  ConvOptions o{.stride = 2, .padding = 1};
  LoraConv2d layer(root, Conv2d(root, 3, 4, 3, o, true, fan_in_uniform(27)), 2, 3);
  Tensor x = root.param("x", {2, 3, 5, 5}, {Init::normal, 1});
  check_lora(store, layer, x, [&](const Tensor& w) { return conv2d(x, w, layer.base.bias, o); });
  Conv2d wide(root / "wide", 4, 4, 3, {.groups = 2}, false, {});
  LoraConv2d grouped(root / "wide", wide, 2, 1);
  EXPECT_EQ(grouped.b.shape(), (Shape{4, 1, 1, 1}));
  EXPECT_TRUE(contains(input_error([&] { grouped.merged(); }), "2 groups"));
  Scope other = root / "other";
  EXPECT_TRUE(contains(input_error([&] { LoraConv2d(other, wide, 3, 1); }), "rank 3"));
  EXPECT_TRUE(contains(input_error([&] { LoraConv2d(other, wide, 0, 1); }), "at least 1"));
  Conv2d dilated(other, 4, 4, 3, {.dilation = 2}, false, {});
  EXPECT_TRUE(contains(input_error([&] { LoraConv2d(other, dilated, 2, 1); }), "dilation 2"));
}

// Folded into the convolution or after it: Winograd's, one with a stride, one of a picture,
// grouped, with a bias of its own.
TEST(ConvNorm, IsTheConvolutionAndThenTheNorm) {
  struct {
    int64_t in, out;
    int kernel;
    ConvOptions options;
  } cases[] = {{16, 32, 3, {1, 1}},
               {32, 16, 3, {2, 1}},
               {3, 16, 7, {2, 3}},
               {16, 64, 1, {}},
               {8, 8, 3, {1, 1, 1, 8}}};
  for (DType dtype : {DType::f32, DType::f64})
    for (auto [in, out, kernel, options] : cases) {
      Store store(5, dtype);
      Scope root(store);
      Conv2d conv(root / "conv", in, out, kernel, options, kernel == 1, {Init::normal, 0.1});
      BatchNorm norm(root / "norm", out);
      for (Tensor* t : {&norm.weight, &norm.bias, &norm.running_mean})
        copy_into(*t,
                  root.buffer(concat("value", store.params().size()), {out}, {Init::normal, 1}));
      copy_into(norm.running_var, add_scalar(square(norm.bias.detach()), 0.3));
      Tensor x = root.buffer("x", {3, in, 16, 20}, {Init::normal, 1});
      Tensor residual = root.buffer("residual", conv(x).shape(), {Init::normal, 1});
      for (Activation last : {Activation::none, Activation::relu, Activation::relu6,
                              Activation::hard_swish, Activation::silu})
        for (const Tensor& added : {Tensor(), residual}) {
          Tensor apart = norm(conv(x), {}, last, added),
                 recorded = conv_norm(conv, norm, x, {}, last, added);
          EXPECT_EQ(apart.values(), recorded.values());
          NoGrad off;
          std::vector<double> folded = conv_norm(conv, norm, x, {}, last, added).values(),
                              wanted = apart.values();
          ASSERT_EQ(folded.size(), wanted.size());
          double error = 0, size = 0;
          for (size_t i = 0; i < wanted.size(); i++) {
            error += std::pow(folded[i] - wanted[i], 2);
            size += wanted[i] * wanted[i];
          }
          EXPECT_LT(std::sqrt(error / size), dtype == DType::f32 ? 3e-6 : 1e-14)
              << in << " to " << out << ", activation " << int(last) << ", residual "
              << bool(added);
        }
    }
}

// Whatever alone wants a gradient gets it, in evaluation too.
TEST(ConvNorm, IsRecordedForEveryInput) {
  Store store(5);
  Scope root(store);
  Conv2d conv(root / "conv", 16, 16, 3, {1, 1}, true, {Init::normal, 0.1});
  BatchNorm norm(root / "norm", 16);
  Tensor x = root.buffer("x", {2, 16, 8, 8}, {Init::normal, 1});
  Tensor residual = root.buffer("residual", x.shape(), {Init::normal, 1});
  for (Tensor* wanted : {&x, &conv.weight, &conv.bias, &norm.weight, &norm.bias, &residual}) {
    store.freeze("*");
    for (Tensor* t : {&x, &residual}) t->requires_grad_(false);
    wanted->requires_grad_();
    Tensor y = conv_norm(conv, norm, x, {}, Activation::relu, residual);
    EXPECT_TRUE(y.requires_grad()) << wanted->shape();
    std::vector<NormedConv> twice{{conv, norm, Activation::relu}, {conv, norm, Activation::none}};
    EXPECT_TRUE(conv_norm(twice, x, {}, residual).requires_grad()) << wanted->shape();
  }
}

TEST(Prepared, KeepsFoldedNormsUntilItEnds) {
  Store store(5);
  Scope root(store);
  Conv2d conv1(root / "conv1", 16, 16, 3, {1, 1}, true, {Init::normal, 0.1}),
      conv2(root / "conv2", 16, 16, 3, {1, 1}, false, {Init::normal, 0.1});
  BatchNorm norm1(root / "norm1", 16), norm2(root / "norm2", 16);
  Tensor x = root.buffer("x", {2, 16, 8, 8}, {Init::normal, 1});
  std::vector<NormedConv> first{{conv1, norm1, Activation::relu}},
      second{{conv2, norm2, Activation::none}}, both{first[0], second[0]};
  std::optional<NoGrad> off(std::in_place);
  auto of = [&](Prepared* prepared) {
    std::vector<std::vector<double>> values;
    for (auto& layers : {first, second, both})
      values.push_back(conv_norm(layers, x, {.prepared = prepared}).values());
    return values;
  };
  auto before = of(nullptr);
  std::optional<Prepared> prepared(std::in_place);
  for (int call = 0; call < 2; call++) EXPECT_EQ(of(&*prepared), before);
  copy_into(norm1.weight, scale(norm1.weight, 2));
  EXPECT_EQ(of(&*prepared), before);
  prepared.emplace();
  EXPECT_EQ(of(&*prepared), of(nullptr));
  EXPECT_NE(of(nullptr), before);
  copy_into(norm1.weight, scale(norm1.weight, 2));
  off.reset();  // what is recorded is computed from the parameters as they are
  EXPECT_EQ(of(&*prepared), of(nullptr));
}

// As a model asks for what lies before an activation, and pads by the size of the image.
TEST(Prepared, FollowsActivationAndOptionsOfTheCall) {
  Store store(6);
  Scope root(store);
  Conv2d conv(root / "conv", 16, 16, 3, {1, 1}, false, {Init::normal, 0.1});
  BatchNorm norm(root / "norm", 16);
  Tensor x = root.buffer("x", {2, 16, 8, 8}, {Init::normal, 1});
  NoGrad off;
  Prepared prepared;
  for (ConvOptions options : {ConvOptions{1, 1}, ConvOptions{2, 1}, ConvOptions{2, 0}})
    for (Activation activation : {Activation::relu, Activation::none, Activation::relu}) {
      conv.options = options;
      Tensor y = conv_norm(conv, norm, x, {.prepared = &prepared}, activation);
      EXPECT_EQ(y.values(), conv_norm(conv, norm, x, {}, activation).values());
    }
}

TEST(PatchEmbed, IsAConvolutionWithKernelEqualToStride) {
  Store store(0, DType::f64);
  Scope root(store);
  PatchEmbed embed(root, 3, 5, 2);
  Tensor x = root.param("x", {2, 3, 4, 6}, {Init::uniform, 1}).detach();
  Tensor y = conv2d(x, embed.weight, embed.bias, {.stride = 2});  // (2,5,2,3)
  std::vector<double> a = embed(x).values(), b = permute(view(y, {2, 5, 6}), {0, 2, 1}).values();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); i++) EXPECT_NEAR(a[i], b[i], 1e-12);
}

}  // namespace
}  // namespace pupil::nn

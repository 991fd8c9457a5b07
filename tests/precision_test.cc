// Training in bf16 with f32 parameters: the operations, the networks, a run and its record.
#include <gtest/gtest.h>

#include "models/models.h"
#include "program.h"
#include "tensor/memory.h"
#include "tensor/runtime.h"
#include "tools/machine.h"
#include "tools/train.h"

namespace pupil::test {
namespace {

Tensor gaussian(const Shape& shape, const std::string& stream) {
  Tensor t = empty(shape);
  for (int64_t i = 0; i < t.numel(); i++)
    t.data<float>()[i] = float(normal({3, stream_id(stream), 0}, i));
  return t;
}

// Squared error over squared size.
double error_of(const Tensor& got, const Tensor& expected) {
  EXPECT_EQ(got.shape(), expected.shape());
  std::vector<double> a = got.values(), b = expected.values();
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < b.size(); i++) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return error / size;
}

// f(inputs): the first is bf16, the others are parameters. Values and gradients against f64 from
// the same (bf16-exact) first input; the parameters' gradients must be f32.
void expect_mixed(const char* what, const std::vector<Shape>& shapes,
                  const std::function<Tensor(const std::vector<Tensor>&)>& f) {
  SCOPED_TRACE(what);
  std::vector<Tensor> low, exact;
  for (size_t i = 0; i < shapes.size(); i++) {
    Tensor t = gaussian(shapes[i], concat(what, i));
    Tensor first = t.to(DType::bf16);
    low.push_back((i == 0 ? first : t).detach().requires_grad_());
    exact.push_back((i == 0 ? first : t).to(DType::f64).requires_grad_());
  }
  Tensor y = to_strided(f(low)), y64 = to_strided(f(exact));
  EXPECT_EQ(y.dtype(), DType::bf16);
  EXPECT_LT(error_of(y, y64), 3e-5);
  Tensor seed = gaussian(y.shape(), "seed").to(DType::bf16);
  backward(y, seed);
  backward(y64, seed.to(DType::f64));
  for (size_t i = 0; i < shapes.size(); i++) {
    ASSERT_TRUE(bool(low[i].grad())) << i;
    EXPECT_EQ(low[i].grad().dtype(), i == 0 ? DType::bf16 : DType::f32) << i;
    EXPECT_LT(error_of(low[i].grad(), exact[i].grad()), 1e-4) << "gradient of input " << i;
  }
}

TEST(Precision, OperationsTakeFloat32Parameters) {
  auto linear_of = [](auto& v) { return linear(v[0], v[1], v[2]); };
  expect_mixed("linear", {{4, 37, 48}, {33, 48}, {33}}, linear_of);
  expect_mixed("linear of one row", {{1, 7}, {3, 7}, {3}}, linear_of);
  auto convolution = [](ConvOptions o) {
    return [o](auto& v) { return conv2d(v[0], v[1], v.size() > 2 ? v[2] : Tensor(), o); };
  };
  expect_mixed("3x3", {{3, 16, 9, 7}, {32, 16, 3, 3}, {32}}, convolution({1, 1}));
  expect_mixed("picture", {{2, 3, 12, 12}, {16, 3, 7, 7}}, convolution({2, 3}));
  expect_mixed("odd", {{2, 5, 6, 6}, {7, 5, 3, 3}, {7}}, convolution({2, 1}));
  expect_mixed("depthwise", {{2, 24, 9, 9}, {24, 1, 5, 5}}, convolution({1, 2, 1, 24}));
  expect_mixed("layer_norm", {{6, 11, 48}, {48}, {48}},
               [](auto& v) { return layer_norm(v[0], v[1], v[2], 1e-5); });
  expect_mixed("group_norm", {{3, 8, 5, 5}, {8}, {8}},
               [](auto& v) { return group_norm(v[0], 2, v[1], v[2], 1e-5); });
  expect_mixed("embed_tokens", {{5, 6, 16}, {1, 1, 16}, {1, 7, 16}},
               [](auto& v) { return embed_tokens(v[0], v[1], v[2]); });
  for (int64_t channels : {16, 20})
    for (bool train : {true, false})
      expect_mixed("batch_norm", {{6, channels, 5, 5}, {channels}, {channels}}, [=](auto& v) {
        Tensor mean = full({channels}, 0.1, acc_dtype(v[0].dtype()));
        Tensor variance = full({channels}, 1.5, acc_dtype(v[0].dtype()));
        Tensor x = v[0].dtype() == DType::bf16 ? v[0].to(Layout::nhwc) : v[0];
        // As the output of a convolution comes: in a layout, with a graph behind it.
        if (x.layout() != v[0].layout())
          x = record("nhwc", x, {v[0]}, [](Backward& b) { b[0].give(b.gy.to(Layout::strided)); });
        return batch_norm(x, v[1], v[2], mean, variance, {train, 0.1, 1e-5, Activation::none, {}});
      });
}

// One of every family, forward and backward, with the parameters of the f32 network.
TEST(Precision, EveryFamilyTrains) {
  struct Case {
    const char* name;
    int side;
  };
  const Case cases[] = {{"resnet20_cifar", 32},
                        {"wrn_16_2_kd", 32},
                        {"vgg8_kd", 32},
                        {"shufflev1_kd", 32},
                        {"mobilenetv2_kd", 32},
                        {"resnet50d", 32},
                        {"vit(dim=32,depth=2,heads=2,patch=4,image=16)", 16},
                        {"mobilenet_v3_small", 64},
                        {"tiniest", 32},
                        {"regnet_y_400mf", 32},
                        {"squeezenet1_1", 64},
                        {"convnextv2_tiny", 32},
                        {"vit_postnorm_cifar", 32}};
  std::vector<std::string> known;
  for (const models::ModelInfo& info : models::list_models()) known.push_back(info.name);
  for (auto [name, side] : cases) {
    SCOPED_TRACE(name);
    if (std::find(known.begin(), known.end(), name) == known.end() && name[3] != '(') {
      ADD_FAILURE() << "no such model";
      continue;
    }
    nn::Store store(0);
    models::Model model = models::make_model(name, nn::Scope(store), {.classes = 5});
    Tensor images = gaussian({8, 3, side, side}, "images");
    StepScope step;
    Rng rng(0);
    nn::Call call{true, &rng, nullptr};
    models::Output exact = model.forward(images, call), low;
    low = models::forward_in(DType::bf16, model, images, call);
    EXPECT_EQ(low.logits.dtype(), DType::f32);
    EXPECT_EQ(low.features.dtype(), DType::f32);
    double error = error_of(low.logits, exact.logits);
    if (error > 1e-3) {  // some networks make much of roundings as they are initialised
      set_plain_mode(true);
      models::Output plain = models::forward_in(DType::bf16, model, images, call);
      set_plain_mode(false);
      EXPECT_LT(error, 2 * error_of(plain.logits, exact.logits));
    }
    backward(sum(square(low.logits)));
    for (nn::Param& p : store.params()) {
      if (p.buffer || !p.value.grad()) continue;
      EXPECT_EQ(p.value.grad().dtype(), DType::f32) << p.name;
      EXPECT_TRUE(std::isfinite(sum(p.value.grad()).item())) << p.name;
      p.value.zero_grad();
    }
  }
}

// Activations are kept in half the bytes.
TEST(Precision, TensorsKeptForTheBackwardAreBf16) {
  nn::Store store(0);
  models::Model model = models::make_model("resnet20_cifar", nn::Scope(store));
  Tensor images = gaussian({32, 3, 32, 32}, "images");
  auto kept = [&](DType compute) {
    StepScope scope;
    nn::Call call{true, nullptr, nullptr};
    models::Output out = models::forward_in(compute, model, images, call);
    return double(Arena::step({}).stats().live);
  };
  double f32 = kept(DType::f32), bf16 = kept(DType::bf16);
  EXPECT_LT(bf16, 0.55 * f32);
  EXPECT_GT(bf16, 0.4 * f32);
}

struct PrecisionRun : testing::Test {
  TemporaryFolder folder;
  void SetUp() override {
    write_images(folder / "data", "train", 96, 4, 16, 3);
    write_images(folder / "data", "test", 40, 4, 16, 3);
    write_text(folder / "config.toml", text("resnet20_cifar", "npy:data"));
  }
  static std::string text(const std::string& model, const std::string& data) {
    return "[data]\ntrain = \"" + data + ":train\"\ntest = \"" + data + ":test\"\n[student]\n" +
           "model = \"" + model + "\"\n[train]\nepochs = 4\nbatch = 32\nlr = 0.05\n";
  }
  Config config(const std::string& model, const std::string& precision) const {
    return parse_config(text(model, "npy:" + folder / "data"), "test.toml",
                        {"train.precision=" + precision,
                         model[0] == 'v' ? "train.optimizer=adamw" : "train.optimizer=sgd",
                         model[0] == 'v' ? "train.lr=0.005" : "train.lr=0.05",
                         model[0] == 'v' ? "train.epochs=16" : "train.epochs=4"});
  }
};

std::vector<double> losses_of(Trainer& trainer) {
  std::vector<double> losses;
  double before = 0;
  while (trainer.position().step < trainer.total_steps()) {
    trainer.step();
    const auto& sums = trainer.position().losses;
    losses.push_back(sums.empty() ? 0 : (sums[0].second - before) / 32);
    before = sums[0].second;
    if (!trainer.epoch_done()) continue;
    trainer.next_epoch();
    before = 0;
  }
  return losses;
}

std::vector<double> parameters_of(Trainer& trainer) {
  std::vector<double> all;
  for (const nn::Param& p : trainer.store().params())
    for (double v : p.value.values()) all.push_back(v);
  return all;
}

TEST_F(PrecisionRun, LearnsAsFloat32Does) {
  for (const char* model : {"resnet20_cifar", "vit(dim=32,depth=2,heads=2,patch=4,image=16)"}) {
    SCOPED_TRACE(model);
    Trainer exact(config(model, "f32")), low(config(model, "bf16")), again(config(model, "bf16"));
    std::vector<double> a = losses_of(exact), b = losses_of(low), c = losses_of(again);
    EXPECT_NEAR(b.front(), a.front(), 0.01 * a.front());
    EXPECT_NE(b.front(), a.front());  // else it was not bf16
    EXPECT_LT(b.back(), b.front());
    EXPECT_NEAR(b.back(), a.back(), 0.1 * a.front());
    EXPECT_EQ(b, c);
    EXPECT_EQ(parameters_of(low), parameters_of(again));  // the same bits

    low.save(folder / "checkpoint.safetensors");
    auto file = data::open_safetensors(folder / "checkpoint.safetensors");
    int64_t finer = 0;
    for (const data::TensorInfo& info : file->list()) {
      EXPECT_TRUE(info.dtype == "F32" || info.dtype == "I64") << info.name << " " << info.dtype;
      if (info.dtype != "F32") continue;
      Tensor stored = file->read(info.name, DType::f32);
      finer += largest_difference(stored, stored.to(DType::bf16)) > 0;
    }
    EXPECT_GT(finer, 10);  // masters, not copies of rounded weights
  }
}

TEST_F(PrecisionRun, AutoBecomesWhatItMeantAndResumeKeepsIt) {
  auto train = [&](std::vector<std::string> more) {
    std::vector<std::string> all{"train", "config.toml", "--run", "run", "--threads", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return run_program(all, folder);
  };
  auto recorded = [&] {
    std::string toml = read_text(folder / "run/config.toml");
    size_t at = toml.find("precision = ");
    return at == toml.npos ? "nothing" : toml.substr(at + 12, toml.find('\n', at) - at - 12);
  };
  Outcome first = train({"--set", "train.precision=auto"});
  ASSERT_EQ(first.code, 0) << first.err;
  std::string chosen = recorded();
  EXPECT_TRUE(chosen == "\"f32\"" || chosen == "\"bf16\"") << chosen;
  for (const char* begun : {"f32", "bf16"}) {
    std::filesystem::remove_all(folder / "run");
    std::string set = concat("train.precision=", begun);
    Outcome made = train({"--set", set});
    ASSERT_EQ(made.code, 0) << made.err;
    Outcome resumed = train({"--set", "train.precision=auto", "--resume"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_EQ(recorded(), concat("\"", begun, "\""));
  }
  Outcome other = train({"--set", "train.precision=f32", "--resume"});
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("precision"), std::string::npos) << other.err;
}

TEST_F(PrecisionRun, AWrongValueIsRefused) {
  Outcome o = run_program({"train", "config.toml", "--set", "train.precision=fp16"}, folder);
  EXPECT_EQ(o.code, 2);
  EXPECT_NE(o.err.find("train.precision is \"fp16\"; it is one of f32, bf16, auto"),
            std::string::npos)
      << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1);
}

}  // namespace
}  // namespace pupil::test

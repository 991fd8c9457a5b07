// AFT's ablations, baselines and training protocol: golden values of aft.md section 16 and its bad
// input.
#include "methods/aft.h"

#include <cmath>

#include "methods/baselines.h"
#include "methods/method.h"
#include "program.h"
#include "tensor/runtime.h"
#include "tools/kept.h"
#include "tools/train.h"

namespace pupil::methods {
namespace {

using test::expect_refused;
using test::TemporaryFolder;

Tensor f64(const std::vector<double>& values, const Shape& shape) {
  return from(std::span<const double>(values), shape);
}

nn::Linear linear_of(const Tensor& weight, const Tensor& bias) {
  nn::Store store(0, weight.dtype());
  nn::Linear layer(nn::Scope(store), weight.dim(1), weight.dim(0));
  layer.weight = weight;
  layer.bias = bias;
  return layer;
}

struct Baselines : testing::TestWithParam<bool> {
  void SetUp() override { set_plain_mode(GetParam()); }
  void TearDown() override { set_plain_mode(false); }
  Tensor phi = f64({1, 0, 0, 2, -1, 1, 2, -1}, {4, 2});
  Tensor psi = f64({1, 2, 0, 0, 1, 1, -1, 0, 2, 3, 1, -1}, {4, 3});
  Tensor v = f64({1, 0, 0, 1, 1, -1}, {3, 2}), c = f64({0, 0.5, 0}, {3});
};
INSTANTIATE_TEST_SUITE_P(Both, Baselines, testing::Bool(),
                         [](auto& info) { return info.param ? "plain" : "fused"; });

TEST_P(Baselines, GoldenA12ToA15) {
  EXPECT_NEAR(kd_feature_loss(phi, psi, {linear_of(v, c)}).item(), 52.0 / 12, 1e-12);
  Tensor w = f64({1, 0, 0, 0, 1, -1}, {2, 3});
  for (double bias : {0.0, 3.5})
    EXPECT_NEAR(aft_no_kernel_loss(phi, psi, linear_of(w, f64({bias, -bias}, {2}))).item(), 3.34375,
                1e-12);
  EXPECT_NEAR(rkd_distance_plain(phi, psi).item(), 0.022012069875, 1e-11);
  EXPECT_NEAR(rkd_angle_plain(phi, psi).item(), 0.065282786751, 1e-11);
  EXPECT_NEAR(rkd_loss(phi, psi).item(), 0.076288821689, 1e-11);
  EXPECT_NEAR(factor_transfer_loss(linear_of(v, c)(phi), psi).item(), 1.760633336154, 1e-11);
}

TEST(LogMeTest, GoldenA16AndA17) {
  std::vector<double> pi = btuning_weights({0.95, 0.94, 0.93}, 0.1);
  EXPECT_NEAR(pi[0], 0.367165401111, 1e-11);
  EXPECT_NEAR(pi[1], 0.332224993533, 1e-11);
  EXPECT_NEAR(pi[2], 0.300609605356, 1e-11);
  std::vector<int64_t> labels{1, 1, 0, 0};
  LogMe r = logme(f64({1, 1, -1, -1}, {4, 1}), from(std::span<const int64_t>(labels), {4}));
  EXPECT_NEAR(r.score, -1.006958934470, 1e-10);
  EXPECT_NEAR(r.alpha.values()[1], 5.997707234504, 1e-8);
  EXPECT_NEAR(r.beta.values()[1], 3.000148293447, 1e-8);
  EXPECT_NEAR(r.weights.values()[1], 0.33343077, 1e-7);
}

// aft.md, section 15: equal rows, one row, too few columns.
TEST_P(Baselines, DegenerateBatches) {
  for (int64_t n : {1, 2, 5}) {
    Tensor same = full({n, 3}, 0.1, DType::f64).requires_grad_();
    Tensor loss = rkd_loss(same, full({n, 4}, 2, DType::f64));
    EXPECT_EQ(loss.item(), 0);
    backward(loss);
    for (double g : same.grad().values()) EXPECT_EQ(g, 0);
  }
  Tensor nan = psi.clone();
  nan.data<double>()[4] = NAN;
  EXPECT_THROW(rkd_loss(phi, nan), Error);
  EXPECT_THROW(kd_feature_loss(phi, nan, {linear_of(v, c)}), Error);
  EXPECT_THROW(aft_delta(phi, nan, {}), Error);
  EXPECT_THROW(rkd_loss(phi, f64({1, 2, 3}, {3, 1})), Error);
  std::vector<int64_t> labels{0, 1, -1, 0};
  EXPECT_THROW(logme(psi, from(std::span<const int64_t>(labels), {4})), Error);
  labels[2] = int64_t(1) << 60;  // no memory is asked for
  try {
    logme(psi, from(std::span<const int64_t>(labels), {4}));
    ADD_FAILURE() << "2^60 classes";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("more than 1048576 classes"), std::string::npos)
        << e.what();
  }
}

// The fused node against the definition on sizes around the blocks of the kernel, in float32.
TEST(AftFloat32, FusedAgreesWithTheDefinition) {
  for (auto [n, p, q] : {std::tuple{3, 1, 1},
                         {4, 33, 31},
                         {16, 32, 64},
                         {17, 5, 100},
                         {64, 7, 513},
                         {130, 192, 700}})
    for (AftKernel kernel : {AftKernel::linear, AftKernel::rbf})
      for (bool weighted : {true, false}) {
        auto random = [&](const Shape& shape, uint64_t seed) {
          std::vector<double> x(size_t(shape.numel()));
          for (size_t i = 0; i < x.size(); i++) x[i] = 2 + normal({seed, 0, 0}, int64_t(i));
          return from(std::span<const double>(x), shape);
        };
        Tensor phi = random({n, p}, 1), psi = random({n, q}, 2), s = random({q}, 3);
        std::vector<Tensor> leaves;
        double value[2];
        for (DType dtype : {DType::f64, DType::f32}) {
          Tensor a = phi.to(dtype).clone().requires_grad_(), b = s.to(dtype).clone();
          b.requires_grad_();
          Tensor delta = aft_delta(a, psi.to(dtype), weighted ? b : Tensor(), {kernel, {}, {}});
          value[leaves.size() / 2] = delta.item();
          backward(delta);
          leaves.push_back(a.grad());
          leaves.push_back(weighted ? b.grad() : Tensor());
        }
        EXPECT_NEAR(value[0], value[1], 1e-5) << n << " " << p << " " << q;
        for (size_t k = 0; k < 2; k++) {
          if (!leaves[k]) continue;
          std::vector<double> want = leaves[k].values(), got = leaves[k + 2].values();
          double largest = 0;
          for (double x : want) largest = std::max(largest, std::fabs(x));
          for (size_t i = 0; i < want.size(); i++)
            ASSERT_NEAR(got[i], want[i], 1e-6 + 1e-4 * largest)
                << n << " " << p << " " << q << " rbf " << int(kernel) << " input " << k;
        }
      }
}

TEST(EpochPlanTest, TableOfSectionSeven) {
  struct Row {
    int64_t n, batches, last, epochs;
    bool few;
  };
  for (Row r : {Row{50000, 391, 80, 13, false},
                {1020, 8, 124, 625, true},
                {3680, 29, 96, 172, true},
                {1880, 15, 88, 333, true},
                {6667, 53, 11, 94, true},
                {75750, 592, 102, 8, false}}) {
    EpochPlan plan(5000, r.n, 128);
    EXPECT_EQ(plan.batches, r.batches);
    EXPECT_EQ(plan.last, r.last);
    EXPECT_EQ(plan.epochs, r.epochs);
    EXPECT_EQ(plan.few(), r.few);
  }
}

// Rows of features with 4 classes and stored teacher features beside them.
struct Trained : testing::Test {
  TemporaryFolder folder;
  void SetUp() override {
    std::vector<float> x, teacher;
    std::vector<int64_t> y;
    for (int64_t i = 0; i < 50; i++) {
      y.push_back(i % 4);
      for (int64_t k = 0; k < 6; k++)
        x.push_back(float(0.5 * normal({1, 0, 0}, i * 6 + k)) + (k == i % 4 ? 5 : 0));
      for (int64_t k = 0; k < 8; k++)
        teacher.push_back(k < 4 ? float(0.3 * normal({2, 0, 0}, i * 8 + k)) +
                                      (k == i % 4 ? 1.7f : -0.6f)
                                : float(normal({2, 0, 0}, i * 8 + k)));  // noise of variance 1
    }
    data::save_npy(folder / "x.npy", from(std::span<const float>(x), {50, 6}));
    data::save_npy(folder / "y.npy", from(std::span<const int64_t>(y), {50}));
    data::save_npy(folder / "t.npy", from(std::span<const float>(teacher), {50, 8}));
    data::save_npy(folder / "short.npy",
                   from(std::span<const float>(teacher).first(49 * 8), {49, 8}));
    test::Outcome stored =
        test::run_program({"features", "--from", "t.npy", "--data", "npy:x.npy+y.npy", "--tap",
                           "features", "--out", "t.safetensors"},
                          folder);
    ASSERT_EQ(stored.code, 0) << stored.err;
    test::write_text(folder / "c.toml", R"toml([data]
train = "npy:x.npy+y.npy"
test = "npy:x.npy+y.npy"
[student]
model = "mlp(inputs=6,hidden=12,standardize=1)"
[[teacher]]
name = "vectors"
features = ["t.safetensors"]
[train]
epochs = 4
batch = 16
optimizer = "adam"
lr = 0.01
schedule_per = "epoch"
[[method]]
name = "aft"
)toml");
  }
  // t.npy after `change`, as a feature file of this data.
  void store(const std::string& name, const std::function<void(float*)>& change,
             const std::string& tap = "features", const std::string& x = "x.npy") {
    Tensor rows = data::read_npy(folder / "t.npy");
    change(rows.data<float>());
    data::save_npy(folder / "changed.npy", rows);
    test::Outcome stored = test::run_program({"features", "--from", "changed.npy", "--data",
                                              "npy:" + x + "+y.npy", "--tap", tap, "--out", name},
                                             folder);
    ASSERT_EQ(stored.code, 0) << stored.err;
  }
  test::Outcome train(const std::string& run, std::vector<std::string> settings,
                      std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"train", "c.toml", "--run", run, "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    for (const std::string& s : settings) {
      arguments.push_back("--set");
      arguments.push_back(s);
    }
    return test::run_program(arguments, folder);
  }
  void refused(std::vector<std::string> settings, std::vector<std::string> words) {
    test::Outcome outcome = train("bad", settings);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    for (const std::string& word : words)
      EXPECT_NE(outcome.err.find(word), std::string::npos) << word << " in " << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
  }
};

TEST_F(Trained, EveryMethodRunsAndLearns) {
  for (const char* method :
       {"aft", "aft_no_kernel", "kernel_kd", "kd_feature", "rkd", "ft", "btuning"}) {
    test::Outcome outcome = train(std::string("runs/") + method,
                                  {std::string("method.0.name=") + method, "method.0.beta=1"});
    EXPECT_EQ(outcome.code, 0) << method << ": " << outcome.err;
    EXPECT_EQ(outcome.err, "") << method;
  }
}

// Fitting auto-encoders may take minutes before the first step: it reports, and can be stopped.
TEST_F(Trained, PreparationReportsAndStops) {
  Trainer trainer(read_config(
      folder / "c.toml",
      {concat("data.train=npy:", folder / "x.npy", "+", folder / "y.npy"), "data.test=",
       concat("teacher.0.features=[\"", folder / "t.safetensors", "\"]"), "method.0.name=ft",
       "method.0.code_epochs=1000000000", "method.0.code_patience=1000000000"}));
  int reports = 0;
  trainer.on_preparation([&](const std::string& state) {
    EXPECT_NE(state.find("auto-encoder 1 of 1, epoch "), std::string::npos) << state;
    if (++reports == 3) throw Error("stopped by the test");
  });
  EXPECT_THROW(trainer.step(), Error);
  EXPECT_EQ(reports, 3);
  EXPECT_EQ(trainer.position().step, 0);
}

// What stage 1 of B-Tuning and of factor transfer found is in the checkpoint.
TEST_F(Trained, ResumedRunsAreTheSame) {
  for (const char* method : {"btuning", "ft"}) {
    std::string name = std::string("method.0.name=") + method, run = std::string("r/") + method;
    std::vector<std::string> settings{name, "train.epochs=0", "train.steps=8"};
    EXPECT_EQ(train(run, settings).code, 0);
    std::string whole = test::read_text(folder / (run + "/last.safetensors"));
    test::Process process(
        {"train", "c.toml", "--run", run + "2", "--threads", "1", "--set", name, "--set",
         "train.epochs=0", "--set", "train.steps=8", "--set", "train.checkpoint_every=1"},
        folder);
    process.wait_for(folder / (run + "2/checkpoint.safetensors"));
    process.send(SIGKILL);
    process.wait();
    settings.push_back("train.checkpoint_every=1");
    EXPECT_EQ(train(run + "2", settings, {"--resume"}).code, 0);
    EXPECT_EQ(test::read_text(folder / (run + "2/last.safetensors")), whole) << method;
  }
}

// Stage 1 of factor transfer stopped by test samples, as in the official code.
TEST_F(Trained, FactorTransferMayStopOnTestSamples) {
  Tensor x = data::read_npy(folder / "x.npy"), rows = data::read_npy(folder / "t.npy");
  std::reverse(x.data<float>(), x.data<float>() + x.numel());
  data::save_npy(folder / "x2.npy", x);
  store(
      "t2.safetensors", [](float* t) { std::reverse(t, t + 400); }, "features", "x2.npy");
  std::vector<std::string> settings{"method.0.name=ft", "data.test=npy:x2.npy+y.npy",
                                    "method.0.code_patience=1"};
  auto encoder = [&](const std::string& run, std::vector<std::string> more) {
    more.insert(more.begin(), settings.begin(), settings.end());
    test::Outcome outcome = train(run, more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err.find("see test samples") != std::string::npos, more.size() > 3);
    return data::open_safetensors(folder / (run + "/checkpoint.safetensors"))
        ->read("loss.ft.teacher0.encoder.0.weight", DType::f32)
        .values();
  };
  std::vector<double> stored = encoder(
      "stored", {"method.0.early_stop_on=test", "teacher.0.test_features=[\"t2.safetensors\"]"});
  nn::Store store(0);
  Autoencoder coder(nn::Scope(store, "loss.ft.teacher0"), 8);
  AutoencoderOptions options;
  options.patience = 1;
  fit_autoencoder(store, coder, rows, data::read_npy(folder / "changed.npy"), options);
  EXPECT_EQ(stored, coder.encoder[0].weight.values());
  EXPECT_NE(stored, encoder("holdout", {}));
  std::vector<std::string> live{"method.0.early_stop_on=test", "teacher.0.features=[]",
                                "teacher.0.weights=stored/last.safetensors"};
  EXPECT_EQ(encoder("live", live).size(), 12u * 12u);
  auto refused_with = [&](std::vector<std::string> more, std::vector<std::string> words) {
    more.insert(more.begin(), settings.begin(), settings.end());
    refused(more, words);
  };
  refused_with({"method.0.early_stop_on=test"}, {"vectors", "test_features"});
  refused_with({"method.0.early_stop_on=test", "data.test="}, {"early_stop_on", "data.test"});
  refused_with({"method.0.early_stop_on=tset"}, {"did you mean test?"});
  refused_with({"teacher.0.test_features=[\"t.safetensors\"]"}, {"t.safetensors", "other data"});
  refused_with({"data.test=", "teacher.0.test_features=[\"t2.safetensors\"]"}, {"test_features"});
}

TEST_F(Trained, FrozenBatchesAndPriorFrequency) {
  auto weights = [&](const std::string& run) {
    return test::read_text(folder / (run + "/last.safetensors"));
  };
  ASSERT_EQ(train("never", {}).code, 0);
  ASSERT_EQ(train("always", {"train.freeze_batches=always"}).code, 0);
  ASSERT_EQ(train("auto", {"train.freeze_batches=auto"}).code, 0);
  EXPECT_NE(weights("never"), weights("always"));
  EXPECT_EQ(weights("auto"), weights("always"));  // 4 batches are few
  // Only the first of the 4 batches of an epoch trains the student, all of them train s.
  ASSERT_EQ(train("prior", {"train.prior_freq=4"}).code, 0);
  auto file = data::open_safetensors(folder / "prior/checkpoint.safetensors");
  EXPECT_EQ(file->read("optimizer.head.weight.step", DType::i64).item(), 4);
  EXPECT_EQ(file->read("optimizer.loss.aft.s.step", DType::i64).item(), 16);
}

TEST_F(Trained, ReportShowsWhichFeaturesWereKept) {
  ASSERT_EQ(train("runs/a", {"train.epochs=60", "method.0.s_lr=0.1"}).code, 0);
  std::vector<KeptFeatures> kept = kept_features(folder / "runs/a");
  ASSERT_EQ(kept.size(), 1u);
  EXPECT_EQ(kept[0].teacher, "vectors");
  ASSERT_EQ(kept[0].weights.size(), 8u);
  double relevant = 0, noise = 0;  // section 16 (i): dimensions 0 to 3 know the class
  for (size_t k = 0; k < 8; k++) (k < 4 ? relevant : noise) += kept[0].weights[k];
  EXPECT_GT(relevant, noise);
  test::Outcome report = test::run_program({"report", "runs/a", "--out", "r.html"}, folder);
  EXPECT_EQ(report.code, 0) << report.err;
  EXPECT_NE(report.out.find("Teacher features kept by AFT"), std::string::npos);
  EXPECT_NE(report.out.find("vectors"), std::string::npos);
  std::string page = test::read_text(folder / "r.html");
  EXPECT_NE(page.find("<title>weights of the teacher's dimensions</title>"), std::string::npos);
  EXPECT_EQ(page.find("src="), std::string::npos);  // one file
}

TEST_F(Trained, WarnsAboutIdleRegularisers) {
  test::Outcome zero = train("zero", {"method.0.beta=0"});
  EXPECT_EQ(zero.code, 0);
  EXPECT_NE(zero.err.find("beta is 0"), std::string::npos) << zero.err;
  EXPECT_EQ(std::count(zero.err.begin(), zero.err.end(), '\n'), 1);
  test::Outcome weight = train("weight", {"method.0.weight=0"});
  EXPECT_EQ(weight.code, 0);
  EXPECT_NE(weight.err.find("method aft: weight is 0"), std::string::npos) << weight.err;
  test::Outcome centred =
      train("centred", {"train.batch=1", "train.epochs=1", "method.0.name=aft_no_kernel"});
  EXPECT_EQ(centred.code, 0);
  EXPECT_NE(centred.err.find("batch of 1"), std::string::npos) << centred.err;
  test::Outcome pairs = train("pairs", {"train.batch=2", "train.epochs=1"});
  EXPECT_EQ(pairs.code, 0) << pairs.err;
  EXPECT_NE(pairs.err.find("batch of 2"), std::string::npos) << pairs.err;
  test::Outcome single = train("single", {"train.batch=1", "train.epochs=1"});
  EXPECT_EQ(single.code, 0) << single.err;
  EXPECT_NE(single.err.find("batch of 1"), std::string::npos) << single.err;
  EXPECT_EQ(std::count(single.err.begin(), single.err.end(), '\n'), 1);
}

TEST_F(Trained, BadInput) {
  refused({"method.0.beta=-1"}, {"beta"});
  refused({"method.0.beta=nan"}, {"beta"});
  refused({"method.0.s_lr=0"}, {"s_lr"});
  refused({"method.0.beta=inf"}, {"beta"});
  refused({"method.0.s_lr=-1"}, {"s_lr"});
  refused({"method.0.s_lr=nan"}, {"s_lr"});
  refused({"train.lr=0"}, {"train.lr"});
  refused({"train.epochs=0", "train.steps=-1"}, {"train.steps is -1"});
  refused({"train.batch=0"}, {"train.batch"});
  refused({"train.prior_freq=0"}, {"train.prior_freq"});
  refused({"train.freeze_batches=sometimes"}, {"freeze_batches"});
  refused({"train.epochs=0", "train.steps=1"}, {"train.steps is 1", "4 steps"});
  refused({"train.ce_weight=0", "method.0.weight=0"}, {"every weight", "ce_weight"});
  refused({"method.0.map=product"}, {"product", "several teachers", "diag"});
  refused({"student.model=mlp(inputs=7)"}, {"6", "7"});
  refused({"student.model=mlp(hidden=7)"}, {"inputs="});
  refused({"method.0.name=ft", "method.0.code_epochs=0"}, {"code_epochs"});
  refused({"method.0.name=btuning", "method.0.temperature=0"}, {"temperature"});
  auto import = [&](const std::string& rows) {
    return test::run_program({"features", "--from", rows, "--data", "npy:x.npy+y.npy", "--tap",
                              "features", "--out", "bad.safetensors"},
                             folder);
  };
  test::Outcome counts = import("short.npy");
  EXPECT_EQ(counts.code, 2);
  EXPECT_NE(counts.err.find("49 rows"), std::string::npos) << counts.err;
  EXPECT_NE(counts.err.find("50 samples"), std::string::npos) << counts.err;
  Tensor nan = data::read_npy(folder / "t.npy");
  nan.data<float>()[8 * 7 + 3] = NAN;
  data::save_npy(folder / "nan.npy", nan);
  test::Outcome broken = import("nan.npy");
  EXPECT_EQ(broken.code, 2);
  EXPECT_NE(broken.err.find("row 7, column 3"), std::string::npos) << broken.err;
  EXPECT_EQ(import("y.npy").code, 2);
  EXPECT_FALSE(std::filesystem::exists(folder / "bad.safetensors"));
}

// Two networks on two stored feature sets, each with a teacher of its own.
TEST_F(Trained, TwoModalities) {
  store("a.safetensors", [](float* t) { t[0]++; });
  store("b.safetensors", [](float* t) { std::reverse(t, t + 400); });
  std::vector<std::string> settings{"data.train=features:a.safetensors+b.safetensors",
                                    "data.test=features:a.safetensors+b.safetensors",
                                    "student.model=mlp(inputs=8,hidden=5)+mlp(inputs=8,hidden=4)",
                                    "teacher.1.name=noise",
                                    "teacher.1.features=[\"b.safetensors\"]"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), settings.begin(), settings.end());
    return more;
  };
  test::Outcome product = train("product", with({"method.0.map=product"}));
  EXPECT_EQ(product.code, 0) << product.err;
  auto checkpoint = data::open_safetensors(folder / "product/checkpoint.safetensors");
  EXPECT_EQ(checkpoint->read("loss.aft.s", DType::f32).shape(), Shape{16});
  std::vector<KeptFeatures> kept = kept_features(folder / "product");
  ASSERT_EQ(kept.size(), 2u);  // per teacher
  EXPECT_EQ(kept[1].teacher, "noise");
  EXPECT_EQ(kept[1].weights.size(), 8u);
  test::Outcome report = test::run_program({"report", "product", "--out", "r.html"}, folder);
  EXPECT_EQ(report.code, 0) << report.err;
  std::string page = test::read_text(folder / "r.html"), picture = "<title>weights of the teacher";
  for (const char* teacher : {"vectors", "noise"}) {  // a row of the table and a picture for each
    EXPECT_NE(report.out.find(teacher), std::string::npos) << report.out;
    size_t title = page.find(std::string("<h3>product: ") + teacher);
    ASSERT_NE(title, std::string::npos) << teacher;
    size_t end = page.find("<h3>", title + 1);
    EXPECT_LT(page.find(picture, title), end) << teacher;
  }
  test::Outcome feature =
      train("feature", with({"method.0.name=kd_feature", "method.0.modalities=2"}));
  EXPECT_EQ(feature.code, 0) << feature.err;
  checkpoint = data::open_safetensors(folder / "feature/checkpoint.safetensors");
  EXPECT_EQ(checkpoint->read("loss.kd_feature.proj.0.weight", DType::f32).shape(), (Shape{8, 5}));
  EXPECT_EQ(checkpoint->read("loss.kd_feature.proj.1.weight", DType::f32).shape(), (Shape{8, 4}));
  refused(with({"method.0.name=kd_feature", "method.0.modalities=3"}), {"modalities is 3", "A+B"});
  refused(with({"method.0.name=kd_feature", "method.0.modalities=0"}), {"modalities is 0"});
  refused({"method.0.name=kd_feature", "method.0.modalities=2"}, {"modalities is 2", "1 networks"});
}

// Section 16 (ii): learn_s = false is aft with s where it was.
TEST_F(Trained, WithoutLearningTheWeightsStay) {
  ASSERT_EQ(train("off", {"method.0.learn_s=false"}).code, 0);
  ASSERT_EQ(train("still", {"method.0.s_lr=1e-300"}).code, 0);
  EXPECT_EQ(test::read_text(folder / "off/last.safetensors"),
            test::read_text(folder / "still/last.safetensors"));
  auto file = data::open_safetensors(folder / "off/checkpoint.safetensors");
  for (double s : file->read("loss.aft.s", DType::f64).values()) EXPECT_EQ(s, 0);
}

// Section 16 (iii), on samples that were held out: the teacher knows what the labels do not ask
// for.
TEST_F(Trained, DeltaFallsUnderAftAndStaysHighWithout) {
  Tensor x = data::read_npy(folder / "x.npy");
  store("noise.safetensors", [&](float* t) {
    for (int64_t i = 0; i < 50; i++)
      for (int64_t k = 0; k < 8; k++) t[8 * i + k] = x.data<float>()[6 * i + 4 + k % 2];
  });
  Tensor t = data::read_npy(folder / "changed.npy");
  auto held_out = [&](const std::string& run, std::vector<std::string> settings) {
    settings.insert(settings.begin(), {"data.train=npy:x.npy+y.npy:[:30]",
                                       "teacher.0.features=[\"noise.safetensors\"]"});
    test::Outcome outcome = train(run, settings);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    NoGrad no_grad;
    NetworkConfig config;
    config.weights = folder / (run + "/last.safetensors");
    Network network = load_network(config);
    Tensor phi = network.model.forward(slice(x, 0, 30, 50).contiguous(), {}).features;
    return aft_delta(phi, slice(t, 0, 30, 50).contiguous(), {}).item();
  };
  double start = held_out("start", {"train.epochs=1", "train.lr=1e-9"});
  double aft = held_out("aft", {"train.epochs=60"});
  double stl = held_out("stl", {"train.epochs=60", "method.0.name=none"});
  EXPECT_LT(aft, 0.6 * start);
  EXPECT_GT(stl, 0.9 * start);
}

TEST_F(Trained, FeatureFilesThatDoNotFit) {
  refused({"augment.mixup=0.2"}, {"t.safetensors", "[augment]", "[[teacher]]", "model", "weights"});
  // The same samples in another order, and without the last one.
  Tensor x = data::read_npy(folder / "x.npy");
  std::swap_ranges(x.data<float>(), x.data<float>() + 6, x.data<float>() + 6);
  data::save_npy(folder / "swapped.npy", x);
  std::string hash =
      data::open_dataset("npy:" + (folder / "x.npy") + "+" + (folder / "y.npy")).hash;
  std::string other =
      data::open_dataset("npy:" + (folder / "swapped.npy") + "+" + (folder / "y.npy")).hash;
  refused({"data.train=npy:swapped.npy+y.npy"}, {"t.safetensors", hash, other});
  data::save_npy(folder / "less_x.npy", slice(x, 0, 0, 49).contiguous());
  data::save_npy(folder / "less_y.npy",
                 slice(data::read_npy(folder / "y.npy"), 0, 0, 49).contiguous());
  refused({"data.train=npy:less_x.npy+less_y.npy"}, {"50 samples", "of 49"});
  data::save_npy(folder / "narrow.npy", slice(x, 1, 0, 5).contiguous());
  refused({"data.test=npy:narrow.npy+y.npy"}, {"narrow.npy", "5", "6"});
  // Two files of one teacher that are not one network's.
  auto with = [](const std::string& more) {
    return std::vector<std::string>{"teacher.0.features=[\"t.safetensors\",\"" + more + "\"]"};
  };
  store("again.safetensors", [](float*) {});
  refused(with("again.safetensors"), {"t.safetensors", "again.safetensors", "same tap"});
  store(
      "logits.safetensors", [](float* t) { t[0]++; }, "logits");
  auto header = [&](const std::string& file) {
    return data::FeatureFile(folder / file).header().weight_hash;
  };
  refused(with("logits.safetensors"),
          {"different weights", header("t.safetensors"), header("logits.safetensors")});
  store("one.safetensors", [](float* t) {
    for (int64_t i = 0; i < 50; i++) std::copy_n(t, 8, t + 8 * i);
  });
  refused({"teacher.0.features=[\"one.safetensors\"]"}, {"one.safetensors", "same row"});
  // A single dimension without variance is fine.
  store("dead.safetensors", [](float* t) {
    for (int64_t i = 0; i < 50; i++) t[8 * i + 2] = 0;
  });
  EXPECT_EQ(train("dead", {"teacher.0.features=[\"dead.safetensors\"]"}).code, 0);
}

}  // namespace
}  // namespace pupil::methods

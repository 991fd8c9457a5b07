// The Trainer as another program uses it: its memory, its checkpoints, what it refuses.
#include <gtest/gtest.h>

#include "program.h"
#include "tensor/memory.h"
#include "tools/train.h"

namespace pupil::test {
namespace {

struct TrainerTest : testing::Test {
  TemporaryFolder folder;

  void SetUp() override {
    write_images(folder / "data", "train", 96);
    write_images(folder / "data", "test", 40);
    Trainer teacher(config());
    teacher.save_student(folder / "teacher.safetensors");
  }

  // tiny_config() with its data in `folder`, `more` behind it.
  Config config(const std::string& more = "", const std::vector<std::string>& settings = {}) const {
    std::string text = tiny_config();
    for (size_t at = 0; (at = text.find("npy:data", at)) != text.npos; at += folder.path().size())
      text.replace(at, 8, "npy:" + folder / "data");
    return parse_config(text + more, "test.toml", settings);
  }
  std::string with_teacher() const {
    return "[[teacher]]\nweights = \"" + (folder / "teacher.safetensors") +
           "\"\n[[method]]\nname = \"kd\"\n[[method]]\nname = \"aft\"\n";
  }
};

// Every step after the second takes the same memory from the same places, over epochs, with
// dropout, mixed images, a live teacher and a method that has parameters.
TEST_F(TrainerTest, MemoryDoesNotGrowAfterTheSecondStep) {
  Trainer trainer(config(with_teacher(),
                         {"student.dropout=0.1", "student.drop_path=0.1", "augment.crop_padding=1",
                          "augment.mixup=0.2", "train.clip_norm=1", "train.epochs=4"}));
  Arena &step = Arena::step({}), &model = Arena::model({});
  MemoryStats step_then, model_then;
  uint64_t trace = 0;
  for (int i = 1; i <= 20; i++) {
    trainer.step();
    EXPECT_EQ(step.stats().live, 0u);
    if (i == 2) {
      step_then = step.stats();
      model_then = model.stats();
      trace = step.trace();
      ASSERT_GT(step_then.peak, 0u);
    }
    if (i > 2) {
      EXPECT_EQ(step.trace(), trace) << "step " << i;
      EXPECT_EQ(step.stats().peak, step_then.peak) << "step " << i;
      EXPECT_EQ(step.stats().reserved, step_then.reserved) << "step " << i;
      EXPECT_EQ(model.stats().live, model_then.live) << "step " << i;
      EXPECT_EQ(model.stats().reserved, model_then.reserved) << "step " << i;
    }
    if (trainer.epoch_done()) trainer.next_epoch();
  }
  EXPECT_EQ(trainer.position().epoch, 3);
}

std::vector<double> parameters(Trainer& trainer) {
  std::vector<double> all;
  for (const nn::Param& p : trainer.store().params())
    for (double v : p.value.values()) all.push_back(v);
  return all;
}

void steps(Trainer& trainer, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    trainer.step();
    if (trainer.epoch_done()) trainer.next_epoch();
  }
}

// 92 samples: the last step of an epoch has 20, in batches of 8, 8 and 4.
TEST_F(TrainerTest, AccumulatedBatchesAreOneLargeBatch) {
  write_images(folder / "data", "train", 92);
  std::vector<std::string> sgd = {"train.optimizer=sgd", "train.lr=0.5", "train.schedule=constant",
                                  "train.clip_norm=1", "train.epochs=2"};
  auto with = [&](const char* batch, const char* accumulate) {
    std::vector<std::string> all = sgd;
    all.push_back(concat("train.batch=", batch));
    all.push_back(concat("train.accumulate=", accumulate));
    return all;
  };
  Trainer large(config("", with("24", "1"))), small(config("", with("8", "3")));
  EXPECT_EQ(small.total_steps(), 8);
  EXPECT_EQ(small.epoch_steps(), 4);
  for (int64_t k = 1; k <= 8; k++) {
    std::vector<double> before = parameters(large);
    large.step();
    small.step();
    const Position &a = large.position(), &b = small.position();
    EXPECT_EQ(b.step, k);
    EXPECT_EQ(a.samples, b.samples);
    EXPECT_EQ(a.correct, b.correct);
    EXPECT_NEAR(a.losses[0].second, b.losses[0].second, 1e-4);
    std::vector<double> x = parameters(large), y = parameters(small);
    double difference = 0, moved = 0;
    for (size_t i = 0; i < x.size(); i++) {
      difference = std::max(difference, std::abs(x[i] - y[i]));
      moved = std::max(moved, std::abs(x[i] - before[i]));
    }
    EXPECT_LT(difference, 2e-5) << "step " << k;
    EXPECT_GT(moved, 1e-2) << "step " << k;
    EXPECT_EQ(large.epoch_done(), small.epoch_done());
    if (large.epoch_done()) large.next_epoch(), small.next_epoch();
  }
  EXPECT_EQ(small.position().epoch, 2);
}

TEST_F(TrainerTest, EveryOptimizerGoesOnBitForBit) {
  const std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> cases = {
      {{"optimizer=sgd", "schedule=onecycle", "momentum=0.9"}, {"momentum_buffer"}},
      {{"optimizer=adam", "eps=1e-6"}, {"exp_avg", "exp_avg_sq", "step"}},
      {{"optimizer=rmsprop", "centered=true", "alpha=0.9"},
       {"square_avg", "grad_avg", "momentum_buffer", "step"}},
      {{"optimizer=lamb", "always_adapt=true", "ema_decay=0.9", "ema_warmup=true"},
       {"exp_avg", "exp_avg_sq", "step"}}};
  for (auto& [settings, states] : cases) {
    std::vector<std::string> all = {"student.dropout=0.1", "train.batch=8", "train.accumulate=2"};
    for (const std::string& setting : settings) all.push_back("train." + setting);
    Config one = config("", all);
    Trainer whole(one), first(one), second(one);
    steps(whole, 10);
    steps(first, 4);
    first.save(folder / "first");
    second.load(folder / "first");
    steps(second, 6);
    whole.save(folder / "whole");
    second.save(folder / "second");
    EXPECT_TRUE(read_text(folder / "whole") == read_text(folder / "second")) << settings[0];
    auto file = data::open_safetensors(folder / "whole");
    size_t found = 0;
    for (const data::TensorInfo& t : file->list()) found += t.name.starts_with("optimizer.head.b");
    EXPECT_EQ(found, states.size()) << settings[0];
    for (const std::string& state : states)
      EXPECT_TRUE(file->has("optimizer.head.bias." + state)) << settings[0] << " " << state;
    EXPECT_EQ(file->has("ema.head.bias"), one.train.ema_decay > 0);
  }
}

// Each of these changes what is trained.
TEST_F(TrainerTest, OptionsOfOptimizersAreUsed) {
  auto after = [&](const std::string& optimizer, const std::string& option) {
    std::vector<std::string> settings = {"train.optimizer=" + optimizer, "train.lr=0.05"};
    if (!option.empty()) settings.push_back("train." + option);
    Trainer trainer(config("", settings));
    steps(trainer, 4);
    return parameters(trainer);
  };
  for (auto& [optimizer, options] : std::map<std::string, std::vector<std::string>>{
           {"rmsprop", {"momentum=0.5", "alpha=0.9", "centered=true", "eps=0.1"}},
           {"lamb", {"beta1=0.5", "trust_clip=true", "eps=0.1", "clip_norm=0.01"}},
           {"adam", {"eps=0.1"}}})
    for (const std::string& option : options)
      EXPECT_NE(after(optimizer, ""), after(optimizer, option)) << optimizer << " " << option;
  EXPECT_NE(after("lamb", "weight_decay=0"), after("adamw", "weight_decay=0"));
}

TEST_F(TrainerTest, SchedulesAreReachable) {
  // 6 steps an epoch, 3 epochs; factors of lr at these steps.
  using Expected = std::vector<std::pair<int64_t, double>>;
  const std::vector<std::pair<std::vector<std::string>, Expected>> cases = {
      {{"schedule=linear", "warmup=1", "warmup_start=0.4"}, {{0, 0.4}, {3, 0.7}, {12, 0.5}}},
      {{"schedule=cosine", "floor=0.2"}, {{0, 1}, {9, 0.6}}},
      {{"schedule=step", "gamma=0.5"}, {{5, 1}, {6, 0.5}, {12, 0.25}}},
      {{"schedule=step", "gamma=0.5", "step_size=2", "schedule_per=epoch"}, {{11, 1}, {12, 0.5}}},
      {{"schedule=cosine_cycles", "cycle=1", "cycle_mul=2", "cycle_decay=0.5", "floor=0.1"},
       {{0, 1}, {3, 0.55}, {6, 0.5}, {12, 0.3}}},
      {{"schedule=onecycle", "pct_start=0.5", "div_factor=10", "final_div_factor=100"},
       {{0, 0.1}, {4, 0.55}, {8, 1}, {17, 0.001}}}};
  for (auto& [settings, expected] : cases) {
    std::vector<std::string> all = {"train.lr=0.01"};
    for (const std::string& setting : settings) all.push_back("train." + setting);
    Trainer trainer(config("", all));
    for (auto& [step, factor] : expected) {
      trainer.position().step = step;
      trainer.position().epoch = step / 6;
      EXPECT_NEAR(trainer.learning_rate(), 0.01 * factor, 1e-12) << settings[0] << " " << step;
    }
  }
  for (const char* optimizer : {"sgd", "adamw"}) {
    std::vector<std::string> moves = {"train.schedule=onecycle",
                                      concat("train.optimizer=", optimizer)};
    std::vector<std::string> stays = moves;
    stays.push_back("train.base_momentum=0.95");
    Trainer a(config("", moves)), b(config("", stays));
    steps(a, 4);
    steps(b, 4);
    EXPECT_NE(parameters(a), parameters(b)) << optimizer;
  }
}

TEST_F(TrainerTest, TheAverageOfTheWeightsIsTestedAndKept) {
  Trainer trainer(config("", {"train.ema_decay=0.75", "student.model=resnet8_kd"}));
  const Tensor& weight = trainer.store().find("fc.weight")->value;
  const Tensor& variance = trainer.store().find("bn1.running_var")->value;
  steps(trainer, 1);
  std::vector<double> average = weight.values(), variances = variance.values();
  for (int k = 0; k < 2; k++) {
    steps(trainer, 1);
    for (size_t i = 0; i < average.size(); i++)
      average[i] = 0.75 * average[i] + 0.25 * weight.values()[i];
    for (size_t i = 0; i < variances.size(); i++)
      variances[i] = 0.75 * variances[i] + 0.25 * variance.values()[i];
  }
  std::vector<double> now = weight.values();
  auto expect_average = [&](const Tensor& w, const Tensor& v) {
    for (size_t i = 0; i < average.size(); i++) EXPECT_NEAR(w.values()[i], average[i], 1e-6);
    for (size_t i = 0; i < variances.size(); i++) EXPECT_NEAR(v.values()[i], variances[i], 1e-5);
  };
  trainer.with_averages([&] { expect_average(weight, variance); });
  EXPECT_EQ(weight.values(), now);
  EXPECT_ANY_THROW(trainer.with_averages([] { throw Error("stopped"); }));
  EXPECT_EQ(weight.values(), now);
  trainer.save_student(folder / "student.safetensors");
  auto file = data::open_safetensors(folder / "student.safetensors");
  expect_average(file->read("fc.weight", DType::f32), file->read("bn1.running_var", DType::f32));
  EXPECT_EQ(file->read("bn1.num_batches_tracked", DType::i64).item(), 3);
  EXPECT_GT(std::abs(now[0] - average[0]), 1e-5);
}

TEST_F(TrainerTest, SchedulesThatDoNotFitAreRefused) {
  auto refused = [&](std::vector<std::string> settings, std::initializer_list<std::string> words) {
    expect_refused([&] { Trainer trainer(config("", settings)); }, words);
  };
  refused({"train.optimizer=lamp"}, {"train.optimizer", "lamp", "sgd, adam, adamw, rmsprop, lamb"});
  refused({"train.schedule=one_cycle"}, {"train.schedule", "onecycle", "cosine_cycles, linear"});
  refused({"train.schedule=cosine_cycles"}, {"train.cycle"});
  refused({"train.schedule=onecycle", "train.warmup=1"}, {"train.warmup", "train.pct_start"});
  refused({"train.schedule=onecycle", "train.pct_start=0.05"}, {"train.pct_start", "18 steps"});
  refused({"train.accumulate=0"}, {"train.accumulate", "at least 1"});
  refused({"train.ema_decay=1"}, {"train.ema_decay", "at most"});
}

TEST_F(TrainerTest, ACheckpointWithOtherPartsOfTheLossIsRefused) {
  Config none = config(), kd = config(with_teacher(), {"method.1.weight=0"});
  kd.methods.pop_back();
  std::string path = folder / "checkpoint.safetensors";
  Trainer first(none);
  first.step();
  first.save(path);
  Trainer second(kd);
  second.load(path);
  std::vector<double> before = second.store().params()[0].value.values();
  try {
    second.step();
    FAIL() << "accepted";
  } catch (const InputError& error) {
    std::string message = error.what();
    for (const char* word : {"--resume", "total, ce", "total, ce, kd"})
      EXPECT_NE(message.find(word), std::string::npos) << message;
  }
  EXPECT_EQ(second.store().params()[0].value.values(), before);  // nothing was trained
  Trainer third(none);
  third.load(path);
  third.step();
  EXPECT_EQ(third.position().step, 2);
}

// A mistake of ours is not bad input, from the first step on; a method that does not go with the
// run is.
TEST_F(TrainerTest, ErrorsOfTheFirstStepKeepTheirKind) {
  methods::Method broken;
  broken.name = "broken_for_a_test";
  broken.needs_teacher = false;
  broken.make = [](const methods::Options&, const nn::Scope&, const methods::Setup&) {
    methods::Instance instance;
    instance.loss = [](const methods::Step& step) { return add(step.student.logits, zeros({7})); };
    return instance;
  };
  methods::add_method(broken);
  Trainer trainer(config("[[method]]\nname = \"broken_for_a_test\"\n"));
  try {
    trainer.step();
    FAIL() << "accepted";
  } catch (const InputError& error) {
    FAIL() << "taken for bad input: " << error.what();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("step 1"), std::string::npos) << error.what();
  }
  write_images(folder / "six", "train", 48, 6);
  Trainer other(config(with_teacher(), {"data.train=npy:" + (folder / "six") + ":train",
                                        "data.validation=", "data.test="}));
  EXPECT_THROW(other.step(), InputError);
}

TEST_F(TrainerTest, ALossThatIsNotFiniteNamesItsParts) {
  methods::Method nan;
  nan.name = "nan_for_a_test";
  nan.needs_teacher = false;
  nan.make = [](const methods::Options&, const nn::Scope&, const methods::Setup&) {
    methods::Instance instance;
    instance.loss = [](const methods::Step& step) {
      return scale(mean(step.student.logits), std::numeric_limits<double>::quiet_NaN());
    };
    return instance;
  };
  methods::add_method(nan);
  Trainer trainer(config("[[method]]\nname = \"nan_for_a_test\"\n"));
  try {
    trainer.step();
    FAIL() << "accepted";
  } catch (const InputError& error) {
    FAIL() << "taken for bad input: " << error.what();
  } catch (const Error& error) {
    std::string message = error.what();
    for (const char* word : {"the loss is not finite in step 1", "ce ", "nan_for_a_test"})
      EXPECT_NE(message.find(word), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace pupil::test

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

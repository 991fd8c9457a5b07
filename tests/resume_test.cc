// A run that is killed, interrupted or out of disk goes on to the very bytes of an undisturbed one.
#include <gtest/gtest.h>

#include <chrono>

#include "program.h"
#include "tensor/runtime.h"
#include "tools/train.h"

namespace pupil::test {
namespace {

struct Result {
  std::string last, best, metrics;
  bool operator==(const Result&) const = default;
};

Result result_of(const std::string& run) {
  return {read_text(run + "/last.safetensors"), read_text(run + "/best.safetensors"),
          read_text(run + "/metrics.jsonl")};
}

std::vector<std::string> arguments(const std::string& run, bool resume = false,
                                   const char* threads = "1") {
  std::vector<std::string> list{"train",     "config.toml", "--run", run,
                                "--threads", threads,       "--set", "train.checkpoint_every=3"};
  if (resume) list.push_back("--resume");
  return list;
}

// Everything that a checkpoint must carry: dropout and drop path (random numbers), Adam's state, a
// method with parameters of its own and a live teacher, augmentation, accumulated batches, averaged
// weights, an epoch cut by steps.
struct ResumeTest : testing::Test {
  TemporaryFolder folder;

  void SetUp() override {
    write_images(folder / "data", "train", 104);
    write_images(folder / "data", "test", 40);
    write_text(folder / "config.toml", tiny_config());
    Outcome teacher =
        run_program({"train", "config.toml", "--run", "teacher", "--threads", "1"}, folder);
    ASSERT_EQ(teacher.code, 0) << teacher.err;
    std::string config = tiny_config();
    config.replace(config.find("epochs = 3"), 21,
                   "steps = 31\nseed = 5\nbatch = 8\naccumulate = 2\nema_decay = 0.9");
    config.replace(config.find("[train]"), 0, "dropout = 0.1\ndrop_path = 0.1\n");
    write_text(folder / "config.toml", config + R"([augment]
crop_padding = 1
flip = true
mixup = 0.2
[[teacher]]
weights = "teacher/best.safetensors"
[[method]]
name = "kd"
[[method]]
name = "aft"
)");
  }
};

// With one thread and with two. Begins with "Resume", so that the sanitizer run leaves it out.
struct ResumeKilledTest : ResumeTest, testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(ResumeWithThreads, ResumeKilledTest, testing::Values("1", "2"));

TEST_P(ResumeKilledTest, AtRandomPointsEndsWithTheSameBytes) {
  const char* threads = GetParam();
  auto begin = std::chrono::steady_clock::now();
  Outcome whole = run_program(arguments("whole", false, threads), folder);
  auto took = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - begin);
  ASSERT_EQ(whole.code, 0) << whole.err;
  Result expected = result_of(folder / "whole");
  ASSERT_FALSE(expected.last.empty());
  ASSERT_NE(expected.metrics.find("\"final\":true"), std::string::npos);

  int killed = 0, in_the_middle = 0;
  for (int round = 0; round < 20; round++) {
    std::string run = concat("run", round);
    // The first round dies anywhere; then it is resumed and killed again, later and later.
    for (int attempt = 0; attempt < 2; attempt++) {
      Process process(arguments(run, attempt > 0, threads), folder);
      double share = uniform({7, uint32_t(round), uint64_t(attempt)}, 0);
      auto wait = std::chrono::microseconds(int64_t(share * double(took.count())));
      usleep(useconds_t(wait.count()));
      process.send(SIGKILL);
      Outcome outcome = process.wait();
      if (outcome.code == 0 && attempt == 0) took = wait;  // the first run was slower than this one
      ASSERT_TRUE(outcome.code == 0 || outcome.code == 128 + SIGKILL) << outcome.err;
      killed += outcome.code != 0;
      in_the_middle +=
          outcome.code != 0 && std::filesystem::exists(folder / (run + "/checkpoint.safetensors"));
    }
    Outcome end = run_program(arguments(run, true, threads), folder);
    ASSERT_EQ(end.code, 0) << end.err;
    EXPECT_TRUE(result_of(folder / run) == expected)
        << "round " << round << ": " << read_text(folder / (run + "/metrics.jsonl"));
  }
  EXPECT_GT(killed, 10);
  EXPECT_GT(in_the_middle, 3);  // else the test proves nothing
}

TEST_F(ResumeTest, CtrlCSavesAndSaysHowToGoOn) {
  ASSERT_EQ(run_program(arguments("whole"), folder).code, 0);
  for (int signal : {SIGINT, SIGTERM}) {
    std::string run = concat("stopped", signal);
    Process process(arguments(run), folder);
    ASSERT_TRUE(process.wait_for(folder / (run + "/environment.json")));
    process.send(signal);
    Outcome stopped = process.wait();
    ASSERT_EQ(stopped.code, 130) << stopped.err;
    EXPECT_NE(stopped.err.find("go on with: pupil train --run " + run + " --resume"),
              std::string::npos)
        << stopped.err;
    ASSERT_TRUE(std::filesystem::exists(folder / (run + "/checkpoint.safetensors")));
    // A folder of a program that did not know this key, which has its default here.
    std::string config = read_text(folder / (run + "/config.toml"));
    size_t at = config.find("nesterov = false\n");
    ASSERT_NE(at, std::string::npos) << config;
    write_text(folder / (run + "/config.toml"), config.erase(at, 17));
    // As the message says: the folder knows its configuration.
    Outcome end = run_program({"train", "--run", run, "--resume"}, folder);
    ASSERT_EQ(end.code, 0) << end.err;
    EXPECT_TRUE(result_of(folder / run) == result_of(folder / "whole"));
  }
}

// --exact: the number of threads changes nothing, and a resumed run stays exact without being told.
TEST_F(ResumeTest, ExactRunsHaveTheSameBytesForAnyNumberOfThreads) {
  auto exact = [&](const std::string& run, const char* threads) {
    std::vector<std::string> list = arguments(run, false, threads);
    list.push_back("--exact");
    Outcome outcome = run_program(list, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return result_of(folder / run);
  };
  Result one = exact("one", "1");
  for (const char* threads : {"2", "3", "5"})
    EXPECT_TRUE(exact(concat("run", threads), threads) == one) << threads << " threads";

  std::vector<std::string> list = arguments("stopped", false, "2");
  list.push_back("--exact");
  Process process(list, folder);
  ASSERT_TRUE(process.wait_for(folder / "stopped/checkpoint.safetensors"));
  process.send(SIGINT);
  ASSERT_EQ(process.wait().code, 130);
  Outcome end = run_program({"train", "--run", "stopped", "--resume", "--threads", "3"}, folder);
  ASSERT_EQ(end.code, 0) << end.err;
  EXPECT_TRUE(result_of(folder / "stopped") == one);
}

// Stopped after the last step of an epoch, before its accuracy is known.
TEST_F(ResumeTest, AtTheEndOfAnEpochThereIsNoSpeedToShow) {
  ASSERT_EQ(run_program(arguments("whole"), folder).code, 0);
  std::filesystem::copy(folder / "whole", folder / "run");
  std::filesystem::path here = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  set_cpu_threads(1);
  Trainer trainer(read_config("run/config.toml"));
  while (!trainer.epoch_done()) trainer.step();
  trainer.save("run/checkpoint.safetensors");
  std::filesystem::current_path(here);
  Outcome end = run_program(arguments("run", true), folder);
  ASSERT_EQ(end.code, 0) << end.err;
  EXPECT_TRUE(result_of(folder / "run") == result_of(folder / "whole"));
  size_t first = end.out.find("epoch 1/"), second = end.out.find("epoch 2/");
  ASSERT_NE(second, std::string::npos) << end.out;
  EXPECT_EQ(end.out.substr(first, second - first).find("images/s"), std::string::npos) << end.out;
  EXPECT_NE(end.out.find("images/s", second), std::string::npos) << end.out;
}

TEST_F(ResumeTest, FullDiskLeavesTheLastCheckpoint) {
  // Files may reach 4 KiB: the first checkpoint does not fit.
  Outcome first = Process(arguments("none"), folder, 4096).wait();
  EXPECT_EQ(first.code, 1);
  EXPECT_NE(first.err.find("no checkpoint was written"), std::string::npos) << first.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "none/checkpoint.safetensors"));

  Process process(arguments("some"), folder);
  ASSERT_TRUE(process.wait_for(folder / "some/checkpoint.safetensors"));
  process.send(SIGINT);
  ASSERT_EQ(process.wait().code, 130);
  std::string before = read_text(folder / "some/checkpoint.safetensors");
  Outcome full = Process(arguments("some", true), folder, 4096).wait();
  EXPECT_EQ(full.code, 1);
  EXPECT_NE(full.err.find("some/checkpoint.safetensors of step"), std::string::npos) << full.err;
  EXPECT_EQ(read_text(folder / "some/checkpoint.safetensors"), before);
  for (auto& entry : std::filesystem::directory_iterator(folder / "some"))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  ASSERT_EQ(run_program(arguments("some", true), folder).code, 0);
  ASSERT_EQ(run_program(arguments("whole"), folder).code, 0);
  EXPECT_TRUE(result_of(folder / "some") == result_of(folder / "whole"));
}

TEST_F(ResumeTest, DivergenceStopsWithTheLastGoodCheckpoint) {
  // Residual networks with batch norm reach a loss that is not finite, transformers a softmax of
  // infinities.
  for (const char* model : {"resnet8_kd", "vit(dim=16,depth=1,heads=2,patch=4,image=8)"}) {
    std::string run = std::string("wild_") + model[0];
    std::vector<std::string> list = arguments(run);
    for (const char* setting :
         {"train.optimizer=sgd", "train.lr=1e25", "train.schedule=constant",
          "train.checkpoint_every=1", "train.steps=8", "method=[]", "augment.mixup=0"}) {
      list.push_back("--set");
      list.push_back(setting);
    }
    list.push_back("--set");
    list.push_back(std::string("student.model=") + model);
    Outcome outcome = run_program(list, folder);
    EXPECT_EQ(outcome.code, 1) << outcome.out << outcome.err;
    EXPECT_NE(outcome.err.find("step "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("try a smaller train.lr"), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    std::string checkpoint = folder / (run + "/checkpoint.safetensors");
    if (!std::filesystem::exists(checkpoint)) continue;
    auto file = data::open_safetensors(checkpoint);
    for (const data::TensorInfo& t : file->list()) {
      if (t.dtype != "F32") continue;
      for (double v : file->read(t.name, DType::f32).values())
        ASSERT_TRUE(std::isfinite(v)) << t.name;
    }
  }
}

TEST_F(ResumeTest, FolderInUseIsRefused) {
  Process first(arguments("busy"), folder);
  ASSERT_TRUE(first.wait_for(folder / "busy/environment.json"));
  TemporaryFolder elsewhere;  // for the output of the second one
  std::vector<std::string> list = arguments(folder / "busy", true);
  list[1] = folder / "config.toml";
  for (const char* key : {"train", "validation", "test"}) {
    list.push_back("--set");
    list.push_back(concat("data.", key, "=npy:", folder / "data", ":",
                          key == std::string("train") ? "train" : "test"));
  }
  list.push_back("--set");
  list.push_back("teacher.0.weights=" + folder / "teacher/best.safetensors");
  first.send(SIGSTOP);
  Outcome second = run_program(list, elsewhere);
  first.send(SIGCONT);
  EXPECT_EQ(second.code, 2);
  EXPECT_NE(second.err.find("in use"), std::string::npos) << second.err;
  EXPECT_EQ(first.wait().code, 0);
}

TEST_F(ResumeTest, AnotherConfigurationOrOtherDataIsNotResumed) {
  ASSERT_EQ(run_program(arguments("run"), folder).code, 0);
  Outcome again = run_program(arguments("run"), folder);
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("--resume"), std::string::npos) << again.err;
  std::vector<std::string> list = arguments("run", true);
  list.push_back("--set");
  list.push_back("train.lr=0.02");
  Outcome other = run_program(list, folder);
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("lr = 0.02"), std::string::npos) << other.err;
  write_images(folder / "data", "train", 108);
  Outcome data = run_program(arguments("run", true), folder);
  EXPECT_EQ(data.code, 2);
  EXPECT_NE(data.err.find("data"), std::string::npos) << data.err;
}

}  // namespace
}  // namespace pupil::test

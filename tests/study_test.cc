// Studies: several arms from one file, each with its learning rate chosen on validation samples and
// every seed; stopped ones go on from their folder alone.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "program.h"
#include "tools/config.h"
#include "tools/transmiter_job.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;

const char* kStudy = R"([study]
seeds = [3, 4]
lr = [0.00001, 0.01]
lr_epochs = 8
[[arm]]
name = "plain"
[[arm]]
name = "smooth"
[arm.train]
label_smoothing = 0.2
epochs = 12
)";

struct StudyTest : testing::Test {
  TemporaryFolder folder;

  void SetUp() override {
    write_images(folder / "data", "train", 96);
    write_images(folder / "data", "test", 40);
    std::string common = tiny_config();
    common.replace(common.find("epochs = 3"), 10, "epochs = 10");
    write_text(folder / "study.toml", common + kStudy);
  }

  static std::vector<std::string> arguments(const std::string& run) {
    return {"train", "study.toml", "--run", run, "--threads", "1"};
  }

  std::vector<Json> metrics(const std::string& run) {
    std::vector<Json> lines;
    std::istringstream text(read_text(folder / (run + "/metrics.jsonl")));
    for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
    return lines;
  }

  // Everything in a study's folder that must not depend on when it was stopped.
  std::map<std::string, std::string> results(const std::string& study) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / study)) {
      std::string path = entry.path().lexically_relative(folder / study).string();
      if (entry.is_regular_file() && !path.ends_with("timing.jsonl") && !path.ends_with("lock"))
        files[path] = read_text(entry.path().string());
    }
    return files;
  }

  void refused(const std::string& text, const std::vector<std::string>& words) {
    write_text(folder / "study.toml", text);
    Outcome outcome = run_program(arguments("bad"), folder);
    EXPECT_EQ(outcome.code, 2) << outcome.out;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    for (const std::string& word : words)
      EXPECT_NE(outcome.err.find(word), std::string::npos)
          << "no '" << word << "' in: " << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
  }
};

TEST_F(StudyTest, ArmsAreMergedOverTheRest) {
  Study study = read_study(folder / "study.toml", {"train.weight_decay=0.125"});
  ASSERT_EQ(study.arms.size(), 2u);
  EXPECT_EQ(study.seeds, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(study.lr, (std::vector<double>{0.00001, 0.01}));
  const Config &plain = study.arms[0].config, &smooth = study.arms[1].config;
  EXPECT_EQ(plain.train.epochs, 10);
  EXPECT_EQ(plain.train.label_smoothing, 0);
  EXPECT_EQ(smooth.train.epochs, 12);
  EXPECT_EQ(smooth.train.label_smoothing, 0.2);
  EXPECT_EQ(smooth.train.batch, 16);  // of the common part
  EXPECT_EQ(smooth.train.optimizer, "adamw");
  for (const Study::Arm& arm : study.arms) EXPECT_EQ(arm.config.train.weight_decay, 0.125);
  // Methods and teachers of an arm replace those of the rest, and the written file reads back.
  write_text(folder / "lists.toml", tiny_config() + R"([[teacher]]
weights = "a.safetensors"
[[method]]
name = "kd"
[[arm]]
name = "kd"
[[arm]]
name = "aft"
[[arm.teacher]]
weights = "b.safetensors"
[[arm.teacher]]
weights = "c.safetensors"
[[arm.method]]
name = "aft"
beta = 3.0
)");
  Study lists = read_study(folder / "lists.toml");
  EXPECT_EQ(lists.arms[0].config.methods[0].method, "kd");
  ASSERT_EQ(lists.arms[1].config.methods.size(), 1u);
  EXPECT_EQ(lists.arms[1].config.methods[0].method, "aft");
  EXPECT_EQ(lists.arms[1].config.teachers.size(), 2u);
  EXPECT_EQ(lists.seeds, std::vector<int64_t>{0});
  write_text(folder / "again.toml", to_toml(lists));
  Study again = read_study(folder / "again.toml");
  EXPECT_EQ(to_toml(again), to_toml(lists));
  EXPECT_EQ(to_toml(again.arms[1].config, false), to_toml(lists.arms[1].config, false));
}

TEST_F(StudyTest, ChoosesTheLearningRateOnValidationAndTrainsEverySeed) {
  Outcome outcome = run_program(arguments("study"), folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* arm : {"plain", "smooth"}) {
    std::map<double, double> best;  // validation accuracy of each learning rate
    for (const char* lr : {"1e-05", "0.01"}) {
      std::string trial = concat("study/", arm, "/lr", lr);
      Config config = read_config(folder / (trial + "/config.toml"));
      EXPECT_EQ(config.train.seed, 3);
      EXPECT_EQ(config.data.test, "");  // a choice never sees the test set
      EXPECT_EQ(config.train.epochs, 8);
      std::vector<Json> lines = metrics(trial);
      EXPECT_FALSE(lines.back().contains("test"));
      best[config.train.lr] = lines[lines.size() - 2]["best"]["top1"];
    }
    ASSERT_EQ(best.size(), 2u);
    double chosen = 0.01;  // the other one hardly moves
    EXPECT_GT(best[chosen], best[0.00001]);
    for (int64_t seed : {3, 4}) {
      std::string run = concat("study/", arm, "/seed", seed);
      Config config = read_config(folder / (run + "/config.toml"));
      EXPECT_EQ(config.train.seed, seed);
      EXPECT_EQ(config.train.lr, chosen);
      EXPECT_EQ(config.train.epochs, arm == std::string("smooth") ? 12 : 10);
      EXPECT_EQ(config.train.label_smoothing, arm == std::string("smooth") ? 0.2 : 0);
      EXPECT_TRUE(metrics(run).back().contains("test"));
    }
    EXPECT_NE(outcome.out.find(concat(arm, ": on the validation samples lr 1e-05 ")),
              std::string::npos)
        << outcome.out;
  }
  EXPECT_NE(read_text(folder / "study/plain/seed3/last.safetensors"),
            read_text(folder / "study/plain/seed4/last.safetensors"));
  // The same study again is refused, with --resume it has nothing left to do.
  auto before = results("study");
  Outcome again = run_program(arguments("study"), folder);
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("--resume"), std::string::npos) << again.err;
  EXPECT_EQ(run_program({"train", "--run", "study", "--resume"}, folder).code, 0);
  EXPECT_TRUE(results("study") == before);
  Outcome other = run_program(
      {"train", "--run", "study", "--resume", "--set", "train.weight_decay=0.25"}, folder);
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("weight_decay = 0.25"), std::string::npos) << other.err;
  Outcome report = run_program({"report", "study"}, folder);
  EXPECT_EQ(report.code, 0) << report.err;
  EXPECT_NE(report.out.find("study/smooth"), std::string::npos) << report.out;
}

// After the choice on a share of the training samples every seed gets all of them.
TEST_F(StudyTest, RetrainsOnAllSamples) {
  std::string common = tiny_config();
  common.replace(common.find("validation = \"npy:data:test\""), 28, "validation_share = 0.25");
  write_text(folder / "study.toml",
             common + "[study]\nlr = [0.001, 0.01]\nretrain = true\n[[arm]]\nname = \"a\"\n");
  Outcome outcome = run_program(arguments("study"), folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  auto samples = [&](const std::string& run) {
    return Json::parse(
        read_text(folder / (run + "/environment.json")))["sources"]["data"]["train"]["samples"];
  };
  EXPECT_EQ(samples("study/a/lr0.01"), 72);
  EXPECT_EQ(samples("study/a/seed0"), 96);
  for (const Json& line : metrics("study/a/seed0")) EXPECT_FALSE(line.contains("validation"));
  EXPECT_TRUE(metrics("study/a/seed0").back().contains("test"));
  EXPECT_TRUE(read_study(folder / "study/study.toml").retrain);
}

TEST_F(StudyTest, KilledOrInterruptedGoesOnFromItsFolder) {
  Outcome whole = run_program(arguments("whole"), folder);
  ASSERT_EQ(whole.code, 0) << whole.err;
  auto expected = results("whole");
  ASSERT_EQ(expected.count("smooth/seed4/last.safetensors"), 1u);
  // Killed in a choice of the learning rate, in a run with a seed and in the second arm.
  int round = 0;
  for (const char* until : {"plain/lr1e-05/checkpoint.safetensors", "plain/seed3/environment.json",
                            "smooth/lr0.01/checkpoint.safetensors"})
    for (int signal : {SIGKILL, SIGINT}) {
      std::string run = concat("stopped", round++);
      Process process(arguments(run), folder);
      ASSERT_TRUE(process.wait_for(folder / concat(run, "/", until)));
      process.send(signal);
      Outcome stopped = process.wait();
      ASSERT_EQ(stopped.code, signal == SIGKILL ? 128 + SIGKILL : 130) << stopped.err;
      if (signal == SIGINT) {
        EXPECT_NE(stopped.err.find("pupil train --run " + run + " --resume"), std::string::npos)
            << stopped.err;
      }
      EXPECT_FALSE(std::filesystem::exists(folder / (run + "/smooth/seed4")));
      std::filesystem::rename(folder / "study.toml", folder / "elsewhere.toml");
      Outcome end = run_program({"train", "--run", run, "--resume"}, folder);
      std::filesystem::rename(folder / "elsewhere.toml", folder / "study.toml");
      ASSERT_EQ(end.code, 0) << end.err;
      EXPECT_TRUE(results(run) == expected) << until;
    }
}

// The linear probe on stored features and the networks side by side, beside a plain student.
TEST_F(StudyTest, LinearProbeAndConcatFinetuneAreArms) {
  std::string vit = "vit(dim=16,depth=1,heads=2,patch=4,image=8)";
  write_text(folder / "teacher.toml", tiny_config());
  ASSERT_EQ(run_program({"train", "teacher.toml", "--run", "t", "--threads", "1", "--set",
                         "train.epochs=20"},
                        folder)
                .code,
            0);
  for (std::string split : {"train", "test"})
    ASSERT_EQ(run_program({"features", "--teacher", "t/last.safetensors", "--data",
                           "npy:data:" + split, "--tap", "features", "--out", split + ".f"},
                          folder)
                  .code,
              0);
  std::string common = tiny_config();
  common.replace(common.find("epochs = 3"), 10, "epochs = 10");
  write_text(folder / "study.toml", common + R"toml([[arm]]
name = "stl"
[[arm]]
name = "linear_probe"
[arm.data]
train = "features:train.f+train.f"
validation = "features:test.f+test.f"
test = "features:test.f+test.f"
[arm.student]
model = "mlp(inputs=32)"
[arm.train]
epochs = 30
lr = 0.1
[[arm]]
name = "concat_finetune"
[arm.student]
weights = "t/last.safetensors+t/last.safetensors"
head = "new"
model = ")toml" + vit + "+" + vit + "\"\n");
  Outcome outcome = run_program(arguments("s"), folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  for (const char* arm : {"linear_probe", "concat_finetune"})
    EXPECT_GT(double(metrics(concat("s/", arm, "/seed0")).back()["test"]["last"]["top1"]), 0.9)
        << arm;
  auto probe = data::open_safetensors(folder / "s/linear_probe/seed0/last.safetensors");
  ASSERT_EQ(probe->list().size(), 2u);
  EXPECT_EQ(probe->list()[0].shape, (Shape{4, 32}));
  auto both = data::open_safetensors(folder / "s/concat_finetune/seed0/last.safetensors");
  auto teacher = data::open_safetensors(folder / "t/last.safetensors");
  EXPECT_EQ(both->list().size(), 2 * teacher->list().size() - 2);
  EXPECT_EQ(both->read("head.weight", DType::f32).shape(), (Shape{4, 32}));
  std::string name = "blocks.0.mlp.fc1.weight";  // everything was trained
  EXPECT_NE(both->read("1." + name, DType::f32).values(), teacher->read(name, DType::f32).values());
  // What was saved is a network like any other.
  Outcome eval =
      run_program({"eval", "s/concat_finetune/seed0", "--data", "npy:data:test"}, folder);
  EXPECT_EQ(eval.code, 0) << eval.err;
}

TEST_F(StudyTest, BadFilesAreRefused) {
  std::string base = tiny_config();
  refused(base + "[study]\nseeds = [1]\n", {"study.toml", "[[arm]]"});
  refused(base + "[study]\nseeds = []\n[[arm]]\nname = \"a\"\n", {"study.seeds is empty"});
  refused(base + "[study]\nseeds = [-1]\n[[arm]]\nname = \"a\"\n", {"study.seeds is -1"});
  refused(base + "[study]\nseeds = [1, 2, 1]\n[[arm]]\nname = \"a\"\n", {"study.seeds", "1 twice"});
  refused(base + "[study]\nretrain = true\nlr = [0.1, 0.2]\n[[arm]]\nname = \"a\"\n",
          {"study.retrain", "data.validation_share"});
  refused(base + "[study]\nseed = [1]\n[[arm]]\nname = \"a\"\n", {"study.seed", "study.seeds"});
  refused(base + "[study]\nlr = [0.0]\n[[arm]]\nname = \"a\"\n", {"study.lr", "above 0"});
  refused(base + "[[arm]]\n", {"study.toml:12", "needs a name"});
  refused(base + "[[arm]]\nname = \"a/b\"\n", {"name"});
  refused(base + "[[arm]]\nname = \"a\"\n[[arm]]\nname = \"a\"\n", {"two arms are called a"});
  refused(base + "[arm]\nname = \"a\"\n", {"[[arm]]"});
  refused(base + "[[arm]]\nname = \"a\"\n[arm.train]\nepoch = 3\n",
          {"study.toml:15", "train.epoch", "train.epochs"});
  refused(base + "[[arm]]\nname = \"a\"\n[arm.trian]\nepochs = 3\n", {"trian", "train"});
  refused(base + "[study]\nlr = [0.1, 0.2]\n[[arm]]\nname = \"a\"\n[arm.data]\nvalidation = \"\"\n",
          {"study.lr", "data.validation_share"});
  refused(base + "[[arm]]\nname = \"a\"\n[arm.student]\nweights = \"absent.pth\"\n",
          {"absent.pth"});
}

// Lines that the checks of a configuration are about, one each; values of every type of TOML.
const std::vector<std::string> kTomlLines = {
    "[data]\n", "[[data]]\n", "[student]\n", "[[teacher]]\n", "[teacher]\n", "[[method]]\n",
    "[train]\n", "[[train]]\n", "[augment]\n", "[study]\n", "[nothing]\n", "[classes]\n",
    "[[arm]]\n", "[arm]\n", "[[arm.method]]\n", "[arm.train]\n", "[arm.data]\n",
    "[[arm.teacher]]\n", "arm = 3\n", "arm = [1]\n", "teacher = [{}]\n", "method = [\"kd\"]\n",
    "train = 1\n", "[[arm]]\nname = \"a\"\n", "[[arm]]\nname = \".a\"\n", "name = \"a/b\"\n",
    "name = \"\"\n", "name = \"kd\"\n", "name = \"aft\"\n", "name = \"nothing\"\n", "name = 3\n",
    "[[method]]\nname = \"kd\"\n", "[[method]]\nname = \"no\"\n", "[[method]]\nT = 1\n",
    "weight = 0.5\n", "weight = -1\n", "kernel = \"rbf\"\n", "T = 4\n", "T = \"4\"\n",
    "train = \"\"\n", "train = \"mnist:a\"\n", "train = 3\n", "validation = \"mnist:a\"\n",
    "validation_share = 0.1\n", "validation_share = 0.95\n", "validation_share = nan\n",
    "test = \"\"\n", "workers = 65\n", "strict = true\n", "strict = 1\n", "seed = -1\n",
    "model = \"\"\n", "model = \"resnet20_cifar\"\n", "weights = \"\"\n", "weights = \"a.pth\"\n",
    "image = 32\n", "mean = [0.5, 0.5, 0.5]\n", "mean = 0.5\n", "std = [\"a\"]\n", "std = [inf]\n",
    "head = \"new\"\n", "head = \"old\"\n", "freeze = [\"layer1.*\"]\n", "freeze = [1]\n",
    "features = [\"a\"]\n", "features = []\n", "test_features = [\"a\"]\n", "dropout = 0x1\n",
    "epochs = 0\n", "epochs = 3\n", "epochs = 3.5\n", "epochs = 1e400\n", "steps = 5\n",
    "epochs = 0\nsteps = 5\n", "patience = 3\n", "lr = 0.0\n", "lr = 1\n", "lr = -inf\n",
    "ce_weight = 0.5\n", "ce_weight = \"a\"\n", "milestones = [1, 2]\n", "milestones = [-1]\n",
    "optimizer = \"adam\"\n", "optimizer = \"none\"\n", "nesterov = false\n", "flip = 1\n",
    "seeds = [1, 1]\n", "seeds = []\n", "seeds = [0, 1]\n", "seeds = 1\n", "seeds = [-1]\n",
    "seeds = [1.5]\n", "lr = [0.1, 0.2]\n", "lr = [0.1]\n", "lr = []\n", "retrain = true\n",
    "lr_epochs = 1\n", "x = 1979-05-27\n", "x = 07:32:00\n", "x = {a = 1}\n", "x = [[1], {}]\n",
    "x = 'a'\n", "x.y = 1\n", "x = \"\"\"\na\n\"\"\"\n", "\"train\" = 1\n",
    // wherever they stand, before the first section
    "data.validation = \"mnist:b\"\n", "data.validation_share = 0.1\n", "data.test = \"mnist:a\"\n",
    "student.head = \"new\"\n", "student.weights = \"a.pth\"\n", "student.model = \"\"\n",
    "train.epochs = 0\n", "train.steps = 5\n", "train.patience = 2\n", "teacher = [{}]\n",
    "teacher = [{weights = \"a\"}]\n", "teacher = [{features = [\"a\"], model = \"b\"}]\n",
    "teacher = [{weights = \"a\", test_features = [\"b\"]}]\n",
    "teacher = [{features = [\"a\"], test_features = [\"b\"]}]\n", "method = [{name = \"none\"}]\n",
    "method = [{name = \"kd\"}]\n", "study.retrain = true\n", "study.lr = [0.1, 0.2]\n",
    "study.seeds = [1, 2]\n", "arm = [{name = \"a\"}]\n", "# a comment\n"};

TEST(Fuzz, Toml) {
  TemporaryFolder folder;
  std::string path = folder / "a.toml";
  const char* source = std::getenv("PUPIL_SOURCE");
  std::string tools = concat(source ? source : ".", "/tools/");
  FuzzOptions options;
  options.words = kTomlLines;
  options.lines = true;
  // Some of them, and settings as --set gives them. The path stands in them for the messages.
  std::vector<std::vector<std::string>> settings(20);
  size_t used = 0;
  for (const char* setting :
       {"train.lr=0.5 # ", "train.lr=0 # ", "data.train=", "teacher.0.weights=",
        "teacher.1.weights=", "teacher.9.name=", "method.kd.T=2 # ", "method.kd=",
        "method.0.T=2 # ", "method.r.T=2 # ", "train.lr.x=", "x=", "=", "study.lr=[] # "})
    settings[used++] = {setting + path};
  std::vector<std::string> files = seeds({tools + "recipes"}, ".toml", 10000);
  files.push_back(
      "[data]\ntrain = \"mnist:a\"\ntest = \"mnist:a\"\nvalidation_share = 0.1\n[student]\n"
      "model = \"resnet20_cifar\"\n[[teacher]]\nfeatures = [\"a\"]\ntest_features = [\"b\"]\n"
      "[[method]]\nname = \"ft\"\n[train]\nepochs = 3\npatience = 2\n[study]\nlr = [0.1, 0.2]\n"
      "retrain = true\n[[arm]]\nname = \"one\"\n[[arm]]\nname = \"two\"\n");
  files.push_back(
      "[data]\ntrain = \"mnist:a\"\nvalidation = \"mnist:b\"\n[student]\nweights = \"a.pth\"\n"
      "head = \"new\"\nmean = [0.5]\n[[teacher]]\nweights = \"a.pth\"\n[train]\nsteps = 3\n");
  files.push_back(to_toml(parse_config(files.back(), path), false));
  std::string dotted =
      "data.train = \"mnist:a\"\nstudent.model = \"resnet20_cifar\"\ntrain.epochs = 3\n";
  for (const char* more : {"", "arm = [{name = \"a\"}]\n", "data.validation_share = 0.1\n",
                           "teacher = [{weights = \"a\"}]\nmethod = [{name = \"kd\"}]\n",
                           "arm = [{name = \"a\"}]\nstudy.lr = [0.1, 0.2]\n",
                           "arm = [{name = \"a\"}]\ndata.validation = \"mnist:b\"\n"})
    files.push_back(dotted + more);
  size_t round = 0;
  fuzz(
      files, path, [&] { read_study(path, settings[round++ % settings.size()]); }, options);

  std::filesystem::create_directory(folder / "recipes");
  for (const auto& recipe : std::filesystem::directory_iterator(tools + "recipes"))
    std::filesystem::copy(recipe, folder / "recipes" / recipe.path().filename());
  std::filesystem::create_directory(folder / "reproduce");
  path = folder / "reproduce/a.toml";
  options.mention = folder.path();
  options.words.insert(
      options.words.end(),
      {"[reproduce]\n",          "reproduce = 1\n",
       "[[reproduce.result]]\n", "[[reproduce.result]]\narm = \"kd\"\nband = [1, 2]\n",
       "arm = \"kd\"\n",         "arm = \"none\"\n",
       "arm = \"\"\n",           "band = [1, 2]\n",
       "band = [2, 1]\n",        "band = [1]\n",
       "seed_band = [2, 1]\n",   "seed_band = [1, 2]\n",
       "[[reproduce.needs]]\n",  "setting = \"data.train\"\n",
       "minus = \"kd\"\n",       "error_over = \"kd\"\n",
       "score = \"novel\"\n",    "weights = \"best\"\n",
       "recipe = \"\"\n",        "recipe = \"absent.toml\"\n",
       "recipe = \"..\"\n",      "teacher = \"\"\n",
       "sigma = 0.5\n"});
  files = seeds({tools + "reproduce"}, ".toml", 10000);
  auto parse = [&] {
    if (is_transmiter(path))
      read_transmiter_config(path);
    else
      read_reproduced_study(path);
  };
  fuzz(files, path, parse, options);
}

TEST(Fuzz, TomlOfTransmiter) {
  TemporaryFolder folder;
  std::string path = folder / "a.toml";
  const char* source = std::getenv("PUPIL_SOURCE");
  std::string stored =
      content(concat(source ? source : ".", "/tools/recipes/caltech_transmiter.toml"));
  std::string images =
      "[classes]\nnames = \"names.txt\"\ntask = [\"a\", \"b\"]\n[data]\ntrain_images = "
      "\"folder:a\"\n"
      "test_images = \"folder:b\"\nlabels = [4, 5]\nshots = 4\n[weak]\nweights = "
      "\"a.pt\"\n[strong]\n"
      "weights = \"b{seed}.pt\"\n[transmiter]\nlogits = 4\nlatent = 8\n[linear_probe]\n"
      "choose_c = true\n";
  FuzzOptions options;
  options.lines = true;
  options.words = {"[classes]\n",
                   "[data]\n",
                   "[weak]\n",
                   "[strong]\n",
                   "[transmiter]\n",
                   "[plus]\n",
                   "[eft]\n",
                   "[tip_adapter]\n",
                   "[linear_probe]\n",
                   "[run]\n",
                   "[student]\n",
                   "[x]\n",
                   "weak = 1\n",
                   "names = \"\"\n",
                   "task = []\n",
                   "task = [\"a\"]\n",
                   "train_images = \"\"\n",
                   "test_images = \"\"\n",
                   "train_images = \"folder:a\"\n",
                   "test_images = \"folder:a\"\n",
                   "train_labels = \"\"\n",
                   "test_labels = \"\"\n",
                   "train_labels = \"a.npy\"\n",
                   "weights = \"\"\n",
                   "weights = \"a.pt\"\n",
                   "text = \"\"\n",
                   "text = \"a.npy\"\n",
                   "train = \"{seed}.npy\"\n",
                   "test = \"a.npy\"\n",
                   "head = \"a.npy\"\n",
                   "train_logits = [\"{seed}.npy\"]\n",
                   "test_logits = [\"a.npy\"]\n",
                   "logits = 2\n",
                   "logits = 1\n",
                   "latent = 3\n",
                   "labels = [1]\n",
                   "labels = []\n",
                   "beta = []\n",
                   "beta = 5.0\n",
                   "alpha = [1.0]\n",
                   "choose_c = true\n",
                   "shots = 0\n",
                   "seeds = []\n",
                   "seeds = [1, 1]\n",
                   "basis = \"cayley\"\n",
                   "basis = \"none\"\n",
                   "modes = [\"free\"]\n",
                   "modes = [3]\n",
                   "protocol = \"base_to_novel\"\n",
                   "temperature = 0.0\n",
                   "noise = nan\n"};
  fuzz(
      {stored, images}, path, [&] { for_seed(read_transmiter_config(path), 3); }, options);
}

}  // namespace
}  // namespace pupil::test

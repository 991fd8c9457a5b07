// Bad input of every kind: exit code 2, one line on stderr that says what and where, and nothing
// left behind.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "data/data.h"
#include "data/weights.h"
#include "program.h"

namespace pupil::test {
namespace {

class BadInputTest : public testing::Test {
 protected:
  TemporaryFolder folder;

  void SetUp() override {
    write_images(folder / "data", "train", 48);
    write_images(folder / "data", "test", 16);
    write_text(folder / "good.toml", tiny_config());
  }

  // `pupil train good.toml --set ...` must be refused with these words.
  void refused(std::vector<std::string> settings, std::vector<std::string> words) {
    std::vector<std::string> arguments{"train", "good.toml", "--run", "runs/bad", "--threads", "1"};
    for (std::string& s : settings) {
      arguments.push_back("--set");
      arguments.push_back(s);
    }
    check(run_program(arguments, folder), words);
    EXPECT_FALSE(std::filesystem::exists(folder / "runs"));
  }

  static void check(const Outcome& outcome, const std::vector<std::string>& words) {
    EXPECT_EQ(outcome.code, 2) << outcome.out << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("pupil: ", 0), 0u) << outcome.err;
    for (const std::string& word : words)
      EXPECT_NE(outcome.err.find(word), std::string::npos)
          << "no '" << word << "' in: " << outcome.err;
  }

  // A trained student in `runs`-less folder NAME, for checkpoints.
  std::string train(const std::string& name) {
    Outcome outcome = run_program(
        {"train", "good.toml", "--run", name, "--threads", "1", "--set", "train.epochs=1"}, folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return name + "/last.safetensors";
  }

  void resave(const std::string& from, const std::string& to,
              const std::function<void(std::vector<std::pair<std::string, Tensor>>&)>& change) {
    auto file = data::open_safetensors(folder / from);
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const data::TensorInfo& t : file->list())
      tensors.emplace_back(t.name, file->read(t.name, t.dtype == "I64" ? DType::i64 : DType::f32));
    change(tensors);
    data::save_safetensors(folder / to, tensors, file->metadata());
  }
};

TEST_F(BadInputTest, TheGoodConfigurationIsGood) {  // else the other tests prove nothing
  Outcome outcome = run_program({"train", "good.toml", "--run", "runs/good"}, folder);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
}

TEST_F(BadInputTest, MissingData) {
  refused({"data.train=npy:nowhere:train"}, {"nowhere"});
  refused({"data.train=npy:nowhere"}, {"nowhere does not exist"});
  refused({"data.train=cifar10:nowhere:train"}, {"nowhere"});
  refused({"data.train="}, {"data.train"});
  refused({"data.train=cifra10:data:train"}, {"cifra10"});
}

TEST_F(BadInputTest, EmptyData) {
  std::filesystem::create_directories(folder / "empty");
  refused({"data.train=folder:empty"}, {"empty"});
  refused({"data.train=npy:data:train[0]"}, {"0"});
  data::save_npy(folder / "data/none_images.npy", empty({0, 8, 8}, DType::u8));
  data::save_npy(folder / "data/none_labels.npy", from(std::vector<int64_t>{}, {0}));
  refused({"data.train=npy:data/none_images.npy+data/none_labels.npy"}, {"none_images.npy"});
}

TEST_F(BadInputTest, LabelsOutOfRange) {
  std::vector<int64_t> labels(48, 0);
  labels[7] = -3;
  data::save_npy(folder / "data/train_labels.npy", from(labels, {48}));
  refused({}, {"train_labels.npy", "-3", "7"});
}

TEST_F(BadInputTest, ClassCountsDiffer) {
  write_images(folder / "six", "train", 48, 6);
  refused({"data.train=npy:six:train"}, {"has 4 classes", "has 6"});  // train and test sets
  std::string checkpoint = train("four");
  refused({"data.train=npy:six:train",
           "data.validation=", "data.test=", "student.weights=" + checkpoint},
          {checkpoint, "head.weight", "(4,16)", "(6,16)", "head = \"new\""});
  check(run_program({"eval", "four", "--data", "npy:six:train"}, folder), {"6 classes", "4"});
}

TEST_F(BadInputTest, WrongChannels) {
  write_images(folder / "two", "train", 48, 4, 8, 2);
  refused({"data.train=npy:two:train", "data.validation=", "data.test="}, {"2 channels", "3"});
}

TEST_F(BadInputTest, TruncatedCheckpoint) {
  std::string whole = read_text(folder / train("t"));
  for (size_t length : {size_t(0), size_t(7), size_t(100), whole.size() / 2, whole.size() - 1}) {
    write_text(folder / "cut.safetensors", whole.substr(0, length));
    refused({"student.weights=cut.safetensors"}, {"cut.safetensors"});
  }
}

TEST_F(BadInputTest, HostileCheckpoint) {
  // Protocol 2: cposix\nsystem\n ... R: a pickle that would run a command.
  std::string pickle =
      "\x80\x02"
      "cposix\nsystem\nX\x0d" +
      std::string(3, '\0') + "touch harmed.\x85R.";
  write_text(folder / "evil.pth", pickle);
  refused({"student.weights=evil.pth"}, {"evil.pth"});
  EXPECT_FALSE(std::filesystem::exists(folder / "harmed"));
}

TEST_F(BadInputTest, ParametersThatDoNotFit) {
  std::string checkpoint = train("t");
  resave(checkpoint, "less.safetensors", [](auto& tensors) {
    std::erase_if(tensors, [](auto& t) { return t.first == "blocks.0.norm1.weight"; });
  });
  refused({"student.weights=less.safetensors"},
          {"less.safetensors", "1 missing: blocks.0.norm1.weight", "head = \"new\""});
  resave(checkpoint, "more.safetensors",
         [](auto& tensors) { tensors.emplace_back("extra.weight", zeros({3})); });
  refused({"student.weights=more.safetensors"},
          {"more.safetensors", "1 unexpected: extra.weight", "head = \"new\""});
  resave(checkpoint, "shape.safetensors", [](auto& tensors) {
    for (auto& [name, value] : tensors)
      if (name == "head.bias") value = zeros({5});
  });
  refused({"student.weights=shape.safetensors"},
          {"shape.safetensors", "head.bias (file (5), model (4))", "head = \"new\""});
  // And what the message proposes works.
  Outcome fresh = run_program({"train", "good.toml", "--run", "runs/fresh", "--set",
                               "student.weights=shape.safetensors", "--set", "student.head=new"},
                              folder);
  EXPECT_EQ(fresh.code, 0) << fresh.err;
}

TEST_F(BadInputTest, TeacherWithoutWeightsAndUnknownNames) {
  refused({"teacher.0.model=resnet8_kd"}, {"teacher0", "weights"});
  refused({"method.0.name=kd"}, {"kd", "teacher"});
  refused({"method.0.name=kdd"}, {"kdd", "kd"});
  refused({"student.model=resnet20_cifra"}, {"resnet20_cifra", "resnet20_cifar"});
  refused({"student.freeze=[\"blockz.*\"]"}, {"freeze", "blockz"});
  refused({"student.freeze=[\"*\"]"}, {"freeze"});
}

TEST_F(BadInputTest, TeacherOfOtherClasses) {
  std::string checkpoint = train("four");
  write_images(folder / "six", "train", 48, 6);
  refused({"data.train=npy:six:train",
           "data.validation=", "data.test=", "teacher.0.weights=" + checkpoint, "method.0.name=kd"},
          {"kd", "4", "6"});
}

// A feature file as `pupil features` writes it, of the training data or another set.
struct FeaturesTest : BadInputTest {
  void write(const std::string& data_spec, Tensor rows) {
    std::filesystem::path old = std::filesystem::current_path();
    std::filesystem::current_path(folder.path());
    data::Dataset set = data::open_dataset(data_spec);
    std::filesystem::current_path(old);
    data::write_features(folder / "t.features", {"t", "0", "none", "features", "f32", ""}, rows,
                         set);
  }
  static Tensor random_rows(int64_t n) {
    std::vector<float> values;
    for (int64_t i = 0; i < n * 8; i++) values.push_back(uniform({3, 1, 0}, i));
    return from(values, {n, 8});
  }
};

TEST_F(FeaturesTest, OfOtherDataOrWithAugmentation) {
  write("npy:data:train", random_rows(48));
  std::vector<std::string> settings{"teacher.0.features=[\"t.features\"]", "method.0.name=aft"};
  Outcome good = run_program(
      {"train", "good.toml", "--run", "good", "--set", settings[0], "--set", settings[1]}, folder);
  EXPECT_EQ(good.code, 0) << good.err;
  auto with = [&](const std::string& more) {
    std::vector<std::string> list = settings;
    list.push_back(more);
    return list;
  };
  refused(with("data.train=npy:data:test"), {"t.features"});
  refused(with("augment.flip=true"), {"t.features", "augment"});
  refused({settings[0], "method.0.name=kd"}, {"kd", "logits"});
}

TEST_F(FeaturesTest, ThatAreNotFinite) {
  Tensor rows = random_rows(48);
  write("npy:data:train", rows);
  std::string bytes = read_text(folder / "t.features");
  float victim = rows.data<float>()[47 * 8 + 3];  // the last sample
  size_t at = bytes.find(std::string(reinterpret_cast<const char*>(&victim), 4));
  ASSERT_NE(at, std::string::npos);
  for (auto [bad, text] : {std::pair{NAN, "nan"}, {INFINITY, "inf"}}) {
    bytes.replace(at, 4, reinterpret_cast<const char*>(&bad), 4);
    write_text(folder / "t.features", bytes);
    refused({"teacher.0.features=[\"t.features\"]", "method.0.name=aft"},
            {"t.features", "row 47, column 3", text});
  }
}

TEST_F(BadInputTest, TyposInTheConfiguration) {
  refused({"train.epoch=3"}, {"train.epoch", "train.epochs"});
  refused({"trian.epochs=3"}, {"trian", "train"});
  refused({"teacher.0.weigths=x"}, {"teacher.weigths", "teacher.weights"});
  refused({"train.optimizer=sdg"}, {"sdg", "sgd"});
  refused({"train.lr=fast"}, {"--set train.lr=fast", "train.lr", "a number"});
  refused({"trian.epochs=3"}, {"--set trian.epochs=3"});
  refused({"epochs=3"}, {"epochs", "train"});
  refused({"teacher.features=x"}, {"teacher.0.features"});
  refused({"teacher.0.weights=x", "teacher.r50.model=y"}, {"no teacher", "r50"});  // 0 has no name
  refused({"train.lr=nan"}, {"train.lr"});
  refused({"train.lr=-1"}, {"train.lr", "above 0"});
  refused({"train.nesterov=1"}, {"train.nesterov", "true or false"});
  refused({"train"}, {"section.key=value"});
  write_text(folder / "good.toml", tiny_config() + "lerning_rate = 1\n");
  refused({}, {"good.toml:12", "train.lerning_rate"});
  write_text(folder / "good.toml", "[data\n");
  refused({}, {"good.toml:1"});
  check(run_program({"train", "absent.toml"}, folder), {"absent.toml", "pupil init"});
  check(run_program({"train", "data"}, folder), {"data is a folder"});
  write_text(folder / "good.toml", "[classes]\nnames = \"a.txt\"\n");
  refused({}, {"good.toml", "pupil transmiter"});
}

TEST_F(BadInputTest, MethodOptions) {
  std::string checkpoint = train("t");
  std::vector<std::string> settings{"teacher.0.weights=" + checkpoint, "method.0.name=kd"};
  auto with = [&](const std::string& more) {
    std::vector<std::string> list = settings;
    list.push_back(more);
    return list;
  };
  refused(with("method.0.TT=3"), {"method.kd.TT", "method.kd.T"});
  refused(with("method.kd.T=hot"), {"method.kd.T", "a number"});
  refused(with("method.kd.reduction=[1]"), {"method.kd.reduction"});
  refused(with("method.kd.T=0"), {"kd"});
}

TEST_F(BadInputTest, NumbersOutOfRange) {
  refused({"train.batch=49"}, {"train.batch is 49", "48 samples"});
  refused({"train.batch=0"}, {"train.batch is 0"});
  refused({"train.epochs=0"}, {"train.epochs is 0"});
  refused({"train.epochs=-2"}, {"train.epochs is -2"});
  refused({"train.seed=-1"}, {"train.seed is -1"});
  refused({"train.seed=lucky"}, {"train.seed", "a whole number"});
  refused({"train.seed=99999999999999999999999"}, {"train.seed"});
  refused({"train.steps=5"}, {"train.epochs", "train.steps"});
  refused({"train.warmup=3"}, {"train.warmup"});
  refused({"data.validation_share=0.5"}, {"data.validation"});
}

TEST_F(BadInputTest, PixelsThatAreNotFinite) {
  std::vector<float> pixels(48 * 3 * 8 * 8, 0.5f);
  pixels[5000] = INFINITY;
  data::save_npy(folder / "data/train_images.npy", from(pixels, {48, 3, 8, 8}));
  refused({}, {"train_images.npy", "inf"});
}

TEST_F(BadInputTest, ParametersThatAreNotFinite) {
  std::string checkpoint = train("t");
  resave(checkpoint, "nan.safetensors", [](auto& tensors) {
    for (auto& [name, value] : tensors)
      if (name == "head.bias") value.template data<float>()[2] = NAN;
  });
  std::vector<std::string> words{"nan.safetensors", "head.bias", "not finite"};
  refused({"student.weights=nan.safetensors"}, words);
  refused({"teacher.0.weights=nan.safetensors", "method.0.name=kd"}, words);
  check(run_program({"eval", "nan.safetensors", "--data", "npy:data:test"}, folder), words);
  check(run_program({"features", "--teacher", "nan.safetensors", "--data", "npy:data:test", "--out",
                     "rows.safetensors"},
                    folder),
        words);
  EXPECT_FALSE(std::filesystem::exists(folder / "rows.safetensors"));
}

// Floats go into a network as they are.
TEST_F(BadInputTest, FloatsThatNoNetworkTakes) {
  std::string checkpoint = train("t");
  for (auto [shape, word] : {std::pair{Shape{48, 1, 8, 8}, "(48,1,8,8)"},
                             {Shape{48, 192}, "(48,192)"},
                             {Shape{48, 3, 10, 10}, "10x10"}}) {
    data::save_npy(folder / "data/floats.npy", zeros(shape));
    std::string spec = "npy:data/floats.npy+data/train_labels.npy";
    refused({"data.train=" + spec, "data.validation=", "data.test="}, {word});
    check(run_program({"eval", checkpoint, "--data", spec}, folder), {word});
    check(run_program({"features", "--teacher", checkpoint, "--data", spec, "--out", "f"}, folder),
          {word});
    EXPECT_FALSE(std::filesystem::exists(folder / "f"));
  }
  // Not only after an epoch of training.
  data::save_npy(folder / "data/floats.npy", zeros({16, 1, 8, 8}));
  refused({"data.test=npy:data/floats.npy+data/test_labels.npy"}, {"(16,1,8,8)"});
}

// A pipe without a writer is refused, not waited for.
TEST_F(BadInputTest, PipesAndFoldersInPlaceOfFiles) {
  for (bool pipe : {true, false}) {
    std::string mnist = pipe ? "pipes" : "folders";
    std::filesystem::create_directory(folder / mnist);
    for (const char* name : {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}) {
      std::string path = folder / (mnist + "/" + name);
      bool made = pipe ? mkfifo(path.c_str(), 0600) == 0 : std::filesystem::create_directory(path);
      ASSERT_TRUE(made);
    }
    std::string thing = mnist + "/train-images-idx3-ubyte";
    refused({"data.train=mnist:" + mnist}, {thing, "idx file"});
    refused({"student.weights=" + thing}, {thing});
  }
}

TEST_F(BadInputTest, Folders) {
  write_text(folder / "file", "");
  check(run_program({"train", "good.toml", "--run", "file/run"}, folder), {"file/run", "--run"});
  check(run_program({"train", "good.toml", "--run", "data"}, folder), {"data", "--run"});
  EXPECT_FALSE(std::filesystem::exists(folder / "data/lock"));
  check(run_program({"train", "--resume", "--run", "absent"}, folder), {"absent"});
  check(run_program({"eval", "data", "--data", "npy:data:test"}, folder), {"data"});
  check(run_program({"report", "absent"}, folder), {"absent"});
}

TEST_F(BadInputTest, Usage) {
  check(run_program({}, folder), {"--help"});
  check(run_program({"trian"}, folder), {"trian", "train"});
  check(run_program({"train"}, folder), {"CONFIG.toml"});
  check(run_program({"train", "good.toml", "--fast"}, folder), {"--fast", "pupil train --help"});
  check(run_program({"train", "good.toml", "--threads", "many"}, folder), {"--threads"});
  check(run_program({"train", "good.toml", "--device", "tpu"}, folder), {"--device"});
  check(run_program({"init", "--method", "kd"}, folder), {"--teacher"});
  check(run_program({"bench", "jpeg_224", "--dtype", "bf16"}, folder),
        {"jpeg_224", "--dtype bf16"});
  check(run_program({"bench", "aft_loss", "--dtype", "f16"}, folder), {"f16", "f32, f64 or bf16"});
  check(run_program({"bench", "aft_loss", "resnet20_c10_train", "--initial", "x"}, folder),
        {"--initial", "one workload"});
}

TEST_F(BadInputTest, Init) {
  auto refused = [&](std::vector<std::string> arguments, std::vector<std::string> words) {
    arguments.insert(arguments.begin(), "init");
    Outcome outcome = run_program(arguments, folder);
    check(outcome, words);
    EXPECT_EQ(outcome.out, "");
  };
  refused({"--student", "nosuch"}, {"nosuch"});
  refused({"--data", "foo:bar"}, {"unknown kind 'foo'", "cifar10"});
  refused({"--data", "cifar10"}, {"no path"});
  refused({"--method", "transmiter"}, {"pupil transmiter"});
  refused({"--teacher", "resnet20_cifar:later.th"}, {"--method"});
  refused({"--teacher", "resnet21_cifar:later.th", "--method", "kd"}, {"resnet21_cifar"});
  data::save_safetensors(folder / "nameless.safetensors", {{"w", zeros({1})}});
  refused({"--teacher", "nameless.safetensors", "--method", "kd"}, {"MODEL:nameless.safetensors"});
}

}  // namespace
}  // namespace pupil::test

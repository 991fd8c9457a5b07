// pupil reproduce: the list, dry runs, absent data, and a whole reproduction judged by its band.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "program.h"
#include "tools/config.h"
#include "tools/transmiter_job.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;

struct Reproduce : testing::Test {
  TemporaryFolder folder;

  void SetUp() override {
    write_images(folder / "data", "train", 96);
    write_images(folder / "data", "test", 40);
    write_text(folder / "recipe.toml", tiny_config() + R"(
[study]
seeds = [1, 2]
[[arm]]
name = "alone"
[[arm]]
name = "fast"
[arm.train]
lr = 0.02
)");
    write_text(folder / "teacher.toml", tiny_config());
  }
  void write(const std::string& section, const std::string& more = "") {
    write_text(folder / "mine.toml",
               "[reproduce]\ntitle = \"a title\"\nprotocol = \"two seeds\"\n"
               "recipe = \"recipe.toml\"\n" +
                   section + more);
  }
  Outcome reproduce(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "reproduce");
    arguments.insert(arguments.end(), {"--threads", "2"});
    return run_program(arguments, folder);
  }
  std::string result(const std::string& arm, const std::string& band,
                     const std::string& more = "") {
    return concat("[[reproduce.result]]\narm = \"", arm, "\"\nband = ", band, "\n", more, "\n");
  }
};

TEST_F(Reproduce, JudgesEveryResultAndWritesTables) {
  write(result("fast", "[0, 100]", "published = \"90.1\"\nsource = \"Table 7\"") +
            result("fast", "[-100, 100]", "minus = \"alone\"\nweights = \"best\""),
        "[train]\nepochs = 2\n");
  Outcome outcome = reproduce({"mine.toml", "--run", "out"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("Reproduced."), std::string::npos) << outcome.out;
  Json j = Json::parse(read_text(folder / "out/reproduction.json"));
  EXPECT_EQ(j["reproduced"], true);
  EXPECT_EQ(j["seeds"], Json({1, 2}));
  // The numbers are those of the runs, epochs as this file says, the band on the mean.
  double sum = 0, difference = 0;
  for (int seed : {1, 2})
    for (const char* arm : {"fast", "alone"}) {
      std::istringstream lines(
          read_text(folder / concat("out/study/", arm, "/seed", seed, "/metrics.jsonl")));
      std::string line, last;
      while (std::getline(lines, line)) last = line;
      Json test = Json::parse(last);
      EXPECT_EQ(test["epochs"], 2);
      if (arm == std::string("fast")) sum += 100 * test["test"]["last"]["top1"].get<double>();
      difference +=
          (arm == std::string("fast") ? 50 : -50) * test["test"]["best"]["top1"].get<double>();
    }
  EXPECT_NEAR(j["results"][0]["last"]["mean"].get<double>(), sum / 2, 1e-9);
  EXPECT_NEAR(j["results"][1]["best"]["mean"].get<double>(), difference, 1e-9);
  EXPECT_EQ(j["results"][0]["published"], "90.1");
  std::string text = read_text(folder / "out/reproduction.md");
  for (const char* part : {"# mine: a title", "two seeds",
                           "| fast | 90.1 (Table 7) | 0.00 to 100.00", "fast minus alone"})
    EXPECT_NE(text.find(part), std::string::npos) << text;

  Outcome again = reproduce({"mine.toml", "--run", "out"});
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("--resume"), std::string::npos) << again.err;
  std::string before = read_text(folder / "out/reproduction.json");
  EXPECT_EQ(reproduce({"mine.toml", "--run", "out", "--resume"}).code, 0);
  EXPECT_TRUE(read_text(folder / "out/reproduction.json") == before);
}

TEST_F(Reproduce, OutsideItsBandIsAFailedJob) {
  write(result("alone", "[0, 100]") + result("fast", "[100, 100]"), "[train]\nepochs = 1\n");
  Outcome outcome = reproduce({"mine.toml", "--run", "out"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("not inside its acceptance band"), std::string::npos) << outcome.err;
  Json j = Json::parse(read_text(folder / "out/reproduction.json"));
  EXPECT_EQ(j["reproduced"], false);
  EXPECT_EQ(j["results"][0]["inside"], true);
  EXPECT_EQ(j["results"][1]["inside"], false);
  EXPECT_NE(read_text(folder / "out/reproduction.md").find("**outside**"), std::string::npos);
}

TEST_F(Reproduce, TrainsTheTeacherFirst) {
  std::string kd = R"([[teacher]]
weights = "not there"
[[method]]
name = "kd"
[train]
epochs = 1
)";
  write("teacher = \"teacher.toml\"\n" + result("alone", "[0, 100]"), kd);
  Outcome dry = reproduce({"mine.toml", "--run", "out", "--dry-run"});
  ASSERT_EQ(dry.code, 0) << dry.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  for (const char* part : {"teacher: ", "alone: ", "fast: ", "6 steps x 2 runs", "peak memory"})
    EXPECT_NE(dry.out.find(part), std::string::npos) << dry.out;
  ASSERT_EQ(reproduce({"mine.toml", "--run", "out"}).code, 0);
  Json environment = Json::parse(read_text(folder / "out/study/fast/seed2/environment.json"));
  std::string hash = environment["sources"]["teachers"][0]["weights_sha256"];
  EXPECT_EQ(hash, data::open_safetensors(folder / "out/teacher/last.safetensors")->hash());
}

TEST_F(Reproduce, SaysWhatToPutWhere) {
  write(R"([[reproduce.needs]]
setting = "data.train"
path = "photos"
what = "the photographs of the paper"
[[reproduce.needs]]
setting = "teacher.0.weights"
path = "big.safetensors"
what = "the large network"
make = "pupil train big.toml"
)" + result("alone", "[0, 100]"));
  Outcome absent = reproduce({"mine.toml", "--dry-run"});
  EXPECT_EQ(absent.code, 2);
  for (const char* part : {"photos (the photographs of the paper)", "--set data.train=",
                           "big.safetensors (the large network), made by: pupil train big.toml"})
    EXPECT_NE(absent.err.find(part), std::string::npos) << absent.err;
  Outcome one = reproduce({"mine.toml", "--dry-run", "--set", "data.train=npy:data:train"});
  EXPECT_EQ(one.err.find("photos"), std::string::npos) << one.err;
  write_text(folder / "big.safetensors", "");
  EXPECT_EQ(reproduce({"mine.toml", "--dry-run", "--set", "data.train=npy:data:train"}).code, 0);
}

TEST_F(Reproduce, BadFiles) {
  auto refused = [&](const std::string& section, const std::string& words) {
    write(section);
    Outcome outcome = reproduce({"mine.toml", "--dry-run"});
    EXPECT_EQ(outcome.code, 2) << section;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
  };
  refused("", "needs a [[reproduce.result]]");
  refused("titel = \"x\"\n" + result("alone", "[0, 1]"), "did you mean reproduce.title");
  refused(result("alone", "[1]"), "band = [90.0, 91.5]");
  refused(result("alone", "[2, 1]"), "needs an arm and a band");
  refused(result("alon", "[0, 1]"), "names the arm alon");
  refused(result("alone", "[0, 1]", "error_over = \"fats\""), "names the arm fats");
  refused(result("alone", "[0, 1]", "score = \"novel\""), "base_to_novel");
  refused(result("alone", "[0, 1]", "seed_band = [2, 1]"), "needs an arm and a band");
  refused(result("alone", "[0, 1]", "weights = \"first\""), "it is one of last, best");
  write_text(folder / "mine.toml", tiny_config());
  EXPECT_NE(reproduce({"mine.toml"}).err.find("needs a section [reproduce]"), std::string::npos);
  EXPECT_EQ(reproduce({"absent.toml"}).code, 2);
  Outcome unknown = reproduce({"quickstar"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("did you mean quickstart?"), std::string::npos) << unknown.err;
}

// Every file that is installed reads to the end, and says what it is.
TEST_F(Reproduce, TheInstalledOnes) {
  Json list = Json::parse(run_program({"reproduce", "--json"}, folder).out);
  EXPECT_GE(list.size(), 10u);
  for (const Json& entry : list) {
    std::string path = entry["file"];
    Reproduction r = read_reproduction(path);
    for (const std::string* text : {&r.title, &r.source, &r.protocol, &r.differs})
      EXPECT_FALSE(text->empty()) << path;
    if (is_transmiter(path))
      EXPECT_FALSE(read_transmiter_config(path).seeds.empty()) << path;
    else
      EXPECT_FALSE(read_reproduced_study(path).arms.empty()) << path;
    for (const Reproduction::Need& need : r.needs)
      EXPECT_FALSE(need.path.empty() || need.what.empty()) << path;
  }
}

}  // namespace
}  // namespace pupil::test

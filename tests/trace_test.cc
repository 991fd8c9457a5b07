// pupil train --trace and pupil diff.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "program.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;

struct TraceTest : testing::Test {
  TemporaryFolder folder;
  void SetUp() override {
    write_images(folder / "data", "train", 96);
    write_images(folder / "data", "test", 40);
    write_text(folder / "config.toml", tiny_config());
  }
  Outcome train(const std::string& run, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"train", "config.toml", "--run", run, "--threads", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, folder);
  }
  void expect_same_file(const std::string& a, const std::string& b) {
    EXPECT_TRUE(read_text(folder / a) == read_text(folder / b)) << a << " and " << b;
  }
  Outcome diff(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "diff");
    return run_program(arguments, folder);
  }
  // A student of a live teacher with clipped gradients, two methods.
  void taught() {
    EXPECT_EQ(train("teacher").code, 0);
    write_text(folder / "config.toml", tiny_config() + R"(clip_norm = 0.1
[[teacher]]
name = "big"
weights = "teacher/last.safetensors"
[[method]]
name = "kd"
[[method]]
name = "aft"
)");
  }
};

TEST_F(TraceTest, NamesInForwardOrderAndTheSameTraining) {
  taught();
  ASSERT_EQ(train("plain").code, 0);
  Outcome traced = train("traced", {"--trace", "1-2,9"});
  ASSERT_EQ(traced.code, 0) << traced.err;
  expect_same_file("plain/last.safetensors", "traced/last.safetensors");
  expect_same_file("plain/metrics.jsonl", "traced/metrics.jsonl");
  for (int step = 1; step <= 18; step++)
    EXPECT_EQ(std::filesystem::exists(folder / concat("traced/trace-", step, ".safetensors")),
              step <= 2 || step == 9)
        << step;

  auto file = data::open_safetensors(folder / "traced/trace-1.safetensors");
  EXPECT_EQ(file->metadata().at("step"), "1");
  std::vector<std::string> groups;  // "batch", "teacher", ... as they follow each other
  for (const data::TensorInfo& t : file->list()) {
    std::string group = t.name.substr(0, t.name.find('.'));
    if (groups.empty() || groups.back() != group) groups.push_back(group);
  }
  EXPECT_EQ(groups,
            (std::vector<std::string>{"batch", "teacher", "student", "loss", "grad", "param"}));
  for (const char* name :
       {"batch.x", "batch.labels", "teacher.big.blocks.0", "teacher.big.features",
        "teacher.big.logits", "student.patch_embed", "student.norm", "student.features",
        "student.logits", "loss.ce", "loss.kd", "loss.aft", "loss.total", "grad.head.weight",
        "grad.loss.aft.s", "param.head.weight", "param.loss.aft.s"})
    EXPECT_TRUE(file->has(name)) << name;
  double total = file->read("loss.total", DType::f64).item();
  EXPECT_NEAR(total,
              0.1 * file->read("loss.ce", DType::f64).item() +
                  0.9 * file->read("loss.kd", DType::f64).item() +
                  file->read("loss.aft", DType::f64).item(),
              1e-5 * total);
  // What step 1 leaves is what step 2 begins with; Adam's first step has length lr.
  auto second = data::open_safetensors(folder / "traced/trace-2.safetensors");
  EXPECT_NE(file->read("param.head.weight", DType::f64).values(),
            second->read("param.head.weight", DType::f64).values());
  EXPECT_EQ(file->read("student.logits", DType::f64).shape(), (Shape{16, 4}));
}

TEST_F(TraceTest, ConvolutionsTrainTheSame) {
  std::vector<std::string> small{
      "--set", "student.model=resnet8_kd", "--set", "train.steps=3", "--set", "train.epochs=0"};
  ASSERT_EQ(train("plain", small).code, 0);
  small.insert(small.end(), {"--trace", "1-3"});
  ASSERT_EQ(train("traced", small).code, 0);
  expect_same_file("plain/last.safetensors", "traced/last.safetensors");
  auto file = data::open_safetensors(folder / "traced/trace-3.safetensors");
  for (const char* name : {"student.f0", "student.pre3", "student.pooled", "param.bn1.running_var"})
    EXPECT_TRUE(file->has(name)) << name;
}

// A teacher shows what lies before its activations only in the steps that are traced.
TEST_F(TraceTest, ConvolutionsTeachTheSame) {
  std::vector<std::string> small{
      "--set", "student.model=resnet8_kd", "--set", "train.steps=3", "--set", "train.epochs=0"};
  ASSERT_EQ(train("teacher", small).code, 0);
  write_text(folder / "config.toml", tiny_config() + R"([[teacher]]
name = "big"
weights = "teacher/last.safetensors"
[[method]]
name = "kd"
)");
  ASSERT_EQ(train("plain", small).code, 0);
  for (std::string step : {"1", "2"}) {
    std::string run = "traced" + step;
    std::vector<std::string> traced = small;
    traced.insert(traced.end(), {"--trace", step});
    ASSERT_EQ(train(run, traced).code, 0);
    expect_same_file("plain/last.safetensors", run + "/last.safetensors");
    auto file = data::open_safetensors(folder / run + "/trace-" + step + ".safetensors");
    for (const char* name : {"teacher.big.pre1", "teacher.big.pre3"}) {
      std::vector<double> values = file->read(name, DType::f64).values();
      EXPECT_LT(*std::min_element(values.begin(), values.end()), 0) << name;
    }
  }
}

TEST_F(TraceTest, TheLastStepEndsInTheSavedStudent) {
  ASSERT_EQ(train("run", {"--trace", "18"}).code, 0);
  auto trace = data::open_safetensors(folder / "run/trace-18.safetensors");
  auto last = data::open_safetensors(folder / "run/last.safetensors");
  for (const data::TensorInfo& t : last->list())
    EXPECT_EQ(last->read(t.name, DType::f64).values(),
              trace->read("param." + t.name, DType::f64).values())
        << t.name;
}

TEST_F(TraceTest, BadSteps) {
  for (const char* bad : {"0", "x", "3-1", "1-", "1;2", "-1"}) {
    Outcome outcome = train("bad", {concat("--trace=", bad)});
    EXPECT_EQ(outcome.code, 2) << bad << outcome.err;
    EXPECT_NE(outcome.err.find("--trace"), std::string::npos) << outcome.err;
  }
  Outcome late = train("bad", {"--trace", "19"});
  EXPECT_EQ(late.code, 2);
  EXPECT_NE(late.err.find("the run has 18 steps"), std::string::npos) << late.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
}

TEST_F(TraceTest, DiffOfTwoRuns) {
  ASSERT_EQ(train("a", {"--trace", "1,2"}).code, 0);
  ASSERT_EQ(train("b", {"--trace", "1,2"}).code, 0);
  ASSERT_EQ(train("c", {"--trace", "1,2", "--set", "train.lr=0.02"}).code, 0);
  Outcome same = diff({"a/trace-2.safetensors", "b/trace-2.safetensors"});
  EXPECT_EQ(same.code, 0) << same.out << same.err;
  EXPECT_NE(same.out.find(" 0 different"), std::string::npos) << same.out;
  // Another rate moves other steps: in step 1 everything before the update agrees.
  Outcome update = diff({"a/trace-1.safetensors", "c/trace-1.safetensors", "--json"});
  EXPECT_EQ(update.code, 1);
  Json j = Json::parse(update.out);
  EXPECT_TRUE(j["first"].get<std::string>().starts_with("param.")) << j["first"];
  Json later = Json::parse(diff({"a/trace-2.safetensors", "c/trace-2.safetensors", "--json"}).out);
  EXPECT_TRUE(later["first"].get<std::string>().starts_with("student.")) << later["first"];
}

TEST_F(TraceTest, DiffNumbersTolerancesAndMissing) {
  auto save = [&](const char* name, std::vector<std::pair<std::string, Tensor>> tensors) {
    data::save_safetensors(folder / name, tensors);
  };
  auto f64 = [](std::vector<double> v) {
    return from(std::span<const double>(v), {int64_t(v.size())});
  };
  save("a", {{"x", f64({1, -4, NAN})}, {"y", f64({1, 2})}, {"z", f64({INFINITY})}});
  save("b", {{"z", f64({INFINITY})}, {"y", f64({1, 2.5})}, {"x", f64({1, -4.5, NAN})}});
  Json j = Json::parse(diff({"a", "b", "--json"}).out);
  EXPECT_EQ(j["first"], "x");
  EXPECT_EQ(j["different"], 2);
  EXPECT_EQ(j["rows"][0]["absolute"], 0.5);
  EXPECT_EQ(j["rows"][0]["relative"], 0.125);
  EXPECT_EQ(j["rows"][2]["equal"], true);
  EXPECT_EQ(diff({"a", "b", "--tolerance", "0.2"}).code, 1);  // y is off by a quarter
  EXPECT_EQ(diff({"a", "b", "--tolerance", "0.25"}).code, 0);
  EXPECT_EQ(diff({"a", "b", "--absolute", "0.5"}).code, 0);

  save("c", {{"x", f64({1, -4})}, {"w", f64({0})}});
  Outcome missing = diff({"a", "c"});
  EXPECT_EQ(missing.code, 1);
  for (const char* part : {"x  shape (3) and (2)", "y  only in a", "w  only in c"})
    EXPECT_NE(missing.out.find(part), std::string::npos) << missing.out;
  save("d", {{"x", f64({1, -4, 0})}, {"y", f64({1, 2})}, {"z", f64({INFINITY})}});
  EXPECT_EQ(diff({"a", "d", "--absolute", "100"}).code, 1);  // NaN is no number

  write_text(folder / "text", "no tensors");
  for (std::vector<std::string> bad : {std::vector<std::string>{"a", "text"},
                                       {"a", "absent"},
                                       {"a"},
                                       {"a", "b", "--tolerance", "-1"}})
    EXPECT_EQ(diff(bad).code, 2);
}

}  // namespace
}  // namespace pupil::test

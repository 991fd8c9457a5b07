// pupil inspect: what it prints, and that a refused file ends in one line and exit code 2.
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/weights.h"
#include "tests/support.h"
#include "tools/program.h"

namespace pupil {
namespace {

struct Answer {
  int code;
  std::string out, err;
};

Answer run_inspect(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"pupil", "inspect"});
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  int code = program(int(argv.size()), argv.data());
  return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

TEST(Inspect, RefusedFilesEndInOneLineAndExitCode2) {
  PUPIL_NEEDS_SHARED();
  std::string folder = test::shared_folder() + "/reference/hostile";
  std::ifstream list(folder + "/expected.json");
  const nlohmann::json all = nlohmann::json::parse(list);
  for (auto& [name, want] : all.items()) {
    Answer a = run_inspect({folder + "/" + name});
    EXPECT_EQ(a.out.find("pupil-evil"), std::string::npos) << name;
    if (want["verdict"] == "load") {
      EXPECT_EQ(a.code, 0) << name << a.err;
    }
    if (want["verdict"] == "refuse") {
      EXPECT_EQ(a.code, 2) << name;
      EXPECT_EQ(a.out, "") << name;
      EXPECT_EQ(std::count(a.err.begin(), a.err.end(), '\n'), 1) << a.err;
      EXPECT_NE(a.err.find(name), std::string::npos) << a.err;
    }
  }
}

TEST(Inspect, SaysWhatAFileHolds) {
  test::TemporaryFolder folder;
  std::string path = folder / "a.safetensors";
  data::save_safetensors(path, {{"w\x1b[31m", full({2, 3}, 1)}, {"n", full({}, 7, DType::i64)}},
                         {{"model", "resnet20_cifar"}});
  Answer text = run_inspect({path});
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part :
       {"safetensors", "resnet20_cifar", "(2,3)", "I64", "2 tensors, 7 values", "w\\x1b[31m"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part << " in " << text.out;
  EXPECT_EQ(text.out.find('\x1b'), std::string::npos);
  auto json = nlohmann::json::parse(run_inspect({path, "--json"}).out);
  EXPECT_EQ(json["tensors"][0]["name"], "w\x1b[31m");
  EXPECT_EQ(json["tensors"][0]["shape"], nlohmann::json::array({2, 3}));
  EXPECT_EQ(json["values"], 7);
  EXPECT_EQ(json["tensors"][0]["mean"], 1);
  EXPECT_EQ(json["tensors"][0]["std"], 0);
  EXPECT_EQ(json["metadata"]["model"], "resnet20_cifar");
  EXPECT_EQ(json["sha256"], data::open_weights(path)->hash());

  data::save_npy(folder / "a.npy", full({3, 4}, 2));
  Answer array = run_inspect({folder / "a.npy"});
  EXPECT_NE(array.out.find("(3,4)"), std::string::npos) << array.out;
  auto only = nlohmann::json::parse(run_inspect({folder / "a.npy", "--json"}).out)["tensors"][0];
  EXPECT_EQ(only["dtype"], "F32");
  EXPECT_EQ(only["name"], "a");
  EXPECT_EQ(run_inspect({folder / "none"}).code, 2);
  EXPECT_EQ(run_inspect({folder.path()}).code, 2);
}

TEST(Inspect, NamesWhatIsWrongWithATensor) {
  test::TemporaryFolder folder;
  std::vector<double> values{1, NAN, 3, INFINITY}, spread{-1, 0, 1, 4};
  data::save_safetensors(folder / "a.safetensors",
                         {{"broken", from(std::span<const double>(values), {4})},
                          {"dead", zeros({3})},
                          {"flat", full({3}, 2)},
                          {"fine", from(std::span<const double>(spread), {4}).to(DType::bf16)}});
  Answer text = run_inspect({folder / "a.safetensors"});
  for (const char* part : {"1 NaN, 1 infinite", "all zero", "constant", "not finite in 1 tensor"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part << " in " << text.out;
  auto tensors =
      nlohmann::json::parse(run_inspect({folder / "a.safetensors", "--json"}).out)["tensors"];
  EXPECT_EQ(tensors[0]["nan"], 1);
  EXPECT_EQ(tensors[0]["mean"], 2);
  EXPECT_EQ(tensors[1]["zero"], 3);
  EXPECT_EQ(tensors[3]["min"], -1);
  EXPECT_EQ(tensors[3]["max"], 4);
  EXPECT_NEAR(tensors[3]["std"], std::sqrt(3.5), 1e-12);
}

TEST(Inspect, HashOfAFile) {
  test::TemporaryFolder folder;
  std::ofstream(folder / "abc") << "abc";
  const std::string hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(run_inspect({folder / "abc", "--hash"}).out, hash + "  " + (folder / "abc") + "\n");
  EXPECT_EQ(run_inspect({folder / "abc", "--hash", hash}).code, 0);
  EXPECT_EQ(run_inspect({folder / "abc", "--hash", "BA7816BF"}).code, 0);
  for (const char* wrong : {"ca7816bf", "ba7", "no hash!"}) {
    Answer refused = run_inspect({folder / "abc", "--hash", wrong});
    EXPECT_EQ(refused.code, 2) << wrong;
    EXPECT_EQ(refused.out, "");
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
}

}  // namespace
}  // namespace pupil

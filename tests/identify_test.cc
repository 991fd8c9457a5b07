// pupil identify finds the loss that a file came from, whatever its tensors are called.
#include "tools/identify.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "program.h"
#include "tools/verify.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;

std::string golden(const std::string& name) {
  const char* source = std::getenv("PUPIL_SOURCE");
  return concat(source ? source : ".", "/tests/golden/", name, ".safetensors");
}

// A case as somebody else would export it: without the function's name, perhaps without attributes,
// with names of their own, in another precision, times a factor.
struct Exported {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::map<std::string, std::string> metadata;

  explicit Exported(const std::string& path, bool with_attributes = true) {
    auto file = data::open_safetensors(path);
    if (with_attributes) metadata["attrs"] = file->metadata().at("attrs");
    for (const data::TensorInfo& info : file->list())
      tensors.emplace_back(info.name,
                           file->read(info.name, info.dtype[0] == 'I' ? DType::i64 : DType::f64));
  }
  Exported& rename(const std::map<std::string, std::string>& names) {
    for (auto& [name, tensor] : tensors)
      for (auto& [from, to] : names) {
        if (name == from) name = to;
        if (name == "grad." + from) name = "grad." + to;
      }
    return *this;
  }
  Exported& scale_by(double factor) {
    for (auto& [name, tensor] : tensors)
      if (name == "out.loss" || name.starts_with("grad."))
        for (int64_t i = 0; i < tensor.numel(); i++) tensor.data<double>()[i] *= factor;
    return *this;
  }
  Exported& drop(const std::string& prefix) {
    std::erase_if(tensors, [&](auto& t) { return t.first.starts_with(prefix); });
    return *this;
  }
  Identified identify() const {
    TemporaryFolder folder;
    data::save_safetensors(folder / "x.safetensors", tensors, metadata);
    return pupil::identify(folder / "x.safetensors");
  }
};

bool contains(const Identified& found, const std::string& function) {
  for (const Guess& g : found.equal)
    if (g.function == function && g.verdict == Guess::equal && g.factor == 1) return true;
  return false;
}

// Cases of losses whose functions this program has, without those that must be refused.
std::vector<std::string> loss_cases(const std::vector<std::string>& folders) {
  std::vector<std::string> found;
  for (const std::string& path : find_cases(folders)) {
    auto file = data::open_safetensors(path);
    std::string function = file->metadata().at("fn");
    bool loss = function.starts_with("kd.") || function.starts_with("aft.");
    for (const char* other : {"trajectory", "evaluate", "schedule", "_fit"})
      loss &= function.find(other) == std::string::npos;
    if (loss && file->has("out.loss") && file->read("out.loss", DType::f64).numel() == 1 &&
        !file->metadata().count("expect") &&
        verify_case(path, {DType::f64, {}}).status == VerifyResult::passed)
      found.push_back(path);
  }
  return found;
}

void expect_found(const std::string& path) {
  std::string function = data::open_safetensors(path)->metadata().at("fn");
  Identified found = Exported(path).identify();
  EXPECT_TRUE(contains(found, function)) << path;
  // The functions of one value (a cross-entropy under two names) may share the first place.
  ASSERT_FALSE(found.equal.empty()) << path;
  EXPECT_EQ(found.equal[0].factor, 1) << path;
}

void expect_found_with_a_factor(const std::string& path) {
  std::string function = data::open_safetensors(path)->metadata().at("fn");
  Identified found = Exported(path).scale_by(-7.5).identify();
  if (!found.has_gradients) return;
  for (const Guess& g : found.equal)
    if (g.function == function) {
      EXPECT_NEAR(g.factor, -7.5, 1e-6) << path;
      return;
    }
  ADD_FAILURE() << path << " times -7.5 was not found";
}

TEST(Identify, GoldenCasesWithoutTheirName) {
  std::vector<std::string> cases = loss_cases({golden("").substr(0, golden("").rfind('/'))});
  EXPECT_GE(cases.size(), 13u);
  for (const std::string& path : cases) {
    expect_found(path);
    expect_found_with_a_factor(path);
  }
}

TEST(Identify, VisibleCasesWithoutTheirName) {
  PUPIL_NEEDS_SHARED();
  std::vector<std::string> cases =
      loss_cases({shared_folder() + "/reference/kd", shared_folder() + "/reference/aft"});
  EXPECT_GE(cases.size(), 20u);
  for (const std::string& path : cases)
    if (!std::filesystem::exists(golden(std::filesystem::path(path).stem().string())))
      expect_found(path);
}

TEST(Identify, OtherNamesAndNoAttributes) {
  Exported kd(golden("kd_hinton__batchmean_t4"), false);
  kd.rename({{"in.logits_s", "prediction"}, {"in.logits_t", "reference"}}).drop("in.labels");
  Identified found = kd.identify();
  ASSERT_FALSE(found.equal.empty());
  const Guess& best = found.equal[0];
  EXPECT_EQ(best.function, "kd.hinton");
  EXPECT_EQ(best.factor, 1);
  EXPECT_EQ(best.inputs.at("in.logits_s"), "prediction");
  EXPECT_EQ(best.inputs.at("in.logits_t"), "reference");
  EXPECT_EQ(best.attributes.size(), 0u);  // T = 4 is the default

  Exported mean(golden("kd_hinton__mean_t2"), false);
  const Guess mean_guess = mean.identify().equal.at(0);
  EXPECT_EQ(mean_guess.attributes.at("temperature"), "2");
  EXPECT_EQ(mean_guess.factor == 1, mean_guess.attributes.count("reduction") == 1);

  Exported dense(golden("aft_loss__dense"), false);
  dense.rename({{"in.phi", "a"}, {"in.psi", "b"}, {"param.s", "c"}});
  const Guess dense_guess = dense.identify().equal.at(0);
  EXPECT_EQ(dense_guess.function, "aft.loss");
  EXPECT_EQ(dense_guess.attributes.at("map"), "\"dense\"");
  EXPECT_EQ(dense_guess.inputs.at("param.s"), "c");

  Exported product(golden("aft_loss__product"), false);
  const Guess product_guess = product.identify().equal.at(0);
  EXPECT_EQ(product_guess.attributes.at("map"), "\"product\"");
}

TEST(Identify, OnlyTheLoss) {
  Exported kd(golden("kd_hinton__batchmean_t4"), false);
  kd.drop("grad.");
  Identified found = kd.identify();
  EXPECT_FALSE(found.has_gradients);
  EXPECT_TRUE(contains(found, "kd.hinton"));
  // Twice the loss is a factor that code has for a reason, times 1.7 is none.
  EXPECT_EQ(kd.scale_by(2).identify().equal.at(0).factor, 2);
  kd.scale_by(0.85);
  for (const Guess& g : kd.identify().equal) EXPECT_NE(g.factor, 1.7);
}

// The cross-entropy with the teacher's probabilities has the gradients of the divergence.
TEST(Identify, SameGradientsAnotherConstant) {
  Exported kd(golden("kd_hinton__batchmean_t4"), false);
  for (auto& [name, tensor] : kd.tensors)
    if (name == "out.loss") tensor.data<double>()[0] += 3.25;
  Identified found = kd.identify();
  ASSERT_FALSE(found.equal.empty());
  EXPECT_EQ(found.equal[0].verdict, Guess::gradients_equal);
  EXPECT_EQ(found.equal[0].function, "kd.hinton");
  EXPECT_EQ(found.equal[0].tensor, "out.loss");
}

TEST(Identify, ALossThatMatchesNothingNamesWhatDiffers) {
  Exported kd(golden("kd_hinton__batchmean_t4"), false);
  for (auto& [name, tensor] : kd.tensors)
    if (name == "grad.in.logits_s") tensor.data<double>()[1] += 0.5;
  Identified found = kd.identify();
  EXPECT_TRUE(found.equal.empty());
  ASSERT_FALSE(found.nearest.empty());
  bool named = false;
  for (const Guess& g : found.nearest) named |= g.function == "kd.hinton";
  EXPECT_TRUE(named);
  EXPECT_FALSE(found.nearest[0].tensor.empty());
  EXPECT_GT(found.nearest[0].error, 0);
}

// The factor is that of the loss, not of a gradient of which one element is wrong.
TEST(Identify, AWrongGradientBesideTheRightLoss) {
  for (int64_t element : {0, 3, 17, 39}) {
    Exported kd(golden("kd_hinton__batchmean_t4"), false);
    for (auto& [name, tensor] : kd.tensors)
      if (name == "grad.in.logits_s") tensor.data<double>()[element] *= 1.05;
    for (double factor : {1.0, -7.5}) {
      if (factor != 1) kd.scale_by(factor);
      Identified found = kd.identify();
      EXPECT_TRUE(found.equal.empty());
      ASSERT_FALSE(found.nearest.empty());
      const Guess& nearest = found.nearest[0];
      EXPECT_EQ(nearest.function, "kd.hinton");
      EXPECT_EQ(nearest.attributes.size(), 0u);  // the defaults
      EXPECT_NEAR(nearest.factor, factor, 1e-9);
      EXPECT_EQ(nearest.tensor, "grad.in.logits_s");
      EXPECT_LE(nearest.error, 0.05);
    }
  }
}

// Two centred rows are opposite: the gradient is rounding noise around zero, and so are others.
TEST(Identify, RoundingNoiseIsNoOffer) {
  Identified found = Exported(golden("aft_loss__batch2")).identify();
  EXPECT_TRUE(contains(found, "aft.loss"));
  for (const Guess& g : found.equal) EXPECT_EQ(g.verdict, Guess::equal) << g.function;
}

TEST(IdentifyProgram, OutputAndExitCodes) {
  TemporaryFolder folder;
  Exported kd(golden("kd_hinton__batchmean_t4"), false);
  kd.rename({{"in.logits_s", "mine"}});
  data::save_safetensors(folder / "kd.safetensors", kd.tensors, {});
  Outcome text = run_program({"identify", "kd.safetensors"}, folder);
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("equal: kd.hinton ("), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("logits_s = mine"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("pupil explain kd"), std::string::npos) << text.out;
  Json j = Json::parse(run_program({"identify", "kd.safetensors", "--json"}, folder).out);
  EXPECT_EQ(j["equal"][0]["function"], "kd.hinton");
  EXPECT_EQ(j["equal"][0]["factor"], 1.0);

  for (auto& [name, tensor] : kd.tensors)
    if (name == "grad.mine") tensor.data<double>()[0] += 1;
  data::save_safetensors(folder / "other.safetensors", kd.tensors, {});
  Outcome other = run_program({"identify", "other.safetensors"}, folder);
  EXPECT_EQ(other.code, 1);
  EXPECT_EQ(other.out.find("near: kd.hinton ("), 0u) << other.out;
  EXPECT_NE(other.out.find("out.loss equal, grad.mine differs first, by "), std::string::npos)
      << other.out;

  auto refused = [&](const std::vector<std::pair<std::string, Tensor>>& tensors,
                     const std::string& words) {
    data::save_safetensors(folder / "bad.safetensors", tensors, {});
    Outcome outcome = run_program({"identify", "bad.safetensors"}, folder);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
  };
  Tensor x = full({2, 3}, 1, DType::f64), one = full({}, 1, DType::f64);
  refused({{"in.x", x}}, "has no tensor out.loss");
  refused({{"out.loss", one}}, "has no inputs");
  refused({{"in.x", x}, {"out.loss", x}}, "must be one number");
  refused({{"in.x", x}, {"out.loss", full({}, NAN, DType::f64)}}, "the loss is not finite");
  refused({{"in.x", full({2}, INFINITY, DType::f64)}, {"out.loss", one}}, "in.x is not finite");
  EXPECT_EQ(run_program({"identify", "absent.safetensors"}, folder).code, 2);
}

}  // namespace
}  // namespace pupil::test

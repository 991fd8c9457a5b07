// pupil explain: every equation stands in the source where it says, and nothing else does.
#include "tools/explain.h"

#include <gtest/gtest.h>
#include <toml++/toml.h>

#include <nlohmann/json.hpp>
#include <set>

#include "methods/method.h"
#include "program.h"
#include "tools/transmiter_job.h"

namespace pupil::test {
namespace {

using Json = nlohmann::json;
using Key = std::pair<std::string, std::string>;  // method, equation

std::vector<const methods::Method*> all_methods() {
  auto all = methods::list_methods(), pipelines = methods::list_pipelines();
  all.insert(all.end(), pipelines.begin(), pipelines.end());
  return all;
}

TEST(Explain, EveryEquationHasALineAndEveryMarkerAnEquation) {
  std::set<Key> declared, marked;
  for (const methods::Method* m : all_methods()) {
    EXPECT_FALSE(m->explanation.equations.empty()) << m->name << " declares no equations";
    EXPECT_FALSE(m->explanation.symbols.empty()) << m->name << " declares no symbols";
    EXPECT_FALSE(m->explanation.cases.empty()) << m->name << " names no reference cases";
    EXPECT_FALSE(m->source.empty()) << m->name;
    EXPECT_FALSE(m->summary.empty()) << m->name;
    for (const methods::Equation& e : m->explanation.equations)
      EXPECT_TRUE(declared.insert({m->name, e.id}).second) << m->name << " " << e.id << " twice";
  }
  for (const EquationLine& at : equation_lines()) {
    marked.insert({at.method, at.equation});
    EXPECT_TRUE(declared.count({at.method, at.equation}))
        << at.file << ":" << at.line << ": the marker [" << at.method << " " << at.equation
        << "] names no declared equation";
  }
  for (auto& [method, equation] : declared)
    EXPECT_TRUE(marked.count({method, equation}))
        << "no line of the source is marked [" << method << " " << equation << "]";
}

// What is said of the options of `pupil transmiter` is what its configuration has.
TEST(Explain, PipelineOptionsAreKeysWithTheirDefaults) {
  toml::table keys = toml::parse(to_toml(TransmiterConfig()));
  for (const methods::Method* m : methods::list_pipelines()) {
    EXPECT_FALSE(m->make) << m->name;
    EXPECT_FALSE(m->options.empty()) << m->name;
    for (const methods::Option& option : m->options) {
      auto key = keys.at_path(option.name);
      if (key.is_array()) key = key[0];
      std::visit(
          [&](const auto& value) {
            auto found = key.value_exact<std::decay_t<decltype(value)>>();
            EXPECT_TRUE(found && *found == value) << option.name;
          },
          option.value);
      EXPECT_FALSE(option.source.empty()) << option.name;
    }
  }
}

TEST(Explain, TheLinesCarryTheirMarkers) {
  const char* source = std::getenv("PUPIL_SOURCE");
  ASSERT_TRUE(source);
  for (const EquationLine& at : equation_lines()) {
    std::istringstream text(read_text(std::string(source) + "/" + at.file));
    std::string line;
    for (int i = 0; i < at.line; i++) ASSERT_TRUE(std::getline(text, line)) << at.file;
    EXPECT_NE(line.find(concat("[", at.method, " ", at.equation, "]")), std::string::npos)
        << at.file << ":" << at.line << ": " << line;
  }
}

TEST(Explain, Program) {
  TemporaryFolder folder;
  Outcome list = run_program({"explain"}, folder);
  EXPECT_EQ(list.code, 0) << list.err;
  for (const methods::Method* m : all_methods()) {
    EXPECT_NE(list.out.find(m->name + " "), std::string::npos);
    EXPECT_EQ(run_program({"explain", m->name}, folder).code, 0) << m->name;
  }
  Outcome aft = run_program({"explain", "aft"}, folder);
  for (const char* part : {"T_ik = Psi_ik w_k", "methods/aft.cc:", "beta = 10", "aft.loss",
                           "aft_loss__dense", "arXiv 2406.07337"})
    EXPECT_NE(aft.out.find(part), std::string::npos) << part << " in\n" << aft.out;

  Json kd = Json::parse(run_program({"explain", "kd", "--json"}, folder).out);
  EXPECT_EQ(kd["options"][0]["name"], "T");
  EXPECT_EQ(kd["options"][0]["default"], 4.0);
  EXPECT_EQ(kd["weight"], 0.9);
  for (const Json& e : kd["equations"]) EXPECT_FALSE(e["places"].empty()) << e;
  EXPECT_FALSE(kd["cases"][0]["installed"].empty());
  EXPECT_GE(Json::parse(run_program({"explain", "--json"}, folder).out).size(), 3u);

  Outcome transmiter = run_program({"explain", "transmiter"}, folder);
  for (const char* part : {"methods/transmiter.cc:", "transmiter.lr = 0.001", "expm(A)",
                           "transmiter_adapter__tall_latent", "arXiv 2508.08604"})
    EXPECT_NE(transmiter.out.find(part), std::string::npos) << part << " in\n" << transmiter.out;
  EXPECT_EQ(transmiter.out.find("loss of a run"), std::string::npos) << transmiter.out;
  Outcome unknown = run_program({"explain", "kdd"}, folder);
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("did you mean kd?"), std::string::npos) << unknown.err;
}

}  // namespace
}  // namespace pupil::test

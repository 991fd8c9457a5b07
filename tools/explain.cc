#include "explain.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/weights.h"
#include "../methods/method.h"
#include "verify.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

constexpr EquationLine kEquationLines[] = {
#include "equation_lines.inc"
};

// "methods/aft.cc:20", every line that carries the equation's marker.
std::vector<std::string> places(const std::string& method, const std::string& equation) {
  std::vector<std::string> list;
  for (const EquationLine& at : kEquationLines)
    if (at.method == method && at.equation == equation)
      list.push_back(concat(at.file, ":", at.line));
  return list;
}

// The reference cases that came with this program, by function.
std::map<std::string, std::vector<std::string>> installed_cases() {
  std::map<std::string, std::vector<std::string>> cases;
  std::string folder = golden_folder();
  if (folder.empty()) return cases;
  for (const std::string& path : find_cases({folder}))
    cases[data::open_safetensors(path)->metadata().at("fn")].push_back(
        std::filesystem::path(path).stem().string());
  return cases;
}

std::vector<const methods::Method*> explained() {
  std::vector<const methods::Method*> all = methods::list_methods();
  for (const methods::Method* pipeline : methods::list_pipelines()) all.push_back(pipeline);
  return all;
}

const methods::Method& find_explained(const std::string& name) {
  std::vector<std::string> names;
  for (const methods::Method* m : explained()) {
    if (m->name == name) return *m;
    names.push_back(m->name);
  }
  fail_input("unknown method '", name, "'", did_you_mean(name, names));
}

Json as_json(const methods::Method& m) {
  Json j{{"name", m.name}, {"summary", m.summary}, {"source", m.source}};
  if (m.make)
    j.update(
        {{"weight", m.weight}, {"ce_weight", m.ce_weight}, {"needs_teacher", m.needs_teacher}});
  for (const char* list : {"symbols", "equations", "options", "cases"}) j[list] = Json::array();
  for (const methods::Symbol& s : m.explanation.symbols)
    j["symbols"].push_back({{"name", s.name}, {"shape", s.shape}, {"meaning", s.meaning}});
  for (const methods::Equation& e : m.explanation.equations)
    j["equations"].push_back(
        {{"id", e.id}, {"formula", e.formula}, {"places", places(m.name, e.id)}});
  for (const methods::Option& o : m.options) {
    Json option{{"name", o.name}};
    std::visit([&](const auto& value) { option["default"] = value; }, o.value);
    option.update({{"help", o.help}, {"source", o.source}});
    j["options"].push_back(option);
  }
  auto installed = installed_cases();
  for (const std::string& function : m.explanation.cases)
    j["cases"].push_back({{"function", function}, {"installed", installed[function]}});
  return j;
}

std::string joined(const Json& list) {
  std::string text;
  for (const Json& item : list) text += (text.empty() ? "" : ", ") + item.get<std::string>();
  return text;
}

std::string in_brackets(const std::string& text) {
  return text.empty() ? "" : concat(" (", text, ")");
}

void print(const Json& j) {
  auto text = [](const Json& item, const char* key) { return item[key].get<std::string>(); };
  std::cout << text(j, "name") << ": " << text(j, "summary") << "\nsource: " << text(j, "source")
            << "\n";
  if (j.contains("weight")) {
    std::cout << "loss of a run: " << j["ce_weight"] << " CE";
    if (j["needs_teacher"]) std::cout << " + " << j["weight"] << " " << text(j, "name");
    std::cout << " (train.ce_weight, method.weight)\n";
  }
  if (!j["symbols"].empty()) std::cout << "\nsymbols\n";
  for (const Json& s : j["symbols"])
    std::cout << "  " << text(s, "name") << "  " << text(s, "shape") << "  " << text(s, "meaning")
              << "\n";
  if (!j["equations"].empty()) std::cout << "\nequations\n";
  for (const Json& e : j["equations"])
    std::cout << "  " << text(e, "id") << "  " << text(e, "formula") << "\n     "
              << joined(e["places"]) << "\n";
  if (!j["options"].empty()) std::cout << "\noptions, with their defaults\n";
  for (const Json& o : j["options"])
    std::cout << "  " << text(o, "name") << " = " << o["default"] << "  " << text(o, "help")
              << in_brackets(text(o, "source")) << "\n";
  if (!j["cases"].empty()) std::cout << "\nproved by (pupil verify)\n";
  for (const Json& c : j["cases"])
    std::cout << "  " << text(c, "function") << in_brackets(joined(c["installed"])) << "\n";
}

struct ExplainArguments {
  std::string method;
  bool json = false;
};

void explain(const ExplainArguments& a) {
  if (!a.method.empty()) {
    Json j = as_json(find_explained(a.method));
    if (a.json)
      std::cout << j.dump(1) << "\n";
    else
      print(j);
    return;
  }
  Json list = Json::array();
  for (const methods::Method* m : explained()) {
    list.push_back({{"name", m->name}, {"summary", m->summary}, {"source", m->source}});
    if (!a.json)
      std::cout << m->name << std::string(m->name.size() < 18 ? 18 - m->name.size() : 1, ' ')
                << m->summary << " (" << m->source << ")\n";
  }
  if (a.json) std::cout << list.dump(1) << "\n";
}

}  // namespace

std::span<const EquationLine> equation_lines() { return kEquationLines; }

void add_explain_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("explain", "a method's formula, options, source lines and proofs");
  command->footer("Without METHOD the methods are listed.\nExample:\n  pupil explain aft");
  auto a = std::make_shared<ExplainArguments>();
  command->add_option("METHOD", a->method, "name of a method");
  command->add_flag("--json", a->json, "for machines");
  command->callback([a] { explain(*a); });
}

}  // namespace pupil

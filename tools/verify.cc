#include "verify.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "program.h"
#include "text.h"
#include "verify/case.h"

namespace pupil {
namespace verify {

const Adapters& adapters() {
  static const Adapters all = [] {
    Adapters list;
    add_ops(list);
    add_optim(list);
    add_lora(list);
    add_image(list);
    add_aft(list);
    add_kd(list);
    add_linalg(list);
    add_losses(list);
    add_clip(list);
    add_vit(list);
    add_convolutional(list);
    add_transmiter(list);
    return list;
  }();
  return all;
}

}  // namespace verify

namespace {

namespace fs = std::filesystem;

// Throws InputError for a damaged file.
bool is_case(const fs::path& path) {
  if (path.extension() != ".safetensors") return false;
  auto file = data::open_safetensors(path.string());
  auto format = file->metadata().find("format");
  return format != file->metadata().end() && format->second == "pupil-case-1";
}

// In a folder a damaged case counts, as one that fails: a file that names the format but cannot be
// opened. Other broken files are passed over, as everything that is no case.
bool is_case_or_damaged(const fs::path& path) {
  try {
    return is_case(path);
  } catch (const InputError&) {
    std::string head(4096, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(head.data(), std::streamsize(head.size()));
    return head.find("\"pupil-case-1\"") != std::string::npos;
  }
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const char* name_of(VerifyResult::Status status) {
  constexpr const char* names[] = {"passed", "failed", "skipped"};
  return names[status];
}

void print_line(const VerifyResult& r) {
  std::cout << name_of(r.status) << (r.status == VerifyResult::skipped ? " " : "  ")
            << fs::path(r.path).filename().string();
  if (!r.tensor.empty()) std::cout << "  " << r.tensor;
  if (!r.tensor.empty() && r.reason.empty())
    std::cout << concat(": error ", r.error, ", allowed ", r.allowed);
  if (!r.reason.empty()) std::cout << ": " << r.reason;
  std::cout << std::endl;
}

nlohmann::ordered_json to_json(const VerifyResult& r) {
  nlohmann::ordered_json j{
      {"path", r.path}, {"function", r.function}, {"status", name_of(r.status)}};
  if (!r.tensor.empty())
    j.update({{"tensor", r.tensor}, {"error", r.error}, {"allowed", r.allowed}});
  if (!r.reason.empty()) j["reason"] = r.reason;
  return j;
}

struct VerifyArguments {
  std::vector<std::string> paths;
  std::string dtype = "f32", device = "cpu";
  bool strict = false, json = false;
  int threads = 0;
};

void run(const VerifyArguments& a) {
  use_threads(a.threads);
  VerifyOptions options;
  options.dtype = a.dtype == "f64" ? DType::f64 : DType::f32;
  std::vector<std::string> paths = a.paths;
  if (paths.empty()) paths.push_back(golden_folder());
  if (paths[0].empty())
    fail_input("verify: no reference cases are installed with this program; name a file or folder");
  int64_t counts[3] = {};
  std::map<std::string, int64_t> unknown;
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const std::string& path : find_cases(paths)) {
    VerifyResult r = verify_case(path, options);
    counts[r.status]++;
    if (!r.known) unknown[r.function]++;
    if (a.json)
      cases.push_back(to_json(r));
    else
      print_line(r);
  }
  std::string totals =
      concat(counts[0], " passed, ", counts[1], " failed, ", counts[2], " skipped");
  if (a.json) {
    nlohmann::ordered_json j{{"dtype", a.dtype},         {"device", a.device},
                             {"passed", counts[0]},      {"failed", counts[1]},
                             {"skipped", counts[2]},     {"unknown_functions", unknown},
                             {"cases", std::move(cases)}};
    std::cout << j.dump(1) << std::endl;
  } else {
    if (!unknown.empty()) {
      std::cout << "unknown functions:";
      for (auto& [function, count] : unknown) std::cout << " " << function << " (" << count << ")";
      std::cout << "\n";
    }
    std::cout << totals << std::endl;
  }
  if (counts[1]) throw Error(concat("verify: ", counted(counts[1], "case"), " failed"));
  if (a.strict && counts[2])
    throw Error(concat("verify: skipped ", counted(counts[2], "case"), ", which --strict forbids"));
}

}  // namespace

std::string golden_folder() {
  fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  for (const char* place : {"../share/pupil/golden", "../tests/golden"})
    if (fs::is_directory(here / place)) return (here / place).lexically_normal().string();
  return "";
}

std::vector<std::string> find_cases(const std::vector<std::string>& paths) {
  std::vector<std::string> found;
  for (const std::string& path : paths) {
    if (!fs::exists(path)) fail_input("verify: no such file or folder: ", path);
    if (!fs::is_directory(path)) {
      if (!is_case(path)) fail_input("verify: ", path, " is not a file of format pupil-case-1");
      found.push_back(path);
      continue;
    }
    for (auto& entry : fs::recursive_directory_iterator(path))
      if (entry.is_regular_file() && is_case_or_damaged(entry.path()))
        found.push_back(entry.path().string());
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  if (found.empty()) fail_input("verify: no cases of format pupil-case-1 in ", joined(paths));
  return found;
}

VerifyResult verify_case(const std::string& path, const VerifyOptions& options) {
  VerifyResult r;
  r.path = path;
  std::optional<verify::Case> opened;
  try {
    opened.emplace(data::open_safetensors(path), options.dtype, options.device);
  } catch (const InputError& damaged) {
    r.reason = damaged.what();
    return r;
  }
  verify::Case& c = *opened;
  r.function = c.function();
  auto skip = [&](const std::string& reason) {
    r.status = VerifyResult::skipped;
    r.reason = reason;
    return r;
  };
  auto adapter = verify::adapters().find(c.function());
  if (adapter == verify::adapters().end()) {
    r.known = false;
    return skip(concat("no function ", c.function()));
  }
  std::string thrown;
  try {
    adapter->second(c);
    if (c.unread().empty() && !c.expects_error()) {
      verify::Case::Worst worst = c.compare();
      r.tensor = worst.tensor;
      r.reason = worst.problem;
      r.error = worst.error;
      r.allowed = worst.allowed;
      r.status = worst.ratio <= 1 ? VerifyResult::passed : VerifyResult::failed;
      return r;
    }
  } catch (const verify::Unsupported& unsupported) {
    return skip(unsupported.what());
  } catch (const std::exception& error) {
    thrown = error.what();
    thrown.resize(std::min(thrown.find('\n'), thrown.size()));  // without the list of tensors
  }
  // What was never read cannot have been honoured. A call that failed on its own is no skip,
  // though.
  bool failed_call = !thrown.empty() && !c.expects_error();
  if (!failed_call && !c.unread().empty()) return skip(joined(c.unread()));
  if (!thrown.empty() && c.expects_error()) {
    r.status = VerifyResult::passed;
    return r;
  }
  r.status = VerifyResult::failed;
  r.reason = thrown.empty() ? "no error, although the case must be refused" : thrown;
  return r;
}

void add_verify_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("verify", "compare this build with reference values");
  command->footer(
      "Without PATH the cases that were installed with the program are replayed.\n"
      "Example:\n  pupil verify --dtype f64 reference/");
  auto a = std::make_shared<VerifyArguments>();
  command->add_option("PATH", a->paths, "case files or folders");
  command->add_option("--dtype", a->dtype, "f32 or f64")->check(CLI::IsMember({"f32", "f64"}));
  command->add_option("--device", a->device, "cpu")->check(CLI::IsMember({"cpu"}));
  command->add_flag("--strict", a->strict, "skipped cases are a failure");
  command->add_flag("--json", a->json, "for machines");
  add_threads_option(*command, a->threads);
  command->callback([a] { run(*a); });
}

}  // namespace pupil

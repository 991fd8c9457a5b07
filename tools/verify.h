// pupil verify: replays reference cases and compares every output and gradient.
#pragma once
#include "../tensor/core.h"

namespace CLI {
class App;
}

namespace pupil {

struct VerifyOptions {
  DType dtype = DType::f32;
  Device device;
};

struct VerifyResult {
  enum Status { passed, failed, skipped } status = failed;
  std::string path, function;
  // Passed and failed: the worst tensor, its largest error and what the tolerance allows. Failed
  // and skipped: the reason.
  std::string tensor, reason;
  double error = 0, allowed = 0;
  bool known = true;  // false: Pupil has no function of this name
};

// The case files at and below `paths`, sorted. In a folder other files are passed over, but damaged
// safetensors files count, since they may be cases; verify_case fails them. Throws InputError for a
// path that does not exist or a named file that is damaged or no case.
std::vector<std::string> find_cases(const std::vector<std::string>& paths);

// The cases that belong to this program: of an installation, or of the source tree it was built in.
// "" where there are none.
std::string golden_folder();

VerifyResult verify_case(const std::string& path, const VerifyOptions&);

void add_verify_command(CLI::App&);

}  // namespace pupil

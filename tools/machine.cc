#include "machine.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <utility>

#include "../tensor/memory.h"
#include "../tensor/onednn.h"
#include "../tensor/ops.h"
#include "../tensor/runtime.h"

namespace pupil {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) {
      size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  return "unknown";
}

std::string cpu_features() {
  // The argument of the builtin must be a literal.
  const std::pair<const char*, bool> features[] = {
      {"avx2", __builtin_cpu_supports("avx2")},
      {"fma", __builtin_cpu_supports("fma")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bw", __builtin_cpu_supports("avx512bw")},
      {"avx512vl", __builtin_cpu_supports("avx512vl")},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16")}};
  std::string list;
  for (auto [name, present] : features) {
    if (!present) continue;
    if (!list.empty()) list += ' ';
    list += name;
  }
  return list;
}

namespace {

double seconds_of_product(const Tensor& matrix) {
  auto start = std::chrono::steady_clock::now();
  matmul(matrix, matrix);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const char* measured_precision() {
  onednn::Bf16 units = onednn::bf16_units();
  if (plain_mode() || units == onednn::Bf16::none) return "f32";
  if (units == onednn::Bf16::tiles) return "bf16";
  StepScope scope;
  NoGrad unrecorded;
  Tensor wide = full({512, 512}, 1), low = wide.to(DType::bf16);
  double best_wide = 1, best_low = 1;
  for (int i = 0; i < 10; i++) {
    best_wide = std::min(best_wide, seconds_of_product(wide));
    best_low = std::min(best_low, seconds_of_product(low));
  }
  return best_wide > 1.3 * best_low ? "bf16" : "f32";
}

}  // namespace

const char* faster_precision() {
  static const char* const chosen = measured_precision();
  return chosen;
}

}  // namespace pupil

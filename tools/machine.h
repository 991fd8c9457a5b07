// What machine this is, for `pupil info` and the record of a run.
#pragma once
#include <string>

namespace pupil {
std::string cpu_name();      // "AMD EPYC 7763 64-Core Processor"
std::string cpu_features();  // "avx2 fma avx512f ...": those that kernels here ask for
}  // namespace pupil

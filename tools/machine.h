// What machine this is, for `pupil info` and the record of a run.
#pragma once
#include <string>

namespace pupil {
std::string cpu_name();      // "AMD EPYC 7763 64-Core Processor"
std::string cpu_features();  // "avx2 fma avx512f ...": those that kernels here ask for

// What `precision = "auto"` means here, "bf16" or "f32": bf16 where the processor has tiles for it
// (AMX); where it has bf16 products in vectors, when they are 1.3 times as fast as f32 in a product
// of 512 x 512 matrices, timed once a process; else f32.
const char* faster_precision();
}  // namespace pupil

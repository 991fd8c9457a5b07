// Process-wide switches: the thread pool and which twin of an op runs.
#pragma once
#include "core.h"

namespace pupil {

// The one OpenMP pool, shared with oneDNN. Worker i is pinned to the i-th CPU that the process may
// use: unpinned workers were seen to share a core after idle pauses (50 times slower).
int cpu_threads();
void set_cpu_threads(int n, bool pin = true);  // n = 0: all allowed CPUs
void unpin_this_thread();  // for loader threads: they would inherit one pinned CPU

// True: every op runs its plain twin (the reference loops, no vendor library, no fusion).
// Starts as the environment variable PUPIL_PLAIN says.
bool plain_mode();
void set_plain_mode(bool);

// May this op take its float32 CPU fast path (oneDNN or a hand-written kernel)?
inline bool cpu_fast(DType dtype, Device device) {
  return dtype == DType::f32 && !device.is_cuda() && !plain_mode();
}

bool cpu_has_avx512();

// True: the bits of every result are the same for any number of threads. Vendor libraries, which
// cut sums as they have threads, run on one; no algorithm that rounds more than the sum that it
// computes (Winograd's convolution). Starts as the environment variable PUPIL_EXACT says.
bool exact_mode();
void set_exact_mode(bool);

// Threads of vendor libraries: one in exact mode.
inline int library_threads() { return exact_mode() ? 1 : cpu_threads(); }

// While it lives, OpenMP regions that this thread begins have n threads.
class ThreadLimit {
 public:
  explicit ThreadLimit(int n);
  ~ThreadLimit();
  ThreadLimit(const ThreadLimit&) = delete;

 private:
  int before_;
};

}  // namespace pupil

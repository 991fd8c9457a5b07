#include "runtime.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "launch.h"

namespace pupil {
namespace {

// The CPUs that this process may use, as found at start: later pinning must not shrink the answer.
const std::vector<int>& allowed_cpus() {
  static const std::vector<int> cpus = [] {
    std::vector<int> list;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
      for (int c = 0; c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &set)) list.push_back(c);
    if (list.empty()) list.push_back(0);
    return list;
  }();
  return cpus;
}

int g_threads = 0;

// A switch that starts as an environment variable says.
bool switched_on(const char* name) {
  const char* v = std::getenv(name);
  return v && *v && *v != '0';
}
bool& plain_flag() {
  static bool plain = switched_on("PUPIL_PLAIN");
  return plain;
}
bool& exact_flag() {
  static bool exact = switched_on("PUPIL_EXACT");
  return exact;
}

}  // namespace

int cpu_threads() {
  if (!g_threads) set_cpu_threads(0);
  return g_threads;
}

void set_cpu_threads(int n, bool pin) {
  const std::vector<int>& cpus = allowed_cpus();
  g_threads = n > 0 ? n : int(cpus.size());
  omp_set_dynamic(0);
  omp_set_num_threads(g_threads);
  if (!pin || size_t(g_threads) > cpus.size()) return;
#pragma omp parallel num_threads(g_threads)
  {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus[size_t(omp_get_thread_num())], &set);
    // Advice only: in a container that forbids it the run is slower, not wrong.
    if (sched_setaffinity(0, sizeof set, &set) != 0) errno = 0;
  }
}

void unpin_this_thread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : allowed_cpus()) CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) errno = 0;
}

bool plain_mode() { return plain_flag(); }
void set_plain_mode(bool plain) { plain_flag() = plain; }
bool exact_mode() { return exact_flag(); }
void set_exact_mode(bool exact) { exact_flag() = exact; }

ThreadLimit::ThreadLimit(int n) {
  cpu_threads();  // sets up the pool
  before_ = omp_get_max_threads();
  omp_set_num_threads(n);
}
ThreadLimit::~ThreadLimit() { omp_set_num_threads(before_); }

CpuTeam& cpu_team() {
  static CpuTeam team = CpuTeam::serial;
  return team;
}

bool cpu_has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace pupil

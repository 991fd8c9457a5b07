// Runs one CUDA block at a time: one fiber per CUDA thread, all on the calling OS thread. A fiber
// runs until it reaches a barrier, a warp collective or its end. The order in which ready threads
// (and blocks) are picked is configurable, so a result that depends on the order - the symptom of a
// missing barrier - changes between runs.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_emu.h"
#include "emu_internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudaemu {
Checker checker;
FiberInfo running{};
char* dyn_smem = nullptr;
size_t dyn_smem_size = 0;
EmuRange dyn_region{}, kernel_params{};

namespace {
constexpr size_t kStack = 256 * 1024, kGuard = 4096, kMaxThreads = 1024;

// ---- context switch
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
extern "C" void emu_switch(void** save_sp, void* to_sp);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emu_switch,.-emu_switch
)");
struct Context {
  void* sp = nullptr;
};
void make(Context& c, char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--sp = nullptr;  // fake return address: keeps the ABI's 16-byte alignment at entry
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  c.sp = sp;
}
void swap(Context& from, Context& to) { emu_switch(&from.sp, to.sp); }
#else

struct Context {
  ucontext_t u;
};
void make(Context& c, char* top, void (*entry)()) {
  getcontext(&c.u);
  c.u.uc_stack.ss_sp = top - kStack;
  c.u.uc_stack.ss_size = kStack;
  c.u.uc_link = nullptr;
  makecontext(&c.u, entry, 0);
}
void swap(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
#endif

enum class St { Ready, Barrier, Warp, Done };
struct Thread {
  Context ctx;
  char* stack;
  St st;
  const void* site;
  uint3 tid;
  int pred;
#ifdef EMU_ASAN
  void* fake_stack = nullptr;
#endif
};
struct Warp {
  unsigned char slot[2][32][32];
  unsigned arrived = 0, mask = 0, gen = 0;
  const void* site = nullptr;
  size_t size = 0;
};
struct State {
  std::vector<Thread> th{kMaxThreads};
  Warp warp[32];
  Context sched;
  unsigned n = 0, at = 0;
  void (*thunk)(const void*, const void*) = nullptr;
  const void *kernel_fn = nullptr, *args = nullptr;
  char* stacks = nullptr;
  std::string kernel;
  int reduce_and = 1, reduce_or = 0, reduce_count = 0, last_and = 0, last_or = 0, last_count = 0;
  std::mt19937 rng{1};
  int order = 0;  // 0 forward, 1 reverse, 2 random
  bool failed = false;
  std::map<const void*, int> max_dyn;
#ifdef EMU_ASAN
  void* sched_fake = nullptr;
  const void* sched_bottom = nullptr;
  size_t sched_size = 0;
#endif
};
State& S = *new State;
char* dyn_buf = nullptr;  // its own mapping, with slack on both sides
constexpr size_t kDynRegion = 1 << 20;

void to_scheduler(bool dying = false) {
  Thread& t = S.th[S.at];
  running.stack_lo = nullptr;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(dying ? nullptr : &t.fake_stack, S.sched_bottom, S.sched_size);
#endif
  (void)dying;
  swap(t.ctx, S.sched);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(t.fake_stack, &S.sched_bottom, &S.sched_size);
#endif
}

void fiber_entry() {
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &S.sched_bottom, &S.sched_size);
#endif
  for (;;) {
    S.thunk(S.kernel_fn, S.args);
    S.th[S.at].st = St::Done;
    to_scheduler(true);
  }
}

void run_fiber(unsigned i) {
  Thread& t = S.th[i];
  S.at = i;
  threadIdx = t.tid;
  running = {t.stack, t.stack + kStack, i};
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&S.sched_fake, t.stack, kStack);
#endif
  swap(S.sched, t.ctx);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(S.sched_fake, nullptr, nullptr);
#endif
  running.stack_lo = nullptr;
}

void run_block(const dim3& b) {
  S.n = b.x * b.y * b.z;
  for (unsigned i = 0; i < S.n; ++i) {
    Thread& t = S.th[i];
    t.st = St::Ready;
    t.tid = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
    make(t.ctx, t.stack + kStack, fiber_entry);
  }
  for (unsigned w = 0; w < (S.n + 31) / 32; ++w) S.warp[w].arrived = S.warp[w].mask = 0;
  if (checker.block_begin) checker.block_begin();
  std::vector<unsigned> order(S.n);
  for (unsigned i = 0; i < S.n; ++i) order[i] = S.order == 1 ? S.n - 1 - i : i;
  for (;;) {
    if (S.order == 2) std::shuffle(order.begin(), order.end(), S.rng);
    bool ran = false;
    for (unsigned i : order)
      if (S.th[i].st == St::Ready) {
        run_fiber(i);
        ran = true;
        if (S.failed) return;
      }
    if (ran) continue;
    unsigned done = 0, bar = 0, warp = 0;
    const void* site = nullptr;
    bool mixed = false;
    for (unsigned i = 0; i < S.n; ++i) {
      const Thread& t = S.th[i];
      done += t.st == St::Done;
      warp += t.st == St::Warp;
      if (t.st == St::Barrier) {
        ++bar;
        if (site && site != t.site) mixed = true;
        site = t.site;
      }
    }
    if (done == S.n) return;
    if (warp) {
      for (unsigned w = 0; w < (S.n + 31) / 32; ++w)
        if (S.warp[w].arrived)
          report(
              "warp-divergence",
              "kernel %s block (%u,%u,%u): warp %u waits in a warp collective (site %p) with mask "
              "%08x, but only lanes %08x arrived; the others exited or wait elsewhere",
              S.kernel.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, w, S.warp[w].site,
              S.warp[w].mask, S.warp[w].arrived);
      S.failed = true;
      return;
    }
    if (bar + done == S.n) {
      if (done || mixed) {
        report("barrier-divergence",
               "kernel %s block (%u,%u,%u): %u threads wait at __syncthreads, %u exited%s",
               S.kernel.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, bar, done,
               mixed ? ", and the waiting ones are at different barriers" : "");
        S.failed = true;
        return;
      }
      S.last_and = S.reduce_and;
      S.last_or = S.reduce_or;
      S.last_count = S.reduce_count;
      S.reduce_and = 1;
      S.reduce_or = 0;
      S.reduce_count = 0;
      for (unsigned i = 0; i < S.n; ++i) S.th[i].st = St::Ready;
      if (checker.barrier_done) checker.barrier_done();
    }
  }
}

void run_grid(const dim3& g, const dim3& b, size_t dyn, const std::string& kernel) {
  DeviceMode dm;
  if (!S.stacks) {
    S.stacks =
        static_cast<char*>(mmap(nullptr, kMaxThreads * (kStack + kGuard), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (size_t i = 0; i < kMaxThreads; ++i) {
      mprotect(S.stacks + i * (kStack + kGuard), kGuard, PROT_NONE);
      S.th[i].stack = S.stacks + i * (kStack + kGuard) + kGuard;
    }
    dyn_buf = static_cast<char*>(
        mmap(nullptr, kDynRegion, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    dyn_region = {dyn_buf, dyn_buf + kDynRegion};
  }
  S.kernel = kernel;
  S.failed = false;
  gridDim = g;
  blockDim = b;
  dyn_smem_size = dyn;
  dyn_smem = dyn_buf + kDynRegion / 2;
  if (checker.launch_begin) checker.launch_begin(S.kernel.c_str());
  const unsigned nb = g.x * g.y * g.z;
  std::vector<unsigned> order(nb);
  for (unsigned i = 0; i < nb; ++i) order[i] = S.order == 1 ? nb - 1 - i : i;
  if (S.order == 2) std::shuffle(order.begin(), order.end(), S.rng);
  for (unsigned i : order) {
    blockIdx = {i % g.x, i / g.x % g.y, i / (g.x * g.y)};
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(dyn_buf, kDynRegion);
#endif
    memset(dyn_smem, 0xff, dyn);  // NaN for every floating type
#ifdef EMU_ASAN
    __asan_poison_memory_region(dyn_buf, kDynRegion);
    __asan_unpoison_memory_region(dyn_smem, dyn);
#endif
    run_block(b);
    if (S.failed) break;
  }
}

}  // namespace

bool is_any_fiber_stack(const void* p) {
  auto c = static_cast<const char*>(p);
  return S.stacks && c >= S.stacks && c < S.stacks + kMaxThreads * (kStack + kGuard);
}
EmuRange emu_state_range() {
  return {reinterpret_cast<char*>(&S), reinterpret_cast<char*>(&S) + sizeof(State)};
}

void abort_launch() {
  S.failed = true;
  S.th[S.at].st = St::Done;
  to_scheduler(true);
  __builtin_unreachable();
}
void* dynamic_shared() { return dyn_smem; }
unsigned lane_id() { return S.at & 31; }
bool lane_in(unsigned mask, unsigned lane) { return lane < 32 && (mask >> lane & 1); }
void atomic_touch(const void* p, size_t n, const void* pc) {
  if (checker.atomic) checker.atomic(p, n, pc);
}

__attribute__((noinline)) void barrier() {
  Thread& t = S.th[S.at];
  t.site = __builtin_return_address(0);
  t.st = St::Barrier;
  to_scheduler();
}
__attribute__((noinline)) int barrier_reduce(int p, int op) {
  S.reduce_and &= p != 0;
  S.reduce_or |= p != 0;
  S.reduce_count += p != 0;
  Thread& t = S.th[S.at];
  t.site = __builtin_return_address(0);
  t.st = St::Barrier;
  to_scheduler();
  return op == 0 ? S.last_and : op == 1 ? S.last_or : S.last_count;
}

namespace {
unsigned rendezvous(unsigned mask, const void* site, const void* v, size_t size) {
  const unsigned w = S.at >> 5, lane = S.at & 31;
  const unsigned live = S.n - w * 32 >= 32 ? 0xffffffffu : (1u << (S.n - w * 32)) - 1;
  Warp& W = S.warp[w];
  if (!(mask >> lane & 1))
    report("warp-mask",
           "kernel %s thread %u: calls a warp collective with mask %08x that does not name its own "
           "lane",
           S.kernel.c_str(), S.at, mask);
  if (!W.arrived) {
    W.mask = mask;
    W.site = site;
    W.size = size;
  } else if (W.mask != mask || W.site != site || W.size != size)
    report("warp-divergence",
           "kernel %s warp %u: lanes meet at different warp collectives (sites %p and %p, masks "
           "%08x and %08x)",
           S.kernel.c_str(), w, W.site, site, W.mask, mask);
  const unsigned gen = W.gen;
  if (v) memcpy(W.slot[gen & 1][lane], v, size);
  W.arrived |= 1u << lane;
  if ((W.arrived & mask & live) == (mask & live)) {  // last one in releases the others
    for (unsigned l = 0; l < 32; ++l)
      if (l != lane && (W.arrived >> l & 1)) S.th[w * 32 + l].st = St::Ready;
    W.arrived = 0;
    ++W.gen;
  } else {
    S.th[S.at].st = St::Warp;
    to_scheduler();
  }
  return gen;
}
}  // namespace
__attribute__((noinline)) void warp_sync(unsigned mask) {
  rendezvous(mask, __builtin_return_address(0), nullptr, 0);
  if (checker.warp_sync_done) checker.warp_sync_done(S.at >> 5);
}
__attribute__((noinline))
const unsigned char (*warp_exchange(unsigned mask, const void* v, size_t size))[32] {
  unsigned gen = rendezvous(mask, __builtin_return_address(0), v, size);
  return S.warp[S.at >> 5].slot[gen & 1];
}

void set_max_dyn(const void* f, int v) { S.max_dyn[f] = v; }
void set_thread_order(int order, unsigned seed) {
  S.order = order;
  S.rng.seed(seed);
}

cudaError_t launch(const cudaLaunchConfig_t& c, const void* kernel,
                   void (*thunk)(const void*, const void*), const void* args, size_t args_size,
                   const Param* params, int nparams) {
  const dim3 g = c.gridDim, b = c.blockDim;
  const unsigned long long threads = 1ull * b.x * b.y * b.z, blocks = 1ull * g.x * g.y * g.z;
  if (!blocks || !threads || threads > kMaxThreads || b.z > 64 || g.y > 65535 || g.z > 65535 ||
      g.x > 2147483647u)
    return cudaErrorInvalidConfiguration;
  auto it = S.max_dyn.find(kernel);
  const size_t dyn = c.dynamicSmemBytes;
  if (dyn > size_t(it == S.max_dyn.end() ? 48 * 1024 : it->second)) return cudaErrorInvalidValue;
  const std::string name = symbol_name(kernel);
  for (int i = 0; i < nparams; ++i) {
    if (!params[i].is_pointer) continue;
    const void* p;
    memcpy(&p, params[i].p, sizeof p);
    if (!p || find_alloc(p)) continue;
    Alloc* dead = find_alloc(p, true);
    report(dead ? "use-after-free" : "host-pointer",
           "launch of %s: pointer argument %d (%p) is not device memory%s", name.c_str(), i, p,
           dead ? (": allocation #" + std::to_string(dead->id) + " was freed by " + dead->freed_by)
                      .c_str()
                : "");
  }
  auto blob = std::make_shared<std::vector<char>>(static_cast<const char*>(args),
                                                  static_cast<const char*>(args) + args_size);
  enqueue(c.stream, name.c_str(), [=] {
    S.thunk = thunk;
    S.kernel_fn = kernel;
    S.args = blob->data();
    kernel_params = {blob->data(), blob->data() + blob->size()};
    run_grid(g, b, dyn, name);
    kernel_params = {};
  });
  return cudaSuccess;
}
}  // namespace cudaemu

// Stand-in for the part of libcudart that the engine uses: device heap, streams as queues, copies,
// error states, fault injection. Any other call is a linker error: write it here first. Compiled
// against the toolkit's own headers, so signatures, enums and struct layouts are the real ones.
#include <cuda_runtime_api.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>

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
#endif

namespace cudaemu {
namespace {
constexpr size_t kArena = size_t(1) << 37;  // addresses only, no memory until touched
constexpr size_t kPage = 4096;
struct Op {
  std::string name;
  std::function<void()> fn;
};
struct Runtime {
  char *lo = nullptr, *next = nullptr;
  std::map<const char*, Alloc> allocs;  // by page_lo
  std::vector<Alloc*> opened;
  std::set<cudaStream_t> streams;
  int depth = 0;
  Order order = Order::Eager;
  std::mt19937 rng{1};
  long reports = 0, next_id = 1, mallocs = 0, fail_malloc_at = -1;
  size_t used = 0, limit = size_t(8) << 30;
  cudaError_t last = cudaSuccess;
  std::string op;
  struct sigaction old_segv {};
};
Runtime& runtime() {
  static Runtime& r = *new Runtime;
  return r;
}  // never destroyed: usable from static destructors
cudaError_t ret(cudaError_t e) {
  if (e != cudaSuccess) runtime().last = e;
  return e;
}
}  // namespace

struct StreamImpl {
  std::deque<Op> q;
  bool blocking = true;
  long id = 0;
};

void report(const char* kind, const char* fmt, ...) {
  const char* lo =
      std::exchange(running.stack_lo, nullptr);  // what runs from here on is not kernel code
  ++runtime().reports;
  fprintf(stderr, "== cuda-emu: %s: ", kind);
  va_list ap;
  va_start(ap, fmt);
  vfprintf(stderr, fmt, ap);
  va_end(ap);
  fprintf(stderr, "%s%s\n", runtime().op.empty() ? "" : "  [while running: ",
          runtime().op.empty() ? "" : (runtime().op + "]").c_str());
  running.stack_lo = lo;
}
long report_count() { return runtime().reports; }
const char* current_op() { return runtime().op.c_str(); }
bool in_arena(const void* p) {
  auto c = static_cast<const char*>(p);
  return runtime().lo && c >= runtime().lo && c < runtime().lo + kArena;
}

Alloc* find_alloc(const void* p, bool any_state) {
  auto c = static_cast<const char*>(p);
  auto it = runtime().allocs.upper_bound(c);
  if (it == runtime().allocs.begin()) return nullptr;
  Alloc& a = (--it)->second;
  if (c < a.base || c > a.base + a.size)
    return nullptr;  // one past the end still names the allocation
  return a.live || any_state ? &a : nullptr;
}

namespace {
[[noreturn]] void die() {
  void* bt[40];
  int n = backtrace(bt, 40);
  backtrace_symbols_fd(bt, n, 2);
  _exit(99);
}
void on_segv(int sig, siginfo_t* si, void* uc) {
  const char* p = static_cast<const char*>(si->si_addr);
  if (in_arena(p)) {
    auto it = runtime().allocs.upper_bound(p);
    Alloc* a = it == runtime().allocs.begin() ? nullptr : &std::prev(it)->second;
    if (a && a->live && runtime().depth > 0 && p < a->page_lo + a->page_len) {
      mprotect(a->page_lo, a->page_len, PROT_READ | PROT_WRITE);
      a->open = true;
      runtime().opened.push_back(a);
      return;
    }
    const char* where = runtime().depth ? "device code" : "HOST code";
    if (!a)
      report("bad-device-address", "%s touched %p, which was never allocated", where, p);
    else if (!a->live)
      report("use-after-free", "%s touched %p: allocation #%ld (%zu bytes), freed by %s", where, p,
             a->id, a->size, a->freed_by.c_str());
    else if (p >= a->page_lo + a->page_len)
      report("out-of-bounds",
             "%s touched %p, %td bytes past the end of allocation #%ld (%zu bytes)", where, p,
             p - (a->base + a->size), a->id, a->size);
    else
      report("host-touches-device-memory",
             "HOST code touched %p: device allocation #%ld (%zu bytes)", p, a->id, a->size);
    die();
  }
  if (is_any_fiber_stack(p)) {
    report("stack-overflow", "a kernel thread overflowed its stack");
    die();
  }
  if (runtime().old_segv.sa_flags & SA_SIGINFO && runtime().old_segv.sa_sigaction)
    runtime().old_segv.sa_sigaction(sig, si, uc);
  else {
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
  }
}
void at_exit() {
  long live = 0;
  size_t bytes = 0;
  for (auto& [k, a] : runtime().allocs)
    if (a.live) {
      ++live;
      bytes += a.size;
    }
  for (auto s : runtime().streams) {
    auto* i = reinterpret_cast<StreamImpl*>(s);
    if (!i->q.empty())
      report("unfinished-work", "%zu operations never waited for on stream %ld at exit",
             i->q.size(), i->id);
  }
  if (live) report("leak", "%ld allocations (%zu bytes) never freed", live, bytes);
  if (runtime().reports && !getenv("PUPIL_EMU_TOLERATE")) {
    fprintf(stderr, "== cuda-emu: %ld report(s)\n", runtime().reports);
    fflush(nullptr);
    _exit(99);
  }
}
}  // namespace
void set_thread_order(int order, unsigned seed);
void set_max_dyn(const void*, int);
namespace {
void init() {
  if (runtime().lo) return;
  runtime().lo = runtime().next = static_cast<char*>(
      mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (runtime().lo == MAP_FAILED) {
    perror("cuda-emu: mmap");
    abort();
  }
  static char alt[1 << 17];
  stack_t ss{};
  ss.ss_size = sizeof alt;
  ss.ss_sp = alt;
  sigaltstack(&ss, nullptr);
  struct sigaction sa {};
  sa.sa_sigaction = on_segv;
  sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &sa, &runtime().old_segv);
  if (const char* e = getenv("PUPIL_EMU_STREAMS"))
    runtime().order = !strcmp(e, "lazy")         ? Order::Lazy
                      : !strncmp(e, "random", 6) ? Order::Random
                                                 : Order::Eager;
  if (const char* e = getenv("PUPIL_EMU_SEED")) runtime().rng.seed(unsigned(atoi(e)));
  if (const char* e = getenv("PUPIL_EMU_THREADS"))
    set_thread_order(!strcmp(e, "reverse") ? 1 : !strcmp(e, "random") ? 2 : 0, runtime().rng());
  if (const char* e = getenv("PUPIL_EMU_MEM_MB")) runtime().limit = size_t(atoll(e)) << 20;
  if (const char* e = getenv("PUPIL_EMU_FAIL_MALLOC")) runtime().fail_malloc_at = atol(e);
  atexit(at_exit);
}
}  // namespace

DeviceMode::DeviceMode() { ++runtime().depth; }
DeviceMode::~DeviceMode() {
  if (--runtime().depth) return;
  for (Alloc* a : runtime().opened) {
    mprotect(a->page_lo, a->page_len, PROT_NONE);
    a->open = false;
  }
  runtime().opened.clear();
}

void* device_alloc(size_t n) {
  init();
  ++runtime().mallocs;
  if (runtime().mallocs == runtime().fail_malloc_at || runtime().used + n > runtime().limit)
    return nullptr;
  if (runtime().next + n + 2 * kPage > runtime().lo + kArena) {
    report("arena-exhausted", "addresses are never reused; allocate less in one process");
    return nullptr;
  }
  const size_t data = (std::max<size_t>(n, 1) + 255) / 256 * 256,
               len = (data + kPage - 1) / kPage * kPage;
  char* page = runtime().next;
  runtime().next += len + kPage;  // one guard page
  Alloc a{page + len - data, n, runtime().next_id++, true, "", page, len, false, {}};
  if (checker.launch_begin) a.init.assign(n, 0);
  auto& ref = runtime().allocs[page] = std::move(a);
  runtime().used += n;
  {
    DeviceMode dm;
    memset(ref.base, 0xff, data);  // NaN in every floating type, -1 in integers
  }
#ifdef EMU_ASAN
  __asan_poison_memory_region(page, ref.base - page);
  __asan_poison_memory_region(ref.base + n, data - n);
#endif
  return ref.base;
}
bool device_free(void* p, const char* by) {
  Alloc* a = find_alloc(p, true);
  if (!a || a->base != p) {
    report("bad-free", "%s(%p): not the start of a device allocation", by, p);
    return false;
  }
  if (!a->live) {
    report("double-free", "%s(%p): allocation #%ld was already freed by %s", by, p, a->id,
           a->freed_by.c_str());
    return false;
  }
  a->live = false;
  a->freed_by = by;
  a->init = {};
  runtime().used -= a->size;
  mprotect(a->page_lo, a->page_len, PROT_NONE);
  madvise(a->page_lo, a->page_len, MADV_DONTNEED);
  runtime().opened.erase(std::remove(runtime().opened.begin(), runtime().opened.end(), a),
                         runtime().opened.end());
#ifdef EMU_ASAN
  __asan_poison_memory_region(a->page_lo, a->page_len);
#endif
  return true;
}
bool check_range(const void* p, size_t n, const char* api, const char* what) {
  if (!n) return true;
  auto c = static_cast<const char*>(p);
  if (Alloc* a = find_alloc(p); a && c + n <= a->base + a->size && c < a->base + a->size)
    return true;
  Alloc* a = find_alloc(p, true);
  if (!a)
    report("bad-pointer", "%s: %s = %p (%zu bytes) is not device memory", api, what, p, n);
  else if (!a->live)
    report("use-after-free", "%s: %s = %p lies in allocation #%ld (%zu bytes), freed by %s", api,
           what, p, a->id, a->size, a->freed_by.c_str());
  else
    report("out-of-bounds",
           "%s: %s needs %zu bytes from offset %td of allocation #%ld, which has only %zu", api,
           what, n, c - a->base, a->id, a->size);
  return false;
}
bool check_init(const void* p, size_t n, const char* api, const char* what) {
  if (!n) return true;
  Alloc* a = find_alloc(p);
  if (!a || a->init.empty()) return true;
  const size_t off = size_t(static_cast<const char*>(p) - a->base);
  for (size_t i = off; i < off + n && i < a->size; ++i)
    if (!a->init[i]) {
      report("uninitialised-read",
             "%s: %s reads byte %zu of allocation #%ld (%zu bytes), which nothing has written", api,
             what, i, a->id, a->size);
      return false;
    }
  return true;
}
void mark_init(const void* p, size_t n) {
  Alloc* a = find_alloc(p);
  if (!a || a->init.empty()) return;
  const size_t off = size_t(static_cast<const char*>(p) - a->base);
  std::fill(a->init.begin() + long(off), a->init.begin() + long(std::min(off + n, a->size)), 1);
}

// ---- streams
namespace {
StreamImpl* impl(cudaStream_t s) {
  if (!s || s == cudaStreamLegacy || s == cudaStreamPerThread) return nullptr;
  if (!runtime().streams.count(s)) {
    report("bad-stream", "stream %p does not exist (destroyed?)", static_cast<void*>(s));
    return nullptr;
  }
  return reinterpret_cast<StreamImpl*>(s);
}
void step(StreamImpl* s);
void run_op(Op& o) {
  if (!o.fn) return;
  std::string saved = std::exchange(runtime().op, o.name);
  o.fn();
  runtime().op = saved;
}
void step(StreamImpl* s) {
  Op o = std::move(s->q.front());
  s->q.pop_front();
  run_op(o);
}
void drain(StreamImpl* s) {
  while (s && !s->q.empty()) step(s);
}
void drain_blocking() {
  for (auto h : runtime().streams)
    if (auto* s = reinterpret_cast<StreamImpl*>(h); s->blocking) drain(s);
}
void add(cudaStream_t h, Op o) {
  init();
  StreamImpl* s = impl(h);
  if (!s) {  // the default stream
    report("default-stream", "%s was queued on the default stream", o.name.c_str());
    drain_blocking();
    run_op(o);
    return;
  }
  s->q.push_back(std::move(o));
  if (runtime().order == Order::Eager)
    drain(s);
  else if (runtime().order == Order::Random)
    for (auto t : runtime().streams) {
      auto* i = reinterpret_cast<StreamImpl*>(t);
      while (!i->q.empty() && runtime().rng() % 2) step(i);
    }
}
}  // namespace
void enqueue(cudaStream_t s, const char* name, std::function<void()> fn) {
  add(s, Op{name, std::move(fn)});
}
void drain_all() {
  std::vector<cudaStream_t> v(runtime().streams.begin(), runtime().streams.end());
  if (runtime().order != Order::Eager) std::shuffle(v.begin(), v.end(), runtime().rng);
  for (auto s : v) drain(reinterpret_cast<StreamImpl*>(s));
}
namespace {
bool on_device(const void* p) { return find_alloc(p, true) || in_arena(p); }

cudaError_t copy(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t st, bool async,
                 const char* api) {
  init();
  if (!n) return cudaSuccess;
  if (!d || !s) return ret(cudaErrorInvalidValue);
  const bool dd = on_device(d), sd = on_device(s);
  if ((k == cudaMemcpyHostToDevice && (!dd || sd)) ||
      (k == cudaMemcpyDeviceToHost && (dd || !sd)) ||
      (k == cudaMemcpyDeviceToDevice && (!dd || !sd)) ||
      (k == cudaMemcpyHostToHost && (dd || sd))) {
    report("memcpy-kind", "%s: kind %d does not match the pointers (dst %s, src %s)", api, int(k),
           dd ? "device" : "host", sd ? "device" : "host");
    return ret(cudaErrorInvalidValue);
  }
  auto body = [=](const void* src) {
    if (dd && !check_range(d, n, api, "dst")) return;
    if (sd && !check_range(src, n, api, "src")) return;
    if (sd) check_init(src, n, api, "src");
    DeviceMode dm;
    memmove(d, src, n);
    if (dd) mark_init(d, n);
  };
  if (!async) {
    drain_blocking();
    body(s);
    return cudaSuccess;
  }
  if (!sd && dd) {  // pageable source: staged before the call returns
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(s),
                                                      static_cast<const char*>(s) + n);
    enqueue(st, api, [=] { body(staged->data()); });
  } else if (!dd && sd) {  // pageable destination: the call blocks
    drain(impl(st));
    if (!impl(st)) drain_blocking();
    body(s);
  } else
    enqueue(st, api, [=] { body(s); });
  return cudaSuccess;
}
cudaError_t fill(void* d, int v, size_t n, cudaStream_t s, const char* api) {
  if (!n) return cudaSuccess;
  enqueue(s, api, [=] {
    if (!check_range(d, n, api, "dst")) return;
    DeviceMode dm;
    memset(d, v, n);
    mark_init(d, n);
  });
  return cudaSuccess;
}
}  // namespace
}  // namespace cudaemu

using namespace cudaemu;
extern "C" {
cudaError_t cudaGetDeviceCount(int* n) {
  init();
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : ret(cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t n) {
  if (!n) {
    *p = nullptr;
    return cudaSuccess;
  }
  *p = device_alloc(n);
  return *p ? cudaSuccess : ret(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  init();
  drain_all();  // cudaFree waits for the device
  return !p || device_free(p, "cudaFree") ? cudaSuccess : ret(cudaErrorInvalidValue);
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) {
  if (p) enqueue(s, "cudaFreeAsync", [=] { device_free(p, "cudaFreeAsync"); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) {
  return copy(d, s, n, k, nullptr, false, "cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t st) {
  return copy(d, s, n, k, st, true, "cudaMemcpyAsync");
}
cudaError_t cudaMemset(void* d, int v, size_t n) { return fill(d, v, n, nullptr, "cudaMemset"); }
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t s) {
  return fill(d, v, n, s, "cudaMemsetAsync");
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) {
  init();
  auto* i = new StreamImpl;
  i->blocking = !(f & cudaStreamNonBlocking);
  i->id = runtime().next_id++;
  *s = reinterpret_cast<cudaStream_t>(i);
  runtime().streams.insert(*s);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  auto* i = impl(s);
  if (!i) return ret(cudaErrorInvalidResourceHandle);
  drain(i);
  runtime().streams.erase(s);
  delete i;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (auto* i = impl(s))
    drain(i);
  else
    drain_blocking();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  drain_all();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (v > 227 * 1024) return ret(cudaErrorInvalidValue);
    set_max_dyn(f, v);
  }
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  report("unsupported", "a launch bypassed the typed launch template");
  return ret(cudaErrorNotSupported);
}
cudaError_t cudaGetLastError() { return std::exchange(runtime().last, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return runtime().last; }
const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
}

// Shared by the parts of the fake CUDA stack. Not visible to the code under test.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cudaemu {

// ---- reports. A report never passes silently: the process exits with status 99 if any was made.
void report(const char* kind, const char* fmt, ...) __attribute__((format(printf, 2, 3)));
long report_count();

// ---- device heap: every allocation sits at the end of its own pages, with a guard page after it;
// addresses are never reused, so a freed range stays inaccessible for the rest of the process.
struct Alloc {
  char* base;
  size_t size;
  long id;
  bool live;
  std::string freed_by;
  char* page_lo;
  size_t page_len;
  bool open;
  std::vector<unsigned char> init;  // one flag per byte: written since cudaMalloc?
};
Alloc* find_alloc(const void* p, bool any_state = false);  // the allocation whose range holds p
bool in_arena(const void* p);
void* device_alloc(size_t n);
bool device_free(void* p, const char* by);
// [p, p+n) must lie in one live allocation. Reports and returns false
// otherwise.
bool check_range(const void* p, size_t n, const char* api, const char* what);
bool check_init(const void* p, size_t n, const char* api, const char* what);
void mark_init(const void* p, size_t n);
struct DeviceMode {
  DeviceMode();
  ~DeviceMode();
};  // while alive, the device heap is accessible

// ---- streams: everything is a queued operation; when it runs depends on the mode
struct StreamImpl;
enum class Order { Eager, Lazy, Random };
void enqueue(cudaStream_t s, const char* name, std::function<void()> op);
void drain_all();
const char* current_op();  // name of the operation being executed

// ---- the executable's own symbol table (emu_symbols.cc)
struct Symbol {
  const char *lo, *hi;
  std::string name;
  bool function, writable;
};
const std::vector<Symbol>& symbols();  // functions, and static variables inside functions; sorted
std::string symbol_name(const void* p);
std::string source_line(const void* pc);
struct Image {
  const char *lo, *hi;
};
Image image();

// ---- hooks of the access checker (no-ops unless emu_check.cc is linked)
struct Checker {
  void (*launch_begin)(const char* kernel) = nullptr;
  void (*block_begin)() = nullptr;
  void (*barrier_done)() = nullptr;
  void (*warp_sync_done)(unsigned warp) = nullptr;
  void (*atomic)(const void*, size_t, const void* pc) = nullptr;
  void (*access)(const void*, size_t, bool write, const void* pc) = nullptr;
};
extern Checker checker;
struct FiberInfo {
  const char* stack_lo;
  const char* stack_hi;
  unsigned tid;
};
extern FiberInfo running;  // valid while a kernel thread runs (stack_lo != nullptr)
struct EmuRange {
  const char *lo, *hi;
};
extern char* dyn_smem;
extern size_t dyn_smem_size;
extern EmuRange dyn_region, kernel_params;
[[noreturn]] void
abort_launch();  // called on a kernel thread: abandon it and the rest of the launch
EmuRange emu_state_range();
bool is_any_fiber_stack(const void* p);
}  // namespace cudaemu
